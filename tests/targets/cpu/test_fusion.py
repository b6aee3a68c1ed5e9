"""What fusion joins, and what it must not: a small result is computed once, not for every element it is spread to."""

from __future__ import annotations

import numpy as np
from running import Runner, function, normal
from tvm import relax


def test_a_gate_is_computed_once() -> None:
    weight = normal(8, 8, 1, 1, seed=1)

    def body(emit, x, gate):
        y = emit(relax.op.nn.relu(emit(relax.op.nn.conv2d(gate, relax.const(weight)))))
        return [emit(relax.op.multiply(x, y))]

    runner = Runner(function({"x": ((1, 8, 6, 6), "float32"), "gate": ((1, 8, 1, 1), "float32")}, body))
    x, gate = normal(1, 8, 6, 6), normal(1, 8, 1, 1, seed=2)
    wanted = x * np.maximum(weight[:, :, 0, 0] @ gate[0, :, 0, 0], 0).reshape(1, 8, 1, 1)
    np.testing.assert_allclose(runner(x, gate)[0], wanted, rtol=1e-4, atol=1e-5)
    assert len(runner.lowered.calls) == 2


def test_a_bias_and_a_table_of_positions_fuse_with_their_product() -> None:
    weight, bias = normal(16, 32, seed=1), normal(32, seed=2)

    def body(emit, x, positions):
        y = emit(relax.op.add(emit(relax.op.matmul(x, relax.const(weight))), relax.const(bias)))
        return [emit(relax.op.add(y, positions))]

    runner = Runner(function({"x": ((2, 5, 16), "float32"), "positions": ((1, 5, 32), "float32")}, body))
    x, positions = normal(2, 5, 16), normal(1, 5, 32, seed=3)
    np.testing.assert_allclose(runner(x, positions)[0], x @ weight + bias + positions, rtol=1e-4, atol=1e-5)
    assert len(runner.lowered.calls) == 1


def test_a_scale_fuses_with_the_product_that_it_follows() -> None:
    """The extreme that the scale is made from is read before the product too, so that nothing computes it again."""
    weight = normal(16, 32, seed=1)

    def body(emit, x):
        peak = emit(relax.op.max(emit(relax.op.abs(x))))
        y = emit(relax.op.matmul(emit(relax.op.divide(x, peak)), relax.const(weight)))
        return [emit(relax.op.multiply(y, peak))]

    runner = Runner(function({"x": ((5, 16), "float32")}, body))
    x = normal(5, 16)
    np.testing.assert_allclose(runner(x)[0], x @ weight, rtol=1e-4, atol=1e-5)
    assert [call.kernel for call in runner.lowered.calls][-1] == "fused_matmul_multiply"
