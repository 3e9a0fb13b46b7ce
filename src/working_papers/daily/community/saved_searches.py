"""Saved searches: a list to come back to, an Atom feed, a part of the digest."""

from __future__ import annotations

import datetime as dt
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Engine, Row, delete, func, insert, select, update

from working_papers.daily.accounts.models import LARGEST_KEY, AccountRow
from working_papers.daily.community.models import SavedSearchRow
from working_papers.database import now, reading
from working_papers.errors import UserError

PARAMETERS = ("q", "topic", "runnable", "verdict")
"""What of a search is kept; its days would soon be over."""

LONGEST_NAME = 80
LONGEST_QUERY = 1_000
MOST = 100
_KEY = re.compile(r"[A-Za-z0-9_-]{1,32}")
_COLUMNS = SavedSearchRow.__table__.c


@dataclass(frozen=True)
class SavedSearch:
    """A search that an account keeps.

    Attributes:
        key: unguessable; whoever has it may read the feed, which tells nothing of the account.
        query: parameters of the search page.
    """

    id: int
    account_id: int
    key: str
    name: str
    query: dict[str, str]
    created: dt.datetime

    @property
    def href(self) -> str:
        """The search itself."""
        return f"/search?{urlencode(self.query)}"


def _saved(row: Row[Any]) -> SavedSearch:
    query = {str(name): str(value) for name, value in row.query.items()}
    return SavedSearch(row.id, row.account_id, row.key, row.name, query, row.created)


def normal_name(text: str) -> str:
    """A name on one line.

    Raises:
        UserError: nothing is left, or too much.
    """
    name = " ".join("".join(part if part.isprintable() else " " for part in text).split())
    if not name or len(name) > LONGEST_NAME:
        raise UserError(f"a saved search's name has 1 to {LONGEST_NAME} characters, got {len(name)}")
    return name


def _name_of(query: Mapping[str, str]) -> str:
    """What is searched for, in a few words."""
    words = {"holds": "holds", "fails": "does not hold", "open": "inconclusive"}
    parts = [
        query.get("q", ""),
        query.get("topic", ""),
        "runs" if "runnable" in query else "",
        words.get(query.get("verdict", ""), query.get("verdict", "")),
    ]
    return " · ".join(filter(None, parts))[:LONGEST_NAME]


def save_search(engine: Engine, account_id: int, given: Mapping[str, str], name: str = "") -> SavedSearch:
    """Keep a search; the same one again is the one that is there.

    Args:
        engine: the database.
        account_id: whose.
        given: parameters of the search page; others than `PARAMETERS` are left out.
        name: by default what is searched for.

    Raises:
        UserError: nothing is searched for, the query is very long, or there are very many already.
    """
    query = {
        key: str(given.get(key, "")).replace("\x00", " ").strip()
        for key in PARAMETERS
        if str(given.get(key, "")).strip()
    }
    if not query:
        raise UserError("there is nothing to save: search for something, or choose a filter")
    if len(query.get("q", "")) > LONGEST_QUERY:
        raise UserError(f"a search of more than {LONGEST_QUERY:,} characters cannot be saved")
    shown = normal_name(name or _name_of(query))
    with engine.begin() as connection:
        # One search of an account at a time, so that two copies of a form do not miss each other.
        connection.execute(select(AccountRow.id).where(AccountRow.id == account_id).with_for_update())
        rows = connection.execute(select(*_COLUMNS).where(_COLUMNS.account_id == account_id)).all()
        for row in rows:
            if row.query == query:
                return _saved(row)
        if len(rows) >= MOST:
            raise UserError(f"an account has at most {MOST} saved searches; delete one first")
        values = {"account_id": account_id, "key": secrets.token_urlsafe(18), "name": shown, "query": query}
        made = connection.execute(insert(SavedSearchRow).values(**values, created=now()).returning(*_COLUMNS))
        return _saved(made.one())


def list_saved_searches(engine: Engine, account_id: int) -> list[SavedSearch]:
    """The searches of an account, by name."""
    query = select(*_COLUMNS).where(_COLUMNS.account_id == account_id).order_by(func.lower(_COLUMNS.name), _COLUMNS.id)
    with reading(engine) as connection:
        return [_saved(row) for row in connection.execute(query)]


def saved_search_by_key(engine: Engine, key: str) -> SavedSearch | None:
    """The search that a feed's address names."""
    if not _KEY.fullmatch(key):
        return None
    with reading(engine) as connection:
        row = connection.execute(select(*_COLUMNS).where(_COLUMNS.key == key)).one_or_none()
    return None if row is None else _saved(row)


def rename_saved_search(engine: Engine, account_id: int, id: int, name: str) -> bool:
    """Give one's own search another name; False when it is not one's own.

    Raises:
        UserError: the name cannot be used.
    """
    shown = normal_name(name)
    if not 1 <= id <= LARGEST_KEY:
        return False
    with engine.begin() as connection:
        done = connection.execute(
            update(SavedSearchRow).where(_COLUMNS.id == id, _COLUMNS.account_id == account_id).values(name=shown)
        )
    return bool(done.rowcount)


def delete_saved_search(engine: Engine, account_id: int, id: int) -> bool:
    """Delete one's own search; its feed ends. False when it is not one's own."""
    if not 1 <= id <= LARGEST_KEY:
        return False
    with engine.begin() as connection:
        done = connection.execute(delete(SavedSearchRow).where(_COLUMNS.id == id, _COLUMNS.account_id == account_id))
    return bool(done.rowcount)
