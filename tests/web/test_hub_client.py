"""The real client of the Hugging Face Hub against our server: its Python API and its `hf` command, unchanged."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from sqlalchemy import Engine
from starlette.testclient import TestClient

from tests.web.running import running_site
from working_papers.bench.rooms import Room
from working_papers.config import Settings
from working_papers.daily.accounts.accounts import make_account
from working_papers.daily.accounts.tokens import make_token
from working_papers.daily.catalogue import get_paper, sync_rooms
from working_papers.daily.community.comments import write_comment
from working_papers.daily.community.models import SubmissionRow
from working_papers.daily.community.votes import vote
from working_papers.daily.importing import import_papers
from working_papers.daily.records import PaperRecord
from working_papers.database import now
from working_papers.web.app import create_app
from working_papers.web.routes import hub

MUON = "2510.05491"


@pytest.fixture
def furnished(engine: Engine) -> Engine:
    """The rooms, a vote, a comment, a submission, and papers of one week."""
    sync_rooms(engine)
    records = [
        PaperRecord(
            title=f"Paper {number}",
            arxiv=f"2503.0000{number}",
            abstract="About trees.",
            authors=("Ada Lovelace",),
            published=dt.date(2005, 3, number),
        )
        for number in range(1, 6)
    ]
    records.append(PaperRecord(title="An old one", arxiv="cs/0112017", abstract="x", published=dt.date(2001, 12, 11)))
    import_papers(engine, "jsonl", "x", records)
    account = make_account(engine, "ada@example.org", "Ada")
    for id in (MUON, "2503.00002"):
        paper = get_paper(engine, id)
        assert paper is not None
        vote(engine, account.id, paper.number)
    paper = get_paper(engine, "2503.00003")
    assert paper is not None
    write_comment(engine, account.id, paper.number, "Hm.")
    with engine.begin() as connection:
        connection.execute(
            SubmissionRow.__table__.insert().values(number=paper.number, account_id=account.id, created=now())  # type: ignore[attr-defined]
        )
    return engine


@pytest.fixture
def address(furnished: Engine, home: Path) -> Iterator[str]:
    with running_site(home) as running:
        yield running


def ids(papers: Any) -> list[str]:
    return [paper.id for paper in papers]


@pytest.mark.slow
def test_the_python_client(address: str) -> None:
    api = HfApi(endpoint=address, token=False)
    papers = list(api.list_daily_papers(date="2005-03-03"))
    assert ids(papers) == ["2503.00003"]
    (paper,) = papers
    assert paper.title == "Paper 3" and paper.summary == "About trees." and paper.comments == 1
    assert paper.authors is not None and paper.authors[0].name == "Ada Lovelace"
    assert paper.published_at == dt.datetime(2005, 3, 3, tzinfo=dt.UTC)
    assert paper.submitted_by is not None and paper.submitted_by.fullname == "Ada" and paper.submitted_at is not None
    assert paper.upvotes == 0
    assert ids(api.list_daily_papers(week="2005-W09", limit=2)) == ["2503.00005", "2503.00004"]
    assert len(list(api.list_daily_papers(month="2005-03"))) == 5
    assert ids(api.list_daily_papers(month="2005-03", limit=2, p=1)) == ["2503.00003", "2503.00002"]
    assert ids(api.list_daily_papers(submitter="ada")) == ["2503.00003"]
    assert (
        list(api.list_daily_papers(submitter="nobody")) == [] and list(api.list_daily_papers(date="1999-01-01")) == []
    )
    trending = list(api.list_daily_papers(sort="trending", limit=3))
    assert {trending[0].id, trending[1].id} == {MUON, "2503.00002"} and trending[0].upvotes == 1
    assert ids(api.list_daily_papers(month="2005-03", sort="trending"))[0] == "2503.00002"

    found = list(api.list_papers(query="NorMuon: Making Muon more efficient and scalable", limit=5))
    assert found[0].id == MUON and found[0].github_repo and found[0].ai_summary
    info = api.paper_info(MUON)
    assert info.title and info.title.startswith("NorMuon") and info.upvotes == 1 and info.linked_models in (None, [])
    text = api.read_paper(MUON)
    assert text.startswith("# NorMuon") and "## Verdict" in text and "working-papers run normuon" in text
    assert api.paper_info("normuon").id == MUON and api.paper_info("cs/0112017").title == "An old one"
    assert api.read_paper("2503.00001v2").startswith("# Paper 1")
    for call in (api.paper_info, api.read_paper):
        with pytest.raises(HfHubHTTPError) as caught:
            call("2999.99999")
        assert caught.value.response is not None and caught.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError, match="expected publishedAt or trending"):
        list(api.list_daily_papers(sort="upvotes"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_hf_command(address: str, furnished: Engine, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("hf")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }

    def hf(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(program), "papers", *words], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    rows = json.loads(hf("ls", "--date", "2005-03-03", "--format", "json"))
    assert [row["id"] for row in rows] == ["2503.00003"] and rows[0]["comments"] == 1
    assert "Paper 3" in hf("ls", "--date", "2005-03-03")
    rows = json.loads(hf("search", "trees", "--limit", "3", "--format", "json"))
    assert rows and all(row["title"] for row in rows)
    assert json.loads(hf("info", MUON))["title"].startswith("NorMuon")
    assert hf("read", MUON).startswith("# NorMuon")
    assert "2999.99999" in hf("info", "2999.99999", code=1)
    assert json.loads(hf("ls", "--date", "1999-01-01", "--format", "json")) == []


# Without the client, what it does not show


@pytest.fixture
def site(client: TestClient) -> TestClient:
    return client


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("date=soon", "date is 'soon'; expected e.g. 2025-10-07"),
        ("week=2025-W60", "week is '2025-W60'"),
        ("month=2025-13", "month is '2025-13'"),
        ("date=2025-01-01&month=2025-01", "exclude each other"),
        ("limit=0", "limit is '0'; expected a number from 1 to 100"),
        ("limit=101", "limit is '101'"),
        ("limit=%F0%9D%9F%99", "limit is"),
        ("p=-1", "p is '-1'"),
        ("sort=best", "sort is 'best'"),
    ],
)
def test_wrong_parameters_are_named(site: TestClient, query: str, words: str) -> None:
    answer = site.get(f"/api/daily_papers?{query}")
    assert answer.status_code == 400 and words in answer.json()["error"]
    error = answer.json()["error"]
    assert answer.headers.get("x-error-message") == (error if error.isascii() else None)


def test_long_queries_and_unknown_papers(site: TestClient) -> None:
    assert site.get("/api/papers/search", params={"q": "x" * 251}).status_code == 400
    assert site.get("/api/papers/search").status_code == 200, "no words: the newest papers"
    answer = site.get("/api/papers/2999.99999")
    assert answer.status_code == 404 and "No paper here has that id" in answer.json()["error"]
    assert site.get("/papers/2999.99999.md").status_code == 404


def test_all_papers_can_be_paged_through(site: TestClient) -> None:
    seen: list[str] = []
    path = "/api/papers?limit=50"
    while path:
        answer = site.get(path)
        seen += [paper["id"] for paper in answer.json()]
        link = answer.headers.get("link", "")
        path = link.partition("<")[2].partition(">")[0].removeprefix("http://testserver")
    assert len(seen) == len(set(seen)) == 68


def test_tokens_of_others_are_ignored_and_ours_are_known(site: TestClient, engine: Engine) -> None:
    answer = site.get("/api/daily_papers", headers={"Authorization": "Bearer hf_secret"})
    assert answer.status_code == 200
    assert site.get("/api/whoami-v2", headers={"Authorization": "Bearer hf_secret"}).status_code == 401
    token = make_token(engine, make_account(engine, "ada@example.org", "Ada").id, "x")
    assert site.get("/api/whoami-v2", headers={"Authorization": f"Bearer {token}"}).json()["name"] == "Ada"
    assert site.get("/api/agent-harnesses").json() == {"standardEnvVars": [], "harnesses": {}}


def test_requests_are_echoed_by_their_id_but_not_smuggled(site: TestClient) -> None:
    answer = site.get("/api/daily_papers", headers={"X-Amzn-Trace-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert "x-request-id" not in site.get("/api/daily_papers", headers={"X-Request-Id": "x" * 500}).headers


def test_what_is_nasty_stays_text(site: TestClient) -> None:
    text = site.get("/papers/2401.01234.md").text.partition("## Cite")[0]
    assert text.startswith("# Shapes & \\<script\\>") and "<img" not in text.replace("\\<img", "")
    assert "<script>" not in text.replace("\\<script", "").replace("{<script>alert(2)</script>}", ""), (
        "but in a formula"
    )
    paper = site.get("/api/papers/2401.01234")
    assert paper.headers["content-type"] == "application/json" and paper.json()["title"].startswith("Shapes & <script>")
    assert paper.headers["x-content-type-options"] == "nosniff"


def test_markdown_is_given_to_those_who_ask_for_it(site: TestClient) -> None:
    answer = site.get(f"/papers/{MUON}", headers={"Accept": "text/markdown"})
    assert answer.headers["content-type"].startswith("text/markdown") and answer.text.startswith("# NorMuon")


def test_markdown_comes_from_the_pages_own_address(site: TestClient) -> None:
    path = f"/papers/{MUON}"
    for accept, kind in (
        ("text/markdown", "text/markdown"),
        ("application/json;q=0.1, TEXT/MARKDOWN;q=0.9, text/html;q=0.8", "text/markdown"),
        ("text/html, text/markdown;q=0.9", "text/html"),
        ("text/markdown;q=0", "text/html"),
        ("text/markdown;q=x", "text/html"),
        ("*/*", "text/html"),
        ("", "text/html"),
    ):
        answer = site.get(path, headers={"Accept": accept}, follow_redirects=False)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind), accept
        assert "Accept" in [name.strip() for name in answer.headers["vary"].split(",")]
    assert site.get(path, headers={"Accept": "text/markdown"}).text == site.get(f"{path}.md").text
    answer = site.get("/papers/normuon", headers={"Accept": "text/markdown"}, follow_redirects=False)
    assert answer.status_code == 308 and answer.headers["location"] == path


def test_errors_carry_what_the_client_shows(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils._http import parse_ratelimit_headers

    asked = {"X-Amzn-Trace-Id": "1-abc"}
    answer = site.get("/api/papers/2999.99999", headers=asked)
    assert answer.headers["x-request-id"] == "1-abc"
    assert answer.headers["x-error-message"] == answer.json()["error"]
    answer = site.get("/api/papers?cursor=é", headers=asked)
    assert answer.status_code == 400 and "é" in answer.json()["error"] and "x-error-message" not in answer.headers
    monkeypatch.setattr(hub, "CALLS", (2, 300))
    for _ in range(2):
        site.get(f"/api/papers/{MUON}")
    answer = site.get(f"/api/papers/{MUON}", headers=asked)
    assert answer.status_code == 429 and answer.headers["x-request-id"] == "1-abc"
    told = parse_ratelimit_headers(answer.headers)
    assert told is not None and told.remaining == 0 and 1 <= told.reset_in_seconds <= 300
    assert told.resource_type == "api" and told.limit == 2 and told.window_seconds == 300
    assert site.get("/api/papers/search?q=x").status_code == 200, "searches are counted for themselves"
    assert site.get("/api/v1/rooms").status_code == 200, "and so is the site's own API"


def test_pages_of_what_trends_and_of_submitters(
    settings: Settings, furnished: Engine, sample_rooms: dict[str, Room]
) -> None:
    with TestClient(create_app(settings, sample_rooms)) as site:

        def ids_of(**query: Any) -> list[str]:
            answer = site.get("/api/daily_papers", params=query)
            assert answer.status_code == 200, answer.text
            return [paper["id"] for paper in answer.json()]

        # Number 2 has a vote and number 3 a comment; the others follow as they came.
        month = ["2503.00002", "2503.00003", "2503.00005", "2503.00004", "2503.00001"]
        assert ids_of(month="2005-03", sort="trending") == month
        pages = [ids_of(month="2005-03", sort="trending", limit=2, p=page) for page in range(4)]
        assert pages == [month[:2], month[2:4], month[4:], []]
        assert ids_of(date="2005-03-01", sort="trending") == ["2503.00001"]
        assert ids_of(date="1999-01-01", sort="trending") == []
        assert ids_of(submitter="ADA", month="2005-03") == ["2503.00003"]
        assert ids_of(submitter="Ada", month="2005-04") == [] == ids_of(submitter="Ada", p=1)
        assert ids_of(submitter="%") == [] == ids_of(submitter="' OR 1=1 --")


def test_papers_that_come_meanwhile_move_no_page(site: TestClient, engine: Engine) -> None:
    first = site.get("/api/papers?limit=10")
    new = PaperRecord(title="New", arxiv="2699.00001", published=now().date())
    import_papers(engine, "jsonl", "x", [new])
    path = first.headers["link"].partition("<")[2].partition(">")[0].removeprefix("http://testserver")
    second = site.get(path)
    assert not {paper["id"] for paper in first.json()} & {paper["id"] for paper in second.json()}
    assert site.get("/api/papers?limit=1").json()[0]["id"] == "2699.00001"
