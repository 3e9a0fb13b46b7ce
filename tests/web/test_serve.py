"""The command `serve`, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

COMMAND = [sys.executable, "-m", "working_papers.cli", "serve"]


def environment(home: Path) -> dict[str, str]:
    """What the command finds around it."""
    return {**os.environ, "WORKING_PAPERS_HOME": str(home), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def said(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(home), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_serves_from_an_empty_home_and_stops(home: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"], env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        assert "Papers that run" in httpx.get(found[0], timeout=60).text
        health = httpx.get(f"{found[0]}/healthz", timeout=60).json()
        assert (health["status"], health["papers"]) == ("ok", 66)
        assert httpx.get(f"{found[0]}/search.json?q=normuon", timeout=60).json()["papers"][0]["id"] == "2510.05491"
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


def test_port_in_use_is_one_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = said(home, "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"working-papers: port {port} on 127.0.0.1 is in use; stop what listens there, or name another with --port\n"
    )


def test_foreign_host_is_one_sentence(home: Path) -> None:
    done = said(home, "--host", "no such host", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--host" in done.stderr


def test_corrupt_database_is_one_sentence(sqlite_home: Path) -> None:
    sqlite_home.mkdir()
    (sqlite_home / "working-papers.db").write_bytes(b"no database " * 1000)
    done = said(sqlite_home, "--port", "0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "working-papers.db" in done.stderr
    assert "Traceback" not in done.stderr
