"""Matrix sensing: adjoints and isotropy, the invariants of the descent, the rebalancing step, closed-form rates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.papers.matrix_sensing import (
    FactoredLinear,
    GaussianSensing,
    IdentitySensing,
    RankOneSensing,
    SensingOperator,
    contraction_rate,
    factored_gradient_descent,
    fit_rate,
    gradient_step,
    imbalance,
    initial_factors,
    rebalance,
    redundant_product,
    symmetric_error,
)
from working_papers.papers.matrix_sensing import study as room
from working_papers.testing import (
    assert_deterministic,
    assert_gradients_reach_parameters,
    assert_numerical_gradient,
    assert_state_dict_round_trip,
    random_rotation,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
FLOAT64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = FLOAT64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64).to(dtype)


def operators(rows: int, columns: int, dtype: torch.dtype = FLOAT64) -> dict[str, SensingOperator]:
    return {
        "identity": IdentitySensing(rows, columns),
        "gaussian": GaussianSensing(rows, columns, 50, generator=seeded(1), dtype=dtype),
        "rank one": RankOneSensing(rows, columns, 50, generator=seeded(2), dtype=dtype),
    }


OPERATORS = pytest.mark.parametrize("kind", ["identity", "gaussian", "rank one"])


class Diagonal(SensingOperator):
    """A user's own operator: only the two required methods."""

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=-2, dim2=-1)

    def adjoint(self, residual: Tensor) -> Tensor:
        return torch.diag_embed(residual)


def truth_of(side: int, eigenvalues: list[float], seed: int = 5) -> Tensor:
    vectors = random_rotation(side, seed=seed)[:, : len(eigenvalues)]
    return (vectors * torch.tensor(eigenvalues, dtype=FLOAT64)) @ vectors.T


# Operators


@OPERATORS
@pytest.mark.parametrize(("rows", "columns", "batch"), [(1, 1, ()), (5, 5, (2,)), (7, 4, (2, 3))])
def test_adjoint_is_the_adjoint(kind: str, rows: int, columns: int, batch: tuple[int, ...]) -> None:
    operator = operators(rows, columns)[kind]
    matrix = gaussian(*batch, rows, columns)
    measured = operator(matrix)
    residual = gaussian(*measured.shape, seed=1)
    pulled = operator.adjoint(residual)
    assert pulled.shape == matrix.shape
    one, other = (measured * residual).sum(dim=-1), (matrix * pulled).sum(dim=(-2, -1))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@OPERATORS
