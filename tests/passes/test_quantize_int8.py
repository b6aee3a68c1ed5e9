from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm import relax
from tvm.relax import op

from greencc import UserError
from greencc.affine import Scheme
from greencc.ir import constant_array
from greencc.ops import Conv2dAttrs, scheme_of
from greencc.passes.base import ActivationRange, PassContext
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


class Seen:
    """Activations that are what a test says, and what was asked."""

    def __init__(self, ranges=(-1.0, 3.0), means=0.0):
        self.given, self.mean, self.asked = ranges, means, []

    def ranges(self, module, values, observer):
        self.asked.append(("ranges", len(values), observer.name))
        return [self.given for _ in values]

    def means(self, module, values, axes):
        self.asked.append(("means", len(values), tuple(axes)))
        sizes = [int(value.ty.shape[axis]) for value, axis in zip(values, axes, strict=True)]
        return [np.full(size, self.mean) if np.isscalar(self.mean) else self.mean for size in sizes]


def informed(pass_, module, seen):
    result = pass_.run(module, PassContext(activations=seen))
    assert relax.analysis.check_well_formed(result.module)
    return result


STATIC = QuantizeInt8(min_weights=1, ranges="mse", correct_bias=False)


@pytest.mark.parametrize(
    ("module", "op"),
    [
        (product(random(8, 6)), "greencc.quantized_matmul"),
        (convolution(random(6, 4, 3, 3)), "greencc.quantized_conv2d"),
    ],
)
def test_ranges_that_data_show_become_the_scheme(module, op):
    seen = Seen()
    result = informed(STATIC, module, seen)
    assert ops(result.module) == [op]
    assert scheme_of(the_call(result.module, op)) == Scheme.of_range(-1.0, 3.0)
    assert seen.asked == [("ranges", 1, "mse")]
    assert list(result.ranges.values()) == [ActivationRange(-1.0, 3.0, "mse")]
    assert list(result.ranges) == list(result.nodes)
    assert scheme_of(the_call(run(PASS, module).module, op)) is None
    assert run(PASS, module).ranges == {}


def test_data_are_asked_about_all_at_once_and_not_about_what_is_refused_anyway():
    def body(e, x, y):
        a = e(op.matmul(x, const(random(8, 6))))
        b = e(op.nn.conv2d(y, const(random(6, 4, 1, 1))))
        return e(op.nn.relu(a)), b, e(op.matmul(a, const(random(6, 2)))), e(op.matmul(x, const(random(8, 5))))

    seen = Seen(means=1.0)
    pass_ = QuantizeInt8(min_weights=24, ranges="min-max", correct_bias=True, measure=False)
    result = informed(pass_, graph(body, x=("n", 8), y=("n", 4, 3, 3)), seen)
    assert seen.asked == [("ranges", 3, "min-max"), ("means", 3, (-1, 1, -1))]
    assert (result.rewrites, [r.condition for r in result.refusals]) == (3, [5])


def test_condition_9_data():
    for module in (product(random(64, 64), ("batch", 64)), convolution(random(64, 64, 1, 1), (1, 64, 5, 5))):
        assert_refused(QuantizeInt8(ranges="entropy"), module, 9, "no calibration data")


@pytest.mark.parametrize(
    ("seen", "pass_"),
    [
        (Seen((np.nan, np.nan)), STATIC),
        (Seen((-np.inf, 1.0)), STATIC),
        (Seen(means=np.nan), QuantizeInt8(min_weights=1, correct_bias=True)),
    ],
)
def test_condition_10_finite_activations(seen, pass_):
    timer = Stopwatch(0.5)
    result = pass_.run(product(random(8, 6)), PassContext(activations=seen, timer=timer))
    assert [(r.condition, r.reason) for r in result.refusals] == [(10, "an activation is not finite")]
    assert timer.asked == []


def test_unknown_ranges_are_the_users_mistake():
    with pytest.raises(UserError, match="quantize-int8: ranges median: unknown; known: min-max"):
        QuantizeInt8(ranges="median")


CORRECTED = QuantizeInt8(min_weights=1, correct_bias=True)


def test_a_products_bias_makes_up_for_its_weights():
    w, mean = random(40, 6) * np.exp(random(6)), random(40, seed=3).astype(np.float64)
    after = informed(CORRECTED, product(w, ("batch", 40)), Seen(means=mean)).module
    assert ops(after) == ["greencc.quantized_matmul", "add"]
    levels, scale = (constant_array(arg) for arg in the_call(after, "greencc.quantized_matmul").args[1:])
    (bias,) = (array for arg in the_call(after, "relax.add").args if (array := constant_array(arg)) is not None)
    # The mean row goes through as if weights were exact.
    np.testing.assert_allclose(mean @ (levels * scale.astype(np.float64)) + bias, mean @ w, rtol=0, atol=1e-6)
    assert np.abs(bias).max() > 1e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolutions_bias_is_that_of_the_interior(groups):
    w, mean = random(6, 4 // groups, 3, 3), random(4, seed=3).astype(np.float64)
    module = convolution(w, padding=(1, 1, 1, 1), groups=groups)
    after = informed(CORRECTED, module, Seen(means=mean)).module
    call = the_call(after, "greencc.quantized_conv2d")
    levels, scale = (constant_array(arg) for arg in call.args[1:])
    (bias,) = (array for arg in the_call(after, "relax.add").args if (array := constant_array(arg)) is not None)
    assert bias.shape == (6, 1, 1)
    for k in range(6):
        first = k // (6 // groups) * (4 // groups)
        window = np.broadcast_to(mean[first : first + 4 // groups, None, None], w[k].shape)
        stored = (window * levels[k] * np.float64(scale[k])).sum()
        np.testing.assert_allclose(stored + bias[k, 0, 0], (window * w[k]).sum(), rtol=0, atol=1e-6)


def test_nothing_is_added_where_nothing_is_lost_or_known():
    exact = np.outer(np.arange(-127, 128), np.ones(2)).astype(np.float32)
    assert ops(informed(CORRECTED, product(exact, (1, 255)), Seen(means=1.0)).module) == ["greencc.quantized_matmul"]
    assert ops(run(CORRECTED, product(random(8, 6))).module) == ["greencc.quantized_matmul"]
    seen = Seen(means=1.0)
    off = QuantizeInt8(min_weights=1, correct_bias=False)
    assert ops(informed(off, product(random(8, 6)), seen).module) == ["greencc.quantized_matmul"]
    assert seen.asked == []
