"""Benign Overfitting and Grokking in ReLU Networks for XOR Cluster Data.

https://arxiv.org/abs/2310.02541 (Xu, Wang, Frei, Vardi, Hu; ICLR 2024)

Four Gaussian clusters carry XOR labels, some of them flipped. Full-batch gradient descent on a two-layer ReLU
network memorises every label, the flipped ones included, in its first step, as a linear classifier would, and
only a few steps later finds the clusters: it then classifies fresh data nearly perfectly and still fits the noise.

No official code was found; data, network and training follow the paper's Section 2. Ours alone are the
coordinates in which the weights are never formed (`GramSpace`), the exact linear share (`linear_share`) and the
meter that reads the delay off any training log (`overfitting_report`).

Dimensions:
    n  training samples             p  input dimension          m  neurons
    q  observed points              k  directions               r  recorded steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Batch",
    "GramSpace",
    "OverfittingReport",
    "Trace",
    "TwoLayerReLU",
    "XORClusters",
    "gradient_descent_step",
    "gradient_descent_trace",
    "linear_r2",
    "linear_share",
    "minimum_norm_interpolator",
    "neuron_alignment",
    "overfitting_report",
    "step_coefficients",
    "theory_constants",
]


# Data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Samples with both their labels: the one given to the learner and the one the cluster has.

    Args:
        x: inputs [n, p].
        y: labels as given, some flipped, -1 or +1 in the inputs' dtype [n].
        clean: labels of the clusters, -1 or +1 in the inputs' dtype [n].
        cluster: index of the cluster [n]: 0 is +mean 1, 1 is -mean 1, 2 is +mean 2, 3 is -mean 2.
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

    A cluster is drawn evenly from +mean 1, -mean 1 (clean label +1), +mean 2, -mean 2 (clean label -1); the input is
    the cluster's mean plus standard normal noise; the label is flipped with probability `noise_rate`.
    No linear function of the input agrees with the clean labels more often than half the time.

    Args:
        means: two orthogonal vectors of equal norm [2, p]; samples follow their dtype and device.
        noise_rate: probability that a label is flipped, at least 0 and below 1/2.

    Raises:
        ValueError: the means are no such pair, or the noise rate is out of range.

    Source: Section 2 of the paper, there written with unit noise, as here.
    """

    means: Tensor
    noise_rate: float = 0.0

    def __post_init__(self) -> None:
        means = self.means
        if means.ndim != 2 or len(means) != 2 or not means.is_floating_point():
            raise ValueError(
                f"means has shape {tuple(means.shape)} and dtype {means.dtype}; "
                "expected a floating-point tensor of shape (2, dimension)"
            )
        gram = (means.double() @ means.double().T).cpu()
        scale = float(gram.diagonal().max())
        if not 0 < scale < math.inf or float((gram / scale - torch.eye(2, dtype=gram.dtype)).abs().max()) > 1e-4:
            raise ValueError(f"means has inner products {gram.tolist()}; expected orthogonal vectors of equal norm")
        if not 0.0 <= self.noise_rate < 0.5:
            raise ValueError(f"noise_rate is {self.noise_rate}; expected at least 0 and below 0.5")

    @classmethod
    def random(
        cls,
        dimension: int,
        *,
        signal: float,
        noise_rate: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> XORClusters:
        """Draw the two means in uniformly random directions.

        Args:
            dimension: input dimension p, at least 2.
            signal: norm of each mean, in units of the noise's standard deviation in one coordinate.
            noise_rate: probability that a label is flipped.
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
        orthonormal, _ = torch.linalg.qr(normal)
        return cls(signal * orthonormal.T.contiguous(), noise_rate)

    @property
    def dimension(self) -> int:
        """Input dimension p."""
        return self.means.shape[1]

    @property
    def signal(self) -> float:
        """Norm of each mean."""
        return float(self.means[0].norm())

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draw independent samples.

        Args:
            count: number of samples n, at least 1.
            generator: source of randomness, on the means' device.

        Returns:
            A batch of n samples, with the means' dtype and on their device.

        Raises:
            ValueError: the count is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 sample")
        means, device = self.means, self.means.device
        cluster = torch.randint(4, (count,), generator=generator, device=device)
        flipped = torch.rand(count, generator=generator, device=device) < self.noise_rate
        x = torch.randn(count, self.dimension, generator=generator, device=device, dtype=means.dtype)
        x += torch.cat([means[:1], -means[:1], means[1:], -means[1:]])[cluster]
        clean = torch.where(cluster < 2, 1.0, -1.0).to(means.dtype)
        return Batch(x, torch.where(flipped, -clean, clean), clean, cluster, flipped)

    def optimal_labels(self, x: Tensor) -> Tensor:
        """Label fresh inputs by the rule that knows the means: which of the two has the larger |projection|.

        Args:
            x: inputs [n, p].

        Returns:
            -1 or +1 in the inputs' dtype [n]; no rule has a smaller error.
        """
        projection = (x @ self.means.T.to(x)).abs()
        return torch.where(projection[:, 0] >= projection[:, 1], 1.0, -1.0).to(x.dtype)


# Network and training -----------------------------------------------------------------------------------------


class TwoLayerReLU(nn.Module):
    """f(x) = sum_j a_j relu(<w_j, x>), without biases; the second layer a is random signs over sqrt(m) and fixed.

    Args:
        dimension: input dimension p.
        width: number of neurons m.
        init_scale: standard deviation of the first layer's entries; the paper's theory needs it tiny.
        train_second_layer: whether the second layer is a parameter too; the paper keeps it fixed.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dimension < 1:
            raise ValueError(f"dimension is {dimension}; expected at least 1")
        if width < 1:
            raise ValueError(f"width is {width}; expected at least 1 neuron")
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
        signs = torch.randint(2, self.second_layer.shape, generator=generator, device=self.second_layer.device)
        self.second_layer.copy_((2 * signs - 1) / math.sqrt(len(signs)))

    def extra_repr(self) -> str:
        width, dimension = self.first_layer.shape
        return f"dimension={dimension}, width={width}, init_scale={self.init_scale}"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [..., p] to real scores [...]; the sign is the predicted label."""
        return F.relu(F.linear(x, self.first_layer)) @ self.second_layer


def step_coefficients(preactivation: Tensor, second_layer: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    """One gradient step on the mean logistic loss, as multiples of the training inputs to add to each neuron.

    The gradient of log(1 + exp(-y f)) reaches neuron j only through samples that switch it on, and points along them:
    w_j gains (learning rate / n) a_j sum_i g_i y_i [<w_j, x_i> > 0] x_i with g_i = 1 / (1 + exp(y_i f(x_i))).

    Args:
        preactivation: <w_j, x_i> at the training inputs [n, m].
        second_layer: output weights a [m].
        y: labels, -1 or +1 [n].
        learning_rate: step size.

    Returns:
        Coefficients [m, n]; multiplied by the inputs [n, p] they are the change of the first layer.

    Source: the update of Section 2; the derivative of relu at 0 is taken as 0, as torch does.
    """
    scores = preactivation.relu() @ second_layer
    pull = torch.sigmoid(-y * scores) * y * (learning_rate / len(y))
    return (pull[:, None] * (preactivation > 0) * second_layer).T


def gradient_descent_step(
    first_layer: Tensor, second_layer: Tensor, x: Tensor, y: Tensor, learning_rate: float
) -> Tensor:
    """The first layer after one step of full-batch gradient descent on the mean logistic loss.

    Args:
        first_layer: weights [m, p].
        second_layer: fixed output weights [m].
        x: training inputs [n, p].
        y: labels, -1 or +1 [n].
        learning_rate: step size.

    Returns:
        New weights [m, p].
    """
    return first_layer + step_coefficients(x @ first_layer.T, second_layer, y, learning_rate) @ x


@dataclass(frozen=True)
class Trace:
    """What full-batch training looked like at the recorded steps.

    Args:
        steps: recorded steps in increasing order, int64 [r].
        training_loss: mean logistic loss on the labels as given [r].
        training_accuracy: share of the given, partly flipped, training labels that are fitted [r].
        clean_training_accuracy: share of the training samples on which the prediction is the clean label [r].
        test_accuracy: share of clean labels predicted on the test samples [r].
        extra: whatever the callbacks measured, by name [r].
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
    """Train any model of scalar output by full-batch gradient descent on the logistic loss, and watch it.

    Args:
        model: maps inputs [n, p] to scores [n] or [n, 1]; it is trained in place.
        train: training samples; the model is shown `x` and `y` only.
        test: test samples; scored against their clean labels.
        learning_rate: step size, constant.
        steps: number of gradient steps.
        record_at: steps at which to measure, 0 being the untrained model; every step when left out.
        callbacks: further numbers to measure then, by name, each a function of the model.

    Returns:
        The trace, on the CPU in float64.

    Raises:
        ValueError: the number of steps is negative, a step to record lies outside, or the output is not scalar.
    """
    wanted = _recorded_steps(steps, record_at)
    callbacks = {} if callbacks is None else callbacks
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows: list[tuple[float, ...]] = []
    for step in range(steps + 1):
        scores = _scores(model, train.x)
        loss = F.softplus(-train.y * scores).mean()
        if step in wanted:
            with torch.no_grad():
                test_scores = _scores(model, test.x)
                rows.append(
                    (
                        float(loss),
                        _accuracy(scores, train.y),
                        _accuracy(scores, train.clean),
                        _accuracy(test_scores, test.clean),
                        *(float(measure(model)) for measure in callbacks.values()),
                    )
                )
        if step < steps:
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=learning_rate)
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Trace(torch.tensor(sorted(wanted)), *columns[:4], extra=dict(zip(callbacks, columns[4:], strict=True)))


