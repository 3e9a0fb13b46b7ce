"""From packets to tokens: header fields as 16-bit words, burst by burst, without addresses and ports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from working_papers.data.packets import ICMP, ICMP6, TCP, UDP, Flow, PacketTable
from working_papers.papers.netfound.method.bursts import Interleave, split_bursts
from working_papers.papers.netfound.method.flow_tokens import FlowBatch, FlowTokens, Integers, ranges

IP_WORDS = 5
FIELD_WORDS = {TCP: 7, UDP: 1, ICMP: 2}
"""Words of the transport header, by protocol; those of the IP header come before them."""

ADDRESS_WORDS = 6
RESERVED_IDS = 64
"""Rows of the embedding table beyond the words: padding, CLS, MASK, the rest unused."""

ACK_FLAG = 0x10


class FlowTokenizer:
    """Cuts packets along protocol fields into 16-bit tokens and groups them to bursts and flows.

    A field shorter than 16 bits is a token of its own, a longer one several. IP: header length in bytes, type of
    service, total length, flags, time to live. TCP: flags, window, sequence number (2), acknowledgement number (2),
    urgent pointer. UDP: length. ICMP: type, code. Addresses, ports, checksums and options never enter.

    IPv6, as in the released extraction: header length 40, traffic class, payload length + 40, flags 0, hop limit.
    ICMPv6, which that extraction refuses, is taken like ICMP, with the protocol number of ICMP.

    Sequence and acknowledgement numbers count from the first of their side, as the released extraction has them: raw
    ones are random and nothing can be learnt of them. Where the flow's first packet already acknowledges something,
    that is where the other side counts from. Without an ACK flag the number is 0.

    Args:
        max_bursts: first bursts that are kept of a flow.
        max_packets: first packets that are kept of a burst.
        payload_words: words of the payload behind the header fields; the paper's version has 6, the released one 0.
        gap: seconds that split a burst, see `split_bursts`.
        interleave: how bursts of both directions relate, see `split_bursts`.
        relative_sequence: False takes sequence and acknowledgement numbers as they are.
        log_gaps: log(1 + milliseconds) instead of milliseconds between bursts, which have a long tail.
        addresses: also emit addresses (of IPv6 the last four bytes) and ports, 6 words; netFound never does, this is
            the control that shows why.
        vocabulary: number of ids; below 65536 words are hashed to as many.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        max_bursts: int = 12,
        max_packets: int = 6,
        payload_words: int = 0,
        *,
        gap: float = 0.010,
        interleave: Interleave = "time",
        relative_sequence: bool = True,
        log_gaps: bool = False,
        addresses: bool = False,
        vocabulary: int = 65536,
    ) -> None:
        for name, value, least, most in (
            ("max_bursts", max_bursts, 1, None),
            ("max_packets", max_packets, 1, None),
            ("payload_words", payload_words, 0, None),
            ("vocabulary", vocabulary, 1, 65536),
        ):
            if value < least or (most is not None and value > most):
                raise ValueError(
                    f"{name} is {value}; expected at least {least}" + (f", at most {most}" if most else "")
                )
        split_bursts(np.zeros(0, np.int64), np.zeros(0, np.bool_), gap, interleave)  # names a bad gap or rule at once
        self.max_bursts, self.max_packets, self.payload_words = max_bursts, max_packets, payload_words
        self.gap, self.interleave, self.relative_sequence = gap, interleave, relative_sequence
        self.log_gaps, self.addresses, self.vocabulary = log_gaps, addresses, vocabulary

    @property
    def cls_id(self) -> int:
        """Id of the token that begins every burst: 65537."""
        return self.vocabulary + 1

    @property
    def mask_id(self) -> int:
        """Id that stands for a masked token: 65538."""
        return self.vocabulary + 2

    @property
    def table_size(self) -> int:
        """Rows of the embedding table: 65600, as the special ids lie beyond the words."""
        return self.vocabulary + RESERVED_IDS

    @property
    def max_length(self) -> int:
        """Tokens of the longest burst, CLS included: 73, or 109 with six words of payload."""
        extra = self.payload_words + ADDRESS_WORDS * self.addresses
        return 1 + self.max_packets * (IP_WORDS + max(FIELD_WORDS.values()) + extra)

    def encode(self, flow: Flow) -> FlowTokens:
        """One flow; many at once are much faster (`encode_many`)."""
        return self.encode_many([flow])

    def encode_many(self, flows: Sequence[Flow]) -> FlowTokens:
        """Flows, with numpy over all their packets.

        Args:
            flows: as `split_flows` or `make_flows` give them; those that share a buffer are not copied.

        Returns:
            As many tokenised flows, in the same order.

        Raises:
            ValueError: a flow has no packets, or a protocol other than TCP, UDP and ICMP.
        """
        sizes = np.array([len(flow.packets) for flow in flows], dtype=np.int64)
        if len(sizes) and sizes.min() < 1:
            raise ValueError(f"flow {int(sizes.argmin())} has no packets; expected at least one")
        forward = np.concatenate([flow.forward for flow in flows]) if len(flows) else np.zeros(0, np.bool_)
        table = _behind_one_another([flow.packets for flow in flows])
        return self.encode_packets(table, np.repeat(np.arange(len(flows)), sizes), forward)

    def encode_packets(self, packets: PacketTable, flows: Integers, forward: NDArray[np.bool_]) -> FlowTokens:
        """Packets of many flows in one table.

        Args:
            packets: in any order.
            flows: number of each packet's flow, from 0 with none left out, int64 (n,).
            forward: whether a packet goes the way of its flow's first one, bool (n,).

        Returns:
            The tokenised flows in the order of their numbers.

        Raises:
            ValueError: a number of a flow is missing, a protocol is none of TCP, UDP and ICMP, or a shape is wrong.
        """
        flows, forward = np.asarray(flows, dtype=np.int64), np.asarray(forward, dtype=np.bool_)
        for name, column in (("flows", flows), ("forward", forward)):
            if column.shape != (len(packets),):
                raise ValueError(f"{name} has shape {column.shape}; expected one entry a packet, ({len(packets)},)")
        packets_of = np.bincount(flows) if len(flows) else np.zeros(0, np.int64)
        if len(flows) and (flows.min() < 0 or packets_of.min() < 1):
            raise ValueError(f"flows leaves out number {int(packets_of.argmin())}; expected all numbers from 0 on")
        protocol = np.where(packets.protocol == ICMP6, ICMP, packets.protocol).astype(np.int64)
        unknown = protocol[~np.isin(protocol, list(FIELD_WORDS))]
        if len(unknown):
            raise ValueError(f"packets hold protocol {unknown[0]}; expected TCP (6), UDP (17) or ICMP (1, 58)")

        time = packets.time - (packets.time.min() if len(packets) else 0)
        bursts = split_bursts(time, forward, self.gap, self.interleave, flows)
        order = np.lexsort((time, bursts))
        burst, flow = bursts[order], flows[order]
        begins = np.flatnonzero(np.diff(burst, prepend=-1))  # a row a burst; bursts of a flow lie together
        place = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
        flow_of_burst = flow[begins]
        flow_begins = np.flatnonzero(np.diff(flow_of_burst, prepend=-1))
        bursts_of = np.diff(flow_begins, append=len(begins))
        kept_burst = np.arange(len(begins)) - np.repeat(flow_begins, bursts_of) < self.max_bursts
        kept = (place < self.max_packets) & kept_burst[burst]
        gaps = _since_the_one_before(time[order][begins], forward[order][begins], flow_of_burst)

        rows = order[kept]
        words, lengths, size = self._words(packets, rows, protocol[rows], flows, forward)
        counts = np.bincount(burst[kept], minlength=len(begins))[kept_burst]
        last = np.cumsum(counts) - 1
        first_of_flow = np.cumsum(packets_of) - packets_of
        by_flow = np.lexsort((time, flows))
        return FlowTokens(
            words=words,
            word_ends=np.cumsum(lengths)[last] if len(last) else last,
            burst_ends=np.cumsum(np.minimum(bursts_of, self.max_bursts)),
            forward=forward[order][begins][kept_burst],
            sizes=np.bincount(burst[kept], size, len(begins))[kept_burst].astype(np.int64),
            counts=counts.astype(np.int64),
            gaps=np.rint(gaps[kept_burst] / 1000).astype(np.int64),
            protocol=protocol[by_flow][first_of_flow],
            duration=(time[by_flow][np.cumsum(packets_of) - 1] - time[by_flow][first_of_flow]) // 1000,
        )

    def collate(self, flows: FlowTokens | Sequence[FlowTokens]) -> FlowBatch:
        """Pad flows to one batch, as long as its longest burst and as wide as its longest flow.

        Args:
            flows: columns of many flows (`FlowTokens.take` picks some), or a list of such.

        Raises:
            ValueError: no flows at all.
        """
        columns = flows if isinstance(flows, FlowTokens) else FlowTokens.join(flows)
        if not len(columns):
            raise ValueError("flows is empty; expected at least one flow")
        bursts, lengths = columns.bursts, columns.lengths
        count, most, longest = len(columns), int(bursts.max()), 1 + int(lengths.max())
        cell = ranges(np.arange(count) * most, bursts)  # of each burst, in the flattened (N, B)
        tokens = np.zeros((count * most, longest), dtype=np.int64)
        tokens[cell, 0] = self.cls_id
        tokens.reshape(-1)[ranges(cell * longest + 1, lengths)] = self.ids(columns.words)
        milliseconds = columns.gaps / 1000
        metadata = np.zeros((count * most, 4), dtype=np.float32)
        metadata[cell] = np.stack(
            [
                np.where(columns.forward, 1, -1),
                columns.sizes / 1000,
                columns.counts,
                np.log1p(milliseconds) if self.log_gaps else milliseconds,
            ],
            axis=1,
        )
        ids = torch.from_numpy(tokens.reshape(count, most, longest))
        return FlowBatch(
            ids,
            ids != 0,
            ids[:, :, 0] != 0,
            torch.from_numpy(metadata.reshape(count, most, 4)),
            torch.from_numpy(columns.protocol.astype(np.int64)),
        )

    def ids(self, words: NDArray[np.uint16]) -> Integers:
        """Ids of words, from 1 to `vocabulary`: word + 1, or a hash."""
        if self.vocabulary == 65536:
            return words.astype(np.int64) + 1
        # An odd factor permutes the 16-bit words and spreads neighbours; the upper part of it is then the hash.
        return (words.astype(np.int64) * 40503 % 65536) * self.vocabulary // 65536 + 1

    def _words(
        self, packets: PacketTable, rows: Integers, protocol: Integers, flows: Integers, forward: NDArray[np.bool_]
    ) -> tuple[NDArray[np.uint16], Integers, Integers]:
        """Words of some packets one after the other, how many each has, and the packets' sizes."""
        chosen = packets.take(rows)
        ip = _ip_words(chosen)
        extra = self._extra_words(chosen)
        fields = np.vectorize(FIELD_WORDS.__getitem__, otypes=[np.int64])
        kinds, which = np.unique(protocol, return_inverse=True)
        lengths = (IP_WORDS + extra.shape[1] + fields(kinds))[which] if len(kinds) else np.zeros(0, np.int64)
        begin = np.cumsum(lengths) - lengths
        words = np.empty(int(lengths.sum()), dtype=np.uint16)
        for number, kind in enumerate(kinds.tolist()):
            here = np.flatnonzero(which == number)
            head = chosen.gather(chosen.transport[here], 20).astype(np.int64)
            if kind == TCP:
                bases = self._bases(packets, flows, forward, rows[here])
                field = _tcp_words(head, *bases)
            elif kind == UDP:
                field = _word(head, 4)[:, None]
            else:
                field = head[:, :2]
            whole = np.concatenate([ip[here], field, extra[here]], axis=1)
            words[begin[here][:, None] + np.arange(whole.shape[1])] = whole
        return words, lengths, ip[:, 2]

    def _extra_words(self, packets: PacketTable) -> Integers:
        """Payload, and what is withheld unless `addresses` asks for it."""
        parts = []
        if self.payload_words:
            width = 2 * self.payload_words
            left = np.maximum(packets.end - packets.payload, 0)
            data = np.where(np.arange(width) < left[:, None], packets.gather(packets.payload, width), 0)
            parts.append(data.reshape(-1, self.payload_words, 2).astype(np.int64) @ np.array([256, 1]))
        if self.addresses:
            both = np.concatenate([packets.source[:, 12:], packets.destination[:, 12:]], axis=1)
            parts.append(both.reshape(-1, 4, 2).astype(np.int64) @ np.array([256, 1]))
            parts.append(np.stack([packets.source_port, packets.destination_port], axis=1).astype(np.int64))
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(packets), 0), dtype=np.int64)

    def _bases(
        self, packets: PacketTable, flows: Integers, forward: NDArray[np.bool_], rows: Integers
    ) -> tuple[Integers, Integers]:
        """Where the sequence and acknowledgement numbers of some packets count from."""
        if not self.relative_sequence:
            none = np.zeros(len(rows), dtype=np.int64)
            return none, none
        # The first packet of each flow and direction, over all packets and not just those that are kept.
        side = 2 * flows + ~forward
        by_side = np.lexsort((packets.time, side))
        first = by_side[np.flatnonzero(np.diff(side[by_side], prepend=-1))]
        head = packets.gather(packets.transport[first], 20).astype(np.int64)
        base = np.zeros(2 * (int(flows.max()) + 1), dtype=np.int64)
        base[side[first]] = _number(head, 4)
        # The other side, where the flow's first packet acknowledges something already.
        acknowledges = forward[first] & (head[:, 13] & ACK_FLAG != 0)
        base[side[first][acknowledges] + 1] = _number(head, 8)[acknowledges]
        return base[side[rows]], base[side[rows] ^ 1]


