"""The two-layer network, its gradient step, and training in the span of the inputs. Letters as in the package."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.benign_overfitting.method._clusters import Batch, XORClusters


class TwoLayerReLU(nn.Module):
    """f(x) = sum_j a_j relu(<w_j, x>), without biases; the a_j are random signs over sqrt(m) and stay fixed.

    Args:
        dimension: input dimension p.
        width: number of neurons m.
        init_scale: standard deviation ω of the first layer's entries; the theorems need it tiny.
        train_second_layer: whether the a_j are trained too, which the paper does not do.
        generator: source of randomness, on `device`.
        device: where the weights live.
        dtype: floating-point type of the weights.

    Shapes:
        input [..., p], output [...]; `first_layer` [m, p], `second_layer` [m].

    Raises:
        ValueError: a size is below 1 or the initial scale is negative.

    Source: the paper's problem setting.
    """

    first_layer: nn.Parameter
    second_layer: Tensor

    def __init__(
        self,
        dimension: int,
        width: int,
        *,
        init_scale: float,
        train_second_layer: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dimension < 1 or width < 1:
            raise ValueError(f"dimension and width are {dimension} and {width}; expected at least 1 each")
        if not init_scale >= 0:
            raise ValueError(f"init_scale is {init_scale}; expected a standard deviation, at least 0")
        self.init_scale = init_scale
        self.first_layer = nn.Parameter(torch.empty(width, dimension, device=device, dtype=dtype))
        second_layer = torch.empty(width, device=device, dtype=dtype)
        if train_second_layer:
            self.second_layer = nn.Parameter(second_layer)
        else:
            self.register_buffer("second_layer", second_layer)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both layers anew."""
        self.first_layer.normal_(generator=generator).mul_(self.init_scale)
        width, device = len(self.second_layer), self.second_layer.device
        signs = 2 * torch.randint(2, (width,), generator=generator, device=device) - 1
        self.second_layer.copy_(signs / math.sqrt(width))

    def extra_repr(self) -> str:
        width, dimension = self.first_layer.shape
        return f"dimension={dimension}, width={width}, init_scale={self.init_scale}"

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [..., p] to real scores [...]; their signs are the predicted labels."""
        return F.relu(F.linear(x, self.first_layer)) @ self.second_layer


# Training, in three coordinate systems: the weights, the training inputs, the span of all randomness.


def step_coefficients(preactivation: Tensor, second_layer: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    """One step of gradient descent on the mean logistic loss, in multiples of the training inputs.

    Neuron j gains (α a_j / n) sum_i g_i y_i [<w_j, x_i> > 0] x_i, where g_i = 1 / (1 + exp(y_i f(x_i))).

    Args:
        preactivation: <w_j, x_i> at the training inputs [n, m].
        second_layer: output weights a [m].
        y: labels, -1 or +1 [n].
        learning_rate: step size α.

    Returns:
        Coefficients [m, n]; their product with the inputs [n, p] is the change of the first layer.

    Source: the paper's problem setting; the derivative of relu at 0 is 0, as in torch.
    """
    scores = preactivation.relu() @ second_layer
    pull = torch.sigmoid(-y * scores) * y * (learning_rate / len(y))
    return (pull[:, None] * (preactivation > 0) * second_layer).T


@dataclass(frozen=True)
class GramSpace:
    """Gradient descent on the first layer, exactly, without forming it.

    Each step adds multiples of the training inputs to the neurons, so w_j = w_j(0) + sum_i c_ji x_i always, and
    the coefficients c with a few inner products say all. A step costs n * n * m operations, not n * m * p.
    The observed points are the training inputs, which come first, then any others: test inputs, cluster means.

    Args:
        kernel: inner products of the observed points with the training inputs [q, n].
        initial: pre-activations of the untrained network at the observed points [q, m].
        second_layer: fixed output weights [m].
        initial_norms: squared norms of the untrained neurons [m].

    Raises:
        ValueError: the shapes do not fit together.
    """

    kernel: Tensor
    initial: Tensor
    second_layer: Tensor
    initial_norms: Tensor

    def __post_init__(self) -> None:
        q, m = self.initial.shape
        shapes = [tuple(part.shape) for part in (self.kernel, self.second_layer, self.initial_norms)]
        if shapes != [(q, self.samples), (m,), (m,)] or self.samples > q:
            raise ValueError(
                f"kernel, second_layer and initial_norms have shapes {shapes} beside initial of shape {(q, m)}; "
                f"expected [({q}, n), ({m},), ({m},)] with n at most {q}"
            )

    @classmethod
    @torch.no_grad()
    def of(cls, network: TwoLayerReLU, x: Tensor, points: Iterable[Tensor] = ()) -> GramSpace:
        """Take the inner products, once.

        Args:
            network: the untrained network; it is not changed.
            x: training inputs [n, p].
            points: tensors [., p] of further points to observe; a generator may make them one at a time.

        Raises:
            ValueError: the network trains its second layer, and so leaves this space.
        """
        if isinstance(network.second_layer, nn.Parameter):
            raise ValueError("network has train_second_layer=True; expected a fixed second layer")
        weights = network.first_layer
        rows = [(some @ x.T, some @ weights.T) for some in chain([x], points)]
        kernel, initial = (torch.cat(column) for column in zip(*rows, strict=True))
        return cls(kernel, initial, network.second_layer.clone(), weights.square().sum(dim=1))

    @property
    def samples(self) -> int:
        """Number of training inputs n."""
        return self.kernel.shape[-1]

    def rescaled(self, factor: float) -> GramSpace:
        """The same space for a network whose untrained first layer is `factor` times as large."""
        initial, norms = factor * self.initial, factor**2 * self.initial_norms
        return GramSpace(self.kernel, initial, self.second_layer, norms)

    def to(self, device: torch.device | str) -> GramSpace:
        """The same space on another device."""
        parts = (self.kernel, self.initial, self.second_layer, self.initial_norms)
        return GramSpace(*(part.to(device) for part in parts))

    def start(self) -> Tensor:
        """Coefficients of the untrained network: zeros [m, n]."""
        return self.kernel.new_zeros(len(self.second_layer), self.samples)

    def preactivation(self, coefficients: Tensor) -> Tensor:
        """<w_j, point> at all observed points [q, m], for coefficients [m, n]."""
        return torch.addmm(self.initial, self.kernel, coefficients.T)

    def step(self, coefficients: Tensor, y: Tensor, learning_rate: float) -> Tensor:
        """Coefficients [m, n] after one more step of gradient descent on the labels `y` [n]."""
        n = self.samples
        at_training = torch.addmm(self.initial[:n], self.kernel[:n], coefficients.T)
        return coefficients + step_coefficients(at_training, self.second_layer, y, learning_rate)

    def squared_norms(self, coefficients: Tensor) -> Tensor:
        """Squared norms of the neurons [m], for coefficients [m, n]."""
        n = self.samples
        cross = 2 * self.initial[:n].T + coefficients @ self.kernel[:n]
        return self.initial_norms + (cross * coefficients).sum(dim=1)


def isotropic_coordinates(
    rows: int,
    dimension: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Standard normal vectors of any dimension, written in an orthonormal basis of their own span.

    A normal matrix G [rows, dimension] is L Q with Q orthonormal and independent of the lower-triangular L,
    whose entries are independent: standard normal below the diagonal, on it chi with dimension, dimension - 1,
    ... degrees of freedom. Drawing L alone costs rows² numbers, however large the dimension.

    Args:
        rows: number of vectors.
        dimension: their dimension, at least `rows`.
        generator: source of randomness, on the CPU.
        dtype: floating-point type; inner products are of the order of the dimension, noise of its root.

    Returns:
        L [rows, rows] on the CPU: L @ L.T has the law of G @ G.T, and the inner products with the rows of a
        further, independent normal vector have the law of L @ (standard normal vector of length rows).

    Raises:
        ValueError: there are no rows, or more rows than dimensions.

    Source: Bartlett's decomposition of the Wishart distribution.
    """
    if not 1 <= rows <= dimension:
        raise ValueError(f"rows is {rows} with dimension {dimension}; expected 1 to {dimension}")
    below = torch.randn(rows, rows, generator=generator, dtype=dtype).tril(-1)
    # torch draws chi-squared numbers from its global generator only; NumPy's is seeded from ours.
    seed = int(torch.randint(2**62, (), generator=generator))
    freedom = np.float64(dimension) - np.arange(rows)
    diagonal = np.sqrt(np.random.default_rng(seed).chisquare(freedom))
    return below + torch.diag(torch.from_numpy(diagonal).to(dtype))


