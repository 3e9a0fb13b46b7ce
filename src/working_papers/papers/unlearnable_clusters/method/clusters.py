"""The protector: clusters of images, and one pattern a cluster that makes them look like another cluster.

Letters: N = images, p = clusters, d = features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.unlearnable_clusters.method.generators import NoiseGenerator

Scope = Literal["cluster", "all"]
Norm = Literal["linf", "l2"]
Bound = Literal["clamp", "tanh"]
MakeGenerator = Callable[[tuple[int, int, int]], nn.Module]
Augment = Callable[[Tensor, torch.Generator], Tensor]


def cluster_kl_loss(features: Tensor, centers: Tensor) -> Tensor:
    """How far features are from a centre: KL(softmax(centre) ‖ softmax(features)), mean over the images.

    The softmax is over the d coordinates of the features, which are not logits; adding a number to all of them changes
    nothing.

    Args:
        features: (N, d).
        centers: (d,), or (N, d) for one an image.

    Returns:
        A scalar, 0 or more.

    Raises:
        ValueError: shapes that do not fit.

    Source: equation 5 of the paper; the official code's KLDivLoss.
    """
    if features.ndim != 2 or centers.shape[-1] != features.shape[1] or centers.ndim not in (1, 2):
        raise ValueError(
            f"features and centers have shapes {tuple(features.shape)} and {tuple(centers.shape)}; "
            "expected (N, d) and (d,) or (N, d)"
        )
    target = F.softmax(centers, dim=-1).expand_as(features)
    return F.kl_div(F.log_softmax(features, dim=-1), target, reduction="batchmean")


def clustered_targets(clusters: int, offset: int = 1) -> Tensor:
    """To which cluster each one's pattern pulls: (k + offset) mod p, never itself.

    Args:
        clusters: p, 2 or more.
        offset: 1 in the paper.

    Returns:
        (p,) int64, a permutation without fixed points.

    Raises:
        ValueError: an offset by which clusters would keep their place, or fewer than two clusters.
    """
    if clusters < 2:
        raise ValueError(f"clusters is {clusters}; expected at least 2")
    if offset % clusters == 0:
        raise ValueError(f"offset is {offset}; expected no multiple of the {clusters} clusters")
    return (torch.arange(clusters) + offset) % clusters


class PenultimateFeatures(nn.Module):
    """A classifier as feature extractor: what goes into its last layer.

    Args:
        model: the classifier.
        head: name of the layer whose input is wanted, such as "fc", as in `model.named_modules()`.

    Shapes:
        input as the model's, output (N, d).

    Raises:
        ValueError: there is no such layer.

    Source: the official code's hook on the input of `fc`.
    """

    def __init__(self, model: nn.Module, head: str = "fc") -> None:
        super().__init__()
        if head not in dict(model.named_modules()) or not head:
            names = ", ".join(name for name, _ in list(model.named_children())[-3:])
            raise ValueError(f"head is {head!r}, which is no layer of the model; expected a name such as {names}")
        self.model, self.head = model, head

    def forward(self, *inputs: Any) -> Tensor:
        """Features (N, d) of a batch."""
        seen: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.append(given[0])

        hook = self.model.get_submodule(self.head).register_forward_pre_hook(keep)
        try:
            self.model(*inputs)
        finally:
            hook.remove()
        return seen[-1].flatten(1)


class UnlearnableClusters:
    """Makes images unlearnable without knowing any labels.

    Args:
        features: surrogate from images (N, C, H, W) in [0, 1] to features (N, d); it does its own resizing and
            normalisation, is used in evaluation mode and never changed.
        clusters: p.
        epsilon: budget: of a pixel for "linf", of the whole pattern for "l2".
        offset: the pattern of cluster k pulls to cluster (k + offset) mod p.
        generator: makes the module of a pattern from (C, H, W); by default `NoiseGenerator`.
        scope: train a cluster's pattern on its own images, as the paper describes, or on "all" images, as the official
            code does at p times the cost.
        norm: of the budget.
        bound: how a generator's output g becomes a pattern within an l-infinity budget: "clamp", tanh g cut off at
            ±ε as in the official code, or "tanh", ε tanh g, which never loses its gradient.
        epochs: passes over the images of a pattern.
        lr: of Adam, falling along a cosine to a hundredth.
        weight_decay: of Adam, 5e-4 in the official code, where it acts on a generator's weights. Give 0 for
            `DirectNoise`: the loss is so flat that the decay would wipe the pattern itself out.
        batch_size: images a step.
        augment: of images (N, C, H, W) with a generator, before the pattern is added; the paper crops and flips.
        seed: of everything.

    Attributes:
        assignments_: (N,) int64, clusters of the images that were fitted.
        centers_: (p, d).
        noise_: (p, C, H, W).
        losses_: (p, 2), each pattern's loss in its first and in its last epoch.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Source: algorithm 1 of the paper and its official code.

    Example:
        >>> protector = UnlearnableClusters(PenultimateFeatures(resnet50, "fc")).fit(images)
        >>> to_publish = protector.protect(images)
    """

    assignments_: Tensor
    centers_: Tensor
    noise_: Tensor
    losses_: Tensor

    def __init__(
        self,
        features: nn.Module,
        clusters: int = 10,
        epsilon: float = 16 / 255,
        offset: int = 1,
        generator: MakeGenerator | None = None,
        scope: Scope = "cluster",
        norm: Norm = "linf",
        bound: Bound = "clamp",
        epochs: int = 50,
        lr: float = 1e-4,
        weight_decay: float = 5e-4,
        batch_size: int = 256,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.targets = clustered_targets(clusters, offset)
        for name, value, allowed in (("scope", scope, Scope), ("norm", norm, Norm), ("bound", bound, Bound)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(allowed))}")
        if not epsilon > 0 or not lr > 0 or not weight_decay >= 0:
            raise ValueError(
                f"epsilon, lr and weight_decay are {epsilon}, {lr} and {weight_decay}; expected positive numbers, 0 "
                "or more for the last"
            )
        if min(epochs, batch_size) < 1:
            raise ValueError(f"epochs and batch_size are {epochs} and {batch_size}; expected at least 1")
        self.features, self.clusters, self.epsilon = features, clusters, float(epsilon)
        self.generator: MakeGenerator = generator or (lambda shape: NoiseGenerator(shape[0]))
        self.scope, self.norm, self.bound = scope, norm, bound
        self.epochs, self.lr, self.weight_decay, self.batch_size = epochs, lr, weight_decay, batch_size
        self.augment, self.seed = augment, seed

    def fit(self, images: Tensor, progress: Callable[[int], None] | None = None) -> UnlearnableClusters:
        """Cluster the images and make a pattern for each cluster.

        Args:
            images: (N, C, H, W) in [0, 1], on any device; batches go to the surrogate's.
            progress: called with the number of patterns done.

        Returns:
            This object.

        Raises:
            ValueError: images outside [0, 1] or of another shape, or fewer of them than clusters.
        """
        _check_images(images)
        if len(images) < self.clusters:
            raise ValueError(f"images has {len(images)} images; expected at least one for each of {self.clusters}")
        from sklearn.cluster import KMeans

        found = self._features(images).cpu()
        means = KMeans(self.clusters, n_init=10, random_state=self.seed % 2**32).fit(found.double().numpy())
        self.assignments_ = torch.from_numpy(means.labels_).long()
        self.centers_ = torch.from_numpy(means.cluster_centers_).to(found.dtype)
        patterns, losses = [], []
        for k in range(self.clusters):
            own = images if self.scope == "all" else images[self.assignments_ == k]
            pattern, ends = self._make_pattern(k, own)
            patterns.append(pattern)
            losses.append(ends)
            if progress is not None:
                progress(k + 1)
        self.noise_ = torch.cat(patterns).to(images.device)
        self.losses_ = torch.tensor(losses)
        return self

    def assign(self, images: Tensor) -> Tensor:
        """Clusters of any images, (N,) int64: the nearest centres."""
        _check_images(images)
        self._check_fitted()
        distances: Tensor = torch.cdist(self._features(images).cpu(), self.centers_)
        return distances.argmin(1)

    def protect(self, images: Tensor, assignments: Tensor | None = None) -> Tensor:
        """Images with the patterns of their clusters.

        Args:
            images: (N, C, H, W) in [0, 1].
            assignments: (N,), their clusters, such as `assignments_`; None: the nearest centres.

        Returns:
            (N, C, H, W) in [0, 1]. Keep them in a lossless format: JPEG wears the patterns off.

        Raises:
            ValueError: nothing was fitted, or images and clusters do not fit.
        """
        chosen = self.assign(images) if assignments is None else assignments
        self._check_fitted()
        _check_images(images)
        if chosen.shape != (len(images),) or int(chosen.max()) >= self.clusters or int(chosen.min()) < 0:
            raise ValueError(
                f"assignments has shape {tuple(chosen.shape)}; expected ({len(images)},) with numbers of clusters "
                f"from 0 to {self.clusters - 1}"
            )
        if images.shape[1:] != self.noise_.shape[1:]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}; expected images of {tuple(self.noise_.shape[1:])}, the size "
                "that was fitted"
            )
        pattern = self.noise_.to(images.device, images.dtype)[chosen.to(images.device)]
        return (images + pattern).clamp(0, 1)

    def _make_pattern(self, k: int, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """The pattern (1, C, H, W) of cluster k, and its mean losses in the first and the last epoch."""
        draws = torch.Generator().manual_seed((self.seed * 1_000_003 + k) % 2**63)
        device = next((p.device for p in self.features.parameters()), images.device)
        z = torch.rand((1, *images.shape[1:]), generator=draws).to(device, images.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.initial_seed())
            module = self.generator((images.shape[1], images.shape[2], images.shape[3])).to(device, images.dtype)
        module.train()
        center = self.centers_[self.targets[k]].to(device)
        optimizer = torch.optim.Adam(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs, eta_min=self.lr / 100)
        first = last = 0.0
        with _Frozen(self.features):
            for epoch in range(self.epochs):
                order = torch.randperm(len(images), generator=draws)
                total = 0.0
                for rows in order.split(self.batch_size):
                    batch = images[rows.to(images.device)].to(device)
                    if self.augment is not None:
                        batch = self.augment(batch, draws)
                    found = self.features((batch + self._bounded(module(z))).clamp(0, 1))
                    loss = cluster_kl_loss(found, center)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(rows)
                schedule.step()
                last = total / len(images)
                if epoch == 0:
                    first = last
            with torch.no_grad():
                return self._bounded(module(z)).cpu(), (first, last)

    def _bounded(self, raw: Tensor) -> Tensor:
        if self.norm == "l2":
            norm: Tensor = torch.linalg.vector_norm(raw.flatten(1), dim=1).clamp_min(1e-12)
            return raw * (self.epsilon / norm).view(-1, 1, 1, 1)
        if self.bound == "tanh":
            return self.epsilon * raw.tanh()
        return raw.tanh().clamp(-self.epsilon, self.epsilon)

    def _features(self, images: Tensor) -> Tensor:
        device = next((p.device for p in self.features.parameters()), images.device)
        with _Frozen(self.features), torch.no_grad():
            found: list[Tensor] = [self.features(part.to(device)) for part in images.split(self.batch_size)]
            return torch.cat(found)

    def _check_fitted(self) -> None:
        if not hasattr(self, "noise_"):
            raise ValueError("nothing was fitted yet; expected a call of fit(images) before")


class _Frozen:
    """A module in evaluation mode whose parameters ask for no gradients, for as long as the context lasts."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(each, each.training) for each in module.modules()]
        self.flags = [(p, p.requires_grad) for p in module.parameters()]
        self.module = module

    def __enter__(self) -> None:
        self.module.eval()
        for p, _ in self.flags:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for each, mode in self.modes:
            each.training = mode
        for p, flag in self.flags:
            p.requires_grad_(flag)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise ValueError(
            f"images has shape {tuple(images.shape)} and dtype {images.dtype}; expected (N, C, H, W), floating point"
        )
    low, high = images.aminmax()
    if not (float(low) >= 0 and float(high) <= 1):
        raise ValueError(f"images has values from {float(low):g} to {float(high):g}; expected 0 to 1")
