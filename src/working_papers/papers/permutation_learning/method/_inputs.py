"""Binary inputs, and the rules that turn real outputs back into bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_LISTING = 2**24
"""Inputs that are listed at most; more would fill the memory before anybody notices the mistake."""


def binary_inputs(k: int, ones: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """All nonzero binary vectors of length k, or those with a given number of ones.

    Args:
        k: number of bits.
        ones: number of ones n of each vector; None for all 2^k - 1 nonzero vectors.
        dtype: of the result; by default torch's.

    Returns:
        (b, k) of zeros and ones; without `ones`, row i holds the bits of i + 1, lowest first.

    Raises:
        ValueError: k is below 1, `ones` not between 1 and k, or there are more than 2^24 such vectors.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 bit")
    if ones is not None and not 1 <= ones <= k:
        raise ValueError(f"ones is {ones}; expected 1 to {k}")
    count = 2**k - 1 if ones is None else math.comb(k, ones)
    if count > LARGEST_LISTING:
        raise ValueError(f"k is {k} and ones is {ones}: {count} inputs; expected at most {LARGEST_LISTING}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if ones is None:
        numbers = torch.arange(1, count + 1)
        return ((numbers[:, None] >> torch.arange(k)) & 1).to(dtype)
    places = torch.combinations(torch.arange(k), ones)
    return torch.zeros(count, k, dtype=dtype).scatter_(1, places, 1.0)


def unit_norm(x: Tensor) -> Tensor:
    """Each input divided by its length, which for n ones is √n: what networks and kernels are to be given.

    Args:
        x: (..., d).

    Returns:
        (..., d), floating point.

    Raises:
        ValueError: an input is all zero.
    """
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError("x holds an input of zeros; expected nonzero inputs")
    scaled: Tensor = x / length
    return scaled


def round_average(outputs: Tensor, threshold: float = 0.0) -> Tensor:
    """The paper's rule: a bit is one where the average over networks lies above zero.

    Args:
        outputs: of N networks, (N, ..., o).
        threshold: for trained networks a little above zero (say ten times the training tolerance), because the mean
            at the training inputs is exactly zero off the one, and a rounding error must not decide.

    Returns:
        bits, boolean (..., o).

    Source: the rounding step after the paper's definition of the ensemble.
    """
    return outputs.mean(dim=0) > threshold


def majority_vote(outputs: Tensor, threshold: float = 0.0) -> Tensor:
    """A bit is one where more than half of the networks say so: the usual way to combine classifiers.

    A vote uses signs alone. Where outputs are Gaussian and margins small it takes π/2 times as many networks as the
    average to be as often right.

    Args:
        outputs: of N networks, (N, ..., o).
        threshold: above which a network says one.

    Returns:
        bits, boolean (..., o); a tie is a zero.
    """
    return (outputs > threshold).float().mean(dim=0) > 0.5


def largest_outputs(outputs: Tensor, ones: Tensor) -> Tensor:
    """The n largest outputs are ones: what somebody would do who knows that the answer has as many ones as the input.

    Args:
        outputs: of one network, or averages, (..., b, o).
        ones: number of ones of each input, integers (b,) or broadcastable to (..., b).

    Returns:
        bits, boolean (..., b, o); of equal outputs the one that sorts first wins.

    Source: ours, as a baseline; it uses that the map is a permutation, which the paper's rule does not.
    """
    rank = outputs.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < ones[..., None]
