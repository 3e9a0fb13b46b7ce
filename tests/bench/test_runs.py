"""Runs from end to end on made-up rooms: verdicts, tuning, what is stored and run again, crashes, shams, figures."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench.made_up import CountingPool, run, slug_for, store_in, write_room
from working_papers.bench.checks import Answer
from working_papers.bench.code_hash import code_hash
from working_papers.bench.pools import LocalPool
from working_papers.bench.record import Record, read_record
from working_papers.bench.rooms import Room
from working_papers.bench.runner import Progress, Result, write_reference
from working_papers.bench.study import Scale
from working_papers.bench.trial import TrialSpec, derive_seed, run_trial
from working_papers.errors import UserError

Write = Callable[..., Room]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Writes rooms that can be imported for the time of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count(1)

    def written(**places: str) -> Room:
        return write_room(tmp_path, slug_for(request.node.name, next(numbers)), **places)

    return written


def record_of(result: Result) -> Record:
    assert result.record is not None, result.failures[0].error
    return result.record


def spec_of(room: Room, arm: str = "new", index: int = 0) -> TrialSpec:
    return TrialSpec(room.slug, "smoke", arm, index, "report", (), code_hash(room))


def test_a_run_ends_in_a_verdict(write: Write, tmp_path: Path) -> None:
    room = write()
    heard: list[Progress] = []
    result = run(room, tmp_path, scale=Scale.LAPTOP, watch=heard.append)
    record = record_of(result)
    assert record.answer == Answer.HOLDS and record.seeds == 3
    assert [check.answer for check in record.checks] == ["holds", "holds"]
    assert record.checks[0].level == pytest.approx(0.975)
    assert record.arms["new"].measures["loss"] == pytest.approx([1.0] * 3, abs=0.01)
    assert record.code_hash == code_hash(room) and record.stale(code_hash(room)) == ""
    assert record.versions["torch"].startswith("2.") and record.machine["processors"]
    assert len(set(record.arms["new"].measures["bias"])) == 3, "seeds must differ"
    assert record.arms["new"].measures["bias"] == record.arms["old"].measures["bias"], "arms of a seed share theirs"
    # Progress: from nothing to everything, with what is in flight.
    assert {progress.stage for progress in heard} == {"trials"}
    assert (heard[0].done, heard[-1].done, heard[-1].total, heard[-1].stored) == (0, 6, 6, 0)
    assert [progress.done for progress in heard] == sorted(progress.done for progress in heard)
    assert any(0.5 in progress.running.values() for progress in heard), "a trial's own progress arrives"
    assert not heard[-1].running
    # The record survives JSON, and the store has it.
    assert Record.model_validate_json(record.model_dump_json()) == record
    with store_in(tmp_path) as store:
        (kept,) = store.latest_runs(room.slug)
    assert kept.status == "finished" and kept.record == json.loads(record.model_dump_json())
    # The figure.
    assert result.figure is not None and result.figure.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    svg = result.figure.read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "prefers-color-scheme:dark" in svg and "currentColor" in svg
    assert "scale(0.015625)" in svg, "rounding decimals must not shrink the letters"


def test_a_method_that_is_worse_does_not_hold(write: Write, tmp_path: Path) -> None:
    room = write()
    (room.folder / "method.py").write_text("def offset(arm):\n    return 1.0\n", encoding="utf-8")
    record = record_of(run(room, tmp_path, scale=Scale.LAPTOP))
    assert record.answer == Answer.FAILS
    assert "of 2 checks 1 fails" in record.summary


def test_a_prediction_at_one_seed_is_inconclusive(write: Write, tmp_path: Path) -> None:
    record = record_of(run(write(), tmp_path, seeds=1))
    assert record.answer == Answer.OPEN and record.seeds == 1
    assert record.checks[1].interval == (None, None) and record.checks[0].p_value is None


def test_tuning_chooses_on_seeds_that_are_not_reported(write: Write, tmp_path: Path) -> None:
    declaration = """
