"""A study: the declared test of a paper's claim. Question, arms, measures, checks and budget stand before the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from working_papers.bench.checks import Check

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

T = TypeVar("T")
Setting = Mapping[str, float | int | str]
Measurements = Mapping[str, "float | int | np.ndarray[Any, Any]"]
"""What a trial returns: a number for every declared measure, optional costs, and arrays for the figure."""

COSTS = ("parameters", "FLOPs")
"""Names a trial may return beside its declared measures; they are shown as costs."""

PALETTE = ("#2563eb", "#d97706", "#0d9488", "#be185d", "#7c3aed", "#64748b", "#65a30d", "#b91c1c")
"""Colours of the arms in order, the method first: distinct for the colour-blind, legible on light and dark."""


class Scale(StrEnum):
    """How large a study is run: `smoke` proves that it runs, `laptop` decides, `paper` is the paper's own size."""

    SMOKE = "smoke"
    LAPTOP = "laptop"
    PAPER = "paper"

    def choose(self, *, smoke: T, laptop: T, paper: T) -> T:
        """The value for this scale."""
        return {Scale.SMOKE: smoke, Scale.LAPTOP: laptop, Scale.PAPER: paper}[self]


@dataclass(frozen=True)
class Measure:
    """A number that every trial of a study returns.

    Args:
        name: as it stands in tables, e.g. "final excess loss".
        better: which direction is an improvement; None where there is no such thing.
        unit: shown behind the number.
        scale: "difference" compares arms in the measure's unit; "ratio" compares logarithms (positive numbers only:
            losses, errors, times), so that margins are fractions.
        about: one line that explains the measure to a reader.
    """

    name: str
    better: Literal["lower", "higher"] | None = None
    unit: str = ""
    scale: Literal["difference", "ratio"] = "difference"
    about: str = ""

    def __post_init__(self) -> None:
        """Refuse a direction or a scale that does not exist: it would silently be taken for another."""
        if self.better not in ("lower", "higher", None):
            raise ValueError(f"measure {self.name!r}: better is {self.better!r}; expected 'lower', 'higher' or None")
        if self.scale not in ("difference", "ratio"):
            raise ValueError(f"measure {self.name!r}: scale is {self.scale!r}; expected 'difference' or 'ratio'")
        if self.name in COSTS:
            raise ValueError(f"measure {self.name!r}: a cost has this name; return it without declaring it")


@dataclass(frozen=True)
class Tuning:
    """A search over settings that is part of the study: the same number of candidates for every arm that has any.

    Args:
        on: the measure that decides, in its better direction, by its mean over the tuning seeds.
        candidates: the settings tried, by arm; an arm that is not listed has nothing to tune.
        seeds: number of tuning seeds. They are never reported.
    """

    on: str
    candidates: Mapping[str, tuple[Setting, ...]]
    seeds: int = 1


@dataclass(frozen=True)
class Trial:
    """What a trial function is given.

    Attributes:
        arm: the contender to run.
        seed: derived from the room and the seed's number; the same for all arms.
        scale: the size of the study.
        setting: the arm's tuned setting, empty without tuning.
        device: where to compute, as torch names it.
        progress: call it as `trial.progress(step, of=steps)`.
    """

    arm: str
    seed: int
    scale: Scale
    setting: Setting = field(default_factory=dict)
    device: str = "cpu"
    report: Callable[[float], None] | None = None

    def progress(self, step: int, *, of: int) -> None:
        """Say how far the trial is; cheap enough to be called at every step."""
        if self.report is not None:
            self.report(min(1.0, step / max(of, 1)))


class Trials:
    """The finished trials of a study, as its figure sees them."""

    def __init__(
        self,
        labels: Mapping[str, str],
        scale: Scale,
        numbers: Mapping[str, Mapping[str, NDArray[np.float64]]],
        arrays: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
    ) -> None:
        self.scale = scale
        self._labels = labels
        self._numbers = numbers
        self._arrays = arrays

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in the study's order."""
        return tuple(self._labels)

    def label(self, arm: str) -> str:
        """The arm's name as readers see it."""
        return self._labels[arm]

    def color(self, arm: str) -> str:
        """The arm's colour, the same in every figure of the study."""
        return PALETTE[self.arms.index(arm) % len(PALETTE)]

    def values(self, arm: str, measure: str) -> NDArray[np.float64]:
        """The measure on every seed, shape [seeds]."""
        return self._numbers[arm][measure]

    def arrays(self, arm: str, name: str) -> np.ndarray[Any, Any]:
        """An array that the arm's trials returned, stacked over seeds, shape [seeds, ...]."""
        return self._arrays[arm][name]


