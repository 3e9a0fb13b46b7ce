"""Convergent learning: exact properties of matching, sparse maps, groups and mutual information; the study's pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.data.digits import LabelledImages
from working_papers.papers.convergent_learning import (
    CorrelationAccumulator,
    UnitStats,
    agglomerative_groups,
    bipartite_match,
    canonical_correlations,
    change_basis,
    collect_units,
    layer_statistics,
    mutual_information,
    permute_units,
    prediction_curve,
    semi_match,
    sparse_map,
    spectral_groups,
    unit_rows,
    unit_statistics,
)
from working_papers.papers.convergent_learning.networks import (
    ARCHITECTURES,
    five_convolutions,
    load_images,
    read_image_folder,
    train_together,
)
from working_papers.papers.convergent_learning.study import (
    FULL,
    GAP,
    MATCHED,
    MISSING,
    NEEDED,
    SINGLE,
    compare,
    look_at_pairs,
    study,
    train_networks,
)
from working_papers.testing import assert_deterministic, random_rotation


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def two_layers(samples: int = 400, n: int = 10, m: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations of two layers that see the same six hidden causes."""
    causes = gaussian(samples, 6, seed=seed)
    x = torch.relu(causes @ gaussian(6, n, seed=seed + 1) + 0.3 * gaussian(samples, n, seed=seed + 2))
    y = torch.relu(causes @ gaussian(6, m, seed=seed + 3) + 0.3 * gaussian(samples, m, seed=seed + 4))
    return x, y


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)) / x.std(dim=0, correction=0)


# Statistics


@pytest.mark.parametrize("sizes", [[400], [1, 399], [7, 100, 1, 292], [133, 0, 267]])
def test_the_accumulator_equals_the_two_pass_correlation_for_any_split(sizes: list[int]) -> None:
    x, y = two_layers()
    accumulator = CorrelationAccumulator()
    for part_x, part_y in zip(x.split(sizes), y.split(sizes), strict=True):
        accumulator.update(part_x, part_y)
    stats = accumulator.compute()
    expected = torch.from_numpy(np.corrcoef(torch.cat([x, y], dim=1).numpy(), rowvar=False))
    for block, part in (
        (stats.cxx, expected[:10, :10]),
        (stats.cxy, expected[:10, 10:]),
        (stats.cyy, expected[10:, 10:]),
    ):
        torch.testing.assert_close(block, part, atol=1e-12, rtol=0)
    torch.testing.assert_close(stats.mean_x, x.mean(dim=0))
    torch.testing.assert_close(stats.std_y, y.std(dim=0, correction=0))
    assert stats.samples == 400 and not stats.dead_x.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_large_mean_costs_no_digits(dtype: torch.dtype) -> None:
    noise = gaussian(500, 2).mul(8).round()  # whole numbers up to 40, exact in every dtype beside the mean
    offset = {torch.float16: 1000.0, torch.bfloat16: 128.0}.get(dtype, 1e6)
    x = (noise.abs() + offset).to(dtype)
    assert torch.equal(x.double(), noise.abs() + offset)
    stats = unit_statistics(x, x)
    assert stats.cxy.dtype == torch.float64
    torch.testing.assert_close(stats.cxy, unit_statistics(noise.abs(), noise.abs()).cxy, atol=1e-9, rtol=0)


def test_accumulators_of_parts_merge() -> None:
    x, y = two_layers()
    first, second, empty = CorrelationAccumulator(), CorrelationAccumulator(), CorrelationAccumulator()
    first.update(x[:150], y[:150])
    second.update(x[150:], y[150:])
    empty.merge(first)
    empty.merge(second)
    empty.merge(CorrelationAccumulator())
    torch.testing.assert_close(empty.compute().cxy, unit_statistics(x, y).cxy, atol=1e-12, rtol=0)
    assert first.samples == 150  # was not written to
    torch.testing.assert_close(first.compute().cxy, unit_statistics(x[:150], y[:150]).cxy)


def test_positive_affine_rescaling_changes_nothing_and_a_sign_flips_a_row() -> None:
    x, y = two_layers()
    stats = unit_statistics(x, y)
    scale, shift = torch.linspace(0.01, 50, 10, dtype=torch.float64), gaussian(10, seed=9)
    torch.testing.assert_close(unit_statistics(x * scale + shift, y).cxy, stats.cxy)
    signs = torch.ones(10, dtype=torch.float64)
    signs[3] = -1
    torch.testing.assert_close(unit_statistics(x * signs, y).cxy, stats.cxy * signs[:, None])


