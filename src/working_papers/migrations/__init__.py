"""The database's revisions, and how an engine is brought to the newest."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, text

from working_papers.errors import UserError

HEAD = "0002"
"""The newest revision; a literal, so that starting up needs no look into the folder."""

_LOCK = 0x5750_4D49
"""PostgreSQL advisory lock: of several processes that start at once, one migrates and the others wait."""


def upgrade(engine: Engine) -> None:
    """Bring the tables to the newest revision, all in one transaction.

    Args:
        engine: the database; empty, or at any earlier revision.

    Raises:
        UserError: the database was made by a newer version of the program.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        current = MigrationContext.configure(connection).get_current_heads()
        unknown = set(current) - known
        if unknown:
            raise UserError(
                f"the database {engine.url.render_as_string(hide_password=True)} was made by a newer version of this "
                f"program (its revision is {min(unknown)}, the newest known here is {HEAD}); "
                "install that version, or name another database with WORKING_PAPERS_DATABASE"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
