"""Random problems: manufactured solutions with exact sources, and problems that have no known solution.

Letters: N = problems, S = steps of a random function, P = points, G = pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.hypino.method._batches import Batched
from working_papers.papers.hypino.method._jets import Jet
from working_papers.papers.hypino.method._problems import (
    SHAPES,
    BoundarySamples,
    Holes,
    LinearPDE,
    apply_operator,
    grid_points,
    square_outline,
)

STEPS = (6, 10)
RULES = ("add", "multiply", "compose")
Elementary = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _identity(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z, torch.ones_like(z), torch.zeros_like(z)


def _sine(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z.sin(), z.cos(), -z.sin()


def _cosine(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z.cos(), -z.sin(), -z.cos()


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = z.tanh()
    return t, 1 - t**2, -2 * t * (1 - t**2)


def _sigmoid(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = z.sigmoid()
    return s, s * (1 - s), s * (1 - s) * (1 - 2 * s)


def _bell(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r = 1 / (1 + z**2)
    return r, -2 * z * r**2, (6 * z**2 - 2) * r**3


ELEMENTARY: tuple[Elementary, ...] = (_identity, _sine, _cosine, _tanh, _sigmoid, _bell)


def sample_operator(
    generator: torch.Generator, count: int = 1, *, second_order: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw operators of one to three distinct terms with coefficients uniform in (-2, 2) (section 3.3).

    Args:
        generator: of random numbers, on the CPU.
        count: N.
        second_order: keep only those with a second derivative (ours; the paper keeps all).
        dtype: of the coefficients.

    Returns:
        (N, 5), of u, u_x, u_y, u_xx, u_yy.
    """
    found = torch.empty(0, 5, dtype=dtype)
    while len(found) < count:
        terms = torch.randint(1, 4, (count, 1), generator=generator)
        order = torch.rand(count, 5, generator=generator).argsort(-1).argsort(-1)
        values = 4 * torch.rand(count, 5, generator=generator, dtype=dtype) - 2
        drawn = torch.where(order < terms, values, 0.0)
        keep = (drawn[:, 3:] != 0).any(-1) if second_order else torch.ones(count, dtype=torch.bool)
        found = torch.cat([found, drawn[keep]])
    return found[:count]


