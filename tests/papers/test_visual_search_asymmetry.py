"""Visual search: pools against plain ones, rings that partition, attention against loops, searches that succeed."""

from __future__ import annotations

import copy
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.visual_search_asymmetry import (
    CENTRE_SURROUND,
    TASKS,
    VGG_SLOPES,
    EccentricityPool2d,
    TopDownSearch,
    arc_distance,
    asymmetry_index,
    bar_distance,
    centre_surround,
    combine_maps,
    correlate,
    eccentric_,
    gaussian_kernel,
    rt_slope,
    same_pool2d,
    search_displays,
    stroke,
)
from working_papers.papers.visual_search_asymmetry.photographs import (
    augmentation,
    fish_eye,
    load_photographs,
    photograph_accuracy,
    train_on_photographs,
)
from working_papers.papers.visual_search_asymmetry.scenes import DIETS, Diet, FeatureNet, make_scenes, new_network
from working_papers.testing import assert_deterministic, assert_gradients_reach_parameters, assert_numerical_gradient


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def small_network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
        )


LAYERS = ("4", "7")


# Pools


@pytest.mark.parametrize("side", [8, 32, 50])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_without_slope_it_is_plain_pooling(side: int, mode: Any) -> None:
    x = noise(2, 3, side, side)
    plain = nn.AvgPool2d(2) if mode == "avg" else nn.MaxPool2d(2)
    torch.testing.assert_close(EccentricityPool2d(0.0, 4.0, mode=mode)(x), plain(x), rtol=0, atol=1e-6)


def test_rings_of_the_paper_by_hand() -> None:
    # Block 5 of VGG-16: 2 px/deg, so the fovea's radius is 4 output pixels and each ring is 1 wide.
    pool = EccentricityPool2d(0.32, 2.0)
    assert pool.rings(16) == [(4, 2), (inf, 2 + round(0.32 * (10 - 8)))]  # radius 5 reaches the edge of 8 outputs
    expected = [(4, 2)] + [(radius, 2 + round(0.32 * (2 * radius - 8))) for radius in range(5, 13)]
    assert pool.rings(50)[:-1] == expected  # 25 outputs: radii below 12.5
    assert pool.rings(50)[-1] == (inf, 2 + round(0.32 * 18))
    assert pool.rings(14) == [(inf, 2)]  # the fovea covers the whole map of 7
    assert EccentricityPool2d(0.1, 3.0).rings(40)[:2] == [(6, 2), (8, 2 + round(0.1 * 4))]  # 1.5 rounds to even


@pytest.mark.parametrize("side", [9, 31, 40, 101])
@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
def test_rings_partition_the_output_and_windows_grow(side: int, scale: float) -> None:
    pool = EccentricityPool2d(0.3, scale)
    rings, index = pool.rings(side), pool.ring_index(side)
    output = (side + 1) // 2
    assert index.shape == (output, output)
    offset = torch.arange(output) - output // 2
    radius = (offset[:, None] ** 2 + offset**2).double().sqrt()
    low = torch.tensor([0.0, *(each for each, _ in rings[:-1])], dtype=torch.float64)
    high = torch.tensor([each for each, _ in rings], dtype=torch.float64)
    masks = (radius >= low[:, None, None]) & (radius < high[:, None, None])
    assert (masks.sum(dim=0) == 1).all()
    assert torch.equal(masks.int().argmax(dim=0), index)
    windows = [window for _, window in rings]
    assert windows == sorted(windows)
    assert len(set(windows)) > 1 or len(rings) == 1


def test_each_position_has_the_mean_of_its_window() -> None:
    side, pool = 31, EccentricityPool2d(0.3, 1.0)
    x = noise(1, 1, side, side, dtype=torch.float64)
    result, index, rings = pool(x), pool.ring_index(side), pool.rings(side)
    output = result.shape[-1]
    for row in range(output):
        for column in range(output):
            window = rings[int(index[row, column])][1]
            first = max(0, (output - 1) * 2 + window - side) // 2
            top, left = row * 2 - first, column * 2 - first
            part = x[0, 0, max(0, top) : top + window, max(0, left) : left + window]
            assert float(result[0, 0, row, column]) == pytest.approx(float(part.mean()), abs=1e-12)


