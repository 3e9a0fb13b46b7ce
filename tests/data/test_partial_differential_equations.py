"""Reference solvers agree with closed forms, converge at their order, and refuse what a grid cannot show."""

import math

import pytest
import torch
from torch import Tensor

from working_papers.data.partial_differential_equations import (
    burgers_by_characteristics,
    fourier_interpolate,
    periodic_grid,
    solve_burgers,
    solve_convection_diffusion,
)

TIMES = torch.linspace(0, 1, 6, dtype=torch.float64)


def cole_hopf(points: Tensor, times: Tensor, viscosity: float) -> Tensor:
    """Burgers from sin x, by the heat equation of exp(cos x / (2 viscosity)): Fourier coefficients by quadrature."""
    fine = periodic_grid(512)
    heat = torch.exp((torch.cos(fine) - 1) / (2 * viscosity))
    waves = torch.arange(60, dtype=torch.float64)
    coefficients = torch.cos(waves[:, None] * fine) @ heat / 512 * torch.where(waves > 0, 2.0, 1.0)
    decay = torch.exp(-viscosity * waves**2 * times[:, None]) * coefficients
    value, slope = decay @ torch.cos(waves[:, None] * points), -(decay * waves) @ torch.sin(waves[:, None] * points)
    return -2 * viscosity * slope / value


