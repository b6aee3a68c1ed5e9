"""Images as a convolution of bytes reads them: words of neighbouring channels, [N, words, H, W, depth].

Nothing is rearranged later. Groups have whole words of their own; channels that fill up a group's last word are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.int8.levels import word_count
from greencc.targets.tir import as_int, cover, i64, ramp, splat, vector_type, with_own_symbols

# Tasks for each thread.
TASKS_PER_THREAD = 4

Levels: TypeAlias = Callable[[tirx.Expr, tirx.Expr, tirx.Expr, int], tirx.Expr]
"""(image, channel, first position, lanes) -> the levels of neighbouring positions, int32, as the dot product takes
them."""


def channel_words_kernel(a: relax.TensorType, groups: int, target: CpuTarget, dot: DotProduct) -> tirx.PrimFunc:
    """The kernel for levels a [N, C, H, W] uint8 or int8, of known sizes but for N, whose channels fall into groups.

    It writes [N, words, H, W, depth] in `dot.activation`: the levels plus `dot.shift(...)` of their type.
    """
    ((batch,),) = with_own_symbols([list(a.shape.values)[:1]])
    channels, height, width = (int(size) for size in list(a.shape.values)[1:])
    kind, count = str(a.dtype), word_count(channels, groups, dot)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = T.arg("a", T.buffer((batch, channels, height, width), kind))
        words = T.arg("words", T.buffer((batch, count, height, width, dot.depth), dot.activation))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: "cpu-channel-words"})

        def levels(n: tirx.Expr, channel: tirx.Expr, at: tirx.Expr, lanes: int) -> tirx.Expr:
            given = tirx.BufferLoad(source, [n, channel, i64(0), ramp(at, lanes)])
            shift = splat(tirx.const(dot.shift(kind), "int32"), lanes)
            return tirx.Cast(vector_type("int32", lanes), given) + shift

        # TVM looks for reshapes among kernels of one operand, and expects a block.
        with T.sblock("root"):
            ChannelWords(words, channels, groups, dot, levels).emit(target)
    return ib.get().with_attr(OPERATIONS_ATTR, i64(0))


@dataclass(frozen=True)
class ChannelWords:
    """Writes all words of a batch of images.

    Attributes:
        words: the buffer [N, words, H, W, depth] that they go to.
        channels: of an image.
        groups: channels fall into as many groups.
        dot: says how long words are, and what they hold.
        levels: what they are made of.
    """

    words: tirx.Var
    channels: int
    groups: int
    dot: DotProduct
    levels: Levels

    def emit(self, target: CpuTarget) -> None:
        """Emit the loops over images, words and blocks of positions."""
        batch, words, plane = self.words.ty.shape[0], word_count(self.channels, self.groups, self.dot), self._plane
        parallel = (as_int(batch) or 2) * self.channels * plane >= MIN_PARALLEL_ELEMENTS
        block = plane
        if parallel and words < TASKS_PER_THREAD * target.threads:
            pieces = -(-TASKS_PER_THREAD * target.threads // words)
            block = min(plane, -(-plane // (pieces * target.lanes())) * target.lanes())
        blocks = -(-plane // block)
        loop = T.parallel if parallel else T.serial
        with loop(i64(0), batch * i64(words * blocks)) as task:
            image, piece = tirx.floordiv(task, i64(blocks)), tirx.floormod(task, i64(blocks))
            first = tirx.min(piece * i64(block), i64(plane - block))
            n, word = tirx.floordiv(image, i64(words)), tirx.floormod(image, i64(words))
            self._word(n, word, first, block)

    @property
    def _plane(self) -> int:
        height, width = self.words.ty.shape[2:4]
        return int(height) * int(width)

    def _word(self, n: tirx.Expr, word: tirx.Expr, first: tirx.Expr, count: int) -> None:
        """One word of channels at `count` positions."""
        depth, each = self.dot.depth, self.channels // self.groups
        own_words = -(-each // depth)
        group, own = tirx.floordiv(word, i64(own_words)), tirx.floormod(word, i64(own_words))
        channel = group * i64(each) + own * i64(depth)

        def positions(valid: int) -> None:
            cover(count, self.dot.lanes, lambda at, lanes: self._store(n, word, channel, first + at, lanes, valid))

        rest = each % depth
        if not rest:
            positions(depth)
        elif each < depth:
            positions(rest)
        else:
            with T.If(own < i64(own_words - 1)):
                with T.Then():
                    positions(depth)
                with T.Else():
                    positions(rest)

    def _store(self, n: tirx.Expr, word: tirx.Expr, channel: tirx.Expr, at: tirx.Expr, lanes: int, valid: int) -> None:
        """The words of some positions; the first `valid` channels of a word are there."""
        depth, kind = self.dot.depth, self.dot.activation
        levels = [self.levels(n, channel + i64(i), at, lanes) for i in range(valid)]
        place = [n, word, i64(0), i64(0), ramp(at * i64(depth), lanes * depth)]
        if depth == 1:
            T.buffer_store(self.words, tirx.Cast(vector_type(kind, lanes), levels[0]), place)
            return
        bits = 32 // depth
        mask = splat(tirx.const((1 << bits) - 1, "int32"), lanes)
        total: tirx.Expr | None = None
        for i, level in enumerate(levels):
            part = (level & mask if self.dot.is_signed else level) << splat(tirx.const(i * bits, "int32"), lanes)
            total = part if total is None else total | part
        T.buffer_store(self.words, tirx.reinterpret(f"{kind}x{lanes * depth}", total), place)
