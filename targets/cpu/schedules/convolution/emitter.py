"""What all emitters of convolutions share: tasks are blocks of channels times bands of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import Plan
from greencc.targets.cpu.schedules.convolution.source import Source
from greencc.targets.cpu.schedules.convolution.tails import Tails, where
from greencc.targets.cpu.schedules.matmul_space import MIN_PARALLEL_WORK
from greencc.targets.kernel import Tail
from greencc.targets.packing import ChannelBlocks, WordBlocks
from greencc.targets.tir import as_int, i64


class Emitter(ABC):
    """Emits one kernel."""

    def __init__(
        self, func: tirx.PrimFunc, tail: Tail, conv: Convolution, plan: Plan, layout: ChannelBlocks | WordBlocks
    ) -> None:
        self.func, self.tail, self.conv, self.plan, self.layout = func, tail, conv, plan, layout
        self.channels = conv.out_channels // conv.groups
        self.blocks = -(-self.channels // plan.filters)
        self.buffers: dict[tirx.Var, tirx.Var] = {}
        self.tails = Tails(tail, conv, plan, self.buffers)
        self.source: Source

    @abstractmethod
    def task(self, corner: Corner) -> None:
        """Emit what a task does, that of chunk `corner.block` of the blocks of channels."""

    @property
    def stores_once(self) -> bool:
        """Whether each element of the result is computed once; known when the kernel is emitted."""
        # The last band overlaps the one before, and the last vector of a band that is stored from registers.
        whole = self.plan.finish != "registers" or self.source.length % self.plan.lanes == 0
        return whole and self.conv.out_height % self.plan.height == 0

    def emit(self) -> tirx.PrimFunc:
        """The scheduled PrimFunc. The weights' parameter has the packed shape."""
        conv, plan = self.conv, self.plan
        batch = self.tail.output.ty.shape[0]
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            for param in self.func.params:
                declared = param
                if param.same_as(conv.weight):
                    shape = self.layout.shape(conv.out_channels, conv.depth, *conv.kernel)
                    declared = T.buffer(tuple(map(i64, shape)), conv.taps.weight)
                self.buffers[param] = T.arg(param.name, declared)
            T.func_attr({"tirx.noalias": True})
            self.source = Source(conv, plan, self.buffers, batch)
            bands = -(-conv.out_height // plan.height)
            chunks = -(-self.blocks // plan.blocks)
            inner = (bands, chunks) if plan.outer == "bands" else (chunks, bands)
            total = batch * i64(conv.groups * chunks * bands)
            count = as_int(total)
            work = (count or 2) * conv.steps * plan.filters * plan.blocks * self.source.run
            loop = T.parallel if work >= MIN_PARALLEL_WORK and count != 1 else T.serial
            with loop(i64(0), total) as task:
                fast = tirx.floormod(task, i64(inner[1]))
                slow = tirx.floormod(tirx.floordiv(task, i64(inner[1])), i64(inner[0]))
                band, chunk = (slow, fast) if plan.outer == "bands" else (fast, slow)
                image = tirx.floordiv(task, i64(chunks * bands))
                n, group = tirx.floordiv(image, i64(conv.groups)), tirx.floormod(image, i64(conv.groups))
                # The last band overlaps the one before, so that all have the same height.
                y0 = tirx.min(band * i64(plan.height), i64(conv.out_height - plan.height))
                corner = Corner(n, group, chunk, y0)
                self.source.prepare(corner)
                self.task(corner)
        return ib.get()

    def for_each_block(self, corner: Corner, body: Callable[[Corner, tirx.Expr], None]) -> None:
        """Emit `body(the block's corner, its number in the chunk)` for the blocks of a task."""
        count = self.plan.blocks
        if count == 1:
            body(corner, i64(0))
            return
        with T.serial(i64(0), i64(count)) as number:
            block = corner.block * i64(count) + number
            with where(block < i64(self.blocks) if self.blocks % count else None):
                body(corner.at_block(block), number)

    def weights_of(self, corner: Corner) -> tirx.Expr:
        """The number of a block among the packed weights."""
        return corner.group * i64(self.blocks) + corner.block

    def steps(self, words: int, body: Callable[[tirx.Expr, tirx.Expr, tirx.Expr], None]) -> None:
        """Emit `body(c, r, q)` for all steps of a sum over so many words; the plan says how many are written out."""
        rows, columns = self.conv.kernel
        unroll = self.plan.unroll
        if rows * columns == 1 and unroll > 1 and words % unroll == 0:
            with T.serial(i64(0), i64(words // unroll)) as part:
                for step in range(unroll):
                    body(part * i64(unroll) + i64(step), i64(0), i64(0))
            return
        with T.serial(i64(0), i64(words)) as c:
            if unroll == rows * columns:
                for r in range(rows):
                    for q in range(columns):
                        body(c, i64(r), i64(q))
                return
            with T.serial(i64(0), i64(rows)) as row:
                if unroll == columns:
                    for q in range(columns):
                        body(c, row, i64(q))
                    return
                with T.serial(i64(0), i64(columns)) as column:
                    body(c, row, column)
