"""The study of NorMuon: a small language model on a language whose entropy is known, trained by three optimisers.

Letters: S = symbols, B = sequences a batch, T = symbols a sequence, D = width of the model, m, n = rows and columns.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.papers.normuon.method import NorMuon, newton_schulz, row_norm_dispersion, split_parameters

SYMBOLS = 32
LENGTH = 32  # symbols a model sees before the last one it predicts
HEADS = 4
LAYERS = 2
CONCENTRATION = 0.1  # of the Dirichlet law of each context: about three likely next symbols out of 32
REST_LEARNING_RATE = 0.01
MOMENTUM = 0.95
WARM_UP = 0.1
DECAY = 0.3

study = Study(
    question="Does NorMuon reach a lower loss than Muon and AdamW in the same number of steps, with even row norms?",
    arms={"normuon": "NorMuon", "muon": "Muon", "adamw": "AdamW"},
    method="normuon",
    seeds={"smoke": 2, "laptop": 6, "paper": 3},
    measures=(
        Measure("final excess loss", unit="nats", better="lower", scale="ratio", about="x"),
        Measure("row-norm dispersion, relative to Muon", better="lower", scale="ratio", about="x"),
        Measure("singular-value spread, relative to Muon", better="lower", scale="ratio", about="x"),
    ),
    checks=(
        beats("normuon", over="muon", on="final excess loss", claim="efficiency"),
        beats("normuon", over="adamw", on="final excess loss", claim="efficiency"),
        within("normuon", on="row-norm dispersion, relative to Muon", high=0.5, claim="uniform-rows"),
        within("normuon", on="singular-value spread, relative to Muon", high=2.0, claim="conditioning"),
    ),
    budget="x",
    sham="muon",
)


@dataclass(frozen=True)
class Text:
    """What the arms of a seed read.

    Attributes:
        training: (steps, B, T + 1), symbols; every sequence is read once.
        validation: (sequences, T + 1), symbols.
        law: (sequences, T - 1, S), true law of what follows in the validation text, from its second symbol on.
    """

    training: Tensor
    validation: Tensor
    law: Tensor


@study.prepare
def language(seed: int, scale: Scale) -> Text:
    """An order-2 Markov language: each pair of symbols has its own law of the next one, drawn from a Dirichlet."""
    steps = scale.choose(smoke=20, laptop=400, paper=10_000)
    batch = scale.choose(smoke=16, laptop=64, paper=256)
    held_out = scale.choose(smoke=64, laptop=256, paper=1024)
    random = np.random.default_rng(seed)
    laws = random.dirichlet(np.full(SYMBOLS, CONCENTRATION), size=(SYMBOLS, SYMBOLS))
    cumulative = laws.cumsum(axis=-1)
    cumulative[..., -1] = 1.0
    burn_in = 32  # from two uniform symbols to the stationary law of pairs
    sequences = np.empty((steps * batch + held_out, burn_in + LENGTH + 1), dtype=np.uint8)
    sequences[:, :2] = random.integers(SYMBOLS, size=(len(sequences), 2))
    for position in range(2, sequences.shape[1]):
        following = cumulative[sequences[:, position - 2], sequences[:, position - 1]]
        sequences[:, position] = (random.random((len(sequences), 1)) > following).sum(axis=1)
    text = sequences[:, burn_in:]
    validation = text[steps * batch :]
    law = laws[validation[:, :-2], validation[:, 1:-1]]
    return Text(
        training=torch.from_numpy(text[: steps * batch].reshape(steps, batch, -1).copy()),
        validation=torch.from_numpy(validation.copy()),
        law=torch.from_numpy(law).float(),
    )


class Block(nn.Module):
    """Pre-norm causal self-attention and a two-layer perceptron; no biases, separate query, key and value matrices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        y = self.before_attention(x)
        query, key, value = (
            rearrange(matrix(y), "b t (h d) -> b h t d", h=HEADS) for matrix in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(rearrange(y, "b h t d -> b t (h d)"))
        y: Tensor = x + self.down(F.gelu(self.up(self.before_mlp(x))))
        return y


class LanguageModel(nn.Module):
    """A decoder-only transformer with learned positions and an untied output head."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.symbol_embedding = nn.Embedding(SYMBOLS, width)
        self.position_embedding = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, SYMBOLS, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]), generator=generator)

    def forward(self, symbols: Tensor) -> Tensor:  # (B, T) -> (B, T, S)
        positions = torch.arange(symbols.shape[1], device=symbols.device)
        x = self.symbol_embedding(symbols) + self.position_embedding(positions)
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
