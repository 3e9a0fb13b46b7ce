"""The study of directed weight adjustment: digits distilled into five images a class, judged by what students learn.

All arms of a seed share the teacher, the real images that the synthetic ones start from, the soft labels' protocol and
the students' training; they differ in how the images are made. The arm of real images is the starting images
themselves: whoever synthesises must be better than that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.data.cifar import load_cifar10
from working_papers.data.digits import LabelledImages, load_digits
from working_papers.nn.resnet import resnet18
from working_papers.nn.training import ShuffledBatches, checkpoint_file, fit
from working_papers.papers.directed_weight_adjustment.method import (
    Direction,
    distill,
    diversity,
    roll,
    soft_label_loss,
    soft_labels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACY = "student accuracy"
OTHER = "accuracy of another student"
DIVERSITY = "diversity"
PIXELS = "diversity of pixels"
SHARE = "adjustment's share of gradient steps"
TEMPERATURE = 4.0  # of soft labels; the paper's 20 is for ImageNet's thousand classes
ADJUSTMENT_STEPS = 12  # K of the paper for small images
SHOWN_CLASS = 3

DIRECTIONS: dict[str, Direction] = {"adjusted": "ascent", "random": "random"}
LENGTHS = ({"rho": 0.015}, {"rho": 0.05}, {"rho": 0.15})
WEIGHTS = ({"r_bn": 0.01}, {"r_bn": 0.03}, {"r_bn": 0.1})

study = Study(
    question="Does nudging the teacher against each batch make distilled images more diverse and students better?",
    arms={
        "adjusted": "Directed adjustment",
        "random": "Random adjustment",
        "variance": "No adjustment",
        "plain": "No adjustment, variance 1",
        "noise": "SRe2L: from noise",
        "real": "Real images",
    },
    method="adjusted",
    seeds={"smoke": 2, "laptop": 10, "paper": 3},
    measures=(
        Measure(
            ACCURACY,
            better="higher",
            about="Of a student of the teacher's architecture, trained on the images with the teacher's soft labels.",
        ),
        Measure(
            DIVERSITY,
            better="higher",
            about="Mean cosine distance between the images of a class, in the features of a network that was trained "
            "on the data set but is not the teacher.",
        ),
        Measure(OTHER, better="higher", about="The same of a perceptron, whose architecture is not the teacher's."),
        Measure(PIXELS, better="higher", about="Mean cosine distance between the images of a class, as pixels."),
        Measure(
            SHARE,
            better="lower",
            about="Gradients of the adjustment over all gradients of the synthesis, as counted.",
        ),
    ),
    checks=(
        beats("adjusted", over="plain", on=ACCURACY, claim="diversity-and-accuracy"),
        beats("adjusted", over="plain", on=DIVERSITY, claim="diversity-and-accuracy"),
        beats("adjusted", over="random", on=ACCURACY, claim="direction-matters"),
        beats("adjusted", over="random", on=DIVERSITY, claim="direction-matters"),
        within("adjusted", on=SHARE, high=0.1, claim="negligible-cost"),
    ),
    tuning=Tuning(
        on=ACCURACY,
        candidates={
            "adjusted": LENGTHS,
            "random": LENGTHS,
            "variance": WEIGHTS,
            "plain": WEIGHTS,
            "noise": WEIGHTS,
        },
        seeds=2,
    ),
    budget="""All arms of a seed have the same teacher, starting images (but for the arm from noise), iterations,
        number of images and training of students. The arms with an adjustment choose its length among three, the others
        among three weights of the batch statistics, on two tuning seeds.""",
    notes="""The paper distils CIFAR-10, CIFAR-100, Tiny-ImageNet and ImageNet with a ResNet-18; here 1200 digits of
        8 × 8 pixels, doubled in size, become five images a class, with a small convolutional teacher. Batches hold one
        image of each of the ten classes, as the paper's for CIFAR-10, which makes their statistics noisy. Lengths of
        the adjustment are not the paper's 0.015 alone: it is measured against nothing, and the teacher here has
        0.06 million parameters. Diversity is measured in the features of a second network, for the teacher's own are
        what the synthesis writes into the images. The paper does not compare with real images under the same soft
        labels; here they are an arm, though no check is about them. Students here come close to the teacher, so that
        there is little room for any arm to be better than another.""",
    sham="random",
    figure_size=(11.5, 4.2),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and synthesised."""

    teacher_epochs: int
    ipc: int
    per_batch: int
    iterations: int
    student_steps: int
    batch: int
    width: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale that of the paper's CIFAR-10 runs."""
        return scale.choose(
            smoke=cls(1, 2, 1, 1, 1, 256, 2),
            laptop=cls(10, 5, 1, 120, 200, 64, 16),
            paper=cls(200, 10, 1, 1000, 40_000, 128, 64),
        )


