"""Backup while the site writes, restore, and every file that is no backup."""

from __future__ import annotations

import gzip
import io
import shutil
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from working_papers.config import Settings, load_settings
from working_papers.daily.backup import DATABASE, MANIFEST, backup, restore
from working_papers.daily.catalogue import paper_count
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord
from working_papers.database import open_database, opened_database
from working_papers.errors import UserError


@pytest.fixture
def settings(sqlite_home: Path) -> Settings:
    return load_settings()


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """An installation with five papers, a figure and an e-mail."""
    with opened_database(settings) as engine:
        import_papers(engine, "jsonl", "x", [PaperRecord(title=f"Paper {number}") for number in range(5)])
    (settings.figures_folder / "normuon").mkdir(parents=True)
    (settings.figures_folder / "normuon" / "1.svg").write_text("<svg/>")
    settings.outbox_folder.mkdir()
    (settings.outbox_folder / "a.eml").write_text("Subject: x\n\n")
    settings.index_folder.mkdir()
    return settings


def elsewhere(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"home": folder, "database": ""})


def test_a_backup_restores_into_an_empty_home(filled: Settings, tmp_path: Path) -> None:
    file = tmp_path / "copy.tar.gz"
    made = backup(filled, file)
    assert (made.papers, made.accounts, made.files) == (5, 0, 2)
    fresh = Settings(home=tmp_path / "fresh")
    assert restore(fresh, file).papers == 5
    with opened_database(fresh) as engine:
        assert paper_count(engine) == 5
        import_papers(engine, "jsonl", "y", [PaperRecord(title="One more")])
        assert paper_count(engine) == 6
    assert (fresh.figures_folder / "normuon" / "1.svg").read_text() == "<svg/>"
    assert (fresh.outbox_folder / "a.eml").exists()
    assert not list((tmp_path / "fresh").glob(".restore-*")) and not list(tmp_path.glob(".backup-*"))


def test_a_restore_keeps_what_was_there_and_forgets_the_index(filled: Settings, tmp_path: Path) -> None:
    file = tmp_path / "copy.tar.gz"
    backup(filled, file)
    with opened_database(filled) as engine:
        import_papers(engine, "jsonl", "y", [PaperRecord(title="Not in the backup")])
    with pytest.raises(UserError, match="exists already; stop the site and add --replace"):
        restore(filled, file)
    restore(filled, file, replace=True)
    with opened_database(filled) as engine:
        assert paper_count(engine) == 5
    with closing(sqlite3.connect(filled.home / "before-restore" / DATABASE)) as kept:
        assert kept.execute("SELECT count(*) FROM papers").fetchone() == (6,)
    assert not filled.index_folder.exists()


def test_a_backup_is_one_moment_while_the_site_writes(filled: Settings, tmp_path: Path) -> None:
    """Each import adds a pair of papers in one transaction: a backup never holds half of one."""
    stop = threading.Event()
    trouble: list[BaseException] = []

    def write() -> None:
        try:
            with opened_database(filled) as engine:
                number = 0
                while not stop.is_set():
                    number += 1
                    pair = [PaperRecord(title=f"Pair {number} {half}", abstract="x" * 2000) for half in "ab"]
                    import_papers(engine, "jsonl", "pairs", pair)
        except BaseException as error:
            trouble.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            made = backup(filled, tmp_path / f"{number}.tar.gz")
            assert (made.papers - 5) % 2 == 0
    finally:
        stop.set()
        writer.join()
    assert not trouble
    restored = Settings(home=tmp_path / "again")
    restore(restored, tmp_path / "4.tar.gz")
    with opened_database(restored) as engine, engine.connect() as connection:
        halves = connection.execute(text("SELECT title FROM papers WHERE title LIKE 'Pair %'")).scalars()
        titles = set(halves)
        assert {f"{title[:-1]}{'b' if title[-1] == 'a' else 'a'}" for title in titles} == titles


