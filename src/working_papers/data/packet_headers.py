"""Headers of many packets at once: from the link layer to where the payload begins, without a loop over packets.

Formats: Ethernet II (IEEE 802.3) with VLAN tags (802.1Q, 802.1ad), Linux cooked captures and BSD loopback
(https://www.tcpdump.org/linktypes.html), IPv4 (RFC 791), IPv6 (RFC 8200), authentication header (RFC 4302), atomic
fragments (RFC 6946), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792, RFC 4443).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from working_papers.data.packet_table import (
    ICMP,
    ICMP6,
    PADDING,
    TCP,
    UDP,
    PacketTable,
    gather,
    packed_table,
    pieces_of,
)

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

KEPT, FRAGMENT, TRUNCATED, NOT_IP, OTHER_TRANSPORT, MALFORMED = range(6)
"""What becomes of a packet."""

RAW = 101
RAW_LINKS = (12, 14, RAW, 228, 229)
ETHERNET, COOKED, COOKED_2 = 1, 113, 276
TYPED_LINKS = {ETHERNET: (12, 14), COOKED: (14, 16), COOKED_2: (0, 20)}
"""Links whose header has an Ethernet type: where that stands, and the length of the header."""
LOOPBACK_LINKS = (0, 108)
LINKS = (*RAW_LINKS, *TYPED_LINKS, *LOOPBACK_LINKS)
"""Link types that are read."""

VLAN_TYPES = (0x8100, 0x88A8, 0x9100)
IP_TYPES = {0x0800: 4, 0x86DD: 6}
LOOPBACK_FAMILIES = {2: 4, 10: 6, 24: 6, 28: 6, 30: 6}
"""AF_INET everywhere, AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, Darwin."""
MOST_TAGS, MOST_EXTENSIONS = 8, 16
"""VLAN tags and IPv6 extension headers in a row; more are no network's, and would make one packet take long."""

HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, AUTHENTICATION, DESTINATION)


@dataclass(frozen=True)
class Frames:
    """Captured frames as columns, one row a frame.

    Attributes:
        data: bytes that hold the frames, then 64 zeros, uint8.
        begin: offset at which a frame begins, int64 (n,).
        end: offset behind the last byte of a frame that was captured, int64 (n,).
        time: nanoseconds since 1970, int64 (n,).
        link: link type (https://www.tcpdump.org/linktypes.html), int64 (n,).
    """

    data: Bytes
    begin: Integers
    end: Integers
    time: Integers
    link: Integers


def parse_frames(frames: Frames) -> tuple[PacketTable, Bytes]:
    """Find the headers of frames.

    Returns:
        The packets that are whole IP packets (or first bytes of them that hold all headers) with TCP, UDP or ICMP,
        and what became of each frame, uint8 (n,).
    """
    parser = _Parser(frames)
    parser.link_layer()
    parser.version_4()
    parser.version_6()
    parser.transport_layer()
    return parser.table(), parser.outcome


