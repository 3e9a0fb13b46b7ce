"""The words: a Tantivy index with BM25. A reader's text never meets Tantivy's query parser."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tantivy
from tantivy import Occur, Query

from working_papers.daily.search.files import IndexDamaged, Signature, signature
from working_papers.daily.search.text import MOST_TERMS, STOP_WORDS, ParsedQuery, clean, title_key
from working_papers.daily.search.vectors import day_number

TITLE_WEIGHT = 0.3
"""What a word in the title adds to the same word in title and abstract together.

Of 0, 0.3, 0.6 and 1, nDCG@10 on Cranfield/CISI/CACM: .379/.399/.481, .393/.402/.484, .399/.385/.480, .391/.373/.474.
"""

LONGEST_TOKEN = 80
"""Bytes of the longest token that is kept; longer ones are base64 and the like."""

_MOST_LOOKED_UP = 2_000
_FIRST_DAY, _LAST_DAY = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class IndexRow:
    """One paper, as the index takes it.

    Attributes:
        number: the paper's number in the database; a row of the same number is replaced.
        id: its public identifier.
        title: its title.
        abstract: its abstract.
        authors: names of its authors.
        categories: its categories or topics.
        day: its day.
        revision: its revision in the database.
        summary: a plain-words summary, found by its words; embedded where there is no abstract.
    """

    number: int
    id: str
    title: str
    abstract: str
    authors: Sequence[str]
    categories: Sequence[str]
    day: dt.date
    revision: int = 0
    summary: str = ""


@dataclass(frozen=True)
class Filters:
    """What papers must be, whatever they say.

    Attributes:
        days: first and last day, both included; either may be open.
        categories: one of these; "cs" admits every "cs.*".
        only: one of these papers.
    """

    days: tuple[dt.date | None, dt.date | None] | None = None
    categories: tuple[str, ...] = ()
    only: frozenset[int] | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.days and any(self.days)) or bool(self.categories) or self.only is not None


def with_archives(categories: Iterable[str]) -> tuple[str, ...]:
    """Categories, and the archives that they belong to ("cs.LG" belongs to "cs").

    Args:
        categories: categories or topics.
    """
    names = [clean(category) for category in categories]
    return tuple(dict.fromkeys([*names, *(name.split(".", 1)[0] for name in names if "." in name)]))


def _analyser(*, stemmed: bool) -> Any:
    builder = (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(LONGEST_TOKEN))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
    )
    if stemmed:
        builder = builder.filter(tantivy.Filter.stemmer("english"))
    return builder.build()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("number", indexed=True, fast=True)
    builder.add_integer_field("day", indexed=True, fast=True)
    for name in ("id", "title_key", "categories"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", tokenizer_name="words", index_option="freq")  # phrases are sought in the text
    builder.add_text_field("text", tokenizer_name="words")
    builder.add_text_field("authors", tokenizer_name="names")
    return builder.build()


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Turn what Tantivy raises about damaged files into `IndexDamaged`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise IndexDamaged(folder.parent, f"{folder.name}: {_first_line(error)}") from error
    except BaseException as error:
        # A panic in Rust is no Exception, so that nobody catches it by chance; here it means a file that lies.
        if type(error).__name__ != "PanicException":
            raise
        raise IndexDamaged(folder.parent, f"{folder.name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _open(folder: Path) -> Any:
    with _damage(folder):
        index = tantivy.Index.open(str(folder))
        index.register_tokenizer("words", _analyser(stemmed=True))
        index.register_tokenizer("names", _analyser(stemmed=False))
        return index


class Lexical:
    """The committed words of a folder, for searching; follows a writer in another process."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Args:
            folder: made by `LexicalWriter`.

        Raises:
            IndexDamaged: it cannot be read.
        """
        self.folder = folder
        self._words = _analyser(stemmed=True)
        self._names = _analyser(stemmed=False)
        self._lock = threading.Lock()
        self._seen: Signature = signature(folder / "meta.json")
        self._index = _open(folder)
        self._schema = self._index.schema
        with _damage(folder):
            # Reloaded by `refresh`; Tantivy's own watcher would be a thread a process and half a second late.
            self._index.config_reader("manual")
            self._index.reload()
            self._searcher = self._index.searcher()

    def refresh(self) -> None:
        """See what has been committed since; costs one look at a file when nothing has.

        Raises:
            IndexDamaged: it cannot be read.
        """
        seen = signature(self.folder / "meta.json")
        if seen == self._seen:
            return
        with self._lock, _damage(self.folder):
            self._index.reload()
            self._searcher = self._index.searcher()
            self._seen = seen

    @property
    def papers(self) -> int:
        """Papers that can be found."""
        return int(self._searcher.num_docs)

    @property
    def segments(self) -> int:
        """Parts the index consists of at present."""
        return int(self._searcher.num_segments)

    def _term(self, field: str, value: Any) -> Any:
        return Query.term_query(
            self._schema, field, value, "freq" if field in ("title", "text", "authors") else "basic"
        )

    def _phrase(self, field: str, tokens: list[str]) -> Any:
        if len(tokens) == 1:
            return self._term(field, tokens[0])
        return Query.phrase_query(self._schema, field, list(tokens))

    def words_query(self, parsed: ParsedQuery) -> Any | None:
        """The scored part of a query: its words and phrases, in the title and in the text.

        Args:
            parsed: the query.

        Returns:
            A Tantivy query; None when nothing scores.
        """
        words = [word for text in (*parsed.words, *parsed.phrases) for word in text.split()]
        telling = [word for word in words if word.lower().strip("?!.,;:()'") not in STOP_WORDS]
        tokens = Counter(token for word in telling or words for token in self._words.analyze(word))
        parts = []
        for token, times in list(tokens.items())[:MOST_TERMS]:
            parts.append((Occur.Should, Query.boost_query(self._term("text", token), float(times))))
            parts.append((Occur.Should, Query.boost_query(self._term("title", token), TITLE_WEIGHT * times)))
        return Query.boolean_query(parts) if parts else None

    def condition(self, parsed: ParsedQuery, filters: Filters) -> Any | None:
        """The unscored part of a query: phrases, authors, exclusions and filters.

        Args:
            parsed: the query.
            filters: the filters.

        Returns:
            A Tantivy query that papers must match; None when there is none.
        """
        wanted: list[Any] = []
        unwanted: list[Any] = []
        for field, analyser, texts, list_ in (
            ("text", self._words, parsed.phrases, wanted),
            ("authors", self._names, parsed.authors, wanted),
            ("text", self._words, parsed.without, unwanted),
            ("authors", self._names, parsed.without_authors, unwanted),
        ):
            for text in texts:
                tokens = analyser.analyze(text)[:MOST_TERMS]
                if tokens:
                    list_.append(self._phrase(field, tokens))
        if filters.days and any(filters.days):
            first, last = filters.days
            wanted.append(
                Query.range_query(
                    self._schema,
                    "day",
                    tantivy.FieldType.Integer,
                    _FIRST_DAY if first is None else day_number(first),
                    _LAST_DAY if last is None else day_number(last),
                )
            )
        if filters.categories:
            wanted.append(Query.term_set_query(self._schema, "categories", list(map(clean, filters.categories))))
        if filters.only is not None:
            wanted.append(self._numbers(filters.only))
        if not wanted and not unwanted:
            return None
        if not wanted:
            wanted.append(Query.all_query())
        return Query.const_score_query(
            Query.boolean_query(
                [*((Occur.Must, query) for query in wanted), *((Occur.MustNot, query) for query in unwanted)]
            ),
            0.0,
        )

    def _numbers(self, numbers: Collection[int]) -> Any:
        kept = sorted(number for number in set(numbers) if 0 <= number < 2**63)
        if len(kept) > _MOST_LOOKED_UP:
            return Query.term_set_query(self._schema, "number", kept)
        # A set query walks over all numbers of the index; for hundreds, looking each up is five times as fast.
        return Query.boolean_query([(Occur.Should, self._term("number", number)) for number in kept])

    def _hits(self, query: Any, limit: int, **arguments: Any) -> list[tuple[int, float]]:
        with _damage(self.folder):
            searcher = self._searcher
            hits = searcher.search(query, max(limit, 1), count=False, **arguments).hits[:limit]
            numbers = searcher.fast_field_values("number", [address for _, address in hits])
        return [(int(number), float(score or 0)) for number, (score, _) in zip(numbers, hits, strict=True)]

    def best(self, words: Any, condition: Any | None, limit: int) -> list[tuple[int, float]]:
        """The papers with the highest BM25.

        Args:
            words: from `words_query`.
            condition: from `condition`.
            limit: most papers.

        Returns:
            (paper, score), the best first.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        query = words
        if condition is not None:
            query = Query.boolean_query([(Occur.Must, words), (Occur.Must, condition)])
        return self._hits(query, limit)

    def newest(self, condition: Any | None, limit: int) -> list[int]:
        """The newest papers.

        Args:
            condition: from `condition`; None admits all.
            limit: most papers.

        Returns:
            Papers, the newest first.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        query = Query.all_query() if condition is None else condition
        return [number for number, _ in self._hits(query, limit, order_by_field="day", order=tantivy.Order.Desc)]

    def scores(self, words: Any | None, condition: Any | None, numbers: Collection[int]) -> dict[int, float]:
        """Scores of some papers.

        Args:
            words: from `words_query`.
            condition: from `condition`.
            numbers: papers.

        Returns:
            Score by paper, for those that exist and satisfy the condition; 0 where no word matches.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        if not numbers:
            return {}
        parts = [(Occur.Must, Query.const_score_query(self._numbers(numbers), 0.0))]
        if condition is not None:
            parts.append((Occur.Must, condition))
        if words is not None:
            parts.append((Occur.Should, words))
        return dict(self._hits(Query.boolean_query(parts), len(numbers)))

    def count(self, condition: Any) -> int:
        """How many papers satisfy a condition.

        Args:
            condition: from `condition`.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        with _damage(self.folder):
            return int(self._searcher.search(condition, 1, count=True).count)

    def all_of(self, condition: Any, limit: int) -> list[int]:
        """Papers that satisfy a condition, in no order.

        Args:
            condition: from `condition`.
            limit: most papers.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        return [number for number, _ in self._hits(condition, limit)]

    def exact(self, field: str, value: str, condition: Any | None, limit: int = 20) -> list[int]:
        """Papers whose identifier or normalised title is exactly this.

        Args:
            field: "id" or "title_key".
            value: what it must be.
            condition: from `condition`.
            limit: most papers.

        Returns:
            Papers, the newest first.

        Raises:
            IndexDamaged: a file cannot be read.
        """
        query = self._term(field, value)
        if condition is not None:
            query = Query.boolean_query([(Occur.Must, query), (Occur.Must, condition)])
        return [number for number, _ in self._hits(query, limit, order_by_field="day", order=tantivy.Order.Desc)]

    def telling_words(self, text: str, count: int) -> list[tuple[str, int]]:
        """The words of a text that tell most about it: frequent in it, rare elsewhere.

        Args:
            text: e.g. title and abstract.
            count: most words.

        Returns:
            (token, times it occurs), the most telling first.
        """
        words = [word for word in clean(text).split() if word.lower().strip("?!.,;:()'") not in STOP_WORDS]
        tokens = Counter(token for word in words for token in self._words.analyze(word) if len(token) > 1)
        papers = self.papers
        weights = {}
        with _damage(self.folder):
            for token, times in tokens.items():
                frequency = self._searcher.doc_freq("text", token)
                if frequency > 1:  # found in no other paper, a word finds none
                    weights[token] = times * math.log(1 + papers / frequency)
        return [(token, tokens[token]) for token in sorted(weights, key=lambda word: (-weights[word], word))[:count]]

    def tokens_query(self, tokens: Sequence[tuple[str, int]]) -> Any | None:
        """A query of tokens as `telling_words` gives them.

        Args:
            tokens: (token, times).
        """
        parts = [(Occur.Should, Query.boost_query(self._term("text", token), float(times))) for token, times in tokens]
        return Query.boolean_query(parts) if parts else None


