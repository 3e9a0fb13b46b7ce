"""How the study trains: sizes, batches, pre-training, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from working_papers.bench import Scale
from working_papers.nn.training import Precision, ShuffledBatches, fit
from working_papers.papers.netfound.judging import Classifier, Flows, Integers
from working_papers.papers.netfound.method import (
    FlowBatch,
    FlowPretraining,
    FlowTokenizer,
    NetFoundEncoder,
    stable_then_decay,
)

CLIP = 0.5


@dataclass(frozen=True)
class Size:
    """How large networks, data and trainings are.

    Attributes:
        dim, layers, heads, ff: of the encoder; ff None: one and a half times the width.
        metadata_hidden: inner width of the MLP of the metadata.
        dropout: of the encoder.
        bursts, packets: that the tokeniser keeps of a flow and of a burst.
        vocabulary: ids of words.
        unlabelled: flows of pre-training; at paper scale the corpus decides.
        epochs: of pre-training.
        batch: flows of a step.
        warm_up, decay: steps of pre-training's schedule.
        few, some: labelled flows of a class.
        test: flows that are judged.
        probe: flows with known condition that the linear probe learns from.
        few_steps, steps, link_steps: of fine-tuning with few labels, with some, and with linked addresses.
        rate, tuning_rate: highest learning rates of pre-training and of fine-tuning.
        init_std: of first weights; 0.02 at width 768, as much larger as the width is smaller.
    """

    dim: int
    layers: int
    heads: int
    ff: int | None
    metadata_hidden: int
    dropout: float
    bursts: int
    packets: int
    vocabulary: int
    unlabelled: int
    epochs: int
    batch: int
    warm_up: int
    decay: int
    few: int
    some: int
    test: int
    probe: int
    few_steps: int
    steps: int
    link_steps: int
    rate: float
    tuning_rate: float
    init_std: float

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale the base model with the released recipe."""
        return scale.choose(
            smoke=cls(
                dim=16,
                layers=1,
                heads=2,
                ff=None,
                metadata_hidden=8,
                dropout=0.0,
                bursts=4,
                packets=1,
                vocabulary=256,
                unlabelled=48,
                epochs=1,
                batch=16,
                warm_up=1,
                decay=1,
                few=2,
                some=3,
                test=48,
                probe=48,
                few_steps=2,
                steps=3,
                link_steps=2,
                rate=0.001,
                tuning_rate=0.003,
                init_std=0.14,
            ),
            laptop=cls(
                dim=48,
                layers=2,
                heads=2,
                ff=None,
                metadata_hidden=48,
                dropout=0.0,
                bursts=6,
                packets=2,
                vocabulary=4096,
                unlabelled=800,
                epochs=3,
                batch=16,
                warm_up=15,
                decay=50,
                few=4,
                some=16,
                test=350,
                probe=320,
                few_steps=80,
                steps=120,
                link_steps=50,
                rate=0.002,
                tuning_rate=0.003,
                init_std=0.08,
            ),
            paper=cls(
                dim=768,
                layers=12,
                heads=12,
                ff=1152,
                metadata_hidden=1024,
                dropout=0.1,
                bursts=12,
                packets=6,
                vocabulary=65536,
                unlabelled=0,
                epochs=1,
                batch=20,
                warm_up=500,
                decay=500,
                few=4,
                some=64,
                test=20000,
                probe=4000,
                few_steps=500,
                steps=2000,
                link_steps=2000,
                rate=5e-05,
                tuning_rate=0.0001,
                init_std=0.02,
            ),
        )

    def tokenizer(self, *, addresses: bool = False) -> FlowTokenizer:
        """Gaps enter as logarithms, for they span four orders of magnitude."""
        return FlowTokenizer(self.bursts, self.packets, log_gaps=True, addresses=addresses, vocabulary=self.vocabulary)

    def encoder(self, table_size: int, seed: int, *, flat: bool = False) -> NetFoundEncoder:
        """An untrained encoder; its weights follow from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return NetFoundEncoder(
                self.dim,
                self.layers,
                self.heads,
                self.ff,
                self.dropout,
                table_size=table_size,
                metadata_hidden=self.metadata_hidden,
                layer="flat" if flat else "hierarchical",
                init_std=self.init_std,
            )


class _Rows(Dataset[int]):
    """Indices, to be shuffled."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