def _recorded_steps(steps: int, record_at: Iterable[int] | None) -> frozenset[int]:
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected at least 0")
    wanted = frozenset(range(steps + 1) if record_at is None else record_at)
    outside = sorted(step for step in wanted if not 0 <= step <= steps)
    if outside or not wanted:
        raise ValueError(f"record_at has {outside or 'no steps'}; expected steps from 0 to {steps}")
    return wanted


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    scores: Tensor = model(x)
    if scores.numel() != len(x):
        raise ValueError(
            f"model returned shape {tuple(scores.shape)} for {len(x)} inputs; expected one score for each"
        )
    return scores.reshape(len(x))


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of labels whose sign the scores have; a score of exactly 0 counts as wrong."""
    return float((scores * labels > 0).double().mean())


# The same dynamics without the weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class GramSpace:
    """Gradient descent on the first layer, exactly, without ever forming it.

    Every step adds multiples of the training inputs to the neurons, so w_j = w_j(0) + sum_i c_ji x_i for ever, and all
    that is ever asked of the weights are inner products. A step costs n * n * m instead of n * m * p operations.
    The observed points are the training inputs, which come first, and any others: test inputs, cluster means.

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
        shapes = {name: tuple(getattr(self, name).shape) for name in self.__dataclass_fields__}
        observed, samples = shapes["kernel"] if len(shapes["kernel"]) == 2 else (0, 1)
        width = self.second_layer.numel()
        if (
            observed < samples
            or shapes["initial"] != (observed, width)
            or not shapes["second_layer"] == shapes["initial_norms"] == (width,)
        ):
            raise ValueError(
                f"kernel and the rest have shapes {shapes}; expected kernel (q, n) with q at least n, "
                "initial (q, m), second_layer (m,) and initial_norms (m,)"
            )

    @classmethod
    @torch.no_grad()
    def of(cls, network: TwoLayerReLU, x: Tensor, points: Iterable[Tensor] = ()) -> GramSpace:
        """Take the inner products once.

        Args:
            network: the untrained network; it is not changed.
            x: training inputs [n, p].
            points: further points to observe, any number of tensors [., p], each used once and then let go.

        Returns:
            The space that observes `x` and then the points in their order.

        Raises:
            ValueError: the network trains its second layer, which leaves this space.
        """
        if isinstance(network.second_layer, nn.Parameter):
            raise ValueError("network trains its second layer; expected one whose second layer is fixed")
        first_layer = network.first_layer
        rows = [(some @ x.T, some @ first_layer.T) for some in chain([x], points)]
        kernel, initial = (torch.cat(column) for column in zip(*rows, strict=True))
        return cls(kernel, initial, network.second_layer.clone(), first_layer.square().sum(dim=1))

    @property
    def samples(self) -> int:
        """Number of training inputs n."""
        return self.kernel.shape[1]

    def rescaled(self, factor: float) -> GramSpace:
        """The same space with the untrained first layer multiplied by `factor`."""
        return GramSpace(self.kernel, factor * self.initial, self.second_layer, factor**2 * self.initial_norms)

    def start(self) -> Tensor:
        """Coefficients of the untrained network: zeros [m, n]."""
        return self.kernel.new_zeros(len(self.second_layer), self.samples)

    def preactivation(self, coefficients: Tensor) -> Tensor:
        """<w_j, point> for coefficients [m, n] at all observed points [q, m]."""
        return torch.addmm(self.initial, self.kernel, coefficients.T)

    def scores(self, coefficients: Tensor) -> Tensor:
        """The network's outputs for coefficients [m, n] at all observed points [q]."""
        return self.preactivation(coefficients).relu() @ self.second_layer

    def step(self, coefficients: Tensor, y: Tensor, learning_rate: float) -> Tensor:
        """Coefficients [m, n] after one step of gradient descent on labels `y` [n]."""
        at_training = torch.addmm(self.initial[: self.samples], self.kernel[: self.samples], coefficients.T)
        return coefficients + step_coefficients(at_training, self.second_layer, y, learning_rate)

    def squared_norms(self, coefficients: Tensor) -> Tensor:
        """Squared norms of the neurons [m] for coefficients [m, n]."""
        gram, initial = self.kernel[: self.samples], self.initial[: self.samples]
        return self.initial_norms + ((2 * initial.T + coefficients @ gram) * coefficients).sum(dim=1)


