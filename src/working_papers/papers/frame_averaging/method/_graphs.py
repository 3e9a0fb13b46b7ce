"""Frames of permutations from the Laplacian eigenspaces of graphs. Letters as in the package."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from working_papers.papers.frame_averaging.method._common import check_choice, uniform

# Graph frames of up to 8! permutations are enumerated. Our choice: more should be sampled.
LARGEST_ENUMERATED_FRAME = 40_320


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
        shuffled = uniform(tie.shape, tie.device, generator).argsort(dim=-1)
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
        check_choice("out", out, ("graph", "node"))
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
