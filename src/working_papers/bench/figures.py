"""Figures in the house style: one look for all rooms, legible on a light and on a dark page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from working_papers.bench.study import Study, Trials

INK, FAINT = "#1f2937", "#9ca3af"
DARK_INK, DARK_FAINT = "#e5e7eb", "#6b7280"
LIMIT_KILOBYTES = 200

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "working-papers",
}


def draw(study: Study, trials: Trials, folder: Path, name: str) -> Path:
    """Draw the study's figure and save it as SVG and PNG.

    Args:
        study: whose figure function draws.
        trials: what it draws.
        folder: where to; made if need be.
        name: of the files, without suffix.

    Returns:
        The SVG file; the PNG (on white, for terminals and mail) lies beside it.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    assert study.figure_function is not None
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are a closed list of literals
        figure = Figure(figsize=study.figure_size, layout="constrained")
        study.figure_function(trials, figure)
        svg = folder / f"{name}.svg"
        svg.write_text(_svg(figure), encoding="utf-8")
        figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white", metadata={"Software": None})
    return svg


def _svg(figure: Figure) -> str:
    """The figure as SVG whose ink follows the reader's light or dark scheme."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    start = text.index("<svg")
    head_end = text.index(">", start) + 1
    rules = (
        f"<style>svg{{color:{INK};--faint:{FAINT}}}"
        f"@media (prefers-color-scheme:dark){{svg{{color:{DARK_INK};--faint:{DARK_FAINT}}}}}</style>"
    )
    body = text[head_end:].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return text[start:head_end] + rules + _SPARE_DECIMALS.sub(_rounded, body)


# Factors are kept whole: a glyph's scale is 1/64, which two decimals would make a third smaller.
_SPARE_DECIMALS = re.compile(r"(?:scale|matrix)\([^)]*\)|\d+\.\d{3,}")


def _rounded(match: re.Match[str]) -> str:
    """A coordinate with the decimals that a screen can show; a scale or matrix as it is."""
    found = match[0]
    return found if found.endswith(")") else f"{float(found):.2f}"
