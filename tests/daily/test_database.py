"""The database: made, migrated, opened again, and refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

import working_papers.bench.store
import working_papers.daily.models  # noqa: F401 - imported for their tables
from working_papers import migrations
from working_papers.config import Settings, load_settings
from working_papers.database import Base, open_database
from working_papers.errors import UserError

on_sqlite = pytest.mark.skipif("WORKING_PAPERS_TEST_DATABASE" in os.environ, reason="about SQLite's file")


def test_a_new_database_has_all_tables_and_the_newest_revision(engine: Engine) -> None:
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == migrations.HEAD


def test_head_is_the_newest_revision_in_the_folder() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_models_and_migrations_agree(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_downgrade_takes_everything_back(engine: Engine) -> None:
    from alembic import command

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrations.upgrade(engine)
    assert "papers" in inspect(engine).get_table_names()


def test_opening_again_keeps_what_is_there(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE catalogue_state SET last_number = 7"))
    again = open_database(settings)
    with again.connect() as connection:
        assert connection.execute(text("SELECT last_number FROM catalogue_state")).scalar_one() == 7
    again.dispose()


def test_a_database_of_a_newer_version_is_refused(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"made by a newer version .* revision is 9999"):
        open_database(settings)


@on_sqlite
def test_a_file_that_is_no_database_is_named_with_the_remedy(settings: Settings) -> None:
    file = settings.make_home() / "working-papers.db"
    file.write_bytes(b"This was never a database. " * 200)
    with pytest.raises(UserError, match=r"working-papers\.db cannot be used .*; move working-papers\.db away"):
        open_database(settings)
    assert file.read_bytes().startswith(b"This was never")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", r"is not a database address: 'nonsense'; expected e\.g\. 'sqlite:"),
        ("oracle://host/name", r"names a database of the kind 'oracle'; expected sqlite:"),
        ("postgresql+pg8000://host/name", r"PostgreSQL needs the package pg8000, which is not installed"),
        ("sqlite:////no/such/folder/file.db", r"unable to open database file\); check that its folder is there"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_with_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv("WORKING_PAPERS_DATABASE", address)
    with pytest.raises(UserError, match=message):
        open_database(load_settings())


@on_sqlite
def test_a_home_that_cannot_be_made_is_named_with_the_remedy(settings: Settings) -> None:
    settings.home.parent.mkdir(parents=True, exist_ok=True)
    settings.home.write_text("a file is in the way")
    with pytest.raises(UserError, match=r"set WORKING_PAPERS_HOME to a folder you may write"):
        open_database(settings)


@on_sqlite
def test_a_reader_does_not_wait_for_a_writer(engine: Engine) -> None:
    from working_papers.daily.catalogue import paper_count

    with engine.begin() as writer:
        writer.execute(text("UPDATE catalogue_state SET last_number = 5"))
        assert paper_count(engine) == 0
    assert paper_count(engine) == 5
