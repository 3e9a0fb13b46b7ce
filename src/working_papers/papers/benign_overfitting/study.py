"""Does a ReLU network memorise flipped XOR labels in one step, and generalise a few steps later all the same?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, within
from working_papers.papers.benign_overfitting.method import (
    Batch,
    GramSpace,
    accuracy,
    draw_in_span,
    linear_share,
    minimum_norm_interpolator,
    step_coefficients,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOISE_RATE = 0.1
TEST_SAMPLES = 1000

# In units of n / p: a step of size s moves a sample's own score by about s / 4, whatever n and p are.
STEPS_TRIED = tuple({"step size × p / n": size} for size in (0.1, 1.0, 10.0))

FITTED_FIRST = "training accuracy after one step"
TEST_FIRST = "clean test accuracy after one step"
LINEAR_FIRST = "linear share after one step"
FITTED_LOWEST = "lowest training accuracy from step one on"
TEST_HIGHEST = "highest clean test accuracy"
TEST_LAST = "clean test accuracy at the end"
LINEAR_LAST = "linear share at the end"

study = Study(
    question="Does a two-layer ReLU network fit all flipped XOR labels in one step of gradient descent, guess on "
    "fresh data, and a few steps later label fresh data almost perfectly without giving up a flipped label?",
    arms={
        "network": "ReLU network",
        "linear": "Linear model, gradient descent",
        "interpolator": "Linear model, least norm",
        "large start": "ReLU network, large start",
        "no flips": "ReLU network, no flipped labels",
        "theorem": "ReLU network, p as in theorem",
    },
    method="network",
    seeds={"smoke": 2, "laptop": 16, "paper": 8},
    measures=(
        Measure(FITTED_FIRST, better="higher", about="share of the labels as given, flipped ones included"),
        Measure(TEST_FIRST, better="higher", about="1000 fresh samples; 0.5 is guessing"),
        Measure(LINEAR_FIRST, about="share of the output's variance that a linear function explains"),
        Measure(FITTED_LOWEST, better="higher", about="worst step after the start; 1 means never unlearned"),
        Measure(TEST_HIGHEST, better="higher", about="best step after the start"),
        Measure(TEST_LAST, better="higher", about="1000 fresh samples after √n steps"),
        Measure(LINEAR_LAST, about="share of the output's variance that a linear function explains"),
    ),
    checks=(
        within("network", on=FITTED_FIRST, low=0.99, claim="one-step-interpolation"),
        within("network", on=TEST_FIRST, low=0.4, high=0.6, claim="one-step-interpolation"),
        within("network", on=LINEAR_FIRST, low=0.9, claim="one-step-interpolation"),
        within("network", on=TEST_LAST, low=0.99, claim="later-generalisation"),
        within("network", on=FITTED_LOWEST, low=0.99, claim="later-generalisation"),
        within("linear", on=FITTED_LOWEST, low=0.99, claim="linear-models-cannot"),
        within("linear", on=TEST_HIGHEST, high=0.6, claim="linear-models-cannot"),
    ),
    tuning=Tuning(on=TEST_LAST, candidates={"linear": STEPS_TRIED, "large start": STEPS_TRIED}),
    budget="""Every arm learns from the same n samples (laptop: 1000) in √n full-batch steps (the least-norm model is
    solved for at once). The network's step size is the theorems' and is not tuned; the linear model and the large
    start get the best of three step sizes by final test accuracy.""",
    notes="""At laptop scale p = 2·10⁷, m = 300, η = 0.1 and signal² = n^0.51 √p. Of the paper's six assumptions
    (written down from memory) this meets five with C of 1 to 2; the sixth asks for p ≥ C n² signal², and here p is
    7700 times too small. The arm with p as in the theorem, 2·10¹⁶, meets all six with C = 2. Its first step is the
    same, but at this n a cluster stays unlearned on some seeds: there a sample's own noise outweighs its whole
    cluster, flipped samples never let go of their neurons, and only a larger n would average them out. In the
    main setting too a rare seed ends near 0.75 that way, and the final check, a mean of 0.99 over seeds, allows
    hardly any. Inputs
    are drawn in the coordinates that training touches, which leaves the law of every result as it is in p
    dimensions. The large start has ω = 1/√p, the other networks the tiny one that the theorems ask for. The
    linear share of a linear model is 1 by definition.""",
    figure_size=(9.0, 3.8),
)


@dataclass(frozen=True)
class Setting:
    """The numbers of one problem, at the edge of the theorems' assumptions with constant C.

    Args:
        samples: n.
        width: m.
        dimension: p.
        constant: C.
    """

    samples: int
    width: int
    dimension: int
    constant: float

    @property
    def signal(self) -> float:
        """Norm of the means: the smallest that the first assumption allows."""
        return math.sqrt(self.constant * math.pow(self.samples, 0.51) * math.sqrt(self.dimension))

    @property
    def learning_rate(self) -> float:
        """The largest step that the fourth assumption allows for C = 2."""
        return 1 / (2 * self.samples * self.dimension)

    @property
    def init_scale(self) -> float:
        """Half the largest start that the fifth assumption allows."""
        return self.learning_rate * self.signal / (2 * self.samples * math.pow(self.width, 1.5) * self.dimension)

    @property
    def steps(self) -> int:
        """The theorems speak of up to √n steps."""
        return math.isqrt(self.samples)


def settings(scale: Scale) -> tuple[Setting, Setting]:
    """The main setting, and one that meets all assumptions with C = 2, where p has to be C⁴ n^5.02."""
    samples = scale.choose(smoke=100, laptop=1000, paper=3000)
    width = scale.choose(smoke=100, laptop=300, paper=500)
    # A cluster pulls on a sample n signal² / (4 p) = 2 times as hard as the sample's own noise. Chosen on seeds
    # that are not reported: much above 2 the first step misses labels, below 1 some clusters are never learned.
    dimension = scale.choose(smoke=4 * 10**4, laptop=2 * 10**7, paper=6 * 10**8)
    return (
        Setting(samples, width, dimension, constant=1.0),
        Setting(samples, width, int(2**4 * math.pow(samples, 5.02)), constant=2.0),
    )


@dataclass(frozen=True)
class Problem:
    """One problem as seen from the span of its training inputs; the network starts at unit scale.

    Args:
        setting: its numbers.
        space: observes the n training inputs, then the test inputs, then the two means.
        train: training samples, inputs left out.
        test: test samples, inputs left out.
    """

    setting: Setting
    space: GramSpace
    train: Batch
    test: Batch


@study.prepare
def draw_problems(seed: int, scale: Scale) -> dict[str, Problem]:
    """The main problem of a seed and the one inside all assumptions."""
    return {name: draw(seed, setting) for name, setting in zip(("main", "theorem"), settings(scale), strict=True)}


def draw(seed: int, setting: Setting) -> Problem:
    """Draw one problem."""
    generator = torch.Generator().manual_seed(seed)
    clusters, train, network = draw_in_span(
        setting.samples,
        setting.width,
        dimension=setting.dimension,
        signal=setting.signal,
        noise_rate=NOISE_RATE,
        init_scale=1.0,
        generator=generator,
    )
    test = clusters.sample(TEST_SAMPLES, generator=generator)
    space = GramSpace.of(network, train.x, [test.x, clusters.means])
    return Problem(setting, space, without_inputs(train), without_inputs(test))


def without_inputs(batch: Batch) -> Batch:
    """The labels alone: the space knows all that training needs of the inputs."""
    return Batch(batch.x[:, :0].clone(), batch.y, batch.clean, batch.cluster, batch.flipped)


@study.trial
def train(trial: Trial, problems: dict[str, Problem]) -> Measurements:
    """Train one arm and measure it after every step."""
    problem = problems["theorem" if trial.arm == "theorem" else "main"]
    labels = problem.train.clean if trial.arm == "no flips" else problem.train.y
    if trial.arm == "linear":
        return train_linear(trial, problem, labels)
    if trial.arm == "interpolator":
        gram = problem.space.kernel[: problem.setting.samples].to(trial.device)
        solution = minimum_norm_interpolator(gram, labels.to(trial.device))
        return measurements([linear_record(problem, solution, labels)] * 2)
    return train_network(trial, problem, labels)


@study.sham
def labels_at_random(trial: Trial, problems: dict[str, Problem]) -> Measurements:
    """The network again, but trained on labels that have nothing to do with the clusters."""
    problem = problems["main"]
    coins = torch.randint(2, problem.train.y.shape, generator=torch.Generator().manual_seed(trial.seed))
    return train_network(trial, problem, (2 * coins - 1).to(problem.train.y))


def train_network(trial: Trial, problem: Problem, labels: Tensor) -> Measurements:
    """Full-batch gradient descent on the first layer."""
    setting = problem.setting
    n, q = setting.samples, setting.samples + TEST_SAMPLES
    large = trial.arm == "large start"
    init_scale = setting.dimension**-0.5 if large else setting.init_scale
    learning_rate = step_size(trial, setting) if large else setting.learning_rate
    space = problem.space.rescaled(init_scale).to(trial.device)
    labels, clean = labels.to(trial.device), problem.test.clean.to(trial.device)

    coefficients = space.start()
    records, alignments = [], []
    for step in range(setting.steps + 1):
        preactivation = space.preactivation(coefficients)
        scores = preactivation.relu() @ space.second_layer
        share = linear_share(preactivation[n:q], space.second_layer)
        records.append((accuracy(scores[:n], labels), accuracy(scores[n:q], clean), float(share)))
        if step in (1, setting.steps):
            lengths = space.squared_norms(coefficients).sqrt() * setting.signal
            alignments.append((preactivation[q:] / lengths).T.cpu())
        change = step_coefficients(preactivation[:n], space.second_layer, labels, learning_rate)
        coefficients = coefficients + change
        trial.progress(step, of=setting.steps)
    return {
        **measurements(records),
        "alignments": torch.stack(alignments).numpy(),
        "signs": space.second_layer.sign().cpu().numpy(),
        "parameters": setting.width * setting.dimension,
    }


def train_linear(trial: Trial, problem: Problem, labels: Tensor) -> Measurements:
    """Full-batch gradient descent from zero on the weights of a linear model, in multiples of the inputs."""
    gram = problem.space.kernel[: problem.setting.samples]
    learning_rate = step_size(trial, problem.setting)
    coefficients = torch.zeros_like(labels)
    records = []
    for step in range(problem.setting.steps + 1):
        records.append(linear_record(problem, coefficients, labels))
        pull = torch.sigmoid(-labels * (gram @ coefficients)) * labels
        coefficients = coefficients + learning_rate / len(labels) * pull
        trial.progress(step, of=problem.setting.steps)
    return {**measurements(records), "parameters": problem.setting.dimension}


def step_size(trial: Trial, setting: Setting) -> float:
    """The tuned step size, from units of n / p."""
    return float(trial.setting["step size × p / n"]) * setting.samples / setting.dimension


def linear_record(problem: Problem, coefficients: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Training accuracy, test accuracy and linear share of a linear model with weights coefficients @ inputs."""
    n = problem.setting.samples
    kernel = problem.space.kernel.to(coefficients.device)
    scores = (kernel @ coefficients).to(labels.device)
    test = scores[n : n + TEST_SAMPLES]
    return accuracy(scores[:n], labels), accuracy(test, problem.test.clean), 1.0


