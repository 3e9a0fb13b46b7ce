"""Hybrid search: words and meaning, weighed together; exact titles and identifiers first.

The index is derived from the database and local to each machine. `index.json` names the folder of the words and the
last revision that is in it; the vectors have a folder a model. Readers follow writers in other processes.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from sqlalchemy import Engine

from working_papers.config import Settings
from working_papers.daily.search import catalogue
from working_papers.daily.search.embedding import QueryEmbedder, model_name, text_hash
from working_papers.daily.search.files import IndexDamaged, Signature, signature, write_json
from working_papers.daily.search.lexical import Filters, IndexRow, Lexical, LexicalWriter, with_archives
from working_papers.daily.search.text import ParsedQuery, parse
from working_papers.daily.search.vectors import VectorRow, Vectors, VectorWriter
from working_papers.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the index; another one means that it must be built again."""

MEANING_WEIGHT = 0.6
"""Weight of the cosine; the words' BM25 has the rest. Each is divided by the best of the query.

Of 0.3 to 0.8 the weight that is best on any two of Cranfield, CISI and CACM is 0.6, so each collection's result at 0.6
is one for which it was not chosen. nDCG@10 words / meaning / both: .395/.399/.438, .399/.424/.449, .481/.420/.550.
Reciprocal-rank fusion (k = 60, equal weights) gave .439, .446, .525. See `benchmarks/search_quality.py`.
"""

DEPTH = 200
"""Papers that words and meaning each propose; a reader can page through those and no further."""

LEAST_COSINE = 0.2
"""A paper without any of the words must be at least this near to be shown: nonsense finds nothing."""

MOST_ADMITTED = 20_000
"""Up to this many papers that satisfy phrases and authors, meaning is compared among just those."""

_LARGE = 20_000
"""Papers from which on catching up takes two indexing threads."""

LOCK_SECONDS = 600.0
"""How long a writer waits for another one."""


@dataclass(frozen=True)
class Hit:
    """A paper that was found.

    Attributes:
        number: the paper.
        score: 3 for an identifier, 2 for a title, else up to 1.
        why: "id", "title", "words", "meaning", "words and meaning" or "newest".
    """

    number: int
    score: float
    why: str


@dataclass(frozen=True)
class SearchResult:
    """A page of what was found.

    Attributes:
        hits: the page, best first.
        total: papers that can be paged through; at most about twice `DEPTH`.
        seconds: how long it took.
        mode: "hybrid"; "words" where no vectors could be used; "newest" where nothing was asked but filters.
    """

    hits: list[Hit]
    total: int
    seconds: float
    mode: str


@dataclass(frozen=True)
class IndexStatus:
    """How far the index is.

    Attributes:
        papers: papers that can be found by words.
        embedded: papers that can be found by meaning.
        waiting: papers that wait for their vector.
        model: name of the embedding model.
        indexed_through: all revisions up to this one are in the words.
        embedded_through: all revisions up to this one have vectors.
        problem: why there is no search by meaning, as a sentence; empty when nothing is wrong.
    """

    papers: int
    embedded: int
    waiting: int
    model: str
    indexed_through: int
    embedded_through: int
    problem: str