@pytest.mark.parametrize("constant", [0.0, 3.7, 1e6])
def test_dead_units_are_reported_and_correlate_with_nothing(constant: float) -> None:
    x, y = two_layers()
    x[:, 4] = constant
    stats = unit_statistics(x.float(), y)
    assert stats.dead_x.tolist() == [unit == 4 for unit in range(10)]
    assert not stats.dead_y.any()
    assert torch.isfinite(stats.cxx).all()
    assert stats.cxx[4].abs().sum() == 0 and stats.cxy[4].abs().sum() == 0
    assert sparse_map(stats, [0.0, 0.05]).weight[:, :, 4].abs().sum() == 0
    assert sparse_map(stats.swapped(), [0.0]).r2[0, 4] == 0
    groups = spectral_groups(stats, 3)
    assert groups.label_x[4] == -1 and (groups.label_x >= 0).sum() == 9
    assert not stats.select(~stats.dead_x, ~stats.dead_y).dead_x.any()


def test_swapped_and_selected_statistics_are_those_of_the_swapped_and_selected_units() -> None:
    x, y = two_layers()
    stats, keep = unit_statistics(x, y), torch.tensor([7, 2, 3])
    pairs = (
        (stats.swapped(), unit_statistics(y, x)),
        (stats.select(keep, torch.arange(8) > 4), unit_statistics(x[:, keep], y[:, 5:])),
    )
    for got, expected in pairs:
        for field in ("cxy", "cxx", "cyy", "mean_x", "std_x", "mean_y", "std_y", "dead_x", "dead_y"):
            torch.testing.assert_close(getattr(got, field), getattr(expected, field))
        assert got.samples == expected.samples


def test_a_change_of_basis_is_that_of_the_activations() -> None:
    x, y = two_layers()
    matrix = gaussian(10, 7, seed=5)
    got, expected = change_basis(unit_statistics(x, y), matrix), unit_statistics(x @ matrix, y)
    for field in ("cxy", "cxx", "cyy", "mean_x", "std_x", "mean_y", "std_y"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), atol=1e-10, rtol=1e-10)