def _behind_one_another(tables: Sequence[PacketTable]) -> PacketTable:
    """The packets of all tables; each buffer is copied once, as a whole, and one that all share not at all."""
    if len(tables) < 2:
        return tables[0] if tables else PacketTable.join([])
    buffers = {id(table.buffer): table.buffer for table in tables}
    begin = dict(zip(buffers, np.cumsum([0, *map(len, buffers.values())])[:-1].tolist(), strict=True))
    shift = np.repeat([begin[id(table.buffer)] for table in tables], [len(table) for table in tables])
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in PacketTable.__dataclass_fields__
        if name != "buffer"
    }
    for name in ("start", "end", "transport", "payload"):
        columns[name] = columns[name] + shift
    buffer = tables[0].buffer if len(buffers) == 1 else np.concatenate(list(buffers.values()))
    return PacketTable(buffer=buffer, **columns)


def _since_the_one_before(times: Integers, forward: NDArray[np.bool_], flows: Integers) -> Integers:
    """From burst to burst of the same flow and direction; 0 for the first of each."""
    order = np.lexsort((times, forward, flows))
    gaps = np.diff(times[order], prepend=0)
    same = np.zeros(len(times), dtype=np.bool_)
    same[1:] = (np.diff(flows[order]) == 0) & (forward[order][1:] == forward[order][:-1])
    result = np.empty_like(gaps)
    result[order] = np.where(same, gaps, 0)
    return result


