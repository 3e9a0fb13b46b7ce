"""Reader of CIFAR-10 and CIFAR-100 in the "python version" in which they are distributed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from working_papers.data.digits import LabelledImages
from working_papers.data.folders import check_contents, data_folder

CIFAR10_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_TEST = ("test_batch",)
SIDE = 32


def load_cifar10(
    folder: Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[LabelledImages, LabelledImages]:
    """CIFAR-10: colour images in ten classes.

    Args:
        folder: with the files data_batch_1 to data_batch_5 and test_batch; None: the subfolder cifar-10-batches-py of
            `WORKING_PAPERS_DATA`.
        dtype: of the images.

    Returns:
        Training and test images, each (N, 3, 32, 32) from 0 to 1, with labels 0 to 9.

    Raises:
        ValueError: the folder is incomplete, or a file is damaged; the message names it.
    """
    folder = folder or data_folder("cifar-10-batches-py")
    check_contents(folder, [*CIFAR10_TRAINING, *CIFAR10_TEST])
    return (
        _read([folder / name for name in CIFAR10_TRAINING], "labels", 10, dtype),
        _read([folder / name for name in CIFAR10_TEST], "labels", 10, dtype),
    )


def load_cifar100(
    folder: Path | None = None, dtype: torch.dtype = torch.float32, *, coarse: bool = False
) -> tuple[LabelledImages, LabelledImages]:
    """CIFAR-100: colour images in a hundred classes.

    Args:
        folder: with the files train and test; None: the subfolder cifar-100-python of `WORKING_PAPERS_DATA`.
        dtype: of the images.
        coarse: label the images with their 20 superclasses.

    Returns:
        Training and test images, each (N, 3, 32, 32) from 0 to 1, with labels from 0.

    Raises:
        ValueError: the folder is incomplete, or a file is damaged; the message names it.
    """
    folder = folder or data_folder("cifar-100-python")
    check_contents(folder, ["train", "test"])
    key, classes = ("coarse_labels", 20) if coarse else ("fine_labels", 100)
    return _read([folder / "train"], key, classes, dtype), _read([folder / "test"], key, classes, dtype)


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds arrays and nothing else: a data set must not be able to run code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, expected arrays and lists only")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read(files: list[Path], key: str, classes: int, dtype: torch.dtype) -> LabelledImages:
    images, labels = [], []
    for file in files:
        pixels, numbers = _read_batch(file, key)
        if pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE * SIDE or pixels.dtype != np.uint8:
            raise ValueError(f"{file} holds data of {pixels.dtype} {pixels.shape}; expected uint8 (N, {3 * SIDE**2})")
        if len(numbers) != len(pixels):
            raise ValueError(f"{file} holds {len(numbers)} {key} for {len(pixels)} images; expected as many")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"{file} holds {key} from {numbers.min()} to {numbers.max()}; expected 0 to {classes - 1}")
        images.append(torch.from_numpy(pixels.copy()).view(-1, 3, SIDE, SIDE))
        labels.append(torch.from_numpy(numbers))
    return LabelledImages(torch.cat(images).to(dtype).div_(255), torch.cat(labels))


def _read_batch(file: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="latin1").load()
        # Written by Python 2, so that keys are str under latin1 and bytes in files that were written again.
        values = {name.decode() if isinstance(name, bytes) else name: value for name, value in batch.items()}
        return np.asarray(values["data"]), np.asarray(values[key], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a batch of CIFAR's python version: {error!r}") from error
