"""What rigid and graph frames share. Letters as in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on `device`, drawn where the generator lives."""
    drawn_on = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=drawn_on).to(device)


def unflatten(y: Tensor, batch: int, elements: int) -> Tensor:
    """[B·K, ...] → [B, K, ...]."""
    if y.ndim == 0 or y.shape[0] != batch * elements:
        wanted = f"[B·K, ...] with B·K = {batch}·{elements} = {batch * elements}"
        raise ValueError(f"the backbone returned shape {tuple(y.shape)}; expected {wanted}")
    return y.view(batch, elements, *y.shape[1:])


def repeat(keywords: dict[str, Any], batch: int, elements: int) -> dict[str, Any]:
    """Repeat keyword tensors for each frame element, [B, ...] → [B·K, ...]; leave other values alone."""
    repeated: dict[str, Any] = {}
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            if value.ndim == 0 or value.shape[0] != batch:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; expected [B, ...] with B = {batch}, one entry a "
                    "sample. Keep what all samples share inside the backbone"
                )
            value = value.repeat_interleave(elements, dim=0)
        repeated[name] = value
    return repeated


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
