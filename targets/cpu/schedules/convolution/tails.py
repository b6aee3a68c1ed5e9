"""Evaluates what follows a convolution, and stores it: for rows of sums in a buffer, or for tiles in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import ir, tirx
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.convolution.corner import Corner
from greencc.targets.cpu.schedules.convolution.form import Convolution
from greencc.targets.cpu.schedules.convolution.plan import Plan
from greencc.targets.cpu.schedules.convolution.source import in_vectors
from greencc.targets.cpu.schedules.registers import Register
from greencc.targets.kernel import Tail
from greencc.targets.tir import as_int, i64, loads, rewrite, uses_var


@dataclass(frozen=True)
class Sums:
    """Sums of a band.

    Attributes:
        buffer: holds a run of positions for each channel.
        run: positions from one channel to the next.
        pitch: positions from one output row to the next.
        first: the channel of the buffer where those of a block begin.
    """

    buffer: tirx.Var
    run: int
    pitch: int
    first: tirx.Expr


def is_flat(tail: Tail) -> bool:
    """Whether a tail takes no notice of rows: a position may count on through the rows of an image."""
    position = tail.axes[2:]
    size = [as_int(dim) for dim in tail.output.ty.shape[2:]]

    def in_place(load: ir.TensorLoad) -> bool:
        indices = list(load.indices)
        whole = len(indices) == 4 and [as_int(dim) for dim in load.source.ty.shape[2:]] == size
        if whole and all(index.same_as(axis) for index, axis in zip(indices[2:], position, strict=True)):
            indices = indices[:2]
        return not any(uses_var(index, axis) for index in indices for axis in position)

    def without_loads(node: tirx.Expr) -> tirx.Expr | None:
        return tirx.const(0, str(node.ty.dtype)) if isinstance(node, ir.TensorLoad) else None

    rest = rewrite(tail.value, without_loads)
    return all(map(in_place, loads(tail.value))) and not any(uses_var(rest, axis) for axis in position)


@dataclass(frozen=True)
class Tails:
    """Emits the tails of one kernel.

    Attributes:
        tail: what becomes of the sums.
        conv, plan: what is computed, and how.
        buffers: those that are declared, by those of the tail.
    """

    tail: Tail
    conv: Convolution
    plan: Plan
    buffers: dict[tirx.Var, tirx.Var]

    @property
    def channels(self) -> int:
        """Output channels of a group."""
        return self.conv.out_channels // self.conv.groups

    def rows(self, sums: Sums, corner: Corner, low: tirx.Expr, count: tirx.Expr) -> None:
        """Emit the tails of `count` output rows of a band, from its row `low` on."""
        width = self.conv.out_width
        with T.serial(i64(0), count) as step, T.serial(i64(0), i64(self.plan.filters)) as i:
            self._row(sums, corner, i, low + step, width)

    def band(self, sums: Sums, corner: Corner) -> None:
        """Emit the tails of a whole band; of one whose rows follow each other, and don't matter, as one row."""
        if self.plan.finish != "flat":
            self.rows(sums, corner, i64(0), i64(self.plan.height))
            return
        with T.serial(i64(0), i64(self.plan.filters)) as i:
            self._row(sums, corner, i, i64(0), self.plan.height * self.conv.out_width)

    def tile(self, tile: list[list[Register]], corner: Corner, start: tirx.Expr) -> None:
        """Emit the tails of a register tile, whose rows are channels, from position `start` of the band on."""
        lanes = self.plan.lanes
        for i, row in enumerate(tile):
            inside, k = self._channel(corner, i64(i))
            with where(inside if i else None):  # a block has at least one channel
                for v, register in enumerate(row):
                    with T.vectorized(i64(0), i64(lanes)) as lane:
                        place = [corner.n, k, corner.y, start + i64(v * lanes) + lane]
                        self._store(register.lane(lane), place)

    def _row(self, sums: Sums, corner: Corner, i: tirx.Expr, y: tirx.Expr, width: int) -> None:
        inside, k = self._channel(corner, i)

        def store(x: tirx.Expr) -> None:
            at = (sums.first + i) * i64(sums.run) + y * i64(sums.pitch) + x
            self._store(tirx.BufferLoad(sums.buffer, [at]), [corner.n, k, corner.y + y, x])

        with where(inside):
            _pieces(width, self.plan.lanes, store)

    def _channel(self, corner: Corner, i: tirx.Expr) -> tuple[tirx.Expr | None, tirx.Expr]:
        """Whether there is a channel i in a block, None where there always is, and its number in the output."""
        number = corner.block * i64(self.plan.filters) + i
        inside = number < i64(self.channels) if self.channels % self.plan.filters else None
        return inside, corner.group * i64(self.channels) + number

    def _store(self, total: tirx.Expr, place: list[tirx.Expr]) -> None:
        T.buffer_store(self.buffers[self.tail.output], self.tail.value_at(total, place, self.buffers), place)


def _pieces(width: int, lanes: int, body: Callable[[tirx.Expr], None]) -> None:
    """`body` for the columns of a row, in vectors, then ever smaller ones."""

    def vector(start: tirx.Expr, count: int) -> None:
        if count == 1:
            body(start)
            return
        with T.vectorized(i64(0), i64(count)) as lane:
            body(start + lane)

    in_vectors(width, lanes, vector)


@contextmanager
def where(condition: tirx.Expr | None) -> Iterator[None]:
    """What follows is done under a condition, if there is one."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield
