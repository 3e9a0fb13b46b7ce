"""arXiv, over its API: by category and dates, or by ids."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from working_papers.daily.records import (
    BadRecord,
    PaperRecord,
    SourceError,
    arxiv_abstract,
    arxiv_id,
    arxiv_url,
    decode_accents,
    one_line,
    shorten,
)
from working_papers.errors import UsageError

if TYPE_CHECKING:
    import arxiv

PAGE = 100
DELAY = 3.0
"""Seconds between requests, as arXiv's terms of use for the API ask."""

RETRIES = 3
TIMEOUT = 60.0
_ATOM = "{http://www.w3.org/2005/Atom}"
_TOTAL = "{http://a9.com/-/spec/opensearch/1.1/}totalResults"


def read_arxiv(
    url: str,
    *,
    categories: Sequence[str] = (),
    ids: Sequence[str] = (),
    first: dt.date | None = None,
    last: dt.date | None = None,
    limit: int | None = None,
    delay: float = DELAY,
    retries: int = RETRIES,
) -> Iterator[PaperRecord | BadRecord]:
    """Papers of arXiv, newest first.

    Args:
        url: address of the API.
        categories: such as 'cs.LG'; a paper in any of them counts.
        ids: arXiv ids in any spelling; in place of categories and dates.
        first: day of submission from which on, in UTC.
        last: day of submission up to which, inclusive.
        limit: at most so many papers.
        delay: seconds between two requests.
        retries: how often a failed request is made again.

    Raises:
        UsageError: neither categories nor ids are given, or both, or one is not well formed.
        SourceError: arXiv does not answer, refuses, or answers with something else than a feed.
    """
    searches = list(_searches(categories, ids, first, last))
    return _read(url, searches, limit, delay, retries)


def _searches(
    categories: Sequence[str], ids: Sequence[str], first: dt.date | None, last: dt.date | None
) -> Iterator[tuple[str, list[str]]]:
    if bool(categories) == bool(ids):
        raise UsageError("name either categories (cs.LG) or ids (2510.05491) to ask arXiv for")
    if ids:
        if first or last:
            raise UsageError("dates go with categories, not with ids")
        known = []
        for id in ids:
            canonical = arxiv_id(id)
            if canonical is None:
                raise UsageError(f"{id!r} is not an arXiv id such as 2510.05491")
            known.append(canonical)
        for at in range(0, len(known), PAGE):
            yield "", known[at : at + PAGE]
        return
    for category in categories:
        if not category.replace(".", "").replace("-", "").isalpha() or not category.isascii():
            raise UsageError(f"{category!r} is not an arXiv category such as cs.LG")
    query = " OR ".join(f"cat:{category}" for category in categories)
    if first or last:
        if first and last and first > last:
            raise UsageError(f"the first day, {first}, is later than the last, {last}")
        start = f"{first:%Y%m%d}0000" if first else "199101010000"
        end = f"{last:%Y%m%d}2359" if last else "299912312359"
        query = f"({query}) AND submittedDate:[{start} TO {end}]"
    yield query, []


def _read(
    url: str, searches: Sequence[tuple[str, list[str]]], limit: int | None, delay: float, retries: int
) -> Iterator[PaperRecord | BadRecord]:
    import arxiv
    import requests

    bad: list[BadRecord] = []
    client = _client(url, delay, retries, bad)
    left = limit
    seen: set[str] = set()
    try:
        for query, ids in searches:
            if left is not None and left <= 0:
                return
            search = arxiv.Search(
                query=query,
                id_list=ids,
                max_results=left,
                sort_by=arxiv.SortCriterion.SubmittedDate,
                sort_order=arxiv.SortOrder.Descending,
            )
            for result in client.results(search):
                if result.entry_id in seen:
                    continue  # pages overlap when papers arrive meanwhile, or after an entry that the client dropped
                seen.add(result.entry_id)
                yield _record(result)
                left = None if left is None else left - 1
            yield from dict.fromkeys(bad)
            bad.clear()
    except arxiv.HTTPError as error:
        raise SourceError(f"arXiv ({url}) answered with status {error.status}; {_remedy(error.status)}") from error
    except arxiv.UnexpectedEmptyPageError as error:
        raise SourceError(f"arXiv ({url}) stopped giving papers half-way; try again later") from error
    except requests.RequestException as error:
        raise SourceError(
            f"arXiv ({url}) does not answer ({_cause(error)}); "
            "check the network and WORKING_PAPERS_ARXIV_URL, then try again"
        ) from error


