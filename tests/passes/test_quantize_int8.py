from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm.relax import op

from greencc.ir import constant_array
from greencc.passes.quantize_int8 import QuantizeInt8, quantize_columns

PASS = QuantizeInt8(min_weights=1)


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
    levels, scale = quantize_columns(w)
    assert levels.min() >= -127
    used = np.abs(levels.astype(int)).max(axis=0)
    assert (used[np.arange(30) != 3] == 127).all()
    assert used[3] == 0
    assert (np.abs(w - levels * scale) <= scale * 0.5001).all()


def test_products_of_variables_and_of_constants_are_left():
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 8), y=(8, 6)))
    known = (const(random(4, 8)), const(random(8, 6)))
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(op.matmul(*known)))), x=(4, 6)))


def test_condition_1_float32():
    reason = "an operand or the result is not float32"
    assert_refused(QuantizeInt8(), product(random(64, 64), (4, 64), "float64"), 1, reason)


def test_condition_2_a_matrix():
    assert_refused(QuantizeInt8(), product(random(2, 64, 64), (2, 4, 64)), 2, "the weight is not a matrix")


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
