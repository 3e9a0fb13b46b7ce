"""NorMuon: the identities its update obeys, its agreement with PyTorch's Muon, its manners as optimiser."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from working_papers.bench import Scale, Trial
from working_papers.papers.normuon import (
    NorMuon,
    newton_schulz,
    normalize_neurons,
    rescale,
    row_norm_dispersion,
    split_parameters,
)
from working_papers.papers.normuon.study import LOSS, ROWS, SPREAD, STATE, Size, excess_loss, language, study, train

SHAPES = [(6, 6), (12, 5), (5, 12), (1, 7), (7, 1)]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthogonal(size: int, seed: int = 1) -> Tensor:
    q: Tensor = torch.linalg.qr(gaussian(size, size, seed=seed))[0]
    return q


def updates(gradients: list[Tensor], **settings: Any) -> list[Tensor]:
    """The steps that NorMuon takes for a sequence of gradients, as (weight before - weight after) / lr."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = NorMuon([weight], lr=1.0, **settings)
    taken = []
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
        taken.append(before - weight.detach())
    return taken


def row_norms(matrix: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=-1)
    return norms


# Newton-Schulz


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_applies_its_polynomial_to_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    p = s / torch.linalg.matrix_norm(matrix)
    for _ in range(5):
        p = 3.4445 * p - 4.7750 * p**3 + 2.0315 * p**5
    diagonal = u.mT @ newton_schulz(matrix) @ vh.mT
    torch.testing.assert_close(diagonal, torch.diag(p), atol=1e-5, rtol=0)


def test_newton_schulz_brings_singular_values_above_one_per_cent_near_one() -> None:
    s = torch.logspace(-2, -0.2, 9, dtype=torch.float64)
    s = torch.cat([s, (1 - s.square().sum()).sqrt().unsqueeze(0)]) if s.square().sum() < 1 else s
    matrix = orthogonal(len(s)) @ torch.diag(s / max(1.0, float(s.norm()))) @ orthogonal(len(s), seed=2)
    reached = torch.linalg.svdvals(newton_schulz(matrix / matrix.norm()))
    above = torch.linalg.svdvals(matrix / matrix.norm()) >= 0.01
    assert above.sum() >= 7
    assert reached[: int(above.sum())].min() > 0.68
    assert reached.max() < 1.14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_newton_schulz_batches_and_keeps_dtype(dtype: torch.dtype) -> None:
    batch = gaussian(2, 3, 8, 4, dtype=dtype)
    result = newton_schulz(batch)
    assert result.shape == batch.shape
    assert result.dtype == dtype
    one_by_one = torch.stack([newton_schulz(matrix) for matrix in batch.flatten(0, 1)]).view_as(batch)
    torch.testing.assert_close(result, one_by_one, atol=0.03 if dtype == torch.bfloat16 else 1e-6, rtol=0)


def test_newton_schulz_in_bfloat16_is_within_a_few_per_cent() -> None:
    matrix = gaussian(32, 16)
    difference = newton_schulz(matrix.bfloat16()).double() - newton_schulz(matrix)
    assert difference.norm() / newton_schulz(matrix).norm() < 0.05


def test_newton_schulz_of_zero_is_zero() -> None:
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert newton_schulz(torch.zeros(2, 0, 4)).shape == (2, 0, 4)


def test_gradients_flow_through_the_formulas() -> None:
    def update(matrix: Tensor, second_moment: Tensor) -> Tensor:
        normalized, after = normalize_neurons(newton_schulz(matrix, steps=2), second_moment)
        return torch.cat([rescale(normalized, "rms").flatten(), after])

    arguments = (gaussian(4, 3).requires_grad_(), (gaussian(4).square() + 0.1).requires_grad_())
    assert torch.autograd.gradcheck(update, arguments)


def test_the_formulas_compile_to_one_graph() -> None:
    def update(matrix: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor]:
        normalized, second_moment = normalize_neurons(newton_schulz(matrix), second_moment)
        return rescale(normalized), second_moment

    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    arguments = (gaussian(2, 6, 4), gaussian(2, 6).square())
    torch.testing.assert_close(compiled(*arguments), update(*arguments))


