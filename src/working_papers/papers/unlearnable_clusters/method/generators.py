"""What makes a noise pattern: a convolutional generator of a fixed random image, or the pattern itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class NoiseGenerator(nn.Module):
    """Residual generator of a pattern from a random image of the same size.

    A 7 x 7 convolution, two convolutions with stride, residual blocks, two transposed convolutions and a 7 x 7
    convolution. Its output is not bounded: `UnlearnableClusters` does that. Use it in training mode, also for the
    finished pattern: its normalisations see one image.

    Args:
        channels: of the images.
        width: channels of the first convolution; twice and four times as many follow. 64 in the official code.
        blocks: residual blocks; 6 in the official code.
        last_gain: factor of the last layer's initial weights. The official code starts at 1 and clips, so that most
            pixels lie beyond the bound, where they have no gradient; a small factor starts inside it.

    Raises:
        ValueError: a number below 1, or a factor that is not positive.

    Source: `ResnetGenerator` of the official code; images smaller than 16 pixels need a smaller generator.
    """

    def __init__(self, channels: int, width: int = 64, blocks: int = 6, last_gain: float = 0.05) -> None:
        super().__init__()
        if min(channels, width, blocks) < 1:
            raise ValueError(f"channels, width and blocks are {channels}, {width} and {blocks}; expected at least 1")
        if not last_gain > 0:
            raise ValueError(f"last_gain is {last_gain}; expected a positive number")
        last = nn.Conv2d(width, channels, 7)
        self.body = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, width, 7, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            *(_Residual(4 * width) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ReflectionPad2d(3),
            last,
        )
        with torch.no_grad():
            last.weight.mul_(last_gain)
            assert last.bias is not None
            last.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        """(1, C, H, W) of uniform noise to (1, C, H, W), unbounded; sides that are no multiple of 4 are cut."""
        out: Tensor = self.body(z)
        return out[..., : z.shape[-2], : z.shape[-1]]


class DirectNoise(nn.Module):
    """The pattern itself as parameters: much cheaper than a generator where images are small.

    Args:
        shape: (C, H, W).
        spread: standard deviation that it starts with, before the bound.

    Raises:
        ValueError: a shape that is none of an image.
    """

    def __init__(self, shape: tuple[int, int, int], spread: float = 0.1) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape is {tuple(shape)}; expected (C, H, W)")
        self.values = nn.Parameter(spread * torch.randn(1, *shape))

    def forward(self, z: Tensor) -> Tensor:
        """The pattern (1, C, H, W), unbounded, whatever the random image."""
        return self.values.to(z.dtype)
