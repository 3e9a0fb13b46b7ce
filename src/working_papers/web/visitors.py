"""Who a request is from, and whether a form was meant: sessions, tokens, and protection against forged forms."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request

from working_papers.daily.accounts.accounts import Account
from working_papers.daily.accounts.secrets import site_secret
from working_papers.daily.accounts.sessions import LIFETIME, account_of_session
from working_papers.daily.accounts.tokens import account_of_token
from working_papers.web.site import site_of

if TYPE_CHECKING:
    from starlette.responses import Response

LARGEST_FORM = 160 * 1024
"""Bytes; a comment of the greatest length, in a script that is written with many bytes, has 120,000."""

MOST_FIELDS = 200

SESSION, FORM = "session", "form"
"""Cookies: a signed-in browser, and a browser that was given a form without being signed in."""


class SignInNeeded(Exception):
    """A page for accounts was asked for by nobody in particular."""


@dataclass
class Visitor:
    """Who a request is from.

    Attributes:
        account: the account, if it is signed in or has a token of ours.
        by_token: whether a token said so; its requests come from programs, and need no form token.
        session_id: the browser's session.
    """

    account: Account | None
    by_token: bool = False
    session_id: int | None = None
    _anchor: str = ""
    _key: bytes = b""
    _new_anchor: str = field(default="", init=False)

    @property
    def form_token(self) -> str:
        """What a form must bring back; asked for by the templates of pages with a form."""
        if not self._anchor:
            # The browser is known by a cookie of its own until it is signed in.
            self._anchor = self._new_anchor = secrets.token_urlsafe(24)
        return hmac.new(self._key, self._anchor.encode(), hashlib.sha256).hexdigest()

    @property
    def new_anchor(self) -> str:
        """The cookie that must be set for the page's forms to work; empty where there is one."""
        return self._new_anchor

    def may_send(self, token: str) -> bool:
        """Whether a form with that token was made for this visitor."""
        return bool(self._anchor) and hmac.compare_digest(self.form_token.encode(), token.encode())


def is_secure(request: Request) -> bool:
    """Whether the reader's connection is encrypted, as far as is known."""
    return request.url.scheme == "https"


def cookie_name(request: Request, name: str) -> str:
    """The cookie's name; with the prefix that binds it to this host where the connection is encrypted."""
    return f"__Host-{name}" if is_secure(request) else name


def visitor_of(request: Request) -> Visitor:
    """Who the request is from; looked up once a request."""
    known: Visitor | None = getattr(request.state, "visitor", None)
    if known is None:
        known = request.state.visitor = _look_up(request)
    return known


def _look_up(request: Request) -> Visitor:
    engine = site_of(request).engine
    bearer = bearer_token(request)
    if bearer:
        account = account_of_token(engine, bearer)
        if account is not None:
            return Visitor(account, by_token=True)
        # Tokens of other sites come here from clients that send theirs everywhere; they count as none.
    session = request.cookies.get(cookie_name(request, SESSION), "")
    if session:
        found = account_of_session(engine, session)
        if found is not None:
            account, opened = found
            return Visitor(
                account, session_id=opened.id, _anchor=f"session:{session}", _key=site_secret(engine, "forms")
            )
    anchor = request.cookies.get(cookie_name(request, FORM), "")
    return Visitor(None, _anchor=f"{anchor}"[:100], _key=site_secret(engine, "forms"))


def bearer_token(request: Request) -> str:
    """The token in the Authorization header; it is never logged."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


# What routes ask for ----------------------------------------------------------------------------------------------


def signed_in(request: Request) -> Account:
    """The account; without one a reader is led to the page where one signs in, and comes back."""
    account = visitor_of(request).account
    if account is None:
        raise SignInNeeded
    return account


def administrator(request: Request) -> Account:
    """The account, which must be an administrator's."""
    account = signed_in(request)
    if not account.administrator:
        raise HTTPException(403, "Only administrators may do this.")
    return account


def api_account(request: Request) -> Account | None:
    """The account whose token the request brings, if any."""
    visitor = visitor_of(request)
    return visitor.account if visitor.by_token else None


