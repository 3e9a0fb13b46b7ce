"""Target-driven attention over any network's features, and the loop of fixations that it steers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn.taps import ActivationTap
from working_papers.papers.visual_search_asymmetry.method.pooling import same_pool2d

Gaussian = tuple[int, float]
"""Side of a kernel in pixels (odd) and its standard deviation."""

CENTRE_SURROUND: Mapping[str, tuple[Gaussian, Gaussian]] = {
    "curvature": ((3, 1.0), (5, 3.0)),
    "orientation": ((3, 1.0), (5, 3.0)),
    "orientation among many": ((3, 1.0), (5, 3.0)),
    "crossing": ((5, 3.0), (7, 5.0)),
    "letters": ((5, 3.0), (7, 5.0)),
    "lighting": ((3, 0.0), (5, 1.0)),
}
"""Centre and surround that the official code uses for each task."""


@dataclass(frozen=True)
class Scanpath:
    """Where a batch of searches looked.

    Attributes:
        points: row and column of each fixation in image pixels, int64 [B, 1 + K, 2]; the first is the image's centre,
            and -1 stands behind the last.
        fixations: saccades until the target was looked at, int64 [B]; the start counts 0. For a target that was not
            found, the number that was made.
        found: whether the target was looked at, bool [B].
    """

    points: Tensor
    fixations: Tensor
    found: Tensor


def correlate(features: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlate feature maps with a target's features, summed over channels, at every position.

    Args:
        features: [B, C, H, W].
        kernel: [B, C, h, w], one for each map, or [1, C, h, w] for all.

    Returns:
        [B, 1, H, W]; positions outside the map count as zero, and an even side has its larger half at the bottom and
        the right, as "same" convolutions of TensorFlow have.

    Raises:
        ValueError: shapes that do not fit.
    """
    batch, channels, height, width = features.shape
    if kernel.ndim != 4 or kernel.shape[1] != channels or kernel.shape[0] not in (1, batch):
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; expected (1 or {batch}, {channels}, height, width)")
    h, w = kernel.shape[-2:]
    padded = F.pad(features, ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2))
    if kernel.shape[0] == 1:
        return F.conv2d(padded, kernel)
    together = F.conv2d(padded.reshape(1, batch * channels, *padded.shape[-2:]), kernel, groups=batch)
    return together.reshape(batch, 1, height, width)


def combine_maps(maps: Sequence[Tensor]) -> Tensor:
    """Sum attention maps, each stretched to 0..1 and weighted by its maximum before that.

    Args:
        maps: at least one tensor, all of the same shape [B, 1, H, W].

    Returns:
        [B, 1, H, W]. A map without any variation counts as zero; where the weights do not sum to a positive number
        (all maps are zero), they are equal.

    Source:
        Official code (weights are maxima of the raw maps, so that deep layers with large activations dominate).
    """
    stacked = torch.stack(list(maps))
    low, high = stacked.amin((-2, -1), keepdim=True), stacked.amax((-2, -1), keepdim=True)
    spread = high - low
    stretched = torch.where(spread > 0, (stacked - low) / torch.where(spread > 0, spread, 1), 0)
    total = high.sum(0, keepdim=True)
    weights = torch.where(total > 0, high / torch.where(total > 0, total, 1), 1 / len(stacked))
    return (weights * stretched).sum(0)


