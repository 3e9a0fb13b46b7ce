"""Ensembles: many random perceptrons of one shape at once.

Letters: R = networks, B = inputs, n_0 = their entries, L = layers of preactivations, n = width, G = the random kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from working_papers.papers.deep_learning_theory.method.criticality import check_variances
from working_papers.papers.deep_learning_theory.method.gaussian import Activation

# Weights drawn at once: on a CPU they are then still in the cache when they are used, a GPU is kept busy.
BLOCK_NUMBERS, GPU_BLOCK_NUMBERS = 2**18, 2**26


@torch.no_grad()
def sample_metric(
    act: Activation,
    C_b: float,
    C_W: float,
    x: Tensor,
    widths: Sequence[int],
    *,
    networks: int,
    uniform: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The random kernel G of many random perceptrons at every layer: G^{l+1} = C_b + C_W / n Σ_j σ(z_j)².

    All networks run at once, in blocks that fit the processor's cache; weights are drawn layer by layer and forgotten.

    Args:
        act: the activation, called with (networks, B, n).
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        x: inputs (B, n_0) for all networks, or (R, B, n_0) for each its own; their dtype is computed in.
        widths: neurons of the hidden layers; there are L - 1 of them.
        networks: R, 1 or more.
        uniform: draw parameters of the same variances from uniform instead of normal distributions.
        generator: source of random numbers, on the device of x; by default the global one.

    Returns:
        (L, R, B). The draws depend on `networks`: one call for many is not a number of calls for one.

    Raises:
        ValueError: numbers of networks or neurons below 1, negative variances, inputs of another shape.

    Source: book, section 4.3 (the stochastic metric, whose variance is the four-point vertex over the width).
    """
    check_variances(C_b, C_W)
    if networks < 1 or any(width < 1 for width in widths):
        raise ValueError(f"networks is {networks} and widths is {list(widths)}; expected numbers of 1 or more")
    if x.ndim not in (2, 3) or (x.ndim == 3 and len(x) != networks) or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}; expected (B, n_0) or ({networks}, B, n_0), "
            "floating point"
        )
    if x.ndim == 2:
        x = x.expand(networks, -1, -1)

    def draw(*shape: int, variance: float) -> Tensor:
        if uniform:
            unit = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
            return unit.sub_(0.5).mul_(math.sqrt(12 * variance))
        normal = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
        return normal.mul_(math.sqrt(variance))

    largest = max((n * m for n, m in zip(widths, (x.shape[-1], *widths), strict=False)), default=1)
    numbers = BLOCK_NUMBERS if x.device.type == "cpu" else GPU_BLOCK_NUMBERS
    blocks = []
    for hidden in x.split(max(1, numbers // largest)):
        metric = [C_b + C_W * hidden.square().mean(dim=-1)]
        for width in widths:
            count, _, entries = hidden.shape
            weight = draw(count, width, entries, variance=C_W / entries)
            hidden = hidden @ weight.mT
            if C_b > 0:
                hidden = hidden + draw(count, 1, width, variance=C_b)
            hidden = act(hidden)
            metric.append(C_b + C_W * hidden.square().mean(dim=-1))
        blocks.append(torch.stack(metric))
    return torch.cat(blocks, dim=1)


class Perceptrons(nn.Module):
    """Plain perceptrons of one shape as a single module, one a seed: z¹ = b + W x, z^{l+1} = b + W σ(z^l).

    Each network's parameters depend on its own seed alone, so that any number of them together are the same networks
    as one at a time. The networks do not influence one another; with an optimiser that treats every parameter by
    itself (SGD, Adam), training the sum of their losses trains each on its own.

    Args:
        act: the activation.
        sizes: n_0, the widths of the hidden layers, and the number of outputs.
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        seeds: one a network.
        default: PyTorch's initialisation of linear layers in place of C_b and C_W: weights and biases uniform with
            variance 1 / (3 fan_in).

    Raises:
        ValueError: fewer than two sizes, sizes below 1, no seeds, negative variances.
    """

    def __init__(
        self,
        act: Activation,
        sizes: Sequence[int],
        C_b: float,
        C_W: float,
        *,
        seeds: Sequence[int],
        default: bool = False,
    ) -> None:
        super().__init__()
        check_variances(C_b, C_W)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes is {list(sizes)}; expected at least two numbers of 1 or more")
        if len(seeds) == 0:
            raise ValueError("seeds is empty; expected one a network")
        self.act = act
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(*shape: int, variance: float) -> nn.Parameter:
            if default:
                units = [torch.rand(shape, generator=each) * 2 - 1 for each in generators]
                return nn.Parameter(torch.stack(units) * math.sqrt(3 * variance))
            normal = [torch.randn(shape, generator=each) for each in generators]
            return nn.Parameter(torch.stack(normal) * math.sqrt(variance))

        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for entries, neurons in itertools.pairwise(sizes):
            self.weights.append(draw(neurons, entries, variance=(1 / 3 if default else C_W) / entries))
            self.biases.append(draw(1, neurons, variance=1 / (3 * entries) if default else C_b))

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """Preactivations of every layer.

        Args:
            x: inputs (B, n_0) for all networks, or (R, B, n_0) for each its own.

        Returns:
            L tensors (R, B, n).
        """
        layers: list[Tensor] = []
        hidden = x.expand(len(self.weights[0]), -1, -1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            layers.append(torch.baddbmm(bias, self.act(layers[-1]) if layers else hidden, weight.mT))
        return layers

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's preactivations (R, B, outputs), of inputs (B, n_0) or (R, B, n_0)."""
        return self.preactivations(x)[-1]
