"""Bytes of packets, frames and captures, put together field by field."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

from working_papers.data.packets import ICMP, TCP, UDP, PacketCounts, PacketTable, read_packets

CLIENT, SERVER = "10.0.0.1", "192.168.7.9"
CLIENT_6, SERVER_6 = "2001:db8::1", "fe80::9"
SECOND = 1_000_000_000


def ipv4(
    content: bytes,
    protocol: int = TCP,
    *,
    source: str = CLIENT,
    destination: str = SERVER,
    options: bytes = b"",
    total: int | None = None,
    fragment: int = 0,
) -> bytes:
    total = 20 + len(options) + len(content) if total is None else total
    head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, 0, total, 1, fragment, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + options + content


def ipv6(
    content: bytes,
    protocol: int = TCP,
    *,
    source: str = CLIENT_6,
    destination: str = SERVER_6,
    length: int | None = None,
) -> bytes:
    length = len(content) if length is None else length
    head = struct.pack(">IHBB", 6 << 28, length, protocol, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + content


def tcp(source: int, destination: int, data: bytes = b"", *, flags: int = 0x10, options: bytes = b"") -> bytes:
    offset = (5 + len(options) // 4) << 4
    return struct.pack(">HHIIBBHHH", source, destination, 1, 2, offset, flags, 1024, 0, 0) + options + data


def udp(source: int, destination: int, data: bytes = b"") -> bytes:
    return struct.pack(">HHHH", source, destination, 8 + len(data), 0) + data


def icmp(data: bytes = b"") -> bytes:
    return struct.pack(">BBHI", 8, 0, 0, 7) + data


SAMPLES = [
    ipv4(tcp(40_000, 443, b"hello")),
    ipv4(tcp(443, 40_000, b"", options=bytes(12)), source=SERVER, destination=CLIENT),
    ipv4(udp(5353, 53, b"question"), UDP, options=bytes(8)),
    ipv4(icmp(b"ping"), ICMP),
    ipv6(tcp(1, 65_535, b"world" * 9)),
    ipv6(udp(7, 9, b""), UDP),
]


def ethernet(packet: bytes, kind: int | None = None, tags: Sequence[int] = ()) -> bytes:
    kind = {4: 0x0800, 6: 0x86DD}[packet[0] >> 4] if kind is None else kind
    return bytes(range(12)) + b"".join(struct.pack(">HH", tag, 5) for tag in tags) + struct.pack(">H", kind) + packet


def record(time: int, frame: bytes, *, order: str = "<", unit: int = 1, original: int | None = None) -> bytes:
    seconds, rest = divmod(time, SECOND)
    original = len(frame) if original is None else original
    return struct.pack(f"{order}IIII", seconds, rest // unit, len(frame), original) + frame


def pcap(
    frames: Iterable[tuple[int, bytes]], *, order: str = "<", unit: int = 1, link: int = 101, snaplen: int = 65_535
) -> bytes:
    magic = {1: 0xA1B23C4D, 1000: 0xA1B2C3D4}[unit]
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, snaplen, link)
    return head + b"".join(record(time, frame, order=order, unit=unit) for time, frame in frames)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order: str = "<", *, link: int = 101, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(1, struct.pack(f"{order}HHI", link, 0, snaplen) + options, order)


def enhanced(ticks: int, frame: bytes, order: str = "<", *, number: int = 0, options: bytes = b"") -> bytes:
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(6, head + frame + bytes(-len(frame) % 4) + options, order)


def obsolete(ticks: int, frame: bytes, order: str = "<", *, number: int = 0) -> bytes:
    head = struct.pack(f"{order}HHIIII", number, 99, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(2, head + frame, order)


def simple(frame: bytes, order: str = "<", *, original: int | None = None) -> bytes:
    return block(3, struct.pack(f"{order}I", len(frame) if original is None else original) + frame, order)


def rows_of(table: PacketTable) -> list[tuple[int, bytes]]:
    """Times and bytes."""
    return [(time, table.bytes_of(row)) for row, time in enumerate(table.time.tolist())]


def read_all(path: Path, counts: PacketCounts | None = None, batch: int = 16_384) -> list[tuple[int, bytes]]:
    """Times and bytes of a capture's packets."""
    return [row for table in read_packets(path, batch=batch, counts=counts) for row in rows_of(table)]