@pytest.mark.parametrize("shape", [(17, 17), (40, 40), (33, 33)])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_a_constant_stays_constant(shape: tuple[int, int], mode: Any) -> None:
    pooled = EccentricityPool2d(0.5, 1.0, mode=mode)(torch.full((1, 2, *shape), 3.25))
    torch.testing.assert_close(pooled, torch.full_like(pooled, 3.25))


@pytest.mark.parametrize("side", [29, 30, 61])
def test_rings_do_not_change_under_turns_and_flips(side: int) -> None:
    index = EccentricityPool2d(0.3, 2.0).ring_index(side)
    if len(index) % 2 == 0:
        pytest.fail("an odd number of outputs was meant")
    assert int(index.max()) > 1
    for changed in (index.rot90(1), index.rot90(2), index.flip(0), index.T):
        assert torch.equal(changed, index)


def test_maps_that_are_not_square_are_padded_with_zeros() -> None:
    x = noise(1, 2, 12, 31)
    pool = EccentricityPool2d(0.3, 1.0)
    torch.testing.assert_close(pool(x), pool(F.pad(x, (0, 0, 9, 10))))
    torch.testing.assert_close(pool(x.mT), pool(F.pad(x.mT, (9, 10))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_pooling_in_other_precisions(dtype: torch.dtype) -> None:
    pool, x = EccentricityPool2d(0.3, 1.0), noise(1, 2, 24, 24)
    result = pool(x.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), pool(x), rtol=0, atol=1e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_pooling_has_the_numerical_gradient(mode: Any) -> None:
    assert_numerical_gradient(EccentricityPool2d(0.5, 0.5, mode=mode), noise(1, 1, 9, 9))


def test_odd_padding_goes_to_the_bottom_and_the_right() -> None:
    x = torch.arange(25.0).view(1, 1, 5, 5)
    pooled = same_pool2d(x, 2)
    torch.testing.assert_close(pooled[..., :2, :2], F.avg_pool2d(x, 2))
    assert float(pooled[0, 0, 2, 2]) == 24.0
    assert float(pooled[0, 0, 0, 2]) == 6.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"slope": -0.1}, "slope is -0.1"),
        ({"px_per_deg": 0.0}, "px_per_deg is 0.0"),
        ({"fovea_deg": inf}, "fovea_deg is inf"),
        ({"window_min": 0}, "window_min is 0"),
        ({"stride": 2.0}, "stride is 2.0"),
        ({"mode": "sum"}, "mode is 'sum'"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_pools(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EccentricityPool2d(**{"slope": 0.1, "px_per_deg": 4.0, **arguments})


def test_bad_input_of_a_pool() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(3, 8, 8\)"):
        EccentricityPool2d(0.1, 4.0)(torch.zeros(3, 8, 8))


# Replacing the pools of a network


def test_pools_are_replaced_in_order_and_weights_stay() -> None:
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    assert eccentric_(network, 7.5, (0.0, 0.2)) is network
    pools = [network[2], network[5]]
    assert [pool.slope for pool in pools if isinstance(pool, EccentricityPool2d)] == [0.0, 0.2]
    assert [pool.px_per_deg for pool in pools if isinstance(pool, EccentricityPool2d)] == [8.0, 4.0]  # half to even
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_defaults_are_those_of_the_paper() -> None:
    network = FeatureNet([(2,)] * 5).features
    eccentric_(network)
    pools = [each for each in network if isinstance(each, EccentricityPool2d)]
    assert [pool.slope for pool in pools] == list(VGG_SLOPES)
    assert [pool.px_per_deg for pool in pools] == [30, 15, 8, 4, 2]


def test_without_slopes_the_network_computes_the_same() -> None:
    network = small_network()
    network[2] = nn.AvgPool2d(2)
    x = noise(2, 1, 32, 32)
    expected = network(x)
    torch.testing.assert_close(eccentric_(network, 4.0, (0.0, 0.0))(x), expected)


def test_other_pools_are_left_alone() -> None:
    network = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Sequential(nn.MaxPool2d(2)))
    eccentric_(network, (5.0,), (0.1,))
    assert isinstance(network[0], nn.MaxPool2d)
    inner = network[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(inner[0], EccentricityPool2d)


def test_wrong_number_of_slopes() -> None:
    with pytest.raises(ValueError, match="slopes has 5 numbers, but the model has 2"):
        eccentric_(small_network())
    with pytest.raises(ValueError, match="px_per_deg has 3 numbers, but the model has 2"):
        eccentric_(small_network(), (1.0, 2.0, 3.0), (0.0, 0.0))


# Attention


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_correlation_is_the_sum_over_the_window(size: tuple[int, int]) -> None:
    features, kernel = noise(2, 3, 6, 7, dtype=torch.float64), noise(2, 3, *size, seed=1, dtype=torch.float64)
    result = correlate(features, kernel)
    h, w = size
    for b in range(2):
        for row in range(6):
            for column in range(7):
                total = 0.0
                for i in range(h):
                    for j in range(w):
                        y, x = row + i - (h - 1) // 2, column + j - (w - 1) // 2
                        if 0 <= y < 6 and 0 <= x < 7:
                            total += float(features[b, :, y, x] @ kernel[b, :, i, j])
                assert float(result[b, 0, row, column]) == pytest.approx(total, abs=1e-10)


def test_one_kernel_serves_all() -> None:
    features, kernel = noise(3, 2, 8, 8), noise(1, 2, 3, 3, seed=1)
    torch.testing.assert_close(correlate(features, kernel), correlate(features, kernel.expand(3, -1, -1, -1)))
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 2, 3, 3\)"):
        correlate(features, kernel.expand(2, -1, -1, -1))


def test_maps_are_weighted_by_their_maxima() -> None:
    a, b = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 12.0]]]])
    torch.testing.assert_close(combine_maps([a, b]), (4 * a / 4 + 12 * b / 12) / 16)
    assert torch.equal(combine_maps([torch.zeros(1, 1, 2, 2)] * 2), torch.zeros(1, 1, 2, 2))
    flat = torch.full((1, 1, 2, 2), 4.0)  # has weight but no variation
    torch.testing.assert_close(combine_maps([a, flat]), a / 8)


