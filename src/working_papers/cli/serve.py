"""`serve`: the site."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from working_papers.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from working_papers.config import Settings

CATCH_UP_AT_ONCE = 2_000
"""Papers that are made searchable before the site listens; more than that is left to the background process."""

GRACE_SECONDS = 5
"""How long requests in flight may take when the site is stopped."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 8000 by default, 0 takes a free one.")
    ] = None,
) -> None:
    """Serve the site: papers, verdicts and search, on this machine unless --host says otherwise."""
    from working_papers.config import load_settings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = load_settings().model_copy(update=given)
    with contextlib.closing(_listen(settings.host, settings.port)) as listener:
        _run(settings, listener)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port, before anything that costs time.

    Raises:
        UserError: the port is in use or not ours to take, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"{host!r} is not an address of this machine; name another with --host") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # fails here, too, when another process has the port
    except OSError as error:
        listener.close()
        import errno

        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use; stop what listens there, or name another with --port"
        elif error.errno == errno.EACCES:
            message = f"port {port} may not be taken ({error.strerror}); name one above 1023 with --port"
        else:
            message = f"{host} port {port} cannot be listened on ({error.strerror}); name others with --host and --port"
        raise UserError(message) from error
    return listener


def _run(settings: Settings, listener: socket.socket) -> None:
    """Bring the catalogue and the index up to date, then serve until stopped."""
    from working_papers.cli.logs import configure_logs
    from working_papers.daily.catalogue import sync_rooms
    from working_papers.daily.search import start_background
    from working_papers.database import open_database

    configure_logs(settings)
    engine = open_database(settings)
    sync_rooms(engine)
    _catch_up(settings, engine)
    engine.dispose()

    import uvicorn

    from working_papers.web.app import create_app

    host, port = listener.getsockname()[:2]
    shown = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                sys.stdout.write(f"{settings.site_name} is on {shown} (Ctrl+C stops it)\n")
                sys.stdout.flush()

    config = uvicorn.Config(
        create_app(settings),
        log_config=None,  # its lines go the way of all others
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    background = start_background(settings)
    try:
        Server(config).run([listener])
    finally:
        if background.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                background.stdin.close()  # the process ends when its input does


def _catch_up(settings: Settings, engine: Engine) -> None:
    """Make what is new searchable, if that is quick; a damaged index is said once and the site does without."""
    from working_papers.daily.catalogue import last_revision
    from working_papers.daily.search import IndexDamaged, SearchIndex

    try:
        with contextlib.closing(SearchIndex.open(settings)) as index:
            if last_revision(engine) - index.status().indexed_through <= CATCH_UP_AT_ONCE:
                index.catch_up(engine)
    except IndexDamaged as error:
        sys.stderr.write(f"working-papers: {error}\n")
