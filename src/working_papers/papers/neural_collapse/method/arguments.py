"""Arguments that closed form and model share: weight decays, feature decay, depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Decay = float | Sequence[float] | Tensor
"""Weight decay: one number for all layers, or one a layer [..., M]."""


def check_depth(depth: int) -> None:
    """Raise ValueError unless there is at least one layer."""
    if depth < 1:
        raise ValueError(f"depth is {depth}; expected at least 1 linear layer")


def positive(name: str, value: float | Sequence[float] | Tensor, like: Tensor, *, zero: bool = False) -> Tensor:
    """The value as a tensor like another; ValueError unless all its entries are positive (or zero, where allowed).

    Only Python numbers are looked at: reading a tensor would stall a GPU and is impossible under vmap and compile.
    """
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if not isinstance(value, Tensor) and not bool((tensor >= 0 if zero else tensor > 0).all()):
        expected = "numbers of at least 0" if zero else "positive numbers"
        raise ValueError(f"{name} is {value}; expected {expected}")
    return tensor


def layer_decays(value: Decay, depth: int, like: Tensor, *, zero: bool = False) -> Tensor:
    """Weight decays [..., M]; a single number is the same for all layers."""
    decay = positive("weight_decay", value, like, zero=zero)
    if decay.ndim == 0:
        return decay.expand(depth)
    if decay.shape[-1] != depth:
        raise ValueError(f"weight_decay has {decay.shape[-1]} entries in its last axis; expected {depth}, one a layer")
    return decay
