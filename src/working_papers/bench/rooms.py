"""The rooms: found by name, described by data, imported only to run."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from working_papers.bench.paper import Paper, read_paper
from working_papers.errors import UsageError, UserError

if TYPE_CHECKING:
    from working_papers.bench.record import Record
    from working_papers.bench.study import Study

PACKAGE = "working_papers.papers"
ENTRY_POINTS = "working_papers.papers"
"""Entry-point group by which another distribution offers rooms: `slug = "package.of.the.room"`."""


@dataclass(frozen=True)
class Room:
    """The folder of one paper."""

    slug: str
    folder: Path
    module: str

    @cached_property
    def paper(self) -> Paper:
        """What `paper.toml` says; read and checked on first use."""
        return read_paper(self.folder / "paper.toml")

    @cached_property
    def reference(self) -> Record | None:
        """The reference verdict that ships with the room, if it has one."""
        from working_papers.bench.record import read_record

        path = self.folder / "reference.json"
        return read_record(path) if path.exists() else None

    @property
    def figure(self) -> Path | None:
        """The figure of the reference verdict."""
        path = self.folder / "figure.svg"
        return path if path.exists() else None

    @property
    def runs(self) -> bool:
        """Whether the room has a method and a study, not only a description."""
        return (self.folder / "study.py").exists()

    def load_study(self) -> Study:
        """Import the study; this imports torch.

        Raises:
            UserError: the room does not run yet, or its study cannot be imported or is not complete.
        """
        if not self.runs:
            raise UserError(f"{self.slug} has no study yet; `working-papers list` shows which rooms run")
        try:
            study: Study = importlib.import_module(f"{self.module}.study").study
            study.check_complete()
        except Exception as error:  # whatever a room's code raises is told in one sentence, with the line
            raise UserError(f"{self.slug}: the study cannot be loaded: {_told(error, self.folder)}") from error
        return study


def _told(error: Exception, folder: Path) -> str:
    """An error in a room's code in one line, with the last of the room's lines that took part in it."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    lines = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)
    ]
    where = f" ({Path(lines[-1].filename).relative_to(folder)}, line {lines[-1].lineno})" if lines else ""
    return f"{kind}{' '.join(str(error).split())}{where}"


def rooms() -> dict[str, Room]:
    """All rooms by slug: those of this package, then those of other distributions."""
    return _found()[0]


def room_problems() -> tuple[str, ...]:
    """Why rooms that other distributions announce cannot be used, a sentence each."""
    return _found()[1]


@cache
def _found() -> tuple[dict[str, Room], tuple[str, ...]]:
    problems = []
    own = Path(__file__).parent.parent / "papers"
    found = {
        file.parent.name: Room(file.parent.name, file.parent, f"{PACKAGE}.{file.parent.name}")
        for file in sorted(own.glob("*/paper.toml"))
    }
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            spec = importlib.util.find_spec(entry.value)
        except ModuleNotFoundError:  # the package that should contain it is not there
            spec = None
        if spec is None or not spec.submodule_search_locations:
            problems.append(
                f"the room {entry.name!r} of {_distribution(entry)} names {entry.value}, which is not a package; "
                "correct its entry point or uninstall it"
            )
        elif entry.name in found:
            problems.append(
                f"the room {entry.name!r} of {_distribution(entry)} is left out: another has this name; uninstall one"
            )
        else:
            found[entry.name] = Room(entry.name, Path(spec.submodule_search_locations[0]), entry.value)
    return found, tuple(problems)


def _distribution(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist is not None else "an installed package"


def get_room(slug: str) -> Room:
    """The room of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest names.
    """
    found = rooms()
    if slug in found:
        return found[slug]
    from difflib import get_close_matches

    near = get_close_matches(slug.replace("-", "_"), found, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`working-papers list` shows all rooms"
    raise UsageError(f"there is no room named {slug!r}; {hint}")
