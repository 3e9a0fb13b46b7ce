"""CIFAR's python version, on tiny files in its format."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from working_papers.data.cifar import CIFAR10_TEST, CIFAR10_TRAINING, load_cifar10, load_cifar100


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def write(file: Path, images: int, keys: dict[bytes, int], seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (images, 3072), dtype=np.uint8)
    labels = {key: [int(x) for x in draw.integers(0, classes, images)] for key, classes in keys.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps({b"data": pixels, b"batch_label": b"one", **labels}, protocol=2))
    return pixels


def cifar10(folder: Path) -> list[np.ndarray]:
    return [
        write(folder / name, 4, {b"labels": 10}, seed) for seed, name in enumerate((*CIFAR10_TRAINING, *CIFAR10_TEST))
    ]


def test_images_and_labels_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = cifar10(tmp_path / "cifar-10-batches-py")
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    train, test = load_cifar10()
    assert train.images.shape == (20, 3, 32, 32) and test.images.shape == (4, 3, 32, 32)
    assert train.labels.dtype == torch.int64
    expected = torch.from_numpy(np.concatenate(pixels[:5])).view(20, 3, 32, 32).float() / 255
    torch.testing.assert_close(train.images, expected)
    assert load_cifar10(dtype=torch.float64)[0].images.dtype == torch.float64


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / name, 30, {b"fine_labels": 100, b"coarse_labels": 20})
    fine, coarse = load_cifar100(tmp_path)[0].labels, load_cifar100(tmp_path, coarse=True)[0].labels
    assert int(fine.max()) > 19 >= int(coarse.max())


def test_incomplete_and_damaged_files_are_named(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(ValueError, match="data_batch_3 missing"):
        load_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(b"\x80\x02not a pickle")
    with pytest.raises(ValueError, match="data_batch_3 is not a batch"):
        load_cifar10(tmp_path)
    write(tmp_path / "data_batch_3", 4, {b"labels": 10_000})
    with pytest.raises(ValueError, match=r"data_batch_3 holds labels from .*; expected 0 to 9"):
        load_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}))
    with pytest.raises(ValueError, match=r"data_batch_3 holds data of uint8 \(2, 5\)"):
        load_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}))
    with pytest.raises(ValueError, match="holds 1 labels for 2 images"):
        load_cifar10(tmp_path)


def test_a_data_set_cannot_run_code(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": RunsCode(), "labels": []}))
    with pytest.raises(ValueError, match=r"test_batch .*builtins.eval"):
        load_cifar10(tmp_path)
