"""The queue of runs: studies that were asked for on the page, and the workers that take them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Engine, ForeignKey, Index, Integer, Row, String, Text, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.bench.store import INTERRUPTED, Run
from working_papers.bench.store import RUNNING as RUN_RUNNING
from working_papers.database import Base, now, reading

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


BEAT_SECONDS = 2.0
"""How often a worker says that it lives, how far it is, and asks whether to go on."""

LOST_SECONDS = 60.0
"""A worker that has said nothing for so long is gone; its run is taken up by another one."""

STOPPED = 3
"""Exit code of a job's process that was asked to stop."""

MOST_ATTEMPTS = 5
"""A run whose worker dies again and again is given up."""

Call = Literal["go on", "cancel", "lost"]


@dataclass(frozen=True)
class Job:
    """A run that was asked for.

    Attributes:
        status: queued, running, finished, failed or cancelled.
        progress: stage, trials done, total and stored, and the fraction of each in flight.
        run_id: the run in the store, once it has begun.
    """

    id: int
    slug: str
    scale: str
    seeds: int | None
    sham: bool
    fresh: bool
    asked_by: int | None
    status: str
    cancel: bool
    worker: str | None
    beat: dt.datetime | None
    attempts: int
    progress: dict[str, Any] | None
    run_id: int | None
    error: str | None
    created: dt.datetime
    started: dt.datetime | None
    finished: dt.datetime | None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.status in ACTIVE


ACTIVE = (QUEUED, RUNNING)
_COLUMNS = JobRow.__table__.c


def _job(row: Row[Any]) -> Job:
    return Job(**row._mapping)


def enqueue_job(
    engine: Engine,
    slug: str,
    scale: str,
    *,
    seeds: int | None = None,
    sham: bool = False,
    fresh: bool = False,
    asked_by: int | None = None,
) -> int:
    """Ask for a run; whoever asks for what waits or runs already gets that.

    Args:
        engine: the database.
        slug: the room.
        scale: smoke, laptop or paper.
        seeds: number of reported seeds; the study's own by default.
        sham: the method's arm replaced by its stand-in.
        fresh: run every trial, even if it is stored.
        asked_by: the account.

    Returns:
        The job's number.
    """
    same = (_COLUMNS.slug == slug, _COLUMNS.scale == scale, _COLUMNS.sham == sham, _COLUMNS.fresh == fresh)
    seeded = _COLUMNS.seeds.is_(None) if seeds is None else _COLUMNS.seeds == seeds
    with engine.begin() as connection:
        found = connection.execute(
            select(_COLUMNS.id).where(*same, seeded, _COLUMNS.status.in_(ACTIVE), _COLUMNS.cancel.is_(False)).limit(1)
        ).scalar()
        if found is not None:
            return int(found)
        values = {"slug": slug, "scale": scale, "seeds": seeds, "sham": sham, "fresh": fresh, "asked_by": asked_by}
        made = connection.execute(
            insert(JobRow).values(**values, status=QUEUED, cancel=False, attempts=0, created=now()).returning(JobRow.id)
        )
        return int(made.scalar_one())


def get_job(engine: Engine, number: int) -> Job | None:
    """A job by its number."""
    with reading(engine) as connection:
        row = connection.execute(select(*_COLUMNS).where(_COLUMNS.id == number)).one_or_none()
    return None if row is None else _job(row)


def list_jobs(
    engine: Engine, *, slug: str | None = None, active: bool = False, limit: int = 50, offset: int = 0
) -> list[Job]:
    """Jobs, newest first.

    Args:
        engine: the database.
        slug: only those of a room.
        active: only those that wait or run.
        limit: at most so many.
        offset: jobs passed over.
    """
    query = select(*_COLUMNS).order_by(_COLUMNS.id.desc()).limit(limit).offset(offset)
    if slug is not None:
        query = query.where(_COLUMNS.slug == slug)
    if active:
        query = query.where(_COLUMNS.status.in_(ACTIVE))
    with reading(engine) as connection:
        return [_job(row) for row in connection.execute(query)]


def cancel_job(engine: Engine, number: int) -> bool:
    """Ask that a job be stopped: at once when it waits, within seconds when it runs; False when it has ended."""
    with engine.begin() as connection:
        waiting = connection.execute(
            update(JobRow)
            .where(_COLUMNS.id == number, _COLUMNS.status == QUEUED)
            .values(status=CANCELLED, cancel=True, finished=now())
        )
        if waiting.rowcount:
            return True
        running = connection.execute(
            update(JobRow).where(_COLUMNS.id == number, _COLUMNS.status == RUNNING).values(cancel=True)
        )
        return bool(running.rowcount)