async def read_form(request: Request) -> FormData:
    """The fields of a form that was meant: sent from a page of this site, made for this visitor.

    Raises:
        HTTPException: 403 for a form from elsewhere, 413 for one that is too large, 415 for something else than a form.
    """
    visitor = await run_in_threadpool(visitor_of, request)
    _check_origin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This address takes a form.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_FORM:
            raise HTTPException(413, f"A form may have at most {LARGEST_FORM // 1024} kB.")
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise HTTPException(422, "This form has too many fields.") from error
    form = FormData([*pairs])
    if not visitor.by_token and not visitor.may_send(str(form.get("form_token", ""))):
        raise HTTPException(
            403,
            "This form is out of date or came from another page. Go back, load the page again and send it once more.",
        )
    return form


def _check_origin(request: Request) -> None:
    """Refuse what another site's page sends, as far as browsers say."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "This form came from another site.")
    origin = request.headers.get("origin", "")
    if origin and origin != "null":
        host = urlsplit(origin).netloc
        base = urlsplit(site_of(request).settings.base_url).netloc
        if host not in {request.url.netloc, base} - {""}:
            raise HTTPException(403, "This form came from another site.")


Form = Annotated[FormData, Depends(read_form)]
SignedIn = Annotated[Account, Depends(signed_in)]
Administrator = Annotated[Account, Depends(administrator)]


# Cookies and addresses --------------------------------------------------------------------------------------------


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int | None) -> None:
    """Set one of the site's cookies: out of reach of scripts, and not sent along by other sites' forms."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=seconds,
        path="/",
        secure=is_secure(request),
        httponly=True,
        samesite="lax",
    )


def begin_session(request: Request, response: Response, secret: str) -> None:
    """The browser is signed in from now on."""
    set_cookie(request, response, SESSION, secret, int(LIFETIME.total_seconds()))
    response.delete_cookie(cookie_name(request, FORM), path="/", secure=is_secure(request), httponly=True)


def end_session(request: Request, response: Response) -> None:
    """The browser is signed out from now on."""
    response.delete_cookie(cookie_name(request, SESSION), path="/", secure=is_secure(request), httponly=True)


def finish(request: Request, response: Response) -> Response:
    """Set what the page's forms need, and keep shared caches from giving one reader's page to another."""
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    if visitor is None:
        return response
    if visitor.new_anchor:
        set_cookie(request, response, FORM, visitor.new_anchor, None)
    if visitor.account is not None or visitor.new_anchor:
        headers = MutableHeaders(raw=response.raw_headers)
        control = headers.get("cache-control", "no-cache")
        if "private" not in control and "no-store" not in control:
            headers["cache-control"] = f"private, {control}"
    return response


def safe_next(text: str) -> str:
    """Where to go afterwards: an address of this site, or the front page."""
    text = text[:2000]
    if not text.startswith("/") or text.startswith(("//", "/\\")) or any(ord(character) < 33 for character in text):
        return "/"
    parts = urlsplit(text)
    return "/" if parts.scheme or parts.netloc or "\\" in text else text


def here(request: Request) -> str:
    """The address of the page that was asked for, for coming back to it."""
    query = request.url.query
    return quote(request.url.path, safe="/") + (f"?{query}" if query else "")


def back(request: Request, otherwise: str = "/") -> str:
    """The page of this site that the reader came from."""
    parts = urlsplit(request.headers.get("referer", ""))
    if parts.netloc != request.url.netloc:
        return otherwise
    return safe_next(parts.path + (f"?{parts.query}" if parts.query else ""))


def own_address(request: Request) -> str:
    """The site's address for e-mails. Not taken from the Host header: whoever sends a request can write that."""
    settings = site_of(request).settings
    if settings.base_url:
        return settings.base_url.rstrip("/")
    server = request.scope.get("server")
    if not server or server[1] is None or server[0] == "testserver":
        return f"{request.url.scheme}://{settings.host}:{settings.port}"
    host = f"[{server[0]}]" if ":" in server[0] else server[0]
    return f"{request.url.scheme}://{host}:{server[1]}"
