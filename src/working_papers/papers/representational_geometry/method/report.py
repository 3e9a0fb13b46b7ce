"""All measures of a layer in one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.papers.representational_geometry.method.alignment import (
    alignment,
    dimensionality,
    parallelism_score,
    within_class_fraction,
)
from working_papers.papers.representational_geometry.method.arguments import check_activity, check_targets
from working_papers.papers.representational_geometry.method.decoding import (
    Samples,
    balanced_dichotomies,
    ccgp,
    decoding_accuracy,
    noisy_samples,
)


@dataclass(frozen=True)
class GeometryReport:
    """The geometry of a layer; every field has one number a network [...].

    Attributes:
        cka_input: alignment with the inputs, from 0 to 1.
        cka_target: alignment with the targets, from 0 to 1.
        within: share of variance within classes; 0 when each class is one point.
        sd_trained: accuracy of linear readouts of the trained dichotomies.
        sd_untrained: mean accuracy over balanced dichotomies that were not trained.
        ccgp: generalisation of the trained dichotomies to held-out conditions.
        ps: parallelism score of the trained dichotomies.
        dimension: participation ratio of the condition means.
    """

    cka_input: Tensor
    cka_target: Tensor
    within: Tensor
    sd_trained: Tensor
    sd_untrained: Tensor
    ccgp: Tensor
    ps: Tensor
    dimension: Tensor


def geometry_report(
    h: Tensor,
    x: Tensor,
    targets: Tensor,
    noise: float = 0.5,
    seed: int = 0,
    *,
    samples: Samples | None = None,
    n_dichotomies: int = 100,
) -> GeometryReport:
    """Measure the geometry of any layer of any model.

    Args:
        h: the layer's activity in each condition [..., P, N]; leading axes are networks.
        x: the inputs [..., P, d].
        targets: binary targets that were trained, each -1 in one half of the conditions and 1 in the other [P, k].
        noise: on the layer, as in `noisy_samples`; not used where `samples` are given.
        seed: of noise, dichotomies, splits and pairings.
        samples: noisy activity of the layer itself, e.g. at noisy inputs.
        n_dichotomies: largest number of dichotomies that are not trained.

    Returns:
        The report; measures of several targets are averaged.

    Raises:
        ValueError: shapes do not fit, or a target is not balanced.
    """
    check_activity("h", h, conditions=4)
    targets = check_targets(targets, h.shape[-2]).to(h)
    if samples is None:
        samples = noisy_samples(h, noise, seed=seed)
    untrained = balanced_dichotomies(h.shape[-2], n_dichotomies, targets, seed).to(h)
    accuracy = decoding_accuracy(h, torch.cat([targets.mT, untrained]), samples=samples)
    columns = targets.unbind(dim=1)
    return GeometryReport(
        cka_input=alignment(h, x),
        cka_target=alignment(h, targets),
        within=within_class_fraction(h, targets),
        sd_trained=accuracy[..., : len(columns)].mean(dim=-1),
        sd_untrained=accuracy[..., len(columns) :].mean(dim=-1),
        ccgp=torch.stack([ccgp(h, column, seed=seed, samples=samples) for column in columns]).mean(dim=0),
        ps=torch.stack([parallelism_score(h, column, seed=seed) for column in columns]).mean(dim=0),
        dimension=dimensionality(h),
    )
