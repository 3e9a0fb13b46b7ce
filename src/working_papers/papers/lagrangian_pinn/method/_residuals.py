"""Residuals and losses of both models. Letters: B = points, B0 = points at time 0, `...` = members of a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from working_papers.papers.lagrangian_pinn.method._models import EulerianPINN, LagrangianPINN

Velocity = float | Tensor | Callable[[Tensor, Tensor, Tensor], Tensor]
"""a: a number, a tensor that broadcasts with (..., B, 1), or a function of state, position and time, each (..., B, 1).
Burgers is `lambda u, x, t: u`."""

Metric = Literal["exact", "label"]
Reduction = Literal["norm", "mean"]

LAGRANGIAN_WEIGHTS: Mapping[str, float] = {"path": 10.0, "state": 1.0, "initial": 1000.0}
EULERIAN_WEIGHTS: Mapping[str, float] = {"equation": 1.0, "initial": 1000.0}
"""The weights of the official code."""

SMALLEST_STRETCH = 1e-3
"""Least |X_xi| that is divided by: where paths meet it goes to zero."""


def eulerian_residual(
    model: EulerianPINN, x: Tensor, t: Tensor, velocity: Velocity, viscosity: float | Tensor
) -> Tensor:
    """How far the field is from the equation: u_t + a u_x - viscosity · u_xx.

    Args:
        model: the field.
        x: (..., B, 1).
        t: shape of x.
        velocity: a, see `Velocity`.
        viscosity: a number or a tensor that broadcasts with (..., B, 1).

    Returns:
        (..., B, 1).

    Raises:
        ValueError: points of another shape.
    """
    u = model.jet(x, t)
    return u.t + _velocity(velocity, u.value, x, t) * u.x - viscosity * u.xx


def lagrangian_residuals(
    model: LagrangianPINN,
    xi: Tensor,
    t: Tensor,
    velocity: Velocity,
    viscosity: float | Tensor,
    metric: Metric = "exact",
) -> tuple[Tensor, Tensor]:
    """How far paths and states are from their equations: X_t - a, and U_t - viscosity · u_xx.

    Args:
        model: paths and states.
        xi: labels, (..., B, 1).
        t: shape of xi.
        velocity: a, see `Velocity`; a function is given the positions as the paths have them, not wrapped.
        viscosity: a number or a tensor that broadcasts with (..., B, 1).
        metric: "exact" takes u_xx in space, by the chain rule through X; "label" takes U's second derivative in the
            label, which is the same only where X_xi = 1.

    Returns:
        Two tensors (..., B, 1). Where |X_xi| is below 0.001 that number stands for it; `LagrangianPINN.crossings`
        tells where paths cross.

    Raises:
        ValueError: an unknown metric, or points of another shape.

    Source: the paper's Lagrangian form of the convection-diffusion equation; its diffusion acts in space, where the
    official code has the label derivative.
    """
    if metric not in ("exact", "label"):
        raise ValueError(f"metric is {metric!r}; expected 'exact' or 'label'")
    position, state = model.jets(xi, t)
    curvature = state.xx
    if metric == "exact":
        stretch = position.x
        # The sign is kept: behind a fold of the paths the chain rule holds as it does before.
        stretch = torch.where(stretch < 0, -1, 1) * stretch.abs().clamp(min=SMALLEST_STRETCH)
        curvature = (state.xx - state.x / stretch * position.xx) / stretch.square()
    path = position.t - _velocity(velocity, state.value, position.value, t)
    return path, state.t - viscosity * curvature


def lagrangian_loss(
    model: LagrangianPINN,
    xi: Tensor,
    t: Tensor,
    start: Tensor,
    initial: Tensor,
    velocity: Velocity,
    viscosity: float | Tensor,
    *,
    weights: Mapping[str, float | Tensor] = LAGRANGIAN_WEIGHTS,
    metric: Metric = "exact",
    reduction: Reduction = "norm",
) -> Tensor:
    """The loss of paths and states: their residuals, and the state at time 0.

    Args:
        model: paths and states; paths start at their labels by construction.
        xi: labels, (..., B, 1).
        t: shape of xi.
        start: labels at time 0, (..., B0, 1).
        initial: u at time 0 there, (..., B0, 1).
        velocity: a, see `Velocity`.
        viscosity: a number or a tensor that broadcasts with (..., B, 1).
        weights: of "path", "state" and "initial", numbers or one a member (...).
        metric: see `lagrangian_residuals`.
        reduction: "norm" adds Euclidean norms over all points, as the official code does; "mean" adds means of squares.
            The weights mean something else in each.

    Returns:
        (...), one loss a member; a number for a single network.

    Raises:
        ValueError: weights with other names, an unknown reduction or metric, or points of another shape.

    Source: the paper's loss; weights and norms are those of the official code.
    """
    _expect_weights(weights, LAGRANGIAN_WEIGHTS)
    path, state = lagrangian_residuals(model, xi, t, velocity, viscosity, metric)
    first = model(start, torch.zeros_like(start)).state - initial
    terms = {"path": path, "state": state, "initial": first}
    return sum((weights[name] * _reduce(term, reduction) for name, term in terms.items()), start=path.new_zeros(()))


def eulerian_loss(
    model: EulerianPINN,
    x: Tensor,
    t: Tensor,
    start: Tensor,
    initial: Tensor,
    velocity: Velocity,
    viscosity: float | Tensor,
    *,
    weights: Mapping[str, float | Tensor] = EULERIAN_WEIGHTS,
    reduction: Reduction = "norm",
) -> Tensor:
    """The loss of an ordinary physics-informed network with periodic inputs: residual, and field at time 0.

    Args:
        model: the field.
        x: (..., B, 1).
        t: shape of x.
        start: places at time 0, (..., B0, 1).
        initial: u at time 0 there, (..., B0, 1).
        velocity: a, see `Velocity`.
        viscosity: a number or a tensor that broadcasts with (..., B, 1).
        weights: of "equation" and "initial", numbers or one a member (...).
        reduction: see `lagrangian_loss`.

    Returns:
        (...), one loss a member; a number for a single network.

    Raises:
        ValueError: weights with other names, an unknown reduction, or points of another shape.
    """
    _expect_weights(weights, EULERIAN_WEIGHTS)
    residual = eulerian_residual(model, x, t, velocity, viscosity)
    first = model(start, torch.zeros_like(start)) - initial
    return weights["equation"] * _reduce(residual, reduction) + weights["initial"] * _reduce(first, reduction)


def _velocity(velocity: Velocity, state: Tensor, position: Tensor, time: Tensor) -> float | Tensor:
    return velocity(state, position, time) if callable(velocity) else velocity


def _reduce(residual: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "mean":
        return residual.square().mean(dim=(-2, -1))
    if reduction != "norm":
        raise ValueError(f"reduction is {reduction!r}; expected 'norm' or 'mean'")
    norm: Tensor = torch.linalg.vector_norm(residual, dim=(-2, -1))
    return norm


def _expect_weights(weights: Mapping[str, float | Tensor], expected: Mapping[str, float]) -> None:
    if weights.keys() != expected.keys():
        raise ValueError(f"weights names {sorted(weights)}; expected {sorted(expected)}")
