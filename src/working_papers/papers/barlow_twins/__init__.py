"""Barlow Twins: features without labels, from a cross-correlation matrix near the identity (arXiv 2103.03230)."""

from working_papers.papers.barlow_twins.method import (
    LARS,
    BarlowOutput,
    BarlowTwins,
    Projector,
    RandomView,
    barlow_twins_loss,
    barlow_twins_terms,
    cross_correlation,
    imagenet_views,
    lars_parameters,
    warm_up_cosine,
)

__all__ = [
    "LARS",
    "BarlowOutput",
    "BarlowTwins",
    "Projector",
    "RandomView",
    "barlow_twins_loss",
    "barlow_twins_terms",
    "cross_correlation",
    "imagenet_views",
    "lars_parameters",
    "warm_up_cosine",
]
