"""Packets gathered to flows: the packets of two endpoints and a protocol, both ways, until the conversation ends."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from working_papers.data.packet_table import COLUMNS, TCP, PacketTable, packed_table, pieces_of

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
FIN_UP, FIN_DOWN, RESET, OPENING = 1, 2, 4, 8
"""What a packet says of its connection: end of the direction from the smaller endpoint to the larger, of the other
direction, end of both, and beginning (SYN without ACK)."""

KEY = 40
"""Bytes of a key: version, protocol, two ports, two addresses, zeros; a multiple of 8, so that they sort as numbers."""

ROW = np.dtype([(name, "i8") for name in ("start", "end", "transport", "payload", "time")] + [
    ("version", "u1"),
    ("protocol", "u1"),
    ("source", "u1", (16,)),
    ("destination", "u1", (16,)),
    ("source_port", "u2"),
    ("destination_port", "u2"),
    ("up", "?"),
])  # fmt: skip
"""All columns of a packet; an open flow keeps bytes of these, which are copied much faster than a dozen arrays."""

LONGEST = 2**62
"""Nanoseconds that stand for any time-out beyond them."""


@dataclass(frozen=True)
class Flow:
    """The packets of one conversation: two endpoints and a protocol, in both directions.

    Attributes:
        packets: in the order of time.
        forward: whether a packet goes the way of the first one, bool (n,).
        complete: False where a limit cut the flow short.
    """

    packets: PacketTable
    forward: NDArray[np.bool_]
    complete: bool = field(default=True)


def split_flows(
    tables: Iterable[PacketTable],
    *,
    idle: float = 60.0,
    active: float = 1800.0,
    max_packets: int | None = None,
    max_open: int = 100_000,
) -> Iterator[Flow]:
    """Gather packets to bidirectional flows; each is yielded when it has ended, so memory holds open flows only.

    A flow is all packets of two endpoints (address and port), IP version and protocol. It ends with a time-out, at the
    end of the tables, or, for TCP, when a connection is opened (SYN without ACK) after both sides closed theirs (FIN)
    or one reset it (RST). Time is that of the capture. Packets may be somewhat out of order: one that is older than
    its flow's latest belongs to the flow, unless it is older by more than `idle` than the flow's first.

    Args:
        tables: packets, as `read_packets` yields them.
        idle: seconds without a packet that end a flow.
        active: seconds after which a flow is ended in any case; the next packet begins another.
        max_packets: packets that are kept of a flow; later ones are dropped. None keeps all.
        max_open: flows that may be open at a time; beyond it the one that has been idle longest is ended.

    Raises:
        ValueError: a time-out that is not positive, or a limit below 1.
    """
    for name, seconds in (("idle", idle), ("active", active)):
        if not seconds > 0:
            raise ValueError(f"{name} is {seconds}; expected more than 0 seconds")
    for name, limit in (("max_packets", max_packets), ("max_open", max_open)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} is {limit}; expected at least 1")
    idle, active = (LONGEST if math.isinf(each) else min(round(each * 1e9), LONGEST) for each in (idle, active))
    return _OpenFlows(idle, active, max_packets, max_open).split(tables)


@dataclass(slots=True, eq=False)
class _OpenFlow:
    """A flow that has not ended.

    Attributes:
        number: of the first packet in the order of capture.
        first, last: least and greatest time.
        ended: what packets said of the end.
        count: packets that are kept.
        complete: False once packets were dropped.
        rows: of the packets, as bytes of ROW.
        packets: bytes of the packets.
    """

    number: int
    first: int
    last: int
    ended: int = 0
    count: int = 0
    complete: bool = True
    rows: list[bytes] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)

    def end(self) -> Flow:
        """The flow in the order of time."""
        rows = np.frombuffer(b"".join(self.rows), dtype=ROW)
        packets = packed_table(self.packets, {name: np.ascontiguousarray(rows[name]) for name in COLUMNS})
        up = rows["up"]
        time = packets.time
        if (time[1:] < time[:-1]).any():
            order = np.argsort(time, kind="stable")
            packets, up = packets.take(order), up[order]
        return Flow(packets, up == up[0], self.complete)


class _Groups:
    """A table's packets sorted by key, then by capture: what the flows are made of.

    Attributes:
        keys: of the groups.
        bounds: rows at which groups begin, then the number of rows, as a list.
        captured: place in the table of each sorted row.
        time: of each sorted row.
        marks: what each sorted row says of its connection.
    """

    def __init__(self, table: PacketTable) -> None:
        keys, up = _keys(table)
        words = keys.view(np.uint64)
        self.captured = np.lexsort(words.T)  # stable: packets of a key stay in the order of capture
        words = words[self.captured]
        new = np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)])
        begin = np.flatnonzero(new)
        self.bounds = [*begin.tolist(), len(table)]
        self.keys = [row.tobytes() for row in keys[self.captured[begin]]]
        self.time = table.time[self.captured]
        self.marks = _marks(table, up)[self.captured]

        start, end = table.start[self.captured], table.end[self.captured]
        self._packets = b"".join(pieces_of(table.buffer, start, end))
        self._behind = [0, *np.cumsum(end - start).tolist()]
        rows = np.empty(len(table), dtype=ROW)
        for name in COLUMNS:
            rows[name] = getattr(table, name)[self.captured]
        rows["up"] = up[self.captured]
        self._rows = rows.tobytes()

        # A group whose times do not fall needs no look at single packets if its flow has no reason to split.
        falls = np.concatenate([[False], (self.time[1:] < self.time[:-1]) & ~new[1:]])
        gap = np.concatenate([[0], np.where(new[1:], 0, self.time[1:] - self.time[:-1])])
        opens = ((self.marks & OPENING) != 0) & ~new
        self.widest = np.maximum.reduceat(gap, begin).tolist()
        self.irregular = np.logical_or.reduceat(falls | opens, begin).tolist()
        self.ended = np.bitwise_or.reduceat(self.marks, begin).tolist()
        self.latest = np.argsort(self.captured[np.array(self.bounds[1:]) - 1]).tolist()

    def append(self, flow: _OpenFlow, begin: int, end: int, most: int | None) -> None:
        """Add sorted rows to a flow, at most so many in all."""
        if most is not None and flow.count + end - begin > most:
            flow.complete = False
            end = begin + most - flow.count
        if end > begin:
            flow.count += end - begin
            flow.rows.append(self._rows[begin * ROW.itemsize : end * ROW.itemsize])
            flow.packets.append(self._packets[self._behind[begin] : self._behind[end]])


class _OpenFlows:
    """Flows that have not ended, the one that has been idle longest first."""

    def __init__(self, idle: int, active: int, max_packets: int | None, max_open: int) -> None:
        self.idle, self.active, self.max_packets, self.max_open = idle, active, max_packets, max_open
        self.flows: OrderedDict[bytes, _OpenFlow] = OrderedDict()
        self.captured = 0  # packets in the tables before
        self.swept: int | None = None

    def split(self, tables: Iterable[PacketTable]) -> Iterator[Flow]:
        """Flows in the order in which they end."""
        for table in tables:
            if len(table):
                yield from self._sweep(int(table.time.min()))
                yield from self._add(_Groups(table))
                self.captured += len(table)
        rest = sorted(self.flows.values(), key=lambda flow: -flow.number)
        self.flows.clear()
        while rest:  # each is let go of before the next
            yield rest.pop().end()

    def _sweep(self, now: int) -> Iterator[Flow]:
        """End flows that have been idle for twice the time-out before all packets of a table.

        Every packet would find out for itself; this frees memory. Twice, so that packets which come late by as much
        as the time-out still find their flow. The earliest time of a table is used, so that a single packet from the
        future ends nothing, and only when it has moved by a good part of the time-out, so that looking at all flows
        costs little a packet.
        """
        if self.swept is not None and abs(now - self.swept) < self.idle // 2:
            return
        self.swept = now
        for key in [key for key, flow in self.flows.items() if now - flow.last > 2 * self.idle]:
            yield self.flows.pop(key).end()

    def _add(self, groups: _Groups) -> Iterator[Flow]:
        """Add a table's packets."""
        if len(self.flows) + len(groups.keys) > self.max_open:  # then what is ended depends on the order of packets
            group_of = np.repeat(np.arange(len(groups.keys)), np.diff(groups.bounds)).tolist()
            for row in np.argsort(groups.captured).tolist():
                yield from self._one(groups, groups.keys[group_of[row]], row)
            return
        time, marks = groups.time, groups.marks
        for group in groups.latest:
            key, begin, end = groups.keys[group], groups.bounds[group], groups.bounds[group + 1]
            flow = self.flows.get(key)
            first, last = int(time[begin]), int(time[end - 1])
            regular = not groups.irregular[group] and groups.widest[group] <= self.idle
            if flow is None:
                regular = regular and last - first <= self.active
            else:
                regular = (
                    regular
                    and 0 <= first - flow.last <= self.idle
                    and last - flow.first <= self.active
                    and not (marks[begin] & OPENING and _over(flow.ended))
                )
            if regular:
                flow = self._open(groups, key, begin) if flow is None else flow
                flow.last = last
                flow.ended |= groups.ended[group]
                groups.append(flow, begin, end, self.max_packets)
                self.flows.move_to_end(key)
            else:
                for row in range(begin, end):
                    yield from self._one(groups, key, row)

    def _one(self, groups: _Groups, key: bytes, row: int) -> Iterator[Flow]:
        """Add one packet."""
        time, mark = int(groups.time[row]), int(groups.marks[row])
        flow = self.flows.get(key)
        if flow is not None:
            over = time - flow.last > self.idle or flow.first - time > self.idle
            over = over or bool(mark & OPENING and _over(flow.ended))
            if over or time - flow.first > self.active:
                flow.complete = flow.complete and over
                yield self.flows.pop(key).end()
                flow = None
        if flow is None:
            if len(self.flows) >= self.max_open:
                _, longest = self.flows.popitem(last=False)
                longest.complete = longest.complete and time - longest.last > self.idle
                yield longest.end()
            flow = self._open(groups, key, row)
        flow.first, flow.last = min(flow.first, time), max(flow.last, time)
        flow.ended |= mark
        groups.append(flow, row, row + 1, self.max_packets)
        self.flows.move_to_end(key)

    def _open(self, groups: _Groups, key: bytes, row: int) -> _OpenFlow:
        """Open a flow with the packet of a sorted row, which is yet to be added."""
        time = int(groups.time[row])
        flow = self.flows[key] = _OpenFlow(self.captured + int(groups.captured[row]), time, time)
        return flow


