"""Network packets: read from captures as a stream, kept as columns, gathered to flows."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from working_papers.data.captures import LONGEST_FRAME, read_frames
from working_papers.data.flows import Flow, split_flows
from working_papers.data.packet_headers import RAW, Frames, parse_frames, raw_frames
from working_papers.data.packet_table import ICMP, ICMP6, TCP, UDP, PacketTable

__all__ = [
    "ICMP",
    "ICMP6",
    "TCP",
    "UDP",
    "Flow",
    "PacketCounts",
    "PacketTable",
    "parse_packets",
    "read_packets",
    "split_flows",
    "write_pcap",
]


@dataclass
class PacketCounts:
    """What was met while reading; adds up over several files.

    Attributes:
        read: packets in the captures.
        kept: packets that were handed on.
        fragments: IP fragments, which were skipped.
        truncated: packets whose headers were cut off by the capture, which were skipped.
        not_ip: frames of other protocols (ARP and so on), which were skipped.
        other_transport: IP packets with neither TCP nor UDP nor ICMP, which were skipped.
        malformed: packets whose headers contradict themselves, which were skipped.
    """

    read: int = 0
    kept: int = 0
    fragments: int = 0
    truncated: int = 0
    not_ip: int = 0
    other_transport: int = 0
    malformed: int = 0


def parse_packets(packets: Iterable[tuple[int, bytes]], counts: PacketCounts | None = None) -> PacketTable:
    """A table of packets that are at hand.

    Args:
        packets: pairs of time (nanoseconds since 1970) and bytes from the IP header on.
        counts: is added to.

    Raises:
        ValueError: a time beyond 64 bits.
    """
    return _parse(raw_frames(list(packets)), counts)


def read_packets(path: Path, *, batch: int = 16384, counts: PacketCounts | None = None) -> Iterator[PacketTable]:
    """Packets of a capture (pcap or pcapng, also compressed by gzip), some at a time.

    The file is read in pieces of a few megabytes, so that memory does not grow with it. Link types: Ethernet with VLAN
    tags, raw IP, Linux cooked, BSD loopback; in a pcapng, packets of other links count as `not_ip`. Bytes behind the
    IP packet (padding of Ethernet) are left out. Simple Packet Blocks of pcapng have no time, theirs is 0.

    Args:
        path: of the capture.
        batch: packets a table at most.
        counts: is added to.

    Raises:
        ValueError: the file is no capture, or is damaged; names file and offset. Everything before it was yielded.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1")
    return _read(Path(path), batch, counts)


def _read(path: Path, batch: int, counts: PacketCounts | None) -> Iterator[PacketTable]:
    for frames in read_frames(path, batch):
        table = _parse(frames, counts)
        if len(table):
            yield table


def _parse(frames: Frames, counts: PacketCounts | None) -> PacketTable:
    table, outcome = parse_frames(frames)
    if counts is not None:
        kept, fragments, truncated, not_ip, other_transport, malformed = np.bincount(outcome, minlength=6).tolist()
        counts.read += len(outcome)
        counts.kept += kept
        counts.fragments += fragments
        counts.truncated += truncated
        counts.not_ip += not_ip
        counts.other_transport += other_transport
        counts.malformed += malformed
    return table


def write_pcap(path: Path, packets: Iterable[tuple[int, bytes]]) -> None:
    """Write packets (time in nanoseconds, bytes from the IP header on) as a pcap of raw IP with nanoseconds.

    The file appears under its name when it is whole.

    Raises:
        ValueError: a packet beyond 262144 bytes, or a time before 1970 or beyond 32 bits of seconds.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, LONGEST_FRAME, RAW))
            for time, content in packets:
                seconds, nanoseconds = divmod(int(time), 1_000_000_000)
                if not 0 <= seconds < 2**32:
                    raise ValueError(f"a packet has the time {time}; expected nanoseconds from 1970 to 2106")
                if len(content) > LONGEST_FRAME:
                    raise ValueError(f"a packet has {len(content)} bytes; expected at most {LONGEST_FRAME}")
                file.write(struct.pack("<IIII", seconds, nanoseconds, len(content), len(content)) + content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
