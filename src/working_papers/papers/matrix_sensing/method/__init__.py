"""How Over-Parameterization Slows Down Gradient Descent in Matrix Sensing. https://arxiv.org/abs/2310.01769

A matrix of rank r is recovered from linear measurements by gradient descent on a product of two factors with k
columns. Spare columns (k > r) of a symmetric product fade like 1/T; those of two factors that start at unequal
scales fade geometrically, at a rate set by the squared scale of the start; one rebalancing step, which leaves the
product alone, makes the rate independent of the start.

No official code was found. Our own choices:
- the rebalancing step takes the polar factor of F where the paper takes its left singular vectors. The two differ
  by a rotation of the columns, which no product and no later step can see; ours also covers k > n1 and needs no
  division by small singular values;
- its default β is the root of the product's largest singular value, which needs no knowledge of the rank; see
  `rebalance` for what the smallest one, σ_r, would gain;
- it is triggered by the measured residual, because the distance to the truth that the paper refers to is unknown.
The form of the rebalancing step, and the scales α and α/3 of the start, were written down from memory of the paper;
that the step does what the paper says of it is tested.

Letters: n1, n2 = rows and columns of the matrix, k = columns of a factor, r = rank of the truth, m = measurements,
F (n1, k) = left factor, G (n2, k) = right factor, E = adjoint(residual) (n1, n2), η = learning rate,
R = recorded steps, `...` = any number of batch axes.
"""

from working_papers.papers.matrix_sensing.method._descent import Trace, factored_gradient_descent, gradient_step
from working_papers.papers.matrix_sensing.method._factors import FactoredLinear, imbalance, initial_factors, rebalance
from working_papers.papers.matrix_sensing.method._rates import (
    RateFit,
    contraction_rate,
    fit_rate,
    redundant_product,
    symmetric_error,
)
from working_papers.papers.matrix_sensing.method._sensing import (
    GaussianSensing,
    IdentitySensing,
    RankOneSensing,
    SensingOperator,
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
