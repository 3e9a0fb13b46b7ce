"""Imports: one row a paper whatever the sources and their order, nothing lost, nothing twice."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from working_papers.bench.rooms import rooms
from working_papers.daily import importing
from working_papers.daily.catalogue import (
    StoredPaper,
    changed_since,
    get_paper,
    last_revision,
    list_imports,
    list_rejections,
    list_topics,
    paper_count,
    papers_by_numbers,
    papers_of_rooms,
    sync_rooms,
)
from working_papers.daily.importing import ImportFailed, ImportReport, import_papers
from working_papers.daily.records import BadRecord, PaperRecord, SourceError, slug, title_key
from working_papers.database import open_database
from working_papers.errors import UserError

Record = PaperRecord | BadRecord
PAPER = PaperRecord(
    title="A Study of Studies: the First One",
    arxiv="2510.00001",
    abstract="We study studies.",
    authors=("Anna Example", "Jörg Muster"),
    published=dt.date(2025, 10, 7),
    categories=("cs.LG",),
)


def bring(engine: Engine, source: str, *records: Record) -> ImportReport:
    return import_papers(engine, source, "a test", records)


def all_papers(engine: Engine) -> list[StoredPaper]:
    return papers_by_numbers(engine, range(1, paper_count(engine) + 1))


def test_a_new_paper(engine: Engine) -> None:
    report = bring(engine, "arxiv", PAPER)
    assert (report.got, report.new, report.changed, report.unchanged, report.rejected) == (1, 1, 0, 0, [])
    paper = get_paper(engine, "2510.00001")
    assert paper is not None
    assert (paper.number, paper.title, paper.abstract) == (1, PAPER.title, PAPER.abstract)
    assert (paper.authors, paper.author_count) == (PAPER.authors, 2)
    assert (paper.published, paper.day, paper.categories) == (PAPER.published, PAPER.published, ("cs.LG",))
    assert (paper.source, paper.url) == ("arxiv", "https://arxiv.org/abs/2510.00001")
    assert (paper.comment_count, paper.upvotes, paper.room) == (0, 0, None)
    assert (len(paper.text_hash), paper.revision) == (32, 1)


def test_the_same_again_changes_nothing(engine: Engine) -> None:
    records = [dataclasses.replace(PAPER, arxiv=f"2510.{n:05}", title=f"Title number {n}") for n in range(1, 30)]
    bring(engine, "arxiv", *records)
    before = all_papers(engine)
    report = bring(engine, "arxiv", *records)
    assert (report.new, report.changed, report.unchanged) == (0, 0, 29)
    assert all_papers(engine) == before
    assert last_revision(engine) == 29


def test_a_change_moves_only_that_paper(engine: Engine) -> None:
    bring(engine, "arxiv", PAPER, dataclasses.replace(PAPER, arxiv="2510.00002"))
    old = all_papers(engine)
    report = bring(engine, "arxiv", PAPER, dataclasses.replace(PAPER, arxiv="2510.00002", abstract="New."))
    assert (report.changed, report.unchanged) == (1, 1)
    new = all_papers(engine)
    assert new[0] == old[0]
    assert new[1].abstract == "New."
    assert new[1].text_hash != old[1].text_hash
    assert [paper.number for paper in changed_since(engine, 2)] == [2]


def test_counts_change_without_a_new_text_hash(engine: Engine) -> None:
    bring(engine, "arxiv", PAPER)
    old = get_paper(engine, "2510.00001")
    bring(engine, "hf", dataclasses.replace(PAPER, upvotes=5, comment_count=2, day=dt.date(2025, 10, 9)))
    new = get_paper(engine, "2510.00001")
    assert old is not None
    assert new is not None
    assert (new.upvotes, new.comment_count, new.day) == (5, 2, dt.date(2025, 10, 9))
    assert (new.published, new.text_hash, new.source) == (old.published, old.text_hash, "arxiv")


def test_the_stronger_source_describes_and_the_weaker_fills_gaps(engine: Engine) -> None:
    bring(engine, "page", PaperRecord(title=PAPER.title, abstract="Cut short", author_count=2, comment_count=4))
    bring(engine, "arxiv", PAPER)
    bring(engine, "bibtex", PaperRecord(title=PAPER.title.upper(), doi="10.1000/A", journal="J", authors=PAPER.authors))
    (paper,) = all_papers(engine)
    assert (paper.id, paper.title, paper.abstract) == ("2510.00001", PAPER.title, PAPER.abstract)
    assert (paper.doi, paper.journal, paper.comment_count) == ("10.1000/a", "J", 4)
    assert (paper.authors, paper.day) == (PAPER.authors, PAPER.published)


SAME = {
    "page": PaperRecord(title="A study of studies – the first one.", abstract="Short.", author_count=2),
    "arxiv": dataclasses.replace(PAPER, doi="10.1000/A"),
    "bibtex": PaperRecord(title="A Different Title Altogether", doi="https://doi.org/10.1000/A"),
    "hf": dataclasses.replace(PAPER, title="A Study of Studies: The first one", upvotes=3),
}


@pytest.mark.parametrize("order", list(itertools.permutations(["page", "arxiv", "hf"])), ids="-".join)
def test_one_row_a_paper_in_any_order_of_sources(engine: Engine, order: Iterable[str]) -> None:
    for source in (*order, "bibtex"):
        bring(engine, source, SAME[source])
    (paper,) = all_papers(engine)
    assert (paper.id, paper.doi, paper.upvotes) == ("2510.00001", "10.1000/a", 3)


def test_an_id_that_was_a_slug_goes_on_leading_to_the_paper(engine: Engine) -> None:
    bring(engine, "page", SAME["page"])
    old = all_papers(engine)[0].id
    assert old == "a-study-of-studies-the-first-one"
    bring(engine, "arxiv", PAPER)
    by_old, by_new = get_paper(engine, old), get_paper(engine, "arXiv:2510.00001v3")
    assert by_old is not None
    assert by_old == by_new
    # The slug stays given away.
    bring(engine, "bibtex", PaperRecord(title="A Study of Studies: the First One", authors=("Someone Else",)))
    assert [paper.id.startswith(f"{old}-") for paper in all_papers(engine)] == [False, True]


def test_papers_of_one_title_are_told_apart(engine: Engine) -> None:
    bring(engine, "arxiv", PAPER, dataclasses.replace(PAPER, arxiv="2510.00002"))  # two arXiv ids
    bring(
        engine,
        "bibtex",
        PaperRecord(title="Introduction", authors=("A One",)),
        PaperRecord(title="Introduction", authors=("B Two",)),
        PaperRecord(title="Introduction"),  # too short a title to say which
        PaperRecord(title="A Much Longer Title Than That", doi="10.1000/1"),
        PaperRecord(title="A Much Longer Title Than That", doi="10.1000/2"),
    )
    papers = all_papers(engine)
    assert len(papers) == 7
    assert len({paper.id for paper in papers}) == 7
    assert papers[2].id == "introduction"


def test_papers_of_one_title_that_are_the_same(engine: Engine) -> None:
    bring(
        engine,
        "bibtex",
        PaperRecord(title="Introduction", authors=("A One", "B Two")),
        PaperRecord(title="INTRODUCTION.", authors=("B. Two",)),
        PaperRecord(title="A Much Longer Title Than That"),
        PaperRecord(title="A much-longer title than that", doi="10.1000/1"),
    )
    assert [paper.title for paper in all_papers(engine)] == ["INTRODUCTION.", "A much-longer title than that"]


def test_a_title_without_latin_letters(engine: Engine) -> None:
    bring(
        engine,
        "bibtex",
        PaperRecord(title="深層学習"),
        PaperRecord(title="「深層学習」", journal="J"),
        PaperRecord(title="?!"),
    )
    papers = all_papers(engine)
    assert all(paper.id.startswith("paper-") for paper in papers)
    assert len({paper.id for paper in papers}) == len(papers) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Deep Nets: A Study", "deep nets — a study."),
        ("Poincaré's Café", "Poincare\u0301's Cafe\u0301"),
        ("Über Größe", "Uber GROSSE"),
        ("A  B\N{NO-BREAK SPACE}C", "a b c"),
    ],
)
def test_titles_that_count_as_one(one: str, other: str) -> None:
    assert title_key(one) == title_key(other)


def test_slugs() -> None:
    assert slug("Don't Look: Poincaré's 2nd Law!") == "dont-look-poincares-2nd-law"
    assert slug("word " * 50) == "-".join(["word"] * 16)
    assert slug("x" * 200) == "x" * 80
    assert slug("深層") == ""


# Rooms


def test_rooms_come_without_any_import_and_only_once(engine: Engine) -> None:
    changed = sync_rooms(engine)
    assert changed == list(range(1, len(rooms()) + 1))
    assert sync_rooms(engine) == []
    linked = papers_of_rooms(engine)
    assert set(linked) == set(rooms())
    for name, room in rooms().items():
        paper = linked[name]
        assert (paper.title, paper.author_count) == (room.paper.title, room.paper.authors_count)
        assert (paper.day, paper.published) == (room.paper.first_date, room.paper.first_date)
        assert (paper.summary, paper.abstract, paper.text) == (room.paper.summary, "", room.paper.summary)
        assert paper.categories == room.paper.topics
        assert get_paper(engine, name) == paper
    assert all(get_paper(engine, room.paper.arxiv) for room in rooms().values() if room.paper.arxiv)


@pytest.mark.parametrize("rooms_first", [True, False])
def test_an_import_fills_the_rooms_row(engine: Engine, rooms_first: bool) -> None:
    room = rooms()["normuon"]
    record = PaperRecord(
        title=f"{room.paper.title.upper()}.",
        abstract="From the page.",
        comment_count=3,
        fallback_day=dt.date(2025, 11, 6),
    )
    if rooms_first:
        sync_rooms(engine)
    bring(engine, "page", record)
    sync_rooms(engine)
    assert sync_rooms(engine) == []
    assert paper_count(engine) == len(rooms())
    paper = get_paper(engine, "normuon")
    assert paper is not None
    assert (paper.id, paper.room, paper.abstract) == ("2510.05491", "normuon", "From the page.")
    assert (paper.author_count, paper.comment_count) == (5, 3)
    assert paper.published == paper.day == room.paper.first_date
    bring(engine, "arxiv", dataclasses.replace(PAPER, arxiv="2510.05491", title="Another Title"))
    after = get_paper(engine, "normuon")
    assert after is not None
    assert (after.title, after.categories) == ("Another Title", ("cs.LG", *room.paper.topics))
    assert sync_rooms(engine) == []


def test_another_arxiv_paper_with_a_rooms_title_is_another_paper(engine: Engine) -> None:
    sync_rooms(engine)
    bring(engine, "arxiv", dataclasses.replace(PAPER, title=rooms()["normuon"].paper.title))
    assert paper_count(engine) == len(rooms()) + 1
    paper = get_paper(engine, "2510.00001")
    assert paper is not None
    assert paper.room is None


def test_a_room_that_is_gone_or_has_another_id_lets_its_paper_go(engine: Engine) -> None:
    sync_rooms(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE papers SET id = '2510.99999' WHERE room = 'normuon'"))
        connection.execute(text("UPDATE papers SET room = 'no_such_room' WHERE room = 'apen'"))
    assert len(sync_rooms(engine)) == 3  # the old NorMuon, the new one, and the paper that comes back
    assert sync_rooms(engine) == []
    assert set(papers_of_rooms(engine)) == set(rooms())
    old, new = get_paper(engine, "2510.99999"), get_paper(engine, "2510.05491")
    assert old is not None
    assert new is not None
    assert (old.room, new.room) == (None, "normuon")


# What cannot be used


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (PaperRecord(title="", line=3), "the title is missing"),
        (PaperRecord(title="A\x00B", line=3), "NUL character"),
        (PaperRecord(title="A", abstract="x\x00", line=3), "NUL character"),
        (PaperRecord(title="A", authors=("x\ud800",), line=3), "half of a surrogate pair"),
        (PaperRecord(title="A", comment_count=-1, line=3), "comment count -1"),
        (PaperRecord(title="A", upvotes=2**31, line=3), "upvotes 2147483648"),
        (PaperRecord(title="A", author_count=10**30, line=3), "author count"),
    ],
)
def test_what_no_database_takes_is_rejected_and_the_rest_goes_in(
    engine: Engine, record: PaperRecord, reason: str
) -> None:
    report = bring(engine, "page", BadRecord(2, "the source's own"), record, PAPER)
    assert (report.got, report.new, report.rejected_count) == (3, 1, 2)
    assert reason in report.rejected[1].reason
    assert list_rejections(engine, report.number) == report.rejected
    assert [bad.line for bad in report.rejected] == [2, 3]


def test_only_the_first_thousand_rejections_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "KEPT_REJECTIONS", 30)
    records: list[Record] = [PAPER, *(BadRecord(line, "bad") for line in range(100))]
    report = import_papers(engine, "page", "a test", records, batch_size=17)
    assert (report.rejected_count, len(report.rejected)) == (100, 30)
    assert [bad.line for bad in list_rejections(engine, report.number)] == list(range(30))
    assert list_imports(engine)[0].rejected == 100


def test_a_source_of_nothing_but_bad_records_is_an_error_and_not_read_to_its_end(engine: Engine) -> None:
    endless = (BadRecord(line, "not JSON") for line in itertools.count(1))
    with pytest.raises(ImportFailed, match=r"^numbers holds no paper that can be read as jsonl: line 1: not JSON$"):
        import_papers(engine, "jsonl", "numbers", endless)
    assert list_imports(engine)[0].got == importing.HOPELESS


def test_a_broken_source_keeps_what_came_before(engine: Engine) -> None:
    def records() -> Iterator[Record]:
        yield PAPER
        raise SourceError("the source broke")

    with pytest.raises(ImportFailed, match="the source broke; 1 papers read before that are kept") as failed:
        import_papers(engine, "arxiv", "cs.LG", records())
    assert failed.value.report.new == 1
    (row,) = list_imports(engine)
    assert (row.source, row.asked, row.got, row.new, row.error) == ("arxiv", "cs.LG", 1, 1, "the source broke")
    assert row.finished is not None
    assert paper_count(engine) == 1


def test_an_unforeseen_error_is_recorded_and_raised(engine: Engine) -> None:
    def records() -> Iterator[Record]:
        yield PAPER
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        import_papers(engine, "arxiv", "cs.LG", records())
    (row,) = list_imports(engine)
    assert (row.new, row.error) == (0, "ZeroDivisionError: by zero")


def test_a_database_that_cannot_be_written_is_one_sentence(engine: Engine) -> None:
    def records() -> Iterator[Record]:
        yield PAPER
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE paper_topics"))

    with pytest.raises(ImportFailed, match=r"the database cannot be written .*paper_topics.* check the disk"):
        import_papers(engine, "arxiv", "cs.LG", records())
    assert paper_count(engine) == 0
    assert "paper_topics" in str(list_imports(engine)[0].error)


# Batches


def many(count: int) -> Iterator[PaperRecord]:
    for number in range(1, count + 1):
        yield dataclasses.replace(PAPER, arxiv=f"2510.{number:05}", title=f"Title number {number}")


def test_each_batch_is_told_after_it_is_committed(engine: Engine) -> None:
    told: list[int] = []
    states: list[int] = []

    def on_batch(numbers: Iterable[int]) -> None:
        told.extend(numbers)
        assert paper_count(engine) == max(told)

    import_papers(
        engine, "arxiv", "x", many(95), batch_size=20, on_batch=on_batch, on_progress=lambda r: states.append(r.got)
    )
    assert told == list(range(1, 96))
    assert states == [20, 40, 60, 80, 95]
    with pytest.raises(ValueError, match="batch_size is 0"):
        import_papers(engine, "arxiv", "x", many(1), batch_size=0)


def test_one_paper_several_times_in_a_batch(engine: Engine) -> None:
    slugged = PaperRecord(title=PAPER.title, authors=PAPER.authors)
    report = bring(engine, "bibtex", slugged, PAPER, dataclasses.replace(PAPER, doi="10.1000/A"), PAPER)
    assert (report.new, report.changed, report.unchanged) == (1, 2, 1)
    (paper,) = all_papers(engine)
    assert (paper.id, paper.doi) == ("2510.00001", "10.1000/a")
    assert list_topics(engine) == ["cs.LG"]


def test_revisions_are_unique_and_pages_of_changes_complete(engine: Engine) -> None:
    import_papers(engine, "arxiv", "x", many(50), batch_size=7)
    bring(engine, "hf", *(dataclasses.replace(record, upvotes=1) for record in itertools.islice(many(50), 0, 50, 3)))
    seen: dict[int, int] = {}
    revision = 0
    while page := changed_since(engine, revision, limit=8):
        seen |= {paper.number: paper.upvotes for paper in page}
        revision = page[-1].revision
    assert seen == {number: int(number % 3 == 1) for number in range(1, 51)}
    assert revision == last_revision(engine) == 67


def test_topics_follow_the_paper(engine: Engine) -> None:
    bring(engine, "arxiv", PAPER)
    bring(engine, "arxiv", dataclasses.replace(PAPER, categories=("cs.CV", "cs.CV", "cs.RO")))
    assert list_topics(engine) == ["cs.CV", "cs.RO"]
    bring(engine, "hf", dataclasses.replace(PAPER, day=dt.date(2025, 10, 20)))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT topic, day FROM paper_topics ORDER BY topic")).all()
    assert [(row.topic, str(row.day)) for row in rows] == [("cs.CV", "2025-10-20"), ("cs.RO", "2025-10-20")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["page", "arxiv", "bibtex", "hf"]),
            st.builds(
                PaperRecord,
                title=st.sampled_from(
                    [
                        "Alpha Beta Gamma Delta Epsilon",
                        "alpha-beta gamma delta epsilon!",
                        "Short",
                        "Ω",
                        "Other Words Here",
                    ]
                ),
                arxiv=st.sampled_from([None, "2510.00001", "2510.00002"]),
                doi=st.sampled_from([None, "10.1000/1", "10.1000/2"]),
                authors=st.sampled_from([(), ("A One",), ("B Two",)]),
                categories=st.sampled_from([(), ("cs.LG",), ("cs.LG", "cs.CV")]),
                published=st.sampled_from([None, dt.date(2025, 1, 1), dt.date(2025, 1, 2)]),
                day=st.sampled_from([None, dt.date(2025, 1, 3)]),
            ),
        ),
        max_size=12,
    )
)
def test_any_mixture_keeps_the_catalogue_consistent(engine: Engine, mixture: list[tuple[str, PaperRecord]]) -> None:
    for source, group in itertools.groupby(mixture, key=lambda pair: pair[0]):
        bring(engine, source, *(record for _, record in group))
    papers = all_papers(engine)
    assert [paper.number for paper in papers] == list(range(1, paper_count(engine) + 1))
    assert len({paper.id for paper in papers}) == len({paper.revision for paper in papers}) == len(papers)
    for _, record in mixture:
        if record.arxiv:
            assert sum(paper.id == record.arxiv for paper in papers) == 1
    with engine.connect() as connection:
        topics = {tuple(row) for row in connection.execute(text("SELECT topic, number FROM paper_topics"))}
    assert topics == {(topic, paper.number) for paper in papers for topic in paper.categories}
    for paper in papers:
        assert paper.day == (dt.date(2025, 1, 3) if paper.day.day == 3 else paper.published or paper.first_seen.date())


def test_a_killed_import_leaves_whole_batches_and_goes_on(engine: Engine) -> None:
    address = engine.url.render_as_string(hide_password=False)
    program = textwrap.dedent(
        """
        import dataclasses, os, sys, time
        from working_papers.config import load_settings
        from working_papers.daily.importing import import_papers
        from working_papers.daily.records import PaperRecord
        from working_papers.database import open_database

        def records():
            for number in range(1, 1001):
                if number == 250:
                    print("now", flush=True)
                    time.sleep(60)
                yield PaperRecord(title=f"Title number {number}", arxiv=f"2510.{number:05}")

        import_papers(open_database(load_settings()), "arxiv", "x", records(), batch_size=100)
        """
    )
    environment = {**os.environ, "WORKING_PAPERS_DATABASE": address}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert paper_count(engine) == last_revision(engine) == 200
    (killed,) = list_imports(engine)
    assert (killed.got, killed.finished, killed.error) == (200, None, None)
    report = import_papers(engine, "arxiv", "x", many(1000))
    assert (report.got, report.new) == (1000, 800)


def test_two_imports_at_once_share_the_catalogue(engine: Engine) -> None:
    import threading

    from working_papers.config import load_settings

    failures: list[BaseException] = []

    def one(start: int) -> None:
        own = open_database(load_settings())
        try:
            records = itertools.islice(many(400), start, start + 300)
            import_papers(own, "arxiv", "x", records, batch_size=25)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            own.dispose()

    threads = [threading.Thread(target=one, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    papers = all_papers(engine)
    assert len({paper.id for paper in papers}) == len(papers) == 400
    assert sum(row.new for row in list_imports(engine)) == 400


# The command line


def command(*arguments: str) -> tuple[int, str, UserError | None]:
    from working_papers.cli.app import app

    result = CliRunner().invoke(app, ["import", *arguments])
    return result.exit_code, result.stdout, result.exception if isinstance(result.exception, UserError) else None


def test_the_command_tells_what_it_did(home: Path, tmp_path: Path, database_address: str) -> None:
    file = tmp_path / "refs.bib"
    file.write_text("@misc{a, title={A Paper About Searchable Walruses}}\n@misc{b, year={2001}}\n")
    code, said, _ = command("bibtex", str(file))
    first, second = said.splitlines()
    assert code == 0
    assert first.startswith("2 papers read: 1 new, 0 changed, 1 rejected (")
    assert second == "  line 2: the entry 'b': the title is missing"
    # Searchable within the same call.
    from working_papers.config import load_settings
    from working_papers.daily.search import SearchIndex

    index = SearchIndex.open(load_settings())
    assert [hit.number for hit in index.search("walruses").hits] == [1]
    index.close()


def test_a_failed_source_ends_in_one_sentence_and_a_row(engine: Engine, tmp_path: Path) -> None:
    code, _, error = command("page", str(tmp_path / "missing.txt"))
    assert code == 1
    assert "missing.txt cannot be read (No such file or directory)" in str(error)
    (row,) = list_imports(engine)
    assert (row.source, row.got) == ("page", 0)
    assert row.error is not None


@pytest.mark.parametrize("arguments", [["arxiv"], ["arxiv", "--id", "x"], ["hf", "--date", "today"]])
def test_a_wrong_command_leaves_no_row(engine: Engine, arguments: list[str]) -> None:
    from working_papers.errors import UsageError

    _, _, error = command(*arguments)
    assert isinstance(error, UsageError)
    assert list_imports(engine) == []
