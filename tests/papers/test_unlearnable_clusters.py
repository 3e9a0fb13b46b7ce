"""Unlearnable Clusters: budgets, one pattern a cluster, the loss, what must stay as it was, bad input."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.unlearnable_clusters import (
    DirectNoise,
    NoiseGenerator,
    PenultimateFeatures,
    UnlearnableClusters,
    cluster_kl_loss,
    clustered_targets,
    error_minimizing_noise,
)


def surrogate(channels: int = 1) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )  # fmt: skip


def pictures(samples: int = 30, channels: int = 1, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Images of three kinds, which k-means can tell apart, away from 0 and 1."""
    generator = torch.Generator().manual_seed(5)
    x = torch.zeros(samples, channels, 8, 8)
    x[0::3, :, :4] = 1
    x[1::3, :, :, :4] = 1
    x[2::3, :, 2:6, 2:6] = 1
    x = (x + 0.2 * torch.rand(x.shape, generator=generator)) / 1.2
    return low + (high - low) * x


def direct(shape: tuple[int, int, int]) -> nn.Module:
    return DirectNoise(shape)


def protector(**settings: Any) -> UnlearnableClusters:
    defaults: dict[str, Any] = {
        "clusters": 3, "epochs": 4, "lr": 0.05, "generator": direct, "epsilon": 0.1, "weight_decay": 0.0
    }  # fmt: skip
    return UnlearnableClusters(surrogate(), **(defaults | settings))


# The loss


def test_the_loss_is_zero_only_at_the_centre_and_knows_no_offset() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    center = torch.randn(5, generator=generator, dtype=torch.float64)
    loss = cluster_kl_loss(features, center)
    assert float(loss) > 0
    assert float(cluster_kl_loss(center + 3 * torch.ones(4, 5, dtype=torch.float64), center)) == pytest.approx(
        0, abs=1e-12
    )
    torch.testing.assert_close(cluster_kl_loss(features + 7, center - 2), loss)
    assert float(cluster_kl_loss(2 * features, center)) != pytest.approx(float(loss))
    p, q = F.softmax(center, 0), F.softmax(features, 1)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(1).mean())
    rows = features.flip(0)
    torch.testing.assert_close(
        cluster_kl_loss(features, rows), torch.stack([cluster_kl_loss(features[[i]], rows[i]) for i in range(6)]).mean()
    )
    assert torch.autograd.gradcheck(lambda x: cluster_kl_loss(x, center), features.requires_grad_(True))


@pytest.mark.parametrize(("clusters", "offset"), [(2, 1), (10, 1), (7, 3), (5, -2), (4, 9)])
def test_no_cluster_is_its_own_target(clusters: int, offset: int) -> None:
    targets = clustered_targets(clusters, offset)
    assert sorted(targets.tolist()) == list(range(clusters))
    assert not bool((targets == torch.arange(clusters)).any())


# The protector


@pytest.mark.parametrize("bound", ["clamp", "tanh"])
@pytest.mark.parametrize("scope", ["cluster", "all"])
def test_images_change_by_epsilon_at_most_and_stay_images(bound: Any, scope: Any) -> None:
    images = pictures(low=0.0, high=1.0)
    made = protector(bound=bound, scope=scope, epsilon=16 / 255, lr=0.5).fit(images)
    protected = made.protect(images, made.assignments_)
    assert float((protected - images).abs().max()) <= 16 / 255 + 1e-7
    assert float(protected.min()) >= 0 and float(protected.max()) <= 1
    assert float(made.noise_.abs().max()) > 4 / 255


def test_images_of_a_cluster_get_one_pattern_and_clusters_different_ones() -> None:
    images = pictures()
    made = protector().fit(images)
    assert len(set(made.assignments_.tolist())) == 3
    difference = made.protect(images, made.assignments_) - images
    for k in range(3):
        own = difference[made.assignments_ == k]
        torch.testing.assert_close(own, made.noise_[k].expand_as(own))
        assert not torch.allclose(made.noise_[k], made.noise_[(k + 1) % 3])
    # New images go to the nearest centre; the fitted ones are their own nearest.
    assert torch.equal(made.assign(images), made.assignments_)
    torch.testing.assert_close(made.protect(images), images + difference)