def vectors_folder(settings: Settings) -> Path:
    """The folder of the vectors of the present model.

    Args:
        settings: names the index folder and the model.

    Raises:
        UserError: the setting names a model that is not there.
    """
    return settings.index_folder / ("vectors-" + re.sub(r"[^A-Za-z0-9.-]+", "_", model_name(settings)))


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Keep other processes out, waiting for them first.

    Args:
        file: the lock.
        what: what another process would be doing, for the error.

    Raises:
        UserError: it took longer than `LOCK_SECONDS`.
    """
    lock = FileLock(file, timeout=LOCK_SECONDS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process has been {what} for {LOCK_SECONDS / 60:.0f} minutes; wait for it or end it"
        ) from error
    except OSError as error:
        raise UserError(
            f"the search index in {file.parent} cannot be written ({error.strerror}); "
            "it is derived from the database: move away what is there"
        ) from error
    try:
        yield
    finally:
        lock.release()


class SearchIndex:
    """The search index of this machine. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Open the index, creating an empty one where there is none.

        Args:
            settings: names its folder and the embedding model.

        Raises:
            IndexDamaged: it cannot be read.
            UserError: its folder cannot be written.
        """
        self.settings = settings
        self.folder = settings.index_folder
        self._queries = QueryEmbedder(settings)
        self._lock = threading.RLock()
        self._write_lock = threading.RLock()  # apart, so that a long import holds up no reader
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="search-by-meaning")
        self._seen: Signature = None
        self._lexical: Lexical | None = None
        self._vectors: Vectors | None = None
        self._vectors_problem = ""
        self._model_problem = ""
        self._model_retry = 0.0
        self._writing: _Writing | None = None
        settings.make_home()
        if not (self.folder / "index.json").is_file():
            with locked(self.folder / "write.lock", "writing the search index"):
                if not (self.folder / "index.json").is_file():
                    _start_new(self.folder)
        self.refresh()

    @classmethod
    def open(cls, settings: Settings) -> SearchIndex:
        """Open the index; see `SearchIndex`."""
        return cls(settings)

    # Reading

    def refresh(self) -> None:
        """See what other processes have committed; costs three looks at files when nothing has.

        Raises:
            IndexDamaged: it cannot be read.
        """
        seen = signature(self.folder / "index.json")
        if seen != self._seen or self._lexical is None:
            with self._lock:
                if seen != self._seen or self._lexical is None:
                    head = _read_head(self.folder)
                    folder = self.folder / head["lexical"]
                    if self._lexical is None or self._lexical.folder != folder:
                        self._lexical = Lexical(folder)
                    self._indexed_through = head["indexed_through"]
                    self._seen = seen
        self._lexical.refresh()
        self._refresh_vectors()

    def _refresh_vectors(self) -> None:
        # Whatever is wrong with the vectors, words still work: the problem is kept for `status`.
        try:
            folder = vectors_folder(self.settings)
            if self._vectors is None:
                if not (folder / "manifest.json").is_file():
                    return
                with self._lock:
                    if self._vectors is None:
                        self._vectors = Vectors(folder)
            self._vectors.refresh()
            self._vectors_problem = ""
        except UserError as error:
            if str(error) != self._vectors_problem:
                log.warning("search by meaning is off: %s", error)
            self._vectors_problem = str(error)
            self._vectors = None

    def _open_lexical(self) -> Lexical:
        self.refresh()
        assert self._lexical is not None
        return self._lexical

    def search(
        self,
        text: str,
        *,
        limit: int = 20,
        offset: int = 0,
        days: tuple[dt.date | None, dt.date | None] | None = None,
        categories: Collection[str] | None = None,
        only: Collection[int] | None = None,
    ) -> SearchResult:
        """Find papers.

        A paper whose identifier or title is the text comes first. Then words and meaning together; where the text is
        empty, the newest papers that the filters admit.

        Args:
            text: what the reader typed; anything at all. Understood: "a phrase", author:name, -word. Read are the first
                4,000 characters and of them the first 64 different words.
            limit: most papers on the page, 0 or more.
            offset: papers before the page, 0 or more.
            days: first and last day, both included; either may be None.
            categories: one of these; "cs" admits every "cs.*".
            only: one of these papers.

        Returns:
            The page.

        Raises:
            ValueError: `limit` or `offset` is negative.
            IndexDamaged: the index cannot be read.
        """
        if limit < 0:
            raise ValueError(f"limit: expected 0 or more, got {limit}")
        if offset < 0:
            raise ValueError(f"offset: expected 0 or more, got {offset}")
        start = time.perf_counter()
        lexical = self._open_lexical()
        filters = Filters(days, tuple(categories or ()), None if only is None else frozenset(only))
        parsed = parse(text)
        ranked, mode = self._rank(lexical, parsed, filters)
        return SearchResult(ranked[offset : offset + limit], len(ranked), time.perf_counter() - start, mode)

    def _rank(self, lexical: Lexical, parsed: ParsedQuery, filters: Filters) -> tuple[list[Hit], str]:
        words = lexical.words_query(parsed)
        condition = lexical.condition(parsed, filters)
        if words is None and (condition is not None or not parsed.prose):
            newest = lexical.newest(condition, 2 * DEPTH)
            return [Hit(number, 0.0, "newest") for number in newest], "newest"
        vectors = self._vectors
        meaning = None
        if vectors is not None and vectors.rows and any(character.isalnum() for character in parsed.prose):
            meaning = self._pool.submit(self._by_meaning, lexical, vectors, parsed, filters, condition)
        by_words = [] if words is None else lexical.best(words, condition, DEPTH)
        hits: dict[int, Hit] = {}
        plain = lexical.condition(ParsedQuery(), filters)
        for identifier in parsed.ids:
            for number in lexical.exact("id", identifier, plain):
                hits.setdefault(number, Hit(number, 3.0, "id"))
        if parsed.title_key:
            for number in lexical.exact("title_key", parsed.title_key, plain):
                hits.setdefault(number, Hit(number, 2.0, "title"))
        near = meaning.result() if meaning is not None else None
        if near is None:
            best = by_words[0][1] if by_words else 1.0
            for number, score in by_words:
                hits.setdefault(number, Hit(number, score / best if best > 0 else 0.0, "words"))
            return list(hits.values()), "words"
        vector, by_meaning = near
        assert vectors is not None
        for hit in _fuse(lexical, vectors, vector, words, condition, by_words, by_meaning):
            hits.setdefault(hit.number, hit)
        return list(hits.values()), "hybrid"

    def _by_meaning(
        self, lexical: Lexical, vectors: Vectors, parsed: ParsedQuery, filters: Filters, condition: Any | None
    ) -> tuple[NDArray[np.float32], list[tuple[int, float]]] | None:
        """The query's vector and the nearest papers; None where the model cannot be used."""
        if time.monotonic() < self._model_retry:
            return None
        try:
            vector = self._queries.embed(parsed.prose)
            if len(vector) != vectors.dimension:
                raise UserError(
                    f"the embedding model {self.settings.embedding_model} gives {len(vector)} dimensions, "
                    f"the index has {vectors.dimension}; run `working-papers index rebuild`"
                )
            self._model_problem = ""
        except UserError as error:
            log.warning("search by meaning is off: %s", error)
            self._model_problem, self._model_retry = str(error), time.monotonic() + 60
            return None
        if filters.only is not None:
            numbers = np.fromiter((number for number in filters.only if 0 <= number < 2**63), dtype=np.int64, count=-1)
            return vector, vectors.nearest(vector, DEPTH, numbers=numbers)
        if parsed.phrases or parsed.authors or parsed.without or parsed.without_authors:
            admitted = 0 if condition is None else lexical.count(condition)
            if condition is not None and admitted <= MOST_ADMITTED:
                numbers = np.array(lexical.all_of(condition, admitted), dtype=np.int64)
                return vector, vectors.nearest(vector, DEPTH, numbers=numbers)
        mask = vectors.admitted(filters.days, filters.categories)
        return vector, vectors.nearest(vector, DEPTH, mask=mask)

    def similar(self, number: int, limit: int = 10, *, text: str = "") -> list[Hit]:
        """Papers like a paper.

        Args:
            number: the paper.
            limit: most papers.
            text: its title and abstract, used as long as it has no vector.

        Returns:
            The others, the most similar first.

        Raises:
            ValueError: `limit` is negative.
            IndexDamaged: the index cannot be read.
        """
        if limit < 0:
            raise ValueError(f"limit: expected 0 or more, got {limit}")
        lexical = self._open_lexical()
        vectors = self._vectors
        vector = vectors.vector(number) if vectors is not None and 0 <= number < 2**63 else None
        if vectors is not None and vector is not None:
            near = vectors.nearest(vector, limit + 50)
            present = lexical.scores(None, None, [other for other, _ in near])
            found = [Hit(other, cosine, "meaning") for other, cosine in near if other != number and other in present]
            return found[:limit]
        words = lexical.tokens_query(lexical.telling_words(text, 25))
        if words is None:
            return []
        by_words = [(other, score) for other, score in lexical.best(words, None, limit + 1) if other != number]
        best = by_words[0][1] if by_words else 1.0
        return [Hit(other, score / best if best > 0 else 0.0, "words") for other, score in by_words[:limit]]

    def status(self) -> IndexStatus:
        """How far the index is.

        Raises:
            IndexDamaged: the words cannot be read.
        """
        lexical = self._open_lexical()
        vectors = self._vectors
        embedded = vectors.papers if vectors is not None else 0
        try:
            model = model_name(self.settings)
        except UserError:
            model = self.settings.embedding_model
        return IndexStatus(
            papers=lexical.papers,
            embedded=embedded,
            waiting=max(0, lexical.papers - embedded),
            model=model,
            indexed_through=self._indexed_through,
            embedded_through=vectors.embedded_through if vectors is not None else 0,
            problem=self._vectors_problem or self._model_problem,
        )

    # Writing

    def add(self, rows: Iterable[IndexRow]) -> int:
        """Take papers in; they can be found from the next `commit` on. Waits for another writer first.

        Args:
            rows: the papers; one of a known number takes the place of the old one.

        Returns:
            How many.

        Raises:
            IndexDamaged: the index cannot be read.
            UserError: another process writes, and does not end.
        """
        with self._write_lock:
            if self._writing is None:
                self._writing = _Writing(self.folder)
            try:
                return self._writing.add(rows)
            except BaseException:
                self._writing.close()
                self._writing = None
                raise

    def remove(self, numbers: Iterable[int]) -> None:
        """Take papers out, from the next `commit` on.

        Args:
            numbers: the papers.
        """
        with self._write_lock:
            if self._writing is None:
                self._writing = _Writing(self.folder)
            self._writing.lexical.remove(numbers)

    def commit(self) -> None:
        """Make findable what was added, durably, and let other writers in."""
        with self._write_lock:
            if self._writing is None:
                return
            writing, self._writing = self._writing, None
            try:
                writing.commit()
            finally:
                writing.close()
        self.refresh()

    def rollback(self) -> None:
        """Forget what was added since the last `commit`, and let other writers in."""
        with self._write_lock:
            if self._writing is not None:
                writing, self._writing = self._writing, None
                writing.close()

    def catch_up(self, engine: Engine) -> int:
        """Take in whatever the database has and the index has not.

        Args:
            engine: the database.

        Returns:
            How many papers.

        Raises:
            IndexDamaged: the index cannot be read.
            UserError: another process writes, and does not end.
        """
        newest = catalogue.newest_revision(engine)
        self.refresh()
        if newest == self._indexed_through:
            return 0
        if newest < self._indexed_through:  # another database, or an older copy of it
            return rebuild(engine, self.settings)
        with self.following(engine, threads=2 if newest - self._indexed_through > _LARGE else 1) as follow:
            return follow()

    @contextmanager
    def following(self, engine: Engine, *, threads: int = 1) -> Iterator[Callable[[], int]]:
        """Take papers in while they are being imported; all of them can be found when the context ends.

        Indexing then runs beside the import instead of after it.

        Args:
            engine: the database.
            threads: indexing threads.

        Yields:
            A function to call after each commit of the import: it takes in what is new or changed, and says how many.

        Raises:
            IndexDamaged: the index cannot be read.
            UserError: another process writes, and does not end.
        """
        with self._write_lock:
            self.commit()
            writing = _Writing(self.folder, threads=threads)
            try:

                def follow() -> int:
                    count = 0
                    for rows in catalogue.changed_since(engine, writing.through):
                        count += writing.add(rows)
                        writing.through = rows[-1].revision
                    return count

                try:
                    yield follow
                finally:
                    writing.commit()
            finally:
                writing.close()
        self.refresh()

    def close(self) -> None:
        """Give back threads, model and locks; what was not committed is lost."""
        self.rollback()
        self._pool.shutdown()
        self._queries.close()


