"""The application: routes, what holds for all of them, and errors as pages."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Match

from working_papers.bench.rooms import rooms as all_rooms
from working_papers.database import open_database
from working_papers.errors import UserError
from working_papers.web import metrics
from working_papers.web.contexts import ErrorPage
from working_papers.web.limits import Limiter
from working_papers.web.metrics import Metrics, Watched
from working_papers.web.middleware import SECURITY_HEADERS, Bodies, Head, Headers
from working_papers.web.parameters import LONGEST_SHOWN, address
from working_papers.web.rendering import environment
from working_papers.web.routes import (
    accounts,
    api,
    community,
    feed,
    hub,
    papers,
    rooms,
    runs,
    search,
    site_map,
    static,
    status,
    subscriptions,
)
from working_papers.web.site import Site, html, joined
from working_papers.web.verdicts import Rooms
from working_papers.web.visitors import SignInNeeded, back, here

if TYPE_CHECKING:
    from working_papers.bench.rooms import Room
    from working_papers.config import Settings

TEMPLATES = ("home.html", "feed.html", "paper.html", "rooms.html", "search.html", "status.html", "error.html")
"""Compiled when the site starts, so that no reader waits for it."""

MOST_NAMED = 5
"""Wrong parameters that an error names."""

logger = logging.getLogger(__name__)


def create_app(settings: Settings, found: Mapping[str, Room] | None = None) -> FastAPI:
    """The site as an ASGI application.

    Args:
        settings: of this installation.
        found: the rooms it shows; all installed ones by default.

    Returns:
        The application. Its lifespan opens the database (creating or migrating it) and the search index.
    """
    known = all_rooms() if found is None else found

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        site = Site(settings, open_database(settings), Rooms(known))
        app.state.site = site
        for name in TEMPLATES:
            environment().get_template(name)
        site.index()
        yield
        site.close()

    app = FastAPI(
        title=settings.site_name,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=True,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.limiter = Limiter()
    app.include_router(api.pages)
    app.include_router(api.router)
    families = (hub, feed, rooms, search, status, metrics, static, site_map, accounts, subscriptions, runs, community)
    for family in (*families, papers):  # the last one's addresses begin like those of others
        app.include_router(family.router)
    app.add_middleware(GZipMiddleware, minimum_size=800, compresslevel=5)
    app.add_middleware(Head)
    app.add_middleware(Bodies)
    app.add_middleware(Headers)
    app.add_middleware(Watched, metrics=app.state.metrics)
    app.add_exception_handler(SignInNeeded, _sign_in_needed)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unusable)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(Exception, _own_error)
    return app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    said = str(error.detail or "")
    phrase = HTTPStatus(status).phrase
    if status == HTTPStatus.NOT_FOUND:
        sentence = said if said != phrase else "There is no page at this address."
        return _error(request, status, "Not found", sentence)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        methods = _methods(request)
        sentence = f"{request.method[:20]} is not for this address; it takes {joined(methods)}."
        response = _error(request, status, "Not that way", sentence)
        response.headers["Allow"] = ", ".join(methods)
        return response
    response = _error(request, status, phrase, said if said != phrase else "This request cannot be answered.")
    response.headers.update(error.headers or {})
    return response


def _methods(request: Request) -> list[str]:
    """All methods that an address takes; the router itself names only those of the first route that fits."""
    routes = request.app.router.routes
    found = [
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["GET", "HEAD", *found[1:]] if "GET" in found else found


def _sign_in_needed(request: Request, error: Exception) -> Response:
    if request.url.path.startswith("/api/") or "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"error": "sign in, or send a token of this site"}, 401, {"WWW-Authenticate": "Bearer"})
    target = here(request) if request.method == "GET" else back(request)
    return RedirectResponse(address("/sign-in", next=target if target != "/" else ""), 303)


def _unusable(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if request.url.path.startswith("/api/"):
        return _error(request, 422, "Cannot be used", "; ".join(map(_wrong, error.errors()[:MOST_NAMED])))
    names = sorted({str(each["loc"][-1]) for each in error.errors()})
    return _error(request, 422, "Cannot be used", f"Part of this address cannot be used: {', '.join(names)}.")


def _wrong(each: Mapping[str, Any]) -> str:
    """What a program sent and what was expected, e.g. "limit is '0': Input should be greater than or equal to 1"."""
    name = ".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0])
    given, message = repr(each.get("input")), str(each["msg"]).removeprefix("Value error, ")
    shown = given if len(given) <= LONGEST_SHOWN else f"{given[:LONGEST_SHOWN]}..."
    return f"{name[:LONGEST_SHOWN]} is {shown}: {message}"


def _database_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    logger.error("database: %s", error.orig)
    site: Site = request.app.state.site
    url = site.engine.url.render_as_string(hide_password=True)
    remedy = (
        f"{url} cannot be read ({error.orig}). The administrator may restore a copy, or move it away to start afresh."
    )
    local = request.client is not None and request.client.host in {"127.0.0.1", "::1", "testclient"}
    # Addresses of files and servers are for whoever runs the site, not for everyone who reads it.
    sentence = f"The database {remedy}" if local else "The database cannot be read. The site's log has the details."
    return _error(request, 503, "The papers cannot be read just now", sentence)


def _user_error(request: Request, error: Exception) -> Response:
    logger.error("%s", error)
    sentence = str(error)
    return _error(request, 503, "Not available just now", sentence[:1].upper() + sentence[1:] + ".")


def _own_error(request: Request, _error_: Exception) -> Response:
    response = _error(
        request, 500, "Something went wrong here", "The fault is the site's, not yours. Its log has the details."
    )
    response.headers.update(SECURITY_HEADERS)  # this response is made outside the middleware that adds them
    return response


def _error(request: Request, status: int, heading: str, *sentences: str) -> Response:
    """An error in the form that was asked for."""
    path = request.url.path
    if path.endswith(".json") or path.startswith("/api/") or path == "/healthz":
        sentence = " ".join(sentences)
        # The client of the Hub shows both; a header can only hold what is ASCII.
        headers = {"X-Error-Message": sentence} if sentence.isascii() and sentence.isprintable() else {}
        return JSONResponse({"error": sentence}, status, headers)
    settings: Settings = request.app.state.settings
    page = ErrorPage(
        site_name=settings.site_name,
        title=heading,
        canonical="",
        status=status,
        heading=heading,
        sentences=sentences,
    )
    return html(request, page, status)