# What was learned -----------------------------------------------------------------------------------------------


def linear_share(preactivation: Tensor, second_layer: Tensor) -> Tensor:
    """Share of the network's variance that a linear function explains, for inputs as likely as their mirror images.

    relu(z) = z/2 + |z|/2, so f splits exactly into a linear part <sum_j a_j w_j, x> / 2 and an even part
    sum_j a_j |<w_j, x>| / 2. Under a distribution that is symmetric about 0, as XOR clusters are, the two are
    uncorrelated, no linear function explains any of the even part, and this share is the R^2 of the best linear fit
    (intercept included). It needs no fit, which fewer samples than dimensions could not support.

    Args:
        preactivation: <w_j, x> at fresh inputs [n, m].
        second_layer: output weights a [m].

    Returns:
        Scalar tensor from 0 to 1; NaN where the network is constant.

    Source: our choice, because it makes exact what Section 4 of the paper says of the first step; the identity is
    elementary.
    """
    linear = preactivation @ second_layer / 2
    even = preactivation.abs() @ second_layer / 2
    linear_variance = linear.square().mean()  # the mean is 0 by symmetry
    return linear_variance / (linear_variance + even.var(correction=0))


@torch.no_grad()
def linear_r2(model: TwoLayerReLU, x: Tensor) -> float:
    """R^2 of the best linear approximation of a network over inputs drawn from a symmetric distribution.

    Args:
        model: a two-layer network without biases.
        x: fresh inputs, not the training ones [n, p].

    Returns:
        1 for a linear function, 0 for an even one. See `linear_share`.
    """
    return float(linear_share(F.linear(x, model.first_layer), model.second_layer))


