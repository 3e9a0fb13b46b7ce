"""How the index reads the catalogue: the table `papers`, in pages, never the whole of it at once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from working_papers.daily.search.lexical import IndexRow

PAGE = 2_000
"""Papers read at a time."""

papers = sa.table(
    "papers",
    sa.column("number", sa.BigInteger),
    sa.column("id", sa.Text),
    sa.column("title", sa.Text),
    sa.column("abstract", sa.Text),
    sa.column("summary", sa.Text),
    sa.column("authors", sa.JSON),
    sa.column("categories", sa.JSON),
    sa.column("day", sa.Date),
    sa.column("revision", sa.BigInteger),
)
"""The columns of the catalogue that the index needs."""

_EARLIEST = dt.date(1, 1, 1)


def _row(found: Any) -> IndexRow:
    number, name, title, abstract, summary, authors, categories, day, revision = found
    return IndexRow(
        number=number,
        id=name,
        title=title or "",
        abstract=abstract or "",
        authors=authors or [],
        categories=categories or [],
        day=day or _EARLIEST,
        revision=revision,
        summary=summary or "",
    )


def newest_revision(engine: Engine) -> int:
    """The highest revision of a paper; 0 when there is none.

    Args:
        engine: the database.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        return int(connection.execute(sa.select(sa.func.max(papers.c.revision))).scalar() or 0)


def changed_since(engine: Engine, revision: int) -> Iterator[list[IndexRow]]:
    """The papers that are new or changed, oldest change first.

    Args:
        engine: the database.
        revision: the last one known.

    Yields:
        Up to `PAGE` papers; each page is a transaction of its own, so that no writer waits for a slow reader.
    """
    while True:
        with engine.connect().execution_options(read_only=True) as connection:
            found = connection.execute(
                sa.select(papers).where(papers.c.revision > revision).order_by(papers.c.revision).limit(PAGE)
            ).all()
        if not found:
            return
        yield [_row(row) for row in found]
        revision = found[-1].revision


def by_numbers(engine: Engine, numbers: Sequence[int]) -> list[IndexRow]:
    """Some papers.

    Args:
        engine: the database.
        numbers: at most `PAGE` of them.

    Returns:
        Those that are still there, in no order.
    """
    with engine.connect().execution_options(read_only=True) as connection:
        return [_row(row) for row in connection.execute(sa.select(papers).where(papers.c.number.in_(numbers)))]
