"""Ten thousand broken files and answers: importers read them or say in a sentence why not, and nothing is half in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from tests.daily.test_arxiv import atom, entry
from tests.daily.test_ingest import answer, record
from working_papers.daily.importing import ImportFailed, import_papers
from working_papers.daily.models import CatalogueStateRow, ImportRow, PaperRow
from working_papers.daily.records import BadRecord, PaperRecord
from working_papers.daily.sources import arxiv_oai
from working_papers.daily.sources.arxiv import _bad_entry, _checked_feed
from working_papers.daily.sources.bibtex import read_bibtex
from working_papers.daily.sources.huggingface import record_of
from working_papers.daily.sources.jsonl import read_jsonl
from working_papers.daily.sources.page_text import read_page
from working_papers.errors import UserError

EACH = 1_700
"""Inputs for each of the six importers: 10,200 in all."""

JSONL = b"".join(
    json.dumps(
        {
            "id": f"2510.{number:05}",
            "title": f"On trees {number}",
            "abstract": "About $x$.",
            "authors_parsed": [["Lovelace", "Ada", ""]],
            "categories": "cs.LG stat.ML",
            "update_date": "2025-10-07",
            "versions": [{"version": "v1", "created": "Mon, 6 Oct 2025 10:00:00 GMT"}],
        }
    ).encode()
    + b"\n"
    for number in range(4)
)
BIBTEX = b"""@article{a, title={On {Trees} and \\"Ubung}, author={Lovelace, Ada and Noether, E.}, year=2024, month=mar,
 doi={10.1/x}, eprint={2401.00001}, archivePrefix={arXiv}}
@string{j = "Journal"}
@inproceedings{b, title="Forests", author="Grace Hopper", year = {2023}, journal = j # { of Trees}}
@comment{nothing}
"""
PAGE = """Daily Papers
Oct 7

Submitted by
ada
42
On the growth of trees
Ada Lovelace, Emmy Noether
· 5 authors

2
"""
HF: dict[str, Any] = {
    "paper": {
        "id": "2510.00001",
        "title": "On trees",
        "summary": "About trees.",
        "authors": [{"name": "Ada Lovelace", "hidden": False}],
        "publishedAt": "2025-10-06T10:00:00.000Z",
        "upvotes": 7,
    },
    "title": "On trees",
    "publishedAt": "2025-10-07T00:00:00.000Z",
    "numComments": 2,
}
NASTY = [
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u2028".encode(),
    b"'; DROP TABLE papers; --",
    b"<script>",
    b"]]>",
    b"&#x0;",
    b"9" * 400,
    b"-1e400",
    b"{" * 200,
    b"\\u0000",
    b"\r\n\r\n",
    b"A" * 2_000,
    "ﷺ".encode() * 50,
]


def broken(source: bytes, chance: random.Random) -> bytes:
    """The input with a few things cut, doubled, swapped or put in."""
    data = bytearray(source)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            del data[place : place + chance.randint(1, 60)]
        elif kind == 1:
            data[place:place] = chance.choice(NASTY)
        elif kind == 2 and data:
            data[min(place, len(data) - 1)] = chance.randrange(256)
        elif kind == 3:
            data[place:place] = data[place : place + chance.randint(1, 200)]
        elif kind == 4:
            del data[place:]
        else:
            other = chance.randrange(len(data) + 1)
            data[place:place] = data[other : other + 40]
    return bytes(data)


def broken_value(value: Any, chance: random.Random) -> Any:
    """The JSON value with some part of another kind."""
    odd: list[Any] = [None, True, -1, 1e308, 10**30, "", "x" * 5000, "\x00\ud800", [], {}, [[]], "2025-13-40"]
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        copy = dict(value)
        if chance.random() < 0.15:
            del copy[name]
        else:
            copy[name] = broken_value(value[name], chance)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.6:
        return [broken_value(value[0], chance), *value[1:]]
    return chance.choice(odd)


Reader = Callable[[bytes, random.Random, Path], Iterable[PaperRecord | BadRecord]]


def by_file(reader: Callable[[Path], Iterable[PaperRecord | BadRecord]], source: bytes) -> Reader:
    def read(_: bytes, chance: random.Random, file: Path) -> Iterable[PaperRecord | BadRecord]:
        file.write_bytes(broken(source, chance))
        return list(reader(file))

    return read


def from_hub(_: bytes, chance: random.Random, file: Path) -> Iterable[PaperRecord | BadRecord]:
    try:
        return [record_of(broken_value(HF, chance), None)]
    except ValueError as error:  # what `read_huggingface` turns into a rejection
        return [BadRecord(None, str(error))]


def from_atom(_: bytes, chance: random.Random, file: Path) -> Iterable[PaperRecord | BadRecord]:
    feed = _checked_feed("http://arxiv", broken(atom(entry(1), entry(2)), chance))
    return [trouble for each in feed if each.tag.endswith("entry") and (trouble := _bad_entry("http://arxiv", each))]


def from_oai(_: bytes, chance: random.Random, file: Path) -> Iterable[PaperRecord | BadRecord]:
    return arxiv_oai._page("http://arxiv", broken(answer(record(1), record(2), token="t"), chance)).records


READERS: dict[str, Reader] = {
    "jsonl": by_file(read_jsonl, JSONL),
    "bibtex": by_file(read_bibtex, BIBTEX),
    "page": by_file(read_page, PAGE.encode()),
    "hf": from_hub,
    "arxiv": from_atom,
    "oai": from_oai,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_no_input_is_a_crash(name: str, tmp_path: Path) -> None:
    read, file = READERS[name], tmp_path / "input"
    usable = refused = 0
    for seed in range(EACH):
        try:
            found = list(read(b"", random.Random(seed), file))
        except UserError as error:
            assert "\n" not in str(error), f"seed {seed}: more than a sentence"
            refused += 1
            continue
        usable += 1
        for each in found:
            assert isinstance(each, PaperRecord | BadRecord), f"seed {seed}"
            assert not isinstance(each, BadRecord) or str(each)
    assert usable and usable + refused == EACH


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jsonl", "bibtex", "page", "hf", "oai"])
def test_nothing_is_half_in(name: str, engine: Engine, tmp_path: Path) -> None:
    """After each of many broken imports the catalogue is whole and its counts agree with what was reported."""
    read, file = READERS[name], tmp_path / "input"
    new = 0
    for seed in range(60):

        def records(seed: int = seed) -> Iterable[PaperRecord | BadRecord]:
            yield from read(b"", random.Random(100_000 + seed), file)

        try:
            new += import_papers(engine, "hf" if name == "hf" else "jsonl", f"{name} {seed}", records()).new
        except ImportFailed as error:
            new += error.report.new
    with engine.connect() as connection:
        count = connection.execute(select(func.count()).select_from(PaperRow)).scalar_one()
        last = connection.execute(select(CatalogueStateRow.last_number)).scalar_one()
        open_ones = connection.execute(
            select(func.count()).select_from(ImportRow).where(ImportRow.finished.is_(None))
        ).scalar_one()
        empty = connection.execute(select(func.count()).select_from(PaperRow).where(PaperRow.title == "")).scalar_one()
    assert count == last == new and open_ones == 0 and empty == 0
