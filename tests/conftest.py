"""Fixtures for all tests: a home folder, settings and a database of one's own."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from tests.mail_server import mail_server
from working_papers.config import Settings, load_settings
from working_papers.database import open_database

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests that were started in the background ignore Ctrl-C, and the commands they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


__all__ = ["mail_server"]  # fixtures of other files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a database, so that `-m database` runs them on another one."""
    for item in items:
        if "home" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder that the settings name; other settings of the machine do not count.

    With WORKING_PAPERS_TEST_DATABASE (PostgreSQL) the settings name an empty schema of that database, too.
    """
    for name in [name for name in os.environ if name.startswith("WORKING_PAPERS_")]:
        if not name.startswith(("WORKING_PAPERS_TEST_", "WORKING_PAPERS_PAGE")):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(folder))
    server = os.environ.get("WORKING_PAPERS_TEST_DATABASE")
    if not server:
        yield folder
        return
    schema = f"test_{uuid4().hex}"
    administration = create_engine(server, isolation_level="AUTOCOMMIT")
    with administration.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    url = make_url(server).update_query_dict({"options": f"-csearch_path={schema}"})
    monkeypatch.setenv("WORKING_PAPERS_DATABASE", url.render_as_string(hide_password=False))
    yield folder
    with administration.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    administration.dispose()


@pytest.fixture
def sqlite_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder whose database is a SQLite file in it, whatever else is tested: for tests of that file."""
    monkeypatch.delenv("WORKING_PAPERS_DATABASE", raising=False)
    return home


@pytest.fixture
def database_address(home: Path) -> str:
    """The database of one test: SQLite in its home, or its schema in PostgreSQL."""
    return load_settings().database_url


@pytest.fixture
def settings(home: Path, database_address: str) -> Settings:
    """Settings of an installation without anything in it."""
    return load_settings()


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """An open, empty database."""
    opened = open_database(settings)
    yield opened
    opened.dispose()


@dataclass
class LocalServer:
    """Answers that a service gave, given again.

    Attributes:
        answer: from the path with its query to status and body.
        paths: what was asked for, in order.
        headers: the headers of each request, names in lower case.
    """

    address: str
    answer: Callable[[str], tuple[int, bytes]]
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], tuple[int, bytes]]], LocalServer]]:
    """Start a server on this machine: `serve(answer).address`."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[str], tuple[int, bytes]]) -> LocalServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                local.paths.append(self.path)
                local.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body = local.answer(self.path)
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        local = LocalServer(f"http://127.0.0.1:{server.server_port}", answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return local

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def closed_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{reserved.getsockname()[1]}"
