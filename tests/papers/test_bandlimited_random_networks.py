"""Networks with frozen random weights: the transform and its closed form, floors that nothing undercuts, solutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from working_papers.bench import Scale, Trial
from working_papers.papers.bandlimited_random_networks import (
    DataCentred,
    RandomFeatureNet,
    RidgeletSampler,
    UniformScope,
    admissibility,
    fourier_floor,
    gaussian,
    gaussian_floor,
    minimal_scope,
    outside_energy,
    reconstruct,
    ridgelet_transform,
    scope_sweep,
    sinc,
    sinc_error,
    solve,
)
from working_papers.papers.bandlimited_random_networks import study as study_module
from working_papers.testing import assert_numerical_gradient, assert_state_dict_round_trip

X = torch.linspace(-4, 4, 401, dtype=torch.float64)
A = torch.linspace(-12, 12, 121, dtype=torch.float64)
B = torch.linspace(-60, 60, 1201, dtype=torch.float64)


def bell(x: Tensor, s: float = 0.5) -> Tensor:
    return torch.exp(-x.square() / (2 * s * s))


def closed_form(a: Tensor, b: Tensor, s: float = 0.5) -> Tensor:
    """R of `bell`: √(2π) s v^(-3/2) (1 - b²/v) exp(-b²/2v) with v = 1 + a² s²."""
    v = (1 + (a * s).square())[:, None]
    value: Tensor = math.sqrt(2 * math.pi) * s * v**-1.5 * (1 - b.square() / v) * torch.exp(-b.square() / (2 * v))
    return value


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(scope: float, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = UniformScope(scope).draw(n, 1, generator(seed))
    return a.squeeze(-1), b


# Activations and the transform


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_derivatives_of_the_gaussian(order: int) -> None:
    z = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    value = gaussian(z, 0)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(gaussian(z, order), value)
    with pytest.raises(ValueError, match="order must be 0 or more, got -1"):
        gaussian(z, -1)


def test_the_transform_equals_its_closed_form() -> None:
    torch.testing.assert_close(ridgelet_transform(bell(X), X, A, B), closed_form(A, B), atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_transform_equals_direct_integration(order: int) -> None:
    a, b = A[40:80:10], B[500:700:20]
    f = bell(X) * torch.sin(2 * X + 1)
    rho = -gaussian(a[:, None, None] * X - b[:, None], order + 2)
    direct = (rho * f).sum(-1) * (X[1] - X[0])
    found = ridgelet_transform(f, X, a, B, order)[:, 500:700:20]
    torch.testing.assert_close(found, direct, atol=1e-6, rtol=0)


def test_symmetry_linearity_and_translation() -> None:
    f, g = bell(X), bell(X - 0.7, 0.4)
    r = ridgelet_transform(torch.stack([f, g, 2 * f - 3 * g]), X, A, B)
    torch.testing.assert_close(r[0], r[0].flip(0, 1), atol=1e-9, rtol=0)
    torch.testing.assert_close(r[2], 2 * r[0] - 3 * r[1])
    moved = ridgelet_transform(bell(X - 0.5), X, A[100:101], B)[0]
    steps = round(float(A[100]) * 0.5 / 0.1)
    torch.testing.assert_close(moved, ridgelet_transform(bell(X), X, A[100:101], B)[0].roll(steps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [0, 1])
def test_reconstruction_returns_the_target(order: int) -> None:
    a = torch.linspace(-40, 40, 401, dtype=torch.float64)
    b = torch.linspace(-120, 120, 2401, dtype=torch.float64)
    at = torch.linspace(-1, 1, 9, dtype=torch.float64)
    f = bell(X) if order == 0 else bell(X) * X  # an odd unit sees an odd target
    wanted = bell(at) if order == 0 else bell(at) * at
    back = reconstruct(ridgelet_transform(f, X, a, b, order), a, b, at, order)
    assert (back - wanted).abs().max() < 6e-3


def test_a_box_says_more_the_larger_it_is() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    r = closed_form(A, B)
    values = []
    for scope in (2.0, 5.0, 10.0):
        a, b = A.abs() <= scope + 1e-9, B.abs() <= scope + 1e-9
        values.append(float(reconstruct(r[a][:, b], A[a], B[b], zero)))
    assert values == pytest.approx([0.599, 0.870, 0.962], abs=0.02)
    energy = outside_energy(r, A, B, torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 60.0], dtype=torch.float64))
    assert bool((energy.diff() < 0).all()) and energy[0] > 0.9 and energy[-1].abs() < 1e-12
    assert admissibility(0) == pytest.approx(2 * math.pi) and admissibility(3) == pytest.approx(12 * math.pi)


# Floors


def test_the_fourier_floor_is_parsevals_tail() -> None:
    dx = float(X[1] - X[0])
    energy = float(bell(X).square().sum() * dx)
    floors = [float(fourier_floor(bell(X), dx, band)) for band in (0.0, 0.5, 1.0, 2.0, 4.0, 20.0)]
    assert floors[0] == pytest.approx(energy, rel=1e-9)
    assert floors == sorted(floors, reverse=True) and floors[-1] < 1e-12
    exact = energy * math.erfc(2.0 * 0.5)  # of |f̂|² = 2π s² exp(-ω² s²)
    assert floors[3] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("scope", [1.0, 2.0, 4.0])
def test_no_network_of_sinc_units_gets_below_the_floor_and_wide_ones_reach_it(scope: float) -> None:
    s = 0.25

    def fourier(omega: Tensor) -> Tensor:
        return math.sqrt(2 * math.pi) * s * torch.exp(-(omega * s).square() / 2)

    energy, dx = math.sqrt(math.pi) * s, float(X[1] - X[0])
    excess = []
    for n in (5, 20, 80, 200):
        a, b = draw(scope, n)
        error = float(sinc_error(a, b, fourier, energy))
        floor = float(fourier_floor(bell(X, s), dx, float(a.abs().max())))
        assert error > floor - 1e-5
        excess.append((error - floor) / energy)
    assert excess[-1] < 0.02 and excess[0] > excess[-1]


def test_the_exact_error_of_sinc_units_is_that_of_a_fine_wide_grid() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([0.3, -1.0, 0.0], dtype=torch.float64)
    grid = torch.linspace(-4000, 4000, 800_001, dtype=torch.float64)
    f = bell(grid)
    phi = sinc(grid[:, None] * a - b)
    c = solve(phi, f)
    numeric = float((phi @ c - f).square().sum() * (grid[1] - grid[0]))

    def fourier(omega: Tensor) -> Tensor:
        return math.sqrt(2 * math.pi) * 0.5 * torch.exp(-(omega * 0.5).square() / 2)

    assert float(sinc_error(a, b, fourier, math.sqrt(math.pi) * 0.5)) == pytest.approx(numeric, rel=2e-3)


def test_the_gaussian_floor_holds_for_fitted_networks() -> None:
    dx = float(X[1] - X[0])
    f = torch.cos(12 * X) * bell(X, 0.6)
    a, b = draw(1.5, 60)
    phi = gaussian(X[:, None] * a - b)
    c = solve(phi, f, max_norm=5.0)
    error = float((phi @ c - f).square().sum() * dx)
    floor = float(gaussian_floor(f, dx, 1.5, float(c.abs().sum())))
    assert 0.5 * float(f.square().sum() * dx) < floor <= error


# Samplers


def test_boxes_share_their_random_numbers_and_draws_are_nested() -> None:
    a, b = UniformScope(1.0).draw(50, 3, generator())
    larger, _ = UniformScope(5.0).draw(50, 3, generator())
    torch.testing.assert_close(larger, 5 * a)
    first, _ = UniformScope(1.0).draw(20, 3, generator())
    torch.testing.assert_close(first, a[:20])
    assert a.shape == (50, 3) and b.shape == (50,) and a.abs().max() <= 1
    _, bias = UniformScope(1.0, 7.0).draw(500, 1, generator())
    assert 6 < bias.abs().max() <= 7


def test_the_ridgelet_sampler_draws_by_the_spectrum() -> None:
    r = closed_form(A, B)
    a, b = RidgeletSampler(r, A, B).draw(20_000, 1, generator())
    share = r.abs() / r.abs().sum()
    for low, high in ((0.0, 1.0), (1.0, 3.0), (3.0, 12.1)):
        expected = float(share[(A.abs() >= low - 1e-9) & (A.abs() < high - 1e-9)].sum())
        found = float(((a.abs() >= low - 0.1) & (a.abs() < high - 0.1)).double().mean())
        assert found == pytest.approx(expected, abs=0.03)
    assert b.shape == (20_000,)


def test_the_monte_carlo_network_gets_better_like_one_over_root_n() -> None:
    sampler = RidgeletSampler(closed_form(A, B), A, B)
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    errors = []
    for n in (200, 3200):
        found = []
        for seed in range(30):
            net = RandomFeatureNet(1, n, gaussian, sampler, seed)
            net.c.data = sampler.coefficients(net.a, net.b)
            found.append((net(x) - bell(x)).square().mean().detach())
        errors.append(float(torch.stack(found).mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4)


def test_data_centred_units_turn_at_training_points() -> None:
    x = torch.rand(30, 2, generator=generator(), dtype=torch.float64)
    a, b = DataCentred(20.0, x).draw(100, 2, generator(1))
    distance = ((a @ x.mT) - b[:, None]).abs().min(1).values
    assert distance.max() < 1e-12


# Solutions


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 60, dtype=dtype)
    a, b = draw(4.0, 40)
    return torch.tanh(x[:, None] * a.to(dtype) - b.to(dtype)), torch.sin(5 * x)


def test_more_units_never_fit_worse() -> None:
    phi, y = problem()
    errors = [float((phi[:, :n] @ solve(phi[:, :n], y) - y).norm()) for n in (2, 5, 10, 20)]
    assert errors == sorted(errors, reverse=True)


def test_the_ridge_solution_meets_its_condition() -> None:
    phi, y = problem()
    c = solve(phi, y, ridge=0.01)
    gradient = phi.mT @ (phi @ c - y) / len(y) + 0.01 * c
    assert gradient.abs().max() < 1e-10


def test_the_limit_on_the_length_is_kept_and_used() -> None:
    phi, y = problem()
    free = float(solve(phi, y).norm())
    for limit in (0.5, 3.0, 20.0):
        c = solve(phi, y, max_norm=limit)
        assert c.norm() <= limit + 1e-6 and c.norm() > 0.999 * min(limit, free)
    torch.testing.assert_close(solve(phi, y, max_norm=10 * free), solve(phi, y))
    errors = [float((phi @ solve(phi, y, max_norm=limit) - y).norm()) for limit in (0.5, 3.0, 20.0)]
    assert errors == sorted(errors, reverse=True)


def test_batches_are_solved_like_single_ones() -> None:
    phi, y = problem()
    both = torch.stack([phi, phi.flip(1) * 2])
    batched = solve(both, y, max_norm=3.0)
    for one, features in zip(batched, both, strict=True):
        torch.testing.assert_close(one, solve(features, y, max_norm=3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_is_a_module(dtype: torch.dtype) -> None:
    x = torch.rand(50, 3, generator=generator(), dtype=dtype)
    y = x.sum(1)
    net = RandomFeatureNet(3, 40, torch.tanh, UniformScope(2.0), seed=1, dtype=dtype).fit(x, y, max_norm=50.0)
    assert net(x).dtype == dtype and float((net(x) - y).detach().abs().max()) < 0.05
    assert net.coefficient_norm() == pytest.approx(float(net.c.detach().norm()))
    assert_state_dict_round_trip(net, RandomFeatureNet(3, 40, torch.tanh, UniformScope(2.0), seed=2, dtype=dtype), x)
    assert sorted(name for name, _ in net.named_parameters()) == ["c"]
    if dtype == torch.float64:
        assert_numerical_gradient(net, x[:3])


def test_a_sweep_is_what_single_networks_give_and_the_smallest_box_is_found() -> None:
    x = torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None]
    at = torch.linspace(-1, 1, 161, dtype=torch.float64)[:, None]
    target: Callable[[Tensor], Tensor] = lambda z: torch.sin(8 * z.squeeze(-1))  # noqa: E731
    sweep = scope_sweep(x, target(x), at, target(at), torch.tanh, (0.5, 4.0), (10, 30), (3, 4), max_norm=100.0)
    net = RandomFeatureNet(1, 30, torch.tanh, UniformScope(4.0), seed=4).fit(x, target(x), max_norm=100.0)
    wrong = (net(at) - target(at)).detach()
    error = wrong.square().mean().sqrt() / target(at).square().mean().sqrt()
    assert float(sweep.rmse[1, 1, 1]) == pytest.approx(float(error), rel=1e-6)
    assert minimal_scope(sweep, 0.5) == 4.0 and minimal_scope(sweep, 1e-30) is None and minimal_scope(sweep, 2.0) == 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: UniformScope(0.0), "weight and bias must be positive"),
        (lambda: RandomFeatureNet(0, 5, torch.tanh, UniformScope(1.0)), "d and n must be at least 1"),
        (lambda: RandomFeatureNet(2, 5, torch.tanh, UniformScope(1.0))(torch.zeros(3, 4)), "x must have 2 columns"),
        (lambda: solve(torch.eye(2), torch.ones(2), ridge=-1), "a ridge of 0 or more"),
        (lambda: solve(torch.eye(2), torch.ones(2), ridge=1, max_norm=1), "a ridge of 0 or more"),
        (lambda: RidgeletSampler(torch.zeros(121, 1201), A, B), "not zero everywhere"),
        (lambda: RidgeletSampler(torch.ones(2, 2), A, B), "r must have shape"),
        (lambda: RidgeletSampler(closed_form(A, B), A, B).draw(3, 2, generator()), "one input dimension, got d = 2"),
        (lambda: ridgelet_transform(bell(X)[:5], X, A, B), "one for each x"),
        (lambda: ridgelet_transform(bell(X), X.square(), A, B), "x must be an increasing grid with even steps"),
        (lambda: reconstruct(closed_form(A, B), A[:1], B, X), "a must be a grid of at least 2 points"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# The study


def test_a_trial_is_a_pure_function_and_the_default_box_fails() -> None:
    scopes = study_module.sufficient_scopes(5, Scale.SMOKE)
    one, two = (study_module.approximate(Trial("unit", 5, Scale.SMOKE), scopes) for _ in range(2))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])
    assert one[study_module.SINE] > 0.9 and one[study_module.FLOOR] > -1e-6


def test_ranks() -> None:
    assert study_module.spearman([1, 2, 5, 10, 20]) == pytest.approx(1) and study_module.spearman([1, 1, 1, 1, 1]) == 0
    assert study_module.spearman([20, 10, 5, 2, 1]) == pytest.approx(-1)
