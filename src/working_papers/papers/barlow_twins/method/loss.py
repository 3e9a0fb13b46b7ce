"""The loss of Barlow Twins and the module around a user's network (https://arxiv.org/abs/2103.03230).

Each embedding feature is standardised over the batch; the D × D matrix of correlations between the features of one
view and those of the other is driven to the identity (paper, section 2.1). The official code
(https://github.com/facebookresearch/barlowtwins) is followed where it and the paper differ: λ is 0.0051 there and 0.005
in the paper. In one point it is not followed: its sum over processes passes gradients through as they are, so that
`DistributedDataParallel`, which takes the mean, makes them too small by the number of processes; here several
processes compute what one would.

Letters: N = samples of the batch, D = features of the embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LAMBDA = 0.0051
"""Weight of the off-diagonal terms in the official code, for D = 8192; fewer features bear a larger one."""


class BarlowOutput(NamedTuple):
    """What a forward pass of `BarlowTwins` gives.

    Attributes:
        loss: invariance + λ · redundancy, scalar, to be minimised.
        invariance: Σ_i (C_ii - 1)², scalar, detached.
        redundancy: Σ_{i≠j} C_ij², scalar, detached.
        embedding1: of the first view (N, D), detached; of this process alone.
        embedding2: of the second view (N, D), detached.
    """

    loss: Tensor
    invariance: Tensor
    redundancy: Tensor
    embedding1: Tensor
    embedding2: Tensor

    @property
    def correlation(self) -> Tensor:
        """The cross-correlation matrix (D, D), computed when it is asked for: the loss itself may not need it."""
        return cross_correlation(self.embedding1, self.embedding2)


def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-5, group: ProcessGroup | None = None) -> Tensor:
    """Correlations between the features of two views over the batch.

    Args:
        z1: embeddings of the first view (N, D), any floating dtype.
        z2: embeddings of the second view (N, D).
        eps: added to the variances, as batch normalisation does.
        group: processes over which the batch is spread; None: this process has all of it.

    Returns:
        C (D, D), float32 or higher: C[i, j] belongs to feature i of the first view and feature j of the second.
        It is differentiable; across processes gradients are as in `barlow_twins_loss` only if every process
        computes the same from C.

    Raises:
        ValueError: the embeddings are no two matrices of one shape, or there are fewer than two samples.

    Source: paper, equation 2; biased variance, as in the official code.
    """
    _check(z1, z2, eps, group)
    with torch.autocast(z1.device.type, enabled=False):
        u1, u2, count = _standardised(z1, z2, eps, group)
        product = u1.mT @ u2
        return (product if group is None else _SharedSum.apply(product, group)) / count  # type: ignore[no-untyped-call]


def barlow_twins_terms(
    z1: Tensor, z2: Tensor, eps: float = 1e-5, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """The two sums of the loss: how far views differ, and how much features repeat each other.

    With at most D/2 samples in one process, Σ_{ij} C_ij² is computed from the two N × N matrices of inner products
    between samples, which gives the same number without ever making the D × D matrix.

    Args:
        z1: embeddings of the first view (N, D), any floating dtype; gradients reach both views.
        z2: embeddings of the second view (N, D).
        eps: added to the variances.
        group: as in `barlow_twins_loss`.

    Returns:
        Invariance Σ_i (C_ii - 1)² and redundancy Σ_{i≠j} C_ij², scalars of float32 or higher. Their second
        derivatives are not defined.

    Raises:
        ValueError: as `cross_correlation`.

    Source: paper, equation 1.
    """
    _check(z1, z2, eps, group)
    with torch.autocast(z1.device.type, enabled=False):
        u1, u2, count = _standardised(z1, z2, eps, group)
        if group is None and 2 * len(z1) <= z1.shape[1]:
            invariance, redundancy = _TermsFromSamples.apply(u1, u2)[:2]  # type: ignore[no-untyped-call]
        else:
            invariance, redundancy = _TermsFromFeatures.apply(u1, u2, count, group)[:2]  # type: ignore[no-untyped-call]
        if group is not None:
            invariance, redundancy = _GradientSum.apply(torch.stack([invariance, redundancy]), group).unbind()  # type: ignore[no-untyped-call]
        return invariance, redundancy


def barlow_twins_loss(
    z1: Tensor, z2: Tensor, lambd: float = LAMBDA, eps: float = 1e-5, group: ProcessGroup | None = None
) -> Tensor:
    """The Barlow Twins loss, Σ_i (C_ii - 1)² + λ Σ_{i≠j} C_ij².

    With a group, each process gives its part of the batch (parts may differ in size), standardisation and correlations
    are those of the whole batch, and every process gets the same loss. Gradients follow PyTorch's convention for
    collectives, the gradient of the sum of all processes' losses: the mean that `DistributedDataParallel` takes of the
    parameters' gradients is then that of one process with the whole batch.

    Args:
        z1: embeddings of the first view (N, D), any floating dtype; half precision is computed in float32.
        z2: embeddings of the second view (N, D).
        lambd: λ, weight of the off-diagonal terms; should shrink as D grows.
        eps: added to the variances.
        group: processes over which the batch is spread, such as `torch.distributed.group.WORLD`; None: this process
            has all of it.

    Returns:
        The loss, scalar, float32 or higher.

    Raises:
        ValueError: as `cross_correlation`, or λ is negative or not finite.

    Source: paper, equation 1; λ of the official code.
    """
    _check_lambda(lambd)
    invariance, redundancy = barlow_twins_terms(z1, z2, eps, group)
    return invariance + lambd * redundancy


class Projector(nn.Sequential):
    """The network between representation and loss: linear layers without bias, with batch normalisation and ReLU.

    The last layer is linear alone; the loss standardises what it gives. After training the projector is discarded.

    Args:
        in_features: of the representation.
        hidden: features of the hidden layers.
        out: D, features of the embedding.
        layers: number of linear layers.

    Raises:
        ValueError: a number below 1.

    Source: paper, section 2.2.
    """

    def __init__(self, in_features: int, hidden: int = 8192, out: int = 8192, layers: int = 3) -> None:
        for name, value in (("in_features", in_features), ("hidden", hidden), ("out", out), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        modules: list[nn.Module] = []
        for layer in range(layers - 1):
            modules += [nn.Linear(hidden if layer else in_features, hidden, bias=False), nn.BatchNorm1d(hidden)]
            modules += [nn.ReLU(inplace=True)]
        super().__init__(*modules, nn.Linear(hidden if layers > 1 else in_features, out, bias=False))


class BarlowTwins(nn.Module):
    """A user's network and a projector, trained by agreement of two views without repetition among features.

    Both views pass the same weights, one after the other, so that batch normalisation sees each view by itself; no
    gradient is stopped.

    Args:
        backbone: any module that maps a batch to representations (N, d).
        projector: maps representations to embeddings (N, D), such as `Projector(d)`.
        lambd: λ, weight of the off-diagonal terms.
        across_processes: whether a batch is spread over all processes of the default `torch.distributed` group. Give
            the model SyncBatchNorm then, as the official code does, if the backbone has batch normalisation.

    Raises:
        ValueError: λ is negative or not finite.

    Example:
        >>> model = BarlowTwins(resnet50(classes=0), Projector(2048))
        >>> optimizer = LARS(lars_parameters(model, batch_size=2048))
        >>> model(view1, view2).loss.backward()
        >>> features = model.embed(images)

    Source: paper, section 2 and figure 1.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, lambd: float = LAMBDA, across_processes: bool = False
    ) -> None:
        super().__init__()
        _check_lambda(lambd)
        self.backbone, self.projector = backbone, projector
        self.lambd, self.across_processes = lambd, across_processes

    def forward(self, view1: Tensor, view2: Tensor) -> BarlowOutput:
        """The loss of a batch.

        Args:
            view1: N samples, distorted at random, as the backbone takes them.
            view2: the same samples in the same order, distorted in another way.

        Returns:
            Loss, its two terms and the embeddings.

        Raises:
            ValueError: the backbone and projector do not give two matrices of one shape.
        """
        z1, z2 = self.projector(self.backbone(view1)), self.projector(self.backbone(view2))
        group = dist.group.WORLD if self.across_processes else None
        invariance, redundancy = barlow_twins_terms(z1, z2, group=group)
        loss = invariance + self.lambd * redundancy
        return BarlowOutput(loss, invariance.detach(), redundancy.detach(), z1.detach(), z2.detach())

    def embed(self, x: Tensor) -> Tensor:
        """The representation that is kept after training: the backbone's features (N, d), without the projector.

        Args:
            x: a batch as the backbone takes it.
        """
        features: Tensor = self.backbone(x)
        return features


