"""DeepONet: learning operators with a branch and a trunk network. https://arxiv.org/abs/1910.03193

An operator G maps an input function u to an output function G(u). The branch network reads u at m fixed sensors and
returns p coefficients, the trunk network reads a query point y and returns p basis functions, and

    G(u)(y) ≈ sum_k branch(u)_k · trunk(y)_k + bias.

- `DeepONet` joins any two modules; `DeepONet.mlp` makes the paper's, unstacked or stacked (`StackedBranch`).
- `OperatorData` holds functions, queries and values in one of three layouts, `load_operator_data` reads the published
  archives.
- `train_operator` is the paper's training, `operator_error` its test error; both are optional, a loop of one's own
  needs nothing but `model(functions, queries)`.

Taken from the official code (github.com/lululxvi/deeponet) and its library DeepXDE: the sizes of `DeepONet.mlp`; the
trunk has an activation behind its last layer and the branch has not; weights are Glorot normal; the parameters that
count are those of the lowest training loss among those looked at every 1000 steps.

Letters: B = functions of a batch, n = functions of a data set, m = sensors, Q = queries, d = dimension of a query,
p = basis functions.
"""

from working_papers.papers.deeponet.method._data import Layout, OperatorData, load_operator_data
from working_papers.papers.deeponet.method._model import DeepONet, StackedBranch, perceptron
from working_papers.papers.deeponet.method._training import Training, operator_error, train_operator

__all__ = [
    "DeepONet",
    "Layout",
    "OperatorData",
    "StackedBranch",
    "Training",
    "load_operator_data",
    "operator_error",
    "perceptron",
    "train_operator",
]
