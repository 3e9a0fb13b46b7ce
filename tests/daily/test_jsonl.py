"""arXiv's metadata snapshot."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import io
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from working_papers.daily.records import BadRecord, PaperRecord, SourceError, arxiv_id, decode_accents
from working_papers.daily.sources import jsonl
from working_papers.daily.sources.jsonl import read_jsonl, record_of, repaired_id

ENTRY: dict[str, Any] = {
    "id": "1908.09881",
    "submitter": None,
    "authors": 'Anna Example, J\\"org Muster Jr',
    "title": "On Schr\\\"odinger's\n  Cat",
    "comments": "12 pages",
    "journal-ref": "Journal of\n Cats 3 (2020)",
    "doi": "10.1000/CATS.3 10.1000/other",
    "categories": "stat.ME cs.SI",
    "abstract": "  We look into a box with $\\'x$\nand find nothing.\n  Then we look again.\n",
    "versions": [{"version": "v1", "created": "Mon, 26 Aug 2019 10:12:01 GMT"}, {"version": "v2"}],
    "update_date": "2019-09-02",
    "authors_parsed": [["Example", "Anna", ""], ["Muster", "Jörg", "Jr", "Institute"]],
}


def test_a_record() -> None:
    assert record_of(ENTRY, 3) == PaperRecord(
        title="On Schrödinger's Cat",
        line=3,
        arxiv="1908.09881",
        abstract="We look into a box with $\\'x$ and find nothing.\n\nThen we look again.",
        authors=("Anna Example", "Jörg Muster Jr"),
        published=dt.date(2019, 8, 26),
        updated=dt.date(2019, 9, 2),
        fallback_day=dt.date(2019, 9, 2),
        categories=("stat.ME", "cs.SI"),
        url="https://arxiv.org/abs/1908.09881",
        doi="10.1000/CATS.3 10.1000/other",
        journal="Journal of Cats 3 (2020)",
    )


def test_authors_from_their_line_where_they_are_not_parsed() -> None:
    assert record_of({**ENTRY, "authors_parsed": None}).authors == ("Anna Example", "Jörg Muster Jr")
    assert record_of({**ENTRY, "authors_parsed": [], "authors": "A. One, B. Two, and C. Three"}).authors == (
        "A. One",
        "B. Two",
        "C. Three",
    )


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("1908.0988100000002", "1908.09881"),
        ("1905.0439399999998", "1905.04394"),
        ("1709.026", "1709.02600"),
        ("1402.509", "1402.5090"),
        ("705.1789", "0705.1789"),
        ("902.169", "0902.1690"),
        ("808.1", "0808.1000"),
        ("1411.3", "1411.3000"),
        ("1908.0988", "1908.09880"),
        (1709.026, "1709.02600"),
    ],
)
def test_ids_that_were_once_numbers_are_repaired(damaged: str | float, whole: str) -> None:
    month = int(whole[2:4])
    created = (
        f"Mon, 1 {['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'][month - 1]}"
    )
    versions = [{"version": "v1", "created": f"{created} 20{whole[:2]} 00:00:00 GMT"}]
    assert record_of({**ENTRY, "id": damaged, "versions": versions}).arxiv == whole


@given(st.integers(1, 99_999), st.integers(7, 26), st.integers(1, 12))
def test_every_id_survives_being_a_number(number: int, year: int, month: int) -> None:
    digits = 5 if year >= 15 else 4
    if year == 7 and month < 4:
        month = 4
    id = f"{year:02}{month:02}.{number % 10**digits or 1:0{digits}}"
    created = dt.date(2000 + year, month, 1)
    for written in (repr(float(id)), f"{float(id):.13f}", f"{float(id):.12g}"):
        assert (arxiv_id(written) or repaired_id(written, created)) == id


@pytest.mark.parametrize(
    "damaged", ["1908.1234567", "1908.000000001", "1913.01234", "hello", "1908", "1908.", "1e5", "-1"]
)
def test_what_is_no_id_is_not_repaired(damaged: str) -> None:
    assert repaired_id(damaged, dt.date(2019, 8, 1)) is None
    with pytest.raises(ValueError, match="is not an arXiv id"):
        record_of({**ENTRY, "id": damaged})


def test_an_id_before_the_submission_is_not_repaired() -> None:
    assert repaired_id("1709.026", dt.date(2017, 10, 1)) is None
    assert repaired_id("1709.026", None) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": " "}, "the title is missing"),
        ({"title": None}, "the title is missing"),
        ({"id": None}, "the id is missing"),
        ({"id": True}, "id is True"),
        ({"abstract": 3}, "abstract is 3; expected text"),
        ({"update_date": "soon"}, "update_date is 'soon'"),
        ({"versions": [{"created": "Mon, 99 Aug 2019 10:12:01 GMT"}]}, r"versions\[0\].created is 'Mon, 99 Aug"),
        ({"authors_parsed": [["One", 2, ""]]}, "authors_parsed holds"),
        ({"authors_parsed": [None]}, "authors_parsed holds"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        record_of({**ENTRY, **change})


def test_dates_in_other_spellings() -> None:
    for created in ("Mon, 26 Aug 2019 00:00:00 GMT", "Mon, 26 Aug 2019 00:00:00 +0000", "26 Aug 2019 00:00 GMT"):
        assert record_of({**ENTRY, "versions": [{"created": created}]}).published == dt.date(2019, 8, 26)
    assert record_of({**ENTRY, "versions": [{"created": "Thu, 5 Sep 2019 00:00:00 GMT"}]}).published == dt.date(
        2019, 9, 5
    )
    assert record_of({**ENTRY, "versions": []}).published is None


LINES = b"\n".join(
    [
        b"\xef\xbb\xbf" + orjson.dumps(ENTRY),
        b"",
        b"{broken",
        orjson.dumps(ENTRY)[:-9],
        b'{"id": "1908.1", "title": "caf\xe9"}',
        b"\x00\x00",
        b"[1, 2]",
        orjson.dumps({**ENTRY, "id": "1908.09882"}) + b"\r",
        orjson.dumps({**ENTRY, "id": "1908.09883"}),
    ]
)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"])
def test_bad_lines_are_numbered_and_the_rest_read(tmp_path: Path, pack: Any) -> None:
    file = tmp_path / "snapshot"
    file.write_bytes(pack(LINES))
    found = list(read_jsonl(file))
    assert [record.line for record in found] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert [type(record) for record in found] == [PaperRecord, *[BadRecord] * 5, PaperRecord, PaperRecord]
    assert list(read_jsonl(Path("-"), stdin=io.BytesIO(pack(LINES)))) == found


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_line_that_is_too_long_is_passed_over_in_little_memory(tmp_path: Path, position: int) -> None:
    lines = [orjson.dumps(ENTRY), orjson.dumps(ENTRY)]
    lines.insert(position, b'{"abstract": "' + b"x" * 30_000_000)
    file = tmp_path / "long.jsonl"
    file.write_bytes(b"\n".join(lines))
    del lines
    tracemalloc.start()
    found = list(read_jsonl(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(record) for record in found].index(BadRecord) == position
    assert [record.line for record in found] == [1, 2, 3]
    assert f"longer than {jsonl.LONGEST_LINE:,} bytes" in str(found[position])
    assert peak < 8_000_000


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = orjson.dumps(ENTRY) + b"\n"

    def peak(count: int) -> int:
        file = tmp_path / f"{count}.jsonl"
        file.write_bytes(line * count)
        tracemalloc.start()
        assert sum(1 for _ in read_jsonl(file)) == count
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(6_000) < 1.5 * peak(2_000)


def test_files_that_break_off_or_are_not_there(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"\n".join([orjson.dumps(ENTRY)] * 3))[:-20])
    with pytest.raises(SourceError, match=r"cut\.gz is damaged or incomplete .*; fetch it again"):
        list(read_jsonl(cut))
    cut.write_bytes(b"\x1f\x8b" + b"nonsense")
    with pytest.raises(SourceError, match=r"cut\.gz is damaged or incomplete"):
        list(read_jsonl(cut))
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_jsonl(tmp_path / "missing"))
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_jsonl(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04...")
    with pytest.raises(SourceError, match="use `unzip -p FILE"):
        list(read_jsonl(tmp_path / "a.zip"))


@given(st.lists(st.one_of(st.binary(), st.text().map(str.encode), st.just(orjson.dumps(ENTRY))), max_size=8))
def test_no_bytes_make_it_fail(lines: list[bytes]) -> None:
    try:
        found = list(read_jsonl(Path("-"), stdin=io.BytesIO(b"\n".join(lines))))
    except SourceError:
        return
    assert all(isinstance(record, PaperRecord | BadRecord) for record in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ENTRY)), JSON))
def test_no_json_makes_it_fail(change: dict[str, Any]) -> None:
    try:
        assert record_of({**ENTRY, **change}).title
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("source", "decoded"),
    [
        (r"Poincar{\'{e}}", "Poincaré"),
        (r"Erd\H{o}s", "Erdős"),
        (r"\v{C}ech {\v C}ech", "Čech Čech"),
        (r"na\"{\i}ve", "naïve"),
        (r"Stra{\ss}e", "Straße"),
        (r"{\O}rsted", "Ørsted"),
        (r"\c{c}a", "ça"),
        (r"{x \'e}", "{x é}"),
        (r"$\'x$ \left \circ \cite{o} \oint", r"$\'x$ \left \circ \cite{o} \oint"),
    ],
)
def test_accents(source: str, decoded: str) -> None:
    assert decode_accents(source) == decoded
