"""Do networks that differ by their seed alone learn the same units, or only the same subspaces?

Small networks are trained in pairs on handwritten digits; the layers of a pair are matched unit to unit, predicted
sparsely from one another, and clustered together. One seed gives independent pairs; intervals are over seeds.

Letters: K = networks of a seed, n = units of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, beats, within
from working_papers.papers.convergent_learning.method import (
    UnitStats,
    bipartite_match,
    change_basis,
    collect_units,
    layer_statistics,
    mutual_information,
    prediction_curve,
    semi_match,
    sparse_map,
    spectral_groups,
)
from working_papers.papers.convergent_learning.networks import ARCHITECTURES, Networks, load_images, train_together

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLOSE, APART = 0.8, 0.4  # matched correlations that count as a near copy and as no counterpart
SHOWN = 1  # number of the layer whose groups the figure shows: the second convolution
SHARE_OF_FULL = 0.9  # of what all units explain; the units that reach it are counted
PREDICTABLE = 0.1  # variance explained by all units from which on a unit's count means something
BRIDGE = 0.1  # L1 penalty of the map whose largest weight is compared with the partner
UNITS_A_GROUP = 5  # of both networks together; about what 40 groups of the paper's 96 + 96 first units hold
CURVE = 12  # numbers of units shown in the figure
FAINT, INK = "#9ca3af", "#1f2937"  # lines in the figure, which follow the page's scheme
RANKS = np.linspace(0, 1, 33)  # shares of a layer's units at which sorted correlations are shown

MATCHED = "matched correlation"
COPIES = "near copies"
MISSING = "units without counterpart"
SINGLE = "explained by the best partner"
THREE = "explained by three units"
SIX = "explained by six units"
FULL = "explained by all units"
GAP = "all units over the best partner"
NEEDED = "units for 90 % of the full prediction"
NEEDED_SHARE = "their share of the layer"
PARTNER = "partner carries the largest weight"
AGREE = "same partner by mutual information"
SUBSPACE = "canonical correlation in shared groups"
DEAD = "dead units"
ACCURACY = "test accuracy"

study = Study(
    question="Between networks that differ by their seed alone, do some units recur and others not, are subspaces "
    "shared where single units are not, and do a few units of one network predict a unit of the other?",
    arms={
        "trained": "Trained networks",
        "untrained": "The same networks before training",
        "rotated": "Trained, one basis rotated",
        "other images": "Trained, different images",
    },
    method="trained",
    seeds={"smoke": 1, "laptop": 12, "paper": 3},
    measures=(
        Measure(MATCHED, better="higher", about="Mean correlation of one-to-one matched units."),
        Measure(COPIES, better="higher", about="Share of units matched at a correlation above 0.8."),
        Measure(MISSING, about="Share of units matched at a correlation below 0.4."),
        Measure(SINGLE, better="higher", about="Variance of a unit explained by one unit, on images not fitted to."),
        Measure(THREE, better="higher", about="The same by at most three units, proposed by the lasso."),
        Measure(SIX, better="higher", about="The same by at most six units."),
        Measure(FULL, better="higher", about="The same by least squares on all units."),
        Measure(GAP, better="higher", about="Variance explained by all units less that explained by one."),
        Measure(NEEDED, unit="units", better="lower", about="Median over units; layers have 16 to 64."),
        Measure(NEEDED_SHARE, better="lower", about="The same count over the number of units in the layer."),
        Measure(PARTNER, better="higher", about="Share of units whose match has the largest weight in a sparse map."),
        Measure(AGREE, better="higher", about="Share of units with the same best partner by both similarities."),
        Measure(SUBSPACE, better="higher", about="Mean squared canonical correlation in groups of about five units."),
        Measure(DEAD, better="lower", about="Share of units that never vary; they are left out everywhere else."),
        Measure(ACCURACY, better="higher", about="Of the networks on images by writers not trained on."),
    ),
    checks=(
        within("trained", on=COPIES, low=0.1, claim="some-units-recur"),
        within("trained", on=MISSING, low=0.1, claim="some-units-recur"),
        within("trained", on=GAP, low=0.1, claim="shared-subspaces"),
        within("trained", on=NEEDED, low=2.0, claim="code-between-local-and-distributed"),
        within("trained", on=NEEDED_SHARE, high=1 / 3, claim="code-between-local-and-distributed"),
        beats("trained", over="rotated", on=MATCHED, by=0.1, claim="code-between-local-and-distributed"),
    ),
    budget="""Every seed trains four networks of each of two architectures with Adam on the same 1200 digits, each
        from its own start and in its own order of the images, long enough for over 96 % of these (learning rates and
        epochs were chosen for that on seeds that are not reported). All arms look at the same two pairs of each
        architecture, at the same layers and images. Maps are fitted on training images and judged on the 597 test
        images, by other writers; units are matched on the test images.""",
    notes="""The paper compares AlexNets on ImageNet; here are networks of two hidden layers (convolutions of 16 and 32
        units, fully connected layers of 64 and 32) on digits of 8 by 8 pixels. Every measure is a mean over the four
        layers, which the figure shows one by one. What counts as a near copy (0.8), as no counterpart (0.4) and as a
        sizeable share (10 %) is our choice, made before any network was trained. Dead units are left out: trained at
        a higher rate, the second convolution has many, and counting them as units without counterpart would decide
        that check. Three arms go beyond the paper and say what is due to what. Different images: position alone,
        centre or corner, makes convolutional units look alike. On seeds that are not reported, cutting off the border
        lowers matched correlations by 0.01 in the first convolution and 0.04 in the second, and the second's lead over
        the rotated basis from 0.18 to 0.11. Rotated: the units of one network are replaced by an orthogonal mixture of
        themselves; distances between images and the prediction from all units stay the same, and what is left of a
        match any axes of the same space would have. Untrained: all units beat the best partner before training, too,
        for all are functions of the same few pixels; that gap alone is no sign of learning. Least squares on the units
        that the lasso proposes is ours; the paper shows the penalised maps. The paper's settings for clusters could
        not be read. Paper scale trains five convolutions of the paper's widths on CIFAR-10, not ImageNet.""",
    sham="rotated",
    figure_size=(10.0, 7.0),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and looked at.

    Attributes:
        networks: of a seed, K; they are compared in pairs, each in one pair.
        epochs: passes over the training images, by architecture.
        images: training images used; 0 for all.
        information: test images for mutual information, which needs activations in memory.
    """

    networks: int
    epochs: Mapping[str, int]
    images: int = 0
    information: int = 1000

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale."""
        return scale.choose(
            smoke=cls(2, {"convolutional": 1}, images=256, information=100),
            laptop=cls(4, {"convolutional": 100, "perceptron": 20}),
            paper=cls(4, {"five convolutions": 60}),
        )


