"""Frame averaging: the symmetry is exact, the frame is a frame, and the backbone's own symmetries survive."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.papers.frame_averaging import (
    FrameAveraging,
    FrameSet,
    GraphFrameAveraging,
    LayerwiseFrameAveraging,
    SortFrame,
    euclidean_frame,
    graph_frame,
)
from working_papers.papers.frame_averaging.method._rigid import Group, Kind
from working_papers.papers.frame_averaging.study import pairs_of_graphs, random_orthogonal, simulate, turn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
GROUPS: tuple[Group, ...] = ("E", "SE", "O", "SO")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
groups = pytest.mark.parametrize("group", GROUPS)
dimensions = pytest.mark.parametrize("d", [1, 2, 3, 5])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Flat(nn.Module):
    """An arbitrary network on n points: it has no symmetry at all."""

    def __init__(self, n: int, d: int, outputs: tuple[int, ...], vectors: int = 0) -> None:
        super().__init__()
        self.outputs = outputs
        self.net = nn.Sequential(nn.Linear((1 + vectors) * n * d, 32), nn.Tanh(), nn.Linear(32, math.prod(outputs)))

    def forward(self, *inputs: Tensor) -> Tensor:
        flat = torch.cat([part.flatten(1) for part in inputs], dim=1)
        return torch.as_tensor(self.net(flat)).view(-1, *self.outputs)


class Mix(nn.Module):
    """A layer that mixes the points through their mean, so that it follows their order; padding is left out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        share = torch.ones_like(h[..., :1]) if mask is None else mask[..., None].to(h)
        mean = (h * share).sum(dim=1, keepdim=True) / share.sum(dim=1, keepdim=True)
        return torch.tanh(self.own(h) + self.others(mean))


