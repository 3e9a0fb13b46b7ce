"""Networks of fully connected blocks: one block matrix, one matrix product a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from working_papers.papers.jacobian_homeostasis.method._activations import Activation
from working_papers.papers.jacobian_homeostasis.method._model import (
    Coordinates,
    Drive,
    EquilibriumModel,
    normal_parameter,
    real_product,
)

INPUT = "input"
Feedback = Literal["independent", "symmetric", "loop"]


@dataclass(frozen=True)
class Connection:
    """Weights from one block to another.

    Attributes:
        source: a block's name, or "input".
        target: a block's name.
        bias: whether the target gets a bias with it; the paper has one on forward connections.
        tied: use the transposed weights of the connection from target to source, which must be there and have its own.
    """

    source: str
    target: str
    bias: bool = False
    tied: bool = False

    @property
    def name(self) -> str:
        """Its name among the parameters."""
        return f"{self.source}_to_{self.target}"


class EquilibriumNet(EquilibriumModel):
    """Blocks of units with full connections between any of them: drive = W a + B x + b.

    Args:
        inputs: number of input numbers.
        sizes: name and number of units of each block.
        connections: which blocks feed which, see `Connection`.
        classes: number of classes of the read-out; None for the squared loss on the output block itself.
        output: the block that is read and nudged; by default the last.
        activation: "sigmoid4", "dsilu" or an elementwise function.
        members: shape of leading axes of independent networks, trained and relaxed together.
        generator: source of randomness, on the CPU.
        dtype: of the parameters.

    Shapes:
        x (B, inputs) or (*members, B, inputs); states (..., *members, B, D).

    Raises:
        ValueError: unknown or repeated connections, a tied connection without its partner, or sizes below 1.

    Source: the paper's perceptrons; weights N(0, 1 / fan-in), zero biases.
    """

    def __init__(
        self,
        inputs: int,
        sizes: Mapping[str, int],
        connections: Sequence[Connection],
        *,
        classes: int | None,
        output: str | None = None,
        activation: str | Activation = "sigmoid4",
        members: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if inputs < 1:
            raise ValueError(f"inputs is {inputs}; expected 1 or more")
        _check_connections(sizes, connections)
        widths = {INPUT: inputs, **sizes}
        weights = {
            each.name: normal_parameter(
                (*members, widths[each.target], widths[each.source]), widths[each.source], generator, dtype
            )
            for each in connections
            if not each.tied
        }
        super().__init__(
            {name: (size,) for name, size in sizes.items()},
            classes=classes,
            output=output,
            activation=activation,
            members=members,
            generator=generator,
            dtype=dtype,
        )
        self.inputs = inputs
        self.connections = tuple(connections)
        self.weights = nn.ParameterDict(weights)
        self.biases = nn.ParameterDict(
            {
                each.name: nn.Parameter(torch.zeros(*members, widths[each.target], dtype=dtype))
                for each in connections
                if each.bias
            }
        )

    def weight(self, source: str, target: str) -> Tensor:
        """The weights of a connection, (*members, target units, source units).

        Raises:
            ValueError: there is no such connection.
        """
        for each in self.connections:
            if (each.source, each.target) == (source, target):
                name = Connection(target, source).name if each.tied else each.name
                found: Tensor = self.weights[name]
                return found.mT if each.tied else found
        raise ValueError(f"source is {source!r} and target is {target!r}; expected one of the network's connections")

    def block_matrix(self) -> Tensor:
        """W, all recurrent weights, (*members, D, D): rows are targets, columns sources."""
        there = {(each.source, each.target) for each in self.connections}
        like = self.weights[next(iter(self.weights))]
        rows = []
        for target in self.blocks:
            row = [
                self.weight(source, target)
                if (source, target) in there
                else like.new_zeros(*self.members, *self.shapes[target], *self.shapes[source])
                for source in self.blocks
            ]
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)

    def input_drive(self, x: Tensor) -> Tensor:
        """B x + b, (*members, B, D).

        Args:
            x: (B, inputs) or (*members, B, inputs).

        Raises:
            ValueError: x has another shape.
        """
        if x.ndim < 2 or x.shape[-1] != self.inputs:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (..., B, {self.inputs})")
        parts = []
        for target in self.blocks:
            part = x.new_zeros(*self.members, x.shape[-2], *self.shapes[target])
            for each in self.connections:
                if each.target == target and each.source == INPUT:
                    part = part + x @ self.weights[each.name].mT
                if each.target == target and each.bias:
                    part = part + self.biases[each.name].unsqueeze(-2)
            parts.append(part)
        return torch.cat(parts, dim=-1)

    def drive_from(self, x: Tensor) -> Drive:
        """W a + (B x + b) as a function of a; see `EquilibriumModel.drive_from`.

        Args:
            x: (B, inputs) or (*members, B, inputs).
        """
        constant, transposed = self.input_drive(x), self.block_matrix().mT
        return lambda a: real_product(a, transposed) + constant

    def linearised_drive(self, u: Tensor, x: Tensor) -> tuple[Drive, Drive]:
        """v ↦ W σ'(u) v and v ↦ σ'(u) Wᵀ v; see `EquilibriumModel.linearised_drive`.

        Args:
            u: real state (..., B, D).
            x: input; they do not depend on it once u is given.
        """
        with torch.no_grad():
            slope, matrix = self.slope(u), self.block_matrix()
        return (lambda v: (slope * v) @ matrix.mT), (lambda v: slope * (v @ matrix))

    def jacobian(self, u: Tensor, x: Tensor, *, coordinates: Coordinates = "state") -> Tensor:
        """W σ'(u) − I, or W − I in "activation" coordinates, as (..., B, D, D).

        Args:
            u: real state (..., B, D).
            x: input; the Jacobian does not depend on it once u is given.
            coordinates: "state" or "activation".
        """
        one = torch.eye(self.units, dtype=u.dtype, device=u.device)
        matrix = self.block_matrix().unsqueeze(-3)
        if coordinates == "state":
            return matrix * self.slope(u).unsqueeze(-2) - one
        if coordinates == "activation":
            return (matrix - one).expand(*u.shape, self.units)
        raise ValueError(f"coordinates is {coordinates!r}; expected 'activation' or 'state'")

    def weight_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Weights of each forward connection, which is the one with the bias, and the transposed weights back."""
        there = {(each.source, each.target) for each in self.connections}
        return [
            (self.weight(each.source, each.target), self.weight(each.target, each.source).mT)
            for each in self.connections
            if each.bias and (each.target, each.source) in there
        ]


