"""Embeddings in the background: newest papers first, one process a machine, killed at any time without loss.

`start` runs this package as a process (`python -m working_papers.daily.search`); its settings come over
standard input, and the end of standard input (the parent has gone, however it went) ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from sqlalchemy import Engine

from working_papers.config import Settings
from working_papers.daily.search import catalogue
from working_papers.daily.search.embedding import Embedder, model_name, open_embedder, paper_text
from working_papers.daily.search.index import SearchIndex, locked, vector_row, vectors_folder
from working_papers.daily.search.lexical import IndexRow
from working_papers.daily.search.vectors import VectorRow, Vectors, VectorWriter, day_number
from working_papers.errors import UserError

log = logging.getLogger(__name__)

SLICE = 256
"""Papers embedded between two commits: what a kill can cost, some seconds of work."""

POLL_SECONDS = 2.0
"""How often the background process looks for new papers."""


class EmbeddingBusy(UserError):
    """Another process of this machine embeds already."""


@dataclass(frozen=True)
class Progress:
    """How far the embedding is.

    Attributes:
        done: papers embedded by this call.
        waiting: papers that still wait.
        seconds: since the call began.
    """

    done: int
    waiting: int
    seconds: float


class _Pending:
    """Papers without a current vector, newest first; 20 bytes each."""

    def __init__(self) -> None:
        self._numbers: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._days: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._at = 0

    def __len__(self) -> int:
        return len(self._numbers) - self._at

    def add(self, rows: list[tuple[int, int]]) -> None:
        if not rows:
            return
        numbers = np.concatenate([self._numbers[self._at :], np.array([row[0] for row in rows], dtype=np.int64)])
        days = np.concatenate([self._days[self._at :], np.array([row[1] for row in rows], dtype=np.int32)])
        numbers, first = np.unique(numbers[::-1], return_index=True)
        days = days[::-1][first]
        order = np.lexsort((-numbers, -days.astype(np.int64)))
        self._numbers, self._days, self._at = numbers[order], days[order], 0

    def take(self, count: int) -> list[int]:
        taken = self._numbers[self._at : self._at + count].tolist()
        self._at += len(taken)
        return [int(number) for number in taken]


def embed_pending(
    engine: Engine,
    settings: Settings,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] | None = None,
) -> int:
    """Embed all papers that have no current vector, newest day first, until none is left.

    Papers that arrive meanwhile are taken in turn, so that today's never wait for the archive.

    Args:
        engine: the database.
        settings: names the index folder, the model and its threads.
        stop: asked between slices; True ends the call.
        progress: called after each slice.

    Returns:
        How many papers were embedded.

    Raises:
        EmbeddingBusy: another process of this machine embeds already.
        IndexDamaged: the vectors cannot be read.
        UserError: the model cannot be loaded.
    """
    settings.make_home()
    settings.index_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.index_folder / "embed.lock", timeout=0)
    try:
        with lock:
            return _Embedding(engine, settings).run(stop, progress)
    except Timeout as error:
        raise EmbeddingBusy("another process of this machine is embedding already; its work will be used") from error


class _Embedding:
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._model = model_name(settings)
        self._folder = vectors_folder(settings)
        self._embedder: Embedder | None = None

    def run(self, stop: Callable[[], bool], progress: Callable[[Progress], None] | None) -> int:
        try:
            done, whole = 0, False
            start = time.monotonic()
            while not whole and not stop():
                done, whole = self._pass(stop, progress, done, start)
            return done
        finally:
            if self._embedder is not None:
                self._embedder.close()

    def _pass(
        self, stop: Callable[[], bool], progress: Callable[[Progress], None] | None, done: int, start: float
    ) -> tuple[int, bool]:
        """Work until nothing waits; (papers done, whether all are)."""
        vectors = Vectors(self._folder) if (self._folder / "manifest.json").is_file() else None
        seen = vectors.embedded_through if vectors is not None else 0
        if seen > catalogue.newest_revision(self._engine):  # another database, or an older copy of it
            seen = 0
        pending = _Pending()
        generation: str | None = None
        while not stop():
            seen = self._look(vectors, seen, pending)
            numbers = pending.take(SLICE)
            if not numbers:
                if vectors is None or vectors.embedded_through == seen:
                    return done, True
                with locked(self._settings.index_folder / "vectors.lock", "writing the vectors of the search index"):
                    writer = VectorWriter(self._folder, model=self._model, dimension=vectors.dimension)
                    try:
                        if generation is not None and writer.generation != generation:
                            return done, False  # built anew meanwhile: look again from the beginning
                        writer.commit(embedded_through=seen)
                    finally:
                        writer.close()
                return done, True
            rows = catalogue.by_numbers(self._engine, numbers)
            place = {number: index for index, number in enumerate(numbers)}
            rows.sort(key=lambda row: place[row.number])
            found = self._embed(vectors, rows)
            with locked(self._settings.index_folder / "vectors.lock", "writing the vectors of the search index"):
                writer = VectorWriter(self._folder, model=self._model, dimension=found.shape[1])
                try:
                    if generation is not None and writer.generation != generation:
                        return done, False
                    generation = writer.generation
                    writer.append([vector_row(row) for row in rows], found)
                    writer.commit()
                finally:
                    writer.close()
            if vectors is None:
                vectors = Vectors(self._folder)
            vectors.refresh()
            done += len(rows)
            if progress is not None:
                progress(Progress(done, len(pending), time.monotonic() - start))
        return done, False

    def _look(self, vectors: Vectors | None, seen: int, pending: _Pending) -> int:
        """Put what is new or changed since a revision among the pending; the newest revision."""
        for rows in catalogue.changed_since(self._engine, seen):
            entries = [vector_row(row) for row in rows]
            pending.add([(entry.number, day_number(entry.day)) for entry in entries if not _current(vectors, entry)])
            seen = rows[-1].revision
        return seen

    def _embed(self, vectors: Vectors | None, rows: list[IndexRow]) -> NDArray[np.float32]:
        """Vectors of papers; where only the day or the categories changed, the one that is there."""
        entries = [vector_row(row) for row in rows]
        stored = [0] * len(rows)
        if vectors is not None:
            numbers = np.array([entry.number for entry in entries], dtype=np.int64)
            stored = [int(hash_) for hash_ in vectors.text_hashes(numbers)]
        changed = [index for index, entry in enumerate(entries) if stored[index] != entry.text_hash]
        if not changed and vectors is not None:
            return vectors.exported(np.array([entry.number for entry in entries], dtype=np.int64))
        if self._embedder is None:
            self._embedder = open_embedder(self._settings, threads=self._settings.embedding_threads)
        fresh = self._embedder.embed(
            [paper_text(rows[index].title, rows[index].abstract or rows[index].summary) for index in changed]
        )
        found = np.empty((len(rows), fresh.shape[1]), dtype=np.float32)
        found[changed] = fresh
        kept = sorted(set(range(len(rows))) - set(changed))
        if kept and vectors is not None:
            found[kept] = vectors.exported(np.array([entries[index].number for index in kept], dtype=np.int64))
        return found


def _current(vectors: Vectors | None, entry: VectorRow) -> bool:
    if vectors is None:
        return False
    stored = vectors.text_hashes(np.array([entry.number], dtype=np.int64))
    return int(stored[0]) == entry.text_hash and vectors.same_labels(entry)


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """Start the background process: it keeps words and vectors up with the database until its input ends.

    Args:
        settings: of this installation.

    Returns:
        The process; close its `stdin` to end it after the slice it is at, or `terminate` it.
    """
    # A session of its own: Ctrl-C at the terminal is for the parent, whose end ends this process too.
    command = [sys.executable, "-m", "working_papers.daily.search"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once; its exit status says so
        process.stdin.write(settings.model_dump_json().encode() + b"\n")
        process.stdin.flush()
    return process


def main() -> int:
    """Follow the database until standard input ends.

    Returns:
        The exit status.
    """
    from working_papers.database import open_database

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    settings = Settings.model_validate_json(sys.stdin.buffer.readline())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with contextlib.suppress(OSError):  # a container may forbid it
        os.nice(10)
    ended = threading.Event()

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):  # unbuffered: a lock held here would hinder the end of the process
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    engine = open_database(settings)
    said = ""
    while not ended.is_set():
        try:
            with contextlib.closing(SearchIndex.open(settings)) as index:

                def stop(index: SearchIndex = index) -> bool:
                    index.catch_up(engine)  # between slices too, so that words never wait for vectors
                    return ended.is_set()

                if not stop():
                    embed_pending(engine, settings, stop=stop)
            said = ""
        except EmbeddingBusy:
            pass  # the other one does the work; this one takes over when it ends
        except UserError as error:
            if str(error) != said:
                log.error("%s", error)
            said = str(error)
        ended.wait(POLL_SECONDS)
    engine.dispose()
    return 0
