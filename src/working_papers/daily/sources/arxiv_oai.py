"""arXiv, over OAI-PMH: everything of a category that changed since a day, page by page, to go on from anywhere."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from working_papers.daily.records import (
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
from working_papers.errors import UsageError

if TYPE_CHECKING:
    import httpx

DELAY = 3.0
"""Seconds between requests, as arXiv's terms of use ask."""

RETRIES = 5
LONGEST_WAIT = 600.0
"""Seconds; who is asked to wait longer comes back another day."""

TIMEOUT = 120.0
LARGEST_PAGE = 64 * 2**20
"""Bytes of one answer, unpacked; arXiv's pages have a few million."""

PHYSICS = {
    "astro-ph",
    "cond-mat",
    "gr-qc",
    "hep-ex",
    "hep-lat",
    "hep-ph",
    "hep-th",
    "math-ph",
    "nlin",
    "nucl-ex",
    "nucl-th",
    "physics",
    "quant-ph",
}
"""Archives that arXiv groups under physics; every other one is a group of its own."""

_OAI = "{http://www.openarchives.org/OAI/2.0/}"
_ARXIV = "{http://arxiv.org/OAI/arXiv/}"


class TokenRefused(SourceError):
    """The place where a harvest stopped is no longer known to arXiv; it has to begin again from its first day."""


@dataclass(frozen=True)
class Page:
    """One answer.

    Attributes:
        records: its papers, and what could not be read.
        token: where the next page begins; empty on the last one.
        day: arXiv's own date of the answer.
    """

    records: tuple[PaperRecord | BadRecord, ...]
    token: str
    day: dt.date


def category_set(category: str) -> str:
    """The OAI-PMH set of a category: 'cs.LG' is 'cs:cs:LG', 'hep-th' is 'physics:hep-th'.

    Raises:
        UsageError: it is not written like a category.
    """
    archive, _, subject = category.partition(".")
    if not all(part.replace("-", "").isalpha() and part.isascii() for part in (archive, subject or "x")):
        raise UsageError(f"{category!r} is not an arXiv category such as cs.LG")
    group = "physics" if archive in PHYSICS else archive
    return ":".join([group, archive, *([subject] if subject else [])])


def read_pages(
    url: str,
    category: str,
    first: dt.date,
    *,
    token: str = "",
    delay: float = DELAY,
    retries: int = RETRIES,
    stop: threading.Event | None = None,
) -> Iterator[Page]:
    """The papers of a category whose records changed on or after a day.

    Args:
        url: address of the service.
        category: such as 'cs.LG'.
        first: day of the change (not of the submission), in UTC.
        token: go on from here, in place of beginning at the first day.
        delay: seconds between two requests.
        retries: how often a failed request is made again; where the service names a time to wait, it is kept.
        stop: set when the reader wants to end; the reading ends before the next request.

    Raises:
        UsageError: the category is not well formed.
        TokenRefused: the token is no longer valid.
        SourceError: arXiv does not answer, refuses, or answers with something else.
    """
    import httpx

    begin = {"verb": "ListRecords", "metadataPrefix": "arXiv", "set": category_set(category), "from": first.isoformat()}
    waiter = stop or threading.Event()
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers={"user-agent": "working-papers"}) as client:
        asked = 0.0
        while True:
            if waiter.wait(max(0.0, asked + delay - time.monotonic())):
                return
            parameters = {"verb": "ListRecords", "resumptionToken": token} if token else begin
            content = _ask(client, url, parameters, retries, delay, waiter)
            if content is None:
                return
            asked = time.monotonic()
            page = _page(url, content)
            yield page
            token = page.token
            if not token:
                return


def _ask(
    client: httpx.Client, url: str, parameters: dict[str, str], retries: int, delay: float, stop: threading.Event
) -> bytes | None:
    """One answer; None when stopped while waiting."""
    import httpx

    for attempt in range(retries + 1):
        wait = delay * 2**attempt
        trouble: Exception | None = None
        try:
            with client.stream("GET", url, params=parameters) as response:
                status = response.status_code
                if status == httpx.codes.OK:
                    return _limited(url, response)
                named = response.headers.get("retry-after", "")
                if named.isdecimal():
                    wait = max(delay, float(named))
            said = f"answered with status {status}"
            hopeless = status < 500 and status != 429
        except httpx.HTTPError as error:
            said, hopeless, trouble = f"does not answer ({shorten(str(error) or type(error).__name__)})", False, error
        if hopeless or attempt == retries or wait > LONGEST_WAIT:
            remedy = "check WORKING_PAPERS_ARXIV_OAI_URL" if hopeless else "the next ingest goes on from here"
            raise SourceError(f"arXiv ({url}) {said}; {remedy}") from trouble
        if stop.wait(wait):
            return None
    raise AssertionError("unreachable")


