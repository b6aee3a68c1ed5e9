"""Parts of a value's last axis, and pairs of parts joined on it again: what rotary embeddings are made of."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx

from greencc.ir import same_shape
from greencc.passes.column_views import is_one
from greencc.passes.graph import Graph
from greencc.passes.matching import dims_of


@dataclass(frozen=True)
class Part:
    """Columns begin, begin + step, .. of the last axis of `source`, `length` of them."""

    source: relax.Expr
    begin: int
    step: int
    length: int


def joined_parts(graph: Graph, expr: relax.Expr) -> tuple[Part, Part, bool] | None:
    """The two parts that are joined on the last axis, the first one negated, and whether they are stacked."""
    stack = graph.call(expr, "relax.reshape")
    joined = graph.call(expr if stack is None else stack.args[0], "relax.concat")
    pieces = graph.value(joined.args[0]) if joined is not None else None
    if joined is None or not isinstance(pieces, relax.Tuple) or len(pieces.fields) != 2:
        return None
    rank = len(dims_of(joined))
    if int(joined.attrs.axis) % rank != rank - 1:
        return None
    first, second = (piece if stack is None else _unstacked(graph, piece) for piece in pieces.fields)
    negated = graph.call(first, "relax.negative") if first is not None else None
    if negated is None or second is None:
        return None
    one, other = part_of(graph, negated.args[0]), part_of(graph, second)
    return None if one is None or other is None else (one, other, stack is not None)


def part_of(graph: Graph, expr: relax.Expr) -> Part | None:
    """`expr` as columns of the last axis of the value that it is a slice, or a part of a split, of."""
    value = graph.value(expr)
    dims = dims_of(expr)
    if not dims or not isinstance(dims[-1], tirx.IntImm):
        return None
    if isinstance(value, relax.TupleGetItem):
        split = graph.call(value.tuple_value, "relax.split")
        if split is None or int(split.attrs.axis) % len(dims) != len(dims) - 1:
            return None
        widths = [field.shape.values[-1] for field in split.ty.fields[: value.index]]
        return Part(split.args[0], sum(int(width) for width in widths), 1, int(dims[-1]))
    call = graph.call(expr, "relax.strided_slice")
    if call is None or [int(axis) % len(dims) for axis in call.args[1].fields] != [len(dims) - 1]:
        return None
    size, begin = dims_of(call.args[0])[-1], call.args[2].fields[0]
    step = call.args[4].fields[0] if len(call.args) > 4 else tirx.IntImm("int64", 1)
    if not all(isinstance(number, tirx.IntImm) for number in (size, begin, step)):
        return None
    return Part(call.args[0], int(begin) % int(size), int(step), int(dims[-1]))


def _unstacked(graph: Graph, expr: relax.Expr) -> relax.Expr | None:
    """The operand of what appends an axis of length 1."""
    call = graph.call(expr)
    if call is None or call.op.name not in ("relax.expand_dims", "relax.reshape"):
        return None
    dims = dims_of(call)
    appends = bool(dims) and is_one(dims[-1]) and same_shape(dims[:-1], dims_of(call.args[0]))
    return call.args[0] if appends else None
