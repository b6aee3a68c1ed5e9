"""Reductions on a GPU and what hangs on them: lengths that are and aren't powers of two, any axes, every type."""

import json

import numpy as np
import pytest
from gpu_running import GpuRunner
from tvm import relax, tirx

from greencc.kernels import kernel
from tests.targets.cpu.references import PASS_ATOL, RowPasses, softmax
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan
WIDTHS = (1, 3, 8, 16, 17, 100, 384, 1000, 4099)


def kernels_of(runner: GpuRunner) -> list[str]:
    """Names of the kernels that an artifact would hold."""
    return sorted(json.loads(runner.code.kernels["kernels.json"])["functions"])


def test_softmax_norms_and_means_for_all_widths() -> None:
    passes = RowPasses(WIDTHS)
    runner = GpuRunner(passes.module)
    assert runner.rules == {"gpu-rowwise"}
    assert len(kernels_of(runner)) == RowPasses.KINDS * len(WIDTHS)  # each is one launch
    passes.check(runner)


def test_symbolic_rows_and_width() -> None:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")

    def body(emit, x):
        return [emit(relax.op.nn.softmax(x)), emit(relax.op.sum(x, axis=[0])), emit(relax.op.sum(x))]

    runner = GpuRunner(function({"x": ((rows, width), "float32")}, body))
    for shape in ((1, 1), (3, 17), (40, 128), (200, 333)):
        x = normal(*shape)
        soft, columns, total = runner(x)
        np.testing.assert_allclose(soft, softmax(x.astype(np.float64)), atol=PASS_ATOL, rtol=0)
        np.testing.assert_allclose(columns, x.sum(0, dtype=np.float64), atol=1e-4, rtol=0)
        np.testing.assert_allclose(total, x.sum(dtype=np.float64), atol=1e-3, rtol=0)


def test_any_axes_with_and_without_keeping_them() -> None:
    shape = (5, 33, 4, 40)
    axes = ([0], [1], [2], [3], [0, 1], [1, 2], [1, 3], [0, 2], [2, 3], [0, 1, 2, 3])

    def body(emit, x):
        results = []
        for n, chosen in enumerate(axes):
            results.append(emit(relax.op.sum(x, axis=chosen, keepdims=bool(n % 2))))
            results.append(emit(relax.op.max(x, axis=chosen, keepdims=not n % 2)))
        return results

    runner = GpuRunner(function({"x": (shape, "float32")}, body))
    assert runner.rules <= {"gpu-rowwise"}
    x = normal(*shape)
    results = iter(runner(x))
    for n, chosen in enumerate(axes):
        wanted = x.sum(tuple(chosen), keepdims=bool(n % 2), dtype=np.float64)
        np.testing.assert_allclose(next(results), wanted, atol=1e-3, rtol=0)
        np.testing.assert_array_equal(next(results), x.max(tuple(chosen), keepdims=not n % 2))


def test_softmax_over_another_axis_and_variance_are_one_launch_each() -> None:
    def body(emit, x):
        return [emit(relax.op.nn.softmax(x, axis=1)), emit(relax.op.variance(x, axis=[2]))]

    runner = GpuRunner(function({"x": ((3, 50, 70), "float32")}, body))
    assert runner.rules == {"gpu-rowwise"}
    assert len(kernels_of(runner)) == 2
    x = normal(3, 50, 70)
    soft, variance = runner(x)
    np.testing.assert_allclose(soft, softmax(x.astype(np.float64), 1), atol=PASS_ATOL, rtol=0)
    np.testing.assert_allclose(variance, x.var(2, dtype=np.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "int64"])