def _client(url: str, delay: float, retries: int, bad: list[BadRecord]) -> arxiv.Client:
    """arXiv's client, with a time limit and with answers checked.

    The client by itself waits for ever, reads as much of a broken feed as it can, and drops entries silently: a broken
    source would look like a quiet day.
    """
    import arxiv
    import requests
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, *arguments: Any, **options: Any) -> Any:
            options["timeout"] = options.get("timeout") or TIMEOUT
            return super().send(*arguments, **options)

    def check(response: Any, *_: Any, **__: Any) -> None:
        if response.status_code != requests.codes.ok:
            return
        feed = _checked_feed(url, response.content)
        entries = feed.findall(f"{_ATOM}entry")
        total = (feed.findtext(_TOTAL) or "0").strip()
        if not entries and total.isdecimal() and int(total) and "start=0&" in f"{response.url}&":
            # Happens on arXiv's side now and then; the client makes the request again after this error.
            raise requests.exceptions.ConnectionError(f"an empty answer, though it counts {total} papers")
        bad.extend(trouble for entry in entries if (trouble := _bad_entry(url, entry)))

    client = arxiv.Client(page_size=PAGE, delay_seconds=delay, num_retries=retries)
    client.query_url_format = f"{url.replace('{', '%7B').replace('}', '%7D')}?{{}}"
    session = client._session  # the client offers no other way to a time limit
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    session.hooks["response"].append(check)
    return client


def _checked_feed(url: str, content: bytes) -> ElementTree.Element:
    try:
        feed = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding that is none
        raise SourceError(f"arXiv ({url}) answered with broken XML ({error}); try again later") from error
    if feed.tag != f"{_ATOM}feed":
        raise SourceError(f"arXiv ({url}) answered with something that is no Atom feed; check WORKING_PAPERS_ARXIV_URL")
    return feed


def _bad_entry(url: str, entry: ElementTree.Element) -> BadRecord | None:
    """What is wrong with an entry that the client would drop, or stumble over."""
    id = (entry.findtext(f"{_ATOM}id") or "").strip()
    if "/api/errors" in id:
        said = one_line(entry.findtext(f"{_ATOM}summary") or "")
        raise SourceError(f"arXiv ({url}) refuses the request: {shorten(said, 200)}")
    name = shorten(id or one_line(entry.findtext(f"{_ATOM}title") or "") or "an entry", 80)
    for field in ("id", "published", "updated"):
        text = (entry.findtext(f"{_ATOM}{field}") or "").strip()
        if not text:
            return BadRecord(None, f"{name}: {field} is missing")
        if field != "id":
            try:
                dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
            except ValueError:
                shown = f"{name}: {field} is {shorten(text, 40)!r}"
                raise SourceError(f"arXiv ({url}) answered with a broken feed ({shown}); try again later") from None
    return None


def _record(result: arxiv.Result) -> PaperRecord | BadRecord:
    id = arxiv_id(result.entry_id)
    if id is None:
        return BadRecord(None, f"{shorten(result.entry_id)!r} is not the address of an arXiv paper")
    return PaperRecord(
        title=decode_accents(one_line(result.title)),
        arxiv=id,
        abstract=arxiv_abstract(result.summary),
        authors=tuple(filter(None, (one_line(author.name) for author in result.authors))),
        published=result.published.date(),
        updated=result.updated.date(),
        categories=tuple(result.categories),
        url=arxiv_url(id),
        doi=result.doi or None,
        journal=one_line(result.journal_ref) if result.journal_ref else None,
    )


def _remedy(status: int) -> str:
    if status == 429:
        return "too many requests: try again in a few minutes"
    if status >= 500:
        return "the service is in trouble: try again later"
    return "check what was asked for, and WORKING_PAPERS_ARXIV_URL"


def _cause(error: BaseException) -> str:
    """The innermost reason, such as 'Connection refused'."""
    reason: Any = error
    while True:
        inner = reason.args[0] if reason.args and isinstance(reason.args[0], BaseException) else None
        inner = inner or getattr(reason, "reason", None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    return shorten(str(reason) or type(reason).__name__, 120)
