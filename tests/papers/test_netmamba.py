"""What must be true of NetMamba: bytes of flows, causality, masks, parameters, streams, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.data.packets import Flow, PacketTable, parse_packets
from working_papers.data.traffic import make_flows, write_flows
from working_papers.papers.netmamba import (
    NetMambaClassifier,
    NetMambaEncoder,
    NetMambaMAE,
    flow_to_bytes,
    flows_to_bytes,
    masked_error,
    parameter_groups,
    read_flows,
    warm_up_cosine,
)


def small(n_bytes: int = 48, **options: object) -> NetMambaEncoder:
    torch.manual_seed(0)
    return NetMambaEncoder(n_bytes, dim=16, depth=2, state=4, **options).eval()  # type: ignore[arg-type]


def some_bytes(count: int = 3, n_bytes: int = 48, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, n_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def written_out(flow: Flow, header: int, payload: int, packets: int) -> bytes:
    """The definition, packet by packet."""
    slots = []
    table = flow.packets
    for row in range(min(packets, len(table))):
        whole = table.bytes_of(row)
        border = int(table.payload[row] - table.start[row])
        head = bytearray(whole[:border])
        head[12:20] = bytes(8)
        slots.append(bytes(head[:header]).ljust(header, b"\0") + whole[border:][:payload].ljust(payload, b"\0"))
    return b"".join(slots).ljust(packets * (header + payload), b"\0")


# Flows as bytes


@pytest.mark.parametrize("sizes", [(5, 80, 240), (3, 33, 7), (40, 20, 0), (2, 0, 5)])
def test_bytes_follow_their_definition(sizes: tuple[int, int, int]) -> None:
    packets, header, payload = sizes
    flows = make_flows(24, seed=3).flows
    found = flows_to_bytes(flows, packets, header, payload)
    assert found.dtype == np.uint8 and found.shape == (24, packets * (header + payload))
    for row, flow in enumerate(flows):
        assert found[row].tobytes() == written_out(flow, header, payload, packets)
        assert (flow_to_bytes(flow, packets, header, payload) == found[row]).all()
    assert flow_to_bytes(flows[0]).shape == (1600,)
    assert flows_to_bytes([]).shape == (0, 1600)


def with_addresses(flow: Flow, byte: int) -> PacketTable:
    packets = [(int(flow.packets.time[row]), bytearray(flow.packets.bytes_of(row))) for row in range(len(flow.packets))]
    for _, content in packets:
        content[12:20] = bytes([byte] * 8)
    return parse_packets([(time, bytes(content)) for time, content in packets])


def test_addresses_do_not_matter_unless_asked_for() -> None:
    for flow in make_flows(8, seed=4).flows:
        first, second = with_addresses(flow, 9), with_addresses(flow, 77)
        found = flow_to_bytes(first).reshape(5, 320)
        assert not found[:, 12:20].any()
        assert (found == flow_to_bytes(second).reshape(5, 320)).all()
        raw = flow_to_bytes(first, anonymize=False).reshape(5, 320)[: len(first)]
        assert (raw[:, 12:20] == 9).all()
        assert (np.delete(raw, range(12, 20), axis=1) == np.delete(found[: len(first)], range(12, 20), axis=1)).all()


def test_checksums_are_zeroed_where_they_lie() -> None:
    for flow in make_flows(8, seed=5).flows:
        left, zeroed = (flow_to_bytes(flow, zero_checksums=zero).reshape(5, 320) for zero in (False, True))
        for row in range(min(5, len(flow.packets))):
            place = 20 + (16 if flow.packets.protocol[row] == 6 else 6)
            assert left[row, 10:12].any() or left[row, place : place + 2].any()
            expected = left[row].copy()
            expected[[10, 11, place, place + 1]] = 0
            assert (zeroed[row] == expected).all()


def test_version_6_loses_its_addresses_too() -> None:
    udp = bytes([0x12, 0x34, 0, 53, 0, 12, 0xAB, 0xCD]) + b"data"
    header = bytes([0x60, 0, 0, 0, 0, len(udp), 17, 64]) + bytes(range(1, 33))
    found = flow_to_bytes(parse_packets([(5, header + udp)]), 1, 60, 10, zero_checksums=True)
    assert not found[8:40].any() and found[:8].tolist() == list(header[:8])
    assert found[40:48].tolist() == [0x12, 0x34, 0, 53, 0, 12, 0, 0]
    assert found[48:60].tolist() == [0] * 12 and found[60:].tobytes() == b"data" + bytes(6)


def test_a_capture_gives_the_same_bytes_as_its_flows(tmp_path: Path) -> None:
    flows = make_flows(40, seed=6).flows
    write_flows(tmp_path / "some.pcap", flows)
    found = sorted(each.tobytes() for each in read_flows(tmp_path / "some.pcap"))
    assert found == sorted(each.tobytes() for each in flows_to_bytes(flows))
    (tmp_path / "none.pcap").write_bytes(b"nothing of the kind" * 4)
    with pytest.raises(ValueError, match=r"none\.pcap"):
        list(read_flows(tmp_path / "none.pcap"))


# The encoder


def test_default_sizes_are_the_papers() -> None:
    encoder = NetMambaEncoder()
    assert encoder.tokens == 400
    count = sum(p.numel() for p in encoder.parameters())
    assert count == pytest.approx(1.86e6, rel=0.01)
    assert sum(p.numel() for p in NetMambaMAE(encoder).parameters()) == pytest.approx(2.17e6, rel=0.01)


def test_the_encoder_is_causal() -> None:
    encoder = small().double()
    first = some_bytes(1)
    second = first.clone()
    second[0, 20] ^= 255  # in token 5
    a, b = encoder(first), encoder(second)
    assert a.shape == (1, 13, 16)
    assert torch.equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).any(dim=2).all()  # the class token too, for it is read last


@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 4, 3]])
def test_a_stream_ends_at_what_the_whole_flow_gives(parts: list[int]) -> None:
    model = NetMambaClassifier(small(), 3).double().eval()
    nn.init.normal_(model.head.weight)
    flows, state = some_bytes(), None
    for piece in flows.split([4 * part for part in parts], dim=1):
        logits, state = model.step(piece, state)
    assert state is not None and state.position == 12
    torch.testing.assert_close(logits, model(flows))
    with pytest.raises(ValueError, match="at most the 12 strides"):
        model.step(flows[:, :4], state)


def test_bytes_and_scaled_numbers_are_the_same() -> None:
    encoder, flows = small(), some_bytes()
    torch.testing.assert_close(encoder(flows), encoder((flows.float() / 255 - 0.5) / 0.5))
    assert encoder.strides(torch.tensor([[0, 255] * 24], dtype=torch.uint8)).unique().tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    encoder, flows = small(), some_bytes()
    expected = encoder(flows)
    found = encoder.to(dtype)(flows)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=0.1)


def test_branches_are_dropped_in_training_alone() -> None:
    encoder, flows = small(drop_path=0.9), some_bytes(64)
    assert encoder.layers.rates == [0.0, 0.9]
    assert torch.equal(encoder(flows), encoder(flows))
    encoder.train()
    one = encoder.layers.branches[0]
    tokens = torch.randn(64, 3, 16)
    only_first = encoder.layers.norm(tokens + one(tokens))
    alike = torch.isclose(encoder.layers(tokens), only_first, atol=1e-6).all(dim=2).all(dim=1)
    assert 40 <= int(alike.sum()) < 64  # nine in ten lose their second branch


def test_another_layer_takes_the_place_of_mamba() -> None:
    encoder = NetMambaEncoder(48, dim=16, depth=1, layer=lambda dim: nn.Linear(dim, dim))
    assert encoder(some_bytes()).shape == (3, 13, 16)
    with pytest.raises(TypeError, match="layer 0 is Linear"):
        encoder.advance(some_bytes())


# Pre-training


def test_of_400_strides_39_are_kept() -> None:
    model = NetMambaMAE(NetMambaEncoder(1600, dim=8, depth=1), dim=8, depth=1)
    order, kept = model.draw_order(2, 0.9)
    assert kept == 39 and order.shape == (2, 400)
    assert (order.sort(1).values == torch.arange(400)).all()


@pytest.mark.parametrize("keep_order", [False, True])
def test_the_pass_is_the_one_written_out(keep_order: bool) -> None:
    model = NetMambaMAE(small(), dim=12, depth=1, keep_order=keep_order).double().eval()
    flows = some_bytes()
    found = model(flows, 0.6, torch.Generator().manual_seed(3))
    order, kept = model.draw_order(3, 0.6, torch.Generator().manual_seed(3))
    assert kept == 4
    if keep_order:
        assert (order[:, 1:kept] > order[:, : kept - 1]).all()
    for row in range(3):
        strides = flows[row].double().view(12, 4) / 127.5 - 1
        visible = order[row, :kept].tolist()
        tokens = torch.stack([model.encoder.embed(strides[place]) + model.encoder.position[place] for place in visible])
        last = model.encoder.class_token + model.encoder.position[-1]
        seen = model.widen(model.encoder.layers(torch.cat([tokens, last[None]])[None]))[0]
        sequence = torch.stack(
            [seen[visible.index(place)] if place in visible else model.mask_token for place in range(12)] + [seen[-1]]
        )
        predicted = model.predict(model.layers((sequence + model.position)[None]))[0, :-1]
        torch.testing.assert_close(found.reconstruction[row], predicted)
        assert (~found.mask[row]).nonzero()[:, 0].tolist() == sorted(visible)
    target = model.encoder.strides(flows)
    errors = (found.reconstruction - target).square().mean(-1)[found.mask]
    torch.testing.assert_close(found.loss, errors.mean())


def test_visible_strides_do_not_count() -> None:
    torch.manual_seed(2)
    prediction, target = torch.randn(2, 2, 6, 4)
    mask = torch.rand(2, 6) < 0.5
    changed = torch.where(mask[..., None], target, target + 100)
    assert torch.equal(masked_error(prediction, target, mask), masked_error(prediction, changed, mask))
    hidden = torch.where(mask[..., None], target + 1, target)
    assert not torch.equal(masked_error(prediction, target, mask), masked_error(prediction, hidden, mask))


def test_masks_follow_the_generator() -> None:
    model = NetMambaMAE(small(), dim=12, depth=1).eval()
    first, second, third = (model(some_bytes(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.mask, second.mask) and torch.equal(first.reconstruction, second.reconstruction)
    assert not torch.equal(first.mask, third.mask)


def test_gradients_reach_every_parameter_and_pretraining_learns() -> None:
    torch.manual_seed(0)
    model = NetMambaMAE(small(drop_path=0.0), dim=12, depth=1, drop_path=0.0).train()
    flows = some_bytes(1).repeat(16, 1)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(flows, 0.6).loss
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_gradients_are_numerical_ones() -> None:
    model = NetMambaClassifier(small(12), 2).double()
    nn.init.normal_(model.head.weight)
    scaled = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (scaled,), fast_mode=True)


# Optimisation


def test_weight_decay_spares_what_it_must() -> None:
    model = NetMambaMAE(small(), dim=12, depth=1)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.05)
    spared = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] == 0.05 for p in group["params"]}
    assert spared | decayed == set(names.values()) and not spared & decayed
    for name in names.values():
        last = name.rsplit(".", 1)[-1]
        fixed = last in ("A_log", "D", "bias", "position", "class_token", "mask_token") or "norm" in name
        assert (name in spared) == fixed, name


def test_rates_shrink_from_layer_to_layer() -> None:
    model = NetMambaClassifier(small(), 3)
    rates = {id(p): group["lr"] for group in parameter_groups(model, 1.0, layer_decay=0.5) for p in group["params"]}
    assert rates[id(model.head.weight)] == rates[id(model.encoder.layers.norm.weight)] == 1
    assert rates[id(model.encoder.position)] == rates[id(model.encoder.embed.weight)] == 0.125
    for number, branch in enumerate(model.encoder.layers.branches):
        assert {rates[id(p)] for p in branch.parameters()} == {(0.25, 0.5)[number]}
    assert len(rates) == len(list(model.parameters()))


def test_the_rate_rises_and_falls() -> None:
    found = [warm_up_cosine(step, 4, 12, 0.1) for step in range(13)]
    assert found[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert found[8] == pytest.approx(0.55) and found[12] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(found[4:]))
    assert math.isclose(warm_up_cosine(3, 3, 3), 1.0)


# Wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows_to_bytes([], 0), "packets_per_flow is 0"),
        (lambda: flows_to_bytes([], 5, -1, 3), "header and payload are -1 and 3"),
        (lambda: flows_to_bytes([], 5, 0, 0), "header and payload are 0 and 0"),
        (lambda: list(read_flows("none.pcap", 0)), "packets_per_flow is 0"),
        (lambda: NetMambaEncoder(10), "n_bytes and stride are 10 and 4"),
        (lambda: NetMambaEncoder(8, stride=0), "n_bytes and stride are 8 and 0"),
        (lambda: NetMambaEncoder(8, depth=0), "depth is 0"),
        (lambda: NetMambaEncoder(8, drop_path=1.0), "drop_path is 1.0"),
        (lambda: small()(some_bytes(2, 44)), r"bytes have shape \(2, 44\); expected \(N, 48\)"),
        (lambda: small()(some_bytes().long()), "bytes have dtype torch.int64"),
        (lambda: small()(some_bytes(), torch.zeros(2, 3, dtype=torch.long)), r"keep has shape \(2, 3\)"),
        (lambda: small().advance(some_bytes(2, 6)), r"bytes have shape \(2, 6\); expected \(N, a multiple of 4\)"),
        (lambda: small().advance(some_bytes(2, 52)), "bytes end at stride 13"),
        (lambda: NetMambaClassifier(small(), 0), "num_classes is 0"),
        (lambda: NetMambaMAE(small())(some_bytes(), 1.0), "mask_ratio is 1.0"),
        (lambda: masked_error(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2)), "prediction, target and"),
        (lambda: parameter_groups(NetMambaClassifier(small(), 2), 1.0, layer_decay=0.0), "layer_decay is 0.0"),
        (lambda: parameter_groups(small(), 1.0, layer_decay=0.5), "for a NetMambaEncoder"),
        (lambda: warm_up_cosine(0, 5, 4), "warm_up and steps are 5 and 4"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
