"""Taps: the activations of a user's own model, by the names of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ActivationTap:
    """Keeps the outputs of named layers of any model while it is open.

    Values are those of the latest forward pass, in the order in which layers ran, still attached to the graph. A layer
    that runs several times in one pass (shared weights, recurrence) keeps its last output. The model's own output is
    untouched.

        with ActivationTap(model, ["conv1", "fc"]) as tap:
            logits = model(images)
        tap.values["conv1"]

    Args:
        model: any module.
        layers: names as in `model.named_modules()`.
        pick: makes a tensor of a layer's output; by default the output itself, or the first entry of a tuple.

    Raises:
        ValueError: a name is not a layer of the model, or none is given.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], *, pick: Callable[[object], Tensor] | None = None
    ) -> None:
        modules = dict(model.named_modules())
        unknown = [name for name in layers if name not in modules]
        if unknown:
            raise ValueError(f"layers names {unknown[0]!r}, which is no layer of the model; it has {_some(modules)}")
        if not layers:
            raise ValueError("layers must name at least one layer, got none")
        self.layers = tuple(dict.fromkeys(layers))
        self.values: dict[str, Tensor] = {}
        self._modules = [(name, modules[name]) for name in self.layers]
        self._pick = pick or first_tensor
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ActivationTap:
        for name, module in self._modules:
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(module: nn.Module, given: object, output: object) -> None:
            self.values.pop(name, None)  # so that the order is that of this pass
            self.values[name] = self._pick(output)

        return keep

    def clear(self) -> None:
        """Forget the values, and the graph that they hold."""
        self.values.clear()

    def close(self) -> None:
        """Take the hooks off; the values stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def first_tensor(output: object) -> Tensor:
    """A layer's output as one tensor: itself, or the first entry of a tuple (recurrent layers, attention).

    Raises:
        ValueError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise ValueError(
        f"a tapped layer must return a tensor or a tuple that begins with one, got {type(output).__name__}"
    )


def _some(modules: dict[str, nn.Module]) -> str:
    names = [name for name in modules if name]
    return ", ".join(map(repr, names[:8])) + (" ..." if len(names) > 8 else "")
