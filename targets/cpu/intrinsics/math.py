"""exp, tanh, erf and sigmoid as polynomials that vectorise, in place of one libm call per element.

TVM lowers its math intrinsics late, after vectorisation: the rules registered here get vectors of any width and
return straight-line arithmetic. Half precision goes through float32; float64 calls libm once per element.

Largest errors over all float32 inputs, against correctly rounded results (tests/targets/cpu/test_math.py):

    exp      2 ulp     overflow gives inf, below -103.97 gives 0, NaN stays NaN
    tanh     6 ulp     never leaves [-1, 1], and is +-1 beyond 9.2
    erf      8 ulp     never leaves [-1, 1], and is +-1 beyond 3.93
    sigmoid  4 ulp

Results below the smallest normal number (1.2e-38) have an absolute error of at most that size.

Sources of the coefficients: exp from the Cephes library (expf: range reduction with a two-part ln 2, degree-6
polynomial); exp_nonpositive's polynomial is a minimax fit of 2^f made for it; tanh a rational approximation of degrees
13/6, as used by Eigen; erf a rational approximation of degrees 13/8 on [-3.92, 3.92], as used by XLA. Only the numbers
are taken over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm import ir, tirx

_EXP_HIGH = 88.72283935546875
_EXP_LOW = -103.97208404541016
_LOG2E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

# 2^f for f in [-0.5, 0.5], to 1.9e-9 before rounding; exact at 0.
_EXP2 = (1.534580806e-4, 1.339993090e-3, 9.618489072e-3, 5.550328642e-2, 2.402264625e-1, 6.931471825e-1, 1.0)
# Below 2^this the results of exp_nonpositive are 0.
_EXP2_LOW = -125.0

# Behind the point from which tanh rounds to 1: the rational form gives 1 or an ulp more, with fused sums and without.
_TANH_LIMIT = 9.2
_TANH_SMALL = 4e-4
_TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

_ERF_LIMIT = 3.925724783138660
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip

Rule = Callable[[tirx.Expr], tirx.Expr]


def _lanes(x: tirx.Expr) -> int:
    return int(x.ty.dtype.lanes)


def _splat(value: float, like: tirx.Expr, dtype: str = "float32") -> tirx.Expr:
    lanes = _lanes(like)
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _type(like: tirx.Expr, dtype: str) -> str:
    lanes = _lanes(like)
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _let(name: str, value: tirx.Expr, body: Rule) -> tirx.Expr:
    var = tirx.Var(name, value.ty)
    return tirx.Let(var, value, body(var))


def _horner(coefficients: tuple[float, ...], x: tirx.Expr) -> tirx.Expr:
    result = _splat(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = result * x + _splat(coefficient, x)
    return result


def exp(x: tirx.Expr) -> tirx.Expr:
    """e^x for a float32 scalar or vector."""

    def scaled(n: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
        # 2^n in two factors, so that results below the smallest normal number are still right.
        whole = tirx.Cast(_type(x, "int32"), n)
        half = _splat(1, x, "int32")
        return _let("i", whole, lambda i: _let("h", i >> half, lambda h: (y * _power(h)) * _power(i - h)))

    def _power(k: tirx.Expr) -> tirx.Expr:
        bits = (k + _splat(127, x, "int32")) << _splat(23, x, "int32")
        return tirx.reinterpret(_type(x, "float32"), bits)

    def reduced(n: tirx.Expr, r: tirx.Expr) -> tirx.Expr:
        poly = _horner(_EXP, r) * (r * r) + r + _splat(1.0, x)
        return scaled(n, poly)

    def body(c: tirx.Expr) -> tirx.Expr:
        n = tirx.floor(c * _splat(_LOG2E, x) + _splat(0.5, x))
        return _let(
            "n",
            n,
            lambda m: _let(
                "r",
                c - m * _splat(_LN2_HIGH, x) - m * _splat(_LN2_LOW, x),
                lambda r: reduced(m, r),
            ),
        )

    def outer(v: tirx.Expr) -> tirx.Expr:
        clamped = tirx.Min(tirx.Max(v, _splat(_EXP_LOW, x)), _splat(_EXP_HIGH, x))
        inside = _let("c", clamped, body)
        high = tirx.Select(v > _splat(_EXP_HIGH, x), _splat(float("inf"), x), inside)
        low = tirx.Select(v < _splat(_EXP_LOW, x), _splat(0.0, x), high)
        return tirx.Select(v.equal(v), low, v)

    return _let("x", x, outer)


def exp_nonpositive(x: tirx.Expr) -> tirx.Expr:
    """e^x for a float32 vector without positive elements, in half of the instructions; NaN stays NaN.

    A softmax takes it of differences from the largest. The relative error is at most 1.5 ulp and |x| * 1.3 * 2^-24,
    about what the difference itself is off by; results below 2.4e-38 are 0.
    """
    low = _splat(_EXP2_LOW, x)

    def power(t: tirx.Expr, n: tirx.Expr) -> tirx.Expr:
        fraction = _let("f", _inside(t) - n, lambda f: _horner(_EXP2, f))
        bits = tirx.reinterpret(_type(x, "int32"), fraction)
        shifted = tirx.Cast(_type(x, "int32"), n) << _splat(23, x, "int32")
        return tirx.Select(t < low, _splat(0.0, x), tirx.reinterpret(_type(x, "float32"), bits + shifted))

    def _inside(t: tirx.Expr) -> tirx.Expr:
        return tirx.Select(t < low, low, t)  # so that NaN stays

    def outer(t: tirx.Expr) -> tirx.Expr:
        return _let("n", tirx.nearbyint(_inside(t)), lambda n: power(t, n))

    return _let("t", x * _splat(_LOG2E, x), outer)


def tanh(x: tirx.Expr) -> tirx.Expr:
    """Tanh for a float32 scalar or vector; tiny inputs return themselves, NaN stays NaN."""

    def inside(c: tirx.Expr) -> tirx.Expr:
        return _let("s", c * c, lambda s: c * _horner(_TANH_P, s) / _horner(_TANH_Q, s))

    def outer(v: tirx.Expr) -> tirx.Expr:
        clamped = tirx.Min(tirx.Max(v, _splat(-_TANH_LIMIT, x)), _splat(_TANH_LIMIT, x))
        # The rational form overshoots by an ulp near the limits; tanh never leaves [-1, 1].
        value = tirx.Min(tirx.Max(_let("c", clamped, inside), _splat(-1.0, x)), _splat(1.0, x))
        small = tirx.Max(v, -v) < _splat(_TANH_SMALL, x)
        return tirx.Select(v.equal(v), tirx.Select(small, v, value), v)

    return _let("x", x, outer)


def erf(x: tirx.Expr) -> tirx.Expr:
    """The error function for a float32 scalar or vector; NaN stays NaN."""

    def inside(c: tirx.Expr) -> tirx.Expr:
        # The quotient first: c times the numerator alone would lose bits of the smallest normal numbers.
        return _let("s", c * c, lambda s: c * (_horner(_ERF_P, s) / _horner(_ERF_Q, s)))

    def outer(v: tirx.Expr) -> tirx.Expr:
        clamped = tirx.Min(tirx.Max(v, _splat(-_ERF_LIMIT, x)), _splat(_ERF_LIMIT, x))
        # Near the limits the rational form overshoots by an ulp; erf never leaves [-1, 1], and reaches them.
        value = tirx.Min(tirx.Max(_let("c", clamped, inside), _splat(-1.0, x)), _splat(1.0, x))
        high = tirx.Select(v > _splat(_ERF_LIMIT, x), _splat(1.0, x), value)
        low = tirx.Select(v < _splat(-_ERF_LIMIT, x), _splat(-1.0, x), high)
        return tirx.Select(v.equal(v), low, v)

    return _let("x", x, outer)


def sigmoid(x: tirx.Expr) -> tirx.Expr:
    """1 / (1 + e^-x) for a float32 scalar or vector."""
    one = _splat(1.0, x)
    return one / (one + exp(_splat(0.0, x) - x))


@functools.cache
def register_math() -> None:
    """Register the lowering rules with TVM's LLVM backend. Calling it again does nothing."""
    for name, rule in {"exp": exp, "tanh": tanh, "erf": erf, "sigmoid": sigmoid}.items():
        tirx.op.register_intrin_lowering(f"tirx.{name}", target="llvm", f=_by_type(name, rule), level=90)
    # Without the attribute, a call in a vectorised loop turns the whole loop back into a scalar one.
    for name in ("erf", "rsqrt"):
        ir.register_op_attr(f"tirx.{name}", "TVectorizable", True)


def _by_type(name: str, rule: Rule) -> Callable[[tirx.Call], tirx.Expr]:
    """A lowering must give an expression for every type: it stands in for TVM's own."""

    def lower(call: tirx.Call) -> tirx.Expr:
        x = call.args[0]
        kind = str(x.ty.dtype).split("x")[0]
        if kind == "float32":
            return rule(x)
        if kind != "float64":
            return tirx.Cast(_type(x, kind), rule(tirx.Cast(_type(x, "float32"), x)))
        if name == "sigmoid":
            one = _splat(1.0, x, "float64")
            return one / (one + _each_lane("exp", -x))
        return _each_lane(name, x)

    return lower


def _each_lane(function: str, x: tirx.Expr) -> tirx.Expr:
    """A function of libm, called for every element of a float64 scalar or vector."""
    lanes = _lanes(x)
    if lanes == 1:
        return tirx.call_pure_extern("float64", function, x)
    results = [tirx.call_pure_extern("float64", function, tirx.Shuffle([x], [lane])) for lane in range(lanes)]
    return tirx.Shuffle(results, list(range(lanes)))
