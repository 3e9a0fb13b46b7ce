"""The two factors of a matrix: unequal start, imbalance, the rebalancing step, and a linear layer made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from working_papers.papers.matrix_sensing.method._sensing import check_sizes

RIGHT_RATIO = 1 / 3  # G starts at a third of F's scale; the paper's choice


def initial_factors(
    rows: int,
    columns: int,
    rank: int,
    *,
    scale: float | Tensor,
    ratio: float = RIGHT_RATIO,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Random factors at unequal scales: F entries α N(0, 1/n1), G entries ratio · α N(0, 1/n2).

    Args:
        rows: n1.
        columns: n2.
        rank: k, the number of columns; any positive number.
        scale: α; a tensor of any shape gives one start for each entry, all from the same draw.
        ratio: scale of G over that of F.
        generator: source of randomness, on the CPU; the global one if None.
        dtype: of the factors.

    Returns:
        F (*scale.shape, n1, k) and G (*scale.shape, n2, k), on the device of `scale`.

    Raises:
        ValueError: a size below 1; a scale or ratio that is negative or not finite.

    Source: the paper's experiments for α and α/3; the 1/n variance is ours and keeps ‖F‖ near α for every n.
    """
    check_sizes(rows=rows, columns=columns, rank=rank)
    scales = torch.as_tensor(scale, dtype=dtype)
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise ValueError(f"scale is {scale}; expected finite numbers of 0 or more")
    if not 0 <= ratio < math.inf:
        raise ValueError(f"ratio is {ratio}; expected a finite number of 0 or more")
    left = torch.randn(rows, rank, generator=generator, dtype=dtype).to(scales.device) / math.sqrt(rows)
    right = torch.randn(columns, rank, generator=generator, dtype=dtype).to(scales.device) / math.sqrt(columns)
    scales = scales.to(left.dtype)[..., None, None]
    return scales * left, ratio * scales * right


def imbalance(left: Tensor, right: Tensor) -> Tensor:
    """Δ = FᵀF − GᵀG, which gradient flow conserves and a gradient step changes by O(η²) only.

    Args:
        left: F, (..., n1, k).
        right: G, (..., n2, k).

    Returns:
        (..., k, k), symmetric.

    Raises:
        ValueError: the factors have different numbers of columns.

    Source: the imbalance that the paper's asymmetric analysis follows.
    """
    check_factors(left, right)
    return left.mT @ left - right.mT @ right


def rebalance(left: Tensor, right: Tensor, beta: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The one-step modification: make the columns of F orthogonal and of length β, and leave F Gᵀ as it is.

    With F = U S Vᵀ the result is β U Vᵀ and G V S Vᵀ / β. Afterwards spare columns of G fade at the rate η β²
    and the columns that carry the matrix converge at η σ_r² / β². The slower of the two is fastest at β² = σ_r, as
    fast as with k = r; the default β² = σ_1 is the same for a well-conditioned matrix, safer for the step size
    (η (β² + σ_1² / β²) < 2 is needed) and slower by the condition number otherwise.

    Optimisers with momentum keep buffers in the old coordinates: clear them after this step.

    Args:
        left: F, (..., n1, k), of full rank if the paper's form is wanted; spare singular directions are filled in.
        right: G, (..., n2, k).
        beta: β, a number or a tensor of the batch's shape; by default the root of the largest singular value of F Gᵀ.

    Returns:
        The new F and G, shapes, dtype and device as before; FᵀF = β² I for k ≤ n1, FFᵀ = β² I for k ≥ n1.

    Raises:
        ValueError: the factors do not fit together, β is not positive, or the product is zero and β is not given.

    Source: the paper's one-step modification (from memory), up to a rotation of the columns; β as explained above.
    """
    check_factors(left, right)
    u, s, vh = torch.linalg.svd(left, full_matrices=False)
    carried = (right @ vh.mT) * s.unsqueeze(-2)  # (..., n2, min(n1, k)): F Gᵀ = U carriedᵀ
    if beta is None:
        length = torch.linalg.matrix_norm(carried, ord=2).sqrt()
    else:
        length = torch.as_tensor(beta, dtype=left.dtype, device=left.device)
    if not bool((length.isfinite() & (length > 0)).all()):
        raise ValueError(
            "beta is None and the product of the factors is zero or not finite; expected a product to balance"
            if beta is None
            else f"beta is {beta}; expected finite numbers above 0"
        )
    length = length[..., None, None]
    return length * (u @ vh), carried @ vh / length


class FactoredLinear(nn.Module):
    """A linear layer whose weight is a product F Gᵀ of two factors that start at unequal scales.

    Args:
        in_features: n2.
        out_features: n1.
        rank: k; generous, the spare columns fade.
        scale: α of F; G has a third of it.
        ratio: scale of G over that of F; 1 gives the usual start at equal scales.
        bias: whether there is one; it starts at zero.
        generator: source of randomness, on the CPU; the global one if None.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a scale or ratio that is negative or not finite.

    Example:
        >>> layer = FactoredLinear(64, 32, rank=16, scale=0.5)
        >>> layer.rebalance_()  # once, when the loss has come down; the function it computes stays the same
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        scale: float = 0.5,
        ratio: float = RIGHT_RATIO,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        left, right = initial_factors(
            out_features, in_features, rank, scale=scale, ratio=ratio, generator=generator, dtype=dtype
        )
        self.left = nn.Parameter(left.to(device))
        self.right = nn.Parameter(right.to(device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @property
    def weight(self) -> Tensor:
        """F Gᵀ, (out_features, in_features)."""
        return self.left @ self.right.T

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in_features).

        Returns:
            (..., out_features).
        """
        return functional.linear(x @ self.right, self.left, self.bias)

    @torch.no_grad()
    def rebalance_(self, beta: float | None = None) -> None:
        """Rebalance the factors in place; see `rebalance`."""
        left, right = rebalance(self.left, self.right, beta)
        self.left.copy_(left)
        self.right.copy_(right)

    def extra_repr(self) -> str:
        """Sizes, as printed by torch."""
        (out_features, rank), in_features = self.left.shape, len(self.right)
        return f"in_features={in_features}, out_features={out_features}, rank={rank}, bias={self.bias is not None}"


def check_factors(left: Tensor, right: Tensor) -> None:
    """Raise ValueError unless the shapes are (..., n1, k) and (..., n2, k)."""
    if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"left and right have shapes {tuple(left.shape)} and {tuple(right.shape)}; "
            "expected (..., n1, k) and (..., n2, k)"
        )
