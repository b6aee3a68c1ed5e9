"""Pooling on a GPU against ONNX Runtime: kinds, borders, dilations, the shapes of image networks, symbolic sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
from gpu_running import GpuRunner
from onnx import TensorProto, helper
from tvm import tirx

from greencc.kernels import kernel
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan

OPERATORS = {"max": "MaxPool", "mean": "AveragePool", "lp": "LpPool"}


@dataclass(frozen=True)
class Pool:
    """A pooling; pads are those before all axes, then those behind them."""

    kind: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...] = (1, 1)
    ceil: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def out(self, sizes: tuple[Any, ...], divide: Any) -> list[Any]:
        count = len(self.kernel)
        windows = zip(sizes, self.kernel, self.strides, self.pads, self.pads[count:], self.dilations, strict=False)
        spans = [(size + a + b - (k - 1) * d - 1, s) for size, k, s, a, b, d in windows]
        return [divide(span + (s - 1 if self.ceil else 0), s) + 1 for span, s in spans]

    def emit(self, x, out: list[Any]):
        options = {
            "kind": self.kind, "kernel": self.kernel, "strides": self.strides, "dilations": self.dilations,
            **self.options,
        }  # fmt: skip
        return kernel("pool", [x], [*out, *self.pads], **options)

    def reference(self, x: np.ndarray) -> np.ndarray:
        attributes: dict[str, Any] = {"ceil_mode": int(self.ceil)}
        if self.kind == "mean":
            attributes["count_include_pad"] = int(self.options.get("count_padding", False))
        if self.kind == "lp":
            attributes["p"] = self.options.get("power", 2)
        node = helper.make_node(
            OPERATORS[self.kind], ["x"], ["y"], kernel_shape=self.kernel, strides=self.strides, pads=self.pads,
            dilations=self.dilations, **attributes,
        )  # fmt: skip
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
        graph = helper.make_graph([node], "pool", values[:1], values[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])


POOLS = [
    Pool("max", (1, 3, 27, 28), (3, 3), (2, 2), (0, 0, 0, 0)),
    Pool("max", (2, 4, 28, 28), (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool("max", (1, 2, 13, 13), (3, 3), (2, 2), (0, 0, 0, 0), ceil=True),
    Pool("max", (1, 2, 12, 20), (2, 3), (1, 2), (1, 0, 0, 2), (2, 1)),
    Pool("max", (1, 2, 30), (3,), (2,), (1, 1), (1,)),
    Pool("mean", (1, 3, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1)),
    Pool("mean", (1, 3, 14, 14), (3, 3), (2, 2), (1, 1, 0, 0), options={"count_padding": True}),
    Pool("mean", (1, 5, 3, 40), (3, 2), (3, 2), (0, 0, 0, 0)),
    Pool("mean", (1, 2, 6, 7, 8), (2, 3, 2), (2, 1, 2), (0, 1, 1, 1, 1, 0), (1, 1, 1)),
    Pool("lp", (1, 2, 9, 9), (3, 3), (2, 2), (1, 1, 1, 1), options={"power": 2}),
    Pool("lp", (1, 2, 9, 9), (3, 3), (2, 2), (0, 0, 0, 0), options={"power": 1}),
    Pool("lp", (1, 2, 9, 9), (2, 2), (1, 1), (0, 0, 0, 0), options={"power": 3}),
]


def test_every_kind_of_pooling() -> None:
    arrays = [normal(*pool.shape, seed=i) for i, pool in enumerate(POOLS)]
    arrays[0][0, 0, 0, :3] = -np.inf

    def body(emit, *values):
        outs = [pool.out(pool.shape[2:], lambda a, b: a // b) for pool in POOLS]
        return [emit(pool.emit(x, out)) for pool, x, out in zip(POOLS, values, outs, strict=True)]

    runner = GpuRunner(function({f"x{i}": (x.shape, "float32") for i, x in enumerate(arrays)}, body))
    assert runner.rules == {"gpu-window"}
    for pool, x, got in zip(POOLS, arrays, runner(*arrays), strict=True):
        np.testing.assert_allclose(got, pool.reference(x), atol=1e-6, rtol=1e-5, err_msg=str(pool))


def test_symbolic_sizes() -> None:
    n, h, w = (tirx.Var(name, "int64") for name in "nhw")
    pools = [pool for pool in POOLS if len(pool.shape) == 4 and pool.kind != "lp"]

    def body(emit, *values):
        outs = [pool.out((h, w), tirx.floordiv) for pool in pools]
        return [emit(pool.emit(x, out)) for pool, x, out in zip(pools, values, outs, strict=True)]

    params = {f"x{i}": ((n, pool.shape[1], h, w), "float32") for i, pool in enumerate(pools)}
    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-window"}
    for batch, height, width in ((1, 11, 16), (2, 20, 9)):
        arrays = [normal(batch, pool.shape[1], height, width) for pool in pools]
        for pool, x, got in zip(pools, arrays, runner(*arrays), strict=True):
            np.testing.assert_allclose(got, pool.reference(x), atol=1e-6, rtol=1e-5, err_msg=str(pool))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_bytes(kind: str) -> None:
    info, pool = np.iinfo(kind), Pool("max", (2, 3, 11, 21), (3, 2), (2, 1), (1, 0, 1, 0))
    out = pool.out(pool.shape[2:], lambda a, b: a // b)
    runner = GpuRunner(function({"x": (pool.shape, kind)}, lambda emit, x: emit(pool.emit(x, out))))
    x = np.random.default_rng(0).integers(info.min, info.max + 1, pool.shape).astype(kind)
    x[:, :, :4] = info.min  # what pads a window never wins over the lowest level
    np.testing.assert_array_equal(runner(x)[0], pool.reference(x.astype(np.float32)))
