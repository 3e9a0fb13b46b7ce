"""Checks of methods: symmetry, gradients, determinism, saving and loading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference allowed by default, relative to the size of the output."""


def random_rotation(
    dimension: int, *, seed: int = 0, reflect: bool = False, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A random orthogonal matrix.

    Args:
        dimension: number of rows and columns.
        seed: of the draw.
        reflect: whether the determinant is -1 instead of +1.
        dtype: of the result.

    Returns:
        matrix of shape [dimension, dimension].
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    if (torch.linalg.det(q) < 0) != reflect:
        q[:, 0] = -q[:, 0]
    rotation: Tensor = q.to(dtype)
    return rotation


def assert_equivariant(
    function: Map, x: Tensor, act_on_input: Map, act_on_output: Map, *, tolerance: float | None = None
) -> None:
    """Assert that `function(act_on_input(x))` equals `act_on_output(function(x))`.

    Args:
        function: the map under test.
        x: an input.
        act_on_input: the group element's action on inputs.
        act_on_output: its action on outputs.
        tolerance: largest difference relative to the output's largest entry; by default from the dtype.

    Raises:
        AssertionError: they differ by more; the message gives the difference.
    """
    with torch.no_grad():
        expected = act_on_output(function(x))
        got = function(act_on_input(x))
    _assert_close(got, expected, tolerance, "acting on the input is not acting on the output")


def assert_invariant(function: Map, x: Tensor, act_on_input: Map, *, tolerance: float | None = None) -> None:
    """Assert that `function` does not change when the group acts on its input."""
    assert_equivariant(function, x, act_on_input, lambda y: y, tolerance=tolerance)


def _assert_close(got: Tensor, expected: Tensor, tolerance: float | None, complaint: str) -> None:
    assert got.shape == expected.shape, f"{complaint}: shapes {tuple(got.shape)} and {tuple(expected.shape)}"
    limit = TOLERANCES[expected.dtype] if tolerance is None else tolerance
    scale = max(float(expected.abs().max()), 1e-12)
    difference = float((got - expected).abs().max()) / scale
    assert difference <= limit, f"{complaint}: they differ by {difference:.2e} of the output, allowed is {limit:.0e}"


def assert_gradients_reach_parameters(module: nn.Module, *inputs: Any, allow: Sequence[str] = ()) -> None:
    """Assert that every parameter gets a finite gradient that is not all zero.

    Args:
        module: called with the inputs; its output (a tensor or a sequence of them) is squared and summed.
        inputs: what it is called with.
        allow: names of parameters that may go without.
    """
    module.zero_grad()
    output = module(*inputs)
    tensors = [output] if isinstance(output, Tensor) else [item for item in output if isinstance(item, Tensor)]
    torch.stack([tensor.float().square().sum() for tensor in tensors]).sum().backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or name in allow:
            continue
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.abs().max() > 0, f"the gradient of {name} is zero everywhere"


def assert_numerical_gradient(function: Map, x: Tensor) -> None:
    """Assert that autograd's gradient is the numerical one (float64, `torch.autograd.gradcheck`)."""
    assert torch.autograd.gradcheck(function, (x.detach().double().requires_grad_(),))


def assert_deterministic(function: Callable[[], Tensor]) -> None:
    """Assert that two calls return the same bits."""
    first, second = function(), function()
    assert torch.equal(first, second), "two calls with the same seed differ"


def assert_state_dict_round_trip(module: nn.Module, fresh: nn.Module, *inputs: Any) -> None:
    """Assert that `fresh`, a module made the same way, computes the same after loading `module`'s state.

    The state goes through a deep copy, so sharing storage cannot hide a missing entry.
    """
    fresh.load_state_dict(copy.deepcopy(module.state_dict()))
    module.eval()
    fresh.eval()
    with torch.no_grad():
        _assert_close(fresh(*inputs), module(*inputs), 0.0, "the state dict does not carry the whole state")
