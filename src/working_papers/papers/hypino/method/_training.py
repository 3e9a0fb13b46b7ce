"""Losses of a training step: the residual, the known derivatives and values, the boundary.

Letters: N = problems, P = points inside, B = points of the boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from working_papers.papers.hypino.method._batches import Batched
from working_papers.papers.hypino.method._hypernetwork import HyperPINN
from working_papers.papers.hypino.method._jets import Jet
from working_papers.papers.hypino.method._manufactured import Problems
from working_papers.papers.hypino.method._problems import apply_operator

WEIGHTS = {"residual": 0.25, "derivatives": 0.25, "value": 1.0, "dirichlet": 10.0, "neumann": 1.0}
"""The paper's, appendix B."""


@dataclass(frozen=True)
class Points(Batched):
    """Where and against what a step's losses are taken.

    Attributes:
        inside: (N, P, 2).
        weight: (N, P), 0 in holes.
        source: (N, P).
        known: five times (N, P) stacked to (N, 5, P), the solution and its derivatives.
        supervised: (N,) bool, whether `known` counts.
        edge: (N, B, 2).
        normals: (N, B, 2).
        dirichlet_mask: (N, B).
        neumann_mask: (N, B).
        values: (N, B).
        slopes: (N, B).
    """

    inside: Tensor
    weight: Tensor
    source: Tensor
    known: Tensor
    supervised: Tensor
    edge: Tensor
    normals: Tensor
    dirichlet_mask: Tensor
    neumann_mask: Tensor
    values: Tensor
    slopes: Tensor

    @classmethod
    def sample(cls, problems: Problems, inside: int, edge: int, generator: torch.Generator) -> Points:
        """Draw points uniformly inside the square and among the boundary samples.

        Args:
            problems: N of them, on the CPU.
            inside: P; 2048 in the paper.
            edge: B; 2048 in the paper.
            generator: of random numbers, on the CPU.
        """
        dtype = problems.pde.source.dtype
        xy = 2 * torch.rand(len(problems), inside, 2, generator=generator, dtype=dtype) - 1
        samples = problems.boundary
        used = samples.dirichlet_mask | samples.neumann_mask
        chosen = torch.multinomial(used.to(dtype), edge, replacement=True, generator=generator)
        rows = torch.arange(len(problems))[:, None]
        return cls(
            xy,
            (~problems.holes.contains(xy)).to(dtype),
            problems.source(xy),
            torch.stack(list(problems.solution(xy)), dim=1),
            problems.supervised,
            samples.points[rows, chosen],
            samples.normals[rows, chosen],
            samples.dirichlet_mask[rows, chosen].to(dtype),
            samples.neumann_mask[rows, chosen].to(dtype),
            samples.values[rows, chosen],
            samples.slopes[rows, chosen],
        )


def physics_loss(inside: Jet, edge: Jet, coefficients: Tensor, points: Points) -> dict[str, Tensor]:
    """The five losses of the paper, Huber with δ = 1, each a mean over the points it concerns (section 3.4).

    Args:
        inside: the prediction at `points.inside`.
        edge: the prediction at `points.edge`.
        coefficients: (N, 5).
        points: what is known there.

    Returns:
        Scalars: residual, derivatives, value, dirichlet, neumann.
    """

    def mean(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        loss = F.huber_loss(found, wanted, reduction="none")
        weight = weight.expand_as(loss)
        # In holes or without supervision `wanted` may be anything: it must not get into the sum.
        return loss.where(weight > 0, 0.0).mul(weight).sum() / weight.sum().clamp_min(1)

    known = points.weight * points.supervised[:, None]
    derivatives = torch.stack(list(inside[1:]), dim=1)
    slope = edge.ux * points.normals[..., 0] + edge.uy * points.normals[..., 1]
    return {
        "residual": mean(apply_operator(coefficients, inside), points.source, points.weight),
        "derivatives": mean(derivatives, points.known[:, 1:], known[:, None]),
        "value": mean(inside.u, points.known[:, 0], known),
        "dirichlet": mean(edge.u, points.values, points.dirichlet_mask),
        "neumann": mean(slope, points.slopes, points.neumann_mask),
    }


def training_loss(
    model: HyperPINN, problems: Problems, points: Points, weights: Mapping[str, float] = WEIGHTS
) -> Tensor:
    """The paper's loss of a batch of problems.

    Args:
        model: the hypernetwork, or the same in `DistributedDataParallel`.
        problems: the batch.
        points: drawn from it.
        weights: of the losses by name; one that is left out or 0 is not counted.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(weights) - set(WEIGHTS)
    if unknown:
        raise ValueError(f"weights has {sorted(unknown)}; expected names among {list(WEIGHTS)}")
    params = model(problems.pde)
    target = getattr(model, "module", model).target
    if all(weight == 0 for name, weight in weights.items() if name != "value"):  # no derivative is asked for
        u, p = target.apply(params, points.inside), points
        flat = Jet(u, u, u, u, u)
        losses = physics_loss(flat, Jet(*[p.values] * 5), problems.pde.coefficients, points)
        return weights.get("value", 0.0) * losses["value"]
    # One pass for all points: a jet of the batch costs less than two of its parts.
    jet = target.jet(params, torch.cat([points.inside, points.edge], dim=1))
    count = points.inside.shape[1]
    inside, edge = Jet(*(part[:, :count] for part in jet)), Jet(*(part[:, count:] for part in jet))
    losses = physics_loss(inside, edge, problems.pde.coefficients, points)
    return torch.stack([weight * losses[name] for name, weight in weights.items() if weight]).sum()
