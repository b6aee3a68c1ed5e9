"""What a transfer function of the value-range analysis sees of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.passes import ranges
from greencc.passes.ranges import FLOATS, Range

# What a transfer function gives: None is the top range; a tuple's range is that of its fields.
Result = Range | tuple[Range, ...] | None


@dataclass(frozen=True)
class Operands:
    """A call seen by a transfer function.

    Attributes:
        call: the operator call; its type is known.
        dtype: element type of the result (of the first field, for a tuple).
        range_of: range of an operand (a tuple operand gives the hull of its fields).
        constant: value of an operand that is a constant, else None.
    """

    call: relax.Call
    dtype: str
    range_of: Callable[[relax.Expr], Range]
    constant: Callable[[relax.Expr], np.ndarray | None]

    def __getitem__(self, index: int) -> Range:
        return self.range_of(self.call.args[index])

    @property
    def same(self) -> bool:
        """Whether the first two operands are one value."""
        return bool(self.call.args[0].same_as(self.call.args[1]))

    def number(self, index: int) -> float | int | None:
        """A scalar operand that is part of the call (the bounds of clip), rounded to the result's dtype."""
        value = prim_value(self.call.args[index])
        return None if value is None else number_in(value, self.dtype)


def prim_value(expr: relax.Expr) -> float | int | None:
    """The number that is itself an operand of a call, like the bounds of clip, or None."""
    return expr.value if isinstance(expr, (tirx.FloatImm, tirx.IntImm)) else None


def number_in(value: float, dtype: str) -> float | int | None:
    """`value` as an element of `dtype` (a float may become an infinity), or None when it can't be one."""
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return float(np.dtype(dtype).type(value))
    limits = ranges.top(dtype)
    exact = not isinstance(value, float) or value.is_integer()
    fits = exact and limits is not ranges.ANY_FLOAT and limits.lo <= value <= limits.hi
    return int(value) if fits else None


Rule = Callable[[Operands], Result]


def float_only(rule: Rule) -> Rule:
    """`rule` for floats, the top range for other dtypes."""
    return lambda o: rule(o) if o.dtype in FLOATS else None
