"""Run a command with a PostgreSQL server of its own: `python tests/postgres.py pytest -m database`.

The server lives in a temporary folder and ends with the command. Its address is in WORKING_PAPERS_TEST_DATABASE. Where
there is no PostgreSQL, Debian's is installed if that is possible; else this says so and ends with status 0, or with 1
when `--required` comes first.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"


class NoPostgres(Exception):
    """There is no server to be had; the message says why."""


def programs() -> Path:
    """The folder with initdb and postgres.

    Raises:
        NoPostgres: none is installed and none can be.
    """
    for attempt in range(2):
        on_path = shutil.which("initdb")
        if on_path:
            return Path(on_path).resolve().parent
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[4]))
        if versions:
            return versions[-1].parent
        if attempt or os.geteuid() != 0 or not shutil.which("apt-get"):
            break
        print("== installing PostgreSQL for the tests", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "postgresql"]):
            done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoPostgres(f"apt-get {words[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    raise NoPostgres("no initdb found; install PostgreSQL (Debian: apt-get install postgresql)")


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        return port


@contextmanager
def server() -> Iterator[str]:
    """A running server; yields its SQLAlchemy address.

    Raises:
        NoPostgres: it cannot be had or does not start.
    """
    found = programs()
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        if not shutil.which("runuser") or subprocess.run(["id", USER], capture_output=True, check=False).returncode:
            raise NoPostgres(f"running as root without runuser and the user {USER}")
        as_user = ["runuser", "-u", USER, "--"]
    with tempfile.TemporaryDirectory(prefix="working-papers-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if as_user:
            shutil.chown(folder, USER)
        data, log = folder / "data", folder / "log"

        def call(program: str, *words: str) -> None:
            # Its output goes to a file: the server inherits it, and a pipe would never end.
            with (folder / "out").open("w+") as out:
                command = [*as_user, str(found / program), *words]
                done = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", check=False)
                if done.returncode:
                    out.seek(0)
                    raise NoPostgres(f"{program} failed: {out.read().strip()[-500:]}")

        call("initdb", "-D", str(data), "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        port = free_port()
        options = (
            f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off "
            "-c max_connections=200 -c shared_buffers=64MB"
        )
        call("pg_ctl", "-D", str(data), "-l", str(log), "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://{USER}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def main(words: Sequence[str]) -> int:
    """Run the command."""
    required = bool(words) and words[0] == "--required"
    command = words[1:] if required else words
    if not command:
        print(__doc__)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    try:
        with server() as address:
            environment = os.environ | {"WORKING_PAPERS_TEST_DATABASE": address}
            return subprocess.run(command, env=environment, check=False).returncode
    except NoPostgres as reason:
        print(f"== PostgreSQL LEFT OUT: {reason}", flush=True)
        return 1 if required else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
