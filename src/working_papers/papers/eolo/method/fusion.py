"""Attention over time steps, the symmetric fusion of image and events, and the backbone that joins both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def conv_bn_relu(channels: int, width: int, kernel: int = 3) -> nn.Sequential:
    """Convolution with bias, batch normalisation and ReLU, which keep height and width.

    Args:
        channels: of the input.
        width: channels of the output.
        kernel: odd side of the kernel.
    """
    return nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU())


class EventTemporalAttention(nn.Module):
    """ETA: one feature map out of T, from their maximum and their mean over time.

    Args:
        channels: C.

    Source: the paper's event temporal attention. The order of the time steps does not matter.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maximum = nn.Conv2d(channels, channels, 1)
        self.mean = nn.Conv2d(channels, channels, 1)
        self.merge = conv_bn_relu(2 * channels, channels, 1)

    def forward(self, events: Tensor) -> Tensor:
        """Features (T, N, C, H, W) to (N, C, H, W); another number of axes raises ValueError."""
        _expect_time(events)
        both = torch.cat([self.maximum(events.amax(dim=0)), self.mean(events.mean(dim=0))], dim=1)
        merged: Tensor = self.merge(both)
        return merged


class ContextPooling(nn.Module):
    """Weights of channels from a mean over places that the features themselves weigh.

    Args:
        channels: C.
        reduction: the bottleneck has C / reduction channels.

    Raises:
        ValueError: a bottleneck of less than two channels, in which layer normalisation would give a constant.

    Source: the official fusion module; the last convolution begins at zero, so that all weights begin at 0.5.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1 or channels // reduction < 2:
            raise ValueError(
                f"channels and reduction are {channels} and {reduction}; expected at least two channels in the "
                "bottleneck, channels >= 2 reduction"
            )
        narrow = channels // reduction
        self.attention = nn.Conv2d(channels, 1, 1, bias=False)
        self.down = nn.Conv2d(channels, narrow, 1, bias=False)
        self.norm = nn.LayerNorm([narrow, 1, 1])
        self.up = nn.Conv2d(narrow, channels, 1, bias=False)
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to weights (N, C, 1, 1) between 0 and 1."""
        share = self.attention(x).flatten(2).softmax(dim=2)  # (N, 1, H W)
        context = (x.flatten(2) * share).sum(dim=2)[..., None, None]
        weights: Tensor = torch.sigmoid(self.up(torch.relu(self.norm(self.down(context)))))
        return weights


class SymmetricFusion(nn.Module):
    """SREF: image and events gate each other alike, then their maximum and mean are merged.

    Args:
        channels: C, of image and events.
        reduction: of the context pooling.

    Raises:
        ValueError: too few channels for the reduction.

    Source: the paper's symmetric RGB-event fusion and the official module.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.rgb_context = ContextPooling(channels, reduction)
        self.event_context = ContextPooling(channels, reduction)
        self.rgb_conv = conv_bn_relu(channels, channels)
        self.event_conv = conv_bn_relu(channels, channels)
        self.merge = conv_bn_relu(2 * channels, channels)

    def gates(self, rgb: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        """What the image gives the events, and the events the image: (N, C, H, W) each, between 0 and 1."""
        return torch.sigmoid(rgb * self.rgb_context(rgb)), torch.sigmoid(event * self.event_context(event))

    def forward(self, rgb: Tensor, event: Tensor) -> Tensor:
        """Fuse features of one scale.

        Args:
            rgb: (N, C, H, W), of the image.
            event: the same shape, of the events after attention over time.

        Returns:
            (N, C, H, W).

        Raises:
            ValueError: shapes that differ.
        """
        expect_same_shape(rgb, event)
        from_rgb, from_event = self.gates(rgb, event)
        image = self.rgb_conv(rgb + rgb * from_event)
        events = self.event_conv(event + event * from_rgb)
        merged: Tensor = self.merge(torch.cat([torch.maximum(image, events), (image + events) / 2], dim=1))
        return merged


class AllDayBackbone(nn.Module):
    """A backbone of image and events for your own detector: fused features at each scale.

    Args:
        rgb_backbone: of an image (N, 3, H, W), gives a sequence of features (N, C, h, w).
        event_backbone: of events, gives as many features (T, N, C, h, w) of the same sizes, such as
            `SpikingEncoder` or `spiking_resnet18`. Its last features count where it gives more than there are channels;
            the same with the image's.
        channels: C at each scale, one or more.
        reduction: of the context pooling.
        temporal: makes what joins the time steps of a scale, of its channels; None: `EventTemporalAttention`.
        fusion: makes what fuses (rgb, event) of a scale, of its channels; None: `SymmetricFusion`.

    Raises:
        ValueError: no scale, or too few channels for the reduction.
    """

    def __init__(
        self,
        rgb_backbone: nn.Module,
        event_backbone: nn.Module,
        channels: Sequence[int] = (128, 256, 512),
        reduction: int = 16,
        temporal: Callable[[int], nn.Module] | None = None,
        fusion: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels is empty; expected the channels of at least one scale")
        self.rgb_backbone, self.event_backbone = rgb_backbone, event_backbone
        self.channels = tuple(channels)
        new_temporal = temporal or EventTemporalAttention
        new_fusion = fusion or (lambda each: SymmetricFusion(each, reduction))
        self.temporal = nn.ModuleList(new_temporal(each) for each in channels)
        self.fusion = nn.ModuleList(new_fusion(each) for each in channels)

    def forward(self, image: Tensor, events: Tensor) -> list[Tensor]:
        """Fuse an image and events.

        Args:
            image: (N, 3, H, W).
            events: (N, 2, H, W), or real bins (T, N, 2, H, W).

        Returns:
            Features (N, C, h, w), one of each scale.

        Raises:
            ValueError: the backbones give too few scales, or channels and sizes that do not fit.
        """
        ours = self._scales("rgb_backbone", self.rgb_backbone(image))
        theirs = self._scales("event_backbone", self.event_backbone(events))
        fused: list[Tensor] = []
        for number, (x, spikes) in enumerate(zip(ours, theirs, strict=True)):
            _expect_time(spikes)
            channels = self.channels[number]
            if x.ndim != 4 or x.shape[1] != channels or x.shape != spikes.shape[1:]:
                raise ValueError(
                    f"scale {number}: rgb_backbone gives {tuple(x.shape)}, event_backbone {tuple(spikes.shape)}; "
                    f"expected (N, {channels}, H, W) and (T, N, {channels}, H, W)"
                )
            fused.append(self.fusion[number](x, self.temporal[number](spikes)))
        return fused

    def _scales(self, name: str, features: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(features) < len(self.channels):
            raise ValueError(f"{name} gives {len(features)} scales; expected at least {len(self.channels)}")
        return features[len(features) - len(self.channels) :]


def expect_same_shape(rgb: Tensor, event: Tensor) -> None:
    """Refuse features that cannot be fused.

    Args:
        rgb: of the image.
        event: of the events.

    Raises:
        ValueError: they are not (N, C, H, W) of one shape.
    """
    if rgb.ndim != 4 or rgb.shape != event.shape:
        raise ValueError(
            f"rgb and event have shapes {tuple(rgb.shape)} and {tuple(event.shape)}; expected the same (N, C, H, W)"
        )


def _expect_time(events: Tensor) -> None:
    if events.ndim != 5:
        raise ValueError(f"features of events have shape {tuple(events.shape)}; expected (T, N, C, H, W)")
