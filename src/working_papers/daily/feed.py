"""The feed: the papers of a day, a week or a month, newest day first."""

from __future__ import annotations

import calendar
import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Engine, Select, func, select

from working_papers.daily.catalogue import COLUMNS, PAPERS, TOPICS, StoredPaper, stored_paper
from working_papers.database import now, reading

Period = Literal["day", "week", "month"]


@dataclass(frozen=True)
class FeedPage:
    """A page of the feed.

    Attributes:
        papers: newest day first, within a day in the order in which they came; empty on a day without papers.
        first_day: of the period; the Monday of a week, the first of a month.
        last_day: of the period, inclusive.
        previous: first day of the nearest earlier period with papers.
        next: first day of the nearest later period with papers.
        total: papers in the whole period.
    """

    papers: list[StoredPaper]
    first_day: dt.date
    last_day: dt.date
    previous: dt.date | None
    next: dt.date | None
    total: int


def period_of(day: dt.date, period: Period) -> tuple[dt.date, dt.date]:
    """First and last day of the day, ISO week or month around a day.

    Raises:
        ValueError: the period is none of the three.
    """
    if period == "day":
        return day, day
    if period == "week":
        ahead, behind = 6 - day.weekday(), day.weekday()
        # At the two ends of the calendar a week is cut short.
        first = dt.date.fromordinal(max(day.toordinal() - behind, dt.date.min.toordinal()))
        return first, dt.date.fromordinal(min(day.toordinal() + ahead, dt.date.max.toordinal()))
    if period == "month":
        return day.replace(day=1), day.replace(day=calendar.monthrange(day.year, day.month)[1])
    raise ValueError(f"period is {period!r}; expected 'day', 'week' or 'month'")


def feed(
    engine: Engine,
    period: Period = "day",
    start: dt.date | None = None,
    topic: str | None = None,
    limit: int = 50,
    offset: int = 0,
) -> FeedPage:
    """The papers of one period.

    Args:
        engine: the database.
        period: 'day', 'week' (Monday to Sunday) or 'month'.
        start: any day of the period; the newest period with papers if left out.
        topic: only papers of this category or topic.
        limit: at most so many papers.
        offset: papers to skip, for the following pages.

    Raises:
        ValueError: the period is unknown, or limit or offset negative.
    """
    if limit < 0 or offset < 0:
        raise ValueError(f"limit is {limit} and offset is {offset}; expected numbers from 0 on")
    # Both tables have an index that begins with what is asked for and holds the number: pages, totals and neighbours
    # come from it alone, and only the papers shown are read.
    table = PAPERS if topic is None else TOPICS
    day, number = table.c.day, table.c.number

    def of_topic(query: Select[Any]) -> Select[Any]:
        return query if topic is None else query.where(TOPICS.c.topic == topic)

    with reading(engine) as connection:
        if start is None:
            start = connection.execute(of_topic(select(func.max(day)))).scalar() or now().date()
        first, last = period_of(start, period)
        within = day.between(first, last)
        total = connection.execute(of_topic(select(func.count(number)).where(within))).scalar_one()
        earlier = connection.execute(of_topic(select(func.max(day)).where(day < first))).scalar()
        later = connection.execute(of_topic(select(func.min(day)).where(day > last))).scalar()
        papers: list[StoredPaper] = []
        if total > offset and limit:
            page = of_topic(select(number).where(within)).order_by(day.desc(), number).limit(limit).offset(offset)
            numbers = list(connection.execute(page).scalars())
            rows = connection.execute(select(*COLUMNS).where(PAPERS.c.number.in_(numbers)))
            found = {row.number: stored_paper(row) for row in rows}
            papers = [found[each] for each in numbers]
    return FeedPage(
        papers=papers,
        first_day=first,
        last_day=last,
        previous=None if earlier is None else period_of(earlier, period)[0],
        next=None if later is None else period_of(later, period)[0],
        total=total,
    )
