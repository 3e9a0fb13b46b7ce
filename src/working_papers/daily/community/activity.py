"""What readers have done with papers, for lists: votes, comments, who brought them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from working_papers.daily.accounts.models import AccountRow
from working_papers.daily.community.models import CommentRow, SubmissionRow, VoteRow
from working_papers.database import reading


@dataclass(frozen=True)
class Activity:
    """What has been done with a paper here.

    Attributes:
        votes: accounts that vote for it.
        comments: that are neither deleted nor hidden.
        submitted_by: name of the account that brought it; None for imported papers.
        submitted: when.
    """

    votes: int = 0
    comments: int = 0
    submitted_by: str | None = None
    submitted: dt.datetime | None = None


NOTHING = Activity()


def activity_of(engine: Engine, numbers: Collection[int]) -> dict[int, Activity]:
    """The activity of some papers; every one of them has an entry.

    Args:
        engine: the database.
        numbers: the papers.
    """
    wanted = set(numbers)
    if not wanted:
        return {}
    votes = select(VoteRow.number, func.count()).where(VoteRow.number.in_(wanted)).group_by(VoteRow.number)
    comments = (
        select(CommentRow.number, func.count())
        .where(CommentRow.number.in_(wanted), CommentRow.deleted.is_(None), CommentRow.hidden.is_(None))
        .group_by(CommentRow.number)
    )
    submissions = (
        select(SubmissionRow.number, AccountRow.name, SubmissionRow.created)
        .join(AccountRow, AccountRow.id == SubmissionRow.account_id)
        .where(SubmissionRow.number.in_(wanted))
    )
    with reading(engine) as connection:
        voted = {number: count for number, count in connection.execute(votes)}  # noqa: C416 - rows, not pairs
        said = {number: count for number, count in connection.execute(comments)}  # noqa: C416
        brought = {number: (name, moment) for number, name, moment in connection.execute(submissions)}
    return {
        number: Activity(voted.get(number, 0), said.get(number, 0), *brought.get(number, (None, None)))
        for number in wanted
    }


def voted_by(engine: Engine, account_id: int, numbers: Collection[int]) -> set[int]:
    """Those of the papers that the account votes for."""
    wanted = set(numbers)
    if not wanted:
        return set()
    query = select(VoteRow.number).where(VoteRow.account_id == account_id, VoteRow.number.in_(wanted))
    with reading(engine) as connection:
        return set(connection.execute(query).scalars())
