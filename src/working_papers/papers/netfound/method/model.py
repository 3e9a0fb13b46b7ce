"""The encoder: attention within each burst, then across the summaries of bursts, layer by layer."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.netfound.method.flow_tokens import FlowBatch

Size = Literal["small", "base", "large"]
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "small": (512, 4, 4, 768),
    "base": (768, 12, 12, 1152),
    "large": (1024, 24, 16, 2624),
}
"""Width, layers, heads and inner width of the gated MLP."""

METADATA = 4
PROTOCOLS = 18
"""Rows of the table of protocols: UDP is 17, the largest."""

INIT_STD = 0.02
"""Of all weights. It suits widths near 768: a linear layer multiplies signals by 0.02 √width, so that they vanish in
narrow networks, which want a larger one."""


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: turn pairs of features by angles that grow with the position.

    Args:
        x: queries or keys (T, heads, d), d even; feature i forms a pair with feature i + d/2.
        positions: of each of the T places in its sequence, int64 (T,).
        base: the slowest turn takes almost so many times as long as the fastest.

    Returns:
        The same shape; products of rotated queries and keys depend on the difference of their positions alone.
    """
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (positions[:, None] * rates)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class TransformerLayer(nn.Module):
    """Self-attention with rotary positions, then a gated MLP (GeGLU), each with its residual.

    x = LN(x + attention(x)), then x + W_out(GELU(W_in x') * W_gate x') with x' = LN(x).

    Args:
        dim: width.
        heads: of the attention; each gets an even share of the width.
        ff: inner width of the MLP; None: one and a half times the width.
        dropout: on attention weights and on both branches.
        norm_after_attention: the first LN; the released variant with fused attention has none.

    Raises:
        ValueError: heads do not divide the width into even parts.
    """

    def __init__(
        self, dim: int, heads: int, ff: int | None = None, dropout: float = 0.1, *, norm_after_attention: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or dim % (2 * heads):
            raise ValueError(
                f"heads is {heads} and dim {dim}; expected heads that share the width out evenly, in pairs"
            )
        ff = 3 * dim // 2 if ff is None else ff
        self.heads, self.attention_dropout = heads, dropout
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim) if norm_after_attention else nn.Identity()
        self.norm = nn.LayerNorm(dim)
        self.gated = nn.Linear(dim, 2 * ff, bias=False)
        self.down = nn.Linear(ff, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode sequences.

        Args:
            x: (M, L, h).
            mask: where there is something, bool (M, L).

        Returns:
            (M, L, h), zero where there is nothing; what lies there has no influence.
        """
        # A row without anything would divide by zero: it attends to all, and its output is zeroed.
        seen = (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]
        # Everything but attention treats places one by one, and so is computed where there is something only.
        here = mask.flatten().nonzero().squeeze(1)
        packed = x.flatten(0, 1)[here]
        both, value = self.query_key_value(packed).unflatten(1, (3 * self.heads, -1)).split(2 * self.heads, dim=1)
        turned = torch.cat([rotate(both, here % mask.shape[1]), value], dim=1).flatten(1)
        q, k, v = self._spread(turned, here, mask).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, seen, dropout)
        attended = attended.transpose(1, 2).flatten(2).flatten(0, 1)[here]
        packed = self.attention_norm(packed + self.dropout(self.out(attended)))
        inner, gate = self.gated(self.norm(packed)).chunk(2, dim=1)
        packed = packed + self.dropout(self.down(F.gelu(inner) * gate))
        return self._spread(packed, here, mask)

    @staticmethod
    def _spread(packed: Tensor, here: Tensor, mask: Tensor) -> Tensor:
        """Packed rows (T, c) at their places in (M, L, c), zero elsewhere."""
        places = packed.new_zeros(mask.numel(), packed.shape[1]).index_copy(0, here, packed)
        whole: Tensor = places.unflatten(0, mask.shape)
        return whole


class HierarchicalLayer(nn.Module):
    """A layer over sequences of sequences: within each one, then across their first elements, which are written back.

    Works on anything of this shape: tokens of bursts of a flow, words of sentences of a document, fields of lines of a
    log. Attention costs B S² + B² pairs instead of (B S)² (`attention_pairs`).

    Args:
        inner: within sequences; called with x (M, L, h) and a mask (M, L), returns (M, L, h).
        outer: across the first elements of the sequences; called alike.
    """

    def __init__(self, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer

    @classmethod
    def of_transformers(
        cls, dim: int, heads: int, ff: int | None = None, dropout: float = 0.1, *, norm_after_attention: bool = True
    ) -> HierarchicalLayer:
        """netFound's own: a Transformer layer each.

        Args:
            dim, heads, ff, dropout, norm_after_attention: see `TransformerLayer`.
        """
        inner, outer = (
            TransformerLayer(dim, heads, ff, dropout, norm_after_attention=norm_after_attention) for _ in range(2)
        )
        return cls(inner, outer)

    def forward(self, x: Tensor, token_mask: Tensor, sequence_mask: Tensor) -> Tensor:
        """Encode.

        Args:
            x: (N, B, S, h).
            token_mask: where there is an element, bool (N, B, S).
            sequence_mask: where there is a sequence, bool (N, B).

        Returns:
            (N, B, S, h).
        """
        if x.shape[:3] != token_mask.shape or x.shape[:2] != sequence_mask.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, token_mask {tuple(token_mask.shape)} and sequence_mask "
                f"{tuple(sequence_mask.shape)}; expected (N, B, S, h), (N, B, S) and (N, B)"
            )
        x = self.inner(x.flatten(0, 1), token_mask.flatten(0, 1)).unflatten(0, x.shape[:2])
        first = self.outer(x[:, :, 0], sequence_mask)
        return torch.cat([first[:, :, None], x[:, :, 1:]], dim=2)


class FlatLayer(nn.Module):
    """The layer that the hierarchy is compared with: one sequence of all tokens of the flow.

    Args:
        inner: called with x (M, L, h) and a mask (M, L), returns (M, L, h).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, token_mask: Tensor, sequence_mask: Tensor) -> Tensor:
        """Encode (N, B, S, h) as N sequences of B S tokens."""
        encoded: Tensor = self.inner(x.flatten(1, 2), token_mask.flatten(1, 2)).unflatten(1, x.shape[1:3])
        return encoded


