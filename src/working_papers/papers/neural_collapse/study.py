"""Do trained deep linear networks take the shapes that the closed forms predict?

Free features and linear layers are trained by plain gradient descent, many problems at once on two batch axes:
problems (decays), and histories of the decay, of which the one with the lowest loss at the end counts. A ReLU
network on handwritten digits, and cross-entropy, show how far the theory reaches.

Letters: N = samples, K = classes, d = features, M = linear layers, P = problems, S = histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.papers.neural_collapse.method import (
    CollapsedGeometry,
    LinearHead,
    collapse_metrics,
    collapsed_geometry,
    optimal_strength,
    regularised_loss,
    simplex_cross_entropy,
    survival_threshold,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EQUAL, UNEQUAL = (10, 10, 10, 10), (20, 10, 6, 4)  # class sizes of the free features
LEARNING_RATE, MOMENTUM = 0.2, 0.9  # our choice, on seeds that are not reported: higher rates diverge at M = 3
FEATURE_SCALE = 0.1  # standard deviation of the features' start; the official code's
WEAK = 0.2  # pressure on the smallest class, over the threshold, under which every history begins
# Pressures on the smallest class over the threshold: at the end, and at their highest along each history.
PRESSURES = (0.3, 0.6, 0.85, 0.94, 1.06, 1.15, 1.4, 1.8, 2.2, 2.8, 3.6, 4.6, 6.0)
PEAKS = (0.2, 1.0, 1.5, 2.0, 2.5, 3.2, 4.0, 6.0, 10.0)
SEARCH_CLASSES, SEARCH_DECAY = 10, 2e-3  # cross-entropy, one feature a class
DIGIT_COUNTS = tuple(range(140, 0, -14))  # training samples of the digits 0 to 9: 140, 126, ..., 14
DIGIT_DECAYS = {"equal": 1e-3, "unequal": 5e-4}  # of the head's weights and of the features
DIGIT_DEPTH = 3
DIGIT_LEARNING_RATE = 2e-3  # Adam's, falling to zero along a cosine
TEST_DIGITS = 30  # of each class
FLOOR = 1e-12  # measures compared by ratio must be positive
THEORY = "#64748b"  # colour of predictions in the figure

FRAME = "frame error, equal classes"
LENGTH = "length error, unequal classes"
OUTPUT = "output error across the threshold"
ENTROPY = "cross-entropy over the simplex frame's"
FALL = "fall of NC1 on digits"
DIGIT_LENGTH = "length error on digits"
DROPPED = "digits dropped that the optimum keeps"
REACHED = "runs that end in the minimum"
ACCURACY = "test accuracy on digits"

study = Study(
    question="Do trained deep linear networks take the predicted shapes: regular frames for equal classes, unequal "
    "lengths and vanished classes for unequal ones, and the simplex for cross-entropy?",
    arms={
        "histories": "Best of nine histories of decay",
        "single": "One random start",
        "no decay": "One random start, no decay",
    },
    method="histories",
    seeds={"smoke": 1, "laptop": 5, "paper": 10},
    measures=(
        Measure(
            FRAME,
            better="lower",
            scale="ratio",
            about="largest of NC1, NC2, NC3 and misalignment, any depth and layer, with and without bias",
        ),
        Measure(
            LENGTH,
            better="lower",
            scale="ratio",
            about="largest relative error of a survivor's mean or a layer's singular value",
        ),
        Measure(
            OUTPUT,
            better="lower",
            scale="ratio",
            about="largest error of a class's own output at any decay; 0 is gone, 1 is fitted",
        ),
        Measure(
            ENTROPY,
            better="lower",
            scale="ratio",
            about="lowest loss found over that of the best simplex; 10 classes, 2 layers",
        ),
        Measure(
            FALL,
            better="higher",
            scale="ratio",
            about="within- over between-class spread, before training over after; ReLU network",
        ),
        Measure(
            DIGIT_LENGTH,
            better="lower",
            scale="ratio",
            about="median relative error of predicted mean lengths, unequal classes",
        ),
        Measure(DROPPED, better="lower", unit="classes", about="classes of digits shorter than half the prediction"),
        Measure(REACHED, better="higher", about="share of free-feature runs within 0.1 % of the predicted minimum"),
        Measure(ACCURACY, better="higher", about="ReLU network, equal classes; 30 test images a class"),
    ),
    checks=(
        within("histories", on=FRAME, high=1e-3, claim="balanced-squared-error-collapse"),
        within("histories", on=LENGTH, high=0.01, claim="lengths-follow-class-size"),
        within("histories", on=OUTPUT, high=0.01, claim="small-classes-vanish"),
        within("histories", on=ENTROPY, low=0.99, high=1.01, claim="cross-entropy-simplex"),
        within("histories", on=FALL, low=20.0, claim="practical-networks-collapse"),
        beats("histories", over="no decay", on=FALL, claim="practical-networks-collapse"),
    ),
    budget="""Free features: every run has the same number of full-batch steps of gradient descent with momentum, the
        same step size and starts of the same law. The method's arm makes nine runs a problem (three for equal classes,
        ten in cross-entropy) and keeps the lowest loss, the others make one. Digits: two networks, one for equal and
        one for unequal classes, with the same start, data and steps of Adam in every arm.""",
    notes="""The theorems are about global minimisers; gradient descent finds those of the deep problems only by luck,
        because zero is a local minimum of every class at two layers or more. The method's arm therefore trains each
        problem along nine histories of the decay (weak, then up to a peak, then the final one); the arm with one start
        shows what happens otherwise. Four classes, 8 features, up to three layers; the paper goes to 2048 features and
        nine layers. In cross-entropy the runs end in frames of half the rank, well below the best simplex: with ten
        classes and two layers the simplex is not the global minimum, as later work on low-rank bias also finds (arXiv
        2410.23169); with one layer it is. The conditions of the paper's cross-entropy theorem could not be read here.
        The digits are scikit-learn's 8 by 8 images, where the paper has CIFAR-10; as there, only the last features
        and the head are decayed. The network drops small classes of digits that the optimum keeps: training ends in
        the local minimum at zero.""",
    sham="no decay",
    figure_size=(11.0, 3.7),
)


@dataclass(frozen=True)
class Size:
    """How long and how deep.

    Attributes:
        depths: numbers of linear layers.
        dimension: of the free features.
        steps: at weak, at the highest and at the final decay.
        search_runs: starts of the search in cross-entropy.
        search_steps: its steps.
        digit_steps: of the ReLU network.
        digit_width: of its two hidden layers.
    """

    depths: tuple[int, ...]
    dimension: int
    steps: tuple[int, int, int]
    search_runs: int
    search_steps: int
    digit_steps: int
    digit_width: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale."""
        return scale.choose(
            smoke=cls((1, 2), 6, (40, 20, 40), 2, 40, 10, 32),
            laptop=cls((1, 2, 3), 8, (700, 500, 1800), 10, 2000, 600, 128),
            paper=cls((1, 2, 3, 6), 64, (4000, 4000, 20000), 20, 10000, 12000, 512),
        )


