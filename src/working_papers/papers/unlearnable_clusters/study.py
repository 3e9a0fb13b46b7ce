"""The study of Unlearnable Clusters: digits are protected without labels, and taken for five different tasks.

The protector of the method sees no labels; its surrogate has learned to tell how the images, and patches of two
photographs, are turned. The protectors of the older noise know the ten digits. Whoever takes the images sorts them as
they like: into the ten digits, by parity, by size, into pairs, or into three arbitrary groups.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.data.batches import TensorBatches
from working_papers.data.digits import LabelledImages, load_digits
from working_papers.data.folders import data_folder
from working_papers.data.image_folder import ImageFolder
from working_papers.nn.resnet import resnet18, resnet50
from working_papers.nn.training import checkpoint_file, fit
from working_papers.papers.unlearnable_clusters.method import (
    DirectNoise,
    PenultimateFeatures,
    UnlearnableClusters,
    error_minimizing_noise,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("all classes", "parity", "upper half", "pairs", "three groups")
MEAN = "mean accuracy"
OWN = "accuracy, all classes"
LEFT = "share of the harm left under other labels"
ROBUST = "accuracy, all classes, strong augmentation"
LEAST_HARM = 0.01  # of accuracy: below that no share of it is taken

study = Study(
    question="Does noise made without labels spoil images for training under any labelling, and more than noise that "
    "was made for one, or that was merely drawn?",
    arms={
        "clusters": "Unlearnable clusters",
        "drawn": "Drawn noise, by cluster",
        "class": "Error-minimising, by class",
        "sample": "Error-minimising, by image",
        "informed": "Unlearnable clusters, informed surrogate",
        "clean": "No noise",
    },
    method="clusters",
    seeds={"smoke": 1, "laptop": 6, "paper": 3},
    measures=(
        Measure(MEAN, better="lower", about="On clean test images, mean over five labellings of the same images."),
        Measure(OWN, better="lower", about="On clean test images, for the labels that error-minimising noise knows."),
        Measure(
            LEFT,
            better="higher",
            about="Accuracy lost, mean over the four labellings that the protector did not know, over the accuracy "
            "lost with the labels that error-minimising noise knows (at least 0.01).",
        ),
        Measure(ROBUST, better="lower", about="As above, when the taker shifts, blurs and cuts images in training."),
    ),
    checks=(
        beats("clusters", over="clean", on=MEAN, by=0.05, claim="cluster-noise"),
        beats("clusters", over="class", on=MEAN, claim="cluster-noise"),
        beats("clusters", over="drawn", on=MEAN, claim="cluster-noise"),
        within("class", on=LEFT, high=0.5, claim="label-mismatch"),
    ),
    budget="""Every arm may change a pixel by 32 of 255 grey levels. All takers have the same network, initial weights,
        batches and number of steps. Methods have their authors' settings, but for learning rate and number of steps of
        the patterns, which were chosen on seeds that are not reported.""",
    notes="""The paper protects photographs of pets, cars, flowers, food and places, of 224 × 224 pixels, with
        ResNet-50 or CLIP as surrogate, and 16 of 255 grey levels; here 1200 digits of 8 × 8 pixels, doubled in size,
        and 32 of 255, since fewer change little on so small an image. The surrogate is a small network that learned,
        without labels, to tell how the images themselves and patches of two photographs are turned; the paper's
        surrogates have seen millions of images. Patterns are optimised directly, not by a generator, and so without
        its weight decay. CLIP against ImageNet is not tried. The informed surrogate was trained on the digits with
        their labels: it shows what better features would be worth. The paper does not compare with noise that is
        drawn at random for each cluster, which is a shortcut as well; it is the baseline that matters here.""",
    sham="drawn",
    figure_size=(11.0, 4.0),
)


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        clusters: p.
        epsilon: budget of a pixel.
        pattern_epochs: of each pattern.
        pattern_rate: learning rate of the patterns.
        surrogate_steps: of the rotation task.
        taker_steps: of each labelling.
        batch: of takers.
        rounds: of error-minimising noise, at most.
    """

    clusters: int
    epsilon: float
    pattern_epochs: int
    pattern_rate: float
    surrogate_steps: int
    taker_steps: int
    batch: int
    rounds: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale."""
        return scale.choose(
            smoke=cls(3, 32 / 255, 1, 0.05, 2, 2, 64, 1),
            laptop=cls(10, 32 / 255, 100, 0.2, 300, 150, 64, 30),
            paper=cls(10, 16 / 255, 50, 1e-4, 0, 9_000, 128, 50),
        )


@dataclass(frozen=True)
class Prepared:
    """What the arms of a seed share.

    Attributes:
        train: images in [0, 1] with their classes.
        test: for the takers.
        surrogate: features without knowledge of the images' labels.
        informed: features of a network that was trained with them.
        clean: (tasks,) accuracies of takers of the images without noise.
    """

    train: LabelledImages
    test: LabelledImages
    surrogate: nn.Module
    informed: nn.Module
    clean: list[float]


class SmallNetwork(nn.Module):
    """Three convolutions with batch normalisation, pooling and a linear head."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, H, W) in [0, 1] -> (N, classes)
        logits: Tensor = self.fc(self.body(2 * x - 1))
        return logits


