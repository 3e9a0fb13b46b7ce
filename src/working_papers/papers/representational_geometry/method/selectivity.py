"""Why the two geometries arise: where the gradient pulls a unit's weights, and what units come to stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.representational_geometry.method.arguments import check_activity, signs
from working_papers.papers.representational_geometry.method.networks import Activation, activation_function


def expected_update(activation: str | Activation, weight: Tensor, x: Tensor, y: Tensor, sign: float = 1.0) -> Tensor:
    """The direction in which gradient descent moves a unit's input weights while outputs are still small.

    At outputs of 0 the logistic loss has slope -y/2 in each condition, so that a unit with output weight v moves along
    v · mean_p ½ y_p φ'(w · x_p) x_p. Only conditions at which φ has a slope take part: for ReLU those that switch the
    unit on, for tanh all those around the origin.

    Args:
        activation: φ, by name or as an elementwise function.
        weight: w of any number of units [..., d].
        x: conditions [P, d].
        y: target, -1 or 1 [P].
        sign: the output weight v.

    Returns:
        The negative gradient of the loss by w [..., d]; multiply it by the step size.

    Raises:
        ValueError: shapes do not fit.

    Source: the paper's expected gradients of the task loss by the input weights (its figure 1C and D).
    """
    check_activity("x", x, conditions=1)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected (P, d) and (P,)")
    if weight.shape[-1] != x.shape[-1]:
        raise ValueError(f"weight has {weight.shape[-1]} entries; expected {x.shape[-1]}, as many as x")
    function = activation_function(activation)
    with torch.enable_grad():
        z = (weight @ x.mT).detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(z).sum(), z)
    return sign * ((slope * (y / 2).to(slope)) @ x) / len(x)


def gradient_field(
    activation: str | Activation, x: Tensor, y: Tensor, axes: Tensor, grid: Tensor, sign: float = 1.0
) -> Tensor:
    """The expected update as a field of arrows on a plane of input weights.

    Args:
        activation: φ, by name or as an elementwise function.
        x: conditions [P, d].
        y: target, -1 or 1 [P].
        axes: orthonormal directions of the plane, e.g. between and within classes [2, d].
        grid: coordinates of weights on these axes [..., 2].
        sign: the unit's output weight.

    Returns:
        Components of the update on the same axes [..., 2].

    Raises:
        ValueError: shapes do not fit, or the axes are not orthonormal.
    """
    if axes.ndim != 2 or axes.shape[1] != x.shape[-1] or grid.shape[-1] != axes.shape[0]:
        raise ValueError(f"axes has shape {tuple(axes.shape)}, grid {tuple(grid.shape)}; expected (a, d) and (..., a)")
    if not torch.allclose(axes @ axes.mT, torch.eye(len(axes)).to(axes), atol=1e-4):
        raise ValueError("axes are not orthonormal; expected unit vectors at right angles")
    return expected_update(activation, grid @ axes, x, y, sign) @ axes.mT


@dataclass(frozen=True)
class UnitSelectivity:
    """What the input weights of units stand for.

    Attributes:
        inter: projection of the weights on the axis between the class means [..., N].
        intra: length of their projection on the differences within classes, less that axis [..., N].
        active: share of conditions with a positive input to the unit [..., N].
    """

    inter: Tensor
    intra: Tensor
    active: Tensor

    @property
    def between_share(self) -> Tensor:
        """Share of a unit's weights, among those that matter to the conditions, that lies between classes [..., N]."""
        between, within = self.inter.square(), self.intra.square()
        return between / (between + within)


def unit_selectivity(weight: Tensor, x: Tensor, dichotomy: Tensor, bias: Tensor | None = None) -> UnitSelectivity:
    """Project input weights on what separates classes and on what separates conditions of one class.

    Args:
        weight: input weights of N units [..., N, d].
        x: conditions [..., P, d].
        dichotomy: two labels, each of one half of the conditions [P].
        bias: of the units [..., N]; 0 by default.

    Returns:
        The projections, and the share of conditions that activate a unit.

    Raises:
        ValueError: shapes do not fit, or the dichotomy is not balanced.

    Source: the paper's inter-class and intra-class axes (its figure 1C and D).
    """
    check_activity("x", x)
    if weight.ndim < 2 or weight.shape[-1] != x.shape[-1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (..., N, {x.shape[-1]})")
    side = signs("dichotomy", dichotomy, x.shape[-2]).to(x.device)
    means = x[..., side, :].mean(dim=-2), x[..., ~side, :].mean(dim=-2)
    axis = means[0] - means[1]
    axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    around = x - torch.where(side[:, None], means[0][..., None, :], means[1][..., None, :])
    around = around - (around @ axis[..., None]) * axis[..., None, :]
    _, size, directions = torch.linalg.svd(around, full_matrices=False)
    real = size > 1e-5 * size.amax(dim=-1, keepdim=True)  # directions in which nothing varies are arbitrary
    inter = (weight @ axis[..., None])[..., 0]
    intra = torch.linalg.vector_norm((weight @ directions.mT) * real[..., None, :], dim=-1)
    z = weight @ x.mT
    if bias is not None:
        z = z + bias[..., None]
    return UnitSelectivity(inter, intra, (z > 0).to(z.dtype).mean(dim=-1))
