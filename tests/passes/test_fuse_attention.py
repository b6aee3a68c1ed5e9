from __future__ import annotations

import math

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
from tvm import relax
from tvm.relax import op

from greencc.ir import shape_of
from greencc.ops import AttentionAttrs, attention
from greencc.passes.fuse_attention import FuseAttention

B, S, H, D = 2, 5, 3, 4
SCALE = 1 / math.sqrt(D)
ROOT = math.sqrt(SCALE)
LOWEST = float(np.finfo(np.float32).min)
LIN = {name: ("batch", "seq", H * D) for name in ("q", "k", "v")}


def arrays(*shapes):
    return [random(*shape, seed=i) for i, shape in enumerate(shapes)]


def qkv():
    return arrays(*[(B, S, H * D)] * 3)


def split(e, x, perm=(0, 2, 1, 3), heads=H):
    b, s, c = shape_of(x.ty)
    return e(op.permute_dims(e(op.reshape(x, relax.ShapeExpr([b, s, heads, int(c) // heads]))), list(perm)))


def merge(e, o, like, perm=(0, 2, 1, 3)):
    b, s, _ = shape_of(like.ty)
    moved = e(op.permute_dims(o, list(perm)))
    columns = math.prod(int(d) for d in shape_of(moved.ty)[2:]) if perm == (0, 2, 1, 3) else H * D
    return e(op.reshape(moved, relax.ShapeExpr([b, s, columns])))


def after_product(e, q, k):
    return e(op.multiply(e(op.matmul(q, k)), const(SCALE)))


def quotient(e, q, k):
    return e(op.divide(e(op.matmul(q, k)), const(math.sqrt(D))))


def on_both(e, q, k):
    return e(op.matmul(e(op.multiply(q, const(ROOT))), e(op.multiply(const([ROOT]), k))))


def on_queries(e, q, k):
    return e(op.matmul(e(op.multiply(q, const(SCALE))), k))


def unscaled(e, q, k):
    return e(op.matmul(q, k))


def attend(e, q, k, v, scores=after_product, mask=None, shares=None, axis=-1):
    """The result [B, H, S, D] of heads-first operands; k is [B, H, D, T]."""
    found = scores(e, q, k)
    if mask is not None:
        found = mask(e, found)
    p = e(op.nn.softmax(found, axis=axis))
    return e(op.matmul(p if shares is None else shares(e, p), v))


def spelled(e, q, k, v, **options):
    o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1)), split(e, v), **options)
    return merge(e, o, q)


def added(m):
    return lambda e, s: e(op.add(s, m))


def kept(m, fill=-math.inf):
    return lambda e, s: e(op.where(m, s, const(fill)))


def dropped(m, fill=-math.inf):
    return lambda e, s: e(op.where(m, const(fill), s))


def no_nan(e, p, zero=0.0):
    return e(op.where(e(op.isnan(p)), const(zero), p))


def check(before, *inputs, rewrites=1, left=("greencc.attention",)):
    after = rewritten(FuseAttention(), before, rewrites)
    assert ops(after) == list(left)
    assert_same_values(before, after, *inputs, rtol=1e-6, atol=1e-6)
    return AttentionAttrs.of(the_call(after, "greencc.attention"))


@pytest.mark.parametrize("scores", [after_product, quotient, on_both, on_queries, unscaled])
def test_every_place_of_the_scale(scores):
    attrs = check(graph(lambda e, q, k, v: spelled(e, q, k, v, scores=scores), **LIN), *qkv())
    assert attrs.scale == pytest.approx(1.0 if scores is unscaled else SCALE, rel=1e-6)
    assert (attrs.heads, attrs.kv_heads, attrs.head_dim, attrs.value_dim) == (H, H, D, D)


def test_expected_module():
    def body(e, q, k, v, m):
        return e(attention(q, k, v, m, AttentionAttrs(H, H, D, D, scale=float(np.float32(SCALE)))))

    shapes = {**LIN, "m": ("batch", 1, 1, "seq")}
    before = graph(lambda e, q, k, v, m: spelled(e, q, k, v, mask=added(m)), **shapes)
    assert_equal(rewritten(FuseAttention(), before), graph(body, **shapes))


@pytest.mark.parametrize("shape", [(S, S), (1, S), (H, S, S), (B, 1, 1, S), (1, 1, S, S), (B, H, S, S)])
def test_added_masks_of_every_rank(shape):
    inputs = {name: (B, S, H * D) for name in ("q", "k", "v")}
    before = graph(lambda e, q, k, v, m: spelled(e, q, k, v, mask=added(m)), **inputs, m=shape)
    left = ["greencc.attention"] if len(shape) == 4 else ["reshape", "greencc.attention"]
    check(before, *qkv(), random(*shape, seed=9), left=left)


@pytest.mark.parametrize(("spelling", "fill"), [(kept, -math.inf), (dropped, -math.inf), (kept, LOWEST)])
def test_boolean_masks(spelling, fill):
    shape = {**LIN, "m": ((1, 1, "seq", "seq"), "bool")}
    before = graph(lambda e, q, k, v, m: spelled(e, q, k, v, mask=spelling(m, fill)), **shape)
    causal = np.tril(np.ones((1, 1, S, S), bool))
    check(before, *qkv(), causal if spelling is kept else ~causal, left=["where", "greencc.attention"])


def test_rows_without_keys_give_zero():
    def body(e, q, k, v, m):
        mask = e(op.where(m, const(0.0), const([-math.inf])))
        return spelled(e, q, k, v, scores=on_both, mask=added(mask), shares=no_nan)

    keep = np.ones((B, 1, S, S), bool)
    keep[1, 0, 2] = False
    before = graph(body, **LIN, m=(("batch", 1, "seq", "seq"), "bool"))
    attrs = check(before, *qkv(), keep, left=["where", "greencc.attention"])
    assert attrs.nan_to_zero


def torch_keys(e, x):
    """[B, S, C] -> [B, H, D, S] by way of [B * H, S, D], as torch's exporters spell it."""
    k = split(e, x)
    b, h, s, d = shape_of(k.ty)
    flat = e(op.reshape(k, relax.ShapeExpr([b * h, s, d])))
    return e(op.reshape(e(op.permute_dims(flat, [0, 2, 1])), relax.ShapeExpr([b, h, d, s])))


def test_keys_transposed_over_flattened_heads():
    def body(e, q, k, v):
        return merge(e, attend(e, split(e, q), torch_keys(e, k), split(e, v), scores=on_both), q)

    check(graph(body, **LIN), *qkv())


def test_fused_projection_becomes_offsets_by_slices_and_splits():
    def by_slice(e, x):
        return [e(op.strided_slice(x, [2], [i * H * D], [(i + 1) * H * D])) for i in range(3)]

    def by_split(e, x):
        parts = e(op.split(x, 3, axis=-1))
        return [e(relax.TupleGetItem(parts, i)) for i in range(3)]

    for pick in (by_slice, by_split):
        before = graph(lambda e, x, pick=pick: spelled(e, *pick(e, x)), x=("batch", "seq", 3 * H * D))
        attrs = check(before, random(B, S, 3 * H * D))
        assert (attrs.q_offset, attrs.k_offset, attrs.v_offset) == (0, H * D, 2 * H * D)


@pytest.mark.parametrize("take", [False, True])
def test_fused_projection_becomes_offsets_by_a_leading_axis(take):
    """Paddle: [B, S, 3, H, D] -> [3, B, H, S, D], then one index each."""

    def body(e, x):
        b, s, _ = shape_of(x.ty)
        five = e(op.permute_dims(e(op.reshape(x, relax.ShapeExpr([b, s, 3, H, D]))), [2, 0, 3, 1, 4]))

        def part(i):
            if take:
                return e(op.take(five, relax.const(i, "int64"), axis=0))
            return e(op.squeeze(e(op.strided_slice(five, [0], [i], [i + 1])), [0]))

        q, k, v = (part(i) for i in range(3))
        o = attend(e, q, e(op.permute_dims(k, [0, 1, 3, 2])), v, scores=on_queries)
        return merge(e, o, x)

    attrs = check(graph(body, x=("batch", "seq", 3 * H * D)), random(B, S, 3 * H * D))
    assert (attrs.q_offset, attrs.k_offset, attrs.v_offset) == (0, H * D, 2 * H * D)


def repeated(e, x, heads, times):
    """Key heads as Llama repeats them: expand a new axis after the heads, flatten."""
    b, s, c = shape_of(x.ty)
    four = split(e, x, heads=heads)
    size = int(c) // heads
    five = e(op.broadcast_to(e(op.expand_dims(four, [2])), relax.ShapeExpr([b, heads, times, s, size])))
    return e(op.reshape(five, relax.ShapeExpr([b, heads * times, s, size])))


def test_grouped_queries():
    def body(e, q, k, v):
        keys = e(op.permute_dims(repeated(e, k, 2, 3), [0, 1, 3, 2]))
        return merge(e, attend(e, split(e, q, heads=6), keys, repeated(e, v, 2, 3)), q)

    before = graph(body, q=("batch", "seq", 24), k=("batch", "seq", 8), v=("batch", "seq", 8))
    attrs = check(before, *arrays((B, S, 24), (B, S, 8), (B, S, 8)))
    assert (attrs.heads, attrs.kv_heads, attrs.head_dim) == (6, 2, 4)


def test_one_key_head_for_all():
    def body(e, q, k, v):
        return merge(e, attend(e, split(e, q), split(e, k, (0, 2, 3, 1), 1), split(e, v, heads=1)), q)

    attrs = check(graph(body, q=(B, S, H * D), k=(B, S, D), v=(B, S, D)), *arrays((B, S, H * D), (B, S, D), (B, S, D)))
    assert attrs.kv_heads == 1


def test_operands_that_are_no_views_are_transposed():
    """Cached keys: [B, H, T, D] comes from elsewhere."""

    def body(e, q, k, v):
        return merge(e, attend(e, split(e, q), e(op.permute_dims(k, [0, 1, 3, 2])), v), q)

    before = graph(body, q=(B, 1, H * D), k=(B, H, "past", D), v=(B, H, "past", D))
    left = ["permute_dims", "reshape", "permute_dims", "reshape", "greencc.attention"]
    check(before, *arrays((B, 1, H * D), (B, H, 7, D), (B, H, 7, D)), left=left)


def test_values_of_another_width_and_batch_and_sequence_of_one():
    shapes = {"q": (1, 1, H * D), "k": (1, 1, H * D), "v": (1, 1, H * 2)}
    attrs = check(graph(spelled, **shapes), *arrays(*shapes.values()))
    assert attrs.value_dim == 2


def test_one_head_without_head_axis():
    def body(e, q, k, v, m):
        o = attend(e, q, e(op.permute_dims(k, [0, 2, 1])), v, mask=added(m))
        b, s, c = shape_of(o.ty)
        return e(op.reshape(o, relax.ShapeExpr([b * s, c])))

    before = graph(body, q=(B, S, D), k=(B, S, D), v=(B, S, D), m=(B, S, S))
    left = ["reshape", "greencc.attention", "reshape"]
    check(before, *arrays((B, S, D), (B, S, D), (B, S, D), (B, S, S)), left=left)


def test_condition_1_float32():
    def body(e, q, k, v):
        return spelled(e, q, k, v, scores=unscaled)

    shapes = {name: ((B, S, H * D), "float16") for name in ("q", "k", "v")}
    assert_refused(FuseAttention(), graph(body, **shapes), 1, "q, k or v is not float32")


def test_condition_2_softmax_axis():
    before = graph(lambda e, q, k, v: spelled(e, q, k, v, axis=2), **LIN)
    assert_refused(FuseAttention(), before, 2, "softmax is not over the last axis")


def test_condition_3_heads_side_by_side():
    def interleaved(e, x):
        """GPT-NeoX: q, k and v of one head lie together, [B, S, H, 3, D]."""
        b, s, _ = shape_of(x.ty)
        five = e(op.reshape(x, relax.ShapeExpr([b, s, H, 3, D])))
        parts = [e(op.squeeze(e(op.strided_slice(five, [3], [i], [i + 1])), [3])) for i in range(3)]
        q, v = (e(op.permute_dims(parts[i], [0, 2, 1, 3])) for i in (0, 2))
        return merge(e, attend(e, q, e(op.permute_dims(parts[1], [0, 2, 3, 1])), v), x)

    reason = "heads do not lie side by side in an operand"
    assert_refused(FuseAttention(), graph(interleaved, x=("batch", "seq", 3 * H * D)), 3, reason)


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_condition_4_batch(which):
    shapes = {name: (1 if name == which else B, S, H * D) for name in ("q", "k", "v")}

    def body(e, q, k, v):
        o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1)), split(e, v))
        return e(op.reshape(e(op.permute_dims(o, [0, 2, 1, 3])), (B, S, H * D)))

    assert_refused(FuseAttention(), graph(body, **shapes), 4, "q, k and v differ in batch size")


