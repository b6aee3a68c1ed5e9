"""Intervals of machine numbers: what a value may be, and sound arithmetic on them.

A float operator returns some rounding of a real number, and a code generator may contract a product and a
sum into one rounding. So bounds are computed exactly, as fractions, and rounded outwards into the value's
dtype: every correctly rounded result, contracted or not, lies inside. Bounds that are representable stay
exact, which is what makes 6 / 6 <= 1 provable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

FLOATS = ("float16", "float32", "float64")
# Relative slack for functions whose lowering is a library call or a polynomial, not correctly rounded.
SLACK = 2.0**-18


@dataclass(frozen=True)
class Range:
    """The values that the elements of one tensor may take.

    Attributes:
        lo, hi: bounds of the elements that are numbers: [-inf, max] may hold -inf but not +inf. Integers
            and booleans (0, 1) have integer bounds.
        nan: some element may be NaN.
        negative_zero: some element may be -0.0.
        integral: every finite element is a whole number.
    """

    lo: float
    hi: float
    nan: bool = False
    negative_zero: bool = False
    integral: bool = False

    @property
    def finite(self) -> bool:
        """Whether no element is an infinity or NaN."""
        return not self.nan and self.lo > -math.inf and self.hi < math.inf

    @property
    def has_zero(self) -> bool:
        """Whether 0 lies within the bounds."""
        return self.lo <= 0 <= self.hi

    @property
    def non_negative(self) -> bool:
        """Whether every number is +0 or greater."""
        return self.lo >= 0 and not self.negative_zero

    def value(self) -> float | None:
        """The one value that every element has, or None. Never NaN; a zero is +0."""
        return self.lo if self.lo == self.hi and not self.nan and not self.negative_zero else None


TRUE, FALSE, BOOL = Range(1, 1, integral=True), Range(0, 0, integral=True), Range(0, 1, integral=True)
ANY_FLOAT = Range(-math.inf, math.inf, nan=True, negative_zero=True)


def top(dtype: str | None) -> Range:
    """The range of which nothing is known. Element types without numpy arithmetic count as floats."""
    if dtype == "bool":
        return BOOL
    if dtype is not None and dtype.startswith(("int", "uint")) and hasattr(np, dtype):
        info = np.iinfo(dtype)
        return Range(int(info.min), int(info.max), integral=True)
    return ANY_FLOAT


def of_array(array: np.ndarray) -> Range:
    """The exact range of a constant."""
    if array.dtype.name not in FLOATS:
        known = top(array.dtype.name)
        if known is ANY_FLOAT or array.size == 0:
            return known
        return Range(int(array.min()), int(array.max()), integral=True)
    nan = bool(np.isnan(array).any())
    numbers = array[~np.isnan(array)] if nan else array
    if numbers.size == 0:
        return ANY_FLOAT
    lo, hi = float(numbers.min()), float(numbers.max())
    zeros = lo <= 0 <= hi and bool((np.signbit(numbers) & (numbers == 0)).any())
    # Only scalars are worth a test for whole numbers; weights never are.
    integral = numbers.size == 1 and (math.isinf(lo) or lo.is_integer())
    return Range(lo + 0.0, hi + 0.0, nan, zeros, integral)


def hull(*ranges: Range) -> Range:
    """The smallest range that holds all of the given ones (at least one)."""
    return Range(
        min(r.lo for r in ranges),
        max(r.hi for r in ranges),
        any(r.nan for r in ranges),
        any(r.negative_zero for r in ranges),
        all(r.integral for r in ranges),
    )


def round_down(value: Fraction | float, dtype: str) -> float:
    """The greatest float of `dtype` that is not above `value`."""
    if isinstance(value, float) and math.isinf(value):
        return value
    kind = np.dtype(dtype).type
    limit = float(np.finfo(dtype).max)
    if value > Fraction(limit):
        return limit
    if value < -Fraction(limit):
        return -math.inf
    # float() of a fraction is correctly rounded, the cast rounds again: one step back is always enough.
    near = kind(float(value))
    return float(near if Fraction(float(near)) <= value else np.nextafter(near, kind(-np.inf))) + 0.0


def round_up(value: Fraction | float, dtype: str) -> float:
    """The least float of `dtype` that is not below `value`."""
    return -round_down(-value, dtype) + 0.0


def slack(dtype: str) -> float:
    """Relative error granted to an inexact function of `dtype`."""
    return max(SLACK, 8 * float(np.finfo(dtype).eps))


def widen(lo: float, hi: float, dtype: str, absolute: float = 0.0) -> tuple[float, float]:
    """Bounds computed in double precision, made safe for an inexact lowering that keeps the sign.

    Relative slack, plus `absolute`. What is near the subnormals may also come out as 0.
    """
    least = 256 * float(np.finfo(dtype).tiny)
    low = lo - abs(lo) * slack(dtype) - absolute
    high = hi + abs(hi) * slack(dtype) + absolute
    if abs(low) < least:
        low = 0.0 if lo >= 0 else -least
    if abs(high) < least:
        high = 0.0 if hi <= 0 else least
    low, high = (max(low, 0.0) if lo >= 0 else low), (min(high, 0.0) if hi <= 0 else high)
    return round_down(low, dtype), round_up(high, dtype)


def add(a: Range, b: Range, dtype: str) -> Range:
    """Sum. Code generators drop an addition of 0, so the result may be -0 as soon as one operand may."""
    lo, hi = _sum(a.lo, b.lo, -math.inf), _sum(a.hi, b.hi, math.inf)
    nan = (a.hi == math.inf and b.lo == -math.inf) or (a.lo == -math.inf and b.hi == math.inf)
    negative_zero = a.negative_zero or b.negative_zero
    return _close(lo, hi, dtype, a.nan or b.nan or nan, negative_zero, a.integral and b.integral)


def negate(a: Range, dtype: str) -> Range:
    """Negation."""
    if dtype not in FLOATS:
        return _close(-_exact(a.hi), -_exact(a.lo), dtype, False, False, True)
    return Range(-a.hi + 0.0, -a.lo + 0.0, a.nan, a.has_zero, a.integral)


def subtract(a: Range, b: Range, dtype: str) -> Range:
    """Difference."""
    if dtype in FLOATS:
        # a - (+0) is -0 only if a is, unless a code generator spells 0 - b as -b.
        zero = b.negative_zero or (a.value() == 0 and b.has_zero)
        return add(a, replace(negate(b, dtype), negative_zero=zero), dtype)
    lo, hi = _sum(a.lo, -_exact(b.hi), -math.inf), _sum(a.hi, -_exact(b.lo), math.inf)
    return _close(lo, hi, dtype, False, False, True)


def multiply(a: Range, b: Range, dtype: str, *, same: bool = False) -> Range:
    """Product; `same` says that both operands are one value (a square)."""
    corners = [_product(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    lo, hi = min(corners), max(corners)
    integral = a.integral and b.integral
    if same:
        lo = Fraction(0) if a.has_zero else max(lo, Fraction(0))
        return _close(lo, hi, dtype, a.nan, False, integral)
    nan = a.nan or b.nan or (a.has_zero and _unbounded(b)) or (b.has_zero and _unbounded(a))
    signs = (a.non_negative and b.non_negative) or (a.hi < 0 and b.hi < 0)
    return _close(lo, hi, dtype, nan, not signs, integral)


def divide(a: Range, b: Range, dtype: str) -> Range:
    """Quotient of floats. With a zero divisor only the sign is known."""
    nan = a.nan or b.nan or (a.has_zero and b.has_zero) or (_unbounded(a) and _unbounded(b))
    signs = (a.non_negative and b.non_negative) or (a.hi < 0 and b.hi < 0)
    if b.has_zero:
        return Range(0.0 if signs else -math.inf, math.inf, nan, not signs)
    corners = [_quotient(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return _close(min(corners), max(corners), dtype, nan, not signs, False)


def maximum(a: Range, b: Range) -> Range:
    """Maximum, lowered by TVM as `a > b ? a : b`: a NaN in a gives b, one in b NaN; of equal zeros b."""
    return Range(
        b.lo if a.nan else max(a.lo, b.lo),
        max(a.hi, b.hi),
        b.nan,
        (a.negative_zero and b.lo < 0) or (b.negative_zero and (a.lo <= 0 or a.nan)),
        a.integral and b.integral,
    )


def minimum(a: Range, b: Range) -> Range:
    """Minimum, `a < b ? a : b`; see maximum."""
    return Range(
        min(a.lo, b.lo),
        b.hi if a.nan else min(a.hi, b.hi),
        b.nan,
        (a.negative_zero and b.hi > 0) or (b.negative_zero and (a.hi >= 0 or a.nan)),
        a.integral and b.integral,
    )


def _exact(x: float) -> Fraction | float:
    return x if isinstance(x, float) and math.isinf(x) else Fraction(x)


def _sum(x: Fraction | float, y: Fraction | float, undefined: float) -> Fraction | float:
    infinite = [v for v in (x, y) if isinstance(v, float) and math.isinf(v)]
    if not infinite:
        return Fraction(x) + Fraction(y)
    return infinite[0] if len(set(infinite)) == 1 else undefined


def _product(x: float, y: float) -> Fraction | float:
    if x == 0 or y == 0:
        return Fraction(0)
    if math.isinf(x) or math.isinf(y):
        return math.inf if (x > 0) == (y > 0) else -math.inf
    return Fraction(x) * Fraction(y)


def _quotient(x: float, y: float) -> Fraction | float:
    if math.isinf(y):
        # inf / inf is NaN, but its neighbours max / inf and inf / max reach from 0 to inf.
        return Fraction(0)
    if math.isinf(x):
        return math.inf if (x > 0) == (y > 0) else -math.inf
    return Fraction(x) / Fraction(y)


def _unbounded(a: Range) -> bool:
    return math.isinf(a.lo) or math.isinf(a.hi)


def _close(
    lo: Fraction | float, hi: Fraction | float, dtype: str, nan: bool, negative_zero: bool, integral: bool
) -> Range:
    if dtype not in FLOATS:
        limits = top(dtype)
        # Integer overflow wraps around: anything can come out.
        return Range(int(lo), int(hi), integral=True) if limits.lo <= lo and hi <= limits.hi else limits
    return Range(round_down(lo, dtype), round_up(hi, dtype), nan, negative_zero, integral)
