"""How log lines are written: text for people, one JSON object a line for programs."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Any

from working_papers.config import Settings

_OWN = set(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName", "color_message"}
"""Attributes that every record has; what is left was given with `extra`."""


def configure_logs(settings: Settings) -> None:
    """Send the log of this process to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for chatty in ("httpx", "httpcore", "alembic", "urllib3", "arxiv", "mcp", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given with `extra`."""
    return {name: value for name, value in record.__dict__.items() if name not in _OWN}


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, what was given with `extra`, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        content: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extra_of(record),
        }
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Time, level and message; what was given with `extra` follows. A line break in a message cannot fake a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback below it."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        more = "".join(f" {name}={value}" for name, value in extra_of(record).items())
        line = f"{moment:%Y-%m-%d %H:%M:%S} {record.levelname.lower():7} {message}{more}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