@study.prepare
def train_networks(seed: int, scale: Scale) -> dict[str, Networks]:
    """The networks of a seed, by architecture; each has its own initial weights and its own order of the images."""
    size = Size.of(scale)
    device = "cuda" if scale is Scale.PAPER and torch.cuda.is_available() else "cpu"
    train, test = load_images(scale)
    if size.images:
        train = replace(train, images=train.images[: size.images], labels=train.labels[: size.images])
    return {
        name: train_together(ARCHITECTURES[name], size.networks, epochs, seed, train, test, device)
        for name, epochs in size.epochs.items()
    }


@dataclass(frozen=True)
class Layer:
    """A layer of a pair of networks: correlations on training images and on test images, and shared information.

    Attributes:
        fit: on the training images; maps are fitted to these.
        test: on the test images; units are matched on these and maps are judged by them.
        information: mutual information between the units, on test images.
        dead: share of the networks' units that never vary on the training or on the test images; they are left out.
        units: of a network, dead ones included.
    """

    fit: UnitStats
    test: UnitStats
    information: Tensor
    dead: float
    units: int


def batches(images: Tensor, order: Tensor | None = None) -> Iterator[Tensor]:
    """The images, or the images in another order, a few at a time."""
    indices = torch.arange(len(images)) if order is None else order
    return (images[each] for each in indices.split(256))


def compare(trial: Trial, name: str, layer: str, pair: Sequence[nn.Module], generator: torch.Generator) -> Layer:
    """The statistics of one layer of a pair of networks in an arm's way."""
    data = load_images(trial.scale)
    first, second = pair
    gathered = []
    for images in (each.images for each in data):
        order = torch.randperm(len(images), generator=generator) if trial.arm == "other images" else None
        other = None if order is None else batches(images, order)
        gathered.append(layer_statistics(first, layer, second, layer, batches(images), loader_y=other))
    some = data[1].images[: Size.of(trial.scale).information]
    x = collect_units(first, layer, batches(some))
    y = collect_units(second, layer, batches(some, order[order < len(some)] if order is not None else None))
    fit, test = gathered
    keep_x, keep_y = ~(fit.dead_x | test.dead_x), ~(fit.dead_y | test.dead_y)
    dead = 1 - float(torch.cat([keep_x, keep_y]).double().mean())
    fit, test = fit.select(keep_x, keep_y), test.select(keep_x, keep_y)
    x, y = x[:, keep_x.cpu()], y[:, keep_y.cpu()]
    if trial.arm == "rotated":
        n = len(fit.cxx)
        rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0].to(fit.cxx)
        matrix = rotation / fit.std_x[:, None]
        fit, test, x = change_basis(fit, matrix), change_basis(test, matrix), x.double() @ matrix.cpu()
    return Layer(fit, test, mutual_information(x, y), dead, len(keep_x))


