"""BibTeX entries of papers."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Iterable
from typing import Protocol

_ARXIV = re.compile(r"^(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Za-z]{2})?/\d{7})$")
_COMMON = re.compile("a|an|the|on|of|for|in|to|and|with|via|from|is|are|towards?|how|what|why|do|does")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


class Citable(Protocol):
    """What an entry is made from."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def authors(self) -> tuple[str, ...]: ...
    @property
    def author_count(self) -> int: ...
    @property
    def published(self) -> dt.date | None: ...
    @property
    def doi(self) -> str: ...
    @property
    def venue(self) -> str: ...
    @property
    def link(self) -> str: ...


def arxiv_id(paper_id: str) -> str | None:
    """The id if it is an arXiv id, else None (papers without one have a slug)."""
    return paper_id if _ARXIV.match(paper_id) else None


def bibtex(papers: Iterable[Citable]) -> str:
    """Entries for all the papers, each with a key of its own."""
    taken: set[str] = set()
    entries = []
    for paper in papers:
        base = key = citation_key(paper)
        suffix = 0
        while key in taken:
            suffix += 1
            key = f"{base}{_letters(suffix)}"
        taken.add(key)
        entries.append(_entry(paper, key))
    return "\n".join(entries)


def citation_key(paper: Citable) -> str:
    """First author's family name, year, first telling word of the title: `li2025normuon`."""
    family = paper.authors[0].split()[-1] if paper.authors and paper.authors[0].split() else "anonymous"
    words = [_ascii(word) for word in re.split(r"[\s:/–—-]+", paper.title)]
    word = next((word for word in words if word and not _COMMON.fullmatch(word)), "")
    year = str(paper.published.year) if paper.published else ""
    return f"{_ascii(family) or 'anonymous'}{year}{word}"


def _letters(number: int) -> str:
    """1 → a, 26 → z, 27 → aa."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _ascii(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())


def _entry(paper: Citable, key: str) -> str:
    arxiv = arxiv_id(paper.id)
    authors = [_escape(name) for name in paper.authors]
    if len(authors) < paper.author_count and authors:
        authors.append("others")
    fields = {
        "title": f"{{{_escape(paper.title)}}}",  # a second pair of braces keeps the capitals
        "author": " and ".join(authors),
        "year": str(paper.published.year) if paper.published else "",
        "month": _MONTHS[paper.published.month - 1] if paper.published else "",
        "note": _escape(paper.venue),
        "eprint": arxiv or "",
        "archiveprefix": "arXiv" if arxiv else "",
        "doi": paper.doi,
        "url": f"https://arxiv.org/abs/{arxiv}" if arxiv else paper.link,
    }
    lines = [
        f"  {name} = {value}," if name == "month" else f"  {name} = {{{value}}},"
        for name, value in fields.items()
        if value
    ]
    return "@misc{" + key + ",\n" + "\n".join(lines) + "\n}\n"


def _escape(text: str) -> str:
    """Escape what LaTeX would take for a command, outside formulas; drop braces that do not match."""
    parts = re.split(r"(\$[^$]*\$)", " ".join(text.split()))
    text = "".join(
        part
        if part.startswith("$") and part.endswith("$") and len(part) > 1
        else re.sub(r"(?<!\\)([&%#_$])", r"\\\1", part)
        for part in parts
    )
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            break
    return text if depth == 0 else text.replace("{", "").replace("}", "")
