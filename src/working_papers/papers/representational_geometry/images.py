"""Real images: digits in one hidden layer, and at paper scale CIFAR-10 in a network of convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from working_papers.bench import Scale, Trial
from working_papers.data.cifar import load_cifar10
from working_papers.data.digits import LabelledImages, load_digits
from working_papers.nn.taps import ActivationTap
from working_papers.nn.training import ShuffledBatches, checkpoint_file, fit
from working_papers.papers.representational_geometry.experiments import LEARNING_RATE, MEMBERS, measure, seeds_of
from working_papers.papers.representational_geometry.method import ACTIVATIONS, OneHidden, train_together

COMPONENTS = 50  # principal components of the digits
DIGITS = {Scale.SMOKE: 60, Scale.LAPTOP: 256}  # images to train on
DIGIT_STEPS = {Scale.SMOKE: 5, Scale.LAPTOP: 2000}  # after 500 tanh layers are still on their way
DIGIT_NETWORKS = 1  # of a seed
HELD_OUT = 256  # other images that layers are measured on, too
CIFAR_STEPS, CIFAR_BATCH, CIFAR_RATE = 10_000, 128, 1e-3
CIFAR_MEASURED = 2000  # training images, and as many test images
LAYERS = ("activation1", "activation2", "activation3", "activation4")


class Elementwise(nn.Module):
    """An activation function of the room as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return self.function(z)


def convolutional(activation: str, widths: tuple[int, int, int, int] = (32, 64, 256, 128)) -> nn.Sequential:
    """Two convolutions and two full layers with one activation function throughout, for images of 32 by 32 pixels."""
    a, b, c, d = widths
    return nn.Sequential(
        OrderedDict(
            convolution1=nn.Conv2d(3, a, 5, padding=2),
            activation1=Elementwise(activation),
            pool1=nn.AvgPool2d(2),
            convolution2=nn.Conv2d(a, b, 5, padding=2),
            activation2=Elementwise(activation),
            pool2=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            full3=nn.Linear(64 * b, c),
            activation3=Elementwise(activation),
            full4=nn.Linear(c, d),
            activation4=Elementwise(activation),
            output=nn.Linear(d, 10),
        )
    )


def image_alignments(trial: Trial) -> Tensor:
    """Alignment with inputs and targets of each layer, on images trained on and on others [2, layers, 2]."""
    if trial.scale is Scale.PAPER:
        return cifar_alignments(trial, *load_cifar10())
    return digit_alignments(trial)


def digit_alignments(trial: Trial) -> Tensor:
    """One hidden layer, two binary targets: odd, and five or more [2, 1, 2]."""
    (train, test), scale = load_digits(), trial.scale
    generator = torch.Generator().manual_seed(trial.seed)
    chosen = torch.randperm(len(train), generator=generator)[: DIGITS[scale]]
    held_out = torch.randperm(len(test), generator=generator)[:HELD_OUT]
    centre = train.flat().mean(dim=0)
    _, _, directions = torch.linalg.svd(train.flat() - centre, full_matrices=False)
    inputs = [(part.flat() - centre) @ directions[:COMPONENTS].mT for part in (train, test)]
    inputs = [part / inputs[0].square().sum(dim=1).mean().sqrt() for part in inputs]  # of length 1, as the tasks' are
    goals = [
        torch.stack([2 * (part.labels % 2) - 1, 2 * (part.labels >= 5) - 1], dim=1).float() for part in (train, test)
    ]
    network = OneHidden(COMPONENTS, 200, 2, MEMBERS[trial.arm][0], seed=seeds_of(trial, DIGIT_NETWORKS)).to(
        trial.device
    )
    train_together(
        network,
        inputs[0][chosen].to(trial.device),
        goals[0][chosen].to(trial.device),
        steps=0 if trial.arm == "untrained" else DIGIT_STEPS[scale],
        learning_rate=LEARNING_RATE,
        record=(0,),
    )
    found = []
    for part, rows in enumerate((chosen, held_out)):
        x, t = (each[part][rows].to(trial.device) for each in (inputs, goals))
        with torch.no_grad():
            found.append(measure(network.hidden(x), x, t).mean(dim=0, keepdim=True))
    return torch.stack(found).cpu()


def cifar_alignments(
    trial: Trial, train: LabelledImages, test: LabelledImages, *, steps: int = CIFAR_STEPS, batch: int = CIFAR_BATCH
) -> Tensor:
    """All layers of the convolutional network, ten classes [2, 4, 2].

    Args:
        trial: names arm, seed and device.
        train: images to train on, from 0 to 1.
        test: other images to measure on.
        steps: of Adam.
        batch: images of a step.
    """
    mean, deviation = (f(train.images, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        network = convolutional(MEMBERS[trial.arm][0])
    network.to(trial.device)
    if trial.arm != "untrained":
        kept = checkpoint_file("representational_geometry", f"{trial.arm}-{trial.seed}")
        fit(
            network,
            ShuffledBatches(TensorDataset((train.images - mean) / deviation, train.labels), batch, trial.seed),
            lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]),
            torch.optim.Adam(network.parameters(), lr=CIFAR_RATE),
            steps=steps,
            precision="bfloat16" if trial.device.startswith("cuda") else "float32",
            checkpoint=kept,
        )
        kept.unlink()
    found = []
    for part in (train, test):
        images = ((part.images[:CIFAR_MEASURED] - mean) / deviation).to(trial.device)
        targets = F.one_hot(part.labels[:CIFAR_MEASURED], 10).to(images)
        with torch.no_grad(), ActivationTap(network.eval(), LAYERS) as tap:
            network(images)
            layers = [measure(tap.values[layer].flatten(1), images.flatten(1), targets) for layer in LAYERS]
        found.append(torch.stack(layers))
    return torch.stack(found).float().cpu()
