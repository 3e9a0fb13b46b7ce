"""Error vectors by nudging, by forward-mode differentiation and by the adjoint; gradients for any optimiser."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from working_papers.nn.fixed_point import iterate_fixed_point
from working_papers.papers.jacobian_homeostasis.method._homeostasis import homeostatic_loss
from working_papers.papers.jacobian_homeostasis.method._model import EquilibriumModel

Steps = int | Literal["solve"]


@dataclass(frozen=True)
class ErrorVector:
    """One estimate of how the loss pulls at every unit.

    Attributes:
        error: (..., B, D), real; the gradient of each parameter is its product with ∂F/∂θ.
        residual: how far from settled the trajectories behind it ended, (..., B): the largest ‖F‖ over the nudges, or
            that of the linear equation. Not finite where one diverged.
    """

    error: Tensor
    residual: Tensor


def nudge_derivative(
    net: EquilibriumModel,
    state: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    beta: float | Tensor = 0.5,
    n_points: int = 2,
    steps: Steps = 20,
    relaxation: float = 1.0,
) -> ErrorVector:
    """The error vector of equilibrium propagation, dσ(u*)/dβ at β = 0, from nudges of finite size.

    With N nudges β_t = |β| e^(2πit/N) the mean of σ(u_t) / β_t is Cauchy's integral by the trapezoidal rule: its error
    falls as |β|^N, however the weights are. N = 1 is the ordinary one-sided difference, N = 2 the centred one.
    All nudges, and all sizes if several are given, relax in one batch; of complex nudges only half need to run, since
    the other half is conjugate.

    Args:
        net: the network.
        state: settled without nudge, u_0* (..., B, D).
        x: input.
        y: target.
        beta: |β|; a tensor of any shape makes an estimate of each, on leading axes of the result.
        n_points: N, the number of nudges; 0 for the derivative itself, from the dynamics linearised at the state.
        steps: T2, relaxation steps under each nudge; "solve" (with N = 0) solves the linear equation of the fixed point
            instead, D unknowns a sample.
        relaxation: γ.

    Returns:
        The error vector (*beta.shape, ..., B, D) and its residual. Nothing is attached to a graph.

    Raises:
        ValueError: N < 0, a nudge that is not positive, "solve" with nudges, or N ≥ 3 with an activation that has no
            complex derivative.

    Source: the paper's Cauchy estimate; `du_dbeta` of the official code, which sets numbers that are not finite to zero
    where this leaves them to be seen. Subtracting σ(u_0*) before dividing changes nothing but rounding.
    For N = 0 that code differentiates through the nudged steps: the same once the state has settled, at several times
    the cost.
    """
    _check_state(net, state)
    if n_points < 0:
        raise ValueError(f"n_points is {n_points}; expected 0 or more")
    sizes = torch.as_tensor(beta, dtype=state.dtype, device=state.device)
    if not bool((sizes > 0).all()):
        raise ValueError(f"beta is {beta}; expected numbers above 0")
    if steps == "solve":
        if n_points:
            raise ValueError(
                f"steps is 'solve' and n_points is {n_points}; expected n_points=0, since nothing is nudged"
            )
        return _expand(_solve(net, state, x, y, adjoint=False), sizes)
    if n_points == 0:
        found = _linearised(net, state, x, y, adjoint=False, steps=steps, relaxation=relaxation)
        return _expand(found, sizes)
    if n_points >= 3 and not net.has_complex_derivative():
        raise ValueError(
            f"n_points is {n_points} and the activation has no complex derivative; expected n_points up to 2, "
            "or a holomorphic activation such as 'sigmoid4'"
        )
    with torch.no_grad():
        rest = net.activation(state)
        total = torch.zeros(*sizes.shape, *state.shape, dtype=state.dtype, device=state.device)
        worst = total.new_zeros(total.shape[:-1])
        real = [1.0] if n_points % 2 else [1.0, -1.0]
        turned = [cmath.exp(2j * math.pi * t / n_points) for t in range(1, (n_points + 1) // 2)]
        for directions, weight in ((real, 1.0), (turned, 2.0)):  # an inner nudge stands for its conjugate, too
            if not directions:
                continue
            dtype = state.dtype.to_complex() if directions is turned else state.dtype
            nudges = torch.tensor(directions, dtype=dtype, device=state.device).reshape(-1, *(1,) * sizes.ndim) * sizes
            ended = net.relax(x, y, nudges, steps=steps, start=state, relaxation=relaxation)
            over = nudges.reshape(*nudges.shape, *(1,) * state.ndim)
            quotient = (net.activation(ended.state) - rest) / over
            total = total + weight * (quotient.real if quotient.is_complex() else quotient).sum(dim=0)
            worst = torch.maximum(worst, ended.residual.amax(dim=0))
    return ErrorVector(total / n_points, worst)


def rotating_nudge(
    net: EquilibriumModel,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    beta: float = 0.5,
    n_points: int = 4,
    phases: int = 20,
    steps: int = 60,
    relaxation: float = 1.0,
) -> tuple[Tensor, ErrorVector]:
    """The online form: the nudge goes round while the network follows, and averages over time replace two phases.

    Args:
        net: the network.
        start: where it begins, (..., B, D); the official code begins at rest.
        x: input.
        y: target.
        beta: |β|.
        n_points: N, nudges in a turn.
        phases: how many nudges in all, T1 / T2; 1200 / 60 in the paper, which is five turns.
        steps: T2, relaxation steps under each nudge, from where the last one ended.
        relaxation: γ.

    Returns:
        The mean state (..., B, D), which stands for the free one, and the mean error vector with the last residual.

    Raises:
        ValueError: a number out of its range, or N ≥ 3 with an activation that has no complex derivative.

    Source: `online_fwd` of the official code.
    """
    _check_state(net, start)
    if n_points < 2 or phases < 1 or not beta > 0:
        raise ValueError(
            f"n_points is {n_points}, phases {phases}, beta {beta}; expected at least 2, at least 1 and above 0"
        )
    if n_points >= 3 and not net.has_complex_derivative():
        raise ValueError(f"n_points is {n_points} and the activation has no complex derivative; expected 2")
    with torch.no_grad():
        state = start.to(start.dtype.to_complex())
        mean, error = torch.zeros_like(start), torch.zeros_like(start)
        for phase in range(phases):
            nudge = beta * cmath.exp(2j * math.pi * phase / n_points)
            ended = net.relax(x, y, nudge, steps=steps, start=state, relaxation=relaxation)
            state = ended.state
            mean += state.real
            error += (net.activation(state) / nudge).real
    return mean / phases, ErrorVector(error / phases, ended.residual)


def recurrent_backprop(
    net: EquilibriumModel,
    state: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    steps: Steps = 20,
    relaxation: float = 1.0,
) -> ErrorVector:
    """The exact error vector δ of recurrent back-propagation, which runs the transposed Jacobian.

    Iterates δ ← δ + γ (Jᵀδ + ∂L/∂u) from 0; the limit is −J⁻ᵀ ∂L/∂u. It equals `nudge_derivative` where the weights are
    symmetric, and its product with ∂F/∂θ is the gradient of the loss at the fixed point, however the weights are.

    Args:
        net: the network.
        state: settled without nudge, (..., B, D).
        x: input.
        y: target.
        steps: T2; "solve" solves the linear equation.
        relaxation: γ.

    Returns:
        δ (..., B, D) and the residual of its equation.

    Source: the paper's baseline; `delta_rbp` of the official code.
    """
    _check_state(net, state)
    if steps == "solve":
        return _solve(net, state, x, y, adjoint=True)
    return _linearised(net, state, x, y, adjoint=True, steps=steps, relaxation=relaxation)


@dataclass(frozen=True)
class StepReport:
    """What `ep_gradients_` saw.

    Attributes:
        state: settled without nudge (in the online form: the mean state), (*members, B, D).
        error: the error vector that was used, same shape.
        loss: mean over samples, (*members).
        accuracy: fraction of samples whose largest logit is the target's, (*members); not a number for squared loss.
        asymmetry: the homeostatic loss before its coefficient, (*members); not a number without it.
        residual: ‖F‖ of the free phase, (*members, B).
        nudged_residual: of the nudged phase, (*members, B).
        diverged: samples left out of the gradient because a number was not finite, (*members).
    """

    state: Tensor
    error: Tensor
    loss: Tensor
    accuracy: Tensor
    asymmetry: Tensor
    residual: Tensor
    nudged_residual: Tensor
    diverged: Tensor


def ep_gradients_(
    net: EquilibriumModel,
    x: Tensor,
    y: Tensor,
    *,
    free_steps: int = 150,
    nudged_steps: int = 20,
    beta: float = 0.5,
    n_points: int = 2,
    estimator: Literal["nudges", "rotating", "adjoint"] = "nudges",
    relaxation: float = 1.0,
    homeostasis: float = 1.0,
    probes: int = 5,
    coordinates: Literal["activation", "state"] = "activation",
    generator: torch.Generator | None = None,
) -> StepReport:
    """Add the gradients of one batch to `.grad`, as `backward` would; any optimiser can take the step.

    The network settles without nudge, then under nudges; recurrent parameters get the product of the error vector with
    ∂F/∂θ, which for fully connected blocks is Hebbian: error of the target times activation of the source. The read-out
    gets its ordinary gradient, and all parameters that of the homeostatic loss. No gradient passes through time.

    Args:
        net: the network; with `members` every one gets its own gradients.
        x: input.
        y: target.
        free_steps: T1; 150 for the paper's perceptrons, 250 for its convolutions. In the online form the total.
        nudged_steps: T2; 20 and 40. In the online form the steps under each nudge, 60.
        beta: |β|.
        n_points: N; 0 for the derivative itself.
        estimator: "nudges"; "rotating" for the online form; "adjoint" for recurrent back-propagation.
        relaxation: γ of all iterations.
        homeostasis: coefficient of the homeostatic loss; the paper has 1 for perceptrons, 0.1 for its loop, 15 and 10
            for convolutions; 0 leaves it out.
        probes: random draws of it.
        coordinates: of it, see `homeostatic_loss`.
        generator: source of the draws; the global one if None.

    Returns:
        A report of the step. Samples whose trajectory diverged count in it and are left out of the gradient; the
        official code sets their numbers to zero and does not count them.

    Raises:
        ValueError: an argument out of its range.
    """
    if homeostasis < 0:
        raise ValueError(f"homeostasis is {homeostasis}; expected 0 or more")
    if estimator not in ("nudges", "rotating", "adjoint"):
        raise ValueError(f"estimator is {estimator!r}; expected 'nudges', 'rotating' or 'adjoint'")
    with torch.no_grad():
        if estimator == "rotating":
            state, found = rotating_nudge(
                net,
                net.rest(x),
                x,
                y,
                beta=beta,
                n_points=n_points,
                phases=max(1, free_steps // max(1, nudged_steps)),
                steps=nudged_steps,
                relaxation=relaxation,
            )
            residual = torch.linalg.vector_norm(net.field(state, x), dim=-1)
        else:
            settled = net.relax(x, steps=free_steps, relaxation=relaxation)
            state, residual = settled.state, settled.residual
            if estimator == "adjoint":
                found = recurrent_backprop(net, state, x, y, steps=nudged_steps, relaxation=relaxation)
            else:
                found = nudge_derivative(
                    net, state, x, y, beta=beta, n_points=n_points, steps=nudged_steps, relaxation=relaxation
                )
        finite = state.isfinite().all(dim=-1, keepdim=True) & found.error.isfinite().all(dim=-1, keepdim=True)
        error, state = found.error.where(finite, 0.0), state.where(finite, 0.0)
        activations = net.activation(state)
    samples = state.shape[-2]
    with torch.enable_grad():
        losses = net.loss(state, y).where(finite[..., 0], 0.0)
        objective = ((net.drive_from(x)(activations) * error).sum() + losses.sum()) / samples
        asymmetry = losses.new_full(losses.shape[:-1], math.nan)
        if homeostasis:
            of_samples = homeostatic_loss(net, state, x, probes=probes, coordinates=coordinates, generator=generator)
            asymmetry = of_samples.where(finite[..., 0], 0.0).sum(dim=-1) / samples
            objective = objective + homeostasis * asymmetry.sum()
        objective.backward()
    with torch.no_grad():
        kept = finite[..., 0]
        accuracy = losses.new_full(losses.shape[:-1], math.nan)
        if net.classes is not None:
            target = y.argmax(dim=-1) if y.is_floating_point() else y
            right = (net.logits(state).argmax(dim=-1) == target) & kept
            accuracy = right.to(losses.dtype).mean(dim=-1)
        return StepReport(
            state=state,
            error=error,
            loss=losses.detach().mean(dim=-1),
            accuracy=accuracy,
            asymmetry=asymmetry.detach(),
            residual=residual,
            nudged_residual=found.residual,
            diverged=(~kept).sum(dim=-1),
        )


def _linearised(
    net: EquilibriumModel, state: Tensor, x: Tensor, y: Tensor, *, adjoint: bool, steps: int, relaxation: float
) -> ErrorVector:
    """Error vectors by iterating the field linearised at the state: v ← v + γ (J v + E∂L), or its transpose."""
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected 0 or more, or 'solve'")
    push, pull = net.linearised_drive(state, x)
    with torch.no_grad():
        slope = net.slope(state)
        nudge = net.nudge_from(y)(net.activation(state))
        constant, product = (slope * nudge, pull) if adjoint else (nudge, push)
        ended = iterate_fixed_point(
            lambda v: product(v) + constant,
            torch.zeros_like(state),
            steps=steps,
            relaxation=relaxation,
            batch_axes=state.ndim - 1,
        )
    return ErrorVector(ended.state if adjoint else slope * ended.state, ended.residual)


def _solve(net: EquilibriumModel, state: Tensor, x: Tensor, y: Tensor, *, adjoint: bool) -> ErrorVector:
    """Error vectors by a linear equation a sample: σ'(−J)⁻¹ E∂L, or (−Jᵀ)⁻¹ σ' E∂L for the adjoint."""
    with torch.no_grad():
        slope = net.slope(state)
        nudge = net.nudge_from(y)(net.activation(state))
        jacobian = net.jacobian(state, x)
        matrix, side = (jacobian.mT, slope * nudge) if adjoint else (jacobian, nudge)
        matrix = matrix.expand(*state.shape, net.units)
        solution = torch.linalg.solve(-matrix, side)
        residual = torch.linalg.vector_norm(torch.einsum("...ij,...j->...i", matrix, solution) + side, dim=-1)
    return ErrorVector(solution if adjoint else slope * solution, residual)


def _expand(found: ErrorVector, sizes: Tensor) -> ErrorVector:
    """The same for every size of the nudge."""
    return ErrorVector(
        found.error.expand(*sizes.shape, *found.error.shape), found.residual.expand(*sizes.shape, *found.residual.shape)
    )


def _check_state(net: EquilibriumModel, state: Tensor) -> None:
    if state.ndim < 2 or state.shape[-1] != net.units or not state.is_floating_point():
        raise ValueError(
            f"state has shape {tuple(state.shape)} and dtype {state.dtype}; expected real numbers (..., B, {net.units})"
        )
