"""Benign overfitting: the exact properties of data, network, training in three coordinate systems, and meters."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Scale, Trial
from working_papers.papers.benign_overfitting import (
    Batch,
    GramSpace,
    TwoLayerReLU,
    XORClusters,
    accuracy,
    draw_in_span,
    gradient_descent_trace,
    isotropic_coordinates,
    linear_r2,
    linear_share,
    minimum_norm_interpolator,
    neuron_alignment,
    overfitting_report,
    step_coefficients,
    theory_constants,
)
from working_papers.papers.benign_overfitting import study as room

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(
    dtype: torch.dtype = torch.float64, *, n: int = 12, p: int = 30, m: int = 7, init_scale: float = 0.3
) -> tuple[XORClusters, Batch, TwoLayerReLU]:
    generator = seeded()
    clusters = XORClusters.random(p, signal=3.0, noise_rate=0.2, generator=generator, dtype=dtype)
    network = TwoLayerReLU(p, m, init_scale=init_scale, generator=generator, dtype=dtype)
    return clusters, clusters.sample(n, generator=generator), network


# The data


@DTYPES
def test_means_are_orthogonal_and_as_long_as_asked(dtype: torch.dtype) -> None:
    means = XORClusters.random(50, signal=4.0, generator=seeded(), dtype=dtype).means
    assert means.dtype == dtype
    torch.testing.assert_close(means @ means.T, 16 * torch.eye(2, dtype=dtype), atol=1e-5, rtol=1e-5)


def test_clusters_flips_and_norms_have_their_frequencies() -> None:
    count, p, signal, noise_rate = 40_000, 20, 5.0, 0.15
    clusters = XORClusters.random(p, signal=signal, noise_rate=noise_rate, generator=seeded())
    batch = clusters.sample(count, generator=seeded(1))
    counts = batch.cluster.bincount(minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert stats.binomtest(int(batch.flipped.sum()), count, noise_rate).pvalue > 1e-4
    # E‖x‖² = ‖mean‖² + p with variance 2 p + 4 ‖mean‖² for one sample.
    error = math.sqrt((2 * p + 4 * signal**2) / count)
    assert float(batch.x.square().sum(dim=1).mean()) == pytest.approx(signal**2 + p, abs=5 * error)


def test_each_cluster_lies_at_its_mean_with_its_label() -> None:
    clusters = XORClusters.random(10, signal=6.0, noise_rate=0.3, generator=seeded(), dtype=torch.float64)
    batch = clusters.sample(20_000, generator=seeded(1))
    plus, minus = clusters.means
    for index, (mean, label) in enumerate([(plus, 1.0), (-plus, 1.0), (minus, -1.0), (-minus, -1.0)]):
        members = batch.cluster == index
        torch.testing.assert_close(batch.x[members].mean(dim=0), mean, atol=0.08, rtol=0)
        assert batch.clean[members].unique().tolist() == [label]
    assert torch.equal(batch.y != batch.clean, batch.flipped)
    assert len(batch) == 20_000


@pytest.mark.parametrize("noise_rate", [0.0, 0.1, 0.3])
def test_rule_that_knows_the_means_is_optimal_and_noise_caps_it(noise_rate: float) -> None:
    accuracies = []
    for signal in (1.0, 3.0, 8.0):
        clusters = XORClusters.random(6, signal=signal, noise_rate=noise_rate, generator=seeded())
        batch = clusters.sample(40_000, generator=seeded(1))
        projection = (batch.x @ clusters.means.T).abs()
        scores = projection[:, 0] - projection[:, 1]
        clean = accuracy(scores, batch.clean)
        # The mean's own projection is N(signal, 1), the other N(0, 1): P(|N(s, 1)| > |N(0, 1)|).
        tail = stats.norm.cdf(signal / math.sqrt(2))
        assert clean == pytest.approx(tail**2 + (1 - tail) ** 2, abs=0.012)
        expected = noise_rate + (1 - 2 * noise_rate) * clean
        assert accuracy(scores, batch.y) == pytest.approx(expected, abs=0.012)
        accuracies.append(clean)
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > 0.999


def test_fitting_every_flipped_label_costs_exactly_the_flips_on_clean_labels() -> None:
    _, batch, _ = make(n=50)
    assert 0 < int(batch.flipped.sum()) < 50
    assert accuracy(batch.y, batch.y) == 1
    assert accuracy(batch.y, batch.clean) == pytest.approx(1 - int(batch.flipped.sum()) / 50)


def test_linear_model_is_right_half_the_time() -> None:
    clusters, _, _ = make()
    x = clusters.sample(500, generator=seeded(2))
    weights = torch.randn(30, generator=seeded(3), dtype=torch.float64)
    both = torch.cat([x.x, -x.x])  # the mirror image of an input has its label
    assert accuracy(both @ weights, torch.cat([x.clean, x.clean])) == 0.5


def test_same_generator_same_samples() -> None:
    clusters, _, _ = make()
    first, second = clusters.sample(5, generator=seeded(3)), clusters.sample(5, generator=seeded(3))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y, second.y)
    assert not torch.equal(first.x, clusters.sample(5, generator=seeded(4)).x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: XORClusters(torch.ones(3, 5)), r"means is torch.float32 of shape \(3, 5\); expected"),
        (lambda: XORClusters(torch.ones(2, 5, dtype=torch.int64)), "means is torch.int64 of shape"),
        (lambda: XORClusters(torch.ones(2, 5)), "expected orthogonal vectors of equal norm"),
        (lambda: XORClusters(torch.zeros(2, 5)), "expected orthogonal vectors of equal norm"),
        (lambda: XORClusters(torch.eye(2, 5), 0.5), "noise_rate is 0.5; expected at least 0 and below 0.5"),
        (lambda: XORClusters(torch.eye(2, 5), -0.1), "noise_rate is -0.1"),
        (lambda: XORClusters.random(1, signal=1.0), "dimension is 1; expected at least 2"),
        (lambda: XORClusters.random(5, signal=0.0), "signal is 0.0; expected a positive norm"),
        (lambda: XORClusters(torch.eye(2, 5)).sample(0), "count is 0; expected at least 1"),
        (lambda: TwoLayerReLU(0, 3, init_scale=1.0), "dimension and width are 0 and 3; expected at least 1"),
        (lambda: TwoLayerReLU(3, 3, init_scale=-1.0), "init_scale is -1.0; expected a standard deviation"),
        (lambda: isotropic_coordinates(5, 4), "rows is 5 with dimension 4; expected 1 to 4"),
        (
            lambda: draw_in_span(5, 3, dimension=9, signal=1.0, noise_rate=0.1, init_scale=1.0),
            r"dimension is 9; expected at least 2 \+ samples \+ width = 10",
        ),
        (lambda: minimum_norm_interpolator(torch.eye(3), torch.ones(4)), r"gram has shape \(3, 3\); expected"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


# The network


@DTYPES
def test_network_is_its_formula_at_any_batch_shape(dtype: torch.dtype) -> None:
    _, _, network = make(dtype)
    x = torch.randn(2, 3, 30, generator=seeded(5), dtype=dtype)
    expected = sum(a * (x @ w).relu() for a, w in zip(network.second_layer, network.first_layer, strict=True))
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(network(x), expected)
    assert network(x[0, 0]).shape == ()
    assert network.second_layer.abs().tolist() == pytest.approx([1 / math.sqrt(7)] * 7)


def test_output_is_positively_homogeneous_in_weights_and_input() -> None:
    _, batch, network = make()
    before = network(batch.x)
    torch.testing.assert_close(network(3 * batch.x), 3 * before)
    with torch.no_grad():
        network.first_layer.mul_(2)
    torch.testing.assert_close(network(batch.x), 2 * before)


def test_odd_part_is_exactly_linear() -> None:
    _, batch, network = make()
    plus, minus = network(batch.x), network(-batch.x)
    z, a = batch.x @ network.first_layer.T, network.second_layer
    torch.testing.assert_close(plus + minus, z.abs() @ a)
    torch.testing.assert_close(plus - minus, batch.x @ (a @ network.first_layer))


def test_gradients_reach_the_first_layer_and_are_right() -> None:
    _, batch, network = make(n=4, p=5, m=3)
    assert torch.autograd.gradcheck(
        lambda weights: torch.func.functional_call(network, {"first_layer": weights}, batch.x),
        network.first_layer.detach().clone().requires_grad_(),
    )
    assert [name for name, _ in network.named_parameters()] == ["first_layer"]
    trained = TwoLayerReLU(5, 3, init_scale=1.0, train_second_layer=True)
    assert {name for name, _ in trained.named_parameters()} == {"first_layer", "second_layer"}


@pytest.mark.parametrize("train_second_layer", [False, True])
def test_state_dict_round_trip(train_second_layer: bool) -> None:
    first = TwoLayerReLU(6, 4, init_scale=1.0, train_second_layer=train_second_layer, generator=seeded(1))
    second = TwoLayerReLU(6, 4, init_scale=1.0, train_second_layer=train_second_layer, generator=seeded(2))
    x = torch.randn(5, 6, generator=seeded(3))
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_network_compiles_without_a_graph_break() -> None:
    _, batch, network = make()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch.x), network(batch.x))


# Training


@DTYPES
@pytest.mark.parametrize("shape", [(1, 2, 1), (12, 30, 7), (40, 3, 5)])
def test_step_is_that_of_sgd_with_autograd(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    n, p, m = shape
    _, batch, network = make(dtype, n=n, p=p, m=m)
    before = network.first_layer.detach().clone()
    change = step_coefficients(batch.x @ before.T, network.second_layer, batch.y, 0.7)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.7)
    F.softplus(-batch.y * network(batch.x)).mean().backward()
    optimizer.step()
    torch.testing.assert_close(before + change @ batch.x, network.first_layer.detach(), atol=1e-6, rtol=1e-6)


def test_loss_of_a_small_step_falls_by_the_gradient_norm() -> None:
    _, batch, network = make()
    lr = 1e-6

    def loss() -> Tensor:
        return F.softplus(-batch.y * network(batch.x)).mean()

    before = loss()
    (gradient,) = torch.autograd.grad(before, [network.first_layer])
    with torch.no_grad():
        z = batch.x @ network.first_layer.T
        network.first_layer.add_(step_coefficients(z, network.second_layer, batch.y, lr) @ batch.x)
        after = loss()
    assert float(before.detach() - after) == pytest.approx(lr * float(gradient.square().sum()), rel=1e-3)


@pytest.mark.parametrize("init_scale", [1e-5, 0.3])
def test_gram_space_follows_the_direct_path(init_scale: float) -> None:
    clusters, batch, network = make(init_scale=init_scale)
    test = clusters.sample(9, generator=seeded(8))
    space = GramSpace.of(network, batch.x, (part for part in (test.x[:4], test.x[4:], clusters.means)))
    coefficients = space.start()
    for _ in range(6):
        points = torch.cat([batch.x, test.x, clusters.means])
        torch.testing.assert_close(space.preactivation(coefficients), points @ network.first_layer.T.detach())
        norms = network.first_layer.detach().square().sum(dim=1)
        torch.testing.assert_close(space.squared_norms(coefficients), norms)
        coefficients = space.step(coefficients, batch.y, 0.5)
        gradient_descent_trace(network, batch, test, learning_rate=0.5, steps=1)


def test_rescaled_gram_space_is_that_of_the_rescaled_network() -> None:
    _, batch, network = make()
    rescaled = GramSpace.of(network, batch.x).rescaled(0.25).to("cpu")
    with torch.no_grad():
        network.first_layer.mul_(0.25)
    direct = GramSpace.of(network, batch.x)
    for name in ("kernel", "initial", "second_layer", "initial_norms"):
        torch.testing.assert_close(getattr(rescaled, name), getattr(direct, name))


def test_gram_space_refuses_what_does_not_fit() -> None:
    _, batch, network = make()
    space = GramSpace.of(network, batch.x)
    with pytest.raises(ValueError, match="kernel, second_layer and initial_norms have shapes"):
        GramSpace(space.kernel[:5], space.initial, space.second_layer, space.initial_norms)
    trained = TwoLayerReLU(30, 7, init_scale=1.0, train_second_layer=True, dtype=torch.float64)
    with pytest.raises(ValueError, match="train_second_layer=True; expected a fixed second layer"):
        GramSpace.of(trained, batch.x)


# The problem in the span


def test_isotropic_coordinates_have_the_law_of_a_normal_matrix() -> None:
    draws, rows, dimension = 4000, 4, 9
    generator = seeded(1)
    shape = (draws, rows, rows)
    short = torch.stack([isotropic_coordinates(rows, dimension, generator=generator) for _ in range(draws)])
    assert short.shape == shape
    assert torch.equal(short, short.tril())
    long = torch.randn(draws, rows, dimension, generator=generator, dtype=torch.float64)
    for i in range(rows):
        for j in range(i + 1):
            one = (short @ short.mT)[:, i, j].numpy()
            other = (long @ long.mT)[:, i, j].numpy()
            assert stats.ks_2samp(one, other).pvalue > 1e-3, (i, j)
    # A joint moment: for a Wishart matrix E det = d (d - 1) ... (d - rows + 1).
    determinant = torch.linalg.det(short @ short.mT)
    expected = math.perm(dimension, rows)
    error = float(determinant.std()) / math.sqrt(draws)
    assert float(determinant.mean()) == pytest.approx(expected, abs=5 * error)


def test_isotropic_coordinates_reach_any_dimension() -> None:
    rows, dimension = 50, 10**15
    lower = isotropic_coordinates(rows, dimension, generator=seeded())
    gram = lower @ lower.T
    norms = gram.diagonal().sqrt()
    torch.testing.assert_close(gram.diagonal() / dimension, torch.ones(rows, dtype=torch.float64), atol=1e-6, rtol=0)
    cosines = (gram / norms[:, None] / norms)[*torch.tril_indices(rows, rows, -1)] * math.sqrt(dimension)
    assert stats.kstest(cosines.numpy(), "norm").pvalue > 1e-3


def test_problem_in_the_span_has_the_law_of_the_full_one() -> None:
    """Scores of fresh inputs after two steps, from both ways to draw the same problem."""
    n, m, p, signal, noise_rate, lr = 6, 4, 40, 2.0, 0.2, 0.5
    compact, full = [], []
    for seed in range(1500):
        generator = seeded(seed)
        problem = draw_in_span(
            n, m, dimension=p, signal=signal, noise_rate=noise_rate, init_scale=0.2, generator=generator
        )
        compact.append(score_after_two_steps(*problem, lr, generator))
        generator = seeded(10_000 + seed)
        clusters = XORClusters.random(p, signal=signal, noise_rate=noise_rate, generator=generator, dtype=torch.float64)
        train = clusters.sample(n, generator=generator)
        network = TwoLayerReLU(p, m, init_scale=0.2, generator=generator, dtype=torch.float64)
        full.append(score_after_two_steps(clusters, train, network, lr, generator))
    for one, other in zip(np.array(compact).T, np.array(full).T, strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


def score_after_two_steps(
    clusters: XORClusters, train: Batch, network: TwoLayerReLU, lr: float, generator: torch.Generator
) -> tuple[float, float]:
    test = clusters.sample(1, generator=generator)
    with torch.no_grad():
        for _ in range(2):
            z = train.x @ network.first_layer.T
            network.first_layer.add_(step_coefficients(z, network.second_layer, train.y, lr) @ train.x)
        return float(network(test.x) * test.clean), float((network(train.x) * train.y).min())


def test_one_step_memorises_and_later_steps_generalise() -> None:
    """The paper's phenomenon itself, at a size where both are certain."""
    generator = seeded(1)
    clusters, train, network = draw_in_span(
        400, 200, dimension=10**6, signal=146.0, noise_rate=0.1, init_scale=1e-15, generator=generator
    )
    test = clusters.sample(1000, generator=generator)
    trace = gradient_descent_trace(network, train, test, learning_rate=1e-9, steps=20, record_at=(1, 20))
    assert trace.training_accuracy.tolist() == [1.0, 1.0]
    assert abs(float(trace.test_accuracy[0]) - 0.5) < 0.3
    assert float(trace.test_accuracy[1]) > 0.95


