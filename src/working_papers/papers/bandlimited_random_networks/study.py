"""Does a box of random weights leave an error that no width removes, and does the box that suits grow with the target?

Letters: n = hidden units, N = training points, λ = half width of the box of weights and biases, ω = frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.papers.bandlimited_random_networks.method import (
    DataCentred,
    RidgeletSampler,
    Sampler,
    UniformScope,
    fourier_floor,
    ridgelet_transform,
    sinc_error,
    solve,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAST = 40.0
FREQUENCIES = (2.0, 5.0, 10.0, 20.0, 40.0)
SCOPES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
LONGEST = 100.0  # ‖c‖: without a limit ill-conditioned features reach anything, with coefficients beyond all use
GOOD = 0.1  # relative error at which a box counts as sufficient
SWEPT = 200  # units of the networks that compare boxes
CENTRED = 60.0
JITTER = 1e-3
NARROW = 0.25  # width of the Gaussian whose floor is exact
REACH = 3.0  # the windowed target has died down there
ADAM_RATE = 0.01
GUIDE = "#64748b"

SINE = "error on a fast sine"
PEAKS = "error on two narrow peaks"
EXPONENT = "exponent of width"
FLOOR = "squared error beyond the exact floor"
GROWTH = "rank correlation of box and frequency"
FREE = "error without a limit on the coefficients"
NORM = "length of those coefficients"
SHAKEN = "the same, inputs moved by a thousandth"

study = Study(
    question="Do hidden weights from a fixed box leave an error that more units do not remove, does the box that "
    "suffices grow with the target's frequency, and does drawing by the target's own spectrum do away with the floor?",
    arms={
        "ridgelet": "By the target's spectrum",
        "fitted": "Box chosen by validation",
        "centred": "Units centred on the data",
        "unit": "Box [-1, 1], the default",
        "wide": "Box [-200, 200]",
        "trained": "Hidden layer trained",
    },
    method="ridgelet",
    seeds={"smoke": 2, "laptop": 8, "paper": 8},
    measures=(
        Measure(SINE, better="lower", scale="ratio", about="relative RMSE on sin(40x + 0.3), most units, ‖c‖ ≤ 100"),
        Measure(PEAKS, better="lower", scale="ratio", about="relative RMSE on the paper's peaks on [0, 1], as above"),
        Measure(EXPONENT, better="lower", about="slope of log error against log units, fast sine, ‖c‖ ≤ 100"),
        Measure(
            FLOOR,
            about="best sin(z)/z units of these weights on a Gaussian of width 0.25, over its energy; least of widths",
        ),
        Measure(
            GROWTH,
            about="Spearman over frequencies 2 to 40 of the smallest box below 10 %; the same for all arms",
        ),
        Measure(FREE, better="lower", scale="ratio", about="fast sine, least squares without a limit"),
        Measure(NORM, unit="decades", about="log10 ‖c‖ of that solution"),
        Measure(SHAKEN, better="lower", scale="ratio", about="that solution on test points moved by up to 0.001"),
    ),
    checks=(
        within("unit", on=SINE, low=0.5, claim="bounded-weights-leave-a-floor"),
        within("unit", on=PEAKS, low=0.5, claim="bounded-weights-leave-a-floor"),
        within("unit", on=EXPONENT, low=-0.1, claim="bounded-weights-leave-a-floor"),
        within("unit", on=FLOOR, low=-1e-6, high=0.05, claim="bounded-weights-leave-a-floor"),
        within("fitted", on=GROWTH, low=0.9, claim="range-must-fit-the-target"),
        beats("fitted", over="unit", on=SINE, by=0.9, claim="range-must-fit-the-target"),
        beats("ridgelet", over="unit", on=SINE, by=0.9, claim="target-aware-sampling-works"),
        within("ridgelet", on=EXPONENT, high=-0.5, claim="target-aware-sampling-works"),
    ),
    budget="""Every arm has the same points (laptop: 800 on [-1, 1]), the same numbers of units and the same limit of
    100 on the length of the coefficients, which least squares solve for exactly. The fitted box is the best of nine
    by a fifth of the training points; the trained layer starts from it and takes 300 steps of Adam at 0.01 before its
    coefficients are solved for.""",
    notes="""The paper's lower bound is about square-integrable functions on the whole line and has the part of the
    ridgelet spectrum outside the box in it; its constants were not read. Two things stand in for it here. One is exact:
    units sin(z)/z have no frequency above their weights, so that a Gaussian's energy beyond them is lost to every
    width and coefficient, and the best network on the whole line is computed without any window. The other is the
    practical case, tanh on an interval with coefficients of length 100 at most; the paper has no such limit. In exact
    arithmetic analytic units from any box reach anything there with coefficients of any size. In double precision,
    singular values below 1e-10 of the largest left out, coefficients of length 10^7 still leave most of the fast sine,
    as the measures without a limit show. Targets and boxes were tried on seeds that are not reported.""",
    sham="unit",
    figure_size=(9.6, 3.4),
)


@dataclass(frozen=True)
class Size:
    """The numbers of one scale.

    Attributes:
        points: N.
        widths: n, in increasing order.
        steps: of Adam.
        a: points of the transform's grid of weights.
        b: points of its grid of biases.
    """

    points: int
    widths: tuple[int, ...]
    steps: int
    a: int
    b: int


def size_of(scale: Scale) -> Size:
    """Enough points for the fastest sine; the paper scale has the sheet's largest widths."""
    return scale.choose(
        smoke=Size(points=120, widths=(20, 40), steps=3, a=25, b=201),
        laptop=Size(points=800, widths=(100, 200, 400, 800), steps=300, a=121, b=1601),
        paper=Size(points=2000, widths=(100, 200, 500, 1000, 2000), steps=3000, a=241, b=3201),
    )


