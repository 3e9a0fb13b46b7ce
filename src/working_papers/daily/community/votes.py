"""Votes: one a paper and account, counted from the rows themselves, so that the count is always exact."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from working_papers.daily.community.models import VoteRow
from working_papers.database import now


def vote(engine: Engine, account_id: int, number: int) -> int:
    """Vote for a paper; a second time changes nothing.

    Args:
        engine: the database.
        account_id: whose vote.
        number: the paper, which must exist.

    Returns:
        The paper's votes now.
    """
    insert = postgresql_insert if engine.dialect.name == "postgresql" else sqlite_insert
    with engine.begin() as connection:
        connection.execute(
            insert(VoteRow).values(number=number, account_id=account_id, created=now()).on_conflict_do_nothing()
        )
        return _count(connection, number)


def unvote(engine: Engine, account_id: int, number: int) -> int:
    """Take a vote back; without one nothing changes. Returns the paper's votes now."""
    with engine.begin() as connection:
        connection.execute(delete(VoteRow).where(VoteRow.number == number, VoteRow.account_id == account_id))
        return _count(connection, number)


def _count(connection: Connection, number: int) -> int:
    counted = select(func.count()).select_from(VoteRow).where(VoteRow.number == number)
    return int(connection.execute(counted).scalar_one())
