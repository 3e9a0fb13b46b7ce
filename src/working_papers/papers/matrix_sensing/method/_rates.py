"""Rates: what they should be, from closed forms and from the linearised descent, and what an error curve shows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from working_papers.papers.matrix_sensing.method._factors import check_factors
from working_papers.papers.matrix_sensing.method._sensing import SensingOperator

RANK_TOLERANCE = 1e-10  # our choice: curvatures below this share of the largest one count as zero


def contraction_rate(
    operator: SensingOperator, left: Tensor, right: Tensor, learning_rate: float, *, tolerance: float = RANK_TOLERANCE
) -> Tensor:
    """The geometric rate at which two-factor gradient descent closes in on a solution: −log of the error's last factor.

    Near factors that reproduce the measurements the residual obeys r ← r − η J Jᵀ r, with J the Jacobian of the
    measurements in the factors. The slowest direction is the smallest curvature of J that is not zero. With every
    entry measured, the curvatures are λ_i(FFᵀ) + λ_j(GGᵀ), and a spare column leaves the smallest of FFᵀ.

    Args:
        operator: 𝒜.
        left: F, (..., n1, k), at or near a solution.
        right: G, (..., n2, k).
        learning_rate: η.
        tolerance: curvatures below this share of the largest one count as zero.

    Returns:
        (...), per step; inf where η times the curvature is 1, negative where the step is too large to converge.

    Raises:
        ValueError: the factors do not fit together.

    Source: linearisation, ours; the paper's bound exp(−Ω(α² T)) is its order of magnitude.
    """
    check_factors(left, right)
    # The measurements are linear in each factor, so that measuring unit factors gives the Jacobian's columns.
    by_left = operator.measure_product(_units(left), right)
    by_right = operator.measure_product(left, _units(right))
    jacobian = torch.cat([by_left, by_right]).movedim(0, -1)  # (..., m, (n1 + n2) k)
    curvature = torch.linalg.svdvals(jacobian).square()
    active = curvature > tolerance * curvature.amax(dim=-1, keepdim=True)
    factors = torch.where(active, (1 - learning_rate * curvature).abs(), torch.zeros_like(curvature))
    return -factors.amax(dim=-1).log()


def redundant_product(left: Tensor, right: Tensor, time: Tensor) -> Tensor:
    """The product f g of a spare pair of entries under gradient flow, where f² − g² stays what it was.

    f' = −f g² and g' = −g f² have a closed form. Equal scales fade like 1/(2t), unequal ones like
    exp(−|f² − g²| t): the two rates of the paper in one formula.

    Args:
        left: f at time 0, any shape.
        right: g at time 0; broadcasts.
        time: t of 0 or more, which is η times the number of steps; broadcasts.

    Returns:
        f g at time t.

    Source: the scalar case of the paper's two settings, solved by us.
    """
    small = torch.minimum(left.square(), right.square())
    gap = (left.square() - right.square()).abs()
    decay = torch.exp(-2 * gap * time)
    # (1 - exp(-2 gap t)) / gap, which tends to 2 t as the gap closes.
    safe = torch.where(gap > 0, gap, torch.ones_like(gap))
    filled = torch.where(gap > 0, -torch.expm1(-2 * gap * time) / safe, 2 * time)
    smaller = small * decay / (1 + small * filled)
    return torch.sign(left * right) * (smaller * (gap + smaller)).sqrt()


def symmetric_error(steps: Tensor, learning_rate: float, spare: int) -> Tensor:
    """The late error of the symmetric form with every entry measured: √spare / (2 η T).

    Each spare singular value of X obeys x ← x − η x³, so that x² tends to 1/(2 η T) whatever it started from.

    Args:
        steps: T, any shape, positive.
        learning_rate: η.
        spare: k − r, the number of columns that are not needed.

    Returns:
        Frobenius norm of X Xᵀ − truth, shape of `steps`.

    Source: the dynamics behind the paper's lower bound, whose Ω(1/T²) is for the squared error.
    """
    return math.sqrt(spare) / (2 * learning_rate * steps)


class RateFit(NamedTuple):
    """What `fit_rate` found, each of the batch's shape.

    Attributes:
        rate: of the best exp(−rate t).
        exponent: of the best t^exponent.
        geometric: whether the exponential fits better.
        deviation: root mean square deviation of the better fit in the logarithm.
    """

    rate: Tensor
    exponent: Tensor
    geometric: Tensor
    deviation: Tensor


def fit_rate(errors: Tensor, steps: Tensor, *, low: float = 1e-12, high: float = 1e-2) -> RateFit:
    """Fit an exponential and a power of the step to the tail of an error curve, by least squares of the logarithm.

    The tail is what lies between `low` and `high`, in the last decade of steps before `low` is reached, and both
    fits use the same points.

    Args:
        errors: positive numbers, (R, ...).
        steps: their steps, positive and increasing, (R,).
        low: errors from the first below this on are left out (rounding).
        high: errors above this are left out (transient).

    Returns:
        The fits, each of shape (...).

    Raises:
        ValueError: shapes that do not fit, a step that is not positive, or a curve with fewer than 3 usable points.
    """
    if steps.ndim != 1 or errors.ndim < 1 or len(errors) != len(steps):
        raise ValueError(
            f"errors and steps have shapes {tuple(errors.shape)} and {tuple(steps.shape)}; expected (R, ...) and (R,)"
        )
    if not bool((steps > 0).all()) or not bool((steps.diff() > 0).all()):
        raise ValueError("steps holds numbers that are not positive and increasing; leave step 0 out")
    time = steps.to(torch.float64).view(-1, *[1] * (errors.ndim - 1)).expand(errors.shape)
    usable = ((errors < low).cumsum(dim=0) == 0) & (errors <= high)
    last = torch.where(usable, time, torch.zeros_like(time)).amax(dim=0)
    usable = usable & (time >= last / 10)
    if not bool((usable.sum(dim=0) >= 3).all()):
        raise ValueError(f"errors has a curve with fewer than 3 points from {low:g} to {high:g}; run it for longer")
    logs = torch.where(usable, errors.to(torch.float64), torch.ones_like(time)).log()
    slope, geometric_deviation = _line(time, logs, usable)
    exponent, power_deviation = _line(time.log(), logs, usable)
    geometric = geometric_deviation < power_deviation
    return RateFit(-slope, exponent, geometric, torch.minimum(geometric_deviation, power_deviation))


def _units(factor: Tensor) -> Tensor:
    """Every factor with a single entry of 1: (n k, ..., n, k), the batch axes of length 1."""
    count = factor.shape[-2] * factor.shape[-1]
    eye = torch.eye(count, dtype=factor.dtype, device=factor.device)
    return eye.view(count, *[1] * (factor.ndim - 2), *factor.shape[-2:])


def _line(x: Tensor, y: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and root mean square deviation of the least-squares line through the usable points, along axis 0."""
    weight = usable.to(x.dtype) / usable.sum(dim=0)
    x = x - (weight * x).sum(dim=0)
    y = y - (weight * y).sum(dim=0)
    slope = (weight * x * y).sum(dim=0) / (weight * x.square()).sum(dim=0)
    return slope, (weight * (y - slope * x).square()).sum(dim=0).sqrt()