@dataclass(frozen=True)
class ManufacturedSolution(Batched):
    """Random functions built step by step from elementary ones, with exact derivatives (section 3.3).

    Each step adds d ψ(ax + by + c) + e to the function, multiplies by it, or replaces u by d ψ(u) + e.

    Attributes:
        kind: (N, S), index of ψ in x, sin, cos, tanh, sigmoid, 1/(1+x²).
        rule: (N, S), 0 add, 1 multiply, 2 compose, -1 beyond the last step.
        slope: (N, S, 2), a and b.
        shift: (N, S), c.
        factor: (N, S), d.
        offset: (N, S), e.
    """

    kind: Tensor
    rule: Tensor
    slope: Tensor
    shift: Tensor
    factor: Tensor
    offset: Tensor

    @classmethod
    def sample(
        cls,
        generator: torch.Generator,
        count: int = 1,
        *,
        frequency: float = 10.0,
        steps: tuple[int, int] = STEPS,
        dtype: torch.dtype = torch.float32,
    ) -> ManufacturedSolution:
        """Draw functions without looking whether they are usable; `sample_mms_problem` does.

        Args:
            generator: of random numbers, on the CPU.
            count: N.
            frequency: a and b are 0 with probability 1/2, else uniform up to this; 10 in the paper.
            steps: smallest and largest number of steps.
            dtype: of the numbers.

        Raises:
            ValueError: an impossible range of steps.
        """
        low, high = steps
        if not 1 <= low <= high:
            raise ValueError(f"steps is {steps}; expected 1 <= smallest <= largest")

        def uniform(bound: float, *size: int) -> Tensor:
            return bound * (2 * torch.rand(count, high, *size, generator=generator, dtype=dtype) - 1)

        length = torch.randint(low, high + 1, (count, 1), generator=generator)
        rule = torch.randint(0, 3, (count, high), generator=generator)
        rule[:, 0] = 0  # there is nothing yet to multiply or to put in
        index = torch.arange(high)
        slope = uniform(frequency, 2) * (torch.rand(count, high, 2, generator=generator) < 0.5)
        shift, factor, offset = (uniform(2 * math.pi) for _ in range(3))
        last = index == length - 1
        return cls(
            torch.randint(0, len(ELEMENTARY), (count, high), generator=generator),
            torch.where(index < length, rule, -1),
            slope,
            shift,
            torch.where(last, 1.0, factor),
            torch.where(last, 0.0, offset),
        )

    def __call__(self, xy: Tensor) -> Tensor:
        """Values, (N, P), at points (P, 2) or (N, P, 2)."""
        return self.jet(xy).u

    def jet(self, xy: Tensor) -> Jet:
        """Values and exact derivatives.

        Args:
            xy: (P, 2) or (N, P, 2).

        Returns:
            Five tensors (N, P).

        Raises:
            ValueError: points of another shape.
        """
        n, steps = self.kind.shape
        if xy.shape[-1] != 2 or xy.dim() not in (2, 3) or (xy.dim() == 3 and len(xy) != n):
            raise ValueError(f"xy has shape {tuple(xy.shape)}; expected (P, 2) or ({n}, P, 2)")
        xy = xy.to(self.slope.dtype).expand(n, -1, 2)
        u = xy.new_zeros(5, n, xy.shape[1])
        for s in range(steps):
            rule = self.rule[:, s, None]
            line = torch.zeros_like(u)
            line[0] = (xy * self.slope[:, s, None]).sum(-1) + self.shift[:, s, None]
            line[1:3] = self.slope[:, s].T[..., None]
            z = torch.where(rule == 2, u, line)
            value, first, second = (torch.empty_like(z[0]) for _ in range(3))
            for k, psi in enumerate(ELEMENTARY):
                rows = self.kind[:, s] == k
                value[rows], first[rows], second[rows] = psi(z[0, rows])
            outer = torch.stack(
                [
                    value,
                    first * z[1],
                    first * z[2],
                    second * z[1] ** 2 + first * z[3],
                    second * z[2] ** 2 + first * z[4],
                ]
            )
            outer = outer * self.factor[:, s, None]
            outer[0] += self.offset[:, s, None]
            product = torch.cat(
                [
                    u[:1] * outer[:1],
                    u[:1] * outer[1:3] + outer[:1] * u[1:3],
                    u[:1] * outer[3:] + outer[:1] * u[3:] + 2 * u[1:3] * outer[1:3],
                ]
            )
            changed = torch.where(rule == 0, u + outer, torch.where(rule == 1, product, outer))
            u = torch.where(rule < 0, u, changed)
        return Jet(*u)

    def usable(self, coefficients: Tensor, *, points: int = 16) -> Tensor:
        """Whether |u| <= 10, its standard deviation is at least 0.1, and source and derivatives stay below 1e4.

        Args:
            coefficients: (N, 5).
            points: a side of the grid on which this is looked at.

        Returns:
            (N,) bool.
        """
        jet = self.jet(grid_points(points, dtype=self.slope.dtype).reshape(-1, 2))
        largest = torch.stack([*jet[1:], apply_operator(coefficients, jet)]).abs().amax((0, 2))
        return (jet.u.abs().amax(-1) <= 10) & (jet.u.std(-1) >= 0.1) & (largest <= 1e4)  # nan is not usable either


