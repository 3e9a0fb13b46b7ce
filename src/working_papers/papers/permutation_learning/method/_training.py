"""Full-batch gradient descent until the examples are fitted: one network, or many at once.

Many networks are one computation over a leading axis, by `torch.func.vmap`, in chunks that fit the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from working_papers.papers.permutation_learning.method._inputs import round_average
from working_papers.papers.permutation_learning.method._limit import check_count

State = dict[str, Tensor]
"""Parameters and buffers of a network, with a leading axis for N networks; those that require gradients are trained."""

Network = Callable[[State, Tensor], Tensor]
"""A network, or N at once, as a function of state and inputs."""

CHUNK = 16  # networks at once: on a CPU, activations of more leave the cache; a GPU takes many more
POWER_ITERATIONS = 10  # the estimate is low by a few per cent at worst, and steps twice as long still converge
TESTS = 128  # inputs predicted at once, for the same reason
MEASURED = 4  # networks whose curvature is looked at
DIVERGED = 1e4  # times the first error: a ReLU network may die of steps too long before any number overflows
MARGIN = 10.0  # the threshold of a trained ensemble over its training residual


class Fit(NamedTuple):
    """How training went.

    Attributes:
        steps: gradient steps taken.
        residual: largest absolute error of any output on the training examples.
        learning_rate: step size.
    """

    steps: int
    residual: float
    learning_rate: float


class EnsembleFit(NamedTuple):
    """What `train_ensemble` returns.

    Attributes:
        predictions: outputs of every network, (N, b, ...).
        steps: gradient steps that each network took, (N,).
        residual: largest absolute error of any network and output on the training examples.
        learning_rate: step size.
    """

    predictions: Tensor
    steps: Tensor
    residual: float
    learning_rate: float


def train_exact(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    learning_rate: float | Literal["auto"] = "auto",
    tolerance: float = 1e-5,
    max_steps: int = 10_000,
) -> Fit:
    """Train one network in place, by full-batch gradient descent on ½ Σ (f(x) - y)², until it fits.

    Args:
        model: maps (e, ...) to the shape of y; all its parameters are trained.
        x: training inputs, (e, ...).
        y: targets, (e, ...).
        learning_rate: step size; "auto" for one over the largest eigenvalue of the tangent kernel at the start.
        tolerance: training ends when no output is further off.
        max_steps: or after so many steps; see the returned residual.

    Returns:
        Steps, residual and step size.

    Raises:
        ValueError: arguments out of range, shapes that do not fit, or steps so long that training diverges.

    Source: the paper's training, gradient descent to convergence. Its loss and the official code's (mean over
    examples and outputs) differ by a factor, which the step size takes up.
    """
    _check_training(learning_rate, tolerance, max_steps)
    network = partial(_outputs, model)
    state = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}  # the same memory
    rate = _rate(network, state, x, y) if learning_rate == "auto" else learning_rate
    steps, residual = _descend(network, state, x, y, rate, tolerance, max_steps)
    return Fit(steps, residual, rate)


def train_ensemble(
    factory: Callable[[], nn.Module],
    size: int,
    x: Tensor,
    y: Tensor,
    *,
    tests: Tensor,
    seed: int = 0,
    chunk_size: int = CHUNK,
    learning_rate: float | Literal["auto"] = "auto",
    tolerance: float = 1e-5,
    max_steps: int = 10_000,
    progress: Callable[[int], None] | None = None,
) -> EnsembleFit:
    """Train many independent networks, a chunk at a time, and keep only what they say about the tests.

    Args:
        factory: makes a network with random weights; called once for each. Networks must be alike but for values.
        size: number of networks N.
        x: training inputs, (e, ...).
        y: targets, (e, ...).
        tests: inputs to predict, (b, ...).
        seed: of all networks: a larger ensemble begins with the same ones, whatever the chunks.
        chunk_size: networks trained together; 1 trains one at a time.
        learning_rate: as for `train_exact`; "auto" looks at the first few networks.
        tolerance: a chunk is trained until no output of any of its networks is further off.
        max_steps: or for so many steps.
        progress: called with the number of networks done.

    Returns:
        Predictions of every network, with steps, residual and step size.

    Raises:
        ValueError: as for `train_exact`, or a size or chunk below 1.
    """
    check_count("size", size)
    check_count("chunk_size", chunk_size)
    _check_training(learning_rate, tolerance, max_steps)
    networks = _draw(factory, size, seed)
    first = list(islice(networks, MEASURED))
    together = partial(_outputs_of_all, first[0])
    rate = _rate(together, _stacked(first), x, y) if learning_rate == "auto" else learning_rate
    networks = chain(first, networks)
    del first
    predictions, taken, residual, done = [], [], 0.0, 0
    while chunk := list(islice(networks, chunk_size)):
        state = _stacked(chunk)
        steps, worst = _descend(together, state, x, y, rate, tolerance, max_steps)
        residual, done = max(residual, worst), done + len(chunk)
        taken += [steps] * len(chunk)
        with torch.no_grad():
            predictions.append(torch.cat([together(state, part) for part in tests.split(TESTS)], dim=1))
        if progress is not None:
            progress(done)
    return EnsembleFit(torch.cat(predictions), torch.tensor(taken), residual, rate)


class Ensemble(nn.Module):
    """Many independent networks of one kind as one module; its output is their average.

    Args:
        factory: makes a network with random weights; networks must be alike but for their values.
        size: number of networks N.
        seed: of all networks; the global generators are left as they were.
        chunk_size: networks computed together.

    Shapes:
        input (b, ...), output that of one network.

    Raises:
        ValueError: a size or chunk below 1.

    Source: the paper's ensemble, the average of independently trained networks.

    Example:
        >>> k = 6
        >>> size = PermutationTheory(k).networks_needed(0.01, all_inputs=True)
        >>> ensemble = Ensemble(lambda: TwoLayerReLU(k, 1000, k), size)
        >>> ensemble.fit(torch.eye(k), torch.eye(k).roll(1, dims=1))
        >>> ensemble.predict_binary(unit_norm(binary_inputs(k)))  # all 63 inputs, rolled by one
    """

    def __init__(self, factory: Callable[[], nn.Module], size: int, *, seed: int = 0, chunk_size: int = CHUNK) -> None:
        super().__init__()
        check_count("size", size)
        check_count("chunk_size", chunk_size)
        networks = list(_draw(factory, size, seed))
        self.size, self.chunk_size = size, chunk_size
        # Only the structure of one network is needed, and it is no part of the state.
        self._network = partial(_outputs_of_all, copy.deepcopy(networks[0]).to("meta"))
        state = _stacked(networks)
        self._names = {name: "all " + name.replace(".", " ") for name in state}
        for name, stacked in state.items():
            if stacked.requires_grad:
                self.register_parameter(self._names[name], nn.Parameter(stacked.detach()))
            else:
                self.register_buffer(self._names[name], stacked)
        self.register_buffer("residual", torch.zeros(()))
        self.residual: Tensor

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        learning_rate: float | Literal["auto"] = "auto",
        tolerance: float = 1e-5,
        max_steps: int = 10_000,
    ) -> Fit:
        """Train all networks until they fit; arguments, errors and source as for `train_exact`.

        Returns:
            The most steps that any chunk of networks took, the largest residual, and the step size.
        """
        _check_training(learning_rate, tolerance, max_steps)
        rate = _rate(self._network, self._leaves(0, MEASURED), x, y) if learning_rate == "auto" else learning_rate
        steps, residual = 0, 0.0
        for start in range(0, self.size, self.chunk_size):
            part = self._leaves(start, start + self.chunk_size)
            taken, worst = _descend(self._network, part, x, y, rate, tolerance, max_steps)
            steps, residual = max(steps, taken), max(residual, worst)
        self.residual.fill_(residual)
        return Fit(steps, residual, rate)

    def members(self, x: Tensor) -> Tensor:
        """Outputs of every network at inputs (b, ...): (N, b, ...)."""
        starts = range(0, self.size, self.chunk_size)
        return torch.cat([self._network(self._slice(start, start + self.chunk_size), x) for start in starts])

    def forward(self, x: Tensor) -> Tensor:
        """The average of all networks."""
        return self.members(x).mean(dim=0)

    @torch.no_grad()
    def predict_binary(self, x: Tensor, threshold: float | None = None) -> Tensor:
        """Bits: the average, rounded.

        Args:
            x: inputs (b, ...); for permutations of length 1, see `unit_norm`.
            threshold: above which a bit is one. The paper's is 0, where training never ends; by default it is ten
                times what training left of the error, so that rounding does not decide at the training inputs.

        Returns:
            boolean, of the output's shape.
        """
        return round_average(self.members(x), MARGIN * float(self.residual) if threshold is None else threshold)

    def _slice(self, start: int, stop: int) -> State:
        """The state of some networks."""
        return {name: getattr(self, stored)[start:stop] for name, stored in self._names.items()}

    def _leaves(self, start: int, stop: int) -> State:
        """The same in the same memory, to be trained in place."""
        part = self._slice(start, stop)
        return {name: value.detach().requires_grad_(value.requires_grad) for name, value in part.items()}


def _draw(factory: Callable[[], nn.Module], size: int, seed: int) -> Iterator[nn.Module]:
    """Networks, each from a seed of its own; outside, the global generators are as they were."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(size):
        own = int(torch.randint(2**62, (), generator=generator))
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
            torch.manual_seed(own)
            network = factory()
        yield network


