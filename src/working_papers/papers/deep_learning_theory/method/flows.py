"""Recursions from layer to layer: kernel, tangent kernel, and the fluctuations at finite width.

Networks have no nonlinearity after the last layer: z¹ = b + W x and z^{l+1} = b + W σ(z^l), with independent normal
parameters, E[b²] = C_b and E[W²] = C_W / fan_in. Results start with the first layer of preactivations, z¹.

Letters: B = inputs, n_0 = their entries, L = layers of preactivations, n = width, K = kernel, G = the random kernel of
one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.deep_learning_theory.method.criticality import averages, check_variances, curvature
from working_papers.papers.deep_learning_theory.method.gaussian import (
    Activation,
    as_kernel,
    in_double,
    kinks_of,
    nodes,
    pair_means,
)


def first_kernel(x: Tensor, C_b: float, C_W: float) -> Tensor:
    """The kernel of the first layer, K¹_ab = C_b + C_W x_a · x_b / n_0.

    Args:
        x: inputs (B, n_0).
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.

    Returns:
        (B, B) float64.

    Raises:
        ValueError: inputs that are not a floating-point matrix; negative variances.

    Source: book, section 4.1.
    """
    check_variances(C_b, C_W)
    if x.ndim != 2 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}; expected (B, n_0), floating point")
    x = x.detach().double()
    return C_b + C_W * (x @ x.mT) / x.shape[1]


def kernel_flow(act: Activation, C_b: float, C_W: float, x: Tensor, depth: int) -> Tensor:
    """The kernel of every layer at infinite width, K^{l+1}_ab = C_b + C_W ⟨σ_a σ_b⟩.

    Args:
        act: the activation.
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        x: inputs (B, n_0).
        depth: L, 1 or more.

    Returns:
        (L, B, B) float64 on the device of x, whatever its dtype; not differentiable.

    Raises:
        ValueError: depth below 1, negative variances, inputs that are not a floating-point matrix.

    Source: book, sections 4.3 and 5.1.
    """
    return ntk_flow(act, C_b, C_W, x, depth)[0]


def ntk_flow(
    act: Activation,
    C_b: float,
    C_W: float,
    x: Tensor,
    depth: int,
    *,
    lambda_b: float = 1.0,
    lambda_W: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Kernel and neural tangent kernel of every layer at infinite width.

    Θ^{l+1}_ab = λ_b + λ_W ⟨σ_a σ_b⟩ + C_W ⟨σ'_a σ'_b⟩ Θ^l_ab, where biases have learning rate λ_b and weights
    λ_W / fan_in, relative to a global one. With PyTorch's usual single rate, λ_W would be fan_in.

    Args:
        act: the activation.
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        x: inputs (B, n_0).
        depth: L, 1 or more.
        lambda_b: relative learning rate of biases.
        lambda_W: relative learning rate of weights, times fan_in.

    Returns:
        Kernels and tangent kernels, each (L, B, B) float64 on the device of x; not differentiable.

    Raises:
        ValueError: depth below 1, negative variances, inputs that are not a floating-point matrix.

    Source: book, chapter 8; for the two kinds of learning rate, section 7.1.
    """
    _check_depth(depth)
    act = in_double(act)
    kernel = first_kernel(x, C_b, C_W)
    tangent = lambda_b + lambda_W * (kernel - C_b) / C_W
    kernels, tangents = [kernel], [tangent]
    for _ in range(depth - 1):
        values, slopes = pair_means(act, kernel)
        kernel, tangent = C_b + C_W * values, lambda_b + lambda_W * values + C_W * slopes * tangent
        kernels.append(kernel)
        tangents.append(tangent)
    return torch.stack(kernels), torch.stack(tangents)