def claim_job(engine: Engine, worker: str) -> Job | None:
    """Take the oldest job that waits, or one whose worker is gone.

    Two runs of one room never go on at the same time, so that no trial is run twice: the second finds the first one's
    trials in the store.

    Args:
        engine: the database.
        worker: who takes it; its name must be one that no other worker has.

    Returns:
        The job, now running; None when there is nothing to do.
    """
    moment = now()
    gone = moment - dt.timedelta(seconds=LOST_SECONDS)
    with engine.begin() as connection:
        # On PostgreSQL the rows are locked, so that of two workers one decides after the other; SQLite has one writer.
        rows = connection.execute(
            select(*_COLUMNS).where(_COLUMNS.status.in_(ACTIVE)).order_by(_COLUMNS.id).with_for_update()
        ).all()
        lost = [row for row in rows if row.status == RUNNING and (row.beat is None or row.beat < gone)]
        for row in lost:
            _interrupt_run(connection, row.run_id, moment)
            if row.cancel:
                _end(connection, row.id, CANCELLED, None, moment)
            elif row.attempts >= MOST_ATTEMPTS:
                error = f"given up: {row.attempts} times the process that ran it died"
                _end(connection, row.id, FAILED, error, moment)
        ended = {row.id for row in lost if row.cancel or row.attempts >= MOST_ATTEMPTS}
        again = {row.id for row in lost} - ended
        busy = {row.slug for row in rows if row.status == RUNNING and row.id not in {each.id for each in lost}}
        for row in rows:
            if row.id in ended or row.slug in busy or (row.status == RUNNING and row.id not in again):
                continue
            connection.execute(
                update(JobRow)
                .where(_COLUMNS.id == row.id)
                .values(
                    status=RUNNING,
                    worker=worker,
                    beat=moment,
                    attempts=row.attempts + 1,
                    started=row.started or moment,
                    run_id=None,
                    progress=None,
                )
            )
            taken = connection.execute(select(*_COLUMNS).where(_COLUMNS.id == row.id)).one()
            return _job(taken)
    return None


def beat(
    engine: Engine, number: int, worker: str, *, run_id: int | None = None, progress: dict[str, Any] | None = None
) -> Call:
    """Say that the worker lives and how far the run is.

    Returns:
        "go on"; "cancel" when somebody wants it stopped; "lost" when the job is no longer this worker's.
    """
    values: dict[str, Any] = {"beat": now()}
    if run_id is not None:
        values["run_id"] = run_id
    if progress is not None:
        values["progress"] = progress
    mine = (_COLUMNS.id == number, _COLUMNS.worker == worker, _COLUMNS.status == RUNNING)
    with engine.begin() as connection:
        if not connection.execute(update(JobRow).where(*mine).values(**values)).rowcount:
            return "lost"
        wanted = connection.execute(select(_COLUMNS.cancel).where(_COLUMNS.id == number)).scalar_one()
    return "cancel" if wanted else "go on"


def end_job(engine: Engine, number: int, worker: str, status: str, *, error: str | None = None) -> bool:
    """Record how a worker's job ended; False when it was no longer this worker's."""
    with engine.begin() as connection:
        mine = connection.execute(
            select(_COLUMNS.id)
            .where(_COLUMNS.id == number, _COLUMNS.worker == worker, _COLUMNS.status == RUNNING)
            .with_for_update()
        ).scalar()
        if mine is None:
            return False
        _end(connection, number, status, error, now())
    return True


def give_back_job(engine: Engine, number: int, worker: str, *, counts: bool) -> None:
    """Put a worker's job back into the queue: the worker stops, or the process that ran it died.

    Args:
        engine: the database.
        number: the job.
        worker: whose it is.
        counts: whether this was an attempt (a process died) or not (the worker was asked to stop).
    """
    moment = now()
    with engine.begin() as connection:
        row = connection.execute(
            select(*_COLUMNS)
            .where(_COLUMNS.id == number, _COLUMNS.worker == worker, _COLUMNS.status == RUNNING)
            .with_for_update()
        ).one_or_none()
        if row is None:
            return
        _interrupt_run(connection, row.run_id, moment)
        if row.cancel:
            _end(connection, number, CANCELLED, None, moment)
        elif counts and row.attempts >= MOST_ATTEMPTS:
            _end(connection, number, FAILED, f"given up: {row.attempts} times the process that ran it died", moment)
        else:
            attempts = row.attempts if counts else row.attempts - 1
            values = {"status": QUEUED, "worker": None, "beat": None, "attempts": attempts, "run_id": None}
            connection.execute(update(JobRow).where(_COLUMNS.id == number).values(**values))


def _end(connection: Connection, number: int, status: str, error: str | None, moment: dt.datetime) -> None:
    connection.execute(
        update(JobRow).where(_COLUMNS.id == number).values(status=status, error=error, finished=moment, progress=None)
    )


def _interrupt_run(connection: Connection, run_id: int | None, moment: dt.datetime) -> None:
    """The run of a process that died is not going on any more."""
    if run_id is not None:
        connection.execute(
            update(Run)
            .where(Run.id == run_id, Run.status == RUN_RUNNING)
            .values(status=INTERRUPTED, finished=moment, error="the process that ran it died")
        )