def draw_in_span(
    samples: int,
    width: int,
    *,
    dimension: int,
    signal: float,
    noise_rate: float,
    init_scale: float,
    generator: torch.Generator | None = None,
) -> tuple[XORClusters, Batch, TwoLayerReLU]:
    """A training problem with inputs of any dimension, in the few coordinates that training ever touches.

    Everything that happens depends on inner products alone, and the noise looks the same in all directions. So
    the basis may be chosen: first the two means, then the span of the noise in the training inputs and of the
    initial weights. What is left out is orthogonal to all weights, for ever, and fresh inputs never show it.
    The p-dimensional problem and this one, of dimension 2 + n + m, give every prediction the same law: no
    approximation, and dimensions such as the theorems ask for, 10^15 and more, fit into memory.

    Args:
        samples: number of training samples n.
        width: number of neurons m.
        dimension: input dimension p of the problem, at least 2 + n + m.
        signal: norm of each mean.
        noise_rate: probability of a flipped label.
        init_scale: standard deviation of the first layer's entries.
        generator: source of randomness, on the CPU.

    Returns:
        The distribution for fresh inputs, the training batch and the untrained network, all of dimension
        2 + n + m, on the CPU in float64. The norm of a fresh input alone is not that of the p-dimensional one.

    Raises:
        ValueError: an argument is out of range.
    """
    compact = 2 + samples + width
    if dimension < compact:
        raise ValueError(
            f"dimension is {dimension}; expected at least 2 + samples + width = {compact}; "
            "below that, sample the clusters directly"
        )
    clusters = XORClusters(signal * torch.eye(2, compact, dtype=torch.float64), noise_rate)
    train = clusters.sample(samples, generator=generator)
    network = TwoLayerReLU(compact, width, init_scale=init_scale, generator=generator, dtype=torch.float64)
    noise = isotropic_coordinates(samples + width, dimension - 2, generator=generator)
    train.x[:, 2:] = noise[:samples]
    with torch.no_grad():
        network.first_layer[:, 2:] = init_scale * noise[samples:]
    return clusters, train, network
