"""Reinterpretation of bits between types, counting of bits, dot products of packed bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import ir, tirx

from greencc.targets.vulkan.emitter import loads
from greencc.targets.vulkan.emitter.types import Element, dtype_of, lanes_of

if TYPE_CHECKING:
    from greencc.targets.vulkan.emitter.context import Context
    from greencc.targets.vulkan.emitter.expressions import Expressions


def reinterpret(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """The bits of a scalar or vector as another one of the same size."""
    context, (given,) = expressions.context, expr.args
    if "handle" in (dtype_of(expr), dtype_of(given)):
        raise context.fail("an address is reinterpreted")
    source, target = context.element(dtype_of(given)), context.element(dtype_of(expr))
    if "bool" in (source.dtype, target.dtype):
        raise context.fail("the bits of a bool are reinterpreted")
    if source.bits == target.bits:
        value = expressions.value(given, lane)
        return value if source.dtype == target.dtype else from_bits(context, to_bits(value, source), target)
    if target.bits < source.bits:
        each = source.bits // target.bits
        bits = to_bits(expressions.value(given, lane // each), source)
        return _part(context, bits, source.bits, target, lane % each)
    each = target.bits // source.bits
    if target.bits == 64:
        halves = [_word(expressions, given, source, 2 * lane + half) for half in range(2)]
        return from_bits(context, f"packUint2x32(uvec2({halves[0]}, {halves[1]}))", target)
    if target.bits == 32:
        return from_bits(context, _word(expressions, given, source, lane), target)
    values = [to_bits(expressions.value(given, lane * each + i), source) for i in range(each)]
    shifted = " | ".join(f"(({value} & 255u) << {source.bits * i})" for i, value in enumerate(values))
    return from_bits(context, f"({shifted})", target)


def count_ones(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """The number of bits that are set."""
    context, kind = expressions.context, expressions.context.element(dtype_of(expr.args[0]))
    bits = to_bits(expressions.value(expr.args[0], lane), kind)
    count = f"bitCount({bits})"
    if kind.bits == 64:
        count = f"{context.helper('count_ones')}({bits})"
    return expressions.converted(count, "int32", context.element(dtype_of(expr)))


def count_leading_zeros(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """The number of zeros in front of the highest bit that is set."""
    context, kind = expressions.context, expressions.context.element(dtype_of(expr.args[0]))
    bits = to_bits(expressions.value(expr.args[0], lane), kind)
    count = f"({kind.bits - 1} - findMSB({bits}))"
    if kind.bits == 64:
        count = f"{context.helper('count_leading_zeros')}({bits})"
    return expressions.converted(count, "int32", context.element(dtype_of(expr)))


def dot4(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """The sum of an int32 and the products of four signed bytes each of two words."""
    context = expressions.context
    a, b, total = (expressions.value(arg, lane) for arg in expr.args[1:])
    if not context.gpu.has_dot4:
        return f"({context.helper('dot4_of_bytes')}({a}, {b}) + {total})"
    context.need("dot4")
    # The literal says that the operands are four bytes each, packed in a word.
    return f"({context.helper('dot4_packed')}({a}, {b}, 0) + {total})"


def to_bits(value: str, kind: Element) -> str:
    """A register's value as the bits it has in memory, in a uint, or in a uint64_t if there are 64."""
    if kind.dtype == "float64":
        return f"packUint2x32(unpackDouble2x32({value}))"
    if kind.is_wide:
        return value if kind.is_unsigned else f"uint64_t({value})"
    if kind.dtype == "float16":
        return f"(packHalf2x16(vec2({value}, 0.0)) & 65535u)"
    if kind.dtype == "bfloat16":
        return f"(floatBitsToUint({value}) >> 16)"
    if kind.is_float:
        return f"floatBitsToUint({value})"
    if kind.is_unsigned:
        return value
    return f"uint({value})" if kind.bits == 32 else f"(uint({value}) & {(1 << kind.bits) - 1}u)"


def from_bits(context: Context, bits: str, kind: Element) -> str:
    """The value of a type that has these bits in memory."""
    if kind.dtype == "float64":
        return f"packDouble2x32(unpackUint2x32({bits}))"
    if kind.is_wide:
        return bits if kind.is_unsigned else f"int64_t({bits})"
    if kind.dtype == "float32":
        return f"uintBitsToFloat({bits})"
    if kind.bits < 32:
        return loads.from_word(context, bits, kind, 0)
    return bits if kind.is_unsigned else f"int({bits})"


def _part(context: Context, bits: str, width: int, target: Element, part: int) -> str:
    """A narrower type's value from a part of 16, 32 or 64 bits."""
    if width == 64:
        words = 32 // target.bits
        bits, part = f"unpackUint2x32({bits}).{'xy'[part // words]}", part % words
    return from_bits(context, bits, target) if target.bits == 32 else loads.from_word(context, bits, target, part)


def _word(expressions: Expressions, expr: tirx.Expr, kind: Element, index: int) -> str:
    """The bits of some neighbouring lanes that are 32 bits together, in a uint."""
    each = 32 // kind.bits
    if each == 1:
        return to_bits(expressions.value(expr, index), kind)
    if isinstance(expr, ir.TensorLoad):
        word = loads.load_word(expressions, expr, index)
        if word is not None:
            return word
    lanes = range(index * each, min((index + 1) * each, lanes_of(expr)))
    return loads.to_word(expressions.context, kind, [expressions.value(expr, lane) for lane in lanes])