def _stacked(networks: list[nn.Module]) -> State:
    """Parameters, which require gradients, and buffers, all with a leading axis for the networks."""
    parameters, buffers = stack_module_state(networks)
    return {name: p.detach().requires_grad_() for name, p in parameters.items()} | buffers


def _outputs(model: nn.Module, state: State, x: Tensor) -> Tensor:
    """Outputs of a model whose parameters (and buffers, where given) are those of the state."""
    output: Tensor = functional_call(model, state, (x,))
    return output


def _outputs_of_all(model: nn.Module, state: State, x: Tensor) -> Tensor:
    """Outputs (N, ...) of N models of the same structure at common inputs."""
    outputs: Tensor = vmap(partial(_outputs, model), in_dims=(0, None))(state, x)
    return outputs


def _check_training(learning_rate: float | Literal["auto"], tolerance: float, max_steps: int) -> None:
    if learning_rate != "auto" and not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; expected 'auto' or a positive number")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; expected a positive number")
    check_count("max_steps", max_steps)


def _rate(network: Network, state: State, x: Tensor, y: Tensor) -> float:
    """One over the largest eigenvalue of the tangent kernel, of the most curved of the networks, by power iteration."""
    fixed = {name: value for name, value in state.items() if not value.requires_grad}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in state.items() if value.requires_grad}
    with torch.enable_grad():
        output = network(fixed | leaves, x)
    _check_shapes(output, y)
    axes = tuple(range(output.ndim - y.ndim, output.ndim))  # those of one network
    # The gradients are linear in their weights w, so that the gradient of (gradients · t) by w is the derivative
    # of the output along t: reverse mode alone, which every module has.
    w = torch.zeros_like(output, requires_grad=True)
    linear = torch.autograd.grad(output, list(leaves.values()), w, create_graph=True, allow_unused=True)
    used = [leaf for leaf, part in zip(leaves.values(), linear, strict=True) if part is not None and part.requires_grad]
    parts = [part for part in linear if part is not None and part.requires_grad]
    v = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    for _ in range(POWER_ITERATIONS if used else 0):
        v = v / torch.linalg.vector_norm(v, dim=axes, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        gradients = torch.autograd.grad(output, used, v, retain_graph=True)
        (v,) = torch.autograd.grad(parts, w, gradients, retain_graph=True)
    largest = float(torch.linalg.vector_norm(v, dim=axes).max()) if used else 0.0
    if not 0 < largest < float("inf"):
        raise ValueError(f"model has a tangent kernel of norm {largest} at x; expected a network that can learn there")
    return 1 / largest


def _descend(
    network: Network, state: State, x: Tensor, y: Tensor, rate: float, tolerance: float, max_steps: int
) -> tuple[int, float]:
    """Gradient descent on the state in place; networks do not see each other, so one sum of losses serves all."""
    values, step, limit = [value for value in state.values() if value.requires_grad], 0, 0.0
    while True:
        with torch.enable_grad():
            output = network(state, x)
            _check_shapes(output, y)
            error = output - y
            loss = error.square().sum() / 2
        residual = float(error.detach().abs().amax())
        if residual <= tolerance or step == max_steps:
            return step, residual
        if step == 0:
            limit = DIVERGED * residual
        elif not residual < limit:  # not a number, too
            raise ValueError(f"learning_rate is {rate:g}; training diverged at step {step}, expected shorter steps")
        gradients = torch.autograd.grad(loss, values, materialize_grads=True)
        with torch.no_grad():
            for value, gradient in zip(values, gradients, strict=True):
                value.sub_(gradient, alpha=rate)
        step += 1


def _check_shapes(output: Tensor, y: Tensor) -> None:
    """Refuse targets that would be broadcast: they would train something else."""
    if output.shape[output.ndim - y.ndim :] != y.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}; expected {tuple(output.shape[-y.ndim :])}, as the output")
