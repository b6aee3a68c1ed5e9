from __future__ import annotations

import numpy as np
import pytest
from builders import assert_refused, assert_unmatched, const, graph, ops, rewritten, run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import run_numpy
from tvm import relax
from tvm.relax import op

from greencc.kernels import kernel
from greencc.passes.sink_dequantize import SinkDequantize

PASS = SinkDequantize()
SCALE, ZERO = 0.1, 7
DIFFER = "the levels differ in scale, zero point or type"


def dequantize(e, q, scale=SCALE, zero=ZERO, *, kind="uint8", axis=0, dtype="float32"):
    zeros = [] if zero is None else [const(zero, kind)]
    return e(kernel("dequantize", [q, const(scale, dtype), *zeros], axis=axis, block=0, dtype=dtype))


def quantize(e, x, scale=SCALE, zero=ZERO, *, kind="uint8", axis=0, dtype="float32"):
    zeros = [] if zero is None else [const(zero, kind)]
    return e(kernel("quantize", [x, const(scale, dtype), *zeros], axis=axis, block=0, dtype=kind))


def between(body, shape=("n", 4), kind="uint8", scale=SCALE, zero=ZERO):
    """quantize(body(dequantize(q)))."""

    def whole(e, q):
        return quantize(e, body(e, dequantize(e, q, scale, zero, kind=kind)), scale, zero, kind=kind)

    return graph(whole, q=(shape, kind))


def max_pool(e, x):
    return e(kernel("pool", [x], [2, 2, 1, 1, 0, 0], kind="max", kernel=[3, 3], strides=[2, 2], dilations=[1, 1]))


def test_a_pair_that_cancels_goes():
    assert ops(rewritten(PASS, between(lambda e, x: x))) == []


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-30, np.finfo(np.float32).smallest_normal, 2.0**110])
def test_quantizing_restores_every_level(kind, scale):
    info = np.iinfo(kind)
    levels = np.arange(info.min, info.max + 1).astype(kind)
    module = between(lambda e, x: x, levels.shape, kind, scale, 5)
    assert ops(rewritten(PASS, module)) == []
    np.testing.assert_array_equal(run_numpy(module, levels)[0], levels)