def measure(layer: Layer) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every measure of one layer, and what the figure shows of it."""
    n, m = layer.test.cxy.shape
    semi, match = semi_match(layer.test.cxy), bipartite_match(layer.test.cxy)
    matched = match.value[match.matched]
    copies, missing = (float(each.double().mean()) for each in (matched > CLOSE, matched < APART))
    curve = prediction_curve(layer.fit, held_out=layer.test, most=max(n, CURVE))
    explained = curve.r2.mean(dim=1)
    needed = curve.units_needed(SHARE_OF_FULL)[curve.full >= PREDICTABLE]
    count = float(needed.quantile(0.5)) if len(needed) else float(n)
    bridge = sparse_map(layer.fit, [BRIDGE]).weight[0].abs().max(dim=1)  # over the first network's units
    partner = bipartite_match(layer.test.cxy.mT).index
    groups = spectral_groups(layer.test, max(1, round((n + m) / UNITS_A_GROUP)))
    numbers = {
        MATCHED: float(matched.mean()),
        COPIES: copies,
        MISSING: missing,
        SINGLE: float(explained[1]),
        THREE: float(explained[3]),
        SIX: float(explained[6]),
        FULL: float(curve.full.mean()),
        GAP: float(curve.full.mean() - explained[1]),
        NEEDED: count,
        NEEDED_SHARE: count / n,
        PARTNER: float(((bridge.indices == partner) & (bridge.values > 0)).double().mean()),
        AGREE: float((layer.information.argmax(dim=1) == semi.index.cpu()).double().mean()),
        SUBSPACE: float(groups.cca2[groups.shared].mean()) if bool(groups.shared.any()) else 0.0,
        DEAD: layer.dead,
    }
    within_network = semi_match(layer.test.cxx, exclude_self=True)
    curves = [np.quantile(each.cpu().numpy(), 1 - RANKS) for each in (matched, semi.value, within_network.value)]
    # Group by group; what dead units leave empty at the end is NaN, so that all seeds have arrays of one shape.
    order_x, order_y = groups.order()
    correlations = np.full((layer.units, layer.units), np.nan)
    correlations[:n, :m] = layer.test.cxy[order_x][:, order_y].abs().cpu()
    labels = np.full((2, layer.units), -1)
    labels[0, :n], labels[1, :m] = groups.label_x[order_x].cpu(), groups.label_y[order_y].cpu()
    return numbers, {
        "sorted": np.stack(curves),
        "explained": explained[: CURVE + 1].cpu().numpy(),
        "block": correlations,
        "groups": labels,
    }


@study.trial
def look_at_pairs(trial: Trial, networks: dict[str, Networks]) -> Measurements:
    """Compare the networks pair by pair and layer by layer; every measure is a mean over all of these."""
    size = Size.of(trial.scale)
    generator = torch.Generator().manual_seed(trial.seed)
    pairs = [(first, first + 1) for first in range(0, size.networks - 1, 2)]
    layers = [(name, layer) for name in networks for layer in ARCHITECTURES[name].layers]
    numbers: list[list[dict[str, float]]] = []
    shown: list[list[dict[str, np.ndarray]]] = []
    for done, (name, layer) in enumerate(layers):
        found = []
        for pair in pairs:
            modules = [networks[name].module(name, number, trained=trial.arm != "untrained") for number in pair]
            found.append(measure(compare(trial, name, layer, [each.to(trial.device) for each in modules], generator)))
        numbers.append([each for each, _ in found])
        shown.append([each for _, each in found])
        trial.progress(done + 1, of=len(layers))
    # A mean over pairs, then over layers.
    result: dict[str, float | np.ndarray] = {
        key: float(np.mean([[each[key] for each in layer] for layer in numbers])) for key in numbers[0][0]
    }
    result[ACCURACY] = float(torch.cat([each.accuracy for each in networks.values()]).mean())
    result["matched by layer"] = np.array([np.mean([each[MATCHED] for each in layer]) for layer in numbers])
    for kind in ("sorted", "explained"):
        result[kind] = np.stack([[each[kind] for each in layer] for layer in shown]).mean(axis=(0, 1))
    result |= {kind: shown[SHOWN][0][kind] for kind in ("block", "groups")}
    return result


@study.figure
def figure(trials: Trials, figure: Figure) -> None:
    """Sorted correlations, matches by layer, prediction from few units, and groups of units of two networks."""
    ((ranks, layers), (few, block)) = figure.subplots(2, 2)
    draw_ranks(trials, ranks)
    draw_layers(trials, layers)
    draw_few(trials, few)
    draw_block(trials, block)
    figure.legend(*ranks.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_ranks(trials: Trials, axes: Axes) -> None:
    """Matched correlations in falling order."""
    share = 100 * RANKS
    for arm in trials.arms:
        curves = trials.arrays(arm, "sorted")[:, 0]
        axes.plot(share, curves.mean(axis=0), color=trials.color(arm), label=trials.label(arm))
        axes.fill_between(
            share, curves.min(axis=0), curves.max(axis=0), color=trials.color(arm), alpha=0.15, linewidth=0
        )
    free = trials.arrays(study.method, "sorted")[:, 1].mean(axis=0)
    axes.plot(
        share,
        free,
        "--",
        color=trials.color(study.method),
        linewidth=1.2,
        label="Trained, best partner (may be shared)",
    )
    for limit in (CLOSE, APART):
        axes.axhline(limit, color=FAINT, linewidth=0.9, linestyle=":")
    axes.set(
        title="Matched units, from best to worst",
        xlabel="units, best match first (%)",
        ylabel="correlation with the match",
    )
    axes.set_ylim(-0.05, 1.03)


def draw_layers(trials: Trials, axes: Axes) -> None:
    """Mean matched correlation layer by layer, a point a seed."""
    names = [
        f"{ARCHITECTURES[name].title} {number + 1}"
        for name in Size.of(trials.scale).epochs
        for number in range(len(ARCHITECTURES[name].layers))
    ]
    for place, arm in enumerate(trials.arms):
        found = trials.arrays(arm, "matched by layer")  # [seeds, layers]
        at = np.arange(len(names)) + 0.18 * (place - (len(trials.arms) - 1) / 2)
        spread = np.linspace(-0.05, 0.05, len(found))[:, None]
        color = trials.color(arm)
        axes.plot((at + spread).ravel(), found.ravel(), "o", color=color, markersize=3, alpha=0.5, markeredgewidth=0)
        axes.hlines(found.mean(axis=0), at - 0.08, at + 0.08, color=color)
    axes.set_xticks(range(len(names)), names)
    axes.set(title="The same, layer by layer", ylabel="mean matched correlation")
    axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")


def draw_few(trials: Trials, axes: Axes) -> None:
    """Explained variance against the number of units; all units at the right edge."""
    units = np.arange(CURVE + 1)
    edge = CURVE + 2
    for arm in ("untrained", "rotated", "trained"):
        color, curves = trials.color(arm), trials.arrays(arm, "explained")
        axes.plot(units, curves.mean(axis=0), "o-", color=color, markersize=3)
        axes.fill_between(units, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.plot(edge, trials.values(arm, FULL).mean(), "D", color=color, markersize=5, fillstyle="none")
    axes.set_xticks([0, 1, 2, 3, 4, 6, 8, 10, 12, edge], ["0", "1", "2", "3", "4", "6", "8", "10", "12", "all"])
    axes.set(title="A unit predicted from units of the other network", xlabel="units used")
    axes.set_ylabel("variance explained")
    axes.set_ylim(0, 1.03)


def draw_block(trials: Trials, axes: Axes) -> None:
    """Correlations between the units of two networks, group by group; a frame around each shared group."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    correlations = trials.arrays(study.method, "block")[0]
    of_x, of_y = trials.arrays(study.method, "groups")[0]
    n, m = (of_x >= 0).sum(), (of_y >= 0).sum()
    ink = np.empty((n, m, 4))
    ink[..., :3] = to_rgb(trials.color(study.method))
    ink[..., 3] = correlations[:n, :m]  # opaque is 1, clear is 0, on any page
    axes.imshow(ink, interpolation="nearest", aspect="equal")
    for group in np.intersect1d(of_x[:n], of_y[:m]):
        (rows,), (columns,) = np.nonzero(of_x == group), np.nonzero(of_y == group)
        corner = (columns[0] - 0.5, rows[0] - 0.5)
        axes.add_patch(Rectangle(corner, len(columns), len(rows), fill=False, edgecolor=INK, linewidth=1.2))
    axes.set(
        title="Groups of units in two networks",
        xlabel="units of one (bluer: more correlated)",
        ylabel="units of the other",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
