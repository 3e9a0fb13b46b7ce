"""Trending: votes and comments, each worth half as much after three days.

The score of a paper is the sum over its votes of 2^(-age / 3 days), plus half of that for each account that has
commented on it, at the age of that account's latest comment. What is older than a month counts as nothing.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from heapq import nsmallest

from sqlalchemy import Engine, func, select

from working_papers.daily.catalogue import PAPERS, TOPICS, StoredPaper, papers_by_numbers
from working_papers.daily.community.models import CommentRow, VoteRow
from working_papers.database import now, reading

HALF_LIFE = dt.timedelta(days=3)
WINDOW = dt.timedelta(days=30)
COMMENT_WEIGHT = 0.5
DEEPEST = 1_000
"""Papers that can trend at once; after them come the newest."""


def weight(age: dt.timedelta) -> float:
    """What a vote of that age is worth."""
    if age > WINDOW:
        return 0.0
    return float(2.0 ** -(max(age, dt.timedelta()) / HALF_LIFE))


def ranking(engine: Engine, moment: dt.datetime | None = None) -> list[tuple[int, float]]:
    """Papers with their scores, best first; of equal ones the newer first.

    Args:
        engine: the database.
        moment: at which the scores hold; the present one by default.
    """
    moment = moment or now()
    since = moment - WINDOW
    scores: dict[int, float] = defaultdict(float)
    votes = select(VoteRow.number, VoteRow.created).where(VoteRow.created >= since, VoteRow.created <= moment)
    comments = (
        select(CommentRow.number, func.max(CommentRow.created).label("latest"))
        .where(CommentRow.created >= since, CommentRow.created <= moment)
        .where(CommentRow.deleted.is_(None), CommentRow.hidden.is_(None))
        .group_by(CommentRow.number, CommentRow.account_id)
    )
    with reading(engine) as connection:
        for number, created in connection.execute(votes):
            scores[number] += weight(moment - created)
        for number, latest in connection.execute(comments):
            scores[number] += COMMENT_WEIGHT * weight(moment - latest)
    return nsmallest(DEEPEST, scores.items(), key=lambda item: (-item[1], -item[0]))


def trending_numbers(engine: Engine, ranked: list[tuple[int, float]], topic: str | None = None) -> list[int]:
    """The papers that trend, of one topic or of all."""
    numbers = [number for number, _ in ranked]
    if topic is None or not numbers:
        return numbers
    query = select(TOPICS.c.number).where(TOPICS.c.topic == topic, TOPICS.c.number.in_(numbers))
    with reading(engine) as connection:
        of_topic = set(connection.execute(query).scalars())
    return [number for number in numbers if number in of_topic]


def trending(
    engine: Engine,
    limit: int,
    offset: int,
    topic: str | None = None,
    *,
    ranked: list[tuple[int, float]] | None = None,
    moment: dt.datetime | None = None,
) -> list[StoredPaper]:
    """A page of the papers that trend; where nobody votes or comments, the newest ones follow.

    Args:
        engine: the database.
        limit: at most so many.
        offset: papers passed over.
        topic: only papers of this topic.
        ranked: a ranking made shortly before.
        moment: at which it holds.
    """
    numbers = trending_numbers(engine, ranking(engine, moment) if ranked is None else ranked, topic)
    page = numbers[offset : offset + limit]
    missing = limit - len(page)
    if missing > 0:
        columns = PAPERS.c if topic is None else TOPICS.c
        query = select(columns.number).order_by(columns.day.desc(), columns.number.desc())
        if topic is not None:
            query = query.where(columns.topic == topic)
        if numbers:
            query = query.where(columns.number.not_in(numbers))
        query = query.limit(missing).offset(max(0, offset - len(numbers)))
        with reading(engine) as connection:
            page += list(connection.execute(query).scalars())
    return papers_by_numbers(engine, page)
