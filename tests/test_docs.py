"""What the documents say is true: snippets run, commands exist, generated parts are up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
import typer.main

from working_papers.cli.app import app
from working_papers.config import Settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "README.md", "python"))))
def test_readme_snippets_run(number: int) -> None:
    torch.manual_seed(number)
    exec(compile(blocks(ROOT / "README.md", "python")[number], f"README.md, snippet {number}", "exec"), {})


def commands() -> set[str]:
    """Every command and sub-command with its options, as "run --scale"."""
    found: set[str] = set()
    root = typer.main.get_command(app)

    def walk(command: object, path: str) -> None:
        for option in getattr(command, "params", []):
            found.update(f"{path} {name}".strip() for name in option.opts if name.startswith("-"))
        for name, child in getattr(command, "commands", {}).items():
            found.add(f"{path} {name}".strip())
            walk(child, f"{path} {name}".strip())

    walk(root, "")
    return found


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_commands_in_documents_exist(file: Path) -> None:
    known = commands()
    for line in re.findall(r"working-papers ([a-z][^\n`#|]*)", file.read_text(encoding="utf-8")):
        words = line.split()
        path = words[0]
        assert path in known, f"{file.name}: there is no command {path!r}"
        if len(words) > 1 and not words[1].startswith("-") and f"{path} {words[1]}" in known:
            path = f"{path} {words[1]}"
        for option in re.findall(r"(?<!\S)--[a-z]+", line):
            assert f"{path} {option}" in known, f"{file.name}: `{path}` has no option {option}"


def test_every_command_stands_in_a_document() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in DOCUMENTS)
    groups = {command.split()[0] for command in commands() if not command.startswith("-")}
    missing = {group for group in groups if f"working-papers {group}" not in text}
    assert not missing, f"no document tells of {sorted(missing)}"


def test_every_setting_stands_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"WORKING_PAPERS_{name.upper()}" in text


def test_generated_parts_are_up_to_date() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "readme.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `python docs/readme.py`"


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), f"{file.name} links {target}, which does not exist"


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Why each dependency")[1]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=\[ ]", requirement)[0]
        assert name in table, f"docs/architecture.md gives no reason for {name}"
