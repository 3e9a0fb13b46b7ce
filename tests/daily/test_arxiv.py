"""arXiv's API, answered by a server on this machine in the form arXiv answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import Engine

from working_papers.daily.catalogue import get_paper, list_imports, paper_count
from working_papers.daily.importing import ImportFailed, import_papers
from working_papers.daily.records import BadRecord, PaperRecord, SourceError, arxiv_id
from working_papers.daily.sources.arxiv import read_arxiv
from working_papers.errors import UsageError

Serve = Callable[[Callable[[str], tuple[int, bytes]]], Any]


def entry(number: int, extra: str = "", id: str | None = None) -> str:
    return f"""
  <entry>
    <id>{id or f"http://arxiv.org/abs/2510.{number:05}v2"}</id>
    <title>Paper number {number}:
  a Schr\\"odinger study</title>
    <updated>2025-10-09T10:00:00Z</updated>
    <link href="https://arxiv.org/abs/2510.{number:05}v2" rel="alternate" type="text/html"/>
    <link href="https://arxiv.org/pdf/2510.{number:05}v2" rel="related" type="application/pdf" title="pdf"/>
    <summary>  We study number {number},
and find it.
</summary>
    <category term="cs.LG" scheme="http://arxiv.org/schemas/atom"/>
    <category term="stat.ML" scheme="http://arxiv.org/schemas/atom"/>
    <published>2025-10-07T17:59:04Z</published>
    <arxiv:comment>9 pages</arxiv:comment>
    <arxiv:primary_category term="cs.LG"/>
    <author><name>Anna Example</name></author>
    <author><name>Jörg Muster</name><arxiv:affiliation>Somewhere</arxiv:affiliation></author>
    {extra}
  </entry>"""


def atom(*entries: str, total: int | None = None, start: int = 0) -> bytes:
    return f"""<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom"
      xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/example</id>
  <title>arXiv Query</title>
  <updated>2025-10-10T00:00:00Z</updated>
  <opensearch:itemsPerPage>100</opensearch:itemsPerPage>
  <opensearch:totalResults>{len(entries) if total is None else total}</opensearch:totalResults>
  <opensearch:startIndex>{start}</opensearch:startIndex>{"".join(entries)}
