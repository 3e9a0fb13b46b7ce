"""Similarities of representations beside centred kernel alignment."""

from __future__ import annotations

import torch
from torch import Tensor


def rsa_similarity(a: Tensor, b: Tensor, eps: float = 1e-12) -> Tensor:
    """Representational similarity analysis: how alike inputs are in one representation, against the other.

    The Pearson correlation of the two matrices of cosine similarities between inputs, over all entries, the diagonal
    of ones included, as in the official code. It does not change under rotations, nor when single inputs are rescaled;
    unlike CKA it changes under translations.

    Args:
        a: (n, ...) one representation; all axes but the first are flattened.
        b: (n, ...) another, of the same inputs in the same order.
        eps: inputs whose features are all at or below this count as zero; they are alike to nothing.

    Returns:
        A scalar between -1 and 1, differentiable in both; 0 with zero gradient where all inputs are alike in one.

    Raises:
        ValueError: the numbers of inputs differ, or there are fewer than two.

    Source: Kriegeskorte et al. 2008; the paper's comparison of similarities, official code.
    """
    if a.ndim < 1 or b.ndim < 1 or a.shape[0] != b.shape[0]:
        raise ValueError(
            "a and b must represent the same inputs along their first axis, "
            f"got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.shape[0] < 2:
        raise ValueError(f"a and b must represent at least 2 inputs, got {a.shape[0]}")
    first, second = (_unit_rows(each, eps) for each in (a, b))
    first, second = (each @ each.mT for each in (first, second))
    first, second = (each - each.mean() for each in (first, second))
    # Where all inputs are alike, all entries are 1 up to rounding: no pattern to be compared.
    noise = (16 * torch.finfo(first.dtype).eps) ** 2 * first.numel()
    of_first, of_second = first.square().sum(), second.square().sum()
    varies, squares = (of_first > noise) & (of_second > noise), of_first * of_second
    safe = torch.where(varies, squares, torch.ones_like(squares))
    return torch.where(varies, (first * second).sum() / safe.sqrt(), torch.zeros_like(squares))


def rsa_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus `rsa_similarity`: 0 where two representations agree on which inputs are alike.

    Args:
        a: (n, ...) one representation; all axes but the first are flattened.
        b: (n, ...) another, of the same inputs in the same order.

    Returns:
        A scalar between 0 and 2, differentiable in both.

    Raises:
        ValueError: the numbers of inputs differ, or there are fewer than two.
    """
    return 1 - rsa_similarity(a, b)


def _unit_rows(x: Tensor, eps: float) -> Tensor:
    """(n, features) with rows of norm 1; zero rows stay zero."""
    flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    largest = flat.detach().abs().amax(dim=1, keepdim=True)
    alive = largest > eps
    scaled = flat / torch.where(alive, largest, torch.ones_like(largest))  # squares of it stay in range
    squares = scaled.square().sum(dim=1, keepdim=True)
    return torch.where(alive, scaled / torch.where(alive, squares, torch.ones_like(squares)).sqrt(), 0.0)
