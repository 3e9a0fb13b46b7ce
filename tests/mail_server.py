"""A real mail server on this machine, for tests."""

from __future__ import annotations

import email
import email.message
import email.policy
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from pydantic import SecretStr

from working_papers.config import Settings


class Handler:
    """Takes e-mails; may refuse some.

    Attributes:
        answers: what is said to a recipient, by address; "250 OK" by default.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[str, email.message.EmailMessage]] = []
        self.answers: dict[str, str] = {}

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, email.message.EmailMessage)
        (recipient,) = envelope.rcpt_tos
        self.taken.append((recipient, message))
        return "250 OK"


Start = Callable[..., tuple[Handler, Settings]]


@pytest.fixture
def mail_server(settings: Settings) -> Iterator[Start]:
    """Start a server: `mail_server(tls=..., password=...)` gives its handler and settings that name it."""
    running: list[Controller] = []

    def start(*, tls: ssl.SSLContext | None = None, password: str = "") -> tuple[Handler, Settings]:
        handler = Handler()

        def authenticate(server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            assert isinstance(data, LoginPassword)
            good = data == LoginPassword(b"papers", password.encode())
            return AuthResult(success=good, handled=good)

        options: dict[str, Any] = {"tls_context": tls, "require_starttls": True} if tls else {}
        if password:
            options |= {"authenticator": authenticate, "auth_required": True}
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
        controller = Controller(handler, hostname="127.0.0.1", port=port, **options)
        controller.start()
        running.append(controller)
        given = {
            "smtp_host": "127.0.0.1",
            "smtp_port": port,
            "smtp_security": "starttls" if tls else "none",
            "smtp_user": "papers" if password else "",
            "smtp_password": SecretStr(password),
        }
        return handler, settings.model_copy(update=given)

    yield start
    for controller in running:
        controller.stop()
