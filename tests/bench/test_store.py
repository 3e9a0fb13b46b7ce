"""The store of runs and trials, on SQLite or, where one is named, on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import Engine

from working_papers.bench.store import FAILED, FINISHED, INTERRUPTED, RUNNING, Outcome, Store
from working_papers.bench.trial import TrialSpec, derive_seed

SPEC = TrialSpec("room", "laptop", "new", 0, "report", (("rate", 0.1),), "hash")


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


def begin(store: Store, slug: str = "room") -> int:
    return store.begin(slug=slug, scale="laptop", sham=False, seeds=5, code_hash="hash")


def test_a_trial_comes_back_as_it_was_kept(store: Store) -> None:
    arrays = {"curve": np.linspace(0, 1, 7, dtype=np.float32), "mask": np.array([[True, False]])}
    kept = Outcome(numbers={"loss": 0.1 + 0.2}, arrays=arrays, costs={"wall seconds": 1e-9})
    store.keep(begin(store), SPEC, kept)
    found = store.finished_trials([SPEC])[SPEC]
    assert found.numbers == kept.numbers and found.costs == kept.costs and not found.failed
    assert list(found.arrays) == ["curve", "mask"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def test_failed_trials_are_run_again_and_the_newest_result_counts(store: Store) -> None:
    run = begin(store)
    store.keep(run, SPEC, Outcome(error="crashed"))
    assert store.finished_trials([SPEC]) == {}
    store.keep(run, SPEC, Outcome(numbers={"loss": 1.0}))
    store.keep(run, SPEC, Outcome(numbers={"loss": 2.0}))
    store.keep(run, SPEC, Outcome(error="crashed again"))
    assert store.finished_trials([SPEC])[SPEC].numbers == {"loss": 2.0}


@pytest.mark.parametrize(
    "change",
    [
        {"slug": "other"},
        {"scale": "smoke"},
        {"arm": "old"},
        {"index": 1},
        {"phase": "tuning"},
        {"setting": (("rate", 0.2),)},
        {"code_hash": "changed"},
    ],
)
def test_everything_that_decides_a_trial_is_part_of_its_key(store: Store, change: dict[str, object]) -> None:
    store.keep(begin(store), SPEC, Outcome(numbers={"loss": 1.0}))
    other = replace(SPEC, **change)  # type: ignore[arg-type]
    assert other.key != SPEC.key and store.finished_trials([other]) == {}


def test_many_trials_are_found_at_once(store: Store) -> None:
    specs = [replace(SPEC, index=index) for index in range(1201)]
    run = begin(store)
    for spec in specs[::300]:
        store.keep(run, spec, Outcome(numbers={"index": spec.index}))
    assert {spec.index for spec in store.finished_trials(specs)} == {0, 300, 600, 900, 1200}


def test_runs_are_kept_side_by_side(store: Store) -> None:
    first, second, other = begin(store), begin(store), begin(store, "another")
    store.end(first, FINISHED, record={"answer": "holds"})
    store.end(second, INTERRUPTED, error="stopped by the user")
    store.end(other, FAILED, error="log")
    third = begin(store)
    runs = store.latest_runs("room")
    assert [run.id for run in runs] == [third, second, first]
    assert [run.status for run in runs] == [RUNNING, INTERRUPTED, FINISHED]
    assert runs[2].record == {"answer": "holds"} and runs[1].error == "stopped by the user"
    assert runs[2].finished is not None and runs[2].finished >= runs[2].started and runs[2].started.tzinfo is not None
    assert [run.id for run in store.latest_runs("room", limit=1)] == [third]


def test_seeds_differ_between_rooms_groups_and_numbers_and_are_31_bits() -> None:
    seeds = [
        derive_seed(slug, group, index)
        for slug in ("a", "b")
        for group in ("report", "tuning", "sham")
        for index in range(100)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed("normuon", "report", 0) == derive_seed("normuon", "report", 0)
