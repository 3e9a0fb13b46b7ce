"""Pre-training without labels: guess masked tokens, swapped bursts, and the metadata and direction of masked bursts."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.netfound.method.flow_tokens import FlowBatch
from working_papers.papers.netfound.method.model import INIT_STD, AttentivePooling, NetFoundEncoder, initialize

IGNORED = -100
KEPT_AS_THEY_ARE, REPLACED_BY_MASK = 0.1, 0.8
FEWEST_BURSTS = 4
"""Metadata are masked in flows of at least so many bursts: more than three."""


class CorruptedFlows(NamedTuple):
    """Flows with parts hidden, and what is to be guessed.

    Attributes:
        batch: what the encoder sees.
        token_labels: ids at the masked tokens, -100 elsewhere, int64 (N, B, S).
        swapped: whether a burst of the flow was replaced, int64 (N,).
        swapped_bursts: which one, bool (N, B).
        masked_bursts: bursts whose metadata are hidden, bool (N, B).
        metadata: what they were, float (N, B, 4).
    """

    batch: FlowBatch
    token_labels: Tensor
    swapped: Tensor
    swapped_bursts: Tensor
    masked_bursts: Tensor
    metadata: Tensor


class PretrainingLoss(NamedTuple):
    """The weighted sum of the four losses, and each of them; all scalars."""

    total: Tensor
    tokens: Tensor
    swap: Tensor
    metadata: Tensor
    direction: Tensor


def corrupt(
    batch: FlowBatch,
    vocabulary: int = 65536,
    *,
    mask_rate: float = 0.3,
    swap_rate: float = 0.5,
    metadata_rate: float = 0.3,
    generator: torch.Generator | None = None,
) -> CorruptedFlows:
    """Hide parts of flows.

    - Of the tokens that are words a share is masked: 80 % become MASK, 10 % a random word, 10 % stay.
    - In a share of the flows the tokens of one random burst are replaced by those of a random burst of another flow of
      the batch, while its metadata stay, so that the two need not agree. A swapped burst has no masked tokens and no
      masked metadata (in the released code a slice of no length lets its tokens be masked, against its evident intent).
    - In flows of more than three bursts the metadata of a share of the bursts are set to zero.

    Args:
        batch: N flows; it is not changed.
        vocabulary: ids of words are 1 to this; the next two are CLS and MASK.
        mask_rate: share of the tokens.
        swap_rate: share of the flows; of a single flow none, for there is no other.
        metadata_rate: share of the bursts.
        generator: None draws from the global one of the batch's device.

    Raises:
        ValueError: a rate is not between 0 and 1.
    """
    for name, rate in (("mask_rate", mask_rate), ("swap_rate", swap_rate), ("metadata_rate", metadata_rate)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} is {rate}; expected 0 to 1")
    device = batch.tokens.device
    source = device if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=source).to(device)

    flows = len(batch.tokens)
    bursts = batch.burst_mask.sum(dim=1)
    row = torch.arange(flows, device=device)
    draws = uniform(4, flows)
    swapped = (draws[0] < swap_rate) & (bursts > 0) & (flows > 1)
    place = (draws[1] * bursts).long()
    other = (row + 1 + (draws[2] * max(flows - 1, 1)).long()) % flows
    swapped = swapped & (bursts[other] > 0)
    other_place = (draws[3] * bursts[other]).long()
    swapped_bursts = swapped[:, None] & (torch.arange(batch.burst_mask.shape[1], device=device) == place[:, None])
    tokens = torch.where(swapped_bursts[..., None], batch.tokens[other, other_place][:, None], batch.tokens)
    token_mask = torch.where(swapped_bursts[..., None], batch.token_mask[other, other_place][:, None], batch.token_mask)

    words = (tokens > 0) & (tokens <= vocabulary) & ~swapped_bursts[..., None]
    masked = words & (uniform(*tokens.shape) < mask_rate)
    how = uniform(*tokens.shape)
    random_words = 1 + (uniform(*tokens.shape) * vocabulary).long().clamp(max=vocabulary - 1)
    corrupted = torch.where(masked & (how < REPLACED_BY_MASK), vocabulary + 2, tokens)
    corrupted = torch.where(masked & (how >= REPLACED_BY_MASK + KEPT_AS_THEY_ARE), random_words, corrupted)

    candidates = batch.burst_mask & ~swapped_bursts & (bursts >= FEWEST_BURSTS)[:, None]
    masked_bursts = candidates & (uniform(*batch.burst_mask.shape) < metadata_rate)
    metadata = batch.metadata.masked_fill(masked_bursts[..., None], 0)
    return CorruptedFlows(
        batch=FlowBatch(corrupted, token_mask, batch.burst_mask, metadata, batch.protocol),
        token_labels=torch.where(masked, tokens, IGNORED),
        swapped=swapped.long(),
        swapped_bursts=swapped_bursts,
        masked_bursts=masked_bursts,
        metadata=batch.metadata,
    )


class FlowPretraining(nn.Module):
    """An encoder with the four heads of pre-training.

    Four losses are added: cross-entropy of the masked tokens; of swapped or not, from the pooled burst summaries; L1 of
    gap (seconds), kilobytes and packets of the bursts with masked metadata, from their summaries; cross-entropy of
    their direction. Each is a mean over what was hidden, and 0 where nothing was. The released code divides the L1 loss
    by all entries, masked or not, and applies a softmax before the cross-entropy of directions; neither is followed.

    Args:
        encoder: NetFoundEncoder, or any module with attributes `dim` and `table_size` that maps a batch to
            (N, B, S, dim).
        vocabulary: ids of words (`FlowTokenizer.vocabulary`).
        mask_rate, swap_rate, metadata_rate: see `corrupt`.
        weights: of the losses in the order tokens, swap, metadata, direction; the released large model has 0.4 for
            metadata.
        gap_scale: what the gaps of a batch are multiplied by before they are guessed; 1 for gaps as logarithms.
        init_std: standard deviation of the heads' first weights.

    Raises:
        ValueError: the encoder's table cannot hold the vocabulary, a weight is negative or a number out of range.
    """

    def __init__(
        self,
        encoder: NetFoundEncoder,
        vocabulary: int = 65536,
        *,
        mask_rate: float = 0.3,
        swap_rate: float = 0.5,
        metadata_rate: float = 0.3,
        weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        gap_scale: float = 1e-3,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        if not 1 <= vocabulary <= encoder.table_size - 3:
            raise ValueError(
                f"vocabulary is {vocabulary}; expected 1 to {encoder.table_size - 3}, three less than the encoder's "
                "table has rows"
            )
        if len(weights) != 4 or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"weights is {weights}; expected four numbers that are not negative")
        for name, rate in (("mask_rate", mask_rate), ("swap_rate", swap_rate), ("metadata_rate", metadata_rate)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name} is {rate}; expected 0 to 1")
        dim = encoder.dim
        self.encoder, self.vocabulary, self.weights, self.gap_scale = encoder, vocabulary, weights, gap_scale
        self.mask_rate, self.swap_rate, self.metadata_rate = mask_rate, swap_rate, metadata_rate
        self.token_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, encoder.table_size)
        )
        self.pooling = AttentivePooling(dim)
        self.swap_head, self.metadata_head, self.direction_head = (nn.Linear(dim, width) for width in (2, 3, 2))
        for head in (self.token_head, self.pooling, self.swap_head, self.metadata_head, self.direction_head):
            initialize(head, init_std)

    def forward(self, batch: FlowBatch, generator: torch.Generator | None = None) -> PretrainingLoss:
        """Hide parts of a batch and guess them.

        Args:
            batch: N flows.
            generator: of what is hidden; None: the global one.

        Returns:
            The losses, float32 or wider.
        """
        hidden = corrupt(
            batch,
            self.vocabulary,
            mask_rate=self.mask_rate,
            swap_rate=self.swap_rate,
            metadata_rate=self.metadata_rate,
            generator=generator,
        )
        return self.losses(hidden, self.encoder(hidden.batch))

    def losses(self, hidden: CorruptedFlows, encoded: Tensor) -> PretrainingLoss:
        """The losses of what an encoder made of corrupted flows.

        Args:
            hidden: N flows of B bursts of S tokens.
            encoded: (N, B, S, dim).
        """
        summaries = encoded[:, :, 0]
        asked = hidden.token_labels != IGNORED
        tokens = _cross_entropy(self.token_head(encoded[asked]), hidden.token_labels[asked])
        swap = _cross_entropy(self.swap_head(self.pooling(summaries, hidden.batch.burst_mask)), hidden.swapped)
        bursts = summaries[hidden.masked_bursts]
        true = hidden.metadata[hidden.masked_bursts]
        target = torch.stack([true[:, 3] * self.gap_scale, true[:, 1], true[:, 2]], dim=1)
        guessed = _widened(self.metadata_head(bursts))
        metadata = (guessed - target.to(guessed.dtype)).abs().sum() / max(1, target.numel())
        direction = _cross_entropy(self.direction_head(bursts), (true[:, 0] > 0).long())
        each = (tokens, swap, metadata, direction)
        total = torch.stack([weight * loss for weight, loss in zip(self.weights, each, strict=True)]).sum()
        return PretrainingLoss(total, *each)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean, and 0 of nothing, so that every head has a gradient in every process."""
    return F.cross_entropy(_widened(logits), labels, reduction="sum") / max(1, len(labels))
