"""Reductions, extremes' positions, running sums, sorting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.types import FLOATS, INTEGERS
from greencc.importers.onnx.values import Value, as_expr
from greencc.kernels import kernel

Prepare = Callable[[NodeContext, relax.Expr], relax.Expr]

# Since which opset each reduction takes its axes as an input.
_AXES_INPUT_SINCE = {"ReduceSum": 13}


def _axes(ctx: NodeContext) -> list[int] | None:
    """The axes to reduce, counted from 0; None when there is nothing to reduce (noop_with_empty_axes)."""
    if ctx.opset >= _AXES_INPUT_SINCE.get(ctx.op, 18):
        given = ctx.ints(1) if ctx.has(1) else []
        if not given and ctx.attr("noop_with_empty_axes", 0):
            return None
    else:
        given = [int(axis) for axis in ctx.attr("axes", [])]
    rank = ctx.rank(0)
    if any(not -rank <= axis < rank for axis in given):
        raise ctx.refuse(f"axes {given} are outside of rank {rank}")
    return sorted({axis % rank for axis in given}) or list(range(rank))


def reduction(
    function: Callable[..., relax.Expr],
    empty: str,
    before: Prepare | None = None,
    after: Prepare | None = None,
) -> Converter:
    """A reduction: `before` maps the elements, `after` the result; `empty` is what no elements give."""

    def convert(ctx: NodeContext) -> relax.Expr | Value:
        dtype = ctx.value(0).dtype
        axes = _axes(ctx)
        x = ctx.tensor(0)
        if before is not None:
            x = ctx.emit(before(ctx, x))
        if axes:
            x = _reduce(ctx, x, axes, function, empty)
        elif before is None and after is None:
            return ctx.value(0)
        if after is not None:
            x = ctx.emit(after(ctx, x))
        return x if str(x.ty.dtype) == dtype else ctx.emit(relax.op.astype(x, dtype))

    return convert


def _reduce(
    ctx: NodeContext, x: relax.Expr, axes: list[int], function: Callable[..., relax.Expr], empty: str
) -> relax.Expr:
    keep = bool(ctx.attr("keepdims", 1))
    dtype = str(x.ty.dtype)
    shape = ctx.shape(0)
    if any(isinstance(shape[axis], int) and shape[axis] == 0 for axis in axes):
        kept = [as_expr(1 if n in axes else dim) for n, dim in enumerate(shape) if keep or n not in axes]
        return ctx.emit(relax.op.full(relax.ShapeExpr(kept), ctx.const(_identity(empty, dtype), dtype), dtype))
    if dtype == "bool":
        x = ctx.emit(relax.op.astype(x, "int8"))
    elif dtype in ("float16", "bfloat16"):
        x = ctx.emit(relax.op.astype(x, "float32"))  # as numpy and every runtime do: a half has too few bits to sum
    result = ctx.emit(function(x, axes, keep))
    if dtype == "bool":
        return ctx.emit(kernel("to_bool", [result]))
    return result if str(result.ty.dtype) == dtype else ctx.emit(relax.op.astype(result, dtype))


def _identity(empty: str, dtype: str) -> float | int | bool:
    if empty in ("0", "1"):
        return int(empty)
    if empty == "nan":
        return float("nan") if dtype in FLOATS else 0
    lowest = empty == "-inf"
    if dtype == "bool":
        return not lowest
    if dtype in FLOATS:
        return float(empty)
    return int(np.iinfo(dtype).min if lowest else np.iinfo(dtype).max)


def _mean(x: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return relax.op.mean(x, axes, keep)


def mean(ctx: NodeContext) -> relax.Expr | Value:
    """ReduceMean; integers are summed and the quotient truncated."""
    if ctx.value(0).dtype not in INTEGERS:
        return reduction(_mean, "nan")(ctx)
    axes = _axes(ctx)
    if axes is None:
        return ctx.value(0)
    count = 1
    for axis in axes:
        size = ctx.shape(0)[axis]
        if not isinstance(size, int):
            raise ctx.refuse("the integer mean over a symbolic size")
        count *= size
    total = reduction(relax.op.sum, "0")(ctx)
    return kernel("divide_integers", [total, ctx.const(count, ctx.value(0).dtype)])


def log_sum_exp(ctx: NodeContext) -> relax.Expr | Value:
    """ReduceLogSumExp: the maximum is taken out, so that no exponential overflows."""
    axes = _axes(ctx)
    if not axes:
        return ctx.value(0)  # log(exp(x)) of single elements
    dtype = ctx.value(0).dtype
    keep = bool(ctx.attr("keepdims", 1))
    shape = ctx.shape(0)
    if any(isinstance(shape[axis], int) and shape[axis] == 0 for axis in axes):
        return _reduce(ctx, ctx.tensor(0), axes, relax.op.sum, "-inf")
    x = ctx.tensor(0)
    if dtype not in ("float32", "float64"):
        x = ctx.emit(relax.op.astype(x, "float32"))
    work = str(x.ty.dtype)
    peak = ctx.emit(relax.op.max(x, axes, True))
    # An infinite maximum would give inf - inf.
    infinite = ctx.emit(kernel("is_infinite", [peak], positive=True, negative=True))
    peak = ctx.emit(relax.op.where(infinite, ctx.const(0, work), peak))
    powers = ctx.emit(relax.op.exp(ctx.emit(relax.op.subtract(x, peak))))
    total = ctx.emit(relax.op.log(ctx.emit(relax.op.sum(powers, axes, True))))
    result = ctx.emit(relax.op.add(total, peak))
    if not keep:
        result = ctx.emit(relax.op.squeeze(result, axes))
    return result if work == dtype else relax.op.astype(result, dtype)


def _square(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    return relax.op.multiply(x, x)


def _root(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    if str(x.ty.dtype) in ("float32", "float64"):
        return relax.op.sqrt(x)
    return relax.op.sqrt(ctx.emit(relax.op.astype(x, "float32" if str(x.ty.dtype) == "float16" else "float64")))


def _log(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    if str(x.ty.dtype) in ("float32", "float64"):
        return relax.op.log(x)
    return relax.op.log(ctx.emit(relax.op.astype(x, "float32" if str(x.ty.dtype) == "float16" else "float64")))


def _absolute(ctx: NodeContext, x: relax.Expr) -> relax.Expr:
    return x if ctx.value(0).dtype.startswith("uint") else relax.op.abs(x)


def position(largest: bool) -> Converter:
    """ArgMax, ArgMin: int64 positions; among equals the first, or the last with select_last_index."""

    def convert(ctx: NodeContext) -> relax.Expr:
        axis = ctx.axis("axis", 0)
        keep = bool(ctx.attr("keepdims", 1))
        if ctx.value(0).dtype == "float32" and not ctx.attr("select_last_index", 0):
            return (relax.op.argmax if largest else relax.op.argmin)(ctx.tensor(0), axis, keep)
        last = bool(ctx.attr("select_last_index", 0))
        found = ctx.emit(kernel("arg_extreme", [ctx.tensor(0)], axis=axis, largest=largest, last=last))
        return found if keep else relax.op.squeeze(found, [axis])

    return convert


def scan(multiply: bool) -> Converter:
    """CumSum, CumProd along a constant axis."""

    def convert(ctx: NodeContext) -> relax.Expr:
        axis = ctx.ints(1)[0]
        if not -ctx.rank(0) <= axis < ctx.rank(0):
            raise ctx.refuse(f"axis {axis} is outside of rank {ctx.rank(0)}")
        return kernel(
            "scan",
            [ctx.tensor(0)],
            axis=axis % ctx.rank(0),
            exclusive=bool(ctx.attr("exclusive", 0)),
            reverse=bool(ctx.attr("reverse", 0)),
            multiply=multiply,
        )

    return convert


def top_k(ctx: NodeContext) -> list[relax.Expr]:
    """TopK: values and indices in order; k must follow from shapes or be constant."""
    axis = ctx.axis("axis", -1)
    count = ctx.dims(1)[0] if ctx.opset >= 10 else int(ctx.attr("k"))
    size = ctx.shape(0)[axis]
    if isinstance(count, int) and isinstance(size, int) and not 0 <= count <= size:
        raise ctx.refuse(f"k = {count} of {size} elements")
    if isinstance(count, int) != isinstance(size, int):
        raise ctx.refuse(f"whether there are {count} elements among {size} is only known at run time")
    found = ctx.emit(kernel("top_k", [ctx.tensor(0)], [count], axis=axis, largest=bool(ctx.attr("largest", 1))))
    return [ctx.emit(relax.TupleGetItem(found, index)) for index in range(2)]


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "ArgMax"): position(largest=True),
    ("", "ArgMin"): position(largest=False),
    ("", "CumProd"): scan(multiply=True),
    ("", "CumSum"): scan(multiply=False),
    ("", "ReduceL1"): reduction(relax.op.sum, "0", before=_absolute),
    ("", "ReduceL2"): reduction(relax.op.sum, "0", before=_square, after=_root),
    ("", "ReduceLogSum"): reduction(relax.op.sum, "0", after=_log),
    ("", "ReduceLogSumExp"): log_sum_exp,
    ("", "ReduceMax"): reduction(relax.op.max, "-inf"),
    ("", "ReduceMean"): mean,
    ("", "ReduceMin"): reduction(relax.op.min, "inf"),
    ("", "ReduceProd"): reduction(relax.op.prod, "1"),
    ("", "ReduceSum"): reduction(relax.op.sum, "0"),
    ("", "ReduceSumSquare"): reduction(relax.op.sum, "0", before=_square),
    ("", "TopK"): top_k,
}
