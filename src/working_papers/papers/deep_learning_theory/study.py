"""Do random networks follow the recursions, and do plain networks of fifty layers train only at criticality?

An arm is an activation with an initialisation. Each trial draws many random networks of several widths and compares
their kernels with the predicted mean and variance, then trains one deep network on handwritten digits.

Letters: R = networks, B = inputs of each, L = layers of preactivations, n = width, K = predicted kernel, G = measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.data.digits import load_digits
from working_papers.papers.deep_learning_theory.method import (
    Activation,
    CriticalPoint,
    MetricMoments,
    Perceptrons,
    find_critical,
    metric_moments,
    sample_metric,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUTS = 16  # digits that each random network is shown: fluctuations are averaged over them
UNCHECKED = 1 / 8  # of the random networks, for arms whose predictions no check reads
LARGEST_VARIANCE = 0.25  # predicted Var[G] / K² up to which networks are compared with the theory's leading order
MOST_NETWORKS = 2000
CLASSES = 10
LEARNING_RATES = tuple({"learning rate × depth": rate} for rate in (0.01, 0.03, 0.08, 0.2))  # of Adam
TINY = 1e-300
GUIDE = "#64748b"

ACCURACY = "test accuracy"
KERNEL = "error of the kernel"
EXPONENT = "exponent of depth"
COEFFICIENT = "variance per depth over width"
BOTH = "variance, depth and width doubled"
DEEPER = "variance, depth doubled"
GRADIENTS = "growth of gradients"


def identity(z: Tensor) -> Tensor:
    """The activation of a linear network."""
    return z


@dataclass(frozen=True)
class Arm:
    """An activation with an initialisation.

    Attributes:
        act: the activation.
        coefficient: predicted variance per depth over width, V / (K² l), at its critical point.
        C_W: variance of the weights times fan_in; None for the critical point's.
        default: PyTorch's initialisation of linear layers: everything uniform with variance 1 / (3 fan_in).
    """

    act: Activation
    coefficient: float
    C_W: float | None = None
    default: bool = False

    def variances(self, width: int) -> tuple[float, float]:
        """C_b and C_W."""
        if self.default:
            return 1 / (3 * width), 1 / 3
        if self.C_W is not None:
            return 0.0, self.C_W
        assert self.point.C_b is not None and self.point.C_W is not None
        return self.point.C_b, self.point.C_W

    @cached_property
    def point(self) -> CriticalPoint:
        """The critical point of the activation."""
        return find_critical(self.act)

    @property
    def critical(self) -> bool:
        """Whether it is initialised at its critical point."""
        return self.C_W is None and not self.default

    @property
    def input_square(self) -> float:
        """Mean square of an input's entries: what puts the first layer at K* where there is one, else 1."""
        return self.point.input_square or 1.0


RELU, TANH, GELU = 5.0, 2 / 3, 4.9042  # book, section 5.4; GELU's is the recursion's, (V^{l+1} - V^l) / K*²
ARMS = {
    "relu": Arm(torch.relu, RELU),
    "linear": Arm(identity, 2.0),
    "tanh": Arm(torch.tanh, TANH),
    "gelu": Arm(F.gelu, GELU),
    "relu small": Arm(torch.relu, RELU, C_W=1.0),
    "relu large": Arm(torch.relu, RELU, C_W=3.0),
    "relu default": Arm(torch.relu, RELU, default=True),
    "tanh small": Arm(torch.tanh, TANH, C_W=0.5),
    "tanh large": Arm(torch.tanh, TANH, C_W=2.0),
    "gelu he": Arm(F.gelu, GELU, C_W=2.0),
}

