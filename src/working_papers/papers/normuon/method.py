"""NorMuon: Making Muon more efficient and scalable. https://arxiv.org/abs/2510.05491

Muon replaces the momentum of a weight matrix by an almost orthogonal matrix, which evens out its singular
values but leaves some rows, that is some output neurons, with far larger steps than others. NorMuon keeps
one running mean square per neuron, divides each row by its root, and restores the overall length of the
step.

Where this differs from the official code (github.com/zichongli5/NorMuon):
- a convolution kernel is flattened to (out, in * height * width) for the row statistics and the shape
  factor as well; the official code un-flattens first, and so takes the last kernel axis for the neuron's
  inputs;
- a parameter without gradient is left alone (there its momentum still moves it), and gradients are never
  written to;
- Newton-Schulz runs in bfloat16 on CUDA only; the result is cast back before the row statistics are taken;
- parameters of one shape share one batched Newton-Schulz call; no process group is needed.
The order of operations, the defaults and the Nesterov form (absent from the paper's algorithm) are the
official code's.

Letters: m = rows (output neurons), n = columns (inputs of a neuron), `...` = any number of batch axes.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

Scale = Literal["muon", "rms"]

# Muon's quintic: steepest at zero, at the price of singular values that end near 1, not at it (Muon's
# official code).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_GUARD = 1e-7  # added to the Frobenius norm before Newton-Schulz; official code
RMS = 0.2  # root mean square entry of a step of scale "rms", about that of Adam; the paper's algorithm
# Our choice: up to this many numbers go through Newton-Schulz in one call, which bounds the scratch memory
# (a few times 256 MiB in float32); matrices near this size keep a GPU busy one at a time.
BATCH_NUMBERS = 2**26


def newton_schulz(matrix: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """Push all singular values of a matrix towards one and keep its singular vectors.

    With the default coefficients and 5 steps, singular values above 1 % of the Frobenius norm land in
    [0.68, 1.14]; smaller ones stay below. The result does not depend on the scale of the input (up to a
    guard of 1e-7 on its norm).

    Args:
        matrix: (..., m, n), floating point; the work is done in its dtype.
        steps: number of iterations, each three matrix products with the smaller of m and n as inner size.
        coefficients: a, b, c of the polynomial a x + b x^3 + c x^5 that each step applies to the singular
            values.

    Returns:
        (..., m, n), dtype and device of the input.

    Raises:
        ValueError: the input has fewer than two axes or is not floating point, or `steps` is negative.

    Source: Algorithm 1 of the paper names it; polynomial and guard as in the official code.
    """
    if matrix.ndim < 2 or not matrix.is_floating_point():
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)} and dtype {matrix.dtype}; expected (..., m, n), floating point"
        )
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected 0 or more")
    a, b, c = coefficients
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix  # the Gram matrix below is then the smaller of the two
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + NORM_GUARD)
    shape = x.shape
    x = x.unsqueeze(0).flatten(0, -3)  # one batch axis, as baddbmm needs it
    for _ in range(steps):  # x <- a x + (b gram + c gram gram) x, sums and products fused
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.view(shape).mT if tall else x.view(shape)
    return result


def normalize_neurons(
    orthogonal: Tensor, second_moment: Tensor, *, beta2: float = 0.95, eps: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Divide each row by the root of its running mean square, then restore the Frobenius norm.

    The running mean square is not corrected for its start at zero: the norm is restored anyway, so a factor
    that all rows share has no effect. A row of zeros stays zero.

    Args:
        orthogonal: (..., m, n), the orthogonalised momentum O.
        second_moment: (..., m), the running mean squares v; zeros at the start. Not written to.
        beta2: how much of v is kept, in [0, 1).
        eps: added to both divisors.

    Returns:
        The normalised matrix (..., m, n), of the same Frobenius norm as `orthogonal`, and the new v (..., m).

    Source: Algorithm 1; the restored norm is the official code's ("muon" in `rescale`).
    """
    second_moment = torch.lerp(second_moment, orthogonal.square().mean(dim=-1), 1 - beta2)
    normalized = orthogonal / (second_moment.sqrt() + eps).unsqueeze(-1)
    before = torch.linalg.matrix_norm(orthogonal, keepdim=True)
    after = torch.linalg.matrix_norm(normalized, keepdim=True)
    return normalized * (before / (after + eps)), second_moment


