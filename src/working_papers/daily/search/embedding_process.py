"""The process that runs a model in sentence-transformers. Run by `ProcessEmbedder`; imports torch.

Requests come as lines of JSON on standard input, answers go to standard output: a line of JSON, then float32 vectors.
The end of standard input (the parent has gone, however it went) ends the process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np


def main(name: str, threads: int) -> int:
    """Serve one model until standard input ends.

    Args:
        name: folder or hub name of the model.
        threads: processor threads torch may use.

    Returns:
        The exit status.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers

    def answer(head: dict[str, Any], body: bytes = b"") -> None:
        answers.write(json.dumps(head).encode() + b"\n" + body)
        answers.flush()

    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        remedy = "run: pip install sentence-transformers"
        answer({"error": f"the embedding model {name} needs sentence-transformers; {remedy} ({error})"})
        return 1
    torch.set_num_threads(threads)
    try:
        model = SentenceTransformer(name, device="cpu")
        dimension = int(model.encode(["dimension"], show_progress_bar=False).shape[1])
    except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, the reader gets one sentence
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        answer({"error": f"the embedding model {name} cannot be loaded: {reason}"})
        return 1
    answer({"dimension": dimension})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        encode = model.encode_query if request["query"] else model.encode_document
        try:
            vectors = encode(request["texts"], batch_size=8, show_progress_bar=False, normalize_embeddings=True)
        except Exception as error:  # noqa: BLE001 - as above
            answer({"error": f"the embedding model {name} failed: {type(error).__name__}: {error}"})
            return 1
        rows = np.ascontiguousarray(np.asarray(vectors, dtype=np.float32).reshape(-1, dimension))
        answer({"rows": len(rows)}, rows.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
