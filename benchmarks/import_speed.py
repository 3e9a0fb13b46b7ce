"""How fast a metadata snapshot is imported, in how much memory, and how fast the feed of a large catalogue answers.

    python benchmarks/import_speed.py [--data FOLDER] [--papers 60000] [--feed 0]

The snapshot is `arxiv-metadata-60k.jsonl.gz` of the data folder, repeated under other ids where more papers are asked
for; without the folder a made-up one with texts of the same lengths takes its place. Each line of the table is a
process of its own, so that peak memory is its own as well. Speeds are of wall-clock time and mean something only on an
otherwise idle machine; the processor's seconds beside them tell when it was not.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

SNAPSHOT = "arxiv-metadata-60k.jsonl.gz"


def made_up(count: int) -> Iterator[bytes]:
    """Records with the lengths of real ones: titles of 10 words, abstracts of 160, three authors."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnoprstuvw", k=chance.randint(2, 11))) for _ in range(40_000)]
    for number in range(count):
        yield json.dumps(
            {
                "id": f"1908.{number % 99_999 + 1:05}",
                "title": " ".join(chance.choices(words, k=10)),
                "abstract": f"  {' '.join(chance.choices(words, k=160))}\n",
                "categories": "cs.LG stat.ML",
                "versions": [{"version": "v1", "created": "Mon, 26 Aug 2019 00:00:00 GMT"}],
                "update_date": "2019-08-26",
                "authors_parsed": [chance.choices(words, k=2) for _ in range(3)],
            }
        ).encode()


def real_lines(file: Path) -> Iterator[bytes]:
    """The lines of the real snapshot."""
    with gzip.open(file) as lines:
        yield from lines


def snapshot(data: Path, count: int, target: Path) -> None:
    """Write `count` records with ids of their own, on days from 2015 on."""
    real = data / SNAPSHOT
    with target.open("wb") as file:
        written = 0
        while written < count:
            for line in islice(real_lines(real) if real.exists() else made_up(60_000), count - written):
                record = json.loads(line)
                day = dt.date(2015, 1, 1) + dt.timedelta(days=written * 4000 // count)
                record["id"] = f"{day:%y%m}.{written % 99_999 + 1:05}"
                record["title"] += f" {written // 60_000}" * (written >= 60_000)
                record["versions"] = [{"version": "v1", "created": f"{day:%a, %d %b %Y} 00:00:00 GMT"}]
                file.write(json.dumps(record).encode() + b"\n")
                written += 1


def measure(mode: str, file: Path) -> dict[str, Any]:
    """One line of the table, measured in this process."""
    from working_papers.config import load_settings
    from working_papers.daily.importing import import_papers
    from working_papers.daily.sources.jsonl import read_jsonl
    from working_papers.database import open_database

    settings = load_settings()
    engine = open_database(settings)
    before = time.process_time(), time.perf_counter()
    if mode == "read":
        count = sum(1 for _ in read_jsonl(file))
    else:
        count = import_papers(engine, "jsonl", file.name, read_jsonl(file)).got
        if mode == "import and index":
            from working_papers.daily.search import SearchIndex

            index = SearchIndex.open(settings)
            index.catch_up(engine)
            index.close()
    return {
        "papers": count,
        "seconds": time.perf_counter() - before[1],
        "processor": time.process_time() - before[0],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(mode: str, file: Path, home: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "WORKING_PAPERS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", mode, "--file", str(file)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def feed_times(papers: int, home: Path) -> None:
    """Time pages of the feed over many papers, put in by one statement."""
    os.environ["WORKING_PAPERS_HOME"] = str(home)
    from sqlalchemy import text

    from working_papers.config import load_settings
    from working_papers.daily.feed import Period, feed
    from working_papers.database import open_database

    engine = open_database(load_settings())
    values = {
        "number": "i",
        "id": "'p-' || i",
        "title": "'Title number ' || i",
        "abstract": "printf('%.900c', 'a')",
        "summary": "''",
        "authors": "json_array('A B')",
        "author_count": "1",
        "day": "date('2006-01-01', (i * 7300 / :papers) || ' days')",
        "categories": "json_array('cs.LG')",
        "comment_count": "0",
        "upvotes": "0",
        "source": "'jsonl'",
        "text_hash": "'x'",
        "title_hash": "i",
        "first_seen": "'2026-01-01 00:00:00'",
        "revision": "i",
    }
    with engine.begin() as connection:
        connection.execute(
            text(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :papers)"
                f" INSERT INTO papers ({', '.join(values)}) SELECT {', '.join(values.values())} FROM n"
            ),
            {"papers": papers},
        )
        connection.execute(
            text("INSERT INTO paper_topics SELECT 'topic ' || (number % 150), day, number FROM papers ORDER BY 1, 2, 3")
        )
    chance = random.Random(0)
    print(f"\nfeed, 50 papers a page, {papers:,} papers    median    slowest of 200")
    periods: tuple[Period, ...] = ("day", "week", "month")
    for period in periods:
        for topic in (None, "topic 7"):
            took = []
            for _ in range(200):
                start = dt.date(2006, 1, 1) + dt.timedelta(days=chance.randrange(7300))
                before = time.perf_counter()
                feed(engine, period, start, topic)
                took.append(1000 * (time.perf_counter() - before))
            name = f"{period}{', one topic' if topic else ''}"
            print(f"  {name:<36}{median(took):>8.1f} ms {max(took):>10.1f} ms")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "search")
    parser.add_argument("--papers", type=int, default=60_000)
    parser.add_argument("--feed", type=int, default=0, metavar="PAPERS", help="also time the feed over so many papers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.file)))
        return
    with tempfile.TemporaryDirectory(prefix="import-speed-") as folder:
        lines = []
        for papers in (options.papers // 4, options.papers):
            file = Path(folder) / f"{papers}.jsonl"
            snapshot(options.data, papers, file)
            for mode in ("read", "import", "import again", "import and index"):
                home = Path(folder) / f"{papers}-{'index' if 'index' in mode else 'plain'}"
                lines.append((mode, in_process(mode, file, home)))
        print("                        papers   papers/s   processor s   peak memory")
        for mode, result in lines:
            speed = result["papers"] / result["seconds"]
            cells = f"{result['papers']:>12,}{speed:>11,.0f}{result['processor']:>14.1f}{result['memory']:>11.0f}"
            print(f"{mode:<18}{cells} MB")
        if options.feed:
            feed_times(options.feed, Path(folder) / "feed")


if __name__ == "__main__":
    main()
