"""Search at the size of arXiv: latency, memory and recall over three million papers.

    python benchmarks/search_scale.py [--papers 3000000] [--data ../shared/data/search] [--folder DIR]

The papers are made of 60,000 real arXiv records: each abstract is spliced from two real ones and sprinkled with words
drawn as often as they occur; each vector is a random mix of two real embeddings plus noise of the embeddings' own
covariance. The index is built as the service builds it, then searched from a fresh process, so that the memory shown
is that of a web process. Every query is new (no cache helps): keywords, titles, sentences, phrases, authors,
days and categories. Recall compares with exact float search, on the made-up vectors and on the real ones alone.

With `--folder` the index is kept there and measured again without being built. 3,000,000 papers take about 8 minutes on
two cores and 6 GB of disk.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from working_papers.config import Settings
from working_papers.daily.search import IndexRow, SearchIndex
from working_papers.daily.search.embedding import DEFAULT_MODEL_SHA256, open_embedder, paper_text
from working_papers.daily.search.index import indexed_through, vectors_folder
from working_papers.daily.search.lexical import LexicalWriter, with_archives
from working_papers.daily.search.vectors import VectorRow, Vectors, VectorWriter

BLOCK = 20_000
DENSE_QUERIES = 200
LAST_DAY = dt.date(2026, 6, 30)
LIMITS = {"p50": 50.0, "p99": 200.0, "memory": 4.0, "recall": 0.95}


def read_records(data: Path) -> list[dict[str, Any]]:
    """The real records.

    Args:
        data: folder with `arxiv-metadata-60k.jsonl.gz`.

    Raises:
        SystemExit: it is not there.
    """
    file = data / "arxiv-metadata-60k.jsonl.gz"
    if not file.is_file():
        sys.exit(f"{file} is not there; give the folder of arXiv's records with --data")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def real_embeddings(records: list[dict[str, Any]], count: int, cache: Path) -> NDArray[np.float32]:
    """Embeddings of the first records, kept between calls.

    Args:
        records: the real records.
        count: how many at least.
        cache: folder to keep them in.

    Returns:
        float32 [count or more, 384].
    """
    file = cache / f"real-embeddings-{DEFAULT_MODEL_SHA256[:12]}.npy"
    known = np.load(file) if file.is_file() else np.empty((0, 384), dtype=np.float32)
    if len(known) < count:
        print(f"embedding {count - len(known):,} real papers", flush=True)
        embedder = open_embedder(Settings(home=cache / "home"), threads=2)
        texts = [paper_text(record["title"], record["abstract"]) for record in records[len(known) : count]]
        start = time.perf_counter()
        known = np.concatenate([known, embedder.embed(texts)])
        print(f"  {len(texts) / (time.perf_counter() - start):.0f} papers/s on 2 threads", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, known)
    return np.asarray(known, dtype=np.float32)


def made_up_papers(
    records: list[dict[str, Any]], count: int, labels: list[tuple[dt.date, tuple[str, ...]]], seed: int = 0
) -> Iterator[IndexRow]:
    """Papers spliced from real ones.

    Args:
        records: the real records.
        count: how many.
        labels: takes up each paper's day and categories, for its vector.
        seed: of the generator.
    """
    generator = random.Random(seed)
    texts = [record["abstract"].split() for record in records]
    titles = [" ".join(record["title"].split()) for record in records]
    authors = [record["authors"].replace(" and ", ", ").split(", ") for record in records]
    categories = [record["categories"].split() for record in records]
    archives = [with_archives(names) for names in categories]
    words = list(itertools.chain.from_iterable(texts[:20_000]))  # as often as they occur
    size, many = len(records), len(words)
    first = LAST_DAY.toordinal() - 34 * 365
    span = LAST_DAY.toordinal() - first
    for number in range(1, count + 1):
        one, other = int(generator.random() * size), int(generator.random() * size)
        head, tail = texts[one], texts[other]
        sprinkled = [words[int(generator.random() * many)] for _ in range(12)]
        abstract = " ".join([*head[: len(head) // 2], *sprinkled, *tail[len(tail) // 2 :]])
        day = dt.date.fromordinal(first + int(span * generator.random() ** 0.4))  # more papers every year
        labels.append((day, archives[one]))
        yield IndexRow(
            number=number,
            id=f"{number // 100_000:04d}.{number % 100_000:05d}",
            title=f"{titles[one]} {sprinkled[0]} {sprinkled[1]}",
            abstract=abstract,
            authors=authors[other],
            categories=categories[one],
            day=day,
            revision=number,
        )


def made_up_vectors(real: NDArray[np.float32], count: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Vectors of the real ones' statistics, in blocks.

    Args:
        real: float32 [n, dimension], each of length 1.
        count: how many.
        seed: of the generator.

    Yields:
        float32 [at most BLOCK, dimension], each of length 1.
    """
    generator = np.random.default_rng(seed)
    covariance = np.cov(real.T).astype(np.float64)
    factor = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(covariance))).astype(np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        share = generator.uniform(0.5, 0.9, (size, 1)).astype(np.float32)
        block = share * real[generator.integers(0, len(real), size)]
        block += (1 - share) * real[generator.integers(0, len(real), size)]
        block += 0.5 * (generator.standard_normal((size, real.shape[1]), dtype=np.float32) @ factor.T)
        yield np.asarray(block / np.linalg.norm(block, axis=1, keepdims=True), dtype=np.float32)


def build(settings: Settings, records: list[dict[str, Any]], real: NDArray[np.float32], papers: int) -> None:
    """Build the index, and note the exact answers to the dense queries.

    Args:
        settings: with an empty home folder.
        records: the real records.
        real: embeddings of the first of them; the last `DENSE_QUERIES` of these serve as queries.
        papers: how many papers.
    """
    start = time.perf_counter()
    index = SearchIndex.open(settings)
    index.close()
    folder = settings.index_folder
    lexical = LexicalWriter(next(folder.glob("lexical-*")), memory=1_000_000_000, threads=2)
    labels: list[tuple[dt.date, tuple[str, ...]]] = []
    added = lexical.add(made_up_papers(records, papers, labels))
    lexical.commit()
    print(f"words: {added:,} papers at {added / (time.perf_counter() - start):,.0f} papers/s", flush=True)
    lexical.close()
    head = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(head | {"indexed_through": papers}))
    print(f"  merged after {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    sources, queries = real[:-DENSE_QUERIES], real[-DENSE_QUERIES:]
    best = np.full((DENSE_QUERIES, 10), -2, dtype=np.float32)
    answers = np.zeros((DENSE_QUERIES, 10), dtype=np.int64)
    writer = VectorWriter(vectors_folder(settings), model="all-MiniLM-L6-v2", dimension=real.shape[1])
    number = 1
    for block in made_up_vectors(sources, papers):
        here = enumerate(labels[number - 1 : number - 1 + len(block)], number)
        writer.append([VectorRow(paper, 1, day, categories) for paper, (day, categories) in here], block)
        cosines = queries @ block.T
        for query, place in zip(*(part.tolist() for part in np.nonzero(cosines > best.min(1)[:, None])), strict=True):
            worst = int(best[query].argmin())
            if cosines[query, place] > best[query, worst]:
                best[query, worst], answers[query, worst] = cosines[query, place], number + place
        number += len(block)
    writer.commit(embedded_through=papers)
    writer.close()
    np.savez(settings.home / "dense-queries.npz", queries=queries, answers=answers, cosines=best)
    print(f"vectors: {papers:,} in {time.perf_counter() - start:.0f} s", flush=True)


def recall_on_real(real: NDArray[np.float32]) -> float:
    """recall@10 of the real embeddings among themselves, against exact float search.

    Args:
        real: float32 [n, dimension].
    """
    with tempfile.TemporaryDirectory() as scratch:
        writer = VectorWriter(Path(scratch) / "vectors", model="real", dimension=real.shape[1])
        writer.append([VectorRow(number, 1, LAST_DAY, ()) for number in range(len(real))], real)
        writer.commit()
        writer.close()
        store = Vectors(Path(scratch) / "vectors")
        found = 0
        queries = np.random.default_rng(0).choice(len(real), DENSE_QUERIES, replace=False)
        for query in queries.tolist():
            exact = np.argpartition(-(real @ real[query]), 10)[:10]
            found += len(set(exact.tolist()) & {number for number, _ in store.nearest(real[query], 10)})
    return found / (10 * DENSE_QUERIES)


def make_queries(records: list[dict[str, Any]], count: int, seed: int = 1) -> list[tuple[str, str, dict[str, Any]]]:
    """Queries of several kinds: (kind, text, filters).

    Args:
        records: the real records.
        count: how many.
        seed: of the generator.
    """
    generator = random.Random(seed)
    queries: list[tuple[str, str, dict[str, Any]]] = []
    kinds = ["keywords"] * 9 + ["title"] * 4 + ["sentence"] * 2 + ["phrase", "author", "days", "category", "broad"]
    while len(queries) < count:
        record = generator.choice(records)
        words = record["abstract"].split()
        title = record["title"].split()
        if len(words) < 60 or len(title) < 4:
            continue
        kind = kinds[len(queries) % len(kinds)]
        keywords = " ".join(
            generator.sample([word for word in words if len(word) > 4] or words, generator.randint(2, 4))
        )
        filters: dict[str, Any] = {}
        at = generator.randrange(len(words) - 35)
        if kind == "days":
            first = LAST_DAY - dt.timedelta(days=generator.choice([7, 30, 365, 3650]))
            filters = {"days": (first, LAST_DAY)}
        elif kind == "category":
            filters = {"categories": [generator.choice(record["categories"].split())]}
        text = {
            "title": " ".join(title),
            "sentence": " ".join(words[at : at + 35]),
            "phrase": f'"{" ".join(title[:3])}" {keywords}',
            "author": f'author:"{record["authors"].split(",")[0].strip()}" {keywords}',
            "broad": generator.choice(["deep learning", "neural network model", "data analysis method", "learning"])
            + f" {generator.choice(words)}",
        }.get(kind, keywords)
        queries.append((kind, text, filters))
    return queries


def memory() -> tuple[float, float]:
    """Resident memory of this process, all of it and without file pages, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss") or "VmRSS" in line
    }
    return sizes["VmRSS"] / 1e9, sizes["RssAnon"] / 1e9


def measure(home: Path, data: Path, count: int) -> bool:
    """Search, and print what it took.

    Args:
        home: a home folder with an index.
        data: folder of the real records.
        count: how many queries.

    Returns:
        Whether all limits hold.
    """
    settings = Settings(home=home)
    queries = make_queries(read_records(data), count + 50)
    index = SearchIndex.open(settings)
    status = index.status()
    print(f"{status.papers:,} papers by words, {status.embedded:,} by meaning; {os.cpu_count()} cores", flush=True)
    for _, text, filters in queries[count:]:  # the first ones load the model and the files
        index.search(text, **filters)
    taken: dict[str, list[float]] = {}
    processor = time.process_time()
    for kind, text, filters in queries[:count]:
        result = index.search(text, **filters)
        taken.setdefault(kind, []).append(result.seconds * 1e3)
        if result.mode != "hybrid":
            sys.exit(f"a query was answered by {result.mode} only")
    processor = (time.process_time() - processor) / count * 1e3
    every = np.concatenate([np.array(times) for times in taken.values()])
    p50, p99 = np.percentile(every, [50, 99])
    print(
        f"hybrid search, one reader: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {every.max():.1f} ms; "
        f"{processor:.1f} ms of processor time a query ({count} queries)"
    )
    for kind, times in taken.items():
        print(f"    {kind}: p50 {np.percentile(times, 50):.1f} ms, worst {max(times):.1f} ms ({len(times)})")
    more = make_queries(read_records(data), count, seed=2)
    together: list[float] = []

    def reader(mine: list[tuple[str, str, dict[str, Any]]]) -> None:
        for _, text, filters in mine:
            together.append(index.search(text, **filters).seconds * 1e3)

    threads = [threading.Thread(target=reader, args=(more[part::2],)) for part in range(2)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = count / (time.perf_counter() - start)
    print(
        f"two readers at once: p50 {np.percentile(together, 50):.1f} ms, p99 {np.percentile(together, 99):.1f} ms, "
        f"{rate:.0f} queries/s"
    )
    used, own = memory()
    print(f"resident memory {used:.2f} GB, of it {own:.2f} GB its own and the rest pages of the index's files")
    dense = np.load(home / "dense-queries.npz")
    store = Vectors(vectors_folder(settings))
    found, times = 0, []
    for query, answers in zip(dense["queries"], dense["answers"], strict=True):
        start = time.perf_counter()
        near = store.nearest(query, 10)
        times.append((time.perf_counter() - start) * 1e3)
        found += len({number for number, _ in near} & set(answers.tolist()))
    recall = found / dense["answers"].size
    print(
        f"made-up vectors: recall@10 against exact float search {recall:.3f} (mean cosine of the exact ten "
        f"{dense['cosines'].mean():.2f}); a scan takes {np.median(times):.1f} ms"
    )
    index.close()
    held = p50 <= LIMITS["p50"] and p99 <= LIMITS["p99"] and used <= LIMITS["memory"]
    print(f"limits (p50 50 ms, p99 200 ms, 4 GB): {'held' if held else 'NOT HELD'}", flush=True)
    return bool(held)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=3_000_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument(
        "--real", type=int, default=4_000, help="real papers to embed at least; more makes truer vectors"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/search"))
    parser.add_argument("--folder", type=Path, help="keep the index here, and use the one that is here")
    parser.add_argument("--cache", type=Path, default=Path(".cache/search-scale"), help="keeps the real embeddings")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        sys.exit(0 if measure(arguments.measure, arguments.data, arguments.queries) else 1)
    start = time.perf_counter()
    records = read_records(arguments.data)
    real = real_embeddings(records, arguments.real, arguments.cache)
    recall = recall_on_real(real)
    print(f"{len(real):,} real embeddings: recall@10 against exact float search {recall:.3f}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.folder or Path(scratch)
        settings = Settings(home=home)
        if not (home / "dense-queries.npz").is_file() or indexed_through(settings) != arguments.papers:
            build(settings, records, real, arguments.papers)
        command = [sys.executable, __file__, "--measure", str(home), "--data", str(arguments.data)]
        done = subprocess.run([*command, "--queries", str(arguments.queries)], check=False)
    print(f"{time.perf_counter() - start:.0f} s in all")
    sys.exit(0 if done.returncode == 0 and recall >= LIMITS["recall"] else 1)


if __name__ == "__main__":
    main()
