"""Two layout operators or casts in a row that one can do, as rules of `prune-dead-nodes`.

The inner call may have other users: the outer one then reads the inner one's operand, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm import relax, tirx

from greencc.ir import dtype_of, same_type, shape_of
from greencc.passes.graph import Builder, Graph
from greencc.passes.no_ops import Candidate, Rule, integers, permutation_of, strides_of

VIEWS = frozenset(f"relax.{name}" for name in ("reshape", "flatten", "squeeze", "expand_dims", "nn.batch_flatten"))
_MANTISSA_BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def _view_of_view(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """reshape(reshape(x)), squeeze(expand_dims(x)), ...: none of them moves an element."""
    inner = graph.call(call.args[0])
    if inner is None or inner.op.name not in VIEWS or shape_of(var.ty) is None:
        return None
    return Candidate("view-of-view", graph, var, call, inner.args[0], inner)


def _view(_builder: Builder, c: Candidate) -> relax.Expr:
    if same_type(c.source.ty, c.var.ty):
        return c.source
    return relax.op.reshape(c.source, relax.ShapeExpr(shape_of(c.var.ty)))


def _transpose_of_transpose(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    inner = graph.call(call.args[0], "relax.permute_dims")
    if inner is None:
        return None
    return Candidate("transpose-of-transpose", graph, var, call, inner.args[0], inner)


def _transpose(_builder: Builder, c: Candidate) -> relax.Expr:
    first = permutation_of(c.inner)
    axes = [first[axis] for axis in permutation_of(c.value)]
    return c.source if axes == sorted(axes) else relax.op.permute_dims(c.source, axes)


def _cast_of_cast(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    inner = graph.call(call.args[0], "relax.astype")
    return None if inner is None else Candidate("cast-of-cast", graph, var, call, inner.args[0], inner)


def _cast(_builder: Builder, c: Candidate) -> relax.Expr:
    dtype = dtype_of(c.var.ty)
    return c.source if dtype_of(c.source.ty) == dtype else relax.op.astype(c.source, dtype)


def _expand_of_expand(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    inner = graph.call(call.args[0], "relax.broadcast_to")
    return None if inner is None else Candidate("expand-of-expand", graph, var, call, inner.args[0], inner)


def _expand(_builder: Builder, c: Candidate) -> relax.Expr:
    return relax.op.broadcast_to(c.source, relax.ShapeExpr(shape_of(c.var.ty)))


def _slice_of_slice(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    inner = graph.call(call.args[0], "relax.strided_slice")
    if inner is None or bool(call.attrs.assume_inbound) != bool(inner.attrs.assume_inbound):
        return None
    return Candidate("slice-of-slice", graph, var, call, inner.args[0], inner)


def _slice(_builder: Builder, c: Candidate) -> relax.Expr:
    bounds = _bounds(c.inner)
    for axis, outer in _bounds(c.value).items():
        first = _extent(c.inner, axis) if axis in bounds else None
        second = _extent(c.value, axis)
        if first is None or second is None:
            bounds[axis] = outer
            continue
        begin, step = first.begin + first.step * second.begin, first.step * second.step
        end = begin + step * (second.size - 1) + 1 if second.size else begin
        bounds[axis] = (begin, end, step)
    axes = sorted(bounds)
    begins, ends, strides = ([bounds[axis][i] for axis in axes] for i in range(3))
    inbound = bool(c.value.attrs.assume_inbound)
    return relax.op.strided_slice(c.source, axes, begins, ends, strides, assume_inbound=inbound)


def _concat_of_slices(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """A concat of two or more slices, or parts of a split, of one value along the concat's axis."""
    operands = graph.value(call.args[0])
    if not isinstance(operands, relax.Tuple) or len(operands.fields) < 2:
        return None
    axis = int(call.attrs.axis) % len(shape_of(var.ty) or (0,))
    sources: list[relax.Expr] = []
    pieces: list[tuple[int, int] | None] = []
    for field in operands.fields:
        value = graph.value(field)
        part = graph.call(value.tuple_value, "relax.split") if isinstance(value, relax.TupleGetItem) else None
        cut = graph.call(field, "relax.strided_slice")
        if part is not None and int(part.attrs.axis) % len(shape_of(value.ty) or (0,)) == axis:
            sources.append(part.args[0])
            pieces.append(_split_part(part, value.index, axis))
        elif cut is not None and strides_of(cut) == {axis: 1}:
            extent = _extent(cut, axis)
            sources.append(cut.args[0])
            pieces.append(None if extent is None else (extent.begin, extent.begin + extent.size))
        else:
            return None
    if not all(source.same_as(sources[0]) for source in sources):
        return None
    return Candidate("concat-of-slices", graph, var, call, sources[0], pieces=tuple(pieces))


