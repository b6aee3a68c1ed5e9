"""Values with fewer columns: a product's weight loses columns, and what is computed from it elementwise follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.ir import constant, shape_of
from greencc.passes.graph import Builder, Graph
from greencc.passes.row_wise import ELEMENTWISE


@dataclass(frozen=True)
class Columns:
    """A value whose columns (last axis) come, each from its own, out of products by constant matrices.

    Attributes:
        expr: the value.
        inner: variables from it, included, back to the products, included.
        products: the products' weights, [K, columns] each.
    """

    expr: relax.Expr
    inner: tuple[relax.Var, ...]
    products: tuple[np.ndarray, ...]


def columns_of(graph: Graph, expr: relax.Expr) -> Columns | None:
    """How the columns of `expr` come out of products; None where they don't, or not only."""
    width = width_of(expr)
    inner: dict[relax.Var, None] = {}
    products: list[np.ndarray] = []

    def follow(value: relax.Expr) -> bool:
        if graph.constant(value) is not None:
            return True
        call = graph.call(value)
        if call is None or not isinstance(value, relax.Var):
            return False
        if value in inner:
            return True
        inner[value] = None
        if call.op.name == "relax.matmul":
            weight = graph.constant(call.args[1])
            if weight is None or weight.ndim != 2 or weight.shape[1] != width:
                return False
            products.append(weight)
            return True
        tensors = [arg for arg in call.args if shape_of(arg.ty) is not None]
        spreads = any(graph.constant(arg) is None and width_of(arg) != width for arg in tensors)
        return call.op.name in ELEMENTWISE and not spreads and all(follow(arg) for arg in tensors)

    if width is None or not follow(expr) or not products:
        return None
    return Columns(expr, tuple(inner), tuple(products))


def narrowed(graph: Graph, builder: Builder, columns: Columns, kept: Sequence[int]) -> relax.Expr:
    """The value of `columns` with the columns `kept` only, in their order."""
    width = width_of(columns.expr)
    made: dict[relax.Expr, relax.Expr] = {}

    def follow(value: relax.Expr) -> relax.Expr:
        array = graph.constant(value)
        if array is not None:
            return constant(array[..., list(kept)]) if array.ndim and array.shape[-1] == width != 1 else value
        if value not in made:
            call = graph.value(value)
            if call.op.name == "relax.matmul":
                args = [call.args[0], follow(call.args[1])]
            else:
                args = [follow(arg) if shape_of(arg.ty) is not None else arg for arg in call.args]
            made[value] = builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args, call.span))
        return made[value]

    return follow(columns.expr)


def width_of(expr: relax.Expr) -> int | None:
    """Size of the last axis where that is known."""
    last = next(iter(reversed(shape_of(expr.ty) or [])), None)
    return int(last) if isinstance(last, tirx.IntImm) else None


def count_to_keep(width: int, fraction: float, multiple: int) -> int:
    """How many of `width` stay when a fraction goes: at least one, and a multiple where that is larger."""
    count = max(1, round(width * (1 - fraction)))
    return count if count <= multiple else min(width, -(-count // multiple) * multiple)


def largest(scores: np.ndarray, count: int) -> list[int]:
    """The places of the `count` largest scores, in their order; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return sorted(int(i) for i in order)
