from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, random, rewritten, run, the_call
from tvm.relax import op

from greencc.errors import UserError
from greencc.ir import constant_array
from greencc.passes.base import PassContext
from greencc.passes.cluster_weights import ClusterWeights

PASS = ClusterWeights(2, min_weights=1)


def product(w, shape=("batch", 8), kind="float32"):
    return graph(lambda e, x: e(op.matmul(x, const(w, kind))), x=(shape, kind))


def convolution(w):
    return graph(lambda e, x: e(op.nn.conv2d(x, const(w), padding=(1, 0, 2, 3), strides=(2, 1))), x=(1, 4, 9, 9))


def lookup(table, kind="float32"):
    return graph(lambda e, i: e(op.take(const(table, kind), i, axis=0, mode="clip")), i=(("batch", 5), "int64"))


@pytest.mark.parametrize(
    ("module", "name", "place"),
    [
        (product(random(8, 6)), "relax.matmul", 1),
        (product(random(2, 8, 6), (2, 4, 8)), "relax.matmul", 1),
        (convolution(random(6, 4, 3, 3)), "relax.nn.conv2d", 1),
        (lookup(random(30, 8)), "relax.take", 0),
    ],
    ids=["product", "batch", "convolution", "table"],
)
def test_a_weight_gets_few_values_close_to_its_own(module, name, place):
    before, result = the_call(module, name), run(PASS, module)
    after = the_call(rewritten(PASS, module), name)
    old, new = (constant_array(call.args[place]) for call in (before, after))
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert np.unique(new).size == 4
    assert np.linalg.norm(new - old) < 0.4 * np.linalg.norm(old)
    (made,) = result.stored.values()
    assert (made.bits, made.deviation) == (2, np.abs(new - old).max())
    assert result.nodes == tuple(result.stored)
    assert ops(result.module) == ops(module)
    assert repr(after.attrs) == repr(before.attrs)
    assert after.args[1 - place].same_as(before.args[1 - place])


def test_zeros_of_a_sparse_weight_stay():
    w = np.where(np.abs(random(8, 6)) > 0.7, random(8, 6), 0)
    new = constant_array(the_call(run(PASS, product(w)).module, "relax.matmul").args[1])
    np.testing.assert_array_equal(new == 0, w == 0)
    assert np.unique(new).size == 4


def test_only_chosen_operators_are_changed():
    module = product(random(8, 6))
    for nodes, rewrites in ((frozenset({"matmul.1"}), 1), (frozenset(), 0)):
        assert PASS.run(module, PassContext(choices={PASS.name: nodes})).rewrites == rewrites


def test_weights_of_few_values_variables_and_integers_are_left():
    assert_unmatched(PASS, product(np.resize([1.5, -2, 0, 3], (8, 6))))
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 8), y=(8, 6)))
    assert_unmatched(PASS, lookup(np.arange(60).reshape(10, 6), "int64"))
    known = op.take(const(random(9, 4)), const([1, 2], "int64"), axis=0)
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(known))), x=(2, 4)))


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_make_no_sense_are_refused(bits):
    with pytest.raises(UserError, match=f"cluster-weights: bits={bits}: give 2 to 8"):
        ClusterWeights(bits)


def test_condition_1_float32():
    reason = "the weight or the result is not float32"
    assert_refused(ClusterWeights(), product(random(64, 64), (4, 64), "float64"), 1, reason)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_condition_2_finite(value):
    w = random(8, 6)
    w[2, 3] = value
    with np.errstate(invalid="ignore"):
        result = PASS.run(product(w), PassContext())
    assert [(r.condition, r.reason) for r in result.refusals] == [(2, "an element is not finite")]


def test_condition_3_large_enough():
    assert run(ClusterWeights(2, min_weights=48), product(random(8, 6))).rewrites == 1
    (refusal,) = run(ClusterWeights(2, min_weights=49), product(random(8, 6))).refusals
    assert (refusal.condition, refusal.reason) == (3, "the weight is too small for clusters to pay")
    assert run(ClusterWeights(), product(random(64, 64), ("batch", 64))).rewrites == 1
    assert run(ClusterWeights(), product(random(64, 63), ("batch", 64))).refusals[0].condition == 3


def test_condition_4_the_only_reader():
    shared = const(random(64, 64))
    module = graph(lambda e, x: e(op.matmul(e(op.matmul(x, shared)), shared)), x=("batch", 64))
    assert_refused(ClusterWeights(), module, 4, "something else reads the weight too")
