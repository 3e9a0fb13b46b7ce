"""Guidance: similarities, the map of layers, taps of every kind of layer, and a target that the guide alone moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from working_papers.bench import Scale, Trial
from working_papers.data.digits import LabelledImages
from working_papers.papers.guidance import (
    Guidance,
    LayerTap,
    depth_map,
    linear_cka,
    parametric_layers,
    rsa_distance,
    rsa_similarity,
)
from working_papers.papers.guidance.networks import (
    Size,
    Watched,
    connected_guide,
    convolutional_guide,
    evaluate,
    fully_connected,
    load_images,
    make_target,
    shuffled_batches,
    some_images,
    with_wrong_labels,
)
from working_papers.papers.guidance.study import ACCURACY, RISE, study, train, train_guide
from working_papers.testing import assert_invariant, assert_numerical_gradient, random_rotation

Similarity = Callable[[Tensor, Tensor], Tensor]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def target_of(depth: int = 4, width: int = 12, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return fully_connected(36, [width] * depth, 5, dropout)


def guide_of(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def images(n: int = 16, seed: int = 2) -> Tensor:
    return gaussian(n, 1, 6, 6, seed=seed, dtype=torch.float32)


# Similarities


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity])
def test_a_representation_is_like_itself_and_similarity_is_symmetric(similarity: Similarity) -> None:
    a, b = gaussian(20, 7), gaussian(20, 3, 2, seed=1)
    assert float(similarity(a, a)) == pytest.approx(1, abs=1e-12)
    assert float(similarity(a, b)) == pytest.approx(float(similarity(b, a)), abs=1e-12)
    assert -1 <= float(similarity(a, b)) < 0.9


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity])
def test_rotation_and_scale_change_nothing_but_a_linear_map_does(similarity: Similarity) -> None:
    a, b = gaussian(20, 7), gaussian(20, 5, seed=1)
    rotation = random_rotation(7, reflect=True)
    assert_invariant(lambda x: similarity(x, b), a, lambda x: 3e4 * x @ rotation)
    stretched = a @ torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 1, 1], dtype=torch.float64))
    assert abs(float(similarity(stretched, b) - similarity(a, b))) > 0.01


def test_translation_changes_rsa_but_not_cka_and_rescaled_inputs_change_cka_but_not_rsa() -> None:
    a, b = gaussian(20, 7), gaussian(20, 5, seed=1)
    assert_invariant(lambda x: linear_cka(x, b), a, lambda x: x + 5 * gaussian(7, seed=3))
    scales = torch.logspace(-2, 2, 20, dtype=torch.float64)[:, None]
    assert_invariant(lambda x: rsa_similarity(x, b), a, lambda x: x * scales)
    assert abs(float(rsa_similarity(a + 5, b) - rsa_similarity(a, b))) > 0.01
    assert abs(float(linear_cka(a * scales, b) - linear_cka(a, b))) > 0.01


@pytest.mark.parametrize(("p", "q"), [(4, 3), (60, 80)])
def test_cka_is_the_quotient_of_the_paper_in_gram_and_in_feature_form(p: int, q: int) -> None:
    a, b, n = gaussian(24, p), gaussian(24, q, seed=1), 24
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = h @ a @ a.T @ h, h @ b @ b.T @ h
    grams = (k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()
    x, y = h @ a, h @ b
    features = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert float(linear_cka(a, b)) == pytest.approx(float(grams), rel=1e-10)
    assert float(grams) == pytest.approx(float(features), rel=1e-10)


def test_rsa_is_the_correlation_of_cosine_matrices() -> None:
    a, b = gaussian(15, 6), gaussian(15, 2, 4, seed=1)
    cosines = []
    for each in (a.numpy(), b.flatten(1).numpy()):
        unit = each / np.linalg.norm(each, axis=1, keepdims=True)
        cosines.append((unit @ unit.T).ravel())
    expected = float(np.corrcoef(*cosines)[0, 1])
    assert float(rsa_similarity(a, b)) == pytest.approx(expected, abs=1e-12)
    assert float(rsa_distance(a, b)) == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity])
def test_gradients_are_numerical_and_orthogonal_to_the_representation(similarity: Similarity) -> None:
    a, b = gaussian(8, 5), gaussian(8, 3, seed=1)
    assert_numerical_gradient(lambda x: similarity(x, b), a)
    leaf = (1e-3 * a).requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(leaf, b), leaf)
    assert float(gradient.norm()) > 0.1
    assert abs(float((gradient * leaf.detach()).sum())) < 1e-10


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity])
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_tiny_and_huge_activations_neither_vanish_nor_overflow(similarity: Similarity, scale: float) -> None:
    a, b = gaussian(10, 6, dtype=torch.float32), gaussian(10, 4, seed=1, dtype=torch.float32)
    torch.testing.assert_close(similarity(scale * a, scale * b), similarity(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity])
@pytest.mark.parametrize("value", [0.0, 3.5])
def test_without_variation_similarity_and_gradient_are_zero(similarity: Similarity, value: float) -> None:
    a = torch.full((10, 6), value, requires_grad=True)
    result = similarity(a, gaussian(10, 4, dtype=torch.float32))
    result.backward()
    assert float(result.detach()) == 0
    assert a.grad is not None and float(a.grad.abs().max()) == 0


@pytest.mark.parametrize("shape", [(9, 3), (1, 3)])
def test_rsa_refuses_other_numbers_of_inputs(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a and b"):
        rsa_similarity(gaussian(*shape), gaussian(1 if shape[0] == 1 else 10, 3))


# Layers


def test_depth_map_has_the_values_of_the_paper() -> None:
    assert [target for _, target in depth_map(5, 24)] == [0, 6, 12, 17, 23]
    assert depth_map(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert depth_map(1, 7) == [(0, 0)]
    assert depth_map(4, 1) == [(i, 0) for i in range(4)]
    assert depth_map(5, 3) == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2)]  # 0.5 and 1.5 round to even


@pytest.mark.parametrize(("guide", "target"), [(2, 50), (50, 2), (17, 23)])
def test_ends_are_paired_with_ends_and_order_is_kept(guide: int, target: int) -> None:
    pairs = depth_map(guide, target)
    assert (pairs[0], pairs[-1]) == ((0, 0), (guide - 1, target - 1))
    assert pairs == sorted(pairs)


@pytest.mark.parametrize(("guide", "target", "name"), [(0, 3, "n_guide"), (3, 0, "n_target")])
def test_depth_map_refuses_networks_without_layers(guide: int, target: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        depth_map(guide, target)


def test_auto_takes_parametric_layers_in_the_order_they_run_without_the_last() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.second, self.first = nn.Linear(4, 2), nn.Linear(3, 4), nn.Linear(5, 3)
            self.norm, self.unused = nn.BatchNorm1d(4), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.norm(self.second(self.first(x))).relu())
            return result

    model = Backwards().eval()
    assert parametric_layers(model) == ["head", "second", "first", "unused"]
    x = torch.randn(6, 5)
    with LayerTap(model) as tap:
        output = model(x)
    assert list(tap.activations()) == ["first", "second"]
    torch.testing.assert_close(tap.activations()["second"], model.second(model.first(x)))
    assert torch.equal(output, model(x))
    with LayerTap(model, ["head"], drop_last=False) as tap:
        model(x)
    assert torch.equal(tap.activations()["head"], output)


def test_an_output_of_an_earlier_pass_is_not_kept() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, which: str) -> Tensor:
            result: Tensor = getattr(self, which)(x)
            return result

    model = Either()
    with LayerTap(model, drop_last=False) as tap:
        model(torch.ones(2, 3), "one")
        model(torch.ones(2, 3), which="two")
    assert list(tap.activations()) == ["two"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_give_their_sequence_with_the_batch_first(batch_first: bool) -> None:
    model = nn.Sequential(nn.LSTM(3, 5, batch_first=batch_first))
    x = torch.randn(7, 4, 3) if batch_first else torch.randn(4, 7, 3)
    with LayerTap(model, drop_last=False, batch_axis=0 if batch_first else 1) as tap:
        sequence, _ = model(x)
    found = tap.activations()["0"]
    assert found.shape == (7, 4, 5)
    assert torch.equal(found, sequence if batch_first else sequence.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequences_are_padded_in_the_order_of_the_batch(batch_first: bool) -> None:
    model = nn.Sequential(nn.GRU(3, 5, batch_first=batch_first))
    x, lengths = torch.randn(3, 4, 3), torch.tensor([2, 4, 3])
    given = x if batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(given, lengths, batch_first=batch_first, enforce_sorted=False)
    with LayerTap(model, drop_last=False) as tap:
        output = model(packed)[0]
    assert isinstance(output, PackedSequence)
    found = tap.activations()["0"]
    assert found.shape == (3, 4, 5)
    assert torch.equal(found[0, 2:], torch.zeros(2, 5))
    torch.testing.assert_close(found[1], model[0](x[1:2] if batch_first else x[1:2].transpose(0, 1))[0].reshape(4, 5))


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformers_are_tapped_in_eval_mode_too(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    x = torch.randn(6, 4, 3) if batch_first else torch.randn(4, 6, 3)
    with torch.no_grad(), LayerTap(model, drop_last=False, batch_axis=0 if batch_first else 1) as tap:
        output = model(x)
    found = tap.activations()
    assert "1.layers.0.self_attn" in found and "1.layers.1.linear2" in found
    assert list(found)[-1] == "1.layers.1"
    assert all(value.shape[:2] == (6, 4) for value in found.values())
    assert torch.equal(found["1.layers.1"], output if batch_first else output.transpose(0, 1))


def test_an_output_without_the_batch_is_left_out_and_does_not_disturb_the_order() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(self.a(x + self.code(torch.ones(9, 2)).mean(dim=0)))
            return result

    model = Pooled()
    with LayerTap(model) as tap:
        model(torch.randn(6, 3))
    assert list(tap.activations()) == ["a"]


def test_a_tap_refuses_what_it_cannot_tap() -> None:
    with pytest.raises(ValueError, match="has no parametric layer"):
        LayerTap(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="layers is 'all'"):
        LayerTap(nn.Linear(2, 2), "all")
    with pytest.raises(ValueError, match="'conv9'"):
        LayerTap(guide_of(), ["conv9"])


# Guidance


def test_the_loss_is_the_sum_over_pairs_of_what_is_missing_to_one() -> None:
    target, guide, x = target_of(), guide_of(), images()
    guidance = Guidance(target, guide, weight=0.7)
    output, loss = guidance(x)
    assert guidance.pairs == (("0", "1.0"), ("3", "3.0"), ("5", "4.0"))  # at 0, 1.5 (rounds to 2) and 3
    with LayerTap(target) as tap, torch.no_grad():
        same = target(x)
        mine = tap.activations()
    with LayerTap(guide.eval()) as tap, torch.no_grad():
        guide(x)
        theirs = tap.activations()
    expected = 0.7 * sum(1 - float(linear_cka(mine[t], theirs[g])) for g, t in guidance.pairs)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(output, same)
    mean = Guidance(target, guide, weight=0.7, reduction="mean")
    assert float(mean(x)[1].detach()) == pytest.approx(expected / 3, rel=1e-5)


def test_around_the_users_own_pass_it_gives_the_same_loss_and_each_pair() -> None:
    target, x = target_of(), images()
    guidance = Guidance(target, guide_of())
    _, expected = guidance(x)
    with guidance:
        for _ in range(2):
            target(x)
            loss, similarities = guidance.loss()
    torch.testing.assert_close(loss, expected)
    assert list(similarities) == [f"{g} > {t}" for g, t in guidance.pairs or ()]
    torch.testing.assert_close(sum(1 - each for each in similarities.values()), loss.detach())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in target.modules())


def test_similarities_are_measured_without_a_step_and_without_gradient() -> None:
    guidance = Guidance(target_of(), guide_of())
    found = guidance.similarities(images())
    assert guidance.step == 0
    assert all(0 < value < 1 for value in found.values())
    assert float(guidance(images())[1].detach()) == pytest.approx(sum(1 - each for each in found.values()), rel=1e-5)


def test_gradients_reach_the_target_up_to_its_last_pair_and_never_the_guide() -> None:
    target, guide = target_of(), guide_of().train()
    guidance = Guidance(target, guide)
    before = copy.deepcopy(guide.state_dict())
    guidance(images())[1].backward()
    reached = {name for name, each in target.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    assert {"1.0.weight", "2.0.weight", "3.0.weight", "4.0.weight"} <= reached
    assert not any(name.startswith("5.") for name in reached)  # the head
    assert all(each.grad is None for each in guide.parameters())
    assert not guide.training
    for name, value in guide.state_dict().items():
        assert torch.equal(value, before[name]), name
    ours = {id(each) for each in guidance.parameters()}
    assert ours == {id(each) for each in target.parameters()}
    assert not any("guide" in name for name in guidance.state_dict())


@pytest.mark.parametrize("off", ["weight", "until_step"])
def test_switched_off_it_gives_exactly_the_base_update(off: str) -> None:
    x, y = images(), torch.arange(16) % 5
    results = []
    for guided in (False, True):
        target = target_of(dropout=0.3)
        guidance = (
            Guidance(target, guide_of(), weight=0.0) if off == "weight" else Guidance(target, guide_of(), until_step=0)
        )
        optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
        torch.manual_seed(5)
        for _ in range(3):
            output, extra = guidance(x) if guided else (target(x), 0)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(output, y) + extra).backward()
            optimizer.step()
        results.append(target.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_guidance_ends_after_its_steps_and_the_count_is_saved() -> None:
    guidance, x = Guidance(target_of(), guide_of(), until_step=2), images()
    guidance.eval()
    guidance(x)
    assert guidance.step == 0  # looking is no step
    guidance.train()
    assert [float(guidance(x)[1].detach()) > 0 for _ in range(2)] == [True, True]
    other = Guidance(target_of(seed=9), guide_of(), until_step=2)
    other.load_state_dict(copy.deepcopy(guidance.state_dict()))
    assert other.step == 2
    for each in (guidance, other):
        _, loss = each(x)
        assert float(loss) == 0
        assert not loss.requires_grad
    assert torch.equal(guidance.eval().target(x), other.eval().target(x))


def test_descending_the_loss_makes_the_target_like_the_guide() -> None:
    target, x = target_of(width=32), images(32)
    guidance = Guidance(target, guide_of())
    optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
    first = sum(guidance.similarities(x).values())
    for _ in range(60):
        optimizer.zero_grad()
        guidance(x)[1].backward()
        optimizer.step()
    assert sum(guidance.similarities(x).values()) > first + 0.5


def test_named_pairs_and_any_metric_and_other_inputs_for_the_guide() -> None:
    target, guide, x = target_of(), guide_of(), images()
    guidance = Guidance(target, guide, [("3", "2.0"), ("3", "3.0")], metric=rsa_similarity)
    expected = guidance.similarities(x, guide_inputs=x.roll(1, 0))
    assert list(expected) == ["3 > 2.0", "3 > 3.0"]
    assert expected != guidance.similarities(x)
    for given in ((x.roll(1, 0),), {"input": x.roll(1, 0)}):
        assert guidance.similarities(x, guide_inputs=given) == expected


def test_tokens_are_compared_one_by_one_and_summed() -> None:
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    guide = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    x = torch.randn(10, 4, 3)
    _, loss = Guidance(target, guide, per_token=True)(x)
    a, b = target[0](x), guide[0](x)
    expected = sum(1 - linear_cka(a[:, token], b[:, token]) for token in range(4))
    torch.testing.assert_close(loss, expected)
    _, whole = Guidance(target, guide)(x)
    torch.testing.assert_close(whole, 1 - linear_cka(a, b))
    loss.backward()
    assert target[0].weight.grad is not None


def test_a_recurrent_target_is_guided_by_a_transformer() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = nn.Embedding(9, 8), nn.RNN(8, 12, 2, batch_first=True), nn.Linear(12, 9)

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.head(self.cell(self.embed(tokens))[0])
            return result

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    guide = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 9))
    guidance = Guidance(Recurrent(), guide, per_token=True)
    tokens = torch.randint(0, 9, (11, 6))
    _, loss = guidance(tokens=tokens, guide_inputs=tokens)
    loss.backward()
    assert guidance.pairs is not None and {target for _, target in guidance.pairs} == {"cell"}
    gradient = guidance.target.get_parameter("cell.weight_hh_l1").grad
    assert gradient is not None and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_of_target_and_guide_may_differ(dtype: torch.dtype) -> None:
    target, x = target_of().to(dtype), images().to(dtype)
    guidance = Guidance(target, guide_of())
    _, loss = guidance(x, guide_inputs=x.float())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert all(torch.isfinite(each.grad).all() for each in target.parameters() if each.grad is not None)


def test_under_autocast_similarities_are_in_single_precision() -> None:
    target, x = target_of(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, loss = Guidance(target, guide_of())(x)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(Guidance(target, guide_of())(x)[1].detach()), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"weight": -1.0}, "weight is -1.0"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"until_step": -1}, "until_step is -1"),
        ({"pairs": "all"}, "pairs is 'all'"),
        ({"pairs": []}, "pairs is empty"),
        ({"pairs": ["ab"]}, "pairs holds 'ab'"),
        ({"pairs": [("0", "nowhere")]}, "'nowhere', which is no layer of the target"),
        ({"pairs": [("nowhere", "1.0")]}, "'nowhere', which is no layer of the guide"),
    ],
    ids=["reduction", "weight", "nan", "until_step", "pairs", "empty", "text", "target layer", "guide layer"],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(target_of(), guide_of(), **settings)


def test_misuse_is_named() -> None:
    target, guide = target_of(), guide_of()
    with pytest.raises(ValueError, match="guide is the target itself"):
        Guidance(target, target)
    guidance = Guidance(target, guide)
    with guidance, pytest.raises(ValueError, match="the target has not run"):
        guidance.loss()
    with guidance, pytest.raises(ValueError, match="open already"):
        guidance(images())
    with pytest.raises(ValueError, match="as many inputs, got 8 and 16"):
        guidance(images(), guide_inputs=images(8))
    with pytest.raises(ValueError, match="target ran no two parametric layers"):
        Guidance(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), guide)(images())
    tokens = Guidance(
        nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), per_token=True
    )
    with pytest.raises(ValueError, match="as many tokens in both layers, got 4 and 5"):
        tokens(torch.randn(6, 5, 3), guide_inputs=torch.randn(6, 4, 3))


# The study


def test_networks_have_the_depths_that_are_compared() -> None:
    size = Size.of(Scale.LAPTOP)
    deep = make_target("deep", Scale.LAPTOP, 64, 10)
    assert len(parametric_layers(deep)) == size.depth + 1
    convolutional, connected = convolutional_guide(Scale.LAPTOP, 10), connected_guide(Scale.LAPTOP, 64, 10)
    assert len(parametric_layers(convolutional)) == len(parametric_layers(connected))
    x = torch.randn(4, 1, 8, 8)
    assert convolutional(x).shape == connected(x).shape == deep(x).shape == (4, 10)


def test_batches_are_the_same_for_every_arm_and_cover_the_images() -> None:
    data, _ = load_images(Scale.SMOKE)
    assert isinstance(data, LabelledImages)
    first, second = (shuffled_batches(data, 32, 3)(0) for _ in range(2))
    epoch = [next(first) for _ in range(2)]
    assert all(torch.equal(mine[0], next(second)[0]) for mine in epoch)
    assert sorted(torch.cat([labels for _, labels in epoch]).tolist()) == sorted(data.labels.tolist())


def test_wrong_labels_are_wrong_and_as_many_as_asked_for() -> None:
    data, _ = load_images(Scale.LAPTOP)
    noisy = with_wrong_labels(data, 0.2, 7)
    assert 0.12 < float((noisy.labels != data.labels).double().mean()) < 0.28
    assert torch.equal(with_wrong_labels(data, 0.2, 7).labels, noisy.labels)
    assert (with_wrong_labels(data, 1.0, 7).labels != data.labels).all()
    assert int(noisy.labels.min()) >= 0 and int(noisy.labels.max()) <= 9


def test_a_watched_target_looks_at_equal_distances_and_shuffles_only_the_guides_images() -> None:
    data, test = load_images(Scale.SMOKE)
    assert isinstance(data, LabelledImages)
    x, y = data.images[:16], data.labels[:16]
    torch.manual_seed(0)
    target, guide = fully_connected(64, [16, 16], 10), convolutional_guide(Scale.SMOKE, 10)
    straight, shuffled = (Watched(Guidance(target, guide), test, 4, 2, shuffled=each)(x, y) for each in (False, True))
    assert float(shuffled.detach()) > float(straight.detach())  # the task's loss is the same
    watched = Watched(Guidance(target, guide), test, 4, 2)
    for _ in range(4):
        watched(x, y)
    assert torch.isfinite(watched.looked[0]).all() and torch.isnan(watched.looked[1]).all()
    watched.look()
    assert watched.looked[1].tolist() == pytest.approx(list(evaluate(target, test)))
    assert target.training


def test_a_trial_measures_everything_and_repeats_itself() -> None:
    prepared = train_guide(4, Scale.SMOKE)
    for arm in ("untrained", "base"):
        trial = Trial(arm, 4, Scale.SMOKE, {"learning rate": 1e-3})
        first, second = (train(trial, copy.deepcopy(prepared)) for _ in range(2))
        assert set(study.measures) <= set(first)
        for name, value in first.items():
            assert np.array_equal(value, second[name]), name
        assert 0 <= first[ACCURACY] <= 1 <= first[RISE]


def test_paper_scale_reads_folders_and_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="imagenet"):
        load_images(Scale.PAPER)
    for part in ("train", "val"):
        for label, name in enumerate(("n01", "n02")):
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((300, 240, 3), 100 * label + number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / "imagenet" / part / name / f"{number}.png")
    data, test = load_images(Scale.PAPER)
    assert (len(data), len(test)) == (4, 4)
    assert some_images(test, 2).shape == (2, 3, 224, 224)
    assert data.labels.tolist() == [0, 0, 1, 1]
