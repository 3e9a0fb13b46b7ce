"""How Over-Parameterization Slows Down Gradient Descent in Matrix Sensing. https://arxiv.org/abs/2310.01769

A matrix of rank r is recovered from linear measurements by gradient descent on a product of two factors with k
columns. Spare columns (k > r) of a symmetric product fade like 1/T; those of two factors that start at unequal
scales fade geometrically, at a rate set by the squared scale of the start; one rebalancing step, which leaves the
product alone, makes the rate independent of the start.

No official code was found. Our own choices:
- the rebalancing step takes the polar factor of F where the paper takes its left singular vectors. The two differ
  by a rotation of the columns, which no product and no later step can see; ours also covers k > n1 and needs no
  division by small singular values;
- its default β is the root of the product's largest singular value, which needs no knowledge of the rank (the
  paper ties β to σ_r, see `rebalance`);
- it is triggered by the measured residual, because the distance to the truth that the paper refers to is unknown.

Letters: n1, n2 = rows and columns of the matrix, k = columns of a factor, r = rank of the truth, m = measurements,
F (n1, k) = left factor, G (n2, k) = right factor, E = adjoint(residual) (n1, n2), η = learning rate,
R = recorded steps, `...` = any number of batch axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

RIGHT_RATIO = 1 / 3  # G starts at a third of F's scale; the paper's choice
RANK_TOLERANCE = 1e-10  # our choice: curvatures below this share of the largest one count as zero


class SensingOperator(nn.Module, ABC):
    """A linear map from matrices to measurements, with its adjoint; both act on the last axes.

    Subclasses define `forward` and `adjoint`. The two methods on factors then work; override them where the
    product F Gᵀ can be avoided.

    Args:
        rows: n1.
        columns: n2.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        _check_sizes(rows=rows, columns=columns)
        self.rows, self.columns = rows, columns

    @abstractmethod
    def forward(self, matrix: Tensor) -> Tensor:
        """Measure a matrix: (..., n1, n2) to (..., m)."""

    @abstractmethod
    def adjoint(self, residual: Tensor) -> Tensor:
        """The adjoint map: (..., m) to (..., n1, n2)."""

    def measure_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Measurements of F Gᵀ.

        Args:
            left: F, (..., n1, k).
            right: G, (..., n2, k).

        Returns:
            (..., m).
        """
        measured: Tensor = self(left @ right.mT)
        return measured

    def pull_back(self, residual: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of ½‖residual‖² in the two factors: E G and Eᵀ F with E = adjoint(residual).

        Args:
            residual: measurements of F Gᵀ minus those of the truth, (..., m).
            left: F, (..., n1, k).
            right: G, (..., n2, k).

        Returns:
            (..., n1, k) and (..., n2, k).
        """
        error = self.adjoint(residual)
        return error @ right, error.mT @ left


class IdentitySensing(SensingOperator):
    """Every entry of the matrix is a measurement: matrix factorisation, the limit of infinitely many random ones.

    Args:
        rows: n1.
        columns: n2.
    """

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., n1 n2)."""
        return matrix.flatten(-2)

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., n1 n2) to (..., n1, n2)."""
        return residual.unflatten(-1, (self.rows, self.columns))


class GaussianSensing(SensingOperator):
    """Inner products with m matrices of independent normal entries of variance 1/m, so that E 𝒜*𝒜 is the identity.

    It stores m n1 n2 numbers; `RankOneSensing` needs m (n1 + n2).

    Args:
        rows: n1.
        columns: n2.
        measurements: m; 10 k n or more make it close to an isometry on matrices of rank 2k.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the matrices.

    Raises:
        ValueError: a size below 1.

    Source: section 2 of the paper, near-isotropic measurements.
    """

    matrices: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        measurements: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(rows, columns)
        _check_sizes(measurements=measurements)
        drawn = torch.randn(measurements, rows, columns, generator=generator, dtype=dtype)
        self.register_buffer("matrices", drawn / math.sqrt(measurements))

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., m)."""
        return matrix.flatten(-2) @ self.matrices.flatten(1).T

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., m) to (..., n1, n2)."""
        return (residual @ self.matrices.flatten(1)).unflatten(-1, (self.rows, self.columns))


