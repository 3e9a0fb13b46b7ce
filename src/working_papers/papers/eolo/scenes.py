"""Scenes of the study: textured shapes before a textured ground, photographed in any light, with their events.

Letters: N = scenes, M = most objects of a scene, S = side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.data.random_fields import periodic_random_field
from working_papers.papers.eolo.method import expose, random_flow, sensor_noise, synthesize_events

CLASSES = ("disk", "square", "triangle", "cross")
MOST = 3  # objects of a scene
LIGHTINGS = (0.1, 0.2, 1.0, 3.0, 5.0)  # exposure factors; 1 is normal light
PHOTONS = 100.0  # that white gives a pixel at any exposure time; shot noise is their square root
DROPPED, RANDOM, MOST_RANDOM = 0.1, 0.005, 20  # of the event sensor: silent pixels, firing ones, and how often they do
FIXED_FLOW = (3.0, 3.0)  # the paper's synthesis without randomness
TRIES = 60  # layouts drawn for each scene, of which the first is taken whose objects are apart


@dataclass(frozen=True)
class Scenes:
    """Scenes without any camera.

    Attributes:
        images: (N, 3, S, S), linear intensities from 0 to 1.
        boxes: (N, M, 4), left, top, right, bottom of the objects, in pixels.
        labels: (N, M), their classes; -1 where there is no object.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_scenes(count: int, side: int, generator: torch.Generator) -> Scenes:
    """Draw scenes of one to three objects that do not touch, in random colours and textures.

    Args:
        count: number of scenes N.
        side: S, at least 24.
        generator: of everything.

    Returns:
        The scenes.
    """

    def drawn(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    radius = drawn(count, MOST, low=0.11 * side, high=0.2 * side)
    places = drawn(count, TRIES, MOST, 2) * (side - 2 * radius[:, None, :, None]) + radius[:, None, :, None]
    gap = (
        (places[:, :, :, None] - places[:, :, None]).abs().amax(dim=-1)
        - radius[:, None, :, None]
        - radius[:, None, None]
    )
    apart = (gap + 1e3 * torch.eye(MOST)).amin(dim=(2, 3))  # (N, TRIES)
    # The first layout without contact; where there is none, the one with the widest gap.
    rank = torch.where(apart > 1, 1e3 - torch.arange(TRIES), apart)
    centres = places[torch.arange(count), rank.argmax(dim=1)]  # (N, M, 2)
    labels = torch.randint(len(CLASSES), (count, MOST), generator=generator)
    number = torch.randint(1, MOST + 1, (count, 1), generator=generator)
    there = torch.arange(MOST) < number

    # Squared uniform numbers: most surfaces are dark, as in linear photographs, so that long exposure blinds some.
    ground = drawn(count, 1, 3).square()
    colours = drawn(count, 8, 3).square()
    # The three colours (of eight) that differ most from the ground.
    far = (colours - ground).norm(dim=-1).topk(MOST, dim=1).indices
    shuffled = far.gather(1, torch.rand(count, MOST, generator=generator).argsort(dim=1))
    colours = colours.gather(1, shuffled[..., None].expand(-1, -1, 3))
    surfaces = torch.cat([ground, colours], dim=1)  # (N, 1 + M, 3)
    field = periodic_random_field(
        count * (1 + MOST), (side, side), smoothness=1.5, inverse_length=20, generator=generator
    )
    field = (field / field.std(dim=(1, 2), keepdim=True)).float().view(count, 1 + MOST, 1, side, side)
    strength = drawn(count, 1 + MOST, 1, 1, 1, low=0.05, high=0.3)
    textured = (surfaces[..., None, None] * (1 + strength * field)).clamp(0, 1)  # (N, 1 + M, 3, S, S)
    images = textured[:, 0]
    masks = _masks(centres, radius, labels, side) & there[..., None, None]
    for index in range(MOST):
        images = torch.where(masks[:, index, None], textured[:, 1 + index], images)
    boxes = torch.cat([centres - radius[..., None], centres + radius[..., None]], dim=-1)
    return Scenes(images, boxes * there[..., None], torch.where(there, labels, -1))


def _masks(centres: Tensor, radius: Tensor, labels: Tensor, side: int) -> Tensor:
    """Pixels of each object, (N, M, S, S): all shapes fill the square of side 2 radius."""
    pixel = torch.arange(side) + 0.5
    x = (pixel - centres[..., :1])[..., None, :] / radius[..., None, None]
    y = (pixel - centres[..., 1:])[..., :, None] / radius[..., None, None]
    square = (x.abs() <= 1) & (y.abs() <= 1)
    shapes = [
        x.square() + y.square() <= 1,
        square,
        square & (x.abs() <= (1 + y) / 2),
        square & ((x.abs() <= 0.35) | (y.abs() <= 0.35)),
    ]
    return torch.stack(shapes).gather(0, labels[None, ..., None, None].expand(1, *square.shape))[0]


def photograph(images: Tensor, lighting: Tensor, generator: torch.Generator) -> Tensor:
    """What the camera gives: exposed, with shot noise, cut off and rounded to eight bits.

    Args:
        images: (N, 3, S, S), linear.
        lighting: (N,), exposure factors.
        generator: of the noise.

    Returns:
        (N, 3, S, S), from 0 to 1.
    """
    signal = expose(images, lighting, clip=False)
    noise = torch.randn(signal.shape, generator=generator).to(signal.device)
    return expose((signal + (signal / PHOTONS).sqrt() * noise), 1.0)


def record_events(images: Tensor, lighting: Tensor, flow: Tensor, generator: torch.Generator) -> Tensor:
    """What the event sensor gives: events of the exposed image before it is cut off, with noise.

    Args:
        images: (N, 3, S, S), linear.
        lighting: (N,), exposure factors.
        flow: (N, 2) or (2,), pixels.
        generator: of the noise.

    Returns:
        Counts (N, 2, S, S).
    """
    events = synthesize_events(expose(images, lighting, clip=False), flow)
    return sensor_noise(events, RANDOM, DROPPED, MOST_RANDOM, generator)


@dataclass(frozen=True)
class Recording:
    """Test scenes in all lightings: each scene has one flow, and each lighting noise of its own.

    Attributes:
        photographs: (L, N, 3, S, S).
        events: (L, N, 2, S, S).
        elsewhere: (N,), bool, scenes whose flow is at least 45 degrees away from the fixed one and its opposite.
    """

    photographs: Tensor
    events: Tensor
    elsewhere: Tensor


def record(scenes: Scenes, generator: torch.Generator) -> Recording:
    """Photograph scenes in every lighting.

    Args:
        scenes: N of them.
        generator: of flows and noise.

    Returns:
        What camera and event sensor give.
    """
    flow = random_flow(len(scenes), generator=generator)
    lighting = [torch.full((len(scenes),), factor) for factor in LIGHTINGS]
    angle = torch.atan2(flow[:, 1], flow[:, 0]) - math.atan2(FIXED_FLOW[1], FIXED_FLOW[0])
    return Recording(
        torch.stack([photograph(scenes.images, each, generator) for each in lighting]),
        torch.stack([record_events(scenes.images, each, flow, generator) for each in lighting]),
        angle.cos().abs() <= math.cos(math.pi / 4) + 1e-6,
    )
