"""`digest`: the e-mail digest, by hand."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Annotated

import typer

from working_papers.errors import UsageError, UserError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The e-mail digest; `serve` sends it by itself.", no_args_is_help=True)
    group.command()(send)
    group.command()(status)
    app.add_typer(group, name="digest")


def send(
    frequency: Annotated[
        str | None, typer.Option(help="daily or weekly; both by default, the weekly one once its week is over.")
    ] = None,
    day: Annotated[str | None, typer.Option(help="As if it were this day, 2025-10-07; today by default.")] = None,
) -> None:
    """Send the newest issue to everybody who has not got it yet, and what waits in the queue."""
    from working_papers.config import load_settings
    from working_papers.daily.digest.issues import queue_issue
    from working_papers.daily.digest.subscriptions import FREQUENCIES
    from working_papers.daily.mail.sending import send_due
    from working_papers.database import opened_database

    if frequency is not None and frequency not in FREQUENCIES:
        raise UsageError(f"--frequency: expected daily or weekly, got {frequency!r}")
    try:
        today = dt.date.fromisoformat(day) if day else None
    except ValueError as error:
        raise UsageError(f"--day: expected a day such as 2025-10-07, got {day!r}") from error
    settings = load_settings()
    with opened_database(settings) as engine:
        for each in (frequency,) if frequency else FREQUENCIES:
            made = queue_issue(engine, settings, each, today=today)
            when = f"{each} issue of {made.issue.first_day} to {made.issue.last_day}"
            if made.before:
                sys.stdout.write(f"{when}: sent before\n")
            else:
                sys.stdout.write(f"{when}: {made.queued:,} queued, {made.empty:,} with nothing to say\n")
        report = send_due(engine, settings)
    where = settings.smtp_host or settings.outbox_folder
    sys.stdout.write(f"e-mails to {where}: {report}\n")
    if report.problem:
        raise UserError(f"{report.problem}; the e-mails stay in the queue and are tried again")


def status() -> None:
    """Say who subscribes and what is in the queue."""
    from working_papers.config import load_settings
    from working_papers.daily.digest.subscriptions import count_active
    from working_papers.daily.mail.queue import count_mails
    from working_papers.database import opened_database

    with opened_database(load_settings()) as engine:
        subscribers, mails = count_active(engine), count_mails(engine)
    sys.stdout.write(", ".join(f"{count:,} {name} subscribers" for name, count in subscribers.items()) + "\n")
    sys.stdout.write("e-mails: " + ", ".join(f"{count:,} {state}" for state, count in mails.items()) + "\n")
