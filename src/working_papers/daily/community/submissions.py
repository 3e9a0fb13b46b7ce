"""Submissions: a paper that somebody brings, by its arXiv id or by hand; one that is here already is shown instead."""

from __future__ import annotations

import datetime as dt
import logging
import re
import threading
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from sqlalchemy import Engine, func, insert, select

from working_papers.daily.catalogue import (
    DISTINCTIVE_TITLE,
    PAPERS,
    CatalogueWriter,
    StoredPaper,
    get_paper,
    papers_by_numbers,
    room_links,
)
from working_papers.daily.community.models import SubmissionRow
from working_papers.daily.records import (
    BadRecord,
    PaperRecord,
    SourceError,
    arxiv_id,
    one_line,
    shorten,
    title_hash,
    title_key,
)
from working_papers.daily.search import IndexDamaged, SearchIndex
from working_papers.daily.search.catalogue import newest_revision
from working_papers.daily.search.index import indexed_through
from working_papers.daily.sources.arxiv import DELAY, read_arxiv
from working_papers.database import now, reading
from working_papers.errors import UserError

if TYPE_CHECKING:
    from working_papers.config import Settings

SAME = 0.92
"""Titles that are at least so similar are taken for one: a colon more, a word less, a slip of the pen."""

CANDIDATES = 10
LONGEST_TITLE = 300
LONGEST_ABSTRACT = 10_000
LONGEST_ADDRESS = 500
MOST_AUTHORS = 200
LONGEST_AUTHOR = 100

ARXIV_SECONDS = DELAY
"""Between two questions to arXiv of this process."""

PATIENCE = 15.0
"""Seconds that a reader waits for others' questions to arXiv."""

INDEX_PATIENCE = 3.0
"""Seconds that a reader waits for another writer of the search index."""

INDEX_BEHIND = 5_000
"""Papers that the index may be behind for a reader to wait for them; more is left to the background process."""

_NUMERAL = re.compile(r"\d+|\b(?=[ivx])x{0,3}(?:ix|iv|v?i{0,3})\b")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """What came of a submission.

    Attributes:
        paper: the paper.
        new: whether it was not here before.
        certain: whether it surely is the paper that was meant; else only their titles are nearly the same, and
            nothing has been done.
    """

    paper: StoredPaper
    new: bool
    certain: bool = True


# Duplicates -------------------------------------------------------------------------------------------------------


def similar_titles(one: str, other: str) -> bool:
    """Whether two titles are the same but for case, punctuation, a small word or a slip of the pen.

    Their numbers must be the same, Roman ones included: a second part is another paper.
    """
    first, second = title_key(one), title_key(other)
    if first == second:
        return True
    if _NUMERAL.findall(one.casefold()) != _NUMERAL.findall(other.casefold()):
        return False
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return matcher.quick_ratio() >= SAME and matcher.ratio() >= SAME


def find_duplicate(
    engine: Engine, index: SearchIndex | None, title: str, authors: Collection[str] = (), arxiv: str | None = None
) -> Submitted | None:
    """The paper that is here already: with that id, that title, or nearly that title.

    Args:
        engine: the database.
        index: finds titles that are nearly the same; without it only the same ones are found.
        title: the title.
        authors: names; where none of them is among the other's, the two are not surely one.
        arxiv: the arXiv id. Two papers with different ids are two, however alike their titles are.
    """
    if arxiv is not None:
        known = get_paper(engine, arxiv)
        if known is not None:
            return Submitted(known, new=False)
    key = title_key(title)
    if not key:
        return None
    with reading(engine) as connection:
        same = select(PAPERS.c.number).where(PAPERS.c.title_hash == title_hash(key)).limit(50)
        candidates = papers_by_numbers(engine, list(connection.execute(same).scalars()))
    if index is not None:
        words = " ".join(re.findall(r"\w+", title))  # dashes and quotation marks would be understood as operators
        try:
            hits = index.search(words, limit=CANDIDATES).hits
            candidates += papers_by_numbers(engine, [hit.number for hit in hits])
        except IndexDamaged as error:
            logger.warning("submissions are compared by their exact titles only: %s", error)
    doubtful: Submitted | None = None
    for paper in candidates:
        if arxiv is not None and paper.arxiv is not None and paper.arxiv != arxiv:
            continue
        if not similar_titles(title, paper.title):
            continue
        whole = title_key(paper.title) == key and len(key) >= DISTINCTIVE_TITLE
        if whole or not authors or not paper.authors or not _surnames(authors).isdisjoint(_surnames(paper.authors)):
            return Submitted(paper, new=False)
        doubtful = doubtful or Submitted(paper, new=False, certain=False)
    return doubtful