@DTYPES
def test_short_cuts_for_products_agree_with_the_matrix(kind: str, dtype: torch.dtype) -> None:
    operator = operators(6, 4, dtype)[kind]
    left, right = gaussian(3, 6, 5, dtype=dtype), gaussian(3, 4, 5, seed=1, dtype=dtype)
    measured = operator.measure_product(left, right)
    assert measured.dtype == dtype
    torch.testing.assert_close(measured, operator(left @ right.mT), rtol=1e-4, atol=1e-5)
    residual = gaussian(*measured.shape, seed=2, dtype=dtype)
    for_left, for_right = operator.pull_back(residual, left, right)
    error = operator.adjoint(residual)
    torch.testing.assert_close(for_left, error @ right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(for_right, error.mT @ left, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [GaussianSensing, RankOneSensing])
def test_random_measurements_are_isotropic_on_average(kind: type[GaussianSensing] | type[RankOneSensing]) -> None:
    matrix, other = gaussian(4, 3), gaussian(4, 3, seed=1)
    for inner, partner in ((matrix.square().sum(), matrix), ((matrix * other).sum(), other)):
        draws = []
        for seed in range(400):
            operator = kind(4, 3, 30, generator=seeded(seed), dtype=FLOAT64)
            draws.append((operator(matrix) * operator(partner)).sum())
        sample = torch.stack(draws)
        assert float(sample.mean()) == pytest.approx(float(inner), abs=5 * float(sample.std()) / math.sqrt(400))


@pytest.mark.parametrize("kind", [GaussianSensing, RankOneSensing])
def test_operators_name_bad_sizes(kind: type[GaussianSensing] | type[RankOneSensing]) -> None:
    with pytest.raises(ValueError, match="columns is 0; expected 1 or more"):
        kind(3, 0, 5)
    with pytest.raises(ValueError, match="measurements is -2; expected 1 or more"):
        kind(3, 3, -2)


def test_operators_keep_their_vectors_in_the_state() -> None:
    matrix = gaussian(5, 5)
    first, second = (GaussianSensing(5, 5, 9, generator=seeded(seed), dtype=FLOAT64) for seed in (1, 2))
    assert not torch.equal(first(matrix), second(matrix))
    assert_state_dict_round_trip(first, second, matrix)


# The start


@DTYPES
def test_start_has_its_scales_from_one_draw(dtype: torch.dtype) -> None:
    scales = torch.tensor([[0.0, 1.0], [0.5, 0.25]], dtype=dtype)
    left, right = initial_factors(300, 200, 40, scale=scales, generator=seeded(), dtype=dtype)
    assert left.shape == (2, 2, 300, 40)
    assert right.shape == (2, 2, 200, 40)
    assert left.dtype == right.dtype == dtype
    torch.testing.assert_close(left, scales[..., None, None] * left[0, 1])
    assert not left[0, 0].any()
    # 12 000 and 8 000 normal entries: their variance is known to about 1.5 %.
    assert float(left[0, 1].square().mean()) * 300 == pytest.approx(1, abs=0.07)
    assert float(right[0, 1].square().mean()) * 200 == pytest.approx(1 / 9, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0, "scale": 1.0}, "rank is 0; expected 1 or more"),
        ({"rank": 2, "scale": -1.0}, r"scale is -1.0; expected finite numbers of 0 or more"),
        ({"rank": 2, "scale": 1.0, "ratio": math.inf}, "ratio is inf; expected a finite number of 0 or more"),
    ],
)
def test_start_names_bad_input(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initial_factors(3, 3, **arguments)  # type: ignore[arg-type]


# One step


@OPERATORS
@DTYPES
def test_step_is_that_of_autograd(kind: str, dtype: torch.dtype) -> None:
    operator = operators(5, 5, dtype)[kind]
    left = gaussian(5, 3, dtype=dtype).requires_grad_()
    right = gaussian(5, 3, seed=1, dtype=dtype).requires_grad_()
    y = operator(gaussian(5, 5, seed=2, dtype=dtype))
    loss = (operator(left @ right.T) - y).square().sum() / 2
    for_left, for_right = torch.autograd.grad(loss, [left, right])
    new_left, new_right = gradient_step(operator, y, left.detach(), right.detach(), 0.1)
    assert new_right is not None
    torch.testing.assert_close(new_left, left.detach() - 0.1 * for_left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_right, right.detach() - 0.1 * for_right, rtol=1e-4, atol=1e-4)

    loss = (operator(left @ left.T) - y).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, [left])
    new_left, none = gradient_step(operator, y, left.detach(), None, 0.1)
    assert none is None
    torch.testing.assert_close(new_left, left.detach() - 0.05 * gradient, rtol=1e-4, atol=1e-4)


@OPERATORS
def test_step_changes_the_imbalance_to_second_order_only(kind: str) -> None:
    operator = operators(6, 4)[kind]
    left, right = gaussian(6, 3), gaussian(4, 3, seed=1)
    y, rate = operator(gaussian(6, 4, seed=2)), 0.05
    error = operator.adjoint(operator(left @ right.T) - y)
    expected = rate**2 * (right.T @ error.T @ error @ right - left.T @ error @ error.T @ left)
    new_left, new_right = gradient_step(operator, y, left, right, rate)
    assert new_right is not None
    change = imbalance(new_left, new_right) - imbalance(left, right)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-12)


