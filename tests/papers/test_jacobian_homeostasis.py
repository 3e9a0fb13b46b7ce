"""Equilibrium propagation: Cauchy estimates, exact error vectors, gradients; the homeostatic loss on any field."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Scale, Trial
from working_papers.papers.jacobian_homeostasis import (
    Connection,
    ConvEquilibriumNet,
    EquilibriumModel,
    EquilibriumNet,
    alignment,
    dsilu,
    ep_gradients_,
    holomorphic_softmax,
    homeostatic_loss,
    is_holomorphic,
    jacobian_asymmetry,
    layered,
    logistic,
    nudge_derivative,
    recurrent_backprop,
    rotating_nudge,
    sigmoid4,
    softmax_pool,
    symmetry_index,
    weight_angle,
)
from working_papers.papers.jacobian_homeostasis import study as room
from working_papers.testing import assert_deterministic, assert_state_dict_round_trip

# The first forward-mode derivative makes PyTorch script its own formulas, of which it then warns itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

FLOAT64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
FEEDBACKS = pytest.mark.parametrize("feedback", ["independent", "symmetric", "loop"])
Feedback = Literal["independent", "symmetric", "loop"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = FLOAT64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64).to(dtype)


def small(feedback: Feedback = "independent", dtype: torch.dtype = FLOAT64, **settings: Any) -> EquilibriumNet:
    """Six inputs, two hidden blocks, three classes; weights weak enough to settle quickly, biases that are not zero."""
    net = layered(6, (7, 5), 3, feedback=feedback, generator=seeded(3), dtype=dtype, **settings)
    with torch.no_grad():
        for weight in net.weights.values():
            weight.mul_(0.7)
        for number, bias in enumerate(net.biases.values()):
            bias.add_(0.1 * gaussian(*bias.shape, seed=number, dtype=dtype))
    return net


def batch(count: int = 4, dtype: torch.dtype = FLOAT64) -> tuple[Tensor, Tensor]:
    return gaussian(count, 6, seed=9, dtype=dtype).abs(), torch.arange(count) % 3


def settled(net: EquilibriumModel, x: Tensor, steps: int = 400) -> Tensor:
    with torch.no_grad():
        found = net.relax(x, steps=steps, relaxation=0.7)
    assert number(found.residual.max()) < (1e-5 if found.state.dtype == torch.float32 else 1e-10)
    return found.state


def number(value: Tensor) -> float:
    return float(value.detach())


def relative(got: Tensor, expected: Tensor) -> float:
    return number((got - expected).norm() / expected.norm())


# Activations


def test_logistic_is_the_complex_sigmoid_without_overflow() -> None:
    z = torch.complex(6 * gaussian(200), 2 * gaussian(200, seed=1))
    torch.testing.assert_close(logistic(z), torch.sigmoid(z), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(logistic(z.conj()), logistic(z).conj())
    torch.testing.assert_close(logistic(z) + logistic(-z), torch.ones_like(z))
    far = torch.tensor([-1000.0, 1000.0, -60.0], dtype=torch.complex64)
    assert logistic(far).real.tolist() == pytest.approx([0.0, 1.0, math.exp(-60)])
    assert torch.equal(logistic(far.real), torch.sigmoid(far.real))


def test_logistic_has_the_derivative_of_a_holomorphic_function() -> None:
    z = torch.complex(gaussian(20), gaussian(20, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(logistic, (z,))
    (gradient,) = torch.autograd.grad(logistic(z).sum(), z, torch.ones((), dtype=z.dtype))
    torch.testing.assert_close(gradient.conj(), (logistic(z) * (1 - logistic(z))).detach())


def test_activations_are_what_the_paper_says() -> None:
    z = torch.tensor([0.5, 0.0, 1.0], dtype=FLOAT64, requires_grad=True)
    assert sigmoid4(z).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))])
    (slope,) = torch.autograd.grad(sigmoid4(z).sum(), z)
    assert number(slope[0]) == pytest.approx(1.0)
    s = torch.sigmoid
    torch.testing.assert_close(dsilu(z), 0.5 * z * s(z) + (1 - 0.5 * z) * s(z - 2))
    assert number(dsilu(torch.tensor(1.0))) == pytest.approx(0.5)
    ends = dsilu(torch.tensor([-30.0, 30.0], dtype=FLOAT64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=FLOAT64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", [sigmoid4, dsilu, torch.tanh, torch.exp, torch.sin, lambda z: z**3])
def test_holomorphic_functions_pass(function: Callable[[Tensor], Tensor]) -> None:
    assert is_holomorphic(function)


@pytest.mark.parametrize(
    "function",
    [
        F.relu,
        F.hardsigmoid,
        torch.abs,
        lambda z: z.conj(),
        lambda z: z.real,
        lambda z: z * z.abs(),
        lambda z: z.where(z.real > 0, 0) + 0.2 * z.conj(),
        lambda z: 1j * z,  # not real on the real axis
    ],
)
def test_others_do_not(function: Callable[[Tensor], Tensor]) -> None:
    assert not is_holomorphic(function)


def test_softmax_is_continued_to_complex_numbers() -> None:
    z = torch.complex(50 * gaussian(4, 6), gaussian(4, 6, seed=1))
    torch.testing.assert_close(holomorphic_softmax(z).sum(dim=-1), torch.ones(4, dtype=z.dtype))
    torch.testing.assert_close(
        holomorphic_softmax(z), torch.exp(z - z[..., :1]) / torch.exp(z - z[..., :1]).sum(-1, True)
    )
    torch.testing.assert_close(holomorphic_softmax(z.real + 0j).real, torch.softmax(z.real, dim=-1))


@pytest.mark.parametrize("complex_too", [False, True])
def test_pooling_and_its_closed_derivative(complex_too: bool) -> None:
    v = gaussian(2, 3, 4, 6)
    if complex_too:
        v = torch.complex(v, 0.3 * gaussian(2, 3, 4, 6, seed=1))
    v.requires_grad_()
    pooled, slope = softmax_pool(v)
    window = v[0, 1, 2:4, 4:6]
    torch.testing.assert_close(pooled[0, 1, 1, 2], (window * window.exp()).sum() / window.exp().sum())
    (gradient,) = torch.autograd.grad(pooled.sum(), v, torch.ones((), dtype=v.dtype))
    torch.testing.assert_close(slope, gradient.conj() if complex_too else gradient)
    with pytest.raises(ValueError, match="3 by 4 pixels; expected even numbers"):
        softmax_pool(torch.zeros(1, 3, 4))


# Networks


@FEEDBACKS
def test_block_matrix_is_the_sum_over_connections(feedback: Feedback) -> None:
    net = small(feedback)
    x, y = batch()
    u = gaussian(4, net.units, seed=4)
    a = net.split(sigmoid4(u))
    expected = {name: torch.zeros(4, *shape, dtype=FLOAT64) for name, shape in net.shapes.items()}
    for each in net.connections:
        source = x if each.source == "input" else a[each.source]
        expected[each.target] = expected[each.target] + source @ net.weight(each.source, each.target).mT
        if each.bias:
            expected[each.target] = expected[each.target] + net.biases[each.name]
    torch.testing.assert_close(net.drive_from(x)(sigmoid4(u)), torch.cat(list(expected.values()), dim=-1))
    logits = (a["output"] @ net.readout_weight.mT + net.readout_bias).requires_grad_()
    (pull,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    expected["output"] = expected["output"] + 0.3 * pull @ net.readout_weight
    torch.testing.assert_close(net.field(u, x, y, 0.3), torch.cat(list(expected.values()), dim=-1) - u)
    torch.testing.assert_close(net.loss(u, y), F.cross_entropy(logits, y, reduction="none"))
    torch.testing.assert_close(net.logits(u), logits)


def test_squared_loss_nudges_the_block_itself() -> None:
    net = small(loss="squared")
    x, _ = batch()
    u, target = gaussian(4, net.units, seed=4), gaussian(4, 3, seed=5)
    a = sigmoid4(u)[:, net.blocks["output"]]
    torch.testing.assert_close(net.loss(u, target), (a - target).square().sum(dim=-1) / 2)
    nudge = net.field(u, x, target, 1.0) - net.field(u, x)
    torch.testing.assert_close(nudge[:, net.blocks["output"]], a - target)
    assert not bool(nudge[:, : net.blocks["output"].start].any())
    assert not hasattr(net, "readout_weight")


def test_targets_may_be_classes_or_distributions() -> None:
    net = small()
    x, y = batch()
    u = gaussian(4, net.units)
    torch.testing.assert_close(net.field(u, x, y, 0.5), net.field(u, x, F.one_hot(y, 3).double(), 0.5))


@DTYPES
def test_members_are_separate_networks(dtype: torch.dtype) -> None:
    many = layered(6, (7, 5), 3, members=(2,), angle=(0.0, 40.0, 90.0), generator=seeded(1), dtype=dtype)
    assert many.members == (3, 2)
    x, y = batch(dtype=dtype)
    state = many.relax(x, steps=60, relaxation=0.7).state
    found = nudge_derivative(many, state, x, y, n_points=4, beta=0.3, steps=60, relaxation=0.7)
    ep_gradients_(many, x, y, free_steps=60, n_points=2, homeostasis=0.0, relaxation=0.7)
    assert found.error.shape == (3, 2, 4, 15) and weight_angle(many).shape == (3, 2)
    for index in ((0, 0), (2, 1)):
        one = layered(6, (7, 5), 3, dtype=dtype)
        one.load_state_dict({name: value[index] for name, value in many.state_dict().items()})
        alone = one.relax(x, steps=60, relaxation=0.7).state
        torch.testing.assert_close(alone, state[index], rtol=1e-4, atol=1e-6)
        derivative = nudge_derivative(one, alone, x, y, n_points=4, beta=0.3, steps=60, relaxation=0.7).error
        torch.testing.assert_close(derivative, found.error[index], rtol=1e-3, atol=1e-5)
        ep_gradients_(one, x, y, free_steps=60, n_points=2, homeostasis=0.0, relaxation=0.7)
        for ours, theirs in zip(one.parameters(), many.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad[index], rtol=1e-3, atol=1e-5)


def test_angle_mixes_the_transposed_forward_weights_in() -> None:
    nets = layered(6, (7, 5), 3, angle=(0.0, 30.0, 90.0), generator=seeded(1), dtype=FLOAT64)
    alone = layered(6, (7, 5), 3, generator=seeded(1), dtype=FLOAT64)
    forth, back = nets.weight("layer1", "layer2"), nets.weight("layer2", "layer1")
    assert torch.equal(back[0], forth[0].mT)
    torch.testing.assert_close(back[1], 0.5 * back[2] + math.sqrt(0.75) * forth[1].mT)
    torch.testing.assert_close(back[2], alone.weight("layer2", "layer1"))
    torch.testing.assert_close(forth[1], alone.weight("layer1", "layer2"))
    angles = weight_angle(nets)
    assert number(angles[0]) < 1e-5 < number(angles[1]) < number(angles[2])
    # Many weights: independent draws are nearly orthogonal.
    assert number(weight_angle(layered(6, (200, 200), 3, generator=seeded()))) == pytest.approx(90, abs=2)
    assert number(weight_angle(small("symmetric"))) < 1e-5
    with pytest.raises(ValueError, match="no reciprocal connections"):
        weight_angle(small("loop"))


def test_symmetric_feedback_shares_its_weights() -> None:
    net = small("symmetric")
    matrix = net.block_matrix()
    assert torch.equal(matrix, matrix.mT)
    assert sum("to" in name for name in net.weights) == 3
    loop = small("loop")
    there = loop.block_matrix() != 0
    assert not bool((there & there.mT).any())


@FEEDBACKS
@pytest.mark.parametrize("coordinates", ["state", "activation"])
def test_jacobian_in_closed_form_is_that_of_the_field(
    feedback: Feedback, coordinates: Literal["state", "activation"]
) -> None:
    net = small(feedback)
    x, _ = batch()
    u = gaussian(4, net.units)
    closed = net.jacobian(u, x, coordinates=coordinates)
    assert closed.shape == (4, 15, 15)
    torch.testing.assert_close(closed, EquilibriumModel.jacobian(net, u, x, coordinates=coordinates))
    if coordinates == "state":
        row = torch.autograd.functional.jacobian(lambda v: net.field(v[None], x[:1])[0], u[0])
        torch.testing.assert_close(closed[0], row)


@FEEDBACKS
def test_linearised_drive_multiplies_by_the_jacobian(feedback: Feedback) -> None:
    net = small(feedback)
    x, _ = batch()
    u, v = gaussian(4, net.units), gaussian(4, net.units, seed=1)
    matrix = net.jacobian(u, x) + torch.eye(net.units, dtype=FLOAT64)
    for push, pull in (net.linearised_drive(u, x), EquilibriumModel.linearised_drive(net, u, x)):
        torch.testing.assert_close(push(v), torch.einsum("bij,bj->bi", matrix, v))
        torch.testing.assert_close(pull(v), torch.einsum("bij,bi->bj", matrix, v))


@DTYPES
@FEEDBACKS
def test_relaxation_settles_and_keeps_the_dtype(feedback: Feedback, dtype: torch.dtype) -> None:
    net = small(feedback, dtype)
    x, y = batch(dtype=dtype)
    u = settled(net, x)
    assert u.dtype == dtype and u.shape == (4, net.units)
    assert number(net.field(u, x).detach().norm(dim=-1).max()) < 1e-5
    plain = net.relax(x, steps=400)
    torch.testing.assert_close(plain.state, u, rtol=1e-4, atol=1e-5)
    early = net.relax(x, steps=5000, tolerance=1e-5)
    assert early.steps < 400 and number(early.residual.max()) <= 1e-5
    nudged = net.relax(x, y, torch.tensor([0.2, -0.1], dtype=dtype), steps=300, start=u)
    assert nudged.state.shape == (2, 4, net.units) and nudged.residual.shape == (2, 4)
    torch.testing.assert_close(nudged.state[1], net.relax(x, y, -0.1, steps=300, start=u).state)
    assert net.relax(x, y, 0.1j, steps=2).state.dtype == dtype.to_complex()


def test_state_dict_carries_the_network() -> None:
    class Answer(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.net = layered(6, (7, 5), 3, generator=seeded(seed))

        def forward(self, x: Tensor) -> Tensor:
            return self.net.logits(self.net.relax(x, steps=20).state)

    assert_state_dict_round_trip(Answer(1), Answer(2), batch(dtype=torch.float32)[0])


# Error vectors


@FEEDBACKS
def test_solving_is_what_iterating_ends_at(feedback: Feedback) -> None:
    net = small(feedback)
    x, y = batch()
    u = settled(net, x)
    for estimate, settings in ((nudge_derivative, {"n_points": 0}), (recurrent_backprop, {})):
        solved = estimate(net, u, x, y, steps="solve", **settings)
        iterated = estimate(net, u, x, y, steps=500, relaxation=0.7, **settings)
        torch.testing.assert_close(solved.error, iterated.error, rtol=1e-8, atol=1e-10)
        assert number(solved.residual.max()) < 1e-10 and number(iterated.residual.max()) < 1e-10
        few = estimate(net, u, x, y, steps=2, **settings)
        assert number(few.residual.min()) > 1e-4


def test_derivative_is_that_of_the_nudged_relaxation() -> None:
    """The linearised iteration equals forward-mode differentiation through the nudged steps, step by step."""
    net = small()
    x, y = batch()
    u = settled(net, x)

    def response(beta: Tensor) -> Tensor:
        return sigmoid4(net.relax(x, y, beta, steps=7, start=u, relaxation=0.8).state)

    zero = torch.zeros((), dtype=FLOAT64)
    forward = torch.func.jvp(response, (zero,), (torch.ones_like(zero),))[1]
    ours = nudge_derivative(net, u, x, y, n_points=0, steps=7, relaxation=0.8).error
    torch.testing.assert_close(ours, forward, rtol=1e-8, atol=1e-10)


@FEEDBACKS
@pytest.mark.parametrize("n_points", [1, 2, 3, 4, 5, 6])
def test_cauchy_estimate_converges_as_the_power_of_the_nudge(feedback: Feedback, n_points: int) -> None:
    net = small(feedback)
    x, y = batch()
    u = settled(net, x)
    exact = nudge_derivative(net, u, x, y, n_points=0, steps="solve").error
    sizes = torch.tensor([0.04, 0.08], dtype=FLOAT64)
    found = nudge_derivative(net, u, x, y, beta=sizes, n_points=n_points, steps=300, relaxation=0.7)
    small_error, large_error = (relative(each, exact) for each in found.error)
    assert math.log2(large_error / small_error) == pytest.approx(n_points, abs=0.3)
    assert number(found.residual.max()) < 1e-10
    assert found.residual.shape == (2, 4)


@pytest.mark.parametrize("n_points", [1, 2, 3, 4, 5, 6])
def test_half_of_the_nudges_are_the_whole_circle(n_points: int) -> None:
    net = small()
    x, y = batch()
    u = settled(net, x)
    rest = sigmoid4(u)
    total = torch.zeros_like(u).to(torch.complex128)
    for t in range(n_points):
        beta = 0.4 * cmath.exp(2j * math.pi * t / n_points)
        state = net.relax(x, y, beta, steps=300, start=u).state
        total += (sigmoid4(state) - (rest if n_points == 1 else 0)) / beta / n_points
    assert number(total.imag.abs().max()) < 1e-8
    found = nudge_derivative(net, u, x, y, beta=0.4, n_points=n_points, steps=300).error
    assert not found.is_complex()
    torch.testing.assert_close(found, total.real, rtol=1e-6, atol=1e-8)


def test_one_of_several_sizes_is_as_if_alone() -> None:
    net = small()
    x, y = batch()
    u = settled(net, x)
    sizes = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=FLOAT64)
    for n_points in (0, 1, 2, 5):
        many = nudge_derivative(net, u, x, y, beta=sizes, n_points=n_points)
        alone = nudge_derivative(net, u, x, y, beta=0.4, n_points=n_points)
        assert many.error.shape == (2, 3, 4, 15)
        torch.testing.assert_close(many.error[1, 0], alone.error)
        torch.testing.assert_close(many.residual[1, 0], alone.residual)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
def test_symmetric_weights_make_both_error_vectors_one(loss: Literal["cross-entropy", "squared"]) -> None:
    net = small("symmetric", loss=loss)
    x, y = batch()
    target = F.one_hot(y, 3).double()
    u = settled(net, x)
    epsilon = nudge_derivative(net, u, x, target, n_points=0, steps="solve").error
    delta = recurrent_backprop(net, u, x, target, steps="solve").error
    torch.testing.assert_close(epsilon, delta, rtol=1e-8, atol=1e-10)
    assert number(alignment(epsilon, delta).min()) > 1 - 1e-9
    other = small("independent", loss=loss)
    v = settled(other, x)
    cosine = alignment(
        nudge_derivative(other, v, x, target, n_points=0, steps="solve").error[:, other.blocks["layer1"]],
        recurrent_backprop(other, v, x, target, steps="solve").error[:, other.blocks["layer1"]],
    )
    assert number(cosine.abs().mean()) < 0.8


def test_asymmetry_enters_to_first_order_as_the_paper_says() -> None:
    """ε − δ = 2 (D⁻¹ − S)⁻¹ A δ + O(A²), for W = S + A and D = diag σ'."""
    x, y = batch(3)
    errors = []
    for size in (0.02, 0.002):
        net = small()
        with torch.no_grad():
            for low, high in (("layer1", "layer2"), ("layer2", "output")):
                back = net.weight(high, low)
                back.copy_(net.weight(low, high).mT + size * gaussian(*back.shape))
        u = settled(net, x)
        epsilon = nudge_derivative(net, u, x, y, n_points=0, steps="solve").error
        delta = recurrent_backprop(net, u, x, y, steps="solve").error
        matrix = net.block_matrix().detach()
        symmetric, antisymmetric = (matrix + matrix.mT) / 2, (matrix - matrix.mT) / 2
        base = torch.diag_embed(1 / net.slope(u)) - symmetric
        errors.append(relative(2 * torch.linalg.solve(base, delta @ antisymmetric.mT), epsilon - delta))
    assert errors[0] < 0.1 and errors[1] == pytest.approx(errors[0] / 10, rel=0.3)


