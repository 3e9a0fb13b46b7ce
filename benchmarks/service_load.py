"""What the service bears: many clients at once, and processes that are killed at any moment. Prints two tables.

    python benchmarks/service_load.py [--papers 100000] [--clients 50] [--seconds 60] [--kills 50] [--postgres]

The site runs as `working-papers serve`, on a database of its own in a temporary folder. Clients read, search, vote and
comment over HTTP on this machine; afterwards every vote and comment that was answered is counted in the database.
With --postgres the same happens on a PostgreSQL server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import Engine, func, select, update

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.postgres import NoPostgres, server  # noqa: E402 - it stands beside the package

from working_papers.bench.jobs import FINISHED, JobRow, enqueue_job, get_job  # noqa: E402
from working_papers.bench.store import TrialRow  # noqa: E402
from working_papers.config import Settings  # noqa: E402
from working_papers.daily.accounts.accounts import make_account  # noqa: E402
from working_papers.daily.accounts.sessions import open_session  # noqa: E402
from working_papers.daily.catalogue import PAPERS, get_paper  # noqa: E402
from working_papers.daily.community.models import CommentRow, VoteRow  # noqa: E402
from working_papers.daily.community.votes import vote  # noqa: E402
from working_papers.daily.digest.subscriptions import Wish, subscribe  # noqa: E402
from working_papers.daily.importing import import_papers, searchable  # noqa: E402
from working_papers.daily.mail.models import MailRow  # noqa: E402
from working_papers.daily.records import PaperRecord  # noqa: E402
from working_papers.database import opened_database  # noqa: E402

# fmt: off
WORDS = (
    "graph", "network", "learning", "attention", "kernel", "sparse", "bayesian", "optimal",
    "transport", "diffusion", "equivariant", "transformer", "gradient", "convex", "stochastic", "robust",
    "federated", "causal", "generative", "contrastive", "recurrent", "spiking", "neural", "operator",
)
# fmt: on
TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"')
FEEDS = ("/", "/feed", "/feed?period=trending", "/feed?period=day")
DIGEST = ("digest", "send", "--frequency", "daily")
MIX = (("feed", 25), ("paper", 30), ("search", 20), ("json", 10), ("vote", 12), ("comment", 3))


@dataclass
class Tally:
    """What clients saw.

    Attributes:
        seconds: of every answer, by kind.
        errors: answers that were none, or not what was asked for.
        refused: answers 429: a limit, not an error.
        votes: papers that each client votes for, as far as it was told.
        comments: numbers of comments that were answered.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    refused: int = 0
    votes: dict[int, dict[str, bool]] = field(default_factory=dict)
    comments: int = 0


