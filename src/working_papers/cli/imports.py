"""`import`: papers from files and services into the catalogue."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from working_papers.errors import UsageError, UserError

if TYPE_CHECKING:
    from working_papers.config import Settings
    from working_papers.daily.importing import ImportReport
    from working_papers.daily.records import BadRecord, PaperRecord

SHOWN_REJECTIONS = 10

File = Annotated[Path, typer.Argument(help="The file.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Bring papers into the catalogue; the same again changes nothing.", no_args_is_help=True)
    group.command()(page)
    group.command()(jsonl)
    group.command()(bibtex)
    group.command()(arxiv)
    group.command()(hf)
    app.add_typer(group, name="import")


def page(
    file: File,
    year: Annotated[
        int | None,
        typer.Option(
            min=1991,
            max=9999,
            help="Year of the dates without one; by default the year after the newest that is written out.",
        ),
    ] = None,
) -> None:
    """The text of a saved daily-papers page (in the browser: select all, copy, save)."""
    from working_papers.daily.sources.page_text import read_page

    _import("page", str(file), lambda _: read_page(file, year=year))


def jsonl(
    file: Annotated[Path, typer.Argument(help="The file, plain, .gz or .bz2; - for standard input.")],
) -> None:
    """arXiv's metadata snapshot: JSON lines."""
    from working_papers.daily.sources.jsonl import read_jsonl

    _import("jsonl", "standard input" if str(file) == "-" else str(file), lambda _: read_jsonl(file))


def bibtex(file: File) -> None:
    """The entries of a BibTeX file."""
    from working_papers.daily.sources.bibtex import read_bibtex

    _import("bibtex", str(file), lambda _: read_bibtex(file))


def arxiv(
    category: Annotated[list[str] | None, typer.Option(help="Such as cs.LG; may be given several times.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="First day of submission, 2025-10-07.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day of submission, 2025-10-07.")] = None,
    id: Annotated[list[str] | None, typer.Option(help="An arXiv id; may be given several times.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many papers.")] = None,
) -> None:
    """Papers from arXiv, by category and dates or by ids; a request every three seconds, as arXiv asks."""
    from working_papers.daily.sources.arxiv import read_arxiv

    since, until = _day(first, "--from"), _day(last, "--to")
    asked = ", ".join(
        [
            *(category or ()),
            *(id or ()),
            *([f"from {since}"] if since else ()),
            *([f"to {until}"] if until else ()),
            *([f"at most {limit}"] if limit else ()),
        ]
    )

    def records(settings: Settings) -> Iterable[PaperRecord | BadRecord]:
        return read_arxiv(
            settings.arxiv_url, categories=category or (), ids=id or (), first=since, last=until, limit=limit
        )

    _import("arxiv", asked or "nothing", records)


def hf(
    date: Annotated[str | None, typer.Option(help="The day, 2025-10-07; by default the newest papers.")] = None,
) -> None:
    """The daily papers of the Hugging Face Hub; your token is not sent."""
    from working_papers.daily.sources.huggingface import read_huggingface

    day = _day(date, "--date")
    _import("hf", str(day) if day else "newest", lambda settings: read_huggingface(settings.hf_endpoint, day))


def _day(text: str | None, option: str) -> dt.date | None:
    if text is None:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option}: expected a day such as 2025-10-07, got {text!r}") from error


def _import(source: str, asked: str, records: Callable[[Settings], Iterable[PaperRecord | BadRecord]]) -> None:
    """Import, let the search index take the papers up, and tell what happened."""
    from working_papers.config import load_settings
    from working_papers.daily.importing import import_papers, searchable
    from working_papers.database import opened_database

    settings = load_settings()
    try:
        stream = records(settings)
    except UsageError:
        raise  # the command was wrong: nothing was asked of the source, so there is no import to record
    except UserError as error:
        stream = map(_fail, [error])
    with opened_database(settings) as engine, _progress() as show, searchable(settings, engine, _complain) as follow:
        report = import_papers(engine, source, asked, stream, on_batch=follow, on_progress=show)
    sys.stdout.write(f"{report}\n")
    for bad in report.rejected[:SHOWN_REJECTIONS]:
        sys.stdout.write(f"  {bad}\n")
    if report.rejected_count > SHOWN_REJECTIONS:
        sys.stdout.write(f"  and {report.rejected_count - SHOWN_REJECTIONS:,} more; the status page lists them\n")


def _complain(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _fail(error: UserError) -> PaperRecord:
    """A source that fails at once fails within the import, so that the import's row tells of it."""
    raise error


@contextmanager
def _progress() -> Iterator[Callable[[ImportReport], None] | None]:
    """A line that counts, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading")

        def show(report: ImportReport) -> None:
            speed = report.got / report.seconds if report.seconds else 0.0
            bar.update(task, description=f"{report.got:,} papers, {report.new:,} new, {speed:,.0f} a second")

        yield show
