"""Rooms written for tests: a paper that does not exist, with a study that behaves as a test needs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from working_papers.bench.pools import LocalPool, Pool
from working_papers.bench.rooms import Room
from working_papers.bench.runner import Conductor, Result
from working_papers.bench.store import Store
from working_papers.bench.study import Scale
from working_papers.config import Settings
from working_papers.database import open_database

TEMPLATES = Path(__file__).parents[2] / "src" / "working_papers" / "cli" / "layout"

STUDY = '''
"""A made-up study: the new arm's loss is about 1, the old one's about 2."""

import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import torch

from working_papers.bench import Measure, Study, Tuning, beats, matches, within
from {slug}.method import offset

study = Study(
    question="Is the new arm better?",
    arms={"new": "New arm", "old": "Old arm"},
    method="new",
    seeds={"smoke": 2, "laptop": 3, "paper": 3},
    measures=(
        Measure("loss", better="lower", scale="ratio", unit="nats", about="How wrong."),
        Measure("bias", about="Which way."),
    ),
    checks=(
        beats("new", over="old", on="loss", by=0.1, claim="robust"),
        within("new", on="bias", low=-1.0, high=1.0, claim="centred"),
    ),
    budget="Both arms get the same.",
    notes="There is no such paper.",
    sham="old",
    # declaration
)


@study.prepare
def data(seed, scale):
    # prepare
    return {"values": np.random.default_rng(seed).standard_normal(50)}


@study.trial
def trial(trial, data):
    noise = torch.randn(100, generator=torch.Generator().manual_seed(trial.seed))
    # trial
    loss = offset(trial.arm) + 0.001 * float(noise[0]) + 0.001 * float(data["values"].mean())
    trial.progress(1, of=2)
    return {"loss": loss, "bias": 0.01 * float(noise[1]), "parameters": 7, "curve": noise.numpy()}


@study.figure
def figure(trials, figure):
    axes = figure.subplots()
    # figure
    for arm in trials.arms:
        axes.plot(trials.arrays(arm, "curve").mean(axis=0), color=trials.color(arm), label=trials.label(arm))
    axes.legend()
'''

METHOD = '''
"""A made-up method, http://example.org"""

def offset(arm):
    """What the arm's loss is about."""
    return 1.0 if arm == "new" else 2.0  # a comment
'''


def write_room(folder: Path, slug: str, **places: str) -> Room:
    """Write a room that can be imported once `folder` is on the path.

    Args:
        folder: where the room's package goes.
        slug: its name; tests that share a process need different ones.
        places: lines of code put where the study says `# declaration`, `# prepare`, `# trial` or `# figure`.
    """
    room = folder / slug
    room.mkdir()
    text = STUDY
    for place, code in places.items():
        mark = next(line for line in text.splitlines() if line.strip() == f"# {place}")
        indent = mark[: -len(mark.lstrip())]
        text = text.replace(mark, "\n".join(indent + line for line in code.splitlines()))
    (room / "study.py").write_text(text.replace("{slug}", slug), encoding="utf-8")
    (room / "method.py").write_text(METHOD, encoding="utf-8")
    (room / "__init__.py").write_text("", encoding="utf-8")
    paper = (TEMPLATES / "paper.toml").read_text(encoding="utf-8").replace("{slug}", slug)
    (room / "paper.toml").write_text(paper, encoding="utf-8")
    return Room(slug, room, slug)


def slug_for(test: str, number: int) -> str:
    """A name for a test's room. Seeds follow from it, so it must not depend on which tests ran before."""
    return f"{re.sub('[^a-z0-9]+', '_', test.lower()).strip('_')}_{number}"


def install(folder: Path, *slugs: str) -> None:
    """Make `folder` a distribution that offers the rooms in it, as soon as it is on the path."""
    name = f"rooms_{slugs[0]}"
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    entries = "".join(f"{slug} = {slug}\n" for slug in slugs)
    (info / "entry_points.txt").write_text(f"[working_papers.papers]\n{entries}", encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """Variables for a command that finds the rooms in `folder` and keeps what it finds in `folder/home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKING_PAPERS_")}
    return kept | {
        "PYTHONPATH": str(folder),
        "WORKING_PAPERS_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


def command(*arguments: str) -> list[str]:
    """The command line, run by the interpreter of the tests."""
    return [sys.executable, "-c", "from working_papers.cli import main; main()", *arguments]


@contextmanager
def store_in(folder: Path) -> Iterator[Store]:
    """A store in a database of its own."""
    engine = open_database(Settings(home=folder, database=f"sqlite:///{folder / 'store.db'}"))
    try:
        yield Store(engine)
    finally:
        engine.dispose()


class CountingPool:
    """A pool that remembers which trials it was asked to run."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.asked: list[Any] = []

    def run(self, room: Room, specs: Sequence[Any]) -> Iterator[Any]:
        """Run the trials on the pool behind."""
        self.asked += specs
        return self.pool.run(room, specs)


def run(room: Room, folder: Path, *, pool: Pool | None = None, with_sham: bool = False, **options: Any) -> Result:
    """Run the room's study at smoke scale, with everything kept in `folder`."""
    with store_in(folder) as store:
        conductor = Conductor(
            room=room,
            scale=options.pop("scale", Scale.SMOKE),
            store=store,
            pool=pool or LocalPool(folder / "cache", jobs=2),
            figures=folder / "figures",
            **options,
        )
        return conductor.run(with_sham=with_sham)