def unrolled_gradient(net: EquilibriumModel, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Ordinary back-propagation through a relaxation long enough to have settled."""
    net.zero_grad()
    net.loss(net.relax(x, steps=150, relaxation=0.7).state, y).mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_gradients_are(net: EquilibriumModel, expected: dict[str, Tensor]) -> None:
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-6, atol=1e-9)


@FEEDBACKS
def test_adjoint_gives_the_gradient_of_the_loss_at_the_fixed_point(feedback: Feedback) -> None:
    net = small(feedback)
    x, y = batch()
    expected = unrolled_gradient(net, x, y)
    net.zero_grad()
    report = ep_gradients_(
        net, x, y, free_steps=400, nudged_steps=400, estimator="adjoint", relaxation=0.7, homeostasis=0.0
    )
    assert_gradients_are(net, expected)
    torch.testing.assert_close(report.loss, net.loss(report.state, y).mean().detach())
    assert number(report.residual.max()) < 1e-8 and number(report.nudged_residual.max()) < 1e-8
    assert int(report.diverged) == 0 and math.isnan(number(report.asymmetry))


def test_nudges_give_that_gradient_where_weights_are_symmetric_only() -> None:
    x, y = batch(8)
    cosines = {}
    for feedback in ("symmetric", "independent"):
        net = small(feedback)
        expected = unrolled_gradient(net, x, y)
        net.zero_grad()
        ep_gradients_(
            net, x, y, free_steps=400, nudged_steps=300, n_points=6, beta=0.2, relaxation=0.7, homeostasis=0.0
        )
        names = [name for name in expected if "layer1" in name]
        ours = torch.cat([dict(net.named_parameters())[name].grad.flatten() for name in names])  # type: ignore[union-attr]
        cosines[feedback] = number(alignment(ours, torch.cat([expected[name].flatten() for name in names])))
    assert cosines["symmetric"] > 0.9999
    assert cosines["independent"] < 0.9


def test_recurrent_gradients_are_hebbian_and_accumulate() -> None:
    net = small()
    x, y = batch()
    report = ep_gradients_(net, x, y, n_points=2, homeostasis=0.0)
    error, a = net.split(report.error), net.split(sigmoid4(report.state))
    weight, bias = net.weights["layer1_to_layer2"], net.biases["layer1_to_layer2"]
    torch.testing.assert_close(weight.grad, error["layer2"].mT @ a["layer1"] / 4)
    torch.testing.assert_close(net.weights["layer2_to_layer1"].grad, error["layer1"].mT @ a["layer2"] / 4)
    torch.testing.assert_close(net.weights["input_to_layer1"].grad, error["layer1"].mT @ x / 4)
    torch.testing.assert_close(bias.grad, error["layer2"].mean(dim=0))
    logits = net.logits(report.state).detach().requires_grad_()
    (pull,) = torch.autograd.grad(F.cross_entropy(logits, y), logits)
    torch.testing.assert_close(net.readout_weight.grad, pull.mT @ a["output"])
    assert number(report.accuracy) == pytest.approx(number((logits.argmax(dim=1) == y).double().mean()))
    once = weight.grad.clone()
    ep_gradients_(net, x, y, n_points=2, homeostasis=0.0)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_only_relaxed_states_count_not_the_path() -> None:
    """No graph is kept through time: gradients are the same inside and outside of no_grad."""
    net = small()
    x, y = batch()
    report = ep_gradients_(net, x, y, homeostasis=0.0)
    assert not report.state.requires_grad and not report.error.requires_grad
    first = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    with torch.no_grad():
        ep_gradients_(net, x, y, homeostasis=0.0)
    for before, parameter in zip(first, net.parameters(), strict=True):
        assert torch.equal(before, parameter.grad)  # type: ignore[arg-type]


def test_turning_nudge_agrees_with_separate_ones() -> None:
    net = small()
    x, y = batch()
    u = settled(net, x)
    mean, found = rotating_nudge(net, u, x, y, beta=0.2, n_points=4, phases=8, steps=150, relaxation=0.8)
    separate = nudge_derivative(net, u, x, y, beta=0.2, n_points=4, steps=150, relaxation=0.8).error
    torch.testing.assert_close(found.error, separate, rtol=1e-6, atol=1e-8)
    assert relative(mean, u) < 5e-3  # the mean of a holomorphic function over a circle is its centre, up to |β|^N
    report = ep_gradients_(
        net, x, y, free_steps=1200, nudged_steps=60, n_points=4, beta=0.2, estimator="rotating", homeostasis=0.0
    )
    # From rest, as in the paper: the first turn is on its way to the fixed point, and enters the mean.
    assert number(alignment(report.error, separate).min()) > 0.95
    assert net.weights["layer1_to_layer2"].grad is not None


def test_diverged_samples_are_counted_and_left_out() -> None:
    net = layered(6, (7, 5), 3, activation=lambda z: z**3, generator=seeded(3), dtype=FLOAT64)
    x, y = batch()
    x = 0.2 * x
    x[2] *= 1e4
    report = ep_gradients_(net, x, y, free_steps=50, homeostasis=0.5, relaxation=0.7)
    assert int(report.diverged) == 1 and not math.isfinite(number(report.residual[2]))
    assert number(report.error[2].abs().max()) == 0
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    kept = torch.tensor([0, 1, 3])
    expected = net.split(report.error)["layer2"][kept].mT @ (net.split(report.state)["layer1"][kept] ** 3) / 4
    net.zero_grad()
    ep_gradients_(net, x, y, free_steps=50, homeostasis=0.0, relaxation=0.7)
    torch.testing.assert_close(net.weights["layer1_to_layer2"].grad, expected)


# The homeostatic loss


def probes_for(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT64)


@DTYPES
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_estimate_is_the_formula_of_its_probes(mode: Literal["forward", "reverse"], dtype: torch.dtype) -> None:
    matrix, point = gaussian(6, 6, dtype=dtype), gaussian(3, 6, seed=1, dtype=dtype)
    found = jacobian_asymmetry(lambda a: a @ matrix.mT, point, probes=4, mode=mode, generator=seeded(5))
    xi = torch.randn(4, 3, 6, generator=seeded(5), dtype=dtype)
    acting = matrix if mode == "forward" else matrix.mT
    once = torch.einsum("ij,pbj->pbi", acting, xi)
    twice = torch.einsum("ij,pbj->pbi", acting, once)
    expected = (once.square() - xi * twice).sum(dim=-1).mean(dim=0) / 6
    torch.testing.assert_close(found, expected)
    assert found.shape == (3,) and found.dtype == dtype
    whole = jacobian_asymmetry(
        lambda a: a @ matrix.mT, point, probes=4, mode=mode, normalize=False, generator=seeded(5)
    )
    torch.testing.assert_close(whole, 6 * expected)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_every_probe_of_a_symmetric_jacobian_is_zero(mode: Literal["forward", "reverse"]) -> None:
    matrix, point = gaussian(6, 6), gaussian(50, 6, seed=1)
    symmetric, antisymmetric = matrix + matrix.mT, matrix - matrix.mT
    zero = jacobian_asymmetry(lambda a: a @ symmetric, point, probes=1, mode=mode)
    assert number(zero.abs().max()) < 1e-12
    found = jacobian_asymmetry(
        lambda a: a @ antisymmetric.mT, point, probes=1, mode=mode, normalize=False, generator=seeded(2)
    )
    torch.testing.assert_close(found, 2 * (probes_for(2, 1, 50, 6)[0] @ antisymmetric.mT).square().sum(dim=-1))
    # A gradient field has a symmetric Jacobian everywhere, a curved one, too.
    curved = jacobian_asymmetry(lambda a: torch.tanh(a @ matrix.mT) @ matrix, point, probes=1, mode=mode)
    assert number(curved.abs().max()) < 1e-10


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_mean_over_probes_is_the_norm_of_the_antisymmetric_part(mode: Literal["forward", "reverse"]) -> None:
    first, second = gaussian(8, 5), gaussian(5, 8, seed=1)
    point = gaussian(1, 5, seed=2)

    def field(a: Tensor) -> Tensor:
        return torch.tanh(a @ first.mT) @ second.mT

    jacobian = torch.autograd.functional.jacobian(lambda a: field(a[None])[0], point[0])
    expected = number((jacobian - jacobian.mT).square().sum() / 2 / 5)
    draws = jacobian_asymmetry(field, point.expand(4000, 5), probes=1, mode=mode, generator=seeded(3))
    standard_error = number(draws.std() / math.sqrt(4000))
    assert number(draws.mean()) == pytest.approx(expected, abs=3 * standard_error)
    assert standard_error < 0.1 * expected


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_loss_has_the_gradient_of_its_formula(mode: Literal["forward", "reverse"]) -> None:
    point = gaussian(3, 4, seed=1)

    def loss(matrix: Tensor) -> Tensor:
        return jacobian_asymmetry(
            lambda a: torch.sin(a @ matrix.mT), point, probes=2, mode=mode, generator=seeded(4)
        ).mean()

    assert torch.autograd.gradcheck(loss, (gaussian(4, 4).requires_grad_(),))


def test_gradient_descent_on_it_makes_any_field_symmetric() -> None:
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 6).double()
    x, h = gaussian(16, 3), gaussian(16, 6, seed=1)

    def measure() -> float:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda s, i: cell(i[None], s[None])[0]))(h, x)
        return number((jacobian - jacobian.mT).square().sum(dim=(-2, -1)).mean())

    before = measure()
    optimizer, generator = torch.optim.Adam(cell.parameters(), lr=0.02), seeded(1)
    for _ in range(60):
        optimizer.zero_grad()
        jacobian_asymmetry(lambda s: cell(x, s), h, generator=generator, mode="reverse").mean().backward()
        optimizer.step()
    assert measure() < 0.2 * before


class Cube(torch.autograd.Function):
    """A function that PyTorch can differentiate backwards only."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        slope: Tensor = 3 * z.square()
        return slope * gradients[0]


def test_reverse_mode_takes_fields_that_only_backpropagate() -> None:
    matrix, point = gaussian(4, 4), gaussian(3, 4, seed=1)

    def field(a: Tensor) -> Tensor:
        cubed: Tensor = Cube.apply(a @ matrix.mT)  # type: ignore[no-untyped-call]
        return cubed

    ours = jacobian_asymmetry(field, point, mode="reverse", generator=seeded(2))
    plain = jacobian_asymmetry(lambda a: (a @ matrix.mT) ** 3, point, mode="reverse", generator=seeded(2))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_images_and_leading_axes(mode: Literal["forward", "reverse"]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 2, 3, padding=1).double()
    images = gaussian(3, 2, 4, 4)
    found = jacobian_asymmetry(lambda a: torch.tanh(convolution(a)), images, probes=3, mode=mode, generator=seeded())
    assert found.shape == (3,)
    found.mean().backward()
    assert convolution.weight.grad is not None and number(convolution.weight.grad.abs().max()) > 0
    matrix = gaussian(2, 1, 5, 5)
    grouped = jacobian_asymmetry(
        lambda a: a @ matrix[:, 0], gaussian(2, 7, 5), batch_axes=2, mode=mode, normalize=False, probes=4000
    ).mean(dim=1)
    expected = (matrix - matrix.mT).square().sum(dim=(-2, -1))[:, 0] / 2
    torch.testing.assert_close(grouped, expected, rtol=0.05, atol=0)
    single = jacobian_asymmetry(lambda a: a @ matrix[0, 0], gaussian(5), batch_axes=0, mode=mode)
    assert single.shape == ()


@FEEDBACKS
def test_network_loss_is_about_the_weights_alone(feedback: Feedback) -> None:
    net = small(feedback)
    x, _ = batch(2000)
    matrix = net.block_matrix()
    expected = (matrix - matrix.mT).square().sum() / 2 / net.units
    found = homeostatic_loss(net, gaussian(2000, 15), x, generator=seeded(1)).mean()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-12)
    weight = net.weights["layer1_to_layer2"]
    ours, theirs = (torch.autograd.grad(each, weight)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.06 * max(0.1, number(theirs.abs().max())))
    in_states = homeostatic_loss(net, gaussian(2000, 15), x, coordinates="state", generator=seeded(1))
    jacobian = net.jacobian(gaussian(2000, 15), x)
    theirs = (jacobian - jacobian.mT).square().sum(dim=(-2, -1)).mean() / 2 / net.units
    torch.testing.assert_close(in_states.mean(), theirs, rtol=0.02, atol=0)


