"""Displays of six classical search tasks, drawn from their geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor


class Task(NamedTuple):
    """A search task.

    Attributes:
        hard: name of the condition in which people have the steeper slope.
        easy: of the other one.
        grid: cells on a side of the display.
        set_sizes: numbers of items.
        background: brightness around the items, 0..1.
    """

    hard: str
    easy: str
    grid: int
    set_sizes: tuple[int, ...]
    background: float


TASKS: Mapping[str, Task] = {
    "lighting": Task("left or right", "up or down", 4, (1, 6, 12), 27 / 255),
    "curvature": Task("straight among curved", "curved among straight", 6, (8, 16, 32), 0.0),
    "crossing": Task("cross among no cross", "no cross among cross", 3, (3, 6, 9), 1.0),
    "letters": Task("L among T", "T among L", 3, (3, 6, 9), 1.0),
    "orientation": Task("0 among 20", "20 among 0", 4, (1, 4, 8, 12), 1.0),
    "orientation among many": Task("20 among many", "0 among many", 4, (1, 4, 8, 12), 1.0),
}
"""The six tasks. Which condition is hard is read off the human slopes in the official repository."""

CURVE_RADIUS, CURVE_ANGLE = 1.0, 1.3  # degrees of visual angle; radians
DISTRACTOR_ANGLES = (-60.0, -40.0, -20.0, 40.0, 60.0, 80.0)  # of "orientation among many"; our choice


@dataclass(frozen=True)
class SearchDisplays:
    """A batch of displays.

    Attributes:
        images: brightness 0..1, [N, 1, E, E].
        targets: the target of each display alone, in the middle of a cell, [N, 1, s, s].
        cells: the cells of the grid, bool [n, E, E], row by row.
        items: which cells have an item, bool [N, n].
        target_cell: the target's cell, int64 [N].
        background: brightness around the items.
    """

    images: Tensor
    targets: Tensor
    cells: Tensor
    items: Tensor
    target_cell: Tensor
    background: float

    @property
    def target_region(self) -> Tensor:
        """The target's cell as a mask [N, E, E]."""
        return self.cells[self.target_cell]

    @property
    def item_cells(self) -> Tensor:
        """Masks [N, n, E, E] of the cells that have an item; those of the others are empty."""
        return self.cells & self.items[:, :, None, None]


