"""`serve`: the site."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from working_papers.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from working_papers.config import Settings

CATCH_UP_AT_ONCE = 2_000
"""Papers that are made searchable before the site listens; more than that is left to the background process."""

MAIL_SECONDS = 15.0
"""How often the queue of e-mails is looked at."""

WORKER_SECONDS = 20.0
"""How long the worker may take to put its run back into the queue."""

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
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    background = start_background(settings)
    with _worker(settings), _schedule(settings):
        try:
            Server(config).run([listener])
        finally:
            if background.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    background.stdin.close()  # the process ends when its input does


@contextlib.contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    """A process that runs queued studies beside the site, if the settings want one."""
    if not settings.worker:
        yield
        return
    import subprocess

    command = [sys.executable, "-m", "working_papers.cli", "worker", "--while-open"]
    # In a session of its own, so that Ctrl-C reaches the site, which then lets its worker end.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the worker ends when its input does, also when the site is killed
        try:
            process.wait(WORKER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _schedule(settings: Settings) -> Iterator[None]:
    """What happens by itself while the site serves: ingest, digest, e-mails that wait."""
    from working_papers.daily.digest.issues import queue_issue
    from working_papers.daily.digest.subscriptions import FREQUENCIES
    from working_papers.daily.ingest import check_settings, ingest
    from working_papers.daily.mail.sending import send_due
    from working_papers.daily.schedule import Daily, Scheduler
    from working_papers.database import opened_database

    def digest_of(frequency: str) -> Daily:
        return Daily(settings.digest_hour, lambda stop: queue_issue(engine, settings, frequency, stop=stop))

    with opened_database(settings) as engine:
        daily = {f"{frequency} digest": digest_of(frequency) for frequency in FREQUENCIES}
        if check_settings(settings):
            daily["ingest"] = Daily(settings.ingest_hour, lambda stop: ingest(engine, settings, stop=stop))
        mails = (MAIL_SECONDS, lambda stop: send_due(engine, settings, stop=stop))
        scheduler = Scheduler(engine, daily, {"e-mails": mails})
        scheduler.start()
        try:
            yield
        finally:
            scheduler.stop()


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
