"""Papers as pages show them: a row of the catalogue together with its room."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import select

from working_papers.daily.catalogue import COLUMNS, PAPERS, TOPICS, StoredPaper, papers_by_numbers, stored_paper
from working_papers.daily.community.activity import NOTHING, Activity, activity_of, voted_by
from working_papers.database import reading
from working_papers.web.text import lead

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from working_papers.daily.accounts.accounts import Account
    from working_papers.web.verdicts import Rooms, RoomView

NAMES_IN_LISTS = 3
"""Authors named in a list before the rest is counted."""

LIKE_WORDS = 8
"""Words of a query that the plain search in titles looks at."""


@dataclass(frozen=True)
class PaperView:
    """A paper with its room, if it has one, and what readers here have done with it.

    Attributes:
        stored: its row of the catalogue.
        room: its room.
        activity: votes and comments.
        voted: whether the present reader votes for it.
    """

    stored: StoredPaper
    room: RoomView | None
    activity: Activity = NOTHING
    voted: bool = False

    @property
    def id(self) -> str:
        return self.stored.id

    @property
    def title(self) -> str:
        return self.stored.title

    @property
    def authors(self) -> tuple[str, ...]:
        """Names in order; the room's where the catalogue has none."""
        return self.stored.authors or (self.room.paper.authors if self.room else ())

    @property
    def author_count(self) -> int:
        return max(self.stored.author_count, len(self.authors))

    @property
    def byline(self) -> str:
        """Authors for a list: 'A, B, C and 4 others', '6 authors', or nothing."""
        names = self.authors
        if not names:
            count = self.author_count
            return "" if count == 0 else "1 author" if count == 1 else f"{count} authors"
        rest = self.author_count - NAMES_IN_LISTS
        if rest <= 1 and len(names) == self.author_count:
            return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
        shown = names[:NAMES_IN_LISTS]
        others = self.author_count - len(shown)
        return f"{', '.join(shown)} and {others} other{'s' if others != 1 else ''}"

    @property
    def published(self) -> dt.date | None:
        return self.stored.published

    @property
    def date(self) -> dt.date:
        """The day shown: when the paper appeared, or its day in the feed."""
        return self.stored.published or self.stored.day

    @property
    def topics(self) -> tuple[str, ...]:
        return self.stored.categories

    @property
    def abstract(self) -> str:
        return self.stored.abstract

    @property
    def summary(self) -> str:
        return self.stored.summary or (self.room.paper.summary if self.room else "")

    @property
    def lead(self) -> str:
        """What a list says of the paper: the plain-words summary, else the abstract."""
        return lead(self.summary or self.abstract)

    @property
    def doi(self) -> str:
        return self.stored.doi or ""

    @property
    def venue(self) -> str:
        return (self.room.paper.venue if self.room else "") or self.stored.journal or ""

    @property
    def arxiv(self) -> str | None:
        return self.stored.arxiv

    @property
    def link(self) -> str:
        """Where the paper itself is; empty when nobody said."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        if self.doi:
            return f"https://doi.org/{quote(self.doi, safe='/:;()')}"
        url = self.stored.url or ""
        return url if url.startswith(("https://", "http://")) else ""

    @property
    def pdf(self) -> str:
        return f"https://arxiv.org/pdf/{self.arxiv}" if self.arxiv else ""

    @property
    def href(self) -> str:
        """The address of its page here."""
        return href_of(self.id)

    def as_json(self) -> dict[str, Any]:
        """The paper for the JSON twins of pages."""
        room = self.room
        return {
            "id": self.id,
            "title": self.title,
            "authors": list(self.authors),
            "author_count": self.author_count,
            "published": self.published,
            "day": self.stored.day,
            "topics": list(self.topics),
            "votes": self.activity.votes,
            "comments": self.activity.comments,
            "submitted_by": self.activity.submitted_by,
            "summary": self.summary,
            "abstract": self.abstract,
            "venue": self.venue,
            "doi": self.doi or None,
            "url": self.link or None,
            "votes_elsewhere": self.stored.upvotes,
            "comments_elsewhere": self.stored.comment_count,
            "page": self.href,
            "room": None if room is None else room_json(room),
        }


def href_of(id: str) -> str:
    """The address of a paper's page."""
    return f"/papers/{quote(id, safe='/')}"


def room_json(room: RoomView, *, full: bool = False) -> dict[str, Any]:
    """A room for JSON: where it stands, or with `full` its claims and whole record."""
    record = room.record
    brief: dict[str, Any] = {
        "slug": room.slug,
        "runnable": room.runnable,
        "verdict": record.answer if record else None,
        "state": room.state.value,
        "stale": room.stale or None,
        "question": record.question if record else None,
        "finding": room.finding or None,
        "checks": [] if record is None else [check.model_dump(mode="json") for check in record.checks],
    }
    if full:
        brief["claims"] = [claim.model_dump(mode="json") for claim in room.paper.claims]
        brief["record"] = record.model_dump(mode="json") if record else None
        brief["import"] = room.method.import_line if room.method else None
    return brief


