"""What a room offers to import, read from its source: the site never imports a room."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from working_papers.bench.rooms import Room

LONGEST_LINE = 88


@dataclass(frozen=True)
class PublicName:
    """A class, function or constant that a room offers.

    Attributes:
        name: as it is imported.
        kind: "class", "function" or "value".
        signature: its arguments with defaults, without annotations; empty for a value.
        about: the first line of its docstring.
    """

    name: str
    kind: str
    signature: str
    about: str


@dataclass(frozen=True)
class Method:
    """How a room's method is used.

    Attributes:
        import_line: the statement that imports every public name.
        names: the public names, classes first.
    """

    import_line: str
    names: tuple[PublicName, ...]


def method_of(room: Room) -> Method | None:
    """The public names of a room; None where it has no method yet or its source cannot be parsed."""
    file = room.folder / "__init__.py"
    try:
        newest = max(source.stat().st_mtime_ns for source in room.folder.rglob("*.py"))
    except ValueError:  # no source at all
        return None
    return _read(file, room.module, newest) if file.is_file() else None


@lru_cache(maxsize=512)
def _read(file: Path, module: str, _modified: int) -> Method | None:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = _exported(tree)
        if not names:
            return None
        found: dict[str, PublicName] = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                wanted = {alias.name: alias.asname or alias.name for alias in node.names}
                source = _source(file.parent, module, node)
                if source is not None:
                    found |= _definitions(ast.parse(source.read_text(encoding="utf-8")), wanted)
        found |= _definitions(tree, {name: name for name in names})
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    public = [found.get(name, PublicName(name, "value", "", "")) for name in names]
    public.sort(key=lambda each: ("class", "function", "value").index(each.kind))
    return Method(_import_line(module, [each.name for each in public]), tuple(public))


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            if isinstance(value, ast.List | ast.Tuple):
                return [
                    item.value for item in value.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)
                ]
    return []


def _source(folder: Path, module: str, node: ast.ImportFrom) -> Path | None:
    """The file of the room from which a name is imported; None for other packages."""
    name = node.module or ""
    if node.level == 0:
        if name != module and not name.startswith(f"{module}."):
            return None
        name = name.removeprefix(module).lstrip(".")
    path = folder.joinpath(*filter(None, name.split(".")))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _definitions(tree: ast.Module, wanted: dict[str, str]) -> dict[str, PublicName]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name in wanted:
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            about = (ast.get_docstring(node) or "").strip().split("\n", 1)[0]
            name = wanted[node.name]
            found[name] = PublicName(name, kind, _signature(node), about)
    return found


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Arguments with their defaults; of a class, those of its constructor or its fields."""
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                return _arguments(inner.args, skip_first=True)
        fields = [
            item.target.id + (f"={ast.unparse(item.value)}" if item.value is not None else "")
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        ]
        return f"({', '.join(fields)})" if fields else ""
    return _arguments(node.args, skip_first=False)


def _arguments(arguments: ast.arguments, *, skip_first: bool) -> str:
    bare = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0]
    assert isinstance(bare, ast.FunctionDef)
    for argument in ast.walk(bare.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if skip_first and (bare.args.posonlyargs or bare.args.args):
        del (bare.args.posonlyargs or bare.args.args)[0]
    return f"({ast.unparse(bare.args)})"


def _import_line(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= LONGEST_LINE:
        return line
    inner = "".join(f"    {name},\n" for name in names)
    return f"from {module} import (\n{inner})"
