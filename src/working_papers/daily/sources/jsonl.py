"""arXiv's metadata snapshot: one JSON object a line, plain or compressed, from a file or standard input."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import orjson

from working_papers.daily.records import (
    MONTHS,
    BadRecord,
    PaperRecord,
    SourceError,
    arxiv_abstract,
    arxiv_id,
    arxiv_url,
    decode_accents,
    iso_date,
    one_line,
    shorten,
)

LONGEST_LINE = 1_000_000
"""Bytes; the longest record of the snapshot has a few ten thousand. Longer lines are passed over, never held."""

_CHUNK = 1 << 20


class Readable(Protocol):
    """What can be read by the chunk."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


_FLOAT_ID = re.compile(r"(\d{1,4})(?:\.(\d+))?")


def read_jsonl(path: Path, *, stdin: BinaryIO | None = None) -> Iterator[PaperRecord | BadRecord]:
    """The papers of a snapshot, as a stream in constant memory.

    Args:
        path: the file, plain or compressed by gzip or bzip2 (seen by its content); '-' for standard input.
        stdin: what to read in place of the process's standard input.

    Yields:
        A record a line; a line that is not JSON, not UTF-8, too long or lacks id or title is a `BadRecord`.

    Raises:
        SourceError: the file cannot be opened, or breaks off in the middle of its compressed data.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            yield from _records(_decompressed(stdin or sys.stdin.buffer, name))
        else:
            with path.open("rb") as file:
                yield from _records(_decompressed(file, name))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{name} is damaged or incomplete ({error}); fetch it again") from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read ({error.strerror or error})") from error


def _decompressed(file: BinaryIO, name: str) -> Readable:
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    start = buffered.peek(4)[:4]
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(buffered, "rb")
    if start.startswith(b"BZh"):
        return bz2.open(buffered, "rb")
    for magic, program in ((b"PK\x03\x04", "unzip -p"), (b"\x28\xb5\x2f\xfd", "zstd -dc"), (b"\xfd7zX", "xz -dc")):
        if start.startswith(magic):
            raise SourceError(
                f"{name} is compressed in a way that is not read here; "
                f"use `{program} FILE | working-papers import jsonl -`"
            )
    return buffered


def _lines(file: Readable) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None in place of one that is too long."""
    number = 1
    rest = b""
    skipping = False
    while chunk := file.read(_CHUNK):
        *lines, tail = chunk.split(b"\n")
        if lines:
            if skipping:
                yield number, None
            else:
                first = rest + lines[0]
                yield number, first if len(first) <= LONGEST_LINE else None
            for line in lines[1:]:
                number += 1
                yield number, line if len(line) <= LONGEST_LINE else None
            number += 1
            rest, skipping = tail, False
        elif not skipping:
            rest += tail
        if len(rest) > LONGEST_LINE:
            rest, skipping = b"", True
    if skipping:
        yield number, None
    elif rest:
        yield number, rest


def _records(file: Readable) -> Iterator[PaperRecord | BadRecord]:
    for number, line in _lines(file):
        if line is None:
            yield BadRecord(number, f"the line is longer than {LONGEST_LINE:,} bytes")
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            yield record_of(orjson.loads(line), number)
        except orjson.JSONDecodeError as error:
            yield BadRecord(number, f"not valid JSON ({error})")
        except ValueError as error:
            yield BadRecord(number, str(error))


def record_of(data: Any, line: int | None = None) -> PaperRecord:
    """The paper of one parsed line.

    Raises:
        ValueError: it has no usable id or title, or a field of the wrong kind.
    """
    if not isinstance(data, dict):
        raise ValueError(f"expected an object with id and title, got {shorten(repr(data), 40)}")
    title = decode_accents(one_line(_text(data, "title")))
    if not title:
        raise ValueError("the title is missing")
    versions = data.get("versions")
    created = None
    if isinstance(versions, list) and versions and isinstance(versions[0], dict) and versions[0].get("created"):
        created = _created(_text(versions[0], "created"))
    id = _id(data.get("id"), created)
    update_date = _text(data, "update_date")
    try:
        updated = iso_date(update_date) if update_date else None
    except ValueError:
        raise ValueError(f"update_date is {shorten(update_date, 40)!r}; expected a date such as '2019-08-26'") from None
    return PaperRecord(
        title=title,
        line=line,
        arxiv=id,
        abstract=arxiv_abstract(_text(data, "abstract")),
        authors=_authors(data),
        published=created,
        updated=updated,
        fallback_day=updated,
        categories=tuple(_text(data, "categories").split()),
        url=arxiv_url(id),
        doi=_text(data, "doi") or None,
        journal=one_line(_text(data, "journal-ref")) or None,
    )


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shorten(repr(value), 40)}; expected text")
    return value


