"""Errors of the functions of the shader library, against double precision, and what they make of special values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from emitted_kernels import EVERYTHING, PLAIN, evaluate, evaluate_all, with_pairs_of
from tvm import tirx

pytestmark = [pytest.mark.vulkan, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1e30, -1e30, 1e-30, 2.5, 1e7 + 1], "float32"
)
pairs = partial(with_pairs_of, SPECIAL)
COUNT = 1 << 15
SMALLEST = 1.2e-38

Reference = Callable[[np.ndarray], np.ndarray]
# By function of TIR: the reference, the range, and the largest error in units in the last place.
FUNCTIONS: dict[str, tuple[Reference, float, float, float]] = {
    "exp": (np.exp, -87, 88, 200),  # the device's own: 3 + 2 |x| ulp
    "exp2": (np.exp2, -126, 127, 256),
    "exp10": (lambda x: 10.0**x, -37, 38, 3),
    "log": (np.log, SMALLEST, 1e38, 3),
    "log2": (np.log2, SMALLEST, 1e38, 3),
    "log10": (np.log10, SMALLEST, 1e38, 3),
    "log1p": (np.log1p, -1, 100, 3),
    "tanh": (np.tanh, -12, 12, 7),
    "sin": (np.sin, -100, 100, math.inf),
    "cos": (np.cos, -100, 100, math.inf),
    "tan": (np.tan, -100, 100, 4),
    "asin": (np.arcsin, -1, 1, 4),
    "acos": (np.arccos, -1, 1, 4),
    "atan": (np.arctan, -100, 100, 4),
    "sinh": (np.sinh, -89, 89, 3),
    "cosh": (np.cosh, -89, 89, 3),
    "asinh": (np.arcsinh, -1e10, 1e10, 3),
    "acosh": (np.arccosh, 1, 1e10, 3),
    "atanh": (np.arctanh, -1, 1, 4),
    "sqrt": (np.sqrt, 0, 1e38, 3),
    "rsqrt": (lambda x: 1 / np.sqrt(x), SMALLEST, 1e38, 4),
    "floor": (np.floor, -1e9, 1e9, 0),
    "ceil": (np.ceil, -1e9, 1e9, 0),
    "trunc": (np.trunc, -1e9, 1e9, 0),
    "round": (np.round, -1e9, 1e9, 0),
    "abs": (np.abs, -1e30, 1e30, 0),
}


def sample(low: float, high: float) -> np.ndarray:
    """Special values, numbers spread evenly, and others spread evenly over all magnitudes."""
    rng = np.random.default_rng(0)
    even = rng.uniform(low, high, COUNT // 2)
    sizes = np.exp(rng.uniform(math.log(1e-30), math.log(high), COUNT // 2 - len(SPECIAL)))
    signs = rng.choice([-1, 1] if low < 0 else [1], len(sizes))
    return np.concatenate([even, np.clip(sizes * signs, low, None), SPECIAL]).astype("float32")


def check(name: str, got: np.ndarray, want: np.ndarray, most: float) -> None:
    """Errors in units in the last place of the rounded result, where that is a normal number."""
    rounded = want.astype("float32")
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded), err_msg=name)
    infinite = np.isinf(rounded)
    np.testing.assert_array_equal(got[infinite], rounded[infinite], err_msg=name)
    normal = np.isfinite(rounded) & (np.abs(rounded) > SMALLEST)
    assert np.isfinite(got[normal]).all(), name
    ulp = np.abs(got[normal] - want[normal]) / np.spacing(np.abs(rounded[normal])).astype(np.float64)
    assert ulp.max() <= most, f"{name}: {ulp.max()} ulp at {np.argmax(ulp)}"


def of_input(name: str, number: int) -> Callable[..., tirx.Expr]:
    return lambda *x: getattr(tirx, name)(x[number])


@pytest.mark.parametrize("part", [0, 1])
def test_functions(part: int) -> None:
    # Half of them in a kernel: a device may have no more than 32 buffers for one.
    names = list(FUNCTIONS)[part::2]
    inputs = [sample(*FUNCTIONS[name][1:3]) for name in names]
    results = evaluate_all([of_input(name, n) for n, name in enumerate(names)], inputs, "float32", PLAIN)
    for name, x, got in zip(names, inputs, results, strict=True):
        reference, _, _, most = FUNCTIONS[name]
        check(name, got, reference(x.astype(np.float64)), most)


def test_absolute_errors() -> None:
    x = sample(-5, 5)
    got = evaluate(tirx.erf, [x], "float32", PLAIN)
    want = np.array([math.erf(v) for v in x.astype(np.float64)])
    assert np.nanmax(np.abs(got - want)) < 1.1e-7
    assert np.isnan(got[np.isnan(x)]).all()
    angles = np.concatenate([sample(-100, 100), sample(-3e38, 3e38)])
    for name, got in zip(("sin", "cos"), evaluate_all([tirx.sin, tirx.cos], [angles], "float32", PLAIN), strict=True):
        want = getattr(np, name)(angles.astype(np.float64))
        assert np.nanmax(np.abs(got - want)) < 2.0**-23
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def test_power() -> None:
    for a, b in (
        pairs(sample(0, 1e10), sample(-10, 10)),
        pairs(sample(-30, 30), np.round(sample(-5, 5))),
        pairs(sample(0.9, 1.1), sample(-800, 800)),
    ):
        got = evaluate(tirx.pow, [a, b], "float32", PLAIN)
        check("pow", got, np.power(a.astype(np.float64), b.astype(np.float64)), 2)


def test_remainder_is_exact() -> None:
    a, b = pairs(sample(-1e10, 1e10), sample(-100, 100))
    got = evaluate(tirx.fmod, [a, b], "float32", PLAIN)
    np.testing.assert_array_equal(got, np.fmod(a, b))


def test_angle_of_a_point() -> None:
    a, b = pairs(sample(-10, 10), sample(-10, 10))
    got = evaluate(tirx.atan2, [a, b], "float32", PLAIN)
    check("atan2", got, np.arctan2(a.astype(np.float64), b.astype(np.float64)), 4)
    zeros = got == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(np.arctan2(a, b)[zeros]))


def test_half_precision_goes_through_single() -> None:
    x = np.linspace(-4, 4, 1024).astype("float16")
    for gpu in (EVERYTHING, PLAIN):
        for name, got in zip(
            ("tanh", "exp", "sin"), evaluate_all([tirx.tanh, tirx.exp, tirx.sin], [x], "float16", gpu), strict=True
        ):
            want = getattr(np, name)(x.astype(np.float64))
            np.testing.assert_allclose(got, want, rtol=6e-4, atol=1e-7, err_msg=name)
