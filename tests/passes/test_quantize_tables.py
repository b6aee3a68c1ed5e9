from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm.relax import op

from greencc.ir import constant_array
from greencc.passes.base import PassContext
from greencc.passes.quantize_tables import QuantizeTables

PASS = QuantizeTables(min_weights=1)
FORM = "the table is not a matrix whose rows are looked up"


def lookup(table, axis=0, kind="float32", **attributes):
    return graph(lambda e, i: e(op.take(const(table, kind), i, axis=axis, **attributes)), i=(("batch", 5), "int64"))


def test_rows_are_looked_up_in_bytes_and_scaled():
    after = rewritten(PASS, lookup(random(30, 8)))
    assert ops(after) == ["greencc.quantized_take"]
    levels, scale = (constant_array(arg) for arg in the_call(after, "greencc.quantized_take").args[:2])
    assert (levels.dtype, levels.shape, scale.dtype, scale.shape) == (np.int8, (30, 8), np.float32, (30,))
    assert (np.abs(levels.astype(int)).max(axis=1) == 127).all()
    np.testing.assert_allclose(levels * scale[:, None], random(30, 8), atol=np.abs(random(30, 8)).max() / 254, rtol=0)


def test_the_largest_deviation_is_reported_and_within_half_a_level():
    table = random(30, 8)
    (stored,) = PASS.run(lookup(table), PassContext()).stored.values()
    assert stored.bits == 8
    assert 0 < stored.deviation <= np.abs(table).max() / 254 * 1.0001


def test_only_chosen_operators_are_changed():
    module = lookup(random(30, 8))
    (node,) = PASS.run(module, PassContext()).nodes
    for nodes, rewrites in ((frozenset({node}), 1), (frozenset({"another"}), 0), (frozenset(), 0)):
        result = PASS.run(module, PassContext(choices={PASS.name: nodes}))
        assert (result.rewrites, result.refusals) == (rewrites, ())
    assert PASS.run(module, PassContext(choices={})).rewrites == 0


def test_tables_that_are_no_constants_or_no_floats_are_left():
    assert_unmatched(PASS, graph(lambda e, t, i: e(op.take(t, i, axis=0)), t=(9, 8), i=((5,), "int64")))
    assert_unmatched(PASS, lookup(np.arange(12).reshape(3, 4), kind="int64"))
    assert_unmatched(PASS, lookup(random(4800)))
    known = op.take(const(random(9, 4)), const([1, 2], "int64"), axis=0)
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(known))), x=(2, 4)))


def test_condition_1_float32():
    reason = "the table or the result is not float32"
    assert_refused(QuantizeTables(), lookup(random(600, 8), kind="float64"), 1, reason)


@pytest.mark.parametrize(("table", "axis"), [(random(8, 600), 1), (random(600, 4, 2), 0)])
def test_condition_2_rows(table, axis):
    assert_refused(QuantizeTables(), lookup(table, axis), 2, FORM)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_condition_3_finite(value):
    table = random(600, 8)
    table[7, 3] = value
    with np.errstate(invalid="ignore"):
        assert_refused(QuantizeTables(), lookup(table), 3, "an element is not finite")


def test_condition_4_worth_it():
    reason = "the table is too small for quantising to pay"
    assert_refused(QuantizeTables(), lookup(random(511, 8)), 4, reason)
    assert run(QuantizeTables(), lookup(random(512, 8))).rewrites == 1


def test_condition_5_a_single_reader():
    table = const(random(600, 8))
    both = graph(lambda e, i: e(op.matmul(e(op.take(table, i, axis=0)), e(op.permute_dims(table)))), i=((5,), "int64"))
    assert_refused(QuantizeTables(), both, 5, "something else reads the table too")


@pytest.mark.parametrize(("mode", "rewrites"), [("fast", 1), ("clip", 1), ("wrap", 1), ("nan", 0)])
def test_condition_6_clipping(mode, rewrites):
    module = lookup(random(600, 8), mode=mode)
    if rewrites:
        assert run(QuantizeTables(), module).rewrites == 1
    else:
        assert_refused(QuantizeTables(), module, 6, "an index outside of the table means no row")


def test_condition_7_epsilon():
    table = random(600, 8)
    assert run(QuantizeTables(epsilon=0.05), lookup(table)).rewrites == 1
    result = run(QuantizeTables(epsilon=1e-4), lookup(table))
    assert [(r.condition, r.reason) for r in result.refusals] == [(7, "8 bits don't keep every element within epsilon")]