def test_scalar_step_is_the_recursion() -> None:
    """k = r = 1 with the start along the truth: x ← x + η (σ − x²) x."""
    direction, sigma, rate = random_rotation(6)[:, :1], 0.7, 0.2
    x = torch.tensor(0.3, dtype=FLOAT64)
    factor = x * direction
    operator = IdentitySensing(6, 6)
    y = operator(sigma * direction @ direction.T)
    for _ in range(40):
        factor, _ = gradient_step(operator, y, factor, None, rate)
        x = x + rate * (sigma - x**2) * x
        torch.testing.assert_close(factor, x * direction, rtol=1e-12, atol=1e-13)
    assert float(x**2) == pytest.approx(sigma, rel=1e-4)


# Runs


@OPERATORS
def test_rotating_the_columns_rotates_the_run(kind: str) -> None:
    operator = operators(5, 4)[kind]
    left, right = initial_factors(5, 4, 3, scale=0.5, generator=seeded(), dtype=FLOAT64)
    y = operator(gaussian(5, 2, seed=1) @ gaussian(2, 4, seed=2) / 5)
    turn = random_rotation(3)
    one = factored_gradient_descent(operator, y, left, right, steps=60, rebalance_at=30)
    two = factored_gradient_descent(operator, y, left @ turn, right @ turn, steps=60, rebalance_at=30)
    assert one.right is not None and two.right is not None
    torch.testing.assert_close(two.left, one.left @ turn, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.right, one.right @ turn, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.residual, one.residual)


def test_same_start_of_two_factors_is_the_symmetric_run() -> None:
    operator = IdentitySensing(8, 8)
    truth = truth_of(8, [1.0, 0.5])
    left, _ = initial_factors(8, 8, 4, scale=0.5, generator=seeded(), dtype=FLOAT64)
    one = factored_gradient_descent(operator, operator(truth), left, steps=300, truth=truth)
    two = factored_gradient_descent(operator, operator(truth), left, left, steps=300, truth=truth)
    assert one.error is not None and two.error is not None and two.right is not None
    torch.testing.assert_close(one.error, two.error, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two.left, two.right, rtol=0, atol=1e-13)
    torch.testing.assert_close(two.imbalance, torch.zeros(301, dtype=FLOAT64), rtol=0, atol=1e-12)


