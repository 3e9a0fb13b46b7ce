"""Records in words and cells: what the command line and the pages show alike."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from working_papers.bench.record import Record

ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}


def measure_rows(record: Record) -> list[tuple[str, list[str]]]:
    """Table rows of measures: name with unit and better direction, then mean ± standard deviation of every arm."""
    rows = []
    for measure in record.measures:
        unit = f" ({measure.unit})" if measure.unit else ""
        cells = [spread(arm.measures[measure.name]) for arm in record.arms.values()]
        rows.append((f"{measure.name}{unit}{ARROWS[measure.better]}", cells))
    return rows


def cost_rows(record: Record) -> list[tuple[str, list[str]]]:
    """Table rows of costs: name, then the mean of every arm."""
    names = dict.fromkeys(name for arm in record.arms.values() for name in arm.costs)
    rows = []
    for name in names:
        values = [record.cost(arm, name) for arm in record.arms]
        rows.append((f"{name} a trial", ["" if value is None else amount(value) for value in values]))
    return rows


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, in as many digits as can be told apart."""
    deviation = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{deviation}"


def amount(value: float) -> str:
    """A cost in three digits, with thousands separated."""
    if value >= 1e6:
        return f"{value:.3g}".replace("e+0", "e")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time as a reader would say it: '8.2 s', '41 s', '3.4 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
