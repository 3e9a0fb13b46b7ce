"""Networks with one hidden layer, many at once: seeds and activation functions on one leading axis."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from working_papers.papers.representational_geometry.method.arguments import check_targets, random_numbers

Activation = Callable[[Tensor], Tensor]


def _identity(z: Tensor) -> Tensor:
    return z


ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "erf": torch.erf,
    "hard tanh": F.hardtanh,
    "relu": F.relu,
    "leaky relu": partial(F.leaky_relu, negative_slope=0.01),
    "softplus": F.softplus,
    "gelu": F.gelu,
    "linear": _identity,
}
"""Activation functions by name: the first three saturate on both sides, the next four on one side or on none."""

RECORDED = (0, 1, 3, 10, 30, 100, 300, 1000)
"""Steps after which a trajectory is looked at."""


def activation_function(activation: str | Activation) -> Activation:
    """A function for its name, or the function itself.

    Raises:
        ValueError: there is no activation of that name.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected a function or one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


class OneHidden(nn.Module):
    """Networks h = φ(W x + b), ŷ = V h + c; several seeds are a stack that is computed in one batched product.

    A network of a stack has the weights, the outputs and the gradients that it has alone. Activation functions may
    differ within a stack; those of one kind are best kept next to one another.

    Args:
        inputs: number of input features d.
        hidden: number of units N.
        targets: number of outputs k.
        activation: φ, by its name in `ACTIVATIONS` or as an elementwise function; a sequence gives one a network.
        readout: "fixed" keeps V at random signs ±1/√N, as for the paper's analysis; "trained" starts there and learns.
        init_gain: standard deviation of W at the start; small ones lead to learned features, large ones to lazy
            training, in which activation functions differ less. Biases start at 0.
        seed: one seed for a single network, without leading axis; several for a stack of as many.
        device: of the parameters; random numbers are drawn on the CPU, so that a seed means the same everywhere.
        dtype: of the parameters.

    Shapes:
        input [P, d] shared by all networks, or [S, P, d] with one set a network; hidden [S, P, N]; output [S, P, k].
        A single network has no axis S and takes any leading axes.

    Raises:
        ValueError: a size or the gain is not positive, a name is unknown, or activations and seeds differ in number.

    Source: the networks with one hidden layer of the paper; fixed readouts, number of units and gain from memory.
    """

    weight: Tensor
    bias: Tensor
    readout: Tensor
    offset: Tensor

    def __init__(
        self,
        inputs: int,
        hidden: int,
        targets: int = 1,
        activation: str | Activation | Sequence[str | Activation] = "tanh",
        *,
        readout: str = "fixed",
        init_gain: float = 0.1,
        seed: int | Sequence[int] = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, size in (("inputs", inputs), ("hidden", hidden), ("targets", targets)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if not init_gain > 0:
            raise ValueError(f"init_gain is {init_gain}; expected a positive standard deviation")
        if readout not in ("fixed", "trained"):
            raise ValueError(f"readout is {readout!r}; expected 'fixed' or 'trained'")
        self.stack: int | None = None if isinstance(seed, int) else len(seed)
        seeds = [seed] if isinstance(seed, int) else list(seed)
        if not seeds:
            raise ValueError("seed is empty; expected a seed for each network")
        if isinstance(activation, str) or callable(activation):
            self._activations = [activation_function(activation)]
        else:
            self._activations = [activation_function(each) for each in activation]
            if len(self._activations) != len(seeds):
                raise ValueError(
                    f"activation names {len(self._activations)} functions; expected {len(seeds)}, one a seed"
                )
        if len(self._activations) == 1:
            self._activations *= len(seeds)
        self._groups = _runs(self._activations)
        starts = [self._start(each, inputs, hidden, targets) for each in seeds]
        weight, signs = (torch.stack(parts) for parts in zip(*starts, strict=True))
        values = {
            "weight": init_gain * weight,
            "bias": torch.zeros(len(seeds), hidden),
            "readout": signs / math.sqrt(hidden),
            "offset": torch.zeros(len(seeds), targets),
        }
        for name, value in values.items():
            placed = (value if self.stack is not None else value[0]).to(device=device, dtype=dtype)
            if name == "readout" and readout == "fixed":
                self.register_buffer(name, placed)
            else:
                self.register_parameter(name, nn.Parameter(placed))

    @staticmethod
    def _start(seed: int, inputs: int, hidden: int, targets: int) -> tuple[Tensor, Tensor]:
        generator = random_numbers("network", seed)
        weight = torch.randn(hidden, inputs, generator=generator, dtype=torch.float64)
        return weight, 2.0 * torch.randint(0, 2, (targets, hidden), generator=generator, dtype=torch.float64) - 1

    def take(self, networks: int | Sequence[int]) -> OneHidden:
        """A copy of some networks of a stack, or, for one number, of one as a single network.

        Args:
            networks: their places in the stack.

        Returns:
            A module of their own, whose training leaves this one as it is.

        Raises:
            ValueError: this is a single network, or there is no such place.
        """
        if self.stack is None:
            raise ValueError("networks can be taken from a stack only; this is a single network")
        places = [networks] if isinstance(networks, int) else list(networks)
        if not places or not all(0 <= place < self.stack for place in places):
            raise ValueError(f"networks is {networks}; expected places from 0 to {self.stack - 1}")
        chosen = copy.deepcopy(self)
        chosen.stack = None if isinstance(networks, int) else len(places)
        chosen._activations = [self._activations[place] for place in places]
        chosen._groups = _runs(chosen._activations)
        for name, value in self.state_dict().items():
            picked = value[networks if isinstance(networks, int) else places].clone()
            if name in self._buffers:
                chosen._buffers[name] = picked
            else:
                chosen._parameters[name] = nn.Parameter(picked)
        return chosen

    def preactivation(self, x: Tensor) -> Tensor:
        """W x + b, [S, P, N] (or [..., N] for a single network)."""
        if x.shape[-1] != self.weight.shape[-1]:
            raise ValueError(f"x has {x.shape[-1]} features; expected {self.weight.shape[-1]}")
        if self.stack is None:
            return F.linear(x, self.weight, self.bias)
        if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[0] != self.stack):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (P, d) or ({self.stack}, P, d) for this stack")
        return torch.baddbmm(self.bias[:, None], x.expand(self.stack, *x.shape[-2:]), self.weight.mT)

    def activate(self, z: Tensor) -> Tensor:
        """φ(z), each network with its own."""
        if len(self._groups) == 1:
            return self._groups[0][0](z)
        parts = z.split([count for _, count in self._groups])
        return torch.cat([function(part) for (function, _), part in zip(self._groups, parts, strict=True)])

    def hidden(self, x: Tensor) -> Tensor:
        """Activity of the hidden layer, [S, P, N] (or [..., N] for a single network)."""
        return self.activate(self.preactivation(x))

    def output(self, h: Tensor) -> Tensor:
        """Outputs for a given activity of the hidden layer, [S, P, k]."""
        if self.stack is None:
            return F.linear(h, self.readout, self.offset)
        return torch.baddbmm(self.offset[:, None], h, self.readout.mT)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ŷ, [S, P, k] (or [..., k] for a single network)."""
        return self.output(self.hidden(x))


def _runs(activations: Sequence[Activation]) -> list[tuple[Activation, int]]:
    """Equal neighbours, and how many there are of each."""
    groups: list[tuple[Activation, int]] = []
    for function in activations:
        if groups and groups[-1][0] is function:
            groups[-1] = (function, groups[-1][1] + 1)
        else:
            groups.append((function, 1))
    return groups


@dataclass(frozen=True)
class Trajectory:
    """How hidden layers changed in training; without the axis S for a single network.

    Attributes:
        steps: numbers of steps after which the layers were recorded.
        hidden: activity in the conditions without noise, at these steps [records, S, P, N].
        loss: before each step, and after the last [steps + 1, S].
        matched: activity when the loss first reached the level that was asked for, at the end for a network that never
            did [S, P, N]; None without a level.
        matched_step: when that was, -1 for never [S]; None without a level.
    """

    steps: tuple[int, ...]
    hidden: Tensor
    loss: Tensor
    matched: Tensor | None = None
    matched_step: Tensor | None = None


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of independent binary targets, one number a network.

    Args:
        outputs: ŷ [..., P, k].
        targets: -1 or 1 [..., P, k].

    Returns:
        The loss in nats [...].
    """
    return F.softplus(-targets * outputs).mean(dim=(-2, -1))


def train_together(
    network: OneHidden,
    x: Tensor,
    t: Tensor,
    *,
    steps: int = 1000,
    learning_rate: float = 5e-3,
    record: Sequence[int] = RECORDED,
    level: float | None = None,
    noise: float | Tensor = 0.0,
    repeats: int = 4,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Trajectory:
    """Train all networks of a stack at once with full-batch Adam, each as it would be trained alone.

    Losses are summed over networks and Adam works on single weights, so that no network notices the others.

    Args:
        network: a stack or a single network; trained in place.
        x: conditions without noise, shared [P, d] or one set a network [S, P, d].
        t: targets, -1 or 1, shared [P, k] or one set a network [S, P, k].
        steps: of training; 0 looks at the networks as they are.
        learning_rate: of Adam; its other settings are the usual ones.
        record: steps after which hidden layers are kept; those beyond `steps` are ignored.
        level: a loss at which layers are kept too, for comparisons at equal loss.
        noise: length of the noise on the inputs, drawn afresh at each step; one a network [S] or for all. The same draw
            serves all networks.
        repeats: noisy samples of each condition in a step, where there is noise.
        seed: of the noise.
        progress: called with the number of finished steps.

    Returns:
        Losses and recorded layers.

    Raises:
        ValueError: targets do not fit, the noise is negative, or a number is not positive.

    Source: optimiser, rate and number of steps are this project's; the paper's could not be read.
    """
    if steps < 0 or repeats < 1 or not learning_rate > 0:
        raise ValueError(
            f"steps, repeats and learning_rate are {steps}, {repeats} and {learning_rate}; expected at least 0, "
            "at least 1 and a positive number"
        )
    if t.ndim not in (2, 3) or t.shape[-2] != x.shape[-2] or t.shape[-1] != network.offset.shape[-1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; expected (..., {x.shape[-2]}, {network.offset.shape[-1]})")
    check_targets(t.flatten(0, -2), t.shape[:-1].numel())
    strength = torch.as_tensor(noise, dtype=x.dtype, device=x.device)
    if bool((strength < 0).any()):
        raise ValueError(f"noise is {noise}; expected lengths of at least 0")
    noisy = bool((strength > 0).any())
    generator = random_numbers("input noise", seed)
    wanted = tuple(sorted({step for step in record if 0 <= step <= steps}))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=x.device.type in ("cpu", "cuda"))
    losses, layers = [], []
    matched = matched_step = None
    for step in range(steps + 1):
        if noisy:
            inputs, goals = _add_noise(x, t, strength, repeats, generator)
            hidden = network.hidden(inputs)
        else:
            goals = t
            hidden = network.hidden(x)
        loss = logistic_loss(network.output(hidden), goals)
        losses.append(loss.detach())
        if step in wanted or step == steps or level is not None:
            layer = network.hidden(x).detach() if noisy else hidden.detach()
            if step in wanted:
                layers.append(layer)
            if level is not None:
                if matched is None or matched_step is None:
                    matched, matched_step = layer, torch.full_like(loss, -1, dtype=torch.long)
                arrived = (matched_step < 0) & (loss.detach() <= level)
                still = (matched_step < 0) & ~arrived
                matched_step = torch.where(arrived, step, matched_step)
                if step == steps or bool(arrived.any()):
                    matched = torch.where((arrived | still)[..., None, None], layer, matched)
        if step < steps:
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        if progress is not None:
            progress(step)
    return Trajectory(wanted, torch.stack(layers), torch.stack(losses), matched, matched_step)


def _add_noise(
    x: Tensor, t: Tensor, strength: Tensor, repeats: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noisy copies of the conditions [S, P repeats, d] and their targets; every network sees the same noise."""
    P, d = x.shape[-2:]
    normal = torch.randn(P, repeats, d, generator=generator, dtype=torch.float32).to(x) / math.sqrt(d)
    inputs = x[..., None, :] + strength[..., None, None, None] * normal
    return inputs.flatten(-3, -2), t.repeat_interleave(repeats, dim=-2)