study = Study(
    question="Do random networks scatter around the predicted kernels by the predicted multiples of depth over width, "
    "and do plain networks of fifty layers train only from the critical initialisation?",
    arms={
        "relu": "ReLU, critical",
        "linear": "Linear, critical",
        "tanh": "tanh, critical",
        "gelu": "GELU, critical",
        "relu small": "ReLU, half the variance (Xavier)",
        "relu large": "ReLU, 1.5 times the variance",
        "relu default": "ReLU, PyTorch's default",
        "tanh small": "tanh, half the variance",
        "tanh large": "tanh, twice the variance",
        "gelu he": "GELU, initialised as ReLU (He)",
    },
    method="relu",
    seeds={"smoke": 1, "laptop": 8, "paper": 5},
    measures=(
        Measure(ACCURACY, better="higher", about="digits by other writers, after the last step"),
        Measure(
            KERNEL,
            better="lower",
            scale="ratio",
            about="largest relative deviation of the mean kernel from its prediction at any layer; narrowest nets",
        ),
        Measure(EXPONENT, about="slope of log mean kernel against log layers passed, deeper half; middle nets"),
        Measure(
            COEFFICIENT,
            about="variance of G / K² per depth over width where that is small: linear term of a quadratic fit",
        ),
        Measure(BOTH, scale="ratio", about="variance of G / K² at twice the depth and width, over that before"),
        Measure(DEEPER, scale="ratio", about="variance of G / K² at twice the depth, over that before; narrowest nets"),
        Measure(
            GRADIENTS,
            unit="decades",
            about="log10 of squared gradients at the first layer over those at the last, before training",
        ),
    ),
    checks=(
        beats("relu", over="relu small", on=ACCURACY, by=0.1, claim="criticality-makes-depth-trainable"),
        beats("relu", over="relu large", on=ACCURACY, by=0.1, claim="criticality-makes-depth-trainable"),
        beats("relu", over="relu default", on=ACCURACY, by=0.1, claim="criticality-makes-depth-trainable"),
        beats("tanh", over="tanh small", on=ACCURACY, by=0.1, claim="criticality-makes-depth-trainable"),
        beats("tanh", over="tanh large", on=ACCURACY, by=0.1, claim="criticality-makes-depth-trainable"),
        within("relu", on=KERNEL, high=0.05, claim="universality-classes"),
        within("tanh", on=KERNEL, high=0.05, claim="universality-classes"),
        within("gelu", on=KERNEL, high=0.05, claim="universality-classes"),
        within("tanh", on=EXPONENT, low=-1.15, high=-0.85, claim="universality-classes"),
        within("relu", on=COEFFICIENT, low=0.85 * 5, high=1.15 * 5, claim="depth-over-width"),
        within("linear", on=COEFFICIENT, low=0.85 * 2, high=1.15 * 2, claim="depth-over-width"),
        within("tanh", on=COEFFICIENT, low=0.85 * 2 / 3, high=1.15 * 2 / 3, claim="depth-over-width"),
        within("relu", on=BOTH, low=0.8, high=1.25, claim="depth-over-width"),
        within("relu", on=DEEPER, low=1.6, high=2.4, claim="depth-over-width"),
    ),
    tuning=Tuning(on=ACCURACY, candidates=dict.fromkeys(ARMS, LEARNING_RATES)),
    budget="""Training: every arm gets the same images, batches, number of steps of Adam (laptop: 300 of batch 64, 50
        layers of width 128) and the same four learning rates, 2e-4 to 4e-3, of which the best on a tuning seed is
        reported. Random networks: 1.2e8 weights a width for critical arms, an eighth of that for the others.""",
    notes="""The book derives and does not benchmark; margins are ours: ten points of accuracy, five per cent on
        kernels, fifteen on coefficients. Paper scale has 200 layers of width 1024 and the same digits. The book
        follows gradient descent; here Adam trains, which is kinder to the other initialisations because it evens out
        the size of gradients. On seeds that are not reported, at 30 layers, the best of four rates of SGD brought the
        critical ReLU network to 0.80 in 150 steps and no other above 0.38; with Adam and 400 steps half and 1.5 times
        the variance came within five to eleven points of the critical 0.89. So this is a statement about a number of
        steps. How far off an initialisation is depends on its susceptibility: at twice the variance squared gradients
        of tanh networks grow by 1.1 a layer, a hundredfold over 50 layers, those of ReLU at 1.5 times the variance by
        10^8.6. The best rate for tanh at twice the variance, 4e-4, falls between two of the four: on other seeds it
        reaches 0.83 there, three points below the critical network. GELU initialised as ReLU is shown without a
        check, for seeds differ too much for eight to decide. The coefficients are limits of small depth over width:
        the variance is compared up to a predicted 0.25, and higher orders are taken up by a quadratic term. That of
        tanh approaches 2/3 from below, as the recursion does; the fit spans 24 to 96 layers.""",
    figure_size=(11.5, 3.9),
)


