from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, rewritten, run, the_call
from tvm.relax import op

from greencc.ir import constant_array
from greencc.kernels import kernel
from greencc.ops import Conv2dAttrs
from greencc.passes.fuse_integer_products import FuseIntegerProducts

PASS = FuseIntegerProducts()
DEEPEST = (2**31 - 1) // (255 * 128)
PRODUCT, CONVOLUTION = "greencc.integer_matmul", "greencc.integer_conv2d"
FORM = "not rows by a matrix, nor a convolution in NCHW of known size"
SCALES = "the activations have several scales or zero points"


def levels(*shape, kind="int8"):
    info = np.iinfo(kind)
    return np.random.default_rng(shape).integers(info.min, info.max + 1, shape).astype(kind)


def dequantize(e, data, scale, zero=None, *, axis=0, block=0, dtype="float32"):
    operands = [data, const(scale, dtype)] + ([] if zero is None else [zero])
    return e(kernel("dequantize", operands, axis=axis, block=block, dtype=dtype))


def qdq(w, w_scale=0.5, w_zero=None, *, a=("batch", 8), kind="uint8", scale=0.25, zero=7, before=None, **options):
    """matmul(dequantize(a), dequantize(w)); `before` is what is done to the dequantised weight."""

    def body(e, a):
        x = dequantize(e, a, scale, const(zero, kind), dtype=options.get("dtype", "float32"))
        zeros = None if w_zero is None else const(w_zero, str(w.dtype))
        y = dequantize(e, const(w, str(w.dtype)), w_scale, zeros, **options)
        return e(op.matmul(x, y if before is None else e(before(y))))

    return graph(body, a=(a, kind))


def integers(w, zero=None, w_zero=None, *, a=("batch", 8), kind="uint8"):
    """matmul(int32(a) - zero, int32(w) - w_zero), as MatMulInteger is imported."""

    def body(e, a, *given):
        zeros = given or (() if zero is None else (const(zero, kind),))
        left = e(op.astype(a, "int32"))
        for point in zeros:
            left = e(op.subtract(left, e(op.astype(point, "int32"))))
        right = e(op.astype(const(w, str(w.dtype)), "int32"))
        if w_zero is not None:
            right = e(op.subtract(right, e(op.astype(const(w_zero, str(w.dtype)), "int32"))))
        return e(op.matmul(left, right))

    inputs = {"zero": (zero, kind)} if isinstance(zero, tuple) else {}
    return graph(body, a=(a, kind), **inputs)


def operands(module, name=PRODUCT):
    """Zero point (None for a variable) and weight of the only integer operator."""
    zero, weight = (constant_array(arg) for arg in the_call(module, name).args[1:])
    return zero, weight


def factors(module):
    """What the sums are multiplied with."""
    return constant_array(the_call(module, "relax.multiply").args[1])


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_product_of_dequantized_operands(kind):
    w = levels(8, 6)
    after = rewritten(PASS, qdq(w, kind=kind))
    assert ops(after) == [PRODUCT, "astype", "multiply"]
    zero, weight = operands(after)
    np.testing.assert_array_equal(weight, w)
    assert (weight.dtype, zero.dtype, zero.item()) == (np.int8, kind, 7)
    assert factors(after).item() == 0.125
    assert run(PASS, qdq(w)).counts == {"product": 1}


def test_scales_of_columns_and_zero_points_of_columns():
    w, scales, zeros = levels(8, 6, kind="uint8") // 2 + 60, np.linspace(0.1, 1, 6), np.arange(70, 76)
    after = rewritten(PASS, qdq(w, scales, zeros, axis=1, scale=0.3))
    np.testing.assert_array_equal(operands(after)[1], w.astype(int) - zeros)
    wanted = np.float32(0.3) * scales.astype(np.float32)
    np.testing.assert_array_equal(factors(after), wanted.reshape(1, 6))


def test_a_transposed_weight_keeps_its_scales():
    w, scales = levels(6, 8), np.linspace(0.1, 1, 6)
    after = rewritten(PASS, qdq(w, scales, axis=0, before=lambda y: op.permute_dims(y, [1, 0])))
    np.testing.assert_array_equal(operands(after)[1], w.T)
    np.testing.assert_array_equal(factors(after), np.float32(0.25) * scales.astype(np.float32).reshape(1, 6))
    twice = qdq(w.T, scales, axis=1, before=lambda y: op.permute_dims(op.permute_dims(y)))
    np.testing.assert_array_equal(operands(rewritten(PASS, twice))[1], w.T)


