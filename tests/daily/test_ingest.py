"""The daily ingest: OAI-PMH answered by a server on this machine, places remembered, the schedule shared."""

from __future__ import annotations

import datetime as dt
import gzip
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine, select, text

from working_papers.config import Settings
from working_papers.daily.catalogue import get_paper, list_imports, paper_count
from working_papers.daily.ingest import Place, categories_of, check_settings, ingest, read_place, write_place
from working_papers.daily.records import BadRecord, PaperRecord, SourceError
from working_papers.daily.schedule import RETRIES, STALE, Daily, ScheduledRow, Scheduler, claim
from working_papers.daily.sources.arxiv_oai import TokenRefused, category_set, read_pages
from working_papers.errors import UsageError, UserError

Serve = Callable[[Callable[[str], tuple[int, bytes]]], Any]
TODAY = dt.date(2026, 3, 4)


def record(number: int, extra: str = "", title: str | None = None, id: str | None = None) -> str:
    title = f"On subject {number}:\n  a study" if title is None else title
    return f"""<record><header><identifier>oai:arXiv.org:2603.{number:05}</identifier><datestamp>2026-03-04</datestamp>
<setSpec>cs:cs:LG</setSpec></header><metadata><arXiv xmlns="http://arxiv.org/OAI/arXiv/">
<id>{id or f"2603.{number:05}"}</id><created>2026-03-0{1 + number % 3}</created><updated>2026-03-04</updated>
<authors><author><keyname>M\\"uller</keyname><forenames>Anna B.</forenames><suffix>Jr</suffix></author>
<author><keyname>Consortium</keyname></author></authors><title>{title}</title>
<categories>cs.LG stat.ML</categories><doi>10.1/{number}</doi>
<abstract>  We look at subject {number}
and find it.</abstract>{extra}</arXiv></metadata></record>"""


def answer(*records: str, token: str = "", error: str = "", day: str = "2026-03-04") -> bytes:
    listed = f"<ListRecords>{''.join(records)}<resumptionToken cursor='0'>{token}</resumptionToken></ListRecords>"
    return f"""<?xml version="1.0" encoding="UTF-8"?><OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/">
<responseDate>{day}T05:00:00Z</responseDate><request>x</request>{error or listed}</OAI-PMH>""".encode()


def asked(server: Any) -> list[dict[str, str]]:
    return [{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()} for path in server.paths]


def settings_for(settings: Settings, server: Any, **more: object) -> Settings:
    given = {"arxiv_oai_url": server.address + "/oai", "ingest_arxiv": "cs.LG", "hf_endpoint": server.address, **more}
    return settings.model_copy(update=given)


# The protocol


@pytest.mark.parametrize(
    ("category", "name"),
    [
        ("cs.LG", "cs:cs:LG"),
        ("stat.ML", "stat:stat:ML"),
        ("hep-th", "physics:hep-th"),
        ("astro-ph.GA", "physics:astro-ph:GA"),
        ("q-bio", "q-bio:q-bio"),
    ],
)
def test_categories_have_their_sets(category: str, name: str) -> None:
    assert category_set(category) == name


@pytest.mark.parametrize("category", ["", "cs LG", "cs.LG&verb=Identify", "1.2", "cs.ÄÖ"])
def test_what_is_no_category_is_refused(category: str) -> None:
    with pytest.raises(UsageError, match="is not an arXiv category such as"):
        category_set(category)


def test_pages_are_read_and_followed(serve: Serve) -> None:
    server = serve(
        lambda path: (200, answer(record(2), token="") if "resumptionToken" in path else answer(record(1), token="t|1"))
    )
    first, second = read_pages(server.address, "cs.LG", TODAY, delay=0)
    (paper,) = first.records
    assert isinstance(paper, PaperRecord)
    assert (paper.arxiv, paper.title) == ("2603.00001", "On subject 1: a study")
    assert paper.authors == ("Anna B. Müller Jr", "Consortium")
    assert paper.published == dt.date(2026, 3, 2) and paper.updated == TODAY
    assert paper.categories == ("cs.LG", "stat.ML") and paper.doi == "10.1/1"
    assert first.token == "t|1" and second.token == "" and second.day == TODAY
    begin, follow = asked(server)
    assert begin == {"verb": "ListRecords", "metadataPrefix": "arXiv", "set": "cs:cs:LG", "from": "2026-03-04"}
    assert follow == {"verb": "ListRecords", "resumptionToken": "t|1"}


