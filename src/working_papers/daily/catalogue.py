"""The catalogue: one row a paper whatever its sources, the link to the rooms, and the named queries on it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, bindparam, delete, insert, literal_column, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from working_papers.bench.paper import TOPICS as ROOM_TOPICS
from working_papers.bench.paper import PaperFileError
from working_papers.bench.rooms import rooms
from working_papers.daily.models import (
    CatalogueStateRow,
    ImportRejectionRow,
    ImportRow,
    PaperAliasRow,
    PaperRow,
    PaperTopicRow,
)
from working_papers.daily.records import (
    BadRecord,
    PaperRecord,
    arxiv_id,
    arxiv_url,
    normal_doi,
    shorten,
    slug,
    text_hash,
    title_hash,
    title_key,
)
from working_papers.database import now, reading
from working_papers.errors import UserError

PAPERS: Table = PaperRow.__table__  # type: ignore[assignment]
TOPICS: Table = PaperTopicRow.__table__  # type: ignore[assignment]

ROOM = "room"
AUTHORITY = {ROOM: 0, "submission": 1, "bibtex": 1, "page": 2, "hf": 3, "jsonl": 4, "arxiv": 4}
"""Which source is believed where two describe one paper; the weaker one only fills gaps. Counts are always taken."""

LARGEST_COUNT = 2**31 - 1
IDS_A_QUERY = 10_000
"""Values in one IN list; SQLite takes 32,766 parameters, PostgreSQL 65,535."""
DISTINCTIVE_TITLE = 20
"""Letters and digits from which on a title alone tells papers apart; below it, an author must agree as well."""


@dataclass(frozen=True)
class StoredPaper:
    """A paper of the catalogue; the attributes are the columns of the table `papers`, explained there."""

    number: int
    id: str
    title: str
    abstract: str
    summary: str
    authors: tuple[str, ...]
    author_count: int
    published: dt.date | None
    day: dt.date
    updated: dt.date | None
    categories: tuple[str, ...]
    comment_count: int
    upvotes: int
    source: str
    url: str | None
    doi: str | None
    journal: str | None
    room: str | None
    text_hash: str
    first_seen: dt.datetime
    revision: int

    @property
    def arxiv(self) -> str | None:
        """The arXiv id, for papers that have one."""
        return arxiv_id(self.id)

    @property
    def text(self) -> str:
        """The abstract, or the room's summary where no source has brought an abstract."""
        return self.abstract or self.summary


COLUMNS = tuple(PAPERS.c[each.name] for each in fields(StoredPaper))


def stored_paper(row: Any) -> StoredPaper:
    """The dataclass from a row that selected `COLUMNS`."""
    values = dict(row._mapping)
    values["authors"] = tuple(values["authors"])
    values["categories"] = tuple(values["categories"])
    return StoredPaper(**values)


# The rooms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoomLinks:
    """What recognises a paper as a room's."""

    records: dict[str, PaperRecord] = field(default_factory=dict)
    by_arxiv: dict[str, str] = field(default_factory=dict)
    by_title: dict[str, str] = field(default_factory=dict)

    def room_of(self, arxiv: str | None, key: str) -> str | None:
        """The slug of the room whose paper has that arXiv id, or that normalised title and no other id."""
        if arxiv is not None and arxiv in self.by_arxiv:
            return self.by_arxiv[arxiv]
        found = self.by_title.get(key)
        if found is None or (arxiv is not None and self.records[found].arxiv not in (None, arxiv)):
            return None
        return found


def room_links() -> RoomLinks:
    """Read what the rooms say of their papers.

    Raises:
        UserError: a room's `paper.toml` cannot be used.
    """
    links = RoomLinks()
    for name, room in rooms().items():
        try:
            paper = room.paper
        except PaperFileError as error:
            raise UserError(str(error)) from error
        record = PaperRecord(
            title=paper.title,
            arxiv=arxiv_id(paper.arxiv) if paper.arxiv else None,
            authors=paper.authors,
            author_count=paper.authors_count,
            published=paper.first_date,
            categories=paper.topics,
            summary=paper.summary,
        )
        links.records[name] = record
        if record.arxiv:
            links.by_arxiv[record.arxiv] = name
        links.by_title[title_key(record.title)] = name
    return links


