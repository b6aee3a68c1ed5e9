"""What no rule of its own takes: several launches in one kernel, statements that only a single thread can run."""

import json

import numpy as np
import pytest
from gpu_running import GpuRunner
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from greencc.kernels import kernel
from tests.targets.cpu.running import Runner, function, normal

pytestmark = pytest.mark.vulkan


def kernels_of(runner: GpuRunner) -> list[str]:
    return sorted(json.loads(runner.code.kernels["kernels.json"])["functions"])


def fibonacci(x: te.Tensor) -> te.Tensor:
    """Statements that read what they wrote: out[i] = x[i] + out[i - 1] + out[i - 2]; twice that behind it."""

    def generate(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        source, out = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
        with IRBuilder() as builder:
            with T.serial(0, x.shape[0]) as i:
                before = tirx.if_then_else(i > 0, out[tirx.max(i - 1, 0)], tirx.const(0, "int32"))
                out[i] = source[i] + before + tirx.if_then_else(i > 1, out[tirx.max(i - 2, 0)], tirx.const(0, "int32"))
            return builder.get()

    found = te.extern([x.shape], [x], generate, dtype="int32", name="fibonacci")
    return te.compute(x.shape, lambda i: found(i) * 2, name="twice")


def test_statements_run_in_one_thread_and_what_follows_in_many() -> None:
    size = tirx.Var("n", "int64")

    runner = GpuRunner(function({"x": ((size,), "int32")}, lambda emit, x: emit(emit.__self__.call_te(fibonacci, x))))
    assert "gpu-fallback" in runner.rules
    for count in (1, 5, 30):
        x = np.arange(1, count + 1, dtype=np.int32)
        wanted: list[int] = []
        for value in x:
            wanted.append(value + sum(wanted[-2:]))
        np.testing.assert_array_equal(runner(x)[0], 2 * np.array(wanted, np.int32))


def test_what_is_costly_and_read_many_times_is_computed_once() -> None:
    def weighted(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        def series(i: tirx.Var) -> tirx.Expr:
            value = w(i)
            for _ in range(12):
                value = value * w(i) + 0.5
            return value

        k = te.reduce_axis((0, 64), name="k")
        weights = te.compute((64,), series, name="weights")
        return te.compute((96,), lambda i: te.max(x(i, k) * weights(k), axis=k), name="out")

    params = {"x": ((96, 64), "float32"), "w": ((64,), "float32")}
    runner = GpuRunner(function(params, lambda emit, x, w: emit(emit.__self__.call_te(weighted, x, w))))
    assert runner.rules == {"gpu-fallback"}
    assert len(kernels_of(runner)) == 2
    x, w = normal(96, 64), normal(64, seed=1) / 4
    weights = w.astype(np.float64)
    for _ in range(12):
        weights = weights * w + 0.5
    np.testing.assert_allclose(runner(x, w)[0], (x * weights).max(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grids_are_sampled_as_on_the_cpu(mode: str) -> None:
    params = {"x": ((1, 16, 9, 11), "float32"), "grid": ((1, 5, 6, 2), "float32")}
    options = {"mode": mode, "padding": "border", "align_corners": True}
    module = function(params, lambda emit, x, grid: emit(kernel("grid_sample", [x, grid], [], **options)))
    x, grid = normal(1, 16, 9, 11), normal(1, 5, 6, 2, seed=1)
    np.testing.assert_allclose(GpuRunner(module)(x, grid)[0], Runner(module)(x, grid)[0], atol=1e-4, rtol=0)


def test_reductions_of_different_rows_are_launches_of_their_own() -> None:
    def chain(x: te.Tensor) -> te.Tensor:
        k, j = te.reduce_axis((0, 400), name="k"), te.reduce_axis((0, 50), name="j")
        rows = te.compute((50,), lambda i: te.sum(x(i, k), axis=k), name="rows")
        largest = te.compute((), lambda: te.max(rows(j), axis=j), name="largest")
        return te.compute((50, 400), lambda i, c: x(i, c) - rows(i) + largest(), name="out")

    runner = GpuRunner(function({"x": ((50, 400), "float32")}, lambda emit, x: emit(emit.__self__.call_te(chain, x))))
    assert runner.rules == {"gpu-fallback"}
    assert len(kernels_of(runner)) == 3
    x = normal(50, 400)
    rows = x.sum(1, dtype=np.float64)
    np.testing.assert_allclose(runner(x)[0], x - rows[:, None] + rows.max(), atol=1e-3, rtol=0)


def test_pools_with_positions() -> None:
    sizes = {"kernel": [3, 2], "strides": [2, 1], "dilations": [1, 2]}
    dims = [4, 8, 1, 1, 1, 1]

    def body(emit, x):
        found = emit(kernel("max_pool_with_indices", [x], dims, column_major=False, **sizes))
        return [emit(relax.TupleGetItem(found, n)) for n in range(2)]

    runner = GpuRunner(function({"x": ((2, 3, 7, 8), "float32")}, body))
    x = np.random.default_rng(0).integers(0, 4, (2, 3, 7, 8)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    number = np.pad(np.arange(x.size).reshape(x.shape), ((0, 0), (0, 0), (1, 1), (1, 1)))
    values, positions = runner(x)
    for n, c, i, j in np.ndindex(2, 3, 4, 8):
        window = padded[n, c, 2 * i : 2 * i + 3, j : j + 3 : 2]
        own = number[n, c, 2 * i : 2 * i + 3, j : j + 3 : 2]
        assert values[n, c, i, j] == window.max()
        assert positions[n, c, i, j] == own.ravel()[window.argmax()]
