"""Images in a subfolder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from working_papers.data.image_folder import ImageFolder, read_image


def save(file: Path, height: int, width: int, colour: tuple[int, int, int] | int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if isinstance(colour, int) else (height, width, 3)
    Image.fromarray(np.full(shape, colour, dtype=np.uint8)).save(file)


def test_classes_in_order_and_images_at_any_depth(tmp_path: Path) -> None:
    save(tmp_path / "zebra" / "a.png", 8, 8, (255, 0, 0))
    save(tmp_path / "ant" / "deep" / "b.PNG", 8, 8, 51)
    save(tmp_path / "ant" / "c.jpeg", 8, 8, (0, 0, 255))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    images = ImageFolder(tmp_path, size=4)
    assert images.classes == ("ant", "zebra") and images.labels.tolist() == [0, 0, 1] and len(images) == 3
    image, label = images[2]
    assert label == 1 and image.shape == (3, 4, 4)
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(images[1][0], torch.full((3, 4, 4), 0.2))
    assert torch.equal(ImageFolder(tmp_path, 4, transform=lambda x: 1 - x)[2][0], 1 - image)
    assert ImageFolder(tmp_path, 4, classes=["zebra", "ant"]).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("height", "width"), [(20, 10), (10, 20), (7, 7), (3, 50)])
def test_the_middle_is_cut_out(tmp_path: Path, height: int, width: int) -> None:
    file = tmp_path / "image.png"
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[height // 2 :, :] += 100
    pixels[:, width // 2 :] += 100
    Image.fromarray(pixels).save(file)
    image = read_image(file, 6)
    assert image.shape == (3, 6, 6)
    assert image[0, 0, 0] < 0.1 < image[0, -1, 0] < 0.6 < image[0, -1, -1]
    assert read_image(file).shape == (3, height, width)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a subfolder for each class"):
        ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "ant" / "a.png", 4, 4, 1)
    with pytest.raises(ValueError, match="no images of 1 classes: empty"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="size is 0"):
        ImageFolder(tmp_path, 0)
    broken = tmp_path / "ant" / "b.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 cut off")
    with pytest.raises(ValueError, match=r"b.jpg could not be read as an image"):
        ImageFolder(tmp_path, classes=["ant"])[1]
