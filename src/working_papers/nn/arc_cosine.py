"""Arc-cosine kernels: what an infinitely wide ReLU layer makes of the angle between two inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relu_step_kernel(cosine: Tensor) -> Tensor:
    """E[1(u > 0) 1(v > 0)] of two standard Gaussians with a given correlation: (π - θ) / 2π.

    Args:
        cosine: any shape, from -1 to 1; values a rounding error outside are clamped.

    Returns:
        The kernel, same shape: from 0 (opposite) over 1/4 (orthogonal) to 1/2 (equal).

    Source: Cho and Saul 2009, "Kernel Methods for Deep Learning", equation 4 (order 0), divided by 2.
    """
    return (math.pi - torch.acos(_clamped(cosine))) / (2 * math.pi)


def relu_kernel(cosine: Tensor) -> Tensor:
    """E[relu(u) relu(v)] of two standard Gaussians with a given correlation: (sin θ + (π - θ) cos θ) / 2π.

    Args:
        cosine: any shape, from -1 to 1; values a rounding error outside are clamped.

    Returns:
        The kernel, same shape: from 0 (opposite) over 1/2π (orthogonal) to 1/2 (equal).

    Source: Cho and Saul 2009, equation 6 (order 1), divided by 2.
    """
    u = _clamped(cosine)
    return ((1 - u.square()).clamp_min(0).sqrt() + (math.pi - torch.acos(u)) * u) / (2 * math.pi)


def _clamped(cosine: Tensor) -> Tensor:
    if not cosine.is_floating_point():
        raise ValueError(f"cosine must be a floating-point tensor, got {cosine.dtype}")
    slack = 1e-5 if cosine.dtype in (torch.float32, torch.float64) else 1e-2
    if cosine.numel() and bool((cosine.abs() > 1 + slack).any()):
        raise ValueError(f"cosine must lie in [-1, 1], got {float(cosine.abs().max())}")
    return cosine.clamp(-1, 1)
