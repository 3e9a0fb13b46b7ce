"""The study of NorMuon: a small transformer learns a language of known entropy, with one of three optimisers.

The language is a Markov source in which two symbols decide the law of the next one. The law is known, so a model's
distance from a perfect one is computed exactly, and each sequence is read once, so that only the speed of learning
counts. Embeddings, head and norms have the same AdamW in all arms; the arms differ in what moves the hidden matrices.

Letters: S = symbols, B = sequences a batch, T = symbols a sequence, D = width of the model, H = heads,
m, n = rows and columns of a matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.papers.normuon.method import NorMuon, newton_schulz, row_norm_dispersion, split_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTUM = 0.95  # of NorMuon and Muon: the paper's and the official code's
BETAS = (0.9, 0.95)  # of AdamW: the official code's for what is not a matrix
REST_LEARNING_RATE = 0.01  # of embeddings, head and norms; our choice: the AdamW arm's best, on seeds of our own
WIDTH = 64  # AdamW's learning rates are for this width and fall as 1 / width; a step of Muon needs no such rule
WARM_UP, DECAY = 0.1, 0.3  # fractions of the steps with rising and with falling learning rate; our choice
CONCENTRATION = 0.1  # of the Dirichlet distribution that the laws are drawn from: a few likely successors each
BURN_IN = 32  # symbols from a uniform start to the source's own distribution
MOMENTS = 20  # how often, evenly spread over training, loss and steps are looked at

LOSS = "final excess loss"
ROWS = "row-norm dispersion, relative to Muon"
SPREAD = "singular-value spread, relative to Muon"
STATE = "optimiser state"

study = Study(
    question="In the same number of steps, does NorMuon reach a lower loss than Muon and AdamW, with evener rows?",
    arms={"normuon": "NorMuon", "muon": "Muon", "adamw": "AdamW"},
    method="normuon",
    seeds={"smoke": 2, "laptop": 12, "paper": 3},
    measures=(
        Measure(
            LOSS,
            unit="nats",
            better="lower",
            scale="ratio",
            about="Kullback-Leibler divergence of the model's from the true law of the next symbol, on held-out text.",
        ),
        Measure(
            ROWS,
            better="lower",
            scale="ratio",
            about="Standard deviation over mean of the row norms of a step, divided by that of Muon's step for the "
            "same gradients; matrices with more rows than columns, mean over training.",
        ),
        Measure(
            SPREAD,
            better="lower",
            scale="ratio",
            about="Largest over median singular value of a step, divided by that of Muon's step for the same "
            "gradients; all hidden matrices, mean over training.",
        ),
        Measure(
            STATE,
            unit="numbers a weight",
            better="lower",
            about="What the optimiser keeps for the hidden matrices between steps.",
        ),
    ),
    checks=(
        beats("normuon", over="muon", on=LOSS, claim="efficiency"),
        beats("normuon", over="adamw", on=LOSS, claim="efficiency"),
        within("normuon", on=ROWS, high=0.5, claim="balanced-rows"),
        within("normuon", on=SPREAD, high=2.0, claim="balanced-rows"),
        within("normuon", on=STATE, high=1.1, claim="memory"),
    ),
    tuning=Tuning(
        on=LOSS,
        candidates={
            "normuon": ({"learning rate": 0.01}, {"learning rate": 0.02}, {"learning rate": 0.04}),
            "muon": ({"learning rate": 0.01}, {"learning rate": 0.02}, {"learning rate": 0.04}),
            "adamw": ({"learning rate": 0.004}, {"learning rate": 0.008}, {"learning rate": 0.016}),
        },
        seeds=2,
    ),
    budget="""Every arm gets the same initial weights, batches, number of steps and schedule, and three learning rates
        for the hidden matrices, a factor of two apart, of which the best on two tuning seeds is reported.""",
    notes="""The paper trains language models of up to billions of parameters on web text, 1.1 billion for its
        headline numbers; here 0.1 million parameters learn an artificial language in a few hundred steps. The paper
        counts tokens to the same loss; here the loss after the same number of tokens is compared, so the size of the
        gain does not carry over. The Muon arm is this project's own code without the normalisation, which the tests
        hold against PyTorch's Muon.""",
    sham="muon",
    figure_size=(10.5, 3.5),
)


@dataclass(frozen=True)
class Size:
    """How large the model, its language and its training are."""

    symbols: int
    length: int
    batch: int
    steps: int
    width: int
    layers: int
    heads: int
    held_out: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale the model is the smallest of the paper's, the language stays ours."""
        return scale.choose(
            smoke=cls(symbols=8, length=8, batch=8, steps=20, width=16, layers=1, heads=2, held_out=32),
            laptop=cls(symbols=24, length=16, batch=32, steps=600, width=64, layers=2, heads=4, held_out=256),
            paper=cls(symbols=256, length=256, batch=256, steps=5000, width=768, layers=12, heads=12, held_out=64),
        )


