"""Selective state-space models: the scan of Mamba in plain PyTorch, fast on a CPU too, and the block around it.

Letters: N = sequences, L = tokens, d = channels of the scan, n = numbers of state a channel, D = channels of the block.
Source: Gu & Dao 2023 (https://arxiv.org/abs/2312.00752), sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENOUGH = {"cpu": 1 << 14}
"""Numbers of state that make a step large; where one chunk has less than a quarter, several run side by side."""
ENOUGH_ELSEWHERE = 1 << 20
"""The same for accelerators, which are idle unless a step is large; not measured."""


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    chunk: int = 16,
    state: Tensor | None = None,
) -> Tensor:
    """Linear recurrence with coefficients of its own at each token: h' = exp(dt A) h + dt B x, y = C h' + D x.

    The tokens are cut into chunks. Only the state at the start of each chunk is kept; the backward pass computes the
    others again, so that memory is that of the inputs plus L / chunk states instead of L. Nothing is ever divided by a
    product of decays, so that a decay of zero is as good as any other. Computed in float32, or in float64 if an
    argument is, whatever autocast says. First derivatives only.

    Args:
        x: (N, L, d) input.
        dt: (N, L, d) step sizes, at least 0 in a model; 0 skips a token.
        A: (d, n) rates, below 0 in a model.
        B: (N, L, n) how the input enters the state.
        C: (N, L, n) how the state is read.
        D: (d,) what passes the state by; None: nothing.
        chunk: tokens between two states that are kept. It changes speed and memory, not the result.
        state: (N, d, n) before the first token; None: zero.

    Returns:
        (N, L, d), dtype of x.

    Raises:
        ValueError: shapes that do not fit, a dtype that is not floating, or a chunk below 1.
    """
    return scan_with_state(x, dt, A, B, C, D, chunk=chunk, state=state)[0]


def scan_with_state(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    chunk: int = 16,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` for streams: returns (N, L, d) and the state after the last token, (N, d, n).

    The state has the dtype of the computation, float32 or float64. Arguments and errors are those of `selective_scan`.
    """
    batch, length, channels, size = _check(x, dt, A, B, C, D, state)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    given = (x, dt, A, B, C, *(each for each in (D, state) if each is not None))
    kind = torch.float64 if any(each.dtype == torch.float64 for each in given) else torch.float32
    start = x.new_zeros(batch, size, channels, dtype=kind) if state is None else state.to(kind).mT.contiguous()
    if batch * length * channels * size == 0:
        y, end = torch.zeros_like(x, dtype=kind), start
    else:
        groups, together, steps = _layout(batch * channels * size, length, chunk, x.device.type)
        parts = [_arrange(each.to(kind), groups, together, steps) for each in (x, dt, B, C)]
        found, end = _Scan.apply(*parts, A.to(kind).mT.contiguous(), start)  # type: ignore[no-untyped-call]
        y = found.permute(3, 0, 2, 1, 4).reshape(batch, -1, channels)[:, :length]
    if D is not None:
        y = y + D.to(kind) * x
    return y.to(x.dtype), end.mT


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None
) -> tuple[int, int, int, int]:
    """N, L, d and n, or ValueError."""
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected three axes (N, L, d)")
    batch, length, channels = x.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}; expected ({channels}, n) for x of shape {tuple(x.shape)}")
    size = A.shape[1]
    expected = {
        "dt": (dt, (batch, length, channels)),
        "B": (B, (batch, length, size)),
        "C": (C, (batch, length, size)),
        "D": (D, (channels,)),
        "state": (state, (batch, channels, size)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    for name, tensor in {"x": x, "A": A, **{name: pair[0] for name, pair in expected.items()}}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected a floating one")
    return batch, length, channels, size


def _layout(numbers: int, length: int, chunk: int, device: str) -> tuple[int, int, int]:
    """Groups of chunks, chunks side by side in a group, and tokens of a chunk, so that little is padded.

    Args:
        numbers: of state, in all sequences together.
        length: L.
        chunk: tokens of a chunk at most.
        device: type of the device.
    """
    chunks = -(-length // chunk)
    together = min(chunks, ENOUGH.get(device, ENOUGH_ELSEWHERE) // numbers)
    if together < 4:  # running side by side takes two fifths more arithmetic
        together = 1
    groups = -(-chunks // together)
    together = -(-chunks // groups)
    return groups, together, -(-length // (groups * together))


def _arrange(tensor: Tensor, groups: int, together: int, steps: int) -> Tensor:
    """(N, L, f) to (groups, steps, together, N, f): what one step reads lies in one piece. Padding decays nothing."""
    batch, length, features = tensor.shape
    padded = F.pad(tensor, (0, 0, 0, groups * together * steps - length))
    return padded.reshape(batch, groups, together, steps, features).permute(1, 3, 2, 0, 4).contiguous()


class _Scan(torch.autograd.Function):
    """The recurrence, for inputs in the layout of `_arrange`; states are (N, n, d), so that long axes lie innermost."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return _forward(ctx, x, dt, B, C, A, start)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_end: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(grad_y.device.type, enabled=False):
            return _backward(ctx.saved_tensors, grad_y, grad_end)


def _forward(ctx: Any, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    groups, steps, together, batch, channels = x.shape
    size = len(A)
    rows = steps * together * batch
    keep = any(ctx.needs_input_grad)
    starts = x.new_empty(groups if keep else 1, together, batch, size, channels)
    decay = x.new_empty(steps, together, batch, size, channels)
    h = torch.empty_like(decay)
    y = torch.empty_like(x)
    state = start
    for group in range(groups):
        first = starts[group if keep else 0]
        _decays_and_inputs(x[group], dt[group], B[group], A, decay, h)
        if together == 1:
            first[0] = state
            h[0].addcmul_(decay[0], first)
            _run(decay, h)
            state = h[-1, 0].clone()  # the next group writes over h
        else:
            # Each chunk from zero, and what a state at its start would have become; then the states in order.
            _run(decay, h)
            for now, before in zip(decay[1:].unbind(), decay.unbind(), strict=False):
                now.mul_(before)
            for place, own, passed in zip(first.unbind(), h[-1].unbind(), decay[-1].unbind(), strict=True):
                place.copy_(state)
                state = torch.addcmul(own, passed, place)
            h.addcmul_(decay, first)
        torch.bmm(C[group].view(rows, 1, size), h.view(rows, size, channels), out=y[group].view(rows, 1, channels))
    if keep:
        ctx.save_for_backward(x, dt, B, C, A, starts)
    return y, state


def _backward(saved: tuple[Tensor, ...], grad_y: Tensor, grad_end: Tensor) -> tuple[Tensor, ...]:
    """Gradients in the order of the inputs of `_Scan`."""
    x, dt, B, C, A, starts = saved
    groups, steps, together, batch, channels = x.shape
    size = len(A)
    rows = steps * together * batch
    matrix, column, line = (rows, size, channels), (rows, 1, size), (rows, 1, channels)
    grad_y = grad_y.contiguous()
    decay = x.new_empty(steps, together, batch, size, channels)
    h, g = torch.empty_like(decay), torch.empty_like(decay)  # states, and gradients of the loss by them
    passed = torch.empty_like(decay) if together > 1 else decay
    grad_input, grad_dt = torch.empty_like(x), torch.empty_like(dt)  # of dt x, and of dt in the decays
    grad_B, grad_C, grad_A = torch.empty_like(B), torch.empty_like(C), torch.zeros_like(A)
    coming = grad_end  # gradient by the last state of a chunk from all later tokens
    for group in range(groups - 1, -1, -1):
        first = starts[group]
        scaled = _decays_and_inputs(x[group], dt[group], B[group], A, decay, h)
        h[0].addcmul_(decay[0], first)
        _run(decay, h)
        torch.bmm(grad_y[group].view(line), h.view(matrix).mT, out=grad_C[group].view(column))

        torch.mul(C[group].unsqueeze(-1), grad_y[group].unsqueeze(-2), out=g)
        if together == 1:
            g[-1, 0].add_(coming)
        _run_back(decay, g)
        if together > 1:
            passed[-1] = 1
            *rest, after = passed.unbind()
            for now, factor in zip(reversed(rest), reversed(decay.unbind()), strict=False):
                after = torch.mul(after, factor, out=now)
            ends = torch.empty_like(first)
            for chunk in range(together - 1, -1, -1):
                ends[chunk] = coming
                coming = torch.addcmul(g[0, chunk], passed[0, chunk], coming).mul_(decay[0, chunk])
            g.addcmul_(passed, ends)
        torch.bmm(scaled.view(line), g.view(matrix).mT, out=grad_B[group].view(column))
        torch.bmm(B[group].view(column), g.view(matrix), out=grad_input[group].view(line))

        # By the exponents dt A: g_t exp(dt_t A) h_{t-1}.
        decay.mul_(g)
        if together == 1:
            coming = decay[0, 0].clone()
        decay[1:].mul_(h[:-1])
        decay[0].mul_(first)
        torch.sum(torch.mul(decay, A, out=h), -2, out=grad_dt[group])
        grad_A += decay.mul_(dt[group].unsqueeze(-2)).sum((0, 1, 2))
    grad_x = grad_input * dt
    return grad_x, grad_dt.addcmul_(grad_input, x), grad_B, grad_C, grad_A, coming


def _decays_and_inputs(x: Tensor, dt: Tensor, B: Tensor, A: Tensor, decay: Tensor, inputs: Tensor) -> Tensor:
    """Write exp(dt A) and dt B x of a group, and return dt x."""
    torch.mul(dt.unsqueeze(-2), A, out=decay).exp_()
    scaled = dt * x
    torch.mul(B.unsqueeze(-1), scaled.unsqueeze(-2), out=inputs)
    return scaled


def _run(decay: Tensor, h: Tensor) -> None:
    """h_t += decay_t h_{t-1}, in place along the first axis."""
    before, *rest = h.unbind()
    for now, factor in zip(rest, decay.unbind()[1:], strict=True):
        now.addcmul_(factor, before)
        before = now


def _run_back(decay: Tensor, g: Tensor) -> None:
    """g_t += decay_{t+1} g_{t+1}, in place along the first axis."""
    *rest, after = g.unbind()
    for now, factor in zip(reversed(rest), reversed(decay.unbind()), strict=False):
        now.addcmul_(factor, after)
        after = now


class MambaState(NamedTuple):
    """What a block remembers of a stream.

    Attributes:
        recent: (N, conv - 1, d) the last inputs of the convolution.
        scan: (N, d, n) state of the scan, at least float32.
    """

    recent: Tensor
    scan: Tensor


class MambaBlock(nn.Module):
    """Mamba: projection, causal convolution, selective scan and gate; output t depends on inputs up to t alone.

    Args:
        dim: D, channels in and out.
        state: n.
        conv: tokens that the convolution sees.
        expand: d = expand D channels in the scan.
        dt_rank: width of the bottleneck from which step sizes are made; None: D / 16, rounded up.

    Raises:
        ValueError: an argument below 1.

    Source: section 3.4 and figure 3; initial values of the reference implementation: A = -1 to -n in every channel,
    step sizes log-uniform from 0.001 to 0.1.
    """

    def __init__(self, dim: int, state: int = 16, conv: int = 4, expand: int = 2, dt_rank: int | None = None) -> None:
        super().__init__()
        dt_rank = -(-dim // 16) if dt_rank is None else dt_rank
        for name, value in {"dim": dim, "state": state, "conv": conv, "expand": expand, "dt_rank": dt_rank}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        inner = expand * dim
        self.state, self.dt_rank = state, dt_rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, conv, groups=inner)
        self.x_proj = nn.Linear(inner, dt_rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            dt = torch.empty(inner).uniform_(math.log(0.001), math.log(0.1)).exp_()
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, tokens: Tensor) -> Tensor:
        """Run over whole sequences, (N, L, D) to (N, L, D).

        Raises:
            ValueError: tokens of another shape.
        """
        return self.advance(tokens)[0]

    def advance(self, tokens: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Run over the next tokens of streams.

        Args:
            tokens: (N, L, D).
            state: what was returned for the tokens before; None: these are the first.

        Returns:
            (N, L, D) and the state behind the last token.

        Raises:
            ValueError: tokens or state of another shape.
        """
        dim, inner = self.in_proj.in_features, self.conv.in_channels
        if tokens.ndim != 3 or tokens.shape[2] != dim:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected (N, L, {dim})")
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        kept = self.conv.kernel_size[0] - 1
        if state is None:
            window = F.pad(x, (0, 0, kept, 0))
        else:
            expected = (len(x), kept, inner)
            if tuple(state.recent.shape) != expected:
                raise ValueError(f"state.recent has shape {tuple(state.recent.shape)}; expected {expected}")
            window = torch.cat([state.recent.to(x.dtype), x], dim=1)
        x = F.silu(self._convolve(window, tokens.shape[1]))
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.state, self.state], dim=-1)
        # The bias of the step sizes is added in float32: they are small and decide how long the model remembers.
        dt = F.softplus(F.linear(dt, self.dt_proj.weight).to(self.A_log.dtype) + self.dt_proj.bias)
        y, last = scan_with_state(
            x, dt, -torch.exp(self.A_log), B, C, self.D, state=None if state is None else state.scan
        )
        recent = window[:, window.shape[1] - kept :]
        return self.out_proj(y * F.silu(z)), MambaState(recent, last)

    def step(self, token: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Run over one more token of streams; takes the same time however long they are.

        Args:
            token: (N, D).
            state: what was returned for the token before; None: this is the first.

        Returns:
            (N, D) and the state behind the token.

        Raises:
            ValueError: a token or state of another shape.
        """
        if token.ndim != 2:
            raise ValueError(f"token has shape {tuple(token.shape)}; expected (N, {self.in_proj.in_features})")
        out, state = self.advance(token.unsqueeze(1), state)
        return out.squeeze(1), state

    def _convolve(self, window: Tensor, length: int) -> Tensor:
        """The causal convolution over (N, L + conv - 1, d), as a sum of shifted products: channels stay innermost."""
        weight = self.conv.weight.squeeze(1).to(window.dtype)
        bias = self.conv.bias
        assert bias is not None
        found = bias.to(window.dtype) + window[:, :length] * weight[:, 0]
        for shift in range(1, weight.shape[1]):
            found = torch.addcmul(found, window[:, shift : shift + length], weight[:, shift])
        return found
