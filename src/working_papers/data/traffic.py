"""Synthetic network traffic with valid headers, whose classes differ in known ways.

Every flow is a conversation of a client and a server across one of two network conditions. Who says what, and how
much, is a table of applications; when it is seen follows from round-trip time, rate and loss, simulated on both sides.
The packets are real ones: IPv4 with TCP or UDP, valid checksums, sequence and acknowledgement numbers that agree with
the bytes that were sent and with what had arrived. All packets of all flows are made at once, as columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from working_papers.data.conversations import (
    ACK,
    APPLICATIONS,
    CLIENT,
    NETWORKS,
    SECOND,
    SERVER,
    TELEMETRY,
    Flags,
    Integers,
    Rows,
    beginnings,
    converse,
    place_in_group,
)
from working_papers.data.packets import TCP, Flow, PacketTable, write_pcap

IP_HEADER, TCP_HEADER, UDP_HEADER = 20, 20, 8
BANNER = b"SSH-2.0-"
FIRST_START = 1_700_000_000 * SECOND
"""Flows start in the hour after this time, in nanoseconds since 1970."""
SERVER_PORTS = (53, 80, 443, 8443)
NOT_PUBLIC = (10, 100, 127, 169, 172, 192, 198, 203)
"""First bytes of addresses of which all or some are set aside for other than public servers."""


@dataclass(frozen=True)
class LabelledFlows:
    """Flows with what they were made from.

    Attributes:
        flows: one an example.
        labels: application of each flow, an index into the names, int64 (n,).
        conditions: network condition of each flow, an index into the names of conditions, int64 (n,).
    """

    flows: list[Flow]
    labels: NDArray[np.int64]
    conditions: NDArray[np.int64]


BYTE_CLASSES = tuple(APPLICATIONS)
"""Applications of `make_flows`, which differ in payload bytes, header fields, lengths or counts (see the function)."""

CONDITIONS = tuple(NETWORKS)
"""Network conditions: round-trip time, rate and loss."""


def make_flows(
    count: int,
    *,
    seed: int,
    classes: int = 8,
    dropped: float = 0.1,
    server_networks: NDArray[np.int64] | None = None,
    ports: NDArray[np.int64] | None = None,
    time_to_live: NDArray[np.int64] | None = None,
    condition: int | None = None,
    max_packets: int | None = None,
) -> LabelledFlows:
    """Draw flows, with classes (and conditions) in equal parts, in random order.

    The applications, C for the client, S for the server, with bytes of payload (random where nothing is said):

    - TLS a: C 200-500 that begin 16 03 01, then S 3-8 packets of 1400 that each begin 17 03 03;
    - TLS b: the same, but C begins 16 03 03;
    - bulk: S 10-20 packets of 1400; bulk, small window: the same with a window of 8192 in every header, all other
      applications on TCP have 65535;
    - DNS: UDP, C 30-60, S 80-400, once; tunnel: UDP, C 150-250, S 150-250, 6-10 times;
    - SSH: banners of 18-30 that begin SSH-2.0-, S first, then S and C in turn 36-100, 3-6 times;
    - telemetry: C 6-12 times 8-20 ASCII digits, one every round trip.

    TCP flows begin with SYN, SYN-ACK, ACK and are captured without their end, so they have no FIN. A side that has
    nothing to say acknowledges every second packet and the last one of a message with a bare ACK.

    Conditions: fast has round trips of 10-40 ms, gaps of 0.1-1 ms between packets of a message and 0-1 % loss; slow has
    80-200 ms, 1-8 ms and 5-10 %. Round trips are log-uniform, one for a flow, as is its loss (uniform). The capture is
    taken beside the client. So what the client sends and the network loses is seen twice or more often, while what the
    server sends and the network loses is seen late. The sender repeats a packet after 200 ms and a round trip (SYN:
    1 s), then after twice that time, and so on. SYN and requests over UDP are repeated until the answer comes. Bare
    ACKs are never repeated, and the ACK that opens a connection is never lost.

    Clients are 10.x.x.x with a port above 1023, and no two flows share one. Each direction of a flow draws its own time
    to live. Flows start at random in one hour.

    Args:
        count: number of flows.
        seed: of everything that is random.
        classes: of the eight applications, the first so many.
        dropped: share of packets that the capture misses, besides those that the network loses. A flow of which all
            would be missed keeps its first packet.
        server_networks: class by class, which /24 network the server's address is drawn from, as the first three bytes
            of the address, (a << 16) + (b << 8) + c for a.b.c.0/24, (classes,), or (classes, k) for one of k networks
            drawn for each flow; None draws a random public address, whatever the class.
        ports: class by class the port of the server, (classes,) or (classes, k); None draws one of 53, 80, 443, 8443,
            whatever the class.
        time_to_live: class by class how many hops are taken off the initial time to live (64 or 128), (classes,) or
            (classes, k); None draws 1 to 20, whatever the class.
        condition: the condition of all flows; None gives each to half of the flows.
        max_packets: only so many packets of a flow are made, the first that the capture did not miss. Flows that have
            more are then not `complete`, as after `split_flows` with this argument; all others are. Everything but the
            random bytes of payload is as without a limit.

    Returns:
        Flows, whose packets share one buffer, with labels and conditions.

    Raises:
        ValueError: an argument is out of range or an array has not one entry a class.
    """
    _check_range("count", count, 1, None)
    _check_range("seed", seed, 0, None)
    _check_range("classes", classes, 1, len(BYTE_CLASSES))
    if not 0 <= dropped < 1:
        raise ValueError(f"dropped is {dropped}; expected a share from 0 to below 1")
    if condition is not None:
        _check_range("condition", condition, 0, len(CONDITIONS) - 1)
    if max_packets is not None:
        _check_range("max_packets", max_packets, 1, None)
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    labels = order % classes
    conditions = order // classes % len(CONDITIONS) if condition is None else np.full(count, condition)
    endpoints = _draw_endpoints(
        random,
        labels,
        _choices("server_networks", server_networks, classes, 1 << 16, (224 << 16) - 1, "addresses without last byte"),
        _choices("ports", ports, classes, 1, 65535, "ports"),
        _choices("time_to_live", time_to_live, classes, 0, 63, "hops"),
    )
    rows = converse(random, labels, conditions)
    rows, counts, complete = _capture(random, rows, count, dropped, max_packets)
    table = _make_packets(random, rows, labels, endpoints)
    ends = np.cumsum(counts)
    flows = []
    for begin, end, whole in zip((ends - counts).tolist(), ends.tolist(), complete.tolist(), strict=True):
        side = rows.side[begin:end]
        flows.append(Flow(table.take(slice(begin, end)), side == side[0], whole))
    return LabelledFlows(flows, labels, conditions)


def write_flows(path: Path, flows: Iterable[Flow]) -> None:
    """Write the packets of all flows in the order of time as a pcap, as the capture had them.

    Args:
        path: of the file.
        flows: whose packets are written.
    """
    tables = [flow.packets for flow in flows]
    packets = [(time, table.bytes_of(row)) for table in tables for row, time in enumerate(table.time.tolist())]
    write_pcap(path, sorted(packets, key=lambda packet: packet[0]))


def _check_range(name: str, value: int, least: int, most: int | None) -> None:
    if not isinstance(value, int | np.integer) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {value!r}; expected an integer {bounds}")


def _choices(name: str, values: Integers | None, classes: int, least: int, most: int, what: str) -> Integers | None:
    """The values as one row of choices a class."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim not in (1, 2) or len(array) != classes or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected ({classes},) or ({classes}, k), one row a class")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}; expected integers")
    outside = array[(array < least) | (array > most)]
    if outside.size:
        raise ValueError(f"{name} holds {outside[0]}; expected {what} from {least} to {most}")
    return array.reshape(classes, -1).astype(np.int64)


