"""`ingest`: what the settings name, fetched now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.daily.importing import ImportReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(ingest)


def ingest() -> None:
    """Fetch what changed in the sources that the settings name; `serve` does so every day by itself."""
    from working_papers.config import load_settings
    from working_papers.daily.ingest import check_settings
    from working_papers.daily.ingest import ingest as fetch
    from working_papers.database import opened_database

    settings = load_settings()
    if not check_settings(settings):
        raise UserError(
            "the settings name no source; set WORKING_PAPERS_INGEST_ARXIV (e.g. 'cs.LG,stat.ML') "
            "or WORKING_PAPERS_INGEST_HF"
        )

    def tell(report: ImportReport) -> None:
        sys.stdout.write(f"{report.source} {report.asked}: {report}\n")

    with opened_database(settings) as engine:
        fetch(engine, settings, tell=tell)
