"""The tables of the daily: papers, their topics, older ids, and the imports that brought them."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base


class PaperRow(Base):
    """One paper; a row is never deleted and its number never used again."""

    __tablename__ = "papers"

    number: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, doc="1, 2, 3 ... in the order of first arrival, without gaps."
    )
    id: Mapped[str] = mapped_column(
        Text, doc="arXiv id without version where there is one, else a slug made from the title."
    )
    title: Mapped[str] = mapped_column(Text)
    abstract: Mapped[str] = mapped_column(Text, doc="Empty while no source has brought one.")
    summary: Mapped[str] = mapped_column(Text, doc="The room's plain-words summary; empty without a room.")
    authors: Mapped[list[str]] = mapped_column(doc="Names in order; empty where only their number is known.")
    author_count: Mapped[int] = mapped_column(doc="0: not known.")
    published: Mapped[dt.date | None]
    day: Mapped[dt.date] = mapped_column(doc="The day of the feed the paper belongs to.")
    updated: Mapped[dt.date | None]
    categories: Mapped[list[str]] = mapped_column(doc="arXiv categories, then the room's topics.")
    comment_count: Mapped[int]
    upvotes: Mapped[int]
    source: Mapped[str] = mapped_column(Text, doc="The most authoritative source that described the paper.")
    url: Mapped[str | None] = mapped_column(Text)
    doi: Mapped[str | None] = mapped_column(Text)
    journal: Mapped[str | None] = mapped_column(Text)
    room: Mapped[str | None] = mapped_column(Text)
    text_hash: Mapped[str] = mapped_column(String(32), doc="Of title and abstract (or summary); for embeddings.")
    title_hash: Mapped[int] = mapped_column(BigInteger, doc="Of the normalised title; to find the same paper again.")
    first_seen: Mapped[dt.datetime]
    revision: Mapped[int] = mapped_column(
        BigInteger, doc="Grows over the whole table with every insert and change, in the order of the commits."
    )

    __table_args__ = (
        Index("ix_papers_id", "id", unique=True),
        Index("ix_papers_day_number", "day", "number"),
        Index("ix_papers_title_hash", "title_hash"),
        Index("ix_papers_revision", "revision", unique=True),
        Index(
            "ix_papers_doi",
            "doi",
            sqlite_where=text("doi IS NOT NULL"),
            postgresql_where=text("doi IS NOT NULL"),
        ),
        Index(
            "ix_papers_room",
            "room",
            unique=True,
            sqlite_where=text("room IS NOT NULL"),
            postgresql_where=text("room IS NOT NULL"),
        ),
    )


class PaperTopicRow(Base):
    """A paper under one of its categories; the feed of a topic reads only this table's key."""

    __tablename__ = "paper_topics"

    topic: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)

    # No foreign key: rows go in by the hundred thousand, and papers are never deleted.
    __table_args__ = ({"sqlite_with_rowid": False},)


class PaperAliasRow(Base):
    """An id that a paper had before its arXiv id was known; links to it go on working."""

    __tablename__ = "paper_aliases"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    number: Mapped[int] = mapped_column(ForeignKey("papers.number"))


class CatalogueStateRow(Base):
    """One row: the last number and revision given out. Whoever writes papers locks it first."""

    __tablename__ = "catalogue_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_number: Mapped[int]
    last_revision: Mapped[int] = mapped_column(BigInteger)


class ImportRow(Base):
    """One import, whatever became of it."""

    __tablename__ = "imports"

    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    asked: Mapped[str] = mapped_column(Text, doc="What was asked of the source: a file name, a date, a query.")
    started: Mapped[dt.datetime]
    finished: Mapped[dt.datetime | None] = mapped_column(doc="Empty while it runs, and for ever if it was killed.")
    got: Mapped[int]
    new: Mapped[int]
    changed: Mapped[int]
    unchanged: Mapped[int]
    rejected: Mapped[int]
    error: Mapped[str | None] = mapped_column(Text)


class ImportRejectionRow(Base):
    """A record that an import could not use."""

    __tablename__ = "import_rejections"

    import_id: Mapped[int] = mapped_column(ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[int | None]
    reason: Mapped[str] = mapped_column(Text)