def _surnames(authors: Iterable[str]) -> set[str]:
    return {key for name in authors if (key := title_key(name.rsplit(" ", 1)[-1]))}


# Submitting -------------------------------------------------------------------------------------------------------


def submit_arxiv(
    engine: Engine, settings: Settings, account_id: int, text: str, *, index: SearchIndex | None = None
) -> Submitted:
    """Bring a paper by its arXiv id or address; arXiv is asked, never the address that was typed.

    Args:
        engine: the database.
        settings: name arXiv's address and the search index.
        account_id: who brings it.
        text: the id, or the address of the paper on arXiv.
        index: the open search index, if there is one.

    Raises:
        SourceError: arXiv does not answer.
        UserError: it is no arXiv id, or arXiv has no such paper.
    """
    id = arxiv_id(text)
    if id is None:
        shown = shorten(text)
        raise UserError(f"{shown!r} is not an arXiv id such as 2510.05491, nor the address of an arXiv paper")
    known = get_paper(engine, id)
    if known is not None:
        return Submitted(known, new=False)
    records = _arxiv.ask(settings.arxiv_url, id)
    found = [record for record in records if isinstance(record, PaperRecord) and record.arxiv == id]
    if not found:
        reason = next((str(record) for record in records if isinstance(record, BadRecord)), "")
        raise UserError(f"arXiv has no paper {id}" + (f" that can be used: {reason}" if reason else ""))
    return _bring(engine, settings, account_id, "arxiv", found[0], index)


