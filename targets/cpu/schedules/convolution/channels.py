"""Emits a convolution in register tiles of positions times vectors of output channels.

Images of few positions leave no vector half empty so. The sums are transposed at the end of a band.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.emitter import Emitter
from greencc.targets.cpu.schedules.convolution.tails import Sums
from greencc.targets.cpu.schedules.registers import register, registers, transpose
from greencc.targets.tir import i64, ramp, splat


class ChannelEmitter(Emitter):
    """Emits one kernel."""

    def task(self, corner: Corner) -> None:
        """All positions of the band for each block of channels, then the tail."""
        self.for_each_block(corner, lambda own, _: self._block(own))

    def _block(self, corner: Corner) -> None:
        conv, plan = self.conv, self.plan
        positions = plan.height * conv.out_width
        run = -(-positions // plan.lanes) * plan.lanes
        turned = T.alloc_buffer((run, plan.filters), conv.taps.sums, scope="local")
        buffer = T.alloc_buffer((plan.filters * run,), conv.taps.sums, scope="local")
        # Where the rows of the source follow each other as those of the output do, a band is one row.
        rows, columns = (1, positions) if self.source.pitch == conv.out_width else (plan.height, conv.out_width)
        width = min(plan.rows, columns)
        height = min(plan.rows // width, rows)
        for down in _runs(rows, height):
            for across in _runs(columns, width):
                self._tiles(turned, corner, down, across)
        self._turn(turned, buffer, run)
        self.tails.band(Sums(buffer, run, conv.out_width, i64(0)), corner)

    def _tiles(self, turned: tirx.Var, corner: Corner, down: Run, across: Run) -> None:
        """The register tiles of some rows and columns."""
        with T.serial(i64(0), i64(down.count)) as i, T.serial(i64(0), i64(across.count)) as j:
            y, x = i64(down.first) + i * i64(down.size), i64(across.first) + j * i64(across.size)
            self._tile(turned, corner, (y, x), (down.size, across.size))

    def _tile(
        self, turned: tirx.Var, corner: Corner, first: tuple[tirx.Expr, tirx.Expr], size: tuple[int, int]
    ) -> None:
        """A register tile: `size` rows and columns from `first` on."""
        conv, plan, pitch = self.conv, self.plan, self.source.pitch
        places = [(i, j) for i in range(size[0]) for j in range(size[1])]
        tile = [registers(plan.vectors, plan.lanes, conv.taps.sums) for _ in places]
        start = first[0] * i64(pitch) + first[1]

        def step(c: tirx.Expr, r: tirx.Expr, q: tirx.Expr) -> None:
            weight = self.buffers[conv.weight], [self.weights_of(corner), c, r, q]
            factors = [conv.taps.factors(*weight, v * plan.lanes, plan.lanes) for v in range(plan.vectors)]
            for (i, j), row in zip(places, tile, strict=True):
                word = self.source.load(corner, c, r, q, start + i64(i * pitch + j), 1)
                words = splat(word, plan.lanes)
                for total, factor in zip(row, factors, strict=True):
                    total.store(conv.taps.accumulate(total.value, words, factor, plan.lanes))

        self.steps(conv.group_words, step)
        for (i, j), row in zip(places, tile, strict=True):
            at = (first[0] + i64(i)) * i64(conv.out_width) + first[1] + i64(j)
            for v, total in enumerate(row):
                T.buffer_store(turned, total.value, [at, ramp(i64(v * plan.lanes), plan.lanes)])

    def _turn(self, turned: tirx.Var, sums: tirx.Var, run: int) -> None:
        """Copy sums [positions, channels] to [channels, positions]."""
        plan = self.plan
        with T.serial(i64(0), i64(run // plan.lanes)) as step, T.serial(i64(0), i64(plan.vectors)) as v:
            square = [register(plan.lanes, self.conv.taps.sums) for _ in range(plan.lanes)]
            for i, item in enumerate(square):
                place = [step * i64(plan.lanes) + i64(i), ramp(v * i64(plan.lanes), plan.lanes)]
                item.store(tirx.BufferLoad(turned, place))
            transpose(square)
            for i, item in enumerate(square):
                channel = v * i64(plan.lanes) + i64(i)
                T.buffer_store(sums, item.value, [ramp(channel * i64(run) + step * i64(plan.lanes), plan.lanes)])


@dataclass(frozen=True)
class Run:
    """`count` pieces of `size` positions each, from `first` on."""

    first: int
    size: int
    count: int


def _runs(extent: int, size: int) -> list[Run]:
    """Pieces of 0..extent: those of `size`, then what is left."""
    full, rest = divmod(extent, size)
    return [Run(0, size, full)] * bool(full) + [Run(full * size, rest, 1)] * bool(rest)
