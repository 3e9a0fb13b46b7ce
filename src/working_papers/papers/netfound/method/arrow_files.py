"""The .arrow files of the released preprocessing: streams of record batches with a row a flow."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from working_papers.papers.netfound.method.flow_tokens import FlowTokens, Integers

COLUMNS = ("flow_duration", "burst_tokens", "directions", "bytes", "iats", "counts", "protocol")
LABELS = "labels"


def read_arrow(path: Path) -> Iterator[FlowTokens]:
    """Flows of a file, one record batch after the other; numbers stay where they lie in the mapped file.

    Args:
        path: of a stream (or a file) in Arrow's format with the columns flow_duration (u64, microseconds), burst_tokens
            (list of lists of u16), directions (list of bool), bytes (list of u32), iats (list of u64, microseconds),
            counts (list of u32), protocol (u16), and, where there are any, labels (string).

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no Arrow file, is damaged, lacks a column or holds one that contradicts the others.
    """
    arrow = _arrow()
    ipc = arrow.ipc
    try:
        source = arrow.memory_map(str(path), "r")
        # A file begins with its magic word, a stream does not.
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
        batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            yield _flows_of(batch, path)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OSError) as error:
        raise ValueError(f"{path} is no Arrow file that can be read: {error}") from error


def write_arrow(path: Path, flows: Sequence[FlowTokens]) -> None:
    """Write flows as the released preprocessing does, one record batch for each part.

    Args:
        path: of the file.
        flows: the parts; all of them have labels, or none.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: there are no parts, or only some have labels.
    """
    arrow = _arrow()
    labelled = [part.labels is not None for part in flows]
    if not flows or any(labelled) != all(labelled):
        raise ValueError(f"flows has {len(flows)} parts, {sum(labelled)} with labels; expected all or none, and one")
    batches = [_batch_of(part, arrow) for part in flows]
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


class ArrowFlows:
    """The flows of many files as one sequence; only what is asked for is read from the disk.

    Args:
        paths: of the files.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: no files, no flows in them, or a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.parts = [part for path in paths for part in read_arrow(path) if len(part)]
        if not self.parts:
            raise ValueError(f"paths are {len(paths)} files without flows; expected at least one flow")
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        """Number of flows."""
        return int(self.ends[-1])

    def take(self, rows: Integers | Sequence[int]) -> FlowTokens:
        """Some of the flows, in the order of the rows.

        Args:
            rows: indices from 0.

        Raises:
            ValueError: an index out of range, or none at all.
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        if not len(rows) or rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"rows are {rows.tolist()[:8]}; expected indices from 0 to {len(self) - 1}, at least one")
        order = np.argsort(rows, kind="stable")
        found, at = [], 0
        while at < len(rows):
            part = bisect.bisect_right(self.ends, rows[order[at]])
            until = int(np.searchsorted(rows[order], self.ends[part]))
            begin = self.ends[part - 1] if part else 0
            found.append(self.parts[part].take(rows[order[at:until]] - begin))
            at = until
        return FlowTokens.join(found).take(np.argsort(order))


def _arrow() -> ModuleType:
    try:
        arrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise ImportError(
            "reading .arrow files needs pyarrow: pip install 'working-papers[arrow]' or pip install pyarrow"
        ) from error
    return arrow


def _flows_of(batch: Any, path: Path) -> FlowTokens:
    names = set(batch.schema.names)
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path} lacks the column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    bursts = batch.column("burst_tokens")
    burst_ends, words_of = _list(bursts, "burst_tokens", path)
    word_ends, words = _list(words_of, "burst_tokens", path)
    columns: dict[str, Any] = {}
    for name in ("directions", "bytes", "iats", "counts"):
        ends, values = _list(batch.column(name), name, path)
        if not np.array_equal(ends, burst_ends):
            raise ValueError(f"{path}: {name} and burst_tokens have different numbers of bursts; expected one a burst")
        columns[name] = _numbers(values, name, path)
    labels = batch.column(LABELS).to_pylist() if LABELS in names else None
    if labels is not None and None in labels:
        labels = None if all(label is None for label in labels) else ["" if each is None else each for each in labels]
    return FlowTokens(
        words=_numbers(words, "burst_tokens", path).astype(np.uint16, copy=False),
        word_ends=word_ends,
        burst_ends=burst_ends,
        forward=columns["directions"].astype(np.bool_),
        sizes=columns["bytes"].astype(np.int64),
        counts=columns["counts"].astype(np.int64),
        gaps=columns["iats"].astype(np.int64),
        protocol=_numbers(batch.column("protocol"), "protocol", path).astype(np.int64),
        duration=_numbers(batch.column("flow_duration"), "flow_duration", path).astype(np.int64),
        labels=None if labels is None else np.asarray(labels, dtype=np.str_),
    )


def _list(column: Any, name: str, path: Path) -> tuple[Integers, Any]:
    """Where the lists end, and the elements of all lists."""
    if not hasattr(column, "offsets") or column.null_count:
        raise ValueError(f"{path}: {name} is {column.type}, {column.null_count} of it null; expected lists, none null")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets[1:] - offsets[0], column.flatten()


def _numbers(column: Any, name: str, path: Path) -> np.ndarray[Any, Any]:
    if column.null_count:
        raise ValueError(f"{path}: {name} has {column.null_count} nulls; expected none")
    numbers: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "iub":
        raise ValueError(f"{path}: {name} holds {column.type}; expected integers")
    return numbers


def _batch_of(flows: FlowTokens, arrow: ModuleType) -> Any:
    def offsets(ends: Integers) -> Any:
        return arrow.array(np.r_[0, ends], type=arrow.int32())

    def lists(values: np.ndarray[Any, Any], kind: Any) -> Any:
        return arrow.ListArray.from_arrays(offsets(flows.burst_ends), arrow.array(values, type=kind))

    words = arrow.ListArray.from_arrays(offsets(flows.word_ends), arrow.array(flows.words, type=arrow.uint16()))
    columns = {
        "flow_duration": arrow.array(flows.duration, type=arrow.uint64()),
        "burst_tokens": arrow.ListArray.from_arrays(offsets(flows.burst_ends), words),
        "directions": lists(flows.forward, arrow.bool_()),
        "bytes": lists(flows.sizes, arrow.uint32()),
        "iats": lists(flows.gaps, arrow.uint64()),
        "counts": lists(flows.counts, arrow.uint32()),
        "protocol": arrow.array(flows.protocol, type=arrow.uint16()),
    }
    if flows.labels is not None:
        columns[LABELS] = arrow.array(flows.labels.tolist(), type=arrow.string())
    return arrow.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
