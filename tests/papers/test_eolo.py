"""EOLO: events, neurons, attention, fusion, head and score against their definitions; E-VOC's files; the trainings."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.data.image_folder import read_image
from working_papers.papers.eolo import (
    AllDayBackbone,
    CentreHead,
    CentreOutput,
    ContextPooling,
    CSPDarknetTiny,
    Detections,
    EventTemporalAttention,
    IFNeuron,
    SpikingEncoder,
    SymmetricFusion,
    atan_spike,
    expose,
    load_resnet18_weights,
    mean_average_precision,
    random_flow,
    sensor_noise,
    spiking_resnet18,
    synaptic_operations,
    synthesize_events,
    training,
    voc,
)
from working_papers.papers.eolo.method.detection import box_iou, centre_targets
from working_papers.papers.eolo.networks import Detector, PlainBackbone, Size, new_detector, parameters
from working_papers.papers.eolo.scenes import LIGHTINGS, draw_scenes, photograph, record
from working_papers.papers.eolo.study import ENERGY, MEAN, NORMAL, TYPES, WORST, Plan, scenes, study, train_and_detect
from working_papers.testing import assert_gradients_reach_parameters

SMALL = Size(4, (8, 12), 4, 8, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed)).to(dtype)


# Events


def test_events_follow_their_definition() -> None:
    image, flow = pictures(1, 3, 7, 9, dtype=torch.float64), torch.tensor([2.0, -3.5])
    x = (image - image.min()) / (image.max() - image.min()) * 255
    grey = np.pad((0.299 * x[0, 0] + 0.587 * x[0, 1] + 0.114 * x[0, 2]).numpy(), 1, mode="reflect")
    got = synthesize_events(image, flow)
    for row in range(7):
        for column in range(9):
            g = grey[row : row + 3, column : column + 3]
            across = (g[:, 2] - g[:, 0]) @ [1, 2, 1]
            down = (g[2] - g[0]) @ [1, 2, 1]
            change = 0.3 * (2.0 * across - 3.5 * down)
            expected = [0.0, 0.0] if abs(change) < 50 else [max(change, 0) // 20, max(-change, 0) // 20]
            assert got[0, :, row, column].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_events_obey_their_symmetries(dtype: torch.dtype) -> None:
    image, flow = pictures(5, 3, 12, 17, dtype=dtype), random_flow(5, generator=seeded())
    events = synthesize_events(image, flow)
    assert events.shape == (5, 2, 12, 17)
    assert events.dtype == dtype
    assert float(events.max()) > 3
    assert torch.equal(events, events.round())
    assert float((events[:, 0] * events[:, 1]).max()) == 0
    assert torch.equal(synthesize_events(image, -flow), events.flip(1))
    assert torch.equal(synthesize_events(2 * image, flow), events)
    assert float(synthesize_events(torch.full_like(image, 0.3), flow).abs().max()) == 0


def test_exposure_does_not_change_events_unless_it_is_cut_off() -> None:
    image, flow = pictures(2, 3, 16, 16), torch.tensor([3.0, 3.0])
    events = synthesize_events(image, flow)
    bright = synthesize_events(expose(image, 5.0, clip=False), flow)
    assert float((bright != events).float().mean()) < 0.01  # rounding
    assert float((synthesize_events(expose(image, 5.0), flow) != events).float().mean()) > 0.3


def test_logarithm_sees_edges_in_the_dark() -> None:
    dark = torch.zeros(1, 1, 6, 12)
    dark[..., 4:] = 0.04
    dark[..., 8:] = 1.0  # stretches the image
    flow = torch.tensor([3.0, 0.0])
    plain, log = (synthesize_events(dark, flow, log=each)[0, 0, 3] for each in (False, True))
    assert float(plain[3]) == 0 and float(log[3]) > 0
    assert float(plain[7]) > 0 and float(log[7]) > 0
    expected = 0.3 * 3 * 4 * 255 * math.log1p(0.04 * 255) / math.log(256)
    assert float(log[3]) == math.floor(expected / 20)


def test_flow_is_drawn_in_all_directions() -> None:
    flow = random_flow(4000, generator=seeded())
    torch.testing.assert_close(flow.norm(dim=1), torch.full((4000,), 3 * 2**0.5))
    assert float(flow.mean(dim=0).abs().max()) < 0.2
    image = pictures(3, 3, 8, 8)
    first, again, other = (synthesize_events(image, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, synthesize_events(image, random_flow(3, generator=seeded(1))))


def test_exposed_images_have_256_levels() -> None:
    image = pictures(3, 3, 8, 8)
    exposed = expose(image, 5.0)
    assert float(exposed.max()) == 1
    torch.testing.assert_close(exposed * 255, (exposed * 255).round(), atol=1e-4, rtol=0)
    each = expose(image, torch.tensor([0.2, 1.0, 5.0]), clip=False)
    torch.testing.assert_close(each, torch.stack([0.2 * image[0], image[1], 5 * image[2]]))


def test_sensor_noise_drops_and_adds() -> None:
    events = torch.full((50, 2, 40, 40), 3.0)
    events[:, 1] = 0
    noisy = sensor_noise(events, random=0.02, dropped=0.1, most=4, generator=seeded())
    added = (noisy - events * (noisy[:, :1] >= 3))[:, 1]
    assert 0.008 < float((added > 0).float().mean()) < 0.012  # half of the firing pixels
    assert sorted(added.unique().tolist()) == [0, 1, 2, 3, 4]
    assert 0.08 < float((noisy[:, 0] < 3).float().mean()) < 0.11
    assert torch.equal(sensor_noise(events, 0, 0), events)
    assert float(sensor_noise(events, 0, 1).max()) == 0


# Neurons


@pytest.mark.parametrize("x", [1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 2.5])
@pytest.mark.parametrize("steps", [1, 4, 13])
def test_constant_input_spikes_as_often_as_it_fills_the_neuron(x: float, steps: int) -> None:
    neuron = IFNeuron()
    spikes = neuron(torch.full((steps, 2, 3), x))
    assert torch.equal(spikes.sum(dim=0), torch.full((2, 3), float(steps // math.ceil(1 / x))))
    assert torch.equal(neuron(torch.full((steps, 2, 3), x)), spikes)  # nothing is left of the first call


def test_reset_is_hard() -> None:
    x = torch.tensor([1.9, 0.2, 0.9, -3.0, 3.5, 0.5])[:, None]
    assert IFNeuron()(x)[:, 0].tolist() == [1, 0, 1, 0, 0, 1]  # 1.9 leaves nothing; -3 is carried on
    assert IFNeuron(threshold=2.0)(x)[:, 0].tolist() == [0, 1, 0, 0, 0, 0]


def test_surrogate_is_the_derivative_of_an_arc_tangent() -> None:
    x = gaussian(1, 50).requires_grad_()
    for spikes in (IFNeuron()(x), atan_spike(x - 1)):
        (gradient,) = torch.autograd.grad(spikes.sum(), x)
        torch.testing.assert_close(gradient, 1 / (1 + (math.pi * (x.detach() - 1)) ** 2))
    (sharp,) = torch.autograd.grad(atan_spike(x, 5.0).sum(), x)
    torch.testing.assert_close(sharp, 2.5 / (1 + (math.pi * 2.5 * x.detach()) ** 2))


@pytest.mark.parametrize("detach", [True, False])
def test_written_out_gradients_are_those_of_autograd(detach: bool) -> None:
    x, weight = (2 * gaussian(6, 4, 5)).requires_grad_(), gaussian(6, 4, 5, seed=1)
    fused, plain = IFNeuron(1.3, detach), IFNeuron(1.3, detach, atan_spike)
    assert torch.equal(fused(x), plain(x))
    assert 0 < float(fused(x).detach().mean()) < 1
    torch.testing.assert_close(
        torch.autograd.grad((fused(x) * weight).sum(), x), torch.autograd.grad((plain(x) * weight).sum(), x)
    )


def test_gradients_are_numerical_ones_with_a_smooth_surrogate() -> None:
    neuron = IFNeuron(detach_reset=False, surrogate=lambda x: torch.sigmoid(3 * x))
    assert torch.autograd.gradcheck(neuron, gaussian(3, 2, 2).requires_grad_())


def test_half_precision_sums_in_float32() -> None:
    x = torch.full((300, 1, 1), 1 / 256, dtype=torch.bfloat16)  # in bfloat16 the sum would stop at 0.5
    spikes = IFNeuron()(x)
    assert spikes.dtype == torch.bfloat16
    assert float(spikes.sum()) == 1


# Encoders


def small_encoder(**settings: Any) -> SpikingEncoder:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.SiLU()),
        nn.Sequential(nn.Conv2d(6, 5, 3, 1, 1), nn.Sequential(nn.BatchNorm2d(5), nn.LeakyReLU(0.1))),
    ]
    return SpikingEncoder(stages, stem=nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.BatchNorm2d(4)), **settings)


def test_encoder_turns_layers_into_a_spiking_network() -> None:
    encoder = small_encoder()
    maps = encoder(3 * pictures(3, 2, 9, 7))
    assert [tuple(each.shape) for each in maps] == [(4, 3, 6, 5, 4), (4, 3, 5, 5, 4)]
    assert all(set(each.unique().tolist()) == {0.0, 1.0} for each in maps)
    assert sum(isinstance(each, IFNeuron) for each in encoder.modules()) == 3
    assert_gradients_reach_parameters(encoder, 3 * pictures(3, 2, 9, 7))


def test_repeated_frames_are_bins_that_do_not_differ() -> None:
    events = 3 * pictures(3, 2, 9, 7)
    for encoder in (small_encoder(), small_encoder(time_steps=7)):
        steps = encoder.time_steps
        once, bins = encoder(events), copy.deepcopy(encoder)(events.expand(steps, -1, -1, -1, -1))
        for a, b in zip(once, bins, strict=True):
            assert float((a != b).float().mean()) < 0.01  # up to rounding of the stem's statistics
    assert small_encoder()(3 * pictures(6, 3, 2, 9, 7))[0].shape[0] == 6


def test_encoder_is_the_loop_over_time_written_out() -> None:
    encoder = small_encoder(outputs=(1,))
    for _ in range(20):
        encoder(5 * pictures(6, 2, 8, 8))  # statistics with which neurons fire
    encoder.eval()
    events = 4 * gaussian(4, 3, 2, 8, 8, dtype=torch.float32)
    layers = [each for each in encoder.stages.modules() if not list(each.children())]
    first, conv1, norm1, second, conv2, norm2, third = layers
    x = first(torch.stack([encoder.stem(each) for each in events]))
    x = second(torch.stack([norm1(conv1(each)) for each in x]))
    x = third(torch.stack([norm2(conv2(each)) for each in x]))
    (got,) = encoder(events)
    torch.testing.assert_close(got, x)
    assert 0.01 < float(got.detach().mean()) < 0.99


def test_spiking_resnet_has_the_papers_shapes() -> None:
    encoder = spiking_resnet18(width=8).eval()
    with torch.no_grad():
        maps = encoder(20 * pictures(1, 2, 96, 64))
    assert [tuple(each.shape) for each in maps] == [(4, 1, 16, 12, 8), (4, 1, 32, 6, 4), (4, 1, 64, 3, 2)]
    assert set(torch.cat([each.flatten() for each in maps]).unique().tolist()) <= {0.0, 1.0}
    with torch.device("meta"):
        full = spiking_resnet18()
    counted = sum(p.numel() for p in full.parameters())
    assert counted == 11_689_512 - (512 * 1000 + 1000) - 64 * 7 * 7  # torchvision's, without classifier and blue


def test_spiking_resnet_loads_the_weights_of_a_conventional_one() -> None:
    from working_papers.nn.resnet import resnet18

    conventional = resnet18(10, width=8)
    encoder = spiking_resnet18(width=8)
    before = encoder.state_dict()["stem.conv1.weight"].clone()
    load_resnet18_weights(encoder, conventional.state_dict())
    own = encoder.state_dict()
    assert torch.equal(own["stages.0.layer1.1.conv2.weight"], conventional.state_dict()["layer1.1.conv2.weight"])
    assert torch.equal(own["stages.3.0.downsample.0.weight"], conventional.state_dict()["layer4.0.downsample.0.weight"])
    assert torch.equal(own["stem.conv1.weight"], before)  # three channels do not fit two
    weights = {name: value for name, value in conventional.state_dict().items() if name != "layer2.0.conv1.weight"}
    with pytest.raises(ValueError, match=r"weights hold nothing for stages.1.0.conv1.weight"):
        load_resnet18_weights(encoder, weights)


def test_darknet_has_the_papers_shapes_and_names() -> None:
    with torch.device("meta"):
        network = CSPDarknetTiny()
        maps = network(torch.empty(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [(2, 128, 8, 12), (2, 256, 4, 6), (2, 512, 2, 3)]
    names = network.state_dict()
    for name in (
        "layer_1.0.convs.0.weight",
        "layer_1.2.cv1.convs.1.bias",
        "layer_5.1.res_blocks.0.conv2.convs.0.weight",
    ):
        assert name in names
    assert "layer_3.1.res_blocks.0.conv2.convs.2.weight" not in names


# Attention and fusion


def test_attention_over_time_ignores_the_order() -> None:
    attention = EventTemporalAttention(5).double()
    x = gaussian(4, 3, 5, 6, 7)
    torch.testing.assert_close(attention(x[[2, 0, 3, 1]]), attention(x))
    still = x[:1].expand(4, -1, -1, -1, -1)
    torch.testing.assert_close(attention(still), attention(x[:1]))  # maximum and mean agree
    assert not torch.allclose(attention(x), attention(x[:2]))
    assert torch.autograd.gradcheck(attention, gaussian(2, 2, 5, 2, 2).requires_grad_())


def trained(module: nn.Module) -> nn.Module:
    """With random weights in place of zeros."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_context_begins_at_one_half_and_is_its_definition() -> None:
    pooling = ContextPooling(32).double()
    x = gaussian(2, 32, 4, 5)
    assert torch.equal(pooling(x), torch.full((2, 32, 1, 1), 0.5, dtype=torch.float64))
    trained(pooling)
    share = torch.softmax(torch.einsum("c,nchw->nhw", pooling.attention.weight[0, :, 0, 0], x).flatten(1), dim=1)
    context = torch.einsum("nchw,nhw->nc", x, share.unflatten(1, (4, 5)))
    h = context @ pooling.down.weight[:, :, 0, 0].T
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    h = torch.relu(h * pooling.norm.weight[:, 0, 0] + pooling.norm.bias[:, 0, 0])
    torch.testing.assert_close(pooling(x)[..., 0, 0], torch.sigmoid(h @ pooling.up.weight[:, :, 0, 0].T))
    assert all(module.bias is None for module in (pooling.attention, pooling.down, pooling.up))


