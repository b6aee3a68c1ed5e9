"""Linear quantisation: q = saturate(round_half_even(x / scale) + zero_point), and back."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from greencc.kernels.base import Kernel
from greencc.kernels.shapes import compute


def _parameter(tensor: te.Tensor, index: Sequence[tirx.Expr], axis: int, block: int) -> tirx.Expr:
    """A scale or zero point for the element at `index`: for all, per place on `axis`, or per block."""
    rank = len(tensor.shape)
    if rank == 0:
        return tensor()
    if rank == 1 and not block:
        is_scalar = isinstance(tensor.shape[0], tirx.IntImm) and tensor.shape[0].value == 1
        return tensor(0) if is_scalar else tensor(index[axis])
    return tensor(*(tirx.floordiv(i, block) if n == axis else i for n, i in enumerate(index)))


def quantize(
    data: te.Tensor,
    scale: te.Tensor,
    *zero: te.Tensor,
    dims: list[tirx.Expr],
    axis: int,
    block: int,
    dtype: str,
) -> te.Tensor:
    """Data float -> `dtype` (an 8 or 16 bit integer)."""
    low, high = int(tirx.min_value(dtype).value), int(tirx.max_value(dtype).value)

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        x = tirx.Cast("float32", data(*index))
        rounded = tirx.nearbyint(x / tirx.Cast("float32", _parameter(scale, index, axis, block)))
        offset = tirx.Cast("float32", _parameter(zero[0], index, axis, block)) if zero else tirx.const(0.0, "float32")
        limits = tirx.const(float(low), "float32"), tirx.const(float(high), "float32")
        return tirx.Cast(dtype, tirx.max(tirx.min(rounded + offset, limits[1]), limits[0]))

    return compute(data.shape, element, "quantize")


def dequantize(
    data: te.Tensor,
    scale: te.Tensor,
    *zero: te.Tensor,
    dims: list[tirx.Expr],
    axis: int,
    block: int,
    dtype: str,
) -> te.Tensor:
    """(data - zero) * scale, the difference taken in int32, as `dtype`."""

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        value = tirx.Cast("int32", data(*index))
        if zero:
            value = value - tirx.Cast("int32", _parameter(zero[0], index, axis, block))
        factor = tirx.Cast("float32", _parameter(scale, index, axis, block))
        return tirx.Cast(dtype, tirx.Cast("float32", value) * factor)

    return compute(data.shape, element, "dequantize")


def dynamic_scale(low: te.Tensor, high: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """What a level of 0..255 is worth, so that they span 0 and the extremes `low` and `high`; 1 where all is 0.

    The formula is that of ONNX's DynamicQuantizeLinear, which leaves the last case open.
    """
    return compute(low.shape, lambda index: _scale(low(*index), high(*index)), "dynamic_scale")


def dynamic_zero(low: te.Tensor, high: te.Tensor, *, dims: list[tirx.Expr]) -> te.Tensor:
    """The level, uint8, that stands for 0 where `dynamic_scale` gives the scale."""

    def element(index: Sequence[tirx.Expr]) -> tirx.Expr:
        least = tirx.min(low(*index), tirx.const(0.0, "float32"))
        level = tirx.const(0.0, "float32") - least / _scale(low(*index), high(*index))
        limits = tirx.const(0.0, "float32"), tirx.const(255.0, "float32")
        return tirx.Cast("uint8", tirx.nearbyint(tirx.max(tirx.min(level, limits[1]), limits[0])))

    return compute(low.shape, element, "dynamic_zero")


def _scale(low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    zero = tirx.const(0.0, "float32")
    span = tirx.max(high, zero) - tirx.min(low, zero)
    return tirx.Select(span > zero, span / tirx.const(255.0, "float32"), tirx.const(1.0, "float32"))


KERNELS: dict[str, Kernel] = {
    "dequantize": dequantize,
    "dynamic_scale": dynamic_scale,
    "dynamic_zero": dynamic_zero,
    "quantize": quantize,
}
