"""The study of UBA: two kinds of network at three budgets under six schedules, and quadratics where phi can be judged.

Letters: C = peak learning rates that are tried, B = images a batch, T = steps of a budget, kappa = condition number.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.nn.training import checkpoint_file
from working_papers.papers.unified_budget_schedule.method import uba_multiplier
from working_papers.papers.unified_budget_schedule.training import (
    Images,
    cifar,
    digits,
    kinds,
    rates,
    train_apart,
    train_together,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONDITION_NUMBERS = (10.0, 100.0, 1000.0)
DESCENT_STEPS = (10, 30, 100)
DIMENSION = 64
PEAKS = 25  # tried for each quadratic, from 1 / L to 4 / mu; the best peak of the theory, 1 / mu, lies inside
PHIS = 61  # tried for each quadratic, from 0.25 to 25,000; the theory's, 2 kappa, go up to 2000
LARGEST_PHI = 25_000.0

ACCURACY = "test accuracy"
CONVOLUTIONAL = "test accuracy, convolutional"
TRANSFORMER = "test accuracy, transformer"
LOSS = "training loss"
DECAY = "share of the best possible decay"
GROWTH = "growth of the best phi"

study = Study(
    question="Does UBA with a phi fixed beforehand end at a better accuracy than other schedules, and does the best "
    "phi grow with the condition number?",
    arms={
        "uba": "UBA",
        "cosine": "cosine",
        "linear": "linear",
        "step": "step",
        "one-cycle": "one-cycle",
        "rex": "REX",
    },
    method="uba",
    seeds={"smoke": 2, "laptop": 14, "paper": 3},
    measures=(
        Measure(
            ACCURACY,
            unit="points",
            better="higher",
            about="Per cent of test images at the last step, mean over both kinds of network and three budgets, each "
            "with the peak learning rate that was best on validation images.",
        ),
        Measure(CONVOLUTIONAL, unit="points", better="higher", about="The same, of the convolutional network (SGD)."),
        Measure(TRANSFORMER, unit="points", better="higher", about="The same, of the transformer (AdamW)."),
        Measure(
            LOSS,
            unit="nats",
            better="lower",
            scale="ratio",
            about="Cross-entropy on the training images, wrong labels included; geometric mean over the same cells.",
        ),
        Measure(
            DECAY,
            better="higher",
            about="Gradient descent on random quadratics: logarithm of the worst-case error that the schedule reaches, "
            "with the best of its peaks (and for UBA phi), over that of the optimal steps for the range of curvatures.",
        ),
        Measure(
            GROWTH,
            about="Exponent a in best phi ~ kappa^a on those quadratics, mean over numbers of steps; 0 for schedules "
            "that have no such parameter.",
        ),
    ),
    checks=(
        beats("uba", over="step", on=ACCURACY, claim="better-final-performance"),
        beats("uba", over="cosine", on=ACCURACY, claim="better-final-performance"),
        beats("uba", over="one-cycle", on=ACCURACY, claim="better-final-performance"),
        beats("uba", over="linear", on=ACCURACY, claim="better-final-performance"),
        beats("uba", over="rex", on=ACCURACY, claim="better-final-performance"),
        within("uba", on=GROWTH, low=0.5, claim="phi-follows-conditioning"),
    ),
    budget="""Every schedule gets the same initial weights, batches and numbers of steps, and the same peak learning
        rates for each kind of network and budget, of which the best on validation images is reported. UBA has no
        choice of phi: 5 for SGD, 1 for AdamW.""",
    notes="""The paper trains on CIFAR and ImageNet and language models of up to a billion parameters; here networks of
        a few thousand weights learn 900 digits, a fifth of them with a wrong label, in 75 to 300 steps; the validation
        labels are right. The second kind of network is a transformer on patches of images, at paper scale too
        (CIFAR-100); language models are not tried. The paper's own choices of phi are known from memory only: phi is
        the rule of thumb that the room ships. With AdamW all schedules have a linear warm-up over 5 % of the steps,
        except one-cycle, which has its own and, as PyTorch's default is, also moves the momentum. The theory's third
        claim, convergence for every phi, is a theorem and stands in the tests. The growth of phi needs peaks far above
        2 / L, which make the error grow for a while before it falls; with peaks that are stable throughout no schedule
        is noticeably faster than a constant rate on a quadratic.""",
    sham="cosine",
    figure_size=(10.5, 3.5),
)


@dataclass(frozen=True)
class Size:
    """Budgets in steps, and images a batch."""

    budgets: tuple[int, ...]
    batch: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale 50, 100 and 200 passes over 45,000 images."""
        return scale.choose(
            smoke=cls(budgets=(4, 8), batch=16),
            laptop=cls(budgets=(75, 150, 300), batch=32),
            paper=cls(budgets=(17_550, 35_100, 70_200), batch=128),
        )


