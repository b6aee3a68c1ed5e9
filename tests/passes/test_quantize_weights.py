"""quantize-weights: what is stored, what calibration data change, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm.relax import op

from greencc.errors import UserError
from greencc.ir import constant_array
from greencc.ops import GroupAttrs
from greencc.passes.awq import awq_factors
from greencc.passes.base import PassContext
from greencc.passes.gptq import gptq
from greencc.passes.grouped import output_error, round_to_nearest
from greencc.passes.quantize_weights import QuantizeWeights

PASS = QuantizeWeights(bits=4, group=16, min_weights=1)


def product(w, shape=("batch", 64), kind="float32"):
    return graph(lambda e, x: e(op.matmul(x, const(w, kind))), x=(shape, kind))


def stored(module: tvm.IRModule) -> list[np.ndarray]:
    return [constant_array(arg) for arg in the_call(module, "greencc.grouped_matmul").args[1:]]


@pytest.mark.parametrize(("bits", "parts"), [(8, 2), (4, 3)])
def test_a_product_gets_levels_in_groups(bits, parts):
    w = random(64, 6)
    after = rewritten(QuantizeWeights(bits=bits, group=16, min_weights=1, method="nearest"), product(w))
    assert ops(after) == ["greencc.grouped_matmul"]
    assert GroupAttrs.of(the_call(after, "greencc.grouped_matmul")) == GroupAttrs(bits, 16)
    levels, scale, *offset = stored(after)
    assert (levels.dtype, levels.shape, scale.dtype, scale.shape) == (np.int8, (64, 6), np.float16, (4, 6))
    assert len(offset) == parts - 2
    values = levels * np.repeat(scale.astype(np.float64), 16, axis=0)
    for part in offset:
        values = values + np.repeat(part.astype(np.float64), 16, axis=0)
    # Half a level, and what the ends of a group give to the rounding of scale and offset.
    groups = w.reshape(4, 16, 6)
    span = 2 * np.abs(groups).max(axis=1) if bits == 8 else np.ptp(groups, axis=1)
    allowed = 0.52 * np.repeat(span / (254 if bits == 8 else 15), 16, axis=0)
    assert (np.abs(values - w) <= allowed + (1 if bits == 8 else 8) * 2e-3 * allowed + 1e-3).all()


class Seen:
    """Activations with one gram for every value; notes how many are asked for at once."""

    def __init__(self, gram):
        self.gram, self.asked = gram, []

    def grams(self, module, values):
        self.asked.append(len(values))
        return [self.gram] * len(values)

    def mean_sizes(self, module, values):
        return [np.sqrt(np.diag(self.gram))] * len(values)


def correlated(depth: int) -> np.ndarray:
    x = random(400, depth, seed=1) @ random(depth, depth, seed=2)
    return x.T.astype(np.float64) @ x


def levels_by(method: str, w: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
    context = PassContext(activations=None if gram is None else Seen(gram))
    result = QuantizeWeights(bits=4, group=16, min_weights=1, method=method).run(product(w), context)
    return stored(result.module)[0]


def test_methods_do_what_they_say():
    w, gram = random(64, 24), correlated(64)
    whole, clipped = round_to_nearest(w, 16, 4).levels, round_to_nearest(w, 16, 4, np.ones(64)).levels
    weighed, compensated = round_to_nearest(w, 16, 4, np.diag(gram)).levels, gptq(w, gram, 16, 4).levels
    assert len({array.tobytes() for array in (whole, clipped, weighed, compensated)}) == 4
    np.testing.assert_array_equal(levels_by("nearest", w, gram), whole)
    np.testing.assert_array_equal(levels_by("clipped", w, gram), weighed)
    np.testing.assert_array_equal(levels_by("gptq", w, gram), compensated)
    for method in ("clipped", "gptq", "awq"):
        np.testing.assert_array_equal(levels_by(method, w, None), clipped)
        np.testing.assert_array_equal(levels_by(method, w, gram * np.nan), clipped)


def test_awq_multiplies_columns_of_x_by_the_inverse_of_what_rows_of_the_weight_are_multiplied_with():
    w, sizes = random(64, 24), np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    gram = np.diag(sizes**2)
    before = product(w, shape=(3, 64))
    awq = QuantizeWeights(bits=8, group=16, min_weights=1, method="awq")
    after = awq.run(before, PassContext(activations=Seen(gram))).module
    assert ops(after) == ["multiply", "greencc.grouped_matmul"]
    inverse = constant_array(the_call(after, "relax.multiply").args[1])
    factors = awq_factors(w, sizes, gram, 16, 8)
    np.testing.assert_array_equal(inverse, np.float32(1) / factors)
    levels, scale = (part.astype(np.float64) for part in stored(after))
    values = levels * np.repeat(scale, 16, axis=0) * inverse[:, None]
    plain = round_to_nearest(w, 16, 8).values
    assert output_error(values - w, gram) < output_error(plain - w, gram)


def test_grams_are_asked_for_in_batches_that_fit_memory(monkeypatch):
    monkeypatch.setattr("greencc.passes.quantize_weights._MOST_GRAM_BYTES", 2 * 8 * 64 * 64)

    def body(e, x):
        for i in range(5):
            x = e(op.matmul(x, const(random(64, 64, seed=i))))
        return x

    seen = Seen(correlated(64))
    assert PASS.run(graph(body, x=(3, 64)), PassContext(activations=seen)).rewrites == 5
    assert seen.asked == [2, 2, 1]


def test_the_report_has_bits_and_the_largest_deviation():
    w = random(64, 6)
    result = run(PASS, product(w))
    (weight,) = result.stored.values()
    assert (weight.bits, result.nodes) == (4, ("matmul.1",))
    assert weight.deviation == np.abs(round_to_nearest(w, 16, 4, np.ones(64)).values - w).max() > 0


def test_only_chosen_products_change():
    for nodes, rewrites in ((frozenset({"matmul.1"}), 1), (frozenset(), 0)):
        assert PASS.run(product(random(64, 6)), PassContext(choices={PASS.name: nodes})).rewrites == rewrites


def test_products_of_variables_and_of_constants_are_left():
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 64), y=(64, 6)))
    known = (const(random(4, 64)), const(random(64, 6)))
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(op.matmul(*known)))), x=(4, 6)))


@pytest.mark.parametrize("options", [{"bits": 3}, {"group": 33}, {"group": 0}, {"method": "best"}])
def test_unknown_options_are_one_line(options):
    with pytest.raises(UserError, match="quantize-weights: bits are 8 or 4, group an even number"):
        QuantizeWeights(**options).run(product(random(64, 6)), PassContext())


def test_condition_1_float32():
    wide = product(random(64, 64), (4, 64), "float64")
    assert_refused(QuantizeWeights(), wide, 1, "an operand or the result is not float32")


def test_condition_2_a_matrix():
    assert_refused(QuantizeWeights(), product(random(64, 64, 16), (64, 4, 64)), 2, "the weight is not a matrix")


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_condition_3_finite(value):
    w = random(64, 6)
    w[2, 3] = value
    with np.errstate(all="ignore"):
        refused(product(w), 3, "a weight is not finite")


def refused(module, number, reason):
    result = PASS.run(module, PassContext())
    assert result.rewrites == 0
    assert (number, reason) in [(r.condition, r.reason) for r in result.refusals]


@pytest.mark.parametrize("size", [7e4, 1e-6])
def test_condition_4_halves(size):
    w = random(64, 6)
    w *= np.float32(size) / np.abs(w).max()
    refused(product(w), 4, "weights are too large or too small for scales in half precision")


def test_weights_of_zeros_are_stored_too():
    assert run(PASS, product(np.zeros((64, 6)))).rewrites == 1


def test_condition_5_worth_it():
    reason = "the weight is too small for quantising to pay"
    assert run(QuantizeWeights(min_weights=385), product(random(64, 6))).refusals[0].reason == reason
    assert run(QuantizeWeights(min_weights=384), product(random(64, 6))).rewrites == 1


def test_condition_6_whole_groups():
    uneven = product(random(96, 64), ("batch", 96))
    assert_refused(QuantizeWeights(), uneven, 6, "the depth is no multiple of the group")
