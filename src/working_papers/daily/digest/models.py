"""The tables of the digest: who gets it, and its issues."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base


class SubscriptionRow(Base):
    """One address's wish for a digest."""

    __tablename__ = "subscriptions"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text, unique=True, doc="In lower case.")
    account_id: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", ondelete="SET NULL"), index=True)
    frequency: Mapped[str] = mapped_column(String(6), doc="'daily' or 'weekly'.")
    trending: Mapped[bool]
    topics: Mapped[list[str]]
    searches: Mapped[list[int]] = mapped_column(JSON, doc="Saved searches of the account, by id.")
    secret: Mapped[str] = mapped_column(String(64), unique=True, doc="In links to confirm, change and unsubscribe.")
    created: Mapped[dt.datetime]
    confirmed: Mapped[dt.datetime | None] = mapped_column(doc="Nothing is sent before.")
    ended: Mapped[dt.datetime | None] = mapped_column(doc="Unsubscribed, or given up after bounces.")
    end_reason: Mapped[str | None] = mapped_column(Text)


class DigestIssueRow(Base):
    """One issue of the digest: the papers of a day or of a week."""

    __tablename__ = "digest_issues"

    id: Mapped[int] = mapped_column(primary_key=True)
    frequency: Mapped[str] = mapped_column(String(6))
    first_day: Mapped[dt.date]
    last_day: Mapped[dt.date]
    created: Mapped[dt.datetime]
    completed: Mapped[dt.datetime | None] = mapped_column(doc="When an e-mail stood in the queue for every subscriber.")

    __table_args__ = (Index("ix_digest_issues_frequency_first_day", "frequency", "first_day", unique=True),)
