"""NetMamba's encoder, its pre-training as a masked autoencoder, and its classifier, which can also read a stream.

Letters: N = flows, S = bytes of a stride, L = strides of a flow, K = strides that are read, D = width, C = classes.
Source: sections 4.2 to 4.4 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn.selective_scan import MambaBlock, MambaState

LayerMaker = Callable[[int], nn.Module]
"""Makes, for a width D, what a layer adds to its input: a module of (N, K, D) to (N, K, D), normalisation included."""


class EncoderState(NamedTuple):
    """What an encoder remembers of a stream.

    Attributes:
        position: strides that it has read.
        layers: state of each layer.
    """

    position: int
    layers: tuple[MambaState, ...]


class MAEOutput(NamedTuple):
    """What `NetMambaMAE` returns.

    Attributes:
        loss: scalar, mean squared error on the hidden strides.
        reconstruction: (N, L, S) all strides as they are predicted, scaled from -1 to 1.
        mask: (N, L) bool, True where a stride was hidden.
    """

    loss: Tensor
    reconstruction: Tensor
    mask: Tensor


class MambaLayer(nn.Module):
    """What a layer of NetMamba adds to its input: a Mamba block after RMS normalisation.

    Args:
        dim: D.
        state: numbers of state a channel.
        conv: tokens that the convolution sees.
        expand: channels of the scan over D.
        depth: layers of the network; the output projection starts smaller by its root.
    """

    def __init__(self, dim: int, state: int = 16, conv: int = 4, expand: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = MambaBlock(dim, state, conv, expand)
        nn.init.kaiming_uniform_(self.mixer.out_proj.weight, a=5**0.5)
        with torch.no_grad():
            self.mixer.out_proj.weight /= depth**0.5

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to tokens (N, K, D)."""
        added: Tensor = self.mixer(self.norm(tokens))
        return added

    def advance(self, tokens: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """The same for the next tokens of streams, with the state behind them."""
        return self.mixer.advance(self.norm(tokens), state)


class Layers(nn.Module):
    """Residual layers and a final RMS normalisation; whole branches are dropped in training, later ones more often.

    Args:
        dim: D.
        depth: number of layers.
        make: makes a layer's branch.
        drop_path: how often the last branch is dropped; rates rise linearly from 0.

    Raises:
        ValueError: no layer, or a rate outside [0, 1).
    """

    def __init__(self, dim: int, depth: int, make: LayerMaker, drop_path: float = 0.1) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; expected at least 1")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; expected from 0 to below 1")
        self.branches = nn.ModuleList(make(dim) for _ in range(depth))
        self.rates = [drop_path * (number + 1 == depth or number / max(1, depth - 1)) for number in range(depth)]
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, K, D) to (N, K, D)."""
        for branch, rate in zip(self.branches, self.rates, strict=True):
            tokens = tokens + self._dropped(branch(tokens), rate)
        normed: Tensor = self.norm(tokens)
        return normed

    def advance(self, tokens: Tensor, states: tuple[MambaState, ...] | None) -> tuple[Tensor, tuple[MambaState, ...]]:
        """The next tokens of streams, without dropping, and the states behind them."""
        found = []
        for number, branch in enumerate(self.branches):
            if not isinstance(branch, MambaLayer):
                raise TypeError(f"a stream needs layers of MambaLayer; layer {number} is {type(branch).__name__}")
            added, state = branch.advance(tokens, None if states is None else states[number])
            tokens = tokens + added
            found.append(state)
        return self.norm(tokens), tuple(found)

    def _dropped(self, added: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0:
            return added
        kept = torch.rand(len(added), 1, 1, device=added.device) >= rate
        return added * kept / (1 - rate)


class NetMambaEncoder(nn.Module):
    """Strides of bytes through a causal model, with a class token that is read last and so has seen everything.

    The official code draws all linear layers anew after the blocks were made, with biases of zero, and so gives up
    Mamba's initial step sizes and the division of output projections by the root of the depth; here blocks start as the
    paper on Mamba has it.

    Args:
        n_bytes: bytes of a flow.
        stride: S, bytes of a token.
        dim: D.
        depth: number of Mamba blocks.
        state: numbers of state a channel.
        conv: tokens that the convolutions see.
        expand: channels of the scan over D.
        drop_path: how often the last block is dropped in training; rates rise linearly from 0.
        layer: makes the branch of a layer, in place of Mamba; None: `MambaLayer`.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        n_bytes: int = 1600,
        stride: int = 4,
        dim: int = 256,
        depth: int = 4,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        drop_path: float = 0.1,
        layer: LayerMaker | None = None,
    ) -> None:
        super().__init__()
        if stride < 1 or n_bytes < stride or n_bytes % stride:
            raise ValueError(f"n_bytes and stride are {n_bytes} and {stride}; expected a multiple of the stride")
        self.n_bytes, self.stride, self.dim = n_bytes, stride, dim
        self.embed = nn.Linear(stride, dim)  # a convolution of kernel and stride S over the bytes
        self.position = nn.Parameter(torch.empty(n_bytes // stride + 1, dim))
        self.class_token = nn.Parameter(torch.empty(dim))
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.normal_(self.class_token, std=0.02)
        self.layers = Layers(
            dim, depth, layer or (lambda width: MambaLayer(width, state, conv, expand, depth)), drop_path
        )

    @property
    def tokens(self) -> int:
        """L, strides of a flow."""
        return self.n_bytes // self.stride

    def strides(self, flows: Tensor) -> Tensor:
        """Bytes (N, n_bytes) as strides (N, L, S), those of uint8 scaled to the range from -1 to 1.

        Raises:
            ValueError: another number of bytes, or integers that are not uint8.
        """
        if flows.ndim != 2 or flows.shape[1] != self.n_bytes:
            raise ValueError(f"bytes have shape {tuple(flows.shape)}; expected (N, {self.n_bytes})")
        strides: Tensor = self._scaled(flows).unflatten(1, (-1, self.stride))
        return strides

    def forward(self, flows: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode flows.

        Args:
            flows: (N, n_bytes), uint8 or already scaled floating numbers.
            keep: (N, K) int64, which strides are read, in this order; None: all.

        Returns:
            (N, K + 1, D), the class token last.

        Raises:
            ValueError: another shape or dtype.
        """
        tokens = self.embed(self.strides(flows)) + self.position[:-1]
        if keep is not None:
            if keep.ndim != 2 or len(keep) != len(flows):
                raise ValueError(f"keep has shape {tuple(keep.shape)}; expected ({len(flows)}, K)")
            tokens = tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, self.dim))
        last = (self.class_token + self.position[-1]).to(tokens.dtype).expand(len(tokens), 1, -1)
        encoded: Tensor = self.layers(torch.cat([tokens, last], dim=1))
        return encoded

    def advance(self, flows: Tensor, state: EncoderState | None = None) -> tuple[Tensor, EncoderState]:
        """Read the next bytes of flows, as in evaluation: no branch is dropped.

        Args:
            flows: (N, k S), the next k strides.
            state: what was returned for the bytes before; None: these are the first.

        Returns:
            (N, D), the class token as if it stood behind these bytes, and the state behind them (without it).

        Raises:
            ValueError: no whole strides, or more bytes than a flow has.
        """
        begin, states = (0, None) if state is None else state
        if flows.ndim != 2 or flows.shape[1] % self.stride:
            raise ValueError(f"bytes have shape {tuple(flows.shape)}; expected (N, a multiple of {self.stride})")
        end = begin + flows.shape[1] // self.stride
        if end > self.tokens:
            raise ValueError(f"bytes end at stride {end}; expected at most the {self.tokens} strides of a flow")
        tokens = self.embed(self._scaled(flows).unflatten(1, (-1, self.stride))) + self.position[begin:end]
        _, after = self.layers.advance(tokens, states)
        last = (self.class_token + self.position[-1]).to(tokens.dtype).expand(len(tokens), 1, -1)
        read, _ = self.layers.advance(last, after)
        return read[:, 0], EncoderState(end, after)

    def _scaled(self, flows: Tensor) -> Tensor:
        if flows.dtype == torch.uint8:
            return flows.to(self.position.dtype) / 127.5 - 1
        if not flows.is_floating_point():
            raise ValueError(f"bytes have dtype {flows.dtype}; expected uint8 or a floating one, scaled to -1 to 1")
        return flows


class NetMambaClassifier(nn.Module):
    """A linear classifier on the class token.

    Args:
        encoder: pre-trained or not.
        num_classes: C.

    Raises:
        ValueError: fewer than one class.
    """

    def __init__(self, encoder: NetMambaEncoder, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # as the code starts fine-tuning
        nn.init.zeros_(self.head.bias)

    def forward(self, flows: Tensor) -> Tensor:
        """Logits (N, C) of flows (N, n_bytes)."""
        logits: Tensor = self.head(self.encoder(flows)[:, -1])
        return logits

    def step(self, flows: Tensor, state: EncoderState | None = None) -> tuple[Tensor, EncoderState]:
        """Logits after the next bytes of flows, as they come in; once all bytes are there they are those of `forward`.

        Args:
            flows: (N, k S), the next strides: of a packet, or of several.
            state: what was returned before; None: these are the first bytes.

        Returns:
            Logits (N, C) from what has been read so far, and the state for the next call.

        Raises:
            ValueError: no whole strides, or more bytes than a flow has.
        """
        read, state = self.encoder.advance(flows, state)
        return self.head(read), state


class NetMambaMAE(nn.Module):
    """Pre-training: the encoder reads a tenth of the strides, a small decoder restores the others.

    The kept strides are read in random order, as the official code does: it sorts noise and keeps the first, without
    sorting their places again. Their positions were added before. The class token stands last in encoder and decoder,
    so that no prediction of a causal model depends on it: pre-training leaves it as it was.

    Args:
        encoder: what is trained.
        dim: width of the decoder.
        depth: number of the decoder's Mamba blocks.
        keep_order: whether kept strides are read in the order of the flow instead.
        drop_path: of the decoder.
        layer: makes the branch of a decoder's layer, in place of Mamba; None: `MambaLayer`.
    """

    def __init__(
        self,
        encoder: NetMambaEncoder,
        dim: int = 128,
        depth: int = 2,
        *,
        keep_order: bool = False,
        drop_path: float = 0.1,
        layer: LayerMaker | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.keep_order = encoder, keep_order
        self.widen = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.position = nn.Parameter(torch.empty(encoder.tokens + 1, dim))
        self.layers = Layers(dim, depth, layer or (lambda width: MambaLayer(width, depth=depth)), drop_path)
        self.predict = nn.Linear(dim, encoder.stride)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        for linear in (self.widen, self.predict):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, flows: Tensor, mask_ratio: float = 0.9, generator: torch.Generator | None = None) -> MAEOutput:
        """Hide strides at random and restore them.

        Args:
            flows: (N, n_bytes), uint8 or already scaled floating numbers.
            mask_ratio: share of strides that are hidden; of 400 strides 0.9 leaves 39, not 40, as in the code, for
                1 - 0.9 is a little less than 0.1.
            generator: draws the masks; None: the global one.

        Raises:
            ValueError: a ratio outside (0, 1), or flows of another shape.
        """
        order, kept = self.draw_order(len(flows), mask_ratio, generator)
        order = order.to(flows.device)
        encoded = self.encoder(flows, order[:, :kept])
        seen = self.widen(encoded)
        hidden = self.mask_token.to(seen.dtype).expand(len(seen), order.shape[1] - kept, -1)
        shuffled = torch.cat([seen[:, :-1], hidden], dim=1)
        place = order.argsort(1)  # the inverse permutation
        tokens = shuffled.gather(1, place.unsqueeze(-1).expand_as(shuffled))
        decoded = self.layers(torch.cat([tokens, seen[:, -1:]], dim=1) + self.position)
        prediction = self.predict(decoded[:, :-1])
        mask = place >= kept
        return MAEOutput(masked_error(prediction, self.encoder.strides(flows), mask), prediction, mask)

    def draw_order(self, count: int, mask_ratio: float, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
        """Random orders of the strides, (count, L), and how many of the first ones are kept.

        Raises:
            ValueError: a ratio outside (0, 1).
        """
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; expected between 0 and 1")
        length = self.encoder.tokens
        kept = int(length * (1 - mask_ratio))
        device = self.position.device if generator is None else generator.device
        order = torch.rand(count, length, generator=generator, device=device).argsort(1)
        if self.keep_order:
            order = torch.cat([order[:, :kept].sort(1).values, order[:, kept:]], dim=1)
        return order, kept


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error on hidden strides alone.

    Args:
        prediction: (N, L, S).
        target: (N, L, S).
        mask: (N, L) bool, True where a stride was hidden.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: shapes that differ.
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:2]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (prediction, target, mask))
        raise ValueError(f"prediction, target and mask have shapes {shapes}; expected (N, L, S) twice and (N, L)")
    kind = torch.promote_types(prediction.dtype, torch.float32)
    error = F.mse_loss(prediction.to(kind), target.to(kind), reduction="none").mean(-1)
    return (error * mask).sum() / mask.sum()