@dataclass(frozen=True)
class Runs:
    """Trained free features: features [P, S, N, d], weights [P, S, out, in], bias [P, S, K], loss [P, S]."""

    features: Tensor
    weights: list[Tensor]
    bias: Tensor
    loss: Tensor

    def best(self) -> Runs:
        """The history with the lowest loss of each problem; the axis S is gone. A diverged run is never the best."""
        index = self.loss.nan_to_num(nan=torch.inf).argmin(dim=1)
        rows = torch.arange(len(index), device=index.device)
        weights = [weight[rows, index] for weight in self.weights]
        return Runs(self.features[rows, index], weights, self.bias[rows, index], self.loss[rows, index])


def decay_for(pressure: Sequence[float], counts: Sequence[int], depth: int) -> Tensor:
    """The decay, common to weights and features, that puts the smallest class at these multiples of the threshold."""
    total = sum(counts)
    b = torch.tensor(pressure, dtype=torch.float64) * survival_threshold(depth)
    return ((b * min(counts) / (depth * total)) ** depth / total) ** (1 / (depth + 1))


def class_labels(counts: Sequence[int]) -> Tensor:
    """The labels of sorted samples [N]."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def descend(
    trial: Trial,
    labels: Tensor,
    depth: int,
    phases: Sequence[tuple[Tensor, int]],
    *,
    with_bias: Tensor | None = None,
    cross_entropy: bool = False,
) -> Runs:
    """Gradient descent with momentum on all problems and histories at once.

    Args:
        trial: names seed, size and device.
        labels: of the samples [N].
        depth: number of linear layers.
        phases: decay [P, S] and number of steps, one after the other; the last decay is the one of the returned loss.
        with_bias: which problems have a free bias, boolean [P].
        cross_entropy: the loss; squared error otherwise.
    """
    K = int(labels.max()) + 1
    d = max(Size.of(trial.scale).dimension, K)
    P, S = phases[0][0].shape
    generator = torch.Generator().manual_seed(trial.seed)
    labels = labels.to(trial.device)

    def start(rows: int, scale: float) -> Tensor:
        # All problems share the S starts, so that they differ in nothing but the decay.
        normal = torch.randn(S, rows, d, generator=generator, dtype=torch.float64).to(trial.device)
        return (scale * normal).expand(P, S, rows, d).clone().requires_grad_()

    features = start(len(labels), d**-0.5 if cross_entropy else FEATURE_SCALE)
    weights = [start(K if j == depth - 1 else d, d**-0.5) for j in range(depth)]
    bias = torch.zeros(P, S, K, dtype=torch.float64, device=trial.device, requires_grad=True)
    allowed = torch.zeros(P, dtype=torch.bool) if with_bias is None else with_bias
    mask = allowed.to(features)[:, None, None]
    parameters = [features, *weights, bias]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, foreach=True)

    def objective(decay: Tensor) -> Tensor:
        return regularised_loss(
            features,
            weights,
            labels,
            decay[..., None].expand(P, S, depth),
            decay,
            bias=bias * mask,
            loss="cross-entropy" if cross_entropy else "squared",
        )

    for decay, steps in phases:
        decay = decay.to(trial.device)
        for _ in range(steps):
            optimizer.zero_grad()
            objective(decay).sum().backward()
            optimizer.step()
    with torch.no_grad():
        return Runs(features.detach(), [weight.detach() for weight in weights], bias.detach() * mask, objective(decay))


def phases_of(
    arm: str, target: Tensor, weak: Tensor, peaks: Tensor, steps: tuple[int, int, int]
) -> list[tuple[Tensor, int]]:
    """The histories of an arm [P, S]: weak, peak and final decay; the other arms have one decay from start to end."""
    if arm == "histories":
        decays = torch.broadcast_tensors(weak, peaks, target[:, None])
        return list(zip(decays, steps, strict=True))
    single = target[:, None] if arm == "single" else torch.zeros_like(target)[:, None]
    return [(single, sum(steps))]


def relative_gap(found: Tensor, predicted: Tensor) -> Tensor:
    """Largest relative error among entries that are predicted to be positive; entries must be aligned."""
    alive = predicted > 0
    return ((found - predicted).abs() / predicted.clamp(min=FLOOR))[alive].max()


def unequal_classes(trial: Trial, depth: int) -> tuple[CollapsedGeometry, Runs, Runs]:
    """Four classes of unequal size under a range of decays: the prediction, the best runs and all runs."""
    size = Size.of(trial.scale)
    target, weak, peaks = (decay_for(each, UNEQUAL, depth) for each in (PRESSURES, (WEAK,), PEAKS))
    counts = torch.tensor(UNEQUAL, dtype=torch.float64).expand(len(target), -1)
    geometry = collapsed_geometry(counts, depth, target[:, None].expand(-1, depth), target)
    phases = phases_of(trial.arm, target, weak, peaks, size.steps)
    runs = descend(trial, class_labels(UNEQUAL), depth, phases)
    # The loss of an arm without decay is judged under the decay of the prediction, as the others' is.
    labels, decay = class_labels(UNEQUAL).to(trial.device), target[:, None].expand(runs.loss.shape).to(trial.device)
    loss = regularised_loss(runs.features, runs.weights, labels, decay[..., None].expand(-1, -1, depth), decay)
    runs = replace(runs, loss=loss)
    return geometry, runs.best(), runs


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Class means [..., K, d] of features [..., N, d]."""
    onehot = nn.functional.one_hot(labels, classes).to(features)
    return (onehot / onehot.sum(dim=0)).mT @ features


