"""Stable sorting on a GPU: against numpy's stable sort, with equal elements, NaN and infinities."""

from functools import cache

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from gpu_running import GpuRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, tirx

from greencc.kernels import kernel
from tests.targets.cpu.running import function

pytestmark = pytest.mark.vulkan


def top(emit, x, count, axis: int, largest: bool) -> list[relax.Expr]:
    found = emit(kernel("top_k", [x], [count], axis=axis, largest=largest))
    return [emit(relax.TupleGetItem(found, n)) for n in range(2)]


def expected(x: np.ndarray, count: int, axis: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values and indices. numpy sorts upwards, NaN last; downwards, the reversed line is sorted, so that ties stay."""
    if largest:
        size = x.shape[axis]
        order = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    order = np.take(order, range(count), axis)
    return np.take_along_axis(x, order, axis), order


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100, 1000, 2049, 5000])
def test_static_sizes_in_shared_memory_and_beyond(size: int) -> None:
    shape, count = (2, size, 3), min(size, 70)

    def body(emit, x):
        return [*top(emit, x, count, 1, True), *top(emit, x, size, 1, False)]

    runner = GpuRunner(function({"x": (shape, "float32")}, body))
    assert runner.rules == {"gpu-sort"}
    x = np.random.default_rng(size).integers(-50, 50, shape).astype(np.float32)
    results = runner(x)
    for n, (wanted, largest) in enumerate(((count, True), (size, False))):
        values, indices = expected(x, wanted, 1, largest)
        np.testing.assert_array_equal(results[2 * n], values)
        np.testing.assert_array_equal(results[2 * n + 1], indices)


@pytest.mark.parametrize("size", [3, 4, 7, 8])
def test_short_lines_for_all_orders(size: int) -> None:
    shape = (200, size)
    runner = GpuRunner(function({"x": (shape, "float32")}, lambda emit, x: top(emit, x, size - 1, 1, True)))
    x = np.random.default_rng(size).permuted(np.tile(np.arange(size, dtype=np.float32), (200, 1)), axis=1)
    values, indices = runner(x)
    wanted_values, wanted_indices = expected(x, size - 1, 1, True)
    np.testing.assert_array_equal(values, wanted_values)
    np.testing.assert_array_equal(indices, wanted_indices)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "int64", "uint64"])
def test_every_type(dtype: str) -> None:
    runner = GpuRunner(function({"x": ((3, 77), dtype)}, lambda emit, x: top(emit, x, 20, 1, True)))
    x = np.random.default_rng(0).integers(0, 30, (3, 77)).astype(dtype)
    values, indices = runner(x)
    wanted_values, wanted_indices = expected(x, 20, 1, True)
    np.testing.assert_array_equal(values, wanted_values)
    np.testing.assert_array_equal(indices, wanted_indices)


@cache
def symbolic(largest: bool) -> GpuRunner:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")
    return GpuRunner(function({"x": ((rows, width), "float32")}, lambda emit, x: top(emit, x, width, 1, largest)))


@cache
def static() -> GpuRunner:
    def body(emit, x):
        return [*top(emit, x, 90, 1, True), *top(emit, x, 90, 1, False)]

    return GpuRunner(function({"x": ((2, 90), "float32")}, body))


FLOATS = st.sampled_from([0.0, -0.0, 1.0, 2.0, -3.5, float("inf"), float("-inf"), float("nan")])


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 200)), elements=FLOATS), st.booleans())
def test_symbolic_sizes_with_nan_and_infinities(x: np.ndarray, largest: bool) -> None:
    values, indices = symbolic(largest)(x)
    wanted_values, wanted_indices = expected(x, x.shape[1], 1, largest)
    np.testing.assert_array_equal(indices, wanted_indices)
    np.testing.assert_array_equal(values, wanted_values)


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.float32, (2, 90), elements=FLOATS))
def test_a_static_size_with_nan_and_infinities(x: np.ndarray) -> None:
    results = static()(x)
    for n, largest in enumerate((True, False)):
        wanted_values, wanted_indices = expected(x, 90, 1, largest)
        np.testing.assert_array_equal(results[2 * n + 1], wanted_indices)
        np.testing.assert_array_equal(results[2 * n], wanted_values)


def test_a_long_symbolic_line() -> None:
    x = np.random.default_rng(0).integers(0, 1000, (1, 30_011)).astype(np.float32)
    _, indices = symbolic(True)(x)
    np.testing.assert_array_equal(indices, expected(x, x.shape[1], 1, True)[1])
