"""Views: what slices, reshapes and transposes of one tensor [batch, sequence, columns] pick out of it.

A view lists, for each axis of a value, the factors that its index runs over. So heads that an exporter splits
off, transposes, flattens, expands and slices are recognised by where they lie, not by how they are spelled:
reshape(x, [B, S, 3, H, D]) -> permute(2, 0, 3, 1, 4) -> slice and squeeze gives
[batch], [H heads at stride D], [sequence], [D columns at stride 1], from column offset 0, H D or 2 H D.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tvm import relax, sym, tirx

from greencc.ir import dtype_of, shape_of
from greencc.passes.graph import Graph

Role = Literal["batch", "sequence", "column", "repeat"]


@dataclass(frozen=True)
class Factor:
    """One loop over a source tensor.

    Attributes:
        role: the source axis that it runs over; "repeat" reads the same element again.
        extent: number of steps; an expression for batch and sequence.
        stride: distance of two steps in columns.
    """

    role: Role
    extent: tirx.Expr
    stride: int = 0


Axis = tuple[Factor, ...]
# Transposes to [batch, sequence, heads, columns] of values that lie heads first, and of transposed keys.
_ORDERS = ((0, 2, 1, 3), (0, 3, 1, 2))
_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims")
_SCALINGS = ("relax.multiply", "relax.divide")
_PICKS = ("relax.strided_slice", "relax.split", "relax.take")
_MOVES = frozenset((*_RESHAPES, *_SCALINGS, *_PICKS, "relax.permute_dims", "relax.broadcast_to"))


@dataclass(frozen=True)
class View:
    """A value as a view of `source`: its axes, the first column, and a factor on every element.

    Axes of length 1 have no factors. `order` is the transpose of `source` that the axes refer to, if any.
    """

    source: relax.Expr
    axes: tuple[Axis, ...]
    offset: int = 0
    scale: float = 1.0
    order: tuple[int, ...] | None = None

    def roles(self) -> list[Role]:
        """Roles of all factors in order."""
        return [factor.role for axis in self.axes for factor in axis]


def views_of(graph: Graph, expr: relax.Expr) -> list[View]:
    """`expr` as a view of the values it is made from, the remotest first; views of transposed copies last."""
    return sorted(_views(graph, expr), key=lambda view: view.order is not None)


def _views(graph: Graph, expr: relax.Expr) -> Iterator[View]:
    value = graph.value(expr)
    source = value.tuple_value if isinstance(value, relax.TupleGetItem) else None
    producer = graph.call(source if source is not None else expr)
    if producer is not None and producer.op.name in _MOVES:
        operand = next((arg for arg in producer.args if isinstance(arg, relax.Var)), None)
        for view in _views(graph, operand) if operand is not None else ():
            moved = apply(graph, view, expr)
            if moved is not None:
                yield moved
    dims = shape_of(expr.ty) or []
    for order in (None, *_ORDERS) if len(dims) == 4 else (None,) if len(dims) == 3 else ():
        source_dims = dims if order is None else [dims[i] for i in order]
        if all(isinstance(dim, tirx.IntImm) for dim in source_dims[2:]):
            axes = _axes_of(source_dims)
            if order is not None:
                axes = tuple(axes[order.index(i)] for i in range(4))
            yield View(expr, axes, order=order)


def _axes_of(dims: list[tirx.Expr]) -> tuple[Axis, ...]:
    """[batch, sequence, columns] or [batch, sequence, heads, columns of a head]."""
    factors = [Factor("batch", dims[0]), Factor("sequence", dims[1]), Factor("column", dims[-1], 1)]
    if len(dims) == 4:
        factors.insert(2, Factor("column", dims[2], int(dims[3])))
    return tuple((f,) if not is_one(f.extent) else () for f in factors)


def apply(graph: Graph, view: View, expr: relax.Expr) -> View | None:
    """`expr`, computed by one operator from the value that `view` stands for, as a view, or None."""
    value = graph.value(expr)
    if isinstance(value, relax.TupleGetItem):
        return _split_part(graph, view, value)
    call = graph.call(expr)
    if call is None or shape_of(expr.ty) is None:
        return None
    name = call.op.name
    if name in _SCALINGS:
        return _scaled(graph, view, call, expr)
    if name == "relax.permute_dims":
        return dataclasses.replace(view, axes=tuple(view.axes[axis] for axis in permutation_of(call)))
    if name in _RESHAPES:
        axes = _regroup([f for axis in view.axes for f in axis], shape_of(expr.ty) or [])
        return None if axes is None else dataclasses.replace(view, axes=axes)
    if name == "relax.broadcast_to":
        return _repeated(view, call, expr)
    if name == "relax.strided_slice":
        return _sliced(view, call)
    return _taken(graph, view, call) if name == "relax.take" else None


def permutation_of(call: relax.Call) -> tuple[int, ...]:
    """The axes of a permute_dims call as non-negative integers."""
    rank = len(shape_of(call.args[0].ty) or ())
    axes = call.attrs.axes
    return tuple(reversed(range(rank))) if axes is None else tuple(int(axis) % rank for axis in axes)


def extent_of(axis: Axis) -> int | None:
    """Length of an axis whose factors all have known extents."""
    length = 1
    for factor in axis:
        if not isinstance(factor.extent, tirx.IntImm):
            return None
        length *= int(factor.extent)
    return length


def contiguous(factors: list[Factor]) -> bool:
    """Whether column factors run over adjacent columns, the last one fastest."""
    stride = 1
    for factor in reversed(factors):
        if factor.role != "column" or factor.stride != stride:
            return False
        stride *= int(factor.extent)
    return True


def is_one(extent: object) -> bool:
    """Whether a dimension is the number 1."""
    return isinstance(extent, tirx.IntImm) and int(extent) == 1


def _scaled(graph: Graph, view: View, call: relax.Call, expr: relax.Expr) -> View | None:
    by_left = call.op.name == "relax.multiply" and not isinstance(call.args[0], relax.Var)
    factor = graph.scalar(call.args[0 if by_left else 1])
    dims = shape_of(expr.ty) or []
    if factor is None or len(dims) != len(view.axes) or dtype_of(expr.ty) != "float32":
        return None
    if call.op.name == "relax.divide":
        return dataclasses.replace(view, scale=view.scale / float(factor)) if factor else None
    return dataclasses.replace(view, scale=view.scale * float(factor))


def _regroup(factors: list[Factor], dims: list[tirx.Expr]) -> tuple[Axis, ...] | None:
    """The factors dealt out to axes of the lengths `dims`, in order; column factors may be split."""
    analyzer = sym.Analyzer()
    pending = list(factors)
    axes: list[Axis] = []
    for dim in dims:
        group: list[Factor] = []
        length: tirx.Expr = tirx.IntImm("int64", 1)
        while not analyzer.can_prove_equal(length, dim):
            if not pending:
                return None
            factor = pending.pop(0)
            part = _outer_part(factor, length, dim)
            if part is not None:
                inner = int(factor.extent) // part
                pending.insert(0, Factor(factor.role, tirx.IntImm("int64", inner), factor.stride))
                extent = tirx.IntImm("int64", part)
                factor = Factor(factor.role, extent, factor.stride * inner)
            group.append(factor)
            length = analyzer.simplify(length * factor.extent)
        axes.append(tuple(group))
    return tuple(axes) if not pending else None


def _outer_part(factor: Factor, length: tirx.Expr, dim: tirx.Expr) -> int | None:
    """Extent of the outer part when `factor` must be split so that an axis of `length` reaches `dim`."""
    if factor.role not in ("column", "repeat") or not all(
        isinstance(number, tirx.IntImm) for number in (factor.extent, length, dim)
    ):
        return None
    wanted, rest = divmod(int(dim), int(length))
    if rest or not 1 < wanted < int(factor.extent) or int(factor.extent) % wanted:
        return None
    return wanted


def _repeated(view: View, call: relax.Call, expr: relax.Expr) -> View | None:
    before, after = shape_of(call.args[0].ty), shape_of(expr.ty)
    if before is None or after is None or len(before) > len(after):
        return None
    axes = list(((),) * (len(after) - len(before)) + view.axes)
    before = [tirx.IntImm("int64", 1)] * (len(after) - len(before)) + before
    analyzer = sym.Analyzer()
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if analyzer.can_prove_equal(old, new):
            continue
        if not is_one(old):
            return None
        axes[i] = (Factor("repeat", new),)
    return dataclasses.replace(view, axes=tuple(axes))


def _narrowed(view: View, axis: int, begin: int, length: int) -> View | None:
    """The view with one axis of columns cut to [begin, begin + length)."""
    factors = view.axes[axis]
    if len(factors) != 1 or factors[0].role != "column" or begin < 0:
        return None
    kept = dataclasses.replace(factors[0], extent=tirx.IntImm("int64", length))
    axes = list(view.axes)
    axes[axis] = (kept,) if length != 1 else ()
    return dataclasses.replace(view, axes=tuple(axes), offset=view.offset + begin * kept.stride)


def _sliced(view: View, call: relax.Call) -> View | None:
    source, result = shape_of(call.args[0].ty), shape_of(call.ty)
    steps = call.args[4].fields if len(call.args) > 4 else [tirx.IntImm("int64", 1)] * len(call.args[1].fields)
    if source is None or result is None:
        return None
    for axis, begin, step in zip(call.args[1].fields, call.args[2].fields, steps, strict=True):
        at = int(axis) % len(source)
        if sym.Analyzer().can_prove_equal(source[at], result[at]) and is_one(step):
            continue
        numbers = (begin, source[at], result[at])
        if not is_one(step) or not all(isinstance(number, tirx.IntImm) for number in numbers):
            return None
        first = int(begin) + (int(source[at]) if int(begin) < 0 else 0)
        narrowed = _narrowed(view, at, first, int(result[at]))
        if narrowed is None:
            return None
        view = narrowed
    return view


def _taken(graph: Graph, view: View, call: relax.Call) -> View | None:
    """One index of an axis, which disappears."""
    index = graph.scalar(call.args[1])
    axis, source = call.attrs.axis, shape_of(call.args[0].ty) or []
    if index is None or axis is None or shape_of(call.args[1].ty):
        return None
    at = int(axis) % len(source)
    extent = extent_of(view.axes[at])
    narrowed = None if extent is None else _narrowed(view, at, int(index) + (extent if index < 0 else 0), 1)
    if narrowed is None:
        return None
    return dataclasses.replace(narrowed, axes=narrowed.axes[:at] + narrowed.axes[at + 1 :])


def _split_part(graph: Graph, view: View, item: relax.TupleGetItem) -> View | None:
    split = graph.call(item.tuple_value, "relax.split")
    if split is None:
        return None
    at = int(split.attrs.axis) % len(view.axes)
    dims = [(shape_of(field) or [None] * len(view.axes))[at] for field in split.ty.fields]
    lengths = [int(dim) for dim in dims[: item.index + 1] if isinstance(dim, tirx.IntImm)]
    if len(lengths) <= item.index:
        return None
    return _narrowed(view, at, sum(lengths[:-1]), lengths[-1])
