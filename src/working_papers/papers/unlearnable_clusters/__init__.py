"""Unlearnable Clusters: noise against training under any labelling (arXiv 2301.01217)."""

from working_papers.papers.unlearnable_clusters.method import (
    DirectNoise,
    NoiseGenerator,
    PenultimateFeatures,
    UnlearnableClusters,
    cluster_kl_loss,
    clustered_targets,
    error_minimizing_noise,
)

__all__ = [
    "DirectNoise",
    "NoiseGenerator",
    "PenultimateFeatures",
    "UnlearnableClusters",
    "cluster_kl_loss",
    "clustered_targets",
    "error_minimizing_noise",
]
