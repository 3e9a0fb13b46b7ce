"""Frame Averaging for Invariant and Equivariant Network Design (https://arxiv.org/abs/2110.03336).

Average any backbone over a *frame*, a small set of group elements that is computed from the input and turns
with it: the average is exactly invariant or equivariant, without a sum over the whole group. For rigid motions
the frame comes from the principal axes of the points, for graphs from sorting nodes by Laplacian eigenspaces.

Where this departs from the official code (https://github.com/omri1348/Frame-Averaging):
  - frames are computed in float64, and eigenvalues closer than a tolerance count as equal (the graph code
    compares them bit by bit, so rounding can split an eigenspace and the frame then depends on node order);
  - nearly symmetric point clouds, whose axes are arbitrary, are flagged;
  - any dimension d, padding masks, point weights, graphs in padded batches, and the whole graph frame.

Dimension letters:
  B  samples in a batch     n  points or nodes          d  dimension of space
  K  elements of a frame    H  features of a node       C  latent vectors of a node, H = C·d
  k  elements drawn         M  relabelled graphs: the batch that a graph backbone sees
"""

from working_papers.papers.frame_averaging.method._graphs import GraphFrameAveraging, SortFrame, graph_frame
from working_papers.papers.frame_averaging.method._rigid import (
    FrameAveraging,
    FrameSet,
    LayerwiseFrameAveraging,
    euclidean_frame,
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
