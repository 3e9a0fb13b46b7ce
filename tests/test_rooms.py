"""All rooms: every description is valid, and every room that runs passes the conformance suite and a smoke run."""

from __future__ import annotations

from pathlib import Path

import pytest

from working_papers.bench.paper import PaperFileError, read_paper
from working_papers.bench.rooms import PACKAGE, rooms
from working_papers.testing import ROOM_CHECKS, RoomCheck, check_room, run_smoke

OURS = {slug: room for slug, room in rooms().items() if room.module.startswith(f"{PACKAGE}.")}
RUNNING = [slug for slug, room in OURS.items() if room.runs]


def test_there_are_66_papers() -> None:
    assert len(OURS) == 66
    folders = {folder.name for folder in next(iter(OURS.values())).folder.parent.iterdir() if folder.is_dir()}
    assert folders - {"__pycache__"} == set(OURS), "every folder of a room has a paper.toml"


@pytest.mark.parametrize("slug", OURS)
def test_the_description_is_valid(slug: str) -> None:
    paper = OURS[slug].paper
    assert paper.title and paper.claims and paper.topics


def test_titles_and_arxiv_ids_are_unique() -> None:
    for field in ("title", "arxiv"):
        values = [getattr(room.paper, field) for room in OURS.values() if getattr(room.paper, field)]
        twice = {value for value in values if values.count(value) > 1}
        assert not twice, f"{field} used twice: {twice}"


VALID = (Path(__file__).parents[1] / "src/working_papers/cli/layout/paper.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("title =", "titel ="), "title: Field required (and 1 more)"),
        (('topics = ["learning theory"]', "topics = []"), "topics: "),
        (('topics = ["learning theory"]', 'topics = ["magic"]'), "topics: unknown topic 'magic'; the topics are: arch"),
        (("authors_count = 1", "authors_count = 0"), "authors_count: Input should be greater than or equal to 1"),
        (('["A. Nonymous"]', '["A", "B"]'), "authors lists 2 names but authors_count is 1"),
        (("first_date = 2026-01-01", 'first_date = "soon"'), "first_date: "),
        (('# arxiv = "2510.05491"', 'arxiv = "2510.05491v2"'), "arxiv: '2510.05491v2' is not an arXiv id"),
        (('id = "centred"', 'id = "robust"'), "claims: the id 'robust' is used twice"),
        (('id = "centred"', 'id = "Not An Id"'), "claims.1.id: "),
        (('statement = "On symmetric', 'sentence = "On symmetric'), "claims.1.statement: Field required"),
        (("Replace it by a description", "\n" + "word " * 100 + "\n"), "summary: the summary has"),
        (
            ("# [[claims.numbers]]\n", "[[claims.numbers]]\nbaseline_value = 1.0\nmetric='m'\nvalue=1\nsource='s'\n"),
            "name",
        ),
        (("[[claims]]", "[[claims"), "not valid TOML"),
    ],
)
def test_a_wrong_description_names_file_and_field(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    file = tmp_path / "paper.toml"
    file.write_text(VALID, encoding="utf-8")
    assert read_paper(file).title
    assert change[0] in VALID
    file.write_text(VALID.replace(change[0], change[1], 1), encoding="utf-8")
    with pytest.raises(PaperFileError) as caught:
        read_paper(file)
    assert str(file) in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_description_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(PaperFileError, match=r"paper.toml: cannot be read \(No such file"):
        read_paper(tmp_path / "paper.toml")
    (tmp_path / "paper.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PaperFileError, match="not valid TOML"):
        read_paper(tmp_path / "paper.toml")


@pytest.mark.parametrize("check", ROOM_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("slug", RUNNING)
def test_conforms(slug: str, check: RoomCheck) -> None:
    check_room(slug, check)


@pytest.mark.slow
@pytest.mark.parametrize("slug", RUNNING)
def test_runs_at_smoke_scale(slug: str, tmp_path: Path) -> None:
    record = run_smoke(slug, tmp_path)
    assert record.slug == slug and record.scale == "smoke"
