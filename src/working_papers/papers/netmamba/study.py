"""The study of NetMamba: made-up traffic, few labels, servers that move, and the cost of longer flows.

All arms of a seed share flows and labels; networks of one kind share their initial weights. Server addresses are tied
to the class in everything that an arm learns from, as in captures from one place, and to nothing in the test that
counts.

Letters: n = flows, b = bytes of a flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.data.folders import check_contents, data_folder
from working_papers.data.traffic import BYTE_CLASSES, make_flows
from working_papers.nn.training import checkpoint_file
from working_papers.papers.netmamba.method import flows_to_bytes
from working_papers.papers.netmamba.training import (
    Columns,
    ConvolutionalNetwork,
    FlowImages,
    Size,
    accuracy,
    as_arrays,
    exponent,
    few,
    fine_tune,
    forward_times,
    new_classifier,
    new_encoder,
    pretrain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = "accuracy, few labels"
MORE = "accuracy, more labels"
LOST = "accuracy lost where servers moved"
EXPONENT = "exponent of time in length"
LEAST_LOSS = 0.01  # a smaller loss of accuracy is counted as one percentage point
PACKETS = 5
RATES = {"scratch": 1e-2, "transformer": 5e-3, "cnn": 5e-3}  # of learning from labels, where it is not tuned
RATE = 5e-3  # the same of NetMamba; for it and from scratch the better of 5e-3 and 1e-2 on two seeds of our own
PAPER_RATE = 2e-3 * 64 / 256
LAYER_DECAY = {Scale.PAPER: 0.75}  # with it NetMamba was 3 to 15 points worse with 16 labels a class on our own seeds
POOL = 64  # labelled flows a class to draw from
PRETRAINED = ("netmamba", "raw", "headers", "payload", "transformer")
DATASETS = ("CICIoT2022", "CrossPlatform-Android", "CrossPlatform-iOS", "ISCXTor2016", "ISCXVPN2016", "USTC-TFC2016")

study = Study(
    question="Does a causal state-space model that was pre-trained on masked bytes classify flows as well as a "
    "Transformer, gain from pre-training when labels are few, take linear time, and need headers and payload but no "
    "addresses?",
    arms={
        "netmamba": "NetMamba",
        "transformer": "Transformer",
        "scratch": "NetMamba from scratch",
        "raw": "NetMamba, addresses kept",
        "headers": "NetMamba, headers only",
        "payload": "NetMamba, payload only",
        "cnn": "Convolutional network",
        "forest": "Random forest",
    },
    method="netmamba",
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
    measures=(
        Measure(
            FEW,
            better="higher",
            about="Of test flows whose servers are in other networks than in training; 4 labelled flows a class, mean "
            "of three draws.",
        ),
        Measure(MORE, better="higher", about="The same with 16 labelled flows a class."),
        Measure(
            LOST,
            better="lower",
            scale="ratio",
            about="Accuracy with 16 labels a class where servers are in the networks of training, less that where they "
            "have moved; less than 0.01 is counted as 0.01.",
        ),
        Measure(
            EXPONENT,
            about="Slope of log time of a forward pass over log length, fitted from 800 to 3200 tokens of 4 bytes, one "
            "flow, one thread, least of 7 repeats.",
        ),
    ),
    checks=(
        beats("netmamba", over="transformer", on=MORE, by=-0.02, claim="matches-transformers"),
        beats("netmamba", over="scratch", on=FEW, claim="few-labels"),
        beats("netmamba", over="scratch", on=MORE, claim="few-labels"),
        within("netmamba", on=EXPONENT, high=1.2, claim="linear-cost"),
        within("transformer", on=EXPONENT, low=1.5, claim="linear-cost"),
        beats("netmamba", over="raw", on=LOST, by=0.5, claim="unbiased-bytes"),
        beats("netmamba", over="headers", on=MORE, claim="unbiased-bytes"),
        beats("netmamba", over="payload", on=MORE, claim="unbiased-bytes"),
    ),
    tuning=Tuning(
        on=MORE,
        candidates={
            "transformer": ({"learning rate": 5e-3}, {"learning rate": 1e-2}),
            "cnn": ({"learning rate": 1e-3}, {"learning rate": 5e-3}),
            "forest": ({"share of bytes": 0.07}, {"share of bytes": 0.3}),
        },
    ),
    budget="""NetMamba and the Transformer have 19.6 thousand parameters each with their classifiers, the convolutional
        network has 49 thousand. Whoever is pre-trained sees the same 1500 unlabelled flows in 500 steps of 32
        (learning rates 0.008 and, better for the Transformer, 0.002). All networks learn from labels in 100 (4 a
        class) and 300 (16 a class) steps of 16 flows with the same labels, at learning rates chosen on other seeds: by
        hand for NetMamba and from scratch (the better of 0.005 and 0.01), by the study among two for the Transformer
        and the convolutional network. The forest has 200 trees and two shares of bytes to choose from. Arms that see
        other bytes have what NetMamba has.""",
    notes="""The paper trains 2.2 million parameters for 150 000 steps on captures of six public data sets, with at
        least hundreds of labelled flows a class, and reports about 99 %; here 20 thousand parameters learn made-up
        flows in seconds, from 4 and 16 labels a class, and reach much less. Flows are 5 packets of 40 bytes of headers
        and 16 of payload instead of 80 and 240. All that an arm learns from, without labels too, ties the /24 network
        of the server to the class; the test does not, so that nothing in it rewards addresses. Checksums are left in,
        as in the paper. Pre-training is the paper's but for its learning rate and the decoder's one layer; in
        fine-tuning the learning rate does not shrink from layer to layer (it does at paper scale). Pre-training cannot
        teach the class token: it stands last, and nothing that is predicted depends on it. Bytes enter as numbers from
        -1 to 1, so that values which differ by little, such as the versions of TLS that tell two of the classes apart,
        are hard to tell from few labels; a forest has no such trouble. Time is that of plain PyTorch on one CPU
        thread, at width 32 and batch size 1: it says something about growth, nothing about the factor of 60 on a GPU.
        At paper scale, which was not run, accuracies are means over six folders of images, with 16 and with all
        labels; the epoch is the last one, not the best on validation, and moved servers are tested on made-up flows of
        the paper's size.""",
    sham="scratch",
    figure_size=(12.0, 4.2),
)


