"""Iterative refinement, and fine-tuning of generated weights on their problem.

Letters: N = problems, G = pixels a side, P = points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from working_papers.papers.hypino.method._jets import Jet, ModulatedMLP
from working_papers.papers.hypino.method._problems import LinearPDE, apply_operator, grid_points

Solution = Callable[[Tensor], Jet]


@dataclass(frozen=True)
class Ensemble:
    """A weighted sum of generated networks.

    Attributes:
        target: the network whose parameters were generated.
        members: parameters of each network, (N, ...).
        weights: (members, N).
    """

    target: ModulatedMLP
    members: tuple[list[Tensor], ...]
    weights: Tensor

    def __len__(self) -> int:
        return len(self.members)

    def __call__(self, xy: Tensor) -> Tensor:
        """Values, (N, P), at points (P, 2) or (N, P, 2)."""
        parts = [w[:, None] * self.target.apply(p, xy) for p, w in zip(self.members, self.weights, strict=True)]
        return torch.stack(parts).sum(0)

    def jet(self, xy: Tensor) -> Jet:
        """Value and derivatives, (N, P) each, at points (P, 2) or (N, P, 2)."""
        parts = [
            w[:, None] * torch.stack(list(self.target.jet(p, xy)))
            for p, w in zip(self.members, self.weights, strict=True)
        ]
        return Jet(*torch.stack(parts).sum(0))

    def first(self, count: int) -> Ensemble:
        """The sum of the first networks alone: 1 is the zero-shot solution.

        Raises:
            ValueError: a count that the ensemble does not have.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"count is {count}; expected between 1 and {len(self)}")
        return Ensemble(self.target, self.members[:count], self.weights[:count])


def residual_problem(pde: LinearPDE, solution: Solution) -> LinearPDE:
    """The equation that the error of an approximate solution obeys (section 3.5).

    Args:
        pde: N problems.
        solution: jet of the approximation, of points (N, P, 2).

    Returns:
        The same operator and geometry, with f - L[u], g_D - u and g_N - ∂u/∂n in the places of f, g_D and g_N.

    Raises:
        ValueError: Neumann pixels without normals.
    """
    pde = pde.batch()
    pixels = grid_points(pde.grid, dtype=pde.source.dtype, device=pde.source.device).reshape(-1, 2)
    pixels = pixels.expand(len(pde.source), -1, 2)
    source = pde.source.flatten(1) - apply_operator(pde.coefficients, solution(pixels))
    source = source if pde.domain is None else source * pde.domain.flatten(1)
    at_values, at_slopes = pixels, pixels
    if pde.anchors is not None:
        at_values, at_slopes = (part.flatten(2).mT for part in pde.anchors.split(2, dim=1))
    values = (pde.dirichlet.flatten(1) - solution(at_values).u) * pde.dirichlet_mask.flatten(1)
    if pde.neumann_mask.any():
        if pde.normals is None:
            raise ValueError("pde.normals is None; expected (N, 2, G, G), for there are Neumann pixels")
        jet = solution(at_slopes)
        normal_x, normal_y = pde.normals.flatten(2).unbind(1)
        slopes = pde.neumann.flatten(1) - (jet.ux * normal_x + jet.uy * normal_y)
        slopes = slopes * pde.neumann_mask.flatten(1)
    else:
        slopes = torch.zeros_like(values)
    square = (pde.grid, pde.grid)
    return pde.with_data(values.unflatten(1, square), slopes.unflatten(1, square), source.unflatten(1, square))