def _join(_builder: Builder, c: Candidate) -> relax.Expr:
    if same_type(c.source.ty, c.var.ty):
        return c.source
    known = [piece for piece in c.pieces if piece is not None]
    return relax.op.strided_slice(c.source, [int(c.value.attrs.axis)], [known[0][0]], [known[-1][1]])


COMPOSITION_RULES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(VIEWS, (Rule(_view_of_view, _view),)),
    "relax.permute_dims": (Rule(_transpose_of_transpose, _transpose),),
    "relax.astype": (Rule(_cast_of_cast, _cast),),
    "relax.broadcast_to": (Rule(_expand_of_expand, _expand),),
    "relax.strided_slice": (Rule(_slice_of_slice, _slice),),
    "relax.concat": (Rule(_concat_of_slices, _join),),
}


def inner_cast_is_exact(c: Candidate) -> bool:
    """Condition 6: the first cast must keep every value of its source: then skipping it changes nothing."""
    if c.kind != "cast-of-cast":
        return True
    return holds_every_value(dtype_of(c.inner.ty) or "", dtype_of(c.source.ty) or "")


def bounds_are_known(c: Candidate) -> bool:
    """Condition 7: positions are counted from the start of a known size; symbolic ones can't be compared."""
    if c.kind == "concat-of-slices":
        return None not in c.pieces
    if c.kind != "slice-of-slice":
        return True
    both = strides_of(c.inner).keys() & strides_of(c.value).keys()
    return all(_extent(call, axis) is not None for axis in both for call in (c.inner, c.value))


def pieces_are_adjacent(c: Candidate) -> bool:
    """Condition 8: each piece of a concat must begin where the one before it ends."""
    pairs = zip(c.pieces, c.pieces[1:], strict=False)
    return all(a is None or b is None or a[1] == b[0] for a, b in pairs)


def holds_every_value(wide: str, narrow: str) -> bool:
    """Whether dtype `wide` represents every value of dtype `narrow`; unknown dtypes are taken not to."""
    if wide == narrow:
        return True
    if wide in _MANTISSA_BITS:
        if narrow in _MANTISSA_BITS:
            # bfloat16 has float32's exponents: float16 does not hold it, nor does it hold float16.
            return _MANTISSA_BITS[narrow] < _MANTISSA_BITS[wide] and (narrow, wide) != ("bfloat16", "float16")
        bits = _integer_bits(narrow)
        return bits is not None and bits[0] + bits[1] <= _MANTISSA_BITS[wide]
    a, b = _integer_bits(wide), _integer_bits(narrow)
    return a is not None and b is not None and a[0] >= b[0] and a[1] >= b[1] and wide != "bool"


@dataclass(frozen=True)
class _Extent:
    """What a slice takes of one axis: `size` elements from `begin` on, `step` apart."""

    begin: int
    step: int
    size: int


def _extent(call: relax.Call, axis: int) -> _Extent | None:
    """The extent of a strided_slice on an axis that it cuts; None when something is no known integer."""
    begin, _, step = _bounds(call)[axis]
    before, after = shape_of(call.args[0].ty), shape_of(call.ty)
    if before is None or after is None:
        return None
    dim, size = before[axis], after[axis]
    if not all(isinstance(number, (int, tirx.IntImm)) for number in (begin, step, dim, size)):
        return None
    start = int(begin) + (int(dim) if int(begin) < 0 else 0)
    return _Extent(min(max(start, 0), int(dim)), int(step), int(size))


def _bounds(call: relax.Call) -> dict[int, tuple[relax.Expr, relax.Expr, relax.Expr]]:
    """(begin, end, stride) of a strided_slice by non-negative axis."""
    rank = len(shape_of(call.args[0].ty) or ())
    steps = call.args[4].fields if len(call.args) > 4 else [tirx.IntImm("int64", 1)] * rank
    axes = [axis % rank for axis in integers(call.args[1]) or ()]
    return {a: (b, e, s) for a, b, e, s in zip(axes, call.args[2].fields, call.args[3].fields, steps, strict=False)}


def _split_part(call: relax.Call, index: int, axis: int) -> tuple[int, int] | None:
    """(begin, end) of one part of a split, or None when the parts before it have symbolic sizes."""
    shapes = [shape_of(part) for part in call.ty.fields[: index + 1]]
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return None
    known = [int(size) for size in sizes if size is not None]
    return sum(known[:-1]), sum(known)


def _integer_bits(dtype: str) -> tuple[int, int] | None:
    """(bits of magnitude, sign bits) of an integer dtype, or None for other dtypes."""
    if dtype == "bool":
        return 1, 0
    for prefix, sign in (("uint", 0), ("int", 1)):
        if dtype.startswith(prefix) and dtype[len(prefix) :].isdigit():
            return int(dtype[len(prefix) :]) - sign, sign
    return None
