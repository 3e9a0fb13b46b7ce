"""A site with made-up verdicts: one that holds, one that does not, one that is open and stale."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from working_papers.bench.code_hash import code_hash
from working_papers.bench.record import ArmRecord, CheckRecord, MeasureRecord, Record, ShamRecord, installed_versions
from working_papers.bench.rooms import Room, rooms
from working_papers.config import Settings
from working_papers.daily.catalogue import sync_rooms
from working_papers.daily.importing import import_papers
from working_papers.daily.records import BadRecord, PaperRecord
from working_papers.daily.search import SearchIndex
from working_papers.web.app import create_app

HOLDS, FAILS, OPEN, WAITING = "normuon", "frame_averaging", "benign_overfitting", "barlow_twins"

FIGURE = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 576 259.2"><style>
svg{color:#1f2937}@media (prefers-color-scheme:dark){svg{color:#e5e7eb}}</style><path d="M10 240L560 20" fill="none"
stroke="currentColor"/></svg>"""

NASTY = PaperRecord(
    title='Shapes & <script>alert("title")</script> of $\\mathcal{O}(n^2)$ attention',
    arxiv="2401.01234",
    abstract="First <img src=x onerror=alert(1)> of $a<b$, $\\text{<script>alert(2)</script>}$ and $\\frac{1}{$."
    "\n\nSecond.",
    authors=('Eve "<b>Bold</b>" Example', "Grace Hopper"),
    published=dt.date(2024, 1, 3),
    categories=("cs.LG", "stat.ML"),
    doi="10.1000/<x>",
)
OLD_STYLE = PaperRecord(
    title="An old paper", arxiv="cs/0112017", abstract="About trees.", published=dt.date(2001, 12, 11)
)


def check(
    rule: str, claim: str, answer: str, sentence: str, effect: float, low: float | None, high: float | None
) -> CheckRecord:
    """A check between two arms, as a fraction."""
    return CheckRecord(
        rule=rule,
        claim=claim,
        arms=["ours", "theirs"],
        on="test error",
        answer=answer,
        sentence=sentence,
        effect=effect,
        interval=(low, high),
        level=0.975,
        relative=True,
        effect_size=1.5,
        p_value=0.00001,
    )


def record(slug: str, answer: str, checks: list[CheckRecord], code: str) -> Record:
    """A finished laptop run with two arms and three seeds."""
    arms = {
        name: ArmRecord(
            label=label,
            setting={"learning rate": 0.02},
            candidates=5,
            measures={"test error": [mean - 0.01, mean, mean + 0.01]},
            costs={"wall seconds": [seconds] * 3, "peak memory MB": [812.0] * 3},
        )
        for name, label, mean, seconds in (("ours", "Our <method>", 0.2, 2.6), ("theirs", "Baseline", 0.3, 2.0))
    }
    return Record(
        slug=slug,
        scale="laptop",
        question="Is the error lower?",
        answer=answer,
        summary="What came of it, in a sentence.",
        checks=checks,
        method="ours",
        arms=arms,
        measures=[MeasureRecord(name="test error", better="lower", unit="", scale="ratio", about="share of mistakes")],
        seeds=3,
        budget="Both arms take 100 steps.",
        notes="The paper uses larger data.",
        sham=ShamRecord(answer="inconclusive", sentences=["It is open."]),
        code_hash=code,
        versions=installed_versions(),
        machine={"processor": "a processor", "processors": "2", "system": "Linux x86_64"},
        date=dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC),
        seconds=130.0,
        trial_seconds=250.0,
    )


@pytest.fixture
def sample_rooms(tmp_path: Path) -> dict[str, Room]:
    """All rooms, three of them with made-up verdicts and figures, the rest without any."""
    found = {}
    for slug, room in rooms().items():
        folder = tmp_path / "rooms" / slug
        shutil.copytree(
            room.folder, folder, ignore=shutil.ignore_patterns("__pycache__", "reference.json", "figure.svg")
        )
        found[slug] = Room(slug, folder, room.module)
    claims = {slug: found[slug].paper.claims[0].id for slug in (HOLDS, FAILS, OPEN)}
    (found[WAITING].folder / "study.py").unlink(missing_ok=True)
    sentences = {
        HOLDS: "Ours beats theirs on test error: 9.4 % better (interval +6.1 % to +12.7 %, 3 seeds).",
        FAILS: "Ours does not beat theirs: 4.2 % worse (interval -8 % to -1 %, 3 seeds).",
        OPEN: "It is open whether ours matches theirs (one seed, no interval).",
    }
    beats = "beats('ours', over='theirs', on='test error', by=0.01)"
    matches = "matches('ours', 'theirs', on='test error', margin=0.1)"
    verdicts = {
        HOLDS: ("holds", check(beats, claims[HOLDS], "holds", sentences[HOLDS], 0.094, 0.061, 0.127)),
        FAILS: (
            "does not hold",
            check(beats, claims[FAILS], "does not hold", sentences[FAILS], -0.042, -0.08, -0.01),
        ),
        OPEN: ("inconclusive", check(matches, claims[OPEN], "inconclusive", sentences[OPEN], 0.05, None, None)),
    }
    for slug, (answer, found_check) in verdicts.items():
        room = found[slug]
        for name in ("study.py", "__init__.py"):
            (room.folder / name).touch()
        code = "0" * 64 if slug == OPEN else code_hash(room)
        made = record(slug, answer, [found_check], code)
        (room.folder / "reference.json").write_text(made.model_dump_json(), encoding="utf-8")
        (room.folder / "figure.svg").write_text(FIGURE, encoding="utf-8")
    return found


@pytest.fixture
def filled(settings: Settings, engine: Engine) -> Engine:
    """A database with the rooms and two imported papers, all of them searchable."""
    sync_rooms(engine)
    records: list[PaperRecord | BadRecord] = [NASTY, OLD_STYLE, BadRecord(3, "the title is <missing>")]
    import_papers(engine, "jsonl", "papers.jsonl", records)
    with closing(SearchIndex.open(settings)) as index:
        index.catch_up(engine)
    return engine


@pytest.fixture
def client(settings: Settings, filled: Engine, sample_rooms: dict[str, Room]) -> Iterator[TestClient]:
    """A reader of the running site; an error of the site fails the test."""
    with TestClient(create_app(settings, sample_rooms)) as reader:
        yield reader
