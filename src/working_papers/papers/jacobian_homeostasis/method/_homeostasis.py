"""The homeostatic loss on any vector field, and how symmetric a Jacobian, how aligned two error vectors are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from working_papers.papers.jacobian_homeostasis.method._model import EquilibriumModel, push_forward

Field = Callable[[Tensor], Tensor]


def jacobian_asymmetry(
    field: Field,
    point: Tensor,
    *,
    probes: int = 5,
    normalize: bool = True,
    batch_axes: int = 1,
    mode: Literal["forward", "reverse"] = "forward",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The homeostatic loss: an estimate of ½‖J − Jᵀ‖² for the Jacobian J of any vector field.

    Random probes ξ ~ N(0, I) give E[‖Jξ‖² − ξᵀJ²ξ] = tr JᵀJ − tr J² = ½‖J − Jᵀ‖², without ever forming J. For a
    symmetric Jacobian every single probe gives 0, for an antisymmetric one 2‖Jξ‖². It is differentiable in everything
    that the field closes over, so `(loss + coefficient * jacobian_asymmetry(f, z.detach()).mean()).backward()` works
    for a deep equilibrium model, a recurrent cell or a neural ODE as well.

    Args:
        field: F, keeps the shape of its argument, one sample's output depending on this sample alone; without random
            parts such as dropout.
        point: where, (*batch, *features); nothing flows back into it.
        probes: number of draws ξ, 5 in the paper.
        normalize: divide by the number of features of a sample, as the official code does.
        batch_axes: how many leading axes count samples.
        mode: "forward" takes two Jacobian-vector products for all probes at once (torch.func); "reverse" takes
            products with the transposed Jacobian, one probe after the other, by plain autograd: the same loss of Jᵀ,
            for fields that forward-mode differentiation or vmap cannot follow.
        generator: source of randomness; the global one if None.

    Returns:
        The estimate for each sample, (*batch). The paper takes the mean. Single probes may be negative, so each step of
        an optimiser needs new ones: on fixed probes the loss has no lower bound.

    Raises:
        ValueError: an argument out of its range, or a field that changes the shape.

    Source: the paper's homeostatic loss; `homeo_loss` of the official code.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}; expected 1 or more")
    if not 0 <= batch_axes < max(point.ndim, 1):
        raise ValueError(
            f"batch_axes is {batch_axes}; expected 0 to {point.ndim - 1} for a point with {point.ndim} axes"
        )
    if mode not in ("forward", "reverse"):
        raise ValueError(f"mode is {mode!r}; expected 'forward' or 'reverse'")
    point = point.detach().contiguous()  # an expanded tensor cannot carry a tangent
    device = point.device if generator is None else generator.device
    xi = torch.randn(probes, *point.shape, generator=generator, dtype=point.dtype, device=device).to(point.device)

    def check(value: Tensor) -> None:
        if value.shape != point.shape:
            raise ValueError(f"field returns shape {tuple(value.shape)}; expected {tuple(point.shape)}, that of point")

    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        value, once = push_forward(field, point, v)
        check(value)
        return once, push_forward(field, point, once)[1]

    if mode == "forward":
        once, twice = torch.func.vmap(forward)(xi)
    else:
        with torch.enable_grad():
            at = point.clone().requires_grad_()
            value = field(at)
            check(value)

            def pull(v: Tensor) -> Tensor:
                found: Tensor = torch.autograd.grad(value, at, v, create_graph=True)[0]
                return found

            pulled = [pull(v) for v in xi]
            once, twice = torch.stack(pulled), torch.stack([pull(v) for v in pulled])
    estimate: Tensor = (once.square() - xi * twice).flatten(batch_axes + 1).sum(dim=-1).mean(dim=0)
    return estimate / point[(0,) * batch_axes].numel() if normalize else estimate


def homeostatic_loss(
    net: EquilibriumModel,
    state: Tensor,
    x: Tensor,
    *,
    probes: int = 5,
    coordinates: Literal["activation", "state"] = "activation",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The homeostatic loss of an equilibrium network where it has settled, divided by its number of units.

    Args:
        net: the network.
        state: where, (..., B, D); nothing flows back into it.
        x: input.
        probes: number of random draws.
        coordinates: "activation" takes the Jacobian of a ↦ drive(a, x) − a, as the official code does. For fully
            connected blocks this is W − I: its symmetry is what makes the error vectors agree, and it does not depend
            on the state. "state" takes that of the field itself, W σ'(u) − I, which saturated units also make small.
        generator: source of randomness; the global one if None.

    Returns:
        The estimate for each sample, (..., B), differentiable in the network's parameters.

    Raises:
        ValueError: other coordinates or fewer than one probe.
    """
    field, point = net.in_coordinates(state.detach(), x, coordinates)
    return jacobian_asymmetry(field, point, probes=probes, batch_axes=point.ndim - 1, generator=generator)


def symmetry_index(jacobian: Tensor) -> Tensor:
    """‖S‖ / (‖S‖ + ‖A‖) of the symmetric and antisymmetric parts: 1 symmetric, about ½ random, 0 antisymmetric.

    Args:
        jacobian: (..., D, D).

    Returns:
        (...); not a number for a matrix of zeros.

    Source: the measure that the paper follows during training.
    """
    if jacobian.ndim < 2 or jacobian.shape[-1] != jacobian.shape[-2]:
        raise ValueError(f"jacobian has shape {tuple(jacobian.shape)}; expected (..., D, D)")
    symmetric = torch.linalg.matrix_norm(jacobian + jacobian.mT)
    antisymmetric = torch.linalg.matrix_norm(jacobian - jacobian.mT)
    index: Tensor = symmetric / (symmetric + antisymmetric)
    return index


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between vectors along the last axis; 0 where one of them vanishes.

    Args:
        first: (..., D).
        second: same shape.

    Returns:
        (...), from -1 to 1.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}; expected the same")
    cosine: Tensor = (_unit(first) * _unit(second)).sum(dim=-1).clamp(-1, 1)
    return cosine


def _unit(vector: Tensor) -> Tensor:
    """Length 1 along the last axis; zeros stay. Squares of tiny and huge numbers are not formed."""
    largest = vector.abs().amax(dim=-1, keepdim=True)
    scaled = vector / largest.where(largest > 0, 1.0)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit: Tensor = scaled / length.where(length > 0, 1.0)
    return unit


def weight_angle(net: EquilibriumModel) -> Tensor:
    """The angle between all forward and all backward weights, in degrees.

    Args:
        net: the network.

    Returns:
        (*members); 0 for symmetric, about 90 for independent weights.

    Raises:
        ValueError: the network has no reciprocal pair of connections.

    Source: `angle` in the official code.
    """
    pairs = net.weight_pairs()
    if not pairs:
        raise ValueError("net has no reciprocal connections; expected at least one pair to compare")
    lead = len(net.members)
    forth, back = (torch.cat([pair[side].detach().flatten(lead) for pair in pairs], dim=-1) for side in (0, 1))
    return torch.rad2deg(torch.acos(alignment(forth, back)))
