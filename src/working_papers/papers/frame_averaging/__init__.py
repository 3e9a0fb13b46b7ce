"""Frame averaging: exact symmetry around any backbone (https://arxiv.org/abs/2110.03336)."""

from working_papers.papers.frame_averaging.method import (
    FrameAveraging,
    FrameSet,
    GraphFrameAveraging,
    LayerwiseFrameAveraging,
    SortFrame,
    euclidean_frame,
    graph_frame,
)

__all__ = [
    "FrameAveraging",
    "FrameSet",
    "GraphFrameAveraging",
    "LayerwiseFrameAveraging",
    "SortFrame",
    "euclidean_frame",
    "graph_frame",
]
