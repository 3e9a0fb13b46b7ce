"""Dataset distillation with directed weight adjustment (https://arxiv.org/abs/2409.17612).

A few synthetic images stand for a data set: they are optimised until a frozen teacher recognises them and its batch
normalisations see the statistics that they saw in training. Batches made alone come out alike; here the teacher is
nudged before each one, against that batch's own starting images, so that each fills up with something else.

Letters: N = images of a batch, C = classes, D = features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Direction = Literal["ascent", "random", "none"]
Bounds = tuple[float | Tensor, float | Tensor]
TINY = 1e-12
"""Added to the norm of a gradient, as in the official code: the gradient of a perfect teacher can be zero."""


@contextmanager
def directed_weight_adjustment(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    rho: float = 0.015,
    steps: int = 12,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    direction: Direction = "ascent",
    jitter: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[nn.Module]:
    """The model with weights that know the given images a little less, for as long as the context lasts.

    In each of K steps all parameters together move by ρ/K along the gradient of the images' loss. Inside the context
    the model is in evaluation mode and its parameters ask for no gradient; on leaving it, also by an exception,
    weights, buffers, modes and `requires_grad` are what they were, bit for bit.

    Args:
        model: a trained classifier, changed in place for the time being.
        images: (N, ...), which the batch starts from.
        labels: (N,) int64.
        rho: ρ, length of the whole way, an upper bound of the distance from the weights; relative to nothing, so that
            a larger network wants a larger one.
        steps: K; 12 for CIFAR, 15 for ImageNet in the published commands.
        criterion: of (logits, labels).
        direction: "ascent" up the loss, "random" a Gaussian direction of length ρ (a control), "none" no change.
        jitter: images are rolled by up to so many pixels before each gradient, as in synthesis.
        generator: of the rolls, and of the random direction, on the CPU.

    Yields:
        The model.

    Raises:
        ValueError: a negative ρ, no steps, an unknown direction, or labels that do not fit the images.

    Source: section 3.2, equation 8 of the paper; the official code perturbs the parameters of normalisations too and
    leaves the statistics' loss out, which is followed.
    """
    if rho < 0 or not math.isfinite(rho):
        raise ValueError(f"rho is {rho}; expected 0 or more")
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if direction not in get_args(Direction):
        raise ValueError(f"direction is {direction!r}; expected one of {', '.join(get_args(Direction))}")
    _check_labels(images, labels)
    parameters = list(model.parameters())
    weights = [p.detach().clone() for p in parameters]
    flags = [p.requires_grad for p in parameters]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        if direction == "random" and rho > 0:
            noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters]
            _move(parameters, noise, rho)
        elif direction == "ascent" and rho > 0:
            for p in parameters:
                p.requires_grad_(True)
            for _ in range(steps):
                with torch.enable_grad():
                    loss = criterion(model(roll(images, jitter, generator)), labels)
                    found = torch.autograd.grad(loss, parameters, allow_unused=True)
                gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
                _move(parameters, gradients, rho / steps)
        for p in parameters:
            p.requires_grad_(False)
        yield model
    finally:
        with torch.no_grad():
            for p, weight, flag in zip(parameters, weights, flags, strict=True):
                p.copy_(weight)
                p.requires_grad_(flag)
                p.grad = p.grad if flag else None
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training


def _move(parameters: list[nn.Parameter], directions: list[Tensor], length: float) -> None:
    """Move all parameters together by a length along a direction."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(d.float()) for d in directions]))
    with torch.no_grad():
        for p, d in zip(parameters, directions, strict=True):
            p.add_((d * (length / (norm + TINY))).to(p.dtype))


