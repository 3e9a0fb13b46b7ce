"""Flows as columns of words and burst statistics, and as padded batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


class FlowBatch(NamedTuple):
    """Flows padded to one shape; N flows, B bursts, S tokens of a burst, the first of which is CLS.

    Attributes:
        tokens: ids, 0 where there is none, int64 (N, B, S).
        token_mask: where there is a token, bool (N, B, S).
        burst_mask: where there is a burst, bool (N, B).
        metadata: direction (+1 or -1), kilobytes, packets, milliseconds since the burst before of the same direction;
            float32 (N, B, 4), 0 where there is no burst.
        protocol: number of the transport protocol, int64 (N,).
    """

    tokens: Tensor
    token_mask: Tensor
    burst_mask: Tensor
    metadata: Tensor
    protocol: Tensor

    def take(self, rows: Tensor) -> FlowBatch:
        """Some of the flows, padded no more than they need."""
        tokens, token_mask, burst_mask, metadata, protocol = (each[rows] for each in self)
        bursts = max(1, int(burst_mask.sum(dim=1).max())) if len(burst_mask) else 1
        length = max(1, int(token_mask.sum(dim=2).max())) if token_mask.numel() else 1
        return FlowBatch(
            tokens[:, :bursts, :length],
            token_mask[:, :bursts, :length],
            burst_mask[:, :bursts],
            metadata[:, :bursts],
            protocol,
        )


@dataclass(frozen=True)
class FlowTokens:
    """Tokenised flows as columns without padding: what the released .arrow files hold.

    Attributes:
        words: 16-bit words of all packets, burst by burst, uint16.
        word_ends: where each burst's words end, int64 (bursts,).
        burst_ends: where each flow's bursts end, int64 (flows,).
        forward: direction of each burst, bool (bursts,).
        sizes: bytes of each burst's kept packets by their IP headers, int64 (bursts,).
        counts: packets that were kept of each burst, int64 (bursts,).
        gaps: microseconds from the first packet of the burst before of the same direction, int64 (bursts,).
        protocol: of each flow, int64 (flows,).
        duration: of each flow in microseconds, int64 (flows,).
        labels: of each flow, or None.
    """

    words: NDArray[np.uint16]
    word_ends: Integers
    burst_ends: Integers
    forward: NDArray[np.bool_]
    sizes: Integers
    counts: Integers
    gaps: Integers
    protocol: Integers
    duration: Integers
    labels: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        """Number of flows."""
        return len(self.burst_ends)

    @property
    def bursts(self) -> Integers:
        """Number of bursts of each flow, int64 (flows,)."""
        return np.diff(self.burst_ends, prepend=0)

    @property
    def lengths(self) -> Integers:
        """Number of words of each burst, int64 (bursts,)."""
        return np.diff(self.word_ends, prepend=0)

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> FlowTokens:
        """Some of the flows, in the order of the rows."""
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(rows) and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise ValueError(f"rows reach from {rows.min()} to {rows.max()}; expected indices of {len(self)} flows")
        rows = rows % max(1, len(self))
        bursts = self.bursts[rows]
        chosen = ranges(self.burst_ends[rows] - bursts, bursts)
        lengths = self.lengths[chosen]
        return FlowTokens(
            words=self.words[ranges(self.word_ends[chosen] - lengths, lengths)],
            word_ends=np.cumsum(lengths),
            burst_ends=np.cumsum(bursts),
            forward=self.forward[chosen],
            sizes=self.sizes[chosen],
            counts=self.counts[chosen],
            gaps=self.gaps[chosen],
            protocol=self.protocol[rows],
            duration=self.duration[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def with_labels(self, labels: Sequence[str]) -> FlowTokens:
        """The same flows with labels."""
        if len(labels) != len(self):
            raise ValueError(f"labels has {len(labels)} entries; expected one for each of the {len(self)} flows")
        return replace(self, labels=np.asarray(labels, dtype=np.str_))

    @staticmethod
    def join(parts: Sequence[FlowTokens]) -> FlowTokens:
        """Flows behind one another; labels are kept if all parts have them."""
        if not parts:
            raise ValueError("parts is empty; expected at least one set of flows")

        def ends(columns: list[Integers]) -> Integers:
            sizes = [column[-1] if len(column) else 0 for column in columns]
            shifts = np.cumsum([0, *sizes[:-1]])
            return np.concatenate([column + shift for column, shift in zip(columns, shifts, strict=True)])

        labels = [part.labels for part in parts if part.labels is not None]
        return FlowTokens(
            words=np.concatenate([part.words for part in parts]),
            word_ends=ends([part.word_ends for part in parts]),
            burst_ends=ends([part.burst_ends for part in parts]),
            forward=np.concatenate([part.forward for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            gaps=np.concatenate([part.gaps for part in parts]),
            protocol=np.concatenate([part.protocol for part in parts]),
            duration=np.concatenate([part.duration for part in parts]),
            labels=np.concatenate(labels) if len(labels) == len(parts) else None,
        )


def ranges(begin: Integers, length: Integers) -> Integers:
    """All of begin, begin + 1, ... begin + length - 1, one range after the other."""
    before = np.cumsum(length) - length
    every: Integers = np.arange(int(length.sum())) + np.repeat(begin - before, length)
    return every