class RankOneSensing(SensingOperator):
    """Measurements aᵢᵀ M bᵢ with independent normal vectors: isotropic on average, and never larger than the factors.

    A step costs O(m (n1 + n2) k) and no n1 × n2 matrix is formed. Single measurements are heavier-tailed than those
    of `GaussianSensing`, so that the same closeness to an isometry takes more of them.

    Args:
        rows: n1.
        columns: n2.
        measurements: m.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the vectors.

    Raises:
        ValueError: a size below 1.

    Source: our choice for sizes at which m dense matrices do not fit.
    """

    left_vectors: Tensor
    right_vectors: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        measurements: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(rows, columns)
        _check_sizes(measurements=measurements)
        scale = measurements**-0.25
        for name, size in (("left_vectors", rows), ("right_vectors", columns)):
            self.register_buffer(name, torch.randn(measurements, size, generator=generator, dtype=dtype) * scale)

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., m)."""
        return (self.left_vectors @ matrix * self.right_vectors).sum(dim=-1)

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., m) to (..., n1, n2)."""
        return (self.left_vectors * residual.unsqueeze(-1)).mT @ self.right_vectors

    def measure_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Measurements of F Gᵀ, from (..., n1, k) and (..., n2, k) to (..., m)."""
        return ((self.left_vectors @ left) * (self.right_vectors @ right)).sum(dim=-1)

    def pull_back(self, residual: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """E G and Eᵀ F, without E; shapes as in the base class."""
        weights = residual.unsqueeze(-1)
        return (
            self.left_vectors.T @ (weights * (self.right_vectors @ right)),
            self.right_vectors.T @ (weights * (self.left_vectors @ left)),
        )


def initial_factors(
    rows: int,
    columns: int,
    rank: int,
    *,
    scale: float | Tensor,
    ratio: float = RIGHT_RATIO,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Random factors at unequal scales: F entries α N(0, 1/n1), G entries ratio · α N(0, 1/n2).

    Args:
        rows: n1.
        columns: n2.
        rank: k, the number of columns; any positive number.
        scale: α; a tensor of any shape gives one start for each entry, all from the same draw.
        ratio: scale of G over that of F.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the factors.

    Returns:
        F (*scale.shape, n1, k) and G (*scale.shape, n2, k), on the device of `scale`.

    Raises:
        ValueError: a size below 1; a scale or ratio that is negative or not finite.

    Source: the paper's experiments for α and α/3; the 1/n variance is ours and keeps ‖F‖ near α for every n.
    """
    _check_sizes(rows=rows, columns=columns, rank=rank)
    scales = torch.as_tensor(scale, dtype=dtype)
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError(f"scale is {scale}; expected finite numbers of 0 or more")
    if not 0 <= ratio < math.inf:
        raise ValueError(f"ratio is {ratio}; expected a finite number of 0 or more")
    left = torch.randn(rows, rank, generator=generator, dtype=dtype).to(scales.device) / math.sqrt(rows)
    right = torch.randn(columns, rank, generator=generator, dtype=dtype).to(scales.device) / math.sqrt(columns)
    scales = scales.to(left.dtype)[..., None, None]
    return scales * left, ratio * scales * right


def imbalance(left: Tensor, right: Tensor) -> Tensor:
    """Δ = FᵀF − GᵀG, which gradient flow conserves and a gradient step changes by O(η²) only.

    Args:
        left: F, (..., n1, k).
        right: G, (..., n2, k).

    Returns:
        (..., k, k), symmetric.

    Raises:
        ValueError: the factors have different numbers of columns.

    Source: section 4 of the paper.
    """
    _check_factors(left, right)
    return left.mT @ left - right.mT @ right


