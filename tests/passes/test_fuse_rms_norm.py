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

from greencc.passes.fuse_rms_norm import FuseRmsNorm

EPS = 1e-6
GAMMA = random(8, seed=1)


def mean_square(e, x, axes=(-1,), keepdims=True, product=False):
    square = op.multiply(x, x) if product else op.power(x, const(2.0))
    return e(op.mean(e(square), axis=list(axes), keepdims=keepdims))


def dynamo(e, x, gamma=GAMMA, **options):
    """y = gamma * (x * (1 / sqrt(..)))."""
    root = e(op.sqrt(e(op.add(mean_square(e, x, **options), const(EPS)))))
    normal = e(op.multiply(x, e(op.divide(const(1.0), root))))
    return normal if gamma is None else e(op.multiply(const(gamma), normal))


def quotient(e, x):
    root = e(op.sqrt(e(op.add(const(EPS), mean_square(e, x, product=True)))))
    return e(op.multiply(e(op.divide(x, root)), const(GAMMA)))


def gain_first(e, x):
    inverse = e(op.rsqrt(e(op.add(mean_square(e, x), const(EPS)))))
    return e(op.multiply(e(op.multiply(x, const(GAMMA))), inverse))


def gain_on_inverse(e, x):
    inverse = e(op.rsqrt(e(op.add(mean_square(e, x), const(EPS)))))
    return e(op.multiply(e(op.multiply(inverse, const(GAMMA))), x))


@pytest.mark.parametrize("body", [dynamo, quotient, gain_first, gain_on_inverse])
def test_every_spelling_becomes_one_operator(body):
    before = graph(body, x=("batch", "seq", 8))
    after = rewritten(FuseRmsNorm(), before)
    assert ops(after) == ["nn.rms_norm"]
    assert_same_values(before, after, random(2, 3, 8), rtol=1e-9, atol=1e-9)


def test_expected_module():
    import numpy as np

    after = rewritten(FuseRmsNorm(), graph(dynamo, x=("b", 8)))
    epsilon = float(np.float32(EPS))
    assert_equal(after, graph(lambda e, x: e(op.nn.rms_norm(x, const(GAMMA), axes=[-1], epsilon=epsilon)), x=("b", 8)))


def test_no_gain():
    before = graph(lambda e, x: dynamo(e, x, gamma=None), x=(3, 8))
    after = rewritten(FuseRmsNorm(), before)
    assert ops(after) == ["nn.rms_norm"]
    assert_same_values(before, after, random(3, 8), rtol=1e-9, atol=1e-9)


def test_values_in_float32():
    before = graph(dynamo, x=(4, 8))
    after = rewritten(FuseRmsNorm(), before)
    assert_same_values(before, after, random(4, 8), rtol=1e-5, atol=1e-5, by_tvm=True)


def test_condition_1_axis():
    before = graph(lambda e, x: dynamo(e, x, axes=(0,)), x=(8, 8))
    assert_refused(FuseRmsNorm(), before, 1, "the mean is not over the last axis alone")


def test_condition_2_kept_axis():
    before = graph(lambda e, x: dynamo(e, x, keepdims=False), x=(8, 8))
    assert_refused(FuseRmsNorm(), before, 2, "the mean drops its axis")


def test_condition_3_float32():
    def body(e, x, g):
        mean = mean_square(e, x, product=True)
        normal = e(op.multiply(x, e(op.rsqrt(e(op.add(mean, const(EPS, "float64")))))))
        return e(op.multiply(normal, g))

    reason = "the input is not float32: another precision would round elsewhere"
    assert_refused(FuseRmsNorm(), graph(body, x=((4, 8), "float64"), g=((8,), "float64")), 3, reason)


def test_condition_4_vector():
    # The norm inside is still one, with ones for its gain; the product with one gain per row stays.
    before = graph(lambda e, x: dynamo(e, x, gamma=random(4, 1)), x=(4, 8))
    after = rewritten(FuseRmsNorm(), before)
    assert ops(after) == ["nn.rms_norm", "multiply"]
    assert_same_values(before, after, random(4, 8), rtol=1e-9, atol=1e-9)


def test_condition_5_other_users():
    def body(e, x):
        inverse = e(op.rsqrt(e(op.add(mean_square(e, x), const(EPS)))))
        return e(op.multiply(x, inverse)), inverse

    assert_refused(FuseRmsNorm(), graph(body, x=(4, 8)), 5, "a value inside the form is used elsewhere")


def test_condition_6_shape():
    def body(e, x):
        return e(op.multiply(x, e(op.rsqrt(e(op.add(mean_square(e, x), const([[[EPS]]])))))))

    reason = "the form broadcasts its input to another shape"
    assert_refused(FuseRmsNorm(), graph(body, x=(4, 8)), 6, reason)


def test_near_misses():
    def other_value(e, x, y):
        return e(op.multiply(y, e(op.rsqrt(e(op.add(mean_square(e, x), const(EPS)))))))

    def cube(e, x):
        mean = e(op.mean(e(op.power(x, const(3.0))), axis=[-1], keepdims=True))
        return e(op.multiply(x, e(op.rsqrt(e(op.add(mean, const(EPS)))))))

    assert_unmatched(FuseRmsNorm(), graph(other_value, x=(4, 8), y=(4, 8)))
    assert_unmatched(FuseRmsNorm(), graph(cube, x=(4, 8)))
