"""Deep learning theory: averages and critical points against closed forms, recursions against simulation, the probe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Scale, Trial
from working_papers.papers.deep_learning_theory import (
    Activation,
    CriticalPoint,
    Kinked,
    Perceptrons,
    critical_init_,
    find_critical,
    first_kernel,
    gaussian_mean,
    kernel_flow,
    metric_moments,
    ntk_flow,
    probe,
    sample_metric,
    susceptibilities,
    vertex_flow,
)
from working_papers.papers.deep_learning_theory import study as room
from working_papers.papers.deep_learning_theory.method import gaussian
from working_papers.testing import (
    assert_deterministic,
    assert_gradients_reach_parameters,
    assert_numerical_gradient,
    assert_state_dict_round_trip,
)

FLOAT64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
KERNELS = torch.logspace(-6, 3, 19, dtype=FLOAT64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(count: int, entries: int = 20, *, seed: int = 0, dtype: torch.dtype = FLOAT64) -> Tensor:
    """Inputs with x · x / n_0 = 1."""
    x = torch.randn(count, entries, generator=seeded(seed), dtype=FLOAT64)
    return (x / x.square().mean(dim=1, keepdim=True).sqrt()).to(dtype)


def identity(z: Tensor) -> Tensor:
    return z


def leaky(z: Tensor) -> Tensor:
    return F.leaky_relu(z, 0.3)


def perceptron(act: nn.Module, sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for entries, neurons in itertools.pairwise(sizes):
        layers += [nn.Linear(entries, neurons), act]
    return nn.Sequential(*layers[:-1])


# Gaussian averages


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)])
def test_averages_of_powers(power: int, moment: int) -> None:
    found = gaussian_mean(lambda z: z.pow(power), KERNELS)
    size = KERNELS.pow(power / 2)
    torch.testing.assert_close(found / size, torch.full_like(KERNELS, moment), rtol=1e-12, atol=1e-12)


def test_averages_across_kinks_are_exact() -> None:
    torch.testing.assert_close(gaussian_mean(torch.relu, KERNELS), (KERNELS / (2 * math.pi)).sqrt(), rtol=1e-12, atol=0)
    probability = gaussian_mean(lambda z: (z > 0.7).double(), KERNELS, kinks=[0.7])
    expected = torch.special.erfc(0.7 / (2 * KERNELS).sqrt()) / 2
    torch.testing.assert_close(probability, expected, rtol=1e-11, atol=1e-13)
    # E[min(z, c)²; z > 0] for ReLU6, whose kink at 6 is known without a word.
    c = 6 / KERNELS.sqrt()
    tail = torch.special.erfc(c / math.sqrt(2)) / 2
    density = (-c.square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = KERNELS * (0.5 - tail - c * density) + 36 * tail
    torch.testing.assert_close(gaussian_mean(Kinked(lambda z: z.clamp(0, 6).square(), [6.0]), KERNELS), expected)
    squared = susceptibilities(nn.ReLU6(), KERNELS, 1.0)[1]
    torch.testing.assert_close(squared, 0.5 - tail, rtol=1e-11, atol=1e-13)


def test_average_of_a_sine_has_its_closed_form_and_its_gradient() -> None:
    kernel = torch.tensor([[0.0, 0.3], [1.0, 4.0]], dtype=FLOAT64)
    found = gaussian_mean(lambda z: torch.sin(z).square(), kernel)
    torch.testing.assert_close(found, (1 - (-2 * kernel).exp()) / 2, rtol=1e-13, atol=1e-15)
    assert_numerical_gradient(lambda k: gaussian_mean(torch.tanh, 1 + k.square()), torch.tensor([0.3, -1.2]))


def test_a_module_is_used_in_float64_and_left_alone() -> None:
    act = nn.PReLU(init=0.5)
    found = gaussian_mean(act, 2.0)
    assert found.dtype == FLOAT64 and act.weight.dtype == torch.float32
    assert float(found) == pytest.approx(0.5 * math.sqrt(2 / (2 * math.pi)))


@pytest.mark.parametrize(
    ("function", "kernel", "message"),
    [
        (torch.tanh, -0.5, "kernel is -0.5; expected finite numbers of 0 or more"),
        (torch.tanh, math.nan, "kernel is nan; expected finite numbers"),
        (torch.sum, 1.0, r"function maps a tensor of shape \(\d+,\) to one of shape \(\); expected the same shape"),
    ],
)
def test_averages_name_bad_input(function: Activation, kernel: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian_mean(function, kernel)


# Susceptibilities


@pytest.mark.parametrize(("act", "square"), [(torch.relu, 0.5), (identity, 1.0), (leaky, 0.545), (torch.abs, 1.0)])
def test_straight_lines_have_the_same_susceptibility_at_all_kernels(act: Activation, square: float) -> None:
    for chi in susceptibilities(act, KERNELS, 1.7):
        torch.testing.assert_close(chi, torch.full_like(KERNELS, 1.7 * square), rtol=1e-12, atol=0)


@pytest.mark.parametrize("act", [torch.tanh, F.gelu, F.silu, F.softplus, F.elu], ids=lambda act: act.__name__)
def test_parallel_susceptibility_is_the_derivative_of_the_map(act: Activation) -> None:
    kernel = torch.tensor([1e-4, 0.02, 0.5, 3.0, 40.0], dtype=FLOAT64, requires_grad=True)
    (derivative,) = torch.autograd.grad(gaussian_mean(lambda z: act(z).square(), kernel).sum(), kernel)
    parallel, _ = susceptibilities(act, kernel.detach(), 1.3)
    torch.testing.assert_close(parallel, 1.3 * derivative, rtol=1e-10, atol=1e-12)
    # The book's formula, from values of the activation alone.
    book = gaussian_mean(lambda z: act(z).square() * (z.square() - kernel.detach()[:, None]), kernel.detach())
    torch.testing.assert_close(parallel, 1.3 * book / (2 * kernel.detach().square()), rtol=1e-5, atol=1e-6)


def test_parallel_susceptibility_of_smooth_activations_needs_two_derivatives_in_other_hands() -> None:
    """χ_∥ = C_W ⟨σ'² + σ σ''⟩ for tanh, whose derivatives are polynomials of it."""

    def integrand(z: Tensor) -> Tensor:
        t = torch.tanh(z)
        return (1 - t.square()).square() - 2 * t.square() * (1 - t.square())

    parallel, perpendicular = susceptibilities(torch.tanh, KERNELS, 1.0)
    torch.testing.assert_close(parallel, gaussian_mean(integrand, KERNELS), rtol=1e-9, atol=1e-12)
    square = gaussian_mean(lambda z: (1 - torch.tanh(z).square()).square(), KERNELS)
    torch.testing.assert_close(perpendicular, square, rtol=1e-9, atol=1e-12)


