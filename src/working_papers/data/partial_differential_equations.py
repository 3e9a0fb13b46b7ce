"""Reference solutions of partial differential equations on a periodic line, computed without a network.

Convection-diffusion is solved exactly mode by mode, viscous Burgers by a pseudo-spectral method, inviscid Burgers along
its characteristics. Everything is computed in float64 and for many initial states at once.

Letters: G = points of a grid, T = points in time, Q = query points; `...` = any number of leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BISECTIONS = 60
"""Halvings of an interval of the order of one; more than float64 can tell apart."""

FINE = 4096
"""Points at which a given function is looked at for its range and slope."""


def periodic_grid(points: int, period: float = 2 * math.pi) -> Tensor:
    """Evenly spaced points on [0, period), the right end left out.

    Args:
        points: their number G.
        period: length of the line.

    Returns:
        (G,), float64.

    Raises:
        ValueError: a number that is not positive.
    """
    _expect_positive(points=points, period=period)
    return torch.arange(points, dtype=torch.float64) * (period / points)


def fourier_interpolate(values: Tensor, points: Tensor, period: float = 2 * math.pi) -> Tensor:
    """Read a periodic function off between grid points by its trigonometric polynomial.

    Args:
        values: (..., G), the function on `periodic_grid(G, period)`.
        points: (Q,), anywhere on the line.
        period: length of the line.

    Returns:
        (..., Q), float64; exact for functions with fewer than G / 2 waves.

    Raises:
        ValueError: an empty grid, points of another shape, or a period that is not positive.
    """
    _expect_positive(period=period)
    _expect_grid(values)
    _expect_line("points", points)
    return _at_points(torch.fft.rfft(values.double()), points, values.shape[-1], period)


def solve_convection_diffusion(
    initial: Tensor,
    times: Tensor,
    speed: float | Tensor,
    viscosity: float | Tensor,
    *,
    period: float = 2 * math.pi,
    points: Tensor | None = None,
) -> Tensor:
    """Solve u_t + speed · u_x = viscosity · u_xx on a periodic line, exactly for every wave of the grid.

    Args:
        initial: (..., G), u at time 0 on `periodic_grid(G, period)`.
        times: (T,), at least 0.
        speed: of the convection, a number or a tensor that broadcasts with the leading axes of the initial states.
        viscosity: not negative, a number or a tensor like the speed.
        period: length of the line.
        points: (Q,), where the solution is wanted; by default the grid.

    Returns:
        (..., T, G) or (..., T, Q), float64.

    Raises:
        ValueError: an argument out of range, or shapes that do not fit.

    Source: the solution is the sum of exp(-(viscosity k² + i speed k) t) times the Fourier coefficients.
    """
    _expect_positive(period=period)
    _expect_grid(initial)
    _expect_times(times)
    viscosity = _expect_viscosity(viscosity)
    grid = initial.shape[-1]
    wave = _waves(grid, period, initial.device)
    speed = torch.as_tensor(speed, dtype=torch.float64, device=initial.device)
    decay = viscosity.to(initial.device)[..., None] * wave**2 + 1j * speed[..., None] * wave
    elapsed = times.to(initial.device, torch.float64)[:, None]
    coefficients = torch.fft.rfft(initial.double())[..., None, :] * torch.exp(-decay[..., None, :] * elapsed)
    if points is None:
        field: Tensor = torch.fft.irfft(coefficients, n=grid)
        return field
    _expect_line("points", points)
    return _at_points(coefficients, points, grid, period)


def solve_burgers(
    initial: Tensor,
    times: Tensor,
    viscosity: float | Tensor,
    *,
    drift: float | Tensor = 0.0,
    period: float = 2 * math.pi,
    courant: float = 0.5,
    resolution: float = 1e-5,
) -> Tensor:
    """Solve the viscous Burgers equation u_t + (drift + u) u_x = viscosity · u_xx on a periodic line.

    Pseudo-spectral in space, with the upper third of the waves left out against aliasing; classical Runge-Kutta in
    time with diffusion, drift and mean velocity in the integrating factor, so that fast drifts cost no accuracy.

    Args:
        initial: (..., G), u at time 0 on `periodic_grid(G, period)`.
        times: (T,), at least 0, ascending.
        viscosity: not negative, a number or a tensor that broadcasts with the leading axes of the initial states.
        drift: constant velocity beside u, a number or a tensor like the viscosity.
        period: length of the line.
        courant: grid cells that the fastest point may cross in a step.
        resolution: largest share of the largest amplitude that the two highest kept waves may have; more means that the
            grid cannot show the solution.

    Returns:
        (..., T, G), float64, on the device of the initial states.

    Raises:
        ValueError: an argument out of range, or a grid too coarse for the front that forms.
    """
    _expect_positive(period=period, courant=courant, resolution=resolution)
    _expect_grid(initial)
    _expect_times(times)
    if len(times) > 1 and bool((times.diff() < 0).any()):
        raise ValueError(f"times falls from one to the next ({times.tolist()[:8]}); expected ascending times")
    viscosity = _expect_viscosity(viscosity).to(initial.device)[..., None]
    drift = torch.as_tensor(drift, dtype=torch.float64, device=initial.device)[..., None]
    grid = initial.shape[-1]
    state = initial.double()
    mean = state.mean(dim=-1, keepdim=True)
    wave = _waves(grid, period, initial.device)
    kept = torch.arange(len(wave), device=initial.device) <= grid // 3
    # What is left beside the mean is the field that steepens; all else is linear and goes into the factor.
    linear = -(viscosity * wave**2) - 1j * (drift + mean) * wave
    fastest = float((state - mean).abs().max())
    longest = courant * period / grid / fastest if fastest > 0 else math.inf

    def steepening(coefficients: Tensor) -> Tensor:
        field = torch.fft.irfft(coefficients, n=grid)
        change: Tensor = -0.5j * wave * torch.fft.rfft(field.square()) * kept
        return change

    leading = torch.broadcast_shapes(state.shape[:-1], linear.shape[:-1])
    coefficients = (torch.fft.rfft(state - mean) * kept).expand(*leading, -1)
    states, now = [], 0.0
    for time in times.tolist():
        steps = math.ceil((time - now) / longest)
        if time > now and steps == 0:
            coefficients = coefficients * torch.exp(linear * (time - now))
        elif steps:
            width = (time - now) / steps
            half = torch.exp(linear * (width / 2))
            whole = half * half
            for _ in range(steps):
                first = steepening(coefficients)
                second = steepening(half * (coefficients + width / 2 * first))
                third = steepening(half * coefficients + width / 2 * second)
                fourth = steepening(whole * coefficients + width * half * third)
                coefficients = whole * (coefficients + width / 6 * first)
                coefficients = coefficients + width / 6 * (2 * half * (second + third) + fourth)
        now = time
        states.append(coefficients)
    found = torch.stack(states, dim=-2)
    amplitude = found.abs()
    tail = amplitude[..., max(grid // 3 - 1, 1) : grid // 3 + 1].amax(dim=-1)
    if not bool((tail <= resolution * amplitude.amax(dim=-1)).all()):
        raise ValueError(
            f"initial has {grid} points, too few for the front that forms at viscosity {viscosity.min().item():g}; "
            "expected a finer grid, a higher viscosity or earlier times"
        )
    field: Tensor = torch.fft.irfft(found, n=grid)
    return field + mean[..., None]


def burgers_by_characteristics(
    initial: Callable[[Tensor], Tensor],
    points: Tensor,
    times: Tensor,
    *,
    drift: float = 0.0,
    period: float = 2 * math.pi,
) -> Tensor:
    """Solve u_t + (drift + u) u_x = 0 before the first shock: u is constant along straight characteristics.

    Args:
        initial: u at time 0, a function with the given period, of float64 tensors of any shape.
        points: (Q,), where the solution is wanted.
        times: (T,), at least 0, before the shock.
        drift: constant velocity beside u.
        period: of the initial state.

    Returns:
        (T, Q), float64.

    Raises:
        ValueError: characteristics cross before the last time, or an argument out of range.
    """
    _expect_positive(period=period)
    _expect_line("points", points)
    _expect_times(times)
    labels = torch.linspace(0, period, FINE + 1, dtype=torch.float64, device=points.device)
    carried = initial(labels)
    elapsed = times.to(points.device, torch.float64)[:, None]
    if len(times) and bool(((labels + elapsed * carried).diff(dim=-1) <= 0).any()):
        shock = float(-1 / (carried.diff() / labels.diff()).min())
        raise ValueError(f"times reach {float(times.max()):g}, but characteristics cross at {shock:g}")
    foot = points.double() - drift * elapsed
    margin = period / FINE * (carried.max() - carried.min()) + 1e-9  # of what lies between the points looked at
    low, high = foot - elapsed * (carried.max() + margin), foot - elapsed * (carried.min() - margin)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        behind = middle + elapsed * initial(middle) < foot
        low, high = torch.where(behind, middle, low), torch.where(behind, high, middle)
    return initial((low + high) / 2)


def _waves(grid: int, period: float, device: torch.device) -> Tensor:
    """Wave numbers of the real Fourier transform, (G // 2 + 1,)."""
    return torch.arange(grid // 2 + 1, dtype=torch.float64, device=device) * (2 * math.pi / period)


def _at_points(coefficients: Tensor, points: Tensor, grid: int, period: float) -> Tensor:
    """The sum of waves (..., G // 2 + 1) at points (Q,)."""
    wave = _waves(grid, period, coefficients.device)
    weight = torch.full_like(wave, 2 / grid)
    weight[0] = 1 / grid
    if grid % 2 == 0:
        weight[-1] = 1 / grid  # the highest wave of an even grid has no partner
    phase = wave[:, None] * points.to(wave)
    weighted = coefficients * weight
    return weighted.real @ torch.cos(phase) - weighted.imag @ torch.sin(phase)


def _expect_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; expected a positive number")


def _expect_grid(values: Tensor) -> None:
    if values.ndim == 0 or values.shape[-1] == 0 or values.is_complex():
        raise ValueError(
            f"values has shape {tuple(values.shape)}, {values.dtype}; expected real numbers (..., G), G > 0"
        )


def _expect_line(name: str, points: Tensor) -> None:
    if points.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(points.shape)}; expected one axis")


def _expect_times(times: Tensor) -> None:
    _expect_line("times", times)
    if times.numel() and not bool((times >= 0).all()):
        raise ValueError(f"times begins at {float(times.min())}; expected times from 0 on")


def _expect_viscosity(viscosity: float | Tensor) -> Tensor:
    found = torch.as_tensor(viscosity, dtype=torch.float64)
    if not bool((found >= 0).all()):
        raise ValueError(f"viscosity is {float(found.min())}; expected at least 0")
    return found
