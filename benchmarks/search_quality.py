"""How well search finds: nDCG@10 of words, meaning and both on Cranfield, CISI and CACM.

    python benchmarks/search_quality.py [--data ../shared/data/search] [--weights]

Everything runs through the index as it is served: import, embedding, `SearchIndex.search`. nDCG is computed by
ir-measures. The collections are not part of the project; `--data` names the folder that holds them. About 4 minutes on
one core, nearly all of it embedding 6,064 documents.
"""

from __future__ import annotations

import argparse
import datetime as dt
import html
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import numpy as np

from working_papers.config import Settings
from working_papers.daily.search import IndexRow, SearchIndex
from working_papers.daily.search import index as hybrid
from working_papers.daily.search.embedding import Embedder, model_name, open_embedder, paper_text
from working_papers.daily.search.index import vector_row, vectors_folder
from working_papers.daily.search.lexical import Filters, Lexical
from working_papers.daily.search.text import parse
from working_papers.daily.search.vectors import Vectors, VectorWriter

MEASURE = ir_measures.nDCG @ 10
TO_BEAT = {"Cranfield": (0.346, 0.402), "CISI": (0.334, 0.421)}
"""Figures for BM25 and all-MiniLM-L6-v2 that came with the collections."""


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        name: its name.
        documents: title and text by number.
        queries: text by number, those that are judged.
        judgments: relevance by query and document.
    """

    name: str
    documents: dict[int, tuple[str, str]]
    queries: dict[int, str]
    judgments: dict[str, dict[str, int]]


def _joined(text: str) -> str:
    return " ".join(text.split())


def _smart_records(file: Path) -> list[dict[str, str]]:
    """Records of the SMART system's layout: `.I 7` begins one, `.T`, `.W` and so on its fields."""
    records: list[dict[str, str]] = []
    field = ""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        begins = re.match(r"\.I\s+(\d+)\s*$", line)
        if begins:
            records.append({"I": begins[1]})
            field = ""
        elif re.match(r"\.[A-Z]\s*$", line):
            field = line[1]
        elif records and field:
            records[-1][field] = records[-1].get(field, "") + line
    return records


def _smart(name: str, folder: Path, documents: str, queries: str, judgments: str) -> Collection:
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / judgments).read_text().splitlines():
        query, document, *_ = line.split()
        judged.setdefault(str(int(query)), {})[str(int(document))] = 1
    texts = {
        int(record["I"]): _joined(f"{record.get('T', '')} {record.get('W', '')}")
        for record in _smart_records(folder / queries)
    }
    return Collection(
        name,
        {
            int(record["I"]): (_joined(record.get("T", "")), _joined(record.get("W", "")))
            for record in _smart_records(folder / documents)
        },
        {number: text for number, text in texts.items() if str(number) in judged},
        judged,
    )


def _cranfield(folder: Path) -> Collection:
    def tagged(text: str, tag: str) -> list[str]:
        return [html.unescape(found) for found in re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)]

    documents = {}
    for record in tagged((folder / "cran.all.1400.xml").read_text(encoding="utf-8", errors="replace"), "doc"):
        title, text = _joined(tagged(record, "title")[0]), _joined(tagged(record, "text")[0])
        # The text begins with the title, which would count twice.
        documents[int(tagged(record, "docno")[0])] = (title, text.removeprefix(title).strip())
    topics = tagged((folder / "cran.qry.xml").read_text(encoding="utf-8"), "title")
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "cranqrel.trec.txt").read_text().splitlines():
        query, _, document, relevance = line.split()
        judged.setdefault(query, {})[document] = int(relevance)
    return Collection("Cranfield", documents, {number: _joined(text) for number, text in enumerate(topics, 1)}, judged)


def collections(folder: Path) -> list[Collection]:
    """The three test collections.

    Args:
        folder: where they lie.

    Raises:
        SystemExit: they do not.
    """
    try:
        return [
            _cranfield(folder),
            _smart("CISI", folder, "CISI.ALL", "CISI.QRY", "CISI.REL"),
            _smart("CACM", folder, "cacm.all", "cacm.query.text", "cacm.qrels.text"),
        ]
    except OSError as error:
        sys.exit(f"the test collections are not in {folder} ({error}); give their folder with --data")