@dataclass(frozen=True)
class Text:
    """What the arms of a seed read.

    Attributes:
        training: (steps, B, T + 1), symbols as unsigned bytes.
        validation: (sequences, T + 1), symbols as unsigned bytes.
        law: (sequences, T - 1, S), true law of what follows each pair of neighbours in the validation text.
    """

    training: Tensor
    validation: Tensor
    law: Tensor


@study.prepare
def language(seed: int, scale: Scale) -> Text:
    """Draw a language, a training text of which nothing is read twice, and a validation text."""
    size = Size.of(scale)
    random = np.random.default_rng(seed)
    laws = random.dirichlet(np.full(size.symbols, CONCENTRATION), size=(size.symbols, size.symbols))
    cumulative = laws.cumsum(axis=-1)
    cumulative[..., -1] = 1.0  # rounding must not leave a gap above the last symbol

    def speak(sequences: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        spoken = np.empty((sequences, BURN_IN + size.length + 1), dtype=np.uint8)
        spoken[:, :2] = random.integers(size.symbols, size=(sequences, 2))
        for position in range(2, spoken.shape[1]):
            following = cumulative[spoken[:, position - 2], spoken[:, position - 1]]
            spoken[:, position] = (random.random((sequences, 1)) > following).sum(axis=1)
        return spoken[:, BURN_IN:]

    training = np.stack([speak(size.batch) for _ in range(size.steps)])
    validation = speak(size.held_out)
    law = laws[validation[:, :-2], validation[:, 1:-1]]
    return Text(torch.from_numpy(training), torch.from_numpy(validation), torch.from_numpy(law).float())


class Block(nn.Module):
    """Pre-norm causal attention and a two-layer perceptron: no biases, separate query, key and value matrices."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.before_attention, self.before_perceptron = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        y = self.before_attention(x)
        query, key, value = (
            rearrange(matrix(y), "b t (h d) -> b h t d", h=self.heads) for matrix in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(rearrange(attended, "b h t d -> b t (h d)"))
        result: Tensor = x + self.down(F.gelu(self.up(self.before_perceptron(x))))
        return result


class LanguageModel(nn.Module):
    """A decoder-only transformer with learned positions and an untied output head."""

    def __init__(self, size: Size, seed: int) -> None:
        super().__init__()
        self.symbol_embedding = nn.Embedding(size.symbols, size.width)
        self.position_embedding = nn.Embedding(size.length, size.width)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.layers)))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.symbols, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]), generator=generator)

    def forward(self, symbols: Tensor) -> Tensor:  # (B, T) -> (B, T, S)
        positions = torch.arange(symbols.shape[1], device=symbols.device)
        x = self.symbol_embedding(symbols) + self.position_embedding(positions)
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def excess_loss(model: nn.Module, validation: Tensor, law: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the model's law of the next symbol from the true one, in nats."""
    with torch.no_grad():
        predicted = F.log_softmax(model(validation[:, :-1])[:, 1:], dim=-1)  # the first symbol alone tells no law
    return float((torch.special.xlogy(law, law) - law * predicted).sum(dim=-1).mean())


def singular_value_spread(step: Tensor) -> float:
    """Largest over median singular value."""
    values = torch.linalg.svdvals(step)
    return float(values[0] / values.median())


@study.trial
def train(trial: Trial, text: Text) -> Measurements:
    """Train the model with the arm's optimiser and compare its steps with those that Muon would have taken."""
    size = Size.of(trial.scale)
    validation, law = text.validation.to(trial.device).long(), text.law.to(trial.device)
    model = LanguageModel(size, trial.seed).to(trial.device)
    matrices, rest = split_parameters(model)
    learning_rate = float(trial.setting["learning rate"])
    narrow = WIDTH / size.width
    if trial.arm == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            matrices, lr=learning_rate * narrow, betas=BETAS, weight_decay=0.0
        )
    else:
        optimizer = NorMuon(matrices, lr=learning_rate, momentum=MOMENTUM, normalize=trial.arm == "normuon")
    adamw = torch.optim.AdamW(rest, lr=REST_LEARNING_RATE * narrow, betas=BETAS, weight_decay=0.0)
    optimizers = [optimizer, adamw]

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / (WARM_UP * size.steps), (size.steps - step) / (DECAY * size.steps))

    schedulers = [LambdaLR(each, schedule) for each in optimizers]

    momenta = [torch.zeros_like(p) for p in matrices]  # what Muon would hold, whichever optimiser takes the steps
    every = max(1, size.steps // MOMENTS)
    moments, curve = [], []
    rows: list[tuple[float, float]] = []
    spreads: list[float] = []
    norms = np.zeros((2, 4 * size.width))  # sorted row norms over their mean: the arm's step and Muon's

    for step, batch in enumerate(text.training):
        symbols = batch.to(trial.device).long()
        logits = model(symbols[:, :-1])[:, 1:]
        loss = F.cross_entropy(rearrange(logits, "b t s -> (b t) s"), rearrange(symbols[:, 2:], "b t -> (b t)"))
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        gradients = [p.grad for p in matrices if p.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        look = (step + 1) % every == 0
        before = [p.detach().clone() for p in matrices] if look else []
        for each in optimizers:
            each.step()
        if look:
            moments.append(step + 1)
            curve.append(excess_loss(model, validation, law))
            for p, old, gradient, momentum in zip(matrices, before, gradients, momenta, strict=True):
                taken, muon = old - p.detach(), newton_schulz(torch.lerp(gradient, momentum, MOMENTUM))
                spreads.append(singular_value_spread(taken) / singular_value_spread(muon))
                if len(p) > p.shape[1]:
                    rows.append((row_norm_dispersion(taken), row_norm_dispersion(muon)))
                    # The deepest such matrix at the last moment before the learning rate falls is shown.
                    if step + 1 <= (1 - DECAY) * size.steps:
                        norms = np.stack([_sorted_row_norms(taken), _sorted_row_norms(muon)])
        for scheduler in schedulers:
            scheduler.step()
        trial.progress(step + 1, of=size.steps)

    own, muons = np.array(rows).mean(axis=0)
    kept = sum(value.numel() for p in matrices for value in optimizer.state[p].values())
    return {
        LOSS: curve[-1],
        ROWS: float(own / muons),
        SPREAD: float(np.mean(spreads)),
        STATE: kept / sum(p.numel() for p in matrices),
        "parameters": sum(p.numel() for p in model.parameters()),
        "step": np.array(moments),
        "excess loss": np.array(curve),
        "row norms": norms,
    }


def _sorted_row_norms(step: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    norms = torch.linalg.vector_norm(step, dim=1).double().cpu().numpy()
    result: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.sort(norms)[::-1] / norms.mean()
    return result


@study.figure
def losses_and_rows(trials: Trials, figure: Figure) -> None:
    """Excess loss over training; final losses seed by seed; how far each neuron of one matrix moves in a step."""
    from matplotlib.ticker import LogLocator, NullLocator

    curves, paired, rows = figure.subplots(1, 3, width_ratios=(1.15, 0.85, 1.15))
    baselines = [arm for arm in trials.arms if arm != study.method]
    for arm in (*baselines, study.method):  # the method on top
        look = {"color": trials.color(arm), "label": trials.label(arm)}
        band = {"color": trials.color(arm), "alpha": 0.15, "linewidth": 0}
        steps, losses = trials.arrays(arm, "step")[0], trials.arrays(arm, "excess loss")
        curves.plot(steps, losses.mean(axis=0), **look)
        curves.fill_between(steps, losses.min(axis=0), losses.max(axis=0), **band)
        norms = trials.arrays(arm, "row norms")[:, 0]
        neurons = np.arange(1, norms.shape[1] + 1)
        rows.plot(neurons, norms.mean(axis=0), **look)
        rows.fill_between(neurons, norms.min(axis=0), norms.max(axis=0), **band)
    curves.set(title="Loss above the language's entropy", xlabel="step", ylabel="excess loss (nats)")
    curves.set_yscale("log")
    curves.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_locator(NullLocator())
    rows.set(title="Length of each neuron's step", xlabel="neuron, sorted", ylabel="row norm / mean row norm")
    rows.set_ylim(bottom=0)
    rows.legend(loc="lower left", reverse=True)

    muon = trials.values("muon", LOSS)
    others = [arm for arm in trials.arms if arm != "muon"]
    for place, arm in enumerate(others):
        change = 100 * (trials.values(arm, LOSS) / muon - 1)
        spread = np.linspace(-0.15, 0.15, len(change))
        paired.plot(place + spread, change, "o", color=trials.color(arm), markersize=4, alpha=0.6, markeredgewidth=0)
        paired.hlines(change.mean(), place - 0.25, place + 0.25, color=trials.color(arm))
    paired.axhline(0, color=trials.color("muon"))
    paired.set_xticks(range(len(others)), [trials.label(arm) for arm in others])
    paired.set_xlim(-0.6, len(others) - 0.4)
    paired.set(title="Final loss against Muon's", ylabel="difference on the same seed (%)")