def test_fusion_is_its_definition() -> None:
    fusion = SymmetricFusion(8, 4).double()
    trained(fusion)
    x, e = gaussian(2, 8, 5, 3), gaussian(2, 8, 5, 3, seed=1)
    from_event = torch.sigmoid(e * fusion.event_context(e))
    from_rgb = torch.sigmoid(x * fusion.rgb_context(x))
    x2, e2 = fusion.rgb_conv(x + x * from_event), fusion.event_conv(e + e * from_rgb)
    both = torch.cat([torch.maximum(x2, e2), (x2 + e2) / 2], dim=1)
    torch.testing.assert_close(fusion(x, e), fusion.merge(both))
    assert fusion(x, e).shape == (2, 8, 5, 3)


def test_tied_branches_may_be_swapped() -> None:
    fusion = SymmetricFusion(8, 4).double()
    trained(fusion)
    fusion.event_context.load_state_dict(fusion.rgb_context.state_dict())
    fusion.event_conv.load_state_dict(fusion.rgb_conv.state_dict())
    x, e = gaussian(2, 8, 5, 3), gaussian(2, 8, 5, 3, seed=1)
    fusion.eval()
    torch.testing.assert_close(fusion(x, e), fusion(e, x))
    assert not torch.allclose(fusion(x, e), fusion(x, x))


