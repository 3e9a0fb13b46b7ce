"""Neural collapse: closed forms against the gradient, measures against perfect frames, the monitor against one pass."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.neural_collapse import (
    ClassStatistics,
    CollapsedGeometry,
    CollapseMonitor,
    Frame,
    LinearHead,
    UnconstrainedFeatures,
    balancedness_gaps,
    collapse_metrics,
    collapsed_geometry,
    frame_distance,
    optimal_strength,
    regularised_loss,
    simplex_cross_entropy,
    survival_threshold,
)
from working_papers.testing import (
    assert_gradients_reach_parameters,
    assert_invariant,
    assert_numerical_gradient,
    assert_state_dict_round_trip,
    random_rotation,
)

COUNTS = (200, 100, 50, 50)
DECAY = 5e-4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(counts: Sequence[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def product(weights: Sequence[Tensor]) -> Tensor:
    result = weights[0]
    for weight in weights[1:]:
        result = weight @ result
    return result


def built(
    geometry: CollapsedGeometry, dimension: int = 9, widths: Sequence[int] | None = None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Features, weights and labels of a minimiser, rotated at each layer."""
    means, weights = geometry.build(dimension, widths, generator=generator(3))
    labels = labels_of([int(count) for count in geometry.counts])
    return means[labels], weights, labels


def gradient_at(
    geometry: CollapsedGeometry, weight_decay: float | list[float], feature_decay: float, dimension: int = 9
) -> tuple[float, float, float]:
    """Loss, largest gradient entry and largest balancedness gap at a minimiser."""
    features, weights, labels = built(geometry, dimension)
    bias = geometry.bias
    parts = [features, *weights, *([] if bias is None else [bias])]
    leaves = [part.clone().requires_grad_() for part in parts]
    free = None if bias is None else leaves[-1]
    head = leaves[1 : 1 + len(weights)]
    loss = regularised_loss(leaves[0], head, labels, weight_decay, feature_decay, bias=free)
    gradients = torch.autograd.grad(loss, leaves)
    gaps = balancedness_gaps(leaves[0], head, weight_decay, feature_decay)
    return float(loss.detach()), max(float(each.abs().max()) for each in gradients), float(gaps.detach().max())


# The scalar problem


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_strength_is_the_minimum_of_its_problem_on_a_grid(depth: int) -> None:
    pressure = torch.logspace(-3, 0.5, 40, dtype=torch.float64)
    x = optimal_strength(pressure, depth)
    grid = torch.cat([torch.zeros(1), torch.logspace(-3, 3.5, 20_000)]).double()

    def value(x: Tensor, b: Tensor) -> Tensor:
        return 1 / (1 + x**depth) + b * x

    best = value(grid, pressure[:, None]).min(dim=1).values
    assert (value(x, pressure) <= best + 1e-12).all()
    assert (value(x, pressure) >= best - 1e-6).all()


def test_one_layer_has_its_closed_form() -> None:
    pressure = torch.tensor([1e-4, 0.25, 0.999, 1.0, 4.0], dtype=torch.float64)
    expected = (pressure**-0.5 - 1).clamp(min=0)
    torch.testing.assert_close(optimal_strength(pressure, 1), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("depth", "threshold"), [(1, 1.0), (2, 0.5), (3, 0.5291336839893998)])
def test_threshold_values(depth: int, threshold: float) -> None:
    assert survival_threshold(depth) == pytest.approx(threshold, rel=1e-14)


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_strength_jumps_at_the_threshold_by_the_predicted_amount(depth: int) -> None:
    threshold = survival_threshold(depth)
    below, above = optimal_strength(torch.tensor([threshold * (1 - 1e-9), threshold], dtype=torch.float64), depth)
    assert float(above) == 0
    # A class that survives has an output of at least (M - 1) / M: nothing for one layer, a jump for more.
    output = below**depth / (1 + below**depth)
    assert float(output) == pytest.approx((depth - 1) / depth, abs=1e-8)


