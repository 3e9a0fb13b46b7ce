"""Networks of one hidden layer with frozen random weights: where their weights come from, and what is out of reach.

A network is g(x) = Σ_i c_i σ(a_i·x − b_i); a and b are drawn once, only c is solved for. What it can reach is read off
the ridgelet transform R(a, b) of the target: the part outside the box from which a and b come is lost. Letters: n =
hidden units, N = samples, d = input dimension, A and B = points of the grids of a and b, λ = half width of a box.

Source: Li, Sonoda, Cao, Wang, Liang 2020 (https://arxiv.org/abs/2008.08427), sections 3 and 4. The transform pairs and
the floors are derived here; the paper's bound has the form of `outside_energy` (from memory, without its constants).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

RCOND = 1e-10
"""Singular values below this fraction of the largest count as zero. The default of a solver would move every floor."""

CHUNK = 2**22
"""Numbers of one intermediate array of an integral."""

Activation = Callable[[Tensor], Tensor]


def gaussian(z: Tensor, order: int = 0) -> Tensor:
    """The derivative of that order of exp(-z² / 2).

    Args:
        z: any shape.
        order: 0 for the Gaussian itself.

    Raises:
        ValueError: the order is negative.
    """
    if order < 0:
        raise ValueError(f"order must be 0 or more, got {order}")
    previous, current = torch.zeros_like(z), torch.ones_like(z)
    for k in range(order):  # Hermite polynomials, He_{k+1} = z He_k - k He_{k-1}
        previous, current = current, z * current - k * previous
    value: Tensor = current * torch.exp(-z.square() / 2)
    return -value if order % 2 else value


def sinc(z: Tensor) -> Tensor:
    """sin(z) / z, whose Fourier transform is π on [-1, 1] and nothing outside.

    Args:
        z: any shape.
    """
    return torch.sinc(z / math.pi)


def admissibility(order: int = 0) -> float:
    """C = 2π order! of the pair σ = `gaussian(order)`, ρ = -`gaussian(order + 2)` in one dimension: f = S[R[f]] / C.

    Args:
        order: of the activation.

    Raises:
        ValueError: the order is negative.
    """
    if order < 0:
        raise ValueError(f"order must be 0 or more, got {order}")
    return 2 * math.pi * math.factorial(order)


def ridgelet_transform(f: Tensor, x: Tensor, a: Tensor, b: Tensor, order: int = 0) -> Tensor:
    """R(a, b) = ∫ f(x) ρ(a x - b) dx for the pair of `admissibility`.

    By the Fourier slice: for fixed a, its transform along b is f̂(ω a) ρ̂(-ω), so b is had by one fast transform.

    Args:
        f: (..., N) the target on an even grid; it must have died down at both ends.
        x: (N,) the grid.
        a: (A,) hidden weights.
        b: (B,) an even grid of biases; it must reach beyond all |a x| + 5 where f lives, as the transform is periodic.
        order: of the activation.

    Returns:
        (..., A, B), real.

    Raises:
        ValueError: a grid is not even, or shapes do not fit.
    """
    dx, db = _spacing("x", x), _spacing("b", b)
    if f.shape[-1] != len(x):
        raise ValueError(f"f must have {len(x)} values along its last axis, one for each x, got shape {tuple(f.shape)}")
    omega = 2 * math.pi * torch.fft.rfftfreq(len(b), d=db, dtype=f.dtype, device=f.device)
    seen = omega <= 9 + order  # beyond, ρ̂ is below rounding
    slices = f.new_zeros(*f.shape[:-1], len(a), len(omega)).to(torch.promote_types(f.dtype, torch.complex64))
    slices[..., seen] = torch.stack([_fourier(f, x, omega[seen] * each) * dx for each in a], dim=-2)
    # ρ = -σ^(order+2): ρ̂(ω) = -(iω)^(order+2) √(2π) exp(-ω²/2); at -ω, as the argument is a x - b.
    rho = -((-1j * omega) ** (order + 2)) * math.sqrt(2 * math.pi) * torch.exp(-omega.square() / 2)
    shift = torch.exp(1j * omega * b[0])  # the grid of b begins at b[0]
    transform: Tensor = torch.fft.irfft(slices * rho * shift, n=len(b), dim=-1) / db
    return transform


def _fourier(f: Tensor, x: Tensor, omega: Tensor) -> Tensor:
    """Σ f(x) exp(-iωx), (..., len(omega)), in parts."""
    rows = max(1, CHUNK // len(x))
    parts = [torch.exp(-1j * part[:, None] * x) for part in omega.split(rows)]
    return torch.cat([(f.to(part.dtype) @ part.mT) for part in parts], dim=-1)


def reconstruct(r: Tensor, a: Tensor, b: Tensor, x: Tensor, order: int = 0) -> Tensor:
    """f(x) = (1 / C) ∫∫ R(a, b) σ(a x - b) da db over the grids; with grids cut off, what a box can say of f.

    Args:
        r: (A, B) the transform.
        a: (A,) even grid.
        b: (B,) even grid.
        x: (N,) where to evaluate.
        order: of the activation.

    Returns:
        (N,).
    """
    weights = r * _spacing("a", a) * _spacing("b", b) / admissibility(order)
    rows = max(1, CHUNK // (len(b) * len(x)))
    total = torch.zeros_like(x)
    for part, weight in zip(a.split(rows), weights.split(rows), strict=True):
        z = part[:, None, None] * x[:, None] - b
        total = total + torch.einsum("anb,ab->n", gaussian(z, order), weight)
    return total


def outside_energy(r: Tensor, a: Tensor, b: Tensor, box: Tensor) -> Tensor:
    """Which part of ∫∫ R² lies outside |a| ≤ λ, |b| ≤ λ.

    Args:
        r: (A, B) the transform on even grids.
        a: (A,).
        b: (B,).
        box: (...) values of λ.

    Returns:
        Same shape as box, from 0 to 1.
    """
    energy = r.square()
    within = (a.abs()[:, None] <= box[..., None, None]) & (b.abs() <= box[..., None, None])
    return 1 - (energy * within).sum((-2, -1)) / energy.sum()


def _spacing(name: str, grid: Tensor) -> float:
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"{name} must be a grid of at least 2 points, got shape {tuple(grid.shape)}")
    steps = grid.diff()
    step = float((grid[-1] - grid[0]) / (len(grid) - 1))
    if step <= 0 or bool(((steps - step).abs() > 1e-4 * step).any()):
        raise ValueError(
            f"{name} must be an increasing grid with even steps, got steps from {steps.min()} to {steps.max()}"
        )
    return step


def fourier_floor(f: Tensor, dx: float, band: float) -> Tensor:
    """(1 / 2π) ∫_{|ω| > band} |f̂|² dω: what no network of `sinc` units with |a| ≤ band gets below, in squared L² on R.

    Such units have no frequency above their |a|, whatever their number and coefficients.

    Args:
        f: (..., N) the target on an even grid, died down at both ends.
        dx: step of the grid.
        band: largest |a|.

    Returns:
        (...).
    """
    return _tail(f, dx, band, lambda size, _: size)


def gaussian_floor(f: Tensor, dx: float, box: float, l1: float) -> Tensor:
    """A floor for networks of Gaussian units with |a| ≤ box and Σ|c| ≤ l1, in squared L² error on R.

    Beyond ω = box no unit has more than (√(2π) / box) exp(-ω² / 2 box²) at ω; what |f̂| has above l1 times that is lost.

    Args:
        f: (..., N) the target on an even grid, died down at both ends.
        dx: step of the grid.
        box: largest |a|.
        l1: largest sum of the coefficients' absolute values.

    Returns:
        (...).
    """

    def lost(size: Tensor, omega: Tensor) -> Tensor:
        reach = l1 * math.sqrt(2 * math.pi) / box * torch.exp(-omega.square() / (2 * box**2))
        return (size - reach).clamp_min(0)

    return _tail(f, dx, box, lost)


def _tail(f: Tensor, dx: float, band: float, kept: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(1 / 2π) ∫_{|ω| > band} of the square of what `kept` leaves of |f̂|."""
    count = 128 * f.shape[-1]  # zeros behind it make the frequencies dense: the band's edge lies between two of them
    size = torch.fft.fft(f, n=count).abs() * dx
    omega = 2 * math.pi * torch.fft.fftfreq(count, d=dx, dtype=size.dtype, device=size.device).abs()
    step = 2 * math.pi / (count * dx)
    low, high = (omega - step / 2).clamp_min(0), omega + step / 2
    beyond = ((high - band) / (high - low)).clamp(0, 1)  # which part of each frequency's interval counts
    floor: Tensor = (kept(size, omega).square() * beyond).sum(-1) / (count * dx)
    return floor


