"""The conductor of a run: tunes, runs the trials that are not stored yet, applies the checks, draws the figure."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from working_papers.bench.checks import Answer, joint, level_for
from working_papers.bench.code_hash import code_hash
from working_papers.bench.figures import LIMIT_KILOBYTES, draw
from working_papers.bench.pools import Pool, processors
from working_papers.bench.record import (
    ArmRecord,
    CheckRecord,
    MeasureRecord,
    Record,
    ShamRecord,
    installed_versions,
    machine,
)
from working_papers.bench.rooms import Room
from working_papers.bench.store import FAILED, FINISHED, INTERRUPTED, Outcome, Store
from working_papers.bench.study import Scale, Setting, Study, Trials
from working_papers.bench.trial import Phase, TrialSpec
from working_papers.database import now
from working_papers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: "tuning", "trials" or "sham control".
        done: trials of the stage that have ended, stored ones included.
        total: trials of the stage.
        stored: how many of them were found in the store.
        running: fraction done of each trial in flight, by arm and seed.
    """

    stage: str
    done: int
    total: int
    stored: int
    running: dict[tuple[str, int], float]


@dataclass(frozen=True)
class Failure:
    """A trial that could not be run."""

    arm: str
    seed: int
    phase: Phase
    error: str


@dataclass(frozen=True)
class Result:
    """How a run ended: with a record, or with the trials that failed."""

    run: int
    record: Record | None
    figure: Path | None
    failures: list[Failure] = field(default_factory=list)


class _TrialsFailed(Exception):
    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"{len(failures)} trials failed")
        self.failures = failures


