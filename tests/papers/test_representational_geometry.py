"""Representational geometry: measures on known shapes, stacks against single networks, the gradient field, images."""

import math
import pickle
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.data.cifar import load_cifar10
from working_papers.nn.similarity import linear_cka, participation_ratio
from working_papers.papers.representational_geometry import (
    ACTIVATIONS,
    OneHidden,
    Samples,
    alignment,
    balanced_dichotomies,
    ccgp,
    decoding_accuracy,
    dimensionality,
    expected_update,
    geometry_report,
    gradient_field,
    logistic_loss,
    noisy_samples,
    parallelism_score,
    shattering_dimension,
    structured_task,
    train_together,
    unit_selectivity,
    within_class_fraction,
)
from working_papers.papers.representational_geometry.images import LAYERS, cifar_alignments, image_alignments
from working_papers.testing import (
    assert_deterministic,
    assert_gradients_reach_parameters,
    assert_invariant,
    assert_numerical_gradient,
    assert_state_dict_round_trip,
    random_rotation,
)

HALVES = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cube(factors: int = 3, units: int = 20) -> tuple[Tensor, Tensor]:
    """The corners of a cube, rotated into more units, and its axes as dichotomies [2**factors, factors]."""
    task = structured_task(2**factors, units, f"factorial:{factors}", 1.0, seed=3, dtype=torch.float64)
    return task.x, task.factors


def square() -> Tensor:
    return torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


# Alignment, collapse and dimension


def test_alignment_is_that_of_linear_cka_network_by_network() -> None:
    h, x = normal(2, 3, 8, 20), normal(8, 5, seed=1)
    found = alignment(h, x)
    assert found.shape == (2, 3)
    expected = torch.stack([torch.stack([linear_cka(each, x) for each in row]) for row in h])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert ((found >= 0) & (found <= 1)).all()


def test_alignment_ignores_rotation_scale_shift_and_the_order_of_units() -> None:
    x, rotation = normal(8, 5, seed=1), random_rotation(20)
    assert_invariant(lambda h: alignment(h, x), normal(8, 20), lambda h: 3 * h @ rotation + 7)
    assert_invariant(lambda h: alignment(h, x), normal(8, 20), lambda h: h.flip(-1))


@pytest.mark.parametrize("targets", ["dichotomy", "factorial:2", "factorial:3"])
def test_a_layer_of_targets_is_aligned_and_collapsed(targets: str) -> None:
    task = structured_task(16, 40, targets, 0.0, seed=1, dtype=torch.float64)
    assert float(alignment(task.t, task.t)) == pytest.approx(1, abs=1e-12)
    assert float(within_class_fraction(task.t, task.t)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("targets", ["dichotomy", "factorial:2"])
def test_inputs_at_full_separability_have_the_geometry_of_the_targets(targets: str) -> None:
    task = structured_task(16, 40, targets, 1.0, seed=1, dtype=torch.float64)
    assert float(alignment(task.x, task.t)) == pytest.approx(1, abs=1e-12)
    assert float(within_class_fraction(task.x, task.t)) == pytest.approx(0, abs=1e-12)


def test_inputs_align_more_with_targets_the_more_separable_they_are() -> None:
    found = [
        float(alignment(task.x, task.t).mean())
        for task in (structured_task(8, 100, "dichotomy", s, seed=range(20)) for s in (0.0, 0.1, 0.3, 0.6, 1.0))
    ]
    assert found == sorted(found)
    assert found[0] < 0.5


def test_within_class_fraction_of_two_pairs_by_hand() -> None:
    h = torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64)
    labels = torch.tensor([5, 5, 7, 7])
    assert float(within_class_fraction(h, labels)) == pytest.approx(4 / (4 + 100), abs=1e-14)
    assert_invariant(lambda x: within_class_fraction(x, HALVES), normal(8, 6), lambda x: 1e-3 * x.flip(-1) + 2)


