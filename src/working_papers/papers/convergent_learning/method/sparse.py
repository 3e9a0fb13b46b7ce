"""One to few: the units of one network predicted from a few units of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.convergent_learning.method.statistics import UnitStats, covariance

COUNTED = 1e-3  # a weight counts from this share of the target's largest on
RANK = 1e-10  # eigenvalues of the correlation matrix below this share of the largest are taken for zero
NEWTON_STEPS = 3  # tried on the way, see `_polished`
RELAXATION = 1.6  # of ADMM; the usual choice
SOLVED_AT_ONCE = 2**23  # entries of stacked systems: bounds the scratch memory
PENALTIES = tuple(float(10 ** (-step / 12)) for step in range(1, 37))  # 0.83 to 0.001, twelve a decade


@dataclass(frozen=True)
class SparseMap:
    """Linear maps from the units x of one network to each unit y of another, on standardised units.

    L = number of penalties.

    Attributes:
        weight: (L, m, n).
        r2: share of the target's variance that is explained (L, m), on held-out samples where there were any (then it
            may be negative); 0 for dead targets.
        fit: the same on the samples of the fit (L, m).
        violation: largest violation of the optimality conditions (L, m), 0 at an exact minimum; NaN after a refit.
        penalties: the L penalties.
        stats: what was fitted to.
    """

    weight: Tensor
    r2: Tensor
    fit: Tensor
    violation: Tensor
    penalties: tuple[float, ...]
    stats: UnitStats

    def units(self, above: float = COUNTED) -> Tensor:
        """Number of units that each target uses (L, m): weights above a share of the target's largest."""
        size = self.weight.abs()
        return ((size > above * size.amax(dim=-1, keepdim=True)) & (size > 0)).sum(dim=-1)

    def affine(self, which: int) -> tuple[Tensor, Tensor]:
        """The map of one penalty for activations as they are: `y ≈ x @ weight.T + bias`.

        Args:
            which: index of the penalty.

        Returns:
            Weight (m, n) and bias (m,), as a linear layer has them.
        """
        stats = self.stats
        inverse = torch.where(stats.dead_x, 0.0, 1 / torch.where(stats.dead_x, 1.0, stats.std_x))
        weight = stats.std_y[:, None] * self.weight[which] * inverse
        return weight, stats.mean_y - weight @ stats.mean_x


def sparse_map(
    stats: UnitStats,
    penalties: Sequence[float],
    *,
    held_out: UnitStats | None = None,
    refit: bool = False,
    tolerance: float = 1e-9,
    max_steps: int = 20_000,
) -> SparseMap:
    """Predict every unit of the second network from few units of the first.

    For each target and penalty it minimises |y - X w|² / (2 N) + penalty |w|₁ over w, with standardised units and no
    intercept. Only correlations enter, so that the number of samples does not matter: the alternating direction method
    of multipliers for all targets at once, started from the next larger penalty, finished by solving for the weights of
    the support exactly. A penalty of `|cxy|.max(dim=0)` or more leaves a target without weights; 0 is least squares (of
    least norm where units are collinear).

    Args:
        stats: of the samples to fit to.
        penalties: strengths of the L1 norm on standardised units, in any order.
        held_out: statistics of the same units on other samples (other images: positions of one image are alike), for
            `r2`. Standardisation and weights come from `stats`.
        refit: replace the weights by least squares on the units chosen, which undoes the shrinkage.
        tolerance: largest violation of the optimality conditions that is left.
        max_steps: steps for each penalty; `violation` tells where they were not enough.

    Raises:
        ValueError: a penalty is negative or none is given, held_out has other numbers of units, or tolerance or
            max_steps is not positive.

    Source: section 4 of the paper. Its maps are 1 x 1 convolutions trained by SGD with L1 weight decay; losses there
    are (1 - R²) / 2.
    """
    penalties = [float(each) for each in penalties]
    if not penalties or not all(0 <= each < math.inf for each in penalties):
        raise ValueError(f"penalties is {penalties}; expected at least one number, each 0 or more")
    if tolerance <= 0 or max_steps < 1:
        raise ValueError(f"tolerance is {tolerance} and max_steps is {max_steps}; expected positive numbers")
    if held_out is not None and held_out.cxy.shape != stats.cxy.shape:
        raise ValueError(
            f"held_out has {tuple(held_out.cxy.shape)} units in the two networks; expected {tuple(stats.cxy.shape)}"
        )
    gram, cross = stats.cxx, stats.cxy
    found = torch.zeros(len(penalties), *cross.shape, dtype=cross.dtype, device=cross.device)
    values, vectors = torch.linalg.eigh(gram)
    w = torch.zeros_like(cross)
    for which in sorted(range(len(penalties)), key=lambda each: -penalties[each]):
        penalty = penalties[which]
        if penalty == 0:
            w = _least_squares(values, vectors, cross)
        else:
            inverse = (vectors / (values.clamp(min=0) + _step(penalty))) @ vectors.mT
            w = _lasso(gram, inverse, cross, penalty, w, tolerance, max_steps)
        found[which] = w
    found[:, stats.dead_x] = 0  # not even what rounding left
    strength = torch.tensor(penalties, dtype=cross.dtype, device=cross.device)[:, None, None]
    violation = _violation(gram, cross, strength, found).amax(dim=1) if len(gram) else found.new_zeros(found.shape[::2])
    if refit:
        chosen = found != 0
        found = torch.stack([_solve(gram, cross, each) for each in chosen])
        violation = torch.full_like(violation, torch.nan)
    weight = found.mT
    fit = _explained(stats, stats, weight)
    return SparseMap(
        weight=weight,
        r2=fit if held_out is None else _explained(stats, held_out, weight),
        fit=fit,
        violation=violation,
        penalties=tuple(penalties),
        stats=stats,
    )


