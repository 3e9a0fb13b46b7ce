"""`backup` and `restore`: an installation on SQLite in one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(backup)
    app.command()(restore)


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write, e.g. working-papers.tar.gz.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an older file of that name.")] = False,
) -> None:
    """Write database, figures and outbox to one file; the site may go on serving."""
    from working_papers.config import load_settings
    from working_papers.daily.backup import backup as write

    made = write(load_settings(), file, replace=replace)
    sys.stdout.write(f"{file}: {made}\n")


def restore(
    file: Annotated[Path, typer.Argument(help="A file that backup wrote.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the database that is there.")] = False,
) -> None:
    """Put a backup in place of the home folder's database, figures and outbox; stop the site first."""
    from working_papers.config import load_settings
    from working_papers.daily.backup import restore as read

    settings = load_settings()
    made = read(settings, file, replace=replace)
    sys.stdout.write(f"restored to {settings.home}: {made}\n")
    sys.stdout.write("the search index is made again when the site starts\n")