def test_within_class_fraction_of_equal_activity_is_not_a_number() -> None:
    assert math.isnan(float(within_class_fraction(torch.ones(8, 3), HALVES)))


def test_dimension_of_a_cube_and_of_a_line() -> None:
    assert float(dimensionality(cube(3)[0])) == pytest.approx(3, rel=1e-9)
    assert float(dimensionality(HALVES[:, None])) == pytest.approx(1, rel=1e-6)
    h = normal(4, 8, 6)
    torch.testing.assert_close(dimensionality(h), torch.stack([participation_ratio(each) for each in h]))


def test_alignment_and_collapse_have_gradients() -> None:
    x = normal(8, 3, seed=2)
    assert_numerical_gradient(lambda h: alignment(h, x), normal(2, 8, 4))
    assert_numerical_gradient(lambda h: within_class_fraction(h, HALVES), normal(2, 8, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_measures_keep_the_dtype(dtype: torch.dtype) -> None:
    h = normal(8, 6).to(dtype)
    report = geometry_report(h, h, HALVES[:, None], n_dichotomies=5)
    exact = geometry_report(h.double(), h.double(), HALVES[:, None], n_dichotomies=5)
    for name, value in vars(report).items():
        assert value.dtype == dtype, name
        torch.testing.assert_close(value.double(), getattr(exact, name), rtol=2e-2, atol=2e-2)


# Parallelism


def test_the_axes_of_a_cube_are_parallel_and_its_xor_is_not() -> None:
    x, factors = cube(3)
    for axis in factors.mT:
        assert float(parallelism_score(x, axis)) == pytest.approx(1, abs=1e-10)
    assert float(parallelism_score(x, factors[:, 0] * factors[:, 1])) < 0.5


def test_xor_of_a_square_is_antiparallel() -> None:
    assert float(parallelism_score(square(), square().prod(dim=1))) == pytest.approx(-1, abs=1e-12)


def test_parallelism_is_the_best_pairing_by_brute_force() -> None:
    h = normal(3, 8, 5)
    side = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    best = []
    for each in h:
        plus, minus = each[side == 1], each[side == 0]
        scores = []
        for order in permutations(range(4)):
            v = plus - minus[list(order)]
            v = v / v.norm(dim=1, keepdim=True)
            cosine = v @ v.mT
            scores.append(float((cosine.sum() - cosine.trace()) / 12))
        best.append(max(scores))
    assert parallelism_score(h, side).tolist() == pytest.approx(best, abs=1e-12)


def test_random_points_in_many_dimensions_are_hardly_parallel() -> None:
    """Two random steps share no end, so that their cosine is 0 on average; the best of 500 pairings is little more."""
    score = parallelism_score(normal(5, 32, 2000), HALVES.repeat_interleave(4))
    assert (score.abs() < 0.05).all()


def test_parallelism_ignores_rotation_scale_and_shift_and_survives_equal_conditions() -> None:
    rotation = random_rotation(6)
    assert_invariant(lambda h: parallelism_score(h, HALVES), normal(8, 6), lambda h: 50 * h @ rotation - 3)
    assert float(parallelism_score(torch.ones(8, 3), HALVES)) == 0


def test_more_random_pairings_never_score_less() -> None:
    h, side = normal(16, 6), HALVES.repeat_interleave(2)
    few, many = (float(parallelism_score(h, side, max_perms=count)) for count in (1, 400))
    assert many > few
    v = h[:8] - h[8:]  # the pairing in order is always among them
    cosine = torch.nn.functional.normalize(v) @ torch.nn.functional.normalize(v).mT
    assert few == pytest.approx(float((cosine.sum() - cosine.trace()) / 56), abs=1e-12)


# Readouts


def test_points_in_general_position_are_shattered() -> None:
    assert float(shattering_dimension(normal(10, 9), noise=0.0)) == 1
    assert float(shattering_dimension(normal(10, 3), noise=0.0)) < 1


def test_a_cube_generalises_and_its_parity_does_not() -> None:
    x, factors = cube(3)
    for axis in factors.mT:
        assert float(ccgp(x, axis, noise=0.1, held_out=1)) == pytest.approx(1, abs=1e-3)
    # Of the 36 ways to hold out two and two, 4 leave two factors confounded: the answer is open on these.
    assert float(ccgp(x, factors[:, 0], noise=0.01)) == pytest.approx(1 - 4 / 36 / 2, abs=0.03)
    parity = factors.prod(dim=1)
    assert float(ccgp(x, parity, noise=0.1, held_out=1)) < 0.1  # inverted, not merely at chance
    accuracy = decoding_accuracy(x, torch.stack([factors[:, 0], parity]), noise=0.1)
    assert float(accuracy[0]) == pytest.approx(1, abs=1e-3)
    assert float(accuracy[1]) < 0.7


def test_xor_of_a_square_cannot_be_decoded() -> None:
    accuracy = decoding_accuracy(square(), square().prod(dim=1)[None], noise=0.0)
    assert float(accuracy) == pytest.approx(0.5)


def test_readout_is_the_shortest_least_squares_fit_without_noise() -> None:
    h, y = normal(8, 2), HALVES.double()
    centred = h - h.mean(dim=0)
    score = centred @ torch.linalg.lstsq(centred, y[:, None]).solution
    expected = float(((score[:, 0] * y) > 0).double().mean())
    assert expected < 1
    assert float(decoding_accuracy(h, y[None], noise=0.0)) == pytest.approx(expected)


def test_readout_on_one_axis_reaches_the_normal_error_rate() -> None:
    """Two points, two standard deviations of the noise apart: right in Φ(1) = 84 % of cases."""
    h = torch.tensor([[1.0] + [0.0] * 9, [-1.0] + [0.0] * 9], dtype=torch.float64)
    noise = normal(2, 8000, 10)
    samples = Samples(h[:, None] + noise[:, :4000], h[:, None] + noise[:, 4000:])
    found = float(decoding_accuracy(h, torch.tensor([[1.0, -1.0]]), samples=samples))
    assert found == pytest.approx(0.8413, abs=0.012)


def test_more_noise_is_harder_to_read() -> None:
    h = normal(16, 30)
    found = [float(shattering_dimension(h, noise, 30)) for noise in (0.0, 1.0, 3.0, 10.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.2


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_projection_on_the_samples_changes_nothing(noise: float) -> None:
    """More units than samples: readouts are solved in the span of the samples, with the same answers."""
    h = normal(8, 900)
    samples = noisy_samples(h, noise, samples=12)
    padded = Samples(*(torch.nn.functional.pad(each, (0, 400)) for each in samples))  # silent units
    wide = torch.nn.functional.pad(h, (0, 400))
    plain, more = ccgp(h, HALVES, samples=samples), ccgp(wide, HALVES, samples=padded)
    assert float(plain) == pytest.approx(float(more), abs=0.03)
    turned = Samples(*(each @ random_rotation(900) for each in samples))
    assert float(ccgp(h @ random_rotation(900), HALVES, samples=turned)) == pytest.approx(float(plain), abs=1e-9)


def test_noise_has_the_stated_length() -> None:
    h = 40 * normal(3, 8, 50)
    train, test = noisy_samples(h, 0.5, samples=200)
    spread = (h - h.mean(dim=1, keepdim=True)).square().sum(-1).mean(-1)
    for part in (train, test):
        assert part.shape == (3, 8, 200, 50)
        length = (part - h[:, :, None]).square().sum(-1).mean((1, 2))
        torch.testing.assert_close((length / spread).sqrt(), torch.full((3,), 0.5).double(), rtol=0.02, atol=0)
    assert not torch.equal(train, test)


def test_readouts_of_a_stack_are_those_of_its_networks() -> None:
    h = normal(3, 8, 12)
    samples = noisy_samples(h, 0.7)
    together = ccgp(h, HALVES, samples=samples), shattering_dimension(h, samples=samples)
    for place in range(3):
        own = Samples(samples.train[place], samples.test[place])
        assert float(ccgp(h[place], HALVES, samples=own)) == pytest.approx(float(together[0][place]), abs=1e-9)
        assert float(shattering_dimension(h[place], samples=own)) == pytest.approx(float(together[1][place]), abs=1e-9)


def test_a_silent_layer_is_at_chance() -> None:
    h = torch.zeros(8, 5)
    assert float(ccgp(h, HALVES)) == 0.5
    assert float(shattering_dimension(h)) == 0.5


@pytest.mark.parametrize(("conditions", "most", "count"), [(4, 100, 3), (8, 100, 35), (8, 10, 10), (32, 100, 100)])
def test_dichotomies_are_balanced_and_differ(conditions: int, most: int, count: int) -> None:
    found = balanced_dichotomies(conditions, most)
    assert found.shape == (count, conditions)
    assert (found.sum(dim=1) == 0).all()
    assert (found[:, 0] == 1).all()
    assert len(found.unique(dim=0)) == count
    left = balanced_dichotomies(conditions, most, exclude=-found[:1].mT)  # also when it is listed the other way round
    assert not (left == found[0]).all(dim=1).any()


# Tasks


def test_unstructured_inputs_are_of_length_one_and_noise_is_as_long_as_asked() -> None:
    task = structured_task(32, 400, "dichotomy", 0.0, seed=range(5), dtype=torch.float64)
    assert task.x.shape == (5, 32, 400)
    assert float(task.x.norm(dim=-1).mean()) == pytest.approx(1, abs=0.01)
    x, t = task.sample(50, 0.3, torch.Generator().manual_seed(1))
    assert x.shape == (5, 32, 50, 400)
    assert t.shape == (32, 50, 1)
    assert float((x - task.x[:, :, None]).norm(dim=-1).mean()) == pytest.approx(0.3, abs=0.005)
    assert torch.equal(t[:, 7], task.t)


def test_a_stack_of_tasks_is_its_single_tasks() -> None:
    stack = structured_task(8, 20, "factorial:2", 0.3, seed=[4, 9])
    assert torch.equal(stack.x[1], structured_task(8, 20, "factorial:2", 0.3, seed=9).x)


def test_designs_are_balanced_and_crossed() -> None:
    factorial = structured_task(16, 20, "factorial:3")
    assert torch.equal(factorial.t.mT @ factorial.t, 16 * torch.eye(3))
    assert len(factorial.t.unique(dim=0)) == 8
    xor = structured_task(12, 20, "xor", 1.0)
    assert torch.equal(xor.t[:, 0], xor.factors.prod(dim=1))
    assert float(alignment(xor.x, xor.t)) == pytest.approx(0, abs=1e-6)
    own = torch.tensor([[1], [1], [-1], [1]])
    assert torch.equal(structured_task(4, 20, own).t, own.float())


# Networks


def test_a_stack_computes_what_its_networks_compute() -> None:
    names = ["tanh", "relu", "relu", "tanh"]
    stack = OneHidden(6, 10, 2, names, seed=[3, 1, 4, 5], dtype=torch.float64)
    x = normal(4, 7, 6)
    out = stack(x)
    assert out.shape == (4, 7, 2)
    for place, (name, seed) in enumerate(zip(names, [3, 1, 4, 5], strict=True)):
        single = OneHidden(6, 10, 2, name, seed=seed, dtype=torch.float64)
        torch.testing.assert_close(out[place], single(x[place]), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(stack.take(place)(x[place]), single(x[place]), rtol=0, atol=0)
    part = stack.take([0, 2])
    torch.testing.assert_close(part(x[[0, 2]]), out[[0, 2]])
    shared = stack(x[0])
    torch.testing.assert_close(shared[0], out[0])


@pytest.mark.parametrize("readout", ["fixed", "trained"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_training_together_is_training_apart(readout: str, noise: float) -> None:
    seeds, names = [0, 1, 2], ["tanh", "relu", "gelu"]
    task = structured_task(8, 12, "factorial:2", 0.1, seeds, dtype=torch.float64)
    stack = OneHidden(12, 16, 2, names, seed=seeds, readout=readout, dtype=torch.float64)
    together = train_together(stack, task.x, task.t, steps=60, level=0.6, noise=noise, record=(0, 7, 60))
    assert together.steps == (0, 7, 60)
    assert together.hidden.shape == (3, 3, 8, 16)
    assert together.loss.shape == (61, 3)
    assert together.matched is not None and together.matched_step is not None
    for place, (seed, name) in enumerate(zip(seeds, names, strict=True)):
        single = OneHidden(12, 16, 2, name, seed=seed, readout=readout, dtype=torch.float64)
        x = task.x[place]
        alone = train_together(single, x, task.t, steps=60, level=0.6, noise=noise, record=(0, 7, 60))
        assert alone.matched is not None and alone.matched_step is not None
        torch.testing.assert_close(together.hidden[:, place], alone.hidden, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together.loss[:, place], alone.loss, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(together.matched[place], alone.matched, rtol=1e-9, atol=1e-11)
        assert int(together.matched_step[place]) == int(alone.matched_step)


def test_layers_are_kept_at_the_first_step_of_the_level() -> None:
    task = structured_task(8, 20, seed=[0, 1])
    network = OneHidden(20, 30, seed=[0, 1])
    found = train_together(network, task.x, task.t, steps=150, level=0.4, record=range(151))
    assert found.matched is not None and found.matched_step is not None
    for place, step in enumerate(found.matched_step.tolist()):
        assert found.loss[step, place] <= 0.4 < found.loss[step - 1, place]
        assert torch.equal(found.matched[place], found.hidden[step, place])
    never = train_together(network, task.x, task.t, steps=3, level=0.0, record=(3,))
    assert never.matched is not None and never.matched_step is not None
    assert never.matched_step.tolist() == [-1, -1]
    assert torch.equal(never.matched, never.hidden[-1])


def test_fixed_readouts_stay_and_are_signs_and_no_steps_change_nothing() -> None:
    task, network = structured_task(8, 20), OneHidden(20, 25)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(network.readout.abs(), torch.full((1, 25), 0.2))
    train_together(network, task.x, task.t, steps=0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    train_together(network, task.x, task.t, steps=2)
    assert torch.equal(network.readout, before["readout"])
    assert not torch.equal(network.weight, before["weight"])


def test_tasks_and_networks_of_a_seed_are_independent() -> None:
    task, network = structured_task(50, 100, seed=7), OneHidden(100, 50, seed=7)
    pairs = torch.stack([task.x.flatten(), network.weight.detach().flatten()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.06


@pytest.mark.parametrize("seed", [0, [0, 1]], ids=["single", "stack"])
def test_networks_save_and_learn(seed: int | list[int]) -> None:
    network = OneHidden(6, 9, 2, "tanh", seed=seed, readout="trained")
    assert_gradients_reach_parameters(network, normal(5, 6).float())
    fresh = OneHidden(6, 9, 2, "tanh", seed=[8, 9] if isinstance(seed, list) else 8, readout="trained")
    assert_state_dict_round_trip(network, fresh, normal(5, 6).float())
    assert_deterministic(lambda: OneHidden(6, 9, seed=seed)(normal(5, 6).float()))


def test_networks_in_half_precision() -> None:
    exact = OneHidden(6, 9, seed=[0, 1], init_gain=1.0, dtype=torch.float64)
    half = OneHidden(6, 9, seed=[0, 1], init_gain=1.0, dtype=torch.bfloat16)
    torch.testing.assert_close(half(normal(5, 6).bfloat16()).double(), exact(normal(5, 6)), rtol=0.05, atol=0.05)


def test_loss_is_the_cross_entropy_of_independent_targets() -> None:
    outputs, targets = normal(3, 8, 2), normal(8, 2, seed=1).sign()
    one_hot = ((targets + 1) / 2).expand(3, -1, -1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs, one_hot, reduction="none").mean((1, 2))
    torch.testing.assert_close(logistic_loss(outputs, targets), expected)


def test_tanh_takes_over_the_targets_and_relu_keeps_the_inputs() -> None:
    seeds = [0, 1, 2]
    task = structured_task(8, 60, "dichotomy", 0.0, seeds)
    network = OneHidden(60, 80, 1, ["tanh"] * 3 + ["relu"] * 3, seed=seeds * 2)
    h = train_together(network, task.x.repeat(2, 1, 1), task.t, steps=600).hidden[-1]
    target, inputs = alignment(h, task.t), alignment(h, task.x.repeat(2, 1, 1))
    assert (target[:3] > target[3:]).all()
    assert (inputs[:3] < inputs[3:]).all()
    within = within_class_fraction(h, task.t)
    assert (3 * within[:3] < within[3:]).all()


# The gradient field


def field_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return normal(8, 5), HALVES.double(), normal(30, 5, seed=2)


def test_field_of_a_linear_unit_is_the_same_everywhere() -> None:
    x, y, w = field_inputs()
    found = expected_update("linear", w, x, y)
    torch.testing.assert_close(found, (y[:, None] * x).mean(dim=0).expand(30, -1) / 2)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard tanh"])
def test_field_of_an_odd_activation_is_even(name: str) -> None:
    x, y, w = field_inputs()
    torch.testing.assert_close(expected_update(name, w, x, y), expected_update(name, -w, x, y))


@pytest.mark.parametrize("name", ["relu", "softplus", "gelu"])
def test_field_of_a_rectifier_and_its_reflection_is_the_linear_one(name: str) -> None:
    x, y, w = field_inputs()
    both = expected_update(name, w, x, y) + expected_update(name, -w, x, y)
    torch.testing.assert_close(both, expected_update("linear", w, x, y))


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_step_of_descent_follows_the_field(name: str, sign: float) -> None:
    """A unit and its twin with the opposite output weight: outputs are exactly 0."""
    x, y, w = field_inputs()
    network = OneHidden(5, 2, 1, name, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(w[:1].expand(2, -1))
        network.readout.copy_(torch.tensor([[sign, -sign]]))
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD([network.weight], lr=0.1)
    logistic_loss(network(x), y[:, None]).backward()
    optimizer.step()
    expected = 0.1 * expected_update(name, w[0], x, y, sign)
    torch.testing.assert_close(network.weight.detach()[0] - before[0], expected, rtol=1e-6, atol=1e-12)


def test_field_on_a_plane_is_the_projected_update() -> None:
    x, y, _ = field_inputs()
    axes, grid = random_rotation(5)[:2], normal(4, 4, 2, seed=3)
    found = gradient_field("tanh", x, y, axes, grid)
    assert found.shape == (4, 4, 2)
    torch.testing.assert_close(found[1, 2], axes @ expected_update("tanh", grid[1, 2] @ axes, x, y))


def test_selectivity_of_units_along_known_axes() -> None:
    x = torch.eye(4, dtype=torch.float64)
    y = torch.tensor([1, 1, -1, -1])
    inter = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64) / 2
    intra = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64) / math.sqrt(2)
    common = torch.ones(4, dtype=torch.float64)  # the mean of all conditions is on neither axis
    units = unit_selectivity(torch.stack([2 * inter + common, 3 * intra, inter + intra]), x, y)
    torch.testing.assert_close(units.inter, torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(units.intra, torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(units.between_share, torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    assert units.active.tolist() == [0.5, 0.25, 0.25]
    shifted = unit_selectivity(intra[None], x, y, bias=torch.tensor([0.1], dtype=torch.float64))
    assert shifted.active.tolist() == [0.75]


# All together


def test_report_of_any_layer_of_any_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    images = normal(8, 1, 8, 8).float()
    with torch.no_grad():
        h = model[:3](images)
    report = geometry_report(h, images.flatten(1), HALVES)
    assert 0 < float(report.cka_input) <= 1
    assert all(value.shape == () and torch.isfinite(value) for value in vars(report).values())


def test_report_holds_the_single_measures() -> None:
    task = structured_task(8, 30, "factorial:2", 0.5, seed=[0, 1], dtype=torch.float64)
    h = torch.tanh(task.x @ normal(30, 12))
    samples = noisy_samples(h, 0.8, seed=2)
    report = geometry_report(h, task.x, task.t, samples=samples, seed=2)
    torch.testing.assert_close(report.cka_target, alignment(h, task.t))
    torch.testing.assert_close(report.within, within_class_fraction(h, task.t))
    torch.testing.assert_close(report.sd_trained, decoding_accuracy(h, task.t.mT, samples=samples).mean(-1))
    untrained = shattering_dimension(h, exclude=task.t, samples=samples, seed=2)
    torch.testing.assert_close(report.sd_untrained, untrained)
    scores = torch.stack([ccgp(h, column, samples=samples) for column in task.t.mT]).mean(0)
    torch.testing.assert_close(report.ccgp, scores)
    parallel = torch.stack([parallelism_score(h, column) for column in task.t.mT]).mean(0)
    torch.testing.assert_close(report.ps, parallel)


# Wrong input

H = torch.zeros(8, 5)
BAD_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "integers": (lambda: alignment(H.long(), H), "h has dtype torch.int64"),
    "one condition": (lambda: alignment(H[:1], H[:1]), r"h has shape \(1, 5\)"),
    "other conditions": (lambda: alignment(H, H[:6]), "reference has 6 conditions; expected 8"),
    "labels": (lambda: within_class_fraction(H, HALVES[:6]), r"labels has shape \(6,\)"),
    "unbalanced": (lambda: parallelism_score(H, (torch.arange(8) < 3).int()), "dichotomy has 3 of 8"),
    "three labels": (lambda: ccgp(H, torch.arange(8) % 3), "dichotomy has 3 different labels"),
    "two conditions": (lambda: ccgp(H[:2], HALVES[3:5]), "P of at least 4"),
    "held out": (lambda: ccgp(H, HALVES, held_out=4), "held_out is 4; expected 1 to 3"),
    "no splits": (lambda: ccgp(H, HALVES, max_splits=0), "max_splits is 0"),
    "no pairings": (lambda: parallelism_score(H, HALVES, max_perms=0), "max_perms is 0"),
    "negative noise": (lambda: noisy_samples(H, -1.0), "noise is -1.0"),
    "no samples": (lambda: noisy_samples(H, 1.0, samples=0), "samples is 0"),
    "sample shape": (lambda: ccgp(H, HALVES, samples=Samples(H, H)), r"samples.train has shape \(8, 5\)"),
    "signs": (lambda: decoding_accuracy(H, torch.zeros(1, 8)), "dichotomies has values other than"),
    "dichotomies": (lambda: decoding_accuracy(H, HALVES), r"dichotomies has shape \(8,\)"),
    "odd": (lambda: balanced_dichotomies(7), "conditions is 7; expected an even number"),
    "none asked": (lambda: balanced_dichotomies(8, 0), "most is 0"),
    "nothing left": (lambda: balanced_dichotomies(4, exclude=balanced_dichotomies(4).mT), "exclude leaves no"),
    "exclude": (lambda: balanced_dichotomies(4, exclude=HALVES[:, None]), r"exclude has shape \(8, 1\)"),
    "separability": (lambda: structured_task(8, 5, "dichotomy", 1.5), "separability is 1.5"),
    "design": (lambda: structured_task(6, 5, "xor"), "conditions is 6; expected a multiple of 4"),
    "name": (lambda: structured_task(8, 5, "factorial"), "targets is 'factorial'"),
    "dimension": (lambda: structured_task(8, 1, "factorial:2"), "dimension is 1; expected at least 2"),
    "values": (lambda: structured_task(4, 5, torch.zeros(4, 1)), "values other than -1 and 1"),
    "target shape": (lambda: structured_task(4, 5, torch.ones(5, 1)), r"targets has shape \(5, 1\)"),
    "sample count": (lambda: structured_task(4, 5).sample(0, 1.0), "n is 0"),
    "sample noise": (lambda: structured_task(4, 5).sample(1, -1.0), "noise is -1.0"),
    "activation": (lambda: OneHidden(3, 4, activation="selu"), "activation is 'selu'"),
    "activations": (lambda: OneHidden(3, 4, 1, ["tanh", "relu"], seed=[0, 1, 2]), "activation names 2 functions"),
    "readout": (lambda: OneHidden(3, 4, readout="random"), "readout is 'random'"),
    "size": (lambda: OneHidden(0, 4), "inputs is 0"),
    "gain": (lambda: OneHidden(3, 4, init_gain=0.0), "init_gain is 0.0"),
    "no seeds": (lambda: OneHidden(3, 4, seed=[]), "seed is empty"),
    "features": (lambda: OneHidden(3, 4)(H), "x has 5 features; expected 3"),
    "stack": (lambda: OneHidden(5, 4, seed=[0, 1])(H.expand(3, 8, 5)), r"expected \(P, d\) or \(2, P, d\)"),
    "take single": (lambda: OneHidden(3, 4).take(0), "this is a single network"),
    "take place": (lambda: OneHidden(3, 4, seed=[0, 1]).take([2]), "places from 0 to 1"),
    "targets": (lambda: train_together(OneHidden(5, 4), H, HALVES), r"t has shape \(8,\)"),
    "target values": (lambda: train_together(OneHidden(5, 4), H, H[:, :1]), "values other than -1 and 1"),
    "steps": (lambda: train_together(OneHidden(5, 4), H, HALVES[:, None], steps=-1), "are -1, 4 and 0.005"),
    "train noise": (lambda: train_together(OneHidden(5, 4), H, HALVES[:, None], noise=-1.0), "noise is -1.0"),
    "update": (lambda: expected_update("tanh", H[0, :3], H, HALVES), "weight has 3 entries; expected 5"),
    "update target": (lambda: expected_update("tanh", H[0], H, HALVES[:5]), r"expected \(P, d\) and \(P,\)"),
    "axes": (lambda: gradient_field("tanh", H, HALVES, torch.ones(2, 5), H[:, :2]), "axes are not orthonormal"),
    "grid": (lambda: gradient_field("tanh", H, HALVES, torch.eye(5)[:2], H), r"axes has shape \(2, 5\)"),
    "weight": (lambda: unit_selectivity(H[0], H, HALVES), r"weight has shape \(5,\)"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_input_is_named(name: str) -> None:
    call, words = BAD_CALLS[name]
    with pytest.raises(ValueError, match=words):
        call()


# The study's images


def write_cifar(folder: Path, images: int = 20) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels = (np.arange(images) % 10).tolist()
        data = random.integers(0, 256, (images, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))


def test_paper_scale_measures_every_layer_of_a_convolutional_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(tmp_path / "home"))
    write_cifar(tmp_path / "cifar")
    data = load_cifar10(tmp_path / "cifar")
    before, after = (
        cifar_alignments(Trial(arm, 3, Scale.PAPER), *data, steps=3, batch=10) for arm in ("untrained", "tanh")
    )
    for found in (before, after):
        assert found.shape == (2, len(LAYERS), 2)
        assert ((found > 0) & (found <= 1)).all()
    assert not torch.equal(before, after)
    assert not list((tmp_path / "home").rglob("*.pt"))  # the checkpoint goes with the end of the training


def test_paper_scale_names_what_is_missing_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKING_PAPERS_DATA", raising=False)
    with pytest.raises(ValueError, match="WORKING_PAPERS_DATA"):
        image_alignments(Trial("tanh", 0, Scale.PAPER))
    write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="test_batch missing"):
        image_alignments(Trial("tanh", 0, Scale.PAPER))
