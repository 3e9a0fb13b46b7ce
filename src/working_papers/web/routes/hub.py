"""The papers API of the Hugging Face Hub, so that its clients work here unchanged: paths, parameters and JSON."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter
from sqlalchemy import func, select
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from working_papers.daily.accounts.models import AccountRow
from working_papers.daily.catalogue import PAPERS, StoredPaper, papers_by_numbers
from working_papers.daily.community.activity import Activity
from working_papers.daily.community.models import SubmissionRow
from working_papers.daily.community.trending import trending
from working_papers.daily.feed import Period, feed, period_of
from working_papers.daily.search import IndexDamaged
from working_papers.database import reading
from working_papers.web.limits import limit
from working_papers.web.papers import (
    CURSOR,
    PaperView,
    latest_papers,
    page_of_papers,
    search_titles,
    with_activity,
    with_rooms,
)
from working_papers.web.routes.papers import found_paper
from working_papers.web.site import Site, cached, site_of
from working_papers.web.visitors import api_account, visitor_of

router = APIRouter(include_in_schema=False)

LIST_LIMIT, MOST_LISTED = 50, 100
SEARCH_LIMIT, MOST_FOUND = 20, 120
LONGEST_QUERY = 250
DEEPEST_PAGE = 1_000
CALLS = (500, 300)
SEARCHES = (300, 300)
_WEEK = re.compile(r"(\d{4})-W(\d{2})")
_MONTH = re.compile(r"(\d{4})-(\d{2})")


def _bad(sentence: str) -> HTTPException:
    return HTTPException(400, sentence)


def _json(request: Request, content: Any) -> Response:
    return cached(request, orjson.dumps(content), "application/json")


# What a paper looks like ------------------------------------------------------------------------------------------


def moment(day: dt.date | dt.datetime | None) -> str | None:
    """The one form of a moment that the client reads."""
    if day is None:
        return None
    if not isinstance(day, dt.datetime):
        day = dt.datetime.combine(day, dt.time(), dt.UTC)
    return day.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{day.microsecond // 1000:03}Z"


def _user(name: str) -> dict[str, Any]:
    return {"user": name, "name": name, "fullname": name, "isPro": False, "type": "user", "avatarUrl": ""}


def flat_paper(paper: PaperView) -> dict[str, Any]:
    """A paper with every field at the top."""
    activity: Activity = paper.activity
    content: dict[str, Any] = {
        "id": paper.id,
        "title": paper.title,
        "summary": paper.abstract or paper.summary,
        "authors": [{"name": name, "hidden": False} for name in paper.authors],
        "publishedAt": moment(paper.published or paper.stored.day),
        "submittedOnDailyAt": moment(activity.submitted or paper.stored.day),
        "upvotes": activity.votes,
        "numComments": activity.comments,
        "source": paper.link or None,
        "ai_summary": paper.summary or None,
        "ai_keywords": list(paper.topics),
        "workingPapers": _ours(paper),
    }
    if paper.room is not None and paper.room.paper.code is not None:
        content["githubRepo"] = str(paper.room.paper.code.url)
    if activity.submitted_by:
        content["submittedOnDailyBy"] = _user(activity.submitted_by)
    return content


def _ours(paper: PaperView) -> dict[str, Any]:
    """What this site adds, under one key that the client leaves alone."""
    room = paper.room
    return {
        "page": paper.href,
        "room": room.slug if room else None,
        "runnable": bool(room and room.runnable),
        "verdict": room.record.answer if room and room.record else None,
        "finding": room.finding if room and room.record else None,
        "stale": bool(room and room.stale),
    }


def listed(site: Site, request: Request, paper: PaperView) -> dict[str, Any]:
    """A paper of a list: wrapped, and flat beside it, so that old and new clients find every field."""
    flat = flat_paper(paper)
    inner = {name: value for name, value in flat.items() if name != "workingPapers"}
    # The client takes what it knows out of `paper` first, and what is left at the top overwrites it as it is.
    content = {
        **{name: value for name, value in flat.items() if name != "authors"},
        "paper": inner,
        "publishedAt": moment(paper.activity.submitted or paper.stored.day),
        "isAuthorParticipating": False,
    }
    if paper.activity.submitted_by:
        content["submittedBy"] = _user(paper.activity.submitted_by)
    if paper.room is not None and paper.room.figure is not None:
        content["thumbnail"] = site.absolute(request, f"{paper.href}/figure.svg")
    return content


def _views(site: Site, papers: Sequence[StoredPaper]) -> tuple[PaperView, ...]:
    return with_activity(site.engine, with_rooms(papers, site.rooms), None)


# Parameters -------------------------------------------------------------------------------------------------------


def _number(request: Request, name: str, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and low <= int(text) <= high):
        raise _bad(f"{name} is {text[:40]!r}; expected a number from {low} to {high}")
    return int(text)


def _period(request: Request) -> tuple[Period, dt.date] | None:
    """The day, week or month that is asked for."""
    given = [(name, request.query_params.get(name, "")) for name in ("date", "week", "month")]
    given = [(name, text) for name, text in given if text]
    if len(given) > 1:
        raise _bad("date, week and month exclude each other; give one of them")
    if not given:
        return None
    name, text = given[0]
    try:
        if name == "date":
            return "day", dt.date.fromisoformat(text)
        found = (_WEEK if name == "week" else _MONTH).fullmatch(text)
        if found is None:
            raise ValueError
        first, second = int(found[1]), int(found[2])
        if name == "week":
            return "week", dt.date.fromisocalendar(first, second, 1)
        return "month", dt.date(first, second, 1)
    except ValueError:
        example = {"date": "2025-10-07", "week": "2025-W41", "month": "2025-10"}[name]
        raise _bad(f"{name} is {text[:40]!r}; expected e.g. {example}") from None


# Routes -----------------------------------------------------------------------------------------------------------


@router.get("/api/daily_papers")
def daily_papers(request: Request) -> Response:
    """Papers of the feed: the newest, of a day, week or month, of a submitter, or those that trend."""
    limit(request, "api", *CALLS)
    site = site_of(request)
    count = _number(request, "limit", LIST_LIMIT, 1, MOST_LISTED)
    offset = _number(request, "p", 0, 0, DEEPEST_PAGE) * count
    sort = request.query_params.get("sort", "publishedAt") or "publishedAt"
    if sort not in ("publishedAt", "trending"):
        raise _bad(f"sort is {sort[:40]!r}; expected publishedAt or trending")
    period, submitter = _period(request), request.query_params.get("submitter", "").strip()
    if submitter:
        papers = _submitted(site, submitter, period, count, offset)
    elif period is not None:
        papers = _of_period(site, period, sort, count, offset)
    elif sort == "trending":
        papers = trending(site.engine, count, offset, ranked=site.trending())
    else:
        papers = latest_papers(site.engine, topic=None, limit=count, offset=offset)
    return _json(request, [listed(site, request, paper) for paper in _views(site, papers)])


def _of_period(site: Site, period: tuple[Period, dt.date], sort: str, count: int, offset: int) -> list[StoredPaper]:
    kind, start = period
    if sort != "trending":
        return feed(site.engine, kind, start, None, count, offset).papers
    # Those of the period that trend come first, the others as they came.
    within = PAPERS.c.day.between(*period_of(start, kind))
    ranked = [number for number, _ in site.trending()]
    query = select(PAPERS.c.number).where(within)
    with reading(site.engine) as connection:
        inside = set(connection.execute(query.where(PAPERS.c.number.in_(ranked))).scalars())
        first = [number for number in ranked if number in inside]
        numbers = first[offset : offset + count]
        others = query.where(PAPERS.c.number.not_in(first)).order_by(PAPERS.c.day.desc(), PAPERS.c.number)
        others = others.offset(max(0, offset - len(first))).limit(count - len(numbers))
        numbers += connection.execute(others).scalars()
    return papers_by_numbers(site.engine, numbers)


def _submitted(
    site: Site, name: str, period: tuple[Period, dt.date] | None, count: int, offset: int
) -> list[StoredPaper]:
    accounts = select(AccountRow.id).where(func.lower(AccountRow.name) == name.lower())
    query = select(SubmissionRow.number).where(SubmissionRow.account_id.in_(accounts))
    if period is not None:
        query = query.join(PAPERS, PAPERS.c.number == SubmissionRow.number)
        query = query.where(PAPERS.c.day.between(*period_of(period[1], period[0])))
    query = query.order_by(SubmissionRow.created.desc(), SubmissionRow.number.desc()).limit(count).offset(offset)
    with reading(site.engine) as connection:
        numbers = list(connection.execute(query).scalars())
    return papers_by_numbers(site.engine, numbers)


@router.get("/api/papers/search")
def search_papers(request: Request) -> Response:
    """Papers that the words find."""
    limit(request, "hub_search", *SEARCHES)
    site = site_of(request)
    query = request.query_params.get("q", "").replace("\x00", " ").strip()
    count = _number(request, "limit", SEARCH_LIMIT, 1, MOST_FOUND)
    if len(query) > LONGEST_QUERY:
        raise _bad(f"q has {len(query)} characters; expected at most {LONGEST_QUERY}")
    papers = search(site, query, count)
    return _json(request, [listed(site, request, paper) for paper in _views(site, papers)])


def search(site: Site, query: str, count: int, offset: int = 0) -> list[StoredPaper]:
    """What the index finds; without an index, what titles hold; without words, the newest papers."""
    if not query:
        return latest_papers(site.engine, topic=None, limit=count, offset=offset)
    index = site.index()
    if index is not None:
        try:
            result = index.search(query, limit=count, offset=offset)
            return papers_by_numbers(site.engine, [hit.number for hit in result.hits])
        except IndexDamaged as error:
            site.index_failed(error)
    return search_titles(site.engine, query, days=(None, None), only=None, limit=count)


@router.get("/api/papers")
def all_papers(request: Request) -> Response:
    """All papers, newest first, with a cursor to the following ones."""
    limit(request, "api", *CALLS)
    site = site_of(request)
    count = _number(request, "limit", LIST_LIMIT, 1, MOST_LISTED)
    cursor = request.query_params.get("cursor", "")
    if cursor and not re.fullmatch(CURSOR, cursor):
        raise _bad(f"cursor is {cursor[:40]!r}; expected the one of the link to the next page")
    papers, following = page_of_papers(site.engine, limit=count, cursor=cursor)
    response = _json(request, [listed(site, request, paper) for paper in _views(site, papers)])
    if following is not None:
        target = site.absolute(request, f"/api/papers?cursor={following}&limit={count}")
        response.headers["Link"] = f'<{target}>; rel="next"'
    return response


@router.get("/api/papers/{paper_id:path}")
def paper_info(request: Request, paper_id: str) -> Response:
    """One paper."""
    limit(request, "api", *CALLS)
    site = site_of(request)
    (paper,) = with_activity(site.engine, [found_paper(site, paper_id)], None)
    empty: dict[str, Any] = {
        "linkedModels": [],
        "linkedDatasets": [],
        "linkedSpaces": [],
        "numTotalModels": 0,
        "numTotalDatasets": 0,
    }
    return _json(request, {**flat_paper(paper), **empty})


@router.get("/api/agent-harnesses")
def agent_harnesses() -> Response:
    """Asked for by the `hf` command at every start; an answer makes it ask only once a day."""
    return JSONResponse({"standardEnvVars": [], "harnesses": {}})


@router.get("/api/whoami-v2")
def whoami(request: Request) -> Response:
    """Whose token it is, for tokens of this site."""
    account = api_account(request)
    if account is None:
        return JSONResponse({"error": "Invalid username or password."}, 401)
    assert visitor_of(request).by_token
    content = {
        "type": "user",
        "id": str(account.id),
        "name": account.name,
        "fullname": account.name,
        "email": account.email,
        "isPro": False,
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "token", "role": "write"}},
    }
    return JSONResponse(content, headers={"Cache-Control": "no-store"})
