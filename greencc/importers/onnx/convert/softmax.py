"""Softmax, LogSoftmax and Hardmax. Before opset 13 they see their input as a matrix cut at `axis`."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.values import Dim, as_expr, simplify
from greencc.kernels import kernel


def along_axis(function: Callable[[NodeContext, relax.Expr, int], relax.Expr]) -> Converter:
    """A converter of an operator that normalises along one axis; `function` gets a non-negative axis."""

    def convert(ctx: NodeContext) -> relax.Expr:
        data = ctx.tensor(0)
        if ctx.opset >= 13:
            return function(ctx, data, ctx.axis(default=-1))
        axis, shape = ctx.axis(default=1), ctx.shape(0)
        if axis == len(shape) - 1:
            return function(ctx, data, axis)  # the matrix has the same rows
        rows, columns = _product(shape[:axis]), _product(shape[axis:])
        matrix = ctx.emit(relax.op.reshape(data, [as_expr(rows), as_expr(columns)]))
        result = ctx.emit(function(ctx, matrix, 1))
        return relax.op.reshape(result, [as_expr(dim) for dim in shape])

    return convert


def _in_single(
    function: Callable[[relax.Expr, int], relax.Expr],
) -> Callable[[NodeContext, relax.Expr, int], relax.Expr]:
    """A normalisation; half precision has too few bits for its sums and goes through float32."""

    def normalise(ctx: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
        if str(data.ty.dtype) != "float16":
            return function(data, axis)
        wide = ctx.emit(function(ctx.emit(relax.op.astype(data, "float32")), axis))
        return relax.op.astype(wide, "float16")

    return normalise


def _softmax(ctx: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    """Softmax; in half precision every step but the sum is rounded, as the standard's reference does."""
    if str(data.ty.dtype) != "float16":
        return relax.op.nn.softmax(data, axis)
    peak = ctx.emit(relax.op.max(data, [axis], True))
    wide = ctx.emit(relax.op.astype(ctx.emit(relax.op.subtract(data, peak)), "float32"))
    e = ctx.emit(relax.op.astype(ctx.emit(relax.op.exp(wide)), "float16"))
    total = ctx.emit(relax.op.sum(ctx.emit(relax.op.astype(e, "float32")), [axis], True))
    return relax.op.divide(e, ctx.emit(relax.op.astype(total, "float16")))


def _product(dims: list[Dim]) -> Dim:
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return simplify(result)


def _hardmax(ctx: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    """1 at the first maximum along the axis, 0 elsewhere."""
    shape = list(data.ty.shape.values)
    winner = ctx.emit(kernel("arg_extreme", [data], axis=axis, largest=True, last=False))
    places = ctx.emit(relax.op.arange(0, shape[axis], 1, "int64"))
    places = ctx.emit(relax.op.reshape(places, [-1 if i == axis else 1 for i in range(len(shape))]))
    return relax.op.astype(ctx.emit(relax.op.equal(winner, places)), ctx.value(0).dtype)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Softmax"): along_axis(_softmax),
    ("", "LogSoftmax"): along_axis(_in_single(relax.op.nn.log_softmax)),
    ("", "Hardmax"): along_axis(_hardmax),
}