def test_a_rotation_keeps_what_all_units_explain() -> None:
    stats = unit_statistics(*two_layers())
    rotated = change_basis(stats, torch.diag(1 / stats.std_x) @ random_rotation(10))
    torch.testing.assert_close(sparse_map(rotated, [0.0]).r2, sparse_map(stats, [0.0]).r2)
    torch.testing.assert_close(
        canonical_correlations(rotated.cxx, rotated.cyy, rotated.cxy),
        canonical_correlations(stats.cxx, stats.cyy, stats.cxy),
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 2), r"x has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), "y has shape .* dtype torch.int64"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "x has 3 samples and y has 4"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "has seen 1 samples; expected at least 2"),
        (torch.tensor([[1.0], [math.nan]]), torch.zeros(2, 1), "not finite"),
    ],
)
def test_bad_activations_are_named(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_statistics(x, y)


def test_bad_arguments_of_the_statistics_are_named() -> None:
    accumulator = CorrelationAccumulator()
    with pytest.raises(ValueError, match="has seen 0 samples"):
        accumulator.compute()
    accumulator.update(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"have \(4, 4\) units, but earlier batches had \(3, 4\)"):
        accumulator.update(torch.ones(2, 4), torch.ones(2, 4))
    other = CorrelationAccumulator()
    other.update(torch.ones(2, 1), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"other has \(1, 4\) units"):
        accumulator.merge(other)
    with pytest.raises(ValueError, match="dead_below is -1"):
        CorrelationAccumulator(-1)
    with pytest.raises(ValueError, match=r"matrix has shape \(3, 3\); expected \(10, any\)"):
        change_basis(unit_statistics(*two_layers()), torch.eye(3))


# Units of a model


class Net(nn.Module):
    """Convolutions, dropout and a recurrent layer whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.recurrent = nn.GRU(4, 5, batch_first=True)
        self.spare = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.drop(self.act(self.conv(images)))
        output: Tensor = self.recurrent(maps.flatten(2).mT)[0]
        return output


def test_units_of_a_map_are_samples_at_every_position() -> None:
    model, images = Net(), gaussian(5, 1, 4, 6, dtype=torch.float32)
    maps = torch.relu(model.conv(images)).detach()
    by_hand = maps.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(collect_units(model, "act", images.split(2)), by_hand)
    torch.testing.assert_close(collect_units(model, "act", [images], "mean"), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(collect_units(model, "act", [images], 7), maps[:, :, 1, 1])
    inner = collect_units(model, "act", [images], crop=1)
    torch.testing.assert_close(inner, maps[:, :, 1:-1, 1:-1].movedim(1, -1).reshape(-1, 4))


def test_units_may_lie_on_the_last_axis_and_batches_may_be_tuples_or_mappings() -> None:
    model, images = Net().eval(), gaussian(4, 1, 3, 3, dtype=torch.float32)
    expected = model(images).detach().reshape(-1, 5)
    for loader in ([images], [(images, torch.zeros(4))], [{"images": images}]):
        torch.testing.assert_close(collect_units(model, "recurrent", loader, unit_axis=-1), expected)


def test_collecting_leaves_the_model_as_it_was() -> None:
    model, images = Net(), gaussian(4, 1, 3, 3, dtype=torch.float32)
    model.act.eval()
    once, twice = (collect_units(model, "drop", [images]) for _ in range(2))
    assert torch.equal(once, twice)  # dropout is off
    assert model.training and model.drop.training and not model.act.training
    assert not model.drop._forward_hooks and not once.requires_grad
    with pytest.raises(RuntimeError):
        collect_units(model, "drop", [gaussian(2, 3, 3, 3, dtype=torch.float32)])
    assert model.training and not model.drop._forward_hooks


def test_layer_statistics_are_those_of_the_collected_units() -> None:
    first, second, images = Net(), Net(), gaussian(9, 1, 4, 4, dtype=torch.float32)

    def once() -> Iterator[Tensor]:
        yield from images.split(4)

    stats = layer_statistics(first, "act", second, "conv", once())
    x, y = collect_units(first, "act", [images]), collect_units(second, "conv", [images])
    torch.testing.assert_close(stats.cxy, unit_statistics(x, y).cxy)
    order = torch.arange(8, -1, -1)
    stats = layer_statistics(first, "act", second, "conv", [images], loader_y=[images[order]])
    y = collect_units(second, "conv", [images[order]])
    torch.testing.assert_close(stats.cxy, unit_statistics(x, y).cxy)


def test_bad_layers_and_loaders_are_named() -> None:
    model, images = Net(), gaussian(2, 1, 3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="layers names 'fc'"):
        collect_units(model, "fc", [images])
    with pytest.raises(ValueError, match="layer 'spare' did not run"):
        collect_units(model, "spare", [images])
    with pytest.raises(ValueError, match="loader gave no batch"):
        collect_units(model, "act", [])
    with pytest.raises(ValueError, match="shorter"):
        layer_statistics(model, "act", model, "act", [images, images], loader_y=[images])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": "some"}, "positions is 'some'"),
        ({"positions": 12}, "positions is 12; expected a number below 12"),
        ({"positions": -1}, "positions is -1"),
        ({"unit_axis": 4}, "unit_axis is 4"),
        ({"unit_axis": 0}, "unit_axis is 0"),
        ({"crop": 2}, "crop is 2, which leaves nothing of an axis of 3"),
        ({"crop": -1}, "crop is -1; expected 0 or more"),
    ],
)
def test_bad_positions_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_rows(torch.zeros(2, 5, 3, 4), **arguments)
    with pytest.raises(ValueError, match=r"activation has shape \(3,\)"):
        unit_rows(torch.zeros(3))


# One to one


def test_a_network_with_permuted_units_is_recovered_exactly() -> None:
    x, _ = two_layers(n=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    match = bipartite_match(unit_statistics(x, x[:, order]).cxy)
    assert torch.equal(order[match.index], torch.arange(20))
    torch.testing.assert_close(match.value, torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize(("n", "m"), [(10, 10), (6, 11), (11, 6)])
def test_bipartite_lies_between_any_assignment_and_the_best_partners(n: int, m: int) -> None:
    c = unit_statistics(*two_layers(n=n, m=m)).cxy
    semi, match = semi_match(c), bipartite_match(c)
    has = match.matched
    assert has.sum() == min(n, m) and len(match.index[has].unique()) == min(n, m)
    assert (match.value[has] <= semi.value[has]).all()
    torch.testing.assert_close(match.value[has], c[has, match.index[has]])
    assert torch.isnan(match.value[~has]).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        rows, columns = (torch.randperm(each, generator=generator)[: min(n, m)] for each in (n, m))
        assert c[rows, columns].sum() <= match.value[has].sum() + 1e-12


def test_the_best_other_unit_leaves_out_the_diagonal() -> None:
    c = torch.tensor([[1.0, 0.2, 0.9], [0.2, 1.0, -0.5], [0.9, -0.5, 1.0]])
    assert semi_match(c, exclude_self=True).index.tolist() == [2, 0, 0]
    assert semi_match(c).index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_keep_the_dtype(dtype: torch.dtype) -> None:
    c = gaussian(5, 5, dtype=dtype)
    assert semi_match(c).value.dtype == bipartite_match(c).value.dtype == dtype


def test_bad_similarities_are_named() -> None:
    for match in (semi_match, bipartite_match):
        with pytest.raises(ValueError, match=r"similarity has shape \(3,\)"):
            match(torch.zeros(3))
        with pytest.raises(ValueError, match="not finite"):
            match(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="expects a square matrix"):
        semi_match(torch.zeros(2, 3), exclude_self=True)
    with pytest.raises(ValueError, match="no partner to choose"):
        semi_match(torch.zeros(1, 1), exclude_self=True)


def deep_chain() -> nn.Sequential:
    """Everything that `permute_units` can walk through."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6), nn.MaxPool2d(2)),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 7),
        nn.LayerNorm(7),
        nn.GELU(),
        nn.Linear(7, 3),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | nn.PReLU):
            for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
                if tensor.is_floating_point():
                    tensor.data = gaussian(*tensor.shape, seed=number).abs() + 0.2
    return model.eval()


