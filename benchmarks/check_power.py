"""How often a check says *holds* where there is nothing to find, and how often where there is.

    python benchmarks/check_power.py [--data-sets 20000]

Every number comes from thousands of simulated studies that are judged by the bench's own checks. The arms of a seed
share an effect of that seed; the noise of a trial is normal, heavy-tailed, skewed, or takes two values only. False
answers are counted at the border of the claim: arms that are exchangeable (`beats`), a true mean at the bound
(`within`), a true difference at the margin (`matches`). With three checks, on independent measures, a study counts
when any of them says *holds*. `tests/bench/test_false_holds.py` asserts what the tables show.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from working_papers.bench import Measure, beats, matches, within
from working_papers.bench.checks import Check, interval, level_for

Array = NDArray[np.float64]

SEEDS = (3, 5, 8, 10)
NOISES = ("normal", "heavy-tailed", "mildly skewed", "skewed", "two values")
KINDS = ("beats", "matches", "within")
EFFECTS = (0.5, 1.0, 2.0, 3.0)
MEASURE = Measure("score", better="higher")


def noise(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Noise of mean 0 and standard deviation 1.

    Args:
        kind: one of `NOISES`: normal; Student t with 3 degrees of freedom; the mean of ten exponential numbers, whose
            skewness is 0.63; one of them, whose skewness is 2; a coin.
        shape: of the result.
        random: where it is drawn from.
    """
    drawn: Array
    if kind == "normal":
        drawn = random.standard_normal(shape)
    elif kind == "heavy-tailed":
        drawn = np.asarray(random.standard_t(3, shape) / math.sqrt(3), dtype=np.float64)
    elif kind == "mildly skewed":
        drawn = (random.gamma(10, size=shape) - 10) / math.sqrt(10)
    elif kind == "skewed":
        drawn = random.exponential(size=shape) - 1
    elif kind == "two values":
        drawn = np.where(random.random(shape) < 0.5, -1.0, 1.0)
    else:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(NOISES)}")
    return drawn


def answers(
    kind: str, noises: str, seeds: int, checks: int, data_sets: int, *, shift: float = 0.0, seed: int = 0
) -> tuple[Array, Array]:
    """Simulate studies whose truth lies at the border of the claim, or `shift` inside of it.

    Args:
        kind: "beats", "matches" or "within".
        noises: kind of noise.
        seeds: number of seeds of each study.
        checks: number of checks, each on a measure of its own.
        data_sets: number of studies.
        shift: by how many standard deviations of the samples (paired differences, or values) the claim is true.
        seed: of the simulation.

    Returns:
        whether each check says *holds* and whether it says *does not hold*, both as 0 or 1 [checks, data sets].
    """
    random = np.random.default_rng([seed, seeds, checks, KINDS.index(kind), NOISES.index(noises)])
    shape = (checks, data_sets, seeds)
    shared = 3 * random.standard_normal(shape)
    ours, theirs = (shared + noise(noises, shape, random) for _ in range(2))
    deviation = math.sqrt(2)  # of a paired difference
    check: Check
    if kind == "beats":
        check = beats("a", over="b", on=MEASURE.name, claim="none")
        ours = ours + shift * deviation
    elif kind == "matches":
        margin = 1.5 * deviation
        check = matches("a", "b", on=MEASURE.name, margin=margin, claim="none")
        ours = ours + margin - shift * deviation
    else:
        # A prediction reads one arm, so the seed's effect is part of its noise: none is added here.
        check = within("a", on=MEASURE.name, high=0.0, claim="none")
        ours = noise(noises, shape, random) - shift
    samples = check.samples({"a": {MEASURE.name: ours}, "b": {MEASURE.name: theirs}}, MEASURE)
    holds, fails = check.decide(*interval(samples, level_for(checks)), MEASURE)
    return holds.astype(np.float64), fails.astype(np.float64)


def false_holds(kind: str, noises: str, seeds: int, checks: int, data_sets: int, *, seed: int = 0) -> float:
    """Fraction of studies at the border of the claim in which any check says *holds*."""
    holds, _ = answers(kind, noises, seeds, checks, data_sets, seed=seed)
    return float(holds.max(axis=0).mean())


def power(kind: str, seeds: int, checks: int, effect: float, data_sets: int, *, seed: int = 0) -> float:
    """Fraction of studies with normal noise in which a check says *holds* to an effect in standard deviations."""
    holds, _ = answers(kind, "normal", seeds, checks, data_sets, shift=effect, seed=seed)
    return float(holds.mean())


def table_of_false_holds(data_sets: int) -> str:
    """Markdown: per cent of studies in which a check wrongly says *holds*."""
    lines = [
        f"| check | noise | {' | '.join(f'{seeds} seeds' for seeds in SEEDS)} | 3 checks, 5 seeds |",
        f"| --- | --- |{' ---: |' * (len(SEEDS) + 1)}",
    ]
    for kind in KINDS:
        for noises in NOISES:
            rates = [false_holds(kind, noises, seeds, 1, data_sets) for seeds in SEEDS]
            rates.append(false_holds(kind, noises, 5, 3, data_sets))
            lines.append(f"| `{kind}` | {noises} | {' | '.join(f'{rate * 100:.1f} %' for rate in rates)} |")
    return "\n".join(lines)


def table_of_power(data_sets: int) -> str:
    """Markdown: per cent of studies in which `beats` says *holds* to a true effect."""
    lines = [
        f"| checks | seeds | {' | '.join(f'effect {effect:g}' for effect in EFFECTS)} |",
        f"| ---: | ---: |{' ---: |' * len(EFFECTS)}",
    ]
    for checks in (1, 3, 5):
        for seeds in SEEDS:
            rates = [power("beats", seeds, checks, effect, data_sets) for effect in EFFECTS]
            lines.append(f"| {checks} | {seeds} | {' | '.join(f'{rate * 100:.0f} %' for rate in rates)} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="False answers and power of the bench's checks.")
    parser.add_argument("--data-sets", type=int, default=20_000, help="simulated studies a number")
    data_sets = parser.parse_args().data_sets
    print("A check says *holds* although the truth lies at the border of the claim:\n")
    print(table_of_false_holds(data_sets))
    print("\n`beats` (or a one-sided `within`) says *holds* to an effect in standard deviations, normal noise:\n")
    print(table_of_power(data_sets))


if __name__ == "__main__":
    main()