@dataclass(frozen=True)
class MetricMoments:
    """The random kernel G of one input, layer by layer, to first order in 1 / width.

    G^{l+1} = C_b + C_W / n Σ_j σ(z_j)² is the variance that the neurons of layer l + 1 share, given those of layer l.

    Attributes:
        kernel: (L,), K, the mean at infinite width.
        mean: (L,), E[G] with its correction of order 1 / n.
        variance: (L,), Var[G], of order 1 / n.
    """

    kernel: Tensor
    mean: Tensor
    variance: Tensor

    @property
    def excess(self) -> Tensor:
        """Fourth cumulant of a neuron over its squared variance, E[z⁴] / E[z²]² - 3 = 3 Var[G] / K², (L,)."""
        return 3 * self.variance / self.kernel.square()


def metric_moments(act: Activation, C_b: float, C_W: float, K1: float, widths: Sequence[int]) -> MetricMoments:
    """Mean and variance of the random kernel of one input in networks of the given widths.

    Var[G^{l+1}] = C_W² (⟨σ⁴⟩ - ⟨σ²⟩²) / n_l + χ_∥² Var[G^l], starting from zero, and the mean's shift obeys
    Δ^{l+1} = χ_∥ Δ^l + C_W g''(K) Var[G^l] / 2. They hold while the variance is small against K².

    Args:
        act: the activation.
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        K1: kernel of the first layer, C_b + C_W x · x / n_0, above 0.
        widths: neurons of the hidden layers; there are L - 1 of them.

    Returns:
        The moments at every layer of preactivations, (L,) float64.

    Raises:
        ValueError: K1 or a width that is not positive, negative variances.

    Source: book, sections 4.3 and 4.4 (vertex and correction of the mean), rederived in terms of G.
    """
    check_variances(C_b, C_W)
    kernel = as_kernel(K1, "K1")
    if kernel.ndim != 0 or kernel == 0:
        raise ValueError(f"K1 is {K1}; expected one number above 0")
    if any(width < 1 for width in widths):
        raise ValueError(f"widths is {list(widths)}; expected numbers of 1 or more")
    act = in_double(act)
    variance = shift = torch.zeros_like(kernel)
    layers = [(kernel, variance, shift)]
    for width in widths:
        growth, _, mean_square = averages(act, kernel)
        parallel = C_W * growth
        shift = parallel * shift + C_W * curvature(act, kernel) * variance / 2
        variance = C_W**2 * (_fourth(act, kernel) - mean_square.square()) / width + parallel.square() * variance
        kernel = C_b + C_W * mean_square
        layers.append((kernel, variance, shift))
    kernels, variances, shifts = (torch.stack(part) for part in zip(*layers, strict=True))
    return MetricMoments(kernels, kernels + shifts, variances)


def vertex_flow(act: Activation, C_b: float, C_W: float, K1: float, depth: int) -> Tensor:
    """The four-point vertex V of one input at every layer: width times the variance of the random kernel.

    V^{l+1} = C_W² (⟨σ⁴⟩ - ⟨σ²⟩²) + χ_∥² V^l from V¹ = 0, for hidden layers of equal width. At criticality V / K² grows
    linearly: by 5 a layer for ReLU, 2 for linear networks, towards 2/3 for tanh.

    Args:
        act: the activation.
        C_b: variance of the biases.
        C_W: variance of the weights times fan_in.
        K1: kernel of the first layer, above 0.
        depth: L, 1 or more.

    Returns:
        (L,) float64.

    Raises:
        ValueError: depth below 1, K1 that is not positive, negative variances.

    Source: book, sections 4.3 (recursion) and 5.4 (growth).
    """
    _check_depth(depth)
    return metric_moments(act, C_b, C_W, K1, [1] * (depth - 1)).variance


def _fourth(act: Activation, kernel: Tensor) -> Tensor:
    u, weights = nodes(kernel, kinks_of(act))
    fourth: Tensor = (act(kernel.sqrt()[..., None] * u).detach().pow(4) * weights).sum(dim=-1)
    return fourth


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ValueError(f"depth is {depth}; expected 1 or more layers")
