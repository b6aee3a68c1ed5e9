"""Two-dimensional convolutions of NCHW data by constant weights, with everything elementwise behind them in one kernel.

    out[n, k, y, x] = f(sum_{c, r, q} in[n, c, y*sy + r*dy - top, x*sx + q*dx - left] * w[k, c, r, q], ...)

Vectors run over positions of the output. A band of output rows is one run of positions `y * pitch + x`, where `pitch`
is the distance between rows of the source: a filter tap then reads a run of the source that begins elsewhere, in whole
vectors, for any width. The positions between two rows of the output are computed and dropped (2 of 58 for a 3 x 3
filter on 56 columns). Each vector of the source serves `rows` output channels, whose weights lie side by side.

The source is the input itself where nothing is padded and the stride is 1. Otherwise it is a padded copy, split by
stride into phases (columns 0, 2, 4... apart from 1, 3, 5...), so that taps still read whole vectors.

Channels of the source lie pages apart. Where several blocks of output channels read the same vectors, a task copies the
vectors of a tile into a panel first, in the order of the sum, and all its blocks read that: in a row, and aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.cpu.schedules.convolution_form import Convolution, match_convolution
from greencc.targets.cpu.schedules.kernel import Tail, parameter_index
from greencc.targets.cpu.schedules.matmul import MIN_PARALLEL_WORK, check_tail
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.packing import ChannelBlocks
from greencc.targets.tir import as_int, i64, prefetch, ramp, rewrite, splat, strided_load

# Positions of a band: enough to use a block of weights often, few enough to keep the source in the cache.
MAX_BAND = 512
# (output channels, vectors of positions) of register tiles, for 32 and for 16 vector registers.
WIDE_TILES = ((8, 2), (12, 1), (4, 4), (2, 8))
NARROW_TILES = ((6, 2), (8, 1), (4, 3), (2, 5))
# The same for tiles that read from panels.
WIDE_PANEL, NARROW_PANEL = (8, 3), (6, 2)
# A panel pays when this many blocks read it.
LEAST_READERS = 8
# Steps of the sum in a panel: with the weights of a block it stays in the first cache.
PANEL_DEPTH = 128
# Shorter sums are over before a panel has paid.
LEAST_DEPTH = 128
# Tasks for each thread: the more, the fewer blocks read a panel.
TASKS_PER_THREAD = 2
# Channels between asking for a vector of the source and using it. (They lie too far apart for the machine to guess.)
CHANNELS_AHEAD = 8
# Weights beyond this size are read once, and the source once per block of channels; below, the other way round.
MAX_CACHED_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class Plan:
    """How a convolution is cut up.

    Attributes:
        rows: output channels of a register tile.
        vectors: vectors of positions of a register tile.
        lanes: elements of a vector.
        height: output rows of a band.
        direct: whether the source is the input itself.
        readers: blocks of channels that a task computes from panels; 0 where it computes one, from the source.
    """

    rows: int
    vectors: int
    lanes: int
    height: int
    direct: bool
    readers: int = 0


@dataclass(frozen=True)
class ConvolutionRule:
    """Schedules float32 convolutions; see the module's docstring."""

    target: CpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "cpu-convolution"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a convolution with its tail, or decline."""
        found = match_convolution(func)
        if isinstance(found, str):
            return Declined(found)
        tail, conv = found
        reason = check_tail(tail)
        if reason is not None:
            return Declined(reason)
        index = parameter_index(func, conv.weight)
        if index is None or index not in constants:
            return Declined("the weights are no constant")
        if conv.out_channels // conv.groups < 2:
            return Declined("a channel of the input serves one of the output")
        plan = choose_plan(self.target, conv)
        layout = ChannelBlocks(plan.rows, conv.groups)
        emitted = _Emitter(func, tail, conv, plan, layout).emit()
        return Scheduled(emitted.with_attr("greencc.rule", self.name), self.name, {index: layout})


def choose_plan(target: CpuTarget, conv: Convolution) -> Plan:
    """The plan that computes the fewest positions and channels that nobody wants."""
    lanes = target.lanes()
    shapes = WIDE_TILES if target.vector_registers >= 32 else NARROW_TILES
    channels = conv.out_channels // conv.groups
    plain = conv.top == conv.left == 0 and conv.stride == (1, 1) and conv.unpadded
    pitch = conv.width if plain else conv.source_width
    packed = _panel_plan(target, conv, pitch) if plain and conv.kernel == (1, 1) else None
    if packed is not None:
        return packed
    best: tuple[float, Plan] | None = None
    for rows, vectors in shapes:
        for height in range(1, conv.out_height + 1):
            length = (height - 1) * pitch + conv.out_width
            if height > 1 and length > MAX_BAND:
                break
            direct = plain and length >= lanes
            fitting = min(vectors, length // lanes) if direct else min(vectors, -(-length // lanes))
            bands = -(-conv.out_height // height)
            # A vector costs its multiply-adds, the loads of the source (from the second cache) and of the weights.
            feeding = 1 + 0.2 * (2 * fitting + 0.5 * rows) / (rows * fitting)
            tiles = bands * -(-length // lanes) * -(-channels // rows) * rows
            cost = tiles * feeding * (1 + 0.002 * bands)
            if best is None or cost < best[0]:
                best = cost, Plan(rows, fitting, lanes, height, direct)
    assert best is not None  # a band of one row always fits
    return best[1]


def _panel_plan(target: CpuTarget, conv: Convolution, pitch: int) -> Plan | None:
    """The plan with panels, or None where too few blocks would read them.

    (Larger filters have overlapping vectors, which stay in the first cache: for them, panels brought nothing.)
    """
    lanes = target.lanes()
    rows, most = WIDE_PANEL if target.vector_registers >= 32 else NARROW_PANEL
    blocks = -(-(conv.out_channels // conv.groups) // rows)
    if conv.in_channels // conv.groups < LEAST_DEPTH:
        return None
    best: tuple[float, Plan] | None = None
    for height in range(1, conv.out_height + 1):
        length = (height - 1) * pitch + conv.out_width
        if height > 1 and length > MAX_BAND:
            break
        direct = length >= lanes
        bands = -(-conv.out_height // height)
        tasks = -(-TASKS_PER_THREAD * target.threads // bands)
        readers = -(-blocks // tasks)
        if readers < LEAST_READERS:
            continue
        for vectors in range(1, most + 1):
            if direct and vectors * lanes > length:
                break
            pieces = [vectors] * (-(-length // lanes) // vectors) + [-(-length // lanes) % vectors]
            # A step of a tile costs its multiply-adds and, less than those, its loads; a panel is copied once.
            cost = sum(rows * v + 0.6 * (rows + v) + 16 * v / readers for v in pieces if v) * bands
            if best is None or cost < best[0]:
                best = cost, Plan(rows, vectors, lanes, height, direct, readers)
    return None if best is None else best[1]


class _Emitter:
    """Emits one kernel."""

    def __init__(
        self, func: tirx.PrimFunc, tail: Tail, conv: Convolution, plan: Plan, layout: ChannelBlocks
    ) -> None:
        self.func, self.tail, self.conv, self.plan, self.layout = func, tail, conv, plan, layout
        self.buffers: dict[tirx.Var, tirx.Var] = {}
        self.pitch = conv.width if plan.direct else conv.source_width
        self.plane = conv.height * conv.width if plan.direct else conv.source_height * conv.source_width
        self.length = (plan.height - 1) * self.pitch + conv.out_width
        self.run = -(-self.length // plan.lanes) * plan.lanes

    def emit(self) -> tirx.PrimFunc:
        """The scheduled PrimFunc. The weights' parameter has the packed shape."""
        conv, plan = self.conv, self.plan
        batch = self.tail.output.ty.shape[0]
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            for param in self.func.params:
                declared = param
                if param.same_as(conv.weight):
                    shape = self.layout.shape(conv.out_channels, conv.in_channels // conv.groups, *conv.kernel)
                    declared = T.buffer(tuple(map(i64, shape)), "float32")
                self.buffers[param] = T.arg(param.name, declared)
            T.func_attr({"tirx.noalias": True})
            self.source = self.buffers[conv.data] if plan.direct else self._padded(batch)
            blocks = -(-(conv.out_channels // conv.groups) // plan.rows)
            bands = -(-conv.out_height // plan.height)
            depth = conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]
            cached = conv.out_channels * depth * 4 <= MAX_CACHED_WEIGHTS
            if plan.readers:
                blocks = -(-blocks // plan.readers)
            inner = (bands, blocks) if cached else (blocks, bands)
            total = batch * i64(conv.groups * blocks * bands)
            count = as_int(total)
            work = (count or 2) * depth * plan.rows * max(plan.readers, 1) * self.run
            loop = T.parallel if work >= MIN_PARALLEL_WORK and count != 1 else T.serial
            with loop(i64(0), total) as task:
                fast = tirx.floormod(task, i64(inner[1]))
                slow = tirx.floormod(tirx.floordiv(task, i64(inner[1])), i64(inner[0]))
                band, block = (slow, fast) if cached else (fast, slow)
                image = tirx.floordiv(task, i64(blocks * bands))
                n, group = tirx.floordiv(image, i64(conv.groups)), tirx.floormod(image, i64(conv.groups))
                if plan.readers:
                    self._panels(n, group, block, band)
                else:
                    self._tile(n, group, block, band)
        return ib.get()

    # -- source --------------------------------------------------------------------------------------------

    def _padded(self, batch: tirx.Expr) -> tirx.Var:
        """The padded copy, float32 [batch, row phases, column phases, channels, source rows, source columns]."""
        conv = self.conv
        images = batch * i64(conv.in_channels)
        # The last vector of a band may reach beyond the last plane.
        size = images * i64(conv.phases[0] * conv.phases[1] * self.plane) + i64(self.run)
        source = T.alloc_buffer((tvm.sym.Analyzer().simplify(size),), "float32", scope="global")
        loop = T.parallel if (as_int(images) or 2) * self.plane >= MIN_PARALLEL_WORK // 4 else T.serial
        with loop(i64(0), images) as image:
            n, c = tirx.floordiv(image, i64(conv.in_channels)), tirx.floormod(image, i64(conv.in_channels))
            for a in range(conv.phases[0]):
                for b in range(conv.phases[1]):
                    self._fill(source, n, c, a, b)
        return source

    def _fill(self, source: tirx.Var, n: tirx.Expr, c: tirx.Expr, a: int, b: int) -> None:
        """One plane: rows a, a + sy, ... and columns b, b + sx, ... of a padded channel."""
        conv = self.conv
        base = self._plane(n, c, i64(a), i64(b))
        y_low, y_high = _inside(conv.top - a, conv.height, conv.stride[0], conv.source_height)
        x_low, x_high = _inside(conv.left - b, conv.width, conv.stride[1], conv.source_width)
        zero = tirx.const(0.0, "float32")

        def clear(start: tirx.Expr, count: int) -> None:
            self._pieces(count, lambda at: T.buffer_store(source, zero, [start + at]))

        clear(base, y_low * self.pitch)
        with T.serial(i64(0), i64(y_high - y_low)) as step:
            row = base + (step + i64(y_low)) * i64(self.pitch)
            y = (step + i64(y_low)) * i64(conv.stride[0]) + i64(a - conv.top)

            def copy(at: tirx.Expr, lanes: int) -> None:
                x = (at + i64(x_low)) * i64(conv.stride[1]) + i64(b - conv.left)
                value = strided_load(self.buffers[conv.data], [n, c, y], x, conv.stride[1], lanes)
                T.buffer_store(source, value, [ramp(row + i64(x_low) + at, lanes)])

            clear(row, x_low)
            self._vectors(x_high - x_low, copy)
            clear(row + i64(x_high), self.pitch - x_high)
        clear(base + i64(y_high * self.pitch), (conv.source_height - y_high) * self.pitch)

    def _plane(self, n: tirx.Expr, c: tirx.Expr, a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        """Where a plane of the padded copy begins."""
        conv = self.conv
        image = ((n * i64(conv.phases[0]) + a) * i64(conv.phases[1]) + b) * i64(conv.in_channels) + c
        return image * i64(self.plane)

    def _load(self, n: tirx.Expr, c: tirx.Expr, r: tirx.Expr, q: tirx.Expr, position: tirx.Expr) -> tirx.Expr:
        """A vector of the source for tap (r, q), from `position` on."""
        (sy, sx), (dy, dx) = self.conv.stride, self.conv.dilation
        row, column = r * i64(dy), q * i64(dx)
        offset = tirx.floordiv(row, i64(sy)) * i64(self.pitch) + tirx.floordiv(column, i64(sx)) + position
        if self.plan.direct:  # rows follow each other: a position counts through all of them
            return tirx.BufferLoad(self.source, [n, c, i64(0), ramp(offset, self.plan.lanes)])
        start = self._plane(n, c, tirx.floormod(row, i64(sy)), tirx.floormod(column, i64(sx)))
        return tirx.BufferLoad(self.source, [ramp(start + offset, self.plan.lanes)])

    # -- tiles ---------------------------------------------------------------------------------------------

    def _tile(self, n: tirx.Expr, group: tirx.Expr, block: tirx.Expr, band: tirx.Expr) -> None:
        """All positions of one band for one block of channels, then the tail."""
        conv, plan = self.conv, self.plan
        # The last band overlaps the one before, so that all have the same height.
        y0 = tirx.min(band * i64(plan.height), i64(conv.out_height - plan.height))
        sums = T.alloc_buffer((plan.rows * self.run,), "float32", scope="local")  # as large as a band
        full, rest = divmod(self.run // plan.lanes, plan.vectors)
        width = plan.vectors * plan.lanes

        def last(vectors: int) -> int:
            """The last start of a run of `vectors`: the input must not be read beyond its end."""
            return self.length - vectors * plan.lanes if plan.direct else self.run

        def complete(steps: tirx.Expr) -> tirx.Expr:
            """Output rows whose positions are all within the first `steps` tiles."""
            rows = tirx.floordiv(steps * i64(width) - i64(conv.out_width), i64(self.pitch)) + i64(1)
            return tirx.max(tirx.min(rows, i64(plan.height)), i64(0))

        # Rows are stored as soon as they are there: while the next ones are computed, memory takes them.
        if full:
            with T.serial(i64(0), i64(full)) as step:
                start = tirx.min(step * i64(width), i64(last(plan.vectors)))
                self._accumulate(sums, n, group, block, y0, start, plan.vectors)
                first = complete(step)
                self._finish(sums, n, group, block, y0, i64(0), (first, complete(step + i64(1)) - first))
        if rest:
            self._accumulate(sums, n, group, block, y0, i64(min(full * width, last(rest))), rest)
        first = tvm.sym.Analyzer().simplify(complete(i64(full)))
        self._finish(sums, n, group, block, y0, i64(0), (first, i64(plan.height) - first))

    def _panels(self, n: tirx.Expr, group: tirx.Expr, chunk: tirx.Expr, band: tirx.Expr) -> None:
        """All positions of one band for several blocks of channels, from panels, then the tails."""
        conv, plan = self.conv, self.plan
        channels = conv.in_channels // conv.groups
        each = max(c for c in range(1, min(channels, PANEL_DEPTH) + 1) if channels % c == 0)
        blocks = -(-(conv.out_channels // conv.groups) // plan.rows)
        y0 = tirx.min(band * i64(plan.height), i64(conv.out_height - plan.height))
        sums = T.alloc_buffer((plan.readers * plan.rows * self.run,), "float32", scope="local")
        panel = T.alloc_buffer((each, plan.vectors * plan.lanes), "float32", scope="local")
        full, rest = divmod(self.run // plan.lanes, plan.vectors)
        width = plan.vectors * plan.lanes
        whole = i64(0), i64(plan.height)

        def for_each_block(body: Callable[[tirx.Expr, tirx.Expr], None]) -> None:
            """`body(block, its first row of sums)` for the blocks of this task."""
            with T.serial(i64(0), i64(plan.readers)) as reader:
                block = chunk * i64(plan.readers) + reader
                with _where(block < i64(blocks) if blocks % plan.readers else None):
                    body(block, reader * i64(plan.rows))

        def pieces(start: tirx.Expr, vectors: int) -> None:
            with T.serial(i64(0), i64(channels // each)) as part:
                self._copy_panel(panel, n, group * i64(channels) + part * i64(each), each, y0, start, vectors)
                for_each_block(
                    lambda block, row: self._accumulate_panel(
                        sums, panel, group * i64(blocks) + block, part, each, (row, start), vectors
                    )
                )

        def last(vectors: int) -> int:
            return self.length - vectors * plan.lanes if plan.direct else self.run

        if full:
            with T.serial(i64(0), i64(full)) as step:
                pieces(tirx.min(step * i64(width), i64(last(plan.vectors))), plan.vectors)
        if rest:
            pieces(i64(min(full * width, last(rest))), rest)
        for_each_block(lambda block, row: self._finish(sums, n, group, block, y0, row, whole))

    def _copy_panel(
        self,
        panel: tirx.Var,
        n: tirx.Expr,
        first: tirx.Expr,
        channels: int,
        y0: tirx.Expr,
        start: tirx.Expr,
        vectors: int,
    ) -> None:
        """The vectors of a tile for some channels, one behind the other."""
        lanes = self.plan.lanes
        position = y0 * i64(self.pitch) + start
        with T.serial(i64(0), i64(channels)) as c:
            for v in range(vectors):
                value = self._load(n, first + c, i64(0), i64(0), position + i64(v * lanes))
                T.buffer_store(panel, value, [c, ramp(i64(v * lanes), lanes)])

    def _accumulate_panel(
        self,
        sums: tirx.Var,
        panel: tirx.Var,
        block: tirx.Expr,
        part: tirx.Expr,
        channels: int,
        where: tuple[tirx.Expr, tirx.Expr],
        vectors: int,
    ) -> None:
        """Add the products with one panel to a tile of sums, whose first (row, position) is `where`."""
        plan = self.plan
        row, start = where
        places = [
            [ramp((row + i64(i)) * i64(self.run) + start + i64(v * plan.lanes), plan.lanes) for v in range(vectors)]
            for i in range(plan.rows)
        ]
        tile = [registers(vectors, plan.lanes) for _ in range(plan.rows)]
        with T.If(part > i64(0)), T.Then():
            for registers_, ramps in zip(tile, places, strict=True):
                for register, place in zip(registers_, ramps, strict=True):
                    register.store(tirx.BufferLoad(sums, [place]))
        with T.serial(i64(0), i64(channels)) as c:
            columns = [tirx.BufferLoad(panel, [c, ramp(i64(v * plan.lanes), plan.lanes)]) for v in range(vectors)]
            self._multiply(tile, columns, [block, part * i64(channels) + c, i64(0), i64(0)])
        for registers_, ramps in zip(tile, places, strict=True):
            for register, place in zip(registers_, ramps, strict=True):
                T.buffer_store(sums, register.value, [place])

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
        tile = [registers(vectors, plan.lanes) for _ in range(plan.rows)]
        depth = conv.in_channels // conv.groups
        blocks = -(-(conv.out_channels // conv.groups) // plan.rows)
        with (
            T.serial(i64(0), i64(depth)) as c,
            T.serial(i64(0), i64(conv.kernel[0])) as r,
            T.serial(i64(0), i64(conv.kernel[1])) as q,
        ):
            channel = group * i64(depth) + c
            position = y0 * i64(self.pitch) + start
            if conv.kernel == (1, 1):  # vectors of larger filters overlap, and wait in the cache already
                for v in range(vectors + 1):
                    coming = self._load(n, channel + i64(CHANNELS_AHEAD), r, q, position + i64(v * plan.lanes))
                    prefetch(tirx.BufferLoad(coming.source, [_first(index) for index in coming.indices]), 1)
            columns = [
                self._load(n, channel, r, q, position + i64(v * plan.lanes)) for v in range(vectors)
            ]
            self._multiply(tile, columns, [group * i64(blocks) + block, c, r, q])
        for i in range(plan.rows):
            for v in range(vectors):
                at = i64(i * self.run + v * plan.lanes) + start
                T.buffer_store(sums, tile[i][v].value, [ramp(at, plan.lanes)])

    def _multiply(self, tile: list[list[Register]], columns: list[tirx.Expr], weight: list[tirx.Expr]) -> None:
        """Add one step of the sum to a tile: each row's weight, from `weight` on, times the vectors of positions."""
        for i, row in enumerate(tile):
            value = splat(tirx.BufferLoad(self.buffers[self.conv.weight], [*weight, i64(i)]), self.plan.lanes)
            for register, column in zip(row, columns, strict=True):
                register.store(register.value + value * column)

    def _finish(
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
        conv, plan = self.conv, self.plan
        channels = conv.out_channels // conv.groups

        def row(i: tirx.Expr, y: tirx.Expr) -> None:
            k = group * i64(channels) + block * i64(plan.rows) + i

            def store(x: tirx.Expr) -> None:
                place = [n, k, y0 + y, x]
                value = self._tail_value(sums, (first + i) * i64(self.run) + y * i64(self.pitch) + x, place)
                T.buffer_store(self.buffers[self.tail.output], value, place)

            self._pieces(conv.out_width, store)

        with T.serial(i64(0), count) as step, T.serial(i64(0), i64(plan.rows)) as i:
            inside = block * i64(plan.rows) + i < i64(channels)
            with _where(inside if channels % plan.rows else None):
                row(i, low + step)

    def _tail_value(self, sums: tirx.Var, at: tirx.Expr, place: list[tirx.Expr]) -> tirx.Expr:
        where = dict(zip(self.tail.axes, place, strict=True))

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad) and node.source.same_as(self.tail.intermediate):
                return tirx.BufferLoad(sums, [at])
            if isinstance(node, ir.TensorLoad) and node.source in self.buffers:
                indices = [rewrite(index, replace) for index in node.indices]
                return tirx.BufferLoad(self.buffers[node.source], indices)
            return where.get(node) if isinstance(node, tirx.Var) else None

        return rewrite(self.tail.value, replace)

    def _vectors(self, count: int, body: Callable[[tirx.Expr, int], None]) -> None:
        """`body(start, lanes)` for vectors that fill 0..count: whole ones, then ever smaller ones."""
        full = count // self.plan.lanes
        if full:
            with T.serial(i64(0), i64(full)) as step:
                body(step * i64(self.plan.lanes), self.plan.lanes)
        for start, lanes in _halves(full * self.plan.lanes, count, self.plan.lanes):
            body(i64(start), lanes)

    def _pieces(self, count: int, body: Callable[[tirx.Expr], None]) -> None:
        """`body` for offsets 0..count, in vectors, then ever smaller ones."""
        full = count // self.plan.lanes
        if full:
            with T.serial(i64(0), i64(full)) as step, T.vectorized(i64(0), i64(self.plan.lanes)) as lane:
                body(step * i64(self.plan.lanes) + lane)
        for start, lanes in _halves(full * self.plan.lanes, count, self.plan.lanes):
            if lanes == 1:
                body(i64(start))
            else:
                with T.vectorized(i64(0), i64(lanes)) as lane:
                    body(i64(start) + lane)


@contextmanager
def _where(condition: tirx.Expr | None) -> Iterator[None]:
    """What follows is done under a condition, if there is one."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def _first(index: tirx.Expr) -> tirx.Expr:
    """The first index of a vector access."""
    return index.base if isinstance(index, tirx.Ramp) else index


def _halves(start: int, stop: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Powers of two that fill start..stop, the largest first: (where, how many)."""
    while start < stop:
        lanes //= 2
        if start + lanes <= stop:
            yield start, lanes
            start += lanes
            lanes *= 2


def _inside(before: int, size: int, stride: int, count: int) -> tuple[int, int]:
    """The i of 0..count for which 0 <= i * stride - before < size, as a range."""
    low = int(np.clip(-(-before // stride), 0, count))
    return low, int(np.clip((size - 1 + before) // stride + 1, low, count))
