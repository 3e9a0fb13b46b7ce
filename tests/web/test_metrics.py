"""Numbers for Prometheus and the log of requests: by route, nothing personal, nothing secret."""

from __future__ import annotations

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine
from starlette.testclient import TestClient


def numbers(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route(client: TestClient) -> None:
    for path in ("/papers/2510.05491", "/papers/2401.01234", "/no/such/page", "/feed"):
        client.get(path)
    found = numbers(client)

    def of(route: str, status: str) -> float:
        labels = frozenset({("method", "GET"), ("route", route), ("status", status)})
        return found["working_papers_requests_total", labels]

    assert of("/papers/{paper_id:path}", "200") == 2
    assert of("/feed", "200") == 1
    assert of("none", "404") == 1
    assert found["working_papers_request_seconds_count", frozenset({("route", "/feed")})] == 1


def test_the_database_is_counted(client: TestClient, filled: Engine) -> None:
    found = numbers(client)
    assert found["working_papers_database_up", frozenset()] == 1
    assert found["working_papers_papers", frozenset()] == 68
    assert found["working_papers_votes", frozenset()] == 0


def test_a_database_that_is_away_is_a_number_and_no_error(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def away(_: object) -> int:
        raise OperationalError("select", {}, Exception("away"))

    monkeypatch.setattr("working_papers.web.metrics.paper_count", away)
    found = numbers(client)
    assert found["working_papers_database_up", frozenset()] == 0
    assert ("working_papers_papers", frozenset()) not in found


def test_the_log_has_a_line_for_each_request_without_its_query(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="working_papers.requests"):
        client.get("/search?q=what+I+look+for", headers={"Authorization": "Bearer very-secret"})
        client.get("/static/style.css")
        client.get("/a%0Afaked%0Aline")
    lines = [record.getMessage() for record in caplog.records if record.name == "working_papers.requests"]
    assert lines[0] == "GET /search 200" and len(lines) == 2
    assert "\n" not in lines[1]
    assert "secret" not in caplog.text and "look" not in caplog.text


def test_numbers_are_for_this_machine(client: TestClient) -> None:
    far = TestClient(client.app, client=("203.0.113.5", 1234))
    assert far.get("/metrics").status_code == 404
