"""Products and convolutions in int8 whose activations have one scheme, known when they are compiled.

Quantising is elementwise then, and fuses with what makes the activations; the zero point's share of the sums is a
constant, too.
"""

from __future__ import annotations

import numpy as np
from tvm import relax, te, tirx

from greencc.affine import Scheme
from greencc.ir import constant, constant_array
from greencc.targets.int8.levels import Levels, levels_of, padded_depth, static_numbers


def zero_level(scheme: Scheme, dot: Levels) -> int:
    """The level that stands for 0 as it is stored: 128 less where bytes are signed."""
    return scheme.zero + dot.shift("uint8")


def quantize_rows(
    builder: relax.BlockBuilder, x: relax.Expr, factors: list[relax.Expr], scheme: Scheme, dot: Levels
) -> relax.Expr:
    """The levels of x [..., K], times factors [K] if there are any: [..., K filled up] in `dot.activation`."""

    def quantize(x: te.Tensor, *factors: te.Tensor) -> te.Tensor:
        *lead, last = x.shape
        depth = int(last)
        columns = padded_depth(depth, dot)

        def level(*index: tirx.Var) -> tirx.Expr:
            value = x(*index)
            for factor in factors:
                value = value * factor(index[-1])
            return levels_of(value, static_numbers(scheme, dot), dot, 1).astype(dot.activation)

        def filled(*index: tirx.Var) -> tirx.Expr:
            # What fills the last step up meets weights that are 0.
            return tirx.if_then_else(index[-1] < depth, level(*index), tirx.const(0, dot.activation))

        return te.compute((*lead, columns), level if columns == depth else filled, name="quantize")

    return builder.call_te(quantize, x, *factors, primfunc_name_hint="quantize")


def dequantize(
    builder: relax.BlockBuilder,
    total: relax.Expr,
    scale: relax.Expr,
    sums: np.ndarray,
    scheme: Scheme,
    dot: Levels,
    *,
    axis: int,
) -> relax.Expr:
    """What integer sums are worth: of products of levels with weights, channels of `scale` along `axis`.

    Args:
        builder: gets the kernel.
        total: int32.
        scale: what a unit of each channel's weights is worth, float32 and constant.
        sums: of each channel's weights, int32.
        scheme: of the levels.
        dot: says whether they are signed.
        axis: of the channels, counted from the front or the back.
    """
    shares = constant((zero_level(scheme, dot) * sums).astype(np.int32))
    worth = constant(np.float32(scheme.scale) * np.asarray(constant_array(scale)))

    def compute(exact: te.Tensor, shares: te.Tensor, worth: te.Tensor) -> te.Tensor:
        def at(*index: tirx.Var) -> tirx.Expr:
            channel = index[axis]
            return (exact(*index) - shares(channel)).astype("float32") * worth(channel)

        return te.compute(exact.shape, at, name="dequantize")

    return builder.call_te(compute, total, shares, worth, primfunc_name_hint="dequantize")