# The exact properties of the update


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.95, 0.999])
def test_first_step_gives_every_row_the_same_norm(shape: tuple[int, int], beta2: float) -> None:
    m, n = shape
    gradient = gaussian(m, n)
    (update,) = updates([gradient], beta2=beta2)
    factor = math.sqrt(max(1.0, m / n))
    expected = newton_schulz(gradient).norm() / math.sqrt(m) * factor
    torch.testing.assert_close(row_norms(update), expected.expand(m), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_as_long_as_that_of_muon(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gradients = [gaussian(*shape, seed=seed, dtype=dtype) for seed in range(6)]
    for ours, muon in zip(updates(gradients), updates(gradients, normalize=False), strict=True):
        torch.testing.assert_close(ours.norm(), muon.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_rms_scale_sets_the_root_mean_square_entry(shape: tuple[int, int], normalize: bool) -> None:
    gradients = [gaussian(*shape, seed=seed) for seed in range(4)]
    for update in updates(gradients, scale="rms", normalize=normalize):
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-8)


def test_scales_differ_by_a_factor_only() -> None:
    gradients = [gaussian(9, 4, seed=seed) for seed in range(4)]
    for muon, rms in zip(updates(gradients), updates(gradients, scale="rms"), strict=True):
        torch.testing.assert_close(muon / muon.norm(), rms / rms.norm())


@pytest.mark.parametrize("constant", [1e-2, 1e4])
def test_multiplying_all_gradients_changes_nothing(constant: float) -> None:
    gradients = [gaussian(7, 4, seed=seed) for seed in range(5)]
    for plain, scaled in zip(updates(gradients), updates([constant * g for g in gradients]), strict=True):
        torch.testing.assert_close(scaled, plain, atol=1e-4, rtol=0)  # 1e-4: the guard on the norm


def test_row_permutations_carry_over() -> None:
    gradients = [gaussian(7, 4, seed=seed) for seed in range(5)]
    permutation = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    for plain, permuted in zip(updates(gradients), updates([g[permutation] for g in gradients]), strict=True):
        torch.testing.assert_close(permuted, plain[permutation])


def test_rotations_of_the_inputs_carry_over() -> None:
    gradients = [gaussian(4, 7, seed=seed) for seed in range(5)]
    q = orthogonal(7)
    for plain, rotated in zip(updates(gradients), updates([g @ q for g in gradients]), strict=True):
        torch.testing.assert_close(rotated, plain @ q)


def test_rotations_of_the_outputs_do_not_carry_over_but_do_for_muon() -> None:
    gradients = [gaussian(7, 4, seed=seed) for seed in range(2)]
    q = orthogonal(7)
    rotated = [q @ g for g in gradients]
    torch.testing.assert_close(updates(rotated, normalize=False)[-1], q @ updates(gradients, normalize=False)[-1])
    assert (updates(rotated)[-1] - q @ updates(gradients)[-1]).norm() > 0.1


def test_a_constant_gradient_ends_and_stays_at_equal_row_norms() -> None:
    # Start from the row statistics of another gradient, so that the rows are unequal at first.
    dispersions = [row_norm_dispersion(u) for u in updates([gaussian(8, 3, seed=9)] * 5 + [gaussian(8, 3)] * 400)]
    assert max(dispersions[5:60]) > 0.01
    assert max(dispersions[-50:]) < 1e-6


def test_a_row_of_zeros_stays_and_a_small_row_is_lifted() -> None:
    gradient = gaussian(6, 4)
    gradient[0] = 0
    gradient[1] *= 1e-4
    (update,) = updates([gradient])
    norms = row_norms(update)
    assert norms[0] == 0
    torch.testing.assert_close(norms[1:], norms[1].expand(5), rtol=1e-4, atol=0)


def test_normalisation_leaves_its_arguments_alone() -> None:
    matrix, second_moment = gaussian(5, 3), gaussian(5).square()
    before = matrix.clone(), second_moment.clone()
    normalized, after = normalize_neurons(matrix, second_moment, beta2=0.9)
    assert torch.equal(matrix, before[0])
    assert torch.equal(second_moment, before[1])
    torch.testing.assert_close(after, 0.9 * before[1] + 0.1 * matrix.square().mean(dim=1))
    torch.testing.assert_close(normalized.norm(), matrix.norm())


def test_nesterov_mixes_the_gradient_in() -> None:
    first, second = gaussian(5, 4), gaussian(5, 4, seed=1)
    settings = {"normalize": False, "momentum": 0.5}
    running = 0.25 * first + 0.5 * second
    factor = math.sqrt(5 / 4)
    plain = updates([first, second], nesterov=False, **settings)[1]
    mixed = updates([first, second], nesterov=True, **settings)[1]
    torch.testing.assert_close(plain, newton_schulz(running) * factor)
    torch.testing.assert_close(mixed, newton_schulz(0.5 * second + 0.5 * running) * factor)


# Muon


@pytest.mark.parametrize("shape", [(6, 6), (24, 6), (6, 24)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_without_normalisation_it_is_the_muon_of_pytorch(shape: tuple[int, int], nesterov: bool) -> None:
    """Same momentum, Nesterov form, decoupled decay, coefficients and shape factor as `torch.optim.Muon`.

    What differs: PyTorch always iterates in bfloat16 (and rounds at other places, which costs the 2 %), divides
    by max(norm, 1e-7) where Muon's own code adds 1e-7, and has other defaults (lr 1e-3, weight decay 0.1).
    """
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    start = gaussian(*shape, seed=5, dtype=torch.float32)

    def end(optimizer: type[torch.optim.Optimizer], **more: Any) -> Tensor:
        weight = nn.Parameter(start.clone())
        used = optimizer([weight], **(settings | more))
        for seed in range(20):
            weight.grad = gaussian(*shape, seed=seed, dtype=torch.float32)
            used.step()
        return weight.detach()

    theirs = end(torch.optim.Muon)
    moved = (theirs - start).norm()
    assert (end(NorMuon, normalize=False, ns_dtype=torch.bfloat16) - theirs).norm() < 0.02 * moved
    assert (end(NorMuon, normalize=False) - theirs).norm() < 0.02 * moved
    # The tolerance tells the settings apart.
    assert (end(NorMuon, normalize=False, nesterov=not nesterov) - theirs).norm() > 0.04 * moved
    assert (end(NorMuon, normalize=False, weight_decay=0.0) - theirs).norm() > 0.04 * moved


# As an optimiser


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> float:
    loss = math.nan
    for step in range(first, first + steps):
        x = gaussian(32, 5, seed=step)
        value = (net(x) - x[:, :3].sin()).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loss = float(value.detach())
    return loss


@pytest.mark.parametrize("normalize", [True, False])
def test_it_learns(normalize: bool) -> None:
    net = model()
    matrices = [p for p in net.parameters() if p.ndim == 2]
    optimizer = NorMuon(matrices, lr=0.02, normalize=normalize)
    first = fit(net, optimizer, 1)
    assert fit(net, optimizer, 100, first=1) < 0.2 * first


def test_matrices_of_one_shape_in_one_batch_step_as_they_would_alone() -> None:
    starts = [gaussian(6, 4, seed=seed) for seed in range(3)] + [gaussian(4, 6), gaussian(6, 2, 1, 2)]
    together, alone = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = [NorMuon(together, weight_decay=0.1), *(NorMuon([p], weight_decay=0.1) for p in alone)]
    for seed in range(3):
        for p in (*together, *alone):
            p.grad = gaussian(*p.shape, seed=seed + p.shape[0] * p.ndim)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_large_matrices_are_split_over_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [gaussian(6, 4, seed=seed) for seed in range(5)]
    results = []
    for numbers in (2**26, 48, 1):  # five matrices of 24 numbers: all at once, two at a time, one at a time
        monkeypatch.setattr("working_papers.papers.normuon.method.BATCH_NUMBERS", numbers)
        weights = [nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)) for _ in gradients]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        NorMuon(weights).step()
        results.append(torch.stack([w.detach() for w in weights]))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (16, 2, 1, 1), (2, 8, 3)])
