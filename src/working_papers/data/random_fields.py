"""Random input functions and the equations they drive: data for networks that learn operators.

Functions are drawn by their values at given points: Gaussian random fields, on a torus too, and polynomials with
random coefficients. The solvers turn many input functions at once into the functions that an operator maps them to.
Everything is computed in float64, because covariance matrices of smooth fields are singular in float32.

Letters: n = functions, G = points of a grid, Q = query points, d = dimension of space, T = points in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

JITTERS = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)
"""Shares of the variance that are added to the covariance's diagonal, the first for which Cholesky succeeds."""


def gaussian_random_field(
    count: int,
    points: Tensor,
    length_scale: float = 0.2,
    *,
    variance: float = 1.0,
    period: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw functions from a Gaussian process with mean 0 and the covariance variance · exp(-r² / (2 length_scale²)).

    Args:
        count: number of functions n.
        points: (G,) or (G, d), where the functions are wanted; on any device.
        length_scale: distance over which values are alike, in the unit of the points.
        variance: of the value at each point.
        period: makes the functions periodic in every coordinate; r is then measured along the chord of a circle of
            this circumference, which is a valid covariance and for r much below the period the same one.
        generator: of the draws.

    Returns:
        (n, G), float64, on the device of the points.

    Raises:
        ValueError: a number is not positive, the points have another shape, or lie so close together for the length
            that the covariance cannot be factored.
    """
    _expect_positive(count=count, length_scale=length_scale, variance=variance)
    if period is not None:
        _expect_positive(period=period)
    if points.ndim not in (1, 2) or len(points) == 0:
        raise ValueError(f"points has shape {tuple(points.shape)}; expected (G,) or (G, d) with G > 0")
    places = points.double().reshape(len(points), -1)
    difference = places[:, None] - places[None, :]
    if period is not None:
        difference = period / math.pi * torch.sin(math.pi / period * difference)
    covariance = variance * torch.exp(-difference.square().sum(dim=-1) / (2 * length_scale**2))
    return _standard_normal(count, len(places), generator).to(places.device) @ _cholesky(covariance, variance).mT


def periodic_random_field(
    count: int,
    shape: tuple[int, ...],
    *,
    smoothness: float = 2.5,
    inverse_length: float = 7.0,
    scale: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw functions on the unit torus from the measure N(0, scale² (-Laplacian + inverse_length²)^-smoothness).

    The constant mode is left out, so that every function has mean zero. The draw costs one Fourier transform.

    Args:
        count: number of functions n.
        shape: grid points along each axis; the grid has spacing 1 / points and leaves out the right end.
        smoothness: the exponent; must exceed half the number of axes for the variance to be finite on fine grids.
        inverse_length: wave numbers above it are damped.
        scale: by default inverse_length^(smoothness - axes / 2), which keeps the variance of the order of one.
        generator: of the draws.

    Returns:
        (n, *shape), float64, on the generator's device.

    Raises:
        ValueError: a number is not positive, or the smoothness is too small.

    Source: the input measure of the Fourier neural operator's experiments (arXiv 2010.08895, appendix A.3).
    """
    _expect_positive(count=count, inverse_length=inverse_length)
    if not shape or min(shape) < 1:
        raise ValueError(f"shape is {shape}; expected at least one axis of positive length")
    if not smoothness > len(shape) / 2:
        raise ValueError(f"smoothness is {smoothness}; expected more than {len(shape) / 2} for {len(shape)} axes")
    if scale is None:
        scale = inverse_length ** (smoothness - len(shape) / 2)
    _expect_positive(scale=scale)
    numbers = math.prod(shape)
    noise = _standard_normal(count, numbers, generator).reshape(count, *shape)
    waves = [torch.fft.fftfreq(points, 1 / points, dtype=torch.float64, device=noise.device) for points in shape[:-1]]
    waves.append(torch.fft.rfftfreq(shape[-1], 1 / shape[-1], dtype=torch.float64, device=noise.device))
    squared = torch.stack(torch.meshgrid(*waves, indexing="ij")).square().sum(dim=0)
    deviation = scale * (4 * math.pi**2 * squared + inverse_length**2) ** (-smoothness / 2)
    deviation[(0,) * len(shape)] = 0
    axes = tuple(range(1, len(shape) + 1))
    field: Tensor = torch.fft.irfftn(torch.fft.rfftn(noise, dim=axes) * deviation, s=shape, dim=axes)
    return field * math.sqrt(numbers)


def chebyshev_functions(
    count: int, points: Tensor, terms: int = 20, bound: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw sums of Chebyshev polynomials on [0, 1] with coefficients uniform in [-bound, bound].

    Args:
        count: number of functions n.
        points: (G,), in [0, 1].
        terms: number of polynomials, of degree 0 to terms - 1.
        bound: largest absolute value of a coefficient.
        generator: of the draws.

    Returns:
        (n, G), float64.

    Raises:
        ValueError: a number is not positive, or a point lies outside [0, 1].

    Source: one of the two input spaces of DeepONet (arXiv 1910.03193); there 20 terms and bound 1.
    """
    _expect_unit_interval(points)
    degrees = torch.arange(terms, dtype=torch.float64, device=points.device)
    angles = torch.arccos((2 * points.double() - 1).clamp(-1, 1))
    return _coefficients(count, terms, bound, generator).to(points.device) @ torch.cos(degrees[:, None] * angles)


def power_series_functions(
    count: int, points: Tensor, terms: int = 20, bound: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw polynomials on [0, 1] whose monomials have coefficients uniform in [-bound, bound].

    Args:
        count: number of functions n.
        points: (G,), in [0, 1].
        terms: number of monomials, of degree 0 to terms - 1.
        bound: largest absolute value of a coefficient.
        generator: of the draws.

    Returns:
        (n, G), float64.

    Raises:
        ValueError: a number is not positive, or a point lies outside [0, 1].
    """
    _expect_unit_interval(points)
    degrees = torch.arange(terms, dtype=torch.float64, device=points.device)
    return _coefficients(count, terms, bound, generator).to(points.device) @ points.double() ** degrees[:, None]


def interpolate(values: Tensor, grid: Tensor, points: Tensor) -> Tensor:
    """Read functions off between the points of a grid, linearly.

    Args:
        values: (n, G), the functions on the grid.
        grid: (G,), ascending, at least two points.
        points: (Q,), the same for all functions, or (n, Q), each function's own; inside the grid.

    Returns:
        (n, Q), dtype of the values.

    Raises:
        ValueError: shapes that do not fit, or a point outside the grid.
    """
    if values.ndim != 2 or grid.ndim != 1 or values.shape[1] != len(grid) or len(grid) < 2:
        raise ValueError(f"values has shape {tuple(values.shape)} on a grid {tuple(grid.shape)}; expected (n, G), (G,)")
    if points.ndim not in (1, 2) or (points.ndim == 2 and len(points) != len(values)):
        raise ValueError(f"points has shape {tuple(points.shape)}; expected (Q,) or ({len(values)}, Q)")
    if points.numel() and (points.min() < grid[0] or points.max() > grid[-1]):
        raise ValueError(
            f"points reach from {float(points.min())} to {float(points.max())}; "
            f"expected within the grid, {float(grid[0])} to {float(grid[-1])}"
        )
    points = points.to(grid.dtype).expand(len(values), -1).contiguous()
    right = torch.searchsorted(grid, points).clamp(1, len(grid) - 1)
    share = ((points - grid[right - 1]) / (grid[right] - grid[right - 1])).to(values.dtype)
    return torch.lerp(values.gather(1, right - 1), values.gather(1, right), share)


def antiderivative(source: Tensor, grid: Tensor) -> Tensor:
    """Integrate functions from the left end of the grid, by the trapezoidal rule (second order).

    Args:
        source: (n, G).
        grid: (G,), ascending.

    Returns:
        (n, G); zero at the first point.

    Raises:
        ValueError: the shapes do not fit.
    """
    _expect_on_grid(source, grid)
    integral: Tensor = torch.cumulative_trapezoid(source, grid.to(source.dtype), dim=1)
    return torch.nn.functional.pad(integral, (1, 0))


def solve_ode(rate: Callable[[Tensor, Tensor], Tensor], start: Tensor, source: Tensor, grid: Tensor) -> Tensor:
    """Solve ds/dt = rate(s, u(t)) for many source functions u at once, by the classical Runge-Kutta method.

    The source is interpolated linearly between grid points, which makes the result second order in the spacing; for a
    source that does not vary, or varies linearly, it is fourth order.

    Args:
        rate: takes s (n, k) and u (n,) and returns (n, k).
        start: (k,) or (n, k), s at the first grid point.
        source: (n, G).
        grid: (G,), times, ascending.

    Returns:
        (n, G, k), dtype of the source.

    Raises:
        ValueError: the shapes do not fit.
    """
    _expect_on_grid(source, grid)
    if start.ndim not in (1, 2) or (start.ndim == 2 and len(start) != len(source)):
        raise ValueError(f"start has shape {tuple(start.shape)}; expected (k,) or ({len(source)}, k)")
    state = start.to(source).expand(len(source), -1)
    states = [state]
    middle = (source[:, :-1] + source[:, 1:]) / 2
    for step, width in enumerate(grid.diff().tolist()):
        first = rate(state, source[:, step])
        second = rate(state + width / 2 * first, middle[:, step])
        third = rate(state + width / 2 * second, middle[:, step])
        fourth = rate(state + width * third, source[:, step + 1])
        state = state + width / 6 * (first + 2 * second + 2 * third + fourth)
        states.append(state)
    return torch.stack(states, dim=1)


def solve_diffusion_reaction(
    source: Tensor, diffusion: float = 0.01, reaction: float = 0.01, *, times: int = 100, duration: float = 1.0
) -> Tensor:
    """Solve s_t = diffusion · s_xx + reaction · s² + u(x) on [0, 1] from zero, with zero at both ends.

    Crank-Nicolson with the reaction linearised about the last step: second order in space and time. All functions
    share one banded solve per step.

    Args:
        source: (n, G), u on the evenly spaced grid from 0 to 1 with both ends, G > 2.
        diffusion: the diffusion coefficient, not negative.
        reaction: the reaction rate.
        times: number T of points in time, 0 and `duration` among them; at least 2.
        duration: the last time.

    Returns:
        (n, G, T), dtype and device of the source; computed on the CPU in float64, without gradients.

    Raises:
        ValueError: an argument out of range, or a solution that grew beyond all numbers.

    Source: the data of DeepONet's diffusion-reaction example (arXiv 1910.03193), there with both coefficients 0.01.
    """
    import numpy as np
    from scipy.linalg import solve_banded

    if source.ndim != 2 or source.shape[1] < 3:
        raise ValueError(f"source has shape {tuple(source.shape)}; expected (n, G) with G > 2")
    if diffusion < 0 or times < 2 or not duration > 0:
        raise ValueError(
            f"diffusion={diffusion}, times={times}, duration={duration}; "
            "expected diffusion >= 0, times >= 2, duration > 0"
        )
    force = source.detach().cpu().double().numpy()[:, 1:-1]
    functions, inner = force.shape
    width, step = 1 / (source.shape[1] - 1), duration / (times - 1)
    coupling = diffusion / (2 * width**2)
    # One matrix for all functions: the ends of neighbouring functions lie side by side and are not coupled.
    bands = np.zeros((3, functions, inner))
    bands[0, :, 1:] = bands[2, :, :-1] = -coupling
    state = np.zeros_like(force)
    states = np.zeros((times, functions, source.shape[1]))
    for time in range(1, times):
        slope = reaction * state  # half the derivative of the reaction
        bands[1] = 1 / step + 2 * coupling - slope
        known = state * (1 / step - 2 * coupling - slope) + force + reaction * state**2
        known[:, 1:] += coupling * state[:, :-1]
        known[:, :-1] += coupling * state[:, 1:]
        state = solve_banded((1, 1), bands.reshape(3, -1), known.ravel(), check_finite=False).reshape(force.shape)
        states[time, :, 1:-1] = state
    if not np.isfinite(states).all():
        raise ValueError(f"reaction={reaction} makes the solution grow beyond all numbers before {duration}")
    return torch.from_numpy(states).permute(1, 2, 0).to(source)


def _cholesky(covariance: Tensor, variance: float) -> Tensor:
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor: Tensor
    for jitter in JITTERS:
        factor, failed = torch.linalg.cholesky_ex(covariance + jitter * variance * identity)
        if not failed:
            return factor
    raise ValueError("points: the covariance of these points cannot be factored; take fewer, or a smaller length_scale")


def _standard_normal(count: int, numbers: int, generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randn(count, numbers, generator=generator, dtype=torch.float64, device=device)


def _coefficients(count: int, terms: int, bound: float, generator: torch.Generator | None) -> Tensor:
    _expect_positive(count=count, terms=terms, bound=bound)
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand(count, terms, generator=generator, dtype=torch.float64, device=device)
    return bound * (2 * uniform - 1)


def _expect_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; expected a positive number")


def _expect_unit_interval(points: Tensor) -> None:
    if points.ndim != 1 or (points.numel() and (points.min() < 0 or points.max() > 1)):
        raise ValueError(f"points has shape {tuple(points.shape)}; expected (G,) with values from 0 to 1")


def _expect_on_grid(source: Tensor, grid: Tensor) -> None:
    if source.ndim != 2 or grid.ndim != 1 or source.shape[1] != len(grid) or len(grid) < 2:
        raise ValueError(f"source has shape {tuple(source.shape)} on a grid {tuple(grid.shape)}; expected (n, G), (G,)")
