"""Small files that appear whole or not at all, and the errors of a damaged index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from working_papers.errors import UserError


class IndexDamaged(UserError):
    """The search index cannot be read; `index rebuild` makes it again from the database."""

    def __init__(self, folder: Path, reason: str) -> None:
        """Say what is wrong and what helps.

        Args:
            folder: the index.
            reason: what is wrong with it.
        """
        super().__init__(f"the search index in {folder} is damaged ({reason}); run `working-papers index rebuild`")


Signature = tuple[int, int, int] | None
"""Tells whether a file has been replaced since it was last looked at; None: it is not there."""


def signature(file: Path) -> Signature:
    """The present signature of a file.

    Args:
        file: any path.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file durably; a crash leaves the old one or the new one.

    Args:
        file: the file.
        content: what it shall hold.
    """
    scratch = file.with_name(f"{file.name}.{os.getpid()}.new")
    with scratch.open("w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