LAYOUTS = {
    "reshape": lambda e, x: e(op.reshape(x, [4, 2])),
    "permute_dims": lambda e, x: e(op.permute_dims(x)),
    "strided_slice": lambda e, x: e(op.strided_slice(x, [1], [1], [3])),
    "take": lambda e, x: e(op.take(x, const([1, 0], "int64"), axis=0, mode="clip")),
    "broadcast_to": lambda e, x: e(op.broadcast_to(x, [3, 2, 4])),
    "concat": lambda e, x: e(op.concat([x, x], 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_operators_move_levels(name):
    assert ops(rewritten(PASS, between(LAYOUTS[name], (2, 4)))) == [name]


def test_max_pooling_orders_levels():
    module = between(max_pool, ("n", 2, 5, 5))
    after = rewritten(PASS, module)
    assert ops(after) == ["greencc.kernel"]
    assert str(after["main"].ret_ty.fields[0].dtype) == "uint8"


@pytest.mark.parametrize(
    ("zero", "kind", "expected"), [(7, "uint8", ["maximum"]), (0, "uint8", []), (None, "int8", ["maximum"])]
)
def test_relu_holds_levels_above_the_zero_point(zero, kind, expected):
    module = between(lambda e, x: e(op.nn.relu(x)), kind=kind, zero=zero)
    assert ops(rewritten(PASS, module)) == expected


def test_clip_holds_levels_between_those_of_its_bounds():
    module = between(lambda e, x: e(op.clip(x, 0.0, 6.0)), kind="int8", zero=-100)
    assert ops(rewritten(PASS, module)) == ["minimum", "maximum"]
    wide = between(lambda e, x: e(op.clip(x, -1e30, float("inf"))))
    assert ops(rewritten(PASS, wide)) == []


def test_several_operators_and_sources():
    def body(e, a, b):
        both = [e(op.nn.relu(dequantize(e, a))), dequantize(e, b)]
        return quantize(e, e(op.permute_dims(e(op.concat(both, 0)))))

    module = graph(body, a=((2, 4), "uint8"), b=((3, 4), "uint8"))
    assert ops(rewritten(PASS, module)) == ["maximum", "concat", "permute_dims"]


def test_a_source_that_something_else_reads_stays():
    def body(e, q):
        x = dequantize(e, q)
        return quantize(e, e(op.permute_dims(x))), x

    after = rewritten(PASS, graph(body, q=((2, 4), "uint8")))
    assert sorted(ops(after)) == ["greencc.kernel", "permute_dims"]


def test_other_operators_are_left():
    assert_unmatched(PASS, between(lambda e, x: e(op.add(x, x))))
    assert_unmatched(PASS, between(lambda e, x: e(op.concat([x, const(np.zeros((1, 4)))], 0)), (2, 4)))
    mean = {"kind": "mean", "kernel": [3, 3], "strides": [2, 2], "dilations": [1, 1]}
    assert_unmatched(PASS, between(lambda e, x: e(kernel("pool", [x], [2, 2, 1, 1, 0, 0], **mean)), (1, 2, 5, 5)))
    assert_unmatched(PASS, graph(lambda e, x: quantize(e, e(op.nn.relu(x))), x=(2, 4)))


@pytest.mark.parametrize("other", [{"scale": 0.2}, {"zero": 8}, {"zero": None}, {"zero": 7, "kind": "int8"}])
def test_condition_1_one_scheme(other):
    module = graph(lambda e, q: quantize(e, dequantize(e, q), **{"zero": ZERO, **other}), q=((2, 4), "uint8"))
    assert_refused(PASS, module, 1, DIFFER)


def test_condition_1_schemes_that_are_not_one():
    def columns(e, q):
        scales, zeros = np.arange(1, 5), np.arange(4)
        return quantize(e, dequantize(e, q, scales, zeros, axis=1), scales, zeros, axis=1)

    assert_refused(PASS, graph(columns, q=((2, 4), "uint8")), 1, DIFFER)

    def two(e, a, b):
        return quantize(e, e(op.concat([dequantize(e, a), dequantize(e, b, 0.2)], 0)))

    assert_refused(PASS, graph(two, a=((2, 4), "uint8"), b=((2, 4), "uint8")), 1, DIFFER)


@pytest.mark.parametrize("scale", [0.0, -0.1, 1e-39, np.inf, np.nan, 2.0**121])
def test_condition_2_levels_come_back(scale):
    module = between(lambda e, x: e(op.permute_dims(x)), (2, 4), scale=scale)
    if np.isnan(scale):  # not equal to itself
        assert run(PASS, module).rewrites == 0
        return
    assert_refused(PASS, module, 2, "the scale does not restore levels")


def test_condition_3_used_elsewhere():
    def body(e, q):
        pooled = max_pool(e, dequantize(e, q))
        return quantize(e, pooled), pooled

    module = graph(body, q=((1, 2, 5, 5), "uint8"))
    assert_refused(PASS, module, 3, "a value inside the form is used elsewhere")


def test_condition_4_float32():
    def body(e, q):
        return quantize(e, dequantize(e, q, dtype="float16"), dtype="float16")

    assert_refused(PASS, graph(body, q=((2, 4), "uint8")), 4, "what is dequantised is not float32")


STEPS = st.lists(
    st.one_of(
        st.just(lambda e, x: e(op.nn.relu(x))),
        st.just(lambda e, x: e(op.permute_dims(x))),
        st.just(lambda e, x: e(op.reshape(x, list(reversed([int(d) for d in x.ty.shape.values]))))),
        st.just(lambda e, x: e(op.concat([x, x], 0))),
        st.tuples(st.floats(-30, 30, width=32), st.floats(-30, 30, width=32)).map(
            lambda bounds: lambda e, x: e(op.clip(x, float(min(bounds)), float(max(bounds))))
        ),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from(["uint8", "int8"]), st.floats(2**-10, 10, width=32), st.data())
def test_any_chain_gives_equal_levels(steps, kind, scale, data):
    info = np.iinfo(kind)
    zero = data.draw(st.integers(int(info.min), int(info.max)))

    def body(e, x):
        for step in steps:
            x = step(e, x)
        return x

    module = between(body, (16, 16), kind, scale, zero)
    after = rewritten(PASS, module)
    assert "greencc.kernel" not in ops(after)
    levels = np.arange(info.min, info.max + 1).reshape(16, 16).astype(kind)
    (wanted,), (got,) = run_numpy(module, levels), run_numpy(after, levels)
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_pooling_gives_equal_levels(seed, zero):
    module = between(max_pool, (1, 2, 5, 5), zero=zero)
    levels = np.random.default_rng(seed).integers(0, 256, (1, 2, 5, 5)).astype(np.uint8)
    (wanted,), (got,) = run_numpy(module, levels), run_numpy(rewritten(PASS, module), levels)
    np.testing.assert_array_equal(got, wanted)


def test_the_call_carries_the_name_of_the_quantization():
    after = rewritten(PASS, between(lambda e, x: e(op.permute_dims(x)), (2, 4)))
    (binding,) = [b for b in after["main"].body.blocks[0].bindings if isinstance(b.value, relax.Call)]
    assert binding.value.span.source_name.name == "permute_dims.2"