@dataclass(frozen=True)
class Problems(Batched):
    """Problems to train on: images, samples of the boundary, and what is known at any point.

    Attributes:
        pde: the images.
        boundary: the samples they were drawn from.
        holes: cut out of the square.
        manufactured: the solution before scaling; meaningless where not supervised.
        constant: (N,), the source where not supervised.
        supervised: (N,) bool, whether the solution is known.
        scale: (N,), by which solution, source and boundary data were multiplied.
    """

    pde: LinearPDE
    boundary: BoundarySamples
    holes: Holes
    manufactured: ManufacturedSolution
    constant: Tensor
    supervised: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.supervised)

    def solution(self, xy: Tensor) -> Jet:
        """The known solution with derivatives, (N, P) each, at points (P, 2) or (N, P, 2)."""
        return Jet(*(part * self.scale[:, None] for part in self.manufactured.jet(xy)))

    def source(self, xy: Tensor) -> Tensor:
        """Right-hand side, (N, P), at points (P, 2) or (N, P, 2)."""
        exact = apply_operator(self.pde.coefficients, self.solution(xy))
        return torch.where(self.supervised[:, None], exact, (self.constant * self.scale)[:, None])

    def normalized(self) -> Problems:
        """The same problems with data of magnitude one; solutions scale along, for the equations are linear."""
        factor = 1 / self.pde.magnitude()
        samples = self.boundary
        boundary = BoundarySamples(
            samples.points,
            samples.normals,
            samples.dirichlet_mask,
            samples.neumann_mask,
            samples.values * factor[:, None],
            samples.slopes * factor[:, None],
        )
        scaled = self.pde.scaled(factor)
        return Problems(
            scaled, boundary, self.holes, self.manufactured, self.constant, self.supervised, self.scale * factor
        )


