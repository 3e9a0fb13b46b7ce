"""One trial, run so that it measures the same alone, in a pool or on a cluster.

This module is part of every trial's code hash: what stands here decides what a trial measures.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from working_papers.bench.rooms import Room
from working_papers.bench.store import Outcome
from working_papers.bench.study import COSTS, Measurements, Scale, Study, Trial

if TYPE_CHECKING:
    import numpy as np

Phase = Literal["report", "tuning", "sham"]
THREADS = 1
"""Threads a trial computes with: more would make its last bits depend on the machine."""


@dataclass(frozen=True)
class TrialSpec:
    """What identifies a trial.

    Attributes:
        slug: the room.
        scale: smoke, laptop or paper.
        arm: the contender.
        index: number of the seed, from 0.
        phase: "report" for the seeds of the verdict, "tuning" for the seeds on which settings are chosen, "sham" for
            the stand-in of the method (whose setting is then that of the stand-in).
        setting: sorted pairs of the arm's setting.
        code_hash: hash of the code it runs.
    """

    slug: str
    scale: str
    arm: str
    index: int
    phase: Phase
    setting: tuple[tuple[str, float | int | str], ...]
    code_hash: str

    @cached_property
    def key(self) -> str:
        """The trial's identity in the store."""
        parts = [self.slug, self.scale, self.arm, self.index, self.phase, self.setting, self.code_hash]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def derive_seed(slug: str, group: str, index: int) -> int:
    """The seed a trial sees: 31 bits from the room, the group of seeds ("report", "tuning", "sham") and its number."""
    return int.from_bytes(hashlib.sha256(f"{slug}/{group}/{index}".encode()).digest()[:4], "big") >> 1


def run_trial(
    room: Room, spec: TrialSpec, *, cache: Path | None = None, report: Callable[[float], None] | None = None
) -> Outcome:
    """Run one trial in this process and measure its costs.

    Args:
        room: the room of `spec.slug`.
        spec: which trial.
        cache: folder where what the arms of a seed share is kept; None makes it anew.
        report: called with the fraction done.

    Returns:
        The outcome; an exception inside the trial becomes a failed outcome with its traceback.
    """
    try:
        study = room.load_study()
        return _measure(study, spec, cache, report)
    except Exception:  # noqa: BLE001 - whatever a room raises is reported as its failure
        return Outcome(error=traceback.format_exc())


def _measure(study: Study, spec: TrialSpec, cache: Path | None, report: Callable[[float], None] | None) -> Outcome:
    scale = Scale(spec.scale)
    shared_group = "tuning" if spec.phase == "tuning" else "report"
    shared_seed = derive_seed(spec.slug, shared_group, spec.index)
    _settle(shared_seed)
    prepared = _prepared(study, spec, shared_seed, scale, cache)

    arm, function = spec.arm, study.trial_function
    seed = shared_seed
    if spec.phase == "sham":
        # The stand-in keeps the seed's data and draws everything else anew.
        seed = derive_seed(spec.slug, "sham", spec.index)
        if study.sham_function is not None:
            function = study.sham_function
        else:
            arm = study.sham_arm or arm
    assert function is not None
    trial = Trial(
        arm=arm,
        seed=seed,
        scale=scale,
        setting=dict(spec.setting),
        device=_device(scale),
        report=_throttled(report),
    )

    _settle(seed)
    memory = _Memory()
    wall, cpu = time.perf_counter(), time.process_time()
    returned = function(trial, *prepared)
    costs = {
        "wall seconds": time.perf_counter() - wall,
        "CPU seconds": time.process_time() - cpu,
        "peak memory MB": memory.peak_megabytes(),
    }
    return _sorted_out(study, returned, costs)


def _settle(seed: int) -> None:
    """Fix the number of threads and seed the global generators, in case a library draws from them."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed)  # noqa: NPY002 - the legacy generator is global state that must not differ
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(THREADS)
        torch.manual_seed(seed)


def _device(scale: Scale) -> str:
    """Only paper scale computes on a GPU: verdicts at laptop scale must not depend on having one."""
    if scale is Scale.PAPER and "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return "cuda"
    return "cpu"


def _prepared(study: Study, spec: TrialSpec, seed: int, scale: Scale, cache: Path | None) -> tuple[Any, ...]:
    """What the arms of the seed share, as a copy of its own for each trial: a trial may change it."""
    if study.prepare_function is None:
        return ()
    if cache is None:
        return (pickle.loads(pickle.dumps(study.prepare_function(seed, scale), protocol=5)),)
    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{spec.slug}-{scale}-{seed}-{spec.code_hash[:16]}.pickle"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            handle, name = tempfile.mkstemp(dir=cache, suffix=".part")
            with os.fdopen(handle, "wb") as stream:
                pickle.dump(study.prepare_function(seed, scale), stream, protocol=5)
            Path(name).replace(file)
        with file.open("rb") as stream:
            return (pickle.load(stream),)


def _throttled(report: Callable[[float], None] | None) -> Callable[[float], None] | None:
    """At most ten reports a second: a trial may report every step."""
    if report is None:
        return None
    last = 0.0

    def send(fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= 0.1:
            last = time.monotonic()
            report(fraction)

    return send


class _Memory:
    """Peak memory since it was made, above what the process held then."""

    def __init__(self) -> None:
        self._linux = sys.platform == "linux"
        if self._linux:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            except OSError:
                self._linux = False
        self._start = self._high_water() if not self._linux else self._status("VmRSS")

    def peak_megabytes(self) -> float:
        """Megabytes (10^6 bytes)."""
        peak = self._status("VmHWM") if self._linux else self._high_water()
        return max(0.0, peak - self._start) / 1e6

    @staticmethod
    def _status(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return float(line.split()[1]) * 1024
        return 0.0

    @staticmethod
    def _high_water() -> float:
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _sorted_out(study: Study, returned: Measurements, costs: dict[str, float]) -> Outcome:
    """Check what the trial returned against what the study declares."""
    import numpy as np

    if not isinstance(returned, Mapping):
        raise TypeError(
            f"the trial returned {type(returned).__name__}, expected a mapping of names to numbers and arrays"
        )
    numbers: dict[str, float] = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in returned.items():
        if isinstance(value, np.ndarray) and value.ndim > 0:
            if not np.issubdtype(value.dtype, np.number) and value.dtype != bool:
                raise ValueError(f"the array {name!r} has dtype {value.dtype}, expected numbers")
            arrays[name] = value
            continue
        number = float(value)
        if not np.isfinite(number):
            raise ValueError(
                f"the measurement {name!r} is {number}; "
                "return a finite number (for a target that was not reached, the budget)"
            )
        if name in study.measures:
            numbers[name] = number
        elif name in COSTS:
            costs[name] = number
        else:
            raise ValueError(f"the measurement {name!r} is not declared; the measures are {', '.join(study.measures)}")
    missing = [name for name in study.measures if name not in numbers]
    if missing:
        raise ValueError(f"the trial did not return the measure {missing[0]!r}")
    return Outcome(numbers=numbers, arrays=arrays, costs=costs)
