"""Products and convolutions in int8: quantised activations in one kernel, in another the sums and what becomes of them.

A value that several operators read is quantised once for all that read it in the same form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax, te, tirx

from greencc.errors import GreenccError
from greencc.ir import constant, constant_array
from greencc.ops import Conv2dAttrs, scheme_of
from greencc.targets.cpu.emitted import EmittedKernels
from greencc.targets.cpu.intrinsics.dot import dot_product
from greencc.targets.cpu.quantized_norms import quantized_by_norm
from greencc.targets.cpu.schedules.quantize_images import quantize_images_kernel, word_count
from greencc.targets.cpu.schedules.quantize_rows import quantize_rows_kernel, quantized_rows_types
from greencc.targets.cpu.static_int8 import dequantize, quantize_rows, zero_level
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int

Quantized = tuple[relax.Var, relax.Var, relax.Var]


class QuantizedLowering:
    """Lowers the `greencc.quantized_*` operators of one module."""

    def __init__(self, target: CpuTarget, kernels: EmittedKernels) -> None:
        self._target, self._kernels = target, kernels
        self._dot = dot_product(target)
        # The key's values stay alive with it, so that none takes another's place.
        self._quantized: dict[tuple[object, ...], Quantized] = {}
        self._levels: dict[tuple[object, ...], relax.Var] = {}

    def matmul(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a quantised product."""
        x, weight, scale, *factors = call.args
        depth, scheme = int(x.ty.shape.values[-1]), scheme_of(call)

        def quantize() -> relax.Expr:
            types = quantized_rows_types(x.ty, self._dot)
            name, emit = "quantize_rows", quantize_rows_kernel
            gv = self._kernels.add(builder, name, emit, x.ty, self._target, self._dot, bool(factors))
            return relax.call_tir(gv, [x, *factors], types)

        if scheme is None:
            made = quantized_by_norm(builder, x, factors)
            levels, row_scale, zero = made or self._once(builder, (x, "rows", *factors), quantize)
        else:
            held, dot = scheme, self._dot
            levels = self._levels_once(
                builder, (x, scheme, *factors), lambda: quantize_rows(builder, x, factors, held, dot)
            )
        # The zero point's share of every sum is the same for all rows but for the zero point itself.
        sums = _levels(weight).sum(axis=0, dtype=np.int32)

        def product(q: te.Tensor, w: te.Tensor) -> te.Tensor:
            k = te.reduce_axis((0, depth), name="k")

            def at(*index: tirx.Var) -> tirx.Expr:
                value = q(*index[:-1], k).astype("int32") * w(k, index[-1]).astype("int32")
                return te.sum(value, axis=k)

            return te.compute((*q.shape[:-1], w.shape[1]), at, name="int8_matmul")

        total = builder.emit(builder.call_te(product, levels, weight, primfunc_name_hint="int8_matmul"))
        if scheme is not None:
            return dequantize(builder, total, scale, sums, scheme, self._dot, axis=-1)
        return _dequantized(builder, total, row_scale, zero, scale, constant(sums), axis=-1)

    def conv2d(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a quantised convolution."""
        x, weight, scale = call.args
        attrs, scheme, dot = Conv2dAttrs.of(call), scheme_of(call), self._dot
        batch, *image = x.ty.shape.values
        channels, height, width = map(int, image)
        words = word_count(channels, attrs.groups, dot)

        def quantize() -> relax.Expr:
            levels = relax.TensorType([batch, words, height, width, dot.depth], dot.activation)
            found = [relax.TensorType([batch, 1, 1, 1], kind) for kind in ("float32", "int32")]
            name, emit = "quantize_images", quantize_images_kernel
            gv = self._kernels.add(builder, name, emit, x.ty, attrs.groups, self._target, dot, scheme)
            return relax.call_tir(gv, [x], [levels, *found] if scheme is None else levels)

        # Words hold the same channels whatever the groups, as long as those are whole words.
        whole = attrs.groups == 1 or channels // attrs.groups % dot.depth == 0
        form = "images" if whole else f"images of {attrs.groups} groups"
        if scheme is None:
            levels, image_scale, zero = self._once(builder, (x, form), quantize)
        else:
            levels = self._levels_once(builder, (x, form, scheme), quantize)
            zero = constant(np.full((1, 1, 1, 1), zero_level(scheme, dot), np.int32))
        values = _levels(weight)
        sums = values.sum(axis=(1, 2, 3), dtype=np.int32)
        total = builder.emit(
            builder.call_te(
                _convolution(attrs, values.shape, dot.depth), levels, zero, weight,
                primfunc_name_hint="int8_convolution",
            )
        )  # fmt: skip
        if scheme is not None:
            return dequantize(builder, total, scale, sums, scheme, dot, axis=1)
        return _dequantized(builder, total, image_scale, zero, scale, constant(sums), axis=1)

    def _once(
        self, builder: relax.BlockBuilder, key: tuple[object, ...], quantize: Callable[[], relax.Expr]
    ) -> Quantized:
        """(levels, scale, zero point) of a value, computed where it is read first."""
        if key not in self._quantized:
            made = builder.emit(quantize())
            parts = [builder.emit(relax.TupleGetItem(made, i)) for i in range(3)]
            self._quantized[key] = (parts[0], parts[1], parts[2])
        return self._quantized[key]

    def _levels_once(
        self, builder: relax.BlockBuilder, key: tuple[object, ...], quantize: Callable[[], relax.Expr]
    ) -> relax.Var:
        """The levels of a value by a scheme that is known, computed where it is read first."""
        if key not in self._levels:
            self._levels[key] = builder.emit(quantize())
        return self._levels[key]


def _levels(weight: relax.Expr) -> np.ndarray:
    levels = constant_array(weight)
    if levels is None:
        raise GreenccError("a quantised operator's weight is not a constant")
    return levels


def _convolution(attrs: Conv2dAttrs, shape: tuple[int, ...], depth: int) -> Callable[..., te.Tensor]:
    """Sums of a convolution by filters of `shape`, of words of `depth` channels, padded with their zero point."""
    filters, each, *kernel = shape
    group_words = -(-each // depth)
    top, left, bottom, right = attrs.padding

    def compute(q: te.Tensor, zero: te.Tensor, w: te.Tensor) -> te.Tensor:
        batch, words, height, width, _ = q.shape
        source, one_each = q, as_int(zero.shape[0]) != 1
        if any(attrs.padding):

            def padded(n: tirx.Var, c: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> tirx.Expr:
                inside = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
                outside = zero(n if one_each else 0, 0, 0, 0).astype(str(q.dtype))
                return tirx.if_then_else(inside, q(n, c, y - top, x - left, i), outside)

            size = (batch, words, height + top + bottom, width + left + right, depth)
            source = te.compute(size, padded, name="padded")
        c = te.reduce_axis((0, each), name="c")
        r, s = (te.reduce_axis((0, extent), name=name) for extent, name in zip(kernel, "rs", strict=True))

        def at(n: tirx.Var, k: tirx.Var, y: tirx.Var, x: tirx.Var) -> tirx.Expr:
            group = tirx.floordiv(k, filters // attrs.groups)
            row = y * attrs.strides[0] + r * attrs.dilation[0]
            column = x * attrs.strides[1] + s * attrs.dilation[1]
            word, place = tirx.floordiv(c, depth), tirx.floormod(c, depth)
            value = source(n, group * group_words + word, row, column, place)
            return te.sum(value.astype("int32") * w(k, c, r, s).astype("int32"), axis=[c, r, s])

        out = [attrs.out_size(axis, int(size), kernel[axis]) for axis, size in enumerate((height, width))]
        return te.compute((batch, filters, *out), at, name="int8_convolution")

    return compute


def _dequantized(
    builder: relax.BlockBuilder,
    total: relax.Var,
    scheme: relax.Var,
    zero: relax.Var,
    scale: relax.Expr,
    sums: relax.Expr,
    *,
    axis: int,
) -> relax.Expr:
    """What the integer sums are worth: a scale and a zero point for each quantised part, a scale for each channel.

    Channels lie along `axis`; the parts' schemes have the sums' rank, with ones where a part extends.
    """

    def dequantize(
        exact: te.Tensor, own_scale: te.Tensor, own_zero: te.Tensor, scale: te.Tensor, sums: te.Tensor
    ) -> te.Tensor:
        def at(*index: tirx.Var) -> tirx.Expr:
            part = (*index[:-1], 0) if axis == -1 else (index[0], 0, 0, 0)
            channel = index[axis]
            difference = exact(*index) - own_zero(*part) * sums(channel)
            return difference.astype("float32") * (own_scale(*part) * scale(channel))

        return te.compute(exact.shape, at, name="dequantize")

    return builder.call_te(dequantize, total, scheme, zero, scale, sums, primfunc_name_hint="dequantize")
