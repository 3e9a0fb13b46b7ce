"""Geometry of condition means: alignment with inputs and targets, collapse, dimension, parallelism."""

from __future__ import annotations

from itertools import permutations
from math import factorial

import torch
from torch import Tensor

from working_papers.nn.similarity import linear_cka, participation_ratio
from working_papers.papers.representational_geometry.method.arguments import (
    check_activity,
    random_numbers,
    signs,
    working,
)


def alignment(h: Tensor, reference: Tensor) -> Tensor:
    """Centred kernel alignment of a representation with another one: with the inputs, or with the targets.

    Centring over conditions matters: the positive mean of a ReLU layer would otherwise count as likeness.

    Args:
        h: activity of N units in P conditions [..., P, N].
        reference: inputs [..., P, d] or targets [..., P, k]; batch axes broadcast.

    Returns:
        From 0 to 1, one number a network [...]; 0 where one of the two does not vary.

    Raises:
        ValueError: not the same conditions, or fewer than two.

    Source: the paper's kernel alignment with centred kernels; computed by `working_papers.nn.similarity.linear_cka`.
    """
    check_activity("h", h)
    check_activity("reference", reference)
    if h.shape[-2] != reference.shape[-2]:
        raise ValueError(f"reference has {reference.shape[-2]} conditions; expected {h.shape[-2]}, as many as h")
    batch = torch.broadcast_shapes(h.shape[:-2], reference.shape[:-2])
    ours, other = (each.expand(*batch, *each.shape[-2:]).flatten(0, -3) if batch else each for each in (h, reference))
    if not batch:
        return linear_cka(ours, other.to(ours.dtype))
    found: Tensor = torch.vmap(linear_cka)(ours, other.to(ours.dtype)).unflatten(0, batch)
    return found


def dimensionality(h: Tensor) -> Tensor:
    """How many dimensions the condition means fill: the participation ratio of their covariance.

    Args:
        h: activity of N units in P conditions [..., P, N].

    Returns:
        From 1 to min(P - 1, N), one number a network [...]; 0 where nothing varies.

    Raises:
        ValueError: there are fewer than two conditions.
    """
    check_activity("h", h)
    if h.ndim == 2:
        return participation_ratio(h)
    found: Tensor = torch.vmap(participation_ratio)(h.flatten(0, -3)).unflatten(0, h.shape[:-2])
    return found


def within_class_fraction(h: Tensor, labels: Tensor) -> Tensor:
    """Share of the variance between conditions that lies within classes: 0 when each class is one point.

    Args:
        h: activity of N units in P conditions [..., P, N].
        labels: class of each condition [P], or targets [P, k], of which equal rows are a class.

    Returns:
        From 0 to 1, one number a network [...]; nan where nothing varies.

    Raises:
        ValueError: not one label a condition.
    """
    check_activity("h", h)
    if labels.ndim not in (1, 2) or labels.shape[0] != h.shape[-2]:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; expected one label for each of {h.shape[-2]} conditions"
        )
    _, member = torch.unique(labels, dim=0, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(member).to(h)
    centred = h - h.mean(dim=-2, keepdim=True)
    largest = centred.abs().amax(dim=(-2, -1), keepdim=True)
    centred = centred / torch.where(largest > 0, largest, torch.ones_like(largest))  # squares stay in range
    means = (one_hot / one_hot.sum(dim=0)).mT @ centred
    return (centred - one_hot @ means).square().sum(dim=(-2, -1)) / centred.square().sum(dim=(-2, -1))


def parallelism_score(h: Tensor, dichotomy: Tensor, max_perms: int = 500, seed: int = 0) -> Tensor:
    """How parallel the steps from one side of a dichotomy to the other are, under the best pairing of conditions.

    For a pairing π of the m conditions of either side, the steps are v_i = h_{a_i} - h_{b_π(i)} and its score is the
    mean cosine between two of them. The best pairing counts. There are m! pairings; all are tried while these are not
    more than `max_perms` (m of at most 5 by default), and otherwise that many random ones, so that for larger m the
    score is a lower bound. Being a maximum, it is above 0 on average even for random points, the more so the fewer
    they are.

    Args:
        h: activity of N units in P conditions [..., P, N].
        dichotomy: two labels, each of one half of the conditions [P].
        max_perms: largest number of pairings tried.
        seed: of the random pairings.

    Returns:
        From -1 to 1, one number a network [...].

    Raises:
        ValueError: the dichotomy is not balanced, a side has fewer than two conditions, or `max_perms` is not positive.

    Source: Bernardi et al. 2020, which the paper follows.
    """
    check_activity("h", h, conditions=4)
    if max_perms < 1:
        raise ValueError(f"max_perms is {max_perms}; expected at least 1")
    side = signs("dichotomy", dichotomy, h.shape[-2]).to(h.device)
    first, second = side.nonzero()[:, 0], (~side).nonzero()[:, 0]
    m = len(first)
    pairing = second[_pairings(m, max_perms, seed).to(h.device)]  # [perms, m]
    centred = working(h)
    centred = centred - centred.mean(dim=-2, keepdim=True)
    kernel = centred @ centred.mT  # all that follows needs inner products only, whatever the number of units
    norm = kernel.diagonal(dim1=-2, dim2=-1)
    square = norm[..., :, None] + norm[..., None, :] - 2 * kernel
    length = square[..., first, pairing].clamp(min=0).sqrt()  # [..., perms, m]
    a, b = first, pairing
    product = (
        kernel[..., a[None, :, None], a[None, None, :]]
        - kernel[..., a[:, None], b[:, None, :]]
        - kernel[..., b[:, :, None], a]
        + kernel[..., b[:, :, None], b[:, None, :]]
    )  # v_i · v_j [..., perms, m, m]
    floor = 1e-12 * norm.amax(dim=-1).clamp(min=torch.finfo(norm.dtype).tiny).sqrt()[..., None, None]
    inverse = torch.where(length > floor, 1 / length.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    cosine = product * inverse[..., :, None] * inverse[..., None, :]
    total = cosine.sum(dim=(-2, -1)) - cosine.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return (total / (m * (m - 1))).amax(dim=-1).to(h.dtype)


def _pairings(m: int, most: int, seed: int) -> Tensor:
    """Orders of m items [perms, m]: all of them, or `most` at random, the given order among them."""
    if m <= 12 and factorial(m) <= most:  # factorials beyond are larger than any sensible cap
        return torch.tensor(list(permutations(range(m))))
    generator = random_numbers("pairings", seed)
    order = torch.rand(most, m, generator=generator).argsort(dim=-1)
    order[0] = torch.arange(m)
    return order
