"""Synthetic flows are valid packets, differ between classes as they say and in nothing else, and survive a capture."""

from __future__ import annotations

import struct
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from working_papers.data.packets import Flow, PacketTable, parse_packets, read_packets, split_flows
from working_papers.data.traffic import BYTE_CLASSES, CONDITIONS, LabelledFlows, make_flows, write_flows

COLUMNS = ("time", "version", "protocol", "source", "destination", "source_port", "destination_port")
LABEL = {name: label for label, name in enumerate(BYTE_CLASSES)}
UDP_CLASSES = (LABEL["DNS"], LABEL["tunnel"])
FAST, SLOW = CONDITIONS.index("fast"), CONDITIONS.index("slow")
MILLISECOND = 1_000_000
ZERO_SEED = 2


@dataclass(frozen=True)
class Seen:
    """A packet as the test itself reads it from its bytes."""

    time: int
    client: bool
    identification: int
    hops_left: int
    protocol: int
    addresses: tuple[int, int]
    ports: tuple[int, int]
    sequence: int
    acknowledged: int
    flags: int
    window: int
    payload: bytes


def read(flow: Flow) -> list[Seen]:
    packets = []
    for row in range(len(flow.packets)):
        data = flow.packets.bytes_of(row)
        first, _, length, identification, fragment, hops, protocol, _, source, destination = struct.unpack(
            ">BBHHHBBHII", data[:20]
        )
        assert (first, length, fragment) == (0x45, len(data), 0x4000)
        sequence = acknowledged = flags = window = 0
        if protocol == 6:
            ports = struct.unpack(">HH", data[20:24])
            sequence, acknowledged, offset, flags, window, _, urgent = struct.unpack(">IIBBHHH", data[24:40])
            assert (offset, urgent) == (0x50, 0)
            payload = data[40:]
        else:
            source_port, destination_port, udp_length, _ = struct.unpack(">HHHH", data[20:28])
            ports = (source_port, destination_port)
            assert protocol == 17 and udp_length == len(data) - 20
            payload = data[28:]
        packets.append(
            Seen(
                time=int(flow.packets.time[row]),
                client=source >> 24 == 10,
                identification=identification,
                hops_left=hops,
                protocol=protocol,
                addresses=(source, destination),
                ports=(ports[0], ports[1]),
                sequence=sequence,
                acknowledged=acknowledged,
                flags=flags,
                window=window,
                payload=payload,
            )
        )
    return packets


