"""Similarity of representations: what CKA is blind to, its two forms, its scale safety; dimension by participation."""

import pytest
import torch
from torch import Tensor

from working_papers.nn.similarity import linear_cka, participation_ratio
from working_papers.testing import assert_numerical_gradient, random_rotation


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_cka_of_a_representation_with_itself_is_one_whatever_rotation_scale_and_shift() -> None:
    a = gaussian(30, 6)
    rotation = random_rotation(6, seed=1, dtype=torch.float64)
    for other in (a, a @ rotation, 7.5 * a, a + gaussian(6, seed=2), -a, a[:, torch.randperm(6)]):
        torch.testing.assert_close(linear_cka(a, other), torch.tensor(1.0, dtype=torch.float64))


def test_cka_sees_general_linear_maps_and_is_symmetric() -> None:
    a, b = gaussian(30, 6), gaussian(30, 9, seed=1)
    stretched = a * torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert linear_cka(a, stretched) < 0.9
    torch.testing.assert_close(linear_cka(a, b), linear_cka(b, a))
    assert 0 <= linear_cka(a, b) <= 1


@pytest.mark.parametrize("shape", [(40, 3), (5, 300)], ids=["many inputs", "many features"])
def test_cka_equals_its_definition_by_centred_gram_matrices(shape: tuple[int, int]) -> None:
    n, p = shape
    a, b = gaussian(n, p), gaussian(n, p + 2, seed=1)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = h @ a @ a.mT @ h, h @ b @ b.mT @ h
    expected = (k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()
    torch.testing.assert_close(linear_cka(a, b), expected)


@pytest.mark.parametrize("factor", [1e-18, 1e18])
def test_cka_of_tiny_and_huge_float32_activations_is_finite(factor: float) -> None:
    a = gaussian(16, 4, dtype=torch.float32)
    torch.testing.assert_close(linear_cka(a * factor, a, eps=0.0), torch.tensor(1.0), rtol=1e-5, atol=0)


def test_cka_of_no_variation_is_zero_with_zero_gradient() -> None:
    still = torch.ones(8, 3, requires_grad=True)
    value = linear_cka(still, gaussian(8, 2, dtype=torch.float32))
    value.backward()
    assert value == 0 and still.grad is not None and not still.grad.any()


def test_cka_gradient_is_right_and_does_not_change_the_scale() -> None:
    b = gaussian(7, 3, seed=1)
    assert_numerical_gradient(lambda x: linear_cka(x, b), gaussian(7, 4))
    a = gaussian(7, 4).requires_grad_()
    linear_cka(a, b).backward()
    assert a.grad is not None and abs(float((a.grad * a.detach()).sum())) < 1e-12


def test_cka_flattens_what_follows_the_first_axis() -> None:
    a = gaussian(6, 2, 3, 4)
    torch.testing.assert_close(linear_cka(a, a.flatten(1)), torch.tensor(1.0, dtype=torch.float64))


def test_participation_ratio_counts_dimensions() -> None:
    line = gaussian(50, 1) @ gaussian(1, 8, seed=1)
    torch.testing.assert_close(participation_ratio(line), torch.tensor(1.0, dtype=torch.float64))
    q = torch.linalg.qr(gaussian(51, 8, seed=2) - gaussian(51, 8, seed=2).mean(0))[0]
    torch.testing.assert_close(
        participation_ratio(q - q.mean(0)), torch.tensor(8.0, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert participation_ratio(torch.ones(4, 3)) == 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"same inputs .* got shapes \(4, 2\) and \(5, 2\)"):
        linear_cka(torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="at least 2 inputs, got 1"):
        linear_cka(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least 2 inputs"):
        participation_ratio(torch.zeros(1, 2))