@dataclass(frozen=True)
class Size:
    """How large.

    Attributes:
        widths: of the random networks; the second is twice the first.
        weights: drawn for each width.
        width: of the trained network.
        depth: its layers, the last one included.
        steps: of Adam.
        batch: images a step.
        shown: random networks of the trained network's shape, for the figure.
    """

    widths: tuple[int, ...]
    weights: float
    width: int
    depth: int
    steps: int
    batch: int
    shown: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale that of the book's larger networks, with the digits still."""
        return scale.choose(
            smoke=cls((16, 32), 2e5, width=16, depth=6, steps=10, batch=16, shown=4),
            laptop=cls((64, 128, 256), 1.2e8, width=128, depth=50, steps=300, batch=64, shown=32),
            paper=cls((128, 256, 512), 1e11, width=1024, depth=200, steps=10_000, batch=128, shown=32),
        )


@dataclass(frozen=True)
class Digits:
    """Inputs (N, n_0) with labels (N,), for training and for testing."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def scaled(self, square: float, device: str) -> Digits:
        """The same with a mean square of the entries, where it was one."""
        x, x_test = (part.to(device) * math.sqrt(square) for part in (self.x, self.x_test))
        return Digits(x, self.y.to(device), x_test, self.y_test.to(device))


@study.prepare
def normalised_digits(seed: int, scale: Scale) -> Digits:
    """The digits as rows of 64, minus the mean training image, each scaled to x · x / n_0 = 1; for all seeds alike."""
    train, test = load_digits()
    centred = (part.flat() - train.flat().mean(dim=0) for part in (train, test))
    x, x_test = (part / part.square().mean(dim=1, keepdim=True).sqrt() for part in centred)
    return Digits(x, train.labels, x_test, test.labels)


@dataclass(frozen=True)
class Trained:
    """Networks after training.

    Attributes:
        accuracy: on the test images (R,).
        losses: (steps, R).
        growth: log10 of squared gradients at the first layer over those at the last, before training (R,).
    """

    accuracy: Tensor
    losses: Tensor
    growth: Tensor


def train_networks(
    networks: Perceptrons,
    digits: Digits,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seeds: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train all networks at once with Adam; each draws its batches from its own seed.

    Args:
        networks: on the device of the digits; they are changed.
        digits: what they learn: any (N, n_0) inputs with labels.
        steps: of Adam.
        batch: samples a step.
        learning_rate: of Adam.
        seeds: one a network.
        progress: called with the number of steps done.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chosen = torch.stack([torch.randint(len(digits.x), (steps, batch), generator=each) for each in generators], dim=1)
    chosen = chosen.to(digits.x.device)  # (steps, R, batch)

    def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of every network (R,)."""
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(dim=1)

    layers = networks.preactivations(digits.x[chosen[0]])
    ends = torch.autograd.grad(losses_of(layers[-1], digits.y[chosen[0]]).sum(), [layers[0], layers[-1]])
    first, last = (part.double().square().sum(dim=(1, 2)).clamp_min(TINY) for part in ends)

    optimizer = torch.optim.Adam(networks.parameters(), lr=learning_rate, fused=True)
    curve = []
    for step, rows in enumerate(chosen):
        loss = losses_of(networks(digits.x[rows]), digits.y[rows])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        curve.append(loss.detach())
        if progress is not None:
            progress(step + 1)
    with torch.no_grad():
        guesses = networks(digits.x_test).argmax(dim=-1)
    return Trained((guesses == digits.y_test).double().mean(dim=1), torch.stack(curve), (first / last).log10())


@dataclass(frozen=True)
class Ensemble:
    """Random networks of one width.

    Attributes:
        width: n.
        networks: how many.
        mean: (L,), mean of G over networks and inputs.
        variance: (L,), its variance over networks over its squared mean, mean over inputs.
        predicted: what the theory says, at the same layers.
    """

    width: int
    networks: int
    mean: np.ndarray
    variance: np.ndarray
    predicted: MetricMoments

    @property
    def ratio(self) -> np.ndarray:
        """Depth over width, (l - 1) / n, of every layer."""
        return np.arange(len(self.mean)) / self.width


def draw_ensemble(trial: Trial, x: Tensor, arm: Arm, claimed: Arm, width: int, depth: int, networks: int) -> Ensemble:
    """Random networks of an arm, shown some of x, beside the prediction for the arm that they claim to be."""
    # Seeds of widths differ, and none is that of the trained network.
    generator = torch.Generator(trial.device).manual_seed(trial.seed + width * 1000 + depth)
    rows = torch.randint(len(x), (networks, INPUTS), generator=generator, device=trial.device)
    x = x.double() if trial.scale is Scale.PAPER else x  # off criticality 200 layers underflow
    C_b, C_W = arm.variances(width)
    widths = [width] * (depth - 1)
    metric = sample_metric(
        arm.act, C_b, C_W, x[rows], widths, networks=networks, uniform=arm.default, generator=generator
    ).double()
    mean = metric.mean(dim=(1, 2))
    C_b, C_W = claimed.variances(width)
    return Ensemble(
        width=width,
        networks=networks,
        mean=mean.cpu().numpy(),
        variance=(metric.var(dim=1).mean(dim=1) / mean.square()).cpu().numpy(),
        predicted=metric_moments(claimed.act, C_b, C_W, C_b + C_W * claimed.input_square, widths),
    )


