"""A site that really runs, in a process of its own, for tests with real clients and browsers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def running_site(home: Path, **settings: str) -> Iterator[str]:
    """`working-papers serve` on a free port; yields its address.

    Args:
        home: its home folder; the environment names its database.
        settings: further ones, in lower case and without the prefix.
    """
    given = {"worker": "false", "digest_hour": "23", "log_level": "warning", **settings}
    environment = os.environ | {"WORKING_PAPERS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {f"WORKING_PAPERS_{name.upper()}": value for name, value in given.items()}
    command = [sys.executable, "-m", "working_papers.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found is not None, line
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