def with_rooms(papers: Iterable[StoredPaper], rooms: Rooms) -> tuple[PaperView, ...]:
    """The papers, each with its room."""
    return tuple(PaperView(paper, rooms.get(paper.room)) for paper in papers)


def with_activity(engine: Engine, papers: Iterable[PaperView], reader: Account | None) -> tuple[PaperView, ...]:
    """The papers with votes and comments, in two or three queries for all of them."""
    views = tuple(papers)
    numbers = [view.stored.number for view in views]
    found = activity_of(engine, numbers)
    mine = voted_by(engine, reader.id, numbers) if reader is not None else set()
    return tuple(replace(view, activity=found[view.stored.number], voted=view.stored.number in mine) for view in views)


# Queries ----------------------------------------------------------------------------------------------------------


def latest_papers(engine: Engine, *, topic: str | None, limit: int, offset: int) -> list[StoredPaper]:
    """The newest papers, of one topic or of all.

    Args:
        engine: the database.
        topic: a category or topic.
        limit: most papers.
        offset: papers passed over.
    """
    columns = TOPICS.c if topic is not None else PAPERS.c
    query = select(columns.number).order_by(columns.day.desc(), columns.number.desc()).limit(limit).offset(offset)
    if topic is not None:
        query = query.where(TOPICS.c.topic == topic)
    with reading(engine) as connection:
        numbers = list(connection.execute(query).scalars())
    return papers_by_numbers(engine, numbers)


CURSOR = "[0-9]{1,7}-[0-9]{1,9}"
"""What a cursor looks like: the day and the number of the last paper before it."""


def page_of_papers(
    engine: Engine,
    *,
    limit: int,
    cursor: str = "",
    topic: str = "",
    days: tuple[dt.date | None, dt.date | None] = (None, None),
    only: Iterable[int] | None = None,
) -> tuple[list[StoredPaper], str | None]:
    """Papers newest first, in pages that neither repeat nor leave out papers when others come meanwhile.

    Args:
        engine: the database.
        limit: most papers.
        cursor: what the page before gave, of the form `CURSOR`; empty for the first page.
        topic: only papers of this topic or category.
        days: first and last day of the feed, either may be None.
        only: only these papers, by number.

    Returns:
        The papers, and the cursor of the following page, None where there is none.
    """
    columns = TOPICS.c if topic else PAPERS.c
    query = select(columns.day, columns.number).order_by(columns.day.desc(), columns.number.desc()).limit(limit + 1)
    if topic:
        query = query.where(columns.topic == topic)
    if days[0] is not None:
        query = query.where(columns.day >= days[0])
    if days[1] is not None:
        query = query.where(columns.day <= days[1])
    if only is not None:
        query = query.where(columns.number.in_(list(only)))
    if cursor:
        ordinal, _, number = cursor.partition("-")
        day = dt.date.fromordinal(min(max(int(ordinal), 1), dt.date.max.toordinal()))
        # The first condition says nothing new, but is the one that finds its place in the index.
        query = query.where(columns.day <= day, (columns.day < day) | (columns.number < int(number)))
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    shown = rows[:limit]
    following = f"{shown[-1].day.toordinal()}-{shown[-1].number}" if len(rows) > limit else None
    return papers_by_numbers(engine, [row.number for row in shown]), following


def numbers_of_rooms(engine: Engine, slugs: Iterable[str]) -> list[int]:
    """The papers of those rooms, as numbers."""
    with reading(engine) as connection:
        return list(connection.execute(select(PAPERS.c.number).where(PAPERS.c.room.in_(list(slugs)))).scalars())


def search_titles(
    engine: Engine,
    text: str,
    *,
    days: tuple[dt.date | None, dt.date | None],
    only: Iterable[int] | None,
    limit: int,
) -> list[StoredPaper]:
    """Papers whose titles hold all the words, newest first: what is left of search without an index.

    Args:
        engine: the database.
        text: what the reader typed; its first words count.
        days: first and last day, either may be None.
        only: one of these papers.
        limit: most papers.
    """
    words = [word for word in text.replace("\x00", " ").split() if any(map(str.isalnum, word))][:LIKE_WORDS]
    query = select(*COLUMNS).order_by(PAPERS.c.day.desc(), PAPERS.c.number.desc()).limit(limit)
    for word in words:
        query = query.where(PAPERS.c.title.icontains(word[:100].strip('",.:;'), autoescape=True))
    first, last = days
    if first is not None:
        query = query.where(PAPERS.c.day >= first)
    if last is not None:
        query = query.where(PAPERS.c.day <= last)
    if only is not None:
        query = query.where(PAPERS.c.number.in_(list(only)))
    with reading(engine) as connection:
        return [stored_paper(row) for row in connection.execute(query)]