def ones_complement(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@cache
def undropped() -> LabelledFlows:
    return make_flows(640, seed=3, dropped=0.0)


@cache
def read_undropped() -> list[list[Seen]]:
    return [read(flow) for flow in undropped().flows]


def of_class(name: str, *, unique: bool = True) -> list[list[Seen]]:
    """Flows of a class; of a packet that was sent again only the first sending."""
    found = [
        packets for packets, label in zip(read_undropped(), undropped().labels, strict=True) if label == LABEL[name]
    ]
    assert len(found) == 80
    return [first_sendings(packets) for packets in found] if unique else found


def first_sendings(packets: list[Seen]) -> list[Seen]:
    met = set()
    kept = []
    for packet in packets:
        key = (packet.client, packet.sequence, packet.flags & 0x02, packet.payload)
        if not packet.payload or key not in met:
            kept.append(packet)
        met.add(key)
    return kept


def said(packets: list[Seen], *, client: bool) -> list[bytes]:
    return [packet.payload for packet in packets if packet.payload and packet.client == client]


def spread(numbers: list[int], least: int, most: int) -> None:
    """All numbers are in the range, and those at both of its ends occur."""
    assert least <= min(numbers) <= least + (most - least) * 0.15
    assert most >= max(numbers) >= most - (most - least) * 0.15


def test_checksums_are_valid() -> None:
    flows = make_flows(160, seed=1).flows
    for flow in flows:
        for row in range(len(flow.packets)):
            data = flow.packets.bytes_of(row)
            assert ones_complement(data[:20]) == 0xFFFF
            pseudo_header = data[12:20] + bytes([0, data[9]]) + struct.pack(">H", len(data) - 20)
            assert ones_complement(pseudo_header + data[20:]) == 0xFFFF
            assert data[9] == 6 or data[26:28] != b"\0\0"  # in UDP 0 means that there is none


def test_checksum_0_of_udp_is_sent_as_all_ones() -> None:
    # One packet in 65536 has it by chance; with the first seed one does. All ones never come otherwise.
    for seed in (ZERO_SEED, *range(60)):
        made = make_flows(10_000, seed=seed, classes=5, max_packets=2, dropped=0.0)
        checksums = np.concatenate(
            [
                flow.packets.gather(flow.packets.transport + 6, 2)
                for flow, label in zip(made.flows, made.labels, strict=True)
                if label == LABEL["DNS"]
            ]
        )
        assert checksums.any(axis=1).all()
        if (checksums == 255).all(axis=1).any():
            return
    raise AssertionError("no packet has it")


def test_table_is_what_parsing_the_bytes_gives() -> None:
    for flow in make_flows(48, seed=2).flows:
        table = flow.packets
        again = parse_packets([(int(table.time[row]), table.bytes_of(row)) for row in range(len(table))])
        assert_equal_tables(again, table)
        assert not table.buffer[-64:].any()


def assert_equal_tables(one: PacketTable, other: PacketTable) -> None:
    assert len(one) == len(other)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("end", "transport", "payload"):
        np.testing.assert_array_equal(getattr(one, name) - one.start, getattr(other, name) - other.start)
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert [one.bytes_of(row) for row in range(len(one))] == [other.bytes_of(row) for row in range(len(other))]


def test_flows_are_recovered_from_a_capture(tmp_path: Path) -> None:
    made = make_flows(320, seed=4)
    write_flows(tmp_path / "all.pcap", made.flows)
    tables = list(read_packets(tmp_path / "all.pcap", batch=500))
    times = np.concatenate([table.time for table in tables])
    assert (np.diff(times) >= 0).all() and len(times) == sum(len(flow.packets) for flow in made.flows)
    met = {endpoints(flow): flow for flow in split_flows(tables)}
    assert len(met) == len(made.flows)
    for flow in made.flows:
        again = met[endpoints(flow)]
        assert_equal_tables(again.packets, flow.packets)
        np.testing.assert_array_equal(again.forward, flow.forward)
        assert again.complete and flow.complete


def endpoints(flow: Flow) -> frozenset[tuple[int, bytes, int]]:
    table = flow.packets
    pairs = ((table.source, table.source_port), (table.destination, table.destination_port))
    return frozenset((int(table.protocol[0]), address[0].tobytes(), int(port[0])) for address, port in pairs)


def test_limit_of_packets_keeps_the_first_ones(tmp_path: Path) -> None:
    whole, cut = make_flows(160, seed=6), make_flows(160, seed=6, max_packets=5)
    np.testing.assert_array_equal(whole.labels, cut.labels)
    assert cut.flows[0].packets.buffer.nbytes < whole.flows[0].packets.buffer.nbytes / 2
    for long, short in zip(whole.flows, cut.flows, strict=True):
        assert len(short.packets) == min(5, len(long.packets))
        assert short.complete == (len(long.packets) <= 5)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(short.packets, name), getattr(long.packets, name)[:5])
        np.testing.assert_array_equal(short.forward, long.forward[:5])
        for one, other in zip(read(short), read(long)[:5], strict=True):
            assert len(one.payload) == len(other.payload)
            assert (one.sequence, one.acknowledged, one.flags) == (other.sequence, other.acknowledged, other.flags)
            assert (one.identification, one.hops_left) == (other.identification, other.hops_left)
    write_flows(tmp_path / "whole.pcap", whole.flows)
    complete = {
        endpoints(flow): flow.complete for flow in split_flows(read_packets(tmp_path / "whole.pcap"), max_packets=5)
    }
    assert all(complete[endpoints(flow)] == flow.complete for flow in cut.flows)


