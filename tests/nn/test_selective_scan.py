"""The selective scan against a plain loop, its gradients and its closed forms; the Mamba block and its streaming."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn import selective_scan as module
from working_papers.nn.selective_scan import MambaBlock, MambaState, scan_with_state, selective_scan
from working_papers.testing import assert_deterministic, assert_gradients_reach_parameters, assert_state_dict_round_trip

SHAPES = [(2, 13, 3, 4), (1, 1, 1, 1), (3, 32, 5, 2), (2, 7, 1, 3)]


def arguments(
    n: int, length: int, d: int, size: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """x, dt, A, B, C, D, as a model would make them."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    parts = [
        drawn(n, length, d),
        F.softplus(drawn(n, length, d)),
        -drawn(d, size).exp(),
        drawn(n, length, size),
        drawn(n, length, size),
        drawn(d),
    ]
    return [part.to(dtype) for part in parts]


def loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written."""
    y = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None, :] * x[:, t, :, None]
        y.append((h * C[:, t, None, :]).sum(-1) + D * x[:, t])
    return torch.stack(y, 1), h


@pytest.fixture(params=["one after the other", "side by side", "some of both"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways in which chunks can be run, whatever the size."""
    enough = {"one after the other": 0, "side by side": 1 << 30, "some of both": 130}[request.param]
    monkeypatch.setitem(module.ENOUGH, "cpu", enough)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_loop_with_gradients_for_any_chunk(shape: tuple[int, int, int, int], chunk: int) -> None:
    n, _, d, size = shape
    given = [each.requires_grad_() for each in (*arguments(*shape), torch.randn(n, d, size, dtype=torch.float64))]
    expected = loop(*given)
    got = scan_with_state(*given[:6], chunk=chunk, state=given[6])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(each) for each in expected]

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad([(o * w).sum() for o, w in zip(outputs, weights, strict=True)], given)

    torch.testing.assert_close(gradients(got), gradients(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("chunks")
def test_gradients_are_numerical_ones() -> None:
    given = [each.requires_grad_() for each in arguments(2, 7, 2, 3)]
    state = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda state, *rest: scan_with_state(*rest, chunk=2, state=state), (state, *given))


@pytest.mark.parametrize("wanted", range(6))
def test_arguments_may_be_without_gradient(wanted: int) -> None:
    given = arguments(2, 9, 3, 4)
    full = [each.clone().requires_grad_() for each in given]
    expected = torch.autograd.grad(selective_scan(*full).sum(), full)[wanted]
    given[wanted].requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(selective_scan(*given).sum(), given[wanted])[0], expected)


def test_a_gradient_of_the_gradient_is_refused_not_wrong() -> None:
    given = [each.requires_grad_() for each in arguments(1, 4, 2, 2)]
    (first,) = torch.autograd.grad(selective_scan(*given).square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.usefixtures("chunks")
def test_float32_is_near_float64_over_long_sequences() -> None:
    given = arguments(2, 700, 4, 8)
    exact = selective_scan(*given)
    got = selective_scan(*(each.float() for each in given))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.usefixtures("chunks")
def test_decays_that_underflow_are_harmless() -> None:
    x, dt, A, B, C, D = (each.float() for each in arguments(1, 40, 2, 3))
    given = [each.requires_grad_() for each in (x, dt * 1e3, A * 1e3, B, C, D)]
    y = selective_scan(*given)
    alone = (given[1] * (B * C).sum(-1, keepdim=True) + D) * given[0]  # nothing is left of the tokens before
    torch.testing.assert_close(y, alone)
    assert all(bool(torch.isfinite(each).all()) for each in torch.autograd.grad(y.sum(), given))


def test_half_precision_keeps_its_state_in_float32() -> None:
    given = arguments(2, 500, 3, 4, dtype=torch.bfloat16)
    y, state = scan_with_state(*given)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    exact = selective_scan(*(each.double() for each in given))
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-4)
    leaf = given[0].requires_grad_()
    assert torch.autograd.grad(selective_scan(*given).float().sum(), leaf)[0].dtype == torch.bfloat16


def test_autocast_changes_nothing() -> None:
    given = [each.requires_grad_() for each in arguments(2, 30, 4, 4, dtype=torch.float32)]
    expected = selective_scan(*given)
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(*given)
        gradient = torch.autograd.grad(got.sum(), given[4])[0]
    assert torch.equal(got, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), given[4])[0])


