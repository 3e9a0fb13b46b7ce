"""Upgrades of a filled database: from the first release to the newest tables nothing is lost, on both databases."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, inspect, select, text

from working_papers import migrations
from working_papers.config import Settings
from working_papers.daily.catalogue import get_paper, sync_rooms
from working_papers.daily.importing import import_papers
from working_papers.daily.records import BadRecord, PaperRecord
from working_papers.database import open_database


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def migrate(engine: Engine, revision: str) -> None:
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


MOMENT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
FIRST_RELEASE: dict[str, list[dict[str, Any]]] = {
    "runs": [
        {
            "id": 3,
            "slug": "normuon",
            "scale": "smoke",
            "sham": False,
            "seeds": 2,
            "code_hash": "a" * 64,
            "status": "finished",
            "started": MOMENT,
            "finished": MOMENT,
            "record": {"answer": "holds", "nested": [1, 2.5, None]},
            "error": None,
        }
    ],
    "trials": [
        {
            "id": 9,
            "run_id": 3,
            "key": "b" * 64,
            "slug": "normuon",
            "arm": "normuon",
            "seed": 0,
            "scale": "smoke",
            "phase": "report",
            "setting": {"learning rate": 0.02},
            "code_hash": "a" * 64,
            "status": "finished",
            "numbers": {"loss": 0.25},
            "arrays": b"\x00\x01\xff",
            "costs": {"wall seconds": 1.5},
            "error": None,
            "finished": MOMENT,
        }
    ],
    "papers": [
        {
            "number": number,
            "id": f"2603.{number:05}",
            "title": f"Paper {number} – Schrödinger’s",
            "abstract": "About $x$.",
            "summary": "",
            "authors": ["Ada Lovelace", "Emmy Noether"],
            "author_count": 2,
            "published": dt.date(2026, 3, 1),
            "day": dt.date(2026, 3, 1),
            "updated": None,
            "categories": ["cs.LG"],
            "comment_count": 4,
            "upvotes": 11,
            "source": "hf",
            "url": None,
            "doi": None,
            "journal": None,
            "room": None,
            "text_hash": "c" * 32,
            "title_hash": -(2**60) + number,
            "first_seen": MOMENT,
            "revision": number,
        }
        for number in range(1, 301)
    ],
    "paper_topics": [{"topic": "cs.LG", "day": dt.date(2026, 3, 1), "number": number} for number in range(1, 301)],
    "paper_aliases": [{"id": "an-older-id", "number": 7}],
    "imports": [
        {
            "id": 1,
            "source": "hf",
            "asked": "newest",
            "started": MOMENT,
            "finished": MOMENT,
            "got": 301,
            "new": 300,
            "changed": 0,
            "unchanged": 0,
            "rejected": 1,
            "error": None,
        }
    ],
    "import_rejections": [{"import_id": 1, "position": 5, "line": 6, "reason": "the title is missing"}],
}


@pytest.fixture
def bare(settings: Settings) -> Iterator[Engine]:
    """A database without any table."""
    engine = open_database(settings)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    yield engine
    engine.dispose()


def contents(engine: Engine, tables: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        return {
            name: sorted((tuple(row) for row in connection.execute(select(found.tables[name]))), key=repr)
            for name in tables
        }


def test_there_is_one_line_of_revisions() -> None:
    assert revisions()[0] == "0001" and revisions()[-1] == migrations.HEAD


def test_a_filled_database_of_the_first_release_comes_through(bare: Engine, settings: Settings) -> None:
    migrate(bare, "0001")
    old = MetaData()
    old.reflect(bare)
    assert set(old.tables) == {*FIRST_RELEASE, "catalogue_state", "alembic_version"}
    with bare.begin() as connection:
        for name, rows in FIRST_RELEASE.items():
            connection.execute(old.tables[name].insert(), rows)
        connection.execute(text("UPDATE catalogue_state SET last_number = 300, last_revision = 300"))
        if bare.dialect.name == "postgresql":  # where rows with a number of their own leave the counters alone
            for name in ("runs", "trials", "imports"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), 100)"))
    before = contents(bare, list(FIRST_RELEASE))

    opened = open_database(settings)  # as `serve` and every command do
    try:
        assert contents(opened, list(FIRST_RELEASE)) == before
        with opened.connect() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == migrations.HEAD
        # The program works with what came through, and writes beside it.
        paper = get_paper(opened, "an-older-id")
        assert paper is not None and paper.title == "Paper 7 – Schrödinger’s" and paper.upvotes == 11
        report = import_papers(opened, "jsonl", "x", [PaperRecord(title="A new one"), BadRecord(2, "no")])
        assert report.new == 1
        sync_rooms(opened)
    finally:
        opened.dispose()


@pytest.mark.parametrize("revision", revisions())
def test_every_revision_can_be_reached_and_left_again(bare: Engine, revision: str) -> None:
    migrate(bare, revision)
    migrations.upgrade(bare)
    config = alembic_config()
    with bare.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    migrations.upgrade(bare)
    assert "accounts" in inspect(bare).get_table_names()


def test_an_upgrade_that_breaks_leaves_the_old_tables(bare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(bare, "0001")
    with bare.begin() as connection:
        connection.execute(text("CREATE TABLE comments (id INTEGER)"))  # in the way of the second revision
    before = set(inspect(bare).get_table_names())
    with pytest.raises(Exception, match="comments"):
        migrations.upgrade(bare)
    with bare.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0001"
    assert set(inspect(bare).get_table_names()) == before
