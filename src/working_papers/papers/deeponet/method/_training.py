"""The paper's training and test error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from working_papers.papers.deeponet.method._data import OperatorData

BEST_EVERY = 1000
"""Steps between two looks at the loss, of which the lowest decides which parameters are kept; official code."""

FUSED = frozenset({"cpu", "cuda"})
"""Devices on which torch's Adam updates all parameters in one kernel."""


@dataclass(frozen=True)
class Training:
    """What `train_operator` saw.

    Attributes:
        steps: at which the losses were looked at.
        losses: mean squared error over the training data after that many steps.
        validation_losses: the same over the validation data; empty without any.
        best_step: that of the parameters which the model has now.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    best_step: int


def train_operator(
    model: nn.Module,
    data: OperatorData,
    *,
    steps: int = 50_000,
    lr: float = 1e-3,
    batch_size: int | None = None,
    validation: OperatorData | None = None,
    every: int = BEST_EVERY,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> Training:
    """Train a network on an operator's data by Adam on the mean squared error, and keep its best parameters.

    Args:
        model: called as `model(functions, queries)`, with `cartesian=True` behind for cartesian data. Changed in place.
        data: on the model's device, in its dtype. For many queries a function, `data.grouped()` is much faster than
            pairs.
        steps: number of updates.
        lr: learning rate of Adam; without effect where an optimizer is given.
        batch_size: functions a step (rows, for pairs); None takes all data at every step, as the paper does.
        validation: decides which parameters are best; without it the training loss does, as in the official code.
        every: steps between two looks.
        optimizer: over the model's parameters; by default Adam.
        generator: of the batches, on the CPU.
        progress: called with the number of finished steps.

    Returns:
        The losses at each look. The model has the parameters of the best one.

    Raises:
        ValueError: a number is not positive.
        FloatingPointError: the training loss is not finite at a look.

    Source: official code, Adam with learning rate 1e-3 and 50 000 full-batch steps.
    """
    if steps < 1 or every < 1 or not lr > 0:
        raise ValueError(f"steps={steps}, every={every}, lr={lr}; expected positive numbers")
    if optimizer is None:
        device = next(model.parameters()).device.type
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True if device in FUSED else None)
    batches = itertools.repeat(data) if batch_size is None else data.batches(batch_size, generator)
    looks: list[int] = []
    losses: list[float] = []
    validation_losses: list[float] = []
    best, best_step, best_state = math.inf, 0, _copy_of(model)
    model.train()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        optimizer.zero_grad()
        loss = (batch.predict(model) - batch.values).square().mean()
        loss.backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            looks.append(step)
            losses.append(operator_error(model, data))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the training loss is {losses[-1]} after {step} steps; take a smaller lr")
            if validation is not None:
                validation_losses.append(operator_error(model, validation))
            latest = losses[-1] if validation is None else validation_losses[-1]
            if latest < best:
                best, best_step, best_state = latest, step, _copy_of(model)
        if progress is not None:
            progress(step)
    model.load_state_dict(best_state)
    return Training(tuple(looks), tuple(losses), tuple(validation_losses), best_step)


@torch.no_grad()
def operator_error(model: nn.Module, data: OperatorData, *, trim: float = 0.0, batch_size: int | None = None) -> float:
    """Mean squared error of a network on an operator's data.

    Args:
        model: called as `model(functions, queries)`; evaluated in evaluation mode, which is undone afterwards.
        data: on the model's device, in its dtype.
        trim: share of the largest squared errors that is left out; the official code also reports 0.001.
        batch_size: functions at once, where memory is short; None takes all.

    Returns:
        The mean, summed in float64.

    Raises:
        ValueError: `trim` is not in [0, 1), or there are no data.
    """
    if not 0 <= trim < 1:
        raise ValueError(f"trim is {trim}; expected a share from 0 to below 1")
    if data.values.numel() == 0:
        raise ValueError("data: there are no values to compare with")
    was_training = model.training
    model.eval()
    size = batch_size or len(data)
    parts = (data.take(slice(start, start + size)) for start in range(0, len(data), size))
    errors = torch.cat([(part.predict(model) - part.values).flatten() for part in parts])
    model.train(was_training)
    squared: Tensor = errors.to(torch.float64 if errors.device.type != "mps" else torch.float32).square()
    kept = max(1, len(squared) - int(trim * len(squared)))
    if kept < len(squared):
        squared = squared.topk(kept, largest=False).values
    return float(squared.mean())


def _copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
