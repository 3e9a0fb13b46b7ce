"""Time of one training step of DeepONet: this project's beside DeepXDE's (PyTorch backend), on the same numbers.

    python benchmarks/deeponet_step.py --pairs 10000

DeepXDE is no dependency of the project. It goes into an environment of its own that borrows this one's torch, so that
both take their steps in one process:

    python -m venv /tmp/deepxde_venv
    /tmp/deepxde_venv/bin/pip install --no-deps deepxde scikit-optimize pyaml
    .venv/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" \\
        > /tmp/deepxde_venv/lib/python3.11/site-packages/shared.pth
    PYTHONPATH=src /tmp/deepxde_venv/bin/python benchmarks/deeponet_step.py

Three kinds of data, all with the paper's network (100 sensors, 40 basis functions, ReLU) and full batches:

- pairs: one query a function, as for the paper's ordinary differential equations. Both do the same work.
- aligned: all functions share their queries; DeepXDE has `TripleCartesianProd` for it.
- own queries: every function has its own queries, as for the paper's partial differential equations. DeepXDE repeats
  the function for each query (`Triple`); `OperatorData` keeps it once, so that the branch runs once a function.

Each step is forward, mean squared error, backward and Adam. The two take turns within each repeat, so that whatever
else the machine does falls on both alike, and begin from the same weights: their losses are compared first. The
interval is of the median of the repeats' ratios, by bootstrap.
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from working_papers.papers.deeponet import DeepONet, OperatorData
from working_papers.papers.deeponet.method import Layout

SENSORS, DIMENSION, P = 100, 2, 40
ENOUGH = 1.5  # the ratio that the project promises


@dataclass(frozen=True)
class Contest:
    """One kind of data: a step of each, and the loss that each computes before its first step."""

    name: str
    ours: Callable[[], None]
    theirs: Callable[[], None]
    losses: tuple[float, float]


def contest(dde: Any, name: str, functions: int, queries: int) -> Contest:
    """Make data, the two networks with the same weights, and their steps."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(functions, SENSORS, generator=generator)
    shape = {"pairs": (functions,), "aligned": (queries,), "own queries": (functions, queries)}[name]
    y = torch.rand(*shape, DIMENSION, generator=generator)
    s = torch.randn((functions,) if name == "pairs" else (functions, queries), generator=generator)
    layouts: dict[str, Layout] = {"pairs": "pairs", "aligned": "cartesian", "own queries": "per-function"}
    data = OperatorData(u, y, s, layouts[name])
    model = DeepONet.mlp(SENSORS, DIMENSION, p=P, generator=generator)

    sizes = [SENSORS, 40, P], [DIMENSION, 40, P], "relu", "Glorot normal"
    if name == "aligned":
        network, kind, arrays, targets = dde.nn.DeepONetCartesianProd(*sizes), dde.data.TripleCartesianProd, (u, y), s
    else:
        pairs = data.pairs()
        network, kind, arrays = dde.nn.DeepONet(*sizes), dde.data.Triple, (pairs.functions, pairs.queries)
        targets = pairs.values[:, None]
    linears = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer, other in zip(linears, [*network.branch.linears, *network.trunk.linears], strict=True):
        other.load_state_dict(layer.state_dict())

    rows = tuple(part.numpy() for part in arrays)
    peer = dde.Model(kind(rows, targets.numpy(), rows, targets.numpy()), network)
    peer.compile("adam", lr=1e-3, verbose=0)

    def theirs() -> None:  # the body of the loop in deepxde.Model._train_sgd
        peer.train_state.set_data_train(*peer.data.train_next_batch(None))
        peer._train_step(peer.train_state.X_train, peer.train_state.y_train, peer.train_state.train_aux_vars)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)  # as train_operator makes it

    def loss() -> torch.Tensor:
        return (data.predict(model) - data.values).square().mean()

    def ours() -> None:  # the body of the loop in train_operator
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    with torch.no_grad():
        mine = float(loss())
    peer.train_state.set_data_train(*peer.data.train_next_batch(None))
    state = peer.train_state
    found = peer._outputs_losses(True, state.X_train, state.y_train, state.train_aux_vars)[1]
    return Contest(name, ours, theirs, (mine, float(np.sum(found))))


def seconds(step: Callable[[], None], steps: int) -> float:
    """Mean wall time of a step."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one training step of DeepONet beside DeepXDE's.")
    parser.add_argument("--pairs", type=int, default=10_000, help="values a step; 100 queries a function but for pairs")
    parser.add_argument("--steps", type=int, default=10, help="steps a measurement")
    parser.add_argument("--repeats", type=int, default=31, help="measurements of each, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    os.environ["DDE_BACKEND"] = "pytorch"
    try:
        dde: Any = importlib.import_module("deepxde")
    except ImportError as error:
        sys.exit(f"DeepXDE cannot be imported here ({error}); the first lines of {__file__} say how to install it.")
    torch.set_default_device("cpu")  # importing DeepXDE takes a GPU where there is one

    queries = min(100, options.pairs)
    functions = options.pairs // queries
    contests = [
        contest(dde, "pairs", options.pairs, 1),
        contest(dde, "aligned", functions, queries),
        contest(dde, "own queries", functions, queries),
    ]
    print(
        f"{options.pairs} values a step, CPU, {options.threads} thread(s), torch {torch.__version__}, "
        f"deepxde {dde.__version__}, {platform.machine()}"
    )
    print(f"{'data':12} {'ours, ms':>9} {'DeepXDE, ms':>12} {'ratio':>7} {'95 % interval':>15}   loss at the start")
    random = np.random.default_rng(0)
    for each in contests:
        for step in (each.ours, each.theirs):  # allocates state
            seconds(step, 3)
        mine, other = [], []
        for _ in range(options.repeats):
            mine.append(seconds(each.ours, options.steps))
            other.append(seconds(each.theirs, options.steps))
        ratios = np.array(other) / np.array(mine)
        drawn = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        enough = "" if low >= ENOUGH else f"   below {ENOUGH}"
        print(
            f"{each.name:12} {statistics.median(mine) * 1e3:9.2f} {statistics.median(other) * 1e3:12.2f} "
            f"{np.median(ratios):7.2f} {f'{low:.2f} to {high:.2f}':>15}   "
            f"{each.losses[0]:.6f} and {each.losses[1]:.6f}{enough}"
        )


if __name__ == "__main__":
    main()
