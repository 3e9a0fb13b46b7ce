"""Barlow Twins: identities of the loss, one process and two, LARS, the views, and what the study measures with."""

import colorsys
import copy
import gc
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from working_papers.bench import Scale, Trial
from working_papers.data.digits import LabelledImages
from working_papers.nn.processes import launch
from working_papers.papers.barlow_twins import (
    LARS,
    BarlowTwins,
    Projector,
    RandomView,
    barlow_twins_loss,
    barlow_twins_terms,
    cross_correlation,
    imagenet_views,
    lars_parameters,
    warm_up_cosine,
)
from working_papers.papers.barlow_twins.study import FULL, PROBE, RANK, SPREAD, TUNED, images, learn_and_probe
from working_papers.papers.barlow_twins.training import (
    Batches,
    DigitView,
    Size,
    calibrate,
    effective_rank,
    few_labels,
    info_nce,
    probe,
    train,
)
from working_papers.testing import assert_gradients_reach_parameters

SHAPES = [(12, 5), (8, 8), (6, 20), (2, 3)]  # both ways of computing the redundancy, and the smallest batch


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def two_views(samples: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    common = gaussian(samples, features, seed=seed)
    views = [(common + gaussian(samples, features, seed=seed + each)).to(dtype) for each in (1, 2)]
    return views[0].requires_grad_(), views[1].requires_grad_()


def by_the_book(z1: Tensor, z2: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """Correlation matrix, invariance and redundancy from plain definitions, with a mask for the diagonal."""
    u1, u2 = ((z - z.mean(0)) / (((z - z.mean(0)) ** 2).mean(0) + eps).sqrt() for z in (z1, z2))
    c = torch.einsum("ni,nj->ij", u1, u2) / len(z1)
    mask = torch.eye(len(c), dtype=torch.bool)
    return c, (c[mask] - 1).square().sum(), c[~mask].square().sum()


# The loss


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    z1, z2 = two_views(*shape)
    c, invariance, redundancy = by_the_book(z1, z2)
    torch.testing.assert_close(cross_correlation(z1, z2), c)
    got = barlow_twins_terms(z1, z2)
    torch.testing.assert_close(got, (invariance, redundancy))
    expected = torch.autograd.grad(0.7 * invariance + 0.03 * redundancy, (z1, z2))
    torch.testing.assert_close(torch.autograd.grad(0.7 * got[0] + 0.03 * got[1], (z1, z2)), expected)
    torch.testing.assert_close(barlow_twins_loss(z1, z2), invariance + 0.0051 * redundancy)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradients_are_numerical_ones(shape: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(barlow_twins_terms, two_views(*shape))
    assert torch.autograd.gradcheck(cross_correlation, two_views(*shape))


def test_one_view_may_be_without_gradient() -> None:
    for shape in SHAPES:
        z1, z2 = two_views(*shape)
        both = torch.autograd.grad(barlow_twins_loss(z1, z2), (z1, z2))
        torch.testing.assert_close(torch.autograd.grad(barlow_twins_loss(z1, z2.detach()), z1)[0], both[0])
        torch.testing.assert_close(torch.autograd.grad(barlow_twins_loss(z1.detach(), z2), z2)[0], both[1])
        assert min(float(each.abs().max()) for each in both) > 1e-6  # no gradient is stopped


def test_views_that_agree_in_whitened_features_cost_nothing() -> None:
    centred = gaussian(64, 8) - gaussian(64, 8).mean(0)
    z = torch.linalg.qr(centred)[0] * 8  # orthogonal columns of variance 1
    assert float(barlow_twins_loss(z, z)) < 1e-6
    torch.testing.assert_close(cross_correlation(z, z), torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_collapse_costs_the_number_of_features(shape: tuple[int, int]) -> None:
    z = torch.ones(shape) * torch.arange(shape[1])
    assert float(cross_correlation(z, z).abs().max()) < 1e-6  # up to rounding of the mean
    assert float(barlow_twins_loss(z, z)) == pytest.approx(shape[1], rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_symmetries(shape: tuple[int, int]) -> None:
    z1, z2 = (z.detach() for z in two_views(*shape))
    loss = barlow_twins_loss(z1, z2, eps=1e-12)
    features, samples = torch.randperm(shape[1]), torch.randperm(shape[0])
    signs = gaussian(shape[1], seed=5).sign()
    stretched = z1 * gaussian(shape[1], seed=6).exp() + gaussian(shape[1], seed=7)
    for case, (a, b) in {
        "scale and shift of one view": (stretched, z2),
        "order of the features": (z1[:, features], z2[:, features]),
        "signs of the features": (z1 * signs, z2 * signs),
        "order of the samples": (z1[samples], z2[samples]),
        "views change places": (z2, z1),
    }.items():
        torch.testing.assert_close(barlow_twins_loss(a, b, eps=1e-12), loss, msg=f"not the same: {case}")
    torch.testing.assert_close(cross_correlation(z1, z2), cross_correlation(z2, z1).T)
    assert float(cross_correlation(z1, z2).abs().max()) <= 1
    assert not torch.isclose(barlow_twins_loss(z1 * signs, z2, eps=1e-12), loss)


def test_diagonal_reaches_one_only_with_the_biased_variance() -> None:
    z = gaussian(4, 3)
    torch.testing.assert_close(
        cross_correlation(z, z, eps=1e-12).diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    for shape in ((64, 300), (64, 16)):
        z1, z2 = two_views(*shape, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            loss = barlow_twins_loss(z1, z2)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, barlow_twins_loss(z1.float(), z2.float()), rtol=1e-5, atol=0)
        loss.backward()
        assert z1.grad is not None
        assert z1.grad.dtype == dtype


def test_mixed_dtypes_take_the_wider() -> None:
    z1, z2 = two_views(8, 4)
    assert barlow_twins_loss(z1, z2.float()).dtype == torch.float64


def test_both_ways_agree_in_float32_near_the_optimum() -> None:
    z = gaussian(32, 64, dtype=torch.float32)  # at N = D/2, where the difference of squares is least safe
    near = z + 0.01 * gaussian(32, 64, seed=1, dtype=torch.float32)
    exact = by_the_book(z.double(), near.double())[2]
    torch.testing.assert_close(barlow_twins_terms(z, near)[1].double(), exact, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
@pytest.mark.parametrize("shape", [(12, 5), (6, 20)])
def test_compiles_and_transforms(shape: tuple[int, int]) -> None:
    z1, z2 = two_views(*shape)
    compiled = torch.compile(barlow_twins_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z1, z2), barlow_twins_loss(z1, z2))
    gradient = torch.autograd.grad(barlow_twins_loss(z1, z2), z1)[0]
    torch.testing.assert_close(torch.func.grad(barlow_twins_loss)(z1, z2), gradient)
    torch.testing.assert_close(torch.autograd.grad(compiled(z1, z2), z1)[0], gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: barlow_twins_loss(z[0], z), r"z1 has shape \(3,\)"),
        (lambda z: barlow_twins_loss(z, z[:4]), r"z2 has shape \(4, 3\)"),
        (lambda z: barlow_twins_loss(z[:1], z[:1]), "two samples"),
        (lambda z: barlow_twins_loss(z[:, :0], z[:, :0]), "one feature"),
        (lambda z: barlow_twins_loss(z.long(), z), "int64"),
        (lambda z: barlow_twins_loss(z, z, lambd=-1.0), "lambd is -1.0"),
        (lambda z: barlow_twins_loss(z, z, lambd=math.nan), "lambd is nan"),
        (lambda z: cross_correlation(z, z, eps=0.0), "eps is 0.0"),
        (lambda z: Projector(4, layers=0), "layers is 0"),
        (lambda z: Projector(0), "in_features is 0"),
        (lambda z: BarlowTwins(nn.Identity(), nn.Identity(), lambd=math.inf), "lambd is inf"),
    ],
    ids=["vector", "sizes", "one sample", "no feature", "integers", "negative", "nan", "eps", "layers", "in", "module"],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(gaussian(6, 3))


# Several processes


def small_model(across_processes: bool) -> BarlowTwins:
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Linear(6, 10), nn.Tanh()).double()
    return BarlowTwins(backbone, nn.Linear(10, 24).double(), 0.02, across_processes)


def in_group() -> dict[str, Any]:
    """What one of two processes finds, with five and with three of eight samples."""
    part = slice(0, 5) if dist.get_rank() == 0 else slice(5, 8)
    result: dict[str, Any] = {}
    for features in (3, 24):
        z1, z2 = (z.detach()[part].requires_grad_() for z in two_views(8, features))
        loss = barlow_twins_loss(z1, z2, 0.1, group=dist.group.WORLD)
        gradients = torch.autograd.grad(loss * (dist.get_rank() + 1), (z1, z2))
        correlation = cross_correlation(z1, z2, group=dist.group.WORLD)
        result[f"loss {features}"] = (loss.detach(), gradients, correlation.detach())
    model = nn.parallel.DistributedDataParallel(small_model(True))
    halves = [gaussian(8, 6, seed=each).chunk(2)[dist.get_rank()] for each in (1, 2)]
    output = model(*halves)
    output.loss.backward()
    result["model"] = (output.loss.detach(), [p.grad for p in model.parameters()])
    # Graphs hold the group; one that outlives it can abort the process at its end.
    del model, output, loss, gradients, correlation
    gc.collect()
    dist.barrier()
    return result


def test_two_processes_compute_what_one_does() -> None:
    first, second = launch(in_group, 2)
    for features in (3, 24):
        z1, z2 = two_views(8, features)
        loss = barlow_twins_loss(z1, z2, 0.1)
        # The processes weigh their losses by 1 and 2; gradients are those of the sum, 3 times the loss.
        expected = torch.autograd.grad(3 * loss, (z1, z2))
        for found in (first, second):
            torch.testing.assert_close(found[f"loss {features}"][0], loss.detach())
            torch.testing.assert_close(found[f"loss {features}"][2], cross_correlation(z1, z2).detach())
        for view in (0, 1):
            parts = [found[f"loss {features}"][1][view] for found in (first, second)]
            torch.testing.assert_close(torch.cat(parts), expected[view])
    model = small_model(False)
    output = model(gaussian(8, 6, seed=1), gaussian(8, 6, seed=2))
    output.loss.backward()
    for found in (first, second):
        torch.testing.assert_close(found["model"][0], output.loss.detach())
        torch.testing.assert_close(found["model"][1], [p.grad for p in model.parameters()])


# Projector and model


def test_projector_is_three_linear_layers_without_bias() -> None:
    projector = Projector(6, hidden=10, out=7)
    kinds = [type(layer).__name__ for layer in projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert sum(p.numel() for p in projector.parameters()) == 6 * 10 + 10 * 10 + 10 * 7 + 2 * 2 * 10
    assert Projector(6, layers=1, out=3)(torch.ones(2, 6)).shape == (2, 3)
    assert next(Projector(4).parameters()).shape == (8192, 4)


def test_model_wraps_any_backbone() -> None:
    torch.manual_seed(0)
    model = BarlowTwins(nn.Sequential(nn.Flatten(), nn.Linear(12, 9)), Projector(9, 16, 20), lambd=0.05)
    view1, view2 = torch.randn(10, 3, 2, 2), torch.randn(10, 3, 2, 2)
    output = model(view1, view2)
    torch.testing.assert_close(output.loss, output.invariance + 0.05 * output.redundancy)
    torch.testing.assert_close(output.loss, barlow_twins_loss(output.embedding1, output.embedding2, 0.05))
    torch.testing.assert_close(output.correlation, cross_correlation(output.embedding1, output.embedding2))
    assert output.correlation.shape == (20, 20)
    assert not output.embedding1.requires_grad
    torch.testing.assert_close(model.embed(view1), model.backbone(view1))
    assert_gradients_reach_parameters(model, view1, view2)


def test_views_pass_one_after_the_other() -> None:
    seen: list[int] = []

    class Backbone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    BarlowTwins(Backbone(), nn.Identity())(gaussian(6, 3), gaussian(6, 3, seed=1))
    assert seen == [6, 6]


def test_model_state_round_trip_and_pickle() -> None:
    model = BarlowTwins(nn.Linear(4, 6), Projector(6, 8, 12))
    views = (gaussian(8, 4, dtype=torch.float32), gaussian(8, 4, seed=1, dtype=torch.float32))
    model(*views)
    fresh = BarlowTwins(nn.Linear(4, 6), Projector(6, 8, 12))
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    again = pickle.loads(pickle.dumps(model))
    for other in (fresh.eval(), again.eval()):
        torch.testing.assert_close(other(*views).loss, model.eval()(*views).loss, rtol=0, atol=0)


# LARS


def stepped(p: Tensor, gradients: list[Tensor], **settings: Any) -> Tensor:
    parameter = nn.Parameter(p.clone())
    optimizer = LARS([parameter], **settings)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def test_lars_follows_its_formula() -> None:
    p, gradients = gaussian(4, 3), [gaussian(4, 3, seed=each) for each in (1, 2, 3)]
    expected, momentum = p.clone(), torch.zeros(4, 3, dtype=torch.float64)
    for gradient in gradients:
        d = gradient + 0.1 * expected
        d = 0.02 * expected.norm() / d.norm() * d
        momentum = 0.8 * momentum + d
        expected = expected - 0.5 * momentum
    got = stepped(p, gradients, lr=0.5, momentum=0.8, weight_decay=0.1, trust=0.02)
    torch.testing.assert_close(got, expected)


def test_lars_moves_a_matrix_by_a_share_of_its_norm_whatever_the_gradient() -> None:
    p = gaussian(4, 3)
    for scale in (1e-3, 1.0, 1e3):
        moved = stepped(p, [scale * gaussian(4, 3, seed=1)], lr=0.2, weight_decay=0.0) - p
        torch.testing.assert_close(moved.norm(), 0.2 * 0.001 * p.norm())


def test_lars_leaves_vectors_plain() -> None:
    p, gradient = gaussian(5), gaussian(5, seed=1)
    torch.testing.assert_close(stepped(p, [gradient], lr=0.1, weight_decay=0.3), p - 0.1 * gradient)
    twice = p - 0.1 * gradient - 0.1 * 1.9 * gradient
    torch.testing.assert_close(stepped(p, [gradient, gradient], lr=0.1), twice)


def test_lars_takes_zero_norms_as_they_are() -> None:
    gradient = gaussian(3, 2)
    torch.testing.assert_close(stepped(torch.zeros(3, 2, dtype=torch.float64), [gradient], lr=0.1), -0.1 * gradient)
    still = stepped(gaussian(3, 2), [torch.zeros(3, 2, dtype=torch.float64)], lr=0.1, weight_decay=0.0)
    assert torch.equal(still, gaussian(3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lars_measures_norms_in_float32(dtype: torch.dtype) -> None:
    p = torch.full((300, 300), 300.0, dtype=dtype)  # its sum of squares is beyond float16
    moved = stepped(p, [torch.ones_like(p)], lr=100.0, weight_decay=0.0)
    torch.testing.assert_close(moved.float(), torch.full((300, 300), 270.0), rtol=1e-2, atol=0)


def test_lars_resumes_and_takes_a_tensor_as_rate() -> None:
    p, gradients = gaussian(4, 3), [gaussian(4, 3, seed=each) for each in (1, 2, 3)]
    parameter = nn.Parameter(p.clone())
    first = LARS([parameter], lr=torch.tensor(0.3))
    for gradient in gradients[:2]:
        parameter.grad = gradient.clone()
        first.step()
    second = LARS([parameter], lr=1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    parameter.grad = gradients[2].clone()
    second.step()
    torch.testing.assert_close(parameter.detach(), stepped(p, gradients, lr=0.3))


def test_lars_calls_a_closure_and_skips_what_has_no_gradient() -> None:
    used, unused = nn.Parameter(gaussian(2, 2)), nn.Parameter(gaussian(2, 2, seed=1))
    optimizer = LARS([used, unused])

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(float(gaussian(2, 2).square().sum()))
    assert torch.equal(unused.detach(), gaussian(2, 2, seed=1))


@pytest.mark.parametrize(
    "settings", [{"lr": -0.1}, {"momentum": 1.0}, {"weight_decay": math.inf}, {"trust": -1.0}], ids=str
)
def test_lars_refuses_bad_numbers(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        LARS([nn.Parameter(gaussian(2, 2))], **settings)


def test_lars_refuses_sparse_gradients() -> None:
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        LARS(embedding.parameters()).step()


def test_learning_rates_are_the_papers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    matrices, vectors = lars_parameters(model, batch_size=2048)
    assert (matrices["lr"], vectors["lr"]) == (pytest.approx(1.6), pytest.approx(0.0384))
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]
    assert len(lars_parameters(nn.Linear(2, 2, bias=False))) == 1
    with pytest.raises(ValueError, match="batch_size is 0"):
        lars_parameters(model, 0)


def test_schedule_rises_and_falls() -> None:
    factors = [warm_up_cosine(step, 10, 110) for step in range(111)]
    assert factors[0] == 0
    assert factors[5] == 0.5
    assert factors[10] == 1
    assert factors[60] == pytest.approx((1 + 0.001) / 2)
    assert factors[110] == pytest.approx(0.001)
    assert warm_up_cosine(500, 10, 110) == pytest.approx(0.001)
    with pytest.raises(ValueError, match="warm_up is 5"):
        warm_up_cosine(0, 5, 5)


# Views

NEUTRAL: dict[str, Any] = {"area": (1.0, 1.0), "flip": 0.0, "jitter_share": 0.0, "grey": 0.0}


def pictures(count: int = 4, side: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_views_are_repeatable_and_in_range() -> None:
    view = RandomView(16, blur=0.5, solarise=0.5)
    first, second, other = (view(pictures(8), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (8, 3, 16, 16)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert view(pictures(2, dtype=torch.float64), seeded()).dtype == torch.float64


def test_paper_views_are_normalised_and_asymmetric() -> None:
    x = pictures(64)
    first, second = imagenet_views(x, 20, seeded())
    assert first.shape == second.shape == (64, 3, 20, 20)
    rough = [(view[..., 1:] - view[..., :-1]).abs().mean(dim=(1, 2, 3)) for view in (first, second)]
    assert float(rough[0].median()) < 0.5 * float(rough[1].median())  # all of the first are blurred
    grey = torch.full((2, 3, 8, 8), 0.4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    restored = imagenet_views(grey, 8, seeded())[0] * std[:, None, None] + mean[:, None, None]
    assert float((restored - restored.mean(dim=(2, 3), keepdim=True)).abs().max()) < 1e-5


def test_crops_have_the_area_and_a_shape_between_three_quarters_and_four_thirds() -> None:
    side = 64
    ramp = torch.linspace(0, 1, side).expand(200, 3, side, side)
    ramp = torch.stack([ramp[:, 0], ramp[:, 0].mT, ramp[:, 0]], dim=1)  # one channel rises across, one down
    out = RandomView(32, area=(0.25, 0.25), flip=0.5, jitter_share=0.0, grey=0.0)(ramp, seeded())
    rise = (side - 1) / side * 32 / 16  # from the slope over the middle half to the share of the side that is covered
    across, down = (out[:, 0, 0, 24] - out[:, 0, 0, 8]) * rise, (out[:, 1, 24, 0] - out[:, 1, 8, 0]) * rise
    assert 0.3 < float((across < 0).double().mean()) < 0.7  # flipped
    assert float(down.min()) > 0
    torch.testing.assert_close(across.abs() * down, torch.full((200,), 0.25), atol=0, rtol=0.03)
    ratio = across.abs() / down
    assert 3 / 4 - 0.03 < float(ratio.min()) < 0.8
    assert 1.26 < float(ratio.max()) < 4 / 3 + 0.05


def test_a_crop_of_everything_is_complete_on_one_side() -> None:
    down = torch.linspace(0, 1, 20)[:, None].expand(15, 3, 20, 20)
    across = down.mT
    view = RandomView(20, **NEUTRAL)  # the whole area, oblong: cut to the image
    lost = torch.stack([(view(x, seeded()) - x).abs().amax(dim=(1, 2, 3)) for x in (down, across)])
    assert float(lost.amin(dim=0).max()) < 1e-5
    assert float(lost.amax(dim=0).min()) > 1e-4


def test_flip_mirrors() -> None:
    plain, flipped = (RandomView(20, **{**NEUTRAL, "flip": p})(pictures(), seeded()) for p in (0.0, 1.0))
    torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-5, rtol=0)


def test_colours_follow_the_definition() -> None:
    x = pictures(3, 6)
    flat = x.movedim(1, -1).reshape(-1, 3)
    for shift in (-0.1, 0.07):
        from working_papers.papers.barlow_twins.method.views import _shift_hue

        got = _shift_hue(x, torch.full((3, 1, 1, 1), shift)).movedim(1, -1).reshape(-1, 3)
        expected = []
        for colour in flat.tolist():
            hue, saturation, value = colorsys.rgb_to_hsv(*colour)
            expected.append(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=0)
    grey = RandomView(6, **{**NEUTRAL, "grey": 1.0})(x, seeded())
    plain = RandomView(6, **NEUTRAL)(x, seeded())
    luma = (plain * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], luma)


def test_jitter_keeps_its_limits() -> None:
    x = torch.full((400, 3, 4, 4), 0.5)
    view = RandomView(4, **{**NEUTRAL, "jitter_share": 1.0, "jitter": (0.4, 0.0, 0.0, 0.0)})
    out = view(x, seeded()).mean(dim=(1, 2, 3))
    assert 0.3 <= float(out.min()) < 0.32
    assert 0.68 < float(out.max()) <= 0.7
    share = RandomView(4, **{**NEUTRAL, "jitter_share": 0.8})(x, seeded()).mean(dim=(1, 2, 3))
    assert 0.72 < float(((share - 0.5).abs() > 1e-6).double().mean()) < 0.88


def test_blur_is_a_gaussian_of_each_images_own_width() -> None:
    from working_papers.papers.barlow_twins.method.views import _blur

    x = torch.zeros(2, 3, 41, 41, dtype=torch.float64)
    x[:, :, 20, 20] = 1
    sigma = torch.tensor([0.8, 2.0], dtype=torch.float64)
    out = _blur(x, sigma, 2.0)
    torch.testing.assert_close(out.sum(dim=(2, 3)), torch.ones(2, 3, dtype=torch.float64))
    offset = torch.arange(41, dtype=torch.float64) - 20
    variance = (out[:, 0].sum(dim=1) * offset.square()).sum(dim=1)
    torch.testing.assert_close(variance, sigma.square(), rtol=0.03, atol=0)
    assert torch.allclose(_blur(torch.full_like(x, 0.3), sigma, 2.0), torch.full_like(x, 0.3))


def test_solarise_inverts_bright_values() -> None:
    x = torch.tensor([0.2, 0.5, 0.51, 0.9])[:, None, None, None].expand(4, 3, 4, 4)
    out = RandomView(4, **NEUTRAL, solarise=1.0)(x, seeded()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(out, torch.tensor([0.2, 0.5, 0.49, 0.1]))


@pytest.mark.parametrize(
    "settings",
    [{"size": 0}, {"flip": 1.5}, {"area": (0.5, 0.2)}, {"sigma": (0.0, 1.0)}, {"jitter": (0.1, 0.1, 0.1, 0.6)}],
    ids=lambda settings: next(iter(settings)),
)
def test_views_refuse_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        RandomView(**settings)


def test_views_refuse_other_images() -> None:
    with pytest.raises(ValueError, match=r"\(4, 1, 8, 8\)"):
        RandomView(8)(torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        RandomView(8)(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))


# The study's instruments


def test_probe_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = gaussian(60, 5), torch.arange(60) % 3
    x[:, 0] += y  # something to find
    tested, truth = gaussian(90, 5, seed=1), torch.arange(90) % 3
    tested[:, 0] += truth
    draws = torch.stack([torch.arange(30), torch.arange(30, 60)])
    expected = []
    for draw in draws:
        mean, std = x[draw].mean(0), x[draw].std(0) + 1e-6
        model = LogisticRegression(tol=1e-8, max_iter=2000).fit(((x[draw] - mean) / std).numpy(), y[draw].numpy())
        expected.append(model.score(((tested - mean) / std).numpy(), truth.numpy()))
    assert probe(x, y, draws, tested, truth).tolist() == pytest.approx(expected)


def test_few_labels_are_as_many_of_each_class() -> None:
    labels = torch.arange(50) % 5
    first = few_labels(labels, 3, 0)
    assert labels[first].bincount().tolist() == [3] * 5
    assert len(first.unique()) == 15
    assert first.tolist() == few_labels(labels, 3, 0).tolist() != few_labels(labels, 3, 1).tolist()


def test_effective_rank_counts_directions() -> None:
    basis = torch.linalg.qr(gaussian(200, 6) - gaussian(200, 6).mean(0))[0]
    assert effective_rank(7 * basis) == pytest.approx(6)
    assert effective_rank(basis[:, :1] @ gaussian(1, 6)) == pytest.approx(1)
    assert effective_rank(torch.ones(9, 4)) == 1


def test_info_nce_finds_partners() -> None:
    z = torch.linalg.qr(gaussian(8, 8))[0]
    others = 2 * 8 - 2
    assert float(info_nce(z, z, 0.5)) == pytest.approx(math.log1p(others * math.exp(-2)), rel=1e-5)
    assert float(info_nce(3 * z, z, 0.5)) == pytest.approx(float(info_nce(z, z, 0.5)), rel=1e-5)


def test_digit_view_moves_what_it_says() -> None:
    still = DigitView(0, 0, 0, 0, 0, 0)
    x = torch.rand(6, 1, 8, 8, generator=seeded())
    torch.testing.assert_close(still(x, seeded()), x)
    holes = DigitView(0, 0, 0, 0, 0, 2)(torch.ones(400, 1, 8, 8), seeded())
    missing = (holes == 0).sum(dim=(1, 2, 3))
    assert set(missing.tolist()) == {0, 4}
    assert 0.4 < float((missing == 4).double().mean()) < 0.6
    assert bool((holes == 0).any(dim=0).all())  # it may be anywhere
    shifted = DigitView(0, 0, 1, 0, 0, 0)(torch.eye(8)[3].expand(100, 1, 8, 8), seeded())
    place = (shifted[:, 0, 4] * torch.arange(8)).sum(dim=1) / shifted[:, 0, 4].sum(dim=1)
    assert 0.8 < float((place - 3).abs().max()) <= 1


def test_batches_resume_where_they_were() -> None:
    data = LabelledImages(torch.rand(20, 1, 8, 8, generator=seeded()), torch.arange(20))
    batches = Batches(data, 6, 2, DigitView(), 4)
    stream, later = batches(0), batches(4)
    seen = [next(stream) for _ in range(6)]
    for expected in seen[4:]:
        views, labels = next(later)
        assert torch.equal(labels, expected[1])
        assert all(torch.equal(a, b) for a, b in zip(views, expected[0], strict=True))
    assert len(torch.cat([labels for _, labels in seen[:3]]).unique()) == 18
    assert not torch.equal(*seen[0][0])


def test_calibration_standardises_an_untrained_network() -> None:
    norm = nn.BatchNorm1d(3)
    x = 5 + 2 * gaussian(500, 3, dtype=torch.float32)
    calibrate(norm, x)
    norm.eval()
    torch.testing.assert_close(norm(x).mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    assert norm.momentum == 0.1


def test_training_without_labels_lowers_the_loss_at_both_scales() -> None:
    data = LabelledImages(torch.rand(64, 3, 4, 4, generator=seeded()), torch.zeros(64, dtype=torch.int64))

    def gentle(images: Tensor, generator: torch.Generator) -> Tensor:
        return images + 0.05 * torch.randn(images.shape, generator=generator)

    for scale, rate in ((Scale.LAPTOP, 0.01), (Scale.PAPER, 4.0)):
        torch.manual_seed(0)
        model = BarlowTwins(nn.Flatten(), Projector(48, 32, 16), lambd=0.05)
        batches = Batches(data, 32, 2, gentle, 0)
        held, _ = next(Batches(data, 64, 2, gentle, 9)(0))
        before = model(*held).loss.item()
        train(model, batches, lambda net, batch: net(*batch[0]).loss, 40, rate, scale)
        model.train()
        assert model(*held).loss.item() < 0.6 * before


def test_trial_measures_and_repeats() -> None:
    def run(arm: str, **setting: float) -> dict[str, Any]:
        trial = Trial(arm, 11, Scale.SMOKE, setting)
        return dict(learn_and_probe(trial, images(11, Scale.SMOKE)))

    first, again = run("barlow", **{"lambda": 0.02}), run("barlow", **{"lambda": 0.02})
    for name in (PROBE, FULL, TUNED, RANK, SPREAD):
        assert first[name] == again[name]
        assert np.isfinite(first[name])
    assert np.array_equal(first["correlation"], again["correlation"])
    assert first["correlation"].max() <= 1
    assert run("narrow", **{"lambda": 0.02})["parameters"] < first["parameters"]
    assert run("pixels")["parameters"] == 0


def test_paper_scale_reads_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(ValueError, match="data_batch_1"):
        images(0, Scale.PAPER)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        batch = {"data": random.integers(256, size=(4, 3072), dtype=np.uint8), "labels": [0, 1, 0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch))
    tiny = Size((), 16, 16, 8, 4, 10, 1, 2, 2, 1, 4, 1)
    monkeypatch.setattr(Size, "of", classmethod(lambda cls, scale: tiny))
    shared = images(0, Scale.PAPER)
    assert shared.train.images.shape == (20, 3, 32, 32)
    found = learn_and_probe(Trial("barlow", 1, Scale.PAPER, {"lambda": 0.02}), shared)
    assert 0 <= float(found[PROBE]) <= 1
    assert not list((tmp_path / "home").rglob("*.pt"))  # the checkpoint is gone once the trial is through
