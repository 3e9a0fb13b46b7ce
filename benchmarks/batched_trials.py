"""Time per trial of the heaviest studies of theory: many networks at once beside a plain loop over them.

    python benchmarks/batched_trials.py

Both forms compute the same numbers; a column says how far apart they are ("-": the samples come in another order).
They take turns within each repeat, so that whatever else the machine does falls on both alike; compare the ratios of
one run.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from working_papers.bench import Scale
from working_papers.data.digits import load_digits
from working_papers.papers.bandlimited_random_networks import scope_sweep, sinc
from working_papers.papers.convergent_learning.networks import ARCHITECTURES, train_together
from working_papers.papers.deep_learning_theory.method.ensembles import Perceptrons
from working_papers.papers.deep_learning_theory.study import normalised_digits, train_networks
from working_papers.papers.jacobian_homeostasis import layered, nudge_derivative
from working_papers.papers.permutation_learning import TwoLayerReLU, train_ensemble


@dataclass(frozen=True)
class Pair:
    """One computation in two forms.

    Attributes:
        room: whose.
        what: is computed for each trial.
        trials: how many.
        batched: all of them at once.
        looped: one after another.
        same: whether the numbers must agree.
    """

    room: str
    what: str
    trials: int
    batched: Callable[[], Tensor]
    looped: Callable[[], Tensor]
    same: bool = True


def perceptrons(networks: int = 16, width: int = 32, depth: int = 20, steps: int = 20) -> Pair:
    """Deep perceptrons learning the digits."""
    digits = normalised_digits(0, Scale.LAPTOP)
    sizes = [64, *[width] * (depth - 1), 10]

    def train(seeds: range) -> Tensor:
        made = Perceptrons(torch.relu, sizes, 0.0, 2.0, seeds=seeds)
        return train_networks(made, digits, seeds=seeds, steps=steps, batch=64, learning_rate=2e-4).losses

    return Pair(
        "deep_learning_theory",
        f"{steps} steps of Adam, {depth} layers of {width} units",
        networks,
        lambda: train(range(networks)),
        lambda: torch.cat([train(range(seed, seed + 1)) for seed in range(networks)], dim=1),
    )


def nudges(networks: int = 8, images: int = 4) -> Pair:
    """Error vectors of equilibrium propagation, from nudges of eight sizes in six complex directions."""
    training, _ = load_digits()
    x, y = training.flat()[:images].double(), training.labels[:images]
    sizes = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64)
    net = layered(
        64, (64, 64), 10, members=(networks,), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    singles = []
    for number in range(networks):
        single = layered(64, (64, 64), 10, dtype=torch.float64)
        single.load_state_dict({name: value[number] for name, value in net.state_dict().items()})
        singles.append(single)
    with torch.no_grad():
        state = net.relax(x, steps=200, relaxation=0.7, tolerance=1e-9).state

    def one_after_another() -> Tensor:
        return torch.stack(
            [
                torch.stack(
                    [
                        nudge_derivative(
                            single, at, x, y, beta=float(size), n_points=6, steps=100, relaxation=0.7
                        ).error
                        for single, at in zip(singles, state, strict=True)
                    ]
                )
                for size in sizes
            ]
        )

    return Pair(
        "jacobian_homeostasis",
        f"100 relaxation steps, 6 nudges of {len(sizes)} sizes, {images} images",
        networks * len(sizes),
        lambda: nudge_derivative(net, state, x, y, beta=sizes, n_points=6, steps=100, relaxation=0.7).error,
        one_after_another,
    )


def digit_networks(networks: int = 8, epochs: int = 1) -> Pair:
    """Fully connected networks learning the digits, each in an order of its own."""
    training, test = load_digits()
    architecture = ARCHITECTURES["perceptron"]

    def train(count: int, seed: int) -> Tensor:
        return train_together(architecture, count, epochs, seed, training, test).accuracy

    # Networks of one call share a generator, so that only the first of a batch is that of a call of its own; what is
    # compared is the work.
    return Pair(
        "convergent_learning",
        f"{epochs} epoch of the digits",
        networks,
        lambda: train(networks, 0),
        lambda: torch.cat([train(1, seed) for seed in range(networks)]),
        same=False,
    )


def ensembles(networks: int = 32, k: int = 6, width: int = 256) -> Pair:
    """Networks trained to the end on a permutation's one-hot vectors."""
    x, y = torch.eye(k), torch.eye(k).roll(1, dims=1)

    def train(chunk: int) -> Tensor:
        fit = train_ensemble(
            lambda: TwoLayerReLU(k, width, k), networks, x, y, tests=x, chunk_size=chunk, tolerance=1e-30, max_steps=100
        )
        return fit.predictions

    return Pair(
        "permutation_learning",
        f"100 steps, {k} to {k} units by {width}",
        networks,
        lambda: train(networks),
        lambda: train(1),
    )


def boxes(seeds: int = 16, units: int = 100, points: int = 200) -> Pair:
    """Least-squares fits with random features from four boxes."""
    x = torch.linspace(-1, 1, points)[:, None]
    y = torch.sin(12 * x[:, 0])
    scopes, widths = (5.0, 10.0, 20.0, 40.0), (units // 4, units)

    def sweep(chosen: range) -> Tensor:
        return scope_sweep(x, y, x, y, sinc, scopes, widths, chosen).rmse

    return Pair(
        "bandlimited_random_networks",
        f"fits from {len(scopes)} boxes, up to {units} units",
        seeds,
        lambda: sweep(range(seeds)),
        lambda: torch.cat([sweep(range(seed, seed + 1)) for seed in range(seeds)], dim=2),
    )


PAIRS = (perceptrons, nudges, digit_networks, ensembles, boxes)


def seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Wall time of a call, and what it gave."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description="Time per trial, batched and looped.")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each form, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), torch {torch.__version__}, {platform.machine()}")
    print(
        f"{'room':<28} {'trials':>6} {'batched':>12} {'looped':>12} {'ratio':>6}  {'difference':>10}  what a trial is"
    )
    for make in PAIRS:
        pair = make()
        times: dict[str, list[float]] = {"batched": [], "looped": []}
        results: dict[str, Tensor] = {}
        for repeat in range(options.repeats + 1):
            for name, function in (("batched", pair.batched), ("looped", pair.looped)):
                taken, results[name] = seconds(function)
                if repeat:  # the first warms up
                    times[name].append(taken)
        batched, looped = (statistics.median(times[name]) / pair.trials * 1e3 for name in ("batched", "looped"))
        difference = f"{float((results['batched'] - results['looped']).abs().max()):.1e}" if pair.same else "-"
        print(
            f"{pair.room:<28} {pair.trials:>6} {batched:>9.2f} ms {looped:>9.2f} ms {looped / batched:>5.1f}x "
            f"{difference:>11}  {pair.what}"
        )


if __name__ == "__main__":
    main()
