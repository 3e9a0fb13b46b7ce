"""Visual search by a network that sees worse away from its gaze (https://arxiv.org/abs/2106.02953)."""

from working_papers.papers.visual_search_asymmetry.method.attention import (
    CENTRE_SURROUND,
    Scanpath,
    TopDownSearch,
    centre_surround,
    combine_maps,
    correlate,
    gaussian_kernel,
)
from working_papers.papers.visual_search_asymmetry.method.displays import (
    TASKS,
    SearchDisplays,
    Task,
    arc_distance,
    bar_distance,
    search_displays,
    stroke,
)
from working_papers.papers.visual_search_asymmetry.method.measures import SearchSlope, asymmetry_index, rt_slope
from working_papers.papers.visual_search_asymmetry.method.pooling import (
    VGG_SLOPES,
    EccentricityPool2d,
    eccentric_,
    same_pool2d,
)

__all__ = [
    "CENTRE_SURROUND",
    "TASKS",
    "VGG_SLOPES",
    "EccentricityPool2d",
    "Scanpath",
    "SearchDisplays",
    "SearchSlope",
    "Task",
    "TopDownSearch",
    "arc_distance",
    "asymmetry_index",
    "bar_distance",
    "centre_surround",
    "combine_maps",
    "correlate",
    "eccentric_",
    "gaussian_kernel",
    "rt_slope",
    "same_pool2d",
    "search_displays",
    "stroke",
]
