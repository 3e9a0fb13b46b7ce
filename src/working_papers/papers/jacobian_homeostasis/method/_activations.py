"""Activations, softmax and pooling that are complex-differentiable, and a test of whether a function is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def logistic(z: Tensor) -> Tensor:
    """1 / (1 + e^(-z)), real or complex, without overflow.

    For complex numbers on the CPU it is faster than `torch.sigmoid`, most of all on small batches.

    Args:
        z: any shape, real or complex; poles lie at iπ(2k + 1).

    Returns:
        Same shape and dtype.
    """
    if not z.is_complex():
        return torch.sigmoid(z)
    x, y = z.real, z.imag
    positive = (x >= 0).to(x.dtype)  # a factor: torch.where is slow on mixed signs
    e = torch.exp(x * (1 - 2 * positive))  # e^(-|x|)
    cosine, square = e * torch.cos(y), e * e
    scale = 1 / (1 + 2 * cosine + square)
    return torch.complex((square + positive * (1 - square) + cosine) * scale, e * torch.sin(y) * scale)


def sigmoid4(z: Tensor) -> Tensor:
    """σ(4z − 2): from 0 to 1, slope 1 at its centre z = ½. The paper's choice for perceptrons.

    Args:
        z: any shape, real or complex; the nearest poles lie at ½ ± iπ/4.

    Returns:
        Same shape and dtype.
    """
    return logistic(4 * z - 2)


def dsilu(z: Tensor) -> Tensor:
    """½z σ(z) + (1 − ½z) σ(z − 2): a smooth step from 0 to 1 that overshoots a little. The paper's for convolutions.

    Args:
        z: any shape, real or complex; the nearest poles lie at ±iπ and 2 ± iπ.

    Returns:
        Same shape and dtype.
    """
    return 0.5 * z * logistic(z) + (1 - 0.5 * z) * logistic(z - 2)


ACTIVATIONS: dict[str, Activation] = {"sigmoid4": sigmoid4, "dsilu": dsilu}


def named_activation(activation: str | Activation) -> Activation:
    """The function that a name stands for; functions are returned as they are.

    Raises:
        ValueError: there is no such name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected a function or one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def holomorphic_softmax(z: Tensor) -> Tensor:
    """e^z / Σ e^z along the last axis, continued to complex numbers.

    Args:
        z: (..., C), real or complex.

    Returns:
        Same shape and dtype; sums to 1.

    Source: the paper's read-out; PyTorch's softmax takes no complex numbers.
    """
    if not z.is_complex():
        return torch.softmax(z, dim=-1)
    shift = z.real.detach().amax(dim=-1, keepdim=True)  # cancels in the quotient
    powers = torch.polar(torch.exp(z.real - shift), z.imag)
    return powers / powers.sum(dim=-1, keepdim=True)


def is_holomorphic(function: Activation) -> bool:
    """Whether an elementwise function has a complex derivative, as nudges off the real axis need.

    The derivatives along the real and the imaginary axis are compared at 24 points near the real axis, and the
    function must be real there. That finds out ReLU, hard sigmoids, moduli and clamps; it is a test, not a proof.

    Args:
        function: elementwise; tried on complex128.

    Returns:
        False also where the function takes no complex numbers at all.
    """
    real = torch.linspace(-2.03, 2.97, 8, dtype=torch.float64)
    z = torch.complex(*torch.meshgrid(real, torch.tensor([-0.11, 0.0, 0.17], dtype=torch.float64), indexing="ij"))
    h = 1e-5
    try:
        along_real = (function(z + h) - function(z - h)) / (2 * h)
        along_imaginary = (function(z + 1j * h) - function(z - 1j * h)) / (2j * h)
        on_axis = function(torch.complex(real, torch.zeros_like(real)))
    except RuntimeError:  # PyTorch says so where an operation is not implemented for complex numbers
        return False
    if not (along_real.is_complex() and along_imaginary.is_complex()):
        return False
    size = 1 + along_real.abs()
    return bool(((along_real - along_imaginary).abs() < 1e-6 * size).all()) and bool((on_axis.imag.abs() < 1e-9).all())


def softmax_pool(v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax-weighted mean of non-overlapping 2 x 2 windows, Σ v e^v / Σ e^v, and its derivative by each pixel.

    Args:
        v: (..., H, W) with even H and W, real or complex.

    Returns:
        The pooled image p (..., H/2, W/2), and ∂p/∂v = w (1 + v − p), (..., H, W), w the softmax in the window.

    Source: the paper's holomorphic pooling; the closed form of the derivative is ours.
    """
    *lead, height, width = v.shape
    if height % 2 or width % 2:
        raise ValueError(f"v has images of {height} by {width} pixels; expected even numbers")
    windows = v.reshape(*lead, height // 2, 2, width // 2, 2).transpose(-3, -2).flatten(-2)  # (..., H/2, W/2, 4)
    weights = holomorphic_softmax(windows)
    pooled = (weights * windows).sum(dim=-1)
    slope = weights * (1 + windows - pooled.unsqueeze(-1))
    return pooled, slope.unflatten(-1, (2, 2)).transpose(-3, -2).reshape(v.shape)


def upsample(p: Tensor) -> Tensor:
    """Each pixel four times, (..., H, W) to (..., 2H, 2W)."""
    return p.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