class Pointwise(nn.Module):
    """A permutation-equivariant backbone."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.into, self.mix, self.out = nn.Linear(d, 16), Mix(16), nn.Linear(16, d)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.out(self.mix(self.into(x), mask)))


def orthogonal(d: int, dtype: torch.dtype, *, proper: bool, batch: int = 4) -> Tensor:
    """Random orthogonal matrices; of determinant +1 where `proper`, -1 otherwise."""
    q = torch.linalg.qr(torch.randn(batch, d, d, dtype=dtype)).Q
    wanted = 1.0 if proper else -1.0
    return torch.cat([q[..., :1] * (wanted * torch.linalg.det(q))[:, None, None], q[..., 1:]], dim=-1)


def layerwise(d: int, group: Group, out: Kind, *, vectors: int = 0) -> LayerwiseFrameAveraging:
    width = 4 * d
    return LayerwiseFrameAveraging(
        nn.Linear((1 + vectors) * d, width), [Mix(width) for _ in range(3)], nn.Linear(width, d), group=group, out=out
    )


def moved(x: Tensor, q: Tensor, shift: Tensor) -> Tensor:
    """Points as rows: x ↦ Q x + shift."""
    return x @ q.mT + shift[:, None]


# --- the Euclidean frame -------------------------------------------------------------------------------------------


@dtypes
@groups
@dimensions
def test_frame_has_the_right_size_and_is_orthogonal(dtype: torch.dtype, group: Group, d: int) -> None:
    frame = euclidean_frame(torch.randn(4, 7, d, dtype=dtype), group)
    elements = 2**d if group in ("E", "O") else 2 ** (d - 1)
    assert frame.rotations.shape == (4, elements, d, d)
    assert frame.rotations.dtype == frame.centre.dtype == dtype
    identity = torch.eye(d, dtype=dtype).expand_as(frame.rotations)
    torch.testing.assert_close(frame.rotations @ frame.rotations.mT, identity, atol=TOLERANCE[dtype], rtol=0)
    if group in ("SE", "SO"):
        determinants = torch.linalg.det(frame.rotations)
        torch.testing.assert_close(determinants, torch.ones_like(determinants))
    assert not frame.degenerate.any()
    distinct = {tuple(matrix.flatten().tolist()) for matrix in frame.rotations[0]}
    assert len(distinct) == elements


@groups
@dimensions
def test_frame_moves_with_the_points_as_a_set(group: Group, d: int) -> None:
    x = torch.randn(4, 7, d, dtype=torch.float64)
    q = orthogonal(d, x.dtype, proper=group in ("SE", "SO"))
    shift = torch.randn(4, d, dtype=x.dtype) * (group in ("E", "SE"))
    frame, image = euclidean_frame(x, group), euclidean_frame(moved(x, q, shift), group)
    expected = q[:, None] @ frame.rotations  # [B, K, d, d]
    apart = (expected[:, :, None] - image.rotations[:, None]).abs().amax(dim=(-1, -2))  # [B, K, K]
    matched = apart < 1e-9
    assert (matched.sum(dim=1) == 1).all() and (matched.sum(dim=2) == 1).all()
    torch.testing.assert_close(image.centre, (q @ frame.centre[..., None])[..., 0] + shift)


def test_axes_are_the_eigenvectors_of_the_covariance() -> None:
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    frame = euclidean_frame(x)
    spread = ((x - x.mean(dim=1, keepdim=True))[:, None] @ frame.rotations).var(dim=2, correction=0)  # [B, K, d]
    assert (spread.diff(dim=-1) > 0).all()
    _, _, axes = torch.pca_lowrank(x, q=3)
    overlap = (axes.flip(-1).mT[:, None] @ frame.rotations).abs()
    torch.testing.assert_close(overlap, torch.eye(3, dtype=x.dtype).expand_as(overlap), atol=1e-9, rtol=0)


def test_whole_weights_stand_for_repeated_points() -> None:
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    weighted = euclidean_frame(x, weights=torch.tensor([[1.0, 2.0, 3.0, 1.0]]))
    repeated = euclidean_frame(x[:, [0, 1, 1, 2, 2, 2, 3]])
    torch.testing.assert_close(weighted.centre, repeated.centre)
    torch.testing.assert_close(weighted.rotations.abs(), repeated.rotations.abs())


def test_symmetric_clouds_are_flagged() -> None:
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    clouds = torch.stack([square, square * torch.tensor([2.0, 1.0]), torch.zeros_like(square)])
    assert euclidean_frame(clouds).degenerate.tolist() == [True, False, True]
    planar = torch.cat([torch.randn(1, 6, 2), torch.zeros(1, 6, 1)], dim=-1)
    assert not euclidean_frame(planar).degenerate.item()  # the normal is the third axis
    assert euclidean_frame(torch.randn(1, 2, 3)).degenerate.item()  # two points leave two directions free


def test_apply_and_invert_undo_each_other() -> None:
    x, extra = torch.randn(4, 7, 3, dtype=torch.float64), torch.randn(4, 2, 5, 3, dtype=torch.float64)
    frame = euclidean_frame(x)
    assert frame.apply(extra, "vector").shape == (4, 8, 2, 5, 3)
    torch.testing.assert_close(frame.invert(frame.apply(x), "point"), x)
    torch.testing.assert_close(frame.invert(frame.apply(extra, "vector"), "vector"), extra)
    one_a_sample = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(frame.invert(frame.apply(one_a_sample), "point"), one_a_sample)


# --- averaging over it ---------------------------------------------------------------------------------------------


@dtypes
@groups
@dimensions
def test_invariance_is_exact(dtype: torch.dtype, group: Group, d: int) -> None:
    model = FrameAveraging(Flat(6, d, (3,), vectors=1), group=group).to(dtype)
    x, v = torch.randn(4, 6, d, dtype=dtype), torch.randn(4, 6, d, dtype=dtype)
    q = orthogonal(d, dtype, proper=group in ("SE", "SO"))
    shift = torch.randn(4, d, dtype=dtype) * (group in ("E", "SE"))
    assert model(x, v).std() > 0.01
    torch.testing.assert_close(
        model(moved(x, q, shift), v @ q.mT), model(x, v), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@dtypes
@groups
@pytest.mark.parametrize("build", ["around", "layerwise"])
@pytest.mark.parametrize("out", ["vector", "point"])
def test_equivariance_is_exact(dtype: torch.dtype, group: Group, build: str, out: Kind) -> None:
    d, n = 3, 6
    model: nn.Module
    if build == "around":
        model = FrameAveraging(Flat(n, d, (n, d), vectors=1), group=group, out=out)
    else:
        model = layerwise(d, group, out, vectors=1)
    model = model.to(dtype)
    x, v = torch.randn(4, n, d, dtype=dtype), torch.randn(4, n, d, dtype=dtype)
    q = orthogonal(d, dtype, proper=group in ("SE", "SO"))
    shift = torch.randn(4, d, dtype=dtype) * (group in ("E", "SE"))
    expected = moved(model(x, v), q, shift * (out == "point"))
    torch.testing.assert_close(
        model(moved(x, q, shift), v @ q.mT), expected, atol=5 * TOLERANCE[dtype], rtol=5 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("group", ["SE", "SO"])
def test_without_reflections_mirror_images_may_differ(group: Group) -> None:
    model = FrameAveraging(Flat(6, 3, (1,)), group=group).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    mirrored = x @ orthogonal(3, x.dtype, proper=False).mT
    assert ((model(mirrored) - model(x)).abs() > 1e-3).all()


def test_an_equivariant_backbone_is_left_alone_and_averaging_twice_is_once() -> None:
    x = torch.randn(4, 6, 3, dtype=torch.float64)

    def equivariant(points: Tensor) -> Tensor:
        difference = points[:, :, None] - points[:, None]
        return points + (difference * torch.exp(-difference.square().sum(-1, keepdim=True))).sum(dim=2)

    torch.testing.assert_close(FrameAveraging(equivariant, out="point")(x), equivariant(x))
    once = FrameAveraging(Flat(6, 3, (6, 3)).double(), out="point")
    torch.testing.assert_close(FrameAveraging(once, out="point")(x), once(x))


@pytest.mark.parametrize("build", ["around", "layerwise"])
def test_permutation_equivariance_of_the_backbone_survives(build: str) -> None:
    model = FrameAveraging(Pointwise(3), out="point") if build == "around" else layerwise(3, "E", "point")
    model = model.double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    order = torch.randperm(6)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order])


@pytest.mark.parametrize("build", ["around", "layerwise"])
def test_masked_padding_changes_nothing(build: str) -> None:
    model = FrameAveraging(Pointwise(3), out="point") if build == "around" else layerwise(3, "E", "point")
    model = model.double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    padded = torch.cat([x, 100 * torch.randn(4, 3, 3, dtype=x.dtype)], dim=1)
    mask = torch.arange(9).expand(4, 9) < 6
    torch.testing.assert_close(model(padded, mask=mask)[:, :6], model(x))


def test_mean_over_single_elements_is_the_whole_average() -> None:
    backbone = Flat(6, 3, (6, 3)).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    frame = euclidean_frame(x)
    single = [
        one.invert(backbone(one.apply(x).flatten(0, 1)).unflatten(0, (4, 1)), "point")
        for one in (frame._replace(rotations=frame.rotations[:, [k]]) for k in range(8))
    ]
    whole = FrameAveraging(backbone, out="point")(x)
    torch.testing.assert_close(torch.stack(single).mean(dim=0), whole)
    assert (single[0] - whole).abs().max() > 1e-3


def test_sampling_draws_different_elements_uniformly_and_only_in_training() -> None:
    x = torch.randn(2000, 6, 2, dtype=torch.float64)
    frame = euclidean_frame(x)
    two = frame.sample(2, torch.Generator().manual_seed(1))
    same = (two.rotations[:, :, None] == frame.rotations[:, None]).all(dim=-1).all(dim=-1)  # [B, 2, K]
    assert (same.sum(dim=-1) == 1).all() and (same.sum(dim=1) <= 1).all()
    frequency = same.double().mean(dim=(0, 1))
    assert ((frequency - 0.25).abs() < 0.03).all()  # five standard deviations

    model = FrameAveraging(Flat(6, 2, (1,)).double(), sample=1)
    again = [model(x, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    torch.testing.assert_close(again[0], again[1], atol=0, rtol=0)
    assert (model(x) != again[0]).any()
    model.eval()
    torch.testing.assert_close(model(x), FrameAveraging(model.backbone)(x), atol=0, rtol=0)


def test_several_outputs_and_keyword_tensors() -> None:
    def backbone(x: Tensor, *, charge: Tensor, power: int) -> tuple[Tensor, Tensor]:
        return (charge * x[..., 0]).sum(dim=1) ** power, charge[..., None] * x.pow(3)

    model = FrameAveraging(backbone, out=("scalar", "vector"))
    x, charge = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    q = orthogonal(3, x.dtype, proper=False)
    energy, force = model(x, charge=charge, power=2)
    turned_energy, turned_force = model(x @ q.mT, charge=charge, power=2)
    torch.testing.assert_close(turned_energy, energy)
    torch.testing.assert_close(turned_force, force @ q.mT)


# --- gradients, compilation, state ---------------------------------------------------------------------------------


def test_gradients_reach_every_parameter_and_turn_with_the_input() -> None:
    model = layerwise(3, "E", "vector", vectors=1).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    model(x, torch.randn_like(x)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    energy = FrameAveraging(Flat(6, 3, (1,)).double())
    q = orthogonal(3, x.dtype, proper=False)
    shift = torch.randn(4, 3, dtype=x.dtype)
    here, there = x.clone().requires_grad_(), moved(x, q, shift).requires_grad_()
    (force,) = torch.autograd.grad(energy(here).sum(), here)
    (turned,) = torch.autograd.grad(energy(there).sum(), there)
    torch.testing.assert_close(turned, force @ q.mT)
    net_force = force.sum(dim=1)  # the centre carries a gradient, so that nothing pushes the whole cloud
    torch.testing.assert_close(net_force, torch.zeros_like(net_force))


def test_parameter_gradients_are_right() -> None:
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def averaged(weight: Tensor) -> Tensor:
        return torch.as_tensor(FrameAveraging(lambda points: torch.tanh(points @ weight), out="point")(x))

    assert torch.autograd.gradcheck(averaged, (weight,))


@pytest.mark.parametrize("build", ["around", "layerwise"])
def test_compiles_without_graph_breaks(build: str) -> None:
    model = FrameAveraging(Pointwise(3), out="point") if build == "around" else layerwise(3, "SE", "point")
    x = torch.randn(4, 6, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@dtypes
def test_state_dict_round_trip(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 3, dtype=dtype)
    first, second = layerwise(3, "E", "point").to(dtype), layerwise(3, "E", "point").to(dtype)
    assert (first(x) - second(x)).abs().max() > 1e-3
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(x), first(x), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_their_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, dtype=dtype)
    frame = euclidean_frame(x)
    assert frame.apply(x).dtype == frame.invert(frame.apply(x), "point").dtype == dtype
    torch.testing.assert_close(frame.invert(frame.apply(x), "point"), x, atol=0.05, rtol=0.05)


# --- the graph frame -----------------------------------------------------------------------------------------------


def graph(n: int, edges: Sequence[tuple[int, int]]) -> Tensor:
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    for i, j in edges:
        adjacency[i, j] = adjacency[j, i] = 1.0
    return adjacency


def path(n: int) -> Tensor:
    return graph(n, [(i, i + 1) for i in range(n - 1)])


def cycle(n: int) -> Tensor:
    return graph(n, [(i, (i + 1) % n) for i in range(n)])


def complete(n: int) -> Tensor:
    return 1.0 - torch.eye(n, dtype=torch.float64)


# The smallest asymmetric graphs have six nodes; this is one of them.
ASYMMETRIC = graph(6, [(0, 1), (1, 2), (2, 3), (3, 4), (5, 1), (5, 2)])
KITE = graph(6, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5)])
Builder = Callable[[int], Tensor]


def relabelled(adjacency: Tensor, order: Tensor) -> Tensor:
    return adjacency[..., order, :][..., order]


@pytest.mark.parametrize(
    ("build", "n", "size"),
    [
        *((complete, n, math.factorial(n)) for n in (1, 2, 3, 5, 7)),
        *((cycle, n, math.factorial(n)) for n in (3, 6, 8)),
        *((path, n, 2 ** (n // 2)) for n in (2, 3, 4, 5, 6)),
    ],
)
def test_frame_sizes(build: Builder, n: int, size: int) -> None:
    for order in (torch.arange(n), torch.randperm(n)):
        frame = graph_frame(relabelled(build(n), order))
        assert frame.size == size
        elements = frame.elements()
        assert len({tuple(p) for p in elements.tolist()}) == size
        torch.testing.assert_close(elements.sort(dim=-1).values, torch.arange(n).expand(size, n))


@pytest.mark.parametrize("adjacency", [path(5), cycle(5), complete(4), KITE, ASYMMETRIC, torch.zeros(3, 3)])
def test_relabelling_a_graph_relabels_its_frame(adjacency: Tensor) -> None:
    n = len(adjacency)
    for _ in range(5):
        order = torch.randperm(n)
        frame = {tuple(p) for p in graph_frame(adjacency).elements().tolist()}
        image = graph_frame(relabelled(adjacency, order)).elements()
        assert {tuple(p) for p in order[image].tolist()} == frame


def test_automorphisms_stay_in_the_frame() -> None:
    frame = {tuple(p) for p in graph_frame(KITE).elements().tolist()}
    automorphisms = [
        torch.tensor(p)
        for p in itertools.permutations(range(6))
        if torch.equal(relabelled(KITE, torch.tensor(p)), KITE)
    ]
    assert len(automorphisms) == 6  # the three equal corners of the kite
    for p in frame:
        assert {tuple(a[list(p)].tolist()) for a in automorphisms} <= frame


def test_sampled_permutations_are_uniform_in_the_frame() -> None:
    frame = graph_frame(path(4))
    elements = frame.elements()
    drawn = frame.sample(4000, torch.Generator().manual_seed(3))
    frequency = (drawn[:, None] == elements).all(dim=-1).double().mean(dim=0)
    assert frequency.sum() == 1.0
    assert ((frequency - 0.25).abs() < 0.035).all()  # five standard deviations
    assert graph_frame(torch.stack([path(4), cycle(4)])).sample(3).shape == (2, 3, 4)


def test_eigenspaces_split_by_rounding_are_put_together() -> None:
    noise = torch.randn(8, 8, dtype=torch.float64) * 1e-13
    assert graph_frame(cycle(8) + noise + noise.mT).size == math.factorial(8)


def test_batches_and_padding_give_the_same_frame() -> None:
    graphs = [path(5), KITE, cycle(4)]
    adjacency, mask = torch.full((3, 6, 6), torch.nan, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.bool)
    for b, single in enumerate(graphs):
        adjacency[b, : len(single), : len(single)] = single
        mask[b, : len(single)] = True
    frame = graph_frame(adjacency, mask=mask)
    for b, single in enumerate(graphs):
        n = len(single)
        alone = graph_frame(single)
        assert frame.size[b] == alone.size
        assert sorted(frame.order[b, n:].tolist()) == list(range(n, 6))
        found = SortFrame(frame.order[b], frame.tie[b]).elements()[:, :n]
        assert {tuple(p) for p in found.tolist()} == {tuple(p) for p in alone.elements().tolist()}


class Flattened(nn.Module):
    """An arbitrary network on the adjacency and features of n nodes."""

    def __init__(self, n: int, features: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = outputs
        self.net = nn.Sequential(nn.Linear(n * n + n * features, 32), nn.Tanh(), nn.Linear(32, math.prod(outputs)))

    def forward(self, adjacency: Tensor, features: Tensor) -> Tensor:
        flat = torch.cat([adjacency.flatten(1), features.flatten(1)], dim=1)
        return torch.as_tensor(self.net(flat)).view(-1, *self.outputs)


@dtypes
@pytest.mark.parametrize("out", ["graph", "node"])
def test_averaging_over_the_graph_frame_is_exact(dtype: torch.dtype, out: str) -> None:
    outputs = (3,) if out == "graph" else (6, 2)
    model = GraphFrameAveraging(Flattened(6, 2, outputs), out="graph" if out == "graph" else "node").to(dtype)
    adjacency = torch.stack([path(6), KITE, ASYMMETRIC]).to(dtype)
    features = torch.randn(3, 6, 2, dtype=dtype)
    order = torch.randperm(6)
    expected = model(adjacency, features)
    expected = expected if out == "graph" else expected[:, order]
    found = model(relabelled(adjacency, order), features[:, order])
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_one_sample_is_exact_without_ties_and_unbiased_with_them() -> None:
    backbone = Flattened(6, 1, (1,)).double()
    features = torch.randn(1, 6, 1, dtype=torch.float64)
    one, whole = GraphFrameAveraging(backbone, samples=1), GraphFrameAveraging(backbone)
    assert graph_frame(ASYMMETRIC).size == 1
    torch.testing.assert_close(one(ASYMMETRIC[None], features), whole(ASYMMETRIC[None], features))
    many = GraphFrameAveraging(backbone, samples=20_000)(path(6)[None], features)
    spread = torch.stack([one(path(6)[None], features) for _ in range(200)]).std()
    assert spread > 1e-3
    assert (many - whole(path(6)[None], features)).abs() < 5 * spread / math.sqrt(20_000)


def test_regular_graphs_are_told_apart_and_copies_are_not() -> None:
    # All 3-regular graphs look alike to message passing; identifiers handed out by sorted position tell them apart.
    def message_passing(adjacency: Tensor, h: Tensor) -> Tensor:
        weight = torch.linspace(0.2, 0.8, h.shape[-1], dtype=h.dtype)
        for _ in range(3):
            h = torch.tanh(adjacency @ h * weight + 0.1)
        return h.sum(dim=1)

    def with_identifiers(adjacency: Tensor) -> Tensor:
        return message_passing(adjacency, torch.eye(14, dtype=adjacency.dtype).expand_as(adjacency))

    ring = [(i, (i + 1) % 14) for i in range(14)]
    first = graph(14, [*ring, (0, 2), (1, 7), (3, 6), (4, 11), (5, 8), (9, 13), (10, 12)])
    second = graph(14, [*ring, (0, 5), (1, 3), (2, 12), (4, 8), (6, 10), (7, 11), (9, 13)])
    copy = relabelled(first, torch.randperm(14))
    graphs = torch.stack([first, copy, second])
    plain = message_passing(graphs, torch.ones(3, 14, 1, dtype=torch.float64))
    torch.testing.assert_close(plain[0], plain[2])

    averaged = GraphFrameAveraging(with_identifiers)(graphs)
    torch.testing.assert_close(averaged[0], averaged[1])
    assert (averaged[0] - averaged[2]).abs().max() > 1e-3
    without_frame = with_identifiers(graphs)
    assert (without_frame[0] - without_frame[1]).abs().max() > 1e-3


def test_mask_reaches_the_graph_backbone() -> None:
    def backbone(adjacency: Tensor, *, mask: Tensor) -> Tensor:
        position = torch.arange(adjacency.shape[-1], dtype=adjacency.dtype)
        return (adjacency.sum(dim=-1) * position * mask).sum(dim=-1)

    padded = torch.zeros(1, 8, 8, dtype=torch.float64)
    padded[0, :6, :6] = KITE
    model = GraphFrameAveraging(backbone)
    mask = torch.arange(8)[None] < 6
    everything = torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(model(padded, mask=mask), model(KITE[None], mask=everything))


# --- the study's data ----------------------------------------------------------------------------------------------


def test_simulated_particles_keep_their_momentum_and_follow_the_forces() -> None:
    scenes = simulate(200, burn_in=50, horizon=20, random=np.random.default_rng(0))
    drift = (scenes.target - scenes.position).mean(dim=1)
    torch.testing.assert_close(drift, 0.02 * scenes.velocity.mean(dim=1), atol=1e-5, rtol=0)
    # One more step of 0.001 from rest of the clock: the change of velocity is the sum of the Coulomb forces.
    still = simulate(50, burn_in=0, horizon=1, random=np.random.default_rng(1))
    apart = still.position[:, :, None] - still.position[:, None]
    charges, square = still.pairs.unbind(dim=-1)
    square = square + torch.eye(5)  # no force on oneself
    force = (charges[..., None] * apart / square[..., None] ** 1.5).sum(dim=2)
    expected = still.position + 0.001 * still.velocity + 1e-6 * force.clamp(-100, 100)
    torch.testing.assert_close(still.target, expected, atol=2e-6, rtol=0)


def test_turned_scenes_are_scenes_of_the_same_simulation() -> None:
    scenes = simulate(20, burn_in=10, horizon=10, random=np.random.default_rng(0))
    rotation = random_orthogonal(20, torch.Generator().manual_seed(0))
    turned = scenes.turned(rotation)
    moved_by, expected = turned.target - turned.position, (scenes.target - scenes.position) @ rotation.mT
    torch.testing.assert_close(moved_by, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.cdist(turned.position, turned.position) ** 2, scenes.pairs[..., 1], atol=1e-3, rtol=0
    )


def test_rotations_of_the_study() -> None:
    generator = torch.Generator().manual_seed(0)
    everywhere = random_orthogonal(4000, generator)
    torch.testing.assert_close(everywhere @ everywhere.mT, torch.eye(3).expand_as(everywhere), atol=1e-5, rtol=0)
    assert everywhere.mean(dim=0).abs().max() < 5 * (1 / 3 / 4000) ** 0.5
    assert abs(torch.linalg.det(everywhere).mean()) < 5 / 4000**0.5
    quarter = turn(10, 90.0, generator)
    trace = quarter.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    torch.testing.assert_close(trace, torch.ones(10))  # 1 + 2 cos 90°
    torch.testing.assert_close(torch.linalg.det(quarter), torch.ones(10))


def test_pairs_of_graphs_are_regular_and_half_of_them_copies() -> None:
    first, second, different = pairs_of_graphs(10, np.random.default_rng(0))
    assert different.tolist() == [True] * 5 + [False] * 5
    for graphs in (first, second):
        assert (graphs.sum(dim=-1) == 3).all() and (graphs.diagonal(dim1=1, dim2=2) == 0).all()
        torch.testing.assert_close(graphs, graphs.mT)
    apart = (torch.linalg.eigvalsh(first) - torch.linalg.eigvalsh(second)).abs().amax(dim=-1)
    assert ((apart > 1e-4) == different).all()
    assert (first != second).flatten(1).any(dim=1).all()


# --- wrong input ---------------------------------------------------------------------------------------------------


def identity(x: Tensor) -> Tensor:
    return x


points = torch.randn(2, 4, 3)
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: euclidean_frame(points, "U"), "group is 'U'; expected one of E, SE, O, SO"),  # type: ignore[arg-type]
    (lambda: euclidean_frame(points[0]), r"x has shape \(4, 3\); expected \[B, n, d\]"),
    (lambda: euclidean_frame(points[:, :0]), "n and d at least 1"),
    (lambda: euclidean_frame(points.long()), "x has dtype torch.int64; expected a floating-point dtype"),
    (lambda: euclidean_frame(points, mask=torch.ones(4)), r"mask has shape \(4,\); expected \[B, n\] = \(2, 4\)"),
    (lambda: euclidean_frame(points, weights=torch.ones(2, 3)), r"weights has shape \(2, 3\)"),
    (lambda: euclidean_frame(points).sample(9), "k is 9; expected 1 to 8"),
    (lambda: euclidean_frame(points).apply(points, "scalar"), "kind is 'scalar'"),  # type: ignore[arg-type]
    (lambda: euclidean_frame(points).apply(points[..., :2]), r"x has shape \(2, 4, 2\).*d = 3"),
    (lambda: euclidean_frame(points).invert(points), r"y has shape \(2, 4, 3\).*K = 8"),
    (lambda: euclidean_frame(points).invert(points[:, None], "tensor"), "kind is 'tensor'"),  # type: ignore[arg-type]
    (lambda: FrameAveraging(identity, group="e"), "group is 'e'"),  # type: ignore[arg-type]
    (lambda: FrameAveraging(identity, out="pose"), "out is 'pose'; expected one of scalar"),  # type: ignore[arg-type]
    (lambda: FrameAveraging(identity, sample=0), "sample is 0"),
    (lambda: FrameAveraging(lambda x: x[:3])(points), r"the backbone returned shape \(3, 4, 3\).*2·8 = 16"),
    (lambda: FrameAveraging(identity, out=("scalar", "vector"))(points), "must return a tuple of 2"),
    (lambda: FrameAveraging(identity)(points, points[:1]), r"x has shape \(1, 4, 3\)"),
    (lambda: FrameAveraging(identity)(points, edges=torch.ones(5)), r"edges has shape \(5,\).*B = 2"),
    (
        lambda: LayerwiseFrameAveraging(nn.Linear(3, 4), [Mix(4), Mix(4)], nn.Linear(4, 3))(points),
        "a layer gave 4 features.*multiple of d = 3",
    ),
    (lambda: graph_frame(torch.ones(2, 3)), r"adjacency has shape \(2, 3\); expected \[n, n\]"),
    (lambda: graph_frame(torch.ones(3, 3).triu()), "adjacency is not symmetric"),
    (lambda: graph_frame(complete(3), decimals=9), "decimals is 9; expected 0 to 8"),
    (lambda: graph_frame(complete(3), mask=torch.ones(2)), r"mask has shape \(2,\); expected \(3,\)"),
    (lambda: graph_frame(complete(3)).sample(0), "k is 0"),
    (lambda: graph_frame(complete(9)).elements(), "the frame has 3.629e[+]05 permutations; expected at most 40320"),
    (lambda: graph_frame(complete(3)[None]).elements(), r"order has shape \(1, 3\); expected one graph"),
    (lambda: GraphFrameAveraging(identity, out="edge"), "out is 'edge'"),  # type: ignore[arg-type]
    (lambda: GraphFrameAveraging(identity, samples=0), "samples is 0"),
    (lambda: GraphFrameAveraging(identity)(complete(3)), r"adjacency has shape \(3, 3\); expected \[B, n, n\]"),
    (lambda: GraphFrameAveraging(identity)(complete(3)[None], torch.ones(1, 2, 2)), r"features has shape \(1, 2, 2\)"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message.split(";")[0] for _, message in WRONG])
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_frame_is_a_plain_tuple_of_tensors() -> None:
    frame = euclidean_frame(points)
    assert isinstance(frame, FrameSet)
    assert [part.shape for part in frame] == [(2, 8, 3, 3), (2, 3), (2,)]
