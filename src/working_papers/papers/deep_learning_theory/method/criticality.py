"""Criticality of an activation: susceptibilities, the critical point, the universality class.

Letters: K = kernel, g(K) = ⟨σ²⟩_K, F(K) = C_b + C_W g(K), one layer's map of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from working_papers.papers.deep_learning_theory.method.gaussian import (
    REACH,
    Activation,
    as_kernel,
    homogeneous_slopes,
    in_double,
    kinks_of,
    nodes,
    slopes_at_zero,
    value_and_slope,
    value_at_zero,
)

Kind = Literal["scale_invariant", "k_star_zero", "half_stable", "none"]

SMALLEST, LARGEST, GRID = 1e-6, 1e3, 400  # kernels among which critical points are sought
NOISE = 1e-9  # of χ_∥ / χ_⊥ - 1 and of F(K) / K - 1; smaller numbers have no sign
PIECES, SUBDIVISIONS = 32, 9  # 32^9 = 3.5e13 pieces of an interval of the grid
CONSISTENCY = 1e-6  # between two formulas for χ_∥ that agree unless the activation jumps or has an unknown kink


@dataclass(frozen=True)
class CriticalPoint:
    """The initialisation at which neither signals nor gradients grow or shrink exponentially with depth.

    Biases are to have variance C_b, weights variance C_W / fan_in.

    Attributes:
        kind: the universality class. "scale_invariant": straight lines through the origin, any kernel is a fixed point.
            "k_star_zero": the kernel decays like a power of depth. "half_stable": the kernel tends to K_star from one
            side and leaves it on the other. "none": there is no critical point.
        C_b: variance of the biases; None without a critical point.
        C_W: variance of the weights times fan_in; None without a critical point.
        K_star: the kernel's fixed point; None where there is none, or where every kernel is one.
        stable_from: for "half_stable", the side from which the kernel tends to K_star.

    Source: book, sections 5.2 (scale-invariant) and 5.3 (the other classes).
    """

    kind: Kind
    C_b: float | None = None
    C_W: float | None = None
    K_star: float | None = None
    stable_from: Literal["below", "above"] | None = None

    @property
    def input_square(self) -> float | None:
        """Mean square of an input's entries (x · x / n_0) for which the first layer has the kernel K_star.

        None where any input will do.
        """
        if self.kind != "half_stable":
            return None
        assert self.K_star is not None and self.C_b is not None and self.C_W is not None
        return (self.K_star - self.C_b) / self.C_W


def susceptibilities(act: Activation, kernel: float | Tensor, C_W: float) -> tuple[Tensor, Tensor]:
    """How one layer multiplies small differences between two inputs: χ_∥ in length, χ_⊥ across.

    χ_∥ = C_W g'(K) and χ_⊥ = C_W ⟨σ'²⟩_K; the latter is also what a layer multiplies squared gradients by. The
    derivative is computed as g'(K) = ⟨z σ σ'⟩_K / K, the book's ⟨σ² (z² - K)⟩_K / (2 K²) after one integration by
    parts: it needs no second derivative and loses no digits at small K.

    Args:
        act: the activation; it may have kinks, but no jumps.
        kernel: K, a number or any shape, above 0.
        C_W: variance of the weights times fan_in, above 0.

    Returns:
        χ_∥ and χ_⊥, float64, the shape of `kernel`.

    Raises:
        ValueError: kernel or C_W that is not positive; an activation that is not elementwise.

    Source: book, section 5.1.
    """
    kernel = as_kernel(kernel)
    if not bool((kernel > 0).all()):
        raise ValueError(f"kernel is {kernel.tolist()}; expected numbers above 0")
    check_variances(0.0, C_W)
    growth, slope_square, _ = averages(in_double(act), kernel)
    return C_W * growth, C_W * slope_square


def find_critical(act: Activation) -> CriticalPoint:
    """The critical point of any activation: C_b, C_W and K* with K* = F(K*) and χ_∥ = χ_⊥ = 1.

    C_W = 1 / ⟨σ'²⟩_K makes χ_⊥ one; the roots of χ_∥ - 1 along this line are bracketed on a logarithmic grid from 1e-6
    to 1e3 and refined by subdivision; C_b = K - C_W g(K) must not be negative. Before that, straight lines through
    the origin are recognised, and activations whose kernel is drawn to zero (σ(0) = 0, F(K) < K nearby). The latter
    may have different slopes left and right of zero, as SELU does, which the book does not treat. Of several
    critical points the one with the smallest kernel is returned.

    Args:
        act: the activation.

    Returns:
        The point and its universality class; kind "none" if there is no critical point.

    Raises:
        ValueError: an activation that is not elementwise, jumps, or has an undeclared kink (see `Kinked`).

    Source: book, section 5.3; the tabulated constants of GELU and SWISH (section 5.3.4) are met to all their digits.
    """
    act = in_double(act)
    left, right = slopes_at_zero(act)
    square = (left**2 + right**2) / 2
    if homogeneous_slopes(act) is not None:
        return CriticalPoint("scale_invariant", 0.0, 1 / square) if square else CriticalPoint("none")
    if square and _draws_to_zero(act, square):
        return CriticalPoint("k_star_zero", 0.0, 1 / square, 0.0)
    for kernel in _roots(act):
        K = torch.tensor(kernel, dtype=torch.float64)
        growth, slope_square, mean_square = averages(act, K)
        C_W = 1 / float(slope_square)
        C_b = kernel - C_W * float(mean_square)
        if C_b < -NOISE * max(1.0, kernel):
            continue
        first, second = _derivatives(act, K)
        if abs(float(first / growth) - 1) > CONSISTENCY:
            raise ValueError(
                f"act has a jump or an undeclared kink: two formulas for its susceptibility at K = {kernel:.4g} give "
                f"{C_W * float(growth):.7g} and {C_W * float(first):.7g}; expected a continuous function, with kinks "
                "away from zero declared by Kinked(act, at=[...])"
            )
        return CriticalPoint("half_stable", max(C_b, 0.0), C_W, kernel, "below" if second > 0 else "above")
    return CriticalPoint("none")


def averages(act: Activation, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g'(K), ⟨σ'²⟩_K and g(K) at kernels above 0, each the shape of the kernel; the activation must be in float64."""
    u, weights = nodes(kernel, kinks_of(act))
    root = kernel.sqrt()[..., None]
    value, slope = value_and_slope(act, root * u)
    parts = (u * value * slope / root, slope.square(), value.square())
    growth, slope_square, mean_square = ((part * weights).sum(dim=-1) for part in parts)
    return growth, slope_square, mean_square


