"""Templates of e-mails. Style stands in each element: many mail programs drop style sheets."""

from __future__ import annotations

import datetime as dt
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

BADGES = {
    "holds": ("✓", "#0f766e", "#ecfdf5"),
    "does not hold": ("✗", "#b91c1c", "#fef2f2"),
    "inconclusive": ("?", "#92400e", "#fffbeb"),
}
"""Sign, ink and ground of a verdict."""


def long_date(day: dt.date) -> str:
    """7 October 2025."""
    return f"{day.day} {day:%B %Y}"


@cache
def _environment(html: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        keep_trailing_newline=True,
    )
    made.globals.update(BADGES=BADGES)
    made.filters["long_date"] = long_date
    return made


def render_mail(name: str, **words: object) -> tuple[str, str]:
    """An e-mail's plain text and its HTML, from `name.txt` and `name.html`."""
    text = _environment(False).get_template(f"{name}.txt").render(words)
    html = _environment(True).get_template(f"{name}.html").render(words)
    return text, html
