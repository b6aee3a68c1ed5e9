"""One element in, one element out, where Relax has no such operator or one with other edge cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import at, broadcast_shape, compute, element_type, product, sequence

Scalar = Callable[..., tirx.Expr]


def _kind(x: tirx.Expr) -> str:
    """'float', 'int', 'uint' or 'bool'."""
    name = element_type(x)
    return "float" if name.startswith(("float", "bfloat")) else name.rstrip("0123456789")


def _bits(x: tirx.Expr) -> int:
    return int("".join(filter(str.isdigit, element_type(x))))


def _const(value: float, like: tirx.Expr) -> tirx.Expr:
    return tirx.const(value, element_type(like))


def divide_integers(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """Quotient truncated towards zero. x/0 is 0 and MIN/-1 is MIN: neither traps."""
    safe = tirx.Select(b == 0, _const(1, b), b)
    if _kind(a) == "uint":
        return tirx.Select(b == 0, _const(0, a), tirx.truncdiv(a, safe))
    safe = tirx.Select(b == -1, _const(1, b), safe)
    quotient = tirx.Select(b == -1, _const(0, a) - a, tirx.truncdiv(a, safe))
    return tirx.Select(b == 0, _const(0, a), quotient)


def modulo(a: tirx.Expr, b: tirx.Expr, *, c_style: bool) -> tirx.Expr:
    """Remainder with the sign of the divisor, or of the dividend (`c_style`); x mod 0 is 0 for integers."""
    if _kind(a) == "float":
        work = _as_float(a), _as_float(b)
        rest = tirx.call_pure_extern(element_type(work[0]), "fmod" if element_type(a) == "float64" else "fmodf", *work)
        if not c_style:
            crosses = tirx.And(rest != 0, _differ(rest < 0, work[1] < 0))
            rest = tirx.Select(crosses, rest + work[1], rest)
        return tirx.Cast(element_type(a), rest)
    safe = tirx.Select(b == 0, _const(1, b), b)
    if _kind(a) == "uint":
        return tirx.Select(b == 0, _const(0, a), tirx.truncmod(a, safe))
    safe = tirx.Select(b == -1, _const(1, b), safe)
    rest = tirx.truncmod(a, safe)
    if not c_style:
        crosses = tirx.And(rest != 0, _differ(rest < 0, safe < 0))
        rest = tirx.Select(crosses, rest + safe, rest)
    return tirx.Select(b == 0, _const(0, a), rest)


def _differ(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """Exclusive or; code generation has no inequality of booleans."""
    return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))


def _as_float(x: tirx.Expr) -> tirx.Expr:
    return x if element_type(x) == "float64" else tirx.Cast("float32", x)


def power(base: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
    """Base ** exponent in the base's type; any mixture of number types."""
    dtype = element_type(base)
    if _kind(base) == "float":
        work = "float64" if dtype == "float64" else "float32"
        return tirx.Cast(dtype, tirx.pow(tirx.Cast(work, base), tirx.Cast(work, exponent)))
    return tirx.Cast(dtype, tirx.pow(tirx.Cast("float64", base), tirx.Cast("float64", exponent)))


