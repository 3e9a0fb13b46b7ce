"""The vectors: append-only files, scanned as binary codes with FAISS and re-scored in int8.

A folder holds one array a file, all of the same number of rows, and `manifest.json` with the number of rows that are
committed. Rows are only ever appended; a later row of the same paper takes the place of an earlier one. What lies
beyond the committed rows (a writer was killed) is never read, and cut off by the next writer.

The search is exhaustive: the sign bits of all vectors (48 bytes for 384 components) are compared with the query's by
Hamming distance, the nearest few thousand are scored again with int8 components. Measured against exact float search:
`benchmarks/search_scale.py`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from working_papers.daily.search.files import IndexDamaged, Signature, signature, write_json

LAYOUT = 1
"""Version of the files' layout."""

CANDIDATES = 2_000
"""Nearest papers by binary code that are scored again in int8."""

GATHERED_SHARE = 0.05
"""Below this share of admitted rows, their codes are copied out before the scan; above, the scan skips the others."""

CATEGORY_WORDS = 4
"""64-bit words of category bits a row; the last bit stands for every category beyond the first 255."""

_EPOCH = dt.date(1970, 1, 1)
_PAGE = 1 << 16


def day_number(day: dt.date) -> int:
    """Days since 1970-01-01.

    Args:
        day: a date.
    """
    return (day - _EPOCH).days


@dataclass(frozen=True)
class VectorRow:
    """What is kept beside a vector.

    Attributes:
        number: the paper.
        text_hash: fingerprint of the embedded text.
        day: its day.
        categories: its categories.
    """

    number: int
    text_hash: int
    day: dt.date
    categories: tuple[str, ...]


