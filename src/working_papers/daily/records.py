"""What a source yields, and the text, title and id rules that all sources share."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from working_papers.errors import UserError


class SourceError(UserError):
    """A source cannot be read (any further); the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class PaperRecord:
    """A paper as one source describes it. What the source does not know stays at its default.

    Attributes:
        title: on one line.
        line: where the record begins in the source's file, from 1.
        arxiv: arXiv id without version.
        authors: names, first name first, in order.
        author_count: 0 when not known; sources that name the authors may leave it.
        published: when the paper first appeared.
        day: the feed day the source itself puts the paper under; left out, the day of `published` counts.
        fallback_day: the feed day if nobody knows any date.
        comment_count: readers' comments on the source's page.
    """

    title: str
    line: int | None = None
    arxiv: str | None = None
    abstract: str = ""
    authors: tuple[str, ...] = ()
    author_count: int = 0
    published: dt.date | None = None
    day: dt.date | None = None
    fallback_day: dt.date | None = None
    updated: dt.date | None = None
    categories: tuple[str, ...] = ()
    comment_count: int | None = None
    upvotes: int | None = None
    url: str | None = None
    doi: str | None = None
    journal: str | None = None
    summary: str = ""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used: the line it begins on, from 1 where lines are known, and why."""

    line: int | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.line is None else f"line {self.line}: {self.reason}"


MONTHS = {
    name: number
    for number, names in enumerate(
        (
            ("jan", "january"),
            ("feb", "february"),
            ("mar", "march"),
            ("apr", "april"),
            ("may",),
            ("jun", "june"),
            ("jul", "july"),
            ("aug", "august"),
            ("sep", "sept", "september"),
            ("oct", "october"),
            ("nov", "november"),
            ("dec", "december"),
        ),
        start=1,
    )
    for name in names
}
"""English month names, short and long, in lower case."""


def shorten(text: str, width: int = 80) -> str:
    """The text on one line, cut for a message."""
    text = " ".join(text[: 4 * width].split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


# Identity ---------------------------------------------------------------------------------------------------------

_NEW_ID = re.compile(r"(\d{2})(\d{2})\.(\d{4,5})(?:v\d+)?")
_OLD_ID = re.compile(r"([a-z-]+)(?:\.[A-Za-z]{2})?/(\d{2})(\d{2})(\d{3})(?:v\d+)?", re.IGNORECASE)
_ID_PREFIX = re.compile(
    r"(?:https?://)?(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html|ps|format)/|arxiv:\s*|"
    r"(?:https?://(?:dx\.)?doi\.org/)?10\.48550/arxiv\.",
    re.IGNORECASE,
)


def arxiv_id(text: str) -> str | None:
    """The arXiv id in the form used as a paper's id: no prefix, no version, no subject class.

    Args:
        text: an id as people write it: '2510.05491', 'arXiv:2510.05491v2', 'https://arxiv.org/abs/math.GT/0309136',
            or arXiv's own DOI.

    Returns:
        '2510.05491', 'math/0309136', or None if the text is not an arXiv id. Ids of 2015 and later have five digits
        after the point, earlier ones four (arXiv's identifier scheme).
    """
    text = text.strip()
    prefix = _ID_PREFIX.match(text)
    if prefix is not None:
        text = text[prefix.end() :]
        text = text.split("?")[0].split("#")[0].removesuffix(".pdf").rstrip("/")
    found = _NEW_ID.fullmatch(text)
    if found is not None and text.isascii():
        year, month, number = found.groups()
        if not ("01" <= month <= "12") or len(number) != (5 if year >= "15" else 4) or year + month < "0704":
            return None
        return f"{year}{month}.{number}"
    found = _OLD_ID.fullmatch(text)
    if found is not None and text.isascii():
        archive, year, month, number = found.groups()
        return f"{archive.lower()}/{year}{month}{number}" if "01" <= month <= "12" else None
    return None


def arxiv_url(id: str) -> str:
    """Address of the paper's page on arXiv."""
    return f"https://arxiv.org/abs/{id}"


_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/\S+)", re.IGNORECASE)


def normal_doi(text: str | None) -> str | None:
    """The first DOI of the text in lower case, without resolver; None if there is none."""
    found = _DOI.match(text.strip()) if text else None
    return found.group(1).rstrip(".,;").lower() if found else None


_NOT_IN_TITLES = {code: None for code in range(128) if not chr(code).isalnum()}


def title_key(title: str) -> str:
    """The title reduced to its letters and digits, so that case, dashes, accents and final stops do not count."""
    if not title.isascii():
        title = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", title)))
    return title.casefold().translate(_NOT_IN_TITLES)


