"""The network that is generated, and its first and second derivatives in forward mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OCTAVES = 5
SCALE = 0.1  # of the Fourier features
BLOCK = 2**19  # numbers of the widest layer's jets that are worked on at a time without gradients: 2 MB in float32
POINTS = 256  # of a network in such a block


class Jet(NamedTuple):
    """A function and its derivatives at points: (u, u_x, u_y, u_xx, u_yy), equal shapes."""

    u: Tensor
    ux: Tensor
    uy: Tensor
    uxx: Tensor
    uyy: Tensor


def fourier_features(x: Tensor, octaves: int = OCTAVES, scale: float = SCALE) -> Tensor:
    """Sines and cosines of octaves of every number, and the numbers themselves (section 3.2).

    Args:
        x: (..., D).
        octaves: how many.
        scale: frequency of the first, in periods a unit.

    Returns:
        (..., D (2 octaves + 1)): all sines, all cosines, x.
    """
    frequencies = 2 * math.pi * scale * 2 ** torch.arange(octaves, device=x.device, dtype=x.dtype)
    angles = (x.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos(), x], dim=-1)


class ModulatedMLP:
    """Fourier-feature network with two gates whose weights come from outside (section 3.2).

    With features φ: U = tanh(φ W0 + b0), V = tanh(φ W1 + b1), h = tanh(φ W2 + b2); then for each hidden layer
    h ← U h + V (1 - h), h ← tanh(h W + b); the output is h W_out + b_out.

    Args:
        width: units of every layer; 32 in the paper.
        hidden: number of gated layers; 3 in the paper.
        octaves: of the Fourier features.
        scale: frequency of the first octave.

    Raises:
        ValueError: sizes below 1.
    """

    def __init__(self, width: int = 32, hidden: int = 3, octaves: int = OCTAVES, scale: float = SCALE) -> None:
        for name, value in (("width", width), ("hidden", hidden), ("octaves", octaves)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.width, self.hidden, self.octaves, self.scale = width, hidden, octaves, scale
        self.features = 2 * (2 * octaves + 1)

    @property
    def weight_shapes(self) -> list[tuple[int, int]]:
        """Shapes (in, out) of the hidden + 4 matrices; each has a bias of `out` numbers."""
        inner = [(self.width, self.width)] * self.hidden
        return [(self.features, self.width)] * 3 + inner + [(self.width, 1)]

    @property
    def layers(self) -> int:
        """Number of matrices, hidden + 4."""
        return self.hidden + 4

    def initialize(
        self,
        count: int,
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """Random parameters: uniform matrices with Xavier's (Glorot's) variance, zero biases.

        Args:
            count: N, networks.
            generator: draws on its own device.
            dtype: of the parameters.
            device: where they go.

        Returns:
            Matrices (N, in, out), then biases (N, out).
        """
        matrices = []
        for shape in self.weight_shapes:
            draw = torch.rand(count, *shape, generator=generator, dtype=dtype)
            matrices.append(((2 * draw - 1) * math.sqrt(6 / sum(shape))).to(device))
        return matrices + [torch.zeros(count, shape[1], dtype=dtype, device=device) for shape in self.weight_shapes]

    def apply(self, params: Sequence[Tensor], xy: Tensor, *, batched: bool = True) -> Tensor:
        """Evaluate.

        Args:
            params: matrices (N, in, out), then biases (N, out); without N if not `batched`.
            xy: points (P, 2) for all networks, or (N, P, 2).
            batched: whether there is a network axis.

        Returns:
            (N, P), or (P,).

        Raises:
            ValueError: wrong number or shapes of parameters or points.
        """
        matrices, biases, xy = self._unpack(params, xy, batched)

        def affine(x: Tensor, i: int) -> Tensor:
            return torch.baddbmm(biases[i].unsqueeze(-2), x, matrices[i])

        phi = fourier_features(xy, self.octaves, self.scale)
        first, second, h = (affine(phi, i).tanh() for i in range(3))
        for i in range(3, 3 + self.hidden):
            h = affine(second + (first - second) * h, i).tanh()
        u = affine(h, self.layers - 1).squeeze(-1)
        return u if batched else u[0]

    def jet(self, params: Sequence[Tensor], xy: Tensor, *, batched: bool = True) -> Jet:
        """Value, gradient and pure second derivatives in one forward pass of about five times the cost.

        The five numbers of every unit go through the layers together, so that nothing is differentiated twice;
        gradients by the parameters come from ordinary autograd.

        Args:
            params: as for `apply`.
            xy: as for `apply`; it needs no gradient.
            batched: whether there is a network axis.

        Returns:
            (u, u_x, u_y, u_xx, u_yy), each (N, P) or (P,).

        Raises:
            ValueError: as `apply`.
        """
        matrices, biases, xy = self._unpack(params, xy, batched)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*matrices, *biases)):
            u = self._jet(matrices, biases, xy)
        else:
            # Nothing is kept for later, so that blocks which fit the cache can go through all layers at once.
            some = max(1, BLOCK // (15 * self.width * min(xy.shape[1], POINTS)))
            rows = [slice(k, k + some) for k in range(0, len(xy), some)]
            u = torch.cat([self._in_blocks([m[r] for m in matrices], [b[r] for b in biases], xy[r]) for r in rows])
        return Jet(*(u.unbind(1) if batched else u[0]))

    def _in_blocks(self, matrices: list[Tensor], biases: list[Tensor], xy: Tensor) -> Tensor:
        points = max(1, BLOCK // (15 * self.width * max(1, len(xy))))
        return torch.cat([self._jet(matrices, biases, part) for part in xy.split(points, dim=1)], dim=-1)

    def _jet(self, matrices: list[Tensor], biases: list[Tensor], xy: Tensor) -> Tensor:
        """(N, 5, P)."""
        n, points = xy.shape[:2]

        def product(x: Tensor, matrix: Tensor) -> Tensor:  # (N, 5, P, in) to (N, 5, P, out)
            return torch.bmm(x.reshape(n, 5 * points, -1), matrix).view(n, 5, points, -1)

        # The three input layers see the same features: one product with the matrices side by side.
        z = product(self._feature_jet(xy), torch.cat(matrices[:3], dim=-1))
        first, second, h = _tanh_jet(z, torch.cat(biases[:3], dim=-1)[:, None]).split(self.width, dim=-1)
        gate = first - second
        for i in range(3, 3 + self.hidden):
            h = _tanh_jet(product(_gate_jet(gate, h, second), matrices[i]), biases[i][:, None])
        u = product(h, matrices[-1]).squeeze(-1)
        return torch.cat([u[:, :1] + biases[-1][:, None], u[:, 1:]], dim=1)  # a bias moves the value alone

    def _feature_jet(self, xy: Tensor) -> Tensor:
        """Fourier features and their derivatives, (N, 5, P, features)."""
        frequencies = 2 * math.pi * self.scale * 2 ** torch.arange(self.octaves, device=xy.device, dtype=xy.dtype)
        angles = xy.unsqueeze(-1) * frequencies  # (N, P, 2, K)
        s, c = angles.sin(), angles.cos()
        zero = torch.zeros_like(s[..., :1, :])
        one, none = torch.ones_like(xy[..., :1]), torch.zeros_like(xy[..., :1])

        def line(sines: Tensor, cosines: Tensor, itself: Tensor) -> Tensor:
            return torch.cat([sines.flatten(-2), cosines.flatten(-2), itself], dim=-1)

        def of(axis: int, values: Tensor) -> Tensor:  # only the features of one coordinate depend on it
            parts = [zero, zero]
            parts[axis] = values[..., axis : axis + 1, :]
            return torch.cat(parts, dim=-2)

        s1, c1, s2, c2 = frequencies * c, -frequencies * s, -(frequencies**2) * s, -(frequencies**2) * c
        return torch.stack(
            [
                line(s, c, xy),
                line(of(0, s1), of(0, c1), torch.cat([one, none], dim=-1)),
                line(of(1, s1), of(1, c1), torch.cat([none, one], dim=-1)),
                line(of(0, s2), of(0, c2), torch.zeros_like(xy)),
                line(of(1, s2), of(1, c2), torch.zeros_like(xy)),
            ],
            dim=1,
        )

    def _unpack(self, params: Sequence[Tensor], xy: Tensor, batched: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
        if len(params) != 2 * self.layers:
            raise ValueError(f"params has {len(params)} tensors; expected {self.layers} matrices and as many biases")
        tensors = list(params) if batched else [tensor.unsqueeze(0) for tensor in params]
        n = tensors[0].shape[0] if tensors[0].dim() else 0
        for i, shape in enumerate(self.weight_shapes):
            for j, expected in ((i, (n, *shape)), (i + self.layers, (n, shape[1]))):
                if tensors[j].shape != expected:
                    raise ValueError(f"params[{j}] has shape {tuple(tensors[j].shape)}; expected {expected}")
        if xy.dim() not in (2, 3) or xy.shape[-1] != 2 or (xy.dim() == 3 and xy.shape[0] != n):
            raise ValueError(f"xy has shape {tuple(xy.shape)}; expected (P, 2) or ({n}, P, 2)")
        return tensors[: self.layers], tensors[self.layers :], xy.to(tensors[0].dtype).expand(n, -1, 2)


class _TanhJet(torch.autograd.Function):
    """Jet of tanh(z + bias) with the backward pass by hand: few kernels and no saved intermediates."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, bias: Tensor) -> Tensor:
        out = torch.empty_like(z)
        t = torch.tanh(z[:, 0] + bias)
        slope = 1 - t * t
        bend = t * slope * -2
        out[:, 0] = t
        first = z[:, 1:3]
        torch.mul(first, slope.unsqueeze(1), out=out[:, 1:3])
        torch.addcmul(z[:, 3:] * slope.unsqueeze(1), first * first, bend.unsqueeze(1), out=out[:, 3:])
        ctx.save_for_backward(z, t)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = outer
        z, t = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = 1 - t * t
        bend = t * slope * -2
        third = slope * (6 * t * t - 2)  # derivative of bend
        first, second, g1, g2 = z[:, 1:3], z[:, 3:], g[:, 1:3], g[:, 3:]
        grad = torch.empty_like(z)
        squares = first * first
        along = (g1 * first).sum(1) + (g2 * second).sum(1)
        torch.addcmul(g[:, 0] * slope + bend * along, (g2 * squares).sum(1), third, out=grad[:, 0])
        torch.addcmul(g1 * slope.unsqueeze(1), g2 * first, 2 * bend.unsqueeze(1), out=grad[:, 1:3])
        torch.mul(g2, slope.unsqueeze(1), out=grad[:, 3:])
        return grad, grad[:, 0].sum(1, keepdim=True)


