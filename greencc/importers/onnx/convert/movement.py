"""Operators that rearrange a tensor as a whole: reshape, transpose, concat, split, expand, tile, ..."""

from __future__ import annotations

import math

from tvm import relax, tirx

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.slicing import slice_axes
from greencc.importers.onnx.values import Dim, Value, as_expr, same_dim, simplify
from greencc.kernels import kernel


def product(dims: list[Dim]) -> Dim:
    """Number of elements, as an integer when it is one."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return simplify(result)


def axes_of(ctx: NodeContext, position: int, since: int) -> list[int] | None:
    """Axes from input `position` (opset `since` and on) or the attribute `axes`; None without either."""
    if ctx.opset >= since:
        return ctx.ints(position) if ctx.has(position) else None
    axes = ctx.attr("axes")
    return None if axes is None else [int(axis) for axis in axes]


def normalized(ctx: NodeContext, axes: list[int], rank: int) -> list[int]:
    """Axes counted from 0, checked against `rank`."""
    for axis in axes:
        if not -rank <= axis < max(rank, 1):
            raise ctx.refuse(f"axis {axis} is outside of rank {rank}")
    return [axis % rank for axis in axes]


def reshaped(ctx: NodeContext, tensor: relax.Expr, shape: list[Dim]) -> relax.Expr:
    """A reshape to a known shape."""
    return relax.op.reshape(tensor, [as_expr(dim) for dim in shape])


def reshape(ctx: NodeContext) -> relax.Expr | Value:
    """Reshape; 0 copies a dimension (unless allowzero), -1 is inferred, symbolic sizes are expressions."""
    source = ctx.shape(0)
    wanted = ctx.dims(1) if ctx.opset >= 5 else [int(dim) for dim in ctx.attr("shape")]
    copy_zero = not ctx.attr("allowzero", 0)
    target: list[Dim] = []
    for axis, dim in enumerate(wanted):
        if copy_zero and isinstance(dim, int) and dim == 0:
            if axis >= len(source):
                raise ctx.refuse(f"size 0 at axis {axis} copies a dimension that the input lacks")
            dim = source[axis]
        target.append(dim)
    unknown = [axis for axis, dim in enumerate(target) if isinstance(dim, int) and dim == -1]
    if len(unknown) > 1:
        raise ctx.refuse("more than one size is -1")
    if unknown:
        rest = product([dim for axis, dim in enumerate(target) if axis not in unknown])
        total = product(source)
        if isinstance(rest, int) and rest == 0:
            raise ctx.refuse("size -1 can't be inferred beside a size 0")
        if isinstance(rest, int) and isinstance(total, int) and total % rest:
            raise ctx.refuse(f"{source} has no reshape to {target}")
        target[unknown[0]] = simplify(total // rest)
    return reshaped(ctx, ctx.tensor(0), target)


def transpose(ctx: NodeContext) -> relax.Expr | Value:
    """Transpose; without `perm` the axes are reversed."""
    if ctx.rank(0) < 2:
        return ctx.value(0)
    perm = ctx.attr("perm")
    return relax.op.permute_dims(ctx.tensor(0), list(reversed(range(ctx.rank(0)))) if perm is None else perm)


def identity(ctx: NodeContext) -> Value:
    """Identity: the same value under another name."""
    value = ctx.value(0)
    return Value("", value.expr, value.known, value.dtype, value.elements)


def squeeze(ctx: NodeContext) -> relax.Expr | Value:
    """Squeeze: drops axes of size 1; without axes, all that are."""
    shape = ctx.shape(0)
    axes = axes_of(ctx, 1, since=13)
    if axes is None:
        axes = [axis for axis, dim in enumerate(shape) if isinstance(dim, int) and dim == 1]
        if any(not isinstance(dim, int) for dim in shape):
            raise ctx.refuse("without axes, which ones go depends on a symbolic size")
    axes = normalized(ctx, axes, len(shape))
    if any(isinstance(shape[axis], int) and shape[axis] != 1 for axis in axes):
        raise ctx.refuse(f"axes {axes} of {shape} are not all of size 1")
    return reshaped(ctx, ctx.tensor(0), [dim for axis, dim in enumerate(shape) if axis not in axes])


def unsqueeze(ctx: NodeContext) -> relax.Expr:
    """Unsqueeze: new axes of size 1, counted in the result."""
    axes = axes_of(ctx, 1, since=13)
    if axes is None:
        raise ctx.refuse("no axes are given")
    axes = normalized(ctx, axes, ctx.rank(0) + len(axes))
    if len(set(axes)) != len(axes):
        raise ctx.refuse(f"axes {axes} repeat")
    shape = list(ctx.shape(0))
    for axis in sorted(axes):
        shape.insert(axis, 1)
    return reshaped(ctx, ctx.tensor(0), shape)


def flatten(ctx: NodeContext) -> relax.Expr:
    """Flatten to two dimensions, split before `axis` (which may be the rank)."""
    shape = ctx.shape(0)
    axis = int(ctx.attr("axis", 1))
    if not -len(shape) <= axis <= len(shape):
        raise ctx.refuse(f"axis {axis} is outside of rank {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    return reshaped(ctx, ctx.tensor(0), [product(shape[:axis]), product(shape[axis:])])


def concat(ctx: NodeContext) -> relax.Expr | Value:
    """Concat along `axis` (1 before opset 4 unless given)."""
    axis = ctx.axis("axis", 1)
    if len(ctx.inputs) == 1:
        return ctx.value(0)
    return relax.op.concat([ctx.tensor(index) for index in range(len(ctx.inputs))], axis)


def part_sizes(ctx: NodeContext, length: Dim, parts: int) -> list[Dim]:
    """Sizes of equal parts; the last one is smaller where `length` does not divide."""
    if not isinstance(length, int):
        raise ctx.refuse("a symbolic size in equal parts")
    size = math.ceil(length / parts)
    return [max(min(size, length - index * size), 0) for index in range(parts)]


def split(ctx: NodeContext) -> list[relax.Expr]:
    """Split into parts of given sizes, or equal ones."""
    axis = ctx.axis("axis", 0)
    length = ctx.shape(0)[axis]
    sizes: list[Dim]
    from_input = ctx.dims(1) if ctx.opset >= 13 and ctx.has(1) else None
    given = from_input if ctx.opset >= 13 else ctx.attr("split")
    sizes = (
        list(given)
        if given is not None
        else part_sizes(ctx, length, int(ctx.attr("num_outputs", len(ctx.node.output))))
    )
    if given is not None and not same_dim(simplify(sum(sizes[1:], sizes[0])), length):
        raise ctx.refuse(f"parts of {sizes} do not make up {length}")
    results: list[relax.Expr] = []
    start: Dim = 0
    for size in sizes:
        results.append(ctx.emit(slice_axes(ctx, ctx.tensor(0), [axis], [start], [simplify(start + size)], [1])))
        start = simplify(start + size)
    return results


def broadcast_dims(ctx: NodeContext, a: list[Dim], b: list[Dim]) -> list[Dim]:
    """Numpy's common shape of two; a symbolic size beside another that isn't provably equal is refused."""
    rank = max(len(a), len(b))
    result: list[Dim] = []
    for x, y in zip([1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b, strict=True):
        if isinstance(x, int) and x == 1:
            result.append(y)
        elif (isinstance(y, int) and y == 1) or same_dim(x, y):
            result.append(x)
        else:
            raise ctx.refuse(f"whether {x} broadcasts to {y} is only known at run time")
    return result


def expand(ctx: NodeContext) -> relax.Expr | Value:
    """Expand: broadcasting both ways between the input's shape and the wanted one."""
    source = ctx.shape(0)
    target = broadcast_dims(ctx, source, ctx.dims(1))
    if len(target) == len(source) and all(same_dim(x, y) for x, y in zip(source, target, strict=True)):
        return ctx.value(0)
    return relax.op.broadcast_to(ctx.tensor(0), [as_expr(dim) for dim in target])


