"""The detectors that the study compares: the same small backbones and head, and different ways to join them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from working_papers.nn.resnet import resnet18
from working_papers.papers.eolo.method import (
    AllDayBackbone,
    CentreHead,
    CentreOutput,
    CSPDarknetTiny,
    EventTemporalAttention,
    SpikingEncoder,
    spiking_resnet18,
)
from working_papers.papers.eolo.method.fusion import ContextPooling, conv_bn_relu, expect_same_shape

HALVINGS = 9  # of the interval in which a width is sought


def first_layer(channels: int, width: int) -> nn.Sequential:
    """Convolution that halves the sides, and normalisation."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))


def new_stages(stem: int, widths: Sequence[int]) -> list[nn.Module]:
    """Stages that begin with the stem's activation; each halves the sides."""
    stages: list[nn.Module] = []
    channels = stem
    for width in widths:
        layers: list[nn.Module] = [] if stages else [nn.ReLU()]
        for number in range(2):
            conv = nn.Conv2d(channels if number == 0 else width, width, 3, 1 + (number == 0), 1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        stages.append(nn.Sequential(*layers))
        channels = width
    return stages


class PlainBackbone(nn.Module):
    """A conventional backbone.

    Args:
        channels: of the input.
        stem: channels of the first layer.
        widths: channels of the scales.
        time_axis: give each map an axis of one time step, as an encoder of events does.
    """

    def __init__(self, channels: int, stem: int, widths: Sequence[int], time_axis: bool = False) -> None:
        super().__init__()
        self.stem = first_layer(channels, stem)
        self.stages = nn.ModuleList(new_stages(stem, widths))
        self.time_axis = time_axis

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, channels, H, W) to maps at strides 4, 8, ..."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x[None] if self.time_axis else x)
        return maps


def spiking_backbone(stem: int, widths: Sequence[int], time_steps: int = 4) -> SpikingEncoder:
    """The same layers with neurons, for events."""
    first = first_layer(2, stem)  # made first, as in `PlainBackbone`, so that weights are the same
    return SpikingEncoder(new_stages(stem, widths), time_steps, first)


class MeanOverTime(EventTemporalAttention):
    """Temporal attention that sees the mean twice in place of maximum and mean: the same parameters."""

    def forward(self, events: Tensor) -> Tensor:
        """(T, N, C, H, W) to (N, C, H, W)."""
        mean = events.mean(dim=0)
        merged: Tensor = self.merge(torch.cat([self.maximum(mean), self.mean(mean)], dim=1))
        return merged


class Concatenation(nn.Module):
    """Image and events side by side through two convolutions.

    Args:
        channels: C.
        hidden: channels between the convolutions, in C.
    """

    def __init__(self, channels: int, hidden: float) -> None:
        super().__init__()
        width = max(1, round(hidden * channels))
        self.merge = nn.Sequential(conv_bn_relu(2 * channels, width), conv_bn_relu(width, channels))

    def forward(self, rgb: Tensor, event: Tensor) -> Tensor:
        """(N, C, H, W) each, to the same."""
        expect_same_shape(rgb, event)
        merged: Tensor = self.merge(torch.cat([rgb, event], dim=1))
        return merged


class AsymmetricFusion(nn.Module):
    """Events gate the image and are not seen otherwise, as in detectors that take them for an aid.

    Args:
        channels: C.
        reduction: of the context pooling.
        hidden: channels between the convolutions, in C.
    """

    def __init__(self, channels: int, reduction: int, hidden: float) -> None:
        super().__init__()
        width = max(1, round(hidden * channels))
        self.event_context = ContextPooling(channels, reduction)
        self.rgb_conv = nn.Sequential(conv_bn_relu(channels, width), conv_bn_relu(width, channels))

    def forward(self, rgb: Tensor, event: Tensor) -> Tensor:
        """(N, C, H, W) each, to the same."""
        expect_same_shape(rgb, event)
        gate = torch.sigmoid(event * self.event_context(event))
        fused: Tensor = self.rgb_conv(rgb + rgb * gate)
        return fused


