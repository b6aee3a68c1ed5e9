"""MiniLM as GGUF: read back it holds the encoder's weights, and llama.cpp computes with it what ONNX Runtime does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import bert_gguf, bert_onnx
from greencc.peers import missing_packages, open_peer


@pytest.fixture(scope="module")
def small_onnx() -> Path:
    return bert_onnx.random_onnx(
        bert_onnx.BertSize(layers=2, hidden=32, heads=4, feed_forward=64, vocabulary=50, positions=16)
    )


def test_every_weight_is_written_once_as_pytorch_lays_it_out(small_onnx: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(bert_gguf.encoder_gguf(small_onnx))
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(small_onnx).graph.initializer}
    weights = {name: array for name, array in constants.items() if name.endswith((".weight", ".bias"))}
    assert len(written) == len(weights) == 5 + 2 * 16
    np.testing.assert_array_equal(written["token_embd.weight"], weights["embeddings.word_embeddings.weight"])
    np.testing.assert_array_equal(
        written["blk.1.ffn_up.weight"], weights["encoder.layer.1.intermediate.dense.weight"].T
    )
    np.testing.assert_array_equal(
        written["blk.0.attn_output_norm.bias"], weights["encoder.layer.0.attention.output.LayerNorm.bias"]
    )
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["bert.block_count"] == 2
    assert fields["bert.attention.head_count"] == 4
    assert fields["bert.attention.causal"] is False


@pytest.mark.parametrize("name", ["split_shape", "encoder.layer.0.unknown.weight", "half", "pooler.dense.bias"])
def test_what_is_no_weight_of_the_encoder_has_no_name(name: str) -> None:
    assert bert_gguf.gguf_name(name) is None


@pytest.mark.skipif(bool(missing_packages("llama.cpp")), reason="llama.cpp is an optional peer")
def test_llama_cpp_computes_what_onnx_runtime_does(small_onnx: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (3, 16))
    mask = (np.arange(16) < np.array([[16], [3], [9]])).astype(np.int64)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    outputs = (bert_onnx.OUTPUT,)
    wanted = open_peer("onnxruntime", small_onnx, given, outputs, 1).run()[bert_onnx.OUTPUT]
    found = open_peer("llama.cpp", bert_gguf.encoder_gguf(small_onnx), given, outputs, 1).run()[bert_onnx.OUTPUT]
    # Its attention and activation functions work in half precision.
    np.testing.assert_allclose(found[mask == 1], wanted[mask == 1], atol=2e-2)
    assert not found[mask == 0].any()
