"""Captures of every kind are read as a stream, and damage is named after all that came before it."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.packet_bytes import (
    SAMPLES,
    SECOND,
    block,
    enhanced,
    ethernet,
    interface,
    ipv4,
    obsolete,
    option,
    pcap,
    read_all,
    record,
    rows_of,
    section,
    simple,
    tcp,
    udp,
)
from working_papers.data import captures
from working_papers.data.packets import UDP, PacketCounts, read_packets, write_pcap

PACKETS = [(1_700_000_000 * SECOND + 1000 * number, packet) for number, packet in enumerate(SAMPLES)]
COMMENT = option(1, b"a comment")
END = bytes(4)


def pcapng(packets: list[tuple[int, bytes]], order: str = "<") -> bytes:
    """A section with nanoseconds."""
    described = interface(order, options=option(9, b"\x09", order) + END)
    return section(order) + described + b"".join(enhanced(*packet, order) for packet in packets)


FORMS: dict[str, Callable[[list[tuple[int, bytes]]], bytes]] = {
    "pcap, little-endian": lambda packets: pcap(packets),
    "pcap, big-endian": lambda packets: pcap(packets, order=">"),
    "pcap, little-endian, microseconds": lambda packets: pcap(packets, unit=1000),
    "pcap, big-endian, microseconds": lambda packets: pcap(packets, order=">", unit=1000),
    "pcap, Ethernet": lambda packets: pcap([(time, ethernet(packet)) for time, packet in packets], link=1),
    "pcapng, little-endian": lambda packets: pcapng(packets),
    "pcapng, big-endian": lambda packets: pcapng(packets, ">"),
    "pcap, gzip": lambda packets: gzip.compress(pcap(packets)),
    "pcapng, gzip": lambda packets: gzip.compress(pcapng(packets)),
}

CONTENTS = st.one_of(
    st.sampled_from(SAMPLES),
    st.binary(max_size=50).map(lambda data: ipv4(tcp(len(data), 80, data))),
    st.binary(max_size=2000).map(lambda data: ipv4(udp(len(data), 53, data), UDP)),
)
TIMES = st.integers(0, 2**32 * 1_000_000 - 1).map(lambda time: time * 1000)
here = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("form", FORMS)
@here
@given(packets=st.lists(st.tuples(TIMES, CONTENTS), max_size=12), piece=st.integers(1, 3000), batch=st.integers(1, 5))
def test_packets_come_back(tmp_path: Path, form: str, packets: list[tuple[int, bytes]], piece: int, batch: int) -> None:
    path = tmp_path / "packets"
    path.write_bytes(FORMS[form](packets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captures, "PIECE", piece)  # wherever a piece ends
        tables = list(read_packets(path, batch=batch))
    assert [row for table in tables for row in rows_of(table)] == packets
    assert all(0 < len(table) <= batch for table in tables)


@here
@given(packets=st.lists(st.tuples(st.integers(0, 2**32 * SECOND - 1), CONTENTS), max_size=12))
def test_what_is_written_is_read(tmp_path: Path, packets: list[tuple[int, bytes]]) -> None:
    write_pcap(tmp_path / "a.pcap", iter(packets))
    assert (tmp_path / "a.pcap").read_bytes() == pcap(packets, snaplen=262_144)
    assert read_all(tmp_path / "a.pcap") == packets


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    write_pcap(path, PACKETS)
    for packet, message in (
        ((-1, b"E"), "the time -1; expected nanoseconds from 1970 to 2106"),
        ((2**32 * SECOND, b"E"), "expected nanoseconds from 1970 to 2106"),
        ((0, bytes(262_145)), "a packet has 262145 bytes; expected at most 262144"),
    ):
        with pytest.raises(ValueError, match=message):
            write_pcap(path, [PACKETS[0], packet])
        assert read_all(path) == PACKETS
        assert list(tmp_path.iterdir()) == [path]


def test_blocks_of_every_kind(tmp_path: Path) -> None:
    time = 1_700_000_000
    blocks = [
        section("<"),
        block(5, bytes(20)),  # statistics of an interface
        interface("<", link=1, options=COMMENT + option(9, b"\x06") + END),
        interface("<", snaplen=50, options=option(14, struct.pack("<q", -7))),
        enhanced(time * 10**6 + 1, ethernet(SAMPLES[0]), options=COMMENT + END),
        block(0x0BAD, b"x" * 33),
        enhanced(time * 10**6 + 2, SAMPLES[1], number=1),
        simple(ethernet(SAMPLES[2])),
        interface("<", link=1, options=option(9, b"\x8a")),  # 2^-10 s
        obsolete(time * 10**6 + 3, SAMPLES[3], number=1),
        enhanced(time * 1024 + 1, ethernet(SAMPLES[4]), number=2),
        section(">"),
        block(4, bytes(8), ">"),
        interface(">", snaplen=48, options=option(9, b"\xbf", ">")),  # 2^-63 s
        enhanced((1 << 63) + (1 << 62), SAMPLES[5], ">"),
        simple(SAMPLES[4][:48], ">", original=len(SAMPLES[4])),
        section("<"),
        interface("<", options=option(9, b"\x0c")),  # picoseconds
        enhanced(5_000_000 * 10**12 + 1999, SAMPLES[0]),
        interface("<", options=option(9, b"\x00") + option(14, struct.pack("<q", 2))),
        enhanced(time, SAMPLES[1], number=1),
        interface("<", link=105),
        enhanced(time, SAMPLES[1], number=2),
        section("<"),
    ]
    path = tmp_path / "a.pcapng"
    path.write_bytes(b"".join(blocks))
    expected = [
        (time * SECOND + 1000, SAMPLES[0]),
        ((time - 7) * SECOND + 2000, SAMPLES[1]),
        (0, SAMPLES[2]),
        ((time - 7) * SECOND + 3000, SAMPLES[3]),
        (time * SECOND + SECOND // 1024, SAMPLES[4]),
        (SECOND + SECOND // 2, SAMPLES[5]),
        (0, SAMPLES[4][:48]),
        (5_000_000 * SECOND + 1, SAMPLES[0]),
        ((time + 2) * SECOND, SAMPLES[1]),
    ]
    expected.remove((0, SAMPLES[4][:48]))  # its headers are cut
    for piece in (1 << 22, 1, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(captures, "PIECE", piece)
            counts = PacketCounts()
            assert read_all(path, counts) == expected
            assert counts == PacketCounts(read=10, kept=8, truncated=1, not_ip=1)


def test_what_lies_between_packets_is_stepped_over_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "PIECE", 4096)
    path = tmp_path / "a.pcapng"
    unknown = block(0x0BAD, bytes(3_000_000))
    path.write_bytes(pcapng(PACKETS[:2]) + unknown + enhanced(*PACKETS[2]) + unknown + enhanced(*PACKETS[3]))
    tracemalloc.start()
    assert read_all(path) == PACKETS[:4]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("form", ["pcap, Ethernet", "pcapng, little-endian", "pcap, gzip"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(captures, "PIECE", 1 << 18)
    packet = ipv4(udp(1, 2, random.Random(0).randbytes(1000)), UDP)
    peaks = []
    for count in (2_000, 16_000):
        (tmp_path / "a").write_bytes(FORMS[form]([(number * 1000, packet) for number in range(count)]))
        tracemalloc.start()
        assert sum(len(table) for table in read_packets(tmp_path / "a")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 8 * (1 << 18)


def starts(form: str) -> list[int]:
    """Offsets at which records begin, and the end."""
    return [len(FORMS[form](PACKETS[:number])) for number in range(len(PACKETS) + 1)]


@pytest.mark.parametrize("piece", [1 << 22, 64])
@pytest.mark.parametrize("form", ["pcap, little-endian", "pcapng, big-endian", "pcapng, little-endian"])
def test_a_file_that_ends_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, piece: int) -> None:
    monkeypatch.setattr(captures, "PIECE", piece)
    whole, bounds = FORMS[form](PACKETS), starts(form)
    path = tmp_path / "cut"
    for size in range(bounds[0], len(whole) + 1):
        path.write_bytes(whole[:size])
        before = sum(bound <= size for bound in bounds[1:])
        counts, found = PacketCounts(), []
        if size in bounds:
            assert read_all(path) == PACKETS[:before]
            continue
        with pytest.raises(ValueError, match=f"{path} is damaged at byte {bounds[before]}: the file ends within"):
            for table in read_packets(path, counts=counts):
                found += rows_of(table)
        assert found == PACKETS[:before]
        assert counts.read == before


def test_headers_that_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for form, first in (("pcap, big-endian", 24), ("pcapng, big-endian", 28)):
        for size in range(first):
            path.write_bytes(FORMS[form]([])[:size])
            with pytest.raises(ValueError, match=f"{path} is (no capture: at|damaged at) byte 0"):
                read_all(path)


@pytest.mark.parametrize(
    ("content", "place", "what"),
    [
        (pcap(PACKETS[:1]) + struct.pack("<IIII", 0, 0, 2**31, 2**31), None, "a packet of 2147483648 bytes"),
        (pcap(PACKETS[:1]) + struct.pack("<IIII", 0, 0, 262_145, 0) + bytes(10**6), None, "a packet of 262145 bytes"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 6, 2**31) + bytes(40), None, "a block of 2147483648 bytes"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 1, 2**31) + bytes(40), None, "a block of 2147483648 bytes"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 77, 2**31) + bytes(40), None, "the file ends within a block"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 77, 0) + bytes(40), None, "a block of 0 bytes; expected a multiple"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 6, 28) + bytes(40), None, "a block of 28 bytes; expected a multiple"),
        (pcapng(PACKETS[:1]) + struct.pack("<II", 6, 33) + bytes(40), None, "a block of 33 bytes; expected a multiple"),
        (pcapng(PACKETS[:1]) + enhanced(0, b"")[:-4] + bytes(4), None, "a block whose two lengths differ"),
        (pcapng(PACKETS[:1]) + block(77, b"")[:-4] + bytes(4), None, "a block whose two lengths differ"),
        (pcapng(PACKETS[:1]) + interface()[:-4] + bytes(4), None, "a block whose two lengths differ"),
        (pcapng(PACKETS[:1]) + enhanced(0, b"", number=1), None, "an interface beyond the 1 that are described"),
        (pcapng(PACKETS[:1]) + section() + simple(b""), None, "an interface beyond the 0"),
        (pcapng(PACKETS[:1]) + simple(b"abcd", original=5), None, "a packet that its block has no room for"),
        (pcapng(PACKETS[:1]) + enhanced(2**62 + 1, b""), None, "a time that lies beyond the year 2116"),
        (pcapng(PACKETS[:1]) + interface(options=option(9, b"ab")), -12, "an option 9 of 2 bytes; expected 1"),
        (pcapng(PACKETS[:1]) + interface(options=option(1, b"")[:2] + b"\xff\x00"), -8, "an option 1 of 255 bytes"),
        (pcapng(PACKETS[:1]) + section()[:12] + b"\x02" + section()[13:], None, "a section of version 2; expected 1"),
        (pcapng(PACKETS[:1]) + block(0x0A0D0D0A, bytes(16)), None, "a section whose byte order is 00000000"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, place: int | None, what: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    before = len((pcap if content[:1] == b"\x4d" else pcapng)(PACKETS[:1]))
    if what.startswith("an interface beyond the 0"):
        before += 28
    place = before if place is None else len(content) + place
    counts, found = PacketCounts(), []
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{path} is damaged at byte {place}: {what}"):
        for table in read_packets(path, counts=counts):
            found += rows_of(table)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert found == PACKETS[:1]
    assert (counts.read, counts.kept) == (1, 1)


def test_times_beyond_64_bits_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "late"
    for options in (
        option(9, b"\x00"),
        option(9, b"\x8b"),
        option(14, struct.pack("<q", 2**62)),
        option(14, struct.pack("<q", -(2**33))),
    ):
        path.write_bytes(section() + interface() + enhanced(5000, SAMPLES[0]) + interface(options=options))
        with path.open("ab") as file:
            place = file.tell()
            file.write(enhanced(2**64 - 1, SAMPLES[1], number=1))
        counts = PacketCounts()
        with pytest.raises(ValueError, match=f"at byte {place}: a time that lies beyond"):
            read_all(path, counts)
        assert counts.read == 1


def test_what_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "other"
    for content, shown in ((b"", "nothing"), (b"\x0a", "0a"), (b"PK\x03\x04 and so on", "504b0304")):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{path} is no capture: at byte 0 it has {shown}; expected the first bytes"
        ):
            read_all(path)
    path.write_bytes(pcap([], link=105))
    with pytest.raises(
        ValueError, match=f"{path} is damaged at byte 20: the link type is 105; expected one of 0, 1, 12"
    ):
        read_all(path)
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        read_packets(path, batch=0)
    with pytest.raises(FileNotFoundError):
        read_all(tmp_path / "nothing")
    path.write_bytes(pcap([]))
    assert read_all(path) == []


def test_members_of_a_gzip(tmp_path: Path) -> None:
    whole = pcap(PACKETS)
    path = tmp_path / "a.pcap.gz"
    path.write_bytes(
        gzip.compress(whole[:90]) + gzip.compress(b"") + bytes(200_000) + gzip.compress(whole[90:]) + bytes(9)
    )
    assert read_all(path) == PACKETS
    path.write_bytes(gzip.compress(whole) + b"rubbish that is no gzip")
    with pytest.raises(ValueError, match=f"at byte {len(whole)} of what it holds decompressed: the gzip is damaged"):
        read_all(path)
    path.write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ValueError, match="at byte 0 of what it holds decompressed: the gzip ends early"):
        read_all(path)


def test_a_gzip_is_read_up_to_its_damage(tmp_path: Path) -> None:
    packets = [(number, packet) for number in range(50) for packet in SAMPLES]
    whole = pcap(packets)
    compressed = gzip.compress(whole)
    wrong_sum = compressed[:-8] + bytes([compressed[-8] ^ 1]) + compressed[-7:]
    early = compressed[: len(compressed) // 2]
    for content, reason in ((wrong_sum, "incorrect data check"), (early, "the gzip ends early")):
        (tmp_path / "a").write_bytes(content)
        found: list[tuple[int, bytes]] = []
        with pytest.raises(ValueError, match=reason) as error:
            for table in read_packets(tmp_path / "a"):
                found += rows_of(table)
        assert found == packets[: len(found)]
        assert f"at byte {len(pcap(found))} of" in str(error.value)
        assert len(found) == 300 if content is wrong_sum else 50 < len(found) < 300


@pytest.mark.parametrize("form", FORMS)
@here
@given(data=st.data())
def test_no_damage_does_anything_but_raise(tmp_path: Path, form: str, data: st.DataObject) -> None:
    content = bytearray(FORMS[form](PACKETS))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, content[place] ^ 4]))
    (tmp_path / "damaged").write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    counts, found = PacketCounts(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captures, "PIECE", data.draw(st.sampled_from([50, 1 << 22])))
        try:
            for table in read_packets(tmp_path / "damaged", counts=counts, batch=3):
                found += len(table)
        except ValueError as error:
            assert f"{tmp_path / 'damaged'} is" in str(error)
            assert "at byte " in str(error)
    assert counts.kept == found
    assert counts.read == sum(value for name, value in asdict(counts).items() if name != "read")


def test_a_record_longer_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "PIECE", 1000)
    long = (7, ipv4(udp(1, 2, bytes(60_000)), UDP))
    for form in ("pcap, big-endian", "pcapng, big-endian", "pcap, gzip"):
        (tmp_path / "a").write_bytes(FORMS[form]([*PACKETS, long, *PACKETS]))
        assert read_all(tmp_path / "a") == [*PACKETS, long, *PACKETS]


def test_a_snap_length_cuts_payloads(tmp_path: Path) -> None:
    frame = ethernet(ipv4(tcp(1, 2, b"a" * 1000)))
    (tmp_path / "a").write_bytes(pcap([], link=1, snaplen=96) + record(5, frame[:96], original=len(frame)))
    (table,) = read_packets(tmp_path / "a")
    assert (table.end - table.payload).tolist() == [96 - 14 - 40]
