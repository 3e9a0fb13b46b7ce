"""Dataset distillation with directed weight adjustment (arXiv 2409.17612)."""

from working_papers.papers.directed_weight_adjustment.method import (
    BNStatistics,
    directed_weight_adjustment,
    distill,
    diversity,
    roll,
    soft_label_loss,
    soft_labels,
    synthesize,
)

__all__ = [
    "BNStatistics",
    "directed_weight_adjustment",
    "distill",
    "diversity",
    "roll",
    "soft_label_loss",
    "soft_labels",
    "synthesize",
]