class FlowEmbedding(nn.Module):
    """Sum up what is known of a token: its word, its burst's metadata, its flow's protocol.

    LN(W [word; MLP(metadata); protocol]) with dropout; the MLP is 4 -> hidden -> dim with GELU.

    Args:
        dim: width of each of the three parts and of the result.
        table_size: rows of the table of words (`FlowTokenizer.table_size`).
        hidden: inner width of the MLP of the metadata.
        dropout: on the result.
    """

    def __init__(self, dim: int, table_size: int = 65600, hidden: int = 1024, dropout: float = 0.1) -> None:
        super().__init__()
        self.words = nn.Embedding(table_size, dim, padding_idx=0)
        self.metadata = nn.Sequential(nn.Linear(METADATA, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.protocols = nn.Embedding(PROTOCOLS, dim)
        self.compress = nn.Linear(3 * dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: FlowBatch) -> Tensor:
        """Embeddings of all tokens of a batch, (N, B, S, dim)."""
        # The linear map of the three parts is the sum of three maps; so each is computed once a token, burst and flow.
        of_word, of_metadata, of_protocol = self.compress.weight.chunk(3, dim=1)
        metadata = F.linear(self.metadata(batch.metadata.to(self.compress.weight.dtype)), of_metadata)
        protocol = F.linear(self.protocols(batch.protocol), of_protocol, self.compress.bias)
        word = F.linear(self.words(batch.tokens), of_word)
        embedded: Tensor = self.dropout(self.norm(word + metadata[:, :, None] + protocol[:, None, None]))
        return embedded


class NetFoundEncoder(nn.Module):
    """netFound's encoder: embeddings and a stack of hierarchical layers.

    The released layers also add a learned position to the burst summaries, which is overwritten before anything reads
    it; it is left out here. Rotary positions carry the order of tokens and of bursts.

    Args:
        dim: width; the default is the base model.
        layers: how many.
        heads: of each attention.
        ff: inner width of the gated MLPs; None: one and a half times the width.
        dropout: everywhere.
        table_size: rows of the table of words (`FlowTokenizer.table_size`).
        metadata_hidden: inner width of the MLP of the metadata.
        layer: "hierarchical", or "flat" for plain Transformer layers over all tokens of the flow, to compare with.
        norm_after_attention: see `TransformerLayer`.
        init_std: standard deviation of the first weights; 0.02 is for widths near 768.

    Raises:
        ValueError: a number out of range, or an unknown layer.
    """

    def __init__(
        self,
        dim: int = 768,
        layers: int = 12,
        heads: int = 12,
        ff: int | None = None,
        dropout: float = 0.1,
        *,
        table_size: int = 65600,
        metadata_hidden: int = 1024,
        layer: Literal["hierarchical", "flat"] = "hierarchical",
        norm_after_attention: bool = True,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}; expected at least 1")
        if layer not in ("hierarchical", "flat"):
            raise ValueError(f"layer is {layer!r}; expected 'hierarchical' or 'flat'")
        self.dim, self.table_size = dim, table_size
        self.embedding = FlowEmbedding(dim, table_size, metadata_hidden, dropout)
        stack: list[nn.Module] = []
        for _ in range(layers):
            if layer == "hierarchical":
                stack.append(
                    HierarchicalLayer.of_transformers(
                        dim, heads, ff, dropout, norm_after_attention=norm_after_attention
                    )
                )
            else:
                stack.append(
                    FlatLayer(TransformerLayer(dim, heads, ff, dropout, norm_after_attention=norm_after_attention))
                )
        self.layers = nn.ModuleList(stack)
        initialize(self, init_std)

    @classmethod
    def of_size(cls, size: Size, *, dropout: float = 0.1, table_size: int = 65600) -> NetFoundEncoder:
        """A released size.

        Args:
            size: "small", "base" or "large".
            dropout: everywhere.
            table_size: rows of the table of words.

        Raises:
            ValueError: there is no such size.
        """
        if size not in get_args(Size):
            raise ValueError(f"size is {size!r}; expected one of {', '.join(get_args(Size))}")
        return cls(*SIZES[size], dropout, table_size=table_size)

    def forward(self, batch: FlowBatch) -> Tensor:
        """Encode flows.

        Args:
            batch: N flows of B bursts of S tokens.

        Returns:
            (N, B, S, dim); [:, :, 0] are the summaries of the bursts.
        """
        x: Tensor = self.embedding(batch)
        for layer in self.layers:
            x = layer(x, batch.token_mask, batch.burst_mask)
        return x


class AttentivePooling(nn.Module):
    """A weighted mean of burst summaries: weights softmax(tanh(vᵀ(W c + b))), so that none can take everything.

    Args:
        dim: of the summaries.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, summaries: Tensor, mask: Tensor) -> Tensor:
        """Pool (N, B, h) with a mask (N, B) to (N, h); a flow without bursts gives 0."""
        scores = torch.tanh(self.score(self.project(summaries)).squeeze(-1))
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1) * mask
        return torch.einsum("nb,nbh->nh", weights, summaries)


class FlowClassifier(nn.Module):
    """An encoder with a head for classes: Linear, GELU, dropout, Linear, Linear on the pooled burst summaries.

    Args:
        encoder: NetFoundEncoder, or any module with an attribute `dim` that maps a batch to (N, B, S, dim).
        num_classes: outputs.
        freeze: train the head only; the encoder's parameters are switched off and its dropout stays silent.
        dropout: of the head.
        init_std: standard deviation of the head's first weights.

    Raises:
        ValueError: fewer than one class.
    """

    def __init__(
        self,
        encoder: NetFoundEncoder,
        num_classes: int,
        freeze: bool = False,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        dim = encoder.dim
        self.encoder, self.freeze = encoder, freeze
        self.pooling = AttentivePooling(dim)
        self.head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim), nn.Linear(dim, num_classes)
        )
        initialize(self.pooling, init_std)
        initialize(self.head, init_std)
        if freeze:
            self.encoder.requires_grad_(False)
            self.encoder.eval()

    def train(self, mode: bool = True) -> FlowClassifier:
        """As usual, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def features(self, batch: FlowBatch) -> Tensor:
        """Pooled burst summaries (N, dim), which the head reads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            summaries = self.encoder(batch)[:, :, 0]
        pooled: Tensor = self.pooling(summaries, batch.burst_mask)
        return pooled

    def forward(self, batch: FlowBatch) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.head(self.features(batch))
        return logits


def initialize(module: nn.Module, std: float = INIT_STD) -> None:
    """Weights from N(0, std²), no biases, padding at zero.

    Args:
        module: of which all linear layers and embeddings are set.
        std: standard deviation.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])


def attention_pairs(bursts: int, length: int) -> tuple[int, int]:
    """Pairs that a layer's attention compares in one flow.

    Args:
        bursts: B.
        length: S, tokens of a burst.

    Returns:
        B S² + B² of the hierarchy, (B S)² of attention over all tokens.
    """
    return bursts * length**2 + bursts**2, (bursts * length) ** 2


def stable_then_decay(step: int, steps: int, warm_up: int = 500, decay: int = 500) -> float:
    """Factor of the learning rate: a line up, a plateau, half a cosine down (released recipe).

    Args:
        step: from 0.
        steps: in all.
        warm_up: steps until the plateau.
        decay: steps from the plateau to zero.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: the training is shorter than warm-up and decay, or a number is negative.
    """
    if warm_up < 0 or decay < 0 or warm_up + decay > steps:
        raise ValueError(f"warm_up is {warm_up} and decay {decay}; expected together 0 to the {steps} steps")
    if step < warm_up:
        return step / warm_up
    left = steps - step
    if left >= decay:
        return 1.0
    return 0.5 * (1 - math.cos(math.pi * max(0, left) / decay))