def title_hash(key: str) -> int:
    """A signed 64-bit hash of a title key, small enough to index by the million."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def text_hash(title: str, text: str) -> str:
    """Names the text that is embedded: 32 hexadecimal digits.

    Raises:
        UnicodeEncodeError: the text holds half a surrogate pair, which no database takes.
    """
    return blake2b(f"{title}\n{text}".encode(), digest_size=16).hexdigest()


def slug(title: str) -> str:
    """A readable id made from a title: ASCII words joined by dashes, at most 80 characters, '' if none are left."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    made = ""
    for word in words:
        longer = f"{made}-{word}" if made else word[:80]
        if len(longer) > 80:
            break
        made = longer
    return made


# Text -------------------------------------------------------------------------------------------------------------

_COMBINING = {
    '"': "\N{COMBINING DIAERESIS}",
    "'": "\N{COMBINING ACUTE ACCENT}",
    "`": "\N{COMBINING GRAVE ACCENT}",
    "^": "\N{COMBINING CIRCUMFLEX ACCENT}",
    "~": "\N{COMBINING TILDE}",
    "=": "\N{COMBINING MACRON}",
    ".": "\N{COMBINING DOT ABOVE}",
    "u": "\N{COMBINING BREVE}",
    "v": "\N{COMBINING CARON}",
    "H": "\N{COMBINING DOUBLE ACUTE ACCENT}",
    "c": "\N{COMBINING CEDILLA}",
    "k": "\N{COMBINING OGONEK}",
    "r": "\N{COMBINING RING ABOVE}",
}
_LETTERS = {
    "ss": "ß",
    "o": "ø",
    "O": "Ø",
    "l": "ł",
    "L": "Ł",
    "ae": "æ",
    "AE": "Æ",
    "oe": "œ",
    "OE": "Œ",
    "aa": "å",
    "AA": "Å",
    "i": "i",
    "j": "j",
}
_ACCENT_HINT = re.compile(r"""\\(?:["'`^~=.]|[uvHckr][{\s\\]|(?:ss|ae|AE|oe|OE|aa|AA|[oOlL])(?![A-Za-z]))""")
"""Begins with a fixed character, so that the many texts with a backslash but no accent cost little."""

# Mathematics comes first, so that it is passed over whole.
_ACCENT = re.compile(
    r"""(?=[$\\{])(?:(?P<math>\$[^$]*\$)
    |\{?\\(?P<mark>["'`^~=.])\s*\{?\\?(?P<under>[A-Za-z])\}{0,2}
    |\{?\\(?P<named>[uvHckr])(?:\s*\{\\?|\s+)(?P<below>[A-Za-z])\}{0,2}
    |\{?\\(?P<letter>ss|ae|AE|oe|OE|aa|AA|[oOlL])(?![A-Za-z])(?:\{\}|\s)?\}?)""",
    re.VERBOSE,
)


def _accented(found: re.Match[str]) -> str:
    whole = found.group()
    if found["math"] is not None:
        return whole
    if found["letter"] is not None:
        made = _LETTERS[found["letter"]]
    else:
        mark = _COMBINING[found["mark"] or found["named"]]
        made = unicodedata.normalize("NFC", (found["under"] or found["below"]) + mark)
    # A closing brace that nothing here opened belongs to the text around.
    surplus = whole.count("}") - whole.count("{")
    return ("{" * -surplus if surplus < 0 else "") + made + "}" * max(surplus, 0)


def decode_accents(text: str) -> str:
    r"""Turn TeX accents outside mathematics into letters: `Schr\"odinger` becomes `Schrödinger`.

    arXiv keeps titles and abstracts as the authors typed them. Everything else, mathematics above all, stays.
    """
    return _ACCENT.sub(_accented, text) if _ACCENT_HINT.search(text) else text


def one_line(text: str) -> str:
    """All white space, no-break spaces and line breaks included, as single spaces."""
    return " ".join(text.split())


def arxiv_abstract(text: str) -> str:
    """An abstract as arXiv keeps it, unwrapped: an indented line begins a new paragraph."""
    text = text.strip()
    if "\n" not in text:
        return decode_accents(one_line(text))
    if "\n  " not in text:
        return decode_accents(one_line(text))
    return decode_accents("\n\n".join(filter(None, map(one_line, text.split("\n  ")))))


@lru_cache(maxsize=4096)
def iso_date(text: str) -> dt.date:
    """The day of an ISO 8601 date or moment ('2025-10-07', '2025-10-07T17:59:04.000Z').

    Raises:
        ValueError: it is not one.
    """
    return dt.date.fromisoformat(text[:10])
