"""DeepONet: learning operators with a branch and a trunk network (arXiv 1910.03193)."""

from working_papers.papers.deeponet.method import (
    DeepONet,
    OperatorData,
    StackedBranch,
    Training,
    load_operator_data,
    operator_error,
    perceptron,
    train_operator,
)

__all__ = [
    "DeepONet",
    "OperatorData",
    "StackedBranch",
    "Training",
    "load_operator_data",
    "operator_error",
    "perceptron",
    "train_operator",
]
