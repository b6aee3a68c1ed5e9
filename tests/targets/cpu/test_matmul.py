"""Products with fused tails against float64, for every shape of tail, tile remainder and symbolic size."""

import math

import numpy as np
import pytest
import tvm
from references import PRODUCT_ATOL, Products, linear
from running import Runner, function, host, normal, targets
from tvm import relax, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.matmul import MatmulRule
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.lower import fuse


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_matmul_bias_gelu_residual_for_all_remainders(target: CpuTarget) -> None:
    # Columns leave remainders of the tile and of a vector.
    products = Products((3, 5), 40, (1, 7, 16, 48, 70, 130))
    runner = Runner(products.module, target)
    assert runner.rules == {"cpu-matmul"}
    products.check(runner)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_symbolic_rows(target: CpuTarget) -> None:
    rows, batch = tirx.Var("s", "int64"), tirx.Var("b", "int64")
    w, b = linear(32, 80)
    runner = Runner(
        function(
            {"x": ((batch, rows, 32), "float32")},
            lambda emit, x: emit(relax.op.add(emit(relax.op.matmul(x, relax.const(w))), relax.const(b))),
        ),
        target,
    )
    assert runner.rules == {"cpu-matmul"}
    for shape in ((1, 1), (1, 3), (1, 4), (2, 5), (1, 127), (1, 128), (1, 129), (3, 131)):
        x = normal(*shape, 32)
        np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w + b, atol=PRODUCT_ATOL, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 127, 128, 129, 256, 300])
def test_static_rows_around_the_task_size(rows: int) -> None:
    w, _ = linear(24, 64)
    runner = Runner(function({"x": ((rows, 24), "float32")}, lambda emit, x: emit(relax.op.matmul(x, relax.const(w)))))
    x = normal(rows, 24)
    np.testing.assert_allclose(runner(x)[0], x.astype(np.float64) @ w, atol=PRODUCT_ATOL, rtol=0)


def test_batched_product_of_two_activations() -> None:
    runner = Runner(
        function(
            {"a": ((2, 3, 9, 20), "float32"), "b": ((2, 3, 20, 32), "float32")},
            lambda emit, a, b: emit(relax.op.matmul(a, b)),
        )
    )
    assert runner.rules == {"cpu-matmul"}
    a, b = normal(2, 3, 9, 20), normal(2, 3, 20, 32, seed=1) / np.float32(math.sqrt(20))
    np.testing.assert_allclose(runner(a, b)[0], a.astype(np.float64) @ b, atol=PRODUCT_ATOL, rtol=0)


def test_one_weight_in_two_products_is_stored_once() -> None:
    w, _ = linear(16, 16)
    shared = relax.const(w)

    def body(emit, x):
        return emit(relax.op.matmul(emit(relax.op.nn.relu(emit(relax.op.matmul(x, shared)))), shared))

    runner = Runner(function({"x": ((4, 16), "float32")}, body))
    assert [array.shape[1:] for array in runner.lowered.weights.values()] == [(16, array_width(runner))]
    x = normal(4, 16)
    want = np.maximum(x.astype(np.float64) @ w, 0) @ w
    np.testing.assert_allclose(runner(x)[0], want, atol=PRODUCT_ATOL, rtol=0)


def array_width(runner: Runner) -> int:
    return next(iter(runner.lowered.weights.values())).shape[-1]


def kernel(module: tvm.IRModule) -> tirx.PrimFunc:
    fused, _ = fuse(host().legalize(module))
    return next(f for _, f in fused.functions_items() if isinstance(f, tirx.PrimFunc))


@pytest.mark.parametrize(
    ("dtype", "shapes", "reason"),
    [
        ("float64", ((4, 8), (8, 16)), "not float32"),
        ("float32", ((4, 8), (8, 5)), "fill vectors"),
        ("float32", ((2, 4, 8), (1, 8, 16)), "batch axes"),
        ("float32", ((4, "k"), ("k", 16)), "symbolic"),
    ],
)
def test_declines_with_a_reason(dtype: str, shapes: tuple[tuple[object, ...], ...], reason: str) -> None:
    k = tirx.Var("k", "int64")
    left, right = (tuple(k if dim == "k" else dim for dim in shape) for shape in shapes)
    module = function({"a": (left, dtype), "b": (right, dtype)}, lambda emit, a, b: emit(relax.op.matmul(a, b)))
    outcome = MatmulRule(host()).apply(kernel(module), frozenset())
    assert isinstance(outcome, Declined)
    assert reason in outcome.reason


def test_a_constant_is_packed_and_a_variable_is_not() -> None:
    module = function(
        {"a": ((4, 8), "float32"), "b": ((8, 64), "float32")}, lambda emit, a, b: emit(relax.op.matmul(a, b))
    )
    func = kernel(module)
    packed, plain = MatmulRule(host()).apply(func, frozenset({1})), MatmulRule(host()).apply(func, frozenset())
    assert isinstance(packed, Scheduled)
    assert isinstance(plain, Scheduled)
    assert list(packed.layouts) == [1]
    assert not plain.layouts
