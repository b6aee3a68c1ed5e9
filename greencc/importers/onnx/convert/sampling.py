"""GridSample and DeformConv."""

from __future__ import annotations

from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.convolution import add_bias, static_filters
from greencc.importers.onnx.convert.windows import check_sizes, read_window
from greencc.importers.onnx.values import as_expr
from greencc.kernels import kernel

_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}


def grid_sample(ctx: NodeContext) -> relax.Expr:
    """GridSample over any number of spatial axes."""
    mode, padding = str(ctx.attr("mode", "linear")), str(ctx.attr("padding_mode", "zeros"))
    rank = ctx.rank(0) - 2
    if mode not in _MODES or padding not in ("zeros", "border", "reflection"):
        raise ctx.refuse(f"mode '{mode}' with padding '{padding}' is unknown")
    if ctx.rank(1) != rank + 2 or ctx.shape(1)[-1] != rank:
        raise ctx.refuse(f"a grid of shape {ctx.shape(1)} does not fit {rank} spatial axes")
    if ctx.value(0).dtype not in ("float32", "float64"):
        raise ctx.refuse(f"{ctx.value(0).dtype} elements are not supported")
    aligned = bool(ctx.attr("align_corners", 0))
    tensors = [ctx.tensor(0), ctx.tensor(1)]
    return kernel("grid_sample", tensors, mode=_MODES[mode], padding=padding, align_corners=aligned)


def deform_conv(ctx: NodeContext) -> relax.Expr:
    """DeformConv over two spatial axes."""
    sizes, filters = ctx.shape(0)[2:], static_filters(ctx, 1)
    groups, offset_groups = int(ctx.attr("group", 1)), int(ctx.attr("offset_group", 1))
    if len(sizes) != 2 or ctx.value(0).dtype not in ("float32", "float64"):
        raise ctx.refuse(f"{len(sizes)} spatial axes of {ctx.value(0).dtype} are not supported")
    if min(groups, offset_groups) < 1 or filters[0] % groups or filters[1] * groups % offset_groups:
        raise ctx.refuse(f"{groups} groups and {offset_groups} offset groups do not fit the filter {filters}")
    window = read_window(ctx, sizes, filters[2:])
    outputs = window.outputs(sizes)
    check_sizes(ctx, outputs)
    tensors = [ctx.tensor(index) for index in (0, 1, 2, 4) if ctx.has(index)]
    call = kernel(
        "deform_conv",
        tensors,
        [as_expr(dim) for dim in (*outputs, *window.begin)],
        strides=list(window.strides),
        dilations=list(window.dilations),
        groups=groups,
        offset_groups=offset_groups,
    )
    return add_bias(ctx, ctx.emit(call), 3, 2) if ctx.has(3) else call


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "DeformConv"): deform_conv,
    ("", "GridSample"): grid_sample,
}
