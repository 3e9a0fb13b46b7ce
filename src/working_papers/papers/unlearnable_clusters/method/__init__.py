"""Unlearnable Clusters: noise that spoils images for training under any labelling (https://arxiv.org/abs/2301.01217).

Images are grouped by k-means on the features of a surrogate network; each group gets one pattern, optimised so that
any image with it looks, to those features, like the centre of another group. Beside it stands the older noise that
needs labels, for comparison.
"""

from working_papers.papers.unlearnable_clusters.method.clusters import (
    PenultimateFeatures,
    UnlearnableClusters,
    cluster_kl_loss,
    clustered_targets,
)
from working_papers.papers.unlearnable_clusters.method.error_minimizing import error_minimizing_noise
from working_papers.papers.unlearnable_clusters.method.generators import DirectNoise, NoiseGenerator

__all__ = [
    "DirectNoise",
    "NoiseGenerator",
    "PenultimateFeatures",
    "UnlearnableClusters",
    "cluster_kl_loss",
    "clustered_targets",
    "error_minimizing_noise",
]