@torch.no_grad()
def neuron_alignment(model: TwoLayerReLU, directions: Tensor) -> Tensor:
    """Cosines between the neurons' weights and given directions.

    Args:
        model: a two-layer network.
        directions: vectors of any positive length, such as the cluster means [k, p].

    Returns:
        Cosines from -1 to 1 [m, k]; 0 for a neuron whose weights are all zero.

    Raises:
        ValueError: the directions do not fit the network's input or one of them is zero.
    """
    dimension = model.first_layer.shape[1]
    if directions.ndim != 2 or directions.shape[1] != dimension:
        raise ValueError(f"directions has shape {tuple(directions.shape)}; expected (k, {dimension})")
    if not bool((directions != 0).any(dim=1).all()):
        raise ValueError("directions has a row of zeros; expected vectors of positive length")
    # Neurons start out as small as 1e-6; normalize's default floor of 1e-12 on the norm is far below that.
    return F.normalize(model.first_layer, dim=1) @ F.normalize(directions, dim=1).T.to(model.first_layer)


def minimum_norm_interpolator(x: Tensor, y: Tensor) -> Tensor:
    """The linear function of least norm that takes the given values at the given inputs (ridgeless regression).

    Args:
        x: inputs, at most as many as dimensions and linearly independent [n, p].
        y: values [n].

    Returns:
        Weights [p] with x @ weights = y.

    Raises:
        ValueError: there are more inputs than dimensions, so that no interpolator need exist.
    """
    if len(x) > x.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected at most as many inputs as dimensions")
    return x.T @ torch.linalg.solve(x @ x.T, y)


