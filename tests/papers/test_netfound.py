"""netFound: tokens field by field, bursts, the hierarchy's locality, the four losses, .arrow files, the study."""

import ipaddress
import itertools
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.data.packets import Flow, PacketTable, parse_packets, read_packets, split_flows
from working_papers.data.traffic import make_flows, write_flows
from working_papers.nn.processes import launch
from working_papers.papers.netfound import (
    ArrowFlows,
    AttentivePooling,
    CorruptedFlows,
    FlatLayer,
    FlowBatch,
    FlowClassifier,
    FlowEmbedding,
    FlowPretraining,
    FlowTokenizer,
    FlowTokens,
    HierarchicalLayer,
    NetFoundEncoder,
    TransformerLayer,
    attention_pairs,
    corrupt,
    read_arrow,
    split_bursts,
    stable_then_decay,
    write_arrow,
)
from working_papers.papers.netfound.judging import (
    BagOfTokens,
    few_of_each,
    macro_f1,
    probe_accuracy,
    statistics,
    summaries,
    with_noise,
)
from working_papers.papers.netfound.method.model import rotate
from working_papers.papers.netfound.study import flows as prepare_flows
from working_papers.papers.netfound.study import pretrain_and_judge
from working_papers.papers.netfound.tasks import arrow_files, labelled_files, make_tasks
from working_papers.papers.netfound.training import Batches, Size, fine_tune, pretrain
from working_papers.testing import assert_gradients_reach_parameters, assert_state_dict_round_trip

MS = 1_000_000


