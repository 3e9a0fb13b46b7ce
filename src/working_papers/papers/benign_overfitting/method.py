"""Benign Overfitting and Grokking in ReLU Networks for XOR Cluster Data.

https://arxiv.org/abs/2310.02541 (Xu, Wang, Frei, Vardi, Hu; ICLR 2024)

Four Gaussian clusters carry XOR labels, some of them flipped. Full-batch gradient descent on a two-layer
ReLU network memorises every label in its first step, the flipped ones too, and is then next to a linear
classifier; a few steps later it has found the clusters, labels fresh data nearly perfectly, and still fits
every flipped label.

No official code was found: data, network and training follow the paper's Section 2. Ours are the two ways to
run it at the input dimensions that the theorems ask for (`draw_in_span`, exact in law, and `GramSpace`, exact),
the linear share (`linear_share`) and the meter for training logs (`overfitting_report`).

Dimensions:
    n  training samples             p  input dimension          m  neurons
    q  observed points              k  directions               r  recorded steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Device = torch.device | str


@dataclass(frozen=True)
class Batch:
    """Samples with both their labels: the one given to the learner and the one of the cluster.

    Args:
        x: inputs [n, p].
        y: labels as given, some flipped: -1 or +1 in the inputs' dtype [n].
        clean: labels of the clusters: -1 or +1 in the inputs' dtype [n].
        cluster: 0 for +mean 1, 1 for -mean 1, 2 for +mean 2, 3 for -mean 2 [n].
        flipped: where the two labels differ, boolean [n].
    """

    x: Tensor
    y: Tensor
    clean: Tensor
    cluster: Tensor
    flipped: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class XORClusters:
    """The distribution of XOR clusters with label noise.

    An input is one of +mean 1, -mean 1 (clean label +1), +mean 2, -mean 2 (clean label -1), drawn evenly, plus
    standard normal noise; its label is flipped with probability `noise_rate`. Since x and -x share their clean
    label, every linear classifier is right exactly half the time.

    Args:
        means: two orthogonal vectors of equal norm [2, p]; samples follow their dtype and device.
        noise_rate: probability of a flipped label, at least 0 and below 1/2.

    Raises:
        ValueError: the means are no such pair, or the noise rate is out of range.

    Source: Section 2 of the paper.
    """

    means: Tensor
    noise_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or len(self.means) != 2 or not self.means.is_floating_point():
            shape, dtype = tuple(self.means.shape), self.means.dtype
            raise ValueError(f"means is {dtype} of shape {shape}; expected floating point of shape (2, p)")
        products = (self.means.double() @ self.means.double().T).cpu()
        largest = products.abs().max()
        if not 0 < largest < math.inf or (products / largest - torch.eye(2)).abs().max() > 1e-4:
            found = products.tolist()
            raise ValueError(f"means has inner products {found}; expected orthogonal vectors of equal norm")
        if not 0 <= self.noise_rate < 0.5:
            raise ValueError(f"noise_rate is {self.noise_rate}; expected at least 0 and below 0.5")

    @classmethod
    def random(
        cls,
        dimension: int,
        *,
        signal: float,
        noise_rate: float = 0.0,
        generator: torch.Generator | None = None,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> XORClusters:
        """Means of norm `signal` in two random directions.

        Args:
            dimension: input dimension p, at least 2.
            signal: norm of each mean, in standard deviations of the noise along one direction.
            noise_rate: probability of a flipped label.
            generator: source of randomness, on `device`.
            device: where the means, and so the samples, live.
            dtype: floating-point type of the means, and so of the samples.

        Raises:
            ValueError: the dimension is below 2 or the signal is not positive.
        """
        if dimension < 2:
            raise ValueError(f"dimension is {dimension}; expected at least 2, one for each mean")
        if not signal > 0:
            raise ValueError(f"signal is {signal}; expected a positive norm")
        normal = torch.randn(dimension, 2, generator=generator, device=device, dtype=dtype)
        return cls(signal * torch.linalg.qr(normal).Q.T.contiguous(), noise_rate)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draw independent samples.

        Args:
            count: number of samples n, at least 1.
            generator: source of randomness, on the means' device.

        Raises:
            ValueError: the count is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 sample")
        means, device = self.means, self.means.device
        cluster = torch.randint(4, (count,), generator=generator, device=device)
        flipped = torch.rand(count, generator=generator, device=device) < self.noise_rate
        x = torch.randn(count, means.shape[1], generator=generator, device=device, dtype=means.dtype)
        x += torch.stack([means[0], -means[0], means[1], -means[1]])[cluster]
        clean = torch.where(cluster < 2, 1.0, -1.0).to(means.dtype)
        return Batch(x, torch.where(flipped, -clean, clean), clean, cluster, flipped)


class TwoLayerReLU(nn.Module):
    """f(x) = sum_j a_j relu(<w_j, x>), without biases; the a_j are random signs over sqrt(m) and stay fixed.

    Args:
        dimension: input dimension p.
        width: number of neurons m.
        init_scale: standard deviation ω of the first layer's entries; the theorems need it tiny.
        train_second_layer: whether the a_j are trained too, which the paper does not do.
        generator: source of randomness, on `device`.
        device: where the weights live.
        dtype: floating-point type of the weights.

    Shapes:
        input [..., p], output [...]; `first_layer` [m, p], `second_layer` [m].

    Raises:
        ValueError: a size is below 1 or the initial scale is negative.

    Source: Section 2 of the paper.
    """

    first_layer: nn.Parameter
    second_layer: Tensor

    def __init__(
        self,
        dimension: int,
        width: int,
        *,
        init_scale: float,
        train_second_layer: bool = False,
        generator: torch.Generator | None = None,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dimension < 1 or width < 1:
            raise ValueError(f"dimension and width are {dimension} and {width}; expected at least 1 each")
        if not init_scale >= 0:
            raise ValueError(f"init_scale is {init_scale}; expected a standard deviation, at least 0")
        self.init_scale = init_scale
        self.first_layer = nn.Parameter(torch.empty(width, dimension, device=device, dtype=dtype))
        second_layer = torch.empty(width, device=device, dtype=dtype)
        if train_second_layer:
            self.second_layer = nn.Parameter(second_layer)
        else:
            self.register_buffer("second_layer", second_layer)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both layers anew."""
        self.first_layer.normal_(generator=generator).mul_(self.init_scale)
        width, device = len(self.second_layer), self.second_layer.device
        signs = 2 * torch.randint(2, (width,), generator=generator, device=device) - 1
        self.second_layer.copy_(signs / math.sqrt(width))

    def extra_repr(self) -> str:
        width, dimension = self.first_layer.shape
        return f"dimension={dimension}, width={width}, init_scale={self.init_scale}"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [..., p] to real scores [...]; their signs are the predicted labels."""
        return F.relu(F.linear(x, self.first_layer)) @ self.second_layer


# Training, in three coordinate systems: the weights, the training inputs, the span of all randomness.


def step_coefficients(preactivation: Tensor, second_layer: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    """One step of gradient descent on the mean logistic loss, in multiples of the training inputs.

    Neuron j gains (α a_j / n) sum_i g_i y_i [<w_j, x_i> > 0] x_i, where g_i = 1 / (1 + exp(y_i f(x_i))).

    Args:
        preactivation: <w_j, x_i> at the training inputs [n, m].
        second_layer: output weights a [m].
        y: labels, -1 or +1 [n].
        learning_rate: step size α.

    Returns:
        Coefficients [m, n]; their product with the inputs [n, p] is the change of the first layer.

    Source: Section 2 of the paper; the derivative of relu at 0 is 0, as in torch.
    """
    scores = preactivation.relu() @ second_layer
    pull = torch.sigmoid(-y * scores) * y * (learning_rate / len(y))
    return (pull[:, None] * (preactivation > 0) * second_layer).T


@dataclass(frozen=True)
class GramSpace:
    """Gradient descent on the first layer, exactly, without forming it.

    Each step adds multiples of the training inputs to the neurons, so w_j = w_j(0) + sum_i c_ji x_i always, and
    the coefficients c with a few inner products say all. A step costs n * n * m operations, not n * m * p.
    The observed points are the training inputs, which come first, then any others: test inputs, cluster means.

    Args:
        kernel: inner products of the observed points with the training inputs [q, n].
        initial: pre-activations of the untrained network at the observed points [q, m].
        second_layer: fixed output weights [m].
        initial_norms: squared norms of the untrained neurons [m].

    Raises:
        ValueError: the shapes do not fit together.
    """

    kernel: Tensor
    initial: Tensor
    second_layer: Tensor
    initial_norms: Tensor

    def __post_init__(self) -> None:
        q, m = self.initial.shape
        shapes = [tuple(part.shape) for part in (self.kernel, self.second_layer, self.initial_norms)]
        if shapes != [(q, self.samples), (m,), (m,)] or self.samples > q:
            raise ValueError(
                f"kernel, second_layer and initial_norms have shapes {shapes} beside initial of shape {(q, m)}; "
                f"expected [({q}, n), ({m},), ({m},)] with n at most {q}"
            )

    @classmethod
    @torch.no_grad()
    def of(cls, network: TwoLayerReLU, x: Tensor, points: Iterable[Tensor] = ()) -> GramSpace:
        """Take the inner products, once.

        Args:
            network: the untrained network; it is not changed.
            x: training inputs [n, p].
            points: tensors [., p] of further points to observe; a generator may make them one at a time.

        Raises:
            ValueError: the network trains its second layer, and so leaves this space.
        """
        if isinstance(network.second_layer, nn.Parameter):
            raise ValueError("network has train_second_layer=True; expected a fixed second layer")
        weights = network.first_layer
        rows = [(some @ x.T, some @ weights.T) for some in chain([x], points)]
        kernel, initial = (torch.cat(column) for column in zip(*rows, strict=True))
        return cls(kernel, initial, network.second_layer.clone(), weights.square().sum(dim=1))

    @property
    def samples(self) -> int:
        """Number of training inputs n."""
        return self.kernel.shape[-1]

    def rescaled(self, factor: float) -> GramSpace:
        """The same space for a network whose untrained first layer is `factor` times as large."""
        initial, norms = factor * self.initial, factor**2 * self.initial_norms
        return GramSpace(self.kernel, initial, self.second_layer, norms)

    def to(self, device: Device) -> GramSpace:
        """The same space on another device."""
        parts = (self.kernel, self.initial, self.second_layer, self.initial_norms)
        return GramSpace(*(part.to(device) for part in parts))

    def start(self) -> Tensor:
        """Coefficients of the untrained network: zeros [m, n]."""
        return self.kernel.new_zeros(len(self.second_layer), self.samples)

    def preactivation(self, coefficients: Tensor) -> Tensor:
        """<w_j, point> at all observed points [q, m], for coefficients [m, n]."""
        return torch.addmm(self.initial, self.kernel, coefficients.T)

    def step(self, coefficients: Tensor, y: Tensor, learning_rate: float) -> Tensor:
        """Coefficients [m, n] after one more step of gradient descent on the labels `y` [n]."""
        n = self.samples
        at_training = torch.addmm(self.initial[:n], self.kernel[:n], coefficients.T)
        return coefficients + step_coefficients(at_training, self.second_layer, y, learning_rate)

    def squared_norms(self, coefficients: Tensor) -> Tensor:
        """Squared norms of the neurons [m], for coefficients [m, n]."""
        n = self.samples
        cross = 2 * self.initial[:n].T + coefficients @ self.kernel[:n]
        return self.initial_norms + (cross * coefficients).sum(dim=1)


def isotropic_coordinates(
    rows: int,
    dimension: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Standard normal vectors of any dimension, written in an orthonormal basis of their own span.

    A normal matrix G [rows, dimension] is L Q with Q orthonormal and independent of the lower-triangular L,
    whose entries are independent: standard normal below the diagonal, on it chi with dimension, dimension - 1,
    ... degrees of freedom. Drawing L alone costs rows² numbers, however large the dimension.

    Args:
        rows: number of vectors.
        dimension: their dimension, at least `rows`.
        generator: source of randomness, on the CPU.
        dtype: floating-point type; inner products are of the order of the dimension, noise of its root.

    Returns:
        L [rows, rows] on the CPU: L @ L.T has the law of G @ G.T, and the inner products with the rows of a
        further, independent normal vector have the law of L @ (standard normal vector of length rows).

    Raises:
        ValueError: there are no rows, or more rows than dimensions.

    Source: Bartlett's decomposition of the Wishart distribution.
    """
    if not 1 <= rows <= dimension:
        raise ValueError(f"rows is {rows} with dimension {dimension}; expected 1 to {dimension}")
    below = torch.randn(rows, rows, generator=generator, dtype=dtype).tril(-1)
    # torch draws chi-squared numbers from its global generator only; NumPy's is seeded from ours.
    seed = int(torch.randint(2**62, (), generator=generator))
    freedom = np.float64(dimension) - np.arange(rows)
    diagonal = np.sqrt(np.random.default_rng(seed).chisquare(freedom))
    return below + torch.diag(torch.from_numpy(diagonal).to(dtype))