@dataclass(frozen=True)
class Batches:
    """Shuffled batches of flows and labels from any step on; in a distributed group each process gets its share.

    Attributes:
        flows: the data.
        labels: one a flow.
        tokenizer: pads the batches.
        batch: flows of a step; at most all.
        seed: of the order.
    """

    flows: Flows
    labels: Integers
    tokenizer: FlowTokenizer
    batch: int
    seed: int

    def __call__(self, first: int = 0) -> Iterator[tuple[FlowBatch, Tensor]]:
        """The batches from step `first` on."""
        for rows in ShuffledBatches(_Rows(len(self.flows)), min(self.batch, len(self.flows)), self.seed)(first):
            chosen = rows.numpy()
            yield self.tokenizer.collate(self.flows.take(chosen)), torch.from_numpy(self.labels[chosen])


def pretrain(
    encoder: NetFoundEncoder,
    batches: Batches,
    size: Size,
    *,
    seed: int,
    device: str,
    tokens_only: bool = False,
    checkpoint: Path | None = None,
    every: int = 1000,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Pre-train an encoder in place: AdamW, warm-up, plateau, decay, gradients clipped at 0.5, bfloat16 on a GPU.

    Args:
        encoder: of any kind.
        batches: of unlabelled flows.
        size: of the study.
        seed: of what is hidden.
        device: where to compute.
        tokens_only: the loss of masked tokens alone, for an encoder without summaries of bursts.
        checkpoint: where the training is kept.
        every: steps between two checkpoints.
        progress: called with the fraction done.
    """
    steps = max(size.warm_up + size.decay, size.epochs * (len(batches.flows) // batches.batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + processes()[0])  # each process hides other parts
        rates = {"swap_rate": 0.0, "metadata_rate": 0.0} if tokens_only else {}
        weights = (1.0, 0.0, 0.0, 0.0) if tokens_only else (1.0, 1.0, 1.0, 1.0)
        model = FlowPretraining(
            encoder, size.vocabulary, weights=weights, gap_scale=1.0, init_std=size.init_std, **rates
        )

        def loss(module: nn.Module, batch: tuple[FlowBatch, Tensor]) -> Tensor:
            total: Tensor = module(batch[0]).total
            return total

        optimize(
            model,
            batches,
            loss,
            steps,
            size.rate,
            lambda step: stable_then_decay(step, steps, size.warm_up, size.decay),
            device=device,
            checkpoint=checkpoint,
            every=every,
            progress=progress,
        )


def processes() -> tuple[int, int]:
    """Rank of this process in the distributed group, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def fine_tune(model: Classifier, batches: Batches, steps: int, rate: float, *, seed: int, device: str) -> None:
    """Train a classifier in place on labelled flows; the rate rises for a tenth of the steps, then falls to zero.

    Args:
        model: of any kind.
        batches: of labelled flows.
        steps: of the training.
        rate: the first learning rate.
        seed: of dropout.
        device: where to compute.
    """

    def loss(module: nn.Module, batch: tuple[FlowBatch, Tensor]) -> Tensor:
        return F.cross_entropy(module(batch[0]).float(), batch[1])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        warm_up = max(1, steps // 10)
        optimize(
            model,
            batches,
            loss,
            steps,
            rate,
            lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1)),
            device=device,
        )


def optimize(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[nn.Module, tuple[FlowBatch, Tensor]], Tensor],
    steps: int,
    rate: float,
    factor: Callable[[int], float],
    *,
    device: str,
    checkpoint: Path | None = None,
    every: int = 1000,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train in place.

    Args:
        model: with parameters of which some may be frozen.
        batches: of flows and labels.
        loss: of model and batch.
        steps: of the training.
        rate: the highest learning rate.
        factor: of the rate at each step.
        device: where to compute.
        checkpoint: where the training is kept.
        every: steps between two checkpoints.
        progress: called with the fraction done.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, fused=True)
    precision: Precision = "bfloat16" if device.startswith("cuda") else "float32"
    fit(
        model,
        batches,
        loss,
        optimizer,
        LambdaLR(optimizer, factor),
        steps=steps,
        precision=precision,
        device=device,
        checkpoint=checkpoint,
        every=every,
        clip=CLIP,
        progress=progress,
    )
