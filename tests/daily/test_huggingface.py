"""The Hub's daily papers, answered by a server on this machine in the form the Hub answers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine

from working_papers.daily.catalogue import list_imports, paper_count
from working_papers.daily.importing import ImportFailed, import_papers
from working_papers.daily.records import BadRecord, PaperRecord, SourceError
from working_papers.daily.sources.huggingface import read_huggingface, record_of

Serve = Callable[[Callable[[str], tuple[int, bytes]]], Any]
DAY = dt.date(2025, 10, 9)


def item(number: int = 1, **change: Any) -> dict[str, Any]:
    return {
        "paper": {
            "id": f"2510.{number:05}",
            "authors": [
                {"_id": "68e", "name": "Anna Example", "hidden": False},
                {"_id": "68f", "name": "Jörg Muster", "user": {"user": "jm"}, "status": "claimed_verified"},
            ],
            "publishedAt": "2025-10-07T17:59:04.000Z",
            "submittedOnDailyAt": "2025-10-09T00:26:50.145Z",
            "title": f"Paper number {number}",
            "summary": "We study it,\nand find it.",
            "upvotes": 0,
            "discussionId": "68e7",
        },
        "publishedAt": "2025-10-07T13:59:04.000Z",
        "title": f"Paper number {number}",
        "summary": "We study it,\nand find it.",
        "thumbnail": "https://example.org/1.png",
        "numComments": 3,
        "submittedBy": {"user": "someone", "fullname": "Some One"},
        "isAuthorParticipating": False,
        **change,
    }


def body(*items: Any) -> bytes:
    return json.dumps(items).encode()


def test_a_record() -> None:
    expected = PaperRecord(
        title="Paper number 1",
        arxiv="2510.00001",
        abstract="We study it, and find it.",
        authors=("Anna Example", "Jörg Muster"),
        published=dt.date(2025, 10, 7),
        day=DAY,
        comment_count=3,
        upvotes=0,
        url="https://arxiv.org/abs/2510.00001",
    )
    assert record_of(item()) == expected
    flat = item()
    assert record_of({**flat, **flat.pop("paper")}) == expected
    assert record_of(item(), dt.date(2025, 10, 10)).day == dt.date(2025, 10, 10)


def test_what_is_asked_and_that_no_token_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = serve(lambda _: (200, body(item())))
    assert len(list(read_huggingface(f"{server.address}/", DAY))) == 1
    assert len(list(read_huggingface(server.address))) == 1
    assert server.paths == ["/api/daily_papers?p=0&limit=100&date=2025-10-09", "/api/daily_papers?limit=100"]
    assert all("authorization" not in headers for headers in server.headers)
    assert "hf_secret" not in str(server.headers)


def test_a_long_day_has_several_pages(serve: Serve) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        page = int(parse_qs(urlsplit(path).query)["p"][0])
        return 200, body(*(item(100 * page + i + 1) for i in range(100 if page < 2 else 7)))

    server = serve(answer)
    assert len(list(read_huggingface(server.address, DAY))) == 207
    assert len(server.paths) == 3


def test_a_server_without_pages_is_not_asked_for_ever(serve: Serve) -> None:
    server = serve(lambda _: (200, body(*(item(i + 1) for i in range(100)))))
    assert len(list(read_huggingface(server.address, DAY))) == 100
    assert len(server.paths) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "expected a paper, got None"),
        (item(2, title="", paper={}), "without a title"),
        (item(2, paper={"title": "A"}), "has no id"),
        (item(2, numComments="many"), "numComments of 'Paper number 2' is 'many'"),
        (item(2, paper={"id": "2510.00002", "publishedAt": "yesterday"}), "publishedAt of 'Paper number 2'"),
        (item(2, paper={"id": "2510.00002", "authors": "all of them"}), "expected a list"),
        (item(2, paper={"id": "2510.00002", "authors": [{"name": 3}]}), "an author of 'Paper number 2' is 3"),
        (item(2, paper={"id": 3}), "the id of 'Paper number 2' is 3"),
    ],
)
def test_one_bad_paper_does_not_lose_the_others(serve: Serve, bad: Any, reason: str) -> None:
    server = serve(lambda _: (200, body(item(1), bad, item(3))))
    found = list(read_huggingface(server.address, DAY))
    assert [type(record) for record in found] == [PaperRecord, BadRecord, PaperRecord]
    assert reason in str(found[1])


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (500, b"oops", "answered with status 500; the service is in trouble: try again later"),
        (429, b"", "answered with status 429; too many requests"),
        (400, b'{"error": "Invalid date"}', "answered with status 400; it refuses the request"),
        (404, b"", "answered with status 404; check WORKING_PAPERS_HF_ENDPOINT"),
        (200, body(item())[:-9], "something that is not JSON"),
        (200, b"\xff\xfe\x00", "something that is not JSON"),
        (200, b"[" * 100_000, "something that is not JSON"),
        (200, b'{"error": "no"}', "expected a list of papers"),
    ],
)
def test_a_broken_service_never_looks_like_a_quiet_day(
    serve: Serve, engine: Engine, status: int, answer: bytes, message: str
) -> None:
    server = serve(lambda _: (200, body(item(5))))
    import_papers(engine, "hf", str(DAY), read_huggingface(server.address, DAY))
    server.answer = lambda _: (status, answer)
    with pytest.raises(ImportFailed, match=message):
        import_papers(engine, "hf", str(DAY), read_huggingface(server.address, DAY))
    broken, good = list_imports(engine)
    assert broken.error is not None
    assert (broken.got, good.new, good.error) == (0, 1, None)
    assert paper_count(engine) == 1


def test_a_quiet_day_is_no_error(serve: Serve, engine: Engine) -> None:
    server = serve(lambda _: (200, b"[]"))
    import_papers(engine, "hf", str(DAY), read_huggingface(server.address, DAY))
    assert (list_imports(engine)[0].got, list_imports(engine)[0].error) == (0, None)


def test_nobody_listens(closed_address: str) -> None:
    with pytest.raises(SourceError, match=r"does not answer \(.*refused\); check the network"):
        list(read_huggingface(closed_address, DAY))


def test_half_a_surrogate_pair_is_rejected_not_stored(serve: Serve, engine: Engine) -> None:
    broken = item(2)
    broken["paper"]["summary"] = "half \ud800 a pair"
    server = serve(lambda _: (200, body(item(1), broken)))
    report = import_papers(engine, "hf", str(DAY), read_huggingface(server.address, DAY))
    assert (report.new, report.rejected_count) == (1, 1)
    assert "surrogate" in report.rejected[0].reason