def sine(x: Tensor, frequency: float) -> Tensor:
    """The oscillating target."""
    return torch.sin(frequency * x + 0.3)


def peaks(x: Tensor) -> Tensor:
    """The target with two narrow peaks and a broad one, on [0, 1] (the sheet's target D), with x from -1 to 1."""
    u = (x + 1) / 2
    broad = 0.2 * torch.exp(-((10 * u - 4) ** 2))
    return broad + 0.5 * torch.exp(-((80 * u - 40) ** 2)) + 0.3 * torch.exp(-((80 * u - 20) ** 2))


def spectrum(target: Tensor, grid: Tensor, size: Size, most: float) -> RidgeletSampler:
    """The sampler of a target that is given on a grid beyond the interval and fades out there."""
    fade = torch.exp(-2 * ((grid.abs() - 1).clamp_min(0) / 0.3) ** 2)
    a = torch.linspace(-most, most, size.a, dtype=torch.float64)
    b = torch.linspace(-2.2 * most, 2.2 * most, size.b, dtype=torch.float64)
    return RidgeletSampler(ridgelet_transform(target * fade, grid, a, b), a, b)


@dataclass(frozen=True)
class Task:
    """One target: points and where the arm draws from."""

    train: Tensor
    test: Tensor
    y: Tensor
    y_test: Tensor


def task_of(name: str, size: Size, frequency: float = FAST) -> Task:
    """Training points on [-1, 1] and twice as many test points between them."""
    x = torch.linspace(-1, 1, size.points, dtype=torch.float64)
    test = torch.linspace(-1, 1, 2 * size.points + 1, dtype=torch.float64)
    if name == "sine":
        return Task(x, test, sine(x, frequency), sine(test, frequency))
    return Task(x, test, peaks(x), peaks(test))


def relative(error: Tensor, y: Tensor) -> float:
    """Root mean square error over that of predicting nothing."""
    return float(error.square().mean().sqrt() / y.square().mean().sqrt())


def fit_error(task: Task, a: Tensor, b: Tensor, limit: float | None) -> tuple[float, Tensor]:
    """Error on the test points and the coefficients."""
    c = solve(torch.tanh(task.train[:, None] * a - b), task.y, max_norm=limit)
    return relative(torch.tanh(task.test[:, None] * a - b) @ c - task.y_test, task.y_test), c


def best_scope(task: Task, units: int, generator_seed: int) -> float:
    """The box with the least error on a fifth of the training points."""
    held = torch.zeros(len(task.train), dtype=torch.bool)
    held[2::5] = True
    inner = Task(task.train[~held], task.train[held], task.y[~held], task.y[held])
    errors = [fit_error(inner, *box(scope, units, generator_seed), LONGEST)[0] for scope in SCOPES]
    return SCOPES[int(np.argmin(errors))]


