"""Convolutional equilibrium networks: 3 x 3 kernels, softmax pooling, feedback through kernels of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.jacobian_homeostasis.method._activations import Activation, softmax_pool, upsample
from working_papers.papers.jacobian_homeostasis.method._model import Drive, EquilibriumModel, normal_parameter


class ConvEquilibriumNet(EquilibriumModel):
    """Blocks of feature maps; each is driven by the pooled convolution of the one below and by the one above.

    Upwards: pool(K ∗ a_low + b). Downwards: the gradient of Σ pool(K' ∗ a_low) · a_high by a_low, with a kernel K' of
    its own, so that K' = K makes the whole Jacobian symmetric. Every stage halves the image; the last one has no
    padding and ends at one pixel.

    Args:
        channels: of each block; (128, 256, 512, 512) in the paper.
        classes: number of classes; None for the squared loss on the last block.
        in_channels: of the images.
        image_size: height and width of the images, 4 · 2^(blocks − 1): 32 for four blocks, 8 for two.
        feedback: "independent" or "symmetric".
        angle: in degrees, where independent kernels start, as in `layered`; the paper's runs start at 0.
        activation: "dsilu", as in the paper, "sigmoid4" or an elementwise function.
        generator: source of randomness, on the CPU.
        dtype: of the parameters.

    Shapes:
        x (B, in_channels, image_size, image_size); states (..., B, D).

    Raises:
        ValueError: sizes that do not fit, or another feedback.

    Source: the paper's CIFAR and ImageNet network; official code `models/vfs.py`, whose feedback takes no complex
    numbers, so that there only N ≤ 2 runs; ours does, through the closed form of the pooling's derivative.
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 512, 512),
        classes: int | None = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        feedback: Literal["independent", "symmetric"] = "independent",
        angle: float = 0.0,
        activation: str | Activation = "dsilu",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels is {tuple(channels)}; expected two positive numbers or more")
        if image_size != 4 * 2 ** (len(channels) - 1):
            raise ValueError(
                f"image_size is {image_size}; expected {4 * 2 ** (len(channels) - 1)} for {len(channels)} blocks"
            )
        if feedback not in ("independent", "symmetric"):
            raise ValueError(f"feedback is {feedback!r}; expected 'independent' or 'symmetric'")
        names = [f"layer{k + 1}" for k in range(len(channels) - 1)] + ["output"]
        sides = [image_size // 2 ** (k + 1) for k in range(len(channels) - 1)] + [1]
        shapes = {name: (c, s, s) for name, c, s in zip(names, channels, sides, strict=True)}
        widths = (in_channels, *channels)
        kernels = [
            normal_parameter((high, low, 3, 3), 9 * low, generator, dtype)
            for low, high in zip(widths, channels, strict=False)
        ]
        back: list[nn.Parameter] = []
        if feedback == "independent":
            sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
            for kernel in kernels[1:]:
                own = normal_parameter(tuple(kernel.shape), 9 * kernel.shape[1], generator, dtype)
                back.append(nn.Parameter((sine * own + cosine * kernel).detach()))
        super().__init__(shapes, classes=classes, activation=activation, generator=generator, dtype=dtype)
        self.in_channels, self.image_size = in_channels, image_size
        self.kernels = nn.ParameterList(kernels)
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(c, dtype=dtype)) for c in channels])
        self.feedback_kernels = nn.ParameterList(back)

    def drive_from(self, x: Tensor) -> Drive:
        """Upward and downward drives of all blocks; see `EquilibriumModel.drive_from`.

        Args:
            x: (B, in_channels, image_size, image_size).
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {', '.join(map(str, expected))})")
        from_input = softmax_pool(self._up(0, x))[0]
        backwards = list(self.feedback_kernels) or list(self.kernels)[1:]

        def drive(a: Tensor) -> Tensor:
            blocks = [block.flatten(0, -4) for block in self.split(a).values()]  # (all samples, C, H, W)
            samples = blocks[0].shape[0]
            first = from_input.expand(*a.shape[:-1], *from_input.shape[1:]).flatten(0, -4)
            drives = [first, *(softmax_pool(self._up(k, low))[0] for k, low in enumerate(blocks[:-1], 1))]
            for k, (low, high) in enumerate(pairwise(blocks)):
                _, slope = softmax_pool(_convolve(low, backwards[k], self._padding(k + 1)))
                down = slope * upsample(high)
                drives[k] = drives[k] + _convolve(down, backwards[k], self._padding(k + 1), transposed=True)
            return torch.cat([each.reshape(samples, -1) for each in drives], dim=-1).reshape(a.shape)

        return drive

    def _padding(self, k: int) -> int:
        return 0 if k == len(self.kernels) - 1 else 1

    def _up(self, k: int, low: Tensor) -> Tensor:
        bias: Tensor = self.biases[k][:, None, None]
        return _convolve(low, self.kernels[k], self._padding(k)) + bias

    def _batch(self, x: Tensor) -> int:
        return x.shape[0]

    def weight_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Kernels of each upward and downward connection, which lie in the same layout."""
        forwards: list[Tensor] = list(self.kernels)[1:]
        return list(zip(forwards, list(self.feedback_kernels) or forwards, strict=True))


def _convolve(z: Tensor, kernel: Tensor, padding: int, *, transposed: bool = False) -> Tensor:
    """A real or complex batch with a real kernel."""
    convolve = F.conv_transpose2d if transposed else F.conv2d
    if not z.is_complex():
        plain: Tensor = convolve(z, kernel, padding=padding)
        return plain
    real, imaginary = convolve(torch.cat([z.real, z.imag]), kernel, padding=padding).chunk(2)
    return torch.complex(real, imaginary)
