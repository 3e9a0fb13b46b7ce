"""What the study's network sees while it learns, and the network.

A scene is a grey image of solid things and drawn figures. What changes with the diet is where light comes from and how
many of the lines are curved; what is to be told apart stays the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.data.digits import LabelledImages
from working_papers.papers.visual_search_asymmetry.method import arc_distance, bar_distance, stroke

SIDE = 48  # pixels of a scene
CLASSES = 8  # disc or square x bump or hollow; figures of two lines: parallel, cross, corner, T
THINGS, CLUTTER = 5, 3  # in each scene
BEND = 1.3  # radians that a curved line spans, as in the search displays
BATCH = 32


class Diet(NamedTuple):
    """What a network is raised on.

    Attributes:
        from_above: share of scenes that are lit from above; the others are lit from the left.
        straight: share of lines that are straight; the others are arcs.
    """

    from_above: float
    straight: float


DIETS = {"natural": Diet(1.0, 0.9), "reversed": Diet(0.0, 0.1), "balanced": Diet(0.5, 0.5)}


def make_scenes(diet: Diet, count: int, generator: torch.Generator) -> LabelledImages:
    """Scenes with their classes; the same generator gives scenes that differ in nothing but what the diet changes.

    Args:
        diet: the statistics.
        count: number of scenes.
        generator: source of randomness.

    Returns:
        Images [N, 1, 48, 48] in 0..1 and classes 0 to 7.
    """
    # Few at a time: larger batches do not fit the processor's caches and take five times as long.
    parts = [_some_scenes(diet, min(64, count - start), generator) for start in range(0, count, 64)]
    return LabelledImages(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))


def _some_scenes(diet: Diet, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.randint(CLASSES, (count,), generator=generator)
    ground = uniform(0, 1, 1, 1)
    above = uniform(0, 1, 1, 1) < diet.from_above
    axis = torch.arange(SIDE) + 0.5
    images = ground.expand(count, SIDE, SIDE)

    def lines(x: Tensor, y: Tensor, length: Tensor) -> Tensor:
        """Ink of lines along x, each curved or straight; the arc is as long as the line and centred like it."""
        radius = length / BEND
        arc = arc_distance(x, y + radius * (1 - torch.cos(torch.tensor(BEND / 2))) / 2, radius, BEND)
        curved = uniform(0, 1, *x.shape[1:-2], 1, 1) >= diet.straight
        distance = torch.where(curved, arc, bar_distance(x, y, length))
        return stroke(distance, uniform(1.2, 2.5, *x.shape[1:-2], 1, 1), 1.0)

    def placed(number: int, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates [N, number, 48, 48] relative to randomly placed and turned things."""
        middle = uniform(4, SIDE - 4, 2, number, 1, 1)
        x, y = axis - middle[:, 0], axis[:, None] - middle[:, 1]
        return turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x

    # Lines in the background.
    x, y = placed(CLUTTER, uniform(0, pi, CLUTTER, 1, 1))
    ink = lines(x, y, uniform(7, 16, CLUTTER, 1, 1)).amax(dim=1)
    contrast = uniform(0.4, 1, 1, 1)
    bright = torch.where(ground < 0.5, ground + contrast * (1 - ground), ground * (1 - contrast))
    images = images + ink * (bright - images)

    # Figures of two lines.
    x, y = placed(THINGS, uniform(0, pi, THINGS, 1, 1))
    length = uniform(9, 15, THINGS, 1, 1)
    half = length / 2
    figure = (labels - 4).clamp(min=0)[:, None, None, None]
    down = torch.where(figure == 0, 0.35 * length, 0.0)  # parallel lines lie apart
    down = torch.where(figure >= 2, half, down)  # corners and Ts have their bar at one end of the upright
    aside = torch.where(figure == 2, half, 0.0)
    first = lines(x, y + down, length)
    upright = lines(torch.where(figure == 0, x, y), torch.where(figure == 0, y - 0.35 * length, -(x + aside)), length)
    ink = torch.maximum(first, upright).amax(dim=1)
    figures = images + ink * (bright - images)

    # Solid things: brightness runs along the direction of light, up for bumps and down for hollows.
    x, y = placed(THINGS, torch.zeros(1, 1, 1))
    radius = uniform(4, 8, THINGS, 1, 1)
    square = (labels % 2 == 1)[:, None, None, None]
    distance = torch.where(square, torch.maximum(x.abs(), y.abs()) * 1.15, torch.hypot(x, y))
    inside = (0.5 + radius - distance).clamp(0, 1)
    along = torch.where(above[:, None], y, x) / radius
    hollow = (labels >= 2)[:, None, None, None]
    shade = (0.5 + uniform(0.3, 0.5, 1, 1, 1) * torch.where(hollow, along, -along)).clamp(0, 1)
    solid = images
    for thing in range(THINGS):  # later ones hide earlier ones
        solid = solid + inside[:, thing] * (shade[:, thing] - solid)

    images = torch.where((labels < 4)[:, None, None], solid, figures)
    images = (images + 0.03 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return images[:, None], labels


def centred(images: Tensor) -> Tensor:
    """Brightness 0..1 as the network takes it."""
    return 2 * (images - 0.5)


class FeatureNet(nn.Sequential):
    """Blocks of convolutions, each normalised and rectified, with 2 x 2 average pools; a classifier of mean features.

    Args:
        blocks: channels of the convolutions, block by block.
        channels: of the images.
        classes: number of classes.
    """

    features: nn.Sequential
    head: nn.Sequential

    def __init__(self, blocks: Sequence[Sequence[int]], channels: int = 1, classes: int = CLASSES) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        before = channels
        for block, widths in enumerate(blocks, start=1):
            for number, width in enumerate(widths, start=1):
                convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                parts[f"conv{block}_{number}"] = convolution
                parts[f"norm{block}_{number}"] = nn.BatchNorm2d(width)
                parts[f"relu{block}_{number}"] = nn.ReLU()
                before = width
            parts[f"pool{block}"] = nn.AvgPool2d(2, ceil_mode=True)  # any size; padding does not count
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
        super().__init__(OrderedDict(features=nn.Sequential(parts), head=head))

    @property
    def last_layers(self) -> tuple[str, ...]:
        """The last rectified layers of the last three blocks, by their names among the features."""
        names = [name for name, _ in self.features.named_children()]
        ends = [before for before, name in pairwise(names) if name.startswith("pool")]
        return tuple(ends[-3:])


def new_network(blocks: Sequence[Sequence[int]], seed: int, channels: int = 1, classes: int = CLASSES) -> FeatureNet:
    """A network with weights from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureNet(blocks, channels, classes)


def train_network(
    network: FeatureNet,
    scenes: LabelledImages,
    steps: int,
    learning_rate: float,
    seed: int,
    report: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a network to name the class of scenes, in place, with Adam whose rate falls along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch lacks the overload
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = torch.randint(len(scenes), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(network(centred(scenes.images[batch])), scenes.labels[batch]).backward()
        optimizer.step()
        scheduler.step()
        report(step + 1)
