"""Who takes an e-mail: a server by SMTP, or the outbox folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import SMTP
from email.utils import parseaddr
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from working_papers.config import Settings

TIMEOUT = 30.0


class Refused(Exception):
    """The recipient's address is refused for good."""


class NotNow(Exception):
    """It cannot be sent at present; another attempt may succeed."""


class Transport(Protocol):
    """Takes e-mails."""

    def send(self, key: str, recipient: str, message: bytes) -> None:
        """Hand an e-mail over; once this returns, it is the other side's.

        Raises:
            Refused: the address is refused for good.
            NotNow: try again later.
        """
        ...


class Outbox:
    """E-mails as files `KEY.eml`; the same e-mail again is the same file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, key: str, recipient: str, message: bytes) -> None:
        """Write the file, whole or not at all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            target = self.folder / file_name(key)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            part.write_bytes(message)
            part.replace(target)
        except OSError as error:
            raise NotNow(f"the outbox {self.folder} cannot be written ({error.strerror or error})") from error


def file_name(key: str) -> str:
    """A file name for a key: legible, and its own for each key."""
    legible = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")[:60]
    return f"{legible}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.eml"


class Server:
    """A connection to the server that takes e-mails."""

    def __init__(self, connection: smtplib.SMTP) -> None:
        self.connection = connection

    def send(self, key: str, recipient: str, message: bytes) -> None:
        """Hand the e-mail over to the server."""
        sender = parseaddr(str(message_from_bytes(message, policy=SMTP)["From"]))[1]
        try:
            self.connection.sendmail(sender, [recipient], message)
        except smtplib.SMTPRecipientsRefused as error:
            code, said = next(iter(error.recipients.values()))
            words = f"{code} {_words(said)}"
            if 500 <= code < 600:
                raise Refused(words) from error
            raise NotNow(words) from error
        except smtplib.SMTPResponseException as error:
            raise NotNow(f"{error.smtp_code} {_words(error.smtp_error)}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise NotNow(str(error) or type(error).__name__) from error


def _words(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:300]


@contextmanager
def open_transport(settings: Settings) -> Iterator[Transport]:
    """What the settings name, for as long as e-mails are handed over.

    Raises:
        NotNow: the server does not answer, or does not let us in.
    """
    if not settings.smtp_host:
        yield Outbox(settings.outbox_folder)
        return
    where = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        connection = _connect(settings)
    except (smtplib.SMTPException, OSError) as error:
        raise NotNow(f"the mail server {where} cannot be used ({_reason(error)})") from error
    try:
        yield Server(connection)
    finally:
        with contextlib.suppress(smtplib.SMTPException, OSError):
            connection.quit()


def _connect(settings: Settings) -> smtplib.SMTP:
    host, port = settings.smtp_host, settings.smtp_port
    if settings.smtp_user and settings.smtp_security == "none" and host not in ("localhost", "127.0.0.1", "::1"):
        raise NotNow(
            f"the mail server {host}:{port} cannot be used: a password is not sent over an open line; set "
            "WORKING_PAPERS_SMTP_SECURITY to tls or starttls"
        )
    context = ssl.create_default_context()
    connection: smtplib.SMTP
    if settings.smtp_security == "tls":
        connection = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=context)
    else:
        connection = smtplib.SMTP(host, port, timeout=TIMEOUT)
    try:
        if settings.smtp_security == "starttls":
            connection.starttls(context=context)
        if settings.smtp_user:
            connection.login(settings.smtp_user, settings.smtp_password.get_secret_value())
    except BaseException:
        connection.close()
        raise
    return connection


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"it does not accept the login: {error.smtp_code} {_words(error.smtp_error)}"
    return " ".join(str(error).split())[:200] or type(error).__name__
