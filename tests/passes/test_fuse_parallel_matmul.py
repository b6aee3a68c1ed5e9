from __future__ import annotations

import numpy as np
import pytest
from builders import (
    assert_equal,
    assert_refused,
    assert_same_values,
    assert_unmatched,
    const,
    graph,
    ops,
    random,
    rewritten,
    the_call,
)
from tvm.relax import op

from greencc.ops import AttentionAttrs, attention
from greencc.passes.fuse_parallel_matmul import FuseParallelMatmul

K, H, D = 6, 2, 4
C = H * D
W = {name: random(K, C, seed=i) for i, name in enumerate("qkv")}
BIAS = {name: random(C, seed=10 + i) for i, name in enumerate("qkv")}
X = ("batch", "seq", K)
ATTRS = AttentionAttrs(H, H, D, D, scale=0.5)


def linear(e, x, weight, bias=None):
    product = e(op.matmul(x, weight if not isinstance(weight, np.ndarray) else const(weight)))
    return product if bias is None else e(op.add(product, const(bias) if isinstance(bias, np.ndarray) else bias))


def spelled(e, x, biases=BIAS, mask=None, attrs=ATTRS, weights=W):
    q, k, v = (linear(e, x, weights[n], biases.get(n)) for n in "qkv")
    return e(attention(q, k, v, mask, attrs))


def test_three_projections_become_one():
    before = graph(lambda e, x, m: spelled(e, x, mask=m), x=X, m=("batch", 1, 1, "seq"))
    after = rewritten(FuseParallelMatmul(), before)
    assert ops(after) == ["matmul", "add", "greencc.attention"]
    attrs = AttentionAttrs.of(the_call(after, "greencc.attention"))
    assert (attrs.q_offset, attrs.k_offset, attrs.v_offset) == (0, C, 2 * C)
    assert_same_values(before, after, random(2, 3, K), random(2, 1, 1, 3), rtol=1e-9, atol=1e-9)


def test_expected_module():
    def body(e, x):
        weight, bias = (np.concatenate(list(part.values()), axis=-1) for part in (W, BIAS))
        m = linear(e, x, weight, bias)
        return e(attention(m, m, m, None, AttentionAttrs(H, H, D, D, 0, C, 2 * C, 0.5)))

    assert_equal(rewritten(FuseParallelMatmul(), graph(spelled, x=X)), graph(body, x=X))


@pytest.mark.parametrize("present", ["", "q", "qv"])
def test_missing_biases(present):
    before = graph(lambda e, x: spelled(e, x, biases={n: BIAS[n] for n in present}), x=X)
    after = rewritten(FuseParallelMatmul(), before)
    assert ops(after) == ["matmul", *(["add"] if present else []), "greencc.attention"]
    assert_same_values(before, after, random(2, 3, K), rtol=1e-9, atol=1e-9)


def test_broadcast_biases():
    biases = {"q": BIAS["q"][None, None], "k": np.array([0.5], "float32")}
    before = graph(lambda e, x: spelled(e, x, biases=biases), x=X)
    assert_same_values(before, rewritten(FuseParallelMatmul(), before), random(2, 3, K), rtol=1e-9, atol=1e-9)


def test_offsets_add_up():
    attrs = AttentionAttrs(1, 1, D, D, q_offset=D, k_offset=0, v_offset=D)
    before = graph(lambda e, x: spelled(e, x, attrs=attrs), x=X)
    after = rewritten(FuseParallelMatmul(), before)
    assert AttentionAttrs.of(the_call(after, "greencc.attention")).v_offset == 2 * C + D
    assert_same_values(before, after, random(2, 3, K), rtol=1e-9, atol=1e-9)


def test_grouped_queries_have_narrower_keys():
    weights = {"q": W["q"], "k": W["k"][:, :D].copy(), "v": W["v"][:, :D].copy()}
    attrs = AttentionAttrs(H, 1, D, D)
    before = graph(lambda e, x: spelled(e, x, biases={}, attrs=attrs, weights=weights), x=X)
    after = rewritten(FuseParallelMatmul(), before)
    found = AttentionAttrs.of(the_call(after, "greencc.attention"))
    assert (found.q_offset, found.k_offset, found.v_offset) == (0, C, C + D)
    assert_same_values(before, after, random(2, 3, K), rtol=1e-9, atol=1e-9)


def test_cross_attention_merges_keys_and_values():
    def body(e, x, z):
        q, k, v = (linear(e, z if n == "q" else x, W[n], BIAS[n]) for n in "qkv")
        return e(attention(q, k, v, None, ATTRS))

    before = graph(body, x=X, z=("batch", "target", K))
    after = rewritten(FuseParallelMatmul(), before)
    assert ops(after) == ["matmul", "add", "matmul", "add", "greencc.attention"]
    assert_same_values(before, after, random(2, 3, K), random(2, 5, K), rtol=1e-9, atol=1e-9)


def test_shared_keys_and_values():
    def body(e, x):
        q, k = (linear(e, x, W[n], BIAS[n]) for n in "qk")
        return e(attention(q, k, k, None, ATTRS))

    before = graph(body, x=X)
    after = rewritten(FuseParallelMatmul(), before)
    assert ops(after) == ["matmul", "add", "greencc.attention"]
    assert_same_values(before, after, random(2, 3, K), rtol=1e-9, atol=1e-9)


def test_condition_1_constant_matrices():
    reason = "a weight is not a constant matrix"
    trained = graph(lambda e, x, w: spelled(e, x, weights={**W, "k": w}), x=X, w=(K, C))
    assert_refused(FuseParallelMatmul(), trained, 1, reason)
    stacked = graph(lambda e, x: spelled(e, x, weights={**W, "k": W["k"][None]}), x=X)
    assert_refused(FuseParallelMatmul(), stacked, 1, reason)


@pytest.mark.parametrize("shape", [(C,), (2, 3, C), (3, 1)])
def test_condition_2_constant_vectors(shape):
    if shape == (C,):
        before = graph(lambda e, x, b: spelled(e, x, biases={**BIAS, "v": b}), x=(2, 3, K), b=shape)
    else:
        before = graph(lambda e, x: spelled(e, x, biases={**BIAS, "v": random(*shape)}), x=(2, 3, K))
    assert_refused(FuseParallelMatmul(), before, 2, "a bias is not a constant vector")


def test_condition_3_float32():
    def body(e, x):
        q, k, v = (e(op.matmul(x, const(W[n], "float16"), out_dtype="float32")) for n in "qkv")
        return e(attention(q, k, v, None, ATTRS))

    assert_refused(FuseParallelMatmul(), graph(body, x=(X, "float16")), 3, "x is not float32")


def test_condition_4_other_users():
    def body(e, x):
        q, k, v = (linear(e, x, W[n], BIAS[n]) for n in "qkv")
        return e(attention(q, k, v, None, ATTRS)), k

    assert_refused(FuseParallelMatmul(), graph(body, x=X), 4, "a projection is used elsewhere")


def test_near_misses():
    def without_attention(e, x):
        return [linear(e, x, W[n], BIAS[n]) for n in "qkv"]

    def of_three_values(e, x, y, z):
        return e(attention(*(linear(e, i, W[n]) for i, n in zip((x, y, z), "qkv", strict=True)), None, ATTRS))

    assert_unmatched(FuseParallelMatmul(), graph(without_attention, x=X))
    assert_unmatched(FuseParallelMatmul(), graph(of_three_values, x=X, y=X, z=X))
