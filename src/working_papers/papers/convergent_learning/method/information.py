"""Mutual information between the units of two networks, from binned activations."""

from __future__ import annotations

import torch
from torch import Tensor

from working_papers.papers.convergent_learning.method.statistics import _check_rows

REST_BELOW = 1e-6  # a unit that is never negative is at rest below this; official code
CHUNK_NUMBERS = 2**24  # entries of the indicator matrices at a time: bounds the scratch memory


def mutual_information(x: Tensor, y: Tensor, bins: int = 10, corrected: bool = True) -> Tensor:
    """Mutual information of every unit of one network with every unit of another, in nats.

    Each unit is binned by itself. One that is never negative but is sometimes at rest, as after a ReLU, has one bin for
    rest, and its other activations fill the remaining bins in equal numbers; any other unit fills all bins in equal
    numbers. Equal values share a bin, so a unit may use fewer bins.

    Args:
        x: activations of the first network (N, n).
        y: activations of the second network on the same samples (N, m).
        bins: number of bins of a unit.
        corrected: subtract the bias of the estimate for independent units, (R - 1)(C - 1) / (2 N) with R and C the
            numbers of bins in use. Values may then be slightly negative. The formula takes samples as independent.

    Returns:
        (n, m), float64.

    Raises:
        ValueError: x and y do not fit together, are empty or not finite, or bins is less than two.

    Source: section 3.1 of the paper; bins as in the official code, the correction is the standard one.
    """
    _check_rows(x, y)
    if bins < 2:
        raise ValueError(f"bins is {bins}; expected 2 or more")
    if len(x) == 0:
        raise ValueError("x has no samples")
    for name, each in (("x", x), ("y", y)):
        if not torch.isfinite(each).all():
            raise ValueError(f"{name} holds an activation that is not finite")
    N, n, m = len(x), x.shape[1], y.shape[1]
    of_x, of_y = _binned(x.detach(), bins), _binned(y.detach().to(x.device), bins)
    counts = torch.zeros(n * bins, m * bins, dtype=torch.float64, device=x.device)
    chunk = max(1, CHUNK_NUMBERS // (bins * max(n, m, 1)))  # sums within a chunk stay exact in float32
    for start in range(0, N, chunk):
        one, other = (_indicators(each[:, start : start + chunk], bins) for each in (of_x, of_y))
        counts += (one.mT @ other).double()
    joint = counts.view(n, bins, m, bins).transpose(1, 2) / N  # (n, m, bins, bins)
    px, py = (_shares(each, bins) for each in (of_x, of_y))
    independent = px[:, None, :, None] * py[None, :, None, :]
    ratio = torch.where(joint > 0, joint / torch.where(joint > 0, independent, 1.0), 1.0)
    information = (joint * ratio.log()).sum(dim=(-1, -2))
    if corrected:
        rows, columns = ((each > 0).sum(dim=1).double() for each in (px, py))
        information = information - torch.outer(rows - 1, columns - 1) / (2 * N)
    return information


def _binned(x: Tensor, bins: int) -> Tensor:
    """The bin of each activation, (units, N)."""
    columns = x.mT.contiguous()
    if columns.dtype in (torch.float16, torch.bfloat16):
        columns = columns.float()
    N = columns.shape[1]
    ordered = columns.sort(dim=1).values
    resting = (columns <= REST_BELOW).sum(dim=1) * (ordered[:, 0] >= 0)  # samples at rest, 0 for other units
    has_rest = resting > 0
    # Upper ends of all bins but the last: rest, then equal shares of what is not at rest.
    share = torch.arange(1, bins, device=x.device)
    with_rest = resting[:, None] + (N - resting[:, None]) * (share - 1) / (bins - 1)
    without = (N * share / bins).expand_as(with_rest)
    rank = torch.where(has_rest[:, None], with_rest, without).ceil().long() - 1
    edges = ordered.gather(1, rank.clamp(0, N - 1))
    return torch.searchsorted(edges, columns)  # number of ends strictly below the value


def _indicators(index: Tensor, bins: int) -> Tensor:
    """0-1 matrix (N, units * bins) of bins (units, N)."""
    return torch.nn.functional.one_hot(index.mT, bins).flatten(1).float()


def _shares(index: Tensor, bins: int) -> Tensor:
    """Share of samples in each bin (units, bins)."""
    counts = torch.zeros(len(index), bins, dtype=torch.float64, device=index.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    return counts / index.shape[1]
