"""Softmax, norms and means: one pass over rows, with widths that do and don't fill vectors."""

import numpy as np
from references import PASS_ATOL, RowPasses, softmax
from running import Runner, function, normal
from tvm import relax, tirx

WIDTHS = (1, 5, 16, 48, 100, 384)


def test_softmax_norms_and_means_for_all_widths() -> None:
    passes = RowPasses(WIDTHS)
    runner = Runner(passes.module)
    assert runner.rules == {"cpu-rowwise"}
    passes.check(runner)


def test_symbolic_rows_and_width() -> None:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")
    runner = Runner(function({"x": ((rows, width), "float32")}, lambda emit, x: emit(relax.op.nn.softmax(x))))
    for shape in ((1, 1), (3, 17), (40, 128)):
        x = normal(*shape)
        np.testing.assert_allclose(runner(x)[0], softmax(x.astype(np.float64)), atol=PASS_ATOL, rtol=0)


def test_softmax_of_large_values_does_not_overflow() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4] + [0.0] * 13], np.float32)
    runner = Runner(function({"x": (x.shape, "float32")}, lambda emit, v: emit(relax.op.nn.softmax(v))))
    np.testing.assert_allclose(runner(x)[0], softmax(x.astype(np.float64)), atol=PASS_ATOL, rtol=0)


def test_a_reduction_over_an_inner_axis_is_left_to_other_rules() -> None:
    runner = Runner(function({"x": ((4, 6, 8), "float32")}, lambda emit, x: emit(relax.op.sum(x, axis=[1]))))
    assert "cpu-rowwise" not in runner.rules
    x = normal(4, 6, 8)
    np.testing.assert_allclose(runner(x)[0], x.sum(1), atol=PASS_ATOL, rtol=0)
