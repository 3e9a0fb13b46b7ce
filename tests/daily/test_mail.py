"""E-mails: queued once, sent once, tried again, refused for good; a real server on this machine takes them."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select, update

from tests.mail_server import Start
from working_papers.config import Settings
from working_papers.daily.mail import sending
from working_papers.daily.mail.messages import make_message
from working_papers.daily.mail.models import BOUNCED, FAILED, QUEUED, SENDING, SENT, MailRow
from working_papers.daily.mail.queue import count_mails, enqueue, list_mails, message_id
from working_papers.daily.mail.sending import FIRST_WAIT, MOST_ATTEMPTS, send_due
from working_papers.daily.mail.transports import Outbox, file_name
from working_papers.database import now
from working_papers.errors import UserError

ADA = "ada@example.org"


def put(engine: Engine, settings: Settings, key: str = "test:1", to: str = ADA, subject: str = "Hello") -> bool:
    message = make_message(settings, to, subject, "Grüße, in plain text.\n", "<p>Grüße.</p>")
    with engine.begin() as connection:
        return enqueue(connection, key, message)


def states(engine: Engine) -> list[tuple[str, str, int]]:
    return [(mail.key, mail.status, mail.attempts) for mail in reversed(list_mails(engine))]


def make_due(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(update(MailRow).values(due=now() - dt.timedelta(seconds=1)))


# Messages


def test_headers_cannot_be_smuggled_in(settings: Settings) -> None:
    nasty = "A title\r\nBcc: everybody@example.org\n\n<script>"
    message = make_message(settings, ADA, nasty, "text", headers={"List-Id": "x\r\nBcc: y@example.org"})
    parsed = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert parsed["Bcc"] is None and parsed["To"] == ADA
    assert parsed["Subject"] == "A title Bcc: everybody@example.org <script>"
    for bad in ("ada@example.org\r\nBcc: x@y.z", "no address", "a@b, c@d"):
        with pytest.raises(UserError, match="is not an e-mail address"):
            make_message(settings, bad, "x", "y")
    wrong = settings.model_copy(update={"mail_from": "nobody"})
    with pytest.raises(UserError, match="WORKING_PAPERS_MAIL_FROM is 'nobody'"):
        make_message(wrong, ADA, "x", "y")


def test_the_same_key_is_queued_once_and_known_by_its_id(engine: Engine, settings: Settings) -> None:
    assert put(engine, settings) and not put(engine, settings, subject="Another")
    with engine.connect() as connection:
        raw = connection.execute(select(MailRow.message)).scalar_one()
    assert raw is not None
    assert email.message_from_bytes(raw, policy=email.policy.default)["Message-ID"] == message_id("test:1", "localhost")
    assert [mail.subject for mail in list_mails(engine)] == ["Hello"]


def test_a_queue_entry_goes_with_its_transaction(engine: Engine, settings: Settings) -> None:
    with pytest.raises(RuntimeError), engine.begin() as connection:
        enqueue(connection, "k", make_message(settings, ADA, "x", "y"))
        raise RuntimeError
    assert list_mails(engine) == []


# The outbox


def test_without_a_server_e_mails_are_files(engine: Engine, settings: Settings) -> None:
    put(engine, settings, "digest:1/2:../x")
    assert str(send_due(engine, settings)) == "1 sent"
    (file,) = settings.outbox_folder.iterdir()
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(message, email.message.EmailMessage)
    assert message["To"] == ADA and message.is_multipart()
    assert file.parent == settings.outbox_folder and file.name == file_name("digest:1/2:../x")
    assert send_due(engine, settings).sent == 0
    with engine.connect() as connection:
        row = connection.execute(select(MailRow.message, MailRow.status, MailRow.sent)).one()
    assert row.message is None and row.status == SENT and row.sent is not None, "what was sent is forgotten"


def test_an_outbox_that_cannot_be_written_delays(engine: Engine, settings: Settings) -> None:
    settings.make_home()
    settings.outbox_folder.write_text("a file is in the way")
    put(engine, settings)
    report = send_due(engine, settings)
    assert report.delayed == 1 and states(engine) == [("test:1", QUEUED, 1)]
    settings.outbox_folder.unlink()
    assert send_due(engine, settings).sent == 0, "not before its time"
    make_due(engine)
    assert send_due(engine, settings).sent == 1


# A server


def test_a_server_takes_the_e_mail(engine: Engine, mail_server: Start) -> None:
    handler, settings = mail_server()
    put(engine, settings)
    put(engine, settings, "test:2", "bob@example.org")
    assert str(send_due(engine, settings)) == "2 sent"
    assert [recipient for recipient, _ in handler.taken] == [ADA, "bob@example.org"]
    message = handler.taken[0][1]
    body = message.get_body(("plain",))
    assert body is not None and body.get_content().split() == ["Grüße,", "in", "plain", "text."]
    assert message["Message-ID"] == message_id("test:1", "localhost") and message["Date"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this machine for itself."""
    folder = tmp_path_factory.mktemp("certificate")
    key, made = folder / "key.pem", folder / "made.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run(words, check=True, capture_output=True)
    return made, key