@study.prepare
def images(seed: int, scale: Scale) -> Images:
    """Digits, at paper scale CIFAR-100."""
    size = Size.of(scale)
    load = cifar if scale is Scale.PAPER else digits
    return load(seed, size.batch, max(size.budgets))


def worst_case(multipliers: Tensor, peaks: Tensor, spectrum: Tensor) -> Tensor:
    """Logarithm of the largest factor by which gradient descent changes an error component.

    Args:
        multipliers: (..., T), the schedules' factors in [0, 1].
        peaks: (P,), peak learning rates; the floor is the inverse of the largest curvature, 1.
        spectrum: (D,), curvatures.

    Returns:
        (..., P), float64.
    """
    steps = 1 + (peaks[:, None] - 1) * multipliers.unsqueeze(-2)  # (..., P, T)
    total: Tensor = torch.zeros(*steps.shape[:-1], len(spectrum), dtype=torch.float64)
    for step in steps.unbind(-1):  # over the steps of the descent, to keep the memory small
        total += (1 - step.unsqueeze(-1) * spectrum).abs().clamp_min(1e-300).log()
    return total.amax(dim=-1)


def best_possible(condition_number: float, steps: int) -> float:
    """Logarithm of the worst-case error of the optimal steps for curvatures in [1 / kappa, 1] (Chebyshev)."""
    exponent = steps * math.acosh((condition_number + 1) / (condition_number - 1))
    return -(exponent + math.log1p(math.exp(-2 * exponent)) - math.log(2))  # -log cosh


@dataclass(frozen=True)
class Descents:
    """What an arm reaches on quadratics.

    Attributes:
        share: mean over condition numbers and steps of log error over log of the best possible error.
        best_phis: (steps, condition numbers), for UBA; zeros for others.
    """

    share: float
    best_phis: np.ndarray[tuple[int, ...], np.dtype[np.float64]]

    def growth(self) -> float:
        """Exponent of the best phi as a power of the condition number, mean over numbers of steps."""
        if not self.best_phis.any():
            return 0.0
        slopes = np.polyfit(np.log(CONDITION_NUMBERS), np.log(self.best_phis).T, 1)[0]
        return float(np.mean(slopes))


