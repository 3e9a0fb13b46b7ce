"""The family of tasks: conditions whose input geometry agrees with the labels as far as one wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.representational_geometry.method.arguments import check_targets, random_numbers


@dataclass(frozen=True)
class Task:
    """Conditions and their binary targets.

    Attributes:
        x: inputs without noise [..., P, d]; a leading axis holds one draw a seed.
        t: targets, -1 or 1 [P, k].
        factors: the binary variables along which the inputs are separated [P, q]; the targets, but for XOR.
    """

    x: Tensor
    t: Tensor
    factors: Tensor

    def sample(self, n: int, noise: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Noisy inputs, x + noise · ξ / √d with standard normal ξ, so that `noise` is the length of the noise.

        Args:
            n: samples of each condition.
            noise: expected length of the noise; conditions of an unstructured task have length 1.
            generator: source of the noise, on the device of `x`.

        Returns:
            inputs [..., P, n, d] and targets [P, n, k].

        Raises:
            ValueError: `n` is not positive or `noise` is negative.
        """
        if n < 1:
            raise ValueError(f"n is {n}; expected at least 1")
        if not noise >= 0:
            raise ValueError(f"noise is {noise}; expected a length of at least 0")
        shape = (*self.x.shape[:-1], n, self.x.shape[-1])
        normal = torch.randn(shape, generator=generator, device=self.x.device, dtype=self.x.dtype)
        scaled = normal * (noise / math.sqrt(shape[-1]))
        return self.x[..., None, :] + scaled, self.t[:, None].expand(-1, n, -1)


def structured_task(
    conditions: int,
    dimension: int,
    targets: str | Tensor = "dichotomy",
    separability: float = 0.0,
    seed: int | Sequence[int] = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """A task whose inputs lie between unstructured points and the geometry of the labels.

    Condition p has the input √(1 - s) c_p + √(s / q) Σ_j f_pj u_j, with c_p normal of expected length 1, orthonormal
    u_j and q binary factors f. At s = 0 the inputs know nothing of the labels; at s = 1 the two geometries are equal
    (but for XOR, whose label is the product of two factors and stays unaligned with them).

    Args:
        conditions: number of conditions P.
        dimension: of the inputs, d.
        targets: "dichotomy" (half against half), "factorial:k" (k factors of a crossed design, all of them targets),
            "xor" (the product of two factors), or targets of your own, -1 or 1 [P, k].
        separability: s, from 0 to 1.
        seed: of the draw; several seeds give a stack with one draw each.
        dtype: of the inputs and targets.

    Returns:
        The task, with inputs [P, d], or [S, P, d] for S seeds.

    Raises:
        ValueError: the number of conditions does not fit the design, `targets` has another name, the separability
            is not between 0 and 1, or there are fewer dimensions than factors.

    Source: the parameterised tasks of the paper's abstract; the interpolation is this project's (from memory, the paper
    draws input kernels at a given alignment with the label kernel).
    """
    if not 0 <= separability <= 1:
        raise ValueError(f"separability is {separability}; expected a number from 0 to 1")
    t, factors = _design(conditions, targets)
    q = factors.shape[1]
    if dimension < q:
        raise ValueError(f"dimension is {dimension}; expected at least {q}, the number of factors")
    single = isinstance(seed, int)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    draws = torch.stack([_normal(each, conditions + q, dimension) for each in seeds])  # [S, P + q, d]
    points = draws[:, :conditions] / math.sqrt(dimension)
    directions = torch.linalg.qr(draws[:, conditions:].mT).Q.mT  # [S, q, d]
    structure = factors.double() @ directions
    x = (math.sqrt(1 - separability) * points + math.sqrt(separability / q) * structure).to(dtype)
    return Task(x[0] if single else x, t.to(dtype), factors.to(dtype))


def _normal(seed: int, rows: int, columns: int) -> Tensor:
    generator = random_numbers("task", seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _design(conditions: int, targets: str | Tensor) -> tuple[Tensor, Tensor]:
    """Targets [P, k] and factors [P, q]."""
    if isinstance(targets, Tensor):
        if conditions < 2:
            raise ValueError(f"conditions is {conditions}; expected at least 2")
        t = check_targets(targets, conditions)
        return t, t
    name, _, number = targets.partition(":")
    if name == "dichotomy" and not number:
        q = 1
    elif name == "xor" and not number:
        q = 2
    elif name == "factorial" and number.isdecimal() and int(number) >= 1:
        q = int(number)
    else:
        raise ValueError(f"targets is {targets!r}; expected 'dichotomy', 'factorial:k', 'xor' or a tensor")
    if conditions < 2 or conditions % 2**q:
        raise ValueError(
            f"conditions is {conditions}; expected a multiple of {2**q}, one set for each cell of {q} factors"
        )
    cell = torch.arange(conditions) * 2**q // conditions  # the first conditions are cell 0
    bits = (cell[:, None] >> torch.arange(q)) & 1
    factors = 1 - 2 * bits
    return (factors.prod(dim=1, keepdim=True) if name == "xor" else factors), factors
