"""Where real data sets lie: each in a subfolder of one folder that the setting `WORKING_PAPERS_DATA` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def data_folder(name: str, *, needs: Sequence[str] = ()) -> Path:
    """The folder of a real data set.

    Args:
        name: of the data set, which is the name of its subfolder, such as "cifar-10-batches-py".
        needs: files and folders that must be inside, as paths relative to it.

    Returns:
        The folder, which exists and holds what is needed.

    Raises:
        ValueError: there is no such folder, or something in it is missing; the message says what belongs where.
    """
    home = os.environ.get("WORKING_PAPERS_DATA")
    if not home:
        raise ValueError(
            f"the data set {name!r} is read from the subfolder {name} of the folder that WORKING_PAPERS_DATA names, "
            "and that is not set"
        )
    folder = Path(home).expanduser() / name
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; expected the data set {name!r} there (WORKING_PAPERS_DATA)")
    check_contents(folder, needs)
    return folder


def check_contents(folder: Path, needs: Sequence[str]) -> None:
    """See to it that a data set is whole before anything is trained on it.

    Args:
        folder: of the data set.
        needs: files and folders that must be inside, as paths relative to it.

    Raises:
        ValueError: names everything that is missing.
    """
    missing = [each for each in needs if not (folder / each).exists()]
    if missing:
        raise ValueError(f"{folder} is incomplete: {', '.join(missing)} missing, expected {', '.join(needs)}")
