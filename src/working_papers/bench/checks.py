"""Checks: rules, fixed before a run, that turn measurements into *holds*, *does not hold* or *inconclusive*.

Every check reduces the trials to one number a seed (an improvement, a difference or a value), forms the t confidence
interval of its mean over seeds and asks where the interval lies. Intervals are simultaneous: with k checks in a study
each has level 1 - 0.05 / k (Bonferroni), so that all of them cover together in 95 % of runs.

Limits, as `benchmarks/check_power.py` measures them. `beats` and `matches` compare paired differences, whose skewness
cancels where the arms are alike: they say *holds* wrongly in at most 3 % of cases, with normal, heavy-tailed and skewed
noise, from three seeds. `within` reads plain values: 4 to 5 % where they are mildly skewed (skewness 0.6), but 9 to
11 % where they are as skewed as exponential numbers and their tail points across the bound; declare such a measure
with scale="ratio", or let a trial average over more. Values that take two or three levels only (a count of few items)
can agree on all of three seeds by chance: then `matches` and `within` are wrong in 12 % of cases with three seeds and
in 3 % with five.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from working_papers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from working_papers.bench.study import Measure

ALPHA = 0.05
"""Error rate of a study as a whole."""

Values = Mapping[str, Mapping[str, "NDArray[np.float64]"]]
"""Measurements by arm and measure, each an array over seeds."""


class Answer(StrEnum):
    """What a check, or a study as a whole, says of the claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "inconclusive"


@dataclass(frozen=True)
class Result:
    """What one check found.

    Attributes:
        answer: holds, does not hold or inconclusive.
        sentence: the finding in words, with the interval.
        effect: mean over seeds of the improvement, difference or value; a fraction where `relative` is true.
        interval: the simultaneous confidence interval of the effect.
        level: its confidence level.
        relative: whether the effect is a fraction (ratio measures) rather than in the measure's unit.
        effect_size: mean over standard deviation with Hedges' small-sample correction; None for a plain value or
            where the deviation is zero.
        p_value: one-sided p value against the check's threshold, uncorrected; None where there is only one seed.
        seeds: number of seeds.
    """

    answer: Answer
    sentence: str
    effect: float
    interval: tuple[float, float]
    level: float
    relative: bool
    effect_size: float | None
    p_value: float | None
    seeds: int


