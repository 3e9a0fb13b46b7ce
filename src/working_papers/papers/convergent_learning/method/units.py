"""Activations of any layer of any model as rows of samples and columns of units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from working_papers.nn.taps import ActivationTap
from working_papers.papers.convergent_learning.method.statistics import CorrelationAccumulator, UnitStats

Positions = Literal["all", "mean"] | int


def unit_rows(activation: Tensor, positions: Positions = "all", *, unit_axis: int = 1, crop: int = 0) -> Tensor:
    """A layer's output as samples by units.

    Args:
        activation: (B, ...) with the units along one axis: (B, n), convolutional maps (B, n, H, W), sequences
            (B, T, n) with `unit_axis=-1`.
        positions: "all" makes a sample of every position of every input, in the paper's way; "mean" averages over the
            positions of an input; a number keeps one position, counted row by row.
        unit_axis: which axis holds the units; not the first.
        crop: so many positions are cut off at both ends of every other axis. Positions near the border see padding,
            which makes units look more alike than they are.

    Returns:
        (N, n); with "all", the positions of one input follow one another.

    Raises:
        ValueError: there is no such axis or position, or nothing is left after cropping.

    Source: section 2.1 of the paper; cropping and the mean are ours.
    """
    if activation.ndim < 2:
        raise ValueError(f"activation has shape {tuple(activation.shape)}; expected at least two axes, (inputs, units)")
    axis = unit_axis + activation.ndim if unit_axis < 0 else unit_axis
    if not 1 <= axis < activation.ndim:
        raise ValueError(
            f"unit_axis is {unit_axis}; expected an axis of the shape {tuple(activation.shape)} but the first"
        )
    if crop < 0:
        raise ValueError(f"crop is {crop}; expected 0 or more")
    moved = activation.movedim(axis, -1)  # (B, ..., n)
    for spatial in range(1, moved.ndim - 1):
        left = moved.shape[spatial] - 2 * crop
        if left < 1:
            raise ValueError(f"crop is {crop}, which leaves nothing of an axis of {moved.shape[spatial]} positions")
        moved = moved.narrow(spatial, crop, left)
    rows = moved.flatten(1, -2) if moved.ndim > 2 else moved.unsqueeze(1)  # (B, positions, n)
    if positions == "all":
        return rows.flatten(0, 1)
    if positions == "mean":
        return rows.mean(dim=1)
    if not isinstance(positions, int):
        raise ValueError(f"positions is {positions!r}; expected 'all', 'mean' or the number of a position")
    if not 0 <= positions < rows.shape[1]:
        raise ValueError(f"positions is {positions}; expected a number below {rows.shape[1]}")
    return rows[:, positions]


def collect_units(
    model: nn.Module,
    layer: str,
    loader: Iterable[Any],
    positions: Positions = "all",
    *,
    unit_axis: int = 1,
    crop: int = 0,
) -> Tensor:
    """The activations of one layer on everything a loader gives.

    The model runs in evaluation mode, without gradients, on the device of its parameters, and is left as it was.

    Args:
        model: any module.
        layer: its name as in `model.named_modules()`; take the one after the nonlinearity.
        loader: an iterable of batches: tensors, tuples or lists whose first entry is the input, or mappings, which are
            passed as keyword arguments.
        positions: which positions are samples, see `unit_rows`.
        unit_axis: the axis that holds the units.
        crop: positions cut off at the borders.

    Returns:
        (N, n), in the layer's dtype, in main memory.

    Raises:
        ValueError: the layer does not exist or did not run, or the loader is empty.

    Source: section 2.1 of the paper.
    """
    rows = [
        unit_rows(activation, positions, unit_axis=unit_axis, crop=crop).cpu()
        for activation in _activations(model, layer, loader)
    ]
    if not rows:
        raise ValueError("loader gave no batch")
    return torch.cat(rows)


def layer_statistics(
    model_x: nn.Module,
    layer_x: str,
    model_y: nn.Module,
    layer_y: str,
    loader: Iterable[Any],
    positions: Positions = "all",
    *,
    loader_y: Iterable[Any] | None = None,
    unit_axis: int = 1,
    crop: int = 0,
) -> UnitStats:
    """The correlations of a layer of one network with a layer of another, in one pass, without keeping activations.

    Args:
        model_x: the first network.
        layer_x: name of its layer.
        model_y: the second network; its architecture may differ.
        layer_y: name of its layer.
        loader: the inputs, as for `collect_units`. An iterator that can be read once will do.
        positions: which positions are samples, see `unit_rows`.
        loader_y: inputs of the second network where they are not the same: other preprocessing, or the same inputs in
            another order, which shows what units share without looking at the same input.
        unit_axis: the axis that holds the units.
        crop: positions cut off at the borders.

    Raises:
        ValueError: a layer does not exist, the loaders are not equally long, or the samples do not correspond.
    """
    accumulator = CorrelationAccumulator()
    pairs = ((batch, batch) for batch in loader) if loader_y is None else zip(loader, loader_y, strict=True)
    with _Watch(model_x, layer_x) as watch_x, _Watch(model_y, layer_y) as watch_y:
        for batch_x, batch_y in pairs:
            x, y = (
                unit_rows(activation, positions, unit_axis=unit_axis, crop=crop)
                for activation in (watch_x(batch_x), watch_y(batch_y))
            )
            accumulator.update(x, y.to(x.device))
    return accumulator.compute()


class _Watch:
    """A layer's activations, batch by batch; the model is in evaluation mode meanwhile and then as it was."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, layer
        self.tap = ActivationTap(model, [layer])
        self.device = next((each.device for each in (*model.parameters(), *model.buffers())), None)

    def __enter__(self) -> _Watch:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        self.tap.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.tap.close()
        for module, training in self.modes:
            module.training = training

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        self.tap.clear()
        if isinstance(batch, Mapping):
            self.model(**{name: self._moved(value) for name, value in batch.items()})
        else:
            self.model(self._moved(batch[0] if isinstance(batch, tuple | list) else batch))
        if self.layer not in self.tap.values:
            raise ValueError(f"layer {self.layer!r} did not run when the model was called")
        return self.tap.values[self.layer]

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) and self.device is not None else value


def _activations(model: nn.Module, layer: str, loader: Iterable[Any]) -> Iterator[Tensor]:
    with _Watch(model, layer) as watch:
        for batch in loader:
            yield watch(batch)