def frame_error(trial: Trial, depth: int) -> float:
    """The largest collapse measure over layers, without and with bias, for equal classes."""
    size = Size.of(trial.scale)
    target, weak = decay_for((0.3, 0.3), EQUAL, depth), decay_for((WEAK,), EQUAL, depth)
    phases = phases_of(trial.arm, target, weak, weak.repeat(3), size.steps)
    labels = class_labels(EQUAL)
    best = descend(trial, labels, depth, phases, with_bias=torch.tensor([False, True])).best()
    worst = FLOOR
    for p, bias in enumerate((None, best.bias[1])):
        features = best.features[p]
        for layer in range(depth):
            head = best.weights[-1][p]
            for weight in reversed(best.weights[layer:-1]):
                head = head @ weight[p]
            report = collapse_metrics(features, labels.to(features.device), head, bias)
            worst = max(worst, report.nc1, report.nc2_weights, report.nc2_means, report.nc3, report.alignment)
            features = features @ best.weights[layer][p].mT
    return worst


def cross_entropy_search(trial: Trial) -> tuple[float, Tensor, float]:
    """Lowest loss found over the simplex frames', the logits' singular values there, and the simplex frames' gap."""
    size = Size.of(trial.scale)
    runs = size.search_runs if trial.arm == "histories" else 1
    decay = torch.full((1, runs), 0.0 if trial.arm == "no decay" else SEARCH_DECAY, dtype=torch.float64)
    labels, depth = torch.arange(SEARCH_CLASSES), 2
    found = descend(trial, labels, depth, [(decay, size.search_steps)], cross_entropy=True).best()
    loss = regularised_loss(
        found.features, found.weights, labels.to(trial.device), SEARCH_DECAY, SEARCH_DECAY, loss="cross-entropy"
    )
    simplex, gap = simplex_cross_entropy(SEARCH_CLASSES, 1, depth, SEARCH_DECAY, SEARCH_DECAY)
    logits = (found.features @ found.weights[0].mT @ found.weights[1].mT)[0]
    return float(loss) / float(simplex), torch.linalg.svdvals(logits).cpu(), float(gap)


