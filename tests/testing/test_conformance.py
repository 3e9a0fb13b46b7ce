"""The conformance suite: each check passes a room as it should be and fails one that is spoilt."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from working_papers.bench import rooms as rooms_module
from working_papers.bench.code_hash import code_hash
from working_papers.bench.record import Record
from working_papers.bench.rooms import Room
from working_papers.cli.authoring import _filled_in
from working_papers.testing import REFERENCE_CHECKS, ROOM_CHECKS, RoomCheck, check_room, conformance

TEMPLATES = Path(rooms_module.__file__).parents[1] / "cli" / "layout"
SLUG = "conforming_room"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """The room that `new` lays out, with a reference verdict."""
    folder = tmp_path / SLUG
    folder.mkdir()
    for template in TEMPLATES.iterdir():
        if template.name != "test.py.txt":
            text = _filled_in(template.read_text(encoding="utf-8"), SLUG, SLUG)
            (folder / template.name.removesuffix(".txt")).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Room(SLUG, folder, SLUG)
    (folder / "figure.svg").write_text("<svg></svg>", encoding="utf-8")
    study = found.load_study()
    record = Record.model_validate(
        {
            "slug": SLUG,
            "scale": "laptop",
            "question": study.question,
            "answer": "holds",
            "summary": "",
            "checks": [
                {
                    "rule": check.describe(),
                    "claim": check.claim,
                    "arms": list(check.arms),
                    "on": check.on,
                    "answer": "holds",
                    "sentence": "",
                    "effect": 1.0,
                    "interval": (0.0, None),
                    "level": 0.95,
                    "relative": False,
                    "effect_size": None,
                    "p_value": None,
                }
                for check in study.checks
            ],
            "method": study.method,
            "arms": {},
            "measures": [],
            "seeds": 5,
            "budget": study.budget,
            "notes": study.notes,
            "sham": {"answer": "does not hold", "sentences": []},
            "code_hash": code_hash(found),
            "versions": {},
            "machine": {},
            "date": "2026-01-01T00:00:00Z",
            "seconds": 1.0,
            "trial_seconds": 1.0,
        }
    )
    (folder / "reference.json").write_text(record.model_dump_json(), encoding="utf-8")
    rooms_module._found.cache_clear()
    monkeypatch.setattr(rooms_module, "rooms", lambda: {SLUG: found})
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == SLUG]:
        del sys.modules[name]


@pytest.mark.parametrize("check", ROOM_CHECKS, ids=lambda check: check.__name__)
def test_a_room_as_laid_out_conforms_once_it_has_a_reference(room: Room, check: RoomCheck) -> None:
    check_room(SLUG, check)


def edit(name: str, old: str, new: str) -> Callable[[Room], None]:
    def spoil(room: Room) -> None:
        path = room.folder / name
        text = path.read_text(encoding="utf-8")
        assert re.search(old, text), f"{name} has no {old}"
        path.write_text(re.sub(old, new, text, count=1), encoding="utf-8")

    return spoil


def lose(name: str) -> Callable[[Room], None]:
    return lambda room: (room.folder / name).unlink()


def reference(**changes: object) -> Callable[[Room], None]:
    def spoil(room: Room) -> None:
        path = room.folder / "reference.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("check", "spoil", "words"),
    [
        (conformance.has_all_files, lose("figure.svg"), "has no figure.svg"),
        (conformance.has_all_files, lose("method.py"), "has no method.py"),
        (conformance.offers_only_the_method, edit("__init__.py", '__all__ = .*"]', "x = 1"), "only the method's names"),
        (conformance.offers_only_the_method, edit("__init__.py", '"trimmed_mean"', '"mean"'), "mean, which does not"),
        (
            conformance.documents_its_names,
            edit("method.py", "def trimmed_mean", "class trimmed_mean(torch.nn.Module): ...\n\n\ndef other"),
            "trimmed_mean has no docstring",
        ),
        (conformance.documents_its_names, edit("method.py", "    Args:\n", ""), "does not describe its arguments"),
        (conformance.names_its_source, edit("method.py", "https://", ""), "does not link the paper"),
        (conformance.names_its_source, edit("method.py", "$", "\n" * 600), "split it into a folder"),
        (
            conformance.imports_no_other_room,
            edit("method.py", "import torch\n", "import torch\nimport working_papers.papers.normuon\n"),
            "method.py imports working_papers.papers.normuon",
        ),
        (
            conformance.imports_no_other_room,
            edit("study.py", "import torch\n", "import torch\nfrom working_papers.daily import models\n"),
            "imports working_papers.daily",
        ),
        (conformance.tests_claims_of_the_paper, edit("study.py", 'claim="robust"', 'claim="other"'), "claim 'other'"),
        (conformance.explains_its_measures, edit("study.py", r'"bias", about=".*?"', '"bias"'), "'bias' has no line"),
        (conformance.explains_its_measures, edit("study.py", 'notes=".*"', 'notes=""'), "what differs from the paper"),
        (conformance.explains_its_measures, edit("study.py", '"laptop": 5', '"laptop": 2'), "2 seeds at laptop scale"),
        (conformance.has_an_honest_reference, lose("reference.json"), "has no reference verdict"),
        (conformance.has_an_honest_reference, reference(scale="smoke"), "is at smoke scale"),
        (conformance.has_an_honest_reference, reference(sham_run=True), "is that of a sham"),
        (conformance.has_an_honest_reference, reference(sham=None), "says holds to a sham"),
        (
            conformance.has_an_honest_reference,
            reference(sham={"answer": "holds", "sentences": []}),
            "says holds to a sham",
        ),
        (conformance.has_an_honest_reference, edit("method.py", "= 0.1", "= 0.2"), "the code has changed since"),
        (conformance.has_an_honest_reference, reference(seeds=4), "has 4 seeds, declared 5"),
        (conformance.has_an_honest_reference, reference(checks=[]), "has other checks"),
        (conformance.has_an_honest_reference, reference(slug="another"), "is that of another"),
        (conformance.has_a_light_figure, edit("figure.svg", "<svg>", "<html>"), "is no SVG file"),
        (conformance.has_a_light_figure, edit("figure.svg", "</svg>", "<script></script></svg>"), "has a script"),
        (
            conformance.has_a_light_figure,
            edit("figure.svg", "</svg>", '<image href="http://example.org/x.png"/></svg>'),
            "loads something from elsewhere",
        ),
        (conformance.has_a_light_figure, edit("figure.svg", "</svg>", "x" * 200_000), "figure.svg has 2"),
    ],
)
def test_a_spoilt_room_fails_its_check(room: Room, check: RoomCheck, spoil: Callable[[Room], None], words: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == SLUG]:
        del sys.modules[name]
    spoil(room)
    changed = replace(room)  # without what the other one has read already
    with pytest.raises(AssertionError, match=re.escape(words)):
        check(changed)


def test_checks_of_the_reference_are_checks() -> None:
    assert set(REFERENCE_CHECKS) < set(ROOM_CHECKS)
