"""Random functions have the covariance they promise; solvers reach closed forms at their order."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from working_papers.data.random_fields import (
    antiderivative,
    chebyshev_functions,
    gaussian_random_field,
    interpolate,
    periodic_random_field,
    power_series_functions,
    solve_diffusion_reaction,
    solve_ode,
)

DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(points: int) -> Tensor:
    return torch.linspace(0, 1, points, dtype=torch.float64)


def largest_deviation(fields: Tensor, expected: Tensor) -> float:
    """Largest difference of the empirical covariance from the expected one, in its standard errors."""
    variances = expected.diagonal()
    error = ((variances[:, None] * variances + expected.square()) / len(fields)).sqrt()
    return float(((fields.mT @ fields / len(fields) - expected) / error).abs().max())


def test_gaussian_random_field_has_its_covariance() -> None:
    points = grid(6)
    expected = 2.0 * torch.exp(-(points[:, None] - points).square() / (2 * 0.2**2))
    fields = gaussian_random_field(DRAWS, points, 0.2, variance=2.0, generator=generator())
    assert fields.dtype == torch.float64 and fields.shape == (DRAWS, 6)
    # 21 distinct entries: the largest is within 3.5 standard errors in 99 % of draws; the seed is fixed.
    assert largest_deviation(fields, expected) < 3.5
    assert largest_deviation(fields, expected.roll(1, 0) + torch.eye(6)) > 10, "the comparison can tell"
    assert fields.mean(dim=0).abs().max() < 4 * math.sqrt(2.0 / DRAWS)


def test_gaussian_random_field_in_two_dimensions() -> None:
    points = torch.rand(5, 2, generator=generator(1), dtype=torch.float64)
    squared = (points[:, None] - points).square().sum(dim=-1)
    fields = gaussian_random_field(DRAWS, points, 0.5, generator=generator(3))
    assert largest_deviation(fields, torch.exp(-squared / (2 * 0.5**2))) < 3.5


def test_periodic_gaussian_field_closes() -> None:
    fields = gaussian_random_field(200, torch.tensor([0.0, 1.0, 0.5, -0.5]), 0.3, period=1.0, generator=generator())
    torch.testing.assert_close(fields[:, 0], fields[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(fields[:, 2], fields[:, 3], atol=1e-5, rtol=0)
    assert (fields[:, 0] - fields[:, 2]).abs().max() > 0.1


@pytest.mark.parametrize("length_scale", [0.05, 0.2, 1.0])
def test_a_fine_grid_can_be_factored_and_gives_smooth_functions(length_scale: float) -> None:
    fields = gaussian_random_field(20, grid(1000).float(), length_scale, generator=generator())
    assert fields.isfinite().all()
    # The slope of the process has standard deviation 1 / length_scale.
    slopes = fields.diff(dim=1) * 999
    assert 0.3 / length_scale < slopes.std() < 2 / length_scale


def test_the_same_generator_gives_the_same_functions() -> None:
    for draw in (gaussian_random_field, chebyshev_functions, power_series_functions):
        first, second, other = (draw(3, grid(8), generator=generator(seed)) for seed in (4, 4, 5))
        assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(16,), (15,), (8, 6)])
def test_periodic_random_field_has_its_spectrum(shape: tuple[int, ...]) -> None:
    fields = periodic_random_field(4000, shape, smoothness=2.0, inverse_length=3.0, generator=generator())
    assert fields.shape == (4000, *shape)
    axis = [torch.fft.fftfreq(points, 1 / points).double() for points in shape]
    waves = list(torch.meshgrid(*axis, indexing="ij"))
    eigenvalues = 3.0 ** (2 * 2 - len(shape)) * (4 * math.pi**2 * torch.stack(waves).square().sum(dim=0) + 9.0) ** -2
    eigenvalues[(0,) * len(shape)] = 0
    axes = tuple(range(1, len(shape) + 1))
    found = (torch.fft.fftn(fields, dim=axes, norm="forward").abs() ** 2).mean(dim=0)
    torch.testing.assert_close(found, eigenvalues, rtol=0.12, atol=1e-12)  # real modes: relative error sqrt(2 / 4000)
    torch.testing.assert_close(fields.var(dim=0).mean(), eigenvalues.sum(), rtol=0.05, atol=0)


def test_chebyshev_functions_are_sums_of_chebyshev_polynomials() -> None:
    import numpy as np

    points = grid(11)
    functions = chebyshev_functions(3, points, terms=5, bound=2.0, generator=generator())
    coefficients = 2 * (2 * torch.rand(3, 5, generator=generator(), dtype=torch.float64) - 1)
    expected = np.polynomial.chebyshev.chebval(2 * points.numpy() - 1, coefficients.mT.numpy())
    torch.testing.assert_close(functions, torch.from_numpy(expected))


def test_power_series_are_polynomials() -> None:
    points = grid(7)
    functions = power_series_functions(2, points, terms=4, generator=generator())
    fourth_differences = functions.diff(dim=1, n=4)
    torch.testing.assert_close(fourth_differences, torch.zeros_like(fourth_differences), atol=1e-12, rtol=0)
    assert functions.diff(dim=1, n=3).abs().min() > 1e-6
    assert power_series_functions(50, points, bound=0.5, generator=generator())[:, 0].abs().max() <= 0.5


def test_interpolation_is_exact_on_straight_lines_and_at_grid_points() -> None:
    places = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64)
    values = torch.stack([2 * places + 1, -places])
    shared = torch.tensor([0.0, 0.05, 0.1, 0.7, 1.0], dtype=torch.float64)
    torch.testing.assert_close(interpolate(values, places, shared), torch.stack([2 * shared + 1, -shared]))
    own = torch.tensor([[0.3], [0.9]], dtype=torch.float64)
    torch.testing.assert_close(interpolate(values, places, own), torch.tensor([[1.6], [-0.9]], dtype=torch.float64))


def order(error: Callable[[int], float], points: tuple[int, int] = (41, 81)) -> float:
    """Observed order of convergence in the spacing of the grid."""
    coarse, fine = (error(count) for count in points)
    return math.log2(coarse / fine)


def test_antiderivative_is_second_order() -> None:
    def error(points: int) -> float:
        x = grid(points)
        return float((antiderivative(torch.cos(3 * x)[None], x)[0] - torch.sin(3 * x) / 3).abs().max())

    assert 1.9 < order(error) < 2.1
    assert antiderivative(torch.ones(2, 5), grid(5))[:, 0].tolist() == [0, 0]


def test_ode_solver_reaches_closed_forms_at_its_orders() -> None:
    def riccati(points: int) -> float:  # s' = -s² + 1: tanh, with a constant source: fourth order
        found = solve_ode(
            lambda s, u: -s.square() + u[:, None], torch.zeros(1), torch.ones(2, points).double(), grid(points)
        )
        return float((found[:, :, 0] - torch.tanh(grid(points))).abs().max())

    def pendulum(points: int) -> float:  # s1' = s2, s2' = u: the second integral of cos 3t
        source = torch.cos(3 * grid(points))[None]
        found = solve_ode(lambda s, u: torch.stack([s[:, 1], u], 1), torch.zeros(1, 2), source, grid(points))
        return float((found[0, :, 0] - (1 - torch.cos(3 * grid(points))) / 9).abs().max())

    assert 3.7 < order(riccati) < 4.3
    assert 1.8 < order(pendulum) < 2.2


def test_ode_solver_integrates_as_the_trapezoidal_rule_does() -> None:
    source = gaussian_random_field(4, grid(50), generator=generator())
    found = solve_ode(lambda s, u: u[:, None].expand_as(s), torch.zeros(1), source, grid(50))
    torch.testing.assert_close(found[..., 0], antiderivative(source, grid(50)))


def test_diffusion_reaction_without_reaction_reaches_the_closed_form() -> None:
    def error(points: int) -> float:
        x = grid(points)
        source = torch.sin(math.pi * x).expand(3, -1) * torch.tensor([[1.0], [2.0], [-1.0]])
        found = solve_diffusion_reaction(source, 0.1, 0.0, times=points)
        growth = (1 - torch.exp(-0.1 * math.pi**2 * grid(points))) / (0.1 * math.pi**2)
        return float((found - source[:, :, None] * growth).abs().max())

    assert error(81) < 1e-4
    assert 1.9 < order(error) < 2.1


def test_diffusion_reaction_without_diffusion_is_a_riccati_equation() -> None:
    def error(times: int) -> float:  # s' = k s² + u: sqrt(u / k) tan(sqrt(u k) t)
        source = torch.tensor([[0.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
        found = solve_diffusion_reaction(source, 0.0, 0.5, times=times)
        u = source[0, 1:3, None]
        expected = (u / 0.5).sqrt() * torch.tan((u * 0.5).sqrt() * grid(times))
        return float((found[0, 1:3] - expected).abs().max())

    assert 1.9 < order(error) < 2.1


def test_diffusion_reaction_treats_functions_apart_and_keeps_the_ends_at_zero() -> None:
    source = gaussian_random_field(5, grid(30), generator=generator()) * 5
    together = solve_diffusion_reaction(source, 0.02, 0.3, times=20)
    alone = torch.cat([solve_diffusion_reaction(row[None], 0.02, 0.3, times=20) for row in source])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-10)
    assert not together[:, [0, -1]].any() and not together[:, :, 0].any()
    assert solve_diffusion_reaction(source.float()).dtype == torch.float32


def test_wrong_arguments_are_named() -> None:
    x = grid(5)
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("count is 0", lambda: gaussian_random_field(0, x)),
        ("length_scale is -1", lambda: gaussian_random_field(1, x, -1)),
        ("period is 0", lambda: gaussian_random_field(1, x, period=0)),
        (r"points has shape \(1, 1, 5\)", lambda: gaussian_random_field(1, x[None, None])),
        ("smoothness is 0.5", lambda: periodic_random_field(1, (4,), smoothness=0.5)),
        (r"shape is \(\)", lambda: periodic_random_field(1, ())),
        ("values from 0 to 1", lambda: chebyshev_functions(1, x + 1)),
        ("terms is 0", lambda: power_series_functions(1, x, terms=0)),
        ("points reach from", lambda: interpolate(x[None], x, x + 0.5)),
        (r"points has shape \(3, 5\)", lambda: interpolate(x[None], x, x.expand(3, -1))),
        (r"source has shape \(1, 4\)", lambda: antiderivative(x[None, :4], x)),
        (r"start has shape \(2, 1\)", lambda: solve_ode(lambda s, u: s, torch.zeros(2, 1), x[None], x)),
        ("expected diffusion >= 0", lambda: solve_diffusion_reaction(x[None], -1.0)),
        (r"source has shape \(5,\)", lambda: solve_diffusion_reaction(x)),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()
