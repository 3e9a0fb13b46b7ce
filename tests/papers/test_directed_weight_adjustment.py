"""Directed weight adjustment: what it does to weights and gives back, batch statistics, synthesis, bad input."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.directed_weight_adjustment import (
    BNStatistics,
    directed_weight_adjustment,
    distill,
    diversity,
    roll,
    soft_label_loss,
    soft_labels,
    synthesize,
)


def teacher(channels: int = 1, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """An untrained network whose running statistics are those of some batches."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip
    for _ in range(20):
        model(torch.randn(16, channels, 8, 8, dtype=dtype))
    return model


def batch(samples: int = 9, channels: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(samples, channels, 8, 8, generator=generator).to(dtype), torch.arange(samples) % 3


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    assert before["flags"] == after["flags"] and before["modes"] == after["modes"]
    assert all(torch.equal(before["values"][name], value) for name, value in after["values"].items())


def distance(model: nn.Module, before: dict[str, Any]) -> float:
    moved = [(p - before["values"][name]).flatten() for name, p in model.named_parameters()]
    return float(torch.linalg.vector_norm(torch.cat(moved)))


# The adjustment


@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_the_weights_move_by_rho_at_most_and_by_rho_in_one_step(steps: int, rho: float) -> None:
    model, (images, labels) = teacher(dtype=torch.float64), batch(dtype=torch.float64)
    before = state(model)
    with directed_weight_adjustment(model, images, labels, rho, steps):
        moved = distance(model, before)
    assert moved <= rho * (1 + 1e-9)
    assert moved > rho / 2
    if steps == 1:
        assert moved == pytest.approx(rho, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_length_does_not_depend_on_the_size_of_the_loss(scale: float) -> None:
    model, (images, labels) = teacher(dtype=torch.float64), batch(dtype=torch.float64)
    before = state(model)
    with directed_weight_adjustment(
        model, images, labels, 0.1, 1, criterion=lambda x, y: scale * F.cross_entropy(x, y)
    ):
        assert distance(model, before) == pytest.approx(0.1, rel=1e-6)


def test_the_images_loss_rises_by_rho_times_the_gradients_norm() -> None:
    model, (images, labels) = teacher(dtype=torch.float64).eval(), batch(dtype=torch.float64)
    loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
    rho, loss = 1e-4, loss.detach()
    with directed_weight_adjustment(model, images, labels, rho, 1):
        risen = float(F.cross_entropy(model(images), labels) - loss)
    assert risen == pytest.approx(rho * norm, rel=1e-2)
    with directed_weight_adjustment(model, images, labels, rho, 1, direction="random"):
        assert abs(float(F.cross_entropy(model(images), labels) - loss)) < risen / 2


def test_a_random_direction_has_the_same_length_and_its_own_seed() -> None:
    model, (images, labels) = teacher(dtype=torch.float64), batch(dtype=torch.float64)
    before, seen = state(model), []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        with directed_weight_adjustment(model, images, labels, 0.3, direction="random", generator=generator):
            assert distance(model, before) == pytest.approx(0.3, rel=1e-6)
            seen.append(next(model.parameters()).detach().clone())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("direction", ["ascent", "random", "none"])
@pytest.mark.parametrize("broken", [False, True])
def test_everything_is_given_back_bit_for_bit(direction: Any, broken: bool) -> None:
    model, (images, labels) = teacher(), batch()
    model[0].weight.requires_grad_(False)
    model[4].eval()
    before = state(model)

    def use() -> None:
        with directed_weight_adjustment(model, images, labels, 0.7, 3, direction=direction, jitter=2) as adjusted:
            assert not any(module.training for module in adjusted.modules())
            assert not any(p.requires_grad for p in adjusted.parameters())
            adjusted.train()
            adjusted(images)  # even what the caller does to running statistics is undone
            if broken:
                raise KeyError("in the middle")

    if broken:
        with pytest.raises(KeyError):
            use()
    else:
        use()
    assert_same(model, before)


def test_a_criterion_that_fails_leaves_the_model_alone() -> None:
    model, (images, labels) = teacher(), batch()
    before = state(model)

    def fails(_logits: Tensor, _labels: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    with (
        pytest.raises(RuntimeError, match="no loss"),
        directed_weight_adjustment(model, images, labels, criterion=fails),
    ):
        pytest.fail("the context must not begin")
    assert_same(model, before)


# Batch statistics


def test_statistics_that_match_cost_nothing_and_have_a_gradient() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2)).double()
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(x.mean(0))
    norm.running_var.copy_(x.var(0, correction=0))
    model.eval()
    x.requires_grad_(True)
    with BNStatistics(model, r_var=11) as statistics:
        model(x)
        loss = statistics.loss()
        assert loss.item() < 1e-12
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(gradient).all()


def test_the_loss_is_the_formula() -> None:
    model, (images, _) = teacher().eval(), batch()
    seen: list[Tensor] = []
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with BNStatistics(model, r_var=3.0, first_multiplier=10.0) as statistics:
        model(images)
        found = statistics.loss().item()
    parts = []
    for norm, x in zip(norms, seen, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        flat = x.movedim(1, 0).flatten(1)
        mean = (norm.running_mean - flat.mean(1)).square().sum().sqrt()
        variance = (norm.running_var - flat.var(1, correction=0)).square().sum().sqrt()
        parts.append((mean + 3 * variance).item())
    assert found == pytest.approx(10 * parts[0] + parts[1], rel=1e-5)


def test_hooks_are_taken_away() -> None:
    model, (images, _) = teacher().eval(), batch()
    with BNStatistics(model) as statistics:
        model(images)
        first = statistics.loss().item()
    model(images * 5)
    assert statistics.loss().item() == first
    assert all(not module._forward_pre_hooks for module in model.modules())


# Synthesis


def objective(model: nn.Module, images: Tensor, labels: Tensor, r_bn: float, r_var: float) -> float:
    with BNStatistics(model, r_var) as statistics, torch.no_grad():
        loss = F.cross_entropy(model(images), labels)
        return float(loss + r_bn * statistics.loss())


def test_without_adjustment_it_lowers_the_plain_objective() -> None:
    model, (images, labels) = teacher().eval(), batch()
    made = synthesize(model, images, labels, 60, r_var=1.0, rho=0.0, jitter=0, lr=0.05)
    assert objective(model, made, labels, 0.01, 1.0) < objective(model, images, labels, 0.01, 1.0) - 0.05
    before = images.clone()
    # One step by hand: Adam's first step is the sign of the gradient times the learning rate.
    x = images.clone().requires_grad_(True)
    with BNStatistics(model, 1.0) as statistics:
        loss = F.cross_entropy(model(x), labels) + 0.01 * statistics.loss()
        (gradient,) = torch.autograd.grad(loss, x)
    one = synthesize(model, images, labels, 1, r_var=1.0, rho=0.0, jitter=0, lr=0.05)
    large = gradient.abs() > 1e-5
    torch.testing.assert_close((images - one)[large], (0.05 * gradient.sign())[large], rtol=1e-2, atol=1e-4)
    assert torch.equal(images, before) and not made.requires_grad


def test_the_adjustment_changes_what_is_made_and_the_model_stays() -> None:
    model, (images, labels) = teacher(), batch()
    before = state(model)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    plain, adjusted = (
        synthesize(model, images, labels, 5, rho=rho, generator=generator)
        for rho, generator in zip((0.0, 0.5), generators, strict=True)
    )
    assert_same(model, before)
    assert not torch.equal(plain, adjusted)


def test_pixels_stay_in_bounds_channel_by_channel() -> None:
    model, (images, labels) = teacher(channels=3), batch(channels=3)
    low, high = torch.tensor([-1.0, -0.5, 0.0]).view(3, 1, 1), torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    made = synthesize(model, images, labels, 4, bounds=(low, high))
    assert bool((made >= low).all()) and bool((made <= high).all())
    assert float(made[:, 2].max()) == pytest.approx(0.2)


def test_batches_are_independent_of_one_another() -> None:
    model, (images, labels) = teacher(), batch(30)
    options: dict[str, Any] = {"iterations": 3, "rho": 0.4, "steps": 2, "seed": 5}
    both, _ = distill(model, images, labels, 4, images_per_batch=2, **options)
    first, _ = distill(model, images, labels, 2, images_per_batch=2, **options)
    both, first = both.unflatten(0, (3, 4)), first.unflatten(0, (3, 2))
    assert torch.equal(both[:, :2], first)
    assert not torch.equal(both[:, 2:], both[:, :2])


@pytest.mark.parametrize(("per_batch", "classes"), [(1, 100), (3, 2), (2, 1)])
def test_a_distilled_set_has_so_many_images_of_each_class_in_range(per_batch: int, classes: int) -> None:
    model, (images, labels) = teacher(), batch(30)
    seen: list[int] = []
    made, given = distill(
        model, images, labels, 3, images_per_batch=per_batch, classes_per_batch=classes, iterations=2,
        progress=seen.append,
    )  # fmt: skip
    assert made.shape == (9, 1, 8, 8) and given.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert float(made.min()) >= float(images.min()) and float(made.max()) <= float(images.max())
    assert seen[-1] == 9 and seen == sorted(seen)


def test_without_iterations_a_distilled_set_is_real_images() -> None:
    model, (images, labels) = teacher(), batch(30)
    made, given = distill(model, images, labels, 2, iterations=0)
    for image, label in zip(made, given, strict=True):
        same = (images == image).flatten(1).all(1)
        assert int(same.sum()) == 1 and int(labels[same]) == int(label)
    noise, _ = distill(model, images, labels, 2, iterations=0, noise=True, bounds=(-9.0, 9.0))
    assert not any(bool((images == image).flatten(1).all(1).any()) for image in noise)


# Labels and diversity


def test_soft_labels_are_the_teachers_and_its_mode_stays() -> None:
    model, (images, _) = teacher(), batch()
    before = state(model)
    found = soft_labels(model, images, 4.0)
    torch.testing.assert_close(found.sum(1), torch.ones(len(images)))
    assert torch.equal(found, soft_labels(model, images, 4.0)), "no dropout"
    assert_same(model, before)
    torch.testing.assert_close(found, F.softmax(model.eval()(images) / 4, dim=1))
    assert float(soft_labels(model, images, 1e6).std()) < 1e-5


def test_the_loss_is_zero_at_the_teacher_and_its_gradient_keeps_its_size() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sizes = []
    for temperature in (50.0, 200.0):
        soft = F.softmax(target / temperature, dim=1)
        assert soft_label_loss(target, soft, temperature).item() == pytest.approx(0, abs=1e-10)
        x = logits.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(soft_label_loss(x, soft, temperature), x)
        sizes.append(float(gradient.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    x = logits.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: soft_label_loss(z, F.softmax(target / 3, 1), 3.0), x)


def test_diversity_is_the_mean_over_pairs() -> None:
    features = torch.randn(11, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 3, 3, 3, 4])
    by_class = []
    for c in (0, 1, 3):
        own = features[labels == c]
        pairs = [1 - float(F.cosine_similarity(own[i], own[j], dim=0)) for i in range(len(own)) for j in range(i)]
        by_class.append(sum(pairs) / len(pairs))
    assert float(diversity(features, labels)) == pytest.approx(sum(by_class) / 3)
    assert float(diversity(features[:1].expand(4, -1), torch.zeros(4, dtype=torch.int64))) == pytest.approx(0, abs=1e-9)
    assert float(diversity(3.7 * features, labels)) == pytest.approx(float(diversity(features, labels)))


def test_a_roll_is_one_shift_within_its_limits() -> None:
    image = torch.zeros(2, 1, 8, 8)
    image[..., 0, 0] = 1
    seen = set()
    for seed in range(60):
        moved = roll(image, 2, torch.Generator().manual_seed(seed))
        places = moved.nonzero()[:, 2:].tolist()
        assert places[0] == places[1]
        seen.add(tuple(places[0]))
    assert seen == {(down, right) for down in range(3) for right in range(3)}
    assert roll(image, 0) is image


# Dtypes and bad input


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, (images, labels) = teacher(dtype=dtype), batch(dtype=dtype)
    made = synthesize(model, images, labels, 3, rho=0.1, steps=2)
    assert made.dtype == dtype and bool(torch.isfinite(made).all())


def bad_calls() -> Iterator[tuple[str, Any]]:
    model, (images, labels) = teacher(), batch()
    yield "rho is -1", lambda: directed_weight_adjustment(model, images, labels, -1).__enter__()
    yield "steps is 0", lambda: directed_weight_adjustment(model, images, labels, steps=0).__enter__()
    yield (
        "direction is 'up'",
        lambda: directed_weight_adjustment(
            model,
            images,
            labels,
            direction="up",  # type: ignore[arg-type]
        ).__enter__(),
    )
    yield r"labels has shape \(4,\)", lambda: synthesize(model, images, labels[:4])
    yield "dtype torch.float32; expected", lambda: synthesize(model, images, labels.float())
    yield "labels holds -1", lambda: synthesize(model, images, labels - 1)
    yield "no batch normalisation", lambda: BNStatistics(nn.Linear(2, 2))
    yield "no batch normalisation", lambda: BNStatistics(nn.BatchNorm1d(3, track_running_stats=False))
    yield "r_var and first_multiplier are -1", lambda: BNStatistics(model, -1)
    yield "no forward pass yet", lambda: BNStatistics(copy.deepcopy(model)).loss()
    yield "iterations, lr and r_bn are -1, ", lambda: synthesize(model, images, labels, -1)
    yield "ipc, images_per_batch and classes_per_batch are 0, 1", lambda: distill(model, images, labels, 0)
    yield "class 0 has 3 images; expected at least ipc = 4", lambda: distill(model, images, labels, 4)
    yield "most is -1", lambda: roll(images, -1)
    yield "temperature is 0", lambda: soft_labels(model, images, 0)
    yield r"targets has shape \(2, 2\)", lambda: soft_label_loss(torch.ones(3, 2), torch.ones(2, 2))
    yield "no class has two images", lambda: diversity(images[:3], labels[:3])


@pytest.mark.parametrize("number", range(17))
def test_bad_arguments_are_named(number: int) -> None:
    message, call = list(bad_calls())[number]
    with pytest.raises(ValueError, match=message):
        call()
