"""The older noise, which needs labels: it makes the training error of a surrogate small, so nothing is left to learn.

Huang et al. 2021, "Unlearnable Examples: Making Personal Data Unexploitable", https://arxiv.org/abs/2101.04898; the
numbers of steps are those of its official code, from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["class", "sample"]


def error_minimizing_noise(
    images: Tensor,
    labels: Tensor,
    model: Callable[[], nn.Module],
    epsilon: float = 16 / 255,
    kind: Kind = "class",
    *,
    model_steps: int = 10,
    noise_steps: int | None = None,
    step_size: float | None = None,
    target_error: float = 0.01,
    max_rounds: int = 50,
    lr: float = 0.1,
    batch_size: int = 128,
    seed: int = 0,
) -> Tensor:
    """Noise with which a surrogate has nothing left to learn from images and the given labels.

    Rounds of steps of SGD on the surrogate alternate with steps of signed gradient descent on the noise, until the
    surrogate is hardly ever wrong on the images with noise.

    Args:
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64, those that the protector expects to be trained with.
        model: makes the surrogate, a classifier of all classes, with random weights.
        epsilon: largest change of a pixel.
        kind: one noise a "class", or one a "sample".
        model_steps: of SGD in each round.
        noise_steps: on all noise in each round; by default 1 for classes and 20 for samples.
        step_size: of a step on the noise; by default a tenth of ε.
        target_error: share of wrong answers at which it ends.
        max_rounds: or after so many rounds.
        lr: of SGD with momentum 0.9 and weight decay 5e-4.
        batch_size: images a step.
        seed: of the surrogate, the order of batches and the starting noise.

    Returns:
        (N, C, H, W), the noise of each image, within ±ε; images of a class share theirs for "class".

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}; expected 'class' or 'sample'")
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; expected a positive number")
    if labels.shape != (len(images),) or labels.dtype != torch.int64 or len(labels) == 0 or int(labels.min()) < 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; expected ({len(images)},) int64 from 0")
    if min(model_steps, max_rounds, batch_size) < 1:
        raise ValueError(
            f"model_steps, max_rounds and batch_size are {model_steps}, {max_rounds} and {batch_size}; expected at "
            "least 1"
        )
    noise_steps = noise_steps or (1 if kind == "class" else 20)
    step_size = step_size or epsilon / 10
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        surrogate = model().to(images.device, images.dtype)
    optimizer = torch.optim.SGD(surrogate.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    owner = labels if kind == "class" else torch.arange(len(images), device=images.device)
    shape = (int(owner.max()) + 1, *images.shape[1:])
    noise = (torch.rand(shape, generator=draws).to(images) * 2 - 1) * epsilon
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(max_rounds):
        surrogate.train()
        for _ in range(model_steps):
            if len(order) == 0:
                order = torch.randperm(len(images), generator=draws)
            rows, order = order[:batch_size].to(images.device), order[batch_size:]
            if len(rows) < 2 <= len(images):  # a single image has no batch statistics
                continue
            loss = F.cross_entropy(surrogate(_add(images[rows], noise[owner[rows]])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        surrogate.eval()
        for _ in range(noise_steps):
            gradient = torch.zeros_like(noise)
            for rows in torch.arange(len(images), device=images.device).split(max(batch_size, 256)):
                delta = noise[owner[rows]].requires_grad_(True)
                loss = F.cross_entropy(surrogate(_add(images[rows], delta)), labels[rows], reduction="sum")
                gradient.index_add_(0, owner[rows], torch.autograd.grad(loss, delta)[0])
            noise = (noise - step_size * gradient.sign()).clamp(-epsilon, epsilon)
        if _error(surrogate, images, labels, noise, owner) < target_error:
            break
    return noise[owner]


def _add(images: Tensor, noise: Tensor) -> Tensor:
    return (images + noise).clamp(0, 1)


@torch.no_grad()
def _error(model: nn.Module, images: Tensor, labels: Tensor, noise: Tensor, owner: Tensor) -> float:
    wrong = 0
    for rows in torch.arange(len(images), device=images.device).split(512):
        wrong += int((model(_add(images[rows], noise[owner[rows]])).argmax(1) != labels[rows]).sum())
    return wrong / len(images)
