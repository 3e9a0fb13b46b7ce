"""From a BERT-shaped sentence-transformers folder to one ONNX file, without torch.

The graph is written with the fused operators of ONNX Runtime (`Attention`, `SkipLayerNormalization`, `BiasGelu`), the
genuine weights are put in, and the matrix multiplications are quantised to int8 (one scale an output channel,
activations on the fly). On a processor where that costs accuracy the float32 graph is kept instead.

Run as a program (`python -m working_papers.daily.search.bert_graph FOLDER FILE`), so that the memory this takes is
given back when it is done.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from working_papers.errors import UserError

GRAPH_VERSION = 1
"""Part of the built file's name: a change of this module that changes the graph must raise it."""

SMALLEST_COSINE = 0.97
"""Least mean cosine between int8 and float32 embeddings; below it (int8 kernels that saturate) float32 is kept."""

_SAMPLE = (
    "We study the convergence of stochastic gradient descent on overparameterised networks.",
    "Graph neural networks for molecular property prediction",
    "A randomised controlled trial of a new vaccine; 1,200 participants were followed for two years.",
    "Dark matter haloes in cosmological simulations.",
    "time sharing operating systems",
    "An O(n log n) algorithm for the closest pair, with an implementation and measurements on real maps of roads.",
)


@dataclass(frozen=True)
class BertModel:
    """What must be known of a sentence-transformers folder to run it as a BERT graph.

    Attributes:
        folder: the folder.
        hidden: width of an embedding.
        heads: attention heads a layer.
        layers: number of layers.
        epsilon: added to the variance in layer normalisation.
        pooling: "mean" (over the tokens) or "cls" (the first token).
        longest: most tokens a text may have; the rest is cut.
        query_prompt: put before a query.
        document_prompt: put before a document.
    """

    folder: Path
    hidden: int
    heads: int
    layers: int
    epsilon: float
    pooling: str
    longest: int
    query_prompt: str
    document_prompt: str


def read_bert_model(folder: Path) -> BertModel | None:
    """Describe the model in a sentence-transformers folder.

    Args:
        folder: the folder, with `modules.json`.

    Returns:
        The description, or None when the model is of another shape (it then needs sentence-transformers itself).
    """
    if not all((folder / name).is_file() for name in ("modules.json", "model.safetensors", "tokenizer.json")):
        return None
    config = _read_json(folder / "config.json")
    modules = _read_json(folder / "modules.json")
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if (
        kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        or modules[0].get("path")
        or config.get("model_type") != "bert"
        or config.get("hidden_act") != "gelu"
        or config.get("position_embedding_type", "absolute") != "absolute"
    ):
        return None
    pooling = _read_json(folder / modules[1]["path"] / "config.json")
    modes = sorted(name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True)
    if isinstance(pooling.get("pooling_mode"), str):  # newer files name the mode
        modes = [f"pooling_mode_{pooling['pooling_mode']}_tokens"]
    if modes == ["pooling_mode_mean_tokens"]:
        mode = "mean"
    elif modes in (["pooling_mode_cls_token"], ["pooling_mode_cls_tokens"]):
        mode = "cls"
    else:
        return None
    transformer = _read_json(folder / "sentence_bert_config.json", optional=True)
    prompts = _read_json(folder / "config_sentence_transformers.json", optional=True).get("prompts") or {}
    positions = int(config["max_position_embeddings"])
    return BertModel(
        folder=folder,
        hidden=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        layers=int(config["num_hidden_layers"]),
        epsilon=float(config["layer_norm_eps"]),
        pooling=mode,
        longest=min(positions, int(transformer.get("max_seq_length") or positions)),
        query_prompt=str(prompts.get("query") or ""),
        document_prompt=str(prompts.get("document") or prompts.get("passage") or ""),
    )


def _read_json(file: Path, *, optional: bool = False) -> Any:
    if optional and not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the embedding model's file {file} cannot be read ({error})") from error


