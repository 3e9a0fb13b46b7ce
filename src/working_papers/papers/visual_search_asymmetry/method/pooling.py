"""Pooling whose windows widen with distance from the point of gaze."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG_SLOPES = (0.0, 0.0, 0.07, 0.16, 0.32)
"""How fast windows grow, for the five pools of VGG-16 (official code: 3.5, 8 and 16 times 0.02)."""

Model = TypeVar("Model", bound=nn.Module)


class EccentricityPool2d(nn.Module):
    """Pools with a window that is small around the centre of the map and grows, ring by ring, towards its edge.

    Gaze is at the centre. Within the fovea the window is `window_min`; further out it is `window_min` plus `slope`
    times the distance from the fovea's edge, for rings of `ring_deg`. Every window moves with the same stride, so the
    output is one map. Maps that are not square are padded with zeros to a square first. With slope 0 this is plain
    pooling. There are no parameters: weights of a network with plain pools fit.

    Args:
        slope: pixels that the window grows by for each pixel of distance (in pixels of the layer's input: a ring of
            outer diameter D gets window_min + round(slope (D - diameter of the fovea))).
        px_per_deg: pixels of the layer's input for one degree of visual angle.
        fovea_deg: diameter of the fovea in degrees.
        ring_deg: width of a ring in degrees; a ring is at least one output pixel wide.
        window_min: side of the window in the fovea, in pixels.
        stride: of all windows.
        mode: "avg" (the paper's) or "max".

    Source:
        Section 2 and the official class CentreDependentPooling2D, whose rounding (half to even) and discs (strictly
        inside the radius) are followed. As there, an odd amount of "same" padding has its larger part at the bottom
        and the right, and means leave that padding out.

    Raises:
        ValueError: a number that makes no sense.
    """

    def __init__(
        self,
        slope: float,
        px_per_deg: float,
        fovea_deg: float = 4.0,
        ring_deg: float = 1.0,
        window_min: int = 2,
        stride: int = 2,
        mode: Literal["avg", "max"] = "avg",
    ) -> None:
        super().__init__()
        if not 0 <= slope < inf:
            raise ValueError(f"slope is {slope}; expected a finite number that is not negative")
        for name, value in (("px_per_deg", px_per_deg), ("fovea_deg", fovea_deg), ("ring_deg", ring_deg)):
            if not 0 < value < inf:
                raise ValueError(f"{name} is {value}; expected a positive number")
        for name, count in (("window_min", window_min), ("stride", stride)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} is {count!r}; expected a positive integer")
        if mode not in ("avg", "max"):
            raise ValueError(f"mode is {mode!r}; expected 'avg' or 'max'")
        self.slope, self.px_per_deg = float(slope), float(px_per_deg)
        self.fovea_deg, self.ring_deg = float(fovea_deg), float(ring_deg)
        self.window_min, self.stride, self.mode = window_min, stride, mode

    def rings(self, side: int) -> list[tuple[float, int]]:
        """The disc of the fovea and the rings around it, for a square input.

        Args:
            side: of the input, in pixels.

        Returns:
            Outer radius (output pixels; infinite for the last) and window (input pixels) from the centre outwards.
        """
        output = _output_side(side, self.stride)
        # The fovea's radius in output pixels, for stride 2 half of that in input pixels.
        radius = round(self.fovea_deg * self.px_per_deg / self.stride)
        if radius > output / 2:
            return [(inf, self.window_min)]
        width = max(1, round(self.ring_deg * self.px_per_deg / self.stride))
        found: list[tuple[float, int]] = [(radius, self.window_min)]
        while True:
            radius += width
            excess = self.stride * radius - self.fovea_deg * self.px_per_deg
            window = self.window_min + max(0, round(self.slope * excess))
            if radius >= output / 2:
                return [*found, (inf, window)]
            found.append((radius, window))

    def ring_index(self, side: int) -> Tensor:
        """Which ring each output position belongs to, for a square input.

        Args:
            side: of the input, in pixels.

        Returns:
            Indices into `rings(side)`, int64 [M, M] with M = ceil(side / stride).
        """
        radii = tuple(radius for radius, _ in self.rings(side)[:-1])
        return _ring_index(radii, _output_side(side, self.stride)).clone()

    def forward(self, x: Tensor) -> Tensor:
        """Pool a batch of maps.

        Args:
            x: [B, C, H, W], any floating dtype.

        Returns:
            [B, C, M, M] with M = ceil(max(H, W) / stride).

        Raises:
            ValueError: x has not four axes.
        """
        if x.ndim != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, channels, height, width)")
        height, width = x.shape[-2:]
        side = max(height, width)
        if height != width:
            top, left = (side - height) // 2, (side - width) // 2
            x = F.pad(x, (left, side - width - left, top, side - height - top))
        rings = self.rings(side)
        index = _ring_index(tuple(radius for radius, _ in rings[:-1]), _output_side(side, self.stride)).to(x.device)
        windows = torch.tensor([window for _, window in rings], device=x.device)[index]
        result: Tensor | None = None
        for window in sorted({window for _, window in rings}):
            pooled = same_pool2d(x, window, self.stride, self.mode)
            result = pooled if result is None else torch.where(windows == window, pooled, result)
        assert result is not None
        return result

    def extra_repr(self) -> str:
        """The arguments that differ between layers, for printing."""
        return f"slope={self.slope:g}, px_per_deg={self.px_per_deg:g}, stride={self.stride}, mode={self.mode!r}"


def same_pool2d(x: Tensor, window: int, stride: int = 2, mode: str = "avg") -> Tensor:
    """Pool so that the output has ceil(side / stride) positions, whatever the window.

    Padding is shared between both sides, its odd pixel at the bottom and the right, and takes no part in the result.

    Args:
        x: [B, C, H, W].
        window: side of the window.
        stride: of the window.
        mode: "avg" or "max".

    Returns:
        [B, C, ceil(H / stride), ceil(W / stride)].
    """
    pads = [_same_padding(size, window, stride) for size in (x.shape[-1], x.shape[-2])]
    padding = [each for pair in pads for each in pair]
    if mode == "max":
        padded = F.pad(x, padding, value=-inf) if any(padding) else x
        return F.max_pool2d(padded, window, stride)
    if not any(padding):
        return _average(x, window, stride)
    share = _average(F.pad(torch.ones_like(x[:1, :1].detach()), padding), window, stride)
    return _average(F.pad(x, padding), window, stride) / share


def eccentric_(
    model: Model,
    px_per_deg: float | Sequence[float] = 30.0,
    slopes: Sequence[float] | None = None,
    *,
    fovea_deg: float = 4.0,
    ring_deg: float = 1.0,
    mode: Literal["avg", "max"] = "avg",
) -> Model:
    """Replace the pools of a network, in place, by eccentricity-dependent ones. Its weights stay.

    Every MaxPool2d and AvgPool2d with window 2 and stride 2 is replaced, in the order of `model.named_modules()`.

    Args:
        model: any network whose pools lie inside it.
        px_per_deg: pixels of the image for one degree; it is halved from pool to pool and rounded (half to even, as in
            the official code). Where other layers reduce the map as well, give the number of every pool's input.
        slopes: of the pools, in order; the paper's five for VGG-16 if left out.
        fovea_deg: diameter of the fovea in degrees.
        ring_deg: width of a ring in degrees.
        mode: "avg" (the paper's, for pools of either kind) or "max".

    Returns:
        The same model.

    Raises:
        ValueError: there are more or fewer pools than slopes or px_per_deg.

    Source:
        Section 2; default slopes and pixels per degree are those of the official code.
    """
    slopes = VGG_SLOPES if slopes is None else tuple(slopes)
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.MaxPool2d | nn.AvgPool2d) and _all(child.kernel_size, 2) and _all(child.stride, 2)
    ]
    order = {id(module): place for place, module in enumerate(model.modules())}
    places.sort(key=lambda place: order[id(place[2])])
    pools = list(dict.fromkeys(child for _, _, child in places))
    if len(pools) != len(slopes):
        raise ValueError(f"slopes has {len(slopes)} numbers, but the model has {len(pools)} pools of window 2")
    if isinstance(px_per_deg, int | float):
        scales = [max(1.0, float(round(px_per_deg / 2**depth))) for depth in range(len(pools))]
    else:
        scales = [float(each) for each in px_per_deg]
    if len(scales) != len(pools):
        raise ValueError(f"px_per_deg has {len(scales)} numbers, but the model has {len(pools)} pools of window 2")
    new = {
        id(pool): EccentricityPool2d(slope, scale, fovea_deg, ring_deg, mode=mode)
        for pool, slope, scale in zip(pools, slopes, scales, strict=True)
    }
    for parent, name, child in places:
        setattr(parent, name, new[id(child)])
    return model


def _average(x: Tensor, window: int, stride: int) -> Tensor:
    if window <= 3:
        return F.avg_pool2d(x, window, stride)
    # Rows, then columns: the cost grows with the window's side and not with its area.
    return F.avg_pool2d(F.avg_pool2d(x, (window, 1), (stride, 1)), (1, window), (1, stride))


def _all(value: object, expected: int) -> bool:
    return value in (expected, (expected, expected))


def _output_side(side: int, stride: int) -> int:
    return -(-side // stride)


def _same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    whole = max(0, (_output_side(size, stride) - 1) * stride + window - size)
    return whole // 2, whole - whole // 2


@lru_cache(maxsize=256)
def _ring_index(radii: tuple[float, ...], side: int) -> Tensor:
    """For each position of a square map: how many of the discs around its centre it lies outside of."""
    offset = torch.arange(side) - side // 2
    squared = offset[:, None] ** 2 + offset**2
    index = torch.zeros(side, side, dtype=torch.int64)
    for radius in radii:
        index += squared >= radius**2
    return index
