"""How large an ensemble has to be, read off networks that were trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from working_papers.papers.permutation_learning.method._limit import check_count


def subset_averages(
    outputs: Tensor, sizes: Sequence[int], subsets: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Averages of random subsets of the networks: what smaller ensembles would have said, without training them.

    Subsets overlap, the more the larger they are; the largest possible one is there but once.

    Args:
        outputs: of N networks, or their votes, (N, ..., o).
        sizes: numbers of networks, each from 1 to N.
        subsets: how many of each size; those of one order of the networks are nested.
        generator: source of randomness, on the CPU.

    Returns:
        (sizes, subsets, ..., o).

    Raises:
        ValueError: a size that there are not as many networks for, or no subset.
    """
    count = len(outputs)
    check_count("subsets", subsets)
    if not sizes or min(sizes) < 1 or max(sizes) > count:
        raise ValueError(f"sizes is {list(sizes)}; expected numbers from 1 to {count}, as many as there are networks")
    rank = torch.rand(subsets, count, generator=generator).argsort(dim=1)
    size = torch.tensor(sizes)[:, None, None]
    weights = ((rank < size) / size).flatten(0, 1).to(outputs)
    return (weights @ outputs.flatten(1)).view(len(sizes), subsets, *outputs.shape[1:])


def size_reaching(sizes: Sequence[int], shares: Sequence[float], level: float) -> float | None:
    """The size from which on ensembles are right often enough.

    Args:
        sizes: increasing numbers of networks.
        shares: how often ensembles of each size are right.
        level: how often they are to be.

    Returns:
        The first crossing, interpolated in the logarithm of the size; the first size if that is enough already, None
        if no size is.

    Raises:
        ValueError: there is not one share for each size.
    """
    if len(sizes) != len(shares):
        raise ValueError(f"sizes and shares have lengths {len(sizes)} and {len(shares)}; expected the same")
    for i, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if share >= level:
            if i == 0:
                return float(size)
            before, below = sizes[i - 1], shares[i - 1]
            return float(before * (size / before) ** ((level - below) / (share - below)))
    return None