@pytest.mark.parametrize(("name", "version"), [("TLS a", 1), ("TLS b", 3)])
def test_tls(name: str, version: int) -> None:
    flows = of_class(name)
    for packets in flows:
        (hello,) = said(packets, client=True)
        assert hello[:3] == bytes([0x16, 3, version])
        answer = said(packets, client=False)
        assert all(len(part) == 1400 and part[:3] == b"\x17\x03\x03" for part in answer)
        assert len(set(answer)) == len(answer)
    spread([len(said(packets, client=True)[0]) for packets in flows], 200, 500)
    spread([len(said(packets, client=False)) for packets in flows], 3, 8)


@pytest.mark.parametrize("name", ["bulk", "bulk, small window"])
def test_bulk(name: str) -> None:
    flows = of_class(name)
    for packets in flows:
        assert not said(packets, client=True)
        assert {len(part) for part in said(packets, client=False)} == {1400}
    spread([len(said(packets, client=False)) for packets in flows], 10, 20)


def test_windows() -> None:
    for packets, label in zip(read_undropped(), undropped().labels, strict=True):
        if label not in UDP_CLASSES:
            window = 8192 if label == LABEL["bulk, small window"] else 65535
            assert {packet.window for packet in packets} == {window}


def test_udp() -> None:
    for name, exchanges, lengths in (("DNS", (1, 1), (30, 60, 80, 400)), ("tunnel", (6, 10), (150, 250, 150, 250))):
        flows = of_class(name)
        assert all(packet.protocol == 17 and packet.payload for packets in flows for packet in packets)
        for packets in flows:
            assert [packet.client for packet in packets] == [True, False] * (len(packets) // 2)
        spread([len(packets) // 2 for packets in flows], *exchanges)
        spread([len(part) for packets in flows for part in said(packets, client=True)], *lengths[:2])
        spread([len(part) for packets in flows for part in said(packets, client=False)], *lengths[2:])


def test_ssh() -> None:
    flows = of_class("SSH")
    for packets in flows:
        speakers = [packet.client for packet in sorted(packets, key=lambda packet: packet.time) if packet.payload]
        assert speakers == [False, True] * (len(speakers) // 2)
        for client in (False, True):
            banner, *rest = said(packets, client=client)
            assert banner.startswith(b"SSH-2.0-") and banner.endswith(b"\r\n") and 18 <= len(banner) <= 30
            assert banner[8:-2].isalpha()
            assert not any(part.startswith(b"SSH") for part in rest)
    rest = [part for packets in flows for client in (False, True) for part in said(packets, client=client)[1:]]
    spread([len(part) for part in rest], 36, 100)
    spread([len(said(packets, client=True)) for packets in flows], 4, 7)


def test_telemetry() -> None:
    flows = of_class("telemetry")
    for packets in flows:
        assert not said(packets, client=False)
        assert all(part.isdigit() for part in said(packets, client=True))
        assert all(packet.flags in (0x10, 0x12) for packet in packets if not packet.client)
    spread([len(part) for packets in flows for part in said(packets, client=True)], 8, 20)
    spread([len(said(packets, client=True)) for packets in flows], 6, 12)
    # One message a round trip: where nothing was lost, times between messages are that of SYN to SYN-ACK.
    for packets in of_class("telemetry", unique=False):
        round_trip = packets[1].time - packets[0].time
        times = [packet.time for packet in packets if packet.payload and packet.client]
        if len(times) == len({packet.sequence for packet in packets if packet.payload}) and not packets[1].client:
            np.testing.assert_allclose(np.diff(times), round_trip, rtol=1e-9)


def test_random_payload_is_random() -> None:
    data = b"".join(part for packets in of_class("bulk") for part in said(packets, client=False))
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_tcp_opens_with_a_handshake() -> None:
    for packets, label in zip(read_undropped(), undropped().labels, strict=True):
        if label in UDP_CLASSES:
            continue
        repeats = sum(packet.flags == 0x02 for packet in packets)
        opening = packets[repeats - 1 : repeats + 2]
        assert [(packet.client, packet.flags) for packet in opening] == [(True, 0x02), (False, 0x12), (True, 0x10)]
        for packet in packets[repeats + 2 :]:
            assert packet.flags == 0x10 or (packet.flags == 0x18 and packet.payload)
        assert not any(packet.flags & 0x05 for packet in packets)  # neither FIN nor RST


def test_numbers_of_tcp_agree_with_the_bytes() -> None:
    """Sequence numbers count bytes; acknowledged is what the sender can have without a gap, from what was captured."""
    bare = 0
    for packets, label in zip(read_undropped(), undropped().labels, strict=True):
        if label in UDP_CLASSES:
            continue
        initial = {
            client: next(p.sequence for p in packets if p.client == client and p.flags & 2) for client in (True, False)
        }
        streams: dict[bool, dict[int, bytes]] = {True: {}, False: {}}
        ends = {}
        for client in (True, False):
            expected: dict[int, bytes] = {}
            for packet in packets:
                if packet.client == client and packet.payload:
                    at = (packet.sequence - initial[client]) % 2**32
                    assert expected.setdefault(at, packet.payload) == packet.payload, "sent again means the same bytes"
            position = 1
            for at in sorted(expected):
                assert at == position, "no gaps and no overlaps"
                position += len(expected[at])
            ends[client] = position
            streams[client] = expected
        highest = {True: 0, False: 0}
        held: dict[bool, dict[int, int]] = {True: {0: 1}, False: {}}  # the client has sent SYN
        for packet in packets:
            if packet.flags == 0x02:
                assert packet.acknowledged == 0
                continue
            acknowledged = (packet.acknowledged - initial[not packet.client]) % 2**32
            assert highest[packet.client] <= acknowledged <= ends[not packet.client]
            highest[packet.client] = acknowledged
            position = 0
            while position in held[not packet.client]:
                position += held[not packet.client][position]
            # The capture is beside the client, who has what it saw of the server; the server may yet be missing some.
            assert acknowledged == position if packet.client else acknowledged <= position
            place = (packet.sequence - initial[packet.client]) % 2**32
            if packet.flags & 2 or packet.payload:
                held[packet.client][place] = len(packet.payload) or 1
            if not packet.payload and not packet.flags & 2:
                bare += 1
                assert (packet.sequence - initial[packet.client]) % 2**32 <= ends[packet.client]
    assert bare > 1000


def round_trips(flows: LabelledFlows) -> NDArray[np.float64]:
    """Milliseconds from the last SYN to SYN-ACK, or from the last request to its answer; flows of two conditions."""
    found = []
    for flow in flows.flows:
        packets = read(flow)
        answer = next(row for row, packet in enumerate(packets) if not packet.client)
        found.append((packets[answer].time - packets[answer - 1].time) / MILLISECOND)
    return np.array(found)


def test_conditions_have_their_round_trips() -> None:
    made = undropped()
    times = round_trips(made)
    for condition, least, most in ((FAST, 10, 40), (SLOW, 80, 200)):
        opened = (made.conditions == condition) & ~np.isin(made.labels, UDP_CLASSES)
        here = times[opened]
        assert here.min() >= least - 1e-3 and here.max() <= most + 1e-3
        # Log-uniform: the median is the geometric mean of the bounds.
        assert abs(np.log(np.median(here) / np.sqrt(least * most))) < 0.2
        udp = times[(made.conditions == condition) & np.isin(made.labels, UDP_CLASSES)]
        assert udp.min() >= least - 1e-3 and udp.max() <= most + 1


@pytest.mark.parametrize(("condition", "gaps_ms", "loss"), [(FAST, (0.1, 1.0), 0.005), (SLOW, (1.0, 8.0), 0.075)])
def test_conditions_have_their_gaps_and_losses(condition: int, gaps_ms: tuple[float, float], loss: float) -> None:
    """What the server sends comes after even gaps, or later by 1, 3, 7, ... times the time-out, 200 ms + round trip."""
    made = make_flows(800, seed=8, classes=4, dropped=0.0, condition=condition)
    gaps, failures = [], []
    for flow, label in zip(made.flows, made.labels, strict=True):
        if label not in (LABEL["bulk"], LABEL["bulk, small window"]):
            continue
        packets = read(flow)
        answer = next(row for row, packet in enumerate(packets) if not packet.client)
        round_trip = (packets[answer].time - packets[answer - 1].time) / MILLISECOND
        timeout = 200 + round_trip
        before, begun = round_trip, packets[answer + 1].time
        least, most = 0.05, 0.5  # time that the server takes to begin
        begin = packets[answer].sequence
        spoken = [packet for packet in packets if packet.payload]
        for packet in sorted(spoken, key=lambda packet: (packet.sequence - begin) % 2**32):
            since = (packet.time - begun) / MILLISECOND - before
            count = int(np.log2(since / timeout + 1) + 1e-9)
            gap = since - timeout * (2**count - 1)
            assert least - 1e-3 <= gap <= most + 1e-3
            before += gap
            failures.append(count)
            if (least, most) == gaps_ms:
                gaps.append(gap)
            least, most = gaps_ms
    spread([round(1000 * gap) for gap in gaps], round(1000 * gaps_ms[0]), round(1000 * gaps_ms[1]))
    assert abs(np.mean(gaps) - np.mean(gaps_ms)) < 0.05 * gaps_ms[1]
    lost = np.sum(failures) / (np.sum(failures) + len(failures))
    assert abs(lost - loss) < 4 * np.sqrt(loss / len(failures))
    assert condition == FAST or max(failures) > 1


def test_requests_are_repeated_after_a_time_out() -> None:
    made = make_flows(2000, seed=9, dropped=0.0, condition=SLOW)
    waits: dict[int, list[float]] = {0x02: [], 0x18: [], 0: []}
    repeats = sent = 0
    for flow, label in zip(made.flows, made.labels, strict=True):
        packets = read(flow)
        answer = next(row for row, packet in enumerate(packets) if not packet.client)
        waits[packets[0].flags] += list(np.diff([packet.time for packet in packets[:answer]]) / MILLISECOND)
        if label == LABEL["SSH"]:
            spoken = [packet for packet in packets if packet.client and packet.payload]
            sent += len({packet.sequence for packet in spoken})
            repeats += len(spoken) - len({packet.sequence for packet in spoken})
            assert len({packet.identification for packet in spoken}) > len(spoken) - 2
    # SYN is lost, or SYN-ACK is: twice the loss, after 1 s, then 2 s.
    assert len(waits[0x02]) > 150 and {round(wait, 6) for wait in waits[0x02]} <= {1000.0 * 2**k for k in range(5)}
    assert len(waits[0]) > 40
    assert min(waits[0]) >= 280 and 280 <= np.median(waits[0]) <= 400
    assert abs(repeats / sent - 0.08) < 0.02  # 1 / (1 - loss) - 1


def test_share_of_dropped_packets() -> None:
    count = 4000
    whole = sum(len(flow.packets) for flow in make_flows(count, seed=10, dropped=0.0).flows)
    for dropped in (0.1, 0.5):
        made = make_flows(count, seed=10, dropped=dropped)
        share = 1 - sum(len(flow.packets) for flow in made.flows) / whole
        assert abs(share - dropped) < 0.01 + 0.03 * (dropped == 0.5)  # short flows keep a packet
    nearly_all = make_flows(count, seed=10, dropped=0.99, max_packets=5)
    assert min(len(flow.packets) for flow in nearly_all.flows) == 1
    assert all(flow.complete for flow in nearly_all.flows)


def test_packets_are_in_the_order_of_time_and_say_whose_they_are() -> None:
    made = make_flows(400, seed=11)
    begun_by_server = 0
    for flow in made.flows:
        assert (np.diff(flow.packets.time) >= 0).all()
        client = flow.packets.source[:, 12] == 10
        np.testing.assert_array_equal(flow.forward, client == client[0])
        begun_by_server += not client[0]
        assert (
            len({endpoints(Flow(flow.packets.take(np.array([row])), flow.forward)) for row in range(len(client))}) == 1
        )
    assert 0 < begun_by_server < 100  # the capture missed the first packet


def test_classes_and_conditions_come_in_equal_parts() -> None:
    made = make_flows(1600, seed=12, max_packets=1)
    assert set(Counter(zip(made.labels.tolist(), made.conditions.tolist(), strict=True)).values()) == {100}
    assert made.labels.dtype == made.conditions.dtype == np.int64
    assert (np.diff(made.labels) != 1).mean() > 0.5  # not one class after the other
    odd = make_flows(21, seed=12, classes=5, max_packets=1)
    assert sorted(Counter(odd.labels.tolist()).values()) == [4, 4, 4, 4, 5]
    assert set(make_flows(40, seed=1, condition=SLOW, max_packets=1).conditions) == {SLOW}
    assert make_flows(40, seed=1, condition=FAST, max_packets=1).conditions.dtype == np.int64


def header_fields(made: LabelledFlows) -> dict[str, NDArray[np.int64]]:
    """Of each flow: port and address of the server, port of the client and hops left, once for each direction seen."""
    rows: dict[str, list[int]] = {"port": [], "address": [], "client_port": [], "hops": []}
    for flow in made.flows:
        first = read(Flow(flow.packets.take(slice(0, 1)), flow.forward[:1]))[0]
        ports, addresses = (
            (first.ports, first.addresses) if first.client else (first.ports[::-1], first.addresses[::-1])
        )
        assert addresses[0] >> 24 == 10
        rows["port"].append(ports[1])
        rows["client_port"].append(ports[0])
        rows["address"].append(addresses[1])
        rows["hops"].append(first.hops_left)
    return {name: np.array(values) for name, values in rows.items()}


def independent(values: NDArray[np.int64], labels: NDArray[np.int64]) -> bool:
    """Chi-square test of independence: within 5 standard deviations of what is expected."""
    _, columns = np.unique(values, return_inverse=True)
    table = np.zeros((labels.max() + 1, columns.max() + 1))
    np.add.at(table, (labels, columns), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return bool(((table - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom))


def test_endpoints_tell_nothing_of_the_class() -> None:
    made = make_flows(8000, seed=13, max_packets=1)
    fields = header_fields(made)
    assert set(fields["port"]) == {53, 80, 443, 8443}
    assert set(fields["hops"]) == {*range(44, 64), *range(108, 128)}
    assert fields["client_port"].min() > 1023 and fields["client_port"].max() < 65536
    first_byte = fields["address"] >> 24
    assert not {0, 10, 127, *range(224, 256)} & set(first_byte) and len(set(first_byte)) > 200
    for values in (fields["port"], fields["hops"], first_byte >> 3, fields["client_port"] >> 11):
        assert independent(values, made.labels)
        assert independent(values, made.conditions)
    assert not independent(made.labels // 2, made.labels)  # the test can fail
    assert len({endpoints(flow) for flow in made.flows}) == len(made.flows)


def test_endpoints_may_be_tied_to_the_class() -> None:
    networks = np.array([(20 + label) << 16 | 5 << 8 | label for label in range(8)])
    ports, hops = np.arange(8) + 9000, np.arange(8) + 3
    made = make_flows(
        800, seed=14, server_networks=networks, ports=ports, time_to_live=hops, max_packets=2, dropped=0.0
    )
    fields = header_fields(made)
    np.testing.assert_array_equal(fields["address"] >> 8, networks[made.labels])
    assert len(set(fields["address"] & 0xFF)) > 100
    np.testing.assert_array_equal(fields["port"], ports[made.labels])
    np.testing.assert_array_equal(-fields["hops"] % 64, hops[made.labels])
    for flow, label in zip(made.flows, made.labels, strict=True):
        assert all(-packet.hops_left % 64 == hops[label] for packet in read(flow))


def test_ties_may_leave_a_choice() -> None:
    every = np.tile(np.array([[80, 443, 9000]]), (3, 1))
    made = make_flows(3000, seed=15, classes=3, ports=every, time_to_live=every // 400, max_packets=1)
    fields = header_fields(made)
    assert set(fields["port"]) == {80, 443, 9000} and set(-fields["hops"] % 64) == {0, 1, 22}
    assert independent(fields["port"], made.labels)


def test_seed_decides_everything() -> None:
    one, same, other = (make_flows(64, seed=seed) for seed in (16, 16, 17))
    np.testing.assert_array_equal(one.labels, same.labels)
    np.testing.assert_array_equal(one.conditions, same.conditions)
    np.testing.assert_array_equal(one.flows[0].packets.buffer, same.flows[0].packets.buffer)
    for here, there in zip(one.flows, same.flows, strict=True):
        assert_equal_tables(here.packets, there.packets)
    assert one.flows[0].packets.buffer[:1000].tobytes() != other.flows[0].packets.buffer[:1000].tobytes()
    assert (one.labels != other.labels).any()


def test_flows_start_within_an_hour() -> None:
    starts = np.array([flow.packets.time[0] for flow in make_flows(500, seed=18, dropped=0.0, max_packets=1).flows])
    span = (starts.max() - starts.min()) / 1e9
    assert 3500 < span < 3600
    assert len(set(starts.tolist())) == 500


@pytest.mark.parametrize("classes", range(1, 9))
def test_any_number_of_flows_and_classes(classes: int) -> None:
    for count in (1, 2, 7):
        made = make_flows(count, seed=19, classes=classes, max_packets=3)
        assert len(made.flows) == count and set(made.labels) <= set(range(classes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0; expected an integer of at least 1"),
        ({"count": 2.5}, r"count is 2\.5; expected an integer"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"classes": 0}, "classes is 0; expected an integer from 1 to 8"),
        ({"classes": 9}, "classes is 9; expected an integer from 1 to 8"),
        ({"dropped": 1.0}, r"dropped is 1\.0; expected a share from 0 to below 1"),
        ({"dropped": -0.1}, r"dropped is -0\.1; expected a share"),
        ({"dropped": float("nan")}, "dropped is nan; expected a share"),
        ({"condition": 2}, "condition is 2; expected an integer from 0 to 1"),
        ({"max_packets": 0}, "max_packets is 0; expected an integer of at least 1"),
        ({"ports": np.arange(1, 8)}, r"ports has shape \(7,\); expected \(8,\) or \(8, k\)"),
        ({"ports": np.ones((8, 0), dtype=int)}, r"ports has shape \(8, 0\); expected"),
        ({"ports": np.zeros(8, dtype=int)}, "ports holds 0; expected ports from 1 to 65535"),
        ({"ports": np.full(8, 80.0)}, "ports has dtype float64; expected integers"),
        ({"time_to_live": np.full(8, 64)}, "time_to_live holds 64; expected hops from 0 to 63"),
        ({"time_to_live": np.ones(8, dtype=int), "classes": 3}, r"time_to_live has shape \(8,\); expected \(3,\)"),
        ({"server_networks": np.arange(8)}, "server_networks holds 0; expected addresses without last byte from 65536"),
        ({"server_networks": np.full(8, 224 << 16)}, "server_networks holds 14680064; expected"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_flows(**{"count": 8, "seed": 0, **arguments})


def test_thousands_of_flows_take_seconds() -> None:
    begin = time.process_time()
    made = make_flows(6000, seed=20)
    assert time.process_time() - begin < 5
    assert len(made.flows) == 6000