def interval(values: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The t confidence interval of the mean along the last axis.

    Args:
        values: numbers, shape [..., seeds].
        level: confidence level, e.g. 0.95.

    Returns:
        lower and upper ends, shape [...]; the whole line for a single seed, a point where all seeds agree.
    """
    import numpy as np
    from scipy import stats

    count = values.shape[-1]
    mean, error = _mean_and_error(values)
    if count < 2:
        return np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    half = stats.t.ppf(0.5 + level / 2, count - 1) * error
    return mean - half, mean + half


def _mean_and_error(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard error along the last axis.

    Where all seeds agree the mean is their very value: rounding must not carry a constant across a bound.
    """
    import numpy as np

    count = values.shape[-1]
    constant = np.ptp(values, axis=-1) == 0
    mean = np.where(constant, values[..., 0], values.mean(axis=-1))
    if count < 2:
        return mean, np.full_like(mean, np.inf)
    return mean, np.where(constant, 0.0, values.std(axis=-1, ddof=1) / np.sqrt(count))


@dataclass(frozen=True)
class Check(ABC):
    """One rule. `on` names the measure, `claim` the id of the claim in paper.toml that it tests."""

    arm: str
    on: str
    claim: str

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms it reads."""

    @abstractmethod
    def describe(self) -> str:
        """The rule as it is written in a study."""

    @abstractmethod
    def validate(self, measure: Measure) -> None:
        """Raise ValueError if the rule makes no sense for the measure."""

    @abstractmethod
    def samples(self, values: Values, measure: Measure) -> NDArray[np.float64]:
        """One number a seed, shape [..., seeds]."""

    @abstractmethod
    def region(self, measure: Measure) -> tuple[float, float]:
        """Where the mean must lie for the claim to hold."""

    @abstractmethod
    def sentence(self, result: Finding) -> str:
        """The finding in words."""

    def effect(self, sample: float, measure: Measure) -> float:
        """A number on the scale of the samples in the measure's unit, or as a fraction where two arms are compared."""
        if measure.scale == "difference":
            return sample
        return _expm1(sample) if len(self.arms) == 2 else _expm1(sample) + 1

    def decide(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64], measure: Measure
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether intervals lie wholly inside the region (holds) and wholly outside (does not hold)."""
        low, high = self.region(measure)
        return self._inside(lower, upper, low, high), (upper < low) | (lower > high)

    def _inside(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.bool_]:
        return (lower >= low) & (upper <= high)

    def evaluate(self, values: Values, measure: Measure, labels: Mapping[str, str], level: float) -> Result:
        """Apply the rule.

        Args:
            values: measurements by arm and measure, each of shape [seeds].
            measure: the declared measure.
            labels: how readers know the arms.
            level: confidence level of the interval, already corrected for the number of checks.
        """
        import numpy as np

        samples = self.samples(values, measure)
        lower, upper = interval(samples, level)
        holds, fails = self.decide(lower, upper, measure)
        answer = Answer.HOLDS if holds else Answer.FAILS if fails else Answer.OPEN
        relative = measure.scale == "ratio" and len(self.arms) == 2
        finding = Finding(
            effect=self.effect(float(samples.mean()), measure),
            low=self.effect(float(lower), measure),
            high=self.effect(float(upper), measure),
            relative=relative,
            measure=measure,
            labels=labels,
            answer=answer,
            samples=samples.size,
            means={arm: float(np.mean(values[arm][self.on])) for arm in self.arms},
        )
        return Result(
            answer=answer,
            sentence=self.sentence(finding),
            effect=finding.effect,
            interval=(finding.low, finding.high),
            level=level,
            relative=relative,
            effect_size=_hedges(samples) if len(self.arms) == 2 else None,
            p_value=self._p_value(samples, measure),
            seeds=samples.size,
        )

    def _p_value(self, samples: NDArray[np.float64], measure: Measure) -> float | None:
        """The larger of the one-sided p values against the ends of the region."""
        from scipy import stats

        if samples.size < 2:
            return None
        mean, error = _mean_and_error(samples)
        if error == 0:
            holds, _ = self.decide(mean, mean, measure)
            return 0.0 if holds else 1.0
        low, high = self.region(measure)
        above = stats.t.sf((mean - low) / error, samples.size - 1)
        below = stats.t.sf((high - mean) / error, samples.size - 1)
        return float(max(above, below))  # an end at infinity gives 0


@dataclass(frozen=True)
class Finding:
    """What a check's sentence is made from."""

    effect: float
    low: float
    high: float
    relative: bool
    measure: Measure
    labels: Mapping[str, str]
    answer: Answer
    samples: int
    means: Mapping[str, float]

    def amount(self, value: float, *, signed: bool = False, bare: bool = False) -> str:
        """A number of this finding as readers see it; `bare` leaves the unit out."""
        sign = "+" if signed else ""
        if self.relative and abs(self.effect) >= 10:  # a quotient is easier to read than thousands of per cent
            return f"{1 + value:.3g}" + ("" if bare else " times")
        if self.relative:
            return f"{value * 100:{sign}.3g}" + ("" if bare else " %")
        return f"{value:{sign}.4g}" + (f" {self.measure.unit}" if self.measure.unit and not bare else "")

    def spread(self, *, signed: bool) -> str:
        """The interval in words."""
        if self.samples < 2:
            return "one seed, no interval"
        low, high = self.amount(self.low, signed=signed, bare=True), self.amount(self.high, signed=signed)
        return f"interval {low} to {high}, {self.samples} seeds"


@dataclass(frozen=True)
class Beats(Check):
    """The arm improves on another one, paired by seed, by more than `by`."""

    over: str
    by: float

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.over)

    def describe(self) -> str:
        margin = f", by={self.by:g}" if self.by else ""
        return f"beats({self.arm!r}, over={self.over!r}, on={self.on!r}{margin})"

    def validate(self, measure: Measure) -> None:
        if measure.better is None:
            raise ValueError(f"{self.describe()}: the measure has no better direction")
        if measure.scale == "ratio" and not -1 < self.by < 1:
            raise ValueError(f"{self.describe()}: by={self.by} is not a fraction between -1 and 1")

    def samples(self, values: Values, measure: Measure) -> NDArray[np.float64]:
        ours, theirs = (_on_scale(values, arm, measure) for arm in self.arms)
        return ours - theirs if measure.better == "higher" else theirs - ours

    def region(self, measure: Measure) -> tuple[float, float]:
        return _threshold(self.by, measure), float("inf")

    def _inside(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.bool_]:
        return lower > low  # equal arms do not beat each other, even with a zero-width interval

    def decide(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64], measure: Measure
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        low, _ = self.region(measure)
        return lower > low, upper <= low

    def effect(self, sample: float, measure: Measure) -> float:
        # "5 % lower" is a quotient of 0.95, not of 1 / 1.05.
        lower_is_better = measure.scale == "ratio" and measure.better == "lower"
        return -_expm1(-sample) if lower_is_better else super().effect(sample, measure)

    def sentence(self, result: Finding) -> str:
        ours, theirs = (result.labels[arm] for arm in self.arms)
        margin = f" by more than {result.amount(self.by)}" if self.by else ""
        verb = {
            Answer.HOLDS: f"{ours} beats {theirs}{margin}",
            Answer.FAILS: f"{ours} does not beat {theirs}{margin}",
            Answer.OPEN: f"It is open whether {ours} beats {theirs}{margin}",
        }[result.answer]
        direction = "better" if result.effect >= 0 else "worse"
        return f"{verb} on {self.on}: {result.amount(abs(result.effect))} {direction} ({result.spread(signed=True)})."


