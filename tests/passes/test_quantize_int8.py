from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm.relax import op

from greencc.ir import constant_array
from greencc.ops import Conv2dAttrs
from greencc.passes.base import PassContext
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.stored import quantize_channels

PASS = QuantizeInt8(min_weights=1)
FORM = "the weight is not a matrix, or the convolution not NCHW of known size"


def product(w, shape=("batch", 8), kind="float32", **attributes):
    return graph(lambda e, x: e(op.matmul(x, const(w, kind), **attributes)), x=(shape, kind))


def test_a_product_with_a_constant_matrix_is_quantized():
    after = rewritten(PASS, product(random(8, 6)))
    assert ops(after) == ["greencc.quantized_matmul"]
    weight, scale = (constant_array(arg) for arg in the_call(after, "greencc.quantized_matmul").args[1:])
    assert (weight.dtype, weight.shape, scale.dtype, scale.shape) == (np.int8, (8, 6), np.float32, (6,))
    np.testing.assert_allclose(weight * scale, random(8, 6), atol=np.abs(random(8, 6)).max() / 254, rtol=0)


def test_columns_use_all_levels_and_stay_within_half_a_level():
    w = random(40, 30) * np.exp(random(30, seed=1)) * 3
    w[:, 3] = 0
    levels, scale = quantize_channels(w, 1)
    assert levels.min() >= -127
    used = np.abs(levels.astype(int)).max(axis=0)
    assert (used[np.arange(30) != 3] == 127).all()
    assert used[3] == 0
    assert (np.abs(w - levels * scale) <= scale * 0.5001).all()


def test_products_of_variables_and_of_constants_are_left():
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 8), y=(8, 6)))
    known = (const(random(4, 8)), const(random(8, 6)))
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(op.matmul(*known)))), x=(4, 6)))


def convolution(w, shape=("batch", 4, 9, 9), kind="float32", **attributes):
    return graph(lambda e, x: e(op.nn.conv2d(x, const(w, kind), **attributes)), x=(shape, kind))


def test_a_convolution_with_constant_filters_is_quantized():
    w = random(6, 4, 3, 3) * np.exp(random(6, seed=1))[:, None, None, None]
    after = rewritten(PASS, convolution(w, padding=(1, 0, 2, 3), strides=(2, 1), dilation=(1, 2)))
    assert ops(after) == ["greencc.quantized_conv2d"]
    call = the_call(after, "greencc.quantized_conv2d")
    levels, scale = (constant_array(arg) for arg in call.args[1:])
    assert (levels.dtype, levels.shape, scale.shape) == (np.int8, w.shape, (6,))
    assert (np.abs(levels.astype(int)).max(axis=(1, 2, 3)) == 127).all()
    error = np.abs(w - levels * scale[:, None, None, None])
    assert (error <= scale[:, None, None, None] * 0.5001).all()
    assert Conv2dAttrs.of(call) == Conv2dAttrs((2, 1), (1, 0, 2, 3), (1, 2), 1)


def test_grouped_convolutions_keep_their_groups():
    after = rewritten(PASS, convolution(random(6, 2, 1, 1), groups=2))
    assert Conv2dAttrs.of(the_call(after, "greencc.quantized_conv2d")).groups == 2


def test_condition_1_float32():
    reason = "an operand or the result is not float32"
    assert_refused(QuantizeInt8(), product(random(64, 64), (4, 64), "float64"), 1, reason)


def test_condition_2_a_matrix():
    assert_refused(QuantizeInt8(), product(random(2, 64, 64), (2, 4, 64)), 2, FORM)


def test_condition_2_convolutions_of_known_size_in_nchw():
    assert_refused(PASS, convolution(random(64, 16, 3, 3), ("batch", 16, "height", 9)), 2, FORM)
    other = convolution(random(64, 16, 3, 3), (1, 9, 9, 16), data_layout="NHWC", out_layout="NHWC")
    assert_refused(PASS, other, 2, FORM)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_condition_3_finite(value):
    w = random(64, 64)
    w[2, 3] = value
    with np.errstate(invalid="ignore"):
        assert_refused(QuantizeInt8(), product(w, ("batch", 64)), 3, "a weight is not finite")


def test_condition_4_sums_fit():
    deepest = (2**31 - 1) // (255 * 127)
    assert run(PASS, product(np.ones((deepest, 1)), (1, deepest))).rewrites == 1
    deeper = product(np.ones((deepest + 1, 1)), (1, deepest + 1))
    assert_refused(QuantizeInt8(), deeper, 4, f"a sum has more than {deepest} products")


def test_condition_5_worth_it():
    reason = "the weight is too small for quantising to pay"
    assert run(QuantizeInt8(min_weights=49), product(random(8, 6))).refusals[0].reason == reason
    assert run(QuantizeInt8(min_weights=48), product(random(8, 6))).rewrites == 1
    assert run(QuantizeInt8(), product(random(64, 63), ("batch", 64))).refusals[0].condition == 5


def test_condition_6_a_channel_to_itself():
    reason = "a filter reads a single channel"
    assert_refused(QuantizeInt8(), convolution(random(512, 1, 3, 3), (1, 512, 9, 9), groups=512), 6, reason)
    assert run(PASS, convolution(random(4, 2, 1, 1), groups=2)).rewrites == 1


class Stopwatch:
    """A timer that says what it is told."""

    def __init__(self, ratio: float) -> None:
        self.ratio, self.asked = ratio, []

    def time_ratio(self, replacement, original):
        self.asked.append((replacement.op.name, original.op.name))
        return self.ratio


@pytest.mark.parametrize(("ratio", "rewrites"), [(0.95, 1), (0.96, 0)])
@pytest.mark.parametrize(
    ("module", "pair"),
    [
        (product(random(64, 64), ("batch", 64)), ("greencc.quantized_matmul", "relax.matmul")),
        (convolution(random(64, 64, 1, 1), (1, 64, 5, 5)), ("greencc.quantized_conv2d", "relax.nn.conv2d")),
    ],
    ids=["product", "convolution"],
)
def test_condition_7_faster(module, pair, ratio, rewrites):
    timer = Stopwatch(ratio)
    result = QuantizeInt8().run(module, PassContext(timer=timer))
    assert result.rewrites == rewrites
    assert set(timer.asked) == {pair}
    if not rewrites:
        assert [(r.condition, r.reason) for r in result.refusals] == [(7, "int8 is not faster here")]
    assert QuantizeInt8(measure=False).run(module, PassContext(timer=timer)).rewrites == 1


def test_condition_8_epsilon():
    for module in (product(random(64, 64), ("batch", 64)), convolution(random(64, 64, 1, 1), (1, 64, 5, 5))):
        assert run(QuantizeInt8(epsilon=0.05), module).rewrites == 1
        result = run(QuantizeInt8(epsilon=1e-4), module)
        reason = "8 bits don't keep every weight within epsilon"
        assert [(r.condition, r.reason) for r in result.refusals] == [(8, reason)]
