"""Weights beyond the largest buffer of a device are used in parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_running import GpuRunner, device
from tvm import relax, tirx

from greencc import UserError
from greencc.ir import SYMBOL_UPPER_ATTR, constant
from tests.targets.cpu.running import function

pytestmark = pytest.mark.vulkan


def narrow(limit: int) -> Any:
    """The device as if no tensor could have more bytes than `limit`."""
    found: Any = device()
    return replace(found, gpu=replace(found.gpu, max_buffer_bytes=limit))


@pytest.mark.parametrize(("depth", "columns", "limit"), [(64, 1000, 256 << 10), (500, 300, 256 << 10)])
def test_a_product_is_made_of_products_with_some_of_the_columns(depth: int, columns: int, limit: int) -> None:
    rng = np.random.default_rng(0)
    weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((depth, columns), (3, depth)))
    module = function({"x": ((3, depth), "float32")}, lambda emit, x: emit(relax.op.matmul(x, constant(weight))))
    runner = GpuRunner(module, narrow(limit))
    assert all(array.nbytes <= limit for array in runner.lowered.weights.values())
    np.testing.assert_allclose(runner(x)[0], x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [100, tirx.Var("rows", "int64")], ids=["known", "bounded"])
def test_a_tensor_beyond_the_limit_is_refused_with_the_number(rows: Any) -> None:
    module = function({"x": ((rows, 64), "float32")}, lambda emit, x: emit(relax.op.nn.relu(x)))
    main = module["main"].with_attr(SYMBOL_UPPER_ATTR, {"rows": 100})
    module.update_func(module.get_global_var("main"), main)
    with pytest.raises(UserError, match=r"a tensor \[.*, 64\] has up to 25600 bytes, and a kernel .* at most 25599"):
        GpuRunner(module, narrow(25599))
    GpuRunner(module, narrow(25600))


@pytest.mark.parametrize("shape", [(1000, 16), (1000,), (1000, 2, 8)])
@pytest.mark.parametrize("wraps", [False, True], ids=["inside", "negative"])
def test_rows_are_taken_of_the_part_that_holds_them(shape: tuple[int, ...], wraps: bool) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal(shape).astype(np.float32)
    indices = np.array([[0, 499, 500, 999], [501, 1, 333, 334]], np.int64)

    def body(emit: Any, i: relax.Var) -> relax.Expr:
        return emit(relax.op.take(constant(table), i, axis=0, mode="wrap" if wraps else "fast"))

    module = function({"i": ((2, 4), "int64")}, body)
    if wraps:
        indices -= 1000 * (indices % 2)
    limit = table.nbytes // 2 + 1
    runner = GpuRunner(module, narrow(limit))
    assert all(array.nbytes <= limit for array in runner.lowered.weights.values())
    np.testing.assert_array_equal(runner(indices)[0], table[indices])