class Study:
    """The declared test of a paper's claim.

    Args:
        question: what is decided, as a question.
        arms: name and label of every contender.
        method: the arm that is put to the test.
        seeds: number of reported seeds by scale.
        measures: every number that a trial returns, in table order.
        checks: the rules that turn measurements into a verdict.
        budget: one sentence on what every arm was given.
        notes: what the paper assumes and this study does not.
        sham: the baseline that stands in for the method under sham control; a study whose checks are predictions
            decorates a function with `@study.sham` instead.
        tuning: the search over settings, if the arms have any.
        figure_size: width and height in inches.

    Raises:
        ValueError: an arm, a measure or a scale that is not declared; the message names it.
    """

    def __init__(
        self,
        *,
        question: str,
        arms: Mapping[str, str],
        method: str,
        seeds: Mapping[str, int],
        measures: tuple[Measure, ...],
        checks: tuple[Check, ...],
        budget: str,
        notes: str = "",
        sham: str | None = None,
        tuning: Tuning | None = None,
        figure_size: tuple[float, float] = (8.0, 3.6),
    ) -> None:
        self.question = question
        self.arms = dict(arms)
        self.method = method
        self.seeds = {Scale(scale): count for scale, count in seeds.items()}
        self.measures = {measure.name: measure for measure in measures}
        self.checks = checks
        self.budget = " ".join(budget.split())
        self.notes = " ".join(notes.split())
        self.sham_arm = sham
        self.tuning = tuning
        self.figure_size = figure_size
        self.prepare_function: Callable[[int, Scale], Any] | None = None
        self.trial_function: Callable[..., Measurements] | None = None
        self.sham_function: Callable[..., Measurements] | None = None
        self.figure_function: Callable[[Trials, Figure], None] | None = None
        self._check_declaration(measures)

    def prepare(self, function: Callable[[int, Scale], T]) -> Callable[[int, Scale], T]:
        """Decorator: what all arms of a seed share; made once, and every trial gets a fresh copy."""
        self.prepare_function = function
        return function

    def trial(self, function: Callable[..., Measurements]) -> Callable[..., Measurements]:
        """Decorator: one run of one arm, `trial(trial)` or `trial(trial, prepared)`."""
        self.trial_function = function
        return function

    def sham(self, function: Callable[..., Measurements]) -> Callable[..., Measurements]:
        """Decorator: what replaces the method's trial under sham control."""
        if self.sham_arm is not None:
            raise ValueError(f"sham={self.sham_arm!r} is declared already; a study has one sham")
        self.sham_function = function
        return function

    def figure(self, function: Callable[[Trials, Figure], None]) -> Callable[[Trials, Figure], None]:
        """Decorator: draws the one figure a reader wants to see."""
        self.figure_function = function
        return function

    def _check_declaration(self, measures: tuple[Measure, ...]) -> None:
        def known_arm(arm: str | None, where: str) -> None:
            if arm is not None and arm not in self.arms:
                raise ValueError(f"{where}: unknown arm {arm!r}; the arms are {', '.join(self.arms)}")

        known_arm(self.method, "method")
        known_arm(self.sham_arm, "sham")
        if self.sham_arm == self.method:
            raise ValueError(f"sham: {self.method!r} is the method itself; expected one of the baselines")
        if len(self.measures) < len(measures):
            names = [measure.name for measure in measures]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"measures: the name {twice!r} is used twice")
        missing = [scale.value for scale in Scale if self.seeds.get(scale, 0) < 1]
        if missing:
            raise ValueError(f"seeds: no number of seeds for scale {missing[0]!r}")
        if not self.checks:
            raise ValueError("checks: a study needs at least one check")
        for check in self.checks:
            for arm in check.arms:
                known_arm(arm, check.describe())
            if check.on not in self.measures:
                raise ValueError(f"{check.describe()}: unknown measure {check.on!r}")
            check.validate(self.measures[check.on])
        if self.tuning is not None:
            if self.tuning.on not in self.measures or self.measures[self.tuning.on].better is None:
                raise ValueError(f"tuning: {self.tuning.on!r} is not a measure with a better direction")
            counts = {arm: len(candidates) for arm, candidates in self.tuning.candidates.items()}
            for arm in counts:
                known_arm(arm, "tuning")
            if len(set(counts.values())) != 1 or 0 in counts.values():
                raise ValueError(f"tuning: every arm must get the same number of candidates, got {counts}")
            if self.tuning.seeds < 1:
                raise ValueError(f"tuning: seeds is {self.tuning.seeds}; expected at least 1")

    def check_complete(self) -> None:
        """Make sure that the study can be run.

        Raises:
            ValueError: a decorated function is missing.
        """
        if self.trial_function is None:
            raise ValueError("the study has no trial: decorate a function with @study.trial")
        if self.figure_function is None:
            raise ValueError("the study has no figure: decorate a function with @study.figure")
        if self.sham_arm is None and self.sham_function is None:
            raise ValueError(
                "the study has no sham control: give sham='<baseline>' or decorate a function with @study.sham"
            )
