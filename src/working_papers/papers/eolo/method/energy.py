"""Estimated energy: multiply-adds of conventional layers, additions of layers that receive spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from working_papers.papers.eolo.method.spiking import IFNeuron, SpikingEncoder

MAC_PICOJOULE, AC_PICOJOULE = 4.6, 0.9
"""Energy of one multiply-add and of one addition, 32 bits in 45 nm, as usual in the field."""

Weighted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def synaptic_operations(
    model: nn.Module, *inputs: Tensor, mac: float = MAC_PICOJOULE, ac: float = AC_PICOJOULE
) -> dict[str, float]:
    """Count the operations of a model on given inputs, a sample, and estimate their energy.

    A convolution or linear layer inside a `SpikingEncoder` whose input consists of spikes (0 and 1) needs an addition
    for each weight that a spike meets: its multiply-adds times the firing rate that was measured, over all time steps.
    All other layers need every multiply-add. Normalisation, activations and what is called as a function are left out,
    as usual.

    Args:
        model: any model; evaluated as it is, with hooks that are removed again and without changes to its state.
        inputs: of the model; the first axis of the first is the batch, of real event bins (T, N, ...) the second.
        mac: picojoules of a multiply-add.
        ac: picojoules of an addition.

    Returns:
        "MACs" and "ACs", a sample; "dense ACs", what the spiking layers would need if every input were a spike;
        "firing rate", spikes per neuron and time step, 0 without neurons; "energy", microjoules a sample.

    Raises:
        ValueError: no input.

    Source: the usual estimate for spiking networks; the energies are those of Horowitz, ISSCC 2014 (from memory).
    """
    if not inputs:
        raise ValueError("inputs is empty; expected what the model is called with")
    spiking = {
        layer for encoder in model.modules() if isinstance(encoder, SpikingEncoder) for layer in encoder.modules()
    }
    macs = acs = dense = spikes = neurons = 0.0

    def on_layer(layer: nn.Module, received: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs, acs, dense
        x: Tensor = received[0]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        operations = output.numel() * weight[0].numel()
        if layer in spiking and bool(((x == 0) | (x == 1)).all()):
            dense += operations
            acs += operations * float(x.double().mean())
        else:
            macs += operations

    def on_neuron(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        nonlocal spikes, neurons
        spikes += float(output.double().sum())
        neurons += output.numel()

    handles = [m.register_forward_hook(on_layer) for m in model.modules() if isinstance(m, Weighted)]
    handles += [m.register_forward_hook(on_neuron) for m in model.modules() if isinstance(m, IFNeuron)]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    samples = inputs[0].shape[1] if inputs[0].ndim == 5 else len(inputs[0])
    return {
        "MACs": macs / samples,
        "ACs": acs / samples,
        "dense ACs": dense / samples,
        "firing rate": spikes / neurons if neurons else 0.0,
        "energy": (macs * mac + acs * ac) / samples / 1e6,
    }
