"""Frame Averaging for Invariant and Equivariant Network Design (https://arxiv.org/abs/2110.03336).

Average any backbone over a *frame*, a small set of group elements that is computed from the input and turns
with it: the average is exactly invariant or equivariant, without a sum over the whole group. For rigid motions
the frame comes from the principal axes of the points, for graphs from sorting nodes by Laplacian eigenspaces.

Where this departs from the official code (https://github.com/omri1348/Frame-Averaging):
  - frames are computed in float64, and eigenvalues closer than a tolerance count as equal (the graph code
    compares them bit by bit, so rounding can split an eigenspace and the frame then depends on node order);
  - nearly symmetric point clouds, whose axes are arbitrary, are flagged;
  - any dimension d, padding masks, point weights, graphs in padded batches, and the whole graph frame.

Dimension letters:
  B  samples in a batch     n  points or nodes          d  dimension of space
  K  elements of a frame    H  features of a node       C  latent vectors of a node, H = C·d
  k  elements drawn         M  relabelled graphs: the batch that a graph backbone sees
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Group = Literal["E", "SE", "O", "SO"]
Kind = Literal["scalar", "vector", "point"]

# Principal axes whose variances differ by less than this share of the largest are not told apart. Our choice:
# far above the rounding of a float64 covariance, far below the gaps of generic clouds.
RELATIVE_GAP = 1e-6
# Graph frames of up to 8! permutations are enumerated. Our choice: more should be sampled.
LARGEST_ENUMERATED_FRAME = 40_320


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
        _check("kind", kind, ("point", "vector"))
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
        _check("kind", kind, get_args(Kind))
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
        chosen = _uniform((batch, elements), self.rotations.device, generator).argsort(dim=1)[:, :k]
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
    _check("group", group, get_args(Group))
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
        _check("group", group, get_args(Group))
        for kind in [out] if isinstance(out, str) else out:
            _check("out", kind, get_args(Kind))
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
        result = self.backbone(*(part.flatten(0, 1) for part in inputs), **_repeat(keywords, batch, elements))
        if isinstance(self.out, str):
            return frame.invert(_unflatten(result, batch, elements), self.out)
        if not isinstance(result, tuple | list) or len(result) != len(self.out):
            raise ValueError(f"out is {self.out}; the backbone must return a tuple of {len(self.out)} tensors")
        parts = zip(result, self.out, strict=True)
        return tuple(frame.invert(_unflatten(part, batch, elements), kind) for part, kind in parts)


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
        _check("group", group, get_args(Group))
        _check("out", out, get_args(Kind))
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
        keywords = _repeat(keywords, batch, elements)
        inputs = [frame.apply(x, "point"), *(frame.apply(vector, "vector") for vector in vectors)]
        h = self.embedding(torch.cat(inputs, dim=-1).flatten(0, 1))
        for index, layer in enumerate(self.layers):
            if index > 0:
                h, frame = self._renew(h, frame, mask)
            h = layer(h, **keywords)
        output = _unflatten(self.readout(h), batch, elements)
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


class SortFrame(NamedTuple):
    """The frame of a graph under relabelling: all permutations that sort its nodes.

    A permutation p lists the old nodes in their new order: the relabelled adjacency is `adjacency[p][:, p]`.

    Attributes:
        order: [..., n], int64; one sorting permutation.
        tie: [..., n], int64; class of each sorted position. Nodes of a class tie: any order of them sorts.
    """

    order: Tensor
    tie: Tensor

    @property
    def size(self) -> Tensor:
        """Number of permutations, the product of the classes' factorials: [...], float64."""
        position = torch.arange(1, self.tie.shape[-1] + 1, device=self.tie.device)
        start = torch.searchsorted(self.tie, self.tie)  # where the class of each position begins
        return (position - start).double().prod(dim=-1)

    def sample(self, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw k permutations independently and uniformly.

        Args:
            k: number of permutations, at least 1.
            generator: source of randomness; torch's global one by default.

        Returns:
            [..., k, n], int64.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1 permutation")
        tie = self.tie.unsqueeze(-2).expand(*self.tie.shape[:-1], k, -1)
        shuffled = _uniform(tie.shape, tie.device, generator).argsort(dim=-1)
        # A stable sort by class puts the classes back in place and leaves each of them shuffled.
        within = shuffled.gather(-1, tie.gather(-1, shuffled).argsort(dim=-1, stable=True))
        return self.order.unsqueeze(-2).expand_as(tie).gather(-1, within)

    def elements(self) -> Tensor:
        """All permutations of the frame of one graph, [size, n], int64.

        Raises:
            ValueError: the frame belongs to a batch, or has more than 40,320 permutations.
        """
        if self.order.ndim != 1:
            raise ValueError(f"order has shape {tuple(self.order.shape)}; expected one graph, [n]")
        if self.size > LARGEST_ENUMERATED_FRAME:
            raise ValueError(
                f"the frame has {self.size.item():.4g} permutations; expected at most "
                f"{LARGEST_ENUMERATED_FRAME} to list them all. Draw some instead, with sample(k)"
            )
        nodes = zip(self.tie.tolist(), self.order.tolist(), strict=True)
        classes = [[node for _, node in members] for _, members in itertools.groupby(nodes, lambda pair: pair[0])]
        choices = itertools.product(*(itertools.permutations(members) for members in classes))
        permutations = [list(itertools.chain(*choice)) for choice in choices]
        return torch.tensor(permutations, dtype=torch.int64, device=self.order.device)


def graph_frame(
    adjacency: Tensor, *, decimals: int = 2, tolerance: float = 1e-6, mask: Tensor | None = None
) -> SortFrame:
    """The frame of a graph under relabelling: sort nodes by their share in each Laplacian eigenspace.

    Source: Section 3.2. For each distinct eigenvalue with eigenspace basis U, node i gets sqrt((U Uᵀ)_ii), which
    depends on neither signs nor basis; the rows of these numbers are rounded and sorted lexicographically.
    Rounding can only add ties, which makes the frame larger, not wrong.

    Args:
        adjacency: [n, n] or [B, n, n], symmetric; weighted edges are allowed.
        decimals: decimals kept of each share, 0 to 8 (2 in the official code).
        tolerance: eigenvalues closer than this, relative to the largest in size, count as one.
        mask: [n] or [B, n], bool, False for padding nodes: their edges are ignored, they are sorted last.

    Raises:
        ValueError: a tensor of the wrong shape, an asymmetric adjacency, or `decimals` out of range.
    """
    shape = tuple(adjacency.shape)
    if len(shape) not in (2, 3) or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(f"adjacency has shape {shape}; expected [n, n] or [B, n, n] with n at least 1")
    if not 0 <= decimals <= 8:
        raise ValueError(f"decimals is {decimals}; expected 0 to 8")
    if mask is None:
        mask = adjacency.new_ones(shape[:-1], dtype=torch.bool)
    elif mask.shape != shape[:-1]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {shape[:-1]}")
    mask = mask.bool()
    weights = adjacency.detach().double().masked_fill(~(mask[..., :, None] & mask[..., None, :]), 0.0)
    if not torch.allclose(weights, weights.mT):
        raise ValueError("adjacency is not symmetric; expected an undirected graph")

    laplacian = torch.diag_embed(weights.sum(dim=-1)) - weights
    eigenvalues, vectors = torch.linalg.eigh(laplacian)
    largest = eigenvalues.abs().amax(dim=-1, keepdim=True)
    space = pad((eigenvalues.diff(dim=-1) > tolerance * largest).cumsum(dim=-1), (1, 0))
    column = space.unsqueeze(-2).expand_as(vectors)
    share = torch.zeros_like(vectors).scatter_add(-1, column, vectors.square()).sqrt()
    # The nudge decides for shares that lie exactly between two decimals, such as 0.125, which would otherwise be
    # rounded by their last bit, and that depends on the order of the nodes.
    rows = (share * 10**decimals + 0.5 + 1e-6).floor().long()
    rows = torch.cat([(~mask)[..., None], rows], dim=-1)  # padding last

    order = torch.arange(shape[-1], device=rows.device).expand(shape[:-1])
    for key in reversed(rows.unbind(dim=-1)):  # stable sorts from the last key to the first: lexicographic order
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    ranked = rows.gather(-2, order.unsqueeze(-1).expand_as(rows))
    # Padding nodes are alike but need no permuting: each gets a class of its own.
    starts_class = (ranked.diff(dim=-2) != 0).any(dim=-1) | (ranked[..., 1:, 0] > 0)
    return SortFrame(order, pad(starts_class.cumsum(dim=-1), (1, 0)))


class GraphFrameAveraging(nn.Module):
    """Makes any backbone on dense graphs invariant or equivariant to relabelling.

    Source: Section 3.2. The backbone may tell nodes apart by their position, through one-hot identifiers or by
    flattening the adjacency; so the average can separate graphs that message passing cannot.

    Args:
        backbone: called as `backbone(adjacency)` or `backbone(adjacency, features)` with [M, n, n] and [M, n, f],
            and with keyword `mask`, [M, n], where a mask is given.
        out: "graph" for outputs [M, ...] that should not change, "node" for [M, n, ...] that follow the nodes.
        samples: permutations drawn for each graph; the output is then random where nodes tie. None: the whole
            frame, exact, but as large as the product of the ties' factorials.
        decimals: see `graph_frame`.

    Shapes:
        forward(adjacency, features, mask, generator): adjacency [B, n, n]; features [B, n, f]; mask [B, n].
        Output: the backbone's, with B in place of M.
    """

    def __init__(
        self,
        backbone: Callable[..., Tensor],
        *,
        out: Literal["graph", "node"] = "graph",
        samples: int | None = None,
        decimals: int = 2,
    ) -> None:
        super().__init__()
        _check("out", out, ("graph", "node"))
        if samples is not None and samples < 1:
            raise ValueError(f"samples is {samples}; expected a positive number of permutations, or None for all")
        self.backbone = backbone
        self.out = out
        self.samples = samples
        self.decimals = decimals

    def forward(
        self,
        adjacency: Tensor,
        features: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Average the backbone over each graph's frame; shapes as in the class docstring."""
        if adjacency.ndim != 3:
            raise ValueError(f"adjacency has shape {tuple(adjacency.shape)}; expected [B, n, n]")
        if features is not None and (features.ndim != 3 or features.shape[:2] != adjacency.shape[:2]):
            wanted = f"[B, n, f] with [B, n] = {tuple(adjacency.shape[:2])}"
            raise ValueError(f"features has shape {tuple(features.shape)}; expected {wanted}")
        frame = graph_frame(adjacency, decimals=self.decimals, mask=mask)
        batch = adjacency.shape[0]
        if self.samples is None:
            whole = [SortFrame(*graph).elements() for graph in zip(*frame, strict=True)]
            counts = torch.tensor([len(elements) for elements in whole], device=adjacency.device)
            permutation = torch.cat(whole)  # [M, n]
        else:
            counts = torch.full((batch,), self.samples, device=adjacency.device)
            permutation = frame.sample(self.samples, generator).flatten(0, 1)
        graph = torch.arange(batch, device=adjacency.device).repeat_interleave(counts)  # [M]
        inputs = [adjacency[graph[:, None, None], permutation[:, :, None], permutation[:, None, :]]]
        if features is not None:
            inputs.append(features[graph[:, None], permutation])
        keywords = {} if mask is None else {"mask": mask[graph[:, None], permutation]}
        output = self.backbone(*inputs, **keywords)
        if self.out == "node":
            rows = torch.arange(len(graph), device=graph.device)[:, None]
            output = output[rows, permutation.argsort(dim=-1)]
        total = output.new_zeros(batch, *output.shape[1:]).index_add(0, graph, output)
        return total / counts.to(output.dtype).view(-1, *[1] * (output.ndim - 1))


def _sign_patterns(d: int, even: bool) -> Tensor:
    """All patterns of d signs, [2^d, d]; with `even` those whose product is +1, [2^(d-1), d]."""
    patterns = itertools.product((1.0, -1.0), repeat=d)
    return torch.tensor([pattern for pattern in patterns if not even or math.prod(pattern) > 0])


def _broadcast(centre: Tensor, x: Tensor) -> Tensor:
    """[B, d] → [B, 1, ..., 1, d], with as many dimensions as x."""
    return centre.reshape(centre.shape[0], *[1] * (x.ndim - 2), centre.shape[1])


def _uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers on `device`, drawn where the generator lives."""
    drawn_on = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=drawn_on).to(device)


def _unflatten(y: Tensor, batch: int, elements: int) -> Tensor:
    """[B·K, ...] → [B, K, ...]."""
    if y.ndim == 0 or y.shape[0] != batch * elements:
        wanted = f"[B·K, ...] with B·K = {batch}·{elements} = {batch * elements}"
        raise ValueError(f"the backbone returned shape {tuple(y.shape)}; expected {wanted}")
    return y.view(batch, elements, *y.shape[1:])


def _repeat(keywords: dict[str, Any], batch: int, elements: int) -> dict[str, Any]:
    """Repeat keyword tensors for each frame element, [B, ...] → [B·K, ...]; leave other values alone."""
    repeated: dict[str, Any] = {}
    for name, value in keywords.items():
        if isinstance(value, Tensor):
            if value.ndim == 0 or value.shape[0] != batch:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; expected [B, ...] with B = {batch}, one entry a "
                    "sample. Keep what all samples share inside the backbone"
                )
            value = value.repeat_interleave(elements, dim=0)
        repeated[name] = value
    return repeated


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