def _over(ended: int) -> bool:
    """Whether both sides closed a connection, or one reset it."""
    return bool(ended & RESET) or (ended & FIN_UP != 0 and ended & FIN_DOWN != 0)


def _keys(table: PacketTable) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Keys of packets, the same both ways, uint8 (n, 40), and whether the source is the smaller endpoint, bool (n,)."""
    source, destination = (
        _endpoints(table.source, table.source_port),
        _endpoints(table.destination, table.destination_port),
    )
    up = np.ones(len(table), dtype=np.bool_)
    decided = np.zeros(len(table), dtype=np.bool_)
    for here, there in zip(source.T, destination.T, strict=True):
        up = np.where(decided, up, here <= there)
        decided |= here != there
    keys = np.zeros((len(table), KEY // 8), dtype=np.uint64)
    keys[:, 0:3] = np.where(up[:, None], source, destination)
    keys[:, 2] |= np.where(up, destination[:, 2], source[:, 2]) << np.uint64(16)
    keys[:, 2] |= table.version.astype(np.uint64) << np.uint64(32) | table.protocol.astype(np.uint64) << np.uint64(40)
    keys[:, 3:5] = np.where(up[:, None], destination[:, :2], source[:, :2])
    return keys.view(np.uint8), up


def _endpoints(address: NDArray[np.uint8], port: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Address and port as three numbers, uint64 (n, 3)."""
    words = np.ascontiguousarray(address).view(np.uint64)
    return np.concatenate([words, port.astype(np.uint64)[:, None]], axis=1)


def _marks(table: PacketTable, up: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What packets say of their connection, uint8 (n,); 0 for other protocols than TCP."""
    marks = np.zeros(len(table), dtype=np.uint8)
    rows = np.flatnonzero(table.protocol == TCP)
    flags = table.gather(table.transport[rows] + 13, 1)[:, 0]
    marks[rows] = (
        np.where(flags & FIN, np.where(up[rows], FIN_UP, FIN_DOWN), 0)
        | np.where(flags & RST, RESET, 0)
        | np.where((flags & (SYN | ACK | RST)) == SYN, OPENING, 0)
    )
    return marks
