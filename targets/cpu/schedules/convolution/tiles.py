"""Emits a convolution in register tiles of output channels times vectors of positions, read from the source."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.emitter import Emitter
from greencc.targets.cpu.schedules.convolution.tails import Sums
from greencc.targets.cpu.schedules.registers import Register, registers
from greencc.targets.tir import i64, ramp


class TileEmitter(Emitter):
    """Emits one kernel."""

    def task(self, corner: Corner) -> None:
        """All positions of the band for each block of channels, then the tail."""
        self.for_each_block(corner, lambda own, _: self._block(own))

    def _block(self, corner: Corner) -> None:
        conv, plan, run, pitch = self.conv, self.plan, self.source.run, self.source.pitch
        width = plan.vectors * plan.lanes
        full, rest = divmod(run // plan.lanes, plan.vectors)
        sums = None
        if plan.finish != "registers":  # else as large as a band
            buffer = T.alloc_buffer((plan.rows * run,), conv.taps.sums, scope="local")
            sums = Sums(buffer, run, pitch, i64(0))

        def complete(steps: tirx.Expr) -> tirx.Expr:
            """Output rows whose positions are all within the first `steps` tiles."""
            rows = tirx.floordiv(steps * i64(width) - i64(conv.out_width), i64(pitch)) + i64(1)
            return tirx.max(tirx.min(rows, i64(plan.height)), i64(0))

        if full:
            with T.serial(i64(0), i64(full)) as step:
                start = tirx.min(step * i64(width), i64(self.source.last(plan.vectors)))
                self._tile(sums, corner, start, plan.vectors)
                if sums is not None and plan.finish == "rows":
                    first = complete(step)
                    self.tails.rows(sums, corner, first, complete(step + i64(1)) - first)
        if rest:
            self._tile(sums, corner, i64(min(full * width, self.source.last(rest))), rest)
        if sums is not None and plan.finish == "rows":
            first = tvm.sym.Analyzer().simplify(complete(i64(full)))
            self.tails.rows(sums, corner, first, i64(plan.height) - first)
        elif sums is not None:
            self.tails.band(sums, corner)

    def _tile(self, sums: Sums | None, corner: Corner, start: tirx.Expr, vectors: int) -> None:
        """One register tile, from position `start` of the band on; without a buffer for sums, its tail too."""
        conv, plan = self.conv, self.plan
        tile = [registers(vectors, plan.lanes, conv.taps.sums) for _ in range(plan.rows)]

        def step(c: tirx.Expr, r: tirx.Expr, q: tirx.Expr) -> None:
            if plan.ahead:
                for v in range(vectors + 1):
                    self.source.ask_for(corner, c + i64(plan.ahead), start + i64(v * plan.lanes))
            columns = [
                self.source.load(corner, c, r, q, start + i64(v * plan.lanes), plan.lanes) for v in range(vectors)
            ]
            self.multiply(tile, columns, [self.weights_of(corner), c, r, q])

        self.steps(conv.group_words, step)
        if sums is None:
            self.tails.tile(tile, corner, start)
            return
        for i in range(plan.rows):
            for v in range(vectors):
                at = i64(i * sums.run + v * plan.lanes) + start
                T.buffer_store(sums.buffer, tile[i][v].value, [ramp(at, plan.lanes)])

    def multiply(self, tile: list[list[Register]], columns: list[tirx.Expr], weight: list[tirx.Expr]) -> None:
        """Add one step of the sum to a tile: each filter's word, from `weight` on, times the vectors of positions."""
        taps, lanes = self.conv.taps, self.plan.lanes
        for i, row in enumerate(tile):
            factor = taps.factor(self.buffers[self.conv.weight], weight, i, lanes)
            for register, column in zip(row, columns, strict=True):
                register.store(taps.accumulate(register.value, column, factor, lanes))
