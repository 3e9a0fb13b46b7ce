"""From fixations to reaction times, slopes and the asymmetry index."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MS_PER_FIXATION, MS_AT_ZERO = 252.359, 376.271
"""Reaction time for a number of fixations, fitted by the authors to human search in photographs."""


class SearchSlope(NamedTuple):
    """Least-squares line of reaction time over set size.

    Attributes:
        slope: milliseconds for each added item.
        intercept: milliseconds at no item.
    """

    slope: float
    intercept: float


def rt_slope(
    set_sizes: ArrayLike, fixations: ArrayLike, scale: float = MS_PER_FIXATION, offset: float = MS_AT_ZERO
) -> SearchSlope:
    """Line of mean reaction time over the number of items.

    Args:
        set_sizes: numbers of items [S], at least two different ones.
        fixations: saccades until the target was found, [S] or [S, displays] (then averaged).
        scale: milliseconds for each fixation.
        offset: milliseconds without any.

    Returns:
        Slope and intercept.

    Raises:
        ValueError: shapes that do not fit, or fewer than two set sizes.
    """
    sizes, counts = np.asarray(set_sizes, dtype=np.float64), np.asarray(fixations, dtype=np.float64)
    if sizes.ndim != 1 or len(np.unique(sizes)) < 2:
        raise ValueError(f"set_sizes is {sizes.tolist()}; expected a list of at least two different numbers")
    if counts.ndim not in (1, 2) or len(counts) != len(sizes):
        raise ValueError(f"fixations has shape {counts.shape}; expected ({len(sizes)},) or ({len(sizes)}, displays)")
    times = offset + scale * (counts if counts.ndim == 1 else counts.mean(axis=1))
    centred = sizes - sizes.mean()
    slope = float(centred @ times / (centred @ centred))
    return SearchSlope(slope, float(times.mean() - slope * sizes.mean()))


def asymmetry_index(slope_hard: ArrayLike, slope_easy: ArrayLike) -> NDArray[np.float64]:
    """How unequal two search slopes are: 1 where only the condition that is hard for people has a positive one.

    Args:
        slope_hard: milliseconds an item where people are slower; any shape.
        slope_easy: where they are faster; a shape that broadcasts.

    Returns:
        (hard - easy) / (hard + easy) in -1..1, negative slopes counting as zero; 0 where both are zero.
    """
    hard, easy = np.maximum(slope_hard, 0.0), np.maximum(slope_easy, 0.0)
    total = np.asarray(hard + easy, dtype=np.float64)
    index: NDArray[np.float64] = np.divide(hard - easy, total, out=np.zeros_like(total), where=total > 0)
    return index
