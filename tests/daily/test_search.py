"""The search index: found at once, exact first, filtered, followed across processes, never an error of the reader's."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import Engine

from working_papers.config import Settings
from working_papers.daily.search import (
    IndexDamaged,
    IndexRow,
    SearchIndex,
    background,
    embed_pending,
    embedding,
    rebuild,
)
from working_papers.daily.search.embedding import text_hash
from working_papers.daily.search.text import identifiers, parse, title_key
from working_papers.daily.search.vectors import VectorRow, Vectors, VectorWriter
from working_papers.errors import UserError

SUBJECTS = ["graph networks", "diffusion models", "robot arms", "query optimisation", "image compression"]
VERBS = ["Learning", "Testing", "Scaling", "Understanding"]
CATEGORIES = [["cs.LG"], ["cs.LG", "stat.ML"], ["cs.RO"], ["cs.DB"], ["eess.IV"]]
FIRST_DAY = dt.date(2026, 1, 1)


def made_up(count: int = 100) -> list[IndexRow]:
    """Papers whose number, day and wording are known."""
    rows = []
    for number in range(1, count + 1):
        subject = SUBJECTS[number % 5]
        rows.append(
            IndexRow(
                number=number,
                id=f"26{number // 100 + 1:02d}.{number:05d}",
                title=f"{VERBS[number % 4]} {subject} with method {number}",
                abstract=f"We study {subject} in depth. Our approach number{number} improves the state of the art.",
                authors=[f"Ada Lovelace{number % 7}", "Grace Hopper"],
                categories=CATEGORIES[number % 5],
                day=FIRST_DAY + dt.timedelta(days=number),
                revision=number,
            )
        )
    return rows


class BagOfWords:
    """A stand-in for the model: the sum of a fixed random vector for each word."""

    dimension = 64

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """One vector a text."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace(".", " ").split() or ["nothing"]:
                seed = int.from_bytes(word.encode("utf-8", "replace")[:8].ljust(8, b"."), "little")
                vectors[row] += np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def place(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def bag_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(settings: Settings, *, threads: int = 1) -> BagOfWords:
        return BagOfWords()

    monkeypatch.setattr(embedding, "open_embedder", opened)
    monkeypatch.setattr(background, "open_embedder", opened)


@pytest.fixture
def index(place: Settings) -> Iterator[SearchIndex]:
    opened = SearchIndex.open(place)
    opened.add(made_up())
    opened.commit()
    yield opened
    opened.close()


TABLE = sa.Table(
    "papers",
    sa.MetaData(),
    sa.Column("number", sa.BigInteger, primary_key=True),
    *(sa.Column(name, sa.Text) for name in ("id", "title", "abstract", "summary")),
    sa.Column("authors", sa.JSON),
    sa.Column("categories", sa.JSON),
    sa.Column("day", sa.Date),
    sa.Column("revision", sa.BigInteger),
)


def stored(rows: Sequence[IndexRow], file: Path) -> Engine:
    """A database that holds papers."""
    engine = sa.create_engine(f"sqlite:///{file}")
    TABLE.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(TABLE), [dict(vars(row)) for row in rows])
    return engine


def numbers(index: SearchIndex, text: str, **arguments: Any) -> list[int]:
    return [hit.number for hit in index.search(text, **arguments).hits]


def test_words_are_found_in_the_moment_of_the_commit(index: SearchIndex) -> None:
    extra = IndexRow(101, "2602.99999", "Zymurgy for everyone", "Brewing.", ["A. B."], ["cs.LG"], FIRST_DAY, 101)
    assert numbers(index, "zymurgy") == []
    index.add([extra])
    index.commit()
    result = index.search("zymurgy")
    assert [hit.number for hit in result.hits] == [101]
    assert result.mode == "words" and result.total == 1


def test_word_forms_and_accents_are_folded(place: Settings) -> None:
    opened = SearchIndex.open(place)
    opened.add([IndexRow(1, "a", "Schrödinger bridges", "Matching networks.", ["Zoë Müller"], [], FIRST_DAY, 1)])
    opened.commit()
    for text in ("schrodinger", "SCHRÖDINGER", "bridge", "matched network", "author:muller", "author:Müller"):
        assert numbers(opened, text) == [1], text
    opened.close()


