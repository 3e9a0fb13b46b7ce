"""LARS, the optimiser of Barlow Twins, with the paper's learning rates and schedule.

Layer-wise adaptive rates are from https://arxiv.org/abs/1708.03888; this is the form in which Barlow Twins
(https://arxiv.org/abs/2103.03230, section 2.2) uses them: vectors (biases, normalisation) take plain steps of SGD with
momentum, without weight decay. The weight decay is that of the official code, 1e-6; the paper has 1.5e-6 (from memory).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class LARS(Optimizer):
    """SGD with momentum in which each matrix moves in proportion to its own norm.

    For a parameter p of two axes or more with gradient g: d = g + wd·p, then d ← trust · d · ‖p‖ / ‖d‖ (d as it is
    where a norm is 0). Parameters of fewer axes take d = g. Then m ← momentum · m + d and p ← p - lr · m.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: in [0, 1).
        weight_decay: of parameters of two axes or more.
        trust: the trust coefficient, the share of its norm that a matrix moves at lr 1 without momentum.

    Raises:
        ValueError: a number outside its range; a sparse gradient in `step`.

    Source: official code (class LARS), whose defaults are taken; norms are computed in float32 at least.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.2,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; what it does not set takes the optimiser's defaults.

        Raises:
            ValueError: as for the constructor; the optimiser is then left as it was.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in ("lr", "weight_decay", "trust"):
                if not 0 <= group[name] < math.inf:
                    raise ValueError(f"{name} is {group[name]}; expected a finite number of 0 or more")
            if not 0 <= group["momentum"] < 1:
                raise ValueError(f"momentum is {group['momentum']}; expected a number in [0, 1)")
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters whose gradient is None are skipped.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            ValueError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if p.grad.layout != torch.strided:
                    raise ValueError(f"a gradient has layout {p.grad.layout}; expected a dense one (torch.strided)")
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            matrices, vectors = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
            if matrices:
                self._move(matrices, self._adapted(matrices, group), group)
            if vectors:
                self._move(vectors, [p.grad for p in vectors if p.grad is not None], group)
        return loss

    def _adapted(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The gradients with weight decay, each scaled to the trusted share of its parameter's norm."""
        gradients = [p.grad for p in params if p.grad is not None]
        directions = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        sizes = zip(params, self._norms(params), directions, self._norms(directions), strict=True)
        scales = [
            torch.where((size > 0) & (length > 0), group["trust"] * size / length, 1.0).to(d.dtype)
            for _, size, d, length in sizes
        ]
        torch._foreach_mul_(directions, scales)
        return directions

    @staticmethod
    def _norms(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]

    def _move(self, params: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, directions)
        if isinstance(group["lr"], Tensor):
            torch._foreach_sub_(params, [m * group["lr"].to(m) for m in momenta])
        else:
            torch._foreach_add_(params, momenta, alpha=-group["lr"])


def lars_parameters(
    model: nn.Module, batch_size: int = 2048, weight_rate: float = 0.2, vector_rate: float = 0.0048
) -> list[dict[str, Any]]:
    """The trainable parameters of a model in two groups with the paper's learning rates.

    Args:
        model: any module.
        batch_size: samples of a step, over all processes together; rates grow in proportion, and are the given ones
            at 256.
        weight_rate: of parameters of two axes or more.
        vector_rate: of biases and normalisation.

    Returns:
        Groups for `LARS`, each with its "lr"; a group without parameters is left out.

    Raises:
        ValueError: batch_size is below 1.

    Source: official code (main.py), learning rates and their scaling.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    trainable = [p for p in model.parameters() if p.requires_grad]
    factor = batch_size / 256
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "lr": weight_rate * factor},
        {"params": [p for p in trainable if p.ndim < 2], "lr": vector_rate * factor},
    ]
    return [group for group in groups if group["params"]]


def warm_up_cosine(step: int, warm_up: int, steps: int, final: float = 0.001) -> float:
    """The factor of the learning rates: it rises linearly from 0, then falls along a cosine.

    Args:
        step: number of steps taken, from 0.
        warm_up: steps of the rise; the paper's 10 epochs.
        steps: of the training.
        final: the factor at the end.

    Returns:
        A factor between 0 and 1, for `torch.optim.lr_scheduler.LambdaLR`.

    Raises:
        ValueError: the warm-up is negative or does not end before the training.

    Source: official code (adjust_learning_rate).
    """
    if not 0 <= warm_up < steps:
        raise ValueError(f"warm_up is {warm_up}; expected 0 or more and fewer than the {steps} steps")
    if step < warm_up:
        return step / warm_up
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))
    return share + final * (1 - share)
