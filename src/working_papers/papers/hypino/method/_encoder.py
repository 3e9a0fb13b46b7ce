"""From the images of an equation to token maps: stem, stages of attention or convolution, modulation.

Letters: N = problems, G = pixels a side, C = channels, R = a stage's side, T = R² tokens, Z = numbers of the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.hypino.method._jets import OCTAVES, fourier_features


class FiLM(nn.Module):
    """x → γ(z) x + β(z) for every channel; at the start γ = 1 and β = 0.

    Args:
        condition: Z.
        channels: C.
    """

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.cat([torch.ones(channels), torch.zeros(channels)]))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Modulate x (N, ..., C) by the condition (N, Z)."""
        gamma, beta = self.affine(condition).chunk(2, dim=-1)
        shape = (len(x), *[1] * (x.dim() - 2), -1)
        modulated: Tensor = gamma.view(shape) * x + beta.view(shape)
        return modulated


def positions(side: int, channels: int, *, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of row and column, (C, R, R); C must be divisible by 4.

    Args:
        side: R.
        channels: C.
        device: of the result.
    """
    half = channels // 2
    rates = 10000 ** (-torch.arange(0, half, 2, device=device) / half)
    line = torch.arange(side, device=device)[:, None] * rates  # (R, C / 4)
    code = torch.cat([line.sin(), line.cos()], -1)
    rows, columns = code[:, None].expand(-1, side, -1), code[None].expand(side, -1, -1)
    return torch.cat([rows, columns], -1).movedim(-1, 0)


class Stem(nn.Module):
    """The four branches that turn (N, 5, G, G) into (N, C, G/4, G/4) (section 3.2).

    Masks give an additive and a gating map, values of the boundary are gated, the source has its own channels:
    [b1 + b2 * values, source], with positions, through a 1x1 convolution and group normalisation.

    Args:
        width: channels of a branch; 64 in the paper.
        channels: C; 128 in the paper.
        octaves: of the Fourier features of values and source.
    """

    def __init__(self, width: int = 64, channels: int = 128, octaves: int = OCTAVES) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width is {width}; expected an even number")
        self.octaves = octaves

        def branch(inputs: int, last: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, width, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                last,
            )

        per_number = 2 * octaves + 1
        self.shift, self.gate = branch(2, nn.GELU()), branch(2, nn.Tanh())
        self.values, self.source = branch(2 * per_number, nn.GELU()), branch(per_number, nn.GELU())
        self.mix = nn.Sequential(nn.Conv2d(2 * width, channels, 1), nn.GroupNorm(1, channels))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 5, G, G), whose source is already in logarithms, to (N, C, G/4, G/4)."""
        masks = images[:, :2]

        def features(x: Tensor) -> Tensor:
            return fourier_features(x.movedim(1, -1), self.octaves).movedim(-1, 1)

        edge = self.shift(masks) + self.gate(masks) * self.values(features(images[:, 2:4]))
        x = torch.cat([edge, self.source(features(images[:, 4:]))], dim=1)
        mixed: Tensor = self.mix(x + positions(x.shape[-1], x.shape[1], device=x.device).to(x.dtype))
        return mixed


class WindowAttentionBlock(nn.Module):
    """Swin block: attention within windows, shifted in every other block, and a two-layer perceptron.

    Args:
        channels: C.
        heads: of the attention.
        side: R, tokens a side.
        window: tokens a side of a window.
        shifted: whether windows are shifted by half.
        ratio: hidden units of the perceptron per channel.
    """

    mask: Tensor | None
    index: Tensor

    def __init__(self, channels: int, heads: int, side: int, window: int, shifted: bool, ratio: float = 2.0) -> None:
        super().__init__()
        window = min(window, side)
        if side % window:
            raise ValueError(f"window is {window}; expected a divisor of the stage's side, {side}")
        if channels % heads:
            raise ValueError(f"heads is {heads}; expected a divisor of {channels} channels")
        self.heads, self.window = heads, window
        self.shift = window // 2 if shifted and window < side else 0
        self.before, self.after = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        hidden = int(ratio * channels)
        self.perceptron = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        nn.init.trunc_normal_(self.bias, std=0.02)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1], persistent=False)
        mask = None
        if self.shift:  # after the cyclic shift, tokens from opposite edges share windows and must not meet
            line = torch.bucketize(torch.arange(side), torch.tensor([side - window, side - self.shift]), right=True)
            region = self._windows((line[:, None] * 3 + line)[None, ..., None]).squeeze(-1)
            mask = (region[:, None] == region[:, :, None])[:, None]
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, R, R, C) to the same shape."""
        n, side, _, channels = x.shape
        y = self.before(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        tokens = self._windows(y)  # (N windows, w², C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias[:, self.index][None]
        if self.mask is not None:
            bias = bias.masked_fill(~self.mask, float("-inf")).repeat(n, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = self.project(y.transpose(1, 2).flatten(-2))
        per_side = side // self.window
        y = y.view(n, per_side, per_side, self.window, self.window, channels).transpose(2, 3)
        y = y.reshape(n, side, side, channels)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y
        updated: Tensor = x + self.perceptron(self.after(x))
        return updated

    def _windows(self, x: Tensor) -> Tensor:
        n, side, _, channels = x.shape
        per_side = side // self.window
        x = x.view(n, per_side, self.window, per_side, self.window, channels).transpose(2, 3)
        return x.reshape(n * per_side**2, self.window**2, channels)


class ConvolutionBlock(nn.Module):
    """A residual block of two 3x3 convolutions, (N, R, R, C) to the same: the cheap alternative on small grids."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x plus the block's change."""
        changed: Tensor = x + self.body(x.movedim(-1, 1)).movedim(1, -1)
        return changed


