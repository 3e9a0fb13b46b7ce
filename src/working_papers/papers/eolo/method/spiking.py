"""Spiking networks: the integrate-and-fire neuron, an encoder of events from any layers, and the spiking ResNet-18."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.SiLU, nn.GELU)
"""Layers that an encoder replaces by neurons."""

Surrogate = Callable[[Tensor], Tensor]


class _ArcTangentSpike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, alpha: float) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.alpha = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        half = ctx.alpha / 2
        return gradients[0] * half / (1 + (math.pi * half * x).square()), None


def atan_spike(x: Tensor, alpha: float = 2.0) -> Tensor:
    """The step function, with the derivative of an arc tangent in the backward pass.

    Args:
        x: potential above the threshold, any shape.
        alpha: sharpness; the derivative is (alpha/2) / (1 + (pi alpha x / 2)^2), for 2 it is 1 / (1 + (pi x)^2).

    Returns:
        1 where x >= 0, otherwise 0; dtype of x.
    """
    spikes: Tensor = _ArcTangentSpike.apply(x, alpha)  # type: ignore[no-untyped-call]
    return spikes


class _IntegrateAndFire(torch.autograd.Function):
    """All time steps of neurons with the arc tangent, with few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float, detach_reset: bool) -> Tensor:
        potential, spikes = torch.empty_like(x), torch.empty_like(x)
        for step, current in enumerate(x):
            if step:
                last, reset = potential[step - 1], spikes[step - 1]
                torch.addcmul(last, last, reset, value=-1, out=potential[step]).add_(current)
            else:
                potential[0] = current
            torch.ge(potential[step], threshold, out=spikes[step])
        ctx.save_for_backward(potential, spikes)
        ctx.threshold, ctx.detach_reset = threshold, detach_reset
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        potential, spikes = ctx.saved_tensors
        steepness = 1 / ((potential - ctx.threshold) * math.pi).square_().add_(1)
        gradient = gradients[0] * steepness
        for step in range(len(potential) - 2, -1, -1):
            passed = 1 - spikes[step]
            if not ctx.detach_reset:
                passed = passed - potential[step] * steepness[step]
            gradient[step].addcmul_(gradient[step + 1], passed)
        return gradient, None, None


class IFNeuron(nn.Module):
    """Integrate-and-fire neurons: each sums its input and, at the threshold, spikes and begins again at 0.

    The potential lives inside one call: it begins at 0 and nothing is left for the next batch.

    Args:
        threshold: potential at which a neuron spikes.
        detach_reset: the gradient does not flow through the reset.
        surrogate: "atan" (see `atan_spike`), or a function of the potential above the threshold that gives spikes with
            a gradient. Only a function can be differentiated twice.

    Raises:
        ValueError: a threshold that is not positive, or an unknown surrogate.

    Source: the paper's event backbone; the official code takes the same neuron, arc tangent and detached reset from
    SpikingJelly.
    """

    def __init__(self, threshold: float = 1.0, detach_reset: bool = True, surrogate: str | Surrogate = "atan") -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold is {threshold}; expected a positive number")
        if isinstance(surrogate, str) and surrogate != "atan":
            raise ValueError(f"surrogate is {surrogate!r}; expected 'atan' or a function")
        self.threshold, self.detach_reset = threshold, detach_reset
        self.surrogate: Surrogate | None = None if isinstance(surrogate, str) else surrogate
        self._steps: int | None = None  # set by an encoder, which hands over time and batch as one axis

    def forward(self, x: Tensor) -> Tensor:
        """Input (T, N, ...) at T time steps to spikes of the same shape and dtype."""
        if self._steps is not None:
            return self._spikes(x.unflatten(0, (self._steps, -1))).flatten(0, 1)
        if x.ndim < 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (T, N, ...)")
        return self._spikes(x)

    def _spikes(self, x: Tensor) -> Tensor:
        # Sums of half precision would drift: potentials have float32 at least.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.surrogate is None:
            fired: Tensor = _IntegrateAndFire.apply(  # type: ignore[no-untyped-call]
                wide, self.threshold, self.detach_reset
            )
            return fired.to(x.dtype)
        spikes: list[Tensor] = []
        potential = torch.zeros_like(wide[0])
        for current in wide.unbind(0):
            potential = potential + current
            spike = self.surrogate(potential - self.threshold)
            spikes.append(spike)
            potential = potential * (1 - (spike.detach() if self.detach_reset else spike))
        return torch.stack(spikes).to(x.dtype)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"threshold={self.threshold}, detach_reset={self.detach_reset}"


