"""Means, deviations and correlations of the units of two networks, in one pass over their activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

DEAD_BELOW = 1e-8  # standard deviation under which a unit counts as dead
ROUNDING = 1e-12  # and as a fraction of its mean: what is left of a constant after rounding


@dataclass(frozen=True)
class UnitStats:
    """What is known of the units of two networks on the same inputs; float64.

    Correlations of a dead unit, one that does not vary, are 0, also with itself.

    Attributes:
        cxy: correlations between the networks (n, m).
        cxx: within the first network (n, n).
        cyy: within the second network (m, m).
        mean_x: of the first network's units (n,), in units of the activation.
        std_x: their standard deviations (n,), divided by N.
        mean_y: of the second network's units (m,).
        std_y: their standard deviations (m,).
        dead_x: which units of the first network are dead, boolean (n,).
        dead_y: which of the second, boolean (m,).
        samples: number of samples N.
    """

    cxy: Tensor
    cxx: Tensor
    cyy: Tensor
    mean_x: Tensor
    std_x: Tensor
    mean_y: Tensor
    std_y: Tensor
    dead_x: Tensor
    dead_y: Tensor
    samples: int

    def swapped(self) -> UnitStats:
        """The same with the networks' roles exchanged."""
        return UnitStats(
            cxy=self.cxy.mT,
            cxx=self.cyy,
            cyy=self.cxx,
            mean_x=self.mean_y,
            std_x=self.std_y,
            mean_y=self.mean_x,
            std_y=self.std_x,
            dead_x=self.dead_y,
            dead_y=self.dead_x,
            samples=self.samples,
        )

    def select(self, keep_x: Tensor, keep_y: Tensor) -> UnitStats:
        """The same for some of the units, for instance `stats.select(~stats.dead_x, ~stats.dead_y)`.

        Args:
            keep_x: units of the first network: boolean (n,) or indices.
            keep_y: units of the second network: boolean (m,) or indices.
        """
        return UnitStats(
            cxy=self.cxy[keep_x][:, keep_y],
            cxx=self.cxx[keep_x][:, keep_x],
            cyy=self.cyy[keep_y][:, keep_y],
            mean_x=self.mean_x[keep_x],
            std_x=self.std_x[keep_x],
            mean_y=self.mean_y[keep_y],
            std_y=self.std_y[keep_y],
            dead_x=self.dead_x[keep_x],
            dead_y=self.dead_y[keep_y],
            samples=self.samples,
        )


