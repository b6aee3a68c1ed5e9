"""Maps on a GPU: flat ones in vectors, broadcasts, transposes, every type, sizes that do and don't divide."""

import numpy as np
import pytest
from gpu_running import GpuRunner
from tvm import relax, tirx

from greencc.kernels import kernel
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan


def test_flat_and_broadcast_maps_for_sizes_that_do_and_do_not_divide() -> None:
    shapes = [(1,), (7,), (256,), (1023,), (3, 5, 7), (2, 130, 4), (), (1, 1, 8)]
    params = {f"x{n}": (shape, "float32") for n, shape in enumerate(shapes)}

    def body(emit, *values):
        return [emit(relax.op.exp(emit(relax.op.multiply(x, relax.const(0.5, "float32"))))) for x in values]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-elementwise"}
    arrays = [normal(*shape, seed=n) for n, shape in enumerate(shapes)]
    for got, x in zip(runner(*arrays), arrays, strict=True):
        np.testing.assert_allclose(got, np.exp(x * 0.5), rtol=1e-5, atol=0)


def test_symbolic_sizes_with_bias_and_transpose() -> None:
    rows, columns = tirx.Var("r", "int64"), tirx.Var("c", "int64")
    params = {"x": ((rows, columns), "float32"), "b": ((columns,), "float32"), "s": ((rows, 1), "float32")}

    def body(emit, x, b, s):
        y = emit(relax.op.multiply(emit(relax.op.add(x, b)), s))
        return [y, emit(relax.op.permute_dims(emit(relax.op.nn.relu(x)))), emit(relax.op.concat([x, x], axis=1))]

    runner = GpuRunner(function(params, body))
    for shape in ((1, 1), (3, 17), (64, 256), (129, 1000)):
        x, b, s = normal(*shape), normal(shape[1], seed=1), normal(shape[0], 1, seed=2)
        y, transposed, twice = runner(x, b, s)
        np.testing.assert_allclose(y, (x + b) * s, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(transposed, np.maximum(x, 0).T)
        np.testing.assert_array_equal(twice, np.concatenate([x, x], 1))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int32", "int64", "uint32"])
def test_every_type_is_stored_and_computed(dtype: str) -> None:
    def body(emit, x, y):
        return [emit(relax.op.add(x, y)), emit(relax.op.maximum(x, y)), emit(relax.op.less(x, y))]

    shapes = ((5, 9), (4, 64))
    for shape in shapes:
        runner = GpuRunner(function({"x": (shape, dtype), "y": (shape, dtype)}, body))
        rng = np.random.default_rng(0)
        x, y = (rng.integers(0, 60, shape).astype(dtype) for _ in range(2))
        added, larger, less = runner(x, y)
        np.testing.assert_array_equal(added, x + y)
        np.testing.assert_array_equal(larger, np.maximum(x, y))
        assert less.dtype == np.bool_
        np.testing.assert_array_equal(less, x < y)


def test_booleans_are_read_combined_and_stored() -> None:
    shape = (3, 41)

    def body(emit, x, y):
        both = emit(relax.op.logical_and(x, emit(relax.op.logical_not(y))))
        return [both, emit(relax.op.where(x, relax.const(1.5), relax.const(-2.0))), emit(relax.op.astype(y, "int64"))]

    runner = GpuRunner(function({"x": (shape, "bool"), "y": (shape, "bool")}, body))
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2, shape).astype(bool) for _ in range(2))
    both, chosen, number = runner(x, y)
    np.testing.assert_array_equal(both, x & ~y)
    np.testing.assert_array_equal(chosen, np.where(x, np.float32(1.5), np.float32(-2)))
    np.testing.assert_array_equal(number, y.astype(np.int64))


def test_a_kernel_of_several_outputs_is_one_launch() -> None:
    def body(emit, x):
        parts = emit(relax.op.split(x, 3, axis=1))
        return [emit(relax.TupleGetItem(parts, n)) for n in range(3)]

    runner = GpuRunner(function({"x": ((4, 12), "float32")}, body))
    assert runner.rules == {"gpu-elementwise"}
    x = normal(4, 12)
    for got, wanted in zip(runner(x), np.split(x, 3, axis=1), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_no_elements_are_no_work_static_or_symbolic() -> None:
    rows = tirx.Var("r", "int64")
    runner = GpuRunner(function({"x": ((rows, 4), "float32")}, lambda emit, x: emit(relax.op.exp(x))))
    assert runner(np.zeros((0, 4), np.float32))[0].shape == (0, 4)
    np.testing.assert_array_equal(runner(np.zeros((2, 4), np.float32))[0], np.ones((2, 4), np.float32))
    runner = GpuRunner(function({"x": ((0, 4), "float32")}, lambda emit, x: emit(relax.op.exp(x))))
    assert runner(np.zeros((0, 4), np.float32))[0].shape == (0, 4)


def test_integer_powers() -> None:
    for base, exponent in (("int32", "int64"), ("int64", "int32"), ("uint8", "uint32")):
        params = {"x": ((5, 7), base), "y": ((5, 7), exponent)}
        runner = GpuRunner(function(params, lambda emit, x, y: emit(kernel("power_of_integers", [x, y]))))
        assert runner.rules == {"gpu-power"}
        rng = np.random.default_rng(0)
        low = 0 if base.startswith("u") else -4
        x, y = rng.integers(low, 5, (5, 7)).astype(base), rng.integers(0, 6, (5, 7)).astype(exponent)
        np.testing.assert_array_equal(runner(x, y)[0], x ** y.astype(base))
    signed = {"x": ((4,), "int32"), "y": ((4,), "int32")}
    runner = GpuRunner(function(signed, lambda emit, x, y: emit(kernel("power_of_integers", [x, y]))))
    x, y = np.array([1, -1, 2, -3], np.int32), np.array([-3, -3, -1, -2], np.int32)
    np.testing.assert_array_equal(runner(x, y)[0], [1, -1, 0, 0])


def test_constants_of_one_value_and_different_types_in_one_expression() -> None:
    params = {"x": ((6,), "int8"), "y": ((6,), "int8")}
    runner = GpuRunner(function(params, lambda emit, x, y: emit(kernel("shift", [x, y], left=True))))
    x, y = np.array([1, 2, 3, 1, -1, 5], np.int8), np.array([0, 1, 3, 8, 2, -1], np.int8)
    np.testing.assert_array_equal(runner(x, y)[0], np.array([1, 4, 24, 0, -4, 0], np.int8))


@pytest.mark.parametrize("shape", [(3, 5), (8, 8)])
def test_two_axes_that_are_shifted_and_wrap(shape: tuple[int, int]) -> None:
    # TVM's simplifier loses the second shift where coordinates come from floored divisions of one index.
    rows, columns = shape

    def body(emit, x):
        size = [2 * rows, 2 * columns]
        return [emit(kernel("pad", [x], [1, 2, *size], mode="wrap"))]

    x = normal(rows, columns)
    got = GpuRunner(function({"x": ((rows, columns), "float32")}, body))(x)[0]
    np.testing.assert_array_equal(got, np.pad(x, [(1, rows - 1), (2, columns - 2)], mode="wrap"))
