"""Headers of packets are found, and what is not such a packet is counted once."""

from __future__ import annotations

import struct
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.packet_bytes import (
    CLIENT,
    CLIENT_6,
    SAMPLES,
    SERVER,
    ethernet,
    icmp,
    ipv4,
    ipv6,
    pcap,
    read_all,
    rows_of,
    tcp,
    udp,
)
from working_papers.data.packets import ICMP, ICMP6, TCP, UDP, PacketCounts, PacketTable, parse_packets, read_packets

ETHERNET = 1
CATEGORIES = ("kept", "fragments", "truncated", "not_ip", "other_transport", "malformed")


def counted(packet: bytes) -> str:
    """The category of a packet that begins with its IP header."""
    counts = PacketCounts()
    parse_packets([(0, packet)], counts)
    assert counts.read == sum(asdict(counts)[name] for name in CATEGORIES) == 1
    return next(name for name in CATEGORIES if asdict(counts)[name])


def framed(tmp_path: Path, frame: bytes, link: int = ETHERNET) -> tuple[str, list[bytes]]:
    """The category of a frame, and the packet in it if there is one."""
    (tmp_path / "frame.pcap").write_bytes(pcap([(0, frame)], link=link))
    counts = PacketCounts()
    packets = [content for _, content in read_all(tmp_path / "frame.pcap", counts)]
    assert counts.read == sum(asdict(counts)[name] for name in CATEGORIES) == 1
    return next(name for name in CATEGORIES if asdict(counts)[name]), packets


def test_columns_are_the_fields() -> None:
    table = parse_packets([(10 + number, packet) for number, packet in enumerate(SAMPLES)])
    assert len(table) == 6
    assert table.time.tolist() == [10, 11, 12, 13, 14, 15]
    assert table.version.tolist() == [4, 4, 4, 4, 6, 6]
    assert table.protocol.tolist() == [TCP, TCP, UDP, ICMP, TCP, UDP]
    assert table.source_port.tolist() == [40_000, 443, 5353, 0, 1, 7]
    assert table.destination_port.tolist() == [443, 40_000, 53, 0, 65_535, 9]
    assert (table.transport - table.start).tolist() == [20, 20, 28, 20, 40, 40]
    assert (table.payload - table.transport).tolist() == [20, 32, 8, 8, 20, 8]
    assert (table.end - table.payload).tolist() == [5, 0, 8, 4, 45, 0]
    assert table.source[0].tobytes() == bytes(12) + ip_address(CLIENT).packed
    assert table.destination[0].tobytes() == bytes(12) + ip_address(SERVER).packed
    assert table.source[4].tobytes() == ip_address(CLIENT_6).packed
    assert [content for _, content in rows_of(table)] == SAMPLES
    dtypes = {name: getattr(table, name).dtype for name in ("buffer", "start", "time", "version", "source_port")}
    assert dtypes == {"buffer": "u1", "start": "i8", "time": "i8", "version": "u1", "source_port": "u2"}


def test_an_empty_table_is_a_table() -> None:
    for table in (parse_packets([]), PacketTable.join([]), parse_packets([(0, b"")])):
        assert len(table) == 0
        assert table.source.shape == (0, 16)
        assert table.buffer.tolist() == [0] * 64
        assert len(table.take(slice(0, 5))) == 0
        assert table.gather(table.start, 7).shape == (0, 7)


def test_rows_are_taken_and_joined() -> None:
    table = parse_packets(list(enumerate(SAMPLES)))
    some = table.take(np.array([4, 1]))
    assert some.buffer is table.buffer
    assert rows_of(some) == [(4, SAMPLES[4]), (1, SAMPLES[1])]
    joined = PacketTable.join([some, table.take(slice(0, 2)), table.take(slice(3, 3))])
    assert rows_of(joined) == [(row, SAMPLES[row]) for row in (4, 1, 0, 1)]
    assert len(joined.buffer) == sum(len(SAMPLES[row]) for row in (4, 1, 0, 1)) + 64
    assert not np.shares_memory(joined.buffer, table.buffer)
    assert (joined.payload - joined.start).tolist() == [60, 52, 40, 52]
    assert joined.source_port.tolist() == [1, 443, 40_000, 443]


