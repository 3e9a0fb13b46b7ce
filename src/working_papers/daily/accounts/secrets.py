"""Keys that all processes of a site share."""

from __future__ import annotations

import secrets

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from working_papers.daily.accounts.models import SiteSecretRow
from working_papers.database import reading


def site_secret(engine: Engine, name: str) -> bytes:
    """32 random bytes under a name, made when they are first asked for and the same ever after."""
    found = _read(engine, name)
    if found is None:
        try:
            with engine.begin() as connection:
                connection.execute(insert(SiteSecretRow).values(name=name, value=secrets.token_bytes(32)))
        except IntegrityError:
            found = _read(engine, name)  # another process was quicker
        else:
            found = _read(engine, name)
    assert found is not None
    return found


def _read(engine: Engine, name: str) -> bytes | None:
    with reading(engine) as connection:
        value = connection.execute(select(SiteSecretRow.value).where(SiteSecretRow.name == name)).scalar()
    return None if value is None else bytes(value)