@dataclass(frozen=True)
class Traffic:
    """Flows as bytes, with addresses and without.

    Attributes:
        raw: uint8 (n, packets, header + payload).
        anonymous: the same with addresses set to zero.
        labels: int64 (n,).
    """

    raw: NDArray[np.uint8]
    anonymous: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def dataset(self, arm: str, header: int) -> TensorDataset:
        """What an arm sees of the flows, bytes (n, b) and classes."""
        seen = self.raw if arm == "raw" else self.anonymous
        seen = seen[:, :, kept_columns(arm, header)]
        return TensorDataset(torch.from_numpy(seen.reshape(len(seen), -1)), torch.from_numpy(self.labels))


@dataclass(frozen=True)
class Prepared:
    """What the arms of a seed share.

    Attributes:
        unlabelled: flows for pre-training.
        labelled: flows to draw labelled ones from.
        home: test flows whose servers are in the networks of their class in training.
        moved: test flows whose servers are in the network of any class.
        folder: of the paper's data sets, at paper scale.
    """

    unlabelled: Traffic
    labelled: Traffic
    home: Traffic
    moved: Traffic
    folder: Path | None


def kept_columns(arm: str, header: int) -> slice:
    """Which bytes of a packet an arm sees."""
    return {"headers": slice(0, header), "payload": slice(header, None)}.get(arm, slice(None))


@study.prepare
def traffic(seed: int, scale: Scale) -> Prepared:
    """Four sets of flows; the networks of the servers are drawn for the seed."""
    size = Size.of(scale)
    random = np.random.default_rng(seed)
    classes = len(BYTE_CLASSES)
    networks = random.choice(np.arange(16, 100), classes, replace=False) * 65536 + random.integers(0, 65536, classes)

    def drawn(count: int, part: int, servers: NDArray[np.int64]) -> Traffic:
        made = make_flows(count, seed=seed + part, server_networks=servers, max_packets=PACKETS)
        both = [
            flows_to_bytes(made.flows, PACKETS, size.header, size.payload, anonymize=anonymize).reshape(
                count, PACKETS, -1
            )
            for anonymize in (False, True)
        ]
        return Traffic(both[0], both[1], made.labels)

    folder = None
    if scale is Scale.PAPER:
        folder = data_folder("netmamba", needs=DATASETS)
        for name in DATASETS:
            check_contents(folder / name, ("train", "valid", "test"))
    return Prepared(
        drawn(size.unlabelled, 1, networks),
        drawn(POOL * classes, 2, networks),
        drawn(size.test, 3, networks),
        drawn(size.test, 4, np.tile(networks, (classes, 1))),
        folder,
    )


@dataclass(frozen=True)
class Task:
    """Something to classify.

    Attributes:
        name: of the data.
        train: (bytes, class) to learn from.
        labels: classes of `train`, (n,).
        tests: to be judged on: the one that counts first.
    """

    name: str
    train: Dataset[Any]
    labels: Tensor
    tests: tuple[Dataset[Any], ...]


