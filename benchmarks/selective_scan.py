"""Time of the selective scan with its gradients beside `mambapy` (https://pypi.org/project/mambapy), and by length.

    pip install --no-deps --target /tmp/mambapy mambapy==1.2.0
    PYTHONPATH=/tmp/mambapy python benchmarks/selective_scan.py

The folder of its own and `--no-deps` keep mambapy from replacing this environment's torch; of mambapy only its parallel
scan is loaded, around which its block computes what stands in `peer_scan`. Outputs and gradients are compared first.
Both take turns within each repeat, so that whatever else the machine does falls on both alike; compare the ratios of
one run, not the milliseconds of two. The interval is of the median of the repeats' ratios, by bootstrap.

The second table has the time of one token at growing lengths: it stays the same where the cost is linear.
"""

import argparse
import importlib
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from working_papers.nn.selective_scan import selective_scan

ENOUGH = 1.5  # the ratio that the project promises on a CPU
SHAPES = (
    (32, 100, 128, 8),
    (128, 40, 512, 16),
    (8, 400, 512, 16),
    (1, 400, 512, 16),
    (8, 1000, 128, 16),
    (1, 1024, 64, 16),
)
"""Sequences, tokens, channels, numbers of state a channel; the second is NetMamba's pre-training."""
LENGTHS = (100, 200, 400, 800, 1600, 3200, 6400, 12800)
Scan = Callable[..., Tensor]


def peer_scan(pscan: Any) -> Scan:
    """What mambapy's block computes with its parallel scan."""

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        decay = torch.exp(dt.unsqueeze(-1) * A)
        inputs = (dt.unsqueeze(-1) * B.unsqueeze(2)) * x.unsqueeze(-1)
        states: Tensor = pscan(decay, inputs)
        return (states @ C.unsqueeze(-1)).squeeze(3) + D * x

    return scan


def arguments(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    """x, dt, A, B, C, D as a model makes them, as leaves."""
    batch, length, channels, size = shape
    g = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(batch, length, channels, generator=g),
        F.softplus(torch.randn(batch, length, channels, generator=g) - 4),
        -torch.arange(1.0, size + 1).repeat(channels, 1),
        torch.randn(batch, length, size, generator=g),
        torch.randn(batch, length, size, generator=g),
        torch.ones(channels),
    ]
    return [part.to(device).requires_grad_() for part in parts]


def seconds(scan: Scan, given: list[Tensor]) -> tuple[float, float, list[Tensor]]:
    """Wall time of a forward and of a backward pass, and the output with the gradients."""
    cuda = given[0].is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = scan(*given)
    if cuda:
        torch.cuda.synchronize()
    middle = time.perf_counter()
    gradients = torch.autograd.grad(y, given, torch.ones_like(y))
    if cuda:
        torch.cuda.synchronize()
    return middle - start, time.perf_counter() - middle, [y.detach(), *gradients]


def compare(pscan: Any, repeats: int, device: str) -> None:
    """The table against the peer."""
    random = np.random.default_rng(0)
    head = ("shape", "ours, ms", "mambapy, ms", "forward", "with gradients", "95 % interval", "difference")
    print("{:>20} {:>10} {:>12} {:>8} {:>15} {:>15} {:>11}".format(*head))
    for shape in SHAPES:
        given = arguments(shape, device)
        scans = (selective_scan, peer_scan(pscan))
        warm = [seconds(scan, given)[2] for scan in scans]
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*warm, strict=True))
        assert difference < 1e-4, f"outputs or gradients differ by {difference}"
        del warm
        forward: list[list[float]] = [[], []]
        whole: list[list[float]] = [[], []]
        for _ in range(repeats):
            for number, scan in enumerate(scans):
                ahead, back, _ = seconds(scan, given)
                forward[number].append(ahead)
                whole[number].append(ahead + back)
        ratios = np.array(whole[1]) / np.array(whole[0])
        drawn = np.median(random.choice(ratios, (2000, repeats)), axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        enough = "" if low >= ENOUGH else f"   below {ENOUGH}"
        print(
            f"{shape!s:>20} {statistics.median(whole[0]) * 1e3:10.2f} {statistics.median(whole[1]) * 1e3:12.2f} "
            f"{np.median(np.array(forward[1]) / np.array(forward[0])):8.2f} {np.median(ratios):15.2f} "
            f"{f'{low:.2f} to {high:.2f}':>15} {difference:11.1e}{enough}"
        )


def by_length(repeats: int, device: str) -> None:
    """The table of time against length, least of the repeats."""
    print(f"\n{'tokens':>8} {'forward, µs a token':>20} {'with gradients, µs a token':>27}")
    found = []
    for length in LENGTHS:
        given = arguments((4, length, 128, 16), device)
        seconds(selective_scan, given)
        times = [seconds(selective_scan, given)[:2] for _ in range(repeats)]
        ahead, whole = min(each[0] for each in times), min(sum(each) for each in times)
        found.append((ahead, whole))
        print(f"{length:8} {ahead / length * 1e6:20.2f} {whole / length * 1e6:27.2f}")
    slopes = [np.polyfit(np.log(LENGTHS), np.log([each[part] for each in found]), 1)[0] for part in (0, 1)]
    print(f"exponent {slopes[0]:19.3f} {slopes[1]:27.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the selective scan with its gradients.")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} thread(s), {platform.machine()}, float32")
    try:
        pscan = importlib.import_module("mambapy.pscan").pscan
    except ImportError:
        print("mambapy is not installed, nothing to compare with; the head of this file says how to get it: skipped")
    else:
        print(f"mambapy {metadata.version('mambapy')}; ratios are its time over ours")
        compare(pscan, options.repeats, options.device)
    by_length(options.repeats, options.device)


if __name__ == "__main__":
    main()
