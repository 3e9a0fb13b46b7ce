"""Guidance of a network by another one's representations (https://arxiv.org/abs/2410.20035)."""

from working_papers.papers.guidance.method import (
    Guidance,
    LayerTap,
    depth_map,
    linear_cka,
    parametric_layers,
    rsa_distance,
    rsa_similarity,
)

__all__ = [
    "Guidance",
    "LayerTap",
    "depth_map",
    "linear_cka",
    "parametric_layers",
    "rsa_distance",
    "rsa_similarity",
]
