"""The site's own API: what its description says is what it does, whatever is sent."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from sqlalchemy import Engine, MetaData, insert, select
from starlette.testclient import TestClient

from tests.web.conftest import FAILS, HOLDS, OPEN, WAITING
from tests.web.visitors import Reader
from working_papers.bench.jobs import enqueue_job
from working_papers.bench.rooms import Room
from working_papers.bench.store import Run, TrialRow
from working_papers.daily.catalogue import get_paper
from working_papers.daily.community.votes import vote
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord
from working_papers.database import now
from working_papers.web.limits import Limiter
from working_papers.web.routes import api

PAPER = "2510.05491"
DESCRIPTION = api.openapi()
running: dict[str, Any] = {}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The site of the present test, for a description that is read before any test."""
    await running["app"](scope, receive, send)


description = schemathesis.openapi.from_dict(DESCRIPTION)
description.app = application


@pytest.fixture
def things(client: TestClient, filled: Engine, sample_rooms: dict[str, Room]) -> dict[str, Any]:
    """One of each thing that an address can name, and tokens."""
    with filled.begin() as connection:
        common = {"slug": HOLDS, "scale": "smoke", "sham": False, "seeds": 2, "code_hash": "0" * 64, "started": now()}
        connection.execute(insert(Run).values(**common, status="failed", error="Traceback"))
        record = {"answer": "holds", "summary": "It does."}
        made = connection.execute(
            insert(Run).values(**common, status="finished", record=record, finished=now()).returning(Run.id)
        )
        run = int(made.scalar_one())
        for seed, status in enumerate(("finished", "failed")):
            trial = {"key": f"{seed}", "slug": HOLDS, "arm": "ours", "seed": seed, "scale": "smoke", "phase": "report"}
            trial |= {"setting": {"rate": 0.1, "name": "x", "width": 8}, "code_hash": "0" * 64, "status": status}
            numbers = {"numbers": {"test error": 0.5}, "costs": {"wall seconds": 1.0}} if status == "finished" else {}
            error = None if numbers else "ValueError: too hot"
            connection.execute(
                insert(TrialRow.__table__).values(  # type: ignore[arg-type]
                    **trial, **(numbers or {"numbers": {}, "costs": {}}), run_id=run, error=error, finished=now()
                )
            )
    return {
        "paper_id": PAPER,
        "slug": HOLDS,
        "run_id": run,
        "job_id": enqueue_job(filled, HOLDS, "laptop"),
        "root": Reader(client, filled, "root@example.org", administrator=True).api_token(),
        "ada": Reader(client, filled, "ada@example.org").api_token(),
    }