def rescale(update: Tensor, scale: Scale = "muon", *, eps: float = 1e-10) -> Tensor:
    """Give a step its length for its shape.

    Args:
        update: (..., m, n), the orthogonalised (and normalised) matrix.
        scale: "muon" multiplies by sqrt(max(1, m / n)), as Muon and the official code do. "rms" makes the
            root mean square entry 0.2, so that learning rates of Adam carry over, as the paper's algorithm
            does.
        eps: added to the norm that "rms" divides by.

    Returns:
        (..., m, n).

    Raises:
        ValueError: `scale` is neither of the two.
    """
    m, n = update.shape[-2:]
    if scale == "muon":
        return update * math.sqrt(max(1.0, m / n))
    if scale == "rms":
        norm: Tensor = torch.linalg.matrix_norm(update, keepdim=True)
        return update * (RMS * math.sqrt(m * n) / (norm + eps))
    raise ValueError(f"scale is {scale!r}; expected 'muon' or 'rms'")


class NorMuon(Optimizer):
    """Optimiser for a network's hidden weight matrices: orthogonalised momentum, normalised per neuron.

    Not for embeddings, output heads, biases and norms: give those to AdamW (the official code takes lr 3e-4
    and betas (0.9, 0.95) for them). `split_parameters` sorts a model's parameters into the two groups. A
    parameter with more than two axes is treated as the matrix (first axis, all others). A weight that
    stacks several matrices, such as a fused query-key-value projection, is orthogonalised as one; separate
    parameters are closer to the method.

    State per (m, n) matrix: m n + m numbers, against 2 m n for Adam.

    Args:
        params: parameters or parameter groups, each with at least two axes.
        lr: learning rate; a float or a tensor of one element. With `scale="muon"` a step has a spectral
            norm of about lr * sqrt(max(1, m / n)); with "rms" a root mean square entry of 0.2 lr (then
            start from Adam's rate).
        momentum: how much of the running mean of gradients is kept (beta1), in [0, 1).
        beta2: how much of the neurons' running mean square is kept, in [0, 1).
        weight_decay: decoupled; each step multiplies weights by 1 - lr * weight_decay.
        nesterov: mix the current gradient into the momentum once more, as the official code does; the paper's
            algorithm is the one without.
        ns_steps: Newton-Schulz iterations.
        eps: added to the divisors of the normalisation.
        scale: length of a step, see `rescale`.
        normalize: False leaves the normalisation out, which is Muon.
        ns_dtype: dtype of the Newton-Schulz iteration. None: bfloat16 for parameters on CUDA that are not
            float64, otherwise the parameters' dtype, but at least float32. On a processor with bfloat16
            instructions, bfloat16 takes about half the time; steps then differ by a few per cent.

    Raises:
        ValueError: a hyper-parameter is out of range, or a parameter is empty, complex or has fewer than
        two axes.

    Source: Algorithm 1 of the paper; where the official code differs, the module's docstring says which is
    followed.

    Example:
        >>> matrices, rest = split_parameters(model)
        >>> optimizers = [NorMuon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=3e-4, betas=(0.9, 0.95))]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        ns_steps: int = 5,
        eps: float = 1e-10,
        scale: Scale = "muon",
        normalize: bool = True,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "eps": eps,
            "scale": scale,
            "normalize": normalize,
            "ns_dtype": ns_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; what it does not set takes the optimiser's defaults.

        Raises:
            ValueError: as for the constructor; the optimiser is then left as it was.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; see `torch.optim.Optimizer.load_state_dict`.

        The base class casts all state to the dtype of its parameter. The neurons' mean squares are at least
        float32, and are taken over as they were saved, so that a resumed run of bfloat16 parameters is the
        same run.
        """
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(indices, params, strict=True):
            saved = state_dict["state"].get(index, {}).get("second_moment")
            if saved is not None:
                second_moment = saved.detach().to(device=p.device, dtype=_at_least_float32(p.dtype), copy=True)
                self.state[p]["second_moment"] = second_moment

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters whose gradient is None are skipped.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            ValueError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same_shape: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(f"a gradient has layout {p.grad.layout}; expected a dense one (torch.strided)")
                same_shape[p.device, p.dtype, len(p), p.numel()].append(p)
            for params in same_shape.values():
                size = max(1, BATCH_NUMBERS // params[0].numel())
                for first in range(0, len(params), size):
                    self._step_together(params[first : first + size], group)
        return loss

    def _step_together(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Step parameters that are one shape, dtype and device once flattened to (m, n)."""
        dtype = _at_least_float32(params[0].dtype)
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            if group["normalize"] and "second_moment" not in state:
                state["second_moment"] = torch.zeros(len(p), dtype=dtype, device=p.device)
        gradients = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        direction = torch.stack([d.flatten(1) for d in directions])  # (batch, m, n)

        ns_dtype = group["ns_dtype"]
        if ns_dtype is None:
            on_cuda = direction.device.type == "cuda" and dtype != torch.float64
            ns_dtype = torch.bfloat16 if on_cuda else dtype
        update = newton_schulz(direction.to(ns_dtype), group["ns_steps"]).to(dtype)
        if group["normalize"]:
            second_moments = [self.state[p]["second_moment"] for p in params]
            update, second_moment = normalize_neurons(
                update, torch.stack(second_moments), beta2=group["beta2"], eps=group["eps"]
            )
            torch._foreach_copy_(second_moments, second_moment.unbind())
        update = (rescale(update, group["scale"], eps=group["eps"]) * -group["lr"]).to(params[0].dtype)

        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, [u.reshape(p.shape) for u, p in zip(update, params, strict=True)])


def split_parameters(
    model: nn.Module, exclude: Iterable[str] = ("embed", "unembed", "head")
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Sort a model's trainable parameters into hidden matrices, for NorMuon, and everything else, for AdamW.

    A hidden matrix has at least two axes, is at least 2 by 2 when flattened to (first axis, all others),
    belongs to no embedding module, and has no excluded word in its name. A parameter that is shared, such
    as a head tied to the embedding, is a hidden matrix only if it is one under each of its names.

    Args:
        model: any module.
        exclude: beginnings of words, in lower case. Names are cut into words at dots and underscores:
            "head" excludes `lm_head.weight` and `heads.0.weight`, not `multihead_attention.in_proj_weight`.

    Returns:
        The hidden matrices and the other parameters, each in the order of `model.parameters()`.

    Raises:
        ValueError: `exclude` is a single string.
    """
    if isinstance(exclude, str):
        raise ValueError(f"exclude is the string {exclude!r}; expected several, such as ({exclude!r},)")
    beginnings = tuple(exclude)
    elsewhere: set[nn.Parameter] = set()
    for module_name, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            words = re.split(r"[._]", f"{module_name}.{name}".lower())
            is_matrix = p.ndim >= 2 and len(p) > 1 and p.numel() > len(p)
            if (
                not is_matrix
                or isinstance(module, nn.Embedding | nn.EmbeddingBag)
                or any(word.startswith(beginnings) for word in words)
            ):
                elsewhere.add(p)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if p not in elsewhere], [p for p in trainable if p in elsewhere]


def row_norm_dispersion(update: Tensor) -> float:
    """Standard deviation of a matrix's row norms divided by their mean: zero if all neurons move equally.

    Args:
        update: (m, n), or (m, any further axes), which are flattened.

    Returns:
        A number of 0 or more, without unit; population standard deviation.

    Raises:
        ValueError: fewer than two axes, or all rows are zero.
    """
    if update.ndim < 2:
        raise ValueError(f"update has shape {tuple(update.shape)}; expected at least two axes")
    norms = torch.linalg.vector_norm(update.flatten(1).to(torch.float64), dim=1)
    mean = float(norms.mean())
    if not mean > 0:
        raise ValueError(f"update has a mean row norm of {mean}; expected a matrix that is not zero")
    return float(norms.std(correction=0)) / mean


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for the first hyper-parameter or parameter of a group that cannot be used."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr is a tensor of shape {tuple(lr.shape)}; expected one element")
    for name in ("lr", "weight_decay", "eps"):
        if not 0 <= group[name] < math.inf:
            raise ValueError(f"{name} is {group[name]}; expected a finite number of 0 or more")
    for name in ("momentum", "beta2"):
        if not 0 <= group[name] < 1:
            raise ValueError(f"{name} is {group[name]}; expected a number in [0, 1)")
    if group["ns_steps"] < 1:
        raise ValueError(f"ns_steps is {group['ns_steps']}; expected 1 or more")
    if group["scale"] not in ("muon", "rms"):
        raise ValueError(f"scale is {group['scale']!r}; expected 'muon' or 'rms'")
    if group["ns_dtype"] is not None and not group["ns_dtype"].is_floating_point:
        raise ValueError(f"ns_dtype is {group['ns_dtype']}; expected a floating-point dtype or None")
    for p in group["params"]:
        if p.ndim < 2:
            raise ValueError(
                f"params holds a tensor of shape {tuple(p.shape)}; expected at least two axes "
                "(give biases, norms and other vectors to AdamW; split_parameters sorts them)"
            )
        if not p.is_floating_point() or p.numel() == 0:
            raise ValueError(
                f"params holds a tensor of shape {tuple(p.shape)} and dtype {p.dtype}; "
                "expected a real floating-point one that is not empty"
            )
