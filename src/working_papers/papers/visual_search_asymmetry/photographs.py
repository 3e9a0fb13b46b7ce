"""The diets at the paper's scale: photographs as they are, and turned and bent like those of the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.data.folders import data_folder
from working_papers.data.image_folder import ImageFolder
from working_papers.nn.training import Precision, ShuffledBatches, fit
from working_papers.papers.visual_search_asymmetry.scenes import DIETS, centred

FOLDER = "imagenet100"  # train/<class>/*.JPEG and val/<class>/*.JPEG: a hundred classes of ImageNet
LOADED, SIDE = 256, 224
BATCH, LEARNING_RATE, WEIGHT_DECAY = 150, 1e-4, 1e-5
BULGE = 0.6  # how strongly the fish-eye bends; our choice


def load_photographs() -> tuple[ImageFolder, ImageFolder]:
    """Training and validation photographs, from WORKING_PAPERS_DATA.

    Raises:
        ValueError: they are not there, or a class lacks some; the message says what belongs where.
    """
    folder = data_folder(FOLDER, needs=("train", "val"))
    train = ImageFolder(folder / "train", LOADED)
    return train, ImageFolder(folder / "val", SIDE, classes=train.classes)


def fish_eye(images: Tensor, bulge: float = BULGE) -> Tensor:
    """Bend straight lines: magnify the middle and press the edges together.

    Args:
        images: [N, C, S, S].
        bulge: 0 leaves images as they are; a point at radius r (half the side is 1) is taken from r (1 + bulge r^2),
            scaled so that corners stay corners.

    Returns:
        Images of the same shape.
    """
    side = images.shape[-1]
    axis = (torch.arange(side, dtype=images.dtype, device=images.device) * 2 + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    factor = (1 + bulge * (x**2 + y**2)) / (1 + 2 * bulge)
    grid = torch.stack([x * factor, y * factor], dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def augmentation(diet: str) -> Callable[[tuple[Tensor, Tensor], torch.Generator], tuple[Tensor, Tensor]]:
    """Random crops and flips, after the diet's change: the quarter turn and the fish-eye that reverse it.

    Args:
        diet: "natural", "reversed", or "balanced", where each photograph is changed with probability one half.

    Returns:
        A function of a batch (images, labels) and a generator.
    """
    share = 1 - DIETS[diet].from_above

    def augment(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = batch
        flipped = torch.rand(len(images), generator=generator) < 0.5  # before the turn: left and right are natural
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        changed = torch.rand(len(images), generator=generator) < share
        images = torch.where(changed[:, None, None, None], fish_eye(images.rot90(1, (-2, -1))), images)
        top, left = torch.randint(LOADED - SIDE + 1, (2,), generator=generator).tolist()
        return images[..., top : top + SIDE, left : left + SIDE], labels

    return augment


def train_on_photographs(
    network: nn.Module,
    photographs: ImageFolder,
    diet: str,
    seed: int,
    epochs: int,
    device: str,
    progress: Callable[[float], None],
    batch: int = BATCH,
    checkpoint: Path | None = None,
) -> None:
    """Train a network with the paper's recipe, in place: AdamW, no schedule; it goes on from a checkpoint."""
    batches = ShuffledBatches(photographs, batch, seed, augmentation(diet))
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(centred(images)), labels)

    steps = epochs * batches.steps_per_epoch
    precision: Precision = "bfloat16" if device.startswith("cuda") else "float32"
    fit(
        network,
        batches,
        loss,
        optimizer,
        steps=steps,
        precision=precision,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )


@torch.no_grad()
def photograph_accuracy(network: nn.Module, photographs: ImageFolder, diet: str, device: str) -> float:
    """Share of photographs that a network names right; they are changed as in its diet, each by the fixed half."""
    network.to(device).eval()
    share, right = 1 - DIETS[diet].from_above, 0
    for start in range(0, len(photographs), BATCH):
        loaded = [photographs[each] for each in range(start, min(start + BATCH, len(photographs)))]
        images, labels = torch.stack([image for image, _ in loaded]), torch.tensor([label for _, label in loaded])
        changed = (torch.arange(len(images)) % 2 < 2 * share)[:, None, None, None]
        images = torch.where(changed, fish_eye(images.rot90(1, (-2, -1))), images)
        right += int((network(centred(images.to(device))).argmax(dim=1).cpu() == labels).sum())
    return right / len(photographs)
