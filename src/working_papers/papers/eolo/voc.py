"""E-VOC: PASCAL VOC with exposed photographs and synthetic events, as the official script lays it out.

Below `VOCdevkit/VOC<year>` lie, beside VOC's own JPEGImages, Annotations and ImageSets/Main,

    ExposureImages/<type>/<id>.jpg   the photograph at another exposure, eight bits
    Event/<type>/<id>.npy            (H, W, 2), whole numbers: positive and negative events
    HDRImages/<type>/<id>.exr        the exposed image before it is cut off; not read here
    EventFrameImages/<type>/<id>.jpg a picture of the events; not read here

with types such as Underexposure_0.2_random42. A type that is not there can be made from JPEGImages by
`write_exposure`: events do not depend on what `HDRImages` adds, because images are stretched before.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from working_papers.data.folders import check_contents
from working_papers.data.image_folder import read_image
from working_papers.papers.eolo.method import expose, random_flow, synthesize_events

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
MOST = 64  # objects of an image; an annotation with more is refused
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Sample(NamedTuple):
    """One image, or a batch of them with a further first axis.

    Attributes:
        image: (3, S, S), from 0 to 1.
        events: (2, S, S), counts.
        boxes: (MOST, 4), left, top, right, bottom in pixels of the resized image.
        labels: (MOST,), classes; -1 where there is no object.
        difficult: (MOST,), bool.
    """

    image: Tensor
    events: Tensor
    boxes: Tensor
    labels: Tensor
    difficult: Tensor


class EventVOC(Dataset[Sample]):
    """Photographs, events and objects of E-VOC, in each of some exposures.

    Args:
        devkit: the folder VOCdevkit.
        sets: years and image sets, such as ("2007", "trainval").
        types: exposures, such as "Underexposure_0.2_random42"; each image is there once in each.
        side: S, of the squares into which images and events are brought, padded where they are not square. The
            official code squeezes events into the square but pads images, so that they do not lie above each other;
            here both are padded.

    Raises:
        ValueError: a folder, an image set or files of it are missing; the message names them.
    """

    def __init__(
        self, devkit: Path | str, sets: Sequence[tuple[str, str]], types: Sequence[str], side: int = 320
    ) -> None:
        devkit = Path(devkit)
        if not sets or not types:
            raise ValueError(f"sets and types are {tuple(sets)} and {tuple(types)}; expected at least one of each")
        if side < 32:
            raise ValueError(f"side is {side}; expected at least 32")
        self.side, self.types = side, tuple(types)
        needs = [f"VOC{year}/{part}" for year, name in sets for part in ("Annotations", f"ImageSets/Main/{name}.txt")]
        needs += [
            f"VOC{year}/{part}/{each}" for year, _ in sets for each in types for part in ("ExposureImages", "Event")
        ]
        if not devkit.is_dir():
            raise ValueError(f"there is no folder {devkit}; expected VOCdevkit with the folders of E-VOC")
        check_contents(devkit, list(dict.fromkeys(needs)))
        self.items: list[tuple[Path, str, str]] = []
        for year, name in sets:
            folder = devkit / f"VOC{year}"
            names = image_set(folder, name)
            for exposure in types:
                for part, suffix in (("ExposureImages", "jpg"), ("Event", "npy")):
                    _expect_files(folder / part / exposure, names, suffix)
            _expect_files(folder / "Annotations", names, "xml")
            self.items += [(folder, exposure, each) for exposure in types for each in names]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """One sample; a damaged file raises ValueError with its name."""
        folder, exposure, name = self.items[index]
        image = read_image(folder / "ExposureImages" / exposure / f"{name}.jpg")
        events = read_events(folder / "Event" / exposure / f"{name}.npy")
        if image.shape[1:] != events.shape[1:]:
            raise ValueError(
                f"{folder / 'Event' / exposure / name}.npy has {tuple(events.shape[1:])} pixels; "
                f"expected those of the image, {tuple(image.shape[1:])}"
            )
        boxes, labels, difficult = read_objects(folder / "Annotations" / f"{name}.xml")
        height, width = image.shape[1:]
        scale = self.side / max(height, width)
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (self.side - shape[0]) // 2, (self.side - shape[1]) // 2
        margins = (left, self.side - shape[1] - left, top, self.side - shape[0] - top)
        image = F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0].clamp(0, 1)
        canvas = torch.tensor(MEAN)[:, None, None].expand(3, self.side, self.side).clone()
        canvas[:, top : top + shape[0], left : left + shape[1]] = image
        events = F.pad(F.interpolate(events[None], shape, mode="bilinear", antialias=True)[0], margins)
        factor = torch.tensor([shape[1] / width, shape[0] / height] * 2)
        boxes = boxes * factor + torch.tensor([left, top] * 2)
        empty = MOST - len(boxes)
        if empty < 0:
            raise ValueError(f"{folder / 'Annotations' / name}.xml has {len(boxes)} objects; expected at most {MOST}")
        return Sample(
            canvas,
            events,
            F.pad(boxes, (0, 0, 0, empty)),
            F.pad(labels, (0, empty), value=-1),
            F.pad(difficult, (0, empty)),
        )


def image_set(folder: Path, name: str) -> list[str]:
    """Names of the images of a set, such as "trainval"; an empty list raises ValueError."""
    file = folder / "ImageSets" / "Main" / f"{name}.txt"
    names = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} is empty; expected a name in each line")
    return names


def read_events(file: Path) -> Tensor:
    """Events of a file (H, W, 2) as (2, H, W), float32; a damaged file or another shape raises ValueError."""
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} could not be read as events: {error}") from error
    if array.ndim != 3 or array.shape[2] != 2 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"{file} has shape {array.shape} and dtype {array.dtype}; expected numbers (H, W, 2)")
    return torch.from_numpy(array.astype(np.float32)).movedim(-1, 0)


def read_objects(file: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Objects of an annotation: boxes (M, 4) in pixels from 0, labels (M,), difficult (M,).

    VOC counts pixels from 1 and includes the last one: xmin 1, xmax 1 is one pixel wide, from 0 to 1.

    Raises:
        ValueError: no XML, a box without a number, or an unknown class; the message names the file.
    """
    boxes: list[list[float]] = []
    labels: list[int] = []
    difficult: list[bool] = []
    try:
        for each in ElementTree.parse(file).getroot().iter("object"):
            name = (each.findtext("name") or "").strip().lower()
            if name not in CLASSES:
                raise ValueError(f"unknown class {name!r}")
            left, top, right, bottom = (float(each.findtext(f"bndbox/{side}") or "") for side in _SIDES)
            boxes.append([left - 1, top - 1, right, bottom])
            labels.append(CLASSES.index(name))
            difficult.append((each.findtext("difficult") or "0").strip() == "1")
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file} could not be read as an annotation: {error}") from error
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.long), torch.tensor(difficult).bool()


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def write_exposure(folder: Path | str, factor: float, seed: int | None = 42, names: Sequence[str] | None = None) -> str:
    """Make one exposure of E-VOC from VOC's photographs: ExposureImages and Event.

    Intensities of the JPEG file are taken as linear, as in the official script.

    Args:
        folder: VOC<year>, with JPEGImages.
        factor: of the exposure.
        seed: of the random flows; None: the flow (3, 3) for all.
        names: of the images; None: all in JPEGImages.

    Returns:
        The name of the type, as the official script would call it.

    Raises:
        ValueError: no such folder, no images, or a factor that is not positive.
    """
    from PIL import Image

    folder = Path(folder)
    check_contents(folder, ("JPEGImages",))
    kind = f"{'Underexposure' if factor < 1 else 'Overexposure'}_{float(factor)}"
    kind += "" if seed is None else f"_random{seed}"
    names = sorted(file.stem for file in (folder / "JPEGImages").glob("*.jpg")) if names is None else names
    if not names:
        raise ValueError(f"{folder / 'JPEGImages'} holds no .jpg files; expected some")
    for part in ("ExposureImages", "Event"):
        (folder / part / kind).mkdir(parents=True, exist_ok=True)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name in names:
        image = read_image(folder / "JPEGImages" / f"{name}.jpg")[None]
        flow = torch.tensor([3.0, 3.0]) if generator is None else random_flow(1, generator=generator)
        events = synthesize_events(expose(image, factor, clip=False), flow)[0].movedim(0, -1)
        np.save(folder / "Event" / kind / f"{name}.npy", events.numpy().astype(np.int64))
        exposed = (expose(image, factor)[0] * 255).round().byte().movedim(0, -1)
        Image.fromarray(exposed.numpy()).save(folder / "ExposureImages" / kind / f"{name}.jpg", quality=95)
    return kind


def _expect_files(folder: Path, names: Sequence[str], suffix: str) -> None:
    there = {file.stem for file in folder.glob(f"*.{suffix}")}
    missing = [name for name in names if name not in there]
    if missing:
        shown = ", ".join(f"{name}.{suffix}" for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{folder} is incomplete: {shown}{more} missing, expected {len(names)} files")
