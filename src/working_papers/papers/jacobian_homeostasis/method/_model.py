"""What every equilibrium network has: blocks of units, a field, a nudge on the output block, relaxation, a read-out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn.fixed_point import FixedPoint, iterate_fixed_point
from working_papers.papers.jacobian_homeostasis.method._activations import (
    Activation,
    holomorphic_softmax,
    is_holomorphic,
    named_activation,
)

Drive = Callable[[Tensor], Tensor]
Coordinates = Literal["activation", "state"]


class EquilibriumModel(nn.Module, ABC):
    """A recurrent network with state u and activations a = σ(u), whose answer is where it settles.

    Its field is F(u) = drive(a, x) + β E ∂L/∂a_out − u: the nudge of size β acts on one block of units, the output,
    through the gradient of the loss there. A subclass says what the drive is (`drive_from`), in operations that know
    complex numbers if complex nudges are wanted; everything else in this room works on any such subclass.

    Args:
        shapes: name and shape of each block of units, in the order in which they lie in the state.
        classes: number of classes of a linear read-out with softmax and cross-entropy; None for no read-out and the
            loss ½‖a_out − y‖².
        output: the block that is read and nudged; by default the last.
        activation: σ, elementwise: "sigmoid4", "dsilu" or a function.
        members: shape of leading axes of independent networks in one; their states are (*members, B, D).
        generator: source of randomness for the read-out's weights.
        dtype: of the parameters, real.

    Attributes:
        units: D, the number of all units.
        blocks: where each block lies in the state.

    Raises:
        ValueError: no block, an unknown output or activation, or fewer than one class.

    Source: the paper's vector field of the discrete dynamics; official code `models/vfs.py`.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        classes: int | None,
        output: str | None = None,
        activation: str | Activation = "sigmoid4",
        members: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not shapes:
            raise ValueError("shapes names no block of units; expected at least one")
        self.shapes = dict(shapes)
        self.output = list(self.shapes)[-1] if output is None else output
        if self.output not in self.shapes:
            raise ValueError(f"output is {output!r}; expected one of the blocks {', '.join(self.shapes)}")
        if classes is not None and classes < 1:
            raise ValueError(f"classes is {classes}; expected 1 or more, or None")
        self.members = tuple(members)
        self.activation = named_activation(activation)
        self.classes = classes
        self.blocks: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            if size < 1:
                raise ValueError(f"shapes gives block {name!r} the shape {shape}; expected positive numbers")
            self.blocks[name] = slice(end, end + size)
            end += size
        self.units = end
        self._holomorphic: bool | None = None
        if classes is not None:
            outputs = math.prod(self.shapes[self.output])
            self.readout_weight = normal_parameter((*self.members, classes, outputs), outputs, generator, dtype)
            self.readout_bias = nn.Parameter(torch.zeros(*self.members, classes, dtype=dtype))

    # What a subclass defines

    @abstractmethod
    def drive_from(self, x: Tensor) -> Drive:
        """The drive for one input, as a function of the activations; what depends on x alone is computed once.

        Args:
            x: the input.

        Returns:
            Function from activations (..., B, D) to drives of the same shape.
        """

    @abstractmethod
    def weight_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward weights of each reciprocal pair, both in the forward layout."""

    # The dynamics

    def nudge_from(self, y: Tensor) -> Drive:
        """E ∂L/∂a_out for one target, as a function of the activations.

        Args:
            y: classes (B,) as integers, or targets (B, classes); for the squared loss (B, output units).

        Returns:
            Function from activations (..., B, D) to the nudge of the same shape, zero outside the output block. It is a
            sample's own: not divided by the batch.
        """
        block, target = self.blocks[self.output], self._target(y)
        around = (block.start, self.units - block.stop)
        if self.classes is None:
            return lambda a: F.pad(a[..., block] - target, around)
        weight, bias = self.readout_weight, self.readout_bias.unsqueeze(-2)

        def nudge(a: Tensor) -> Tensor:
            excess = holomorphic_softmax(real_product(a[..., block], weight.mT) + bias) - target
            return F.pad(real_product(excess, weight), around)

        return nudge

    def field(self, u: Tensor, x: Tensor, y: Tensor | None = None, beta: complex | Tensor = 0.0) -> Tensor:
        """F(u), zero where the network has settled.

        Args:
            u: state (..., B, D), real or complex.
            x: input.
            y: target; needed where β is not 0.
            beta: β; a tensor broadcasts against the state.

        Returns:
            (..., B, D).

        Raises:
            ValueError: β is not 0 and there is no target.
        """
        return self._map(x, y, beta)(u) - u

    def _map(self, x: Tensor, y: Tensor | None, beta: complex | Tensor) -> Drive:
        """u ↦ F(u) + u."""
        if y is None and (isinstance(beta, Tensor) or beta != 0):
            raise ValueError(f"beta is {beta} and y is None; expected a target to nudge towards")
        drive = self.drive_from(x)
        if y is None or (not isinstance(beta, Tensor) and beta == 0):
            return lambda u: drive(self.activation(u))
        nudge = self.nudge_from(y)

        def nudged(u: Tensor) -> Tensor:
            a = self.activation(u)
            return drive(a) + beta * nudge(a)

        return nudged

    def relax(
        self,
        x: Tensor,
        y: Tensor | None = None,
        beta: complex | Tensor = 0.0,
        *,
        steps: int = 150,
        start: Tensor | None = None,
        relaxation: float = 1.0,
        tolerance: float | None = None,
    ) -> FixedPoint:
        """Let the network settle: u ← u + γ F(u).

        Args:
            x: input.
            y: target; needed where β is not 0.
            beta: β, real or complex; a tensor of any shape runs all its nudges at once and leads the result's shape.
            steps: T, the largest number of steps.
            start: u_0, (..., B, D); zeros by default.
            relaxation: γ; the paper's dynamics have 1, less of it keeps strong weights from oscillating.
            tolerance: stop when every sample's residual is at most this.

        Returns:
            State (*beta.shape, *members, B, D) and residual ‖F‖ of each sample. Gradients flow if they are enabled.
        """
        if start is None:
            start = self.rest(x)
        if isinstance(beta, Tensor):
            beta = beta.reshape(*beta.shape, *(1,) * start.ndim)
            start = start.expand(torch.broadcast_shapes(start.shape, beta.shape))
        if (beta.is_complex() if isinstance(beta, Tensor) else isinstance(beta, complex)) and not start.is_complex():
            start = start.to(start.dtype.to_complex())
        return iterate_fixed_point(
            self._map(x, y, beta),
            start,
            steps=steps,
            relaxation=relaxation,
            tolerance=tolerance,
            batch_axes=start.ndim - 1,
        )

    def rest(self, x: Tensor) -> Tensor:
        """The state of rest for an input: zeros (*members, B, D)."""
        parameter = next(self.parameters())
        return torch.zeros(*self.members, self._batch(x), self.units, dtype=parameter.dtype, device=parameter.device)

    def _batch(self, x: Tensor) -> int:
        return x.shape[-2]

    # Reading it

    def logits(self, u: Tensor) -> Tensor:
        """What the output block says: R a_out + r, or a_out itself without a read-out.

        Args:
            u: state (..., B, D).

        Returns:
            (..., B, classes).
        """
        a = self.activation(u[..., self.blocks[self.output]])
        return a if self.classes is None else real_product(a, self.readout_weight.mT) + self.readout_bias.unsqueeze(-2)

    def loss(self, u: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, or ½‖a_out − y‖² without a read-out, of each sample.

        Args:
            u: real state (..., B, D).
            y: as in `nudge_from`.

        Returns:
            (..., B).
        """
        logits, target = self.logits(u), self._target(y)
        if self.classes is None:
            return (logits - target).square().sum(dim=-1) / 2
        return -(target * torch.log_softmax(logits, dim=-1)).sum(dim=-1)

    def slope(self, u: Tensor) -> Tensor:
        """σ'(u) of a real state, same shape, without graph."""
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            found: Tensor = torch.autograd.grad(self.activation(at).sum(), at)[0]
        return found

    def jacobian(self, u: Tensor, x: Tensor, *, coordinates: Coordinates = "state") -> Tensor:
        """∂F/∂u of each sample without nudge; in "activation" coordinates that of a ↦ drive(a, x) − a, at a = σ(u).

        Args:
            u: real state (..., B, D).
            x: input.
            coordinates: "state" or "activation".

        Returns:
            (..., B, D, D), columns by what is varied. D forward derivatives at once: for small networks.
        """
        function, point = self.in_coordinates(u, x, coordinates)
        units = torch.eye(self.units, dtype=u.dtype, device=u.device)

        def column(unit: Tensor) -> Tensor:
            return push_forward(function, point, unit.expand_as(point))[1]

        columns: Tensor = torch.func.vmap(column, out_dims=-1)(units)
        return columns

    def linearised_drive(self, u: Tensor, x: Tensor) -> tuple[Drive, Drive]:
        """v ↦ ∂drive(σ(u), x)/∂u v and v ↦ its transpose times v, for many products at one state.

        Products with the matrix are gradients of those with its transpose, which plain autograd gives for any network.

        Args:
            u: real state (..., B, D).
            x: input.

        Returns:
            Two functions from (..., B, D) to the same shape, without graph.
        """
        drive = self.drive_from(x)
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            value = drive(self.activation(at))
            cotangent = torch.zeros_like(value).requires_grad_()
            pulled = torch.autograd.grad(value, at, cotangent, create_graph=True)[0]

        def push(v: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]
            return product

        def pull(v: Tensor) -> Tensor:
            product: Tensor = torch.autograd.grad(value, at, v, retain_graph=True)[0]
            return product

        return push, pull

    def in_coordinates(self, u: Tensor, x: Tensor, coordinates: Coordinates) -> tuple[Drive, Tensor]:
        """The field without nudge as a function of activations or of states, and the point that belongs to u.

        Raises:
            ValueError: other coordinates.
        """
        drive = self.drive_from(x)
        if coordinates == "activation":
            return (lambda a: drive(a) - a), self.activation(u)
        if coordinates == "state":
            return (lambda v: drive(self.activation(v)) - v), u
        raise ValueError(f"coordinates is {coordinates!r}; expected 'activation' or 'state'")

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A state, or anything of its shape, by blocks.

        Args:
            vector: (..., D).

        Returns:
            Block names to (..., *shape of the block).
        """
        return {name: vector[..., self.blocks[name]].unflatten(-1, shape) for name, shape in self.shapes.items()}

    def has_complex_derivative(self) -> bool:
        """Whether the activation passes `is_holomorphic`; looked up once."""
        if self._holomorphic is None:
            self._holomorphic = is_holomorphic(self.activation)
        return self._holomorphic

    def _target(self, y: Tensor) -> Tensor:
        if self.classes is None:
            outputs = math.prod(self.shapes[self.output])
            if not y.is_floating_point() or y.shape[-1:] != (outputs,):
                raise ValueError(
                    f"y has shape {tuple(y.shape)} and dtype {y.dtype}; expected floating-point (B, {outputs})"
                )
            return y
        dtype = self.readout_weight.dtype
        if y.is_floating_point():
            if y.shape[-1] != self.classes:
                raise ValueError(f"y has shape {tuple(y.shape)}; expected (B, {self.classes}), or classes as integers")
            return y.to(dtype)
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < self.classes:
            raise ValueError(f"y holds classes {int(y.min())} to {int(y.max())}; expected 0 to {self.classes - 1}")
        return F.one_hot(y.long(), self.classes).to(dtype)


def real_product(a: Tensor, matrix: Tensor) -> Tensor:
    """a @ matrix for real or complex a and a real matrix; leading axes that only a has cost one product, no copies.

    Args:
        a: (*lead, *members, B, K).
        matrix: (*members, K, L).

    Returns:
        (*lead, *members, B, L).
    """
    if a.is_complex():  # half the work of a complex product
        real, imaginary = real_product(torch.cat([a.real, a.imag], dim=-2), matrix).chunk(2, dim=-2)
        return torch.complex(real, imaginary)
    lead = a.ndim - matrix.ndim
    if matrix.ndim == 2 or lead <= 0:
        return a @ matrix
    # Broadcasting would copy each member's matrix for every leading index: rows are stacked instead.
    moved = a.flatten(0, lead - 1).movedim(0, -3)
    product = (moved.flatten(-3, -2) @ matrix).unflatten(-2, moved.shape[-3:-1])
    result: Tensor = product.movedim(-3, 0).unflatten(0, a.shape[:lead])
    return result


def push_forward(function: Drive, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """A function's value and its derivative along a direction."""
    found = torch.func.jvp(function, (point,), (direction,))
    return found[0], found[1]


def normal_parameter(
    shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None, dtype: torch.dtype | None
) -> nn.Parameter:
    """N(0, 1 / fan_in) entries, drawn on the CPU."""
    return nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype) / math.sqrt(fan_in))
