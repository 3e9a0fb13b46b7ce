"""What the study trains and how it is judged: networks, views of digits, pre-training, linear probes, fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from working_papers.bench import Scale
from working_papers.data.digits import LabelledImages
from working_papers.nn.resnet import resnet18
from working_papers.nn.training import Precision, fit
from working_papers.papers.barlow_twins.method import LARS, RandomView, lars_parameters, warm_up_cosine

View = Callable[[Tensor, torch.Generator], Tensor]
WEIGHT_DECAY = 1e-4  # of AdamW at laptop scale; our choice
VECTOR_SHARE = 0.0048 / 0.2  # the learning rate of biases and normalisation over that of matrices, the paper's
WARM_UP = 0.1  # share of the steps; the paper's is a hundredth of a thousand epochs


@dataclass(frozen=True)
class Size:
    """How large networks and trainings are.

    Attributes:
        widths: channels of the three convolutions; none: a ResNet-18.
        hidden: of the projector.
        wide: D, features of the embedding.
        middle: D of the arm with an embedding narrower than the features.
        narrow: D of the arm with a narrow embedding, narrower than there are classes.
        batch: images of a step.
        epochs: of pre-training, and of the supervised arm.
        per_class: labels of a class in the few-label measures.
        draws: how often the labels are drawn for the linear probe.
        tuning_draws: with how many of the draws the network is fine-tuned.
        tuning_batch: images of a step of fine-tuning; the few labelled ones are repeated to make as many.
        tuning_steps: of fine-tuning.
        images: training images that are used; None: all.
    """

    widths: tuple[int, ...]
    hidden: int
    wide: int
    middle: int
    narrow: int
    batch: int
    epochs: int
    per_class: int
    draws: int
    tuning_draws: int
    tuning_batch: int
    tuning_steps: int
    images: int | None = None

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale a ResNet-18 learns CIFAR-10 for 800 epochs."""
        return scale.choose(
            smoke=cls((4, 4, 8), 16, 16, 8, 4, 32, 1, 3, 1, 1, 30, 2, images=96),
            laptop=cls((16, 32, 64), 256, 256, 16, 4, 128, 30, 3, 10, 2, 60, 150),
            paper=cls((), 2048, 2048, 128, 8, 512, 800, 50, 10, 1, 500, 2000),
        )


def convolutions(widths: tuple[int, ...]) -> nn.Sequential:
    """Three convolutions with batch normalisation, the second halves the sides, then the mean over places."""
    layers: list[nn.Module] = []
    for number, (channels, width) in enumerate(zip((1, *widths[:-1]), widths, strict=True)):
        stride = 2 if number == 1 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def new_backbone(size: Size, seed: int) -> tuple[nn.Module, int]:
    """An untrained network and the number of its features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if size.widths:
            return convolutions(size.widths), size.widths[-1]
        network = resnet18(0, stem="cifar")
        return network, network.features


@dataclass(frozen=True)
class DigitView:
    """A random distortion of digits: turn, zoom, shift, contrast, noise, a hole in half of the images; never a flip.

    Attributes:
        rotation: largest angle in degrees.
        zoom: largest change of size, as a share.
        shift: largest shift in pixels, in both directions.
        contrast: largest change of contrast, as a share.
        noise: standard deviation of what is added to each pixel.
        hole: side of the square that half of the views lose, in pixels.
    """

    rotation: float = 15.0
    zoom: float = 0.1
    shift: float = 1.0
    contrast: float = 0.3
    noise: float = 0.1
    hole: int = 2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Distort images (N, 1, S, S) with numbers from a generator on the CPU."""

        def drawn(*shape: int) -> Tensor:
            return torch.rand(len(images), *shape, generator=generator).mul_(2).sub_(1).to(images.device)

        side = images.shape[-1]
        angle, zoom = drawn() * math.radians(self.rotation), 1 + self.zoom * drawn()
        cos, sin, shift = zoom * angle.cos(), zoom * angle.sin(), drawn(2) * (2 * self.shift / side)
        theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        views = F.grid_sample(images, grid, align_corners=False)
        noise = torch.randn(views.shape, generator=generator).to(images.device)
        views = views * (1 + self.contrast * drawn(1, 1, 1)) + self.noise * noise
        corner = ((drawn(2) + 1) / 2 * (side - self.hole + 1)).floor()
        place = torch.arange(side, device=images.device) - corner[..., None]  # (N, 2, S), from the hole's corner
        inside = (place >= 0) & (place < self.hole)
        hole = inside[:, 0, :, None] & inside[:, 1, None, :] & (drawn(1, 1) > 0)
        return torch.where(hole[:, None], 0.0, views)


def view_for(scale: Scale) -> View:
    """The random distortion of a scale: CIFAR-10 has the paper's, without blur, as is usual for small images."""
    return RandomView(32) if scale is Scale.PAPER else DigitView()


