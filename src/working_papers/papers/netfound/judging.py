"""How arms are judged, and the baselines without an encoder: bag of tokens, boosted trees, linear probe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.netfound.method import (
    FlowBatch,
    FlowClassifier,
    FlowTokenizer,
    FlowTokens,
    NetFoundEncoder,
)

Integers = NDArray[np.int64]
FIRST_BURSTS = 6
"""Bursts whose own statistics the trees get; all others enter sums and means only."""


class Flows(Protocol):
    """Tokenised flows of which some can be taken: `FlowTokens` in memory, `ArrowFlows` on a disk."""

    def __len__(self) -> int:
        """Number of flows."""

    def take(self, rows: Integers) -> FlowTokens:
        """Some of them."""


class BagOfTokens(nn.Module):
    """A baseline that knows which tokens and bursts there are, but not in which order.

    Mean embedding of the words, mean MLP of the bursts' metadata and the protocol, then an MLP.

    Args:
        dim: width.
        table_size: rows of the table of words.
        classes: outputs.
    """

    def __init__(self, dim: int, table_size: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(table_size, dim, padding_idx=0)
        self.metadata = nn.Sequential(nn.Linear(4, dim), nn.GELU(), nn.Linear(dim, dim))
        self.protocols = nn.Embedding(18, dim)
        self.hidden = nn.Sequential(nn.LayerNorm(3 * dim), nn.Linear(3 * dim, 2 * dim), nn.GELU())
        self.out = nn.Linear(2 * dim, classes)

    def features(self, batch: FlowBatch) -> Tensor:
        """The hidden layer (N, 2 dim)."""

        def mean(x: Tensor, mask: Tensor) -> Tensor:
            return (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

        words = mean(self.words(batch.tokens.flatten(1)), batch.token_mask.flatten(1))
        bursts = mean(self.metadata(batch.metadata), batch.burst_mask)
        hidden: Tensor = self.hidden(torch.cat([words, bursts, self.protocols(batch.protocol)], dim=1))
        return hidden

    def forward(self, batch: FlowBatch) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.out(self.features(batch))
        return logits


Classifier = FlowClassifier | BagOfTokens


@torch.no_grad()
def outputs(model: Classifier, flows: Flows, tokenizer: FlowTokenizer, device: str) -> Tensor:
    """Logits of all flows, float32 on the CPU."""
    model.to(device).eval()
    return torch.cat([model(batch).float().cpu() for batch in _parts(flows, tokenizer, device)])


@torch.no_grad()
def summaries(model: Classifier | NetFoundEncoder, flows: Flows, tokenizer: FlowTokenizer, device: str) -> Tensor:
    """The mean burst summary of an encoder, or the hidden layer of a bag of tokens, of all flows, on the CPU."""
    model.to(device).eval()
    found = []
    for batch in _parts(flows, tokenizer, device):
        if isinstance(model, BagOfTokens):
            found.append(model.features(batch).float().cpu())
            continue
        encoder = model.encoder if isinstance(model, FlowClassifier) else model
        here = batch.burst_mask[..., None]
        found.append(((encoder(batch)[:, :, 0] * here).sum(dim=1) / here.sum(dim=1)).float().cpu())
    return torch.cat(found)


def _parts(flows: Flows, tokenizer: FlowTokenizer, device: str) -> Iterator[FlowBatch]:
    for rows in np.array_split(np.arange(len(flows)), max(1, len(flows) // 100)):
        yield FlowBatch(*(each.to(device) for each in tokenizer.collate(flows.take(rows))))


def macro_f1(predicted: Integers, labels: Integers, classes: int) -> float:
    """Mean over the classes of the harmonic mean of precision and recall; 0 for a class that is never met."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    both = pairs.sum(axis=0) + pairs.sum(axis=1)
    return float(np.mean(2 * pairs.diagonal() / np.maximum(both, 1)))


def few_of_each(labels: Integers, per_class: int, seed: int) -> Integers:
    """Rows of as many flows of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == each][:per_class] for each in np.unique(labels)])


def with_noise(labels: Integers, share: float, classes: int, seed: int) -> Integers:
    """Labels of which a share, rounded, is replaced by another class."""
    random = np.random.default_rng(seed)
    wrong = random.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + random.integers(1, classes, len(wrong))) % classes
    return noisy


def statistics(flows: FlowTokens) -> NDArray[np.float64]:
    """Hand-made features of flows for the trees, from the packets that the tokeniser keeps, (flows, features).

    Protocol, duration, bursts; in each direction bursts, packets, bytes, and mean and largest gap; direction, bytes,
    packets and gap of the first bursts; header fields of the first packet of each direction.
    """
    count = len(flows)
    row = np.repeat(np.arange(count), flows.bursts)
    place = np.arange(len(row)) - np.repeat(flows.burst_ends - flows.bursts, flows.bursts)
    columns: list[NDArray[Any]] = [flows.protocol, flows.duration, flows.bursts]
    begin = flows.word_ends - flows.lengths
    for forward in (True, False):
        here = flows.forward == forward
        bursts = np.bincount(row[here], minlength=count)
        columns.append(bursts)
        for values in (flows.counts, flows.sizes, flows.gaps):
            columns.append(np.bincount(row[here], values[here], count))
        columns.append(columns[-1] / np.maximum(bursts, 1))
        largest = np.zeros(count)
        np.maximum.at(largest, row[here], flows.gaps[here])
        columns.append(largest)
        # The first packet of a direction is that of its first burst.
        flow, first = np.unique(row[here], return_index=True)
        at = begin[here][first]
        words = np.full((count, 12), -1.0)
        width = np.where(flows.protocol[flow] == 6, 12, np.where(flows.protocol[flow] == 17, 6, 7))
        for word in range(12):
            has = width > word
            words[flow[has], word] = flows.words[at[has] + word]
        columns.extend(words.T)
    for number in range(FIRST_BURSTS):
        for values in (np.where(flows.forward, 1, -1), flows.sizes, flows.counts, flows.gaps):
            column = np.zeros(count)
            column[row[place == number]] = values[place == number]
            columns.append(column)
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)


def grow_trees(features: NDArray[np.float64], labels: Integers, rate: float, seed: int) -> Any:
    """Gradient-boosted trees; leaves may be small, for there are few labels."""
    return HistGradientBoostingClassifier(
        learning_rate=rate, max_iter=60, min_samples_leaf=2, max_leaf_nodes=8, early_stopping=False, random_state=seed
    ).fit(features, labels)


def probe_accuracy(read: Tensor, labels: Integers, read_test: Tensor, test_labels: Integers) -> float:
    """Test accuracy of logistic regression on frozen features, which are standardised by those it learns from.

    Args:
        read: features (n, d).
        labels: 0 or 1 (n,).
        read_test: features (m, d).
        test_labels: theirs (m,).
    """
    x, tested = read.double(), read_test.double()
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, tested, y = (x - mean) / std, (tested - mean) / std, torch.from_numpy(labels).double()
    weight = x.new_zeros(x.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weight[:-1] + weight[-1], y, reduction="sum")
        value = value + weight[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(objective)
    with torch.no_grad():
        guessed = (tested @ weight[:-1] + weight[-1] > 0).numpy()
    return float((guessed == (test_labels == 1)).mean())