def sync_rooms(engine: Engine) -> list[int]:
    """Put the paper of every room into the catalogue, and link papers that are already there to their rooms.

    Returns:
        The numbers of the papers that are new or changed; empty when all was in place.

    Raises:
        UserError: a room's `paper.toml` cannot be used.
    """
    links = room_links()
    with engine.begin() as connection:
        writer = CatalogueWriter(connection, ROOM, links)
        held = connection.execute(select(PAPERS.c.number, PAPERS.c.room).where(PAPERS.c.room.is_not(None)))
        orphans = [row.number for row in held if row.room not in links.records]
        for number in orphans:
            values = {"room": None, "summary": "", "revision": writer.next_revision()}
            connection.execute(update(PAPERS).where(PAPERS.c.number == number).values(values))
        written = writer.write(list(links.records.values()))
    if written.rejected:
        raise UserError(f"a room's paper cannot be put into the catalogue: {written.rejected[0].reason}")
    return sorted({*orphans, *written.numbers})


# Writing ----------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    """What became of a batch.

    Attributes:
        numbers: the papers that are new or changed, in ascending order.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: list[BadRecord] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Incoming:
    record: PaperRecord
    arxiv: str | None
    doi: str | None
    key: str
    hash: int
    room: str | None


class CatalogueWriter:
    """Writes records in one transaction; never makes two rows of one paper.

    A record is the paper of the row that has its arXiv id, or belongs to the same room, or has its DOI, or its
    normalised title (unless arXiv ids, DOIs or all authors differ). Two rows stay two: if a title changes later so that
    it is another row's, nothing says which of the two numbers the index and the readers should forget.
    """

    def __init__(self, connection: Connection, source: str, links: RoomLinks) -> None:
        self.connection = connection
        self.source = source
        self.authority = AUTHORITY.get(source, AUTHORITY["bibtex"])
        self.links = links
        self.now = now()
        # The lock makes revisions appear in the order in which they are committed: an index that has seen revision r
        # has seen everything before it. SQLite's immediate transactions do the same.
        state = connection.execute(
            select(CatalogueStateRow.last_number, CatalogueStateRow.last_revision)
            .where(CatalogueStateRow.id == 1)
            .with_for_update()
        ).one()
        self._number: int = state.last_number
        self._revision: int = state.last_revision
        self._before: dict[int, dict[str, Any] | None] = {}  # rows to write, as they are in the database
        self._by_number: dict[int, dict[str, Any]] = {}
        self._by_id: dict[str, dict[str, Any]] = {}
        self._by_doi: dict[str, dict[str, Any]] = {}
        self._by_room: dict[str, dict[str, Any]] = {}
        self._by_title: dict[int, list[dict[str, Any]]] = {}

    def next_revision(self) -> int:
        """Take the next revision."""
        self._revision += 1
        self._store_state()
        return self._revision

    def write(self, records: Iterable[PaperRecord]) -> Written:
        """Insert what is new, merge what is known; a record that no database would take is rejected."""
        written = Written()
        incoming: list[_Incoming] = []
        for record in records:
            trouble = _trouble(record)
            if trouble:
                written.rejected.append(BadRecord(record.line, trouble))
            else:
                incoming.append(self._recognise(record))
        self._load(incoming)
        taken = self._taken_ids(incoming)
        for each in incoming:
            row = self._find(each)
            if row is None:
                row = self._new_row(each, taken)
                self._before[row["number"]] = None
                written.new += 1
                self._remember(row)
                continue
            old = dict(row)
            self._merge(row, each)
            if row == old:
                written.unchanged += 1
                continue
            self._before.setdefault(row["number"], old)
            written.changed += 1
            self._remember(row)
        written.numbers = sorted(self._before)
        self._store()
        return written

    def _recognise(self, record: PaperRecord) -> _Incoming:
        key = title_key(record.title)
        room = self.links.room_of(record.arxiv, key)
        arxiv = record.arxiv or (self.links.records[room].arxiv if room else None)
        return _Incoming(record, arxiv, normal_doi(record.doi), key, title_hash(key), room)

    def _load(self, incoming: Sequence[_Incoming]) -> None:
        """Fetch every row that one of the records could belong to."""
        self._load_where(PAPERS.c.id, {each.arxiv for each in incoming if each.arxiv})
        self._load_where(PAPERS.c.room, {each.room for each in incoming if each.room})
        rest = [each for each in incoming if each.arxiv not in self._by_id]
        self._load_where(PAPERS.c.doi, {each.doi for each in rest if each.doi})
        self._load_where(PAPERS.c.title_hash, {each.hash for each in rest if each.key})

    def _load_where(self, column: Any, values: Collection[Any]) -> None:
        for some in _chunks(values, IDS_A_QUERY):
            for row in self.connection.execute(select(PAPERS).where(column.in_(some))):
                if row.number not in self._by_number:
                    self._remember(dict(row._mapping))

    def _remember(self, row: dict[str, Any]) -> None:
        self._by_number[row["number"]] = row
        self._by_id[row["id"]] = row
        if row["doi"]:
            self._by_doi[row["doi"]] = row
        if row["room"]:
            self._by_room[row["room"]] = row
        namesakes = self._by_title.setdefault(row["title_hash"], [])
        if not any(other is row for other in namesakes):
            namesakes.append(row)

    def _taken_ids(self, incoming: Sequence[_Incoming]) -> set[str]:
        """Of the slugs that new papers would like, those that are given away."""
        wanted = {wish for each in incoming if not each.arxiv for wish in _id_wishes(each.record)}
        taken: set[str] = set()
        for some in _chunks(wanted, IDS_A_QUERY):
            for column in (PAPERS.c.id, PaperAliasRow.id):
                taken.update(self.connection.execute(select(column).where(column.in_(some))).scalars())
        return taken

    def _find(self, each: _Incoming) -> dict[str, Any] | None:
        if each.arxiv and each.arxiv in self._by_id:
            return self._by_id[each.arxiv]
        if each.room and each.room in self._by_room:
            row = self._by_room[each.room]
            if not each.arxiv or arxiv_id(row["id"]) is None:
                return row
        candidates = [self._by_doi[each.doi]] if each.doi and each.doi in self._by_doi else []
        if each.key:
            candidates += self._by_title.get(each.hash, [])
        for row in candidates:
            if each.arxiv and arxiv_id(row["id"]):
                continue  # two arXiv ids are two papers, whatever their titles
            if each.doi and each.doi == row["doi"]:
                return row
            if not (each.doi and row["doi"]) and _same_authors(each, row["authors"]):
                return row
        return None

    def _new_row(self, each: _Incoming, taken: set[str]) -> dict[str, Any]:
        record = each.record
        id = each.arxiv
        if id is None:
            wishes = _id_wishes(record)
            id = next((wish for wish in wishes if wish not in taken), f"{wishes[-1]}-{self._number + 1}")
            taken.add(id)
        if each.room:
            self._release(each.room, None)
        self._number += 1
        room = self.links.records[each.room] if each.room else PaperRecord(title="")
        published = record.published or room.published
        return {
            "number": self._number,
            "id": id,
            "title": record.title,
            "abstract": record.abstract,
            "summary": room.summary,
            "authors": list(record.authors or room.authors),
            "author_count": record.author_count or len(record.authors) or room.author_count,
            "published": published,
            "day": record.day or published or record.fallback_day or self.now.date(),
            "updated": record.updated,
            "categories": list(dict.fromkeys((*record.categories, *room.categories))),
            "comment_count": record.comment_count or 0,
            "upvotes": record.upvotes or 0,
            "source": self.source,
            "url": record.url or (arxiv_url(each.arxiv) if each.arxiv else None),
            "doi": each.doi,
            "journal": record.journal,
            "room": each.room,
            "text_hash": "",
            "title_hash": each.hash,
            "first_seen": self.now,
            "revision": 0,
        }

    def _release(self, room: str, heir: dict[str, Any] | None) -> None:
        """Part a room from the row that has it, if that is another: the room has been given another arXiv id."""
        holder = self._by_room.get(room)
        if holder is not None and holder is not heir:
            self._before.setdefault(holder["number"], dict(holder))
            holder["room"], holder["summary"] = None, ""
            del self._by_room[room]

    def _merge(self, row: dict[str, Any], each: _Incoming) -> None:
        """Bring what the record knows into the row."""
        record = each.record
        stronger = self.authority >= AUTHORITY.get(row["source"], AUTHORITY["bibtex"])
        had_published = row["published"]

        def take(name: str, value: Any) -> None:
            if value and (stronger or not row[name]):
                row[name] = value

        take("title", record.title)
        take("abstract", record.abstract)
        take("authors", list(record.authors))
        take("author_count", record.author_count or len(record.authors))
        take("published", record.published)
        take("updated", record.updated)
        take("url", record.url)
        take("doi", each.doi)
        take("journal", record.journal)
        if record.comment_count is not None:
            row["comment_count"] = record.comment_count
        if record.upvotes is not None:
            row["upvotes"] = record.upvotes
        if each.room and row["room"] in (None, each.room):
            self._release(each.room, row)
            room = self.links.records[each.room]
            row["room"] = each.room
            row["summary"] = room.summary
            row["authors"] = row["authors"] or list(room.authors)
            row["author_count"] = row["author_count"] or room.author_count
            row["published"] = row["published"] or room.published
        if record.day is not None:
            row["day"] = record.day
        elif row["published"] != had_published and had_published in (None, row["day"]):
            row["day"] = row["published"]
        topics = self.links.records[row["room"]].categories if row["room"] in self.links.records else ()
        if self.source == ROOM:
            # A room alone decides its topics; beside them stay the categories that an import brought.
            brought = [name for name in row["categories"] if name not in ROOM_TOPICS]
            row["categories"] = list(dict.fromkeys((*brought, *topics)))
        else:
            brought = list(record.categories) if record.categories and stronger else row["categories"]
            row["categories"] = list(dict.fromkeys((*brought, *topics)))
            if not row["categories"]:
                row["categories"] = list(record.categories)
        if each.arxiv and row["id"] != each.arxiv and arxiv_id(row["id"]) is None:
            del self._by_id[row["id"]]
            row["id"] = each.arxiv
            row["url"] = row["url"] or arxiv_url(each.arxiv)
        if stronger:
            row["source"] = self.source

    def _store(self) -> None:
        """Write new and changed rows, their topics, the ids they had, and the state."""
        before, self._before = self._before, {}
        if not before:
            return
        rows = []
        leaving: list[int] = []
        aliases: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        come: list[dict[str, Any]] = []
        for number in sorted(before):
            row, old = self._by_number[number], before[number]
            self._revision += 1
            row["revision"] = self._revision
            if old is None or (old["title"], old["abstract"], old["summary"]) != (
                row["title"],
                row["abstract"],
                row["summary"],
            ):
                row["text_hash"] = text_hash(row["title"], row["abstract"] or row["summary"])
                row["title_hash"] = title_hash(title_key(row["title"]))
            rows.append(row)
            if old is not None and old["room"] not in (None, row["room"]):
                leaving.append(number)
            if old is not None and old["id"] != row["id"]:
                aliases.append({"id": old["id"], "number": number})
            if old is None:
                continue
            held = {(topic, old["day"]) for topic in old["categories"]}
            holds = {(topic, row["day"]) for topic in row["categories"]}
            gone += ({"topic_": topic, "day_": day, "number_": number} for topic, day in held - holds)
            come += ({"topic": topic, "day": day, "number": number} for topic, day in holds - held)
        if leaving:  # first, so that no two rows hold one room even for a moment
            self.connection.execute(update(PAPERS).where(PAPERS.c.number.in_(leaving)).values(room=None))
        self.connection.execute(_upsert(self.connection.dialect.name), rows)
        if aliases:
            self.connection.execute(insert(PaperAliasRow), aliases)
        if gone:
            self.connection.execute(_DELETE_TOPIC, gone)
        if come:
            self.connection.execute(insert(TOPICS), come)
        new = [number for number, old in before.items() if old is None]
        if new:  # numbers are given out in order, so the new papers are a range
            span = {"first": min(new), "last": max(new)}
            self.connection.execute(_TOPICS_OF_NEW[self.connection.dialect.name == "postgresql"], span)
        self._store_state()

    def _store_state(self) -> None:
        self.connection.execute(
            update(CatalogueStateRow)
            .where(CatalogueStateRow.id == 1)
            .values(last_number=self._number, last_revision=self._revision)
        )


