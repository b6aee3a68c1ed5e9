"""BERT encoders as ONNX files written with onnx.helper, so that no torch is needed.

`encoder_onnx` writes the encoder of a Hugging Face directory (the peer that `bench` runs in ONNX Runtime);
`random_onnx` writes one of any size with random weights (for time and memory).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

from benchmarks import cache

OPSET = 17
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
EMBEDDING = "sentence_embedding"

Weight = Callable[[str, tuple[int, ...]], NDArray[np.float32]]


@dataclass(frozen=True)
class BertSize:
    """Sizes of a BERT encoder, counted in elements."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2


BASE = BertSize(layers=12, hidden=768, heads=12, feed_forward=3072)


def random_onnx(size: BertSize = BASE, seed: int = 0) -> Path:
    """ONNX file of an encoder with random weights, cached. BERT-base's is 436 MB."""
    name = f"exports/bert-{cache.key((repr(size), str(seed), Path(__file__).read_bytes()))}"

    def fill(folder: Path) -> None:
        rng = np.random.default_rng(seed)

        def weight(tensor: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            return values + np.float32(1.0) if tensor.endswith("LayerNorm.weight") else values

        onnx.save(_build(size, weight), str(folder / "model.onnx"))

    return cache.entry(name, fill) / "model.onnx"


def encoder_onnx(directory: Path, *, pooled: bool = False) -> Path:
    """ONNX file of the BERT encoder that a Hugging Face directory holds, cached by content.

    With `pooled` its output is `EMBEDDING`, the mean over real tokens, of length one.
    """
    weights, config = directory / "model.safetensors", directory / "config.json"
    parts = (cache.file_sha256(weights), config.read_bytes(), Path(__file__).read_bytes(), str(pooled))
    fields = json.loads(config.read_bytes())
    size = BertSize(
        layers=fields["num_hidden_layers"],
        hidden=fields["hidden_size"],
        heads=fields["num_attention_heads"],
        feed_forward=fields["intermediate_size"],
        vocabulary=fields["vocab_size"],
        positions=fields["max_position_embeddings"],
        token_types=fields["type_vocab_size"],
    )

    def fill(folder: Path) -> None:
        with safe_open(weights, framework="np") as file:
            model = _build(size, lambda name, _shape: file.get_tensor(name), pooled)
        onnx.save(model, str(folder / "model.onnx"))

    return cache.entry(f"exports/encoder-{cache.key(parts)}", fill) / "model.onnx"


def _build(size: BertSize, weight: Weight, pooled: bool = False) -> onnx.ModelProto:
    writer = _Writer(size, weight)
    hidden = writer.encoder()
    shape = ["batch", "sequence"]
    if pooled:
        writer.pool(hidden, EMBEDDING)
        output = helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", size.hidden])
    else:
        writer.node("Identity", [hidden], OUTPUT)
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [*shape, size.hidden])
    graph = helper.make_graph(
        writer.nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in INPUTS],
        [output],
        writer.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


