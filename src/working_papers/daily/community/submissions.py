"""Submissions: a paper that somebody brings, by its arXiv id or by hand; one that is here already is shown instead."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from working_papers.daily.catalogue import PAPERS, StoredPaper, get_paper, papers_by_numbers
from working_papers.daily.community.models import SubmissionRow
from working_papers.daily.importing import import_papers, searchable
from working_papers.daily.records import BadRecord, PaperRecord, arxiv_id, one_line, title_hash, title_key
from working_papers.daily.search import IndexDamaged, SearchIndex
from working_papers.daily.sources.arxiv import read_arxiv
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


@dataclass(frozen=True)
class Submitted:
    """What came of a submission.

    Attributes:
        paper: the paper.
        new: whether it was not here before.
    """

    paper: StoredPaper
    new: bool


def find_duplicate(engine: Engine, settings: Settings, title: str, arxiv: str | None = None) -> StoredPaper | None:
    """The paper that is here already: with that id, that title, or nearly that title.

    Args:
        engine: the database.
        settings: name the search index, which finds titles like it.
        title: the title.
        arxiv: the arXiv id. Two papers with different ids are two, however alike their titles are.
    """
    if arxiv is not None:
        known = get_paper(engine, arxiv)
        if known is not None:
            return known
    key = title_key(title)
    if not key:
        return None
    with reading(engine) as connection:
        numbers = list(
            connection.execute(select(PAPERS.c.number).where(PAPERS.c.title_hash == title_hash(key)).limit(5)).scalars()
        )
    candidates = papers_by_numbers(engine, numbers)
    with suppress(IndexDamaged), closing(SearchIndex.open(settings)) as index:  # exact titles are found all the same
        index.catch_up(engine)
        candidates += papers_by_numbers(engine, [hit.number for hit in index.search(title, limit=CANDIDATES).hits])
    for paper in candidates:
        other = title_key(paper.title)
        alike = other == key or SequenceMatcher(None, key, other, autojunk=False).ratio() >= SAME
        if alike and (arxiv is None or paper.arxiv is None or paper.arxiv == arxiv):
            return paper
    return None


def submit_arxiv(engine: Engine, settings: Settings, account_id: int, text: str) -> Submitted:
    """Bring a paper by its arXiv id or address; arXiv is asked, never the address that was typed.

    Raises:
        UserError: it is no arXiv id, arXiv has no such paper, or does not answer.
    """
    id = arxiv_id(text)
    if id is None:
        shown = one_line(text)[:80]
        raise UserError(f"{shown!r} is not an arXiv id such as 2510.05491, nor the address of an arXiv paper")
    known = get_paper(engine, id)
    if known is not None:
        return Submitted(known, new=False)
    records = list(read_arxiv(settings.arxiv_url, ids=[id], delay=0.0, retries=1))
    found = [record for record in records if isinstance(record, PaperRecord)]
    if not found:
        reason = next((str(record) for record in records if isinstance(record, BadRecord)), "")
        raise UserError(f"arXiv has no paper {id}" + (f" that can be used: {reason}" if reason else ""))
    return _bring(engine, settings, account_id, "arxiv", found[0])


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
) -> Submitted:
    """Bring a paper that is not on arXiv.

    Args:
        engine: the database.
        settings: name the search index.
        account_id: who brings it.
        title: the title.
        authors: names in order.
        abstract: the abstract.
        address: where the paper is, http or https; shown as a link, never fetched.
        published: the day it appeared; today by default.

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
    text = abstract.replace("\x00", " ").strip()
    if len(text) > LONGEST_ABSTRACT:
        raise UserError(f"abstract has at most {LONGEST_ABSTRACT:,} characters, got {len(text):,}")
    today = now().date()
    if published is not None and not dt.date(1900, 1, 1) <= published <= today + dt.timedelta(days=1):
        raise UserError(f"date is {published}; expected a day from 1900 to today")
    url = checked_address(address)
    # What stands at an arXiv address comes from arXiv, with its own words.
    if url and arxiv_id(url) is not None:
        return submit_arxiv(engine, settings, account_id, url)
    record = PaperRecord(
        title=name, abstract=text, authors=names, published=published or today, day=today, url=url or None
    )
    return _bring(engine, settings, account_id, "submission", record)


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
    if (
        not usable
        or len(text) > LONGEST_ADDRESS
        or any(character.isspace() or ord(character) < 32 for character in text)
    ):
        raise UserError(f"address is {text[:80]!r}; expected one that begins with https:// or http://")
    return text


def _bring(engine: Engine, settings: Settings, account_id: int, source: str, record: PaperRecord) -> Submitted:
    known = find_duplicate(engine, settings, record.title, record.arxiv)
    if known is not None and (record.arxiv is None or known.arxiv is not None):
        return Submitted(known, new=False)
    asked = f"submitted: {record.arxiv or record.title}"
    with searchable(settings, engine, lambda _: None) as follow:
        report = import_papers(engine, source, asked[:200], [record], on_batch=follow)
    paper = find_duplicate(engine, settings, record.title, record.arxiv)
    if paper is None:
        raise UserError(f"the paper cannot be kept: {report.rejected[0] if report.rejected else 'no reason is known'}")
    insert = postgresql_insert if engine.dialect.name == "postgresql" else sqlite_insert
    with engine.begin() as connection:
        connection.execute(
            insert(SubmissionRow)
            .values(number=paper.number, account_id=account_id, created=now())
            .on_conflict_do_nothing(index_elements=["number"])
        )
    return Submitted(paper, new=bool(report.new))


def submissions_since(engine: Engine, account_id: int, moment: dt.datetime) -> int:
    """How many papers an account has brought since a moment."""
    query = (
        select(func.count())
        .select_from(SubmissionRow)
        .where(SubmissionRow.account_id == account_id, SubmissionRow.created >= moment)
    )
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())
