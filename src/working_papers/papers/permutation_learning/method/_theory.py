"""Permutations in closed form: means, variance, probability of success and number of networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from working_papers.nn.arc_cosine import relu_kernel, relu_step_kernel
from working_papers.papers.permutation_learning.method._limit import Kernel, check_kernel


class PermutationTheory:
    """What infinitely wide networks that were trained on the k one-hot vectors do on inputs with n = 1 ... k ones.

    By symmetry all depends on n alone, and not on the permutation. At n = 1, the training inputs, outputs are exact.

    Args:
        k: number of bits, at least 2.
        kernel: "ntk" (the paper) or "conjugate" (the official code, standard parametrisation).

    Attributes:
        ones: n, 1 to k, (k,).
        mean_on: mean output where the permuted input has a one, (k,), float64.
        mean_off: mean output elsewhere, (k,); at n = k there is no such place.
        variance: of every output, (k,).

    Raises:
        ValueError: k is below 2, or the kernel is unknown.

    Source: the paper's kernel regression on the basis vectors; its closed form and variance were worked out anew.

    Example:
        >>> PermutationTheory(10).networks_needed(0.1, ones=2)  # for a given input with two ones
        333
        >>> PermutationTheory(10).networks_needed(0.05, all_inputs=True)
        888
    """

    def __init__(self, k: int, kernel: Kernel = "ntk") -> None:
        check_kernel(kernel)
        if k < 2:
            raise ValueError(f"k is {k}; expected at least 2 bits")
        self.k, self.kernel = k, kernel
        self.ones = torch.arange(1, k + 1)
        n = self.ones.double()
        cosine = torch.stack([torch.zeros_like(n), n.rsqrt(), torch.ones_like(n)])
        covariance = relu_kernel(cosine)  # times 1/k: off the support, on it, of an input with itself
        tangent = covariance if kernel == "conjugate" else covariance + cosine * relu_step_kernel(cosine)
        # Training kernel: `equal` on the diagonal, c elsewhere. An input sees a on its support and c elsewhere.
        c, a, equal = tangent
        row = equal - c + c * k
        total = n * a + (k - n) * c
        self.mean_on = (a - c * total / row) / (equal - c)
        self.mean_off = (c - c * total / row) / (equal - c)
        # A permutation's targets are unit vectors, so that the means are the weights of the training targets, too.
        weight_sum = n * self.mean_on + (k - n) * self.mean_off
        square_sum = n * self.mean_on.square() + (k - n) * self.mean_off.square()
        apart, near, own = covariance
        cross = n * self.mean_on * near + (k - n) * self.mean_off * apart
        spread = (own - apart) * square_sum + apart * weight_sum.square()
        self.variance = torch.where(self.ones == 1, 0.0, ((own - 2 * cross + spread) / k).clamp_min(0))

    def success(self, networks: float | Tensor) -> Tensor:
        """Probability that the rounded average of N networks is right on one given input of each number of ones.

        Args:
            networks: N, positive; a tensor gets a new last axis.

        Returns:
            (..., k), float64.

        Raises:
            ValueError: N is not positive.
        """
        return self._log_success(networks).exp()

    def failure_bound(self, networks: float | Tensor) -> Tensor:
        """Bound on the probability that the rounded average is wrong on any of the 2^k - 1 inputs: the union bound.

        Args:
            networks: N, positive.

        Returns:
            (...), float64; may exceed 1.
        """
        failure = -torch.expm1(self._log_success(networks))
        n = self.ones.double()
        log_inputs = torch.lgamma(n.new_tensor(self.k + 1.0)) - torch.lgamma(n + 1) - torch.lgamma(self.k - n + 1)
        return (log_inputs + failure.log()).exp().sum(dim=-1)

    def networks_needed(self, failure: float, *, ones: int | None = None, all_inputs: bool = False) -> int:
        """The smallest ensemble that fails with at most this probability.

        Args:
            failure: δ, between 0 and 1.
            ones: on one given input with so many ones; None for the worst number of them.
            all_inputs: on any of the 2^k - 1 inputs instead, by the union bound: enough, and not much more than that.

        Returns:
            N, at least 1.

        Raises:
            ValueError: δ or `ones` out of range, or both `ones` and `all_inputs`.
        """
        _check_failure(failure)
        if ones is not None and not 1 <= ones <= self.k:
            raise ValueError(f"ones is {ones}; expected 1 to {self.k}")
        if ones is not None and all_inputs:
            raise ValueError(f"ones is {ones} and all_inputs is True; expected one of the two")
        if all_inputs:
            return _smallest(lambda size: float(self.failure_bound(size)) <= failure)
        numbers = slice(None) if ones is None else slice(ones - 1, ones)
        return _smallest(lambda size: bool((self._log_success(size)[numbers] >= math.log1p(-failure)).all()))

    def sufficient_networks(self, failure: float, *, all_inputs: bool = False) -> int:
        """The paper's kind of bound: every output's Gaussian tail by exp(-N μ² / 2σ²), summed over outputs and inputs.

        It shows the order of growth, k log k for one input and k² for all, since σ² / μ² is of the order of k.

        Args:
            failure: δ, between 0 and 1.
            all_inputs: on any of the 2^k - 1 inputs rather than on one.

        Returns:
            N = max over n of 2 σ² / μ² log(k / δ), or log(k (2^k - 1) / δ), rounded up; above `networks_needed`.

        Raises:
            ValueError: δ out of range.

        Source: the paper's theorem on ensemble complexity, with constants from the closed form instead of its own.
        """
        _check_failure(failure)
        smallest = torch.minimum(self.mean_on, self._off_margin())[1:]
        ratio = float((self.variance[1:] / smallest.square()).max())
        outputs = math.log(self.k) + (math.log(2**self.k - 1) if all_inputs else 0.0)
        return math.ceil(2 * ratio * (outputs - math.log(failure)))

    def _off_margin(self) -> Tensor:
        """How far the mean lies below zero where it should; infinite where there is no such place."""
        return torch.where(self.ones == self.k, torch.inf, -self.mean_off)

    def _log_success(self, networks: float | Tensor) -> Tensor:
        size = torch.as_tensor(networks, dtype=torch.float64)[..., None]
        if not bool((size > 0).all()):
            raise ValueError(f"networks is {networks}; expected positive numbers")
        trained = self.ones == 1
        deviation = (torch.where(trained, 1.0, self.variance) / size).sqrt()
        off = torch.where(self.ones == self.k, 0, self.k - self.ones)
        on_right = self.ones * torch.special.log_ndtr(self.mean_on / deviation)
        off_right = off * torch.special.log_ndtr(-self.mean_off / deviation)
        return torch.where(trained, 0.0, on_right + off_right)


def _check_failure(failure: float) -> None:
    if not 0 < failure < 1:
        raise ValueError(f"failure is {failure}; expected a probability between 0 and 1")


def _smallest(enough: Callable[[int], bool]) -> int:
    """The smallest whole number that is enough, where every larger one is enough, too."""
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