def _fuse(
    lexical: Lexical,
    vectors: Vectors,
    vector: NDArray[np.float32],
    words: Any | None,
    condition: Any | None,
    by_words: list[tuple[int, float]],
    by_meaning: list[tuple[int, float]],
) -> list[Hit]:
    """Weigh words and meaning; every candidate gets both scores, whoever proposed it."""
    word_scores = dict(by_words)
    # Asked of the words, too: whether a paper is still there, and satisfies phrases and filters.
    word_scores |= lexical.scores(words, condition, [number for number, _ in by_meaning if number not in word_scores])
    cosines = {number: cosine for number, cosine in by_meaning if number in word_scores}
    cosines |= vectors.score(vector, [number for number in word_scores if number not in cosines])
    best_word = max(word_scores.values(), default=0.0)
    best_cosine = max(cosines.values(), default=0.0)
    hits = []
    for number, score in word_scores.items():
        word = score / best_word if best_word > 0 else 0.0
        cosine = cosines.get(number)
        if cosine is None:  # not embedded yet: the words speak for the meaning
            hits.append(Hit(number, word, "words"))
            continue
        if word <= 0 and cosine < LEAST_COSINE:
            continue
        near = cosine / best_cosine if best_cosine > 0 else 0.0
        why = "meaning" if word <= 0 else "words and meaning" if cosine >= LEAST_COSINE else "words"
        hits.append(Hit(number, MEANING_WEIGHT * near + (1 - MEANING_WEIGHT) * word, why))
    return sorted(hits, key=lambda hit: (-hit.score, -hit.number))


