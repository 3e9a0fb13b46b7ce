"""Time of one optimiser step: NorMuon and its Muon beside PyTorch's Muon and AdamW, on the same model.

    python benchmarks/optimizer_step.py --width 256 --layers 8

The optimisers take turns within each repeat, so that whatever else the machine does falls on all of them alike;
compare the ratios of one run, not the milliseconds of two.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from working_papers.papers.normuon import NorMuon

MAKERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "NorMuon": lambda matrices: NorMuon(matrices),
    "NorMuon, float32": lambda matrices: NorMuon(matrices, ns_dtype=torch.float32),
    "NorMuon, bfloat16": lambda matrices: NorMuon(matrices, ns_dtype=torch.bfloat16),
    "NorMuon, normalize=False": lambda matrices: NorMuon(matrices, normalize=False),
    "torch.optim.Muon (bfloat16)": lambda matrices: torch.optim.Muon(matrices),
    "torch.optim.AdamW": lambda matrices: torch.optim.AdamW(matrices),
}


def hidden_matrices(width: int, layers: int, device: str) -> list[nn.Parameter]:
    """The matrices of a transformer's hidden layers, with gradients: four (D, D), one (4D, D), one (D, 4D) a layer."""
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    generator = torch.Generator(device).manual_seed(0)
    matrices = [
        nn.Parameter(torch.randn(shape, generator=generator, device=device)) for _ in range(layers) for shape in shapes
    ]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=generator, device=device)
    return matrices


def seconds(optimizer: Optimizer, steps: int, device: str) -> float:
    """Mean wall time of a step."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one optimiser step on the matrices of a transformer.")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps a measurement")
    parser.add_argument("--repeats", type=int, default=11, help="measurements an optimiser, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    optimizers = {
        name: make(hidden_matrices(options.width, options.layers, options.device)) for name, make in MAKERS.items()
    }
    for optimizer in optimizers.values():  # allocates state
        seconds(optimizer, 1, options.device)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(options.repeats):
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer, options.steps, options.device))

    medians = {name: statistics.median(values) for name, values in times.items()}
    numbers = sum(p.numel() for p in hidden_matrices(options.width, options.layers, options.device))
    print(
        f"{numbers / 1e6:.1f} M parameters in {6 * options.layers} matrices of width {options.width}, "
        f"{options.device}, {options.threads} thread(s), torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'optimiser':30} {'ms a step':>10} {'/ AdamW':>9} {'/ torch Muon':>13}")
    for name, value in medians.items():
        to_adamw = value / medians["torch.optim.AdamW"]
        to_muon = value / medians["torch.optim.Muon (bfloat16)"]
        print(f"{name:30} {value * 1e3:10.2f} {to_adamw:9.2f} {to_muon:13.2f}")


if __name__ == "__main__":
    main()
