"""Residual networks: sizes that are published, names that torchvision's weights have, gradients, bad input."""

from __future__ import annotations

import pytest
import torch

from working_papers.nn.resnet import BasicBlock, ResNet, resnet18, resnet50


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_those_of_torchvision() -> None:
    assert parameters(resnet18()) == 11_689_512
    assert parameters(resnet50()) == 25_557_032


def test_names_are_those_of_torchvision() -> None:
    names = set(resnet50().state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"} <= names
    assert {"fc.weight", "fc.bias"} <= names
    assert "layer1.1.downsample.0.weight" not in names


@pytest.mark.parametrize(("stem", "sides"), [("cifar", [32, 16, 8, 4]), ("imagenet", [8, 4, 2, 1])])
def test_maps_and_features(stem: str, sides: list[int]) -> None:
    model = resnet18(classes=0, stem=stem, in_channels=1, width=4)  # type: ignore[arg-type]
    maps = model.feature_maps(torch.randn(2, 1, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 4 * 2**i, side, side) for i, side in enumerate(sides)]
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, model.features) == (2, 32)


def test_gradients_reach_every_parameter() -> None:
    model = resnet50(classes=3, stem="cifar", width=2)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_zero_residuals_make_the_blocks_shortcuts() -> None:
    model = ResNet(BasicBlock, (2, 1, 1, 1), 0, "cifar", 3, 4, zero_init_residual=True).eval()
    block = model.get_submodule("layer1.1")
    x = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stem": "photo"}, "stem is 'photo'"),
        ({"classes": -1}, "classes is -1"),
        ({"width": 0}, "width are 3 and 0"),
    ],
)
def test_bad_arguments_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet18(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected four numbers"):
        ResNet(BasicBlock, (1, 1, 1))
