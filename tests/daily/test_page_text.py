"""The saved page's text, on a page of our own making and on the real one where it is at hand."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Engine

from working_papers.daily.catalogue import get_paper, paper_count, papers_of_rooms
from working_papers.daily.importing import import_papers
from working_papers.daily.records import BadRecord, PaperRecord, SourceError
from working_papers.daily.sources.page_text import parse_page, read_page

TODAY = dt.date(2026, 11, 24)
PAGE = """\
new

Get the papers by e-mail!

Subscribe

Daily Papers

byThe editors

Nov 6

A First Paper: On Beginnings

We begin. The beginning is studied at length, and found to lie at the start. Code: https://example.org/begin

  • 6 authors
·
Mar 12, 2024 4

Do Questions Make Titles?

They do, and this abstract says so in two paragraphs.

The second paragraph ends here.

  • 1 authors
·
Jul 19 1

No Date: a Paper Without a Last Line

Neither the number of authors nor the date is given for this one.

The Paper After It

Its predecessor must not swallow it.

  • 1,204 authors
·
Dec 30, 2022

Last of All

This one has a date of this year.

  • 2 authors
·
Sep 5"""


def records(page: str, year: int | None = None) -> list[PaperRecord]:
    found = list(parse_page(page, year=year, today=TODAY))
    assert all(isinstance(record, PaperRecord) for record in found), found
    return [record for record in found if isinstance(record, PaperRecord)]


def test_entries_with_all_they_have() -> None:
    first, question, undated, after, last = records(PAGE)
    assert first == PaperRecord(
        title="A First Paper: On Beginnings",
        line=13,
        abstract="We begin. The beginning is studied at length, and found to lie at the start. "
        "Code: https://example.org/begin",
        author_count=6,
        published=dt.date(2024, 3, 12),
        fallback_day=dt.date(2025, 11, 6),
        comment_count=4,
    )
    assert question.title == "Do Questions Make Titles?"
    assert question.abstract.endswith("two paragraphs.\n\nThe second paragraph ends here.")
    assert (question.author_count, question.published, question.comment_count) == (1, dt.date(2025, 7, 19), 1)
    assert undated.title == "No Date: a Paper Without a Last Line"
    assert (undated.author_count, undated.published, undated.comment_count) == (0, None, None)
    assert undated.fallback_day == dt.date(2025, 11, 6)
    assert (after.title, after.author_count) == ("The Paper After It", 1204)
    assert (last.published, last.comment_count) == (dt.date(2025, 9, 5), 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.replace("\n", "\r\n"),
        lambda page: page.replace("\n", "\r"),
        lambda page: page.replace(" ", "\N{NO-BREAK SPACE}"),
        lambda page: page.replace("\n·\n", "\n\n·\n\n"),
        lambda page: page.replace("\n\n  •", "\n  •"),
        lambda page: page + "\n\n\n",
        lambda page: page.replace("\n\n", "\n \n\t\n"),
    ],
    ids=["CRLF", "CR", "no-break spaces", "dot apart", "authors close", "empty lines at the end", "blank lines"],
)
def test_white_space_does_not_matter(change: object) -> None:
    assert callable(change)
    plain, changed = records(PAGE), records(change(PAGE))
    for one, other in zip(plain, changed, strict=True):
        assert (one.title, one.abstract, one.published) == (other.title, other.abstract, other.published)
        assert (one.author_count, one.comment_count) == (other.author_count, other.comment_count)


def test_the_year_follows_the_newest_written_out() -> None:
    assert records(PAGE)[4].published == dt.date(2025, 9, 5)
    assert records(PAGE.replace("Mar 12, 2024", "Mar 12, 2025"))[4].published == dt.date(2026, 9, 5)
    # 2027 would lie in the future
    assert records(PAGE.replace("Mar 12, 2024", "Mar 12, 2026"))[4].published == dt.date(2026, 9, 5)


def test_without_any_written_year_no_date_lies_in_the_future() -> None:
    page = "Nov 6\n\nA Title\n\nAn abstract.\n\n• 2 authors\n·\nSep 5\n\nB Title\n\nAnother.\n\n• 2 authors\n·\n{}"
    assert records(page.format("Nov 20"))[0].published == dt.date(2026, 9, 5)
    assert records(page.format("Dec 20"))[0].published == dt.date(2025, 9, 5)


def test_the_year_can_be_given() -> None:
    assert records(PAGE, year=2020)[4].published == dt.date(2020, 9, 5)
    with pytest.raises(ValueError, match="year is 0"):
        parse_page(PAGE, year=0)


def test_a_page_without_head() -> None:
    page = PAGE[PAGE.index("A First Paper") :]
    assert [record.title for record in records(page)] == [record.title for record in records(PAGE)]


@pytest.mark.parametrize("cut", ["This one has a da", "Last of All\n", "  • 2 authors\n·", "  • 2 authors", "Sep"])
def test_a_truncated_last_entry_is_rejected_with_its_line(cut: str) -> None:
    at = PAGE.rindex(cut) + len(cut)
    *whole, last = parse_page(PAGE[:at], today=TODAY)
    assert [type(record) for record in whole] == [PaperRecord] * 4
    assert isinstance(last, BadRecord)
    assert last.line == PAGE[: PAGE.index("Last of All")].count("\n") + 1
    assert "'Last of All'" in last.reason


@pytest.mark.parametrize("date", ["Feb 30", "Abc 3", "Sep 5, 20", "Sep 5 1 2", "yesterday"])
def test_a_date_that_is_none_is_rejected(date: str) -> None:
    *_, last = parse_page(PAGE.replace("Sep 5", date), today=TODAY)
    assert isinstance(last, BadRecord)
    assert date in last.reason


def test_a_leap_day_needs_a_leap_year() -> None:
    page = PAGE.replace("Sep 5", "Feb 29")
    *_, last = parse_page(page, today=TODAY)
    assert isinstance(last, BadRecord)
    assert "no such day in 2025" in last.reason
    assert records(page, year=2024)[4].published == dt.date(2024, 2, 29)


@pytest.mark.parametrize("page", ["", "\n\n", "Just some words.", "A title\n\nAn abstract.", "Nov 6"])
def test_a_page_without_entries_is_an_error(page: str) -> None:
    with pytest.raises(SourceError, match=r"^notes\.txt has no entries .*; open the page in a browser"):
        parse_page(page, name="notes.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing\.txt cannot be read \(No such file"):
        read_page(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"Nov 6\n\nCaf\xe9")
    with pytest.raises(SourceError, match=r"latin\.txt is not UTF-8 text \(line 3\)"):
        read_page(tmp_path / "latin.txt")


PIECES = st.sampled_from(
    [
        "Nov 6",
        "A Title",
        "An abstract.",
        "  • 3 authors",
        "·",
        "Mar 12, 2024 4",
        "Feb 29",
        "",
        "\n",
        "\x00",
        "• 0 authors",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("\n".join), st.lists(PIECES).map("\n\n".join)))
@example("• 99999999999999999999999 authors\n·\nSep 5 99999999999999999999999")
@example("a\n\nb.\n\n• ٣ authors\n·\nSep ٥")
def test_no_text_makes_it_fail(page: str) -> None:
    try:
        found = list(parse_page(page, today=TODAY))
    except SourceError:
        return
    for record in found:
        assert isinstance(record, BadRecord) or (record.title and record.abstract)


def real_page() -> Path | None:
    given = os.environ.get("WORKING_PAPERS_PAGE")
    beside = Path(__file__).parents[3] / "shared" / "daily-papers-page.txt"
    return Path(given) if given else beside if beside.exists() else None


@pytest.mark.skipif(real_page() is None, reason="WORKING_PAPERS_PAGE does not name the real page")
def test_the_real_page_yields_its_66_papers(engine: Engine) -> None:
    path = real_page()
    assert path is not None
    found = list(read_page(path, today=TODAY))
    assert len(found) == 66
    papers = [record for record in found if isinstance(record, PaperRecord)]
    assert len(papers) == 66
    assert all(len(paper.abstract) > 1300 and paper.abstract[0].isupper() for paper in papers)
    undated = [paper for paper in papers if paper.published is None]
    assert [paper.title[:7] for paper in undated] == ["NorMuon", "Rethink"]
    assert sum(paper.author_count > 0 for paper in papers) == 64
    assert sum(paper.author_count for paper in papers) == 307
    commented = {paper.title.split(":")[0][:20]: paper.comment_count for paper in papers if paper.comment_count}
    assert commented == {
        "Motion Mamba": 4,
        "Flow Equivariant Rec": 1,
        "Diffusion Models Bea": 1,
        "FAROS": 1,
        "Stepsize anything": 2,
        "ScaleLong": 1,
    }
    assert max(paper.published for paper in papers if paper.published) == dt.date(2025, 9, 5)
    assert min(paper.published for paper in papers if paper.published) == dt.date(2015, 11, 23)

    report = import_papers(engine, "page", str(path), found)
    assert (report.got, report.new, report.rejected_count) == (66, 66, 0)
    linked = papers_of_rooms(engine)
    assert len(linked) == paper_count(engine) == 66
    assert all(paper.abstract and paper.summary for paper in linked.values())
    normuon = get_paper(engine, "normuon")
    assert normuon is not None
    assert normuon.author_count == 5
    assert import_papers(engine, "page", str(path), found).unchanged == 66
