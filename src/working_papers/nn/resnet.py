"""Residual networks (https://arxiv.org/abs/1512.03385) with the stems for large and for small images.

Written here because the usual packages pin another torch. Parameter names follow torchvision's, so that its weights
load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

Stem = Literal["cifar", "imagenet"]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and the addition.

    Args:
        channels: of the input.
        width: channels of the block, and of its output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H/stride, W/stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the addition."""
        return self.bn2


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride, as in torchvision) and 1 x 1 convolutions and the addition.

    Args:
        channels: of the input.
        width: channels of the 3 x 3 convolution; the output has four times as many.
        stride: of the 3 x 3 convolution.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, 4·width, H/stride, W/stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the addition."""
        return self.bn3


class ResNet(nn.Module):
    """A residual network of four stages.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage.
        classes: outputs; 0 gives the pooled features.
        stem: "imagenet" for a 7 x 7 convolution of stride 2 and max-pooling, "cifar" for a 3 x 3 convolution alone.
        in_channels: of the images.
        width: channels of the first stage; each later stage has twice as many.
        zero_init_residual: begin with residual branches that are zero (https://arxiv.org/abs/1706.02677, section 5.1).

    Attributes:
        features: number of pooled features.

    Raises:
        ValueError: an unknown stem, or a number of classes, channels or blocks that makes no network.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        classes: int = 1000,
        stem: Stem = "imagenet",
        in_channels: int = 3,
        width: int = 64,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem is {stem!r}; expected 'cifar' or 'imagenet'")
        if classes < 0:
            raise ValueError(f"classes is {classes}; expected 0 (features) or more")
        if min(in_channels, width) < 1:
            raise ValueError(f"in_channels and width are {in_channels} and {width}; expected at least 1")
        if len(depths) != 4 or min(depths) < 1:
            raise ValueError(f"depths is {tuple(depths)}; expected four numbers of at least 1")
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                wide = width * 2**stage
                blocks.append(block(channels, wide, 2 if stage and not number else 1))
                channels = wide * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.features = channels
        self.fc = nn.Linear(channels, classes) if classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four stages.

        Args:
            x: (N, in_channels, H, W).

        Returns:
            Four maps (N, C, h, w), of growing C and shrinking h and w.
        """
        h = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (1, 2, 3, 4):
            h = getattr(self, f"layer{stage}")(h)
            maps.append(h)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, classes), or to features (N, features) where classes is 0."""
        logits: Tensor = self.fc(self.feature_maps(x)[-1].mean((2, 3)))
        return logits


def resnet18(
    classes: int = 1000,
    stem: Stem = "imagenet",
    in_channels: int = 3,
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-18.

    Args:
        classes: outputs; 0 gives the 8·width pooled features.
        stem: "imagenet" or "cifar", see `ResNet`.
        in_channels: of the images.
        width: channels of the first stage.
        zero_init_residual: begin with residual branches that are zero.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, stem, in_channels, width, zero_init_residual)


def resnet50(
    classes: int = 1000,
    stem: Stem = "imagenet",
    in_channels: int = 3,
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """ResNet-50.

    Args:
        classes: outputs; 0 gives the 32·width pooled features.
        stem: "imagenet" or "cifar", see `ResNet`.
        in_channels: of the images.
        width: channels of the first stage.
        zero_init_residual: begin with residual branches that are zero.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, stem, in_channels, width, zero_init_residual)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