def test_closed_forms() -> None:
    x, _, _, _, _, D = arguments(2, 21, 3, 1)
    ones, nothing = torch.ones(2, 21, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    torch.testing.assert_close(selective_scan(x, torch.ones_like(x), nothing, ones, ones), x.cumsum(1))
    torch.testing.assert_close(selective_scan(x, torch.zeros_like(x), nothing, ones, ones, D), D * x)
    dt, a = 0.3, 0.7
    powers = torch.tensor([[math.exp(-a * dt * (i - j)) if j <= i else 0.0 for j in range(21)] for i in range(21)])
    moving = dt * torch.einsum("ij,njd->nid", powers.double(), x)
    got = selective_scan(x, torch.full_like(x, dt), torch.full_like(nothing, -a), ones, ones)
    torch.testing.assert_close(got, moving, rtol=1e-6, atol=1e-6)


def test_is_linear_in_x_and_causal() -> None:
    x, *rest = arguments(2, 19, 3, 4)
    other = torch.randn_like(x)
    y = selective_scan(x, *rest, chunk=4)
    torch.testing.assert_close(
        selective_scan(2 * x - other, *rest, chunk=4), 2 * y - selective_scan(other, *rest, chunk=4)
    )
    changed = x.clone()
    changed[:, 11] += 1
    z = selective_scan(changed, *rest, chunk=4)
    assert torch.equal(z[:, :11], y[:, :11])
    assert bool((z[:, 11:] != y[:, 11:]).all())


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("cut", [0, 1, 8, 20])
def test_states_are_handed_over(cut: int) -> None:
    x, dt, A, B, C, D = arguments(2, 20, 3, 4)
    y, end = scan_with_state(x, dt, A, B, C, D, chunk=3)
    head = scan_with_state(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, chunk=3)
    tail = scan_with_state(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, chunk=3, state=head[1])
    torch.testing.assert_close(torch.cat([head[0], tail[0]], 1), y)
    torch.testing.assert_close(tail[1], end)


def test_layout_pads_less_than_a_token_a_chunk() -> None:
    for length in (1, 15, 16, 17, 100, 399, 400, 1601):
        for numbers in (1, 500, 4096, 10**6):
            for chunk in (1, 7, 16, 5000):
                groups, together, steps = module._layout(numbers, length, chunk, "cpu")
                assert 1 <= steps <= chunk
                assert 0 <= groups * together * steps - length < groups * together
                assert together == 1 or together * numbers <= module.ENOUGH["cpu"]


def test_only_starts_of_chunks_are_kept() -> None:
    sizes: list[int] = []

    def packed(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    given = [each.requires_grad_() for each in arguments(4, 160, 32, 16)]
    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        selective_scan(*given, chunk=16)
    assert sum(sizes) < 4 * 160 * 32 * 16 / 2  # all states would be more than twice as much


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_compiles_as_one_graph() -> None:
    given = [each.requires_grad_() for each in arguments(1, 5, 2, 2)]
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), selective_scan(*given))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*given).sum(), given), torch.autograd.grad(selective_scan(*given).sum(), given)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 4)}, r"x has shape \(3, 4\); expected three axes"),
        ({"dt": torch.ones(2, 5, 2)}, r"dt has shape \(2, 5, 2\); expected \(2, 5, 3\)"),
        ({"A": torch.ones(4, 4)}, r"A has shape \(4, 4\); expected \(3, n\)"),
        ({"B": torch.ones(2, 5, 3)}, r"B has shape \(2, 5, 3\); expected \(2, 5, 4\)"),
        ({"C": torch.ones(2, 4, 4)}, r"C has shape \(2, 4, 4\); expected \(2, 5, 4\)"),
        ({"D": torch.ones(1)}, r"D has shape \(1,\); expected \(3,\)"),
        ({"state": torch.ones(2, 4, 3)}, r"state has shape \(2, 4, 3\); expected \(2, 3, 4\)"),
        ({"B": torch.ones(2, 5, 4, dtype=torch.int64)}, "B has dtype torch.int64; expected a floating one"),
        ({"chunk": 0}, "chunk is 0; expected at least 1"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    right = dict(zip(["x", "dt", "A", "B", "C", "D"], arguments(2, 5, 3, 4), strict=True))
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**right, **change})


# The block


def block(dim: int = 6, **options: int) -> MambaBlock:
    torch.manual_seed(1)
    return MambaBlock(dim, **options).double()


def by_the_book(model: MambaBlock, tokens: Tensor) -> Tensor:
    """The block from PyTorch's convolution and the plain loop."""
    x, z = model.in_proj(tokens).chunk(2, -1)
    kept = model.conv.kernel_size[0] - 1
    x = F.silu(model.conv(F.pad(x.mT, (kept, 0)))).mT
    dt, B, C = model.x_proj(x).split([model.dt_rank, model.state, model.state], -1)
    start = x.new_zeros(len(x), x.shape[2], model.state)
    y, _ = loop(x, F.softplus(model.dt_proj(dt)), -model.A_log.exp(), B, C, model.D, start)
    return torch.as_tensor(model.out_proj(y * F.silu(z)))