class CorrelationAccumulator:
    """Correlations of the units of two networks, batch by batch, independent of how samples are split into batches.

    Sums of centred products are kept in float64 and merged with the batch's own mean, so that large means cost no
    digits. Memory is (n + m)² numbers whatever the number of samples.

        stats = CorrelationAccumulator()
        for x, y in batches:
            stats.update(x, y)
        stats.compute().cxy

    Args:
        dead_below: a unit with a smaller standard deviation (in units of the activation) counts as dead.

    Raises:
        ValueError: dead_below is negative.

    Source: section 2.1 of the paper (correlations over all inputs and positions).
    """

    def __init__(self, dead_below: float = DEAD_BELOW) -> None:
        if not dead_below >= 0:
            raise ValueError(f"dead_below is {dead_below}; expected 0 or more")
        self.dead_below = dead_below
        self.samples = 0
        self._sizes: tuple[int, int] | None = None
        self._mean = torch.empty(0)
        self._products = torch.empty(0)  # sums of products of deviations from the mean, of all n + m units

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch.

        Args:
            x: activations of the first network (N, n), any floating dtype.
            y: activations of the second network on the same samples in the same order (N, m).

        Raises:
            ValueError: they are not two matrices with the same number of rows, or the number of units has changed.
        """
        _check_rows(x, y)
        sizes = (x.shape[1], y.shape[1])
        if self._sizes is not None and sizes != self._sizes:
            raise ValueError(f"x and y have {sizes} units, but earlier batches had {self._sizes}")
        if len(x) == 0:
            return
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # which has no float64
        both = torch.cat([each.detach().to(device=device, dtype=torch.float64) for each in (x, y)], dim=1)
        mean = both.mean(dim=0)
        centred = both - mean
        products = centred.mT @ centred
        if self._sizes is None:
            self._sizes, self._mean, self._products = sizes, mean, products
        else:
            self._merge(mean.to(self._mean.device), products.to(self._mean.device), len(x))
        self.samples += len(x)

    def merge(self, other: CorrelationAccumulator) -> None:
        """Take in what another accumulator has seen, of other samples of the same units.

        Raises:
            ValueError: it has seen other numbers of units.
        """
        if other._sizes is None:
            return
        if self._sizes is None:
            self._sizes, self._mean, self._products = other._sizes, other._mean.clone(), other._products.clone()
        elif self._sizes != other._sizes:
            raise ValueError(f"other has {other._sizes} units, but this accumulator has {self._sizes}")
        else:
            self._merge(other._mean.to(self._mean.device), other._products.to(self._mean.device), other.samples)
        self.samples += other.samples

    def _merge(self, mean: Tensor, products: Tensor, count: int) -> None:
        total = self.samples + count
        shift = mean - self._mean
        self._products = self._products + products + torch.outer(shift, shift) * (self.samples * count / total)
        self._mean = self._mean + shift * (count / total)

    def compute(self) -> UnitStats:
        """The statistics of everything taken in so far.

        Raises:
            ValueError: there are fewer than two samples, or an activation was not finite.
        """
        if self._sizes is None or self.samples < 2:
            raise ValueError(f"the accumulator has seen {self.samples} samples; expected at least 2")
        if not torch.isfinite(self._products).all():
            raise ValueError("x or y held an activation that is not finite (or beyond the range of its square)")
        return _from_moments(self._mean, self._products / self.samples, self._sizes[0], self.samples, self.dead_below)


def unit_statistics(x: Tensor, y: Tensor, *, dead_below: float = DEAD_BELOW) -> UnitStats:
    """The statistics of activations that fit in memory.

    Args:
        x: activations of the first network (N, n).
        y: activations of the second network on the same samples (N, m).
        dead_below: a unit with a smaller standard deviation counts as dead.

    Raises:
        ValueError: as for `CorrelationAccumulator`.
    """
    accumulator = CorrelationAccumulator(dead_below)
    accumulator.update(x, y)
    return accumulator.compute()


def change_basis(stats: UnitStats, matrix: Tensor, *, dead_below: float = DEAD_BELOW) -> UnitStats:
    """The statistics if the first network's activations X were replaced by X @ matrix.

    With an orthogonal matrix after standardisation, `torch.diag(1 / std_x) @ rotation`, this is the control of the
    claim that units are not arbitrary axes: the subspace stays, the basis is lost.

    Args:
        stats: of the two networks.
        matrix: (n, k), columns are the new units.
        dead_below: a new unit with a smaller standard deviation counts as dead.

    Returns:
        Statistics with k units in the first network.

    Raises:
        ValueError: the matrix has another number of rows than there are units.
    """
    if matrix.ndim != 2 or len(matrix) != len(stats.cxx):
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected ({len(stats.cxx)}, any)")
    M = matrix.to(stats.cxx)
    # Covariances, then both sides are made anew; those of the second network come out as they were.
    xx = M.mT @ covariance(stats, "xx") @ M
    xy = M.mT @ covariance(stats, "xy")
    both = torch.cat([torch.cat([xx, xy], dim=1), torch.cat([xy.mT, covariance(stats, "yy")], dim=1)])
    changed = _from_moments(torch.cat([M.mT @ stats.mean_x, stats.mean_y]), both, len(xx), stats.samples, dead_below)
    return replace(changed, cyy=stats.cyy, std_y=stats.std_y, dead_y=stats.dead_y)


def covariance(stats: UnitStats, block: Literal["xx", "xy", "yy"]) -> Tensor:
    """Covariances within the first network, between the networks, or within the second."""
    left = stats.std_y if block == "yy" else stats.std_x
    right = stats.std_x if block == "xx" else stats.std_y
    correlation = {"xx": stats.cxx, "xy": stats.cxy, "yy": stats.cyy}[block]
    return correlation * left[:, None] * right


def _from_moments(mean: Tensor, covariances: Tensor, n: int, samples: int, dead_below: float) -> UnitStats:
    """Statistics from the means and covariances of all n + m units."""
    std = covariances.diagonal().clamp(min=0).sqrt()
    dead = std < (mean.abs() * ROUNDING).clamp(min=dead_below)
    dead |= std == 0
    inverse = torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, std))
    correlation = (covariances * inverse[:, None] * inverse).clamp(-1, 1)
    correlation = (correlation + correlation.mT) / 2
    correlation.diagonal().copy_((~dead).to(correlation))
    return UnitStats(
        cxy=correlation[:n, n:],
        cxx=correlation[:n, :n],
        cyy=correlation[n:, n:],
        mean_x=mean[:n],
        std_x=std[:n],
        mean_y=mean[n:],
        std_y=std[n:],
        dead_x=dead[:n],
        dead_y=dead[n:],
        samples=samples,
    )


def _check_rows(x: Tensor, y: Tensor) -> None:
    for name, each in (("x", x), ("y", y)):
        if each.ndim != 2 or not each.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(each.shape)} and dtype {each.dtype}; "
                "expected (samples, units), floating point"
            )
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y has {len(y)}; expected the same samples in the same order")
