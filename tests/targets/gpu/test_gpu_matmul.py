"""Products on a GPU against float64: tails, remainders of tiles, symbolic sizes, arrangements of axes, types."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
from gpu_running import GpuRunner, device
from tvm import relax, te, tirx

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.schedules.matmul import MatmulRule
from greencc.targets.lower import fuse
from tests.targets.cpu.running import function, normal

# float32 sums of up to 400 products of standard normals, scaled to unit variance.
ATOL = 2e-5
erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def weights(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return normal(rows, columns, seed=1) / np.float32(math.sqrt(rows)), normal(columns, seed=2)


# Rows for a product of few and for both kinds of tiles; depths that fill steps and vectors, and that don't.
@pytest.mark.parametrize(("rows", "depth"), [(3, 40), (15, 64), (75, 40), (75, 37)])
def test_bias_gelu_and_residual_for_all_remainders(rows: int, depth: int) -> None:
    widths = (1, 7, 48, 64, 70, 130)
    params = {"x": ((rows, depth), "float32")}
    params |= {f"r{n}": ((rows, n), "float32") for n in widths}
    parts = {n: weights(depth, n) for n in widths}

    def body(emit, x, *residuals):
        results = []
        for n, residual in zip(widths, residuals, strict=True):
            w, b = parts[n]
            y = emit(relax.op.add(emit(relax.op.matmul(x, relax.const(w))), relax.const(b)))
            results.append(emit(relax.op.add(emit(relax.op.nn.gelu(y)), residual)))
        return results

    runner = GpuRunner(function(params, body))
    assert runner.rules == {"gpu-matmul"}
    x, residuals = normal(rows, depth), [normal(rows, n, seed=n) for n in widths]
    for n, residual, got in zip(widths, residuals, runner(x, *residuals), strict=True):
        w, b = parts[n]
        want = gelu(x.astype(np.float64) @ w + b) + residual
        np.testing.assert_allclose(got, want, atol=ATOL, rtol=0)