def tile(ctx: NodeContext) -> relax.Expr:
    """Tile: repeats the input along every axis."""
    shape = ctx.shape(0)
    if ctx.opset < 6:
        repeats: list[Dim] = [1] * len(shape)
        repeats[ctx.ints(2)[0]] = ctx.ints(1)[0]
    else:
        repeats = ctx.dims(1)
    if len(repeats) != len(shape):
        raise ctx.refuse(f"{len(repeats)} repeats for rank {len(shape)}")
    return kernel("tile", [ctx.tensor(0)], [simplify(d * r) for d, r in zip(shape, repeats, strict=True)])


def depth_to_space(ctx: NodeContext) -> relax.Expr:
    """DepthToSpace, depth-column-row (DCR) or column-row-depth (CRD) order."""
    n, c, h, w = ctx.shape(0)
    block = int(ctx.attr("blocksize"))
    depth = simplify(c // (block * block))
    if ctx.attr("mode", "DCR") == "DCR":
        parts, perm = [n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2]
    else:
        parts, perm = [n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3]
    split_up = ctx.emit(reshaped(ctx, ctx.tensor(0), parts))
    turned = ctx.emit(relax.op.permute_dims(split_up, perm))
    return reshaped(ctx, turned, [n, depth, simplify(h * block), simplify(w * block)])


def space_to_depth(ctx: NodeContext) -> relax.Expr:
    """SpaceToDepth: blocks of pixels become channels."""
    n, c, h, w = ctx.shape(0)
    block = int(ctx.attr("blocksize"))
    rows, columns = simplify(h // block), simplify(w // block)
    split_up = ctx.emit(reshaped(ctx, ctx.tensor(0), [n, c, rows, block, columns, block]))
    perm = [0, 3, 5, 1, 2, 4] if ctx.attr("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    turned = ctx.emit(relax.op.permute_dims(split_up, perm))
    return reshaped(ctx, turned, [n, simplify(c * block * block), rows, columns])


def dropout(ctx: NodeContext) -> list[relax.Expr | Value]:
    """Dropout in inference: the input itself, and a mask of ones."""
    ratio, training = 0.5, False
    if ctx.opset >= 12:
        training = bool(ctx.constant(2).reshape(-1)[0]) if ctx.has(2) else False
        ratio = float(ctx.constant(1).reshape(-1)[0]) if training and ctx.has(1) else 0.5
    elif ctx.opset < 7:
        training = not ctx.attr("is_test", 0)
        ratio = float(ctx.attr("ratio", 0.5))
    if training and ratio != 0.0:
        raise ctx.refuse("dropout in training mode is random")
    results: list[relax.Expr | Value] = [identity(ctx)]
    if len(ctx.node.output) > 1 and ctx.node.output[1]:
        dtype = "bool" if ctx.opset >= 10 else ctx.value(0).dtype
        sizes = relax.ShapeExpr([as_expr(dim) for dim in ctx.shape(0)])
        results.append(ctx.emit(relax.op.full(sizes, ctx.const(1, dtype), dtype)))
    return results


def shape_of(ctx: NodeContext) -> relax.Expr:
    """Shape, Size of a value whose shape isn't known while importing (all others are carried as integers)."""
    raise ctx.refuse(f"the shape of '{ctx.value(0).name}' is unknown")


def constant_of_shape(ctx: NodeContext) -> relax.Expr:
    """ConstantOfShape for symbolic sizes."""
    value = ctx.attr("value")
    dtype = "float32" if value is None else str(value.dtype)
    filler = 0 if value is None else value.reshape(()).item()
    return relax.op.full(relax.ShapeExpr([as_expr(dim) for dim in ctx.dims(0)]), ctx.const(filler, dtype), dtype)


def eye_like(ctx: NodeContext) -> relax.Expr:
    """EyeLike: ones on diagonal `k`."""
    from greencc.importers.onnx.convert.types import checked_type

    dtype = checked_type(ctx, ctx.attr("dtype")) if ctx.has_attr("dtype") else ctx.value(0).dtype
    return kernel("eye", [], ctx.shape(0), dtype=dtype, diagonal=int(ctx.attr("k", 0)))


def arange(ctx: NodeContext) -> relax.Expr:
    """Range of integers whose bounds follow from shapes; others have a shape that depends on data."""
    if not all(ctx.value(index).dtype.startswith("int") for index in range(3)):
        raise ctx.refuse("its length depends on data")
    start, limit, delta = (ctx.dims(index)[0] for index in range(3))
    if not isinstance(delta, int) or delta == 0:
        raise ctx.refuse("its step must be a constant")
    distance = limit - start if delta > 0 else start - limit
    count = simplify(tirx.max(tirx.floordiv(as_expr(distance) + abs(delta) - 1, abs(delta)), as_expr(0)))
    if start == 0 and delta == 1 and not isinstance(limit, int):
        count = limit  # a size is never negative
    return kernel("arange", [], [start, delta, count], dtype=ctx.value(0).dtype)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Concat"): concat,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "DepthToSpace"): depth_to_space,
    ("", "Dropout"): dropout,
    ("", "Expand"): expand,
    ("", "EyeLike"): eye_like,
    ("", "Flatten"): flatten,
    ("", "Identity"): identity,
    ("", "Range"): arange,
    ("", "Reshape"): reshape,
    ("", "Shape"): shape_of,
    ("", "Size"): shape_of,
    ("", "SpaceToDepth"): space_to_depth,
    ("", "Split"): split,
    ("", "Squeeze"): squeeze,
    ("", "Tile"): tile,
    ("", "Transpose"): transpose,
    ("", "Unsqueeze"): unsqueeze,
}
