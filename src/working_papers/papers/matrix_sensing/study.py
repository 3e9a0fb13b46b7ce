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
    Trace,
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
GUIDE = "#64748b"
SHORT = {
    "symmetric": "one factor",
    "asymmetric": "two, unequal",
    "rebalanced": "two, rebalanced",
    "exact asymmetric": "two, k = r",
}
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
        Measure(
            FINAL, better="lower", scale="ratio", about="distance to the truth (Frobenius), whose norm is √r; scale 0.5"
        ),
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
    notes="""Laptop scale has n = 20, r = 2, k = 4 and 1200 Gaussian measurements; the paper's own figures are larger
    (about n = 50, r = 3, which is the paper scale here). The theorems ask for near-isotropic measurements, small
    steps and unspecified constants; these sizes were chosen because they show all three regimes, on seeds that are
    not reported. A slope of -1 is a limit: at this T it is -0.95 from scale 0.25, closer from larger starts. The law
    of the squared scale is about one draw at several scales; its constant differs by a factor of three between draws.
    Starting two factors at the same matrix stays as slow as one factor, although random measurements do not keep
    them equal. The rebalancing step is triggered when the relative residual falls below 0.1, and the paper's
    statement of it was written down from memory. Its length β decides what it is worth when the truth is unevenly
    conditioned: at condition number 3 our default, β² = σ_1, which needs no knowledge of the rank, is close to three
    times slower than k = r, whereas β² = σ_r, known to an oracle only, is a quarter slower. With condition number 1 the
    two are the same.""",
    sham="asymmetric",
    figure_size=(9.6, 3.6),
)


@dataclass(frozen=True)
class Size:
    """The numbers of one scale.

    Attributes:
        side: n.
        rank: r; factors have k = 2r columns.
        measurements: m.
        steps: T.
    """

    side: int
    rank: int
    measurements: int
    steps: int


def size_of(scale: Scale) -> Size:
    """n, r and m at laptop scale are small enough for seconds; the paper's figures have about n = 50 and r = 3."""
    return scale.choose(
        smoke=Size(side=10, rank=2, measurements=300, steps=700),
        laptop=Size(side=20, rank=2, measurements=1200, steps=6000),
        paper=Size(side=50, rank=3, measurements=3000, steps=20_000),
    )


@dataclass(frozen=True)
class Problem:
    """What all arms of a seed share.

    Attributes:
        operator: the measurements.
        truths: (C, 1, n, n), symmetric, of rank r, with largest eigenvalue 1.
        left: starting F at every scale, (A, n, k).
        right: starting G at every scale, (A, n, k).
    """

    operator: GaussianSensing
    truths: Tensor
    left: Tensor
    right: Tensor


@study.prepare
def draw_problem(seed: int, scale: Scale) -> Problem:
    """Truths with random eigenvectors, Gaussian measurements, and one random start at every scale."""
    size = size_of(scale)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(size.side, size.rank, generator=generator, dtype=torch.float64))[0]
    spectra = torch.stack([torch.linspace(1, 1 / c, size.rank, dtype=torch.float64) for c in CONDITION_NUMBERS])
    left, right = initial_factors(
        size.side,
        size.side,
        2 * size.rank,
        scale=torch.tensor(SCALES, dtype=torch.float64),
        generator=generator,
        dtype=torch.float64,
    )
    return Problem(
        operator=GaussianSensing(size.side, size.side, size.measurements, generator=generator, dtype=torch.float64),
        truths=((vectors * spectra[:, None]) @ vectors.T)[:, None],
        left=left,
        right=right,
    )


