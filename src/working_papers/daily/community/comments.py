"""Comments: written, edited and deleted by their author, hidden by administrators."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, func, insert, or_, select, update

from working_papers.daily.accounts.accounts import Account
from working_papers.daily.accounts.models import LARGEST_KEY, AccountRow
from working_papers.daily.community.models import CommentRow
from working_papers.database import now, reading
from working_papers.errors import UserError

LONGEST = 10_000
"""Characters of a comment."""

SHOWN = 50
"""Comments on a page."""

TWICE = dt.timedelta(minutes=10)
"""The same text again within this time is a form that was sent twice."""

_COLUMNS = CommentRow.__table__.c


@dataclass(frozen=True)
class Comment:
    """A comment and who wrote it."""

    id: int
    number: int
    account_id: int
    author: str
    body: str
    created: dt.datetime
    edited: dt.datetime | None
    hidden: dt.datetime | None


def checked_body(body: str) -> str:
    """A comment's text as it is kept.

    Raises:
        UserError: it is empty or too long.
    """
    text = body.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", " ").strip()
    text = text.encode("utf-8", "replace").decode("utf-8")
    if not text:
        raise UserError("a comment has some text")
    if len(text) > LONGEST:
        raise UserError(f"a comment has at most {LONGEST:,} characters, this one has {len(text):,}")
    return text


def _select() -> Any:
    return (
        select(
            _COLUMNS.id,
            _COLUMNS.number,
            _COLUMNS.account_id,
            AccountRow.name.label("author"),
            _COLUMNS.body,
            _COLUMNS.created,
            _COLUMNS.edited,
            _COLUMNS.hidden,
        )
        .join(AccountRow, AccountRow.id == _COLUMNS.account_id)
        .where(_COLUMNS.deleted.is_(None))
    )


def _comment(row: Row[Any]) -> Comment:
    return Comment(**row._mapping)


def _visible(query: Any, number: int, reader: Account | None) -> Any:
    """Of a paper's comments those that a reader sees."""
    query = query.where(_COLUMNS.number == number)
    if reader is None:
        return query.where(_COLUMNS.hidden.is_(None))
    if not reader.administrator:
        return query.where(or_(_COLUMNS.hidden.is_(None), _COLUMNS.account_id == reader.id))
    return query


def list_comments(
    engine: Engine, number: int, reader: Account | None = None, limit: int = SHOWN, offset: int = 0
) -> list[Comment]:
    """The comments of a paper, oldest first; hidden ones are seen by their authors and by administrators.

    Args:
        engine: the database.
        number: the paper.
        reader: who looks.
        limit: at most so many.
        offset: comments passed over.
    """
    query = _visible(_select(), number, reader).order_by(_COLUMNS.id).limit(limit).offset(offset)
    with reading(engine) as connection:
        return [_comment(row) for row in connection.execute(query)]


def comments_before(engine: Engine, comment: Comment, reader: Account | None = None) -> int:
    """How many comments a reader sees before this one."""
    query = select(func.count()).select_from(CommentRow).where(_COLUMNS.deleted.is_(None), _COLUMNS.id < comment.id)
    with reading(engine) as connection:
        return int(connection.execute(_visible(query, comment.number, reader)).scalar_one())


def get_comment(engine: Engine, id: int) -> Comment | None:
    """A comment that was not deleted."""
    if not 1 <= id <= LARGEST_KEY:
        return None
    with reading(engine) as connection:
        row = connection.execute(_select().where(_COLUMNS.id == id)).one_or_none()
    return None if row is None else _comment(row)


def write_comment(engine: Engine, account_id: int, number: int, body: str) -> int:
    """Write a comment; returns its number. The same text sent twice is one comment.

    Raises:
        UserError: it is empty or too long.
    """
    text, moment = checked_body(body), now()
    twice = (
        select(_COLUMNS.id)
        .where(_COLUMNS.account_id == account_id, _COLUMNS.number == number, _COLUMNS.deleted.is_(None))
        .where(_COLUMNS.created > moment - TWICE, _COLUMNS.body == text)
        .limit(1)
    )
    values = {"number": number, "account_id": account_id, "body": text, "created": moment}
    with engine.begin() as connection:
        # One comment of an account at a time, so that two copies of a form do not miss each other.
        connection.execute(select(AccountRow.id).where(AccountRow.id == account_id).with_for_update())
        known = connection.execute(twice).scalar_one_or_none()
        if known is not None:
            return int(known)
        made = connection.execute(insert(CommentRow).values(**values).returning(CommentRow.id))
        return int(made.scalar_one())


def edit_comment(engine: Engine, account_id: int, id: int, body: str) -> bool:
    """Change one's own comment; False when it is not one's own.

    Raises:
        UserError: it is empty or too long.
    """
    text = checked_body(body)
    with engine.begin() as connection:
        done = connection.execute(
            update(CommentRow)
            .where(_COLUMNS.id == id, _COLUMNS.account_id == account_id, _COLUMNS.deleted.is_(None))
            .values(body=text, edited=now())
        )
    return bool(done.rowcount)


def delete_comment(engine: Engine, account_id: int, id: int) -> bool:
    """Delete one's own comment, its text included; False when it is not one's own."""
    with engine.begin() as connection:
        done = connection.execute(
            update(CommentRow)
            .where(_COLUMNS.id == id, _COLUMNS.account_id == account_id, _COLUMNS.deleted.is_(None))
            .values(body="", deleted=now())
        )
    return bool(done.rowcount)


def hide_comment(engine: Engine, administrator_id: int, id: int, *, hide: bool) -> bool:
    """Hide a comment from readers, or show it again; False when there is none."""
    values = {"hidden": now() if hide else None, "hidden_by": administrator_id if hide else None}
    with engine.begin() as connection:
        done = connection.execute(
            update(CommentRow).where(_COLUMNS.id == id, _COLUMNS.deleted.is_(None)).values(**values)
        )
    return bool(done.rowcount)
