"""Packets are gathered to flows, whatever tables they come in."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.packet_bytes import CLIENT, SECOND, SERVER, icmp, ipv4, ipv6, tcp, udp
from working_papers.data.packets import ICMP, ICMP6, UDP, Flow, PacketTable, parse_packets, split_flows

FIN, SYN, RST, ACK = 1, 2, 4, 16


def up(flags: int = ACK, data: bytes = b"", port: int = 1000) -> bytes:
    return ipv4(tcp(port, 443, data, flags=flags))


def down(flags: int = ACK, data: bytes = b"", port: int = 1000) -> bytes:
    return ipv4(tcp(443, port, data, flags=flags), source=SERVER, destination=CLIENT)


def table(*packets: tuple[float, bytes]) -> PacketTable:
    """Packets with times in seconds."""
    return parse_packets([(round(time * SECOND), packet) for time, packet in packets])


def times(flows: list[Flow]) -> list[list[float]]:
    return [[time / SECOND for time in flow.packets.time.tolist()] for flow in flows]


def test_both_directions_are_one_flow() -> None:
    packets = [(0, down(data=b"a")), (1, up()), (2, up(port=7)), (3, down(port=7)), (4, down())]
    first, second = split_flows([table(*packets)])
    assert times([first, second]) == [[0, 1, 4], [2, 3]]
    assert first.forward.tolist() == [True, False, True]
    assert second.forward.tolist() == [True, False]
    assert first.forward.dtype == np.bool_
    assert first.complete
    assert [first.packets.bytes_of(row) for row in range(3)] == [packets[row][1] for row in (0, 1, 4)]
    assert first.packets.source_port.tolist() == [443, 1000, 443]
    assert (first.packets.payload - first.packets.start).tolist() == [40, 40, 40]


def test_what_makes_packets_different_flows() -> None:
    packets = [
        up(),
        up(port=1001),
        ipv4(udp(1000, 443), UDP),
        ipv4(tcp(1000, 443), destination="192.168.7.8"),
        ipv4(icmp(), ICMP),
        ipv6(tcp(1000, 443), source="::10.0.0.1", destination="::192.168.7.9"),
        ipv6(icmp(), ICMP6),
        ipv4(tcp(443, 1000)),  # the ports changed places, the addresses did not
        ipv4(tcp(9, 9), source=CLIENT, destination=CLIENT),
    ]
    once = table(*enumerate(packets))
    flows = list(split_flows([once, once]))
    assert len(flows) == 9
    assert all(len(flow.packets) == 2 and flow.forward.all() for flow in flows)
    assert {flow.packets.bytes_of(0) for flow in flows} == set(packets)


@pytest.mark.parametrize("apart", [False, True])
def test_time_outs(apart: bool) -> None:
    def split(*at: float, **limits: float) -> list[tuple[list[float], bool]]:
        rows = [(time, up()) for time in at]
        tables = [table(row) for row in rows] if apart else [table(*rows)]
        flows = list(split_flows(tables, **limits))  # type: ignore[arg-type]
        return [(each, flow.complete) for each, flow in zip(times(flows), flows, strict=True)]

    assert split(0, 60, 120.5) == [([0, 60], True), ([120.5], True)]
    assert split(0, 2, 5, idle=2.5) == [([0, 2], True), ([5], True)]
    assert split(0, 50, 100, 101, active=100) == [([0, 50, 100], False), ([101], True)]
    assert split(0, 50, 200, active=100) == [([0, 50], True), ([200], True)]  # ended by itself before
    assert split(0, 1000, 5000, idle=math.inf, active=math.inf) == [([0, 1000, 5000], True)]
    assert split(10, 5, 8, 70) == [([5, 8, 10, 70], True)]  # out of order
    assert split(100, 30, 29) == [([100], True), ([29, 30], True)]


def test_an_older_packet_moves_the_beginning() -> None:
    assert times(list(split_flows([table((100, up()), (39.5, up()))]))) == [[100], [39.5]]
    assert times(list(split_flows([table((100, up()), (40, up()), (10, up()))]))) == [[10, 40, 100]]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("packets", "lengths"),
    [
        ([up(SYN), down(SYN | ACK), up(), up(FIN | ACK), down(FIN | ACK), up(), up(SYN)], [6, 1]),
        ([up(SYN), down(RST), up(SYN), down(RST)], [2, 2]),
        ([up(SYN), down(RST), down(SYN)], [2, 1]),
        ([up(SYN), up(SYN), down(SYN | ACK)], [3]),
        ([up(SYN), up(FIN | ACK), up(SYN)], [3]),  # one side only
        ([up(FIN), down(FIN), down(SYN | ACK), up()], [4]),
        ([up(FIN), down(FIN), up(SYN), up(SYN), down(FIN), up(SYN)], [2, 4]),
        ([down(FIN), up(FIN), up(SYN | RST)], [3]),
    ],
)
def test_connections_that_are_opened_anew(packets: list[bytes], lengths: list[int], apart: bool) -> None:
    rows = list(enumerate(packets))
    flows = list(split_flows([table(row) for row in rows] if apart else [table(*rows)]))
    assert [len(flow.packets) for flow in flows] == lengths
    assert all(flow.complete for flow in flows)
    for flow in flows:
        assert flow.forward[0]


def test_flags_of_other_protocols_mean_nothing() -> None:
    rows = [(time, ipv4(udp(1, 2, bytes([4] * 20 if time == 0 else [2] * 20)), UDP)) for time in range(3)]
    assert len(list(split_flows([table(*rows)]))) == 1


def test_packets_are_sorted_by_time_and_forward_is_the_first_of_them() -> None:
    (flow,) = split_flows([table((3, up(data=b"c"))), table((1, down(data=b"a")), (3, down(data=b"d")), (2, up()))])
    assert times([flow]) == [[1, 2, 3, 3]]
    assert flow.forward.tolist() == [True, False, False, True]
    assert [flow.packets.bytes_of(row)[40:] for row in range(4)] == [b"a", b"", b"c", b"d"]


def test_limits() -> None:
    rows = [(time, up(data=bytes([time]))) for time in range(5)]
    (flow,) = split_flows([table(*rows[:2]), table(*rows[2:])], max_packets=3)
    assert times([flow]) == [[0, 1, 2]]
    assert not flow.complete
    (flow,) = split_flows([table(*rows[:2]), table(*rows[2:])], max_packets=5)
    assert flow.complete
    rows = [(0, up(port=1)), (1, up(port=2)), (2, up(port=1)), (3, up(port=3)), (4, up(port=2))]
    flows = list(split_flows([table(*rows)], max_open=2))
    assert times(flows) == [[1], [0, 2], [3], [4]]
    assert [flow.complete for flow in flows] == [False, False, True, True]


def test_flows_are_yielded_when_they_end() -> None:
    taken = 0

    def tables() -> Iterator[PacketTable]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield table((100 * number, up(port=number + 1)), (100 * number + 1, down(port=number + 1)))

    flows = split_flows(tables())
    assert times([next(flows), next(flows)]) == [[0, 1], [100, 101]]
    assert taken < 6
    assert sum(1 for _ in flows) == 998


def test_a_packet_from_the_future_ends_no_other_flow() -> None:
    rows = [table((0, up()), (1e8, up(port=9))), table((1, up())), table((2, up()))]
    assert sorted(times(list(split_flows(rows)))) == [[0, 1, 2], [1e8]]


def test_a_flow_holds_its_own_bytes_only() -> None:
    large = table(*((number, up(port=number + 1, data=bytes(1000))) for number in range(50)))
    for flow in split_flows([large]):
        assert flow.packets.buffer.size == 1040 + 64
        assert not np.shares_memory(flow.packets.buffer, large.buffer)
        columns = [getattr(flow.packets, name) for name in ("start", "time", "source", "source_port")]
        assert all(column.base is None or column.base.nbytes < 100 for column in columns)


def test_bad_limits_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="idle is 0; expected more than 0 seconds"):
        split_flows([], idle=0)
    with pytest.raises(ValueError, match="active is nan; expected more than 0 seconds"):
        split_flows([], active=math.nan)
    with pytest.raises(ValueError, match="max_packets is 0; expected at least 1"):
        split_flows([], max_packets=0)
    with pytest.raises(ValueError, match="max_open is 0; expected at least 1"):
        split_flows([], max_open=0)
    assert list(split_flows([])) == []
    assert list(split_flows([parse_packets([])])) == []


@dataclass
class Plain:
    """A flow of the reference."""

    rows: list[int]
    first: int
    last: int
    closed: set[bool] = field(default_factory=set)
    reset: bool = False
    complete: bool = True


Packet = tuple[int, int, bool, int]  # time in seconds, port, whether up, flags


def plain(packets: list[Packet], idle: int, active: int, most: int | None, open_: int) -> list[tuple[list[int], bool]]:
    """Flows packet by packet: rows in the order of capture, and whether complete."""
    flows: OrderedDict[int, Plain] = OrderedDict()
    ended: list[Plain] = []
    for row, (time, port, ahead, flags) in enumerate(packets):
        flow = flows.get(port)
        if flow is not None:
            anew = flags & (SYN | ACK | RST) == SYN and (flow.reset or len(flow.closed) == 2)
            over = anew or time - flow.last > idle or flow.first - time > idle
            if over or time - flow.first > active:
                flow.complete &= over
                ended.append(flows.pop(port))
                flow = None
        if flow is None:
            if len(flows) == open_:
                _, evicted = flows.popitem(last=False)
                evicted.complete &= time - evicted.last > idle
                ended.append(evicted)
            flow = flows[port] = Plain([], time, time)
        flow.first, flow.last = min(flow.first, time), max(flow.last, time)
        flow.reset |= bool(flags & RST)
        flow.closed |= {ahead} if flags & FIN else set()
        if most is None or len(flow.rows) < most:
            flow.rows.append(row)
        else:
            flow.complete = False
        flows.move_to_end(port)
    return sorted(
        (sorted(flow.rows, key=lambda row: packets[row][0]), flow.complete) for flow in [*ended, *flows.values()]
    )


DRAWN = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 1, 4, 9, 30]),  # seconds after the packet before
        st.integers(0, 8),  # seconds that it comes late
        st.integers(1, 4),
        st.booleans(),
        st.sampled_from([ACK, ACK, ACK, SYN, SYN | ACK, FIN | ACK, RST]),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    drawn=DRAWN,
    cuts=st.lists(st.integers(0, 60), max_size=6),
    active=st.sampled_from([20, 1000]),
    most=st.sampled_from([None, 1, 3]),
    open_=st.sampled_from([1, 2, 3, 100]),
)
def test_flows_agree_with_plain_code(
    drawn: list[tuple[int, int, int, bool, int]], cuts: list[int], active: int, most: int | None, open_: int
) -> None:
    now, packets = 1000, []
    for step, late, port, ahead, flags in drawn:
        now += step
        packets.append((now - late * (open_ == 100), port, ahead, flags))  # which is idle longest follows the capture
    made = [
        (time, (up if ahead else down)(flags, row.to_bytes(2, "big"), port))
        for row, (time, port, ahead, flags) in enumerate(packets)
    ]
    bounds = [0, *sorted(min(cut, len(made)) for cut in cuts), len(made)]
    tables = [table(*made[begin:end]) for begin, end in itertools.pairwise(bounds)]
    found = []
    for flow in split_flows(tables, idle=8, active=active, max_packets=most, max_open=open_):
        rows = [int.from_bytes(flow.packets.bytes_of(row)[40:], "big") for row in range(len(flow.packets))]
        assert flow.packets.time.tolist() == [packets[row][0] * SECOND for row in rows]
        assert flow.forward.tolist() == [packets[row][2] == packets[rows[0]][2] for row in rows]
        found.append((rows, flow.complete))
    assert sorted(found) == plain(packets, 8, active, most, open_)
