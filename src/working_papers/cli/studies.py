"""`run`, `verdicts`, `show`, `list`: studies and what they found."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from working_papers.errors import UsageError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from working_papers.bench.record import Record
    from working_papers.bench.rooms import Room
    from working_papers.bench.runner import Progress, Result

COLORS = {"holds": "green", "does not hold": "red", "inconclusive": "yellow"}

Slugs = Annotated[list[str], typer.Argument(help="Rooms, as `working-papers list` names them.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(verdicts)
    app.command()(show)
    app.command("list")(list_rooms)


def run(
    slugs: Slugs,
    scale: Annotated[
        str, typer.Option(help="smoke (seconds), laptop (the verdict) or paper (the paper's own size).")
    ] = "laptop",
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the study's own by default.")] = None,
    sham: Annotated[
        bool,
        typer.Option("--sham", help="Put a stand-in in the method's place; the study must not say holds."),
    ] = False,
    on: Annotated[
        str, typer.Option(help="Where: 'here', 'ray' (a local Ray cluster) or a cluster's address.")
    ] = "here",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; the number of processors by default.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every trial again, even those that are stored.")] = False,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Ship the verdict with the room: write its reference.json and figure.svg."),
    ] = False,
    share: Annotated[
        str | None,
        typer.Option(help="Send the verdict to this site, as a replication; the token is in WORKING_PAPERS_TOKEN."),
    ] = None,
) -> None:
    """Run studies and print their verdicts. Finished trials are kept, so a stopped run goes on where it was."""
    from working_papers.bench.pools import LocalPool, RayPool
    from working_papers.bench.rooms import get_room
    from working_papers.bench.runner import Conductor, write_reference
    from working_papers.bench.store import Store
    from working_papers.bench.study import Scale
    from working_papers.cli.sharing import Destination
    from working_papers.config import load_settings
    from working_papers.database import opened_database

    if scale not in set(Scale):
        raise UsageError(f"there is no scale {scale!r}; the scales are {', '.join(Scale)}")
    if reference and (sham or scale != Scale.LAPTOP or seeds is not None):
        raise UsageError("--reference goes with the laptop scale, the study's own seeds and no --sham")
    if share is not None and sham:
        raise UsageError("a sham control is no replication: leave out --sham or --share")
    destination = Destination.of(share) if share is not None else None
    chosen = [get_room(slug) for slug in slugs]
    waiting = next((room.slug for room in chosen if not room.runs), None)
    if waiting is not None:
        raise UsageError(f"{waiting} has no study yet; `working-papers list` shows which rooms run")
    with _leaving_at_once():
        for room in chosen:
            with suppress(UserError):  # told when its turn comes, so that the other rooms run
                room.load_study()
    settings = load_settings()
    pool = LocalPool(settings.cache_folder / "prepared", jobs) if on == "here" else RayPool(on, jobs)
    could_not_run = False
    with opened_database(settings) as engine:
        store = Store(engine)
        for room in chosen:
            conductor = Conductor(
                room=room,
                scale=Scale(scale),
                store=store,
                pool=pool,
                figures=settings.figures_folder,
                seeds=seeds,
                sham=sham,
                fresh=fresh,
            )
            try:
                with _progress(room) as watch:
                    conductor.watch = watch
                    result = conductor.run(with_sham=reference)
                _print_result(room, result)
                if result.record is None:
                    could_not_run = True
                else:
                    if reference:
                        sys.stdout.write(f"written: {write_reference(room, result)}\n")
                    if destination is not None:
                        sys.stdout.write(f"{destination.send(result.record)}\n")
            except KeyboardInterrupt:
                raise SystemExit(_stopped(conductor)) from None
            except UserError as error:  # the rooms that follow can run all the same
                sys.stderr.write(f"working-papers: {error}\n")
                could_not_run = True
    raise typer.Exit(1 if could_not_run else 0)


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """While libraries are imported, Ctrl-C ends the process itself: an exception raised in C++ code would abort it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        os.write(2, b"\nstopped; nothing has run yet\n")
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(conductor: Any) -> int:
    kept = sum(not outcome.failed for outcome in conductor.outcomes.values())
    sys.stderr.write(f"\nstopped; {kept} finished trials are kept, the same command goes on from there\n")
    return 130


@contextmanager
def _progress(room: Room) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; a line a stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(progress: Progress) -> None:
            if progress.stage not in seen:
                seen.add(progress.stage)
                stored = f", {progress.stored} of them stored" if progress.stored else ""
                console.print(f"{room.slug}: {progress.stage}, {progress.total} trials{stored}", highlight=False)

        yield line
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[now]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(f"{room.slug}: {progress.stage}", total=progress.total, now="")
            now = ", ".join(f"{arm} {seed} {part:.0%}" for (arm, seed), part in sorted(progress.running.items()))
            part_done = progress.done + sum(progress.running.values())
            bar.update(tasks[progress.stage], completed=round(part_done, 2), now=now)

        yield draw


