"""The front page and the feed: the newest papers, or those of a day, week or month."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from working_papers.daily.catalogue import StoredPaper, paper_count
from working_papers.daily.community.trending import trending
from working_papers.daily.feed import Period, feed, period_of
from working_papers.web.bibtex import bibtex
from working_papers.web.contexts import Alternate, FeedPage, HomePage, Pager
from working_papers.web.feeds import atom
from working_papers.web.papers import PaperView, latest_papers, with_activity, with_rooms
from working_papers.web.parameters import Parameters, address
from working_papers.web.rendering import long_date
from working_papers.web.site import Site, cached, html, json, site_of
from working_papers.web.verdicts import State
from working_papers.web.visitors import visitor_of

PAGE = 30
"""Papers on a page of the feed."""

HOME_PAPERS = 12
HOME_TESTED = 6
DEEPEST_PAGE = 300
"""Pages of the newest papers that can be turned; what is older is found by day, week or month."""

TRENDING = "trending"
PERIODS = ("", TRENDING, "day", "week", "month")

ORDER = list(State)

router = APIRouter(include_in_schema=False)

TAGLINE = "Each paper with what it claims, the method to import, and a study that puts the claim to the test."


@router.get("/")
def home(request: Request) -> Response:
    """What runs and what it showed, then the newest papers."""
    site = site_of(request)
    rooms = sorted(site.rooms, key=lambda room: (ORDER.index(room.state), room.slug))
    papers = site.papers_of_rooms()
    newest = sorted(
        (room for room in rooms if room.record is not None and room.slug in papers),
        key=lambda room: room.record.date if room.record else dt.datetime.min.replace(tzinfo=dt.UTC),
        reverse=True,
    )
    latest = latest_papers(site.engine, topic=None, limit=HOME_PAPERS, offset=0)
    page = HomePage(
        **site.common(request, "/"),
        title=site.settings.site_name,
        description=TAGLINE,
        section="home",
        alternates=_alternates(request, site, ""),
        tally=site.tally(),
        tiles=tuple(rooms),
        tested=tuple(papers[room.slug] for room in newest[:HOME_TESTED]),
        papers=_views(request, latest),
        topics=site.topic_choice(""),
        paper_count=paper_count(site.engine),
    )
    return html(request, page)


@router.get("/feed")
def feed_page(request: Request) -> Response:
    """The papers of a period, or the newest ones."""
    return html(request, _page(request))


@router.get("/feed.json")
def feed_json(request: Request) -> Response:
    """The same papers as JSON."""
    page = _page(request)
    content = {
        "period": page.period or "latest",
        "start": page.start,
        "topic": page.topics.chosen or None,
        "total": page.total,
        "next": page.pages.older.replace("/feed?", "/feed.json?", 1) or None,
        "papers": [paper.as_json() for paper in page.papers],
    }
    return json(request, content)


@router.get("/feed.bib")
def feed_bibtex(request: Request) -> Response:
    """The same papers as BibTeX."""
    body = bibtex(_page(request).papers).encode()
    return cached(request, body, "application/x-bibtex; charset=utf-8")


@router.get("/feed.atom")
def feed_atom(request: Request) -> Response:
    """The same papers as an Atom feed (RFC 4287)."""
    site, page = site_of(request), _page(request)
    given = {"topic": page.topics.chosen, "period": page.period, "start": page.start if _chosen(request) else None}
    return atom(
        request,
        site,
        heading=page.heading,
        here=address("/feed.atom", **given, page=_number(request)),
        page=address("/feed", **given),
        papers=page.papers,
        first=address("/feed.atom", **given),
        older=page.pages.older.replace("/feed?", "/feed.atom?", 1),
        newer=page.pages.newer.replace("/feed?", "/feed.atom?", 1),
    )


def _chosen(request: Request) -> bool:
    """Whether a certain day, week or month is asked for; otherwise a feed goes on with the newest one."""
    return Parameters(request.query_params).date("start") is not None


def _number(request: Request) -> int | str:
    number = Parameters(request.query_params).page(DEEPEST_PAGE)
    return number if number > 1 else ""


def _page(request: Request) -> FeedPage:
    """The feed that the request asks for, in whatever form it is then shown."""
    site, asked = site_of(request), Parameters(request.query_params)
    period = asked.choice("period", PERIODS, "")
    start, topic, number = asked.date("start"), asked.text("topic"), asked.page(DEEPEST_PAGE)
    offset = (number - 1) * PAGE

    def to(**changes: object) -> str:
        return address("/feed", **({"period": period, "start": start, "topic": topic} | changes))

    total: int | None = None
    periods = Pager("", "", "", "")
    if period == TRENDING:
        start = None
        stored = trending(site.engine, PAGE + 1, offset, topic or None, ranked=site.trending())
        more, stored = len(stored) > PAGE and number < DEEPEST_PAGE, stored[:PAGE]
        heading = "Trending papers"
    elif period:
        chosen: Period = "day" if period == "day" else "week" if period == "week" else "month"
        found = feed(site.engine, chosen, start, topic or None, PAGE, offset)
        stored, total, start = found.papers, found.total, found.first_day
        heading = period_label(period, found.first_day, found.last_day)
        periods = Pager(
            to(start=found.next) if found.next else "",
            _label(chosen, found.next),
            to(start=found.previous) if found.previous else "",
            _label(chosen, found.previous),
        )
        more = offset + len(stored) < total
    else:
        stored = latest_papers(site.engine, topic=topic or None, limit=PAGE + 1, offset=offset)
        more, stored = len(stored) > PAGE and number < DEEPEST_PAGE, stored[:PAGE]
        heading = "Latest papers"
    pages = Pager(
        to(page=number - 1 if number > 2 else "") if number > 1 else "",
        "Previous papers" if period == TRENDING else "Newer papers",
        to(page=number + 1) if more else "",
        "More papers" if period == TRENDING else "Older papers",
    )
    shown = f"{heading} on {topic}" if topic else heading
    return FeedPage(
        **site.common(request, to(page=number if number > 1 else "")),
        title=shown,
        description=f"{shown}, with the verdicts of those that run.",
        section="papers",
        notices=tuple(asked.notices),
        alternates=_alternates(request, site, topic, period, start if _chosen(request) else None),
        heading=heading,
        period=period,
        start=start,
        papers=_views(request, stored),
        total=total,
        topics=site.topic_choice(topic),
        periods=periods,
        pages=pages,
        shown_from=offset + 1,
    )


def _views(request: Request, papers: Sequence[StoredPaper]) -> tuple[PaperView, ...]:
    site = site_of(request)
    return with_activity(site.engine, with_rooms(papers, site.rooms), visitor_of(request).account)


def _alternates(
    request: Request, site: Site, topic: str, period: str = "", start: dt.date | None = None
) -> tuple[Alternate, ...]:
    given = {"topic": topic, "period": period, "start": start}
    return (
        Alternate(address("/feed.atom", **given), "application/atom+xml", "Atom"),
        Alternate(address("/feed.json", **given), "application/json", "JSON"),
        Alternate(address("/feed.bib", **given), "application/x-bibtex", "BibTeX"),
    )


def _label(period: Period, first: dt.date | None) -> str:
    """What a link to the neighbouring period says."""
    return "" if first is None else period_label(period, *period_of(first, period))


def period_label(period: str, first: dt.date, last: dt.date) -> str:
    """'7 October 2025', '6 – 12 October 2025' or 'October 2025'."""
    if period == "month":
        return f"{first:%B} {first.year}"
    if period == "day":
        return long_date(first)
    if first.year != last.year:
        return f"{long_date(first)} – {long_date(last)}"
    if first.month != last.month:
        return f"{first.day} {first:%B} – {long_date(last)}"
    return f"{first.day} – {long_date(last)}"
