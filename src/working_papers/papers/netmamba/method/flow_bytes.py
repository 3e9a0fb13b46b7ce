"""Flows as arrays of bytes: the first packets of a flow, headers and payload in slots of fixed size.

Source: section 4.1 of the paper. The official code finds headers by replacing the payload's digits by nothing in the
packet's, which also deletes header bytes that look like the payload; here both are cut where the packet says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from working_papers.data.packets import ICMP, ICMP6, TCP, UDP, Flow, PacketTable, read_packets, split_flows

ADDRESSES = {4: (12, 20), 6: (8, 40)}
"""Where addresses lie in an IP header, by version."""

CHECKSUMS = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
"""Where the two bytes of the checksum lie in a transport header, by protocol; in the IPv4 header at 10."""

TOGETHER = 1024
"""Flows of a capture that are cut at once."""


def flows_to_bytes(
    flows: Sequence[Flow | PacketTable],
    packets_per_flow: int = 5,
    header: int = 80,
    payload: int = 240,
    *,
    anonymize: bool = True,
    zero_checksums: bool = False,
) -> NDArray[np.uint8]:
    """The first packets of flows as bytes, each packet as its headers, then its payload.

    Args:
        flows: n flows, or the packets of each; with any number of packets.
        packets_per_flow: packets that are taken; flows that have fewer are filled up with zeros.
        header: bytes of a packet's headers (IP and transport), cut off or filled up with zeros.
        payload: bytes of a packet's payload, the same.
        anonymize: whether IP addresses are set to zero, those of IPv6 as well.
        zero_checksums: whether the checksums of IPv4, TCP, UDP and ICMP are set to zero, too; they were computed from
            the addresses and weakly give them away. The paper leaves them.

    Returns:
        uint8 (n, packets_per_flow (header + payload)), by default 1600 bytes a flow.

    Raises:
        ValueError: a size that is out of range.
    """
    _check_sizes(packets_per_flow, header, payload)
    found = np.zeros((len(flows), packets_per_flow, header + payload), dtype=np.uint8)
    # Flows whose packets lie in one buffer are cut at once.
    buffers: dict[int, tuple[list[PacketTable], list[int]]] = {}
    for place, flow in enumerate(flows):
        table = flow.packets if isinstance(flow, Flow) else flow
        tables, places = buffers.setdefault(id(table.buffer), ([], []))
        tables.append(table)
        places.append(place)
    for tables, places in buffers.values():
        counts = np.array([min(len(table), packets_per_flow) for table in tables])
        first = _first_packets(tables, packets_per_flow)
        rows = np.repeat(places, counts)
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        found[rows, numbers] = _packets_to_bytes(first, header, payload, anonymize, zero_checksums)
    return found.reshape(len(flows), packets_per_flow * (header + payload))


def flow_to_bytes(
    flow: Flow | PacketTable,
    packets_per_flow: int = 5,
    header: int = 80,
    payload: int = 240,
    *,
    anonymize: bool = True,
    zero_checksums: bool = False,
) -> NDArray[np.uint8]:
    """The first packets of one flow as bytes.

    Args:
        flow: a flow or its packets.
        packets_per_flow: as for `flows_to_bytes`, like all others.
        header: bytes of headers.
        payload: bytes of payload.
        anonymize: whether IP addresses are set to zero.
        zero_checksums: whether checksums are set to zero.

    Returns:
        uint8 (packets_per_flow (header + payload),), by default 1600 bytes.

    Raises:
        ValueError: a size that is out of range.
    """
    found: NDArray[np.uint8] = flows_to_bytes(
        [flow], packets_per_flow, header, payload, anonymize=anonymize, zero_checksums=zero_checksums
    )[0]
    return found


def read_flows(
    capture: Path | str,
    packets_per_flow: int = 5,
    header: int = 80,
    payload: int = 240,
    *,
    anonymize: bool = True,
    zero_checksums: bool = False,
    idle: float = 60.0,
    active: float = 1800.0,
) -> Iterator[NDArray[np.uint8]]:
    """The flows of a capture as bytes, in the order in which they end; memory does not grow with the capture.

    Args:
        capture: pcap or pcapng file.
        packets_per_flow: as for `flows_to_bytes`, like all others up to `zero_checksums`.
        header: bytes of headers.
        payload: bytes of payload.
        anonymize: whether IP addresses are set to zero.
        zero_checksums: whether checksums are set to zero.
        idle: seconds without a packet that end a flow.
        active: seconds after which a flow is ended in any case.

    Yields:
        uint8 (packets_per_flow (header + payload),) for each flow.

    Raises:
        ValueError: a size that is out of range, or a file that is no capture or is damaged.
    """
    _check_sizes(packets_per_flow, header, payload)
    flows = split_flows(read_packets(Path(capture)), idle=idle, active=active, max_packets=packets_per_flow)
    while batch := list(islice(flows, TOGETHER)):
        yield from flows_to_bytes(
            batch, packets_per_flow, header, payload, anonymize=anonymize, zero_checksums=zero_checksums
        )


def _check_sizes(packets_per_flow: int, header: int, payload: int) -> None:
    if packets_per_flow < 1:
        raise ValueError(f"packets_per_flow is {packets_per_flow}; expected at least 1")
    if min(header, payload) < 0 or header + payload == 0:
        raise ValueError(f"header and payload are {header} and {payload} bytes; expected at least 0, and one of them 1")


def _first_packets(tables: list[PacketTable], most: int) -> PacketTable:
    """The first packets of tables over one buffer as one table."""
    columns = ("start", "end", "transport", "payload", "time", "version", "protocol")
    joined = {name: np.concatenate([getattr(table, name)[:most] for table in tables]) for name in columns}
    ends = ("source", "destination", "source_port", "destination_port")  # not looked at
    return PacketTable(buffer=tables[0].buffer, **joined, **{name: getattr(tables[0], name)[:0] for name in ends})


def _packets_to_bytes(
    packets: PacketTable, header: int, payload: int, anonymize: bool, zero_checksums: bool
) -> NDArray[np.uint8]:
    """Packets (n, header + payload)."""
    column = np.arange(header)
    heads = packets.gather(packets.start, header)
    heads = heads * (column < (packets.payload - packets.start)[:, None])
    body = packets.gather(packets.payload, payload)
    body = body * (np.arange(payload) < (packets.end - packets.payload)[:, None])
    if anonymize:
        for version, (begin, behind) in ADDRESSES.items():
            heads[packets.version == version, begin:behind] = 0
    if zero_checksums:
        heads[packets.version == 4, 10:12] = 0
        place = np.full(len(packets), -2)
        for protocol, offset in CHECKSUMS.items():
            chosen = packets.protocol == protocol
            place[chosen] = (packets.transport - packets.start)[chosen] + offset
        heads[(column == place[:, None]) | (column == place[:, None] + 1)] = 0
    return np.concatenate([heads, body], axis=1).astype(np.uint8, copy=False)
