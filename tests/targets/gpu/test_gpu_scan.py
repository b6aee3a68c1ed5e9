"""Running sums and products on a GPU, and the places of real tokens; against numpy."""

from functools import cache

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from gpu_running import GpuRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, tirx

from greencc.kernels import kernel
from tests.targets.cpu.running import function, normal

pytestmark = pytest.mark.vulkan
MODES = [{"exclusive": exclusive, "reverse": reverse} for exclusive in (False, True) for reverse in (False, True)]


def scanned(x: np.ndarray, axis: int, *, exclusive: bool, reverse: bool, multiply: bool = False) -> np.ndarray:
    x = np.flip(x, axis) if reverse else x
    result = (np.cumprod if multiply else np.cumsum)(x, axis, dtype=x.dtype)
    if exclusive:
        result = np.roll(result, 1, axis)
        result[(slice(None),) * axis + (0,)] = 1 if multiply else 0
    return np.flip(result, axis) if reverse else result


@pytest.mark.parametrize("length", [1, 31, 257, 3000])
def test_every_mode_along_every_axis(length: int) -> None:
    shape = (3, length, 4)

    def body(emit, x):
        return [emit(kernel("scan", [x], axis=axis, multiply=False, **mode)) for axis in range(3) for mode in MODES]

    runner = GpuRunner(function({"x": (shape, "int64")}, body))
    assert runner.rules == {"gpu-scan"}
    x = np.random.default_rng(length).integers(-(2**40), 2**40, shape)
    results = iter(runner(x))
    for axis in range(3):
        for mode in MODES:
            np.testing.assert_array_equal(next(results), scanned(x, axis, **mode))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "uint8"])
def test_every_type(dtype: str) -> None:
    def body(emit, x):
        return [emit(kernel("scan", [x], axis=1, multiply=m, exclusive=False, reverse=True)) for m in (False, True)]

    runner = GpuRunner(function({"x": ((2, 100), dtype)}, body))
    x = np.random.default_rng(0).integers(1, 3, (2, 100)).astype(dtype)
    x[:, :90] = 1
    for got, multiply in zip(runner(x), (False, True), strict=True):
        np.testing.assert_array_equal(got, scanned(x, 1, exclusive=False, reverse=True, multiply=multiply))


@cache
def symbolic() -> GpuRunner:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")

    def body(emit, x):
        return [emit(kernel("scan", [x], axis=axis, multiply=False, **mode)) for axis in range(2) for mode in MODES]

    return GpuRunner(function({"x": ((rows, width), "int32")}, body))


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.int32, st.tuples(st.integers(1, 5), st.integers(1, 700)), elements=st.integers(-1000, 1000)))
def test_symbolic_sizes(x: np.ndarray) -> None:
    results = iter(symbolic()(x))
    for axis in range(2):
        for mode in MODES:
            np.testing.assert_array_equal(next(results), scanned(x, axis, **mode))


def test_a_long_line_of_floats_and_lines_of_no_elements() -> None:
    width = tirx.Var("w", "int64")
    scan = {"axis": 0, "multiply": False, "exclusive": False, "reverse": False}
    runner = GpuRunner(function({"x": ((width,), "float32")}, lambda emit, x: emit(kernel("scan", [x], **scan))))
    x = normal(200_001)
    np.testing.assert_allclose(runner(x)[0], np.cumsum(x, dtype=np.float64), atol=2e-2, rtol=0)
    assert runner(np.zeros(0, np.float32))[0].shape == (0,)


@pytest.mark.parametrize("dtype", ["int64", "bool", "float32"])
def test_tokens_are_counted_and_found(dtype: str) -> None:
    batch, longest, count = (tirx.Var(name, "int64") for name in "bsn")
    shape = (batch, longest)

    def counts(emit, mask):
        found = emit(kernel("token_starts", [mask]))
        return [emit(relax.TupleGetItem(found, n)) for n in range(2)]

    starts = GpuRunner(function({"mask": (shape, dtype)}, counts))
    params = {"mask": (shape, dtype), "starts": (shape, "int64"), "like": ((count,), "float32")}
    places = GpuRunner(
        function(params, lambda emit, mask, before, like: emit(kernel("token_places", [mask, before], [count])))
    )
    assert starts.rules == {"gpu-token-starts"}
    assert places.rules == {"gpu-token-places"}
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, size).astype(dtype) for size in ((1, 1), (3, 7), (4, 333))]
    for mask in [*masks, np.zeros((2, 5), dtype), np.ones((2, 5), dtype)]:
        before, number = starts(mask)
        real = np.flatnonzero(mask)
        np.testing.assert_array_equal(before.ravel(), np.cumsum(mask != 0) - (mask != 0).ravel())
        assert number[0] == max(1, len(real))
        (found,) = places(mask, before, np.zeros(number[0], np.float32))
        np.testing.assert_array_equal(found, real if len(real) else [0])
