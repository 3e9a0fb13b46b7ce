"""`search` and `index`: finding papers, and the index that finds them."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from working_papers.errors import UsageError

if TYPE_CHECKING:
    from working_papers.daily.search import Progress

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(search)
    index = typer.Typer(help="The search index of this machine.", no_args_is_help=True)
    index.command()(rebuild)
    index.command()(embed)
    index.command()(status)
    app.add_typer(index, name="index")


def _day(text: str | None, option: str) -> dt.date | None:
    if text is None:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option}: expected a day like 2026-01-31, got {text!r}") from error


def search(
    query: Annotated[list[str], typer.Argument(help='Words, "a phrase", author:name, an id or a title.')],
    limit: Annotated[int, typer.Option(min=1, max=400, help="Most papers.")] = 10,
    topic: Annotated[
        list[str] | None, typer.Option(help="One of these categories or topics, e.g. cs.LG or cs.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="First day, e.g. 2026-01-31.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Find papers by words and by meaning."""
    days = (_day(first, "--from"), _day(last, "--to"))
    if days[0] is not None and days[1] is not None and days[0] > days[1]:
        raise UsageError(f"--from {days[0]} is later than --to {days[1]}")
    from contextlib import closing

    from rich.console import Console
    from rich.text import Text

    from working_papers.config import load_settings
    from working_papers.daily.search import SearchIndex
    from working_papers.daily.search.catalogue import by_numbers
    from working_papers.database import opened_database

    settings = load_settings()
    with opened_database(settings) as engine, closing(SearchIndex.open(settings)) as index:
        index.catch_up(engine)
        text = " ".join(query)
        result = index.search(text, limit=limit, days=days, categories=topic)
        papers = {row.number: row for row in by_numbers(engine, [hit.number for hit in result.hits])}
        found = [(hit, papers[hit.number]) for hit in result.hits if hit.number in papers]
        if as_json:
            hits = [
                {
                    "id": row.id,
                    "title": row.title,
                    "authors": list(row.authors),
                    "day": row.day.isoformat(),
                    "categories": list(row.categories),
                    "score": round(hit.score, 4),
                    "why": hit.why,
                }
                for hit, row in found
            ]
            summary = {"total": result.total, "mode": result.mode, "seconds": round(result.seconds, 4), "hits": hits}
            sys.stdout.write(json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
            return
        console = Console(highlight=False)
        state = index.status()
        if not found:
            if state.papers == 0:
                console.print("no papers yet; bring some in with `working-papers import`")
            else:
                console.print(Text(f"nothing found among {state.papers:,} papers"))
        for hit, row in found:
            console.print(
                Text.assemble((row.title, "bold"), f"  {row.id}, {row.day.isoformat()}", (f"  {hit.why}", "dim"))
            )
        if state.problem:
            console.print(Text(f"by words only: {state.problem}", style="yellow"))
        elif state.waiting:
            console.print(
                Text(f"{state.waiting:,} of {state.papers:,} papers are found by words only so far", style="dim")
            )


def rebuild() -> None:
    """Build the index again from the database; vectors of unchanged papers are kept."""
    from working_papers.config import load_settings
    from working_papers.daily.search import rebuild as rebuild_index
    from working_papers.database import opened_database

    settings = load_settings()
    shown = sys.stderr.isatty()

    def progress(count: int) -> None:
        if shown:
            sys.stderr.write(f"\r{count:,} papers")
            sys.stderr.flush()

    with opened_database(settings) as engine:
        count = rebuild_index(engine, settings, progress=progress)
    sys.stderr.write("\r" if shown else "")
    sys.stdout.write(
        f"{count:,} papers indexed in {settings.index_folder}\n" if count else "no papers yet; the index is empty\n"
    )


def embed() -> None:
    """Embed the papers that wait for it, newest first. May be stopped at any time, and goes on where it was."""
    from contextlib import closing

    from working_papers.config import load_settings
    from working_papers.daily.search import SearchIndex, embed_pending
    from working_papers.database import opened_database

    settings = load_settings()
    with opened_database(settings) as engine:
        with closing(SearchIndex.open(settings)) as index:
            index.catch_up(engine)
        done = embed_pending(engine, settings, progress=_printer(sys.stderr.isatty()))
    sys.stdout.write(f"{done:,} papers embedded; none waits\n")


def _printer(same_line: bool) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        rate = progress.done / max(progress.seconds, 1e-9)
        line = f"{progress.done:,} embedded, {progress.waiting:,} waiting, {rate:.0f} a second"
        sys.stderr.write(f"\r{line:<70}" if same_line else line + "\n")
        sys.stderr.flush()

    return show


def status(as_json: JsonFlag = False) -> None:
    """Say how many papers are found by words and by meaning."""
    from contextlib import closing
    from dataclasses import asdict

    from working_papers.config import load_settings
    from working_papers.daily.search import SearchIndex

    settings = load_settings()
    with closing(SearchIndex.open(settings)) as index:
        state = index.status()
    if as_json:
        sys.stdout.write(json.dumps(asdict(state), indent=2) + "\n")
        return
    if not state.papers:
        sys.stdout.write("no papers yet; the index is empty\n")
        return
    sys.stdout.write(
        f"{state.papers:,} papers found by words, {state.embedded:,} by meaning ({state.model}), "
        f"{state.waiting:,} waiting\n"
    )
    if state.problem:
        sys.stdout.write(f"problem: {state.problem}\n")
