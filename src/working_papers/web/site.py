"""What all pages of a running site share: the database, the index, the rooms; and how a page becomes a response."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from starlette.responses import HTMLResponse, Response

from working_papers.bench.paper import TOPICS
from working_papers.daily.catalogue import StoredPaper, list_topics, papers_by_numbers, papers_of_rooms
from working_papers.daily.community.trending import ranking
from working_papers.daily.search import IndexDamaged, SearchIndex
from working_papers.errors import UserError
from working_papers.web.contexts import Page, Tally, TopicChoice
from working_papers.web.papers import PaperView
from working_papers.web.rendering import render
from working_papers.web.verdicts import Rooms, State

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from starlette.requests import Request

    from working_papers.config import Settings

TOPICS_SECONDS = 60.0
"""How long the list of topics may lag behind an import."""

SIMILAR_SECONDS = 600.0
"""How long similar papers may lag behind new ones; among millions, finding them is most of a page's time."""

SIMILAR_KEPT = 10_000

TRENDING_SECONDS = 20.0
"""How long what trends may lag behind votes at most; the counts themselves never do."""

TRENDING_SHARE = 50
"""It is kept for so many times as long as it took: on a small site nobody notices, on a large one it costs 2 %."""

RETRY_SECONDS = 5.0
"""How often a damaged index is tried again."""

logger = logging.getLogger(__name__)


