"""Linear equations on the square as images, their geometry and their boundary data.

Letters: N = problems, G = pixels a side, B = boundary samples, H = holes, P = points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.hypino.method._batches import Batched
from working_papers.papers.hypino.method._jets import Jet

SHAPES = ("disk", "triangle", "rectangle")


def grid_points(grid: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Tensor:
    """Pixel centres of a square image of [-1, 1]², row 0 at y = +1.

    Args:
        grid: G.
        dtype: of the points.
        device: of the points.

    Returns:
        (G, G, 2): x and y.

    Raises:
        ValueError: fewer than two pixels.
    """
    if grid < 2:
        raise ValueError(f"grid is {grid}; expected at least 2 pixels a side")
    line = torch.linspace(-1, 1, grid, dtype=dtype, device=device)
    y, x = torch.meshgrid(line.flip(0), line, indexing="ij")
    return torch.stack([x, y], dim=-1)


def apply_operator(coefficients: Tensor, jet: Jet) -> Tensor:
    """L[u] = c0 u + c1 u_x + c2 u_y + c3 u_xx + c4 u_yy (equation 1).

    Args:
        coefficients: (N, 5), or (5,).
        jet: five tensors (N, P), or (P,).

    Returns:
        As one tensor of the jet.
    """
    result = coefficients[..., :1] * jet.u
    for i, part in enumerate(jet[1:], 1):
        result = result + coefficients[..., i, None] * part
    return result


@dataclass(frozen=True)
class LinearPDE(Batched):
    """Equations as the network reads them (section 3.1). One problem has no leading N.

    Attributes:
        coefficients: (N, 5), of u, u_x, u_y, u_xx, u_yy.
        dirichlet_mask: (N, G, G), 1 where the value is prescribed; row 0 is y = +1.
        neumann_mask: (N, G, G), 1 where the derivative along the outward normal is.
        dirichlet: (N, G, G), prescribed values, 0 elsewhere.
        neumann: (N, G, G), prescribed derivatives, 0 elsewhere.
        source: (N, G, G), right-hand side, 0 outside the domain.
        normals: (N, 2, G, G), outward normals at Neumann pixels; needed where there are any.
        domain: (N, G, G), 1 in the domain; None: everywhere.
        anchors: (N, 4, G, G), the point (x, y) for which a Dirichlet pixel, then a Neumann pixel, stands; None: the
            pixel's centre. On coarse grids a curved boundary may pass half a pixel beside the centre.
    """

    coefficients: Tensor
    dirichlet_mask: Tensor
    neumann_mask: Tensor
    dirichlet: Tensor
    neumann: Tensor
    source: Tensor
    normals: Tensor | None = None
    domain: Tensor | None = None
    anchors: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit."""
        images = self.source.shape
        if len(images) not in (2, 3) or images[-1] != images[-2]:
            raise ValueError(f"source has shape {tuple(images)}; expected (G, G) or (N, G, G)")
        lead, square = images[:-2], images[-2:]
        expected: dict[str, tuple[int, ...]] = {"coefficients": (*lead, 5)}
        expected |= dict.fromkeys(("dirichlet_mask", "neumann_mask", "dirichlet", "neumann", "domain"), tuple(images))
        expected |= {"normals": (*lead, 2, *square), "anchors": (*lead, 4, *square)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}")

    @property
    def batched(self) -> bool:
        """Whether there is an axis of problems."""
        return self.source.dim() == 3

    @property
    def grid(self) -> int:
        """G, pixels a side."""
        return self.source.shape[-1]

    def batch(self) -> LinearPDE:
        """Itself, with a leading axis of one problem if there was none."""
        return self if self.batched else self.map(lambda tensor: tensor.unsqueeze(0))

    @property
    def images(self) -> Tensor:
        """(N, 5, G, G): both masks, both boundary values, the source."""
        parts = [self.dirichlet_mask, self.neumann_mask, self.dirichlet, self.neumann, self.source]
        return torch.stack([part.to(self.source.dtype) for part in parts], dim=-3)

    def scaled(self, factor: Tensor) -> LinearPDE:
        """The problem whose solution is `factor` times as large.

        Args:
            factor: (N,), or a scalar for one problem.
        """
        factor = factor[..., None, None]
        return self.with_data(self.dirichlet * factor, self.neumann * factor, self.source * factor)

    def with_data(self, dirichlet: Tensor, neumann: Tensor, source: Tensor) -> LinearPDE:
        """The same operator and geometry with other right-hand sides."""
        return LinearPDE(
            self.coefficients,
            self.dirichlet_mask,
            self.neumann_mask,
            dirichlet,
            neumann,
            source,
            self.normals,
            self.domain,
            self.anchors,
        )

    def magnitude(self) -> Tensor:
        """Size of the data, (N,): root mean square of prescribed values, plus a tenth of derivatives' and source's.

        It is proportional to the solution, so that dividing by it makes problems of all sizes alike. On a square of
        side 2, u_xx = f has solutions of about f / 8: hence the tenth.
        """

        def size(values: Tensor, mask: Tensor) -> Tensor:
            weight = mask.to(values.dtype)
            return ((values**2 * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp_min(1)).sqrt()

        inside = torch.ones_like(self.source) if self.domain is None else self.domain
        inner = size(self.source, inside) + size(self.neumann, self.neumann_mask)
        return (size(self.dirichlet, self.dirichlet_mask) + 0.1 * inner).clamp_min(1e-12)


@dataclass(frozen=True)
class Holes(Batched):
    """Shapes cut out of the square.

    Attributes:
        kind: (N, H), -1 none, 0 disk, 1 polygon.
        centre: (N, H, 2).
        radius: (N, H), of the disk, or of the circle through the corners.
        corners: (N, H, 4, 2), counter-clockwise; a triangle repeats its last.
    """

    kind: Tensor
    centre: Tensor
    radius: Tensor
    corners: Tensor

    @classmethod
    def sample(
        cls,
        count: int,
        generator: torch.Generator,
        *,
        most: int = 3,
        shapes: Sequence[str] = SHAPES,
        dtype: torch.dtype = torch.float32,
    ) -> Holes:
        """Draw between none and `most` holes a problem (section 3.3; positions and sizes are ours).

        Args:
            count: N.
            generator: of random numbers, on the CPU.
            most: largest number of holes.
            shapes: kinds to draw from: disk, triangle, rectangle.
            dtype: of lengths.

        Raises:
            ValueError: an unknown shape, or none.
        """
        if not shapes or set(shapes) - set(SHAPES):
            raise ValueError(f"shapes is {tuple(shapes)}; expected some of {SHAPES}")

        def uniform(low: float, high: float, *size: int) -> Tensor:
            return low + (high - low) * torch.rand(count, most, *size, generator=generator, dtype=dtype)

        number = torch.randint(0, most + 1, (count, 1), generator=generator)
        indices = torch.tensor([SHAPES.index(shape) for shape in shapes])
        shape = indices[torch.randint(0, len(shapes), (count, most), generator=generator)]
        centre, radius, turn = uniform(-0.6, 0.6, 2), uniform(0.12, 0.3), uniform(0, 2 * math.pi)
        wobble, flat = uniform(-0.4, 0.4, 4), uniform(0.3, math.pi / 2 - 0.3)
        third = 2 * math.pi / 3
        triangle = torch.tensor([0.0, third, 2 * third, 2 * third], dtype=dtype) + wobble
        triangle = torch.cat([triangle[..., :3], triangle[..., 2:3]], dim=-1)
        rectangle = torch.stack([flat, math.pi - flat, math.pi + flat, 2 * math.pi - flat], dim=-1)
        angles = torch.where((shape == 1)[..., None], triangle, rectangle) + turn[..., None]
        corners = centre[..., None, :] + radius[..., None, None] * torch.stack([angles.cos(), angles.sin()], dim=-1)
        kind = torch.where(torch.arange(most) < number, (shape > 0).long(), -1)
        return cls(kind, centre, radius, corners)

    def contains(self, xy: Tensor, *, margin: float = 0.0, but_own: bool = False) -> Tensor:
        """Whether points lie inside a hole by more than `margin`.

        Args:
            xy: (N, P, 2).
            margin: distance from the hole's boundary.
            but_own: P is H times some number, and the points of block h do not ask hole h.

        Returns:
            (N, P) bool.
        """
        disk = self.radius[:, None] - torch.linalg.vector_norm(xy[:, :, None] - self.centre[:, None], dim=-1)
        edges, lengths = self._edges()
        inward = torch.stack([-edges[..., 1], edges[..., 0]], dim=-1) / lengths.clamp_min(1e-12)[..., None]
        depth = ((xy[:, :, None, None] - self.corners[:, None]) * inward[:, None]).sum(-1)  # (N, P, H, 4)
        depth = depth.masked_fill((lengths < 1e-9)[:, None], math.inf).amin(-1)
        inside = torch.where(self.kind[:, None] == 0, disk, depth) > margin
        inside = inside & (self.kind >= 0)[:, None]
        if but_own and self.kind.shape[1]:
            holes = self.kind.shape[1]
            owner = torch.arange(holes, device=xy.device).repeat_interleave(xy.shape[1] // holes)
            inside = inside & (owner[:, None] != torch.arange(holes, device=xy.device))
        return inside.any(-1)

    def outline(self, samples: int) -> tuple[Tensor, Tensor]:
        """Evenly spaced points on each hole's boundary and the normals into the hole.

        Args:
            samples: S, of a hole.

        Returns:
            Points and unit normals, (N, H, S, 2) each.
        """
        share = (torch.arange(samples, device=self.radius.device, dtype=self.radius.dtype) + 0.5) / samples
        angle = 2 * math.pi * share
        away = torch.stack([angle.cos(), angle.sin()], dim=-1)
        disk = self.centre[:, :, None] + self.radius[:, :, None, None] * away
        edges, lengths = self._edges()
        ends = lengths.cumsum(-1)
        along = share * ends[..., -1:]
        edge = torch.searchsorted(ends.contiguous(), along.contiguous()).clamp_max(3)

        def chosen(values: Tensor) -> Tensor:
            return values.gather(2, edge[..., None].expand(*edge.shape, 2))

        length = lengths.gather(2, edge)
        part = (along - ends.gather(2, edge) + length) / length
        step = chosen(edges)
        polygon = chosen(self.corners) + part[..., None] * step
        inward = torch.stack([-step[..., 1], step[..., 0]], dim=-1) / length[..., None]
        is_disk = (self.kind == 0)[..., None, None]
        return torch.where(is_disk, disk, polygon), torch.where(is_disk, -away, inward)

    def _edges(self) -> tuple[Tensor, Tensor]:
        edges = self.corners.roll(-1, dims=-2) - self.corners
        return edges, torch.linalg.vector_norm(edges, dim=-1)


@dataclass(frozen=True)
class BoundarySamples(Batched):
    """Points on the boundary with what is prescribed there.

    Attributes:
        points: (N, B, 2).
        normals: (N, B, 2), out of the domain, of unit length.
        dirichlet_mask: (N, B) bool.
        neumann_mask: (N, B) bool.
        values: (N, B), u; meaningful where the Dirichlet mask is on.
        slopes: (N, B), derivative along the normal; meaningful where the Neumann mask is on.
    """

    points: Tensor
    normals: Tensor
    dirichlet_mask: Tensor
    neumann_mask: Tensor
    values: Tensor
    slopes: Tensor

    def images(self, coefficients: Tensor, source: Tensor, domain: Tensor | None = None) -> LinearPDE:
        """Draw the boundary data into images (appendix A): a pixel takes the nearest sample's value.

        A pixel is on if exp(-d / 0.1) > 0.8 for its distance d to the nearest sample, or d is below 0.75 pixels: on
        coarse grids the paper's rule alone would leave gaps.

        Args:
            coefficients: (N, 5).
            source: (N, G, G).
            domain: (N, G, G), 1 inside.

        Returns:
            The problem, with normals and anchors.
        """
        grid = source.shape[-1]
        pixels = grid_points(grid, dtype=source.dtype, device=source.device).reshape(-1, 2)
        reach = max(-0.1 * math.log(0.8), 0.75 * 2 / (grid - 1))
        rows = torch.arange(len(source), device=source.device)[:, None]
        parts = pixels.split(4096)

        def nearest(mask: Tensor) -> tuple[Tensor, Tensor]:
            if not mask.any():
                nothing = torch.zeros(len(source), grid**2, device=source.device)
                return nothing.bool(), nothing.long()
            # Squared distances but for the pixel's own part, which does not change which sample is nearest. Products
            # in parts: they fit a processor's cache, and fine grids fit the memory.
            own = torch.where(mask, (self.points**2).sum(-1), 1e3)[:, None]
            few = max(1, 2**19 // (min(grid**2, 4096) * mask.shape[1]))

            def closest(own: Tensor, samples: Tensor) -> Tensor:
                found = [
                    torch.baddbmm(own, part.expand(len(samples), -1, 2), samples.mT, alpha=-2).argmin(-1)
                    for part in parts
                ]
                return torch.cat(found, dim=1)

            groups = zip(own.split(few), self.points.split(few), strict=True)
            index = torch.cat([closest(o, samples) for o, samples in groups])
            distance = torch.linalg.vector_norm(self.points[rows, index] - pixels, dim=-1)
            return (distance < reach) & mask[rows, index], index

        def image(values: Tensor) -> Tensor:
            drawn: Tensor = values.unflatten(1, (grid, grid))
            return drawn

        at_value, value_index = nearest(self.dirichlet_mask)
        at_slope, slope_index = nearest(self.neumann_mask)
        anchors = torch.cat(
            [
                torch.where(at[..., None], self.points[rows, index], pixels)
                for at, index in ((at_value, value_index), (at_slope, slope_index))
            ],
            dim=-1,
        )
        return LinearPDE(
            coefficients,
            image(at_value.to(source.dtype)),
            image(at_slope.to(source.dtype)),
            image(self.values[rows, value_index] * at_value),
            image(self.slopes[rows, slope_index] * at_slope),
            source if domain is None else source * domain,
            image(self.normals[rows, slope_index] * at_slope[..., None]).movedim(-1, 1),
            domain,
            image(anchors).movedim(-1, 1),
        )


def square_outline(samples: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Evenly spaced points on the square's sides, corners twice, and the outward normals.

    Args:
        samples: of one side.
        dtype: of both.

    Returns:
        Points and normals, (4 samples, 2) each: bottom, right, top, left.
    """
    line, one = torch.linspace(-1, 1, samples, dtype=dtype), torch.ones(samples, dtype=dtype)
    points = torch.cat([torch.stack(p, -1) for p in ((line, -one), (one, line), (line, one), (-one, line))])
    normals = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=dtype).repeat_interleave(
        samples, 0
    )
    return points, normals