@study.prepare
def digits(seed: int, scale: Scale) -> dict[str, Tensor]:
    """Images (pixels from 0 to 1) and labels: equal and unequal training sets, and a test set that neither shares."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(seed)
    chosen: dict[str, list[np.ndarray]] = {"equal": [], "unequal": [], "test": []}
    for digit, count in enumerate(DIGIT_COUNTS):
        own = random.permutation(np.flatnonzero(labels == digit))
        chosen["test"].append(own[:TEST_DIGITS])
        chosen["equal"].append(own[TEST_DIGITS : TEST_DIGITS + sum(DIGIT_COUNTS) // len(DIGIT_COUNTS)])
        chosen["unequal"].append(own[TEST_DIGITS : TEST_DIGITS + count])
    data = {}
    for name, parts in chosen.items():
        rows = np.concatenate(parts)
        data[f"{name} images"] = torch.from_numpy(images[rows] / 16).float()
        data[f"{name} labels"] = torch.from_numpy(labels[rows]).long()
    return data


@dataclass(frozen=True)
class DigitRun:
    """A trained ReLU network: NC1 before and after, its class-mean lengths [K], and its accuracy on test images."""

    before: float
    after: float
    lengths: Tensor
    accuracy: float


def train_on_digits(trial: Trial, data: dict[str, Tensor], which: str) -> DigitRun:
    """Adam on the objective of free features, with the features made by a ReLU network from images."""
    size = Size.of(trial.scale)
    x, y = (data[f"{which} {part}"].to(trial.device) for part in ("images", "labels"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        backbone = nn.Sequential(
            nn.Linear(x.shape[1], size.digit_width), nn.ReLU(), nn.Linear(size.digit_width, size.digit_width), nn.ReLU()
        )
        head = LinearHead(size.digit_width, len(DIGIT_COUNTS), DIGIT_DEPTH)
    backbone, head = backbone.to(trial.device), head.to(trial.device)
    decay = 0.0 if trial.arm == "no decay" else DIGIT_DECAYS[which]
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=DIGIT_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.digit_steps)

    def variability() -> float:
        with torch.no_grad():
            return collapse_metrics(backbone(x), y, head.product()).nc1

    before = variability()
    for _ in range(size.digit_steps):
        optimizer.zero_grad()
        regularised_loss(backbone(x), [layer.weight for layer in head.layers], y, decay, decay).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        lengths = torch.linalg.vector_norm(class_means(backbone(x), y, len(DIGIT_COUNTS)), dim=-1)
        guesses = head(backbone(data["test images"].to(trial.device))).argmax(dim=1).cpu()
    accuracy = float((guesses == data["test labels"]).double().mean())
    return DigitRun(before, variability(), lengths.double().cpu(), accuracy)


def predicted_digit_lengths() -> Tensor:
    """Class-mean lengths of the optimum for the unequal digits [K]."""
    decay = DIGIT_DECAYS["unequal"]
    return collapsed_geometry(DIGIT_COUNTS, DIGIT_DEPTH, decay, decay).mean_norms()


@study.trial
def train(trial: Trial, data: dict[str, Tensor]) -> Measurements:
    """Run all experiments in one arm's way."""
    size = Size.of(trial.scale)
    stages = len(size.depths) + 1
    frames, lengths, outputs, reached, shown = [], [], [], [], []
    for done, depth in enumerate(size.depths):
        frames.append(frame_error(trial, depth))
        geometry, best, runs = unequal_classes(trial, depth)
        labels = class_labels(UNEQUAL).to(trial.device)
        means = class_means(best.features, labels, len(UNEQUAL))
        norms = torch.linalg.vector_norm(means, dim=-1).cpu()
        lengths.append(float(relative_gap(norms, geometry.mean_norms())))
        for layer, weight in enumerate(best.weights):
            found = torch.linalg.svdvals(weight)[..., : len(UNEQUAL)].cpu()
            predicted = geometry.layer_squared[:, layer].sqrt().sort(dim=-1, descending=True).values
            lengths.append(float(relative_gap(found, predicted)))
        head = best.weights[0]
        for weight in best.weights[1:]:
            head = weight @ head
        own = (head @ means.mT).diagonal(dim1=-2, dim2=-1).cpu()
        outputs.append(float((own - geometry.logits.diagonal(dim1=-2, dim2=-1)).abs().max()))
        reached.append((runs.loss.cpu() / geometry.loss[:, None] - 1).abs() < 1e-3)
        relative = geometry.pressure / survival_threshold(depth)
        shown.append(torch.stack([relative.flatten(), own.flatten()]))
        trial.progress(done + 1, of=stages)
    entropy, spectrum, gap = cross_entropy_search(trial)
    equal, unequal = (train_on_digits(trial, data, which) for which in ("equal", "unequal"))
    predicted = predicted_digit_lengths()
    ratio = unequal.lengths / predicted
    trial.progress(stages, of=stages)
    return {
        FRAME: max(frames),
        LENGTH: max(*lengths, FLOOR),
        OUTPUT: max(*outputs, FLOOR),
        ENTROPY: entropy,
        FALL: equal.before / equal.after,
        DIGIT_LENGTH: float((ratio - 1).abs().median()),
        DROPPED: int((ratio < 0.5).sum()),
        REACHED: float(torch.cat([each.flatten() for each in reached]).double().mean()),
        ACCURACY: equal.accuracy,
        "survival": torch.stack(shown).numpy(),
        "spectrum": spectrum.numpy(),
        "simplex spectrum": np.array([gap] * (SEARCH_CLASSES - 1) + [0.0]),
        "digit lengths": unequal.lengths.numpy(),
    }