class Site:
    """One running site; safe to use from several threads."""

    def __init__(self, settings: Settings, engine: Engine, rooms: Rooms) -> None:
        self.settings = settings
        self.engine = engine
        self.rooms = rooms
        self._index: SearchIndex | None = None
        self._index_problem = ""
        self._index_tried = float("-inf")
        self._index_lock = threading.Lock()
        self._similar: dict[int, tuple[float, list[int]]] = {}
        self._topics: list[str] = []
        self._topics_read = float("-inf")
        self.closing = False
        self.watchers = 0
        self._trending: list[tuple[int, float]] | None = None
        self._trending_until = float("-inf")
        self._trending_lock = threading.Lock()

    # The search index -------------------------------------------------------------------------------------------------

    def index(self) -> SearchIndex | None:
        """The search index; None where it cannot be used, and then `index_problem` says why."""
        if self._index is None and time.monotonic() - self._index_tried > RETRY_SECONDS:
            with self._index_lock:
                if self._index is None:
                    self._index_tried = time.monotonic()
                    try:
                        self._index = SearchIndex.open(self.settings)
                        self._index_problem = ""
                    except UserError as error:
                        self._note_index_problem(error)
        return self._index

    @property
    def index_problem(self) -> str:
        """Why there is no index, as a sentence."""
        return self._index_problem

    def index_failed(self, error: IndexDamaged) -> None:
        """The index turned out to be damaged: do without, and try again later."""
        with self._index_lock:
            self._note_index_problem(error)
            self._index_tried = time.monotonic()
            if self._index is not None:
                self._index.close()
                self._index = None

    def _note_index_problem(self, error: UserError) -> None:
        if str(error) != self._index_problem:
            logger.error("%s", error)
        self._index_problem = str(error)

    def close(self) -> None:
        """Let go of the index and the database."""
        self.closing = True
        if self._index is not None:
            self._index.close()
            self._index = None
        self.engine.dispose()

    def similar(self, paper: StoredPaper, limit: int) -> list[StoredPaper]:
        """Papers like a paper, remembered for a while; none where the index cannot be used."""
        index = self.index()
        if index is None:
            return []
        known = self._similar.get(paper.number)
        if known is None or known[0] < time.monotonic():
            try:
                hits = index.similar(paper.number, limit, text=f"{paper.title}\n{paper.text}")
            except IndexDamaged as error:
                self.index_failed(error)
                return []
            if len(self._similar) >= SIMILAR_KEPT:
                self._similar.clear()
            known = self._similar[paper.number] = (time.monotonic() + SIMILAR_SECONDS, [hit.number for hit in hits])
        return papers_by_numbers(self.engine, known[1])

    def trending(self) -> list[tuple[int, float]]:
        """What trends, with scores; counted by one thread at a time, while the others use what it counted before."""
        known, started = self._trending, time.monotonic()
        if started < self._trending_until and known is not None:
            return known
        if not self._trending_lock.acquire(blocking=known is None):
            return known or []
        try:
            if self._trending is None or time.monotonic() >= self._trending_until:
                self._trending = ranking(self.engine)
                ended = time.monotonic()
                self._trending_until = ended + min(TRENDING_SECONDS, TRENDING_SHARE * (ended - started))
            return self._trending
        finally:
            self._trending_lock.release()

    # What several pages show ------------------------------------------------------------------------------------------

    def tally(self) -> Tally:
        """How many rooms stand where."""
        rooms = list(self.rooms)
        counts = Counter(room.state for room in rooms)
        return Tally({state: counts[state] for state in State}, sum(bool(room.stale) for room in rooms))

    def papers_of_rooms(self) -> dict[str, PaperView]:
        """The papers that have a room, by its slug."""
        papers = papers_of_rooms(self.engine)
        return {slug: PaperView(paper, self.rooms.get(slug)) for slug, paper in papers.items()}

    def topic_choice(self, chosen: str) -> TopicChoice:
        """The topics of the rooms, and the categories that imports brought."""
        if time.monotonic() - self._topics_read > TOPICS_SECONDS:
            self._topics = list_topics(self.engine)
            self._topics_read = time.monotonic()
        used = set(self._topics)
        ours = tuple(topic for topic in TOPICS if topic in used)
        others = tuple(topic for topic in self._topics if topic not in TOPICS)
        groups = tuple((label, topics) for label, topics in (("Topics", ours), ("Categories", others)) if topics)
        if chosen and not any(chosen in topics for _, topics in groups):
            groups = (*groups, ("Chosen", (chosen,)))
        return TopicChoice(groups, chosen)

    # Responses --------------------------------------------------------------------------------------------------------

    def absolute(self, request: Request, path: str) -> str:
        """The full address of a path."""
        base = self.settings.base_url or f"{request.url.scheme}://{request.url.netloc}"
        return base.rstrip("/") + path

    def common(self, request: Request, path: str | None = None) -> dict[str, Any]:
        """What every page's context begins with.

        Args:
            request: the present one.
            path: the address by which the page should be known; the one asked for by default.
        """
        shown = quote(request.url.path, safe="/") if path is None else path
        from working_papers.web.visitors import here, visitor_of

        return {
            "site_name": self.settings.site_name,
            "canonical": self.absolute(request, shown),
            "visitor": visitor_of(request),
            "here": here(request) if request.method == "GET" else shown,
        }


def site_of(request: Request) -> Site:
    """The site that a request is for."""
    site: Site = request.app.state.site
    return site


def html(request: Request, page: Page, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A page, or 304 where the reader has it already; answers to forms are not kept."""
    from working_papers.web.visitors import finish

    body = render(page).encode("utf-8", "replace")
    if status != 200 or headers is not None or request.method != "GET":
        return finish(request, HTMLResponse(body, status, headers={"Cache-Control": "no-store", **(headers or {})}))
    return finish(request, cached(request, body, "text/html; charset=utf-8"))


def cached(request: Request, body: bytes, media_type: str) -> Response:
    """A response that the reader may keep but must ask about."""
    tag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding, Cookie"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def json(request: Request, content: Any) -> Response:
    """The JSON twin of a page."""
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    return cached(request, body, "application/json")


def file_response(request: Request, file: Path, version: str, media_type: str, policy: str) -> Response:
    """A file under an address that names its version."""
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable"
        if request.query_params.get("v") == version
        else "no-cache",
        "ETag": f'"{version}"',
        "Content-Security-Policy": policy,
        "Vary": "Accept-Encoding",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.read_bytes(), media_type=media_type, headers=headers)


def joined(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