def test_gates_amplify_between_one_and_two() -> None:
    fusion = SymmetricFusion(8, 4).double()
    trained(fusion)
    x, e = gaussian(2, 8, 5, 3), gaussian(2, 8, 5, 3, seed=1)
    for features, gate in zip((e, x), fusion.gates(x, e), strict=True):
        gated = (features + features * gate).abs()
        assert bool((gated > features.abs()).all()) and bool((gated < 2 * features.abs()).all())
    zero = torch.zeros_like(x)
    fusion.eval()
    out = fusion(zero, zero)
    assert bool(torch.isfinite(out).all())
    x2, e2 = fusion.rgb_conv(zero), fusion.event_conv(zero)
    torch.testing.assert_close(out, fusion.merge(torch.cat([torch.maximum(x2, e2), (x2 + e2) / 2], dim=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusion_in_other_dtypes(dtype: torch.dtype) -> None:
    fusion = SymmetricFusion(8, 4).double().eval()
    trained(fusion)
    x, e = gaussian(2, 8, 5, 3), gaussian(2, 8, 5, 3, seed=1)
    wide = fusion(x, e).detach()
    out = fusion.to(dtype)(x.to(dtype), e.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), wide, rtol=0, atol=float(wide.abs().max()) * 10 * torch.finfo(dtype).eps)


def test_fusion_gradients_are_numerical_ones() -> None:
    fusion = SymmetricFusion(4, 2).double()
    trained(fusion)
    assert torch.autograd.gradcheck(
        fusion, (gaussian(2, 4, 3, 2).requires_grad_(), gaussian(2, 4, 3, 2, seed=1).requires_grad_())
    )


def test_backbone_joins_the_users_own() -> None:
    torch.manual_seed(0)
    rgb = PlainBackbone(3, 4, (4, 6, 8))  # three scales
    events = SpikingEncoder(
        [nn.Sequential(nn.Conv2d(2, 6, 8, 8), nn.ReLU()), nn.Sequential(nn.Conv2d(6, 8, 2, 2), nn.ReLU())]
    )
    backbone = AllDayBackbone(rgb, events, (6, 8), reduction=2)  # the last two of them
    image, counts = pictures(2, 3, 32, 48), 5 * pictures(2, 2, 32, 48)
    assert [tuple(each.shape) for each in backbone(image, counts)] == [(2, 6, 4, 6), (2, 8, 2, 3)]
    one = AllDayBackbone(PlainBackbone(3, 4, (6, 8)), copy.deepcopy(events), (8,), reduction=2)
    bins = 5 * pictures(3, 2, 2, 16, 16)
    with pytest.raises(
        ValueError, match=r"scale 0: rgb_backbone gives \(2, 8, 4, 4\), event_backbone \(3, 2, 8, 1, 1\)"
    ):
        one(pictures(2, 3, 32, 32), bins)
    for module in backbone.modules():
        if isinstance(module, ContextPooling):
            nn.init.normal_(module.up.weight)
    assert_gradients_reach_parameters(backbone, image, counts)
    with pytest.raises(ValueError, match="rgb_backbone gives 3 scales; expected at least 4"):
        AllDayBackbone(rgb, events, (4, 4, 6, 8), reduction=2)(image, counts)


def test_whole_model_survives_a_round_trip() -> None:
    torch.manual_seed(0)
    model = new_detector("symmetric", SMALL, 4)
    image, counts = pictures(4, 3, 24, 40), 5 * pictures(4, 2, 24, 40)
    model(image, counts)
    fresh = new_detector("symmetric", SMALL, 4)
    fresh.load_state_dict(model.state_dict())
    for a, b in zip(fresh.eval()(image, counts), model.eval()(image, counts), strict=True):
        assert torch.equal(a, b)


# Energy


def test_operations_are_counted() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Conv2d(3, 5, 3, padding=1)
            self.spiking = SpikingEncoder(
                [nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())], stem=nn.Conv2d(2, 4, 1)
            )
            self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)

        def forward(self, image: Tensor, events: Tensor) -> Tensor:
            self.plain(image)
            out: Tensor = self.grouped(self.spiking(events)[0][0])
            return out

    model = Both()
    image, events = pictures(2, 3, 8, 8), 5 * pictures(2, 2, 8, 8)
    counted = synaptic_operations(model, image, events)
    assert counted["MACs"] == 64 * 5 * 27 + 64 * 4 * 2 + 16 * 6 * 2 * 9
    assert counted["dense ACs"] == 4 * 16 * 6 * 4 * 9
    first = model.spiking.stages[0][0](model.spiking.stem(events).expand(4, -1, -1, -1, -1))  # type: ignore[index]
    assert counted["ACs"] == pytest.approx(counted["dense ACs"] * float(first.detach().mean()))
    assert 0 < counted["firing rate"] < 1
    assert counted["energy"] == pytest.approx((4.6 * counted["MACs"] + 0.9 * counted["ACs"]) / 1e6)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    linear = synaptic_operations(nn.Linear(7, 3), torch.ones(4, 7))
    assert (linear["MACs"], linear["ACs"], linear["firing rate"]) == (21, 0, 0)


