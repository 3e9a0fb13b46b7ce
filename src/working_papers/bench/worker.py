"""A worker: takes jobs from the queue, one at a time, and runs each in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from working_papers.bench.jobs import STOPPED, Job, claim_job, give_back_job

POLL_SECONDS = 1.0
"""How often the queue is looked at."""

GRACE_SECONDS = 10.0
"""How long a job's process may take to stop before it is killed; finished trials are kept either way."""

logger = logging.getLogger(__name__)


class Worker:
    """Runs jobs until it is stopped.

    Args:
        engine: the database with the queue; the settings of the environment must name the same one.
        poll: seconds between two looks at an empty queue.
    """

    def __init__(self, engine: Engine, *, poll: float = POLL_SECONDS) -> None:
        self.engine = engine
        self.name = f"{socket.gethostname()[:30]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.stopping = threading.Event()
        self._poll = poll

    def stop(self) -> None:
        """End soon: the job in hand goes back into the queue."""
        self.stopping.set()

    def run(self) -> None:
        """Take and run jobs until `stop`."""
        while not self.stopping.is_set():
            try:
                job = claim_job(self.engine, self.name)
                if job is not None:
                    self._run(job)
                    continue
            except SQLAlchemyError as error:
                logger.error("the queue cannot be read: %s", error)
            self.stopping.wait(self._poll)

    def _run(self, job: Job) -> None:
        logger.info("run of %s begins", job.slug, extra={"job": job.id, "scale": job.scale, "attempt": job.attempts})
        command = [sys.executable, "-m", "working_papers.bench.job_process", str(job.id), self.name]
        # In a session of its own: Ctrl-C in the terminal reaches the worker, which stops the job in its own way.
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            self._wait(process)
        code = process.returncode
        if code == 0:
            logger.info("run of %s has ended", job.slug, extra={"job": job.id})
            return
        stopped = code == STOPPED or self.stopping.is_set()
        if not stopped:
            logger.error("the process that ran %s ended with code %d", job.slug, code, extra={"job": job.id})
        give_back_job(self.engine, job.id, self.name, counts=not stopped)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Until the process ends; when the worker is stopped, see to it that it does."""
        while process.poll() is None:
            if not self.stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                continue
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