def box(scope: float, units: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights and biases of a box, as vectors."""
    a, b = UniformScope(scope).draw(units, 1, torch.Generator().manual_seed(seed))
    return a.squeeze(-1), b


def sampler_of(arm: str, name: str, task: Task, size: Size, seed: int) -> Sampler:
    """Where an arm draws from for a target."""
    if arm == "ridgelet":
        grid = torch.linspace(-REACH, REACH, 601, dtype=torch.float64)
        target = sine(grid, FAST) if name == "sine" else peaks(grid)
        return spectrum(target, grid, size, 120.0)
    if arm == "centred":
        return DataCentred(CENTRED, task.train[:, None])
    if arm in ("fitted", "trained"):
        return UniformScope(best_scope(task, SWEPT, seed))
    return UniformScope({"unit": 1.0, "wide": 200.0}[arm])


def train_hidden(task: Task, a: Tensor, b: Tensor, steps: int, trial: Trial) -> tuple[Tensor, Tensor]:
    """Move weights and biases by Adam, together with coefficients that start at their solution."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    c = solve(torch.tanh(task.train[:, None] * a.detach() - b.detach()), task.y, max_norm=LONGEST).requires_grad_()
    optimizer = torch.optim.Adam([a, b, c], lr=ADAM_RATE)
    for step in range(steps):
        optimizer.zero_grad()
        loss = (torch.tanh(task.train[:, None] * a - b) @ c - task.y).square().mean()
        loss.backward()
        optimizer.step()
        trial.progress(step, of=steps)
    return a.detach(), b.detach()


@study.prepare
def sufficient_scopes(seed: int, scale: Scale) -> list[float]:
    """The smallest box that gets below 10 % at each frequency; twice the largest where none does."""
    size = size_of(scale)
    found = []
    for frequency in FREQUENCIES:
        task = task_of("sine", size, frequency)
        units = min(SWEPT, size.widths[-1])
        errors = [fit_error(task, *box(scope, units, seed), LONGEST)[0] for scope in SCOPES]
        reached = [scope for scope, error in zip(SCOPES, errors, strict=True) if error <= GOOD]
        found.append(min(reached, default=2 * SCOPES[-1]))
    return found


@study.trial
def approximate(trial: Trial, scopes: list[float]) -> Measurements:
    """Both targets at every width, the exact floor, and the boxes that suffice."""
    size = size_of(trial.scale)
    widest = size.widths[-1]
    errors: dict[str, list[float]] = {}
    drawn: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("sine", "peaks"):
        task = task_of(name, size)
        weights, b = sampler_of(trial.arm, name, task, size, trial.seed).draw(
            widest, 1, torch.Generator().manual_seed(trial.seed)
        )
        a = weights.squeeze(-1)
        errors[name] = []
        for units in size.widths if name == "sine" else (widest,):
            moved = (a[:units], b[:units])
            if trial.arm == "trained":
                moved = train_hidden(task, *moved, size.steps, trial)
            errors[name].append(fit_error(task, *moved, LONGEST)[0])
            drawn[name] = moved
    task = task_of("sine", size)
    free, c = fit_error(task, *drawn["sine"], None)
    noise = JITTER * (2 * torch.rand(task.test.shape, generator=torch.Generator().manual_seed(trial.seed)) - 1)
    shaken = torch.tanh((task.test + noise)[:, None] * drawn["sine"][0] - drawn["sine"][1]) @ c - task.y_test
    slope = np.polyfit(np.log(size.widths), np.log(np.maximum(errors["sine"], 1e-12)), 1)[0]
    return {
        SINE: max(errors["sine"][-1], 1e-12),
        PEAKS: max(errors["peaks"][-1], 1e-12),
        EXPONENT: float(slope),
        FLOOR: beyond_floor(*drawn["sine"], size),
        GROWTH: spearman(scopes),
        FREE: max(free, 1e-12),
        NORM: float(c.norm().clamp_min(1e-12).log10()),
        SHAKEN: max(relative(shaken, task.y_test), 1e-12),
        "errors": np.array(errors["sine"]),
        "scopes": np.array(scopes),
        "parameters": widest if trial.arm != "trained" else 3 * widest,
    }


def beyond_floor(a: Tensor, b: Tensor, size: Size) -> float:
    """How far the best sin(z)/z units with these weights stay above the floor; the least over widths."""
    grid = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    energy = math.sqrt(math.pi) * NARROW
    target = torch.exp(-grid.square() / (2 * NARROW**2))

    def fourier(omega: Tensor) -> Tensor:
        return math.sqrt(2 * math.pi) * NARROW * torch.exp(-(omega * NARROW).square() / 2)

    found = []
    for units in size.widths[:3]:
        error = sinc_error(a[:units], b[:units], fourier, energy)
        floor = fourier_floor(target, float(grid[1] - grid[0]), float(a[:units].abs().max()))
        found.append(float((error - floor) / energy))
    return min(found)


def spearman(scopes: list[float]) -> float:
    """Rank correlation with the frequencies; 0 where all boxes are the same."""
    from scipy import stats

    if len(set(scopes)) == 1:
        return 0.0
    return float(stats.spearmanr(FREQUENCIES, scopes).statistic)


@study.figure
def boxes_and_widths(trials: Trials, figure: Figure) -> None:
    """Error by width for every arm, the boxes that suffice, and the spectrum with the default box in it."""
    widths, needed, spectra = figure.subplots(1, 3, width_ratios=(1.2, 0.9, 1))
    draw_widths(trials, widths)
    draw_needed(trials, needed)
    draw_spectrum(trials, spectra)


def draw_widths(trials: Trials, axes: Axes) -> None:
    """Errors on the fast sine with a limit on the coefficients."""
    widths = size_of(trials.scale).widths
    for arm in trials.arms:
        errors = np.median(trials.arrays(arm, "errors"), axis=0)
        axes.loglog(widths, errors, "o-", color=trials.color(arm), markersize=3.5, label=trials.label(arm))
    axes.set(
        title="sin(40x): error by width", xlabel="hidden units", ylabel="relative error, ‖c‖ ≤ 100", ylim=(1e-10, 1e4)
    )
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.legend(loc="upper right", fontsize="x-small", ncols=2, columnspacing=0.8, handlelength=1.2)


def draw_needed(trials: Trials, axes: Axes) -> None:
    """The smallest box that suffices, by frequency."""
    scopes = trials.arrays("fitted", "scopes")
    axes.loglog(FREQUENCIES, np.median(scopes, axis=0), "o-", color=trials.color("fitted"))
    axes.axhline(1.0, color=trials.color("unit"), linestyle="--")
    axes.text(FREQUENCIES[0], 1.08, "the default", color=trials.color("unit"), fontsize="small", va="bottom")
    axes.set(title="Box that suffices", xlabel="frequency ω of the target", ylabel="λ for 10 % error")
    axes.set_xticks(FREQUENCIES, [f"{each:g}" for each in FREQUENCIES])
    axes.minorticks_off()


def draw_spectrum(trials: Trials, axes: Axes) -> None:
    """|R| of the fast sine, and the default box."""
    size = size_of(trials.scale)
    grid = torch.linspace(-REACH, REACH, 401, dtype=torch.float64)
    fade = torch.exp(-2 * ((grid.abs() - 1).clamp_min(0) / 0.3) ** 2)
    a = torch.linspace(-100, 100, min(size.a, 81), dtype=torch.float64)
    b = torch.linspace(-220, 220, min(size.b, 441), dtype=torch.float64)
    r = ridgelet_transform(sine(grid, FAST) * fade, grid, a, b).abs()
    shown = b.abs() <= 100
    axes.imshow(
        r[:, shown].mT.sqrt().numpy(),
        origin="lower",
        extent=(-100, 100, -100, 100),
        aspect="auto",
        cmap="Blues",
        interpolation="none",  # the file holds the grid's points, not the screen's
    )
    axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color=trials.color("unit"), linewidth=2)
    axes.annotate(
        "the default box",
        (1, 1),
        (20, 70),
        color=trials.color("unit"),
        fontsize="small",
        arrowprops={"arrowstyle": "-", "color": trials.color("unit")},
    )
    axes.set(title="Where the target's spectrum lies", xlabel="weight a", ylabel="bias b")
