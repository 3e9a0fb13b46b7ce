"""The study of Barlow Twins: handwritten digits without labels, then a linear probe with few or all of them.

All arms of a seed share the images, the backbone's and projector's initial weights, the views and the labels that the
probes see. They differ in what is minimised before the probe, or in nothing but the embedding's width.

Letters: N = images of a batch, D = features of the embedding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats
from working_papers.data.cifar import load_cifar10
from working_papers.data.digits import LabelledImages, load_digits
from working_papers.nn.training import checkpoint_file
from working_papers.papers.barlow_twins.method import Projector, barlow_twins_loss, cross_correlation
from working_papers.papers.barlow_twins.training import (
    Batches,
    Size,
    calibrate,
    effective_rank,
    few_labels,
    info_nce,
    new_backbone,
    outputs,
    probe,
    train,
    view_for,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBE = "linear probe, few labels"
FULL = "linear probe, all labels"
TUNED = "fine-tuned, few labels"
RANK = "effective rank of the embedding"
SPREAD = "spread of the embedding"
RATE = 3e-3  # AdamW's learning rate; the best of 1e-3 and 3e-3 for every arm that trains, on seeds of our own
PAPER_RATE = 0.2
FRESH_RATES = (0.01, 0.01)  # of backbone and head, learning few labels from scratch; the best of four, on our own seeds
TUNING_RATES = (0.003, 0.03)  # the same of pre-trained backbones; the best of six, on seeds of our own
PAPER_TUNING_FACTOR = 10.0  # between AdamW's learning rates and those of LARS; not tried
UNTRAINED = ("random", "pixels")
SHOWN = 40  # features in the figure's matrices

study = Study(
    question="Does a cross-correlation near the identity give features of unlabelled digits that a linear probe reads "
    "nearly as well as supervised ones, better than without its off-diagonal term, and better from a wide embedding?",
    arms={
        "barlow": "Barlow Twins, D = 256",
        "infonce": "InfoNCE (SimCLR)",
        "middle": "Barlow Twins, D = 16",
        "narrow": "Barlow Twins, D = 4",
        "invariance": "Diagonal only (λ = 0)",
        "pull": "Distance of views only",
        "supervised": "Supervised, all labels",
        "random": "Untrained network",
        "pixels": "Pixels",
    },
    method="barlow",
    seeds={"smoke": 1, "laptop": 8, "paper": 3},
    measures=(
        Measure(
            PROBE,
            better="higher",
            about="Test accuracy of logistic regression on frozen features with three labels a class, mean over ten "
            "draws of the labels. The supervised arm's features have seen all labels.",
        ),
        Measure(
            FULL,
            better="higher",
            about="The same with the labels of all training images; of the supervised arm, its own classifier.",
        ),
        Measure(
            TUNED,
            better="higher",
            about="Test accuracy after the whole network was trained on three labels a class with views, mean over "
            "two draws; for the untrained network this is supervised learning from few labels.",
        ),
        Measure(
            RANK,
            better="higher",
            scale="ratio",
            about="Exponential of the entropy of the covariance's eigenvalues, on test images; blind to scale, so "
            "that the noise of an embedding shrunk to a point counts, too. Pixels stand for themselves.",
        ),
        Measure(
            SPREAD,
            about="Mean standard deviation of the embedding's features on test images; 0 is collapse to a point.",
        ),
    ),
    checks=(
        beats("barlow", over="invariance", on=PROBE, by=0.02, claim="no-collapse"),
        beats("barlow", over="invariance", on=RANK, by=0.9, claim="no-collapse"),
        beats("barlow", over="pull", on=PROBE, by=0.02, claim="no-collapse"),
        beats("barlow", over="random", on=PROBE, by=0.05, claim="few-labels"),
        beats("barlow", over="pixels", on=PROBE, by=0.05, claim="few-labels"),
        beats("barlow", over="random", on=TUNED, by=0.02, claim="fine-tuning"),
        beats("barlow", over="supervised", on=FULL, by=-0.033, claim="near-supervised"),
        beats("barlow", over="narrow", on=PROBE, by=0.02, claim="wide-embeddings-help"),
        beats("barlow", over="middle", on=PROBE, by=0.02, claim="wide-embeddings-help"),
    ),
    tuning=Tuning(
        on=PROBE,
        candidates={
            "barlow": ({"lambda": 0.005}, {"lambda": 0.02}, {"lambda": 0.08}),
            "middle": ({"lambda": 0.3}, {"lambda": 1.0}, {"lambda": 3.0}),
            "narrow": ({"lambda": 0.3}, {"lambda": 1.0}, {"lambda": 3.0}),
            "infonce": ({"temperature": 0.1}, {"temperature": 0.2}, {"temperature": 0.5}),
            "supervised": ({"learning rate": 0.3}, {"learning rate": 1.0}, {"learning rate": 3.0}),
        },
    ),
    budget="""Every arm that trains gets the same initial weights, images and number of steps, and the arms without
        labels the same pairs of views. λ, the temperature and the supervised learning rate are each chosen among three
        on a tuning seed; the two controls have nothing of their own to choose. Probes and fine-tuning see the same
        labels in all arms; learning from scratch has the learning rates that suit it best, fine-tuning its own.""",
    notes="""The paper trains a ResNet-50 on ImageNet for 1000 epochs with LARS, a batch of 2048 and D = 8192; here
        0.02 million parameters learn 1200 digits for 30 epochs with AdamW, a batch of 128 and D = 256, four times as
        wide as the features, as in the paper. λ is tuned, because 0.0051 is for D = 8192 and narrow embeddings want a
        larger one; at one λ for all widths a narrow embedding looks worse than it is. With ten classes there is less
        for a wide embedding to hold than with a thousand. Fine-tuning and learning from scratch see the views of
        pre-training; the paper's see crops and flips alone. Views teach from few labels, too, and leave
        pre-training on 1200 images less to add. That small batches suffice is not tested here. At paper scale, which
        was not run, a ResNet-18 learns CIFAR-10 with LARS, the paper's views without blur, and D = 2048.""",
    sham="invariance",
    figure_size=(11.0, 3.9),
)


