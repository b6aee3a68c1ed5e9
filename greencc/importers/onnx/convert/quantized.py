"""Products and convolutions of 8-bit integers: exact in int32, rescaled where the operator says so."""

from __future__ import annotations

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.convolution import check_filters, convolve, static_filters
from greencc.importers.onnx.convert.windows import read_window
from greencc.kernels import kernel

_BYTES = frozenset({"int8", "uint8"})


def matmul_integer(ctx: NodeContext) -> relax.Expr:
    """MatMulInteger: (A - a_zero) (B - b_zero) in int32."""
    left = _centered(ctx, 0, _row_zero(ctx, 2))
    right = _centered(ctx, 1, ctx.tensor(3) if ctx.has(3) else None)
    return relax.op.matmul(left, right)


def qlinear_matmul(ctx: NodeContext) -> relax.Expr:
    """QLinearMatMul: the integer product, rescaled and rounded half to even."""
    left = _centered(ctx, 0, _row_zero(ctx, 2))
    right = _centered(ctx, 3, ctx.tensor(5))
    scale = ctx.emit(relax.op.multiply(_float(ctx, _as_column(ctx, 1)), _float(ctx, ctx.tensor(4))))
    return _rescaled(ctx, ctx.emit(relax.op.matmul(left, right)), scale, 6)


def conv_integer(ctx: NodeContext) -> relax.Expr:
    """ConvInteger: a convolution of (x - x_zero) with (w - w_zero) in int32; padding counts as x_zero."""
    return _convolution(ctx, 1, (0, 2), (1, 3))


def qlinear_conv(ctx: NodeContext) -> relax.Expr:
    """QLinearConv: the integer convolution with an int32 bias, rescaled and rounded half to even."""
    result = ctx.emit(_convolution(ctx, 3, (0, 2), (3, 5)))
    spatial = ctx.rank(0) - 2
    if ctx.has(8):
        bias = ctx.emit(relax.op.reshape(ctx.tensor(8), (1, -1, *[1] * spatial)))
        result = ctx.emit(relax.op.add(result, bias))
    weight_scale = ctx.tensor(4)
    if ctx.rank(4) == 1:
        weight_scale = ctx.emit(relax.op.reshape(weight_scale, (-1, *[1] * spatial)))
    scale = ctx.emit(relax.op.multiply(ctx.tensor(1), weight_scale))
    return _rescaled(ctx, result, scale, 6)


def qgemm(ctx: NodeContext) -> relax.Expr:
    """QGemm of ONNX Runtime: op(A) op(B) + C in int32, rescaled to float32, or rounded half to even with a scale."""
    left = _centered(ctx, 0, ctx.tensor(2) if ctx.has(2) else None)
    zero, weight_scale = ctx.tensor(5) if ctx.has(5) else None, ctx.tensor(4)
    if zero is not None and ctx.rank(5) == 1 and ctx.attr("transB", 0):
        zero = ctx.emit(relax.op.expand_dims(zero, 1))
    right = _centered(ctx, 3, zero)
    for name, operand in (("transA", left), ("transB", right)):
        if ctx.attr(name, 0):
            turned = ctx.emit(relax.op.permute_dims(operand, [1, 0]))
            left, right = (turned, right) if operand is left else (left, turned)
    result = ctx.emit(relax.op.matmul(left, right))
    if ctx.has(6):
        result = ctx.emit(relax.op.add(result, ctx.tensor(6)))
    alpha = ctx.const(np.float32(ctx.attr("alpha", 1.0)), "float32")
    scale = ctx.emit(relax.op.multiply(ctx.emit(relax.op.multiply(alpha, ctx.tensor(1))), weight_scale))
    if ctx.has(7):
        return _rescaled(ctx, result, scale, 7)
    return relax.op.multiply(ctx.emit(relax.op.astype(result, "float32")), scale)


def _convolution(ctx: NodeContext, filters_at: int, data: tuple[int, int], filters: tuple[int, int]) -> relax.Expr:
    sizes, shape = ctx.shape(0)[2:], static_filters(ctx, filters_at)
    check_filters(ctx, len(sizes), shape)
    zero = None
    if ctx.has(filters[1]):
        zero = ctx.tensor(filters[1])
        if ctx.rank(filters[1]) == 1:
            zero = ctx.emit(relax.op.reshape(zero, (-1, *[1] * (len(shape) - 1))))
    x = _centered(ctx, data[0], ctx.tensor(data[1]) if ctx.has(data[1]) else None)
    w = _centered(ctx, filters[0], zero)
    window = read_window(ctx, sizes, shape[2:])
    return convolve(ctx, x, w, window, int(ctx.attr("group", 1)), "int32")


def _centered(ctx: NodeContext, index: int, zero: relax.Expr | None) -> relax.Expr:
    """Input `index` minus its zero point, as int32."""
    if ctx.value(index).dtype not in _BYTES:
        raise ctx.refuse(f"input {index} is {ctx.value(index).dtype}, not an 8-bit integer")
    wide = ctx.emit(relax.op.astype(ctx.tensor(index), "int32"))
    if zero is None:
        return wide
    return ctx.emit(relax.op.subtract(wide, ctx.emit(relax.op.astype(zero, "int32"))))


def _row_zero(ctx: NodeContext, index: int) -> relax.Expr | None:
    return _as_column(ctx, index) if ctx.has(index) else None


def _as_column(ctx: NodeContext, index: int) -> relax.Expr:
    """A parameter of the left operand: one for all, or one per row, which is made to broadcast along rows."""
    if ctx.rank(index) == 1 and ctx.shape(index) != [1]:
        return ctx.emit(relax.op.expand_dims(ctx.tensor(index), 1))
    return ctx.tensor(index)


def _float(ctx: NodeContext, data: relax.Expr) -> relax.Expr:
    return data if str(data.ty.dtype) == "float32" else ctx.emit(relax.op.astype(data, "float32"))


def _rescaled(ctx: NodeContext, result: relax.Expr, scale: relax.Expr, at: int) -> relax.Expr:
    """int32 `result` * `scale` / input `at`, rounded and shifted by the zero point that follows it."""
    dtype = ctx.value(at + 1).dtype
    if dtype not in _BYTES or ctx.shape(at) not in ([], [1]) or ctx.shape(at + 1) not in ([], [1]):
        raise ctx.refuse(f"a result of {dtype} with scales per axis is not supported")
    factor = ctx.emit(relax.op.divide(scale, _float(ctx, ctx.tensor(at))))
    wide = ctx.emit(relax.op.multiply(ctx.emit(relax.op.astype(result, "float32")), factor))
    one = ctx.const(np.float32(1), "float32")
    return kernel("quantize", [wide, one, ctx.tensor(at + 1)], axis=0, block=0, dtype=dtype)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "ConvInteger"): conv_integer,
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearConv"): qlinear_conv,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("com.microsoft", "QGemm"): qgemm,
}
