"""Tokens for programs: shown once, stored as a hash, revoked at any time."""

from __future__ import annotations

import datetime as dt
import secrets
from dataclasses import dataclass

from sqlalchemy import Engine, func, insert, select, update

from working_papers.daily.accounts.accounts import Account
from working_papers.daily.accounts.models import LARGEST_KEY, AccountRow, ApiTokenRow
from working_papers.daily.accounts.sign_in import hash_of
from working_papers.database import now, reading
from working_papers.errors import UserError

PREFIX = "wp_"
"""By it a token that leaked is known as one of ours."""

MOST_TOKENS = 50
LONGEST_NAME = 80
NOTED_EVERY = dt.timedelta(hours=1)
_TOKENS, _ACCOUNTS = ApiTokenRow.__table__.c, AccountRow.__table__.c


@dataclass(frozen=True)
class ApiToken:
    """A token, without the secret."""

    id: int
    name: str
    ending: str
    created: dt.datetime
    used: dt.datetime | None


def make_token(engine: Engine, account_id: int, name: str) -> str:
    """A new token; this is the only time that it is seen.

    Raises:
        UserError: the name cannot be used, or the account has very many tokens.
    """
    shown = " ".join("".join(part if part.isprintable() else " " for part in name).split())
    if not shown or len(shown) > LONGEST_NAME:
        raise UserError(f"a token's name has 1 to {LONGEST_NAME} characters, got {len(shown)}")
    secret = PREFIX + secrets.token_urlsafe(30)
    with engine.begin() as connection:
        count = connection.execute(
            select(func.count())
            .select_from(ApiTokenRow)
            .where(_TOKENS.account_id == account_id, _TOKENS.revoked.is_(None))
        ).scalar_one()
        if count >= MOST_TOKENS:
            raise UserError(f"an account has at most {MOST_TOKENS} tokens; revoke one first")
        connection.execute(
            insert(ApiTokenRow).values(
                account_id=account_id, name=shown, secret_hash=hash_of(secret), ending=secret[-4:], created=now()
            )
        )
    return secret


def account_of_token(engine: Engine, secret: str) -> Account | None:
    """Whose token it is; None when it is not one of ours or was revoked."""
    if not secret.startswith(PREFIX):
        return None
    query = (
        select(*_ACCOUNTS, _TOKENS.id.label("token_id"), _TOKENS.used.label("token_used"))
        .join(ApiTokenRow, _TOKENS.account_id == _ACCOUNTS.id)
        .where(_TOKENS.secret_hash == hash_of(secret), _TOKENS.revoked.is_(None), _ACCOUNTS.closed.is_(None))
    )
    with reading(engine) as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    moment = now()
    if row.token_used is None or moment - row.token_used > NOTED_EVERY:
        with engine.begin() as connection:
            connection.execute(update(ApiTokenRow).where(_TOKENS.id == row.token_id).values(used=moment))
    return Account(row.id, row.email, row.name, row.administrator, row.created, row.closed)


def list_tokens(engine: Engine, account_id: int) -> list[ApiToken]:
    """The tokens of an account, newest first."""
    query = (
        select(_TOKENS.id, _TOKENS.name, _TOKENS.ending, _TOKENS.created, _TOKENS.used)
        .where(_TOKENS.account_id == account_id, _TOKENS.revoked.is_(None))
        .order_by(_TOKENS.id.desc())
    )
    with reading(engine) as connection:
        return [ApiToken(*row) for row in connection.execute(query)]


def revoke_token(engine: Engine, account_id: int, token_id: int) -> bool:
    """End a token of an account; False when it is not one of its own."""
    if not 1 <= token_id <= LARGEST_KEY:
        return False
    with engine.begin() as connection:
        done = connection.execute(
            update(ApiTokenRow)
            .where(_TOKENS.id == token_id, _TOKENS.account_id == account_id, _TOKENS.revoked.is_(None))
            .values(revoked=now())
        )
    return bool(done.rowcount)
