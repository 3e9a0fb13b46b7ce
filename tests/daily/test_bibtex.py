"""BibTeX files."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from working_papers.daily.records import BadRecord, PaperRecord, SourceError
from working_papers.daily.sources.bibtex import parse_bibtex, read_bibtex

FILE = r"""
@string{jmlr = "Journal of Machine Learning Research"}

@article{erdos59,
  author    = {Erd{\H{o}}s, P{\'a}l and R{\'e}nyi, Alfr{\'e}d and others},
  title     = {On {Random} Graphs: 50% of $G_{n,p}$ \& More},
  journal   = jmlr,
  year      = 1959,
  month     = nov,
  doi       = {https://doi.org/10.5486/PMD.1959.6.3-4.12},
  abstract  = {A graph with
               many edges -- at 50% density.}
}

@misc{muon,
  author = "Zichong Li and {The Example Team}",
  title = "A Preprint",
  year = "2025", month = "10", day = 7,
  eprint = {2510.05491v2}, archivePrefix = {arXiv}, primaryClass = {cs.LG}
}

@comment{not an entry}

@article{journalarxiv, title={Told by the Journal}, journal={arXiv preprint arXiv:1706.03762}, year={2017}}
@article{byurl, title={Told by the Address}, url={http://arxiv.org/abs/cs/0112017v1}, date={2001-12-18}}
@article{bydoi, title={Told by the DOI}, doi={10.48550/arXiv.2101.00001}, year={2021}, month={January 3}}
@book{plain, title={A Plain Book}, url={https://example.org/book}, year={in press}}
"""


def records(text: str) -> list[PaperRecord]:
    found = list(parse_bibtex(text))
    assert all(isinstance(record, PaperRecord) for record in found), found
    return [record for record in found if isinstance(record, PaperRecord)]


def test_entries() -> None:
    erdos, muon, by_journal, by_url, by_doi, plain = records(FILE)
    assert erdos == PaperRecord(
        title="On Random Graphs: 50% of $G_{n,p}$ & More",
        line=4,
        abstract="A graph with many edges – at 50% density.",
        authors=("Pál Erdős", "Alfréd Rényi"),
        published=dt.date(1959, 11, 1),
        doi="10.5486/pmd.1959.6.3-4.12",
        journal="Journal of Machine Learning Research",
    )
    assert (muon.arxiv, muon.published, muon.categories) == ("2510.05491", dt.date(2025, 10, 7), ("cs.LG",))
    assert muon.authors == ("Zichong Li", "The Example Team")
    assert muon.url == "https://arxiv.org/abs/2510.05491"
    assert (by_journal.arxiv, by_journal.journal) == ("1706.03762", None)
    assert (by_url.arxiv, by_url.published) == ("cs/0112017", dt.date(2001, 12, 18))
    assert (by_doi.arxiv, by_doi.published) == ("2101.00001", dt.date(2021, 1, 3))
    assert (plain.arxiv, plain.published, plain.url) == (None, None, "https://example.org/book")


def test_line_ends_do_not_matter() -> None:
    assert records(FILE.replace("\n", "\r\n")) == records(FILE)


def test_broken_entries_are_rejected_with_their_lines() -> None:
    text = """@article{one, title={One}}
@article{two, title={Two, never closed
@article{three, title={Three}}
@article{one, title={The Same Key}}
@article{four, title={Four}, title={Five}}
@article{five, author={No Title}}
@article{six, title={Six}, year={2001}, month={feb}, day={31}}
@article{seven, title={Seven}"""
    found = list(parse_bibtex(text))
    assert [record.title for record in found if isinstance(record, PaperRecord)] == ["One", "Three"]
    bad = [record for record in found if isinstance(record, BadRecord)]
    assert [record.line for record in bad] == [2, 4, 5, 6, 7, 8]
    assert "the title is missing" in bad[3].reason
    assert "there is no date '2001 feb 31'" in bad[4].reason


def test_thousands_of_empty_lines_do_no_harm() -> None:
    found = records("\n" * 5000 + "@misc{a, title={After a Pause}, abstract={x" + "\n" * 5000 + "y}}")
    assert (found[0].title, found[0].line, found[0].abstract) == ("After a Pause", 5001, "x y")


@pytest.mark.parametrize("text", ["", "no entries here", "{}", "@"])
def test_a_text_without_entries_is_an_error(text: str) -> None:
    with pytest.raises(SourceError, match=r"^refs\.bib holds no BibTeX entries"):
        parse_bibtex(text, name="refs.bib")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing\.bib cannot be read"):
        read_bibtex(tmp_path / "missing.bib")
    (tmp_path / "latin.bib").write_bytes(b"@misc{a,\n title={Caf\xe9}}")
    with pytest.raises(SourceError, match=r"latin\.bib is not UTF-8 text \(line 2\)"):
        read_bibtex(tmp_path / "latin.bib")


PIECES = st.sampled_from(
    [
        "@article{",
        "@string{",
        "@comment{",
        "@preamble{",
        "key",
        ",",
        " title = ",
        " author = ",
        "{",
        "}",
        '"',
        "#",
        "and",
        *("\\", "$", "%", "\n", "=", "a", "\\'", "year = 2001", "month = x", "\x00", "\\begin{x}", "@", "eprint={1.2}"),
    ]
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=60).map("".join)))
@example("@a{k, title={" + "{" * 3000 + "x" + "}" * 3000 + "}}")
@example("@a{k, title={x}, author={" + "a and " * 3000 + "}}")
@example("@string{a = b}@a{k, title = a # a}")
def test_no_text_makes_it_fail(text: str) -> None:
    try:
        found = list(parse_bibtex(text))
    except SourceError:
        return
    for record in found:
        assert isinstance(record, BadRecord) or record.title
