"""Declarations of studies: what is wrong is refused at once, by name."""

from __future__ import annotations

from typing import Any

import pytest

from working_papers.bench import Measure, Scale, Study, Trial, Tuning, beats, within

LOSS = Measure("loss", better="lower", scale="ratio", about="How wrong.")


def declare(**changes: Any) -> Study:
    declared: dict[str, Any] = {
        "question": "Does A beat B?",
        "arms": {"a": "A", "b": "B"},
        "method": "a",
        "seeds": {"smoke": 2, "laptop": 5, "paper": 3},
        "measures": (LOSS, Measure("bias")),
        "checks": (beats("a", over="b", on="loss", claim="c"),),
        "budget": "The same   for all.",
        "sham": "b",
    }
    return Study(**(declared | changes))


def test_a_complete_declaration_is_accepted() -> None:
    study = declare()
    assert study.seeds[Scale.LAPTOP] == 5
    assert study.budget == "The same for all."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "c"}, "method: unknown arm 'c'; the arms are a, b"),
        ({"sham": "c"}, "sham: unknown arm 'c'"),
        ({"sham": "a"}, "sham: 'a' is the method itself"),
        ({"seeds": {"smoke": 2, "laptop": 5}}, "no number of seeds for scale 'paper'"),
        ({"seeds": {"smoke": 0, "laptop": 5, "paper": 3}}, "no number of seeds for scale 'smoke'"),
        ({"checks": ()}, "at least one check"),
        ({"checks": (beats("a", over="z", on="loss", claim="c"),)}, "unknown arm 'z'"),
        ({"checks": (beats("a", over="b", on="speed", claim="c"),)}, "unknown measure 'speed'"),
        ({"checks": (beats("a", over="b", on="bias", claim="c"),)}, "no better direction"),
        ({"checks": (within("a", on="bias", claim="c"),)}, "neither low nor high"),
        ({"measures": (LOSS, LOSS)}, "the name 'loss' is used twice"),
        ({"tuning": Tuning(on="bias", candidates={"a": ({"x": 1},)})}, "'bias' is not a measure with a better"),
        ({"tuning": Tuning(on="loss", candidates={"z": ({"x": 1},)})}, "tuning: unknown arm 'z'"),
        (
            {"tuning": Tuning(on="loss", candidates={"a": ({"x": 1}, {"x": 2}), "b": ({"x": 1},)})},
            "same number of candidates, got {'a': 2, 'b': 1}",
        ),
        ({"tuning": Tuning(on="loss", candidates={"a": ()})}, "same number of candidates"),
        ({"tuning": Tuning(on="loss", candidates={"a": ({"x": 1},)}, seeds=0)}, "seeds is 0; expected at least 1"),
    ],
)
def test_a_wrong_declaration_names_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        declare(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"better": "smaller"}, "better is 'smaller'; expected 'lower', 'higher' or None"),
        ({"scale": "log"}, "scale is 'log'; expected 'difference' or 'ratio'"),
    ],
)
def test_a_measure_knows_its_directions_and_scales(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Measure("loss", **arguments)


def test_a_measure_is_not_named_like_a_cost() -> None:
    with pytest.raises(ValueError, match="'parameters': a cost has this name"):
        Measure("parameters")


def test_a_study_is_complete_with_trial_figure_and_sham() -> None:
    study = declare(sham=None)
    for decorate, words in ((study.trial, "no trial"), (study.figure, "no figure"), (study.sham, "no sham control")):
        with pytest.raises(ValueError, match=words):
            study.check_complete()
        decorate(lambda *_: {})  # type: ignore[arg-type]
    study.check_complete()


def test_a_study_has_one_sham() -> None:
    with pytest.raises(ValueError, match="sham='b' is declared already"):
        declare().sham(lambda trial: {})


def test_progress_is_a_fraction() -> None:
    told: list[float] = []
    trial = Trial("a", 0, Scale.SMOKE, report=told.append)
    for step in (0, 5, 20):
        trial.progress(step, of=10)
    trial.progress(1, of=0)
    assert told == [0.0, 0.5, 1.0, 1.0]
    Trial("a", 0, Scale.SMOKE).progress(1, of=2)  # nobody listens


def test_a_scale_chooses_a_size() -> None:
    assert [scale.choose(smoke=1, laptop=2, paper=3) for scale in Scale] == [1, 2, 3]
