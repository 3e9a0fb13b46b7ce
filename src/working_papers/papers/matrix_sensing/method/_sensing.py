"""Sensing operators: linear maps from matrices to measurements, each with its adjoint and short cuts for products."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class SensingOperator(nn.Module, ABC):
    """A linear map from matrices to measurements, with its adjoint; both act on the last axes.

    Subclasses define `forward` and `adjoint`. The two methods on factors then work; override them where the
    product F Gᵀ can be avoided.

    Args:
        rows: n1.
        columns: n2.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        check_sizes(rows=rows, columns=columns)
        self.rows, self.columns = rows, columns

    @abstractmethod
    def forward(self, matrix: Tensor) -> Tensor:
        """Measure a matrix: (..., n1, n2) to (..., m)."""

    @abstractmethod
    def adjoint(self, residual: Tensor) -> Tensor:
        """The adjoint map: (..., m) to (..., n1, n2)."""

    def measure_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Measurements of F Gᵀ.

        Args:
            left: F, (..., n1, k).
            right: G, (..., n2, k).

        Returns:
            (..., m).
        """
        measured: Tensor = self(left @ right.mT)
        return measured

    def pull_back(self, residual: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of ½‖residual‖² in the two factors: E G and Eᵀ F with E = adjoint(residual).

        Args:
            residual: measurements of F Gᵀ minus those of the truth, (..., m).
            left: F, (..., n1, k).
            right: G, (..., n2, k).

        Returns:
            (..., n1, k) and (..., n2, k).
        """
        error = self.adjoint(residual)
        return error @ right, error.mT @ left


class IdentitySensing(SensingOperator):
    """Every entry of the matrix is a measurement: matrix factorisation, the limit of infinitely many random ones.

    Args:
        rows: n1.
        columns: n2.
    """

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., n1 n2)."""
        return matrix.flatten(-2)

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., n1 n2) to (..., n1, n2)."""
        matrix: Tensor = residual.unflatten(-1, (self.rows, self.columns))
        return matrix


class GaussianSensing(SensingOperator):
    """Inner products with m matrices of independent normal entries of variance 1/m, so that E 𝒜*𝒜 is the identity.

    It stores m n1 n2 numbers; `RankOneSensing` needs m (n1 + n2).

    Args:
        rows: n1.
        columns: n2.
        measurements: m; 10 k n or more make it close to an isometry on matrices of rank 2k.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the matrices.

    Raises:
        ValueError: a size below 1.

    Source: the near-isotropic measurements of the paper's problem setting.
    """

    matrices: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        measurements: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(rows, columns)
        check_sizes(measurements=measurements)
        drawn = torch.randn(measurements, rows, columns, generator=generator, dtype=dtype)
        self.register_buffer("matrices", drawn / math.sqrt(measurements))

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., m)."""
        return matrix.flatten(-2) @ self.matrices.flatten(1).T

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., m) to (..., n1, n2)."""
        matrix: Tensor = (residual @ self.matrices.flatten(1)).unflatten(-1, (self.rows, self.columns))
        return matrix


class RankOneSensing(SensingOperator):
    """Measurements aᵢᵀ M bᵢ with independent normal vectors: isotropic on average, and never larger than the factors.

    A step costs O(m (n1 + n2) k) and no n1 × n2 matrix is formed. Single measurements are heavier-tailed than those
    of `GaussianSensing`, so that the same closeness to an isometry takes more of them.

    Args:
        rows: n1.
        columns: n2.
        measurements: m.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the vectors.

    Raises:
        ValueError: a size below 1.

    Source: our choice for sizes at which m dense matrices do not fit.
    """

    left_vectors: Tensor
    right_vectors: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        measurements: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(rows, columns)
        check_sizes(measurements=measurements)
        scale = measurements**-0.25
        for name, size in (("left_vectors", rows), ("right_vectors", columns)):
            self.register_buffer(name, torch.randn(measurements, size, generator=generator, dtype=dtype) * scale)

    def forward(self, matrix: Tensor) -> Tensor:
        """(..., n1, n2) to (..., m)."""
        return (self.left_vectors @ matrix * self.right_vectors).sum(dim=-1)

    def adjoint(self, residual: Tensor) -> Tensor:
        """(..., m) to (..., n1, n2)."""
        return (self.left_vectors * residual.unsqueeze(-1)).mT @ self.right_vectors

    def measure_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Measurements of F Gᵀ, from (..., n1, k) and (..., n2, k) to (..., m)."""
        return ((self.left_vectors @ left) * (self.right_vectors @ right)).sum(dim=-1)

    def pull_back(self, residual: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """E G and Eᵀ F, without E; shapes as in the base class."""
        weights = residual.unsqueeze(-1)
        return (
            self.left_vectors.T @ (weights * (self.right_vectors @ right)),
            self.right_vectors.T @ (weights * (self.left_vectors @ left)),
        )


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; expected 1 or more")
