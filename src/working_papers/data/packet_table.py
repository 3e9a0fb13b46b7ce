"""Packets as columns over one buffer of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
"""Protocol numbers (IANA)."""

PADDING = 64
"""Zeros behind the bytes of a buffer."""


@dataclass(frozen=True)
class PacketTable:
    """Packets as columns, one row a packet, in the order of their capture.

    The bytes of all packets lie in one buffer; a row says where its packet begins and ends there. Selecting rows
    shares the buffer, and so costs nothing a byte.

    Attributes:
        buffer: captured bytes from IP headers on, without link layer and padding, then 64 zeros, so that a fixed
            number of bytes may be gathered from any offset of a packet, uint8.
        start: offset in the buffer at which the IP header begins, int64 (n,).
        end: offset behind the last byte of the packet that was captured, int64 (n,).
        transport: offset at which the TCP, UDP or ICMP header begins, int64 (n,).
        payload: offset at which the payload begins; equal to `end` where there is none, int64 (n,).
        time: nanoseconds since 1970, int64 (n,).
        version: 4 or 6, uint8 (n,).
        protocol: of the transport layer, behind the extension headers of IPv6, uint8 (n,).
        source, destination: addresses, IPv4 in the last four of 16 bytes, uint8 (n, 16).
        source_port, destination_port: 0 for ICMP, uint16 (n,).
    """

    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    transport: NDArray[np.int64]
    payload: NDArray[np.int64]
    time: NDArray[np.int64]
    version: NDArray[np.uint8]
    protocol: NDArray[np.uint8]
    source: NDArray[np.uint8]
    destination: NDArray[np.uint8]
    source_port: NDArray[np.uint16]
    destination_port: NDArray[np.uint16]

    def __len__(self) -> int:
        """Number of packets."""
        return len(self.start)

    def take(self, rows: NDArray[np.int64] | slice) -> PacketTable:
        """Some of the packets, sharing the buffer."""
        return PacketTable(self.buffer, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def bytes_of(self, row: int) -> bytes:
        """One packet from its IP header on."""
        return self.buffer[self.start[row] : self.end[row]].tobytes()

    def gather(self, offsets: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
        """Bytes of the buffer from each offset on, (len(offsets), width); what lies behind the buffer reads as 0."""
        return gather(self.buffer, offsets, width)

    @staticmethod
    def join(tables: Iterable[PacketTable]) -> PacketTable:
        """Tables behind one another, with a buffer that holds what their rows need and no more."""
        parts = list(tables)
        if not parts:
            return empty_table()
        pieces = [piece for part in parts for piece in pieces_of(part.buffer, part.start, part.end)]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return packed_table(pieces, columns)


COLUMNS = tuple(each.name for each in fields(PacketTable) if each.name != "buffer")


def gather(buffer: NDArray[np.uint8], offsets: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Bytes of a buffer from each offset on.

    Args:
        buffer: uint8 (bytes,).
        offsets: not negative, int64 (n,).
        width: bytes a row.

    Returns:
        Bytes, uint8 (n, width); what lies behind the buffer is 0.

    Raises:
        ValueError: a negative offset or width.
    """
    if width < 0:
        raise ValueError(f"width is {width}; expected at least 0")
    if width == 0 or len(offsets) == 0:
        return np.zeros((len(offsets), width), dtype=np.uint8)
    least, most = int(offsets.min()), int(offsets.max())
    if least < 0:
        raise ValueError(f"offsets hold {least}; expected at least 0")
    if most + width <= len(buffer):
        return np.ascontiguousarray(sliding_window_view(buffer, width)[offsets])
    places = offsets[:, None] + np.arange(width)
    if len(buffer) == 0:
        return np.zeros(places.shape, dtype=np.uint8)
    return np.where(places < len(buffer), buffer[np.minimum(places, len(buffer) - 1)], np.uint8(0))


def pieces_of(buffer: NDArray[np.uint8], start: NDArray[np.int64], end: NDArray[np.int64]) -> list[memoryview]:
    """Views of a buffer's ranges."""
    whole = memoryview(np.ascontiguousarray(buffer).data)
    return [whole[begin:behind] for begin, behind in zip(start.tolist(), end.tolist(), strict=True)]


def packed_table(pieces: Iterable[memoryview | bytes], columns: dict[str, NDArray[np.generic]]) -> PacketTable:
    """A table whose buffer holds the packets behind one another and nothing else.

    Args:
        pieces: bytes of the packets in the order of the rows, in parts of any size.
        columns: of the table, with offsets into any other buffers; they are moved.
    """
    buffer = np.frombuffer(bytearray().join([*pieces, bytes(PADDING)]), dtype=np.uint8)
    start, end = columns["start"], columns["end"]
    length = np.subtract(end, start, dtype=np.int64)
    behind = np.cumsum(length)
    moved = behind - length - start
    shifted = {name: columns[name] + moved for name in ("end", "transport", "payload")}
    return PacketTable(buffer, **{**columns, **shifted, "start": behind - length})


def empty_table() -> PacketTable:
    """A table without packets."""
    offset, byte = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    address, port = np.zeros((0, 16), dtype=np.uint8), np.zeros(0, dtype=np.uint16)
    return PacketTable(
        buffer=np.zeros(PADDING, dtype=np.uint8),
        start=offset,
        end=offset,
        transport=offset,
        payload=offset,
        time=offset,
        version=byte,
        protocol=byte,
        source=address,
        destination=address,
        source_port=port,
        destination_port=port,
    )
