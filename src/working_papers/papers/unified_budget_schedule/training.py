"""What the study trains: two kinds of network, several peak learning rates at a time, under any of the schedules.

Letters: C = peak learning rates that are tried, B = images a batch, T = steps of a budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.optim import lr_scheduler

from working_papers.bench import Scale
from working_papers.data.digits import load_digits
from working_papers.papers.unified_budget_schedule.method import UBASchedule, suggested_phi

NOISE = 0.2  # of the training labels at laptop scale are wrong; our choice, so that small steps at the end matter
VALIDATION = 0.25  # of the training images of the digits choose the peak learning rate
CIFAR_VALIDATION = 5000
WARM_UP, WARM_UP_START = 0.05, 0.1  # of the steps of AdamW, from a tenth of the peak; the paper's runs have 1 to 5 %


@dataclass(frozen=True)
class Images:
    """What the arms of a seed are given.

    Attributes:
        training, validation, test: images (N, channels, height, width) float.
        training_labels, validation_labels, test_labels: (N,) int64; only those of training are noisy.
        order: (T, B) int64, which training images each step sees; shorter budgets see its start.
        classes: number of classes.
    """

    training: Tensor
    training_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    order: Tensor
    classes: int


def batch_order(images: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Indices (steps, batch): passes over the images, each in a new order, without a short batch at its end."""
    a_pass = images // batch
    passes = [torch.randperm(images, generator=generator)[: a_pass * batch] for _ in range(math.ceil(steps / a_pass))]
    return torch.cat(passes)[: steps * batch].view(steps, batch)


def digits(seed: int, batch: int, steps: int) -> Images:
    """The digits with a fresh split into training and validation, and wrong labels for a part of the former."""
    generator = torch.Generator().manual_seed(seed)
    known, test = load_digits()
    shuffled = torch.randperm(len(known), generator=generator)
    held_out = round(VALIDATION * len(known))
    validation, training = shuffled[:held_out], shuffled[held_out:]
    labels = known.labels[training].clone()
    wrong = torch.randperm(len(labels), generator=generator)[: round(NOISE * len(labels))]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, wrong.shape, generator=generator)) % 10
    return Images(
        training=known.images[training],
        training_labels=labels,
        validation=known.images[validation],
        validation_labels=known.labels[validation],
        test=test.images,
        test_labels=test.labels,
        order=batch_order(len(training), batch, steps, generator),
        classes=10,
    )


def cifar(seed: int, batch: int, steps: int, folder: Path | None = None, held_out: int = CIFAR_VALIDATION) -> Images:
    """CIFAR-100, its channels centred and scaled, with a part of the training images held out for validation."""
    from working_papers.data.cifar import load_cifar100

    generator = torch.Generator().manual_seed(seed)
    known, test = load_cifar100(folder)
    if len(known) < held_out + batch:
        raise ValueError(f"CIFAR-100 has {len(known)} training images; expected at least {held_out + batch}")
    mean = known.images.mean(dim=(0, 2, 3), keepdim=True)
    deviation = known.images.std(dim=(0, 2, 3), keepdim=True)
    shuffled = torch.randperm(len(known), generator=generator)
    validation, training = shuffled[:held_out], shuffled[held_out:]
    scaled = (known.images - mean) / deviation
    return Images(
        training=scaled[training],
        training_labels=known.labels[training],
        validation=scaled[validation],
        validation_labels=known.labels[validation],
        test=(test.images - mean) / deviation,
        test_labels=test.labels,
        order=batch_order(len(training), batch, steps, generator),
        classes=100,
    )


class Convolutional(nn.Module):
    """Two small convolutions and a linear layer, for digits."""

    def __init__(self, classes: int, widths: tuple[int, int] = (8, 16)) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, widths[0], 3, padding=1)
        self.second = nn.Conv2d(widths[0], widths[1], 3, padding=1, stride=2)
        self.head = nn.Linear(16 * widths[1], classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 8, 8) -> (B, classes)
        hidden = F.relu(self.second(F.relu(self.first(images))))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


class Block(nn.Module):
    """Pre-norm attention among patches and a two-layer perceptron."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, patches, width), the same out
        split = self.query_key_value(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, heads, patches, width / heads) each
        # Written out: the fused attention has no rule for vmap, which would then run one network after the other.
        attended = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1) @ value
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(F.gelu(self.up(self.before_perceptron(x))))
        return result


class VisionTransformer(nn.Module):
    """Attention over square patches of an image, with learned positions.

    The head reads the mean over patches (`pooled`) or all patches side by side, which learns sooner where the digit is.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: int = 1,
        size: int = 8,
        patch: int = 4,
        width: int = 16,
        layers: int = 1,
        heads: int = 2,
        expansion: int = 2,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.pooled = patch, pooled
        patches = (size // patch) ** 2
        self.embed = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, width))
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width if pooled else patches * width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, channels, size, size) -> (B, classes)
        patches = F.unfold(images, self.patch, stride=self.patch).mT
        features = self.norm(self.blocks(self.embed(patches) + self.positions))
        logits: Tensor = self.head(features.mean(dim=1) if self.pooled else features.flatten(1))
        return logits