@dataclass(frozen=True)
class PredictionCurve:
    """How well a few units predict each unit of the other network.

    Attributes:
        r2: (K + 1, m), share of the target's variance explained by at most 0, 1, ..., K units: for each number, the
            choice that fits best.
        full: (m,), by all units together (least squares).
    """

    r2: Tensor
    full: Tensor

    def units_needed(self, share: float = 0.9) -> Tensor:
        """The smallest number of units that reaches a share of what all units explain (m,), float.

        K + 1 where none does; NaN for a target of which all units explain nothing.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected a number above 0 and at most 1")
        reached = self.r2 >= share * self.full
        first = torch.where(reached.any(dim=0), reached.double().argmax(dim=0), len(reached)).to(self.r2)
        return torch.where(self.full > 0, first, torch.nan)


def prediction_curve(
    stats: UnitStats,
    *,
    held_out: UnitStats | None = None,
    penalties: Sequence[float] = PENALTIES,
    most: int | None = None,
) -> PredictionCurve:
    """Explained variance against the number of units, for every unit of the second network.

    The lasso proposes sets of units, least squares weighs them; one unit is always the one with the largest
    correlation. With `held_out`, sets and weights come from `stats` alone.

    Args:
        stats: of the samples to fit to.
        held_out: statistics of the same units on other samples, for the values returned.
        penalties: the path that proposes the sets.
        most: the largest number of units K; all by default.

    Raises:
        ValueError: as for `sparse_map`, or most is negative.

    Source: section 4 of the paper, where the loss is shown against the L1 strength; refitting is ours.
    """
    n = len(stats.cxy)
    most = n if most is None else most
    if most < 0:
        raise ValueError(f"most is {most}; expected 0 or more")
    path = sparse_map(stats, penalties, held_out=held_out, refit=True)
    everything = sparse_map(stats, [0.0], held_out=held_out)
    partner = torch.zeros_like(stats.cxy)
    best = stats.cxy.abs().argmax(dim=0, keepdim=True)
    partner.scatter_(0, best, stats.cxy.gather(0, best))
    single, nothing = partner.mT[None], torch.zeros_like(partner.mT)[None]
    candidates = torch.cat([nothing, single, path.weight, everything.weight])
    test = stats if held_out is None else held_out
    fit, r2 = (_explained(stats, each, candidates) for each in (stats, test))
    count = (candidates != 0).sum(dim=-1)
    allowed = count[None] <= torch.arange(most + 1, device=count.device)[:, None, None]  # (K + 1, candidates, m)
    winner = torch.where(allowed, fit, -torch.inf).argmax(dim=1)
    return PredictionCurve(r2=r2.gather(0, winner), full=everything.r2[0])


def _lasso(
    gram: Tensor, inverse: Tensor, cross: Tensor, penalty: float, start: Tensor, tolerance: float, max_steps: int
) -> Tensor:
    """Minimisers of wᵀ G w / 2 - cᵀ w + penalty |w|₁ for every column c of `cross`, shape (n, m).

    `inverse` is that of G + `_step(penalty)`. Columns that are solved are left alone.
    """
    result = start.clone()
    open_columns = torch.arange(cross.shape[1], device=cross.device)
    w, c, taken, look = start, cross, 0, 8
    while taken < max_steps and cross.numel() and len(open_columns):
        look = min(2 * look, max_steps - taken)
        w = _polished(gram, c, penalty, _approached(gram, inverse, c, penalty, w, look))
        taken += look
        result[:, open_columns] = w
        still = _violation(gram, c, penalty, w).amax(dim=0) > tolerance
        open_columns, w, c = open_columns[still], w[:, still], c[:, still]
    return result


def _step(penalty: float) -> float:
    """Weight of the quadratic term of ADMM: the fewest steps, from collinear to independent units (our measurement)."""
    return min(1.0, 10 * penalty)


def _approached(gram: Tensor, inverse: Tensor, cross: Tensor, penalty: float, w: Tensor, steps: int) -> Tensor:
    """Over-relaxed steps of the alternating direction method of multipliers from w."""
    rho = _step(penalty)
    dual = (cross - gram @ w) / rho
    for _ in range(steps):
        ahead = RELAXATION * (inverse @ (cross + rho * (w - dual))) + (1 - RELAXATION) * w
        w = torch.nn.functional.softshrink(ahead + dual, penalty / rho)
        dual = dual + ahead - w
    return w


def _polished(gram: Tensor, cross: Tensor, penalty: float, w: Tensor) -> Tensor:
    """Newton steps: solve exactly on a support with its signs, read the next support off the solution.

    They need not descend, so that each column keeps whatever came closest to the optimum.
    """
    best, error, trial = w, _violation(gram, cross, penalty, w).amax(dim=0), w
    for _ in range(NEWTON_STEPS):
        sign = trial.sign()
        exact = _solve(gram, cross - penalty * sign, sign != 0)
        reached = _violation(gram, cross, penalty, exact).amax(dim=0)
        best, error = torch.where(reached < error, exact, best), torch.minimum(reached, error)
        trial = torch.nn.functional.softshrink(exact + cross - gram @ exact, penalty)
    return best


def _violation(gram: Tensor, cross: Tensor, penalty: float | Tensor, w: Tensor) -> Tensor:
    """How far each weight is from the optimality conditions (..., n, m)."""
    slope = cross - gram @ w
    return torch.where(w != 0, (slope - penalty * w.sign()).abs(), (slope.abs() - penalty).clamp(min=0))


def _solve(gram: Tensor, cross: Tensor, support: Tensor) -> Tensor:
    """Least squares of every column on its own support (n, m); pseudo-inverse where units are collinear."""
    result = torch.zeros_like(cross)
    counts = support.sum(dim=0)
    by_size = counts.argsort()  # systems of like size are stacked, so that small supports stay cheap
    while len(by_size):
        k = int(counts[by_size[-1]])
        if k == 0:
            break
        columns, by_size = _tail(by_size, max(1, SOLVED_AT_ONCE // k**2))
        mask, rows = support[:, columns].mT.to(gram).topk(k, dim=1)  # the support first, then padding
        systems = gram[rows[:, :, None], rows[:, None, :]] * mask[:, :, None] * mask[:, None, :]
        systems = systems + torch.diag_embed(1 - mask)
        right = (cross[rows, columns[:, None]] * mask)[..., None]
        factor, failed = torch.linalg.cholesky_ex(systems)
        # A pivot this small means that rounding decides the weights.
        failed = (failed != 0) | (factor.diagonal(dim1=-2, dim2=-1).square().amin(dim=-1) < RANK)
        factor = torch.where(failed[:, None, None], torch.eye(k, dtype=gram.dtype, device=gram.device), factor)
        solution = torch.cholesky_solve(right, factor)
        if failed.any():
            solution[failed] = torch.linalg.pinv(systems[failed], rtol=RANK, hermitian=True) @ right[failed]
        result[rows, columns[:, None]] = solution[..., 0] * mask
    return result


def _tail(items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The last items, and the others."""
    split = max(0, len(items) - count)
    return items[split:], items[:split]


