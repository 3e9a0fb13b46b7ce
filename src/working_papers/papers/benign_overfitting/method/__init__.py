"""Benign Overfitting and Grokking in ReLU Networks for XOR Cluster Data.

https://arxiv.org/abs/2310.02541 (Xu, Wang, Frei, Vardi, Hu; ICLR 2024)

Four Gaussian clusters carry XOR labels, some of them flipped. Full-batch gradient descent on a two-layer
ReLU network memorises every label in its first step, the flipped ones too, and is then next to a linear
classifier; a few steps later it has found the clusters, labels fresh data nearly perfectly, and still fits
every flipped label.

No official code was found: data, network and training follow the paper's problem setting. Ours are the two
ways to run it at the input dimensions that the theorems ask for (`draw_in_span`, exact in law, and `GramSpace`,
exact), the linear share (`linear_share`) and the meter for training logs (`overfitting_report`).

Dimensions:
    n  training samples             p  input dimension          m  neurons
    q  observed points              k  directions               r  recorded steps
"""

from working_papers.papers.benign_overfitting.method._clusters import Batch, XORClusters
from working_papers.papers.benign_overfitting.method._meters import (
    OverfittingReport,
    Trace,
    accuracy,
    gradient_descent_trace,
    linear_r2,
    linear_share,
    minimum_norm_interpolator,
    neuron_alignment,
    overfitting_report,
    theory_constants,
)
from working_papers.papers.benign_overfitting.method._network import (
    GramSpace,
    TwoLayerReLU,
    draw_in_span,
    isotropic_coordinates,
    step_coefficients,
)

__all__ = [
    "Batch",
    "GramSpace",
    "OverfittingReport",
    "Trace",
    "TwoLayerReLU",
    "XORClusters",
    "accuracy",
    "draw_in_span",
    "gradient_descent_trace",
    "isotropic_coordinates",
    "linear_r2",
    "linear_share",
    "minimum_norm_interpolator",
    "neuron_alignment",
    "overfitting_report",
    "step_coefficients",
    "theory_constants",
]
