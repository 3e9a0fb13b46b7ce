"""The networks that are compared: how they are made, what they see, and how many of them are trained at once."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from working_papers.bench import Scale
from working_papers.data.digits import LabelledImages, load_digits

BATCH = 64


@dataclass(frozen=True)
class Architecture:
    """A network, what its layers are called, those that are compared, and the learning rate that trains it well."""

    title: str
    make: Callable[[], nn.Sequential]
    layers: tuple[str, ...]
    learning_rate: float


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers in order, by name."""
    return nn.Sequential(OrderedDict(layers))


def convolutional() -> nn.Sequential:
    """Two small convolutions for digits."""
    return chain(
        conv1=nn.Conv2d(1, 16, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        out=nn.Linear(32, 10),
    )


def perceptron() -> nn.Sequential:
    """Two hidden layers for digits."""
    return chain(
        flat=nn.Flatten(),
        full1=nn.Linear(64, 64),
        relu1=nn.ReLU(),
        full2=nn.Linear(64, 32),
        relu2=nn.ReLU(),
        out=nn.Linear(32, 10),
    )


def five_convolutions(widths: Sequence[int] = (96, 256, 384, 384, 256)) -> nn.Sequential:
    """The paper's five convolutions with kernels for images of 32 x 32 pixels."""
    a, b, c, d, e = widths
    return chain(
        conv1=nn.Conv2d(3, a, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(a, b, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(b, c, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(c, d, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(d, e, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        full=nn.Linear(16 * e, 512),
        relu=nn.ReLU(),
        out=nn.Linear(512, 10),
    )


ARCHITECTURES = {
    "convolutional": Architecture("convolution", convolutional, ("relu1", "relu2"), 3e-3),
    "perceptron": Architecture("fully connected", perceptron, ("relu1", "relu2"), 1e-3),
    "five convolutions": Architecture(
        "convolution", five_convolutions, tuple(f"relu{layer}" for layer in range(1, 6)), 3e-4
    ),
}


def load_images(scale: Scale) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images: digits, at paper scale CIFAR-10."""
    if scale is not Scale.PAPER:
        return load_digits()
    home = os.environ.get("WORKING_PAPERS_DATA")
    if not home:
        raise ValueError(
            "paper scale reads CIFAR-10 from the subfolder cifar10 of WORKING_PAPERS_DATA, which is not set"
        )
    folder = Path(home) / "cifar10"
    return read_image_folder(folder / "train"), read_image_folder(folder / "test")


def read_image_folder(folder: Path) -> LabelledImages:
    """Colour images of one size, a subfolder for each class (in alphabetical order), as (N, 3, H, W) from -1 to 1.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    from PIL import Image

    classes = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    files = [(file, label) for label, each in enumerate(classes) for file in sorted(each.iterdir())]
    if not files:
        raise ValueError(f"{folder} holds no images; expected a subfolder for each class")
    pixels = []
    for file, _ in files:
        with Image.open(file) as image:
            pixels.append(torch.from_numpy(np.array(image.convert("RGB"))))
    images = torch.stack(pixels).movedim(-1, 1).float().div_(127.5).sub_(1)
    return LabelledImages(images, torch.tensor([label for _, label in files]))


@dataclass(frozen=True)
class Networks:
    """Networks of one architecture: stacked parameters (K, ...) before and after training, and test accuracies [K]."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    accuracy: Tensor

    def module(self, name: str, number: int, *, trained: bool) -> nn.Sequential:
        """One of them."""
        network = ARCHITECTURES[name].make()
        state = self.after if trained else self.before
        network.load_state_dict({key: value[number] for key, value in state.items()})
        return network


def train_together(
    architecture: Architecture,
    count: int,
    epochs: int,
    seed: int,
    train: LabelledImages,
    test: LabelledImages,
    device: str = "cpu",
) -> Networks:
    """Train several networks as one batch of networks, with Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [architecture.make() for _ in range(count)]
    before = {name: value.detach().clone() for name, value in stack_module_state(networks)[0].items()}
    parameters = {name: value.clone().to(device).requires_grad_() for name, value in before.items()}
    base = networks[0].to(device)

    def logits(one: dict[str, Tensor], images: Tensor) -> Tensor:
        result: Tensor = functional_call(base, one, (images,))
        return result

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(parameters.values(), lr=architecture.learning_rate)
    images, labels = train.images.to(device), train.labels.to(device)
    for _ in range(epochs):
        order = torch.stack([torch.randperm(len(train), generator=generator) for _ in range(count)])
        for batch in order.split(BATCH, dim=1):
            picked = batch.to(device)
            optimizer.zero_grad()
            guesses = vmap(logits)(parameters, images[picked])
            loss = nn.functional.cross_entropy(guesses.flatten(0, 1), labels[picked].flatten(), reduction="sum")
            (loss / batch.shape[1]).backward()  # the sum over networks of their mean losses
            optimizer.step()
    right = torch.zeros(count, dtype=torch.float64)
    with torch.no_grad():
        for images, labels in zip(test.images.split(256), test.labels.split(256), strict=True):
            guesses = vmap(logits, in_dims=(0, None))(parameters, images.to(device)).argmax(dim=-1).cpu()
            right += (guesses == labels).sum(dim=1)
    after = {name: value.detach().cpu() for name, value in parameters.items()}
    return Networks(before, after, right / len(test))