def _least_squares(values: Tensor, vectors: Tensor, cross: Tensor) -> Tensor:
    """Weights of least norm, from the eigenvalues (rising) and eigenvectors of the correlation matrix."""
    kept = values > RANK * values[-1:]
    weight: Tensor = (vectors[:, kept] / values[kept]) @ (vectors[:, kept].mT @ cross)
    return weight


def _explained(fitted: UnitStats, test: UnitStats, weight: Tensor) -> Tensor:
    """R² (L, m) on the samples of `test` of maps (L, m, n) between units standardised as in `fitted`."""
    inverse_x, inverse_y = (
        torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, std))
        for dead, std in ((fitted.dead_x, fitted.std_x), (fitted.dead_y, fitted.std_y))
    )
    xx = covariance(test, "xx") * inverse_x[:, None] * inverse_x
    xy = covariance(test, "xy") * inverse_x[:, None] * inverse_y
    yy = (test.std_y * inverse_y).square()
    offset = (test.mean_y - fitted.mean_y) * inverse_y - weight @ ((test.mean_x - fitted.mean_x) * inverse_x)
    spread = yy - 2 * (weight * xy.mT).sum(dim=-1) + ((weight @ xx) * weight).sum(dim=-1)
    alive = yy > 0
    return torch.where(alive, 1 - (spread + offset.square()) / torch.where(alive, yy, 1.0), 0.0)