def _derivatives(act: Activation, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """g'(K) and g''(K) from values of the activation alone."""
    u, weights = nodes(kernel, kinks_of(act))
    square = act(kernel.sqrt()[..., None] * u).detach().square() * weights
    first = (square * (u.square() - 1)).sum(dim=-1) / (2 * kernel)
    second = (square * (u.pow(4) - 6 * u.square() + 3)).sum(dim=-1) / (4 * kernel.square())
    return first, second


def curvature(act: Activation, kernel: Tensor) -> Tensor:
    """g''(K) at kernels above 0, the shape of the kernel; the activation must be in float64."""
    return _derivatives(act, kernel)[1]


def _grid() -> Tensor:
    return torch.logspace(torch.tensor(SMALLEST).log10(), torch.tensor(LARGEST).log10(), GRID, dtype=torch.float64)


def _draws_to_zero(act: Activation, square: float) -> bool:
    """Whether small kernels shrink at C_b = 0 and C_W = 1 / square, and zero stays zero."""
    if abs(value_at_zero(act)) > 1e-12:
        return False
    kernel = _grid()
    change = averages(act, kernel)[2] / (square * kernel) - 1
    sure = (change.abs() > NOISE).nonzero()
    return len(sure) > 0 and bool(change[sure[0]] < 0)


def _roots(act: Activation) -> list[float]:
    """Kernels at which χ_∥ crosses one while χ_⊥ is one, from small to large."""

    def excess(kernel: Tensor) -> Tensor:
        growth, slope_square, _ = averages(act, kernel)
        return growth / slope_square - 1

    kernel = _grid()
    values = excess(kernel)
    sure = values.isfinite() & (values.abs() > NOISE) & _within_reach(act, kernel)
    values = torch.where(sure, values, torch.nan)  # NaN: no sign
    crossing = (values[:-1] * values[1:] < 0).nonzero().flatten().tolist()
    return [_refined(excess, kernel[i : i + 2]) for i in crossing]


def _refined(function: Callable[[Tensor], Tensor], bracket: Tensor) -> float:
    """Where a function changes its sign between two points: the interval is cut in pieces as often as doubles allow."""
    for _ in range(SUBDIVISIONS):
        points = torch.lerp(bracket[0], bracket[1], torch.linspace(0, 1, PIECES + 1, dtype=bracket.dtype))
        sign = function(points).sign()
        first = int((sign[1:] != sign[0]).nonzero()[0])
        bracket = points[first : first + 2]
    return float(bracket.mean())


def _within_reach(act: Activation, kernel: Tensor) -> Tensor:
    """Whether averages of σ² come from where the nodes are; at large K, exponentials outgrow them."""
    u, weights = nodes(kernel, kinks_of(act))
    square = act(kernel.sqrt()[..., None] * u).detach().square() * weights
    outside = torch.where(u.abs() > REACH - 1, square, 0.0).sum(dim=-1)
    return outside <= NOISE * square.sum(dim=-1)


def check_variances(C_b: float, C_W: float) -> None:
    """Raise ValueError unless C_b is 0 or more and C_W above 0."""
    if not 0 <= C_b < float("inf"):
        raise ValueError(f"C_b is {C_b}; expected a finite number of 0 or more")
    if not 0 < C_W < float("inf"):
        raise ValueError(f"C_W is {C_W}; expected a finite number above 0")
