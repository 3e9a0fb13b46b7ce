"""The helpers for tests of methods: each passes what is right and fails what is wrong."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from working_papers import testing


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
@pytest.mark.parametrize("reflect", [False, True])
def test_random_rotations_are_orthogonal_with_the_determinant_asked_for(dimension: int, reflect: bool) -> None:
    matrix = testing.random_rotation(dimension, seed=3, reflect=reflect)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(dimension, dtype=torch.float64))
    assert float(torch.linalg.det(matrix)) == pytest.approx(-1.0 if reflect else 1.0)
    assert not torch.equal(matrix, testing.random_rotation(dimension, seed=4, reflect=reflect)) or dimension == 1
    assert testing.random_rotation(dimension, dtype=torch.float32).dtype == torch.float32


def test_equivariance() -> None:
    rotation = testing.random_rotation(3)
    points = normal(10, 3)

    def turn(x: Tensor) -> Tensor:
        return x @ rotation.T

    testing.assert_equivariant(lambda x: x * x.norm(dim=-1, keepdim=True), points, turn, turn)
    testing.assert_invariant(lambda x: x.norm(dim=-1), points, turn)
    with pytest.raises(AssertionError, match="acting on the input is not acting on the output: they differ by"):
        testing.assert_equivariant(lambda x: x + 1, points, turn, turn)
    with pytest.raises(AssertionError, match="they differ"):
        testing.assert_invariant(lambda x: x[:, 0], points, turn)
    with pytest.raises(AssertionError, match="shapes"):
        testing.assert_equivariant(lambda x: x, points, lambda x: x, lambda x: x[:5])


def test_tolerance_is_relative_to_the_output_and_follows_the_dtype() -> None:
    points = normal(10, 3)
    for scale in (1e-6, 1e6):
        testing.assert_invariant(lambda x, scale=scale: scale * x.sum(), points.float(), lambda x: x.flip(0))  # type: ignore[misc]
    with pytest.raises(AssertionError):
        testing.assert_invariant(lambda x: x.sum(), points, lambda x: x * (1 + 1e-6))
    testing.assert_invariant(lambda x: x.sum(), points, lambda x: x * (1 + 1e-6), tolerance=1e-5)


def test_gradients_reach_parameters() -> None:
    class Deaf(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).detach() + self.bias

    torch.manual_seed(0)
    testing.assert_gradients_reach_parameters(nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(AssertionError, match="no gradient reaches weight"):
        testing.assert_gradients_reach_parameters(Deaf(3, 2), torch.ones(4, 3))
    testing.assert_gradients_reach_parameters(Deaf(3, 2), torch.ones(4, 3), allow=["weight"])
    with pytest.raises(AssertionError, match="the gradient of weight is zero everywhere"):
        testing.assert_gradients_reach_parameters(nn.Linear(3, 2), torch.zeros(4, 3))


def test_numerical_gradients() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.square()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            return gradients[0]

    testing.assert_numerical_gradient(torch.sin, normal(4))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        testing.assert_numerical_gradient(Wrong.apply, normal(4))


def test_determinism() -> None:
    counter = itertools.count()
    testing.assert_deterministic(lambda: normal(3))
    with pytest.raises(AssertionError, match="two calls with the same seed differ"):
        testing.assert_deterministic(lambda: torch.tensor(next(counter)))


def test_state_dict_round_trip() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.hidden = torch.rand(3)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + self.hidden

    torch.manual_seed(0)
    testing.assert_state_dict_round_trip(nn.Linear(3, 2), nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(AssertionError, match="the state dict does not carry the whole state"):
        testing.assert_state_dict_round_trip(Forgetful(), Forgetful(), torch.ones(4, 3))