def draw_in_span(
    samples: int,
    width: int,
    *,
    dimension: int,
    signal: float,
    noise_rate: float,
    init_scale: float,
    generator: torch.Generator | None = None,
) -> tuple[XORClusters, Batch, TwoLayerReLU]:
    """A training problem with inputs of any dimension, in the few coordinates that training ever touches.

    Everything that happens depends on inner products alone, and the noise looks the same in all directions. So
    the basis may be chosen: first the two means, then the span of the noise in the training inputs and of the
    initial weights. What is left out is orthogonal to all weights, for ever, and fresh inputs never show it.
    The p-dimensional problem and this one, of dimension 2 + n + m, give every prediction the same law: no
    approximation, and dimensions such as the theorems ask for, 10^15 and more, fit into memory.

    Args:
        samples: number of training samples n.
        width: number of neurons m.
        dimension: input dimension p of the problem, at least 2 + n + m.
        signal: norm of each mean.
        noise_rate: probability of a flipped label.
        init_scale: standard deviation of the first layer's entries.
        generator: source of randomness, on the CPU.

    Returns:
        The distribution for fresh inputs, the training batch and the untrained network, all of dimension
        2 + n + m, on the CPU in float64. The norm of a fresh input alone is not that of the p-dimensional one.

    Raises:
        ValueError: an argument is out of range.
    """
    compact = 2 + samples + width
    if dimension < compact:
        raise ValueError(
            f"dimension is {dimension}; expected at least 2 + samples + width = {compact}; "
            "below that, sample the clusters directly"
        )
    clusters = XORClusters(signal * torch.eye(2, compact, dtype=torch.float64), noise_rate)
    train = clusters.sample(samples, generator=generator)
    network = TwoLayerReLU(compact, width, init_scale=init_scale, generator=generator, dtype=torch.float64)
    noise = isotropic_coordinates(samples + width, dimension - 2, generator=generator)
    train.x[:, 2:] = noise[:samples]
    with torch.no_grad():
        network.first_layer[:, 2:] = init_scale * noise[samples:]
    return clusters, train, network