def test_energy_is_a_share_of_the_twins() -> None:
    torch.manual_seed(0)
    spiking, twin = (new_detector(arm, SMALL, 4) for arm in ("symmetric", "ann"))
    events = 5 * pictures(2, 2, 24, 24)
    own = synaptic_operations(spiking.event_backbone, events)["energy"]  # type: ignore[arg-type]
    other = synaptic_operations(twin.event_backbone, events)["energy"]  # type: ignore[arg-type]
    share, rate = training.event_energy(spiking, events)
    assert share == pytest.approx(own / other)
    assert 0 < rate < 1
    assert training.event_energy(twin, events) == (1.0, 0.0)
    assert training.event_energy(new_detector("rgb", SMALL, 4), events) == (0.0, 0.0)


# Head and score


def perfect_output(boxes: Tensor, labels: Tensor, classes: int, cells: int, stride: int) -> CentreOutput:
    heat, places = centre_targets(boxes / stride, labels, (classes, cells, cells))
    size, offset = torch.zeros(len(boxes), 2, cells, cells), torch.zeros(len(boxes), 2, cells, cells)
    for image in range(len(boxes)):
        for box, label, place in zip(boxes[image] / stride, labels[image], places[image], strict=True):
            if label >= 0:
                row, column = divmod(int(place), cells)
                size[image, :, row, column] = box[2:] - box[:2]
                middle = (box[2:] + box[:2]) / 2
                offset[image, :, row, column] = middle - torch.tensor([column, row])
    return CentreOutput(torch.where(heat == 1, 8.0, -8.0), size, offset)


BOXES = torch.tensor(
    [[[2.0, 4.0, 21.0, 18.0], [30.0, 33.0, 61.0, 50.0]], [[5.0, 5.0, 15.0, 45.0], [0.0, 0.0, 0.0, 0.0]]]
)
LABELS = torch.tensor([[0, 2], [2, -1]])


def test_what_a_perfect_head_gives_is_decoded() -> None:
    head = CentreHead((8,), 3, 8)
    output = perfect_output(BOXES, LABELS, 3, 8, 8)
    found = head.decode(output, 10)
    assert found.boxes.shape == (2, 10, 4)
    assert float(found.scores[0, 1]) > 0.99 > float(found.scores[0, 2])
    for image, count in ((0, 2), (1, 1)):
        for box, label in zip(found.boxes[image, :count], found.labels[image, :count], strict=True):
            same = (LABELS[image] == label).nonzero()[0, 0]
            torch.testing.assert_close(box, BOXES[image, same])
    assert mean_average_precision(found, BOXES, LABELS, 3) == pytest.approx(1)
    assert mean_average_precision(found, BOXES, LABELS, 3, eleven_points=True) == pytest.approx(1)
    assert float(head.loss(output, BOXES, LABELS)) < 0.01
    assert head.decode(output, 1000).scores.shape == (2, 3 * 64)


def test_loss_is_its_definition() -> None:
    head = CentreHead((8,), 3, 8)
    output = CentreOutput(gaussian(2, 3, 8, 8), gaussian(2, 2, 8, 8, seed=1), gaussian(2, 2, 8, 8, seed=2))
    heat, places = centre_targets(BOXES / 8, LABELS, (3, 8, 8))
    p = output.heat.sigmoid()
    focal = -torch.where(heat == 1, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log()).sum()
    size = offset = torch.zeros((), dtype=torch.float64)
    for image, which in ((0, 0), (0, 1), (1, 0)):
        row, column = divmod(int(places[image, which]), 8)
        box = BOXES[image, which] / 8
        size = size + (output.size[image, :, row, column] - (box[2:] - box[:2])).abs().sum()
        middle = (box[2:] + box[:2]) / 2
        offset = offset + (output.offset[image, :, row, column] - middle + torch.tensor([column, row])).abs().sum()
    torch.testing.assert_close(head.loss(output, BOXES, LABELS), (focal + 0.1 * size + offset) / 3)
    # An image without objects costs its false alarms alone.
    empty = torch.full((2, 2), -1)
    expected = -(p**2 * (1 - p).log()).sum()
    torch.testing.assert_close(head.loss(output, torch.zeros(2, 2, 4), empty), expected)


