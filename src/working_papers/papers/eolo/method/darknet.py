"""CSPDarknet-tiny, the image backbone. Parameter names follow the official code's, so that its weights load."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and, if wanted, LeakyReLU with slope 0.1.

    Args:
        channels: of the input.
        width: channels of the output.
        kernel: odd side of the kernel.
        stride: of the convolution.
        active: whether the LeakyReLU follows.
    """

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1, active: bool = True) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)]
        self.convs = nn.Sequential(*layers, *([nn.LeakyReLU(0.1)] if active else []))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H/stride, W/stride)."""
        y: Tensor = self.convs(x)
        return y


class ResidualBlock(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, and the addition.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels)
        self.conv2 = ConvNorm(channels, channels, 3, active=False)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), same shape."""
        y: Tensor = self.act(x + self.conv2(self.conv1(x)))
        return y


class CrossStage(nn.Module):
    """A cross-stage partial block: half of the channels passes residual blocks, half goes by.

    Args:
        channels: of input and output, even.
        blocks: residual blocks.
    """

    def __init__(self, channels: int, blocks: int = 1) -> None:
        super().__init__()
        half = channels // 2
        self.cv1 = ConvNorm(channels, half)
        self.cv2 = ConvNorm(channels, half)
        self.res_blocks = nn.Sequential(*(ResidualBlock(half) for _ in range(blocks)))
        self.cv3 = ConvNorm(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W), same shape."""
        y: Tensor = self.cv3(torch.cat([self.cv1(x), self.res_blocks(self.cv2(x))], dim=1))
        return y


class CSPDarknetTiny(nn.Module):
    """The paper's image backbone: five stages, each of which halves the sides and passes one cross-stage block.

    Args:
        in_channels: of the image.
        width: channels of the first convolution; the stages have 2, 4, 8, 16 and 32 times as many.

    Raises:
        ValueError: fewer than one channel.

    Source: the official code.
    """

    def __init__(self, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if min(in_channels, width) < 1:
            raise ValueError(f"in_channels and width are {in_channels} and {width}; expected at least 1")
        first = ConvNorm(in_channels, width, 3)
        self.layer_1 = nn.Sequential(first, ConvNorm(width, 2 * width, 3, 2), CrossStage(2 * width))
        for number in range(2, 6):
            wide = width * 2**number
            setattr(self, f"layer_{number}", nn.Sequential(ConvNorm(wide // 2, wide, 3, 2), CrossStage(wide)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Image (N, 3, H, W) to three feature maps at strides 8, 16 and 32, by default of 128, 256 and 512 channels."""
        maps: list[Tensor] = []
        for number in range(1, 6):
            x = getattr(self, f"layer_{number}")(x)
            maps.append(x)
        return maps[2:]
