"""Errors on problems whose solutions are known, among them three from textbooks.

Letters: N = problems, G = pixels a side, P = pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.hypino.method import LinearPDE, Problems, grid_points


def textbook(grid: int, *, dtype: torch.dtype = torch.float32) -> tuple[LinearPDE, Tensor]:
    """Three problems outside the generator: Poisson, Helmholtz, heat, with values on the square's sides.

    Args:
        grid: G.
        dtype: of everything.

    Returns:
        The problems and their solutions, (3, G, G); heat has no data at y = 1, its last time.
    """
    x, y = grid_points(grid, dtype=dtype).unbind(-1)
    pi, decay = math.pi, 0.1 * math.pi**2
    waves = torch.sin(pi * x) * torch.sin(pi * y)
    # The third coefficients are those of u_t = 0.1 u_xx, whose solution decays in time y.
    heat = torch.exp(-decay * (y + 1)) * torch.sin(pi * x)
    u = torch.stack([waves, torch.cos(pi * x / 2) * torch.cos(pi * y), heat])
    coefficients = torch.tensor(
        [[0.0, 0.0, 0.0, 1.0, 1.0], [1.5, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, -0.1, 0.0]], dtype=dtype
    )
    source = torch.stack([-2 * pi**2 * waves, (1.5 - 1.25 * pi**2) * u[1], torch.zeros_like(heat)])
    edge = ((x.abs() == 1) | (y.abs() == 1)).to(dtype).repeat(3, 1, 1)
    edge[2] = ((x.abs() == 1) | (y == -1)).to(dtype)
    none = torch.zeros_like(u)
    return LinearPDE(coefficients, edge, none, u * edge, none, source, domain=torch.ones_like(u)), u


def relative_errors(found: Tensor, exact: Tensor, domain: Tensor) -> Tensor:
    """L2 distance over the exact solution's norm, in the domain: (N, P) each to (N,)."""
    return (((found - exact) ** 2 * domain).sum(-1) / (exact**2 * domain).sum(-1)).sqrt()


@dataclass(frozen=True)
class Judge:
    """Errors on the grid of some problems.

    Attributes:
        pde: the problems.
        exact: (N, P), solutions at the pixels.
    """

    pde: LinearPDE
    exact: Tensor

    @classmethod
    def of(cls, problems: Problems, device: str) -> Judge:
        """Of problems with known solutions."""
        pixels = grid_points(problems.pde.grid).reshape(-1, 2)
        return cls(problems.pde.to(device), problems.solution(pixels).u.to(device))

    def errors(self, found: Tensor, rows: slice = slice(None)) -> Tensor:
        """Relative errors (N,) of values (N, P) at the pixels, for some of the problems."""
        assert self.pde.domain is not None
        return relative_errors(found, self.exact[rows], self.pde.domain.flatten(1)[rows])

    @property
    def pixels(self) -> Tensor:
        """(P, 2)."""
        return grid_points(self.pde.grid, device=self.exact.device).reshape(-1, 2)
