"""Softmax, norms and means: one pass over rows, with widths that do and don't fill vectors."""

import numpy as np
from running import Runner, function, normal
from tvm import relax, tirx

WIDTHS = (1, 5, 16, 48, 100, 384)
ATOL = 3e-6


def softmax(x: np.ndarray) -> np.ndarray:
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def test_softmax_layer_norm_and_mean_for_all_widths() -> None:
    params = {f"x{n}": ((3, 7, n), "float32") for n in WIDTHS}
    scales = {n: (normal(n, seed=n), normal(n, seed=n + 1)) for n in WIDTHS}

    def body(emit, *values):
        results = []
        for n, x in zip(WIDTHS, values, strict=True):
            gamma, beta = (relax.const(a) for a in scales[n])
            results.append(emit(relax.op.nn.softmax(x)))
            results.append(emit(relax.op.nn.layer_norm(x, gamma, beta, axes=[-1])))
            results.append(emit(relax.op.mean(x, axis=[-1])))
        return results

    runner = Runner(function(params, body))
    assert runner.rules == {"cpu-rowwise"}
    arrays = {n: normal(3, 7, n, seed=n) * 3 + 1 for n in WIDTHS}
    results = iter(runner(*arrays.values()))
    for n, x in arrays.items():
        wide = x.astype(np.float64)
        np.testing.assert_allclose(next(results), softmax(wide), atol=ATOL, rtol=0)
        if n > 1:
            np.testing.assert_allclose(next(results), layer_norm(wide, *scales[n]), atol=3e-5, rtol=0)
        else:
            next(results)
        np.testing.assert_allclose(next(results), wide.mean(-1), atol=ATOL, rtol=0)


def test_symbolic_rows_and_width() -> None:
    rows, width = tirx.Var("r", "int64"), tirx.Var("w", "int64")
    runner = Runner(function({"x": ((rows, width), "float32")}, lambda emit, x: emit(relax.op.nn.softmax(x))))
    for shape in ((1, 1), (3, 17), (40, 128)):
        x = normal(*shape)
        np.testing.assert_allclose(runner(x)[0], softmax(x.astype(np.float64)), atol=ATOL, rtol=0)


def test_softmax_of_large_values_does_not_overflow() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4] + [0.0] * 13], np.float32)
    runner = Runner(function({"x": (x.shape, "float32")}, lambda emit, v: emit(relax.op.nn.softmax(v))))
    np.testing.assert_allclose(runner(x)[0], softmax(x.astype(np.float64)), atol=ATOL, rtol=0)


def test_a_reduction_over_an_inner_axis_is_left_to_other_rules() -> None:
    runner = Runner(function({"x": ((4, 6, 8), "float32")}, lambda emit, x: emit(relax.op.sum(x, axis=[1]))))
    assert "cpu-rowwise" not in runner.rules
    x = normal(4, 6, 8)
    np.testing.assert_allclose(runner(x)[0], x.sum(1), atol=ATOL, rtol=0)
