"""Runs from the page: started by administrators, watched live, cancelled; and runs of other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from starlette.testclient import TestClient

from tests.web.conftest import HOLDS
from tests.web.running import running_site
from tests.web.visitors import Reader
from working_papers.bench.jobs import (
    CANCELLED,
    FINISHED,
    SharedRunRow,
    beat,
    cancel_job,
    claim_job,
    end_job,
    enqueue_job,
    get_job,
)
from working_papers.bench.rooms import Room
from working_papers.bench.store import Store
from working_papers.daily.accounts.accounts import make_account
from working_papers.daily.accounts.tokens import make_token
from working_papers.daily.catalogue import sync_rooms


@pytest.fixture
def admin(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine, "root@example.org", administrator=True)


@pytest.fixture
def anybody(client: TestClient, engine: Engine) -> Reader:
    return Reader(client, engine)


def test_an_administrator_starts_a_run_and_everybody_watches(admin: Reader, anybody: Reader, engine: Engine) -> None:
    page = admin.get("/papers/2510.05491").text
    assert 'action="/runs"' in page and 'action="/runs"' not in anybody.get("/papers/2510.05491").text
    started = admin.post("/runs", {"slug": HOLDS, "scale": "smoke"})
    path = started.headers["location"]
    assert (
        started.status_code == 303
        and admin.post("/runs", {"slug": HOLDS, "scale": "smoke"}).headers["location"] == path
    )
    number = int(path.rpartition("/")[2])
    page = anybody.get(path).text
    assert "Queued" in page and "NorMuon" in page and "Cancel" not in page and 'http-equiv="refresh"' in page
    assert "Cancel the run" in admin.get(path).text
    claim_job(engine, "a secret machine")
    progress = {
        "stage": "trials",
        "done": 3,
        "total": 10,
        "stored": 0,
        "running": [{"arm": "muon", "seed": 1, "fraction": 0.5}],
    }
    beat(engine, number, "a secret machine", progress=progress)
    page = anybody.get(path).text
    assert "3 of 10 trials" in page and "muon, seed 1" in page
    content = anybody.get(f"{path}.json")
    assert content.json()["progress"]["done"] == 3 and "secret machine" not in content.text + page
    assert f'href="{path}"' in anybody.get("/papers/2510.05491").text, "the paper's page tells of it"

    assert admin.post(f"{path}/cancel").status_code == 303
    assert beat(engine, number, "a secret machine") == "cancel" and "Stopping" in admin.get(path).text
    end_job(engine, number, "a secret machine", CANCELLED)
    page = anybody.get(path).text
    assert "Cancelled" in page and 'http-equiv="refresh"' not in page
    assert path in anybody.get("/runs").text


def test_a_finished_run_shows_what_came_of_it(anybody: Reader, engine: Engine, sample_rooms: dict[str, Room]) -> None:
    number = enqueue_job(engine, HOLDS, "smoke")
    claim_job(engine, "w")
    store = Store(engine)
    run = store.begin(slug=HOLDS, scale="smoke", sham=False, seeds=2, code_hash="0")
    beat(engine, number, "w", run_id=run)
    record = json.loads((sample_rooms[HOLDS].folder / "reference.json").read_text())
    store.end(run, "finished", record=record)
    end_job(engine, number, "w", FINISHED)
    page = anybody.get(f"/runs/{number}").text
    assert "Finished" in page and "Holds" in page and "What came of it, in a sentence." in page


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_events_tell_every_change_and_end_with_the_run(anybody: Reader, engine: Engine) -> None:
    number = enqueue_job(engine, HOLDS, "smoke")
    cancel_job(engine, number)
    answer = anybody.get(f"/runs/{number}/events")
    assert (
        answer.headers["content-type"].startswith("text/event-stream") and answer.headers["cache-control"] == "no-store"
    )
    assert [each["status"] for each in events(answer.text)] == [CANCELLED]
    assert anybody.get("/runs/999/events").status_code == 404


@pytest.mark.slow
def test_events_come_while_the_run_goes_on(engine: Engine, home: Path) -> None:
    import httpx

    sync_rooms(engine)
    number = enqueue_job(engine, HOLDS, "smoke")
    with running_site(home) as address, httpx.stream("GET", f"{address}/runs/{number}/events", timeout=30) as answer:
        lines = answer.iter_lines()
        seen: list[str] = []
        for line in lines:
            if not line.startswith("data: "):
                continue
            content = json.loads(line.removeprefix("data: "))
            seen.append(content["status"])
            if content["status"] == "queued":
                claim_job(engine, "w")
            elif content["status"] == "running" and content["progress"] is None:
                beat(
                    engine, number, "w", progress={"stage": "trials", "done": 1, "total": 2, "stored": 0, "running": []}
                )
            elif content["status"] == "running":
                end_job(engine, number, "w", FINISHED)
    assert seen == ["queued", "running", "running", "finished"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slug": "no_such", "scale": "smoke"}, "There is no study “no_such” here."),
        ({"slug": "barlow_twins", "scale": "smoke"}, "There is no study"),
        ({"slug": HOLDS, "scale": "huge"}, "There is no scale “huge”"),
        ({"slug": "../../etc", "scale": "<b>"}, "There is no study"),
        ({}, "There is no study"),
    ],
)
def test_what_cannot_be_run_is_told(admin: Reader, fields: dict[str, str], words: str) -> None:
    answer = admin.post("/runs", fields)
    assert answer.status_code == 422 and words in answer.text


def test_numbers_of_runs_that_are_none(anybody: Reader) -> None:
    for path in ("/runs/0", "/runs/99999999999999999999", "/runs/7.json", "/runs/99999999999999999999/events"):
        assert anybody.get(path).status_code == 404, path
    assert anybody.get("/runs?page=x").status_code == 200


# Runs of other machines


def record_of(rooms: dict[str, Room]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((rooms[HOLDS].folder / "reference.json").read_text())
    return content


@pytest.fixture
def token(client: TestClient, engine: Engine) -> str:
    return make_token(engine, make_account(engine, "ada@example.org", "Ada").id, "share")


def send(client: TestClient, token: str, content: Any) -> Any:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post("/api/v1/shared-runs", content=body, headers={"Authorization": f"Bearer {token}"})


def test_a_run_of_another_machine_is_shown_beside_the_verdict(
    client: TestClient, engine: Engine, token: str, sample_rooms: dict[str, Room]
) -> None:
    content = record_of(sample_rooms)
    answer = send(client, token, content)
    assert answer.status_code == 201 and answer.json() == {"id": 1, "new": True, "same_code": True}
    again = send(client, token, content)
    assert again.status_code == 200 and again.json() == {"id": 1, "new": False, "same_code": True}
    other = {**content, "code_hash": "a" * 64, "seeds": 3, "machine": {"processor": "<script>x</script>"}}
    assert send(client, token, other).json()["same_code"] is False
    page = client.get("/papers/2510.05491").text
    assert "Replicated on other machines" in page and "sent by Ada" in page and page.count("Other code") == 1
    assert "<script>x" not in page
    assert client.get("/api/v1/rooms/normuon/verdict").json()["record"]["code_hash"] == content["code_hash"]
    numbers = [each["id"] for each in client.get("/api/v1/shared-runs?slug=normuon").json()]
    assert len(numbers) == 2 and numbers[0] > numbers[1] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slug": "no_such"}, "slug is 'no_such'; there is no such study here"),
        ({"slug": "../normuon"}, "there is no such study here"),
        ({"sham_run": True}, "a sham control is no replication"),
        ({"answer": "does not hold"}, "its checks say 'holds'"),
        ({"answer": "perhaps"}, "expected one of"),
        ({"scale": "huge"}, "scale is 'huge'"),
        ({"seeds": 5}, "has 3 values for 5 seeds"),
        ({"seeds": 10**9}, "expected 1 to 1000"),
        ({"date": "2999-01-01T00:00:00Z"}, "not in the future"),
        ({"date": "2020-01-01T00:00:00"}, "a moment with its zone"),
        ({"code_hash": "x"}, "code_hash is not"),
        ({"method": "nobody"}, "which is none of the arms"),
        ({"checks": []}, "at least one"),
        ({"format": 99}, "this site reads"),
        ({"summary": "x" * 5000}, "more than any study's"),
        ({"versions": {str(n): "1" for n in range(50)}}, "larger than any run's"),
        ({"arms": {}}, "none of the arms"),
    ],
)
def test_records_that_no_run_has_written_are_refused(
    client: TestClient, engine: Engine, token: str, sample_rooms: dict[str, Room], change: dict[str, Any], words: str
) -> None:
    answer = send(client, token, {**record_of(sample_rooms), **change})
    assert answer.status_code == 422 and words in answer.json()["error"], answer.text
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(SharedRunRow)).scalar_one() == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"slug": 1e999}', b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_records_are_refused(client: TestClient, token: str, body: bytes) -> None:
    answer = send(client, token, body)
    assert answer.status_code == 422 and answer.json()["error"]


def test_numbers_that_are_none_are_refused(client: TestClient, token: str, sample_rooms: dict[str, Room]) -> None:
    content = record_of(sample_rooms)
    content["arms"]["ours"]["measures"]["test error"][0] = float("nan")
    assert send(client, token, content).status_code == 422


@pytest.mark.slow
def test_a_run_is_made_and_shared_from_the_command_line(
    engine: Engine, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: run a study at smoke scale elsewhere, send it, read it there."""
    import os
    import subprocess
    import sys

    sync_rooms(engine)
    token = make_token(engine, make_account(engine, "ada@example.org").id, "share")
    elsewhere = {
        **os.environ,
        "WORKING_PAPERS_HOME": str(tmp_path / "elsewhere"),
        "WORKING_PAPERS_DATABASE": "",
        "WORKING_PAPERS_TOKEN": token,
        "OMP_NUM_THREADS": "1",
    }

    def run(address: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = ["run", "matrix_sensing", "--scale", "smoke", "--share", address]
        command = [sys.executable, "-m", "working_papers.cli", *words]
        return subprocess.run(command, env={**elsewhere, **more}, capture_output=True, text=True, check=False)

    with running_site(home) as address:
        done = run(address)
        assert done.returncode == 0 and "shown there as a replication, with the code that the site has" in done.stdout
        assert "has this run already" in run(address).stdout or "shown there" in done.stdout
        refused = run(address, WORKING_PAPERS_TOKEN="wp_wrong")
        assert refused.returncode == 1 and "does not take the run (status 401)" in refused.stderr
    assert "needs a token in WORKING_PAPERS_TOKEN" in run("http://127.0.0.1:1", WORKING_PAPERS_TOKEN="").stderr
    assert "not sent over an open line" in run("http://papers.example").stderr
    assert "expected the address of a site" in run("papers.example").stderr
    away = run("http://127.0.0.1:1")
    assert away.returncode == 1 and "does not answer" in away.stderr and "Traceback" not in away.stderr
    job = get_job(engine, 1)
    assert job is None
