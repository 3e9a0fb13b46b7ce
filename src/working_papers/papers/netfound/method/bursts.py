"""Bursts: packets of one direction that are close in time (data representation of the paper)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Interleave = Literal["time", "direction"]
Integers = NDArray[np.int64]

NANOSECONDS = 1_000_000_000


def split_bursts(
    times: Integers,
    forward: NDArray[np.bool_],
    gap: float = 0.010,
    interleave: Interleave = "time",
    flows: Integers | None = None,
) -> Integers:
    """Number the bursts of one flow, or of many at once.

    A packet begins a burst where the packet before it in its own direction lies more than `gap` back. So a quick
    exchange within the gap is two bursts, one a direction. This is what the released preprocessing does; the paper's
    "same direction and close in time" can also be read so that every change of direction begins a burst, which
    `interleave="direction"` does in addition.

    Args:
        times: of the packets in nanoseconds, in any order, int64 (n,).
        forward: whether a packet goes the way of the flow's first one, bool (n,).
        gap: in seconds; a pause of exactly as much does not split.
        interleave: "time" lets bursts of both directions overlap, "direction" does not.
        flows: number of each packet's flow, int64 (n,); None: all are of one flow.

    Returns:
        Number of each packet's burst, int64 (n,). Bursts count from 0 through all flows, by flow, then by the time of
        their first packets; of two that begin at once the forward one comes first.

    Raises:
        ValueError: shapes differ, the gap is negative, or the rule is not known.
    """
    times, forward = np.asarray(times, dtype=np.int64), np.asarray(forward, dtype=np.bool_)
    flows = np.zeros(len(times), dtype=np.int64) if flows is None else np.asarray(flows, dtype=np.int64)
    for name, column in (("forward", forward), ("flows", flows)):
        if column.shape != times.shape or times.ndim != 1:
            raise ValueError(f"{name} has shape {column.shape}, times {times.shape}; expected one entry a packet, (n,)")
    if not gap >= 0:
        raise ValueError(f"gap is {gap}; expected seconds, at least 0")
    if interleave not in get_args(Interleave):
        raise ValueError(f"interleave is {interleave!r}; expected one of {', '.join(get_args(Interleave))}")
    if not len(times):
        return np.zeros(0, dtype=np.int64)

    # In the order of flow and direction, forward first, then time; packets of the same time keep their order.
    backward = ~forward
    order = np.lexsort((times, backward, flows))
    time, back, flow = times[order], backward[order], flows[order]
    begins = np.ones(len(times), dtype=np.bool_)
    begins[1:] = (flow[1:] != flow[:-1]) | (back[1:] != back[:-1]) | (np.diff(time) > round(gap * NANOSECONDS))
    if interleave == "direction":
        begins |= _after_other_direction(times, backward, flows)[order]
    number = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((back[first], time[first], flow[first]))] = np.arange(len(first))
    bursts = np.empty(len(times), dtype=np.int64)
    bursts[order] = rank[number]
    return bursts


def _after_other_direction(times: Integers, backward: NDArray[np.bool_], flows: Integers) -> NDArray[np.bool_]:
    """Whether the packet before, of any direction, went the other way."""
    order = np.lexsort((times, flows))
    changes = np.zeros(len(times), dtype=np.bool_)
    changes[1:] = (backward[order][1:] != backward[order][:-1]) & (flows[order][1:] == flows[order][:-1])
    result = np.empty_like(changes)
    result[order] = changes
    return result
