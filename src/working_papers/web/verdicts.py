"""Rooms as pages show them: state, checks with their intervals, tables, provenance; read from files, never imported."""

from __future__ import annotations

import ast
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from working_papers.bench.code_hash import code_hash
from working_papers.bench.paper import PaperFileError
from working_papers.bench.record import Record
from working_papers.bench.report import ARROWS, amount, duration, spread
from working_papers.bench.rooms import Room
from working_papers.errors import UserError
from working_papers.web.methods import Method, method_of

if TYPE_CHECKING:
    from pathlib import Path

    from working_papers.bench.paper import Claim, Paper
    from working_papers.bench.record import CheckRecord, MeasureRecord

REFRESH_SECONDS = 5.0
"""How long the rooms on disk may be newer than what pages show."""

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Where a room stands. The values are the words readers see."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "inconclusive"
    UNDECIDED = "no verdict yet"
    WAITING = "not yet running"

    @property
    def key(self) -> str:
        """The state as one word, for addresses and style classes."""
        return {
            State.HOLDS: "holds",
            State.FAILS: "fails",
            State.OPEN: "open",
            State.UNDECIDED: "undecided",
            State.WAITING: "waiting",
        }[self]

    @property
    def word(self) -> str:
        """The state as it begins a sentence."""
        return self.value[0].upper() + self.value[1:]


STATES: Mapping[str, State] = {state.key: state for state in State}
DECIDED = (State.HOLDS, State.FAILS, State.OPEN)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an interval's axis; `x` runs from 0 to 100."""

    x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class IntervalPlot:
    """A check's effect with its interval against the region in which the claim holds; places run from 0 to 100."""

    low: float
    high: float
    effect: float
    bounded: bool
    region: tuple[float, float] | None
    ticks: tuple[Tick, ...]
    description: str


@dataclass(frozen=True)
class CheckView:
    """A check and what it found."""

    state: State
    sentence: str
    rule: str
    claim: str
    level: str
    plot: IntervalPlot | None
    effect_size: str
    p_value: str


@dataclass(frozen=True)
class PaperNumber:
    """What the paper reports: one value, and what it was compared to."""

    metric: str
    value: str
    dataset: str
    source: str
    baselines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ClaimView:
    """A claim: the paper's numbers and the checks that test it here."""

    id: str
    statement: str
    numbers: tuple[PaperNumber, ...]
    checks: tuple[CheckView, ...]


@dataclass(frozen=True)
class TableRow:
    """A row of the table of arms."""

    name: str
    about: str
    cells: tuple[str, ...]
    best: int | None


@dataclass(frozen=True)
class Figure:
    """The figure of a verdict."""

    file: Path
    version: str
    width: int
    height: int


