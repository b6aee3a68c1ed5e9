"""Convolutions on a GPU with what is fused behind them, against ONNX Runtime: layers of image networks, in small."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from gpu_running import GpuRunner, device
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tvm import relax, te, tirx

from greencc.kernels import kernel
from greencc.ops import Conv2dAttrs, integer_conv2d
from greencc.targets.gpu.schedules.convolution.form import read_reduction
from greencc.targets.gpu.schedules.convolution.plan import PLANS, Plan
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan


@dataclass(frozen=True)
class Case:
    """A convolution; sizes of one or two spatial axes."""

    shape: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    groups: int = 1
    rule: str = "gpu-convolution"

    @property
    def weight(self) -> np.ndarray:
        return normal(self.filters, self.shape[1] // self.groups, *self.kernel, seed=1)

    def emit(self, x: relax.Expr, weight: relax.Expr | None = None) -> relax.Call:
        conv = relax.op.nn.conv2d if len(self.kernel) == 2 else relax.op.nn.conv1d
        given_weight = relax.const(self.weight) if weight is None else weight
        return conv(x, given_weight, list(self.stride), list(self.pads), list(self.dilation), self.groups)


CASES = {
    "a stem: few channels, a large filter": Case((1, 3, 40, 40), 16, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
    "3 x 3": Case((1, 16, 14, 14), 24, (3, 3), pads=(1, 1, 1, 1)),
    "3 x 3 of many channels on few positions": Case((1, 130, 7, 7), 20, (3, 3), pads=(1, 1, 1, 1)),
    "stride, a batch, filters that fill no tile": Case((2, 16, 15, 13), 7, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "1 x 1": Case((1, 16, 7, 7), 32),
    "1 x 1 on hardly a position": Case((3, 8, 2, 3), 5),
    "1 x 1 on many positions": Case((2, 20, 60, 70), 70),
    "1 x 1 with stride": Case((1, 8, 28, 28), 12, stride=(2, 2)),
    "1 x 1 in groups": Case((1, 24, 9, 9), 24, groups=3),
    "dilation": Case((1, 8, 20, 20), 8, (3, 3), dilation=(2, 3), pads=(2, 3, 2, 3)),
    "one row": Case((1, 8, 1, 50), 16, (1, 5), pads=(0, 2, 0, 2)),
    "padding of its own on each side": Case((1, 6, 12, 40), 10, (5, 3), (1, 2), pads=(0, 1, 2, 3)),
    "groups of two filters": Case((1, 4, 6, 6), 4, (3, 3), (3, 3), pads=(2, 0, 0, 2), groups=2, rule="gpu-window"),
    "depthwise": Case((1, 12, 14, 14), 12, (3, 3), (2, 2), pads=(1, 1, 1, 1), groups=12, rule="gpu-window"),
    "depthwise 5 x 5, two filters a channel": Case(
        (2, 8, 3, 20), 16, (5, 5), pads=(2, 2, 2, 2), groups=8, rule="gpu-window"
    ),
    "one spatial axis": Case((2, 6, 33), 10, (5,), (2,), (1,), (2, 1)),
}


def output(case: Case, x: np.ndarray) -> np.ndarray:
    """The bare convolution by ONNX Runtime."""
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=case.stride, dilations=case.dilation, pads=case.pads, group=case.groups
    )
    return run_onnx(node, {"x": x}, {"w": case.weight})


def run_onnx(
    node: onnx.NodeProto, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray], result: type = np.float32
) -> np.ndarray:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(result))
    value = helper.make_tensor_value_info
    types = [value(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in inputs.items()]
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()]
    graph = helper.make_graph([node], "g", types, [value(node.output[0], kind, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def channels(case: Case, seed: int) -> np.ndarray:
    """A number for each filter."""
    return normal(1, case.filters, *[1] * len(case.kernel), seed=seed)


def check(cases: list[Case]) -> None:
    """Each with what a batch norm leaves, a residual and a relu behind it, all in one kernel."""
    arrays: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    for case in cases:
        x = normal(*case.shape)
        bare = output(case, x)
        residual = normal(*bare.shape, seed=3)
        wanted.append(np.maximum(bare * channels(case, 4) + channels(case, 2) + residual, 0))
        arrays += [x, residual]

    def body(emit, *values):
        results = []
        for case, x, residual in zip(cases, values[::2], values[1::2], strict=True):
            y = emit(relax.op.multiply(emit(case.emit(x)), relax.const(channels(case, 4))))
            y = emit(relax.op.add(emit(relax.op.add(y, relax.const(channels(case, 2)))), residual))
            results.append(emit(relax.op.nn.relu(y)))
        return results

    runner = GpuRunner(function({f"x{i}": (array.shape, "float32") for i, array in enumerate(arrays)}, body))
    assert runner.rules == {case.rule for case in cases}
    assert len(runner.lowered.calls) == len(cases)
    for case, got, want in zip(cases, runner(*arrays), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4, rtol=2e-5, err_msg=str(case))


def test_the_layers_of_image_networks() -> None:
    check(list(CASES.values()))


sizes = st.integers


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    kernel = draw(st.tuples(sizes(1, 4), sizes(1, 4)))
    dilation = draw(st.tuples(sizes(1, 2), sizes(1, 2)))
    groups, pads = draw(sizes(1, 3)), draw(st.tuples(*[sizes(0, 2)] * 4))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(sizes(max(e - a - b, 1), 24)) for e, a, b in zip(extents, pads[:2], pads[2:], strict=True)]
    shape = (draw(sizes(1, 2)), groups * draw(sizes(1, 5)), *size)
    stride = draw(st.tuples(sizes(1, 3), sizes(1, 3)))
    each = draw(sizes(2, 9))
    rule = "gpu-convolution" if each >= 4 else "gpu-window"
    return Case(shape, groups * each, kernel, stride, dilation, pads, groups, rule)


@settings(max_examples=3, deadline=None)
@given(st.lists(any_case(), min_size=4, max_size=4))
def test_any_sizes(cases: list[Case]) -> None:
    check(cases)


def test_symbolic_sizes() -> None:
    """Batch, rows and columns; a batch alone; and the length of a sequence."""
    n, h, w = (tirx.Var(name, "int64") for name in "nhw")
    cases = {
        "conv": (CASES["3 x 3"], ((n, 16, h, w),)),
        "stride": (CASES["stride, a batch, filters that fill no tile"], ((n, 16, h, w),)),
        "batch": (CASES["1 x 1"], ((n, 16, 7, 7),)),
        "depthwise": (CASES["depthwise"], ((n, 12, h, w),)),
        "sequence": (CASES["one spatial axis"], ((n, 6, w),)),
    }
    params: dict[str, Any] = {name: (shapes[0], "float32") for name, (_, shapes) in cases.items()}

    def body(emit, *values):
        return [emit(relax.op.nn.relu(emit(c.emit(x)))) for (c, _), x in zip(cases.values(), values, strict=True)]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-convolution", "gpu-window"}
    for actual in ({"n": 1, "h": 9, "w": 20}, {"n": 3, "h": 30, "w": 17}):
        arrays = [normal(*(actual.get(getattr(d, "name", d), d) for d in shape)) for shape, _ in params.values()]
        for (name, (case, _)), x, got in zip(cases.items(), arrays, runner(*arrays), strict=True):
            np.testing.assert_allclose(got, np.maximum(output(case, x), 0), atol=2e-4, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_tiles_are_shared_out_evenly(plan: Plan) -> None:
    assert plan.threads % plan.columns == 0
    assert plan.depth * plan.slices % (plan.threads // plan.columns) == 0


def test_weights_that_are_computed() -> None:
    """They are read as they are, not packed."""
    case = CASES["padding of its own on each side"]
    params = {"x": (case.shape, "float32"), "w": (case.weight.shape, "float32")}
    runner = GpuRunner(function(params, lambda emit, x, w: emit(case.emit(x, w))))
    assert runner.rules == {"gpu-convolution"}
    x = normal(*case.shape)
    np.testing.assert_allclose(runner(x, case.weight)[0], output(case, x), atol=2e-4, rtol=2e-5)


def test_images_that_are_stored_in_float16() -> None:
    """Sums are of float32: only the result is rounded."""
    case = CASES["3 x 3"]
    x = normal(*case.shape).astype(np.float16)
    weight = case.weight.astype(np.float16)
    runner = GpuRunner(
        function({"x": (case.shape, "float16")}, lambda emit, x: emit(case.emit(x, relax.const(weight))))
    )
    assert runner.rules == {"gpu-convolution"}
    (got,) = runner(x)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=case.pads)
    want = run_onnx(node, {"x": x.astype(np.float32)}, {"w": weight.astype(np.float32)})
    np.testing.assert_allclose(got, want.astype(np.float16), rtol=2**-10, atol=1e-4)


TRANSPOSED = {
    "windows that overlap": ((1, 6, 5, 7), (6, 4, 3, 3), (2, 2), 1),
    "windows side by side": ((2, 8, 6, 5), (8, 4, 2, 2), (2, 2), 1),
    "groups": ((1, 8, 4, 4), (8, 4, 3, 3), (1, 1), 2),
}


def test_transposed_convolutions() -> None:
    arrays, wanted = [], []
    for shape, filters, strides, groups in TRANSPOSED.values():
        x, w = normal(*shape), normal(*filters, seed=1)
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=strides, group=groups)
        arrays.append(x)
        wanted.append(run_onnx(node, {"x": x}, {"w": w}))

    def body(emit, *values):
        results = []
        for x, want, (_, filters, strides, groups) in zip(values, wanted, TRANSPOSED.values(), strict=True):
            weight = relax.const(normal(*filters, seed=1))
            options = {"strides": strides, "dilations": (1, 1), "groups": groups}
            results.append(emit(kernel("conv_transpose", [x, weight], [*want.shape[2:], 0, 0], **options)))
        return results

    runner = GpuRunner(function({f"x{i}": (x.shape, "float32") for i, x in enumerate(arrays)}, body))
    for name, got, want in zip(TRANSPOSED, runner(*arrays), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-5, err_msg=name)


BYTES = {
    "whole words": (Case((2, 16, 9, 11), 12, (3, 3), (2, 1), pads=(1, 1, 1, 1)), "gpu-convolution"),
    "a word that isn't full": (Case((1, 6, 8, 8), 9, (3, 3), dilation=(1, 2), pads=(1, 0, 2, 1)), "gpu-convolution"),
    "groups": (Case((1, 12, 7, 7), 24, groups=2), "gpu-convolution"),
    "depthwise": (Case((1, 8, 7, 7), 8, (3, 3), pads=(1, 1, 1, 1), groups=8), "gpu-window"),
}


@pytest.mark.parametrize("has_dot4", [True, False], ids=["dot products of words", "bytes one by one"])
def test_bytes_are_summed_exactly(has_dot4: bool) -> None:
    """Their words are padded with the zero point, whatever that is."""
    chosen = device()
    target = replace(chosen, gpu=replace(chosen.gpu, has_dot4=has_dot4 and chosen.gpu.has_dot4))
    rng, zero = np.random.default_rng(0), np.array(117, np.uint8)
    arrays = [rng.integers(0, 256, case.shape).astype(np.uint8) for case, _ in BYTES.values()]
    weights = [rng.integers(-128, 128, case.weight.shape).astype(np.int8) for case, _ in BYTES.values()]

    def body(emit, *values):
        results = []
        for x, weight, (case, _) in zip(values, weights, BYTES.values(), strict=True):
            attrs = Conv2dAttrs(case.stride, case.pads, case.dilation, case.groups)
            level = relax.const(zero.reshape(1))
            results.append(emit(integer_conv2d(x, level, relax.const(weight), attrs)))
        return results

    runner = GpuRunner(function({f"x{i}": (x.shape, "uint8") for i, x in enumerate(arrays)}, body), target)
    assert {rule for _, rule in BYTES.values()} <= runner.rules
    kinds = [str(w.dtype) for w in runner.lowered.weights.values() if w.ndim > 1 and w.size > 1]
    assert sorted(kinds) == ["int32"] * 3 + ["int8"]  # words, but for those of a channel's own
    for (name, (case, _)), x, weight, got in zip(BYTES.items(), arrays, weights, runner(*arrays), strict=True):
        node = helper.make_node(
            "ConvInteger", ["x", "w", "z"], ["y"], strides=case.stride, dilations=case.dilation, pads=case.pads,
            group=case.groups,
        )  # fmt: skip
        want = run_onnx(node, {"x": x}, {"w": weight, "z": zero}, np.int32)
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_what_precedes_is_not_written_out_where_it_would_grow_exponentially() -> None:
    """As the reflected positions of GridSample would, each of which reads the one before several times."""

    def grown(x: te.Tensor) -> te.Tensor:
        return te.compute((4, 8), lambda i, j: x[i, j] * (x[i, j] + 1.0))

    def total(maps: int) -> tirx.PrimFunc:
        x = value = te.placeholder((4, 8), "float32")
        for _ in range(maps):
            value = grown(value)
        k = te.reduce_axis((0, 8))
        return te.create_prim_func([x, te.compute((4,), lambda i: te.sum(value[i, k], axis=k))])

    assert not isinstance(read_reduction(total(3)), str)
    assert read_reduction(total(40)) == "what precedes can't be inlined"