def test_bad_and_deleted_records_are_told_apart(serve: Serve) -> None:
    deleted = '<record><header status="deleted"><identifier>oai:arXiv.org:2603.9</identifier></header></record>'
    bare = "<record><header><identifier>oai:arXiv.org:2603.8</identifier></header><metadata/></record>"
    broken_date = record(3).replace("2026-03-01", "soon")
    server = serve(lambda _: (200, answer(deleted, bare, record(4, id="none"), broken_date, record(5, title=" "))))
    (page,) = read_pages(server.address, "cs.LG", TODAY, delay=0)
    reasons = [str(each) for each in page.records if isinstance(each, BadRecord)]
    assert len(page.records) == len(reasons) == 4
    for words, reason in zip(
        ("no description", "'none' is not an arXiv id", "soon", "title is missing"), reasons, strict=True
    ):
        assert words in reason


def test_no_change_is_no_error(serve: Serve) -> None:
    server = serve(lambda _: (200, answer(error='<error code="noRecordsMatch">none</error>')))
    (page,) = read_pages(server.address, "cs.LG", TODAY, delay=0)
    assert page.records == () and page.token == ""


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"", "status 404; check WORKING_PAPERS_ARXIV_OAI_URL"),
        (500, b"", "status 500; the next ingest goes on from here"),
        (200, b"<OAI", "broken XML"),
        (200, b"<html></html>", "no OAI-PMH"),
        (200, b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "no OAI-PMH"),
        (200, answer(error='<error code="badArgument">what?</error>'), "refuses the request: badArgument: what?"),
        (200, answer(day="someday"), "answered with the date"),
    ],
)
def test_answers_that_are_none_are_one_sentence(serve: Serve, status: int, body: bytes, words: str) -> None:
    server = serve(lambda _: (status, body))
    with pytest.raises(SourceError) as caught:
        list(read_pages(server.address, "cs.LG", TODAY, delay=0, retries=1))
    assert words in str(caught.value) and server.address in str(caught.value)


def test_a_busy_service_is_asked_again(serve: Serve) -> None:
    server = serve(lambda _: (503, b"") if len(server.paths) < 3 else (200, answer(record(1))))
    (page,) = read_pages(server.address, "cs.LG", TODAY, delay=0.01)
    assert len(page.records) == 1 and len(server.paths) == 3


def test_an_answer_that_unfolds_to_gigabytes_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server

    monkeypatch.setattr("working_papers.daily.sources.arxiv_oai.LARGEST_PAGE", 1_000_000)
    bomb = gzip.compress(b" " * 20_000_000)
    server = serve(lambda _: (200, bomb))
    original = http.server.BaseHTTPRequestHandler.end_headers

    def with_encoding(handler: Any) -> None:
        handler.send_header("content-encoding", "gzip")
        original(handler)

    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "end_headers", with_encoding)
    with pytest.raises(SourceError, match="more than"):
        list(read_pages(server.address, "cs.LG", TODAY, delay=0, retries=0))


# Places


def test_an_ingest_goes_on_where_the_last_one_stopped(engine: Engine, settings: Settings, serve: Serve) -> None:
    server = serve(lambda _: (200, answer(record(1), record(2))))
    (report,) = ingest(engine, settings_for(settings, server), delay=0, today=TODAY)
    assert (report.got, report.new) == (2, 2)
    assert get_paper(engine, "2603.00001") is not None
    assert asked(server)[0]["from"] == "2026-03-01", "the first ingest looks a few days back"
    assert read_place(engine, "arxiv", "cs.LG") == Place(TODAY)
    (again,) = ingest(engine, settings_for(settings, server), delay=0, today=TODAY + dt.timedelta(days=1))
    assert (again.new, again.unchanged) == (0, 2)
    assert asked(server)[1]["from"] == "2026-03-04", "the last day is asked for again: it may have grown"


