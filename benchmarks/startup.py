"""How long the commands that only read take to start, and which of them import something heavy.

    python benchmarks/startup.py [--repeats 7]

Each command runs in a fresh process with its output thrown away; shown are the fastest and the median of the repeats
in seconds of wall clock, and the processor seconds, which a busy machine does not change. The aim is half a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

COMMANDS = (
    ("--help",),
    ("list",),
    ("list", "--json"),
    ("verdicts",),
    ("verdicts", "--markdown"),
    ("show", "normuon"),
    ("run", "--help"),
)
AIM = 0.5
HEAVY = ("torch", "scipy", "matplotlib", "fastapi", "faiss", "tantivy", "ray", "alembic", "sqlalchemy", "pydantic")


@dataclass(frozen=True)
class Timing:
    """Seconds of one command: each repeat's wall clock, and the mean processor time."""

    wall: list[float]
    processor: float


def timing(arguments: tuple[str, ...], repeats: int, environment: dict[str, str]) -> Timing:
    """Run a command several times.

    Args:
        arguments: of `working-papers`.
        repeats: how often; one more before does not count, so that files are in memory and the home is made.
        environment: variables of the process.
    """
    command = [sys.executable, "-c", "from working_papers.cli import main; main()", *arguments]
    wall = []
    before = 0.0
    for repeat in range(repeats + 1):
        if repeat == 1:
            before = _processor_seconds_of_children()
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        wall.append(time.perf_counter() - start)
    return Timing(wall[1:], (_processor_seconds_of_children() - before) / repeats)


def _processor_seconds_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def heavy_imports(arguments: tuple[str, ...], environment: dict[str, str]) -> list[str]:
    """Which of the heavy packages the command imports."""
    program = f"""
import sys
sys.argv = ["working-papers", *{list(arguments)!r}]
from working_papers.cli import main
try:
    main()
finally:
    sys.stderr.write(" ".join(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return done.stderr.split()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Startup time of the commands that only read.")
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print("| command | fastest (s) | median (s) | processor (s) | imports |")
    print("| --- | ---: | ---: | ---: | --- |")
    slow = []
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"WORKING_PAPERS_HOME": home, "COLUMNS": "120"}
        for arguments in COMMANDS:
            measured = timing(arguments, repeats, environment)
            numbers = (min(measured.wall), statistics.median(measured.wall), measured.processor)
            shown = " | ".join(f"{number:.2f}" for number in numbers)
            print(f"| `{' '.join(arguments)}` | {shown} | {', '.join(heavy_imports(arguments, environment))} |")
            if measured.processor > AIM:
                slow.append(" ".join(arguments))
    print(f"\nAbove {AIM} s: {', '.join(slow) if slow else 'none'}.")


if __name__ == "__main__":
    main()