_DELETE_TOPIC = delete(TOPICS).where(
    TOPICS.c.topic == bindparam("topic_"),
    TOPICS.c.day == bindparam("day_"),
    TOPICS.c.number == bindparam("number_"),
)


_TOPICS_OF_NEW = tuple(
    text(
        "INSERT INTO paper_topics (topic, day, number) SELECT topic.value, papers.day, papers.number "
        f"FROM papers, {elements}(papers.categories) AS topic WHERE papers.number BETWEEN :first AND :last"
    )
    for elements in ("json_each", "json_array_elements_text")
)
"""One statement a batch instead of two rows a paper through Python: a fifth of an import's time."""

_Item = TypeVar("_Item")


def _chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    every = list(items)
    for start in range(0, len(every), size):
        yield every[start : start + size]


def _upsert(dialect: str) -> Any:
    made: Any = (postgresql if dialect == "postgresql" else sqlite).insert(PAPERS)
    rest = {column.name: made.excluded[column.name] for column in PAPERS.c if column.name != "number"}
    return made.on_conflict_do_update(index_elements=[PAPERS.c.number], set_=rest)


def _trouble(record: PaperRecord) -> str | None:
    """Why no database would take the record, if so."""
    if not record.title:
        return "the title is missing"
    whole = "\n".join(
        (
            record.title,
            record.abstract,
            record.url or "",
            record.doi or "",
            record.journal or "",
            *record.authors,
            *record.categories,
        )
    )
    if "\x00" in whole:
        return f"{shorten(record.title)!r} contains a NUL character"
    if not whole.isascii():
        try:
            whole.encode()
        except UnicodeEncodeError:
            return f"{shorten(record.title)!r} contains half of a surrogate pair"
    for name in ("author_count", "comment_count", "upvotes"):
        count = getattr(record, name)
        if count is not None and not 0 <= count <= LARGEST_COUNT:
            return f"{shorten(record.title)!r} has the {name.replace('_', ' ')} {shorten(str(count), 20)}"
    return None