def power_of_integers(base: te.Tensor, exponent: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """Base ** exponent of two integer tensors of one shape, wrapping like integer multiplication.

    A negative exponent gives the reciprocal truncated: 0 unless the base is 1 or -1.
    """

    def generate(ins: list[tirx.Buffer], outs: list[tirx.Buffer]) -> tirx.Stmt:
        bases, exponents, out = T.buffer_proxy(ins[0]), T.buffer_proxy(ins[1]), T.buffer_proxy(outs[0])
        with IRBuilder() as builder:
            with T.serial(0, product(base.shape)) as i, sequence():
                square = T.buffer_proxy(T.decl_buffer([1], element_type(base), scope="local"))
                square[0] = bases[i]
                out[i] = _const(1, bases[i])
                with T.serial(0, _bits(exponents[i])) as bit, sequence():
                    one = _const(1, exponents[i])
                    shifted = tirx.shift_right(exponents[i], tirx.Cast(element_type(exponent), bit))
                    with T.If(tirx.bitwise_and(shifted, one) != 0), T.Then():
                        out[i] = out[i] * square[0]
                    square[0] = square[0] * square[0]
                if _kind(exponents[i]) == "int":
                    is_unit = bases[i] == 1
                    if _kind(bases[i]) == "int":
                        is_unit = tirx.Or(is_unit, bases[i] == -1)
                    with T.If(tirx.And(exponents[i] < 0, tirx.Not(is_unit))), T.Then():
                        out[i] = _const(0, bases[i])
            return builder.get()

    return te.extern([base.shape], [base, exponent], generate, dtype=element_type(base), name="power", tag="power")


def shift(x: tirx.Expr, count: tirx.Expr, *, left: bool) -> tirx.Expr:
    """Shift; a count that is negative or at least the width shifts everything out.

    To the right, signed integers keep their sign.
    """
    # The width is a power of two: no bits from it on means 0 <= count < width.
    fits = tirx.bitwise_and(count, tirx.bitwise_not(_const(_bits(x) - 1, count))) == 0
    safe = tirx.Select(fits, count, _const(0, count))
    nothing = _const(0, x)
    if left:
        return tirx.Select(fits, tirx.shift_left(x, safe), nothing)
    if _kind(x) == "int":
        nothing = tirx.Select(x < 0, _const(-1, x), nothing)
    return tirx.Select(fits, tirx.shift_right(x, safe), nothing)


def round_half_even(x: tirx.Expr) -> tirx.Expr:
    """Nearest integer; halves go to the even one."""
    return tirx.Cast(element_type(x), tirx.nearbyint(_as_float(x)))


def sign(x: tirx.Expr) -> tirx.Expr:
    """-1, 0 or 1; NaN stays NaN."""
    if _kind(x) == "uint":
        return tirx.Select(x > 0, _const(1, x), _const(0, x))
    return tirx.Select(x > 0, _const(1, x), tirx.Select(x < 0, _const(-1, x), x))


def is_infinite(x: tirx.Expr, *, positive: bool, negative: bool) -> tirx.Expr:
    """Whether x is an infinity of a wanted sign."""
    limit = tirx.const(float("inf"), "float64" if element_type(x) == "float64" else "float32")
    wide = _as_float(x)
    result: tirx.Expr = tirx.const(False, "bool")
    if positive:
        result = tirx.Or(result, wide == limit)
    if negative:
        result = tirx.Or(result, wide == -limit)
    return result


def is_nan(x: tirx.Expr) -> tirx.Expr:
    """Whether x is NaN."""
    return tirx.isnan(_as_float(x))  # x != x is simplified away


def math_function(x: tirx.Expr, *, function: str) -> tirx.Expr:
    """A function of C's math library, called in double precision for float64 and in single for the rest."""
    wide = _as_float(x)
    name = function if element_type(wide) == "float64" else f"{function}f"
    return tirx.Cast(element_type(x), tirx.call_pure_extern(element_type(wide), name, wide))


def softplus(x: tirx.Expr) -> tirx.Expr:
    """log(1 + exp(x)) without overflow."""
    wide = _as_float(x)
    dtype = element_type(wide)
    tail = tirx.call_pure_extern(dtype, "log1p" if dtype == "float64" else "log1pf", tirx.exp(-tirx.abs(wide)))
    return tirx.Cast(element_type(x), tirx.max(wide, tirx.const(0, dtype)) + tail)


def to_bool(x: tirx.Expr) -> tirx.Expr:
    """Whether x is not zero (NaN isn't)."""
    if _kind(x) != "float":
        return x != _const(0, x)
    wide = _as_float(x)
    return tirx.Or(wide != _const(0, wide), tirx.isnan(wide))  # the comparison is false for NaN


def bit_cast(x: tirx.Expr, *, dtype: str) -> tirx.Expr:
    """The same bits as another type of the same width."""
    if element_type(x) == dtype:
        return x
    if dtype == "bool":
        return x != 0
    if element_type(x) == "bool":
        return tirx.Cast(dtype, x)
    return tirx.reinterpret(dtype, x)


def maximum(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The larger one; NaN when either is NaN, as numpy has it."""
    return tirx.Select(tirx.Or(a > b, is_nan(a)), a, b) if _kind(a) == "float" else tirx.max(a, b)


def minimum(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The smaller one; NaN when either is NaN, as numpy has it."""
    return tirx.Select(tirx.Or(a < b, is_nan(a)), a, b) if _kind(a) == "float" else tirx.min(a, b)


def _mapped(name: str, function: Scalar) -> Kernel:
    """A scalar function over tensors that broadcast."""

    def build(*tensors: te.Tensor, dims: list[tirx.Expr], **options: Any) -> te.Tensor:
        shape = broadcast_shape([tensor.shape for tensor in tensors])
        return compute(shape, lambda index: function(*(at(tensor, index) for tensor in tensors), **options), name)

    return build


_SCALARS: dict[str, Scalar] = {
    "bit_cast": bit_cast,
    "divide_integers": divide_integers,
    "is_infinite": is_infinite,
    "is_nan": is_nan,
    "math_function": math_function,
    "maximum": maximum,
    "minimum": minimum,
    "modulo": modulo,
    "power": power,
    "round_half_even": round_half_even,
    "shift": shift,
    "sign": sign,
    "softplus": softplus,
    "to_bool": to_bool,
}

KERNELS: dict[str, Kernel] = {
    **{name: _mapped(name, function) for name, function in _SCALARS.items()},
    "power_of_integers": power_of_integers,
}