def residual(classes: int) -> nn.Module:
    """The ResNet-18 for small images that the paper's image experiments use."""
    from working_papers.nn.resnet import resnet18

    return resnet18(classes, stem="cifar")


@dataclass(frozen=True)
class Kind:
    """A kind of network with its optimiser.

    Attributes:
        make: builds the network for a number of classes.
        optimizer: "sgd" or "adamw"; it also names the phi that was fixed beforehand.
        peaks: the peak learning rates that every schedule tries.
    """

    make: Callable[[int], nn.Module]
    optimizer: str
    peaks: tuple[float, ...]

    @property
    def phi(self) -> float:
        """UBA's parameter, fixed before any run: the rule of thumb for the optimiser."""
        return suggested_phi(self.optimizer)

    def warm_up(self, steps: int) -> int:
        """Steps of warm-up, which all schedules share: some for AdamW, none for SGD."""
        return round(WARM_UP * steps) if self.optimizer == "adamw" else 0

    def optimize(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """The optimiser, with the paper's momentum, betas and weight decay as far as they are known."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)


def kinds(scale: Scale) -> dict[str, Kind]:
    """The two kinds of network by name."""
    if scale is Scale.PAPER:

        def transformer(classes: int) -> nn.Module:
            return VisionTransformer(
                classes, channels=3, size=32, patch=4, width=384, layers=6, heads=6, expansion=4, pooled=True
            )

        return {
            "convolutional": Kind(residual, "sgd", (0.05, 0.1, 0.2)),
            "transformer": Kind(transformer, "adamw", (3e-4, 1e-3, 3e-3)),
        }
    return {
        "convolutional": Kind(Convolutional, "sgd", (0.04, 0.08, 0.16, 0.32)),
        "transformer": Kind(VisionTransformer, "adamw", (0.005, 0.01, 0.02, 0.04)),
    }


def schedule(
    arm: str, optimizer: torch.optim.Optimizer, steps: int, phi: float, warm_up: int = 0
) -> lr_scheduler.LRScheduler:
    """The arm's schedule for a budget; each parameter group has its own peak. PyTorch's own where there is one.

    Args:
        arm: "uba", "cosine", "linear", "step" (a tenth after a half and after three quarters), "one-cycle" (PyTorch's
            defaults: warm-up over 30 % of the steps, and momentum moving against the rate) or "rex", whose factor is
            (1 - tau) / (1 - tau / 2).
        optimizer: its groups' learning rates are the peaks.
        steps: the budget, warm-up included.
        phi: for "uba".
        warm_up: how many of the steps rise linearly to the peak first; one-cycle has its own instead.
    """
    if arm == "uba":
        return UBASchedule(optimizer, steps, phi, warmup_steps=warm_up, warmup_start=WARM_UP_START)
    if arm == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], steps)
    rest = steps - warm_up

    def rex(step: int) -> float:
        return (1 - step / rest) / (1 - step / (2 * rest))

    def fall() -> lr_scheduler.LRScheduler:
        if arm == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, rest)
        if arm == "linear":
            return lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest)
        if arm == "step":
            return lr_scheduler.MultiStepLR(optimizer, [rest // 2, 3 * rest // 4], gamma=0.1)
        if arm == "rex":
            return lr_scheduler.LambdaLR(optimizer, rex)
        raise ValueError(f"arm is {arm!r}; expected uba, cosine, linear, step, one-cycle or rex")

    if not warm_up:
        return fall()
    rise = lr_scheduler.LinearLR(optimizer, start_factor=WARM_UP_START, total_iters=warm_up)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall()], [warm_up])


def rates(arm: str, steps: int, phi: float = 2.0, warm_up: int = 0) -> Tensor:
    """What an arm's schedule sets for a peak of 1 at each of the steps, (T,) float64."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = schedule(arm, optimizer, steps, phi, warm_up)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class Ends:
    """What each of the C candidates reached at its last step, all (C,)."""

    validation: Tensor
    test: Tensor
    training_loss: Tensor

    def best(self) -> int:
        """The candidate with the best validation accuracy; the lower training loss decides between equals."""
        top = self.validation == self.validation.max()
        return int(self.training_loss.masked_fill(~top, math.inf).nan_to_num(nan=math.inf).argmin())


def initial_network(kind: Kind, classes: int, seed: int) -> nn.Module:
    """A network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind.make(classes)


def train_together(
    kind: Kind, arm: str, steps: int, images: Images, seed: int, progress: Callable[[int], None] | None = None
) -> Ends:
    """Train one small network per peak learning rate, all at once: same start, same batches, real optimiser.

    The weights of the C networks are stacked; the optimiser sees each network's part as a parameter group of its own,
    whose learning rate the schedule moves.

    Args:
        kind: network and optimiser.
        arm: the schedule.
        steps: the budget T.
        images: the data; the first T rows of its order are used.
        seed: of the initial weights.
        progress: called with the number of steps taken.
    """
    network = initial_network(kind, images.classes, seed)
    count = len(kind.peaks)
    stacked = {
        name: p.detach().expand(count, *p.shape).clone().requires_grad_() for name, p in network.named_parameters()
    }
    slots = {name: torch.zeros_like(p) for name, p in stacked.items()}
    groups: list[dict[str, object]] = []
    for candidate, peak in enumerate(kind.peaks):
        parts = []
        for name, p in stacked.items():
            part = p.detach()[candidate]
            part.grad = slots[name][candidate]
            parts.append(part)
        groups.append({"params": parts, "lr": peak})
    optimizer = kind.optimize(groups)
    scheduler = schedule(arm, optimizer, steps, kind.phi, kind.warm_up(steps))

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(network, weights, (x,))
        return logits

    forward = vmap(one, in_dims=(0, None))

    for step, rows in enumerate(images.order[:steps]):
        logits = forward(stacked, images.training[rows])
        labels = images.training_labels[rows].repeat(count)
        # Networks do not meet in the sum, so each gets the gradient of its own mean loss.
        loss = count * F.cross_entropy(logits.flatten(0, 1), labels)
        torch._foreach_copy_(list(slots.values()), list(torch.autograd.grad(loss, list(stacked.values()))))
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(step + 1)

    with torch.no_grad():

        def accuracy(x: Tensor, y: Tensor) -> Tensor:
            return (forward(stacked, x).argmax(dim=-1) == y).double().mean(dim=1)

        fitted = forward(stacked, images.training)
        losses = torch.stack([F.cross_entropy(each, images.training_labels) for each in fitted])
        return Ends(
            accuracy(images.validation, images.validation_labels),
            accuracy(images.test, images.test_labels),
            losses.double(),
        )


def augmented_batches(images: Images, steps: int, seed: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in the images' order, each image shifted by up to four pixels and mirrored half of the time.

    Args:
        images: the data.
        steps: of the whole training.
        seed: of shifts and mirrorings, which depend on it and the number of the step alone.
        first: number of the first step.
    """
    edge = 4
    size = images.training.shape[-1]
    along = torch.arange(size)
    for step, rows in enumerate(images.order[first:steps], first):
        generator = torch.Generator().manual_seed((seed << 20) + step)
        x = F.pad(images.training[rows], (edge,) * 4)
        down, right = torch.randint(2 * edge + 1, (2, len(rows), 1), generator=generator)
        columns = along.expand(len(rows), size)
        mirrored = torch.rand(len(rows), 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns) + right
        each = torch.arange(len(rows))[:, None, None]
        # Indices around the sliced channel axis put that axis last.
        shifted = x[each, :, (along + down)[:, :, None], columns[:, None, :]].movedim(-1, 1)
        yield shifted.contiguous(), images.training_labels[rows]


@torch.no_grad()
def evaluate(network: nn.Module, x: Tensor, y: Tensor, device: str, batch: int = 1000) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    network.eval()
    correct, loss = 0.0, 0.0
    for some, labels in zip(x.split(batch), y.split(batch), strict=True):
        logits, labels = network(some.to(device)).float(), labels.to(device)
        correct += float((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct / len(y), loss / len(y)


def train_apart(
    kind: Kind,
    arm: str,
    steps: int,
    images: Images,
    seed: int,
    device: str,
    progress: Callable[[int], None] | None = None,
    checkpoints: Path | None = None,
) -> Ends:
    """Train one large network after the other, one for each peak learning rate; arguments as `train_together`.

    Args:
        kind: of network.
        arm: names the schedule.
        steps: of the budget.
        images: to train on and to judge by.
        seed: of weights and batches.
        device: where it computes.
        progress: called with the steps done.
        checkpoints: folder where each training keeps its state, so that a killed one goes on; None keeps none.
    """
    from working_papers.nn.training import fit

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        return augmented_batches(images, steps, seed, first)

    ends = []
    for number, peak in enumerate(kind.peaks):
        network = initial_network(kind, images.classes, seed).to(device)
        optimizer = kind.optimize([{"params": list(network.parameters()), "lr": peak}])
        try:
            fit(
                network,
                batches,
                loss,
                optimizer,
                schedule(arm, optimizer, steps, kind.phi, kind.warm_up(steps)),
                steps=steps,
                precision="bfloat16" if device.startswith("cuda") else "float32",
                device=device,
                checkpoint=checkpoints / f"{kind.optimizer}-{steps}-{peak}.pt" if checkpoints is not None else None,
            )
        except FloatingPointError:  # this peak is too high: a result, not a failure of the trial
            ends.append((0.0, 0.0, math.inf))
            continue
        _, training_loss = evaluate(network, images.training, images.training_labels, device)
        validation, _ = evaluate(network, images.validation, images.validation_labels, device)
        test, _ = evaluate(network, images.test, images.test_labels, device)
        ends.append((validation, test, training_loss))
        if progress is not None:
            progress((number + 1) * steps // len(kind.peaks))
    return Ends(*torch.tensor(ends, dtype=torch.float64).T)
