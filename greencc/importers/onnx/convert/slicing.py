"""Slices and padding: both shift index ranges, with static or symbolic bounds."""

from __future__ import annotations

from tvm import relax, tirx

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.values import Dim, Value, as_expr, same_dim, simplify
from greencc.kernels import kernel

# Beyond any size: how exporters spell "to the end" and "to the beginning".
FAR = 1 << 30


def smaller(a: Dim, b: Dim) -> Dim:
    """Minimum, simplified."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else simplify(tirx.min(as_expr(a), as_expr(b)))


def larger(a: Dim, b: Dim) -> Dim:
    """Maximum, simplified."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else simplify(tirx.max(as_expr(a), as_expr(b)))


def bounds_of(ctx: NodeContext, start: Dim, end: Dim, step: int, size: Dim) -> tuple[Dim, Dim]:
    """(first index, number of elements) of a slice of an axis, with ONNX's clamping of bounds."""
    first, last = _position(ctx, start, size), _position(ctx, end, size)
    if step > 0:
        first = larger(smaller(first, size), 0)
        last = larger(smaller(last, size), 0)
        return first, simplify(larger((last - first + (step - 1)) // step, 0))
    first = smaller(larger(first, -1), size - 1)
    last = smaller(larger(last, -1), size - 1)
    return first, simplify(larger((first - last + (-step - 1)) // -step, 0))


def _position(ctx: NodeContext, bound: Dim, size: Dim) -> Dim:
    """A bound counted from the beginning. A symbolic bound is a size, thus not negative."""
    if isinstance(bound, int):
        if bound >= FAR:
            return size
        if bound <= -FAR:
            return -1 if isinstance(size, int) else simplify(-size)
        return simplify(size + bound) if bound < 0 else bound
    if _may_be_negative(bound):
        raise ctx.refuse(f"the bound {bound} may be negative")
    return bound


def _may_be_negative(bound: Dim) -> bool:
    """Whether an expression of sizes could be below zero: differences and negations could."""
    if isinstance(bound, int):
        return bound < 0
    if isinstance(bound, (tirx.Var, tirx.Max)):
        return isinstance(bound, tirx.Max) and _may_be_negative(bound.a) and _may_be_negative(bound.b)
    if isinstance(bound, tirx.IntImm):
        return int(bound) < 0
    if isinstance(bound, (tirx.Add, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min)):
        return _may_be_negative(bound.a) or _may_be_negative(bound.b)
    return True


def slice_axes(
    ctx: NodeContext,
    tensor: relax.Expr,
    axes: list[int],
    starts: list[Dim],
    ends: list[Dim],
    steps: list[int],
) -> relax.Expr:
    """tensor[..., start:end:step, ...] on `axes`; the tensor itself when nothing is cut off."""
    sizes: list[Dim] = [simplify(dim) for dim in tensor.ty.shape.values]
    firsts: list[Dim] = [0] * len(sizes)
    counts, strides = list(sizes), [1] * len(sizes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        firsts[axis], counts[axis] = bounds_of(ctx, start, end, step, sizes[axis])
        strides[axis] = step
    if all(step == 1 and same_dim(a, b) for step, a, b in zip(strides, sizes, counts, strict=True)):
        return tensor
    plain = all(
        isinstance(sizes[axis], int) and isinstance(firsts[axis], int) and isinstance(counts[axis], int) and step > 0
        for axis, step in enumerate(strides)
        if axis in axes
    )
    if not plain or any(isinstance(count, int) and count == 0 for count in counts):
        return kernel("strided_slice", [tensor], [*firsts, *counts], steps=strides)
    ends = [firsts[axis] + (counts[axis] - 1) * strides[axis] + 1 for axis in axes]
    return relax.op.strided_slice(tensor, axes, [firsts[axis] for axis in axes], ends, [strides[axis] for axis in axes])


def slice_(ctx: NodeContext) -> relax.Expr | Value:
    """Slice: bounds as attributes (before opset 10) or as inputs."""
    rank = ctx.rank(0)
    if ctx.opset < 10:
        starts: list[Dim] = [int(value) for value in ctx.attr("starts")]
        ends: list[Dim] = [int(value) for value in ctx.attr("ends")]
        axes, steps = ctx.attr("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = ctx.dims(1), ctx.dims(2)
        axes = ctx.ints(3) if ctx.has(3) else list(range(len(starts)))
        steps = ctx.ints(4) if ctx.has(4) else [1] * len(starts)
    if not len(axes) == len(starts) == len(ends) == len(steps):
        raise ctx.refuse("starts, ends, axes and steps differ in length")
    if any(not -rank <= axis < rank for axis in axes):
        raise ctx.refuse(f"axes {axes} are outside of rank {rank}")
    if any(step == 0 for step in steps):
        raise ctx.refuse("a step is 0")
    return slice_axes(ctx, ctx.tensor(0), [axis % rank for axis in axes], starts, ends, steps)


def pad(ctx: NodeContext) -> relax.Expr | Value:
    """Pad: constant, reflect, edge or wrap; negative amounts crop."""
    rank = ctx.rank(0)
    mode = str(ctx.attr("mode", "constant"))
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ctx.refuse(f"mode '{mode}' is unknown")
    if ctx.opset < 11:
        amounts: list[Dim] = [int(value) for value in ctx.attr("pads", ctx.attr("paddings"))]
        filler: relax.Expr | None = ctx.const(float(ctx.attr("value", 0.0)), ctx.value(0).dtype)
    else:
        amounts = ctx.dims(1)
        filler = ctx.tensor(2) if ctx.has(2) else None
    axes = [axis % rank for axis in ctx.ints(3)] if ctx.opset >= 18 and ctx.has(3) else list(range(rank))
    if len(amounts) != 2 * len(axes):
        raise ctx.refuse(f"{len(amounts)} amounts for {len(axes)} axes")
    before: list[Dim] = [0] * rank
    sizes = list(ctx.shape(0))
    for position, axis in enumerate(axes):
        low, high = amounts[position], amounts[position + len(axes)]
        if mode == "reflect":
            _check_reflection(ctx, sizes[axis], low, high)
        before[axis] = low
        sizes[axis] = simplify(sizes[axis] + low + high)
    if all(isinstance(low, int) and low == 0 for low in before) and sizes == ctx.shape(0):
        return ctx.value(0)
    values = [filler] if filler is not None and mode == "constant" else []
    return kernel("pad", [ctx.tensor(0), *values], [*before, *sizes], mode=mode)


def _check_reflection(ctx: NodeContext, size: Dim, low: Dim, high: Dim) -> None:
    if isinstance(size, int) and size == 0 and (low, high) != (0, 0):
        raise ctx.refuse("there is nothing to reflect in an empty axis")


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Pad"): pad,
    ("", "Slice"): slice_,
}