def tasks(trial: Trial, prepared: Prepared, size: Size) -> tuple[Dataset[Any], list[Task]]:
    """Flows for pre-training, and what is classified: made-up traffic last, the paper's data sets before, if any."""
    made = [
        each.dataset(trial.arm, size.header)
        for each in (prepared.unlabelled, prepared.labelled, prepared.moved, prepared.home)
    ]
    unlabelled: Dataset[Any] = made[0]
    found = [Task("made up", made[1], made[1].tensors[1], (made[2], made[3]))]
    if prepared.folder is not None:
        read = partial(read_images, trial.arm, size)
        real = []
        for name in DATASETS:
            train = FlowImages(prepared.folder / name / "train")
            test = FlowImages(prepared.folder / name / "test", train.classes)
            real.append(Task(name, read(train), train.labels, (read(test),)))
        unlabelled = ConcatDataset([each.train for each in real])
        found = [*real, *found]
    return unlabelled, found


def read_images(arm: str, size: Size, flows: FlowImages) -> Dataset[Any]:
    """What an arm sees of images of flows; they hold no addresses."""
    columns = np.arange(PACKETS * (size.header + size.payload)).reshape(PACKETS, -1)
    return Columns(flows, columns[:, kept_columns(arm, size.header)].reshape(-1))


@study.trial
def learn_and_classify(trial: Trial, prepared: Prepared) -> Measurements:
    """Pre-train in the way of the arm, then classify with few and with more labels."""
    size = Size.of(trial.scale)
    unlabelled, jobs = tasks(trial, prepared, size)
    n_bytes = int(unlabelled[0][0].numel())
    kept: list[Path] = []
    learner = forest if trial.arm == "forest" else network(trial, size, unlabelled, n_bytes, kept)
    found: list[list[float]] = []
    for budget, (per_class, draws) in enumerate(zip(size.labels, size.draws, strict=True)):
        scores = []
        for job in jobs:
            for draw in range(draws):
                chosen = few(job.labels, per_class, trial.seed + 10 * budget + draw)
                some = Subset(job.train, chosen.tolist())
                name = f"{trial_name(trial)}-{job.name}-{budget}-{draw}"
                scores.append(learner(trial, size, job, some, budget, name))
                trial.progress(len(found) * 10 + len(scores) + 70, of=100)
        found.append([float(np.mean([score[0] for score in scores])), *scores[-1]])
    (few_labels, *_), (more_labels, moved, home) = found
    times = timed(trial, size)
    for file in kept:  # what was trained by other code must not be taken up again
        file.unlink(missing_ok=True)
    return {
        FEW: few_labels,
        MORE: more_labels,
        LOST: max(LEAST_LOSS, home - moved),
        EXPONENT: exponent(size.lengths, times),
        "parameters": 0 if trial.arm == "forest" else sum(p.numel() for p in fresh(trial, size, n_bytes).parameters()),
        "home and moved": np.array([home, moved]),
        "times": np.array([size.lengths, times]),
    }


def trial_name(trial: Trial) -> str:
    """What tells this trial's trainings apart from others of the room."""
    return "-".join([trial.arm, str(trial.seed), *(f"{name} {value}" for name, value in trial.setting.items())])


Learner = Callable[[Trial, Size, Task, Dataset[Any], int, str], list[float]]
"""Learns from some flows of a task and returns the accuracies on its tests."""


def fresh(trial: Trial, size: Size, n_bytes: int, classes: int = len(BYTE_CLASSES)) -> nn.Module:
    """The arm's network with the seed's initial weights."""
    if trial.arm == "cnn":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial.seed)
            return ConvolutionalNetwork(n_bytes, classes)
    kind = "transformer" if trial.arm == "transformer" else "mamba"
    return new_classifier(new_encoder(size, n_bytes, trial.seed, kind), classes, trial.seed)