def _id(value: Any, created: dt.date | None) -> str:
    if not isinstance(value, str | float | int) or value == "" or isinstance(value, bool):
        raise ValueError("the id is missing" if value in (None, "") else f"id is {shorten(repr(value), 40)}")
    text = value if isinstance(value, str) else repr(value)
    id = arxiv_id(text) or repaired_id(text, created)
    if id is None:
        raise ValueError(f"{shorten(text, 40)!r} is not an arXiv id")
    return id


def repaired_id(text: str, created: dt.date | None) -> str | None:
    """The arXiv id that a program turned into a floating-point number, if exactly one id reads like that number.

    Copies of the snapshot that went through a table of numbers have '1908.0988100000002' for 1908.09881, '705.1789'
    for 0705.1789 and '1709.026' for 1709.02600. How many digits belong after the point follows from the year (four
    before 2015, five since), so the id is certain; as a safeguard it must not name a month
    before the paper was submitted.

    Args:
        text: the damaged id.
        created: when the first version was submitted; without it nothing is repaired.

    Returns:
        The id, or None if the text is not the image of an id or the month lies before the submission.
    """
    found = _FLOAT_ID.fullmatch(text)
    if found is None or created is None or not text.isascii():
        return None
    month = found[1].zfill(4)
    digits = 5 if month >= "1501" else 4
    fraction = (found[2] or "").ljust(digits, "0")
    number = round(int(fraction) / 10 ** (len(fraction) - digits))
    # A double near 10,000 is off by less than 1e-11; anything more was never such an id.
    if abs(int(fraction) - number * 10 ** (len(fraction) - digits)) > 10 ** (len(fraction) - 10) or not number:
        return None
    id = arxiv_id(f"{month}.{number:0{digits}d}")
    if id is None:
        return None
    months = (2000 + int(month[:2])) * 12 + int(month[2:]) - (created.year * 12 + created.month)
    # The number is given when the paper is announced: mostly in the same month, at times many months later.
    return id if months >= 0 else None


def _created(text: str) -> dt.date:
    """The day of 'Mon, 26 Aug 2019 00:00:00 GMT'; the general parser is twenty times as slow."""
    return _created_day(text[:16], text)


@lru_cache(maxsize=65536)
def _day_of(start: str) -> dt.date | None:
    parts = start.replace(",", " ").split()
    if len(parts) == 4 and parts[1].isdecimal() and len(parts[3]) == 4 and parts[3].isdecimal():
        month = MONTHS.get(parts[2].lower())
        if month is not None:
            return dt.date(int(parts[3]), month, int(parts[1]))
    return None


def _created_day(start: str, text: str) -> dt.date:
    try:
        # A day of one digit makes the start one character longer than the date.
        return _day_of(start) or _day_of(start[:15]) or parsedate_to_datetime(text).date()
    except ValueError:
        raise ValueError(
            f"versions[0].created is {shorten(text, 40)!r}; expected a date such as 'Mon, 26 Aug 2019 00:00:00 GMT'"
        ) from None


def _authors(data: dict[str, Any]) -> tuple[str, ...]:
    """Names as 'First Last Suffix', from authors_parsed where it is usable, else from the authors' line."""
    parsed = data.get("authors_parsed")
    if isinstance(parsed, list) and parsed:
        names = []
        for parts in parsed:
            try:
                last, first, suffix = parts if len(parts) == 3 else (*parts, "", "", "")[:3]
                name = " ".join((first + " " + last + " " + suffix).split())
            except (TypeError, AttributeError):
                shown = shorten(repr(parts), 40)
                raise ValueError(f"authors_parsed holds {shown}; expected [last, first, suffix]") from None
            if name:
                names.append(name)
        return tuple(names)
    line = one_line(decode_accents(_text(data, "authors")))
    return tuple(filter(None, (name.strip() for name in re.split(r",\s+and\s+|,|\s+and\s+", line))))
