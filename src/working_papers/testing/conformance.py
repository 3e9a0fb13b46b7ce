"""The conformance suite: what must be true of every room, one check a function.

In a test file of your own rooms:

    @pytest.mark.parametrize("check", ROOM_CHECKS, ids=lambda check: check.__name__)
    def test_room(check):
        check_room("my_room", check)

    def test_study_runs(tmp_path):
        run_smoke("my_room", tmp_path)
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from working_papers.bench.code_hash import code_hash
from working_papers.bench.rooms import Room, get_room
from working_papers.bench.study import Scale

if TYPE_CHECKING:
    from working_papers.bench.record import Record

RoomCheck = Callable[[Room], None]

METHOD_LINES = 500
"""A method.py that grows longer becomes a folder."""

FIGURE_BYTES = 200_000


def check_room(slug: str, check: RoomCheck) -> None:
    """Apply one check to a room; AssertionError says what is missing."""
    check(get_room(slug))


def run_smoke(slug: str, folder: Path) -> Record:
    """Run the room's study at smoke scale, in a store of its own.

    Args:
        slug: the room.
        folder: an empty folder for the store, the figure and what arms share.

    Returns:
        The record of the run.

    Raises:
        AssertionError: trials failed; the message is the log of the first.
        UserError: there is no such room, or its study cannot be run.
    """
    from working_papers.bench.pools import LocalPool
    from working_papers.bench.runner import Conductor
    from working_papers.bench.store import Store
    from working_papers.config import Settings
    from working_papers.database import open_database

    settings = Settings(home=folder, database=f"sqlite:///{folder / 'smoke.db'}")
    engine = open_database(settings)
    try:
        conductor = Conductor(
            room=get_room(slug),
            scale=Scale.SMOKE,
            store=Store(engine),
            pool=LocalPool(settings.cache_folder),
            figures=settings.figures_folder,
        )
        result = conductor.run()
    finally:
        engine.dispose()
    assert result.record is not None, f"{slug}: {len(result.failures)} trials failed\n{result.failures[0].error}"
    return result.record


def has_all_files(room: Room) -> None:
    """Method, study, reference verdict and figure are there."""
    has_method = (room.folder / "method.py").exists() or (room.folder / "method").is_dir()
    assert has_method, f"{room.slug} has no method.py"
    for name in ("__init__.py", "study.py", "reference.json", "figure.svg"):
        assert (room.folder / name).exists(), f"{room.slug} has no {name}"


def offers_only_the_method(room: Room) -> None:
    """`__init__.py` re-exports public names of the method and nothing else."""
    tree = ast.parse((room.folder / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        imports = isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{room.module}.method")
        assert docstring or names or imports, f"{room.slug}/__init__.py line {node.lineno}: only the method's names"
    module = _import(room.module)
    public = getattr(module, "__all__", ())
    assert public, f"{room.slug}/__init__.py lists no public names in __all__"
    for name in public:
        assert hasattr(module, name), f"{room.slug} offers {name}, which does not exist"


def documents_its_names(room: Room) -> None:
    """Every public function and class has a docstring; parameters are described where there are any."""
    for name, item in _public(room):
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        # Its own: a class would otherwise inherit one, or get its signature as one from dataclass.
        text = inspect.cleandoc(item.__doc__ or "")
        assert text and not text.startswith(f"{item.__name__}("), f"{room.slug}: {name} has no docstring"
        function = item.__init__ if inspect.isclass(item) else item
        parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "args", "kwargs")]
        if parameters and not _is_record(item):
            whole = text + (inspect.getdoc(function) or "")
            assert "Args:" in whole, f"{room.slug}: the docstring of {name} does not describe its arguments"


def _is_record(item: object) -> bool:
    """Protocols and tuples describe their fields under Attributes."""
    return inspect.isclass(item) and ("Attributes:" in (inspect.getdoc(item) or "") or hasattr(item, "_is_protocol"))


def names_its_source(room: Room) -> None:
    """The method's module says which paper it is."""
    single = room.folder / "method.py"
    method = single if single.exists() else room.folder / "method" / "__init__.py"
    text = ast.get_docstring(ast.parse(method.read_text(encoding="utf-8"))) or ""
    assert "http" in text, f"{room.slug}/{method.name}: the first docstring does not link the paper"
    for file in room.folder.rglob("*.py"):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= METHOD_LINES, f"{room.slug}/{file.name} has {lines} lines; split it into a folder"


