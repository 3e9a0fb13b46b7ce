"""`worker`: runs the studies that were asked for on the page."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(worker)


def worker() -> None:
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
        sys.stdout.write(f"waiting for runs as {made.name} (Ctrl+C stops)\n")
        sys.stdout.flush()
        made.run()
