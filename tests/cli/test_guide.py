"""The author's guide says what is true: its commands exist, its code runs, its numbers are those that are measured."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from working_papers.bench import Study
from working_papers.cli.app import app

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "adding-a-paper.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Lines of console blocks that call the command line, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ").split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("working-papers")]


@pytest.mark.parametrize("line", sorted(set(commands(GUIDE) + commands(README))))
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{line}: there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in options, f"{line}: there is no option {word}"


def test_the_guide_has_commands() -> None:
    assert len(commands(GUIDE)) >= 8


def test_options_named_in_the_text_exist() -> None:
    options = {
        option
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    named = set(re.findall(r"`(--[a-z-]+)`", GUIDE))
    assert named and named <= options


def test_its_python_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/adding-a-paper.md", "exec"), names)
    study = names["study"]
    assert isinstance(study, Study)
    for name in ("prepare", "trial", "figure", "sham"):
        assert f"@study.{name}" in GUIDE and callable(getattr(Study, name))


def test_its_links_and_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link
    for file in re.findall(r"`python ([^ `]+)", GUIDE):
        assert (ROOT / file).exists(), file


def test_its_table_of_power_is_the_one_that_is_measured() -> None:
    spec = importlib.util.spec_from_file_location("check_power_of_the_guide", ROOT / "benchmarks" / "check_power.py")
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    header = "| checks | seeds | " + " | ".join(f"effect {effect:g}" for effect in benchmark.EFFECTS) + " |"
    start = GUIDE.index(header)
    rows = re.findall(r"^\| (\d+) \| (\d+) \|((?: \d+ % \|)+)$", GUIDE[start:], flags=re.MULTILINE)
    assert len(rows) == 3 * len(benchmark.SEEDS)
    for checks, seeds, cells in rows:
        for effect, cell in zip(benchmark.EFFECTS, re.findall(r"\d+", cells), strict=True):
            measured = 100 * benchmark.power("beats", int(seeds), int(checks), effect, 10_000)
            assert measured == pytest.approx(int(cell), abs=2), f"{checks} checks, {seeds} seeds, effect {effect}"
