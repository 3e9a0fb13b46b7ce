"""What stands in one subscriber's digest: what trends, new papers of their topics, what their saved searches found."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from working_papers.bench.rooms import Room, rooms
from working_papers.daily.catalogue import TOPICS, StoredPaper, papers_by_numbers
from working_papers.daily.community.activity import activity_of
from working_papers.daily.community.models import SavedSearchRow
from working_papers.daily.community.trending import ranking
from working_papers.daily.digest.subscriptions import Wish
from working_papers.daily.feed import Period, feed
from working_papers.daily.search import IndexDamaged, SearchIndex
from working_papers.database import reading
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

SECTION = 10
"""Papers of one section; a digest is for reading, the page has the rest."""

LEAD_CHARACTERS = 280


@dataclass(frozen=True)
class Verdict:
    """A room's verdict as a badge.

    Attributes:
        answer: 'holds', 'does not hold' or 'inconclusive'.
        finding: what was found, in a sentence.
    """

    answer: str
    finding: str


@dataclass(frozen=True)
class Entry:
    """A paper in a digest."""

    paper: StoredPaper
    votes: int
    comments: int
    verdict: Verdict | None

    @property
    def path(self) -> str:
        """Where its page is."""
        from urllib.parse import quote

        return f"/papers/{quote(self.paper.id, safe='/')}"

    @property
    def lead(self) -> str:
        """The beginning of its summary or abstract."""
        text = " ".join((self.paper.summary or self.paper.abstract).split())
        if len(text) <= LEAD_CHARACTERS:
            return text
        return text[:LEAD_CHARACTERS].rsplit(" ", 1)[0].rstrip(".,;: ") + " …"

    @property
    def byline(self) -> str:
        """Authors and how many more."""
        names = self.paper.authors[:3]
        more = max(self.paper.author_count, len(self.paper.authors)) - len(names)
        if not names:
            return f"{more} authors" if more > 1 else "1 author" if more else ""
        return ", ".join(names) + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Section:
    """A part of a digest: its heading, the papers, and where the whole list is."""

    heading: str
    entries: tuple[Entry, ...]
    path: str


class Contents:
    """Sections of one issue, made once for all subscribers who want the same.

    Args:
        engine: the database.
        settings: name the search index.
        first: first day of the issue.
        last: last day.
    """

    def __init__(self, engine: Engine, settings: Settings, first: dt.date, last: dt.date) -> None:
        self.engine = engine
        self.settings = settings
        self.first, self.last = first, last
        self._rooms = rooms()
        self._index: SearchIndex | None = None
        self._index_tried = False
        self._topics: dict[str, Section | None] = {}
        self._searches: dict[tuple[int, int], Section | None] = {}
        self._trending: Section | None = None
        self._trending_made = False

    def close(self) -> None:
        """Let go of the index."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def sections(self, wish: Wish, account_id: int | None) -> tuple[Section, ...]:
        """What a subscriber gets, empty sections left out; no paper stands in two sections."""
        found: list[Section | None] = []
        if wish.trending:
            found.append(self.trending())
        found += [self.topic(topic) for topic in wish.topics]
        if account_id is not None:
            found += [self.search(number, account_id) for number in wish.searches]
        seen: set[int] = set()
        kept = []
        for section in found:
            if section is None:
                continue
            fresh = tuple(entry for entry in section.entries if entry.paper.number not in seen)
            seen.update(entry.paper.number for entry in fresh)
            if fresh:
                kept.append(Section(section.heading, fresh, section.path))
        return tuple(kept)

    def trending(self) -> Section | None:
        """What readers here vote for and discuss; where they do neither, the issue's new papers."""
        if not self._trending_made:
            numbers = [number for number, _ in ranking(self.engine)[:SECTION]]
            if numbers:
                papers = papers_by_numbers(self.engine, numbers)
                self._trending = self._section("Trending", papers, "/feed?period=trending")
            else:
                period: Period = "day" if self.first == self.last else "week"
                papers = feed(self.engine, period, self.first, limit=SECTION).papers
                self._trending = self._section("New papers", papers, f"/feed?period={period}&start={self.first}")
            self._trending_made = True
        return self._trending

    def topic(self, topic: str) -> Section | None:
        """The issue's papers of a topic, newest first."""
        if topic not in self._topics:
            columns = TOPICS.c
            query = (
                select(columns.number)
                .where(columns.topic == topic, columns.day.between(self.first, self.last))
                .order_by(columns.day.desc(), columns.number)
                .limit(SECTION)
            )
            with reading(self.engine) as connection:
                numbers = list(connection.execute(query).scalars())
            from urllib.parse import urlencode

            path = f"/feed?{urlencode({'topic': topic})}"
            self._topics[topic] = self._section(f"New on {topic}", papers_by_numbers(self.engine, numbers), path)
        return self._topics[topic]

    def search(self, number: int, account_id: int) -> Section | None:
        """The issue's papers that a saved search of the account finds."""
        key = number, account_id  # what is one account's is not another's, whoever's digest is made first
        if key not in self._searches:
            self._searches[key] = self._search(number, account_id)
        return self._searches[key]

    def _search(self, number: int, account_id: int) -> Section | None:
        with reading(self.engine) as connection:
            row = connection.execute(
                select(SavedSearchRow.name, SavedSearchRow.query, SavedSearchRow.key).where(
                    SavedSearchRow.id == number, SavedSearchRow.account_id == account_id
                )
            ).one_or_none()
        index = self._open_index()
        if row is None or index is None:
            return None
        asked = {name: str(value) for name, value in row.query.items()}
        topic = asked.get("topic", "")
        try:
            result = index.search(
                asked.get("q", ""),
                limit=SECTION,
                days=(self.first, self.last),
                categories=[topic] if topic else None,
                only=self._only(asked),
            )
        except IndexDamaged:
            return None
        papers = papers_by_numbers(self.engine, [hit.number for hit in result.hits])
        return self._section(f"Found by “{row.name}”", papers, f"/searches/{row.key}")

    def _only(self, asked: dict[str, str]) -> list[int] | None:
        """The papers that a search's filters by room admit; None for all."""
        from working_papers.daily.catalogue import papers_of_rooms

        runnable, verdict = asked.get("runnable", "") not in ("", "0", "False"), asked.get("verdict", "")
        if not runnable and not verdict:
            return None
        wanted = {"holds": "holds", "fails": "does not hold", "open": "inconclusive"}.get(verdict)
        numbers = []
        for slug, paper in papers_of_rooms(self.engine).items():
            found = self._verdict(self._rooms.get(slug))
            runs = slug in self._rooms and self._rooms[slug].runs
            if (not runnable or runs) and (not verdict or (found is not None and found.answer == wanted)):
                numbers.append(paper.number)
        return numbers

    def _open_index(self) -> SearchIndex | None:
        if not self._index_tried:
            self._index_tried = True
            try:
                self._index = SearchIndex.open(self.settings)
                self._index.catch_up(self.engine)
            except UserError:  # the site's status page says what is wrong with it; a digest goes out without searches
                self._index = None
        return self._index

    def _section(self, heading: str, papers: Sequence[StoredPaper], path: str) -> Section | None:
        if not papers:
            return None
        return Section(heading, tuple(self._entries(papers)), path)

    def _entries(self, papers: Sequence[StoredPaper]) -> Iterable[Entry]:
        activity = activity_of(self.engine, [paper.number for paper in papers])
        for paper in papers:
            seen = activity.get(paper.number)
            room = self._rooms.get(paper.room) if paper.room else None
            yield Entry(paper, seen.votes if seen else 0, seen.comments if seen else 0, self._verdict(room))

    def _verdict(self, room: Room | None) -> Verdict | None:
        if room is None:
            return None
        try:
            record = room.reference
        except UserError:  # a damaged file; the room's own page says so
            return None
        if record is None:
            return None
        decisive = next((check for check in record.checks if check.answer == record.answer), None)
        return Verdict(record.answer, decisive.sentence if decisive else record.summary)
