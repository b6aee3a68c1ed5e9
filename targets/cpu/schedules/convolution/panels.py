"""Emits a convolution by 1 x 1 filters whose tasks compute several blocks of channels from panels of the source."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.tiles import TileEmitter, where
from greencc.targets.cpu.schedules.registers import registers
from greencc.targets.tir import i64, ramp

# Steps of the sum in a panel: with the weights of a block it stays in the first cache.
PANEL_DEPTH = 128


class PanelEmitter(TileEmitter):
    """Emits one kernel."""

    def task(self, n: tirx.Expr, group: tirx.Expr, block: tirx.Expr, y0: tirx.Expr) -> None:
        """All positions of the band from row y0 on for the blocks of chunk `block`, from panels, then the tails."""
        conv, plan = self.conv, self.plan
        words, run = conv.group_words, self.source.run
        each = max(c for c in range(1, min(words, PANEL_DEPTH) + 1) if words % c == 0)
        sums = T.alloc_buffer((plan.readers * plan.rows * run,), conv.taps.sums, scope="local")
        panel = T.alloc_buffer((each, plan.vectors * plan.lanes), conv.taps.word, scope="local")
        full, rest = divmod(run // plan.lanes, plan.vectors)
        width = plan.vectors * plan.lanes
        whole = i64(0), i64(plan.height)

        def for_each_block(body: Callable[[tirx.Expr, tirx.Expr], None]) -> None:
            """`body(block, its first row of sums)` for the blocks of this task."""
            with T.serial(i64(0), i64(plan.readers)) as reader:
                own = block * i64(plan.readers) + reader
                with where(own < i64(self.blocks) if self.blocks % plan.readers else None):
                    body(own, reader * i64(plan.rows))

        def pieces(start: tirx.Expr, vectors: int) -> None:
            with T.serial(i64(0), i64(words // each)) as part:
                self._copy_panel(panel, n, group * i64(words) + part * i64(each), each, y0, start, vectors)
                for_each_block(
                    lambda block, row: self._accumulate_panel(
                        sums, panel, group * i64(self.blocks) + block, part, each, (row, start), vectors
                    )
                )

        if full:
            with T.serial(i64(0), i64(full)) as step:
                pieces(tirx.min(step * i64(width), i64(self.source.last(plan.vectors))), plan.vectors)
        if rest:
            pieces(i64(min(full * width, self.source.last(rest))), rest)
        for_each_block(lambda block, row: self.finish(sums, n, group, block, y0, row, whole))

    def _copy_panel(
        self,
        panel: tirx.Var,
        n: tirx.Expr,
        first: tirx.Expr,
        words: int,
        y0: tirx.Expr,
        start: tirx.Expr,
        vectors: int,
    ) -> None:
        """The vectors of a tile for some words of channels, one behind the other."""
        lanes = self.plan.lanes
        position = y0 * i64(self.source.pitch) + start
        with T.serial(i64(0), i64(words)) as c:
            for v in range(vectors):
                value = self.source.load(n, first + c, i64(0), i64(0), position + i64(v * lanes))
                T.buffer_store(panel, value, [c, ramp(i64(v * lanes), lanes)])

    def _accumulate_panel(
        self,
        sums: tirx.Var,
        panel: tirx.Var,
        block: tirx.Expr,
        part: tirx.Expr,
        words: int,
        corner: tuple[tirx.Expr, tirx.Expr],
        vectors: int,
    ) -> None:
        """Add the products with one panel to a tile of sums, whose first (row, position) is `corner`."""
        plan, run = self.plan, self.source.run
        row, start = corner
        places = [
            [ramp((row + i64(i)) * i64(run) + start + i64(v * plan.lanes), plan.lanes) for v in range(vectors)]
            for i in range(plan.rows)
        ]
        tile = [registers(vectors, plan.lanes, self.conv.taps.sums) for _ in range(plan.rows)]
        with T.If(part > i64(0)), T.Then():
            for registers_, ramps in zip(tile, places, strict=True):
                for register, place in zip(registers_, ramps, strict=True):
                    register.store(tirx.BufferLoad(sums, [place]))
        with T.serial(i64(0), i64(words)) as c:
            columns = [tirx.BufferLoad(panel, [c, ramp(i64(v * plan.lanes), plan.lanes)]) for v in range(vectors)]
            self.multiply(tile, columns, [block, part * i64(words) + c, i64(0), i64(0)])
        for registers_, ramps in zip(tile, places, strict=True):
            for register, place in zip(registers_, ramps, strict=True):
                T.buffer_store(sums, register.value, [place])