@dataclass(frozen=True)
class RoomView:
    """A room at one moment."""

    room: Room
    stale: str
    record: Record | None
    figure: Figure | None

    @property
    def slug(self) -> str:
        return self.room.slug

    @property
    def paper(self) -> Paper:
        return self.room.paper

    @property
    def runnable(self) -> bool:
        return self.room.runs

    @cached_property
    def state(self) -> State:
        """Where the room stands."""
        if self.record is not None:
            return State(self.record.answer)
        return State.UNDECIDED if self.room.runs else State.WAITING

    @cached_property
    def key(self) -> str:
        """The room's id as a paper: its arXiv id where there is one."""
        return self.paper.arxiv or self.slug

    @cached_property
    def finding(self) -> str:
        """The verdict in a sentence: the check that decided it, or the first."""
        if self.record is None:
            return ""
        deciding = [check for check in self.record.checks if check.answer == self.record.answer]
        chosen = (deciding or list(self.record.checks))[:1]
        return typographic(chosen[0].sentence if chosen else self.record.summary)

    @cached_property
    def short_finding(self) -> str:
        """The finding without the statistics in brackets, for lists."""
        return re.sub(r"\s*\([^()]*\)\.?$", ".", self.finding)

    @cached_property
    def checks(self) -> tuple[CheckView, ...]:
        """Every check with its sentence and interval."""
        if self.record is None:
            return ()
        measures = {measure.name: measure for measure in self.record.measures}
        return tuple(_check(check, measures.get(check.on)) for check in self.record.checks)

    @property
    def held(self) -> int:
        """How many checks hold."""
        return sum(check.state is State.HOLDS for check in self.checks)

    @cached_property
    def claims(self) -> tuple[ClaimView, ...]:
        """The paper's claims, those that are tested here first."""
        views = [
            ClaimView(
                claim.id,
                " ".join(claim.statement.split()),
                _numbers(claim),
                tuple(check for check in self.checks if check.claim == claim.id),
            )
            for claim in self.paper.claims
        ]
        return tuple(sorted(views, key=lambda view: not view.checks))

    @cached_property
    def arm_labels(self) -> tuple[tuple[str, bool], ...]:
        """Names of the arms, and which of them is the paper's method."""
        if self.record is None:
            return ()
        return tuple((arm.label, name == self.record.method) for name, arm in self.record.arms.items())

    @cached_property
    def measure_table(self) -> tuple[TableRow, ...]:
        """Rows of measures, the best arm marked where a direction is better."""
        if self.record is None:
            return ()
        rows = []
        for measure in self.record.measures:
            values = [arm.measures[measure.name] for arm in self.record.arms.values()]
            means = [sum(each) / len(each) for each in values]
            best = None
            if measure.better is not None and len(set(means)) > 1:
                best = means.index(min(means) if measure.better == "lower" else max(means))
            unit = f" ({measure.unit})" if measure.unit else ""
            arrow = ARROWS[measure.better].replace(" ", "\N{NO-BREAK SPACE}")
            name = f"{measure.name}{unit}{arrow}"
            rows.append(TableRow(name, measure.about, tuple(typographic(spread(each)) for each in values), best))
        return tuple(rows)

    @cached_property
    def cost_table(self) -> tuple[TableRow, ...]:
        """Rows of costs a trial."""
        record = self.record
        if record is None:
            return ()
        rows = []
        for name in dict.fromkeys(name for arm in record.arms.values() for name in arm.costs):
            values = [record.cost(arm, name) for arm in record.arms]
            cells = tuple("–" if value is None else typographic(amount(value)) for value in values)
            rows.append(TableRow(name, "", cells, None))
        return tuple(rows)

    @cached_property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """The tuned setting of each arm that has one."""
        if self.record is None:
            return ()
        return tuple(
            (arm.label, ", ".join(f"{name} = {_setting(value)}" for name, value in arm.setting.items()))
            for arm in self.record.arms.values()
            if arm.setting
        )

    @cached_property
    def extra_cost(self) -> str:
        """What the method costs in time beside the first baseline: '1.3 times as long as Muon'."""
        record = self.record
        if record is None:
            return ""
        others = [arm for arm in record.arms if arm != record.method]
        ours = record.cost(record.method, "wall seconds")
        theirs = record.cost(others[0], "wall seconds") if others else None
        if not ours or not theirs:
            return ""
        ratio, label = ours / theirs, record.arms[others[0]].label
        if 0.95 <= ratio <= 1.05:
            return f"about as long as {label}"
        return f"{ratio:.2g} times as long as {label}"

    @cached_property
    def duration(self) -> str:
        """How long all trials took, one after the other."""
        return duration(self.record.trial_seconds) if self.record else ""

    @cached_property
    def run_duration(self) -> str:
        """How long the run took on its machine."""
        return duration(self.record.seconds) if self.record else ""

    @cached_property
    def method(self) -> Method | None:
        """What can be imported."""
        return method_of(self.room)