class RowsOfNumbers:
    """From paper number to row, for millions of numbers, dense or not."""

    def __init__(self) -> None:
        """Know no number."""
        self._pages: dict[int, NDArray[np.int32]] = {}
        self.count = 0

    def set(self, numbers: NDArray[np.int64], first_row: int) -> None:
        """Enter consecutive rows; of a repeated number the last row counts.

        Args:
            numbers: int64 [n], the papers of the rows.
            first_row: row of the first of them.
        """
        rows = np.arange(first_row, first_row + len(numbers), dtype=np.int32)
        pages = numbers // _PAGE
        for page in np.unique(pages).tolist():
            if page not in self._pages:
                self._pages[page] = np.full(_PAGE, -1, dtype=np.int32)
            here = pages == page
            self.count += int(np.count_nonzero(self._pages[page][np.unique(numbers[here] % _PAGE)] < 0))
            # Rows only grow, so the greatest is the last one.
            np.maximum.at(self._pages[page], numbers[here] % _PAGE, rows[here])

    def get(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Look rows up.

        Args:
            numbers: int64 [n].

        Returns:
            int32 [n]; -1 for an unknown number.
        """
        rows = np.full(len(numbers), -1, dtype=np.int32)
        pages = numbers // _PAGE
        for page in np.unique(pages).tolist():
            known = self._pages.get(page)
            if known is not None:
                here = pages == page
                rows[here] = known[numbers[here] % _PAGE]
        return rows


class _Files:
    """The files of a folder: name, type and width a row."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.code_bytes = (dimension + 7) // 8
        self.widths: dict[str, tuple[np.dtype[Any], int]] = {
            "numbers": (np.dtype("<i8"), 1),
            "text_hashes": (np.dtype("<u8"), 1),
            "days": (np.dtype("<i4"), 1),
            "scales": (np.dtype("<f4"), 1),
            **{f"categories_{word}": (np.dtype("<u8"), 1) for word in range(CATEGORY_WORDS)},
            "codes": (np.dtype("u1"), self.code_bytes),
            "components": (np.dtype("i1"), dimension),
        }

    def bytes_a_row(self, name: str) -> int:
        kind, width = self.widths[name]
        return kind.itemsize * width


def binary_codes(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Sign bits of vectors.

    Args:
        vectors: float32 [n, dimension].

    Returns:
        uint8 [n, ceil(dimension / 8)].
    """
    return np.packbits(vectors > 0, axis=1)


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Components in int8 with one scale a vector.

    Args:
        vectors: float32 [n, dimension].

    Returns:
        int8 [n, dimension] and float32 [n]; their product is the vector, to half a step.
    """
    scales = np.abs(vectors).max(axis=1) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["layout"] != LAYOUT:
            raise IndexDamaged(folder.parent, f"{folder.name} has layout {manifest['layout']}, expected {LAYOUT}")
        manifest = {
            "layout": LAYOUT,
            "model": str(manifest["model"]),
            "dimension": int(manifest["dimension"]),
            "rows": int(manifest["rows"]),
            "embedded_through": int(manifest["embedded_through"]),
            "categories": [str(name) for name in manifest["categories"]],
            "generation": str(manifest["generation"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexDamaged(folder.parent, f"{folder.name}/manifest.json cannot be read: {error}") from error
    if manifest["rows"] < 0 or manifest["dimension"] < 1:
        raise IndexDamaged(folder.parent, f"{folder.name}/manifest.json makes no sense")
    files = _Files(manifest["dimension"])
    for name in files.widths:
        file = folder / name
        expected = manifest["rows"] * files.bytes_a_row(name)
        found = file.stat().st_size if file.is_file() else 0
        if found < expected:
            raise IndexDamaged(folder.parent, f"{folder.name}/{name} has {found:,} bytes, expected {expected:,}")
    return manifest


@dataclass(frozen=True)
class _View:
    """The committed rows at one moment."""

    rows: int
    arrays: dict[str, NDArray[Any]]
    categories: dict[str, int]
    embedded_through: int


class Vectors:
    """The committed vectors of a folder, for searching; follows a writer in another process."""

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Args:
            folder: made by `VectorWriter`.

        Raises:
            IndexDamaged: a file is missing, too short or of an unknown layout.
        """
        self.folder = folder
        self._lock = threading.Lock()
        self._seen: Signature = None
        self._rows_of = RowsOfNumbers()
        self._generation = ""
        self._view = _View(0, {}, {}, 0)
        self.refresh()

    def refresh(self) -> None:
        """See what has been committed since; costs one look at a file when nothing has.

        Raises:
            IndexDamaged: a file is missing, too short or of an unknown layout.
        """
        seen = signature(self.folder / "manifest.json")
        if seen == self._seen and seen is not None:
            return
        with self._lock:
            if seen == self._seen and seen is not None:
                return
            manifest = _read_manifest(self.folder)
            self.model: str = manifest["model"]
            self._files = _Files(manifest["dimension"])
            rows, before = manifest["rows"], self._view.rows
            if rows < before or manifest["generation"] != self._generation:  # another folder took this one's place
                self._rows_of, before = RowsOfNumbers(), 0
            self._generation = manifest["generation"]
            arrays: dict[str, NDArray[Any]] = {}
            for name, (kind, width) in self._files.widths.items():
                shape = (rows, width) if width > 1 else (rows,)
                # An empty file cannot be mapped.
                arrays[name] = (
                    np.memmap(self.folder / name, dtype=kind, mode="r", shape=shape) if rows else np.empty(shape, kind)
                )
            self._rows_of.set(np.asarray(arrays["numbers"][before:], dtype=np.int64), before)
            categories = {name: bit for bit, name in enumerate(manifest["categories"])}
            self._view = _View(rows, arrays, categories, manifest["embedded_through"])
            self._seen = seen

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._files.dimension

    @property
    def rows(self) -> int:
        """Committed rows, those that a later one replaces included."""
        return self._view.rows

    @property
    def papers(self) -> int:
        """Papers that have a vector."""
        return self._rows_of.count

    @property
    def embedded_through(self) -> int:
        """All papers up to this revision have their vectors."""
        return self._view.embedded_through

    def current_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """The rows of papers.

        Args:
            numbers: int64 [n].

        Returns:
            int32 [n]; -1 where there is none.
        """
        rows = self._rows_of.get(numbers)
        rows[rows >= self._view.rows] = -1
        return rows

    def text_hashes(self, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The fingerprints of the texts that were embedded.

        Args:
            numbers: int64 [n].

        Returns:
            uint64 [n]; 0 where there is no vector.
        """
        rows = self.current_rows(numbers)
        found: NDArray[np.uint64] = np.zeros(len(numbers), dtype=np.uint64)
        known = rows >= 0
        found[known] = self._view.arrays["text_hashes"][rows[known]]
        return found

    def same_labels(self, entry: VectorRow) -> bool:
        """Whether the day and categories beside a paper's vector are its present ones.

        Args:
            entry: the paper.
        """
        view = self._view
        row = int(self.current_rows(np.array([entry.number], dtype=np.int64))[0])
        if row < 0 or int(view.arrays["days"][row]) != day_number(entry.day):
            return False
        if any(name not in view.categories for name in entry.categories) and len(view.categories) < _MOST_CATEGORIES:
            return False
        bits = category_bits([entry.categories], view.categories)[0]
        return all(int(view.arrays[f"categories_{word}"][row]) == int(bits[word]) for word in range(CATEGORY_WORDS))

    def vector(self, number: int) -> NDArray[np.float32] | None:
        """A paper's vector.

        Args:
            number: the paper.

        Returns:
            float32 [dimension], of length 1; None when there is none.
        """
        row = int(self.current_rows(np.array([number], dtype=np.int64))[0])
        if row < 0:
            return None
        vector = self._view.arrays["components"][row].astype(np.float32)
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)

    def all_numbers(self) -> NDArray[np.int64]:
        """The papers that have a vector: int64 [n], in no order."""
        return np.unique(np.asarray(self._view.arrays["numbers"], dtype=np.int64))

    def exported(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of papers that have one.

        Args:
            numbers: int64 [n].

        Returns:
            float32 [n, dimension].
        """
        rows = self.current_rows(numbers)
        return np.asarray(
            self._view.arrays["components"][rows].astype(np.float32) * self._view.arrays["scales"][rows][:, None],
            dtype=np.float32,
        )

    def score(self, vector: NDArray[np.float32], numbers: Sequence[int]) -> dict[int, float]:
        """Cosines of some papers with a query.

        Args:
            vector: float32 [dimension], of length 1.
            numbers: papers; those without a vector are left out.

        Returns:
            Cosine by paper.
        """
        wanted = np.asarray(numbers, dtype=np.int64)
        rows = self.current_rows(wanted)
        known = rows >= 0
        return dict(zip(wanted[known].tolist(), self._cosines(self._view, vector, rows[known]).tolist(), strict=True))

    def _cosines(self, view: _View, vector: NDArray[np.float32], rows: NDArray[Any]) -> NDArray[np.float32]:
        components = view.arrays["components"][rows].astype(np.float32)
        return np.asarray((components @ vector) * view.arrays["scales"][rows], dtype=np.float32)

    def admitted(
        self, days: tuple[dt.date | None, dt.date | None] | None, categories: Collection[str] | None
    ) -> NDArray[np.bool_] | None:
        """Which rows a filter admits.

        Args:
            days: first and last day, either may be open.
            categories: any of these.

        Returns:
            bool [rows]; None when there is no filter.
        """
        view = self._view
        mask: NDArray[np.bool_] | None = None
        if days is not None and (days[0] is not None or days[1] is not None):
            stored = view.arrays["days"]
            mask = np.ones(view.rows, dtype=np.bool_)
            if days[0] is not None:
                mask &= stored >= day_number(days[0])
            if days[1] is not None:
                mask &= stored <= day_number(days[1])
        if categories:
            bits = category_bits([tuple(categories)], view.categories)[0]
            wanted = np.zeros(view.rows, dtype=np.bool_)
            for word in range(CATEGORY_WORDS):
                if bits[word]:
                    wanted |= (view.arrays[f"categories_{word}"] & bits[word]) != 0
            mask = wanted if mask is None else mask & wanted
        return mask

    def nearest(
        self,
        vector: NDArray[np.float32],
        limit: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        numbers: NDArray[np.int64] | None = None,
        candidates: int = CANDIDATES,
    ) -> list[tuple[int, float]]:
        """The papers nearest to a query.

        Args:
            vector: float32 [dimension], of length 1.
            limit: most papers.
            mask: bool [rows]; admit only these (see `admitted`).
            numbers: int64 [n]; admit only these papers, in place of `mask`.
            candidates: papers taken from the scan of binary codes.

        Returns:
            (paper, cosine), the nearest first.
        """
        view = self._view
        if mask is not None and len(mask) != view.rows:  # more was committed since the mask was made
            grown = np.zeros(view.rows, dtype=np.bool_)
            grown[: min(len(mask), view.rows)] = mask[: view.rows]
            mask = grown
        candidates = max(candidates, limit)
        rows: NDArray[Any]
        if numbers is not None:
            rows = self._rows_of.get(np.unique(numbers))
            rows = rows[(rows >= 0) & (rows < view.rows)]
            if len(rows) > candidates:
                rows = rows[_scan(view.arrays["codes"][rows], vector, candidates)]
        elif mask is None:
            rows = _scan(view.arrays["codes"], vector, candidates)
        else:
            admitted = int(np.count_nonzero(mask))
            if admitted <= candidates:
                rows = np.flatnonzero(mask)
            elif admitted < GATHERED_SHARE * view.rows:
                rows = np.flatnonzero(mask)
                rows = rows[_scan(view.arrays["codes"][rows], vector, candidates)]
            else:
                rows = _scan(view.arrays["codes"], vector, candidates, mask)
        rows = np.sort(rows)
        papers = np.asarray(view.arrays["numbers"][rows], dtype=np.int64)
        latest = self._rows_of.get(papers) == rows  # not replaced by a later row
        rows, papers = rows[latest], papers[latest]
        if not len(rows):
            return []
        cosines = self._cosines(view, vector, rows)
        best = np.argsort(-cosines, kind="stable")[:limit]
        return list(zip(papers[best].tolist(), cosines[best].tolist(), strict=True))


def _scan(
    codes: NDArray[np.uint8], vector: NDArray[np.float32], count: int, mask: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Rows of the `count` nearest codes by Hamming distance, by FAISS in one thread.

    Args:
        codes: uint8 [n, bytes], C-contiguous.
        vector: float32 [dimension].
        count: how many.
        mask: bool [n], rows that are admitted.

    Returns:
        int64 [at most count].
    """
    count = min(count, len(codes))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    query = binary_codes(vector[None])
    distances = np.empty((1, count), dtype=np.int32)
    labels = np.empty((1, count), dtype=np.int64)
    library: Any = faiss  # its type hints do not know these low-level names
    heap = library.int_maxheap_array_t()
    heap.k, heap.nh = count, 1
    heap.ids, heap.val = library.swig_ptr(labels), library.swig_ptr(distances)
    codes = np.ascontiguousarray(codes)
    arguments = [heap, library.swig_ptr(query), library.swig_ptr(codes), len(codes), codes.shape[1], 0]
    if mask is not None:
        bits = np.packbits(mask, bitorder="little")
        arguments += [library.EXACT_TOPK, library.IDSelectorBitmap(bits)]
    library.hammings_knn_hc(*arguments)
    found: NDArray[np.int64] = labels[0]
    return found[found >= 0]


_MOST_CATEGORIES = 64 * CATEGORY_WORDS - 1


def category_bits(rows: Iterable[tuple[str, ...]], known: dict[str, int]) -> NDArray[np.uint64]:
    """Categories as bits; those that are not known share the last bit.

    Args:
        rows: the categories of n papers.
        known: bit by category.

    Returns:
        uint64 [n, CATEGORY_WORDS].
    """
    packed = []
    for row in rows:
        bits = 0
        for name in row:
            bits |= 1 << known.get(name, _MOST_CATEGORIES)
        packed.append([bits >> (64 * word) & 0xFFFFFFFFFFFFFFFF for word in range(CATEGORY_WORDS)])
    return np.array(packed, dtype=np.uint64).reshape(-1, CATEGORY_WORDS)


class VectorWriter:
    """The one writer of a folder. The caller holds the lock that keeps others out."""

    def __init__(self, folder: Path, *, model: str, dimension: int) -> None:
        """Open or create the folder, and cut off what an earlier writer had not committed.

        Args:
            folder: the folder.
            model: name of the embedding model.
            dimension: width of a vector.

        Raises:
            IndexDamaged: a file is missing, too short or of an unknown layout, or belongs to another model.
        """
        self._folder = folder
        self._files = _Files(dimension)
        self._streams: dict[str, BinaryIO] = {}
        if not (folder / "manifest.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for name in self._files.widths:
                (folder / name).write_bytes(b"")
            self._manifest: dict[str, Any] = {
                "layout": LAYOUT,
                "model": model,
                "dimension": dimension,
                "rows": 0,
                "embedded_through": 0,
                "categories": [],
                "generation": uuid.uuid4().hex,
            }
            write_json(folder / "manifest.json", self._manifest)
        self._manifest = _read_manifest(folder)
        if (self._manifest["model"], self._manifest["dimension"]) != (model, dimension):
            raise IndexDamaged(
                folder.parent,
                f"{folder.name} holds vectors of {self._manifest['model']} in {self._manifest['dimension']} "
                f"dimensions, expected {model} in {dimension}",
            )
        self._rows: int = self._manifest["rows"]
        self._known = {name: bit for bit, name in enumerate(self._manifest["categories"])}
        for name in self._files.widths:
            stream = (folder / name).open("r+b")
            stream.truncate(self._rows * self._files.bytes_a_row(name))
            stream.seek(0, os.SEEK_END)
            self._streams[name] = stream

    @property
    def generation(self) -> str:
        """Changes when the folder is made anew."""
        return str(self._manifest["generation"])

    def append(self, entries: Sequence[VectorRow], vectors: NDArray[np.float32]) -> None:
        """Write rows; they count from the next `commit` on.

        Args:
            entries: n papers.
            vectors: float32 [n, dimension], each of length 1.

        Raises:
            ValueError: the shapes do not agree.
        """
        if vectors.shape != (len(entries), self._files.dimension):
            raise ValueError(f"vectors: expected shape {(len(entries), self._files.dimension)}, got {vectors.shape}")
        if not entries:
            return
        for entry in entries:
            for name in entry.categories:
                if name not in self._known and len(self._known) < _MOST_CATEGORIES:
                    self._known[name] = len(self._known)
        components, scales = quantise(vectors)
        bits = category_bits((entry.categories for entry in entries), self._known)
        columns: dict[str, NDArray[Any]] = {
            "numbers": np.array([entry.number for entry in entries], dtype="<i8"),
            "text_hashes": np.array([entry.text_hash for entry in entries], dtype="<u8"),
            "days": np.array([day_number(entry.day) for entry in entries], dtype="<i4"),
            "scales": scales.astype("<f4"),
            **{f"categories_{word}": bits[:, word].astype("<u8") for word in range(CATEGORY_WORDS)},
            "codes": binary_codes(vectors),
            "components": components,
        }
        for name, column in columns.items():
            self._streams[name].write(np.ascontiguousarray(column).tobytes())
        self._rows += len(entries)

    def commit(self, *, embedded_through: int | None = None) -> None:
        """Make the appended rows count, durably.

        Args:
            embedded_through: all papers up to this revision have their vectors now; None: no news.
        """
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        self._manifest["rows"] = self._rows
        self._manifest["categories"] = list(self._known)
        if embedded_through is not None:
            self._manifest["embedded_through"] = embedded_through
        write_json(self._folder / "manifest.json", self._manifest)

    def close(self) -> None:
        """Close the files; what was not committed is lost."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