def test_gaussian_weights() -> None:
    like = torch.zeros((), dtype=torch.float64)
    expected = [0.27406862, 0.45186276, 0.27406862]
    torch.testing.assert_close(gaussian_kernel(3, 1.0, like), torch.tensor(expected).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(gaussian_kernel(3, 0.0, like), torch.tensor([0.25, 0.5, 0.25]).double())
    torch.testing.assert_close(gaussian_kernel(5, 0.0, like) * 16, torch.tensor([1.0, 4, 6, 4, 1]).double())
    with pytest.raises(ValueError, match="side is 4"):
        gaussian_kernel(4, 1.0, like)
    with pytest.raises(ValueError, match="sigma is -1"):
        gaussian_kernel(3, -1.0, like)


@pytest.mark.parametrize("task", list(CENTRE_SURROUND))
def test_sharpening_keeps_flat_maps_and_raises_peaks(task: str) -> None:
    flat = torch.full((1, 1, 9, 9), 0.5, dtype=torch.float64)
    torch.testing.assert_close(centre_surround(flat, *CENTRE_SURROUND[task]), flat)
    peak = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    peak[0, 0, 15, 15] = 1
    sharp = centre_surround(peak, *CENTRE_SURROUND[task])
    assert float(sharp[0, 0, 15, 15]) > 1
    assert float(sharp.sum()) == pytest.approx(1.0, abs=1e-9)  # both Gaussians have the same sum
    once = centre_surround(centre_surround(peak, *CENTRE_SURROUND[task], 1), *CENTRE_SURROUND[task], 2)
    torch.testing.assert_close(once, sharp)


def test_sharpening_refuses_small_maps() -> None:
    with pytest.raises(ValueError, match="expected more than 3"):
        centre_surround(torch.zeros(1, 1, 3, 3), (5, 3.0), (7, 5.0))


def test_attention_is_made_of_its_parts_and_target_features_can_be_kept() -> None:
    search = TopDownSearch(small_network(), LAYERS)
    crops, target = noise(2, 1, 32, 32), noise(1, 1, 8, 8, seed=1)
    shallow, deep = search.features(crops)
    assert shallow.shape == (2, 6, 8, 8)
    assert deep.shape == (2, 6, 8, 8)
    kernels = search.target_features(target)
    assert [tuple(each.shape) for each in kernels] == [(1, 6, 1, 1)] * 2  # one pooling step deeper than 8 / 4
    by_hand = combine_maps([correlate(shallow, kernels[0]), correlate(deep, kernels[1])])
    by_hand = centre_surround(by_hand, (3, 1.0), (5, 3.0))
    torch.testing.assert_close(search(crops, target), by_hand)
    torch.testing.assert_close(search(crops, kernels), by_hand)


def test_named_target_layers_give_the_same_within_the_fovea() -> None:
    network = FeatureNet([(3,)] * 5).features.eval()
    layers = [f"relu{block}_1" for block in (3, 4, 5)]
    pools = [f"pool{block}" for block in (3, 4, 5)]
    eccentric_(network)
    target = noise(1, 1, 100, 100)  # 3.3 degrees
    default = TopDownSearch(network, layers).target_features(target)
    named = TopDownSearch(network, layers, pools).target_features(target)
    for one, other in zip(default, named, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_reaches_all_parameters() -> None:
    network = eccentric_(small_network(), 2.0, (0.1, 0.2))
    assert_gradients_reach_parameters(TopDownSearch(network, LAYERS), noise(2, 1, 32, 32), noise(1, 1, 8, 8, seed=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_in_other_precisions(dtype: torch.dtype) -> None:
    search = TopDownSearch(small_network(), LAYERS)
    crops, target = noise(1, 1, 32, 32), noise(1, 1, 8, 8, seed=1)
    expected = search(crops, target)
    result = search.to(dtype)(crops.to(dtype), target.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.1)


def test_networks_that_floor_odd_sizes_fit_too() -> None:
    search = TopDownSearch(small_network(), LAYERS)
    shallow, deep = search.features(noise(1, 1, 30, 30))
    assert shallow.shape[-2:] == deep.shape[-2:] == (7, 7)


# Searching


def grid_cells(side: int, grid: int) -> Tensor:
    owner = torch.arange(side) * grid // side
    return (owner[:, None] * grid + owner) == torch.arange(grid**2)[:, None, None]


@pytest.mark.parametrize("cell", [0, 5, 10, 15])
@pytest.mark.parametrize("eccentric", [False, True])
def test_a_target_alone_is_found_at_the_first_saccade(cell: int, eccentric: bool) -> None:
    convolution = nn.Conv2d(1, 6, 3, padding=1, bias=False)
    with torch.no_grad():  # rectified differences in both directions: background gives nothing
        kernels = noise(3, 1, 3, 3, seed=2)
        kernels = kernels - kernels.mean(dim=(-2, -1), keepdim=True)
        convolution.weight.copy_(torch.cat([kernels, -kernels]))
    network = nn.Sequential(convolution, nn.ReLU(), nn.AvgPool2d(2), nn.Identity())
    if eccentric:
        eccentric_(network, 2.0, (0.2,))
    cells = grid_cells(64, 4)
    image, target = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 6:10] = 1
    row, column = divmod(cell, 4)
    image[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = target
    path = TopDownSearch(network, ("1", "3"), margin=8).search(image, target, cells[cell][None], cells)
    assert path.fixations.tolist() == [1]
    assert path.found.tolist() == [True]
    assert bool(cells[cell][tuple(path.points[0, 1].tolist())])
    assert path.points[0, 0].tolist() == [32, 32]


def test_each_cell_is_visited_once_and_all_are_enough() -> None:
    search = TopDownSearch(eccentric_(small_network(), 2.0, (0.1, 0.2)), LAYERS, margin=8)
    images, target, cells = noise(3, 1, 48, 48), noise(3, 1, 12, 12, seed=1), grid_cells(48, 4)
    nowhere = torch.zeros(3, 48, 48, dtype=torch.bool)
    path = search.search(images, target, nowhere, cells)
    assert path.fixations.tolist() == [16] * 3
    assert not path.found.any()
    for points in path.points:
        visited = cells[:, points[1:17, 0], points[1:17, 1]].int().argmax(dim=0)
        assert sorted(visited.tolist()) == list(range(16))
        assert (points[17:] == -1).all()
    some = cells[:5].any(dim=0)
    found = search.search(images, target, some.expand(3, -1, -1), cells)
    assert found.found.all()
    assert (found.fixations <= 16 - 4).all()


def test_own_cells_limit_where_the_gaze_goes() -> None:
    displays = search_displays("curvature", "curved among straight", 5, 4, size=96, generator=seeded())
    search = TopDownSearch(small_network(), LAYERS, margin=8)
    path = search.search(displays.images, displays.targets, displays.target_region, displays.item_cells)
    assert path.found.all()
    assert (path.fixations <= 5).all()
    for one, item_cells, count in zip(path.points, displays.item_cells, path.fixations.tolist(), strict=True):
        assert item_cells.any(dim=0)[one[1 : count + 1, 0], one[1 : count + 1, 1]].all()


def test_a_batch_searches_like_its_members() -> None:
    displays = search_displays("lighting", "up or down", 6, 5, size=64, generator=seeded(3))
    search = TopDownSearch(
        eccentric_(small_network(), 6.0, (0.1, 0.2)), LAYERS, margin=8, background=displays.background
    )
    search = search.double()
    images, targets = displays.images.double(), displays.targets.double()
    together = search.search(images, targets, displays.target_region, displays.cells)
    for each in range(5):
        one = slice(each, each + 1)
        alone = search.search(images[one], targets[one], displays.target_region[one], displays.cells)
        assert torch.equal(alone.points[0], together.points[each])
        assert alone.fixations[0] == together.fixations[each]
    assert_deterministic(lambda: search.search(images, targets, displays.target_region, displays.cells).points)


def test_visited_cells_are_covered_with_background() -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 8:
                seen.append(x.clone())
            return x

    network = nn.Sequential(Recorder(), nn.AvgPool2d(2))
    cells = grid_cells(16, 2)
    image = torch.arange(1.0, 257.0).view(1, 1, 16, 16)
    path = TopDownSearch(network, ("0", "1"), margin=4, background=-7.0).search(
        image, torch.ones(1, 1, 4, 4), torch.zeros(1, 16, 16, dtype=torch.bool), cells
    )
    assert len(seen) == 4
    assert [tuple(each.shape[-2:]) for each in seen] == [(40, 40)] * 4
    covered = torch.zeros(16, 16, dtype=torch.bool)
    for step, crop in enumerate(seen):
        y, x = path.points[0, step].tolist()
        top, left = 20 - y, 20 - x
        expected = torch.full((40, 40), -7.0)
        expected[top : top + 16, left : left + 16] = torch.where(covered, -7.0, image[0, 0])
        assert torch.equal(crop[0, 0], expected)
        y, x = path.points[0, step + 1].tolist()
        covered |= cells[int(cells[:, y, x].int().argmax())]


def test_without_cells_squares_are_inhibited() -> None:
    search = TopDownSearch(small_network(), LAYERS, margin=8, inhibition=10)
    images, target = noise(2, 1, 40, 56), noise(1, 1, 8, 8, seed=1)
    region = torch.zeros(2, 40, 56, dtype=torch.bool)
    region[0, 18:22, 26:30] = True  # around the start
    path = search.search(images, target, region, max_fixations=6)
    assert path.points[0, 0].tolist() == [20, 28]
    assert path.found.tolist() == [True, False]
    assert path.fixations.tolist() == [0, 6]
    points = path.points[1]
    for later in range(1, 7):
        apart = (points[later] - points[:later]).double()
        assert ((apart < -5) | (apart >= 5)).any(dim=1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(1, 16, 16)}, "images has shape"),
        ({"target_region": torch.zeros(1, 8, 8, dtype=torch.bool)}, "target_region has shape"),
        ({"cells": torch.zeros(2, 8, 8, dtype=torch.bool)}, "cells has shape"),
        ({"cells": torch.ones(2, 16, 16, dtype=torch.bool)}, "cells overlap"),
        ({"cells": None}, "max_fixations is None"),
        ({"max_fixations": 0}, "max_fixations is 0"),
    ],
    ids=["images", "region", "cells", "overlap", "no cells", "no fixations"],
)
def test_bad_searches(changes: dict[str, Any], words: str) -> None:
    arguments = {
        "images": torch.zeros(1, 1, 16, 16),
        "target": torch.zeros(1, 1, 8, 8),
        "target_region": torch.zeros(1, 16, 16, dtype=torch.bool),
        "cells": grid_cells(16, 2),
        "max_fixations": None,
    }
    with pytest.raises(ValueError, match=words):
        TopDownSearch(small_network(), LAYERS).search(**{**arguments, **changes})


def test_bad_models_of_search() -> None:
    with pytest.raises(ValueError, match="'99', which is no layer"):
        TopDownSearch(small_network(), ("99",))
    with pytest.raises(ValueError, match="target_layers names 1 layers; expected 2"):
        TopDownSearch(small_network(), LAYERS, ("2",))
    with pytest.raises(ValueError, match="margin is -1"):
        TopDownSearch(small_network(), LAYERS, margin=-1)
    with pytest.raises(ValueError, match="side is 2"):
        TopDownSearch(small_network(), LAYERS, dog=((2, 1.0), (5, 3.0)))
    with pytest.raises(ValueError, match="background has 2 values; expected 1 or 1"):
        TopDownSearch(small_network(), LAYERS, background=(0.0, 1.0)).search(
            torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8), torch.zeros(1, 16, 16) > 0, grid_cells(16, 2)
        )
    flat = nn.Sequential(nn.Flatten())
    with pytest.raises(ValueError, match=r"layers: '0' returns shape \(1, 64\)"):
        TopDownSearch(flat, ("0",)).attention(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


# Slopes and the index


def test_slopes_by_hand() -> None:
    slope, intercept = rt_slope([1, 2, 3], [1, 2, 3])
    assert slope == pytest.approx(252.359)
    assert intercept == pytest.approx(376.271)
    many = rt_slope([2, 4, 8], [[1, 3], [2, 2], [4, 8]], scale=10, offset=0)
    assert many == pytest.approx(tuple(np.polyfit([2, 4, 8], [20, 20, 60], 1)))
    with pytest.raises(ValueError, match="set_sizes is"):
        rt_slope([3, 3], [1, 2])
    with pytest.raises(ValueError, match=r"fixations has shape \(2,\)"):
        rt_slope([1, 2, 3], [1, 2])


def test_the_index_is_bounded_antisymmetric_and_zero_at_zero() -> None:
    values = np.random.default_rng(0).normal(size=(2, 500)) * 50
    index = asymmetry_index(*values)
    assert index.shape == (500,)
    assert np.abs(index).max() <= 1
    assert np.allclose(index, -asymmetry_index(values[1], values[0]))
    assert float(asymmetry_index(0.0, 0.0)) == 0
    assert float(asymmetry_index(-3.0, -1.0)) == 0
    assert float(asymmetry_index(30.0, 10.0)) == 0.5
    assert float(asymmetry_index(5.0, -10.0)) == 1


# Displays

CONDITIONS = [(task, condition) for task, each in TASKS.items() for condition in (each.hard, each.easy)]


@pytest.mark.parametrize(("task", "condition"), CONDITIONS)
def test_displays_have_their_items_in_their_cells(task: str, condition: str) -> None:
    setup = TASKS[task]
    for set_size in setup.set_sizes[-2:]:
        displays = search_displays(task, condition, set_size, 7, size=113, generator=seeded(1))
        assert displays.images.shape == (7, 1, 113, 113)
        assert displays.cells.shape == (setup.grid**2, 113, 113)
        assert (displays.cells.sum(dim=0) <= 1).all()
        assert (displays.items.sum(dim=1) == set_size).all()
        assert displays.items[torch.arange(7), displays.target_cell].all()
        assert torch.equal(displays.target_region, displays.cells[displays.target_cell])
        assert 0 <= float(displays.images.min()) <= float(displays.images.max()) <= 1
        differs = (displays.images - displays.background).abs() > 1e-6
        inked = (differs & displays.cells).flatten(2).any(dim=2)
        assert torch.equal(inked, displays.items)


@pytest.mark.parametrize(("task", "condition"), CONDITIONS)
def test_the_target_is_the_odd_one_out(task: str, condition: str) -> None:
    displays = search_displays(task, condition, 3, 5, size=339, jitter_deg=0.0, generator=seeded(2))
    side = displays.targets.shape[-1]
    for image, target, cell, items in zip(
        displays.images, displays.targets, displays.target_cell.tolist(), displays.items, strict=True
    ):
        for place in items.nonzero()[:, 0].tolist():
            mask = displays.cells[place]
            same = torch.allclose(image[0][mask].view(side, side), target[0], atol=1e-6)
            assert same == (place == cell)


def test_conditions_swap_target_and_distractors() -> None:
    def patches(condition: str) -> tuple[Tensor, Tensor]:
        displays = search_displays("curvature", condition, 2, 20, size=339, jitter_deg=0.0, generator=seeded(4))
        side = displays.targets.shape[-1]
        other = (displays.items.int() - F.one_hot(displays.target_cell, 36)).argmax(dim=1)
        found = torch.stack(
            [
                image[0][displays.cells[place]].view(side, side)
                for image, place in zip(displays.images, other, strict=True)
            ]
        )
        return displays.targets[:, 0], found

    (straight, among_curved), (curved, among_straight) = (patches(each) for each in TASKS["curvature"][:2])
    # Lines have more ink, and there are four of either kind.
    kinds = [{tuple(map(float, each[20:36:3, 20:36:3].flatten())) for each in group} for group in (straight, curved)]
    assert float(straight.sum(dim=(1, 2)).min()) > float(curved.sum(dim=(1, 2)).max())
    assert float(among_straight.sum(dim=(1, 2)).min()) > float(among_curved.sum(dim=(1, 2)).max())
    assert all(2 <= len(kind) <= 4 for kind in kinds)


def test_lighting_of_both_conditions_is_the_same_turned() -> None:
    across = search_displays("lighting", "left or right", 16, 3, size=64, jitter_deg=0.0, generator=seeded())
    upright = search_displays("lighting", "up or down", 16, 3, size=64, jitter_deg=0.0, generator=seeded())
    torch.testing.assert_close(across.targets.mT, upright.targets)
    torch.testing.assert_close(across.targets + across.targets.flip(-1), upright.targets + upright.targets.flip(-2))
    assert not torch.allclose(across.targets, across.targets.flip(-1))


def test_distances_of_lines() -> None:
    assert float(bar_distance(torch.tensor(3.0), torch.tensor(4.0), 4.0)) == pytest.approx(17**0.5)
    assert float(bar_distance(torch.tensor(1.0), torch.tensor(-4.0), 4.0)) == 4.0
    # Against the closest of many points on the arc.
    x, y = noise(50, dtype=torch.float64) * 2, noise(50, seed=1, dtype=torch.float64) * 2
    angle = torch.linspace(-0.65, 0.65, 20_001, dtype=torch.float64)
    points = torch.stack([1.5 * angle.sin(), 1.5 - 1.5 * angle.cos()])
    nearest = torch.hypot(x[:, None] - points[0], y[:, None] - points[1]).min(dim=1).values
    torch.testing.assert_close(arc_distance(x, y, 1.5, 1.3), nearest, rtol=0, atol=1e-4)
    assert stroke(torch.tensor([0.0, 1.0, 2.0]), 2.0, 0.5).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("colour", "red", 3, 1), "task is 'colour'"),
        (("letters", "cross among no cross", 3, 1), "condition is 'cross among no cross'"),
        (("letters", "L among T", 10, 1), "set_size is 10; expected 1 to 9"),
        (("letters", "L among T", 3, 0), "count is 0"),
    ],
    ids=["task", "condition", "set size", "count"],
)
def test_bad_displays(arguments: tuple[str, str, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search_displays(*arguments)


def test_small_canvas() -> None:
    with pytest.raises(ValueError, match="size is 20; expected at least 24"):
        search_displays("curvature", "curved among straight", 3, 1, size=20)


# The diets


def test_diets_differ_in_light_and_curvature_alone() -> None:
    above, left = Diet(1.0, 1.0), Diet(0.0, 1.0)
    one, other = make_scenes(above, 60, seeded()), make_scenes(left, 60, seeded())
    assert torch.equal(one.labels, other.labels)
    figures = one.labels >= 4
    assert torch.equal(one.images[figures], other.images[figures])
    assert not torch.equal(one.images[~figures], other.images[~figures])
    bent = make_scenes(Diet(1.0, 0.0), 60, seeded())
    assert torch.equal(one.labels, bent.labels)
    assert not torch.equal(one.images[figures], bent.images[figures])
    # Light from above makes bumps brighter at the top and hollows at the bottom.
    many = make_scenes(above, 400, seeded(1))
    gradient = (many.images[:, 0, 1:] - many.images[:, 0, :-1]).clamp(-0.3, 0.3).mean(dim=(1, 2))
    across = (many.images[:, 0, :, 1:] - many.images[:, 0, :, :-1]).clamp(-0.3, 0.3).mean(dim=(1, 2))
    assert many.images.min() >= 0
    assert many.images.max() <= 1
    bump, hollow = many.labels < 2, (many.labels >= 2) & (many.labels < 4)
    vertical = float((gradient[hollow].mean() - gradient[bump].mean()).abs())
    assert vertical > 3 * float((across[hollow].mean() - across[bump].mean()).abs())


def test_networks_of_a_seed_are_equal() -> None:
    one, other = new_network([(2,), (3,), (4,)], 5), new_network([(2,), (3,), (4,)], 5)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one.last_layers == ("relu1_1", "relu2_1", "relu3_1")
    assert new_network([(2, 2), (3,), (4,), (4, 4)], 5).last_layers == ("relu2_1", "relu3_1", "relu4_2")


def test_fish_eye_bends_lines_and_keeps_the_middle() -> None:
    image = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    image[..., 16, :] = 1
    bent = fish_eye(image)
    rows = bent[0, 0, :32].argmax(dim=0)
    assert int(rows[32]) != int(rows[4])
    torch.testing.assert_close(bent, bent.flip(-1))
    torch.testing.assert_close(fish_eye(image, 0.0), image)
    assert float(fish_eye(torch.ones(1, 1, 16, 16)).min()) == pytest.approx(1)  # no border comes in


def test_photographs_are_read_trained_on_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="imagenet100"):
        load_photographs()
    (tmp_path / "imagenet100/train/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="val"):
        load_photographs()
    pixels = np.random.default_rng(0)
    for part in ("train", "val"):
        for name, level in (("cat", 60), ("dog", 190)):
            folder = tmp_path / "imagenet100" / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                colours = (level + pixels.integers(-40, 40, (40, 60, 3))).astype(np.uint8)
                Image.fromarray(colours).save(folder / f"{number}.JPEG")
    train, new = load_photographs()
    assert train.classes == new.classes == ("cat", "dog")
    network = new_network([(2,), (2,), (2,)], 0, channels=3, classes=2)
    before = copy.deepcopy(network.state_dict())
    done: list[float] = []
    train_on_photographs(network, train, "balanced", 0, 1, "cpu", done.append, batch=2)
    assert done[-1] == 1
    assert not torch.equal(before["features.conv1_1.weight"], network.state_dict()["features.conv1_1.weight"])
    assert photograph_accuracy(network, new, "reversed", "cpu") in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_reversed_photographs_are_turned_and_bent() -> None:
    images = torch.rand(3, 3, 256, 256, generator=seeded())
    natural, _ = augmentation("natural")((images, torch.arange(3)), seeded(1))
    turned, labels = augmentation("reversed")((images, torch.arange(3)), seeded(1))
    assert natural.shape == turned.shape == (3, 3, 224, 224)
    assert labels.tolist() == [0, 1, 2]
    flipped = torch.rand(3, generator=seeded(1)) < 0.5
    whole = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    changed = fish_eye(whole.rot90(1, (-2, -1)))
    generator = seeded(1)
    torch.rand(3, generator=generator), torch.rand(3, generator=generator)
    top, left = torch.randint(33, (2,), generator=generator).tolist()
    torch.testing.assert_close(turned, changed[..., top : top + 224, left : left + 224])
    torch.testing.assert_close(natural, whole[..., top : top + 224, left : left + 224])


# The study


def test_what_the_figure_shows_follows_the_searches() -> None:
    from working_papers.bench import Scale, Trial
    from working_papers.papers.visual_search_asymmetry.study import raised, search_asymmetries

    states = {}
    for arm in (*DIETS, "uniform", "untrained"):
        network, _ = raised(Trial(arm=arm, seed=3, scale=Scale.SMOKE))
        states[arm] = network.features.state_dict()["conv4_1.weight"]
    assert torch.equal(states["natural"], states["uniform"])
    assert not any(torch.equal(states["natural"], states[arm]) for arm in ("reversed", "balanced", "untrained"))
    found = search_asymmetries(Trial(arm="natural", seed=3, scale=Scale.SMOKE))
    for task in ("lighting", "curvature"):
        counts = np.asarray(found[f"{task} fixations"])
        hard, easy = (rt_slope(TASKS[task].set_sizes, each).slope for each in counts)
        assert found[f"{task} slope gap"] == pytest.approx(hard - easy)
        assert (counts >= 1).all()
        assert (counts <= np.array(TASKS[task].set_sizes)).all()  # only items are looked at, each once
        index = float(asymmetry_index(hard, easy)) if max(hard, easy) >= 2 else 0.0
        assert found[f"{task} asymmetry index"] == pytest.approx(index)
