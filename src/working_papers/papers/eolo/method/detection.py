"""A detection head without anchors, and the score by which detectors are compared.

The head is that of "Objects as Points" (https://arxiv.org/abs/1904.07850): a heat map of object centres for each class,
with size and offset at each centre. The paper's own detector has a YOLO head, which is not part of this module.

Letters: N = images, M = most objects of an image, K = classes, h and w = cells of the map, D = detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.eolo.method.fusion import conv_bn_relu

OVERLAP = 0.7  # boxes whose corners lie within a blob's radius overlap at least so much; as in "Objects as Points"


class CentreOutput(NamedTuple):
    """What a `CentreHead` gives.

    Attributes:
        heat: (N, K, h, w), logits of centres.
        size: (N, 2, h, w), width and height, in cells.
        offset: (N, 2, h, w), of the centre from the left upper corner of its cell, to the right and down, in cells.
    """

    heat: Tensor
    size: Tensor
    offset: Tensor


class Detections(NamedTuple):
    """Boxes that were found, best first.

    Attributes:
        boxes: (N, D, 4), left, top, right, bottom, in pixels.
        scores: (N, D), from 0 to 1.
        labels: (N, D), int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class CentreHead(nn.Module):
    """Finds objects in features of one or more scales.

    Coarser features are brought to the finest scale and added.

    Args:
        channels: of the features, finest first.
        classes: K.
        stride: pixels of a cell of the finest features.
        width: channels inside the head.
        size_weight: of the size in the loss.
        offset_weight: of the offset in the loss.

    Raises:
        ValueError: no features, or a number that is not positive.
    """

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        stride: int = 8,
        width: int = 64,
        size_weight: float = 0.1,
        offset_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels is empty; expected the channels of at least one scale")
        for name, number in {"classes": classes, "stride": stride, "width": width}.items():
            if number < 1:
                raise ValueError(f"{name} is {number}; expected at least 1")
        self.classes, self.stride = classes, stride
        self.size_weight, self.offset_weight = size_weight, offset_weight
        self.lateral = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.shared = conv_bn_relu(width, width)
        self.out = nn.Conv2d(width, classes + 4, 1)
        assert self.out.bias is not None
        with torch.no_grad():
            self.out.bias[:classes] = -2.19  # a centre is rare: begin with a probability of 0.1

    def forward(self, features: Sequence[Tensor]) -> CentreOutput:
        """Features (N, C, h, w), finest first, to centres; another number of scales raises ValueError."""
        if len(features) != len(self.lateral):
            raise ValueError(f"features has {len(features)} scales; expected {len(self.lateral)}")
        x = self.lateral[0](features[0])
        for lateral, coarse in zip(self.lateral[1:], features[1:], strict=True):
            x = x + F.interpolate(lateral(coarse), size=x.shape[2:])
        heat, size, offset = self.out(self.shared(x)).split([self.classes, 2, 2], dim=1)
        return CentreOutput(heat, size, offset)

    def loss(self, output: CentreOutput, boxes: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of the heat map and absolute errors of size and offset, divided by the number of objects.

        Args:
            output: of this head.
            boxes: (N, M, 4), left, top, right, bottom, in pixels.
            labels: (N, M), classes from 0; -1 where there is no object.

        Returns:
            A scalar, float32 or wider.

        Raises:
            ValueError: shapes that do not fit, or a label that is no class.
        """
        heat, size, offset = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in output)
        _expect_objects(boxes, labels, len(heat), self.classes)
        target, cells = centre_targets(boxes / self.stride, labels, heat.shape[1:])
        probability = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
        centre = target == 1
        hit = torch.where(centre, (1 - probability).square() * probability.log(), 0)
        miss = torch.where(centre, 0, (1 - target) ** 4 * probability.square() * (1 - probability).log())
        there = labels >= 0
        objects = there.sum().clamp(min=1)
        focal = -(hit.sum() + miss.sum()) / objects
        scaled = (boxes / self.stride).to(heat)
        middle = (scaled[..., :2] + scaled[..., 2:]) / 2
        extent = scaled[..., 2:] - scaled[..., :2]
        corner = torch.stack([cells % heat.shape[3], cells // heat.shape[3]], dim=-1)

        def error(found: Tensor, wanted: Tensor) -> Tensor:
            at = found.flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).mT  # (N, M, 2)
            return ((at - wanted).abs() * there[..., None]).sum() / objects

        total: Tensor = focal + self.size_weight * error(size, extent)
        return total + self.offset_weight * error(offset, middle - corner)

    def decode(self, output: CentreOutput, top: int = 100) -> Detections:
        """Peaks of the heat map as boxes; no other suppression is needed.

        Args:
            output: of this head.
            top: most detections of an image.

        Returns:
            D = min(top, K h w) detections of each image.

        Raises:
            ValueError: `top` below 1.
        """
        if top < 1:
            raise ValueError(f"top is {top}; expected at least 1")
        heat, size, offset = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in output)
        probability = heat.sigmoid()
        peak = F.max_pool2d(probability, 3, 1, 1) == probability
        scores, places = (probability * peak).flatten(1).topk(min(top, heat[0].numel()), dim=1)
        cells_of_map = heat.shape[2] * heat.shape[3]
        labels, cells = places // cells_of_map, places % cells_of_map
        corner = torch.stack([cells % heat.shape[3], cells // heat.shape[3]], dim=-1)

        def at(found: Tensor) -> Tensor:
            return found.flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).mT

        middle, half = corner + at(offset), at(size).clamp(min=0) / 2
        return Detections(self.stride * torch.cat([middle - half, middle + half], dim=-1), scores, labels)


def centre_targets(boxes: Tensor, labels: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The heat map that a detector should give: a blob of height 1 at each centre, wider for larger objects.

    Args:
        boxes: (N, M, 4), in cells.
        labels: (N, M); -1 where there is no object.
        shape: (K, h, w).

    Returns:
        Heat (N, K, h, w), float32 or wider, 1 at the cells of centres, and the cells' numbers (N, M), row by row.
    """
    classes, rows, columns = shape
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    column = middle[..., 0].floor().clamp(0, columns - 1)
    row = middle[..., 1].floor().clamp(0, rows - 1)
    sigma = (2 * _radius(extent[..., 0], extent[..., 1]).floor() + 1) / 6
    across = torch.arange(columns, device=boxes.device) - column[..., None]  # (N, M, w)
    down = torch.arange(rows, device=boxes.device) - row[..., None]
    squared = down.square()[..., :, None] + across.square()[..., None, :]
    blobs = torch.exp(-squared / (2 * sigma.square()[..., None, None])) * (labels >= 0)[..., None, None]
    heat = blobs.new_zeros(len(boxes), classes, rows, columns)
    place = labels.clamp(min=0)[..., None, None].expand_as(blobs)
    return heat.scatter_reduce(1, place, blobs, "amax"), (row * columns + column).long()


def _radius(width: Tensor, height: Tensor) -> Tensor:
    """How far both corners may move, in any way, until the overlap is no longer `OVERLAP`."""
    total, area, o = width + height, width * height, OVERLAP
    moved = (total - (total.square() - 4 * area * (1 - o) / (1 + o)).sqrt()) / 2
    smaller = (total - (total.square() - 4 * area * (1 - o)).sqrt()) / 4
    larger = (-total + (total.square() + 4 * area * (1 - o) / o).sqrt()) / 4
    return torch.minimum(moved, torch.minimum(smaller, larger))


def mean_average_precision(
    found: Detections,
    boxes: Tensor,
    labels: Tensor,
    classes: int,
    overlap: float = 0.5,
    difficult: Tensor | None = None,
    eleven_points: bool = False,
) -> float:
    """mAP: the mean over classes of the area under the curve of precision over recall.

    Detections of a class, best first, each take the object of their image with which they overlap most, if that is
    enough and the object is free; other detections are wrong. Classes without objects are left out.

    Args:
        found: detections of N images; scores of 0 are ignored.
        boxes: (N, M, 4), in pixels.
        labels: (N, M); -1 where there is no object.
        classes: K.
        overlap: smallest intersection over union.
        difficult: (N, M), bool, objects that count neither as found nor as missed.
        eleven_points: precision at recalls 0, 0.1, ..., 1, as in PASCAL VOC 2007 and in the paper's code; otherwise
            the whole area under the envelope, as in VOC since 2010.

    Returns:
        From 0 to 1; 0 if there is no object.

    Raises:
        ValueError: shapes that do not fit, or an overlap outside (0, 1].
    """
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap is {overlap}; expected more than 0 and at most 1")
    _expect_objects(boxes, labels, len(found.boxes), classes)
    if difficult is not None and difficult.shape != labels.shape:
        raise ValueError(f"difficult has shape {tuple(difficult.shape)}; expected {tuple(labels.shape)}")
    true_labels = labels.detach().cpu().numpy()
    ignored = np.zeros(true_labels.shape, bool) if difficult is None else difficult.detach().cpu().numpy().astype(bool)
    shared = box_iou(found.boxes.detach().cpu().double(), boxes.detach().cpu().double()).numpy()  # (N, D, M)
    scores, guesses = found.scores.detach().cpu().numpy(), found.labels.detach().cpu().numpy()
    precisions = []
    for label in range(classes):
        wanted = true_labels == label
        objects = int((wanted & ~ignored).sum())
        if not objects:
            continue
        images, places = np.nonzero((guesses == label) & (scores > 0))
        order = np.argsort(-scores[images, places], kind="stable")
        images, places = images[order], places[order]
        right, counted = np.zeros(len(images), bool), np.ones(len(images), bool)
        # Overlap with the objects of this class alone, for all detections at once.
        mine = np.where(wanted[images], shared[images, places], -1.0) if len(images) else np.zeros((0, 1))
        best, most = mine.argmax(axis=1), mine.max(axis=1)
        taken: set[tuple[int, int]] = set()
        for number in np.flatnonzero(most >= overlap):
            key = (int(images[number]), int(best[number]))
            if ignored[key]:
                counted[number] = False
            elif key not in taken:
                taken.add(key)
                right[number] = True
        right = right[counted]
        hits = np.cumsum(right)
        precisions.append(_area(hits / objects, hits / np.arange(1, len(right) + 1), eleven_points))
    return float(np.mean(precisions)) if precisions else 0.0


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes.

    Args:
        first: (..., D, 4), left, top, right, bottom.
        second: (..., M, 4).

    Returns:
        (..., D, M), 0 where a union is empty.
    """
    a, b = first[..., :, None, :], second[..., None, :, :]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    both = sides.prod(dim=-1)
    union = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[..., 2:] - b[..., :2]).prod(dim=-1) - both
    return torch.where(union > 0, both / union.clamp(min=1e-12), 0)


def _area(recall: NDArray[np.float64], precision: NDArray[np.float64], eleven_points: bool) -> float:
    """Area under the precision's envelope."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        # Recalls are quotients of whole numbers: without the slack, 3 of 10 would miss 0.3.
        first = np.searchsorted(recall, np.linspace(0, 1, 11) - 1e-9)
        return float(np.append(envelope, 0.0)[first].mean())
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _expect_objects(boxes: Tensor, labels: Tensor, images: int, classes: int) -> None:
    if labels.ndim != 2 or len(labels) != images or boxes.shape != (*labels.shape, 4):
        raise ValueError(
            f"boxes and labels have shapes {tuple(boxes.shape)} and {tuple(labels.shape)}; "
            f"expected ({images}, M, 4) and ({images}, M)"
        )
    if labels.numel() and (int(labels.min()) < -1 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; expected -1 (no object) to {classes - 1}"
        )