@dataclass(frozen=True)
class OverfittingReport:
    """When a training run fitted its data, and when it generalised.

    Args:
        interpolation_step: first recorded step at which every training label is fitted; None if never.
        generalisation_step: first recorded step from which the test accuracy stays at the target; None if never.
        delay: steps from the first to the second; None unless both happened. Positive: grokking.
        stays_fitted: whether every training label stays fitted at each recorded step from the first on.
        final_training_accuracy: at the last recorded step.
        final_test_accuracy: at the last recorded step.
        benign: whether the run ends with every training label fitted and the test accuracy at the target.
    """

    interpolation_step: int | None
    generalisation_step: int | None
    delay: int | None
    stays_fitted: bool
    final_training_accuracy: float
    final_test_accuracy: float
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
        test_accuracy: share of test labels predicted, 0 to 1 [r].
        target: test accuracy that counts as generalising, above 0 and at most 1; on labels with flip rate η the best
            that can be reached is 1 - η.

    Returns:
        The report.

    Raises:
        ValueError: the logs differ in length or are empty, the steps do not increase, or the target is out of range.
    """
    step, training, test = (
        torch.as_tensor(log, dtype=torch.float64).flatten().cpu() for log in (steps, training_accuracy, test_accuracy)
    )
    if not 0 < len(step) == len(training) == len(test):
        raise ValueError(
            f"steps, training_accuracy and test_accuracy have lengths {len(step)}, {len(training)} and {len(test)}; "
            "expected the same length, at least 1"
        )
    if not bool((step.diff() > 0).all()):
        raise ValueError(f"steps is {step.long().tolist()}; expected increasing steps")
    if not 0 < target <= 1:
        raise ValueError(f"target is {target}; expected above 0 and at most 1")

    fitted = (training >= 1).nonzero().flatten()
    below = (test < target).nonzero().flatten()
    settled = int(below[-1]) + 1 if len(below) else 0  # index of the first recorded step of the final good stretch
    interpolation = int(step[fitted[0]]) if len(fitted) else None
    generalisation = int(step[settled]) if settled < len(step) else None
    return OverfittingReport(
        interpolation_step=interpolation,
        generalisation_step=generalisation,
        delay=None if interpolation is None or generalisation is None else generalisation - interpolation,
        stays_fitted=bool(len(fitted)) and bool((training[fitted[0] :] >= 1).all()),
        final_training_accuracy=float(training[-1]),
        final_test_accuracy=float(test[-1]),
        benign=bool(training[-1] >= 1) and bool(test[-1] >= target),
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
    """How far a setting is inside, or outside, the regime in which the paper proves its theorems.

    Each assumption has the form "ratio at least C" for one large constant C that the paper leaves open (the fifth has
    1 in place of C). The returned numbers are the ratios: a ratio below 1 means that no C > 1 satisfies the assumption.

    Args:
        samples: n.
        dimension: p.
        signal: norm of the means.
        noise_rate: probability of a flipped label; 0 gives infinity.
        width: m.
        init_scale: standard deviation of the first layer's entries; 0 gives infinity.
        learning_rate: step size α.

    Returns:
        The six ratios by what each asks for.

    Raises:
        ValueError: an argument that must be positive is not.

    Source: assumptions (A1) to (A6) of Section 2, written down from memory: the paper's text was not at hand. The
    first two together ask for p of the order of n^5.02, which a public review of the paper states too.
    """
    positive = {
        "samples": samples,
        "dimension": dimension,
        "signal": signal,
        "width": width,
        "learning_rate": learning_rate,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a positive number")
    return {
        "strong signal: signal² / (n^0.51 √p)": signal**2 / (samples**0.51 * math.sqrt(dimension)),
        "high dimension: p / (n² signal²)": dimension / (samples * signal) ** 2,
        "few flips: 1 / noise rate": 1 / noise_rate if noise_rate else math.inf,
        "small steps: 1 / (α n p)": 1 / (learning_rate * samples * dimension),
        "tiny start: α signal / (ω n m^1.5 p)": (
            learning_rate * signal / (init_scale * samples * width**1.5 * dimension) if init_scale else math.inf
        ),
        "wide network: m / n^0.02": width / samples**0.02,
    }
