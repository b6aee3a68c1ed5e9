from __future__ import annotations

import numpy as np
import pytest
import reference
from builders import const, graph, random, the_call
from tvm.relax import op

from greencc.ir import constant_array
from greencc.ops import ATTENTION, AttentionAttrs, attention
from greencc.passes.base import PassContext
from greencc.passes.prune_heads import PruneHeads

PASS = PruneHeads(0.5)
HEADS, SIZE, VALUE, TOKENS = 4, 3, 2, 5
WIDE = HEADS * (2 * SIZE + VALUE)
PROJECTION, OUT = random(8, WIDE), random(HEADS * VALUE, 6, seed=2)
ATTRS = AttentionAttrs(HEADS, HEADS, SIZE, VALUE, 0, HEADS * SIZE, 2 * HEADS * SIZE, 0.5)
CLOSED = "a value in between is used elsewhere"


def layer(out=OUT, projection=PROJECTION, attrs=ATTRS, mask=None, kind="float32", also=None):
    """Attention over a merged projection with a bias, and the product behind it."""

    def body(e, x, *masks):
        merged = e(op.add(e(op.matmul(x, const(projection, kind))), const(random(WIDE), kind)))
        mixed = e(attention(merged, merged, merged, masks[0] if masks else None, attrs))
        result = e(op.matmul(mixed, const(out, kind)))
        return (result, e(op.exp({"attention": mixed, "projection": merged}[also]))) if also else result

    masks = {} if mask is None else {"mask": mask}
    return graph(body, x=((2, TOKENS, 8), kind), **masks)


class Seen:
    """Activations with given mean squares."""

    def __init__(self, squares):
        self.squares = np.asarray(squares, np.float64)

    def mean_squares(self, module, values):
        return [self.squares for _ in values]


def refused(module, condition, reason, chosen=PASS, context=None):
    result = chosen.run(module, context or PassContext())
    assert result.rewrites == 0
    assert [(r.condition, r.reason) for r in result.refusals] == [(condition, reason)]


def without(dropped, out=OUT):
    """The weight behind attention whose rows of some heads are zero: what removing the heads must compute."""
    zeroed = out.copy()
    for head in dropped:
        zeroed[head * VALUE : (head + 1) * VALUE] = 0
    return zeroed


@pytest.mark.parametrize("mask", [None, (2, 1, 1, TOKENS), (1, 1, TOKENS, TOKENS)])
def test_the_heads_that_stay_compute_what_they_did(mask):
    squares = np.repeat([1e-6, 10, 1e-5, 10], VALUE)
    result = PASS.run(layer(mask=mask), PassContext(activations=Seen(squares)))
    assert result.rewrites == 1
    attrs = AttentionAttrs.of(the_call(result.module, ATTENTION))
    assert (attrs.heads, attrs.kv_heads) == (2, 2)
    assert (attrs.q_offset, attrs.k_offset, attrs.v_offset) == (0, 2 * SIZE, 4 * SIZE)
    inputs = [random(2, TOKENS, 8), *(() if mask is None else [random(*mask)])]
    wanted = reference.evaluate(layer(without([0, 2]), mask=mask), *inputs)[0]
    np.testing.assert_allclose(reference.evaluate(result.module, *inputs)[0], wanted, rtol=1e-6, atol=1e-6)


def test_without_data_weights_decide():
    out = OUT.copy()
    out[: 2 * VALUE] *= 1e-3
    result = PASS.run(layer(out), PassContext())
    weights = [constant_array(c.args[1]) for c in products(result.module)]
    np.testing.assert_array_equal(weights[1], out[2 * VALUE :])
    assert weights[0].shape == (8, WIDE // 2)


def products(module):
    from greencc.ir import bindings_of, is_call

    return [b.value for b in bindings_of(module["main"]) if is_call(b.value, "relax.matmul")]


def test_projections_of_their_own_are_narrowed_each():
    sizes = (HEADS * SIZE, HEADS * SIZE, HEADS * VALUE)
    own = AttentionAttrs(HEADS, HEADS, SIZE, VALUE, scale=0.5)
    weights = [random(8, size, seed=i) for i, size in enumerate(sizes)]

    def module(out):
        def body(e, x):
            parts = [e(op.matmul(x, const(weight))) for weight in weights]
            return e(op.matmul(e(attention(*parts, None, own)), const(out)))

        return graph(body, x=(2, TOKENS, 8))

    result = PASS.run(module(OUT), PassContext(activations=Seen(np.repeat([5, 1e-6, 1e-6, 5], VALUE))))
    shapes = [constant_array(call.args[1]).shape for call in products(result.module)]
    assert shapes == [(8, 6), (8, 6), (8, 4), (4, 6)]
    x = random(2, TOKENS, 8)
    wanted = reference.evaluate(module(without([1, 2])), x)[0]
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], wanted, rtol=1e-6, atol=1e-6)


def test_condition_1_float32():
    refused(layer(kind="float64"), 1, "an operand or the result is not float32")


def test_condition_2_heads_of_their_own():
    grouped = AttentionAttrs(HEADS, 2, SIZE, VALUE, 0, HEADS * SIZE, 2 * HEADS * SIZE, 0.5)
    refused(layer(attrs=grouped), 2, "heads share keys and values")


def test_condition_3_projections():
    def body(e, x):
        return e(op.matmul(e(attention(x, x, x, None, ATTRS)), const(OUT)))

    reason = "query, key or value does not come out of products by constants, elementwise"
    refused(graph(body, x=(2, TOKENS, WIDE)), 3, reason)


@pytest.mark.parametrize("also", ["attention", "projection"])
def test_condition_4_nothing_else_reads(also):
    refused(layer(also=also), 4, CLOSED)


def test_condition_5_one_mask():
    refused(layer(mask=(2, HEADS, TOKENS, TOKENS)), 5, "heads have masks of their own")


@pytest.mark.parametrize("place", ["projection", "out", "seen"])
def test_condition_6_finite(place):
    arrays = {"projection": PROJECTION.copy(), "out": OUT.copy(), "seen": np.ones(HEADS * VALUE)}
    arrays[place].flat[3] = np.inf
    context = PassContext(activations=Seen(arrays["seen"]))
    with np.errstate(invalid="ignore"):
        module = layer(arrays["out"], arrays["projection"])
        refused(module, 6, "a weight or an activation is not finite", context=context)


def test_condition_7_something_goes():
    refused(layer(), 7, "no head would go", PruneHeads(0.1))
    result = PruneHeads(0.99).run(layer(), PassContext())
    assert AttentionAttrs.of(the_call(result.module, ATTENTION)).heads == 1
