"""Operators that select or place elements by index tensors."""

from __future__ import annotations

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.values import Value, as_expr
from greencc.kernels import kernel

_REDUCTIONS = ("none", "add", "mul", "max", "min")


def gather(ctx: NodeContext) -> relax.Expr:
    """Gather along `axis`; negative indices count from the end (Relax's "wrap" does so)."""
    axis = ctx.axis("axis", 0)
    indices, size = ctx.value(1), ctx.shape(0)[axis]
    if indices.is_constant and indices.known is not None and isinstance(size, int):
        known = np.where(indices.known < 0, indices.known + size, indices.known)
        if known.size and (known.min() < 0 or known.max() >= size):
            raise ctx.refuse(f"an index is outside of the {size} elements of axis {axis}")
        return relax.op.take(ctx.tensor(0), ctx.const(known, indices.dtype), axis, mode="clip")
    return relax.op.take(ctx.tensor(0), ctx.tensor(1), axis, mode="wrap")


def gather_elements(ctx: NodeContext) -> relax.Expr:
    """GatherElements."""
    return kernel("gather_elements", [ctx.tensor(0), ctx.tensor(1)], axis=ctx.axis("axis", 0))


def gather_nd(ctx: NodeContext) -> relax.Expr:
    """GatherND with batch dimensions."""
    width = ctx.shape(1)[-1]
    if not isinstance(width, int):
        raise ctx.refuse("the number of coordinates must be fixed")
    return kernel("gather_nd", [ctx.tensor(0), ctx.tensor(1)], batch_dims=int(ctx.attr("batch_dims", 0)))


def _reduction(ctx: NodeContext) -> str:
    reduction = str(ctx.attr("reduction", "none"))
    if reduction not in _REDUCTIONS:
        raise ctx.refuse(f"reduction '{reduction}' is unknown")
    if ctx.value(0).dtype == "bool" and reduction != "none":
        raise ctx.refuse("a reduction of booleans")
    return reduction


def scatter_elements(ctx: NodeContext) -> relax.Expr:
    """ScatterElements, and Scatter before opset 11."""
    tensors = [ctx.tensor(index) for index in range(3)]
    return kernel("scatter_elements", tensors, axis=ctx.axis("axis", 0), reduction=_reduction(ctx))


def scatter_nd(ctx: NodeContext) -> relax.Expr:
    """ScatterND."""
    if not isinstance(ctx.shape(1)[-1], int):
        raise ctx.refuse("the number of coordinates must be fixed")
    return kernel("scatter_nd", [ctx.tensor(index) for index in range(3)], reduction=_reduction(ctx))


def compress(ctx: NodeContext) -> relax.Expr:
    """Compress by a constant condition; the result's shape follows from it."""
    keep = np.flatnonzero(ctx.constant(1))
    data = ctx.tensor(0)
    if not ctx.has_attr("axis"):
        total = as_expr(1)
        for dim in ctx.shape(0):
            total = total * as_expr(dim)
        return relax.op.take(ctx.emit(relax.op.reshape(data, [total])), ctx.const(keep, "int64"), 0, mode="clip")
    return relax.op.take(data, ctx.const(keep, "int64"), ctx.axis("axis"), mode="clip")


def one_hot(ctx: NodeContext) -> relax.Expr:
    """OneHot: the depth must be constant, the on and off values need not be."""
    depth = ctx.constant(1).reshape(-1)[0]
    axis = int(ctx.attr("axis", -1))
    rank = ctx.rank(0) + 1
    if not -rank <= axis < rank:
        raise ctx.refuse(f"axis {axis} is outside of rank {rank}")
    return kernel("one_hot", [ctx.tensor(0), ctx.tensor(2)], [int(depth)], axis=axis % rank)


def reverse_sequence(ctx: NodeContext) -> relax.Expr:
    """ReverseSequence."""
    batch, time = int(ctx.attr("batch_axis", 1)), int(ctx.attr("time_axis", 0))
    return kernel("reverse_sequence", [ctx.tensor(0), ctx.tensor(1)], batch_axis=batch, time_axis=time)


def triangle(ctx: NodeContext) -> relax.Expr | Value:
    """Trilu: the upper or lower triangle, the diagonal as an attribute of the kernel or as its input."""
    upper = bool(ctx.attr("upper", 1))
    if not ctx.has(1):
        return kernel("triangle", [ctx.tensor(0)], upper=upper)
    shift = ctx.value(1)
    if shift.is_constant and shift.known is not None:
        return kernel("triangle", [ctx.tensor(0)], upper=upper, diagonal=int(shift.known.reshape(-1)[0]))
    return kernel("triangle", [ctx.tensor(0), ctx.tensor(1)], upper=upper)


def col2im(ctx: NodeContext) -> relax.Expr:
    """Col2Im: sums the columns back into images."""
    image, block = ctx.dims(1), ctx.ints(2)
    rank = len(block)
    return kernel(
        "col2im",
        [ctx.tensor(0)],
        image,
        kernel=block,
        strides=[int(v) for v in ctx.attr("strides", [1] * rank)],
        dilations=[int(v) for v in ctx.attr("dilations", [1] * rank)],
        pads=[int(v) for v in ctx.attr("pads", [0] * 2 * rank)],
    )


def depends_on_data(ctx: NodeContext) -> relax.Expr:
    """NonZero, Unique: how many elements there are is known only at run time."""
    raise ctx.refuse("the shape of its result depends on data")


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Col2Im"): col2im,
    ("", "Compress"): compress,
    ("", "Gather"): gather,
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "NonZero"): depends_on_data,
    ("", "OneHot"): one_hot,
    ("", "ReverseSequence"): reverse_sequence,
    ("", "Scatter"): scatter_elements,
    ("", "ScatterElements"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "Trilu"): triangle,
    ("", "Unique"): depends_on_data,
}
