"""Backup and restore of an installation on SQLite: one file, made while the site serves."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from working_papers import __version__
from working_papers.database import now, opened_database
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

DATABASE = "working-papers.db"
MANIFEST = "backup.json"
FOLDERS = ("figures", "outbox")
"""Besides the database, what cannot be made again."""

PAGES_AT_ONCE = 2_000
"""Pages that are copied before writers get a turn."""


@dataclass(frozen=True)
class Backup:
    """What a backup holds.

    Attributes:
        made: when, as an ISO moment in UTC.
        version: of the program that made it.
        revision: of the database's tables.
        papers: number of papers.
        accounts: number of accounts.
        files: figures and e-mails.
    """

    made: str
    version: str
    revision: str
    papers: int
    accounts: int
    files: int

    def __str__(self) -> str:
        return (
            f"{self.papers:,} papers, {self.accounts:,} accounts, {self.files:,} figures and e-mails, made {self.made}"
        )


def database_file(settings: Settings) -> Path:
    """The SQLite file of an installation.

    Raises:
        UserError: its database is not a SQLite file.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise UserError(
            f"{url.render_as_string(hide_password=True)} is not a SQLite file; "
            "for PostgreSQL use pg_dump and pg_restore, and copy the folders figures and outbox"
        )
    return Path(url.database)


def backup(settings: Settings, target: Path, *, replace: bool = False) -> Backup:
    """Write a backup; the site may go on serving and writing.

    The database is copied by SQLite's own online backup: the copy is the state at one moment, whatever is written
    meanwhile. The file appears under its name only once it is whole.

    Args:
        settings: of the installation.
        target: the file, by custom ending in .tar.gz.
        replace: whether an older file of that name may be replaced.

    Returns:
        What the backup holds.

    Raises:
        UserError: there is nothing to back up, the target exists or cannot be written, or the database is damaged.
    """
    source = database_file(settings)
    if not source.is_file():
        raise UserError(f"there is no database at {source}; WORKING_PAPERS_HOME is {settings.home}")
    if target.exists() and not replace:
        raise UserError(f"{target} exists already; name another file, or add --replace")
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.resolve().parent) as name:
            copy = Path(name) / DATABASE
            _copy_database(source, copy)
            members = [(copy, DATABASE), *_members(settings)]
            made = _describe(copy, len(members) - 1)
            manifest = Path(name) / MANIFEST
            manifest.write_text(json.dumps(made.__dict__, indent=1), encoding="utf-8")
            packed = Path(name) / "packed"
            with tarfile.open(packed, "w:gz", compresslevel=4) as archive:
                for file, member in [(manifest, MANIFEST), *members]:
                    archive.add(file, member, recursive=False)
            with packed.open("rb") as written:
                os.fsync(written.fileno())
            packed.replace(target)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); name a file in another folder"
        ) from error
    return made


def _copy_database(source: Path, copy: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new, pages=PAGES_AT_ONCE)
            new.execute("PRAGMA journal_mode=DELETE")  # one file, whatever the original's mode
    except sqlite3.DatabaseError as error:
        raise UserError(f"{source} cannot be read ({error}); it may be damaged") from error


def _members(settings: Settings) -> list[tuple[Path, str]]:
    """Figures and e-mails with their names in the archive."""
    found = []
    for folder in FOLDERS:
        top = settings.home / folder
        for file in sorted(top.rglob("*")):
            if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                found.append((file, str(PurePosixPath(folder, *file.relative_to(top).parts))))
    return found


def _describe(database: Path, files: int) -> Backup:
    """Check the copy and count what it holds.

    Raises:
        UserError: it is damaged, or no database of this program.
    """
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise UserError(f"the database is damaged ({state})")
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (papers,) = connection.execute("SELECT count(*) FROM papers").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            accounts = connection.execute("SELECT count(*) FROM accounts").fetchone()[0] if "accounts" in tables else 0
    except (sqlite3.DatabaseError, TypeError) as error:
        raise UserError(f"the database is damaged or not of this program ({error})") from error
    return Backup(now().isoformat(timespec="seconds"), __version__, str(revision), papers, accounts, files)


def restore(settings: Settings, source: Path, *, replace: bool = False) -> Backup:
    """Put a backup in place of what the home folder holds. The site must not be running.

    Everything is unpacked and checked beside the home folder's files first; what was there is kept under
    `before-restore` until the next restore.

    Args:
        settings: of the installation.
        source: a file that `backup` wrote.
        replace: whether a database that is there may be replaced.

    Returns:
        What was restored.

    Raises:
        UserError: the file is no backup or damaged, its database is of a newer version, a database is there already,
            or something is using it.
    """
    target = database_file(settings)
    if target.exists() and not replace:
        raise UserError(f"{target} exists already; stop the site and add --replace to put the backup in its place")
    home = settings.make_home()
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=home) as name:
        folder = Path(name)
        _unpack(source, folder)
        made = _describe(
            folder / DATABASE, sum(1 for top in FOLDERS for file in (folder / top).rglob("*") if file.is_file())
        )
        trial = settings.model_copy(update={"database": f"sqlite:///{folder / DATABASE}"})
        with opened_database(trial):  # migrates it, or refuses one of a newer version
            pass
        with _unused(target):
            _put_in_place(folder, home, target)
    return made


def _unpack(source: Path, folder: Path) -> None:
    """Unpack a backup's own members and nothing else."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                known = member.name in (DATABASE, MANIFEST) or (len(parts) > 1 and parts[0] in FOLDERS)
                if not member.isfile() or not known or ".." in parts:
                    raise UserError(f"{source} is not a backup of this program: it holds {member.name!r}")
                archive.extract(member, folder, filter="data")
            assert archive.fileobj is not None
            while archive.fileobj.read(1 << 20):  # to its end, where the checksum is
                continue
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{source} cannot be read as a backup ({error}); it may be damaged or cut short") from error
    for name in (DATABASE, MANIFEST):
        if not (folder / name).is_file():
            raise UserError(f"{source} is not a backup of this program: {name} is missing")
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)


@contextmanager
def _unused(database: Path) -> Iterator[None]:
    """Holds the database that is there, so that nobody else can; refuses when somebody already does."""
    if not database.exists():
        yield
        return
    try:
        with closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=DELETE")  # takes the log in; impossible while others are at it
            connection.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.OperationalError as error:
        raise UserError(f"{database} is in use ({error}); stop the site and its workers, then restore") from error
    except sqlite3.DatabaseError:  # damaged: the reason for many a restore, and nobody can be using it
        yield


def _put_in_place(folder: Path, home: Path, target: Path) -> None:
    kept = home / "before-restore"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for top in FOLDERS:
        if (home / top).exists():
            (home / top).replace(kept / top)
        (folder / top).replace(home / top)
    for suffix in ("-wal", "-shm"):
        leftover = target.with_name(target.name + suffix)
        if leftover.exists():
            leftover.replace(kept / leftover.name)
    if target.exists():
        shutil.copy2(target, kept / DATABASE)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder / DATABASE, target)  # the last step: until here the old database is in place
    shutil.rmtree(home / "index", ignore_errors=True)  # derived from the database; made again at the next start
