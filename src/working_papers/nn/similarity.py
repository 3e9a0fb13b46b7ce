"""How alike two representations of the same inputs are."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cka(a: Tensor, b: Tensor, eps: float = 1e-12) -> Tensor:
    """Linear centred kernel alignment of two representations of the same inputs.

    With centred A and B it is ‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) in Frobenius norms: 1 when one is a rotation, isotropic scaling or
    translation of the other. Each representation is centred and divided by its norm before products are formed, so that
    tiny and huge activations neither underflow nor overflow. The estimate is the biased one: for unrelated features it
    approaches 0 only when inputs are many more than features.

    Args:
        a: (n, ...) one representation; all axes but the first are flattened.
        b: (n, ...) another, of the same inputs in the same order.
        eps: norms at or below this count as no variation at all.

    Returns:
        A scalar between 0 and 1, differentiable in both; 0 with zero gradient where one of them does not vary.

    Raises:
        ValueError: the numbers of inputs differ, or there are fewer than two.

    Source: Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414), section 3.
    """
    if a.ndim < 1 or b.ndim < 1 or a.shape[0] != b.shape[0]:
        raise ValueError(
            "a and b must represent the same inputs along their first axis, "
            f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.shape[0] < 2:
        raise ValueError(f"a and b must represent at least 2 inputs, got {a.shape[0]}")
    first, second = _centred_unit(a, eps), _centred_unit(b, eps)
    n, p, q = first.shape[0], first.shape[1], second.shape[1]
    if p * q + p * p + q * q <= n * (p + q):  # the cheaper of two equal forms
        cross = (first.mT @ second).square().sum()
        one, other = (first.mT @ first).square().sum(), (second.mT @ second).square().sum()
    else:
        gram_a, gram_b = first @ first.mT, second @ second.mT
        cross, one, other = (gram_a * gram_b).sum(), gram_a.square().sum(), gram_b.square().sum()
    product = one * other
    safe = torch.where(product > 0, product, torch.ones_like(product))
    return torch.where(product > 0, cross / safe.sqrt(), torch.zeros_like(cross))


def participation_ratio(x: Tensor) -> Tensor:
    """How many dimensions a representation fills: (Σ λ)² / Σ λ² over the eigenvalues λ of its covariance.

    Args:
        x: (n, ...) a representation of n inputs; all axes but the first are flattened.

    Returns:
        A scalar from 1 (a line) to min(n - 1, features); 0 where nothing varies.

    Raises:
        ValueError: there are fewer than two inputs.
    """
    if x.ndim < 1 or x.shape[0] < 2:
        raise ValueError(f"x must represent at least 2 inputs along its first axis, got shape {tuple(x.shape)}")
    unit = _centred_unit(x, 0.0)
    n, p = unit.shape
    squares = (unit.mT @ unit if p <= n else unit @ unit.mT).square().sum()
    safe = torch.where(squares > 0, squares, torch.ones_like(squares))
    return torch.where(squares > 0, safe.reciprocal(), torch.zeros_like(squares))


def _centred_unit(x: Tensor, eps: float) -> Tensor:
    """(n, features) with zero column means and Frobenius norm 1; zeros where there is no variation."""
    flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    centred = flat - flat.mean(dim=0, keepdim=True)
    largest = centred.detach().abs().amax() if centred.numel() else centred.new_zeros(())
    varies = largest > eps
    scaled = centred / torch.where(varies, largest, torch.ones_like(largest))  # squares of it stay in range
    norm = torch.where(varies, scaled.square().sum(), torch.ones_like(largest)).sqrt()
    return torch.where(varies, scaled / norm, torch.zeros_like(scaled))
