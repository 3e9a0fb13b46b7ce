"""Many to many: groups of units of both networks, and how far a group spans the same subspace in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from working_papers.papers.convergent_learning.method.statistics import UnitStats

RESTARTS = 10
RANK = 1e-8  # directions with less variance than this share of the largest are left out of canonical correlations


@dataclass(frozen=True)
class Groups:
    """Groups of the units of two networks, the largest group first.

    Attributes:
        label_x: group of each unit of the first network, int64 (n,); -1 for dead units.
        label_y: group of each unit of the second network (m,).
        shared: which groups hold units of both networks, boolean (k,).
        cca2: mean squared canonical correlation between a group's two parts (k,): 1 where they span the same subspace
            whatever the basis; NaN where a group is not shared.
        within: mean |correlation| between units of different networks in the same group; NaN without a shared group.
        between: the same for units in different groups; NaN where there are none.
    """

    label_x: Tensor
    label_y: Tensor
    shared: Tensor
    cca2: Tensor
    within: float
    between: float

    def order(self) -> tuple[Tensor, Tensor]:
        """The units of each network group by group, for showing correlation matrices: indices (n,) and (m,)."""
        last = len(self.shared)
        return tuple(  # type: ignore[return-value]
            torch.where(label < 0, last, label).sort(stable=True).indices for label in (self.label_x, self.label_y)
        )


def spectral_groups(stats: UnitStats, k: int, seed: int = 0) -> Groups:
    """Cluster the units of both networks together.

    The affinity of two units, of the same network or not, is their absolute correlation. The k eigenvectors of the
    smallest eigenvalues of the normalised Laplacian, with rows of length one, are clustered by k-means (k-means++,
    10 restarts). Dead units belong to no group.

    Args:
        stats: of the two networks.
        k: number of groups, 1 to the number of units that are not dead.
        seed: of k-means.

    Raises:
        ValueError: k is out of range.

    Source: section 5 of the paper; the recipe is the standard one (Ng, Jordan and Weiss 2001).
    """
    from sklearn.cluster import KMeans

    affinity, alive = _affinity(stats)
    _check_k(k, len(affinity))
    root = affinity.sum(dim=1).rsqrt()
    laplacian = torch.eye(len(affinity), dtype=affinity.dtype) - affinity * root[:, None] * root
    vectors = torch.linalg.eigh(laplacian).eigenvectors[:, :k]
    rows = torch.nn.functional.normalize(vectors, dim=1)
    found = KMeans(k, n_init=RESTARTS, random_state=seed, algorithm="lloyd").fit(rows.numpy()).labels_
    return _groups(stats, alive, np.asarray(found), k)


def agglomerative_groups(stats: UnitStats, k: int) -> Groups:
    """Cluster the units of both networks by average linkage on 1 - |correlation|, without a random choice.

    Args:
        stats: of the two networks.
        k: largest number of groups, 1 to the number of units that are not dead.

    Raises:
        ValueError: k is out of range.

    Source: section 5 of the paper has such a hierarchy; the linkage is ours.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    affinity, alive = _affinity(stats)
    _check_k(k, len(affinity))
    if len(affinity) == 1:
        return _groups(stats, alive, np.zeros(1, dtype=np.int64), 1)
    distance = (1 - affinity).clamp(min=0)
    distance.fill_diagonal_(0)
    tree = linkage(squareform(distance.numpy(), checks=False), method="average")
    return _groups(stats, alive, fcluster(tree, k, criterion="maxclust") - 1, k)


def canonical_correlations(cxx: Tensor, cyy: Tensor, cxy: Tensor) -> Tensor:
    """Canonical correlations between two sets of units, from correlations (or covariances).

    Args:
        cxx: within the first set (n, n).
        cyy: within the second set (m, m).
        cxy: between them (n, m).

    Returns:
        min(rank x, rank y) numbers from 1 to 0, in falling order. They do not change when a set is replaced by any
        basis of its span.

    Raises:
        ValueError: the shapes do not fit.
    """
    n, m = cxy.shape
    if cxx.shape != (n, n) or cyy.shape != (m, m):
        raise ValueError(
            f"cxx and cyy have shapes {tuple(cxx.shape)} and {tuple(cyy.shape)}; expected {(n, n)} and {(m, m)}"
        )
    white_x, white_y = (_whitening(each) for each in (cxx, cyy))
    correlations: Tensor = torch.linalg.svdvals(white_x.mT @ cxy @ white_y).clamp(0, 1)
    return correlations


def _whitening(c: Tensor) -> Tensor:
    """(n, rank), columns that make the covariance the identity."""
    values, vectors = torch.linalg.eigh(c)
    keep = values > RANK * values[-1:].clamp(min=0)  # in rising order
    whitening: Tensor = vectors[:, keep] * values[keep].rsqrt()
    return whitening


def _affinity(stats: UnitStats) -> tuple[Tensor, Tensor]:
    """Absolute correlations of all units that are not dead, on the CPU, and which of the n + m units those are."""
    both = torch.cat([torch.cat([stats.cxx, stats.cxy], dim=1), torch.cat([stats.cxy.mT, stats.cyy], dim=1)]).cpu()
    alive = ~torch.cat([stats.dead_x, stats.dead_y]).cpu()
    return both[alive][:, alive].abs(), alive


def _check_k(k: int, units: int) -> None:
    if not 1 <= k <= units:
        raise ValueError(f"k is {k}; expected 1 to {units}, the number of units that are not dead")


def _groups(stats: UnitStats, alive: Tensor, found: np.ndarray, k: int) -> Groups:
    sizes = np.bincount(found, minlength=k)
    rank = np.empty(k, dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(k)
    label = torch.full((len(alive),), -1, dtype=torch.int64)
    label[alive] = torch.from_numpy(rank[found])
    label = label.to(stats.cxy.device)
    label_x, label_y = label[: len(stats.cxx)], label[len(stats.cxx) :]
    in_x, in_y = (each[None] == torch.arange(k, device=label.device)[:, None] for each in (label_x, label_y))
    shared = in_x.any(dim=1) & in_y.any(dim=1)
    cca2 = torch.full((k,), torch.nan, dtype=stats.cxy.dtype, device=label.device)
    for group in shared.nonzero()[:, 0].tolist():
        x, y = in_x[group], in_y[group]
        cca2[group] = canonical_correlations(stats.cxx[x][:, x], stats.cyy[y][:, y], stats.cxy[x][:, y]).square().mean()
    size = stats.cxy.abs()
    known = (label_x >= 0)[:, None] & (label_y >= 0)
    together = (label_x[:, None] == label_y) & known
    return Groups(
        label_x=label_x,
        label_y=label_y,
        shared=shared,
        cca2=cca2,
        within=float(size[together].mean()),
        between=float(size[known & ~together].mean()),
    )
