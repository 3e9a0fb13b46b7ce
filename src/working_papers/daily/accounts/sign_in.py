"""Signing in: a signed link goes to the address, and whoever has it is let in, once and within a quarter of an hour."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from email.message import EmailMessage
from typing import TYPE_CHECKING

from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy import Engine, delete, func, insert, select, update

from working_papers.daily.accounts.accounts import Account, account_by_email, make_account, normal_email
from working_papers.daily.accounts.models import SignInLinkRow
from working_papers.daily.accounts.secrets import site_secret
from working_papers.daily.mail.messages import make_message
from working_papers.daily.mail.queue import enqueue
from working_papers.daily.mail.rendering import render_mail
from working_papers.database import now, reading
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

LIFETIME = dt.timedelta(minutes=15)
MOST_LINKS = 5
"""Links that an address may ask for in a quarter of an hour."""

FORGET_AFTER = dt.timedelta(days=7)
_COLUMNS = SignInLinkRow.__table__.c


class LinkRefused(UserError):
    """The link lets nobody in; the message says why."""


class TooManyLinks(UserError):
    """The address has asked for links again and again."""


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _serializer(engine: Engine) -> URLSafeSerializer:
    return URLSafeSerializer(
        site_secret(engine, "sign-in"), salt="sign-in", signer_kwargs={"digest_method": hashlib.sha256}
    )


def request_link(engine: Engine, email: str) -> str:
    """Make a link's token for an address, whether or not it has an account.

    Raises:
        UserError: it is not an e-mail address.
        TooManyLinks: it has asked too often.
    """
    email = normal_email(email)
    moment = now()
    secret = secrets.token_urlsafe(24)
    with engine.begin() as connection:
        recent = connection.execute(
            select(func.count())
            .select_from(SignInLinkRow)
            .where(_COLUMNS.email == email, _COLUMNS.created > moment - LIFETIME)
        ).scalar_one()
        if recent >= MOST_LINKS:
            raise TooManyLinks("this address has asked for several links just now; try again in a quarter of an hour")
        connection.execute(delete(SignInLinkRow).where(_COLUMNS.expires < moment - FORGET_AFTER))
        connection.execute(
            insert(SignInLinkRow).values(
                email=email, secret_hash=hash_of(secret), created=moment, expires=moment + LIFETIME
            )
        )
    token = _serializer(engine).dumps([email, secret])
    return token if isinstance(token, str) else token.decode()


def _read(engine: Engine, token: str) -> tuple[str, str]:
    """Address and secret of a token that this site has signed."""
    try:
        email, secret = _serializer(engine).loads(token)
    except (BadSignature, ValueError, TypeError) as error:
        raise LinkRefused("this link is not one of this site's; ask for a new one") from error
    return str(email), str(secret)


def check_link(engine: Engine, token: str) -> str:
    """The address whose link it is, if it would let somebody in now; nothing is used up.

    Raises:
        LinkRefused: it would not.
    """
    email, secret = _read(engine, token)
    with reading(engine) as connection:
        row = connection.execute(
            select(_COLUMNS.used, _COLUMNS.expires).where(_COLUMNS.secret_hash == hash_of(secret))
        ).one_or_none()
    if row is None or row.expires < now():
        raise LinkRefused("this link has expired; ask for a new one")
    if row.used is not None:
        raise LinkRefused("this link has been used already; ask for a new one")
    return email


def redeem(engine: Engine, token: str) -> Account:
    """Use a link: the account it lets in, made if this is its first time.

    Raises:
        LinkRefused: the link is forged, expired or used, or the account is closed.
    """
    email = check_link(engine, token)
    _, secret = _read(engine, token)
    with engine.begin() as connection:
        used = connection.execute(
            update(SignInLinkRow)
            .where(_COLUMNS.secret_hash == hash_of(secret), _COLUMNS.used.is_(None), _COLUMNS.expires > now())
            .values(used=now())
        )
    if not used.rowcount:  # of two that come at once, one is let in
        raise LinkRefused("this link has been used already; ask for a new one")
    known = account_by_email(engine, email)
    if known is not None and known.closed is not None:
        raise LinkRefused("this account is closed; the administrator may open it again")
    return make_account(engine, email)


def sign_in_message(settings: Settings, email: str, link: str) -> EmailMessage:
    """The e-mail with the link."""
    text, html = render_mail("sign_in", site=settings.site_name, link=link)
    headers = {"Auto-Submitted": "auto-generated"}
    return make_message(settings, email, f"Sign in to {settings.site_name}", text, html, headers)


def queue_link(engine: Engine, settings: Settings, email: str, address: str) -> str:
    """Make a link and put its e-mail into the queue.

    Args:
        engine: the database.
        settings: name the site and the sender.
        email: whom it lets in.
        address: where the link leads, with `{token}` in it.

    Returns:
        The key of the e-mail in the queue.
    """
    email = normal_email(email)
    token = request_link(engine, email)
    key = f"sign-in:{hash_of(token)[:32]}"
    with engine.begin() as connection:
        enqueue(connection, key, sign_in_message(settings, email, address.replace("{token}", token)))
    return key