def test_convolution_kernels_are_flattened_to_neurons(shape: tuple[int, ...]) -> None:
    gradients = [gaussian(*shape, seed=seed) for seed in range(3)]
    flat = updates([g.flatten(1) for g in gradients])
    for kernel, matrix in zip(updates(gradients), flat, strict=True):
        torch.testing.assert_close(kernel.flatten(1), matrix)


def test_state_is_one_matrix_and_one_vector() -> None:
    weight = nn.Parameter(gaussian(12, 5))
    weight.grad = gaussian(12, 5)
    optimizer = NorMuon([weight])
    optimizer.step()
    assert sum(tensor.numel() for tensor in optimizer.state[weight].values()) == 12 * 5 + 12
    muon = NorMuon([weight], normalize=False)
    muon.step()
    assert sum(tensor.numel() for tensor in muon.state[weight].values()) == 12 * 5


def test_gradients_are_not_written_to_and_missing_ones_are_skipped() -> None:
    used, unused = nn.Parameter(gaussian(4, 3)), nn.Parameter(gaussian(4, 3, seed=1))
    before = unused.detach().clone()
    optimizer = NorMuon([used, unused], weight_decay=0.1)
    used.grad = gaussian(4, 3, seed=2)
    optimizer.step()
    optimizer.step()
    assert torch.equal(used.grad, gaussian(4, 3, seed=2))
    assert torch.equal(unused, before)
    assert unused.grad is None
    assert unused not in optimizer.state


