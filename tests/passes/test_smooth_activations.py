"""smooth-activations: the formula, equal results, refusals; what quantize-int8 makes of the factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tvm
from builders import assert_same_values, const, graph, ops, random
from tvm import relax
from tvm.relax import op

from greencc.ir import constant_array
from greencc.passes.base import PassContext, PassResult
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.smooth_activations import SmoothActivations

K, N = 8, 5
LARGEST = np.array([1.0, 2.0, 4.0, 100.0, 0.5, 0.0, 3.0, 7.0], np.float32)


class Seen:
    """Activations with the same maxima for every value; notes what was asked for."""

    def __init__(self, largest: np.ndarray) -> None:
        self._largest = largest
        self.asked: list[relax.Expr] = []

    def largest(self, module: tvm.IRModule, values: Sequence[relax.Expr]) -> list[np.ndarray]:
        self.asked += values
        return [self._largest for _ in values]


def run(module: tvm.IRModule, largest: np.ndarray = LARGEST, pass_: SmoothActivations | None = None) -> PassResult:
    result = (pass_ or SmoothActivations()).run(module, PassContext(activations=Seen(largest)))
    assert relax.analysis.check_well_formed(result.module)
    return result


def product(weight: np.ndarray, dtype: str = "float32", shape: tuple[object, ...] = (2, 3, K)) -> tvm.IRModule:
    return graph(lambda e, x: e(op.matmul(x, const(weight, dtype))), x=(shape, dtype))


@pytest.mark.parametrize("strength", [0.5, 0.25, 1.0])
def test_factors_are_those_of_the_formula_and_results_stay(strength: float) -> None:
    weight = random(K, N)
    weight[2] = 0
    before = product(weight)
    result = run(before, pass_=SmoothActivations(strength))
    assert result.rewrites == 1
    assert ops(result.module) == ["multiply", "matmul"]
    inverse, scaled = (
        constant_array(b.value.args[1])
        for block in result.module["main"].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call)
    )
    assert inverse is not None
    assert scaled is not None
    wanted = np.ones(K)
    for j in range(K):
        if LARGEST[j] and np.abs(weight[j]).max():
            wanted[j] = LARGEST[j] ** strength / np.abs(weight[j]).max() ** (1 - strength)
    np.testing.assert_allclose(1 / inverse, wanted, rtol=1e-6)
    np.testing.assert_allclose(scaled, weight * wanted[:, None], rtol=1e-6)
    assert_same_values(before, result.module, random(2, 3, K), rtol=1e-5, atol=1e-5)


def test_without_data_nothing_happens_and_a_second_run_changes_nothing() -> None:
    module = product(random(K, N))
    assert SmoothActivations().run(module, PassContext()).rewrites == 0
    smoothed = run(module).module
    assert run(smoothed).rewrites == 0


def test_symbolic_rows_and_several_products_of_one_value() -> None:
    def body(e, x):
        return e(op.matmul(x, const(random(K, N)))), e(op.matmul(x, const(random(K, 3, seed=1))))

    before = graph(body, x=("n", K))
    result = run(before)
    assert result.rewrites == 2
    assert_same_values(before, result.module, random(4, K), rtol=1e-5, atol=1e-5)


def test_quantize_int8_takes_the_factors_along() -> None:
    result = QuantizeInt8(min_weights=1).run(run(product(random(K, N))).module, PassContext())
    assert ops(result.module) == ["greencc.quantized_matmul"]
    call = next(b.value for block in result.module["main"].body.blocks for b in block.bindings)
    assert len(call.args) == 4


def test_quantize_int8_leaves_factors_that_broadcast() -> None:
    """A factor for all columns, or one that widens x, is not one for each column of x."""

    def one(e, x):
        return e(op.matmul(e(op.multiply(x, const(2.0))), const(random(K, N))))

    def wider(e, x):
        return e(op.matmul(e(op.multiply(x, const(np.ones(K)))), const(random(K, N))))

    for module in (graph(one, x=(2, K)), graph(wider, x=(2, 1))):
        result = QuantizeInt8(min_weights=1).run(module, PassContext())
        assert ops(result.module) == ["multiply", "greencc.quantized_matmul"]


def refused(module: tvm.IRModule, number: int, reason: str, largest: np.ndarray = LARGEST) -> None:
    result = run(module, largest)
    assert result.rewrites == 0
    assert [(r.condition, r.reason) for r in result.refusals] == [(number, reason)]
    assert "matmul" in result.refusals[0].node


def test_condition_1_not_float32() -> None:
    refused(product(random(K, N), "float64"), 1, "an operand or the result is not float32")


def test_condition_2_no_matrix() -> None:
    refused(product(random(2, K, N)), 2, "the weight is not a matrix")


def test_condition_3_not_finite() -> None:
    reason = "a weight or an activation is not finite"
    weight = random(K, N)
    weight[1, 1] = np.nan
    refused(product(weight), 3, reason)
    refused(product(random(K, N)), 3, reason, np.where(LARGEST == 100, np.inf, LARGEST).astype(np.float32))


def test_condition_4_columns_too_different() -> None:
    weight = random(K, N)
    weight[0] *= np.float32(1e-30)
    weight[1] *= np.float32(1e30)
    refused(product(weight), 4, "columns differ too much in size")