def test_bytes_of_uint8_with_the_zero_point_128_always_fit():
    w = levels(8, 6, kind="uint8")
    w[0, :2] = 0, 255
    np.testing.assert_array_equal(operands(rewritten(PASS, qdq(w, w_zero=128)))[1], w.astype(int) - 128)
    np.testing.assert_array_equal(operands(rewritten(PASS, integers(w, 3, 128)))[1], w.astype(int) - 128)


@pytest.mark.parametrize(("zero", "known"), [(None, 0), (9, 9), ((), None), ((1,), None)])
def test_integer_products_keep_their_zero_point(zero, known):
    w = levels(8, 6)
    after = rewritten(PASS, integers(w, zero))
    assert ops(after) == [PRODUCT]
    found, weight = operands(after)
    assert (None if found is None else found.item()) == known
    np.testing.assert_array_equal(weight, w)


def test_integers_that_are_folded_already():
    w = levels(8, 6).astype("int32")

    def body(e, a):
        return e(op.matmul(e(op.subtract(e(op.astype(a, "int32")), const(5, "int32"))), const(w, "int32")))

    zero, weight = operands(rewritten(PASS, graph(body, a=((4, 8), "int8"))))
    assert (zero.item(), weight.dtype) == (5, np.int8)
    np.testing.assert_array_equal(weight, w)


def test_a_scale_that_is_known_at_run_time_only():
    def body(e, a, scale):
        x = e(kernel("dequantize", [a, scale], axis=0, block=0, dtype="float32"))
        return e(op.matmul(x, dequantize(e, const(levels(8, 6), "int8"), np.full(6, 0.5), axis=1)))

    after = rewritten(PASS, graph(body, a=((4, 8), "uint8"), scale=(1,)))
    assert ops(after) == [PRODUCT, "astype", "multiply", "multiply"]


def convolution(w, *, a=("batch", 4, 9, 9), kind="uint8", scale=0.25, w_scale=0.5, axis=0, **attributes):
    def body(e, a):
        x = dequantize(e, a, scale, const(7, kind))
        return e(op.nn.conv2d(x, dequantize(e, const(w, "int8"), w_scale, axis=axis), **attributes))

    return graph(body, a=(a, kind))


def test_a_convolution_of_dequantized_operands():
    w, scales = levels(6, 4, 3, 3), np.linspace(0.1, 1, 6)
    module = convolution(w, w_scale=scales, padding=(1, 0, 2, 3), strides=(2, 1), dilation=(1, 2))
    after = rewritten(PASS, module)
    assert ops(after) == [CONVOLUTION, "astype", "multiply"]
    zero, weight = operands(after, CONVOLUTION)
    np.testing.assert_array_equal(weight, w)
    assert zero.item() == 7
    assert Conv2dAttrs.of(the_call(after, CONVOLUTION)) == Conv2dAttrs((2, 1), (1, 0, 2, 3), (1, 2), 1)
    assert factors(after).shape == (1, 6, 1, 1)
    assert run(PASS, module).counts == {"convolution": 1}


def test_a_convolution_of_integers():
    w = levels(6, 2, 1, 1)

    def body(e, a):
        x = e(op.subtract(e(op.astype(a, "int32")), e(op.astype(const(3, "int8"), "int32"))))
        return e(op.nn.conv2d(x, e(op.astype(const(w, "int8"), "int32")), groups=2, out_dtype="int32"))

    after = rewritten(PASS, graph(body, a=((1, 4, 5, 5), "int8")))
    assert ops(after) == [CONVOLUTION]
    assert Conv2dAttrs.of(the_call(after, CONVOLUTION)).groups == 2


def test_other_forms_are_left():
    w = const(levels(8, 6), "int8")
    assert_unmatched(PASS, graph(lambda e, x: e(op.matmul(x, dequantize(e, w, 0.5))), x=(4, 8)))

    def both(e, a, b):
        return e(op.matmul(dequantize(e, a, 0.5), dequantize(e, b, 0.5)))

    assert_unmatched(PASS, graph(both, a=((4, 8), "int8"), b=((8, 6), "int8")))

    def known(e, x):
        constants = dequantize(e, const(levels(4, 8), "int8"), 1), dequantize(e, w, 0.5)
        return e(op.add(x, e(op.matmul(*constants))))

    assert_unmatched(PASS, graph(known, x=(4, 6)))
    plain = graph(lambda e, a: e(op.matmul(dequantize(e, a, 0.5), const(np.ones((8, 6))))), a=((4, 8), "int8"))
    assert_unmatched(PASS, plain)


