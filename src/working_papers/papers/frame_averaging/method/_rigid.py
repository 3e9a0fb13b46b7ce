"""Frames of rigid motions from the principal axes of points. Letters as in the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from working_papers.papers.frame_averaging.method._common import check_choice, repeat, unflatten, uniform

Group = Literal["E", "SE", "O", "SO"]
Kind = Literal["scalar", "vector", "point"]

# Principal axes whose variances differ by less than this share of the largest are not told apart. Our choice:
# far above the rounding of a float64 covariance, far below the gaps of generic clouds.
RELATIVE_GAP = 1e-6


class FrameSet(NamedTuple):
    """A frame of rigid motions for each sample: K orthogonal matrices and one centre.

    Attributes:
        rotations: [B, K, d, d], the input's dtype; the columns of a matrix are the frame's axes.
        centre: [B, d], the input's dtype; zero for the groups O and SO.
        degenerate: [B], bool; True where two principal axes have (almost) the same variance, so that the axes
            are arbitrary and equivariance is lost. The paper sets such inputs aside as a null set.
    """

    rotations: Tensor
    centre: Tensor
    degenerate: Tensor

    def apply(self, x: Tensor, kind: Literal["point", "vector"] = "point") -> Tensor:
        """Express points or vectors in every element of the frame: g⁻¹·x for each g.

        Args:
            x: [B, ..., d].
            kind: "point" subtracts the centre and rotates, "vector" only rotates.

        Returns:
            [B, K, ..., d].
        """
        check_choice("kind", kind, ("point", "vector"))
        batch, _, d, _ = self.rotations.shape
        if x.ndim < 2 or x.shape[0] != batch or x.shape[-1] != d:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, ..., d] with B = {batch}, d = {d}")
        if kind == "point":
            x = x - _broadcast(self.centre, x)
        return torch.einsum("b...i,bkij->bk...j", x, self.rotations)

    def invert(self, y: Tensor, kind: Kind = "vector") -> Tensor:
        """Carry each element's output back to the original coordinates and average: (1/K) Σ g·y_g.

        Args:
            y: [B, K, ..., d] for vectors and points, [B, K, ...] for scalars.
            kind: "scalar" averages only, "vector" rotates back, "point" also adds the centre.

        Returns:
            [B, ..., d] or, for scalars, [B, ...].
        """
        check_choice("kind", kind, get_args(Kind))
        batch, elements, d, _ = self.rotations.shape
        if y.shape[:2] != (batch, elements) or (kind != "scalar" and (y.ndim < 3 or y.shape[-1] != d)):
            wanted = "[B, K, ...]" if kind == "scalar" else "[B, K, ..., d]"
            sizes = f"B = {batch}, K = {elements}, d = {d}"
            raise ValueError(f"y has shape {tuple(y.shape)}; expected {wanted} for a {kind}, {sizes}")
        if kind == "scalar":
            return y.mean(dim=1)
        mean = torch.einsum("bk...j,bkij->b...i", y, self.rotations) / elements
        return mean + _broadcast(self.centre, mean) if kind == "point" else mean

    def sample(self, k: int = 1, generator: torch.Generator | None = None) -> FrameSet:
        """Draw k different elements for each sample, uniformly; their average is unbiased.

        Args:
            k: number of elements, 1 to K. With fewer than K, equivariance holds in expectation only.
            generator: source of randomness; torch's global one by default.
        """
        batch, elements = self.rotations.shape[:2]
        if not 1 <= k <= elements:
            raise ValueError(f"k is {k}; expected 1 to {elements}, the elements of this frame")
        chosen = uniform((batch, elements), self.rotations.device, generator).argsort(dim=1)[:, :k]
        rows = torch.arange(batch, device=chosen.device)[:, None]
        return self._replace(rotations=self.rotations[rows, chosen])


def euclidean_frame(
    x: Tensor, group: Group = "E", *, mask: Tensor | None = None, weights: Tensor | None = None
) -> FrameSet:
    """The frame of a point cloud under rigid motions: its principal axes with every choice of signs.

    Source: Section 3.1. The axes are the eigenvectors of the (centred) covariance, in ascending order of
    variance. They carry no gradient, as in the official code, because an eigenvector's derivative grows without
    bound as two eigenvalues meet; the centre does.

    Args:
        x: [B, n, d], floating point; n and d at least 1.
        group: "E" rigid motions with reflections, 2^d elements; "SE" without reflections, 2^(d-1) elements;
            "O" and "SO" the same with the origin held fixed (no centring).
        mask: [B, n], bool, False for padding points, which are ignored; at least one True a sample.
        weights: [B, n], non-negative importance of each point, such as its mass.

    Raises:
        ValueError: an unknown group, or a tensor of the wrong shape or dtype.
    """
    check_choice("group", group, get_args(Group))
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [B, n, d] with n and d at least 1")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}; expected a floating-point dtype")
    cloud = x.double()
    share = torch.ones_like(cloud[..., 0])
    for name, factor in (("mask", mask), ("weights", weights)):
        if factor is not None:
            if factor.shape != share.shape:
                raise ValueError(f"{name} has shape {tuple(factor.shape)}; expected [B, n] = {tuple(share.shape)}")
            share = share * factor.to(share)
    if mask is not None:
        cloud = cloud.masked_fill(~mask.bool()[..., None], 0.0)  # padding may hold anything, even NaN
    share = share / share.sum(dim=1, keepdim=True)
    centre = torch.einsum("bn,bni->bi", share, cloud)
    if group in ("O", "SO"):
        centre = torch.zeros_like(centre)
    with torch.no_grad():
        deviation = cloud - centre[:, None]
        covariance = torch.einsum("bn,bni,bnj->bij", share, deviation, deviation)
        variances, axes = torch.linalg.eigh(covariance)
        degenerate = (variances.diff(dim=-1) <= RELATIVE_GAP * variances[:, -1:]).any(dim=-1)
        if group in ("SE", "SO"):
            # Make the axes right-handed; patterns with an even number of minus signs keep them so.
            axes = torch.cat([torch.linalg.det(axes).sign()[:, None, None] * axes[..., :1], axes[..., 1:]], -1)
        signs = _sign_patterns(x.shape[2], even=group in ("SE", "SO")).to(axes)
        rotations = axes[:, None] * signs[:, None, :]  # each pattern scales the columns
    return FrameSet(rotations.to(x.dtype), centre.to(x.dtype), degenerate)


class FrameAveraging(nn.Module):
    """Makes any backbone on points exactly invariant or equivariant to rigid motions.

    Source: the frame averages of Section 2, with the frame of Section 3.1. The backbone sees all elements as one
    batch, at K times its cost (8 in space, 4 for "SE"). Its other symmetries, such as to the order of the points,
    are kept.

    Args:
        backbone: called as `backbone(points, *vectors, **keywords)`; the first dimension of tensors is B·K.
        group: see `euclidean_frame`.
        out: what the backbone returns: "scalar" (any tensor that should not change), "vector" (ends in d
            coordinates, turns with the input) or "point" (turns and shifts). A sequence of these for a backbone
            that returns a tuple.
        sample: average over so many elements in training mode, drawn anew in each call; evaluation mode always
            takes the whole frame. None: the whole frame always.

    Shapes:
        forward(x, *vectors, mask, weights, generator, **keywords): x [B, n, d] points; vectors [B, ..., d];
        mask, weights [B, n] as in `euclidean_frame`, the mask handed on to the backbone; keyword tensors [B, ...],
        repeated for each element; other keywords as they are. Output: the backbone's, with B in place of B·K.
    """

    def __init__(
        self,
        backbone: Callable[..., Any],
        *,
        group: Group = "E",
        out: Kind | Sequence[Kind] = "scalar",
        sample: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("group", group, get_args(Group))
        for kind in [out] if isinstance(out, str) else out:
            check_choice("out", kind, get_args(Kind))
        if sample is not None and sample < 1:
            raise ValueError(f"sample is {sample}; expected a positive number of elements, or None for all")
        self.backbone = backbone
        self.group: Group = group
        self.out: Kind | tuple[Kind, ...] = out if isinstance(out, str) else tuple(out)
        self.sample = sample

    def forward(
        self,
        x: Tensor,
        *vectors: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        generator: torch.Generator | None = None,
        **keywords: Any,
    ) -> Any:
        """Average the backbone over the input's frame; shapes and keywords as in the class docstring."""
        frame = euclidean_frame(x, self.group, mask=mask, weights=weights)
        if self.training and self.sample is not None:
            frame = frame.sample(self.sample, generator)
        batch, elements = frame.rotations.shape[:2]
        if mask is not None:
            keywords["mask"] = mask
        inputs = [frame.apply(x, "point"), *(frame.apply(vector, "vector") for vector in vectors)]
        result = self.backbone(*(part.flatten(0, 1) for part in inputs), **repeat(keywords, batch, elements))
        if isinstance(self.out, str):
            return frame.invert(unflatten(result, batch, elements), self.out)
        if not isinstance(result, tuple | list) or len(result) != len(self.out):
            raise ValueError(f"out is {self.out}; the backbone must return a tuple of {len(self.out)} tensors")
        parts = zip(result, self.out, strict=True)
        return tuple(frame.invert(unflatten(part, batch, elements), kind) for part, kind in parts)


