"""DeepONet: what its inner product implies, the three layouts, published archives, training, and its study."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.data.random_fields import antiderivative, interpolate
from working_papers.papers.deeponet import (
    DeepONet,
    OperatorData,
    StackedBranch,
    load_operator_data,
    operator_error,
    perceptron,
    train_operator,
)
from working_papers.papers.deeponet.problems import Concatenated, Problems, draw
from working_papers.papers.deeponet.study import learn, problems, study
from working_papers.testing.methods import assert_gradients_reach_parameters

SENSORS, DIMENSION, FUNCTIONS, QUERIES, P = 7, 2, 5, 9, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def network(stacked: bool = False, outputs: int | None = None, depth: int = 2) -> DeepONet:
    model = DeepONet.mlp(
        SENSORS, DIMENSION, width=8, depth=depth, p=P, activation=nn.Tanh, stacked=stacked, outputs=outputs,
        generator=generator(),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which begin at zero
            parameter.add_(gaussian(*parameter.shape, seed=1), alpha=0.1)
    return model


def functions(seed: int = 2) -> Tensor:
    return gaussian(FUNCTIONS, SENSORS, seed=seed)


def shared_queries() -> Tensor:
    return gaussian(QUERIES, DIMENSION, seed=3)


def last_branch_layer(model: DeepONet) -> list[nn.Parameter]:
    """Weight and bias of the layer that returns the coefficients."""
    if isinstance(model.branch, StackedBranch):
        return [model.branch.weights[-1], model.branch.biases[-1]]
    assert isinstance(model.branch, nn.Sequential)
    return list(model.branch[-1].parameters())


# The inner product


@pytest.mark.parametrize("stacked", [False, True])
def test_scaling_the_last_branch_layer_scales_the_output_without_its_bias(stacked: bool) -> None:
    model = network(stacked)
    assert model.bias is not None and bool(model.bias.detach() != 0)
    before = model(functions(), shared_queries(), cartesian=True) - model.bias
    with torch.no_grad():
        for parameter in last_branch_layer(model):
            parameter.mul_(-2.5)
    torch.testing.assert_close(model(functions(), shared_queries(), cartesian=True) - model.bias, -2.5 * before)


@pytest.mark.parametrize("outputs", [None, 1, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_layouts_agree(stacked: bool, outputs: int | None) -> None:
    model, u, y = network(stacked, outputs), functions(), shared_queries()
    cartesian = model(u, y, cartesian=True)
    assert cartesian.shape == (FUNCTIONS, QUERIES, *([] if outputs is None else [outputs]))
    torch.testing.assert_close(model(u, y.expand(FUNCTIONS, -1, -1)), cartesian)
    pairs = model(u.repeat_interleave(QUERIES, dim=0), y.repeat(FUNCTIONS, 1))
    torch.testing.assert_close(pairs.view_as(cartesian), cartesian)


def test_float32_layouts_agree_to_rounding() -> None:
    model, u, y = network().float(), functions().float(), shared_queries().float()
    pairs = model(u.repeat_interleave(QUERIES, dim=0), y.repeat(FUNCTIONS, 1)).view(FUNCTIONS, QUERIES)
    torch.testing.assert_close(model(u, y, cartesian=True), pairs, atol=1e-6, rtol=1e-6)


def test_the_output_is_the_sum_of_products() -> None:
    model, u, y = network(), functions(), shared_queries()
    assert model.bias is not None
    by_hand = [[(b * t).sum() + model.bias for t in model.trunk(y)] for b in model.branch(u)]
    torch.testing.assert_close(model(u, y, cartesian=True), torch.stack([torch.stack(row) for row in by_hand]))
    bare = DeepONet(model.branch, model.trunk, bias=False)
    torch.testing.assert_close(bare(u, y, cartesian=True), model(u, y, cartesian=True) - model.bias)


def test_several_outputs_are_groups_of_the_coefficients() -> None:
    model, u, y = network(outputs=3), functions(), shared_queries()
    assert model.bias is not None and model.bias.shape == (3,)
    b, t = model.branch(u), model.trunk(y)
    for output, group in enumerate(torch.arange(P).split(P // 3)):
        expected = b[:, group] @ t[:, group].mT + model.bias[output]
        torch.testing.assert_close(model(u, y, cartesian=True)[..., output], expected)


def test_a_linear_branch_makes_the_operator_linear() -> None:
    branch = nn.Linear(SENSORS, P).double()
    model = DeepONet(branch, perceptron([DIMENSION, 8, P], last_activation=True).double())
    u, v, y = functions(2), functions(4), shared_queries()
    zero = torch.zeros_like(u)
    at = {name: model(each, y, cartesian=True) for name, each in (("u", u), ("v", v), ("u+v", u + v), ("0", zero))}
    assert at["0"].abs().max() > 1e-3, "affine, not linear, so that the identity says something"
    torch.testing.assert_close(at["u+v"] - at["u"] - at["v"] + at["0"], torch.zeros_like(at["u"]), atol=1e-12, rtol=0)
    curved = network()
    bent = sum(sign * curved(each, y, cartesian=True) for sign, each in ((1, u + v), (-1, u), (-1, v), (1, zero)))
    assert isinstance(bent, Tensor) and bent.abs().max() > 1e-2


def test_the_matrix_of_outputs_has_rank_p() -> None:
    model = network()
    assert model.bias is not None
    matrix = model(gaussian(30, SENSORS), gaussian(40, DIMENSION, seed=1), cartesian=True) - model.bias
    values = torch.linalg.svdvals(matrix)
    assert values[P] < 1e-12 * values[0] < values[P - 1]


# Stacked branch and perceptron


@pytest.mark.parametrize("sizes", [[SENSORS, 1], [SENSORS, 8, 1], [SENSORS, 8, 3, 1]])
def test_stacked_branch_equals_its_networks_one_by_one(sizes: list[int]) -> None:
    stacked = StackedBranch(sizes, P, nn.Tanh, generator=generator()).double()
    with torch.no_grad():
        for bias in stacked.biases:
            bias += gaussian(*bias.shape)
    u, columns = functions(), []
    for k in range(P):
        x = u
        for layer, (weight, bias) in enumerate(zip(stacked.weights, stacked.biases, strict=True)):
            x = nn.functional.linear(x if layer == 0 else torch.tanh(x), weight[k].mT, bias[k, 0])
        columns.append(x)
    torch.testing.assert_close(stacked(u), torch.cat(columns, dim=1))


def test_weights_are_glorot_normal_and_biases_zero() -> None:
    linear = perceptron([300, 200], generator=generator())[0]
    assert isinstance(linear, nn.Linear)
    stacked = StackedBranch([300, 200, 1], 10, generator=generator())
    for weight, bias in ((linear.weight, linear.bias), (stacked.weights[0], stacked.biases[0])):
        deviation = float(weight.detach().std())
        assert deviation == pytest.approx((2 / 500) ** 0.5, rel=0.02)
        assert float((weight.detach().abs() > 2 * deviation).double().mean()) == pytest.approx(0.0455, abs=0.004), (
            "normal"
        )
        assert not bias.any()


def test_the_paper_s_network() -> None:
    model = DeepONet.mlp(100, 1)
    kinds = {name: [type(layer) for layer in part.children()] for name, part in model.named_children()}
    assert kinds == {"branch": [nn.Linear, nn.ReLU, nn.Linear], "trunk": [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]}
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(), (40, 100), (40,), (40, 40), (40,), (40, 1), (40,), (40, 40), (40,)]
    assert float(model.trunk(torch.randn(20, 1)).detach().min()) == 0, "the trunk's last layer has its activation"
    assert float(model.branch(torch.randn(20, 100)).detach().min()) < 0, "the branch's has not"
    stacked = DeepONet.mlp(100, 1, p=20, stacked=True)
    assert sum(parameter.numel() for parameter in stacked.branch.parameters()) == 20 * (100 * 40 + 40 + 40 + 1)


def test_a_generator_makes_the_same_network() -> None:
    for stacked in (False, True):
        first, second, other = (
            DeepONet.mlp(5, 1, stacked=stacked, generator=generator(seed)).state_dict() for seed in (1, 1, 2)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_user_s_own_networks() -> None:
    """A convolutional branch on images, and a trunk with Fourier features."""

    class Fourier(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            angles = y[..., :1] * torch.arange(1, 4)
            return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

    branch = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, P))
    model = DeepONet(branch, Fourier())
    images = torch.randn(FUNCTIONS, 1, 6, 6, generator=generator())
    assert model(images, torch.rand(QUERIES, 1), cartesian=True).shape == (FUNCTIONS, QUERIES)
    assert model(images, torch.rand(FUNCTIONS, QUERIES, 1)).shape == (FUNCTIONS, QUERIES)
    assert_gradients_reach_parameters(model, images, torch.rand(FUNCTIONS, 1))


# Gradients, dtypes, state, compilation


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("layout", ["pairs", "per-function", "cartesian"])
def test_gradients(layout: str, stacked: bool) -> None:
    model, u = network(stacked), functions().requires_grad_()
    shape = {"pairs": (FUNCTIONS,), "per-function": (FUNCTIONS, 3), "cartesian": (3,)}[layout]
    y = gaussian(*shape, DIMENSION, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, y: model(u, y, cartesian=layout == "cartesian"), (u, y))
    assert_gradients_reach_parameters(model, u.detach(), y.detach(), *([True] if layout == "cartesian" else []))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype: torch.dtype, stacked: bool) -> None:
    model, u, y = network(stacked), functions(), shared_queries()
    exact = model(u, y, cartesian=True)
    found = copy.deepcopy(model).to(dtype)(u.to(dtype), y.to(dtype), cartesian=True)
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)


def test_state_is_saved_and_loaded() -> None:
    for stacked, outputs in itertools.product((False, True), (None, 2)):
        model = network(stacked, outputs)
        fresh = DeepONet.mlp(
            SENSORS, DIMENSION, width=8, p=P, activation=nn.Tanh, stacked=stacked, outputs=outputs
        ).double()
        fresh.load_state_dict(model.state_dict())
        y = shared_queries()
        assert torch.equal(fresh(functions(), y, cartesian=True), model(functions(), y, cartesian=True))


def test_the_network_compiles_to_one_graph() -> None:
    for stacked in (False, True):
        model, u, y = network(stacked), functions(), shared_queries()[:FUNCTIONS]
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u, y), model(u, y))


# Data


def made(layout: str) -> OperatorData:
    """Values that tell which function and which query they belong to."""
    u, y = functions(), shared_queries()
    if layout == "per-function":
        y = gaussian(FUNCTIONS, QUERIES, DIMENSION, seed=6)
        return OperatorData(u, y, u.sum(dim=1)[:, None] * y.sum(dim=-1), "per-function")
    values = u.sum(dim=1)[:, None] * y.sum(dim=-1)
    return OperatorData(u, y, values, "cartesian")


@pytest.mark.parametrize("layout", ["per-function", "cartesian"])
def test_pairs_and_groups_are_each_other_s_inverse(layout: str) -> None:
    data = made(layout)
    pairs = data.pairs()
    assert pairs.layout == "pairs" and len(pairs) == FUNCTIONS * QUERIES
    torch.testing.assert_close(pairs.values, pairs.functions.sum(dim=1) * pairs.queries.sum(dim=-1))
    assert pairs.pairs() is pairs and data.grouped() is data
    back = pairs.grouped()
    assert back.layout == layout
    order = torch.argsort(data.functions[:, 0])  # torch.unique sorts
    assert torch.equal(back.functions, data.functions[order])
    assert torch.equal(back.values, data.values[order])
    assert torch.equal(back.queries, data.queries if layout == "cartesian" else data.queries[order])
    shuffled = pairs.take(torch.randperm(len(pairs), generator=generator())).grouped()
    assert shuffled.layout == "per-function" and torch.equal(shuffled.functions, back.functions)
    model = network()
    assert operator_error(model, shuffled) == pytest.approx(operator_error(model, pairs), rel=1e-12)
    assert operator_error(model, data) == pytest.approx(operator_error(model, pairs), rel=1e-12)


def test_functions_with_different_numbers_of_queries_are_not_grouped() -> None:
    with pytest.raises(ValueError, match="between 8 and 9 queries"):
        made("cartesian").pairs().take(slice(1, None)).grouped()


@pytest.mark.parametrize("layout", ["pairs", "per-function", "cartesian"])
def test_a_split_leaves_no_function_on_both_sides(layout: str) -> None:
    data = made("cartesian").pairs() if layout == "pairs" else made(layout)
    first, second = data.split(0.6, generator())
    sides = [{tuple(row) for row in part.functions.tolist()} for part in (first, second)]
    assert not sides[0] & sides[1] and (len(sides[0]), len(sides[1])) == (3, 2)
    assert len(first) + len(second) == len(data)
    assert not torch.equal(data.split(0.6, generator(1))[0].functions, first.functions)
    with pytest.raises(ValueError, match=r"share is 1\.0 of 5 distinct functions"):
        data.split(1.0)


def test_batches_take_every_function_once_an_epoch() -> None:
    data = OperatorData(torch.arange(6.0)[:, None], torch.arange(6.0)[:, None], torch.arange(6.0), "pairs")
    batches = list(itertools.islice(data.batches(2, generator()), 6))
    assert all(torch.equal(batch.functions, batch.queries) for batch in batches)
    epochs = [torch.cat([batch.values for batch in batches[start : start + 3]]) for start in (0, 3)]
    assert all(epoch.sort().values.tolist() == list(range(6)) for epoch in epochs)
    assert not torch.equal(*epochs)
    with pytest.raises(ValueError, match="size is 7; expected 1 to 6"):
        next(data.batches(7))


def test_published_archives_are_read(tmp_path: Path) -> None:
    u, y = functions().numpy(), shared_queries().numpy()
    pairs = made("cartesian").pairs()
    rows, asked, values = (part.numpy() for part in (pairs.functions, pairs.queries, pairs.values[:, None]))
    np.savez(tmp_path / "rows.npz", X_test0=rows, X_test1=asked, y_test=values)
    found = load_operator_data(tmp_path / "rows.npz", "test", dtype=torch.float64)
    assert found.layout == "pairs" and torch.equal(found.values, pairs.values)
    assert torch.equal(found.functions, pairs.functions) and torch.equal(found.queries, pairs.queries)

    values = made("cartesian").values.numpy()
    np.savez(tmp_path / "aligned.npz", X_train0=u.astype(np.float32), X_train1=y, y_train=values)
    np.savez(tmp_path / "short.npz", X0=u, X1=y, y=values)
    both = np.empty(2, dtype=object)
    both[:] = [u, y]
    np.savez(tmp_path / "objects.npz", X=both, y=values)
    for name, trust in (("aligned.npz", False), ("short.npz", False), ("objects.npz", True)):
        found = load_operator_data(tmp_path / name, allow_pickle=trust)
        assert found.layout == "cartesian" and found.values.dtype == torch.float32
        torch.testing.assert_close(found.values.numpy(), values.astype(np.float32))
        torch.testing.assert_close(found.functions.numpy(), u.astype(np.float32))

    np.savez(tmp_path / "other.npz", a=u)
    np.savez(tmp_path / "odd.npz", X0=u, X1=y, y=values[:, :4])
    np.savez(tmp_path / "flat.npz", X0=u, X1=y[:, 0], y=values)
    for name, words in (
        ("objects.npz", "allow_pickle=True if you trust it"),
        ("aligned.npz", "holds X_train0, X_train1, y_train; expected X_test0"),
        ("other.npz", "holds a; expected X_test0"),
        ("odd.npz", r"values \(5, 4\); expected"),
        ("flat.npz", r"queries has shape \(9,\)"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            load_operator_data(tmp_path / name, "test")
        assert name in str(caught.value)


def test_a_single_function_is_read_as_aligned(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", X0=np.zeros((1, 3)), X1=np.zeros((4, 1)), y=np.zeros((1, 4)))
    assert load_operator_data(tmp_path / "one.npz").layout == "cartesian"


# Training


def linear_operator(count: int, seed: int) -> OperatorData:
    """The mean of the sensors times the query: within reach of a tiny network."""
    u, y = gaussian(count, SENSORS, seed=seed), torch.rand(count, 4, 1, generator=generator(seed)).double()
    return OperatorData(u, y, u.mean(dim=1, keepdim=True) * y[..., 0], "per-function")


def test_training_learns_and_keeps_the_best_parameters() -> None:
    data, test = linear_operator(60, 0), linear_operator(60, 1)
    model = DeepONet.mlp(SENSORS, 1, width=16, p=8, activation=nn.Tanh, generator=generator()).double()
    before = operator_error(model, test)
    counted: list[int] = []
    training = train_operator(model, data, steps=205, lr=1e-2, every=10, progress=counted.append)
    assert operator_error(model, test) < 0.1 * before
    assert training.steps == (*range(10, 201, 10), 205) and counted == list(range(1, 206))
    assert training.best_step == training.steps[int(np.argmin(training.losses))]
    assert operator_error(model, data) == min(training.losses)
    assert not training.validation_losses


def test_validation_data_decide_when_there_are_any() -> None:
    data, validation = linear_operator(8, 0), linear_operator(50, 1)
    model = DeepONet.mlp(SENSORS, 1, width=32, p=8, generator=generator()).double()
    training = train_operator(model, data, steps=400, lr=1e-2, every=10, validation=validation)
    assert training.best_step == training.steps[int(np.argmin(training.validation_losses))]
    assert training.best_step < 400, "so few functions are overfitted"
    assert operator_error(model, validation) == min(training.validation_losses)


def test_the_first_step_is_adam_s() -> None:
    data = linear_operator(6, 0)
    model = DeepONet.mlp(SENSORS, 1, generator=generator()).double()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    (twin(data.functions, data.queries) - data.values).square().mean().backward()
    optimizer.step()
    train_operator(model, data, steps=1)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_training_in_batches_is_reproducible_and_takes_one_s_own_optimizer() -> None:
    states = []
    for seed in (1, 1, 2):
        model = DeepONet.mlp(SENSORS, 1, generator=generator()).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        train_operator(
            model, linear_operator(20, 0), steps=7, batch_size=6, optimizer=optimizer, generator=generator(seed)
        )
        states.append(model.trunk.state_dict()["0.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_error_is_the_trimmed_mean_square() -> None:
    class Zero(nn.Module):
        def forward(self, functions: Tensor, queries: Tensor) -> Tensor:
            assert not self.training
            return torch.zeros(len(functions))

    values = torch.arange(1.0, 11.0)
    data, zero = OperatorData(values[:, None], values[:, None], values, "pairs"), Zero()
    assert operator_error(zero, data) == pytest.approx(38.5)
    assert operator_error(zero, data, batch_size=3) == pytest.approx(38.5)
    assert operator_error(zero, data, trim=0.1) == pytest.approx(285 / 9)
    assert zero.training, "the mode is given back"


def test_divergence_is_told() -> None:
    model = DeepONet.mlp(SENSORS, 1, generator=generator()).double()
    with pytest.raises(FloatingPointError, match="after 10 steps"):
        train_operator(
            model, linear_operator(6, 0), steps=20, every=10, optimizer=torch.optim.SGD(model.parameters(), 1e200)
        )


def test_wrong_arguments_are_named() -> None:
    u, y, s = torch.zeros(3, 4), torch.zeros(3, 1), torch.zeros(3)
    data = OperatorData(u, y, s, "pairs")
    model = DeepONet.mlp(4, 1)
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("outputs is 0", lambda: DeepONet(nn.Identity(), nn.Identity(), outputs=0)),
        ("p is 40; expected a multiple of outputs=3", lambda: DeepONet.mlp(4, 1, outputs=3)),
        ("depth is 0", lambda: DeepONet.mlp(4, 1, depth=0)),
        (r"sizes are \[0, 40, 40\]", lambda: DeepONet.mlp(0, 1)),
        ("networks is 0", lambda: StackedBranch([4, 1], 0)),
        ("expected 1 as last size", lambda: StackedBranch([4, 2], 3)),
        ("with the same p", lambda: DeepONet(nn.Linear(4, 3), nn.Linear(1, 2))(u, y)),
        ("expected a multiple of 2 outputs", lambda: DeepONet(nn.Linear(4, 3), nn.Linear(1, 3), outputs=2)(u, y)),
        ("with cartesian", lambda: model(u, torch.zeros(3, 5, 1), cartesian=True)),
        ("give cartesian=True", lambda: model(u, torch.zeros(5, 1))),
        ("layout is 'rows'", lambda: OperatorData(u, y, s, "rows")),  # type: ignore[arg-type]
        (r"values \(3, 1\); expected", lambda: OperatorData(u, torch.zeros(3, 2, 1), s[:, None], "per-function")),
        (r"values \(4,\); expected", lambda: OperatorData(u, y, torch.zeros(4), "pairs")),
        (r"queries \(5, 1\)", lambda: OperatorData(u, torch.zeros(5, 1), s, "pairs")),
        ("steps=0", lambda: train_operator(model, data, steps=0)),
        ("trim is 1.0", lambda: operator_error(model, data, trim=1.0)),
        ("no values", lambda: operator_error(model, data.take(slice(0, 0)))),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words):
            call()


# The study


@pytest.fixture(scope="module")
def drawn() -> Problems:
    return draw(3, Scale.SMOKE)


def test_the_problems_are_what_they_say(drawn: Problems) -> None:
    assert torch.equal(problems(3, Scale.SMOKE).test[100].functions, drawn.test[100].functions)
    for sensors, data in drawn.test.items():
        assert data.functions.shape == (50, sensors) and data.queries.shape == (50, 5, 1)
        assert torch.equal(data.values, drawn.test[100].values), "the same functions, read at other sensors"
    # The trapezoidal rule on the 100 sensors agrees with the exact values, which come from 1000 points.
    test = drawn.test[100]
    integrals = antiderivative(test.functions, torch.linspace(0, 1, 100))
    found = interpolate(integrals, torch.linspace(0, 1, 100), test.queries[..., 0] / 12**0.5 + 0.5)
    torch.testing.assert_close(found, test.values, atol=2e-3, rtol=0)
    assert drawn.training[100].layout == "pairs" and len(drawn.training[100]) == 100
    shared = {tuple(row) for row in drawn.training[100].functions.tolist()}
    assert not shared & {tuple(row) for row in test.functions.tolist()}
    assert drawn.sources.functions.shape == (10, 100) and drawn.sources.values.shape == (10, 20)
    at_start = drawn.sources.queries[..., 1] < -1.73
    assert at_start.any() and not drawn.sources.values[at_start].any(), "solutions begin at zero"


def test_the_baseline_reads_both_layouts_alike() -> None:
    model = Concatenated(SENSORS + DIMENSION, 8, 2, generator()).double()
    data = made("per-function")
    torch.testing.assert_close(data.predict(model).flatten(), data.pairs().predict(model))
    by_hand = model.network(torch.cat([data.pairs().functions, data.pairs().queries], dim=1))[:, 0]
    torch.testing.assert_close(data.pairs().predict(model), by_hand)


@pytest.mark.parametrize("arm", ["deeponet", "stacked", "fnn"])
def test_a_trial_measures_everything_and_repeats_itself(arm: str, drawn: Problems) -> None:
    finished: list[float] = []
    first, second = (learn(Trial(arm, 3, Scale.SMOKE, report=report), drawn) for report in (finished.append, None))
    assert set(study.measures) <= set(first)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert finished == sorted(finished) and finished[-1] == 1
    assert first["test error"] == first["test errors"][-1]  # type: ignore[index]
    assert 0 < float(first["test error"]) < float(drawn.test[100].values.square().mean()), "better than zero"
