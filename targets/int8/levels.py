"""Levels: activations in bytes, as a dot product takes them, and the affine scheme that says what they are worth.

    scale = (high - low) / 255, zero = round(-low / scale), q = round(x / scale + zero)

`low` and `high` are the least and the largest value and 0, so that 0 is represented exactly (Jacob et al.,
arXiv:1712.05877, equation 1).
"""

from __future__ import annotations

from tvm import relax, tirx
from tvm.tirx.script import builder as T

from greencc.affine import LEVELS, Scheme
from greencc.targets.tir import i64, splat, vector_type


class Levels:
    """How a target's dot product takes activations.

    Attributes:
        depth: neighbours along the depth that are multiplied in one step.
        activation: element type that the activations are stored in.
    """

    depth: int
    activation: str

    @property
    def is_signed(self) -> bool:
        """Whether activations are -128..127; otherwise they are 0..255."""
        return self.activation == "int8"

    def shift(self, dtype: str) -> int:
        """What levels of uint8 or int8 are raised by, so that they and their zero point are what activations are."""
        return (-128 if self.is_signed else 0) - (-128 if dtype == "int8" else 0)


def padded_depth(depth: int, dot: Levels) -> int:
    """Columns of the quantised rows: whole steps of the dot product."""
    return -(-depth // dot.depth) * dot.depth


def quantized_rows_types(x: relax.TensorType, dot: Levels) -> list[relax.TensorType]:
    """Types of the levels, scales and zero points of x [..., K], as quantising them makes them."""
    *lead, last = x.shape.values
    return [
        relax.TensorType([*lead, padded_depth(int(last), dot)], dot.activation),
        relax.TensorType([*lead, 1], "float32"),
        relax.TensorType([*lead, 1], "int32"),
    ]


def word_count(channels: int, groups: int, dot: Levels) -> int:
    """Words that hold the channels of a position: whole ones for every group."""
    return groups * -(-(channels // groups) // dot.depth)


def store_scheme(
    low: tirx.Expr,
    span: tirx.Expr,
    dot: Levels,
    numbers: tuple[tirx.Var, list[tirx.Expr]],
    scheme: tuple[tirx.Var, tirx.Var, list[tirx.Expr]],
) -> None:
    """Emit the scale and zero point of what has `low` as its least element, and `span` as its range.

    Args:
        low, span: float32; the range holds 0.
        dot: says whether bytes are signed.
        numbers: a buffer and where in it the two numbers go that levels are computed with, see levels_of.
        scheme: the buffers of scales and of zero points, and where in them.
    """
    zero, levels = tirx.const(0.0, "float32"), tirx.const(float(LEVELS), "float32")
    (buffer, lead), (scales, zeros, place) = numbers, scheme
    inverse, offset = [*lead, i64(0)], [*lead, i64(1)]
    T.buffer_store(buffer, tirx.Select(span > zero, levels / span, zero), inverse)
    T.buffer_store(buffer, tirx.nearbyint(-low * tirx.BufferLoad(buffer, inverse)) - _shift(dot), offset)
    T.buffer_store(scales, span / levels, place)
    T.buffer_store(zeros, tirx.Cast("int32", tirx.BufferLoad(buffer, offset)), place)


def levels_of(value: tirx.Expr, numbers: tuple[tirx.Expr, tirx.Expr], dot: Levels, lanes: int) -> tirx.Expr:
    """The levels of float32 values, int32: value / scale + zero, rounded and held within what bytes can be.

    `numbers` are the scale's inverse and the zero point, float32; the latter is 128 less where bytes are signed.
    """
    inverse, zero = (splat(number, lanes) for number in numbers)
    lowest, highest = (splat(limit - _shift(dot), lanes) for limit in map(_level, (0, LEVELS)))
    level = tirx.min(tirx.max(tirx.nearbyint(value * inverse + zero), lowest), highest)
    return tirx.Cast(vector_type("int32", lanes), level)


def static_numbers(scheme: Scheme, dot: Levels) -> tuple[tirx.Expr, tirx.Expr]:
    """What `levels_of` computes with, of a scheme that is known when the kernel is made."""
    return tirx.const(scheme.inverse, "float32"), _level(scheme.zero) - _shift(dot)


def _shift(dot: Levels) -> tirx.Expr:
    return _level(-dot.shift("uint8"))


def _level(value: int) -> tirx.Expr:
    return tirx.const(float(value), "float32")