def test_no_digits_are_lost_at_small_kernels() -> None:
    """Softplus has σ(0) ≠ 0; χ_∥ → σ'² + σ σ'' = 1/4 + log(2) / 4."""
    parallel, _ = susceptibilities(F.softplus, torch.tensor([1e-10, 1e-8], dtype=FLOAT64), 1.0)
    expected = torch.full((2,), (1 + math.log(2)) / 4, dtype=FLOAT64)
    torch.testing.assert_close(parallel, expected, rtol=1e-7, atol=0)


def test_susceptibilities_name_bad_input() -> None:
    with pytest.raises(ValueError, match=r"kernel is 0\.0; expected numbers above 0"):
        susceptibilities(torch.tanh, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"C_W is -1\.0; expected a finite number above 0"):
        susceptibilities(torch.tanh, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"act maps a tensor of shape \(\d+,\) to float; expected the same shape"):
        susceptibilities(lambda z: 3.0, 1.0, 1.0)  # type: ignore[arg-type]


# Critical points


def close(found: float | None, expected: float, tolerance: float) -> bool:
    """Whether a number is there and relatively close to another."""
    return found is not None and abs(found / expected - 1) < tolerance


@pytest.mark.parametrize(
    ("act", "weight"),
    [(torch.relu, 2.0), (identity, 1.0), (leaky, 2 / 1.09), (torch.abs, 1.0), (nn.PReLU(), 2 / 1.0625)],
)
def test_straight_lines_are_scale_invariant(act: Activation, weight: float) -> None:
    point = find_critical(act)
    assert point.kind == "scale_invariant" and point.K_star is None and point.input_square is None
    assert point.C_b == 0 and close(point.C_W, weight, 1e-12)


SELU = 1.0507009873554805


@pytest.mark.parametrize(
    ("act", "weight"),
    [
        (torch.tanh, 1.0),
        (torch.sin, 1.0),
        (torch.erf, math.pi / 4),
        (F.softsign, 1.0),
        (F.elu, 1.0),
        (F.selu, 2 / (SELU**2 * (1 + 1.6732632423543772**2))),
        (nn.Hardtanh(), 1.0),
        (nn.ReLU6(), 2.0),
        (lambda z: z.clamp(-1, 1), 1.0),
    ],
)
def test_kernels_that_are_drawn_to_zero(act: Activation, weight: float) -> None:
    point = find_critical(act)
    assert point.kind == "k_star_zero" and point.K_star == 0
    assert point.C_b == 0 and close(point.C_W, weight, 1e-12)


@pytest.mark.parametrize(
    ("act", "K_star", "C_b", "C_W", "side"),
    [
        (F.gelu, (3 + math.sqrt(17)) / 2, 0.17292239, 1.98305826, "above"),
        (nn.GELU(), (3 + math.sqrt(17)) / 2, 0.17292239, 1.98305826, "above"),
        (F.silu, 14.32017362, 0.55514317, 1.98800468, "below"),
    ],
)
def test_half_stable_points(act: Activation, K_star: float, C_b: float, C_W: float, side: str) -> None:
    point = find_critical(act)
    assert point.kind == "half_stable" and point.stable_from == side
    assert point.K_star == pytest.approx(K_star, abs=1e-7)
    assert close(point.C_b, C_b, 2e-8) and close(point.C_W, C_W, 2e-8)