def sinc_error(a: Tensor, b: Tensor, fourier: Callable[[Tensor], Tensor], energy: float, points: int = 512) -> Tensor:
    """Squared L² error on the whole line of the best network of `sinc` units, exactly, without any window.

    Args:
        a: (..., n) weights, none of them 0.
        b: (..., n) biases.
        fourier: f̂ of a real, even target.
        energy: ∫ f² of the target.
        points: of the quadrature over frequencies.

    Returns:
        (...): energy - dᵀ G⁺ d with the units' Gram matrix G and their products d with the target.
    """
    size, centre = a.abs(), b / a
    least = torch.minimum(size[..., :, None], size[..., None, :])
    gap = centre[..., :, None] - centre[..., None, :]
    gram = math.pi * least * sinc(least * gap) / (size[..., :, None] * size[..., None, :])
    node, weight = _gauss_legendre(points, a)
    omega = size[..., None] * (node + 1) / 2  # 0 to |a|
    d = (fourier(omega) * torch.cos(omega * centre[..., None]) * weight).sum(-1) / 2  # (1 / |a|) ∫_0^|a| f̂ cos
    values, vectors = torch.linalg.eigh(gram)
    kept = values > RCOND * values[..., -1:]
    inverse = torch.where(kept, values.clamp_min(1e-300).reciprocal(), torch.zeros_like(values))
    projected = (vectors.mT @ d[..., None]).squeeze(-1)
    error: Tensor = energy - (projected.square() * inverse).sum(-1)
    return error