def descend(arm: str, seed: int) -> Descents:
    """Search the best peak, and for UBA the best phi, on quadratics with random log-uniform curvatures."""
    random = np.random.default_rng(seed)
    # The ends belong to the spectrum, so that its condition number is what it is said to be.
    inner = torch.from_numpy(random.random(DIMENSION - 2))
    places = torch.cat([inner, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    phis = torch.logspace(math.log10(0.25), math.log10(LARGEST_PHI), PHIS, dtype=torch.float64)
    shares, best_phis = [], np.zeros((len(DESCENT_STEPS), len(CONDITION_NUMBERS)))
    for row, steps in enumerate(DESCENT_STEPS):
        if arm == "uba":
            spent = torch.arange(steps, dtype=torch.float64) / steps
            multipliers = uba_multiplier(spent, phis[:, None])
        else:
            multipliers = rates(arm, steps)[None]
        for column, condition_number in enumerate(CONDITION_NUMBERS):
            spectrum = condition_number**-places
            peaks = torch.logspace(0, math.log10(4 * condition_number), PEAKS, dtype=torch.float64)
            errors = worst_case(multipliers, peaks, spectrum).amin(dim=1)
            shares.append(float(errors.min()) / best_possible(condition_number, steps))
            if arm == "uba":
                best_phis[row, column] = float(phis[errors.argmin()])
    return Descents(float(np.mean(shares)), best_phis)


@study.trial
def compare(trial: Trial, data: Images) -> Measurements:
    """Train both kinds of network at every budget under the arm's schedule, and try it on quadratics."""
    size = Size.of(trial.scale)
    total, done = 2 * sum(size.budgets), 0
    accuracies, losses, chosen = [], [], []
    checkpoints = checkpoint_file("unified_budget_schedule", f"{trial.arm}-{trial.seed}").with_suffix("")
    for kind in kinds(trial.scale).values():
        for steps in size.budgets:

            def progress(step: int, done: int = done) -> None:
                trial.progress(done + step, of=total)

            if trial.scale is Scale.PAPER:
                ends = train_apart(kind, trial.arm, steps, data, trial.seed, trial.device, progress, checkpoints)
            else:
                ends = train_together(kind, trial.arm, steps, data, trial.seed, progress)
            best = ends.best()
            accuracies.append(100 * float(ends.test[best]))
            losses.append(float(ends.training_loss[best]))
            chosen.append(best)
            done += steps
    shutil.rmtree(checkpoints, ignore_errors=True)
    by_kind = np.array(accuracies).reshape(2, -1)
    descents = descend(trial.arm, trial.seed)
    return {
        ACCURACY: float(by_kind.mean()),
        CONVOLUTIONAL: float(by_kind[0].mean()),
        TRANSFORMER: float(by_kind[1].mean()),
        LOSS: float(np.exp(np.log(losses).mean())),
        DECAY: descents.share,
        GROWTH: descents.growth(),
        "accuracies": by_kind,
        "chosen": np.array(chosen),
        "best phis": descents.best_phis,
    }


@study.figure
def curves_and_differences(trials: Trials, figure: Figure) -> None:
    """The family of curves; the best phi for a quadratic; final accuracy against cosine's on the same seed."""
    shapes, conditioning, paired = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    draw_family(trials, shapes)
    draw_best_phis(trials, conditioning)
    draw_differences(trials, paired)


def draw_family(trials: Trials, axes: Axes) -> None:
    """u over the budget for several phi, each named beside its curve, with linear among them."""
    spent = torch.linspace(0, 1, 201, dtype=torch.float64)
    height = 0.42  # where the names stand: no two curves cross near it
    for phi in (0.25, 1.0, 2.0, 5.0, 20.0):
        cosine = phi == 2
        color = trials.color("cosine" if cosine else "uba")
        axes.plot(spent, uba_multiplier(spent, phi), color=color, label="cosine (φ = 2)" if cosine else None)
        at = 2 / math.pi * math.atan(math.sqrt(2 / phi * (1 / height - 1)))
        shift, side = (-0.02, "right") if phi >= 2 else (0.02, "left")  # away from the straight line
        axes.text(at + shift, height, f"{phi:g}", color=color, ha=side, va="center", fontsize=8)
    axes.plot(spent, 1 - spent, "--", color=trials.color("linear"), linewidth=1.2, label="linear")
    axes.set(title="One family of curves, by φ", xlabel="share of the budget spent", ylabel="learning rate / peak")
    axes.set_ylim(-0.04, 1.25)
    axes.set_yticks([0, 0.5, 1])
    axes.legend(loc="upper right", ncols=2)


def draw_best_phis(trials: Trials, axes: Axes) -> None:
    """Best phi against condition number, with the theory's 2 kappa."""
    theory = np.array([CONDITION_NUMBERS[0], CONDITION_NUMBERS[-1]])
    axes.plot(theory, 2 * theory, "--", color="#64748b", linewidth=1.2, label="theory: φ = 2κ")
    found = trials.arrays("uba", "best phis")
    for row, (steps, marker) in enumerate(zip(DESCENT_STEPS, ("v", "s", "o"), strict=True)):
        middle = np.exp(np.log(found[:, row]).mean(axis=0))
        axes.plot(CONDITION_NUMBERS, middle, f"-{marker}", color=trials.color("uba"), label=f"{steps} steps")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(title="Quadratics: best φ", xlabel="condition number κ", ylabel="best φ")
    axes.legend(loc="upper left")


def draw_differences(trials: Trials, axes: Axes) -> None:
    """Differences of test accuracy from cosine by seed."""
    cosine = trials.values("cosine", ACCURACY)
    others = [arm for arm in trials.arms if arm != "cosine"]
    for place, arm in enumerate(others):
        difference = trials.values(arm, ACCURACY) - cosine
        spread = np.linspace(-0.15, 0.15, len(difference))
        axes.plot(place + spread, difference, "o", color=trials.color(arm), markersize=4, alpha=0.6, markeredgewidth=0)
        axes.hlines(difference.mean(), place - 0.28, place + 0.28, color=trials.color(arm))
    axes.axhline(0, color=trials.color("cosine"), linewidth=1.2)
    axes.set_xticks(range(len(others)), [trials.label(arm) for arm in others])
    axes.set_xlim(-0.6, len(others) - 0.4)
    axes.set(title="Test accuracy against cosine's", ylabel="difference on the same seed (points)")
