"""The record of a finished run: what `reference.json` holds, what the store keeps and what pages show."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from working_papers.errors import UserError

FORMAT = 1
"""Version of the layout below; a change that an old reader cannot take raises it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class MeasureRecord(_Part):
    """A measure as the study declared it."""

    name: str
    better: Literal["lower", "higher"] | None
    unit: str
    scale: Literal["difference", "ratio"]
    about: str


class CheckRecord(_Part):
    """A check and what it found."""

    rule: str
    claim: str
    arms: list[str]
    on: str
    answer: str
    sentence: str
    effect: float
    interval: tuple[float | None, float | None]
    level: float
    relative: bool
    effect_size: float | None
    p_value: float | None


class ArmRecord(_Part):
    """What an arm measured, a number a seed, and what it cost."""

    label: str
    setting: dict[str, float | int | str]
    candidates: int
    measures: dict[str, list[float]]
    costs: dict[str, list[float]]


class ShamRecord(_Part):
    """The answer of the same study to a method that is secretly something else."""

    answer: str
    sentences: list[str]


class Record(_Part):
    """A finished run of a study."""

    format: int = FORMAT
    slug: str
    scale: str
    sham_run: bool = False
    question: str
    answer: str
    summary: str
    checks: list[CheckRecord]
    method: str
    arms: dict[str, ArmRecord]
    measures: list[MeasureRecord]
    seeds: int
    budget: str
    notes: str
    sham: ShamRecord | None = None
    code_hash: str
    versions: dict[str, str]
    machine: dict[str, str]
    date: dt.datetime
    seconds: float
    trial_seconds: float

    def stale(self, code_hash: str) -> str:
        """Why the record no longer speaks of the code that is installed; empty when it does."""
        if self.code_hash != code_hash:
            return "the room's code has changed since"
        torch = installed_versions()["torch"]
        if self.versions.get("torch") != torch:
            return f"it ran with torch {self.versions.get('torch')}, installed is {torch}"
        return ""

    def cost(self, arm: str, name: str) -> float | None:
        """Mean of a cost over the arm's trials."""
        values = self.arms[arm].costs.get(name)
        return sum(values) / len(values) if values else None


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries a measurement may depend on (without importing them)."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("working-papers", "torch", "numpy", "scipy"):
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """The machine, in words; nothing that identifies it."""
    import platform

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    from working_papers.bench.pools import processors

    return {
        "processor": name,
        "processors": str(processors()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def read_record(path: Path) -> Record:
    """Read a `reference.json`.

    Raises:
        UserError: it cannot be read; the message names the file and the field.
    """
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise UserError(
            f"{path}: {field}: {first['msg']}; write it anew with `working-papers run {path.parent.name} --reference`"
        ) from error
    if record.format > FORMAT:
        raise UserError(f"{path} has format {record.format}, written by a newer version; this one reads up to {FORMAT}")
    return record