def test_condition_1_bytes():
    reason = "the activations are not bytes"
    assert_refused(PASS, qdq(levels(8, 6), kind="int16"), 1, reason)
    assert_refused(PASS, integers(levels(8, 6), kind="int16", a=(4, 8)), 1, reason)


def test_condition_2_one_scheme():
    assert_refused(PASS, integers(levels(8, 6), np.arange(4)[:, None], a=(4, 8)), 2, SCALES)
    several = graph(
        lambda e, a: e(op.matmul(dequantize(e, a, [0.5, 0.25]), dequantize(e, const(levels(8, 6), "int8"), 0.5))),
        a=((2, 8), "uint8"),
    )
    assert_refused(PASS, several, 2, SCALES)


@pytest.mark.parametrize(("w", "w_zero"), [(128, 0), (255, 127), (0, 129)])
def test_condition_3_signed_bytes(w, w_zero):
    weight = np.full((8, 6), w_zero, "uint8")
    weight[3, 4] = w
    reason = "a weight less its zero point is no signed byte"
    assert_refused(PASS, qdq(weight, w_zero=w_zero), 3, reason)
    assert_refused(PASS, integers(weight, w_zero=w_zero), 3, reason)
    weight[3, 4] = w - 1 if w > w_zero else w + 1
    assert run(PASS, qdq(weight, w_zero=w_zero)).rewrites == 1


def test_condition_4_scales_of_channels():
    reason = "scales of the weight lie along its sums"
    assert_refused(PASS, qdq(levels(8, 8), np.ones(8), axis=0), 4, reason)
    assert_refused(PASS, qdq(levels(8, 6), np.ones((2, 6)), axis=0, block=4), 4, reason)
    assert_refused(PASS, convolution(levels(4, 4, 1, 1), w_scale=np.ones(4), axis=1), 4, reason)
    one_block = qdq(levels(8, 1), np.full((1, 1), 0.5), np.full((1, 1), 3), axis=0, block=8)
    assert_refused(PASS, one_block, 4, reason)


def test_condition_5_plain_forms():
    assert_refused(PASS, qdq(levels(2, 8, 6), a=(2, 4, 8)), 5, FORM)
    assert_refused(PASS, qdq(levels(8, 6), a=(8,)), 5, FORM)
    assert_refused(PASS, convolution(levels(6, 4, 3, 3), a=(1, 4, "height", 9)), 5, FORM)
    other = convolution(levels(6, 4, 3, 3), a=(1, 9, 9, 4), data_layout="NHWC", out_layout="NHWC")
    assert_refused(PASS, other, 5, FORM)


def test_condition_6_sums_fit():
    assert run(PASS, qdq(levels(DEEPEST, 1), a=(1, DEEPEST))).rewrites == 1
    deeper = qdq(levels(DEEPEST + 1, 1), a=(1, DEEPEST + 1))
    assert_refused(PASS, deeper, 6, f"a sum has more than {DEEPEST} products")


def test_condition_7_a_channel_to_itself():
    reason = "a filter reads a single channel"
    assert_refused(PASS, convolution(levels(4, 1, 3, 3), groups=4), 7, reason)


@pytest.mark.parametrize("scales", [(1e30, 1e30), (1e-25, 1e-20), (np.inf, 1.0), (np.nan, 1.0)])
def test_condition_9_scales(scales):
    reason = "a scale, or the product of two, is not finite or too small"
    with np.errstate(all="ignore"):
        assert_refused(PASS, qdq(levels(8, 6), np.full(6, scales[0]), scale=scales[1], axis=1), 9, reason)
    assert run(PASS, qdq(levels(8, 6), np.zeros(6), axis=1)).rewrites == 1


def test_condition_8_float32():
    reason = "a dequantised operand or a scale is not float32"
    assert_refused(PASS, qdq(levels(8, 6), dtype="float16"), 8, reason)