_BLOCK = 500
"""Papers handed over together: one deletion for all that replace an older row."""


def _document(row: IndexRow) -> Any:
    title, abstract, summary = clean(row.title), clean(row.abstract), clean(row.summary)
    document = tantivy.Document()
    document.add_unsigned("number", row.number)
    document.add_integer("day", day_number(row.day))
    document.add_text("id", clean(row.id).lower())
    document.add_text("title_key", title_key(title))
    document.add_text("title", title)
    document.add_text("text", "\n".join(part for part in (title, abstract, summary) if part))
    for author in row.authors:
        document.add_text("authors", clean(author))
    for category in with_archives(row.categories):
        document.add_text("categories", category)
    return document


class LexicalWriter:
    """The one writer of a folder. The caller holds the lock that keeps others out."""

    def __init__(self, folder: Path, *, memory: int = 128_000_000, threads: int = 1) -> None:
        """Open or create the folder.

        Args:
            folder: the folder.
            memory: bytes that may be held before a part is written out.
            threads: indexing threads; each makes parts of its own.

        Raises:
            IndexDamaged: it cannot be read.
        """
        self.folder = folder
        if not (folder / "meta.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _damage(folder):
                tantivy.Index(_schema(), path=str(folder))
        self._index = _open(folder)
        with _damage(folder):
            self._index.config_reader("manual")
            self._index.reload()
            searcher = self._index.searcher()
            hits = searcher.search(Query.all_query(), 1, count=False, order_by_field="number").hits
            numbers = searcher.fast_field_values("number", [address for _, address in hits])
            self._writer = self._index.writer(memory, threads)
        # Only a number up to this one can be in the index already, so most imports need no deletions.
        self._highest = int(numbers[0] or 0) if numbers else -1

    def add(self, rows: Iterable[IndexRow]) -> int:
        """Take papers in; they can be found from the next `commit` on.

        Args:
            rows: the papers; one of a known number takes the place of the old one.

        Returns:
            How many.

        Raises:
            ValueError: a number is negative.
        """
        rows = iter(rows)
        count = 0
        while block := list(itertools.islice(rows, _BLOCK)):
            for row in block:
                if row.number < 0:
                    raise ValueError(f"number: expected 0 or more, got {row.number}")
            latest = {row.number: row for row in block}
            self.remove(number for number in latest if number <= self._highest)
            documents = [_document(row) for row in latest.values()]
            with _damage(self.folder):
                for document in documents:
                    self._writer.add_document(document)
            self._highest = max(self._highest, *latest)
            count += len(block)
        return count

    def remove(self, numbers: Iterable[int]) -> None:
        """Take papers out, from the next `commit` on.

        Args:
            numbers: the papers.
        """
        # By query: the deletion by term of tantivy 0.27 takes every number for a signed one, and so deletes nothing.
        numbers = iter(numbers)
        while block := list(itertools.islice(numbers, _BLOCK)):
            with _damage(self.folder):
                self._writer.delete_documents_by_query(Query.term_set_query(self._index.schema, "number", block))

    def commit(self) -> None:
        """Make what was added findable, durably."""
        with _damage(self.folder):
            self._writer.commit()

    def close(self) -> None:
        """Wait until parts have been merged, and let go; what was not committed is lost.

        Without the wait a merge would be given up each time, and the parts of many small imports never be joined.
        """
        with _damage(self.folder):
            self._writer.rollback()
            self._writer.wait_merging_threads()