def test_blobs_peak_at_centres_and_widen_with_the_object() -> None:
    boxes = torch.tensor([[[1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 30.0, 30.0], [0.0, 0.0, 0.0, 0.0]]])
    heat, places = centre_targets(boxes, torch.tensor([[0, 1, -1]]), (3, 32, 32))
    assert places[0, :2].tolist() == [2 * 32 + 2, 16 * 32 + 16]
    assert (heat == 1).nonzero().tolist() == [[0, 0, 2, 2], [0, 1, 16, 16]]
    assert float(heat[0, 2].max()) == 0
    assert int((heat[0, 0] > 0.1).sum()) < int((heat[0, 1] > 0.1).sum())
    # A box whose corners move by the radius, in any way, still overlaps by 0.7.
    from working_papers.papers.eolo.method.detection import _radius

    for width, height in ((4.0, 9.0), (20.0, 20.0), (1.5, 30.0)):
        radius = float(_radius(torch.tensor(width), torch.tensor(height)))
        box = torch.tensor([[0.0, 0.0, width, height]])
        shared = [
            float(box_iou(box, box + torch.tensor([[a, a, b, b]])))
            for a in (-radius, radius)
            for b in (-radius, radius)
        ]
        assert min(shared) == pytest.approx(0.7, abs=1e-4)


def test_head_adds_coarse_scales() -> None:
    torch.manual_seed(0)
    head = CentreHead((8, 6), 3, 8, width=5)
    fine, coarse = pictures(2, 8, 7, 9), pictures(2, 6, 4, 5)
    output = head([fine, coarse])
    assert [tuple(each.shape) for each in output] == [(2, 3, 7, 9), (2, 2, 7, 9), (2, 2, 7, 9)]
    assert 0.02 < float(output.heat.detach().sigmoid().mean()) < 0.3
    assert_gradients_reach_parameters(head, [fine, coarse])


def detections(rows: list[list[tuple[float, int, list[float]]]], most: int = 6) -> Detections:
    boxes, scores, labels = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most), torch.zeros(len(rows), most)
    for image, row in enumerate(rows):
        for number, (score, label, box) in enumerate(row):
            boxes[image, number] = torch.tensor(box)
            scores[image, number], labels[image, number] = score, label
    return Detections(boxes, scores, labels.long())


def test_average_precision_of_an_example_done_by_hand() -> None:
    left, right, away = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    boxes = torch.tensor([[left, right], [left, right]])
    labels = torch.tensor([[0, 0], [0, -1]])
    # Right, wrong (twice the same), right, wrong (nothing there); the third object is missed.
    found = detections([[(0.9, 0, left), (0.8, 0, left), (0.7, 0, right)], [(0.6, 0, away)]])
    assert mean_average_precision(found, boxes, labels, 1) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # Recalls 0 to 0.3 have precision 1, 0.4 to 0.6 have 2/3, the others 0.
    assert mean_average_precision(found, boxes, labels, 1, eleven_points=True) == pytest.approx((4 + 3 * 2 / 3) / 11)
    # The second object is difficult: finding it counts neither way.
    difficult = torch.tensor([[False, True], [False, False]])
    expected = 1 / 2 * 1
    assert mean_average_precision(found, boxes, labels, 1, difficult=difficult) == pytest.approx(expected)
    # Classes without objects do not count, those without detections do.
    assert mean_average_precision(found, boxes, labels, 5) == pytest.approx(5 / 9)
    two = torch.tensor([[0, 0], [0, 1]])
    assert mean_average_precision(found, boxes, two, 2) == pytest.approx(5 / 18)


def test_score_asks_for_overlap_and_class() -> None:
    box, shifted = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.2]
    boxes, labels = torch.tensor([[box]]), torch.tensor([[1]])
    assert mean_average_precision(detections([[(0.9, 1, shifted)]]), boxes, labels, 2) == 1
    assert mean_average_precision(detections([[(0.9, 1, shifted)]]), boxes, labels, 2, overlap=0.55) == 0
    assert mean_average_precision(detections([[(0.9, 0, box)]]), boxes, labels, 2) == 0
    assert mean_average_precision(detections([[]]), boxes, labels, 2) == 0
    assert mean_average_precision(detections([[]]), boxes, torch.tensor([[-1]]), 2) == 0
    overlaps = box_iou(torch.tensor([box, shifted]), torch.tensor([box, [20.0, 20.0, 30.0, 30.0]]))
    torch.testing.assert_close(overlaps, torch.tensor([[1.0, 0.0], [0.52, 0.0]]))


# Wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expose(torch.ones(2, 2, dtype=torch.uint8), 1.0), "uint8"),
        (lambda: expose(torch.ones(3, 2, 2), 0.0), "factor is"),
        (lambda: expose(torch.ones(2, 3, 2, 2), torch.ones(3)), r"factor has shape \(3,\)"),
        (lambda: synthesize_events(torch.ones(3, 8, 8)), r"image has shape \(3, 8, 8\)"),
        (lambda: synthesize_events(torch.ones(1, 2, 8, 8)), r"image has shape \(1, 2, 8, 8\)"),
        (lambda: synthesize_events(torch.ones(1, 3, 8, 8).int()), "int32"),
        (lambda: synthesize_events(torch.ones(1, 3, 8, 8), torch.ones(2, 2)), r"flow has shape \(2, 2\)"),
        (lambda: synthesize_events(torch.ones(1, 3, 8, 8), threshold=0.0), "threshold is 0.0"),
        (lambda: synthesize_events(torch.ones(1, 3, 8, 8), deadzone=-1.0), "deadzone is -1.0"),
        (lambda: sensor_noise(torch.ones(3, 8, 8)), r"events has shape \(3, 8, 8\)"),
        (lambda: sensor_noise(torch.ones(2, 8, 8), dropped=1.5), "dropped is 1.5"),
        (lambda: sensor_noise(torch.ones(2, 8, 8), most=0), "most is 0"),
        (lambda: IFNeuron(0.0), "threshold is 0.0"),
        (lambda: IFNeuron(surrogate="step"), "surrogate is 'step'"),
        (lambda: IFNeuron()(torch.ones(4)), r"x has shape \(4,\)"),
        (lambda: SpikingEncoder([nn.ReLU()], 0), "time_steps is 0"),
        (lambda: SpikingEncoder([]), "stages is empty"),
        (lambda: SpikingEncoder([nn.Identity()]), "neither"),
        (lambda: SpikingEncoder([nn.ReLU()], stem=nn.ReLU()), "stem holds"),
        (lambda: SpikingEncoder([nn.ReLU()], outputs=(1,)), r"outputs is \(1,\)"),
        (lambda: SpikingEncoder([nn.ReLU()])(torch.ones(2, 8, 8)), r"events has shape \(2, 8, 8\)"),
        (lambda: CSPDarknetTiny(width=0), "3 and 0"),
        (lambda: EventTemporalAttention(4)(torch.ones(2, 4, 3, 3)), "features of events"),
        (lambda: ContextPooling(16), "16 and 16"),
        (lambda: SymmetricFusion(8, 2)(torch.ones(1, 8, 2, 2), torch.ones(1, 8, 2, 3)), "the same"),
        (lambda: AllDayBackbone(nn.Identity(), nn.Identity(), ()), "channels is empty"),
        (lambda: synaptic_operations(nn.Identity()), "inputs is empty"),
        (lambda: CentreHead((), 3), "channels is empty"),
        (lambda: CentreHead((4,), 0), "classes is 0"),
        (lambda: CentreHead((4,), 3)([torch.ones(1, 4, 2, 2)] * 2), "2 scales; expected 1"),
        (lambda: CentreHead((4,), 3).decode(perfect_output(BOXES, LABELS, 3, 8, 8), 0), "top is 0"),
        (lambda: CentreHead((4,), 2).loss(perfect_output(BOXES, LABELS, 3, 8, 8), BOXES, LABELS), "from -1 to 2"),
        (lambda: CentreHead((4,), 3).loss(perfect_output(BOXES, LABELS, 3, 8, 8), BOXES[0], LABELS), "boxes and"),
        (lambda: mean_average_precision(detections([[], []]), BOXES, LABELS, 3, overlap=0.0), "overlap is 0.0"),
        (lambda: mean_average_precision(detections([[]]), BOXES, LABELS, 3), r"expected \(1, M, 4\)"),
        (
            lambda: mean_average_precision(detections([[], []]), BOXES, LABELS, 3, difficult=torch.zeros(2)),
            r"difficult has shape \(2,\)",
        ),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# E-VOC

