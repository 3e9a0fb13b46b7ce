"""Search: whatever is typed finds papers or says in a sentence why not."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from working_papers.daily.catalogue import papers_by_numbers
from working_papers.daily.community.saved_searches import PARAMETERS
from working_papers.daily.search import IndexDamaged, SearchResult
from working_papers.database import now
from working_papers.web.bibtex import bibtex
from working_papers.web.contexts import Alternate, Found, Pager, SearchPage
from working_papers.web.feeds import atom
from working_papers.web.limits import limit
from working_papers.web.papers import PaperView, numbers_of_rooms, search_titles, with_activity, with_rooms
from working_papers.web.parameters import Parameters, address
from working_papers.web.site import Site, cached, html, json, site_of
from working_papers.web.text import highlighted, snippet
from working_papers.web.verdicts import STATES
from working_papers.web.visitors import visitor_of

router = APIRouter(include_in_schema=False)

PAGE = 20
DEEPEST_PAGE = 50
LONGEST_QUERY = 4_000
"""Characters of a query that are read."""

SPANS = (30, 365)
"""Days that a feed looks back, before it looks at all papers."""

SEARCHES_A_MINUTE = 120
"""Of one client; a reader who types fast makes a few."""

MARKED_WORDS = 24
_WORD = re.compile(r"\w+")


@router.get("/search")
def search_page(request: Request) -> Response:
    """The form and what was found."""
    return html(request, _page(request))


@router.get("/search.json")
def search_json(request: Request) -> Response:
    """What was found as JSON."""
    page = _page(request)
    content = {
        "query": page.query,
        "total": page.total,
        "milliseconds": round(page.milliseconds, 1),
        "mode": page.mode,
        "problem": page.problem or None,
        "papers": [each.paper.as_json() | {"why": each.why} for each in page.found],
    }
    return json(request, content)


@router.get("/search.bib")
def search_bibtex(request: Request) -> Response:
    """What was found as BibTeX."""
    papers = [each.paper for each in _page(request).found]
    return cached(request, bibtex(papers).encode(), "application/x-bibtex; charset=utf-8")


@router.get("/search.atom")
def search_atom(request: Request) -> Response:
    """The newest of what is found as an Atom feed: for a reader that comes back every day."""
    asked = Parameters(request.query_params)
    query = {name: value for name in PARAMETERS if (value := asked.text(name))}
    days = asked.date("from"), asked.date("to")
    given = {**query, "from": days[0], "to": days[1]}
    heading = f"Search: {query['q'][:80]}" if "q" in query else "Search"
    return atom(
        request,
        site_of(request),
        heading=heading,
        here=address("/search.atom", **given),
        page=address("/search", **given),
        papers=newest_found(request, query, days),
    )


def newest_found(
    request: Request, asked: Mapping[str, str], days: tuple[dt.date | None, dt.date | None] = (None, None)
) -> tuple[PaperView, ...]:
    """What a search finds among the papers of late, the newest first.

    The best of all papers would hardly change from day to day: where no days are asked for, the last month is searched
    first, and more only when that is not enough for a page.

    Args:
        request: the present one, which counts as a search.
        asked: parameters of the search page, those that are filled in.
        days: first and last day.
    """
    site, query, topic = site_of(request), asked.get("q", "")[:LONGEST_QUERY], asked.get("topic", "")
    verdict = asked.get("verdict", "") if asked.get("verdict") in (*STATES, "stale") else ""
    if not query and not topic and not verdict and not asked.get("runnable") and days == (None, None):
        return ()
    limit(request, "search", SEARCHES_A_MINUTE, 60)
    only = _only(site, bool(asked.get("runnable")), verdict)
    today = now().date()
    spans = [(today - dt.timedelta(days=span), None) for span in SPANS] if days == (None, None) else []
    for span in (*spans, days):
        result = _search(site, query, span, topic, only, 1)
        if result is None:
            stored = search_titles(site.engine, query, days=days, only=only, limit=PAGE)
            stored = [paper for paper in stored if not topic or topic in paper.categories]
            break
        stored = papers_by_numbers(site.engine, [hit.number for hit in result.hits])
        if result.total >= PAGE:
            break
    stored.sort(key=lambda paper: (paper.day, paper.number), reverse=True)
    return with_activity(site.engine, with_rooms(stored, site.rooms), None)


def _page(request: Request) -> SearchPage:
    site, asked = site_of(request), Parameters(request.query_params)
    query = asked.text("q")
    if len(query) > LONGEST_QUERY:
        query = query[:LONGEST_QUERY]
        asked.notices.append(f"The first {LONGEST_QUERY:,} characters of the query were read.")
    topic, verdict = asked.text("topic"), asked.choice("verdict", ("", *STATES, "stale"), "")
    first, last, runnable = asked.date("from"), asked.date("to"), asked.flag("runnable")
    number = asked.page(DEEPEST_PAGE)
    wanted = bool(query or topic or verdict or first or last or runnable)
    started = time.perf_counter()
    papers: tuple[PaperView, ...] = ()
    whys: list[str] = []
    total, mode = 0, ""
    if wanted:
        limit(request, "search", SEARCHES_A_MINUTE, 60)
        only = _only(site, runnable, verdict)
        result = _search(site, query, (first, last), topic, only, number)
        if result is not None:
            papers = with_rooms(papers_by_numbers(site.engine, [hit.number for hit in result.hits]), site.rooms)
            reasons = {hit.number: hit.why for hit in result.hits}
            whys = [reasons[paper.stored.number] for paper in papers]
            total, mode = result.total, result.mode
        else:
            stored = search_titles(site.engine, query, days=(first, last), only=only, limit=PAGE)
            papers = with_rooms((paper for paper in stored if not topic or topic in paper.categories), site.rooms)
            whys = ["title"] * len(papers)
            total, mode = len(papers), "titles"
        papers = with_activity(site.engine, papers, visitor_of(request).account)
    milliseconds = 1000 * (time.perf_counter() - started)
    words = frozenset(word.casefold() for word in _WORD.findall(query)[:MARKED_WORDS] if len(word) > 1)
    given = {
        "q": query,
        "topic": topic,
        "from": first,
        "to": last,
        "runnable": 1 if runnable else "",
        "verdict": verdict,
    }
    return SearchPage(
        **site.common(request, address("/search", **given)),
        title=f"Search: {query[:80]}" if query else "Search",
        section="search",
        alternates=(
            Alternate(address("/search.atom", **given), "application/atom+xml", "Atom"),
            Alternate(address("/search.json", **given), "application/json", "JSON"),
            Alternate(address("/search.bib", **given), "application/x-bibtex", "BibTeX"),
        )
        if wanted
        else (),
        query=query,
        notices=tuple(asked.notices),
        asked=wanted,
        found=tuple(_found(paper, why, words) for paper, why in zip(papers, whys, strict=True)),
        total=total,
        milliseconds=milliseconds,
        mode=mode,
        problem=site.index_problem if mode == "titles" else "",
        topics=site.topic_choice(topic),
        first_day=first,
        last_day=last,
        runnable=runnable,
        verdict=verdict,
        pages=Pager(
            address("/search", **given, page=number - 1 if number > 2 else "") if number > 1 else "",
            "Previous results",
            address("/search", **given, page=number + 1) if total > number * PAGE and number < DEEPEST_PAGE else "",
            "More results",
        ),
        shown_from=(number - 1) * PAGE + 1,
        savable={name: str(given[name]) for name in PARAMETERS if given[name]},
    )


def _only(site: Site, runnable: bool, verdict: str) -> list[int] | None:
    """The papers that the filters by room admit; None for all."""
    if not runnable and not verdict:
        return None
    slugs = [
        room.slug
        for room in site.rooms
        if (not runnable or room.runnable)
        and (not verdict or (bool(room.stale) if verdict == "stale" else room.state is STATES[verdict]))
    ]
    return numbers_of_rooms(site.engine, slugs)


def _search(
    site: Site,
    query: str,
    days: tuple[dt.date | None, dt.date | None],
    topic: str,
    only: list[int] | None,
    page: int,
) -> SearchResult | None:
    """Ask the index; None where it cannot be used."""
    index = site.index()
    if index is None:
        return None
    try:
        return index.search(
            query,
            limit=PAGE,
            offset=(page - 1) * PAGE,
            days=None if days == (None, None) else days,
            categories=[topic] if topic else None,
            only=only,
        )
    except IndexDamaged as error:
        site.index_failed(error)
        return None


def _found(paper: PaperView, why: str, words: frozenset[str]) -> Found:
    body = snippet(paper.abstract or paper.summary, words)
    return Found(paper, highlighted(paper.title, words), highlighted(body, words), why)
