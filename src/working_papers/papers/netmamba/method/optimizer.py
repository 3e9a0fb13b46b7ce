"""Parameter groups and learning rates of the paper's two trainings."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from working_papers.papers.netmamba.method.model import Layers, NetMambaClassifier, NetMambaEncoder

UNDECAYED = ("A_log", "D", "bias", "position", "class_token", "mask_token")
"""Names of parameters without weight decay, besides those of normalisations."""


def parameter_groups(
    model: nn.Module, rate: float, weight_decay: float = 0.05, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameters for AdamW: no weight decay of A, D, biases, normalisations, positions and tokens; rates by layer.

    With a layer decay the learning rate shrinks by it from each layer to the one before: the head and the final
    normalisation have the full rate, layer k of n (from 1) has layer_decay^(n + 1 - k) of it, embedding, positions and
    class token layer_decay^(n + 1). The official pre-training spares vectors and biases alone, so that its weight decay
    reaches A and the positions.

    Args:
        model: to train.
        rate: the highest learning rate.
        weight_decay: of all other parameters.
        layer_decay: between two layers; None: one rate for all. Only for a `NetMambaClassifier`.

    Returns:
        Groups with their learning rate as "lr".

    Raises:
        ValueError: a layer decay outside (0, 1], or one for another model.
    """
    if layer_decay is not None:
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay is {layer_decay}; expected above 0 and at most 1")
        if not isinstance(model, NetMambaClassifier):
            raise ValueError(f"layer_decay is {layer_decay} for a {type(model).__name__}; expected NetMambaClassifier")
    norms = {id(p) for m in model.modules() if isinstance(m, nn.RMSNorm | nn.LayerNorm) for p in m.parameters()}
    depths = {} if layer_decay is None else _depths(model.encoder)  # type: ignore[arg-type]
    top = max(depths.values(), default=0) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = id(parameter) not in norms and name.rsplit(".", 1)[-1] not in UNDECAYED
        groups.setdefault((depths.get(id(parameter), top), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr": rate * (1.0 if layer_decay is None else layer_decay ** (top - depth)),
        }
        for (depth, decays), parameters in groups.items()
    ]


def _depths(encoder: NetMambaEncoder) -> dict[int, int]:
    """Number of the layer of each parameter of an encoder by its identity; what is not there is the last layer's."""
    layers: Layers = encoder.layers
    found = {id(p): 0 for p in (*encoder.embed.parameters(), encoder.position, encoder.class_token)}
    for number, branch in enumerate(layers.branches, 1):
        found.update({id(p): number for p in branch.parameters()})
    return found


def warm_up_cosine(step: int, warm_up: int, steps: int, floor: float = 0.0) -> float:
    """The factor of the learning rate: a linear rise, then half a cosine down to the floor.

    Args:
        step: from 0.
        warm_up: steps of the rise.
        steps: of the training.
        floor: the factor at the end.

    Raises:
        ValueError: no steps, or a warm-up that is longer than the training.
    """
    if steps < 1 or not 0 <= warm_up <= steps:
        raise ValueError(f"warm_up and steps are {warm_up} and {steps}; expected 0 to steps, and at least 1")
    if step < warm_up:
        return step / warm_up
    share = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2