def imports_no_other_room(room: Room) -> None:
    """A room imports nn, data and bench; never another room, the daily or the web."""
    allowed = (room.module, "working_papers.nn", "working_papers.data", "working_papers.bench")
    for file in room.folder.rglob("*.py"):
        for name in imported_modules(file):
            if name.startswith("working_papers"):
                assert name.startswith(allowed), f"{room.slug}/{file.name} imports {name}"


def tests_claims_of_the_paper(room: Room) -> None:
    """Every check names a claim that stands in paper.toml."""
    study = room.load_study()
    claims = {claim.id for claim in room.paper.claims}
    for check in study.checks:
        assert check.claim in claims, f"{room.slug}: {check.describe()} names claim {check.claim!r}, not in paper.toml"


def explains_its_measures(room: Room) -> None:
    """Readers find a line on every measure, on the budget and on what differs from the paper."""
    study = room.load_study()
    for measure in study.measures.values():
        assert measure.about, f"{room.slug}: the measure {measure.name!r} has no line in `about`"
    assert study.budget, f"{room.slug}: the study does not say what budget each arm has"
    assert study.notes, f"{room.slug}: the study does not say what differs from the paper"
    seeds = study.seeds[Scale.LAPTOP]
    assert seeds >= 3, f"{room.slug}: {seeds} seeds at laptop scale decide nothing"


def has_an_honest_reference(room: Room) -> None:
    """The reference verdict is of this code, at laptop scale, with a sham control that does not say *holds*."""
    record = room.reference
    assert record is not None, f"{room.slug} has no reference verdict"
    assert record.slug == room.slug, f"{room.slug}: the reference verdict is that of {record.slug}"
    assert record.scale == "laptop", f"{room.slug}: the reference verdict is at {record.scale} scale"
    assert not record.sham_run, f"{room.slug}: the reference verdict is that of a sham"
    assert record.sham is not None and record.sham.answer != "holds", f"{room.slug}: the study says holds to a sham"
    assert record.code_hash == code_hash(room), f"{room.slug}: the code has changed since the reference verdict"
    study = room.load_study()
    declared = study.seeds[Scale.LAPTOP]
    assert record.seeds == declared, f"{room.slug}: the reference verdict has {record.seeds} seeds, declared {declared}"
    rules = [check.describe() for check in study.checks]
    assert [check.rule for check in record.checks] == rules, f"{room.slug}: the reference verdict has other checks"


def has_a_light_figure(room: Room) -> None:
    """The figure is an SVG that loads nothing from elsewhere and is small enough to ship."""
    assert room.figure is not None, f"{room.slug} has no figure.svg"
    text = room.figure.read_text(encoding="utf-8")
    assert len(text) <= FIGURE_BYTES, f"{room.slug}: figure.svg has {len(text)} bytes"
    assert text.lstrip().startswith("<svg"), f"{room.slug}: figure.svg is no SVG file that a page can show inline"
    assert "<script" not in text, f"{room.slug}: figure.svg has a script"
    # Links inside the file (#...) and name spaces are the only addresses allowed.
    assert 'href="http' not in text, f"{room.slug}: figure.svg loads something from elsewhere"


ROOM_CHECKS: tuple[RoomCheck, ...] = (
    has_all_files,
    offers_only_the_method,
    documents_its_names,
    names_its_source,
    imports_no_other_room,
    tests_claims_of_the_paper,
    explains_its_measures,
    has_an_honest_reference,
    has_a_light_figure,
)

REFERENCE_CHECKS: tuple[RoomCheck, ...] = (has_all_files, has_an_honest_reference, has_a_light_figure)
"""Those of them that a room can only pass once its reference verdict has been written."""


def imported_modules(file: Path) -> set[str]:
    """Absolute names of the modules a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def _import(name: str) -> ModuleType:
    from importlib import import_module

    return import_module(name)


def _public(room: Room) -> Iterator[tuple[str, object]]:
    module = _import(room.module)
    for name in module.__all__:
        yield name, getattr(module, name)
