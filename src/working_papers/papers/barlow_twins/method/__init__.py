"""Barlow Twins (https://arxiv.org/abs/2103.03230): the loss, the projector, LARS and the paper's two views."""

from working_papers.papers.barlow_twins.method.lars import LARS, lars_parameters, warm_up_cosine
from working_papers.papers.barlow_twins.method.loss import (
    BarlowOutput,
    BarlowTwins,
    Projector,
    barlow_twins_loss,
    barlow_twins_terms,
    cross_correlation,
)
from working_papers.papers.barlow_twins.method.views import RandomView, imagenet_views

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
