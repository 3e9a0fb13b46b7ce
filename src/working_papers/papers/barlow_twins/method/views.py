"""The random distortions of Barlow Twins (https://arxiv.org/abs/2103.03230, section 2.2), with torch alone.

A whole batch is distorted at once, on its device, each image with numbers of its own; all of them come from one
generator, so that a batch can be made again. The distortions and their probabilities are those of the official code,
with these differences: crops are resampled by bicubic interpolation without a filter against aliasing, the blur is a
true Gaussian where Pillow approximates one by box filters, and the four changes of colour come in one random order for
each batch, not for each image.

Letters: N = images, C = channels (3 where colours matter), S = side of the views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R 601, as Pillow converts colours to grey
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOLARISE_FROM = 128 / 255
RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class RandomView:
    """One random distortion: crop, flip, colour jitter, grey, blur, solarise, in this order.

    Call it with images (N, 3, H, W) from 0 to 1 and, to be repeatable, a CPU generator; it gives (N, 3, S, S) from 0
    to 1, of the same dtype and on the same device.

    Args:
        size: S, side of the view.
        area: smallest and largest share of the image that a crop covers.
        flip: probability of a horizontal flip.
        jitter: strengths for brightness, contrast, saturation (factors from 1 - s to 1 + s) and hue (shift by up to
            that share of the circle).
        jitter_share: probability of the colour jitter.
        grey: probability that colours are lost.
        blur: probability of the blur.
        sigma: smallest and largest standard deviation of the blur in pixels.
        solarise: probability that all values from 128/255 up are inverted.

    Raises:
        ValueError: a probability or range that is none; at the call, images of another shape or dtype.
    """

    size: int = 224
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability or no range."""
        if self.size < 1:
            raise ValueError(f"size is {self.size}; expected at least 1")
        for name in ("flip", "jitter_share", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is {self.area}; expected two rising shares, above 0 and up to 1")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma is {self.sigma}; expected two rising positive numbers")
        if len(self.jitter) != 4 or not all(0 <= s <= 1 for s in self.jitter[:3]) or not 0 <= self.jitter[3] <= 0.5:
            raise ValueError(f"jitter is {self.jitter}; expected three numbers from 0 to 1 and one from 0 to 0.5")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Distort a batch, see the class."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images have shape {tuple(images.shape)} and dtype {images.dtype}; expected floats (N, 3, H, W)"
            )
        draw = _Draw(images, generator)
        x = _crop(images, draw, self.size, self.area, self.flip)
        x = torch.where(draw.happens(self.jitter_share), _jitter(x, draw, self.jitter), x)
        if self.grey:
            x = torch.where(draw.happens(self.grey), _grey(x).expand_as(x), x)
        if self.blur:
            x = torch.where(draw.happens(self.blur), _blur(x, draw.uniform(*self.sigma).flatten(), self.sigma[1]), x)
        if self.solarise:
            x = torch.where(draw.happens(self.solarise) & (x >= SOLARISE_FROM), 1 - x, x)
        return x


def imagenet_views(images: Tensor, size: int = 224, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The paper's two views: the first is always blurred, the second seldom, but sometimes solarised.

    Args:
        images: (N, 3, H, W), from 0 to 1.
        size: S, side of the views.
        generator: on the CPU; None: the global one.

    Returns:
        Two batches (N, 3, S, S), with ImageNet's mean and standard deviation taken out.

    Raises:
        ValueError: the images have another shape or dtype.

    Source: paper, section 2.2; the asymmetric parameters of appendix and official code.
    """
    first = RandomView(size, blur=1.0)(images, generator)
    second = RandomView(size, blur=0.1, solarise=0.2)(images, generator)
    mean, std = (images.new_tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (first - mean) / std, (second - mean) / std


class _Draw:
    """Random numbers for the images of a batch, (N, 1, 1, 1), drawn on the CPU so that all devices draw the same."""

    def __init__(self, images: Tensor, generator: torch.Generator | None) -> None:
        self.images, self.generator = images, generator

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(len(self.images), 1, 1, 1, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(self.images)

    def happens(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability

    def order(self, count: int) -> list[int]:
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order


def _crop(images: Tensor, draw: _Draw, size: int, area: tuple[float, float], flip: float) -> Tensor:
    """A random rectangle of each image, resampled to a square and flipped by chance.

    The shape is drawn as torchvision's RandomResizedCrop draws it, but a rectangle that does not fit is cut to the
    image, where torchvision draws again.
    """
    height, width = images.shape[-2:]
    share = draw.uniform(*area).flatten()
    ratio = draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])).flatten().exp()
    pixels = share * height * width
    across = ((pixels * ratio).sqrt() / width).clamp(max=1)  # shares of the image's sides
    down = ((pixels / ratio).sqrt() / height).clamp(max=1)
    x = draw.uniform(-1, 1).flatten() * (1 - across)  # the middle of the crop; the image goes from -1 to 1
    y = draw.uniform(-1, 1).flatten() * (1 - down)
    mirror = 1 - 2 * draw.happens(flip).flatten().to(across)
    zero = torch.zeros_like(x)
    theta = torch.stack([across * mirror, zero, x, zero, down, y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
    cut = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return cut.clamp(0, 1)  # bicubic interpolation overshoots at edges


def _jitter(x: Tensor, draw: _Draw, strengths: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue, in random order."""
    factors = [draw.uniform(1 - s, 1 + s) for s in strengths[:3]]
    shift = draw.uniform(-strengths[3], strengths[3])
    for change in draw.order(4):
        if change == 0:
            x = (x * factors[0]).clamp(0, 1)
        elif change == 1:
            x = torch.lerp(_grey(x).mean(dim=(1, 2, 3), keepdim=True).expand_as(x), x, factors[1]).clamp(0, 1)
        elif change == 2:
            x = torch.lerp(_grey(x).expand_as(x), x, factors[2]).clamp(0, 1)
        else:
            x = _shift_hue(x, shift)
    return x


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)


def _shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by a share of the circle; the largest and smallest of the three channels stay what they are."""
    high, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    spread = high - low
    red, green, blue = x.split(1, dim=1)
    safe = torch.where(spread > 0, spread, 1.0)
    below_red = torch.where(green == high, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sextant = torch.where(red == high, (green - blue) / safe, below_red)
    # A channel is high within one sextant of its own hue, low beyond two, and linear between.
    own = x.new_tensor([0.0, 2.0, 4.0])[:, None, None]
    distance = (sextant + 6 * shift - own + 3).remainder(6).sub(3).abs()
    return low + spread * (2 - distance).clamp(0, 1)


def _blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur with a standard deviation for each image; edges are repeated."""
    radius = math.ceil(3 * largest)
    steps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (steps / sigma[:, None]).square(), dim=1)
    kernel = kernel.repeat_interleave(x.shape[1], dim=0)[:, None]  # (N·C, 1, taps)
    rows = x.flatten(0, 1)[None]  # images and channels side by side, each with its own kernel
    rows = F.conv2d(F.pad(rows, (radius, radius, 0, 0), "replicate"), kernel[:, :, None], groups=len(kernel))
    rows = F.conv2d(F.pad(rows, (0, 0, radius, radius), "replicate"), kernel[..., None], groups=len(kernel))
    return rows.view_as(x)
