"""The distribution of XOR clusters, and a way to draw it at any dimension. Letters as in the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples with both their labels: the one given to the learner and the one of the cluster.

    Args:
        x: inputs [n, p].
        y: labels as given, some flipped: -1 or +1 in the inputs' dtype [n].
        clean: labels of the clusters: -1 or +1 in the inputs' dtype [n].
        cluster: 0 for +mean 1, 1 for -mean 1, 2 for +mean 2, 3 for -mean 2 [n].
        flipped: where the two labels differ, boolean [n].
    """

    x: Tensor
    y: Tensor
    clean: Tensor
    cluster: Tensor
    flipped: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class XORClusters:
    """The distribution of XOR clusters with label noise.

    An input is one of +mean 1, -mean 1 (clean label +1), +mean 2, -mean 2 (clean label -1), drawn evenly, plus
    standard normal noise; its label is flipped with probability `noise_rate`. Since x and -x share their clean
    label, every linear classifier is right exactly half the time.

    Args:
        means: two orthogonal vectors of equal norm [2, p]; samples follow their dtype and device.
        noise_rate: probability of a flipped label, at least 0 and below 1/2.

    Raises:
        ValueError: the means are no such pair, or the noise rate is out of range.

    Source: the paper's problem setting.
    """

    means: Tensor
    noise_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or len(self.means) != 2 or not self.means.is_floating_point():
            shape, dtype = tuple(self.means.shape), self.means.dtype
            raise ValueError(f"means is {dtype} of shape {shape}; expected floating point of shape (2, p)")
        products = (self.means.double() @ self.means.double().T).cpu()
        largest = products.abs().max()
        if not 0 < largest < math.inf or (products / largest - torch.eye(2)).abs().max() > 1e-4:
            found = products.tolist()
            raise ValueError(f"means has inner products {found}; expected orthogonal vectors of equal norm")
        if not 0 <= self.noise_rate < 0.5:
            raise ValueError(f"noise_rate is {self.noise_rate}; expected at least 0 and below 0.5")

    @classmethod
    def random(
        cls,
        dimension: int,
        *,
        signal: float,
        noise_rate: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> XORClusters:
        """Means of norm `signal` in two random directions.

        Args:
            dimension: input dimension p, at least 2.
            signal: norm of each mean, in standard deviations of the noise along one direction.
            noise_rate: probability of a flipped label.
            generator: source of randomness, on `device`.
            device: where the means, and so the samples, live.
            dtype: floating-point type of the means, and so of the samples.

        Raises:
            ValueError: the dimension is below 2 or the signal is not positive.
        """
        if dimension < 2:
            raise ValueError(f"dimension is {dimension}; expected at least 2, one for each mean")
        if not signal > 0:
            raise ValueError(f"signal is {signal}; expected a positive norm")
        normal = torch.randn(dimension, 2, generator=generator, device=device, dtype=dtype)
        return cls(signal * torch.linalg.qr(normal).Q.T.contiguous(), noise_rate)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Batch:
        """Draw independent samples.

        Args:
            count: number of samples n, at least 1.
            generator: source of randomness, on the means' device.

        Raises:
            ValueError: the count is below 1.
        """
        if count < 1:
            raise ValueError(f"count is {count}; expected at least 1 sample")
        means, device = self.means, self.means.device
        cluster = torch.randint(4, (count,), generator=generator, device=device)
        flipped = torch.rand(count, generator=generator, device=device) < self.noise_rate
        x = torch.randn(count, means.shape[1], generator=generator, device=device, dtype=means.dtype)
        x += torch.stack([means[0], -means[0], means[1], -means[1]])[cluster]
        clean = torch.where(cluster < 2, 1.0, -1.0).to(means.dtype)
        return Batch(x, torch.where(flipped, -clean, clean), clean, cluster, flipped)
