"""What linear readouts find in a layer: dichotomies, and whether a boundary carries over to unseen conditions.

All classifiers are solved in closed form and together. A dichotomy y of the conditions is fitted by least squares on
noisy activity: w minimises the mean over training conditions of (w · (μ_p - μ) - y_p)² + wᵀ Σ w, where Σ is the
covariance of the noise within training conditions, shrunk towards an isotropic one, for it is estimated from few
samples. For balanced sides that is Fisher's linear discriminant. The paper (from memory) uses linear support vector
machines; both are linear readouts, and the closed form needs no search and is the same on every run.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from working_papers.papers.representational_geometry.method.arguments import (
    check_activity,
    random_numbers,
    signs,
    working,
)

SHRINKAGE = 0.5
"""Weight of the isotropic covariance in that of the noise."""

CHUNK = 2**24
"""Largest number of matrix entries solved at once."""


class Samples(NamedTuple):
    """Noisy activity to fit readouts on, and as much again to test them on.

    Attributes:
        train: n samples of each condition [..., P, n, N].
        test: other samples of the same conditions [..., P, n, N].
    """

    train: Tensor
    test: Tensor


def noisy_samples(h: Tensor, noise: float, samples: int = 50, seed: int = 0) -> Samples:
    """Isotropic noise on a layer's condition means, where samples of the layer itself were not recorded.

    Args:
        h: activity of N units in P conditions [..., P, N].
        noise: expected length of the noise, as a multiple of the conditions' root-mean-square distance from their
            centre, so that a layer's scale does not matter; 0 returns one exact sample.
        samples: of each condition, for fitting, and as many for testing.
        seed: of the noise.

    Returns:
        Samples to fit and to test.

    Raises:
        ValueError: `noise` is negative or `samples` is not positive.
    """
    check_activity("h", h)
    if not noise >= 0:
        raise ValueError(f"noise is {noise}; expected a length of at least 0")
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1")
    h = working(h)
    if noise == 0:
        return Samples(h[..., None, :], h[..., None, :])
    spread = (h - h.mean(dim=-2, keepdim=True)).square().sum(dim=-1).mean(dim=-1).sqrt()
    shape = (*h.shape[:-1], 2 * samples, h.shape[-1])
    normal = torch.randn(shape, generator=random_numbers("layer noise", seed), dtype=torch.float32).to(h)
    noisy = h[..., None, :] + normal * (noise / sqrt(h.shape[-1]) * spread)[..., None, None, None]
    return Samples(noisy[..., :samples, :], noisy[..., samples:, :])


def balanced_dichotomies(conditions: int, most: int = 100, exclude: Tensor | None = None, seed: int = 0) -> Tensor:
    """Ways to split the conditions into halves; a split and its opposite are one.

    Args:
        conditions: number of conditions P, even.
        most: largest number; all are listed where there are not more, otherwise as many are drawn without repetition.
        exclude: dichotomies to leave out, -1 or 1 [P, k], one a column.
        seed: of the draw.

    Returns:
        Signs -1 and 1, the first always 1 [dichotomies, P].

    Raises:
        ValueError: the number of conditions is odd, `most` is not positive, or nothing is left.
    """
    if conditions < 2 or conditions % 2:
        raise ValueError(f"conditions is {conditions}; expected an even number")
    if most < 1:
        raise ValueError(f"most is {most}; expected at least 1")
    left_out: set[tuple[float, ...]] = set()
    if exclude is not None:
        if exclude.ndim != 2 or exclude.shape[0] != conditions:
            raise ValueError(f"exclude has shape {tuple(exclude.shape)}; expected ({conditions}, k)")
        left_out = {tuple((column * column[0]).tolist()) for column in exclude.double().cpu().mT}
    half = conditions // 2
    everything = comb(conditions, half) // 2
    if everything <= most + len(left_out):
        plus = torch.tensor(list(combinations(range(1, conditions), half - 1)), dtype=torch.long).reshape(-1, half - 1)
        found = torch.full((len(plus), conditions), -1.0, dtype=torch.float64).scatter_(1, plus, 1.0)
        found[:, 0] = 1.0
    else:
        generator = random_numbers("dichotomies", seed)
        found = torch.empty(0, conditions, dtype=torch.float64)
        while len(found) < most + len(left_out):
            order = torch.rand(2 * most, conditions, generator=generator).argsort(dim=1)
            drawn = torch.where(order < half, 1.0, -1.0).double()
            found = torch.unique(torch.cat([found, drawn * drawn[:, :1]]), dim=0)
        found = found[torch.randperm(len(found), generator=generator)]  # unique sorts; a prefix must stay random
    kept = [row for row in range(len(found)) if tuple(found[row].tolist()) not in left_out][:most]
    if not kept:
        raise ValueError(f"exclude leaves no balanced dichotomy of {conditions} conditions; expected fewer of them")
    return found[kept]


def decoding_accuracy(
    h: Tensor,
    dichotomies: Tensor,
    noise: float = 0.5,
    *,
    samples: Samples | None = None,
    seed: int = 0,
) -> Tensor:
    """How often a linear readout, fitted on noisy samples of all conditions, is right on fresh ones.

    Args:
        h: activity of N units in P conditions [..., P, N].
        dichotomies: signs, -1 or 1, one dichotomy a row [D, P].
        noise: on the layer, as in `noisy_samples`; not used where `samples` are given.
        samples: noisy activity of the layer itself, e.g. at noisy inputs.
        seed: of the noise.

    Returns:
        Share of right answers, one a network and dichotomy [..., D]; an undecided readout counts one half.

    Raises:
        ValueError: shapes do not fit, or a value of `dichotomies` is neither -1 nor 1.
    """
    train, test = _samples(h, noise, samples, seed)
    P = h.shape[-2]
    if dichotomies.ndim != 2 or dichotomies.shape[1] != P:
        raise ValueError(f"dichotomies has shape {tuple(dichotomies.shape)}; expected (D, {P})")
    if not bool((dichotomies.abs() == 1).all()):
        raise ValueError("dichotomies has values other than -1 and 1; expected signs")
    y = dichotomies.to(train)
    everywhere = torch.ones(1, P, dtype=train.dtype, device=train.device)
    right = _accuracy(train, test, y[None], everywhere, everywhere)  # one fit of all dichotomies at once
    return right[..., 0, :].to(h.dtype)


def shattering_dimension(
    h: Tensor,
    noise: float = 0.5,
    n_dichotomies: int = 100,
    exclude: Tensor | None = None,
    seed: int = 0,
    *,
    samples: Samples | None = None,
) -> Tensor:
    """Mean accuracy of linear readouts over balanced dichotomies of the conditions: how many of them a layer separates.

    Args:
        h: activity of N units in P conditions [..., P, N].
        noise: on the layer, as in `noisy_samples`; not used where `samples` are given.
        n_dichotomies: all dichotomies are taken where there are not more, otherwise as many random ones.
        exclude: dichotomies to leave out, e.g. the trained ones, -1 or 1 [P, k].
        seed: of noise and dichotomies.
        samples: noisy activity of the layer itself, e.g. at noisy inputs.

    Returns:
        From about 0.5 to 1, one number a network [...].

    Raises:
        ValueError: the number of conditions is odd, shapes do not fit, or no dichotomy is left.

    Source: Bernardi et al. 2020, which the paper follows.
    """
    check_activity("h", h)
    dichotomies = balanced_dichotomies(h.shape[-2], n_dichotomies, exclude, seed)
    return decoding_accuracy(h, dichotomies, noise, samples=samples, seed=seed).mean(dim=-1)


def ccgp(
    h: Tensor,
    dichotomy: Tensor,
    noise: float = 0.5,
    seed: int = 0,
    *,
    samples: Samples | None = None,
    held_out: int | None = None,
    max_splits: int = 100,
) -> Tensor:
    """Cross-condition generalisation: a readout fitted on some conditions of either side, tested on the others.

    Below one half the boundary of some conditions inverts the answer on others, which is a finding and is not clipped.
    With half of the conditions held out, some choices leave the answer open even to the tidiest layer: on a cube, four
    corners may differ in two factors alike. With one held out on either side a cube reaches 1.

    Args:
        h: activity of N units in P conditions [..., P, N].
        dichotomy: two labels, each of one half of the conditions [P].
        noise: on the layer, as in `noisy_samples`; not used where `samples` are given.
        seed: of noise and splits.
        samples: noisy activity of the layer itself, e.g. at noisy inputs.
        held_out: conditions of either side to test on; half of them by default, rounded down.
        max_splits: all choices of training conditions are averaged where there are not more, otherwise as many random
            ones.

    Returns:
        From 0 to 1, one number a network [...].

    Raises:
        ValueError: the dichotomy is not balanced, a side has fewer than two conditions, `held_out` leaves none to
            train on, or `max_splits` is below 1.

    Source: Bernardi et al. 2020, which the paper follows; they hold out one condition a side, one half is this
    project's more demanding default.
    """
    check_activity("h", h, conditions=4)
    if max_splits < 1:
        raise ValueError(f"max_splits is {max_splits}; expected at least 1")
    side = signs("dichotomy", dichotomy, h.shape[-2]).cpu()
    m = len(side) // 2
    out = m // 2 if held_out is None else held_out
    if not 1 <= out < m:
        raise ValueError(f"held_out is {held_out}; expected 1 to {m - 1}, for a side has {m} conditions")
    train, test = _samples(h, noise, samples, seed)
    chosen = _splits(side, m - out, max_splits, seed).to(train)
    y = (2.0 * side - 1.0).to(train)
    right = _accuracy(train, test, y[None, None].expand(len(chosen), 1, -1), chosen, 1 - chosen)
    return right[..., 0].mean(dim=-1).to(h.dtype)


def _samples(h: Tensor, noise: float, samples: Samples | None, seed: int) -> Samples:
    """Given or made samples, in the working precision."""
    check_activity("h", h)
    if samples is None:
        return noisy_samples(h, noise, seed=seed)
    for name, each in (("samples.train", samples.train), ("samples.test", samples.test)):
        if each.ndim != h.ndim + 1 or each.shape[:-2] != h.shape[:-1] or each.shape[-1] != h.shape[-1]:
            expected = f"{(*h.shape[:-1], 'n', h.shape[-1])}"
            raise ValueError(
                f"{name} has shape {tuple(each.shape)}; expected {expected}, several samples of each row of h"
            )
    return Samples(working(samples.train), working(samples.test))


def _splits(side: Tensor, size: int, most: int, seed: int) -> Tensor:
    """Masks of training conditions, as many of either side [splits, P]."""
    members = [side.nonzero()[:, 0], (~side).nonzero()[:, 0]]
    m = len(members[0])
    mask = torch.zeros(min(comb(m, size) ** 2, most), 2 * m)
    if comb(m, size) ** 2 <= most:
        choice = torch.tensor(list(combinations(range(m), size)))
        picks = [choice.repeat_interleave(len(choice), dim=0), choice.repeat(len(choice), 1)]
    else:
        generator = random_numbers("splits", seed)
        picks = [torch.rand(most, m, generator=generator).argsort(dim=1)[:, :size] for _ in members]
    for rows, pick in zip(members, picks, strict=True):
        mask.scatter_(1, rows[pick], 1.0)
    return mask


def _accuracy(train: Tensor, test: Tensor, y: Tensor, fitted: Tensor, tested: Tensor) -> Tensor:
    """Fit every readout on the conditions of its mask and judge it on those of another.

    Args:
        train: samples [..., P, n, N].
        test: samples [..., P, m, N].
        y: signs of D dichotomies in each of F fits [F, D, P].
        fitted: conditions that are fitted, 1 or 0 [F, P].
        tested: conditions that are tested, 1 or 0 [F, P].

    Returns:
        Share of right answers [..., F, D].
    """
    batch, units = train.shape[:-3], train.shape[-1]
    train, test = (each.reshape(-1, *each.shape[-3:]) for each in (train, test))
    train, test = _in_span(train, test)
    means = train.mean(dim=-2)  # [S, P, N]
    around = train - means[..., None, :]
    scatter = around.mT @ around / max(train.shape[-2] - 1, 1)  # of each condition [S, P, N, N]
    S, N = means.shape[0], means.shape[2]
    step = max(1, CHUNK // (S * N * N))
    results = []
    for start in range(0, len(fitted), step):
        mask, goal = fitted[start : start + step], y[start : start + step]
        weight = mask / mask.sum(dim=1, keepdim=True)  # [F, P]
        centre = weight @ means  # [S, F, N]
        shifted = means[:, None] - centre[:, :, None]  # [S, F, P, N]
        between = (weight[..., None] * shifted).mT @ shifted
        noise = (weight @ scatter.flatten(2)).unflatten(2, (N, N))
        # The isotropic part has the trace of the noise spread over all units, also those outside of the span.
        level = SHRINKAGE * noise.diagonal(dim1=-2, dim2=-1).sum(-1) / units
        total = between.diagonal(dim1=-2, dim2=-1).sum(-1)
        level = level + (1e-9 / N) * total + torch.finfo(total.dtype).tiny  # without noise: the shortest exact fit
        matrix = between + (1 - SHRINKAGE) * noise + level[..., None, None] * torch.eye(N).to(noise)
        offset = (weight[:, None] * goal).sum(dim=-1)  # mean target [F, D]
        right_side = shifted.mT @ (weight[:, None] * (goal - offset[..., None])).mT  # [S, F, N, D]
        readout = torch.linalg.solve(matrix, right_side)
        score = torch.einsum("spmn,sfnd->sfdpm", test, readout)
        score = score - torch.einsum("sfn,sfnd->sfd", centre, readout)[..., None, None] + offset[..., None, None]
        right = torch.heaviside(score * goal[..., None], torch.full((), 0.5).to(score)).mean(dim=-1)
        judged = tested[start : start + step]
        results.append((right * judged[:, None]).sum(dim=-1) / judged.sum(dim=1)[:, None])
    return torch.cat(results, dim=1).reshape(*batch, len(fitted), y.shape[1])


def _in_span(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Samples [S, P, n, N] in fewer coordinates, where a layer has more units than there are training samples.

    Readouts lie in the span of the training samples, and all that they need of a test sample is its projection.
    """
    flat = train.flatten(1, 2)
    if flat.shape[2] <= flat.shape[1]:
        return train, test
    basis = torch.linalg.qr(flat.mT).Q  # [S, N, P n]
    return train @ basis[:, None], test @ basis[:, None]
