"""Imports: records from any source into the catalogue, batch by batch, each import a row of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, insert, update
from sqlalchemy.exc import DBAPIError

from working_papers.daily.catalogue import CatalogueWriter, room_links
from working_papers.daily.models import ImportRejectionRow, ImportRow
from working_papers.daily.records import BadRecord, PaperRecord
from working_papers.database import now, reason
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

BATCH = 5000
"""Records a transaction: large enough that commits cost little, small enough to hold in memory and to lose."""

KEPT_REJECTIONS = 1000
HOPELESS = 1000
"""After so many rejections and no paper at all, the source is not what it was taken for."""


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        number: the import's row in the table `imports`.
        got: records the source yielded, the rejected ones included.
        rejected: the first 1000 records that could not be used; `rejected_count` counts them all.
    """

    source: str
    asked: str
    number: int = 0
    got: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected_count: int = 0
    rejected: list[BadRecord] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    def __str__(self) -> str:
        papers = "paper" if self.got == 1 else "papers"
        return (
            f"{self.got:,} {papers} read: {self.new:,} new, {self.changed:,} changed, "
            f"{self.rejected_count:,} rejected ({self.seconds:.1f} s)"
        )


class ImportFailed(UserError):
    """The source broke; what it yielded before is in the catalogue, and the import's row says so."""

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__(message)
        self.report = report


