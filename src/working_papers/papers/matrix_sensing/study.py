"""Do spare columns slow gradient descent as predicted, and does one rebalancing step undo it?

Letters: n = rows and columns of the truth, r = its rank, k = columns of a factor, m = measurements, T = steps,
R = recorded steps, C = condition numbers of the truth, A = scales of the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, matches, within
from working_papers.papers.matrix_sensing.method import (
    GaussianSensing,
    contraction_rate,
    factored_gradient_descent,
    fit_rate,
    initial_factors,
    symmetric_error,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNING_RATE = 0.2
REBALANCE_BELOW = 0.1
SCALES = (0.5, 0.25, 0.125)
LARGEST, MIDDLE = 0, 1  # where final errors are read (all geometric arms get to the bottom) and where rates are
CONDITION_NUMBERS = (1.0, 3.0)
RECORD_EVERY = 5
ERROR_FLOOR = 1e-12  # below it rounding shows
SPARE_CURVATURE = 1e-5  # above the curvature that unfinished spare columns leave, below the smallest true one

FINAL = "final error"
EXPONENT = "exponent of T"
HALVING = "steps to halve the error"
GROWTH = "growth of the rate with the initial scale"
HALVING_UNEVEN = "steps to halve the error, condition number 3"

study = Study(
    question="Does the error of over-parameterised gradient descent fall like 1/T with one factor and geometrically "
    "with two unequal ones, and does one rebalancing step make that rate independent of the start?",
    arms={
        "rebalanced": "Two factors, rebalanced once",
        "asymmetric": "Two factors, unequal start",
        "rebalanced low": "Two factors, rebalanced, β² = σ_r",
        "balanced": "Two factors, same start",
        "symmetric": "One factor",
        "exact symmetric": "One factor, k = r",
        "exact asymmetric": "Two factors, k = r",
    },
    method="rebalanced",
    seeds={"smoke": 2, "laptop": 6, "paper": 5},
    measures=(
        Measure(FINAL, better="lower", scale="ratio", about="Frobenius distance to the truth, whose norm is √r; scale 0.5"),
        Measure(EXPONENT, about="slope of log error against log T in the last decade, scale 0.25; -1 means 1/T"),
        Measure(HALVING, better="lower", unit="steps", scale="ratio", about="log 2 over the fitted rate, scale 0.25"),
        Measure(GROWTH, about="slope of log rate against log scale over 0.5, 0.25 and 0.125; 2 means scale squared"),
        Measure(
            HALVING_UNEVEN,
            better="lower",
            unit="steps",
            scale="ratio",
            about="as above, for a truth whose least singular value is a third of its largest",
        ),
    ),
    checks=(
        within("symmetric", on=EXPONENT, low=-1.2, high=-0.8, claim="symmetric-is-slow"),
        within("exact symmetric", on=FINAL, high=1e-10, claim="symmetric-is-slow"),
        within("asymmetric", on=FINAL, high=1e-10, claim="imbalance-is-fast"),
        within("asymmetric", on=GROWTH, low=1.7, high=2.3, claim="imbalance-is-fast"),
        within("rebalanced", on=GROWTH, low=-0.2, high=0.2, claim="one-step-removes-scale"),
        beats("rebalanced", over="asymmetric", on=HALVING, by=2 / 3, claim="one-step-removes-scale"),
        matches("rebalanced", "exact asymmetric", on=HALVING, margin=0.5, claim="one-step-removes-scale"),
    ),
    budget="""Every arm takes the same number of steps (laptop: 6000) with the same learning rate, 0.2, on the same
    measurements of the same truth, from the same random draw at three scales; arms with k = r get its first r
    columns. Nothing is tuned.""",
    notes="""TO BE WRITTEN""",
    sham="asymmetric",
    figure_size=(9.6, 3.6),
)


@dataclass(frozen=True)
class Problem:
    """What all arms of a seed share.

    Attributes:
        operator: the measurements.
        truths: (C, 1, n, n), symmetric, of rank r and norm 1 in the spectral sense.
        left: starting F at every scale, (A, n, k).
        right: starting G at every scale, (A, n, k).
        rank: r.
        steps: T.
    """

    operator: GaussianSensing
    truths: Tensor
    left: Tensor
    right: Tensor
    rank: int
    steps: int


@study.prepare
def draw_problem(seed: int, scale: Scale) -> Problem:
    """Truths with random eigenvectors, Gaussian measurements, and one random start at every scale."""
    generator = torch.Generator().manual_seed(seed)
    size = scale.choose(smoke=10, laptop=20, paper=50)
    rank = scale.choose(smoke=2, laptop=2, paper=3)
    columns = 2 * rank
    measurements = scale.choose(smoke=300, laptop=1200, paper=10 * size * columns)
    vectors = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]
    spectra = torch.stack([torch.linspace(1, 1 / number, rank, dtype=torch.float64) for number in CONDITION_NUMBERS])
    left, right = initial_factors(
        size,
        size,
        columns,
        scale=torch.tensor(SCALES, dtype=torch.float64),
        generator=generator,
        dtype=torch.float64,
    )
    return Problem(
        operator=GaussianSensing(size, size, measurements, generator=generator, dtype=torch.float64),
        truths=((vectors * spectra[:, None]) @ vectors.T)[:, None],
        left=left,
        right=right,
        rank=rank,
        steps=scale.choose(smoke=1000, laptop=6000, paper=20_000),
    )


@study.trial
def descend(trial: Trial, problem: Problem) -> Measurements:
    """One arm on both truths and from all scales at once."""
    operator = problem.operator.to(trial.device)
    truths = problem.truths.to(trial.device)
    left, right = problem.left.to(trial.device), problem.right.to(trial.device)
    if trial.arm.startswith("exact"):
        left, right = left[..., : problem.rank], right[..., : problem.rank]
    one_factor = trial.arm in ("symmetric", "exact symmetric")
    smallest = truths.new_tensor(CONDITION_NUMBERS)[:, None].reciprocal()  # σ_r, which only an oracle knows
    trace = factored_gradient_descent(
        operator,
        operator(truths),
        left,
        None if one_factor else left if trial.arm == "balanced" else right,
        learning_rate=LEARNING_RATE,
        steps=problem.steps,
        rebalance_below=REBALANCE_BELOW if trial.arm.startswith("rebalanced") else None,
        beta=smallest.sqrt() if trial.arm == "rebalanced low" else None,
        truth=truths,
        record_at=range(0, problem.steps + 1, RECORD_EVERY),
        callback=lambda step: trial.progress(step, of=problem.steps),
    )
    assert trace.error is not None
    errors, steps = trace.error.cpu(), trace.steps
    fit = fit_rate(errors[1:], steps[1:], low=ERROR_FLOOR)
    even, uneven = fit.rate.numpy()
    return {
        FINAL: float(errors[-1, 0, LARGEST]),
        EXPONENT: float(fit.exponent[0, MIDDLE]),
        HALVING: math.log(2) / float(even[MIDDLE]),
        GROWTH: float(np.polyfit(np.log(SCALES), np.log(even), 1)[0]),
        HALVING_UNEVEN: math.log(2) / float(uneven[MIDDLE]),
        "errors": errors[:, 0].numpy(),
        "steps": steps.numpy(),
        "rates": even,
        "linearised rates": linearised_rates(trace, operator),
        "rebalanced at": trace.rebalanced_at[0].cpu().numpy(),
        "parameters": (1 if one_factor else 2) * left.shape[-2] * left.shape[-1],
    }


def linearised_rates(trace: Trace, operator: GaussianSensing) -> np.ndarray:
    """Rates of the descent linearised where it ended, at every scale; zeros for one factor."""
    if trace.right is None:
        return np.zeros(len(SCALES))
    pairs = zip(trace.left[0], trace.right[0], strict=True)
    rates = [contraction_rate(operator, *pair, LEARNING_RATE, tolerance=SPARE_CURVATURE) for pair in pairs]
    return torch.stack(rates).cpu().numpy()


@study.figure
def slow_and_fast(trials: Trials, figure: Figure) -> None:
    """Error curves of one factor and of two, and the rate by the scale of the start."""
    one, two, rates = figure.subplots(1, 3, width_ratios=(1, 1.15, 0.95))
    draw_one_factor(trials, one)
    draw_two_factors(trials, two)
    draw_rates(trials, rates)


def typical(trials: Trials, arm: str, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the geometric mean over seeds of the error from one scale of the start."""
    errors = trials.arrays(arm, "errors")[:, 1:, scale]
    return trials.arrays(arm, "steps")[0, 1:], np.exp(np.log(errors).mean(axis=0))


def draw_one_factor(trials: Trials, axes: Axes) -> None:
    """Arms without imbalance on two logarithmic axes, with the line that theory draws."""
    for arm, label, style in (
        ("exact symmetric", "$k = r$", "-"),
        ("symmetric", "$k = 2r$, one factor", "-"),
        ("balanced", "$k = 2r$, $F_0 = G_0$", (0, (4, 2))),
    ):
        step, error = typical(trials, arm, MIDDLE)
        shown = spread_evenly(step)
        axes.loglog(step[shown], error[shown], linestyle=style, color=trials.color(arm), label=label)
    late = step[step >= step[-1] / 30]
    spare = trials.values("symmetric", "parameters") if False else SPARE_COLUMNS[trials.scale]
    guide = symmetric_error(torch.from_numpy(late), LEARNING_RATE, spare).numpy()
    axes.loglog(late, guide, ":", color="#64748b", label=r"$\sqrt{k-r}\,/\,2\eta T$")
    axes.set(title="One factor: slow", xlabel="step $T$", ylabel="error", ylim=(1e-6, 5))
    axes.legend(loc="lower left", fontsize="small")
