"""Arithmetic, comparisons and bits of integers of every width, against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from emitted_kernels import PLAIN, computed, evaluate, evaluate_all, shader_of
from tvm import ir, tirx

pytestmark = pytest.mark.vulkan
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
COUNT = 256


def operands(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all sizes, the extremes among them; the second ones are never 0."""
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    a = rng.integers(info.min, info.max, COUNT, dtype=dtype, endpoint=True)
    b = rng.integers(info.min, info.max, COUNT, dtype=dtype, endpoint=True)
    a[:64] = rng.integers(max(info.min, -20), 20, 64)
    b[32:96] = rng.integers(max(info.min, -7), 7, 64)
    ends = [info.min, info.max, 0, 1]
    a[:16], b[:16] = np.repeat(np.array(ends, dtype), 4), np.tile(np.array(ends, dtype), 4)
    b[b == 0] = 3
    return a, b


def signed_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero, as C divides."""
    wide, by = a.astype(object), b.astype(object)
    quotients = [abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(wide, by, strict=True)]
    return np.array(quotients, dtype=object)


def cast(dtype: str) -> Callable[[tirx.Expr], tirx.Expr]:
    return lambda x: x.astype(dtype)


BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b),
    "least": (tirx.min, np.minimum),
    "largest": (tirx.max, np.maximum),
    "and": (lambda a, b: a & b, lambda a, b: a & b),
    "or": (lambda a, b: a | b, lambda a, b: a | b),
    "xor": (lambda a, b: a ^ b, lambda a, b: a ^ b),
    "complement": (lambda a, b: ~a, lambda a, b: ~a),
    "floor_divide": (tirx.floordiv, np.floor_divide),
    "floor_remainder": (tirx.floormod, np.remainder),
    "divide": (tirx.truncdiv, lambda a, b: signed_quotient(a, b)),
    "remainder": (tirx.truncmod, np.fmod),
}
COMPARISONS = {
    "equal": (lambda a, b: a.equal(b), np.equal),
    "less": (lambda a, b: a < b, np.less),
    "not_less": (lambda a, b: a >= b, np.greater_equal),
    "not_equal": (lambda a, b: tirx.NE(a, b), np.not_equal),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_binary(dtype: str) -> None:
    a, b = operands(dtype)
    # The smallest number by -1 has no quotient.
    b[(a == np.iinfo(dtype).min) & (b == np.array(-1).astype(dtype))] = 1
    results = evaluate_all([ours for ours, _ in BINARY.values()], [a, b], dtype)
    for (name, (_, reference)), got in zip(BINARY.items(), results, strict=True):
        np.testing.assert_array_equal(got, np.asarray(reference(a, b)).astype(dtype), err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
def test_comparisons(dtype: str) -> None:
    a, b = operands(dtype)
    b[::3] = a[::3]
    results = evaluate_all([ours for ours, _ in COMPARISONS.values()], [a, b], "bool")
    for (name, (_, reference)), got in zip(COMPARISONS.items(), results, strict=True):
        np.testing.assert_array_equal(got, reference(a, b), err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
def test_shifts(dtype: str) -> None:
    a, _ = operands(dtype)
    by = np.random.default_rng(1).integers(0, np.iinfo(dtype).bits, COUNT).astype(dtype)
    left, right = evaluate_all([lambda x, n: x << n, lambda x, n: x >> n], [a, by], dtype)
    np.testing.assert_array_equal(left, a << by)
    np.testing.assert_array_equal(right, a >> by)


@pytest.mark.parametrize("dtype", TYPES)
def test_casts(dtype: str) -> None:
    a, _ = operands(dtype)
    targets = (*TYPES, "float32", "float64", "bool")
    for target, got in zip(targets, evaluate_all([cast(t) for t in targets], [a], targets), strict=True):
        np.testing.assert_array_equal(got, a.astype(target), err_msg=target)


@pytest.mark.parametrize("dtype", TYPES)
def test_casts_from_floats(dtype: str) -> None:
    info = np.iinfo(dtype)
    a = np.random.default_rng(0).uniform(max(info.min, -(2.0**31)), min(info.max, 2.0**31 - 1000), COUNT)
    a[:6] = [0.0, 0.9, 1.5, 127.0, 100.99, 3.0]
    x, y = a.astype("float32"), a
    first, second = evaluate_all([lambda u, v: u.astype(dtype), lambda u, v: v.astype(dtype)], [x, y], dtype)
    np.testing.assert_array_equal(first, x.astype(dtype))
    np.testing.assert_array_equal(second, y.astype(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_counting_bits(dtype: str) -> None:
    a, _ = operands(dtype)
    got = evaluate(lambda x: tirx.popcount(x), [a], dtype)
    want = [f"{int(x) & (1 << np.iinfo(dtype).bits) - 1:b}".count("1") for x in a]
    np.testing.assert_array_equal(got, np.array(want, dtype))


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_leading_zeros(dtype: str) -> None:
    a, _ = operands(dtype)
    got = evaluate(lambda x: ir.Call("prim.clz", [x], ret_ty="int32"), [a], "int32")
    bits = np.iinfo(dtype).bits
    np.testing.assert_array_equal(got, [bits - (int(x) & (1 << bits) - 1).bit_length() for x in a])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_vectors_of_narrow_types(dtype: str) -> None:
    a, b = operands(dtype)
    for vector in (2, 4, 8):
        got = evaluate(lambda x, y: x * y + x, [a, b], dtype, vector=vector)
        np.testing.assert_array_equal(got, a * b + a)


def test_int64_data_stays_wide() -> None:
    a = np.array([2**40 + 3, -(2**45), 2**31, -(2**31) - 1, 7, -9, 2**62, 0] * 8)
    got = evaluate(lambda x: tirx.floordiv(x * 3 + 1, tirx.IntImm("int64", 5)), [a], "int64")
    np.testing.assert_array_equal(got, (a * 3 + 1) // 5)
    got = evaluate(lambda x: (x > tirx.IntImm("int64", 2**33)).astype("int32"), [a], "int32")
    np.testing.assert_array_equal(got, a > 2**33)


def test_arithmetic_on_indices_that_is_data_does_not_overflow() -> None:
    def squares(i: tirx.Var) -> tirx.Expr:
        return (i * i * i * tirx.IntImm("int64", 1103515245) + 12345) % tirx.IntImm("int64", 2147483648)

    i = np.arange(64, dtype=np.int64) * 1
    got = evaluate(lambda x, i: squares(i), [i], "int64")
    np.testing.assert_array_equal(got, (i * i * i * 1103515245 + 12345) % 2147483648)
    got = evaluate(lambda x, i: (squares(i)).astype("float64"), [i], "float64")
    np.testing.assert_array_equal(got, (i * i * i * 1103515245 + 12345) % 2147483648)


def test_indices_are_held_in_32_bits() -> None:
    shader = shader_of(computed(lambda a, i: a + (i + 1).astype("float32"), ["float32"], 512), PLAIN)
    assert "int64" not in shader.requires
    assert "int64_t" not in shader.source


def test_extremes_of_bools() -> None:
    a, b = np.random.default_rng(0).integers(0, 2, (2, COUNT)).astype(bool)
    least, largest = evaluate_all([lambda x, y: tirx.Min(x, y), lambda x, y: tirx.Max(x, y)], [a, b], "bool")
    np.testing.assert_array_equal(least, a & b)
    np.testing.assert_array_equal(largest, a | b)
