"""Log lines: one a record whatever the message holds, for people and for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from working_papers.cli.logs import JsonLines, TextLines, configure_logs
from working_papers.config import load_settings


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("working_papers.x", logging.WARNING, "file", 1, message, arguments, None)
    made.created = 1_770_000_000.123
    made.__dict__.update(extra)
    return made


def test_json_lines_hold_everything() -> None:
    line = JsonLines().format(record("%s\nfaked line", "a paper", route="/papers", milliseconds=1.5))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-02-02T02:40:00.123+00:00",
        "level": "warning",
        "logger": "working_papers.x",
        "message": "a paper\nfaked line",
        "route": "/papers",
        "milliseconds": 1.5,
    }


def test_json_lines_keep_the_traceback() -> None:
    try:
        raise ValueError("what went wrong")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert "ValueError: what went wrong" in json.loads(JsonLines().format(made))["error"]
    assert "ValueError: what went wrong" in TextLines().format(made)


def test_a_message_cannot_fake_a_text_line() -> None:
    line = TextLines().format(record("one\n2026-02-02 00:00:00 error two\r", route="/x"))
    assert line == "2026-02-02 02:40:00 warning one\\n2026-02-02 00:00:00 error two\\r route=/x"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], level = before
    logger.setLevel(level)


def test_settings_choose_format_and_level(
    home: Path, monkeypatch: pytest.MonkeyPatch, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKING_PAPERS_LOG_FORMAT", "json")
    monkeypatch.setenv("WORKING_PAPERS_LOG_LEVEL", "warning")
    configure_logs(load_settings())
    logging.getLogger("working_papers.y").info("not this")
    logging.getLogger("working_papers.y").warning("but this")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "but this"
