"""Arc-cosine kernels against their integrals and known values."""

import math

import pytest
import torch

from working_papers.nn.arc_cosine import relu_kernel, relu_step_kernel


def test_known_values() -> None:
    cosine = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(relu_step_kernel(cosine), torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64))
    torch.testing.assert_close(relu_kernel(cosine), torch.tensor([0.5, 1 / (2 * math.pi), 0.0], dtype=torch.float64))


def test_kernels_are_the_expectations_that_they_name() -> None:
    generator = torch.Generator().manual_seed(0)
    u, noise = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    for cosine in (-0.7, 0.2, 0.9):
        v = cosine * u + math.sqrt(1 - cosine**2) * noise
        at = torch.tensor(cosine, dtype=torch.float64)
        assert abs(((u > 0) & (v > 0)).double().mean() - relu_step_kernel(at)) < 0.004
        assert abs((u.relu() * v.relu()).mean() - relu_kernel(at)) < 0.006


def test_the_slope_of_the_relu_kernel_is_the_step_kernel() -> None:
    cosine = torch.linspace(-0.95, 0.95, 9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(relu_kernel(cosine).sum(), cosine)
    torch.testing.assert_close(slope, relu_step_kernel(cosine.detach()))


def test_rounding_beyond_one_is_clamped_and_nonsense_refused() -> None:
    assert relu_kernel(torch.tensor(1 + 1e-9, dtype=torch.float64)) == 0.5
    with pytest.raises(ValueError, match=r"cosine must lie in \[-1, 1\], got 1.5"):
        relu_kernel(torch.tensor(1.5))
    with pytest.raises(ValueError, match="floating-point"):
        relu_step_kernel(torch.tensor(1))
