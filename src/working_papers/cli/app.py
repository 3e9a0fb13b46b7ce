"""The commands, put together."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import typer

app = typer.Typer(
    name="working-papers",
    help="A daily-papers service in which the papers run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

GROUPS = ("studies", "authoring", "serve", "worker", "imports", "ingest", "search", "admin", "digest", "backup", "mcp")

for group in GROUPS:
    if find_spec(f"working_papers.cli.{group}") is not None:
        import_module(f"working_papers.cli.{group}").register(app)