def test_the_patterns_pull_features_towards_the_wrong_centre() -> None:
    images = pictures(60)
    made = protector(epochs=60, epsilon=0.3, lr=0.05, bound="tanh").fit(images)
    assert bool((made.losses_[:, 1] < 0.8 * made.losses_[:, 0]).all())
    features = made.features.eval()
    for k in range(3):
        own = images[made.assignments_ == k]
        center = made.centers_[made.targets[k]]
        with torch.no_grad():
            before = cluster_kl_loss(features(own), center)
            after = cluster_kl_loss(features((own + made.noise_[k]).clamp(0, 1)), center)
        assert float(after) < 0.8 * float(before)


def test_the_surrogate_stays_and_the_seed_decides() -> None:
    images, model = pictures(), surrogate()
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]

    def fit(seed: int) -> Tensor:
        torch.manual_seed(int(torch.randint(1000, ())))  # the global generator must not matter
        return UnlearnableClusters(model, 3, 0.1, generator=direct, epochs=2, lr=0.05, seed=seed).fit(images).noise_

    assert torch.equal(fit(1), fit(1)) and not torch.equal(fit(1), fit(2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()] and modes == [m.training for m in model.modules()]


def test_the_order_of_images_does_not_matter_to_the_patterns() -> None:
    images = pictures()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    first, second = (protector(scope="all", batch_size=len(images)).fit(x) for x in (images, images[order]))
    # Clusters have no order of their own: match them by their centres.
    match = torch.cdist(first.centers_, second.centers_).argmin(1)
    assert sorted(match.tolist()) == [0, 1, 2]
    assert torch.equal(match[first.assignments_][order], second.assignments_)


def test_decay_that_wipes_a_pattern_out_can_be_left_away() -> None:
    sizes = [
        float(protector(epochs=80, weight_decay=decay, bound="tanh").fit(pictures()).noise_.abs().mean())
        for decay in (0.0, 0.1)
    ]
    assert sizes[0] > 3 * sizes[1]


def test_an_l2_budget() -> None:
    made = protector(norm="l2", epsilon=0.7).fit(pictures())
    torch.testing.assert_close(torch.linalg.vector_norm(made.noise_.flatten(1), dim=1), torch.full((3,), 0.7))


def test_clamping_stops_the_gradient_where_tanh_does_not() -> None:
    raw = torch.full((1, 1, 2, 2), 2.0, requires_grad=True)
    for bound, moves in (("clamp", False), ("tanh", True)):
        (gradient,) = torch.autograd.grad(protector(bound=bound)._bounded(raw).sum(), raw)
        assert bool((gradient > 0).all()) == moves


def test_augmentation_sees_every_batch() -> None:
    seen: list[tuple[int, ...]] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(tuple(x.shape))
        return x.flip(-1)

    protector(epochs=2, batch_size=4, scope="all", augment=augment).fit(pictures(10))
    assert len(seen) == 3 * 2 * 3 and seen[0] == (4, 1, 8, 8)


# Generators and features


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 17, 22), (2, 32, 20)])
def test_generators_keep_the_size_and_pass_gradients(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    z = torch.rand(1, *shape)
    for module in (NoiseGenerator(shape[0], width=4, blocks=2), DirectNoise(shape)):
        out = module(z)
        assert out.shape == z.shape
        out.square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    # The generator starts inside the bound of 16/255 for most pixels.
    assert float((NoiseGenerator(3, width=16)(torch.rand(1, 3, 32, 32)).tanh().abs() < 16 / 255).float().mean()) > 0.5


def test_the_whole_method_with_its_default_generator() -> None:
    images = F.interpolate(pictures(12, channels=3), scale_factor=2)
    made = UnlearnableClusters(
        surrogate(3), 2, generator=lambda shape: NoiseGenerator(shape[0], 4, 1), epochs=2, lr=1e-3, batch_size=6
    ).fit(images)
    assert made.noise_.shape == (2, 3, 16, 16) and bool(torch.isfinite(made.noise_).all())


def test_penultimate_features_are_what_the_head_gets() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    features = PenultimateFeatures(model, "3")
    x = pictures(4)
    assert torch.equal(features(x), model[:3](x))
    assert not model[3]._forward_pre_hooks
    x.requires_grad_(True)
    features(x).sum().backward()
    assert x.grad is not None


# Noise that needs labels


def classifier() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("kind", ["class", "sample"])
def test_error_minimizing_noise_makes_images_easy(kind: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3  # nothing to learn at all
    noise = error_minimizing_noise(images, labels, classifier, 0.15, kind, lr=0.05, max_rounds=20, seed=4)
    assert noise.shape == images.shape and float(noise.abs().max()) <= 0.15 + 1e-7
    torch.manual_seed(9)
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = {}
    for name, x in (("noisy", (images + noise).clamp(0, 1)), ("plain", images)):
        torch.manual_seed(9)
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(10):
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["noisy"] < 0.8 * losses["plain"]
    if kind == "class":
        assert all(bool((noise[labels == c] == noise[labels == c][0]).all()) for c in range(3))
    else:
        assert not torch.equal(noise[0], noise[3])
    again = error_minimizing_noise(images, labels, classifier, 0.15, kind, lr=0.05, max_rounds=20, seed=4)
    assert torch.equal(noise, again)


# Dtypes and bad input


def test_float64() -> None:
    images = pictures().double()
    made = UnlearnableClusters(surrogate().double(), 3, generator=direct, epochs=2).fit(images)
    assert made.noise_.dtype == torch.float64 and made.protect(images).dtype == torch.float64


def bad_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    images, labels = pictures(), torch.arange(30) % 3
    yield "offset is 0; expected no multiple", lambda: protector(offset=0)
    yield "offset is 3; expected no multiple", lambda: protector(offset=3)
    yield "clusters is 1", lambda: protector(clusters=1)
    yield "scope is 'some'", lambda: protector(scope="some")
    yield "norm is 'l1'", lambda: protector(norm="l1")
    yield "bound is 'hard'", lambda: protector(bound="hard")
    yield "epsilon, lr and weight_decay are -1", lambda: protector(epsilon=-1)
    yield "epochs and batch_size are 0 and 256", lambda: protector(epochs=0)
    yield "has values from 0.4.* to 1.6; expected 0 to 1", lambda: protector().fit(images * 2)
    yield r"images has shape \(30, 8\)", lambda: protector().fit(images[:, 0, 0])
    yield "at least one for each of 3", lambda: protector().fit(images[:2])
    yield "nothing was fitted yet", lambda: protector().protect(images)
    yield r"assignments has shape \(30,\)", lambda: protector().fit(images).protect(images[:5], torch.zeros(30).long())
    yield "expected images of", lambda: protector().fit(images).protect(images[..., :4], torch.zeros(30).long())
    yield "head is 'fc', which is no layer", lambda: PenultimateFeatures(classifier())
    yield r"expected \(N, d\) and \(d,\)", lambda: cluster_kl_loss(torch.ones(3, 2), torch.ones(3))
    yield "channels, width and blocks are 1, 0", lambda: NoiseGenerator(1, 0)
    yield "last_gain is 0", lambda: NoiseGenerator(1, last_gain=0)
    yield r"shape is \(1, 0, 2\)", lambda: DirectNoise((1, 0, 2))
    yield (
        "kind is 'both'",
        lambda: error_minimizing_noise(
            images,
            labels,
            classifier,
            kind="both",  # type: ignore[arg-type]
        ),
    )
    yield r"labels has shape \(29,\)", lambda: error_minimizing_noise(images, labels[1:], classifier)
    yield "epsilon is 0", lambda: error_minimizing_noise(images, labels, classifier, 0)
    yield (
        "model_steps, max_rounds and batch_size are 0",
        lambda: error_minimizing_noise(images, labels, classifier, model_steps=0),
    )


@pytest.mark.parametrize("number", range(23))
def test_bad_arguments_are_named(number: int) -> None:
    message, call = list(bad_calls())[number]
    with pytest.raises(ValueError, match=message):
        call()