def network(trial: Trial, size: Size, unlabelled: Dataset[Any], n_bytes: int, kept: list[Path]) -> Learner:
    """Pre-train where the arm does, and return what fine-tunes from there; long trainings are noted in `kept`."""
    large = trial.scale is Scale.PAPER

    def checkpoint(name: str) -> Path | None:
        if not large:
            return None
        kept.append(checkpoint_file("netmamba", name))
        return kept[-1]

    encoder: nn.Module | None = None
    if trial.arm in PRETRAINED:
        kind = "transformer" if trial.arm == "transformer" else "mamba"
        encoder = new_encoder(size, n_bytes, trial.seed, kind)
        pretrain(
            encoder,
            unlabelled,
            size,
            trial.seed,
            kind=kind,
            device=trial.device,
            checkpoint=checkpoint(trial_name(trial)),
            progress=lambda share: trial.progress(round(700 * share), of=1000),
        )
    learned = None if encoder is None else {name: value.clone() for name, value in encoder.state_dict().items()}

    def learn(trial: Trial, size: Size, job: Task, some: Dataset[Any], budget: int, name: str) -> list[float]:
        count = len(some)  # type: ignore[arg-type]
        batch = min(size.tuning_batch, count)
        steps = size.tuning_steps[budget] * (count // batch if large else 1)
        model = fresh(trial, size, n_bytes, int(job.labels.max()) + 1)
        if learned is not None:
            assert isinstance(model.encoder, nn.Module)
            model.encoder.load_state_dict(learned)
        fine_tune(
            model,
            some,
            batch,
            steps,
            max(1, round(size.tuning_warm_up * steps)),
            PAPER_RATE if large else float(trial.setting.get("learning rate", RATES.get(trial.arm, RATE))),
            trial.seed,
            layer_decay=LAYER_DECAY.get(trial.scale) if trial.arm in PRETRAINED else None,
            device=trial.device,
            checkpoint=checkpoint(name),
        )
        return [accuracy(model, test, trial.device) for test in job.tests]

    return learn


def forest(trial: Trial, size: Size, job: Task, some: Dataset[Any], budget: int, name: str) -> list[float]:
    """Learn with a random forest over bytes."""
    del budget, name
    flows, labels = as_arrays(some)
    trees = new_forest(trial, size).fit(flows, labels)
    return [float(trees.score(*as_arrays(test))) for test in job.tests]


def new_forest(trial: Trial, size: Size) -> Any:
    """A random forest, as scikit-learn has it but for the share of bytes that a split chooses from."""
    from sklearn.ensemble import RandomForestClassifier

    share = float(trial.setting.get("share of bytes", 0.07))
    return RandomForestClassifier(size.trees, max_features=share, random_state=trial.seed % 2**32)


def timed(trial: Trial, size: Size) -> list[float]:
    """Seconds of a forward pass by length."""
    if trial.arm != "forest":
        return forward_times(lambda n_bytes: fresh(trial, size, n_bytes), size.lengths, size.repeats)

    def grown(n_bytes: int) -> Callable[[Tensor], Any]:
        random = np.random.default_rng(trial.seed)
        flows = random.integers(0, 256, (32, n_bytes), dtype=np.uint8)
        trees = new_forest(trial, size).fit(flows, np.arange(32) % len(BYTE_CLASSES))
        return lambda each: trees.predict(each.numpy())

    return forward_times(grown, size.lengths, size.repeats)


@study.figure
def accuracies_servers_and_time(trials: Trials, figure: Figure) -> None:
    """Accuracies of all arms, what moved servers do with addresses and without, and time by length."""
    dots, moves, times = figure.subplots(1, 3, width_ratios=(1.5, 0.9, 1.1))
    draw_accuracies(trials, dots)
    for arm in ("netmamba", "raw"):
        pairs = 100 * trials.arrays(arm, "home and moved")
        for pair in pairs:
            moves.plot([0, 1], pair, color=trials.color(arm), alpha=0.3, linewidth=1)
        moves.plot([0, 1], pairs.mean(0), "o-", color=trials.color(arm), label=trials.label(arm))
    moves.set_xticks([0, 1], ["as in\ntraining", "moved"])
    moves.set(title="Networks of the servers", ylabel="test accuracy (%)", xlim=(-0.25, 1.25))
    moves.legend(loc="lower left", fontsize=7.5)
    for arm in ("netmamba", "transformer", "cnn"):
        lengths, seconds = trials.arrays(arm, "times").transpose(1, 0, 2)
        slope = trials.values(arm, EXPONENT).mean()
        label = f"{trials.label(arm)}: {slope:.2f}"
        times.loglog(lengths[0], 1e3 * np.median(seconds, 0), "o-", color=trials.color(arm), label=label)
    times.set(title="Time of a forward pass", xlabel="length (tokens of 4 bytes)", ylabel="milliseconds")
    times.legend(loc="upper left", fontsize=7.5, title="exponent, upper half", title_fontsize=7.5)


def draw_accuracies(trials: Trials, axes: Axes) -> None:
    """A row an arm: accuracies with few and with more labels, with the range over seeds."""
    places = np.arange(len(trials.arms))[::-1]
    for measure, marker, offset in ((FEW, "o", 0.15), (MORE, "D", -0.15)):
        for place, arm in zip(places, trials.arms, strict=True):
            found = 100 * trials.values(arm, measure)
            spread = [[found.mean() - found.min()], [found.max() - found.mean()]]
            filled = "none" if measure == FEW else trials.color(arm)
            axes.errorbar(
                found.mean(), place + offset, xerr=spread, fmt=marker, color=trials.color(arm), mfc=filled, markersize=5
            )
        face = "none" if measure == FEW else "#64748b"
        axes.plot([], [], marker, color="#64748b", mfc=face, markersize=5, label=measure.split(", ")[1])
    axes.set_yticks(places, [trials.label(arm) for arm in trials.arms])
    axes.set(title="Servers in other networks", xlabel="test accuracy (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2, fontsize=7.5)