def test_bytes_are_gathered_also_from_behind_the_buffer() -> None:
    table = parse_packets([(0, SAMPLES[0])])
    size = len(SAMPLES[0]) + 64
    offsets = np.array([40, size - 1, size, size + 5])
    assert table.gather(offsets, 3).tolist() == [list(b"hel"), [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert table.gather(np.array([43]), 100)[0].tobytes() == b"lo" + bytes(98)
    assert table.gather(np.array([0, 20]), 0).shape == (2, 0)
    with pytest.raises(ValueError, match="offsets hold -1; expected at least 0"):
        table.gather(np.array([3, -1]), 2)
    with pytest.raises(ValueError, match="width is -1; expected at least 0"):
        table.gather(np.array([3]), -1)


BAD_OFFSET = bytearray(tcp(1, 2))
BAD_OFFSET[12] = 0x40


@pytest.mark.parametrize(
    ("packet", "category"),
    [
        (ipv4(tcp(1, 2)), "kept"),
        (ipv4(udp(1, 2), UDP, fragment=0x4000), "kept"),  # must not be fragmented, and is not
        (ipv4(tcp(1, 2), fragment=0x2000), "fragments"),
        (ipv4(tcp(1, 2), fragment=185), "fragments"),
        (b"", "truncated"),
        (ipv4(tcp(1, 2))[:19], "truncated"),
        (ipv4(tcp(1, 2), options=bytes(8))[:27], "truncated"),
        (ipv4(tcp(1, 2))[:39], "truncated"),
        (ipv4(tcp(1, 2, options=bytes(12)))[:51], "truncated"),
        (ipv4(udp(1, 2), UDP)[:27], "truncated"),
        (ipv6(tcp(1, 2))[:39], "truncated"),
        (ipv6(tcp(1, 2))[:59], "truncated"),
        (b"\x00" + ipv4(tcp(1, 2))[1:], "malformed"),
        (b"\x44" + ipv4(tcp(1, 2))[1:], "malformed"),  # header of 16 bytes
        (ipv4(tcp(1, 2), total=19), "malformed"),
        (ipv4(tcp(1, 2), total=39), "malformed"),
        (ipv4(bytes(BAD_OFFSET)), "malformed"),
        (ipv4(tcp(1, 2)[:12] + b"\xf0" + tcp(1, 2)[13:]), "malformed"),  # TCP header longer than the packet
        (ipv4(udp(1, 2)[:4] + b"\x00\x07\x00\x00", UDP), "malformed"),
        (ipv4(udp(1, 2)[:4] + b"\x00\x00\x00\x00", UDP), "kept"),
        (ipv4(icmp()[:7], ICMP), "malformed"),
        (ipv4(bytes(20), 47), "other_transport"),
        (ipv4(b"", 50), "other_transport"),
        (ipv4(icmp(), ICMP6), "other_transport"),
        (ipv6(icmp(), ICMP), "other_transport"),
        (ipv6(icmp(), ICMP6), "kept"),
        (ipv6(b"", 59), "other_transport"),
    ],
)
def test_what_becomes_of_a_packet(packet: bytes, category: str) -> None:
    assert counted(packet) == category


def test_counts_add_up(tmp_path: Path) -> None:
    counts = PacketCounts()
    parse_packets([(0, SAMPLES[0]), (0, b"E")], counts)
    (tmp_path / "a.pcap").write_bytes(pcap([(0, ethernet(SAMPLES[4])), (0, ethernet(bytes(28), 0x0806))], link=1))
    for _ in read_packets(tmp_path / "a.pcap", counts=counts):
        pass
    assert counts == PacketCounts(read=4, kept=2, truncated=1, not_ip=1)


EXTENSION = struct.Struct(">BBHI").pack  # next header, length in eights beyond the first, six more bytes


@pytest.mark.parametrize(
    ("first", "headers", "category"),
    [
        (0, EXTENSION(TCP, 0, 0, 0), "kept"),
        (0, EXTENSION(43, 0, 0, 0) + EXTENSION(60, 1, 0, 0) + bytes(8) + EXTENSION(TCP, 0, 0, 0), "kept"),
        (51, EXTENSION(TCP, 4, 0, 0) + bytes(16), "kept"),  # counts in fours, less two
        (44, EXTENSION(TCP, 0, 0, 9), "kept"),  # atomic: the only fragment
        (44, EXTENSION(TCP, 77, 0x0006, 9), "kept"),  # what is reserved does not matter
        (44, EXTENSION(TCP, 0, 1, 9), "fragments"),
        (44, EXTENSION(TCP, 0, 8, 9), "fragments"),
        (0, EXTENSION(44, 0, 0, 0) + EXTENSION(60, 0, 1, 9), "fragments"),
        (0, EXTENSION(59, 0, 0, 0), "other_transport"),
        (0, EXTENSION(TCP, 200, 0, 0), "malformed"),
        (60, EXTENSION(60, 0, 0, 0) * 15 + EXTENSION(TCP, 0, 0, 0), "kept"),
        (60, EXTENSION(60, 0, 0, 0) * 16 + EXTENSION(TCP, 0, 0, 0), "malformed"),
    ],
)
def test_extension_headers(first: int, headers: bytes, category: str) -> None:
    packet = ipv6(headers + tcp(3, 4, b"data"), first)
    assert counted(packet) == category
    if category == "kept":
        table = parse_packets([(0, packet), (0, SAMPLES[0])])
        assert (table.protocol.tolist(), table.source_port.tolist()) == ([TCP, TCP], [3, 40_000])
        assert (table.transport - table.start).tolist() == [40 + len(headers), 20]
        assert counted(packet[: 40 + len(headers) + 19]) == "truncated"
        assert counted(packet[: 40 + len(headers) - 1]) == "truncated"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("link", "heads"),
    [
        (1, (ethernet(b"E", 0x0800)[:-1], ethernet(b"E", 0x86DD)[:-1])),
        (12, (b"", b"")),
        (14, (b"", b"")),
        (101, (b"", b"")),
        (228, (b"", None)),
        (229, (None, b"")),
        (113, (bytes(14) + b"\x08\x00", bytes(14) + b"\x86\xdd")),
        (113, (bytes(14) + b"\x81\x00\x00\x07\x08\x00", bytes(14) + b"\x81\x00\x00\x07\x86\xdd")),
        (276, (b"\x08\x00" + bytes(18), b"\x86\xdd" + bytes(18))),
        (0, (b"\x02\x00\x00\x00", b"\x1e\x00\x00\x00")),
        (0, (b"\x00\x00\x00\x02", b"\x00\x00\x00\x18")),
        (108, (b"\x00\x00\x00\x02", b"\x00\x00\x00\x1c")),
        (108, (b"\x02\x00\x00\x00", b"\x0a\x00\x00\x00")),
    ],
)
def test_link_types(tmp_path: Path, version: int, link: int, heads: tuple[bytes | None, bytes | None]) -> None:
    packet, other = (SAMPLES[0], SAMPLES[4]) if version == 4 else (SAMPLES[4], SAMPLES[0])
    head = heads[version == 6]
    if head is None:
        assert framed(tmp_path, packet, link) == ("malformed", [])
        return
    assert framed(tmp_path, head + packet, link) == ("kept", [packet])
    assert framed(tmp_path, head, link) == ("truncated", [])
    if head:
        assert framed(tmp_path, head[:-1], link) == ("truncated", [])
        assert framed(tmp_path, head + other, link) == ("malformed", [])  # the link layer speaks of the other version


def test_other_protocols_of_the_link_layer(tmp_path: Path) -> None:
    assert framed(tmp_path, ethernet(bytes(46), 0x0806)) == ("not_ip", [])
    assert framed(tmp_path, ethernet(SAMPLES[0], 46)) == ("not_ip", [])  # a length: IEEE 802.3
    assert framed(tmp_path, ethernet(bytes(46), 0x0806, [0x8100])) == ("not_ip", [])
    assert framed(tmp_path, b"\x07\x00\x00\x00" + SAMPLES[0], 0) == ("not_ip", [])
    assert framed(tmp_path, bytes(14) + b"\x00\x04" + SAMPLES[0], 113) == ("not_ip", [])


def test_tags(tmp_path: Path) -> None:
    for tags in ([0x8100], [0x88A8, 0x8100], [0x9100, 0x8100, 0x8100], [0x8100] * 8):
        frame = ethernet(SAMPLES[4], tags=tags)
        assert framed(tmp_path, frame) == ("kept", [SAMPLES[4]])
        assert framed(tmp_path, frame[: 14 + 4 * len(tags) - 1]) == ("truncated", [])
    assert framed(tmp_path, ethernet(SAMPLES[0], tags=[0x8100] * 9)) == ("malformed", [])


def test_what_follows_the_packet_is_left_out(tmp_path: Path) -> None:
    small = ipv4(tcp(1, 2))
    assert framed(tmp_path, ethernet(small) + b"\xaa" * 6) == ("kept", [small])
    other = ipv6(udp(1, 2), UDP)
    assert framed(tmp_path, ethernet(other) + b"\xaa" * 6) == ("kept", [other])


def test_segments_of_offload_have_no_length(tmp_path: Path) -> None:
    for packet in (ipv4(tcp(1, 2, b"a" * 5000), total=0), ipv6(tcp(1, 2, b"a" * 70_000), length=0)):
        assert framed(tmp_path, ethernet(packet)) == ("kept", [packet])


def test_a_payload_may_be_cut() -> None:
    table = parse_packets([(0, SAMPLES[4][:-8]), (0, SAMPLES[0][:40])])
    assert [content for _, content in rows_of(table)] == [SAMPLES[4][:-8], SAMPLES[0][:40]]
    assert (table.end - table.payload).tolist() == [37, 0]


def test_times_are_of_64_bits() -> None:
    assert parse_packets([(-5, SAMPLES[0])]).time.tolist() == [-5]
    with pytest.raises(ValueError, match="a time beyond 64 bits"):
        parse_packets([(2**63, SAMPLES[0])])


def plain(packet: bytes) -> tuple[str, tuple[int, ...]]:
    """What becomes of a packet and where its parts are, one byte after the other: the vectorised code's reference."""
    have = len(packet)
    if not have:
        return "truncated", ()
    version = packet[0] >> 4
    if version == 4:
        if have < 20:
            return "truncated", ()
        place, whole = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
        if place < 20 or 0 < whole < place:
            return "malformed", ()
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return "fragments", ()
        if have < place:
            return "truncated", ()
        protocol, whole = packet[9], whole or have
    elif version == 6:
        if have < 40:
            return "truncated", ()
        place, protocol, length = 40, packet[6], int.from_bytes(packet[4:6], "big")
        whole = 40 + length if length else have
        for _ in range(16):
            if protocol not in (0, 43, 44, 51, 60):
                break
            if place + 8 > whole:
                return "malformed", ()
            if place + 8 > have:
                return "truncated", ()
            if protocol == 44 and int.from_bytes(packet[place + 2 : place + 4], "big") & 0xFFF9:
                return "fragments", ()
            units = packet[place + 1]
            behind = place + (8 if protocol == 44 else (units + 2) * 4 if protocol == 51 else (units + 1) * 8)
            if behind > whole:
                return "malformed", ()
            if behind > have:
                return "truncated", ()
            place, protocol = behind, packet[place]
        if protocol in (0, 43, 44, 51, 60):
            return "malformed", ()
    else:
        return "malformed", ()
    if protocol not in (TCP, UDP, ICMP if version == 4 else ICMP6):
        return "other_transport", ()
    smallest = 20 if protocol == TCP else 8
    if place + smallest > whole:
        return "malformed", ()
    if place + smallest > have:
        return "truncated", ()
    payload = place + (packet[place + 12] >> 4) * 4 if protocol == TCP else place + 8
    said = int.from_bytes(packet[place + 4 : place + 6], "big")
    if payload < place + smallest or (protocol == UDP and 0 < said < 8) or payload > whole:
        return "malformed", ()
    if payload > have:
        return "truncated", ()
    ports = struct.unpack_from(">HH", packet, place) if protocol in (TCP, UDP) else (0, 0)
    return "kept", (version, protocol, place, payload, min(whole, have), *ports)


BASES = [
    *SAMPLES,
    ipv6(icmp(b"x"), ICMP6),
    ipv6(b"".join(EXTENSION(kind, kind == 44, 0, 0) for kind in (43, 51, 44, TCP)) + tcp(5, 6), 0),
]
VALUES = st.one_of(st.sampled_from([0, 1, 6, 17, 43, 44, 51, 60]), st.integers(0, 255))
MUTATED = st.tuples(
    st.sampled_from(BASES), st.lists(st.tuples(st.integers(0, 90), VALUES), max_size=4), st.integers(0, 120)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), MUTATED), max_size=20))
