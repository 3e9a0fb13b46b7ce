"""How the study's detectors are trained and judged, on scenes of its own and on E-VOC."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from working_papers.nn.training import ShuffledBatches, fit
from working_papers.papers.eolo.method import (
    Detections,
    SpikingEncoder,
    load_resnet18_weights,
    random_flow,
    synaptic_operations,
)
from working_papers.papers.eolo.method.energy import MAC_PICOJOULE
from working_papers.papers.eolo.networks import ConventionalResNet, Detector
from working_papers.papers.eolo.scenes import FIXED_FLOW, LIGHTINGS, Recording, Scenes, photograph, record_events
from working_papers.papers.eolo.voc import MEAN, STD, EventVOC, Sample

MOMENTUM, PAPER_DECAY, SCENE_DECAY = 0.9, 5e-4, 1e-2  # of SGD, as the paper's, and of AdamW on scenes
WARM_UP_EPOCHS, STEP_EPOCHS = 2, (30, 40)  # the paper's
AVERAGE, AVERAGE_STEPS = 0.9999, 2000  # decay of the average of weights, and how many steps it takes to get there
SCENE_WARM_UP = 0.2  # share of the steps, for scenes


class SceneSet(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Scenes one by one: image, boxes, labels.

    Args:
        scenes: all of them.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image (3, S, S), boxes (M, 4), labels (M,)."""
        return self.scenes.images[index], self.scenes.boxes[index], self.scenes.labels[index]


def flip(boxes: Tensor, labels: Tensor, side: int, flipped: Tensor) -> Tensor:
    """Boxes (N, M, 4) of mirrored images, where `flipped` (N,) says so; those without an object stay 0."""
    mirrored = torch.stack([side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]], dim=-1)
    return torch.where((flipped[:, None] & (labels >= 0))[..., None], mirrored, boxes)