def _id_wishes(record: PaperRecord) -> list[str]:
    base = slug(record.title)
    short = text_hash(record.title, " ".join(record.authors) or record.abstract)[:8]
    return [base, f"{base}-{short}"] if base else [f"paper-{short}"]


def _surnames(authors: Iterable[str]) -> set[str]:
    return {key for name in authors if (key := title_key(name.rsplit(" ", 1)[-1]))}


def _same_authors(each: _Incoming, authors: Sequence[str]) -> bool:
    """Whether the authors let two papers of one title be the same."""
    if each.record.authors and authors:
        return not _surnames(each.record.authors).isdisjoint(_surnames(authors))
    return len(each.key) >= DISTINCTIVE_TITLE


# Queries ----------------------------------------------------------------------------------------------------------


def get_paper(engine: Engine, id: str) -> StoredPaper | None:
    """One paper.

    Args:
        engine: the database.
        id: the paper's id, an arXiv id in any spelling, an id the paper had before, or a room's slug.
    """
    if "\x00" in id:
        return None
    wanted = arxiv_id(id) or id
    with reading(engine) as connection:
        row = connection.execute(select(*COLUMNS).where(PAPERS.c.id == wanted)).first()
        row = row or connection.execute(select(*COLUMNS).where(PAPERS.c.room == wanted)).first()
        if row is None:
            older = select(PaperAliasRow.number).where(PaperAliasRow.id == wanted).scalar_subquery()
            row = connection.execute(select(*COLUMNS).where(PAPERS.c.number == older)).first()
        return None if row is None else stored_paper(row)


