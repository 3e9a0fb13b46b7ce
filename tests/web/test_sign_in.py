"""Signing in, one's account, and the outbox, as a browser sees them."""

from __future__ import annotations

import email
import email.message
import email.policy
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from tests.web.visitors import ORIGIN, Reader, form_token, link_in
from working_papers.config import Settings
from working_papers.daily.accounts.accounts import account_by_email, close, make_account
from working_papers.daily.accounts.sign_in import request_link
from working_papers.web.limits import MOST_CLIENTS, Limiter
from working_papers.web.visitors import safe_next

ADA = "ada@example.org"


@pytest.fixture
def anybody(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine)


@pytest.fixture
def ada(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, ADA)


@pytest.fixture
def admin(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "root@example.org", administrator=True)


def mails(settings: Settings) -> list[email.message.EmailMessage]:
    found = []
    for file in sorted(settings.outbox_folder.glob("*.eml"), key=lambda file: file.stat().st_mtime):
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        assert isinstance(message, email.message.EmailMessage)
        found.append(message)
    return found


def text_of(message: email.message.EmailMessage, kind: str = "plain") -> str:
    body = message.get_body((kind,))
    assert body is not None
    content = body.get_content()
    assert isinstance(content, str)
    return content


def test_the_whole_way_in_and_out(anybody: Reader, settings: Settings, engine: Engine) -> None:
    page = anybody.get("/feed")
    assert 'href="/sign-in?next=%2Ffeed"' in page.text and "Set-Cookie" not in page.headers
    sent = anybody.post("/sign-in", {"email": " Ada@Example.org", "next": "/papers/2510.05491#comments"})
    assert sent.status_code == 200 and "ada@example.org" in sent.text and "no mail server yet" in sent.text
    (message,) = mails(settings)
    assert message["To"] == ADA and message["Subject"] == "Sign in to Working Papers"
    link = link_in(text_of(message), r"/sign-in/[^\s]+")
    assert link.replace("&", "&amp;") in text_of(message, "html") and link.endswith(
        "?next=%2Fpapers%2F2510.05491%23comments"
    )

    opened = anybody.get(link)
    assert opened.status_code == 200 and "no-store" in opened.headers["cache-control"]
    assert account_by_email(engine, ADA) is None, "looking at the link does nothing"
    target = link.partition("?")[0]
    fields = {"form_token": form_token(opened.text), "next": "/papers/2510.05491#comments"}
    entered = anybody.browser.post(target, data=fields, headers=ORIGIN)
    assert (entered.status_code, entered.headers["location"]) == (303, "/papers/2510.05491#comments")
    cookie = next(value for value in entered.headers.get_list("set-cookie") if value.startswith("session="))
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie
    page = anybody.get("/account")
    assert page.status_code == 200 and ADA in page.text and "private" in page.headers["cache-control"]
    assert "Cookie" in page.headers["vary"]

    again = anybody.get(link)
    assert again.status_code == 410 and "has been used already" in again.text
    anybody.account = account_by_email(engine, ADA)
    out = anybody.post("/sign-out")
    assert out.status_code == 303
    assert anybody.get("/account").headers["location"] == "/sign-in?next=%2Faccount"


def test_the_answer_does_not_tell_who_has_an_account(anybody: Reader, engine: Engine) -> None:
    make_account(engine, ADA)
    known = anybody.post("/sign-in", {"email": ADA}).text
    unknown = anybody.post("/sign-in", {"email": "bob@example.org"}).text
    assert known.replace(ADA, "X") == unknown.replace("bob@example.org", "X")


def test_behind_https_cookies_are_bound_to_the_host(client: TestClient, engine: Engine) -> None:
    secure = TestClient(client.app, base_url="https://testserver", follow_redirects=False)
    page = secure.get("/sign-in")
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("__Host-form=") and "Secure" in cookie and "HttpOnly" in cookie
    token = request_link(engine, ADA)
    fields = {"form_token": form_token(secure.get(f"/sign-in/{token}").text)}
    entered = secure.post(f"/sign-in/{token}", data=fields)
    assert any(
        each.startswith("__Host-session=") and "Secure" in each for each in entered.headers.get_list("set-cookie")
    )
    assert secure.get("/account").status_code == 200


