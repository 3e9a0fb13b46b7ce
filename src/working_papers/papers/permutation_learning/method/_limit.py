"""The law of very wide trained networks: Gaussian, with mean and covariance from two kernels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from working_papers.nn.arc_cosine import relu_kernel, relu_step_kernel

Kernel = Literal["ntk", "conjugate"]

DRAWS_AT_ONCE = 2**22  # numbers of a batch of draws, which bounds the memory
NEGLIGIBLE = 1e-12  # a variance below this share of the untrained network's is a rounding error
SLACK = 1e-9  # rounding errors of a mean that is known exactly


def check_kernel(kernel: str) -> None:
    """Raise ValueError for a kernel that does not exist."""
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel is {kernel!r}; expected 'ntk' or 'conjugate'")


def limit_kernels(x: Tensor, z: Tensor, kernel: Kernel = "ntk") -> tuple[Tensor, Tensor]:
    """What an infinitely wide two-layer ReLU network without biases does at its start, and how it learns.

    For f(x) = V relu(W x / √d) / √m with standard normal weights: the covariance of one output at the start, and the
    tangent kernel, the inner product of its gradients. kernel="conjugate" counts the gradients of V alone.

    Args:
        x: (..., b, d).
        z: (..., c, d), of the same dtype; float64, because the angle of close inputs loses half the digits.
        kernel: "ntk", both layers learn; "conjugate", only the last one, which then is the covariance itself.

    Returns:
        covariance and tangent kernel, each (..., b, c); zero for an input of zeros.

    Raises:
        ValueError: the kernel is unknown, or the dimensions differ.

    Source: the paper's preliminaries; Jacot et al. 2018, with the arc-cosine kernels of Cho and Saul 2009.
    """
    check_kernel(kernel)
    d = x.shape[-1]
    if z.shape[-1] != d:
        raise ValueError(f"x and z have dimensions {d} and {z.shape[-1]}; expected the same")
    x_length, z_length = (torch.linalg.vector_norm(each, dim=-1) for each in (x, z))
    lengths = x_length[..., :, None] * z_length[..., None, :]
    inner = x @ z.mT
    cosine = (inner / torch.where(lengths > 0, lengths, torch.ones_like(lengths))).clamp(-1, 1)
    covariance = lengths * relu_kernel(cosine) / d
    if kernel == "conjugate":
        return covariance, covariance
    return covariance, covariance + inner * relu_step_kernel(cosine) / d


class InfiniteWidthEnsemble:
    """The law of infinitely wide two-layer ReLU networks, trained by gradient descent until they fit a few examples.

    One network's output is its start, corrected by kernel regression: f(x) = f₀(x) + A(x) (Y - f₀(X)) with
    A(x) = Θ(x, X) Θ(X, X)⁻¹. Over random starts it is Gaussian, and outputs are independent of one another. Any
    training set will do, not only permutations; all is computed in float64.

    Args:
        x: training inputs X, (e, d): nonzero and no two of the same direction.
        y: targets Y, (e, o).
        kernel: "ntk" for the NTK parametrisation, "conjugate" for the standard one; see `limit_kernels`.

    Raises:
        ValueError: shapes that do not fit, an unknown kernel, or inputs that no such network can tell apart.

    Source: Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models", the section on Gaussian
    processes from gradient descent training, in the limit of long training; the paper builds on it.

    Example:
        >>> k = 6
        >>> law = InfiniteWidthEnsemble(torch.eye(k), torch.eye(k).roll(1, dims=1))
        >>> law.mean(unit_norm(binary_inputs(k))) > 1e-9  # the permuted bits, all 63 of them
    """

    def __init__(self, x: Tensor, y: Tensor, *, kernel: Kernel = "ntk") -> None:
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
            raise ValueError(
                f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (examples, d) and (examples, o)"
            )
        self.kernel: Kernel = kernel
        self.x, self.y = x.detach().double(), y.detach().double()
        self._covariance, tangent = limit_kernels(self.x, self.x, kernel)
        self._factor, info = torch.linalg.cholesky_ex(tangent)
        diagonal = self._factor.diagonal().square()
        if int(info) or bool((diagonal < NEGLIGIBLE * tangent.diagonal()).any()):
            raise ValueError("x holds an input of zeros or two of the same direction; expected distinct directions")

    def weights(self, x: Tensor) -> Tensor:
        """A(x): how much each training target counts at each input.

        Args:
            x: (b, d).

        Returns:
            (b, e), float64.
        """
        _, tangent = self._kernels(x)
        return torch.cholesky_solve(tangent.mT, self._factor).mT

    def mean(self, x: Tensor) -> Tensor:
        """Mean output at inputs (b, d): (b, o), float64."""
        return self.weights(x) @ self.y

    def covariance(self, x: Tensor) -> Tensor:
        """Covariance of one output between inputs (b, d), the same for all outputs: (b, b), float64."""
        cross, tangent = self._kernels(x)
        a = torch.cholesky_solve(tangent.mT, self._factor).mT
        before, _ = limit_kernels(x.detach().double(), x.detach().double(), self.kernel)
        mixed = a @ cross.mT
        covariance = before - mixed - mixed.mT + a @ self._covariance @ a.mT
        return (covariance + covariance.mT) / 2

    def variance(self, x: Tensor) -> Tensor:
        """Variance of one output at inputs (b, d), the same for all outputs: (b,), float64; 0 at training inputs."""
        cross, tangent = self._kernels(x)
        a = torch.cholesky_solve(tangent.mT, self._factor).mT
        variance = self._start(x) - 2 * (a * cross).sum(dim=-1) + ((a @ self._covariance) * a).sum(dim=-1)
        return torch.where(variance > NEGLIGIBLE * self._start(x), variance, torch.zeros_like(variance))

    def sample(self, x: Tensor, networks: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Outputs of independent networks of infinite width, without training any.

        Args:
            x: (b, d).
            networks: how many, N.
            generator: source of randomness, on the device of the inputs.

        Returns:
            (N, b, o), float64.

        Raises:
            ValueError: N is below 1.
        """
        check_count("networks", networks)
        return self.mean(x) + self._noise(self._root(x), networks, generator)

    def sizes_needed(
        self,
        x: Tensor,
        bits: Tensor,
        draws: int,
        *,
        threshold: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact draws of the ensemble's size from which its rounded average is right on all the given inputs.

        The average of N networks has the law of mean + noise / √N with the noise of one network. So for a draw of the
        noise, the N from which every sign is right has a closed form, and the share of draws at or below N is the
        probability that an ensemble of N networks is right everywhere, however its errors are correlated.

        Args:
            x: inputs, (b, d).
            bits: the right answers, boolean (b, o).
            draws: number of draws.
            threshold: of the rounding.
            generator: source of randomness, on the device of the inputs.

        Returns:
            (draws,), float64: whole numbers of 1 or more; infinite where the mean itself is on the wrong side.

        Raises:
            ValueError: the bits do not fit the inputs, or there is no draw.

        Source: ours; the paper bounds the same probability by a sum over inputs and outputs.
        """
        check_count("draws", draws)
        if bits.shape != (len(x), self.y.shape[1]):
            raise ValueError(f"bits has shape {tuple(bits.shape)}; expected {(len(x), self.y.shape[1])}")
        sign = torch.where(bits, 1.0, -1.0).to(self.y)
        margin = sign * (self.mean(x) - threshold)
        # An output without variance is right or wrong for good; at the threshold itself it is a zero.
        fixed = (self.variance(x) == 0)[:, None].expand_as(margin)
        right = torch.where(fixed, torch.where(bits, margin > SLACK, margin > -SLACK), margin > 0)
        if not bool(right.all()):
            return torch.full((draws,), torch.inf, dtype=margin.dtype, device=margin.device)
        root, found = self._root(x), []
        at_once = max(1, DRAWS_AT_ONCE // max(1, margin.numel()))
        for start in range(0, draws, at_once):
            noise = self._noise(root, min(at_once, draws - start), generator)
            against = torch.where(fixed, 0.0, (-sign * noise).clamp_min(0) / margin)
            found.append(against.flatten(1).amax(dim=1).square().ceil().clamp_min(1))
        return torch.cat(found)

    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.x.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (inputs, {self.x.shape[1]})")
        return limit_kernels(x.detach().double(), self.x, self.kernel)

    def _start(self, x: Tensor) -> Tensor:
        """Variance before training: |x|² / 2d."""
        return x.detach().double().square().sum(dim=-1) / (2 * x.shape[-1])

    def _root(self, x: Tensor) -> Tensor:
        """A square root of the covariance (b, b)."""
        covariance = self.covariance(x)
        root: Tensor
        root, info = torch.linalg.cholesky_ex(covariance)
        if int(info):  # training inputs among the inputs make it singular
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors * values.clamp_min(0).sqrt()
        return root

    def _noise(self, root: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        shape = (draws, root.shape[1], self.y.shape[1])
        return root @ torch.randn(shape, generator=generator, dtype=root.dtype, device=root.device)


def check_count(name: str, count: int) -> None:
    """Raise ValueError for a number below 1."""
    if count < 1:
        raise ValueError(f"{name} is {count}; expected 1 or more")
