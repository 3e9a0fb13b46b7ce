"""Gaussian averages of an activation, of its slope, and of products at two correlated inputs.

Averages are sums over Gauss-Legendre panels with an edge wherever the activation has a kink, so that ReLU and its kin
are as exact as smooth functions; Gauss-Hermite, the usual choice, converges slowly there. Everything is in float64.

Letters: K = kernel (variance of a preactivation), u = z / √K, B = inputs, Q = quadrature nodes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn.arc_cosine import relu_kernel, relu_step_kernel

REACH = 10.0  # of u; the Gaussian's weight beyond is 1e-23
# Panels shrink towards zero: at K = 1000 an activation bends within |u| < 0.05.
EDGES = (*(2.0**-power for power in range(5, 0, -1)), *(0.5 * step for step in range(2, 21)))
PANEL_NODES = 20
HERMITE_TERMS = 128  # of the expansion in the correlation of two inputs
PAIR_TOLERANCE = 1e-10  # relative; pairs for which the expansion is not sure to reach it are integrated
ROUNDING = 1e-14  # of the squares that the expansion adds up to
SECTOR_NODES, RADIAL_NODES = 32, 10
RADIAL_EDGES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, REACH)
PAIR_BLOCK = 256  # pairs integrated at once, which bounds the memory


class Activation(Protocol):
    """Any elementwise function of a tensor that autograd can differentiate: a function of torch or an `nn.Module`."""

    def __call__(self, z: Tensor, /) -> Tensor:
        """The activation of every entry."""
        ...


class Kinked:
    """An activation together with the points at which its slope jumps, other than zero.

    Zero is always taken for a possible kink, and those of torch's own activations are known. For another function
    with kinks elsewhere, Gaussian averages are only exact if it is wrapped:

        find_critical(Kinked(lambda z: z.clamp(-2, 2), at=[-2.0, 2.0]))

    Args:
        activation: the function.
        at: where its slope jumps.
    """

    def __init__(self, activation: Activation, at: Sequence[float]) -> None:
        if not all(math.isfinite(point) for point in at):
            raise ValueError(f"at is {list(at)}; expected finite numbers")
        self.activation = activation
        self.at = tuple(float(point) for point in at)

    def __call__(self, z: Tensor, /) -> Tensor:
        """The activation of every entry."""
        return self.activation(z)


def kinks_of(act: Activation) -> tuple[float, ...]:
    """Where the slope of the activation jumps, other than at zero, as far as it is known."""
    if isinstance(act, Kinked):
        return act.at
    if isinstance(act, nn.Hardtanh):  # ReLU6, too
        return (act.min_val, act.max_val)
    if isinstance(act, nn.Softshrink | nn.Hardshrink):
        return (-act.lambd, act.lambd)
    if isinstance(act, nn.Threshold):
        return (act.threshold,)
    if isinstance(act, nn.Hardswish | nn.Hardsigmoid) or act in (F.hardswish, F.hardsigmoid):
        return (-3.0, 3.0)
    if act is F.hardtanh:
        return (-1.0, 1.0)
    if act is F.relu6:
        return (6.0,)
    return (-0.5, 0.5) if act in (F.softshrink, F.hardshrink) else ()


def in_double(act: Activation) -> Activation:
    """The activation in float64; a module is copied, its parameters frozen, and put in evaluation mode."""
    if isinstance(act, Kinked):
        return Kinked(in_double(act.activation), act.at)
    return copy.deepcopy(act).double().eval().requires_grad_(False) if isinstance(act, nn.Module) else act


def value_and_slope(act: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    """The activation and its derivative at every entry of z.

    Raises:
        ValueError: the activation is not elementwise.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = act(z)
        if not isinstance(value, Tensor) or value.shape != z.shape:
            raise ValueError(
                f"act maps a tensor of shape {tuple(z.shape)} to {_described(value)}; expected the same shape"
            )
        if not value.requires_grad:  # a constant
            return value, torch.zeros_like(value)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def _described(value: object) -> str:
    return f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def slopes_at_zero(act: Activation) -> tuple[float, float]:
    """Slopes just left and just right of zero."""
    _, slope = value_and_slope(act, torch.tensor([-1e-15, 1e-15], dtype=torch.float64))
    return float(slope[0]), float(slope[1])


def value_at_zero(act: Activation) -> float:
    """σ(0)."""
    return float(act(torch.zeros(1, dtype=torch.float64)).detach())


