"""Unit matching between two networks, from Convergent Learning (https://arxiv.org/abs/1511.07543).

Activations of a layer of two networks on the same inputs are reduced to correlations in one streaming pass. From these
alone follow the three alignments of the paper: one to one (semi- and bipartite matching), one to few (lasso on the
correlation matrix, all targets at once) and many to many (clusters of the units of both networks), with canonical
correlations to say how far a group spans the same subspace in both.

Where this differs from the official code (github.com/YixuanLi/convergent_learning, read for facts):
- the assignment is scipy's, exact, rectangular too; there it is a graph library's maximum-weight matching;
- the sparse maps are exact minimisers on standardised units; there a 1 x 1 convolution is trained by SGD with an L1
  decay, whose strength is on another scale;
- the bias of mutual information is (rows - 1)(columns - 1) / (2 N) nats over the bins in use; there it is
  cells / (2 N ln 2), a number of bits, taken from nats;
- the clustering is standard spectral clustering and average linkage: the paper has both kinds, and the official
  notebook imports scikit-learn's agglomerative clustering, but their settings could not be read.
Section numbers are from memory.

Letters: N = samples, n = units of the first network (x), m = units of the second (y).
"""

from working_papers.papers.convergent_learning.method.groups import (
    Groups,
    agglomerative_groups,
    canonical_correlations,
    spectral_groups,
)
from working_papers.papers.convergent_learning.method.information import mutual_information
from working_papers.papers.convergent_learning.method.matching import (
    Match,
    bipartite_match,
    permute_units,
    semi_match,
)
from working_papers.papers.convergent_learning.method.sparse import (
    PredictionCurve,
    SparseMap,
    prediction_curve,
    sparse_map,
)
from working_papers.papers.convergent_learning.method.statistics import (
    CorrelationAccumulator,
    UnitStats,
    change_basis,
    unit_statistics,
)
from working_papers.papers.convergent_learning.method.units import collect_units, layer_statistics, unit_rows

__all__ = [
    "CorrelationAccumulator",
    "Groups",
    "Match",
    "PredictionCurve",
    "SparseMap",
    "UnitStats",
    "agglomerative_groups",
    "bipartite_match",
    "canonical_correlations",
    "change_basis",
    "collect_units",
    "layer_statistics",
    "mutual_information",
    "permute_units",
    "prediction_curve",
    "semi_match",
    "sparse_map",
    "spectral_groups",
    "unit_rows",
    "unit_statistics",
]
