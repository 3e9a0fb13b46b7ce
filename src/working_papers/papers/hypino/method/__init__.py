"""HyPINO: a hypernetwork that writes the weights of a physics-informed network for a given equation.

https://arxiv.org/abs/2509.05117

Linear equations of second order on the square [-1, 1]² are drawn as images; `HyperPINN` turns them into the weights of
a `ModulatedMLP`, whose derivatives are exact. `sample_problems` makes training problems backwards, from solutions;
`training_loss` trains; `refine` corrects a solution by solving for its residual; `finetune` goes on from the weights.

The official code (https://github.com/rbischof/hypino, MIT) was not copied. Ours differs in these points:
- derivatives go forward through the network as jets, instead of nested automatic differentiation;
- problems are sampled in batches, and holes are cut by signed distances;
- the last layers of the heads start small, at a usual initialisation of the generated network;
- `refine` can bring residual problems to unit size; pixels of a coarse image know the boundary point they stand for;
- operators of second order in y alone count as elliptic, so that their problem is closed.
"""

from working_papers.papers.hypino.method._batches import Batched
from working_papers.papers.hypino.method._encoder import FiLM, ImageEncoder
from working_papers.papers.hypino.method._hypernetwork import (
    AttentionPool,
    HyperPINN,
    WarmCosine,
    compress_source,
    paper_optimizer,
)
from working_papers.papers.hypino.method._jets import Jet, ModulatedMLP, fourier_features
from working_papers.papers.hypino.method._manufactured import (
    ManufacturedSolution,
    Problems,
    sample_mms_problem,
    sample_operator,
    sample_problems,
)
from working_papers.papers.hypino.method._problems import (
    BoundarySamples,
    Holes,
    LinearPDE,
    apply_operator,
    grid_points,
    square_outline,
)
from working_papers.papers.hypino.method._refinement import (
    Ensemble,
    Finetuned,
    finetune,
    refine,
    residual_problem,
)
from working_papers.papers.hypino.method._training import WEIGHTS, Points, physics_loss, training_loss

__all__ = [
    "WEIGHTS",
    "AttentionPool",
    "Batched",
    "BoundarySamples",
    "Ensemble",
    "FiLM",
    "Finetuned",
    "Holes",
    "HyperPINN",
    "ImageEncoder",
    "Jet",
    "LinearPDE",
    "ManufacturedSolution",
    "ModulatedMLP",
    "Points",
    "Problems",
    "WarmCosine",
    "apply_operator",
    "compress_source",
    "finetune",
    "fourier_features",
    "grid_points",
    "paper_optimizer",
    "physics_loss",
    "refine",
    "residual_problem",
    "sample_mms_problem",
    "sample_operator",
    "sample_problems",
    "square_outline",
    "training_loss",
]
