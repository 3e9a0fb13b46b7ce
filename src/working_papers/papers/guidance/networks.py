"""The targets and guides that are compared, their data, and the loop that trains them and watches test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from working_papers.bench import Scale
from working_papers.data.digits import LabelledImages, load_digits
from working_papers.data.folders import data_folder
from working_papers.data.image_folder import ImageFolder
from working_papers.nn.resnet import resnet18
from working_papers.nn.training import ShuffledBatches
from working_papers.papers.guidance.method import Guidance

Images = LabelledImages | ImageFolder
WIDE_LAYERS = 3
CONVOLUTIONS = ((16, 1), (16, 2), (32, 1), (32, 1), (32, 1))  # channels and strides of the guide for digits


@dataclass(frozen=True)
class Size:
    """How large networks are and how long they are trained.

    Attributes:
        images: training images; 0 for all.
        batch: its size.
        depth: hidden layers of the deep target.
        deep: widths of its first and of its other hidden layers.
        wide: width of the wide target's hidden layers.
        deep_steps: of training the deep target.
        wide_steps: of training the wide one.
        guide_steps: of training the guide.
        early: steps of the arm that is guided at the start only.
        looks: times that test images are looked at, at equal distances.
    """

    images: int
    batch: int
    depth: int
    deep: tuple[int, int]
    wide: int
    deep_steps: int
    wide_steps: int
    guide_steps: int
    early: int
    looks: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale."""
        return scale.choose(
            smoke=cls(64, 32, 3, (8, 8), 8, 2, 2, 1, 1, 1),
            laptop=cls(256, 128, 32, (64, 64), 256, 320, 200, 150, 50, 20),
            paper=cls(0, 256, 48, (2048, 1024), 8192, 500_000, 500_000, 450_000, 300, 100),
        )


def load_images(scale: Scale) -> tuple[Images, Images]:
    """Training and test images: digits, at paper scale ImageNet in the folders `train` and `val` of `imagenet`."""
    if scale is Scale.PAPER:
        root = data_folder("imagenet", needs=("train", "val"))
        train = ImageFolder(root / "train", 224)
        return train, ImageFolder(root / "val", 224, classes=train.classes)
    train_digits, test = load_digits()
    count = Size.of(scale).images
    return LabelledImages(train_digits.images[:count], train_digits.labels[:count]), test


def shuffled_batches(data: Images, size: int, seed: int) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Endless batches for `fit`; images that are in memory are picked there, which is much faster."""
    if isinstance(data, ImageFolder):
        return ShuffledBatches(data, size, seed, workers=8)
    generator = torch.Generator().manual_seed(seed)

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(data), generator=generator)
            for picked in order[: len(data) // size * size].split(size):
                yield data.images[picked], data.labels[picked]

    return batches


def in_order(data: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, a few at a time."""
    if isinstance(data, ImageFolder):
        yield from DataLoader(data, batch_size=256, num_workers=8)
    else:
        yield from zip(data.images.split(1024), data.labels.split(1024), strict=True)


def with_wrong_labels(data: Images, share: float, seed: int) -> Images:
    """Images in memory with a share of the labels wrong, so that learning them by heart does harm."""
    if isinstance(data, ImageFolder):
        return data
    generator = torch.Generator().manual_seed(seed)
    classes = int(data.labels.max()) + 1
    wrong = torch.rand(len(data), generator=generator) < share
    shift = torch.randint(1, classes, (len(data),), generator=generator)
    return LabelledImages(data.images, torch.where(wrong, (data.labels + shift) % classes, data.labels))


def some_images(data: Images, count: int) -> Tensor:
    """Images (count, C, H, W), drawn evenly over the whole set, which may be sorted by class."""
    places = torch.linspace(0, len(data) - 1, count).long()
    if isinstance(data, ImageFolder):
        return torch.stack([data[int(place)][0] for place in places])
    return data.images[places]


def fully_connected(inputs: int, widths: Sequence[int], classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with batch norm, ReLU and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, width in zip((inputs, *widths), widths, strict=False):
        block = nn.Sequential(nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
        layers.append(block)
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def make_target(which: str, scale: Scale, inputs: int, classes: int) -> nn.Sequential:
    """The deep or the wide fully connected target."""
    size = Size.of(scale)
    if which == "wide":
        return fully_connected(inputs, [size.wide] * WIDE_LAYERS, classes)
    first, others = size.deep
    return fully_connected(inputs, [first] + [others] * (size.depth - 1), classes, dropout=0.1)


def convolutional_guide(scale: Scale, classes: int) -> nn.Module:
    """Five convolutions and pooling, at paper scale ResNet-18."""
    if scale is Scale.PAPER:
        return resnet18(classes)
    layers: list[nn.Module] = []
    channels = 1
    for width, stride in CONVOLUTIONS:
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def connected_guide(scale: Scale, inputs: int, classes: int) -> nn.Module:
    """Fully connected, with as many compared layers as the convolutional guide, so that weights of arms agree."""
    layers = 20 if scale is Scale.PAPER else len(CONVOLUTIONS) + 1
    return fully_connected(inputs, [Size.of(scale).deep[1]] * layers, classes)


class Watched(nn.Module):
    """A guided target whose forward pass is its loss, and which looks at test images every so often.

    Args:
        guidance: of the target; weight 0 for none.
        test: images that are looked at.
        steps: of the whole training.
        looks: times they are looked at, the end included.
        shuffled: whether the guide gets the images of the batch in another order than the target.
    """

    looked: Tensor

    def __init__(self, guidance: Guidance, test: Images, steps: int, looks: int, *, shuffled: bool = False) -> None:
        super().__init__()
        self.guidance = guidance
        self.shuffled = shuffled
        self._test = test
        self._every = max(1, steps // looks)
        # A buffer, so that it is part of checkpoints.
        self.register_buffer("looked", torch.full((steps // self._every, 2), torch.nan, dtype=torch.float64))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the task and of the alignment."""
        self.look()
        others = images.roll(1, 0) if self.shuffled else None  # batches are shuffled: the next image is any image
        logits, alignment = self.guidance(images, guide_inputs=others)
        result: Tensor = nn.functional.cross_entropy(logits, labels) + alignment
        return result

    def look(self) -> None:
        """Note loss and accuracy on test images if it is time."""
        step = self.guidance.step
        if step and step % self._every == 0 and step // self._every <= len(self.looked):
            self.looked[step // self._every - 1] = torch.tensor(evaluate(self.guidance.target, self._test)).to(
                self.looked
            )


@torch.no_grad()
def evaluate(model: nn.Module, data: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a model in eval mode; its mode is put back."""
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    loss = right = 0.0
    for images, labels in in_order(data):
        logits, truth = model(images.to(device)), labels.to(device)
        loss += float(nn.functional.cross_entropy(logits, truth, reduction="sum"))
        right += float((logits.argmax(dim=1) == truth).sum())
    model.train(training)
    return loss / len(data), right / len(data)