def layered(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    feedback: Feedback = "independent",
    angle: float | Sequence[float] = 90.0,
    members: tuple[int, ...] = (),
    loss: Literal["cross-entropy", "squared"] = "cross-entropy",
    activation: str | Activation = "sigmoid4",
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> EquilibriumNet:
    """A perceptron with feedback: blocks "layer1", "layer2", ..., "output".

    Args:
        inputs: number of input numbers; 784 in the paper.
        hidden: units of each hidden block; (256, 256) in the paper.
        outputs: units of the output block, and number of classes.
        feedback: "independent", each block feeds the one below through weights of its own; "symmetric", through the
            transposed forward weights; "loop", only the output feeds the first block, so that nothing is reciprocal.
        angle: in degrees, where independent backward weights start: sin(angle) times their own draw plus cos(angle)
            times the transposed forward weights. A sequence makes a network of each, on a leading axis, from one draw.
        members: shape of further leading axes of independently drawn networks.
        loss: "cross-entropy" puts a linear read-out on the output block, "squared" compares the block itself.
        activation: "sigmoid4", "dsilu" or an elementwise function.
        generator: source of randomness, on the CPU.
        dtype: of the parameters.

    Returns:
        The network.

    Raises:
        ValueError: a size below 1, no hidden block, another feedback or loss, or angles without independent feedback.

    Source: the paper's Fashion-MNIST networks, `arch/` and `utils/funcs.py` of the official code.
    """
    if not hidden:
        raise ValueError("hidden is empty; expected at least one number of units")
    if loss not in ("cross-entropy", "squared"):
        raise ValueError(f"loss is {loss!r}; expected 'cross-entropy' or 'squared'")
    if feedback not in ("independent", "symmetric", "loop"):
        raise ValueError(f"feedback is {feedback!r}; expected 'independent', 'symmetric' or 'loop'")
    sizes = {f"layer{k + 1}": size for k, size in enumerate(hidden)} | {"output": outputs}
    names = list(sizes)
    connections = [Connection(INPUT, names[0], bias=True)]
    connections += [Connection(low, high, bias=True) for low, high in pairwise(names)]
    if feedback == "loop":
        if len(hidden) < 2:
            raise ValueError(f"hidden is {tuple(hidden)}; expected two blocks or more for a loop without pairs")
        connections.append(Connection("output", names[0]))
    else:
        tied = feedback == "symmetric"
        connections += [Connection(high, low, tied=tied) for low, high in pairwise(names)]
    angles = torch.as_tensor(angle, dtype=torch.float64)
    if feedback != "independent" and (angles.ndim or float(angles) != 90.0):
        raise ValueError(f"angle is {angle}; expected the default with {feedback} feedback, which has none")
    net = EquilibriumNet(
        inputs,
        sizes,
        connections,
        classes=outputs if loss == "cross-entropy" else None,
        activation=activation,
        members=members,
        generator=generator,
        dtype=dtype,
    )
    if feedback == "independent":
        _rotate(net, names, angles)
    return net


@torch.no_grad()
def _rotate(net: EquilibriumNet, names: Sequence[str], angles: Tensor) -> None:
    """Mix the transposed forward weights into the backward ones; several angles become a leading axis."""
    shape = (*angles.shape, *(1,) * len(net.members), 1, 1)
    for low, high in pairwise(names):
        back, forth = net.weights[Connection(high, low).name], net.weight(low, high)
        sine, cosine = (f(angles * (math.pi / 180)).reshape(shape).to(back.dtype) for f in (torch.sin, torch.cos))
        net.weights[Connection(high, low).name] = nn.Parameter(sine * back + cosine * forth.mT)
    if angles.ndim:
        lead = tuple(angles.shape)
        for parameters in (net.weights, net.biases):
            for name, parameter in parameters.items():
                if parameter.ndim == len(net.members) + (2 if parameters is net.weights else 1):
                    parameters[name] = nn.Parameter(parameter.expand(*lead, *parameter.shape).clone())
        for name in ("readout_weight", "readout_bias"):
            if hasattr(net, name):
                parameter = getattr(net, name)
                setattr(net, name, nn.Parameter(parameter.expand(*lead, *parameter.shape).clone()))
        net.members = (*lead, *net.members)


def _check_connections(sizes: Mapping[str, int], connections: Sequence[Connection]) -> None:
    if INPUT in sizes:
        raise ValueError(f"sizes has a block {INPUT!r}; expected another name, since that one is the input's")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"sizes gives block {name!r} {size} units; expected 1 or more")
    own = {(each.source, each.target) for each in connections if not each.tied}
    seen: set[tuple[str, str]] = set()
    for each in connections:
        pair = (each.source, each.target)
        if each.source not in (INPUT, *sizes) or each.target not in sizes:
            raise ValueError(
                f"connections has {each.source!r} to {each.target!r}; expected names of blocks or {INPUT!r}"
            )
        if pair in seen:
            raise ValueError(f"connections has {each.source!r} to {each.target!r} twice")
        if each.tied and (each.target, each.source) not in own:
            raise ValueError(
                f"connections ties {each.source!r} to {each.target!r}; expected untied weights from {each.target!r} to "
                f"{each.source!r}"
            )
        seen.add(pair)
    if not any(source == INPUT for source, _ in own):
        raise ValueError(f"connections has none from {INPUT!r}; expected at least one")
