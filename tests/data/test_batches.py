"""Batches of tensors in memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from working_papers.data.batches import TensorBatches


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=generator) / 10


def test_each_epoch_shows_every_sample_at_most_once_in_another_order() -> None:
    batches = TensorBatches(torch.arange(23), torch.arange(23) * 2, batch_size=5, seed=3)
    assert batches.steps_per_epoch == 4
    seen = list(itertools.islice(batches(0), 8))
    assert all(torch.equal(2 * x, y) for x, y in seen)
    first, second = (torch.cat([x for x, _ in part]) for part in (seen[:4], seen[4:]))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 20
    assert not torch.equal(first, second)


@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_it_goes_on_where_it_was(first: int) -> None:
    batches = TensorBatches(torch.arange(23.0), batch_size=5, seed=3, augment=noise)
    whole = list(itertools.islice(batches(0), 10))
    part = list(itertools.islice(batches(first), 10 - first))
    assert all(torch.equal(a, b) for (a,), (b,) in zip(whole[first:], part, strict=True))
    other = next(iter(TensorBatches(torch.arange(23.0), batch_size=5, seed=4)(0)))
    assert not torch.equal(other[0], whole[0][0].floor())


def test_a_batch_that_is_too_large_is_the_whole_set() -> None:
    batches = TensorBatches(torch.arange(4), batch_size=100)
    assert next(iter(batches()))[0].sort().values.tolist() == [0, 1, 2, 3]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"tensors have \[3, 4\] samples"):
        TensorBatches(torch.ones(3), torch.ones(4), batch_size=1)
    with pytest.raises(ValueError, match=r"tensors have \[0\] samples"):
        TensorBatches(torch.ones(0), batch_size=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        TensorBatches(torch.ones(3), batch_size=0)
