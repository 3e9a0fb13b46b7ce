"""The queue of runs: studies that were asked for on the page, and the workers that take them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base

QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = "queued", "running", "finished", "failed", "cancelled"


class JobRow(Base):
    """One run that was asked for."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(80))
    scale: Mapped[str] = mapped_column(String(10))
    seeds: Mapped[int | None]
    sham: Mapped[bool]
    fresh: Mapped[bool]
    asked_by: Mapped[int | None] = mapped_column(Integer, doc="The account; no key, for the bench knows no accounts.")
    status: Mapped[str] = mapped_column(String(10))
    cancel: Mapped[bool] = mapped_column(doc="Somebody wants it stopped.")
    worker: Mapped[str | None] = mapped_column(String(80), doc="Who has it in hand.")
    beat: Mapped[dt.datetime | None] = mapped_column(doc="When that worker last said that it lives.")
    attempts: Mapped[int]
    progress: Mapped[dict[str, Any] | None] = mapped_column(doc="Stage, trials done and in flight.")
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete="SET NULL"))
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[dt.datetime]
    started: Mapped[dt.datetime | None]
    finished: Mapped[dt.datetime | None]

    __table_args__ = (Index("ix_jobs_status_id", "status", "id"), Index("ix_jobs_slug_id", "slug", "id"))


class SharedRunRow(Base):
    """A run that was made elsewhere and sent here; shown beside the reference verdict, never in its place."""

    __tablename__ = "shared_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(80))
    account_id: Mapped[int] = mapped_column(Integer, doc="Who sent it.")
    digest: Mapped[str] = mapped_column(String(64), unique=True, doc="SHA-256 of the record: sent twice, kept once.")
    code_hash: Mapped[str] = mapped_column(String(64))
    same_code: Mapped[bool] = mapped_column(doc="Whether it ran the code that this installation has.")
    answer: Mapped[str] = mapped_column(String(20))
    record: Mapped[dict[str, Any]] = mapped_column(doc="In the form of reference.json.")
    received: Mapped[dt.datetime]

    __table_args__ = (Index("ix_shared_runs_slug_id", "slug", "id"),)