def score(collection: Collection, found: dict[int, list[int]]) -> float:
    """nDCG@10.

    Args:
        collection: the collection.
        found: by query, the documents in order.
    """
    run = {
        str(query): {str(document): 1.0 / rank for rank, document in enumerate(documents, 1)}
        for query, documents in found.items()
    }
    return float(ir_measures.calc_aggregate([MEASURE], collection.judgments, run)[MEASURE])


def indexed(collection: Collection, settings: Settings, embedder: Embedder) -> SearchIndex:
    """An index of a collection, words and vectors.

    Args:
        collection: the collection.
        settings: with an empty home folder.
        embedder: embeds the documents.
    """
    rows = [
        IndexRow(number, f"doc{number}", title, text, [], [], dt.date(2000, 1, 1))
        for number, (title, text) in collection.documents.items()
    ]
    index = SearchIndex.open(settings)
    index.add(rows)
    index.commit()
    vectors = embedder.embed([paper_text(row.title, row.abstract) for row in rows])
    writer = VectorWriter(vectors_folder(settings), model=model_name(settings), dimension=embedder.dimension)
    writer.append([vector_row(row) for row in rows], vectors)
    writer.commit()
    writer.close()
    return index


def by_words(lexical: Lexical, text: str) -> list[int]:
    """What words alone find."""
    parsed = parse(text)
    words = lexical.words_query(parsed)
    return (
        [] if words is None else [number for number, _ in lexical.best(words, lexical.condition(parsed, Filters()), 10)]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/search"), help="folder of the collections")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="embedding model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", action="store_true", help="also show other weights of meaning against words")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    chosen = hybrid.MEANING_WEIGHT
    for collection in collections(arguments.data):
        with tempfile.TemporaryDirectory() as home:
            settings = Settings(home=Path(home), embedding_model=arguments.model)
            embedder = open_embedder(settings, threads=arguments.threads)
            index = indexed(collection, settings, embedder)
            lexical = Lexical(next(settings.index_folder.glob("lexical-*")))
            vectors = Vectors(vectors_folder(settings))
            queries = collection.queries
            embedded = dict(zip(queries, embedder.embed(list(queries.values()), query=True), strict=True))
            row = {
                "words": score(collection, {number: by_words(lexical, text) for number, text in queries.items()}),
                "meaning": score(
                    collection,
                    {number: [found for found, _ in vectors.nearest(embedded[number], 10)] for number in queries},
                ),
            }
            for weight in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8) if arguments.weights else (chosen,):
                hybrid.MEANING_WEIGHT = weight
                row[f"both, {weight:g}"] = score(
                    collection,
                    {
                        number: [hit.number for hit in index.search(text, limit=10).hits]
                        for number, text in queries.items()
                    },
                )
            hybrid.MEANING_WEIGHT = chosen
            index.close()
            embedder.close()
        results[collection.name] = row
        to_beat = TO_BEAT.get(collection.name)
        print(
            f"{collection.name}: {len(collection.documents):,} documents, {len(queries)} queries; nDCG@10 "
            + ", ".join(f"{name} {value:.3f}" for name, value in row.items())
            + (f" (to beat: {to_beat[0]} and {to_beat[1]})" if to_beat else ""),
            flush=True,
        )
    best = all(row[f"both, {chosen:g}"] >= max(row["words"], row["meaning"]) for row in results.values())
    print(f"both at least as good as either on all: {'yes' if best else 'NO'}")
    if arguments.weights:
        weights = [name for name in next(iter(results.values())) if name.startswith("both")]
        for left_out in results:
            others = [row for name, row in results.items() if name != left_out]
            winner = max(weights, key=lambda name: float(np.mean([row[name] for row in others])))
            print(f"chosen without {left_out}: {winner}, which gives {results[left_out][winner]:.3f} there")
    sys.exit(0 if best else 1)


if __name__ == "__main__":
    main()