@dataclass(frozen=True)
class Trace:
    """What full-batch training looked like at the recorded steps.

    Args:
        steps: recorded steps in increasing order, int64 [r].
        training_loss: mean logistic loss on the labels as given [r].
        training_accuracy: share of the labels as given that are fitted [r].
        clean_training_accuracy: share of the training samples labelled as their cluster is [r].
        test_accuracy: share of clean labels predicted on the test samples [r].
        extra: what the callbacks measured, by name [r].
    """

    steps: Tensor
    training_loss: Tensor
    training_accuracy: Tensor
    clean_training_accuracy: Tensor
    test_accuracy: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def gradient_descent_trace(
    model: nn.Module,
    train: Batch,
    test: Batch,
    *,
    learning_rate: float,
    steps: int,
    record_at: Iterable[int] | None = None,
    callbacks: Mapping[str, Callable[[nn.Module], float]] | None = None,
) -> Trace:
    """Train any model with one output by full-batch gradient descent on the logistic loss, and watch it.

    Args:
        model: maps inputs [n, p] to scores [n] or [n, 1]; trained in place.
        train: training samples; the model learns from `x` and `y` only.
        test: test samples, scored against their clean labels.
        learning_rate: constant step size.
        steps: number of steps.
        record_at: steps at which to measure, 0 being the untrained model; all when left out.
        callbacks: further numbers to measure then, by name, each a function of the model.

    Returns:
        The trace, on the CPU in float64.

    Raises:
        ValueError: a step to record is not among the steps, or the model has more than one output.
    """
    wanted = set(range(steps + 1) if record_at is None else record_at)
    if not wanted or not wanted <= set(range(steps + 1)):
        raise ValueError(f"record_at is {sorted(wanted)}; expected at least one step from 0 to {steps}")
    measures = {} if callbacks is None else dict(callbacks)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows: list[list[float]] = []
    for step in range(steps + 1):
        scores = _scores(model, train.x)
        loss = F.softplus(-train.y * scores).mean()
        if step in wanted:
            with torch.no_grad():
                pairs = ((scores, train.y), (scores, train.clean), (_scores(model, test.x), test.clean))
                accuracies = [accuracy(*pair) for pair in pairs]
                rows.append([float(loss.detach()), *accuracies, *(float(f(model)) for f in measures.values())])
        if step < steps:
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=learning_rate)
    loss_curve, fitted, clean, test_curve, *others = torch.tensor(rows, dtype=torch.float64).T
    extra = dict(zip(measures, others, strict=True))
    return Trace(torch.tensor(sorted(wanted)), loss_curve, fitted, clean, test_curve, extra)


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    scores: Tensor = model(x)
    if scores.numel() != len(x):
        raise ValueError(f"model returned {tuple(scores.shape)} for {len(x)} inputs; expected one score each")
    return scores.reshape(len(x))