tuning=Tuning(on="loss", seeds=2, candidates={
    "new": ({"rate": 0.5}, {"rate": 0.1}, {"rate": 0.3}), "old": ({"rate": 0.2}, {"rate": 0.3}, {"rate": 0.1})}),"""
    room = write(
        declaration=declaration,
        trial='data["values"] = data["values"] * 0 + 1000 * abs(trial.setting["rate"] - 0.1)',
    )
    pool = CountingPool(LocalPool(tmp_path / "cache"))
    record = record_of(run(room, tmp_path, pool=pool))
    assert record.arms["new"].setting == {"rate": 0.1} and record.arms["old"].setting == {"rate": 0.1}
    assert record.arms["new"].candidates == 3
    tuned = [spec for spec in pool.asked if spec.phase == "tuning"]
    reported = [spec for spec in pool.asked if spec.phase == "report"]
    assert len(tuned) == 2 * 2 * 3 and len(reported) == 2 * 2
    assert {spec.setting for spec in reported} == {(("rate", 0.1),)}
    seeds = {phase: {derive_seed(room.slug, phase, index) for index in range(2)} for phase in ("tuning", "report")}
    assert not seeds["tuning"] & seeds["report"]


def test_an_arm_with_one_candidate_takes_it_untried(write: Write, tmp_path: Path) -> None:
    room = write(declaration='tuning=Tuning(on="loss", candidates={"new": ({"rate": 0.5},)}),')
    pool = CountingPool(LocalPool(tmp_path / "cache"))
    record = record_of(run(room, tmp_path, pool=pool))
    assert record.arms["new"].setting == {"rate": 0.5} and record.arms["old"].setting == {}
    assert {spec.phase for spec in pool.asked} == {"report"}


def test_finished_trials_are_stored_and_changed_code_runs_again(write: Write, tmp_path: Path) -> None:
    room = write()

    def asked(**options: object) -> int:
        pool = CountingPool(LocalPool(tmp_path / "cache"))
        record_of(run(room, tmp_path, pool=pool, **options))  # type: ignore[arg-type]
        return len(pool.asked)

    first_hash = code_hash(room)
    assert asked() == 4
    assert asked() == 0, "a repeated run is free"
    assert asked(seeds=3) == 2, "a longer one runs what is missing"
    assert asked(fresh=True) == 4
    method = room.folder / "method.py"
    text = method.read_text(encoding="utf-8")
    method.write_text(text.replace("# a comment", "# another").replace("What the", "About what the"), encoding="utf-8")
    assert code_hash(room) == first_hash
    assert asked() == 0, "comments and docstrings are left out"
    method.write_text(text.replace("1.0 if", "1.5 if"), encoding="utf-8")
    assert code_hash(room) != first_hash
    assert asked() == 4, "changed code runs again"
    method.write_text(text, encoding="utf-8")
    assert asked() == 0, "and the old code's trials are still there"


def test_runs_are_never_overwritten(write: Write, tmp_path: Path) -> None:
    room = write()
    results = [run(room, tmp_path, seeds=seeds) for seeds in (2, 1)]
    with store_in(tmp_path) as store:
        kept = store.latest_runs(room.slug)
    assert [item.id for item in kept] == [results[1].run, results[0].run]
    assert [item.record["seeds"] for item in kept if item.record] == [1, 2]
    assert all(result.figure is not None and result.figure.exists() for result in results)


CRASHES = {
    "an exception": ('raise RuntimeError("on purpose")', "RuntimeError: on purpose"),
    "leaving the interpreter": ("sys.exit(3)", "exit code 3 before it returned"),
    "leaving at once": ("os._exit(7)", "exit code 7 before it returned"),
    "a segmentation fault": ("ctypes.string_at(0)", "ended by signal SIGSEGV"),
    "the system's killer": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (often the system's answer"),
    "too little memory": (
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); np.ones(2**31)",
        "MemoryError",
    ),
    "not a number": ('return {"loss": float("nan"), "bias": 0.0}', "measurement 'loss' is nan; return a finite number"),
    "infinity": ('return {"loss": float("inf"), "bias": 0.0}', "measurement 'loss' is inf"),
    "a measure too many": ('return {"loss": 1.0, "bias": 0.0, "speed": 1.0}', "'speed' is not declared"),
    "a measure too few": ('return {"loss": 1.0}', "did not return the measure 'bias'"),
    "words": ('return {"loss": 1.0, "bias": 0.0, "curve": np.array(["x"])}', "the array 'curve' has dtype"),
    "no mapping": ("return 1.0", "returned float, expected a mapping"),
}


@pytest.mark.slow
def test_a_crash_fails_its_trial_only(write: Write, tmp_path: Path) -> None:
    """Every way of dying, one a seed of the new arm: each is reported as what it is and the rest goes on."""
    count = len(CRASHES)
    ways = "".join(f"if index == {index}: {code}\n" for index, (code, _) in enumerate(CRASHES.values()))
    room = write(
        trial="from working_papers.bench.trial import derive_seed\n"
        f"seeds = [derive_seed('{{slug}}', 'report', index) for index in range({count + 1})]\n"
        "index = seeds.index(trial.seed) if trial.arm == 'new' else -1\n"
        f"{ways}"
    )
    result = run(room, tmp_path, seeds=count + 1)
    assert result.record is None and result.figure is None
    failures = {failure.seed: failure for failure in result.failures}
    assert set(failures) == set(range(count)), "one failure for each way, none of them of the last, healthy seed"
    for index, (name, (_, words)) in enumerate(CRASHES.items()):
        assert words in failures[index].error, f"{name}: {failures[index].error}"
        assert (failures[index].arm, failures[index].phase) == ("new", "report")
    with store_in(tmp_path) as store:
        (kept,) = store.latest_runs(room.slug)
        assert kept.status == "failed" and kept.record is None and "on purpose" in (kept.error or "")
        healthy = [spec_of(room, "old", index) for index in range(count + 1)] + [spec_of(room, "new", count)]
        assert set(store.finished_trials(healthy)) == set(healthy), "what finished is kept"
        assert not store.finished_trials([spec_of(room, "new", 0)]), "what failed is run again"


def test_a_crash_while_tuning_is_no_verdict_either(write: Write, tmp_path: Path) -> None:
    room = write(
        declaration='tuning=Tuning(on="loss", candidates={"new": ({"rate": 0.5}, {"rate": 0.1})}),',
        trial='if trial.setting.get("rate") == 0.1: raise ValueError("too slow")',
    )
    result = run(room, tmp_path)
    assert result.record is None
    assert [(failure.phase, failure.arm) for failure in result.failures] == [("tuning", "new")]


def test_a_sham_does_not_hold(write: Write, tmp_path: Path) -> None:
    room = write()
    record = record_of(run(room, tmp_path, sham=True, scale=Scale.LAPTOP))
    assert record.sham_run and record.answer != Answer.HOLDS
    assert record.arms["new"].measures["loss"] == pytest.approx([2.0] * 3, abs=0.01)
    assert record.arms["new"].measures["bias"] != record.arms["old"].measures["bias"], "the stand-in has another seed"
    # Trials of a sham run are not mistaken for trials of the method.
    assert record_of(run(room, tmp_path, scale=Scale.LAPTOP)).answer == Answer.HOLDS


def test_a_prediction_declares_its_own_sham(write: Write, tmp_path: Path) -> None:
    room = write(trial="")
    text = (room.folder / "study.py").read_text(encoding="utf-8").replace('    sham="old",\n', "")
    text += (
        '\n\n@study.sham\ndef shuffled(trial, data):\n    return {"loss": 5.0, "bias": 9.0, "curve": np.zeros(100)}\n'
    )
    (room.folder / "study.py").write_text(text, encoding="utf-8")
    record = record_of(run(room, tmp_path, with_sham=True))
    assert record.sham is not None and record.sham.answer == Answer.FAILS
    assert record.arms["new"].measures["bias"] != [9.0, 9.0], "the sham's numbers are not the run's"
    assert record_of(run(room, tmp_path, sham=True)).arms["new"].measures["bias"] == [9.0, 9.0]


def test_what_arms_share_is_made_once_and_cannot_be_spoilt(write: Write, tmp_path: Path) -> None:
    log = tmp_path / "made"
    room = write(
        prepare=f'with open({str(log)!r}, "a") as file: print(seed, file=file)',
        trial='assert abs(data["values"]).max() < 100, "spoilt by the trial before"\n'
        'shared = data; data = {"values": shared["values"].copy()}\n'
        'shared["values"] += 1000.0',
    )
    record_of(run(room, tmp_path, scale=Scale.LAPTOP))
    made = log.read_text(encoding="utf-8").split()
    assert sorted(made) == sorted(str(derive_seed(room.slug, "report", index)) for index in range(3))
    assert not list((tmp_path / "cache").iterdir()), "what was shared is removed when the run ends"


def test_a_trial_cannot_spoil_the_next_through_global_state(write: Write, tmp_path: Path) -> None:
    body = 'assert not hasattr(np, "spoilt")\nnp.spoilt = True\nnoise[1] += torch.rand(1).item() + np.random.rand()'
    room = write(trial=body)
    first = record_of(run(room, tmp_path))
    again = record_of(run(room, tmp_path, fresh=True, pool=LocalPool(tmp_path / "cache", jobs=1)))
    assert first.arms["new"].measures == again.arms["new"].measures, "global generators are seeded too"


def test_a_trial_measures_the_same_alone_and_in_a_pool(write: Write, tmp_path: Path) -> None:
    """Bit for bit, figure arrays included; a long sum shows a different number of threads."""
    room = write(
        trial="generator = torch.Generator().manual_seed(trial.seed)\n"
        "noise = torch.randn(300, 300, generator=generator).exp().cumsum(1)[:, 99]"
    )
    pool = LocalPool(tmp_path / "cache", jobs=2)
    specs = [spec_of(room, arm, index) for index in range(2) for arm in ("new", "old")]
    outcomes = {event.spec: event.outcome for event in pool.run(room, specs) if event.outcome is not None}
    for spec in specs:
        alone = run_trial(room, spec)
        pooled = outcomes[spec]
        assert alone.error is None and pooled.error is None
        assert alone.numbers == pooled.numbers
        np.testing.assert_array_equal(alone.arrays["curve"], pooled.arrays["curve"], strict=True)


@pytest.mark.slow
def test_a_trial_measures_the_same_on_ray(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and on a local cluster; a worker that dies fails its own trial only."""
    pytest.importorskip("ray")
    from working_papers.bench.pools import RayPool

    room = write()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = RayPool("ray", jobs=2)
    try:
        specs = [spec_of(room, arm) for arm in ("new", "old")]
        crash = write(trial="os._exit(7)")
        outcomes = {event.spec: event.outcome for event in pool.run(room, specs) if event.outcome is not None}
        (crashed,) = [event.outcome for event in pool.run(crash, [spec_of(crash)]) if event.outcome is not None]
    finally:
        pool.close()
    assert crashed.error is not None and crashed.error.startswith("the Ray worker failed")
    for spec in specs:
        alone = run_trial(room, spec)
        assert alone.error is None and outcomes[spec].error is None, outcomes[spec].error
        assert alone.numbers == outcomes[spec].numbers
        np.testing.assert_array_equal(alone.arrays["curve"], outcomes[spec].arrays["curve"], strict=True)
        assert outcomes[spec].costs["wall seconds"] > 0