def make_network(scale: Scale, classes: int, seed: int) -> nn.Module:
    """A taker's network; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(classes) if scale is Scale.PAPER else SmallNetwork(classes)


def relabel(labels: Tensor, task: str, seed: int) -> Tensor:
    """Classes 0, 1, ... sorted otherwise."""
    classes = int(labels.max()) + 1
    if task == "all classes":
        return labels
    if task == "parity":
        return labels % 2
    if task == "upper half":
        return (labels >= classes // 2).long()
    if task == "pairs":
        return labels // 2
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    return (order % 3)[labels]


def photograph_patches(count: int, side: int, seed: int) -> Tensor:
    """Grey patches (count, 1, side, side) of the two photographs that come with scikit-learn, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(each).float().mean(-1) / 255 for each in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    patches = []
    for photograph in photographs:
        half = F.avg_pool2d(photograph[None, None], 2)[0, 0]  # so that a patch shows more than one texture
        tiles = half.unfold(0, side, 1).unfold(1, side, 1).flatten(0, 1)
        patches.append(tiles[torch.randint(len(tiles), (count // 2,), generator=generator)])
    return torch.cat(patches).unsqueeze(1)


def learn(
    network: nn.Module, images: Tensor, labels: Tensor, steps: int, batch: int, seed: int, device: str, name: str = "",
    *, strong: bool = False,
) -> nn.Module:  # fmt: skip
    """Train with SGD and cosine decay; images are shifted a little, or shifted, blurred and cut."""
    batches = TensorBatches(images, labels, batch_size=batch, seed=seed, augment=disturb if strong else shift)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    kept = checkpoint_file("unlearnable_clusters", name) if name else None
    fit(
        network,
        batches,
        lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]),
        optimizer,
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6),
        steps=steps,
        precision="bfloat16" if device != "cpu" else "float32",
        device=device,
        checkpoint=kept,
    )
    if kept is not None:
        kept.unlink(missing_ok=True)
    return network.eval()


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """All images of a batch moved by up to a sixteenth of their side."""
    edge = images.shape[-1] // 16
    down, right = torch.randint(2 * edge + 1, (2,), generator=generator).tolist()
    padded = F.pad(images, (edge,) * 4)
    return padded[..., down : down + images.shape[-2], right : right + images.shape[-1]]


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted, blurred half the time, with a square cut out."""
    images = shift(images, generator)
    if torch.rand((), generator=generator) < 0.5:
        images = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    side = images.shape[-1]
    top, left = torch.randint(side - side // 4, (2,), generator=generator).tolist()
    images = images.clone()
    images[..., top : top + side // 4, left : left + side // 4] = 0
    return images


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, device: str) -> float:
    """Share of right answers."""
    guesses = torch.cat([network(part.to(device)).argmax(1).cpu() for part in images.split(512)])
    return float((guesses == labels).double().mean())


def take(
    images: Tensor, train: LabelledImages, test: LabelledImages, scale: Scale, seed: int, device: str, name: str,
    tasks: Sequence[str] = TASKS, *, strong: bool = False,
) -> list[float]:  # fmt: skip
    """Clean test accuracy of networks that learn from the images, one a labelling."""
    size, found = Size.of(scale), []
    for task in tasks:
        own, truth = relabel(train.labels, task, seed), relabel(test.labels, task, seed)
        network = make_network(scale, int(own.max()) + 1, seed)
        kept = f"{name}-{task}-{seed}-{strong}" if scale is Scale.PAPER else ""
        learn(network, images, own, size.taker_steps, size.batch, seed, device, kept, strong=strong)
        found.append(accuracy(network, test.images, truth, device))
    return found


def load_images(scale: Scale) -> tuple[LabelledImages, LabelledImages]:
    """Digits doubled in size; at paper scale the pets, below `oxford-iiit-pet/train` and `test`, a folder a class."""
    if scale is not Scale.PAPER:
        train, test = load_digits()
        if scale is Scale.SMOKE:
            train, test = (LabelledImages(each.images[:100], each.labels[:100]) for each in (train, test))
        return tuple(  # type: ignore[return-value]
            LabelledImages(F.interpolate(each.images, scale_factor=2, mode="bilinear").clamp(0, 1), each.labels)
            for each in (train, test)
        )
    folder = data_folder("oxford-iiit-pet", needs=("train", "test"))
    first = ImageFolder(folder / "train", 224)
    second = ImageFolder(folder / "test", 224, classes=first.classes)
    return tuple(  # type: ignore[return-value]
        LabelledImages(torch.stack([each[number][0] for number in range(len(each))]), each.labels)
        for each in (first, second)
    )


class Normalised(nn.Module):
    """A network trained on ImageNet, for images in [0, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model((x - self.mean) / self.deviation)
        return features


def make_surrogates(train: LabelledImages, scale: Scale, seed: int, device: str) -> tuple[nn.Module, nn.Module]:
    """Features that know nothing of the images' labels, and features that do."""
    size = Size.of(scale)
    classes = int(train.labels.max()) + 1
    if scale is Scale.PAPER:
        weights = data_folder("imagenet-weights", needs=("resnet50.pth",)) / "resnet50.pth"
        stranger = resnet50()
        stranger.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        informed = make_network(scale, classes, seed + 1)
        learn(informed, train.images, train.labels, size.taker_steps, size.batch, seed, device, f"informed-{seed}")
        return Normalised(PenultimateFeatures(stranger)).eval(), PenultimateFeatures(informed.cpu()).eval()
    patches = torch.cat(
        [photograph_patches(100 if scale is Scale.SMOKE else 1000, train.images.shape[-1], seed), train.images]
    )
    turns = torch.arange(len(patches)) % 4
    turned = torch.stack([patch.rot90(int(turn), (-2, -1)) for patch, turn in zip(patches, turns, strict=True)])
    network = make_network(scale, 4, seed + 2)
    learn(network, turned, turns, size.surrogate_steps, size.batch, seed, device)
    informed = make_network(scale, classes, seed + 1)
    learn(informed, train.images, train.labels, size.surrogate_steps, size.batch, seed, device)
    return PenultimateFeatures(network).eval(), PenultimateFeatures(informed).eval()


@study.prepare
def images_and_surrogates(seed: int, scale: Scale) -> Prepared:
    """Images, surrogates, and what takers of clean images reach."""
    train, test = load_images(scale)
    device = "cuda" if scale is Scale.PAPER and torch.cuda.is_available() else "cpu"
    surrogate, informed = make_surrogates(train, scale, seed, device)
    clean = take(train.images, train, test, scale, seed, device, "clean")
    return Prepared(train, test, surrogate, informed, clean)


def protect(trial: Trial, shared: Prepared) -> tuple[Tensor, Tensor]:
    """The arm's images, and patterns for the figure."""
    size, images = Size.of(trial.scale), shared.train.images
    if trial.arm == "clean":
        return images, torch.zeros_like(images[:1])
    if trial.arm in ("class", "sample"):
        classes = int(shared.train.labels.max()) + 1
        noise = error_minimizing_noise(
            images.to(trial.device),
            shared.train.labels.to(trial.device),
            lambda: make_network(trial.scale, classes, trial.seed + 3),
            size.epsilon,
            "class" if trial.arm == "class" else "sample",
            max_rounds=size.rounds,
            batch_size=size.batch,
            seed=trial.seed,
        ).cpu()
        return (images + noise).clamp(0, 1), noise[:4]
    features = copy.deepcopy(shared.informed if trial.arm == "informed" else shared.surrogate).to(trial.device)
    small = trial.scale is not Scale.PAPER
    protector = UnlearnableClusters(
        features,
        size.clusters,
        size.epsilon,
        generator=DirectNoise if small else None,
        bound="tanh" if small else "clamp",
        epochs=1 if trial.arm == "drawn" else size.pattern_epochs,
        lr=size.pattern_rate,
        weight_decay=0.0 if small else 5e-4,
        seed=trial.seed,
    ).fit(images)
    if trial.arm == "drawn":
        generator = torch.Generator().manual_seed(trial.seed)
        protector.noise_ = size.epsilon * torch.randn(protector.noise_.shape, generator=generator).sign()
    return protector.protect(images, protector.assignments_), protector.noise_[:4]


@study.trial
def protect_and_take(trial: Trial, shared: Prepared) -> Measurements:
    """Protect the images in the arm's way, and train takers on them."""
    images, patterns = protect(trial, shared)
    trial.progress(1, of=3)
    common = (images, shared.train, shared.test, trial.scale, trial.seed, trial.device, trial.arm)
    found = take(*common)
    trial.progress(2, of=3)
    (robust,) = take(*common, TASKS[:1], strong=True)
    lost = np.array(shared.clean) - np.array(found)
    size = Size.of(trial.scale)
    return {
        MEAN: float(np.mean(found)),
        OWN: found[0],
        LEFT: float(lost[1:].mean() / max(lost[0], LEAST_HARM)),
        ROBUST: robust,
        "accuracies": np.array(found),
        "patterns": (patterns.mean(1) / size.epsilon).numpy(),
        "images": images[:4].mean(1).numpy(),
    }


@study.figure
def accuracies_and_patterns(trials: Trials, figure: Figure) -> None:
    """Accuracy of takers by labelling and arm; patterns and images of four arms."""
    bars, pictures = figure.subplots(1, 2, width_ratios=(1.5, 1))
    draw_accuracies(trials, bars)
    draw_pictures(trials, pictures)


def draw_accuracies(trials: Trials, axes: Axes) -> None:
    """A dot an arm and labelling, with the range over seeds."""
    arms = trials.arms
    for number, arm in enumerate(arms):
        found = 100 * trials.arrays(arm, "accuracies")
        at = np.arange(len(TASKS)) + 0.13 * (number - (len(arms) - 1) / 2)
        mean = found.mean(axis=0)
        spread = np.stack([mean - found.min(axis=0), found.max(axis=0) - mean])
        axes.errorbar(at, mean, spread, fmt="o", color=trials.color(arm), markersize=5, label=trials.label(arm))
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set_ylim(0, 102)
    axes.set(title="What takers learn from protected images", ylabel="accuracy on clean test images (%)")
    axes.legend(loc="lower right", fontsize=7.5, ncols=2)


def draw_pictures(trials: Trials, axes: Axes) -> None:
    """Rows of patterns and images, an arm a pair of rows."""
    rows, labels = [], []
    for arm in ("clusters", "drawn", "class"):
        patterns = trials.arrays(arm, "patterns")[0] / 2 + 0.5
        for tiles in (patterns, trials.arrays(arm, "images")[0]):
            row = [np.pad(tile, 1, constant_values=np.nan) for tile in tiles]
            row += [np.full_like(row[0], np.nan)] * (4 - len(row))
            rows.append(np.concatenate(row, axis=1))
        labels.append(trials.label(arm))
    axes.imshow(np.concatenate(rows), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
    height = len(rows[0])
    axes.set_yticks([height * (2 * number + 1) for number in range(len(labels))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("Patterns, and images with them")
