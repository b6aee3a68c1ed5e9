from __future__ import annotations

import numpy as np
import pytest
import reference
from builders import const, graph, ops, random, the_call
from tvm.relax import op

from greencc.ir import bindings_of, constant_array, is_call, shape_of
from greencc.passes.base import PassContext
from greencc.passes.prune_channels import PruneChannels

PASS = PruneChannels(0.25)
FORM = "the channels don't come out of products by constants, elementwise"


def feed_forward(v, b, w, shape=("batch", 8), kind="float32"):
    def body(e, x):
        wide = e(op.tanh(e(op.add(e(op.matmul(x, const(v, kind))), const(b, kind)))))
        return e(op.matmul(wide, const(w, kind)))

    return graph(body, x=(shape, kind))


V, B, W = random(8, 16), random(16, seed=1), random(16, 6, seed=2)


class Seen:
    """Activations with given mean squares."""

    def __init__(self, *squares):
        self.squares = squares

    def mean_squares(self, module, values):
        assert len(values) == len(self.squares)
        return list(self.squares)


def refused(module, condition, reason, chosen=PASS, context=None):
    result = chosen.run(module, context or PassContext())
    assert result.rewrites == 0
    assert (condition, reason) in [(r.condition, r.reason) for r in result.refusals]


def test_the_least_important_channels_go_and_the_others_compute_what_they_did():
    squares = np.arange(16.0)
    result = PASS.run(feed_forward(V, B, W), PassContext(activations=Seen(squares)))
    assert result.rewrites == 1
    assert ops(result.module) == ["matmul", "add", "tanh", "matmul"]
    scores = squares * (W.astype(np.float64) ** 2).sum(axis=1)
    kept = np.sort(np.argsort(-scores)[:12])
    first, second = (constant_array(call.args[1]) for call in calls(result.module, "relax.matmul"))
    np.testing.assert_array_equal(first, V[:, kept])
    np.testing.assert_array_equal(second, W[kept])
    x = random(3, 8, seed=3)
    wanted = np.tanh(x @ V + B)[:, kept] @ W[kept]
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], wanted, rtol=1e-5, atol=1e-5)


def calls(module, name):
    return [b.value for b in bindings_of(module["main"]) if is_call(b.value, name)]


def test_without_data_weights_decide():
    v = V.copy()
    v[:, [1, 5, 6, 11]] *= 1e-3
    result = PASS.run(feed_forward(v, B, W), PassContext())
    kept = [i for i in range(16) if i not in (1, 5, 6, 11)]
    np.testing.assert_array_equal(constant_array(calls(result.module, "relax.matmul")[0].args[1]), v[:, kept])


def test_gated_layers_lose_the_channels_of_both_products():
    u = random(8, 16, seed=4)

    def body(e, x):
        gate = e(op.nn.silu(e(op.matmul(x, const(V)))))
        return e(op.matmul(e(op.multiply(gate, e(op.matmul(x, const(u))))), const(W)))

    result = PASS.run(graph(body, x=(3, 8)), PassContext(activations=Seen(np.arange(16.0))))
    shapes = [constant_array(call.args[1]).shape for call in calls(result.module, "relax.matmul")]
    assert shapes == [(8, 12), (8, 12), (12, 6)]


@pytest.mark.parametrize(
    ("width", "fraction", "left"), [(16, 0.25, 12), (1536, 0.25, 1152), (100, 0.5, 64), (40, 0.9, 4)]
)
def test_widths_stay_multiples_of_vectors(width, fraction, left):
    module = feed_forward(random(8, width), random(width), random(width, 6))
    result = PruneChannels(fraction).run(module, PassContext())
    assert constant_array(calls(result.module, "relax.matmul")[1].args[1]).shape == (left, 6)


def test_only_chosen_layers_are_pruned():
    module = feed_forward(V, B, W)
    for nodes, rewrites in ((frozenset({"matmul.4"}), 1), (frozenset(), 0)):
        assert PASS.run(module, PassContext(choices={PASS.name: nodes})).rewrites == rewrites


def test_one_round_is_made():
    once = PASS.run(feed_forward(V, B, W), PassContext())
    assert (once.rewrites, once.nodes) == (1, ("matmul.4",))


def test_condition_1_float32():
    refused(feed_forward(V, B, W, kind="float64"), 1, "an operand or the result is not float32")


@pytest.mark.parametrize("between", ["softmax", "input", "spread"])
def test_condition_2_columns_of_products(between):
    def body(e, x):
        wide = e(op.matmul(x, const(V)))
        if between == "softmax":
            wide = e(op.nn.softmax(wide))
        elif between == "input":
            wide = x
        else:
            wide = e(op.add(wide, e(op.sum(wide, axis=[-1], keepdims=True))))
        return e(op.matmul(wide, const(random(shape_of(wide.ty)[-1].value, 6))))

    refused(graph(body, x=(3, 8)), 2, FORM)


def test_condition_2_a_matrix():
    def body(e, x):
        return e(op.matmul(e(op.matmul(x, const(V))), const(random(2, 16, 6))))

    refused(graph(body, x=(2, 3, 8)), 2, FORM)


def test_condition_3_nothing_else_reads_the_channels():
    def body(e, x):
        wide = e(op.tanh(e(op.matmul(x, const(V)))))
        return e(op.matmul(wide, const(W))), e(op.exp(wide))

    refused(graph(body, x=(3, 8)), 3, "a value in between is used elsewhere")


@pytest.mark.parametrize("place", ["first", "second", "seen"])
def test_condition_4_finite(place):
    v, w, squares = V.copy(), W.copy(), np.ones(16)
    {"first": v, "second": w, "seen": squares}[place].flat[3] = np.inf
    context = PassContext(activations=Seen(squares))
    with np.errstate(invalid="ignore"):
        refused(feed_forward(v, B, w), 4, "a weight or an activation is not finite", context=context)


def test_condition_5_something_goes():
    refused(feed_forward(V, B, W), 5, "no channel would go", PruneChannels(0.01))
    result = PruneChannels(0.99).run(feed_forward(V, B, W), PassContext())
    assert shape_of(the_call(result.module, "relax.tanh").ty)[-1] == 1