class _Arxiv:
    """Asks arXiv, one question at a time and with the pauses that its terms of use want."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._asked = float("-inf")

    def ask(self, url: str, id: str) -> list[PaperRecord | BadRecord]:
        if not self._turn.acquire(timeout=PATIENCE):
            raise SourceError("arXiv is being asked for other papers; try again in a minute")
        try:
            time.sleep(max(0.0, self._asked + ARXIV_SECONDS - time.monotonic()))
            return list(read_arxiv(url, ids=[id], delay=ARXIV_SECONDS, retries=1))
        except SourceError as error:
            logger.warning("%s", error)  # says more than a reader may know of this installation
            raise SourceError("arXiv does not answer just now; try again in a few minutes") from error
        finally:
            self._asked = time.monotonic()
            self._turn.release()


_arxiv = _Arxiv()


def submit_by_hand(
    engine: Engine,
    settings: Settings,
    account_id: int,
    *,
    title: str,
    authors: Iterable[str],
    abstract: str = "",
    address: str = "",
    published: dt.date | None = None,
    another: bool = False,
    index: SearchIndex | None = None,
) -> Submitted:
    """Bring a paper that is not on arXiv.

    Args:
        engine: the database.
        settings: name arXiv's address and the search index.
        account_id: who brings it.
        title: the title.
        authors: names in order.
        abstract: the abstract.
        address: where the paper is, http or https; shown as a link, never fetched.
        published: the day it appeared; today by default.
        another: whether it is another paper than the one of nearly the same title that is here.
        index: the open search index, if there is one.

    Raises:
        UserError: a field cannot be used; the message names it.
    """
    name = one_line(title.replace("\x00", " "))
    if not title_key(name) or len(name) > LONGEST_TITLE:
        raise UserError(f"title has 1 to {LONGEST_TITLE} characters, some of them letters, got {len(name)}")
    names = tuple(filter(None, (one_line(author.replace("\x00", " ")) for author in authors)))
    if not names or len(names) > MOST_AUTHORS:
        raise UserError(f"authors are 1 to {MOST_AUTHORS} names, one on a line, got {len(names)}")
    if any(len(author) > LONGEST_AUTHOR for author in names):
        raise UserError(f"authors: a name has at most {LONGEST_AUTHOR} characters")
    paragraphs = re.split(r"\n\s*\n", abstract.replace("\x00", " ").replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n\n".join(filter(None, map(one_line, paragraphs)))
    if len(text) > LONGEST_ABSTRACT:
        raise UserError(f"abstract has at most {LONGEST_ABSTRACT:,} characters, got {len(text):,}")
    today = now().date()
    if published is not None and not dt.date(1900, 1, 1) <= published <= today + dt.timedelta(days=1):
        raise UserError(f"date is {published}; expected a day from 1900 to today")
    url = checked_address(address)
    # What stands at an arXiv address comes from arXiv, with its own words.
    if url and arxiv_id(url) is not None:
        return submit_arxiv(engine, settings, account_id, url, index=index)
    record = PaperRecord(title=name, abstract=text, authors=names, published=published or today, url=url or None)
    return _bring(engine, settings, account_id, "submission", record, index, another=another)


def checked_address(text: str) -> str:
    """An http or https address without a password in it, or nothing.

    Raises:
        UserError: it is something else.
    """
    text = text.strip()
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username and not parts.password
        )
    except ValueError:
        usable = False
    if not usable or len(text) > LONGEST_ADDRESS or not text.isprintable() or " " in text:
        raise UserError(f"address is {shorten(text)!r}; expected one that begins with https:// or http://")
    return text


def _bring(
    engine: Engine,
    settings: Settings,
    account_id: int,
    source: str,
    record: PaperRecord,
    index: SearchIndex | None,
    *,
    another: bool = False,
) -> Submitted:
    with ExitStack() as stack:
        if index is None:
            try:
                index = stack.enter_context(closing(SearchIndex.open(settings)))
            except UserError as error:
                logger.warning("a submission cannot be searched yet: %s", error)
        _catch_up(engine, settings, index)
        known = find_duplicate(engine, index, record.title, record.authors, record.arxiv)
        if known is not None and known.certain:
            # arXiv's description joins the row of the same title; one of nearly the same would become a second row.
            same = title_key(known.paper.title) == title_key(record.title)
            if not (same and record.arxiv is not None and known.paper.arxiv is None):
                return known
        elif known is not None and record.arxiv is None and not another:
            return known
        else:
            record = replace(record, day=now().date())  # what is new here is in today's feed
        number = _write(engine, account_id, source, record)
        _catch_up(engine, settings, index)
    if number is not None:
        return Submitted(papers_by_numbers(engine, [number])[0], new=True)
    found = find_duplicate(engine, None, record.title, record.authors, record.arxiv)
    assert found is not None  # the row that the record has joined
    return found


def _write(engine: Engine, account_id: int, source: str, record: PaperRecord) -> int | None:
    """Put the paper and who brought it into the database, both or none; its number if it is new."""
    links = room_links()
    with engine.begin() as connection:
        written = CatalogueWriter(connection, source, links).write([record])
        if written.rejected:
            raise UserError(f"the paper cannot be kept: {written.rejected[0].reason}")
        if not written.new:
            return None
        number = written.numbers[-1]  # numbers are given out in order
        connection.execute(insert(SubmissionRow).values(number=number, account_id=account_id, created=now()))
        return number


def _catch_up(engine: Engine, settings: Settings, index: SearchIndex | None) -> None:
    """Make what the database has searchable at once, unless that takes longer than a reader may wait.

    The background process of `serve` does the rest.
    """
    if index is None:
        return
    try:
        behind = newest_revision(engine) - indexed_through(settings)
        if not 0 < behind <= INDEX_BEHIND:
            return
        with FileLock(settings.index_folder / "write.lock", timeout=INDEX_PATIENCE):
            pass  # nobody writes just now
        index.catch_up(engine)
    except Timeout:
        logger.info("another process writes the search index; it or the background process takes the paper in")
    except UserError as error:
        logger.warning("a submission cannot be searched yet: %s", error)


def submissions_since(engine: Engine, account_id: int, moment: dt.datetime) -> int:
    """How many papers an account has brought since a moment."""
    query = (
        select(func.count())
        .select_from(SubmissionRow)
        .where(SubmissionRow.account_id == account_id, SubmissionRow.created >= moment)
    )
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())