def test_the_grid_leaves_out_the_right_end() -> None:
    assert periodic_grid(4, 8.0).tolist() == [0.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("points", [32, 33])
def test_fourier_interpolation_is_exact_for_resolved_waves(points: int) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.stack([1 + torch.sin(3 * math.pi * x), torch.cos(15 * math.pi * x - 0.3)])

    query = torch.linspace(-3, 5, 41, dtype=torch.float64)
    found = fourier_interpolate(function(periodic_grid(points, 2.0)), query, 2.0)
    torch.testing.assert_close(found, function(query), atol=1e-12, rtol=0)


@pytest.mark.parametrize("period", [2 * math.pi, 3.0])
def test_convection_diffusion_carries_and_damps_each_wave(period: float) -> None:
    wave, x = 2 * math.pi / period, periodic_grid(24, period)
    speed, viscosity = torch.tensor([0.0, 50.0], dtype=torch.float64), 0.1
    found = solve_convection_diffusion(1 + torch.sin(3 * wave * x), TIMES, speed, viscosity, period=period)
    phase = x - speed[:, None, None] * TIMES[:, None]
    expected = 1 + torch.exp(-viscosity * (3 * wave) ** 2 * TIMES[:, None]) * torch.sin(3 * wave * phase)
    assert found.shape == (2, 6, 24)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


def test_convection_diffusion_between_grid_points_is_the_interpolated_solution() -> None:
    x, query = periodic_grid(48), torch.tensor([0.1, 2.0, 7.5], dtype=torch.float64)
    initial = torch.exp(torch.cos(x))
    found = solve_convection_diffusion(initial, TIMES, 7.0, 0.02, points=query)
    on_grid = solve_convection_diffusion(initial, TIMES, 7.0, 0.02)
    torch.testing.assert_close(found, fourier_interpolate(on_grid, query), atol=1e-12, rtol=0)
    shifted = solve_convection_diffusion(initial, TIMES, 7.0, 0.0, points=query)
    torch.testing.assert_close(shifted, torch.exp(torch.cos(query - 7 * TIMES[:, None])), atol=1e-11, rtol=0)


@pytest.mark.parametrize("viscosity", [0.5, 0.1])
def test_burgers_is_the_transformed_heat_equation(viscosity: float) -> None:
    x = periodic_grid(256)
    found = solve_burgers(torch.sin(x), TIMES, viscosity)
    torch.testing.assert_close(found, cole_hopf(x, TIMES, viscosity), atol=2e-7, rtol=0)


def test_burgers_converges_at_fourth_order_in_time() -> None:
    x = periodic_grid(64)
    expected = solve_burgers(torch.sin(x), TIMES[-1:], 0.2, courant=0.05)
    errors = [
        float((solve_burgers(torch.sin(x), TIMES[-1:], 0.2, courant=courant) - expected).abs().max())
        for courant in (0.8, 0.4)
    ]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 5.0


def test_burgers_with_drift_or_mean_is_the_same_field_carried_along() -> None:
    x, drift = periodic_grid(128), torch.tensor([0.0, 50.0], dtype=torch.float64)
    found = solve_burgers(torch.sin(x), TIMES, 0.1, drift=drift)
    for time in range(len(TIMES)):
        moved = fourier_interpolate(found[0, time], x - 50 * TIMES[time])
        torch.testing.assert_close(found[1, time], moved, atol=1e-9, rtol=0)
    raised = solve_burgers(50 + torch.sin(x), TIMES, 0.1)
    torch.testing.assert_close(raised - 50, found[1], atol=1e-9, rtol=0)


def test_burgers_keeps_the_mean_and_loses_energy() -> None:
    x = periodic_grid(128)
    found = solve_burgers(0.3 + torch.sin(x) + 0.2 * torch.cos(2 * x), TIMES, 0.1)
    torch.testing.assert_close(found.mean(dim=-1), torch.full((6,), 0.3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert bool((found.square().mean(dim=-1).diff() < 0).all())


def test_a_constant_stays_where_it_is() -> None:
    found = solve_burgers(torch.full((3, 16), 2.0), TIMES, 0.1)
    torch.testing.assert_close(found, torch.full((3, 6, 16), 2.0, dtype=torch.float64), atol=1e-14, rtol=0)


def test_without_viscosity_burgers_follows_its_characteristics() -> None:
    x, times = periodic_grid(512), torch.tensor([0.0, 0.3, 0.6], dtype=torch.float64)
    found = burgers_by_characteristics(torch.sin, x, times, drift=3.0)
    spectral = solve_burgers(torch.sin(x), times, 0.0, drift=3.0)
    torch.testing.assert_close(found, spectral, atol=1e-6, rtol=0)
    # A point that starts at xi is at xi + t (3 + sin xi) and still has the value sin xi.
    labels = torch.linspace(0, 6, 50, dtype=torch.float64)
    arrived = labels + 0.6 * (3 + torch.sin(labels))
    there = burgers_by_characteristics(torch.sin, arrived, times[-1:], drift=3.0)[0]
    torch.testing.assert_close(there, torch.sin(labels), atol=1e-11, rtol=0)


def test_results_are_float64_for_float32_input() -> None:
    x = periodic_grid(32).float()
    assert solve_burgers(torch.sin(x), TIMES.float(), 0.5).dtype == torch.float64
    assert solve_convection_diffusion(torch.sin(x), TIMES.float(), 1.0, 0.5).dtype == torch.float64


def test_wrong_input_is_named() -> None:
    x = periodic_grid(32)
    with pytest.raises(ValueError, match="points is 0; expected a positive number"):
        periodic_grid(0)
    with pytest.raises(ValueError, match=r"viscosity is -1\.0; expected at least 0"):
        solve_convection_diffusion(x, TIMES, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"times begins at -1\.0"):
        solve_burgers(x, -TIMES, 0.1)
    with pytest.raises(ValueError, match="expected ascending times"):
        solve_burgers(x, TIMES.flip(0), 0.1)
    with pytest.raises(ValueError, match=r"points has shape \(2, 2\)"):
        fourier_interpolate(x, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="expected real numbers"):
        fourier_interpolate(torch.tensor(1.0), x)
    with pytest.raises(ValueError, match="initial has 32 points, too few for the front"):
        solve_burgers(torch.sin(x), TIMES, 0.001)
    with pytest.raises(ValueError, match=r"characteristics cross at 1\b"):
        burgers_by_characteristics(torch.sin, x, 1.5 * TIMES)
