"""What one trial trains: the unstructured tasks with all activation functions of an arm, and the rest of the family.

Letters: R = networks of a seed (one task draw and one start each), P = conditions, N = units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.bench import Scale, Trial
from working_papers.papers.representational_geometry.method import (
    OneHidden,
    Samples,
    Task,
    Trajectory,
    alignment,
    geometry_report,
    structured_task,
    train_together,
    unit_selectivity,
    within_class_fraction,
)

MEMBERS = {
    "tanh": ("tanh", "erf", "hard tanh"),
    "relu": ("relu", "leaky relu", "softplus", "gelu"),
    "linear": ("linear",),
    "untrained": ("tanh",),
}
"""Activation functions of each arm; the first speaks for it."""

UNSTRUCTURED = ((8, "dichotomy"), (32, "dichotomy"), (16, "factorial:2"))  # inputs that know nothing of the labels
STRUCTURED = (("dichotomy", 0.1), ("dichotomy", 0.3), ("xor", 0.5))  # separability; 8 conditions
TRAINING_NOISE = (0.3, 1.0)
LEVEL = 5e-3  # loss at which arms are compared again, in nats; all of them reach it
TEST_NOISE = 1.0  # as long as an input of the unstructured tasks
RECORDED = (0, 1, 3, 10, 30, 100, 300, 1000)
LEARNING_RATE = 5e-3

FAMILY = (
    "8 conditions",
    "32 conditions",
    "16 conditions, 2 targets",
    "separability 0.1",
    "separability 0.3",
    "XOR, separability 0.5",
    "training noise 0.3",
    "training noise 1",
    "trained readout",
    "start ten times as large",
)
"""Tasks and variants in the order of `Findings.family`."""


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        networks: of each kind, R.
        dimension: of the inputs, d.
        hidden: units, N.
        steps: of training.
        samples: noisy samples of a condition to fit readouts on, and as many to test them.
        dichotomies: untrained ones that are decoded.
    """

    networks: int
    dimension: int
    hidden: int
    steps: int
    samples: int
    dichotomies: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale."""
        return scale.choose(
            smoke=cls(1, 40, 30, 10, 5, 10),
            laptop=cls(4, 100, 200, 1000, 50, 50),
            paper=cls(10, 100, 200, 1000, 50, 100),
        )


@dataclass(frozen=True)
class Findings:
    """Means over networks, and over tasks where there is no axis for them.

    Attributes:
        curves: alignment with inputs and targets of each activation along training [members, 2, records].
        family: alignment with inputs and targets of the arm's first activation at the end [tasks, 2].
        target: alignment with targets, unstructured tasks.
        input: alignment with inputs, likewise.
        within: share of variance within classes.
        matched_target: alignment with targets when the loss first is `LEVEL`.
        matched_input: alignment with inputs then.
        abstraction: ccgp, accuracy on untrained and on trained dichotomies, parallelism and dimension, by name.
        between: share of units' input weights between classes; tasks with one target.
        loss: at the end, geometric mean over networks and tasks.
    """

    curves: Tensor
    family: Tensor
    target: float
    input: float
    within: float
    matched_target: float
    matched_input: float
    abstraction: dict[str, float]
    between: float
    loss: float


def seeds_of(trial: Trial, count: int) -> list[int]:
    """Seeds of the networks of a trial, the same for all arms."""
    generator = torch.Generator().manual_seed(trial.seed)
    numbers: list[int] = torch.randint(0, 2**62, (count,), generator=generator).tolist()
    return numbers


def steps_of(trial: Trial) -> int:
    """Training steps of an arm."""
    return 0 if trial.arm == "untrained" else Size.of(trial.scale).steps


def train(trial: Trial, network: OneHidden, x: Tensor, t: Tensor, noise: float | Tensor = 0.0) -> Trajectory:
    """Train a stack in the common way."""
    steps = steps_of(trial)
    return train_together(
        network.to(trial.device),
        x.to(trial.device),
        t.to(trial.device),
        steps=steps,
        learning_rate=LEARNING_RATE,
        record=[*(step for step in RECORDED if step < steps), steps],
        level=LEVEL,
        noise=noise,
        seed=trial.seed % 2**31,
    )


def run_family(trial: Trial) -> Findings:
    """Train and measure everything on artificial tasks."""
    size, members = Size.of(trial.scale), MEMBERS[trial.arm]
    R, seeds = size.networks, seeds_of(trial, size.networks)
    curves, rows, matched, collapsed, reports, between, losses = [], [], [], [], [], [], []
    for done, (conditions, targets) in enumerate(UNSTRUCTURED):
        task = structured_task(conditions, size.dimension, targets, 0.0, seeds)
        names = [name for name in members for _ in seeds]
        network = OneHidden(size.dimension, size.hidden, task.t.shape[1], names, seed=seeds * len(members))
        found = train(trial, network, task.x.repeat(len(members), 1, 1), task.t)
        x, t = task.x.to(trial.device), task.t.to(trial.device)
        both = measure(found.hidden, x.repeat(len(members), 1, 1), t)  # [records, members R, 2]
        curves.append(both.unflatten(1, (len(members), R)).mean(dim=2))
        rows.append(both[-1, :R].mean(dim=0))
        assert found.matched is not None
        matched.append(measure(found.matched[:R], x, t).mean(dim=0))
        lead = network.take(range(R))
        h = found.hidden[-1, :R]
        collapsed.append(within_class_fraction(h, t).mean())
        report = geometry_report(
            h, x, t, samples=noisy_activity(trial, lead, task), seed=trial.seed % 2**31, n_dichotomies=size.dichotomies
        )
        parts = (report.ccgp, report.sd_untrained, report.sd_trained, report.ps, report.dimension)
        reports.append(torch.stack([part.mean() for part in parts]))
        if t.shape[1] == 1:
            units = unit_selectivity(lead.weight.detach(), x, t[:, 0])
            between.append(units.between_share.mean())
        losses.append(found.loss[-1, :R].log().mean())
        trial.progress(done + 1, of=len(UNSTRUCTURED) + 3)
    rows += variants(trial, members[0], seeds)
    target_input = torch.stack(rows).cpu()
    of_unstructured = target_input[: len(UNSTRUCTURED)].mean(dim=0)
    matched_input, matched_target = torch.stack(matched).mean(dim=0).tolist()
    names = ["ccgp", "untrained", "trained", "parallelism", "dimension"]
    return Findings(
        curves=torch.stack(curves).mean(dim=0).permute(1, 2, 0).cpu(),
        family=target_input,
        input=float(of_unstructured[0]),
        target=float(of_unstructured[1]),
        within=float(torch.stack(collapsed).mean()),
        matched_input=matched_input,
        matched_target=matched_target,
        abstraction=dict(zip(names, torch.stack(reports).mean(dim=0).tolist(), strict=True)),
        between=float(torch.stack(between).mean()),
        loss=float(torch.stack(losses).mean().exp()),
    )


def variants(trial: Trial, activation: str, seeds: list[int]) -> list[Tensor]:
    """The rest of the family with one activation, 8 conditions each: input and target alignment a variant [2]."""
    size, R = Size.of(trial.scale), len(seeds)
    tasks = [structured_task(8, size.dimension, targets, s, seeds) for targets, s in STRUCTURED]
    x = torch.cat([task.x for task in tasks])
    t = torch.cat([task.t.expand(R, -1, -1) for task in tasks])
    network = OneHidden(size.dimension, size.hidden, 1, activation, seed=seeds * len(tasks))
    layers = train(trial, network, x, t).hidden[-1].split(R)
    found = [final(layer, task) for layer, task in zip(layers, tasks, strict=True)]
    trial.progress(len(UNSTRUCTURED) + 1, of=len(UNSTRUCTURED) + 3)

    plain = structured_task(8, size.dimension, "dichotomy", 0.0, seeds)
    noise = torch.tensor(TRAINING_NOISE).repeat_interleave(R).to(trial.device)
    network = OneHidden(size.dimension, size.hidden, 1, activation, seed=seeds * len(TRAINING_NOISE))
    noisy = train(trial, network, plain.x.repeat(len(TRAINING_NOISE), 1, 1), plain.t, noise).hidden[-1]
    found += [final(layer, plain) for layer in noisy.split(R)]
    trial.progress(len(UNSTRUCTURED) + 2, of=len(UNSTRUCTURED) + 3)

    learned = OneHidden(size.dimension, size.hidden, 1, activation, seed=seeds, readout="trained")
    large = OneHidden(size.dimension, size.hidden, 1, activation, seed=seeds, init_gain=1.0)
    return found + [final(train(trial, each, plain.x, plain.t).hidden[-1], plain) for each in (learned, large)]


def measure(h: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Alignment with inputs and with targets on a last axis [..., 2]."""
    return torch.stack([alignment(h, x), alignment(h, t)], dim=-1)


def final(h: Tensor, task: Task) -> Tensor:
    """Alignments of a task's networks, averaged [2]."""
    return measure(h, task.x.to(h.device), task.t.to(h.device)).mean(dim=0)


def noisy_activity(trial: Trial, network: OneHidden, task: Task) -> Samples:
    """The layer's activity at noisy inputs, to fit and to test readouts."""
    n = Size.of(trial.scale).samples
    inputs, _ = task.sample(2 * n, TEST_NOISE, torch.Generator().manual_seed(trial.seed))
    with torch.no_grad():
        h = network.hidden(inputs.flatten(1, 2).to(trial.device)).unflatten(1, inputs.shape[1:3])
    return Samples(h[:, :, :n], h[:, :, n:])
