"""Emits a convolution as a matrix product of filters and gathered positions."""

from __future__ import annotations

from collections.abc import Sequence

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
        self.step = plan.depth * plan.slices

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
        self.part = local(4, self.weight_type)
        # A thread gathers elements of one position only.
        own, self.start = split_index(thread, [i64(plan.threads // plan.columns), i64(plan.columns)])[::-1]
        self.gathered = self._place(first + own)
        with T.unroll(i64(0), i64(plan.filters * plan.positions)) as i:
            T.buffer_store(self.sums, tirx.const(0, conv.sums), [i])
        with T.serial(i64(0), i64(-(-conv.depth // self.step))) as step:
            base = step * i64(self.step)
            self._load_weights(base)
            self._load_data(base)
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

    def _load_data(self, base: tirx.Expr) -> None:
        """The tile of positions: [products, positions]."""
        conv, plan = self.conv, self.plan
        rows = plan.threads // plan.columns
        with T.unroll(i64(0), i64(self.step // rows)) as turn:
            row = turn * i64(rows) + self.start
            k = base + row
            n, *positions = self.gathered
            first = self.group * i64(self.group_filters)
            place = [n, first, *positions, *self._reduced(k)]
            value = self.operands.at(conv.data, [*conv.axes, *conv.reduced], place)
            own = row * i64(plan.columns) + tirx.truncmod(self.thread, i64(plan.columns))
            T.buffer_store(self.data, self._inside(k, converted(value, conv.sums)), [own])

    def _load_weights(self, base: tirx.Expr) -> None:
        """The tile of filters: [products, filters]."""
        conv, plan = self.conv, self.plan
        if self.packed is None:
            share_out(self.step * plan.rows, plan.threads, self.thread, lambda item: self._load_weight(base, item))
            return
        lanes = whole_lanes(plan.rows)
        panel = self.operands.buffers[conv.weight.source]

        def load(item: tirx.Expr) -> None:
            place = item * i64(lanes)
            k = base + tirx.truncdiv(place, i64(plan.rows))
            column = tirx.truncmod(place, i64(plan.rows))
            # Panels lie in a row: k counts through all that is summed over.
            held = k if conv.depth % self.step == 0 else tirx.min(k, i64(conv.depth - 1))
            inner = [i64(0)] * (len(conv.extents) - 1)
            index = [self.group * i64(self.blocks) + self.block, *inner, held, ramp(column, lanes)]
            T.buffer_store(self.part, tirx.BufferLoad(panel, index), [ramp(i64(0), lanes)])
            with T.unroll(i64(0), i64(lanes)) as lane:
                value = converted(self.part[lane], conv.sums)
                T.buffer_store(self.weights, value, [place + lane])

        share_out(self.step * plan.rows // lanes, plan.threads, self.thread, load)

    def _load_weight(self, base: tirx.Expr, item: tirx.Expr) -> None:
        """One weight from where it is; neighbouring threads read neighbouring products."""
        conv, plan = self.conv, self.plan
        row, column = tirx.truncmod(item, i64(self.step)), tirx.truncdiv(item, i64(self.step))
        own = self.block * i64(plan.rows) + column
        held = tirx.min(own, i64(self.group_filters - 1)) + self.group * i64(self.group_filters)
        k = base + row
        value = self.operands.at(conv.weight, [conv.axes[1], *conv.reduced], [held, *self._reduced(k)])
        T.buffer_store(self.weights, self._inside(k, converted(value, conv.sums)), [row * i64(plan.rows) + column])

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
