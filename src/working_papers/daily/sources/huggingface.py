"""The daily papers of the Hugging Face Hub, over its public API."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

from working_papers.daily.records import (
    BadRecord,
    PaperRecord,
    SourceError,
    arxiv_id,
    arxiv_url,
    iso_date,
    one_line,
    shorten,
)

PAGE = 100
"""The most the API gives at once."""

MOST_PAGES = 50
"""A day has one or two pages; a server that never ends is broken."""

TIMEOUT = 30.0
HEADERS = {"accept": "application/json", "user-agent": "working-papers"}


def read_huggingface(endpoint: str, day: dt.date | None = None) -> Iterator[PaperRecord | BadRecord]:
    """The daily papers of one day, or the newest ones. No token is ever sent.

    The client's own `list_daily_papers` parses the answer as it yields, and one paper with an odd date ends it for
    all; therefore this asks with the client's session (its proxies, certificates and offline switch), and reads each
    paper by itself.

    Args:
        endpoint: address of the Hub or of a server that speaks its API.
        day: the feed day; the newest papers if left out.

    Raises:
        SourceError: the server does not answer, refuses, or answers with something else than a list of papers.
    """
    seen: set[str] = set()
    for page in range(MOST_PAGES if day is not None else 1):
        items = _ask(endpoint, day, page)
        fresh = False
        for item in items:
            try:
                record = record_of(item, day)
            except ValueError as error:
                yield BadRecord(None, str(error))
                continue
            key = record.arxiv or record.title
            if key not in seen:  # a server that knows no pages gives the first one again
                seen.add(key)
                fresh = True
                yield record
        if len(items) < PAGE or not fresh:
            return


def _ask(endpoint: str, day: dt.date | None, page: int) -> list[Any]:
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    url = f"{endpoint.rstrip('/')}/api/daily_papers"
    parameters: dict[str, str | int] = {"limit": PAGE}
    if day is not None:
        parameters = {"p": page, "limit": PAGE, "date": day.isoformat()}
    try:
        # The session itself carries no token; the client's own calls add the user's.
        response = get_session().get(url, params=parameters, headers=HEADERS, timeout=TIMEOUT)
    except OfflineModeIsEnabled as error:
        raise SourceError(f"{endpoint} is not asked because HF_HUB_OFFLINE is set; unset it and try again") from error
    except Exception as error:  # the client's HTTP library, and with it the errors, differs between its versions
        raise SourceError(
            f"{endpoint} does not answer ({shorten(str(error) or type(error).__name__)}); "
            "check the network and WORKING_PAPERS_HF_ENDPOINT, then try again"
        ) from error
    if response.status_code != 200:
        raise SourceError(f"{endpoint} answered with status {response.status_code}; {_remedy(response.status_code)}")
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{endpoint} answered with something that is not JSON ({shorten(str(error))})") from error
    if not isinstance(answer, list):
        raise SourceError(f"{endpoint} answered with {shorten(repr(answer), 60)}; expected a list of papers")
    return answer


def _remedy(status: int) -> str:
    if status == 429:
        return "too many requests: try again in a few minutes"
    if status >= 500:
        return "the service is in trouble: try again later"
    if status == 400:
        return "it refuses the request: is the date one for which it has papers?"
    return "check WORKING_PAPERS_HF_ENDPOINT"


def record_of(item: Any, asked: dt.date | None = None) -> PaperRecord:
    """One paper of the answer: flat, or wrapped as {"paper": {...}, "title": ...}.

    Raises:
        ValueError: it has no title or id, or a field of the wrong kind.
    """
    if not isinstance(item, dict):
        raise ValueError(f"expected a paper, got {shorten(repr(item), 40)}")
    inner = item.get("paper")
    paper: dict[str, Any] = inner if isinstance(inner, dict) else {}
    title = one_line(_text(item.get("title") or paper.get("title"), "title"))
    if not title:
        raise ValueError("a paper without a title")
    what = shorten(title, 60)
    text_id = _text(paper.get("id") or item.get("id"), f"the id of {what!r}")
    if not text_id:
        raise ValueError(f"{what!r} has no id")
    id = arxiv_id(text_id)
    published = _day(paper.get("publishedAt") or item.get("publishedAt"), f"publishedAt of {what!r}")
    listed = (
        asked
        or _day(paper.get("submittedOnDailyAt") or item.get("submittedOnDailyAt"), f"submittedOnDailyAt of {what!r}")
        or _day(item.get("publishedAt"), f"publishedAt of {what!r}")
    )
    authors = paper.get("authors") or item.get("authors") or []
    if not isinstance(authors, list):
        raise ValueError(f"{what!r}: authors is {shorten(repr(authors), 40)}; expected a list")
    names = [author.get("name") if isinstance(author, dict) else author for author in authors]
    return PaperRecord(
        title=title,
        arxiv=id,
        abstract=one_line(_text(paper.get("summary") or item.get("summary"), f"the summary of {what!r}")),
        authors=tuple(filter(None, (one_line(_text(name, f"an author of {what!r}")) for name in names))),
        published=published,
        day=listed,
        comment_count=_count(item.get("numComments"), f"numComments of {what!r}"),
        upvotes=_count(paper.get("upvotes", item.get("upvotes")), f"upvotes of {what!r}"),
        url=arxiv_url(id) if id else None,
    )


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shorten(repr(value), 40)}; expected text")
    return value


def _day(value: Any, name: str) -> dt.date | None:
    if value is None or value == "":
        return None
    try:
        return iso_date(_text(value, name))
    except ValueError:
        raise ValueError(f"{name} is {shorten(repr(value), 40)}; expected a date") from None


def _count(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {shorten(repr(value), 40)}; expected a whole number")
    return value
