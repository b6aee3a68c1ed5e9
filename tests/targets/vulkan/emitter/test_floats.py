"""Arithmetic, comparisons and conversions of floating-point numbers, with NaN, infinities and signed zeros."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from emitted_kernels import EVERYTHING, PLAIN, evaluate, evaluate_all, evaluate_on_host
from tvm import tirx

pytestmark = pytest.mark.vulkan
ENDS = [0.0, -0.0, 1.0, -1.0, 0.5, 3e4, -3e4, np.inf, -np.inf, np.nan]


def operands(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of the ends, and random numbers."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 156)) * 10
    ends = np.array(ENDS)
    pairs = np.repeat(ends, len(ends)), np.tile(ends, len(ends))
    return np.concatenate([pairs[0], a]).astype(dtype), np.concatenate([pairs[1], b]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arithmetic(dtype: str) -> None:
    a, b = operands(dtype)
    ours = [lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y]
    with np.errstate(all="ignore"):
        wants = [a + b, a - b, a * b, a / b]
    rtol = {"float32": 3e-7, "float64": 1e-15, "float16": 2e-3}[dtype]
    for got, want in zip(evaluate_all(ours, [a, b], dtype), wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=0)
        zero = want == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_extremes_and_comparisons_are_those_of_the_cpu(dtype: str) -> None:
    a, b = operands(dtype)
    ours = [
        tirx.min,
        tirx.max,
        lambda x, y: tirx.Select(x < y, x, y),
        lambda x, y: tirx.Select(tirx.Not(x < y), x, y),
        lambda x, y: tirx.Select(tirx.NE(x, x), y, x),
        lambda x, y: tirx.if_then_else(tirx.And(x >= y, x.equal(x)), x + y, x),
    ]
    for got, want in zip(evaluate_all(ours, [a, b], dtype), evaluate_on_host(ours, [a, b], dtype), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3 if dtype == "float16" else 1e-7)


def test_classification() -> None:
    a, _ = operands("float32")
    ours = [tirx.isnan, tirx.isinf, tirx.isfinite]
    for got, want in zip(evaluate_all(ours, [a], "bool"), [np.isnan, np.isinf, np.isfinite], strict=True):
        np.testing.assert_array_equal(got, want(a))


@pytest.mark.parametrize("gpu", [EVERYTHING, PLAIN], ids=["native", "emulated"])
def test_half_precision(gpu: object) -> None:
    a, b = operands("float16")
    for vector in (1, 8):
        got = evaluate(lambda x, y: x * y + x, [a, b], "float16", gpu, vector)
        with np.errstate(all="ignore"):
            want = a * b + a
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-2)


def test_half_precision_is_rounded_to_even() -> None:
    x = np.concatenate([np.arange(2048, 2560, 0.5), [65504, 65519.9, 1e-7, 6e-8, 3e-5]] * 1).astype("float32")
    x = np.concatenate([x, np.zeros(-len(x) % 256, "float32")])
    for gpu in (EVERYTHING, PLAIN):
        for vector in (1, 4):
            got = evaluate(lambda v: v.astype("float16"), [x], "float16", gpu, vector)
            np.testing.assert_array_equal(got, x.astype("float16"))


def test_conversions() -> None:
    for source in ("float16", "float32", "float64"):
        a, _ = operands(source)
        targets = ("float16", "float32", "float64")
        casts = [lambda x, target=target: x.astype(target) for target in targets]
        for target, got in zip(targets, evaluate_all(casts, [a], targets), strict=True):
            np.testing.assert_array_equal(got, a.astype(target))


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    a = np.random.default_rng(0).normal(size=256).astype("float32")
    for vector in (1, 4):
        stored = evaluate(lambda x: x.astype("bfloat16"), [a], "bfloat16", vector=vector)
        np.testing.assert_array_equal(stored, a.astype(ml_dtypes.bfloat16))
        sums = evaluate(lambda x: x.astype("float32") * 3.0, [stored], "float32", vector=vector)
        np.testing.assert_array_equal(sums, stored.astype("float32") * 3)


def test_reinterpretation() -> None:
    a, _ = operands("float32")
    bits = evaluate(lambda x: tirx.reinterpret("int32", x), [a], "int32")
    np.testing.assert_array_equal(bits, a.view(np.int32))
    back = evaluate(lambda x: tirx.reinterpret("float32", x), [bits], "float32")
    np.testing.assert_array_equal(back.view(np.int32), bits)
    half, _ = operands("float16")
    got = evaluate(lambda x: tirx.reinterpret("uint16", x), [half], "uint16")
    np.testing.assert_array_equal(got, half.view(np.uint16))
    double, _ = operands("float64")
    got = evaluate(lambda x: tirx.reinterpret("int64", x), [double], "int64")
    np.testing.assert_array_equal(got, double.view(np.int64))
