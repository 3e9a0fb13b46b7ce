"""The store of runs and trials: two tables of the one database, written by the process that conducts a run."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, ForeignKey, Index, LargeBinary, String, Text, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base, now

if TYPE_CHECKING:
    import numpy as np

    from working_papers.bench.trial import TrialSpec

FINISHED, FAILED, RUNNING, INTERRUPTED = "finished", "failed", "running", "interrupted"


class Run(Base):
    """One run of a study; rows are never overwritten by later runs."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(80))
    scale: Mapped[str] = mapped_column(String(10))
    sham: Mapped[bool] = mapped_column(default=False)
    seeds: Mapped[int]
    code_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(12), default=RUNNING)
    started: Mapped[dt.datetime]
    finished: Mapped[dt.datetime | None]
    record: Mapped[dict[str, Any] | None] = mapped_column(doc="The whole result, in the form of reference.json.")
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_runs_slug_id", "slug", "id"),)


class TrialRow(Base):
    """One trial; the newest finished row of a key counts."""

    __tablename__ = "trials"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    key: Mapped[str] = mapped_column(String(64), index=True)
    slug: Mapped[str] = mapped_column(String(80))
    arm: Mapped[str] = mapped_column(String(80))
    seed: Mapped[int]
    scale: Mapped[str] = mapped_column(String(10))
    phase: Mapped[str] = mapped_column(String(10))
    setting: Mapped[dict[str, Any]]
    code_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(12))
    numbers: Mapped[dict[str, Any]] = mapped_column(default=dict)
    arrays: Mapped[bytes | None] = mapped_column(LargeBinary)
    costs: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str | None] = mapped_column(Text)
    finished: Mapped[dt.datetime]


@dataclass(frozen=True)
class Outcome:
    """What became of one trial.

    Attributes:
        numbers: the measurements, by name.
        arrays: the arrays for the figure, by name.
        costs: "wall seconds", "CPU seconds", "peak memory MB" and what the trial itself reported.
        error: the traceback or the way the process died, when it failed.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the trial could not be run to its end."""
        return self.error is not None


def _pack(arrays: dict[str, np.ndarray]) -> bytes | None:
    if not arrays:
        return None
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes | None) -> dict[str, np.ndarray]:
    if not data:
        return {}
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


class Store:
    """Reads and writes runs and trials."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def begin(self, *, slug: str, scale: str, sham: bool, seeds: int, code_hash: str) -> int:
        """Record that a run begins; returns its number."""
        values = {"slug": slug, "scale": scale, "sham": sham, "seeds": seeds, "code_hash": code_hash}
        with self.engine.begin() as connection:
            result = connection.execute(insert(Run).values(**values, status=RUNNING, started=now()).returning(Run.id))
            return int(result.scalar_one())

    def end(self, run: int, status: str, *, record: dict[str, Any] | None = None, error: str | None = None) -> None:
        """Record how a run ended."""
        with self.engine.begin() as connection:
            connection.execute(
                update(Run).where(Run.id == run).values(status=status, record=record, error=error, finished=now())
            )

    def keep(self, run: int, spec: TrialSpec, outcome: Outcome) -> None:
        """Store one trial, finished or failed."""
        with self.engine.begin() as connection:
            connection.execute(
                insert(TrialRow).values(
                    run_id=run,
                    key=spec.key,
                    slug=spec.slug,
                    arm=spec.arm,
                    seed=spec.index,
                    scale=spec.scale,
                    phase=spec.phase,
                    setting=dict(spec.setting),
                    code_hash=spec.code_hash,
                    status=FAILED if outcome.failed else FINISHED,
                    numbers=outcome.numbers,
                    arrays=_pack(outcome.arrays),
                    costs=outcome.costs,
                    error=outcome.error,
                    finished=now(),
                )
            )

    def finished_trials(self, specs: Iterable[TrialSpec]) -> dict[TrialSpec, Outcome]:
        """The stored outcomes of those trials that have already been run to their end."""
        by_key = {spec.key: spec for spec in specs}
        found: dict[TrialSpec, Outcome] = {}
        with self.engine.connect().execution_options(read_only=True) as connection:
            for keys in _chunks(list(by_key), 500):
                rows = connection.execute(
                    select(TrialRow.key, TrialRow.numbers, TrialRow.arrays, TrialRow.costs)
                    .where(TrialRow.key.in_(keys), TrialRow.status == FINISHED)
                    .order_by(TrialRow.id)
                )
                for key, numbers, arrays, costs in rows:
                    found[by_key[key]] = Outcome(numbers=numbers, arrays=_unpack(arrays), costs=costs)
        return found

    def latest_runs(self, slug: str, limit: int = 20) -> list[Run]:
        """The newest runs of a room, newest first."""
        from sqlalchemy.orm import Session

        with Session(self.engine.execution_options(read_only=True), expire_on_commit=False) as session:
            return list(session.scalars(select(Run).where(Run.slug == slug).order_by(Run.id.desc()).limit(limit)))


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
