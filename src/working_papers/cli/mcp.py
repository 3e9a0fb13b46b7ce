"""`mcp`: the site for assistants."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from working_papers.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from working_papers.web.site import Site


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(mcp)


def mcp(
    http: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve HTTP on this port of this machine, at /mcp."),
    ] = None,
) -> None:
    """Let assistants search, read and run papers (Model Context Protocol)."""
    try:
        from working_papers.web.mcp import mcp_server
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise UserError("assistants need the package mcp; run: pip install 'working-papers[mcp]'") from error
    with _site() as site:
        server = mcp_server(site, os.environ.get("WORKING_PAPERS_TOKEN", ""))
        if http is None:
            server.run("stdio")
        else:
            server.run("streamable-http", host="127.0.0.1", port=http, stateless_http=True)


@contextlib.contextmanager
def _site() -> Iterator[Site]:
    from working_papers.bench.rooms import rooms
    from working_papers.cli.logs import configure_logs
    from working_papers.config import load_settings
    from working_papers.daily.catalogue import sync_rooms
    from working_papers.database import open_database
    from working_papers.web.site import Site
    from working_papers.web.verdicts import Rooms

    settings = load_settings()
    configure_logs(settings)  # to standard error: standard output is the assistant's
    engine = open_database(settings)
    sync_rooms(engine)
    site = Site(settings, engine, Rooms(rooms()))
    try:
        yield site
    finally:
        site.close()
