"""What kernels compute, by numpy in float64, and the modules that tests of several rules compute it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from tests.targets.cpu.running import function, normal

Run = Callable[..., list[np.ndarray]]

# float32 sums of up to 400 products of standard normals, scaled to unit variance.
PRODUCT_ATOL = 2e-5
PASS_ATOL = 3e-6
_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    power = np.exp(x - x.max(axis, keepdims=True))
    return power / power.sum(axis, keepdims=True)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def linear(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight and a bias that keep the variance of rows."""
    return normal(rows, columns, seed=1) / np.float32(math.sqrt(rows)), normal(columns, seed=2)


class Products:
    """gelu(x W + b) + residual for each of several numbers of columns: compiling is the slow part, so in one module.

    Args:
        lead: leading dimensions of x.
        depth: its last one.
        widths: the numbers of columns.
    """

    def __init__(self, lead: Sequence[int], depth: int, widths: Sequence[int]) -> None:
        self._lead, self._depth = tuple(lead), depth
        self._parts = {n: linear(depth, n) for n in widths}

    @property
    def module(self) -> tvm.IRModule:
        params = {"x": ((*self._lead, self._depth), "float32")}
        params |= {f"r{n}": ((*self._lead, n), "float32") for n in self._parts}

        def body(emit, x, *residuals):
            results = []
            for (w, b), residual in zip(self._parts.values(), residuals, strict=True):
                y = emit(relax.op.add(emit(relax.op.matmul(x, relax.const(w))), relax.const(b)))
                results.append(emit(relax.op.add(emit(relax.op.nn.gelu(y)), residual)))
            return results

        return function(params, body)

    def check(self, run: Run) -> None:
        """Compare what `run` computes with float64."""
        x = normal(*self._lead, self._depth)
        residuals = [normal(*self._lead, n, seed=n) for n in self._parts]
        for (w, b), residual, got in zip(self._parts.values(), residuals, run(x, *residuals), strict=True):
            want = gelu(x.astype(np.float64) @ w + b) + residual
            np.testing.assert_allclose(got, want, atol=PRODUCT_ATOL, rtol=0)


class RowPasses:
    """Softmax, layer norm, root-mean-square norm and mean over rows of several widths, in one module.

    Args:
        widths: the lengths of the rows.
    """

    KINDS = 4

    def __init__(self, widths: Sequence[int]) -> None:
        self._scales = {n: (normal(n, seed=n), normal(n, seed=n + 1)) for n in widths}

    @property
    def module(self) -> tvm.IRModule:
        def body(emit, *values):
            results = []
            for (gamma, beta), x in zip(self._scales.values(), values, strict=True):
                gamma, beta = relax.const(gamma), relax.const(beta)
                results.append(emit(relax.op.nn.softmax(x)))
                results.append(emit(relax.op.nn.layer_norm(x, gamma, beta, axes=[-1])))
                results.append(emit(relax.op.nn.rms_norm(x, gamma, axes=[-1])))
                results.append(emit(relax.op.mean(x, axis=[-1])))
            return results

        return function({f"x{n}": ((3, 7, n), "float32") for n in self._scales}, body)

    def check(self, run: Run) -> None:
        """Compare what `run` computes with float64."""
        arrays = {n: normal(3, 7, n, seed=n) * 3 + 1 for n in self._scales}
        results = iter(run(*arrays.values()))
        for n, x in arrays.items():
            (gamma, beta), wide = self._scales[n], x.astype(np.float64)
            np.testing.assert_allclose(next(results), softmax(wide), atol=PASS_ATOL, rtol=0)
            normed = next(results)
            if n > 1:  # the variance of one element is rounding
                np.testing.assert_allclose(normed, layer_norm(wide, gamma, beta), atol=3e-5, rtol=0)
            scale = np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
            np.testing.assert_allclose(next(results), wide / scale * gamma, atol=1e-5, rtol=0)
            np.testing.assert_allclose(next(results), wide.mean(-1), atol=PASS_ATOL, rtol=0)