@dataclass(frozen=True)
class _Endpoints:
    """Of each flow: addresses and ports of client and server, and the time to live of what each of them sends."""

    address: Integers  # (flows, 2)
    port: Integers  # (flows, 2)
    time_to_live: Integers  # (flows, 2)


def _draw_endpoints(
    random: np.random.Generator,
    labels: Integers,
    networks: Integers | None,
    ports: Integers | None,
    hops: Integers | None,
) -> _Endpoints:
    count = len(labels)

    def chosen(choices: Integers) -> Integers:
        return np.asarray(choices[labels, random.integers(0, choices.shape[1], count)])

    clients = random.integers(0, 1 << 24, count) << 16 | random.integers(1024, 65536, count)
    while len(repeated := np.setdiff1d(np.arange(count), np.unique(clients, return_index=True)[1])):
        drawn = random.integers(0, 1 << 24, len(repeated)) << 16
        clients[repeated] = drawn | random.integers(1024, 65536, len(repeated))
    if networks is None:
        first_bytes = np.setdiff1d(np.arange(1, 224), NOT_PUBLIC)
        servers = random.choice(first_bytes, count) << 24 | random.integers(0, 1 << 24, count)
    else:
        servers = chosen(networks) << 8 | random.integers(1, 255, count)
    port = random.choice(np.array(SERVER_PORTS), count) if ports is None else chosen(ports)
    taken_off = random.integers(1, 21, (count, 2)) if hops is None else np.stack([chosen(hops)] * 2, axis=1)
    return _Endpoints(
        address=np.stack([10 << 24 | clients >> 16, servers], axis=1),
        port=np.stack([clients & 0xFFFF, port], axis=1),
        time_to_live=random.choice(np.array([64, 128]), (count, 2)) - taken_off,
    )


