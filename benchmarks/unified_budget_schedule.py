"""Time of a training step with UBA beside the same step with PyTorch's cosine and without any schedule.

    python benchmarks/unified_budget_schedule.py --batch 32 --groups 1

The three take turns within each round, in an order that moves on, so that whatever else the machine does falls on all
of them alike; the ratio of each round is taken and the median over rounds is shown. The schedules' own calls are timed
as well, and given as a share of the step: that number does not hang on the noise of the step.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from working_papers.papers.unified_budget_schedule import UBASchedule

Make = Callable[[torch.optim.Optimizer, int], LRScheduler | None]
MAKERS: dict[str, Make] = {
    "CosineAnnealingLR": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "UBASchedule": lambda optimizer, steps: UBASchedule(optimizer, steps, phi=5.0),
    "no schedule": lambda optimizer, steps: None,
}


class Contender:
    """A small convolutional network with its optimiser and schedule."""

    def __init__(self, make: Make, groups: int, batch: int, steps: int, device: str) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        ).to(device)
        self.images = torch.rand(batch, 1, 8, 8, device=device)
        self.labels = torch.randint(10, (batch,), device=device)
        self.device = device
        parameters = list(self.network.parameters())
        parts = [{"params": parameters[first::groups]} for first in range(groups)]
        self.optimizer = torch.optim.SGD(parts, lr=0.01, momentum=0.9)
        self.schedule = make(self.optimizer, steps)

    def seconds(self, steps: int) -> tuple[float, float]:
        """Mean wall time of a training step, and of its call of the schedule alone."""
        self._wait()
        start, inside = time.perf_counter(), 0.0
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss: Tensor = nn.functional.cross_entropy(self.network(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
            if self.schedule is not None:
                before = time.perf_counter()
                self.schedule.step()
                inside += time.perf_counter() - before
        self._wait()
        return (time.perf_counter() - start) / steps, inside / steps

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step with UBA and with other schedules.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--groups", type=int, default=1, choices=range(1, 7), help="parameter groups")
    parser.add_argument("--steps", type=int, default=20, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=150, help="measurements a schedule")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    total = options.steps * (options.rounds + 1)
    contenders = {
        name: Contender(make, options.groups, options.batch, total, options.device) for name, make in MAKERS.items()
    }
    for contender in contenders.values():  # allocates state
        contender.seconds(options.steps)
    whole: dict[str, list[float]] = {name: [] for name in contenders}
    calls: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(options.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            step, call = contenders[name].seconds(options.steps)
            whole[name].append(step)
            calls[name].append(call)

    print(
        f"convolutional network, batches of {options.batch}, {options.groups} parameter group(s), {options.device}, "
        f"{options.threads} thread(s), torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'schedule':20} {'us a step':>10} {'/ cosine':>9} {'us a call':>10} {'share of step':>14}")
    for name in names:
        ratio = statistics.median(
            ours / cosine for ours, cosine in zip(whole[name], whole["CosineAnnealingLR"], strict=True)
        )
        step, call = statistics.median(whole[name]), statistics.median(calls[name])
        print(f"{name:20} {step * 1e6:10.1f} {ratio:9.4f} {call * 1e6:10.2f} {100 * call / step:12.2f} %")


if __name__ == "__main__":
    main()