@dataclass(frozen=True)
class Matches(Check):
    """The arm equals another one, paired by seed, within `margin`: a test of equivalence."""

    other: str
    margin: float

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm, self.other)

    def describe(self) -> str:
        return f"matches({self.arm!r}, {self.other!r}, on={self.on!r}, margin={self.margin:g})"

    def validate(self, measure: Measure) -> None:
        if not self.margin > 0:
            raise ValueError(f"{self.describe()}: margin={self.margin} is not positive")
        if measure.scale == "ratio" and not self.margin < 1:
            raise ValueError(f"{self.describe()}: margin={self.margin} is not a fraction below 1")

    def samples(self, values: Values, measure: Measure) -> NDArray[np.float64]:
        ours, theirs = (_on_scale(values, arm, measure) for arm in self.arms)
        return ours - theirs

    def region(self, measure: Measure) -> tuple[float, float]:
        if measure.scale == "ratio":
            import math

            return math.log1p(-self.margin), -math.log1p(-self.margin)
        return -self.margin, self.margin

    def sentence(self, result: Finding) -> str:
        ours, theirs = (result.labels[arm] for arm in self.arms)
        verb = {
            Answer.HOLDS: f"{ours} matches {theirs}",
            Answer.FAILS: f"{ours} does not match {theirs}",
            Answer.OPEN: f"It is open whether {ours} matches {theirs}",
        }[result.answer]
        return (
            f"{verb} within {result.amount(self.margin)} on {self.on}: "
            f"{result.amount(result.effect, signed=True)} apart ({result.spread(signed=True)})."
        )