def ipv4(
    protocol: int, transport: bytes, *, tos: int = 0, flags: int = 2, ttl: int = 64, options: bytes = b""
) -> bytes:
    length = 20 + len(options)
    head = struct.pack(">BBHHHBBH", 0x40 | length // 4, tos, length + len(transport), 7, flags << 13, ttl, protocol, 0)
    return head + bytes([10, 0, 0, 1, 93, 184, 216, 34]) + options + transport


def ipv6(protocol: int, transport: bytes, *, traffic_class: int = 0, hops: int = 64) -> bytes:
    head = struct.pack(">IHBB", 6 << 28 | traffic_class << 20 | 0x12345, len(transport), protocol, hops)
    return head + bytes(range(32)) + transport


def tcp(
    sequence: int = 0, ack: int = 0, flags: int = 0x10, window: int = 512, urgent: int = 0, payload: bytes = b""
) -> bytes:
    return struct.pack(">HHIIBBHHH", 1234, 443, sequence, ack, 5 << 4, flags, window, 0xBEEF, urgent) + payload


def udp(payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", 1234, 53, 8 + len(payload), 0xBEEF) + payload


def icmp(kind: int = 8, code: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">BBHI", kind, code, 0xBEEF, 99) + payload


def flow_of(packets: list[bytes], forward: list[bool] | None = None, times: list[int] | None = None) -> Flow:
    times = [index * MS for index in range(len(packets))] if times is None else times
    table = parse_packets(list(zip(times, packets, strict=True)))
    assert len(table) == len(packets)
    return Flow(table, np.array([True] * len(packets) if forward is None else forward))


def artificial(count: int = 40, seed: int = 0, **options: Any) -> FlowTokens:
    return FlowTokenizer(**options).encode_many(make_flows(count, seed=seed).flows)


def batch_of(flows: int = 6, bursts: int = 5, length: int = 7, seed: int = 0, vocabulary: int = 40) -> FlowBatch:
    """Random flows of different numbers of bursts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, bursts + 1, (flows,), generator=generator)
    counts[0] = bursts
    burst_mask = torch.arange(bursts) < counts[:, None]
    lengths = torch.randint(2, length + 1, (flows, bursts), generator=generator)
    lengths[0, 0] = length
    token_mask = (torch.arange(length) < lengths[..., None]) & burst_mask[..., None]
    tokens = torch.randint(1, vocabulary + 1, token_mask.shape, generator=generator)
    tokens[:, :, 0] = vocabulary + 1
    metadata = torch.rand(flows, bursts, 4, generator=generator)
    metadata[..., 0] = 2 * (metadata[..., 0] > 0.5).float() - 1
    return FlowBatch(
        tokens * token_mask,
        token_mask,
        burst_mask,
        metadata * burst_mask[..., None],
        torch.tensor([6, 17, 1]).repeat(flows)[:flows],
    )


def small_encoder(seed: int = 0, layers: int = 2, **options: Any) -> NetFoundEncoder:
    torch.manual_seed(seed)
    settings = {"dropout": 0.0, "table_size": 104, "metadata_hidden": 8, "init_std": 0.2, **options}
    return NetFoundEncoder(16, layers, 2, 24, **settings)


# Tokens


def test_words_of_tcp_are_its_fields() -> None:
    packet = ipv4(6, tcp(0x01020304, 0x0A0B0C0D, 0x18, 8192, 77, b"hello"), tos=16, ttl=57)
    tokens = FlowTokenizer(relative_sequence=False).encode(flow_of([packet]))
    expected = [20, 16, 45, 2, 57, 0x18, 8192, 0x0102, 0x0304, 0x0A0B, 0x0C0D, 77]
    assert tokens.words.tolist() == expected
    assert (tokens.sizes.tolist(), tokens.counts.tolist(), tokens.gaps.tolist()) == ([45], [1], [0])
    batch = FlowTokenizer(relative_sequence=False).collate(tokens)
    assert batch.tokens[0, 0].tolist() == [65537, *(word + 1 for word in expected)]
    assert batch.metadata[0, 0].tolist() == pytest.approx([1, 0.045, 1, 0])
    assert batch.protocol.tolist() == [6]


@pytest.mark.parametrize(
    ("packet", "words", "protocol"),
    [
        (ipv4(17, udp(b"12345"), flags=0, ttl=3), [20, 0, 33, 0, 3, 13], 17),
        (ipv4(1, icmp(3, 1)), [20, 0, 28, 2, 64, 3, 1], 1),
        (ipv4(17, udp(), options=bytes(8)), [28, 0, 36, 2, 64, 8], 17),
        (ipv6(17, udp(b"ab"), traffic_class=0xB8, hops=9), [40, 0xB8, 50, 0, 9, 10], 17),
        (ipv6(58, icmp(128, 0)), [40, 0, 48, 0, 64, 128, 0], 1),
        (ipv6(6, tcp(flags=2)), [40, 0, 60, 0, 64, 2, 512, 0, 0, 0, 0, 0], 6),
    ],
    ids=["udp", "icmp", "ip options", "udp over ipv6", "icmpv6", "tcp over ipv6"],
)
def test_words_of_other_protocols(packet: bytes, words: list[int], protocol: int) -> None:
    tokens = FlowTokenizer().encode(flow_of([packet]))
    assert tokens.words.tolist() == words
    assert tokens.protocol.tolist() == [protocol]


def test_payload_words_are_padded_with_zeros() -> None:
    flow = flow_of([ipv4(17, udp(b"\x01\x02\x03")), ipv4(17, udp())])
    words = FlowTokenizer(payload_words=6).encode(flow).words
    assert words[6:12].tolist() == [0x0102, 0x0300, 0, 0, 0, 0]
    assert words[18:].tolist() == [0] * 6
    assert FlowTokenizer(payload_words=6).max_length == 109
    assert FlowTokenizer().max_length == 73


def test_sequence_numbers_count_from_the_first_of_their_side() -> None:
    client, server, wide = 0xFFFFFFF0, 0x80000000, 1 << 32
    packets = [
        ipv4(6, tcp(client, 0, 2)),
        ipv4(6, tcp(client, 0, 2)),  # sent again: the other side is still unknown
        ipv4(6, tcp(server, (client + 1) % wide, 0x12)),
        ipv4(6, tcp((client + 1) % wide, server + 1, 0x10)),
        ipv4(6, tcp((client + 0x20) % wide, server + 0x10005, 0x18)),
    ]
    words = FlowTokenizer().encode(flow_of(packets, [True, True, False, True, True])).words.reshape(5, 12)
    rows = {tuple(row[7:11].tolist()) for row in words}
    assert rows == {(0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 1), (0, 0x20, 1, 5)}
    # Where the capture begins in the middle, the first packet says where the other side is.
    packets = [ipv4(6, tcp(1000, 5000)), ipv4(6, tcp(5007, 1000))]
    words = FlowTokenizer().encode(flow_of(packets, [True, False])).words.reshape(2, 12)
    assert words[:, 7:11].tolist() == [[0, 0, 0, 0], [0, 7, 0, 0]]
    packets = [ipv4(6, tcp(1000, 5000)), ipv4(6, tcp(1003, 5009))]
    assert FlowTokenizer().encode(flow_of(packets)).words.reshape(2, 12)[1, 7:11].tolist() == [0, 3, 0, 9]


def with_other_endpoints(flow: Flow, seed: int) -> Flow:
    """The same packets with addresses and ports overwritten, in bytes and in columns."""
    random = np.random.default_rng(seed)
    table = flow.packets
    packets = []
    for row in range(len(table)):
        data = bytearray(table.bytes_of(row))
        data[12:20] = random.bytes(8)
        port = int(table.transport[row] - table.start[row])
        data[port : port + 4] = random.bytes(4)
        packets.append((int(table.time[row]), bytes(data)))
    return Flow(parse_packets(packets), flow.forward)


def test_addresses_and_ports_never_enter() -> None:
    flows = make_flows(16, seed=1).flows
    tokenizer, control = FlowTokenizer(payload_words=2), FlowTokenizer(payload_words=2, addresses=True)
    before = tokenizer.encode_many(flows)
    for seed in (1, 2):
        changed = [with_other_endpoints(flow, seed) for flow in flows]
        assert np.array_equal(tokenizer.encode_many(changed).words, before.words)
        assert not np.array_equal(control.encode_many(changed).words, control.encode_many(flows).words)


def test_the_control_has_addresses_and_ports() -> None:
    words = FlowTokenizer(addresses=True).encode(flow_of([ipv4(17, udp())])).words
    source, destination = (int(ipaddress.ip_address(each)) for each in ("10.0.0.1", "93.184.216.34"))
    expected = [source >> 16, source & 0xFFFF, destination >> 16, destination & 0xFFFF, 1234, 53]
    assert words[6:].tolist() == expected


def test_many_flows_are_what_each_is_alone(tmp_path: Path) -> None:
    made = make_flows(30, seed=3).flows
    for tokenizer in (FlowTokenizer(), FlowTokenizer(3, 2, 4, interleave="direction", addresses=True)):
        together = tokenizer.encode_many(made)
        alone = FlowTokens.join([tokenizer.encode(flow) for flow in made])
        for name in ("words", "word_ends", "burst_ends", "forward", "sizes", "counts", "gaps", "protocol", "duration"):
            np.testing.assert_array_equal(getattr(together, name), getattr(alone, name), err_msg=name)
    # Flows of a capture have buffers of their own, and come in the order in which they end.
    write_flows(tmp_path / "capture.pcap", made)
    read = list(split_flows(read_packets(tmp_path / "capture.pcap")))
    assert len(read) == len(made)
    first = {flow.packets.bytes_of(0): number for number, flow in enumerate(made)}
    order = [first[flow.packets.bytes_of(0)] for flow in read]
    np.testing.assert_array_equal(
        FlowTokenizer().encode_many(read).words, FlowTokenizer().encode_many(made).take(order).words
    )


def test_a_table_with_numbers_of_flows_may_be_in_any_order() -> None:
    flows = make_flows(10, seed=4).flows
    table = PacketTable.join([flow.packets for flow in flows])
    number = np.repeat(np.arange(10), [len(flow.packets) for flow in flows])
    forward = np.concatenate([flow.forward for flow in flows])
    order = np.random.default_rng(0).permutation(len(table))
    expected = FlowTokenizer().encode_many(flows)
    shuffled = FlowTokenizer().encode_packets(table.take(order), number[order], forward[order])
    np.testing.assert_array_equal(shuffled.burst_ends, expected.burst_ends)
    np.testing.assert_array_equal(shuffled.gaps, expected.gaps)
    np.testing.assert_array_equal(shuffled.words, expected.words)


def test_limits_keep_the_first_bursts_and_packets() -> None:
    times = [0, 1, 2, 3, 50, 100, 101]
    flow = flow_of([ipv4(17, udp(bytes(index))) for index in range(7)], times=[time * MS for time in times])
    tokens = FlowTokenizer(max_bursts=2, max_packets=3).encode(flow)
    assert tokens.words.reshape(-1, 6)[:, 5].tolist() == [8, 9, 10, 12]
    assert tokens.counts.tolist() == [3, 1]
    assert tokens.sizes.tolist() == [28 + 29 + 30, 32]
    assert tokens.gaps.tolist() == [0, 50_000]
    assert tokens.duration.tolist() == [101_000]
    assert tokens.bursts.tolist() == [2]


def test_ids() -> None:
    tokenizer = FlowTokenizer()
    words = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(tokenizer.ids(words), np.arange(65536) + 1)
    assert (tokenizer.cls_id, tokenizer.mask_id, tokenizer.table_size) == (65537, 65538, 65600)
    hashed = FlowTokenizer(vocabulary=4096).ids(words)
    assert np.array_equal(np.bincount(hashed), [0, *[16] * 4096])
    assert len(np.unique(hashed[:1600])) > 1500  # neighbours hardly ever share an id
    uneven = FlowTokenizer(vocabulary=100).ids(words)
    assert set(np.bincount(uneven)[1:]) == {655, 656}


def test_collate_pads_and_take_picks() -> None:
    tokens = artificial(20, max_bursts=8, max_packets=4)
    tokenizer = FlowTokenizer(8, 4)
    batch = tokenizer.collate(tokens)
    assert batch.tokens.shape == (20, tokens.bursts.max(), 1 + tokens.lengths.max())
    assert batch.burst_mask.sum(dim=1).tolist() == tokens.bursts.tolist()
    assert batch.token_mask[batch.burst_mask].sum(dim=1).tolist() == (tokens.lengths + 1).tolist()
    assert not batch.tokens[~batch.token_mask].any()
    assert not batch.metadata[~batch.burst_mask].any()
    rows = [7, 3, 3, -1]
    few = tokenizer.collate(tokens.take(rows))
    for got, expected in zip(few, batch.take(torch.tensor(rows)), strict=True):
        torch.testing.assert_close(got, expected)
    pieces = tokenizer.collate([tokens.take([row]) for row in rows])
    torch.testing.assert_close(pieces.tokens, few.tokens)
    logs = FlowTokenizer(8, 4, log_gaps=True).collate(tokens).metadata
    torch.testing.assert_close(logs[..., 3], batch.metadata[..., 3].log1p())
    torch.testing.assert_close(logs[..., :3], batch.metadata[..., :3])


def test_no_flows_and_labels() -> None:
    empty = FlowTokenizer().encode_many([])
    assert (len(empty), len(empty.words), len(empty.forward)) == (0, 0, 0)
    tokens = artificial(3).with_labels(["a", "b", "a"])
    assert tokens.labels is not None
    joined = FlowTokens.join([tokens, tokens.take([1])])
    assert joined.labels is not None
    assert joined.labels.tolist() == ["a", "b", "a", "b"]
    assert FlowTokens.join([tokens, artificial(2)]).labels is None


# Bursts


def test_bursts_are_split_in_each_direction_alone() -> None:
    times = np.array([0, 1, 2, 3, 13, 14, 25]) * MS
    forward = np.array([True, False, True, False, False, True, True])
    # Backward: 1, 3, 13 (a gap of exactly 10 ms does not split). Forward: 0, 2; then 14 after 12; then 25 after 11.
    assert split_bursts(times, forward).tolist() == [0, 1, 0, 1, 1, 2, 3]
    assert split_bursts(times, forward, interleave="direction").tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert split_bursts(times, forward, gap=1.0).tolist() == [0, 1, 0, 1, 1, 0, 0]


def test_bursts_that_begin_at_once_are_forward_first() -> None:
    assert split_bursts(np.array([5, 5]), np.array([False, True])).tolist() == [1, 0]


@pytest.mark.parametrize("interleave", ["time", "direction"])
def test_bursts_against_a_loop(interleave: Any) -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        times = np.sort(random.choice(np.arange(80) * MS, 14, replace=False))
        forward = random.random(14) < 0.5
        last: dict[bool, tuple[int, int]] = {}
        expected: list[int] = []
        for index, (time, ahead) in enumerate(zip(times.tolist(), forward.tolist(), strict=True)):
            new = ahead not in last or time - last[ahead][0] > 10 * MS
            new = new or (interleave == "direction" and forward[index - 1] != ahead)
            number = max(expected, default=-1) + 1 if new else last[ahead][1]
            last[ahead] = (time, number)
            expected.append(number)
        assert split_bursts(times, forward, interleave=interleave).tolist() == expected
        order = random.permutation(14)
        shuffled = split_bursts(times[order], forward[order], interleave=interleave)
        assert shuffled.tolist() == np.array(expected)[order].tolist()


def test_gaps_are_between_bursts_of_the_same_direction() -> None:
    times, forward = [0, 1, 30, 35, 90], [True, False, True, False, False]
    flow = flow_of([ipv4(17, udp())] * 5, forward, [time * MS + time for time in times])
    tokens = FlowTokenizer().encode(flow)
    assert tokens.forward.tolist() == forward
    assert tokens.gaps.tolist() == [0, 0, 30_000, 34_000, 55_000]


# The encoder


def changed(batch: FlowBatch, flow: int, burst: int, token: int) -> FlowBatch:
    tokens = batch.tokens.clone()
    tokens[flow, burst, token] = tokens[flow, burst, token] % 40 + 1
    return batch._replace(tokens=tokens)


def moved(first: Tensor, second: Tensor) -> Tensor:
    """Which tokens of (N, B, S, h) differ."""
    return (first - second).abs().amax(dim=-1) > 1e-7


def test_a_token_reaches_other_bursts_through_their_summaries_only() -> None:
    encoder = small_encoder(layers=1).double().eval()
    batch = batch_of()
    other = changed(batch, 0, 2, 1)
    x, y = encoder.embedding(batch), encoder.embedding(other)
    layer = encoder.layers[0]
    assert isinstance(layer, HierarchicalLayer)
    mask = batch.token_mask.flatten(0, 1)
    inner = moved(*(layer.inner(each.flatten(0, 1), mask).unflatten(0, (6, 5)) for each in (x, y)))
    assert inner[0, 2].any()
    inner[0, 2] = False
    assert not inner.any()
    whole = moved(*(layer(each, batch.token_mask, batch.burst_mask) for each in (x, y)))
    assert whole[0, :, 0].all()
    assert not whole[0, [0, 1, 3, 4], 1:].any()
    assert not whole[1:].any()
    # With a second layer all tokens of the flow may know of it.
    deep = small_encoder(layers=2).double().eval()
    assert torch.equal(moved(deep(batch), deep(other))[0], batch.token_mask[0])


def test_what_is_padding_has_no_influence() -> None:
    encoder, batch = small_encoder().double().eval(), batch_of()
    out = encoder(batch)
    assert not out[~batch.token_mask].any()
    noise = batch_of(seed=9)
    filled = FlowBatch(
        torch.where(batch.token_mask, batch.tokens, noise.tokens + 1),
        batch.token_mask,
        batch.burst_mask,
        torch.where(batch.burst_mask[..., None], batch.metadata, torch.full_like(batch.metadata, 1e3)),
        batch.protocol,
    )
    torch.testing.assert_close(encoder(filled), out, rtol=0, atol=0)
    wider = FlowBatch(
        nn.functional.pad(batch.tokens, (0, 3, 0, 2)),
        nn.functional.pad(batch.token_mask, (0, 3, 0, 2)),
        nn.functional.pad(batch.burst_mask, (0, 2)),
        nn.functional.pad(batch.metadata, (0, 0, 0, 2)),
        batch.protocol,
    )
    torch.testing.assert_close(encoder(wider)[:, :5, :7], out)
    for row in range(6):
        torch.testing.assert_close(
            encoder(batch.take(torch.tensor([row])))[0],
            out[row, : int(batch.burst_mask[row].sum()), : int(batch.token_mask[row].sum(1).max())],
        )


def test_a_single_burst_sees_itself_alone() -> None:
    encoder, batch = small_encoder(layers=1).double().eval(), batch_of(bursts=1)
    x = encoder.embedding(batch)
    layer = encoder.layers[0]
    assert isinstance(layer, HierarchicalLayer)
    inner = layer.inner(x.flatten(0, 1), batch.token_mask.flatten(0, 1))
    alone = torch.cat([layer.outer(inner[row, :1][None], torch.ones(1, 1, dtype=torch.bool)) for row in range(6)])
    torch.testing.assert_close(encoder(batch)[:, 0, 0], alone[:, 0])


def test_an_empty_sequence_gives_zeros_and_no_nan() -> None:
    layer = TransformerLayer(8, 2).double()
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    out = layer(x, mask)
    assert not out[1].any()
    out.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert not x.grad[~mask].any()


def by_the_book(layer: TransformerLayer, x: Tensor) -> Tensor:
    """One unpadded sequence (L, h), with attention written out."""
    q, k, v = layer.query_key_value(x).chunk(3, dim=-1)
    d = x.shape[-1] // layer.heads
    heads = []
    for head in range(layer.heads):
        part = slice(head * d, (head + 1) * d)
        turned = []
        for values in (q[:, part], k[:, part]):
            pairs = torch.complex(values[:, : d // 2], values[:, d // 2 :])
            turns = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(d // 2) * 2 / d)
            turned.append(pairs * torch.polar(torch.ones_like(turns), turns))
        scores = (turned[0][:, None] * turned[1].conj()[None]).sum(-1).real / math.sqrt(d)
        heads.append(scores.softmax(dim=-1).to(v.dtype) @ v[:, part])
    x = nn.functional.layer_norm(x + layer.out(torch.cat(heads, dim=-1)), (x.shape[-1],))
    value, gate = layer.gated(nn.functional.layer_norm(x, (x.shape[-1],))).chunk(2, dim=-1)
    out: Tensor = x + layer.down(nn.functional.gelu(value) * gate)
    return out


def test_a_transformer_layer_is_that_of_the_book() -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(12, 2, 10, dropout=0.0).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    out = layer(x, mask)
    for row, length in ((0, 9), (1, 5)):
        torch.testing.assert_close(out[row, :length], by_the_book(layer, x[row, :length]), rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_distance_alone() -> None:
    x = torch.randn(1, 1, 8, dtype=torch.float64).expand(6, 1, 8)
    y = torch.randn(1, 1, 8, dtype=torch.float64).expand(6, 1, 8)
    positions = torch.arange(6)
    products = rotate(x, positions)[:, 0] @ rotate(y, positions)[:, 0].T
    for offset in range(-5, 6):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-6, atol=1e-6)
    assert float(products.std()) > 0.01


def test_embedding_is_a_linear_map_of_three_parts() -> None:
    embedding, batch = FlowEmbedding(6, 104, 5, dropout=0.0).double(), batch_of()
    word = embedding.words(batch.tokens)
    metadata = embedding.metadata(batch.metadata.double())[:, :, None].expand_as(word)
    protocol = embedding.protocols(batch.protocol)[:, None, None].expand_as(word)
    expected = embedding.norm(embedding.compress(torch.cat([word, metadata, protocol], dim=-1)))
    torch.testing.assert_close(embedding(batch), expected)


def test_any_encoder_serves_as_a_level() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            weights = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
            mean: Tensor = torch.einsum("ml,mlh->mh", weights, x)
            return mean[:, None] * mask[..., None]

    layer = HierarchicalLayer(Mean(), Mean())
    x = torch.arange(12.0).reshape(1, 2, 3, 2)
    token_mask = torch.tensor([[[True, True, False], [True, True, True]]])
    out = layer(x, token_mask, torch.ones(1, 2, dtype=torch.bool))
    assert out[0, :, 1].tolist() == [[1, 2], [8, 9]]
    assert out[0, :, 0].tolist() == [[4.5, 5.5], [4.5, 5.5]]


def test_flat_layer_is_one_sequence() -> None:
    inner = TransformerLayer(8, 2, dropout=0.0)
    x, mask = torch.randn(2, 3, 4, 8), torch.ones(2, 3, 4, dtype=torch.bool)
    out = FlatLayer(inner)(x, mask, mask[:, :, 0])
    torch.testing.assert_close(out, inner(x.reshape(2, 12, 8), mask.reshape(2, 12)).reshape(x.shape))
    encoder, batch = small_encoder(layers=1, layer="flat").double().eval(), batch_of()
    assert torch.equal(moved(encoder(batch), encoder(changed(batch, 0, 2, 1)))[0], batch.token_mask[0])


def test_attention_cost() -> None:
    assert attention_pairs(12, 73) == (64_092, 767_376)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = FlowClassifier(small_encoder(), 3, init_std=0.2).to(dtype).eval()
    logits = model(batch_of())
    assert logits.dtype == dtype
    exact = FlowClassifier(small_encoder(), 3, init_std=0.2).double()
    exact.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits.double(), exact.eval()(batch_of()), rtol=0.1, atol=0.05)


def test_mixed_precision() -> None:
    model = FlowPretraining(small_encoder(), 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch_of(), torch.Generator().manual_seed(0))
    plain = model(batch_of(), torch.Generator().manual_seed(0))
    for half, full in zip(loss, plain, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0.05, atol=0.02)


def test_gradients_are_numerical_ones() -> None:
    torch.manual_seed(0)
    layer = HierarchicalLayer.of_transformers(4, 1, 4, 0.0).double()
    batch = batch_of(2, 3, 3)

    def function(x: Tensor) -> Tensor:
        out: Tensor = layer(x, batch.token_mask, batch.burst_mask)
        return out

    x = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))
    pooling = AttentivePooling(4).double()
    assert torch.autograd.gradcheck(lambda c: pooling(c, batch.burst_mask), (x[:, :, 0].detach().requires_grad_(),))


def test_gradients_reach_all_parameters_and_states_round_trip() -> None:
    batch = batch_of(12)
    assert_gradients_reach_parameters(FlowClassifier(small_encoder(), 3, init_std=0.3), batch)
    assert_gradients_reach_parameters(FlowPretraining(small_encoder(), 40), batch)
    assert_state_dict_round_trip(small_encoder(), small_encoder(seed=1), batch)


def test_sizes() -> None:
    with torch.device("meta"):
        small, base = NetFoundEncoder.of_size("small"), NetFoundEncoder()
    assert (small.dim, len(small.layers), base.dim, len(base.layers)) == (512, 4, 768, 12)
    assert base.embedding.words.weight.shape == (65600, 768)
    layer = base.layers[0]
    assert isinstance(layer, HierarchicalLayer) and isinstance(layer.inner, TransformerLayer)
    assert layer.inner.down.weight.shape == (768, 1152)
    assert not hasattr(base, "positions")
    plain = TransformerLayer(8, 2, norm_after_attention=False)
    assert isinstance(plain.attention_norm, nn.Identity)


def test_first_weights() -> None:
    torch.manual_seed(0)
    encoder = NetFoundEncoder(64, 1, 2, table_size=400)
    assert float(encoder.embedding.words.weight[1:].detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not encoder.embedding.words.weight[0].any()
    assert not encoder.embedding.compress.bias.any()


def test_pooling_is_a_bounded_mean() -> None:
    pooling, batch = AttentivePooling(5).double(), batch_of()
    summaries_of = torch.randn(6, 5, 5, dtype=torch.float64)
    pooled = pooling(summaries_of, batch.burst_mask)
    for row in range(6):
        c = summaries_of[row][batch.burst_mask[row]]
        weights = torch.tanh(pooling.score(pooling.project(c))[:, 0]).softmax(dim=0)
        torch.testing.assert_close(pooled[row], weights @ c)


def test_a_frozen_encoder_has_no_gradient_and_no_dropout() -> None:
    encoder = small_encoder(dropout=0.5)
    model = FlowClassifier(encoder, 3, freeze=True, dropout=0.0).train()
    batch = batch_of()
    torch.testing.assert_close(model(batch), model(batch), rtol=0, atol=0)
    model(batch).square().sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("encoder"))
    tuned = FlowClassifier(small_encoder(dropout=0.5), 3)
    assert tuned.encoder.training
    tuned(batch).sum().backward()
    assert tuned.encoder.embedding.compress.weight.grad is not None


# Pre-training


def corrupted(batch: FlowBatch, seed: int = 0, **rates: float) -> CorruptedFlows:
    return corrupt(batch, 40, generator=torch.Generator().manual_seed(seed), **rates)


def test_rates_of_corruption() -> None:
    batch = batch_of(3000, 6, 6)
    hidden = corrupted(batch)
    words = (batch.tokens > 0) & (batch.tokens <= 40)
    asked = hidden.token_labels != -100
    free = words & ~hidden.swapped_bursts[..., None]
    assert not asked[~free].any()
    assert float(asked[free].double().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(hidden.token_labels[asked], batch.tokens[asked])
    seen = hidden.batch.tokens[asked]
    assert float((seen == 42).double().mean()) == pytest.approx(0.8, abs=0.01)
    kept = float((seen == batch.tokens[asked]).double().mean())
    assert kept == pytest.approx(0.1 + 0.1 / 40, abs=0.01)
    others = seen[(seen != 42) & (seen != batch.tokens[asked])]
    assert sorted(others.unique().tolist()) == list(range(1, 41))
    untouched = ~asked & ~hidden.swapped_bursts[..., None]
    assert torch.equal(hidden.batch.tokens[untouched], batch.tokens[untouched])
    assert float(hidden.swapped.double().mean()) == pytest.approx(0.5, abs=0.03)
    long = batch.burst_mask.sum(dim=1) > 3
    assert not hidden.masked_bursts[~long].any()
    assert not (hidden.masked_bursts & (hidden.swapped_bursts | ~batch.burst_mask)).any()
    candidates = batch.burst_mask & long[:, None] & ~hidden.swapped_bursts
    assert float(hidden.masked_bursts[candidates].double().mean()) == pytest.approx(0.3, abs=0.02)
    assert not hidden.batch.metadata[hidden.masked_bursts].any()
    assert torch.equal(hidden.batch.metadata[~hidden.masked_bursts], batch.metadata[~hidden.masked_bursts])
    assert torch.equal(hidden.metadata, batch.metadata)


def test_swapped_bursts_come_from_other_flows() -> None:
    count = 50
    tokens = torch.arange(1, count + 1)[:, None, None].expand(count, 4, 3)
    mask = torch.ones(count, 4, 3, dtype=torch.bool)
    mask[::2, :, 2] = False
    batch = FlowBatch(tokens * mask, mask, mask[:, :, 0], torch.rand(count, 4, 4), torch.full((count,), 6))
    hidden = corrupt(batch, 100, swap_rate=1.0, mask_rate=1.0, generator=torch.Generator().manual_seed(0))
    assert hidden.swapped_bursts.sum(dim=1).tolist() == [1] * count
    assert (hidden.token_labels[hidden.swapped_bursts] == -100).all()
    inside = hidden.batch.tokens[hidden.swapped_bursts]
    own = torch.arange(1, count + 1)
    assert (inside[:, 0] != own).all()
    assert (inside[:, 0] == inside[:, 1]).all()
    assert len(inside[:, 0].unique()) > 20
    # The mask of the tokens comes along, metadata stay.
    assert torch.equal(hidden.batch.token_mask[hidden.swapped_bursts][:, 2], inside[:, 0] % 2 == 0)
    kept = hidden.swapped_bursts
    assert torch.equal(hidden.batch.metadata[kept], batch.metadata[kept])
    alone = corrupt(batch.take(torch.tensor([0])), 100, swap_rate=1.0)
    assert alone.swapped.tolist() == [0]


def test_rates_of_zero_change_nothing_and_cost_nothing() -> None:
    batch = batch_of()
    hidden = corrupted(batch, mask_rate=0, swap_rate=0, metadata_rate=0)
    for got, expected in zip(hidden.batch, batch, strict=True):
        assert torch.equal(got, expected)
    loss = FlowPretraining(small_encoder(), 40, mask_rate=0, swap_rate=0, metadata_rate=0)(batch)
    assert (loss.tokens.item(), loss.metadata.item(), loss.direction.item()) == (0, 0, 0)
    loss.total.backward()


def test_losses_are_those_of_the_book() -> None:
    model = FlowPretraining(small_encoder(), 40, weights=(1, 2, 0.4, 3), gap_scale=0.5).double()
    hidden = corrupted(batch_of(12))
    encoded = model.encoder(hidden.batch)
    loss = model.losses(hidden, encoded)
    asked = hidden.token_labels != -100
    log_p = model.token_head(encoded).log_softmax(dim=-1)
    picked = log_p.gather(-1, hidden.token_labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(loss.tokens, -picked[asked].mean())
    pooled = model.pooling(encoded[:, :, 0], hidden.batch.burst_mask)
    log_p = model.swap_head(pooled).log_softmax(dim=-1)
    torch.testing.assert_close(loss.swap, -log_p[torch.arange(12), hidden.swapped].mean())
    where = hidden.masked_bursts
    assert where.any()
    target = hidden.metadata[..., [3, 1, 2]] * torch.tensor([0.5, 1, 1])
    difference = (model.metadata_head(encoded[:, :, 0]) - target).abs()
    torch.testing.assert_close(loss.metadata, difference[where].mean())
    log_p = model.direction_head(encoded[:, :, 0]).log_softmax(dim=-1)
    forward = (hidden.metadata[..., 0] > 0).long()
    torch.testing.assert_close(loss.direction, -log_p.gather(-1, forward[..., None])[..., 0][where].mean())
    total = loss.tokens + 2 * loss.swap + 0.4 * loss.metadata + 3 * loss.direction
    torch.testing.assert_close(loss.total, total)


def test_only_masked_bursts_count_for_the_metadata_loss() -> None:
    model = FlowPretraining(small_encoder(), 40).double()
    hidden = corrupted(batch_of(12))
    encoded = model.encoder(hidden.batch).detach().requires_grad_()
    loss = model.losses(hidden, encoded)
    gradient = torch.autograd.grad(loss.metadata + loss.direction, encoded)[0]
    assert gradient[:, :, 0][hidden.masked_bursts].abs().amax(dim=-1).min() > 0
    assert not gradient[:, :, 0][~hidden.masked_bursts].any()
    assert not gradient[:, :, 1:].any()
    tokens = torch.autograd.grad(model.losses(hidden, encoded).tokens, encoded)[0]
    assert torch.equal(tokens.abs().amax(dim=-1) > 0, hidden.token_labels != -100)


def test_pretraining_learns() -> None:
    torch.manual_seed(0)
    model = FlowPretraining(small_encoder(layers=1), 40, swap_rate=0)
    batch, generator = batch_of(16, 3, 4), torch.Generator().manual_seed(0)
    batch = batch._replace(tokens=(torch.arange(1, 13).reshape(3, 4) * batch.token_mask))  # the place tells the word
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = model(batch, generator)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append([float(each.detach()) for each in loss])
    assert np.mean(losses[-10:], axis=0)[1] < 0.5 * np.mean(losses[:10], axis=0)[1]


def test_schedule() -> None:
    factors = [stable_then_decay(step, 20, 4, 8) for step in range(21)]
    assert factors[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert factors[4:13] == [1] * 9
    assert all(a > b for a, b in itertools.pairwise(factors[12:]))
    assert factors[16] == pytest.approx(0.5)
    assert factors[20] == 0
    assert stable_then_decay(1, 10, 0, 0) == 1


# Wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowTokenizer(0), "max_bursts is 0"),
        (lambda: FlowTokenizer(max_packets=0), "max_packets is 0"),
        (lambda: FlowTokenizer(payload_words=-1), "payload_words is -1"),
        (lambda: FlowTokenizer(vocabulary=65537), "vocabulary is 65537"),
        (lambda: FlowTokenizer(gap=-1.0), "gap is -1.0"),
        (lambda: FlowTokenizer(interleave="both"), "interleave is 'both'"),  # type: ignore[arg-type]
        (lambda: FlowTokenizer().encode(Flow(parse_packets([]), np.zeros(0, np.bool_))), "flow 0 has no packets"),
        (lambda: FlowTokenizer().collate(FlowTokenizer().encode_many([])), "flows is empty"),
        (lambda: split_bursts(np.zeros(3, np.int64), np.zeros(2, np.bool_)), r"forward has shape \(2,\)"),
        (lambda: artificial(3).take([3]), "rows reach from 3 to 3"),
        (lambda: artificial(3).with_labels(["a"]), "labels has 1 entries"),
        (lambda: FlowTokens.join([]), "parts is empty"),
        (lambda: TransformerLayer(10, 4), "heads is 4 and dim 10"),
        (lambda: NetFoundEncoder(8, 0, 2), "layers is 0"),
        (lambda: NetFoundEncoder(8, 1, 2, layer="round"), "layer is 'round'"),  # type: ignore[arg-type]
        (lambda: NetFoundEncoder.of_size("huge"), "size is 'huge'"),  # type: ignore[arg-type]
        (lambda: FlowClassifier(small_encoder(), 0), "num_classes is 0"),
        (lambda: FlowPretraining(small_encoder(), 102), "vocabulary is 102; expected 1 to 101"),
        (lambda: FlowPretraining(small_encoder(), 40, mask_rate=1.5), "mask_rate is 1.5"),
        (lambda: FlowPretraining(small_encoder(), 40, weights=(1, 1, -1, 1)), "weights is"),
        (lambda: corrupt(batch_of(), 40, swap_rate=-0.1), "swap_rate is -0.1"),
        (lambda: stable_then_decay(0, 10, 6, 6), "warm_up is 6 and decay 6"),
        (
            lambda: HierarchicalLayer.of_transformers(8, 2)(
                torch.zeros(1, 2, 3, 8), torch.ones(1, 2, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
            ),
            r"token_mask \(1, 2, 4\)",
        ),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_tables_are_named() -> None:
    flow = flow_of([ipv4(17, udp())] * 3)
    number = np.array([0, 2, 2])
    with pytest.raises(ValueError, match="flows leaves out number 1"):
        FlowTokenizer().encode_packets(flow.packets, number, flow.forward)
    with pytest.raises(ValueError, match=r"forward has shape \(2,\)"):
        FlowTokenizer().encode_packets(flow.packets, np.zeros(3, np.int64), flow.forward[:2])
    other = replace(flow.packets, protocol=np.array([17, 17, 132], dtype=np.uint8))
    with pytest.raises(ValueError, match="protocol 132"):
        FlowTokenizer().encode_packets(other, np.zeros(3, np.int64), flow.forward)


# .arrow files


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"working-papers\[arrow\]"):
        list(read_arrow(Path("flows.arrow")))


def released_file(path: Path, rows: list[dict[str, Any]], batch: int = 2, labelled: bool = True) -> None:
    """A file as the released preprocessing writes it, from plain rows."""
    pa = pytest.importorskip("pyarrow")
    kinds = {
        "flow_duration": pa.uint64(),
        "burst_tokens": pa.list_(pa.list_(pa.uint16())),
        "directions": pa.list_(pa.bool_()),
        "bytes": pa.list_(pa.uint32()),
        "iats": pa.list_(pa.uint64()),
        "counts": pa.list_(pa.uint32()),
        "protocol": pa.uint16(),
        **({"labels": pa.string()} if labelled else {}),
    }
    schema = pa.schema(list(kinds.items()))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for begin in range(0, len(rows), batch):
            columns = [
                pa.array([row[name] for row in rows[begin : begin + batch]], type=kind) for name, kind in kinds.items()
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


ROWS = [
    {
        "flow_duration": 1500 * number,
        "burst_tokens": [[20, 0, 33, 0, 3, 13 + number], [20, 0, 50, 0, 3, 30] * 2][: 1 + number % 2],
        "directions": [True, False][: 1 + number % 2],
        "bytes": [33, 100][: 1 + number % 2],
        "iats": [0, 20_000][: 1 + number % 2],
        "counts": [1, 2][: 1 + number % 2],
        "protocol": 17,
        "labels": "benign" if number % 3 else "botnet",
    }
    for number in range(5)
]


def test_released_files_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    released_file(tmp_path / "flows.arrow", ROWS)
    parts = list(read_arrow(tmp_path / "flows.arrow"))
    assert [len(part) for part in parts] == [2, 2, 1]
    flows = FlowTokens.join(parts)
    assert flows.labels is not None
    assert flows.labels.tolist() == ["botnet", "benign", "benign", "botnet", "benign"]
    assert flows.bursts.tolist() == [1, 2, 1, 2, 1]
    batch = FlowTokenizer().collate(flows)
    assert batch.tokens.shape == (5, 2, 13)
    assert batch.tokens[1, 0, :7].tolist() == [65537, 21, 1, 34, 1, 4, 15]
    torch.testing.assert_close(batch.metadata[1], torch.tensor([[1, 0.033, 1, 0], [-1, 0.1, 2, 20]]))
    stored = ArrowFlows([tmp_path / "flows.arrow"])
    assert len(stored) == 5
    picked = stored.take([4, 0, 3, 0])
    for name in ("words", "burst_ends", "forward", "gaps", "duration", "labels"):
        np.testing.assert_array_equal(getattr(picked, name), getattr(flows.take([4, 0, 3, 0]), name))
    with pytest.raises(ValueError, match="expected indices from 0 to 4"):
        stored.take([5])


def test_files_round_trip(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    flows = artificial(12)
    write_arrow(tmp_path / "a.arrow", [flows.take(range(5)), flows.take(range(5, 12))])
    stored = ArrowFlows([tmp_path / "a.arrow"])
    for name in ("words", "word_ends", "burst_ends", "forward", "sizes", "counts", "gaps", "protocol", "duration"):
        np.testing.assert_array_equal(getattr(stored.take(range(12)), name), getattr(flows, name))
    released_file(tmp_path / "plain.arrow", ROWS)
    write_arrow(tmp_path / "ours.arrow", list(read_arrow(tmp_path / "plain.arrow")))
    tables = [pa.ipc.open_stream(str(tmp_path / name)).read_all() for name in ("plain.arrow", "ours.arrow")]
    assert tables[0].schema == tables[1].schema
    assert tables[0].to_pylist() == tables[1].to_pylist()
    with pytest.raises(ValueError, match="expected all or none"):
        write_arrow(tmp_path / "b.arrow", [flows, flows.with_labels(["a"] * 12)])


def test_bad_files_are_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "text.arrow").write_text("not arrow at all")
    released_file(tmp_path / "whole.arrow", ROWS)
    data = (tmp_path / "whole.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(data[: len(data) * 2 // 3])
    released_file(tmp_path / "uneven.arrow", [{**ROWS[1], "iats": [0]}])
    table = pa.ipc.open_stream(str(tmp_path / "whole.arrow")).read_all()
    with pa.OSFile(str(tmp_path / "less.arrow"), "wb") as sink:
        less = table.drop_columns(["counts"])
        with pa.ipc.new_stream(sink, less.schema) as writer:
            writer.write_table(less)
    for name, message in {
        "text.arrow": "text.arrow is no Arrow file",
        "cut.arrow": "cut.arrow is no Arrow file",
        "missing.arrow": "missing.arrow is no Arrow file",
        "uneven.arrow": "iats and burst_tokens have different numbers",
        "less.arrow": "lacks the column counts",
    }.items():
        with pytest.raises(ValueError, match=message):
            list(read_arrow(tmp_path / name))
    with pytest.raises(ValueError, match="without flows"):
        ArrowFlows([])


def test_labelled_files_are_shuffled_and_split(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    released_file(tmp_path / "flows.arrow", ROWS * 6)
    with pytest.raises(ValueError, match=r"\*\.arrow missing"):
        arrow_files(tmp_path / "nothing")
    pool, test, classes = labelled_files(arrow_files(tmp_path), 8, 0)
    assert (len(pool.labels), len(test.labels), classes) == (22, 8, 2)
    assert len(pool.plain) == 22
    assert len(np.unique(test.labels)) == 2
    released_file(tmp_path / "flows.arrow", ROWS, labelled=False)
    with pytest.raises(ValueError, match="without labels"):
        labelled_files(arrow_files(tmp_path), 8, 0)


def test_paper_scale_names_missing_data_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="netfound"):
        prepare_flows(0, Scale.PAPER)
    (tmp_path / "netfound" / "pretraining").mkdir(parents=True)
    with pytest.raises(ValueError, match="finetuning missing"):
        prepare_flows(0, Scale.PAPER)


# The study


def tiny() -> Size:
    return replace(Size.of(Scale.SMOKE), epochs=2, warm_up=2, decay=2)


def test_a_stopped_pretraining_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    size = tiny()
    tokenizer = size.tokenizer()
    flows = tokenizer.encode_many(make_flows(48, seed=0).flows)
    batches = Batches(flows, np.zeros(48, np.int64), tokenizer, 8, 5)

    class Stopped(Exception):
        pass

    def stop(share: float) -> None:
        if share > 0.4:
            raise Stopped

    def run(checkpoint: Path | None, progress: Any = None) -> dict[str, Tensor]:
        encoder = size.encoder(tokenizer.table_size, 1)
        pretrain(encoder, batches, size, seed=7, device="cpu", checkpoint=checkpoint, every=2, progress=progress)
        return encoder.state_dict()

    whole = run(None)
    with pytest.raises(Stopped):
        run(tmp_path / "training.pt", stop)
    resumed = run(tmp_path / "training.pt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def pretrained_in_group() -> dict[str, Tensor]:
    size = tiny()
    tokenizer = size.tokenizer()
    flows = tokenizer.encode_many(make_flows(24, seed=0).flows)
    encoder = size.encoder(tokenizer.table_size, 1)
    pretrain(encoder, Batches(flows, np.zeros(24, np.int64), tokenizer, 8, 5), size, seed=7, device="cpu")
    return encoder.state_dict()


def test_two_processes_keep_the_same_weights() -> None:
    before = tiny().encoder(tiny().tokenizer().table_size, 1).state_dict()
    first, second = launch(pretrained_in_group, 2)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert not torch.equal(first["embedding.compress.weight"], before["embedding.compress.weight"])


def test_linked_addresses_change_nothing_else() -> None:
    tasks = make_tasks(3, Scale.SMOKE)
    assert np.array_equal(tasks.intact.plain.words, tasks.broken.plain.words)
    assert not np.array_equal(tasks.intact.addressed.words, tasks.broken.addressed.words)
    assert sorted(np.unique(tasks.test.labels)) == list(range(7))
    assert set(tasks.test.conditions) == {0, 1}
    assert not np.array_equal(tasks.pool.plain.words[:100], tasks.test.plain.words[:100])


def test_noise_and_choice_of_labels() -> None:
    labels = np.arange(70) % 7
    noisy = with_noise(labels, 0.4, 7, 0)
    assert (noisy != labels).sum() == 28
    assert ((noisy >= 0) & (noisy < 7)).all()
    rows = few_of_each(labels, 3, 0)
    assert np.bincount(labels[rows]).tolist() == [3] * 7
    assert len(np.unique(rows)) == 21


def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    random = np.random.default_rng(0)
    true, guessed = random.integers(0, 5, 200), random.integers(0, 4, 200)
    expected = f1_score(true, guessed, average="macro", labels=range(5), zero_division=0)
    assert macro_f1(guessed, true, 5) == pytest.approx(expected)


def test_probe_finds_what_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 6, generator=generator), np.arange(200) % 2
    x[:, 3] += 6 * torch.from_numpy(labels)
    assert probe_accuracy(x[:100], labels[:100], x[100:], labels[100:]) > 0.98
    noise = torch.randn(2000, 6, generator=generator)
    assert probe_accuracy(noise[:1000], np.arange(1000) % 2, noise[1000:], np.arange(1000) % 2) < 0.56


def test_statistics_of_flows() -> None:
    times, forward = [0, 1, 30, 35, 90], [True, False, True, False, False]
    flow = flow_of([ipv4(17, udp(bytes(index))) for index in range(5)], forward, [time * MS for time in times])
    numbers = statistics(FlowTokenizer().encode(flow))[0]
    assert numbers[:3].tolist() == [17, 90_000, 5]
    assert numbers[3:9].tolist() == [2, 2, 28 + 30, 30_000, 15_000, 30_000]
    assert numbers[9:21].tolist() == [20, 0, 28, 2, 64, 8] + [-1] * 6
    assert numbers[21:27].tolist() == [3, 3, 29 + 31 + 32, 34_000 + 55_000, 89_000 / 3, 55_000]
    assert numbers[39:43].tolist() == [1, 28, 1, 0]
    assert numbers[43:47].tolist() == [-1, 29, 1, 0]
    assert statistics(artificial(9)).shape == (9, 63)


def test_bag_of_tokens_does_not_know_the_order() -> None:
    torch.manual_seed(0)
    model, batch = BagOfTokens(8, 104, 3).double().eval(), batch_of(4, 3, 5)
    full = FlowBatch(
        batch.tokens.clamp(min=1), torch.ones_like(batch.token_mask), torch.ones_like(batch.burst_mask),
        batch.metadata.double(), batch.protocol,
    )  # fmt: skip
    order, inner = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 4, 2])
    shuffled = full._replace(tokens=full.tokens[:, order][:, :, inner], metadata=full.metadata[:, order])
    torch.testing.assert_close(model(shuffled), model(full))
    assert_gradients_reach_parameters(model, full)


def test_summaries_are_means_over_bursts() -> None:
    size = tiny()
    tokenizer = size.tokenizer()
    flows = tokenizer.encode_many(make_flows(6, seed=0).flows)
    encoder = size.encoder(tokenizer.table_size, 0)
    found = summaries(encoder, flows, tokenizer, "cpu")
    batch = tokenizer.collate(flows)
    with torch.no_grad():
        first = encoder.eval()(batch)[:, :, 0]
    expected = torch.stack([first[row][batch.burst_mask[row]].mean(dim=0) for row in range(6)])
    torch.testing.assert_close(found, expected)


def test_fine_tuning_learns_what_is_easy() -> None:
    size = replace(tiny(), dim=16, init_std=0.14)
    tokenizer = size.tokenizer()
    made = make_flows(80, seed=0)
    flows, labels = tokenizer.encode_many(made.flows), np.isin(made.labels, (4, 5)).astype(np.int64)  # UDP or not
    torch.manual_seed(0)
    model = FlowClassifier(size.encoder(tokenizer.table_size, 0), 2, init_std=0.14)
    fine_tune(model, Batches(flows, labels, tokenizer, 16, 0), 40, 1e-2, seed=0, device="cpu")
    with torch.no_grad():
        guessed = model.eval()(tokenizer.collate(flows)).argmax(dim=1).numpy()
    assert macro_f1(guessed, labels, 2) > 0.95


def test_a_trial_is_a_function_of_its_seed() -> None:
    tasks = make_tasks(1, Scale.SMOKE)
    trial = Trial(arm="netfound", seed=1, scale=Scale.SMOKE, setting={"rate": 1.0})
    first, second = (pretrain_and_judge(trial, tasks) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(np.asarray(second[name]), np.asarray(value), err_msg=name)