@torch.no_grad()
def refine(
    model: torch.nn.Module,
    pde: LinearPDE,
    steps: int = 3,
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = False,
) -> Ensemble:
    """Solve, then solve for what is left of residual and boundary data, and add (section 3.5).

    Args:
        model: a `HyperPINN`, or anything with `target` that maps problems to parameters.
        pde: N problems, or one.
        steps: K corrections.
        weights: (K,), of each correction; ones by default.
        normalize: bring every problem, the first too, to data of magnitude one before it is asked, and scale the
            answer back. Equations are linear, so nothing else changes; small residuals then look like training
            problems (ours).

    Returns:
        K + 1 networks; `first(k + 1)` is the solution after k corrections.

    Raises:
        ValueError: a negative number of steps, or other than K weights.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected at least 0")
    given = [1.0] * steps if weights is None else list(weights)
    if len(given) != steps:
        raise ValueError(f"weights has {len(given)} numbers; expected steps = {steps}")
    pde = pde.batch()
    target: ModulatedMLP = model.target  # type: ignore[assignment]
    members: list[list[Tensor]] = []
    factors: list[Tensor] = []
    left = pde
    for weight in [1.0, *given]:
        if members:
            left = residual_problem(pde, Ensemble(target, tuple(members), torch.stack(factors)).jet)
        size = left.magnitude() if normalize else torch.ones_like(left.coefficients[:, 0])
        members.append(model(left.scaled(1 / size) if normalize else left))
        factors.append(weight * size)
    return Ensemble(target, tuple(members), torch.stack(factors))


class Finetuned(NamedTuple):
    """Result of `finetune`.

    Attributes:
        params: tuned parameters.
        losses: (steps, N), the loss before each step, on that step's points.
        looks: (looks, N), what `look` found; empty without it.
    """

    params: list[Tensor]
    losses: Tensor
    looks: Tensor


def finetune(
    target: ModulatedMLP,
    params: Sequence[Tensor],
    pde: LinearPDE,
    *,
    steps: int = 1000,
    lr: float = 1e-3,
    points: int | None = None,
    lbfgs: int = 0,
    generator: torch.Generator | None = None,
    look: Callable[[list[Tensor]], Tensor] | None = None,
    every: int = 10,
) -> Finetuned:
    """Train networks on their own problems by physics alone, all in one batch (section 4.3).

    The loss is 0.1 residual + 10 Dirichlet + 5 Neumann, mean squares over pixels, as the images give them; Adam
    (0.9, 0.99) with a cosine, then optionally L-BFGS. Problems do not touch each other under Adam; L-BFGS takes them
    as one, so give it one at a time if that matters.

    Args:
        target: the network.
        params: where to start, (N, ...); not changed.
        pde: N problems.
        steps: of Adam.
        lr: its first learning rate.
        points: inner pixels drawn for each step; None takes all.
        lbfgs: steps of L-BFGS (20 inner, history 60, strong Wolfe, rate 0.1) on all pixels.
        generator: of the drawn pixels, on the CPU; needed with `points`.
        look: called with the parameters before the first step, after every `every` steps, and at the end.
        every: steps between looks.

    Returns:
        Parameters, losses and looks.

    Raises:
        ValueError: drawn points without a generator, or Neumann pixels without normals.
    """
    if points is not None and generator is None:
        raise ValueError("generator is None; expected one, for points are drawn")
    pde = pde.batch()
    fit = _PixelFit(target, pde)
    tuned = [tensor.detach().clone().requires_grad_() for tensor in params]
    optimizer = torch.optim.Adam(tuned, lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses, looks = [], []

    def glance() -> None:
        if look is not None:
            with torch.no_grad():
                looks.append(look(tuned))

    for step in range(steps):
        if step % every == 0:
            glance()
        pixels = None
        if points is not None:
            pixels = torch.randint(0, pde.grid**2, (points,), generator=generator).to(pde.source.device)
        optimizer.zero_grad()
        loss = fit.losses(tuned, pixels)
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    if lbfgs:
        closer = torch.optim.LBFGS(tuned, lr=0.1, max_iter=20, history_size=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            closer.zero_grad()
            total = fit.losses(tuned, None).sum()
            total.backward()
            return total

        for _ in range(lbfgs):
            closer.step(closure)
    glance()
    empty = pde.source.new_empty(0, len(pde.source))
    return Finetuned(
        [tensor.detach() for tensor in tuned],
        torch.stack(losses) if losses else empty,
        torch.stack(looks) if looks else empty,
    )


class _PixelFit:
    """The fine-tuning loss; boundary pixels, few among many, are gathered once."""

    def __init__(self, target: ModulatedMLP, pde: LinearPDE) -> None:
        self.target, self.pde = target, pde
        pixels = grid_points(pde.grid, dtype=pde.source.dtype, device=pde.source.device).reshape(-1, 2)
        self.pixels = pixels
        self.source = pde.source.flatten(1)
        self.domain = torch.ones_like(self.source) if pde.domain is None else pde.domain.flatten(1)
        both = pixels.repeat(1, 2).T.expand(len(pde.source), 4, -1) if pde.anchors is None else pde.anchors.flatten(2)

        def gather(mask: Tensor, *images: Tensor) -> list[Tensor]:
            weight = mask.flatten(1)
            count = max(1, int((weight > 0).sum(1).max()))
            weight, index = weight.topk(count, dim=1)
            return [weight] + [i.flatten(2).gather(2, index[:, None].expand(-1, i.shape[1], -1)).mT for i in images]

        self.on_value, self.at_value, self.values = gather(pde.dirichlet_mask, both[:, :2], pde.dirichlet[:, None])
        self.has_slopes = bool(pde.neumann_mask.any())
        if self.has_slopes:
            if pde.normals is None:
                raise ValueError("pde.normals is None; expected (N, 2, G, G), for there are Neumann pixels")
            self.on_slope, self.at_slope, self.slopes, self.normals = gather(
                pde.neumann_mask, both[:, 2:], pde.neumann[:, None], pde.normals
            )

    def losses(self, params: list[Tensor], pixels: Tensor | None) -> Tensor:
        """(N,), on some pixels of the inside, or on all."""
        chosen = slice(None) if pixels is None else pixels
        jet = self.target.jet(params, self.pixels[chosen])
        weight = self.domain[:, chosen]
        left = apply_operator(self.pde.coefficients, jet) - self.source[:, chosen]
        loss = 0.1 * (left**2 * weight).sum(1) / weight.sum(1).clamp_min(1)
        error = self.target.apply(params, self.at_value) - self.values[..., 0]
        loss = loss + 10 * (error**2 * self.on_value).sum(1) / self.on_value.sum(1).clamp_min(1)
        if self.has_slopes:
            jet = self.target.jet(params, self.at_slope)
            error = jet.ux * self.normals[..., 0] + jet.uy * self.normals[..., 1] - self.slopes[..., 0]
            loss = loss + 5 * (error**2 * self.on_slope).sum(1) / self.on_slope.sum(1).clamp_min(1)
        return loss