def test_permuted_units_leave_the_output_unchanged() -> None:
    model, images = deep_chain(), gaussian(4, 2, 8, 8)
    before, hidden = model(images), collect_units(model, "1", [images])
    generator = torch.Generator().manual_seed(3)
    orders = {name: torch.randperm(n, generator=generator) for name, n in (("0.0", 6), ("1", 8), ("7", 7))}
    weights = [p.clone() for p in model.parameters()]
    permute_units(model, orders)
    assert not all(torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True))
    torch.testing.assert_close(model(images), before, atol=1e-12, rtol=0)
    torch.testing.assert_close(collect_units(model, "1", [images]), hidden[:, orders["1"]])


def test_matching_and_permuting_aligns_a_shuffled_copy() -> None:
    model, shuffled, images = deep_chain(), deep_chain(), gaussian(40, 2, 8, 8)
    permute_units(shuffled, {"1": torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])})
    match = bipartite_match(layer_statistics(model, "3", shuffled, "3", [images]).cxy)
    permute_units(shuffled, {"1": match.index})
    for p, q in zip(model.parameters(), shuffled.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_cannot_be_permuted_is_named_and_left_alone() -> None:
    def refused(model: nn.Sequential, orders: dict[str, Tensor], message: str) -> None:
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=message):
            permute_units(model, orders)
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))

    flip = torch.arange(3, -1, -1)
    plain = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Softmax(dim=1))
    refused(plain, {"0": flip, "1": flip}, "names '1'; the layers that can be permuted are 0, 2")
    refused(plain, {"0": flip, "2": flip}, "'2', the last layer|'Softmax'|Softmax")
    refused(plain, {"0": torch.tensor([0, 1, 2, 2])}, r"permutations\['0'\] is no permutation of 0 to 3")
    refused(plain, {"0": torch.arange(3)}, "is no permutation")
    refused(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), {"0": flip}, "the last layer with weights")
    refused(nn.Sequential(nn.Linear(2, 4), nn.GLU(), nn.Linear(2, 2)), {"0": flip}, r"layer '1' \(GLU\) is not known")
    grouped = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 1, groups=2))
    refused(grouped, {"0": flip}, "layer '1' is a grouped convolution")
    refused(nn.Sequential(nn.Linear(2, 4), nn.Linear(6, 1)), {"0": flip}, "has 6 inputs; expected a multiple of 4")
    norm = nn.Sequential(nn.Conv1d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv1d(4, 1, 1))
    refused(norm, {"0": flip}, r"\(GroupNorm\)")


# One to few


@pytest.mark.parametrize(("n", "m", "samples"), [(10, 8, 400), (30, 12, 25), (5, 1, 50)])
def test_sparse_maps_satisfy_the_optimality_conditions(n: int, m: int, samples: int) -> None:
    stats = unit_statistics(*two_layers(samples, n, m))
    penalties = [0.3, 0.01, 0.1, 1e-3]
    found = sparse_map(stats, penalties)
    assert found.weight.shape == (4, m, n) and found.r2.shape == found.units().shape == (4, m)
    assert found.violation.max() <= 1e-9
    x, y = (standardised(each) for each in two_layers(samples, n, m))
    for penalty, weight in zip(penalties, found.weight, strict=True):
        slope = x.mT @ (y - x @ weight.mT) / samples  # (n, m)
        active = weight.mT != 0
        assert (slope.abs() <= penalty + 1e-8).all()
        torch.testing.assert_close(slope[active], penalty * weight.mT.sign()[active], atol=1e-8, rtol=0)


