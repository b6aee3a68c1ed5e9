from __future__ import annotations

import math

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
    run,
)
from tvm.relax import op

from greencc.passes.fuse_gelu import FuseGelu

ROOT_TWO = 1.4142135381698608  # what torch's exporters write for the square root of two
SLOPE = 0.7978845608


def by_quotient(e, x, root=ROOT_TWO):
    return e(op.erf(e(op.divide(x, const(root)))))


def by_product(e, x):
    return e(op.erf(e(op.multiply(const(0.70710678), x))))


def cubic(e, x):
    cube = e(op.multiply(const(0.044715), e(op.power(x, const(3.0)))))
    return e(op.tanh(e(op.multiply(const(SLOPE), e(op.add(x, cube))))))


def products(e, x):
    cube = e(op.multiply(e(op.multiply(x, x)), x))
    return e(op.tanh(e(op.multiply(e(op.add(x, e(op.multiply(cube, const(0.044715))))), const(SLOPE)))))


def factored(e, x):
    bend = e(op.add(const(1.0), e(op.multiply(e(op.multiply(const(0.044715), x)), x))))
    return e(op.tanh(e(op.multiply(e(op.multiply(const(SLOPE), x)), bend))))


def half_first(e, x, gate):
    return e(op.multiply(e(op.multiply(const(0.5), x)), gate))


def half_last(e, x, gate):
    return e(op.multiply(e(op.multiply(x, gate)), const(0.5)))


def half_of_gate(e, x, gate):
    return e(op.multiply(x, e(op.multiply(const(0.5), gate))))


def over_two(e, x, gate):
    return e(op.divide(e(op.multiply(gate, x)), const(2.0)))


def spelled(e, x, inner=by_quotient, outer=half_last, one=1.0):
    return outer(e, x, e(op.add(inner(e, x), const(one))))


@pytest.mark.parametrize("outer", [half_first, half_last, half_of_gate, over_two])
@pytest.mark.parametrize("inner", [by_quotient, by_product, cubic, products, factored])
def test_every_spelling_becomes_one_operator(inner, outer):
    before = graph(lambda e, x: spelled(e, x, inner, outer), x=("batch", 8))
    after = rewritten(FuseGelu(), before)
    kind = "gelu" if inner in (by_quotient, by_product) else "gelu_tanh"
    assert ops(after) == [f"nn.{kind}"]
    assert run(FuseGelu(), before).counts == {kind: 1}
    assert_same_values(before, after, random(4, 8) * 3, rtol=1e-6, atol=1e-6)


def test_expected_module():
    after = rewritten(FuseGelu(), graph(spelled, x=("b", 8)))
    assert_equal(after, graph(lambda e, x: e(op.nn.gelu(x)), x=("b", 8)))


@pytest.mark.parametrize("inner", [by_quotient, cubic])
def test_values_in_float32(inner):
    before = graph(lambda e, x: spelled(e, x, inner), x=(4, 8))
    after = rewritten(FuseGelu(), before)
    assert_same_values(before, after, random(4, 8) * 3, rtol=1e-5, atol=1e-6, by_tvm=True)


def test_constants_are_right_to_six_digits():
    for off, fuses in ((1 + 3e-7, 1), (1 + 3e-6, 0)):
        before = graph(lambda e, x, off=off: spelled(e, x, lambda e, x: by_quotient(e, x, math.sqrt(2) * off)), x=(8,))
        assert run(FuseGelu(), before).rewrites == fuses


def test_condition_1_float32():
    def body(e, x):
        def f64(value):
            return const(value, "float64")

        gate = e(op.add(e(op.erf(e(op.divide(x, f64(math.sqrt(2)))))), f64(1.0)))
        return e(op.multiply(e(op.multiply(x, gate)), f64(0.5)))

    reason = "the input is not float32: another precision would round elsewhere"
    assert_refused(FuseGelu(), graph(body, x=((4, 8), "float64")), 1, reason)


def test_condition_2_other_users():
    def body(e, x):
        gate = e(op.add(by_quotient(e, x), const(1.0)))
        return half_last(e, x, gate), gate

    assert_refused(FuseGelu(), graph(body, x=(4, 8)), 2, "a value inside the form is used elsewhere")


def test_condition_3_shape():
    before = graph(lambda e, x: spelled(e, x, one=[[[1.0]]]), x=(4, 8))
    assert_refused(FuseGelu(), before, 3, "the form broadcasts its input to another shape")


def test_near_misses():
    def other_value(e, x, y):
        return half_last(e, y, e(op.add(by_quotient(e, x), const(1.0))))

    assert_unmatched(FuseGelu(), graph(other_value, x=(4, 8), y=(4, 8)))
    assert_unmatched(FuseGelu(), graph(lambda e, x: spelled(e, x, one=-1.0), x=(4, 8)))
    assert_unmatched(FuseGelu(), graph(lambda e, x: spelled(e, x, lambda e, x: e(op.erf(x))), x=(4, 8)))
    assert_unmatched(FuseGelu(), graph(lambda e, x: spelled(e, x, lambda e, x: e(op.tanh(x))), x=(4, 8)))