def _print_result(room: Room, result: Result) -> None:
    from rich.console import Console

    console = Console()
    if result.record is None:
        console.print(f"\n[bold]{room.paper.title}[/]\n[bold]could not run[/]: {len(result.failures)} trials failed")
        for failure in result.failures[:3]:
            last = failure.error.strip().splitlines()[-1]
            console.print(
                f"  {failure.arm}, seed {failure.seed} ({failure.phase}): {last}",
                markup=False,
                highlight=False,
            )
        console.print("[dim]`working-papers show " + room.slug + "` prints the whole log.[/]")
        return
    print_record(console, room, result.record)
    if result.figure is not None:
        console.print(f"[dim]figure: {result.figure}[/]", highlight=False, soft_wrap=True)


def print_record(console: Any, room: Room, record: Record) -> None:
    """Print a verdict: the sentence, the checks, the arms with spread, the cost."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from working_papers.bench.report import cost_rows, measure_rows

    color = COLORS[record.answer]
    console.print()
    console.print(f"[bold]{escape(room.paper.title)}[/]", highlight=False)
    console.print(f"{escape(record.question)}", highlight=False)
    console.print()
    sham = " [bold](sham control: the method is a stand-in)[/]" if record.sham_run else ""
    console.print(f"[bold {color}]{record.answer.upper()}[/]  {escape(record.summary)}{sham}", highlight=False)
    checks = Table.grid(padding=(0, 1))
    for check in record.checks:
        mark = {"holds": "[green]✓[/]", "does not hold": "[red]✗[/]", "inconclusive": "[yellow]?[/]"}[check.answer]
        checks.add_row(f" {mark}", escape(check.sentence))
    console.print(checks, highlight=False)
    console.print()
    groups = (measure_rows(record), cost_rows(record))
    labels = [arm.label for arm in record.arms.values()]
    widths = [max(len(cell) for cell in column) for column in zip(labels, *(row[1] for row in groups[0]), strict=True)]
    names = min(24, max(len(name) for group in groups for name, _ in group))  # a longer name takes two lines
    fits = names + sum(width + 3 for width in widths) <= console.width
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=fits)
    table.add_column("", min_width=names)
    for label in labels if fits else ("",):
        table.add_column(label, justify="right", no_wrap=True)
    for group, style in zip(groups, (None, "dim"), strict=True):
        for name, cells in group:
            if fits:
                table.add_row(name, *cells, style=style)
                continue
            table.add_row(f"[bold]{escape(name)}[/]", style=style)
            for label, cell in zip(labels, cells, strict=True):
                if cell:
                    table.add_row(f"  {escape(label)}", cell, style=style)
        table.add_section()
    console.print(table)
    seconds = f"{record.seconds:.0f} s" if record.seconds >= 10 else f"{record.seconds:.1f} s"
    console.print(
        f"[dim]{record.scale} scale, {record.seeds} seeds, mean ± standard deviation. {escape(record.budget)} "
        f"This run took {seconds} on {record.machine['processors']} processors.[/]",
        highlight=False,
    )
    if record.scale == "smoke":
        console.print("[dim]Smoke scale proves that the study runs; the verdict that counts is at laptop scale.[/]")
    if record.sham is not None:
        console.print(
            f"[dim]Sham control, with a stand-in for the method: {record.sham.answer} (it must not hold).[/]",
            highlight=False,
        )


def list_rooms(as_json: JsonFlag = False) -> None:
    """List all rooms: the papers, which of them run, and their verdicts."""
    from working_papers.bench.rooms import room_problems, rooms

    rows: list[dict[str, Any]] = []
    problems = list(room_problems())
    for room in rooms().values():
        try:
            record, _ = room.reference, room.paper
        except UserError as error:
            problems.append(str(error))
            continue
        rows.append(
            {
                "slug": room.slug,
                "title": room.paper.title,
                "arxiv": room.paper.arxiv,
                "topics": list(room.paper.topics),
                "runs": room.runs,
                "verdict": record.answer if record else None,
            }
        )
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        _complain(problems)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("room", no_wrap=True, width=max(len(row["slug"]) for row in rows))
    table.add_column("verdict", no_wrap=True, width=len("does not hold"))
    table.add_column("paper", overflow="ellipsis", no_wrap=True, ratio=1)
    rows.sort(key=lambda row: (not row["runs"], row["slug"]))
    for row in rows:
        verdict = row["verdict"]
        shown = f"[{COLORS[verdict]}]{verdict}[/]" if verdict else "no verdict" if row["runs"] else "[dim]–[/]"
        table.add_row(row["slug"], shown, row["title"])
    Console().print(table)
    running = sum(row["runs"] for row in rows)
    Console().print(
        f"{len(rows)} papers; {running} run, the others are described and not yet running.", highlight=False
    )
    _complain(problems)


def _complain(problems: list[str]) -> None:
    """What is wrong with some rooms, after the others have been shown."""
    for problem in problems:
        sys.stderr.write(f"working-papers: {problem}\n")
    if problems:
        raise typer.Exit(1)


def verdicts(
    as_json: JsonFlag = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Print the reference verdicts of all rooms that run."""
    from working_papers.bench.code_hash import code_hash
    from working_papers.bench.rooms import rooms

    found = [(room, room.reference) for room in rooms().values() if room.reference is not None]
    if as_json:
        rows = [
            record.model_dump(mode="json") | {"stale": record.stale(code_hash(room))}
            for room, record in found
            if record
        ]
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return
    if markdown:
        sys.stdout.write(verdict_table())
        return
    from rich.console import Console

    console = Console()
    if not found:
        console.print("No room has a reference verdict yet.")
    for room, record in found:
        assert record is not None
        stale = record.stale(code_hash(room))
        note = f" [yellow](stale: {stale})[/]" if stale else ""
        console.print(
            f"[bold {COLORS[record.answer]}]{record.answer:14}[/] [bold]{room.slug}[/]{note}", highlight=False
        )
        console.print(f"{'':15}{record.question}", highlight=False)


