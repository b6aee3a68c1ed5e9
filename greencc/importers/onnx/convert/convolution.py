"""Conv and ConvTranspose over one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.windows import (
    Window,
    check_sizes,
    larger,
    read_window,
)
from greencc.importers.onnx.values import Dim, as_expr, simplify
from greencc.ir import constant
from greencc.kernels import kernel

_CONVOLUTIONS: dict[int, Callable[..., relax.Expr]] = {
    1: relax.op.nn.conv1d,
    2: relax.op.nn.conv2d,
    3: relax.op.nn.conv3d,
}


def conv(ctx: NodeContext) -> relax.Expr:
    """Conv: the convolution, then the bias as an add of its own."""
    sizes, filters = ctx.shape(0)[2:], static_filters(ctx, 1)
    check_filters(ctx, len(sizes), filters)
    window = read_window(ctx, sizes, filters[2:])
    groups = int(ctx.attr("group", 1))
    channels = ctx.shape(0)[1]
    if groups < 1 or filters[0] % groups or (isinstance(channels, int) and channels != groups * filters[1]):
        raise ctx.refuse(f"{channels} channels in {groups} groups do not fit the filter {filters}")
    result = convolve(ctx, ctx.tensor(0), ctx.tensor(1), window, groups)
    return add_bias(ctx, result, 2, len(sizes)) if ctx.has(2) else result


def convolve(
    ctx: NodeContext, data: relax.Expr, filters: relax.Expr, window: Window, groups: int, out_dtype: str | None = None
) -> relax.Expr:
    """A convolution of [N, C, ...] with [O, C / groups, ...]; symbolic pads become a padding of their own."""
    pads = window.static_pads
    sizes = list(data.ty.shape.values)[2:]
    check_sizes(ctx, window.outputs([simplify(size) for size in sizes]))
    if pads is None:
        data = ctx.emit(pad_spatial(data, window.begin, window.end))
        pads = [0] * (2 * len(sizes))
    half = out_dtype is None and str(data.ty.dtype) == "float16"
    result = ctx.emit(
        _CONVOLUTIONS[len(sizes)](
            data,
            filters,
            strides=list(window.strides),
            padding=pads,
            dilation=list(window.dilations),
            groups=groups,
            out_dtype="float32" if half else out_dtype,
        )
    )
    return ctx.emit(relax.op.astype(result, "float16")) if half else result


def conv_transpose(ctx: NodeContext) -> relax.Expr:
    """ConvTranspose, with output_padding, output_shape and auto_pad."""
    sizes, filters = ctx.shape(0)[2:], static_filters(ctx, 1)
    check_filters(ctx, len(sizes), filters)
    groups = int(ctx.attr("group", 1))
    if groups < 1 or filters[0] % groups:
        raise ctx.refuse(f"{filters[0]} channels do not fall into {groups} groups")
    begin, outputs, strides, dilations = _transposed_sizes(ctx, sizes, filters[2:])
    check_sizes(ctx, outputs)
    call = kernel(
        "conv_transpose",
        [ctx.tensor(0), ctx.tensor(1)],
        [*map(as_expr, outputs), *map(as_expr, begin)],
        strides=strides,
        dilations=dilations,
        groups=groups,
    )
    result = ctx.emit(call)
    return add_bias(ctx, result, 2, len(sizes)) if ctx.has(2) else result


def add_bias(ctx: NodeContext, data: relax.Expr, index: int, spatial: int) -> relax.Expr:
    """`data` plus input `index` of shape [C], which is aligned with axis 1."""
    value = ctx.value(index)
    shape = (1, -1, *[1] * spatial)
    if value.is_constant and value.known is not None:
        bias = constant(value.known.reshape(shape))
    else:
        bias = ctx.emit(relax.op.reshape(ctx.tensor(index), shape))
    return relax.op.add(data, bias)


def pad_spatial(data: relax.Expr, begin: tuple[Dim, ...], end: tuple[Dim, ...]) -> relax.Call:
    """`data` with zeros around its spatial axes; the sizes may be symbolic."""
    return kernel("pad_spatial", [data], [*map(as_expr, begin), *map(as_expr, end)])


def static_filters(ctx: NodeContext, index: int) -> list[int]:
    """Shape of the filter tensor, which must be static."""
    shape = ctx.shape(index)
    if not all(isinstance(dim, int) for dim in shape):
        raise ctx.refuse(f"the filter's shape {shape} must be static")
    return [int(dim) for dim in shape]


def check_filters(ctx: NodeContext, spatial: int, filters: list[int]) -> None:
    """Refuse ranks and kernel shapes that do not fit."""
    if spatial not in _CONVOLUTIONS or len(filters) != spatial + 2:
        raise ctx.refuse(f"{spatial} spatial axes with a filter of rank {len(filters)}; 1 to 3 axes are supported")
    if ctx.has_attr("kernel_shape") and list(ctx.attr("kernel_shape")) != filters[2:]:
        raise ctx.refuse(f"kernel_shape {ctx.attr('kernel_shape')} differs from the filter's {filters[2:]}")


def _transposed_sizes(
    ctx: NodeContext, sizes: list[Dim], kernel_shape: list[int]
) -> tuple[list[Dim], list[Dim], list[int], list[int]]:
    """(begin pads, output sizes, strides, dilations). Formulas of the ONNX operator's documentation."""
    count = len(sizes)
    strides = [int(s) for s in ctx.attr("strides", [1] * count)]
    dilations = [int(d) for d in ctx.attr("dilations", [1] * count)]
    extra = [int(e) for e in ctx.attr("output_padding", [0] * count)]
    pads = [int(p) for p in ctx.attr("pads", [0] * (2 * count))]
    mode = ctx.attr("auto_pad", "NOTSET")
    wanted = ctx.attr("output_shape")
    if {len(strides), len(dilations), len(extra), len(pads) // 2} != {count} or min([*strides, *dilations]) < 1:
        raise ctx.refuse("strides, dilations, output_padding and pads must have an entry per spatial axis")
    begin: list[Dim] = []
    outputs: list[Dim] = []
    for axis, size in enumerate(sizes):
        full = strides[axis] * (size - 1) + extra[axis] + (kernel_shape[axis] - 1) * dilations[axis] + 1
        if wanted is None and mode in ("NOTSET", "VALID"):
            head, tail = (pads[axis], pads[count + axis]) if mode == "NOTSET" else (0, 0)
            begin.append(head)
            outputs.append(simplify(full - head - tail))
            continue
        target: Dim = size * strides[axis] if wanted is None else int(wanted[-count:][axis])
        total = simplify(larger(simplify(full - target), 0))
        half = simplify(total // 2)
        begin.append(half if mode == "SAME_UPPER" else simplify(total - half))
        outputs.append(simplify(target))
    return begin, outputs, strides, dilations


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
}
