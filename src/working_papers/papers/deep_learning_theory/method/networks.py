"""The user's own model: critical initialisation, and a probe of what depth does to its signals and gradients.

Letters: R = networks, B = inputs, P = positions, L = layers, n = width, K = kernel, G = the random kernel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from working_papers.nn.taps import ActivationTap, first_tensor
from working_papers.papers.deep_learning_theory.method.criticality import CriticalPoint, check_variances, find_critical
from working_papers.papers.deep_learning_theory.method.gaussian import Activation

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Initialise = CriticalPoint | Callable[[nn.Module], object]
Measured = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


@torch.no_grad()
def critical_init_(
    module: ModuleT,
    act: Activation,
    point: CriticalPoint | None = None,
    *,
    generator: torch.Generator | None = None,
) -> ModuleT:
    """Draw the weights and biases of every linear and convolutional layer anew, at the activation's critical point.

    Weights become N(0, C_W / fan_in), biases N(0, C_b), in place; nothing else is touched. Where the class is
    half-stable (GELU, SiLU), inputs should have x · x / n_0 = `point.input_square`, so that the first layer is at K*.

    Args:
        module: any model; its linear layers, convolutions and transposed convolutions, at any depth, are initialised.
        act: the activation between its layers.
        point: where to; by default `find_critical(act)`.
        generator: source of random numbers, on the parameters' device; by default the global one.

    Returns:
        The module.

    Raises:
        ValueError: there is no critical point, no layer to initialise, or one whose weight is computed from others.

    Source: book, section 5.3 (critical points) and section 2.3 (fan-in scaling).
    """
    point = find_critical(act) if point is None else point
    if point.C_b is None or point.C_W is None:
        raise ValueError(f"point has kind {point.kind!r}; expected an activation that has a critical point")
    check_variances(point.C_b, point.C_W)
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    if not layers:
        raise ValueError(f"module is {type(module).__name__} without linear or convolutional layers; expected some")
    for name, layer in layers:
        if parametrize.is_parametrized(layer) or isinstance(layer.weight, nn.UninitializedParameter):
            raise ValueError(f"module has the layer {name!r} with a computed or lazy weight; expected plain parameters")
    for _, layer in layers:
        layer.weight.normal_(0, math.sqrt(point.C_W / fan_in(layer)), generator=generator)
        if layer.bias is not None:
            layer.bias.normal_(0, math.sqrt(point.C_b), generator=generator)
    return module


def fan_in(layer: nn.Linear | _ConvNd) -> float:
    """How many inputs each output of a layer sums over; for transposed convolutions the mean over outputs."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    inputs = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return inputs / math.prod(layer.stride) if isinstance(layer, _ConvTransposeNd) else inputs


