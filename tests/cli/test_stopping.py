"""Stopping a run: Ctrl-C ends it cleanly, a kill loses only what was in flight, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.made_up import command, environment, install, write_room

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

PATIENCE = 90.0  # seconds that a loaded machine may take

# The first seed's trials end at once; the others wait for the file `go`, which a test writes when it wants them to.
BODY = """
from working_papers.bench.trial import derive_seed
Path("{folder}/started-" + str(os.getpid())).touch()
first = trial.seed == derive_seed("{slug}", "report", 0)
while not first and not Path("{folder}/go").exists():
    time.sleep(0.02)
    trial.progress(1, of=2)
"""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.05)


def processes_of(group: int) -> list[str]:
    """Commands of all living processes of a process group."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


class Command:
    """A run in a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path, slug: str) -> None:
        self.folder = folder
        self.errors = folder / "errors.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command("run", slug, "--scale", "smoke", "--jobs", "2"),
                env=environment(folder),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def trials_started(self) -> int:
        return len(list(self.folder.glob("started-*")))

    def interrupt(self) -> int:
        """Ctrl-C: the whole group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=PATIENCE)

    def nothing_left(self) -> bool:
        return not processes_of(self.process.pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Command]]:
    slug = "patient_room"
    write_room(tmp_path, slug, trial=BODY.replace("{folder}", str(tmp_path)))
    install(tmp_path, slug)
    started: list[Command] = []

    def begin() -> Command:
        started.append(Command(tmp_path, slug))
        return started[-1]

    yield begin
    for each in started:
        for _ in processes_of(each.process.pid)[:1]:
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait(timeout=PATIENCE)


def trials_kept(folder: Path) -> list[tuple[str, int]]:
    """Arm and seed of every finished trial in the home's database."""
    from sqlalchemy import create_engine, select

    from working_papers.bench.store import FINISHED, TrialRow

    engine = create_engine(f"sqlite:///{folder / 'home' / 'working-papers.db'}")
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(TrialRow.arm, TrialRow.seed).where(TrialRow.status == FINISHED))
            return sorted((arm, seed) for arm, seed in rows)
    finally:
        engine.dispose()


def database_has(folder: Path, trials: int) -> bool:
    return (folder / "home" / "working-papers.db").exists() and len(trials_kept(folder)) >= trials


def in_flight(run: Command) -> bool:
    """Both trials of the first seed are kept, both of the second are running."""
    return run.trials_started() == 4 and database_has(run.folder, 2)


def test_control_c_stops_cleanly(start: Callable[[], Command], tmp_path: Path) -> None:
    run = start()
    wait_for(lambda: in_flight(run), "two trials to end and two to start")
    assert run.interrupt() == 130
    errors = run.errors.read_text(encoding="utf-8")
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
    assert "stopped; 2 finished trials are kept, the same command goes on from there" in errors
    wait_for(run.nothing_left, "the run's processes to end")
    assert trials_kept(tmp_path) == [("new", 0), ("old", 0)]


@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.5])
def test_control_c_is_clean_at_any_moment(start: Callable[[], Command], seconds: float) -> None:
    """While the command starts, while torch is imported, while trials start up."""
    run = start()
    time.sleep(seconds)
    assert run.interrupt() in (130, -signal.SIGINT), "before Python listens the signal itself ends the process"
    if run.process.returncode == 130:
        assert "Traceback" not in run.errors.read_text(encoding="utf-8")
    wait_for(run.nothing_left, "the run's processes to end")


def test_a_killed_run_loses_only_the_trials_in_flight(start: Callable[[], Command], tmp_path: Path) -> None:
    run = start()
    wait_for(lambda: in_flight(run), "two trials to end and two to start")
    run.process.kill()
    assert run.process.wait(timeout=PATIENCE) == -signal.SIGKILL
    wait_for(run.nothing_left, "the killed run's trials to end by themselves")
    assert trials_kept(tmp_path) == [("new", 0), ("old", 0)]
    (tmp_path / "go").touch()
    again = start()
    assert again.process.wait(timeout=PATIENCE) == 0
    assert "4 trials, 2 of them stored" in again.errors.read_text(encoding="utf-8")
    assert trials_kept(tmp_path) == [("new", 0), ("new", 1), ("old", 0), ("old", 1)]
