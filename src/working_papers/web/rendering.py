"""Templates and static files: loaded once, served from memory."""

from __future__ import annotations

import datetime as dt
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from working_papers.web import text
from working_papers.web.parameters import address
from working_papers.web.verdicts import DECIDED, State, quantity

if TYPE_CHECKING:
    from working_papers.web.contexts import Page

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Asset:
    """A static file."""

    content: bytes
    media_type: str
    version: str


@cache
def assets() -> dict[str, Asset]:
    """The static files by name."""
    found = {}
    for file in sorted((HERE / "static").iterdir()):
        content = file.read_bytes()
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        found[file.name] = Asset(content, media_type, hashlib.sha256(content).hexdigest()[:12])
    return found


def asset_address(name: str) -> str:
    """Address of a static file that changes when the file does."""
    return f"/static/{name}?v={assets()[name].version}"


def long_date(day: dt.date) -> str:
    """7 October 2025."""
    return f"{day.day} {day:%B %Y}"


def time_tag(day: dt.date | dt.datetime) -> Markup:
    """A date in words, and for machines."""
    if isinstance(day, dt.datetime):
        shown = f"{long_date(day)}, {day:%H:%M} UTC"
        return Markup('<time datetime="{}">{}</time>').format(day.isoformat(timespec="seconds"), shown)
    return Markup('<time datetime="{}">{}</time>').format(day.isoformat(), long_date(day))


def thousands(number: int) -> str:
    """3 012 450, with narrow spaces."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


@cache
def environment() -> Environment:
    """The templates, with what they may call."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        prose=text.prose,
        inline=lambda value: text.prose(value, links=False),
        time=time_tag,
        long_date=long_date,
        thousands=thousands,
        quantity=quantity,
    )
    made.globals.update(asset=asset_address, address=address, State=State, DECIDED=DECIDED)
    return made


def render(page: Page) -> str:
    """The page as HTML."""
    return environment().get_template(page.template).render(page=page)