class _Writer:
    """Collects nodes and initializers. Methods return the name of the value they make."""

    def __init__(self, size: BertSize, weight: Weight) -> None:
        self.size = size
        self.weight = weight
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def encoder(self) -> str:
        size = self.size
        self.constant("split_shape", np.array([0, 0, size.heads, size.hidden // size.heads], np.int64))
        self.constant("merge_shape", np.array([0, 0, size.hidden], np.int64))
        self.constant("root", np.array(math.sqrt(size.hidden // size.heads), np.float32))
        hidden = self.embeddings()
        mask = self.mask()
        for number in range(size.layers):
            hidden = self.layer(f"encoder.layer.{number}.", hidden, mask)
        return hidden

    def embeddings(self) -> str:
        size, path = self.size, "embeddings."
        rows = {"word": size.vocabulary, "position": size.positions, "token_type": size.token_types}
        for kind, count in rows.items():
            name = f"{path}{kind}_embeddings.weight"
            self.constant(name, self.weight(name, (count, size.hidden)))
        zero, one, two = (self.constant(f"at_{i}", np.array([i], np.int64)) for i in range(3))
        shape = self.node("Shape", ["input_ids"], "ids_shape")
        length = self.node("Slice", [shape, one, two, zero], "sequence_length")
        places = self.node("Slice", [f"{path}position_embeddings.weight", zero, length, zero], "places")
        total = self.node("Gather", [f"{path}word_embeddings.weight", "input_ids"], "words")
        types = self.node("Gather", [f"{path}token_type_embeddings.weight", "token_type_ids"], "types")
        total = self.node("Add", [total, types], "words_and_types")
        return self.norm(self.node("Add", [total, places], "embedded"), f"{path}LayerNorm")

    def mask(self) -> str:
        axes = self.constant("mask_axes", np.array([1, 2], np.int64))
        one = self.constant("kept", np.array(1.0, np.float32))
        lowest = self.constant("lowest", np.array(np.finfo(np.float32).min, np.float32))
        value = self.node("Unsqueeze", ["attention_mask", axes], "mask_spread")
        value = self.node("Cast", [value], "mask_float", to=TensorProto.FLOAT)
        return self.node("Mul", [self.node("Sub", [one, value], "mask_dropped"), lowest], "mask")

    def pool(self, hidden: str, output: str) -> str:
        """The mean of `hidden` over the tokens that the mask keeps, divided by its length."""
        inner = self.constant("pool_inner", np.array([-1], np.int64))
        tokens = self.constant("pool_tokens", np.array([1], np.int64))
        kept = self.node("Cast", ["attention_mask"], "pool_kept", to=TensorProto.FLOAT)
        kept = self.node("Unsqueeze", [kept, inner], "pool_mask")
        total = self.node("ReduceSum", [self.node("Mul", [hidden, kept], "pool_rows"), tokens], "pool_sum", keepdims=0)
        count = self.node("ReduceSum", [kept, tokens], "pool_count", keepdims=0)
        return self.node("LpNormalization", [self.node("Div", [total, count], "pool_mean")], output, axis=-1, p=2)

    def layer(self, path: str, hidden: str, mask: str) -> str:
        size = self.size
        orders = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        heads = {}
        for name, order in orders.items():
            at = f"{path}attention.self.{name}"
            split = self.node(
                "Reshape", [self.linear(hidden, at, size.hidden, size.hidden), "split_shape"], f"{at}.split"
            )
            heads[name] = self.node("Transpose", [split], f"{at}.heads", perm=order)
        scores = self.node("MatMul", [heads["query"], heads["key"]], f"{path}scores")
        scores = self.node("Add", [self.node("Div", [scores, "root"], f"{path}scaled"), mask], f"{path}masked")
        shares = self.node("Softmax", [scores], f"{path}shares", axis=-1)
        mixed = self.node("MatMul", [shares, heads["value"]], f"{path}context")
        mixed = self.node("Transpose", [mixed], f"{path}context.rows", perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", [mixed, "merge_shape"], f"{path}context.merged")
        out = self.linear(mixed, f"{path}attention.output.dense", size.hidden, size.hidden)
        out = self.node("Add", [out, hidden], f"{path}attention.residual")
        attended = self.norm(out, f"{path}attention.output.LayerNorm")
        wide = self.gelu(self.linear(attended, f"{path}intermediate.dense", size.hidden, size.feed_forward), path)
        narrow = self.linear(wide, f"{path}output.dense", size.feed_forward, size.hidden)
        return self.norm(self.node("Add", [narrow, attended], f"{path}residual"), f"{path}output.LayerNorm")

    def gelu(self, value: str, path: str) -> str:
        if not any(tensor.name == "root_two" for tensor in self.initializers):
            self.constant("root_two", np.array(math.sqrt(2.0), np.float32))
            self.constant("half", np.array(0.5, np.float32))
        error = self.node("Erf", [self.node("Div", [value, "root_two"], f"{path}gelu.scaled")], f"{path}gelu.erf")
        total = self.node("Add", [error, "kept"], f"{path}gelu.shifted")
        product = self.node("Mul", [value, total], f"{path}gelu.product")
        return self.node("Mul", [product, "half"], f"{path}gelu")

    def linear(self, value: str, path: str, inputs: int, outputs: int) -> str:
        kernel = self.constant(f"{path}.weight", self.weight(f"{path}.weight", (outputs, inputs)).T)
        bias = self.constant(f"{path}.bias", self.weight(f"{path}.bias", (outputs,)))
        return self.node("Add", [bias, self.node("MatMul", [value, kernel], f"{path}.product")], path)

    def norm(self, value: str, path: str) -> str:
        gain = self.constant(f"{path}.weight", self.weight(f"{path}.weight", (self.size.hidden,)))
        shift = self.constant(f"{path}.bias", self.weight(f"{path}.bias", (self.size.hidden,)))
        return self.node("LayerNormalization", [value, gain, shift], path, axis=-1, epsilon=1e-12)
