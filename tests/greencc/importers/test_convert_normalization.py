from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import Case, check, refusal


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X2 = "(float[N,4,H,W] x) => (float y)"
STATISTICS = {"s": weights(4), "b": weights(5)[:4], "m": weights(6)[:4], "v": np.abs(weights(7)[:4])}
CASES = [
    Case("batch", X2 + "{ y = BatchNormalization<epsilon=0.01>(x, s, b, m, v) }", STATISTICS),
    Case("batch of rank 2", "(float[N,4] x) => (float y) { y = BatchNormalization(x, s, b, m, v) }", STATISTICS),
    Case("batch of rank 3", "(float[N,4,S] x) => (float y) { y = BatchNormalization(x, s, b, m, v) }", STATISTICS),
    Case("instance", X2 + "{ y = InstanceNormalization(x, s, b) }", STATISTICS),
    Case("instance 1-D", "(float[N,4,9] x) => (float y) { y = InstanceNormalization<epsilon=0.1>(x, s, b) }", STATISTICS),
    Case("instance far from 0", "(float[1,4,50] x) => (float y) { y = InstanceNormalization(x, s, b) }", STATISTICS,
         {"x": 1000 + weights(1, 4, 50)}, atol=2e-3),
    Case("layer", "(float[N,S,8] x) => (float y) { y = LayerNormalization(x, s, b) }", {"s": weights(8), "b": weights(8)}),
    Case("layer without bias", "(float[N,S,8] x) => (float y) { y = LayerNormalization<epsilon=0.1>(x, s) }", {"s": weights(8)}),
    Case("layer over two axes", "(float[N,3,4] x) => (float y) { y = LayerNormalization<axis=1>(x, s, b) }",
         {"s": weights(3, 4), "b": weights(3, 4)}),
    Case("layer, broadcast scale", "(float[N,3,4] x) => (float y) { y = LayerNormalization<axis=1>(x, s, b) }",
         {"s": weights(4), "b": weights(3, 1)},
         expected=None),
    Case("layer with statistics", "(float[N,S,8] x) => (float y, float m, float i) { y, m, i = LayerNormalization(x, s, b) }",
         {"s": weights(8), "b": weights(8)}),
    Case("layer far from 0", "(float[1,3,64] x) => (float y) { y = LayerNormalization(x, s, b) }",
         {"s": weights(64), "b": weights(64)}, {"x": 100 + weights(1, 3, 64)}, atol=2e-3),
    Case("local response", X2 + "{ y = LRN<size=3, alpha=0.1, bias=2.0>(x) }"),
    Case("local response, even", "(float[1,4] x) => (float y) { y = LRN<size=2, alpha=2.0, beta=1.0>(x) }",
         feeds={"x": np.array([[1, 2, 3, 4]], np.float32)},
         expected=[np.array([[1 / 6, 2 / 14, 3 / 26, 4 / 17]], np.float32)]),
    Case("Lp 2", "(float[N,4,S] x) => (float y) { y = LpNormalization<axis=1>(x) }"),
    Case("Lp 1", "(float[N,4,S] x) => (float y) { y = LpNormalization<p=1>(x) }"),
    Case("mean and variance", X2 + "{ y = MeanVarianceNormalization(x) }"),
]  # fmt: skip
GROUPS = {"s": weights(4), "b": weights(5)[:4]}
MODERN = [
    Case("group", X2 + "{ y = GroupNormalization<num_groups=2>(x, s, b) }", GROUPS),
    Case(
        "group 1-D",
        "(float[N,4,S] x) => (float y) { y = GroupNormalization<num_groups=4, epsilon=0.1>(x, s, b) }",
        GROUPS,
    ),
]
CONTRIB = [
    Case("skip", "(float[N,S,8] x, float[N,S,8] y0) => (float y, float t)"
         "{ y, , , t = com.microsoft.SkipLayerNormalization(x, y0, s, b, c) }",
         {"s": weights(8), "b": weights(8), "c": weights(8)}),
    Case("skip without beta", "(float[N,S,8] x, float[N,S,8] y0) => (float y) { y = com.microsoft.SkipLayerNormalization(x, y0, s) }",
         {"s": weights(8)}),
    Case("simplified skip", "(float[N,S,8] x, float[N,S,8] y0) => (float y) { y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>(x, y0, s) }",
         {"s": weights(8)}),
    Case("simplified", "(float[N,S,8] x) => (float y) { y = SimplifiedLayerNormalization<axis=-1>(x, s) }", {"s": weights(8)}),
]  # fmt: skip
REFUSED = [
    (Case("training", X2 + "{ y = BatchNormalization<training_mode=1>(x, s, b, m, v) }", STATISTICS), "training mode"),
    (Case("statistics", "(float[N,4] x) => (float y, float n, float w) { y, n, w = BatchNormalization(x, s, b, m, v) }", STATISTICS),
     "gives out statistics"),
    (Case("p", "(float[N,4] x) => (float y) { y = LpNormalization<p=3>(x) }"), "neither 1 nor 2"),
    (Case("size", X2 + "{ y = LRN<size=0>(x) }"), "must be positive"),
]  # fmt: skip
SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")


def test_normalisations_agree_with_onnx_runtime(tmp_path):
    check(CASES, tmp_path, opset=17)


def test_group_normalization_agrees_with_onnx_runtime(tmp_path):
    check(MODERN, tmp_path, opset=21)


def test_contributed_normalisations_agree_with_onnx_runtime(tmp_path):
    check(CONTRIB, tmp_path, opset=17, contrib=True)


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: getattr(value, "name", ""))
def test_what_belongs_to_training_or_is_unknown_is_refused(case, reason, tmp_path):
    assert reason in refusal(case, tmp_path, opset=17)


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_family_agrees_with_onnx_runtime_before_and_after_opset_13(opset, tmp_path):
    cases = [
        Case(f"{op} {axis}", f"(float[N,3,4,S] x) => (float y) {{ y = {op}<axis={axis}>(x) }}")
        for op in SOFTMAX
        for axis in (0, 1, 2, -1)
    ]
    cases += [Case(f"{op}, default axis", f"(float[N,3,S] x) => (float y) {{ y = {op}(x) }}") for op in SOFTMAX]
    ties = np.array([[1, 3, 3], [2, 2, 2]], np.float32)
    cases.append(Case("Hardmax of equals", "(float[2,3] x) => (float y) { y = Hardmax<axis=1>(x) }", feeds={"x": ties}))
    low = np.array([[-np.inf, -np.inf, -np.inf]], np.float32)
    cases.append(Case("Hardmax of -inf", "(float[1,3] x) => (float y) { y = Hardmax<axis=1>(x) }", feeds={"x": low}))
    check(cases, tmp_path, opset=opset)
