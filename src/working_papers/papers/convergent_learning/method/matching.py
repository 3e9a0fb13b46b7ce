"""One to one: each unit's partner in the other network, and networks whose units are put in that order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Match:
    """Partners of the first network's units.

    Attributes:
        index: of the partner among the second network's units, int64 (n,); -1 for a unit that is left over.
        value: similarity to the partner (n,); NaN for a unit that is left over.
    """

    index: Tensor
    value: Tensor

    @property
    def matched(self) -> Tensor:
        """Which units have a partner, boolean (n,)."""
        return self.index >= 0


def semi_match(similarity: Tensor, *, exclude_self: bool = False) -> Match:
    """The most similar unit for each unit; several units may have the same partner.

    Args:
        similarity: (n, m), correlations or mutual information. Signed correlations are what the paper matches by: units
            after a ReLU that correlate negatively are not interchangeable.
        exclude_self: leave out the diagonal, for similarities within one network: the best other unit.

    Raises:
        ValueError: it is no matrix of numbers, or nothing is left to choose from.

    Source: section 3 of the paper.
    """
    c = _checked(similarity)
    if exclude_self:
        if c.shape[0] != c.shape[1]:
            raise ValueError(f"similarity has shape {tuple(c.shape)}; exclude_self=True expects a square matrix")
        c = c.masked_fill(torch.eye(len(c), dtype=torch.bool, device=c.device), -torch.inf)
    if c.shape[1] - int(exclude_self) < 1:
        raise ValueError(f"similarity has shape {tuple(c.shape)}, which leaves no partner to choose")
    value, index = c.max(dim=1)
    return Match(index, value)


def bipartite_match(similarity: Tensor) -> Match:
    """The one-to-one assignment with the largest sum of similarities.

    No value exceeds that of `semi_match` for the same unit. A unit whose value falls far below it competes with others
    for its favourite. With more units in the first network than in the second, some are left over.

    Args:
        similarity: (n, m), correlations or mutual information.

    Raises:
        ValueError: it is no matrix of finite numbers.

    Source: section 3 of the paper; scipy's exact assignment, about n³ operations.
    """
    from scipy.optimize import linear_sum_assignment

    c = _checked(similarity)
    rows, columns = linear_sum_assignment(c.detach().double().cpu().numpy(), maximize=True)
    index = torch.full((len(c),), -1, dtype=torch.int64, device=c.device)
    index[torch.as_tensor(rows, device=c.device)] = torch.as_tensor(columns, dtype=torch.int64, device=c.device)
    value = torch.full((len(c),), torch.nan, dtype=c.dtype, device=c.device)
    has = index >= 0
    value[has] = c[has, index[has]]
    return Match(index, value)


def _checked(similarity: Tensor) -> Tensor:
    if similarity.ndim != 2 or not similarity.is_floating_point():
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and dtype {similarity.dtype}; "
            "expected (units, units), floating point"
        )
    if not torch.isfinite(similarity).all():
        raise ValueError("similarity holds a value that is not finite")
    return similarity


# Layers that treat every unit alike and have no parameters of their own.
UNITWISE = (
    nn.Identity,
    nn.Flatten,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Upsample,
)
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def permute_units(model: nn.Sequential, permutations: Mapping[str, Tensor]) -> None:
    """Reorder the units of layers in place; what the network computes stays the same.

    With `bipartite_match(stats.cxy).index` of two networks x and y, unit i of y becomes the partner of unit i of x, so
    that weights of the two can be averaged or transplanted unit by unit.

    Args:
        model: a chain of linear layers and ungrouped convolutions with whatever acts on units one by one between them:
            activations, pooling, dropout, flattening, batch, instance and layer norms, group norm of one group, PReLU.
            Chains may be nested.
        permutations: by name of a layer, as in `model.named_modules()`, the old number of the unit that comes to each
            place (n,). The last layer, whose units are the output, cannot be permuted.

    Raises:
        ValueError: a name is no such layer, a permutation is none, or a layer between cannot be permuted. Nothing has
            been changed then.
    """
    chain = list(_chain(model))
    places = {name: place for place, (name, module) in enumerate(chain) if isinstance(module, WEIGHTED)}
    changes: list[tuple[Tensor, int, Tensor]] = []
    for name, permutation in permutations.items():
        if name not in places:
            raise ValueError(f"permutations names {name!r}; the layers that can be permuted are {', '.join(places)}")
        changes += _changes(chain, places[name], permutation)
    for tensor, axis, order in changes:
        tensor.copy_(tensor.index_select(axis, order.to(tensor.device)))


def _chain(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            yield from _chain(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _changes(chain: list[tuple[str, nn.Module]], place: int, permutation: Tensor) -> list[tuple[Tensor, int, Tensor]]:
    """Every tensor that must be reordered, along which axis, and how."""
    name, layer = chain[place]
    assert isinstance(layer, WEIGHTED)
    _refuse_groups(name, layer)
    n = len(layer.weight)
    order = permutation.detach().long().cpu()
    if permutation.shape != (n,) or not torch.equal(order.sort().values, torch.arange(n)):
        raise ValueError(f"permutations[{name!r}] is no permutation of 0 to {n - 1}, the units of that layer")
    found: list[tuple[Tensor, int, Tensor]] = [(layer.weight, 0, order)]
    if layer.bias is not None:
        found.append((layer.bias, 0, order))
    for next_name, module in chain[place + 1 :]:
        if isinstance(module, WEIGHTED):
            _refuse_groups(next_name, module)
            fan_in = module.weight.shape[1]
            if fan_in % n:
                raise ValueError(f"layer {next_name!r} has {fan_in} inputs; expected a multiple of {n} after {name!r}")
            each = fan_in // n  # positions of a unit, after flattening
            columns = (order[:, None] * each + torch.arange(each)).flatten()
            return [*found, (module.weight, 1, columns)]
        found += [(tensor, 0, order) for tensor in _per_unit(next_name, module, n)]
    raise ValueError(f"permutations names {name!r}, the last layer with weights: its units are the network's output")


def _refuse_groups(name: str, layer: nn.Module) -> None:
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} is a grouped convolution, whose units cannot be permuted freely")


def _per_unit(name: str, module: nn.Module, n: int) -> list[Tensor]:
    """Parameters and buffers with one entry a unit.

    Raises:
        ValueError: the module is not known to treat units alike.
    """
    if isinstance(module, UNITWISE):
        return []
    alike = isinstance(module, nn.PReLU) or (
        isinstance(module, NORMS)
        and getattr(module, "num_groups", 1) == 1
        and tuple(getattr(module, "normalized_shape", (n,))) == (n,)
    )
    if not alike:
        raise ValueError(f"layer {name!r} ({type(module).__name__}) is not known to treat units alike")
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in tensors if tensor.shape == (n,) and n > 1]
