from __future__ import annotations

import math

import numpy as np
import pytest
from builders import (
    assert_equal,
    assert_refused,
    assert_unmatched,
    const,
    graph,
    ops,
    random,
    rewritten,
    run_by_tvm,
)
from tvm import relax
from tvm.relax import op

from greencc.ir import bindings_of, span_of
from greencc.passes.fuse_batch_norm import FuseBatchNorm

C, O = 3, 4  # noqa: E741
W = random(O, C, 3, 3)
BIAS = random(1, O, 1, 1, seed=1)
STATS = [random(O, seed=2), random(O, seed=3), random(O, seed=4), np.abs(random(O, seed=5)) + 0.1]
X = (1, C, 8, 8)


def conv(e, x, bias=BIAS, weight=W, **options):
    y = e(op.nn.conv2d(x, const(weight) if isinstance(weight, np.ndarray) else weight, padding=[1, 1], **options))
    return y if bias is None else e(op.add(y, const(bias) if isinstance(bias, np.ndarray) else bias))


def norm(e, y, stats=STATS, axis=1, **options):
    options = {"training": False, "epsilon": 1e-3, **options}
    args = [const(s) if isinstance(s, np.ndarray) else s for s in stats]
    return e(relax.TupleGetItem(e(op.nn.batch_norm(y, *args, axis=axis, **options)), 0))


