"""BibTeX files."""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from working_papers.daily.records import (
    MONTHS,
    BadRecord,
    PaperRecord,
    SourceError,
    arxiv_id,
    arxiv_url,
    normal_doi,
    one_line,
    shorten,
)

LARGEST_FILE = 200_000_000
"""Bytes; the file is parsed whole, because its @string definitions hold from anywhere."""

_LATEX = re.compile(r"[\\{}$~%]|--|``|''")
_BARE_PERCENT = re.compile(r"(?<!\\)%")
_ARXIV_IN_TEXT = re.compile(r"arxiv[:.\s/]*(?:abs/|pdf/)?([a-z-]+(?:\.[A-Z]{2})?/\d{7}|\d{4}\.\d{4,5})", re.IGNORECASE)
_YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")


def read_bibtex(path: Path) -> Iterator[PaperRecord | BadRecord]:
    """The entries of a BibTeX file that have a title.

    Raises:
        SourceError: the file cannot be read, is not text, or is too large to be one.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SourceError(f"{path} has more than {LARGEST_FILE:,} bytes; split it")
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path} is not UTF-8 text (line {line}); convert it to UTF-8 and try again") from error
    return parse_bibtex(text, name=str(path))


def parse_bibtex(text: str, *, name: str = "the text") -> Iterator[PaperRecord | BadRecord]:
    """The entries of a BibTeX text, in its order: a record each, or a `BadRecord` for one that cannot be read.

    LaTeX accents become letters, braces go, mathematics stays. `eprint`, arXiv addresses and arXiv's own DOIs give the
    arXiv id; year, month and day give the date, the first of the year or month where the rest is missing.

    Raises:
        SourceError: the text holds no entries.
    """
    library = _parse(text.replace("\r\n", "\n").replace("\r", "\n"))
    blocks = [*library.entries, *library.failed_blocks]
    if not blocks:
        raise SourceError(f"{name} holds no BibTeX entries (such as @article{{key, title = {{...}}, ...}})")
    blocks.sort(key=lambda block: block.start_line)
    return map(_record_or_bad, blocks)


def _parse(text: str) -> Any:
    from bibtexparser.library import Library
    from bibtexparser.middlewares import (
        LatexDecodingMiddleware,
        MergeNameParts,
        RemoveEnclosingMiddleware,
        ResolveStringReferencesMiddleware,
        SeparateCoAuthors,
        SplitNameParts,
    )
    from bibtexparser.splitter import Splitter
    from pylatexenc.latex2text import LatexNodes2Text  # type: ignore[import-untyped]

    class LineByLine(Splitter):  # type: ignore[misc]
        """The parser's own step calls itself once for every line end, and fails on long runs of them."""

        def _next_mark(self, accept_eof: bool) -> Any:
            parser: Any = self
            while parser._unaccepted_mark is None:
                mark = next(parser._markiter, None)
                if mark is None:
                    break
                if mark.group(0) == "\n":
                    parser._current_line += 1
                else:
                    parser._unaccepted_mark = mark
            return super()._next_mark(accept_eof)

    class Decoder(LatexNodes2Text):  # type: ignore[misc]
        """Leaves plain text alone, and takes a bare % for a per cent sign: in a bibliography it is no comment."""

        def latex_to_text(self, latex: str, **options: Any) -> str:
            if not _LATEX.search(latex):
                return latex
            return str(super().latex_to_text(_BARE_PERCENT.sub(r"\\%", latex), **options))

    # The parser logs what it also returns as failed blocks; those are reported with their lines.
    decoder = Decoder(math_mode="verbatim", keep_comments=True)
    logger = logging.getLogger("bibtexparser")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        library = LineByLine(text).split()
        for middleware in (
            ResolveStringReferencesMiddleware(),
            RemoveEnclosingMiddleware(),
            SeparateCoAuthors(),
            SplitNameParts(),
            MergeNameParts(style="first"),
            LatexDecodingMiddleware(decoder=decoder),
        ):
            library = middleware.transform(library)
        for entry in library.entries:
            for field in entry.fields:
                if isinstance(field.value, list):  # names, which the middleware passes over
                    field.value = [decoder.latex_to_text(name) for name in field.value]
    finally:
        logger.setLevel(level)
    return library if isinstance(library, Library) else Library()


