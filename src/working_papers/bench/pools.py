"""Where trials run: processes of this machine, or a Ray cluster. Both yield the same events."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from working_papers.bench.rooms import Room
from working_papers.bench.store import Outcome
from working_papers.bench.trial import THREADS, TrialSpec, run_trial
from working_papers.errors import UserError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Read by numerical libraries when they are imported, so they are set before a trial's process starts."""

PRELOADED = [
    "numpy",
    "scipy",
    "torch",
    "torch._dynamo",  # the first optimiser that a process makes imports it, which takes a second
    "matplotlib.figure",  # every study imports it for its figure
    "sklearn.datasets",  # most studies take their small data sets from it
    "filelock",
    "working_papers.bench.trial",
]
"""Imported once by the server from which trial processes are forked, so that each starts in milliseconds."""

KNOCK_SECONDS = 5.0
"""How long a cluster may take to accept a connection."""


@dataclass(frozen=True)
class Event:
    """News of a trial: it has come this far, or, with an outcome, it has ended."""

    spec: TrialSpec
    fraction: float = 0.0
    outcome: Outcome | None = None


class Pool(Protocol):
    """Runs trials and yields what happens; closing the iterator stops what still runs."""

    def run(self, room: Room, specs: Sequence[TrialSpec]) -> Iterator[Event]:
        """Run every trial; a trial that crashes ends with a failed outcome and the rest goes on."""
        ...


def processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalPool:
    """Every trial in a fresh process of this machine, some of them at a time.

    A process of its own gives a trial a clean state and its own peak memory, and lets a trial that dies (killed, out of
    memory, a crash inside a library) take nothing else with it.
    """

    def __init__(self, cache: Path, jobs: int | None = None) -> None:
        self.cache = cache
        self.jobs = jobs or processors()

    def run(self, room: Room, specs: Sequence[TrialSpec]) -> Iterator[Event]:
        """Run the trials, in order, at most `jobs` at a time."""
        for name in THREAD_VARIABLES:
            os.environ[name] = str(THREADS)
        methods = ("forkserver", "spawn")
        context = get_context(next(method for method in methods if method in _start_methods()))
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(PRELOADED)
            _start_fork_server()
        waiting = deque(specs)
        running: dict[Connection, tuple[BaseProcess, TrialSpec]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    spec = waiting.popleft()
                    ours, theirs = context.Pipe(duplex=False)
                    # Context.Process is typed per start method; they share one signature.
                    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
                        target=_child,
                        args=(theirs, room, spec, self.cache),
                        name=f"{spec.slug} {spec.arm} {spec.index}",
                    )
                    running[ours] = (process, spec)  # first, so that nothing that starts can be left behind
                    process.start()
                    theirs.close()
                    yield Event(spec)
                for ready in connection.wait(list(running), timeout=1.0):
                    assert isinstance(ready, Connection)
                    process, spec = running[ready]
                    try:
                        message: float | Outcome = ready.recv()
                    except (EOFError, OSError):  # the end of the file, before or within a message
                        process.join()
                        message = Outcome(error=_how_it_died(process.exitcode))
                    if isinstance(message, Outcome):
                        del running[ready]
                        ready.close()
                        process.join()
                        yield Event(spec, 1.0, message)
                    else:
                        yield Event(spec, message)
        finally:
            started = [process for process, _ in running.values() if process.pid is not None]
            for process in started:
                process.kill()
            for process in started:
                process.join()
            for ours in running:
                ours.close()


def _start_fork_server() -> None:
    """Start the server from which trials are forked, deaf to Ctrl-C, which is the conductor's to handle.

    A trial's process inherits this. Were it to ignore the signal by itself, one that comes while it starts up would
    print a traceback.
    """
    from multiprocessing import forkserver

    if threading.current_thread() is not threading.main_thread():  # elsewhere signals cannot be set, nor do they arrive
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start_methods() -> list[str]:
    from multiprocessing import get_all_start_methods

    return get_all_start_methods()


def _child(out: Connection, room: Room, spec: TrialSpec, cache: Path) -> None:
    """What a trial's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the conductor's to handle
    parent = parent_process()
    if parent is not None:
        # A conductor that was killed must not leave its trials behind.
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    out.send(run_trial(room, spec, cache=cache, report=out.send))
    out.close()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        hint = " (often the system's answer to too little memory)" if name == "SIGKILL" else ""
        return f"the trial's process was ended by signal {name}{hint}"
    return f"the trial's process ended with exit code {code} before it returned its measurements"


class RayPool:
    """Trials as tasks of a Ray cluster; one processor each, and a GPU each at paper scale where the cluster has any.

    Args:
        address: "ray" starts a local cluster; anything else is a cluster's address, e.g. "ray://head:10001" or "auto".
        jobs: processors of a local cluster.

    Raises:
        UserError: Ray is not installed or the cluster does not answer.
    """

    def __init__(self, address: str, jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("running on Ray needs its package: pip install 'working-papers[ray]'") from error
        self._ray = ray
        _knock(address)
        variables = {name: str(THREADS) for name in THREAD_VARIABLES}
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": variables},
            "log_to_driver": False,
            "logging_level": "error",
        }
        if address == "ray":
            options |= {"num_cpus": jobs or processors(), "include_dashboard": False}
        else:
            options |= {"address": address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise UserError(f"the Ray cluster at {address!r} cannot be used: {error}") from error

    def run(self, room: Room, specs: Sequence[TrialSpec]) -> Iterator[Event]:
        """Run the trials; a worker that dies fails its trial only."""
        ray = self._ray
        gpus = 1 if specs and specs[0].scale == "paper" and ray.cluster_resources().get("GPU") else 0
        # max_calls=1: a fresh process for every trial, as on one machine.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(_ray_trial)
        running = {task.remote(room, spec): spec for spec in specs}
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    spec = running.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        outcome = Outcome(error=f"the Ray worker failed: {error}")
                    yield Event(spec, 1.0, outcome)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Find out within seconds that nobody answers at an address of the form host:port; Ray itself tries for minutes.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address!r} ({error}); give the address of a running one, or `--on ray` for "
            "one on this machine"
        ) from error


def _ray_trial(room: Room, spec: TrialSpec) -> Outcome:
    """A trial on a worker; what arms share is kept in a temporary folder of the worker's machine and user."""
    # Pickles are read back from it, so nobody else may write there.
    cache = Path(tempfile.gettempdir()) / f"working-papers-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and cache.stat().st_uid != os.getuid():
        return Outcome(error=f"the folder {cache} belongs to another user; remove it or set TMPDIR")
    return run_trial(room, spec, cache=cache)