@study.figure
def shapes(trials: Trials, figure: Figure) -> None:
    """Which classes survive, how long the digits' class means are, and what cross-entropy prefers to the simplex."""
    survival, lengths, spectrum = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    draw_survival(trials, survival)
    draw_lengths(trials, lengths)
    draw_spectrum(trials, spectrum)


def draw_survival(trials: Trials, axes: Axes) -> None:
    """A class's own output against the decay's pressure on it: one curve a depth, whatever the class."""
    found = trials.arrays("histories", "survival")[0]  # [depths, 2, points]; the seeds lie on top of one another
    pressure = torch.logspace(-1.4, 0.8, 800, dtype=torch.float64)
    styles = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"))
    for (line, marker), depth, points in zip(styles, Size.of(trials.scale).depths, found, strict=False):
        x = optimal_strength(pressure * survival_threshold(depth), depth) ** depth
        axes.plot(pressure, x / (1 + x), line, color=THEORY, linewidth=1.3, zorder=1)
        name = f"{depth} layer{'s' if depth > 1 else ''}"
        axes.plot(*points, marker, color=trials.color("histories"), markersize=3.6, alpha=0.8, label=name)
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.set(title="Squared error: small classes vanish", ylabel="a class's own output", ylim=(-0.04, 1.04))
    axes.set_xlabel("pressure of decay on the class / threshold")
    axes.legend(title="trained (lines: theory)", loc="lower left")


