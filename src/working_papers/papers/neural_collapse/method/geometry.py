"""The global minimisers in closed form: squared error for any class sizes, cross-entropy among simplex frames.

Dimensions:
    N  samples          K  classes            M  linear layers (depth)
    d  features         ...  batch axes
Lists count layers from the features on: W_1 is `weights[0]`, and layer 0 means the features themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from working_papers.papers.neural_collapse.method.arguments import Decay, check_depth, layer_decays, positive

BISECTIONS = 64  # halve a bracket of logarithms, a few hundred long at most, to the last bit of float64


def survival_threshold(depth: int) -> float:
    """Largest decay pressure under which a class survives: (M-1)^((M-1)/M) / M.

    Args:
        depth: number of linear layers M, at least 1.

    Raises:
        ValueError: the depth is below 1.

    Source: the value of b at which 1 / (1 + x^M) + b x has equal minima at 0 and at x^M = M - 1.
    """
    check_depth(depth)
    return float((depth - 1) ** ((depth - 1) / depth) / depth)


def optimal_strength(pressure: Tensor, depth: int) -> Tensor:
    """The x >= 0 that minimises φ(x) = 1 / (1 + x^M) + b x: one class's problem, stripped of its units.

    One layer: x falls to zero continuously as b rises to 1. More layers: x jumps from (M-1)^(1/M) to 0 at the
    threshold. First derivatives by b are exact (implicit function theorem); higher ones are not.

    Args:
        pressure: decay pressure b of each class, positive, any shape; infinity is allowed.
        depth: number of linear layers M.

    Returns:
        x, of the pressure's shape, dtype and device.

    Raises:
        ValueError: the depth is below 1, or a pressure is not positive.

    Source: the paper's theorems for unequal classes, with one layer and with M layers.
    """
    threshold = survival_threshold(depth)
    if not bool((pressure > 0).all()):
        raise ValueError(f"pressure has the entry {float(pressure.min())}; expected positive numbers")
    alive = pressure < threshold
    b = torch.where(alive, pressure, torch.full_like(pressure, threshold / 2)).double()
    if depth == 1:
        x = b.rsqrt() - 1
    else:
        # On the logarithm l of x the stationarity condition falls from x^M = M - 1 on, so that there is one root.
        def excess(l: Tensor) -> Tensor:
            return math.log(depth) + (depth - 1) * l - 2 * F.softplus(depth * l, threshold=40.0) - b.log()

        with torch.no_grad():
            low = torch.full_like(b, math.log(depth - 1) / depth)
            high = torch.maximum((math.log(depth) - b.log()) / (depth + 1), low)
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                above = excess(middle) > 0
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            root = (low + high) / 2
            slope = (depth - 1) - 2 * depth * torch.sigmoid(depth * root)
        x = torch.exp(root - excess(root) / slope)  # a Newton step, which carries the derivative by b
    return torch.where(alive, x, torch.zeros_like(x)).to(pressure.dtype)


@dataclass(frozen=True)
class Frame:
    """Shapes of weights, class means and their products, to compare a classifier with, each up to its own scale.

    Attributes:
        weight_gram: inner products of the head's rows [..., K, K].
        mean_gram: inner products of the class means [..., K, K].
        logits: head times class means, bias left out [..., K outputs, K classes].
        centred: whether the sample mean is to be subtracted from the class means first.
    """

    weight_gram: Tensor
    mean_gram: Tensor
    logits: Tensor
    centred: bool

    @classmethod
    def orthogonal(cls, classes: int) -> Frame:
        """Orthogonal vectors of equal length: equal classes without bias."""
        same = torch.eye(classes, dtype=torch.float64)
        return cls(same, same, same, centred=False)

    @classmethod
    def simplex(cls, classes: int) -> Frame:
        """The corners of a regular simplex around zero: equal classes with a free bias."""
        same = torch.eye(classes, dtype=torch.float64) - 1 / classes
        return cls(same, same, same, centred=True)


@dataclass(frozen=True)
class CollapsedGeometry:
    """The global minimisers, which agree in everything but a rotation at each layer (made by `collapsed_geometry`).

    Without bias a mode is a class. With bias the modes are directions in the space of classes.

    Attributes:
        counts: class sizes [..., K].
        modes: orthonormal columns [..., K, K]; the identity without bias.
        pressure: decay pressure b of each mode [..., K].
        product_squared: squared singular value t of W_M ... W_1 in each mode, 0 where the mode is dead [..., K].
        layer_squared: squared singular value of each layer in each mode [..., M, K].
        shrinkage: N times the feature decay [...].
        loss: the minimum of the objective [...].
        bias: best bias of the last layer [..., K]; None without.
    """

    counts: Tensor
    modes: Tensor
    pressure: Tensor
    product_squared: Tensor
    layer_squared: Tensor
    shrinkage: Tensor
    loss: Tensor
    bias: Tensor | None

    @property
    def depth(self) -> int:
        """Number of linear layers M."""
        return self.layer_squared.shape[-2]

    @property
    def alive(self) -> Tensor:
        """Which modes survive, boolean [..., K]."""
        return self.product_squared > 0

    @property
    def smallest_surviving_count(self) -> Tensor:
        """A class of this size or below vanishes; with bias the bound is on a mode's eigenvalue [...]."""
        sizes = self.counts if self.bias is None else _mode_sizes(self.counts)[0]
        return self.pressure.amin(dim=-1) * sizes.amax(dim=-1) / survival_threshold(self.depth)

    def weight_gram(self, layer: int = 0) -> Tensor:
        """Inner products of the rows of W_M ... W_{layer + 1} [..., K, K]."""
        return self._gram(self.layer_squared[..., layer:, :].prod(dim=-2))

    def mean_gram(self, layer: int = 0) -> Tensor:
        """Inner products of the class means after `layer` linear layers [..., K, K]."""
        t, shrinkage = self.product_squared, self.shrinkage[..., None]
        squared = t / (t + shrinkage).square() * self.layer_squared[..., :layer, :].prod(dim=-2)
        targets = self._targets()
        return targets.mT @ self._gram(squared) @ targets

    def mean_norms(self, layer: int = 0) -> Tensor:
        """Lengths of the class means after `layer` linear layers [..., K]."""
        return self.mean_gram(layer).diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()

    @property
    def logits(self) -> Tensor:
        """Outputs for the class means, bias included: column k is the output for class k [..., K, K]."""
        outputs = self._logits()
        return outputs if self.bias is None else outputs + self.bias[..., None]

    def frame(self, layer: int = 0) -> Frame:
        """What to compare a classifier's geometry after `layer` linear layers with."""
        return Frame(self.weight_gram(layer), self.mean_gram(layer), self._logits(), centred=self.bias is not None)

    def build(
        self, dimension: int, widths: Sequence[int] | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """One of the minimisers.

        Args:
            dimension: of the features, d.
            widths: of the M - 1 hidden layers; by default all `dimension`.
            generator: draws the rotation of each layer; without it the modes lie along the first axes.

        Returns:
            class means, one a row [..., K, d], and the weights W_1 ... W_M, each [..., out, in].

        Raises:
            ValueError: there are not M - 1 widths, or one of them is below the number of surviving modes.
        """
        sizes = [dimension, *([dimension] * (self.depth - 1) if widths is None else widths)]
        needed = int(self.alive.sum(dim=-1).max())
        if len(sizes) != self.depth or min(sizes) < needed:
            raise ValueError(
                f"dimension and widths are {sizes}; expected {self.depth} sizes of at least {needed}, one a layer"
            )
        order = self.product_squared.argsort(dim=-1, descending=True, stable=True)[
            ..., : min(*sizes, self.counts.shape[-1])
        ]
        modes = self.modes.take_along_dim(order[..., None, :], dim=-1)
        layers = self.layer_squared.take_along_dim(order[..., None, :], dim=-1).sqrt()
        t = self.product_squared.take_along_dim(order, dim=-1)
        frames = [self._orthonormal(size, order.shape, generator) for size in sizes] + [modes]
        weights = [frames[j + 1] * layers[..., j, None, :] @ frames[j].mT for j in range(self.depth)]
        lengths = t.sqrt() / (t + self.shrinkage[..., None])
        means = (frames[0] * lengths[..., None, :] @ modes.mT @ self._targets()).mT
        return means, weights

    def _orthonormal(self, size: int, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        t = self.product_squared
        if generator is None:
            return torch.eye(size, shape[-1], dtype=t.dtype, device=t.device)
        full = (*shape[:-1], size, shape[-1])
        normal = torch.randn(full, generator=generator, dtype=t.dtype, device=generator.device)
        frame: Tensor = torch.linalg.qr(normal.to(t.device))[0]
        return frame

    def _gram(self, squared: Tensor) -> Tensor:
        return self.modes * squared[..., None, :] @ self.modes.mT

    def _targets(self) -> Tensor:
        """Target of each class, one a column: one-hot, minus the bias where there is one [..., K, K]."""
        identity = torch.eye(self.counts.shape[-1], dtype=self.modes.dtype, device=self.modes.device)
        return identity if self.bias is None else identity - self.bias[..., None]

    def _logits(self) -> Tensor:
        t = self.product_squared
        return self._gram(t / (t + self.shrinkage[..., None])) @ self._targets()


def collapsed_geometry(
    counts: Sequence[int] | Tensor,
    depth: int,
    weight_decay: Decay,
    feature_decay: float | Tensor,
    *,
    width: int | None = None,
    bias: bool = False,
) -> CollapsedGeometry:
    """The global minimum of squared error with free features and M linear layers, for any class sizes.

    The objective is |W_M ... W_1 H - Y|² / (2N) + (sum_j λ_j |W_j|² + λ_H |H|²) / 2, with Y one-hot. In each mode
    of size n the problem is that of `optimal_strength` at b = M N (N λ_H λ_1 ... λ_M)^(1/M) / n, and the squared
    singular value of the product is t = N λ_H x^M.

    Args:
        counts: class sizes n, positive [..., K]; the batch axes of counts and decays are broadcast.
        depth: number of linear layers M.
        weight_decay: λ, one for all layers, or one a layer [..., M].
        feature_decay: λ_H [...], on the sum of squares of all features.
        width: smallest of d and the hidden widths; below K only the largest modes survive (among equal ones the
            choice is free: any subspace of theirs is as good).
        bias: whether the last layer has a bias, without decay. The modes are then the eigenvectors of
            diag(n) - n nᵀ / N with its eigenvalues as sizes.

    Returns:
        The geometry, in the floating-point dtype of `counts`, or float64 for integers; on its device.

    Raises:
        ValueError: a count, a decay, the depth or the width is not positive, or there are not M decays.

    Source: the paper's theorems on squared error (equal classes without and with bias, unequal ones without);
    unequal classes with bias are our addition.
    """
    check_depth(depth)
    n = torch.as_tensor(counts)
    n = n if n.is_floating_point() else n.double()
    if n.ndim == 0 or not bool((n > 0).all()):
        raise ValueError(f"counts is {n.tolist()}; expected at least one class, with positive sizes")
    if width is not None and width < 1:
        raise ValueError(f"width is {width}; expected at least 1")
    layer_decay = layer_decays(weight_decay, depth, n)
    decay = positive("feature_decay", feature_decay, n)
    batch = torch.broadcast_shapes(n.shape[:-1], layer_decay.shape[:-1], decay.shape)
    n = n.expand(*batch, n.shape[-1])
    mean_decay = layer_decay.log().mean(dim=-1).exp()
    total = n.sum(dim=-1)
    shrinkage = total * decay
    sizes, modes = _mode_sizes(n) if bias else (n, torch.diag_embed(torch.ones_like(n)))
    if width is not None:
        rank = sizes.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        sizes = torch.where(rank < width, sizes, torch.zeros_like(sizes))
    price = depth * total * shrinkage ** (1 / depth) * mean_decay
    possible = sizes > 0
    pressure = torch.where(possible, price[..., None] / sizes.where(possible, torch.ones_like(sizes)), torch.inf)
    x = optimal_strength(pressure, depth)
    t = shrinkage[..., None] * x**depth
    root = shrinkage[..., None] ** (1 / depth) * x
    layers = (mean_decay[..., None] / layer_decay)[..., None] * root[..., None, :]
    everything = _mode_sizes(n)[0] if bias else n  # a mode that the width has no room for costs its whole target
    fit = (sizes / (1 + x**depth) + everything - sizes).sum(dim=-1) / (2 * total)
    loss = fit + depth * mean_decay * root.sum(dim=-1) / 2
    free = n / total[..., None] if bias else None
    return CollapsedGeometry(n, modes, pressure, t, layers, shrinkage, loss, free)


def _mode_sizes(n: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., K] and eigenvectors [..., K, K] of the centred targets' Gram matrix diag(n) - n nᵀ / N."""
    total = n.sum(dim=-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.diag_embed(n) - n[..., None] * n[..., None, :] / total)
    # The targets sum to one, so one eigenvalue is zero; rounding must not make it a tiny class.
    return torch.cat([torch.zeros_like(values[..., :1]), values[..., 1:]], dim=-1), vectors


def simplex_cross_entropy(
    classes: int, samples: int, depth: int, weight_decay: Decay, feature_decay: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The lowest regularised cross-entropy among simplex frames, for equal classes.

    The logits are α (I - 11ᵀ / K) for each class; the M + 1 factors share their singular values in the cheapest way.
    The search over α is exact. Whether other frames do better is not asked.

    Args:
        classes: number of classes K, at least 2.
        samples: number of samples of each class.
        depth: number of linear layers M.
        weight_decay: λ, one for all layers, or one a layer [..., M].
        feature_decay: λ_H [...].

    Returns:
        the loss [...] and the gap α between the true logit and the others [...], float64; α = 0, loss log K where
        decay is too strong for any frame.

    Raises:
        ValueError: there are fewer than 2 classes, no samples, or a decay or the depth is not positive.
    """
    check_depth(depth)
    if classes < 2 or samples < 1:
        raise ValueError(f"classes and samples are {classes} and {samples}; expected at least 2 and 1")
    like = torch.zeros((), dtype=torch.float64)
    layers = layer_decays(weight_decay, depth, like)
    mean = ((layers.log().sum(dim=-1) + positive("feature_decay", feature_decay, like).log()) / (depth + 1)).exp()
    power = 2 / (depth + 1)
    price = (depth + 1) / 2 * mean * (classes - 1) * samples ** (power / 2)  # decay costs price * α^power

    def slope(gap: Tensor) -> Tensor:
        """Logarithm of the gain over that of the cost of a larger gap, up to the price."""
        log_others = torch.full_like(gap, math.log(classes - 1))
        return log_others - torch.logaddexp(gap, log_others) + (1 - power) * gap.log()

    def bisect(low: Tensor, high: Tensor, rising: torch.Tensor | None) -> Tensor:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if rising is None:
                before = (1 - power) / middle > torch.sigmoid(middle - math.log(classes - 1))
            else:
                before = slope(middle) > rising
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return (low + high) / 2

    bound = (price * power).log()
    peak = bisect(torch.zeros_like(price), torch.full_like(price, 2.0 + 2 * math.log(classes)), None)
    gap = bisect(peak, torch.maximum(2 * (math.log(classes) - bound), peak + 1), bound)
    loss = torch.log1p((classes - 1) * torch.exp(-gap)) + price * gap**power
    nothing = torch.full_like(loss, math.log(classes))
    return torch.minimum(loss, nothing), torch.where(loss < nothing, gap, torch.zeros_like(gap))