@study.trial
def descend(trial: Trial, problem: Problem) -> Measurements:
    """One arm on both truths and from all scales at once."""
    size = size_of(trial.scale)
    operator = problem.operator.to(trial.device)
    truths = problem.truths.to(trial.device)
    left, right = problem.left.to(trial.device), problem.right.to(trial.device)
    if trial.arm.startswith("exact"):
        left, right = left[..., : size.rank], right[..., : size.rank]
    one_factor = trial.arm in ("symmetric", "exact symmetric")
    smallest = truths.new_tensor(CONDITION_NUMBERS)[:, None].reciprocal()  # σ_r, which only an oracle knows
    trace = factored_gradient_descent(
        operator,
        operator(truths),
        left,
        None if one_factor else left if trial.arm == "balanced" else right,
        learning_rate=LEARNING_RATE,
        steps=size.steps,
        rebalance_below=REBALANCE_BELOW if trial.arm.startswith("rebalanced") else None,
        beta=smallest.sqrt() if trial.arm == "rebalanced low" else None,
        truth=truths,
        record_at=range(0, size.steps + 1, RECORD_EVERY),
        callback=lambda step: trial.progress(step, of=size.steps),
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
    rates = contraction_rate(operator, trace.left[0], trace.right[0], LEARNING_RATE, tolerance=SPARE_CURVATURE)
    return rates.cpu().numpy()


@study.figure
def slow_and_fast(trials: Trials, figure: Figure) -> None:
    """Error curves of one factor and of two, and the rate by the scale of the start."""
    one, two, rates = figure.subplots(1, 3, width_ratios=(1, 1.15, 0.95))
    draw_one_factor(trials, one)
    draw_two_factors(trials, two)
    draw_rates(trials, rates)


def typical(trials: Trials, arm: str, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the (lower) median over seeds of the error from one scale, until it meets rounding."""
    errors = np.quantile(trials.arrays(arm, "errors")[:, 1:, scale], 0.5, axis=0, method="lower")
    shown = np.minimum.accumulate(errors) > ERROR_FLOOR
    return trials.arrays(arm, "steps")[0, 1:][shown], errors[shown]


def draw_one_factor(trials: Trials, axes: Axes) -> None:
    """Arms without imbalance on two logarithmic axes, with the line that theory draws."""
    for arm, label, style in (
        ("exact symmetric", "$k=r$", "-"),
        ("symmetric", "$k=2r$", "-"),
        ("balanced", "$k=2r$, two, $F_0=G_0$", "--"),
    ):
        step, error = typical(trials, arm, MIDDLE)
        axes.loglog(step, error, style, color=trials.color(arm), label=label)
    size = size_of(trials.scale)
    late = np.geomspace(size.steps / 30, size.steps, 20)
    law = symmetric_error(torch.from_numpy(late), LEARNING_RATE, size.rank).numpy()
    axes.loglog(late, law, ":", color=GUIDE, label=r"theory: $\sqrt{k-r}\,/\,(2\eta T)$")
    axes.set(title="One factor: error like 1/T", xlabel="step T", ylabel="error", ylim=(1e-7, 60))
    axes.legend(loc="upper right", fontsize="small")


def draw_two_factors(trials: Trials, axes: Axes) -> None:
    """Unequal factors on a logarithmic axis: straight lines, steeper for larger starts unless rebalanced."""
    horizon = size_of(trials.scale).steps / 2
    for arm in ("symmetric", "asymmetric", "rebalanced"):
        color = trials.color(arm)
        for scale, style in zip(range(len(SCALES)), ("-", "--", ":"), strict=True):
            step, error = typical(trials, arm, scale)
            shown = step <= horizon
            axes.semilogy(step[shown], error[shown], style, color=color)
        axes.plot([], [], color=color, label=SHORT[arm])
    for alpha, style in zip(SCALES, ("-", "--", ":"), strict=True):
        axes.plot([], [], style, color=GUIDE, label=f"α = {alpha:g}")
    axes.set(title="Two unequal factors: geometric", xlabel="step T", ylabel="error", ylim=(1e-16, 5))
    axes.set_yticks([10.0**power for power in range(-12, 1, 3)])
    axes.legend(loc="lower center", fontsize="small", ncols=2, columnspacing=1.2)


def draw_rates(trials: Trials, axes: Axes) -> None:
    """Fitted rates of every seed, and those of the linearised descent."""
    for arm in ("exact asymmetric", "rebalanced", "asymmetric"):
        color = trials.color(arm)
        rates, linearised = trials.arrays(arm, "rates"), trials.arrays(arm, "linearised rates")
        for seed in rates:
            axes.loglog(SCALES, seed, "o", color=color, markersize=3.5, alpha=0.5, markeredgewidth=0)
        axes.loglog(SCALES, np.exp(np.log(linearised).mean(axis=0)), color=color, label=SHORT[arm])
    law = np.array(SCALES) ** 2 * trials.arrays("asymmetric", "rates")[:, 0].mean() / SCALES[0] ** 2 / 2
    axes.loglog(SCALES, law, ":", color=GUIDE, label="slope 2")
    axes.set(title="Rate by scale of the start", xlabel="initial scale α", ylabel="rate per step")
    axes.set_xticks(SCALES, [f"{scale:g}" for scale in SCALES])
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize="small")
