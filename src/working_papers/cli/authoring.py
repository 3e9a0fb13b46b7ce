"""`new`: lays out a new room, its test included."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from working_papers.errors import UsageError, UserError

SLUG = re.compile(r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("new")(new)


def new(
    slug: Annotated[str, typer.Argument(help="Name of the room: lower case, words joined by underscores.")],
    folder: Annotated[
        Path | None, typer.Option(help="Where the room goes; by default among the rooms of this checkout.")
    ] = None,
) -> None:
    """Lay out a new room: paper.toml, method, study and test, ready to fill in."""
    from working_papers.bench.rooms import PACKAGE, rooms

    if not SLUG.match(slug):
        raise UsageError(f"{slug!r} is not a name for a room; expected lower case words joined by underscores")
    own = Path(__file__).parent.parent / "papers"
    room = (folder or own) / slug
    existing = rooms().get(slug)
    if existing is not None and existing.runs:
        raise UsageError(f"there is a room named {slug!r} already, in {existing.folder}")
    checkout = own.parents[2]
    tests = checkout / "tests" / "papers" if folder is None and (checkout / "pyproject.toml").exists() else room / "tests"
    module = f"{PACKAGE}.{slug}" if folder is None else slug
    files = {
        room / "paper.toml": "paper.toml",
        room / "__init__.py": "__init__.py.txt",
        room / "method.py": "method.py.txt",
        room / "study.py": "study.py.txt",
        tests / f"test_{slug}.py": "test.py.txt",
    }
    if existing is not None:
        del files[room / "paper.toml"]  # the catalogue has it already
    taken = [path for path in files if path.exists()]
    if taken:
        raise UsageError(f"{taken[0]} exists already; nothing was written")
    layout = Path(__file__).parent / "layout"
    try:
        for path, name in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (layout / name).read_text(encoding="utf-8")
            path.write_text(text.replace("{slug}", slug).replace("{module}", module), encoding="utf-8")
            sys.stdout.write(f"written: {path}\n")
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror})") from error
    sys.stdout.write(f"next: fill in paper.toml, then `working-papers run {slug} --scale smoke`\n")
