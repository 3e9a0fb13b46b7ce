"""E-mails as messages: one recipient, plain text and HTML, and nothing in a header that its caller did not mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from typing import TYPE_CHECKING

from working_papers.database import now
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

_BREAKS = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")
_ADDRESS = re.compile(r"[^\s@,;:<>()\[\]\\\"]+@[^\s@,;:<>()\\\"]+")
LONGEST_SUBJECT = 200

POLICY = SMTP.clone(cte_type="7bit")
"""Only ASCII on the line: not every server between here and the reader takes eight bits."""


def one_header(text: str) -> str:
    """The text as it may stand in a header: on one line, without control characters."""
    return _BREAKS.sub(" ", text).strip()


def sender_of(settings: Settings) -> Address:
    """The sender's name and address.

    Raises:
        UserError: the setting is no address.
    """
    name, address = parseaddr(settings.mail_from)
    user, at, domain = address.rpartition("@")
    try:
        if not (user and at and domain):
            raise ValueError("an address has the form user@host")
        return Address(one_header(name), user, domain)
    except ValueError as error:
        raise UserError(
            f"WORKING_PAPERS_MAIL_FROM is {settings.mail_from!r} ({error}); "
            "expected e.g. 'Working Papers <papers@example.org>'"
        ) from error


def make_message(
    settings: Settings,
    to: str,
    subject: str,
    text: str,
    html: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> EmailMessage:
    """An e-mail to one address.

    Args:
        settings: name the sender.
        to: the recipient's address, in normal form.
        subject: line breaks in it become blanks.
        text: the plain text.
        html: its twin in HTML.
        headers: further ones.

    Raises:
        UserError: the setting for the sender is no address, or the recipient's is none.
    """
    message = EmailMessage(policy=POLICY)
    message["From"] = sender_of(settings)
    if not _ADDRESS.fullmatch(to):
        raise UserError(f"{to!r} is not an e-mail address")
    message["To"] = Address(addr_spec=to)
    message["Subject"] = one_header(subject)[:LONGEST_SUBJECT]
    message["Date"] = format_datetime(now())
    for name, value in (headers or {}).items():
        message[name] = one_header(value)
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message
