"""What each template is given: one dataclass a page."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from markupsafe import Markup

    from working_papers.daily.catalogue import StoredImport
    from working_papers.daily.records import BadRecord
    from working_papers.daily.search import IndexStatus
    from working_papers.web.papers import PaperView
    from working_papers.web.verdicts import Figure, RoomView, State


@dataclass(frozen=True)
class Alternate:
    """Another form of the same page."""

    href: str
    media_type: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What every page has.

    Attributes:
        site_name: name of the site.
        title: of the page, for the window and for links to it.
        description: one sentence for links to it.
        canonical: its full address.
        section: which entry of the navigation is current.
        query: what stands in the search box.
        notices: what was left out of the request, and other things to say above the page.
        alternates: other forms of the page.
    """

    template: ClassVar[str]

    site_name: str
    title: str
    description: str = ""
    canonical: str
    section: str = ""
    query: str = ""
    notices: tuple[str, ...] = ()
    alternates: tuple[Alternate, ...] = ()


@dataclass(frozen=True)
class Tally:
    """How many rooms stand where, in the order of the states."""

    counts: Mapping[State, int]
    stale: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def decided(self) -> int:
        """Rooms with a verdict."""
        return sum(count for state, count in self.counts.items() if state.key in {"holds", "fails", "open"})


@dataclass(frozen=True)
class TopicChoice:
    """Topics to choose from, in groups."""

    groups: tuple[tuple[str, tuple[str, ...]], ...]
    chosen: str


@dataclass(frozen=True)
class Pager:
    """Neighbouring pages; an empty address where there is none."""

    newer: str
    newer_label: str
    older: str
    older_label: str


@dataclass(frozen=True, kw_only=True)
class HomePage(Page):
    """The front page."""

    template: ClassVar[str] = "home.html"

    tally: Tally
    tiles: tuple[RoomView, ...]
    tested: tuple[PaperView, ...]
    papers: tuple[PaperView, ...]
    topics: TopicChoice
    paper_count: int


@dataclass(frozen=True, kw_only=True)
class FeedPage(Page):
    """Papers of a period, or the newest ones."""

    template: ClassVar[str] = "feed.html"

    heading: str
    period: str
    start: dt.date | None
    papers: tuple[PaperView, ...]
    total: int | None
    topics: TopicChoice
    periods: Pager
    pages: Pager
    shown_from: int


@dataclass(frozen=True, kw_only=True)
class PaperPage(Page):
    """One paper."""

    template: ClassVar[str] = "paper.html"

    paper: PaperView
    similar: tuple[PaperView, ...]
    bibtex: str
    runs: tuple[RunView, ...]
    meta: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RunView:
    """A run of this installation."""

    id: int
    started: dt.datetime
    scale: str
    sham: bool
    outcome: str
    state: State | None
    error: str
    figure: Figure | None


@dataclass(frozen=True)
class Column:
    """A column of the table of rooms, with the address that sorts by it."""

    key: str
    label: str
    href: str
    direction: str


@dataclass(frozen=True, kw_only=True)
class RoomsPage(Page):
    """All verdicts."""

    template: ClassVar[str] = "rooms.html"

    tally: Tally
    wall: tuple[tuple[str, tuple[RoomView, ...]], ...]
    rooms: tuple[RoomView, ...]
    columns: tuple[Column, ...]
    topics: TopicChoice
    verdict: str
    sort: str
    descending: bool


@dataclass(frozen=True)
class Found:
    """A paper that was found, with the part of it that matches."""

    paper: PaperView
    title: Markup
    snippet: Markup
    why: str


@dataclass(frozen=True, kw_only=True)
class SearchPage(Page):
    """Search with its results."""

    template: ClassVar[str] = "search.html"

    asked: bool
    found: tuple[Found, ...]
    total: int
    milliseconds: float
    mode: str
    problem: str
    topics: TopicChoice
    first_day: dt.date | None
    last_day: dt.date | None
    runnable: bool
    verdict: str
    pages: Pager
    shown_from: int


@dataclass(frozen=True, kw_only=True)
class StatusPage(Page):
    """Imports and index."""

    template: ClassVar[str] = "status.html"

    paper_count: int
    imports: tuple[StoredImport, ...]
    rejections: Mapping[int, tuple[BadRecord, ...]]
    index: IndexStatus | None
    index_problem: str
    revision: int
    tally: Tally
    room_problems: tuple[str, ...]
    versions: Mapping[str, str]
    pages: Pager


@dataclass(frozen=True, kw_only=True)
class ErrorPage(Page):
    """Something was not found, or went wrong."""

    template: ClassVar[str] = "error.html"

    status: int
    heading: str
    sentences: tuple[str, ...] = field(default=())