def search_displays(
    task: str,
    condition: str,
    set_size: int,
    count: int,
    *,
    size: int = 339,
    display_deg: float = 11.3,
    jitter_deg: float = 0.2,
    generator: torch.Generator | None = None,
) -> SearchDisplays:
    """Draw displays with one target among distractors in random cells of a grid.

    Args:
        task: a key of `TASKS`.
        condition: the task's `hard` or `easy` condition, by name.
        set_size: number of items, the target among them.
        count: N, number of displays.
        size: E, side of the image in pixels.
        display_deg: side of the image in degrees of visual angle.
        jitter_deg: items lie up to this far from their cell's middle, in each direction.
        generator: source of randomness.

    Returns:
        The displays.

    Raises:
        ValueError: unknown task or condition, or numbers that do not fit.

    Source:
        Sizes of bars and arcs, grids, set sizes and backgrounds after the paper's section 3 and the official stimuli;
        jitter, letters and the angles among which a bar is searched ("orientation among many") are our choice.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(map(repr, TASKS))}")
    setup = TASKS[task]
    if condition not in (setup.hard, setup.easy):
        raise ValueError(f"condition is {condition!r}; expected {setup.hard!r} or {setup.easy!r}")
    places = setup.grid**2
    if not 1 <= set_size <= places:
        raise ValueError(f"set_size is {set_size}; expected 1 to {places}, the cells of {task!r}")
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    cell = size // setup.grid
    if cell < 4:
        raise ValueError(f"size is {size}; expected at least {4 * setup.grid} pixels for {setup.grid} cells a side")
    px_per_deg = size / display_deg

    order = torch.rand(count, places, generator=generator).argsort(dim=1)  # the first is the target's cell
    rank = order.argsort(dim=1)
    items, is_target = rank < set_size, rank == 0
    shift = (2 * torch.rand(count, places, 2, generator=generator) - 1) * jitter_deg
    # Drawn for all cells, targets first, so that both conditions of a task use up the same random numbers.
    quarter = torch.randint(4, (count, places), generator=generator)
    other = torch.randint(len(DISTRACTOR_ANGLES), (count, places), generator=generator)
    if task == "lighting":
        quarter = quarter[:, :1].expand(-1, places)  # all items of a display share the axis and the target's side
    role = torch.where(is_target, 0, 1)

    def draw(shift: Tensor, role: Tensor, quarter: Tensor, other: Tensor) -> Tensor:
        # Coordinates in degrees relative to each item, [..., s, s]: x to the right, y downwards.
        axis = (torch.arange(cell) + 0.5 - cell / 2) / px_per_deg
        x, y = axis - shift[..., 1, None, None], axis[:, None] - shift[..., 0, None, None]
        return _draw_item(task, condition == setup.hard, x, y, role, quarter, other, 1 / px_per_deg)

    patches = draw(shift, role, quarter, other)
    patches = torch.where(items[..., None, None], patches, setup.background)
    images = torch.full((count, 1, size, size), setup.background)
    first = (size - cell * setup.grid) // 2
    side = cell * setup.grid
    grid = patches.view(count, setup.grid, setup.grid, cell, cell).transpose(2, 3).reshape(count, 1, side, side)
    images[:, :, first : first + side, first : first + side] = grid

    row = torch.full((size,), -1)
    row[first : first + side] = torch.arange(side) // cell
    owner = torch.where((row[:, None] >= 0) & (row >= 0), row[:, None] * setup.grid + row, -1)
    cells = owner == torch.arange(places)[:, None, None]
    target_cell = order[:, 0]
    picked = torch.arange(count), target_cell
    targets = draw(torch.zeros(count, 2), torch.zeros(count, dtype=torch.int64), quarter[picked], other[picked])
    return SearchDisplays(images, targets[:, None], cells, items, target_cell, setup.background)


def _draw_item(
    task: str, hard: bool, x: Tensor, y: Tensor, role: Tensor, quarter: Tensor, other: Tensor, pixel: float
) -> Tensor:
    """Items of a task; `role` is 0 for targets and 1 for distractors. All lengths are in degrees."""
    swapped = role if hard else 1 - role  # 0: what is the target in the hard condition
    kind = swapped[..., None, None].bool()
    if task == "lighting":
        # Shading runs along x in the hard condition, along y in the easy one; targets are bright at either end.
        along = x if hard else y
        shade = torch.where((role + quarter)[..., None, None] % 2 == 0, -along, along) / 0.75
        inside = (0.5 + (0.75 - (x**2 + y**2).sqrt()) / pixel).clamp(0, 1)
        return TASKS[task].background * (1 - inside) + inside * (0.5 + 0.5 * shade).clamp(0, 1)
    if task == "curvature":
        angle = quarter[..., None, None] * (pi / 4)
        x, y = _rotated(x, y, angle)
        bar = stroke(bar_distance(x, y, 1.2), 0.2, pixel)
        sagitta = CURVE_RADIUS * (1 - cos(CURVE_ANGLE / 2))
        arc = stroke(arc_distance(x, y + sagitta / 2, CURVE_RADIUS, CURVE_ANGLE), 1 / 6, pixel)
        return torch.where(kind, arc, bar)
    if task in ("crossing", "letters"):
        angle = quarter[..., None, None] * (pi / 2)
        x, y = _rotated(x, y, angle)
        whole = bar_distance(x, y, 2.0)
        if task == "crossing":  # two bars that cross in the middle, or lie apart: a plus and a T with a gap
            first = torch.minimum(whole, bar_distance(y, x, 2.0))
            second = torch.minimum(bar_distance(x, y + 0.7, 2.0), bar_distance(y - 0.5, x, 1.0))
        else:
            upright = bar_distance(y, x, 2.0)
            first = torch.minimum(bar_distance(y, x + 0.85, 2.0), bar_distance(x, y - 0.85, 2.0))
            second = torch.minimum(upright, bar_distance(x, y + 0.85, 2.0))
        return 1 - stroke(torch.where(kind, second, first), 0.3, pixel)
    if task == "orientation":
        degrees = torch.where(kind, 20.0, 0.0)
    else:
        wanted = 20.0 if hard else 0.0
        degrees = torch.where(
            role[..., None, None] == 0, wanted, torch.tensor(DISTRACTOR_ANGLES)[other][..., None, None]
        )
    x, y = _rotated(x, y, degrees * (pi / 180))
    return 1 - stroke(bar_distance(y, x, 1.6), 0.3, pixel)


def _rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x


def bar_distance(x: Tensor, y: Tensor, length: float | Tensor) -> Tensor:
    """Distance of points from a segment along x, centred on the origin.

    Args:
        x: coordinate along the segment.
        y: coordinate across it, of a shape that broadcasts.
        length: of the segment.

    Returns:
        Distances, in the unit of the coordinates.
    """
    return torch.hypot((x.abs() - length / 2).clamp(min=0), y)


def arc_distance(x: Tensor, y: Tensor, radius: float | Tensor, angle: float | Tensor) -> Tensor:
    """Distance of points from an arc whose middle is at the origin and whose chord is parallel to x.

    Args:
        x: coordinate along the chord.
        y: coordinate towards the circle's centre, of a shape that broadcasts.
        radius: of the circle.
        angle: that the arc spans, in radians, at most pi.

    Returns:
        Distances, in the unit of the coordinates.
    """
    angle = torch.as_tensor(angle, dtype=x.dtype)
    towards = radius - y  # measured from the circle's centre, the arc's middle in the positive direction
    azimuth = torch.atan2(x.abs(), towards)
    end = torch.hypot(x.abs() - radius * (angle / 2).sin(), towards - radius * (angle / 2).cos())
    return torch.where(azimuth <= angle / 2, (torch.hypot(x, towards) - radius).abs(), end)


def stroke(distance: Tensor, width: float | Tensor, pixel: float) -> Tensor:
    """Ink of a line with smooth edges.

    Args:
        distance: of points from the line's axis.
        width: of the line.
        pixel: side of a pixel, over which edges fade.

    Returns:
        0..1, of the shape of `distance`.
    """
    return (0.5 + (width / 2 - distance) / pixel).clamp(0, 1)
