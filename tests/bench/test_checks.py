"""Checks: improvements and their inverses, thresholds, sentences, and what they do with few or equal numbers."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from working_papers.bench import Measure, beats, matches, within
from working_papers.bench.checks import Answer, Check, Result, interval, joint, level_for
from working_papers.errors import UserError

LABELS = {"a": "Method", "b": "Baseline"}
LOSS = Measure("loss", better="lower", scale="ratio", unit="nats")
SPEED = Measure("speed", better="higher", scale="ratio")
SCORE = Measure("score", better="higher", unit="points")
ERRORS = Measure("errors", better="lower")


def evaluate(check: Check, measure: Measure, a: list[float], b: list[float] | None = None, checks: int = 1) -> Result:
    values = {"a": {measure.name: np.array(a)}, "b": {measure.name: np.array(a if b is None else b)}}
    return check.evaluate(values, measure, LABELS, level_for(checks))


@pytest.mark.parametrize(
    ("measure", "ours", "theirs", "effect", "shown"),
    [
        (LOSS, 0.95, 1.0, 0.05, "5 % better"),  # 5 % lower is a quotient of 0.95
        (LOSS, 2.0, 1.0, -1.0, "100 % worse"),
        (SPEED, 1.05, 1.0, 0.05, "5 % better"),
        (SPEED, 0.5, 1.0, -0.5, "50 % worse"),
        (SCORE, 72.0, 70.0, 2.0, "2 points better"),
        (ERRORS, 3.0, 5.0, 2.0, "2 better"),
    ],
)
def test_improvement_counts_in_the_better_direction(
    measure: Measure, ours: float, theirs: float, effect: float, shown: str
) -> None:
    result = evaluate(beats("a", over="b", on=measure.name, claim="c"), measure, [ours] * 3, [theirs] * 3)
    assert result.effect == pytest.approx(effect)
    assert result.answer is (Answer.HOLDS if effect > 0 else Answer.FAILS)
    assert shown in result.sentence and "3 seeds" in result.sentence
    assert result.relative is (measure.scale == "ratio")


@settings(deadline=None)  # a busy machine is not an error
@given(by=st.floats(0.01, 0.6), measure=st.sampled_from([LOSS, SPEED]))
def test_a_threshold_is_met_exactly_by_the_fraction_it_names(by: float, measure: Measure) -> None:
    """The effect that is shown and the `by` that is compared are one scale."""
    check = beats("a", over="b", on=measure.name, by=by, claim="c")
    sign = -1 if measure.better == "lower" else 1
    for nudge, answer in ((1e-6, Answer.HOLDS), (-1e-6, Answer.FAILS)):
        result = evaluate(check, measure, [1 + sign * (by + nudge)] * 3, [1.0] * 3)
        assert result.answer is answer
        assert result.effect == pytest.approx(by + nudge, rel=1e-9)


@settings(deadline=None)  # a busy machine is not an error
@given(effect=st.floats(-0.9, 0.9), measure=st.sampled_from([LOSS, SPEED, SCORE, ERRORS]))
def test_effect_inverts_the_scale_of_the_samples(effect: float, measure: Measure) -> None:
    check = beats("a", over="b", on=measure.name, claim="c")
    sign = -1 if measure.better == "lower" else 1
    values = {"a": {measure.name: np.array([1 + sign * effect])}, "b": {measure.name: np.array([1.0])}}
    assert check.effect(float(check.samples(values, measure)[0]), measure) == pytest.approx(effect, abs=1e-9)


@pytest.mark.parametrize("measure", [LOSS, SCORE])
def test_the_interval_is_the_paired_t_interval(measure: Measure) -> None:
    random = np.random.default_rng(0)
    theirs = random.uniform(1, 2, 8)
    ours = theirs * random.uniform(0.8, 0.95, 8)
    result = evaluate(beats("a", over="b", on=measure.name, claim="c"), measure, list(ours), list(theirs), checks=3)
    paired = np.log(theirs / ours) if measure.scale == "ratio" else ours - theirs
    expected = stats.t.interval(1 - 0.05 / 3, 7, loc=paired.mean(), scale=stats.sem(paired))
    if measure.scale == "ratio":
        expected = 1 - np.exp(-np.array(expected))
    assert result.interval == pytest.approx(tuple(expected))
    assert result.level == pytest.approx(1 - 0.05 / 3)
    other = stats.ttest_1samp(paired, 0, alternative="greater")
    assert result.p_value == pytest.approx(other.pvalue)
    assert result.effect_size == pytest.approx(paired.mean() / paired.std(ddof=1) * (1 - 3 / 27))


@settings(deadline=None)  # a busy machine is not an error
@given(
    st.lists(st.floats(-10, 10), min_size=3, max_size=8),
    st.sampled_from([beats("a", over="b", on="score", by=0.5, claim="c"), within("a", on="score", low=-1, claim="c")]),
)
def test_interval_and_p_value_agree(samples: list[float], check: Check) -> None:
    """One-sided p below 2.5 % is what a 95 % interval above the threshold says."""
    result = evaluate(check, SCORE, samples, [0.0] * len(samples))
    assert result.p_value is not None
    if abs(result.p_value - 0.025) > 1e-6:
        assert (result.answer is Answer.HOLDS) == (result.p_value < 0.025)


@pytest.mark.parametrize(
    ("quotient", "answer"),
    [(0.905, Answer.HOLDS), (0.895, Answer.FAILS), (1 / 0.905, Answer.HOLDS), (1 / 0.895, Answer.FAILS)],
)
def test_matches_is_symmetric_in_its_arms_on_ratios(quotient: float, answer: Answer) -> None:
    check = matches("a", "b", on="loss", margin=0.1, claim="c")
    assert evaluate(check, LOSS, [quotient] * 3, [1.0] * 3).answer is answer
    assert evaluate(check, LOSS, [1.0] * 3, [quotient] * 3).answer is answer


def test_matches_needs_the_whole_interval_inside_the_margin() -> None:
    check = matches("a", "b", on="score", margin=1.0, claim="c")
    near, far = [0.1, -0.1, 0.0, 0.05], [3.0, 3.1, 2.9, 3.0]
    wide = [2.0, -2.0, 1.5, -1.5]
    for differences, answer in ((near, Answer.HOLDS), (far, Answer.FAILS), (wide, Answer.OPEN)):
        assert evaluate(check, SCORE, differences, [0.0] * 4).answer is answer


@pytest.mark.parametrize(
    ("low", "high", "answer", "words"),
    [
        (1.0, 3.0, Answer.HOLDS, "is between 1 points and 3 points, as predicted"),
        (1.9, None, Answer.OPEN, "Method: it is open whether score is at least 1.9 points"),
        (None, 1.0, Answer.FAILS, "is not at most 1 points"),
        (None, 0.0, Answer.FAILS, "is not at most 0 points"),
        (2.5, None, Answer.FAILS, "is not at least 2.5 points"),
    ],
)
def test_within_asks_where_the_mean_lies(low: float | None, high: float | None, answer: Answer, words: str) -> None:
    result = evaluate(within("a", on="score", low=low, high=high, claim="c"), SCORE, [2.0, 1.9, 2.1])
    assert result.answer is answer
    assert words in result.sentence and "interval" in result.sentence
    assert result.effect_size is None, "a plain value has no effect size"


def test_within_takes_the_geometric_mean_of_a_ratio() -> None:
    result = evaluate(within("a", on="loss", high=2.0, claim="c"), LOSS, [0.5, 1.0, 2.0])
    assert result.effect == pytest.approx(1.0)
    assert not result.relative and "1 nats" in result.sentence


def test_sentences_say_what_was_found() -> None:
    cases = [
        (beats("a", over="b", on="loss", by=0.1, claim="c"), 0.5, "Method beats Baseline by more than 10 % on loss"),
        (beats("a", over="b", on="loss", claim="c"), 1.5, "Method does not beat Baseline on loss"),
        (matches("a", "b", on="loss", margin=0.1, claim="c"), 1.01, "Method matches Baseline within 10 % on loss"),
        (matches("a", "b", on="loss", margin=0.1, claim="c"), 1.5, "Method does not match Baseline within 10 %"),
    ]
    for check, quotient, words in cases:
        sentence = evaluate(check, LOSS, [quotient] * 3, [1.0] * 3).sentence
        assert sentence.startswith(words) and sentence.endswith(").")


@pytest.mark.parametrize(
    "check",
    [
        beats("a", over="b", on="score", claim="c"),
        matches("a", "b", on="score", margin=100.0, claim="c"),
        within("a", on="score", low=-100.0, claim="c"),
    ],
)
def test_one_seed_decides_nothing(check: Check) -> None:
    result = evaluate(check, SCORE, [3.0], [1.0])
    assert result.answer is Answer.OPEN
    assert result.p_value is None and result.effect_size is None
    assert "one seed, no interval" in result.sentence
    assert result.interval == (-math.inf, math.inf)


def test_one_seed_on_a_ratio_has_no_interval_either() -> None:
    result = evaluate(beats("a", over="b", on="loss", claim="c"), LOSS, [0.5], [1.0])
    assert result.answer is Answer.OPEN and result.interval[1] == pytest.approx(1.0)


def test_equal_arms_do_not_beat_each_other_and_match() -> None:
    equal = [0.1, 0.2, 0.3]
    beaten = evaluate(beats("a", over="b", on="score", claim="c"), SCORE, equal, equal)
    assert beaten.answer is Answer.FAILS and beaten.p_value == 1.0 and beaten.effect_size is None
    matched = evaluate(matches("a", "b", on="score", margin=1e-9, claim="c"), SCORE, equal, equal)
    assert matched.answer is Answer.HOLDS and matched.p_value == 0.0


@pytest.mark.parametrize("value", [0.1, 0.7, 1.1, 1e-300])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_rounding_does_not_carry_a_constant_across_its_bound(value: float, count: int) -> None:
    """The mean of three times 0.1 is not 0.1 in floating point; a constant at its bound is within it all the same."""
    for bounds in ({"high": value}, {"low": value}):
        assert evaluate(within("a", on="score", **bounds, claim="c"), SCORE, [value] * count).answer is Answer.HOLDS


def test_nearly_equal_values_raise_no_warning() -> None:
    values = [1.05, 1.05 + 2e-16, 1.05 - 2e-16]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(within("a", on="score", high=1.1, claim="c"), SCORE, values)
    assert result.answer is Answer.HOLDS and result.p_value == pytest.approx(0.0)


@pytest.mark.parametrize("bad", [0.0, -0.5])
@pytest.mark.parametrize(
    "check",
    [
        beats("a", over="b", on="loss", claim="c"),
        matches("b", "a", on="loss", margin=0.1, claim="c"),
        within("a", on="loss", high=1.0, claim="c"),
    ],
)
def test_a_ratio_measure_must_be_positive(check: Check, bad: float) -> None:
    with pytest.raises(UserError, match=rf"'loss' of arm 'a' is {bad:g}, .* must be positive; declare it with"):
        evaluate(check, LOSS, [1.0, bad, 2.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("check", "measure", "words"),
    [
        (beats("a", over="b", on="x", claim="c"), Measure("x"), "no better direction"),
        (beats("a", over="b", on="x", by=1.5, claim="c"), LOSS, "by=1.5 is not a fraction between -1 and 1"),
        (matches("a", "b", on="x", margin=0.0, claim="c"), SCORE, "margin=0.0 is not positive"),
        (matches("a", "b", on="x", margin=1.0, claim="c"), LOSS, "margin=1.0 is not a fraction below 1"),
        (within("a", on="x", claim="c"), SCORE, "neither low nor high"),
        (within("a", on="x", low=2.0, high=1.0, claim="c"), SCORE, "low is not below high"),
        (within("a", on="x", low=0.0, claim="c"), LOSS, "must be positive"),
    ],
)
def test_rules_that_make_no_sense_are_refused(check: Check, measure: Measure, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check.validate(measure)


def test_the_verdict_is_the_answer_of_the_worst_check() -> None:
    holds, fails, unsettled = Answer.HOLDS, Answer.FAILS, Answer.OPEN
    assert joint([holds, holds]) is holds
    assert joint([holds, unsettled]) is unsettled
    assert joint([holds, unsettled, fails]) is fails


def test_intervals_of_many_data_sets_are_those_of_each() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 6))
    lower, upper = interval(values, 0.9)
    assert lower.shape == upper.shape == (4, 3)
    alone = interval(values[2, 1], 0.9)
    assert (lower[2, 1], upper[2, 1]) == (float(alone[0]), float(alone[1]))
