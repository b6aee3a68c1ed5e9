"""Emits a convolution as a matrix product of filters and gathered positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.gpu.schedules.arithmetic import Arithmetic
from greencc.targets.gpu.schedules.convolution.emitter import Operands, converted
from greencc.targets.gpu.schedules.convolution.form import Contraction
from greencc.targets.gpu.schedules.convolution.plan import Plan
from greencc.targets.gpu.schedules.launch import when
from greencc.targets.gpu.schedules.shared_tiles import ceiling, share_out, split_index, whole_lanes
from greencc.targets.gpu.schedules.threads import launch, local, shared
from greencc.targets.tir import as_int, i64, ramp, volume


class GemmEmitter:
    """Emits one kernel.

    Args:
        func: the kernel to schedule.
        conv: what it computes.
        plan: its tiles.
        arithmetic: how products are added up.
        packed: the shape of packed weights [groups * blocks, what is summed over..., rows of a tile], or None where
            they are read as they are.
    """

    def __init__(
        self,
        func: tirx.PrimFunc,
        conv: Contraction,
        plan: Plan,
        arithmetic: Arithmetic,
        packed: Sequence[int] | None,
    ) -> None:
        self.func, self.conv, self.plan, self.arithmetic, self.packed = func, conv, plan, arithmetic, packed
        self.weight_type = "int32" if conv.words else str(conv.weight.ty.dtype)
        self.group_filters = conv.filters // conv.groups
        self.blocks = -(-self.group_filters // plan.rows)
        self.step = plan.step
        self.lanes = 1 if packed is None else whole_lanes(plan.rows)  # weights that are read at once

    def emit(self) -> tirx.PrimFunc:
        """The scheduled PrimFunc. The weights' parameter has the packed shape, if there is one."""
        conv, plan = self.conv, self.plan
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            packed = {}
            if self.packed is not None:
                packed[conv.weight.source] = T.buffer(tuple(map(i64, self.packed)), self.weight_type)
            self.operands = Operands(self.func, conv.tail, packed)
            T.func_attr({"tirx.noalias": True})
            self.count = volume(conv.positions)
            tiles = ceiling(self.count, plan.columns)
            with launch([tiles, i64(conv.groups), i64(self.blocks)], plan.threads) as (place, thread):
                columns, self.group, self.block = place
                self._tile(columns * i64(plan.columns), thread)
        return ib.get()

    def _tile(self, first: tirx.Expr, thread: tirx.Expr) -> None:
        """All sums of a tile, whose first position is `first`."""
        conv, plan = self.conv, self.plan
        self.thread = thread
        self.slice, self.team, self.lane = split_index(thread, [i64(plan.slices), i64(plan.teams), i64(plan.lanes)])
        self.weights = shared(self.step * plan.rows, conv.sums)
        self.data = shared(self.step * plan.columns, conv.sums)
        self.sums = local(plan.filters * plan.positions, conv.sums)
        self.row, self.column = local(plan.filters, conv.sums), local(plan.positions, conv.sums)
        # A thread gathers elements of one position only.
        own, self.start = split_index(thread, [i64(plan.threads // plan.columns), i64(plan.columns)])[::-1]
        self.gathered = self._place(first + own)
        self.next_data = local(self.step * plan.columns // plan.threads, conv.sums)
        vectors = -(-self.step * plan.rows // (plan.threads * self.lanes))
        self.next_weights = local(vectors * self.lanes, self.weight_type)
        with T.unroll(i64(0), i64(plan.filters * plan.positions)) as i:
            T.buffer_store(self.sums, tirx.const(0, conv.sums), [i])
        steps = -(-conv.depth // self.step)
        self._fetch(i64(0))
        with T.serial(i64(0), i64(steps)) as step:
            self._share()
            # The next tiles are under way while these are multiplied; behind the last ones they are read again.
            if steps > 1:
                self._fetch(tirx.min(step + i64(1), i64(steps - 1)) * i64(self.step))
            self._multiply()
        if plan.slices > 1:
            self._store_slices(first)
        else:
            self._store(first)

    def _place(self, position: tirx.Expr) -> list[tirx.Expr]:
        """Coordinates of a position on all axes but the filters'; of the last one for those behind it."""
        known = as_int(self.count)
        whole = known is not None and known % self.plan.columns == 0
        held = position if whole else tirx.min(position, self.count - i64(1))
        return split_index(held, self.conv.positions)

    def _reduced(self, k: tirx.Expr) -> list[tirx.Expr]:
        return split_index(k, [i64(extent) for extent in self.conv.extents])

    def _inside(self, k: tirx.Expr, value: tirx.Expr) -> tirx.Expr:
        """A factor of product number k, or 0 behind the last one."""
        if self.conv.depth % self.step == 0:
            return value
        return tirx.if_then_else(k < i64(self.conv.depth), value, tirx.const(0, str(value.ty.dtype)))

    def _fetch(self, base: tirx.Expr) -> None:
        """Read a thread's share of the tiles from product number `base` on into registers."""
        with self._data_shares() as (turn, row):
            k = base + row
            n, *positions = self.gathered
            place = [n, self.group * i64(self.group_filters), *positions, *self._reduced(k)]
            value = self.operands.at(self.conv.data, [*self.conv.axes, *self.conv.reduced], place)
            T.buffer_store(self.next_data, self._inside(k, converted(value, self.conv.sums)), [turn])
        with self._weight_shares() as (turn, row, column):
            self._fetch_weights(base + row, column, turn * i64(self.lanes))

    def _share(self) -> None:
        """Store a thread's share of the tiles where all threads read it: [products, positions or filters]."""
        plan, sums = self.plan, self.conv.sums
        with self._data_shares() as (turn, row):
            place = row * i64(plan.columns) + tirx.truncmod(self.thread, i64(plan.columns))
            T.buffer_store(self.data, self.next_data[turn], [place])
        with self._weight_shares() as (turn, row, column):
            place = row * i64(plan.rows) + column
            for lane in range(self.lanes):
                value = self.next_weights[turn * i64(self.lanes) + i64(lane)]
                T.buffer_store(self.weights, converted(value, sums), [place + i64(lane)])

    @contextmanager
    def _data_shares(self) -> Iterator[tuple[tirx.Expr, tirx.Expr]]:
        """A thread's elements of the tile of positions: (which one, its row)."""
        rows = self.plan.threads // self.plan.columns
        with T.unroll(i64(0), i64(self.step // rows)) as turn:
            yield turn, turn * i64(rows) + self.start

    @contextmanager
    def _weight_shares(self) -> Iterator[tuple[tirx.Expr, tirx.Expr, tirx.Expr]]:
        """A thread's vectors of the tile of filters: (which one, its row and first column)."""
        plan = self.plan
        total = self.step * plan.rows // self.lanes
        with T.unroll(i64(0), i64(-(-total // plan.threads))) as turn:
            item = turn * i64(plan.threads) + self.thread
            with when(item < i64(total) if total % plan.threads else None):
                if self.packed is None:  # neighbouring threads read neighbouring products
                    yield turn, tirx.truncmod(item, i64(self.step)), tirx.truncdiv(item, i64(self.step))
                else:
                    place = item * i64(self.lanes)
                    yield turn, tirx.truncdiv(place, i64(plan.rows)), tirx.truncmod(place, i64(plan.rows))

    def _fetch_weights(self, k: tirx.Expr, column: tirx.Expr, target: tirx.Expr) -> None:
        """Neighbouring filters' weights of product k."""
        conv, plan = self.conv, self.plan
        if self.packed is not None:
            # Panels lie in a row: k counts through all that is summed over. Behind the last product data are 0.
            held = k if conv.depth % self.step == 0 else tirx.min(k, i64(conv.depth - 1))
            inner = [i64(0)] * (len(conv.extents) - 1)
            index = [self.group * i64(self.blocks) + self.block, *inner, held, ramp(column, self.lanes)]
            panel = self.operands.buffers[conv.weight.source]
            T.buffer_store(self.next_weights, tirx.BufferLoad(panel, index), [ramp(target, self.lanes)])
            return
        own = tirx.min(self.block * i64(plan.rows) + column, i64(self.group_filters - 1))
        place = [own + self.group * i64(self.group_filters), *self._reduced(k)]
        value = self.operands.at(conv.weight, [conv.axes[1], *conv.reduced], place)
        T.buffer_store(self.next_weights, self._inside(k, value), [target])

    def _multiply(self) -> None:
        """Add the tile's products to a thread's sums."""
        plan = self.plan
        with T.serial(i64(0), i64(plan.depth)) as d:
            k = self.slice * i64(plan.depth) + d
            self._read(self.row, self.weights, k * i64(plan.rows), self.team, plan.filters, plan.teams)
            self._read(self.column, self.data, k * i64(plan.columns), self.lane, plan.positions, plan.lanes)
            with T.unroll(i64(0), i64(plan.filters)) as i, T.unroll(i64(0), i64(plan.positions)) as j:
                at = i * i64(plan.positions) + j
                T.buffer_store(self.sums, self.arithmetic.accumulate(self.sums[at], self.row[i], self.column[j]), [at])

    def _read(
        self, target: tirx.Var, source: tirx.Var, start: tirx.Expr, own: tirx.Expr, count: int, threads: int
    ) -> None:
        """A thread's part of a row in shared memory, in vectors that lie apart."""
        lanes = min(count, 4)
        for first in range(0, count, lanes):
            place = start + self._number(own, first, count, threads)
            T.buffer_store(target, tirx.BufferLoad(source, [ramp(place, lanes)]), [ramp(i64(first), lanes)])

    def _number(self, own: tirx.Expr, index: int, count: int, threads: int) -> tirx.Expr:
        """Which of a tile's rows or columns is a thread's `index`-th."""
        lanes = min(count, 4)
        return own * i64(lanes) + i64(index // lanes * threads * lanes + index % lanes)

    def _store(self, first: tirx.Expr) -> None:
        """Results from a thread's sums."""
        plan = self.plan
        for j in range(plan.positions):
            position = first + self._number(self.lane, j, plan.positions, plan.lanes)
            with when(self._is_position(position)):
                n, *place = self._place(position)
                for i in range(plan.filters):
                    row = self.block * i64(plan.rows) + self._number(self.team, i, plan.filters, plan.teams)
                    self._store_one(self.sums[i64(i * plan.positions + j)], n, row, place)

    def _store_slices(self, first: tirx.Expr) -> None:
        """Results from the sums of all slices."""
        conv, plan = self.conv, self.plan
        size = plan.rows * plan.columns
        gathered = shared(size * plan.slices, conv.sums)
        for i in range(plan.filters):
            row = self._number(self.team, i, plan.filters, plan.teams)
            for j in range(plan.positions):
                column = self._number(self.lane, j, plan.positions, plan.lanes)
                at = self.slice * i64(size) + row * i64(plan.columns) + column
                T.buffer_store(gathered, self.sums[i64(i * plan.positions + j)], [at])

        def finish(item: tirx.Expr) -> None:
            row, column = split_index(item, [i64(plan.rows), i64(plan.columns)])
            T.buffer_store(self.row, gathered[item], [i64(0)])
            with T.unroll(i64(1), i64(plan.slices)) as part:
                T.buffer_store(self.row, self.row[i64(0)] + gathered[part * i64(size) + item], [i64(0)])
            with when(self._is_position(first + column)):
                n, *place = self._place(first + column)
                self._store_one(self.row[i64(0)], n, self.block * i64(plan.rows) + row, place)

        share_out(size, plan.threads, self.thread, finish)

    def _is_position(self, position: tirx.Expr) -> tirx.Expr | None:
        known = as_int(self.count)
        return position < self.count if known is None or known % self.plan.columns else None

    def _store_one(self, total: tirx.Expr, n: tirx.Expr, row: tirx.Expr, place: list[tirx.Expr]) -> None:
        """The result of a group's filter `row` at a place, if there is such a filter."""
        with when(row < i64(self.group_filters) if self.group_filters % self.plan.rows else None):
            self.operands.store(total, [n, self.group * i64(self.group_filters) + row, *place])