TINY_VOC = {"000005": (40, 60), "000007": (64, 48), "000009": (33, 33)}


def annotation(name: str, height: int, width: int) -> str:
    objects = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, difficult, left, top, right, bottom in (("dog", 0, 1, 1, width, height), ("Person", 1, 5, 7, 20, 30))
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def make_voc(root: Path, year: str = "2007", sets: tuple[str, ...] = ("trainval",)) -> Path:
    """Plain VOC, without what E-VOC adds."""
    folder = root / f"VOC{year}"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for number, (name, (height, width)) in enumerate(TINY_VOC.items()):
        blocks = pictures(1, 3, 8, 8, seed=number)
        image = torch.nn.functional.interpolate(blocks, (height, width))[0].movedim(0, -1)
        Image.fromarray((255 * image).byte().numpy()).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, height, width))
    for each in sets:
        (folder / "ImageSets" / "Main" / f"{each}.txt").write_text("\n".join(TINY_VOC) + "\n")
    return folder


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    folder = make_voc(tmp_path / "VOCdevkit")
    for factor in (0.2, 1.0, 5.0):
        voc.write_exposure(folder, factor)
    return folder.parent


def test_exposures_are_written_as_the_official_script_lays_them_out(devkit: Path) -> None:
    folder = devkit / "VOC2007"
    assert sorted(each.name for each in (folder / "Event").iterdir()) == sorted(TYPES)
    for kind, (name, shape) in zip(TYPES, TINY_VOC.items(), strict=True):
        events = np.load(folder / "Event" / kind / f"{name}.npy")
        assert events.shape == (*shape, 2)
        assert events.dtype == np.int64
        assert 0 <= int(events.min()) < int(events.max())
        assert read_image(folder / "ExposureImages" / kind / f"{name}.jpg").shape == (3, *shape)
    means = [float(read_image(folder / "ExposureImages" / kind / "000005.jpg").mean()) for kind in TYPES]
    assert means[0] < 0.3 * means[1] < means[1] < means[2]
    assert voc.write_exposure(folder, 0.2, seed=None, names=["000005"]) == "Underexposure_0.2"


def test_e_voc_is_read_padded_and_aligned(devkit: Path) -> None:
    folder = devkit / "VOC2007"
    # An event and a bright block in the same corner must stay above each other, in an image that is not square.
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, 30:] = 255
    Image.fromarray(image).save(folder / "ExposureImages" / TYPES[0] / "000005.jpg", quality=95)
    events = np.zeros((40, 60, 2), np.int64)
    events[:20, 30:, 1] = 7
    np.save(folder / "Event" / TYPES[0] / "000005.npy", events)
    data = voc.EventVOC(devkit, [("2007", "trainval")], TYPES[:2], side=60)
    assert len(data) == 6
    sample = data[0]
    assert sample.image.shape == (3, 60, 60)
    assert sample.events.shape == (2, 60, 60)
    inside = sample.events[1] == 7
    assert inside.nonzero().amin(dim=0).tolist() == [10, 30]
    assert inside.nonzero().amax(dim=0).tolist() == [29, 59]
    assert float(sample.image[:, inside].min()) > 0.8
    assert float(sample.events[0].max()) == 0
    assert sample.image[:, 0, 0].tolist() == pytest.approx(voc.MEAN)  # padding
    assert sample.labels[:3].tolist() == [11, 14, -1]
    assert sample.difficult[:3].tolist() == [False, True, False]
    assert sample.boxes[0].tolist() == [0, 10, 60, 50]  # the whole image
    assert sample.boxes[1].tolist() == [4, 16, 20, 40]
    assert [tuple(data[index].image.shape) for index in range(6)] == [(3, 60, 60)] * 6
    half = voc.EventVOC(devkit, [("2007", "trainval")], TYPES[:1], side=32)[1]  # 64 x 48
    assert half.boxes[0].tolist() == [4, 0, 28, 32]