def _tanh_jet(z: Tensor, bias: Tensor) -> Tensor:
    """Jet of tanh(z + bias): z (N, 5, P, H), bias (N, 1, H)."""
    result: Tensor = _TanhJet.apply(z, bias)  # type: ignore[no-untyped-call]
    return result


class _GateJet(torch.autograd.Function):
    """Jet of a b + c, with the backward pass by hand."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        out = torch.empty_like(b, memory_format=torch.contiguous_format)
        a0, b0 = a[:, :1], b[:, :1]
        torch.addcmul(c, a0, b, out=out)
        out[:, 1:].addcmul_(a[:, 1:], b0)
        out[:, 3:].addcmul_(a[:, 1:3], b[:, 1:3], value=2)
        ctx.save_for_backward(a, b)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = outer
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]

        def gradient(other: Tensor) -> Tensor:
            grad = g * other[:, :1]
            grad[:, 0] += (g[:, 1:] * other[:, 1:]).sum(1)
            grad[:, 1:3].addcmul_(g[:, 3:], other[:, 1:3], value=2)
            return grad

        return gradient(b), gradient(a), g


def _gate_jet(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Jet of a b + c for three functions, (N, 5, P, H) each."""
    result: Tensor = _GateJet.apply(a, b, c)  # type: ignore[no-untyped-call]
    return result