def test_columns_agree_with_plain_code(drawn: list[bytes | tuple[bytes, list[tuple[int, int]], int]]) -> None:
    packets = []
    for each in drawn:
        if isinstance(each, tuple):
            content = bytearray(each[0])
            for place, value in each[1]:
                content[place % len(content)] = value
            each = bytes(content[: each[2]])
        packets.append(each)
    counts = PacketCounts()
    table = parse_packets(list(enumerate(packets)), counts)
    expected = [plain(packet) for packet in packets]
    assert asdict(counts) == {"read": len(packets)} | {
        name: sum(outcome == name for outcome, _ in expected) for name in CATEGORIES
    }
    assert table.time.tolist() == [row for row, (outcome, _) in enumerate(expected) if outcome == "kept"]
    for row, number in enumerate(table.time.tolist()):
        start = table.start[row]
        parts = (table.transport[row] - start, table.payload[row] - start, table.end[row] - start)
        ports = table.source_port[row], table.destination_port[row]
        assert (table.version[row], table.protocol[row], *parts, *ports) == expected[number][1]
        assert table.bytes_of(row) == packets[number][: parts[2]]


@pytest.mark.filterwarnings("ignore")
def test_scapy_finds_the_same(tmp_path: Path) -> None:
    scapy = pytest.importorskip("scapy.all")
    frames = [
        scapy.Ether() / scapy.IP(options=scapy.IPOption(b"\x01")) / scapy.TCP(sport=9, options=[("MSS", 5)]),
        scapy.Ether() / scapy.Dot1Q() / scapy.IPv6() / scapy.IPv6ExtHdrHopByHop() / scapy.UDP(dport=53) / b"question",
        scapy.Ether() / scapy.ARP(),
        scapy.Ether() / scapy.IP() / scapy.ICMP() / b"ping",
        scapy.Ether() / scapy.IPv6() / scapy.ICMPv6EchoRequest(data=b"ping"),
        scapy.Ether() / scapy.IP(flags="MF") / scapy.UDP(),
    ]
    for name, writer in (("a.pcap", scapy.PcapWriter), ("a.pcapng", scapy.PcapNgWriter)):
        with writer(str(tmp_path / name)) as file:
            for number, frame in enumerate(frames):
                frame.time = 1_000_000 + number
                file.write(frame)
        counts = PacketCounts()
        table = PacketTable.join(read_packets(tmp_path / name, counts=counts))
        assert counts == PacketCounts(read=6, kept=4, not_ip=1, fragments=1)
        assert table.protocol.tolist() == [TCP, UDP, ICMP, ICMP6]
        assert table.source_port.tolist() == [9, 53, 0, 0]
        assert table.destination_port.tolist() == [80, 53, 0, 0]
        assert table.time.tolist() == [(1_000_000 + number) * 10**9 for number in (0, 1, 3, 4)]
        for row, number in enumerate((0, 1, 3, 4)):
            packet = frames[number].getlayer(scapy.IP) or frames[number].getlayer(scapy.IPv6)
            assert table.bytes_of(row) == bytes(packet)
        payloads = [table.buffer[table.payload[row] : table.end[row]].tobytes() for row in range(4)]
        assert payloads == [b"", b"question", b"ping", b"ping"]
