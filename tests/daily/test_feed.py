"""The feed by day, week and month."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from working_papers.daily.feed import Period, feed, period_of
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord

DAYS = ("2025-09-30", "2025-10-06", "2025-10-06", "2025-10-12", "2025-10-13", "2025-12-31", "2024-02-29")


def fill(engine: Engine) -> None:
    records = [
        PaperRecord(
            title=f"Title number {number}",
            arxiv=f"2510.{number:05}",
            published=dt.date.fromisoformat(day),
            categories=("cs.LG",) if number % 2 else ("cs.CV", "cs.LG"),
        )
        for number, day in enumerate(DAYS, start=1)
    ]
    import_papers(engine, "arxiv", "x", records)


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def test_an_empty_catalogue(engine: Engine) -> None:
    page = feed(engine)
    assert (page.papers, page.previous, page.next, page.total) == ([], None, None, 0)
    assert page.first_day == page.last_day


def test_the_newest_period_comes_first(engine: Engine) -> None:
    fill(engine)
    page = feed(engine)
    assert [paper.number for paper in page.papers] == [6]
    assert (page.first_day, page.last_day) == (day("2025-12-31"), day("2025-12-31"))
    assert (page.previous, page.next, page.total) == (day("2025-10-13"), None, 1)


@pytest.mark.parametrize(
    ("period", "start", "numbers", "first", "last", "previous", "next_"),
    [
        ("day", "2025-10-06", [2, 3], "2025-10-06", "2025-10-06", "2025-09-30", "2025-10-12"),
        ("day", "2025-10-07", [], "2025-10-07", "2025-10-07", "2025-10-06", "2025-10-12"),
        ("week", "2025-10-08", [4, 2, 3], "2025-10-06", "2025-10-12", "2025-09-29", "2025-10-13"),
        ("week", "2025-10-12", [4, 2, 3], "2025-10-06", "2025-10-12", "2025-09-29", "2025-10-13"),
        ("month", "2025-10-31", [5, 4, 2, 3], "2025-10-01", "2025-10-31", "2025-09-01", "2025-12-01"),
        ("month", "2024-02-01", [7], "2024-02-01", "2024-02-29", None, "2025-09-01"),
        ("week", "2020-01-01", [], "2019-12-30", "2020-01-05", None, "2024-02-26"),
    ],
)
def test_periods(
    engine: Engine,
    period: Period,
    start: str,
    numbers: list[int],
    first: str,
    last: str,
    previous: str | None,
    next_: str | None,
) -> None:
    fill(engine)
    page = feed(engine, period, day(start))
    assert [paper.number for paper in page.papers] == numbers
    assert page.total == len(numbers)
    assert (page.first_day, page.last_day) == (day(first), day(last))
    assert page.previous == (day(previous) if previous else None)
    assert page.next == (day(next_) if next_ else None)


def test_a_topic_has_a_feed_of_its_own(engine: Engine) -> None:
    fill(engine)
    page = feed(engine, "month", topic="cs.CV")
    assert ([paper.number for paper in page.papers], page.total) == ([6], 1)
    assert page.previous == day("2025-10-01")
    october = feed(engine, "month", page.previous, "cs.CV")
    assert [paper.number for paper in october.papers] == [4, 2]
    assert (october.previous, october.next) == (None, day("2025-12-01"))
    assert feed(engine, topic="no such topic").total == 0


def test_pages_of_a_period(engine: Engine) -> None:
    fill(engine)
    pages = [feed(engine, "month", day("2025-10-01"), limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [[paper.number for paper in page.papers] for page in pages] == [[5, 4, 2], [3], []]
    assert {page.total for page in pages} == {4}


def test_wrong_arguments(engine: Engine) -> None:
    with pytest.raises(ValueError, match="period is 'year'"):
        feed(engine, "year")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is -1"):
        feed(engine, limit=-1)


@given(st.dates(), st.sampled_from(["day", "week", "month"]))
def test_a_period_holds_its_day(start: dt.date, period: Period) -> None:
    first, last = period_of(start, period)
    assert first <= start <= last
    assert period_of(first, period) == period_of(last, period) == (first, last)


def test_no_query_reads_the_table_of_papers_as_a_whole(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("reads SQLite's plans")
    fill(engine)
    statements: list[tuple[str, object]] = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append((call[2], call[3])))
    for topic in (None, "cs.LG"):
        feed(engine, "month", topic=topic)
    asked = [(sql, values) for sql, values in statements if sql.startswith("SELECT")]
    assert len(asked) == 12
    with engine.connect() as connection:
        for sql, values in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values).all()  # type: ignore[arg-type]
            assert not [step for *_, step in plan if step.startswith("SCAN") and "INDEX" not in step], (sql, plan)
