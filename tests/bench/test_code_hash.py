"""The hash of the code that a trial runs: what changes it, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.made_up import write_room
from working_papers.bench.code_hash import _modules, code_hash
from working_papers.bench.rooms import Room


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return write_room(tmp_path, "hashed_room")


def changed(room: Room, name: str, old: str, new: str) -> bool:
    """Whether the hash changes with a piece of code, which is put back afterwards."""
    file = room.folder / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    before = code_hash(room)
    file.write_text(text.replace(old, new), encoding="utf-8")
    after = code_hash(room)
    file.write_text(text, encoding="utf-8")
    assert code_hash(room) == before
    return before != after


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method.py", "# a comment", "# another comment"),
        ("method.py", "What the arm's loss is about.", "Something else."),
        ("method.py", '    """What the arm\'s loss is about."""\n', ""),
        ("method.py", "return 1.0 if", "return  1.0  if"),
        ("study.py", "\n\n\n", "\n\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(room: Room, name: str, old: str, new: str) -> None:
    assert not changed(room, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("method.py", "1.0 if", "1.1 if"),
        ("study.py", "by=0.1", "by=0.2"),
        ("study.py", "How wrong.", "How right."),  # an argument, not a docstring
    ],
)
def test_code_counts(room: Room, name: str, old: str, new: str) -> None:
    assert changed(room, name, old, new)


def test_files_of_the_room_count_wherever_they_lie(room: Room) -> None:
    before = code_hash(room)
    nested = room.folder / "parts"
    nested.mkdir()
    (nested / "more.py").write_text("X = 1\n", encoding="utf-8")
    assert code_hash(room) != before
    (nested / "notes.txt").write_text("not code", encoding="utf-8")
    with_more = code_hash(room)
    (nested / "notes.txt").write_text("changed", encoding="utf-8")
    assert code_hash(room) == with_more


def test_project_modules_that_a_room_imports_count_with_theirs(room: Room) -> None:
    names = set(_modules(room))
    assert "working_papers.bench.trial" in names, "what runs a trial decides what it measures"
    assert not any(name.startswith("working_papers.data") for name in names)
    method = room.folder / "method.py"
    method.write_text(
        "def offset(arm):\n    import working_papers.data\n    from working_papers import config\n    return 1.0\n",
        encoding="utf-8",
    )
    names = set(_modules(room))
    assert {"working_papers.data", "working_papers.config"} <= names, "imports inside functions count too"
    assert not any(name.startswith(("working_papers.bench.checks", "working_papers.bench.store")) for name in names)


def test_the_hash_is_that_of_the_contents_not_of_the_place(room: Room, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    twin = write_room(elsewhere, "hashed_room")
    assert code_hash(twin) == code_hash(room)