@pytest.mark.parametrize(("keys", "values"), [(("t", H), ("u", H)), ((S, H), (S, 1))])
def test_condition_5_values_fit_keys(keys, values):
    def body(e, q, k, v):
        o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1), keys[1]), split(e, v, heads=values[1]))
        return merge(e, o, q)

    before = graph(body, q=(B, S, H * D), k=(B, keys[0], keys[1] * D), v=(B, values[0], values[1] * D))
    assert_refused(FuseAttention(), before, 5, "keys and values differ in length or heads")


def test_condition_6_heads_shared_out():
    def body(e, q, k, v):
        o = attend(e, split(e, q, heads=1), split(e, k, (0, 2, 3, 1)), split(e, v))
        return e(op.reshape(e(op.permute_dims(o, [0, 2, 1, 3])), (B, S, H * D)))

    before = graph(body, q=(B, S, D), k=(B, S, H * D), v=(B, S, H * D))
    assert_refused(FuseAttention(), before, 6, "the query heads are not shared out among the key heads")


def test_condition_7_scale():
    def infinite(e, q, k):
        return e(op.multiply(e(op.matmul(q, k)), const(math.inf)))

    def scaled_values(e, q, k, v):
        o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1)), e(op.multiply(split(e, v), const(2.0))))
        return merge(e, o, q)

    reason = "the scale is not finite, or lies on the values"
    assert_refused(FuseAttention(), graph(lambda e, q, k, v: spelled(e, q, k, v, scores=infinite), **LIN), 7, reason)
    assert_refused(FuseAttention(), graph(scaled_values, **LIN), 7, reason)


