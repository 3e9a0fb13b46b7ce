"""The two-layer network in both parametrisations, and the tangent kernel of any network."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from working_papers.papers.permutation_learning.method._limit import check_count

Parametrisation = Literal["ntk", "standard"]


class TwoLayerReLU(nn.Module):
    """A ReLU layer and a linear one, without biases unless asked for.

    "ntk": f(x) = V relu(W x / √d) / √m with standard normal V and W, so that both layers learn at any width.
    "standard": f(x) = V relu(W x) with entries of variance 1/m in V and 1/d in W, which is the same function at the
    start, but learns nearly by V alone where m is large. Biases start at zero.

    Args:
        inputs: dimension d.
        width: m.
        outputs: o.
        parametrisation: "ntk" (the paper) or "standard" (the official code, which has biases).
        bias: whether both layers have biases.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the weights.

    Shapes:
        input (..., d), output (..., o).

    Raises:
        ValueError: a size below 1, or an unknown parametrisation.

    Source: the paper's section on the architecture; for "standard" the official code's model.py.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        *,
        parametrisation: Parametrisation = "ntk",
        bias: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("inputs", inputs), ("width", width), ("outputs", outputs)):
            check_count(name, size)
        if parametrisation not in get_args(Parametrisation):
            raise ValueError(f"parametrisation is {parametrisation!r}; expected 'ntk' or 'standard'")
        scales = (1 / math.sqrt(inputs), 1 / math.sqrt(width))
        ntk = parametrisation == "ntk"
        self.parametrisation = parametrisation
        self.multipliers = scales if ntk else (1.0, 1.0)
        deviations = (1.0, 1.0) if ntk else scales
        self.hidden = nn.Parameter(torch.randn(width, inputs, generator=generator, dtype=dtype) * deviations[0])
        self.readout = nn.Parameter(torch.randn(outputs, width, generator=generator, dtype=dtype) * deviations[1])
        self.hidden_bias = nn.Parameter(torch.zeros(width, dtype=dtype)) if bias else None
        self.readout_bias = nn.Parameter(torch.zeros(outputs, dtype=dtype)) if bias else None

    def extra_repr(self) -> str:
        (width, inputs), outputs = self.hidden.shape, len(self.readout)
        return f"{inputs}, {width}, {outputs}, parametrisation={self.parametrisation!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (..., d) to outputs (..., o)."""
        features = F.relu(F.linear(x * self.multipliers[0], self.hidden, self.hidden_bias))
        if self.multipliers[1] == 1:
            return F.linear(features, self.readout, self.readout_bias)
        output = F.linear(features, self.readout) * self.multipliers[1]
        return output if self.readout_bias is None else output + self.readout_bias


def tangent_kernel(model: nn.Module, x: Tensor, z: Tensor | None = None) -> Tensor:
    """The tangent kernel of a network as it stands: inner products of its outputs' gradients by the parameters.

    Args:
        model: maps (b, d) to (b, o).
        x: (b, d).
        z: (c, d); None for x.

    Returns:
        (b, c, o, o). For `TwoLayerReLU` in the NTK parametrisation it tends to the limit kernel on the diagonal of the
        last two axes and to zero off it, at the rate 1/√m.

    Source: Jacot et al. 2018, "Neural Tangent Kernel".
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def gradients(points: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = jacrev(lambda p: functional_call(model, p, (points,)))(parameters)
        return {name: gradient.flatten(2) for name, gradient in found.items()}

    left = gradients(x)
    right = left if z is None else gradients(z)
    return torch.stack([torch.einsum("bop,cqp->bcoq", left[name], right[name]) for name in left]).sum(dim=0)
