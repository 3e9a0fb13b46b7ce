"""Issues of the digest: each made once, each queued once for every subscriber, however often the sender is started."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from working_papers.daily.digest.contents import Contents
from working_papers.daily.digest.messages import digest_message
from working_papers.daily.digest.models import DigestIssueRow
from working_papers.daily.digest.subscriptions import DAILY, FREQUENCIES, active_subscriptions, end_bounced
from working_papers.daily.mail.queue import enqueue
from working_papers.database import now, reading
from working_papers.errors import UsageError

if TYPE_CHECKING:
    from working_papers.config import Settings

AT_ONCE = 50
"""Subscribers of one transaction."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Issue:
    """The digest of a day or a week."""

    id: int
    frequency: str
    first_day: dt.date
    last_day: dt.date
    completed: dt.datetime | None


@dataclass(frozen=True)
class Queued:
    """What came of an issue.

    Attributes:
        issue: which one.
        queued: e-mails that were put into the queue this time.
        empty: subscribers for whom it had nothing; they get no e-mail.
        before: whether it had been completed earlier, so that nothing was done.
    """

    issue: Issue
    queued: int = 0
    empty: int = 0
    before: bool = False


def days_of(frequency: str, today: dt.date) -> tuple[dt.date, dt.date]:
    """The days that the newest complete issue is about: yesterday, or the last whole week from Monday to Sunday.

    Raises:
        UsageError: the frequency is none.
    """
    if frequency == DAILY:
        yesterday = today - dt.timedelta(days=1)
        return yesterday, yesterday
    if frequency not in FREQUENCIES:
        raise UsageError(f"frequency is {frequency!r}; expected daily or weekly")
    monday = today - dt.timedelta(days=today.weekday())
    return monday - dt.timedelta(days=7), monday - dt.timedelta(days=1)


def open_issue(engine: Engine, frequency: str, today: dt.date) -> Issue:
    """The newest issue, made if nobody has made it yet."""
    first, last = days_of(frequency, today)
    found = _find(engine, frequency, first)
    if found is None:
        try:
            with engine.begin() as connection:
                connection.execute(
                    insert(DigestIssueRow).values(frequency=frequency, first_day=first, last_day=last, created=now())
                )
        except IntegrityError:  # another sender was quicker
            logger.info("another sender has begun the issue of %s", first)
        found = _find(engine, frequency, first)
    assert found is not None
    return found


def _find(engine: Engine, frequency: str, first: dt.date) -> Issue | None:
    columns = DigestIssueRow.__table__.c
    query = select(columns.id, columns.frequency, columns.first_day, columns.last_day, columns.completed)
    with reading(engine) as connection:
        row = connection.execute(query.where(columns.frequency == frequency, columns.first_day == first)).one_or_none()
    return None if row is None else Issue(*row)


def queue_issue(
    engine: Engine,
    settings: Settings,
    frequency: str,
    *,
    today: dt.date | None = None,
    stop: threading.Event | None = None,
) -> Queued:
    """Put the newest issue into the queue for every subscriber; what is queued already stays as it is.

    Args:
        engine: the database.
        settings: name the site and its address.
        frequency: 'daily' or 'weekly'.
        today: the present day in UTC.
        stop: set to end early; the next call goes on.

    Returns:
        How many e-mails were queued.
    """
    stop = stop or threading.Event()
    end_bounced(engine)
    issue = open_issue(engine, frequency, today or now().date())
    if issue.completed is not None:
        return Queued(issue, before=True)
    queued = empty = after = 0
    with closing(Contents(engine, settings, issue.first_day, issue.last_day)) as contents:
        while not stop.is_set():
            part = active_subscriptions(engine, frequency, after, AT_ONCE)
            if not part:
                break
            after = part[-1].id
            made = []
            for subscription in part:
                sections = contents.sections(subscription.wish, subscription.account_id)
                if sections:
                    made.append((subscription, digest_message(settings, issue, subscription, sections)))
                else:
                    empty += 1
            with engine.begin() as connection:
                for subscription, message in made:
                    queued += enqueue(connection, f"digest:{issue.id}:{subscription.id}", message)
    if not stop.is_set():
        with engine.begin() as connection:
            connection.execute(update(DigestIssueRow).where(DigestIssueRow.id == issue.id).values(completed=now()))
    return Queued(issue, queued, empty)