def test_a_row_of_a_known_number_replaces_the_old_one(index: SearchIndex) -> None:
    index.add([IndexRow(7, "2601.00007", "Entirely different", "Words.", [], ["cs.DB"], FIRST_DAY, 101)])
    index.commit()
    assert numbers(index, "number7") == []
    assert numbers(index, "entirely different")[0] == 7
    assert index.status().papers == 100


def test_removed_papers_are_gone(index: SearchIndex) -> None:
    assert numbers(index, "number8") == [8]
    index.remove([8])
    index.commit()
    assert numbers(index, "number8") == []


def test_rollback_forgets(index: SearchIndex) -> None:
    index.add([IndexRow(300, "x", "Unwanted marsupials", "", [], [], FIRST_DAY, 300)])
    index.rollback()
    assert numbers(index, "marsupials") == []
    assert index.status().papers == 100


def test_filters(index: SearchIndex) -> None:
    day = FIRST_DAY + dt.timedelta(days=50)
    assert set(numbers(index, "study", limit=400, days=(day, None))) == set(range(50, 101))
    assert set(numbers(index, "study", limit=400, days=(None, day))) == set(range(1, 51))
    assert numbers(index, "study", days=(day, day)) == [50]
    robots = {number for number in range(1, 101) if number % 5 == 2}
    assert set(numbers(index, "study", limit=400, categories=["cs.RO"])) == robots
    assert len(numbers(index, "study", limit=400, categories=["cs"])) == 80  # the archive holds its categories
    assert set(numbers(index, "study", only=[3, 4, 99_999, -1, 2**70])) == {3, 4}
    assert numbers(index, "study", only=[]) == []
    assert numbers(index, "study", categories=["no.such"]) == []
    assert numbers(index, "", categories=["cs.RO"], limit=3) == [97, 92, 87]  # the newest first
    assert index.search("").mode == "newest"


def test_exact_matches_obey_filters(index: SearchIndex) -> None:
    title = made_up()[16].title
    assert numbers(index, title)[0] == 17
    assert 17 not in numbers(index, title, only=[1, 2])


def test_phrase_author_and_minus(index: SearchIndex) -> None:
    assert set(numbers(index, '"graph networks in depth"', limit=400)) == set(range(5, 101, 5))
    assert numbers(index, '"networks graph"') == []
    assert set(numbers(index, 'author:"ada lovelace3"', limit=400)) == set(range(3, 101, 7))
    assert len(numbers(index, "author:hopper", limit=400)) == 100
    assert set(numbers(index, "networks -learning", limit=400)) == {n for n in range(5, 101, 5) if n % 4 != 0}
    assert set(numbers(index, 'graph -"method 10"', limit=400)) == set(range(5, 101, 5)) - {10}
    assert numbers(index, "state-of-the-art")  # the dashes are no minus


def test_paging(index: SearchIndex) -> None:
    whole = numbers(index, "study", limit=100)
    assert len(whole) == len(set(whole)) == 100
    assert numbers(index, "study", limit=10, offset=20) == whole[20:30]
    assert index.search("study", limit=0).total == 100
    assert numbers(index, "study", offset=10**9) == []
    with pytest.raises(ValueError, match="limit: expected 0 or more, got -1"):
        index.search("study", limit=-1)
    with pytest.raises(ValueError, match="offset: expected 0 or more, got -5"):
        index.search("study", offset=-5)


@pytest.mark.parametrize(
    "text",
    [
        "2601.00042",
        "arXiv:2601.00042",
        "arxiv: 2601.00042v3",
        "https://arxiv.org/abs/2601.00042v1",
        "http://export.arxiv.org/pdf/2601.00042.pdf",
        "arxiv.org/pdf/2601.00042",
        "https://huggingface.co/papers/2601.00042?ref=x",
        "  2601.00042  ",
        "please find 2601.00042 for me",
    ],
)
def test_identifiers_come_first(index: SearchIndex, text: str) -> None:
    first = index.search(text).hits[0]
    assert (first.number, first.why) == (42, "id")


def test_old_identifiers_are_read() -> None:
    assert "math.gt/0309136" in identifiers("https://arxiv.org/abs/math.GT/0309136v2")
    assert "hep-th/9901001" in identifiers("hep-th/9901001")


