"""Alignment, dimension and abstraction of a layer's representation, and the family of tasks that shapes them.

Measures take the activations of any layer of any model, for one network or for a stack of them on leading axes. Tasks
set how far the geometry of the inputs agrees with that of the labels. `OneHidden` holds many networks (seeds,
activation functions) as one batched module, and `train_together` trains them all at once with the numbers that each
would have alone.

Source: Alleman, Lindsey and Fusi 2024, https://arxiv.org/abs/2401.13558. No official code was found. The definitions of
parallelism, generalisation across conditions and shattering are those of Bernardi et al. 2020 ("The geometry of
abstraction in the hippocampus and prefrontal cortex"), from memory, as are the settings of the paper's training.

Dimensions:
    P  conditions (inputs without noise)     d  input features       S  networks of a stack
    N  units of a layer                      k  binary targets       ...  any batch axes, mostly the stack
"""

from working_papers.papers.representational_geometry.method.alignment import (
    alignment,
    dimensionality,
    parallelism_score,
    within_class_fraction,
)
from working_papers.papers.representational_geometry.method.decoding import (
    Samples,
    balanced_dichotomies,
    ccgp,
    decoding_accuracy,
    noisy_samples,
    shattering_dimension,
)
from working_papers.papers.representational_geometry.method.networks import (
    ACTIVATIONS,
    OneHidden,
    Trajectory,
    logistic_loss,
    train_together,
)
from working_papers.papers.representational_geometry.method.report import GeometryReport, geometry_report
from working_papers.papers.representational_geometry.method.selectivity import (
    UnitSelectivity,
    expected_update,
    gradient_field,
    unit_selectivity,
)
from working_papers.papers.representational_geometry.method.tasks import Task, structured_task

__all__ = [
    "ACTIVATIONS",
    "GeometryReport",
    "OneHidden",
    "Samples",
    "Task",
    "Trajectory",
    "UnitSelectivity",
    "alignment",
    "balanced_dichotomies",
    "ccgp",
    "decoding_accuracy",
    "dimensionality",
    "expected_update",
    "geometry_report",
    "gradient_field",
    "logistic_loss",
    "noisy_samples",
    "parallelism_score",
    "shattering_dimension",
    "structured_task",
    "train_together",
    "unit_selectivity",
    "within_class_fraction",
]
