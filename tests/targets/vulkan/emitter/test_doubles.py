"""Errors of the functions of the shader library in double precision, against the host's, and special values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from emitted_kernels import PLAIN, evaluate, evaluate_all, with_pairs_of
from tvm import tirx

pytestmark = [pytest.mark.vulkan, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
SMALLEST = 2.2250738585072014e-308
LARGEST = 1.7976931348623157e308
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1e300, -1e300, 1e-300, 2.5, 2.0**53 + 2, 710,
     -746, 5e-324, SMALLEST, LARGEST, 1e-17]
)  # fmt: skip
pairs = partial(with_pairs_of, SPECIAL)
COUNT = 1 << 14

Reference = Callable[[np.ndarray], np.ndarray]
# By function of TIR: the reference, the range, and the largest error in units in the last place. The reference may be
# off by one itself.
FUNCTIONS: dict[str, tuple[Reference, float, float, float]] = {
    "exp": (np.exp, -745, 709.7, 1.5),
    "exp2": (np.exp2, -1074, 1023.9, 1.5),
    "exp10": (lambda x: np.power(10.0, x), -323, 308, 2),
    "log": (np.log, SMALLEST, LARGEST, 1.5),
    "log2": (np.log2, SMALLEST, LARGEST, 2.5),
    "log10": (np.log10, SMALLEST, LARGEST, 2.5),
    "log1p": (np.log1p, -1, 100, 3),
    "sin": (np.sin, -1e7, 1e7, 1.5),
    "cos": (np.cos, -1e7, LARGEST, 1.5),
    "tan": (np.tan, -100, LARGEST, 3),
    "asin": (np.arcsin, -1, 1, 4),
    "acos": (np.arccos, -1, 1, 4),
    "atan": (np.arctan, -1e5, LARGEST, 2),
    "tanh": (np.tanh, -25, 25, 4),
    "sinh": (np.sinh, -710, 710, 4),
    "cosh": (np.cosh, -710, 710, 4),
    "asinh": (np.arcsinh, -1e10, 1e10, 4),
    "acosh": (np.arccosh, 1, 1e10, 4),
    "atanh": (np.arctanh, -1, 1, 4),
    "erf": (np.vectorize(math.erf), -7, 7, 4),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -709, 50, 4),
    "sqrt": (np.sqrt, 0, LARGEST, 1),
    "rsqrt": (lambda x: 1 / np.sqrt(x), SMALLEST, LARGEST, 2),
}


def sample(low: float, high: float) -> np.ndarray:
    """Special values, numbers spread evenly, and others spread evenly over all magnitudes."""
    rng = np.random.default_rng(0)
    even = rng.uniform(low, high, COUNT // 2)
    sizes = np.exp(rng.uniform(math.log(1e-300), math.log(high), COUNT // 4))
    near_one = rng.uniform(0.3, 3, COUNT // 4 - len(SPECIAL))
    others = np.concatenate([sizes, near_one])
    signs = rng.choice([-1, 1] if low < 0 else [1], len(others))
    return np.concatenate([even, np.clip(others * signs, low, high), SPECIAL])


def check(name: str, got: np.ndarray, want: np.ndarray, most: float) -> None:
    """Errors in units in the last place of normal results; others may be off by the smallest normal number."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=name)
    infinite = np.isinf(want)
    np.testing.assert_array_equal(got[infinite], want[infinite], err_msg=name)
    finite = np.isfinite(want)
    assert np.isfinite(got[finite]).all(), name
    normal = finite & (np.abs(want) >= SMALLEST)
    ulp = np.abs(got[normal] - want[normal]) / np.spacing(np.abs(want[normal]))
    worst = int(np.argmax(ulp))
    assert ulp[worst] <= most, f"{name}: {ulp[worst]} ulp at {got[normal][worst]!r}"
    small = finite & (np.abs(want) < SMALLEST)
    assert (np.abs(got[small] - want[small]) <= SMALLEST).all(), name


def of_input(name: str, number: int) -> Callable[..., tirx.Expr]:
    return lambda *x: getattr(tirx, name)(x[number])


@pytest.mark.parametrize("part", range(6))
def test_functions(part: int) -> None:
    # A few in a kernel: compilers take longer than in proportion to its size.
    names = list(FUNCTIONS)[part::6]
    inputs = [sample(*FUNCTIONS[name][1:3]) for name in names]
    results = evaluate_all([of_input(name, n) for n, name in enumerate(names)], inputs, "float64", PLAIN)
    for name, x, got in zip(names, inputs, results, strict=True):
        reference, _, _, most = FUNCTIONS[name]
        check(name, got, reference(x), most)


def test_power() -> None:
    for a, b in (
        pairs(sample(0, 1e30), sample(-10, 10)),
        pairs(sample(-30, 30), np.round(sample(-150, 150))),
        pairs(sample(0.9, 1.1), sample(-7000, 7000)),
    ):
        got = evaluate(tirx.pow, [a, b], "float64", PLAIN)
        want = np.power(a, b)
        check("pow", got, want, 2)
        zeros = want == 0
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))


def test_remainder_is_exact() -> None:
    for a, b in (
        pairs(sample(-1e10, 1e10), sample(-100, 100)),
        pairs(sample(-1e300, 1e300), sample(-1e-290, 1e-290)),
    ):
        got = evaluate(tirx.fmod, [a, b], "float64", PLAIN)
        want = np.fmod(a, b)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


def test_angle_of_a_point() -> None:
    a, b = pairs(sample(-10, 10), sample(-10, 10))
    got, want = evaluate(tirx.atan2, [a, b], "float64", PLAIN), np.arctan2(a, b)
    check("atan2", got, want, 3)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


def test_signs_and_lengths() -> None:
    a, b = pairs(sample(-1e10, 1e10), sample(-1e3, 1e3))
    length, signed = evaluate_all([tirx.hypot, tirx.copysign], [a, b], "float64", PLAIN)
    plain = np.isfinite(a) & np.isfinite(b)
    check("hypot", length[plain], np.hypot(a, b)[plain], 3)
    np.testing.assert_array_equal(signed, np.copysign(a, b))