def test_title_key_is_blind_to_case_accents_and_punctuation() -> None:
    assert title_key("Über-Learning: a “Survey”!") == title_key("uber learning -- A SURVEY")
    assert title_key("???") == ""
    assert len(title_key("word " * 500)) <= 400


def test_exact_title_and_identifier_beat_adversarial_vectors(
    place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query's vector is that of paper 1, so that paper 1 wins whatever vectors decide."""

    class Bewitched(BagOfWords):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
            vectors = super().embed(texts)
            return np.asarray(np.tile(self.decoy, (len(texts), 1)) if query else vectors, dtype=np.float32)

        @property
        def decoy(self) -> NDArray[np.float32]:
            row = made_up()[0]
            vector: NDArray[np.float32] = BagOfWords().embed([f"{row.title}. {row.abstract}"])[0]
            return vector

    monkeypatch.setattr(embedding, "open_embedder", lambda *_, **__: Bewitched())
    monkeypatch.setattr(background, "open_embedder", lambda *_, **__: Bewitched())
    engine = stored(made_up(), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.catch_up(engine)
    assert embed_pending(engine, place) == 100
    assert numbers(opened, "brewing")[0] == 1
    for row in made_up()[1:]:
        for text in (row.title, row.title.upper() + " !", row.id, f"https://arxiv.org/abs/{row.id}v9"):
            result = opened.search(text)
            assert result.mode == "hybrid"
            assert result.hits[0].number == row.number, text
    opened.close()
    engine.dispose()


NASTY = [
    "x" * 10_000,
    "words " * 2_000,
    "\x00\x01\x02\xff" * 500,
    "\ud800 lone surrogate \udfff",
    'title:"unbalanced AND (',
    "title:foo^2 AND [1 TO 5] OR *:* ~ \\",
    '"""""',
    '-"',
    '- -- --- -a -"b',
    "author:",
    'author:""',
    "-author:hopper",
    "’“”„",
    "日本語の論文を探す",
    "🦀" * 300,
    "$\\mathcal{O}(n \\log n)$",
    "' OR 1=1; DROP TABLE papers; --",
    "",
    " \t\n",
    "/.*/",
    "number:1",
    bytes(range(256)).decode("latin-1") * 40,
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_text_is_an_error(index: SearchIndex, text: str) -> None:
    result = index.search(text)
    assert result.total >= len(result.hits) >= 0
    assert index.similar(1, text=text) is not None


@given(text=st.text(st.characters(codec=None), max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_searched(index: SearchIndex, text: str) -> None:
    for hit in index.search(text).hits:
        assert 1 <= hit.number <= 100


@given(text=st.text(st.sampled_from('ab "-:author“”.'), max_size=60))
@settings(max_examples=300, deadline=None)
def test_parsing_loses_no_word(text: str) -> None:
    parsed = parse(text)
    parts = (*parsed.words, *parsed.phrases, *parsed.authors, *parsed.without, *parsed.without_authors)
    for word in ("aab", "bba"):
        assert any(word in part for part in parts) or word not in text.replace('"', " ")


def test_quotes_and_dashes_in_running_text_ask_for_nothing() -> None:
    question = (
        'Which papers treat what is called "type correct" code, and what do they say -if anything- about its cost?'
    )
    parsed = parse(question)
    assert not parsed.phrases and not parsed.without
    assert parse('"type correct" code -cost').phrases == ("type correct",)


def test_long_query_is_cut_to_its_beginning(index: SearchIndex) -> None:
    filler = " ".join(f"filler{number}" for number in range(64))
    assert numbers(index, f"number9 {filler}")[0] == 9
    assert numbers(index, f"{filler} number9") == []


def test_a_second_reader_sees_what_another_process_committed(place: Settings, index: SearchIndex) -> None:
    reader = SearchIndex.open(place)
    assert numbers(reader, "quokka") == []
    script = (
        "import datetime as dt, sys; from pathlib import Path; from working_papers.config import Settings;"
        "from working_papers.daily.search import IndexRow, SearchIndex;"
        "index = SearchIndex.open(Settings(home=Path(sys.argv[1])));"
        "index.add([IndexRow(500, 'q', 'The quokka', '', [], [], dt.date(2026, 1, 1), 500)]); index.commit()"
    )
    subprocess.run([sys.executable, "-c", script, str(place.home)], check=True)
    assert numbers(reader, "quokka") == [500]
    assert numbers(index, "quokka") == [500]
    reader.close()


def test_two_writers_take_turns(place: Settings) -> None:
    SearchIndex.open(place).close()
    failures: list[BaseException] = []

    def write(start: int) -> None:
        try:
            opened = SearchIndex.open(place)
            for number in range(start, start + 30, 10):
                opened.add(
                    [IndexRow(n, f"id{n}", f"unique{n}", "", [], [], FIRST_DAY, n) for n in range(number, number + 10)]
                )
                opened.commit()
            opened.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(start,)) for start in (1, 101, 201)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    reader = SearchIndex.open(place)
    assert reader.status().papers == 90
    assert numbers(reader, "unique215") == [215]
    reader.close()


def test_catch_up_takes_what_is_new_and_fills_gaps(place: Settings, tmp_path: Path) -> None:
    rows = made_up()
    engine = stored(rows, tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.add(rows[:10])  # an importer's own papers: without a gap, they need no second reading
    opened.commit()
    assert opened.status().indexed_through == 10
    opened.add(rows[20:30])  # another importer's 10 are missing
    opened.commit()
    assert opened.status().indexed_through == 10
    assert opened.catch_up(engine) == 90
    assert opened.catch_up(engine) == 0
    assert opened.status().papers == 100
    with engine.begin() as connection:
        change = sa.update(TABLE).where(TABLE.c.number == 5).values(title="Wholly changed platypus", revision=101)
        connection.execute(change)
    assert opened.catch_up(engine) == 1
    assert numbers(opened, "platypus") == [5]
    other = stored(made_up(3), tmp_path / "other.db")
    assert opened.catch_up(other) == 3  # another database in its place: built anew
    assert opened.status().papers == 3
    opened.close()
    engine.dispose()
    other.dispose()


def damaged(place: Settings) -> None:
    with pytest.raises(IndexDamaged) as caught:
        opened = SearchIndex.open(place)
        try:
            for row in made_up():
                opened.search(row.title)
        finally:
            opened.close()
    message = str(caught.value)
    assert message.startswith(f"the search index in {place.index_folder} is damaged (")
    assert message.endswith("); run `working-papers index rebuild`")
    assert "\n" not in message


def spoil_head(folder: Path) -> None:
    (folder / "index.json").write_text("{")


def spoil_version(folder: Path) -> None:
    head = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(head | {"version": 99}))


def spoil_meta(folder: Path) -> None:
    (folder / "lexical-1" / "meta.json").write_bytes(b"\x00\x01garbage")


def remove_parts(folder: Path) -> None:
    for file in (folder / "lexical-1").iterdir():
        if file.suffix not in {".json", ".lock"} and not file.name.startswith("."):
            file.unlink()


def shorten_parts(folder: Path) -> None:
    for file in (folder / "lexical-1").iterdir():
        if file.suffix in {".term", ".idx", ".fast"}:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero_parts(folder: Path) -> None:
    for file in (folder / "lexical-1").iterdir():
        if file.suffix in {".term", ".idx", ".fast", ".store", ".fieldnorm", ".pos"}:
            file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    "spoil", [spoil_head, spoil_version, spoil_meta, remove_parts, shorten_parts, zero_parts], ids=lambda f: f.__name__
)
def test_damage_is_one_sentence_and_rebuild_mends_it(
    place: Settings, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.catch_up(engine)
    opened.close()
    spoil(place.index_folder)
    damaged(place)
    assert rebuild(engine, place) == 100
    opened = SearchIndex.open(place)
    assert numbers(opened, "number42") == [42]
    assert opened.catch_up(engine) == 0
    opened.close()
    engine.dispose()


@pytest.mark.usefixtures("bag_of_words")
def test_embedding_makes_search_hybrid_and_rebuild_keeps_the_vectors(
    place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.catch_up(engine)
    assert opened.search("graph networks").mode == "words"
    before = opened.similar(10, 5, text=f"{made_up()[9].title} {made_up()[9].abstract}")
    assert before and all(hit.why == "words" and hit.number % 5 == 0 for hit in before)
    assert embed_pending(engine, place) == 100
    assert embed_pending(engine, place) == 0
    result = opened.search("graph networks", limit=20)
    assert result.mode == "hybrid" and all(hit.number % 5 == 0 for hit in result.hits)
    assert {hit.why for hit in opened.similar(10, 5)} == {"meaning"}
    assert 10 not in [hit.number for hit in opened.similar(10, 99)]
    assert opened.status().embedded == 100 and opened.status().waiting == 0
    assert set(numbers(opened, "graph networks", categories=["cs.RO"], limit=400)) <= set(range(2, 101, 5))
    assert set(numbers(opened, "graph networks", only=[5, 7], limit=400)) <= {5, 7}
    assert 10 not in numbers(opened, 'graph networks -"method 10"', limit=400)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an unchanged text was embedded again")

    monkeypatch.setattr(background, "open_embedder", forbidden)
    assert rebuild(engine, place) == 100
    assert embed_pending(engine, place) == 0
    assert opened.search("graph networks").mode == "hybrid"
    assert opened.status().embedded == 100
    opened.close()
    engine.dispose()


@pytest.mark.usefixtures("bag_of_words")
def test_changed_text_is_embedded_again_and_changed_labels_are_not(place: Settings, tmp_path: Path) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.catch_up(engine)
    embed_pending(engine, place)
    with engine.begin() as connection:
        connection.execute(
            sa.update(TABLE).where(TABLE.c.number == 5).values(title="Platypus", abstract="Platypus.", revision=101)
        )
        connection.execute(
            sa.update(TABLE)
            .where(TABLE.c.number == 6)
            .values(day=dt.date(2030, 1, 1), categories=["new.X"], revision=102)
        )
    opened.catch_up(engine)
    vectors = Vectors(next(place.index_folder.glob("vectors-*/")))
    before = vectors.vector(6)
    assert embed_pending(engine, place) == 2
    assert numbers(opened, "platypus")[0] == 5
    vectors.refresh()
    after = vectors.vector(6)
    assert before is not None and after is not None
    np.testing.assert_allclose(before, after, atol=1e-6)
    assert vectors.papers == 100 and vectors.rows == 102
    late = vectors.admitted((dt.date(2029, 1, 1), None), ["new"])
    assert late is not None and late.sum() == 1
    assert numbers(opened, "study", categories=["new.X"]) == [6]
    opened.close()
    engine.dispose()


@pytest.mark.usefixtures("bag_of_words")
def test_newest_papers_are_embedded_first(place: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "SLICE", 10)
    engine = stored(made_up(), tmp_path / "papers.db")
    sizes: list[int] = []
    embed_pending(engine, place, stop=lambda: len(sizes) >= 3, progress=lambda progress: sizes.append(progress.done))
    vectors = Vectors(next(place.index_folder.glob("vectors-*/")))
    assert sizes == [10, 20, 30]
    assert sorted(vectors.all_numbers().tolist()) == list(range(71, 101))
    assert embed_pending(engine, place) == 70
    engine.dispose()


SLOW_EMBEDDING = """
import sys, time
from pathlib import Path
import sqlalchemy as sa
sys.path.insert(0, sys.argv[1])
import test_search as tests
from working_papers.config import Settings
from working_papers.daily.search import background
class Slow(tests.BagOfWords):
    def embed(self, texts, *, query=False):
        time.sleep(0.02 * len(texts))
        return super().embed(texts)
background.open_embedder = lambda *_, **__: Slow()
background.SLICE = 4
def say(progress):
    print(progress.done, flush=True)
engine = sa.create_engine("sqlite:///" + sys.argv[3])
print("total", background.embed_pending(engine, Settings(home=Path(sys.argv[2])), progress=say), flush=True)
"""


@pytest.mark.usefixtures("bag_of_words")
def test_killed_embedding_goes_on_where_it_was(place: Settings, tmp_path: Path) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    command = [
        sys.executable,
        "-c",
        SLOW_EMBEDDING,
        str(Path(__file__).parent),
        str(place.home),
        str(tmp_path / "papers.db"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(3)]
    with pytest.raises(background.EmbeddingBusy, match="already"):  # one a machine
        embed_pending(engine, place)
    process.kill()
    process.wait()
    process.stdout.close()
    assert said == ["4\n", "8\n", "12\n"]
    kept = len(Vectors(next(place.index_folder.glob("vectors-*/"))).all_numbers())
    assert 12 <= kept <= 100
    assert embed_pending(engine, place) == 100 - kept
    vectors = Vectors(next(place.index_folder.glob("vectors-*/")))
    assert vectors.papers == vectors.rows == 100  # nothing was done twice
    for row in made_up():
        vector = vectors.vector(row.number)
        assert vector is not None
        expected = BagOfWords().embed([f"{row.title}. {row.abstract}"])[0]
        np.testing.assert_allclose(vector, expected, atol=0.01)
    engine.dispose()


@pytest.mark.usefixtures("bag_of_words")
def test_torn_tails_of_vectors_are_cut_off(place: Settings, tmp_path: Path) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    SearchIndex.open(place).close()
    embed_pending(engine, place)
    folder = next(place.index_folder.glob("vectors-*/"))
    for name, tail in (("components", b"\x01" * 77), ("numbers", b"\x02" * 3), ("codes", b"\x03" * 500)):
        with (folder / name).open("ab") as stream:
            stream.write(tail)
    with engine.begin() as connection:
        connection.execute(sa.insert(TABLE), [dict(vars(row)) for row in made_up(110)[100:]])
    assert embed_pending(engine, place) == 10
    vectors = Vectors(folder)
    assert sorted(vectors.all_numbers().tolist()) == list(range(1, 111))
    for row in made_up(110):
        (number, cosine), *_ = vectors.nearest(BagOfWords().embed([f"{row.title}. {row.abstract}"])[0], 1)
        assert number == row.number and cosine > 0.99
    engine.dispose()


@pytest.mark.usefixtures("bag_of_words")
def test_short_vector_files_leave_words_working_and_are_reported(place: Settings, tmp_path: Path) -> None:
    engine = stored(made_up(), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    opened.catch_up(engine)
    embed_pending(engine, place)
    opened.close()
    folder = next(place.index_folder.glob("vectors-*/"))
    with (folder / "components").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(IndexDamaged, match=r"components has 100 bytes, expected 6,400\); run `working-papers index"):
        Vectors(folder)
    opened = SearchIndex.open(place)
    assert opened.search("number42").mode == "words"
    assert "is damaged" in opened.status().problem
    with pytest.raises(IndexDamaged):
        embed_pending(engine, place)
    rebuild(engine, place)
    assert embed_pending(engine, place) == 100
    assert opened.search("number42").mode == "hybrid"
    assert opened.status().problem == ""
    opened.close()
    engine.dispose()


def test_missing_model_leaves_words_working(tmp_path: Path) -> None:
    place = Settings(home=tmp_path, embedding_model=str(tmp_path / "no-such-folder"))
    opened = SearchIndex.open(place)
    opened.add(made_up(3))
    opened.commit()
    assert numbers(opened, "number2") == [2]
    assert "not a folder" in opened.status().problem
    engine = stored(made_up(3), tmp_path / "papers.db")
    with pytest.raises(
        UserError, match=r"WORKING_PAPERS_EMBEDDING_MODEL names .*no-such-folder, which is not a folder"
    ):
        embed_pending(engine, place)
    opened.close()
    engine.dispose()


def unit(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def written(folder: Path, vectors: NDArray[np.float32], first: int = 1) -> Vectors:
    writer = VectorWriter(folder, model="m", dimension=vectors.shape[1])
    entries = [
        VectorRow(first + row, row, FIRST_DAY + dt.timedelta(days=row % 100), (f"c{row % 300}",))
        for row in range(len(vectors))
    ]
    writer.append(entries, vectors)
    writer.commit()
    writer.close()
    return Vectors(folder)


@pytest.mark.parametrize("dimension", [64, 100, 384])
def test_nearest_agrees_with_brute_force(tmp_path: Path, dimension: int) -> None:
    vectors = unit(3_000, dimension)
    store = written(tmp_path / "v", vectors)
    for query in unit(5, dimension, seed=1):
        exact = (np.argsort(-(vectors @ query))[:10] + 1).tolist()
        found = store.nearest(query, 10, candidates=3_000)
        assert len(set(exact) & {number for number, _ in found}) >= 9
        for number, cosine in found:
            assert cosine == pytest.approx(float(vectors[number - 1] @ query), abs=0.01)


@pytest.mark.parametrize("share", [1, 3, 40])  # few rows, rows copied out, rows skipped in the scan
def test_nearest_among_admitted_rows(tmp_path: Path, share: int) -> None:
    vectors = unit(5_000, 64)
    store = written(tmp_path / "v", vectors)
    mask = store.admitted((FIRST_DAY, FIRST_DAY + dt.timedelta(days=share - 1)), None)
    assert mask is not None and mask.sum() == 50 * share
    admitted = np.flatnonzero(mask)
    for query in unit(3, 64, seed=2):
        found = store.nearest(query, 10, mask=mask, candidates=len(admitted) if share == 1 else 40)
        assert all(mask[number - 1] for number, _ in found) and len(found) == 10
        by_number = store.nearest(query, 5, numbers=admitted.astype(np.int64) + 1, candidates=40)
        assert [number for number, _ in found][:1] == [number for number, _ in by_number][:1]


def test_more_categories_than_bits_share_the_last_one(tmp_path: Path) -> None:
    store = written(tmp_path / "v", unit(3_000, 64))
    for name, expected in (("c0", 10), ("c254", 10), ("c299", 450)):  # c255 to c299 share a bit
        mask = store.admitted(None, [name])
        assert mask is not None and mask.sum() == expected


def test_later_rows_replace_earlier_ones(tmp_path: Path) -> None:
    first, second = unit(50, 64), unit(50, 64, seed=3)
    written(tmp_path / "v", first)
    store = written(tmp_path / "v", second)
    assert store.rows == 100 and store.papers == 50
    for row, query in enumerate(second):
        assert store.nearest(query, 1)[0][0] == row + 1
    assert all(cosine < 0.9 for query in first for _, cosine in store.nearest(query, 1))


def test_sparse_numbers(tmp_path: Path) -> None:
    vectors = unit(3, 64)
    writer = VectorWriter(tmp_path / "v", model="m", dimension=64)
    for number, vector in zip((5, 10**12, 2**62), vectors, strict=True):
        writer.append([VectorRow(number, 1, FIRST_DAY, ())], vector[None])
    writer.commit()
    writer.close()
    store = Vectors(tmp_path / "v")
    assert [store.nearest(vector, 1)[0][0] for vector in vectors] == [5, 10**12, 2**62]


def test_writer_refuses_wrong_shapes_and_models(tmp_path: Path) -> None:
    writer = VectorWriter(tmp_path / "v", model="m", dimension=64)
    with pytest.raises(ValueError, match=r"expected shape \(1, 64\), got \(1, 32\)"):
        writer.append([VectorRow(1, 1, FIRST_DAY, ())], unit(1, 32))
    writer.close()
    with pytest.raises(IndexDamaged, match="expected other in 64"):
        VectorWriter(tmp_path / "v", model="other", dimension=64)


def test_text_hash_tells_texts_apart() -> None:
    assert text_hash("a", "b") == text_hash(" a ", "b\n")
    assert text_hash("a", "b") != text_hash("a", "c")
    assert 0 <= text_hash("a", "b") < 2**64


def test_following_an_import(place: Settings, tmp_path: Path) -> None:
    engine = stored(made_up(40), tmp_path / "papers.db")
    opened = SearchIndex.open(place)
    with opened.following(engine) as follow:
        assert follow() == 40
        with engine.begin() as connection:
            connection.execute(sa.insert(TABLE), [dict(vars(row)) for row in made_up()[40:]])
        assert follow() == 60
        assert follow() == 0
    assert numbers(opened, "number99") == [99]
    assert opened.status().indexed_through == 100
    with pytest.raises(KeyError), opened.following(engine) as follow:
        raise KeyError("the import failed")
    opened.add([IndexRow(101, "after", "Afterwards", "", [], [], FIRST_DAY, 101)])  # the lock is free again
    opened.commit()
    assert numbers(opened, "afterwards") == [101]
    opened.close()
    engine.dispose()