def test_a_broken_fetch_goes_on_from_its_token(
    engine: Engine, settings: Settings, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("working_papers.daily.ingest.BATCH", 2)
    broken = threading.Event()

    def pages(path: str) -> tuple[int, bytes]:
        if "resumptionToken=two" in path:
            return (410, b"") if not broken.is_set() else (200, answer(record(3), record(4)))
        return 200, answer(record(1), record(2), token="two")

    server = serve(pages)
    given = settings_for(settings, server)
    with pytest.raises(UserError, match="status 410"):
        ingest(engine, given, delay=0, today=TODAY)
    assert read_place(engine, "arxiv", "cs.LG") == Place(dt.date(2026, 3, 1), "two")
    assert paper_count(engine) == 2
    broken.set()
    server.paths.clear()
    (report,) = ingest(engine, given, delay=0, today=TODAY)
    assert report.new == 2 and asked(server) == [{"verb": "ListRecords", "resumptionToken": "two"}]
    assert read_place(engine, "arxiv", "cs.LG") == Place(TODAY)


def test_a_token_that_is_forgotten_begins_the_fetch_again(engine: Engine, settings: Settings, serve: Serve) -> None:
    write_place(engine, "arxiv", "cs.LG", Place(dt.date(2026, 3, 2), "old"))
    server = serve(
        lambda path: (
            (200, answer(error='<error code="badResumptionToken">gone</error>'))
            if "resumptionToken" in path
            else (200, answer(record(1)))
        )
    )
    ingest(engine, settings_for(settings, server), delay=0, today=TODAY)
    assert [words.get("from") for words in asked(server)] == [None, "2026-03-02"]
    assert read_place(engine, "arxiv", "cs.LG") == Place(TODAY)
    assert issubclass(TokenRefused, SourceError)


def test_a_source_that_fails_leaves_the_others_alone(engine: Engine, settings: Settings, serve: Serve) -> None:
    server = serve(lambda path: (404, b"") if path.endswith("CV&from=2026-03-01") else (200, answer(record(7))))
    with pytest.raises(UserError, match="status 404"):
        ingest(engine, settings_for(settings, server, ingest_arxiv="cs.CV, cs.LG"), delay=0, today=TODAY)
    assert paper_count(engine) == 1
    assert {each.error is None for each in list_imports(engine, 10, 0)} == {True, False}


def test_hugging_face_days_are_caught_up_with(engine: Engine, settings: Settings, serve: Serve) -> None:
    item = b'[{"paper": {"id": "2603.00009", "title": "T", "publishedAt": "2026-03-03T00:00:00.000Z"}, "title": "T"}]'
    server = serve(lambda path: (200, item if "date=2026-03-03" in path and "p=0" in path else b"[]"))
    given = settings_for(settings, server, ingest_arxiv="", ingest_hf=True)
    reports = ingest(engine, given, today=TODAY)
    assert [report.asked for report in reports] == ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
    assert sum(report.new for report in reports) == 1
    assert read_place(engine, "hf") == Place(TODAY)


def test_settings_are_checked(settings: Settings) -> None:
    assert not check_settings(settings)
    given = settings.model_copy(update={"ingest_arxiv": " cs.LG,, stat.ML,cs.LG"})
    assert categories_of(given) == ["cs.LG", "stat.ML"] and check_settings(given)
    with pytest.raises(UsageError, match="WORKING_PAPERS_INGEST_ARXIV: 'no good' is not"):
        check_settings(settings.model_copy(update={"ingest_arxiv": "no good"}))


def test_a_stopped_ingest_asks_nothing_more(engine: Engine, settings: Settings, serve: Serve) -> None:
    server = serve(lambda _: (200, answer(record(1))))
    stop = threading.Event()
    stop.set()
    assert ingest(engine, settings_for(settings, server), stop=stop, today=TODAY) == []
    assert server.paths == []


# The schedule


def at(hour: int, minute: int = 0, day: int = 4) -> dt.datetime:
    return dt.datetime(2026, 3, day, hour, minute, tzinfo=dt.UTC)


def scheduler(engine: Engine, task: Callable[[threading.Event], object], moments: list[dt.datetime]) -> Scheduler:
    return Scheduler(engine, {"ingest": Daily(3, task)}, clock=lambda: moments[0])


def test_a_task_runs_once_a_day_after_its_hour(engine: Engine) -> None:
    calls: list[int] = []
    moments = [at(2)]
    clock = scheduler(engine, lambda _: calls.append(1), moments)
    assert clock.run_due() == []
    moments[0] = at(5)
    assert clock.run_due() == ["ingest"] and clock.run_due() == []
    assert scheduler(engine, lambda _: calls.append(2), moments).run_due() == [], "another process sees that it is done"
    moments[0] = at(3, day=5)
    assert clock.run_due() == ["ingest"] and calls == [1, 1]


def test_of_many_processes_one_runs_the_task(engine: Engine) -> None:
    calls: list[int] = []
    moments = [at(4)]
    start = threading.Barrier(6)

    def go() -> None:
        mine = scheduler(engine, lambda _: calls.append(1), moments)
        start.wait()
        mine.run_due()

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_failed_task_is_tried_again_later_and_later_and_then_left(engine: Engine) -> None:
    calls: list[dt.datetime] = []
    moments = [at(3)]

    def fail(_: threading.Event) -> None:
        calls.append(moments[0])
        raise UserError("the source is away")

    clock = scheduler(engine, fail, moments)
    while moments[0].day == 4:
        clock.run_due()
        moments[0] += dt.timedelta(minutes=5)
    waits = [(b - a).total_seconds() / 60 for a, b in pairwise(calls)]
    assert len(calls) == RETRIES + 1 and waits == [20, 40, 80, 160]
    with engine.connect() as connection:
        assert connection.execute(select(ScheduledRow.error)).scalar_one() == "the source is away"
    moments[0] = at(3, day=5)
    clock.run_due()
    assert len(calls) == RETRIES + 2, "the next day begins afresh"


def test_a_killed_task_is_taken_over(engine: Engine) -> None:
    assert claim(engine, "ingest", TODAY, "a killed one", at(3))
    assert not claim(engine, "ingest", TODAY, "another", at(3) + STALE / 2)
    assert claim(engine, "ingest", TODAY, "another", at(3) + STALE * 2)


def test_an_unexpected_error_ends_neither_schedule_nor_repeated_task(engine: Engine) -> None:
    calls = threading.Semaphore(0)

    def fail(_: threading.Event) -> None:
        calls.release()
        raise RuntimeError("unexpected")

    clock = Scheduler(engine, {"ingest": Daily(0, fail)}, {"often": (0.01, fail)})
    clock.start()
    for _ in range(4):
        assert calls.acquire(timeout=20)
    clock.stop()
    with engine.connect() as connection:
        assert "unexpected" in str(connection.execute(text("SELECT error FROM scheduled_tasks")).scalar_one())


def test_the_command_fetches_and_tells(
    settings: Settings, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    from working_papers.cli.ingest import ingest as command

    with pytest.raises(UserError, match="name no source; set WORKING_PAPERS_INGEST_ARXIV"):
        command()
    server = serve(lambda _: (200, answer(record(1))))
    monkeypatch.setenv("WORKING_PAPERS_INGEST_ARXIV", "cs.LG")
    monkeypatch.setenv("WORKING_PAPERS_ARXIV_OAI_URL", server.address)
    command()
    assert "arxiv cs.LG, changed since " in capsys.readouterr().out
