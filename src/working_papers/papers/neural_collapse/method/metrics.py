"""Measures of collapse for the features and the head of any classifier, in one pass over its data.

Dimensions:
    N  samples          K  classes            d  features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from working_papers.papers.neural_collapse.method.geometry import CollapsedGeometry, Frame
from working_papers.papers.neural_collapse.method.model import compose

Target = Literal["auto", "simplex", "orthogonal"] | Frame | CollapsedGeometry

# Singular values of the centred class means below this fraction of the largest count as zero; squared it is the
# 1e-8 that separates the K - 1 true directions of the between-class covariance from rounding.
MEAN_CUTOFF = 1e-4


@dataclass(frozen=True)
class ClassStatistics:
    """What the measures need of a set of features; the statistics of two sets add up to those of their union.

    Attributes:
        counts: samples of each class [K].
        means: class means [K, d]; zero where a class has no samples.
        scatter: sum over samples of the outer product of their deviation from their class mean [d, d].
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> ClassStatistics:
        """Statistics of some samples; differentiable in the features.

        Args:
            features: one sample a row [N, d].
            labels: classes from 0 to K - 1 [N].
            classes: number of classes K.

        Raises:
            ValueError: shapes do not fit together, or a label is out of range.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            shapes = tuple(features.shape), tuple(labels.shape)
            raise ValueError(f"features and labels have shapes {shapes[0]} and {shapes[1]}; expected (N, d) and (N,)")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels run from {found}; expected 0 to {classes - 1}, for {classes} classes")
        counts = torch.bincount(labels, minlength=classes).to(features.dtype)
        sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
        means = sums / counts.clamp(min=1)[:, None]
        deviations = features - means[labels]
        return cls(counts, means, deviations.mT @ deviations)

    def __add__(self, other: ClassStatistics) -> ClassStatistics:
        """Statistics of the union. Sums of squares are never subtracted, so that no collapse is too fine."""
        counts = self.counts + other.counts
        share = (other.counts / counts.clamp(min=1))[:, None]
        difference = other.means - self.means
        between = difference.mT @ (self.counts[:, None] * share * difference)
        return ClassStatistics(counts, self.means + share * difference, self.scatter + other.scatter + between)

    @property
    def centred_means(self) -> Tensor:
        """Class means minus the mean of all samples [K, d]."""
        return self.means - self.counts @ self.means / self.counts.sum()

    def within_class_variability(self) -> Tensor:
        """NC1: trace of the within-class covariance times the pseudo-inverse of the between-class one, over K.

        Infinite where all class means are the same and the features are not.

        Source: NC1 of the paper and its official code.
        """
        means = self.centred_means
        inverse = torch.linalg.pinv(means, rtol=MEAN_CUTOFF)  # [d, K]; its Gram matrix over K inverts Σ_B
        ratio = torch.trace(inverse.mT @ self.scatter @ inverse) / self.counts.sum()
        coincide = (means.abs().max() == 0) & (torch.trace(self.scatter) > 0)
        return torch.where(coincide, torch.full_like(ratio, torch.inf), ratio)


@dataclass(frozen=True)
class CollapseReport:
    """How far a layer and all that follows it have collapsed; 0 is perfect everywhere.

    Attributes:
        nc1: within-class over between-class variability.
        nc2_weights: distance of the weights' Gram matrix from the target's, both at norm 1.
        nc2_means: distance of the class means' Gram matrix from the target's, both at norm 1.
        nc3: distance of weights times means from the target's, both at norm 1.
        alignment: distance of the weights from what the target makes of the class means, both at norm 1.
        nc4: share of samples that the head and the nearest class mean label differently; None where the features
            were not seen a second time.
        target: "orthogonal", "simplex" or "given".
        counts: samples of each class [K].
    """

    nc1: float
    nc2_weights: float
    nc2_means: float
    nc3: float
    alignment: float
    nc4: float | None
    target: str
    counts: Tensor


def frame_distance(matrix: Tensor, target: Tensor) -> Tensor:
    """Frobenius distance of two matrices, each scaled to norm 1: 0 for the same shape, 2 for opposite ones.

    Args:
        matrix: [..., m, n]; a matrix of zeros is at distance 1 from any other.
        target: [..., m, n].

    Returns:
        The distance [...].

    Source: NC2 and NC3 of the paper and its official code.
    """
    distance: Tensor = torch.linalg.matrix_norm(_normalised(matrix) - _normalised(target))
    return distance


def collapse_metrics(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None, *, target: Target = "auto"
) -> CollapseReport:
    """Measure the collapse of a layer's features and of the linear map that follows.

    Args:
        features: one sample a row [N, d].
        labels: classes from 0 to K - 1, each with at least one sample [N].
        weight: of the head; for several linear layers their product [K, d].
        bias: of the head [K].
        target: what to compare with. "simplex" and "orthogonal" are the frames of equal classes with and without
            bias, and "auto" takes the former if there is a bias; `collapsed_geometry` gives the one for unequal
            classes.

    Returns:
        The report; the work is done in float64 where the device has it.

    Raises:
        ValueError: shapes do not fit together, a label is out of range, a class has no sample, or the target has
            another name.

    Source: NC1 to NC3 as in the official code; NC4 is that of Papyan, Han and Donoho (2020).
    """
    statistics = _statistics(features, labels, weight)
    disagreements = _disagreements(statistics, features, weight, bias)
    return _report(statistics, weight, bias, target, 0, int(disagreements) / len(features))


class CollapseMonitor:
    """Measures a user's model at each of the linear layers that end it, from batches of any size.

    The features of a layer are its input; its weight is the product of it and all linear layers after it.

    Args:
        model: any classifier that ends in linear layers, without anything between them. It is not changed, and
            its mode (train or eval) is left as it is.
        head: names of these layers in the model, from the first to the last.
        target: as in `collapse_metrics`; a `CollapsedGeometry` is taken at each layer's own depth.

    Raises:
        ValueError: a name is not that of an `nn.Linear`, there is none, or their sizes do not chain.
    """

    def __init__(self, model: nn.Module, head: Sequence[str], *, target: Target = "auto") -> None:
        modules = dict(model.named_modules())
        layers = []
        for name in head:
            layer = modules.get(name)
            if not isinstance(layer, nn.Linear):
                raise ValueError(f"head has the entry {name!r}, which is {type(layer).__name__}; expected an nn.Linear")
            layers.append(layer)
        if not layers:
            raise ValueError("head is empty; expected the names of the linear layers that end the model")
        for before, after in pairwise(layers):
            if before.out_features != after.in_features:
                sizes = f"{before.out_features} outputs feed {after.in_features} inputs"
                raise ValueError(f"head: {sizes}; expected layers that follow one another")
        self.model = model
        self.names = list(head)
        self.target = target
        self._layers = layers
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._statistics: dict[str, ClassStatistics] = {}
        self._disagreements: dict[str, int] = dict.fromkeys(self.names, 0)
        self._seen_again = 0

    def update(self, inputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> None:
        """Add a batch.

        Args:
            inputs: what the model is called with; a tuple is unpacked.
            labels: classes from 0 to K - 1, as many as there are feature vectors [N].
        """
        for name, features in self._features(inputs).items():
            new = _statistics(features, labels.reshape(-1), self._layers[-1].weight)
            self._statistics[name] = self._statistics[name] + new if name in self._statistics else new

    def update_nearest_mean(self, inputs: Tensor | tuple[Tensor, ...]) -> None:
        """Show a batch again, after all batches have been added once, to count disagreements with the nearest mean.

        Args:
            inputs: what the model is called with; a tuple is unpacked.

        Raises:
            ValueError: no batch has been added.
        """
        self._check_seen()
        for j, (name, features) in enumerate(self._features(inputs).items()):
            weight, bias = compose(self._layers[j:])
            self._disagreements[name] += int(_disagreements(self._statistics[name], features, weight, bias))
        self._seen_again += len(features)

    def compute(self) -> dict[str, CollapseReport]:
        """One report a layer, by name; `nc4` only after `update_nearest_mean`.

        Raises:
            ValueError: no batch has been added, or a class has no sample.
        """
        self._check_seen()
        reports = {}
        for j, name in enumerate(self.names):
            weight, bias = compose(self._layers[j:])
            nc4 = self._disagreements[name] / self._seen_again if self._seen_again else None
            reports[name] = _report(self._statistics[name], weight, bias, self.target, j, nc4)
        return reports

    def _check_seen(self) -> None:
        if not self._statistics:
            raise ValueError("the monitor has seen no samples; expected at least one call of update")

    @torch.no_grad()
    def _features(self, inputs: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Inputs of the head's layers, by name, each [N, d]."""
        found: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found[name] = arguments[0].flatten(0, -2)

        pairs = zip(self.names, self._layers, strict=True)
        hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in pairs]
        try:
            self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found[name] for name in self.names}