def test_sparse_maps_are_those_of_scikit_learn() -> None:
    from sklearn.linear_model import Lasso

    x, y = (standardised(each).numpy() for each in two_layers())
    stats = unit_statistics(*two_layers())
    for penalty, weight in zip((0.2, 0.02), sparse_map(stats, [0.2, 0.02]).weight, strict=True):
        model = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y)
        np.testing.assert_allclose(weight.numpy(), model.coef_, atol=1e-8)


def test_the_largest_penalty_leaves_nothing_and_none_is_least_squares() -> None:
    x, y = two_layers()
    stats = unit_statistics(x, y)
    threshold = float(stats.cxy.abs().max())
    found = sparse_map(stats, [threshold, 0.999 * threshold, 0.0, 1e-9])
    assert found.units().sum(dim=1).tolist()[:2] == [0, 1]
    expected = torch.linalg.lstsq(standardised(x), standardised(y)).solution.mT
    torch.testing.assert_close(found.weight[2], expected)
    torch.testing.assert_close(found.weight[3], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.r2[0], torch.zeros(8, dtype=torch.float64))
    assert (found.fit[2] >= found.fit[:2]).all()


def test_the_order_of_penalties_does_not_matter() -> None:
    stats, penalties = unit_statistics(*two_layers()), [0.02, 0.3, 0.1]
    forth, back = sparse_map(stats, penalties), sparse_map(stats, penalties[::-1])
    torch.testing.assert_close(forth.weight, back.weight.flip(0), atol=1e-8, rtol=0)
    assert forth.penalties == tuple(penalties)


def test_duplicate_units_do_not_stop_the_solver() -> None:
    x, y = two_layers()
    twice = unit_statistics(torch.cat([x, x[:, :4]], dim=1), y)
    single = sparse_map(unit_statistics(x, y), [0.05, 0.0])
    found = sparse_map(twice, [0.05, 0.0])
    assert found.violation[0].max() <= 1e-9
    torch.testing.assert_close(found.r2, single.r2, atol=1e-6, rtol=0)
    assert torch.isfinite(sparse_map(twice, [0.05], refit=True).weight).all()


def test_refitted_weights_are_least_squares_on_the_support() -> None:
    x, y = two_layers()
    stats = unit_statistics(x, y)
    shrunk, refitted = (sparse_map(stats, [0.15], refit=refit) for refit in (False, True))
    xs, ys = standardised(x), standardised(y)
    for target in range(8):
        support = shrunk.weight[0, target] != 0
        assert torch.equal(support, refitted.weight[0, target] != 0)
        expected = torch.linalg.lstsq(xs[:, support], ys[:, target, None]).solution[:, 0]
        torch.testing.assert_close(refitted.weight[0, target, support], expected)
    assert (refitted.r2 >= shrunk.r2).all() and refitted.violation.isnan().all()


def test_held_out_values_are_those_of_predictions() -> None:
    x, y = two_layers()
    x_new, y_new = two_layers(150, seed=50)  # another law altogether
    x_new, y_new = x_new * 1.5 + 0.2, y_new + 0.1
    found = sparse_map(unit_statistics(x, y), [0.05, 0.0], held_out=unit_statistics(x_new, y_new))
    for which in range(2):
        weight, bias = found.affine(which)
        for r2, inputs, outputs in ((found.r2, x_new, y_new), (found.fit, x, y)):
            error = (outputs - inputs @ weight.mT - bias).square().sum(dim=0)
            expected = 1 - error / (outputs - outputs.mean(dim=0)).square().sum(dim=0)
            torch.testing.assert_close(r2[which], expected)


