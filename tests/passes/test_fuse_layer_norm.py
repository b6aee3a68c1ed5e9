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
from tvm import relax
from tvm.relax import op

from greencc.passes.fuse_layer_norm import FuseLayerNorm

EPS = 1e-5
GAMMA, BETA = random(8, seed=1), random(8, seed=2)


def power(e, d):
    return e(op.power(d, const(2.0)))


def product(e, d):
    return e(op.multiply(d, d))


def quotient(e, d, shifted):
    return e(op.divide(d, e(op.sqrt(shifted))))


def by_rsqrt(e, d, shifted):
    return e(op.multiply(e(op.rsqrt(shifted)), d))


def by_reciprocal(e, d, shifted):
    return e(op.multiply(d, e(op.divide(const(1.0), e(op.sqrt(shifted))))))


def by_power(e, d, shifted):
    return e(op.divide(d, e(op.power(shifted, const(0.5)))))


def spelled(e, x, square=power, normal=quotient, gamma=GAMMA, beta=BETA, axes=(-1,), keepdims=True, eps=EPS):
    d = e(op.subtract(x, e(op.mean(x, axis=list(axes), keepdims=keepdims))))
    variance = e(op.mean(square(e, d), axis=list(axes), keepdims=keepdims))
    y = normal(e, d, e(op.add(variance, eps if isinstance(eps, relax.Expr) else const(eps))))
    for value, join in ((gamma, op.multiply), (beta, op.add)):
        if value is not None:
            y = e(join(y, value if isinstance(value, relax.Expr) else const(value)))
    return y


@pytest.mark.parametrize("square", [power, product])
@pytest.mark.parametrize("normal", [quotient, by_rsqrt, by_reciprocal, by_power])
def test_every_spelling_becomes_one_operator(square, normal):
    before = graph(lambda e, x: spelled(e, x, square, normal), x=("batch", "seq", 8))
    after = rewritten(FuseLayerNorm(), before)
    assert ops(after) == ["nn.layer_norm"]
    assert_same_values(before, after, random(2, 3, 8), rtol=1e-9, atol=1e-9)


def test_expected_module():
    expected = graph(
        lambda e, x: e(op.nn.layer_norm(x, const(GAMMA), const(BETA), axes=[-1], epsilon=float(np.float32(EPS)))),
        x=("b", 8),
    )
    after = rewritten(FuseLayerNorm(), graph(spelled, x=("b", 8)))
    assert_equal(after, expected)


def gain_first(e, x):
    d = e(op.subtract(x, e(op.mean(x, axis=[-1], keepdims=True))))
    variance = e(op.mean(product(e, d), axis=[-1], keepdims=True))
    scaled = e(op.multiply(const(GAMMA), d))
    return e(op.add(const(BETA), e(op.divide(scaled, e(op.sqrt(e(op.add(const(EPS), variance))))))))


def tensorflow(e, x):
    mean = e(op.mean(x, axis=[-1], keepdims=True))
    d = e(op.subtract(x, mean))
    variance = e(op.mean(product(e, d), axis=[-1], keepdims=True))
    factor = e(op.multiply(e(op.rsqrt(e(op.add(variance, const(EPS))))), const(GAMMA)))
    shift = e(op.subtract(const(BETA), e(op.multiply(mean, factor))))
    return e(op.add(e(op.multiply(x, factor)), shift))


@pytest.mark.parametrize("body", [gain_first, tensorflow])
def test_other_orders(body):
    before = graph(body, x=("b", 8))
    after = rewritten(FuseLayerNorm(), before)
    assert ops(after) == ["nn.layer_norm"]
    assert_same_values(before, after, random(3, 8), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("gamma", "beta"), [(None, None), (GAMMA, None), (GAMMA[None, None], 0.5), (2.0, BETA)])
