"""Conversations of clients and servers: who sends what when, and what a capture beside the client would see of it.

`working_papers.data.traffic` makes packets of them. Everything is computed for all flows at once: columns of messages,
then of their packets, then of every sending of a packet that is seen. Groups (the packets of a message, the messages of
a flow) are runs of rows. Times are nanoseconds from the beginning of the flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from working_papers.data.packets import TCP, UDP

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]

CLIENT, SERVER = 0, 1
SYN, PSH, ACK = 0x02, 0x08, 0x10
MICROSECOND, MILLISECOND, SECOND = 1_000, 1_000_000, 1_000_000_000
OPENING = 3
"""Packets that open a TCP connection: SYN, SYN-ACK, ACK."""
LARGEST_FAILURES = 5
"""A packet arrives at the latest when it is sent for the sixth time."""


@dataclass(frozen=True)
class Application:
    """What is said after the connection stands; pairs are the least and the most, both drawn.

    A turn is one message of the side that begins and, if the sides alternate, one of the other side. Messages of the
    client are one packet.
    """

    protocol: int
    begins: int
    alternates: bool
    turns: tuple[int, int]
    server_packets: tuple[int, int]
    client_bytes: tuple[int, int]
    server_bytes: tuple[int, int]
    window: int = 65535
    client_prefix: bytes = b""
    server_prefix: bytes = b""


FULL = (1400, 1400)
APPLICATIONS = {
    "TLS a": Application(TCP, CLIENT, True, (1, 1), (3, 8), (200, 500), FULL, 65535, b"\x16\x03\x01", b"\x17\x03\x03"),
    "TLS b": Application(TCP, CLIENT, True, (1, 1), (3, 8), (200, 500), FULL, 65535, b"\x16\x03\x03", b"\x17\x03\x03"),
    "bulk": Application(TCP, SERVER, False, (1, 1), (10, 20), (0, 0), FULL),
    "bulk, small window": Application(TCP, SERVER, False, (1, 1), (10, 20), (0, 0), FULL, 8192),
    "DNS": Application(UDP, CLIENT, True, (1, 1), (1, 1), (30, 60), (80, 400)),
    "tunnel": Application(UDP, CLIENT, True, (6, 10), (1, 1), (150, 250), (150, 250)),
    "SSH": Application(TCP, SERVER, True, (4, 7), (1, 1), (36, 100), (36, 100)),
    "telemetry": Application(TCP, CLIENT, False, (6, 12), (1, 1), (8, 20), (0, 0)),
}
SSH, TELEMETRY = list(APPLICATIONS).index("SSH"), list(APPLICATIONS).index("telemetry")
BANNER_BYTES = (18, 30)


@dataclass(frozen=True)
class Network:
    """A network condition; pairs are the least and the most."""

    round_trip_ms: tuple[float, float]
    gap_ms: tuple[float, float]
    loss: tuple[float, float]


NETWORKS = {
    "fast": Network(round_trip_ms=(10, 40), gap_ms=(0.1, 1), loss=(0, 0.01)),
    "slow": Network(round_trip_ms=(80, 200), gap_ms=(1, 8), loss=(0.05, 0.1)),
}


@dataclass(frozen=True)
class Rows:
    """Packets as they pass the capture, one row each, (rows,).

    Attributes:
        flow: index of the flow.
        side: who sends.
        time: when the capture sees it.
        length: bytes of payload.
        flags: of TCP.
        sequence: number of the first byte, counted from the first of its side.
        acknowledged: bytes of the other side that the sender has without a gap.
        packet: the same number for all sendings of a packet, -1 for bare ACKs.
        banner: whether the payload is a banner of SSH.
        identification: of the IP header, another one for every sending.
    """

    flow: Integers
    side: Integers
    time: Integers
    length: Integers
    flags: Integers
    sequence: Integers
    acknowledged: Integers
    packet: Integers
    banner: Flags
    identification: Integers

    def take(self, rows: Integers) -> Rows:
        """Some of the rows."""
        return Rows(**{name: column[rows] for name, column in vars(self).items()})


def first_of_group(group: Integers) -> Integers:
    """Where the run of equal numbers begins, for every element."""
    begins = np.r_[True, group[1:] != group[:-1]]
    return np.asarray(np.flatnonzero(begins)[np.cumsum(begins) - 1])


def beginnings(group: Integers) -> Integers:
    """Where the runs of equal numbers begin, for every run."""
    return np.flatnonzero(np.r_[True, group[1:] != group[:-1]])


def place_in_group(group: Integers) -> Integers:
    """0, 1, ... in every run of equal numbers."""
    return np.arange(len(group)) - first_of_group(group)


def converse(random: np.random.Generator, labels: Integers, conditions: Integers) -> Rows:
    """All packets of all flows as a capture beside the client sees them, in no order.

    Args:
        random: of all draws.
        labels: application of each flow, (flows,).
        conditions: network of each flow, (flows,).
    """
    network = _draw_networks(random, conditions)
    messages = _draw_messages(random, labels)
    packets = _draw_packets(random, labels, network, messages)
    return _see(random, len(labels), network, messages, packets)


@dataclass(frozen=True)
class _Networks:
    """Of each flow: time to the other side, share that is lost, least and most gap between packets of a message."""

    one_way: Integers
    lost: Reals
    gap: Reals


def _uniform(random: np.random.Generator, bounds: Reals) -> Reals:
    """Numbers from the least to the most, (n, 2) to (n,)."""
    return np.asarray(random.uniform(bounds[:, 0], bounds[:, 1]))


def _draw_networks(random: np.random.Generator, conditions: Integers) -> _Networks:
    networks = list(NETWORKS.values())
    round_trip = np.log([network.round_trip_ms for network in networks])[conditions]
    loss = np.array([network.loss for network in networks], dtype=np.float64)[conditions]
    return _Networks(
        one_way=(np.exp(_uniform(random, round_trip)) * MILLISECOND / 2).astype(np.int64),
        lost=_uniform(random, loss),
        gap=np.array([network.gap_ms for network in networks])[conditions] * MILLISECOND,
    )


@dataclass(frozen=True)
class _Messages:
    """In the order in which they begin: three that open a TCP connection, then those of the application."""

    flow: Integers
    application: Integers
    tcp: Flags
    place: Integers  # from -3 for SYN on, 0 for the application's first
    side: Integers
    size: Integers  # packets
    answered: Flags  # the next message of the flow is the other side's

    @property
    def said(self) -> Flags:
        return np.asarray(self.place >= 0)

    @property
    def banner(self) -> Flags:
        return np.asarray((self.application == SSH) & (self.place >= 0) & (self.place < 2))


def _between(random: np.random.Generator, bounds: Integers) -> Integers:
    """Integers from the least to the most, (..., 2) to (...)."""
    return np.asarray(random.integers(bounds[..., 0], bounds[..., 1] + 1))


def _draw_messages(random: np.random.Generator, labels: Integers) -> _Messages:
    applications = list(APPLICATIONS.values())
    tcp = np.array([application.protocol == TCP for application in applications])
    begins = np.array([application.begins for application in applications])
    alternates = np.array([application.alternates for application in applications])
    turns = np.array([application.turns for application in applications])
    server_packets = np.array([application.server_packets for application in applications])

    opening = OPENING * tcp[labels]
    count = opening + _between(random, turns[labels]) * (1 + alternates[labels])
    flow = np.repeat(np.arange(len(labels)), count)
    application = labels[flow]
    place = place_in_group(flow) - opening[flow]
    side = np.where(place >= 0, begins[application] + alternates[application] * place, place + OPENING) % 2
    size = np.where((place >= 0) & (side == SERVER), _between(random, server_packets[application]), 1)
    answered = np.r_[(flow[1:] == flow[:-1]) & (side[1:] != side[:-1]), False]
    return _Messages(flow, application, tcp[application], place, side, size, answered)


@dataclass(frozen=True)
class _Packets:
    """The packets of the messages, each once, however often it is sent."""

    message: Integers
    flow: Integers
    side: Integers
    length: Integers
    flags: Integers
    sequence: Integers
    sequence_end: Integers  # SYN counts as one byte
    failures: Integers  # how often the network loses it
    timeout: Integers  # until it is sent for the second time
    begin: Integers  # when it is sent for the first time
    arrival: Integers  # when it has come to the other side
    ends_message: Flags


def _draw_packets(random: np.random.Generator, labels: Integers, network: _Networks, messages: _Messages) -> _Packets:
    message = np.repeat(np.arange(len(messages.flow)), messages.size)
    flow, side, said = messages.flow[message], messages.side[message], messages.said[message]
    tcp, one_way, lost = messages.tcp[message], network.one_way[flow], network.lost[flow]
    bounds = np.array([(application.client_bytes, application.server_bytes) for application in APPLICATIONS.values()])
    bounds = np.where(messages.banner[message, None], BANNER_BYTES, bounds[messages.application[message], side])
    length = np.where(said, _between(random, bounds), 0)
    syn = messages.place[message] < -1
    # SYN and requests over UDP fail if they are lost or their answer is.
    asking = (side == CLIENT) & (syn | ~tcp)
    failing = np.where(asking, 1 - (1 - lost) ** 2, np.where(tcp & said, lost, 0))
    failures = np.minimum(random.geometric(1 - failing) - 1, LARGEST_FAILURES)
    timeout = np.where(syn, SECOND, 200 * MILLISECOND + 2 * one_way)
    gap = _uniform(random, network.gap[flow]).astype(np.int64)
    within = _sums_before(np.r_[gap[1:], 0], message)
    arriving = within + _delay(timeout, failures)

    # A message begins when the one before has arrived as a whole or, by the same side, on the clock of that side.
    span = np.maximum.reduceat(arriving, beginnings(message))
    place, m_one_way = messages.place, network.one_way[messages.flow]
    thinking = random.integers(50 * MICROSECOND, 500 * MICROSECOND, len(place))
    thinking[messages.place < -2] = 0
    pause = _uniform(random, network.gap[messages.flow]).astype(np.int64)
    pause[messages.said] = 2 * m_one_way[messages.said]
    begin = _sums_before(np.where(messages.answered, span + m_one_way + thinking, pause), messages.flow)[message]

    ends_message = np.r_[message[1:] != message[:-1], True]
    sequence = np.empty_like(length)
    order = np.argsort(2 * flow + side, kind="stable")
    sequence[order] = _sums_before((length + syn)[order], (2 * flow + side)[order])
    return _Packets(
        message=message,
        flow=flow,
        side=side,
        length=length,
        flags=np.where(said, ACK | PSH * ends_message, np.where(syn, SYN, 0) | np.where(asking, 0, ACK)),
        sequence=sequence,
        sequence_end=sequence + length + syn,
        failures=failures,
        timeout=timeout,
        begin=begin + within,
        arrival=begin + arriving + one_way,
        ends_message=ends_message,
    )


def _sums_before(values: Integers, group: Integers) -> Integers:
    """Sum of the values before each one in its group."""
    before = np.cumsum(values) - values
    return np.asarray(before - before[first_of_group(group)])


def _delay(timeout: Integers, failures: Integers) -> Integers:
    """From the first sending to the one after so many failures; each waits twice as long as the one before."""
    return timeout * (2**failures - 1)


def _see(random: np.random.Generator, count: int, network: _Networks, messages: _Messages, packets: _Packets) -> Rows:
    """Every sending that passes the capture, and the bare ACKs."""
    # What the client sends passes before it is lost, so all of it is seen; what the server sends, after.
    client = packets.side == CLIENT
    packet = np.repeat(np.arange(len(client)), np.where(client, packets.failures + 1, 1))
    earlier = np.where(client[packet], place_in_group(packet), packets.failures[packet])
    sent = packets.begin[packet] + _delay(packets.timeout[packet], earlier)

    # What is not answered at once: every second packet and the last one that comes are acknowledged.
    unanswered = (messages.tcp & messages.said & ~messages.answered)[packets.message]
    counted = unanswered & ((place_in_group(packets.message) % 2 == 1) | packets.ends_message)
    cause = np.lexsort((packets.arrival, packets.message))[counted]
    cause = cause[~client[cause] | (random.random(len(cause)) >= network.lost[packets.flow[cause]])]
    reaction = random.integers(20 * MICROSECOND, 100 * MICROSECOND, len(cause))
    zeros = np.zeros(len(cause), dtype=np.int64)

    flow = np.r_[packets.flow[packet], packets.flow[cause]]
    side = np.r_[packets.side[packet], 1 - packets.side[cause]]
    sent = np.r_[sent, packets.arrival[cause] + reaction]
    total = np.bincount(2 * packets.flow + packets.side, packets.length, 2 * count).astype(np.int64)
    # Both sides of TCP have sent their SYN, of one byte, when there is something to acknowledge.
    nothing_left = total[2 * flow + side][len(packet) :] + 1
    return Rows(
        flow=flow,
        side=side,
        time=sent + np.where(side == SERVER, network.one_way[flow], 0),
        length=np.r_[packets.length[packet], zeros],
        flags=np.r_[packets.flags[packet], zeros + ACK],
        sequence=np.r_[packets.sequence[packet], nothing_left],
        acknowledged=_acknowledged(packets, 2 * flow + side, sent),
        packet=np.r_[packet, zeros - 1],
        banner=np.r_[messages.banner[packets.message[packet]], zeros > 0],
        identification=random.integers(0, 1 << 16, len(flow)),
    )


def _acknowledged(packets: _Packets, receiver: Integers, sent: Integers) -> Integers:
    """Bytes without a gap that a side has of the other one when it sends, a side being 2 flow + side.

    They end where the first packet begins that is yet to come, the least sequence number of all later arrivals. So
    arrivals are sorted by side and time, and a running minimum goes through them backwards; numbers of later sides are
    made larger than all before, so that it starts afresh with each.
    """
    carrying = packets.sequence_end > packets.sequence
    side = (2 * packets.flow + 1 - packets.side)[carrying]
    sequence, sequence_end, arrival = (
        column[carrying] for column in (packets.sequence, packets.sequence_end, packets.arrival)
    )
    after_all_times = int(max(arrival.max(), sent.max())) + 1
    after_all_bytes = int(sequence_end.max()) + 1
    moment = side * after_all_times + arrival
    order = np.argsort(moment, kind="stable")
    moment, side, sequence = moment[order], side[order], sequence[order]
    begins = beginnings(side)
    everything = np.maximum.reduceat(sequence_end[order], begins)
    following = np.r_[sequence[1:], 0]
    following[np.r_[begins[1:], len(side)] - 1] = everything
    held = np.minimum.accumulate((side * after_all_bytes + following)[::-1])[::-1] - side * after_all_bytes
    last = np.searchsorted(moment, receiver * after_all_times + sent, side="right") - 1
    return np.where((last >= 0) & (side[last] == receiver), held[last], 0)