# What was learned.


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of the labels, -1 or +1 [n], whose sign the scores [n] have; a score of exactly 0 is wrong."""
    return float((scores * labels > 0).double().mean())


def linear_share(preactivation: Tensor, second_layer: Tensor) -> Tensor:
    """R² of the best linear approximation of the network, for inputs as likely as their mirror images.

    As relu(z) = z/2 + |z|/2, the network is the sum of a linear part <sum_j a_j w_j, x> / 2 and an even part
    sum_j a_j |<w_j, x>| / 2. If x and -x are equally likely, as in XOR clusters, nothing linear explains any of
    the even part, and the linear part's share of the variance is the R² of the best linear fit. No fit is
    made, for which there would have to be more inputs than dimensions.

    Args:
        preactivation: <w_j, x> at fresh inputs, not the training ones [n, m].
        second_layer: output weights a [m].

    Returns:
        Scalar from 0 (even) to 1 (linear); NaN where the network is constant.

    Source: our choice; it puts a number on what the paper proves of the first step.
    """
    linear = preactivation @ second_layer / 2
    even = preactivation.abs() @ second_layer / 2
    variance = linear.square().mean()  # the linear part has mean 0 by symmetry
    return variance / (variance + even.var(correction=0))


@torch.no_grad()
def linear_r2(model: TwoLayerReLU, x: Tensor) -> float:
    """R² of the best linear approximation of a network at fresh inputs [n, p]; see `linear_share`."""
    return float(linear_share(F.linear(x, model.first_layer), model.second_layer))


@torch.no_grad()
def neuron_alignment(model: TwoLayerReLU, directions: Tensor) -> Tensor:
    """Cosines between the neurons' weights and given directions.

    Args:
        model: a two-layer network.
        directions: vectors of any positive length, such as the cluster means [k, p].

    Returns:
        Cosines [m, k]; 0 for a neuron whose weights are all 0.

    Raises:
        ValueError: the directions do not fit the network's input, or one of them is 0.
    """
    weights = model.first_layer
    if directions.ndim != 2 or directions.shape[1] != weights.shape[1]:
        raise ValueError(f"directions has shape {tuple(directions.shape)}; expected (k, {weights.shape[1]})")
    if not (directions != 0).any(dim=1).all():
        raise ValueError("directions has a row of zeros; expected vectors of positive length")
    # Initial weights may be as small as 1e-38; scaling by the largest entry first keeps their squares.
    largest = weights.abs().amax(dim=1, keepdim=True)
    neurons = torch.where(largest > 0, weights / largest, 0)
    return F.normalize(neurons, dim=1) @ F.normalize(directions.to(weights), dim=1).T


def minimum_norm_interpolator(gram: Tensor, y: Tensor) -> Tensor:
    """The linear function of least norm through the given values: regression without a ridge.

    Args:
        gram: inner products of the inputs [n, n], invertible: at most as many inputs as dimensions.
        y: values [n].

    Returns:
        Coefficients [n]: the weights are coefficients @ inputs, the fitted values gram @ coefficients.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if gram.shape != (len(y), len(y)):
        raise ValueError(f"gram has shape {tuple(gram.shape)}; expected ({len(y)}, {len(y)})")
    solution: Tensor = torch.linalg.solve(gram, y)
    return solution