@dataclass
class Conductor:
    """Runs one study.

    Args:
        room: the room whose study is run.
        scale: smoke, laptop or paper.
        store: where trials are looked up and kept.
        pool: where trials run.
        figures: folder for the figures of runs.
        seeds: number of reported seeds; None takes the study's own.
        sham: run the method's arm as its stand-in, to test the study itself.
        fresh: run every trial, even if it is stored.
        watch: called with the progress.
    """

    room: Room
    scale: Scale
    store: Store
    pool: Pool
    figures: Path
    seeds: int | None = None
    sham: bool = False
    fresh: bool = False
    watch: Callable[[Progress], None] | None = None
    outcomes: dict[TrialSpec, Outcome] = field(default_factory=dict, init=False)

    def run(self, *, with_sham: bool = False) -> Result:
        """Run the study to its end.

        Args:
            with_sham: also run the sham control and put its answer into the record.

        Raises:
            UserError: the room has no study, or it is not complete; a check does not fit what was measured; the
                figure cannot be drawn.
            KeyboardInterrupt: stopped by the user; finished trials are kept.
        """
        self.study: Study = self.room.load_study()
        self.hash = code_hash(self.room)
        self.count = self.seeds if self.seeds is not None else self.study.seeds[self.scale]
        self.outcomes.clear()
        started = time.monotonic()
        self.number = self.store.begin(
            slug=self.room.slug, scale=self.scale, sham=self.sham, seeds=self.count, code_hash=self.hash
        )
        try:
            settings = self._tune()
            specs = self._report_specs(settings, sham=self.sham)
            self._run_all("trials", specs.values())
            record = self._judge(specs, settings, time.monotonic() - started)
            if with_sham and not self.sham:
                record = record.model_copy(update={"sham": self._sham_control(settings)})
            figure = self._draw(specs)
        except _TrialsFailed as failed:
            message = "\n\n".join(
                f"{item.arm}, seed {item.seed} ({item.phase}):\n{item.error}" for item in failed.failures
            )
            self.store.end(self.number, FAILED, error=message)
            return Result(self.number, None, None, failed.failures)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self.store.end(self.number, INTERRUPTED, error="stopped by the user")
            else:
                self.store.end(self.number, FAILED, error=traceback.format_exc())
            raise
        finally:
            self._forget_prepared()
        self.store.end(self.number, FINISHED, record=record.model_dump(mode="json"))
        return Result(self.number, record, figure)

    def _spec(self, arm: str, index: int, phase: Phase, setting: Setting) -> TrialSpec:
        return TrialSpec(self.room.slug, self.scale.value, arm, index, phase, tuple(sorted(setting.items())), self.hash)

    def _tune(self) -> dict[str, Setting]:
        """The setting of every arm: the candidate with the best mean over the tuning seeds."""
        tuning = self.study.tuning
        settings: dict[str, Setting] = {arm: {} for arm in self.study.arms}
        if tuning is None:
            return settings
        searched = {arm: options for arm, options in tuning.candidates.items() if len(options) > 1}
        settings |= {arm: options[0] for arm, options in tuning.candidates.items() if len(options) == 1}
        specs = {
            (arm, number, index): self._spec(arm, index, "tuning", option)
            for index in range(tuning.seeds)
            for arm, options in searched.items()
            for number, option in enumerate(options)
        }
        self._run_all("tuning", specs.values())
        sign = 1.0 if self.study.measures[tuning.on].better == "lower" else -1.0
        for arm, options in searched.items():
            scores = [
                sum(sign * self.outcomes[specs[arm, number, index]].numbers[tuning.on] for index in range(tuning.seeds))
                for number in range(len(options))
            ]
            settings[arm] = options[scores.index(min(scores))]
        return settings

    def _report_specs(self, settings: dict[str, Setting], *, sham: bool) -> dict[tuple[str, int], TrialSpec]:
        """The trials of the verdict, seed by seed."""
        stand_in = self.study.sham_arm or self.study.method
        return {
            (arm, index): self._spec(arm, index, "sham", settings[stand_in])
            if sham and arm == self.study.method
            else self._spec(arm, index, "report", settings[arm])
            for index in range(self.count)
            for arm in self.study.arms
        }

    def _run_all(self, stage: str, specs: Any) -> None:
        """Run the trials that have no stored outcome; keep each as it ends."""
        wanted: Sequence[TrialSpec] = [spec for spec in specs if spec not in self.outcomes]
        stored = {} if self.fresh else self.store.finished_trials(wanted)
        self.outcomes |= stored
        missing = [spec for spec in wanted if spec not in stored]
        running: dict[tuple[str, int], float] = {}
        done = len(stored)
        failures: list[Failure] = []

        def tell() -> None:
            if self.watch is not None:
                self.watch(Progress(stage, done, len(wanted), len(stored), dict(running)))

        tell()
        if not missing:
            return
        with closing(self.pool.run(self.room, missing)) as events:  # type: ignore[type-var]
            for event in events:
                spec = event.spec
                if event.outcome is None:
                    running[spec.arm, spec.index] = event.fraction
                else:
                    running.pop((spec.arm, spec.index), None)
                    done += 1
                    self.store.keep(self.number, spec, event.outcome)
                    self.outcomes[spec] = event.outcome
                    if event.outcome.error is not None:
                        failures.append(Failure(spec.arm, spec.index, spec.phase, event.outcome.error))
                tell()
        if failures:
            raise _TrialsFailed(failures)

    def _values(self, specs: dict[tuple[str, int], TrialSpec]) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Measurements by arm and measure, each an array over seeds."""
        import numpy as np

        return {
            arm: {
                measure: np.array([self.outcomes[specs[arm, index]].numbers[measure] for index in range(self.count)])
                for measure in self.study.measures
            }
            for arm in self.study.arms
        }

    def _check(self, specs: dict[tuple[str, int], TrialSpec]) -> list[CheckRecord]:
        values = self._values(specs)
        level = level_for(len(self.study.checks))
        records = []
        for check in self.study.checks:
            result = check.evaluate(values, self.study.measures[check.on], self.study.arms, level)
            low, high = (end if abs(end) != float("inf") else None for end in result.interval)
            records.append(
                CheckRecord(
                    rule=check.describe(),
                    claim=check.claim,
                    arms=list(check.arms),
                    on=check.on,
                    answer=result.answer.value,
                    sentence=result.sentence,
                    effect=result.effect,
                    interval=(low, high),
                    level=level,
                    relative=result.relative,
                    effect_size=result.effect_size,
                    p_value=result.p_value,
                )
            )
        return records

    def _judge(self, specs: dict[tuple[str, int], TrialSpec], settings: dict[str, Setting], seconds: float) -> Record:
        study = self.study
        checks = self._check(specs)
        answer = joint([Answer(check.answer) for check in checks])
        tuning = study.tuning
        trial_seconds = sum(outcome.costs["wall seconds"] for outcome in self.outcomes.values())
        arms = {}
        for arm, label in study.arms.items():
            outcomes = [self.outcomes[specs[arm, index]] for index in range(self.count)]
            arms[arm] = ArmRecord(
                label=label,
                setting=dict(settings[arm]),
                candidates=len(tuning.candidates.get(arm, ())) if tuning is not None else 0,
                measures={name: [outcome.numbers[name] for outcome in outcomes] for name in study.measures},
                costs={name: [outcome.costs[name] for outcome in outcomes] for name in outcomes[0].costs},
            )
        return Record(
            slug=self.room.slug,
            scale=self.scale.value,
            sham_run=self.sham,
            question=study.question,
            answer=answer.value,
            summary=summarise(answer, [check.answer for check in checks]),
            checks=checks,
            method=study.method,
            arms=arms,
            measures=[MeasureRecord(**asdict(measure)) for measure in study.measures.values()],
            seeds=self.count,
            budget=study.budget,
            notes=study.notes,
            code_hash=self.hash,
            versions=installed_versions(),
            machine=machine(),
            date=now().replace(microsecond=0),
            # Stored trials cost nothing this time; what they took counts all the same.
            seconds=round(max(seconds, trial_seconds / processors()), 1),
            trial_seconds=round(trial_seconds, 1),
        )

    def _sham_control(self, settings: dict[str, Setting]) -> ShamRecord:
        specs = self._report_specs(settings, sham=True)
        self._run_all("sham control", specs.values())
        checks = self._check(specs)
        answer = joint([Answer(check.answer) for check in checks])
        return ShamRecord(answer=answer.value, sentences=[check.sentence for check in checks])

    def _draw(self, specs: dict[tuple[str, int], TrialSpec]) -> Path:
        import numpy as np

        arrays: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for arm in self.study.arms:
            outcomes = [self.outcomes[specs[arm, index]].arrays for index in range(self.count)]
            arrays[arm] = {}
            for name in outcomes[0]:
                shapes = {each[name].shape if name in each else None for each in outcomes}
                if len(shapes) > 1:
                    raise UserError(
                        f"{self.room.slug}: the array {name!r} of arm {arm!r} must have one shape on all seeds, "
                        f"got {', '.join(map(str, shapes))}"
                    )
                arrays[arm][name] = np.stack([each[name] for each in outcomes])
        trials = Trials(self.study.arms, self.scale, self._values(specs), arrays)
        try:
            return draw(self.study, trials, self.figures / self.room.slug, str(self.number))
        except OSError as error:
            raise UserError(f"the figure cannot be written: {error}; the trials are kept") from error
        except Exception as error:  # the room's own code
            raise UserError(
                f"{self.room.slug}: the figure cannot be drawn ({type(error).__name__}: {error}); the trials are kept, "
                f"`working-papers show {self.room.slug}` prints the log"
            ) from error

    def _forget_prepared(self) -> None:
        """What arms shared is not needed once a run has ended; the next one makes it again."""
        cache = getattr(self.pool, "cache", None)
        if cache is not None:
            for file in Path(cache).glob(f"{self.room.slug}-{self.scale}-*"):
                file.unlink(missing_ok=True)


def summarise(answer: Answer, answers: list[str]) -> str:
    """The verdict in one sentence."""
    total = len(answers)
    if answer is Answer.HOLDS:
        return (
            "The claim holds in this study."
            if total == 1
            else f"The claim holds in this study: all {total} checks hold."
        )
    failed, held = answers.count(Answer.FAILS), answers.count(Answer.HOLDS)
    undecided = total - held - failed

    def counted(number: int, verb: str) -> str:
        return f"{number} {verb}{'s' if number == 1 else ''}"

    parts = [counted(held, "hold")]
    if answer is Answer.FAILS:
        parts.insert(0, counted(failed, "fail"))
    if undecided:
        parts.append(f"{counted(undecided, 'remain')} open")
    what = "The claim does not hold in this study" if answer is Answer.FAILS else "This study is inconclusive"
    return f"{what}: of {total} checks {', '.join(parts)}."


def write_reference(room: Room, result: Result) -> Path:
    """Make a finished laptop run the reference verdict that ships with the room.

    Raises:
        UserError: the run is a sham or not at laptop scale, its sham control says *holds*, or the figure is too large.
    """
    record = result.record
    assert record is not None and result.figure is not None
    scale: Literal["laptop"] = "laptop"
    if record.sham_run or record.scale != scale:
        raise UserError("a reference verdict comes from a laptop run that is not a sham")
    if record.sham is None or record.sham.answer == Answer.HOLDS:
        raise UserError(
            f"{room.slug}: the study says *holds* to a sham, so it cannot decide the claim; mend its checks first"
        )
    size = result.figure.stat().st_size / 1000
    if size > LIMIT_KILOBYTES:
        raise UserError(f"{room.slug}: the figure has {size:.0f} kB; the limit is {LIMIT_KILOBYTES}: draw fewer points")
    path = room.folder / "reference.json"
    contents = {
        room.folder / "figure.svg": result.figure.read_bytes(),
        path: (record.model_dump_json(indent=1) + "\n").encode(),
    }
    parts = {target: target.with_name(f"{target.name}.part") for target in contents}
    try:
        for target, content in contents.items():
            parts[target].write_bytes(content)
        for target, part in parts.items():
            part.replace(target)
    except OSError as error:
        for part in parts.values():
            if part.exists():
                part.unlink()
        raise UserError(
            f"the reference verdict cannot be written: {error.filename} ({error.strerror}); it belongs into a checkout "
            "that you may write"
        ) from error
    return path