def test_training_steps_add_it_with_its_coefficient() -> None:
    net = small()
    x, y = batch()
    gradients = []
    for coefficient in (0.0, 1.0, 3.0):
        net.zero_grad()
        report = ep_gradients_(net, x, y, homeostasis=coefficient, generator=seeded(7))
        gradients.append(net.weights["layer1_to_layer2"].grad.clone())
    own = homeostatic_loss(net, report.state, x, generator=seeded(7)).mean()
    torch.testing.assert_close(report.asymmetry, own.detach())
    (expected,) = torch.autograd.grad(own, net.weights["layer1_to_layer2"])
    torch.testing.assert_close(gradients[1] - gradients[0], expected)
    torch.testing.assert_close(gradients[2] - gradients[0], 3 * expected)


def test_homeostasis_aligns_the_error_vectors() -> None:
    net = layered(6, (16, 12), 3, generator=seeded(2), dtype=FLOAT64)
    x, y = batch(12)

    def cosine() -> float:
        u = settled(net, x)
        pair = [
            nudge_derivative(net, u, x, y, n_points=0, steps="solve").error,
            recurrent_backprop(net, u, x, y, steps="solve").error,
        ]
        return number(alignment(*(each[:, net.blocks["layer2"]] for each in pair)).mean())

    before = cosine()
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=0.02), seeded(1)
    for _ in range(80):
        optimizer.zero_grad()
        ep_gradients_(net, x, y, free_steps=40, relaxation=0.7, generator=generator)
        optimizer.step()
    assert before < 0.6 and cosine() > 0.95


