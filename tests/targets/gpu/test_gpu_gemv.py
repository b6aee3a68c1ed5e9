"""Products of few rows, and with levels in groups, on a GPU against float64."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_running import GpuRunner
from tvm import relax, tirx

from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul
from greencc.passes.grouped import BITS, GroupedWeight, round_to_nearest
from tests.targets.cpu.running import function, normal

# float32 sums of up to 400 products of standard normals, scaled to unit variance.
ATOL = 2e-5


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_few_rows_for_all_remainders(rows: int) -> None:
    # Columns leave remainders of a workgroup and of a vector; depths of all threads' share.
    shapes = [(400, 33), (24, 100), (7, 3)]
    parts = {shape: normal(*shape, seed=shape[1]) / np.float32(np.sqrt(shape[0])) for shape in shapes}
    params = {f"x{k}": ((rows, k), "float32") for k, _ in shapes}

    def body(emit, *xs):
        products = [emit(relax.op.matmul(x, relax.const(w))) for x, w in zip(xs, parts.values(), strict=True)]
        return [emit(relax.op.nn.relu(y)) for y in products]

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-matmul"}
    xs = [normal(rows, k, seed=k) for k, _ in shapes]
    for x, w, got in zip(xs, parts.values(), runner(*xs), strict=True):
        np.testing.assert_allclose(got, np.maximum(x.astype(np.float64) @ w, 0), atol=ATOL, rtol=0)


def test_one_query_against_many_keys() -> None:
    # The second factor is no constant, and its depth lies side by side.
    length = tirx.Var("t", "int64")
    runner = GpuRunner(
        function(
            {"q": ((3, 1, 32), "float32"), "k": ((3, length, 32), "float32")},
            lambda emit, q, k: emit(relax.op.einsum((q, k), "hid,hjd->hij")),
        )
    )
    assert runner.rules == {"gpu-matmul"}
    for count in (1, 40):
        q, k = normal(3, 1, 32), normal(3, count, 32, seed=1) / np.float32(6)
        np.testing.assert_allclose(runner(q, k)[0], q.astype(np.float64) @ k.swapaxes(1, 2), atol=ATOL, rtol=0)


def product(x: relax.Expr, weight: GroupedWeight) -> relax.Call:
    offset = None if weight.offset is None else constant(weight.offset)
    attrs = GroupAttrs(weight.bits, weight.group)
    return grouped_matmul(x, constant(weight.levels), constant(weight.scale), offset, attrs)


def weights(rows: int, columns: int, group: int, bits: int) -> GroupedWeight:
    return round_to_nearest(normal(rows, columns, seed=columns) / np.float32(np.sqrt(rows)), group, bits)


@pytest.mark.parametrize(("rows", "bits"), [(1, 4), (1, 8), (3, 4), (21, 4), (21, 8)])
def test_levels_in_groups_with_bias_for_all_remainders(rows: int, bits: int) -> None:
    shapes = [(64, 1, 32), (96, 130, 96), (192, 70, 8)]
    parts = [weights(*shape, bits) for shape in shapes]

    def bias(weight: GroupedWeight) -> np.ndarray:
        return normal(weight.levels.shape[1], seed=5)

    def body(emit, *xs):
        return [emit(relax.op.add(emit(product(x, w)), relax.const(bias(w)))) for x, w in zip(xs, parts, strict=True)]

    params = {f"x{i}": ((rows, depth), "float32") for i, (depth, *_) in enumerate(shapes)}
    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-matmul"}
    xs = [normal(rows, depth, seed=depth) for depth, *_ in shapes]
    for x, w, got in zip(xs, parts, runner(*xs), strict=True):
        np.testing.assert_allclose(got, x.astype(np.float64) @ w.values + bias(w), atol=ATOL, rtol=0)


@pytest.mark.parametrize("bits", BITS)
def test_levels_in_groups_with_symbolic_rows(bits: int) -> None:
    rows, w = tirx.Var("s", "int64"), weights(64, 80, 32, bits)
    runner = GpuRunner(function({"x": ((rows, 64), "float32")}, lambda emit, x: emit(product(x, w))))
    for count in (1, 2, 33):
        x = normal(count, 64)
        np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w.values, atol=ATOL, rtol=0)


@pytest.mark.parametrize(("bits", "bytes_"), [(8, 64 * 96), (4, 32 * 96)])
def test_levels_are_stored_in_as_many_bits(bits: int, bytes_: int) -> None:
    w = weights(64, 96, 32, bits)
    lowered = GpuRunner(function({"x": ((1, 64), "float32")}, lambda emit, x: emit(product(x, w)))).lowered
    levels, *schemes = lowered.weights.values()
    assert (levels.dtype, levels.nbytes) == (np.int32, bytes_)
    assert [array.dtype for array in schemes] == [np.float16] * (1 if bits == 8 else 2)


def test_groups_that_are_no_whole_words_are_left_to_other_rules() -> None:
    w = weights(64, 40, 2, 4)
    runner = GpuRunner(function({"x": ((3, 64), "float32")}, lambda emit, x: emit(product(x, w))))
    assert "gpu-matmul" not in runner.rules
    x = normal(3, 64)
    np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w.values, atol=ATOL, rtol=0)
