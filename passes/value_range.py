"""Value-range analysis: for every value of a function an interval, and whether it may be NaN or -0.0.

Abstract interpretation over the bindings in execution order; no joins are needed, since a Relax function has
no loops and both branches of an If are analysed under the same (unknown) condition. Inputs, results of other
functions and of unknown operators may be anything their dtype can hold. Sound for infinities, NaN, overflow
and underflow; what it takes for granted of inexact functions is listed in range_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tvm import ir, relax

from greencc.ir import constant_array, dtype_of
from greencc.passes import ranges
from greencc.passes.graph import Graph
from greencc.passes.range_operands import Operands
from greencc.passes.range_rules import RULES
from greencc.passes.ranges import Range


class ValueRanges:
    """Ranges of the values of one graph, computed when first asked for, in execution order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[relax.Var, Range | tuple[Range, ...]] = {}
        self._constants: dict[relax.Expr, Range] = {}
        self._pending: Iterator[tuple[relax.Var, relax.Expr]] = graph.definitions()

    def of(self, expr: relax.Expr) -> Range:
        """The range of `expr`'s elements; of a tuple, the hull over its fields."""
        found = self._lookup(expr)
        return ranges.hull(*found) if isinstance(found, tuple) else found

    def _lookup(self, expr: relax.Expr) -> Range | tuple[Range, ...]:
        if isinstance(expr, relax.Tuple):
            fields = tuple(self.of(field) for field in expr.fields)
            return fields or ranges.ANY_FLOAT
        array = constant_array(expr)
        if array is not None:
            if expr not in self._constants:
                self._constants[expr] = ranges.of_array(array)
            return self._constants[expr]
        if not isinstance(expr, relax.Var):
            return ranges.ANY_FLOAT
        if expr not in self._known and self._graph.value(expr) is not expr:
            for var, value in self._pending:
                self._known[var] = self._evaluate(value)
                if var.same_as(expr):
                    break
        return self._known.get(expr, ranges.top(dtype_of(expr.ty)))

    def _evaluate(self, value: relax.Expr) -> Range | tuple[Range, ...]:
        if isinstance(value, relax.TupleGetItem):
            fields = self._lookup(value.tuple_value)
            known = fields[value.index] if isinstance(fields, tuple) else ranges.top(dtype_of(value.ty))
        elif isinstance(value, relax.Call) and isinstance(value.op, ir.Op) and value.op.name in RULES:
            return self._transfer(value)
        elif isinstance(value, (relax.Var, relax.Tuple)) or constant_array(value) is not None:
            return self._lookup(value)
        else:
            known = ranges.top(dtype_of(value.ty))
        return known

    def _transfer(self, call: relax.Call) -> Range | tuple[Range, ...]:
        first = call.ty.fields[0] if isinstance(call.ty, relax.TupleType) and len(call.ty.fields) else call.ty
        dtype = dtype_of(first) or ""
        limits = ranges.top(dtype)
        if limits is ranges.ANY_FLOAT and dtype not in ranges.FLOATS:
            return limits
        # Bounds at overflow are infinite on purpose.
        with np.errstate(all="ignore"):
            found = RULES[call.op.name](Operands(call, dtype, self.of, self._graph.constant))
        return limits if found is None else found
