"""Products on a GPU against float64: tails, remainders of tiles, symbolic sizes, arrangements of axes, types."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tvm
from gpu_running import GpuRunner, device
from tvm import relax, te, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import Capabilities
from greencc.targets.gpu.schedules.matmul import MatmulRule
from greencc.targets.gpu.schedules.matmul_plan import TilePlan, plan_tiles
from greencc.targets.gpu.schedules.products import match_product
from greencc.targets.gpu.schedules.sources import panel_width
from greencc.targets.kernel import inline_tail
from greencc.targets.lower import fuse
from tests.targets.cpu.references import PRODUCT_ATOL, Products, gelu, linear
from tests.targets.cpu.running import function, normal


# Rows for a product of few and for both kinds of tiles; depths that fill steps and vectors, and that don't.
@pytest.mark.parametrize(("rows", "depth"), [(3, 40), (15, 37), (75, 40)])
def test_bias_gelu_and_residual_for_all_remainders(rows: int, depth: int) -> None:
    products = Products((rows,), depth, (1, 7, 64, 70))
    runner = GpuRunner(products.module)
    assert runner.rules == {"gpu-matmul"}
    products.check(runner)


def test_symbolic_rows() -> None:
    rows, batch = tirx.Var("s", "int64"), tirx.Var("b", "int64")
    w, b = linear(32, 80)
    runner = GpuRunner(
        function(
            {"x": ((batch, rows, 32), "float32"), "r": ((batch, rows, 80), "float32")},
            lambda emit, x, r: emit(
                relax.op.add(emit(relax.op.add(emit(relax.op.matmul(x, relax.const(w))), r)), relax.const(b))
            ),
        )
    )
    assert runner.rules == {"gpu-matmul"}
    for shape in ((1, 1), (1, 3), (2, 16), (1, 33), (1, 64), (2, 65), (3, 131)):
        x, r = normal(*shape, 32), normal(*shape, 80, seed=4)
        np.testing.assert_allclose(runner(x, r)[0], x.astype(np.float64) @ w + r + b, atol=PRODUCT_ATOL, rtol=0)


# Name -> (subscripts of both factors and the result, their shapes).
ARRANGEMENTS = {
    "batched": ("abij,abjk->abik", (2, 3, 9, 20), (2, 3, 20, 32)),
    "transposed second": ("bik,bjk->bij", (2, 70, 24), (2, 50, 24)),
    "transposed first": ("bki,bkj->bij", (2, 24, 70), (2, 24, 36)),
    "both transposed": ("ki,jk->ij", (24, 70), (50, 24)),
    "heads in the middle": ("bihd,bjhd->bhij", (2, 20, 3, 8), (2, 18, 3, 8)),
    "heads back to the middle": ("bhij,bjhd->bihd", (2, 3, 20, 18), (2, 18, 3, 8)),
    "two axes summed over": ("ihd,hdo->io", (40, 3, 8), (3, 8, 30)),
    "the first factor's axis last": ("kj,ik->ji", (24, 50), (70, 24)),
    "a vector": ("k,kj->j", (40,), (40, 50)),
    "a matrix and a vector": ("ik,k->i", (50, 40), (40,)),
    "an odd depth": ("bik,bkj->bij", (2, 33, 7), (2, 7, 5)),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_factors_in_any_arrangement(name: str) -> None:
    subscripts, left, right = ARRANGEMENTS[name]
    runner = GpuRunner(
        function(
            {"a": (left, "float32"), "b": (right, "float32")},
            lambda emit, a, b: emit(relax.op.nn.relu(emit(relax.op.einsum((a, b), subscripts)))),
        )
    )
    a, b = normal(*left), normal(*right, seed=1) / np.float32(math.sqrt(20))
    want = np.maximum(np.einsum(subscripts, a.astype(np.float64), b.astype(np.float64)), 0)
    np.testing.assert_allclose(runner(a, b)[0], want, atol=PRODUCT_ATOL, rtol=0)
    assert "gpu-matmul" in runner.rules


def test_a_batch_is_spread_over_a_factor() -> None:
    runner = GpuRunner(
        function(
            {"a": ((2, 3, 9, 20), "float32"), "b": ((3, 20, 32), "float32")},
            lambda emit, a, b: emit(relax.op.matmul(a, b)),
        )
    )
    assert runner.rules == {"gpu-matmul"}
    a, b = normal(2, 3, 9, 20), normal(3, 20, 32, seed=1) / np.float32(math.sqrt(20))
    np.testing.assert_allclose(runner(a, b)[0], a.astype(np.float64) @ b, atol=PRODUCT_ATOL, rtol=0)


def test_symbolic_depth_and_columns() -> None:
    k, n = tirx.Var("k", "int64"), tirx.Var("n", "int64")
    runner = GpuRunner(
        function(
            {"a": ((2, n, k), "float32"), "b": ((2, k, n), "float32")}, lambda emit, a, b: emit(relax.op.matmul(a, b))
        )
    )
    assert runner.rules == {"gpu-matmul"}
    for rows, depth in ((1, 5), (7, 16), (70, 33)):
        a, b = normal(2, rows, depth), normal(2, depth, rows, seed=1) / np.float32(math.sqrt(depth))
        np.testing.assert_allclose(runner(a, b)[0], a.astype(np.float64) @ b, atol=PRODUCT_ATOL, rtol=0)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Values in float16 or bfloat16, of which the latter keeps the upper half of a float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float64)
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


@pytest.mark.parametrize(("dtype", "rows"), [("float16", 2), ("float16", 40), ("bfloat16", 40)])
def test_half_precision_is_summed_in_float32(dtype: str, rows: int) -> None:
    w, bias = linear(200, 72)
    is_constant = dtype == "float16"  # bfloat16 is no type of a weight in an artifact

    def body(emit, x, *given):
        weight, b = given or (relax.const(w.astype(dtype)), relax.const(bias.astype(dtype)))
        x, weight, b = (emit(relax.op.astype(value, dtype)) for value in (x, weight, b))
        y = emit(relax.op.add(emit(relax.op.matmul(x, weight)), b))
        return emit(relax.op.astype(y, "float32"))

    params = {"x": ((rows, 200), "float32")}
    if not is_constant:
        params |= {"w": ((200, 72), "float32"), "b": ((72,), "float32")}
    runner = GpuRunner(function(params, body))
    assert "gpu-matmul" in runner.rules
    x = normal(rows, 200)
    want = rounded(rounded(x, dtype) @ rounded(w, dtype), dtype) + rounded(bias, dtype)
    # The product and the sum are rounded: half a unit in the last place of values up to 8, each.
    unit = 2.0 ** (-8 if dtype == "float16" else -5)
    (got,) = runner(x) if is_constant else runner(x, w, bias)
    np.testing.assert_allclose(got, want, atol=2.1 * unit, rtol=0)


def kernel(module: tvm.IRModule) -> tirx.PrimFunc:
    fused, _ = fuse(device().legalize(module))
    return next(f for _, f in fused.functions_items() if isinstance(f, tirx.PrimFunc))


@pytest.mark.parametrize(
    ("dtype", "shapes", "reason"),
    [
        ("float64", ((4, 8), (8, 16)), "float64 times float64"),
        ("int32", ((4, 8), (8, 16)), "int32 times int32"),
        ("float32", ((8,), (8,)), "no factor has the last axis for itself"),
    ],
)
def test_declines_with_a_reason(dtype: str, shapes: tuple[tuple[int, ...], ...], reason: str) -> None:
    left, right = shapes
    module = function({"a": (left, dtype), "b": (right, dtype)}, lambda emit, a, b: emit(relax.op.matmul(a, b)))
    outcome = MatmulRule(device()).apply(kernel(module), frozenset())
    assert isinstance(outcome, Declined)
    assert reason in outcome.reason


def test_a_sum_over_one_factor_is_no_product() -> None:
    x = te.placeholder((8, 16), "float32", name="x")
    k = te.reduce_axis((0, 16), name="k")
    total = te.compute((8,), lambda i: te.sum(x[i, k] * x[i, k], axis=k), name="total")
    outcome = MatmulRule(device()).apply(te.create_prim_func([x, total]), frozenset())
    assert isinstance(outcome, Declined)


def test_a_constant_is_packed_and_a_variable_is_not() -> None:
    module = function(
        {"a": ((4, 8), "float32"), "b": ((8, 70), "float32")}, lambda emit, a, b: emit(relax.op.matmul(a, b))
    )
    func = kernel(module)
    packed, plain = (MatmulRule(device()).apply(func, constants) for constants in (frozenset({1}), frozenset()))
    assert isinstance(packed, Scheduled)
    assert isinstance(plain, Scheduled)
    assert list(packed.layouts) == [1]
    assert packed.layouts[1].pack(np.ones((8, 70), np.float32)).shape == (5, 8, 16)
    assert not plain.layouts


@pytest.mark.parametrize(("rows", "depth"), [(40, 300), (tirx.Var("n", "int64"), 256)], ids=["static", "symbolic"])
def test_a_deep_product_of_few_tiles_is_made_in_slices(rows: object, depth: int) -> None:
    w, b = linear(depth, 50)
    target = replace(device(), gpu=replace(device().gpu, cores=64))
    runner = GpuRunner(
        function(
            {"x": ((rows, depth), "float32")},
            lambda emit, x: emit(
                relax.op.nn.gelu(emit(relax.op.add(emit(relax.op.matmul(x, relax.const(w))), relax.const(b))))
            ),
        ),
        target,
    )
    assert runner.rules == {"gpu-matmul"}
    x = normal(40, depth)
    np.testing.assert_allclose(runner(x)[0], gelu(x.astype(np.float64) @ w + b), atol=PRODUCT_ATOL, rtol=0)


@pytest.mark.parametrize(
    ("columns", "width"), [(1, 4), (30, 32), (64, 64), (70, 16), (384, 64), (1000, 64), (144, 32), (136, 16)]
)
def test_little_of_a_panel_is_filled_up(columns: int, width: int) -> None:
    assert panel_width(columns) == width


def plan(rows: int, columns: int, depth: int, gpu: Capabilities) -> TilePlan:
    module = function(
        {"a": ((rows, depth), "float32"), "b": ((depth, columns), "float32")},
        lambda emit, a, b: emit(relax.op.matmul(a, b)),
    )
    tail = inline_tail(kernel(module))
    assert not isinstance(tail, str)
    product = match_product(tail)
    assert not isinstance(product, str)
    return plan_tiles(product, gpu)


def test_tiles_are_as_large_as_keeps_the_device_busy() -> None:
    few, many = Capabilities(max_threads=1024, cores=4), Capabilities(max_threads=1024, cores=100)
    assert plan(128, 384, 384, few) == TilePlan(128, 64, 16, 8, 8)
    assert plan(128, 384, 384, many).slices == 4
    assert plan(128, 384, 32, many).slices == 1
    assert plan(4096, 4096, 512, many) == TilePlan(128, 128, 16, 8, 8)
    assert plan(4096, 4096, 512, replace(many, max_threads=128)).threads <= 128
    assert plan(4096, 4096, 512, replace(many, shared_bytes=8 << 10)).shared_bytes <= 8 << 10
    assert plan(16, 4096, 512, many).rows == 32