@pytest.mark.parametrize("act", [F.gelu, F.silu, F.mish, nn.Hardswish()], ids=["gelu", "silu", "mish", "hardswish"])
def test_half_stable_points_are_fixed_and_stable_from_one_side(act: Activation) -> None:
    point = find_critical(act)
    assert point.K_star is not None and point.C_b is not None and point.C_W is not None
    assert point.input_square is not None
    for chi in susceptibilities(act, point.K_star, point.C_W):
        assert float(chi) == pytest.approx(1, abs=1e-9)
    x = inputs(1) * math.sqrt(point.input_square)
    assert float(kernel_flow(act, point.C_b, point.C_W, x, 4)[-1]) == pytest.approx(point.K_star, rel=1e-9)
    sign = 1 if point.stable_from == "above" else -1
    for direction in (sign, -sign):  # towards K* from the stable side, away on the other
        start = point.K_star * (1 + 0.01 * direction)
        x = inputs(1) * math.sqrt((start - point.C_b) / point.C_W)
        gap = (kernel_flow(act, point.C_b, point.C_W, x, 20).flatten() / point.K_star - 1).abs()
        assert bool((gap.diff() < 0).all()) if direction == sign else bool((gap.diff() > 0).all())


@pytest.mark.parametrize(
    "act",
    [
        F.softplus,
        torch.sigmoid,
        torch.exp,
        torch.sinh,
        torch.cos,
        torch.square,
        lambda z: z + 1,
        lambda z: 0 * z + 1,
        torch.zeros_like,
        F.softshrink,
    ],
)
def test_activations_without_a_critical_point(act: Activation) -> None:
    assert find_critical(act) == CriticalPoint("none")


def test_an_undeclared_kink_is_noticed_and_can_be_declared() -> None:
    def hard_swish(z: Tensor) -> Tensor:
        return z * (z + 3).clamp(0, 6) / 6

    with pytest.raises(ValueError, match=r"act has a jump or an undeclared kink: .* at K = 4\.8.*Kinked"):
        find_critical(hard_swish)
    found, known = find_critical(Kinked(hard_swish, at=[-3.0, 3.0])), find_critical(F.hardswish)
    assert found.kind == known.kind == "half_stable"
    assert found.K_star == pytest.approx(known.K_star, rel=1e-9) and found.C_b == pytest.approx(known.C_b, rel=1e-9)
    with pytest.raises(ValueError, match=r"at is \[inf\]; expected finite numbers"):
        Kinked(hard_swish, at=[math.inf])


# The recursions


@pytest.mark.parametrize("C_W", [1.0, 2.0, 3.0])
def test_relu_kernels_grow_geometrically(C_W: float) -> None:
    x = inputs(3) * torch.tensor([[0.5], [1.0], [2.0]], dtype=FLOAT64)
    found = kernel_flow(torch.relu, 0.0, C_W, x, 6).diagonal(dim1=1, dim2=2)
    layer = torch.arange(6, dtype=FLOAT64)[:, None]
    torch.testing.assert_close(found, C_W * x.square().mean(dim=1) * (C_W / 2) ** layer, rtol=1e-12, atol=0)


def test_relu_pairs_follow_the_arc_cosine_formula() -> None:
    found = kernel_flow(torch.relu, 0.1, 1.5, inputs(4), 3)
    for now, after in itertools.pairwise(found):
        for a in range(4):
            for b in range(a):
                length = math.sqrt(float(now[a, a] * now[b, b]))
                angle = math.acos(float(now[a, b]) / length)
                arc = length / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
                assert float(after[a, b]) == pytest.approx(0.1 + 1.5 * arc, abs=1e-12)


def test_tanh_kernel_decays_as_one_over_twice_the_depth() -> None:
    last = float(kernel_flow(torch.tanh, 0.0, 1.0, inputs(1), 1000)[-1])
    assert last * 1000 == pytest.approx(0.50167, abs=1e-5)
    assert float(kernel_flow(torch.sin, 0.0, 1.0, inputs(1), 1000)[-1]) * 1000 == pytest.approx(1.0, rel=0.01)


def brute_force(act: Activation, kernel: Tensor, derivative: bool = False) -> Tensor:
    """⟨σ_a σ_b⟩ of a pair on a plain fine grid."""
    line = torch.linspace(-8, 8, 801, dtype=FLOAT64)
    density = (-line.square() / 2).exp() * (line[1] - line[0]) / math.sqrt(2 * math.pi)
    root = torch.linalg.cholesky(kernel)
    u, v = line[:, None], line[None]
    first, second = root[0, 0] * u + 0 * v, root[1, 0] * u + root[1, 1] * v
    part = 1 if derivative else 0
    product = gaussian.value_and_slope(act, first)[part] * gaussian.value_and_slope(act, second)[part]
    return (product * density[:, None] * density).sum()


@pytest.mark.parametrize("correlation", [-0.95, 0.6, 0.99])
@pytest.mark.parametrize(
    "act", [torch.tanh, F.gelu, leaky, F.elu, nn.Hardtanh()], ids=["tanh", "gelu", "leaky", "elu", "hardtanh"]
)
def test_pairs_agree_with_a_fine_grid(act: Activation, correlation: float) -> None:
    cross = correlation * math.sqrt(2.0 * 0.7)
    kernel = torch.tensor([[2.0, cross], [cross, 0.7]], dtype=FLOAT64)
    values, slopes = gaussian.pair_means(act, kernel)
    assert float(values[0, 1]) == pytest.approx(float(brute_force(act, kernel)), abs=1e-4)
    assert float(slopes[0, 1]) == pytest.approx(float(brute_force(act, kernel, derivative=True)), abs=1e-2)
    assert torch.equal(values, values.T) and torch.equal(slopes, slopes.T)


