"""HyPINO: exact derivatives, manufactured problems, images and geometry, the hypernetwork, refinement, tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale
from working_papers.papers.hypino import (
    WEIGHTS,
    AttentionPool,
    Ensemble,
    FiLM,
    Holes,
    HyperPINN,
    ImageEncoder,
    Jet,
    LinearPDE,
    ManufacturedSolution,
    ModulatedMLP,
    Points,
    WarmCosine,
    apply_operator,
    compress_source,
    finetune,
    fourier_features,
    grid_points,
    paper_optimizer,
    physics_loss,
    refine,
    residual_problem,
    sample_mms_problem,
    sample_operator,
    sample_problems,
    square_outline,
    training_loss,
)
from working_papers.papers.hypino import study as room
from working_papers.papers.hypino.judging import textbook
from working_papers.papers.hypino.training import UNet, small_hypernetwork
from working_papers.testing import (
    assert_deterministic,
    assert_gradients_reach_parameters,
)

FLOAT64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_points(*shape: int, dtype: torch.dtype = FLOAT64) -> Tensor:
    return (2 * torch.rand(*shape, 2, generator=seeded(9), dtype=FLOAT64) - 1).to(dtype)


def random_params(target: ModulatedMLP, count: int, dtype: torch.dtype = FLOAT64) -> list[Tensor]:
    generator = seeded(1)
    return [
        p + 0.3 * torch.randn(p.shape, generator=generator, dtype=FLOAT64).to(dtype)
        for p in target.initialize(count, generator, dtype=dtype)
    ]


def double_autograd(function: Callable[[Tensor], Tensor], xy: Tensor) -> Jet:
    xy = xy.detach().requires_grad_()
    u = function(xy)
    (first,) = torch.autograd.grad(u.sum(), xy, create_graph=True)
    (of_x,) = torch.autograd.grad(first[..., 0].sum(), xy, retain_graph=True)
    (of_y,) = torch.autograd.grad(first[..., 1].sum(), xy)
    return Jet(*(part.detach() for part in (u, first[..., 0], first[..., 1], of_x[..., 0], of_y[..., 1])))


def tiny_model(grid: int = 16) -> HyperPINN:
    encoder = ImageEncoder(grid, (8, 12), (1, 1), (2, 2), stem=8, condition=12, block="convolution")
    return HyperPINN(encoder, ModulatedMLP(6, 2), condition=(8, 4), heads=2, generator=seeded())


class Swap(nn.Module):
    """A hypernetwork that knows the answers: it gives prepared parameters, call by call."""

    def __init__(self, target: ModulatedMLP, *answers: list[Tensor]) -> None:
        super().__init__()
        self.target, self.answers, self.seen = target, list(answers), []  # type: ignore[var-annotated]

    def forward(self, pde: LinearPDE) -> list[Tensor]:
        self.seen.append(pde)
        return self.answers[len(self.seen) - 1]


def problem_of(jet: Callable[[Tensor], Jet], coefficients: Tensor, grid: int = 12) -> LinearPDE:
    """A square with values on all sides and derivatives on the right, of a known solution."""
    count = len(coefficients)
    pixels = grid_points(grid, dtype=FLOAT64).reshape(-1, 2).expand(count, -1, 2)
    found = jet(pixels)
    edge = (pixels.abs() > 1 - 1e-9).any(-1)
    right = pixels[..., 0] > 1 - 1e-9
    normals = torch.stack([right.to(FLOAT64), torch.zeros_like(found.u)], dim=1)

    def image(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], grid, grid)

    return LinearPDE(
        coefficients,
        image(edge.to(FLOAT64)),
        image(right.to(FLOAT64)),
        image(found.u * edge),
        image(found.ux * right),
        image(apply_operator(coefficients, found)),
        image(normals),
    )


# The generated network


@pytest.mark.parametrize(("width", "hidden"), [(32, 3), (7, 1)])
@pytest.mark.parametrize("shared", [True, False])
def test_jet_is_double_autograd(width: int, hidden: int, shared: bool) -> None:
    target = ModulatedMLP(width, hidden)
    params = random_params(target, 3)
    xy = some_points(11) if shared else some_points(3, 11)
    expected = double_autograd(lambda x: target.apply(params, x), xy.expand(3, 11, 2))
    for got, wanted in zip(target.jet(params, xy), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_jet_is_the_same_without_gradients_and_on_many_points() -> None:
    target = ModulatedMLP(8, 2)
    params = [p.requires_grad_() for p in random_params(target, 2)]
    xy = some_points(2, 3001)
    with torch.no_grad():
        quick = target.jet(params, xy)
    for got, wanted in zip(quick, target.jet(params, xy), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_jet_gradients_are_those_of_nested_autograd() -> None:
    target = ModulatedMLP(5, 2)
    params = [p.requires_grad_() for p in random_params(target, 2)]
    xy = some_points(2, 7).requires_grad_()
    weights = torch.randn(5, 2, 7, generator=seeded(4), dtype=FLOAT64)
    u = target.apply(params, xy)
    (first,) = torch.autograd.grad(u.sum(), xy, create_graph=True)
    (of_x,) = torch.autograd.grad(first[..., 0].sum(), xy, create_graph=True)
    (of_y,) = torch.autograd.grad(first[..., 1].sum(), xy, create_graph=True)
    nested = torch.stack([u, first[..., 0], first[..., 1], of_x[..., 0], of_y[..., 1]])
    expected = torch.autograd.grad((nested * weights).sum(), params)
    got = torch.autograd.grad((torch.stack(list(target.jet(params, xy.detach()))) * weights).sum(), params)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_batch_is_its_networks_one_by_one() -> None:
    target = ModulatedMLP(6, 2)
    params = random_params(target, 4)
    xy = some_points(4, 5)
    together, jets = target.apply(params, xy), target.jet(params, xy)
    for i in range(4):
        own = [p[i] for p in params]
        torch.testing.assert_close(target.apply(own, xy[i], batched=False), together[i])
        torch.testing.assert_close(
            torch.stack(list(target.jet(own, xy[i], batched=False))), torch.stack(list(jets))[:, i]
        )


def test_the_network_by_hand() -> None:
    target = ModulatedMLP(4, 1)
    p = random_params(target, 1)
    xy = some_points(3)
    weights, biases = [t[0] for t in p[:5]], [t[0] for t in p[5:]]
    frequencies = [2 * math.pi * 0.1 * 2**k for k in range(5)]
    rows = []
    for x, y in xy.tolist():
        angles = [w * x for w in frequencies] + [w * y for w in frequencies]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles] + [x, y])
    phi = torch.tensor(rows, dtype=FLOAT64)
    gate, other, h = ((phi @ weights[i] + biases[i]).tanh() for i in range(3))
    h = ((gate * h + other * (1 - h)) @ weights[3] + biases[3]).tanh()
    torch.testing.assert_close(target.apply(p, xy)[0], (h @ weights[4] + biases[4])[:, 0])
    torch.testing.assert_close(fourier_features(xy), phi)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_stays_near(dtype: torch.dtype) -> None:
    target = ModulatedMLP(8, 2)
    params = random_params(target, 2)
    xy = some_points(2, 9)
    got = target.jet([p.to(dtype) for p in params], xy.to(dtype))
    assert got.uxx.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    for low, high in zip(got, target.jet(params, xy), strict=True):
        assert float((low.double() - high).norm() / high.norm()) < tolerance


# Problems


def test_manufactured_derivatives_are_exact() -> None:
    drawn = ManufacturedSolution.sample(seeded(3), 40, frequency=2.0, dtype=FLOAT64)
    good = drawn.usable(torch.ones(40, 5, dtype=FLOAT64))
    drawn = drawn[good]
    xy = some_points(len(drawn.kind), 6)
    for got, wanted in zip(drawn.jet(xy), double_autograd(drawn, xy), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)
    assert len(drawn.kind) > 5
    assert set(drawn.rule.unique().tolist()) == {-1, 0, 1, 2} and len(drawn.kind.unique()) == 6


def test_sources_are_central_differences_to_second_order() -> None:
    problems = sample_problems(16, 12, seeded(2), supervised=1.0, frequency=2.0, dtype=FLOAT64)
    xy = 0.9 * some_points(12, 20)
    errors = []
    for h in (2e-3, 1e-3):
        x, y = torch.tensor([h, 0.0], dtype=FLOAT64), torch.tensor([0.0, h], dtype=FLOAT64)
        u = [problems.solution(xy + step).u for step in (0 * x, x, -x, y, -y)]
        jet = Jet(
            u[0], (u[1] - u[2]) / (2 * h), (u[3] - u[4]) / (2 * h),
            (u[1] - 2 * u[0] + u[2]) / h**2, (u[3] - 2 * u[0] + u[4]) / h**2,
        )  # fmt: skip
        errors.append(float((apply_operator(problems.pde.coefficients, jet) - problems.source(xy)).norm()))
    assert errors[1] < 0.5 * float(problems.source(xy).norm())
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_usable_solutions_are_bounded_and_vary() -> None:
    problems = sample_problems(16, 64, seeded(5), supervised=1.0)
    u = problems.solution(grid_points(16).reshape(-1, 2)).u
    assert float(u.abs().max()) <= 10 and float(u.std(-1).min()) >= 0.1
    assert float(problems.pde.source.abs().max()) <= 1e4


def test_operators_have_one_to_three_terms() -> None:
    drawn = sample_operator(seeded(), 2000)
    terms = (drawn != 0).sum(-1)
    assert set(terms.unique().tolist()) == {1, 2, 3} and float(drawn.abs().max()) <= 2
    assert (drawn != 0).float().mean(0).sub(0.4).abs().max() < 0.05  # two terms of five on average
    assert bool((sample_operator(seeded(), 200, second_order=True)[:, 3:] != 0).any(-1).all())


def test_unsupervised_boundary_functions_fit_the_operator() -> None:
    problems = sample_problems(16, 300, seeded(1), supervised=0.0, holes=0)
    c, values = problems.pde.coefficients, problems.boundary.values
    points = problems.boundary.points
    basis = torch.cat([torch.ones_like(points[..., :1]), points], -1)
    affine = torch.linalg.lstsq(basis, values[..., None]).solution[..., 0]
    assert float(((basis @ affine[..., None])[..., 0] - values).abs().max()) < 1e-4
    assert float(affine[c[:, 0] != 0].abs().max()) < 1e-5
    assert float(affine[c[:, 1] != 0][:, 1].abs().max()) < 1e-5
    assert float(affine[c[:, 2] != 0][:, 2].abs().max()) < 1e-5
    assert float(affine[(c[:, :2] == 0).all(-1)][:, 1].abs().mean()) > 0.3
    source = problems.source(points)
    assert torch.equal(source, source[:, :1].expand_as(source)) and abs(float(source[:, 0].mean()) - 10) < 2


def test_rows_run_from_top_to_bottom() -> None:
    grid = grid_points(5)
    assert grid[0, 0].tolist() == [-1.0, 1.0] and grid[-1, -1].tolist() == [1.0, -1.0]
    problems = sample_problems(32, 200, seeded(4), supervised=1.0, holes=0)
    u = problems.solution(grid_points(32).reshape(-1, 2)).u.unflatten(1, (32, 32))
    pde = problems.pde
    torch.testing.assert_close(pde.dirichlet[:, -1], u[:, -1])  # y = -1 always has values
    c3, c4 = pde.coefficients[:, 3:].unbind(-1)
    is_open = (c4 == 0) | (c3 * c4 < 0)
    assert float(pde.dirichlet_mask[is_open][:, 0, 5:-5].max()) == 0  # y = 1 is the future
    assert float(pde.dirichlet_mask[~is_open][:, 0].min()) == 1
    hyperbolic = c3 * c4 < 0
    uy = problems.solution(grid_points(32)[-1]).uy
    torch.testing.assert_close(pde.neumann[hyperbolic][:, -1, 1:-1], -uy[hyperbolic][:, 1:-1], rtol=1e-4, atol=1e-4)
    assert float(pde.neumann_mask[hyperbolic][:, -1].min()) == 1


def test_boundary_pixels_take_the_data_of_their_anchors() -> None:
    problems = sample_problems(32, 40, seeded(6), supervised=1.0, dtype=FLOAT64)
    pde = problems.pde
    assert pde.anchors is not None and pde.normals is not None and pde.domain is not None
    at_value, at_slope = (part.flatten(2).mT for part in pde.anchors.split(2, dim=1))
    u = problems.solution(at_value).u.unflatten(1, (32, 32))
    torch.testing.assert_close(pde.dirichlet, u * pde.dirichlet_mask, rtol=1e-8, atol=1e-8)
    jet = problems.solution(at_slope)
    slope = (torch.stack([jet.ux, jet.uy], 1).unflatten(2, (32, 32)) * pde.normals).sum(1)
    torch.testing.assert_close(pde.neumann, slope * pde.neumann_mask, rtol=1e-7, atol=1e-7)
    near = torch.linalg.vector_norm(pde.anchors[:, :2] - grid_points(32, dtype=FLOAT64).movedim(-1, 0), dim=1)
    assert float(near.max()) < 0.75 * 2 / 31 and float(near.max()) > 0.01
    assert float(pde.neumann_mask.sum()) > 0 and 0 < float(pde.domain.mean()) < 1


def test_holes_have_boundaries_and_normals() -> None:
    holes = Holes.sample(60, seeded(7), most=1, dtype=FLOAT64)
    points, normals = (part.flatten(1, 2) for part in holes.outline(40))
    there = holes.kind[:, 0] >= 0
    torch.testing.assert_close(normals[there].norm(dim=-1), torch.ones_like(normals[there][..., 0]))
    assert bool(holes.contains(points + 1e-3 * normals)[there].float().mean() > 0.97)  # beside corners it may miss
    assert not bool(holes.contains(points - 1e-3 * normals).any())
    assert not bool(holes.contains(holes.centre)[~there].any())
    disks = holes.kind[:, 0] == 0
    distance = (points - holes.centre).norm(dim=-1)
    torch.testing.assert_close(distance[disks], holes.radius.expand(-1, 40)[disks])
    assert {0, 1} <= set(holes.kind.unique().tolist())


def test_square_outline() -> None:
    points, normals = square_outline(9)
    assert float((points + 1e-6 * normals).abs().amax(-1).min()) > 1
    torch.testing.assert_close((points * normals).sum(-1), torch.ones(36))


def test_normalized_problems_are_the_same_problem() -> None:
    problems = sample_problems(16, 10, seeded(8), dtype=FLOAT64)
    scaled = problems.normalized()
    torch.testing.assert_close(scaled.pde.magnitude(), torch.ones(10, dtype=FLOAT64))
    xy = some_points(10, 5)
    ratio = (scaled.scale / problems.scale)[:, None]
    torch.testing.assert_close(scaled.source(xy), problems.source(xy) * ratio)
    torch.testing.assert_close(scaled.boundary.slopes, problems.boundary.slopes * ratio)
    torch.testing.assert_close(scaled.pde.images, problems.pde.scaled(ratio[:, 0]).images)


def test_one_problem_and_its_solution() -> None:
    pde, solution = sample_mms_problem(16, seeded(), dtype=FLOAT64)
    assert not pde.batched and pde.grid == 16 and pde.images.shape == (5, 16, 16)
    u = solution(grid_points(16, dtype=FLOAT64).reshape(-1, 2)).unflatten(0, (16, 16))
    torch.testing.assert_close(pde.dirichlet[-1], u[-1])
    assert_deterministic(lambda: sample_mms_problem(16, seeded())[0].images)


# The hypernetwork


def test_source_transform_is_odd_and_monotone() -> None:
    f = torch.linspace(-1e4, 1e4, 1001, dtype=FLOAT64)
    torch.testing.assert_close(compress_source(f), f.sign() * torch.log(1 + f.abs()))
    torch.testing.assert_close(compress_source(-f), -compress_source(f))
    assert bool((compress_source(f).diff() > 0).all())


def test_film_begins_as_identity_and_then_modulates() -> None:
    film = FiLM(3, 4)
    x, z = torch.randn(2, 5, 5, 4, generator=seeded()), torch.randn(2, 3, generator=seeded())
    torch.testing.assert_close(film(x, z), x)
    nn.init.normal_(film.affine.weight, generator=seeded())
    gamma, beta = film.affine(z).chunk(2, -1)
    torch.testing.assert_close(film(x, z)[1, 2, 3], gamma[1] * x[1, 2, 3] + beta[1])


def test_attention_pooling_ignores_the_order_of_tokens() -> None:
    pool = AttentionPool(6, 8, 2)
    tokens = torch.randn(2, 9, 8, generator=seeded())
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(9, generator=seeded())]))
    assert pool(tokens).shape == (2, 6, 8)


def test_shifted_windows_see_their_neighbours_alone() -> None:
    encoder = ImageEncoder(32, (8,), (2,), (2,), window=4, stem=8, condition=4)
    block = encoder.stages[0][1]  # type: ignore[index]
    x = torch.randn(1, 8, 8, 8, generator=seeded()).requires_grad_()
    block(x)[0, 0, 0].sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(-1)[0] > 0
    assert bool(reached[:2, :2].all()) and int(reached.sum()) == 4  # a cut window of the corner
    block(x)[0, 3, 3].sum().backward()
    assert bool((x.grad.abs().sum(-1)[0] > 0)[2:6, 2:6].all())


def test_default_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        model = HyperPINN()
    hidden = [head[0].out_features for head in model.heads]  # type: ignore[index]
    groups = [head[2].num_groups for head in model.heads]  # type: ignore[index]
    assert hidden == [1408] * 3 + [1920] * 3 + [64] + [64] * 6 + [32]
    assert groups == [4] * 3 + [16] * 3 + [1] + [4] * 6 + [1]
    assert model.heads[0][0].in_features == 1920 and len(model.heads) == 14  # type: ignore[index]


@pytest.mark.parametrize("block", ["attention", "convolution"])
def test_generated_parameters_fit_the_target(block: Any) -> None:
    encoder = ImageEncoder(32, (8, 16), (2, 1), (2, 4), window=4, stem=8, condition=12, block=block)
    model = HyperPINN(encoder, ModulatedMLP(6, 2), condition=(8, 4), heads=4)
    problems = sample_problems(32, 3, seeded())
    params = model(problems.pde)
    assert [p.shape[1:] for p in params[:6]] == [torch.Size(s) for s in model.target.weight_shapes]
    assert model.target.jet(params, some_points(5, dtype=torch.float32)).uyy.shape == (3, 5)
    torch.testing.assert_close(model(problems.pde[1])[0], params[0][1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(params[0][0], params[0][1], atol=1e-6)  # it reads the problem


def test_training_reaches_all_parameters_and_learns() -> None:
    model = tiny_model()
    problems = sample_problems(16, 8, seeded(3), frequency=2.0).normalized()
    points = Points.sample(problems, 32, 32, seeded())

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            for film in model.encoder.films:  # type: ignore[union-attr]
                nn.init.normal_(film.affine.weight, std=0.1, generator=seeded())

        def forward(self) -> Tensor:
            return training_loss(self.model, problems, points)

    assert_gradients_reach_parameters(Step(), allow=("model.pools.0.attention.in_proj_bias",))
    before = float(training_loss(model, problems, points).detach())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        training_loss(model, problems, points).backward()
        optimizer.step()
    assert float(training_loss(model, problems, points).detach()) < 0.8 * before


def test_the_true_solution_has_no_loss() -> None:
    problems = sample_problems(16, 6, seeded(3), supervised=1.0, frequency=2.0, dtype=FLOAT64)
    points = Points.sample(problems, 40, 40, seeded())
    inside, edge = problems.solution(points.inside), problems.solution(points.edge)
    losses = physics_loss(inside, edge, problems.pde.coefficients, points)
    assert set(losses) == set(WEIGHTS)
    assert max(float(loss) for loss in losses.values()) < 1e-16
    off = Jet(inside.u + 2, *inside[1:])
    moved = physics_loss(off, Jet(edge.u + 2, *edge[1:]), problems.pde.coefficients, points)
    assert float(moved["value"]) == pytest.approx(1.5) and float(moved["dirichlet"]) == pytest.approx(1.5)  # Huber
    assert float(moved["neumann"]) < 1e-16 and float(moved["derivatives"]) < 1e-16


def test_values_alone_give_the_same_value_loss() -> None:
    model, problems = tiny_model(), sample_problems(16, 4, seeded())
    points = Points.sample(problems, 20, 10, seeded())
    xy = torch.cat([points.inside, points.edge], 1)
    jet = model.target.jet(model(problems.pde), xy)
    split = [Jet(*(p[:, a] for p in jet)) for a in (slice(None, 20), slice(20, None))]
    losses = physics_loss(split[0], split[1], problems.pde.coefficients, points)
    torch.testing.assert_close(training_loss(model, problems, points, {"value": 2.0}), 2 * losses["value"])
    expected = torch.stack([weight * losses[name] for name, weight in WEIGHTS.items()]).sum()
    torch.testing.assert_close(training_loss(model, problems, points), expected)


def test_state_dict_and_schedule() -> None:
    pde = sample_problems(16, 2, seeded()).pde
    model, copy = tiny_model(), small_copy()
    assert not torch.equal(copy(pde)[0], model(pde)[0])
    copy.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(copy(pde), model(pde), strict=True))
    optimizer, schedule = paper_optimizer(nn.Linear(2, 2), 200)
    rates, decays = [], []
    for _ in range(201):
        rates.append(schedule.get_last_lr()[0])
        decays.append(optimizer.param_groups[0]["weight_decay"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1e-4) and rates[0] == pytest.approx(5e-5) and rates[200] == pytest.approx(1e-7)
    assert decays[0] == pytest.approx(1e-4) and decays[200] == pytest.approx(1e-3)
    assert decays[100] == pytest.approx(5.5e-4)


def small_copy() -> HyperPINN:
    model = tiny_model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    return model


# Refinement and tuning


def test_residuals_add_up() -> None:
    problems = sample_problems(16, 5, seeded(2), dtype=FLOAT64)
    model = tiny_model().double()
    pde = problems.pde
    before = residual_problem(pde, refine(model, pde, 0).jet)
    both = refine(model, pde, 1, [0.7])
    assert both.members[1][0].shape == both.members[0][0].shape
    delta = Ensemble(model.target, both.members[1:], both.weights[1:])
    after = residual_problem(pde, both.jet)
    expected = residual_problem(before, delta.jet)  # what the correction leaves of what was left
    torch.testing.assert_close(after.images, expected.images, rtol=1e-9, atol=1e-9)
    moved = before.source - after.source
    pixels = grid_points(16, dtype=FLOAT64).reshape(-1, 2)
    applied = apply_operator(pde.coefficients, delta.jet(pixels)).unflatten(1, (16, 16))
    assert pde.domain is not None
    torch.testing.assert_close(moved, applied * pde.domain, rtol=1e-9, atol=1e-9)


def test_an_oracle_corrects_everything_at_once() -> None:
    target = ModulatedMLP(6, 2)
    wrong, right = random_params(target, 4), random_params(target, 8)
    right = [p[4:] for p in right]
    coefficients = sample_operator(seeded(), 4, dtype=FLOAT64)
    oracle = Ensemble(target, (wrong, right), torch.ones(2, 4, dtype=FLOAT64))
    pde = problem_of(oracle.jet, coefficients)
    model = Swap(target, wrong, right)
    found = refine(model, pde, 1)
    assert float(residual_problem(pde, found.first(1).jet).images[:, 2:].abs().max()) > 0.1
    assert float(residual_problem(pde, found.jet).images[:, 2:].abs().max()) < 1e-10
    expected = problem_of(lambda xy: target.jet(right, xy), coefficients)
    torch.testing.assert_close(model.seen[1].images, expected.images)


def test_weights_of_zero_leave_the_zero_shot_solution() -> None:
    pde = sample_problems(16, 3, seeded()).pde
    model = tiny_model()
    xy = some_points(7, dtype=torch.float32)
    zero_shot = model.target.apply(model(pde), xy)
    torch.testing.assert_close(refine(model, pde, 2, [0.0, 0.0])(xy), zero_shot)
    full = refine(model, pde, 2)
    torch.testing.assert_close(full.first(1)(xy), zero_shot)
    assert len(full) == 3 and not torch.allclose(full(xy), zero_shot)
    torch.testing.assert_close(full.jet(xy).u, full(xy))


def test_normalized_refinement_scales_with_the_problem() -> None:
    pde = sample_problems(16, 3, seeded(), dtype=FLOAT64).pde
    model = tiny_model().double()
    xy = some_points(7)
    factor = torch.tensor([1e-3, 1.0, 50.0], dtype=FLOAT64)
    usual = refine(model, pde, 2, normalize=True)(xy)
    torch.testing.assert_close(refine(model, pde.scaled(factor), 2, normalize=True)(xy), usual * factor[:, None])


def test_finetuning_lowers_loss_and_leaves_problems_apart() -> None:
    pde = sample_problems(16, 3, seeded(1), supervised=1.0, frequency=2.0, neumann=True).normalized().pde
    target = ModulatedMLP(8, 2)
    start = target.initialize(3, seeded())
    kept = [p.clone() for p in start]
    tuned = finetune(target, start, pde, steps=60, lr=1e-2, look=lambda q: target.apply(q, grid_points(2)[0]), every=30)
    assert bool((tuned.losses[-1] < 0.6 * tuned.losses[0]).all())
    assert tuned.losses.shape == (60, 3) and tuned.looks.shape == (3, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    alone = finetune(target, [p[1:2] for p in start], pde[1], steps=60, lr=1e-2)
    torch.testing.assert_close(alone.losses[:, 0], tuned.losses[:, 1], rtol=2e-3, atol=1e-4)
    closer = finetune(target, tuned.params, pde, steps=0, lbfgs=1)
    again = finetune(target, closer.params, pde, steps=1)
    assert float(again.losses[0].sum()) < float(tuned.losses[-1].sum()) and closer.losses.shape == (0, 3)


def test_finetuning_loss_by_hand() -> None:
    target = ModulatedMLP(5, 1)
    params = random_params(target, 2)
    other = random_params(target, 4)
    coefficients = sample_operator(seeded(3), 2, dtype=FLOAT64)
    pde = problem_of(lambda xy: target.jet([p[2:] for p in other], xy), coefficients)
    left = residual_problem(pde, lambda xy: target.jet(params, xy))
    parts = [
        (image**2).sum((1, 2)) / mask.sum((1, 2))
        for image, mask in (
            (left.source, torch.ones_like(left.source)),
            (left.dirichlet, left.dirichlet_mask),
            (left.neumann, left.neumann_mask),
        )
    ]
    expected = 0.1 * parts[0] + 10 * parts[1] + 5 * parts[2]
    torch.testing.assert_close(finetune(target, params, pde, steps=1).losses[0], expected)


# Wrong input


def wrong_pde(**changes: Tensor) -> LinearPDE:
    images: dict[str, Tensor] = dict.fromkeys(
        ("dirichlet_mask", "neumann_mask", "dirichlet", "neumann", "source"), torch.zeros(2, 8, 8)
    )
    return LinearPDE(**{"coefficients": torch.zeros(2, 5), **images, **changes})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ModulatedMLP(0), "width is 0; expected at least 1"),
        (lambda: ModulatedMLP(4, 1).apply([], torch.zeros(3, 2)), "params has 0 tensors; expected 5 matrices"),
        (
            lambda: ModulatedMLP(4, 1).apply(ModulatedMLP(5, 1).initialize(1), torch.zeros(3, 2)),
            r"params\[0\] has shape \(1, 22, 5\); expected \(1, 22, 4\)",
        ),
        (
            lambda: ModulatedMLP(4, 1).jet(ModulatedMLP(4, 1).initialize(2), torch.zeros(3, 4, 2)),
            r"xy has shape \(3, 4, 2\); expected \(P, 2\) or \(2, P, 2\)",
        ),
        (lambda: grid_points(1), "grid is 1; expected at least 2"),
        (lambda: wrong_pde(source=torch.zeros(2, 8, 7)), r"source has shape \(2, 8, 7\)"),
        (lambda: wrong_pde(coefficients=torch.zeros(2, 4)), r"coefficients has shape \(2, 4\); expected \(2, 5\)"),
        (lambda: Holes.sample(2, seeded(), shapes=("star",)), r"shapes is \('star',\)"),
        (lambda: ManufacturedSolution.sample(seeded(), steps=(3, 2)), r"steps is \(3, 2\)"),
        (lambda: sample_problems(16, 0, seeded()), "count is 0; expected at least 1"),
        (lambda: sample_problems(16, 2, seeded(), supervised=1.5), "supervised is 1.5"),
        (lambda: ImageEncoder(30, (8, 8), (1, 1), (1, 1)), "grid is 30; expected a multiple of 8 for 2 stages"),
        (lambda: ImageEncoder(32, (8,), (1, 1), (1,)), "have 1, 2, 1 stages"),
        (
            lambda: ImageEncoder(32, (8,), (1,), (2,), window=3),
            "window is 3; expected a divisor of the stage",
        ),
        (lambda: ImageEncoder(32, (8,), (1,), (3,), window=4), "heads is 3; expected a divisor of 8 channels"),
        (lambda: ImageEncoder(32, block="pooling"), "block is 'pooling'"),  # type: ignore[arg-type]
        (lambda: refine(tiny_model(), wrong_pde(), -1), "steps is -1; expected at least 0"),
        (lambda: refine(tiny_model(), wrong_pde(), 2, [1.0]), "weights has 1 numbers; expected steps = 2"),
        (
            lambda: residual_problem(
                wrong_pde(neumann_mask=torch.ones(2, 8, 8)), lambda xy: Jet(*xy.new_zeros(5, *xy.shape[:2]))
            ),
            "pde.normals is None",
        ),
        (
            lambda: finetune(ModulatedMLP(4, 1), ModulatedMLP(4, 1).initialize(2), wrong_pde(), points=3),
            "generator is None; expected one, for points are drawn",
        ),
        (
            lambda: training_loss(tiny_model(), None, None, {"values": 1.0}),  # type: ignore[arg-type]
            r"weights has \['values'\]",
        ),
        (lambda: WarmCosine(torch.optim.SGD([torch.zeros(1)]), 0), "steps is 0; expected at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# The room


def test_textbook_problems_are_solved_by_their_solutions() -> None:
    pde, u = textbook(33, dtype=FLOAT64)
    assert pde.domain is not None and u.shape == (3, 33, 33)
    h = 2 / 32
    inner = u[:, 1:-1, 1:-1]
    c = pde.coefficients[..., None, None]
    differences = (
        c[:, 0] * inner + c[:, 2] * (u[:, :-2, 1:-1] - u[:, 2:, 1:-1]) / (2 * h)  # row 0 is y = 1
        + c[:, 3] * (u[:, 1:-1, 2:] - 2 * inner + u[:, 1:-1, :-2]) / h**2
        + c[:, 4] * (u[:, :-2, 1:-1] - 2 * inner + u[:, 2:, 1:-1]) / h**2
    )  # fmt: skip
    torch.testing.assert_close(differences, pde.source[:, 1:-1, 1:-1], rtol=0.02, atol=0.2)
    torch.testing.assert_close(pde.dirichlet, u * pde.dirichlet_mask)


def test_unet_has_about_as_many_parameters() -> None:
    counts = [sum(p.numel() for p in m.parameters()) for m in (UNet(), small_hypernetwork(32, seeded()))]
    assert 0.9 < counts[0] / counts[1] < 1.2
    assert UNet((4, 6))(sample_problems(16, 2, seeded()).pde).shape == (2, 16, 16)


def test_scales_differ() -> None:
    assert room.Size.of(Scale.SMOKE).training.steps < room.Size.of(Scale.LAPTOP).training.steps
    paper = room.Size.of(Scale.PAPER)
    assert paper.family.grid == 224 and paper.training.lr == 1e-4