</feed>""".encode()


def asked(server: Any) -> list[dict[str, str]]:
    return [{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()} for path in server.paths]


def test_a_record(serve: Serve) -> None:
    extra = "<arxiv:doi>10.1000/X</arxiv:doi><arxiv:journal_ref>Journal 3</arxiv:journal_ref>"
    server = serve(lambda _: (200, atom(entry(7, extra))))
    assert list(read_arxiv(f"{server.address}/api/query", categories=["cs.LG"], delay=0)) == [
        PaperRecord(
            title="Paper number 7: a Schrödinger study",
            arxiv="2510.00007",
            abstract="We study number 7, and find it.",
            authors=("Anna Example", "Jörg Muster"),
            published=dt.date(2025, 10, 7),
            updated=dt.date(2025, 10, 9),
            categories=("cs.LG", "stat.ML"),
            url="https://arxiv.org/abs/2510.00007",
            doi="10.1000/X",
            journal="Journal 3",
        )
    ]


def test_what_is_asked(serve: Serve) -> None:
    server = serve(lambda _: (200, atom()))
    days = {"first": dt.date(2025, 10, 1), "last": dt.date(2025, 10, 7)}
    assert list(read_arxiv(server.address, categories=["cs.LG", "stat.ML"], delay=0, **days)) == []  # type: ignore[arg-type]
    assert asked(server)[0] == {
        "search_query": "(cat:cs.LG OR cat:stat.ML) AND submittedDate:[202510010000 TO 202510072359]",
        "sortBy": "submittedDate",
        "sortOrder": "descending",
        "start": "0",
        "max_results": "100",
    }
    list(read_arxiv(server.address, ids=["arXiv:2510.05491v3", "https://arxiv.org/abs/math.GT/0309136"], delay=0))
    assert asked(server)[1]["id_list"] == "2510.05491,math/0309136"


def test_pages_are_followed_up_to_the_limit(serve: Serve) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        start = int(parse_qs(urlsplit(path).query)["start"][0])
        return 200, atom(*(entry(start + i + 1) for i in range(min(100, 250 - start))), total=250, start=start)

    server = serve(answer)
    found = list(read_arxiv(server.address, categories=["cs.LG"], delay=0))
    assert [record.arxiv for record in found if isinstance(record, PaperRecord)] == [
        f"2510.{number:05}" for number in range(1, 251)
    ]
    assert len(server.paths) == 3
    assert len(list(read_arxiv(server.address, categories=["cs.LG"], limit=120, delay=0))) == 120
    assert len(server.paths) == 5


def test_many_ids_are_asked_for_by_the_hundred(serve: Serve) -> None:
    server = serve(lambda _: (200, atom(entry(1))))
    assert len(list(read_arxiv(server.address, ids=[f"2510.{n:05}" for n in range(1, 202)], delay=0))) == 1
    assert [len(query["id_list"].split(",")) for query in asked(server)] == [100, 100, 1]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"", r"answered with status 500; the service is in trouble: try again later"),
        (429, b"Rate exceeded.", r"answered with status 429; too many requests: try again in a few minutes"),
        (404, b"", r"answered with status 404; check what was asked for"),
        (200, atom(entry(1))[:-30], r"answered with broken XML"),
        (200, b"", r"answered with broken XML"),
        (200, b"<html><body>Be right back</body></html>", r"something that is no Atom feed"),
        (200, atom(total=12), r"does not answer \(an empty answer, though it counts 12 papers\)"),
        (200, atom(entry(1).replace("2025-10-07T17:59:04Z", "lately")), r"broken feed .*published is 'lately'"),
        (
            200,
            atom(entry(1, id="http://arxiv.org/api/errors#malformed").replace("We study", "malformed date:")),
            r"refuses the request: malformed date: number 1, and find it\.",
        ),
    ],
    ids=["500", "429", "404", "cut", "empty", "HTML", "empty page", "bad date", "error entry"],
)
def test_a_broken_service_never_looks_like_a_quiet_day(
    serve: Serve, engine: Engine, status: int, body: bytes, message: str
) -> None:
    server = serve(lambda _: (200, atom(entry(5))))
    import_papers(engine, "arxiv", "cs.LG", read_arxiv(server.address, categories=["cs.LG"], delay=0))
    server.answer = lambda _: (status, body)
    with pytest.raises(ImportFailed, match=message):
        import_papers(engine, "arxiv", "cs.LG", read_arxiv(server.address, categories=["cs.LG"], delay=0, retries=1))
    broken, good = list_imports(engine)
    assert broken.error is not None
    assert (broken.got, broken.new, good.error, good.new) == (0, 0, None, 1)
    assert paper_count(engine) == 1


def test_a_quiet_day_is_no_error(serve: Serve, engine: Engine) -> None:
    server = serve(lambda _: (200, atom()))
    import_papers(engine, "arxiv", "cs.LG", read_arxiv(server.address, categories=["cs.LG"], delay=0))
    assert (list_imports(engine)[0].got, list_imports(engine)[0].error) == (0, None)


def test_nobody_listens(closed_address: str) -> None:
    with pytest.raises(SourceError, match=r"does not answer \(.*Connection refused\); check the network"):
        list(read_arxiv(closed_address, categories=["cs.LG"], delay=0, retries=0))


def test_a_request_that_failed_is_made_again(serve: Serve) -> None:
    answers = iter([(503, b""), (200, atom(total=1)), (200, atom(entry(1)))])
    server = serve(lambda _: next(answers))
    assert len(list(read_arxiv(server.address, categories=["cs.LG"], delay=0))) == 1
    assert len(server.paths) == 3


def test_what_came_before_a_failure_is_kept(serve: Serve, engine: Engine) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        if "start=0&" in path:
            return 200, atom(*(entry(number) for number in range(1, 101)), total=200)
        return 500, b""

    server = serve(answer)
    records = read_arxiv(server.address, categories=["cs.LG"], delay=0, retries=0)
    with pytest.raises(ImportFailed, match="100 papers read before that are kept"):
        import_papers(engine, "arxiv", "cs.LG", records)
    assert paper_count(engine) == 100
    assert get_paper(engine, "arXiv:2510.00100v1") is not None


def test_entries_that_cannot_be_used_are_reported(serve: Serve) -> None:
    entries = [
        entry(1).replace("<published>2025-10-07T17:59:04Z</published>", ""),
        entry(2),
        entry(3, id="http://example.org/x"),
    ]

    def answer(path: str) -> tuple[int, bytes]:
        start = int(parse_qs(urlsplit(path).query)["start"][0])
        return 200, atom(*entries[start:], total=3, start=start)

    server = serve(answer)
    found = list(read_arxiv(server.address, categories=["cs.LG"], delay=0))
    assert [record.arxiv for record in found if isinstance(record, PaperRecord)] == ["2510.00002"]
    assert sorted(record.reason for record in found if isinstance(record, BadRecord)) == [
        "'http://example.org/x' is not the address of an arXiv paper",
        "http://arxiv.org/abs/2510.00001v2: published is missing",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name either categories"),
        ({"categories": ["cs.LG"], "ids": ["2510.05491"]}, "name either categories"),
        ({"ids": ["hello"]}, "'hello' is not an arXiv id"),
        ({"categories": ["cs.LG OR all:x"]}, "is not an arXiv category"),
        ({"ids": ["2510.05491"], "first": dt.date(2025, 1, 1)}, "dates go with categories"),
        (
            {"categories": ["cs.LG"], "first": dt.date(2025, 1, 2), "last": dt.date(2025, 1, 1)},
            "later than the last",
        ),
    ],
)
def test_wrong_questions_are_not_asked(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_arxiv("http://127.0.0.1:9", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "id"),
    [
        ("2510.05491", "2510.05491"),
        ("arXiv:2510.05491v12", "2510.05491"),
        ("https://arxiv.org/pdf/2510.05491v1.pdf", "2510.05491"),
        ("http://www.arxiv.org/abs/2510.05491?context=cs", "2510.05491"),
        ("10.48550/arXiv.2510.05491", "2510.05491"),
        ("math.GT/0309136v1", "math/0309136"),
        ("hep-th/9901001", "hep-th/9901001"),
        ("0704.0001", "0704.0001"),
        ("0703.0001", None),
        ("1412.0001", "1412.0001"),
        ("1412.00001", None),
        ("1501.0001", None),
        ("2513.00001", None),
        ("2510.05491x", None),
        ("٢٥١٠.٠٥٤٩١", None),
        ("", None),
    ],
)
def test_ids_in_all_spellings(written: str, id: str | None) -> None:
    assert arxiv_id(written) == id
