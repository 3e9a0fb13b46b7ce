"""The one database: engine, base class of all tables, migrations; what differs between SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, DateTime, Dialect, Engine, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase

from working_papers.config import Settings
from working_papers.errors import UserError

BUSY_SECONDS = 30
"""How long a writer waits for another one before SQLite gives up."""


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A moment in UTC, aware on both databases (SQLite forgets the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Refuse a moment without a zone, store the rest in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the moment {value} has no time zone")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own spelling
        dt.datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
    }


def now() -> dt.datetime:
    """The present moment in UTC."""
    return dt.datetime.now(dt.UTC)


def open_database(settings: Settings) -> Engine:
    """Open the database, creating or migrating it as needed.

    Raises:
        UserError: it cannot be opened, is not a database, or was made by a newer version.
    """
    settings.make_home()
    try:
        url = make_url(settings.database_url)
    except ArgumentError as error:
        raise UserError(
            f"WORKING_PAPERS_DATABASE is not a database address: {settings.database_url!r}; "
            "expected e.g. 'sqlite:////folder/file.db' or 'postgresql+psycopg://user@host/name'"
        ) from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(
            f"WORKING_PAPERS_DATABASE names a database of the kind {url.get_backend_name()!r}; "
            "expected sqlite:////folder/file.db or postgresql+psycopg://user@host/name"
        )
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    else:
        try:
            engine = create_engine(url, pool_pre_ping=True)
        except ImportError as error:
            raise UserError(
                f"PostgreSQL needs the package {error.name}, which is not installed; "
                "run: pip install 'working-papers[postgres]', and begin the address with postgresql+psycopg://"
            ) from error
    try:
        _migrate(engine)
    except (OperationalError, DatabaseError) as error:
        engine.dispose()
        where = url.render_as_string(hide_password=True)
        if url.get_backend_name() != "sqlite":
            remedy = "check that the server runs and the address is right"
        elif "unable to open" in reason(error):
            remedy = "check that its folder is there and may be written"
        else:
            remedy = f"move {Path(url.database or '').name} away to start afresh"
        raise UserError(f"the database {where} cannot be used ({reason(error)}); {remedy}") from error
    except UserError:
        engine.dispose()
        raise
    return engine


@contextmanager
def opened_database(settings: Settings) -> Iterator[Engine]:
    """The database for as long as a command needs it; its connections are closed at the end.

    Raises:
        UserError: as `open_database`.
    """
    engine = open_database(settings)
    try:
        yield engine
    finally:
        engine.dispose()


def reason(error: DBAPIError) -> str:
    """What the database itself says, on one line (PostgreSQL shows the statement on more)."""
    return (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]


def reading(engine: Engine) -> Connection:
    """A connection for reading only: it never waits for a writer, nor makes one wait."""
    return engine.connect().execution_options(read_only=True)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event below opens transactions
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # A reader that later writes would otherwise fail at once instead of waiting for its turn.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    """Bring the tables to the newest revision; costs one query when they are."""
    from working_papers.migrations import HEAD, upgrade

    with engine.connect().execution_options(read_only=True) as connection:
        try:
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DatabaseError as error:
            if "alembic_version" not in str(error):
                raise
            current = None
    if current != HEAD:
        upgrade(engine)