def gaussian_kernel(side: int, sigma: float, like: Tensor) -> Tensor:
    """Weights of a one-dimensional Gaussian that sum to one.

    Args:
        side: number of weights, odd.
        sigma: standard deviation in pixels. 0 gives binomial weights, which are what OpenCV takes for sides 3 and 5
            when no deviation is given (from memory of its source).
        like: dtype and device come from this tensor.

    Returns:
        [side].

    Raises:
        ValueError: side is not odd and positive, or sigma is negative.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"side is {side}; expected a positive odd number")
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}; expected a number that is not negative")
    place = torch.arange(side, dtype=torch.float64) - side // 2
    if sigma == 0:
        n = torch.tensor(float(side - 1), dtype=torch.float64)
        k = torch.arange(side, dtype=torch.float64)
        weights = torch.exp(torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1))
    else:
        weights = torch.exp(-(place**2) / (2 * sigma**2))
    return (weights / weights.sum()).to(like)


def centre_surround(attention: Tensor, centre: Gaussian, surround: Gaussian, passes: int = 3) -> Tensor:
    """Sharpen a map by adding the difference of two blurred copies, several times.

    Args:
        attention: [B, 1, H, W], with sides above half the larger kernel's.
        centre: side and deviation of the narrow Gaussian; `gaussian_kernel` says what deviation 0 means.
        surround: of the wide one.
        passes: how often.

    Returns:
        [B, 1, H, W]. Edges are mirrored without repeating the outermost pixel.

    Raises:
        ValueError: the map is too small for a kernel.

    Source:
        Official code (not in the paper's text).
    """

    def blurred(x: Tensor, side: int, sigma: float) -> Tensor:
        weights = gaussian_kernel(side, sigma, x)
        half = side // 2
        if min(x.shape[-2:]) <= half:
            raise ValueError(f"attention has sides {tuple(x.shape[-2:])}; expected more than {half} for kernel {side}")
        x = F.pad(x, (half, half, half, half), mode="reflect")
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    for _ in range(passes):
        attention = attention + blurred(attention, *centre) - blurred(attention, *surround)
    return attention


class TopDownSearch(nn.Module):
    """Searches images for a target by where a network's features resemble the target's.

    One fixation: the network sees the image around the point of gaze (which is why its pools may depend on
    eccentricity, see `eccentric_`); features of several layers are correlated with those of the target; the sum of
    these maps is sharpened; the gaze goes to its highest point that was not visited. The target is recognised when
    looked at.

    Args:
        backbone: the convolutional part of a network, for images of any size. Call `eval()` on it where that matters.
        layers: names (as in `backbone.named_modules()`) of the layers to compare, from shallow to deep: for VGG-16 the
            rectified outputs of the last convolutions of blocks 3, 4 and 5, before they are pooled. All are averaged
            down to the size of the last.
        target_layers: names of the layers one pooling step deeper that give the target's features; by default the same
            layers, pooled once more by plain 2 x 2 averages. Both are the same for a target within the fovea.
        dog: centre and surround, see `CENTRE_SURROUND` for the paper's.
        passes: how often the map is sharpened.
        margin: pixels of background that the crop has beyond twice the image's side, at each side.
        background: value, or one for each channel, of what surrounds the image and replaces visited cells.
        inhibition: without cells, side of the square that is inhibited, and that recognises the target, in pixels.

    Raises:
        ValueError: unknown layers, or numbers that make no sense.

    Source:
        Section 2. The pooling step between target and display, the weights of layers and the sharpening are those of
        the official code. There a target counts as found within 10 pixels' reach of the fixation even where cells are
        known; here, as the paper says, when its cell is looked at. Visited places are left out instead of set to zero.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        target_layers: Sequence[str] | None = None,
        dog: tuple[Gaussian, Gaussian] = ((3, 1.0), (5, 3.0)),
        passes: int = 3,
        margin: int = 64,
        background: float | Sequence[float] = 0.0,
        inhibition: int = 10,
    ) -> None:
        super().__init__()
        ActivationTap(backbone, layers)  # refuses unknown names
        if target_layers is not None:
            ActivationTap(backbone, target_layers)
            if len(target_layers) != len(layers):
                raise ValueError(f"target_layers names {len(target_layers)} layers; expected {len(layers)}")
        for name, value, low in (("passes", passes, 0), ("margin", margin, 0), ("inhibition", inhibition, 1)):
            if value < low:
                raise ValueError(f"{name} is {value}; expected at least {low}")
        for side, sigma in dog:
            gaussian_kernel(side, sigma, torch.zeros(()))
        self.backbone = backbone
        self.layers = tuple(layers)
        self.target_layers = None if target_layers is None else tuple(target_layers)
        self.dog, self.passes, self.margin, self.inhibition = dog, passes, margin, inhibition
        self.background = (background,) if isinstance(background, int | float) else tuple(background)

    def features(self, crops: Tensor) -> list[Tensor]:
        """Features of the display that are compared.

        Args:
            crops: [B, C, H, W].

        Returns:
            One tensor [B, C_l, h, w] a layer, all averaged down to the size of the last layer's map.
        """
        found = self._tapped(crops, self.layers)
        return [_down_to(each, found[-1].shape[-2:]) for each in found]

    def target_features(self, target: Tensor) -> list[Tensor]:
        """Features of the target, one pooling step deeper than those of the display. Worth keeping between searches.

        Args:
            target: [B, C, h, w], or [1, C, h, w] for one target in all images.

        Returns:
            One tensor a layer, all of the size of the last layer's.
        """
        found = self._tapped(target, self.layers if self.target_layers is None else self.target_layers)
        if self.target_layers is None:
            found = [same_pool2d(each, 2) for each in found]
        return [_down_to(each, found[-1].shape[-2:]) for each in found]

    def attention(self, crops: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        """The attention map of what the network sees with its gaze at the centre of each crop.

        Args:
            crops: [B, C, H, W].
            target: an image [B or 1, C, h, w], or its `target_features`.

        Returns:
            [B, 1, H', W'] of the size of the last layer's map.
        """
        kernels = self.target_features(target) if isinstance(target, Tensor) else target
        maps = [correlate(x, kernel) for x, kernel in zip(self.features(crops), kernels, strict=True)]
        return centre_surround(combine_maps(maps), *self.dog, self.passes)

    def forward(self, crops: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        """The same as `attention`."""
        return self.attention(crops, target)

    @torch.no_grad()
    def search(
        self,
        images: Tensor,
        target: Tensor | Sequence[Tensor],
        target_region: Tensor,
        cells: Tensor | None = None,
        max_fixations: int | None = None,
    ) -> Scanpath:
        """Look around in images until the target is looked at.

        Args:
            images: [B, C, H, W].
            target: images [B or 1, C, h, w], or their `target_features`.
            target_region: where the target is, bool [B, H, W]. It decides when the search ends and nothing else.
            cells: places that can be looked at, bool [n, H, W] or [B, n, H, W], disjoint. A visited one is covered by
                background. Without cells every pixel can be looked at, and nothing is covered.
            max_fixations: saccades after which a search is given up; by default one more than there are cells.

        Returns:
            The scanpaths.

        Raises:
            ValueError: shapes that do not fit, or neither cells nor max_fixations.
        """
        images, region, cells, limit = self._checked(images, target_region, cells, max_fixations)
        batch, _, height, width = images.shape
        kernels = self.target_features(target) if isinstance(target, Tensor) else list(target)
        device, extent = images.device, max(height, width)
        reach = extent + self.margin
        background = torch.tensor(self.background, dtype=images.dtype, device=device).view(1, -1, 1, 1)
        canvas = background.expand(batch, images.shape[1], height + 2 * reach, width + 2 * reach).clone()
        canvas[:, :, reach : reach + height, reach : reach + width] = images
        shown = canvas[:, :, reach : reach + height, reach : reach + width]  # a view: covering it changes the canvas
        # Which cell each pixel belongs to, -1 for none; one map for all images if they share the cells.
        owner = None if cells is None else torch.where(cells.any(dim=1), cells.int().argmax(dim=1), -1)
        owner = None if owner is None else owner.expand(batch, -1, -1)
        free = torch.ones_like(region) if owner is None else owner >= 0

        gaze = torch.tensor([height // 2, width // 2], device=device).repeat(batch, 1)
        points = torch.full((batch, limit + 1, 2), -1, dtype=torch.int64, device=device)
        points[:, 0] = gaze
        fixations = torch.zeros(batch, dtype=torch.int64, device=device)
        found = torch.zeros(batch, dtype=torch.bool, device=device)
        active = torch.arange(batch, device=device)
        if cells is None:  # with cells the official code looks away from the centre before it judges anything
            start = _square(gaze, self.inhibition, height, width)
            found = (region & start).flatten(1).any(dim=1)
            free &= ~start
            active = active[~found]
        around = torch.arange(2 * reach, device=device)
        for step in range(1, limit + 1):
            active = active[free[active].flatten(1).any(dim=1)]
            if len(active) == 0:
                break
            rows, columns = gaze[active, :1] + around, gaze[active, 1:] + around  # reach cancels against the padding
            crops = canvas[active[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
            own = [kernel if kernel.shape[0] == 1 else kernel[active] for kernel in kernels]
            attention = self.attention(crops, own)
            # Enlarging by areas repeats each value, which is what the official code's resizing does.
            attention = F.interpolate(attention, size=(2 * reach, 2 * reach), mode="area")[:, 0]
            y = reach - gaze[active, :1] + torch.arange(height, device=device)
            x = reach - gaze[active, 1:] + torch.arange(width, device=device)
            of_image = attention[torch.arange(len(active), device=device)[:, None, None], y[:, :, None], x[:, None, :]]
            best = of_image.masked_fill(~free[active], -torch.inf).flatten(1).argmax(dim=1)
            looked = torch.stack([best // width, best % width], dim=1)
            gaze[active], points[active, step], fixations[active] = looked, looked, step
            if owner is None:
                visited = _square(looked, self.inhibition, height, width)
            else:
                visited = owner[active] == owner[active, looked[:, 0], looked[:, 1]][:, None, None]
                shown[active] = torch.where(visited[:, None], background, shown[active])
            hit = (region[active] & visited).flatten(1).any(dim=1)
            free[active] &= ~visited
            found[active] = hit
            active = active[~hit]
        return Scanpath(points, fixations, found)

    def _tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        with ActivationTap(self.backbone, layers) as tap:
            self.backbone(x)
        for name in layers:
            if tap.values[name].ndim != 4:
                shape = tuple(tap.values[name].shape)
                raise ValueError(f"layers: {name!r} returns shape {shape}; expected (batch, channels, height, width)")
        return [tap.values[name] for name in layers]

    def _checked(
        self, images: Tensor, region: Tensor, cells: Tensor | None, limit: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None, int]:
        if images.ndim != 4:
            raise ValueError(f"images has shape {tuple(images.shape)}; expected (batch, channels, height, width)")
        batch, channels, height, width = images.shape
        if len(self.background) not in (1, channels):
            raise ValueError(f"background has {len(self.background)} values; expected 1 or {channels}")
        if region.shape != (batch, height, width):
            raise ValueError(f"target_region has shape {tuple(region.shape)}; expected {(batch, height, width)}")
        if cells is not None:
            cells = cells[None] if cells.ndim == 3 else cells
            if cells.ndim != 4 or cells.shape[0] not in (1, batch) or cells.shape[2:] != (height, width):
                raise ValueError(
                    f"cells has shape {tuple(cells.shape)}; expected (cells, {height}, {width}) "
                    f"or ({batch}, cells, {height}, {width})"
                )
            cells = cells.to(images.device, torch.bool)
            if bool((cells.sum(dim=1) > 1).any()):
                raise ValueError("cells overlap; expected disjoint masks")
            limit = cells.shape[1] + 1 if limit is None else limit
        if limit is None:
            raise ValueError("max_fixations is None; expected a number, for there are no cells to count")
        if limit < 1:
            raise ValueError(f"max_fixations is {limit}; expected at least 1")
        return images, region.to(images.device, torch.bool).clone(), cells, limit


def _down_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Average a map down to a size: by plain 2 x 2 pools as long as they fit, else by areas."""
    target = tuple(size)
    while x.shape[-2] > target[0] and x.shape[-1] > target[1]:
        half = tuple(-(-side // 2) for side in x.shape[-2:])
        if half[0] < target[0] or half[1] < target[1]:
            break
        x = same_pool2d(x, 2)
    return x if tuple(x.shape[-2:]) == target else F.adaptive_avg_pool2d(x, (target[0], target[1]))


def _square(centre: Tensor, side: int, height: int, width: int) -> Tensor:
    """Squares around points [B, 2], as masks [B, height, width]; an even side reaches one pixel further up and left."""
    rows = torch.arange(height, device=centre.device) - (centre[:, :1] - side // 2)
    columns = torch.arange(width, device=centre.device) - (centre[:, 1:] - side // 2)
    return ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