@pytest.mark.parametrize("depth", [2, 3])
def test_between_threshold_and_fold_the_positive_stationary_point_is_worse_than_zero(depth: int) -> None:
    fold_x = ((depth - 1) / (depth + 1)) ** (1 / depth)
    fold = depth * fold_x ** (depth - 1) / (1 + fold_x**depth) ** 2
    b = (survival_threshold(depth) + fold) / 2
    assert survival_threshold(depth) < b < fold
    grid = torch.linspace(fold_x, 5, 200_001, dtype=torch.float64)
    values = 1 / (1 + grid**depth) + b * grid
    lowest = int(values.argmin())
    assert 0 < lowest < len(grid) - 1  # a local minimum exists
    assert float(values[lowest]) > 1  # and zero, where the value is 1, is better
    assert float(optimal_strength(torch.tensor([b], dtype=torch.float64), depth)) == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_strength_has_the_numerical_derivative(depth: int) -> None:
    pressure = survival_threshold(depth) * torch.tensor([0.01, 0.3, 0.9, 1.5], dtype=torch.float64)
    assert_numerical_gradient(lambda b: optimal_strength(b, depth), pressure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strength_keeps_shape_and_dtype_and_takes_infinity(dtype: torch.dtype) -> None:
    pressure = torch.tensor([[0.1, math.inf], [1e-12, 0.4]], dtype=dtype)
    x = optimal_strength(pressure, 3)
    assert x.shape == pressure.shape
    assert x.dtype == dtype
    assert x[0, 1] == 0
    assert torch.isfinite(x).all()


# The geometry


@pytest.mark.parametrize(
    ("depth", "squared", "loss"),
    [
        (1, [13.942, 9.800, 6.871, 6.871], 0.018942),
        (2, [33.933, 21.277, 13.305, 13.305], 0.013347),
        (3, [52.883, 31.322, 18.502, 18.502], 0.012218),
    ],
)
def test_known_values(depth: int, squared: list[float], loss: float) -> None:
    geometry = collapsed_geometry(COUNTS, depth, DECAY, DECAY)
    torch.testing.assert_close(geometry.product_squared, torch.tensor(squared).double(), rtol=0, atol=6e-4)
    assert float(geometry.loss) == pytest.approx(loss, abs=6e-7)


def test_one_layer_formula_for_lengths() -> None:
    counts = torch.tensor([300.0, 80.0, 20.0, 1.0], dtype=torch.float64)
    weight_decay, feature_decay = 2e-3, 7e-3
    total = counts.sum()
    expected = (counts * feature_decay / weight_decay).sqrt() - total * feature_decay
    geometry = collapsed_geometry(counts, 1, weight_decay, feature_decay)
    torch.testing.assert_close(geometry.product_squared, expected.clamp(min=0))
    assert geometry.alive.tolist() == [True, True, True, False]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("counts", [(30, 30, 30), (40, 20, 12, 2), (7, 3, 3, 3, 1)])
def test_gradient_vanishes_and_loss_agrees_at_the_minimiser(counts: tuple[int, ...], depth: int, bias: bool) -> None:
    geometry = collapsed_geometry(counts, depth, 4e-3, 6e-3, bias=bias)
    loss, gradient, gap = gradient_at(geometry, 4e-3, 6e-3)
    assert gradient < 1e-12
    assert gap < 1e-10
    assert loss == pytest.approx(float(geometry.loss), abs=1e-13)


def test_a_decay_for_each_layer() -> None:
    decays = [1e-3, 8e-3, 3e-3]
    geometry = collapsed_geometry((40, 20, 12, 2), 3, decays, 5e-3)
    loss, gradient, gap = gradient_at(geometry, decays, 5e-3)
    assert gradient < 1e-12
    assert gap < 1e-10
    assert loss == pytest.approx(float(geometry.loss), abs=1e-13)
    norms = geometry.layer_squared * torch.tensor(decays).double()[:, None]
    torch.testing.assert_close(norms[1:], norms[:1].expand(2, -1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_random_search_finds_a_lower_loss(depth: int, bias: bool) -> None:
    counts, decay = (12, 6, 3, 1), 8e-3
    geometry = collapsed_geometry(counts, depth, decay, decay, bias=bias)
    labels, K, d = labels_of(counts), 4, 6

    def start(*shape: int) -> Tensor:
        return 0.5 * torch.randn(12, *shape, generator=draw, dtype=torch.float64)

    draw = generator(depth)
    hidden = [start(d, d) for _ in range(depth - 1)]
    leaves = [start(len(labels), d), *hidden, start(K, d), torch.zeros(12, K).double()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    optimizer = torch.optim.SGD(leaves if bias else leaves[:-1], lr=0.1, momentum=0.9)
    for _ in range(800):
        optimizer.zero_grad()
        loss = regularised_loss(leaves[0], leaves[1:-1], labels, decay, decay, bias=leaves[-1])
        loss.sum().backward()
        optimizer.step()
    assert torch.isfinite(loss).any()
    lowest = float(loss.detach().nan_to_num(nan=math.inf).min())
    assert lowest > float(geometry.loss) - 1e-12
    assert lowest < float(geometry.loss) * 1.2  # the search is a serious one
    if depth == 1:
        assert lowest == pytest.approx(float(geometry.loss), rel=1e-4)  # no bad local minima with one layer


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_class_dies_exactly_at_the_predicted_size(depth: int) -> None:
    geometry = collapsed_geometry((500, 40), depth, 2e-3, 3e-3)
    size = float(geometry.smallest_surviving_count)
    price = depth * 540 * (540 * 2e-3**depth * 3e-3) ** (1 / depth)
    assert size == pytest.approx(price / survival_threshold(depth), rel=1e-12)
    if depth == 1:
        assert size == pytest.approx(540**2 * 2e-3 * 3e-3, rel=1e-12)
    for factor, alive in ((1 - 1e-6, False), (1 + 1e-6, True)):
        # Both sizes move together, so that the total and with it the threshold stay.
        counts = torch.tensor([540 - size * factor, size * factor], dtype=torch.float64)
        assert bool(collapsed_geometry(counts, depth, 2e-3, 3e-3).alive[1]) is alive


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_equal_classes_are_equally_long(depth: int) -> None:
    geometry = collapsed_geometry((100,) * 5, depth, DECAY, DECAY)
    assert geometry.product_squared.unique().numel() == 1
    for layer in range(depth):
        assert float(frame_distance(geometry.mean_gram(layer), torch.eye(5).double())) < 1e-14
        assert float(frame_distance(geometry.weight_gram(layer), torch.eye(5).double())) < 1e-14


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_equal_classes_with_bias_form_a_simplex(depth: int) -> None:
    geometry = collapsed_geometry((100,) * 5, depth, DECAY, DECAY, bias=True)
    simplex = Frame.simplex(5)
    assert geometry.bias is not None
    torch.testing.assert_close(geometry.bias, torch.full((5,), 0.2, dtype=torch.float64))
    for layer in range(depth):
        frame = geometry.frame(layer)
        assert float(frame_distance(frame.weight_gram, simplex.weight_gram)) < 1e-12
        assert float(frame_distance(frame.mean_gram, simplex.mean_gram)) < 1e-12
        assert float(frame_distance(frame.logits, simplex.logits)) < 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_every_layer_of_a_minimiser_has_the_predicted_frame(bias: bool) -> None:
    geometry = collapsed_geometry((40, 20, 12, 2), 3, 4e-3, 6e-3, bias=bias)
    features, weights, labels = built(geometry, 9, widths=[5, 7])
    for layer in range(3):
        head = product(weights[layer:])
        means = torch.stack([features[labels == k].mean(dim=0) for k in range(4)])
        torch.testing.assert_close(head @ head.mT, geometry.weight_gram(layer))
        torch.testing.assert_close(means @ means.mT, geometry.mean_gram(layer))
        torch.testing.assert_close(torch.linalg.vector_norm(means, dim=1), geometry.mean_norms(layer))
        outputs = head @ means.mT + (0 if geometry.bias is None else geometry.bias[:, None])
        torch.testing.assert_close(outputs, geometry.logits)
        squared = torch.linalg.svdvals(weights[layer]).square()
        expected = geometry.layer_squared[layer].sort(descending=True).values
        torch.testing.assert_close(squared[:4], expected[: len(squared)], rtol=1e-9, atol=1e-12)
        features = features @ weights[layer].mT


@pytest.mark.parametrize("bias", [False, True])
def test_a_bottleneck_keeps_the_largest(bias: bool) -> None:
    counts = (20, 50, 30, 40)
    geometry = collapsed_geometry(counts, 2, 1e-3, 1e-3, width=2, bias=bias)
    assert int(geometry.alive.sum()) == 2
    if not bias:
        assert geometry.alive.tolist() == [False, True, False, True]
    loss, gradient, _ = gradient_at(geometry, 1e-3, 1e-3, dimension=2)
    assert loss == pytest.approx(float(geometry.loss), abs=1e-13)
    assert gradient < 1e-12
    assert float(geometry.loss) > float(collapsed_geometry(counts, 2, 1e-3, 1e-3, bias=bias).loss)


def test_batches_of_counts_and_decays() -> None:
    counts = torch.tensor([[40, 20, 12], [30, 29, 1]])
    decay = torch.tensor([2e-3, 6e-3], dtype=torch.float64)
    both = collapsed_geometry(counts, 2, decay[:, None].expand(2, 2), decay)
    means, weights = both.build(5, generator=generator())
    for p in range(2):
        one = collapsed_geometry(counts[p], 2, float(decay[p]), float(decay[p]))
        torch.testing.assert_close(both.product_squared[p], one.product_squared)
        torch.testing.assert_close(both.mean_gram(1)[p], one.mean_gram(1))
        torch.testing.assert_close(both.loss[p], one.loss)
        torch.testing.assert_close(means[p] @ means[p].mT, one.mean_gram())
        torch.testing.assert_close(product([w[p] for w in weights]) @ means[p].mT, one.logits)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_derivative_of_the_minimum_by_the_decays_is_half_the_squared_norms(depth: int) -> None:
    # At a minimum only the explicit dependence counts (envelope theorem).
    rate = torch.tensor([3e-3, 5e-3], dtype=torch.float64, requires_grad=True)
    geometry = collapsed_geometry((40, 20, 12), depth, rate[0], rate[1])
    by_weight, by_feature = torch.autograd.grad(geometry.loss, rate)[0]
    features, weights, _ = built(collapsed_geometry((40, 20, 12), depth, 3e-3, 5e-3))
    assert float(by_weight) == pytest.approx(sum(float(w.square().sum()) for w in weights) / 2, rel=1e-9)
    assert float(by_feature) == pytest.approx(float(features.square().sum()) / 2, rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_lengths_have_numerical_derivatives_by_the_decays(depth: int) -> None:
    def lengths(log_decay: Tensor) -> Tensor:
        decay = log_decay.exp()
        return collapsed_geometry((40, 20, 12, 1), depth, decay[0], decay[1]).mean_norms()[:3]

    assert_numerical_gradient(lengths, torch.tensor([3e-3, 5e-3]).log())


def test_geometry_follows_the_dtype_of_floating_counts() -> None:
    geometry = collapsed_geometry(torch.tensor([30.0, 10.0]), 2, 1e-3, 1e-3)
    reference = collapsed_geometry((30, 10), 2, 1e-3, 1e-3)
    assert geometry.product_squared.dtype == torch.float32
    assert reference.product_squared.dtype == torch.float64
    torch.testing.assert_close(geometry.product_squared.double(), reference.product_squared, rtol=1e-5, atol=0)


# Cross-entropy


@pytest.mark.parametrize(("classes", "decay"), [(2, 1e-2), (4, 1e-2), (10, 2e-3), (10, 0.3)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_simplex_search_finds_the_lowest_point_of_a_grid(classes: int, decay: float, depth: int) -> None:
    samples = 3
    loss, gap = simplex_cross_entropy(classes, samples, depth, decay, 2 * decay)
    grid = torch.cat([torch.zeros(1), torch.logspace(-6, 2, 40_000)]).double()
    mean = (decay**depth * 2 * decay) ** (1 / (depth + 1))
    cost = (depth + 1) / 2 * mean * (classes - 1) * (samples**0.5 * grid) ** (2 / (depth + 1))
    values = torch.log1p((classes - 1) * torch.exp(-grid)) + cost
    assert float(loss) == pytest.approx(float(values.min()), rel=1e-6)
    assert float(loss) <= float(values.min()) + 1e-14
    assert float(gap) == pytest.approx(float(grid[values.argmin()]), rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_simplex_loss_is_the_objective_of_a_built_simplex(depth: int) -> None:
    K, samples, decay = 5, 2, 4e-3
    loss, gap = simplex_cross_entropy(K, samples, depth, decay, decay)
    _, vectors = torch.linalg.eigh(torch.eye(K).double() - 1 / K)
    modes = vectors[:, 1:]
    share = (float(gap) * samples**0.5) ** (1 / (depth + 1))  # each factor's singular value, the features' too
    weights = [torch.eye(K - 1).double() * share] * (depth - 1) + [modes * share]
    labels = labels_of([samples] * K)
    features = (modes * share)[labels] / samples**0.5
    found = regularised_loss(features, weights, labels, decay, decay, loss="cross-entropy")
    assert float(found) == pytest.approx(float(loss), rel=1e-12)


def test_simplex_is_not_the_minimum_of_deep_cross_entropy_with_ten_classes() -> None:
    """Five classes at the corners of a cross-polytope and their opposites: half the rank, a lower loss."""
    K, decay, depth = 10, 2e-3, 2
    simplex, _ = simplex_cross_entropy(K, 1, depth, decay, decay)
    directions = torch.cat([torch.eye(5), -torch.eye(5)]).double()  # one a class
    losses = []
    for strength in torch.linspace(1.0, 3.0, 41, dtype=torch.float64):
        weights = [torch.eye(5).double() * strength, directions * strength / 2**0.5]
        features = directions * strength / 2**0.5
        losses.append(float(regularised_loss(features, weights, torch.arange(K), decay, decay, loss="cross-entropy")))
    assert min(losses) < 0.9 * float(simplex)


# The model


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_objective_of_the_module_is_that_of_its_parts(loss: str) -> None:
    torch.manual_seed(0)
    head = LinearHead(6, 3, depth=3, width=5, bias=True).double()
    model = UnconstrainedFeatures(8, head, generator=generator())
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    outputs = model()
    if loss == "squared":
        fit = (outputs - F.one_hot(labels, 3)).square().sum() / 16
        value = model.objective(labels, 0.1, 0.2)
    else:
        fit = F.cross_entropy(outputs, labels)
        value = model.objective(labels, 0.1, 0.2, loss="cross-entropy")
    decay = 0.2 * model.features.square().sum() + 0.1 * sum(layer.weight.square().sum() for layer in head.layers)
    torch.testing.assert_close(value, fit + decay / 2)
    torch.testing.assert_close(outputs, model.features @ head.product().mT + head.layers[-1].bias)
    torch.testing.assert_close(head.product(1), head.layers[2].weight @ head.layers[1].weight)
    assert [layer.bias is None for layer in head.layers] == [True, True, False]


def test_objective_takes_batches_and_runs_under_vmap() -> None:
    features = torch.randn(3, 2, 5, 4, generator=generator(), dtype=torch.float64)
    weights = [torch.randn(3, 2, 4, 4, generator=generator(1)).double(), torch.randn(3, 2, 2, 4).double()]
    labels = torch.tensor([0, 1, 1, 0, 1])
    decay = torch.rand(3, 2, dtype=torch.float64, generator=generator(2))
    batched = regularised_loss(features, weights, labels, decay[..., None].expand(3, 2, 2), decay)

    def one(h: Tensor, w: list[Tensor], rate: Tensor) -> Tensor:
        return regularised_loss(h, w, labels, rate, rate)

    mapped = torch.func.vmap(torch.func.vmap(one))(features, weights, decay)
    torch.testing.assert_close(batched, mapped)
    single = regularised_loss(
        features[2, 1], [w[2, 1] for w in weights], labels, float(decay[2, 1]), float(decay[2, 1])
    )
    torch.testing.assert_close(batched[2, 1], single)


def test_gradients_reach_features_and_layers_and_state_is_kept() -> None:
    model = UnconstrainedFeatures(6, LinearHead(5, 3, depth=2, bias=True), generator=generator())
    assert_gradients_reach_parameters(model)
    assert_state_dict_round_trip(model, UnconstrainedFeatures(6, LinearHead(5, 3, depth=2, bias=True)))


def test_balancedness_gap_sees_what_is_not_stationary() -> None:
    features, weights, _ = built(collapsed_geometry((30, 20, 10), 2, 4e-3, 4e-3))
    assert float(balancedness_gaps(features, weights, 4e-3, 4e-3).max()) < 1e-10
    weights[0] = 2 * weights[0]
    # Four times W_1ᵀ W_1 against the features' share of a quarter; the next layer against four times W_1 W_1ᵀ.
    gaps = balancedness_gaps(features, weights, 4e-3, 4e-3)
    torch.testing.assert_close(gaps, torch.tensor([0.75, 3.0]).double())


# The measures


def simplex_features(classes: int, each: int, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    corners = F.pad(torch.eye(classes).double() - 1 / classes, (0, dimension - classes))
    labels = labels_of([each] * classes)
    return 3 * corners[labels], labels, 0.2 * corners


def test_a_perfect_simplex_measures_zero() -> None:
    features, labels, weight = simplex_features(5, 4, 8)
    report = collapse_metrics(features + 7.0, labels, weight, torch.zeros(5).double())
    assert report.target == "simplex"
    assert max(report.nc1, report.nc2_weights, report.nc2_means, report.nc3, report.alignment) < 1e-6
    wrong = collapse_metrics(features, labels, weight, target="orthogonal")
    assert wrong.nc2_weights > 0.1


def test_a_perfect_orthogonal_frame_measures_zero() -> None:
    labels = labels_of([3] * 4)
    features = 2 * torch.eye(4, 6).double()[labels]
    report = collapse_metrics(features, labels, torch.eye(4, 6).double())
    assert report.target == "orthogonal"
    assert report.nc4 == 0
    assert max(report.nc1, report.nc2_weights, report.nc2_means, report.nc3, report.alignment) < 1e-12


@pytest.mark.parametrize("bias", [False, True])
def test_a_minimiser_measures_zero_against_its_geometry(bias: bool) -> None:
    geometry = collapsed_geometry((40, 20, 12, 2), 2, 4e-3, 6e-3, bias=bias)
    features, weights, labels = built(geometry)
    report = collapse_metrics(features, labels, product(weights), geometry.bias, target=geometry)
    assert report.target == "given"
    assert max(report.nc1, report.nc2_weights, report.nc2_means, report.nc3, report.alignment) < 1e-7
    assert collapse_metrics(features, labels, product(weights), geometry.bias).nc2_means > 0.01


def noisy(count: int = 60, classes: int = 4, dimension: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dimension, generator=generator(seed), dtype=torch.float64)
    noise = torch.randn(count, dimension, generator=generator(seed + 1), dtype=torch.float64)
    return centres[labels] + 0.5 * noise, labels, centres


def test_nc1_is_its_textbook_formula() -> None:
    features, labels, _ = noisy()
    labels = labels.clone()
    labels[:20] = 0  # unequal classes
    means = torch.stack([features[labels == k].mean(dim=0) for k in range(4)])
    within = sum((features[i] - means[labels[i]]).outer(features[i] - means[labels[i]]) for i in range(60)) / 60
    centred = means - features.mean(dim=0)
    between = sum(row.outer(row) for row in centred) / 4
    assert isinstance(within, Tensor) and isinstance(between, Tensor)
    expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-8)) / 4
    found = ClassStatistics.of(features, labels, 4).within_class_variability()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("measure", ["nc1", "nc2_weights", "nc2_means", "nc3", "alignment", "nc4"])
def test_measures_do_not_change_under_rotation_and_scale(measure: str) -> None:
    features, labels, weight = noisy()
    rotation = random_rotation(7, reflect=True)

    def value(turn: Tensor) -> Tensor:
        return torch.tensor([getattr(collapse_metrics(features @ turn.mT, labels, weight @ turn.mT), measure)]).double()

    assert_invariant(value, torch.eye(7).double(), lambda turn: rotation @ turn, tolerance=1e-9)
    if measure != "nc4":  # a longer head is the same head, longer features are further from their means' midpoints
        assert_invariant(value, torch.eye(7).double(), lambda turn: 3 * turn, tolerance=1e-9)


def test_nc4_counts_disagreements() -> None:
    features, labels, _ = noisy()
    means = torch.stack([features[labels == k].mean(dim=0) for k in range(4)])
    report = collapse_metrics(features, labels, means, -means.square().sum(dim=1) / 2)
    assert report.nc4 == 0
    swapped = collapse_metrics(features, labels, means[[1, 0, 2, 3]], -means[[1, 0, 2, 3]].square().sum(dim=1) / 2)
    nearest = torch.cdist(features, means).argmin(dim=1)
    assert swapped.nc4 == pytest.approx(float((nearest < 2).double().mean()))


def test_statistics_add_up_in_any_order_and_stay_exact_near_collapse() -> None:
    features, labels, centres = noisy()
    features = centres[labels] + 1e-9 * (features - centres[labels]) + 100.0
    whole = ClassStatistics.of(features, labels, 4)
    order = torch.randperm(60, generator=generator())
    parts = [ClassStatistics.of(features[rows], labels[rows], 4) for rows in order.split([1, 1, 30, 28])]
    added = parts[0] + parts[1] + parts[2] + parts[3]
    torch.testing.assert_close(added.counts, whole.counts)
    torch.testing.assert_close(added.means, whole.means)
    torch.testing.assert_close(added.scatter, whole.scatter, rtol=1e-3, atol=1e-19)


def test_nc1_has_the_numerical_gradient() -> None:
    features, labels, _ = noisy(count=12, classes=3, dimension=4)
    assert_numerical_gradient(lambda x: ClassStatistics.of(x, labels, 3).within_class_variability(), features)


def test_nc1_is_infinite_where_class_means_coincide() -> None:
    features = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    found = ClassStatistics.of(features, torch.tensor([0, 0, 1, 1]), 2).within_class_variability()
    assert float(found) == math.inf


# The monitor


class Classifier(nn.Module):
    """A backbone of the user's own, with a head of two linear layers, the first with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten())
        self.first = nn.Linear(12, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(self.body(x)))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [[40], [1, 1, 38], [13, 13, 14]])
def test_monitor_in_batches_equals_one_pass(sizes: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Classifier().to(dtype)
    x, y = torch.randn(40, 1, 6, dtype=dtype), torch.arange(40) % 4
    monitor = CollapseMonitor(model, ["first", "last"])
    for inputs, labels in zip(x.split(sizes), y.split(sizes), strict=True):
        monitor.update(inputs, labels)
    assert monitor.compute()["last"].nc4 is None
    for inputs in x.split(sizes):
        monitor.update_nearest_mean(inputs)
    reports = monitor.compute()
    with torch.no_grad():
        features = model.body(x)
        weight = model.last.weight @ model.first.weight
        bias = model.last.weight @ model.first.bias + model.last.bias
        expected = {
            "first": collapse_metrics(features, y, weight, bias),
            "last": collapse_metrics(model.first(features), y, model.last.weight, model.last.bias),
        }
    for name, report in reports.items():
        for measure in ("nc1", "nc2_weights", "nc2_means", "nc3", "alignment", "nc4"):
            assert getattr(report, measure) == pytest.approx(getattr(expected[name], measure), rel=2e-5), measure
        assert report.target == "simplex"


def test_monitor_takes_a_geometry_at_each_layers_own_depth_and_can_forget() -> None:
    geometry = collapsed_geometry((12, 6, 4), 3, 3e-3, 3e-3)
    means, weights = geometry.build(5, generator=generator())
    head = LinearHead(5, 3, depth=3).double()
    with torch.no_grad():
        for layer, weight in zip(head.layers, weights, strict=True):
            layer.weight.copy_(weight)
    labels = labels_of((12, 6, 4))
    monitor = CollapseMonitor(head, ["0", "1", "2"], target=geometry)
    monitor.update(torch.randn(22, 5).double(), labels)
    monitor.reset()
    monitor.update((means[labels],), labels)
    for report in monitor.compute().values():
        assert max(report.nc1, report.nc2_weights, report.nc2_means, report.nc3, report.alignment) < 1e-7
    assert not any(layer._forward_pre_hooks for layer in head.layers)


# Wrong input


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="depth is 0; expected at least 1"):
        survival_threshold(0)
    with pytest.raises(ValueError, match="depth is 0; expected at least 1"):
        LinearHead(4, 3, depth=0)
    with pytest.raises(ValueError, match=r"pressure has the entry -1.0; expected positive"):
        optimal_strength(torch.tensor([-1.0]), 2)
    with pytest.raises(ValueError, match=r"counts is \[3.0, 0.0\]; expected at least one class"):
        collapsed_geometry((3, 0), 1, 0.1, 0.1)
    with pytest.raises(ValueError, match="width is 0; expected at least 1"):
        collapsed_geometry((3, 2), 1, 0.1, 0.1, width=0)
    with pytest.raises(ValueError, match=r"weight_decay is 0.0; expected positive numbers"):
        collapsed_geometry((3, 2), 1, 0.0, 0.1)
    with pytest.raises(ValueError, match=r"weight_decay has 2 entries in its last axis; expected 3"):
        collapsed_geometry((3, 2), 3, [0.1, 0.1], 0.1)
    with pytest.raises(ValueError, match=r"feature_decay is -1; expected positive numbers"):
        simplex_cross_entropy(3, 1, 1, 0.1, -1)
    with pytest.raises(ValueError, match="classes and samples are 1 and 4; expected at least 2 and 1"):
        simplex_cross_entropy(1, 4, 1, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"dimension and widths are \[2\]; expected 1 sizes of at least 3"):
        collapsed_geometry((30, 30, 30), 1, 1e-3, 1e-3).build(2)
    with pytest.raises(ValueError, match="samples is 0; expected at least 1"):
        UnconstrainedFeatures(0, LinearHead(4, 3))
    features, weights, labels = torch.zeros(2, 3), [torch.zeros(2, 3)], torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"feature_decay is -0.1; expected numbers of at least 0"):
        regularised_loss(features, weights, labels, 0.1, -0.1)
    with pytest.raises(ValueError, match="loss is 'hinge'; expected 'squared' or 'cross-entropy'"):
        regularised_loss(features, weights, labels, 0.1, 0.1, loss="hinge")  # type: ignore[arg-type]


def test_wrong_measurements_are_named() -> None:
    features, labels, weight = noisy()
    with pytest.raises(ValueError, match=r"have shapes \(60, 7\) and \(59,\); expected \(N, d\) and \(N,\)"):
        collapse_metrics(features, labels[:-1], weight)
    with pytest.raises(ValueError, match="labels run from 0 to 3; expected 0 to 2, for 3 classes"):
        collapse_metrics(features, labels, weight[:3])
    with pytest.raises(ValueError, match="labels have no sample of class 2"):
        collapse_metrics(features[labels != 2], labels[labels != 2], weight)
    with pytest.raises(ValueError, match="target is 'cube'; expected 'auto'"):
        collapse_metrics(features, labels, weight, target="cube")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target is a frame of shape \(3, 3\); expected \(4, 4\)"):
        collapse_metrics(features, labels, weight, target=Frame.simplex(3))
    with pytest.raises(ValueError, match="head has the entry 'body', which is Sequential"):
        CollapseMonitor(Classifier(), ["body"])
    with pytest.raises(ValueError, match="head is empty"):
        CollapseMonitor(Classifier(), [])
    with pytest.raises(ValueError, match="head: 4 outputs feed 12 inputs"):
        CollapseMonitor(Classifier(), ["last", "first"])
    with pytest.raises(ValueError, match="the monitor has seen no samples"):
        CollapseMonitor(Classifier(), ["last"]).compute()
