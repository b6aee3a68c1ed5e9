from __future__ import annotations

import numpy as np
import pytest
import reference
from builders import assert_refused, assert_unmatched, const, graph, ops, random, run, the_call
from tvm.relax import op

from greencc.errors import UserError
from greencc.ir import constant_array
from greencc.passes.base import PassContext
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.registry import parse_pipeline
from greencc.passes.sparsify import Sparsify

PASS = Sparsify(min_weights=1)
PATTERN = Sparsify(pattern="2:4", min_weights=1)
FORM = "the weight is not a matrix, or the convolution not NCHW"


def product(w, shape=("batch", 8), kind="float32"):
    return graph(lambda e, x: e(op.matmul(x, const(w, kind))), x=(shape, kind))


def convolution(w, shape=("batch", 4, 9, 9), **attributes):
    return graph(lambda e, x: e(op.nn.conv2d(x, const(w), **attributes)), x=shape)


class Seen:
    """Activations with given mean squares, by axis."""

    def __init__(self, **squares):
        self.squares = squares

    def mean_squares(self, module, values, axes):
        assert len(values) == len(axes)
        return [np.asarray(self.squares[{-1: "columns", 1: "channels"}[axis]], np.float64) for axis in axes]


def weight_of(result, name="relax.matmul"):
    return constant_array(the_call(result.module, name).args[1])


def thinned(weight, scores, gone, group):
    """What a list of groups says: in each, the `gone` least important weights of an output are 0. [K, N]"""
    made = weight.copy()
    for column in range(weight.shape[1]):
        for first in range(0, len(weight), group):
            order = sorted(range(first, first + group), key=lambda k: scores[k, column])
            made[order[:gone], column] = 0
    return made


def test_without_data_the_smallest_weights_of_every_output_go():
    w = random(8, 6)
    result = run(Sparsify(0.25, min_weights=1), product(w))
    np.testing.assert_array_equal(weight_of(result), thinned(w, np.abs(w), 2, 8))
    assert ops(result.module) == ["matmul"]
    assert result.counts == {"sparsify": 1}
    assert result.zeros == {"matmul.1": 0.25}


def test_with_data_weights_count_by_what_they_are_multiplied_with():
    w, squares = random(8, 6), np.exp(3 * random(8, seed=1))
    result = PASS.run(product(w), PassContext(activations=Seen(columns=squares)))
    wanted = thinned(w, np.abs(w) * np.sqrt(squares)[:, None], 4, 8)
    np.testing.assert_array_equal(weight_of(result), wanted)
    assert not np.array_equal(wanted, thinned(w, np.abs(w), 4, 8))
    x = random(3, 8, seed=2)
    np.testing.assert_allclose(reference.evaluate(result.module, x)[0], x @ wanted, rtol=1e-5, atol=1e-5)


def test_of_four_weights_whose_inputs_follow_each_other_two_go():
    w, squares = random(12, 5), np.exp(3 * random(12, seed=1))
    result = PATTERN.run(product(w, ("batch", 12)), PassContext(activations=Seen(columns=squares)))
    np.testing.assert_array_equal(weight_of(result), thinned(w, np.abs(w) * np.sqrt(squares)[:, None], 2, 4))
    assert ((weight_of(result).reshape(3, 4, 5) == 0).sum(axis=1) == 2).all()


def test_of_a_filter_weights_count_by_their_channels():
    w, squares = random(6, 4, 3, 2), np.exp(3 * random(4, seed=1))
    result = PASS.run(convolution(w), PassContext(activations=Seen(channels=squares)))
    scores = np.abs(w) * np.sqrt(squares)[:, None, None]
    wanted = thinned(w.reshape(6, -1).T, scores.reshape(6, -1).T, 12, 24).T.reshape(w.shape)
    np.testing.assert_array_equal(weight_of(result, "relax.nn.conv2d"), wanted)
    assert result.zeros == {"conv2d.1": 0.5}


def test_of_a_filter_channels_of_one_place_follow_each_other():
    w = random(6, 8, 3, 2)
    result = run(PATTERN, convolution(w, (1, 8, 9, 9)))
    made = weight_of(result, "relax.nn.conv2d")
    for place in np.ndindex(3, 2):
        rows = w[(slice(None), slice(None), *place)].T
        np.testing.assert_array_equal(made[(slice(None), slice(None), *place)].T, thinned(rows, np.abs(rows), 2, 4))


def test_groups_of_filters_read_their_own_channels():
    w, squares = random(6, 2, 1, 1), [1e6, 1.0, 1.0, 1e6]
    result = PASS.run(convolution(w, groups=2), PassContext(activations=Seen(channels=squares)))
    made = weight_of(result, "relax.nn.conv2d")[:, :, 0, 0]
    np.testing.assert_array_equal(made != 0, [[True, False]] * 3 + [[False, True]] * 3)