class EventsAlone(nn.Module):
    """An encoder of events and what joins its time steps.

    Args:
        encoder: gives maps (T, N, C, h, w).
        widths: C at each scale.
    """

    def __init__(self, encoder: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.event_backbone = encoder
        self.temporal = nn.ModuleList(EventTemporalAttention(width) for width in widths)

    def forward(self, events: Tensor) -> list[Tensor]:
        """(N, 2, H, W) to maps (N, C, h, w)."""
        return [join(x) for join, x in zip(self.temporal, self.event_backbone(events), strict=True)]


class Detector(nn.Module):
    """A backbone and the head.

    Args:
        backbone: of image and events, or of one of them.
        head: of its maps.
        sees: "both", "image" or "events".
    """

    def __init__(self, backbone: nn.Module, head: CentreHead, sees: str = "both") -> None:
        super().__init__()
        self.backbone, self.head, self.sees = backbone, head, sees

    def forward(self, image: Tensor, events: Tensor) -> CentreOutput:
        """Image (N, 3, H, W) and events (N, 2, H, W) to the head's output."""
        if self.sees == "both":
            maps = self.backbone(image, events)
        else:
            maps = self.backbone(image if self.sees == "image" else events)
        output: CentreOutput = self.head(maps)
        return output

    @property
    def event_backbone(self) -> nn.Module | None:
        """What events pass first, if they are seen."""
        found = getattr(self.backbone, "event_backbone", None)
        return found if isinstance(found, nn.Module) else None


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Size:
    """How large the detectors are.

    Attributes:
        stem: channels of the small backbones' first layer; 0: the paper's backbones.
        widths: channels of the scales.
        stride: pixels of a cell of the finest scale.
        head: channels inside the head.
        reduction: of the context pooling.
    """

    stem: int
    widths: tuple[int, ...]
    stride: int
    head: int
    reduction: int

    def image_backbone(self, share: float = 1.0) -> tuple[nn.Module, list[int]]:
        """A backbone of images, `share` times as wide, and the channels of its scales."""
        if not self.stem:
            width = max(1, round(16 * share))
            return CSPDarknetTiny(width=width), [8 * width, 16 * width, 32 * width]
        wide = [max(2, round(share * width)) for width in self.widths]
        return PlainBackbone(3, max(2, round(share * self.stem)), wide), wide

    def event_backbone(self, share: float = 1.0, spiking: bool = True) -> tuple[nn.Module, list[int]]:
        """A backbone of events, spiking or conventional, and the channels of its scales."""
        if not self.stem:
            width = max(1, round(64 * share))
            network = spiking_resnet18(2, width) if spiking else ConventionalResNet(width)
            return network, [2 * width, 4 * width, 8 * width]
        wide, stem = [max(2, round(share * width)) for width in self.widths], max(2, round(share * self.stem))
        return spiking_backbone(stem, wide) if spiking else PlainBackbone(2, stem, wide, time_axis=True), wide


class ConventionalResNet(nn.Module):
    """A ResNet-18 of events as it is, with an axis of one time step.

    Args:
        width: channels of the first stage.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.network = resnet18(0, in_channels=2, width=width)

    def forward(self, events: Tensor) -> list[Tensor]:
        """(N, 2, H, W) to maps (1, N, C, h, w) at strides 8, 16 and 32."""
        return [x[None] for x in self.network.feature_maps(events)[1:]]


def new_detector(arm: str, size: Size, classes: int) -> Detector:
    """A detector of an arm.

    With small backbones each arm has about as many parameters as the method: detectors of one input have wider
    backbones, other fusions have wider convolutions. The paper's backbones keep their widths, for which there are
    weights to begin with.

    Args:
        arm: of the study.
        size: of the detector.
        classes: of the objects.

    Returns:
        The detector, on the CPU.
    """
    kinds: dict[str, Callable[[float], Callable[[int], nn.Module]]] = {
        "concat": lambda share: partial(Concatenation, hidden=share),
        "asymmetric": lambda share: partial(AsymmetricFusion, reduction=size.reduction, hidden=share),
    }

    def build(share: float, arm: str = arm) -> Detector:
        if arm == "rgb":
            backbone, widths = size.image_backbone(share)
            return Detector(backbone, CentreHead(widths, classes, size.stride, size.head), "image")
        if arm == "events":
            backbone, widths = size.event_backbone(share)
            return Detector(
                EventsAlone(backbone, widths), CentreHead(widths, classes, size.stride, size.head), "events"
            )
        rgb, widths = size.image_backbone()
        event, _ = size.event_backbone(spiking=arm != "ann")
        fusion = kinds[arm](share) if arm in kinds else None
        temporal = MeanOverTime if arm == "mean" else EventTemporalAttention
        joined = AllDayBackbone(rgb, event, widths, size.reduction, temporal, fusion)
        return Detector(joined, CentreHead(widths, classes, size.stride, size.head))

    share = 1.0
    if arm in kinds or (arm in ("rgb", "events") and size.stem):
        # Parameters grow with the width: halve the interval in which it must lie.
        with torch.device("meta"):
            wanted, low, high = parameters(build(1.0, "symmetric")), 0.25, 4.0
            for _ in range(HALVINGS):
                share = (low + high) / 2
                low, high = (share, high) if parameters(build(share)) < wanted else (low, share)
    return build(share)
