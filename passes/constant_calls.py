"""Calls whose tensor operands are all constants, and their results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm import ir, relax

from greencc.ir import constant_array, dtype_of
from greencc.passes.evaluate import evaluate
from greencc.passes.graph import Graph

# Operands that are no tensors. A symbolic dimension is none to wait for either: condition 3 sees to it.
_NUMBERS = (relax.ShapeExpr, ir.StringImm)


@dataclass(frozen=True)
class ConstantCall:
    """A call whose tensor operands are all constants.

    Attributes:
        call: the call, its operands still variables where they are results of other such calls.
        arrays: values of the tensor operands in order, those in tuples included.
        max_growth: bytes by which the result may exceed the operands.
    """

    call: relax.Call
    arrays: tuple[np.ndarray, ...]
    max_growth: int


def tensor_types(ty: relax.Type) -> list[relax.Type]:
    """The tensor types in a result's type; anything else in it stands for itself."""
    return [t for field in ty.fields for t in tensor_types(field)] if isinstance(ty, relax.TupleType) else [ty]


def constant_call(
    graph: Graph, value: relax.Expr, folded: dict[relax.Expr, relax.Expr], max_growth: int
) -> ConstantCall | None:
    """`value` as a call on constants, `folded` results among them; None for anything else."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op):
        return None
    arrays = tuple(array for arg in value.args for array in _arrays(graph, arg, folded))
    if any(array is None for array in arrays):
        return None
    return ConstantCall(value, arrays, max_growth)  # type: ignore[arg-type]


def _arrays(graph: Graph, expr: relax.Expr, folded: dict[relax.Expr, relax.Expr]) -> Iterator[np.ndarray | None]:
    """Values of the tensors in an operand, in order; None for what is no constant."""
    expr = _resolve(graph, expr, folded)
    if isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from _arrays(graph, field, folded)
    elif isinstance(expr, ir.GenericConst):
        yield constant_array(expr)
    elif not isinstance(expr.ty, ir.PrimType) and not isinstance(expr, _NUMBERS):
        yield None


def _resolve(graph: Graph, expr: relax.Expr, folded: dict[relax.Expr, relax.Expr]) -> relax.Expr:
    """What `expr` is once everything before it is folded."""
    if expr in folded:
        return folded[expr]
    value = graph.value(expr) if expr not in folded else expr
    if isinstance(value, relax.TupleGetItem):
        source = _resolve(graph, value.tuple_value, folded)
        return _resolve(graph, source.fields[value.index], folded) if isinstance(source, relax.Tuple) else value
    return value


def folded_constants(match: ConstantCall) -> relax.Expr:
    """The results of a call on constants, as a constant or a tuple of them."""
    results = evaluate(match.call, match.arrays)
    constants = [
        relax.const(np.asarray(result, order="C"), dtype_of(ty))
        for result, ty in zip(results, tensor_types(match.call.ty), strict=True)
    ]
    return relax.Tuple(constants) if isinstance(match.call.ty, relax.TupleType) else constants[0]
