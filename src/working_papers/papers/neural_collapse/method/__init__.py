"""Neural Collapse in Deep Linear Networks: From Balanced to Imbalanced Data.

https://arxiv.org/abs/2301.00437 (Dang, Tran, Osher, Tran-The, Ho, Nguyen; ICML 2023)

If a classifier's features are free variables, followed by linear layers and weight decay, the best solution for
squared error can be written down. Classes collapse to points at right angles (to a simplex if there is a bias);
their lengths follow from the class sizes, and a class below a threshold vanishes.

Where this differs from the official code (github.com/Fsoft-AIC/Neural-Collapse-in-Deep-Linear-Networks): that
takes the largest stationary point for every class and never compares it with zero, so near the threshold it keeps
classes that the optimum drops; here the comparison is made. Ours are the closed form for unequal classes with a
free bias (the same argument on centred targets) and the derivatives by the decays. The theorems were rederived
for this project rather than read line by line, and the tests hold them against the gradient.

`geometry` has the closed forms, `model` the objective and its modules, `metrics` the measures for any classifier.
"""

from working_papers.papers.neural_collapse.method.geometry import (
    CollapsedGeometry,
    Frame,
    collapsed_geometry,
    optimal_strength,
    simplex_cross_entropy,
    survival_threshold,
)
from working_papers.papers.neural_collapse.method.metrics import (
    ClassStatistics,
    CollapseMonitor,
    CollapseReport,
    collapse_metrics,
    frame_distance,
)
from working_papers.papers.neural_collapse.method.model import (
    LinearHead,
    UnconstrainedFeatures,
    balancedness_gaps,
    regularised_loss,
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
