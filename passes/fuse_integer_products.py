"""The pass that computes products and convolutions of a quantised model in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant, dtype_of, shape_of
from greencc.ops import Conv2dAttrs, integer_conv2d, integer_matmul
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.quantized_operands import Levels, Weight, along, read_levels, read_weight
from greencc.passes.weighted import WEIGHTED, channel_axis, depth_of, has_plain_form, is_convolution

# Largest k for which a sum of 255 * 128 * k fits in int32.
_DEEPEST = (2**31 - 1) // (255 * 128)


@dataclass(frozen=True)
class IntegerProduct:
    """A product or convolution `call` of activations and a weight that both stand for levels."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    levels: Levels
    weight: Weight

    @property
    def fits(self) -> bool:
        """Whether all weights, less their zero points, are signed bytes."""
        centered = self.weight.centered
        return centered.size == 0 or (int(centered.min()) >= -128 and int(centered.max()) <= 127)

    @property
    def has_plain_form(self) -> bool:
        """Whether it is rows by a matrix, or NCHW images of known size by filters."""
        is_rows = len(shape_of(self.levels.data.ty) or ()) >= 2
        return is_rows and has_plain_form(self.call, self.weight.centered.shape)

    @property
    def is_single(self) -> bool:
        """Whether dequantised operands are float32, with float32 scales, and so is the result."""
        if self.levels.scale is None or self.weight.scale is None:
            return True
        kinds = {dtype_of(self.root.ty), dtype_of(self.levels.scale.ty), str(self.weight.scale.dtype)}
        return kinds == {"float32"}

    @property
    def has_plain_scales(self) -> bool:
        """Whether scales, and products of two that are known, are finite, and 0 or normal numbers."""
        scale = self.weight.scale
        if scale is None or self.levels.scale is None:
            return True
        known = self.graph.constant(self.levels.scale)
        with np.errstate(all="ignore"):
            worth = np.abs(scale if known is None else known.reshape(()) * scale)
        normal = (worth >= np.finfo(worth.dtype).smallest_normal) | (worth == 0)
        return bool((np.isfinite(worth) & normal & np.isfinite(scale)).all())


@dataclass(frozen=True)
class FuseIntegerProducts(RewritePass[IntegerProduct]):
    """Compute products and convolutions of quantised activations with quantised constant weights in integers.

        y = matmul(int32(a) - zero, int32(w) - w_zero)
    becomes
        y = integer_matmul(a, zero, w - w_zero)

        y = matmul(dequantize(a, scale, zero), dequantize(w, w_scale, w_zero))
    becomes
        y = float32(integer_matmul(a, zero, w - w_zero)) * (scale * w_scale)

    and so do convolutions, as integer_conv2d. The first is bitwise equal. The second is what the original approximates
    by sums of float32: it rounds once. A bias, an activation and a following quantisation fuse with the product. Legal
    when
    1. the activations are uint8 or int8;
    2. they have one scale and one zero point for all;
    3. weights less their zero points are signed bytes (those of uint8 with the zero point 128 always are);
    4. the weight has one scale, or one for each column or filter: others would scale terms inside of a sum;
    5. the weight is a matrix, the activations rows; a convolution is NCHW and OIHW, with images of known size;
    6. sums of so many products fit in int32;
    7. a filter reads more than one channel: bytes of neighbouring channels are summed together;
    8. what is dequantised is float32, with float32 scales;
    9. scales, and products of two that are known, are finite, and 0 or large enough for all digits.
    """

    name: ClassVar[str] = "fuse-integer-products"
    conditions: ClassVar[tuple[Condition[IntegerProduct], ...]] = (
        Condition(1, "the activations are not bytes", lambda m: dtype_of(m.levels.data.ty) in ("uint8", "int8")),
        Condition(2, "the activations have several scales or zero points", lambda m: m.levels.is_uniform),
        Condition(3, "a weight less its zero point is no signed byte", lambda m: m.fits),
        Condition(
            4, "scales of the weight lie along its sums", lambda m: m.weight.scales_channels(channel_axis(m.call))
        ),
        Condition(5, "not rows by a matrix, nor a convolution in NCHW of known size", lambda m: m.has_plain_form),
        Condition(
            6,
            f"a sum has more than {_DEEPEST} products",
            lambda m: depth_of(m.call, m.weight.centered.shape) <= _DEEPEST,
        ),
        Condition(
            7,
            "a filter reads a single channel",
            lambda m: not is_convolution(m.call) or m.weight.centered.shape[1] > 1,
        ),
        Condition(8, "a dequantised operand or a scale is not float32", lambda m: m.is_single),
        Condition(9, "a scale, or the product of two, is not finite or too small", lambda m: m.has_plain_scales),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> IntegerProduct | None:
        """See RewritePass."""
        if call.op.name not in WEIGHTED:
            return None
        levels = read_levels(graph, call.args[0])
        if levels is None or graph.constant(levels.data) is not None:
            return None
        weight = read_weight(graph, call.args[1])
        if weight is None or (weight.scale is None) != (levels.scale is None):
            return None
        return IntegerProduct(graph, var, call, levels, weight)

    def rewrite(self, builder: Builder, match: IntegerProduct) -> relax.Expr:
        """See RewritePass."""
        levels, weight = match.levels, constant(match.weight.centered.astype(np.int8))
        if is_convolution(match.call):
            total = integer_conv2d(levels.data, levels.zero, weight, Conv2dAttrs.of(match.call))
        else:
            total = integer_matmul(levels.data, levels.zero, weight)
        if levels.scale is None or match.weight.scale is None:
            return total
        rank, channels = len(shape_of(match.root.ty) or ()), 1 if is_convolution(match.call) else -1
        scale = along(match.weight.scale, channels % rank, rank)
        exact = builder.emit(relax.op.astype(builder.emit(total), "float32"))
        return relax.op.multiply(exact, _times(builder, match.graph, levels.scale, scale))

    def kind_of(self, match: IntegerProduct) -> str:
        """See RewritePass."""
        return "convolution" if is_convolution(match.call) else "product"


def _times(builder: Builder, graph: Graph, scale: relax.Expr, factors: np.ndarray) -> relax.Expr:
    """The constant `factors` times a scale, which may be known when the model runs only."""
    known = graph.constant(scale)
    if known is not None:
        return constant(known.reshape(()) * factors)
    return builder.emit(relax.op.multiply(scale, constant(factors)))
