"""The hypernetwork: from an equation to the weights of the network that solves it.

Letters: N = problems, T = tokens, C = channels, L = matrices of the generated network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from working_papers.papers.hypino.method._encoder import ImageEncoder
from working_papers.papers.hypino.method._jets import OCTAVES, ModulatedMLP, fourier_features
from working_papers.papers.hypino.method._problems import LinearPDE


def compress_source(source: Tensor) -> Tensor:
    """sign(f) log(1 + |f|), so that sources of very different size are alike (section 3.2).

    Args:
        source: any shape.

    Returns:
        The same shape.
    """
    return source.sign() * source.abs().log1p()


class AttentionPool(nn.Module):
    """Learned queries attend over a map of tokens: (N, T, C) to (N, queries, C).

    Args:
        queries: how many.
        channels: C.
        heads: of the attention.
    """

    def __init__(self, queries: int, channels: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, channels) / math.sqrt(channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the tokens."""
        tokens = self.norm(tokens)
        pooled: Tensor = self.attention(self.queries.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)[0]
        return pooled


class ParameterHead(nn.Sequential):
    """Linear, GELU, group normalisation, linear: one pooled vector to one matrix or bias of the generated network.

    The last layer starts small, with the wanted initial parameters as its bias: at the start every equation gets
    nearly the same well-scaled network (ours; the official code leaves the usual initialisation).

    Args:
        inputs: length of the pooled vector.
        initial: the parameters to begin with, of the shape to generate.
        groups: of the normalisation; lowered to a divisor of the hidden units.
    """

    def __init__(self, inputs: int, initial: Tensor, groups: int) -> None:
        count = initial.numel()
        hidden = min(max(2 * count, 32), max(inputs, 32))
        last = nn.Linear(hidden, count)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(initial.flatten())
        super().__init__(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.GroupNorm(math.gcd(groups, hidden), hidden),
            last,
            nn.Unflatten(-1, initial.shape),
        )


class HyperPINN(nn.Module):
    """Writes the weights of a `ModulatedMLP` for every equation of a batch, in one pass (section 3.2).

    With the defaults the sizes are the paper's: hidden units of the heads are twice the numbers to write, at least 32
    and at most the length of a pooled vector.

    Args:
        encoder: an `ImageEncoder`, or any module (images (N, 5, G, G), condition (N, Z)) → list of (N, T, C) with an
            attribute `channels`, the C of each map. None: the paper's.
        target: the network to write the weights of; None: the paper's.
        condition: lengths of the embeddings of the coefficients and of the statistics of the images; Z is their sum.
        heads: of attention pooling; lowered to a divisor of each C.
        generator: of the initial weights of the generated network.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        target: ModulatedMLP | None = None,
        *,
        condition: tuple[int, int] = (96, 32),
        heads: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = ImageEncoder(condition=sum(condition)) if encoder is None else encoder
        self.target = ModulatedMLP() if target is None else target
        channels: tuple[int, ...] = tuple(self.encoder.channels)  # type: ignore[arg-type]
        per_number = 2 * OCTAVES + 1
        self.of_coefficients = nn.Sequential(nn.Linear(5 * per_number, condition[0]), nn.GELU())
        self.of_statistics = nn.Sequential(nn.Linear(12 * per_number, condition[1]), nn.GELU())
        layers = self.target.layers
        self.pools = nn.ModuleList(AttentionPool(2 * layers, c, math.gcd(heads, c)) for c in channels)
        initial = [tensor[0] for tensor in self.target.initialize(1, generator)]
        groups = [4] * 3 + [16] * self.target.hidden + [1] + [4] * (layers - 1) + [1]
        self.heads = nn.ModuleList(
            ParameterHead(sum(channels), tensor, group) for tensor, group in zip(initial, groups, strict=True)
        )

    def condition(self, coefficients: Tensor, images: Tensor) -> Tensor:
        """Embedding of the operator and of mean, largest, smallest and deviation of boundary values and source.

        Args:
            coefficients: (N, 5).
            images: (N, 5, G, G), the source in logarithms.

        Returns:
            (N, Z).
        """
        data = images[:, 2:].flatten(2)
        statistics = torch.cat([data.mean(-1), data.amax(-1), data.amin(-1), data.std(-1)], dim=-1)
        parts = self.of_coefficients(fourier_features(coefficients)), self.of_statistics(fourier_features(statistics))
        return torch.cat(parts, dim=-1)

    def forward(self, pde: LinearPDE) -> list[Tensor]:
        """Generate.

        Args:
            pde: N problems, or one without an axis of problems.

        Returns:
            Matrices (N, in, out), then biases (N, out), as `ModulatedMLP.apply` takes them; N is 1 for one problem.
        """
        pde = pde.batch()
        images = pde.images
        images = torch.cat([images[:, :4], compress_source(images[:, 4:])], dim=1)
        maps = self.encoder(images, self.condition(pde.coefficients, images))
        vectors = torch.cat([pool(tokens) for pool, tokens in zip(self.pools, maps, strict=True)], dim=-1)
        return [head(vectors[:, i]) for i, head in enumerate(self.heads)]


class WarmCosine(LRScheduler):
    """The paper's schedule: warm-up, cosine to a thousandth, and weight decay that rises in a line (appendix B).

    Args:
        optimizer: its groups' learning rates are the peaks.
        steps: of the whole training.
        warmup: share of steps in which the rate rises.
        floor: last rate as a share of the peak.
        decay: weight decay of the first and of the last step; None leaves it alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int,
        *,
        warmup: float = 0.01,
        floor: float = 1e-3,
        decay: tuple[float, float] | None = (1e-4, 1e-3),
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}; expected at least 1")
        self.steps, self.rise, self.floor, self.decay = steps, max(1, round(warmup * steps)), floor, decay
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the coming step."""
        done = min(self.last_epoch, self.steps)
        if self.decay is not None:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.decay[0] + (self.decay[1] - self.decay[0]) * done / self.steps
        if done < self.rise:
            share = (done + 1) / self.rise
        else:
            turn = (done - self.rise) / max(1, self.steps - self.rise)
            share = self.floor + (1 - self.floor) * (1 + math.cos(math.pi * turn)) / 2
        return [base * share for base in self.base_lrs]


def paper_optimizer(model: nn.Module, steps: int, *, lr: float = 1e-4) -> tuple[AdamW, WarmCosine]:
    """AdamW and its schedule as the paper trains with (appendix B).

    Args:
        model: to train.
        steps: of the whole training.
        lr: peak learning rate.

    Returns:
        The optimiser and the scheduler, to be stepped once a step.
    """
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    return optimizer, WarmCosine(optimizer, steps)