@dataclass(frozen=True)
class Images:
    """What the arms of a seed share."""

    train: LabelledImages
    test: LabelledImages


@study.prepare
def images(seed: int, scale: Scale) -> Images:
    """Digits split by writer, or CIFAR-10."""
    train_images, test_images = load_cifar10() if scale is Scale.PAPER else load_digits()
    limit = Size.of(scale).images
    if limit is not None:
        train_images = LabelledImages(train_images.images[:limit], train_images.labels[:limit])
        test_images = LabelledImages(test_images.images[:limit], test_images.labels[:limit])
    return Images(train_images, test_images)


class TwoPasses(nn.Module):
    """Backbone and projector over two views, one after the other."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        return self.projector(self.backbone(view1)), self.projector(self.backbone(view2))


def pretext(trial: Trial, z1: Tensor, z2: Tensor) -> Tensor:
    """What an arm minimises without labels."""
    if trial.arm == "infonce":
        return info_nce(z1, z2, float(trial.setting["temperature"]))
    if trial.arm == "pull":
        return F.mse_loss(z1, z2)
    return barlow_twins_loss(z1, z2, 0.0 if trial.arm == "invariance" else float(trial.setting["lambda"]))


def networks(trial: Trial, size: Size, pixels: int) -> tuple[nn.Module, int, nn.Module]:
    """An arm's backbone, the number of its features, and its projector; the same weights in every arm of a seed."""
    if trial.arm == "pixels":
        return nn.Flatten(), pixels, nn.Identity()
    backbone, features = new_backbone(size, trial.seed)
    if trial.arm == "supervised":
        return backbone, features, nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed + 1)
        width = {"middle": size.middle, "narrow": size.narrow}.get(trial.arm, size.wide)
        projector = Projector(features, size.hidden, width)
    return backbone, features, projector