def test_three_ways_to_average_pairs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = first_kernel(inputs(5, 8), 0.1, 1.9)
    rows, columns = torch.tril_indices(5, 5, offset=-1)
    diagonal = kernel.diagonal()
    correlation = kernel[rows, columns] / (diagonal[rows] * diagonal[columns]).sqrt()
    for act, tolerance in ((torch.tanh, 1e-9), (F.gelu, 1e-12), (leaky, 1e-12)):
        found = gaussian.pair_means(act, kernel)
        polar = gaussian._polar_means(act, diagonal[rows], diagonal[columns], correlation)
        for whole, part in zip(found, polar, strict=True):
            torch.testing.assert_close(whole[rows, columns], part, rtol=tolerance, atol=tolerance)
    closed = gaussian.pair_means(leaky, kernel)
    monkeypatch.setattr(gaussian, "homogeneous_slopes", lambda act: None)
    for whole, part in zip(closed, gaussian.pair_means(leaky, kernel), strict=True):
        torch.testing.assert_close(whole, part, rtol=1e-9, atol=1e-9)


def test_degenerate_inputs_are_harmless() -> None:
    """The same input twice, its double, its negative, and zero."""
    one = inputs(1)
    x = torch.cat([one, one, 2 * one, -one, 0 * one])
    for act in (torch.relu, torch.tanh, F.elu, nn.Hardtanh()):
        kernel, tangent = ntk_flow(act, 0.0, 1.0, x, 4)
        assert bool(kernel.isfinite().all()) and bool(tangent.isfinite().all())
        torch.testing.assert_close(kernel[:, 0, 1], kernel[:, 0, 0], rtol=1e-7, atol=0)
        torch.testing.assert_close(tangent[:, 0, 1], tangent[:, 0, 0], rtol=1e-4, atol=0)
        torch.testing.assert_close(kernel[:, 4], torch.zeros(4, 5, dtype=FLOAT64))
    odd = kernel_flow(torch.tanh, 0.0, 1.0, x, 4)
    torch.testing.assert_close(odd[:, 0, 3], -odd[:, 0, 0], rtol=1e-9, atol=0)


@DTYPES
def test_flows_are_in_float64_whatever_they_are_given(dtype: torch.dtype) -> None:
    kernel, tangent = ntk_flow(F.gelu, 0.2, 2.0, inputs(3, dtype=dtype), 3)
    expected = ntk_flow(F.gelu, 0.2, 2.0, inputs(3), 3)
    assert kernel.dtype == tangent.dtype == FLOAT64 and kernel.shape == tangent.shape == (3, 3, 3)
    torch.testing.assert_close(kernel, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tangent, expected[1], rtol=1e-6, atol=1e-6)