def _standardised(
    z1: Tensor, z2: Tensor, eps: float, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Both embeddings with mean 0 and biased variance 1 over the batch, float32 at least, and the batch's size."""
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    z1, z2 = z1.to(dtype), z2.to(dtype)
    if group is None:
        return _batch_norm(z1, eps), _batch_norm(z2, eps), len(z1)
    z = torch.cat([z1, z2], dim=1)  # one message for both
    count = torch.tensor(len(z), dtype=dtype, device=z.device)
    dist.all_reduce(count, group=group)
    centred = z - _Sum.apply(z.sum(dim=0), group) / count  # type: ignore[no-untyped-call]
    variance = _Sum.apply(centred.square().sum(dim=0), group) / count  # type: ignore[no-untyped-call]
    u1, u2 = (centred * torch.rsqrt(variance + eps)).chunk(2, dim=1)
    return u1, u2, count


def _batch_norm(z: Tensor, eps: float) -> Tensor:
    return F.batch_norm(z, None, None, training=True, eps=eps)


class _TermsFromFeatures(torch.autograd.Function):
    """Both terms from the D × D matrix; forward and backward hold one such matrix each."""

    @staticmethod
    def forward(
        u1: Tensor, u2: Tensor, count: Tensor | int, group: ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        product = u1.mT @ u2
        if group is not None:
            dist.all_reduce(product, group=group)
        error = product.diagonal() / count - 1
        product.diagonal().zero_()
        flat = product.view(-1)
        return error.square().sum(), torch.dot(flat, flat) / count**2, product, error

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.count = inputs[2]
        ctx.save_for_backward(*inputs[:2], *output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_invariance: Tensor, of_redundancy: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        u1, u2, product, error = ctx.saved_tensors
        gradient = product * (2 * of_redundancy / ctx.count**2)
        gradient.diagonal().copy_(error * (2 * of_invariance / ctx.count))
        first = u2 @ gradient.mT if ctx.needs_input_grad[0] else None
        second = u1 @ gradient if ctx.needs_input_grad[1] else None
        return first, second, None, None


class _TermsFromSamples(torch.autograd.Function):
    """The same from N × N matrices: ‖u1ᵀ u2‖² = ⟨u1 u1ᵀ, u2 u2ᵀ⟩, less the diagonal's squares.

    For N ≤ D/2 the rank of u1ᵀ u2 is so low that the diagonal cannot make up nearly all of the squares once it is near
    the identity's, and the difference is safe.
    """

    @staticmethod
    def forward(u1: Tensor, u2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        count = len(u1)
        gram1, gram2, diagonal = u1 @ u1.mT, u2 @ u2.mT, (u1 * u2).sum(dim=0) / count
        squares = torch.dot(gram1.view(-1), gram2.view(-1)) / count**2
        return (diagonal - 1).square().sum(), squares - torch.dot(diagonal, diagonal), gram1, gram2, diagonal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_invariance: Tensor, of_redundancy: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        u1, u2, gram1, gram2, diagonal = ctx.saved_tensors
        count = len(u1)
        squares = 2 * of_redundancy / count**2
        own = ((diagonal - 1) * of_invariance - diagonal * of_redundancy) * (2 / count)
        first = torch.addcmul((gram2 @ u1) * squares, own, u2) if ctx.needs_input_grad[0] else None
        second = torch.addcmul((gram1 @ u2) * squares, own, u1) if ctx.needs_input_grad[1] else None
        return first, second


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is summed, too, because each process uses the sum in its own way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _SharedSum(torch.autograd.Function):
    """Sum over processes that all of them use alike, so that their gradients are one and need no message."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GradientSum(torch.autograd.Function):
    """Values that are the same in all processes: their gradients are summed, two numbers instead of a D × D matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _check(z1: Tensor, z2: Tensor, eps: float, group: ProcessGroup | None) -> None:
    for name, z in (("z1", z1), ("z2", z2)):
        if z.ndim != 2 or not z.is_floating_point():
            raise ValueError(f"{name} has shape {tuple(z.shape)} and dtype {z.dtype}; expected a float (N, D)")
    if z1.shape != z2.shape:
        raise ValueError(f"z2 has shape {tuple(z2.shape)}; expected that of z1, {tuple(z1.shape)}")
    if min(z1.shape) < 1 or (group is None and len(z1) < 2):
        raise ValueError(f"z1 has shape {tuple(z1.shape)}; expected two samples (N) and one feature (D) at least")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; expected a positive number")


def _check_lambda(lambd: float) -> None:
    if not 0 <= lambd < float("inf"):
        raise ValueError(f"lambd is {lambd}; expected a finite number of 0 or more")
