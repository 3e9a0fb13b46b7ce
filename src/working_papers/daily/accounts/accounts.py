"""Accounts: made at the first sign-in, or on the machine's own command line."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from working_papers.daily.accounts.models import AccountRow, ApiTokenRow, SessionRow
from working_papers.daily.digest.models import SubscriptionRow
from working_papers.database import now, reading
from working_papers.errors import UserError

LONGEST_NAME = 60
LONGEST_ADDRESS = 254
_COLUMNS = AccountRow.__table__.c


@dataclass(frozen=True)
class Account:
    """Somebody who can sign in; the address is never shown to others."""

    id: int
    email: str
    name: str
    administrator: bool
    created: dt.datetime
    closed: dt.datetime | None = None


def _account(row: Row[Any]) -> Account:
    return Account(row.id, row.email, row.name, row.administrator, row.created, row.closed)


def normal_email(text: str) -> str:
    """An address in the form in which it is stored: checked, in lower case, its host in ASCII.

    Raises:
        UserError: it is not an e-mail address.
    """
    text = text.strip()
    try:
        if len(text) > LONGEST_ADDRESS:
            raise EmailNotValidError("it is too long")
        # Hosts of one's own network (localhost, mail.lan) are fine for a self-hosted site.
        found = validate_email(text, check_deliverability=False, test_environment=True, allow_smtputf8=False)
    except EmailNotValidError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{text[:80]!r} is not an e-mail address ({reason.rstrip('.')})") from error
    return f"{found.local_part}@{found.ascii_domain}".lower()


def normal_name(text: str) -> str:
    """A display name: on one line, printable, of a sensible length.

    Raises:
        UserError: nothing is left, or too much.
    """
    name = " ".join("".join(part if part.isprintable() else " " for part in text).split())
    if not name or len(name) > LONGEST_NAME:
        raise UserError(f"a name has 1 to {LONGEST_NAME} characters, got {len(name)}")
    return name


def make_account(engine: Engine, email: str, name: str | None = None, administrator: bool = False) -> Account:
    """The account of an address, made if there is none; an administrator if asked for, whatever it was.

    Args:
        engine: the database.
        email: the address.
        name: shown to others; for a new account by default what stands before the @.
        administrator: make it one.

    Raises:
        UserError: the address or the name cannot be used, or the account is closed.
    """
    email = normal_email(email)
    shown = normal_name(name if name is not None else email.partition("@")[0].replace(".", " ")[:LONGEST_NAME])
    with engine.begin() as connection:
        found = _by_email(connection, email)
        if found is None:
            values = {"email": email, "name": shown, "administrator": administrator, "created": now()}
            with suppress(IntegrityError), connection.begin_nested():  # two first sign-ins at once
                connection.execute(insert(AccountRow).values(**values))
            found = _by_email(connection, email)
            assert found is not None
        if found.closed is not None:
            raise UserError(f"the account of {email} is closed")
        changes: dict[str, Any] = {}
        if administrator and not found.administrator:
            changes["administrator"] = True
        if name is not None and found.name != shown:
            changes["name"] = shown
        if changes:
            connection.execute(update(AccountRow).where(_COLUMNS.id == found.id).values(**changes))
            found = _by_email(connection, email)
            assert found is not None
        return _account(found)


def _by_email(connection: Connection, email: str) -> Row[Any] | None:
    return connection.execute(select(*_COLUMNS).where(_COLUMNS.email == email)).one_or_none()


def account_by_email(engine: Engine, email: str) -> Account | None:
    """The account of an address in normal form, closed ones included."""
    with reading(engine) as connection:
        row = _by_email(connection, email)
    return None if row is None else _account(row)


def account_by_id(engine: Engine, id: int) -> Account | None:
    """An account, closed ones included."""
    return accounts_by_ids(engine, [id]).get(id)


def accounts_by_ids(engine: Engine, ids: Collection[int]) -> dict[int, Account]:
    """Accounts by their numbers."""
    if not ids:
        return {}
    with reading(engine) as connection:
        rows = connection.execute(select(*_COLUMNS).where(_COLUMNS.id.in_(set(ids))))
        return {row.id: _account(row) for row in rows}


def list_accounts(engine: Engine, *, administrators: bool = False) -> list[Account]:
    """All accounts, or the administrators, oldest first."""
    query = select(*_COLUMNS).order_by(_COLUMNS.id)
    if administrators:
        query = query.where(_COLUMNS.administrator.is_(True))
    with reading(engine) as connection:
        return [_account(row) for row in connection.execute(query)]


def rename(engine: Engine, id: int, name: str) -> None:
    """Change the display name.

    Raises:
        UserError: the name cannot be used.
    """
    shown = normal_name(name)
    with engine.begin() as connection:
        connection.execute(update(AccountRow).where(_COLUMNS.id == id).values(name=shown))


def close(engine: Engine, id: int) -> None:
    """The account may not sign in any more; its sessions, tokens and digest end. What it wrote stays."""
    moment = now()
    with engine.begin() as connection:
        connection.execute(update(AccountRow).where(_COLUMNS.id == id).values(closed=moment, administrator=False))
        for table in (SessionRow, ApiTokenRow):
            connection.execute(
                update(table).where(table.account_id == id, table.revoked.is_(None)).values(revoked=moment)
            )
        own = select(_COLUMNS.email).where(_COLUMNS.id == id).scalar_subquery()
        connection.execute(
            update(SubscriptionRow)
            .where(SubscriptionRow.email == own, SubscriptionRow.ended.is_(None))
            .values(ended=moment, end_reason="the account was closed")
        )


def reopen(engine: Engine, id: int) -> None:
    """The account may sign in again."""
    with engine.begin() as connection:
        connection.execute(update(AccountRow).where(_COLUMNS.id == id).values(closed=None))
