"""Charged particles whose motion turns with them, and graphs that message passing cannot tell apart.

The same graph network, from the same initial weights, predicts where five charged particles will be; the arms differ
only in how they treat rotations and reflections. A second, untrained task asks which graphs a network tells apart
when node identifiers are handed out through the graph frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu
from torch.utils.flop_counter import FlopCounterMode

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.papers.frame_averaging.method import (
    FrameAveraging,
    GraphFrameAveraging,
    LayerwiseFrameAveraging,
    graph_frame,
)

ELEMENTS = 8  # of the frame of E(3); every other arm gets this many times the training steps
ANGLES = (1, 3, 10, 30, 60, 90, 120, 150, 180)  # degrees, for the figure
LEARNING_RATES = ({"learning rate": 1e-3}, {"learning rate": 2e-3}, {"learning rate": 4e-3})

study = Study(
    question="",
    arms={
        "layerwise": "Frame averaging in every layer",
        "frame": "Frame averaging around the network",
        "element": "One random frame element",
        "augmented": "Random rotations in training",
        "plain": "Network alone",
    },
    method="layerwise",
    seeds={"smoke": 2, "laptop": 5, "paper": 5},
    measures=(
        Measure("test error", better="lower", scale="ratio"),
        Measure("symmetry error", better="lower", scale="ratio"),
        Measure("graph pairs judged right", better="higher"),
    ),
    checks=(
        beats("layerwise", over="plain", on="test error", by=0.0, claim="nbody-accuracy"),
        beats("layerwise", over="augmented", on="test error", by=0.0, claim="nbody-accuracy"),
        within("layerwise", on="symmetry error", high=1e-4, claim="exact-symmetry"),
        within("layerwise", on="graph pairs judged right", low=0.99, claim="graph-separation"),
    ),
    tuning=Tuning(on="test error", candidates=dict.fromkeys(
        ("layerwise", "frame", "element", "augmented", "plain"), LEARNING_RATES), seeds=1),
    budget="",
    sham="plain",
    figure_size=(11.0, 3.4),
)


@dataclass(frozen=True)
class Scenes:
    """Particle scenes: [N, 5, 3] positions, velocities and later positions, [N, 5, 5, 2] pair features."""

    position: Tensor
    velocity: Tensor
    target: Tensor
    pairs: Tensor

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: Tensor | slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(self.position[index], self.velocity[index], self.target[index], self.pairs[index])

    def turned(self, rotation: Tensor) -> Scenes:
        """Every scene [N, ...] turned about its centre by its own matrix of [N, 3, 3]."""
        centre = self.position.mean(dim=1, keepdim=True)
        return Scenes(
            (self.position - centre) @ rotation + centre,
            self.velocity @ rotation,
            (self.target - centre) @ rotation + centre,
            self.pairs,
        )


@dataclass(frozen=True)
class Task:
    """What all arms of a seed share."""

    train: Scenes
    validation: Scenes
    test: Scenes
    first: Tensor
    second: Tensor
    same: Tensor


def simulate(count: int, burn_in: int, horizon: int, random: np.random.Generator) -> Scenes:
    """Charged particles in free space."""
    particles, step, largest_force = 5, 0.001, 100.0
    i, j = np.triu_indices(particles, 1)
    incidence = np.zeros((particles, len(i)))
    incidence[i, np.arange(len(i))], incidence[j, np.arange(len(i))] = 1.0, -1.0
    charge = random.choice([-1.0, 1.0], size=(particles, count))
    x = random.standard_normal((3, particles, count))
    v = random.standard_normal((3, particles, count))
    v *= 0.5 / np.sqrt((v**2).sum(axis=0))
    product = charge[i] * charge[j]

    def kick() -> None:
        difference = x[:, i] - x[:, j]
        square = (difference * difference).sum(axis=0)
        force = incidence @ (difference * (product / (square * np.sqrt(square))))
        np.clip(force, -largest_force, largest_force, out=force)
        v.__iadd__(step * force)

    for _ in range(burn_in):
        kick()
        x += step * v
    start, speed = x.copy(), v.copy()
    for _ in range(horizon):
        kick()
        x += step * v

    def tensor(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a.transpose(2, 1, 0))).float()

    position = tensor(start)
    q = torch.from_numpy(charge.T.copy()).float()
    distance = (position[:, :, None] - position[:, None]).square().sum(-1)
    pairs = torch.stack([q[:, :, None] * q[:, None], distance], dim=-1)
    return Scenes(position, tensor(speed), tensor(x), pairs)


class MessagePassing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.receiver = nn.Linear(width, width)
        self.sender = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(2, width, bias=False)
        self.message = nn.Linear(width, width)
        self.update = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        m = self.receiver(h)[:, :, None] + self.sender(h)[:, None] + self.pair(pairs)
        m = silu(self.message(silu(m)))
        others = 1.0 - torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
        received = torch.einsum("bijh,ij->bih", m, others)
        return h + self.update(torch.cat([h, received], dim=-1))


class GraphNetwork(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(6, width)
        self.layers = nn.ModuleList(MessagePassing(width) for _ in range(depth))
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, position: Tensor, velocity: Tensor, pairs: Tensor) -> Tensor:
        h = self.embedding(torch.cat([position, velocity], dim=-1))
        for layer in self.layers:
            h = layer(h, pairs)
        return self.readout(h)


def random_orthogonal(count: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]


def predictor(arm: str, network: GraphNetwork, generator: torch.Generator) -> nn.Module:
    if arm == "layerwise":
        return LayerwiseFrameAveraging(network.embedding, network.layers, network.readout, out="point")
    if arm == "frame":
        return FrameAveraging(network, out="point")
    if arm == "element":
        return FrameAveraging(network, out="point", sample=1)
    return network


def train(trial, task, width, depth, batch, steps, evaluations=30):
    g = torch.Generator().manual_seed(trial.seed)
    torch.manual_seed(trial.seed)
    network = GraphNetwork(width, depth)
    model = predictor(trial.arm, network, g)
    arm = trial.arm
    def predict(s: Scenes) -> Tensor:
        if arm in ("plain", "augmented"):
            c = s.position.mean(1, keepdim=True)
            return model(s.position - c, s.velocity, s.pairs) + c
        if arm == "element":
            return model(s.position, s.velocity, pairs=s.pairs, generator=g)
        return model(s.position, s.velocity, pairs=s.pairs)
    if arm not in ("layerwise", "frame"):
        steps *= ELEMENTS
    opt = torch.optim.Adam(network.parameters(), lr=trial.setting["learning rate"])
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    best = math.inf; curve = []
    import time
    t0=time.time()
    for s in range(steps):
        idx = torch.randint(len(task.train), (batch,), generator=g) if batch < len(task.train) else slice(None)
        sc = task.train.take(idx)
        if arm == "augmented":
            sc = sc.turned(random_orthogonal(len(sc), g))
        loss = mse_loss(predict(sc), sc.target)
        opt.zero_grad(); loss.backward(); opt.step(); sched.step()
        if (s + 1) % (steps // evaluations) == 0:
            with torch.no_grad():
                v = mse_loss(predict(task.validation), task.validation.target).item()
                curve.append(v)
                if v < best:
                    best = v
                    test = mse_loss(predict(task.test), task.test.target).item()
    return test, best, curve, loss.item(), time.time() - t0
