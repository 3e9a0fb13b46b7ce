"""A value with its derivatives in x and t, pushed through networks in one forward pass.

Letters: B = points, F = features, M = members of a stack of networks; `...` = any number of leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor], Tensor]


class Jet(NamedTuple):
    """A function of (x, t) at points, with the derivatives that transport equations need.

    Attributes:
        value: (..., B, F).
        x: first derivative in x, shape of the value.
        t: first derivative in t, shape of the value.
        xx: second derivative in x, shape of the value.
    """

    value: Tensor
    x: Tensor
    t: Tensor
    xx: Tensor


def differentiate(function: Function, x: Tensor, t: Tensor, mode: Literal["forward", "reverse"] = "forward") -> Jet:
    """The jet of any function of points that treats each point by itself.

    Forward mode carries derivatives along with the values and needs no graph of them; reverse mode is there for layers
    without a forward derivative. The result can be differentiated with respect to parameters in both.

    Args:
        function: takes x and t (..., B, 1) and returns (..., B, F); in reverse mode F must be 1.
        x: (..., B, 1).
        t: shape of x.
        mode: how derivatives are computed.

    Returns:
        The jet at the points.

    Raises:
        ValueError: shapes that differ, or an unknown mode.
    """
    if x.shape != t.shape:
        raise ValueError(f"t has shape {tuple(t.shape)}; expected the shape of x, {tuple(x.shape)}")
    if mode == "forward":
        one = torch.ones_like(x)

        def along_x(x: Tensor) -> tuple[Tensor, Tensor]:
            pair: tuple[Tensor, Tensor] = _pushed(lambda place: function(place, t), x, one)
            return pair

        (value, _), (slope, curvature) = _pushed(along_x, x, one)
        _, rate = _pushed(lambda time: function(x, time), t, one)
        return Jet(value, slope, rate, curvature)
    if mode != "reverse":
        raise ValueError(f"mode is {mode!r}; expected 'forward' or 'reverse'")
    with torch.enable_grad():
        x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
        value = function(x, t)
        slope, rate = _gradient(value, x), _gradient(value, t)
        return Jet(value, slope, rate, _gradient(slope, x))


def _pushed(function: Callable[[Tensor], Any], place: Tensor, direction: Tensor) -> Any:
    """What the function returns, and its derivative along the direction."""
    return torch.func.jvp(function, (place,), (direction,))


def _gradient(value: Tensor, place: Tensor) -> Tensor:
    """Derivative of each entry by its own point; zero where the value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(place)
    (found,) = torch.autograd.grad(value.sum(), place, create_graph=True, allow_unused=True)
    return torch.zeros_like(place) if found is None else found


class PeriodicFeatures(nn.Module):
    """Turns x and t into (cos, sin, t), so that every network on top is exactly periodic in x.

    Args:
        period: length of the line; None gives the plain features (x, t).

    Raises:
        ValueError: a period that is not positive.

    Source: the paper enforces its periodic boundary conditions exactly in this way.
    """

    def __init__(self, period: float | None = 2 * math.pi) -> None:
        super().__init__()
        if period is not None and not period > 0:
            raise ValueError(f"period is {period}; expected a positive number or None")
        self.period = period

    @property
    def features(self) -> int:
        """Number of features."""
        return 2 if self.period is None else 3

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The features.

        Args:
            x: (..., B, 1).
            t: shape of x.

        Returns:
            (..., B, 3), or (..., B, 2) without a period.
        """
        if self.period is None:
            return torch.cat([x, t], dim=-1)
        phase = x * (2 * math.pi / self.period)
        return torch.cat([torch.cos(phase), torch.sin(phase), t], dim=-1)

    def jet(self, x: Tensor, t: Tensor) -> Jet:
        """The features with their derivatives, in closed form.

        Args:
            x: (..., B, 1).
            t: shape of x.
        """
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        if self.period is None:
            pairs = [x, t], [one, zero], [zero, one], [zero, zero]
            return Jet(*(torch.cat(pair, dim=-1) for pair in pairs))
        wave = 2 * math.pi / self.period
        cos, sin = torch.cos(wave * x), torch.sin(wave * x)
        rows = (
            [cos, sin, t],
            [-wave * sin, wave * cos, zero],
            [zero, zero, one],
            [-(wave**2) * cos, -(wave**2) * sin, zero],
        )
        return Jet(*(torch.cat(row, dim=-1) for row in rows))

    def extra_repr(self) -> str:
        """The period, in the module's printed form."""
        return f"period={self.period}"


class TanhNetwork(nn.Module):
    """A multilayer perceptron with tanh whose derivatives come with the value, for one network or a stack of them.

    All members of a stack go through one batched product a layer. Weights start as Glorot's normal, biases at zero.

    Args:
        inputs: number of features F.
        width: units of each hidden layer.
        hidden: number of hidden layers.
        outputs: number of outputs.
        members: leading axes of the parameters, e.g. (4,) for four networks side by side.
        zero_output: start with the last layer at zero; right for a displacement, for then no paths cross at the start.
        generator: of the initial weights.
        dtype: of the parameters.

    Raises:
        ValueError: a size below one.

    Source: the paper's branches are such networks, 50 units wide, with 5 hidden layers for the state and 2 for the
    position. The official code lets both branches share layers; this follows the paper, where they are apart.
    """

    def __init__(
        self,
        inputs: int,
        width: int = 50,
        hidden: int = 5,
        outputs: int = 1,
        *,
        members: Sequence[int] = (),
        zero_output: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "width": width, "hidden": hidden, "outputs": outputs}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if any(size < 1 for size in members):
            raise ValueError(f"members is {tuple(members)}; expected sizes of at least 1")
        self.inputs = inputs
        widths = [inputs, *[width] * hidden, outputs]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            normal = torch.randn(*members, before, after, generator=generator, dtype=dtype)
            self.weights.append(nn.Parameter(normal * math.sqrt(2 / (before + after))))
            self.biases.append(nn.Parameter(torch.zeros(*members, 1, after, dtype=dtype)))
        if zero_output:
            nn.init.zeros_(self.weights[-1])

    def forward(self, features: Tensor) -> Tensor:
        """The outputs.

        Args:
            features: (..., B, F); the leading axes broadcast with those of the members.

        Returns:
            (..., B, outputs).

        Raises:
            ValueError: another number of features.
        """
        self._expect(features)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            features = (torch.tanh(features) if layer else features) @ weight + bias
        return features

    def jet(self, features: Jet) -> Jet:
        """The outputs with their derivatives: values and derivatives go through each layer side by side.

        Args:
            features: the jet of the features, (..., B, F).

        Returns:
            The jet of the outputs, (..., B, outputs).
        """
        self._expect(features.value)
        points = features.value.shape[-2]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows = torch.cat(_tanh_jet(features) if layer else features, dim=-2) @ weight
            value, *derivatives = rows.split(points, dim=-2)
            features = Jet(value + bias, *derivatives)
        return features

    def _expect(self, features: Tensor) -> None:
        if features.shape[-1] != self.inputs:
            raise ValueError(f"features has shape {tuple(features.shape)}; expected {self.inputs} in the last axis")


def _tanh_jet(jet: Jet) -> Jet:
    """tanh of a jet, by the chain rule."""
    value = torch.tanh(jet.value)
    slope = 1 - value * value
    bend = value * jet.x
    return Jet(value, slope * jet.x, slope * jet.t, slope * (jet.xx - 2 * bend * jet.x))