def _capture(
    random: np.random.Generator, rows: Rows, count: int, dropped: float, max_packets: int | None
) -> tuple[Rows, Integers, Flags]:
    """Rows that are kept in the order of flows and time, how many of each flow, and whether none was cut off."""
    missed = random.random(len(rows.flow)) < dropped
    order = np.lexsort((rows.time, rows.flow))
    flow, missed = rows.flow[order], missed[order]
    begins = beginnings(flow)
    missed[begins[np.logical_and.reduceat(missed, begins)]] = False
    order, flow = order[~missed], flow[~missed]
    counts = np.bincount(flow, minlength=count)
    complete = np.ones(count, dtype=np.bool_)
    if max_packets is not None:
        order = order[place_in_group(flow) < max_packets]
        complete = counts <= max_packets
        counts = np.minimum(counts, max_packets)
    return rows.take(order), counts, complete


def _ranges(begin: Integers, length: Integers) -> Integers:
    """All of begin, begin + 1, ... begin + length - 1, one range after the other."""
    before = np.cumsum(length) - length
    return np.asarray(np.arange(int(length.sum())) + np.repeat(begin - before, length))


def _make_packets(random: np.random.Generator, rows: Rows, labels: Integers, endpoints: _Endpoints) -> PacketTable:
    """Bytes and columns of all rows, in one buffer."""
    flow, side = rows.flow, rows.side
    initial = random.integers(0, 1 << 32, (len(labels), 2))
    start_time = FIRST_START + random.integers(0, 3600 * SECOND, len(labels))
    application = labels[flow]
    protocol = np.array([entry.protocol for entry in APPLICATIONS.values()])[application]
    header = IP_HEADER + np.where(protocol == TCP, TCP_HEADER, UDP_HEADER)
    size = header + rows.length
    # Packets begin at even offsets, so that their 16-bit words are words of the buffer.
    room = size + size % 2
    start = np.cumsum(room) - room
    end, payload, transport = start + size, start + header, start + IP_HEADER
    used = int(room.sum())
    buffer = random.integers(0, 256, used + 64, dtype=np.uint8)
    buffer[used:] = 0
    buffer[end[size % 2 == 1]] = 0
    _write_payloads(buffer, payload, rows, application)

    words = np.zeros((len(flow), 20), dtype=np.int64)
    source, destination = endpoints.address[flow, side], endpoints.address[flow, 1 - side]
    source_port, destination_port = endpoints.port[flow, side], endpoints.port[flow, 1 - side]
    words[:, 0] = 0x4500  # version 4, five words of header, type of service 0
    words[:, 1] = size
    words[:, 2] = rows.identification
    words[:, 3] = 0x4000  # may not be fragmented
    words[:, 4] = endpoints.time_to_live[flow, side] << 8 | protocol
    words[:, 6:8] = np.stack([source >> 16, source & 0xFFFF], axis=1)
    words[:, 8:10] = np.stack([destination >> 16, destination & 0xFFFF], axis=1)
    words[:, 10], words[:, 11] = source_port, destination_port
    tcp = protocol == TCP
    number = initial[flow, side] + rows.sequence & 0xFFFFFFFF
    answer = np.where(rows.flags & ACK, initial[flow, 1 - side] + rows.acknowledged & 0xFFFFFFFF, 0)
    words[:, 12:14] = np.stack([number >> 16, number & 0xFFFF], axis=1)
    words[:, 14:16] = np.stack([answer >> 16, answer & 0xFFFF], axis=1)
    words[:, 16] = (TCP_HEADER // 4) << 12 | rows.flags
    words[:, 17] = np.array([entry.window for entry in APPLICATIONS.values()])[application]
    words[~tcp, 12:] = 0
    words[~tcp, 12] = size[~tcp] - IP_HEADER

    as_words = buffer.view(">u2")
    for protocol_rows, width in ((np.flatnonzero(tcp), 20), (np.flatnonzero(~tcp), 14)):
        as_words[(start[protocol_rows] // 2)[:, None] + np.arange(width)] = words[protocol_rows, :width]
    pseudo_header = words[:, 6:10].sum(axis=1) + protocol + size - IP_HEADER
    sums = np.add.reduceat(as_words[: used // 2], np.stack([start, transport], axis=1).ravel() // 2, dtype=np.int64)
    of_ip, of_transport = _complement(sums[::2]), _complement(sums[1::2] + pseudo_header)
    as_words[start // 2 + 5] = of_ip
    # In UDP, 0 stands for no checksum, and so the other zero of ones' complement is sent.
    as_words[transport // 2 + np.where(tcp, 8, 3)] = np.where(~tcp & (of_transport == 0), 0xFFFF, of_transport)

    addresses = np.zeros((2, len(flow), 16), dtype=np.uint8)
    addresses[:, :, 12:] = np.stack([source, destination]).astype(">u4")[..., None].view(np.uint8)
    return PacketTable(
        buffer=buffer,
        start=start,
        end=end,
        transport=transport,
        payload=payload,
        time=start_time[flow] + rows.time,
        version=np.full(len(flow), 4, dtype=np.uint8),
        protocol=protocol.astype(np.uint8),
        source=addresses[0],
        destination=addresses[1],
        source_port=source_port.astype(np.uint16),
        destination_port=destination_port.astype(np.uint16),
    )


def _complement(sums: Integers) -> Integers:
    """Internet checksum (RFC 1071) from sums of 16-bit words."""
    for _ in range(3):
        sums = (sums & 0xFFFF) + (sums >> 16)
    return ~sums & 0xFFFF


def _write_payloads(buffer: NDArray[np.uint8], payload: Integers, rows: Rows, application: Integers) -> None:
    """What of the payload is not random, then payloads that are sent again."""
    for label, entry in enumerate(APPLICATIONS.values()):
        for side, prefix in ((CLIENT, entry.client_prefix), (SERVER, entry.server_prefix)):
            if prefix:
                speaking = payload[(application == label) & (rows.side == side) & (rows.length > 0)]
                buffer[speaking[:, None] + np.arange(len(prefix))] = np.frombuffer(prefix, dtype=np.uint8)
    digits = (application == TELEMETRY) & (rows.length > 0)
    at = _ranges(payload[digits], rows.length[digits])
    buffer[at] = ord("0") + buffer[at] % 10
    begin, length = payload[rows.banner], rows.length[rows.banner]
    at = _ranges(begin, length)
    buffer[at] = ord("a") + buffer[at] % 26
    buffer[begin[:, None] + np.arange(len(BANNER))] = np.frombuffer(BANNER, dtype=np.uint8)
    buffer[(begin + length)[:, None] - np.array([2, 1])] = np.frombuffer(b"\r\n", dtype=np.uint8)

    spoken = np.flatnonzero((rows.packet >= 0) & (rows.length > 0))
    _, first, which = np.unique(rows.packet[spoken], return_index=True, return_inverse=True)
    original = spoken[first][which]
    again = original != spoken
    length = rows.length[spoken[again]]
    buffer[_ranges(payload[spoken[again]], length)] = buffer[_ranges(payload[original[again]], length)]
