"""Damped fixed-point iteration: where it ends, what it reports, and that derivatives pass through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from working_papers.nn.fixed_point import iterate_fixed_point

# The first forward-mode derivative makes PyTorch script its own formulas, of which it then warns itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])


def contraction(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix of spectral norm 0.6 and a constant for each of 7 problems."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64).to(dtype)
    matrix = 0.6 * matrix / torch.linalg.matrix_norm(matrix, ord=2)
    return matrix, torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)


@DTYPES
@pytest.mark.parametrize("relaxation", [1.0, 0.5])
def test_linear_map_ends_where_the_equation_says(dtype: torch.dtype, relaxation: float) -> None:
    matrix, constant = contraction(dtype)
    found = iterate_fixed_point(
        lambda u: u @ matrix.mT + constant, torch.zeros_like(constant), steps=200, relaxation=relaxation
    )
    expected = torch.linalg.solve(torch.eye(5, dtype=dtype) - matrix, constant.mT).mT
    single = dtype in (torch.float32, torch.complex64)
    torch.testing.assert_close(found.state, expected, rtol=0, atol=1e-5 if single else 1e-12)
    assert found.state.dtype == dtype and found.steps == 200
    assert found.residual.shape == (7,) and not found.residual.is_complex()
    assert bool(found.settled(1e-5 if single else 1e-12).all())


@pytest.mark.parametrize(("relaxation", "multiplier"), [(1.0, -0.9), (0.5, 0.05), (0.25, 0.525)])
def test_relaxation_mixes_multipliers_with_one(relaxation: float, multiplier: float) -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    found = iterate_fixed_point(lambda u: -0.9 * u, start, steps=3, relaxation=relaxation)
    assert float(found.state) == pytest.approx(multiplier**3)
    assert float(found.residual) == pytest.approx(1.9 * abs(multiplier) ** 3)


def test_relaxation_settles_what_oscillates() -> None:
    start = torch.full((2, 3), 0.1, dtype=torch.float64)
    plain = iterate_fixed_point(lambda u: 1 - 1.2 * u, start, steps=300)
    damped = iterate_fixed_point(lambda u: 1 - 1.2 * u, start, steps=300, relaxation=0.5)
    assert bool((plain.residual > 1).all())
    torch.testing.assert_close(damped.state, torch.full_like(start, 1 / 2.2))


def test_tolerance_stops_when_every_problem_has_settled() -> None:
    rates = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    seen: list[int] = []

    def halve(u: Tensor) -> Tensor:
        seen.append(1)
        return rates * u

    found = iterate_fixed_point(halve, torch.ones(2, 1, dtype=torch.float64), steps=500, tolerance=1e-6, check_every=4)
    assert found.steps % 4 == 0 and found.steps == 4 * math.ceil((math.log2(0.5 / 1e-6)) / 4)
    assert len(seen) == found.steps + 1  # the evaluation that found it settled is the last
    assert bool((found.residual <= 1e-6).all())
    torch.testing.assert_close(found.residual, ((1 - rates) * found.state)[:, 0])
    unchanged = iterate_fixed_point(halve, torch.zeros(2, 1, dtype=torch.float64), steps=500, tolerance=1e-6)
    assert unchanged.steps == 0
    short = iterate_fixed_point(halve, torch.ones(2, 1, dtype=torch.float64), steps=3, tolerance=1e-6)
    assert short.steps == 3 and not bool(short.settled(1e-6).all())


def test_a_diverging_problem_is_told_apart_from_its_neighbours() -> None:
    factors = torch.tensor([[0.5], [1e30]])
    found = iterate_fixed_point(lambda u: factors * u, torch.ones(2, 1), steps=200)
    assert found.settled(1e-6).tolist() == [True, False]
    assert not math.isfinite(float(found.residual[1]))


@pytest.mark.parametrize(("axes", "shape"), [(0, ()), (1, (2,)), (2, (2, 3)), (3, (2, 3, 4))])
def test_batch_axes_say_what_one_problem_is(axes: int, shape: tuple[int, ...]) -> None:
    start = torch.ones(2, 3, 4)
    found = iterate_fixed_point(lambda u: u + 1, start, steps=2, batch_axes=axes)
    assert found.residual.shape == shape
    assert float(found.residual.flatten()[0]) == pytest.approx(math.sqrt(24 / math.prod(shape)))
    assert torch.equal(found.state, start + 2)


def test_no_steps_return_the_start_and_its_residual() -> None:
    found = iterate_fixed_point(lambda u: 3 * u, torch.ones(1, 4), steps=0)
    assert torch.equal(found.state, torch.ones(1, 4)) and float(found.residual) == pytest.approx(4.0)


def test_derivatives_pass_through_the_iteration_but_not_the_residual() -> None:
    _, constant = contraction()
    slope = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def end(s: Tensor) -> Tensor:
        return iterate_fixed_point(lambda u: s * torch.tanh(u) + constant, torch.zeros_like(constant), steps=9).state

    assert torch.autograd.gradcheck(end, (slope,))
    forward = torch.func.jvp(end, (slope.detach(),), (torch.ones_like(slope),))[1]
    (reverse,) = torch.autograd.grad(end(slope).sum(), slope)
    torch.testing.assert_close(forward.sum(), reverse)
    mapped = torch.func.vmap(end)(torch.tensor([0.5, 0.2], dtype=torch.float64))
    torch.testing.assert_close(mapped[0], end(slope).detach())
    found = iterate_fixed_point(lambda u: slope * u, constant, steps=2)
    assert found.state.requires_grad and not found.residual.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -1}, "steps is -1; expected 0 or more"),
        ({"relaxation": 0.0}, "relaxation is 0.0; expected a number above 0 and at most 1"),
        ({"relaxation": 1.5}, "relaxation is 1.5"),
        ({"tolerance": 0.0}, "tolerance is 0.0; expected a number above 0, or None"),
        ({"check_every": 0}, "check_every is 0; expected 1 or more"),
        ({"batch_axes": 3}, "batch_axes is 3; expected 0 to 2"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, float], words: str) -> None:
    settings: dict[str, float] = {"steps": 3} | change
    with pytest.raises(ValueError, match=words):
        iterate_fixed_point(lambda u: u, torch.ones(2, 3), **settings)  # type: ignore[arg-type]


def test_a_function_that_changes_the_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"function returns shape \(3,\); expected \(2, 3\)"):
        iterate_fixed_point(lambda u: u[0], torch.ones(2, 3), steps=1)
