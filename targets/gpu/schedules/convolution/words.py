"""Convolutions of signed bytes in words: four neighbouring channels of a position are read, and multiplied, at once."""

from __future__ import annotations

from dataclasses import replace

from tvm import ir, tirx

from greencc.targets.gpu.schedules.convolution.form import Contraction
from greencc.targets.tir import as_int, i64, rewrite, uses_var

BYTES = 4


def in_words(conv: Contraction) -> Contraction | None:
    """The same sum over words of channels, or None where it isn't one of bytes that lie so.

    What is summed over first are channels c, which are read at [..., c // 4, ..., c % 4].
    """
    kinds = (str(conv.weight.ty.dtype), conv.sums)
    if kinds != ("int8", "int32") or not conv.is_plain_weight or len(conv.extents) < 2:
        return None
    channel, word = conv.reduced[0], tirx.Var("word", "int64")
    data = conv.data.value if isinstance(conv.data, tirx.Cast) else conv.data
    if str(data.ty.dtype) != "int8":
        return None

    def place(node: tirx.Expr) -> tirx.Expr | None:
        is_word = isinstance(node, tirx.FloorDiv) and node.a.same_as(channel) and as_int(node.b) == BYTES
        return word if is_word else None

    def read(node: tirx.Expr) -> tirx.Expr | None:
        if isinstance(node, ir.TensorLoad) and _is_byte(node, channel):
            outer = [rewrite(index, place) for index in list(node.indices)[:-1]]
            bytes_ = tirx.BufferLoad(node.source, [*outer, tirx.Ramp(i64(0), i64(1), BYTES)])
            return tirx.reinterpret("int32", bytes_)
        if isinstance(node, ir.Call) and node.op.name.endswith(".if_then_else"):
            condition, inside, outside = node.args
            return tirx.if_then_else(condition, rewrite(inside, read), _spread(outside))
        return None

    made = rewrite(data, read)
    if str(made.ty.dtype) != "int32" or uses_var(made, channel):
        return None
    extents = (-(-conv.extents[0] // BYTES), *conv.extents[1:])
    return replace(conv, data=made, reduced=(word, *conv.reduced[1:]), extents=extents, words=True)


def _is_byte(load: ir.TensorLoad, channel: tirx.Var) -> bool:
    """Whether a load reads byte `channel % 4` of a word."""
    last, size = load.indices[-1], as_int(load.source.ty.shape[-1])
    lane = isinstance(last, tirx.FloorMod) and last.a.same_as(channel) and as_int(last.b) == BYTES
    return lane and size == BYTES and str(load.ty.dtype) == "int8"


def _spread(value: tirx.Expr) -> tirx.Expr:
    """A word of four times the same byte."""
    byte = tirx.Cast("int32", value) & tirx.const(255, "int32")
    word = byte
    for lane in range(1, BYTES):
        word = word | tirx.shift_left(byte, tirx.const(8 * lane, "int32"))
    return word
