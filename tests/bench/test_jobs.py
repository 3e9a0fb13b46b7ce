"""The queue of runs: asked for once, run once, cancelled, taken up again when a worker or its machine dies."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, update

from working_papers.bench.jobs import (
    CANCELLED,
    FAILED,
    FINISHED,
    LOST_SECONDS,
    MOST_ATTEMPTS,
    QUEUED,
    RUNNING,
    JobRow,
    beat,
    cancel_job,
    claim_job,
    end_job,
    enqueue_job,
    get_job,
    give_back_job,
    list_jobs,
)
from working_papers.bench.store import INTERRUPTED, Run, Store, TrialRow
from working_papers.bench.worker import Worker
from working_papers.database import now

QUICK, SLOW = "matrix_sensing", "normuon"
PATIENCE = 180.0


def status(engine: Engine, number: int) -> str:
    job = get_job(engine, number)
    assert job is not None
    return job.status


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def age(engine: Engine, number: int, seconds: float) -> None:
    """Let the last sign of life of a job lie further back."""
    with engine.begin() as connection:
        moment = now() - dt.timedelta(seconds=seconds)
        connection.execute(update(JobRow).where(JobRow.id == number).values(beat=moment))


def begin_run(engine: Engine, slug: str = QUICK) -> int:
    return Store(engine).begin(slug=slug, scale="smoke", sham=False, seeds=1, code_hash="0")


# The queue


def test_the_same_run_is_asked_for_once(engine: Engine) -> None:
    first = enqueue_job(engine, QUICK, "smoke", asked_by=7)
    assert enqueue_job(engine, QUICK, "smoke", asked_by=8) == first
    others = {
        enqueue_job(engine, QUICK, "laptop"),
        enqueue_job(engine, QUICK, "smoke", sham=True),
        enqueue_job(engine, QUICK, "smoke", seeds=3),
        enqueue_job(engine, QUICK, "smoke", fresh=True),
        enqueue_job(engine, SLOW, "smoke"),
    }
    assert len(others | {first}) == 6
    job = get_job(engine, first)
    assert job is not None and (job.asked_by, job.status, job.active) == (7, QUEUED, True)
    assert get_job(engine, 999) is None
    assert [job.id for job in list_jobs(engine, slug=SLOW)] == [max(others)]


def test_the_oldest_comes_first_and_rooms_do_not_overlap(engine: Engine) -> None:
    first = enqueue_job(engine, QUICK, "smoke")
    second = enqueue_job(engine, QUICK, "laptop")
    third = enqueue_job(engine, SLOW, "smoke")
    taken = claim_job(engine, "a")
    assert taken is not None and (taken.id, taken.worker, taken.attempts) == (first, "a", 1)
    other = claim_job(engine, "b")
    assert other is not None and other.id == third, "the second run of a room waits for the first"
    assert claim_job(engine, "c") is None
    assert end_job(engine, first, "a", FINISHED)
    after = claim_job(engine, "c")
    assert after is not None and after.id == second


def test_of_many_workers_each_job_has_one(engine: Engine) -> None:
    """Ten workers at once, of twelve jobs in three rooms: never two of one room at a time, each job once."""
    for slug in ("a", "b", "c"):
        for seeds in range(1, 5):
            enqueue_job(engine, slug, "smoke", seeds=seeds)
    at_work: set[str] = set()
    done: list[int] = []
    lock = threading.Lock()

    def work(name: str) -> None:
        while len(done) < 12:
            job = claim_job(engine, name)
            if job is None:
                time.sleep(0.002)
                continue
            with lock:
                assert job.slug not in at_work
                at_work.add(job.slug)
            time.sleep(0.002)
            with lock:
                at_work.remove(job.slug)
                done.append(job.id)
            assert end_job(engine, job.id, name, FINISHED)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, [f"worker {number}" for number in range(10)]))
    assert sorted(done) == sorted(job.id for job in list_jobs(engine))


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_is_told(engine: Engine) -> None:
    waiting = enqueue_job(engine, QUICK, "smoke")
    assert cancel_job(engine, waiting) and status(engine, waiting) == CANCELLED
    assert not cancel_job(engine, waiting) and not cancel_job(engine, 999)
    running = enqueue_job(engine, QUICK, "smoke")
    assert running != waiting, "what was cancelled can be asked for again"
    claim_job(engine, "a")
    assert beat(engine, running, "a", progress={"done": 1}) == "go on"
    assert cancel_job(engine, running) and status(engine, running) == RUNNING
    assert beat(engine, running, "a") == "cancel"
    job = get_job(engine, running)
    assert job is not None and job.progress == {"done": 1}


def test_a_job_of_a_dead_worker_goes_to_another_and_the_old_one_hears_of_it(engine: Engine) -> None:
    number = enqueue_job(engine, QUICK, "smoke")
    claim_job(engine, "dead")
    run = begin_run(engine)
    beat(engine, number, "dead", run_id=run)
    age(engine, number, LOST_SECONDS - 10)
    assert claim_job(engine, "b") is None, "it may still live"
    age(engine, number, LOST_SECONDS + 1)
    taken = claim_job(engine, "b")
    assert taken is not None and (taken.id, taken.worker, taken.attempts, taken.run_id) == (number, "b", 2, None)
    assert beat(engine, number, "dead") == "lost" and not end_job(engine, number, "dead", FINISHED)
    with engine.connect() as connection:
        kept = connection.execute(select(Run.status, Run.error).where(Run.id == run)).one()
    assert tuple(kept) == (INTERRUPTED, "the process that ran it died")


def test_a_job_whose_workers_die_again_and_again_is_given_up(engine: Engine) -> None:
    number = enqueue_job(engine, QUICK, "smoke")
    for _ in range(MOST_ATTEMPTS):
        assert claim_job(engine, "x") is not None
        age(engine, number, LOST_SECONDS + 1)
    assert claim_job(engine, "x") is None
    job = get_job(engine, number)
    assert job is not None and job.status == FAILED and "given up: 5 times" in (job.error or "")


def test_a_cancelled_job_of_a_dead_worker_is_not_taken_up(engine: Engine) -> None:
    number = enqueue_job(engine, QUICK, "smoke")
    claim_job(engine, "dead")
    cancel_job(engine, number)
    age(engine, number, LOST_SECONDS + 1)
    assert claim_job(engine, "b") is None and status(engine, number) == CANCELLED


def test_a_worker_that_is_stopped_gives_its_job_back_uncounted(engine: Engine) -> None:
    number = enqueue_job(engine, QUICK, "smoke")
    claim_job(engine, "a")
    give_back_job(engine, number, "a", counts=False)
    job = get_job(engine, number)
    assert job is not None and (job.status, job.attempts, job.worker) == (QUEUED, 0, None)
    claim_job(engine, "a")
    give_back_job(engine, number, "somebody else", counts=True)
    assert status(engine, number) == RUNNING


# Workers that really run


@pytest.fixture
def worker(engine: Engine) -> Iterator[Worker]:
    """A worker at work in this process."""
    made = Worker(engine, poll=0.05)
    thread = threading.Thread(target=made.run)
    thread.start()
    yield made
    made.stop()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_worker_runs_a_study_and_tells_how_far_it_is(engine: Engine, worker: Worker) -> None:
    number = enqueue_job(engine, QUICK, "smoke")
    until(lambda: status(engine, number) not in (QUEUED, RUNNING), "the run")
    job = get_job(engine, number)
    assert job is not None and job.status == FINISHED and job.error is None, job
    assert job.run_id is not None and job.finished is not None
    (run,) = Store(engine).latest_runs(QUICK)
    assert run.id == job.run_id and run.record is not None and run.record["scale"] == "smoke"


@pytest.mark.slow
def test_a_room_that_is_not_there_fails_in_one_sentence(engine: Engine, worker: Worker) -> None:
    number = enqueue_job(engine, "no_such_room", "smoke")
    until(lambda: status(engine, number) == FAILED, "the failure")
    job = get_job(engine, number)
    assert job is not None and "no_such_room" in (job.error or "") and "\n" not in (job.error or "")


@pytest.mark.slow
def test_a_run_is_cancelled_while_it_runs(engine: Engine, worker: Worker) -> None:
    number = enqueue_job(engine, SLOW, "laptop")
    until(lambda: bool((job := get_job(engine, number)) and job.progress), "the first sign of progress")
    job = get_job(engine, number)
    assert job is not None and job.progress is not None and job.progress["total"] > 0
    assert cancel_job(engine, number)
    until(lambda: status(engine, number) == CANCELLED, "the end of the run")
    (run,) = Store(engine).latest_runs(SLOW)
    assert run.status == INTERRUPTED


@contextlib.contextmanager
def worker_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    """`working-papers worker`, killed at the end."""
    command = [sys.executable, "-m", "working_papers.cli", "worker"]
    environment = os.environ | {"WORKING_PAPERS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def trial_counts(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(select(TrialRow.key, func.count()).group_by(TrialRow.key))
        return {str(key): int(count) for key, count in rows}


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_finished_trials(
    engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kill -9` of the process that runs the study; then of nothing, and it ends. No trial is kept twice."""
    number = enqueue_job(engine, QUICK, "smoke")
    with worker_process(home) as process:
        until(lambda: bool((job := get_job(engine, number)) and job.run_id), "the run to begin")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        until(lambda: status(engine, number) not in (QUEUED, RUNNING), "the run to be taken up again")
        process.terminate()
        process.wait(30)
        assert process.returncode == 0
    job = get_job(engine, number)
    assert job is not None and (job.status, job.attempts) == (FINISHED, 2), job
    counts = trial_counts(engine)
    assert counts and set(counts.values()) == {1}


@pytest.mark.slow
def test_a_worker_that_is_terminated_puts_its_job_back(engine: Engine, home: Path) -> None:
    number = enqueue_job(engine, SLOW, "laptop")
    with worker_process(home) as process:
        until(lambda: bool((job := get_job(engine, number)) and job.run_id), "the run to begin")
        process.terminate()
        process.wait(60)
        assert process.returncode == 0
    job = get_job(engine, number)
    assert job is not None and (job.status, job.attempts) == (QUEUED, 0)
