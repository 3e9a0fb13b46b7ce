"""Taps: the right values in the right order, an untouched model, no hook left behind."""

import pytest
import torch
from torch import nn

from working_papers.nn.taps import ActivationTap


def test_values_are_the_outputs_in_the_order_in_which_layers_ran() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    expected = model(x)
    with ActivationTap(model, ["2", "0"]) as tap:
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert list(tap.values) == ["0", "2"]
        torch.testing.assert_close(tap.values["2"], expected, rtol=0, atol=0)
        tap.values["0"].sum().backward()
        assert model[0].weight.grad is not None
        tap.clear()
        assert not tap.values
    model(x)
    assert not tap.values, "a closed tap keeps nothing"
    assert not any(module._forward_hooks for module in model.modules())


def test_recurrent_layers_give_their_sequence() -> None:
    model = nn.GRU(3, 4)
    with ActivationTap(nn.ModuleDict({"rnn": model}), ["rnn"]) as tap:
        out, _ = model(torch.randn(6, 2, 3))
    torch.testing.assert_close(tap.values["rnn"], out)


def test_hooks_come_off_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(RuntimeError), ActivationTap(model, ["0"]):
        model(torch.randn(5, 7))
    assert not model[0]._forward_hooks


def test_wrong_names_are_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="names 'fc', which is no layer of the model; it has '0'"):
        ActivationTap(model, ["fc"])
    with pytest.raises(ValueError, match="at least one"):
        ActivationTap(model, [])

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    with pytest.raises(ValueError, match="got dict"), ActivationTap(nn.Sequential(Odd()), ["0"]) as tap:
        nn.Sequential(*tap._modules[0][1:])(torch.ones(1))
