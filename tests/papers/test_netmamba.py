"""What must be true of NetMamba: bytes of flows, causality, masks, parameters, streams, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from working_papers.bench import Scale, Trial
from working_papers.data.packets import Flow, PacketTable, parse_packets
from working_papers.data.traffic import make_flows, write_flows
from working_papers.papers.netmamba import (
    MambaLayer,
    NetMambaClassifier,
    NetMambaEncoder,
    NetMambaMAE,
    flow_to_bytes,
    flows_to_bytes,
    masked_error,
    parameter_groups,
    read_flows,
    training,
    warm_up_cosine,
)
from working_papers.papers.netmamba.study import (
    DATASETS,
    EXPONENT,
    FEW,
    LOST,
    MORE,
    Prepared,
    Traffic,
    fresh,
    learn_and_classify,
    study,
    tasks,
    traffic,
)
from working_papers.papers.netmamba.training import (
    FlowImages,
    Size,
    TransformerLayer,
    accuracy,
    as_arrays,
    exponent,
    few,
    fine_tune,
    layer_maker,
    new_classifier,
    new_encoder,
    pretrain,
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


def test_addresses_leak_through_checksums_alone() -> None:
    one, other = (make_flows(30, seed=3, server_networks=np.full(8, network << 16)).flows for network in (8, 100))
    assert not np.array_equal(flows_to_bytes(one), flows_to_bytes(other))
    assert np.array_equal(flows_to_bytes(one, zero_checksums=True), flows_to_bytes(other, zero_checksums=True))


def test_kept_strides_are_read_in_the_order_given() -> None:
    encoder, flows = small(), some_bytes()
    everything = torch.arange(12).expand(3, -1)
    torch.testing.assert_close(encoder(flows, everything), encoder(flows))
    keep = torch.tensor([[7, 2, 9]]).expand(3, -1)
    found = encoder(flows, keep)
    hidden = flows.clone()
    hidden[:, 4:8] = 0  # stride 1 is not read
    torch.testing.assert_close(encoder(hidden, keep), found)
    assert not torch.allclose(encoder(flows, keep.sort(1).values)[:, -1], found[:, -1])


def test_output_projections_start_smaller_in_deeper_networks() -> None:
    torch.manual_seed(0)
    largest = [float(MambaLayer(64, depth=depth).mixer.out_proj.weight.detach().abs().max()) for depth in (1, 4)]
    assert largest[0] == pytest.approx(128**-0.5, rel=0.01)
    assert largest[1] == pytest.approx(128**-0.5 / 2, rel=0.01)


def test_pre_training_does_not_reach_the_class_token() -> None:
    model = NetMambaMAE(small(), 8, 2)
    model(some_bytes(), 0.5).loss.backward()
    token, places, decoder_places = (
        each.grad for each in (model.encoder.class_token, model.encoder.position, model.position)
    )
    assert token is not None and places is not None and decoder_places is not None
    assert not token.any() and not places[-1].any() and not decoder_places[-1].any()
    assert places[:-1].any() and decoder_places[:-1].any(1).all()


# The study's own parts


def test_rival_has_as_many_parameters_and_attends_as_pytorch_does() -> None:
    for dim in (32, 48, 64):
        ours, theirs = (
            sum(p.numel() for p in layer_maker(k, 8, 2)(dim).parameters()) for k in ("mamba", "transformer")
        )
        assert theirs == pytest.approx(ours, rel=0.02)
    layer, tokens = TransformerLayer(8, 2, 16).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.qkv(layer.norm(tokens)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    middle = tokens + layer.out(attended)
    torch.testing.assert_close(tokens + layer(tokens), middle + layer.mlp(layer.norm2(middle)))


def test_few_labels_are_drawn_from_every_class() -> None:
    labels = torch.arange(40) % 4
    chosen = few(labels, 3, 0)
    assert torch.equal(labels[chosen].sort().values, torch.arange(4).repeat_interleave(3))
    assert len(chosen.unique()) == 12
    assert not torch.equal(chosen, few(labels, 3, 1))
    assert len(few(labels, 0, 0)) == 40


def test_exponent_is_the_slope_of_the_upper_half() -> None:
    lengths = (1, 2, 4, 8, 16, 32)
    seconds = [100.0, 100.0, 100.0, *(each**1.7 for each in lengths[3:])]
    assert exponent(lengths, seconds) == pytest.approx(1.7)


def images(root: Path, classes: tuple[str, ...], count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for each in range(count):
            Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)).save(root / name / f"{each}.png")


def test_images_of_flows_are_read_as_they_are_published(tmp_path: Path) -> None:
    images(tmp_path, ("chat", "voip"), 2, 0)
    found = FlowImages(tmp_path)
    assert found.classes == ("chat", "voip")
    assert [int(found[each][1]) for each in range(4)] == [0, 0, 1, 1]
    flow, _ = found[2]
    with Image.open(tmp_path / "voip" / "0.png") as opened:
        assert flow.numpy().tobytes() == opened.tobytes()
    assert flow.dtype == torch.uint8
    arrays = as_arrays(found)
    assert arrays[0].shape == (4, 1600)
    assert arrays[1].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no images of 1 classes: mail"):
        FlowImages(tmp_path, ("chat", "mail"))
    Image.new("L", (28, 28)).save(tmp_path / "chat" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png is an image of 28 x 28; expected 40 x 40"):
        found[0]
    (tmp_path / "chat" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"1\.png could not be read as an image"):
        found[1]


def tiny() -> Size:
    return dataclasses.replace(Size(), dim=16, depth=1, decoder_dim=16, steps=6, warm_up=2, batch=8)


def test_pre_training_resumes_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flows, size, file = TensorDataset(some_bytes(24, 48), torch.zeros(24)), tiny(), tmp_path / "kept.pt"
    whole, killed, resumed = (new_encoder(size, 48, 1) for _ in range(3))
    losses = pretrain(whole, flows, size, 1)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)

    def stop(share: float) -> None:
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(killed, flows, size, 1, checkpoint=file, progress=stop)
    assert torch.equal(pretrain(resumed, flows, size, 1, checkpoint=file), losses)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_pre_training_learns_and_fine_tuning_classifies() -> None:
    flows = make_flows(96, seed=5, classes=5, max_packets=5)
    data = TensorDataset(torch.from_numpy(flows_to_bytes(flows.flows, 5, 40, 8)), torch.from_numpy(flows.labels))
    size = dataclasses.replace(tiny(), steps=60, warm_up=5, batch=32)
    encoder = new_encoder(size, 240, 1)
    losses = pretrain(encoder, data, size, 1)
    assert float(losses[-5:].mean()) < 0.5 * float(losses[:5].mean())
    model = new_classifier(encoder, 5, 1)
    fine_tune(model, data, 16, 60, 6, 5e-3, 1, layer_decay=0.75)
    assert accuracy(model, data) > 0.5


def test_paper_scale_is_the_papers() -> None:
    size = Size.of(Scale.PAPER)
    assert 5 * (size.header + size.payload) == 1600
    assert (size.dim, size.depth, size.state, size.decoder_dim, size.decoder_depth) == (256, 4, 16, 128, 2)
    assert (size.batch, size.steps, size.pre_rate) == (128, 150_000, 5e-4)
    assert math.isclose(size.tuning_warm_up * size.tuning_steps[1], 20)
    encoder = new_encoder(size, 1600, 0)
    assert sum(p.numel() for p in encoder.parameters()) == 1_856_512


def trial(arm: str, scale: Scale = Scale.SMOKE, **setting: float) -> Trial:
    return Trial(arm=arm, seed=3, scale=scale, setting=setting)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return traffic(3, Scale.SMOKE)


def test_servers_are_tied_to_the_class_but_in_the_last_test(prepared: Prepared) -> None:
    def networks(flows: Traffic) -> list[set[bytes]]:
        outside = flows.raw[:, 0, 12:20].reshape(-1, 2, 4)
        of_server = np.where((outside[:, 0, :1] == 10), outside[:, 1], outside[:, 0])[:, :3]
        return [{row.tobytes() for row in of_server[flows.labels == label]} for label in range(8)]

    tied = networks(prepared.labelled)
    assert [len(each) for each in tied] == [1] * 8
    assert len(set().union(*tied)) == 8
    assert networks(prepared.unlabelled) == networks(prepared.home) == tied
    assert min(len(each) for each in networks(prepared.moved)) > 1
    assert set().union(*networks(prepared.moved)) <= set().union(*tied)


def test_arms_see_what_they_shall(prepared: Prepared) -> None:
    flows = prepared.labelled
    seen = {arm: flows.dataset(arm, 40).tensors[0].reshape(len(flows.labels), 5, -1) for arm in study.arms}
    assert {arm: each.shape[2] for arm, each in seen.items() if each.shape[2] != 56} == {"headers": 40, "payload": 16}
    assert torch.equal(torch.cat([seen["headers"], seen["payload"]], 2), seen["netmamba"])
    assert not seen["netmamba"][:, :, 12:20].any()
    assert seen["raw"][:, 0, 12:20].any(1).all()
    assert all(torch.equal(seen[arm], seen["netmamba"]) for arm in ("scratch", "transformer", "cnn", "forest"))


@pytest.mark.parametrize("arm", ["netmamba", "forest"])
def test_a_trial_repeats_itself(arm: str, prepared: Prepared) -> None:
    first, second = (learn_and_classify(trial(arm), prepared) for _ in range(2))
    for name in (FEW, MORE, LOST, "parameters"):
        assert first[name] == second[name]
    home, moved = np.asarray(first["home and moved"])
    assert first[LOST] == max(0.01, home - moved)
    assert first[MORE] == moved
    assert np.isfinite(float(first[EXPONENT]))


def test_arms_begin_alike(prepared: Prepared) -> None:
    size = Size.of(Scale.SMOKE)
    one, other = (fresh(trial(arm), size, 280) for arm in ("netmamba", "scratch"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    counts = [sum(p.numel() for p in fresh(trial(arm), size, 280).parameters()) for arm in ("netmamba", "transformer")]
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_paper_scale_reads_the_papers_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="netmamba"):
        traffic(1, Scale.PAPER)
    for name in DATASETS:
        for part in ("train", "valid", "test"):
            images(tmp_path / "netmamba" / name / part, ("chat", "voip"), 3, len(name))
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(tmp_path / "home"))
    small_size = dataclasses.replace(
        Size.of(Scale.PAPER),
        unlabelled=16,
        test=16,
        dim=8,
        depth=1,
        decoder_dim=8,
        decoder_depth=1,
        batch=4,
        steps=2,
        warm_up=1,
        labels=(2, 0),
        tuning_steps=(1, 1),
        lengths=(50, 100, 200, 400),
        repeats=1,
    )
    monkeypatch.setattr(Size, "of", lambda scale: small_size)
    prepared = traffic(1, Scale.PAPER)
    for arm in ("netmamba", "headers"):
        found = learn_and_classify(trial(arm, Scale.PAPER), prepared)
        assert 0 <= float(found[MORE]) <= 1
    assert not list((tmp_path / "home").rglob("*.pt"))  # no checkpoint outlives its trial
    _, jobs = tasks(trial("payload", Scale.PAPER), prepared, small_size)
    assert [job.name for job in jobs] == [*DATASETS, "made up"]
    assert jobs[0].train[0][0].shape == (1200,)