def in_any_light(fixed_flow: bool) -> Callable[[tuple[Tensor, Tensor, Tensor], torch.Generator], Sample]:
    """Photographs and events of scenes, each time mirrored or not, in a random lighting and with a random flow.

    Args:
        fixed_flow: always the same flow instead.

    Returns:
        A function of a batch of scenes and a generator.
    """

    def augment(batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Sample:
        images, boxes, labels = batch
        flipped = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        boxes = flip(boxes, labels, images.shape[-1], flipped)
        lighting = torch.tensor(LIGHTINGS)[torch.randint(len(LIGHTINGS), (len(images),), generator=generator)]
        flow = random_flow(len(images), generator=generator)  # drawn in any case: all arms see the same noise
        if fixed_flow:
            flow = torch.tensor(FIXED_FLOW)
        seen = photograph(images, lighting, generator)
        events = record_events(images, lighting, flow, generator)
        return Sample(seen, events, boxes, labels, torch.zeros_like(labels, dtype=torch.bool))

    return augment


def normalised(image: Tensor) -> Tensor:
    """An image (..., 3, H, W) with the mean and deviation of ImageNet."""
    return (image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(STD)[:, None, None]


def mirrored_or_not(batch: Sample, generator: torch.Generator) -> Sample:
    """E-VOC in training: image and events mirrored together in half of the cases, and normalised."""
    batch = Sample(*batch)
    flipped = torch.rand(len(batch.image), generator=generator) < 0.5
    image, events = (
        torch.where(flipped[:, None, None, None], each.flip(-1), each) for each in (batch.image, batch.events)
    )
    boxes = flip(batch.boxes, batch.labels, image.shape[-1], flipped)
    return Sample(normalised(image), events, boxes, batch.labels, batch.difficult)


def detection_loss(model: nn.Module, batch: Sample, head: Any) -> Tensor:
    """The head's loss on a batch; difficult objects are left out, as in VOC's trainings.

    Args:
        model: a `Detector`, perhaps inside `DistributedDataParallel`.
        batch: of samples.
        head: the detector's.
    """
    batch = Sample(*batch)
    labels = torch.where(batch.difficult, -1, batch.labels)
    loss: Tensor = head.loss(model(batch.image, batch.events), batch.boxes, labels)
    return loss


def rise_and_fall(step: int, steps: int) -> float:
    """The factor of the learning rate on scenes: a linear rise, then half a cosine."""
    warm = max(1, round(SCENE_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def warm_up_and_steps(step: int, steps_per_epoch: int) -> float:
    """The factor of the paper's learning rate: two epochs of rise (fourth power), a tenth after 30 and after 40."""
    warm = WARM_UP_EPOCHS * steps_per_epoch
    if step < warm:
        return float((step / warm) ** 4)
    epoch = step // steps_per_epoch
    return float(0.1 ** sum(epoch >= each for each in STEP_EPOCHS))


class Averaged(nn.Module):
    """A model together with the running average of its weights, so that both are kept in one checkpoint.

    Args:
        model: trained by an optimiser.
        optimizer: after each of its steps the average follows.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        optimizer.register_step_post_hook(lambda *_: self._follow())

    def forward(self, *inputs: Tensor) -> Any:
        """What the trained model gives."""
        return self.model(*inputs)

    @torch.no_grad()
    def _follow(self) -> None:
        self.updates += 1
        decay = AVERAGE * (1 - math.exp(-int(self.updates) / AVERAGE_STEPS))
        for mine, theirs in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)


@dataclass(frozen=True)
class Budget:
    """What a training gets.

    Attributes:
        epochs: over the data.
        batch: images of a step.
        rate: the highest learning rate.
        paper: SGD, schedule and average of weights of the paper; otherwise AdamW, rise and fall.
    """

    epochs: int
    batch: int
    rate: float
    paper: bool = False


def train(
    detector: Detector,
    data: Dataset[Any],
    augment: Callable[[Any, torch.Generator], Any],
    budget: Budget,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    workers: int = 0,
    every: int = 500,
    progress: Callable[[float], None] | None = None,
) -> Detector:
    """Train a detector.

    Args:
        detector: trained in place.
        data: scenes or E-VOC.
        augment: makes a batch of samples of a batch of the data.
        budget: of the training.
        seed: of order and augmentation.
        device: where to compute.
        checkpoint: where the training is kept.
        workers: processes that load.
        every: steps between two checkpoints.
        progress: called with the fraction done.

    Returns:
        The detector, or with the paper's training that of the averaged weights.
    """
    batches = ShuffledBatches(data, budget.batch, seed, augment, workers)
    per_epoch = batches.steps_per_epoch
    steps = budget.epochs * per_epoch
    detector.to(device)
    if not budget.paper:
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model: nn.Module = detector
    optimizer: Optimizer
    if budget.paper:
        optimizer = torch.optim.SGD(detector.parameters(), budget.rate, MOMENTUM, weight_decay=PAPER_DECAY)
        model = Averaged(detector, optimizer)
        schedule = LambdaLR(optimizer, lambda step: warm_up_and_steps(step, per_epoch))
    else:
        optimizer = torch.optim.AdamW(detector.parameters(), budget.rate, weight_decay=SCENE_DECAY, fused=True)
        schedule = LambdaLR(optimizer, lambda step: rise_and_fall(step, steps))
    fit(
        model,
        batches,
        lambda wrapped, batch: detection_loss(wrapped, batch, detector.head),
        optimizer,
        schedule,
        steps=steps,
        device=device,
        checkpoint=checkpoint,
        every=every,
        progress=progress,
    )
    if isinstance(model, Averaged):
        assert isinstance(model.average, Detector)
        return model.average
    return detector


def load_image_weights(detector: Detector, folder: Path) -> None:
    """Begin with the weights of ImageNet, where a backbone has them.

    Args:
        detector: changed in place.
        folder: with resnet18.pth (torchvision's) and cspdarknet_tiny.pth (PyTorch_YOLO-Family's).

    Raises:
        ValueError: a file does not hold what is expected.
    """
    image = detector.backbone if detector.sees == "image" else getattr(detector.backbone, "rgb_backbone", None)
    if isinstance(image, nn.Module):
        _load(image, torch.load(folder / "cspdarknet_tiny.pth", weights_only=True), "cspdarknet_tiny.pth")
    events = detector.event_backbone
    if events is not None:
        weights = torch.load(folder / "resnet18.pth", weights_only=True)
        if isinstance(events, SpikingEncoder):
            load_resnet18_weights(events, weights)
        elif isinstance(events, ConventionalResNet):
            own = events.network.conv1.weight
            _load(events.network, {**weights, "conv1.weight": own.detach()}, "resnet18.pth")


def _load(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    own = module.state_dict()
    bad = [key for key, value in own.items() if key not in weights or weights[key].shape != value.shape]
    if bad:
        raise ValueError(f"{name} lacks {', '.join(bad[:3])} in the shape of the network, {len(bad)} weights in all")
    module.load_state_dict({key: weights[key] for key in own})


@dataclass(frozen=True)
class Found:
    """Detections beside what there was to find.

    Attributes:
        detections: of N images.
        boxes: (N, M, 4).
        labels: (N, M).
        difficult: (N, M).
    """

    detections: Detections
    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def only(self, chosen: Tensor) -> Found:
        """Some of the images, (N,) bool."""
        return Found(
            Detections(*(each[chosen] for each in self.detections)),
            self.boxes[chosen],
            self.labels[chosen],
            self.difficult[chosen],
        )

    @staticmethod
    def join(parts: Iterable[Found]) -> Found:
        """All images of several findings."""
        parts = list(parts)
        return Found(
            Detections(*(torch.cat(each) for each in zip(*(part.detections for part in parts), strict=True))),
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.difficult for part in parts]),
        )


@torch.no_grad()
def detect(detector: Detector, batches: Iterable[Sample], device: str, top: int, without_events: bool = False) -> Found:
    """Find objects, in evaluation mode.

    Args:
        detector: trained.
        batches: of samples, images as the detector was trained on them.
        device: where to compute.
        top: most detections of an image.
        without_events: show zeros in place of events.
    """
    detector.to(device).eval()
    parts = []
    for batch in batches:
        sample = Sample(*batch)
        events = torch.zeros_like(sample.events) if without_events else sample.events
        output = detector(sample.image.to(device), events.to(device))
        found = Detections(*(each.cpu() for each in detector.head.decode(output, top)))
        parts.append(Found(found, sample.boxes, sample.labels, sample.difficult))
    return Found.join(parts)


def recorded(recording: Recording, scenes: Scenes, light: int) -> Iterator[Sample]:
    """Test scenes in one of the lightings, as one batch."""
    difficult = torch.zeros_like(scenes.labels, dtype=torch.bool)
    yield Sample(recording.photographs[light], recording.events[light], scenes.boxes, scenes.labels, difficult)


def from_voc(data: EventVOC, batch: int, workers: int) -> Iterator[Sample]:
    """Images of E-VOC in their order, normalised."""
    for each in DataLoader(data, batch, num_workers=workers):
        sample = Sample(*each)
        yield sample._replace(image=normalised(sample.image))


def event_energy(detector: Detector, events: Tensor) -> tuple[float, float]:
    """Estimated energy of the event backbone, as a share of its conventional twin's, and the firing rate.

    Args:
        detector: trained.
        events: (N, 2, H, W).

    Returns:
        Share and rate; 0 and 0 without an event backbone, 1 and 0 for a conventional one.
    """
    backbone = detector.event_backbone
    if backbone is None:
        return 0.0, 0.0
    counted = synaptic_operations(backbone, events.to(next(backbone.parameters()).device))
    steps = backbone.time_steps if isinstance(backbone, SpikingEncoder) else 1
    # The twin computes each layer once, with multiply-adds, where the spiking network has T time steps of additions.
    twin = (counted["MACs"] + counted["dense ACs"] / steps) * MAC_PICOJOULE / 1e6
    return counted["energy"] / twin, counted["firing rate"]