def _word(head: Integers, at: int) -> Integers:
    return head[:, at] << 8 | head[:, at + 1]


def _number(head: Integers, at: int) -> Integers:
    return _word(head, at) << 16 | _word(head, at + 2)


def _ip_words(packets: PacketTable) -> Integers:
    """Header length, type of service, total length, flags, time to live, (n, 5)."""
    head = packets.gather(packets.start, 20).astype(np.int64)
    four = np.stack([(head[:, 0] & 15) * 4, head[:, 1], _word(head, 2), head[:, 6] >> 5, head[:, 8]], axis=1)
    if (packets.version == 4).all():
        return four
    traffic_class = (head[:, 0] & 15) << 4 | head[:, 1] >> 4
    total = np.minimum(_word(head, 4) + 40, 65535)
    fixed = np.zeros_like(total)
    six = np.stack([fixed + 40, traffic_class, total, fixed, head[:, 7]], axis=1)
    return np.where((packets.version == 6)[:, None], six, four)


def _tcp_words(head: Integers, sequence_base: Integers, acknowledgement_base: Integers) -> Integers:
    """Flags, window, sequence number, acknowledgement number, urgent pointer, (n, 7)."""
    sequence = (_number(head, 4) - sequence_base) & 0xFFFFFFFF
    acknowledgement = (_number(head, 8) - acknowledgement_base) & 0xFFFFFFFF
    acknowledgement = np.where(head[:, 13] & ACK_FLAG, acknowledgement, 0)
    return np.stack(
        [
            head[:, 13],
            _word(head, 14),
            sequence >> 16,
            sequence & 0xFFFF,
            acknowledgement >> 16,
            acknowledgement & 0xFFFF,
            _word(head, 18),
        ],
        axis=1,
    )
