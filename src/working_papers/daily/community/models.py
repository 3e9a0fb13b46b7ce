"""The tables of what accounts do with papers: votes, comments, submissions, saved searches."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base


class VoteRow(Base):
    """One account's vote for one paper; the key makes a second one impossible."""

    __tablename__ = "votes"

    number: Mapped[int] = mapped_column(ForeignKey("papers.number"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    created: Mapped[dt.datetime]

    __table_args__ = (Index("ix_votes_created", "created"), Index("ix_votes_account_id", "account_id"))


class CommentRow(Base):
    """A comment on a paper."""

    __tablename__ = "comments"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(ForeignKey("papers.number"))
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(Text, doc="Markdown as it was typed; empty once deleted.")
    created: Mapped[dt.datetime]
    edited: Mapped[dt.datetime | None]
    deleted: Mapped[dt.datetime | None]
    hidden: Mapped[dt.datetime | None] = mapped_column(doc="By an administrator; its author still sees it.")
    hidden_by: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", ondelete="SET NULL"))

    __table_args__ = (Index("ix_comments_number_id", "number", "id"), Index("ix_comments_created", "created"))


class SubmissionRow(Base):
    """Who brought a paper here; the first one counts."""

    __tablename__ = "submissions"

    number: Mapped[int] = mapped_column(ForeignKey("papers.number"), primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    created: Mapped[dt.datetime]

    __table_args__ = (Index("ix_submissions_account_id_created", "account_id", "created"),)


class SavedSearchRow(Base):
    """A search that an account keeps: as a list, as an Atom feed, in its digest."""

    __tablename__ = "saved_searches"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(String(32), unique=True, doc="Unguessable; the feed's address.")
    name: Mapped[str] = mapped_column(Text)
    query: Mapped[dict[str, Any]] = mapped_column(doc="The search page's parameters: q, topic, runnable, verdict ...")
    created: Mapped[dt.datetime]