class SpikingEncoder(nn.Module):
    """Any stack of layers as a spiking network over events.

    Layers see time and batch as one axis, so ordinary convolutions and normalisations serve; batch normalisation takes
    its statistics over both. Activations (ReLU and its like) that are modules become integrate-and-fire neurons, in
    the layers that are handed over. Activations called as functions cannot be seen: write `nn.ReLU()`.

    Args:
        stages: applied one after the other to (N, C, H, W).
        time_steps: T, how often one frame of events is shown.
        stem: layers without neurons before the first stage. They are applied to a frame before it is repeated, which
            gives the same numbers at a T-th of the cost.
        outputs: numbers of the stages whose features are given; None: all.
        neuron: makes the neurons.

    Raises:
        ValueError: no stage, no neuron, neurons in the stem, less than one time step, or an output that is no stage.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        time_steps: int = 4,
        stem: nn.Module | None = None,
        outputs: Sequence[int] | None = None,
        neuron: Callable[[], IFNeuron] = IFNeuron,
    ) -> None:
        super().__init__()
        if time_steps < 1:
            raise ValueError(f"time_steps is {time_steps}; expected at least 1")
        self.time_steps = time_steps
        self.stem = nn.Identity() if stem is None else stem
        self.stages = nn.ModuleList(stages)
        if not len(self.stages):
            raise ValueError("stages is empty; expected at least one module")
        self.outputs = tuple(range(len(self.stages))) if outputs is None else tuple(outputs)
        if not self.outputs or not set(self.outputs) <= set(range(len(self.stages))):
            raise ValueError(f"outputs is {self.outputs}; expected numbers from 0 to {len(self.stages) - 1}")
        if any(isinstance(module, (IFNeuron, *ACTIVATIONS)) for module in self.stem.modules()):
            raise ValueError("stem holds neurons or activations; expected layers without, as time begins after it")
        _replace_activations(self.stages, neuron)
        if not any(isinstance(module, IFNeuron) for module in self.stages.modules()):
            raise ValueError(
                "stages hold neither an IFNeuron nor an activation that is a module; expected at least one"
            )

    def forward(self, events: Tensor) -> list[Tensor]:
        """Encode events.

        Args:
            events: (N, 2, H, W), shown T times, or bins of real events (T, N, 2, H, W), with any T.

        Returns:
            Features (T, N, C, h, w), one of each output stage; spikes where a stage ends in neurons.

        Raises:
            ValueError: another number of axes.
        """
        if events.ndim not in (4, 5):
            raise ValueError(f"events has shape {tuple(events.shape)}; expected (N, 2, H, W) or (T, N, 2, H, W)")
        if events.ndim == 5:
            steps = len(events)
            x = self.stem(events.flatten(0, 1))
        else:
            steps = self.time_steps
            x = self.stem(events)
            x = x.repeat(steps, *(1 for _ in x.shape[1:]))
        features: list[Tensor] = []
        # Copies of the encoder have neurons of their own, so that they are looked up again.
        neurons = [module for module in self.stages.modules() if isinstance(module, IFNeuron)]
        try:
            for neuron in neurons:
                neuron._steps = steps
            for number, stage in enumerate(self.stages):
                x = stage(x)
                if number in self.outputs:
                    features.append(x.unflatten(0, (steps, -1)))
        finally:
            for neuron in neurons:
                neuron._steps = None
        return features


class SpikingBlock(nn.Module):
    """Two 3 x 3 convolutions, the addition, and neurons after the first and after the addition.

    Args:
        channels: of the input.
        width: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.sn1 = IFNeuron()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.sn2 = IFNeuron()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(T N, channels, H, W) to spikes (T N, width, H/stride, W/stride), inside a `SpikingEncoder`."""
        h = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        spikes: Tensor = self.sn2(h + self.downsample(x))
        return spikes


def spiking_resnet18(in_channels: int = 2, width: int = 64, time_steps: int = 4) -> SpikingEncoder:
    """The paper's event backbone: a ResNet-18 whose activations are integrate-and-fire neurons.

    Args:
        in_channels: of the events; two polarities.
        width: channels of the first of four stages; each later one has twice as many.
        time_steps: T, how often one frame is shown.

    Returns:
        An encoder that gives features at strides 8, 16 and 32 with 2, 4 and 8 times `width` channels.
    """
    stem = nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(in_channels, width, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(width))
    )
    layers: list[OrderedDict[str, nn.Module]] = []
    channels = width
    for stage in range(4):
        wide = width * 2**stage
        blocks = [SpikingBlock(channels, wide, 2 if stage else 1), SpikingBlock(wide, wide)]
        layers.append(OrderedDict((str(number), block) for number, block in enumerate(blocks)))
        channels = wide
    first = nn.Sequential(OrderedDict(sn1=IFNeuron(), maxpool=nn.MaxPool2d(3, 2, 1), layer1=nn.Sequential(layers[0])))
    stages = [first, *(nn.Sequential(layer) for layer in layers[1:])]
    encoder = SpikingEncoder(stages, time_steps, stem, outputs=(1, 2, 3))
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder


def load_resnet18_weights(encoder: SpikingEncoder, weights: Mapping[str, Tensor]) -> None:
    """Begin with the weights of a conventional ResNet-18, as the paper does with those of ImageNet.

    The classifier is left out; so is the first convolution where it has another number of input channels.

    Args:
        encoder: of `spiking_resnet18`, changed in place.
        weights: state dict with the names of torchvision.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part in ("conv1", "bn1"):
            renamed[f"stem.{name}"] = value
        elif part == "layer1":
            renamed[f"stages.0.layer1.{rest}"] = value
        elif part in ("layer2", "layer3", "layer4"):
            renamed[f"stages.{int(part[-1]) - 1}.{rest}"] = value
    own = encoder.state_dict()
    first = "stem.conv1.weight"
    if first in renamed and first in own and renamed[first].shape != own[first].shape:
        renamed[first] = own[first]
    for name, value in own.items():
        if name not in renamed or renamed[name].shape != value.shape:
            found = f"shape {tuple(renamed[name].shape)}" if name in renamed else "nothing"
            raise ValueError(f"weights hold {found} for {name}; expected shape {tuple(value.shape)}")
    encoder.load_state_dict({name: renamed[name] for name in own})


def _replace_activations(module: nn.Module, neuron: Callable[[], IFNeuron]) -> None:
    for name, child in module.named_children():
        if isinstance(child, ACTIVATIONS):
            setattr(module, name, neuron())
        else:
            _replace_activations(child, neuron)
