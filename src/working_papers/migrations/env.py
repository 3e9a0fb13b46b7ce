"""Alembic's entry: on the connection that `upgrade` hands over, or, from Alembic's own command, on the settings'."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

import working_papers.bench.jobs
import working_papers.bench.store
import working_papers.daily.accounts.models
import working_papers.daily.community.models
import working_papers.daily.digest.models
import working_papers.daily.ingest
import working_papers.daily.mail.models
import working_papers.daily.models
import working_papers.daily.schedule  # noqa: F401 - all are imported for their tables
from working_papers.config import load_settings
from working_papers.database import Base, open_database


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with open_database(load_settings()).begin() as opened:
        _run(opened)