def papers_by_numbers(engine: Engine, numbers: Sequence[int]) -> list[StoredPaper]:
    """The papers with these numbers, in the order of the numbers; unknown ones are left out."""
    found: dict[int, StoredPaper] = {}
    with reading(engine) as connection:
        for some in _chunks(set(numbers), IDS_A_QUERY):
            for row in connection.execute(select(*COLUMNS).where(PAPERS.c.number.in_(some))):
                found[row.number] = stored_paper(row)
    return [found[number] for number in numbers if number in found]


def papers_of_rooms(engine: Engine) -> dict[str, StoredPaper]:
    """The papers that have a room, by its slug."""
    with reading(engine) as connection:
        rows = connection.execute(select(*COLUMNS).where(PAPERS.c.room.is_not(None)))
        return {row.room: stored_paper(row) for row in rows}


def changed_since(engine: Engine, revision: int, limit: int = 5000) -> list[StoredPaper]:
    """The papers that are new or changed after a revision, in the order of their revisions.

    Args:
        engine: the database.
        revision: the last revision the caller has seen; 0 for all.
        limit: at most so many; ask again with the last one's revision for more.
    """
    with reading(engine) as connection:
        rows = connection.execute(
            select(*COLUMNS).where(PAPERS.c.revision > revision).order_by(PAPERS.c.revision).limit(limit)
        )
        return [stored_paper(row) for row in rows]