def test_the_link_does_not_follow_the_host_header(anybody: Reader, settings: Settings) -> None:
    """Otherwise anybody could have a victim sent a link that hands its token to a host of theirs."""
    page = anybody.get("/sign-in", headers={"Host": "evil.example"})
    fields = {"form_token": form_token(page.text), "email": ADA}
    anybody.browser.post("/sign-in", data=fields, headers={"Host": "evil.example"})
    assert "evil.example" not in text_of(mails(settings)[0]) + text_of(mails(settings)[0], "html")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/papers/1?a=b#c", "/papers/1?a=b#c"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/x", "/"),
        ("javascript:alert(1)", "/"),
        ("/x\r\nSet-Cookie: a=b", "/"),
        ("/\t/evil.example", "/"),
        ("papers", "/"),
        ("", "/"),
    ],
)
def test_the_way_back_stays_on_the_site(given: str, kept: str) -> None:
    assert safe_next(given) == kept


def test_bad_addresses_are_told_and_nothing_is_sent(anybody: Reader, settings: Settings) -> None:
    page = anybody.post("/sign-in", {"email": "<script>alert(1)</script>"})
    assert page.status_code == 422 and "is not an e-mail address" in page.text and "<script>alert" not in page.text
    assert not settings.outbox_folder.exists()


def test_sign_in_is_limited_by_address_and_by_client(anybody: Reader) -> None:
    answers = [anybody.post("/sign-in", {"email": ADA}).status_code for _ in range(6)]
    assert answers == [200] * 5 + [429]
    others = [anybody.post("/sign-in", {"email": f"x{number}@example.org"}) for number in range(6)]
    assert others[-1].status_code == 429
    assert int(others[-1].headers["retry-after"]) > 0 and "too often" in others[-1].text


def test_closed_accounts_and_forged_links_get_one_sentence(anybody: Reader, engine: Engine) -> None:
    close(engine, make_account(engine, ADA).id)
    token = request_link(engine, ADA)
    refused = anybody.post(f"/sign-in/{token}")
    assert refused.status_code == 410 and "account is closed" in refused.text
    assert anybody.get("/sign-in/forged").status_code == 410


# One's account


def test_name_tokens_and_browsers(ada: Reader, client: TestClient, engine: Engine) -> None:
    assert ada.post("/account/name", {"name": "Ada <b>Lovelace</b>"}).status_code == 303
    page = ada.get("/account?done=name").text
    assert "Ada &lt;b&gt;Lovelace&lt;/b&gt;" in page and "Your name is changed." in page
    assert ada.post("/account/name", {"name": " "}).status_code == 422

    made = ada.post("/account/tokens", {"name": "notebook"})
    assert made.status_code == 201 and "no-store" in made.headers["cache-control"]
    secret = made.text.partition("<code>wp_")[2].partition("<")[0]
    assert secret and f"wp_{secret}" not in ada.get("/account").text
    program = TestClient(client.app, headers={"Authorization": f"Bearer wp_{secret}"})
    assert program.get("/api/whoami-v2").json()["name"] == "Ada <b>Lovelace</b>"
    number = ada.get("/account").text.partition("/account/tokens/")[2].partition("/")[0]
    assert ada.post(f"/account/tokens/{number}/revoke").status_code == 303
    assert program.get("/api/whoami-v2").status_code == 401

    second = Reader(client, engine, ADA)
    page = ada.get("/account").text
    assert page.count("test browser") == 2 and "(this one)" in page
    other = page.partition("/account/sessions/")[2].partition("/")[0]
    assert ada.post(f"/account/sessions/{other}/revoke").status_code == 303
    assert second.get("/account").status_code == 303, "that browser is signed out"
    assert ada.post("/account/sessions/revoke").status_code == 303
    assert ada.get("/account").status_code == 303


def test_another_readers_page_is_not_served_from_a_cache(ada: Reader, anybody: Reader) -> None:
    tag = ada.get("/feed").headers["etag"]
    assert ada.get("/feed", headers={"If-None-Match": tag}).status_code == 304
    page = anybody.get("/feed", headers={"If-None-Match": tag})
    assert page.status_code == 200 and 'href="/account"' not in page.text