def test_condition_8_mask_fits():
    def body(e, q, k, v, m):
        o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1)), split(e, v), mask=added(m))
        return e(op.reshape(e(op.permute_dims(o, [0, 2, 1, 3])), (B, S, H * D)))

    before = graph(body, q=(B, 1, H * D), k=(B, S, H * D), v=(B, S, H * D), m=(B, 1, S, S))
    assert_refused(FuseAttention(), before, 8, "the mask broadcasts the scores")


def flattened_heads(e, q, k, v, m):
    def flat(x):
        return e(op.reshape(x, relax.ShapeExpr([B * H, *shape_of(x.ty)[2:]])))

    o = attend(e, flat(split(e, q)), flat(split(e, k, (0, 2, 3, 1))), flat(split(e, v)), mask=added(m))
    return merge(e, e(op.reshape(o, (B, H, S, D))), q)


def test_condition_9_mask_axes():
    shapes = {name: (B, S, H * D) for name in ("q", "k", "v")}
    reason = "the mask is not over [batch, heads, queries, keys]"
    assert_refused(FuseAttention(), graph(flattened_heads, **shapes, m=(B * H, S, S)), 9, reason)
    check(
        graph(flattened_heads, **shapes, m=(1, S, S)),
        *qkv(),
        random(1, S, S),
        left=["reshape", "greencc.attention"],
    )