def test_batch_of_runs_is_each_run_alone() -> None:
    operator = GaussianSensing(6, 5, 80, generator=seeded(1), dtype=FLOAT64)
    truths = torch.stack([gaussian(6, 1, seed=s) @ gaussian(1, 5, seed=s + 9) / 5 for s in (1, 2)])[:, None]
    scales = torch.tensor([0.5, 0.25, 0.1], dtype=FLOAT64)
    left, right = initial_factors(6, 5, 3, scale=scales, generator=seeded(), dtype=FLOAT64)
    beta = torch.tensor([0.8, 0.9, 1.0], dtype=FLOAT64)
    whole = factored_gradient_descent(
        operator, operator(truths), left, right, steps=90, rebalance_below=0.3, beta=beta, truth=truths
    )
    assert whole.error is not None and whole.right is not None
    assert whole.error.shape == whole.residual.shape == whole.imbalance.shape == (91, 2, 3)
    assert whole.rebalanced_at.shape == (2, 3)
    assert len(whole.rebalanced_at.unique()) > 2  # each run has a time of its own
    for i in range(2):
        for j in range(3):
            alone = factored_gradient_descent(
                operator,
                operator(truths[i, 0]),
                left[j],
                right[j],
                steps=90,
                rebalance_below=0.3,
                beta=beta[j],
                truth=truths[i, 0],
                record_at=(0, 45, 90),
            )
            assert alone.error is not None and alone.right is not None
            assert alone.steps.tolist() == [0, 45, 90]
            assert int(alone.rebalanced_at) == int(whole.rebalanced_at[i, j])
            torch.testing.assert_close(alone.error, whole.error[[0, 45, 90], i, j], rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(alone.imbalance, whole.imbalance[[0, 45, 90], i, j], rtol=1e-8, atol=1e-11)
            torch.testing.assert_close(alone.right, whole.right[i, j], rtol=1e-8, atol=1e-11)


@DTYPES
def test_trace_says_what_happened(dtype: torch.dtype) -> None:
    operator = IdentitySensing(6, 4)
    truth = (gaussian(6, 1, seed=1) @ gaussian(1, 4, seed=2) / 4).to(dtype)
    left, right = initial_factors(6, 4, 2, scale=0.6, generator=seeded(), dtype=dtype)
    given = left.clone()
    seen: list[int] = []
    trace = factored_gradient_descent(
        operator, operator(truth), left, right, steps=400, truth=truth, record_at=[400, 0, 7], callback=seen.append
    )
    assert torch.equal(left, given)
    assert seen == trace.steps.tolist() == [0, 7, 400]
    assert trace.error is not None and trace.right is not None
    assert trace.error.dtype == trace.left.dtype == dtype
    size = torch.linalg.matrix_norm(truth)
    torch.testing.assert_close(trace.residual * size, trace.error)
    torch.testing.assert_close(trace.error[0], torch.linalg.matrix_norm(left @ right.T - truth))
    torch.testing.assert_close(trace.imbalance[-1], torch.linalg.eigvalsh(imbalance(trace.left, trace.right))[0])
    assert int(trace.rebalanced_at) == -1
    assert float(trace.error[-1]) < 1e-3 * float(size)


def test_run_takes_a_users_operator() -> None:
    operator = Diagonal(4, 4)
    y = torch.tensor([1.0, 0.5, -0.5, 2.0], dtype=FLOAT64)
    left, right = initial_factors(4, 4, 4, scale=1.0, generator=seeded(), dtype=FLOAT64)
    trace = factored_gradient_descent(operator, y, left, right, steps=2000, rebalance_below=0.3)
    assert trace.error is None and trace.right is not None
    torch.testing.assert_close((trace.left @ trace.right.T).diagonal(), y, rtol=0, atol=1e-6)


def test_runs_are_deterministic() -> None:
    def run() -> Tensor:
        operator = RankOneSensing(5, 5, 100, generator=seeded(3))
        left, right = initial_factors(5, 5, 2, scale=0.5, generator=seeded(4))
        y = operator(torch.eye(5))
        return factored_gradient_descent(operator, y, left, right, steps=20, learning_rate=0.02).left

    assert_deterministic(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "record_at is None and steps is -1; expected at least one step"),
        ({"record_at": [0, 4]}, r"record_at is \[0, 4\] and steps is 3"),
        ({"record_at": []}, r"record_at is \[\] and steps is 3"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a finite number above 0"),
        ({"rebalance_at": 1, "rebalance_below": 0.1}, "rebalance_at is 1 and rebalance_below is 0.1; expected one"),
        ({"rebalance_at": -1}, "rebalance_at is -1; expected 0 or more"),
        ({"rebalance_below": 0.0}, "rebalance_below is 0.0; expected a number above 0"),
        ({"right": None, "rebalance_at": 1}, "right is None; expected two factors"),
        ({"right": torch.ones(4, 3)}, r"shapes \(4, 2\) and \(4, 3\); expected \(..., n1, k\)"),
        ({"right": torch.ones(5, 2)}, "left and right have 4 and 5 rows; expected 4 and 4"),
        ({"measurements": torch.ones(7)}, r"measurements has shape \(7,\); expected \(..., 16\)"),
        ({"measurements": torch.zeros(16)}, "measurements holds a vector of zeros"),
    ],
)
def test_run_names_bad_input(changes: dict[str, object], message: str) -> None:
    arguments = {"measurements": torch.ones(16), "left": torch.ones(4, 2), "right": torch.ones(4, 2), "steps": 3}
    with pytest.raises(ValueError, match=message):
        factored_gradient_descent(IdentitySensing(4, 4), **{**arguments, **changes})  # type: ignore[arg-type]


# Rebalancing