def test_products_and_convolutions_are_asked_for_apart():
    w, f = random(9, 6), random(5, 4, 1, 1)

    def body(e, x):
        return e(op.matmul(e(op.nn.conv2d(x, const(f))), const(w)))

    seen = Seen(columns=np.ones(9), channels=np.ones(4))
    result = PASS.run(graph(body, x=(2, 4, 9, 9)), PassContext(activations=seen))
    assert result.zeros == {"conv2d.1": 0.5, "matmul.2": pytest.approx(4 / 9)}


def test_the_same_weights_go_again():
    once = run(PASS, product(random(8, 6)))
    again = run(PASS, once.module)
    assert [(r.condition, r.reason) for r in again.refusals] == [(7, "no weight would go")]
    more = run(Sparsify(0.75, min_weights=1), once.module)
    np.testing.assert_array_equal(weight_of(more), weight_of(run(Sparsify(0.75, min_weights=1), product(random(8, 6)))))


def test_int8_keeps_zeros():
    sparse = run(Sparsify(0.5, min_weights=1), product(random(8, 6)))
    levels = constant_array(
        the_call(run(QuantizeInt8(1, measure=False), sparse.module).module, "greencc.quantized_matmul").args[1]
    )
    np.testing.assert_array_equal(levels[weight_of(sparse) == 0], 0)
    assert np.count_nonzero(levels) == 24


def test_the_pattern_is_an_option_on_the_command_line():
    text = "sparsify{pattern=2:4},sparsify{fraction=0.25,min-weights=9}"
    assert parse_pipeline(text) == (Sparsify(pattern="2:4"), Sparsify(0.25, min_weights=9))


def test_only_chosen_operators_are_changed():
    module = product(random(8, 6))
    for nodes, rewrites in ((frozenset({"matmul.1"}), 1), (frozenset(), 0)):
        assert PASS.run(module, PassContext(choices={PASS.name: nodes})).rewrites == rewrites


def test_products_of_variables_and_of_constants_are_left():
    assert_unmatched(PASS, graph(lambda e, x, y: e(op.matmul(x, y)), x=(4, 8), y=(8, 6)))
    known = (const(random(4, 8)), const(random(8, 6)))
    assert_unmatched(PASS, graph(lambda e, x: e(op.add(x, e(op.matmul(*known)))), x=(4, 6)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "1:4"}, "sparsify: unknown pattern '1:4'; known: 2:4"),
        ({"fraction": 1.0}, "sparsify: fraction 1 is not between 0 and 1"),
        ({"fraction": float("nan")}, "sparsify: fraction nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Sparsify(**options)


def test_condition_1_float32():
    reason = "an operand or the result is not float32"
    assert_refused(Sparsify(), product(random(64, 64), (4, 64), "float64"), 1, reason)


@pytest.mark.parametrize(
    "module",
    [
        product(random(2, 8, 6), (2, 4, 8)),
        convolution(random(6, 4, 3, 3), (1, 9, 9, 4), data_layout="NHWC", out_layout="NHWC"),
    ],
    ids=["batch", "NHWC"],
)
def test_condition_2_form(module):
    result = run(PASS, module)
    assert [(r.condition, r.reason) for r in result.refusals] == [(2, FORM)]


@pytest.mark.parametrize("place", ["weight", "activation"])
def test_condition_3_finite(place):
    w, squares = random(8, 6), np.ones(8)
    {"weight": w, "activation": squares}[place].flat[3] = np.inf
    with np.errstate(invalid="ignore"):
        result = PASS.run(product(w), PassContext(activations=Seen(columns=squares)))
    assert [(r.condition, r.reason) for r in result.refusals] == [(3, "a weight or an activation is not finite")]


def test_condition_4_large_enough():
    assert run(Sparsify(min_weights=48), product(random(8, 6))).rewrites == 1
    (refusal,) = run(Sparsify(min_weights=49), product(random(8, 6))).refusals
    assert (refusal.condition, refusal.reason) == (4, "the weight is too small for zeros to pay")
    assert run(Sparsify(), product(random(64, 64), ("batch", 64))).rewrites == 1
    assert run(Sparsify(), product(random(64, 63), ("batch", 64))).refusals[0].condition == 4


def test_condition_5_the_only_reader():
    shared = const(random(64, 64))
    module = graph(lambda e, x: e(op.matmul(e(op.matmul(x, shared)), shared)), x=("batch", 64))
    assert_refused(Sparsify(), module, 5, "something else reads the weight too")


def test_condition_6_the_pattern_divides():
    for module in (product(random(66, 64), ("batch", 66)), convolution(random(256, 6, 2, 2), (1, 6, 9, 9))):
        assert_refused(PATTERN, module, 6, "the pattern does not divide the inputs")
        assert run(PASS, module).rewrites == 1


def test_condition_7_something_goes():
    assert_refused(Sparsify(), product(np.zeros((64, 64)), ("batch", 64)), 7, "no weight would go")
    assert_refused(Sparsify(1 / 129), product(random(64, 64), ("batch", 64)), 7, "no weight would go")
    assert run(Sparsify(1 / 127), product(random(64, 64), ("batch", 64))).zeros == {"matmul.1": 1 / 64}
