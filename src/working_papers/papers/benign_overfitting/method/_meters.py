"""What is measured: accuracies, the linear share, alignments, and a meter for training logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.benign_overfitting.method._clusters import Batch
from working_papers.papers.benign_overfitting.method._network import TwoLayerReLU


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
    """Share of the labels whose sign the scores have; a score of exactly 0 is wrong.

    Args:
        scores: outputs of a classifier [n].
        labels: -1 or +1 [n].
    """
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
    """R² of the best linear approximation of a network at fresh inputs; see `linear_share`.

    Args:
        model: a two-layer network.
        x: inputs that it was not trained on [n, p].
    """
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

    Source: the paper's six assumptions, from memory. The first two imply p ≥ C⁴ n^5.02, as a public
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
