"""Gradient descent on over-parameterised factorisations in matrix sensing (arXiv 2310.01769)."""

from working_papers.papers.matrix_sensing.method import (
    FactoredLinear,
    GaussianSensing,
    IdentitySensing,
    RankOneSensing,
    RateFit,
    SensingOperator,
    Trace,
    contraction_rate,
    factored_gradient_descent,
    fit_rate,
    gradient_step,
    imbalance,
    initial_factors,
    rebalance,
    redundant_product,
    symmetric_error,
)

__all__ = [
    "FactoredLinear",
    "GaussianSensing",
    "IdentitySensing",
    "RankOneSensing",
    "RateFit",
    "SensingOperator",
    "Trace",
    "contraction_rate",
    "factored_gradient_descent",
    "fit_rate",
    "gradient_step",
    "imbalance",
    "initial_factors",
    "rebalance",
    "redundant_product",
    "symmetric_error",
]