# The outbox


def test_administrators_read_the_outbox_and_nothing_else(
    admin: Reader, ada: Reader, anybody: Reader, settings: Settings
) -> None:
    anybody.post("/sign-in", {"email": "bob@example.org"})
    page = admin.get("/outbox")
    assert page.status_code == 200 and "bob@example.org" in page.text
    (file,) = settings.outbox_folder.iterdir()
    shown = admin.get(f"/outbox/{file.name}")
    assert "press the button" in shown.text
    powerless = admin.get(f"/outbox/{file.stem}.html")
    assert (
        "sandbox" in powerless.headers["content-security-policy"]
        and "script-src" not in powerless.headers["content-security-policy"]
    )
    (settings.home / "secret.eml").write_text("Subject: secret\n\n")
    link = settings.outbox_folder / "link.eml"
    link.symlink_to(settings.home / "secret.eml")
    for name in ("../secret.eml", "..%2Fsecret.eml", "%2e%2e/secret.eml", "link.eml", "nothing.eml", "/etc/passwd"):
        assert admin.get(f"/outbox/{name}").status_code == 404, name
    assert ada.get("/outbox").status_code == 403 and anybody.get("/outbox").status_code == 303


def test_a_broken_file_in_the_outbox_breaks_nothing(admin: Reader, settings: Settings) -> None:
    settings.outbox_folder.mkdir(parents=True, exist_ok=True)
    (settings.outbox_folder / "a.eml").write_bytes(
        b"\xff\xfe\x00Subject: =?x?q?=?\nContent-Type: text/html; charset=nonsense\n\n\xff"
    )
    (settings.outbox_folder / "b.eml").write_bytes(b"")
    assert admin.get("/outbox").status_code == 200
    for name in ("a.eml", "b.eml", "a.html"):
        assert admin.get(f"/outbox/{name}").status_code == 200, name


# Limits


def test_the_limiter_counts_in_a_sliding_window() -> None:
    limiter = Limiter()
    assert [limiter.take("x", "a", 2, 10, moment) for moment in (0.0, 1.0)] == [0.0, 0.0]
    assert limiter.take("x", "a", 2, 10, 2.0) == 8.0
    assert limiter.take("x", "b", 2, 10, 2.0) == 0.0 and limiter.take("y", "a", 2, 10, 2.0) == 0.0
    assert limiter.take("x", "a", 2, 10, 10.5) == 0.0 and limiter.take("x", "a", 2, 10, 10.6) > 0


def test_the_limiter_forgets_and_is_exact_under_threads() -> None:
    limiter = Limiter()
    for number in range(MOST_CLIENTS + 50):
        limiter.take("x", str(number), 1, 1e9, 0.0)
    assert len(limiter._seen) == MOST_CLIENTS
    allowed: list[float] = []
    threads = [
        threading.Thread(target=lambda: allowed.extend(limiter.take("y", "a", 25, 60) for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wait == 0.0 for wait in allowed) == 25


def test_commands_make_close_and_list_accounts(
    home: Path, capsys: pytest.CaptureFixture[str], client: TestClient, engine: Engine
) -> None:
    from working_papers.cli import admin as commands
    from working_papers.errors import UserError

    commands.create("Root@Example.org", "The root")
    said = capsys.readouterr().out
    assert "root@example.org (The root) is an administrator" in said
    link = link_in(said, r"/sign-in/\S+")
    reader = Reader(client, engine)
    assert reader.post(link).status_code == 303 and reader.get("/outbox").status_code == 200
    commands.close("root@example.org")
    commands.list_all()
    assert "root@example.org  The root (closed)" in capsys.readouterr().out
    assert reader.get("/outbox").status_code == 303
    commands.reopen("root@example.org")
    commands.list_all(as_json=True)
    assert '"closed": null' in capsys.readouterr().out
    with pytest.raises(UserError, match=r"there is no account of nobody@example\.org"):
        commands.close("nobody@example.org")