def measurements(records: list[tuple[float, float, float]]) -> dict[str, float | np.ndarray]:
    """The measures of a run from its record at every step, the untrained model first."""
    fitted, test, share = np.array(records).T
    return {
        FITTED_FIRST: float(fitted[1]),
        TEST_FIRST: float(test[1]),
        LINEAR_FIRST: float(share[1]),
        FITTED_LOWEST: float(fitted[1:].min()),
        TEST_HIGHEST: float(test[1:].max()),
        TEST_LAST: float(test[-1]),
        LINEAR_LAST: float(share[-1]),
        "fitted": fitted,
        "test": test,
        "share": share,
    }


@study.figure
def memorised_then_generalised(trials: Trials, figure: Figure) -> None:
    """Accuracies by step, and where the neurons point after the first step and at the end."""
    curves, first, last = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
    draw_curves(trials, curves)
    alignments, signs = trials.arrays("network", "alignments")[0], trials.arrays("network", "signs")[0]
    reach = 1.1 * float(np.abs(alignments).max())
    steps = trials.arrays("network", "test").shape[1] - 1
    for axes, cosines, when in (
        (first, alignments[0], "1 step"),
        (last, alignments[1], f"{steps} steps"),
    ):
        for sign, arm, name in ((1, "network", "adds"), (-1, "linear", "subtracts")):
            chosen = cosines[signs == sign]
            color = trials.color(arm)
            axes.scatter(chosen[:, 0], chosen[:, 1], s=9, color=color, alpha=0.7, linewidths=0, label=name)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), title=f"Neurons after {when}")
        axes.set(xlabel="cosine with mean 1")
        axes.set_aspect("equal")
    first.set_ylabel("cosine with mean 2")
    last.legend(loc="upper right", fontsize="small", handletextpad=0.1, borderaxespad=0)


def draw_curves(trials: Trials, axes: Axes) -> None:
    """Mean over seeds, with the range over seeds shaded for the network."""
    shown = [
        ("network", "fitted", "network, training (flips included)", "--"),
        ("network", "test", "network, test", "-"),
        ("theorem", "test", "network, p as in theorem, test", "-"),
        ("large start", "test", "large start, test", "-"),
        ("linear", "test", "linear model, test", "-"),
    ]
    for arm, name, label, style in shown:
        values = trials.arrays(arm, name)
        step = np.arange(values.shape[1])
        if arm == "linear":  # starts from zero and so answers nothing at first
            step, values = step[1:], values[:, 1:]
        axes.plot(step, values.mean(axis=0), style, color=trials.color(arm), label=label)
        if arm == "network" and name == "test":
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(step, low, high, color=trials.color(arm), alpha=0.15, linewidth=0)
    axes.set_xscale("symlog", linthresh=1)
    ticks = [tick for tick in (0, 1, 2, 3, 5, 10, 20, 40) if tick <= step[-1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(title="Memorised first, generalised later", xlabel="step of gradient descent")
    axes.set(ylabel="accuracy", ylim=(0.0, 1.04))
    axes.legend(loc="lower right", fontsize="small")