def check(before, *inputs, left=("nn.conv2d", "add"), rewrites=1):
    after = rewritten(FuseBatchNorm(), before, rewrites)
    assert ops(after) == list(left)
    for wanted, got in zip(run_by_tvm(before, *inputs), run_by_tvm(after, *inputs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_normalisation_with_and_without_bias(bias):
    check(graph(lambda e, x: norm(e, conv(e, x, bias)), x=X), random(*X))


def test_expected_module():
    gamma, beta, mean, var = (s.astype("float64") for s in STATS)
    gain = gamma / np.sqrt(var + 1e-3)
    weight = (W * gain[:, None, None, None]).astype("float32")
    bias = (BIAS.reshape(-1) * gain + (beta - mean * gain)).astype("float32").reshape(1, O, 1, 1)
    shape = (1, C, "height", 8)
    before = graph(lambda e, x: norm(e, conv(e, x)), x=shape)
    assert_equal(rewritten(FuseBatchNorm(), before), graph(lambda e, x: conv(e, x, bias, weight), x=shape))


def test_node_names_stay():
    after = rewritten(FuseBatchNorm(), graph(lambda e, x: norm(e, conv(e, x)), x=X))
    calls = [b.value for b in bindings_of(after["main"]) if isinstance(b.value, relax.Call)]
    assert [span_of(call) for call in calls] == ["conv2d.1", "batch_norm.3"]


def test_other_layouts():
    def body(e, x):
        y = conv(e, x, BIAS.reshape(O), W.transpose(2, 3, 1, 0).copy(), data_layout="NHWC", kernel_layout="HWIO")
        return norm(e, y, axis=3)

    check(graph(body, x=(1, 8, 8, C)), random(1, 8, 8, C))


def test_groups_and_one_spatial_axis():
    weight = random(O, 1, 3)

    def body(e, x):
        return norm(e, e(op.nn.conv1d(x, const(weight), groups=2)), axis=1)

    check(graph(body, x=(1, 2, 8)), random(1, 2, 8), left=("nn.conv1d", "add"))


def test_neither_gain_nor_shift():
    check(graph(lambda e, x: norm(e, conv(e, x), center=False, scale=False), x=X), random(*X))


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("factor", [random(O, 1, 1, seed=6), np.array(3.0, "float32")])
@pytest.mark.parametrize("join", [op.multiply, op.divide, lambda y, c: op.multiply(c, y)])
def test_factors(bias, factor, join):
    before = graph(lambda e, x: e(join(conv(e, x, bias), const(factor))), x=X)
    check(before, random(*X), left=["nn.conv2d"] if bias is None else ["nn.conv2d", "add"])


@pytest.mark.parametrize("join", [op.add, op.subtract, lambda y, c: op.add(c, y)])
def test_summands_join_the_bias(join):
    check(graph(lambda e, x: e(join(conv(e, x), const(random(O, 1, 1)))), x=X), random(*X))


def test_normalisation_exported_as_a_product_and_a_sum():
    def body(e, x):
        scaled = e(op.multiply(conv(e, x), const(random(1, O, 1, 1, seed=7))))
        return e(op.add(scaled, const(random(1, O, 1, 1, seed=8))))

    check(graph(body, x=X), random(*X), rewrites=2)


def test_a_lone_bias_stays():
    assert_unmatched(FuseBatchNorm(), graph(conv, x=X))


def test_condition_1_constant_weight():
    before = graph(lambda e, x, w: norm(e, conv(e, x, weight=w)), x=X, w=W.shape)
    assert_refused(FuseBatchNorm(), before, 1, "the weight of the convolution is not constant")


@pytest.mark.parametrize("which", range(4))
def test_condition_2_constant_parameters(which):
    def body(e, x, p):
        return norm(e, conv(e, x), [*STATS[:which], p, *STATS[which + 1 :]])

    reason = "a parameter of the normalisation is not constant"
    assert_refused(FuseBatchNorm(), graph(body, x=X, p=(O,)), 2, reason)


def test_condition_3_stored_statistics():
    before = graph(lambda e, x: norm(e, conv(e, x), training=True), x=X)
    assert_refused(FuseBatchNorm(), before, 3, "the normalisation uses the statistics of the batch")


def over_height(e, x):
    return norm(e, conv(e, x), axis=2)


def by_row(e, x):
    return e(op.multiply(conv(e, x), const(random(1, 1, O, 1))))


def by_element(e, x):
    return e(op.multiply(conv(e, x), const(random(1, O, O, O))))


@pytest.mark.parametrize("body", [over_height, by_row, by_element])
def test_condition_4_over_channels(body):
    before = graph(body, x=(1, C, O, O))
    assert_refused(FuseBatchNorm(), before, 4, "a constant does not vary over the channels alone")


def test_condition_4_bias_over_channels():
    before = graph(lambda e, x, r: norm(e, conv(e, x, bias=r)), x=X, r=(1, O, 8, 8))
    assert_refused(FuseBatchNorm(), before, 4, "a constant does not vary over the channels alone")


def test_condition_5_float32():
    def body(e, x):
        y = e(op.nn.conv2d(x, const(W, "float16"), padding=[1, 1]))
        return e(op.multiply(y, const(2.0, "float16")))

    assert_refused(FuseBatchNorm(), graph(body, x=(X, "float16")), 5, "not all is float32")


def test_condition_6_other_users():
    def body(e, x):
        y = conv(e, x)
        return norm(e, y), y

    assert_refused(FuseBatchNorm(), graph(body, x=X), 6, "a value inside is used elsewhere")


def test_condition_7_shape():
    before = graph(lambda e, x: e(op.multiply(conv(e, x), const(random(1, 1, O, 1, 1)))), x=X)
    assert_refused(FuseBatchNorm(), before, 7, "a constant broadcasts the result")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_condition_8_finite(value):
    before = graph(lambda e, x: e(op.multiply(conv(e, x), const(value))), x=X)
    assert_refused(FuseBatchNorm(), before, 8, "a factor is not finite")


def test_condition_8_variance_of_zero():
    stats = [*STATS[:3], np.zeros(O, "float32")]
    before = graph(lambda e, x: norm(e, conv(e, x), stats, epsilon=0.0), x=X)
    assert_refused(FuseBatchNorm(), before, 8, "a factor is not finite")


def test_near_misses():
    def without_convolution(e, x):
        return norm(e, e(op.nn.relu(x)), [random(C)] * 4)

    def gated(e, x, g):
        return e(op.multiply(conv(e, x), g))

    def reciprocal(e, x):
        return e(op.divide(const(1.0), conv(e, x)))

    def statistics(e, x):
        args = [const(s) for s in STATS]
        return e(relax.TupleGetItem(e(op.nn.batch_norm(conv(e, x), *args, axis=1, training=False)), 1))

    assert_unmatched(FuseBatchNorm(), graph(without_convolution, x=X))
    assert_unmatched(FuseBatchNorm(), graph(gated, x=X, g=(1, O, 1, 1)))
    assert_unmatched(FuseBatchNorm(), graph(reciprocal, x=X))
    assert_unmatched(FuseBatchNorm(), graph(statistics, x=X))