@pytest.mark.slow
@description.parametrize()
@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_the_description_is_true(
    case: Any, client: TestClient, things: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server error, no answer that is not described; what is wrong is refused and what is right is taken."""
    monkeypatch.setattr(Limiter, "take", lambda *_: 0.0)
    running["app"] = client.app
    case.call_and_validate()
    # The same with things that there are and a token that may do everything: hardly ever found by chance.
    case.path_parameters = {name: things[name] for name in case.path_parameters or {}}
    token = {"Authorization": f"Bearer {things['root']}"}
    case.call_and_validate(headers=token, excluded_checks=[negative_data_rejection, positive_data_acceptance])


def checked(path: str, answer: Any, status: int = 200) -> Any:
    """The content, after it was compared with the description."""
    assert answer.status_code == status, answer.text
    method = answer.request.method
    assert str(status) in DESCRIPTION["paths"][path][method.lower()]["responses"]
    description[path][method].validate_response(answer)
    return answer.json()


def test_it_is_openapi_31(client: TestClient) -> None:
    content = client.get("/api/v1/openapi.json").json()
    assert content["openapi"].startswith("3.1.") and content == DESCRIPTION
    assert all(path.startswith("/api/v1/") for path in content["paths"])
    names = [operation["operationId"] for methods in content["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for methods in content["paths"].values():
        for method, operation in methods.items():
            assert operation["summary"] and operation["description"]
            assert {"422", "429", "503"} <= set(operation["responses"])
            needs_token = method != "get"
            assert ("security" in operation) == needs_token == ("401" in operation["responses"])


def test_the_page_for_people_tells_the_same(client: TestClient) -> None:
    text = client.get("/api/docs").text
    for path, methods in DESCRIPTION["paths"].items():
        for method, operation in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in text
            assert operation["summary"] in text.replace("&#39;", "'")
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN" in text and "<script>" not in text


# Papers -----------------------------------------------------------------------------------------------------------


def test_papers_come_in_pages(client: TestClient, filled: Engine) -> None:
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        content = checked("/api/v1/papers", client.get("/api/v1/papers", params={"limit": 25, "cursor": cursor}))
        seen += [paper["id"] for paper in content["papers"]]
        if len(seen) == 25:  # a paper that comes meanwhile moves nothing
            import_papers(filled, "jsonl", "x", [PaperRecord(title="New", arxiv="2699.00001", published=now().date())])
        cursor = content["next_cursor"]
    assert len(seen) == len(set(seen)) == 68 and "2699.00001" not in seen


def test_papers_can_be_filtered(client: TestClient, sample_rooms: dict[str, Room]) -> None:
    def ids(**query: Any) -> list[str]:
        content = checked("/api/v1/papers", client.get("/api/v1/papers", params=query))
        return [paper["id"] for paper in content["papers"]]

    assert ids(topic="stat.ML") == ["2401.01234"]
    assert ids(**{"from": "2024-01-03", "to": "2024-01-03", "topic": "cs.LG"}) == ["2401.01234"]
    assert ids(to="2001-12-31") == ["cs/0112017"] and ids(topic="no such") == []
    assert ids(topic="optimisation", runnable="true", limit=100) == [
        paper["id"]
        for paper in client.get("/api/v1/papers?topic=optimisation&limit=100").json()["papers"]
        if paper["room"]["runnable"]
    ]
    assert ids(cursor="0-0") == [] and len(ids(cursor="9999999-0", limit=3)) == 3


def test_one_paper_by_any_of_its_ids(client: TestClient, sample_rooms: dict[str, Room]) -> None:
    for id in (PAPER, HOLDS, f"{PAPER}v2", f"arXiv:{PAPER}"):
        content = checked("/api/v1/papers/{paper_id}", client.get(f"/api/v1/papers/{id}"))
        assert content["id"] == PAPER and content["page"] == f"/papers/{PAPER}"
    assert content["room"]["verdict"] == "holds" and content["room"]["stale"] is None
    assert "9.4 %" in content["room"]["finding"] and content["authors"] == list(sample_rooms[HOLDS].paper.authors)
    old = checked("/api/v1/papers/{paper_id}", client.get("/api/v1/papers/cs/0112017"))
    assert old["room"] is None and old["published"] == "2001-12-11"
    missing = checked("/api/v1/papers/{paper_id}", client.get("/api/v1/papers/2999.99999"), 404)
    assert "No paper here has that id" in missing["error"]


def test_search_and_similar(client: TestClient) -> None:
    content = checked("/api/v1/search", client.get("/api/v1/search", params={"q": "An old paper", "limit": 3}))
    assert content["results"][0]["paper"]["id"] == "cs/0112017" and len(content["results"]) <= 3
    content = checked("/api/v1/search", client.get("/api/v1/search?q=attention&topic=stat.ML"))
    assert [found["paper"]["id"] for found in content["results"]] == ["2401.01234"]
    content = checked("/api/v1/search", client.get("/api/v1/search?q=paper&to=2001-12-31"))
    assert [found["paper"]["id"] for found in content["results"]] == ["cs/0112017"]
    for similar in checked("/api/v1/papers/{paper_id}/similar", client.get(f"/api/v1/papers/{PAPER}/similar")):
        assert similar["id"] != PAPER
    assert client.get("/api/v1/papers/2999.99999/similar").status_code == 404


# Rooms, verdicts, runs --------------------------------------------------------------------------------------------


def test_rooms_and_verdicts(client: TestClient) -> None:
    rooms = {room["slug"]: room for room in checked("/api/v1/rooms", client.get("/api/v1/rooms"))}
    assert len(rooms) == 66
    assert [rooms[slug]["verdict"] for slug in (HOLDS, FAILS, OPEN, WAITING)] == [
        "holds",
        "does not hold",
        "inconclusive",
        None,
    ]
    assert rooms[OPEN]["stale"] and not rooms[WAITING]["runnable"]
    room = checked("/api/v1/rooms/{slug}", client.get(f"/api/v1/rooms/{HOLDS}"))
    assert room["claims"] and room["import_line"].startswith("from working_papers.papers.normuon import ")
    verdict = checked("/api/v1/rooms/{slug}/verdict", client.get(f"/api/v1/rooms/{HOLDS}/verdict"))
    assert verdict["record"]["arms"]["ours"]["measures"]["test error"] == pytest.approx([0.19, 0.2, 0.21])
    verdicts = checked("/api/v1/verdicts", client.get("/api/v1/verdicts"))
    assert {each["slug"] for each in verdicts} == {HOLDS, FAILS, OPEN} and verdict in verdicts
    trials = checked("/api/v1/rooms/{slug}/trials", client.get(f"/api/v1/rooms/{HOLDS}/trials"))
    assert [(trial["arm"], trial["seed"]) for trial in trials] == [
        (arm, seed) for arm in ("ours", "theirs") for seed in range(3)
    ]
    assert trials[4]["measures"] == {"test error": 0.3} and trials[4]["costs"]["wall seconds"] == 2.0
    for path in (f"/api/v1/rooms/{WAITING}/verdict", f"/api/v1/rooms/{WAITING}/trials", "/api/v1/rooms/nothing"):
        assert client.get(path).status_code == 404


def test_runs_and_their_trials(client: TestClient, things: dict[str, Any]) -> None:
    number = things["run_id"]
    runs = checked("/api/v1/runs", client.get(f"/api/v1/runs?slug={HOLDS}&limit=1"))
    assert [(run["id"], run["status"], run["answer"]) for run in runs["runs"]] == [(number, "finished", "holds")]
    more = checked("/api/v1/runs", client.get(f"/api/v1/runs?cursor={runs['next_cursor']}"))
    assert [run["status"] for run in more["runs"]] == ["failed"] and more["next_cursor"] is None
    assert checked("/api/v1/runs", client.get("/api/v1/runs?slug=nothing"))["runs"] == []
    assert checked("/api/v1/runs/{run_id}", client.get(f"/api/v1/runs/{number}"))["summary"] == "It does."
    trials = checked("/api/v1/runs/{run_id}/trials", client.get(f"/api/v1/runs/{number}/trials"))
    assert trials[0]["setting"] == {"rate": 0.1, "name": "x", "width": 8}
    assert trials[0]["measures"] == {"test error": 0.5} and trials[1]["error"] == "ValueError: too hot"
    assert client.get(f"/api/v1/runs/{number + 1}").status_code == 404
    assert client.get(f"/api/v1/runs/{number + 1}/trials").status_code == 404


def test_runs_are_asked_for_and_stopped(client: TestClient, things: dict[str, Any]) -> None:
    root = {"Authorization": f"Bearer {things['root']}"}
    answer = client.post("/api/v1/runs", json={"slug": HOLDS, "scale": "smoke", "seeds": 2}, headers=root)
    job = checked("/api/v1/runs", answer, 202)
    assert job["status"] == "queued" and job["scale"] == "smoke" and job["id"] != things["job_id"]
    again = client.post("/api/v1/runs", json={"slug": HOLDS, "scale": "smoke", "seeds": 2}, headers=root)
    assert again.json()["id"] == job["id"], "it waits already"
    assert checked("/api/v1/jobs/{job_id}", client.get(f"/api/v1/jobs/{job['id']}")) == job
    stopped = checked("/api/v1/jobs/{job_id}", client.delete(f"/api/v1/jobs/{job['id']}", headers=root))
    assert stopped["status"] == "cancelled"
    for slug in (WAITING, "nothing"):
        missing = client.post("/api/v1/runs", json={"slug": slug}, headers=root)
        assert "There is no study" in checked("/api/v1/runs", missing, 404)["error"]
    extra = client.post("/api/v1/runs", json={"slug": HOLDS, "shell": "rm"}, headers=root)
    assert "shell is 'rm'" in checked("/api/v1/runs", extra, 422)["error"]


# Votes ------------------------------------------------------------------------------------------------------------


def test_votes_are_ones_own(client: TestClient, things: dict[str, Any], filled: Engine) -> None:
    path, template = f"/api/v1/papers/{HOLDS}/vote", "/api/v1/papers/{paper_id}/vote"
    ada, root = ({"Authorization": f"Bearer {things[name]}"} for name in ("ada", "root"))
    other = get_paper(filled, "cs/0112017")
    assert other is not None
    vote(filled, Reader(client, filled, "grace@example.org").id, other.number)
    assert checked(template, client.get(path)) == {"votes": 0, "voted": False}
    for _ in range(2):  # a second time changes nothing
        assert checked(template, client.put(path, headers=ada)) == {"votes": 1, "voted": True}
    assert checked(template, client.put(path, headers=root)) == {"votes": 2, "voted": True}
    assert checked(template, client.get(path, headers=ada)) == {"votes": 2, "voted": True}
    assert checked(template, client.get(path)) == {"votes": 2, "voted": False}
    assert client.get(f"/api/v1/papers/{PAPER}").json()["votes"] == 2
    for _ in range(2):
        assert checked(template, client.delete(path, headers=ada)) == {"votes": 1, "voted": False}
    assert checked(template, client.get("/api/v1/papers/cs/0112017/vote")) == {"votes": 1, "voted": False}
    for method in ("put", "delete"):
        assert client.request(method, "/api/v1/papers/2999.99999/vote", headers=ada).status_code == 404
        for headers in ({}, {"Authorization": "Bearer hf_not_ours"}, {"Authorization": "Basic d3A6"}):
            refused = checked(template, client.request(method, path, headers=headers), 401)
            assert "token" in refused["error"]
    assert checked(template, client.get(path)) == {"votes": 1, "voted": False}


# What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/v1/papers?limit=0", "limit is '0': Input should be greater than or equal to 1"),
        ("/api/v1/papers?limit=x&from=soon", "limit is 'x'"),
        ("/api/v1/papers?limit=x&from=soon", "from is 'soon': expected a day such as 2025-10-07"),
        ("/api/v1/papers?to=0", "to is '0': expected a day"),
        ("/api/v1/papers?to=2025-02-30", "to is '2025-02-30'"),
        ("/api/v1/papers?cursor=x", "cursor is 'x'"),
        ("/api/v1/search?offset=-1", "offset is '-1'"),
        ("/api/v1/search?q=" + "x" * 4001, "q is 'xxx"),
        ("/api/v1/runs/0", "run_id is '0'"),
        ("/api/v1/runs/99999999999999999999", "run_id is '99999999999999999999'"),
        ("/api/v1/jobs/1.5", "job_id is '1.5'"),
        ("/api/v1/rooms/" + "x" * 81, "slug is 'xxx"),
    ],
)
def test_wrong_parameters_are_named_with_what_was_expected(client: TestClient, path: str, words: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422 and words in answer.json()["error"] and len(answer.text) < 400
    assert words in answer.headers["x-error-message"]


def test_other_methods_are_told_what_an_address_takes(client: TestClient) -> None:
    for path, allowed in (
        (f"/api/v1/papers/{PAPER}/vote", "GET, HEAD, PUT, DELETE"),
        ("/api/v1/runs", "GET, HEAD, POST"),
        ("/api/v1/rooms", "GET, HEAD"),
        ("/feed", "GET, HEAD"),
        ("/sign-out", "POST"),
    ):
        answer = client.patch(path)
        assert answer.status_code == 405 and answer.headers["allow"] == allowed
    assert client.patch("/api/v1/runs").json()["error"] == (
        "PATCH is not for this address; it takes GET, HEAD and POST."
    )
    assert client.patch("/no/such/page").status_code == 404


def test_large_bodies_are_refused_as_json(client: TestClient, things: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {things['root']}", "Content-Type": "application/json"}
    answer = client.post("/api/v1/runs", content=b"x" * (2**20 + 1), headers=headers)
    assert "at most 1,048,576 bytes" in checked("/api/v1/runs", answer, 413)["error"]
    answer = client.post("/api/v1/runs", content=b'{"slug": "\xff"}', headers=headers)
    checked("/api/v1/runs", answer, 400)


def test_too_many_requests_are_told_when_to_come_back(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CALLS", (3, 60))
    for _ in range(3):
        assert client.get("/api/v1/rooms").status_code == 200
    answer = client.get("/api/v1/rooms")
    assert "too often" in checked("/api/v1/rooms", answer, 429)["error"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert client.get("/feed").status_code == 200 and client.get("/api/daily_papers").status_code == 200


def test_a_lost_database_is_said(client: TestClient) -> None:
    from sqlalchemy.exc import OperationalError

    def lost(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "page_of_papers", lost)
        answer = client.get("/api/v1/papers")
    assert "cannot be read" in checked("/api/v1/papers", answer, 503)["error"]


def test_strange_tokens_leave_no_trace(client: TestClient, filled: Engine, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"
    with caplog.at_level(logging.DEBUG):
        for path in ("/api/daily_papers", "/api/papers/search?q=x", "/api/whoami-v2", "/api/v1/papers", "/feed", "/x"):
            client.get(path, headers={"Authorization": f"Bearer {secret}"})
            client.get(path, headers={"Authorization": f"Bearer {secret}", "X-Request-Id": "1"})
    assert secret not in caplog.text
    tables = MetaData()
    tables.reflect(filled)
    with filled.connect() as connection:
        rows = [repr(tuple(row)) for table in tables.tables.values() for row in connection.execute(select(table))]
    assert rows and not any(secret in row for row in rows)


def test_days_are_written_in_one_way() -> None:
    for text in ("20251007", "2025-W41-2", "1759795200", "2025-10-7", "２０２５-10-07"):
        with pytest.raises(ValueError, match="expected a day such as"):
            api._iso_day(text)
    assert api._iso_day("2025-10-07") == "2025-10-07" and api._iso_day(dt.date(2025, 10, 7)) == dt.date(2025, 10, 7)