@dataclass(frozen=True)
class OverfittingReport:
    """When a training run fitted its data, and when it generalised.

    Args:
        interpolation_step: first recorded step at which every training label is fitted; None if never.
        generalisation_step: first recorded step from which the test accuracy keeps to the target, or None.
        delay: steps from the first to the second, positive when generalisation came late; None if either is.
        stays_fitted: whether every training label stays fitted from the first such step on.
        benign: whether the run ends with every training label fitted and the test accuracy at the target.
    """

    interpolation_step: int | None
    generalisation_step: int | None
    delay: int | None
    stays_fitted: bool
    benign: bool


def overfitting_report(
    steps: Sequence[int] | Tensor,
    training_accuracy: Sequence[float] | Tensor,
    test_accuracy: Sequence[float] | Tensor,
    *,
    target: float = 0.99,
) -> OverfittingReport:
    """Read memorisation, generalisation and the delay between them off the log of any training run.

    Args:
        steps: recorded steps in increasing order [r].
        training_accuracy: share of the training labels, as given, that are fitted, 0 to 1 [r].
        test_accuracy: share of the test labels predicted, 0 to 1 [r].
        target: test accuracy that counts as generalising; on labels with flip rate η, 1 - η is the optimum.

    Raises:
        ValueError: the logs are empty or differ in length, the steps do not increase, or no accuracy can
            reach the target.
    """
    logs = (steps, training_accuracy, test_accuracy)
    step, training, test = (torch.as_tensor(log, dtype=torch.float64).flatten().cpu() for log in logs)
    if not 0 < len(step) == len(training) == len(test):
        lengths = f"{len(step)}, {len(training)} and {len(test)}"
        raise ValueError(f"steps, training_accuracy and test_accuracy have lengths {lengths}; expected equal")
    if not (step.diff() > 0).all():
        raise ValueError(f"steps is {step.long().tolist()}; expected increasing numbers")
    if not 0 < target <= 1:
        raise ValueError(f"target is {target}; expected above 0 and at most 1")

    fitted = (training >= 1).nonzero().flatten()
    short = (test < target).nonzero().flatten()
    settled = int(short[-1]) + 1 if len(short) else 0
    interpolation = int(step[fitted[0]]) if len(fitted) else None
    generalisation = int(step[settled]) if settled < len(step) else None
    return OverfittingReport(
        interpolation_step=interpolation,
        generalisation_step=generalisation,
        delay=None if interpolation is None or generalisation is None else generalisation - interpolation,
        stays_fitted=len(fitted) > 0 and bool((training[fitted[0] :] >= 1).all()),
        benign=bool(training[-1] >= 1 and test[-1] >= target),
    )


