"""The daily ingest: what the settings name is fetched, from where the last ingest stopped."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, String, Text, delete, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.config import Settings
from working_papers.daily.importing import ImportFailed, ImportReport, import_papers, searchable
from working_papers.daily.records import BadRecord, PaperRecord
from working_papers.daily.sources.arxiv_oai import DELAY, TokenRefused, category_set, read_pages
from working_papers.daily.sources.huggingface import read_huggingface
from working_papers.database import Base, now, reading
from working_papers.errors import UsageError, UserError

FIRST_DAYS = 3
"""Days that the very first ingest of a source looks back."""

BATCH = 500
"""Records a transaction: what is lost, and fetched again, when an ingest is killed."""

MOST_DAYS = 60
"""Days of Hugging Face daily papers that are caught up with after a long pause."""

logger = logging.getLogger(__name__)


class IngestPlaceRow(Base):
    """How far a source has been fetched."""

    __tablename__ = "ingest_places"

    source: Mapped[str] = mapped_column(String(10), primary_key=True)
    part: Mapped[str] = mapped_column(String(40), primary_key=True, doc="A category; empty where there are no parts.")
    through: Mapped[dt.date] = mapped_column(doc="Day up to which everything has come; fetched again from here.")
    token: Mapped[str | None] = mapped_column(Text, doc="Of a fetch that was broken off: where it goes on.")
    updated: Mapped[dt.datetime]


@dataclass(frozen=True)
class Place:
    """How far a source has been fetched; a day, and within the fetch since that day a token."""

    through: dt.date
    token: str = ""


def read_place(engine: Engine, source: str, part: str = "") -> Place | None:
    """Where the last ingest stopped; None before the first."""
    query = select(IngestPlaceRow.through, IngestPlaceRow.token)
    with reading(engine) as connection:
        row = connection.execute(
            query.where(IngestPlaceRow.source == source, IngestPlaceRow.part == part)
        ).one_or_none()
    return None if row is None else Place(row.through, row.token or "")


def write_place(engine: Engine, source: str, part: str, place: Place) -> None:
    """Remember how far a source has been fetched."""
    with engine.begin() as connection:
        connection.execute(delete(IngestPlaceRow).where(IngestPlaceRow.source == source, IngestPlaceRow.part == part))
        connection.execute(
            insert(IngestPlaceRow).values(
                source=source, part=part, through=place.through, token=place.token or None, updated=now()
            )
        )


def categories_of(settings: Settings) -> list[str]:
    """The arXiv categories that the settings name.

    Raises:
        UsageError: one is not written like a category.
    """
    found = [part.strip() for part in settings.ingest_arxiv.split(",") if part.strip()]
    for category in found:
        category_set(category)
    return list(dict.fromkeys(found))


def ingest(
    engine: Engine,
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    tell: Callable[[ImportReport], None] | None = None,
    delay: float = DELAY,
    today: dt.date | None = None,
) -> list[ImportReport]:
    """Fetch what the settings name, each source from where it stopped. A source that fails leaves the others alone.

    Args:
        engine: the database.
        settings: name the sources and their addresses.
        stop: set to end before the next request; the next ingest goes on from there.
        tell: called with the report of each import as it ends.
        delay: seconds between requests to arXiv.
        today: the present day in UTC.

    Returns:
        The reports of the imports.

    Raises:
        UserError: some source failed; the message names them all, and the status page has the imports.
    """
    stop = stop or threading.Event()
    day = today or now().date()
    reports: list[ImportReport] = []
    problems: list[str] = []

    def complain(sentence: str) -> None:
        logger.error("%s", sentence)

    with searchable(settings, engine, complain) as follow:
        fetcher = _Fetcher(engine, settings, stop, follow, delay, day)
        sources: list[Callable[[], ImportReport]] = [
            lambda category=category: fetcher.arxiv(category)  # type: ignore[misc]
            for category in categories_of(settings)
        ]
        if settings.ingest_hf:
            sources += [lambda each=each: fetcher.huggingface(each) for each in fetcher.huggingface_days()]  # type: ignore[misc]
        for source in sources:
            if stop.is_set():
                break
            try:
                report = source()
            except ImportFailed as error:
                problems.append(str(error))
                report = error.report
            reports.append(report)
            if tell is not None:
                tell(report)
    if problems:
        raise UserError("; ".join(problems))
    return reports


@dataclass
class _Fetcher:
    engine: Engine
    settings: Settings
    stop: threading.Event
    follow: Callable[[object], None] | None
    delay: float
    today: dt.date

    def arxiv(self, category: str) -> ImportReport:
        """What changed in a category since the last time."""
        place = read_place(self.engine, "arxiv", category) or Place(self.today - dt.timedelta(days=FIRST_DAYS))
        try:
            return self._arxiv(category, place)
        except ImportFailed as error:
            if not place.token or not isinstance(error.__cause__, TokenRefused):
                raise
        return self._arxiv(category, Place(place.through))

    def _arxiv(self, category: str, place: Place) -> ImportReport:
        ends: list[tuple[int, str]] = []  # after how many records which page ended, and where the next begins
        answered: list[dt.date] = []
        read = 0

        def records() -> Iterator[PaperRecord | BadRecord]:
            nonlocal read
            pages = read_pages(
                self.settings.arxiv_oai_url,
                category,
                place.through,
                token=place.token,
                delay=self.delay,
                stop=self.stop,
            )
            for page in pages:
                answered.append(page.day)
                read += len(page.records)
                ends.append((read, page.token))
                yield from page.records

        def remember(report: ImportReport) -> None:
            """A page counts once all its records are committed."""
            complete = [token for count, token in ends if count <= report.got]
            if complete and complete[-1]:
                write_place(self.engine, "arxiv", category, Place(place.through, complete[-1]))

        report = import_papers(
            self.engine,
            "arxiv",
            f"{category}, changed since {place.through}" + (" (going on)" if place.token else ""),
            records(),
            on_batch=self.follow,
            on_progress=remember,
            batch_size=BATCH,
        )
        if ends and not ends[-1][1]:
            write_place(self.engine, "arxiv", category, Place(max(place.through, answered[0])))
        elif ends:
            remember(report)
        return report

    def huggingface_days(self) -> list[dt.date]:
        """The feed days to ask for: from the last one on, which may have grown since."""
        place = read_place(self.engine, "hf")
        first = place.through if place else self.today - dt.timedelta(days=FIRST_DAYS)
        first = max(first, self.today - dt.timedelta(days=MOST_DAYS))
        return [first + dt.timedelta(days=days) for days in range((self.today - first).days + 1)]

    def huggingface(self, day: dt.date) -> ImportReport:
        """The daily papers of one day."""
        endpoint = self.settings.hf_endpoint

        def records() -> Iterator[PaperRecord | BadRecord]:
            yield from read_huggingface(endpoint, day)

        report = import_papers(self.engine, "hf", str(day), records(), on_batch=self.follow)
        write_place(self.engine, "hf", "", Place(day))
        return report


def check_settings(settings: Settings) -> bool:
    """Whether there is anything to fetch.

    Raises:
        UsageError: a category is not written like one.
    """
    try:
        return bool(categories_of(settings)) or settings.ingest_hf
    except UsageError as error:
        raise UsageError(f"WORKING_PAPERS_INGEST_ARXIV: {error}") from error