def test_relu_tangent_kernel_grows_linearly() -> None:
    kernel, tangent = ntk_flow(torch.relu, 0.0, 2.0, inputs(1), 8, lambda_b=0.3, lambda_W=1.7)
    layer = torch.arange(1, 9, dtype=FLOAT64)
    torch.testing.assert_close(tangent.flatten(), layer * (0.3 + 1.7 * kernel[0, 0, 0] / 2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("act", [torch.tanh, F.gelu, torch.relu], ids=["tanh", "gelu", "relu"])
def test_tangent_kernel_of_wide_networks(act: Activation) -> None:
    """Gradients of many networks of width 256, each counted with its learning rate."""
    lambda_b, lambda_W, x = 0.5, 1.3, inputs(2, 10, seed=3).float()
    networks = Perceptrons(act, [10, 256, 256, 1], 0.1, 1.4, seeds=range(24))
    outputs = networks(x)  # (R, 2, 1)
    found = torch.zeros(24, 2, 2)
    gradients = [
        torch.autograd.grad(outputs[:, i].sum(), list(networks.parameters()), retain_graph=True) for i in (0, 1)
    ]
    for i in (0, 1):
        for j in (0, 1):
            for name, one, two in zip(dict(networks.named_parameters()), gradients[i], gradients[j], strict=True):
                rate = lambda_b if name.startswith("biases") else lambda_W / one.shape[-1]
                found[:, i, j] += rate * (one * two).sum(dim=(1, 2))
    expected = ntk_flow(act, 0.1, 1.4, x, 3, lambda_b=lambda_b, lambda_W=lambda_W)[1][-1].float()
    error = found.std(dim=0) / math.sqrt(24)
    assert bool(((found.mean(dim=0) - expected).abs() < 4 * error + 0.02 * expected).all())


@pytest.mark.parametrize(
    ("act", "coefficient"),
    [(torch.relu, 5.0), (identity, 2.0), (leaky, 3 * (1 + 0.3**4) / 2 / (1.09 / 2) ** 2 - 1), (torch.abs, 2.0)],
    ids=["relu", "linear", "leaky", "abs"],
)
def test_vertex_of_straight_lines_grows_linearly(act: Activation, coefficient: float) -> None:
    C_W = find_critical(act).C_W
    assert C_W is not None
    found = vertex_flow(act, 0.0, C_W, 1.3, 9) / 1.3**2
    torch.testing.assert_close(found, coefficient * torch.arange(9, dtype=FLOAT64), rtol=1e-11, atol=1e-12)


def test_vertex_of_tanh_grows_by_two_thirds() -> None:
    moments = metric_moments(torch.tanh, 0.0, 1.0, 1.0, [1] * 1000)
    growth = (moments.variance / moments.kernel.square()).diff()
    assert float(growth[-1]) == pytest.approx(2 / 3, abs=1e-3)
    assert bool((growth[1:] < 2 / 3).all())  # from below


def test_unequal_widths_add_up() -> None:
    widths = [10, 40, 25]
    moments = metric_moments(torch.relu, 0.0, 2.0, 0.7, widths)
    expected = torch.tensor([0.0, *np.cumsum([5 / width for width in widths])], dtype=FLOAT64)
    torch.testing.assert_close(moments.variance / 0.49, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(moments.excess, 3 * expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(moments.mean, moments.kernel, rtol=1e-9, atol=0)  # ReLU's mean is exact at any width


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_flow(torch.tanh, 0.0, 1.0, inputs(2), 0), "depth is 0; expected 1 or more layers"),
        (lambda: vertex_flow(torch.tanh, 0.0, 1.0, 1.0, 0), "depth is 0; expected 1 or more layers"),
        (lambda: kernel_flow(torch.tanh, -0.1, 1.0, inputs(2), 2), "C_b is -0.1; expected a finite number of 0 or"),
        (lambda: kernel_flow(torch.tanh, 0.0, 0.0, inputs(2), 2), "C_W is 0.0; expected a finite number above 0"),
        (lambda: kernel_flow(torch.tanh, 0.0, 1.0, inputs(2)[0], 2), r"x has shape \(20,\) and dtype torch.float64"),
        (lambda: ntk_flow(torch.tanh, 0.0, 1.0, torch.ones(2, 3).int(), 2), r"dtype torch.int32; expected \(B, n_0\)"),
        (lambda: metric_moments(torch.tanh, 0.0, 1.0, 0.0, [3]), "K1 is 0.0; expected one number above 0"),
        (lambda: metric_moments(torch.tanh, 0.0, 1.0, 1.0, [3, 0]), r"widths is \[3, 0\]; expected numbers of 1 or"),
    ],
)
def test_recursions_name_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Ensembles


def within_errors(samples: Tensor, expected: float, errors: float = 4.5) -> bool:
    """Whether the mean of independent samples is the expected number."""
    return abs(float(samples.mean()) - expected) < errors * float(samples.std()) / math.sqrt(len(samples))


def test_relu_networks_scatter_as_they_must_to_all_orders() -> None:
    """E[G²] / K² of ReLU is the product of 1 + 5 / n over hidden layers, at every width."""
    widths = [12, 20, 8]
    metric = sample_metric(
        torch.relu, 0.0, 2.0, inputs(1, 6, dtype=torch.float32), widths, networks=20_000, generator=seeded()
    ).squeeze(2)
    assert metric.shape == (4, 20_000)
    torch.testing.assert_close(metric[0], torch.full((20_000,), 2.0))
    for layer in range(1, 4):
        assert within_errors(metric[layer], 2.0)
        expected = 4 * math.prod(1 + 5 / width for width in widths[:layer])
        assert within_errors(metric[layer].double().square(), expected)


@pytest.mark.parametrize("uniform", [False, True])
def test_mean_and_variance_of_tanh_networks(uniform: bool) -> None:
    widths = [32] * 8
    x = inputs(1, 64, dtype=torch.float32)
    metric = sample_metric(
        torch.tanh, 0.0, 1.0, x, widths, networks=6000, uniform=uniform, generator=seeded(1)
    ).double()
    predicted = metric_moments(torch.tanh, 0.0, 1.0, 1.0, widths)
    torch.testing.assert_close(metric.mean(dim=(1, 2)), predicted.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(metric.var(dim=1).flatten()[1:], predicted.variance[1:], rtol=0.15, atol=0)
    assert float(predicted.mean[-1] / predicted.kernel[-1]) < 0.96  # the correction of order 1 / n is needed


def test_biases_enter_the_random_kernel() -> None:
    x = inputs(1, 64, dtype=torch.float32)
    metric = sample_metric(F.gelu, 0.3, 1.2, x, [200, 200], networks=800, generator=seeded(2)).double()
    predicted = metric_moments(F.gelu, 0.3, 1.2, 1.5, [200, 200])
    torch.testing.assert_close(metric.mean(dim=(1, 2)), predicted.mean, rtol=0.02, atol=0)


def test_neurons_have_the_predicted_excess() -> None:
    networks = Perceptrons(torch.relu, [10, 40, 40, 40, 16], 0.0, 2.0, seeds=range(1500))
    with torch.no_grad():
        z = networks(inputs(1, 10, dtype=torch.float32)).double().squeeze(1)
    excess = (z.pow(4).mean(dim=1) - 3 * 4).div(4)
    expected = 3 * (math.prod(1 + 5 / 40 for _ in range(3)) - 1)
    assert within_errors(excess, expected)
    first_order = float(metric_moments(torch.relu, 0.0, 2.0, 2.0, [40] * 3).excess[-1])
    assert first_order == pytest.approx(3 * 15 / 40)


@DTYPES
def test_ensembles_take_shared_and_own_inputs(dtype: torch.dtype) -> None:
    x = inputs(6, 5, dtype=dtype)
    shared = sample_metric(F.gelu, 0.1, 2.0, x, [7, 9], networks=3, generator=seeded())
    own = sample_metric(F.gelu, 0.1, 2.0, x.expand(3, 6, 5), [7, 9], networks=3, generator=seeded())
    assert shared.shape == (3, 3, 6) and shared.dtype == dtype
    assert torch.equal(shared, own)
    assert sample_metric(F.gelu, 0.1, 2.0, x, [], networks=3).shape == (1, 3, 6)
    assert_deterministic(lambda: sample_metric(F.gelu, 0.1, 2.0, x, [7], networks=2, generator=seeded(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": 0}, r"networks is 0 and widths is \[4\]; expected numbers of 1 or more"),
        ({"widths": [4, 0]}, r"networks is 3 and widths is \[4, 0\]"),
        ({"x": torch.ones(2, 4, 5)}, r"x has shape \(2, 4, 5\) .*; expected \(B, n_0\) or \(3, B, n_0\)"),
        ({"x": torch.ones(4, 5).long()}, "dtype torch.int64; expected"),
    ],
)
def test_ensembles_name_bad_input(changes: dict[str, object], message: str) -> None:
    arguments = {"x": torch.ones(4, 5), "widths": [4], "networks": 3, **changes}
    with pytest.raises(ValueError, match=message):
        sample_metric(torch.tanh, 0.0, 1.0, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("default", [False, True])
def test_perceptrons_together_are_perceptrons_alone(default: bool) -> None:
    sizes, x = [5, 8, 6, 3], inputs(4, 5, dtype=torch.float32)
    together = Perceptrons(torch.tanh, sizes, 0.1, 1.5, seeds=[3, 8, 1], default=default)
    whole = together(x)
    assert whole.shape == (3, 4, 3)
    assert [layer.shape for layer in together.preactivations(x)] == [(3, 4, 8), (3, 4, 6), (3, 4, 3)]
    for r, seed in enumerate((3, 8, 1)):
        alone = Perceptrons(torch.tanh, sizes, 0.1, 1.5, seeds=[seed], default=default)
        torch.testing.assert_close(alone(x)[0], whole[r])
        model = perceptron(nn.Tanh(), sizes)
        own = zip(together.weights, together.biases, strict=True)
        with torch.no_grad():
            for linear, (weight, bias) in zip((m for m in model if isinstance(m, nn.Linear)), own, strict=True):
                linear.weight.copy_(weight[r])
                linear.bias.copy_(bias[r, 0])
        torch.testing.assert_close(model(x), whole[r])
    assert_gradients_reach_parameters(together, x)
    assert_state_dict_round_trip(together, Perceptrons(torch.tanh, sizes, 0.1, 1.5, seeds=[0, 0, 0]), x)


def test_perceptrons_have_their_variances() -> None:
    critical = Perceptrons(torch.relu, [300, 400, 300], 0.2, 1.7, seeds=[5])
    for weight, entries in zip(critical.weights, (300, 400), strict=True):
        assert float(weight.detach().var()) * entries == pytest.approx(1.7, rel=0.03)
    assert float(critical.biases[0].detach().var()) == pytest.approx(0.2, rel=0.3)
    default = Perceptrons(torch.relu, [300, 400, 300], 0.2, 1.7, seeds=[5], default=True)
    for part in (default.weights[1], default.biases[1]):
        assert float(part.detach().abs().max()) == pytest.approx(1 / math.sqrt(400), rel=0.02)
    with pytest.raises(ValueError, match=r"sizes is \[3\]; expected at least two numbers"):
        Perceptrons(torch.relu, [3], 0.0, 1.0, seeds=[1])
    with pytest.raises(ValueError, match="seeds is empty"):
        Perceptrons(torch.relu, [3, 3], 0.0, 1.0, seeds=[])


# Initialisation


def test_critical_initialisation_has_the_variance_of_the_point() -> None:
    layer = critical_init_(nn.Linear(1000, 1000), F.gelu, generator=seeded())
    assert float(layer.weight.detach().double().var()) * 1000 == pytest.approx(1.98305826, rel=0.01)
    assert float(layer.bias.detach().double().var()) == pytest.approx(0.17292239, rel=0.2)
    relu = critical_init_(nn.Linear(1000, 1000), torch.relu, generator=seeded())
    assert float(relu.weight.detach().double().var()) * 1000 == pytest.approx(2, rel=0.01)
    assert not relu.bias.any()


@pytest.mark.parametrize(
    ("layer", "entries"),
    [
        (nn.Conv1d(60, 80, 5), 300),
        (nn.Conv2d(64, 80, 3, groups=2, bias=False), 288),
        (nn.Conv3d(10, 80, 3), 270),
        (nn.ConvTranspose2d(90, 60, 4, stride=2), 360),
    ],
)
def test_fan_in_of_convolutions(layer: nn.Conv2d, entries: int) -> None:
    critical_init_(layer, nn.ReLU(), generator=seeded())
    assert float(layer.weight.detach().var()) * entries == pytest.approx(2, rel=0.05)


def test_transposed_convolutions_keep_the_kernel() -> None:
    """Their fan-in is a mean over positions; away from the border it is met exactly."""
    layer = critical_init_(nn.ConvTranspose2d(200, 100, 4, stride=2), identity, generator=seeded())
    with torch.no_grad():
        out = layer(torch.randn(2, 200, 12, 12, generator=seeded(1)))[:, :, 4:-4, 4:-4]
    assert float(out.square().mean()) == pytest.approx(1, rel=0.05)


def test_critical_initialisation_touches_nothing_else() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    before = {name: part.clone() for name, part in model.state_dict().items()}
    assert critical_init_(model, torch.tanh, generator=seeded()) is model
    changed = {name for name, part in model.state_dict().items() if not torch.equal(part, before[name])}
    assert changed == {"1.weight", "1.bias", "4.weight"}
    assert not model.state_dict()["1.bias"].any()
    assert_gradients_reach_parameters(model, torch.tensor([[0, 1], [2, 3], [4, 0]]))
    assert_deterministic(lambda: critical_init_(nn.Linear(3, 3), torch.tanh, generator=seeded(4)).weight.detach())


def test_initialisation_names_bad_input() -> None:
    with pytest.raises(ValueError, match="point has kind 'none'; expected an activation that has a critical point"):
        critical_init_(nn.Linear(2, 2), F.softplus)
    with pytest.raises(ValueError, match="module is ReLU without linear or convolutional layers"):
        critical_init_(nn.ReLU(), torch.relu)
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="module has the layer '1' with a computed or lazy weight"):
        critical_init_(lazy, torch.relu)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="module has the layer '0' with a computed or lazy weight"):
        critical_init_(normed, torch.relu)


# The probe


def test_probe_finds_what_theory_says_of_a_critical_network() -> None:
    model = perceptron(nn.ReLU(), [12, 48, 48, 48, 48, 10])
    before = {name: part.clone() for name, part in model.state_dict().items()}
    state = torch.get_rng_state()
    report = probe(model, inputs(3, 12), seeds=250, initialise=find_critical(torch.relu))
    assert report.layers == ("0", "2", "4", "6", "8") and report.widths == (48, 48, 48, 48, 10)
    assert report.kernel.shape == (5, 3, 3) and report.variance.shape == (5, 3)
    assert report.depth_over_width == pytest.approx(4 / 48) and report.networks == 250
    expected = kernel_flow(torch.relu, 0.0, 2.0, inputs(3, 12), 5)
    torch.testing.assert_close(report.kernel, expected, rtol=0, atol=0.4)  # 4 standard errors at the last layer
    exact = torch.tensor([(1 + 5 / 48) ** layer - 1 for layer in range(5)], dtype=FLOAT64)
    torch.testing.assert_close(report.variance.mean(dim=1), exact, rtol=0.3, atol=0.02)
    torch.testing.assert_close(report.gradient_growth, torch.ones(4, dtype=FLOAT64), rtol=0, atol=0.05)
    assert torch.equal(torch.get_rng_state(), state)  # neither the model nor the global generator has moved
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model)
    lines = report.table().splitlines()
    assert len(lines) == 6 and lines[0].split()[0] == "layer" and lines[1].split()[:2] == ["0", "48"]


def test_probe_shows_that_pytorchs_default_is_not_critical() -> None:
    report = probe(perceptron(nn.Tanh(), [12, 64, 64, 64, 10]), inputs(4, 12), seeds=24)
    C_b = 1 / (3 * 64)
    flow = kernel_flow(torch.tanh, C_b, 1 / 3, inputs(4, 12), 4).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(report.kernel.diagonal(dim1=1, dim2=2)[1:], flow[1:], rtol=0.25, atol=0)
    growth = susceptibilities(torch.tanh, flow[:3, 0], 1 / 3)[1]
    torch.testing.assert_close(report.gradient_growth, growth, rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", ["perceptron", "convolution"])
def test_probe_one_network_at_a_time_is_the_same(kind: str) -> None:
    if kind == "perceptron":
        model, x = perceptron(nn.GELU(), [5, 8, 1]), inputs(3, 5, dtype=torch.float32)
    else:
        body = [nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)]
        model, x = nn.Sequential(*body), torch.randn(3, 2, 8, 8, generator=seeded())
    together, apart = (probe(model, x, seeds=4, vectorise=vectorise) for vectorise in (True, False))
    assert together.layers == apart.layers and together.widths == apart.widths
    torch.testing.assert_close(together.kernel, apart.kernel)
    torch.testing.assert_close(together.variance, apart.variance, equal_nan=True)
    torch.testing.assert_close(together.gradient_growth, apart.gradient_growth)
    if kind == "perceptron":
        assert bool(together.variance[-1].isnan().all())  # a single neuron
    else:
        assert together.widths == (6, 4, 3)


def test_probe_of_convolutions_sees_channels_as_neurons() -> None:
    def conv(entries: int, channels: int) -> nn.Conv2d:
        return nn.Conv2d(entries, channels, 3, padding=1, padding_mode="circular")

    body = [conv(3, 24), nn.ReLU(), conv(24, 24), nn.ReLU(), conv(24, 8)]
    x = torch.randn(2, 3, 5, 5, generator=seeded())
    report = probe(nn.Sequential(*body), x, seeds=60, initialise=find_critical(torch.relu))
    first = 2 * x.double().square().mean(dim=(1, 2, 3))
    for kernel in report.kernel.diagonal(dim1=1, dim2=2):
        torch.testing.assert_close(kernel, first, rtol=0.12, atol=0)
    torch.testing.assert_close(report.gradient_growth, torch.ones(2, dtype=FLOAT64), rtol=0, atol=0.06)


def test_probe_takes_layers_and_an_initialisation_of_the_users_own() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))

    def ones(module: nn.Module) -> None:
        for part in module.parameters():
            nn.init.ones_(part)

    report = probe(model, inputs(2, 4), layers=["3", "1"], seeds=2, initialise=ones)
    assert report.layers == ("1", "3")  # in the order in which they run
    assert float(report.kernel[0, 0, 0]) == pytest.approx(1.0)  # equal entries become 0 · 1 + 1


