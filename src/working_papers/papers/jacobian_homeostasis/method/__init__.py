"""Improving equilibrium propagation without weight symmetry through Jacobian homeostasis.

https://arxiv.org/abs/2309.02214

A network settles, is nudged, and the change of its activations is taken for the gradient of the loss. Two things can
spoil that: nudges of finite size, and backward weights that are not the forward ones. Complex nudges around a circle
take the first away (`nudge_derivative`); a loss on the antisymmetric part of the Jacobian works against the second
(`jacobian_asymmetry`, for any vector field; `ep_gradients_` for whole training steps).

The official code (https://github.com/Laborieux-Axel/generalized-holo-ep, MIT, JAX) was read and is followed: the
Jacobian is taken with respect to the activations, the loss is divided by the number of units and averaged over five
probes, states start at zero. Ours differs in these points:
- all nudges relax in one batch, and so do networks, with `members`;
- an iteration may be damped (`relaxation`); 1, as there, is the default;
- numbers that are not finite are reported and their samples left out, where the official code sets them to zero;
- weights are Gaussian where the code truncates the Gaussian;
- convolutional feedback takes complex numbers.

Letters: u = state, a = σ(u) activations, x = input, y = target, L = loss, W = recurrent weights, J = ∂F/∂u,
β = nudge, N = number of nudges, T1, T2 = free and nudged steps, γ = relaxation factor, B = samples, D = units,
ε = error vector of equilibrium propagation, δ = that of recurrent back-propagation.
"""

from working_papers.papers.jacobian_homeostasis.method._activations import (
    dsilu,
    holomorphic_softmax,
    is_holomorphic,
    logistic,
    sigmoid4,
    softmax_pool,
)
from working_papers.papers.jacobian_homeostasis.method._convolution import ConvEquilibriumNet
from working_papers.papers.jacobian_homeostasis.method._dense import Connection, EquilibriumNet, layered
from working_papers.papers.jacobian_homeostasis.method._homeostasis import (
    alignment,
    homeostatic_loss,
    jacobian_asymmetry,
    symmetry_index,
    weight_angle,
)
from working_papers.papers.jacobian_homeostasis.method._learning import (
    ErrorVector,
    StepReport,
    ep_gradients_,
    nudge_derivative,
    recurrent_backprop,
    rotating_nudge,
)
from working_papers.papers.jacobian_homeostasis.method._model import EquilibriumModel

__all__ = [
    "Connection",
    "ConvEquilibriumNet",
    "EquilibriumModel",
    "EquilibriumNet",
    "ErrorVector",
    "StepReport",
    "alignment",
    "dsilu",
    "ep_gradients_",
    "holomorphic_softmax",
    "homeostatic_loss",
    "is_holomorphic",
    "jacobian_asymmetry",
    "layered",
    "logistic",
    "nudge_derivative",
    "recurrent_backprop",
    "rotating_nudge",
    "sigmoid4",
    "softmax_pool",
    "symmetry_index",
    "weight_angle",
]
