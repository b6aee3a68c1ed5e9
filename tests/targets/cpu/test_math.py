"""The vectorised math functions against float64 in units in the last place, special values included."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tvm
from running import Runner, function, host, targets
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cpu.intrinsics.math import exp_nonpositive
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import i64, ramp

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


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.cpu)
def test_exp_of_differences_from_a_maximum(target: CpuTarget) -> None:
    x = np.minimum(samples(), np.float32(0))  # NaN stays
    size, lanes = len(x) // 16 * 16, 16
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = T.arg("x", T.buffer((size,), "float32"))
        out = T.arg("out", T.buffer((size,), "float32"))
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        with T.serial(i64(0), i64(size // lanes)) as step:
            place = [ramp(step * i64(lanes), lanes)]
            T.buffer_store(out, exp_nonpositive(tirx.BufferLoad(source, place)), place)
    got = tvm.runtime.tensor(np.zeros(size, np.float32))
    tvm.tirx.build(ib.get(), target=target.llvm_target())["main"](tvm.runtime.tensor(x[:size]), got)
    got, x = got.numpy(), x[:size]
    assert np.array_equal(np.isnan(got), np.isnan(x))
    known = ~np.isnan(x)
    exact = np.exp(x[known].astype(np.float64))
    limit = 1.5 * np.spacing(exact.astype(np.float32)) + exact * np.abs(np.maximum(x[known], -1e4)) * 1.3 * 2.0**-24
    assert (np.abs(got[known] - exact) <= limit + 2.4e-38).all()
    assert (got[known][x[known] < -87.0] == 0).all()
    assert (got[x == 0] == 1).all()


@pytest.mark.parametrize("fused", [True, False], ids=["host", "without fused multiply-adds"])
def test_bounded_functions_stay_within_their_bounds_and_reach_them(fused: bool) -> None:
    if not fused and not host().is_x86:
        pytest.skip("x86 instructions")
    x = np.linspace(-20, 20, 1 << 14).astype(np.float32)
    runner = Runner(
        function(
            {"x": (x.shape, "float32")},
            lambda emit, v: [emit(relax.op.tanh(v)), emit(relax.op.erf(v)), emit(relax.op.sigmoid(v))],
        ),
        host() if fused else replace(host(), cpu="x86-64", features=("sse4.2",)),
    )
    for got, low in zip(runner(x), (-1, -1, 0), strict=True):
        assert got.min() >= low
        assert got.max() == 1
        assert (got[x > 18] == 1).all()
        if low:
            assert (got[x < -10] == low).all()


def test_signed_zero_survives() -> None:
    x = np.array([-0.0] * 16, np.float32)
    runner = Runner(
        function({"x": ((16,), "float32")}, lambda emit, v: [emit(relax.op.tanh(v)), emit(relax.op.erf(v))])
    )
    for got in runner(x):
        assert np.signbit(got).all()
