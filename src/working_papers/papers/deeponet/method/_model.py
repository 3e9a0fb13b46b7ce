"""The network: a branch and a trunk that meet in an inner product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn


class DeepONet(nn.Module):
    """A network that learns an operator: inner products of a branch's coefficients and a trunk's basis functions.

    Branch and trunk may be any modules, such as a convolutional branch for inputs on a grid or a trunk with Fourier
    features. With more than one output (an extension: the paper's operators have one), the first p / outputs
    numbers of branch and trunk make the first output, and so on.

    Args:
        branch: maps input functions (B, ...) to coefficients (B, p).
        trunk: maps queries (..., d) to basis functions (..., p).
        bias: whether a trainable number, at first zero, is added to each output.
        outputs: number of components of the output function; None for one without an axis of its own.

    Raises:
        ValueError: `outputs` is not positive.

    Source: the paper's unstacked and stacked DeepONet; the scalar bias is the official code's `use_bias`.
    """

    bias: nn.Parameter | None

    def __init__(self, branch: nn.Module, trunk: nn.Module, bias: bool = True, outputs: int | None = None) -> None:
        super().__init__()
        if outputs is not None and outputs < 1:
            raise ValueError(f"outputs is {outputs}; expected None or a positive number")
        self.branch = branch
        self.trunk = trunk
        self.outputs = outputs
        self.bias = nn.Parameter(torch.zeros(() if outputs is None else outputs)) if bias else None

    @classmethod
    def mlp(
        cls,
        sensors: int,
        query_dim: int,
        width: int = 40,
        depth: int = 2,
        p: int = 40,
        activation: Callable[[], nn.Module] = nn.ReLU,
        stacked: bool = False,
        outputs: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """The paper's network of two perceptrons; the last layer of the branch is linear, that of the trunk is not.

        Args:
            sensors: m, at which input functions are read.
            query_dim: d, coordinates of a query.
            width: neurons of each hidden layer.
            depth: linear layers of the branch, and of the trunk.
            p: basis functions.
            activation: makes the nonlinearity, `torch.nn.ReLU` for instance.
            stacked: p separate branch networks of one output each instead of one network with p outputs.
            outputs: components of the output function, see the class.
            generator: of the initial weights; by default torch's own.

        Returns:
            The network, on the CPU, in torch's default dtype.

        Raises:
            ValueError: a size is not positive, or p is not a multiple of `outputs`.
        """
        if outputs is not None and (outputs < 1 or p % outputs):
            raise ValueError(f"p is {p}; expected a multiple of outputs={outputs}")
        if depth < 1:
            raise ValueError(f"depth is {depth}; expected at least 1")
        hidden = [width] * (depth - 1)
        branch: nn.Module
        if stacked:
            branch = StackedBranch([sensors, *hidden, 1], p, activation, generator=generator)
        else:
            branch = perceptron([sensors, *hidden, p], activation, generator=generator)
        trunk = perceptron([query_dim, *hidden, p], activation, last_activation=True, generator=generator)
        return cls(branch, trunk, outputs=outputs)

    def forward(self, functions: Tensor, queries: Tensor, cartesian: bool = False) -> Tensor:
        """Evaluate G(u)(y).

        Args:
            functions: u, (B, m) values at the sensors, or whatever the branch takes, batch first.
            queries: y, in one of three layouts: (B, d), one for each function; (B, Q, d), each function's own Q; with
                `cartesian` (Q, d), the same Q for all functions, at the price of one matrix product.
            cartesian: whether every function meets every query.

        Returns:
            (B,) or (B, Q), in the layout of the queries; with `outputs` one more axis at the end.

        Raises:
            ValueError: the shapes of functions and queries, or of branch and trunk, do not fit.
        """
        coefficients, basis = self.branch(functions), self.trunk(queries)
        self._expect_to_fit(coefficients, basis, cartesian)
        if self.outputs is not None:
            coefficients = coefficients.unflatten(-1, (self.outputs, -1))
            basis = basis.unflatten(-1, (self.outputs, -1))
        result: Tensor
        if cartesian and self.outputs is None:
            result = coefficients @ basis.mT
        elif cartesian:
            result = torch.einsum("bop,qop->bqo", coefficients, basis)
        elif basis.ndim > coefficients.ndim and self.outputs is None:
            result = torch.bmm(basis, coefficients.unsqueeze(-1)).squeeze(-1)
        elif basis.ndim > coefficients.ndim:
            result = torch.einsum("bop,bqop->bqo", coefficients, basis)
        else:
            result = (coefficients * basis).sum(dim=-1)
        return result if self.bias is None else result + self.bias

    def extra_repr(self) -> str:
        """What the printed module says of itself."""
        return "" if self.outputs is None else f"outputs={self.outputs}"

    def _expect_to_fit(self, coefficients: Tensor, basis: Tensor, cartesian: bool) -> None:
        if coefficients.ndim != 2 or coefficients.shape[-1] != basis.shape[-1]:
            raise ValueError(
                f"branch returned shape {tuple(coefficients.shape)} and trunk {tuple(basis.shape)}; "
                "expected (B, p) and (..., p) with the same p"
            )
        if self.outputs is not None and basis.shape[-1] % self.outputs:
            raise ValueError(
                f"branch and trunk return p={basis.shape[-1]}; expected a multiple of {self.outputs} outputs"
            )
        if cartesian and basis.ndim != 2:
            raise ValueError(f"queries gave a basis of shape {tuple(basis.shape)}; with cartesian (Q, p) is expected")
        if not cartesian and (basis.ndim not in (2, 3) or len(basis) != len(coefficients)):
            raise ValueError(
                f"functions gave coefficients {tuple(coefficients.shape)} and queries a basis {tuple(basis.shape)}; "
                "expected as many queries as functions, (B, p), or (B, Q, p); for the same queries in every function "
                "give cartesian=True"
            )


class StackedBranch(nn.Module):
    """p separate perceptrons of one output each on the same input, evaluated together.

    Args:
        sizes: neurons of each layer of one network, the m inputs first, 1 last.
        networks: their number p.
        activation: makes the nonlinearity between layers; it must act on each number alone.
        generator: of the initial weights.

    Raises:
        ValueError: a size is not positive, or the last is not 1.

    Source: the branch of the paper's stacked DeepONet.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        networks: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _expect_sizes(sizes)
        if sizes[-1] != 1 or networks < 1:
            raise ValueError(
                f"sizes are {list(sizes)}, networks is {networks}; expected 1 as last size and networks > 0"
            )
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(networks, *pair)) for pair in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(networks, 1, after)) for _, after in pairs)
        self.activation = activation()
        for weight in self.weights:  # Glorot normal, with the sizes of one network
            nn.init.normal_(weight, std=math.sqrt(2 / sum(weight.shape[1:])), generator=generator)

    def forward(self, functions: Tensor) -> Tensor:
        """Evaluate the networks.

        Args:
            functions: (B, m).

        Returns:
            (B, p).
        """
        networks = len(self.weights[0])
        # All first layers are one matrix product; from then on every network has an input of its own.
        first = functions @ self.weights[0].transpose(0, 1).flatten(1)
        x = first.unflatten(-1, (networks, -1)).transpose(0, 1) + self.biases[0]
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            x = torch.baddbmm(bias, self.activation(x), weight)
        coefficients: Tensor = x.squeeze(-1).mT
        return coefficients

    def extra_repr(self) -> str:
        """What the printed module says of itself."""
        sizes = [self.weights[0].shape[1], *(weight.shape[2] for weight in self.weights)]
        return f"networks={len(self.weights[0])}, sizes={sizes}"


def perceptron(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    last_activation: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A fully connected network with Glorot normal weights and zero biases.

    Args:
        sizes: neurons of each layer, inputs first.
        activation: makes the nonlinearity between layers.
        last_activation: whether one follows the last layer, too, as in a trunk.
        generator: of the initial weights; by default torch's own.

    Returns:
        The network, (..., sizes[0]) to (..., sizes[-1]).

    Raises:
        ValueError: fewer than two sizes, or one that is not positive.
    """
    _expect_sizes(sizes)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        linear = nn.Linear(before, after)
        nn.init.xavier_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


def _expect_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes are {list(sizes)}; expected at least two positive numbers")
