"""The study of HyPINO: a hypernetwork against a U-Net and solver networks trained from scratch, on unseen equations.

Letters: N = test problems, G = pixels a side, K = rounds of refinement, E = looks at the fine-tuning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.nn.training import checkpoint_file
from working_papers.papers.hypino.judging import Judge, relative_errors, textbook
from working_papers.papers.hypino.method import (
    Finetuned,
    HyperPINN,
    ModulatedMLP,
    Problems,
    finetune,
    refine,
)
from working_papers.papers.hypino.training import (
    Family,
    Training,
    UNet,
    small_hypernetwork,
    train_hypernetwork,
    train_unet,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 5
JUDGED = 3  # most rounds that the claim allows
RATE = 3e-2  # of fine-tuning; the best of four from either start, on other seeds
LOOK_EVERY = 10

ERROR = "relative error"
BEST = "error after refinement"
QUOTIENT = "refined over zero-shot error"
TEXTBOOK = "error on textbook problems"
QUICK = "problems tuned in half the steps"
TUNED = "error after fine-tuning"
PARAMETERS = "parameters"

study = Study(
    question="Does a network that writes solver networks solve unseen linear equations better in one pass than a "
    "U-Net, does it correct itself by solving for its residual, and are its weights a good start for tuning?",
    arms={
        "hypino": "HyPINO",
        "unet": "U-Net",
        "scratch": "PINN from scratch",
    },
    method="hypino",
    seeds={"smoke": 2, "laptop": 4, "paper": 3},
    measures=(
        Measure(
            ERROR,
            better="lower",
            scale="ratio",
            about="L2 distance from the exact solution over its norm, median of 40 unseen problems. One pass; for the "
            "PINN from scratch after its whole training on the problem.",
        ),
        Measure(
            BEST,
            better="lower",
            scale="ratio",
            about="The same after one, two or three corrections, whichever is best on other problems; arms that write "
            "no weights cannot refine and show their error again.",
        ),
        Measure(
            QUOTIENT,
            better="lower",
            scale="ratio",
            about="Error after refinement over the error before; 1 where an arm cannot refine.",
        ),
        Measure(
            TEXTBOOK,
            better="lower",
            scale="ratio",
            about="Geometric mean of the relative errors on a Poisson, a Helmholtz and a heat problem, one pass.",
        ),
        Measure(
            QUICK,
            better="higher",
            about="Share of 12 problems whose tuning from the arm's weights gets, in at most half the steps, to the "
            "final loss of the run from random weights; 0 for the U-Net, which writes none. The arm from scratch "
            "compares two random starts.",
        ),
        Measure(
            TUNED,
            better="lower",
            scale="ratio",
            about="Median relative error of the 12 problems after tuning; the U-Net's own, for it is not tuned.",
        ),
    ),
    checks=(
        beats("hypino", over="unet", on=ERROR, claim="zero-shot-beats-image-operators"),
        within("hypino", on=QUOTIENT, high=0.8, claim="refinement-lowers-error"),
        within("hypino", on=QUICK, low=0.6, claim="better-start-for-tuning"),
    ),
    budget="""HyPINO and the U-Net have about 1.0 and 1.1 million parameters and train for the same number of steps on
        batches of 16 fresh problems, each used twice, at about the same cost a step. The U-Net is given solutions of
        all of them at every pixel; HyPINO, as in the paper, of every other one, and at 192 points. Learning rates
        were chosen by hand on one other seed: four for HyPINO (0.00025 to 0.002) and three for the U-Net (0.001 to
        0.004), not all with the same warm-up, so that the U-Net may be a little worse than it could be. Fine-tuning:
        300 steps of Adam from either start, at 0.03, the best of 0.003, 0.01, 0.03 and 0.1 for both on somewhat
        harder problems (frequencies up to 3).""",
    notes="""The paper trains 77 million parameters on images of 224 by 224 pixels and 12.8 million problems; here a
        network of a million reads 32 by 32 pixels and sees 3600 problems in half a minute. Its solutions are off by
        about 60 per cent: what refinement gains from so rough an answer says little about what it gains from a good
        one. Problems are easier too: frequencies up to 2 instead of 10, every operator has a second derivative, at
        most one round hole, values but no derivatives on the boundary unless the operator is hyperbolic. All are
        scaled to data of magnitude one, and so are the residual problems of refinement; without that, on other seeds,
        corrections helped less. Weights of losses, Huber loss, clipping aside, AdamW with its rising decay and the
        cosine are the paper's; the warm-up is a tenth instead of a hundredth of the steps, and the encoder has
        convolutions in place of Swin blocks (paper scale has them). Poseidon, PINO and the start by Reptile are not
        compared, nor are the paper's seven benchmarks, which come as pickles. PINNs from scratch are stopped after
        300 steps; longer training would bring them below any answer in one pass. The three textbook problems lie
        outside the generator: their sines have frequency π.""",
    figure_size=(9.4, 6.2),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
        family: of problems.
        training: of the hypernetworks.
        unet: of the U-Net.
        test: number of test problems.
        validation: problems that choose the number of rounds.
        tuned: test problems that are fine-tuned.
        tuning_steps: of Adam.
        points: pixels of a tuning step.
        tiny: whether networks are of the smallest size.
    """

    family: Family
    training: Training
    unet: Training
    test: int
    validation: int
    tuned: int
    tuning_steps: int
    points: int | None
    tiny: bool = False

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; paper scale is the paper's: networks, images, problems and schedule."""
        small = Family(32, 1, ("disk",), 2.0, second_order=True, neumann=False, side=32)
        return scale.choose(
            smoke=cls(
                Family(16, 1, ("disk",), 2.0, second_order=True, neumann=False),
                Training(3, 4, 16, 16, 1e-3, chunk=16),
                Training(3, 4, 16, 16, 1e-3, chunk=16),
                6,
                4,
                2,
                10,
                32,
                tiny=True,
            ),
            laptop=cls(
                small,
                Training(450, 16, 192, 64, 5e-4, uses=2, warmup=0.1),
                Training(450, 16, 1, 1, 2e-3, uses=2, warmup=0.1),
                40,
                40,
                12,
                300,
                256,
            ),
            paper=cls(
                Family(),
                Training(100_000, 128, 2048, 2048, 1e-4, chunk=128),
                Training(100_000, 128, 1, 1, 1e-4, chunk=128),
                200,
                100,
                12,
                2000,
                4096,
            ),
        )


