"""Exact Learning of Permutations for Nonzero Binary Inputs. https://arxiv.org/abs/2502.16763

Two-layer ReLU networks are trained to convergence on nothing but the k one-hot vectors and their images under a
permutation of k bits. On any other binary vector, scaled to length 1, the output of a very wide network is Gaussian
over random starts, and its mean is positive exactly where the permuted vector has a one. So the average of enough
networks, rounded at zero, is right on every input; how many are enough is known in advance.

- `InfiniteWidthEnsemble` is the Gaussian law itself, for any small data set; `PermutationTheory` its closed form.
- `TwoLayerReLU`, `train_exact`, `train_ensemble` and `Ensemble` are networks of finite width, one or many at a time.
- `round_average`, `majority_vote` and `largest_outputs` turn outputs into bits; `subset_averages` and `size_reaching`
  tell how many of the networks would have been enough.

Paper and official code (opallab/permlearn) differ. The theorems are about the NTK parametrisation without biases, where
both layers learn. The code has the standard parametrisation (standard deviation 1/√inputs in each layer), biases that
start at zero, and one learning rate for all; at its width of 50 000 the last layer does nearly all the learning, so
that the law of its networks is that of kernel="conjugate", which needs far fewer of them. We follow the paper;
parametrisation="standard" with biases is the code.

Our own choices: the step size from the curvature (the code has a fixed one and a fixed number of steps), the exact law
of the number of networks that all inputs together need (the paper bounds it), and the reading by largest outputs.

Letters: k = bits, n = ones of an input, m = width, N = networks, b = inputs, d = their dimension, o = outputs,
P = the permutation, δ = probability of failure, `...` = any number of batch axes.
"""

from working_papers.papers.permutation_learning.method._counting import size_reaching, subset_averages
from working_papers.papers.permutation_learning.method._inputs import (
    binary_inputs,
    largest_outputs,
    majority_vote,
    round_average,
    unit_norm,
)
from working_papers.papers.permutation_learning.method._limit import InfiniteWidthEnsemble, Kernel, limit_kernels
from working_papers.papers.permutation_learning.method._networks import TwoLayerReLU, tangent_kernel
from working_papers.papers.permutation_learning.method._theory import PermutationTheory
from working_papers.papers.permutation_learning.method._training import (
    Ensemble,
    EnsembleFit,
    Fit,
    train_ensemble,
    train_exact,
)

__all__ = [
    "Ensemble",
    "EnsembleFit",
    "Fit",
    "InfiniteWidthEnsemble",
    "Kernel",
    "PermutationTheory",
    "TwoLayerReLU",
    "binary_inputs",
    "largest_outputs",
    "limit_kernels",
    "majority_vote",
    "round_average",
    "size_reaching",
    "subset_averages",
    "tangent_kernel",
    "train_ensemble",
    "train_exact",
    "unit_norm",
]
