"""What the arms of the study share: unlabelled and labelled flows, with and without their addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from working_papers.bench import Scale
from working_papers.data.folders import check_contents, data_folder
from working_papers.data.traffic import BYTE_CLASSES, make_flows
from working_papers.papers.netfound.method import ArrowFlows, FlowTokens
from working_papers.papers.netfound.training import Size

Integers = NDArray[np.int64]
LEFT_OUT = BYTE_CLASSES.index("TLS b")
"""Differs from TLS a in the payload alone, which the released netFound does not read."""

APPLICATIONS = len(BYTE_CLASSES) - 1
CORPUS, LABELLED = "pretraining", "finetuning"


@dataclass(frozen=True)
class Views:
    """The same flows as two tokenisers see them, with what is known of them.

    Attributes:
        plain: without addresses and ports.
        addressed: with them.
        labels: classes.
        conditions: of the network, where they are known.
    """

    plain: FlowTokens
    addressed: FlowTokens
    labels: Integers
    conditions: Integers

    def seen(self, addresses: bool) -> FlowTokens:
        """One of the two."""
        return self.addressed if addresses else self.plain


@dataclass(frozen=True)
class Tasks:
    """Flows for one seed.

    Attributes:
        corpus: files of unlabelled flows, at paper scale.
        unlabelled: otherwise, flows whose labels nobody looks at; the probe learns from their conditions.
        pool: from which labelled flows are drawn.
        test: flows that are judged, of the same kind.
        context: flows on which the probe is judged.
        linked: labelled flows whose servers' addresses and ports tell the class.
        intact, broken: flows that are judged where this is still so, and where it is not; otherwise the same.
        classes: of pool and test.
    """

    corpus: tuple[Path, ...]
    unlabelled: Views
    pool: Views
    test: Views
    context: Views
    linked: Views
    intact: Views
    broken: Views
    classes: int


def make_tasks(seed: int, scale: Scale) -> Tasks:
    """Make the flows of a seed; at paper scale read the labelled ones from files.

    Args:
        seed: of everything that is random.
        scale: of the study.

    Raises:
        ValueError: at paper scale, files are missing.
    """
    size = Size.of(scale)
    folder = data_folder("netfound", needs=(CORPUS, LABELLED)) if scale is Scale.PAPER else None
    corpus = () if folder is None else arrow_files(folder / CORPUS)
    seeds = np.random.SeedSequence(seed).generate_state(6).tolist()
    random = np.random.default_rng(seeds[0])
    networks = random.choice(np.arange(1 << 16, 10 << 16), APPLICATIONS + 1, replace=False)
    ports = random.choice(np.arange(1024, 49152), APPLICATIONS + 1, replace=False)
    linked, broken = ((_link(networks, each), _link(ports, each)) for each in (False, True))
    labelled = 2 * size.some * APPLICATIONS
    unlabelled = generated(max(size.unlabelled, size.probe), seeds[1], size)
    test = generated(size.test, seeds[3], size)
    judged, classes = test, APPLICATIONS
    if folder is not None:
        pool, judged, classes = labelled_files(arrow_files(folder / LABELLED), size.test, seeds[2])
    else:
        pool = generated(labelled, seeds[2], size)
    return Tasks(
        corpus=corpus,
        unlabelled=unlabelled,
        pool=pool,
        test=judged,
        context=test,
        linked=generated(labelled, seeds[4], size, linked),
        intact=generated(size.test, seeds[5], size, linked),
        broken=generated(size.test, seeds[5], size, broken),
        classes=classes,
    )


def generated(count: int, seed: int, size: Size, links: tuple[Integers, Integers] | None = None) -> Views:
    """Artificial flows of seven applications under two network conditions.

    Args:
        count: of flows, of all applications together.
        seed: of everything that is random.
        size: of the study.
        links: networks and ports of servers, application by application; None: random ones.
    """
    total = -(-count * len(BYTE_CLASSES) // APPLICATIONS)
    networks, ports = (None, None) if links is None else links
    made = make_flows(total, seed=seed, server_networks=networks, ports=ports)
    rows = np.flatnonzero(made.labels != LEFT_OUT)[:count]
    flows, labels = [made.flows[row] for row in rows], made.labels[rows]
    return Views(
        size.tokenizer().encode_many(flows),
        size.tokenizer(addresses=True).encode_many(flows),
        labels - (labels > LEFT_OUT),
        made.conditions[rows],
    )


def arrow_files(folder: Path) -> tuple[Path, ...]:
    """The .arrow files of a folder, anywhere in it.

    Raises:
        ValueError: there are none.
    """
    files = tuple(sorted(folder.rglob("*.arrow")))
    if not files:
        check_contents(folder, ("*.arrow",))
    return files


def labelled_files(files: tuple[Path, ...], test: int, seed: int) -> tuple[Views, Views, int]:
    """Labelled flows of files, shuffled, and split: at most so many for the test, and no more than a third.

    They hold no addresses, and no conditions.

    Raises:
        ValueError: flows without labels, or fewer than two classes.
    """
    stored = ArrowFlows(files)
    flows = FlowTokens.join(stored.parts)
    if flows.labels is None:
        raise ValueError(f"{files[0].parent} has flows without labels; expected the column labels in every file")
    names, labels = np.unique(flows.labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{files[0].parent} has {len(names)} classes; expected at least 2")
    order = np.random.default_rng(seed).permutation(len(flows))
    border = min(test, len(flows) // 3)

    def views(rows: Integers) -> Views:
        chosen = flows.take(rows)
        return Views(chosen, chosen, labels[rows].astype(np.int64), np.zeros(len(rows), dtype=np.int64))

    return views(order[border:]), views(order[:border]), len(names)


def _link(values: Integers, broken: bool) -> Integers:
    """Choices class by class, (classes, classes): the class's own value throughout, or, if broken, all values."""
    return np.tile(values, (len(values), 1)) if broken else np.tile(values[:, None], (1, len(values)))
