"""Folders of real data sets say what is missing before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from working_papers.data.folders import data_folder


def test_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    assert data_folder("flowers", needs=["train"]) == tmp_path / "flowers"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKING_PAPERS_DATA", raising=False)
    with pytest.raises(ValueError, match="subfolder flowers of the folder that WORKING_PAPERS_DATA names"):
        data_folder("flowers")
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/flowers"):
        data_folder("flowers")
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="test, labels missing, expected train, test, labels"):
        data_folder("flowers", needs=["train", "test", "labels"])