class ImageEncoder(nn.Module):
    """Stem and stages; every stage halves the side and is followed by `FiLM` (section 3.2).

    Args:
        grid: G, divisible by 4 times 2 to the number of stages less one.
        channels: of each stage; the paper's by default.
        depths: blocks of each stage.
        heads: of attention in each stage.
        window: side of a window in tokens.
        stem: channels of a branch of the stem.
        condition: Z.
        block: "attention" (the paper's) or "convolution".

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        grid: int = 224,
        channels: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 10, 2),
        heads: Sequence[int] = (4, 8, 8, 16),
        *,
        window: int = 7,
        stem: int = 64,
        condition: int = 128,
        block: Literal["attention", "convolution"] = "attention",
    ) -> None:
        super().__init__()
        if block not in ("attention", "convolution"):
            raise ValueError(f"block is {block!r}; expected 'attention' or 'convolution'")
        if not len(channels) == len(depths) == len(heads) > 0:
            raise ValueError(
                f"channels, depths and heads have {len(channels)}, {len(depths)}, {len(heads)} stages; expected as many"
            )
        smallest = 4 * 2 ** (len(channels) - 1)
        if grid < smallest or grid % smallest:
            raise ValueError(f"grid is {grid}; expected a multiple of {smallest} for {len(channels)} stages")
        self.channels = tuple(channels)
        self.stem = Stem(stem, channels[0])
        self.stages, self.merges, self.films = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (width, depth, head) in enumerate(zip(channels, depths, heads, strict=True)):
            side = grid // 4 // 2**i
            blocks = [
                WindowAttentionBlock(width, head, side, window, shifted=j % 2 == 1)
                if block == "attention"
                else ConvolutionBlock(width)
                for j in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            self.films.append(FiLM(condition, width))
            if i:
                before = 4 * channels[i - 1]
                self.merges.append(nn.Sequential(nn.LayerNorm(before), nn.Linear(before, width, bias=False)))

    def forward(self, images: Tensor, condition: Tensor) -> list[Tensor]:
        """Images (N, 5, G, G) and condition (N, Z) to one map of tokens (N, T, C) a stage."""
        x = self.stem(images).movedim(1, -1)
        maps = []
        for i, (stage, film) in enumerate(zip(self.stages, self.films, strict=True)):
            if i:  # four neighbours become one token
                n, side, _, channels = x.shape
                x = x.view(n, side // 2, 2, side // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).flatten(3)
                x = self.merges[i - 1](x)
            x = film(stage(x), condition)
            maps.append(x.flatten(1, 2))
        return maps
