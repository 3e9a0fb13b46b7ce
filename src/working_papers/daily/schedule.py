"""What happens every day by itself: each task once a day, whichever of several processes comes first."""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, String, Text, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base, now, reading
from working_papers.errors import UserError

CHECK_SECONDS = 30.0
"""How often the clock is looked at."""

STALE = dt.timedelta(minutes=15)
"""A task whose process has said nothing for so long was killed; another process takes it over."""

RETRIES = 4
RETRY_AFTER = dt.timedelta(minutes=20)
"""A failed task is tried again after this time, then after twice as long, and so on."""

logger = logging.getLogger(__name__)

Task = Callable[[threading.Event], object]
"""Does its work, and ends soon after the event is set."""


class ScheduledRow(Base):
    """A task on a day."""

    __tablename__ = "scheduled_tasks"

    task: Mapped[str] = mapped_column(String(40), primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    holder: Mapped[str] = mapped_column(Text, doc="Machine and process that has it in hand.")
    beat: Mapped[dt.datetime] = mapped_column(doc="When the holder last said that it lives.")
    attempts: Mapped[int]
    due: Mapped[dt.datetime | None] = mapped_column(doc="After a failure: not to be tried again before.")
    finished: Mapped[dt.datetime | None]
    error: Mapped[str | None] = mapped_column(Text)


@dataclass(frozen=True)
class Daily:
    """A task and the hour (UTC) from which on it is due each day."""

    hour: int
    task: Task


def holder_name() -> str:
    """This process, as others see it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def claim(engine: Engine, task: str, day: dt.date, holder: str, moment: dt.datetime) -> bool:
    """Take a task of a day in hand, if nobody has finished it or is at it."""
    with reading(engine) as connection:
        row = connection.execute(
            select(ScheduledRow.__table__).where(ScheduledRow.task == task, ScheduledRow.day == day)
        ).one_or_none()
    values = {"holder": holder, "beat": moment, "due": None}
    if row is None:
        try:
            with engine.begin() as connection:
                connection.execute(insert(ScheduledRow).values(task=task, day=day, attempts=1, **values))
        except IntegrityError:
            return False  # somebody else was first
        return True
    if row.finished is not None or row.attempts > RETRIES:
        return False
    failed = row.due is not None
    if (failed and row.due > moment) or (not failed and moment - row.beat < STALE):
        return False
    with engine.begin() as connection:
        taken = connection.execute(
            update(ScheduledRow)
            .where(ScheduledRow.task == task, ScheduledRow.day == day, ScheduledRow.finished.is_(None))
            .where(ScheduledRow.attempts == row.attempts)  # of several that come at once, one goes on
            .values(attempts=row.attempts + 1, **values)
        )
    return bool(taken.rowcount)


class Scheduler:
    """A thread that runs daily tasks when their hour has come, and repeated ones every few seconds.

    Args:
        engine: the database, by which processes agree who does what.
        daily: by name, what is done once a day.
        repeated: by name, seconds between two calls and what is done in every process that has a scheduler.
        clock: the present moment in UTC.
    """

    def __init__(
        self,
        engine: Engine,
        daily: Mapping[str, Daily],
        repeated: Mapping[str, tuple[float, Task]] | None = None,
        *,
        clock: Callable[[], dt.datetime] = now,
    ) -> None:
        self.engine = engine
        self.daily = dict(daily)
        self.repeated = dict(repeated or {})
        self.stopping = threading.Event()
        self._clock = clock
        self._holder = holder_name()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; a thread for the daily tasks, and one for each repeated one."""
        if self.daily:
            self._threads.append(threading.Thread(target=self._run_daily, name="schedule", daemon=True))
        for name, (seconds, task) in self.repeated.items():
            words = (name, seconds, task)
            self._threads.append(threading.Thread(target=self._run_repeated, args=words, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End soon; what is in hand is taken up again by the next process."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(timeout)

    def _run_daily(self) -> None:
        while not self.stopping.is_set():
            try:
                self.run_due()
            except SQLAlchemyError as error:
                logger.error("the schedule cannot read the database: %s", error)
            self.stopping.wait(CHECK_SECONDS)

    def _run_repeated(self, name: str, seconds: float, task: Task) -> None:
        while not self.stopping.is_set():
            try:
                task(self.stopping)
            except Exception:
                logger.exception("%s failed", name)
            self.stopping.wait(seconds)

    def run_due(self) -> list[str]:
        """Run every daily task that is due and that nobody else has in hand; returns their names."""
        done = []
        for name, daily in self.daily.items():
            moment = self._clock()
            if self.stopping.is_set() or moment.hour < daily.hour:
                continue
            if claim(self.engine, name, moment.date(), self._holder, moment):
                self._run(name, moment.date(), daily.task)
                done.append(name)
        return done

    def _run(self, name: str, day: dt.date, task: Task) -> None:
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(name, day, ended), daemon=True)
        beating.start()
        error: str | None = None
        try:
            task(self.stopping)
        except UserError as trouble:
            error = str(trouble)
            logger.error("%s: %s", name, error)
        except Exception as trouble:
            error = f"{type(trouble).__name__}: {trouble}"
            logger.exception("%s failed", name)
        finally:
            ended.set()
            beating.join()
        moment = self._clock()
        values: dict[str, object] = {"finished": moment, "error": None}
        if error is not None or self.stopping.is_set():
            with reading(self.engine) as connection:
                attempts = connection.execute(
                    select(ScheduledRow.attempts).where(ScheduledRow.task == name, ScheduledRow.day == day)
                ).scalar_one()
            wait = RETRY_AFTER * 2 ** (attempts - 1) if error is not None else dt.timedelta()
            values = {"due": moment + wait, "error": error}
        with self.engine.begin() as connection:
            connection.execute(
                update(ScheduledRow).where(ScheduledRow.task == name, ScheduledRow.day == day).values(**values)
            )

    def _beat(self, name: str, day: dt.date, ended: threading.Event) -> None:
        while not ended.wait(STALE.total_seconds() / 5):
            try:
                with self.engine.begin() as connection:
                    connection.execute(
                        update(ScheduledRow)
                        .where(ScheduledRow.task == name, ScheduledRow.day == day)
                        .values(beat=self._clock())
                    )
            except SQLAlchemyError as error:
                logger.error("the schedule cannot write to the database: %s", error)