# The trace and the meters


@pytest.mark.parametrize("hidden", [0, 8])
def test_trace_trains_any_model_as_sgd_does(hidden: int) -> None:
    clusters, batch, _ = make(torch.float32)
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(30, 1)
    if hidden:
        model = nn.Sequential(nn.Linear(30, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    twin = copy.deepcopy(model)
    test = clusters.sample(20, generator=seeded(2))
    watch = {"norm": lambda trained: float(sum(p.detach().square().sum() for p in trained.parameters()))}
    trace = gradient_descent_trace(model, batch, test, learning_rate=0.1, steps=4, callbacks=watch)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(5):
        loss = F.softplus(-batch.y * twin(batch.x)[:, 0]).mean()
        assert float(trace.training_loss[step]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(trace.extra["norm"][step]) == pytest.approx(watch["norm"](twin), rel=1e-5)
        assert float(trace.test_accuracy[step]) == accuracy(twin(test.x)[:, 0], test.clean)
        assert float(trace.clean_training_accuracy[step]) == accuracy(twin(batch.x)[:, 0], batch.clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert trace.steps.tolist() == [0, 1, 2, 3, 4]


def test_trace_names_bad_input() -> None:
    _, batch, network = make()
    with pytest.raises(ValueError, match=r"record_at is \[0, 9\]; expected at least one step from 0 to 3"):
        gradient_descent_trace(network, batch, batch, learning_rate=0.1, steps=3, record_at=(0, 9))
    with pytest.raises(ValueError, match=r"model returned \(12, 2\) for 12 inputs; expected one score each"):
        gradient_descent_trace(nn.Linear(30, 2).double(), batch, batch, learning_rate=0.1, steps=1)


def test_linear_share_is_the_r2_of_the_best_linear_fit() -> None:
    generator = seeded(4)
    clusters = XORClusters.random(5, signal=2.0, generator=generator, dtype=torch.float64)
    network = TwoLayerReLU(5, 6, init_scale=1.0, generator=generator, dtype=torch.float64)
    x = clusters.sample(100_000, generator=generator).x
    with torch.no_grad():
        scores = network(x)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    residual = scores - design @ torch.linalg.lstsq(design, scores[:, None]).solution[:, 0]
    assert linear_r2(network, x) == pytest.approx(1 - float(residual.var() / scores.var()), abs=0.01)


def test_linear_share_is_one_for_linear_and_zero_for_even_networks() -> None:
    z = torch.randn(50, 3, generator=seeded())
    a = torch.tensor([1.0, -2.0, 0.5])
    linear = linear_share(torch.cat([z, -z], dim=1), torch.cat([a, -a]))  # relu(z) - relu(-z) = z
    even = linear_share(torch.cat([z, -z], dim=1), torch.cat([a, a]))  # relu(z) + relu(-z) = |z|
    assert float(linear) == pytest.approx(1)
    assert float(even) == pytest.approx(0)


def test_alignment_finds_neurons_however_small() -> None:
    network = TwoLayerReLU(4, 3, init_scale=1.0)
    with torch.no_grad():
        network.first_layer.copy_(torch.tensor([[3.0, 0, 0, 0], [-1.0, 1.0, 0, 0], [0, 0, 0, 0]]) * 1e-30)
    cosines = neuron_alignment(network, torch.eye(2, 4) * 1e6)
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosines, torch.tensor([[1.0, 0.0], [-half, half], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"directions has shape \(2, 5\); expected \(k, 4\)"):
        neuron_alignment(network, torch.eye(2, 5))
    with pytest.raises(ValueError, match="directions has a row of zeros"):
        neuron_alignment(network, torch.zeros(1, 4))


def test_least_norm_interpolator_is_the_pseudoinverse() -> None:
    _, batch, _ = make()
    coefficients = minimum_norm_interpolator(batch.x @ batch.x.T, batch.y)
    weights = coefficients @ batch.x
    torch.testing.assert_close(batch.x @ weights, batch.y)
    torch.testing.assert_close(weights, torch.linalg.pinv(batch.x) @ batch.y)


def test_report_reads_a_grokking_run() -> None:
    report = overfitting_report([0, 1, 2, 5, 9], [0.5, 1.0, 1.0, 1.0, 1.0], torch.tensor([0.5, 0.5, 0.99, 0.8, 1.0]))
    assert (report.interpolation_step, report.generalisation_step, report.delay) == (1, 9, 8)
    assert report.stays_fitted
    assert report.benign


def test_report_reads_runs_that_never_get_there() -> None:
    harmful = overfitting_report([0, 1, 2], [0.5, 1.0, 0.9], [0.5, 0.5, 0.6])
    assert (harmful.interpolation_step, harmful.generalisation_step, harmful.delay) == (1, None, None)
    assert not harmful.stays_fitted
    assert not harmful.benign
    robust = overfitting_report([0, 1], [0.5, 0.9], [1.0, 1.0], target=1.0)
    assert (robust.interpolation_step, robust.generalisation_step, robust.benign) == (None, 0, False)
    assert not robust.stays_fitted


@pytest.mark.parametrize(
    ("steps", "training", "test", "target", "message"),
    [
        ([0, 1], [1.0], [1.0, 1.0], 0.9, "have lengths 2, 1 and 2; expected equal"),
        ([], [], [], 0.9, "have lengths 0, 0 and 0"),
        ([1, 1], [1.0, 1.0], [1.0, 1.0], 0.9, r"steps is \[1, 1\]; expected increasing"),
        ([0], [1.0], [1.0], 1.1, "target is 1.1; expected above 0 and at most 1"),
    ],
)
def test_report_names_bad_logs(
    steps: list[int], training: list[float], test: list[float], target: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        overfitting_report(steps, training, test, target=target)


def test_theory_constants_of_a_known_setting() -> None:
    setting = {"samples": 100, "dimension": 20_000, "signal": 30.0, "width": 200}
    ratios = list(theory_constants(**setting, noise_rate=0.1, init_scale=1e-5, learning_rate=1e-3).values())  # type: ignore[arg-type]
    expected = [0.6077, 20_000 / 9e6, 10.0, 1 / 2000, 0.03 / (1e-5 * 100 * 200**1.5 * 20_000), 200 / 100**0.02]
    assert ratios == pytest.approx(expected, rel=1e-3)
    free = theory_constants(**setting, noise_rate=0.0, init_scale=0.0, learning_rate=1e-3)  # type: ignore[arg-type]
    assert sum(math.isinf(ratio) for ratio in free.values()) == 2
    with pytest.raises(ValueError, match=r"learning_rate is 0\.0; expected a positive number"):
        theory_constants(**setting, noise_rate=0.1, init_scale=1e-5, learning_rate=0.0)  # type: ignore[arg-type]


# The study


@pytest.mark.parametrize("scale", list(Scale))
def test_study_is_in_the_regime_its_notes_describe(scale: Scale) -> None:
    for setting, all_met in zip(room.settings(scale), (False, True), strict=True):
        ratios = theory_constants(
            samples=setting.samples,
            dimension=setting.dimension,
            signal=setting.signal,
            noise_rate=room.NOISE_RATE,
            width=setting.width,
            init_scale=setting.init_scale,
            learning_rate=setting.learning_rate,
        )
        least = 2 if all_met else 1
        met = [ratio >= least * (1 - 1e-6) for ratio in ratios.values()]
        assert met == [True, all_met, True, True, True, True]


def test_random_labels_are_memorised_but_teach_nothing() -> None:
    problems = room.draw_problems(10_000, Scale.SMOKE)
    measured = room.labels_at_random(Trial("network", 10_001, Scale.SMOKE), problems)
    assert measured[room.FITTED_LOWEST] == 1
    assert float(measured[room.TEST_LAST]) < 0.8