@DTYPES
@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 8, 3), (4, 5, 7), (1, 1, 1)])
def test_rebalancing_keeps_the_product_and_evens_the_columns(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    n1, n2, k = shape
    left, right = gaussian(2, n1, k, dtype=dtype), gaussian(2, n2, k, seed=1, dtype=dtype)
    new_left, new_right = rebalance(left, right, 0.7)
    assert new_left.shape == left.shape and new_right.shape == right.shape and new_left.dtype == dtype
    tolerance = 1e-12 if dtype == FLOAT64 else 1e-4
    torch.testing.assert_close(new_left @ new_right.mT, left @ right.mT, rtol=tolerance, atol=tolerance)
    gram = new_left.mT @ new_left if k <= n1 else new_left @ new_left.mT
    identity = torch.eye(min(n1, k), dtype=dtype).expand_as(gram)
    torch.testing.assert_close(gram, 0.49 * identity, rtol=tolerance, atol=tolerance)


def test_rebalancing_is_the_papers_step_up_to_a_rotation() -> None:
    left, right, beta = gaussian(6, 3), gaussian(5, 3, seed=1), 0.8
    u, s, vh = torch.linalg.svd(left, full_matrices=False)
    new_left, new_right = rebalance(left, right, beta)
    torch.testing.assert_close(new_left, left @ vh.T @ torch.diag(beta / s) @ vh)
    torch.testing.assert_close(new_left @ vh.T, beta * u)
    torch.testing.assert_close(new_right @ vh.T, right @ vh.T @ torch.diag(s / beta))


def test_rebalancing_turns_with_the_columns_and_rests_when_done_twice() -> None:
    left, right, turn = gaussian(6, 3), gaussian(5, 3, seed=1), random_rotation(3)
    new_left, new_right = rebalance(left, right)
    turned_left, turned_right = rebalance(left @ turn, right @ turn)
    torch.testing.assert_close(turned_left, new_left @ turn)
    torch.testing.assert_close(turned_right, new_right @ turn)
    again_left, again_right = rebalance(new_left, new_right)
    torch.testing.assert_close(again_left, new_left)
    torch.testing.assert_close(again_right, new_right)


def test_default_beta_is_the_root_of_the_largest_singular_value() -> None:
    left, right = gaussian(4, 6, 3), gaussian(4, 5, 3, seed=1)
    new_left, _ = rebalance(left, right)
    expected = torch.linalg.matrix_norm(left @ right.mT, ord=2)
    torch.testing.assert_close(torch.linalg.matrix_norm(new_left, ord=2).square(), expected)


def test_rebalancing_survives_lost_directions() -> None:
    """Columns of zeros in F get length β, and the product still does not move."""
    left, right = gaussian(6, 4), gaussian(5, 4, seed=1)
    left[:, 2:] = 0
    new_left, new_right = rebalance(left, right, 0.5)
    torch.testing.assert_close(new_left @ new_right.T, left @ right.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(new_left.T @ new_left, 0.25 * torch.eye(4, dtype=FLOAT64), rtol=0, atol=1e-12)


def test_rebalancing_is_differentiable() -> None:
    right = gaussian(4, 2, seed=1)
    assert_numerical_gradient(lambda left: torch.cat(rebalance(left, right, 0.7)), gaussian(5, 2))


@pytest.mark.parametrize(
    ("left", "right", "beta", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 1), None, r"shapes \(3, 2\) and \(3, 1\)"),
        (torch.ones(3), torch.ones(3), None, r"shapes \(3,\) and \(3,\); expected \(..., n1, k\)"),
        (torch.ones(3, 2), torch.zeros(4, 2), None, "beta is None and the product of the factors is zero"),
        (torch.ones(3, 2), torch.ones(4, 2), 0.0, "beta is 0.0; expected finite numbers above 0"),
    ],
)
def test_rebalancing_names_bad_input(left: Tensor, right: Tensor, beta: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebalance(left, right, beta)


def test_only_runs_that_are_due_are_rebalanced() -> None:
    """A run whose second factor is zero never moves and never gets there; the others must not suffer from it."""
    operator = IdentitySensing(5, 5)
    truth = truth_of(5, [1.0])
    left, right = initial_factors(5, 5, 2, scale=0.5, generator=seeded(), dtype=FLOAT64)
    stuck = torch.zeros(2, 5, 2, dtype=FLOAT64)
    stuck[0] = left
    other = torch.zeros_like(stuck)
    other[0] = right
    trace = factored_gradient_descent(operator, operator(truth), stuck, other, steps=200, rebalance_below=0.3)
    assert int(trace.rebalanced_at[0]) > 0
    assert int(trace.rebalanced_at[1]) == -1


# Rates


def test_pair_of_spare_entries_follows_its_closed_form() -> None:
    f = torch.tensor([0.5, 0.5, 0.3, -0.4], dtype=FLOAT64)
    g = torch.tensor([0.5, 0.2, 0.6, 0.1], dtype=FLOAT64)
    rate, steps = 1e-3, 20_000
    x, y = f.clone(), g.clone()
    for _ in range(steps):
        x, y = x - rate * x * y**2, y - rate * y * x**2
    time = torch.tensor(rate * steps, dtype=FLOAT64)
    torch.testing.assert_close(redundant_product(f, g, time), x * y, rtol=3e-3, atol=0)
    torch.testing.assert_close(redundant_product(f, g, torch.zeros((), dtype=FLOAT64)), f * g)


def test_closed_form_has_both_rates_of_the_paper() -> None:
    late = torch.tensor([500.0, 1000.0], dtype=FLOAT64)
    half = torch.tensor(0.5, dtype=FLOAT64)
    balanced = redundant_product(half, half, late)
    torch.testing.assert_close(balanced * 2 * late, torch.ones(2, dtype=FLOAT64), rtol=0.01, atol=0)
    unequal = redundant_product(half, half / 3, late / 10)
    slope = float(torch.log(unequal[1] / unequal[0]) / 50)
    assert slope == pytest.approx(-(0.25 - 0.25 / 9), rel=1e-3)
    assert torch.isfinite(redundant_product(half, half / 3, torch.tensor(1e9, dtype=FLOAT64)))


@pytest.mark.parametrize("spare", [1, 3])
def test_symmetric_error_is_that_of_a_run(spare: int) -> None:
    operator, truth, steps = IdentitySensing(8, 8), truth_of(8, [1.0, 1.0]), 6000
    left, _ = initial_factors(8, 8, 2 + spare, scale=1.0, generator=seeded(), dtype=FLOAT64)
    trace = factored_gradient_descent(
        operator, operator(truth), left, learning_rate=0.2, steps=steps, truth=truth, record_at=[steps]
    )
    assert trace.error is not None
    expected = symmetric_error(torch.tensor(float(steps), dtype=FLOAT64), 0.2, spare)
    torch.testing.assert_close(trace.error[0], expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("beta", [0.6, 1.0])
def test_linearised_rate_is_the_smallest_curvature(beta: float) -> None:
    """With every entry measured: η times the least of β² (spare columns) and σ_r² / β² (the matrix itself)."""
    u, v = random_rotation(6)[:, :4], random_rotation(5, seed=1)[:, :4]
    sigma = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=FLOAT64)
    rate = float(contraction_rate(IdentitySensing(6, 5), beta * u, v * sigma / beta, 0.1))
    assert rate == pytest.approx(-math.log(1 - 0.1 * min(beta**2, 0.25 / beta**2)), rel=1e-9)


def test_linearised_rate_is_that_of_a_run() -> None:
    truth = truth_of(8, [1.0, 1.0])
    left, right = initial_factors(8, 8, 3, scale=0.5, generator=seeded(1), dtype=FLOAT64)
    operator = IdentitySensing(8, 8)
    trace = factored_gradient_descent(
        operator, operator(truth), left, right, learning_rate=0.2, steps=3000, truth=truth, record_at=range(0, 3001, 5)
    )
    assert trace.error is not None and trace.right is not None
    fit = fit_rate(trace.error[1:], trace.steps[1:], high=1e-5)
    assert bool(fit.geometric)
    expected = contraction_rate(operator, trace.left, trace.right, 0.2)
    assert float(fit.rate) == pytest.approx(float(expected), rel=0.01)
    assert float(expected) > 0.001
    with pytest.raises(ValueError, match=r"shapes \(8, 3\) and \(8, 2\)"):
        contraction_rate(operator, trace.left, trace.right[:, :2], 0.2)


@OPERATORS
def test_linearised_rate_is_that_of_the_jacobian(kind: str) -> None:
    operator = operators(4, 3)[kind]
    left, right = gaussian(2, 4, 2), gaussian(2, 3, 2, seed=1)
    rates = contraction_rate(operator, left, right, 0.01)
    assert rates.shape == (2,)
    for i in range(2):
        parts = torch.autograd.functional.jacobian(operator.measure_product, (left[i], right[i]))
        curvature = torch.linalg.svdvals(torch.cat([part.flatten(1) for part in parts], dim=1)).square()
        # The product keeps still when the columns of F and G change basis: 2 x 2 directions without curvature.
        slowest = float(curvature.sort(descending=True).values[2 * 7 - 4 - 1])
        assert float(rates[i]) == pytest.approx(-math.log(1 - 0.01 * slowest), rel=1e-9)


def test_linearised_rate_warns_of_steps_that_are_too_large() -> None:
    u = random_rotation(4)[:, :2]
    assert float(contraction_rate(IdentitySensing(4, 4), u, u, 1.5)) < 0


def test_fit_finds_the_law_of_a_curve() -> None:
    steps = torch.arange(1, 2001)
    time = steps.to(FLOAT64)
    curves = torch.stack([5 * torch.exp(-0.02 * time), 0.7 / time, 3 / time.square()], dim=1)
    fit = fit_rate(curves, steps)
    assert fit.geometric.tolist() == [True, False, False]
    assert float(fit.rate[0]) == pytest.approx(0.02)
    assert fit.exponent[1:].tolist() == pytest.approx([-1, -2])
    assert float(fit.deviation.max()) < 1e-9


def test_fit_leaves_transient_and_rounding_out() -> None:
    steps = torch.arange(1, 1001)
    time = steps.to(FLOAT64)
    errors = torch.exp(-0.1 * time) + 1e-15 * (1 + time.cos())
    errors[:20] = 1.0
    fit = fit_rate(errors, steps)
    assert float(fit.rate) == pytest.approx(0.1, rel=1e-3)
    # A curve that rises again after it has reached the floor is rounding, not part of the tail.
    errors[500:] = 1e-3
    assert float(fit_rate(errors, steps).rate) == pytest.approx(0.1, rel=1e-3)


def test_fit_names_bad_input() -> None:
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        fit_rate(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="not positive and increasing; leave step 0 out"):
        fit_rate(torch.ones(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"fewer than 3 points from 1e-12 to 0\.01"):
        fit_rate(torch.ones(9), torch.arange(1, 10))


def test_rates_of_the_paper() -> None:
    """Slow, fast by the squared scale, and fast whatever the scale, at a size where a run takes no time."""
    truth = truth_of(8, [1.0, 1.0])
    operator = IdentitySensing(8, 8)
    y, scales = operator(truth), torch.tensor([0.5, 0.25], dtype=FLOAT64)
    left, right = initial_factors(8, 8, 3, scale=scales, generator=seeded(1), dtype=FLOAT64)

    def fit(second: Tensor | None, **rule: float) -> tuple[Tensor, Tensor]:
        trace = factored_gradient_descent(
            operator,
            y,
            left,
            second,
            learning_rate=0.2,
            steps=3000,
            record_at=range(0, 3001, 10),
            truth=truth,
            **rule,  # type: ignore[arg-type]
        )
        assert trace.error is not None
        found = fit_rate(trace.error[1:], trace.steps[1:])
        return found.rate, found.geometric

    _, geometric = fit(None)
    assert not geometric.any()
    rates, geometric = fit(right)
    assert geometric.all()
    assert float(rates[0] / rates[1]) == pytest.approx(4, rel=0.25)
    faster, geometric = fit(right, rebalance_below=0.1)
    assert geometric.all()
    assert float(faster[0] / faster[1]) == pytest.approx(1, abs=0.15)
    assert float(faster[1]) > 3 * float(rates[1])


# The layer


@DTYPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4, 7, 3), (7, 4, 9), (1, 1, 1)])
def test_layer_is_a_linear_layer(dtype: torch.dtype, bias: bool, shape: tuple[int, int, int]) -> None:
    n2, n1, k = shape
    layer = FactoredLinear(n2, n1, k, bias=bias, generator=seeded(), dtype=dtype)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(gaussian(n1, dtype=dtype))
    x = gaussian(2, 5, n2, seed=1, dtype=dtype)
    assert layer.weight.shape == (n1, n2)
    assert layer(x).dtype == dtype
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)


