"""The table of outgoing e-mails."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from working_papers.database import Base

QUEUED, SENDING, SENT, FAILED, BOUNCED = "queued", "sending", "sent", "failed", "bounced"


class MailRow(Base):
    """One e-mail to one recipient, from the moment that it was decided upon."""

    __tablename__ = "mails"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(
        Text, unique=True, doc="What it is, e.g. 'digest:12:345': asked for twice, it is sent once."
    )
    recipient: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    message: Mapped[bytes | None] = mapped_column(LargeBinary, doc="The whole message; forgotten once sent.")
    status: Mapped[str] = mapped_column(String(10))
    attempts: Mapped[int]
    due: Mapped[dt.datetime] = mapped_column(doc="Not to be tried before.")
    claimed: Mapped[dt.datetime | None] = mapped_column(doc="Since when a sender has it in hand.")
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    created: Mapped[dt.datetime]
    sent: Mapped[dt.datetime | None]
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_mails_status_due", "status", "due"), Index("ix_mails_recipient", "recipient"))