class _Writing:
    """The words being written, under the lock."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        self._folder = folder
        self._file_lock = locked(folder / "write.lock", "writing the search index")
        self._file_lock.__enter__()
        try:
            self._head = _read_head(folder)
            self.indexed_through: int = self._head["indexed_through"]
            self.through: int = self.indexed_through
            self._revisions: set[int] = set()
            self.lexical = LexicalWriter(folder / self._head["lexical"], threads=threads)
        except BaseException:
            self._file_lock.__exit__(None, None, None)
            raise

    def add(self, rows: Iterable[IndexRow]) -> int:
        return self.lexical.add(self._noted(rows))

    def _noted(self, rows: Iterable[IndexRow]) -> Iterator[IndexRow]:
        for row in rows:
            if row.revision > max(self.indexed_through, self.through):
                self._revisions.add(row.revision)
            yield row

    def commit(self) -> None:
        self.lexical.commit()
        # The mark is moved after the commit, so that a crash in between only repeats work. It moves over revisions
        # that are all here; a gap is another importer's, and `catch_up` fills it.
        through = max(self.indexed_through, self.through)
        while through + 1 in self._revisions:
            through += 1
        if through != self.indexed_through:
            self._head["indexed_through"] = self.indexed_through = through
            write_json(self._folder / "index.json", self._head)

    def close(self) -> None:
        try:
            self.lexical.close()
        finally:
            self._file_lock.__exit__(None, None, None)


def _read_head(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        version, lexical, through = head["version"], str(head["lexical"]), int(head["indexed_through"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexDamaged(folder, f"index.json cannot be read: {error}") from error
    if version != VERSION:
        raise IndexDamaged(folder, f"it has version {version}, expected {VERSION}")
    return {"version": VERSION, "lexical": lexical, "indexed_through": through}


def indexed_through(settings: Settings) -> int:
    """The revision up to which all papers can be found by words.

    Args:
        settings: names the index folder.

    Raises:
        IndexDamaged: the index cannot be read.
    """
    return int(_read_head(settings.index_folder)["indexed_through"])


def _start_new(folder: Path, indexed_through: int = 0) -> str:
    """Make an empty folder of words, the next in number; the caller writes `index.json` or lets this do it."""
    name = _next_lexical(folder)
    LexicalWriter(folder / name).close()
    write_json(folder / "index.json", {"version": VERSION, "lexical": name, "indexed_through": indexed_through})
    return name


def _next_lexical(folder: Path) -> str:
    taken = [int(match[1]) for path in folder.glob("lexical-*") if (match := re.fullmatch(r"lexical-(\d+)", path.name))]
    return f"lexical-{max(taken, default=0) + 1}"


def rebuild(engine: Engine, settings: Settings, *, progress: Any | None = None) -> int:
    """Build the index from the database; vectors of unchanged texts are kept, whatever else is damaged.

    Readers go on with the old index until the new one is whole.

    Args:
        engine: the database.
        settings: names the index folder and the model.
        progress: called with the number of papers done so far.

    Returns:
        How many papers.

    Raises:
        UserError: another process writes, and does not end; or the setting names a model that is not there.
    """
    settings.make_home()
    folder = settings.index_folder
    with (
        locked(folder / "write.lock", "writing the search index"),
        locked(folder / "vectors.lock", "writing the vectors of the search index"),
    ):
        name = _next_lexical(folder)
        old = _salvaged(vectors_folder(settings))
        new_folder = old[0].with_name(old[0].name + ".new")
        shutil.rmtree(new_folder, ignore_errors=True)
        known = old[1]
        writer = VectorWriter(new_folder, model=known.model, dimension=known.dimension) if known is not None else None
        lexical = LexicalWriter(folder / name, threads=2)
        count, through = 0, 0
        try:
            for rows in catalogue.changed_since(engine, 0):
                lexical.add(rows)
                if known is not None and writer is not None:
                    _keep_vectors(known, writer, rows)
                count, through = count + len(rows), rows[-1].revision
                if progress is not None:
                    progress(count)
            lexical.commit()
            if writer is not None:
                writer.commit()
        finally:
            lexical.close()
            if writer is not None:
                writer.close()
        write_json(folder / "index.json", {"version": VERSION, "lexical": name, "indexed_through": through})
        shutil.rmtree(old[0], ignore_errors=True)
        if writer is not None:
            new_folder.replace(old[0])
        for path in folder.iterdir():
            other_words = path.name.startswith("lexical") and path.name != name
            other_model = path.name.startswith("vectors-") and path != old[0]
            if path.is_dir() and (other_words or other_model):
                shutil.rmtree(path, ignore_errors=True)
    return count


def _salvaged(folder: Path) -> tuple[Path, Vectors | None]:
    """The vectors of a folder as far as they can be read."""
    if not (folder / "manifest.json").is_file():
        return folder, None
    try:
        return folder, Vectors(folder)
    except IndexDamaged as error:
        log.warning("the vectors are made again: %s", error)
        return folder, None


def _keep_vectors(known: Vectors, writer: VectorWriter, rows: list[IndexRow]) -> None:
    """Copy the vectors of papers whose text has not changed."""
    entries = [vector_row(row) for row in rows]
    stored = known.text_hashes(np.array([entry.number for entry in entries], dtype=np.int64)).tolist()
    kept = [entry for entry, hash_ in zip(entries, stored, strict=True) if hash_ == entry.text_hash]
    if kept:
        writer.append(kept, known.exported(np.array([entry.number for entry in kept], dtype=np.int64)))


def vector_row(row: IndexRow) -> VectorRow:
    """What is kept beside a paper's vector.

    Args:
        row: the paper.
    """
    return VectorRow(
        row.number, text_hash(row.title, row.abstract or row.summary), row.day, with_archives(row.categories)
    )
