"""UBA: one learning-rate curve with one parameter for a training budget known in advance (arXiv 2505.24452)."""

from working_papers.papers.unified_budget_schedule.method import (
    UBASchedule,
    chebyshev_equivalent_phi,
    estimate_condition_number,
    suggested_phi,
    uba_multiplier,
)

__all__ = [
    "UBASchedule",
    "chebyshev_equivalent_phi",
    "estimate_condition_number",
    "suggested_phi",
    "uba_multiplier",
]