def last_revision(engine: Engine) -> int:
    """The newest revision of the catalogue."""
    with reading(engine) as connection:
        return int(connection.execute(select(CatalogueStateRow.last_revision)).scalar_one())


def paper_count(engine: Engine) -> int:
    """How many papers the catalogue has; rows are never deleted, so the last number is the count."""
    with reading(engine) as connection:
        return int(connection.execute(select(CatalogueStateRow.last_number)).scalar_one())


def list_topics(engine: Engine) -> list[str]:
    """All categories and topics in use, sorted; reads one index entry a topic, not one a paper."""
    step = text(
        "WITH RECURSIVE found(topic) AS ("
        " SELECT MIN(topic) FROM paper_topics"
        " UNION ALL SELECT (SELECT MIN(topic) FROM paper_topics WHERE topic > found.topic)"
        " FROM found WHERE found.topic IS NOT NULL)"
        " SELECT topic FROM found WHERE topic IS NOT NULL"
    ).columns(literal_column("topic"))
    with reading(engine) as connection:
        return sorted(row.topic for row in connection.execute(step))


@dataclass(frozen=True)
class StoredImport:
    """One import, for the status page; the attributes are the columns of the table `imports`."""

    id: int
    source: str
    asked: str
    started: dt.datetime
    finished: dt.datetime | None
    got: int
    new: int
    changed: int
    unchanged: int
    rejected: int
    error: str | None


def list_imports(engine: Engine, limit: int = 50, offset: int = 0) -> list[StoredImport]:
    """The newest imports first."""
    columns = [getattr(ImportRow, each.name) for each in fields(StoredImport)]
    with reading(engine) as connection:
        rows = connection.execute(select(*columns).order_by(ImportRow.id.desc()).limit(limit).offset(offset))
        return [StoredImport(**row._mapping) for row in rows]


def list_rejections(engine: Engine, import_id: int, limit: int = 1000) -> list[BadRecord]:
    """The records that one import could not use, in the order of the source."""
    with reading(engine) as connection:
        rows = connection.execute(
            select(ImportRejectionRow.line, ImportRejectionRow.reason)
            .where(ImportRejectionRow.import_id == import_id)
            .order_by(ImportRejectionRow.position)
            .limit(limit)
        )
        return [BadRecord(row.line, row.reason) for row in rows]
