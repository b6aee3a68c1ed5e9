"""Products on matrix units: what the kernels compute, and that they use mma instructions."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from device_kernels import device, i64
from host_cuda import HostKernel
from tvm import te, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cuda.compile import compile_kernels
from greencc.targets.cuda.target import CudaTarget
from greencc.targets.gpu.schedules.tensor_core import TensorCoreRule
from greencc.targets.tuning.space import Space
from tests.targets.gpu.gpu_plans import draw

Size = int | tirx.Var


def product(
    rows: Size, columns: int, depth: Size, dtype: str, result: str, *, batch: int = 0, transposed: bool = False
) -> tirx.PrimFunc:
    """relu(A @ B + bias), with B as it is or transposed, with a batch or without."""
    m, n, k = (i64(size) if isinstance(size, int) else size for size in (rows, columns, depth))
    lead = [i64(batch)] if batch else []
    a = te.placeholder((*lead, m, k), dtype, name="A")
    b = te.placeholder((*lead, n, k) if transposed else (*lead, k, n), dtype, name="B")
    bias = te.placeholder((n,), result, name="bias")
    along = te.reduce_axis((i64(0), k), name="k")

    def widened(value: tirx.Expr) -> tirx.Expr:
        return value if dtype == result else value.astype(result)

    def element(*place: tirx.Expr) -> tirx.Expr:
        *at, i, j = place
        right = b[(*at, j, along)] if transposed else b[(*at, along, j)]
        return te.sum(widened(a[(*at, i, along)]) * widened(right), axis=along)

    c = te.compute((*lead, m, n), element, name="C")
    out = te.compute((*lead, m, n), lambda *at: tirx.max(c[at] + bias[at[-1]], tirx.const(0, result)), name="D")
    return te.create_prim_func([a, b, bias, out]).with_attrs({"global_symbol": "mm", "tirx.noalias": True})


def scheduled(func: tirx.PrimFunc, arch: str = "sm_80") -> tirx.PrimFunc:
    outcome = TensorCoreRule(CudaTarget(arch)).apply(func, frozenset())
    assert isinstance(outcome, Scheduled), outcome
    return outcome.func.with_attr("global_symbol", "mm")


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    if dtype == "int8":
        return numbers.integers(-128, 128, shape, np.int8)
    return numbers.standard_normal(shape).astype(dtype)


# Rows, columns and depth that leave remainders of a tile, and that can't be read in vectors.
SIZES = [(70, 200, 52), (33, 17, 9), (1, 96, 40)]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_remainders_of_all_sizes(tmp_path: Path, dtype: str) -> None:
    result = "int32" if dtype == "int8" else "float32"
    for index, (rows, columns, depth) in enumerate(SIZES):
        folder = tmp_path / str(index)
        folder.mkdir()
        kernel = HostKernel(scheduled(product(tirx.Var("n", "int64"), columns, depth, dtype, result)), folder)
        a, b = values((rows, depth), dtype, index), values((depth, columns), dtype, 9)
        bias = values((columns,), "int8", 5).astype(result)
        out = np.full((rows, columns), 77, result)
        kernel(A=a, B=b, bias=bias, D=out, n=rows)
        wide = np.int64 if dtype == "int8" else np.float64
        expected = np.maximum(a.astype(wide) @ b.astype(wide) + bias, 0)
        if dtype == "int8":
            np.testing.assert_array_equal(out, expected)
        else:
            np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * depth)


def test_batches_of_transposed_factors_with_symbolic_depth(tmp_path: Path) -> None:
    rows, columns, depth, batch = 40, 24, 21, 3
    k = tirx.Var("k", "int64")
    kernel = HostKernel(
        scheduled(product(rows, columns, k, "float16", "float32", batch=batch, transposed=True)), tmp_path
    )
    a, b = values((batch, rows, depth), "float16", 1), values((batch, columns, depth), "float16", 2)
    bias = values((columns,), "float32", 3)
    out = np.zeros((batch, rows, columns), np.float32)
    kernel(A=a, B=b, bias=bias, D=out, k=depth)
    expected = np.maximum(a.astype(np.float64) @ b.astype(np.float64).swapaxes(1, 2) + bias, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_the_result_is_rounded_to_its_type_before_what_follows(tmp_path: Path) -> None:
    rows, columns, depth = 16, 32, 64
    kernel = HostKernel(scheduled(product(rows, columns, depth, "float16", "float16")), tmp_path)
    a, b = values((rows, depth), "float16", 1), values((depth, columns), "float16", 2)
    bias, out = values((columns,), "float16", 3), np.zeros((rows, columns), np.float16)
    kernel(A=a, B=b, bias=bias, D=out)
    total = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
    np.testing.assert_allclose(out, np.maximum(total + bias, 0), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("dtype", "seed"), [("float16", 0), ("int8", 1)])
def test_plans_of_the_space_compute_the_same(tmp_path: Path, dtype: str, seed: int) -> None:
    result = "int32" if dtype == "int8" else "float32"
    rule, func = TensorCoreRule(CudaTarget("sm_80")), product(20, 40, 36, dtype, result)
    space = rule.space(func, frozenset())
    assert isinstance(space, Space)
    assert space.problem(space.default) is None
    assert rule.apply(func, frozenset(), {**space.default, "depth": 1}) == Declined("depth is 1")
    a, b = values((20, 36), dtype, seed), values((36, 40), dtype, 9)
    bias, wide = values((40,), "int8", 5).astype(result), np.int64 if dtype == "int8" else np.float64
    expected = np.maximum(a.astype(wide) @ b.astype(wide) + bias, 0)
    chance = random.Random(seed)
    for index, plan in enumerate([draw(space, chance), draw(space, chance)]):
        outcome = rule.apply(func, frozenset(), plan)
        assert isinstance(outcome, Scheduled)
        kernel = outcome.func.with_attr("global_symbol", "mm")
        assert "kernels.cubin" in compile_kernels(device(kernel, arch="sm_90"), "sm_90")
        folder = tmp_path / str(index)
        folder.mkdir()
        out = np.full((20, 40), 77, result)
        HostKernel(kernel, folder)(A=a, B=b, bias=bias, D=out)
        np.testing.assert_allclose(out, expected, rtol=0, atol=0 if dtype == "int8" else 1e-3, err_msg=str(plan))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_ptx_holds_mma_instructions(arch: str, dtype: str) -> None:
    result = "int32" if dtype == "int8" else "float32"
    func = scheduled(product(tirx.Var("n", "int64"), 384, 128, dtype, result), arch)
    ptx = compile_kernels(device(func, arch=arch), arch)["kernels.ptx"].decode()
    kinds = {"float16": "f32.f32", "bfloat16": "f32.bf16.bf16.f32", "int8": "s32.s8.s8.s32"}
    assert re.search(rf"wmma\.mma\.sync\.aligned\.row\.row\.m16n16k16\.{re.escape(kinds[dtype])}", ptx)


def test_large_products_have_large_tiles() -> None:
    text = scheduled(product(4096, 4096, 512, "float16", "float32")).script()
    assert 'T.launch_thread("blockIdx.x", T.int64(1024))' in text
    assert 'T.launch_thread("threadIdx.x", 256)' in text


@pytest.mark.parametrize(
    ("func", "arch", "reason"),
    [
        (product(64, 64, 64, "float32", "float32"), "sm_80", "no matrix units for float32"),
        (product(64, 64, 64, "bfloat16", "float32"), "sm_75", "no matrix units for bfloat16"),
        (product(4, 64, 64, "float16", "float32"), "sm_80", "4 rows leave matrix units empty"),
    ],
)
def test_declines_with_a_reason(func: tirx.PrimFunc, arch: str, reason: str) -> None:
    assert TensorCoreRule(CudaTarget(arch)).apply(func, frozenset()) == Declined(reason)