def _setting(value: float | int | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(check: CheckRecord, measure: MeasureRecord | None) -> CheckView:
    return CheckView(
        state=State(check.answer),
        sentence=typographic(check.sentence),
        rule=check.rule,
        claim=check.claim,
        level=f"{100 * check.level:.4g} %",
        plot=interval_plot(check, measure.unit if measure else ""),
        effect_size="" if check.effect_size is None else f"{check.effect_size:.2g}",
        p_value="" if check.p_value is None else ("< 0.0001" if check.p_value < 1e-4 else f"{check.p_value:.2g}"),
    )


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]?\d+)\b")


def _power(match: re.Match[str]) -> str:
    exponent = str(int(match[2])).translate(_SUPERSCRIPTS)
    return f"10{exponent}" if match[1] == "1" else f"{match[1]}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{exponent}"


def typographic(text: str) -> str:
    """Numbers as they are printed: 3.1e-07 as 3.1 × 10⁻⁷, true minus signs, per cent signs kept with their numbers."""
    text = _POWER.sub(_power, text)
    return re.sub(r"(?<![\w)])-(?=\d)", "−", text).replace(" %", "\N{NO-BREAK SPACE}%")


def _numbers(claim: Claim) -> tuple[PaperNumber, ...]:
    """The paper's numbers, those that differ only in what they are compared to put together."""
    groups: dict[tuple[str, str, str, str], list[tuple[str, str]]] = {}
    for number in claim.numbers:
        key = (number.metric, quantity(number.value, number.unit), number.dataset, number.source)
        baselines = groups.setdefault(key, [])
        if number.baseline:
            value = "" if number.baseline_value is None else quantity(number.baseline_value, number.unit)
            baselines.append((number.baseline, value))
    return tuple(PaperNumber(*key, tuple(baselines)) for key, baselines in groups.items())


def quantity(value: float, unit: str = "") -> str:
    """A number with its unit, with a true minus sign and thousands kept apart."""
    text = f"{value:,.0f}" if abs(value) >= 10_000 and float(value).is_integer() else f"{value:.6g}"
    text = typographic(text.replace(",", "\N{NARROW NO-BREAK SPACE}"))
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text


