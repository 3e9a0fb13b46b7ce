"""Gradient descent on one factor or two, with the rebalancing step, for a whole batch of runs at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.matrix_sensing.method._factors import check_factors, imbalance, rebalance
from working_papers.papers.matrix_sensing.method._sensing import SensingOperator


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

    Source: the paper's updates for the symmetric and the asymmetric setting; the shared η is ours.
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
        beta: for `rebalance`; a number or a tensor of the batch's shape.
        truth: (..., n1, n2), for the error in the trace only.
        record_at: the steps at which the trace is taken, from 0 (the start) to T; all by default.
        callback: called with the number of each recorded step.

    Returns:
        The trace. Nothing in it is attached to a graph.

    Raises:
        ValueError: shapes that do not fit, a step out of range, both or unusable rebalancing rules.

    Source: the paper's symmetric and asymmetric algorithms and its one-step modification.
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
    size = _norm(measurements)
    rebalanced_at = torch.full(batch, -1, dtype=torch.int64, device=left.device)
    waiting = rebalance_below is not None
    residuals, errors, imbalances = [], [], []
    for step in range(steps + 1):
        other = left if right is None else right
        if step in wanted or waiting:
            relative = _norm(operator.measure_product(left, other) - measurements) / size
        if right is not None and (waiting or rebalance_at == step):
            due = rebalanced_at < 0
            if rebalance_below is not None:
                due = due & (relative < rebalance_below)
            if bool(due.any()):
                length = beta.expand(batch)[due] if isinstance(beta, Tensor) else beta
                left, right = left.clone(), right.clone()
                left[due], right[due] = rebalance(left[due], right[due], length)
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


def _norm(residual: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(residual, dim=-1)
    return norm


def _check_run(operator: SensingOperator, measurements: Tensor, left: Tensor, right: Tensor | None) -> torch.Size:
    """The batch shape of a run, after its shapes have been checked."""
    other = left if right is None else right
    check_factors(left, other)
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
    batch: torch.Size = torch.broadcast_shapes(left.shape[:-2], other.shape[:-2], measurements.shape[:-1])
    return batch


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
