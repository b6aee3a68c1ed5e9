"""The vectorised math functions against float64 in units in the last place, special values included."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from running import Runner, function, targets
from tvm import relax

from greencc.targets.cpu.target import CpuTarget

TINY = np.finfo(np.float32).tiny
EDGES = [88.72, 88.73, -87.0, -104.5, 1e30, -1e30]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, TINY, -TINY, *EDGES], np.float32)
REFERENCES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "exp": (np.exp, 2.0),
    "tanh": (np.tanh, 6.0),
    "erf": (np.vectorize(math.erf, otypes=[np.float64]), 8.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4.0),
}


def samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    ranges = [(-104, 89), (-10, 10), (-1, 1), (-1e-3, 1e-3), (-1e-6, 1e-6)]
    parts = [rng.uniform(low, high, 1 << 13) for low, high in ranges]
    return np.concatenate([SPECIAL, *parts]).astype(np.float32)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_error_in_ulp(target: CpuTarget) -> None:
    x = samples()
    runner = Runner(
        function(
            {"x": (x.shape, "float32")},
            lambda emit, v: [emit(getattr(relax.op, name)(v)) for name in REFERENCES],
        ),
        target,
    )
    with np.errstate(all="ignore"):
        for (name, (reference, limit)), got in zip(REFERENCES.items(), runner(x), strict=True):
            exact = reference(x.astype(np.float64))
            rounded = exact.astype(np.float32)
            assert np.array_equal(np.isnan(got), np.isnan(rounded)), name
            # Below the smallest normal number an absolute error of that size is all that is promised.
            normal = np.isfinite(rounded) & (np.abs(rounded) >= TINY)
            ulp = np.abs(got[normal] - exact[normal]) / np.spacing(np.abs(rounded[normal])).astype(np.float64)
            assert ulp.max() <= limit, f"{name}: {ulp.max()} ulp at {x[normal][ulp.argmax()]}"
            small = np.isfinite(rounded) & (np.abs(rounded) < TINY)
            assert np.abs(got[small] - exact[small]).max(initial=0) <= TINY, name
            infinite = np.isinf(rounded)
            assert np.array_equal(got[infinite], rounded[infinite]), name


def test_bounded_functions_stay_within_their_bounds() -> None:
    x = np.linspace(-20, 20, 1 << 14).astype(np.float32)
    runner = Runner(
        function(
            {"x": (x.shape, "float32")},
            lambda emit, v: [emit(relax.op.tanh(v)), emit(relax.op.erf(v)), emit(relax.op.sigmoid(v))],
        )
    )
    for got, low in zip(runner(x), (-1, -1, 0), strict=True):
        assert got.min() >= low
        assert got.max() <= 1


def test_signed_zero_survives() -> None:
    x = np.array([-0.0] * 16, np.float32)
    runner = Runner(
        function({"x": ((16,), "float32")}, lambda emit, v: [emit(relax.op.tanh(v)), emit(relax.op.erf(v))])
    )
    for got in runner(x):
        assert np.signbit(got).all()
