"""The sender: takes what is due from the queue and hands it over; several may be at work at once.

An e-mail is claimed, handed over, and marked as sent. A sender that is killed between the last two leaves a claim
behind. In the outbox a repetition is the same file. A mail server may have the e-mail already or not; it then gets it
once more under the same Message-ID, by which mail systems know a repetition, rather than never.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import socket
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine, or_, select, update

from working_papers.daily.mail.models import BOUNCED, FAILED, QUEUED, SENDING, SENT, MailRow
from working_papers.daily.mail.transports import NotNow, Refused, Transport, open_transport
from working_papers.database import now

if TYPE_CHECKING:
    from working_papers.config import Settings

MOST_ATTEMPTS = 10
FIRST_WAIT = dt.timedelta(minutes=1)
"""After a failure; then twice as long each time: the tenth attempt comes after about eight hours."""

STALE = dt.timedelta(minutes=5)
"""A claim of this age is that of a dead sender: handing over one e-mail never takes so long."""

CLAIMED_AT_ONCE = 10

SHORT_LIVED = {"sign-in:": dt.timedelta(minutes=15)}
"""What is of no use after some time, by the beginning of its key: a link that has expired is not sent."""

logger = logging.getLogger(__name__)
_COLUMNS = MailRow.__table__.c


@dataclass
class SendReport:
    """What a sender did."""

    sent: int = 0
    bounced: int = 0
    delayed: int = 0
    failed: int = 0
    problem: str = ""

    def __str__(self) -> str:
        words = [f"{self.sent:,} sent"]
        words += [f"{self.bounced:,} refused"] if self.bounced else []
        words += [f"{self.delayed:,} to be tried again"] if self.delayed else []
        words += [f"{self.failed:,} given up"] if self.failed else []
        return ", ".join(words) + (f" ({self.problem})" if self.problem else "")


@dataclass(frozen=True)
class _Claim:
    id: int
    key: str
    recipient: str
    message: bytes
    attempts: int
    created: dt.datetime

    @property
    def useless(self) -> bool:
        """Whether it has waited for too long."""
        lives = next((lifetime for prefix, lifetime in SHORT_LIVED.items() if self.key.startswith(prefix)), None)
        return lives is not None and now() - self.created > lives


def send_due(
    engine: Engine,
    settings: Settings,
    *,
    only_key: str | None = None,
    limit: int | None = None,
    stop: threading.Event | None = None,
    stale: dt.timedelta = STALE,
) -> SendReport:
    """Send what is due.

    Args:
        engine: the database.
        settings: name the server, or the outbox.
        only_key: only the e-mail with this key.
        limit: at most so many.
        stop: set to end after the e-mail in hand.
        stale: age at which another sender's claim is taken over.

    Returns:
        What was done.
    """
    stop = stop or threading.Event()
    report = SendReport()
    name = f"{socket.gethostname()[:30]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    transport: Transport | None = None
    left = limit
    claims = _claim(engine, name, only_key, min(CLAIMED_AT_ONCE, left or CLAIMED_AT_ONCE), stale)
    if not claims:
        return report
    try:
        with open_transport(settings) as transport:
            while claims:
                for number, claim in enumerate(claims):
                    if stop.is_set():
                        _release(engine, name, claims[number:])
                        return report
                    _hand_over(engine, name, transport, claim, report)
                left = None if left is None else left - len(claims)
                if left == 0:
                    break
                claims = _claim(engine, name, only_key, min(CLAIMED_AT_ONCE, left or CLAIMED_AT_ONCE), stale)
    except NotNow as error:  # nothing could be handed over at all
        report.problem = str(error)
        logger.warning("%s", error)
        for claim in claims:
            _later(engine, name, claim, str(error), report)
    return report


def _claim(engine: Engine, name: str, only_key: str | None, count: int, stale: dt.timedelta) -> list[_Claim]:
    """Take some e-mails in hand; no other sender has them then."""
    moment = now()
    due = or_(
        (_COLUMNS.status == QUEUED) & (_COLUMNS.due <= moment),
        (_COLUMNS.status == SENDING) & (_COLUMNS.claimed < moment - stale),
    )
    names = ("id", "key", "recipient", "message", "attempts", "created")
    query = select(*(_COLUMNS[name] for name in names)).where(due)
    if only_key is not None:
        query = query.where(_COLUMNS.key == only_key)
    query = query.order_by(_COLUMNS.due, _COLUMNS.id).limit(count).with_for_update(skip_locked=True)
    with engine.begin() as connection:
        found = [_Claim(**row._mapping) for row in connection.execute(query)]
        if found:
            connection.execute(
                update(MailRow)
                .where(_COLUMNS.id.in_([claim.id for claim in found]))
                .values(status=SENDING, claimed=moment, claimed_by=name)
            )
    return found


def _hand_over(engine: Engine, name: str, transport: Transport, claim: _Claim, report: SendReport) -> None:
    if not _still_mine(engine, name, claim):
        return
    if claim.useless:
        logger.warning("an e-mail waited until it was of no use", extra={"mail": claim.id})
        _set(engine, name, claim, status=FAILED, error="it could not be sent while its link was good", message=None)
        report.failed += 1
        return
    try:
        transport.send(claim.key, claim.recipient, claim.message)
    except Refused as error:
        logger.warning("an e-mail was refused: %s", error, extra={"mail": claim.id})
        _set(engine, name, claim, status=BOUNCED, error=str(error), message=None, attempts=claim.attempts + 1)
        report.bounced += 1
    except NotNow as error:
        _later(engine, name, claim, str(error), report)
    except Exception as error:  # one e-mail that nobody foresaw must not keep the others back
        logger.exception("an e-mail could not be handed over", extra={"mail": claim.id})
        _later(engine, name, claim, f"{type(error).__name__}: {error}"[:300], report)
    else:
        _set(engine, name, claim, status=SENT, sent=now(), error=None, message=None, attempts=claim.attempts + 1)
        report.sent += 1


def _still_mine(engine: Engine, name: str, claim: _Claim) -> bool:
    """Renew the claim; a sender that slept for long may have lost it."""
    with engine.begin() as connection:
        done = connection.execute(
            update(MailRow)
            .where(_COLUMNS.id == claim.id, _COLUMNS.status == SENDING, _COLUMNS.claimed_by == name)
            .values(claimed=now())
        )
    return bool(done.rowcount)


def _later(engine: Engine, name: str, claim: _Claim, error: str, report: SendReport) -> None:
    attempts = claim.attempts + 1
    if attempts >= MOST_ATTEMPTS:
        logger.error("an e-mail is given up after %d attempts: %s", attempts, error, extra={"mail": claim.id})
        _set(engine, name, claim, status=FAILED, error=error, attempts=attempts)
        report.failed += 1
        return
    wait = FIRST_WAIT * 2 ** (attempts - 1)
    _set(engine, name, claim, status=QUEUED, due=now() + wait, error=error, attempts=attempts)
    report.delayed += 1


def _release(engine: Engine, name: str, claims: list[_Claim]) -> None:
    for claim in claims:
        _set(engine, name, claim, status=QUEUED)


def _set(engine: Engine, name: str, claim: _Claim, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(
            update(MailRow)
            .where(_COLUMNS.id == claim.id, _COLUMNS.claimed_by == name, _COLUMNS.status == SENDING)
            .values(claimed=None, claimed_by=None, **values)
        )
