"""Packets read and parsed a second, beside scapy's `PcapReader` (https://pypi.org/project/scapy).

    pip install -c constraints.txt scapy
    python benchmarks/packet_reading.py

Both read the same captures, made here: Ethernet frames of conversations over TCP and UDP, a fifth of them IPv6, a tenth
with a VLAN tag, some ARP. Both find addresses, ports and where the payload begins, which are compared first. Both take
turns within each repeat, so that whatever else the machine does falls on both alike; compare the ratios of one run, not
the numbers of two. The time of scapy without dissection (`RawPcapReader`) and of gathering flows is given beside it.
"""

import argparse
import importlib
import logging
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from working_papers.data.packets import PacketTable, read_packets, split_flows

ENOUGH = 20  # the ratio that the project promises
TCP, UDP = 6, 17


def ethernet(random: np.random.Generator, payload: int) -> bytes:
    """A frame with a payload of so many bytes."""
    if random.random() < 0.01:
        return bytes(12) + struct.pack(">H", 0x0806) + bytes(28)
    client, port = int(random.integers(1, 128)), int(random.integers(1024, 1056))  # 4096 flows
    protocol = UDP if client % 4 == 0 else TCP
    ports = (port, 443) if random.random() < 0.5 else (443, port)
    hosts = (client, 0) if ports[0] == port else (0, client)
    if protocol == TCP:
        segment = (
            struct.pack(">HHIIBBHHH", *ports, 1, 2, 0x80, 0x10, 65535, 0, 0) + bytes.fromhex("0101080a") + bytes(8)
        )
    else:
        segment = struct.pack(">HHHH", *ports, 8 + payload, 0)
    segment += random.bytes(payload)
    if client % 5 == 0:
        addresses = b"".join(bytes.fromhex("20010db8") + bytes(11) + bytes([host]) for host in hosts)
        packet, kind = struct.pack(">IHBB", 6 << 28, len(segment), protocol, 64) + addresses + segment, 0x86DD
    else:
        addresses = b"".join(bytes([10, 0, 0, host]) for host in hosts)
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0x4000, 64, protocol, 0)
        packet, kind = head + addresses + segment, 0x0800
    tag = struct.pack(">HH", 0x8100, 7) if random.random() < 0.1 else b""
    return bytes(12) + tag + struct.pack(">H", kind) + packet


def write(path: Path, count: int, payload: int) -> None:
    """A capture of so many frames, of which payloads have a mean length."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        for number in range(count):
            frame = ethernet(random, int(random.integers(0, 2 * payload + 1)))
            file.write(struct.pack("<IIII", 1_700_000_000, number, len(frame), len(frame)) + frame)


def own(path: Path) -> list[PacketTable]:
    """Read and parse."""
    return list(read_packets(path))


def own_flows(path: Path) -> int:
    """Read, parse and gather flows."""
    return sum(1 for _ in split_flows(read_packets(path)))


def scapy_packets(scapy: Any, path: Path) -> list[Any]:
    """Read and parse by scapy."""
    with scapy.PcapReader(str(path)) as reader:
        return list(reader)


def scapy_raw(scapy: Any, path: Path) -> int:
    """Read by scapy without dissection."""
    with scapy.RawPcapReader(str(path)) as reader:
        return sum(1 for _ in reader)


def compare(scapy: Any, path: Path) -> None:
    """See to it that both find the same."""
    table = PacketTable.join(own(path))
    row = 0
    for packet in scapy_packets(scapy, path):
        layer = packet.getlayer(scapy.TCP) or packet.getlayer(scapy.UDP)
        if layer is None:
            continue
        ports = (int(table.source_port[row]), int(table.destination_port[row]))
        payload = table.buffer[table.payload[row] : table.end[row]].tobytes()
        if ports != (layer.sport, layer.dport) or payload != bytes(layer.payload):
            raise RuntimeError(f"packet {row} of {path} is not the same for both: {packet!r}")
        row += 1
    if row != len(table):
        raise RuntimeError(f"{path} has {len(table)} packets, for scapy {row}")


def seconds(call: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Packets read and parsed a second.")
    parser.add_argument("--packets", type=int, default=200_000, help="of the capture that is read here")
    parser.add_argument("--peer-packets", type=int, default=10_000, help="of the shorter one that scapy reads")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, of which the median counts")
    options = parser.parse_args()
    logging.getLogger("scapy").setLevel(logging.ERROR)
    try:
        scapy: Any = importlib.import_module("scapy.all")
    except ImportError:
        print("scapy is not installed, nothing to compare with; the head of this file says how to get it: skipped")
        return

    print(f"scapy {metadata.version('scapy')}, numpy {np.__version__}, one thread, {platform.machine()}")
    print("thousand packets a second")
    print(
        f"{'bytes of payload':>16} {'ours':>8} {'with flows':>11} {'scapy':>8} {'scapy raw':>10} "
        f"{'ours / scapy':>13} {'flows / scapy':>14} {'ours / raw':>11}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for payload in (60, 500, 1000):
            long, short = Path(folder) / f"{payload}.pcap", Path(folder) / f"{payload}-short.pcap"
            write(long, options.packets, payload)
            write(short, options.peer_packets, payload)
            compare(scapy, short)
            rates: list[list[float]] = [[], [], [], []]
            for _ in range(options.repeats):
                for taken, call, path, count in (
                    (rates[0], lambda path: sum(len(each) for each in read_packets(path)), long, options.packets),
                    (rates[1], own_flows, long, options.packets),
                    (rates[2], lambda path: scapy_packets(scapy, path), short, options.peer_packets),
                    (rates[3], lambda path: scapy_raw(scapy, path), short, options.peer_packets),
                ):
                    taken.append(count / seconds(lambda call=call, path=path: call(path)) / 1000)  # type: ignore[misc]
            ours, flows, theirs, raw = (np.array(taken) for taken in rates)
            ratio = float(np.median(ours / theirs))
            print(
                f"{payload:16} {statistics.median(ours):8.0f} {statistics.median(flows):11.0f} "
                f"{statistics.median(theirs):8.2f} {statistics.median(raw):10.0f} {ratio:13.0f} "
                f"{np.median(flows / theirs):14.0f} {np.median(ours / raw):11.1f}"
                + ("" if ratio >= ENOUGH else f"   below {ENOUGH}")
            )


if __name__ == "__main__":
    main()