def test_it_learns_and_repeats_itself() -> None:
    def train() -> Tensor:
        net = layered(6, (16, 12), 3, generator=seeded(2))
        generator = seeded(3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        x = gaussian(60, 6, seed=1, dtype=torch.float32)
        y = x[:, :3].argmax(dim=1)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            losses.append(ep_gradients_(net, x, y, free_steps=30, relaxation=0.7, generator=generator).loss)
            optimizer.step()
        return torch.stack(losses)

    losses = train()
    assert number(losses[-1]) < 0.5 * number(losses[0])
    assert_deterministic(train)


def test_index_and_alignment() -> None:
    matrix = gaussian(3, 200, 200)
    symmetric, antisymmetric = matrix + matrix.mT, matrix - matrix.mT
    torch.testing.assert_close(symmetry_index(symmetric), torch.ones(3, dtype=FLOAT64))
    assert number(symmetry_index(antisymmetric).abs().max()) == 0
    torch.testing.assert_close(symmetry_index(matrix), torch.full((3,), 0.5, dtype=FLOAT64), rtol=0, atol=0.01)
    a = gaussian(4, 6)
    torch.testing.assert_close(alignment(a, -3 * a), -torch.ones(4, dtype=FLOAT64))
    torch.testing.assert_close(alignment(a, gaussian(4, 6, seed=1)), F.cosine_similarity(a, gaussian(4, 6, seed=1)))
    assert number(alignment(a, torch.zeros_like(a)).abs().max()) == 0
    tiny = 1e-30 * gaussian(4, 6, dtype=torch.float32)
    torch.testing.assert_close(alignment(tiny, tiny), torch.ones(4))


# Convolutions, and a model of one's own


def convolutional(
    feedback: Literal["independent", "symmetric"] = "independent", angle: float = 90.0
) -> ConvEquilibriumNet:
    net = ConvEquilibriumNet(
        (3, 4, 5), 3, in_channels=2, image_size=16, feedback=feedback, angle=angle, generator=seeded(1), dtype=FLOAT64
    )
    with torch.no_grad():
        for kernel in (*net.kernels, *net.feedback_kernels):
            kernel.mul_(0.7)
    return net


def test_convolutional_blocks_are_driven_from_below_and_above() -> None:
    net = convolutional()
    assert net.shapes == {"layer1": (3, 8, 8), "layer2": (4, 4, 4), "output": (5, 1, 1)}
    x, a = gaussian(2, 2, 16, 16), gaussian(2, net.units, seed=1)
    blocks = list(net.split(a).values())

    def pooled(low: Tensor, kernel: Tensor, padding: int) -> Tensor:
        return softmax_pool(F.conv2d(low, kernel, padding=padding))[0]

    drives = list(net.split(net.drive_from(x)(a)).values())
    for k, padding in ((1, 1), (2, 0)):
        low = blocks[k - 1].clone().requires_grad_()
        (down,) = torch.autograd.grad((pooled(low, net.feedback_kernels[k - 1], padding) * blocks[k]).sum(), low)
        below = x if k == 1 else blocks[k - 2]
        up = pooled(below, net.kernels[k - 1], 1)
        torch.testing.assert_close(drives[k - 1], down + up)
    torch.testing.assert_close(drives[2], pooled(blocks[1], net.kernels[2], 0))


@pytest.mark.parametrize("how", ["tied", "equal"])
def test_equal_kernels_make_the_convolutional_jacobian_symmetric(how: str) -> None:
    net = convolutional("symmetric") if how == "tied" else convolutional(angle=0.0)
    x, u = gaussian(1, 2, 16, 16), gaussian(1, net.units, seed=1)
    jacobian = net.jacobian(u, x, coordinates="activation")[0]
    torch.testing.assert_close(jacobian, jacobian.mT)
    assert number(homeostatic_loss(net, u, x, probes=2).abs().max()) < 1e-10
    assert number(weight_angle(net)) < 1e-5
    other = convolutional()
    assert number(symmetry_index(other.jacobian(u, x, coordinates="activation") + torch.eye(other.units))) < 0.9
    assert number(homeostatic_loss(other, u, x).min()) > 0
    assert number(weight_angle(other)) > 60


def test_convolutional_networks_take_complex_nudges_and_learn() -> None:
    net = convolutional()
    x, y = gaussian(3, 2, 16, 16), torch.arange(3)
    u = settled(net, x, steps=150)
    exact = nudge_derivative(net, u, x, y, n_points=0, steps=150, relaxation=0.7)
    for n_points, tolerance in ((2, 5e-2), (4, 1e-3), (5, 1e-3)):
        found = nudge_derivative(net, u, x, y, n_points=n_points, beta=0.3, steps=80, relaxation=0.7)
        assert relative(found.error, exact.error) < tolerance
    report = ep_gradients_(net, x, y, free_steps=60, n_points=0, nudged_steps=40, homeostasis=10.0, relaxation=0.7)
    assert number(report.asymmetry) > 0
    assert all(p.grad is not None and number(p.grad.abs().max()) > 0 for p in net.parameters())
    expected = unrolled_gradient(net, x, y)
    net.zero_grad()
    ep_gradients_(net, x, y, free_steps=150, estimator="adjoint", nudged_steps=150, homeostasis=0.0, relaxation=0.7)
    assert_gradients_are(net, expected)


class Ring(EquilibriumModel):
    """A model of a user's own: a bilinear drive on a ring of units, in three lines."""

    def __init__(self) -> None:
        super().__init__({"hidden": (8,), "output": (4,)}, classes=3, generator=seeded(1), dtype=FLOAT64)
        self.gain = nn.Parameter(0.3 * gaussian(12))

    def drive_from(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda a: self.gain * a.roll(1, dims=-1) * (1 + 0.2 * a.roll(-2, dims=-1)) + x.sum(dim=-1, keepdim=True)

    def weight_pairs(self) -> list[tuple[Tensor, Tensor]]:
        return []


def test_a_model_of_ones_own_gets_everything() -> None:
    net = Ring()
    x, y = 0.1 * batch()[0], batch()[1]
    u = settled(net, x)
    exact = nudge_derivative(net, u, x, y, n_points=0, steps="solve").error
    found = nudge_derivative(net, u, x, y, n_points=6, beta=0.2, steps=100).error
    assert relative(found, exact) < 1e-5
    delta = recurrent_backprop(net, u, x, y, steps=200).error
    torch.testing.assert_close(delta, recurrent_backprop(net, u, x, y, steps="solve").error)
    expected = unrolled_gradient(net, x, y)
    net.zero_grad()
    ep_gradients_(net, x, y, estimator="adjoint", nudged_steps=200, homeostasis=0.0)
    assert_gradients_are(net, expected)
    assert number(homeostatic_loss(net, u, x).mean()) > 0


# Wrong input


def relu_net() -> EquilibriumNet:
    return layered(6, (7, 5), 3, activation=torch.relu, generator=seeded(3), dtype=FLOAT64)


def test_complex_nudges_need_a_holomorphic_activation() -> None:
    net = relu_net()
    x, y = batch()
    u = 0.1 * gaussian(4, net.units).abs()
    assert nudge_derivative(net, u, x, y, n_points=2).error.shape == (4, 15)
    for n_points in (3, 4):
        with pytest.raises(ValueError, match=f"n_points is {n_points} and the activation has no complex derivative"):
            nudge_derivative(net, u, x, y, n_points=n_points)
    with pytest.raises(ValueError, match="no complex derivative"):
        rotating_nudge(net, u, x, y)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layered(6, (), 3), "hidden is empty"),
        (lambda: layered(0, (4,), 3), "inputs is 0; expected 1 or more"),
        (lambda: layered(6, (4, 0), 3), "block 'layer2' 0 units"),
        (lambda: layered(6, (4,), 3, loss="hinge"), "loss is 'hinge'; expected 'cross-entropy' or 'squared'"),  # type: ignore[arg-type]
        (lambda: layered(6, (4,), 3, feedback="none"), "feedback is 'none'"),  # type: ignore[arg-type]
        (lambda: layered(6, (4,), 3, feedback="loop"), r"hidden is \(4,\); expected two blocks or more"),
        (lambda: layered(6, (4,), 3, feedback="symmetric", angle=30.0), "angle is 30.0; expected the default"),
        (lambda: layered(6, (4,), 3, activation="gelu"), "activation is 'gelu'; expected a function or one of sigm"),
        (lambda: EquilibriumNet(2, {"input": 3}, [], classes=2), "sizes has a block 'input'"),
        (
            lambda: EquilibriumNet(2, {"a": 3}, [Connection("b", "a")], classes=2),
            "connections has 'b' to 'a'; expected",
        ),
        (lambda: EquilibriumNet(2, {"a": 3}, [Connection("input", "a")] * 2, classes=2), "'input' to 'a' twice"),
        (lambda: EquilibriumNet(2, {"a": 3}, [Connection("a", "a")], classes=2), "none from 'input'"),
        (
            lambda: EquilibriumNet(
                2, {"a": 3, "b": 3}, [Connection("input", "a"), Connection("a", "b", tied=True)], classes=2
            ),
            "connections ties 'a' to 'b'; expected untied weights from 'b' to 'a'",
        ),
        (
            lambda: EquilibriumNet(2, {"a": 3}, [Connection("input", "a")], classes=2, output="b"),
            "output is 'b'; expected one of the blocks a",
        ),
        (lambda: EquilibriumNet(2, {"a": 3}, [Connection("input", "a")], classes=0), "classes is 0; expected 1"),
        (lambda: small().weight("output", "layer1"), "source is 'output' and target is 'layer1'"),
        (lambda: ConvEquilibriumNet((4,)), r"channels is \(4,\); expected two positive numbers"),
        (lambda: ConvEquilibriumNet((4, 5), image_size=32), "image_size is 32; expected 8 for 2 blocks"),
        (lambda: ConvEquilibriumNet((4, 5), image_size=8, feedback="loop"), "feedback is 'loop'"),  # type: ignore[arg-type]
        (
            lambda: ConvEquilibriumNet((4, 5), image_size=8).relax(torch.zeros(2, 8, 8)),
            r"x has shape \(2, 8, 8\); expected \(B, 3, 8, 8\)",
        ),
    ],
)
def test_networks_that_cannot_be_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda net, u, x, y: net.relax(x[:, :5]), r"x has shape \(4, 5\); expected \(..., B, 6\)"),
        (lambda net, u, x, y: net.relax(x, beta=0.1), "beta is 0.1 and y is None; expected a target"),
        (lambda net, u, x, y: net.loss(u, y + 1), "y holds classes 1 to 3; expected 0 to 2"),
        (lambda net, u, x, y: net.loss(u, x), r"y has shape \(4, 6\); expected \(B, 3\)"),
        (lambda net, u, x, y: net.jacobian(u, x, coordinates="polar"), "coordinates is 'polar'"),
        (lambda net, u, x, y: EquilibriumModel.jacobian(net, u, x, coordinates="p"), "coordinates is 'p'"),  # type: ignore[arg-type]
        (lambda net, u, x, y: nudge_derivative(net, u[:, 1:], x, y), r"state has shape \(4, 14\)"),
        (lambda net, u, x, y: nudge_derivative(net, u + 0j, x, y), "expected real numbers"),
        (lambda net, u, x, y: nudge_derivative(net, u, x, y, n_points=-1), "n_points is -1; expected 0 or more"),
        (lambda net, u, x, y: nudge_derivative(net, u, x, y, beta=0.0), "beta is 0.0; expected numbers above 0"),
        (lambda net, u, x, y: nudge_derivative(net, u, x, y, steps="solve"), "steps is 'solve' and n_points is 2"),
        (lambda net, u, x, y: nudge_derivative(net, u, x, y, n_points=0, steps=-1), "steps is -1"),
        (lambda net, u, x, y: rotating_nudge(net, u, x, y, n_points=1), "n_points is 1, phases 20, beta 0.5"),
        (lambda net, u, x, y: ep_gradients_(net, x, y, homeostasis=-1.0), "homeostasis is -1.0; expected 0 or more"),
        (lambda net, u, x, y: ep_gradients_(net, x, y, estimator="magic"), "estimator is 'magic'"),  # type: ignore[arg-type]
        (lambda net, u, x, y: jacobian_asymmetry(lambda a: a, u, probes=0), "probes is 0; expected 1 or more"),
        (lambda net, u, x, y: jacobian_asymmetry(lambda a: a, u, batch_axes=2), "batch_axes is 2; expected 0 to 1"),
        (lambda net, u, x, y: jacobian_asymmetry(lambda a: a, u, mode="both"), "mode is 'both'"),  # type: ignore[arg-type]
        (lambda net, u, x, y: jacobian_asymmetry(lambda a: a[:, 1:], u), r"field returns shape \(4, 14\)"),
        (
            lambda net, u, x, y: jacobian_asymmetry(lambda a: a[:, 1:], u, mode="reverse"),
            r"field returns shape \(4, 14\)",
        ),
        (lambda net, u, x, y: symmetry_index(u), r"jacobian has shape \(4, 15\)"),
        (lambda net, u, x, y: alignment(u, u[:, 1:]), r"first has shape \(4, 15\), second \(4, 14\)"),
    ],
)
def test_wrong_arguments_are_named(use: Callable[..., object], words: str) -> None:
    net = small()
    x, y = batch()
    with pytest.raises(ValueError, match=words):
        use(net, gaussian(4, net.units), x, y)


