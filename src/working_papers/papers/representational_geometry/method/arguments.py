"""Checks of arguments that several measures share."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def random_numbers(purpose: str, seed: int) -> torch.Generator:
    """A generator on the CPU for one purpose, so that a task and a network of the same seed are independent."""
    mixed = (seed + 1) * 0x9E3779B97F4A7C15 + zlib.crc32(purpose.encode())
    return torch.Generator().manual_seed((mixed ^ (mixed >> 31)) & (2**63 - 1))


def check_activity(name: str, h: Tensor, *, conditions: int = 2) -> None:
    """Refuse what is not a floating-point tensor [..., P, N] of at least that many conditions."""
    if not h.is_floating_point():
        raise ValueError(f"{name} has dtype {h.dtype}; expected a floating-point tensor")
    if h.ndim < 2 or h.shape[-2] < conditions or h.shape[-1] < 1:
        raise ValueError(f"{name} has shape {tuple(h.shape)}; expected [..., P, N] with P of at least {conditions}")


def signs(name: str, dichotomy: Tensor, conditions: int) -> Tensor:
    """A balanced dichotomy as a boolean mask of its first side [P].

    Raises:
        ValueError: the shape is wrong, there are not two values, or the sides differ in size.
    """
    if dichotomy.shape != (conditions,):
        raise ValueError(f"{name} has shape {tuple(dichotomy.shape)}; expected ({conditions},), one label a condition")
    values = dichotomy.unique()
    if len(values) != 2:
        raise ValueError(f"{name} has {len(values)} different labels; expected 2")
    side: Tensor = dichotomy == values[1]
    if 2 * int(side.sum()) != conditions:
        raise ValueError(f"{name} has {int(side.sum())} of {conditions} conditions on one side; expected one half")
    return side


def check_targets(targets: Tensor, conditions: int) -> Tensor:
    """Targets [P, k] (or [P] for one) as ±1 in a matrix.

    Raises:
        ValueError: the shape is wrong, or a value is neither -1 nor 1.
    """
    if targets.ndim not in (1, 2) or targets.shape[0] != conditions or targets.numel() == 0:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; expected ({conditions}, k)")
    matrix = targets if targets.ndim == 2 else targets[:, None]
    if not bool((matrix.abs() == 1).all()):
        raise ValueError("targets has values other than -1 and 1; expected binary targets in that form")
    return matrix


def working(h: Tensor) -> Tensor:
    """In float64 where the device has it, in float32 otherwise: differences and solves need the digits."""
    return h.to(torch.float32 if h.device.type == "mps" else torch.float64)
