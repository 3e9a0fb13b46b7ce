"""The server for assistants, asked by the protocol's own client over standard input and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from working_papers.bench.jobs import list_jobs
from working_papers.daily.accounts.accounts import make_account
from working_papers.daily.accounts.tokens import make_token
from working_papers.daily.catalogue import sync_rooms
from working_papers.daily.search import SearchIndex

mcp = pytest.importorskip("mcp")

COMMAND = ["-m", "working_papers.cli", "mcp"]


@pytest.fixture
def furnished(engine: Engine, settings: Any) -> Engine:
    sync_rooms(engine)
    index = SearchIndex.open(settings)
    index.catch_up(engine)
    index.close()
    return engine


def content_of(result: Any) -> Any:
    """What a tool gave: its structured content, or its text."""
    assert not result.is_error, result.content
    if result.structured_content is not None:
        return result.structured_content.get("result", result.structured_content)
    return result.content[0].text


@asynccontextmanager
async def over_stdio(home: Path, **more: str) -> AsyncIterator[Any]:
    names = ("PATH", "WORKING_PAPERS_DATABASE")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"WORKING_PAPERS_HOME": str(home), **more}
    server = mcp.StdioServerParameters(command=sys.executable, args=COMMAND, env=environment)
    async with mcp.Client(server) as client:
        yield client


@pytest.mark.slow
def test_an_assistant_searches_reads_and_asks_for_verdicts(furnished: Engine, home: Path) -> None:
    async def talk() -> None:
        async with over_stdio(home) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"search", "read", "similar", "verdict", "run", "job"}
            found = content_of(await client.call_tool("search", {"query": "NorMuon", "limit": 3}))
            assert found[0]["id"] == "2510.05491" and found[0]["room"] == "normuon" and found[0]["verdict"]
            text = content_of(await client.call_tool("read", {"paper": "normuon"}))
            assert text.startswith("# NorMuon")
            verdict = content_of(await client.call_tool("verdict", {"paper": "2510.05491"}))
            assert verdict["record"]["slug"] == "normuon" and verdict["record"]["checks"]
            assert isinstance(content_of(await client.call_tool("similar", {"paper": "normuon"})), list)
            for name, words, said in (
                ("read", {"paper": "2999.99999"}, "there is no paper '2999.99999' here"),
                ("verdict", {"paper": "barlow_twins_missing"}, "there is no paper"),
                ("run", {"paper": "normuon"}, "needs an administrator's token"),
                ("job", {"number": 7}, "there is no job 7"),
            ):
                result = await client.call_tool(name, words)
                assert result.is_error and said in result.content[0].text, result.content

    asyncio.run(talk())
    assert list_jobs(furnished) == []


@pytest.mark.slow
def test_runs_need_an_administrators_token(furnished: Engine, home: Path) -> None:
    reader = make_token(furnished, make_account(furnished, "ada@example.org").id, "x")
    root = make_token(furnished, make_account(furnished, "root@example.org", administrator=True).id, "x")

    async def ask(token: str) -> Any:
        async with over_stdio(home, WORKING_PAPERS_TOKEN=token) as client:
            return await client.call_tool("run", {"paper": "normuon", "scale": "smoke"})

    assert asyncio.run(ask(reader)).is_error and list_jobs(furnished) == []
    started = content_of(asyncio.run(ask(root)))
    (job,) = list_jobs(furnished)
    assert started["job"] == job.id and job.slug == "normuon" and job.scale == "smoke"


@contextmanager
def over_http(home: Path) -> Iterator[str]:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    # The server's own token does not count over HTTP: whoever asks brings theirs.
    environment = os.environ | {"WORKING_PAPERS_HOME": str(home)}
    with subprocess.Popen([sys.executable, *COMMAND, "--http", str(port)], env=environment) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.slow
def test_over_http_whoever_asks_brings_their_token(
    furnished: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    root = make_token(furnished, make_account(furnished, "root@example.org", administrator=True).id, "x")
    monkeypatch.setenv("WORKING_PAPERS_TOKEN", root)

    async def ask(address: str, token: str, name: str, words: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            create_mcp_http_client(headers=headers) as http,
            mcp.Client(streamable_http_client(address, http_client=http)) as client,
        ):
            return await client.call_tool(name, words)

    with over_http(home) as address:
        found = content_of(asyncio.run(ask(address, "", "search", {"query": "NorMuon"})))
        assert found[0]["room"] == "normuon"
        assert asyncio.run(ask(address, "", "run", {"paper": "normuon"})).is_error
        assert asyncio.run(ask(address, "wp_wrong", "run", {"paper": "normuon"})).is_error
        started = content_of(asyncio.run(ask(address, root, "run", {"paper": "normuon", "scale": "smoke"})))
        # A page of another site that a browser on this machine shows must not get at it.
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            headers |= {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
            request = urllib.request.Request(address, b"{}", headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=20)
            assert caught.value.code in (403, 421)
            caught.value.close()
    assert json.dumps(started) and [job.id for job in list_jobs(furnished)] == [started["job"]]


def test_without_the_package_the_command_says_what_to_install(home: Path) -> None:
    program = (
        "import sys; sys.modules['mcp'] = None; sys.argv[1:] = ['mcp']; from working_papers.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "pip install 'working-papers[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
