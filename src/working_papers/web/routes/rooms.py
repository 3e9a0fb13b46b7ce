"""The rooms page: every verdict at a glance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from working_papers.bench.paper import TOPICS
from working_papers.web.bibtex import bibtex
from working_papers.web.contexts import Alternate, Column, RoomsPage
from working_papers.web.feeds import atom, changed
from working_papers.web.papers import PaperView, room_json
from working_papers.web.parameters import Parameters, address
from working_papers.web.site import cached, html, json, site_of
from working_papers.web.verdicts import STATES, RoomView, State

router = APIRouter(include_in_schema=False)

ORDER = list(State)
SORTS: dict[str, tuple[str, Callable[[RoomView], Any]]] = {
    "verdict": ("Verdict", lambda room: (ORDER.index(room.state), room.paper.title.casefold())),
    "title": ("Paper", lambda room: room.paper.title.casefold()),
    "date": ("Date", lambda room: room.paper.first_date),
    "checks": ("Checks", lambda room: (room.held / len(room.checks) if room.checks else -1.0, len(room.checks))),
    "time": ("Time", lambda room: room.record.trial_seconds if room.record else float("inf")),
}
DESCENDING_FIRST = {"date", "checks"}
VERDICTS = ("", *STATES, "stale", "runnable")


@router.get("/rooms")
def rooms_page(request: Request) -> Response:
    """The table, its overview, and what they were filtered and sorted by."""
    return html(request, _page(request))


@router.get("/rooms.json")
def rooms_json(request: Request) -> Response:
    """The same rooms as JSON."""
    rooms = _page(request).rooms
    content = [
        {"id": room.key, "title": room.paper.title, "topics": room.paper.topics, "page": f"/papers/{room.key}"}
        | room_json(room)
        for room in rooms
    ]
    return json(request, content)


@router.get("/rooms.bib")
def rooms_bibtex(request: Request) -> Response:
    """The papers of the same rooms as BibTeX."""
    body = bibtex(_papers(request, _page(request))).encode()
    return cached(request, body, "application/x-bibtex; charset=utf-8")


@router.get("/rooms.atom")
def rooms_atom(request: Request) -> Response:
    """The same rooms as an Atom feed, the newest verdict first: for a reader who waits for verdicts."""
    page = _page(request)
    given = {"topic": page.topics.chosen, "verdict": page.verdict}
    papers = sorted(_papers(request, page), key=lambda paper: (changed(paper), paper.id), reverse=True)
    return atom(
        request,
        site_of(request),
        heading=f"Verdicts on {page.topics.chosen}" if page.topics.chosen else "Verdicts",
        here=address("/rooms.atom", **given),
        page=address("/rooms", **given),
        papers=papers,
    )


def _papers(request: Request, page: RoomsPage) -> list[PaperView]:
    known = site_of(request).papers_of_rooms()
    return [known[room.slug] for room in page.rooms if room.slug in known]


def _page(request: Request) -> RoomsPage:
    site, asked = site_of(request), Parameters(request.query_params)
    sort = asked.choice("sort", tuple(SORTS), "verdict")
    order = asked.choice("order", ("", "up", "down"), "")
    descending = order == "down" or (not order and sort in DESCENDING_FIRST)
    topic = asked.text("topic")
    verdict = asked.choice("verdict", VERDICTS, "")
    everything = list(site.rooms)
    chosen = [room for room in everything if _admitted(room, topic, verdict)]
    chosen.sort(key=lambda room: room.slug)
    chosen.sort(key=SORTS[sort][1], reverse=descending)
    columns = []
    for key, (label, _) in SORTS.items():
        first = "down" if key in DESCENDING_FIRST else "up"
        now = ("down" if descending else "up") if key == sort else ""
        turned = {"up": "down", "down": "up"}.get(now, first)
        href = address("/rooms", topic=topic, verdict=verdict, sort=key, order=turned)
        columns.append(Column(key, label, f"{href}#table", now))
    wall = [(name, [room for room in everything if room.paper.topics[0] == name]) for name in TOPICS]
    return RoomsPage(
        **site.common(request, address("/rooms", topic=topic, verdict=verdict)),
        title="All verdicts",
        description="Every paper with a room, and what its study found.",
        section="rooms",
        notices=tuple(asked.notices),
        alternates=(
            Alternate(address("/rooms.atom", topic=topic, verdict=verdict), "application/atom+xml", "Atom"),
            Alternate(address("/rooms.json", topic=topic, verdict=verdict), "application/json", "JSON"),
            Alternate(address("/rooms.bib", topic=topic, verdict=verdict), "application/x-bibtex", "BibTeX"),
        ),
        tally=site.tally(),
        wall=tuple(
            (name, tuple(sorted(rooms, key=lambda room: (ORDER.index(room.state), room.slug))))
            for name, rooms in wall
            if rooms
        ),
        rooms=tuple(chosen),
        columns=tuple(columns),
        topics=site.topic_choice(topic),
        verdict=verdict,
        sort=sort,
        descending=descending,
    )


def _admitted(room: RoomView, topic: str, verdict: str) -> bool:
    if topic and topic not in room.paper.topics:
        return False
    if verdict == "stale":
        return bool(room.stale)
    if verdict == "runnable":
        return room.runnable
    return not verdict or room.state is STATES[verdict]