def claim_region(rule: str, relative: bool) -> tuple[float | None, float | None] | None:
    """Where a check's effect must lie for the claim to hold, in the unit of the effect.

    Args:
        rule: the check as the record has it, e.g. "beats('a', over='b', on='loss', by=0.05)".
        relative: whether the effect is a fraction.

    Returns:
        lower and upper end, None for an open one; None for a rule that is not known.
    """
    try:
        call = ast.parse(rule, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (SyntaxError, ValueError, AssertionError):
        return None
    match call.func.id:
        case "beats":
            return float(given.get("by", 0.0)), None
        case "matches" if "margin" in given:
            margin = float(given["margin"])
            return -margin, (1 / (1 - margin) - 1 if relative and margin < 1 else margin)
        case "within":
            low, high = given.get("low"), given.get("high")
            return (None if low is None else float(low)), (None if high is None else float(high))
    return None


def interval_plot(check: CheckRecord, unit: str) -> IntervalPlot | None:
    """Lay out a check's interval; None where there is nothing finite to draw."""
    low, high = check.interval
    region = claim_region(check.rule, check.relative)
    comparison = len(check.arms) == 2
    marks = [end for end in region or () if end is not None]
    if comparison:
        marks.append(0.0)
    points = [value for value in (low, high, check.effect, *marks) if value is not None and abs(value) < 1e12]
    if not points or abs(check.effect) >= 1e12 or check.effect != check.effect:
        return None
    start, end = min(points), max(points)
    room = (end - start) * 0.12 or abs(end) * 0.5 or 1.0
    start, end = start - room, end + room

    def place(value: float) -> float:
        return round(100 * (min(max(value, start), end) - start) / (end - start), 2)

    def named(value: float) -> str:
        return quantity(float(f"{100 * value:.3g}"), "%") if check.relative else quantity(float(f"{value:.3g}"), unit)

    ticks: list[Tick] = []
    for value in sorted(set(marks)):
        x = place(value)
        if all(abs(x - other.x) > 14 for other in ticks):
            ticks.append(Tick(x, named(value), "start" if x < 12 else "end" if x > 88 else "middle"))
    bounded = low is not None and high is not None
    band = None
    if region is not None:
        band = (0.0 if region[0] is None else place(region[0]), 100.0 if region[1] is None else place(region[1]))
    ends = f"from {named(low)} to {named(high)}" if low is not None and high is not None else "unbounded"
    return IntervalPlot(
        low=0.0 if low is None else place(low),
        high=100.0 if high is None else place(high),
        effect=place(check.effect),
        bounded=bounded,
        region=band,
        ticks=tuple(ticks),
        description=f"Effect {named(check.effect)}, interval {ends}; shaded: where the claim holds.",
    )


class Rooms:
    """All rooms as pages show them, read again when their files change."""

    def __init__(self, found: Mapping[str, Room]) -> None:
        self._found = dict(found)
        self._views: dict[str, RoomView] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._problems: dict[str, str] = {}
        self._by_key: dict[str, RoomView] = {}
        self._checked = float("-inf")
        self._lock = threading.Lock()

    @property
    def installed(self) -> Mapping[str, Room]:
        """The rooms themselves, by slug."""
        return self._found

    def __iter__(self) -> Iterator[RoomView]:
        self._refresh()
        return iter(list(self._views.values()))

    def __len__(self) -> int:
        self._refresh()
        return len(self._views)

    def get(self, slug: str | None) -> RoomView | None:
        """The room of that slug."""
        self._refresh()
        return self._views.get(slug) if slug else None

    def by_key(self, key: str) -> RoomView | None:
        """The room of that slug or arXiv id, whatever the case and with hyphens or underscores."""
        self._refresh()
        return self._by_key.get(key.lower().replace("-", "_"))

    @property
    def problems(self) -> list[str]:
        """What could not be read, a sentence each."""
        self._refresh()
        return list(self._problems.values())

    def _refresh(self) -> None:
        if time.monotonic() - self._checked < REFRESH_SECONDS:
            return
        with self._lock:
            if time.monotonic() - self._checked < REFRESH_SECONDS:
                return
            changed = False
            for slug, room in self._found.items():
                stamp = _stamp(room.folder)
                if self._stamps.get(slug) != stamp:
                    self._read(slug, Room(slug, room.folder, room.module))
                    self._stamps[slug] = stamp
                    changed = True
            if changed:
                self._by_key = {
                    key.lower().replace("-", "_"): view
                    for view in self._views.values()
                    for key in (view.slug, view.paper.arxiv)
                    if key
                }
            self._checked = time.monotonic()

    def _read(self, slug: str, room: Room) -> None:
        """Read one room; what is broken keeps its last good state and is named on the status page."""
        self._problems.pop(slug, None)
        try:
            _ = room.paper
        except PaperFileError as error:
            self._problems[slug] = str(error)
            return
        try:
            record, stale = room.reference, ""
            if record is not None:
                stale = record.stale(code_hash(room))
        except (UserError, SyntaxError, UnicodeDecodeError) as error:
            logger.warning("room %s: %s", slug, error)
            self._problems[slug] = f"{slug}: {error}"
            record, stale = None, ""
        self._views[slug] = RoomView(room, stale, record, _figure(room) if record is not None else None)


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever a file of the room does."""
    files = [file.stat() for file in folder.glob("*") if file.suffix in {".py", ".json", ".toml", ".svg"}]
    return (len(files), max((file.st_mtime_ns for file in files), default=0), sum(file.st_size for file in files))


_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def _figure(room: Room) -> Figure | None:
    file = room.figure
    return None if file is None else figure_of(file)


def figure_of(file: Path) -> Figure:
    """A figure's size and version, read from its head."""
    with file.open(encoding="utf-8") as text:
        box = _VIEW_BOX.search(text.read(1000))
    width, height = (
        (round(float(box[1]) * 4 / 3), round(float(box[2]) * 4 / 3)) if box else (768, 400)
    )  # points to pixels
    return Figure(file, f"{file.stat().st_mtime_ns:x}", width, height)
