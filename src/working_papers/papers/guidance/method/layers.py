"""Which layers of a model are compared, and their outputs with the batch on the first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from working_papers.nn.taps import ActivationTap, first_tensor

PARAMETRIC = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.RNNBase,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Layers whose outputs are compared by default: what has weights, before nonlinearity and batch norm, and pooling."""


def parametric_layers(model: nn.Module) -> list[str]:
    """Names of the layers that guidance compares by default, in the order in which the model holds them.

    Convolutions, linear layers, adaptive average pooling, recurrent layers, layer norms, attention, and whole encoder
    and decoder layers of Transformers; neither nonlinearities nor batch norms.

    Args:
        model: any module.

    Returns:
        Names as in `model.named_modules()`.

    Source: the list of layers in the official code.
    """
    return [name for name, module in model.named_modules() if name and isinstance(module, PARAMETRIC)]


class LayerTap(ActivationTap):
    """Keeps the outputs of a model's layers while it is open, each with the batch on its first axis.

    Of tuples it keeps the first entry, the sequence of a recurrent layer; packed sequences are padded. Recurrent and
    attention layers say themselves where the batch is; elsewhere it is the first axis if that has the batch's size, or
    else the only axis that has. An output without such an axis is left out. (Linear layers inside a model that has
    time on its first axis are taken wrongly where sequences are as long as the batch is large.)

        with LayerTap(model) as tap:
            model(images)
        tap.activations()

    Args:
        model: any module.
        layers: names as in `model.named_modules()`, or "auto" for the parametric layers that run.
        batch_axis: axis of the batch in the model's own input.
        drop_last: whether `activations` leaves out the layer that ran last: with "auto", the logits.

    Raises:
        ValueError: a name is not a layer of the model, or there is no layer.

    Source: which layers and which of their outputs, the official code.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | Literal["auto"] = "auto",
        *,
        batch_axis: int = 0,
        drop_last: bool = True,
    ) -> None:
        if isinstance(layers, str) and layers != "auto":
            raise ValueError(f"layers is {layers!r}; expected 'auto' or a sequence of names")
        if layers == "auto":
            layers = parametric_layers(model)
            if not layers:
                raise ValueError(f"model, a {type(model).__name__}, has no parametric layer; name layers instead")
        super().__init__(model, layers)
        self.batch_axis = batch_axis
        self.drop_last = drop_last
        self.batch: int | None = None
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._model = model

    def __enter__(self) -> LayerTap:
        self._handles.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
        super().__enter__()
        return self

    def activations(self) -> dict[str, Tensor]:
        """Outputs of the latest pass, (n, ...), by the name of the layer, in the order in which layers ran."""
        kept = list(self.values.items())
        return {name: value for name, value in kept[: len(kept) - self.drop_last] if value is not _NO_BATCH}

    def clear(self) -> None:
        """Forget the values, the graph that they hold and the model's arguments."""
        super().clear()
        self.arguments = ((), {})

    def _begin(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.values.clear()  # a layer that the new pass leaves out must not keep its old output
        self.arguments = (given, named)
        self.batch = batch_size((*given, *named.values()), self.batch_axis)

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, given: object, output: object) -> None:
            self.values.pop(name, None)
            value = batch_first(module, output, self.batch)
            self.values[name] = _NO_BATCH if value is None else value

        return keep


_NO_BATCH = torch.empty(0)
"""Stands for an output whose batch axis is unknown, so that the order of layers is kept."""


def batch_size(arguments: Sequence[object], axis: int = 0) -> int | None:
    """Number of inputs in a model's arguments: the size of the first tensor along an axis; None if there is none."""
    for each in _leaves(arguments):
        if isinstance(each, PackedSequence):
            return int(each.batch_sizes[0])
        if isinstance(each, Tensor) and -each.ndim <= axis < each.ndim:
            return each.shape[axis]
    return None


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list) and not isinstance(value, PackedSequence):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def batch_first(module: nn.Module, output: object, n: int | None) -> Tensor | None:
    """A layer's output with the batch of n inputs on the first axis; None where it cannot be told."""
    if isinstance(output, tuple) and output and isinstance(output[0], PackedSequence):
        output = output[0]
    if isinstance(output, PackedSequence):
        return pad_packed_sequence(output, batch_first=True)[0]
    value = first_tensor(output)
    if value.ndim < 2:
        return None
    if value.ndim == 3 and _time_first(module):
        return value.transpose(0, 1)
    sized = [axis for axis, size in enumerate(value.shape) if size == n]
    if n is None or 0 in sized:
        return value
    return value.movedim(sized[0], 0) if len(sized) == 1 else None


def _time_first(module: nn.Module) -> bool:
    """Whether a layer of sequences has time on the first axis."""
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and not module.batch_first