def test_starttls_and_login(
    engine: Engine, mail_server: Start, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    handler, settings = mail_server(tls=context, password="wonderland")
    put(engine, settings)
    report = send_due(engine, settings)
    assert report.delayed == 1 and "certificate" in report.problem.lower(), "an unknown certificate is not believed"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    make_due(engine)
    wrong = settings.model_copy(update={"smtp_password": SecretStr("guess")})
    report = send_due(engine, wrong)
    assert "does not accept the login: 535" in report.problem and not handler.taken
    assert "guess" not in report.problem and "wonderland" not in repr(settings)
    make_due(engine)
    assert send_due(engine, settings).sent == 1 and len(handler.taken) == 1


def test_a_password_is_not_sent_over_an_open_line(engine: Engine, settings: Settings) -> None:
    given = {"smtp_host": "mail.example.invalid", "smtp_security": "none", "smtp_user": "x", "smtp_port": 1}
    put(engine, settings)
    report = send_due(engine, settings.model_copy(update=given))
    assert "mail.example.invalid:1 cannot be used: a password is not sent over an open line" in report.problem
    assert states(engine) == [("test:1", QUEUED, 1)], "it goes once the setting is mended"


def test_a_temporary_refusal_is_tried_again_later_and_later(engine: Engine, mail_server: Start) -> None:
    handler, settings = mail_server()
    handler.answers[ADA] = "450 come back later"
    put(engine, settings)
    for attempt in range(1, MOST_ATTEMPTS):
        before = now()
        report = send_due(engine, settings)
        assert (report.delayed, report.sent) == (1, 0)
        (mail,) = list_mails(engine)
        wait = FIRST_WAIT * 2 ** (attempt - 1)
        assert mail.attempts == attempt and "450 come back later" in (mail.error or "")
        assert before + wait <= mail.due <= now() + wait
        make_due(engine)
    assert send_due(engine, settings).failed == 1 and states(engine) == [("test:1", FAILED, MOST_ATTEMPTS)]
    make_due(engine)
    assert send_due(engine, settings).sent == 0


def test_an_address_that_is_refused_bounces_and_the_others_go_on(engine: Engine, mail_server: Start) -> None:
    handler, settings = mail_server()
    handler.answers[ADA] = "550 no such mailbox"
    put(engine, settings)
    put(engine, settings, "test:2", "bob@example.org")
    report = send_due(engine, settings)
    assert (report.bounced, report.sent) == (1, 1)
    assert states(engine) == [("test:1", BOUNCED, 1), ("test:2", SENT, 1)]
    assert count_mails(engine) == {QUEUED: 0, SENDING: 0, SENT: 1, FAILED: 0, BOUNCED: 1}


def test_a_server_that_is_away_delays(engine: Engine, settings: Settings, closed_address: str) -> None:
    port = int(closed_address.rpartition(":")[2])
    away = settings.model_copy(update={"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": "none"})
    for number in range(25):
        put(engine, away, f"test:{number}")
    report = send_due(engine, away)
    assert f"127.0.0.1:{port} cannot be used" in report.problem and report.delayed
    assert {mail.status for mail in list_mails(engine)} == {QUEUED}


def test_an_e_mail_that_nobody_foresaw_does_not_keep_the_others_back(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Outbox.send

    def unforeseen(self: Outbox, key: str, recipient: str, message: bytes) -> None:
        if key == "test:1":
            raise UnicodeEncodeError("ascii", "é", 0, 1, "not ASCII")
        send(self, key, recipient, message)

    monkeypatch.setattr(Outbox, "send", unforeseen)
    put(engine, settings)
    put(engine, settings, "test:2", "bob@example.org")
    report = send_due(engine, settings)
    assert (report.sent, report.delayed) == (1, 1)
    assert states(engine) == [("test:1", QUEUED, 1), ("test:2", SENT, 1)]
    (first,) = (mail for mail in list_mails(engine) if mail.key == "test:1")
    assert "UnicodeEncodeError" in (first.error or "")


def test_a_sign_in_link_that_has_expired_in_the_queue_is_not_sent(engine: Engine, settings: Settings) -> None:
    put(engine, settings, "sign-in:abc")
    put(engine, settings, "digest:1:1")
    with engine.begin() as connection:
        connection.execute(update(MailRow).values(created=now() - dt.timedelta(minutes=16)))
    report = send_due(engine, settings)
    assert (report.sent, report.failed) == (1, 1)
    assert states(engine) == [("sign-in:abc", FAILED, 0), ("digest:1:1", SENT, 1)]


def test_messages_are_seven_bit_on_the_line(settings: Settings) -> None:
    message = make_message(settings, ADA, "Grüße", "Grüße, 你好.\n", "<p>Grüße, 你好.</p>").as_bytes()
    assert message.isascii()
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    body = parsed.get_body(("plain",))
    assert body is not None and body.get_content().splitlines() == ["Grüße, 你好."]


def test_many_senders_at_once_send_each_e_mail_once(engine: Engine, mail_server: Start) -> None:
    handler, settings = mail_server()
    for number in range(60):
        put(engine, settings, f"test:{number}", f"reader{number}@example.org")
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda _: send_due(engine, settings), range(6)))
    assert sum(report.sent for report in reports) == 60
    assert sorted(recipient for recipient, _ in handler.taken) == sorted(f"reader{n}@example.org" for n in range(60))