def sample_problems(
    grid: int,
    count: int,
    generator: torch.Generator,
    *,
    supervised: float = 0.5,
    holes: int = 3,
    shapes: Sequence[str] = SHAPES,
    frequency: float = 10.0,
    second_order: bool = False,
    neumann: bool = True,
    side: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Problems:
    """Draw problems as the paper trains on (section 3.3): supervised and unsupervised ones alternate.

    Outer sides carry values always and derivatives with probability 1/4; a hole carries derivatives with probability
    1/2, and values where not or, if supervised, with probability 1/2 too. Time is y: operators of second order in x
    alone, or of first order, get no data at y = 1; hyperbolic ones none there either, but the derivative at y = -1.
    An operator of second order in y alone gets data on all sides; the official classifier would leave it short.

    Unsupervised ones have the constant source 10 z, z ~ N(1, 1), and boundary functions that the operator maps to
    zero: none with a term in u; constant in a variable with a first derivative; affine otherwise.

    Args:
        grid: G.
        count: N.
        generator: of random numbers, on the CPU.
        supervised: share of problems with a manufactured solution.
        holes: largest number a problem.
        shapes: of holes.
        frequency: see `ManufacturedSolution.sample`.
        second_order: see `sample_operator`.
        neumann: False leaves derivatives out on elliptic and parabolic problems.
        side: boundary samples on a side, and on a hole; None: 2 G - 1, so that some meet the pixels.
        dtype: of everything.

    Returns:
        The problems, on the CPU.

    Raises:
        ValueError: a share outside [0, 1] or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    if not 0 <= supervised <= 1:
        raise ValueError(f"supervised is {supervised}; expected a share between 0 and 1")
    index = torch.arange(1, count + 1, dtype=torch.float64)
    known = (index * supervised).floor() > ((index - 1) * supervised).floor()  # evenly spread
    coefficients, solution = _usable_pairs(count, generator, frequency, second_order, dtype)
    cut = Holes.sample(count, generator, most=holes, shapes=shapes, dtype=dtype)

    def chance(probability: float, *size: int) -> Tensor:
        return torch.rand(count, *size, generator=generator) < probability

    # The sides.
    per_side = side or 2 * grid - 1
    points, normals = square_outline(per_side, dtype=dtype)
    bottom, top = (torch.arange(4 * per_side) // per_side == k for k in (0, 2))
    c3, c4 = coefficients[:, 3], coefficients[:, 4]
    hyperbolic, closed = (c3 * c4 < 0)[:, None], ((c4 != 0) & (c3 * c4 >= 0))[:, None]
    value_outer = closed | ~top
    slope_outer = (value_outer & ~hyperbolic & (chance(0.25, 1) & neumann)) | (hyperbolic & bottom)

    # The holes.
    inner_points, inner_normals = (part.flatten(1, 2) for part in cut.outline(per_side))
    there = (cut.kind >= 0).repeat_interleave(per_side, 1) & ~cut.contains(inner_points, but_own=True)
    slope_hole = chance(0.5, holes) & neumann
    value_hole = ~slope_hole | (chance(0.5, holes) & known[:, None])
    slope_inner, value_inner = (mask.repeat_interleave(per_side, 1) & there for mask in (slope_hole, value_hole))

    points = torch.cat([points.expand(count, -1, 2), inner_points], 1)
    normals = torch.cat([normals.expand(count, -1, 2), inner_normals], 1)
    outside = torch.cat([torch.zeros_like(value_outer), torch.zeros_like(there)], 1)
    outside = outside | cut.contains(points, margin=1e-4) & (torch.arange(points.shape[1]) < 4 * per_side)

    # Values and derivatives there.
    jet = solution.jet(points)
    slope = jet.ux * normals[..., 0] + jet.uy * normals[..., 1]
    affine = torch.randn(count, 3, generator=generator, dtype=dtype)
    affine = affine * torch.cat([torch.ones(count, 1), coefficients[:, 1:3] == 0], 1) * (coefficients[:, :1] == 0)
    plain = affine[:, :1] + (points * affine[:, None, 1:]).sum(-1)
    plain_slope = (normals * affine[:, None, 1:]).sum(-1)
    boundary = BoundarySamples(
        points,
        normals,
        torch.cat([value_outer, value_inner], 1) & ~outside,
        torch.cat([slope_outer, slope_inner], 1) & ~outside,
        torch.where(known[:, None], jet.u, plain),
        torch.where(known[:, None], slope, plain_slope),
    )

    pixels = grid_points(grid, dtype=dtype).reshape(-1, 2)
    constant = 10 * (1 + torch.randn(count, generator=generator, dtype=dtype))
    source = torch.where(known[:, None], apply_operator(coefficients, solution.jet(pixels)), constant[:, None])
    domain = (~cut.contains(pixels.expand(count, -1, 2))).to(dtype)
    pde = boundary.images(coefficients, source.unflatten(1, (grid, grid)), domain.unflatten(1, (grid, grid)))
    return Problems(pde, boundary, cut, solution, constant, known, torch.ones(count, dtype=dtype))


def sample_mms_problem(
    grid: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> tuple[LinearPDE, Callable[[Tensor], Tensor]]:
    """Draw one problem whose solution is known.

    Args:
        grid: G.
        generator: of random numbers, on the CPU.
        dtype: of the images.

    Returns:
        The problem, without an axis of problems, and its solution: (P, 2) to (P,).
    """
    problems = sample_problems(grid, 1, generator, supervised=1.0, dtype=dtype)
    return problems.pde[0], lambda xy: problems.solution(xy).u[0]


def _usable_pairs(
    count: int, generator: torch.Generator, frequency: float, second_order: bool, dtype: torch.dtype
) -> tuple[Tensor, ManufacturedSolution]:
    """Operators and functions, drawn again where a function is not usable."""
    found: list[tuple[Tensor, ManufacturedSolution]] = []
    missing = count
    while missing > 0:
        coefficients = sample_operator(generator, 2 * missing, second_order=second_order, dtype=dtype)
        drawn = ManufacturedSolution.sample(generator, 2 * missing, frequency=frequency, dtype=dtype)
        good = drawn.usable(coefficients).nonzero().flatten()[:missing]
        found.append((coefficients[good], drawn[good]))
        missing -= len(good)
    return torch.cat([c for c, _ in found]), ManufacturedSolution.concatenate([s for _, s in found])