def new_head(features: int, classes: int, device: str) -> nn.Linear:
    """A linear classifier that begins at zero."""
    head = nn.Linear(features, classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def cross_entropy(model: nn.Module, batch: tuple[list[Tensor], Tensor]) -> Tensor:
    """The loss of a classifier on the first view."""
    return F.cross_entropy(model(batch[0][0]).float(), batch[1])


def accuracy(classifier: nn.Module, test: LabelledImages) -> float:
    """Share of test images that a classifier names right."""
    return float((outputs(classifier, test.images).argmax(dim=1) == test.labels.cpu()).double().mean())


def learn(trial: Trial, backbone: nn.Module, projector: nn.Module, head: nn.Module, data: LabelledImages) -> None:
    """Train in the way of the arm, in place; untrained networks and pixels stay what they are."""
    size, large = Size.of(trial.scale), trial.scale is Scale.PAPER
    if trial.arm in UNTRAINED:
        return
    rate = float(trial.setting.get("learning rate", 1.0)) * (PAPER_RATE if large else RATE)
    checkpoint = checkpoint_file("barlow_twins", trial_name(trial)) if large else None
    supervised = trial.arm == "supervised"
    batches = Batches(data, size.batch, 1 if supervised else 2, view_for(trial.scale), trial.seed)

    def pretext_loss(model: nn.Module, batch: tuple[list[Tensor], Tensor]) -> Tensor:
        return pretext(trial, *model(*batch[0]))

    train(
        nn.Sequential(backbone, head) if supervised else TwoPasses(backbone, projector),
        batches,
        cross_entropy if supervised else pretext_loss,
        size.epochs * (len(data) // size.batch),
        rate,
        trial.scale,
        checkpoint=checkpoint,
        progress=lambda share: trial.progress(round(900 * share), of=1000),
    )


def trial_name(trial: Trial) -> str:
    """What tells this trial's training apart from others of the room."""
    return "-".join([trial.arm, str(trial.seed), *(f"{name} {value}" for name, value in trial.setting.items())])


def fine_tuned(trial: Trial, backbone: nn.Module, data: LabelledImages, few: Tensor, test: LabelledImages) -> float:
    """Test accuracy after a copy of the backbone was trained on a few labelled images."""
    size = Size.of(trial.scale)
    few = few.repeat(max(1, size.tuning_batch // len(few))).to(trial.device)
    some = LabelledImages(data.images[few], data.labels[few])
    features = outputs(backbone, some.images[:1]).shape[1]
    classifier = nn.Sequential(copy.deepcopy(backbone), new_head(features, int(some.labels.max()) + 1, trial.device))
    batches = Batches(some, min(size.tuning_batch, len(some)), 1, view_for(trial.scale), trial.seed)
    slow, fast = FRESH_RATES if trial.arm in UNTRAINED else TUNING_RATES
    slow, fast = (PAPER_TUNING_FACTOR * rate if trial.scale is Scale.PAPER else rate for rate in (slow, fast))
    train(classifier, batches, cross_entropy, size.tuning_steps, slow, trial.scale, head_rate=fast)
    return accuracy(classifier, test)


@study.trial
def learn_and_probe(trial: Trial, shared: Images) -> Measurements:
    """Train a backbone in the way of the arm, then read it with few and with all labels."""
    size = Size.of(trial.scale)
    data, test = (
        LabelledImages(each.images.to(trial.device), each.labels.to(trial.device))
        for each in (shared.train, shared.test)
    )
    backbone, features, projector = networks(trial, size, data.images[0].numel())
    head = new_head(features, int(data.labels.max()) + 1, trial.device)
    embed = nn.Sequential(backbone, projector).to(trial.device)
    calibrate(embed, data.images)
    learn(trial, backbone, projector, head, data)

    z = outputs(embed, test.images)
    views, _ = next(Batches(test, len(test), 2, view_for(trial.scale), trial.seed)(0))
    correlation = cross_correlation(outputs(embed, views[0]), outputs(embed, views[1]))
    read, read_test = outputs(backbone, data.images), outputs(backbone, test.images)
    labels, test_labels = data.labels.cpu(), test.labels.cpu()
    draws = torch.stack([few_labels(labels, size.per_class, trial.seed + number) for number in range(size.draws)])
    if trial.arm == "supervised":
        full = accuracy(nn.Sequential(backbone, head), test)
    else:
        full = float(probe(read, labels, torch.arange(len(labels))[None], read_test, test_labels))
    measured: dict[str, float | int | np.ndarray[Any, Any]] = {
        PROBE: float(probe(read, labels, draws, read_test, test_labels).mean()),
        FULL: full,
        TUNED: float(np.mean([fine_tuned(trial, backbone, data, few, test) for few in draws[: size.tuning_draws]])),
        RANK: effective_rank(z),
        SPREAD: float(z.std(dim=0).mean()),
        "parameters": sum(p.numel() for p in embed.parameters()),
        "correlation": correlation[:SHOWN, :SHOWN].abs().numpy(),
    }
    if trial.scale is Scale.PAPER:
        checkpoint_file("barlow_twins", trial_name(trial)).unlink(missing_ok=True)
    trial.progress(1000, of=1000)
    return measured


@study.figure
def matrices_and_accuracies(trials: Trials, figure: Figure) -> None:
    """Cross-correlations before training, without and with the off-diagonal term, and accuracies of all arms."""
    *maps, dots = figure.subplots(1, 4, width_ratios=(1, 1, 1, 2.1))
    picture = None
    for axes, arm, title in zip(
        maps, ("random", "invariance", "barlow"), ("Before training", "Diagonal only", "Barlow Twins"), strict=True
    ):
        picture = axes.imshow(trials.arrays(arm, "correlation")[0], cmap="viridis", vmin=0, vmax=1)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("features of one view")
    maps[0].set_ylabel("features of the other view")
    assert picture is not None
    figure.colorbar(picture, ax=maps, location="bottom", shrink=0.5, aspect=40, label="correlation, absolute")
    draw_accuracies(trials, dots)


def draw_accuracies(trials: Trials, axes: Axes) -> None:
    """A row an arm: accuracies in three ways of reading, with the range over seeds."""
    places = np.arange(len(trials.arms))[::-1]
    for measure, marker, offset in ((PROBE, "o", 0.22), (TUNED, "s", 0.0), (FULL, "D", -0.22)):
        for place, arm in zip(places, trials.arms, strict=True):
            found = 100 * trials.values(arm, measure)
            spread = [[found.mean() - found.min()], [found.max() - found.mean()]]
            filled = "none" if measure == FULL else trials.color(arm)
            axes.errorbar(
                found.mean(), place + offset, xerr=spread, fmt=marker, color=trials.color(arm), mfc=filled, markersize=5
            )
        face = "none" if measure == FULL else "#64748b"
        axes.plot([], [], marker, color="#64748b", mfc=face, markersize=5, label=measure)
    axes.set_yticks(places, [trials.label(arm) for arm in trials.arms])
    axes.set(title="What the features are worth", xlabel="test accuracy (%)")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3, fontsize=7.5, columnspacing=1, handletextpad=0.2
    )
