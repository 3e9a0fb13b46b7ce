"""Time of the Barlow Twins loss with its gradients, beside the loss in `lightly` (https://pypi.org/project/lightly).

    pip install --no-deps --target /tmp/lightly lightly==1.6.0
    PYTHONPATH=/tmp/lightly python benchmarks/barlow_twins_loss.py

The folder of its own and `--no-deps` keep lightly from replacing this environment's torch; of lightly only the file
with the loss is loaded, which needs nothing but torch. Both take turns within each repeat, so that whatever else the
machine does falls on both alike; compare the ratios of one run, not the milliseconds of two.
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from working_papers.papers.barlow_twins import barlow_twins_loss

LAMBDA = 0.005
SHAPES = ((256, 512), (1024, 512), (256, 2048), (2048, 2048), (256, 8192))
Loss = Callable[[Tensor, Tensor], Tensor]


def peer_loss() -> Loss | None:
    """Lightly's loss, or None if it is not installed; importing the package itself would want torchvision."""
    package = importlib.util.find_spec("lightly")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / "loss" / "barlow_twins_loss.py"
    spec = importlib.util.spec_from_file_location("lightly_barlow_twins_loss", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss: Loss = module.BarlowTwinsLoss(lambda_param=LAMBDA)
    return loss


def own_loss(z1: Tensor, z2: Tensor) -> Tensor:
    """This project's loss with the peer's λ."""
    return barlow_twins_loss(z1, z2, LAMBDA)


def embeddings(samples: int, features: int, device: str) -> tuple[Tensor, Tensor]:
    """Two views that agree in part, as leaves."""
    generator = torch.Generator(device).manual_seed(0)
    common, first, second = (torch.randn(samples, features, generator=generator, device=device) for _ in range(3))
    return (common + first).requires_grad_(), (common + second).requires_grad_()


def seconds(loss: Loss, views: tuple[Tensor, Tensor]) -> tuple[float, Tensor, tuple[Tensor, ...]]:
    """Wall time of the loss and its gradients, and both."""
    if views[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    value = loss(*views)
    gradients = torch.autograd.grad(value, views)
    if views[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, value.detach(), gradients


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the Barlow Twins loss with its gradients.")
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = peer_loss()
    if peer is None:
        print("lightly is not installed, nothing to compare with; the head of this file says how to get it: skipped")
        return

    print(
        f"lightly {metadata.version('lightly')}, torch {torch.__version__}, {options.device}, {options.threads} "
        f"thread(s), {platform.machine()}, float32"
    )
    print(f"{'samples':>8} {'features':>9} {'ours, ms':>10} {'lightly, ms':>12} {'lightly / ours':>15}")
    for samples, features in SHAPES:
        views = embeddings(samples, features, options.device)
        losses: tuple[Loss, Loss] = (own_loss, peer)
        warm = [seconds(each, views) for each in losses]
        torch.testing.assert_close(warm[0][1], warm[1][1], rtol=1e-4, atol=0)
        torch.testing.assert_close(warm[0][2], warm[1][2], rtol=1e-3, atol=float(warm[1][2][0].abs().max()) * 1e-4)
        times: list[list[float]] = [[], []]
        for _ in range(options.repeats):
            for taken, each in zip(times, losses, strict=True):
                taken.append(seconds(each, views)[0])
        ours, theirs = (statistics.median(taken) * 1e3 for taken in times)
        print(f"{samples:8} {features:9} {ours:10.2f} {theirs:12.2f} {theirs / ours:15.2f}")


if __name__ == "__main__":
    main()
