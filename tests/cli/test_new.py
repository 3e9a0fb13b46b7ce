"""`new`: what it lays out runs, passes its own test and is clean, as it is, wherever the room lives."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.made_up import TEMPLATES, command, environment, install
from working_papers.bench.paper import read_paper

CHECKOUT = Path(__file__).parents[2]


def call(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=folder, env=environment(folder) | variables, capture_output=True, text=True, check=False
    )


def module(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """A distribution of somebody else's with a new room in it."""
    done = call(command("new", "my_room", "--folder", str(tmp_path)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'my_room = "my_room"' in done.stdout, "it says how the room is found"
    install(tmp_path, "my_room")
    return tmp_path


def test_everything_is_laid_out_and_filled_in(laid_out: Path) -> None:
    files = {str(file.relative_to(laid_out)) for file in laid_out.rglob("*") if file.suffix in (".py", ".toml")}
    names = ("paper.toml", "__init__.py", "method.py", "study.py")
    assert files == {f"my_room/{name}" for name in names} | {"tests/test_my_room.py"}
    for file in files:
        text = (laid_out / file).read_text(encoding="utf-8")
        assert not re.search(r"\{(slug|module|blank \w+)\}", text), f"{file} has a placeholder left"
    assert len(list(TEMPLATES.iterdir())) == len(files), "every template is used"
    assert "my_room" in read_paper(laid_out / "my_room" / "paper.toml").title


@pytest.mark.slow
def test_a_new_room_runs_and_passes_its_own_test(laid_out: Path) -> None:
    """Its test runs the study at smoke scale."""
    test = call(module("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "tests"), laid_out)
    assert test.returncode == 0, test.stdout
    assert re.search(r"\d+ passed, 3 skipped", test.stdout), "only what needs a reference verdict is skipped"


@pytest.mark.slow
def test_a_new_room_is_clean(laid_out: Path, pytestconfig: pytest.Config) -> None:
    """By the tools' own defaults, as in a distribution without settings."""
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")
    for tool in (
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["mypy", "--strict", "--cache-dir", str(cache), "my_room", "tests"],
    ):
        done = call(module(*tool), laid_out)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_room_in_a_checkout_is_clean_by_its_rules(tmp_path: Path) -> None:
    """Without --folder the room goes among the others, its test to tests/papers."""
    own = tmp_path / "src" / "working_papers"
    shutil.copytree(CHECKOUT / "src" / "working_papers", own, ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    done = call(command("new", "my_room"), tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert done.returncode == 0, done.stderr
    room, test = own / "papers" / "my_room", tmp_path / "tests" / "papers" / "test_my_room.py"
    assert "from working_papers.papers.my_room.method import" in (room / "study.py").read_text(encoding="utf-8")
    for tool in (["ruff", "check", "--no-cache"], ["ruff", "format", "--no-cache", "--check"]):
        done = call(module(*tool, str(room), str(test)), tmp_path)
        assert done.returncode == 0, done.stdout
    listed = call(command("list"), tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert listed.returncode == 0 and "my_room" in listed.stdout
    again = call(command("new", "my_room"), tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert again.returncode == 2 and "there is a room named 'my_room' already" in again.stderr


def test_a_described_paper_keeps_its_description(tmp_path: Path) -> None:
    """A room that the catalogue has, but that does not run yet, gets the other files only."""
    own = tmp_path / "src" / "working_papers"
    shutil.copytree(CHECKOUT / "src" / "working_papers", own, ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    room = own / "papers" / "apen"
    for file in room.glob("*.py"):
        file.unlink()
    before = (room / "paper.toml").read_bytes()
    done = call(command("new", "apen"), tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert done.returncode == 0, done.stderr
    assert (room / "paper.toml").read_bytes() == before
    assert (room / "study.py").exists() and (tmp_path / "tests" / "papers" / "test_apen.py").exists()


def test_an_installed_package_asks_for_a_folder(tmp_path: Path) -> None:
    own = tmp_path / "site-packages" / "working_papers"
    shutil.copytree(CHECKOUT / "src" / "working_papers", own, ignore=shutil.ignore_patterns("__pycache__", "static"))
    done = call(command("new", "my_room"), tmp_path, PYTHONPATH=str(own.parent))
    assert done.returncode == 2
    assert "not a checkout; say with --folder where the room should go" in done.stderr
    assert not (own / "papers" / "my_room").exists()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    taken = tmp_path / "tests" / "test_my_room.py"
    taken.parent.mkdir()
    taken.write_text("mine", encoding="utf-8")
    done = call(command("new", "my_room", "--folder", str(tmp_path)), tmp_path)
    assert done.returncode == 2 and f"{taken} exists already; nothing was written" in done.stderr
    assert taken.read_text(encoding="utf-8") == "mine" and not (tmp_path / "my_room").exists()

    # The room itself can be written, the folder of its test cannot: a file is in the way.
    other = tmp_path / "other"
    other.mkdir()
    (other / "tests").write_text("a file", encoding="utf-8")
    done = call(command("new", "my_room", "--folder", str(other)), tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr and "nothing was kept" in done.stderr
    assert [file.name for file in other.iterdir()] == ["tests"]