def _gauss_legendre(points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    import numpy as np

    node, weight = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(node).to(like), torch.from_numpy(weight).to(like)


class Sampler(Protocol):
    """Draws hidden weights and biases."""

    def draw(self, n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(n, d) weights and (n,) biases, float64; the first ones of a longer draw are those of a shorter one."""
        ...


@dataclass(frozen=True)
class UniformScope:
    """Even over a box: |a| ≤ weight in each coordinate, |b| ≤ bias. The common default is 1 and 1.

    Args:
        weight: λ of the weights.
        bias: λ of the biases; that of the weights by default.
    """

    weight: float
    bias: float | None = None

    def __post_init__(self) -> None:
        """Refuse boxes that are none."""
        if self.weight <= 0 or (self.bias is not None and self.bias <= 0):
            raise ValueError(f"weight and bias must be positive, got {self.weight} and {self.bias}")

    def draw(self, n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same stream of numbers for every box, scaled: boxes are compared on common random numbers."""
        u = 2 * torch.rand(n, d + 1, generator=generator, dtype=torch.float64) - 1
        return self.weight * u[:, :d], (self.weight if self.bias is None else self.bias) * u[:, d]


class RidgeletSampler:
    """In proportion to |R|: the assignment that suits one target, in one dimension.

    Args:
        r: (A, B) the target's transform on even grids.
        a: (A,).
        b: (B,).
    """

    def __init__(self, r: Tensor, a: Tensor, b: Tensor) -> None:
        if r.shape != (len(a), len(b)):
            raise ValueError(f"r must have shape {(len(a), len(b))} for these grids, got {tuple(r.shape)}")
        size = r.abs().double()
        if not bool(torch.isfinite(size).all()) or float(size.sum()) <= 0:
            raise ValueError("r must be finite and not zero everywhere")
        self._cells = (size / size.sum()).flatten().cumsum(0)
        self._r, self._a, self._b = r.double(), a.double(), b.double()
        self._steps = _spacing("a", a), _spacing("b", b)

    def draw(self, n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cells by their share, even within a cell.

        Raises:
            ValueError: the input has more than one dimension.
        """
        if d != 1:
            raise ValueError(f"a transform on a grid is of one input dimension, got d = {d}")
        u = torch.rand(n, 3, generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(self._cells, u[:, 0].contiguous()).clamp_max(len(self._cells) - 1)
        row, column = cell // len(self._b), cell % len(self._b)
        a = self._a[row] + (u[:, 1] - 0.5) * self._steps[0]
        return a[:, None], self._b[column] + (u[:, 2] - 0.5) * self._steps[1]

    def coefficients(self, a: Tensor, b: Tensor, order: int = 0) -> Tensor:
        """c = R / (C n p) of drawn units: with them the network is a Monte-Carlo sum of the integral, error O(1/√n)."""
        row = ((a.squeeze(-1) - self._a[0]) / self._steps[0]).round().long().clamp(0, len(self._a) - 1)
        column = ((b - self._b[0]) / self._steps[1]).round().long().clamp(0, len(self._b) - 1)
        total = float(self._r.abs().sum()) * self._steps[0] * self._steps[1]
        return self._r[row, column].sign() * total / (admissibility(order) * len(b))


@dataclass(frozen=True)
class DataCentred:
    """Weights even over a box, each unit centred on a training point: b = a·x_i.

    Args:
        weight: λ of the weights.
        x: (N, d) training inputs.
    """

    weight: float
    x: Tensor

    def draw(self, n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weights, and the biases that put the middle of each unit on a point."""
        u = torch.rand(n, d + 1, generator=generator, dtype=torch.float64)
        a = self.weight * (2 * u[:, :d] - 1)
        point = self.x.double()[(u[:, d] * len(self.x)).long().clamp_max(len(self.x) - 1)]
        return a, (a * point).sum(-1)


def solve(features: Tensor, y: Tensor, ridge: float = 0.0, max_norm: float | None = None) -> Tensor:
    """Coefficients that minimise ‖Φ c - y‖² / N + ridge ‖c‖², or the best ones with ‖c‖ ≤ max_norm.

    Args:
        features: (..., N, n) Φ.
        y: (..., N) targets.
        ridge: 0 takes the solution of least norm, singular values below 1e-10 of the largest left out.
        max_norm: finds the ridge by bisection, on one decomposition, where the free solution is longer.

    Returns:
        (..., n), float64.

    Raises:
        ValueError: ridge is negative, max_norm not positive, or both are given.
    """
    if ridge < 0 or (max_norm is not None and max_norm <= 0) or (ridge and max_norm is not None):
        raise ValueError(f"give a ridge of 0 or more, or a positive max_norm, got {ridge} and {max_norm}")
    u, s, vh = torch.linalg.svd(features.double(), full_matrices=False)
    beta = (u.mT @ y.double()[..., None]).squeeze(-1)
    count = features.shape[-2]
    square = s.square()
    kept = s > RCOND * s[..., :1]

    def scaled(strength: Tensor) -> Tensor:
        """Coordinates of c in the right singular vectors."""
        inner = beta * s / (square + count * strength[..., None]).clamp_min(1e-300)
        return torch.where(kept | (strength[..., None] > 0), inner, torch.zeros_like(inner))

    strength = torch.full(s.shape[:-1], float(ridge), dtype=torch.float64, device=s.device)
    if max_norm is not None:
        free = scaled(strength).norm(dim=-1) <= max_norm
        low, high = torch.full_like(strength, -80.0), torch.full_like(strength, 40.0)  # powers of e
        for _ in range(80):
            middle = (low + high) / 2
            long = scaled(middle.exp()).norm(dim=-1) > max_norm
            low, high = torch.where(long, middle, low), torch.where(long, high, middle)
        strength = torch.where(free, strength, high.exp())
    c: Tensor = (vh.mT @ scaled(strength)[..., None]).squeeze(-1)
    return c


class RandomFeatureNet(nn.Module):
    """g(x) = Σ c_i σ(a_i·x - b_i) with frozen a and b.

    Args:
        d: input dimension.
        n: hidden units.
        act: σ, any elementwise function.
        sampler: where a and b come from.
        seed: of the draw.
        dtype: of buffers and coefficients; ill-conditioned features want float64.
    """

    a: Tensor
    b: Tensor

    def __init__(
        self, d: int, n: int, act: Activation, sampler: Sampler, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        if d < 1 or n < 1:
            raise ValueError(f"d and n must be at least 1, got {d} and {n}")
        a, b = sampler.draw(n, d, torch.Generator().manual_seed(seed))
        self.register_buffer("a", a.to(dtype))
        self.register_buffer("b", b.to(dtype))
        self.c = nn.Parameter(torch.zeros(n, dtype=dtype))
        self.act = act

    def features(self, x: Tensor) -> Tensor:
        """(N, n) of inputs (N, d), or (N,) when d is 1."""
        points = x[:, None] if x.ndim == 1 else x
        if points.shape[-1] != self.a.shape[1]:
            raise ValueError(f"x must have {self.a.shape[1]} columns, got shape {tuple(x.shape)}")
        return self.act(points.to(self.a) @ self.a.mT - self.b)

    def fit(self, x: Tensor, y: Tensor, ridge: float = 0.0, max_norm: float | None = None) -> RandomFeatureNet:
        """Solve for c; see `solve`."""
        with torch.no_grad():
            self.c.copy_(solve(self.features(x), y.to(self.c.device), ridge, max_norm))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(N,) values at inputs (N, d) or (N,)."""
        return self.features(x) @ self.c

    def coefficient_norm(self) -> float:
        """‖c‖₂; an error means little without it."""
        return float(self.c.detach().norm())


@dataclass(frozen=True)
class Sweep:
    """What boxes and widths come to.

    Attributes:
        scopes: (S,) values of λ.
        widths: (W,) numbers of units.
        rmse: (S, W, K) relative root mean square error on the test points, for K seeds.
        norm: (S, W, K) ‖c‖₂.
    """

    scopes: Tensor
    widths: Tensor
    rmse: Tensor
    norm: Tensor


def scope_sweep(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    act: Activation,
    scopes: Sequence[float],
    widths: Sequence[int],
    seeds: Sequence[int],
    ridge: float = 0.0,
    max_norm: float | None = None,
) -> Sweep:
    """Fit networks from boxes of every size, on common random numbers, all seeds of a size at once.

    Args:
        x: (N, d) training inputs.
        y: (N,) targets.
        x_test: (M, d).
        y_test: (M,).
        act: the activation.
        scopes: values of λ, for weights and biases.
        widths: numbers of units; narrower networks are the first units of wider ones.
        seeds: of the draws.
        ridge: see `solve`.
        max_norm: see `solve`.
    """
    unit = UniformScope(1.0)
    drawn = [unit.draw(max(widths), x.shape[1], torch.Generator().manual_seed(seed)) for seed in seeds]
    a, b = torch.stack([pair[0] for pair in drawn]), torch.stack([pair[1] for pair in drawn])
    train, test = x.double() @ a.mT, x_test.double() @ a.mT
    size = y_test.double().square().mean().sqrt()
    rmse = torch.empty(len(scopes), len(widths), len(seeds), dtype=torch.float64)
    norm = torch.empty_like(rmse)
    for i, scope in enumerate(scopes):
        features = act(scope * (train - b[:, None]))
        seen = act(scope * (test - b[:, None]))
        for j, width in enumerate(widths):
            c = solve(features[..., :width], y, ridge, max_norm)
            error = (seen[..., :width] @ c[..., None]).squeeze(-1) - y_test.double()
            rmse[i, j] = error.square().mean(-1).sqrt() / size
            norm[i, j] = c.norm(dim=-1)
    return Sweep(torch.tensor(scopes, dtype=torch.float64), torch.tensor(widths), rmse, norm)


def minimal_scope(sweep: Sweep, error: float, width: int = -1) -> float | None:
    """The smallest λ whose median error over seeds is at most that; None when no box of the sweep gets there.

    Args:
        sweep: boxes in increasing order.
        error: relative root mean square error.
        width: index of the width.
    """
    reached = sweep.rmse[:, width].median(-1).values <= error
    return float(sweep.scopes[reached][0]) if bool(reached.any()) else None
