"""The alignment loss of a target and its guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from working_papers.nn.similarity import linear_cka
from working_papers.papers.guidance.method.layers import LayerTap

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Takes two representations (n, ...) of the same n inputs and returns a scalar, 1 where they agree."""


def depth_map(n_guide: int, n_target: int) -> list[tuple[int, int]]:
    """Pairs of layers at the same relative depth: guide layer i and target layer round(i·(n_target-1)/(n_guide-1)).

    Halves round to the even number. First layers are paired, and last layers; a guide of one layer is paired with the
    target's first. Where the guide is deeper, several of its layers share one of the target's. The official code keeps
    losses by target layer, so that of these only the last counts; here all pairs are kept.

    Args:
        n_guide: number of layers of the guide, at least 1.
        n_target: number of layers of the target, at least 1.

    Returns:
        A pair (guide layer, target layer) for each layer of the guide, counted from 0.

    Raises:
        ValueError: a number is below 1.

    Source: official code; the paper pairs layers "evenly".
    """
    for name, number in (("n_guide", n_guide), ("n_target", n_target)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1 layer")
    step = (n_target - 1) / (n_guide - 1) if n_guide > 1 else 1.0
    return [(layer, min(round(layer * step), n_target - 1)) for layer in range(n_guide)]


class Guidance(nn.Module):
    """Adds to any target's loss the alignment of its layers with those of a frozen guide.

    As one call:

        guidance = Guidance(target, guide)
        output, alignment = guidance(images)
        (task_loss(output, labels) + alignment).backward()

    Or around a loop that calls the target by itself:

        with guidance:
            output = target(images)
            alignment, similarities = guidance.loss()

    The target's activations are those of the pass that makes its output, so that dropout masks agree (the official
    code runs the target a second time). The guide is kept in eval mode, gets no gradient, is no part of `parameters()`
    or of the state dict, and may live on another device. An untrained guide is simply a guide that nobody trained; its
    batch norms, in eval mode, do nothing.

    CKA is biased upward where a batch has no more inputs than a layer has features: keep the batch size fixed, drop a
    smaller last batch, and compare values at one size only. Choose models by the task's loss, not by this one.

    Args:
        target: the network to be trained.
        guide: another network that reads the same inputs.
        pairs: names (layer of the guide, layer of the target), or "auto": the parametric layers of both that run in
            the first pass, without the last one of each (the logits), paired by `depth_map`.
        metric: similarity of two representations (n, ...); 1 where they agree. By default linear CKA.
        weight: factor of the alignment loss; the paper's is 1.
        reduction: "sum" over pairs, the paper's, or "mean".
        until_step: number of training steps after which the term vanishes (the paper: 300); None for never. Steps are
            counted by calls in training mode; the count is part of the state dict.
        per_token: whether layers that give sequences (n, tokens, features) are compared token by token, summed over
            tokens, instead of flattened.
        batch_axis: axis of the batch in the inputs of both networks.

    Raises:
        ValueError: target and guide are one module, a layer does not exist, or a setting is none of the above.

    Source: section 3 of the paper and its official code.
    """

    def __init__(
        self,
        target: nn.Module,
        guide: nn.Module,
        pairs: Sequence[tuple[str, str]] | Literal["auto"] = "auto",
        *,
        metric: Similarity = linear_cka,
        weight: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        until_step: int | None = None,
        per_token: bool = False,
        batch_axis: int = 0,
    ) -> None:
        super().__init__()
        if target is guide:
            raise ValueError("guide is the target itself; expected another network, or a copy")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is {reduction!r}; expected 'sum' or 'mean'")
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; expected a number not below 0")
        if until_step is not None and until_step < 0:
            raise ValueError(f"until_step is {until_step}; expected a number of steps or None")
        if isinstance(pairs, str) and pairs != "auto":
            raise ValueError(f"pairs is {pairs!r}; expected 'auto' or a sequence of (guide layer, target layer)")
        if not pairs:
            raise ValueError("pairs is empty; expected at least one (guide layer, target layer)")
        self.target = target
        self._guide = (guide,)  # in a tuple, so that it is no submodule
        self.metric = metric
        self.weight = float(weight)
        self.reduction = reduction
        self.until_step = until_step
        self.per_token = per_token
        self.batch_axis = batch_axis
        self.step = 0
        self.pairs: tuple[tuple[str, str], ...] | None = None if pairs == "auto" else _checked(pairs, target, guide)
        self._tap: LayerTap | None = None

    @property
    def guide(self) -> nn.Module:
        """The frozen network."""
        return self._guide[0]

    @property
    def active(self) -> bool:
        """Whether the alignment still counts: its weight is not zero and `until_step` is not reached."""
        return self.weight > 0 and (self.until_step is None or self.step < self.until_step)

    def forward(self, *inputs: Any, guide_inputs: Any = None, **named: Any) -> tuple[Any, Tensor]:
        """Run the target, and the guide while it is active.

        Args:
            inputs: what the target is called with.
            guide_inputs: what the guide is called with where that is something else: a tensor, or a tuple or mapping
                of arguments.
            named: further arguments of the target.

        Returns:
            The target's output, and the weighted alignment loss, a scalar: exactly 0 where guidance is not active.
        """
        with self:
            output = self.target(*inputs, **named)
            loss, _ = self.loss(guide_inputs)
        return output, loss

    def __enter__(self) -> Guidance:
        if self._tap is not None:
            raise ValueError("this guidance is open already; close it before it is opened again")
        if self.active:
            self._tap = self._tap_of(self.target, 1).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def loss(self, guide_inputs: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The alignment loss of the target's latest pass; in training mode this counts as one step.

        Args:
            guide_inputs: what the guide is called with: a tensor, or a tuple or mapping of arguments; by default what
                the target was called with.

        Returns:
            The weighted loss, a scalar, and each pair's similarity, named "guide layer > target layer", without
            gradient. Where guidance is not active: 0, and nothing.

        Raises:
            ValueError: the target has not run since guidance was opened, or a layer of a pair did not run or has no
                batch axis.
        """
        active = self.active
        if self.training:
            self.step += 1
        if not active:
            if self._tap is not None:
                self._tap.clear()
            device = next((each.device for each in self.target.parameters()), None)
            return torch.zeros((), device=device), {}
        if self._tap is None or not self._tap.values:
            raise ValueError("the target has not run since guidance was opened: call it inside `with guidance:` first")
        values = self._compare(self._tap, guide_inputs)
        self._tap.clear()
        distances = torch.stack([(1 - each).sum() for each in values.values()])
        total = distances.sum() if self.reduction == "sum" else distances.mean()
        return self.weight * total, {name: value.detach().mean() for name, value in values.items()}

    @torch.no_grad()
    def similarities(self, *inputs: Any, guide_inputs: Any = None, **named: Any) -> dict[str, float]:
        """Measure the similarity of every pair of layers, in the target's present mode; no step is counted.

        Args:
            inputs: what the target is called with.
            guide_inputs: what the guide is called with where that is something else.
            named: further arguments of the target.

        Returns:
            Similarities, named "guide layer > target layer" (means over tokens where `per_token`).
        """
        with self._tap_of(self.target, 1) as tap:
            self.target(*inputs, **named)
        return {name: float(value.mean()) for name, value in self._compare(tap, guide_inputs).items()}

    def _tap_of(self, model: nn.Module, side: int) -> LayerTap:
        if self.pairs is None:
            return LayerTap(model, batch_axis=self.batch_axis)
        layers = [pair[side] for pair in self.pairs]
        return LayerTap(model, layers, batch_axis=self.batch_axis, drop_last=False)

    def _compare(self, tap: LayerTap, guide_inputs: Any) -> dict[str, Tensor]:
        """Similarities of all pairs: scalars, or [tokens]."""
        target, guide = tap.activations(), self._guide_activations(tap, guide_inputs)
        if self.pairs is None:
            for name, found in (("target", target), ("guide", guide)):
                if not found:
                    raise ValueError(f"{name} ran no two parametric layers with a batch axis; give pairs of layers")
            layers, of_target = list(guide), list(target)
            self.pairs = tuple((layers[i], of_target[j]) for i, j in depth_map(len(layers), len(of_target)))
            if self._tap is not None:  # from now on only the layers of pairs are kept
                self._tap.close()
                self._tap = self._tap_of(self.target, 1).__enter__()
        result = {}
        for first, second in self.pairs:
            for name, layer, found in (("guide", first, guide), ("target", second, target)):
                if layer not in found:
                    raise ValueError(f"layer {layer!r} of the {name} did not run, or has no axis of the batch's size")
            result[f"{first} > {second}"] = self._similarity(target[second], guide[first])
        return result

    def _guide_activations(self, tap: LayerTap, guide_inputs: Any) -> dict[str, Tensor]:
        given, named = tap.arguments
        if isinstance(guide_inputs, Mapping):
            given, named = (), dict(guide_inputs)
        elif guide_inputs is not None:
            given, named = guide_inputs if type(guide_inputs) is tuple else (guide_inputs,), {}
        self.guide.eval()
        with torch.no_grad(), self._tap_of(self.guide, 0) as tap:
            self.guide(*given, **named)
        return tap.activations()

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """In float32 at least, outside of autocast: products of small activations underflow in half precision."""
        dtype = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(dtype), b.detach().to(a.device, dtype)
        if a.shape[0] != b.shape[0]:
            raise ValueError(f"guide and target must read as many inputs, got {b.shape[0]} and {a.shape[0]}")
        with torch.autocast(a.device.type, enabled=False):
            if not (self.per_token and a.ndim == 3 and b.ndim == 3):
                return self.metric(a, b)
            if a.shape[1] != b.shape[1]:
                raise ValueError(f"per_token needs as many tokens in both layers, got {b.shape[1]} and {a.shape[1]}")
            result: Tensor = torch.vmap(self.metric, in_dims=1)(a, b)
            return result

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps made, for the state dict."""
        return {"step": self.step}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take the number of steps from a state dict."""
        self.step = int(state["step"])

    def extra_repr(self) -> str:
        """Settings for print."""
        return f"weight={self.weight}, reduction={self.reduction!r}, until_step={self.until_step}"


def _checked(pairs: Sequence[tuple[str, str]], target: nn.Module, guide: nn.Module) -> tuple[tuple[str, str], ...]:
    """The pairs, whose names exist."""
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"pairs holds {pair!r}; expected (guide layer, target layer)")
        for name, layer, model in (("guide", pair[0], guide), ("target", pair[1], target)):
            if layer not in dict(model.named_modules()):
                raise ValueError(f"pairs names {layer!r}, which is no layer of the {name}")
    return tuple((first, second) for first, second in pairs)