class Twice(nn.Module):
    """Runs one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.layer(x))
        return result


class Scaled(nn.Module):
    """Has a parameter that nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.scale * self.layer(x)
        return result


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(3, 3), {"seeds": 1}, "seeds is 1; expected 2 or more initialisations"),
        (nn.ReLU(), {}, "module is ReLU without linear or convolutional layers"),
        (nn.Linear(3, 3), {"layers": ["body"]}, "layers names 'body', which is no layer of the model"),
        (Twice(), {}, "layers has 'layer', which runs 2 times in a pass"),
        (Scaled(), {}, "module has 'Scaled' with parameters but no reset_parameters"),
    ],
)
def test_probe_names_bad_input(model: nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(model, torch.ones(2, 3), **options)  # type: ignore[arg-type]


# The study


@pytest.mark.parametrize("arm", ["relu", "gelu", "relu default", "tanh small"])
def test_trials_are_deterministic(arm: str) -> None:
    def run() -> Tensor:
        trial = Trial(arm, 5, Scale.SMOKE, {"learning rate × depth": 0.03})
        found = room.simulate_and_train(trial, room.normalised_digits(5, Scale.SMOKE))
        return torch.cat([torch.as_tensor(value, dtype=FLOAT64).flatten() for value in found.values()])

    assert_deterministic(run)


def test_arms_are_what_they_say() -> None:
    assert set(room.ARMS) == set(room.study.arms)
    assert room.ARMS["relu"].variances(128) == (0.0, 2.0) and room.ARMS["tanh"].variances(128) == (0.0, 1.0)
    assert room.ARMS["relu default"].variances(100) == (1 / 300, 1 / 3)
    assert [name for name, arm in room.ARMS.items() if arm.critical] == ["relu", "linear", "tanh", "gelu"]
    gelu = find_critical(F.gelu)
    assert gelu.K_star is not None and gelu.C_b is not None and gelu.C_W is not None
    vertex = vertex_flow(F.gelu, gelu.C_b, gelu.C_W, gelu.K_star, 2)[1]
    assert room.ARMS["gelu"].coefficient == pytest.approx(float(vertex) / gelu.K_star**2, rel=1e-4)
    digits = room.normalised_digits(0, Scale.SMOKE).scaled(1.7, "cpu")
    for x in (digits.x, digits.x_test):
        torch.testing.assert_close(x.square().mean(dim=1), torch.full((len(x),), 1.7))


def test_leading_coefficient_is_that_of_a_curve() -> None:
    moments = metric_moments(torch.relu, 0.0, 2.0, 2.0, [1])
    layers = np.arange(9)
    curves = [
        room.Ensemble(width, 10 * width, np.ones(9), 5 * layers / width + 11 * (layers / width) ** 2, moments)
        for width in (64, 128)
    ]
    assert room.leading_coefficient(curves) == pytest.approx(5.0)


def test_an_ensemble_stands_beside_its_prediction() -> None:
    trial = Trial("relu", 77, Scale.SMOKE)
    arm, x = room.ARMS["relu"], room.normalised_digits(77, Scale.SMOKE).x
    found = room.draw_ensemble(trial, x, arm, arm, 64, 4, 500)
    assert found.predicted.kernel.tolist() == pytest.approx([2.0] * 4)
    assert found.mean == pytest.approx([2.0] * 4, rel=0.06)
    assert found.variance == pytest.approx([(1 + 5 / 64) ** layer - 1 for layer in range(4)], rel=0.25, abs=1e-6)
    passed_off = room.draw_ensemble(trial, x, room.ARMS["relu small"], arm, 64, 4, 500)
    assert passed_off.mean / passed_off.predicted.kernel.numpy() == pytest.approx([0.5, 0.25, 0.125, 0.0625], rel=0.06)


def test_networks_train_together_as_they_do_alone() -> None:
    digits = room.normalised_digits(0, Scale.SMOKE)
    options = {"steps": 6, "batch": 16, "learning_rate": 1e-3}

    def train(seeds: list[int]) -> room.Trained:
        networks = Perceptrons(torch.relu, [64, 24, 24, 24, 10], 0.0, 2.0, seeds=seeds)
        return room.train_networks(networks, digits, seeds=seeds, **options)  # type: ignore[arg-type]

    together = train([3, 9, 4])
    assert together.losses.shape == (6, 3) and together.accuracy.shape == together.growth.shape == (3,)
    assert bool((together.losses[-1] < together.losses[0]).all())
    for r, seed in enumerate((3, 9, 4)):
        alone = train([seed])
        torch.testing.assert_close(alone.losses[:, 0], together.losses[:, r], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.growth[0], together.growth[r], rtol=1e-4, atol=1e-4)
        assert float(alone.accuracy) == pytest.approx(float(together.accuracy[r]), abs=0.005)