class LayerwiseFrameAveraging(nn.Module):
    """Frame averaging that renews the frame between layers: the FA-GNN of Section 5.3.

    After each layer but the last, the H features of a node are read as C = H/d vectors, carried back and averaged
    over the frame; all n·C of them form the cloud from which the next frame is computed. For "E" and "SE" that
    cloud's centre is dropped for good, as in the official code; only the input's centre returns at the end.

    Args:
        embedding: [B·K, n, (1 + number of vectors)·d] → [B·K, n, H].
        layers: each called as `layer(h, **keywords)`, from [B·K, n, H] to [B·K, n, H'], both multiples of d.
        readout: [B·K, n, H] → the output that `out` names.
        group: see `euclidean_frame`.
        out: "scalar", "vector" or "point", see `FrameAveraging`.

    Shapes:
        forward(x, *vectors, mask, **keywords): x and each of the vectors [B, n, d]; mask [B, n], handed on to the
        layers; keyword tensors [B, ...], repeated for each element. Output: the readout's, with B for B·K.
    """

    def __init__(
        self,
        embedding: Callable[[Tensor], Tensor],
        layers: Iterable[nn.Module],
        readout: Callable[[Tensor], Tensor],
        *,
        group: Group = "E",
        out: Kind = "vector",
    ) -> None:
        super().__init__()
        check_choice("group", group, get_args(Group))
        check_choice("out", out, get_args(Kind))
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.readout = readout
        self.group: Group = group
        self.out: Kind = out

    def forward(self, x: Tensor, *vectors: Tensor, mask: Tensor | None = None, **keywords: Any) -> Tensor:
        """Run the layers, each in a frame of its own; shapes as in the class docstring."""
        frame = euclidean_frame(x, self.group, mask=mask)
        centre = frame.centre
        batch, elements = frame.rotations.shape[:2]
        if mask is not None:
            keywords["mask"] = mask
        keywords = repeat(keywords, batch, elements)
        inputs = [frame.apply(x, "point"), *(frame.apply(vector, "vector") for vector in vectors)]
        h = self.embedding(torch.cat(inputs, dim=-1).flatten(0, 1))
        for index, layer in enumerate(self.layers):
            if index > 0:
                h, frame = self._renew(h, frame, mask)
            h = layer(h, **keywords)
        output = unflatten(self.readout(h), batch, elements)
        return frame._replace(centre=centre).invert(output, self.out)

    def _renew(self, h: Tensor, frame: FrameSet, mask: Tensor | None) -> tuple[Tensor, FrameSet]:
        """Average features [B·K, n, H] as vectors over the old frame; express them in the one they define."""
        batch, elements, d, _ = frame.rotations.shape
        nodes, features = h.shape[1:]
        if features % d:
            raise ValueError(
                f"a layer gave {features} features; they are read as vectors, so expected a multiple of d = {d}"
            )
        cloud = frame.invert(h.reshape(batch, elements, nodes * (features // d), d), "vector")  # [B, n·C, d]
        repeated = None if mask is None else mask.repeat_interleave(features // d, dim=1)
        frame = euclidean_frame(cloud, self.group, mask=repeated)
        return frame.apply(cloud, "point").reshape(batch * elements, nodes, features), frame


def _sign_patterns(d: int, even: bool) -> Tensor:
    """All patterns of d signs, [2^d, d]; with `even` those whose product is +1, [2^(d-1), d]."""
    patterns = itertools.product((1.0, -1.0), repeat=d)
    return torch.tensor([pattern for pattern in patterns if not even or math.prod(pattern) > 0])


def _broadcast(centre: Tensor, x: Tensor) -> Tensor:
    """[B, d] → [B, 1, ..., 1, d], with as many dimensions as x."""
    return centre.reshape(centre.shape[0], *[1] * (x.ndim - 2), centre.shape[1])