def fill(engine: Engine, settings: Settings, count: int) -> list[str]:
    """Papers with made-up titles; returns their ids."""
    chance = random.Random(0)

    def records() -> Iterator[PaperRecord]:
        for number in range(count):
            words = chance.choices(WORDS, k=8)
            yield PaperRecord(
                title=f"{' '.join(words).capitalize()} {number}",
                arxiv=f"{2000 + number // 90000 % 700:04}.{number % 90000 + 10000:05}",
                abstract=" ".join(chance.choices(WORDS, k=120)),
                authors=("Ada Lovelace", "Emmy Noether"),
                published=dt.date(2026, 1, 1) - dt.timedelta(days=number // 300),
                categories=("cs.LG",),
            )

    with searchable(settings, engine, print) as follow:
        import_papers(engine, "jsonl", "made up", records(), on_batch=follow)
    return [record.arxiv or "" for record in records()]


@contextlib.contextmanager
def site(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`working-papers serve`, stopped at the end."""
    environment = os.environ | {
        "WORKING_PAPERS_HOME": str(settings.home),
        "WORKING_PAPERS_DATABASE": settings.database,
        "WORKING_PAPERS_WORKER": "false",
        "WORKING_PAPERS_LOG_LEVEL": "warning",
        "WORKING_PAPERS_DIGEST_HOUR": "23",
    }
    command = [sys.executable, "-m", "working_papers.cli", "serve", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(port)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def wait_for(port: int) -> None:
    """Until the site answers."""
    for _ in range(1200):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).status_code == 200:
                return
        time.sleep(0.05)
    raise SystemExit("the site does not start")


async def client(number: int, address: str, session: str, ids: list[str], until: float, tally: Tally) -> None:
    """One reader: looks, searches, votes and comments, one thing after another."""
    chance = random.Random(number)
    kinds = [kind for kind, share in MIX for _ in range(share)]
    headers = {"X-Forwarded-For": f"10.{number // 250}.{number % 250}.7"}  # so that limits count each by itself
    cookies = {"session": session}
    mine = tally.votes.setdefault(number, {})
    async with httpx.AsyncClient(base_url=address, headers=headers, cookies=cookies, timeout=60) as browser:
        page = await browser.get("/account")
        token = TOKEN.findall(page.text)[0]
        while time.monotonic() < until:
            kind = chance.choice(kinds)
            paper = ids[min(int(chance.expovariate(1 / 40)), len(ids) - 1)]
            started = time.perf_counter()
            try:
                if kind == "feed":
                    answer = await browser.get(
                        chance.choice(("/feed", "/feed?period=trending", "/", "/feed?period=day"))
                    )
                elif kind == "paper":
                    answer = await browser.get(f"/papers/{chance.choice(ids)}")
                elif kind == "search":
                    answer = await browser.get("/search", params={"q": " ".join(chance.sample(WORDS, 2))})
                elif kind == "json":
                    answer = await browser.get("/api/daily_papers", params={"limit": 20})
                elif kind == "vote":
                    wanted = not mine.get(paper, False)
                    answer = await browser.post(
                        f"/papers/{paper}/{'vote' if wanted else 'unvote'}",
                        data={"form_token": token},
                        headers={"Accept": "application/json"},
                    )
                    if answer.status_code == 200:
                        mine[paper] = wanted
                else:
                    answer = await browser.post(
                        f"/papers/{paper}/comments", data={"form_token": token, "body": f"Comment {number} {started}"}
                    )
                    tally.comments += answer.status_code == 303
            except httpx.HTTPError as error:
                tally.errors.append(f"{kind}: {type(error).__name__}")
                continue
            if answer.status_code == 429:
                tally.refused += 1
                await asyncio.sleep(0.5)
            elif answer.status_code not in (200, 303):
                tally.errors.append(f"{kind}: {answer.status_code}")
            else:
                tally.seconds.setdefault(kind, []).append(time.perf_counter() - started)


def quantile(values: list[float], share: float) -> float:
    """Of measured seconds, in milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def load(name: str, settings: Settings, papers: int, clients: int, seconds: float) -> None:
    """Many clients at once; prints a table."""
    with opened_database(settings) as engine:
        ids = fill(engine, settings, papers)
        accounts = [make_account(engine, f"reader{number}@example.org") for number in range(clients)]
        sessions = [open_session(engine, account, "load") for account in accounts]
    tally = Tally()
    port = free_port()
    with site(settings, port):
        until = time.monotonic() + seconds

        async def everybody() -> None:
            address = f"http://127.0.0.1:{port}"
            await asyncio.gather(
                *(client(number, address, sessions[number], ids, until, tally) for number in range(clients))
            )

        asyncio.run(everybody())
    with opened_database(settings) as engine, engine.connect() as connection:
        votes = connection.execute(select(func.count()).select_from(VoteRow)).scalar_one()
        comments = connection.execute(select(func.count()).select_from(CommentRow)).scalar_one()
    told = sum(sum(each.values()) for each in tally.votes.values())
    everything = [value for values in tally.seconds.values() for value in values]
    print(f"\n**{name}**: {clients} clients for {seconds:.0f} s over {papers:,} papers\n")
    print("| what | answers | median | 95 % | 99 % |\n| --- | ---: | ---: | ---: | ---: |")
    for kind, values in [*sorted(tally.seconds.items()), ("all", everything)]:
        cells = " | ".join(f"{quantile(values, share):.0f} ms" for share in (0.5, 0.95, 0.99))
        print(f"| {kind} | {len(values):,} | {cells} |")
    rate = len(everything) / seconds
    print(f"\n{rate:.0f} answers a second; {len(tally.errors)} errors, {tally.refused} over a limit;")
    print(f"votes in the database {votes:,}, told to clients {told:,}; comments {comments:,} and {tally.comments:,}.")
    for error in sorted(set(tally.errors)):
        print(f"  {tally.errors.count(error)} x {error}")


def free_port() -> int:
    """A port on which nobody listens."""
    import socket

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        return port


def kills(name: str, settings: Settings, times: int) -> None:
    """Server, worker and digest sender, killed at random moments; prints what is lost or double."""
    chance = random.Random(1)
    environment = os.environ | {
        "WORKING_PAPERS_HOME": str(settings.home),
        "WORKING_PAPERS_DATABASE": settings.database,
        "WORKING_PAPERS_WORKER": "false",
        "WORKING_PAPERS_LOG_LEVEL": "error",
        "WORKING_PAPERS_DIGEST_HOUR": "23",
        "OMP_NUM_THREADS": "1",
    }
    readers = 200
    with opened_database(settings) as engine:
        ids = fill(engine, settings, 500)
        account = make_account(engine, "voter@example.org")
        session = open_session(engine, account, "kill")
        for number in range(readers):
            with engine.begin() as connection:
                subscribe(connection, f"reader{number}@example.org", Wish(), account_id=account.id)
        liked = get_paper(engine, ids[0])
        assert liked is not None
        vote(engine, make_account(engine, "another@example.org").id, liked.number)  # so that something trends
        job = enqueue_job(engine, "matrix_sensing", "smoke")
    command = [sys.executable, "-m", "working_papers.cli"]
    port = free_port()
    wanted: dict[str, bool] = {}
    open_ends: set[str] = set()
    comments: list[str] = []
    told: list[str] = []

    def reader(until: float) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", cookies={"session": session}, timeout=5) as browser:
            token = ""
            while time.monotonic() < until:
                paper = chance.choice(ids[1:])
                try:
                    if not token:
                        token = TOKEN.findall(browser.get("/account").text)[0]
                    wish = not wanted.get(paper, False)
                    open_ends.add(paper)  # until it is answered nobody knows whether it was done
                    answer = browser.post(
                        f"/papers/{paper}/{'vote' if wish else 'unvote'}",
                        data={"form_token": token},
                        headers={"Accept": "application/json"},
                    )
                    if answer.status_code == 200:
                        wanted[paper] = wish
                        open_ends.discard(paper)
                    if chance.random() < 0.2:
                        body = f"comment {len(comments)}"
                        comments.append(body)
                        if browser.post(
                            f"/papers/{paper}/comments", data={"form_token": token, "body": body}
                        ).is_redirect:
                            told.append(body)
                except (httpx.HTTPError, IndexError):
                    return

    started = time.monotonic()
    done = 0
    while done < times:
        victims = [
            subprocess.Popen([*command, "serve", "--port", str(port)], env=environment, stdout=subprocess.DEVNULL),
            subprocess.Popen([*command, "worker"], env=environment, stdout=subprocess.DEVNULL),
            subprocess.Popen([*command, *DIGEST], env=environment, stdout=subprocess.DEVNULL),
        ]
        try:
            wait_for(port)
            reader(time.monotonic() + chance.uniform(0.5, 4.0))
        finally:
            for victim in chance.sample(victims, len(victims)):
                victim.send_signal(signal.SIGKILL)
                done += 1
            for victim in victims:
                victim.wait()
        with opened_database(settings) as engine, engine.begin() as connection:
            # As if the minutes had passed after which a dead process's claims are taken over.
            past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            connection.execute(update(MailRow).where(MailRow.status == "sending").values(claimed=past))
            connection.execute(update(JobRow).where(JobRow.status == "running").values(beat=past, attempts=1))
    subprocess.run(
        [*command, "digest", "send", "--frequency", "daily"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    worker = subprocess.Popen([*command, "worker"], env=environment, stdout=subprocess.DEVNULL)
    with opened_database(settings) as engine:
        end = time.monotonic() + 240
        while (found := get_job(engine, job)) is not None and found.active and time.monotonic() < end:
            time.sleep(0.5)
        worker.terminate()
        worker.wait()
        with engine.connect() as connection:
            kept = set(
                connection.execute(select(PAPERS.c.id).join(VoteRow, VoteRow.number == PAPERS.c.number)).scalars()
            )
            bodies = list(connection.execute(select(CommentRow.body)).scalars())
            trials = list(
                connection.execute(select(func.count()).select_from(TrialRow).group_by(TrialRow.key)).scalars()
            )
    expected = {paper for paper, wish in wanted.items() if wish}
    certain = set(wanted) - open_ends
    wrong = {paper for paper in certain if (paper in kept) != (paper in expected)}
    mails = [file.read_text(encoding="utf-8", errors="replace") for file in settings.outbox_folder.glob("*.eml")]
    to = [match[1] for mail in mails if (match := re.search(r"^To: (\S+)", mail, re.MULTILINE))]
    print(f"\n**{name}**: server, worker and digest sender killed {done} times in {time.monotonic() - started:.0f} s\n")
    print("| what | answered or due | kept | lost | double |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| votes | {len(certain):,} papers | {len(certain) - len(wrong):,} as answered | {len(wrong)} | 0 |")
    lost = len(set(told) - set(bodies))
    print(f"| comments | {len(told):,} | {len(bodies):,} | {lost} | {len(bodies) - len(set(bodies))} |")
    print(f"| e-mails | {readers:,} | {len(set(to)):,} | {readers - len(set(to))} | {len(to) - len(set(to))} |")
    ended = "finished" if found is not None and found.status == FINISHED else "NOT finished"
    print(f"| trials | run {ended} | {len(trials):,} | 0 | {sum(count - 1 for count in trials)} |")


def main() -> None:
    """Both tables, on one database or on both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--postgres", action="store_true")
    given = parser.parse_args()

    def measure(name: str, database: str) -> None:
        for part in ("load", "kills"):
            with tempfile.TemporaryDirectory(prefix="working-papers-load-", ignore_cleanup_errors=True) as folder:
                address = database and f"{database.rpartition('/')[0]}/{part}"
                settings = Settings(home=Path(folder), database=address)
                if part == "load" and given.seconds:
                    load(name, settings, given.papers, given.clients, given.seconds)
                elif part == "kills" and given.kills:
                    kills(name, settings, given.kills)

    if not given.postgres:
        measure("SQLite", "")
        return
    from sqlalchemy import create_engine, text

    try:
        with server() as address:
            administration = create_engine(address, isolation_level="AUTOCOMMIT")
            with administration.connect() as connection:
                for part in ("load", "kills"):
                    connection.execute(text(f"CREATE DATABASE {part}"))
            administration.dispose()
            measure("PostgreSQL", address)
    except NoPostgres as reason:
        raise SystemExit(f"PostgreSQL cannot be had: {reason}") from reason


if __name__ == "__main__":
    main()