def theory_constants(
    *,
    samples: int,
    dimension: int,
    signal: float,
    noise_rate: float,
    width: int,
    init_scale: float,
    learning_rate: float,
) -> dict[str, float]:
    """The constant C with which a setting meets each assumption of the theorems.

    The paper assumes that six ratios are at least C, for one large constant C that it leaves open (1 in place
    of C for the tiny start). Below 1, a ratio cannot meet its assumption with any C above 1.

    Args:
        samples: n.
        dimension: p.
        signal: norm of the means.
        noise_rate: η; 0 gives infinity.
        width: m.
        init_scale: ω; 0 gives infinity.
        learning_rate: α.

    Returns:
        The six ratios, by assumption.

    Raises:
        ValueError: an argument other than the noise rate and the initial scale is not positive.

    Source: assumptions (A1) to (A6) of the paper, from memory. The first two imply p ≥ C⁴ n^5.02, as a public
    review of the paper says too.
    """
    positive = {"samples": samples, "dimension": dimension, "signal": signal, "width": width}
    for name, value in {**positive, "learning_rate": learning_rate}.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a positive number")
    movement = learning_rate * signal / (samples * width**1.5 * dimension)
    return {
        "strong signal: signal² / (n^0.51 √p)": signal**2 / (samples**0.51 * math.sqrt(dimension)),
        "high dimension: p / (n signal)²": dimension / (samples * signal) ** 2,
        "few flips: 1 / η": 1 / noise_rate if noise_rate else math.inf,
        "small steps: 1 / (α n p)": 1 / (learning_rate * samples * dimension),
        "tiny start: α signal / (ω n m^1.5 p)": movement / init_scale if init_scale else math.inf,
        "wide network: m / n^0.02": width / samples**0.02,
    }
