"""What one step of a convolution does: a filter's word times the words of a vector of positions, added to their sums.

A word is the value of one channel, float32, or those of `depth` neighbouring channels in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.packing import ChannelBlocks, WordBlocks
from greencc.targets.tir import as_int, i64, ramp, splat, vector_type


class Taps(Protocol):
    """The arithmetic of a convolution."""

    @property
    def depth(self) -> int:
        """Channels of a word."""

    @property
    def word(self) -> str:
        """Element type of words."""

    @property
    def sums(self) -> str:
        """Element type of the sums."""

    @property
    def weight(self) -> str:
        """Element type of packed weights."""

    def lanes(self, target: CpuTarget) -> int:
        """Positions of a vector."""

    def widths(self, target: CpuTarget) -> tuple[int, ...]:
        """Positions that a vector may have instead."""

    def layout(self, filters: int, groups: int) -> ChannelBlocks | WordBlocks:
        """How weights are packed for tiles of so many filters."""

    def read(self, data: tirx.Var, row: list[tirx.Expr], start: tirx.Expr, lanes: int) -> tirx.Expr:
        """The words of neighbouring positions, from `start` on, of a row [n, c, y] of the input."""

    def padding(self, zero: tirx.Var | None, n: tirx.Expr) -> tirx.Expr:
        """The word that stands for what lies outside of image n; `zero` is [N, 1, 1, 1], or has one for all images."""

    def factor(self, weight: tirx.Var, where: list[tirx.Expr], number: int, lanes: int) -> tirx.Expr:
        """The word of filter `number` of a block of packed weights, for every lane."""

    def factors(self, weight: tirx.Var, where: list[tirx.Expr], first: int, lanes: int) -> tirx.Expr:
        """The words of neighbouring filters, from `first` on, of a block of packed weights."""

    def accumulate(self, total: tirx.Expr, words: tirx.Expr, factor: tirx.Expr, lanes: int) -> tirx.Expr:
        """`total` with the products of one step added."""


@dataclass(frozen=True)
class FloatTaps:
    """Multiply-adds of float32."""

    depth: int = 1
    word: str = "float32"
    sums: str = "float32"
    weight: str = "float32"

    def lanes(self, target: CpuTarget) -> int:
        """See Taps."""
        return target.lanes()

    def widths(self, target: CpuTarget) -> tuple[int, ...]:
        """See Taps."""
        return (target.lanes() // 2, target.lanes()) if target.vector_bits > 256 else (target.lanes(),)

    def layout(self, filters: int, groups: int) -> ChannelBlocks:
        """See Taps."""
        return ChannelBlocks(filters, groups)

    def read(self, data: tirx.Var, row: list[tirx.Expr], start: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Taps."""
        return tirx.BufferLoad(data, [*row, ramp(start, lanes)])

    def padding(self, zero: tirx.Var | None, n: tirx.Expr) -> tirx.Expr:
        """See Taps."""
        return tirx.const(0.0, "float32")

    def factor(self, weight: tirx.Var, where: list[tirx.Expr], number: int, lanes: int) -> tirx.Expr:
        """See Taps."""
        return splat(tirx.BufferLoad(weight, [*where, i64(number)]), lanes)

    def factors(self, weight: tirx.Var, where: list[tirx.Expr], first: int, lanes: int) -> tirx.Expr:
        """See Taps."""
        return tirx.BufferLoad(weight, [*where, ramp(i64(first), lanes)])

    def accumulate(self, total: tirx.Expr, words: tirx.Expr, factor: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Taps."""
        return total + factor * words


@dataclass(frozen=True)
class DotTaps:
    """Products of bytes, summed in int32; `dot` says by which instruction. The input is [N, words, H, W, depth]."""

    dot: DotProduct
    sums: str = "int32"

    @property
    def depth(self) -> int:
        """See Taps."""
        return self.dot.depth

    @property
    def word(self) -> str:
        """See Taps."""
        return self.dot.activation if self.depth == 1 else "int32"

    @property
    def weight(self) -> str:
        """See Taps."""
        return self.dot.factor

    def lanes(self, target: CpuTarget) -> int:
        """See Taps."""
        return self.dot.lanes

    def widths(self, target: CpuTarget) -> tuple[int, ...]:
        """See Taps."""
        return (self.dot.lanes,)

    def layout(self, filters: int, groups: int) -> WordBlocks:
        """See Taps."""
        return WordBlocks(filters, groups, self.depth, self.weight)

    def read(self, data: tirx.Var, row: list[tirx.Expr], start: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Taps."""
        values = tirx.BufferLoad(data, [*row, i64(0), ramp(start * i64(self.depth), lanes * self.depth)])
        return values if self.depth == 1 else tirx.reinterpret(vector_type("int32", lanes), values)

    def padding(self, zero: tirx.Var | None, n: tirx.Expr) -> tirx.Expr:
        """See Taps."""
        if zero is None:  # then what lies outside is met by no tap
            return tirx.const(0, self.word)
        own = i64(0) if as_int(zero.ty.shape[0]) == 1 else n  # one for each image, or for all
        level = tirx.BufferLoad(zero, [own, i64(0), i64(0), i64(0)])
        if self.depth == 1:
            return tirx.Cast(self.word, level)
        bits = 32 // self.depth
        byte = level & tirx.const((1 << bits) - 1, "int32")
        word = byte
        for place in range(1, self.depth):
            word = word | (byte << tirx.const(place * bits, "int32"))
        return word

    def factor(self, weight: tirx.Var, where: list[tirx.Expr], number: int, lanes: int) -> tirx.Expr:
        """See Taps."""
        values = tirx.BufferLoad(weight, [*where, ramp(i64(number * self.depth), self.depth)])
        return self.dot.spread(values, self.weight)

    def factors(self, weight: tirx.Var, where: list[tirx.Expr], first: int, lanes: int) -> tirx.Expr:
        """See Taps."""
        return tirx.BufferLoad(weight, [*where, ramp(i64(first * self.depth), lanes * self.depth)])

    def accumulate(self, total: tirx.Expr, words: tirx.Expr, factor: tirx.Expr, lanes: int) -> tirx.Expr:
        """See Taps."""
        if self.depth > 1:
            words = tirx.reinterpret(vector_type(self.dot.activation, lanes * self.depth), words)
        return self.dot.multiply(total, words, factor)
