"""The hash of the code that a trial runs: the room and every project module it imports.

Comments, docstrings and layout are left out. Changed code has another hash, so its trials run again and its old
verdict is shown as stale. Of the bench only the module that runs a trial counts: how results are stored or shown does
not change them.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from working_papers.bench.rooms import Room

PROJECT = "working_papers"
SOURCE = Path(__file__).parent.parent
TRIAL_MODULE = f"{PROJECT}.bench.trial"
IGNORED = (f"{PROJECT}.bench", f"{PROJECT}.errors", f"{PROJECT}.testing")


def code_hash(room: Room) -> str:
    """SHA-256 of the normalised source of everything that a trial of the room runs."""
    digest = hashlib.sha256()
    for module, file in sorted(_modules(room).items()):
        digest.update(f"{module}\n{_normalised(file, file.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _modules(room: Room) -> dict[str, Path]:
    """All modules of the room and, transitively, the project modules they import."""
    found = {TRIAL_MODULE: SOURCE / "bench" / "trial.py"}
    waiting = []
    for file in sorted(room.folder.rglob("*.py")):
        parts = file.relative_to(room.folder).with_suffix("").parts
        waiting.append((".".join((room.module, *(part for part in parts if part != "__init__"))), file))
    while waiting:
        module, file = waiting.pop()
        if module in found:
            continue
        found[module] = file
        for name in _imports(file, file.stat().st_mtime_ns):
            source = _source_of(name)
            if source is not None:
                waiting.append((name, source))
    return found


def _source_of(module: str) -> Path | None:
    """The file of a project module; None for what is not ours, is not a module, or does not count."""
    if module.split(".")[0] != PROJECT or module.startswith(IGNORED):
        return None
    path = SOURCE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@lru_cache(maxsize=2048)
def _imports(file: Path, _modified: int) -> tuple[str, ...]:
    """Every absolute module name the file may import, parents included (`from a.b import c` may mean a.b.c)."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return tuple(sorted({".".join(name.split(".")[:end]) for name in names() for end in range(2, name.count(".") + 2)}))


@lru_cache(maxsize=2048)
def _normalised(file: Path, _modified: int) -> str:
    """The file's source without comments, docstrings and layout."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
