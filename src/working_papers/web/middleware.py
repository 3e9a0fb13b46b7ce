"""What holds for every response: security headers, HEAD, and the time it took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers as RequestHeaders
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

FIGURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""For figures: their ink follows the reader's light or dark scheme by a style inside the SVG; scripts never run."""


LONGEST_REQUEST_ID = 200


def request_id(scope: Scope) -> str:
    """The name that the client gave to its request, if it can be repeated safely in a header."""
    headers = RequestHeaders(scope=scope)
    given = headers.get("x-request-id") or headers.get("x-amzn-trace-id") or ""
    return given if len(given) <= LONGEST_REQUEST_ID and given.isascii() and given.isprintable() else ""


class Headers:
    """Adds the security headers that a response has not set itself, `Server-Timing` and the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, asked = time.perf_counter(), request_id(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if asked:
                    headers["X-Request-Id"] = asked  # which the client of the Hub shows with errors
                headers["Server-Timing"] = f"total;dur={1000 * (time.perf_counter() - started):.1f}"
            await send(message)

        await self.app(scope, receive, with_headers)


LARGEST_BODY = 2**20
LARGEST_BODIES = {"/api/v1/shared-runs": 6 * 2**20}
"""Bytes that a request may bring; records of runs may be larger than forms."""


class Bodies:
    """Refuses requests that bring more than any of them needs, before it is all read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = LARGEST_BODIES.get(scope["path"], LARGEST_BODY)
        length = RequestHeaders(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > most:
            sentence = f"A request to this address may bring at most {most:,} bytes."
            for_program = scope["path"].startswith("/api/")
            answer = JSONResponse({"error": sentence}, 413) if for_program else PlainTextResponse(f"{sentence}\n", 413)
            await answer(scope, receive, send)
            return
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise HTTPException(413, f"A request to this address may bring at most {most:,} bytes.")
            return message

        await self.app(scope, limited, send)


class Head:
    """Answers HEAD as GET without the body, for every page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, without_body)
