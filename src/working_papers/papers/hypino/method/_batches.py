"""Dataclasses of tensors that are indexed, moved and joined along their first axis, field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor


class Batched:
    """Base of dataclasses whose tensors all have the problem as their first axis."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor.

        Args:
            function: of one tensor.

        Returns:
            The same dataclass with the results; fields that are None stay so.
        """

        def each(value: Any) -> Any:
            if isinstance(value, Batched):
                return value.map(function)
            return function(value) if isinstance(value, Tensor) else value

        return type(self)(**{f.name: each(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def __getitem__(self, rows: Any) -> Self:
        """Rows of every tensor, as torch indexes its first axis."""
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move to a device; `dtype` changes floating-point tensors only."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join along the first axis.

        Raises:
            ValueError: no parts.
        """
        if not parts:
            raise ValueError("parts is empty; expected at least one batch")

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], Batched):
                return type(values[0]).concatenate(values)
            return torch.cat(values) if isinstance(values[0], Tensor) else values[0]

        return cls(**{f.name: join([getattr(part, f.name) for part in parts]) for f in fields(cls)})  # type: ignore[arg-type]
