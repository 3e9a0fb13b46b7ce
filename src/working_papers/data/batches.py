"""Batches of tensors that lie in memory: picked at once, which is much faster than loading one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class TensorBatches:
    """Batches of tensors with a common first axis, shuffled anew each epoch, from any step on, endlessly.

    Order and augmentation depend on the seed and the step alone, so that a training that resumes
    (`working_papers.nn.training.fit`) sees the batches that it would have seen.

    Args:
        tensors: (N, ...) each.
        batch_size: samples a batch; the last incomplete batch of an epoch is dropped. A batch larger than the data
            set becomes the data set.
        seed: of order and augmentation.
        augment: applied to the first tensor of each batch, with a generator seeded for its step.

    Raises:
        ValueError: no tensors, different numbers of samples, none at all, or a batch without samples.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        seed: int = 0,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        sizes = [len(each) for each in tensors]
        if not sizes or min(sizes) != max(sizes) or sizes[0] == 0:
            raise ValueError(f"tensors have {sizes} samples; expected one number, at least 1, for all of them")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.tensors, self.seed, self.augment = tensors, seed, augment
        self.batch_size = min(batch_size, sizes[0])

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.tensors[0]) // self.batch_size

    def __call__(self, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches from step `first` on."""
        step = first
        while True:
            epoch, inside = divmod(step, self.steps_per_epoch)
            order = torch.randperm(len(self.tensors[0]), generator=_generator(self.seed, 2 * epoch))
            for rows in order.split(self.batch_size)[inside : self.steps_per_epoch]:
                batch = tuple(each[rows] for each in self.tensors)
                if self.augment is not None:
                    batch = (self.augment(batch[0], _generator(self.seed, 2 * step + 1)), *batch[1:])
                yield batch
                step += 1


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63)
