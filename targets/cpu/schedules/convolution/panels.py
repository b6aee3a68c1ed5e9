"""Emits a convolution by 1 x 1 filters whose tasks compute several blocks of channels from panels of the source."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.tails import Sums, where
from greencc.targets.cpu.schedules.convolution.tiles import TileEmitter
from greencc.targets.cpu.schedules.registers import registers
from greencc.targets.tir import i64, ramp


class PanelEmitter(TileEmitter):
    """Emits one kernel."""

    def task(self, corner: Corner) -> None:
        """All positions of the band for the blocks of a chunk, from panels, then the tails."""
        conv, plan = self.conv, self.plan
        words, run = conv.group_words, self.source.run
        each = max(c for c in range(1, min(words, plan.panel) + 1) if words % c == 0)
        buffer = T.alloc_buffer((plan.blocks * plan.rows * run,), conv.taps.sums, scope="local")
        panel = T.alloc_buffer((each, plan.vectors * plan.lanes), conv.taps.word, scope="local")
        full, rest = divmod(run // plan.lanes, plan.vectors)
        width = plan.vectors * plan.lanes

        def sums(number: tirx.Expr) -> Sums:
            return Sums(buffer, run, self.source.pitch, number * i64(plan.rows))

        def pieces(start: tirx.Expr, vectors: int) -> None:
            with T.serial(i64(0), i64(words // each)) as part:
                self._copy_panel(panel, corner, part * i64(each), each, start, vectors)
                self.for_each_block(
                    corner,
                    lambda own, number: self._accumulate_panel(sums(number), panel, own, (part, each), start, vectors),
                )

        if full:
            with T.serial(i64(0), i64(full)) as step:
                pieces(tirx.min(step * i64(width), i64(self.source.last(plan.vectors))), plan.vectors)
        if rest:
            pieces(i64(min(full * width, self.source.last(rest))), rest)
        if plan.finish != "registers":
            self.for_each_block(corner, lambda own, number: self.tails.band(sums(number), own))

    def _copy_panel(
        self, panel: tirx.Var, corner: Corner, first: tirx.Expr, words: int, start: tirx.Expr, vectors: int
    ) -> None:
        """The vectors of a tile for some words of channels, one behind the other."""
        lanes = self.plan.lanes
        with T.serial(i64(0), i64(words)) as c:
            for v in range(vectors):
                value = self.source.load(corner, first + c, i64(0), i64(0), start + i64(v * lanes), lanes)
                T.buffer_store(panel, value, [c, ramp(i64(v * lanes), lanes)])

    def _accumulate_panel(
        self,
        sums: Sums,
        panel: tirx.Var,
        corner: Corner,
        piece: tuple[tirx.Expr, int],
        start: tirx.Expr,
        vectors: int,
    ) -> None:
        """Add the products with one panel, number `piece[0]` of those of `piece[1]` words, to a tile of sums."""
        plan = self.plan
        part, words = piece
        parts = self.conv.group_words // words
        tile = [registers(vectors, plan.lanes, self.conv.taps.sums) for _ in range(plan.rows)]
        held = [
            (register, ramp((sums.first + i64(i)) * i64(sums.run) + start + i64(v * plan.lanes), plan.lanes))
            for i, row in enumerate(tile)
            for v, register in enumerate(row)
        ]
        with T.If(part > i64(0)), T.Then():
            for register, place in held:
                register.store(tirx.BufferLoad(sums.buffer, [place]))

        def step(c: tirx.Expr, r: tirx.Expr, q: tirx.Expr) -> None:
            columns = [tirx.BufferLoad(panel, [c, ramp(i64(v * plan.lanes), plan.lanes)]) for v in range(vectors)]
            self.multiply(tile, columns, [self.weights_of(corner), part * i64(words) + c, r, q])

        self.steps(words, step)
        in_registers = plan.finish == "registers"
        with where(part < i64(parts - 1) if in_registers else None):
            for register, place in held:
                T.buffer_store(sums.buffer, register.value, [place])
        if in_registers:
            with where(part == i64(parts - 1)):
                self.tails.tile(tile, corner, start)
