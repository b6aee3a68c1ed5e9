from __future__ import annotations

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
)
from tvm.relax import op

from greencc.passes.fuse_silu import FuseSilu


def product(e, x):
    return e(op.multiply(x, e(op.sigmoid(x))))


def paddle(e, x, beta=1.0):
    return e(op.multiply(x, e(op.sigmoid(e(op.multiply(x, const(beta)))))))


def quotient(e, x):
    return e(op.divide(x, e(op.add(e(op.exp(e(op.negative(x)))), const(1.0)))))


@pytest.mark.parametrize("body", [product, paddle, quotient])
def test_every_spelling_becomes_one_operator(body):
    before = graph(body, x=("batch", 8))
    after = rewritten(FuseSilu(), before)
    assert_equal(after, graph(lambda e, x: e(op.nn.silu(x)), x=("batch", 8)))
    assert_same_values(before, after, random(4, 8), rtol=1e-9, atol=1e-9)


def test_swiglu_keeps_its_product():
    before = graph(lambda e, x, up: e(op.multiply(product(e, x), up)), x=(4, 8), up=(4, 8))
    after = rewritten(FuseSilu(), before)
    assert ops(after) == ["nn.silu", "multiply"]
    assert_same_values(before, after, random(4, 8), random(4, 8, seed=1), rtol=1e-5, atol=1e-6, by_tvm=True)


def test_condition_1_float32():
    reason = "the input is not float32: another precision would round elsewhere"
    assert_refused(FuseSilu(), graph(product, x=((4, 8), "float16")), 1, reason)


def test_condition_2_other_users():
    def body(e, x):
        gate = e(op.sigmoid(x))
        return e(op.multiply(x, gate)), gate

    assert_refused(FuseSilu(), graph(body, x=(4, 8)), 2, "a value inside the form is used elsewhere")


def test_condition_3_shape():
    before = graph(lambda e, x: paddle(e, x, beta=[[[1.0]]]), x=(4, 8))
    assert_refused(FuseSilu(), before, 3, "the form broadcasts its input to another shape")


def test_near_misses():
    def gate_of_another(e, x, y):
        return e(op.multiply(x, e(op.sigmoid(y))))

    assert_unmatched(FuseSilu(), graph(gate_of_another, x=(4, 8), y=(4, 8)))
    assert_unmatched(FuseSilu(), graph(lambda e, x: paddle(e, x, beta=1.702), x=(4, 8)))