@dataclass(frozen=True)
class Prepared:
    """What the arms of a seed share.

    Attributes:
        train: the data set, normalised.
        test: for the students.
        teacher: trained on it, in evaluation mode.
        judge: another network trained on it, in whose features diversity is measured.
    """

    train: LabelledImages
    test: LabelledImages
    teacher: nn.Module
    judge: nn.Module


class Convolutions(nn.Module):
    """Four convolutions with batch normalisation, two of them with stride, and a linear head on the mean.

    Args:
        classes: outputs.
        width: channels of the first; 2, 4 and 4 times as many follow.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (4 * width, 1)):
            layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:  # (N, 1, H, W) -> (N, D)
        result: Tensor = self.body(x).mean((2, 3))
        return result

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def make_network(scale: Scale, width: int, seed: int) -> nn.Module:
    """A network of the teacher's architecture with random weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(10, "cifar") if scale is Scale.PAPER else Convolutions(10, width)


def make_perceptron(pixels: int, seed: int) -> nn.Module:
    """A student of another architecture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                             nn.Linear(256, 10))  # fmt: skip


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What stands before the last layer, (N, D)."""
    with torch.no_grad():
        if isinstance(model, Convolutions):
            return model.features(images)
        maps: Tensor = model.feature_maps(images)[-1]  # type: ignore[operator]
        return maps.mean((2, 3))


