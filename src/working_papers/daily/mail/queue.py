"""The queue: what is to be sent stands in the database together with the reason for it, and once."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from working_papers.daily.mail.models import BOUNCED, FAILED, QUEUED, SENDING, SENT, MailRow
from working_papers.database import now, reading

STATES = (QUEUED, SENDING, SENT, FAILED, BOUNCED)
_COLUMNS = MailRow.__table__.c


@dataclass(frozen=True)
class Mail:
    """An e-mail in the queue, without its content."""

    id: int
    key: str
    recipient: str
    subject: str
    status: str
    attempts: int
    due: dt.datetime
    created: dt.datetime
    sent: dt.datetime | None
    error: str | None


def message_id(key: str, domain: str) -> str:
    """The Message-ID of what has that key: the same at every attempt, so that a repetition is known as one."""
    return f"<{hashlib.sha256(key.encode()).hexdigest()[:32]}@{domain}>"


def enqueue(connection: Connection, key: str, message: EmailMessage) -> bool:
    """Put an e-mail into the queue, in the transaction of what it tells of.

    Args:
        connection: the caller's transaction.
        key: what it is, e.g. 'digest:12:345'.
        message: the whole e-mail; its Message-ID is set here.

    Returns:
        Whether it was put there; False when one with that key stands there already, whatever became of it.
    """
    domain = parseaddr(str(message["From"]))[1].rpartition("@")[2] or "localhost"
    del message["Message-ID"]
    message["Message-ID"] = message_id(key, domain)
    values = {
        "key": key,
        "recipient": parseaddr(str(message["To"]))[1],
        "subject": str(message["Subject"]),
        "message": message.as_bytes(),
        "status": QUEUED,
        "attempts": 0,
        "due": now(),
        "created": now(),
    }
    insert = postgresql_insert if connection.dialect.name == "postgresql" else sqlite_insert
    adding = insert(MailRow).values(**values).on_conflict_do_nothing(index_elements=["key"]).returning(MailRow.id)
    return connection.execute(adding).scalar() is not None


def list_mails(engine: Engine, *, status: str | None = None, limit: int = 50, offset: int = 0) -> list[Mail]:
    """E-mails, newest first.

    Args:
        engine: the database.
        status: only those of one state.
        limit: at most so many.
        offset: e-mails passed over.
    """
    names = ("id", "key", "recipient", "subject", "status", "attempts", "due", "created", "sent", "error")
    query = select(*(_COLUMNS[name] for name in names)).order_by(_COLUMNS.id.desc()).limit(limit).offset(offset)
    if status is not None:
        query = query.where(_COLUMNS.status == status)
    with reading(engine) as connection:
        return [_mail(row) for row in connection.execute(query)]


def _mail(row: Row[Any]) -> Mail:
    return Mail(**row._mapping)


def count_mails(engine: Engine) -> dict[str, int]:
    """How many e-mails are in each state."""
    with reading(engine) as connection:
        rows = connection.execute(select(_COLUMNS.status, func.count()).group_by(_COLUMNS.status))
        found = {str(state): int(count) for state, count in rows}
    return {state: found.get(state, 0) for state in STATES}


def forget_sent(engine: Engine, older_than: dt.timedelta) -> int:
    """Remove the rows of short-lived e-mails (sign-in links) that were sent long ago; digests are kept."""
    with engine.begin() as connection:
        done = connection.execute(
            delete(MailRow).where(
                _COLUMNS.status == SENT, _COLUMNS.sent < now() - older_than, _COLUMNS.key.startswith("sign-in:")
            )
        )
    return done.rowcount
