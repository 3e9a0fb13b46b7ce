"""What the study trains: the hypernetwork on streams of problems, and a U-Net on images of their solutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.nn.training import fit
from working_papers.papers.hypino.method import (
    HyperPINN,
    ImageEncoder,
    LinearPDE,
    ModulatedMLP,
    Points,
    Problems,
    WarmCosine,
    compress_source,
    grid_points,
    sample_problems,
    training_loss,
)


@dataclass(frozen=True)
class Family:
    """Which problems are drawn; the paper's by default.

    Attributes:
        grid: pixels a side.
        holes: most holes a problem.
        shapes: of holes.
        frequency: largest of the manufactured solutions.
        second_order: whether every operator has a second derivative.
        neumann: whether derivatives are prescribed on elliptic and parabolic problems.
        side: boundary samples on a side; None: twice the grid's pixels.
    """

    grid: int = 224
    holes: int = 3
    shapes: Sequence[str] = ("disk", "triangle", "rectangle")
    frequency: float = 10.0
    second_order: bool = False
    neumann: bool = True
    side: int | None = None

    def sample(self, count: int, generator: torch.Generator, *, supervised: float) -> Problems:
        """Draw problems, scaled to data of magnitude one."""
        return sample_problems(
            self.grid,
            count,
            generator,
            supervised=supervised,
            holes=self.holes,
            shapes=self.shapes,
            frequency=self.frequency,
            second_order=self.second_order,
            neumann=self.neumann,
            side=self.side,
        ).normalized()


@dataclass(frozen=True)
class Training:
    """Length of a training.

    Attributes:
        steps: of the optimiser.
        batch: problems a step.
        inside: points inside, a problem.
        edge: points on the boundary, a problem.
        lr: peak learning rate.
        chunk: problems drawn at a time.
        uses: how often each problem is trained on, with other points.
        warmup: share of steps in which the learning rate rises.
    """

    steps: int
    batch: int
    inside: int
    edge: int
    lr: float
    chunk: int = 512
    uses: int = 1
    warmup: float = 0.01


def small_hypernetwork(grid: int, generator: torch.Generator, *, tiny: bool = False) -> HyperPINN:
    """A hypernetwork that trains on a processor: convolutions, three stages, generated width 16 and two gates."""
    channels = (8, 12, 16) if tiny else (32, 64, 96)
    encoder = ImageEncoder(grid, channels, (1, 1, 1), (1, 1, 1), stem=8 if tiny else 32, block="convolution")
    return HyperPINN(encoder, ModulatedMLP(8 if tiny else 16, 2), heads=4, generator=generator)


def stream(family: Family, training: Training, seed: int, *, supervised: float) -> Callable[[int], Iterator[Problems]]:
    """Endless fresh batches, the same for the same seed from whatever step one begins."""

    def batches(first: int) -> Iterator[Problems]:
        different = max(1, training.chunk // training.batch)
        per_chunk = different * training.uses
        number = first // per_chunk
        skipped = first % per_chunk
        while True:
            generator = torch.Generator().manual_seed(seed + 7919 * number)
            drawn = family.sample(different * training.batch, generator, supervised=supervised)
            for k in range(skipped, per_chunk):
                start = k % different * training.batch
                yield drawn[slice(start, start + training.batch)]
            number, skipped = number + 1, 0

    return batches


def train_hypernetwork(
    model: HyperPINN,
    family: Family,
    training: Training,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Train as the paper does: known solutions and bare equations by halves, all five losses.

    Args:
        model: trained in place.
        family: of problems.
        training: how long.
        seed: of problems and points.
        device: where to.
        checkpoint: see `working_papers.nn.training.fit`.
        progress: called with the fraction done.

    Returns:
        Losses of the steps.
    """
    generator = torch.Generator().manual_seed(seed + 1)

    def loss(net: nn.Module, problems: Problems) -> Tensor:
        points = Points.sample(problems, training.inside, training.edge, generator)
        return training_loss(net, problems.to(device), points.to(device))  # type: ignore[arg-type]

    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=1e-4)
    return fit(
        model,
        stream(family, training, seed, supervised=0.5),
        loss,
        optimizer,
        WarmCosine(optimizer, training.steps, warmup=training.warmup),
        steps=training.steps,
        device=device,
        checkpoint=checkpoint,
        clip=1.0,
        progress=progress,
    )


class UNet(nn.Module):
    """Images and coefficients of an equation to its solution on the grid.

    Args:
        widths: channels of each level, from fine to coarse.
    """

    def __init__(self, widths: Sequence[int] = (12, 24, 48, 96, 192)) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.GroupNorm(1, outputs),
                nn.GELU(),
                nn.Conv2d(outputs, outputs, 3, padding=1),
                nn.GELU(),
            )

        self.down = nn.ModuleList(block(i, o) for i, o in zip((12, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(block(coarse + fine, fine) for coarse, fine in pairs)
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, pde: LinearPDE) -> Tensor:
        """(N, G, G)."""
        pde = pde.batch()
        images = pde.images
        n, _, grid, _ = images.shape
        place = grid_points(grid, dtype=images.dtype, device=images.device).movedim(-1, 0).expand(n, -1, -1, -1)
        x = torch.cat(
            [
                images[:, :4],
                compress_source(images[:, 4:]),
                pde.coefficients[..., None, None].expand(-1, -1, grid, grid),
                place,
            ],
            dim=1,
        )
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        result: Tensor = self.out(x)[:, 0]
        return result


def train_unet(
    model: UNet,
    family: Family,
    training: Training,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Train on solutions at all pixels of the domain; all problems are supervised, for it needs their values."""
    pixels = grid_points(family.grid).reshape(-1, 2)

    def loss(net: nn.Module, problems: Problems) -> Tensor:
        wanted = problems.solution(pixels).u.unflatten(1, (family.grid, family.grid)).to(device)
        pde = problems.pde.to(device)
        assert pde.domain is not None
        return (F.huber_loss(net(pde), wanted, reduction="none") * pde.domain).sum() / pde.domain.sum()

    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=1e-4)
    return fit(
        model,
        stream(family, training, seed, supervised=1.0),
        loss,
        optimizer,
        WarmCosine(optimizer, training.steps, warmup=training.warmup),
        steps=training.steps,
        device=device,
        checkpoint=checkpoint,
        clip=1.0,
        progress=progress,
    )
