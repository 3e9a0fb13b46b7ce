"""How fast the site is: time to the first page, and server time a page at 66 papers and among millions.

    python benchmarks/page_speed.py                    # 66 papers and the start
    python benchmarks/page_speed.py --papers 3000000   # and that many synthetic ones (about 400 bytes of text each)

Server time is what the `Server-Timing` header says: from the request's arrival in the application to its first byte,
templates, database, search and compression included. Every request asks for another paper, day or topic. The synthetic
papers are in the database and not in the search index, whose speed has a script of its own (`search_scale.py`).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
from sqlalchemy import Engine
from starlette.testclient import TestClient

from working_papers.config import Settings
from working_papers.daily.catalogue import sync_rooms
from working_papers.daily.search import SearchIndex
from working_papers.database import open_database
from working_papers.web.app import create_app

SYLLABLES = "net graph learn deep sparse model flow kernel train data loss norm field prior token state wave code"

INSERT = """
WITH RECURSIVE counted(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM counted WHERE n < :last)
INSERT INTO papers (number, id, title, abstract, summary, authors, author_count, published, day, updated,
                    categories, comment_count, upvotes, source, url, doi, journal, room, text_hash, title_hash,
                    first_seen, revision)
SELECT n, printf('%02d%02d.%05d', 7 + n / 1200000 % 90, 1 + n / 100000 % 12, n % 100000),
       printf('Synthetic paper %d: %s', n, substr(:text, 1 + n * 7919 % 2000, 60)),
       substr(:text, 1 + n * 104729 % 2000, 400) || ' with $O(n^2)$ steps.', '', '["Ada Lovelace", "Alan Turing"]', 2,
       date('2007-04-01', (n / 440) || ' days'), date('2007-04-01', (n / 440) || ' days'), NULL,
       json_array('cs.' || char(65 + n % 26, 66 + n % 7)), 0, 0, 'jsonl', NULL, NULL, NULL, NULL,
       printf('%032d', n), n, '2026-01-01 00:00:00', n
FROM counted
"""

TOPICS = """
INSERT INTO paper_topics (topic, day, number)
SELECT 'cs.' || char(65 + number % 26, 66 + number % 7) AS topic, day, number FROM papers WHERE number > :known
ORDER BY topic, day, number
"""


def fill(engine: Engine, papers: int) -> None:
    """Put synthetic papers into the database, in SQL alone; indexes are made afterwards."""
    generator = random.Random(0)
    words = " ".join(generator.choice(SYLLABLES.split()) for _ in range(800))
    with engine.begin() as connection:
        known = connection.exec_driver_sql("SELECT last_number FROM catalogue_state").scalar_one()
        indexes = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'papers' AND sql IS NOT NULL"
        ).all()
        for name, _ in indexes:
            connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.exec_driver_sql(INSERT, {"first": known + 1, "last": known + papers, "text": words})
        connection.exec_driver_sql(TOPICS, {"known": known})
        for _, sql in indexes:
            connection.exec_driver_sql(sql)
        connection.exec_driver_sql(
            "UPDATE catalogue_state SET last_number = :last, last_revision = :last", {"last": known + papers}
        )
        connection.exec_driver_sql("ANALYZE")


@contextmanager
def site(settings: Settings) -> Iterator[TestClient]:
    """The application, running."""
    with TestClient(create_app(settings)) as client:
        yield client


def server_times(client: TestClient, address: Callable[[int], str], count: int) -> list[float]:
    """Milliseconds of each request, after two that are not counted."""
    times = []
    for number in range(-2, count):
        response = client.get(address(number))
        response.raise_for_status()
        timing = re.search(r"dur=([\d.]+)", response.headers["server-timing"])
        assert timing is not None
        if number >= 0:
            times.append(float(timing[1]))
    return times


def measure(client: TestClient, ids: list[str], count: int) -> dict[str, list[float]]:
    """Server times of the pages, each request with other papers."""
    days = [f"{2008 + number % 17}-{1 + number % 12:02}-{1 + number % 28:02}" for number in range(count + 2)]
    pages: dict[str, Callable[[int], str]] = {
        "front page": lambda number: "/",
        "feed, latest": lambda number: f"/feed?page={1 + number % 3}",
        "feed, a day": lambda number: f"/feed?period=day&start={days[number]}",
        "feed, a month": lambda number: f"/feed?period=month&start={days[number]}",
        "feed, a month of a topic": lambda number: f"/feed?period=month&topic=cs.BC&start={days[number]}",
        "paper": lambda number: f"/papers/{ids[number % len(ids)]}",
        "rooms": lambda number: "/rooms",
        "search": lambda number: f"/search?q={SYLLABLES.split()[number % 18]}+{SYLLABLES.split()[number % 7]}",
        "status": lambda number: "/status",
    }
    return {name: server_times(client, address, count) for name, address in pages.items()}


def start_to_first_page(home: Path) -> tuple[float, float]:
    """Seconds from the command to its line, and to the first page in a reader's hands."""
    environment = os.environ | {"WORKING_PAPERS_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "working_papers.cli", "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        listening = time.perf_counter() - started
        found = re.search(r"http://\S+", line)
        assert found is not None, f"the site did not start: {line!r}"
        httpx.get(found[0], timeout=30).raise_for_status()
        return listening, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(timeout=30)


def show(heading: str, times: dict[str, list[float]]) -> None:
    """Print a table."""
    print(f"\n{heading}\n{'page':26}{'median ms':>11}{'95 % ms':>11}{'worst ms':>11}")
    for name, values in times.items():
        ordered = sorted(values)
        late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        print(f"{name:26}{statistics.median(values):11.1f}{late:11.1f}{ordered[-1]:11.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=0, help="synthetic papers for the second table")
    parser.add_argument("--requests", type=int, default=60, help="requests a page")
    parser.add_argument("--starts", type=int, default=3, help="times the site is started")
    parser.add_argument("--folder", type=Path, help="where the temporary home is made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        home = Path(folder)
        settings = Settings(home=home, database="")
        for number in range(given.starts):
            listening, page = start_to_first_page(home)
            first = " (new home: database and index are made)" if number == 0 else ""
            print(f"start: listening after {listening:.2f} s, first page after {page:.2f} s{first}")
        engine = open_database(settings)
        sync_rooms(engine)
        with closing(SearchIndex.open(settings)) as index:
            index.catch_up(engine)
        with engine.connect() as connection:
            ids = list(connection.exec_driver_sql("SELECT id FROM papers ORDER BY number").scalars())
        with site(settings) as client:
            show(f"{len(ids)} papers", measure(client, ids, given.requests))
        if given.papers:
            started = time.perf_counter()
            fill(engine, given.papers)
            size = (home / "working-papers.db").stat().st_size / 1e9
            print(f"\n{given.papers:,} papers made in {time.perf_counter() - started:.0f} s, {size:.1f} GB")
            generator = random.Random(1)
            with engine.connect() as connection:
                ids = [
                    connection.exec_driver_sql(f"SELECT id FROM papers WHERE number = {number}").scalar_one()
                    for number in (generator.randint(1, given.papers) for _ in range(given.requests + 2))
                ]
            with site(settings) as client:
                show(f"{given.papers:,} papers", measure(client, ids, given.requests))
        engine.dispose()


if __name__ == "__main__":
    main()
