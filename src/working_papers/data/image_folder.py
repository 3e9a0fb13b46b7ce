"""Images in a subfolder for each class, the layout of ImageNet and its smaller relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images below `root/<class>/`, at any depth, decoded when they are asked for.

    Args:
        root: folder with a subfolder for each class; classes are numbered in alphabetical order.
        size: side of the square images that are given: the shorter side is scaled to it and the middle cut out.
            None gives each image in its own size.
        transform: applied to the (3, H, W) tensor from 0 to 1, for augmentation.
        classes: names of the classes that must be there, in this order; None: all there are.

    Attributes:
        classes: names of the classes.
        files: the images' files.
        labels: (N,) int64, their classes.

    Raises:
        ValueError: there is no such folder, no image in it, or a class without images; the message names them.
    """

    def __init__(
        self,
        root: Path | str,
        size: int | None = 224,
        transform: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}; expected images in a subfolder for each class")
        if size is not None and size < 1:
            raise ValueError(f"size is {size}; expected at least 1")
        names = sorted(each.name for each in root.iterdir() if each.is_dir()) if classes is None else list(classes)
        if not names:
            raise ValueError(f"{root} holds no images; expected a subfolder for each class")
        found = [sorted(f for f in (root / name).rglob("*") if f.suffix.lower() in SUFFIXES) for name in names]
        empty = [name for name, files in zip(names, found, strict=True) if not files]
        if empty:
            shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
            raise ValueError(f"{root} holds no images of {len(empty)} classes: {shown}; expected some of each")
        self.root, self.size, self.transform = root, size, transform
        self.classes = tuple(names)
        self.files = [file for files in found for file in files]
        self.labels = torch.repeat_interleave(torch.tensor([len(files) for files in found]))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, (3, H, W) float from 0 to 1, and its class; a damaged file raises ValueError with its name."""
        image = read_image(self.files[index], self.size)
        return self.transform(image) if self.transform else image, int(self.labels[index])


def read_image(file: Path, size: int | None = None) -> Tensor:
    """One image file as a tensor.

    Args:
        file: of any format that Pillow reads; grey images become colour.
        size: side of the square that is given: the shorter side is scaled to it and the middle cut out; None keeps it.

    Returns:
        (3, H, W) float32 from 0 to 1.

    Raises:
        ValueError: the file is not an image or is damaged.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            if size is not None:
                opened.draft("RGB", (size, size))  # JPEG decodes at a fraction of its size
            image = opened.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} could not be read as an image: {error}") from error
    if size is not None:
        width, height = image.size
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).movedim(-1, 0).float().div_(255)