def draw_lengths(trials: Trials, axes: Axes) -> None:
    """Lengths of class means of the digits by class size."""
    theory, found = predicted_digit_lengths(), trials.arrays("histories", "digit lengths")
    sizes = np.broadcast_to(DIGIT_COUNTS, found.shape)
    axes.plot(DIGIT_COUNTS, theory, color=THEORY, linewidth=1.3, label="theory")
    label, color = f"trained, {len(found)} seeds", trials.color("histories")
    axes.plot(sizes.ravel(), found.ravel(), "o", color=color, markersize=4, alpha=0.6, label=label)
    axes.set(title="ReLU network on digits", xlabel="training images of the class", ylabel="length of its mean feature")
    axes.set_ylim(-0.02, 1.25 * float(theory.max()))
    axes.legend(loc="upper right")


def draw_spectrum(trials: Trials, axes: Axes) -> None:
    """Singular values of the logits under cross-entropy."""
    found, simplex = trials.arrays("histories", "spectrum"), trials.arrays("histories", "simplex spectrum")[0]
    order = np.arange(1, len(simplex) + 1)
    share = trials.values("histories", ENTROPY).mean()
    axes.plot(order, simplex, "D", color=THEORY, markersize=4.5, fillstyle="none", label="best simplex (loss 1)")
    labels = [f"trained (loss {share:.2f})", *[None] * (len(found) - 1)]
    axes.plot(order, found.T, "o", color=trials.color("histories"), markersize=4.5, label=labels)
    axes.set(title="Cross-entropy: half the rank wins", xlabel="mode", ylabel="singular value of the logits")
    axes.set_xticks(order)
    axes.set_ylim(top=1.35 * float(max(found.max(), simplex.max())))
    axes.legend(loc="upper right")
