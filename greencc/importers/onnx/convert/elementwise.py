"""Arithmetic, comparisons, logic, bits and casts: elements in, elements out, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.types import FLOATS, INTEGERS, SUPPORTED, UNSIGNED, checked_type
from greencc.importers.onnx.values import Value, as_expr
from greencc.kernels import kernel
from greencc.kernels.shapes import broadcast_shape

Binary = Callable[[relax.Expr, relax.Expr], relax.Expr]


def operands(ctx: NodeContext) -> list[relax.Expr]:
    """All inputs of a broadcasting operator; before opset 7 the second one is aligned by `axis`."""
    tensors = [ctx.tensor(index) for index in range(len(ctx.inputs))]
    if ctx.opset >= 7 or len(tensors) != 2 or not ctx.attr("broadcast", 0):
        return tensors
    axis = ctx.attr("axis")
    if axis is not None:
        missing = ctx.rank(0) - int(axis) % max(ctx.rank(0), 1) - ctx.rank(1)
        shape = [as_expr(dim) for dim in ctx.shape(1)] + [as_expr(1)] * missing
        tensors[1] = ctx.emit(relax.op.reshape(tensors[1], shape))
    return tensors


def binary(function: Binary) -> Converter:
    """A two-operand operator with numpy broadcasting."""
    return lambda ctx: function(*operands(ctx))


def unary(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """A one-operand operator."""
    return lambda ctx: function(ctx.tensor(0))


def mapped(name: str, **options: Any) -> Converter:
    """An operator that is one of greencc's kernels."""
    return lambda ctx: kernel(name, operands(ctx), **options)


def variadic(function: Binary) -> Converter:
    """An operator that folds any number of operands from the left."""

    def convert(ctx: NodeContext) -> relax.Expr | Value:
        if len(ctx.inputs) == 1:
            return ctx.value(0)
        result = ctx.tensor(0)
        for index in range(1, len(ctx.inputs)):
            result = ctx.emit(function(result, ctx.tensor(index)))
        return result

    return convert


def extreme(name: str, function: Binary) -> Converter:
    """Max, Min: floats by a kernel that passes NaN on from either operand, integers by Relax's operator."""

    def convert(ctx: NodeContext) -> relax.Expr | Value:
        if ctx.value(0).dtype not in FLOATS:
            return variadic(function)(ctx)
        return variadic(lambda a, b: kernel(name, [a, b]))(ctx)

    return convert


def mean(ctx: NodeContext) -> relax.Expr:
    """Mean of the operands, elementwise."""
    total = ctx.as_values(variadic(relax.op.add)(ctx))[0].expr
    return relax.op.divide(total, ctx.const(len(ctx.inputs), ctx.value(0).dtype))


def divide(ctx: NodeContext) -> relax.Expr:
    """Div: integers truncate towards zero."""
    if ctx.value(0).dtype in INTEGERS:
        return kernel("divide_integers", operands(ctx))
    return relax.op.divide(*operands(ctx))


def modulo(ctx: NodeContext) -> relax.Expr:
    """Mod: `fmod` takes the sign of the dividend."""
    return kernel("modulo", operands(ctx), c_style=bool(ctx.attr("fmod", 0)))


def power(ctx: NodeContext) -> relax.Expr:
    """Pow: the result has the base's type; small constant exponents become multiplications and roots."""
    base, exponent = ctx.value(0), ctx.value(1)
    if base.dtype in INTEGERS and exponent.dtype in INTEGERS:
        common = [as_expr(dim) for dim in broadcast_shape([ctx.shape(0), ctx.shape(1)])]
        tensors = [ctx.emit(relax.op.broadcast_to(tensor, common)) for tensor in operands(ctx)]
        return kernel("power_of_integers", tensors)
    if base.dtype not in FLOATS:
        return kernel("power", operands(ctx))
    if exponent.is_constant and exponent.known is not None and exponent.known.size == 1:
        value = float(exponent.known.reshape(()).astype(np.float64))
        if value == 2.0 and exponent.known.ndim <= (base.rank or 0):
            return relax.op.multiply(ctx.tensor(0), ctx.tensor(0))
        if value == 0.5 and exponent.known.ndim <= (base.rank or 0):
            return relax.op.sqrt(ctx.tensor(0))
    if base.dtype == exponent.dtype == "float32":
        return relax.op.power(*operands(ctx))
    return kernel("power", operands(ctx))


