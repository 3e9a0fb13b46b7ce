"""How many basis functions a space-time field needs: the paper's measure of difficulty (Kolmogorov n-width)."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_value_decay(field: Tensor) -> Tensor:
    """Singular values of a field's snapshots over the largest one; slow decay means that no few shapes span the field.

    Args:
        field: (..., T, N), snapshots at T times, at fixed places or along paths.

    Returns:
        (..., min(T, N)), descending from 1; zeros for a field that is zero. At least float32.

    Raises:
        ValueError: fewer than two axes.

    Source: the paper takes the decay of these values for the Kolmogorov n-width of a problem.
    """
    if field.ndim < 2:
        raise ValueError(f"field has shape {tuple(field.shape)}; expected (..., T, N)")
    if field.dtype in (torch.float16, torch.bfloat16):
        field = field.float()
    values: Tensor = torch.linalg.svdvals(field)
    return values / values[..., :1].clamp(min=torch.finfo(values.dtype).tiny)


def snapshot_rank(field: Tensor, energy: float = 0.999) -> Tensor:
    """Number of singular vectors that carry a share of the snapshots' energy (sum of squares).

    Args:
        field: (..., T, N).
        energy: the share, above 0 and below 1.

    Returns:
        (...), int64.

    Raises:
        ValueError: fewer than two axes, or a share out of range.
    """
    if not 0 < energy < 1:
        raise ValueError(f"energy is {energy}; expected a share above 0 and below 1")
    squares = singular_value_decay(field).square().cumsum(dim=-1)
    return 1 + (squares < energy * squares[..., -1:]).sum(dim=-1)
