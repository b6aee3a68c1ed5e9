"""Which int64 values a shader may hold in 32 bits.

TIR computes indices in int64, which a GPU does slowly or not at all. An int64 value is held in an int when its bounds
prove that it fits, or when it is index arithmetic: made of loop and thread variables, sizes and small constants only,
so that it counts elements of tensors, of which a device's buffers hold fewer than 2^31. A size that doesn't fit is
refused at launch. Values that come from memory are data and stay int64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tvm import ir, tirx

from greencc.targets.vulkan.emitter.types import dtype_of

_LOW, _HIGH = -(1 << 31), (1 << 31) - 1
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1
# No stride of a tensor is as large; a larger constant belongs to arithmetic on data, like that of a hash.
_LARGEST_STRIDE = 1 << 28


@dataclass(frozen=True)
class Bounds:
    """Bounds of an integer, both inclusive.

    Attributes:
        is_index: whether it is made of nothing but variables of loops and threads, sizes and small constants.
        is_proven: whether the bounds hold by themselves, not because a size fits 32 bits.
    """

    low: int = _LOWEST
    high: int = _HIGHEST
    is_index: bool = False
    is_proven: bool = True

    @property
    def fits(self) -> bool:
        """Whether the value fits an int."""
        return self.low >= _LOW and self.high <= _HIGH

    @property
    def is_narrow(self) -> bool:
        """Whether an int may hold the value: it fits, or counts elements."""
        return self.fits or (self.is_index and not self.is_proven)

    @property
    def is_natural(self) -> bool:
        """Whether it is never negative."""
        return self.low >= 0


UNKNOWN = Bounds()
# A size that the kernel is given: in 64 bits until arithmetic on indices needs it.
SIZE = Bounds(is_index=True, is_proven=False)
# What counts up to a size.
COUNTER = Bounds(0, _HIGH, is_index=True, is_proven=False)

_TYPES = {
    "bool": (0, 1),
    "int8": (-(1 << 7), (1 << 7) - 1),
    "uint8": (0, (1 << 8) - 1),
    "int16": (-(1 << 15), (1 << 15) - 1),
    "uint16": (0, (1 << 16) - 1),
    "int32": (_LOW, _HIGH),
    "uint32": (0, (1 << 32) - 1),
    "int64": (_LOWEST, _HIGHEST),
    "uint64": (0, (1 << 64) - 1),
}


def of_type(dtype: str) -> Bounds:
    """What every value of a type is within."""
    low, high = _TYPES.get(dtype.split("x")[0], (_LOWEST, _HIGHEST))
    return Bounds(low, high)


def counter(start: Bounds, extent: Bounds) -> Bounds:
    """Bounds of the variable of a loop."""
    if start.is_proven and extent.is_proven and start.fits and extent.fits:
        return Bounds(start.low, max(start.low, start.high + extent.high - 1), is_index=True)
    return replace(COUNTER, low=max(_LOW, start.low))


def bounds_of(expr: tirx.Expr, variables: Mapping[tirx.Var, Bounds]) -> Bounds:
    """Bounds of every lane of an integer expression."""
    found = _bounds(expr, variables)
    limits = of_type(dtype_of(expr))
    if limits.low <= found.low and found.high <= limits.high:
        return found
    if not found.is_proven:
        return replace(found, low=max(found.low, limits.low), high=min(found.high, limits.high))
    return replace(limits, is_index=found.is_index)


def _bounds(expr: tirx.Expr, variables: Mapping[tirx.Var, Bounds]) -> Bounds:
    if isinstance(expr, tirx.IntImm):
        value = int(expr)
        return Bounds(value, value, is_index=abs(value) < _LARGEST_STRIDE)
    if isinstance(expr, tirx.Var):
        return variables.get(expr, of_type(dtype_of(expr)))
    rule = _RULES.get(type(expr))
    if rule is not None:
        a, b = bounds_of(expr.a, variables), bounds_of(expr.b, variables)
        low, high = rule(a, b)
        return Bounds(low, high, a.is_index and b.is_index, a.is_proven and b.is_proven)
    if isinstance(expr, tirx.Cast) and not dtype_of(expr.value).startswith(("float", "bfloat")):
        return bounds_of(expr.value, variables)
    if isinstance(expr, tirx.Select):
        return _union(bounds_of(expr.true_value, variables), bounds_of(expr.false_value, variables))
    if isinstance(expr, ir.Call) and isinstance(expr.op, ir.Op):
        if expr.op.name == "prim.if_then_else":
            return _union(bounds_of(expr.args[1], variables), bounds_of(expr.args[2], variables))
        if expr.op.name == "prim.likely":
            return bounds_of(expr.args[0], variables)
    if isinstance(expr, tirx.Broadcast):
        return bounds_of(expr.value, variables)
    if isinstance(expr, tirx.Ramp):
        base, stride, last = bounds_of(expr.base, variables), bounds_of(expr.stride, variables), int(expr.lanes) - 1
        low, high = base.low + min(0, stride.low * last), base.high + max(0, stride.high * last)
        return Bounds(low, high, base.is_index and stride.is_index, base.is_proven and stride.is_proven)
    return of_type(dtype_of(expr))


def _union(a: Bounds, b: Bounds) -> Bounds:
    return Bounds(min(a.low, b.low), max(a.high, b.high), a.is_index and b.is_index, a.is_proven and b.is_proven)


Pair = tuple[int, int]


def _corners(combine: Callable[[int, int], int]) -> Callable[[Bounds, Bounds], Pair]:
    """A rule for what is monotonic in each operand: the extremes are at the ends."""

    def rule(a: Bounds, b: Bounds) -> Pair:
        ends = [combine(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        return min(ends), max(ends)

    return rule


def _quotient(a: Bounds, b: Bounds) -> Pair:
    most = max(abs(a.low), abs(a.high))
    if b.low <= 0:
        return -most, most
    ends = [x // y for x in (a.low, a.high) for y in (b.low, b.high)] + [-(-a.low // b.low), -(-a.high // b.low)]
    return min(ends), max(ends)


def _remainder(a: Bounds, b: Bounds) -> Pair:
    most = max(abs(b.low), abs(b.high)) - 1
    return (0 if a.is_natural else -most), (min(most, a.high) if a.is_natural else most)


def _floor_remainder(a: Bounds, b: Bounds) -> Pair:
    most = max(abs(b.low), abs(b.high)) - 1
    return (0 if b.low > 0 else -most), most


def _shifted_right(a: Bounds, b: Bounds) -> Pair:
    return (a.low >> b.low, a.high >> b.low) if b.low == b.high and 0 <= b.low < 64 else (min(a.low, 0), max(a.high, 0))


def _shifted_left(a: Bounds, b: Bounds) -> Pair:
    return (a.low << b.low, a.high << b.low) if b.low == b.high and 0 <= b.low < 64 else (_LOWEST, _HIGHEST)


def _masked(a: Bounds, b: Bounds) -> Pair:
    highs = [x.high for x in (a, b) if x.is_natural]
    return (0, min(highs)) if highs else (_LOWEST, _HIGHEST)


_RULES: dict[type, Callable[[Bounds, Bounds], Pair]] = {
    tirx.Add: lambda a, b: (a.low + b.low, a.high + b.high),
    tirx.Sub: lambda a, b: (a.low - b.high, a.high - b.low),
    tirx.Mul: _corners(lambda x, y: x * y),
    tirx.Min: lambda a, b: (min(a.low, b.low), min(a.high, b.high)),
    tirx.Max: lambda a, b: (max(a.low, b.low), max(a.high, b.high)),
    tirx.Div: _quotient,
    tirx.FloorDiv: _quotient,
    tirx.Mod: _remainder,
    tirx.FloorMod: _floor_remainder,
    tirx.RShift: _shifted_right,
    tirx.LShift: _shifted_left,
    tirx.BitwiseAnd: _masked,
}