class BNStatistics:
    """How far a batch is from what the normalisations of a model saw in training; use it as a context.

    It looks at the input of every batch normalisation in each forward pass, so that the loss is that of the last pass.

    Args:
        model: with batch normalisations (of any dimension) that keep running statistics.
        r_var: weight of the variances beside the means; 1 in SRe2L, 11 (CIFAR, Tiny-ImageNet) or 2 (ImageNet) here.
        first_multiplier: weight of the first normalisation, which sees the images themselves.

    Raises:
        ValueError: the model has none, or a weight is negative.

    Source: equation 10 of the paper, with the plain norms of the official code.
    """

    def __init__(self, model: nn.Module, r_var: float = 1.0, first_multiplier: float = 10.0) -> None:
        if min(r_var, first_multiplier) < 0:
            raise ValueError(f"r_var and first_multiplier are {r_var} and {first_multiplier}; expected 0 or more")
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not layers:
            raise ValueError("model has no batch normalisation with running statistics; expected at least one")
        self.r_var, self.first_multiplier = r_var, first_multiplier
        self._layers = layers
        self._distances: dict[int, Tensor] = {}
        self._hooks = [layer.register_forward_pre_hook(self._look(number)) for number, layer in enumerate(layers)]

    def _look(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None
            x = inputs[0]
            others = [axis for axis in range(x.ndim) if axis != 1]
            variance, mean = torch.var_mean(x, dim=others, correction=0)
            # PyTorch's norm has the gradient 0 where it is 0, so that a perfect match is no trap.
            self._distances[number] = torch.linalg.vector_norm(
                layer.running_mean - mean
            ) + self.r_var * torch.linalg.vector_norm(layer.running_var - variance)

        return hook

    def loss(self) -> Tensor:
        """Weighted sum of the distances of the last forward pass, a scalar with its graph.

        Raises:
            ValueError: there was no forward pass yet.
        """
        if not self._distances:
            raise ValueError("there was no forward pass yet; expected one under this object's eyes")
        # In the order of the pass, which need not be that of the definitions.
        first, *rest = self._distances.values()
        return self.first_multiplier * first + sum(rest, torch.zeros_like(first))

    def clear(self) -> None:
        """Forget the last pass, before another one."""
        self._distances.clear()

    def close(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def roll(images: Tensor, most: int, generator: torch.Generator | None = None) -> Tensor:
    """All images moved cyclically by one random number of pixels, from 0 to `most`, on each of the last two axes.

    Args:
        images: (..., H, W).
        most: pixels; 0 gives the images themselves.
        generator: on the CPU.

    Raises:
        ValueError: a negative number of pixels.
    """
    if most < 0:
        raise ValueError(f"most is {most}; expected 0 or more pixels")
    if most == 0:
        return images
    down, right = torch.randint(most + 1, (2,), generator=generator).tolist()
    return images.roll((down, right), dims=(-2, -1))


def synthesize(
    model: nn.Module,
    init_images: Tensor,
    labels: Tensor,
    iterations: int = 1000,
    lr: float = 0.25,
    r_bn: float = 0.01,
    r_var: float = 11.0,
    rho: float = 0.015,
    steps: int = 12,
    jitter: int = 4,
    bounds: Bounds | None = None,
    direction: Direction = "ascent",
    generator: torch.Generator | None = None,
) -> Tensor:
    """One batch of synthetic images.

    With ρ = 0 and `r_var` = 1 and noise to start from this is SRe2L's recovery (https://arxiv.org/abs/2306.13092).

    Args:
        model: a trained classifier with batch normalisations; it is the same afterwards.
        init_images: (N, channels, H, W), real images of the classes, other ones for each batch. Not changed.
        labels: (N,) int64.
        iterations: steps of Adam on the images; 1000 for CIFAR, 2000 for larger images.
        lr: its learning rate, which falls to 0 along a cosine; 0.25, for Tiny-ImageNet 0.1.
        r_bn: weight of the batch statistics beside the cross-entropy.
        r_var: weight of their variances; 11, for ImageNet 2.
        rho: length of the adjustment, see `directed_weight_adjustment`.
        steps: of the adjustment.
        jitter: images are rolled by up to so many pixels before each step.
        bounds: lowest and highest value of a pixel, numbers or (channels, 1, 1); images are clipped after each step.
        direction: of the adjustment.
        generator: of rolls and random directions, on the CPU.

    Returns:
        (N, channels, H, W), without a graph.

    Raises:
        ValueError: as for `directed_weight_adjustment` and `BNStatistics`, or settings without sense.

    Source: algorithm 1 of the paper.
    """
    if iterations < 0 or not lr > 0 or r_bn < 0:
        raise ValueError(f"iterations, lr and r_bn are {iterations}, {lr} and {r_bn}; expected >= 0, > 0 and >= 0")
    adjusted = directed_weight_adjustment(
        model, init_images, labels, rho, steps, direction=direction, jitter=jitter, generator=generator
    )
    images = init_images.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=lr, betas=(0.5, 0.9))
    with adjusted, BNStatistics(model, r_var) as statistics, torch.enable_grad():
        for iteration in range(iterations):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * iteration / iterations)) / 2
            statistics.clear()
            loss = F.cross_entropy(model(roll(images, jitter, generator)), labels)
            if r_bn:
                loss = loss + r_bn * statistics.loss()
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimizer.step()
            if bounds is not None:
                low, high = (torch.as_tensor(b, dtype=images.dtype, device=images.device) for b in bounds)
                images.data = images.data.clamp(low, high)
    return images.detach()