def test_costs_are_measured(write: Write, tmp_path: Path) -> None:
    room = write(
        trial='if trial.arm == "new":\n'
        "    block = np.ones(25_000_000); block += 1; del block  # 200 MB\n"
        "    time.sleep(0.3)\n"
        "start = time.process_time()\n"
        'while trial.arm == "old" and time.process_time() - start < 0.3: pass'
    )
    record = record_of(run(room, tmp_path, seeds=1))
    new, old = record.arms["new"].costs, record.arms["old"].costs
    assert 190 <= new["peak memory MB"][0] <= 400
    assert old["peak memory MB"][0] < 100
    assert new["wall seconds"][0] >= 0.3
    assert old["CPU seconds"][0] >= 0.3
    assert new["wall seconds"][0] - new["CPU seconds"][0] >= 0.28, "sleeping costs no CPU, however busy the machine"
    assert new["parameters"] == [7.0]
    assert record.cost("new", "parameters") == 7.0 and record.cost("new", "FLOPs") is None


def test_a_negative_ratio_is_told_in_one_sentence(write: Write, tmp_path: Path) -> None:
    room = write(trial='if trial.arm == "old": return {"loss": -1.0, "bias": 0.0, "curve": noise.numpy()}')
    with pytest.raises(UserError, match=r"'loss' of arm 'old' is -1, .* must be positive"):
        run(room, tmp_path)
    with store_in(tmp_path) as store:
        (kept,) = store.latest_runs(room.slug)
    assert kept.status == "failed" and "must be positive" in (kept.error or "")


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("figure", 'raise KeyError("no such curve")', "the figure cannot be drawn (KeyError: 'no such curve')"),
        ("trial", "noise = noise[: 5 + trial.seed % 7]", "the array 'curve' of arm 'new' must have one shape"),
    ],
)
def test_a_figure_that_fails_is_told_in_one_sentence(
    write: Write, tmp_path: Path, place: str, code: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(write(**{place: code}), tmp_path, seeds=4)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("declaration", "tuning=3,", "the study cannot be loaded: AttributeError: 'int' object has no attribute"),
        ("prepare", "(", "the study cannot be loaded: SyntaxError"),
    ],
)
def test_a_study_that_cannot_be_loaded_is_told_in_one_sentence(
    write: Write, tmp_path: Path, place: str, code: str, words: str
) -> None:
    room = write(**{place: code})
    with pytest.raises(UserError) as caught:
        run(room, tmp_path)
    assert words in str(caught.value) and room.slug in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_arm_is_named_with_the_line_that_declares_it(write: Write, tmp_path: Path) -> None:
    room = write()
    study = room.folder / "study.py"
    study.write_text(study.read_text(encoding="utf-8").replace('over="old"', 'over="older"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"unknown arm 'older'; the arms are new, old \(study.py, line 13\)"):
        run(room, tmp_path)


def test_the_figure_is_the_same_bytes_twice(write: Write, tmp_path: Path) -> None:
    room = write()
    first, second = (run(room, tmp_path) for _ in range(2))
    assert first.figure is not None and second.figure is not None and first.figure != second.figure
    assert first.figure.read_bytes() == second.figure.read_bytes()
    assert first.figure.with_suffix(".png").read_bytes() == second.figure.with_suffix(".png").read_bytes()


def test_a_reference_is_written_from_an_honest_laptop_run(write: Write, tmp_path: Path) -> None:
    room = write()
    result = run(room, tmp_path, scale=Scale.LAPTOP, with_sham=True)
    path = write_reference(room, result)
    record = read_record(path)
    assert record == result.record
    assert record.sham is not None and record.sham.answer != Answer.HOLDS and len(record.sham.sentences) == 2
    assert record.arms["new"].measures["loss"] and record.versions["torch"] and record.machine and record.date
    assert (room.folder / "figure.svg").read_text(encoding="utf-8").startswith("<svg")
    assert not list(room.folder.glob("*.part"))
    # It is stale once code or torch have changed.
    assert record.stale("another hash") == "the room's code has changed since"
    older = record.model_copy(update={"versions": record.versions | {"torch": "1.0"}})
    assert "it ran with torch 1.0" in older.stale(record.code_hash)


def test_a_reference_is_refused_where_it_would_be_dishonest(write: Write, tmp_path: Path) -> None:
    room = write()
    result = run(room, tmp_path, scale=Scale.LAPTOP, with_sham=True)
    record = record_of(result)
    assert record.sham is not None
    refused = {
        "comes from a laptop run": record.model_copy(update={"scale": "smoke"}),
        "that is not a sham": record.model_copy(update={"sham_run": True}),
        "says \\*holds\\* to a sham": record.model_copy(
            update={"sham": record.sham.model_copy(update={"answer": "holds"})}
        ),
        "cannot decide the claim": record.model_copy(update={"sham": None}),
    }
    for words, dishonest in refused.items():
        with pytest.raises(UserError, match=words):
            write_reference(room, replace(result, record=dishonest))
    assert result.figure is not None
    heavy = result.figure.with_name("heavy.svg")
    heavy.write_text("<svg>" + " " * 300_000, encoding="utf-8")
    with pytest.raises(UserError, match="the figure has 300 kB; the limit is 200"):
        write_reference(room, replace(result, figure=heavy))
    away = replace(room, folder=room.folder / "paper.toml")
    with pytest.raises(UserError, match="the reference verdict cannot be written"):
        write_reference(away, result)
    assert not (room.folder / "reference.json").exists() and not (room.folder / "figure.svg").exists()


def test_trials_never_see_the_conductors_modules(write: Write, tmp_path: Path) -> None:
    """A trial's process has one thread and a state of its own, whatever the conductor has imported or set."""
    room = write(trial='assert torch.get_num_threads() == 1\nassert "pytest" not in sys.modules')
    assert "pytest" in sys.modules
    record_of(run(room, tmp_path))
