"""The BERT encoders of `bert_onnx` as GGUF files, for llama.cpp: the same weights in single precision."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from benchmarks import cache

# GGUF's names of what lies outside the layers, and in each of them.
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_LAYER = "encoder.layer."
# What bert_onnx writes.
_EPSILON = 1e-12


def encoder_gguf(model: Path) -> Path:
    """GGUF file of an encoder that `bert_onnx` wrote, cached by content. Needs the package gguf."""
    parts = (cache.file_sha256(model), Path(__file__).read_bytes())

    def fill(folder: Path) -> None:
        _write(onnx.load(model), folder / "model.gguf")

    return cache.entry(f"exports/gguf-{cache.key(parts)}", fill) / "model.gguf"


def gguf_name(name: str) -> tuple[str, bool] | None:
    """GGUF's name of a weight, and whether it is a matrix that ONNX holds transposed; None for other constants."""
    path, dot, part = name.rpartition(".")
    if not dot or part not in ("weight", "bias"):
        return None
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{part}", False
    number, _, place = path.removeprefix(_LAYER).partition(".")
    if not path.startswith(_LAYER) or place not in _IN_LAYER:
        return None
    return f"blk.{number}.{_IN_LAYER[place]}.{part}", part == "weight" and not place.endswith("LayerNorm")


def _write(model: onnx.ModelProto, file: Path) -> None:
    gguf: Any = import_module("gguf")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rows, hidden = constants["embeddings.word_embeddings.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in constants if name.startswith(_LAYER))
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_context_length(len(constants["embeddings.position_embeddings.weight"]))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(constants[f"{_LAYER}0.intermediate.dense.bias"].size)
    writer.add_block_count(layers)
    writer.add_head_count(int(constants["split_shape"][2]))
    writer.add_layer_norm_eps(_EPSILON)
    writer.add_causal_attention(False)
    # Token ids come from the outside: there is no text to take apart.
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(rows)
    writer.add_token_type_count(len(constants["embeddings.token_type_embeddings.weight"]))
    for name, array in constants.items():
        known = gguf_name(name)
        if known is not None:
            writer.add_tensor(known[0], (array.T if known[1] else array).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