def leading_coefficient(ensembles: Sequence[Ensemble]) -> float:
    """c of the fit variance = c x + d x², x = depth over width, to all widths; weighted by the number of networks."""
    x = np.concatenate([each.ratio for each in ensembles])
    variance = np.concatenate([each.variance for each in ensembles])
    weight = np.sqrt(np.concatenate([np.full(len(each.mean), each.networks) for each in ensembles]))
    terms = np.stack([x, x**2], axis=1)
    return float(np.linalg.lstsq(terms * weight[:, None], variance * weight, rcond=None)[0][0])


def measure(trial: Trial, digits: Digits, arm: Arm, claimed: Arm) -> Measurements:
    """All measures of an arm, against the predictions for the arm that it claims to be."""
    size = Size.of(trial.scale)
    digits = digits.scaled(arm.input_square, trial.device)
    reach = LARGEST_VARIANCE / arm.coefficient  # of depth over width
    weights = size.weights * (1 if arm.critical else UNCHECKED)
    ensembles = []
    for width in size.widths:
        layers = max(2, math.ceil(reach * width))
        count = min(MOST_NETWORKS, max(4, int(weights / (layers * width**2))))
        ensembles.append(draw_ensemble(trial, digits.x, arm, claimed, width, 1 + layers, count))
    narrow, wide = ensembles[:2]
    half = (len(narrow.mean) - 1) // 2
    last = max(2, min(len(wide.mean) - 1, wide.width // 5))  # deeper, corrections of order 1 / n would be seen
    passed = np.arange((last + 1) // 2, last + 1)
    shown = draw_ensemble(trial, digits.x, arm, claimed, size.width, size.depth, size.shown)
    shape = [digits.x.shape[1], *[size.width] * (size.depth - 1), CLASSES]
    C_b, C_W = arm.variances(size.width)
    networks = Perceptrons(arm.act, shape, C_b, C_W, seeds=[trial.seed], default=arm.default).to(trial.device)
    trained = train_networks(
        networks,
        digits,
        steps=size.steps,
        batch=size.batch,
        learning_rate=float(trial.setting["learning rate × depth"]) / size.depth,
        seeds=[trial.seed],
        progress=lambda step: trial.progress(step, of=size.steps),
    )
    return {
        ACCURACY: float(trained.accuracy),
        KERNEL: float(np.abs(narrow.mean[1:] / narrow.predicted.mean[1:].numpy() - 1).max()),
        EXPONENT: float(np.polyfit(np.log(passed), np.log(np.maximum(wide.mean[passed], TINY)), 1)[0]),
        COEFFICIENT: leading_coefficient(ensembles),
        BOTH: float(wide.variance[2 * half] / narrow.variance[half]),
        DEEPER: float(narrow.variance[2 * half] / narrow.variance[half]),
        GRADIENTS: float(trained.growth),
        "parameters": sum(part.numel() for part in networks.parameters()),
        "kernel": shown.mean,
        "predicted kernel": shown.predicted.kernel.numpy(),
        "losses": trained.losses[:, 0].cpu().numpy(),
        **{f"variance {number}": each.variance for number, each in enumerate(ensembles)},
        **{f"ratio {number}": each.ratio for number, each in enumerate(ensembles)},
    }


@study.trial
def simulate_and_train(trial: Trial, digits: Digits) -> Measurements:
    """One arm against its own predictions."""
    arm = ARMS[trial.arm]
    return measure(trial, digits, arm, arm)


@study.sham
def not_critical(trial: Trial, digits: Digits) -> Measurements:
    """Half the critical variance, passed off as critical."""
    return measure(trial, digits, ARMS["relu small"], ARMS[trial.arm])


@study.figure
def kernels_scatter_accuracy(trials: Trials, figure: Figure) -> None:
    """Kernels by depth, their scatter by depth over width, and who learns the digits."""
    kernels, scatter, accuracy = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.05))
    draw_kernels(trials, kernels)
    draw_scatter(trials, scatter)
    draw_accuracy(trials, accuracy)


def draw_kernels(trials: Trials, axes: Axes) -> None:
    """The kernel of networks of the trained shape: median over seeds, and the recursion."""
    shown = (
        ("relu large", "o", "ReLU, $C_W=3$"),
        ("relu", "o", "ReLU, $C_W=2$: critical"),
        ("tanh", "s", "tanh, $C_W=1$: critical"),
        ("relu default", "o", "ReLU, PyTorch's default"),
        ("relu small", "o", "ReLU, $C_W=1$"),
    )
    for arm, marker, label in shown:
        found = np.median(trials.arrays(arm, "kernel"), axis=0)
        layer = np.arange(1, len(found) + 1)
        axes.semilogy(layer, trials.arrays(arm, "predicted kernel")[0], color=GUIDE, linewidth=1.0, zorder=1)
        every = slice(0, None, max(1, len(found) // 12))
        axes.semilogy(layer[every], found[every], marker, color=trials.color(arm), markersize=3.5, label=label)
    axes.set(title="Kernels, layer by layer", xlabel="layer", ylabel="kernel (lines: theory)")
    axes.legend(loc="lower left", fontsize="small", handletextpad=0.2, borderaxespad=0.2)
    low, high = axes.get_ylim()
    axes.set_ylim(low * 1e-6, high)


def draw_scatter(trials: Trials, axes: Axes) -> None:
    """Variance of the kernel for several widths, which fall on one line for each activation."""
    top = 1.3 * LARGEST_VARIANCE
    for arm, label, slope in (("relu", "ReLU", "5"), ("linear", "linear", "2"), ("tanh", "tanh", "2/3")):
        coefficient = ARMS[arm].coefficient
        reach = LARGEST_VARIANCE / coefficient
        axes.plot([0, 1.2 * reach], [0, 1.2 * LARGEST_VARIANCE], color=GUIDE, linewidth=1.0, zorder=1)
        shift = (-30 if arm == "tanh" else 0, 3)  # keeps the last label within the panel
        axes.annotate(f"{label}: {slope}", (1.2 * reach, 1.2 * LARGEST_VARIANCE), shift, textcoords="offset points")
        for number, marker in enumerate(("o", "s", "^")[: len(Size.of(trials.scale).widths)]):
            ratio = trials.arrays(arm, f"ratio {number}")[0]
            variance = trials.arrays(arm, f"variance {number}").mean(axis=0)
            every = slice(0, None, max(1, len(ratio) // 9))
            axes.plot(ratio[every], variance[every], marker, color=trials.color(arm), markersize=4, alpha=0.8)
    for width, marker in zip(Size.of(trials.scale).widths, ("o", "s", "^"), strict=False):
        axes.plot([], [], marker, color=GUIDE, markersize=4, label=f"width {width}")
    axes.set(
        title="Scatter grows with depth over width", xlabel="depth / width", ylabel="variance of the kernel / kernel²"
    )
    axes.set_ylim(-0.01, 1.25 * top)
    axes.legend(loc="upper right", fontsize="small")


def draw_accuracy(trials: Trials, axes: Axes) -> None:
    """Test accuracy on every seed, and its mean, by arm."""
    names = {
        "relu": "ReLU, critical",
        "relu large": "$C_W=3$",
        "relu small": "$C_W=1$ (Xavier)",
        "relu default": "PyTorch's default",
        "tanh": "tanh, critical",
        "tanh large": "$C_W=2$",
        "tanh small": "$C_W=0.5$",
        "gelu": "GELU, critical",
        "gelu he": "as ReLU (He)",
        "linear": "linear, critical",
    }
    for place, arm in enumerate(names):
        values = trials.values(arm, ACCURACY)
        color = trials.color(arm.split()[0])
        spread = place + np.linspace(-0.2, 0.2, len(values))
        axes.plot(values, spread, "o", color=color, markersize=4, alpha=0.5, markeredgewidth=0)
        axes.vlines(values.mean(), place - 0.36, place + 0.36, color=color)
    axes.set_yticks(range(len(names)), names.values())
    axes.axvline(1 / CLASSES, color=GUIDE, linewidth=1.0, linestyle=":", zorder=1)
    axes.set(xlabel="test accuracy (dotted: guessing)", xlim=(0, 1))
    axes.set_title(f"{Size.of(trials.scale).depth} layers: who learns the digits")
    axes.invert_yaxis()