class _Parser:
    """Columns that the layers fill in, one row a frame."""

    def __init__(self, frames: Frames) -> None:
        count = len(frames.begin)
        self.data, self.frames = frames.data, frames
        self.outcome = np.zeros(count, dtype=np.uint8)
        self.start = frames.begin.copy()
        self.captured = frames.end  # behind the last byte that is there
        self.whole = frames.end.copy()  # behind the last byte that the IP header speaks of
        self.version = np.zeros(count, dtype=np.uint8)
        self.protocol = np.zeros(count, dtype=np.uint8)
        self.transport = np.zeros(count, dtype=np.int64)
        self.payload = np.zeros(count, dtype=np.int64)
        self.addresses = np.zeros((2, count, 16), dtype=np.uint8)
        self.ports = np.zeros((2, count), dtype=np.uint16)

    def link_layer(self) -> None:
        """Find where IP begins, and its version."""
        link = self.frames.link
        promised = np.zeros(len(link), dtype=np.uint8)  # version that the link layer names, or 0
        for number in np.unique(link).tolist():
            rows = np.flatnonzero(link == number)
            if number in TYPED_LINKS:
                self._typed(rows, promised, *TYPED_LINKS[number])
            elif number in LOOPBACK_LINKS:
                self._loopback(rows, promised)
            elif number in RAW_LINKS:
                promised[rows] = {228: 4, 229: 6}.get(number, 0)
            else:
                self.outcome[rows] = NOT_IP
        rows = self._left()
        there = self.start[rows] < self.captured[rows]
        self.outcome[rows[~there]] = TRUNCATED
        rows = rows[there]
        version = self.data[self.start[rows]] >> 4
        wrong = ((version != 4) & (version != 6)) | ((promised[rows] != 0) & (promised[rows] != version))
        self.version[rows] = version
        self.outcome[rows[wrong]] = MALFORMED

    def _typed(self, rows: Integers, promised: Bytes, place: int, length: int) -> None:
        """Headers with an Ethernet type, and VLAN tags behind them."""
        kind, start = self.start[rows] + place, self.start[rows] + length
        for _ in range(MOST_TAGS + 1):
            there = start <= self.captured[rows]
            self.outcome[rows[~there]] = TRUNCATED
            rows, kind, start = rows[there], kind[there], start[there]
            value = _number(gather(self.data, kind, 2))
            for number, version in IP_TYPES.items():
                found = value == number
                self.start[rows[found]] = start[found]
                promised[rows[found]] = version
            tagged = np.isin(value, VLAN_TYPES)
            self.outcome[rows[~tagged & ~np.isin(value, list(IP_TYPES))]] = NOT_IP
            if not tagged.any():
                return
            rows, kind, start = rows[tagged], start[tagged] + 2, start[tagged] + 4
        self.outcome[rows] = MALFORMED

    def _loopback(self, rows: Integers, promised: Bytes) -> None:
        """An address family of four bytes, in the byte order of the machine that captured or of the network."""
        there = self.start[rows] + 4 <= self.captured[rows]
        self.outcome[rows[~there]] = TRUNCATED
        rows = rows[there]
        head = gather(self.data, self.start[rows], 4).astype(np.int64)
        family = np.where(head[:, 0] != 0, head @ [1, 1 << 8, 1 << 16, 1 << 24], head @ [1 << 24, 1 << 16, 1 << 8, 1])
        self.start[rows] += 4
        for number, version in LOOPBACK_FAMILIES.items():
            promised[rows[family == number]] = version
        self.outcome[rows[~np.isin(family, list(LOOPBACK_FAMILIES))]] = NOT_IP

    def version_4(self) -> None:
        """IPv4 headers."""
        rows = self._left(4)
        start, captured = self.start[rows], self.captured[rows]
        there = captured - start >= 20
        self.outcome[rows[~there]] = TRUNCATED
        rows, start, captured = rows[there], start[there], captured[there]
        head = gather(self.data, start, 20)
        length, total = (head[:, 0].astype(np.int64) & 15) * 4, _number(head[:, 2:4])
        self.outcome[rows] = np.select(
            [
                (length < 20) | ((total != 0) & (total < length)),
                (_number(head[:, 6:8]) & 0x3FFF) != 0,  # more fragments, or not the first
                captured - start < length,
            ],
            [MALFORMED, FRAGMENT, TRUNCATED],
            KEPT,
        )
        # segmentation offload leaves the total length 0: then all that was captured belongs to the packet
        self.whole[rows] = np.where(total == 0, captured, start + total)
        self.protocol[rows] = head[:, 9]
        self.transport[rows] = start + length
        self.addresses[0, rows, 12:] = head[:, 12:16]
        self.addresses[1, rows, 12:] = head[:, 16:20]

    def version_6(self) -> None:
        """IPv6 headers with their extension headers."""
        rows = self._left(6)
        if len(rows) == 0:
            return
        start, captured = self.start[rows], self.captured[rows]
        there = captured - start >= 40
        self.outcome[rows[~there]] = TRUNCATED
        rows, start, captured = rows[there], start[there], captured[there]
        head = gather(self.data, start, 40)
        length = _number(head[:, 4:6])
        self.whole[rows] = np.where(length == 0, captured, start + 40 + length)  # 0: jumbogram or offload
        self.protocol[rows] = head[:, 6]
        self.transport[rows] = start + 40
        self.addresses[0, rows] = head[:, 8:24]
        self.addresses[1, rows] = head[:, 24:40]
        for _ in range(MOST_EXTENSIONS):
            rows = rows[np.isin(self.protocol[rows], EXTENSIONS)]
            if len(rows) == 0:
                return
            rows = self._extension(rows)
        self.outcome[rows[np.isin(self.protocol[rows], EXTENSIONS)]] = MALFORMED

    def _extension(self, rows: Integers) -> Integers:
        """Step over one extension header of each row; returns the rows that are left."""
        rows = self._need(rows, np.full(len(rows), 8))
        place, kind = self.transport[rows], self.protocol[rows]
        head = gather(self.data, place, 4)
        fragment = (kind == FRAGMENT_HEADER) & ((_number(head[:, 2:4]) & 0xFFF9) != 0)
        self.outcome[rows[fragment]] = FRAGMENT
        rows, kind, head = rows[~fragment], kind[~fragment], head[~fragment]
        units = head[:, 1].astype(np.int64)
        length = np.where(kind == AUTHENTICATION, (units + 2) * 4, np.where(kind == FRAGMENT_HEADER, 8, units * 8 + 8))
        self._need(rows, length)
        self.protocol[rows] = head[:, 0]
        self.transport[rows] += length
        left: Integers = rows[self.outcome[rows] == KEPT]
        return left

    def transport_layer(self) -> None:
        """TCP, UDP and ICMP headers."""
        rows = self._left()
        protocol, version = self.protocol[rows], self.version[rows]
        tcp, udp = protocol == TCP, protocol == UDP
        known = tcp | udp | (protocol == np.where(version == 4, ICMP, ICMP6))
        self.outcome[rows[~known]] = OTHER_TRANSPORT
        rows, tcp = rows[known], tcp[known]
        rows = self._need(rows, np.where(tcp, 20, 8))
        tcp, udp = self.protocol[rows] == TCP, self.protocol[rows] == UDP
        head = gather(self.data, self.transport[rows], 14)
        length = np.where(tcp, (head[:, 12].astype(np.int64) >> 4) * 4, 8)
        said = _number(head[:, 4:6])  # UDP: 0 where a jumbogram or offload cannot say it
        self.outcome[rows[(tcp & (length < 20)) | (udp & (said != 0) & (said < 8))]] = MALFORMED
        self._need(rows, length)
        self.payload[rows] = self.transport[rows] + length
        ported = tcp | udp
        self.ports[0, rows] = np.where(ported, _number(head[:, 0:2]), 0)
        self.ports[1, rows] = np.where(ported, _number(head[:, 2:4]), 0)

    def table(self) -> PacketTable:
        """The packets that are kept, with their bytes in a buffer of their own."""
        rows = self._left()
        start, end = self.start[rows], np.minimum(self.whole, self.captured)[rows]
        return packed_table(
            pieces_of(self.data, start, end),
            {
                "start": start,
                "end": end,
                "transport": self.transport[rows],
                "payload": self.payload[rows],
                "time": self.frames.time[rows],
                "version": self.version[rows],
                "protocol": self.protocol[rows],
                "source": self.addresses[0, rows],
                "destination": self.addresses[1, rows],
                "source_port": self.ports[0, rows],
                "destination_port": self.ports[1, rows],
            },
        )

    def _left(self, version: int | None = None) -> Integers:
        """Rows of which nothing bad is known."""
        kept = self.outcome == KEPT
        return np.flatnonzero(kept if version is None else kept & (self.version == version))

    def _need(self, rows: Integers, length: Integers) -> Integers:
        """Rows whose header of a length lies within the packet and was captured; the others get their outcome."""
        behind = self.transport[rows] + length
        outside, cut = behind > self.whole[rows], behind > self.captured[rows]
        good = self.outcome[rows] == KEPT
        self.outcome[rows[good & cut]] = TRUNCATED
        self.outcome[rows[good & outside]] = MALFORMED
        left: Integers = rows[good & ~cut & ~outside]
        return left


def _number(pairs: Bytes) -> Integers:
    """Numbers of two bytes each, most significant first, from (n, 2)."""
    return pairs[:, 0].astype(np.int64) << 8 | pairs[:, 1]


def raw_frames(packets: list[tuple[int, bytes]]) -> Frames:
    """Frames of packets that begin with their IP header."""
    data = np.frombuffer(b"".join([*(content for _, content in packets), bytes(PADDING)]), dtype=np.uint8)
    length = np.array([len(content) for _, content in packets], dtype=np.int64)
    end = np.cumsum(length)
    try:
        time = np.array([time for time, _ in packets], dtype=np.int64)
    except OverflowError as error:
        raise ValueError("packets hold a time beyond 64 bits; expected nanoseconds since 1970") from error
    return Frames(data, end - length, end, time, np.full(len(packets), RAW))
