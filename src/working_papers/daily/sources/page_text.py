"""The text of a saved daily-papers page: what the browser gives for "select all, copy"."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from working_papers.daily.records import MONTHS, BadRecord, PaperRecord, SourceError, one_line, shorten

LONGEST_PAGE = 50_000_000
"""Characters; a page is read whole."""

LONGEST_TITLE = 250
_AUTHORS = re.compile(r"^\s*[•·*-]\s*(\d[\d,]*)\s+authors?\s*$", re.IGNORECASE)
_DOT = re.compile(r"^\s*[·•]\s*$")
_DATE = re.compile(r"^([A-Za-z]{3,9})\.? (\d{1,2})(?:, (\d{4}))?(?: (\d[\d,]*))?$")
# Ends a sentence, a bracket or an address; an abstract that ends otherwise was cut.
_FINISHED = re.compile(r"""(?:[.!?…]["'”’)\]}$]*|[)\]}$]|https?://\S+)$""")


@dataclass(frozen=True)
class _Paragraph:
    line: int
    text: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Date:
    year: int | None
    month: int
    day: int
    comments: int

    def in_year(self, year: int) -> dt.date | None:
        """The date, a missing year filled in; None if there is no such day."""
        try:
            return dt.date(self.year if self.year is not None else year, self.month, self.day)
        except ValueError:
            return None


@dataclass
class _Entry:
    line: int
    title: str
    abstract: list[str]
    authors: int = 0
    date: _Date | None = None
    trouble: str | None = None


def read_page(
    path: Path, *, year: int | None = None, today: dt.date | None = None
) -> Iterator[PaperRecord | BadRecord]:
    """The papers of a saved page.

    Raises:
        SourceError: the file cannot be read, is not text, or holds no entries.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        page = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{path} is not UTF-8 text (line {line}); save the page as UTF-8 text and try again"
        ) from error
    return parse_page(page, name=str(path), year=year, today=today)


def parse_page(
    page: str, *, name: str = "the page", year: int | None = None, today: dt.date | None = None
) -> Iterator[PaperRecord | BadRecord]:
    """The papers of a page's text.

    An entry is a title, the abstract's paragraphs, '• N authors', '·' and a date that may end in the number of
    comments ('Mar 12, 2024 4'). Entries may lack all that follows the abstract; such a paper has no date of its own
    and takes the page's day in the feed. The page's head ends with the page's own day ('Nov 6'), if it has one.

    The site leaves out the year of dates of the current year, and only of those. So the page is younger than every
    year that is written out: its year is the one after the newest of these (the year before, should a date then lie
    in the future), or without any the newest that puts no date into the future. The year can lie later still if the
    page lists no paper of the year before; `year` settles it.

    Args:
        page: the text; any kind of line ends.
        name: what to call the page in messages.
        year: the year of dates without one.
        today: the day of the import, by default today.

    Raises:
        SourceError: the text has no entries.
        ValueError: the year is not one of the calendar.
    """
    if year is not None and not dt.MINYEAR <= year <= dt.MAXYEAR:
        raise ValueError(f"year is {year}; expected {dt.MINYEAR} to {dt.MAXYEAR}")
    if len(page) > LONGEST_PAGE:
        raise SourceError(f"{name} is longer than {LONGEST_PAGE:,} characters; it is no saved daily-papers page")
    day, paragraphs = _head(_paragraphs(page))
    entries = list(_entries(paragraphs))
    if not any(entry.authors for entry in entries):
        raise SourceError(
            f"{name} has no entries of a daily-papers page (a title, an abstract, '• 5 authors', a date); "
            "open the page in a browser, select all, copy, and save that as text"
        )
    dates = [entry.date for entry in entries if entry.date is not None]
    assumed = year if year is not None else page_year([*dates, *([day] if day else [])], today or dt.date.today())
    return _records(entries, day, assumed)


def page_year(dates: Sequence[_Date], today: dt.date) -> int:
    """The year of dates without one; the rule is told in `parse_page`."""
    written = [date.year for date in dates if date.year is not None]
    bare = [date for date in dates if date.year is None]
    newest = today.year
    while newest > today.year - 1 and any((date.in_year(newest) or today) > today for date in bare):
        newest -= 1
    return min(max(written) + 1, newest) if written else newest


def _paragraphs(page: str) -> list[_Paragraph]:
    found: list[_Paragraph] = []
    lines: list[str] = []
    start = 0
    for number, line in enumerate([*page.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""], start=1):
        line = one_line(line)
        if line:
            start = start if lines else number
            lines.append(line)
        elif lines:
            found.append(_Paragraph(start, " ".join(lines), tuple(lines)))
            lines = []
    return found


def _date(text: str) -> _Date | None:
    found = _DATE.match(text)
    month = MONTHS.get(found[1].lower()) if found else None
    if found is None or month is None:
        return None
    year = int(found[3]) if found[3] else None
    date = _Date(year, month, int(found[2]), int((found[4] or "0").replace(",", "")))
    # 2000 stands for "some leap year": whether the page's year has a 29 February is seen later.
    return date if date.in_year(2000) else None


def _head(paragraphs: list[_Paragraph]) -> tuple[_Date | None, list[_Paragraph]]:
    """The page's day and what follows it; without a day, everything."""
    for index, paragraph in enumerate(paragraphs):
        if any(_AUTHORS.match(line) for line in paragraph.lines):
            break
        date = _date(paragraph.text)
        if date is not None and not date.comments:
            return date, paragraphs[index + 1 :]
    return None, paragraphs


def _entries(paragraphs: Sequence[_Paragraph]) -> Iterator[_Entry]:
    """Cut the page at the lines that name the number of authors; what lies between is one entry or several."""
    waiting: list[_Paragraph] = []
    index = 0
    first = True
    while index < len(paragraphs):
        paragraph = paragraphs[index]
        index += 1
        at = next((i for i, line in enumerate(paragraph.lines) if _AUTHORS.match(line)), None)
        if at is None:
            waiting.append(paragraph)
            continue
        if at:  # no empty line between the abstract and the number of authors
            lines = paragraph.lines[:at]
            waiting.append(_Paragraph(paragraph.line, " ".join(lines), lines))
        tail = [line for line in paragraph.lines[at + 1 :] if not _DOT.match(line)]
        while not tail and index < len(paragraphs) and _is_date_part(paragraphs[index]):
            # The date may stand in a paragraph of its own.
            tail = [line for line in paragraphs[index].lines if not _DOT.match(line)]
            index += 1
        found = list(_split(waiting, first))
        waiting = []
        first = False
        if not found:
            yield _Entry(
                paragraph.line, "", [], trouble="a number of authors without a title and an abstract before it"
            )
            continue
        yield from found[:-1]
        yield _finish(found[-1], paragraph.lines[at], tail, last=index >= len(paragraphs))
    for entry in _split(waiting, first):
        if not entry.abstract or not _FINISHED.search(entry.abstract[-1]):
            entry.trouble = f"{shorten(entry.title)!r} breaks off: the page ends in the middle of the entry"
        yield entry


def _is_date_part(paragraph: _Paragraph) -> bool:
    rest = [line for line in paragraph.lines if not _DOT.match(line)]
    return not rest or (len(rest) == 1 and _date(rest[0]) is not None)


def _finish(entry: _Entry, authors: str, tail: Sequence[str], *, last: bool) -> _Entry:
    """Fill in what stands below the abstract."""
    found = _AUTHORS.match(authors)
    entry.authors = int(found[1].replace(",", "")) if found else 0
    if tail:
        entry.date = _date(tail[0])
        if entry.date is None or len(tail) > 1:
            entry.trouble = (
                f"{shorten(entry.title)!r}: {shorten(' '.join(tail), 40)!r} is not a date such as 'Mar 12, 2024 4'"
            )
    elif last:
        entry.trouble = f"{shorten(entry.title)!r} breaks off: the page ends before its date"
    return entry


def _split(paragraphs: Sequence[_Paragraph], first: bool) -> Iterator[_Entry]:
    """One entry and those before it that lack number of authors and date.

    The first paragraph is a title (after a page's head, the last that looks like one). A later one is a title if it
    looks like one, something follows it, and the abstract before it has ended.
    """
    entry: _Entry | None = None
    for index, paragraph in enumerate(paragraphs):
        text = paragraph.text
        follows = index + 1 < len(paragraphs)
        title = _looks_like_title(text) and follows and not _looks_like_title(paragraphs[index + 1].text)
        if entry is None:
            if first and not title and any(_looks_like_title(later.text) for later in paragraphs[index + 1 : -1]):
                continue  # the page's head: menus, a subscription form
            entry = _Entry(paragraph.line, text, [])
        elif title and entry.abstract and _FINISHED.search(entry.abstract[-1]):
            yield entry
            entry = _Entry(paragraph.line, text, [])
        else:
            entry.abstract.append(text)
    if entry is not None:
        yield entry


def _looks_like_title(text: str) -> bool:
    return len(text) <= LONGEST_TITLE and text[-1] not in ".,;:" and not text.startswith(("http://", "https://"))


def _records(entries: Sequence[_Entry], day: _Date | None, year: int) -> Iterator[PaperRecord | BadRecord]:
    fallback = day.in_year(year) if day else None
    for entry in entries:
        published = entry.date.in_year(year) if entry.date else None
        if entry.trouble is None and entry.date is not None and published is None:
            entry.trouble = f"{shorten(entry.title)!r}: there is no such day in {entry.date.year or year}"
        if entry.trouble is None and not entry.abstract:
            entry.trouble = f"{shorten(entry.title)!r} has no abstract"
        if entry.trouble is not None:
            yield BadRecord(entry.line, entry.trouble)
            continue
        yield PaperRecord(
            title=entry.title,
            line=entry.line,
            abstract="\n\n".join(entry.abstract),
            author_count=entry.authors,
            published=published,
            fallback_day=fallback,
            comment_count=entry.date.comments if entry.date else None,
        )
