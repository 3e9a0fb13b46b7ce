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
        Path | None,
        typer.Option(help="The import root of your own distribution; by default the rooms of this checkout."),
    ] = None,
) -> None:
    """Lay out a new room: paper.toml, method, study and test, ready to fill in."""
    from working_papers.bench.rooms import ENTRY_POINTS, PACKAGE, rooms

    if not SLUG.match(slug):
        raise UsageError(f"{slug!r} is not a name for a room; expected lower case words joined by underscores")
    own = Path(__file__).parent.parent / "papers"
    room = (folder or own) / slug
    existing = rooms().get(slug)
    if existing is not None and (existing.runs or folder is not None):
        raise UsageError(f"there is a room named {slug!r} already, in {existing.folder}; choose another name")
    checkout = own.parents[2]
    if folder is None and not (checkout / "pyproject.toml").exists():
        raise UsageError("this is an installed package, not a checkout; say with --folder where the room should go")
    # Beside the room, not inside it: what lies in the room is part of its trials' code.
    tests = checkout / "tests" / "papers" if folder is None else folder / "tests"
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
    made: list[Path] = []
    try:
        for path, name in files.items():
            missing = [each for each in path.parents if not each.exists()]
            for each in reversed(missing):
                each.mkdir()
                made.append(each)
            text = (layout / name).read_text(encoding="utf-8")
            made.append(path)
            path.write_text(_filled_in(text, slug, module), encoding="utf-8")
    except OSError as error:
        for path in reversed(made):  # nothing half-written stays behind
            if path.is_dir():
                path.rmdir()
            elif path.exists():
                path.unlink()
        raise UserError(
            f"{error.filename} cannot be written ({error.strerror}); nothing was kept, choose a folder you may write"
        ) from error
    for path in files:
        sys.stdout.write(f"written: {path}\n")
    if folder is not None:
        sys.stdout.write(
            "so that the room is found, put into the pyproject.toml of your distribution and install it:\n"
            f'[project.entry-points."{ENTRY_POINTS}"]\n{slug} = "{module}"\n'
        )
    sys.stdout.write(f"next: `working-papers run {slug} --scale smoke`, then replace the example by the paper\n")


def _filled_in(text: str, slug: str, module: str) -> str:
    """A template with its placeholders replaced.

    Imports are grouped by origin: in the checkout the room belongs with this package, elsewhere it stands apart.
    """
    inside, outside = ("\n", "") if module.startswith("working_papers.") else ("", "\n")
    text = text.replace("{blank inside}\n", inside).replace("{blank outside}\n", outside)
    return text.replace("{slug}", slug).replace("{module}", module)
