"""Time of a residual evaluation and of a training step's: forward jets beside nested automatic differentiation.

    python benchmarks/hypino_residual.py --problems 16 --points 2048

The generated networks of a batch of equations are evaluated at all points with all five derivatives, with and without
the gradient by the weights: by jets, by nested differentiation of the whole batch, and of one network after the other.
The ways take turns within each repeat; compare the ratios of one run, not the
milliseconds of two.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from working_papers.papers.hypino import Jet, ModulatedMLP, apply_operator


def nested(target: ModulatedMLP, params: list[Tensor], xy: Tensor) -> Jet:
    """The jet as PINN codes usually take it: differentiate, and differentiate the derivatives."""
    xy = xy.detach().requires_grad_()

    def gradient(values: Tensor) -> Tensor:
        return torch.autograd.grad(values.sum(), xy, create_graph=True)[0]

    u = target.apply(params, xy)
    first = gradient(u)
    ux, uy = first[..., 0], first[..., 1]
    return Jet(u, ux, uy, gradient(ux)[..., 0], gradient(uy)[..., 1])


def one_by_one(target: ModulatedMLP, params: list[Tensor], xy: Tensor) -> Jet:
    """The same for one network after the other, as code for a single PINN does in a loop."""
    jets = [nested(target, [p[i : i + 1] for p in params], xy[i : i + 1]) for i in range(len(xy))]
    return Jet(*(torch.cat(parts) for parts in zip(*jets, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of second derivatives of generated networks.")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="evaluations a measurement")
    parser.add_argument("--repeats", type=int, default=11, help="measurements of each way, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    device = options.device
    generator = torch.Generator().manual_seed(0)
    target = ModulatedMLP(options.width, options.hidden)
    params = [p.to(device).requires_grad_() for p in target.initialize(options.problems, generator)]
    frozen = [p.detach() for p in params]
    xy = (2 * torch.rand(options.problems, options.points, 2, generator=generator) - 1).to(device)
    coefficients = torch.randn(options.problems, 5, generator=generator).to(device)

    def jets(weights: list[Tensor]) -> Jet:
        return target.jet(weights, xy)

    def together(weights: list[Tensor]) -> Jet:
        return nested(target, weights, xy)

    def in_a_loop(weights: list[Tensor]) -> Jet:
        return one_by_one(target, weights, xy)

    def residual(way: Callable[[list[Tensor]], Jet]) -> Tensor:
        with torch.set_grad_enabled(way is not jets):
            return apply_operator(coefficients, way(frozen)).detach()

    def gradient(way: Callable[[list[Tensor]], Jet]) -> Tensor:
        loss = apply_operator(coefficients, way(params)).square().mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, params)])

    names = {"jets": jets, "nested, batched": together, "nested, one by one": in_a_loop}
    kinds = {"residual": residual, "with gradient": gradient}
    ways = {(kind, name): (measure, way) for kind, measure in kinds.items() for name, way in names.items()}
    for measure in kinds.values():  # also warms up
        for way in (together, in_a_loop):
            torch.testing.assert_close(measure(jets), measure(way), rtol=1e-3, atol=1e-2)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    for _ in range(options.repeats):
        for key, (measure, way) in ways.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                measure(way)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times[key].append((time.perf_counter() - start) / options.steps)

    medians = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"{options.problems} networks of width {options.width} at {options.points} points, {device}, "
        f"{options.threads} thread(s), torch {torch.__version__}, {platform.machine()}"
    )
    print(f"{'':15}{'way':20} {'ms':>10} {'/ jets':>8}")
    for (kind, name), value in medians.items():
        print(f"{kind:15}{name:20} {value * 1e3:10.2f} {value / medians[kind, 'jets']:8.2f}")


if __name__ == "__main__":
    main()