def test_a_dead_senders_claim_is_taken_over_and_the_outbox_has_it_once(engine: Engine, settings: Settings) -> None:
    """A sender that is killed between handing over and marking."""
    put(engine, settings)
    (claim,) = sending._claim(engine, "dead", None, 10, sending.STALE)
    Outbox(settings.outbox_folder).send(claim.key, claim.recipient, claim.message)
    assert send_due(engine, settings).sent == 0, "it may still live"
    with engine.begin() as connection:
        connection.execute(update(MailRow).values(claimed=now() - sending.STALE * 2))
    assert send_due(engine, settings).sent == 1
    assert len(list(settings.outbox_folder.iterdir())) == 1
    sending._set(engine, "dead", claim, status=QUEUED)
    assert states(engine)[0][1] == SENT, "the dead one has no say any more"


def test_a_sender_that_is_stopped_gives_back_what_it_has_in_hand(engine: Engine, settings: Settings) -> None:
    for number in range(3):
        put(engine, settings, f"test:{number}")
    stop = threading.Event()
    stop.set()
    assert send_due(engine, settings, stop=stop).sent == 0
    assert {mail.status for mail in list_mails(engine)} == {QUEUED}
    assert send_due(engine, settings).sent == 3


def test_one_e_mail_can_be_sent_by_its_key(engine: Engine, settings: Settings) -> None:
    for number in range(3):
        put(engine, settings, f"test:{number}")
    assert send_due(engine, settings, only_key="test:1").sent == 1
    assert [status for _, status, _ in states(engine)] == [QUEUED, SENT, QUEUED]
    assert send_due(engine, settings, limit=1).sent == 1