def test_every_type(dtype: str) -> None:
    def body(emit, x):
        return [emit(op(x, axis=[1])) for op in (relax.op.sum, relax.op.max, relax.op.min, relax.op.prod)]

    runner = GpuRunner(function({"x": ((6, 75), dtype)}, body))
    x = np.random.default_rng(0).integers(0, 2, (6, 75)).astype(dtype)
    x[:3] = 1
    total, largest, smallest, product = runner(x)
    np.testing.assert_array_equal(total, x.sum(1, dtype=dtype))
    np.testing.assert_array_equal(largest, x.max(1))
    np.testing.assert_array_equal(smallest, x.min(1))
    np.testing.assert_array_equal(product, x.prod(1, dtype=dtype))


def test_extremes_of_infinities_and_nan() -> None:
    x = normal(5, 90)
    x[1], x[2] = -np.inf, np.inf
    x[3, 77] = np.nan
    x[4, 0] = np.nan
    operators = (relax.op.max, relax.op.min)
    runner = GpuRunner(
        function({"x": (x.shape, "float32")}, lambda emit, v: [emit(op(v, axis=[1])) for op in operators])
    )
    largest, smallest = runner(x)
    np.testing.assert_array_equal(largest, x.max(1))
    np.testing.assert_array_equal(smallest, x.min(1))


@pytest.mark.parametrize("width", [1, 31, 32, 100, 5000])
def test_positions_of_extremes(width: int) -> None:
    data = np.random.default_rng(width).integers(-9, 9, (3, width, 2)).astype(np.float32)
    if width > 31:
        data[0, 3] = np.nan

    def body(emit, x, y):
        results = [emit(relax.op.argmax(y, axis=1)), emit(relax.op.argmin(y))]
        results.append(emit(relax.op.argmin(x, axis=1, keepdims=True)))
        for largest in (True, False):
            results += [emit(kernel("arg_extreme", [v], axis=1, largest=largest, last=True)) for v in (x, y)]
        return results

    x, y = data, np.ascontiguousarray(data[:, :, 0])
    runner = GpuRunner(function({"x": (x.shape, "float32"), "y": (y.shape, "float32")}, body))
    assert "gpu-arg-extreme" in runner.rules
    got = runner(x, y)
    np.testing.assert_array_equal(got[0], np.argmax(np.nan_to_num(y, nan=-99), 1))
    np.testing.assert_array_equal(got[1], np.argmin(np.nan_to_num(y, nan=99)))
    np.testing.assert_array_equal(got[2], np.argmin(np.nan_to_num(x, nan=99), 1, keepdims=True))
    for n, (largest, v) in enumerate((largest, v) for largest in (True, False) for v in (x, y)):
        known = np.nan_to_num(v, nan=-99 if largest else 99)[:, ::-1]
        first = np.argmax(known, 1, keepdims=True) if largest else np.argmin(known, 1, keepdims=True)
        np.testing.assert_array_equal(got[3 + n], width - 1 - first)


def test_a_sum_of_nothing_is_zero() -> None:
    width = tirx.Var("w", "int64")
    runner = GpuRunner(function({"x": ((4, width), "float32")}, lambda emit, x: emit(relax.op.sum(x, axis=[1]))))
    np.testing.assert_array_equal(runner(np.zeros((4, 0), np.float32))[0], np.zeros(4, np.float32))
    runner = GpuRunner(function({"x": ((4, 0), "float32")}, lambda emit, x: emit(relax.op.sum(x, axis=[1]))))
    np.testing.assert_array_equal(runner(np.zeros((4, 0), np.float32))[0], np.zeros(4, np.float32))


def test_a_reduction_spread_over_something_larger_is_not_computed_again_for_each_element() -> None:
    def body(emit, x):
        return emit(relax.op.multiply(x, emit(relax.op.nn.relu(emit(relax.op.mean(x, axis=[2, 3], keepdims=True))))))

    runner = GpuRunner(function({"x": ((2, 8, 9, 9), "float32")}, body))
    x = normal(2, 8, 9, 9)
    np.testing.assert_allclose(runner(x)[0], x * np.maximum(x.mean((2, 3), keepdims=True), 0), atol=PASS_ATOL, rtol=0)
    operations = [call.operations for call in runner.lowered.calls]
    assert sum(operations) < 10 * x.size
