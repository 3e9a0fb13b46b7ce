"""Training data of operators: functions, queries and values in three layouts, and the published archives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

Layout = Literal["pairs", "per-function", "cartesian"]
"""How queries meet functions.

"pairs" and "per-function" are what DeepXDE calls unaligned data (every function has queries of its own): one query a
row, or Q a row. "cartesian" is aligned data: all functions share their queries.
"""


@dataclass(frozen=True)
class OperatorData:
    """Input functions, query points and the output functions' values there.

    Attributes:
        functions: (n, m) values at the sensors, or (n, ...) as the branch takes them.
        queries: (n, d) for "pairs", (n, Q, d) for "per-function", (Q, d) for "cartesian".
        values: (n,) for "pairs", (n, Q) otherwise; with several outputs one more axis.
        layout: which of the three.

    Raises:
        ValueError: the layout does not exist, or the shapes do not fit it.
    """

    functions: Tensor
    queries: Tensor
    values: Tensor
    layout: Layout

    def __post_init__(self) -> None:
        """Refuse shapes that would broadcast into nonsense."""
        n = len(self.functions)
        shapes = {"pairs": (n,), "per-function": (n, self.queries.shape[1]), "cartesian": (n, len(self.queries))}
        if self.layout not in shapes:
            raise ValueError(f"layout is {self.layout!r}; expected one of {', '.join(map(repr, shapes))}")
        axes = 3 if self.layout == "per-function" else 2
        expected = shapes[self.layout]
        fits = self.values.ndim - len(expected) in (0, 1) and tuple(self.values.shape[: len(expected)]) == expected
        if self.queries.ndim != axes or (self.layout != "cartesian" and len(self.queries) != n) or not fits:
            raise ValueError(
                f"{self.layout!r} data with {n} functions has queries {tuple(self.queries.shape)} and values "
                f"{tuple(self.values.shape)}; expected queries with {axes} axes and values {expected}"
            )

    def __len__(self) -> int:
        return len(self.functions)

    def predict(self, model: nn.Module) -> Tensor:
        """What a model says where the values are known, in their shape.

        Args:
            model: called as `model(functions, queries)`, with `cartesian=True` behind for that layout.
        """
        result: Tensor
        if self.layout == "cartesian":
            result = model(self.functions, self.queries, cartesian=True)
        else:
            result = model(self.functions, self.queries)
        return result

    def take(self, rows: Tensor | slice) -> OperatorData:
        """Some of the functions, with their queries and values.

        Args:
            rows: int64 indices (B,) or a slice.
        """
        queries = self.queries if self.layout == "cartesian" else self.queries[rows]
        return OperatorData(self.functions[rows], queries, self.values[rows], self.layout)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[OperatorData]:
        """Endless batches of functions, each epoch in an order of its own; what does not fill a batch is left out.

        Args:
            size: functions a batch (rows, for "pairs").
            generator: of the orders, on the CPU.

        Raises:
            ValueError: the size is not between 1 and the number of functions.
        """
        if not 1 <= size <= len(self):
            raise ValueError(f"size is {size}; expected 1 to {len(self)}, the number of functions")
        while True:
            order = torch.randperm(len(self), generator=generator).to(self.functions.device)
            for rows in order[: len(self) // size * size].view(-1, size):
                yield self.take(rows)

    def split(self, share: float, generator: torch.Generator | None = None) -> tuple[OperatorData, OperatorData]:
        """Two parts without a common input function, so that the second tests what the first trained.

        Equal rows of `functions` stay together: splitting pairs at random would leak test functions.

        Args:
            share: of the distinct functions in the first part, between 0 and 1.
            generator: of the draw, on the CPU.

        Raises:
            ValueError: one of the parts would be empty.
        """
        _, owner = torch.unique(self.functions.flatten(1), dim=0, return_inverse=True)
        distinct = int(owner.max()) + 1 if len(owner) else 0
        chosen = round(share * distinct)
        if not 0 < chosen < distinct:
            raise ValueError(
                f"share is {share} of {distinct} distinct functions; expected a share that leaves both parts some"
            )
        first = torch.zeros(distinct, dtype=torch.bool)
        first[torch.randperm(distinct, generator=generator)[:chosen]] = True
        mine = first.to(owner.device)[owner]
        return self.take(mine.nonzero().squeeze(1)), self.take((~mine).nonzero().squeeze(1))

    def pairs(self) -> OperatorData:
        """The same data with one query a row, each function repeated as often as it has queries."""
        if self.layout == "pairs":
            return self
        asked = self.values.shape[1]
        queries = self.queries.expand(len(self), *self.queries.shape[-2:]).flatten(0, 1)
        functions = self.functions.repeat_interleave(asked, dim=0)
        return OperatorData(functions, queries, self.values.flatten(0, 1), "pairs")

    def grouped(self) -> OperatorData:
        """The same data with each distinct function once: the branch then runs once a function instead of once a query.

        Returns:
            "cartesian" where all functions share their queries in the same order, else "per-function"; functions in
            ascending order of their values.

        Raises:
            ValueError: the functions do not all have the same number of queries.
        """
        if self.layout != "pairs":
            return self
        _, owner, counts = torch.unique(self.functions.flatten(1), dim=0, return_inverse=True, return_counts=True)
        if counts.numel() == 0 or int(counts.min()) != int(counts.max()):
            raise ValueError(
                f"functions: distinct ones have between {int(counts.min()) if counts.numel() else 0} and "
                f"{int(counts.max()) if counts.numel() else 0} queries; expected the same number for each"
            )
        order = torch.argsort(owner, stable=True)
        shape = (len(counts), int(counts[0]))
        functions = self.functions[order[:: shape[1]]]
        queries, values = self.queries[order].unflatten(0, shape), self.values[order].unflatten(0, shape)
        if bool((queries == queries[0]).all()):
            return OperatorData(functions, queries[0], values, "cartesian")
        return OperatorData(functions, queries, values, "per-function")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OperatorData:
        """The same data on another device or in another floating dtype.

        Args:
            device: where to; None leaves it.
            dtype: of all three tensors; None leaves them.
        """
        functions, queries, values = (
            part.to(device=device, dtype=dtype) for part in (self.functions, self.queries, self.values)
        )
        return OperatorData(functions, queries, values, self.layout)


def load_operator_data(
    path: Path | str,
    part: Literal["train", "test"] = "train",
    *,
    allow_pickle: bool = False,
    dtype: torch.dtype = torch.float32,
) -> OperatorData:
    """Read an `.npz` archive as DeepONet's authors publish them.

    Three spellings are known: `X_train0`, `X_train1`, `y_train` (and the same with `test`), that is functions (n, m),
    queries and values; `X0`, `X1`, `y`, an archive for each part; and DeepXDE's `X`, `y`, where X is an object array of
    functions and queries. Values (n, 1) with as many queries as functions are pairs; values (n, Q) with Q queries are
    aligned data.

    Args:
        path: of the archive.
        part: which of the two, where an archive holds both.
        allow_pickle: whether to read object arrays. They may run code when they are read: only for archives you trust.
        dtype: of the result.

    Returns:
        "pairs" or "cartesian" data on the CPU.

    Raises:
        ValueError: an array is missing, holds objects, or the shapes fit neither layout; the message names the file.
        OSError: the file cannot be read.
    """
    import numpy as np

    with np.load(path, allow_pickle=allow_pickle) as archive:
        spellings = ((f"X_{part}0", f"X_{part}1", f"y_{part}"), ("X0", "X1", "y"), ("X", "y"))
        names = next((each for each in spellings if all(name in archive for name in each)), None)
        if names is None:
            raise ValueError(
                f"{path} holds {', '.join(archive.files)}; expected {', '.join(spellings[0])}, or X0, X1, y, or X, y"
            )
        try:
            arrays = [archive[name] for name in names]
        except ValueError as error:
            raise ValueError(
                f"{path}: {error}; expected plain numbers, or allow_pickle=True if you trust it"
            ) from error
    if len(arrays) == 2:
        if len(arrays[0]) != 2:
            raise ValueError(f"{path}: X has {len(arrays[0])} parts; expected functions and queries")
        arrays = [arrays[0][0], arrays[0][1], arrays[1]]
    functions, queries, values = (
        _plain(array, name, path, dtype) for array, name in zip(arrays, ("functions", "queries", "values"), strict=True)
    )
    if len(functions) == len(queries) == len(values) and values.shape[1:] in ((), (1,)):
        return OperatorData(functions, queries, values.reshape(len(values)), "pairs")
    if values.ndim == 2 and values.shape == (len(functions), len(queries)):
        return OperatorData(functions, queries, values, "cartesian")
    raise ValueError(
        f"{path}: functions {tuple(functions.shape)}, queries {tuple(queries.shape)} and values {tuple(values.shape)}; "
        "expected (n, m), (n, d), (n, 1) or (n, m), (Q, d), (n, Q)"
    )


def _plain(array: np.ndarray[Any, Any], name: str, path: Path | str, dtype: torch.dtype) -> Tensor:
    import numpy as np

    if array.ndim < 2 and name != "values":
        raise ValueError(f"{path}: {name} has shape {array.shape}; expected at least two axes")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(dtype)