def test_weights_are_counted_from_a_share_of_the_largest() -> None:
    found = sparse_map(unit_statistics(*two_layers()), [0.1])
    weight = torch.tensor([[[1.0, 0.09, 1e-4, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    assert replace(found, weight=weight).units().tolist() == [[2, 0]]
    assert replace(found, weight=weight).units(above=0.1).tolist() == [[1, 0]]


def test_the_curve_counts_the_units_that_make_a_target() -> None:
    x = gaussian(2000, 9)
    y = torch.stack([x[:, 3], 2 * x[:, 0] + 1.5 * x[:, 1] - x[:, 2], x.sum(dim=1), gaussian(2000, seed=8)], dim=1)
    curve = prediction_curve(unit_statistics(x, y))
    assert curve.r2.shape == (10, 4)
    assert (curve.r2.diff(dim=0) >= -1e-12).all()
    torch.testing.assert_close(curve.r2[-1], curve.full)
    torch.testing.assert_close(curve.full[:3], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(curve.r2[1], unit_statistics(x, y).cxy.square().amax(dim=0))
    assert curve.r2[0].abs().max() == 0
    assert curve.units_needed(0.999)[:2].tolist() == [1, 3]
    assert curve.units_needed(0.95)[2] == 9
    assert curve.units_needed(0.5)[2] < 9
    short = prediction_curve(unit_statistics(x, y), most=2)
    torch.testing.assert_close(short.r2, curve.r2[:3])
    assert short.units_needed()[1] == 3  # one more than were tried
    assert prediction_curve(unit_statistics(x, torch.ones_like(y))).units_needed().isnan().all()


def test_the_curve_on_other_samples_uses_nothing_of_them() -> None:
    x, y = two_layers(60, 20, 8)
    fit, test = unit_statistics(x[:40], y[:40]), unit_statistics(x[40:], y[40:])
    curve = prediction_curve(fit, held_out=test)
    torch.testing.assert_close(curve.full, sparse_map(fit, [0.0], held_out=test).r2[0])
    best = fit.cxy.abs().argmax(dim=0)
    slope = fit.cxy.gather(0, best[None])[0] * fit.std_y / fit.std_x[best]
    predicted = y[:40].mean(dim=0) + slope * (x[40:, best] - x[:40, best].mean(dim=0))
    error = (y[40:] - predicted).square().sum(dim=0) / (y[40:] - y[40:].mean(dim=0)).square().sum(dim=0)
    torch.testing.assert_close(curve.r2[1], 1 - error)
    assert curve.r2[1:].min() < 0 or curve.full.min() < prediction_curve(fit).full.min()  # nothing is clamped


def test_bad_arguments_of_sparse_maps_are_named() -> None:
    stats, other = unit_statistics(*two_layers()), unit_statistics(*two_layers(n=9))
    for penalties in ([], [-0.1], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match=r"penalties is \["):
            sparse_map(stats, penalties)
    with pytest.raises(ValueError, match=r"held_out has \(9, 8\) units .* expected \(10, 8\)"):
        sparse_map(stats, [0.1], held_out=other)
    with pytest.raises(ValueError, match="tolerance is 0"):
        sparse_map(stats, [0.1], tolerance=0)
    with pytest.raises(ValueError, match="most is -1"):
        prediction_curve(stats, most=-1)
    with pytest.raises(ValueError, match="share is 0"):
        prediction_curve(stats).units_needed(0)


# Many to many


def two_blocks() -> UnitStats:
    """Two sets of units, each seen by both networks, that have nothing to do with one another."""
    samples = 4000
    first, second = gaussian(samples, 2), gaussian(samples, 3, seed=1)
    first, second = (torch.linalg.qr(each - each.mean(dim=0))[0] for each in (first, second))
    second = torch.linalg.qr(second - first @ (first.mT @ second))[0]
    x = torch.cat([first @ gaussian(2, 5, seed=2), second @ gaussian(3, 6, seed=3)], dim=1)
    y = torch.cat([second @ gaussian(3, 4, seed=4), first @ gaussian(2, 7, seed=5)], dim=1)
    return unit_statistics(x, y)


@pytest.mark.parametrize("cluster", [spectral_groups, agglomerative_groups])
def test_disconnected_blocks_are_separated_exactly(cluster: type) -> None:
    groups = cluster(two_blocks(), 2)
    assert groups.label_x.tolist() == [1] * 5 + [0] * 6 or groups.label_x.tolist() == [0] * 5 + [1] * 6
    assert len(set(groups.label_x[:5].tolist() + groups.label_y[4:].tolist())) == 1
    assert len(set(groups.label_x[5:].tolist() + groups.label_y[:4].tolist())) == 1
    assert groups.shared.all() and groups.between < 1e-9 < 0.2 < groups.within
    # In each block both networks span the same subspace, of two and three dimensions.
    torch.testing.assert_close(groups.cca2, torch.ones(2, dtype=torch.float64))
    order_x, order_y = groups.order()
    assert groups.label_x[order_x].diff().min() >= 0 and groups.label_y[order_y].diff().min() >= 0


def test_groups_are_ordered_by_size_and_depend_on_the_seed_alone() -> None:
    stats = unit_statistics(*two_layers(n=20, m=15))
    groups = spectral_groups(stats, 6, seed=3)
    sizes = torch.cat([groups.label_x, groups.label_y]).bincount(minlength=6)
    assert (sizes.diff() <= 0).all() and sizes.sum() == 35
    assert_deterministic(lambda: spectral_groups(stats, 6, seed=3).label_x)
    everything = spectral_groups(stats, 1)
    assert everything.within == pytest.approx(float(stats.cxy.abs().mean())) and math.isnan(everything.between)
    alone = agglomerative_groups(stats, 35)
    assert not alone.shared.any() and alone.cca2.isnan().all() and math.isnan(alone.within)


def test_canonical_correlations_do_not_depend_on_the_basis_and_have_known_values() -> None:
    z = torch.linalg.qr(gaussian(500, 5) - gaussian(500, 5).mean(dim=0))[0]
    x, y = z[:, :2], torch.stack([0.6 * z[:, 0] + 0.8 * z[:, 2], z[:, 3]], dim=1)  # correlations 0.6 and 0
    expected = torch.tensor([0.6, 0.0], dtype=torch.float64)
    for left, right in ((x, y), (x @ gaussian(2, 2), y @ gaussian(2, 2, seed=1)), (x @ gaussian(2, 4, seed=2), y)):
        s = unit_statistics(left, right)
        torch.testing.assert_close(canonical_correlations(s.cxx, s.cyy, s.cxy), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(2, 2\); expected \(2, 2\) and \(3, 3\)"):
        canonical_correlations(torch.eye(2), torch.eye(2), torch.zeros(2, 3))


def test_bad_numbers_of_groups_are_named() -> None:
    for k in (0, 19):
        with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 18"):
            spectral_groups(unit_statistics(*two_layers()), k)


# Mutual information


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_information_of_a_unit_with_itself_is_its_entropy(dtype: torch.dtype) -> None:
    x = gaussian(1000, 1, dtype=dtype)
    found = mutual_information(x, x, corrected=False)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(math.log(10))  # ten bins of 100
    rest = torch.relu(x - x.sort(dim=0).values[399])  # 400 samples at rest, nine bins of about 67
    shares = np.array([0.4] + [0.6 / 9] * 9)
    assert float(mutual_information(rest, rest, corrected=False)) == pytest.approx(
        -(shares * np.log(shares)).sum(), abs=1e-3
    )


def test_information_of_a_table_by_hand() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    y = torch.tensor([0.0, 0.0, 2.0, 0.0, 2.0, 2.0, 2.0, 2.0])[:, None]
    joint = np.array([[2, 1], [1, 4]]) / 8
    expected = (joint * np.log(joint / np.outer(joint.sum(axis=1), joint.sum(axis=0)))).sum()
    assert float(mutual_information(x, y, bins=2, corrected=False)) == pytest.approx(expected)
    assert float(mutual_information(x, y, bins=2)) == pytest.approx(expected - 1 / 16)


def test_the_correction_takes_the_bias_of_independent_units_away() -> None:
    x, y = torch.relu(gaussian(2000, 12)), torch.relu(gaussian(2000, 12, seed=1) + 0.5)
    raw, corrected = mutual_information(x, y, corrected=False), mutual_information(x, y)
    bias = 81 / 4000
    torch.testing.assert_close(raw - corrected, torch.full((12, 12), bias, dtype=torch.float64))
    assert float(raw.min()) > 0 and abs(float(corrected.mean())) < 0.05 * bias


def test_information_does_not_change_under_monotone_maps_and_batches_of_samples() -> None:
    x, y = (each[:, :3] for each in two_layers(700))
    found = mutual_information(x, y)
    torch.testing.assert_close(mutual_information(3 * x, torch.expm1(y)), found)
    negative = -torch.exp(x)  # rest is the largest value now, not zero: a unit of equal bins
    assert mutual_information(negative, y).shape == (3, 3)
    torch.testing.assert_close(mutual_information(y, x), found.mT)


def test_samples_may_be_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from working_papers.papers.convergent_learning.method import information

    x, y = two_layers(130)
    whole = mutual_information(x, y)
    monkeypatch.setattr(information, "CHUNK_NUMBERS", 1000)
    torch.testing.assert_close(mutual_information(x, y), whole)


def test_bad_arguments_of_information_are_named() -> None:
    with pytest.raises(ValueError, match="bins is 1"):
        mutual_information(torch.zeros(3, 1), torch.zeros(3, 1), bins=1)
    with pytest.raises(ValueError, match="x has no samples"):
        mutual_information(torch.zeros(0, 1), torch.zeros(0, 1))
    with pytest.raises(ValueError, match="y holds an activation that is not finite"):
        mutual_information(torch.zeros(3, 1), torch.full((3, 1), math.inf))


# The study


def test_networks_trained_together_are_those_trained_alone() -> None:
    train, test = load_images(Scale.LAPTOP)
    few = LabelledImages(train.images[:96], train.labels[:96])
    architecture = ARCHITECTURES["perceptron"]
    together = train_together(architecture, 2, 2, 7, few, test)
    # The same by hand for the second network.
    torch.manual_seed(7)
    _, network = architecture.make(), architecture.make()
    assert all(torch.equal(value, together.before[name][1]) for name, value in network.state_dict().items())
    optimizer = torch.optim.Adam(network.parameters(), lr=architecture.learning_rate)
    generator = torch.Generator().manual_seed(7)
    for _ in range(2):
        order = [torch.randperm(96, generator=generator) for _ in range(2)][1]
        for batch in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(few.images[batch]), few.labels[batch]).backward()
            optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(together.after[name][1], value, atol=1e-5, rtol=1e-4)
    right = (network(test.images).argmax(dim=1) == test.labels).double().mean()
    assert float(together.accuracy[1]) == pytest.approx(float(right), abs=2 / len(test))
    module = together.module("perceptron", 1, trained=True)
    torch.testing.assert_close(module(test.images), network(test.images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arm", list(study.arms))
def test_a_trial_is_pure_and_complete(arm: str) -> None:
    trial = Trial(arm=arm, seed=5, scale=Scale.SMOKE)
    first, second = (look_at_pairs(trial, train_networks(5, Scale.SMOKE)) for _ in range(2))
    assert set(study.measures) <= set(first)
    for name, value in first.items():
        assert np.array_equal(value, second[name], equal_nan=True)
        assert name == "block" or np.isfinite(value).all()
    assert first[GAP] == pytest.approx(float(first[FULL]) - float(first[SINGLE]))


def test_the_arms_differ_in_what_they_say() -> None:
    networks = train_networks(5, Scale.SMOKE)
    found = {arm: look_at_pairs(Trial(arm=arm, seed=5, scale=Scale.SMOKE), networks) for arm in study.arms}
    assert found["rotated"][FULL] == pytest.approx(found["trained"][FULL], abs=1e-6)  # the subspace stays
    assert found["rotated"][MATCHED] != pytest.approx(found["trained"][MATCHED], abs=1e-3)
    assert found["other images"][MATCHED] < found["untrained"][MATCHED]


def test_a_network_compared_with_itself_is_found_whole() -> None:
    networks = train_networks(5, Scale.SMOKE)["convolutional"]
    pair = [networks.module("convolutional", 0, trained=False)] * 2
    trial = Trial(arm="trained", seed=5, scale=Scale.SMOKE)
    layer = compare(trial, "convolutional", "relu2", pair, torch.Generator().manual_seed(0))
    assert float(bipartite_match(layer.test.cxy).value.min()) == pytest.approx(1)
    from working_papers.papers.convergent_learning.study import measure

    numbers, _ = measure(layer)
    assert numbers[NEEDED] == 1 and numbers[MISSING] == 0 and numbers[FULL] == pytest.approx(1)


def test_images_are_read_from_a_folder_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, size=(4, 32, 32, 3), dtype=np.uint8)
    for part in ("train", "test"):
        for number, name in enumerate(("b/0.png", "a/1.png", "a/0.png", "b/1.png")):
            file = tmp_path / "cifar10" / part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(file)
    found = read_image_folder(tmp_path / "cifar10" / "train")
    assert found.labels.tolist() == [0, 0, 1, 1] and found.images.shape == (4, 3, 32, 32)
    expected = torch.from_numpy(pixels[[2, 1, 0, 3]]).movedim(-1, 1) / 127.5 - 1
    torch.testing.assert_close(found.images, expected)
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    train, test = load_images(Scale.PAPER)
    small = replace(ARCHITECTURES["five convolutions"], make=lambda: five_convolutions((4, 5, 6, 7, 8)))
    networks = train_together(small, 2, 1, 0, train, test)
    assert not torch.equal(networks.before["conv5.weight"], networks.after["conv5.weight"])
    network = five_convolutions((4, 5, 6, 7, 8))
    assert collect_units(network, "relu5", [test.images]).shape == (4 * 8 * 8, 8)


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKING_PAPERS_DATA", raising=False)
    with pytest.raises(ValueError, match="cifar10 of WORKING_PAPERS_DATA, which is not set"):
        load_images(Scale.PAPER)
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="train holds no images"):
        load_images(Scale.PAPER)
