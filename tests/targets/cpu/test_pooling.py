"""Maxima over windows against ONNX Runtime: every border, stride and width, infinities and NaN-free numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from running import Runner, function, normal, targets
from tvm import tirx

from greencc.kernels import kernel
from greencc.targets.cpu.target import CpuTarget

Window = tuple[int, int, int, int]


def output_size(size: int, window: Window) -> int:
    count, stride, begin, end = window
    return (size + begin + end - count) // stride + 1


def reference(x: np.ndarray, rows: Window, columns: Window) -> np.ndarray:
    pads = [rows[2], columns[2], rows[3], columns[3]]
    node = helper.make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=[rows[0], columns[0]], strides=[rows[1], columns[1]], pads=pads
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "pool", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def runner(shape: tuple[Any, ...], rows: Window, columns: Window, target: CpuTarget) -> Runner:
    windows = (rows, columns)
    out = [output_size(int(size), window) for size, window in zip(shape[2:], windows, strict=True)]
    pads = [w[2] for w in windows] + [w[3] for w in windows]
    options = {
        "kind": "max", "kernel": [w[0] for w in windows], "strides": [w[1] for w in windows], "dilations": [1, 1],
    }  # fmt: skip
    return Runner(
        function({"x": (shape, "float32")}, lambda emit, x: emit(kernel("pool", [x], [*out, *pads], **options))), target
    )


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_the_windows_of_image_networks(target: CpuTarget) -> None:
    batch = tirx.Var("b", "int64")
    sizes = ((111, (3, 2, 0, 0)), (112, (3, 2, 1, 1)), (27, (2, 2, 0, 0)), (14, (3, 1, 1, 1)), (5, (5, 1, 2, 2)))
    for size, window in sizes:
        made = runner((batch, 3, size, size + 1), window, window, target)
        assert made.rules == {"cpu-pool"}
        for count in (1, 2):
            x = normal(count, 3, size, size + 1)
            x[0, 0, 0, :3] = -np.inf
            np.testing.assert_array_equal(made(x)[0], reference(x, window, window))


windows = st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), windows, windows)
@example(1, 1, (3, 1, 1, 1), (3, 2, 1, 1))
@example(4, 33, (2, 2, 1, 0), (4, 2, 0, 3))
def test_any_window(height: int, width: int, rows: Window, columns: Window) -> None:
    """Where a window might hold no element at all, another rule serves."""
    for size, (count, _, begin, end) in ((height, rows), (width, columns)):
        if size + begin + end < count or begin >= count or end >= count:
            return
    target = targets()[-1]
    x = normal(1, 2, height, width)
    np.testing.assert_array_equal(runner(x.shape, rows, columns, target)(x)[0], reference(x, rows, columns))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_bytes_are_pooled_by_the_same_kernel(kind: str) -> None:
    info, shape = np.iinfo(kind), (2, 3, 11, 21)
    options = {"kind": "max", "kernel": [3, 2], "strides": [2, 1], "dilations": [1, 1]}
    dims = [6, 20, 1, 0, 1, 0]
    pooled = Runner(function({"x": (shape, kind)}, lambda emit, x: emit(kernel("pool", [x], dims, **options))))
    assert pooled.rules == {"cpu-pool"}
    x = np.random.default_rng(0).integers(info.min, info.max + 1, shape).astype(kind)
    x[:, :, :4] = info.min  # what pads a window never wins over the lowest level
    wanted = reference(x.astype(np.float32), (3, 2, 1, 1), (2, 1, 0, 0))
    np.testing.assert_array_equal(pooled(x)[0], wanted)