@dataclass(frozen=True)
class Batches:
    """Random batches of views from any step on; each step has its own numbers, so that a training can resume.

    Attributes:
        data: the images, where the views are made.
        batch: images of a step.
        views: how many views of each image a batch holds.
        view: the distortion.
        seed: of order and views.
    """

    data: LabelledImages
    batch: int
    views: int
    view: View
    seed: int

    def __call__(self, first: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Views and labels of the batches from step `first` on."""
        per_epoch = max(1, len(self.data) // self.batch)
        step = first
        while True:
            epoch, inside = divmod(step, per_epoch)
            order = torch.randperm(len(self.data), generator=self._generator(2 * epoch))
            chosen = order[inside * self.batch : (inside + 1) * self.batch].to(self.data.images.device)
            images, generator = self.data.images[chosen], self._generator(2 * step + 1)
            yield [self.view(images, generator) for _ in range(self.views)], self.data.labels[chosen]
            step += 1

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def rate_at(step: int, steps: int) -> float:
    """The factor of the learning rate: the paper's warm-up and cosine, never quite zero at the first step."""
    return warm_up_cosine(step + 1, max(1, int(WARM_UP * steps)), steps + 1)


def train(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[nn.Module, tuple[list[Tensor], Tensor]], Tensor],
    steps: int,
    rate: float,
    scale: Scale,
    *,
    head_rate: float | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train in place with AdamW, at paper scale with LARS, whose rate is for 256 images and grows with the batch.

    Args:
        model: with a head of its own rate, a Sequential of backbone and head.
        batches: of views and labels.
        loss: of model and batch.
        steps: of the training.
        rate: the highest learning rate; of matrices, for LARS.
        scale: of the study.
        head_rate: the same of the head, if it has its own.
        checkpoint: where the training is kept.
        progress: called with the fraction done.
    """
    parts = [(model, rate)]
    if head_rate is not None:
        assert isinstance(model, nn.Sequential)
        parts = [(model[0], rate), (model[1], head_rate)]
    if scale is Scale.PAPER:
        groups = [
            group for part, own in parts for group in lars_parameters(part, batches.batch, own, own * VECTOR_SHARE)
        ]
        optimizer: torch.optim.Optimizer = LARS(groups)
    else:
        groups = [{"params": list(part.parameters()), "lr": own} for part, own in parts]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    device = batches.data.images.device
    precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
    schedule = LambdaLR(optimizer, lambda step: rate_at(step, steps))
    fit(
        model,
        batches,
        loss,
        optimizer,
        schedule,
        steps=steps,
        precision=precision,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )


def info_nce(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's contrastive loss (https://arxiv.org/abs/2002.05709): tell each image's other view among all views."""
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(own, -math.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z1))
    return F.cross_entropy(similarity, partner)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Give batch normalisation the statistics of the images, so that untrained networks, too, are judged with them."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(images[:2000])
    for norm in norms:
        norm.momentum = 0.1


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """What a model gives for images, in evaluation mode, float32 on the CPU."""
    model.eval()
    return torch.cat([model(part).float().cpu() for part in images.split(1000)])


def few_labels(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of as many images of each class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    return torch.cat([order[shuffled == each][:per_class] for each in shuffled.unique()])


def probe(read: Tensor, labels: Tensor, draws: Tensor, read_test: Tensor, test_labels: Tensor) -> Tensor:
    """Test accuracies of logistic regressions, each on its own labels; features are standardised by those it is given.

    What is minimised is scikit-learn's default: the sum of cross-entropies and half the squared weights (C = 1).

    Args:
        read: features of the training images (N, d).
        labels: theirs (N,).
        draws: indices of the labelled images of each regression (R, n).
        read_test: features of the test images (M, d).
        test_labels: theirs (M,).

    Returns:
        Accuracies (R,), float64.
    """
    x, y = read.double()[draws], labels[draws]  # (R, n, d), (R, n)
    mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True) + 1e-6
    x, tested = (x - mean) / std, (read_test.double() - mean) / std
    classes = int(labels.max()) + 1
    weight = x.new_zeros(len(x), x.shape[-1], classes).requires_grad_()
    bias = x.new_zeros(len(x), 1, classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-4, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = x @ weight + bias
        value = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(objective)
    with torch.no_grad():
        return ((tested @ weight + bias).argmax(dim=-1) == test_labels).double().mean(dim=1)


def effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the covariance's normalised eigenvalues: 1 for one direction, at most D."""
    covariance = torch.cov(z.double().T).reshape(z.shape[1], z.shape[1])
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    total = eigenvalues.sum()
    if not total > 0:
        return 1.0
    return float(torch.special.entr(eigenvalues / total).sum().exp())