def _normalised(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrix, keepdim=True)
    return matrix / norm.clamp(min=torch.finfo(matrix.dtype).tiny)


def _precise(tensor: Tensor) -> Tensor:
    """In float64, or float32 on devices (Apple's) that have no more."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _statistics(features: Tensor, labels: Tensor, weight: Tensor) -> ClassStatistics:
    return ClassStatistics.of(_precise(features), labels.to(features.device), weight.shape[0])


def _disagreements(statistics: ClassStatistics, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Number of samples for which the head and the nearest class mean differ."""
    x, means = _precise(features), statistics.means
    scores = x @ _precise(weight).mT
    if bias is not None:
        scores = scores + _precise(bias)
    # |x - m|² without |x|², which is the same for all classes.
    nearest = (x @ means.mT - means.square().sum(dim=1) / 2).argmax(dim=1)
    return (scores.argmax(dim=1) != nearest).sum()


def _report(
    statistics: ClassStatistics, weight: Tensor, bias: Tensor | None, target: Target, layer: int, nc4: float | None
) -> CollapseReport:
    classes, dimension = len(statistics.counts), statistics.means.shape[1]
    if weight.shape != (classes, dimension):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected ({classes}, {dimension})")
    if not bool((statistics.counts > 0).all()):
        raise ValueError(f"labels have no sample of class {int(statistics.counts.argmin())}; expected every class")
    name, frame = _frame(target, classes, bias, layer)
    goal = [part.to(statistics.means) for part in (frame.weight_gram, frame.mean_gram, frame.logits)]
    means = statistics.centred_means if frame.centred else statistics.means
    w = _precise(weight)
    # The target's weights, written as combinations of its means: those that give its logits.
    mixing = torch.linalg.pinv(goal[1], rtol=MEAN_CUTOFF**2, hermitian=True) @ goal[2].mT
    return CollapseReport(
        nc1=float(statistics.within_class_variability()),
        nc2_weights=float(frame_distance(w @ w.mT, goal[0])),
        nc2_means=float(frame_distance(means @ means.mT, goal[1])),
        nc3=float(frame_distance(w @ means.mT, goal[2])),
        alignment=float(frame_distance(w, mixing.mT @ means)),
        nc4=nc4,
        target=name,
        counts=statistics.counts,
    )


def _frame(target: Target, classes: int, bias: Tensor | None, layer: int) -> tuple[str, Frame]:
    if isinstance(target, CollapsedGeometry):
        target = target.frame(layer)
    if isinstance(target, Frame):
        if target.mean_gram.shape != (classes, classes):
            shape = tuple(target.mean_gram.shape)
            raise ValueError(f"target is a frame of shape {shape}; expected ({classes}, {classes})")
        return "given", target
    name = ("orthogonal" if bias is None else "simplex") if target == "auto" else target
    if name == "simplex":
        return name, Frame.simplex(classes)
    if name == "orthogonal":
        return name, Frame.orthogonal(classes)
    raise ValueError(f"target is {name!r}; expected 'auto', 'simplex', 'orthogonal', a Frame or a CollapsedGeometry")
