"""The Principles of Deep Learning Theory.

https://arxiv.org/abs/2106.10165 (Roberts, Yaida, Hanin; Cambridge University Press 2022)

In a random perceptron the kernel of each layer follows from that of the layer before. Two susceptibilities say whether
small differences between inputs grow or shrink; variances of weights and biases that make both one are critical.
Networks of finite width scatter around the mean kernel by an amount that grows with depth over width.

Cited as "book" below, by section; sections were not read again, and every equation was rederived and is tested against
simulation. Beyond the book: activations with kinks anywhere, slopes that differ left and right of zero, and the
moments of unequal widths. Left out: the vertex of several inputs, residual connections, and training at finite width.

`gaussian` has the averages, `criticality` the critical points, `flows` the recursions, `ensembles` many perceptrons at
once, `networks` initialisation and probe of the user's own model.
"""

from working_papers.papers.deep_learning_theory.method.criticality import (
    CriticalPoint,
    find_critical,
    susceptibilities,
)
from working_papers.papers.deep_learning_theory.method.ensembles import Perceptrons, sample_metric
from working_papers.papers.deep_learning_theory.method.flows import (
    MetricMoments,
    first_kernel,
    kernel_flow,
    metric_moments,
    ntk_flow,
    vertex_flow,
)
from working_papers.papers.deep_learning_theory.method.gaussian import Activation, Kinked, gaussian_mean
from working_papers.papers.deep_learning_theory.method.networks import (
    DepthReport,
    critical_init_,
    probe,
)

__all__ = [
    "Activation",
    "CriticalPoint",
    "DepthReport",
    "Kinked",
    "MetricMoments",
    "Perceptrons",
    "critical_init_",
    "find_critical",
    "first_kernel",
    "gaussian_mean",
    "kernel_flow",
    "metric_moments",
    "ntk_flow",
    "probe",
    "sample_metric",
    "susceptibilities",
    "vertex_flow",
]