def test_missing_parts_of_e_voc_are_named(devkit: Path) -> None:
    sets = [("2007", "trainval")]
    folder = devkit / "VOC2007"
    with pytest.raises(ValueError, match="no folder"):
        voc.EventVOC(devkit / "elsewhere", sets, TYPES)
    with pytest.raises(ValueError, match=r"VOC2012/Annotations, VOC2012/ImageSets/Main/trainval.txt"):
        voc.EventVOC(devkit, [*sets, ("2012", "trainval")], TYPES)
    with pytest.raises(ValueError, match=r"VOC2007/Event/Overexposure_3.0_random42 missing"):
        voc.EventVOC(devkit, sets, ("Overexposure_3.0_random42",))
    with pytest.raises(ValueError, match="expected at least one of each"):
        voc.EventVOC(devkit, sets, ())
    with pytest.raises(ValueError, match="side is 8"):
        voc.EventVOC(devkit, sets, TYPES, 8)
    (folder / "Event" / TYPES[1] / "000007.npy").unlink()
    with pytest.raises(ValueError, match=r"Overexposure_1.0_random42 is incomplete: 000007.npy missing"):
        voc.EventVOC(devkit, sets, TYPES)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"trainval\.txt is empty"):
        voc.EventVOC(devkit, sets, TYPES)
    with pytest.raises(ValueError, match="JPEGImages missing"):
        voc.write_exposure(devkit, 0.2)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Event/{}/000005.npy", b"\x93NUMPY\x01", "could not be read as events"),
        ("Event/{}/000005.npy", np.zeros((40, 60)), r"shape \(40, 60\)"),
        ("Event/{}/000005.npy", np.zeros((40, 61, 2)), r"\(40, 61\) pixels; expected those of the image, \(40, 60\)"),
        ("ExposureImages/{}/000005.jpg", b"no image", "could not be read as an image"),
        ("Annotations/000005.xml", b"<annotation><object>", "could not be read as an annotation"),
        ("Annotations/000005.xml", b"<a><object><name>unicorn</name></object></a>", "unknown class 'unicorn'"),
        ("Annotations/000005.xml", b"<a><object><name>dog</name></object></a>", "could not be read as an annotation"),
    ],
)
def test_damaged_files_are_named(devkit: Path, file: str, content: Any, message: str) -> None:
    data = voc.EventVOC(devkit, [("2007", "trainval")], TYPES[:1], 32)
    path = devkit / "VOC2007" / file.format(TYPES[0])
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message) as caught:
        data[0]
    assert "000005" in str(caught.value)


# Scenes and networks of the study


def test_scenes_hold_what_their_boxes_say() -> None:
    drawn = draw_scenes(60, 32, seeded())
    assert drawn.images.shape == (60, 3, 32, 32)
    assert 0 <= float(drawn.images.min()) < float(drawn.images.max()) <= 1
    there = drawn.labels >= 0
    assert there.sum(dim=1).unique().tolist() == [1, 2, 3]
    assert drawn.labels.unique().tolist() == [-1, 0, 1, 2, 3]
    assert float(drawn.boxes.min()) >= 0 and float(drawn.boxes.max()) <= 32
    overlap = box_iou(drawn.boxes, drawn.boxes) * ~torch.eye(3, dtype=torch.bool)
    assert float(overlap.max()) < 0.05 and float((overlap > 0).float().mean()) < 0.01  # hardly any scene is too full
    # Most of the difference from the ground's colour lies inside the boxes.
    corner = drawn.images.flatten(2).median(dim=2).values[..., None, None]
    far = (drawn.images - corner).abs().mean(dim=1)
    pixel = torch.arange(32) + 0.5
    inside = torch.zeros(60, 32, 32, dtype=torch.bool)
    for number in range(3):
        left, top, right, bottom = (drawn.boxes[:, number, side, None] for side in range(4))
        columns, rows = (pixel >= left) & (pixel <= right), (pixel >= top) & (pixel <= bottom)
        inside |= rows[:, :, None] & columns[:, None, :]
    assert float(far[inside].mean()) > 3 * float(far[~inside].mean())
    assert torch.equal(draw_scenes(60, 32, seeded()).images, drawn.images)


def test_camera_is_blind_where_it_should_be() -> None:
    drawn = draw_scenes(40, 32, seeded())
    recording = record(drawn, seeded(1))
    assert recording.photographs.shape == (len(LIGHTINGS), 40, 3, 32, 32)
    assert recording.events.shape == (len(LIGHTINGS), 40, 2, 32, 32)
    cut = [float((each == 1).float().mean()) for each in recording.photographs]
    assert cut[0] == 0 and cut[-1] > 0.3
    assert 0 < int(recording.elsewhere.sum()) < 40
    levels = photograph(drawn.images, torch.full((40,), 0.1), seeded()).mul(255).round().unique()
    assert len(levels) < 60
    # Events are the same in all lightings, but for the sensor's noise.
    same = (recording.events[0] == recording.events[-1]).float().mean()
    assert 0.8 < float(same) < 1


def test_arms_have_equal_parameters_and_shapes() -> None:
    plan = Plan.of(Scale.LAPTOP)
    torch.manual_seed(0)
    detectors = {arm: new_detector(arm, plan.size, 4) for arm in study.arms}
    counts = {arm: parameters(detector) for arm, detector in detectors.items()}
    assert all(abs(count / counts["symmetric"] - 1) < 0.05 for count in counts.values())
    for detector in detectors.values():
        output = detector(pictures(2, 3, 32, 32), 5 * pictures(2, 2, 32, 32))
        assert [tuple(each.shape) for each in output] == [(2, 4, 8, 8), (2, 2, 8, 8), (2, 2, 8, 8)]
    assert all((detectors[arm].event_backbone is None) == (arm == "rgb") for arm in study.arms)


def test_arms_with_the_same_layers_begin_with_the_same_weights() -> None:
    first = {}
    for arm in ("symmetric", "ann", "concat", "fixed"):
        torch.manual_seed(3)
        detector = new_detector(arm, SMALL, 4)
        backbone = detector.backbone
        assert isinstance(backbone, AllDayBackbone)
        first[arm] = [
            p for part in (backbone.rgb_backbone, backbone.event_backbone) for p in part.parameters() if p.ndim == 4
        ]
    for arm in ("ann", "concat", "fixed"):
        assert all(torch.equal(a, b) for a, b in zip(first[arm], first["symmetric"], strict=True))


def test_full_size_networks_fit_together() -> None:
    size = Plan.of(Scale.PAPER).size
    with torch.device("meta"):
        for arm in ("symmetric", "concat", "ann", "rgb", "events"):
            detector = new_detector(arm, size, 20).eval()
            output = detector(torch.empty(1, 3, 320, 320), torch.empty(1, 2, 320, 320))
            assert output.heat.shape == (1, 20, 40, 40)


# Training


