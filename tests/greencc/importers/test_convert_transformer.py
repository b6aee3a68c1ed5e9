from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_cases import Case, check, graph_model, refusal, run

from greencc.importers.onnx import import_onnx


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * np.float32(0.3)


MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32)
PROJECTION = {"w": weights(8, 24), "b": weights(24)}
TABLES = {"word": weights(20, 8), "place": weights(12, 8), "segment": weights(2, 8), "g": weights(8), "e": weights(8)}
MS = "com.microsoft."
CONTRIB = [
    Case("attention", "(float[N,S,8] x) => (float y) { y = " + MS + "Attention<num_heads=2>(x, w, b) }", PROJECTION),
    Case("masked attention", "(float[N,S,8] x, int32[N,S] m) => (float y) { y = " + MS + "Attention<num_heads=4>(x, w, b, m) }",
         PROJECTION, {"m": MASK}),
    Case("attention with a bias of scores", "(float[N,S,8] x, float[N,2,S,S] a) => (float y)"
         "{ y = " + MS + "Attention<num_heads=2, scale=0.2>(x, w, b, , , a) }", PROJECTION),
    Case("separate operands", "(float[N,S,8] q, float[N,T,8] k, float[N,T,8] v) => (float y)"
         "{ y = " + MS + "MultiHeadAttention<num_heads=2>(q, k, v, b) }", {"b": weights(24)}),
    Case("masked separate operands", "(float[N,S,8] q, float[N,S,8] k, float[N,S,8] v, int32[N,S] m) => (float y)"
         "{ y = " + MS + "MultiHeadAttention<num_heads=2>(q, k, v, b, m) }", {"b": weights(24)}, {"m": MASK}),
    Case("embeddings", "(int32[N,S] i, int32[N,S] s, int32[N,S] m) => (float y, int32 l)"
         "{ y, l = " + MS + "EmbedLayerNormalization<epsilon=0.001>(i, s, word, place, segment, g, e, m) }",
         TABLES, {"m": MASK, "s": MASK}),
    Case("embeddings without segments", "(int32[N,S] i) => (float y, int32 l)"
         "{ y, l = " + MS + "EmbedLayerNormalization(i, , word, place, , g, e) }", TABLES),
    Case("gelu", "(float[N,8] x) => (float y) { y = " + MS + "Gelu(x) }"),
    Case("gelu of a sum", "(float[N,8] x) => (float y) { y = " + MS + "BiasGelu(x, b) }", {"b": weights(8)}),
    Case("fast gelu", "(float[N,8] x) => (float y) { y = " + MS + "FastGelu(x) }", atol=1e-4),
    Case("fast gelu of a sum", "(float[N,8] x) => (float y) { y = " + MS + "FastGelu(x, b) }", {"b": weights(8)}, atol=1e-4),
    Case("quick gelu", "(float[N,8] x) => (float y) { y = " + MS + "QuickGelu<alpha=1.5>(x) }"),
    Case("product", "(float[N,3,S] x, float[N,3,4] z) => (float y) { y = " + MS + "FusedMatMul<transA=1, alpha=0.5>(x, z) }"),
    Case("product with constant", "(float[N,8] x) => (float y) { y = " + MS + "FusedMatMul<transB=1>(x, w) }", {"w": weights(3, 8)}),
]  # fmt: skip
ROTARY = [
    Case("heads first", "(float[N,2,S,8] x, float[N,S,4] c, float[N,S,4] s) => (float y) { y = RotaryEmbedding(x, c, s) }"),
    Case("interleaved", "(float[N,2,S,8] x, float[N,S,4] c, float[N,S,4] s) => (float y) { y = RotaryEmbedding<interleaved=1>(x, c, s) }"),
    Case("part of a head", "(float[N,2,S,8] x, float[N,S,2] c, float[N,S,2] s) => (float y)"
         "{ y = RotaryEmbedding<rotary_embedding_dim=4>(x, c, s) }"),
    Case("side by side, positions", "(float[N,S,16] x, int64[N,S] p) => (float y) { y = RotaryEmbedding<num_heads=2>(x, c, s, p) }",
         {"c": weights(9, 4), "s": weights(9, 4)}),
]  # fmt: skip
REFUSED = [
    (Case("past", "(float[N,S,8] x, float[2,N,2,4,4] p) => (float y) { y = " + MS + "Attention<num_heads=2>(x, w, b, , p) }", PROJECTION),
     "past keys"),
    (Case("causal", "(float[N,S,8] x) => (float y) { y = " + MS + "Attention<num_heads=2, unidirectional=1>(x, w, b) }", PROJECTION),
     "unidirectional"),
    (Case("lengths", "(float[N,S,8] x, int32[N] m) => (float y) { y = " + MS + "Attention<num_heads=2>(x, w, b, m) }", PROJECTION),
     "mask of rank 1"),
    (Case("heads", "(float[N,S,8] x) => (float y) { y = " + MS + "Attention<num_heads=3>(x, w, b) }", PROJECTION), "3 heads"),
]  # fmt: skip


def test_contributed_operators_agree_with_onnx_runtime(tmp_path):
    check(CONTRIB, tmp_path, opset=17, contrib=True)


def test_rotary_embedding_agrees_with_onnx_runtime(tmp_path):
    check(ROTARY, tmp_path, opset=23)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_is_not_converted_exactly_is_refused(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=17, contrib=True)


def test_a_token_outside_of_the_table_reads_nothing_else(tmp_path):
    case = Case("embeddings", "(int32[N,S] i) => (float y, int32 l)"
                "{ y, l = " + MS + "EmbedLayerNormalization(i, , word, place, , g, e) }", TABLES)  # fmt: skip
    onnx.save(graph_model(case.graph(), 17, True), tmp_path / "m.onnx")
    module = import_onnx(tmp_path / "m.onnx").module
    inside, outside = (run(module, [np.array([ids], np.int32)])[0] for ids in ([0, 19], [-(10**6), 10**6]))
    np.testing.assert_array_equal(inside, outside)