def build(model: BertModel) -> Any:
    """Write the model as an ONNX graph in float32.

    The graph takes `ids` and `mask` (int32 [batch, tokens]; 1 for a token, 0 for padding) and gives `embedding`
    (float32 [batch, hidden], of length 1).

    Args:
        model: the description of the folder.

    Returns:
        The `onnx.ModelProto`.

    Raises:
        UserError: a weight is missing.
    """
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    weights = {
        name.removeprefix("bert."): array for name, array in load_file(model.folder / "model.safetensors").items()
    }
    nodes: list[Any] = []
    constants: list[Any] = []
    contributed = "com.microsoft"

    def weight(name: str) -> NDArray[np.float32]:
        if name not in weights:
            raise UserError(f"the embedding model in {model.folder} has no weight {name!r}")
        return np.asarray(weights[name], dtype=np.float32)

    def constant(name: str, array: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def normalise(name: str, inputs: list[str], layer_norm: str, bias: str) -> str:
        """Residual sum, bias and layer normalisation in one operator."""
        return node(
            "SkipLayerNormalization",
            [
                *inputs,
                constant(f"{name}.scale", weight(f"{layer_norm}.weight")),
                constant(f"{name}.shift", weight(f"{layer_norm}.bias")),
                constant(f"{name}.bias", weight(bias)),
            ],
            name,
            contributed,
            epsilon=model.epsilon,
        )

    # All texts are of segment 0: its embedding is added to the positions' once and for all.
    positions = weight("embeddings.position_embeddings.weight") + weight("embeddings.token_type_embeddings.weight")[0]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            [
                "ids",
                "",
                constant("words", weight("embeddings.word_embeddings.weight")),
                constant("positions", positions),
                "",
                constant("embedded.scale", weight("embeddings.LayerNorm.weight")),
                constant("embedded.shift", weight("embeddings.LayerNorm.bias")),
            ],
            ["embedded", "embedded.lengths"],
            domain=contributed,
            epsilon=model.epsilon,
        )
    )
    hidden = "embedded"
    for layer in range(model.layers):
        prefix = f"encoder.layer.{layer}."
        parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
        attended = node(
            "Attention",
            [
                hidden,
                constant(f"{layer}.qkv", np.concatenate([weight(f"{part}.weight").T for part in parts], axis=1)),
                constant(f"{layer}.qkv.bias", np.concatenate([weight(f"{part}.bias") for part in parts])),
                "mask",
            ],
            f"{layer}.attended",
            contributed,
            num_heads=model.heads,
        )
        projection = constant(f"{layer}.projection", weight(f"{prefix}attention.output.dense.weight").T)
        projected = node("MatMul", [attended, projection], f"{layer}.projected")
        hidden = normalise(
            f"{layer}.middle",
            [projected, hidden],
            f"{prefix}attention.output.LayerNorm",
            f"{prefix}attention.output.dense.bias",
        )
        up = constant(f"{layer}.up", weight(f"{prefix}intermediate.dense.weight").T)
        wide = node("MatMul", [hidden, up], f"{layer}.wide")
        up_bias = constant(f"{layer}.up.bias", weight(f"{prefix}intermediate.dense.bias"))
        active = node("BiasGelu", [wide, up_bias], f"{layer}.active", contributed)
        down = constant(f"{layer}.down", weight(f"{prefix}output.dense.weight").T)
        narrow = node("MatMul", [active, down], f"{layer}.narrow")
        hidden = normalise(
            f"{layer}.hidden", [narrow, hidden], f"{prefix}output.LayerNorm", f"{prefix}output.dense.bias"
        )
    if model.pooling == "mean":
        constant("token axis", np.array([1], dtype=np.int64))
        constant("last axis", np.array([2], dtype=np.int64))
        kept = node("Unsqueeze", [node("Cast", ["mask"], "kept", to=TensorProto.FLOAT), "last axis"], "kept tokens")
        total = node("ReduceSum", [node("Mul", [hidden, kept], "masked"), "token axis"], "total", keepdims=0)
        count = node("ReduceSum", [kept, "token axis"], "count", keepdims=0)
        pooled = node("Div", [total, count], "pooled")
    else:
        pooled = node("Gather", [hidden, constant("first", np.array(0, dtype=np.int64))], "pooled", axis=1)
    node("LpNormalization", [pooled], "embedding", axis=1, p=2)
    graph = helper.make_graph(
        nodes,
        "sentence embedding",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", model.hidden])],
        constants,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(contributed, 1)],
        ir_version=8,
    )


def export(folder: Path, file: Path, *, quantised: bool = True) -> bool:
    """Write the model of a folder as an ONNX file.

    Args:
        folder: a sentence-transformers folder that `read_bert_model` understands.
        file: where to write; appears whole or not at all.
        quantised: try int8.

    Returns:
        Whether the file is int8.

    Raises:
        UserError: the folder holds a model of another shape, or a weight is missing.
    """
    import onnx

    model = read_bert_model(folder)
    if model is None:
        raise UserError(f"the embedding model in {folder} is not of BERT's shape")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="export-") as scratch:
        exact = Path(scratch) / "float32.onnx"
        onnx.save(build(model), str(exact))
        chosen = exact
        if quantised:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            small = Path(scratch) / "int8.onnx"
            quantize_dynamic(
                exact,
                small,
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            if _mean_cosine(model, exact, small) >= SMALLEST_COSINE:
                chosen = small
        is_int8 = chosen != exact
        chosen.replace(file)
    return is_int8


def _mean_cosine(model: BertModel, exact: Path, small: Path) -> float:
    from working_papers.daily.search.embedding import OnnxEmbedder

    one, other = (OnnxEmbedder(model, file, threads=1).embed(_SAMPLE) for file in (exact, small))
    return float(np.mean(np.sum(one * other, axis=1)))


if __name__ == "__main__":
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(str(error))
