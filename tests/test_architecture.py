"""The arrows of the architecture: who may import whom, and what reading the catalogue must not import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "working_papers"

# What each part may import besides itself. The bench finds rooms by name and imports one only to run it.
BOTTOM = {"config", "errors", "database"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "database": {"config", "errors", "migrations"},
    "migrations": BOTTOM | {"bench", "daily"},  # a migration knows the tables
    "bench": BOTTOM,
    "nn": {"errors"},
    "data": {"config", "errors"},
    "papers": {"bench", "nn", "data"},
    "testing": BOTTOM | {"bench", "nn"},
    "daily": BOTTOM | {"bench"},
    "web": BOTTOM | {"daily", "bench"},
    "cli": BOTTOM | {"web", "daily", "bench"},
}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def sources() -> list[Path]:
    return [
        file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py" and "layout" not in file.parts
    ]


def imports(file: Path, *, at_start: bool = False) -> set[str]:
    """Absolute names of the project's modules that a file imports, relative ones resolved."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = at_the_start(tree) if at_start else list(ast.walk(tree))
    package = ["working_papers", *file.relative_to(PACKAGE).parent.parts]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "working_papers"}


def at_the_start(tree: ast.Module) -> list[ast.AST]:
    """Statements that run when the module is imported; those for type checkers alone do not."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        found.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def test_every_part_is_known() -> None:
    assert {part_of(file) for file in sources()} <= set(ALLOWED), "a new part needs its arrows"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_arrows_run_one_way(part: str) -> None:
    for file in sources():
        if part_of(file) != part:
            continue
        for name in imports(file):
            target = name.split(".")[1] if "." in name else ""
            allowed = target in ALLOWED[part] | {part, "__version__"}
            assert allowed, f"{file.relative_to(PACKAGE)} imports {name}; {part} may import {sorted(ALLOWED[part])}"


def test_a_room_imports_no_other_room() -> None:
    for file in sources():
        parts = file.relative_to(PACKAGE).parts
        if parts[0] == "papers" and len(parts) > 2:
            for name in imports(file):
                if name.startswith("working_papers.papers."):
                    assert name.split(".")[2] == parts[1], f"{file.relative_to(PACKAGE)} imports {name}"


def test_nothing_names_a_room_but_the_room() -> None:
    """Rooms are found, not listed: a new one needs no change elsewhere."""
    for file in sources():
        if part_of(file) != "papers":
            named = {name for name in imports(file) if name.startswith("working_papers.papers")}
            assert not named, f"{file.relative_to(PACKAGE)} imports {named}"


def test_every_part_is_read_right() -> None:
    """The reader of imports sees what it should: relative, nested and type-checking imports."""
    file = PACKAGE / "bench" / "runner.py"
    assert "working_papers.bench.checks.joint" in imports(file)
    rooms = PACKAGE / "bench" / "rooms.py"
    assert "working_papers.bench.study.Study" in imports(rooms)
    assert "working_papers.bench.study.Study" not in imports(rooms, at_start=True)
    assert "working_papers.bench.record.read_record" not in imports(rooms, at_start=True)


LIGHT = {
    "the list of rooms": "from working_papers.bench.rooms import rooms; [room.paper for room in rooms().values()]",
    "reference verdicts": "from working_papers.bench.rooms import rooms; [room.reference for room in rooms().values()]",
    "the store": "import working_papers.bench.store",
    "the command line": "import working_papers.cli.app",
    "the daily": "import pkgutil, importlib, working_papers.daily as daily\n"
    "for found in pkgutil.iter_modules(daily.__path__, 'working_papers.daily.'): importlib.import_module(found.name)",
    "the site": "import importlib.util as util\n"
    "if util.find_spec('working_papers.web.app'): import working_papers.web.app",
}


@pytest.mark.parametrize("what", LIGHT)
def test_reading_imports_no_torch(what: str, tmp_path: Path) -> None:
    program = (
        f"{LIGHT[what]}\n"
        "import sys\n"
        "found = [name for name in ('torch', 'ray', 'sklearn', 'torch_geometric') if name in sys.modules]\n"
        "assert not found, found\n"
        "run = [name for name in sys.modules if name.startswith('working_papers.papers.')]\n"
        "assert not run, run\n"
    )
    home = os.environ | {"WORKING_PAPERS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{what}: {done.stderr}"