def rebalance(left: Tensor, right: Tensor, beta: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The one-step modification: make the columns of F orthogonal and of length β, and leave F Gᵀ as it is.

    With F = U S Vᵀ the result is β U Vᵀ and G V S Vᵀ / β. Afterwards spare columns of G fade at the rate η β²
    and the columns that carry the matrix converge at η σ_r² / β². The slower of the two is fastest at β² = σ_r, as
    fast as with k = r; the default β² = σ_1 is the same for a well-conditioned matrix, safer for the step size
    (η (β² + σ_1² / β²) < 2 is needed) and slower by the condition number otherwise.

    Optimisers with momentum keep buffers in the old coordinates: clear them after this step.

    Args:
        left: F, (..., n1, k), of full rank if the paper's form is wanted; spare singular directions are filled in.
        right: G, (..., n2, k).
        beta: β, a number or a tensor of the batch's shape; by default the root of the largest singular value of F Gᵀ.

    Returns:
        The new F and G, shapes, dtype and device as before; FᵀF = β² I for k ≤ n1, FFᵀ = β² I for k ≥ n1.

    Raises:
        ValueError: the factors do not fit together, β is not positive, or the product is zero and β is not given.

    Source: section 5 of the paper (its form up to a rotation of the columns; β as explained above).
    """
    _check_factors(left, right)
    u, s, vh = torch.linalg.svd(left, full_matrices=False)
    carried = (right @ vh.mT) * s.unsqueeze(-2)  # (..., n2, min(n1, k)): F Gᵀ = U carriedᵀ
    if beta is None:
        length = torch.linalg.matrix_norm(carried, ord=2).sqrt()
    else:
        length = torch.as_tensor(beta, dtype=left.dtype, device=left.device)
    if not bool((length.isfinite() & (length > 0)).all()):
        raise ValueError(
            "beta is None and the product of the factors is zero or not finite; expected a product to balance"
            if beta is None
            else f"beta is {beta}; expected finite numbers above 0"
        )
    length = length[..., None, None]
    return length * (u @ vh), carried @ vh / length


def gradient_step(
    operator: SensingOperator, measurements: Tensor, left: Tensor, right: Tensor | None, learning_rate: float
) -> tuple[Tensor, Tensor | None]:
    """One step of gradient descent, both factors at once.

    Two factors: F ← F − η E G and G ← G − η Eᵀ F on ½‖𝒜(F Gᵀ) − y‖². One factor X, with `right` None:
    X ← X − η (E + Eᵀ) X / 2, half the gradient of ½‖𝒜(X Xᵀ) − y‖², so that η means the same in both.

    Args:
        operator: 𝒜.
        measurements: y, (..., m).
        left: F (..., n1, k), or X (..., n, k).
        right: G (..., n2, k), or None.
        learning_rate: η.

    Returns:
        The next factors, the second None if it was None.

    Source: equations of sections 3 and 4 of the paper.
    """
    other = left if right is None else right
    residual = operator.measure_product(left, other) - measurements
    for_left, for_right = operator.pull_back(residual, left, other)
    if right is None:
        return left - learning_rate / 2 * (for_left + for_right), None
    return left - learning_rate * for_left, right - learning_rate * for_right


@dataclass(frozen=True)
class Trace:
    """A run of `factored_gradient_descent`.

    Attributes:
        steps: the R recorded steps, int64, (R,).
        residual: ‖𝒜(F Gᵀ) − y‖ / ‖y‖, (R, ...).
        error: Frobenius distance of F Gᵀ from the truth, (R, ...); None if no truth was given.
        imbalance: smallest eigenvalue of FᵀF − GᵀG, (R, ...); zeros for one factor.
        rebalanced_at: the step before which the factors were rebalanced, int64, (...); -1 for never.
        left: F or X at the end, (..., n1, k).
        right: G at the end, (..., n2, k); None for one factor.
    """

    steps: Tensor
    residual: Tensor
    error: Tensor | None
    imbalance: Tensor
    rebalanced_at: Tensor
    left: Tensor
    right: Tensor | None


@torch.no_grad()
def factored_gradient_descent(
    operator: SensingOperator,
    measurements: Tensor,
    left: Tensor,
    right: Tensor | None = None,
    *,
    learning_rate: float = 0.1,
    steps: int,
    rebalance_at: int | None = None,
    rebalance_below: float | None = None,
    beta: float | Tensor | None = None,
    truth: Tensor | None = None,
    record_at: Sequence[int] | None = None,
    callback: Callable[[int], object] | None = None,
) -> Trace:
    """Recover a matrix from measurements by gradient descent on its factors; a whole batch of runs at once.

    Args:
        operator: 𝒜, on the device and of the dtype of the factors.
        measurements: y, (..., m); broadcasts against the batch of factors.
        left: starting F (..., n1, k), or X (..., n, k) for the symmetric form.
        right: starting G (..., n2, k); None for the symmetric form X Xᵀ.
        learning_rate: η; about 0.1 to 0.3 divided by the largest singular value of the truth.
        steps: T.
        rebalance_at: rebalance all runs once, before this step (0 is before the first).
        rebalance_below: rebalance each run once, before the first step at which its relative residual is lower.
            Half of σ_r is low enough in theory; 0.3 suits a well-conditioned truth, smaller values others.
        beta: for `rebalance`.
        truth: (..., n1, n2), for the error in the trace only.
        record_at: the steps at which the trace is taken, from 0 (the start) to T; all by default.
        callback: called with the number of each recorded step.

    Returns:
        The trace. Nothing in it is attached to a graph.

    Raises:
        ValueError: shapes that do not fit, a step out of range, both or unusable rebalancing rules.

    Source: sections 3 to 5 of the paper.
    """
    batch = _check_run(operator, measurements, left, right)
    wanted = set(range(steps + 1)) if record_at is None else set(record_at)
    if steps < 0 or not wanted or min(wanted) < 0 or max(wanted) > steps:
        raise ValueError(f"record_at is {record_at} and steps is {steps}; expected at least one step from 0 to steps")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}; expected a finite number above 0")
    _check_rule(right, rebalance_at, rebalance_below)

    left = left.expand(*batch, *left.shape[-2:])
    right = None if right is None else right.expand(*batch, *right.shape[-2:])
    length = torch.linalg.vector_norm(measurements, dim=-1)
    rebalanced_at = torch.full(batch, -1, dtype=torch.int64, device=left.device)
    waiting = rebalance_below is not None
    residuals, errors, imbalances = [], [], []
    for step in range(steps + 1):
        other = left if right is None else right
        if step in wanted or waiting:
            relative = _norm(operator.measure_product(left, other) - measurements) / length
        if right is not None and (waiting or rebalance_at == step):
            due = rebalanced_at < 0
            if rebalance_below is not None:
                due = due & (relative < rebalance_below)
            if bool(due.any()):
                new_left, new_right = rebalance(left, right, beta)
                chosen = due[..., None, None]
                left, right = torch.where(chosen, new_left, left), torch.where(chosen, new_right, right)
                other = right
                rebalanced_at[due] = step
                waiting = waiting and bool((rebalanced_at < 0).any())
        if step in wanted:
            residuals.append(relative.expand(batch))
            imbalances.append(torch.linalg.eigvalsh(imbalance(left, other))[..., 0])
            if truth is not None:
                errors.append(torch.linalg.matrix_norm(left @ other.mT - truth))
            if callback is not None:
                callback(step)
        if step < steps:
            left, right = gradient_step(operator, measurements, left, right, learning_rate)
    return Trace(
        steps=torch.tensor(sorted(wanted)),
        residual=torch.stack(residuals),
        error=torch.stack(errors) if truth is not None else None,
        imbalance=torch.stack(imbalances),
        rebalanced_at=rebalanced_at,
        left=left,
        right=right,
    )


def contraction_rate(
    operator: SensingOperator, left: Tensor, right: Tensor, learning_rate: float, *, tolerance: float = RANK_TOLERANCE
) -> Tensor:
    """The geometric rate at which two-factor gradient descent closes in on a solution: −log of the error's last factor.

    Near factors that reproduce the measurements the residual obeys r ← r − η J Jᵀ r, with J the Jacobian of the
    measurements in the factors. The slowest direction is the smallest curvature of J that is not zero. With every
    entry measured, the curvatures are λ_i(FFᵀ) + λ_j(GGᵀ), and a spare column leaves the smallest of FFᵀ.

    Args:
        operator: 𝒜.
        left: F, (n1, k), at or near a solution.
        right: G, (n2, k).
        learning_rate: η.
        tolerance: curvatures below this share of the largest one count as zero.

    Returns:
        A scalar, per step; inf where η times the curvature is 1, negative where the step is too large to converge.

    Raises:
        ValueError: the factors do not fit together or have batch axes.

    Source: linearisation, ours; the paper's bound exp(−Ω(α² T)) is its order of magnitude.
    """
    _check_factors(left, right)
    if left.ndim != 2 or right.ndim != 2:
        raise ValueError(
            f"left and right have shapes {tuple(left.shape)} and {tuple(right.shape)}; expected one run (use vmap)"
        )
    derivatives = torch.func.jacfwd(operator.measure_product, argnums=(0, 1))(left, right)
    jacobian = torch.cat([part.flatten(1) for part in derivatives], dim=1)
    curvature = torch.linalg.svdvals(jacobian).square()
    active = curvature > tolerance * curvature.amax()
    factors = torch.where(active, (1 - learning_rate * curvature).abs(), torch.zeros_like(curvature))
    return -factors.amax().log()


def redundant_product(left: Tensor, right: Tensor, time: Tensor) -> Tensor:
    """The product f g of a spare pair of entries under gradient flow, where f² − g² stays what it was.

    f' = −f g² and g' = −g f² have a closed form. Equal scales fade like 1/(2t), unequal ones like
    exp(−|f² − g²| t): the two rates of the paper in one formula.

    Args:
        left: f at time 0, any shape.
        right: g at time 0; broadcasts.
        time: t of 0 or more, which is η times the number of steps; broadcasts.

    Returns:
        f g at time t.

    Source: the scalar case of sections 3 and 4 of the paper, solved by us.
    """
    small = torch.minimum(left.square(), right.square())
    gap = (left.square() - right.square()).abs()
    decay = torch.exp(-2 * gap * time)
    # (1 - exp(-2 gap t)) / gap, which tends to 2 t as the gap closes.
    safe = torch.where(gap > 0, gap, torch.ones_like(gap))
    filled = torch.where(gap > 0, -torch.expm1(-2 * gap * time) / safe, 2 * time)
    smaller = small * decay / (1 + small * filled)
    return torch.sign(left * right) * (smaller * (gap + smaller)).sqrt()


def symmetric_error(steps: Tensor, learning_rate: float, spare: int) -> Tensor:
    """The late error of the symmetric form with every entry measured: √spare / (2 η T).

    Each spare singular value of X obeys x ← x − η x³, so that x² tends to 1/(2 η T) whatever it started from.

    Args:
        steps: T, any shape, positive.
        learning_rate: η.
        spare: k − r, the number of columns that are not needed.

    Returns:
        Frobenius norm of X Xᵀ − truth, shape of `steps`.

    Source: the dynamics behind the lower bound of section 3 of the paper, whose Ω(1/T²) is for the squared error.
    """
    return math.sqrt(spare) / (2 * learning_rate * steps)


class RateFit(NamedTuple):
    """What `fit_rate` found, each of the batch's shape.

    Attributes:
        rate: of the best exp(−rate t).
        exponent: of the best t^exponent.
        geometric: whether the exponential fits better.
        deviation: root mean square deviation of the better fit in the logarithm.
    """

    rate: Tensor
    exponent: Tensor
    geometric: Tensor
    deviation: Tensor


def fit_rate(errors: Tensor, steps: Tensor, *, low: float = 1e-12, high: float = 1e-2) -> RateFit:
    """Fit an exponential and a power of the step to the tail of an error curve, by least squares of the logarithm.

    The tail is what lies between `low` and `high`, in the last decade of steps before `low` is reached, and both
    fits use the same points.

    Args:
        errors: positive numbers, (R, ...).
        steps: their steps, positive and increasing, (R,).
        low: errors from the first below this on are left out (rounding).
        high: errors above this are left out (transient).

    Returns:
        The fits, each of shape (...).

    Raises:
        ValueError: shapes that do not fit, a step that is not positive, or a curve with fewer than 3 usable points.
    """
    if steps.ndim != 1 or errors.ndim < 1 or len(errors) != len(steps):
        raise ValueError(
            f"errors and steps have shapes {tuple(errors.shape)} and {tuple(steps.shape)}; expected (R, ...) and (R,)"
        )
    if not bool((steps > 0).all()) or not bool((steps.diff() > 0).all()):
        raise ValueError("steps holds numbers that are not positive and increasing; leave step 0 out")
    time = steps.to(torch.float64).view(-1, *[1] * (errors.ndim - 1)).expand(errors.shape)
    usable = ((errors < low).cumsum(dim=0) == 0) & (errors <= high)
    last = torch.where(usable, time, torch.zeros_like(time)).amax(dim=0)
    usable = usable & (time >= last / 10)
    if not bool((usable.sum(dim=0) >= 3).all()):
        raise ValueError(f"errors has a curve with fewer than 3 points from {low:g} to {high:g}; run it for longer")
    logs = torch.where(usable, errors.to(torch.float64), torch.ones_like(time)).log()
    slope, geometric_deviation = _line(time, logs, usable)
    exponent, power_deviation = _line(time.log(), logs, usable)
    geometric = geometric_deviation < power_deviation
    return RateFit(-slope, exponent, geometric, torch.minimum(geometric_deviation, power_deviation))


class FactoredLinear(nn.Module):
    """A linear layer whose weight is a product F Gᵀ of two factors that start at unequal scales.

    Args:
        in_features: n2.
        out_features: n1.
        rank: k; generous, the spare columns fade.
        scale: α of F; G has a third of it.
        ratio: scale of G over that of F; 1 gives the usual start at equal scales.
        bias: whether there is one; it starts at zero.
        generator: source of randomness, on the CPU; the global one if None.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a scale or ratio that is negative or not finite.

    Example:
        >>> layer = FactoredLinear(64, 32, rank=16, scale=0.5)
        >>> layer.rebalance_()  # once, when the loss has come down; the function it computes stays the same
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        scale: float = 0.5,
        ratio: float = RIGHT_RATIO,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        left, right = initial_factors(
            out_features, in_features, rank, scale=scale, ratio=ratio, generator=generator, dtype=dtype
        )
        self.left = nn.Parameter(left.to(device))
        self.right = nn.Parameter(right.to(device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @property
    def weight(self) -> Tensor:
        """F Gᵀ, (out_features, in_features)."""
        return self.left @ self.right.T

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features).
        """
        return functional.linear(x @ self.right, self.left, self.bias)

    @torch.no_grad()
    def rebalance_(self, beta: float | None = None) -> None:
        """Rebalance the factors in place; see `rebalance`."""
        left, right = rebalance(self.left, self.right, beta)
        self.left.copy_(left)
        self.right.copy_(right)

    def extra_repr(self) -> str:
        """Sizes, as printed by torch."""
        (out_features, rank), in_features = self.left.shape, len(self.right)
        return f"in_features={in_features}, out_features={out_features}, rank={rank}, bias={self.bias is not None}"


def _norm(residual: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return norm


def _line(x: Tensor, y: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and root mean square deviation of the least-squares line through the usable points, along axis 0."""
    weight = usable.to(x.dtype) / usable.sum(dim=0)
    x = x - (weight * x).sum(dim=0)
    y = y - (weight * y).sum(dim=0)
    slope = (weight * x * y).sum(dim=0) / (weight * x.square()).sum(dim=0)
    return slope, (weight * (y - slope * x).square()).sum(dim=0).sqrt()


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected 1 or more")


def _check_factors(left: Tensor, right: Tensor) -> None:
    if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"left and right have shapes {tuple(left.shape)} and {tuple(right.shape)}; "
            "expected (..., n1, k) and (..., n2, k)"
        )


def _check_run(operator: SensingOperator, measurements: Tensor, left: Tensor, right: Tensor | None) -> torch.Size:
    """The batch shape of a run, after its shapes have been checked."""
    other = left if right is None else right
    _check_factors(left, other)
    if (left.shape[-2], other.shape[-2]) != (operator.rows, operator.columns):
        raise ValueError(
            f"left and right have {left.shape[-2]} and {other.shape[-2]} rows; "
            f"expected {operator.rows} and {operator.columns}, as the operator has"
        )
    expected = operator.measure_product(left, other).shape[-1]
    if measurements.ndim < 1 or measurements.shape[-1] != expected:
        raise ValueError(f"measurements has shape {tuple(measurements.shape)}; expected (..., {expected})")
    if not bool((_norm(measurements) > 0).all()):
        raise ValueError("measurements holds a vector of zeros; expected something to recover")
    return torch.broadcast_shapes(left.shape[:-2], other.shape[:-2], measurements.shape[:-1])


def _check_rule(right: Tensor | None, at: int | None, below: float | None) -> None:
    if at is None and below is None:
        return
    if right is None:
        raise ValueError("right is None; expected two factors, since one factor cannot be rebalanced")
    if at is not None and below is not None:
        raise ValueError(f"rebalance_at is {at} and rebalance_below is {below}; expected one of them")
    if at is not None and at < 0:
        raise ValueError(f"rebalance_at is {at}; expected 0 or more")
    if below is not None and not below > 0:
        raise ValueError(f"rebalance_below is {below}; expected a number above 0")