@pytest.mark.parametrize("fill", [-10000.0, 0.0, -1e9, math.inf])
def test_condition_10_fill(fill):
    shape = {**LIN, "m": (("batch", 1, 1, "seq"), "bool")}
    before = graph(lambda e, q, k, v, m: spelled(e, q, k, v, mask=kept(m, fill)), **shape)
    assert_refused(FuseAttention(), before, 10, "the fill of masked scores is not -inf or the lowest float")


def test_condition_11_nan():
    before = graph(lambda e, q, k, v: spelled(e, q, k, v, shares=lambda e, p: no_nan(e, p, 1.0)), **LIN)
    assert_refused(FuseAttention(), before, 11, "NaN is not replaced by 0")


def test_condition_12_result():
    def body(e, q, k, v):
        o = attend(e, split(e, q), split(e, k, (0, 2, 3, 1)), split(e, v))
        b, s, c = shape_of(q.ty)
        return e(op.reshape(o, relax.ShapeExpr([b, s, c])))

    reason = "the result does not have its heads side by side"
    assert_refused(FuseAttention(), graph(body, **LIN), 12, reason)


def test_condition_13_other_users():
    def body(e, q, k, v):
        seen = []

        def keep(e, p):
            seen.append(p)
            return p

        return spelled(e, q, k, v, shares=keep), seen[0]

    assert_refused(FuseAttention(), graph(body, **LIN), 13, "scores or probabilities are used elsewhere")


def test_near_misses():
    def squared(e, p):
        return e(op.multiply(p, p))

    def without_softmax(e, q, k, v):
        p = e(op.exp(unscaled(e, split(e, q), split(e, k, (0, 2, 3, 1)))))
        return merge(e, e(op.matmul(p, split(e, v))), q)

    assert_unmatched(FuseAttention(), graph(without_softmax, **LIN))
    assert_unmatched(FuseAttention(), graph(lambda e, q, k, v: spelled(e, q, k, v, shares=squared), **LIN))
