"""The tables of accounts: who may sign in, and by what they are known afterwards."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base

LARGEST_KEY = 2**31 - 1
"""Of a row; larger numbers, which anybody can write into an address, are an error to the databases."""


class AccountRow(Base):
    """Somebody who can sign in."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text, unique=True, doc="In lower case; never shown to others.")
    name: Mapped[str] = mapped_column(Text, doc="Shown beside what the account does.")
    administrator: Mapped[bool]
    created: Mapped[dt.datetime]
    closed: Mapped[dt.datetime | None] = mapped_column(doc="Since when the account may not sign in.")


class SignInLinkRow(Base):
    """A link that was e-mailed; good once, for a quarter of an hour."""

    __tablename__ = "sign_in_links"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True, doc="SHA-256 of what the signed link carries.")
    created: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    used: Mapped[dt.datetime | None]

    __table_args__ = (Index("ix_sign_in_links_email_created", "email", "created"),)


class SessionRow(Base):
    """A browser that is signed in."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True, doc="SHA-256 of the cookie's value.")
    browser: Mapped[str] = mapped_column(Text, doc="What it called itself, so that its owner knows which it is.")
    created: Mapped[dt.datetime]
    seen: Mapped[dt.datetime] = mapped_column(doc="Last use, to the nearest hour.")
    expires: Mapped[dt.datetime]
    revoked: Mapped[dt.datetime | None]


class ApiTokenRow(Base):
    """A token for programs, shown once when it is made."""

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True, doc="SHA-256 of the token.")
    ending: Mapped[str] = mapped_column(String(8), doc="Its last characters, by which its owner knows it.")
    created: Mapped[dt.datetime]
    used: Mapped[dt.datetime | None] = mapped_column(doc="Last use, to the nearest hour.")
    revoked: Mapped[dt.datetime | None]


class SiteSecretRow(Base):
    """A key that all processes of the site share; made when it is first needed."""

    __tablename__ = "site_secrets"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