def verdict_table() -> str:
    """The table of rooms with their verdicts, as it stands in the README."""
    from working_papers.bench.rooms import rooms

    lines = ["| room | paper | verdict | what was found | time on 2 cores |", "| --- | --- | --- | --- | --- |"]
    waiting = []
    for room in rooms().values():
        record = room.reference
        if record is None:
            waiting.append(room.slug)
            continue
        link = (
            f"[{room.paper.title}](https://arxiv.org/abs/{room.paper.arxiv})" if room.paper.arxiv else room.paper.title
        )
        decisive = next((check for check in record.checks if check.answer == record.answer), record.checks[0])
        held = sum(check.answer == "holds" for check in record.checks)
        found = f"{decisive.sentence} {held} of {len(record.checks)} checks hold."
        minutes = f"{record.seconds / 60:.1f} min"
        lines.append(f"| `{room.slug}` | {link} | **{record.answer}** | {found} | {minutes} |")
    text = "\n".join(lines) + "\n"
    if waiting:
        text += f"\nNot yet running ({len(waiting)}): {', '.join(f'`{slug}`' for slug in waiting)}.\n"
    return text


def show(slug: Annotated[str, typer.Argument(help="A room.")], as_json: JsonFlag = False) -> None:
    """Show a room: the paper, its claims, its reference verdict and the runs of this installation."""
    from working_papers.bench.rooms import get_room

    room = get_room(slug)
    record = room.reference
    if as_json:
        data = {
            "slug": room.slug,
            "runs": room.runs,
            "paper": room.paper.model_dump(mode="json"),
            "reference": record.model_dump(mode="json") if record else None,
        }
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    paper = room.paper
    console.print(f"\n[bold]{escape(paper.title)}[/]", highlight=False)
    where = f"arXiv {paper.arxiv}, " if paper.arxiv else ""
    venue = f", {paper.venue}" if paper.venue else ""
    console.print(f"[dim]{where}{paper.first_date}, {paper.authors_count} authors{venue}[/]\n", highlight=False)
    console.print(escape(paper.summary), highlight=False)
    console.print("\n[bold]Claims[/]")
    for claim in paper.claims:
        console.print(f"  [bold]{claim.id}[/]  {escape(claim.statement)}", highlight=False)
    if not room.runs:
        console.print("\n[dim]Not yet running: this room has no method and no study so far.[/]")
        return
    console.print(f"\n[dim]import:[/] from {room.module} import …", highlight=False)
    if record is not None:
        print_record(console, room, record)
        from working_papers.bench.code_hash import code_hash

        stale = record.stale(code_hash(room))
        if stale:
            console.print(f"[yellow]Stale: {escape(stale)}.[/]")
    _print_runs(console, room)


def _print_runs(console: Any, room: Room) -> None:
    from rich.markup import escape

    from working_papers.bench.store import Store
    from working_papers.config import load_settings
    from working_papers.database import opened_database

    with opened_database(load_settings()) as engine:
        runs = Store(engine).latest_runs(room.slug)
    if not runs:
        return
    console.print("\n[bold]Runs of this installation[/]")
    for item in runs:
        answer = item.record["answer"] if item.record else "could not run" if item.status == "failed" else item.status
        sham = ", sham" if item.sham else ""
        console.print(f"  {item.id:4}  {item.started:%Y-%m-%d %H:%M}  {item.scale}{sham}  {answer}", highlight=False)
    if runs[0].status == "failed" and runs[0].error:
        console.print(f"\n[bold]Log of run {runs[0].id}[/]\n{escape(runs[0].error)}", highlight=False)
