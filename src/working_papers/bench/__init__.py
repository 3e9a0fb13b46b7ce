"""The bench: what a study is made of. Running, storing and showing studies lies in the modules beside this one."""

from working_papers.bench.checks import beats, matches, within
from working_papers.bench.study import Measure, Measurements, Scale, Study, Trial, Trials, Tuning

__all__ = [
    "Measure",
    "Measurements",
    "Scale",
    "Study",
    "Trial",
    "Trials",
    "Tuning",
    "beats",
    "matches",
    "within",
]