def _record_or_bad(block: Any) -> PaperRecord | BadRecord:
    line = block.start_line + 1
    if hasattr(block, "error"):
        key = getattr(block.ignore_error_block, "key", None) or getattr(block, "key", None)
        reason = getattr(block.error, "abort_reason", None) or str(block.error)
        what = f"the entry {key!r}" if key else f"the entry that begins {shorten(block.raw or '', 30)!r}"
        return BadRecord(line, f"{what} cannot be read: {shorten(reason, 200)}")
    try:
        return _record(block, line)
    except ValueError as error:
        return BadRecord(line, f"the entry {block.key!r}: {error}")


def _record(entry: Any, line: int) -> PaperRecord:
    fields = {field.key.lower(): field.value for field in entry.fields}

    def text(name: str) -> str:
        value = fields.get(name, "")
        return one_line(value if isinstance(value, str) else str(value))

    title = text("title")
    if not title:
        raise ValueError("the title is missing")
    authors = fields.get("author", [])
    names = [one_line(name) for name in authors] if isinstance(authors, list) else [text("author")]
    names = [name for name in names if name]
    if names and names[-1].lower() == "others":
        names.pop()
    id = _arxiv(text)
    url = text("url")
    journal = text("journal") or text("journaltitle") or text("booktitle")
    return PaperRecord(
        title=title,
        line=line,
        arxiv=id,
        abstract=text("abstract"),
        authors=tuple(names),
        published=_published(text("year") or text("date"), text("month"), text("day"), text("date")),
        categories=tuple(text("primaryclass").split()) if id else (),
        url=arxiv_url(id) if id else (url if url.startswith(("http://", "https://")) else None),
        doi=normal_doi(text("doi")),
        journal=None if _ARXIV_IN_TEXT.search(journal) else journal or None,
    )


def _arxiv(text: Any) -> str | None:
    archive = text("archiveprefix") or text("eprinttype")
    eprint = text("eprint")
    if eprint and archive.lower() in ("", "arxiv"):
        id = arxiv_id(eprint)
        if id is not None:
            return id
    for name in ("doi", "url"):
        id = arxiv_id(text(name)) if "arxiv" in text(name).lower() else None
        if id is not None:
            return id
    for name in ("journal", "note", "howpublished"):
        found = _ARXIV_IN_TEXT.search(text(name))
        if found:
            return arxiv_id(found[1])
    return None


def _published(year: str, month: str, day: str, date: str) -> dt.date | None:
    if re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", date):  # BibLaTeX's date, which says more than a year
        return _day(int(date[:4]), int(date[5:7]), int(date[8:10] or 1), date)
    found = _YEAR.search(year)
    if found is None:
        return None
    words = re.findall(r"[a-z]+|\d+", month.lower())
    number = next((MONTHS[word] for word in words if word in MONTHS), None)
    if number is None:
        number, inside = _small(words[0]) if words else 0, 0
    else:  # 'January 3' and '3 Jan' name a day as well
        inside = next((_small(word) for word in words if _small(word)), 0)
    if not number:
        return dt.date(int(found[1]), 1, 1)
    return _day(int(found[1]), number, _small(day) or inside or 1, one_line(f"{year} {month} {day}"))


def _small(text: str) -> int:
    """The number that is a day or month, 0 for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else 0


def _day(year: int, month: int, day: int, shown: str) -> dt.date:
    try:
        return dt.date(year, month, day)
    except ValueError:
        raise ValueError(f"there is no date {shorten(shown, 40)!r}") from None
