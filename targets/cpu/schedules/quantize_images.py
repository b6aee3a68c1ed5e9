"""Quantisation of images, to unsigned or signed bytes, in words of neighbouring channels.

The scheme is that of quantize_rows, with a range per image. The range is found first, in parts by several threads; then
the levels are written as a convolution reads them. With a scheme that is known nothing is searched for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.affine import Scheme
from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.intrinsics.dot import DotProduct
from greencc.targets.cpu.schedules.channel_words import TASKS_PER_THREAD, ChannelWords
from greencc.targets.cpu.schedules.elementwise import MIN_PARALLEL_ELEMENTS
from greencc.targets.cpu.schedules.registers import registers, stack_buffer
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.int8.levels import levels_of, static_numbers, store_scheme, word_count
from greencc.targets.tir import as_int, i64, ramp, with_own_symbols

Numbers: TypeAlias = Callable[[tirx.Expr], tuple[tirx.Expr, tirx.Expr]]
"""What the levels of an image, of which the number is given, are computed with, see levels_of."""

# Vectors that a part's range is found in side by side: a comparison takes longer than a load.
CHAINS = 4


def quantize_images_kernel(
    x: relax.TensorType, groups: int, target: CpuTarget, dot: DotProduct, scheme: Scheme | None = None
) -> tirx.PrimFunc:
    """The kernel for x [N, C, H, W] float32, of known sizes but for N, whose channels fall into groups.

    It writes q [N, words, H, W, depth] in `dot.activation`, scale [N, 1, 1, 1] float32 and zero [N, 1, 1, 1] int32,
    such that x is about (q - zero) * scale. Where bytes are signed, q and zero are 128 less. Channels that fill up the
    last word of a group are 0. With a scheme it writes q only.
    """
    ((batch,),) = with_own_symbols([list(x.shape.values)[:1]])
    channels, height, width = (int(size) for size in list(x.shape.values)[1:])
    words = word_count(channels, groups, dot)
    ones = (i64(1), i64(1), i64(1))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        source = T.arg("x", T.buffer((batch, channels, height, width), "float32"))
        quantized = T.arg("q", T.buffer((batch, words, height, width, dot.depth), dot.activation))
        if scheme is None:
            scale = T.arg("scale", T.buffer((batch, *ones), "float32"))
            zero = T.arg("zero", T.buffer((batch, *ones), "int32"))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: "cpu-quantize-images"})
        emitter = _Images(source, quantized, groups, target, dot)
        # TVM looks for reshapes among kernels of one operand, and expects a block.
        with T.sblock("root"):
            if scheme is None:
                emitter.write(emitter.search(scale, zero))
            else:
                known = static_numbers(scheme, dot)
                emitter.write(lambda _: known)
    # A product, a sum and a rounding for every element; two comparisons to find the range.
    operations = 5 if scheme is None else 3
    return ib.get().with_attr(OPERATIONS_ATTR, batch * i64(operations * channels * height * width))


class _Images:
    """Emits the kernel's body."""

    def __init__(self, source: tirx.Var, quantized: tirx.Var, groups: int, target: CpuTarget, dot: DotProduct) -> None:
        self.source, self.quantized = source, quantized
        self.groups, self.target, self.dot = groups, target, dot
        self.batch, *rest = source.ty.shape
        self.channels, height, width = (int(size) for size in rest)
        self.plane = height * width

    def search(self, scale: tirx.Var, zero: tirx.Var) -> Numbers:
        """Emit the search for every image's scheme, which goes to `scale` and `zero`."""
        size = self.channels * self.plane
        parallel = (as_int(self.batch) or 2) * size >= MIN_PARALLEL_ELEMENTS
        loop = T.parallel if parallel else T.serial
        # Parts overlap where they don't divide the image: then all are of one size.
        unit = next(n for n in (CHAINS * self.target.lanes(), self.target.lanes(), 1) if n <= size)
        part = -(-size // (TASKS_PER_THREAD * self.target.threads * unit)) * unit if parallel else size // unit * unit
        count = -(-size // part)
        ranges = T.alloc_buffer((self.batch, 2, count), "float32", scope="global")
        numbers = T.alloc_buffer((self.batch, 2), "float32", scope="global")
        with loop(i64(0), self.batch * i64(count)) as task:
            n, own = tirx.floordiv(task, i64(count)), tirx.floormod(task, i64(count))
            self._range(ranges, n, own, tirx.min(own * i64(part), i64(size - part)), part, unit)
        with T.serial(i64(0), self.batch) as n:
            self._scheme(ranges, n, count, numbers, (scale, zero))
        return lambda n: (numbers[n, i64(0)], numbers[n, i64(1)])

    def write(self, numbers: Numbers) -> None:
        """Emit the levels."""

        def levels(n: tirx.Expr, channel: tirx.Expr, at: tirx.Expr, lanes: int) -> tirx.Expr:
            value = tirx.BufferLoad(self.source, [n, channel, i64(0), ramp(at, lanes)])
            return levels_of(value, numbers(n), self.dot, lanes)

        ChannelWords(self.quantized, self.channels, self.groups, self.dot, levels).emit(self.target)

    def _range(self, ranges: tirx.Var, n: tirx.Expr, own: tirx.Expr, first: tirx.Expr, size: int, unit: int) -> None:
        """The extremes of some elements of image n, and 0."""
        chains = CHAINS if unit > self.target.lanes() else 1
        lanes = unit // chains
        lows, highs = registers(chains, lanes), registers(chains, lanes)
        with T.serial(i64(0), i64(size // unit)) as step:
            for i in range(chains):
                at = first + step * i64(unit) + i64(i * lanes)
                value = tirx.BufferLoad(self.source, [n, i64(0), i64(0), ramp(at, lanes)])
                lows[i].store(tirx.min(lows[i].value, value))
                highs[i].store(tirx.max(highs[i].value, value))
        for i, (found, combine) in enumerate(((lows, tirx.min), (highs, tirx.max))):
            for other in found[1:]:
                found[0].store(combine(found[0].value, other.value))
            found[0].reduce(combine)
            T.buffer_store(ranges, found[0].lane(0), [n, i64(i), own])

    def _scheme(
        self, ranges: tirx.Var, n: tirx.Expr, count: int, numbers: tirx.Var, scheme: tuple[tirx.Var, tirx.Var]
    ) -> None:
        """Scale and zero point of image n, and the numbers that its levels are computed with."""
        extremes = stack_buffer(2)
        for i, combine in enumerate((tirx.min, tirx.max)):
            T.buffer_store(extremes, tirx.BufferLoad(ranges, [n, i64(i), i64(0)]), [i64(i)])
            with T.serial(i64(1), i64(count)) as part:
                T.buffer_store(extremes, combine(extremes[i64(i)], ranges[n, i64(i), part]), [i64(i)])
        low, span = extremes[i64(0)], extremes[i64(1)] - extremes[i64(0)]
        place = [n, i64(0), i64(0), i64(0)]
        store_scheme(low, span, self.dot, (numbers, [n]), (*scheme, place))