def _limited(url: str, response: httpx.Response) -> bytes:
    """The body, unless it is far larger than any real one (a packed answer may unfold to anything)."""
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > LARGEST_PAGE:
            raise SourceError(f"arXiv ({url}) answered with more than {LARGEST_PAGE >> 20} MiB; check the address")
        parts.append(part)
    return b"".join(parts)


def _page(url: str, content: bytes) -> Page:
    if b"<!DOCTYPE" in content[:1000] or b"<!ENTITY" in content:
        raise SourceError(
            f"arXiv ({url}) answered with something that is no OAI-PMH; check WORKING_PAPERS_ARXIV_OAI_URL"
        )
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding that is none
        raise SourceError(
            f"arXiv ({url}) answered with broken XML ({error}); the next ingest goes on from here"
        ) from error
    if root.tag != f"{_OAI}OAI-PMH":
        raise SourceError(
            f"arXiv ({url}) answered with something that is no OAI-PMH; check WORKING_PAPERS_ARXIV_OAI_URL"
        )
    moment = (root.findtext(f"{_OAI}responseDate") or "").strip()
    try:
        day = dt.date.fromisoformat(moment[:10])
    except ValueError as error:
        raise SourceError(f"arXiv ({url}) answered with the date {shorten(moment, 40)!r}; try again later") from error
    for error_ in root.findall(f"{_OAI}error"):
        code, said = error_.get("code", ""), shorten(one_line(error_.text or ""), 200)
        if code == "noRecordsMatch":
            return Page((), "", day)
        kind = TokenRefused if code == "badResumptionToken" else SourceError
        raise kind(f"arXiv ({url}) refuses the request: {code}: {said}")
    listed = root.find(f"{_OAI}ListRecords")
    if listed is None:
        raise SourceError(f"arXiv ({url}) answered without any list of records; try again later")
    records = tuple(record for each in listed.findall(f"{_OAI}record") if (record := _record(each)) is not None)
    return Page(records, (listed.findtext(f"{_OAI}resumptionToken") or "").strip(), day)


def _record(element: ElementTree.Element) -> PaperRecord | BadRecord | None:
    """A paper; None for one that arXiv has taken away."""
    header = element.find(f"{_OAI}header")
    name = shorten(one_line((header.findtext(f"{_OAI}identifier") if header is not None else "") or "a record"), 80)
    if header is not None and header.get("status") == "deleted":
        return None
    described = element.find(f"{_OAI}metadata/{_ARXIV}arXiv")
    if described is None:
        return BadRecord(None, f"{name}: there is no description in arXiv's format")

    def field(tag: str) -> str:
        return one_line(described.findtext(f"{_ARXIV}{tag}") or "")

    id = arxiv_id(field("id"))
    if id is None:
        return BadRecord(None, f"{name}: {shorten(field('id'), 40)!r} is not an arXiv id")
    if not field("title"):
        return BadRecord(None, f"{name}: title is missing")
    try:
        created = iso_date(field("created"))
        updated = iso_date(field("updated")) if field("updated") else created
    except ValueError as error:
        return BadRecord(None, f"{name}: {shorten(str(error))}")
    return PaperRecord(
        title=decode_accents(field("title")),
        arxiv=id,
        abstract=arxiv_abstract(described.findtext(f"{_ARXIV}abstract") or ""),
        authors=tuple(filter(None, map(_author, described.iterfind(f"{_ARXIV}authors/{_ARXIV}author")))),
        published=created,
        updated=updated,
        categories=tuple(field("categories").split()),
        url=arxiv_url(id),
        doi=field("doi") or None,
        journal=field("journal-ref") or None,
    )


def _author(element: ElementTree.Element) -> str:
    parts = (element.findtext(f"{_ARXIV}{tag}") or "" for tag in ("forenames", "keyname", "suffix"))
    return decode_accents(one_line(" ".join(parts)))