def distill(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ipc: int,
    *,
    images_per_batch: int = 1,
    classes_per_batch: int = 100,
    noise: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    iterations: int = 1000,
    lr: float = 0.25,
    r_bn: float = 0.01,
    r_var: float = 11.0,
    rho: float = 0.015,
    steps: int = 12,
    jitter: int = 4,
    bounds: Bounds | None = None,
    direction: Direction = "ascent",
) -> tuple[Tensor, Tensor]:
    """A data set distilled into a few images of each class, batch by batch.

    Each batch depends on the seed and its own number alone, so that batches may be made in any order or apart.

    Args:
        model: a classifier trained on the data set.
        images: (N, channels, H, W), the data set, on any device; batches go to the model's.
        labels: (N,) int64, from 0 to C - 1; every class must have at least `ipc` images.
        ipc: images a class.
        images_per_batch: images a class in each batch; the paper has 1. With few classes more of them make batch
            statistics less noisy.
        classes_per_batch: classes of one batch.
        noise: start from Gaussian noise rather than real images.
        seed: of everything.
        progress: called with the number of images made.
        iterations: see `synthesize`, as all that follow.
        lr: learning rate on the images.
        r_bn: weight of the batch statistics.
        r_var: weight of their variances.
        rho: length of the adjustment.
        steps: of the adjustment.
        jitter: pixels.
        bounds: of a pixel; None: the lowest and highest of each channel in the data set.
        direction: of the adjustment.

    Returns:
        Images (C·ipc, channels, H, W), class by class, and their labels.

    Raises:
        ValueError: a class with too few images, or numbers below 1.
    """
    if min(ipc, images_per_batch, classes_per_batch) < 1:
        raise ValueError(
            f"ipc, images_per_batch and classes_per_batch are {ipc}, {images_per_batch} and {classes_per_batch}; "
            "expected at least 1"
        )
    _check_labels(images, labels)
    counts = torch.bincount(labels)
    if int(counts.min()) < ipc:
        raise ValueError(f"class {int(counts.argmin())} has {int(counts.min())} images; expected at least ipc = {ipc}")
    if bounds is None:
        across = [axis for axis in range(images.ndim) if axis != 1]
        bounds = images.amin(across).view(-1, 1, 1), images.amax(across).view(-1, 1, 1)
    device = next(model.parameters()).device
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = torch.stack([order[labels[order] == c][:ipc] for c in range(len(counts))])  # (C, ipc)
    made = torch.empty(*chosen.shape, *images.shape[1:], dtype=images.dtype)
    done = 0
    for column in range(0, ipc, images_per_batch):
        for row in range(0, len(counts), classes_per_batch):
            part = chosen[row : row + classes_per_batch, column : column + images_per_batch]
            generator = torch.Generator().manual_seed(((seed * 1_000_003 + column) * 1_000_003 + row) % 2**63)
            start = images[part.flatten()].to(device)
            if noise:
                start = torch.randn(start.shape, generator=generator, dtype=start.dtype).to(device)
            batch = synthesize(
                model,
                start,
                labels[part.flatten()].to(device),
                iterations=iterations,
                lr=lr,
                r_bn=r_bn,
                r_var=r_var,
                rho=rho,
                steps=steps,
                jitter=jitter,
                bounds=bounds,
                direction=direction,
                generator=generator,
            )
            made[row : row + classes_per_batch, column : column + images_per_batch] = batch.cpu().view(
                *part.shape, *images.shape[1:]
            )
            done += part.numel()
            if progress is not None:
                progress(done)
    return made.flatten(0, 1), torch.arange(len(counts)).repeat_interleave(ipc)


def soft_labels(model: nn.Module, images: Tensor, temperature: float = 20.0) -> Tensor:
    """What the teacher says of images, softened.

    Args:
        model: the teacher, as it was trained; computed in evaluation mode, and left in the mode it had.
        images: (N, ...), augmented as the student will see them.
        temperature: logits are divided by it.

    Returns:
        (N, C) probabilities, without a graph.

    Raises:
        ValueError: a temperature that is not positive.
    """
    _check_temperature(temperature)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return F.softmax(model.eval()(images) / temperature, dim=-1)
    finally:
        for module, training in modes:
            module.training = training


def soft_label_loss(logits: Tensor, targets: Tensor, temperature: float = 20.0) -> Tensor:
    """Kullback-Leibler divergence of a student from soft labels, times T² so that its gradients keep their size.

    Args:
        logits: (N, C) of the student.
        targets: (N, C), of `soft_labels` at the same temperature.
        temperature: T.

    Returns:
        A scalar, mean over the images.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.
    """
    _check_temperature(temperature)
    if logits.shape != targets.shape:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; expected that of logits, {tuple(logits.shape)}")
    loss = F.kl_div(F.log_softmax(logits / temperature, dim=-1), targets, reduction="batchmean")
    return loss * temperature**2


def diversity(features: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine distance between two images of a class, mean over the classes with two or more.

    Args:
        features: (N, D), or images, which are flattened.
        labels: (N,) int64.

    Returns:
        A scalar from 0 (all alike) to 2.

    Raises:
        ValueError: labels that do not fit, or no class with two images.

    Source: the measure of the paper's figure 4, here with any features.
    """
    _check_labels(features, labels)
    unit = F.normalize(features.flatten(1), dim=1)
    classes = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=classes).to(unit.dtype)
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, labels, unit)
    squares = unit.new_zeros(classes).index_add_(0, labels, unit.square().sum(1))
    # The sum over pairs of a class is what the square of the sum has beyond its diagonal.
    pairs = counts * (counts - 1)
    enough = pairs > 0
    if not bool(enough.any()):
        raise ValueError("no class has two images; expected at least one")
    similarity = (sums.square().sum(1) - squares)[enough] / pairs[enough]
    return 1 - similarity.mean()


def _check_labels(images: Tensor, labels: Tensor) -> None:
    if labels.ndim != 1 or len(labels) != len(images) or len(labels) == 0 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected ({len(images)},) int64, one an "
            "image and at least one"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"labels holds {int(labels.min())}; expected 0 or more")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
