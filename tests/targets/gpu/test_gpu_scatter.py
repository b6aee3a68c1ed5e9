"""Scattering on a GPU: updates of one element are applied in their order, whatever the threads do."""

import numpy as np
import pytest
from gpu_running import GpuRunner
from tvm import relax, tirx

from greencc.kernels import kernel
from tests.targets.cpu.running import function

pytestmark = pytest.mark.vulkan
REDUCTIONS = ("none", "add", "mul", "min", "max")
APPLY = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def scattered(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, reduction: str) -> np.ndarray:
    out = x.copy()
    for place in np.ndindex(indices.shape):
        target = list(place)
        target[axis] = indices[place] % x.shape[axis]
        out[tuple(target)] = APPLY[reduction](out[tuple(target)], updates[place])
    return out


def scattered_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, reduction: str) -> np.ndarray:
    out = x.copy()
    for place in np.ndindex(indices.shape[:-1]):
        target = tuple(index % size for index, size in zip(indices[place], x.shape, strict=False))
        out[target] = APPLY[reduction](out[target], updates[place])
    return out


@pytest.mark.parametrize("columns", [3, 1500])
def test_elements_with_repeated_indices(columns: int) -> None:
    """Few columns have a thread for each update, many a thread for each column."""
    shape, own = (6, columns), (9, columns)
    params = {"x": (shape, "int32"), "i": (own, "int64"), "u": (own, "int32")}

    def body(emit, x, i, u):
        return [emit(kernel("scatter_elements", [x, i, u], axis=0, reduction=kind)) for kind in REDUCTIONS]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-scatter"}
    rng = np.random.default_rng(0)
    x, i, u = rng.integers(-3, 4, shape), rng.integers(-6, 6, own), rng.integers(-3, 4, own)
    x, u = x.astype(np.int32), u.astype(np.int32)
    for got, kind in zip(runner(x, i, u), REDUCTIONS, strict=True):
        np.testing.assert_array_equal(got, scattered(x, i, u, 0, kind))


def test_symbolic_sizes_along_the_last_axis_and_relax_operator() -> None:
    rows, width, count = (tirx.Var(name, "int64") for name in "rwn")
    params = {"x": ((rows, width), "float32"), "i": ((rows, count), "int32"), "u": ((rows, count), "float32")}

    def body(emit, x, i, u):
        flat = emit(relax.op.scatter_elements(x, emit(relax.op.astype(i, "int64")), u, axis=-1, reduction="add"))
        return [emit(kernel("scatter_elements", [x, i, u], axis=1, reduction="none")), flat]

    runner = GpuRunner(function(params, body))
    rng = np.random.default_rng(1)
    for shape, number in (((1, 1), 1), ((4, 300), 50), ((2, 5), 40)):
        x = rng.integers(-9, 9, shape).astype(np.float32)
        i = rng.integers(-shape[1], shape[1], (shape[0], number)).astype(np.int32)
        u = rng.integers(-9, 9, i.shape).astype(np.float32)
        replaced, added = runner(x, i, u)
        np.testing.assert_array_equal(replaced, scattered(x, i, u, 1, "none"))
        np.testing.assert_array_equal(added, scattered(x, i, u, 1, "add"))


@pytest.mark.parametrize("inner", [(), (5,), (2, 600)])
def test_slices(inner: tuple[int, ...]) -> None:
    shape = (4, 3, *inner)
    params = {"x": (shape, "int64"), "i": ((2, 7, 2), "int64"), "u": ((2, 7, *inner), "int64")}

    def body(emit, x, i, u):
        return [emit(kernel("scatter_nd", [x, i, u], reduction=kind)) for kind in REDUCTIONS]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-scatter"}
    rng = np.random.default_rng(0)
    x, u = rng.integers(-3, 4, shape), rng.integers(-3, 4, (2, 7, *inner))
    i = np.stack([rng.integers(-4, 4, (2, 7)), rng.integers(-3, 3, (2, 7))], -1)
    for got, kind in zip(runner(x, i, u), REDUCTIONS, strict=True):
        np.testing.assert_array_equal(got, scattered_nd(x, i, u, kind))
