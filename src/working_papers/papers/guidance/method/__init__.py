"""Guidance: a frozen network, trained or not, pulls the layers of another one towards its own representations.

Subramaniam et al. 2024, "Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
https://arxiv.org/abs/2410.20035. Target and guide read the same batch; the loss of the target gets one more term,

    task + weight · Σ over pairs (1 - similarity(layer of the target, layer of the guide)),

with linear centred kernel alignment (CKA) as the similarity and a pair for every layer of the guide, at the same
relative depth. Gradients reach the target only. Where the official code (vsubramaniam851/untrainable-networks) does
something else, the docstrings say so.

Similarities know nothing of scale: they neither hold activations up nor keep them small. A plain target whose
activations fade with depth can be aligned and yet not learn; targets need normalisation or a careful start.
"""

from __future__ import annotations

from working_papers.nn.similarity import linear_cka
from working_papers.papers.guidance.method.guidance import Guidance, depth_map
from working_papers.papers.guidance.method.layers import LayerTap, parametric_layers
from working_papers.papers.guidance.method.similarity import rsa_distance, rsa_similarity

__all__ = [
    "Guidance",
    "LayerTap",
    "depth_map",
    "linear_cka",
    "parametric_layers",
    "rsa_distance",
    "rsa_similarity",
]
