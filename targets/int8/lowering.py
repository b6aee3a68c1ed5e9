"""Products and convolutions in int8: a kernel makes activations in bytes, another the sums and what becomes of them.

`greencc.quantized_*` quantise float activations, `greencc.integer_*` get levels and lay them out as the target's dot
product takes them. A value that several operators read is prepared once for all that read it in the same form.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx

from greencc.affine import Scheme
from greencc.errors import GreenccError
from greencc.ir import constant, constant_array
from greencc.ops import Conv2dAttrs, scheme_of
from greencc.targets.int8.levels import Levels, padded_depth, word_count
from greencc.targets.int8.norms import quantized_by_norm
from greencc.targets.int8.static import dequantize, quantize_rows, zero_level
from greencc.targets.tir import as_int

_ONES = (1, 1, 1)


class Int8Lowering(ABC):
    """Lowers the `greencc.quantized_*` and `greencc.integer_*` operators of one module.

    A target says how its dot product takes levels, and gives the kernels that make them.
    """

    def __init__(self, levels: Levels) -> None:
        self._dot = levels
        # The key's values stay alive with it, so that none takes another's place.
        self._prepared: dict[tuple[object, ...], relax.Var] = {}

    def quantized_matmul(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a product whose activations are quantised here."""
        x, weight, scale, *factors = call.args
        scheme = scheme_of(call)
        if scheme is not None:
            key = (x, "rows", scheme, *factors)
            known = self._once(builder, key, lambda: quantize_rows(builder, x, factors, scheme, self._dot))
            total = self._product(builder, known, weight)
            return dequantize(builder, total, scale, _sums(weight), scheme, self._dot, axis=-1)
        made: Sequence[relax.Expr] | None = quantized_by_norm(builder, x, factors)
        if made is None:
            key = (x, "rows", *factors)
            made = self._quantized(builder, key, lambda: self.quantize_rows(builder, x, factors))
        levels, row_scale, zero = made
        total = self._product(builder, levels, weight)
        return _dequantized(builder, total, row_scale, zero, scale, constant(_sums(weight)), axis=-1)

    def quantized_conv2d(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a convolution whose activations are quantised here."""
        x, weight, scale = call.args
        attrs, scheme = Conv2dAttrs.of(call), scheme_of(call)

        def quantize() -> relax.Expr:
            return self.quantize_images(builder, x, attrs.groups, scheme)

        key = (x, "images", self._grouping(x.ty, attrs.groups))
        if scheme is not None:
            known = self._once(builder, (*key, scheme), quantize)
            outside = constant(np.full((1, *_ONES), zero_level(scheme, self._dot), np.int32))
            total = self._convolution(builder, attrs, known, outside, weight)
            return dequantize(builder, total, scale, _sums(weight), scheme, self._dot, axis=1)
        levels, image_scale, zero = self._quantized(builder, key, quantize)
        total = self._convolution(builder, attrs, levels, zero, weight)
        return _dequantized(builder, total, image_scale, zero, scale, constant(_sums(weight)), axis=1)

    def integer_matmul(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a product of levels."""
        a, zero, weight = call.args
        kind, dot = str(a.ty.dtype), self._dot
        depth = int(a.ty.shape.values[-1])
        levels = a
        if kind != dot.activation or depth % dot.depth:
            levels = self._once(builder, (a, "level rows"), lambda: _rows(builder, a, dot))
        total = self._product(builder, levels, weight)
        return _centered(builder, total, zero, dot.shift(kind), _sums(weight), axis=-1)

    def integer_conv2d(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        """Lower a convolution of levels."""
        a, zero, weight = call.args
        attrs, shift = Conv2dAttrs.of(call), self._dot.shift(str(a.ty.dtype))
        key = (a, "level images", self._grouping(a.ty, attrs.groups))
        levels = self._once(builder, key, lambda: self.channel_words(builder, a, attrs.groups))
        known = constant_array(zero)
        if known is not None:
            outside = constant(known.reshape(1, *_ONES).astype(np.int32) + np.int32(shift))
        else:
            outside = self._once(builder, (zero, "outside", shift), lambda: _outside(builder, zero, shift))
        total = self._convolution(builder, attrs, levels, outside, weight)
        return _centered(builder, total, zero, shift, _sums(weight), axis=1)

    @abstractmethod
    def quantize_rows(self, builder: relax.BlockBuilder, x: relax.Expr, factors: list[relax.Expr]) -> relax.Expr:
        """Levels, scales and zero points, see `quantized_rows_types`, of x [..., K] times factors [K], if any.

        The value is a tuple; every row has a scheme of its own.
        """

    @abstractmethod
    def quantize_images(
        self, builder: relax.BlockBuilder, x: relax.Expr, groups: int, scheme: Scheme | None
    ) -> relax.Expr:
        """Levels of x [N, C, H, W] in words of channels that fall into groups, see `words_type`.

        With a scheme they are all; without one the value is a tuple of them, scales [N, 1, 1, 1] float32 and zero
        points [N, 1, 1, 1] int32, every image having a scheme of its own.
        """

    @abstractmethod
    def channel_words(self, builder: relax.BlockBuilder, a: relax.Expr, groups: int) -> relax.Expr:
        """Levels a [N, C, H, W] uint8 or int8 in words of channels that fall into groups, see `words_type`."""

    def words_type(self, x: relax.TensorType, groups: int) -> relax.TensorType:
        """Type of images x [N, C, H, W] in words: [N, words, H, W, depth]."""
        batch, channels, height, width = x.shape.values
        words = word_count(int(channels), groups, self._dot)
        return relax.TensorType([batch, words, height, width, self._dot.depth], self._dot.activation)

    def _product(self, builder: relax.BlockBuilder, levels: relax.Expr, weight: relax.Expr) -> relax.Var:
        """Sums of levels [..., K filled up] times the weight [K, N]."""
        depth = int(weight.ty.shape.values[0])

        def product(q: te.Tensor, w: te.Tensor) -> te.Tensor:
            k = te.reduce_axis((0, depth), name="k")

            def at(*index: tirx.Var) -> tirx.Expr:
                value = q(*index[:-1], k).astype("int32") * w(k, index[-1]).astype("int32")
                return te.sum(value, axis=k)

            return te.compute((*q.shape[:-1], w.shape[1]), at, name="int8_matmul")

        return builder.emit(builder.call_te(product, levels, weight, primfunc_name_hint="int8_matmul"))

    def _convolution(
        self,
        builder: relax.BlockBuilder,
        attrs: Conv2dAttrs,
        levels: relax.Expr,
        zero: relax.Expr,
        weight: relax.Expr,
    ) -> relax.Var:
        """Sums of a convolution of words, padded with zero [N or 1, 1, 1, 1] int32."""
        shape = tuple(map(int, weight.ty.shape.values))
        compute = _convolution(attrs, shape, self._dot.depth)
        return builder.emit(builder.call_te(compute, levels, zero, weight, primfunc_name_hint="int8_convolution"))

    def _grouping(self, x: relax.TensorType, groups: int) -> int:
        """What words depend on: they hold the same channels whatever the groups, if those are whole words."""
        return 1 if int(x.shape.values[1]) // groups % self._dot.depth == 0 else groups

    def _quantized(
        self, builder: relax.BlockBuilder, key: tuple[object, ...], quantize: Callable[[], relax.Expr]
    ) -> list[relax.Var]:
        """(levels, scale, zero point) of a value."""
        made = self._once(builder, key, quantize)
        fields = [functools.partial(relax.TupleGetItem, made, i) for i in range(3)]
        return [self._once(builder, (*key, i), field) for i, field in enumerate(fields)]

    def _once(self, builder: relax.BlockBuilder, key: tuple[object, ...], make: Callable[[], relax.Expr]) -> relax.Var:
        """What `make` gives for `key`, computed where it is read first."""
        if key not in self._prepared:
            self._prepared[key] = builder.emit(make())
        return self._prepared[key]


def _sums(weight: relax.Expr) -> np.ndarray:
    """The sums of a weight for each column or filter: the zero point's share of a sum, but for the zero point."""
    levels = constant_array(weight)
    if levels is None:
        raise GreenccError("the weight of an operator in int8 is not a constant")
    axes = (0,) if levels.ndim == 2 else (1, 2, 3)
    sums: np.ndarray = levels.sum(axis=axes, dtype=np.int32)
    return sums


def _rows(builder: relax.BlockBuilder, a: relax.Expr, dot: Levels) -> relax.Expr:
    """Levels [..., K] in the type of the dot product, K filled up to whole steps."""
    *lead, depth = a.ty.shape.values
    padded, shift = padded_depth(int(depth), dot), dot.shift(str(a.ty.dtype))

    def level_rows(a: te.Tensor) -> te.Tensor:
        def at(*index: tirx.Var) -> tirx.Expr:
            def level(*place: tirx.Expr) -> tirx.Expr:
                return (a(*place).astype("int32") + shift).astype(dot.activation)

            if padded == int(depth):
                return level(*index)
            nothing = tirx.const(0, dot.activation)  # it meets weights that are 0
            return tirx.if_then_else(index[-1] < depth, level(*index), nothing)

        return te.compute((*lead, padded), at, name="level_rows")

    return builder.call_te(level_rows, a, primfunc_name_hint="level_rows")


def _outside(builder: relax.BlockBuilder, zero: relax.Expr, shift: int) -> relax.Expr:
    """The level that pads images, [1, 1, 1, 1] int32."""

    def outside(zero: te.Tensor) -> te.Tensor:
        place = (0,) * len(zero.shape)
        return te.compute((1, *_ONES), lambda *_: zero(*place).astype("int32") + shift, name="outside")

    return builder.call_te(outside, zero, primfunc_name_hint="outside")


def _convolution(attrs: Conv2dAttrs, shape: tuple[int, ...], depth: int) -> Callable[..., te.Tensor]:
    """Sums of a convolution by filters of `shape`, of words of `depth` channels, padded with their zero point."""
    filters, each, *kernel = shape
    group_words = -(-each // depth)
    top, left, bottom, right = attrs.padding

    def compute(q: te.Tensor, zero: te.Tensor, w: te.Tensor) -> te.Tensor:
        batch, words, height, width, _ = q.shape
        source = q
        if any(attrs.padding):

            def padded(n: tirx.Var, c: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> tirx.Expr:
                inside = tirx.all(y >= top, y < top + height, x >= left, x < left + width)
                own = 0 if as_int(zero.shape[0]) == 1 else n
                outside = zero(own, 0, 0, 0).astype(str(q.dtype))
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


def _centered(
    builder: relax.BlockBuilder, total: relax.Var, zero: relax.Expr, shift: int, sums: np.ndarray, *, axis: int
) -> relax.Expr:
    """The integer sums with the zero point's share taken off, which is that of levels raised by `shift`."""
    known = constant_array(zero)
    if known is not None:
        sums = ((int(known.reshape(())) + shift) * sums.astype(np.int64)).astype(np.int32)  # sums of int32 wrap alike

    def center(exact: te.Tensor, sums: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        def at(*index: tirx.Var) -> tirx.Expr:
            share = sums(index[axis])
            if zero:
                share = (zero[0](*(0,) * len(zero[0].shape)).astype("int32") + shift) * share
            return exact(*index) - share

        return te.compute(exact.shape, at, name="center")

    given = () if known is not None else (zero,)
    return builder.call_te(center, total, constant(sums.astype(np.int32)), *given, primfunc_name_hint="center")