@dataclass(frozen=True)
class Prepared:
    """Problems that no arm trains on.

    Attributes:
        test: N problems with their solutions.
        validation: others, to choose the number of rounds.
    """

    test: Problems
    validation: Problems


@study.prepare
def unseen_problems(seed: int, scale: Scale) -> Prepared:
    """Test and validation problems of the training family, from generators of their own."""
    size = Size.of(scale)
    test, validation = (
        size.family.sample(count, torch.Generator().manual_seed(seed + part), supervised=1.0)
        for part, count in ((11, size.test), (12, size.validation))
    )
    return Prepared(test, validation)


@study.trial
def solve(trial: Trial, prepared: Prepared) -> Measurements:
    """Train one arm, and look at what it does to unseen problems."""
    if trial.arm == "scratch":
        return from_scratch(trial, prepared)
    found = image_operator(trial, prepared) if trial.arm == "unet" else hypernetwork(trial, prepared)
    forget_checkpoint(trial)
    return found


@study.sham
def untrained(trial: Trial, prepared: Prepared) -> Measurements:
    """A hypernetwork that has seen no problem."""
    return hypernetwork(trial, prepared, trained=False)


def fresh_hypernetwork(trial: Trial, size: Size) -> HyperPINN:
    """The hypernetwork with the seed's initial weights."""
    torch.manual_seed(trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    model = HyperPINN(generator=generator) if trial.scale is Scale.PAPER else None
    return (model or small_hypernetwork(size.family.grid, generator, tiny=size.tiny)).to(trial.device)


def hypernetwork(trial: Trial, prepared: Prepared, *, trained: bool = True) -> Measurements:
    """Train a hypernetwork; zero-shot, refined and fine-tuned errors."""
    size = Size.of(trial.scale)
    model = fresh_hypernetwork(trial, size)
    if trained:
        train_hypernetwork(
            model,
            size.family,
            size.training,
            trial.seed,
            device=trial.device,
            checkpoint=checkpoint_at(trial),
            progress=lambda share: trial.progress(round(70 * share), of=100),
        )
    judge, validation = Judge.of(prepared.test, trial.device), Judge.of(prepared.validation, trial.device)
    rounds, chosen = rounds_of(model, judge), rounds_of(model, validation)[: JUDGED + 1].median(dim=1).values
    best = 1 + int(chosen[1:].argmin())
    pde, u = textbook(size.family.grid)
    pde, u = pde.to(trial.device), u.to(trial.device)
    with torch.no_grad():
        book = refine(model, pde, 0, normalize=True)(judge.pixels)
        start = model(judge.pde[: size.tuned])  # their data have magnitude one, as in training
    trial.progress(80, of=100)
    zero_shot = float(rounds[0].median())
    refined = float(rounds[best].median())
    random = tune(trial, judge, model.target, random_weights(trial, model.target, 0), size)
    tuned = tune(trial, judge, model.target, start, size)
    found = refine(model, judge.pde[:1], JUDGED, normalize=True)
    shown = torch.stack([judge.exact[0], found.first(1)(judge.pixels)[0], found(judge.pixels)[0]])
    return {
        ERROR: zero_shot,
        BEST: refined,
        QUOTIENT: refined / zero_shot,
        TEXTBOOK: geometric_mean(relative_errors(book, u.flatten(1), torch.ones_like(book))),
        QUICK: share_in_half(tuned, random),
        TUNED: float(tuned.looks[-1].median()),
        PARAMETERS: sum(p.numel() for p in model.parameters()),
        "rounds": rounds.cpu().numpy(),
        "tuning": tuned.looks.cpu().numpy(),
        "example": shown.unflatten(1, (size.family.grid,) * 2).cpu().numpy(),
        "example domain": prepared.test.pde.domain[0].numpy() if prepared.test.pde.domain is not None else np.ones(1),
    }


def image_operator(trial: Trial, prepared: Prepared) -> Measurements:
    """Train a U-Net on images of solutions."""
    size = Size.of(trial.scale)
    torch.manual_seed(trial.seed)
    model = (UNet((4, 8)) if size.tiny else UNet()).to(trial.device)
    train_unet(
        model,
        size.family,
        size.unet,
        trial.seed,
        device=trial.device,
        checkpoint=checkpoint_at(trial),
        progress=lambda share: trial.progress(round(95 * share), of=100),
    )
    judge = Judge.of(prepared.test, trial.device)
    pde, u = textbook(size.family.grid)
    pde, u = pde.to(trial.device), u.to(trial.device)
    size_of_book = pde.magnitude()
    with torch.no_grad():
        errors = judge.errors(model(judge.pde).flatten(1))
        book = (model(pde.scaled(1 / size_of_book)) * size_of_book[:, None, None]).flatten(1)
    error = float(errors.median())
    return {
        ERROR: error,
        BEST: error,
        QUOTIENT: 1.0,
        TEXTBOOK: geometric_mean(relative_errors(book, u.flatten(1), torch.ones_like(book))),
        QUICK: 0.0,
        TUNED: float(errors[: size.tuned].median()),
        PARAMETERS: sum(p.numel() for p in model.parameters()),
        "rounds": errors[None].cpu().numpy(),
    }


def from_scratch(trial: Trial, prepared: Prepared) -> Measurements:
    """Train a network on each problem from random weights; twice, to see what chance does."""
    size = Size.of(trial.scale)
    judge = Judge.of(prepared.test, trial.device)
    target = fresh_hypernetwork(trial, size).target
    runs = [tune(trial, judge, target, random_weights(trial, target, k), size) for k in (0, 1)]
    trial.progress(70, of=100)
    pde, u = textbook(size.family.grid)
    scale = pde.magnitude()
    flat = Judge(pde.scaled(1 / scale).to(trial.device), (u.flatten(1) / scale[:, None]).to(trial.device))
    book = tune(trial, flat, target, random_weights(trial, target, 0), size)
    error = float(runs[0].looks[-1].median())
    return {
        ERROR: error,
        BEST: error,
        QUOTIENT: 1.0,
        TEXTBOOK: geometric_mean(book.looks[-1]),
        QUICK: share_in_half(runs[1], runs[0]),
        TUNED: error,
        PARAMETERS: sum(math.prod(shape) + shape[1] for shape in target.weight_shapes),
        "tuning": runs[0].looks.cpu().numpy(),
    }


def forget_checkpoint(trial: Trial) -> None:
    """What was trained by other code must not be taken up again."""
    kept = checkpoint_at(trial)
    if kept is not None:
        kept.unlink(missing_ok=True)


def checkpoint_at(trial: Trial) -> Path | None:
    """Where a long training keeps its state; short ones keep none."""
    return checkpoint_file("hypino", f"{trial.arm}-{trial.seed}") if trial.scale is Scale.PAPER else None


@torch.no_grad()
def rounds_of(model: HyperPINN, judge: Judge) -> Tensor:
    """Relative errors (K + 1, N) after every round."""
    found = refine(model, judge.pde, ROUNDS, normalize=True)
    parts = [
        w[:, None] * model.target.apply(p, judge.pixels) for p, w in zip(found.members, found.weights, strict=True)
    ]
    return torch.stack([judge.errors(u) for u in torch.stack(parts).cumsum(0)])


def random_weights(trial: Trial, target: ModulatedMLP, draw: int) -> list[Tensor]:
    """Usual initial weights for every problem that is tuned."""
    generator = torch.Generator().manual_seed(trial.seed + 21 + draw)
    return target.initialize(Size.of(trial.scale).tuned, generator, device=trial.device)


def tune(trial: Trial, judge: Judge, target: ModulatedMLP, start: list[Tensor], size: Size) -> Finetuned:
    """Fine-tune on the first problems; looks are relative errors (E, N), losses those of all steps."""
    count = min(size.tuned, len(judge.exact))
    rows = slice(0, count)

    def look(params: list[Tensor]) -> Tensor:
        return judge.errors(target.apply(params, judge.pixels), rows)

    return finetune(
        target,
        [p[:count] for p in start],
        judge.pde[rows],
        steps=size.tuning_steps,
        lr=RATE,
        points=size.points,
        generator=torch.Generator().manual_seed(trial.seed + 20),
        look=look,
        every=LOOK_EVERY,
    )


def share_in_half(tuned: Finetuned, reference: Finetuned) -> float:
    """Share of problems whose smoothed loss gets to the reference's final one in at most half the steps."""
    width = max(1, len(tuned.losses) // 30)

    def smooth(losses: Tensor) -> Tensor:  # drawn points make single losses noisy
        return losses.unfold(0, width, 1).mean(-1)

    final = smooth(reference.losses)[-1]
    half = smooth(tuned.losses)[: max(1, len(tuned.losses) // 2 - width + 1)]
    return float((half.amin(0) <= final).double().mean())


def geometric_mean(values: Tensor) -> float:
    """Of positive numbers."""
    return float(values.double().log().mean().exp())


@study.figure
def fields_and_curves(trials: Trials, figure: Figure) -> None:
    """An unseen problem exact, solved and refined; errors by round; errors during fine-tuning."""
    import matplotlib as mpl

    example = trials.arrays("hypino", "example")[0]  # (3, G, G)
    domain = trials.arrays("hypino", "example domain")[0]
    upper, lower = np.ravel(figure.subfigures(2, 1, height_ratios=(1, 1.25)))  # type: ignore[arg-type]
    bound = float(np.abs(example[0] * domain).max())
    images = [*example, example[2] - example[0]]
    titles = ("exact solution", "zero-shot", f"after {JUDGED} corrections", "error after corrections")
    colors = mpl.colormaps["coolwarm"]
    for i, (axes, image, title) in enumerate(zip(upper.subplots(1, 4), images, titles, strict=True)):
        field = np.ma.masked_where(domain == 0, image)
        axes.imshow(field, cmap=colors, vmin=-bound, vmax=bound, extent=(-1, 1, -1, 1))
        axes.set(title=title, xticks=(-1, 0, 1), yticks=(-1, 0, 1) if i == 0 else ())
        axes.grid(visible=False)

    axes, tuning = lower.subplots(1, 2)
    for arm in ("unet", "hypino"):
        medians = np.median(trials.arrays(arm, "rounds"), axis=-1)  # (seeds, K + 1)
        count = np.arange(medians.shape[1])
        color, label = trials.color(arm), trials.label(arm)
        if arm == "unet":
            axes.axhline(geometric(medians)[0], color=color, linestyle="--", label=label)
            continue
        axes.semilogy(count, geometric(medians), "o-", color=color, markersize=4, label=label)
        axes.fill_between(count, medians.min(0), medians.max(0), color=color, alpha=0.15, linewidth=0)
    axes.set(title="Refinement", xlabel="corrections", ylabel="relative error, median")
    plain_ticks(axes)
    axes.legend(fontsize="small")

    axes = tuning
    steps = Size.of(trials.scale).tuning_steps
    for arm in ("scratch", "hypino"):
        medians = np.median(trials.arrays(arm, "tuning"), axis=-1)  # (seeds, E)
        count = np.minimum(np.arange(medians.shape[1]) * LOOK_EVERY, steps)
        color = trials.color(arm)
        axes.semilogy(count, geometric(medians), color=color, label=trials.label(arm))
        axes.fill_between(count, medians.min(0), medians.max(0), color=color, alpha=0.15, linewidth=0)
    axes.set(title="Fine-tuning on the problem", xlabel="steps of Adam", ylabel="relative error, median")
    plain_ticks(axes)
    axes.legend(fontsize="small")


def geometric(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric mean over the first axis."""
    mean: NDArray[np.float64] = np.exp(np.log(values).mean(axis=0))
    return mean


def plain_ticks(axes: object) -> None:
    """Decimal numbers on a logarithmic axis."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    assert isinstance(axes, Axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
