"""The process that runs one job: `python -m working_papers.bench.job_process NUMBER WORKER`.

A process of its own for each job, so that it runs the code that is installed now, whatever the worker began with, and
so that a study that takes its process down takes nothing else down. Ctrl-C (SIGINT) stops it cleanly.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from working_papers.bench.jobs import BEAT_SECONDS, CANCELLED, FAILED, FINISHED, STOPPED, Job, beat, end_job, get_job
from working_papers.bench.pools import LocalPool
from working_papers.bench.rooms import get_room
from working_papers.bench.runner import Conductor, Progress
from working_papers.bench.store import Store
from working_papers.bench.study import Scale
from working_papers.config import Settings, load_settings
from working_papers.database import opened_database
from working_papers.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Engine


@dataclass
class _Reporter:
    """Tells the database every few seconds how far the run is, and stops the run when it should not go on."""

    engine: Engine
    job: Job
    worker: str
    run_id: int | None = None
    call: str = "go on"
    _latest: dict[str, Any] | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def watch(self, progress: Progress) -> None:
        """Take down how far the run is."""
        self._latest = {
            "stage": progress.stage,
            "done": progress.done,
            "total": progress.total,
            "stored": progress.stored,
            "running": [
                {"arm": arm, "seed": seed, "fraction": round(fraction, 3)}
                for (arm, seed), fraction in sorted(progress.running.items())
            ],
        }

    def run(self) -> None:
        """Until the run has ended."""
        while True:
            self.call = beat(self.engine, self.job.id, self.worker, run_id=self.run_id, progress=self._latest)
            if self.call != "go on":
                os.kill(os.getpid(), signal.SIGINT)  # the conductor's own way to stop
                return
            if self._ended.wait(BEAT_SECONDS):
                return

    def end(self) -> None:
        """The run has ended."""
        self._ended.set()


def run_job(engine: Engine, settings: Settings, job: Job, worker: str) -> int:
    """Run a job to its end and record how it ended; returns the exit code."""
    reporter = _Reporter(engine, job, worker)

    class Noting(Store):
        def begin(self, **words: Any) -> int:
            reporter.run_id = super().begin(**words)
            return reporter.run_id

    thread = threading.Thread(target=reporter.run, daemon=True)
    status, error = FINISHED, None
    try:
        thread.start()
        conductor = Conductor(
            room=get_room(job.slug),
            scale=Scale(job.scale),
            store=Noting(engine),
            pool=LocalPool(settings.cache_folder / "prepared", settings.worker_processes or None),
            figures=settings.figures_folder,
            seeds=job.seeds,
            sham=job.sham,
            # A job that is taken up again goes on from its own trials.
            fresh=job.fresh and job.attempts <= 1,
            watch=reporter.watch,
        )
        result = conductor.run()
        if result.record is None:
            failed = result.failures[0]
            last = failed.error.strip().splitlines()[-1]
            status = FAILED
            error = f"{len(result.failures)} trials failed; the first: {failed.arm}, seed {failed.seed}: {last}"
    except UserError as trouble:
        status, error = FAILED, str(trouble)
    except KeyboardInterrupt:
        if reporter.call == "lost":
            return STOPPED
        if reporter.call != "cancel":
            return STOPPED  # the worker stops; it gives the job back
        status = CANCELLED
    except Exception as trouble:  # noqa: BLE001 - whatever happens, the job says so
        status, error = FAILED, f"{type(trouble).__name__}: {trouble}"
    finally:
        reporter.end()
    thread.join()
    beat(engine, job.id, worker, run_id=reporter.run_id)
    end_job(engine, job.id, worker, status, error=error)
    return 0


def main(words: list[str]) -> int:
    """Run the job that the arguments name."""
    number, worker = int(words[0]), words[1]
    settings = load_settings()
    with opened_database(settings) as engine:
        job = get_job(engine, number)
        if job is None or job.worker != worker:
            return STOPPED
        return run_job(engine, settings, job, worker)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