def augment(batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Images moved by up to an eighth of their side, each batch as one; colour images are mirrored half the time."""
    images, *others = batch
    side = images.shape[-1]
    images = roll(images, side // 8, generator).roll((-(side // 16), -(side // 16)), dims=(-2, -1))
    if images.shape[1] == 3 and torch.rand((), generator=generator) < 0.5:  # digits are not mirrored
        images = images.flip(-1)
    return [images, *others]


def train_network(
    model: nn.Module, data: LabelledImages, steps: int, batch: int, seed: int, name: str, scale: Scale, device: str
) -> nn.Module:
    """Train on labels, with SGD at paper scale and AdamW below."""
    dataset = torch.utils.data.TensorDataset(data.images, data.labels)
    batches = ShuffledBatches(dataset, min(batch, len(data)), seed, augment)
    optimizer: torch.optim.Optimizer
    if scale is Scale.PAPER:
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kept = checkpoint_file("directed_weight_adjustment", name) if scale is Scale.PAPER else None
    fit(
        model,
        batches,
        lambda network, pair: F.cross_entropy(network(pair[0]), pair[1]),
        optimizer,
        scheduler,
        steps=steps,
        precision="bfloat16" if scale is Scale.PAPER and device != "cpu" else "float32",
        device=device,
        checkpoint=kept,
    )
    if kept is not None:
        kept.unlink(missing_ok=True)
    return model.eval()


@study.prepare
def teacher_and_data(seed: int, scale: Scale) -> Prepared:
    """The data set, the teacher, and a second network as judge."""
    size = Size.of(scale)
    train, test = load_cifar10() if scale is Scale.PAPER else load_digits()
    mean = train.images.mean((0, 2, 3), keepdim=True)
    deviation = train.images.std((0, 2, 3), keepdim=True)

    def normal(data: LabelledImages) -> LabelledImages:
        images = (data.images - mean) / deviation
        if scale is not Scale.PAPER:
            images = F.interpolate(images, scale_factor=2, mode="bilinear")
        return LabelledImages(images, data.labels)

    train, test = normal(train), normal(test)
    steps = size.teacher_epochs * (len(train) // size.batch)
    device = "cuda" if scale is Scale.PAPER and torch.cuda.is_available() else "cpu"
    teacher, judge = (
        train_network(
            make_network(scale, size.width, seed + number), train, steps, size.batch, seed + number,
            f"teacher-{seed}-{number}", scale, device,
        ).cpu()
        for number in range(2)
    )  # fmt: skip
    return Prepared(train, test, teacher, judge)


def make_images(trial: Trial, shared: Prepared, size: Size) -> tuple[Tensor, Tensor]:
    """The arm's images and their classes."""
    rho = float(trial.setting.get("rho", 0.0))
    return distill(
        shared.teacher,
        shared.train.images,
        shared.train.labels,
        size.ipc,
        images_per_batch=size.per_batch,
        noise=trial.arm == "noise",
        seed=trial.seed,
        iterations=0 if trial.arm == "real" else size.iterations,
        lr=0.25 if trial.scale is Scale.PAPER else 0.1,
        r_bn=float(trial.setting.get("r_bn", 0.01)),
        r_var=1.0 if trial.arm in ("plain", "noise") else 11.0,
        rho=rho,
        steps=ADJUSTMENT_STEPS,
        jitter=4 if trial.scale is Scale.PAPER else 1,
        direction=DIRECTIONS.get(trial.arm, "none"),
    )


def train_student(
    student: nn.Module, trial: Trial, shared: Prepared, images: Tensor, labels: Tensor, size: Size
) -> float:
    """Train a student on soft labels of augmented images; its accuracy on the test images."""
    teacher = shared.teacher
    batches = ShuffledBatches(
        torch.utils.data.TensorDataset(images, labels), min(size.batch, len(images)), trial.seed, augment
    )

    def loss(network: nn.Module, pair: list[Tensor]) -> Tensor:
        return soft_label_loss(network(pair[0]), soft_labels(teacher, pair[0], TEMPERATURE), TEMPERATURE)

    optimizer = torch.optim.AdamW(student.parameters(), 3e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.student_steps)
    kept = None
    if trial.scale is Scale.PAPER:
        kept = checkpoint_file(
            "directed_weight_adjustment", f"{type(student).__name__}-{trial.arm}-{trial.seed}-{dict(trial.setting)}"
        )
    fit(
        student, batches, loss, optimizer, scheduler,
        steps=size.student_steps, device=trial.device, checkpoint=kept, clip=10.0,
    )  # fmt: skip
    if kept is not None:
        kept.unlink(missing_ok=True)
    student.eval()
    with torch.no_grad():
        guesses = torch.cat([student(part.to(trial.device)).argmax(1).cpu() for part in shared.test.images.split(512)])
    return float((guesses == shared.test.labels).double().mean())


@study.trial
def distil_and_teach(trial: Trial, shared: Prepared) -> Measurements:
    """Make the arm's images and train students on them."""
    size = Size.of(trial.scale)
    shared.teacher.to(trial.device)
    gradients = {"adjustment": 0, "all": 0}

    def count(module: nn.Module, _inputs: object) -> None:
        # While the teacher is adjusted its parameters ask for gradients; while images are made they do not.
        gradients["all"] += torch.is_grad_enabled()
        gradients["adjustment"] += torch.is_grad_enabled() and all(p.requires_grad for p in module.parameters())

    hook = shared.teacher.register_forward_pre_hook(count)
    images, labels = make_images(trial, shared, size)
    hook.remove()
    trial.progress(1, of=3)
    student = make_network(trial.scale, size.width, trial.seed + 10)
    accuracy = train_student(student, trial, shared, images, labels, size)
    trial.progress(2, of=3)
    other = train_student(make_perceptron(images[0].numel(), trial.seed + 11), trial, shared, images, labels, size)
    with torch.no_grad():
        judged = features(copy.deepcopy(shared.judge), images)
    shown = images[labels == SHOWN_CLASS]
    return {
        ACCURACY: accuracy,
        DIVERSITY: float(diversity(judged, labels)),
        OTHER: other,
        PIXELS: float(diversity(images, labels)),
        SHARE: gradients["adjustment"] / max(1, gradients["all"]),
        "shown": shown.mean(1).numpy(),
    }


@study.figure
def images_and_measures(trials: Trials, figure: Figure) -> None:
    """Images of one class, an arm a row; accuracy against diversity, seed by seed."""
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    draw_images(trials, left)
    draw_scatter(trials, right)


def draw_images(trials: Trials, axes: Axes) -> None:
    """The images of one class from the first seed."""
    rows = []
    for arm in trials.arms:
        shown = trials.arrays(arm, "shown")[0]
        low, high = np.quantile(shown, (0.01, 0.99))
        tiles = np.clip((shown - low) / max(high - low, 1e-9), 0, 1)
        rows.append(np.concatenate([np.pad(tile, 1, constant_values=np.nan) for tile in tiles], axis=1))
    axes.imshow(np.concatenate(rows), cmap="gray", interpolation="nearest", aspect="equal")
    height = len(rows[0])
    axes.set_yticks([height * (row + 0.5) for row in range(len(rows))], [trials.label(arm) for arm in trials.arms])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"The images that stand for the {SHOWN_CLASS}s")


def draw_scatter(trials: Trials, axes: Axes) -> None:
    """Each seed a dot, each arm's mean a ring."""
    for arm in trials.arms:
        x, y = trials.values(arm, DIVERSITY), 100 * trials.values(arm, ACCURACY)
        color = trials.color(arm)
        axes.plot(x, y, "o", color=color, markersize=4, alpha=0.45, markeredgewidth=0)
        axes.plot(x.mean(), y.mean(), "o", color=color, markersize=9, label=trials.label(arm))
    axes.set(
        title="What students learn from the images",
        xlabel="diversity (cosine distance within classes)",
        ylabel="student accuracy (%)",
    )
    axes.legend(loc="best")