def test_squared_loss_names_a_wrong_target() -> None:
    net = small(loss="squared")
    x, y = batch()
    with pytest.raises(ValueError, match=r"y has shape \(4,\) and dtype torch.int64; expected floating-point"):
        net.relax(x, y, 0.1)


# The study


def test_panels_show_what_theory_says() -> None:
    prepared = room.before_training(10_000, Scale.SMOKE)
    errors, cosines = prepared.errors, prepared.cosines
    assert errors.shape == (len(room.NUDGES), len(room.SIZES)) and cosines.shape == (len(room.ANGLES), 2)
    for n, count in enumerate(room.NUDGES):
        # With six of the smallest nudges, what the relaxation leaves is larger than the error of the nudges.
        slope = np.polyfit(np.log(room.SIZES[1:4]), np.log(errors[n, 1:4]), 1)[0]
        assert slope == pytest.approx(count, abs=0.7)
    assert cosines[0] == pytest.approx(1.0)
    assert np.abs(cosines[-1]).max() < 0.9  # directions in five dimensions are alike by chance
    assert room.rank_correlation(cosines) == pytest.approx(stats.spearmanr(room.ANGLES, cosines.mean(axis=1)).statistic)


def test_a_trial_repeats_itself_and_arms_differ_in_what_they_say() -> None:
    prepared = room.before_training(10_000, Scale.SMOKE)
    found = {}
    for arm in room.study.arms:
        trial = Trial(arm, 10_000, Scale.SMOKE, {"learning rate": 2e-3})
        found[arm] = room.train(trial, prepared)
        again = room.train(trial, prepared)
        for name, value in found[arm].items():
            assert np.array_equal(value, again[name]), name
    assert found["symmetric"][room.COSINE] == pytest.approx(1.0)
    assert found["symmetric"][room.SYMMETRY] == pytest.approx(1.0)
    assert float(found["homeostasis"][room.SYMMETRY]) > float(found["none"][room.SYMMETRY])
    assert found["longer"]["looks"][-1, 0] == room.LONGER * found["none"]["looks"][-1, 0]  # type: ignore[index]
    assert found["homeostasis"]["parameters"] == found["adjoint"]["parameters"]
    assert set(found["homeostasis"]) >= set(room.study.measures)


def test_the_sham_has_nothing_that_the_checks_ask_for() -> None:
    prepared = room.before_training(10_000, Scale.SMOKE)
    trial = Trial("homeostasis", 10_000, Scale.SMOKE, {"learning rate": 2e-3})
    sham = room.without_what_it_rests_on(trial, prepared)
    assert sham[room.SIX] == sham[room.ONE] == room.train(trial, prepared)[room.ONE]
    assert float(sham[room.SIX]) > 0.01
    shams = [room.without_what_it_rests_on(replace(trial, seed=seed), prepared) for seed in range(8)]
    assert abs(np.mean([float(each[room.RANK]) for each in shams])) < 0.6