def import_papers(
    engine: Engine,
    source: str,
    asked: str,
    records: Iterable[PaperRecord | BadRecord],
    *,
    on_batch: Callable[[Sequence[int]], None] | None = None,
    on_progress: Callable[[ImportReport], None] | None = None,
    batch_size: int = BATCH,
) -> ImportReport:
    """Bring records into the catalogue; the same records again change nothing.

    Every batch is one transaction, so a killed import leaves whole batches behind and the same command goes on from
    there. Nothing is ever removed.

    Args:
        engine: the database.
        source: 'page', 'jsonl', 'bibtex', 'arxiv' or 'hf'; decides which description of a paper wins.
        asked: what was asked of the source, for the status page.
        records: what the source yields; read as a stream.
        on_batch: called after each commit with the numbers of the papers that are new or changed, so that a search
            index can take them up before this function returns.
        on_progress: called after each batch with the report so far.
        batch_size: records a transaction.

    Returns:
        The report; `report.rejected` says what was skipped and why.

    Raises:
        ImportFailed: the source or the database broke, or the source holds nothing but rejected records.
        ValueError: batch_size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    importer = _Importer(engine, ImportReport(source, asked), on_batch, on_progress)
    error: str | None = None
    try:
        importer.begin()
        importer.run(records, batch_size)
        report = importer.report
        if report.rejected_count and report.rejected_count == report.got:
            raise UserError(f"{asked} holds no paper that can be read as {source}: {report.rejected[0]}")
    except UserError as trouble:
        kept = importer.report.got - importer.report.rejected_count
        error = str(trouble)
        more = f"; {kept:,} papers read before that are kept" if kept else ""
        raise ImportFailed(f"{error}{more}", importer.report) from trouble
    except DBAPIError as trouble:
        error = (
            f"the database cannot be written ({reason(trouble)}); check the disk and the database, then import again"
        )
        raise ImportFailed(error, importer.report) from trouble
    except KeyboardInterrupt:
        error = "stopped by hand"
        raise
    except Exception as trouble:
        error = f"{type(trouble).__name__}: {trouble}"
        raise
    finally:
        importer.end(error)
    return importer.report


class _Importer:
    def __init__(
        self,
        engine: Engine,
        report: ImportReport,
        on_batch: Callable[[Sequence[int]], None] | None,
        on_progress: Callable[[ImportReport], None] | None,
    ) -> None:
        self.engine = engine
        self.report = report
        self.on_batch = on_batch
        self.on_progress = on_progress
        self.links = room_links()
        self.started = time.perf_counter()

    def begin(self) -> None:
        """Make the import's row, so that a killed import is seen as one that never ended."""
        values: dict[str, Any] = {"source": self.report.source, "asked": self.report.asked, "started": now()}
        counts = dict.fromkeys(("got", "new", "changed", "unchanged", "rejected"), 0)
        with self.engine.begin() as connection:
            made = connection.execute(insert(ImportRow).values(**values, **counts).returning(ImportRow.id))
            self.report.number = made.scalar_one()

    def run(self, records: Iterable[PaperRecord | BadRecord], batch_size: int) -> None:
        """Write the records in batches; when the source breaks, the batch it broke in is written first."""
        batch: list[PaperRecord | BadRecord] = []
        try:
            for record in records:
                batch.append(record)
                if len(batch) >= batch_size or self._hopeless(batch):
                    self._write(batch)
                    batch = []
                    if self._hopeless(batch):
                        return
        except UserError:
            self._write(batch)
            raise
        self._write(batch)

    def _hopeless(self, batch: Sequence[PaperRecord | BadRecord]) -> bool:
        if self.report.got != self.report.rejected_count:
            return False
        if self.report.rejected_count + len(batch) < HOPELESS:
            return False
        return all(isinstance(record, BadRecord) for record in batch)

    def _write(self, batch: Sequence[PaperRecord | BadRecord]) -> None:
        if not batch:
            return
        report = self.report
        bad = [record for record in batch if isinstance(record, BadRecord)]
        good = [record for record in batch if isinstance(record, PaperRecord)]
        with self.engine.begin() as connection:
            written = CatalogueWriter(connection, report.source, self.links).write(good)
            bad = sorted([*bad, *written.rejected], key=lambda record: record.line or 0)
            kept = bad[: max(0, KEPT_REJECTIONS - len(report.rejected))]
            self._keep(connection, kept)
            counts = {
                "got": report.got + len(batch),
                "new": report.new + written.new,
                "changed": report.changed + written.changed,
                "unchanged": report.unchanged + written.unchanged,
                "rejected": report.rejected_count + len(bad),
            }
            connection.execute(update(ImportRow).where(ImportRow.id == report.number).values(**counts))
        # Only now: the report says what is committed.
        report.got, report.new, report.changed = counts["got"], counts["new"], counts["changed"]
        report.unchanged, report.rejected_count = counts["unchanged"], counts["rejected"]
        report.rejected += kept
        report.seconds = time.perf_counter() - self.started
        if self.on_batch is not None and written.numbers:
            self.on_batch(written.numbers)
        if self.on_progress is not None:
            self.on_progress(report)

    def _keep(self, connection: Connection, bad: Sequence[BadRecord]) -> None:
        if not bad:
            return
        rows = [
            {
                "import_id": self.report.number,
                "position": len(self.report.rejected) + position,
                "line": record.line,
                "reason": record.reason,
            }
            for position, record in enumerate(bad)
        ]
        connection.execute(insert(ImportRejectionRow), rows)

    def end(self, error: str | None) -> None:
        """Record how the import ended."""
        self.report.error = error
        self.report.seconds = time.perf_counter() - self.started
        values = {"finished": now(), "error": error}
        # A database that broke during the import breaks here again; the first message is the one to show.
        with suppress(DBAPIError) if error else nullcontext(), self.engine.begin() as connection:
            connection.execute(update(ImportRow).where(ImportRow.id == self.report.number).values(**values))


@contextmanager
def searchable(
    settings: Settings, engine: Engine, complain: Callable[[str], None]
) -> Iterator[Callable[[object], None] | None]:
    """Let the search index take papers in beside an import; a damaged index does not undo an import.

    Args:
        settings: name the index.
        engine: the database.
        complain: told in a sentence when the index cannot take papers in.

    Yields:
        What `import_papers` wants as `on_batch`; None without a usable index.
    """
    from working_papers.daily.search import IndexDamaged, SearchIndex

    with ExitStack() as stack:
        try:
            index = stack.enter_context(closing(SearchIndex.open(settings)))
            follow = stack.enter_context(index.following(engine))
        except IndexDamaged as error:
            complain(f"the papers are imported, but cannot be searched yet: {error}")
            yield None
            return

        def take_in(_: object = None) -> None:
            follow()

        try:
            yield take_in
        finally:
            take_in()  # also what an earlier import, killed in between, has left behind