@pytest.mark.parametrize("options", [{}, {"state": 3, "conv": 1, "expand": 1}, {"conv": 6, "dt_rank": 3}])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_block_is_that_of_the_definition(options: dict[str, int], length: int) -> None:
    model, tokens = block(**options), torch.randn(3, length, 6, dtype=torch.float64)
    torch.testing.assert_close(model(tokens), by_the_book(model, tokens))


def test_block_starts_as_the_reference_does() -> None:
    model = block(32, state=5)
    assert model.dt_rank == 2
    assert sum(p.numel() for p in model.parameters()) == 32 * 128 + 64 * 5 + 64 * 12 + 3 * 64 + 64 * 5 + 64 + 64 * 32
    torch.testing.assert_close(model.A_log.exp(), torch.arange(1.0, 6).double().expand(64, 5), rtol=1e-6, atol=0)
    dt = F.softplus(model.dt_proj.bias).detach()
    assert 0.001 * (1 - 1e-4) <= float(dt.min()) < 0.005 < 0.05 < float(dt.max()) <= 0.1 * (1 + 1e-4)
    assert float(model.dt_proj.weight.detach().abs().max()) <= 2**-0.5


@pytest.mark.parametrize("conv", [1, 4])
def test_stream_gives_what_the_whole_gives(conv: int) -> None:
    model, tokens = block(conv=conv), torch.randn(2, 23, 6, dtype=torch.float64)
    whole = model(tokens)
    state: MambaState | None = None
    steps = []
    for token in tokens.unbind(1):
        out, state = model.step(token, state)
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    first, middle = model.advance(tokens[:, :9])
    rest, end = model.advance(tokens[:, 9:], middle)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    assert state is not None
    torch.testing.assert_close(tuple(state), tuple(end))


def test_block_is_causal() -> None:
    model, tokens = block(), torch.randn(2, 20, 6, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 12] = 0
    assert torch.equal(model(changed)[:, :12], model(tokens)[:, :12])
    assert not torch.equal(model(changed)[:, 12:], model(tokens)[:, 12:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_in_other_precisions(dtype: torch.dtype) -> None:
    model, tokens = block(16), torch.randn(2, 40, 16, dtype=torch.float64)
    exact = model(tokens).detach()
    model.to(dtype)
    got = model(tokens.to(dtype)).detach()
    assert got.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 0.05
    assert float((got.double() - exact).abs().max()) < limit * float(exact.abs().max())


def test_block_under_autocast_and_its_bookkeeping() -> None:
    model, tokens = block(16).float(), torch.randn(2, 40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(tokens)
    assert got.dtype == torch.bfloat16
    exact = model(tokens)
    assert float((got - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max())
    assert_gradients_reach_parameters(model, tokens)
    assert_deterministic(lambda: model(tokens))
    assert_state_dict_round_trip(model, MambaBlock(16), tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MambaBlock(0), "dim is 0"),
        (lambda: MambaBlock(4, state=0), "state is 0"),
        (lambda: MambaBlock(4, conv=0), "conv is 0"),
        (lambda: MambaBlock(4, expand=0), "expand is 0"),
        (lambda: MambaBlock(4, dt_rank=0), "dt_rank is 0"),
        (lambda: MambaBlock(4)(torch.ones(2, 4)), r"tokens have shape \(2, 4\); expected \(N, L, 4\)"),
        (lambda: MambaBlock(4)(torch.ones(2, 4, 5)), r"tokens have shape \(2, 4, 5\)"),
        (lambda: MambaBlock(4).step(torch.ones(2, 1, 4)), r"token has shape \(2, 1, 4\); expected \(N, 4\)"),
        (
            lambda: MambaBlock(4).step(torch.ones(2, 4), MambaState(torch.ones(2, 2, 8), torch.ones(2, 8, 16))),
            r"state.recent has shape \(2, 2, 8\); expected \(2, 3, 8\)",
        ),
        (
            lambda: MambaBlock(4).step(torch.ones(2, 4), MambaState(torch.ones(2, 3, 8), torch.ones(1, 8, 16))),
            r"state has shape \(1, 8, 16\); expected \(2, 8, 16\)",
        ),
    ],
)
def test_wrong_input_of_the_block_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_block_learns_to_copy_what_it_saw_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MambaBlock(16, state=4), nn.Linear(16, 4))
    embed = torch.randn(4, 16)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loss = torch.tensor(math.nan)
    for _ in range(60):
        symbols = torch.randint(4, (32, 12))
        loss = F.cross_entropy(model(embed[symbols])[:, 2:].flatten(0, 1), symbols[:, :-2].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
