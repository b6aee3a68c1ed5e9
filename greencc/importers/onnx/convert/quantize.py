"""QuantizeLinear and DequantizeLinear, per tensor, per axis, in blocks; DynamicQuantizeLinear."""

from __future__ import annotations

import onnx
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.convert.types import checked_type
from greencc.kernels import kernel

_NARROW = frozenset({"int8", "uint8", "int16", "uint16"})


def _axis_and_block(ctx: NodeContext) -> tuple[int, int]:
    rank, scale_rank = ctx.rank(0), ctx.rank(1)
    block = int(ctx.attr("block_size", 0))
    axis = int(ctx.attr("axis", 1))
    if scale_rank == 0 or (scale_rank == 1 and ctx.shape(1) == [1]):
        return 0, 0
    if not -rank <= axis < rank:
        raise ctx.refuse(f"axis {axis} is outside of rank {rank}")
    axis %= rank
    if block and scale_rank != rank:
        raise ctx.refuse("scales in blocks must have the input's rank")
    if not block and scale_rank != 1:
        raise ctx.refuse(f"scales of rank {scale_rank} without a block size")
    if not block and ctx.shape(1)[0] != ctx.shape(0)[axis]:
        raise ctx.refuse(f"{ctx.shape(1)[0]} scales for {ctx.shape(0)[axis]} places on axis {axis}")
    return axis, block


def quantize(ctx: NodeContext) -> relax.Expr:
    """QuantizeLinear to an 8 or 16 bit integer."""
    stated = ctx.attr("output_dtype", 0) or onnx.TensorProto.UINT8
    dtype = ctx.value(2).dtype if ctx.has(2) else checked_type(ctx, stated)
    if dtype not in _NARROW:
        raise ctx.refuse(f"quantisation to {dtype} is not supported")
    axis, block = _axis_and_block(ctx)
    tensors = [ctx.tensor(index) for index in range(3) if ctx.has(index)]
    return kernel("quantize", tensors, axis=axis, block=block, dtype=dtype)


def dequantize(ctx: NodeContext) -> relax.Expr:
    """DequantizeLinear to the scale's type (or output_dtype)."""
    source = ctx.value(0).dtype
    if source not in _NARROW | {"int32"}:
        raise ctx.refuse(f"dequantisation of {source} is not supported")
    dtype = checked_type(ctx, ctx.attr("output_dtype")) if ctx.attr("output_dtype", 0) else ctx.value(1).dtype
    axis, block = _axis_and_block(ctx)
    tensors = [ctx.tensor(index) for index in range(3) if ctx.has(index)]
    return kernel("dequantize", tensors, axis=axis, block=block, dtype=dtype)


def dynamic_quantize(ctx: NodeContext) -> list[relax.Expr]:
    """DynamicQuantizeLinear: levels in uint8, what one is worth, and which of them stands for 0."""
    x = ctx.tensor(0)
    extremes = [ctx.emit(extreme(x)) for extreme in (relax.op.min, relax.op.max)]
    scale, zero = (ctx.emit(kernel(name, extremes)) for name in ("dynamic_scale", "dynamic_zero"))
    return [kernel("quantize", [x, scale, zero], axis=0, block=0, dtype="uint8"), scale, zero]


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "DequantizeLinear"): dequantize,
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("", "QuantizeLinear"): quantize,
}