def test_missing_and_broadcast_gain_and_shift(gamma, beta):
    before = graph(lambda e, x: spelled(e, x, gamma=gamma, beta=beta), x=(2, 3, 8))
    after = rewritten(FuseLayerNorm(), before)
    assert ops(after) == ["nn.layer_norm"]
    assert_same_values(before, after, random(2, 3, 8), rtol=1e-9, atol=1e-9)


def test_gain_from_an_input():
    before = graph(lambda e, x, g: spelled(e, x, gamma=g), x=("b", 8), g=(8,))
    after = rewritten(FuseLayerNorm(), before)
    assert the_call(after, "relax.nn.layer_norm").args[1].name == "g"


def test_residual_after_a_norm_without_shift_stays():
    before = graph(lambda e, x, r: spelled(e, x, beta=r), x=("b", 8), r=("b", 8))
    after = rewritten(FuseLayerNorm(), before)
    assert ops(after) == ["nn.layer_norm", "add"]


def test_values_in_float32():
    before = graph(spelled, x=(4, 8))
    after = rewritten(FuseLayerNorm(), before)
    assert_same_values(before, after, random(4, 8) * 3, rtol=1e-5, atol=1e-5, by_tvm=True)


def test_condition_1_axis():
    for axes in ((0,), (0, 1)):
        before = graph(lambda e, x, axes=axes: spelled(e, x, axes=axes), x=(8, 8))
        assert_refused(FuseLayerNorm(), before, 1, "a mean is not over the last axis alone")


def test_condition_2_kept_axis():
    before = graph(lambda e, x: spelled(e, x, keepdims=False), x=(8, 8))
    assert_refused(FuseLayerNorm(), before, 2, "a mean drops its axis")


def test_condition_3_float32():
    def body(e, x, g, b):
        return spelled(e, x, square=product, gamma=g, beta=b, eps=const(EPS, "float64"))

    reason = "the input is not float32: another precision would round elsewhere"
    assert_refused(
        FuseLayerNorm(),
        graph(body, x=((4, 8), "float64"), g=((8,), "float64"), b=((8,), "float64")),
        3,
        reason,
    )


@pytest.mark.parametrize("where", ["gamma", "beta"])
def test_condition_4_vectors(where):
    rows = random(4, 1)
    before = graph(lambda e, x: spelled(e, x, **{"gamma": GAMMA, where: rows, "normal": quotient}), x=(4, 8))
    # The norm inside is still one, so the refusal shows in the round that fuses it.
    after = rewritten(FuseLayerNorm(), before)
    assert ops(after) == (["nn.layer_norm", "multiply", "add"] if where == "gamma" else ["nn.layer_norm", "add"])
    assert_same_values(before, after, random(4, 8), rtol=1e-9, atol=1e-9)


def test_condition_5_other_users():
    def body(e, x):
        d = e(op.subtract(x, e(op.mean(x, axis=[-1], keepdims=True))))
        variance = e(op.mean(product(e, d), axis=[-1], keepdims=True))
        return quotient(e, d, e(op.add(variance, const(EPS)))), d

    reason = "a value inside the form is used elsewhere"
    assert_refused(FuseLayerNorm(), graph(body, x=(4, 8)), 5, reason)


def test_condition_6_shape():
    before = graph(lambda e, x: spelled(e, x, eps=const([[[EPS]]])), x=(4, 8))
    assert_refused(FuseLayerNorm(), before, 6, "the form broadcasts its input to another shape")


def test_near_misses():
    def wrong_power(e, d):
        return e(op.power(d, const(3.0)))

    def other_centre(e, x):
        d = e(op.subtract(x, e(op.mean(x, axis=[-1], keepdims=True))))
        variance = e(op.mean(product(e, x), axis=[-1], keepdims=True))
        return quotient(e, d, e(op.add(variance, const(EPS))))

    assert_unmatched(FuseLayerNorm(), graph(lambda e, x: spelled(e, x, square=wrong_power), x=(4, 8)))
    assert_unmatched(FuseLayerNorm(), graph(other_centre, x=(4, 8)))