def test_schedules_are_the_papers() -> None:
    factor = [training.warm_up_and_steps(step, 10) for step in range(500)]
    assert factor[0] == 0
    assert factor[10] == pytest.approx(1 / 16)
    assert (factor[20], factor[299]) == (1, 1)
    assert [factor[300], factor[400]] == pytest.approx([0.1, 0.01])
    rise = [training.rise_and_fall(step, 100) for step in range(100)]
    assert max(rise) == 1 and rise[0] == 0.05 and rise[-1] < 0.01


def test_boxes_are_mirrored_with_the_image() -> None:
    drawn = draw_scenes(6, 32, seeded())
    batch = (drawn.images, drawn.boxes, drawn.labels)
    sample = training.in_any_light(False)(batch, seeded(4))
    again = training.in_any_light(False)(batch, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(sample, again, strict=True))
    flipped = torch.tensor([True, False, True, True, False, True])
    boxes = training.flip(drawn.boxes, drawn.labels, 32, flipped)
    torch.testing.assert_close(training.flip(boxes, drawn.labels, 32, flipped), drawn.boxes)
    assert torch.equal(boxes[1], drawn.boxes[1])
    assert float(boxes[0, 0, 0]) == pytest.approx(32 - float(drawn.boxes[0, 0, 2]))
    assert float(boxes[drawn.labels < 0].abs().max()) == 0


def test_only_the_events_of_the_fixed_flow_differ() -> None:
    drawn = draw_scenes(6, 32, seeded())
    batch = (drawn.images, drawn.boxes, drawn.labels)
    random, fixed = (training.in_any_light(each)(batch, seeded(4)) for each in (False, True))
    assert torch.equal(random.image, fixed.image) and torch.equal(random.boxes, fixed.boxes)
    assert not torch.equal(random.events, fixed.events)


def test_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    averaged = training.Averaged(model, optimizer)
    expected, weight = 0.0, 0.0
    for step in range(1, 4):
        model.weight.grad = torch.full((1, 1), -1.0)
        optimizer.step()
        weight += 1
        decay = 0.9999 * (1 - math.exp(-step / 2000))
        expected = decay * expected + (1 - decay) * weight
    assert float(averaged.average.weight) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert int(averaged.updates) == 3


def test_training_with_the_papers_recipe_goes_on_from_its_checkpoint(devkit: Path, tmp_path: Path) -> None:
    data = voc.EventVOC(devkit, [("2007", "trainval")], TYPES, 32)
    budget = training.Budget(4, 3, 0.05, paper=True)

    class Stop(Exception):
        pass

    def run(checkpoint: Path | None, stop: float = 2.0) -> Detector:
        torch.manual_seed(0)
        detector = new_detector("symmetric", SMALL, 20)

        def progress(share: float) -> None:
            if share > stop:
                raise Stop

        return training.train(
            detector, data, training.mirrored_or_not, budget, 1, checkpoint=checkpoint, every=2, progress=progress
        )

    whole = run(None)
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        run(file, stop=0.6)
    assert file.exists()
    resumed = run(file)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    fresh = new_detector("symmetric", SMALL, 20)
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))
    found = training.detect(whole, training.from_voc(data, 4, 0), "cpu", 7)
    assert found.detections.boxes.shape == (9, 7, 4)
    assert found.labels.shape == (9, voc.MOST)
    assert len(found.only(torch.arange(9) < 2).labels) == 2


def test_weights_of_imagenet_are_loaded(tmp_path: Path) -> None:
    from working_papers.nn.resnet import resnet18

    size = Size(0, (), 8, 16, 4)
    torch.manual_seed(0)
    torch.save(resnet18(10).state_dict(), tmp_path / "resnet18.pth")
    torch.save(CSPDarknetTiny().state_dict(), tmp_path / "cspdarknet_tiny.pth")
    for arm in ("symmetric", "ann", "rgb"):
        detector = new_detector(arm, size, 3)
        training.load_image_weights(detector, tmp_path)
        image = detector.backbone if arm == "rgb" else detector.backbone.rgb_backbone
        saved = torch.load(tmp_path / "cspdarknet_tiny.pth")
        assert isinstance(image, CSPDarknetTiny)
        assert torch.equal(image.state_dict()["layer_4.0.convs.0.weight"], saved["layer_4.0.convs.0.weight"])
    torch.save({}, tmp_path / "cspdarknet_tiny.pth")
    with pytest.raises(ValueError, match=r"cspdarknet_tiny.pth lacks layer_1.0.convs.0.weight"):
        training.load_image_weights(new_detector("rgb", size, 3), tmp_path)


def test_a_detector_learns_a_handful_of_scenes() -> None:
    drawn = draw_scenes(16, 32, seeded())
    torch.manual_seed(0)
    detector = new_detector("symmetric", Size(8, (8, 16), 4, 16, 4), 4)
    training.train(detector, training.SceneSet(drawn), training.in_any_light(False), training.Budget(60, 8, 0.02), 0)
    recording = record(drawn, seeded(1))
    found = training.detect(detector, training.recorded(recording, drawn, 2), "cpu", 10)
    assert mean_average_precision(found.detections, found.boxes, found.labels, 4) > 0.5


@pytest.mark.parametrize("arm", ["symmetric", "rgb", "ann", "fixed"])
def test_trials_repeat_and_measure(arm: str) -> None:
    shared = scenes(7, Scale.SMOKE)
    trial = Trial(arm, 7, Scale.SMOKE, {"learning rate": 1.0})
    first, again = train_and_detect(trial, shared), train_and_detect(trial, shared)
    for name, value in first.items():
        assert np.array_equal(value, again[name]), name
    assert set(study.measures) <= set(first)
    assert float(first[WORST]) <= float(first[MEAN]) and float(first[WORST]) <= float(first[NORMAL])
    assert float(first[ENERGY]) == {"rgb": 0.0, "ann": 1.0}.get(arm, first[ENERGY])


def test_missing_data_is_named_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORKING_PAPERS_DATA", raising=False)
    with pytest.raises(ValueError, match="VOCdevkit"):
        scenes(0, Scale.PAPER)
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "eolo-weights").mkdir()
    with pytest.raises(ValueError, match=r"resnet18.pth, cspdarknet_tiny.pth missing"):
        scenes(0, Scale.PAPER)
    for name in ("resnet18.pth", "cspdarknet_tiny.pth"):
        (tmp_path / "eolo-weights" / name).touch()
    with pytest.raises(ValueError, match=r"VOC2007/Annotations.*Event/Underexposure_0.2"):
        scenes(0, Scale.PAPER)
