"""Neural collapse of deep linear networks: closed-form optima and measures (https://arxiv.org/abs/2301.00437)."""

from working_papers.papers.neural_collapse.method import (
    ClassStatistics,
    CollapsedGeometry,
    CollapseMonitor,
    CollapseReport,
    Frame,
    LinearHead,
    UnconstrainedFeatures,
    balancedness_gaps,
    collapse_metrics,
    collapsed_geometry,
    frame_distance,
    optimal_strength,
    regularised_loss,
    simplex_cross_entropy,
    survival_threshold,
)

__all__ = [
    "ClassStatistics",
    "CollapseMonitor",
    "CollapseReport",
    "CollapsedGeometry",
    "Frame",
    "LinearHead",
    "UnconstrainedFeatures",
    "balancedness_gaps",
    "collapse_metrics",
    "collapsed_geometry",
    "frame_distance",
    "optimal_strength",
    "regularised_loss",
    "simplex_cross_entropy",
    "survival_threshold",
]