def homogeneous_slopes(act: Activation) -> tuple[float, float] | None:
    """Slopes (left, right) of an activation made of two straight lines that meet at the origin; None for all others."""
    left, right = slopes_at_zero(act)
    scales = torch.tensor([1e-6, 1e-3, 0.1, 0.7, 1.0, 3.0, 17.0, 400.0], dtype=torch.float64)
    z = torch.cat([-scales, scales])
    expected = torch.where(z > 0, right * z, left * z)
    straight = torch.allclose(act(z).detach(), expected, rtol=1e-12, atol=0)
    return (left, right) if straight and value_at_zero(act) == 0 else None


def nodes(kernel: Tensor, kinks: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """Nodes u and weights for averages over a standard normal, with panel edges at zero and at kinks / √K.

    Args:
        kernel: K, any shape.
        kinks: points of z at which panels must end.

    Returns:
        u and weights, (Q,) without kinks, otherwise (..., Q).
    """
    points, weights = (part.to(kernel) for part in _legendre(PANEL_NODES))
    edges = torch.tensor((*(-edge for edge in reversed(EDGES)), 0.0, *EDGES), dtype=kernel.dtype, device=kernel.device)
    kinks = [kink for kink in kinks if kink != 0]
    if kinks:
        own = kernel.new_tensor(kinks) / kernel.clamp_min(1e-300).sqrt()[..., None]
        edges = torch.cat([edges.expand(*own.shape[:-1], -1), own.clamp(-REACH, REACH)], dim=-1).sort(dim=-1).values
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    u = low + (high - low) * points
    density = (-u.square() / 2).exp() / math.sqrt(2 * math.pi)
    return u.flatten(-2), ((high - low) * weights * density).flatten(-2)


@lru_cache(maxsize=8)
def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def gaussian_mean(function: Activation, kernel: float | Tensor, *, kinks: Sequence[float] | None = None) -> Tensor:
    """The average ⟨f⟩_K = E[f(z)] over z ~ N(0, K).

    Exact to about 1e-13 for functions that are smooth but for kinks or jumps at zero and at `kinks`.

    Args:
        function: elementwise, called with tensors (..., Q).
        kernel: K, a number or any shape, 0 or more.
        kinks: where the function or its slope jumps, other than at zero; by default those known of it.

    Returns:
        (...) float64, the shape of `kernel`. Differentiable with respect to the kernel, and to what a plain
        function uses (a module is copied).

    Raises:
        ValueError: a negative kernel, or a function that changes the shape.

    Source: the averages ⟨·⟩ of the book's chapter 4.
    """
    kernel = as_kernel(kernel)
    function = in_double(function)
    u, weights = nodes(kernel.detach(), kinks_of(function) if kinks is None else kinks)
    z = kernel.sqrt()[..., None] * u
    value = function(z)
    if not isinstance(value, Tensor) or value.shape != z.shape:
        raise ValueError(
            f"function maps a tensor of shape {tuple(z.shape)} to {_described(value)}; expected the same shape"
        )
    return (value * weights).sum(dim=-1)


def as_kernel(kernel: float | Tensor, name: str = "kernel") -> Tensor:
    """A kernel as float64; ValueError where it is negative or not finite."""
    tensor = torch.as_tensor(kernel, dtype=torch.float64)
    if not bool(((tensor >= 0) & tensor.isfinite()).all()):
        raise ValueError(f"{name} is {kernel}; expected finite numbers of 0 or more")
    return tensor


def pair_means(act: Activation, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """⟨σ_a σ_b⟩ and ⟨σ'_a σ'_b⟩ for all pairs of inputs.

    Straight lines through the origin have closed forms (arc-cosine kernels). All others are expanded in powers of the
    correlation, ⟨f_a f_b⟩ = Σ_k ρ^k c_k(K_aa) c_k(K_bb), with Hermite coefficients c_k; what is left out is known from
    the diagonal, and pairs for which it matters (kinks, at correlations near one) are integrated in polar coordinates.

    Args:
        act: the activation, in float64.
        kernel: (B, B) float64, positive semidefinite.

    Returns:
        Two symmetric (B, B).

    Source: book, chapters 4 and 8 (the averages of its recursions); Mehler's formula.
    """
    diagonal = kernel.diagonal()
    lengths = torch.outer(diagonal, diagonal).sqrt()
    correlation = torch.where(lengths > 0, kernel / lengths.clamp_min(1e-300), 0.0).clamp(-1, 1)
    correlation.fill_diagonal_(1.0)
    slopes = homogeneous_slopes(act)
    if slopes is not None:
        left, right = slopes
        squares, cross = left**2 + right**2, 2 * left * right
        values = lengths * (squares * relu_kernel(correlation) - cross * relu_kernel(-correlation))
        steps = squares * relu_step_kernel(correlation) + cross * relu_step_kernel(-correlation)
        return values, steps
    u, weights = nodes(diagonal, kinks_of(act))
    value, slope = value_and_slope(act, diagonal.sqrt()[:, None] * u)
    if len(kernel) == 1:
        single = [(part.square() * weights).sum(dim=-1, keepdim=True) for part in (value, slope)]
        return single[0], single[1]
    expanded = []
    unsure = torch.zeros_like(correlation, dtype=torch.bool)
    for function in (value, slope):
        square = (function.square() * weights).sum(dim=-1)
        mean, left_out = _expansion(function, u, weights, square, correlation)
        mean.diagonal().copy_(square)
        bound = correlation.abs().pow(HERMITE_TERMS) * torch.outer(left_out, left_out).sqrt()
        unsure |= bound > PAIR_TOLERANCE * torch.outer(square, square).sqrt()
        expanded.append(mean)
    rows, columns = unsure.triu(1).nonzero(as_tuple=True)
    for a, b in zip(rows.split(PAIR_BLOCK), columns.split(PAIR_BLOCK), strict=True):
        found = _polar_means(act, diagonal[a], diagonal[b], correlation[a, b])
        for mean, part in zip(expanded, found, strict=True):
            mean[a, b] = mean[b, a] = part
    return expanded[0], expanded[1]


def _expansion(
    function: Tensor, u: Tensor, weights: Tensor, square: Tensor, correlation: Tensor
) -> tuple[Tensor, Tensor]:
    """The expansion (B, B) in the correlation, and what it leaves of the square (B,)."""
    weighted = function * weights
    before, now = torch.zeros_like(u), torch.ones_like(u)  # normalised Hermite polynomials
    power = torch.ones_like(correlation)
    mean, rest = torch.zeros_like(correlation), square.clone()
    for k in range(HERMITE_TERMS):
        coefficient = (weighted * now).sum(dim=-1)
        mean += power * torch.outer(coefficient, coefficient)
        rest -= coefficient.square()
        if k % 8 == 7 and bool((rest <= ROUNDING * square).all()):
            break  # smooth activations need few terms
        power = power * correlation
        before, now = now, (u * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return mean, rest.clamp_min(0)


def _polar_means(act: Activation, first: Tensor, second: Tensor, correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Averages of products (P,) for pairs with variances and correlation (P,), in polar coordinates.

    With z_a = √K_a r cos φ and z_b = √K_b r cos(φ - θ), cos θ = ρ, kinks at zero are rays and all others end panels of
    r, so that each panel is smooth.
    """
    theta = torch.acos(correlation)[:, None, None]
    points, weights = (part.to(correlation) for part in _legendre(SECTOR_NODES))
    half = math.pi / 2
    rays = torch.cat([theta - half, half + 0 * theta, theta + half, 3 * half + 0 * theta, theta + 3 * half], dim=1)
    width = rays[:, 1:] - rays[:, :-1]
    phi = (rays[:, :-1] + width * points).flatten(1)  # (P, angles)
    angle_weight = (width * weights).flatten(1) / (2 * math.pi)
    a, b = first.sqrt()[:, None] * phi.cos(), second.sqrt()[:, None] * (phi - theta[:, 0]).cos()

    edges = correlation.new_tensor((0.0, *RADIAL_EDGES)).expand(*a.shape, -1)
    kinks = [kink for kink in kinks_of(act) if kink != 0]
    if kinks:
        along = torch.cat([correlation.new_tensor(kinks) / part[..., None] for part in (a, b)], dim=-1)
        along = torch.where((along > 0) & (along < REACH), along, REACH)
        edges = torch.cat([edges, along], dim=-1).sort(dim=-1).values
    points, weights = (part.to(correlation) for part in _legendre(RADIAL_NODES))
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    r = (low + (high - low) * points).flatten(-2)
    weight = ((high - low) * weights).flatten(-2) * r * (-r.square() / 2).exp() * angle_weight[..., None]
    value_a, slope_a = value_and_slope(act, a[..., None] * r)
    value_b, slope_b = value_and_slope(act, b[..., None] * r)
    return (value_a * value_b * weight).sum(dim=(-2, -1)), (slope_a * slope_b * weight).sum(dim=(-2, -1))
