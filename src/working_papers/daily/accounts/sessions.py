"""Sessions: browsers that are signed in, until they sign out or have not come back for a season."""

from __future__ import annotations

import datetime as dt
import secrets
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from working_papers.daily.accounts.accounts import Account
from working_papers.daily.accounts.models import LARGEST_KEY, AccountRow, SessionRow
from working_papers.daily.accounts.sign_in import hash_of
from working_papers.database import now, reading

LIFETIME = dt.timedelta(days=90)
"""Since the last use."""

NOTED_EVERY = dt.timedelta(hours=1)
"""How often a use is written down: not at every page."""

LONGEST_BROWSER = 200
_SESSIONS, _ACCOUNTS = SessionRow.__table__.c, AccountRow.__table__.c


@dataclass(frozen=True)
class Session:
    """A browser that is signed in."""

    id: int
    account_id: int
    browser: str
    created: dt.datetime
    seen: dt.datetime
    expires: dt.datetime


def open_session(engine: Engine, account: Account, browser: str) -> str:
    """Sign a browser in; returns what its cookie holds."""
    secret, moment = secrets.token_urlsafe(32), now()
    shown = "".join(character for character in browser if character.isprintable())[:LONGEST_BROWSER]
    with engine.begin() as connection:
        connection.execute(
            insert(SessionRow).values(
                account_id=account.id,
                secret_hash=hash_of(secret),
                browser=shown,
                created=moment,
                seen=moment,
                expires=moment + LIFETIME,
            )
        )
    return secret


def account_of_session(engine: Engine, secret: str) -> tuple[Account, Session] | None:
    """Whose browser it is; None when it is nobody's (any more)."""
    moment = now()
    query = (
        select(*_ACCOUNTS, *(column.label(f"session_{column.name}") for column in _SESSIONS))
        .join(SessionRow, _SESSIONS.account_id == _ACCOUNTS.id)
        .where(_SESSIONS.secret_hash == hash_of(secret), _SESSIONS.revoked.is_(None), _SESSIONS.expires > moment)
        .where(_ACCOUNTS.closed.is_(None))
    )
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    if moment - row.session_seen > NOTED_EVERY:
        with engine.begin() as connection:
            connection.execute(
                update(SessionRow).where(_SESSIONS.id == row.session_id).values(seen=moment, expires=moment + LIFETIME)
            )
    account = Account(row.id, row.email, row.name, row.administrator, row.created, row.closed)
    session = Session(
        row.session_id, row.id, row.session_browser, row.session_created, row.session_seen, row.session_expires
    )
    return account, session


def list_sessions(engine: Engine, account_id: int) -> list[Session]:
    """The browsers of an account that are signed in, last used first."""
    query = (
        select(
            _SESSIONS.id,
            _SESSIONS.account_id,
            _SESSIONS.browser,
            _SESSIONS.created,
            _SESSIONS.seen,
            _SESSIONS.expires,
        )
        .where(_SESSIONS.account_id == account_id, _SESSIONS.revoked.is_(None), _SESSIONS.expires > now())
        .order_by(_SESSIONS.seen.desc(), _SESSIONS.id.desc())
    )
    with reading(engine) as connection:
        return [Session(*row) for row in connection.execute(query)]


def revoke_session(engine: Engine, account_id: int, session_id: int) -> bool:
    """Sign one browser of an account out; False when it is not one of its own."""
    if not 1 <= session_id <= LARGEST_KEY:
        return False
    with engine.begin() as connection:
        done = connection.execute(
            update(SessionRow)
            .where(_SESSIONS.id == session_id, _SESSIONS.account_id == account_id, _SESSIONS.revoked.is_(None))
            .values(revoked=now())
        )
    return bool(done.rowcount)


def revoke_all_sessions(engine: Engine, account_id: int) -> int:
    """Sign all browsers of an account out."""
    with engine.begin() as connection:
        done = connection.execute(
            update(SessionRow)
            .where(_SESSIONS.account_id == account_id, _SESSIONS.revoked.is_(None))
            .values(revoked=now())
        )
    return done.rowcount
