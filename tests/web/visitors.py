"""Readers of the site who are signed in, for tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

from sqlalchemy import Engine
from starlette.testclient import TestClient

from working_papers.daily.accounts.accounts import Account, make_account
from working_papers.daily.accounts.sessions import open_session
from working_papers.daily.accounts.tokens import make_token

ORIGIN = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}


class _Tokens(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "input" and given.get("name") == "form_token":
            self.found.append(given.get("value") or "")


def form_token(page: str) -> str:
    """The token of a page's forms."""
    parser = _Tokens()
    parser.feed(page)
    assert parser.found, "the page has no form"
    assert len(set(parser.found)) == 1
    return parser.found[0]


class Reader:
    """A browser with cookies of its own, signed in or not.

    Attributes:
        account: whose it is; None for a browser that is not signed in.
    """

    def __init__(self, client: TestClient, engine: Engine, email: str = "", *, administrator: bool = False) -> None:
        self.browser = TestClient(client.app, follow_redirects=False)
        self.engine = engine
        self.account: Account | None = None
        if email:
            self.account = make_account(engine, email, administrator=administrator)
            self.browser.cookies.set("session", open_session(engine, self.account, "test browser"))

    @property
    def id(self) -> int:
        """The account's number."""
        assert self.account is not None
        return self.account.id

    def get(self, path: str, **options: Any) -> Any:
        """A page."""
        return self.browser.get(path, **options)

    def token(self) -> str:
        """The form token of this browser."""
        return form_token(self.get("/account" if self.account else "/sign-in").text)

    def post(self, path: str, data: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A form, sent as a browser sends it from a page of the site."""
        fields = {"form_token": self.token(), **(data or {})}
        headers = {**ORIGIN, **options.pop("headers", {})}
        return self.browser.post(path, data=fields, headers=headers, **options)

    def api_token(self) -> str:
        """A new token for programs."""
        return make_token(self.engine, self.id, "test")


def link_in(text: str, pattern: str) -> str:
    """The first address in a text that matches, without its host."""
    found = re.search(rf"https?://[^\s\"'<>]*?({pattern})", text)
    assert found is not None, text[:500]
    return found[1]
