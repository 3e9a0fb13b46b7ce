"""`worker`: runs the studies that were asked for on the page."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from working_papers.bench.worker import Worker


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(worker)


def worker(
    while_open: Annotated[
        bool, typer.Option("--while-open", help="End when standard input does, as `serve` has it.", hidden=True)
    ] = False,
) -> None:
    """Run studies from the queue until stopped. There may be several, on any machine that reaches the database."""
    from working_papers.bench.worker import Worker
    from working_papers.cli.logs import configure_logs
    from working_papers.config import load_settings
    from working_papers.database import opened_database

    settings = load_settings()
    configure_logs(settings)
    with opened_database(settings) as engine:
        made = Worker(engine)

        def stop(number: int, frame: FrameType | None) -> None:
            made.stop()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        if while_open:
            threading.Thread(target=_stop_with_input, args=(made,), daemon=True).start()
        sys.stdout.write(f"waiting for runs as {made.name} (Ctrl+C stops)\n")
        sys.stdout.flush()
        made.run()


def _stop_with_input(worker: Worker) -> None:
    while sys.stdin.buffer.read(4096):
        continue
    worker.stop()
