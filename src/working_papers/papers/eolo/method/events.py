"""Events from one image: what an event camera would see if the image slid along a straight line."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey."""


def expose(image: Tensor, factor: float | Tensor, clip: bool = True) -> Tensor:
    """Take an image with another exposure: multiply linear intensities, and cut off what a camera cannot hold.

    Multiplying red, green and blue is the same as multiplying the value of hue, saturation and value, in which the
    paper states it.

    Args:
        image: linear intensities (..., C, H, W), floating point, 1 is white.
        factor: a positive number, or one for each image, (N,) with images (N, C, H, W). The paper has 0.2 for under-
            and 5 for over-exposure.
        clip: cut off above 1 and round to the 256 levels of eight bits. Without it the result is the "HDR" image from
            which events are made.

    Returns:
        Intensities of the same shape and dtype.

    Raises:
        ValueError: the image holds integers, or a factor is not positive or does not fit.
    """
    if not image.is_floating_point():
        raise ValueError(f"image has dtype {image.dtype}; expected floating point, 1 is white")
    factors = torch.as_tensor(factor, dtype=image.dtype, device=image.device)
    if factors.ndim and (image.ndim != 4 or factors.shape != image.shape[:1]):
        raise ValueError(
            f"factor has shape {tuple(factors.shape)}; expected one number, or one for each of the images "
            f"{tuple(image.shape)}"
        )
    if not bool((factors > 0).all()):
        raise ValueError(f"factor is {factor}; expected positive numbers")
    exposed = image * (factors[:, None, None, None] if factors.ndim else factors)
    return exposed.clamp(0, 1).mul(255).round().div(255) if clip else exposed


def random_flow(count: int, magnitude: float = 3 * 2**0.5, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions in which images slide, uniformly over the circle.

    Args:
        count: number of images N.
        magnitude: length of the flow in pixels.
        generator: of the draws.

    Returns:
        (N, 2), float32, to the right and down, on the generator's device.
    """
    device = "cpu" if generator is None else generator.device
    angle = (2 * torch.rand(count, generator=generator, device=device) - 1) * math.pi
    return magnitude * torch.stack([angle.cos(), angle.sin()], dim=1)


def synthesize_events(
    image: Tensor,
    flow: Tensor | None = None,
    scale: float = 0.3,
    magnitude: float = 3 * 2**0.5,
    deadzone: float = 50.0,
    threshold: float = 20.0,
    generator: torch.Generator | None = None,
    log: bool = False,
) -> Tensor:
    """Count the events that each pixel fires while the whole image slides along one vector.

    The image is stretched to 0 to 255 and made grey; its gradient (Sobel, 3 x 3) times the flow is the change of
    brightness. Small changes are ignored; the rest fires one event for every `threshold`, rounded down. As the image
    is stretched first, the exposure does not matter unless intensities were cut off before.

    Args:
        image: (N, 3, H, W) or (N, 1, H, W), linear intensities of any range, at least 2 x 2 pixels.
        flow: (N, 2) or (2,), pixels to the right and down; None draws a direction for each image. The paper's
            synthesis without randomness has (3, 3).
        scale: factor of the gradient.
        magnitude: length of the flow that is drawn.
        deadzone: smallest change that fires.
        threshold: change for one event.
        generator: of the flow.
        log: take the gradient of the logarithm, to which real event cameras respond, again stretched to 0 to 255. The
            paper takes the intensity itself.

    Returns:
        (N, 2, H, W), whole numbers in the image's dtype: positive events, negative events. A pixel fires only one kind.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a number that is not positive.

    Source: the paper's event synthesis and the official script. The script rounds the stretched and the grey image to
    eight bits and swaps the weights of red and blue; here nothing is rounded before the events are counted.
    """
    if image.ndim != 4 or image.shape[1] not in (1, 3) or min(image.shape[2:]) < 2:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (N, 3, H, W) or (N, 1, H, W), H and W >= 2")
    if not image.is_floating_point():
        raise ValueError(f"image has dtype {image.dtype}; expected floating point")
    for name, number in {"scale": scale, "magnitude": magnitude, "threshold": threshold}.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; expected a positive number")
    if not deadzone >= 0:
        raise ValueError(f"deadzone is {deadzone}; expected 0 or more")
    x = image.to(torch.promote_types(image.dtype, torch.float32))  # half precision would lose small gradients
    if flow is None:
        flow = random_flow(len(x), magnitude, generator)
    if flow.shape not in ((2,), (len(x), 2)):
        raise ValueError(f"flow has shape {tuple(flow.shape)}; expected (2,) or ({len(x)}, 2)")
    low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
    spread = torch.where(high > low, high - low, 1)
    x = (x - low) / spread * 255
    if x.shape[1] == 3:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    if log:
        x = torch.log1p(x) * (255 / math.log(256))
    across = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), torch.stack([across, across.T])[:, None])
    flow = flow.to(x).expand(len(x), 2)
    change = scale * (gradient * flow[:, :, None, None]).sum(dim=1, keepdim=True)
    change = torch.where(change.abs() < deadzone, 0, change)
    counts = torch.cat([change, -change], dim=1).clamp_(min=0).div_(threshold).floor_()
    return counts.to(image.dtype)


def sensor_noise(
    events: Tensor,
    random: float = 0.005,
    dropped: float = 0.1,
    most: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Spoil events as a sensor does: some pixels stay silent, some fire without cause.

    Synthetic events do not depend on the exposure; without noise they show the scene as no camera does. This is not
    part of the paper.

    Args:
        events: counts (..., 2, H, W).
        random: share of pixels that fire without cause, each with one polarity.
        dropped: share of pixels whose events are lost.
        most: a pixel that fires without cause does so 1 to `most` times.
        generator: of the noise.

    Returns:
        Counts of the same shape and dtype.

    Raises:
        ValueError: another shape, a share outside [0, 1], or `most` below 1.
    """
    if events.ndim < 3 or events.shape[-3] != 2:
        raise ValueError(f"events has shape {tuple(events.shape)}; expected (..., 2, H, W)")
    for name, share in {"random": random, "dropped": dropped}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}; expected a share from 0 to 1")
    if most < 1:
        raise ValueError(f"most is {most}; expected at least 1")
    device = "cpu" if generator is None else generator.device
    pixels = (*events.shape[:-3], 1, *events.shape[-2:])

    def drawn() -> Tensor:
        return torch.rand(pixels, generator=generator, device=device).to(events.device)

    kept, fires, positive, amount = drawn() >= dropped, drawn() < random, drawn() < 0.5, drawn()
    count = (amount * most).floor().clamp(max=most - 1).add(1).to(events.dtype)
    noise = torch.cat([count * (fires & positive), count * (fires & ~positive)], dim=-3)
    return events * kept + noise
