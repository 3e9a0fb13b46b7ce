"""Benign overfitting and grokking of two-layer ReLU networks on XOR clusters (arXiv 2310.02541)."""

from working_papers.papers.benign_overfitting.method import (
    Batch,
    GramSpace,
    OverfittingReport,
    Trace,
    TwoLayerReLU,
    XORClusters,
    gradient_descent_step,
    gradient_descent_trace,
    linear_r2,
    linear_share,
    minimum_norm_interpolator,
    neuron_alignment,
    overfitting_report,
    step_coefficients,
    theory_constants,
)

__all__ = [
    "Batch",
    "GramSpace",
    "OverfittingReport",
    "Trace",
    "TwoLayerReLU",
    "XORClusters",
    "gradient_descent_step",
    "gradient_descent_trace",
    "linear_r2",
    "linear_share",
    "minimum_norm_interpolator",
    "neuron_alignment",
    "overfitting_report",
    "step_coefficients",
    "theory_constants",
]