@dataclass(frozen=True)
class DepthReport:
    """What random networks of a model's shape do to signals and gradients, layer by layer.

    Attributes:
        layers: names of the L layers, in the order in which they run.
        widths: their neurons (channels).
        kernel: (L, B, B), mean over networks and neurons of z_a z_b.
        variance: (L, B), variance over networks of the random kernel G over its squared mean, that is V / (n K²);
            unbiased, so it can be negative. NaN for layers of one neuron.
        gradient_growth: (L - 1,), squared gradients at a layer over those at the next, mean over networks and
            inputs: χ_⊥ at infinite width.
        networks: how many there were.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    kernel: Tensor
    variance: Tensor
    gradient_growth: Tensor
    networks: int

    @property
    def depth_over_width(self) -> float:
        """Σ 1 / n over hidden layers: L / n for equal widths, the size of the fluctuations."""
        return sum(1 / width for width in self.widths[:-1])

    def table(self) -> str:
        """One line a layer, for reading."""
        kernel = self.kernel.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        variance = self.variance.mean(dim=-1)
        length = max(5, *map(len, self.layers))
        lines = [f"{'layer':{length}} {'width':>6} {'kernel':>10} {'var / K²':>10} {'gradients':>10}"]
        for i, (name, width) in enumerate(zip(self.layers, self.widths, strict=True)):
            growth = f"{float(self.gradient_growth[i]):10.4f}" if i + 1 < len(self.layers) else ""
            numbers = f"{width:6} {float(kernel[i]):10.4g} {float(variance[i]):10.4f} {growth}"
            lines.append(f"{name:{length}} {numbers}".rstrip())
        return "\n".join(lines)


def probe(
    module: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None = None,
    seeds: int = 16,
    *,
    initialise: Initialise | None = None,
    vectorise: bool = True,
) -> DepthReport:
    """Measure kernel, its fluctuations and the growth of gradients in any model, over random initialisations.

    A float64 copy of the model is initialised anew for each seed, and all copies run at once (`torch.vmap`). The
    variance of G is told apart from the scatter among neurons by products of different neurons. Gradients are those
    of a random projection of the output with respect to each layer's output; the ratio is meant for layers that
    follow one another, without branches.

    Args:
        module: the model; it stays as it is.
        x: inputs (B, ...).
        layers: names of the layers to look at; by default all linear and convolutional ones.
        seeds: number of initialisations, 2 or more; seeds 0, 1, 2 and so on.
        initialise: a critical point for all linear and convolutional layers, or a function that initialises a module
            in place; by default the modules' own `reset_parameters`, that is PyTorch's usual initialisation.
        vectorise: run all initialisations at once; False runs one after the other, for models that vmap cannot take.

    Returns:
        The report, in float64.

    Raises:
        ValueError: too few seeds, a layer that is unknown or runs more than once, nothing to look at, or a module with
            parameters that no `reset_parameters` draws.

    Source: book, section 4.3 (fluctuations) and section 9.4 (gradients), as measurements.
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; expected 2 or more initialisations")
    model = copy.deepcopy(module).double()
    x = x.double() if x.is_floating_point() else x
    chosen = layers if layers is not None else _weighted_layers(model)
    names, shapes, output = _trace(model, x, chosen)
    draw = _initialiser(model, initialise)

    states: list[dict[str, Tensor]] = []
    cotangents: list[Tensor] = []
    with torch.random.fork_rng(devices=[] if x.device.type == "cpu" else [x.device]):
        for seed in range(seeds):
            torch.manual_seed(seed)
            draw(model)
            states.append({name: part.detach().clone() for name, part in model.state_dict(keep_vars=True).items()})
            cotangents.append(torch.randn_like(output))

    perturbations: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def perturb(layer: nn.Module, given: Any, found: Any) -> Any:
            values[name] = first_tensor(found) + perturbations[name]
            return values[name] if isinstance(found, Tensor) else (values[name], *found[1:])

        return perturb

    def measure(state: dict[str, Tensor], cotangent: Tensor) -> Measured:
        """Kernels (B, B), kernels of single positions and products of neurons (B, P), squared gradients (B,)."""

        def run(added: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            perturbations.update(added)
            result = first_tensor(torch.func.functional_call(model, state, (x,)))
            return result, dict(values)

        zeros = {name: torch.zeros(shape, dtype=torch.float64, device=x.device) for name, shape in shapes.items()}
        pulled: Any = torch.func.vjp(run, zeros, has_aux=True)
        _, pull_back, kept = pulled
        (gradients,) = pull_back(cotangent)
        z = [_by_neuron(kept[name], modules[name]) for name in names]
        kernels = [part.flatten(1) @ part.flatten(1).mT / part[0].numel() for part in z]
        squares = [part.square().mean(dim=-1) for part in z]
        products = [_mean_product(part) for part in z]
        return kernels, squares, products, [gradients[name].flatten(1).square().sum(dim=1) for name in names]

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        if vectorise:
            kernels, squares, products, gradients = torch.vmap(measure, randomness="different")(
                stacked, torch.stack(cotangents)
            )
        else:
            runs = [measure(state, cotangent) for state, cotangent in zip(states, cotangents, strict=True)]
            kernels, squares, products, gradients = (
                [torch.stack(part) for part in zip(*parts, strict=True)] for parts in zip(*runs, strict=True)
            )
    finally:
        for handle in handles:
            handle.remove()
    growth = torch.stack(gradients[:-1]) / torch.stack(gradients[1:])
    return DepthReport(
        layers=names,
        widths=tuple(_neurons(shapes[name], modules[name]) for name in names),
        kernel=torch.stack([kernel.mean(dim=0) for kernel in kernels]).detach(),
        variance=torch.stack(list(map(_relative_variance, squares, products))).detach(),
        gradient_growth=growth.nanmean(dim=(1, 2)).detach(),
        networks=seeds,
    )


def _weighted_layers(model: nn.Module) -> list[str]:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    if not names:
        raise ValueError(f"module is {type(model).__name__} without linear or convolutional layers; name its layers")
    return names


@torch.no_grad()
def _trace(model: nn.Module, x: Tensor, layers: Sequence[str]) -> tuple[tuple[str, ...], dict[str, torch.Size], Tensor]:
    """The layers in the order in which they run, the shapes of their outputs, and the model's output."""
    runs: dict[str, int] = dict.fromkeys(layers, 0)

    with ActivationTap(model, layers) as tap:
        modules = dict(model.named_modules())

        def counter(name: str) -> Callable[..., None]:
            def count(*_: object) -> None:
                runs[name] += 1

            return count

        handles = [modules[name].register_forward_hook(counter(name)) for name in runs]
        output = first_tensor(model(x))
        for handle in handles:
            handle.remove()
    for name, times in runs.items():
        if times != 1:
            raise ValueError(f"layers has {name!r}, which runs {times} times in a pass; expected layers that run once")
    return tuple(tap.values), {name: value.shape for name, value in tap.values.items()}, output


def _initialiser(model: nn.Module, initialise: Initialise | None) -> Callable[[nn.Module], object]:
    if isinstance(initialise, CriticalPoint):
        point = initialise
        return lambda module: critical_init_(module, nn.Identity(), point)
    if initialise is not None:
        return initialise
    for name, layer in model.named_modules():
        if not hasattr(layer, "reset_parameters") and next(layer.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"module has {name or type(layer).__name__!r} with parameters but no reset_parameters; "
                "expected initialise to say how they are drawn"
            )

    def reset(module: nn.Module) -> None:
        for layer in module.modules():
            draw: Any = getattr(layer, "reset_parameters", None)
            if draw is not None:
                draw()

    return reset


def _by_neuron(z: Tensor, layer: nn.Module) -> Tensor:
    """Outputs as (B, positions, neurons)."""
    if isinstance(layer, _ConvNd):
        return z.flatten(2).mT
    return z.reshape(z.shape[0], -1, z.shape[-1])


def _neurons(shape: torch.Size, layer: nn.Module) -> int:
    return shape[1] if isinstance(layer, _ConvNd) else shape[-1]


def _mean_product(z: Tensor) -> Tensor:
    """Mean of z_i² z_j² over different neurons i and j (B, P); its expectation is that of G²."""
    n = z.shape[-1]
    square = z.square()
    return (square.sum(dim=-1).square() - square.square().sum(dim=-1)) / (n * (n - 1) if n > 1 else math.nan)


def _relative_variance(squares: Tensor, products: Tensor) -> Tensor:
    """Var[G] / E[G]² from means of z² and of products (R, B, P), both over networks, pooled over positions: (B,)."""
    count = len(squares)
    mean_square = ((squares.sum(dim=0).square() - squares.square().sum(dim=0)) / (count * (count - 1))).sum(dim=-1)
    return products.mean(dim=0).sum(dim=-1) / mean_square - 1