def test_layer_trains_and_is_saved() -> None:
    layer = FactoredLinear(6, 4, 3, generator=seeded(1))
    x = gaussian(5, 6, dtype=torch.float32)
    assert_gradients_reach_parameters(layer, x)
    assert_state_dict_round_trip(layer, FactoredLinear(6, 4, 3, generator=seeded(2)), x)
    assert "in_features=6, out_features=4, rank=3, bias=True" in repr(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_rebalancing_a_layer_leaves_the_users_network_as_it_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), FactoredLinear(8, 3, 6, generator=seeded())).double()
    x = gaussian(10, 5)
    before = network(x)
    layer = network[2]
    assert isinstance(layer, FactoredLinear)
    parameter = layer.left
    layer.rebalance_(0.5)
    assert layer.left is parameter
    torch.testing.assert_close(network(x), before)
    torch.testing.assert_close(layer.left @ layer.left.T, 0.25 * torch.eye(3, dtype=FLOAT64), rtol=0, atol=1e-6)


def test_layer_fits_a_low_rank_map_faster_once_rebalanced() -> None:
    truth = truth_of(10, [1.0, 1.0])
    losses = []
    for rebalanced in (False, True):
        layer = FactoredLinear(10, 10, 5, scale=0.2, bias=False, generator=seeded(), dtype=FLOAT64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
        for step in range(400):
            if rebalanced and step == 150:
                layer.rebalance_()
            optimizer.zero_grad()
            loss = (layer.weight - truth).square().sum() / 2
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 1e-6 * losses[0]


# The study


@pytest.mark.parametrize("scale", list(Scale))
def test_study_has_spare_columns_and_enough_measurements(scale: Scale) -> None:
    size = room.size_of(scale)
    assert size.measurements > 4 * size.rank * size.side
    assert 2 * size.rank <= size.side


def test_problem_is_what_it_says() -> None:
    problem = room.draw_problem(10_000, Scale.SMOKE)
    size = room.size_of(Scale.SMOKE)
    for truth, number in zip(problem.truths[:, 0], room.CONDITION_NUMBERS, strict=True):
        values = torch.linalg.eigvalsh(truth)
        assert values[-size.rank :].tolist() == pytest.approx([1 / number, 1.0])
        torch.testing.assert_close(values[: -size.rank], torch.zeros(size.side - size.rank, dtype=FLOAT64))


def test_without_the_rebalancing_step_the_rate_depends_on_the_start() -> None:
    problem = room.draw_problem(10_000, Scale.SMOKE)
    growth = {
        arm: float(room.descend(Trial(arm, 10_000, Scale.SMOKE), problem)[room.GROWTH])
        for arm in ("rebalanced", "asymmetric")
    }
    assert abs(growth["rebalanced"]) < 0.2
    assert growth["asymmetric"] > 0.7