def shift(ctx: NodeContext) -> relax.Expr:
    """BitShift; to the right, signed integers keep their sign."""
    return kernel("shift", operands(ctx), left=ctx.attr("direction") == "LEFT")


def compare(function: Binary) -> Converter:
    """A comparison; booleans are compared as integers."""

    def convert(ctx: NodeContext) -> relax.Expr:
        tensors = operands(ctx)
        if ctx.value(0).dtype == "bool":
            tensors = [ctx.emit(relax.op.astype(tensor, "int8")) for tensor in tensors]
        return function(*tensors)

    return convert


def inverse(ctx: NodeContext) -> relax.Expr:
    """Reciprocal: 1 / x."""
    return relax.op.divide(ctx.const(1, ctx.value(0).dtype), ctx.tensor(0))


def is_infinite(ctx: NodeContext) -> relax.Expr:
    """IsInf, with the signs that count."""
    positive, negative = bool(ctx.attr("detect_positive", 1)), bool(ctx.attr("detect_negative", 1))
    return kernel("is_infinite", [ctx.tensor(0)], positive=positive, negative=negative)


def whole(function: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """Floor, Ceil: nothing to do for integers."""
    return lambda ctx: function(ctx.tensor(0)) if ctx.value(0).dtype in FLOATS else ctx.value(0)


def where(ctx: NodeContext) -> relax.Expr:
    """Where(condition, a, b) with broadcasting of all three."""
    return relax.op.where(ctx.tensor(0), ctx.tensor(1), ctx.tensor(2))


def clip(ctx: NodeContext) -> relax.Expr | Value:
    """Clip: bounds are attributes (before opset 11) or optional inputs; where they cross, the upper wins."""
    bounds: list[float | int | None] = [None, None]
    for side, name in enumerate(("min", "max")):
        if ctx.opset < 11:
            bounds[side] = ctx.attr(name)
        elif ctx.has(side + 1):
            value = ctx.value(side + 1)
            if not value.is_constant or value.known is None:
                return _clip_at_run_time(ctx)
            bounds[side] = value.known.reshape(()).item()
    low, high = bounds
    if low is None and high is None:
        return ctx.value(0)
    dtype = ctx.value(0).dtype
    if low is None or high is None or low != low or high != high:
        return _clip_at_run_time(ctx, low, high)
    if dtype not in FLOATS and max(abs(low), abs(high)) >= 2**31:
        return _clip_at_run_time(ctx, low, high)
    return relax.op.clip(ctx.tensor(0), _immediate(min(low, high), dtype), _immediate(high, dtype))


def _immediate(value: float, dtype: str) -> tirx.Expr:
    if dtype in FLOATS:
        return tirx.FloatImm("float64" if dtype == "float64" else "float32", float(value))
    return tirx.IntImm("int64", int(value))


def _clip_at_run_time(ctx: NodeContext, low: float | None = None, high: float | None = None) -> relax.Expr:
    dtype = ctx.value(0).dtype
    lower = ctx.const(low, dtype) if low is not None else None
    upper = ctx.const(high, dtype) if high is not None else None
    if lower is None and ctx.opset >= 11 and ctx.has(1):
        lower = ctx.tensor(1)
    if upper is None and ctx.opset >= 11 and ctx.has(2):
        upper = ctx.tensor(2)
    result = ctx.tensor(0)
    rank = ctx.rank(0)
    for bound, function in ((lower, relax.op.maximum), (upper, relax.op.minimum)):
        if bound is not None:
            scalar = ctx.emit(relax.op.reshape(bound, ())) if rank == 0 and bound.ty.ndim else bound
            result = ctx.emit(function(result, scalar))
    return result


def cast_to(ctx: NodeContext, source: relax.Expr, before: str, after: str) -> relax.Expr | Value:
    """A conversion of element types; anything but zero is true."""
    if before == after:
        return ctx.value(0)
    if after == "bool":
        return kernel("to_bool", [source])
    return relax.op.astype(source, after)


def cast(ctx: NodeContext) -> relax.Expr | Value:
    """Cast to the attribute `to`."""
    return cast_to(ctx, ctx.tensor(0), ctx.value(0).dtype, checked_type(ctx, ctx.attr("to")))


def cast_like(ctx: NodeContext) -> relax.Expr | Value:
    """Cast to the second operand's element type."""
    after = ctx.value(1).dtype
    if after not in SUPPORTED:
        raise ctx.refuse(f"element type {after} is not supported")
    return cast_to(ctx, ctx.tensor(0), ctx.value(0).dtype, after)


def bit_cast(ctx: NodeContext) -> relax.Expr | Value:
    """BitCast: the same bits as another type of the same width."""
    before, after = ctx.value(0).dtype, checked_type(ctx, ctx.attr("to"))
    if before == after:
        return ctx.value(0)
    if "bool" in (before, after):
        raise ctx.refuse(f"the bits of {before} as {after}: a boolean is 0 or 1 only")
    if np.dtype(before).itemsize != np.dtype(after).itemsize:
        raise ctx.refuse(f"{before} and {after} differ in width")
    return kernel("bit_cast", [ctx.tensor(0)], dtype=after)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Abs"): lambda ctx: ctx.value(0) if ctx.value(0).dtype in UNSIGNED else relax.op.abs(ctx.tensor(0)),
    ("", "Add"): binary(relax.op.add),
    ("", "And"): binary(relax.op.logical_and),
    ("", "BitCast"): bit_cast,
    ("", "BitShift"): shift,
    ("", "BitwiseAnd"): binary(relax.op.bitwise_and),
    ("", "BitwiseNot"): unary(relax.op.bitwise_not),
    ("", "BitwiseOr"): binary(relax.op.bitwise_or),
    ("", "BitwiseXor"): binary(relax.op.bitwise_xor),
    ("", "Cast"): cast,
    ("", "CastLike"): cast_like,
    ("", "Ceil"): whole(relax.op.ceil),
    ("", "Clip"): clip,
    ("", "Div"): divide,
    ("", "Equal"): compare(relax.op.equal),
    ("", "Floor"): whole(relax.op.floor),
    ("", "Greater"): compare(relax.op.greater),
    ("", "GreaterOrEqual"): compare(relax.op.greater_equal),
    ("", "IsInf"): is_infinite,
    ("", "IsNaN"): mapped("is_nan"),
    ("", "Less"): compare(relax.op.less),
    ("", "LessOrEqual"): compare(relax.op.less_equal),
    ("", "Max"): extreme("maximum", relax.op.maximum),
    ("", "Mean"): mean,
    ("", "Min"): extreme("minimum", relax.op.minimum),
    ("", "Mod"): modulo,
    ("", "Mul"): binary(relax.op.multiply),
    ("", "Neg"): unary(relax.op.negative),
    ("", "Not"): unary(relax.op.logical_not),
    ("", "Or"): binary(relax.op.logical_or),
    ("", "Pow"): power,
    ("", "Reciprocal"): inverse,
    ("", "Round"): mapped("round_half_even"),
    ("", "Sign"): mapped("sign"),
    ("", "Sub"): binary(relax.op.subtract),
    ("", "Sum"): variadic(relax.op.add),
    ("", "Where"): where,
    ("", "Xor"): binary(relax.op.logical_xor),
}
