"""Convolutions with constant weights and what is fused behind them, against ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from running import Runner, function, normal, targets
from tvm import relax, tirx

from greencc.targets.packing import ChannelBlocks


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int]
    filters: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    @property
    def weight(self) -> np.ndarray:
        return normal(self.filters, self.shape[1] // self.groups, *self.kernel, seed=1)


CASES = [
    Case((1, 3, 32, 32), 16, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
    Case((1, 16, 14, 14), 24, (3, 3), pads=(1, 1, 1, 1)),
    Case((1, 32, 7, 7), 20, (3, 3), pads=(1, 1, 1, 1)),
    Case((2, 16, 15, 13), 7, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    Case((1, 16, 7, 7), 32),
    Case((3, 8, 2, 3), 5),
    Case((1, 8, 28, 28), 12, stride=(2, 2)),
    Case((1, 12, 9, 9), 12, groups=3),
    Case((1, 8, 20, 20), 8, (3, 3), dilation=(2, 3), pads=(2, 3, 2, 3)),
    Case((1, 8, 1, 50), 16, (1, 5)),
    Case((1, 6, 12, 40), 10, (5, 3), (1, 2), pads=(0, 1, 2, 3)),
    Case((1, 4, 6, 6), 4, (3, 3), (3, 3), pads=(2, 0, 0, 2), groups=2),
    Case((2, 8, 7, 7), 16, (3, 3), pads=(1, 1, 1, 1), groups=8),
]


def compiled(case: Case, target) -> Runner:
    top, left, bottom, right = case.pads

    def body(emit, x, residual):
        y = emit(
            relax.op.nn.conv2d(
                x, relax.const(case.weight), case.stride, (top, left, bottom, right), case.dilation, case.groups
            )
        )
        y = emit(relax.op.add(y, relax.const(normal(1, case.filters, 1, 1, seed=2))))
        return [emit(relax.op.nn.relu(emit(relax.op.add(y, residual))))]

    shapes = {"x": (case.shape, "float32"), "residual": (output(case, normal(*case.shape)).shape, "float32")}
    return Runner(function(shapes, body), target)


def output(case: Case, x: np.ndarray) -> np.ndarray:
    """The bare convolution by ONNX Runtime."""
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=case.stride, dilations=case.dilation, pads=case.pads, group=case.groups
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", 1, x.shape)], [value("y", 1, None)], [onnx.numpy_helper.from_array(case.weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def check(case: Case, target) -> None:
    x = normal(*case.shape)
    bare = output(case, x)
    residual = normal(*bare.shape, seed=3)
    runner = compiled(case, target)
    assert "cpu-convolution" in runner.rules
    (got,) = runner(x, residual)
    wanted = np.maximum(bare + normal(1, case.filters, 1, 1, seed=2) + residual, 0)
    np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_onnx_runtime(case: Case, target) -> None:
    check(case, target)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_sizes_equal_onnx_runtime(data) -> None:
    pick = data.draw
    kernel = pick(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = pick(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups = pick(st.integers(1, 3))
    pads = pick(st.tuples(*[st.integers(0, 2)] * 4))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [pick(st.integers(max(e - a - b, 1), 24)) for e, a, b in zip(extents, pads[:2], pads[2:], strict=True)]
    check(
        Case(
            (pick(st.integers(1, 2)), groups * pick(st.integers(1, 5)), *size), groups * pick(st.integers(2, 9)),
            kernel, pick(st.tuples(st.integers(1, 3), st.integers(1, 3))), dilation, pads, groups,
        ),
        targets()[0],
    )  # fmt: skip


@pytest.mark.parametrize("pad", [0, 1])
def test_a_symbolic_batch(pad: int) -> None:
    case = Case((1, 5, 9, 20), 6, (3, 3), pads=(pad,) * 4)

    def body(emit, x):
        return [emit(relax.op.nn.conv2d(x, relax.const(case.weight), padding=pad))]

    runner = Runner(function({"x": ((tirx.Var("n", "int64"), *case.shape[1:]), "float32")}, body))
    assert runner.rules == {"cpu-convolution"}
    for count in (1, 3):
        x = normal(count, *case.shape[1:])
        np.testing.assert_allclose(runner(x)[0], output(case, x), atol=1e-4, rtol=1e-5)


def test_depthwise_convolutions_are_left_to_another_rule() -> None:
    def body(emit, x):
        return [emit(relax.op.nn.conv2d(x, relax.const(normal(8, 1, 3, 3)), padding=1, groups=8))]

    assert "cpu-convolution" not in Runner(function({"x": ((1, 8, 9, 9), "float32")}, body)).rules


def test_packing_puts_neighbouring_filters_side_by_side() -> None:
    weight = normal(10, 3, 2, 2)
    packed = ChannelBlocks(4, 2).pack(weight)
    assert packed.shape == ChannelBlocks(4, 2).shape(10, 3, 2, 2) == (4, 3, 2, 2, 4)
    np.testing.assert_array_equal(packed[0, ..., 2], weight[2])
    np.testing.assert_array_equal(packed[3, ..., 0], weight[9])
    assert not packed[3, ..., 1:].any()