@dataclass(frozen=True)
class Within(Check):
    """The arm's mean lies between a lower and an upper bound: a prediction."""

    low: float | None
    high: float | None

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def describe(self) -> str:
        ends = [f"{name}={end:g}" for name, end in (("low", self.low), ("high", self.high)) if end is not None]
        return f"within({self.arm!r}, on={self.on!r}, {', '.join(ends)})"

    def validate(self, measure: Measure) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"within({self.arm!r}, on={self.on!r}): neither low nor high is given")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"{self.describe()}: low is not below high")
        if measure.scale == "ratio" and any(end is not None and end <= 0 for end in (self.low, self.high)):
            raise ValueError(f"{self.describe()}: bounds of a ratio measure must be positive")

    def samples(self, values: Values, measure: Measure) -> NDArray[np.float64]:
        return _on_scale(values, self.arm, measure)

    def region(self, measure: Measure) -> tuple[float, float]:
        import math

        def on_scale(end: float | None, default: float) -> float:
            if end is None:
                return default
            return math.log(end) if measure.scale == "ratio" else end

        return on_scale(self.low, -math.inf), on_scale(self.high, math.inf)

    def sentence(self, result: Finding) -> str:
        if self.low is None:
            where = f"at most {result.amount(self.high or 0.0)}"
        elif self.high is None:
            where = f"at least {result.amount(self.low)}"
        else:
            where = f"between {result.amount(self.low)} and {result.amount(self.high)}"
        ours = result.labels[self.arm]
        verb = {
            Answer.HOLDS: f"{ours}: {self.on} is {where}, as predicted",
            Answer.FAILS: f"{ours}: {self.on} is not {where}",
            Answer.OPEN: f"{ours}: it is open whether {self.on} is {where}",
        }[result.answer]
        return f"{verb}: {result.amount(result.effect)} ({result.spread(signed=False)})."


def beats(arm: str, *, over: str, on: str, by: float = 0.0, claim: str) -> Check:
    """The arm improves on `over`, paired by seed, by more than `by`.

    Args:
        arm: the contender that should win.
        over: the one it should beat.
        on: the measure; its `better` direction counts.
        by: smallest improvement that counts, in the measure's unit, or as a fraction for ratio measures.
        claim: id of the claim in paper.toml.
    """
    return Beats(arm=arm, on=on, claim=claim, over=over, by=by)


def matches(arm: str, other: str, *, on: str, margin: float, claim: str) -> Check:
    """The arm equals `other`, paired by seed, within `margin` (the measure's unit; a fraction for ratio measures).

    For ratio measures the quotient must lie between 1 - margin and 1 / (1 - margin).
    """
    return Matches(arm=arm, on=on, claim=claim, other=other, margin=margin)


def within(arm: str, *, on: str, low: float | None = None, high: float | None = None, claim: str) -> Check:
    """The arm's mean (geometric mean for ratio measures) lies in [low, high]."""
    return Within(arm=arm, on=on, claim=claim, low=low, high=high)


def joint(answers: list[Answer]) -> Answer:
    """The verdict of a study: *holds* when all checks hold, *does not hold* when any does not."""
    if all(answer is Answer.HOLDS for answer in answers):
        return Answer.HOLDS
    if any(answer is Answer.FAILS for answer in answers):
        return Answer.FAILS
    return Answer.OPEN


def level_for(checks: int) -> float:
    """Confidence level of each interval in a study with that many checks (Bonferroni)."""
    return 1 - ALPHA / checks


def _on_scale(values: Values, arm: str, measure: Measure) -> NDArray[np.float64]:
    """An arm's measurements as a check compares them.

    Raises:
        UserError: a ratio measure that is not positive.
    """
    import numpy as np

    found = np.asarray(values[arm][measure.name], dtype=np.float64)
    if measure.scale == "difference":
        return found
    if np.any(found <= 0):
        raise UserError(
            f"the measure {measure.name!r} of arm {arm!r} is {found.min():g}, but it is compared as a ratio and must "
            'be positive; declare it with scale="difference"'
        )
    return np.log(found)


def _threshold(by: float, measure: Measure) -> float:
    """`by` on the scale of `Beats.samples`: 5 % lower is log(1 / 0.95), 5 % higher is log(1.05)."""
    import math

    if measure.scale == "difference":
        return by
    return -math.log1p(-by) if measure.better == "lower" else math.log1p(by)


def _expm1(value: float) -> float:
    import math

    return math.expm1(value) if value < 700 else math.inf


def _hedges(samples: NDArray[np.float64]) -> float | None:
    """Standardised mean of paired differences with Hedges' correction for small samples."""
    deviation = float(samples.std(ddof=1)) if samples.size > 1 else 0.0
    if deviation == 0:
        return None
    return float(samples.mean()) / deviation * (1 - 3 / (4 * (samples.size - 1) - 1))
