"""Pools: Max, Average and Lp over windows, their global forms, and MaxUnpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext, Result
from greencc.importers.onnx.convert.windows import Window, check_sizes, read_window
from greencc.importers.onnx.values import Dim, as_expr
from greencc.kernels import kernel


def max_pool(ctx: NodeContext) -> Result:
    """MaxPool; the second output holds positions in the flattened input."""
    window, outputs = _window(ctx)
    if len(ctx.node.output) > 1 and ctx.node.output[1]:
        call = _kernel("max_pool_with_indices", ctx, window, outputs, column_major=bool(ctx.attr("storage_order", 0)))
        pair = ctx.emit(call)
        return [ctx.emit(relax.TupleGetItem(pair, index)) for index in range(2)]
    # relax.nn.max_pool2d starts from the lowest finite number, which is wrong for a window of -inf.
    return _kernel("pool", ctx, window, outputs, kind="max")


def average_pool(ctx: NodeContext) -> Result:
    """AveragePool: the mean of a window, with or without its padding."""
    window, outputs = _window(ctx)
    count = bool(ctx.attr("count_include_pad", 0))
    if _is_plain(ctx, window):
        return relax.op.nn.avg_pool2d(
            ctx.tensor(0), window.kernel, window.strides, window.static_pads, count_include_pad=count
        )
    return _kernel("pool", ctx, window, outputs, kind="mean", count_padding=count)


def lp_pool(ctx: NodeContext) -> Result:
    """LpPool: the p-norm of a window."""
    window, outputs = _window(ctx)
    return _kernel("pool", ctx, window, outputs, kind="lp", power=_power(ctx))


def global_pool(reduce: Callable[..., relax.Expr]) -> Converter:
    """GlobalMaxPool and GlobalAveragePool: a reduction over the spatial axes that keeps them."""
    return lambda ctx: reduce(ctx.tensor(0), list(range(2, ctx.rank(0))), keepdims=True)


def global_lp_pool(ctx: NodeContext) -> Result:
    """GlobalLpPool: the p-norm over the spatial axes."""
    power, dtype = _power(ctx), ctx.value(0).dtype
    magnitude = ctx.emit(relax.op.abs(ctx.tensor(0)))
    if power != 1:
        magnitude = ctx.emit(relax.op.power(magnitude, ctx.const(power, dtype)))
    total = ctx.emit(relax.op.sum(magnitude, list(range(2, ctx.rank(0))), keepdims=True))
    return total if power == 1 else relax.op.power(total, ctx.const(1.0 / power, dtype))


def max_unpool(ctx: NodeContext) -> Result:
    """MaxUnpool: values go to the positions that MaxPool gave; everything else is 0."""
    shape, kernel_shape = ctx.shape(0), _kernel_shape(ctx, len(ctx.shape(0)) - 2)
    window = read_window(ctx, shape[2:], kernel_shape)
    pads = window.static_pads
    if pads is None or not all(isinstance(dim, int) for dim in shape):
        raise ctx.refuse("its sizes must be static")
    count = len(kernel_shape)
    sizes = [
        (int(size) - 1) * window.strides[i] + kernel_shape[i] - pads[i] - pads[count + i]
        for i, size in enumerate(shape[2:])
    ]
    # Positions count within the shape that the pool's window implies, whatever output_shape says.
    implied = [*map(int, shape[:2]), *sizes]
    wanted = ctx.ints(2) if ctx.has(2) else implied
    if wanted != implied:
        raise ctx.refuse(f"output_shape {wanted} differs from the window's {implied}")
    flat = ctx.emit(relax.op.reshape(ctx.tensor(0), (-1,)))
    where = ctx.emit(relax.op.reshape(ctx.tensor(1), (-1,)))
    empty = ctx.emit(relax.op.zeros((math.prod(implied),), ctx.value(0).dtype))
    spread = ctx.emit(relax.op.scatter_elements(empty, where, flat, axis=0))
    return relax.op.reshape(spread, implied)


def _window(ctx: NodeContext) -> tuple[Window, list[Dim]]:
    sizes = ctx.shape(0)[2:]
    window = read_window(ctx, sizes, _kernel_shape(ctx, len(sizes)))
    outputs = window.outputs(sizes, ceil=bool(ctx.attr("ceil_mode", 0)))
    check_sizes(ctx, outputs)
    return window, outputs


def _kernel_shape(ctx: NodeContext, spatial: int) -> list[int]:
    shape = [int(size) for size in ctx.attr("kernel_shape", [])]
    if len(shape) != spatial or spatial < 1:
        raise ctx.refuse(f"kernel_shape {shape} does not fit {spatial} spatial axes")
    return shape


def _is_plain(ctx: NodeContext, window: Window) -> bool:
    """Whether Relax's own 2-D pool means the same: no rounding up, no dilation, static pads, floating point."""
    return (
        len(window.kernel) == 2
        and not ctx.attr("ceil_mode", 0)
        and set(window.dilations) == {1}
        and window.static_pads is not None
        and np.dtype(ctx.value(0).dtype).kind == "f"
    )


def _kernel(name: str, ctx: NodeContext, window: Window, outputs: Sequence[Dim], **options: Any) -> relax.Call:
    return kernel(
        name,
        [ctx.tensor(0)],
        [as_expr(dim) for dim in (*outputs, *window.begin, *window.end)],
        kernel=list(window.kernel),
        strides=list(window.strides),
        dilations=list(window.dilations),
        **options,
    )


def _power(ctx: NodeContext) -> int:
    power = ctx.attr("p", 2)
    if int(power) != power or power < 1:
        raise ctx.refuse(f"p = {power} is no positive integer")
    return int(power)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "LpPool"): lp_pool,
    ("", "GlobalMaxPool"): global_pool(relax.op.max),
    ("", "GlobalAveragePool"): global_pool(relax.op.mean),
    ("", "GlobalLpPool"): global_lp_pool,
    ("", "MaxUnpool"): max_unpool,
}
