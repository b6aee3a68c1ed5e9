"""Emits a convolution whose tasks are blocks of channels times bands of rows, read from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tvm
from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import Plan
from greencc.targets.cpu.schedules.convolution.source import Source
from greencc.targets.cpu.schedules.matmul_space import MIN_PARALLEL_WORK
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.kernel import Tail
from greencc.targets.packing import ChannelBlocks, WordBlocks
from greencc.targets.tir import as_int, i64, ramp, rewrite

# Channels between asking for a vector of the source and using it. (They lie too far apart for the machine to guess.)
CHANNELS_AHEAD = 8
# Weights beyond this size are read once, and the source once per block of channels; below, the other way round.
MAX_CACHED_WEIGHTS = 1 << 18


class TileEmitter:
    """Emits one kernel."""

    def __init__(
        self, func: tirx.PrimFunc, tail: Tail, conv: Convolution, plan: Plan, layout: ChannelBlocks | WordBlocks
    ) -> None:
        self.func, self.tail, self.conv, self.plan, self.layout = func, tail, conv, plan, layout
        self.channels = conv.out_channels // conv.groups
        self.blocks = -(-self.channels // plan.rows)
        self.buffers: dict[tirx.Var, tirx.Var] = {}
        self.source: Source

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
            depth = conv.group_words * conv.kernel[0] * conv.kernel[1]
            cached = conv.out_channels * depth * 4 <= MAX_CACHED_WEIGHTS
            blocks = -(-self.blocks // plan.readers) if plan.readers else self.blocks
            inner = (bands, blocks) if cached else (blocks, bands)
            total = batch * i64(conv.groups * blocks * bands)
            count = as_int(total)
            work = (count or 2) * depth * plan.rows * max(plan.readers, 1) * self.source.run
            loop = T.parallel if work >= MIN_PARALLEL_WORK and count != 1 else T.serial
            with loop(i64(0), total) as task:
                fast = tirx.floormod(task, i64(inner[1]))
                slow = tirx.floormod(tirx.floordiv(task, i64(inner[1])), i64(inner[0]))
                band, block = (slow, fast) if cached else (fast, slow)
                image = tirx.floordiv(task, i64(blocks * bands))
                n, group = tirx.floordiv(image, i64(conv.groups)), tirx.floormod(image, i64(conv.groups))
                # The last band overlaps the one before, so that all have the same height.
                y0 = tirx.min(band * i64(plan.height), i64(conv.out_height - plan.height))
                self.task(n, group, block, y0)
        return ib.get()

    def task(self, n: tirx.Expr, group: tirx.Expr, block: tirx.Expr, y0: tirx.Expr) -> None:
        """All positions of the band from row y0 on for one block of channels, then the tail."""
        conv, plan, run = self.conv, self.plan, self.source.run
        sums = T.alloc_buffer((plan.rows * run,), conv.taps.sums, scope="local")  # as large as a band
        full, rest = divmod(run // plan.lanes, plan.vectors)
        width = plan.vectors * plan.lanes

        def complete(steps: tirx.Expr) -> tirx.Expr:
            """Output rows whose positions are all within the first `steps` tiles."""
            rows = tirx.floordiv(steps * i64(width) - i64(conv.out_width), i64(self.source.pitch)) + i64(1)
            return tirx.max(tirx.min(rows, i64(plan.height)), i64(0))

        # Rows are stored as soon as they are there: while the next ones are computed, memory takes them.
        if full:
            with T.serial(i64(0), i64(full)) as step:
                start = tirx.min(step * i64(width), i64(self.source.last(plan.vectors)))
                self._accumulate(sums, n, group, block, y0, start, plan.vectors)
                first = complete(step)
                self.finish(sums, n, group, block, y0, i64(0), (first, complete(step + i64(1)) - first))
        if rest:
            self._accumulate(sums, n, group, block, y0, i64(min(full * width, self.source.last(rest))), rest)
        first = tvm.sym.Analyzer().simplify(complete(i64(full)))
        self.finish(sums, n, group, block, y0, i64(0), (first, i64(plan.height) - first))

    def _accumulate(
        self,
        sums: tirx.Var,
        n: tirx.Expr,
        group: tirx.Expr,
        block: tirx.Expr,
        y0: tirx.Expr,
        start: tirx.Expr,
        vectors: int,
    ) -> None:
        conv, plan = self.conv, self.plan
        tile = [registers(vectors, plan.lanes, conv.taps.sums) for _ in range(plan.rows)]
        with (
            T.serial(i64(0), i64(conv.group_words)) as c,
            T.serial(i64(0), i64(conv.kernel[0])) as r,
            T.serial(i64(0), i64(conv.kernel[1])) as q,
        ):
            channel = group * i64(conv.group_words) + c
            position = y0 * i64(self.source.pitch) + start
            if conv.kernel == (1, 1):  # vectors of larger filters overlap, and wait in the cache already
                for v in range(vectors + 1):
                    self.source.ask_for(n, channel + i64(CHANNELS_AHEAD), position + i64(v * plan.lanes))
            columns = [
                self.source.load(n, channel, r, q, position + i64(v * plan.lanes)) for v in range(vectors)
            ]
            self.multiply(tile, columns, [group * i64(self.blocks) + block, c, r, q])
        for i in range(plan.rows):
            for v in range(vectors):
                at = i64(i * self.source.run + v * plan.lanes) + start
                T.buffer_store(sums, tile[i][v].value, [ramp(at, plan.lanes)])

    def multiply(self, tile: list[list[Register]], columns: list[tirx.Expr], weight: list[tirx.Expr]) -> None:
        """Add one step of the sum to a tile: each filter's word, from `weight` on, times the vectors of positions."""
        taps, lanes = self.conv.taps, self.plan.lanes
        for i, row in enumerate(tile):
            factor = taps.factor(self.buffers[self.conv.weight], weight, i, lanes)
            for register, column in zip(row, columns, strict=True):
                register.store(taps.accumulate(register.value, column, factor, lanes))

    def finish(
        self,
        sums: tirx.Var,
        n: tirx.Expr,
        group: tirx.Expr,
        block: tirx.Expr,
        y0: tirx.Expr,
        first: tirx.Expr,
        span: tuple[tirx.Expr, tirx.Expr],
    ) -> None:
        """Evaluate the tail for the positions that are outputs, and store them.

        The sums begin at row `first` of their buffer. `span` is the first output row of the band and how many.
        """
        low, count = span
        plan = self.plan

        def row(i: tirx.Expr, y: tirx.Expr) -> None:
            k = group * i64(self.channels) + block * i64(plan.rows) + i

            def store(x: tirx.Expr) -> None:
                place = [n, k, y0 + y, x]
                at = (first + i) * i64(self.source.run) + y * i64(self.source.pitch) + x
                T.buffer_store(self.buffers[self.tail.output], self._tail_value(sums, at, place), place)

            self._pieces(store)

        with T.serial(i64(0), count) as step, T.serial(i64(0), i64(plan.rows)) as i:
            inside = block * i64(plan.rows) + i < i64(self.channels)
            with where(inside if self.channels % plan.rows else None):
                row(i, low + step)

    def _tail_value(self, sums: tirx.Var, at: tirx.Expr, place: list[tirx.Expr]) -> tirx.Expr:
        values = dict(zip(self.tail.axes, place, strict=True))

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad) and node.source.same_as(self.tail.intermediate):
                return tirx.BufferLoad(sums, [at])
            if isinstance(node, ir.TensorLoad) and node.source in self.buffers:
                indices = [rewrite(index, replace) for index in node.indices]
                return tirx.BufferLoad(self.buffers[node.source], indices)
            return values.get(node) if isinstance(node, tirx.Var) else None

        return rewrite(self.tail.value, replace)

    def _pieces(self, body: Callable[[tirx.Expr], None]) -> None:
        """`body` for the columns of a row of the output, in vectors, then ever smaller ones."""

        def vector(start: tirx.Expr, lanes: int) -> None:
            if lanes == 1:
                body(start)
                return
            with T.vectorized(i64(0), i64(lanes)) as lane:
                body(start + lane)

        self.source.vectors(self.conv.out_width, vector)


@contextmanager
def where(condition: tirx.Expr | None) -> Iterator[None]:
    """What follows is done under a condition, if there is one."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield
