"""Convolutions and pooling against ONNX Runtime, with sizes that leave remainders."""

import numpy as np
import onnx
import onnxruntime
import pytest
import tvm
from onnx import helper, numpy_helper
from running import Runner, function, host, normal, targets
from sampled_plans import SampledPlans, rule_of
from tvm import relax, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import fuse, kernel_calls
from greencc.targets.tuning.planned import PlannedTarget
from greencc.targets.tuning.space import Space

CONVOLUTIONS = [
    # channels, outputs, height, width, kernel, stride, padding, groups
    (3, 8, 17, 17, 3, 1, 1, 1),
    (8, 12, 14, 14, 1, 1, 0, 1),
    (16, 16, 9, 11, 3, 2, 1, 16),
    (6, 9, 7, 7, 5, 2, 2, 3),
    (4, 32, 16, 32, 3, 1, 0, 1),
]


def run_onnx(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, pad: int, groups: int) -> np.ndarray:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[pad] * 4, strides=[stride] * 2, group=groups)
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_convolutions_by_weights_that_are_inputs(target: CpuTarget) -> None:
    parts = [
        (normal(k, c // g, n, n, seed=i) / np.float32(n), normal(k, seed=i + 50))
        for i, (c, k, _, _, n, _, _, g) in enumerate(CONVOLUTIONS)
    ]
    params = {f"x{i}": ((2, c, h, w), "float32") for i, (c, _, h, w, *_) in enumerate(CONVOLUTIONS)}
    weights = {f"w{i}": (weight.shape, "float32") for i, (weight, _) in enumerate(parts)}

    def body(emit, *values):
        results = []
        operands = zip(values, values[len(parts) :], parts, CONVOLUTIONS, strict=False)
        for x, weight, (_, bias), (*_, stride, pad, groups) in operands:
            y = emit(relax.op.nn.conv2d(x, weight, strides=stride, padding=[pad] * 4, groups=groups))
            y = emit(relax.op.add(y, relax.const(bias.reshape(1, -1, 1, 1))))
            results.append(emit(relax.op.nn.relu(y)))
        return results

    runner = Runner(function({**params, **weights}, body), target)
    assert runner.rules <= {"cpu-tiled-reduction", "cpu-elementwise"}
    arrays = [normal(*shape, seed=9) for shape, _ in params.values()]
    for x, (weight, bias), (*_, stride, pad, groups), got in zip(
        arrays, parts, CONVOLUTIONS, runner(*arrays, *(weight for weight, _ in parts)), strict=True
    ):
        np.testing.assert_allclose(got, run_onnx(x, weight, bias, stride, pad, groups), atol=2e-5, rtol=0)


def test_max_pool_and_a_symbolic_width() -> None:
    width = tirx.Var("w", "int64")

    def body(emit, fixed, symbolic):
        pooled = emit(relax.op.nn.max_pool2d(fixed, pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1)))
        weight = relax.const(np.full((2, 2, 3, 3), 0.5, np.float32))
        return [pooled, emit(relax.op.nn.conv2d(symbolic, weight, padding=(1, 1, 1, 1)))]

    runner = Runner(function({"a": ((1, 4, 11, 11), "float32"), "b": ((1, 2, 8, width), "float32")}, body))
    a, b = normal(1, 4, 11, 11), normal(1, 2, 8, 13)
    pooled, convolved = runner(a, b)
    padded = np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(pooled, windows.max((-1, -2)))
    weight = np.full((2, 2, 3, 3), 0.5, np.float32)
    want = run_onnx(b, weight, np.zeros(2, np.float32), 1, 1, 1)
    np.testing.assert_allclose(np.maximum(convolved, 0), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(2))
def test_pools_and_sums_by_drawn_plans(seed: int) -> None:
    n = tirx.Var("n", "int64")

    def body(emit, image, table):
        pooled = emit(relax.op.nn.avg_pool2d(image, (3, 2), (3, 2)))
        padded = emit(relax.op.nn.avg_pool2d(image, (3, 3), padding=(1, 1)))
        return [pooled, padded, emit(relax.op.sum(table, axis=[1]))]

    plans = SampledPlans(rule_of(host(), "cpu-tiled-reduction"), seed)
    module = function({"image": ((2, 24, 9, 20), "float32"), "table": ((n, 7, 40), "float32")}, body)
    runner = Runner(module, PlannedTarget(host(), plans))
    assert runner.rules == {"cpu-tiled-reduction"}
    assert len(plans.taken) == 3
    image, table = normal(2, 24, 9, 20), normal(5, 7, 40)
    pooled, padded, summed = runner(image, table)
    np.testing.assert_allclose(pooled, image.reshape(2, 24, 3, 3, 10, 2).mean((3, 5)), atol=1e-6, rtol=0)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
    inside = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones((9, 20)), 1), (3, 3)).sum((-1, -2))
    np.testing.assert_allclose(padded, windows.sum((-1, -2)) / inside, atol=1e-6, rtol=0)
    np.testing.assert_allclose(summed, table.sum(1), atol=3e-6, rtol=0)


def test_the_default_plan_is_the_schedule_without_one() -> None:
    module = function(
        {"x": ((2, 24, 9, 20), "float32")}, lambda emit, x: emit(relax.op.nn.avg_pool2d(x, (3, 2), (3, 2)))
    )
    lowered, _ = fuse(host().legalize(module))
    (call,) = kernel_calls(lowered)
    func, rule = lowered[call.args[0]], rule_of(host(), "cpu-tiled-reduction")
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    plain, planned = (rule.apply(func, frozenset(), plan) for plan in (None, space.default))
    assert isinstance(plain, Scheduled)
    assert isinstance(planned, Scheduled)
    tvm.ir.assert_structural_equal(plain.func, planned.func)
    assert rule.apply(func, frozenset(), {**space.default, "columns": 3}) == Declined("columns is 3")
