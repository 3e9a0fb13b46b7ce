"""The model in which collapse can be proved: free features, linear layers, weight decay on everything.

Dimensions:
    N  samples          K  classes            M  linear layers (depth)
    d  features         ...  batch axes
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.neural_collapse.method.arguments import Decay, check_depth, layer_decays, positive

Loss = Literal["squared", "cross-entropy"]


def regularised_loss(
    features: Tensor,
    weights: Sequence[Tensor],
    labels: Tensor,
    weight_decay: Decay,
    feature_decay: float | Tensor,
    *,
    bias: Tensor | None = None,
    loss: Loss = "squared",
) -> Tensor:
    """The objective of free features and linear layers; batch axes are independent problems.

    Args:
        features: one sample a row [..., N, d].
        weights: W_1 ... W_M, each [..., out, in].
        labels: class of each sample, integers [..., N].
        weight_decay: λ, one for all layers, or one a layer [..., M].
        feature_decay: λ_H [...], on the sum (not the mean) of squares of all features.
        bias: of the last layer, without decay [..., K].
        loss: "squared" is |outputs - one-hot|² / (2N), "cross-entropy" the mean over samples.

    Returns:
        The objective [...].

    Raises:
        ValueError: a decay is negative, or the loss has another name.

    Source: the paper's training problem; cross-entropy as the mean over samples.
    """
    layer_decay = layer_decays(weight_decay, len(weights), features, zero=True)
    outputs = features
    for weight in weights:
        outputs = outputs @ weight.mT
    if bias is not None:
        outputs = outputs + bias[..., None, :]
    if loss == "squared":
        targets = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
        fit = (outputs - targets).square().sum(dim=(-2, -1)) / (2 * outputs.shape[-2])
    elif loss == "cross-entropy":
        chosen = outputs.gather(-1, labels.expand(outputs.shape[:-1])[..., None])[..., 0]
        fit = (outputs.logsumexp(dim=-1) - chosen).mean(dim=-1)
    else:
        raise ValueError(f"loss is {loss!r}; expected 'squared' or 'cross-entropy'")
    decay = positive("feature_decay", feature_decay, features, zero=True) * features.square().sum(dim=(-2, -1))
    for j, weight in enumerate(weights):
        decay = decay + layer_decay[..., j] * weight.square().sum(dim=(-2, -1))
    return fit + decay / 2


def balancedness_gaps(
    features: Tensor, weights: Sequence[Tensor], weight_decay: Decay, feature_decay: float | Tensor
) -> Tensor:
    """How far neighbouring layers are from λ_{j+1} W_{j+1}ᵀ W_{j+1} = λ_j W_j W_jᵀ, true where the gradient is zero.

    Args:
        features: one sample a row [..., N, d]; they count as the layer before W_1.
        weights: W_1 ... W_M, each [..., out, in].
        weight_decay: λ, one for all layers, or one a layer [..., M].
        feature_decay: λ_H [...].

    Returns:
        Frobenius norms of the differences, relative to the left side [..., M].

    Source: the gradients by W_j and W_{j+1} are zero; multiply one from the left, the other from the right.
    """
    layer_decay = layer_decays(weight_decay, len(weights), features)
    before = positive("feature_decay", feature_decay, features)[..., None, None] * (features.mT @ features)
    gaps = []
    for j, weight in enumerate(weights):
        rate = layer_decay[..., j, None, None]
        after = rate * (weight.mT @ weight)
        gaps.append(
            torch.linalg.matrix_norm(after - before)
            / torch.linalg.matrix_norm(after).clamp(min=torch.finfo(after.dtype).tiny)
        )
        before = rate * (weight @ weight.mT)
    return torch.stack(gaps, dim=-1)


class LinearHead(nn.Sequential):
    """A stack of linear layers W_M ... W_1 as a classifier's head; only the last may have a bias.

    Args:
        dimension: of the features, d.
        classes: number of outputs, K.
        depth: number of layers M.
        width: of the hidden layers; by default `dimension`.
        bias: whether the last layer has one.

    Shapes:
        input [..., d], output [..., K].

    Raises:
        ValueError: the depth is below 1.
    """

    def __init__(
        self, dimension: int, classes: int, depth: int = 1, *, width: int | None = None, bias: bool = False
    ) -> None:
        check_depth(depth)
        sizes = [dimension, *[width or dimension] * (depth - 1), classes]
        layers = [nn.Linear(a, b, bias=bias and j == depth - 1) for j, (a, b) in enumerate(pairwise(sizes))]
        super().__init__(*layers)

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, from the features on."""
        return [cast(nn.Linear, layer) for layer in self]

    def product(self, first: int = 0) -> Tensor:
        """W_M ... W_{first + 1}, what the head does to the output of its `first` first layers [K, in]."""
        return compose(self.layers[first:])[0]


class UnconstrainedFeatures(nn.Module):
    """Free features, one row a sample, followed by a head: the model in which collapse can be proved.

    Args:
        samples: number of samples N.
        head: the linear layers after the features; its first input size is d.
        scale: standard deviation of the features' start; the official code's 0.1 by default.
        generator: source of the features' start, on the head's device.

    Raises:
        ValueError: there are no samples.

    Source: the paper's unconstrained-features model.
    """

    def __init__(
        self, samples: int, head: LinearHead, *, scale: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples is {samples}; expected at least 1")
        like = head.layers[0].weight
        start = torch.randn(samples, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
        self.features = nn.Parameter(scale * start)
        self.head = head

    def forward(self) -> Tensor:
        """Outputs for all samples [N, K]."""
        outputs: Tensor = self.head(self.features)
        return outputs

    def objective(
        self, labels: Tensor, weight_decay: Decay, feature_decay: float | Tensor, *, loss: Loss = "squared"
    ) -> Tensor:
        """`regularised_loss` of this model for labels [N]."""
        layers = self.head.layers
        weights = [layer.weight for layer in layers]
        return regularised_loss(
            self.features, weights, labels, weight_decay, feature_decay, bias=layers[-1].bias, loss=loss
        )


def compose(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of several linear layers in a row as one."""
    weight: Tensor = layers[0].weight
    bias: Tensor | None = layers[0].bias
    for layer in layers[1:]:
        weight = layer.weight @ weight
        carried = None if bias is None else layer.weight @ bias
        bias = layer.bias if carried is None else carried if layer.bias is None else carried + layer.bias
    return weight, bias