def test_a_database_in_use_is_not_replaced(filled: Settings, tmp_path: Path) -> None:
    backup(filled, tmp_path / "copy.tar.gz")
    engine = open_database(filled)
    with engine.connect(), pytest.raises(UserError, match=r"is in use .*; stop the site and its workers"):
        restore(filled, tmp_path / "copy.tar.gz", replace=True)
    engine.dispose()
    restore(filled, tmp_path / "copy.tar.gz", replace=True)


def test_a_damaged_database_can_be_replaced(filled: Settings, tmp_path: Path) -> None:
    backup(filled, tmp_path / "copy.tar.gz")
    (filled.home / DATABASE).write_bytes(b"no database at all " * 300)
    with pytest.raises(UserError, match="cannot be read"):
        backup(filled, tmp_path / "damaged.tar.gz")
    assert not (tmp_path / "damaged.tar.gz").exists()
    restore(filled, tmp_path / "copy.tar.gz", replace=True)
    with opened_database(filled) as engine:
        assert paper_count(engine) == 5


def archive(file: Path, members: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(file, "w:gz") as made:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo("figures/link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            made.addfile(entry)
    return file


def test_what_is_no_backup_is_refused_and_changes_nothing(filled: Settings, tmp_path: Path) -> None:
    good = tmp_path / "good.tar.gz"
    backup(filled, good)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(good.read_bytes()[:-300])
    text_file = tmp_path / "text"
    text_file.write_text("not an archive")
    zipped = tmp_path / "zipped.gz"
    zipped.write_bytes(gzip.compress(b"not an archive"))
    database = (filled.home / DATABASE).read_bytes()
    newer = tmp_path / "newer.db"
    shutil.copy(filled.home / DATABASE, newer)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    cases = {
        tmp_path / "missing": "cannot be read as a backup",
        cut: "cannot be read as a backup",
        text_file: "cannot be read as a backup",
        zipped: "cannot be read as a backup",
        archive(tmp_path / "up", {"figures/../../evil": b"x"}): "is not a backup of this program: it holds",
        archive(tmp_path / "root", {"/etc/evil": b"x"}): "is not a backup of this program: it holds",
        archive(tmp_path / "other", {"cache/x": b"x"}): "is not a backup of this program: it holds",
        archive(tmp_path / "link", {DATABASE: database, MANIFEST: b"{}"}, "/etc/passwd"): "it holds 'figures/link'",
        archive(tmp_path / "half", {MANIFEST: b"{}"}): "working-papers.db is missing",
        archive(tmp_path / "bad", {DATABASE: b"x" * 5000, MANIFEST: b"{}"}): "damaged or not of this program",
        archive(tmp_path / "newer", {DATABASE: newer.read_bytes(), MANIFEST: b"{}"}): "made by a newer version",
    }
    for file, words in cases.items():
        with pytest.raises(UserError) as caught:
            restore(filled, file, replace=True)
        assert words in str(caught.value), file
        assert (filled.home / DATABASE).exists() and (filled.outbox_folder / "a.eml").exists()
    assert not (tmp_path / "evil").exists() and not list(filled.home.glob(".restore-*"))


def test_targets_that_cannot_be_written_are_named(filled: Settings, tmp_path: Path) -> None:
    file = tmp_path / "copy.tar.gz"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already; name another file, or add --replace"):
        backup(filled, file)
    assert file.read_text() == "mine"
    assert backup(filled, file, replace=True).papers == 5
    with pytest.raises(UserError, match="cannot be written"):
        backup(filled, tmp_path / "no folder" / "copy.tar.gz")
    with pytest.raises(UserError, match="there is no database at"):
        backup(elsewhere(filled, tmp_path / "empty"), tmp_path / "x.tar.gz")
    postgres = filled.model_copy(update={"database": "postgresql+psycopg://me:secret@host/name"})
    with pytest.raises(UserError, match=r"use pg_dump and pg_restore") as caught:
        backup(postgres, tmp_path / "x.tar.gz")
    assert "secret" not in str(caught.value)
