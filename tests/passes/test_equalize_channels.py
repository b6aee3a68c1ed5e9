"""equalize-channels: the formula, chains, depthwise convolutions, equal results, refusals; what int8 gains."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import reference
import tvm
from builders import (
    assert_refused,
    assert_same_values,
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

from greencc.ir import bindings_of, constant_array
from greencc.passes.base import PassContext
from greencc.passes.equalize_channels import EqualizeChannels

PASS = EqualizeChannels()
K, C, N = 6, 10, 5
# Sizes of channels, far apart.
SIZES = np.exp(2 * np.random.default_rng(7).standard_normal(C)).astype(np.float32)


def constants(module: tvm.IRModule) -> list[np.ndarray]:
    """Weights and biases in the order of their operators."""
    arrays = [
        constant_array(arg)
        for binding in bindings_of(module["main"])
        if isinstance(binding.value, relax.Call)
        for arg in binding.value.args
    ]
    return [array for array in arrays if array is not None]


def assert_same_results(before: tvm.IRModule, after: tvm.IRModule, x: np.ndarray) -> None:
    """Convolutions as TVM computes them in float32: equal but for rounding of sums whose terms are larger."""
    wanted, got = (run_by_tvm(module, x)[0] for module in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * float(np.abs(wanted).max()))


def feed_forward(
    first: np.ndarray, bias: object, second: np.ndarray, between: Callable[..., relax.Expr] = op.nn.relu
) -> tvm.IRModule:
    def body(e, x):
        biased = e(op.add(e(op.matmul(x, const(first))), const(bias)))
        return e(op.matmul(e(between(biased)), const(second)))

    return graph(body, x=("n", K))


def default() -> tvm.IRModule:
    return feed_forward(random(K, C) * SIZES, random(C, seed=1), random(C, N, seed=2))


@pytest.mark.parametrize("between", [op.nn.relu, lambda x: op.nn.leakyrelu(x, 0.1)])
def test_both_sides_get_the_same_sizes_by_the_formula(between: Callable[..., relax.Expr]) -> None:
    first, bias, second = random(K, C) * SIZES, random(C, seed=1), random(C, N, seed=2)
    before = feed_forward(first, bias, second, between)
    after = rewritten(PASS, before)
    ranges = np.abs(first).max(axis=0).astype(np.float64), np.abs(second).max(axis=1).astype(np.float64)
    factors = np.sqrt(ranges[0] * ranges[1]) / ranges[1]
    found = constants(after)
    for array, wanted in zip(found, (first / factors, bias / factors, second * factors[:, None]), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found[0]).max(axis=0), np.abs(found[2]).max(axis=1), rtol=1e-6)
    assert_same_values(before, after, random(4, K), rtol=1e-5, atol=1e-6)


def test_one_bias_for_all_channels_and_none() -> None:
    before = feed_forward(random(K, C) * SIZES, 0.5, random(C, N, seed=2))
    after = rewritten(PASS, before)
    assert [array.shape for array in constants(after)] == [(K, C), (C,), (C, N)]
    assert_same_values(before, after, random(4, K), rtol=1e-5, atol=1e-6)

    def bare(e, x):
        return e(op.matmul(e(op.matmul(x, const(random(K, C) * SIZES))), const(random(C, N))))

    before = graph(bare, x=(4, K))
    assert_same_values(before, rewritten(PASS, before), random(4, K), rtol=1e-5, atol=1e-6)


def test_channels_without_weights_stay() -> None:
    first, second = random(K, C) * SIZES, random(C, N, seed=2)
    first[:, 3], second[5] = 0, 0
    before = feed_forward(first, np.ones(C), second)
    after = rewritten(PASS, before)
    np.testing.assert_array_equal(constants(after)[1][[3, 5]], [1, 1])
    assert_same_values(before, after, random(4, K), rtol=1e-5, atol=1e-6)


def mobile_block(strides: int = 2) -> tvm.IRModule:
    """A 1x1 convolution, a depthwise one and another 1x1, as in MobileNet."""
    weights = (
        random(C, K, 1, 1) * SIZES[:, None, None, None],
        random(C, 1, 3, 3, seed=1) * SIZES[::-1, None, None, None],
        random(N, C, 1, 1, seed=2),
    )

    def body(e, x):
        x = e(op.nn.relu(e(op.add(e(op.nn.conv2d(x, const(weights[0]))), const(random(1, C, 1, 1))))))
        x = e(op.nn.conv2d(x, const(weights[1]), strides=strides, padding=1, groups=C))
        x = e(op.nn.relu(e(op.add(x, const(random(C, 1, 1, seed=4))))))
        return e(op.nn.conv2d(x, const(weights[2])))

    return graph(body, x=(2, K, 8, 8))


def test_depthwise_convolutions_stand_between_two_links() -> None:
    """All three get the geometric mean of their sizes (section 4.1 of the paper)."""
    before = mobile_block()
    after = rewritten(PASS, before, 2)
    old, new = ([a for a in constants(module) if a.ndim == 4 and a.shape[0] > 1] for module in (before, after))

    def sizes(weights: list[np.ndarray]) -> np.ndarray:
        per_output = [np.abs(w).max(axis=(1, 2, 3)) for w in weights[:2]]
        return np.stack([*per_output, np.abs(weights[2]).max(axis=(0, 2, 3))]).astype(np.float64)

    mean = np.prod(sizes(old), axis=0) ** (1 / 3)
    # Links of a chain are settled to a thousandth.
    np.testing.assert_allclose(sizes(new), np.stack([mean] * 3), rtol=5e-3)
    assert_same_results(before, after, random(2, K, 8, 8))


def test_links_of_a_chain_are_all_equal_in_the_end() -> None:
    weights = [random(8, 8, seed=i) * np.exp(random(8, seed=i + 10)) for i in range(5)]

    def body(e, x):
        for weight in weights[:-1]:
            x = e(op.nn.relu(e(op.add(e(op.matmul(x, const(weight))), const(random(8))))))
        return e(op.matmul(x, const(weights[-1])))

    before = graph(body, x=(3, 8))
    after = rewritten(PASS, before, 4)
    found = [array for array in constants(after) if array.ndim == 2]
    for first, second in itertools.pairwise(found):
        ratio = np.abs(first).max(axis=0) / np.abs(second).max(axis=1)
        np.testing.assert_allclose(ratio, 1, rtol=0.01)
    assert_same_values(before, after, random(3, 8), rtol=1e-5, atol=1e-6)


def test_grouped_convolutions_may_come_first_and_layouts_have_channels_last() -> None:
    def grouped(e, x):
        x = e(op.nn.conv2d(x, const(random(C, 3, 3, 3) * SIZES[:, None, None, None]), groups=2))
        return e(op.nn.conv2d(e(op.nn.relu(x)), const(random(N, C, 1, 1, seed=1))))

    def last(e, x):
        x = e(op.nn.conv2d(x, const(random(3, 3, K, C) * SIZES), data_layout="NHWC", kernel_layout="HWIO"))
        return e(op.matmul(e(op.nn.relu(x)), const(random(C, N))))

    for body, shape in ((grouped, (2, K, 6, 6)), (last, (2, 6, 6, K))):
        before = graph(body, x=shape)
        after = rewritten(PASS, before)
        assert_same_results(before, after, random(*shape))


def test_other_forms_are_left_alone() -> None:
    weights = const(random(K, C) * SIZES), const(random(C, N))

    def gelu(e, x):
        return e(op.matmul(e(op.nn.gelu(e(op.matmul(x, weights[0])))), weights[1]))

    def residual(e, x, y):
        return e(op.matmul(e(op.add(e(op.matmul(x, weights[0])), y)), weights[1]))

    def variable(e, x, y):
        return e(op.matmul(e(op.matmul(x, y)), weights[1]))

    def batch(e, x):
        return e(op.matmul(e(op.matmul(x, weights[0])), const(random(4, C, N))))

    def blocks(e, x):
        layout = {"data_layout": "NCHW2c", "kernel_layout": "OIHW2i2o", "out_layout": "NCHW2c"}
        first, second = (const(random(*shape)) for shape in ((C // 2, K // 2, 1, 1, 2, 2), (2, C // 2, 1, 1, 2, 2)))
        return e(op.nn.conv2d(e(op.nn.conv2d(x, first, **layout)), second, **layout))

    assert_unmatched(PASS, graph(gelu, x=(4, K)))
    assert_unmatched(PASS, graph(residual, x=(4, K), y=(4, C)))
    assert_unmatched(PASS, graph(variable, x=(4, K), y=(K, C)))
    assert_unmatched(PASS, graph(batch, x=(4, K)))
    assert_unmatched(PASS, graph(blocks, x=(1, K // 2, 4, 4, 2)))


def quantised(module: tvm.IRModule, weight_bits: int = 8) -> tvm.IRModule:
    """The module with its matrices in levels that all their channels share a scale of, as hardware without more has."""
    from greencc.ir import constant, substitute
    from greencc.passes.graph import rebuild

    most = 2 ** (weight_bits - 1) - 1
    replaced = {}
    for binding in bindings_of(module["main"]):
        call = binding.value
        if isinstance(call, relax.Call) and call.op.name == "relax.matmul":
            weight = constant_array(call.args[1])
            scale = np.abs(weight).max() / most
            levels = (np.rint(weight / scale) * scale).astype(np.float32)
            value = substitute(call, {call.args[1]: constant(levels)})
            replaced[binding.var] = lambda builder, value=value: value
    result = module.clone()
    result.update_func(module.get_global_var("main"), rebuild(module["main"], replaced, owner="test"))
    return result


def test_channels_of_one_size_lose_less_by_a_shared_scale() -> None:
    before, x = default(), random(64, K)
    wanted = reference.evaluate(before, x)[0]
    modules = (before, rewritten(PASS, before))
    lost = [np.linalg.norm(reference.evaluate(quantised(module), x)[0] - wanted) for module in modules]
    assert lost[1] < 0.5 * lost[0]


def test_quantize_int8_follows() -> None:
    from greencc.passes.pipeline import run_pipeline
    from greencc.passes.registry import parse_pipeline

    passes = parse_pipeline("equalize-channels,quantize-int8{min-weights=1,measure=false}")
    module = run_pipeline(default(), passes, PassContext()).module
    assert ops(module) == ["greencc.quantized_matmul", "add", "nn.relu", "greencc.quantized_matmul"]


def test_condition_1_not_float32() -> None:
    def body(e, x):
        x = e(op.matmul(x, const(random(K, C) * SIZES, "float64")))
        return e(op.matmul(x, const(random(C, N), "float64")))

    assert_refused(PASS, graph(body, x=((4, K), "float64")), 1, "an operand or a result is not float32")


def test_condition_2_channels_elsewhere() -> None:
    def body(e, x):
        x = e(op.nn.conv2d(x, const(random(C, K, 1, 1) * SIZES[:, None, None, None])))
        return e(op.matmul(x, const(random(C, N))))

    reason = "the channels lie on different axes, or are not as many"
    assert_refused(PASS, graph(body, x=(2, K, 4, C)), 2, reason)
    assert_refused(PASS, feed_forward(random(K, 1) * 9, random(C), random(C, N)), 2, reason)


def test_condition_3_grouped() -> None:
    def body(e, x):
        x = e(op.nn.conv2d(x, const(random(C, K, 1, 1) * SIZES[:, None, None, None])))
        return e(op.nn.conv2d(x, const(random(4, C // 2, 1, 1)), groups=2))

    assert_refused(PASS, graph(body, x=(2, K, 4, 4)), 3, "the second convolution is grouped")


def test_condition_4_used_elsewhere() -> None:
    def body(e, x):
        x = e(op.nn.relu(e(op.matmul(x, const(random(K, C) * SIZES)))))
        return e(op.matmul(x, const(random(C, N)))), x

    assert_refused(PASS, graph(body, x=(4, K)), 4, "a value in between is used elsewhere")


@pytest.mark.parametrize("place", [0, 1])
def test_condition_5_not_finite(place: int) -> None:
    weights = [random(K, C) * SIZES, random(C, N)]
    weights[place][1, 1] = np.inf
    reason = "a weight is not finite, or a factor too large"
    assert_refused(PASS, feed_forward(weights[0], random(C), weights[1]), 5, reason)


def test_condition_5_factors_too_large() -> None:
    first, second = random(K, C), random(C, N)
    first[:, 2] *= np.float32(1e20)
    second[2] *= np.float32(1e-20)
    reason = "a weight is not finite, or a factor too large"
    assert_refused(PASS, feed_forward(first, random(C), second), 5, reason)


def test_condition_6_equal_already() -> None:
    assert_refused(PASS, rewritten(PASS, default()), 6, "the channels are equal already")
