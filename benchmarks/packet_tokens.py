"""Packets a second from a capture to tokens, beside scapy extracting the same fields (https://pypi.org/project/scapy).

    pip install -c constraints.txt scapy
    python benchmarks/packet_tokens.py

Both read the same kind of capture, artificial conversations over TCP and UDP, gather flows by addresses and ports, and
take the header fields of netFound as 16-bit words; scapy's are gathered in plain dictionaries and lists, which cost
next to nothing beside its dissection. Both must give the same words first. They take turns within each repeat, so that
whatever else the machine does falls on both alike; compare the ratios of one run, not the numbers of two. The words of
one packet after the other without scapy (`struct`) are given, too: that is what a fast loop would reach. Here bursts
are split as well, which the others are spared.
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

from working_papers.data.packets import read_packets, split_flows
from working_papers.data.traffic import make_flows, write_flows
from working_papers.papers.netfound import FlowTokenizer, FlowTokens

ENOUGH = 20  # the ratio that the project promises
Words = dict[tuple[object, ...], list[list[int]]]


def own(path: Path) -> FlowTokens:
    """Read, parse, gather flows, split bursts, take the words of all packets."""
    tokenizer = FlowTokenizer(1_000_000, 1_000_000, relative_sequence=False)
    return tokenizer.encode_many(list(split_flows(read_packets(path))))


def scapy_words(scapy: Any, path: Path) -> Words:
    """The same words by scapy, flow by flow."""
    flows: Words = {}
    with scapy.PcapReader(str(path)) as reader:
        for packet in reader:
            ip = packet[scapy.IP]
            words = [4 * ip.ihl, ip.tos, ip.len, int(ip.flags), ip.ttl]
            if scapy.TCP in packet:
                part = packet[scapy.TCP]
                words += [int(part.flags), part.window, part.seq >> 16, part.seq & 0xFFFF]
                words += [part.ack >> 16, part.ack & 0xFFFF, part.urgptr]
            else:
                part = packet[scapy.UDP]
                words.append(part.len)
            ends = sorted([(ip.src, part.sport), (ip.dst, part.dport)])
            flows.setdefault((ip.proto, *ends), []).append(words)
    return flows


def struct_words(path: Path) -> Words:
    """The same words by a loop over the records of a capture of raw IPv4 with nanoseconds, and nothing else."""
    data, flows = path.read_bytes(), {}  # type: tuple[bytes, Words]
    at = 24
    while at < len(data):
        length = struct.unpack_from("<8xI", data, at)[0]
        at += 16
        first, tos, total, flags, ttl, protocol, source, destination = struct.unpack_from(">BBHxxHBBxxII", data, at)
        head = 4 * (first & 15)
        words = [head, tos, total, flags >> 13, ttl]
        if protocol == 6:
            ports, *rest = struct.unpack_from(">I4HxBHxxH", data, at + head)
            words += [rest[4], rest[5], *rest[:4], rest[6]]
        else:
            ports, size = struct.unpack_from(">IH", data, at + head)
            words.append(size)
        ends = sorted([(source, ports >> 16), (destination, ports & 0xFFFF)])
        flows.setdefault((protocol, *ends), []).append(words)
        at += length
    return flows


def compare(path: Path, scapy: Any) -> None:
    """See to it that all find the same words, whatever the order of flows, and of packets within them."""
    tokens = own(path)
    ends = np.r_[0, tokens.word_ends[tokens.burst_ends - 1]]
    width = np.where(tokens.protocol == 6, 12, 6)
    found = sorted(
        sorted(tokens.words[begin:end].reshape(-1, each).tolist())
        for begin, end, each in zip(ends[:-1], ends[1:], width, strict=True)
    )
    for name, words in (("scapy", scapy_words(scapy, path)), ("struct", struct_words(path))):
        if sorted(sorted(packets) for packets in words.values()) != found:
            raise RuntimeError(f"{name} finds other words in {path}")


def seconds(call: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Packets a second from a capture to tokens.")
    parser.add_argument("--flows", type=int, default=20_000, help="of the capture that is read here")
    parser.add_argument("--peer-flows", type=int, default=600, help="of the shorter one that scapy reads")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, of which the median counts")
    options = parser.parse_args()
    logging.getLogger("scapy").setLevel(logging.ERROR)
    try:
        scapy: Any = importlib.import_module("scapy.all")
    except ImportError:
        print("scapy is not installed, nothing to compare with; the head of this file says how to get it: skipped")
        return

    with tempfile.TemporaryDirectory() as folder:
        paths, packets = [], []
        for name, count in (("long", options.flows), ("short", options.peer_flows)):
            flows = make_flows(count, seed=0).flows
            paths.append(Path(folder) / f"{name}.pcap")
            write_flows(paths[-1], flows)
            packets.append(sum(len(flow.packets) for flow in flows))
        long, short = paths
        compare(short, scapy)
        read = list(split_flows(read_packets(long)))
        tokenizer = FlowTokenizer()
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "capture to tokens": (lambda: own(long), packets[0]),
            "of it flows to tokens": (lambda: tokenizer.encode_many(read), packets[0]),
            "scapy": (lambda: scapy_words(scapy, short), packets[1]),
            "struct, one by one": (lambda: struct_words(long), packets[0]),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, (call, count) in ways.items():
                rates[name].append(count / seconds(call))
    print(
        f"scapy {metadata.version('scapy')}, numpy {np.__version__}, one thread, {platform.machine()}, "
        f"{packets[0]} packets in {options.flows} flows"
    )
    print(f"{'':24} {'packets/s':>10} {'/ scapy':>8}")
    for name, taken in rates.items():
        ratio = statistics.median(a / b for a, b in zip(taken, rates["scapy"], strict=True))
        short_of = f"   below {ENOUGH}" if name == "capture to tokens" and ratio < ENOUGH else ""
        print(f"{name:24} {statistics.median(taken):10,.0f} {ratio:8.1f}{short_of}")


if __name__ == "__main__":
    main()