def test_weight_decay_is_decoupled() -> None:
    start = gaussian(5, 4)
    plain, decayed = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for weight, decay in ((plain, 0.0), (decayed, 0.3)):
        weight.grad = gaussian(5, 4, seed=1)
        NorMuon([weight], lr=0.1, weight_decay=decay).step()
    torch.testing.assert_close(plain - decayed, 0.03 * start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_saved_state_continues_the_same_run(dtype: torch.dtype) -> None:
    gradients = [gaussian(6, 4, seed=seed, dtype=dtype) for seed in range(8)]

    def steps(weight: nn.Parameter, optimizer: NorMuon, some: list[Tensor]) -> None:
        for gradient in some:
            weight.grad = gradient.clone()
            optimizer.step()

    weight = nn.Parameter(gaussian(6, 4, seed=9, dtype=dtype))
    optimizer = NorMuon([weight], lr=0.1)
    steps(weight, optimizer, gradients[:4])
    resumed = nn.Parameter(weight.detach().clone())
    another = NorMuon([resumed], lr=0.5, beta2=0.1)
    another.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(weight, optimizer, gradients[4:])
    steps(resumed, another, gradients[4:])
    assert torch.equal(weight, resumed)


def test_loading_a_muon_state_starts_the_row_statistics_afresh() -> None:
    weight = nn.Parameter(gaussian(6, 4))
    weight.grad = gaussian(6, 4, seed=1)
    muon = NorMuon([weight], normalize=False)
    muon.step()
    ours = NorMuon([weight])
    ours.load_state_dict(muon.state_dict())
    ours.param_groups[0]["normalize"] = True
    ours.step()
    assert ours.state[weight]["second_moment"].shape == (6,)


def test_schedulers_closures_and_tensor_learning_rates_work() -> None:
    weight, same = nn.Parameter(gaussian(6, 4)), nn.Parameter(gaussian(6, 4))
    optimizer = NorMuon([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.5, total_iters=1)
    with_tensor = NorMuon([same], lr=torch.tensor(0.1, dtype=torch.float64), weight_decay=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    expected = float(weight.detach().square().sum())
    same.grad = 2 * same.detach()
    assert optimizer.step(closure) == pytest.approx(expected)
    with_tensor.step()
    torch.testing.assert_close(weight, same)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameters_keep_their_dtype(dtype: torch.dtype) -> None:
    weight = nn.Parameter(gaussian(8, 5, dtype=dtype))
    start = weight.detach().clone().double()
    weight.grad = gaussian(8, 5, seed=1, dtype=dtype)
    optimizer = NorMuon([weight], lr=0.5, weight_decay=0.01)
    optimizer.step()
    assert weight.dtype == dtype
    assert optimizer.state[weight]["momentum_buffer"].dtype == dtype
    moved = start * (1 - 0.005) - weight.detach().double()
    torch.testing.assert_close(row_norms(moved), row_norms(moved).mean().expand(8), rtol=0.03, atol=0)


def test_groups_have_their_own_settings() -> None:
    a, b = nn.Parameter(gaussian(6, 4)), nn.Parameter(gaussian(6, 4))
    a.grad = gaussian(6, 4, seed=1)
    b.grad = a.grad.clone()
    start = a.detach().clone()
    groups: list[dict[str, Any]] = [{"params": [a], "lr": 0.1}, {"params": [b]}]
    NorMuon(groups, lr=0.2).step()
    torch.testing.assert_close(2 * (a - start), b - start)


def test_the_step_compiles() -> None:
    plain, compiled = nn.Parameter(gaussian(6, 4)), nn.Parameter(gaussian(6, 4))
    optimizers = NorMuon([plain]), NorMuon([compiled])
    step = torch.compile(optimizers[1].step, backend="eager")
    for seed in range(3):
        plain.grad, compiled.grad = (gaussian(6, 4, seed=seed) for _ in range(2))
        optimizers[0].step()
        step()
    torch.testing.assert_close(compiled, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    gradients = [gaussian(24, 16, seed=seed, dtype=torch.float32) for seed in range(3)]
    on_gpu = updates([g.cuda() for g in gradients], ns_dtype=torch.float32)
    in_bfloat16 = updates([g.cuda() for g in gradients])
    for cpu, gpu, rough in zip(updates(gradients), on_gpu, in_bfloat16, strict=True):
        assert float((gpu.cpu() - cpu).norm() / cpu.norm()) < 0.01
        assert float((rough.cpu() - cpu).norm() / cpu.norm()) < 0.05


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1; expected a finite number"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": torch.ones(2)}, r"lr is a tensor of shape \(2,\); expected one element"),
        ({"momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
        ({"beta2": -0.5}, r"beta2 is -0.5; expected a number in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"ns_steps": 0}, "ns_steps is 0; expected 1 or more"),
        ({"scale": "spectral"}, "scale is 'spectral'; expected 'muon' or 'rms'"),
        ({"ns_dtype": torch.int32}, "ns_dtype is torch.int32"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NorMuon([nn.Parameter(gaussian(3, 3))], **settings)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4), r"params holds a tensor of shape \(4,\); expected at least two axes"),
        (torch.zeros(0, 4), r"params holds a tensor of shape \(0, 4\) .* not empty"),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex64; expected a real floating-point one"),
    ],
)
def test_bad_parameters_are_named_and_leave_the_optimizer_alone(tensor: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NorMuon([nn.Parameter(tensor)])
    optimizer = NorMuon([nn.Parameter(gaussian(3, 3))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(tensor)]})
    assert len(optimizer.param_groups) == 1


def test_bad_arguments_of_the_functions_are_named() -> None:
    with pytest.raises(ValueError, match=r"matrix has shape \(3,\)"):
        newton_schulz(torch.zeros(3))
    with pytest.raises(ValueError, match=r"dtype torch.int64; expected"):
        newton_schulz(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps is -1; expected 0 or more"):
        newton_schulz(torch.zeros(3, 3), steps=-1)
    with pytest.raises(ValueError, match="scale is 'adam'; expected 'muon' or 'rms'"):
        rescale(torch.zeros(3, 3), "adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"update has shape \(3,\); expected at least two axes"):
        row_norm_dispersion(torch.ones(3))
    with pytest.raises(ValueError, match=r"update has a mean row norm of 0\.0"):
        row_norm_dispersion(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="exclude is the string 'head'"):
        split_parameters(nn.Linear(2, 2), exclude="head")
    weight = nn.Parameter(gaussian(3, 3))
    weight.grad = gaussian(3, 3).to_sparse()
    with pytest.raises(ValueError, match=r"a gradient has layout torch\.sparse_coo"):
        NorMuon([weight]).step()


# Helpers


def test_row_norm_dispersion_by_hand() -> None:
    assert row_norm_dispersion(torch.tensor([[3.0, 4.0], [0.0, 15.0]])) == pytest.approx(0.5)  # norms 5 and 15
    assert row_norm_dispersion(torch.eye(4)) == 0
    kernel = gaussian(4, 3, 2, 2)
    assert row_norm_dispersion(kernel) == row_norm_dispersion(kernel.flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, 6))
        self.multihead_attention = nn.MultiheadAttention(6, 2)
        self.norm = nn.LayerNorm(6)
        self.stem = nn.Conv2d(3, 6, 3)
        self.gate = nn.Linear(6, 1)
        self.frozen = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.project = nn.Linear(6, 11, bias=False)
        self.project.weight = self.tokens.weight
        self.lm_head = nn.Linear(6, 11, bias=False)


def test_split_parameters_finds_the_hidden_matrices() -> None:
    net = Tied()
    names = {p: name for name, p in net.named_parameters()}
    matrices, rest = split_parameters(net)
    assert [names[p] for p in matrices] == [
        "multihead_attention.in_proj_weight",
        "multihead_attention.out_proj.weight",
        "stem.weight",
    ]
    assert {names[p] for p in rest} == set(names.values()) - {names[p] for p in matrices} - {"frozen.weight"}
    assert net.lm_head.weight in set(split_parameters(net, exclude=())[0])
    NorMuon(matrices)


# The study


def test_the_text_follows_the_laws_that_come_with_it() -> None:
    text = language(3, Scale.LAPTOP)
    size = Size.of(Scale.LAPTOP)
    assert text.training.shape == (size.steps, size.batch, size.length + 1)
    assert text.law.shape == (size.held_out, size.length - 1, size.symbols)
    torch.testing.assert_close(text.law.sum(dim=-1), torch.ones(size.held_out, size.length - 1))
    spoken = text.law.gather(-1, text.validation[:, 2:].long().unsqueeze(-1)).squeeze(-1)
    surprise = -spoken.double().log()  # its expectation is the entropy of the law
    entropy = torch.special.entr(text.law.double()).sum(dim=-1)
    error = (surprise - entropy).std() / math.sqrt(surprise.numel())
    assert abs(surprise.mean() - entropy.mean()) < 4 * error
    # The pairs of the training text and of the validation text are equally frequent, so the start is forgotten.
    first, last = (text.training[..., at].flatten().long().bincount(minlength=size.symbols) for at in (0, -1))
    assert (first - last).abs().max() < 5 * (2 * first.max()).sqrt()


def test_excess_loss_is_zero_for_the_true_law_and_known_for_the_uniform_one() -> None:
    text = language(3, Scale.SMOKE)
    symbols = Size.of(Scale.SMOKE).symbols
    first = torch.zeros(len(text.law), 1, symbols)  # what is predicted after one symbol does not count
    true, uniform = (
        torch.cat([first, text.law.log()], dim=1),
        torch.zeros(len(text.law), text.law.shape[1] + 1, symbols),
    )

    class Fixed(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, symbols: Tensor) -> Tensor:
            return self.logits

    assert excess_loss(Fixed(true.clamp(min=-80)), text.validation.long(), text.law) == pytest.approx(0, abs=1e-5)
    expected = math.log(symbols) - float(torch.special.entr(text.law).sum(dim=-1).mean())
    assert excess_loss(Fixed(uniform), text.validation.long(), text.law) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("arm", list(study.arms))
def test_a_trial_is_pure_and_complete(arm: str) -> None:
    trial = Trial(arm=arm, seed=5, scale=Scale.SMOKE, setting={"learning rate": 0.02})
    first, second = (train(trial, language(5, Scale.SMOKE)) for _ in range(2))
    assert set(study.measures) <= set(first)
    for name, value in first.items():
        assert np.array_equal(value, second[name])
        assert np.isfinite(value).all()
    if arm == "muon":  # the step that is compared with Muon's is Muon's
        assert first[ROWS] == pytest.approx(1, abs=1e-3)
        assert first[SPREAD] == pytest.approx(1, abs=1e-3)
    assert first[STATE] == pytest.approx({"normuon": 1.05, "muon": 1.0, "adamw": 2.0}[arm], abs=0.02)
    assert 0 < float(first[LOSS]) < math.log(Size.of(Scale.SMOKE).symbols)


def test_a_seed_fixes_its_language() -> None:
    texts = [language(seed, Scale.SMOKE) for seed in (5, 5, 6)]
    assert torch.equal(texts[0].training, texts[1].training)
    assert not torch.equal(texts[0].training, texts[2].training)
