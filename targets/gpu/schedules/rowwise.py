"""Reductions and all that hangs on them in one launch: softmax, norms, means, pools, positions of extremes.

A row is what is reduced to one result: its elements, and the outputs that only need those and the results. Each row
has a number of lanes (threads of one workgroup), a workgroup has one row or several:

    for each reduction: each lane reduces every lanes-th element; then the lanes combine in shared memory, as a tree
    for each output:    each lane computes every lanes-th element

A short reduction has one lane. Where neighbours in memory belong to one row, its lanes are neighbouring threads; where
they belong to different rows, the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm import ir, sym, tirx
from tvm.tirx.script import builder as T

from greencc.targets.base import Declined, Scheduled
from greencc.targets.gpu.capabilities import GpuTarget
from greencc.targets.gpu.schedules.combine import combined, elements_of, updated
from greencc.targets.gpu.schedules.convolution.form import match_contraction, read_reduction
from greencc.targets.gpu.schedules.elementwise import overwritable
from greencc.targets.gpu.schedules.launch import barrier, below, ceildiv, launch, when
from greencc.targets.gpu.schedules.products import match_product
from greencc.targets.gpu.schedules.row_groups import Groups, default_groups, rows_space
from greencc.targets.gpu.schedules.rows import Rows, find_rows, long_axes, position_of, rows_are_neighbours
from greencc.targets.gpu.schedules.stages import Stage, inlined, read_stages, updates_in_place
from greencc.targets.kernel import inline_tail
from greencc.targets.tir import as_int, i64, rewrite, split_index, substitute, volume
from greencc.targets.tuning.space import Plan, Space


@dataclass(frozen=True)
class RowwiseRule:
    """See the module's docstring."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports and tuning records."""
        return "gpu-rowwise"

    def space(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Space | Declined:
        """See TunableRule."""
        found = _read(func)
        if isinstance(found, Declined):
            return found
        if is_product(func):
            return Declined("a product or convolution: each of its elements would be a row")
        return rows_space(*found, self.target.gpu)

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int], plan: Plan | None = None) -> Scheduled | Declined:
        """Schedule a kernel whose reductions and outputs all are of the same rows, or decline."""
        found = _read(func)
        if isinstance(found, Declined):
            return found
        groups = None
        if plan is not None:
            space = self.space(func, constants)
            problem = space.reason if isinstance(space, Declined) else space.problem(plan)
            if problem is not None:
                return Declined(problem)
            groups = Groups(int(plan["lanes"]), int(plan["rows"]))
        stages, rows = found
        overwrites = _overwrites(func, stages, rows)
        body = rows_launch(stages, rows, self.target, func.params, groups)
        return Scheduled(func.with_body(body), self.name, overwrites=overwrites)


def is_product(func: tirx.PrimFunc) -> bool:
    """Whether a kernel is one of those that other rules share data in."""
    tail = inline_tail(func)
    if not isinstance(tail, str) and not isinstance(match_product(tail), str):
        return True
    reduction = read_reduction(func)
    return not isinstance(reduction, str) and not isinstance(match_contraction(reduction[1]), str)


def _read(func: tirx.PrimFunc) -> tuple[list[Stage], Rows] | Declined:
    """The stages of a kernel and their rows, or why it isn't row-wise."""
    stages = read_stages(func)
    if not stages:
        return Declined("it has no root block with plain blocks under it")
    if updates_in_place(func, stages):
        return Declined("it updates a parameter in place")
    left = inlined(stages, func.params)
    rows = find_rows(left)
    return Declined(rows) if isinstance(rows, str) else (left, rows)


def rows_launch(
    stages: Sequence[Stage],
    rows: Rows,
    target: GpuTarget,
    outputs: Sequence[tirx.Var],
    chosen: Groups | None = None,
) -> tirx.Stmt:
    """One launch for stages with common rows; `outputs` are the buffers that others than these stages read."""
    count = volume(list(rows.extents))
    if as_int(count) == 0:
        return tirx.Evaluate(tirx.const(0, "int32"))
    side_by_side = rows_are_neighbours(stages)
    size = chosen or default_groups(stages, count, target.gpu)
    lanes, per_group = size.lanes, size.rows
    groups = ceildiv(count, per_group)

    def body(group: tirx.Expr, thread: tirx.Expr) -> None:
        if side_by_side:
            own, lane = tirx.floormod(thread, i64(per_group)), tirx.floordiv(thread, i64(per_group))
        else:
            own, lane = tirx.floordiv(thread, i64(lanes)), tirx.floormod(thread, i64(lanes))
        if lanes == 1:
            own, lane = thread, i64(0)
        if per_group == 1:
            own, lane = i64(0), thread
        row = group * i64(per_group) + own
        exists = below(row, count, groups * i64(per_group))
        threads = _Threads(row, exists, lane, lanes, thread, per_group, side_by_side)
        if lanes == 1:
            with when(exists):
                _Rows(stages, rows, outputs, replace(threads, exists=None)).emit()
        else:
            _Rows(stages, rows, outputs, threads).emit()

    return launch(groups, lanes * per_group, body)


@dataclass(frozen=True)
class _Threads:
    """Who does what in a workgroup.

    Attributes:
        row, exists: number of this thread's row, and whether there is one; None where there always is.
        lane, lanes: number of this thread among those of its row, and how many there are.
        thread, per_group: number of this thread in the workgroup, and how many rows that has.
        side_by_side: whether neighbouring threads have different rows.
    """

    row: tirx.Expr
    exists: tirx.Expr | None
    lane: tirx.Expr
    lanes: int
    thread: tirx.Expr
    per_group: int
    side_by_side: bool


class _Rows:
    """Emits what the threads of a workgroup do."""

    def __init__(self, stages: Sequence[Stage], rows: Rows, outputs: Sequence[tirx.Var], threads: _Threads) -> None:
        self._stages, self._rows, self._outputs, self._threads = stages, rows, outputs, threads
        # Where the result of a reduction is found by all lanes of its row.
        self._results: dict[tirx.Var, tirx.Expr] = {}

    def emit(self) -> None:
        """Emit the stages in order."""
        row, extents = self._threads.row, list(self._rows.extents)
        own = split_index(row, extents)
        # All threads meet at the barriers: those without a row follow the last one, and store nothing.
        last = volume(extents) - i64(1)
        followed = own if self._threads.exists is None else split_index(tirx.min(row, last), extents)
        for stage, axes in zip(self._stages, self._rows.axes, strict=True):
            if stage.is_reduction:
                single = {axis: i64(0) for axis in stage.axes if position_of(axis, axes) is None}
                self._reduce(stage, single | dict(zip(axes, followed, strict=True)))
                self._store(stage, single | dict(zip(axes, own, strict=True)))
            else:
                self._map(stage, dict(zip(axes, own, strict=True)))

    def _reduce(self, stage: Stage, place: dict[tirx.Var, tirx.Expr]) -> None:
        """Reduce every row's elements; afterwards `_results` tells where the result is."""
        partial = {buffer: T.alloc_buffer([i64(1)], str(buffer.ty.dtype), scope="local") for buffer in stage.writes}
        for store in stage.stores:
            T.buffer_store(partial[store.buffer], store.init, [i64(0)])
        held = {buffer: tirx.BufferLoad(own, [i64(0)]) for buffer, own in partial.items()}
        total = volume(list(stage.reduced_extents))

        def step(index: tirx.Expr) -> None:
            here = place | dict(zip(stage.reduced, split_index(index, list(stage.reduced_extents)), strict=True))
            _store_all(partial, [self._value(value, here) for value in updated(stage, held)])

        self._strided(total, step)
        self._results |= held if self._threads.lanes == 1 else self._tree(stage, partial)

    def _store(self, stage: Stage, place: dict[tirx.Var, tirx.Expr]) -> None:
        """Store the results of a reduction that are outputs."""
        kept = [store for store in stage.stores if any(store.buffer.same_as(param) for param in self._outputs)]
        if kept:
            first = None if self._threads.lanes == 1 else tirx.EQ(self._threads.lane, i64(0))
            with when(_both(self._threads.exists, first)):
                for store in kept:
                    where = [substitute(index, place) for index in store.indices]
                    T.buffer_store(store.buffer, self._results[store.buffer], where)

    def _tree(self, stage: Stage, partial: dict[tirx.Var, tirx.Var]) -> dict[tirx.Var, tirx.Expr]:
        """Combine the lanes of each row; the places of the results."""
        elements, threads = elements_of(stage) or [], self._threads
        size = threads.lanes * threads.per_group
        # Each level reads one buffer and writes another: TVM finds no barrier missing then.
        here, there = ({b: T.alloc_buffer([i64(size)], str(b.ty.dtype), scope="shared") for b in partial} for _ in "ab")
        for buffer, own in partial.items():
            T.buffer_store(here[buffer], tirx.BufferLoad(own, [i64(0)]), [threads.thread])
        barrier()
        step = threads.per_group if threads.side_by_side else 1
        half = threads.lanes // 2
        while half:
            with when(threads.lane < i64(half)):
                ours = {b: tirx.BufferLoad(s, [threads.thread]) for b, s in here.items()}
                theirs = [tirx.BufferLoad(s, [threads.thread + i64(half * step)]) for s in here.values()]
                _store_all(there, combined(stage, ours, theirs, elements), threads.thread)
            barrier()
            half, here, there = half // 2, there, here
        start = sym.Analyzer().simplify(threads.thread - threads.lane * i64(step))
        return {b: tirx.BufferLoad(s, [start]) for b, s in here.items()}

    def _map(self, stage: Stage, place: dict[tirx.Var, tirx.Expr]) -> None:
        inner = [(axis, extent) for axis, extent in zip(stage.axes, stage.extents, strict=True) if axis not in place]
        extents = [extent for _, extent in inner]

        def step(index: tirx.Expr) -> None:
            here = place | dict(zip([axis for axis, _ in inner], split_index(index, extents), strict=True))
            for store in stage.stores:
                indices = [self._value(i, here) for i in store.indices]
                T.buffer_store(store.buffer, self._value(store.value, here), indices)

        with when(self._threads.exists):
            self._strided(volume(extents), step)

    def _strided(self, total: tirx.Expr, step: Callable[[tirx.Expr], None]) -> None:
        """Emit `step` for every lanes-th of `total` places."""
        rounds = ceildiv(total, self._threads.lanes)
        if as_int(rounds) == 1:
            with when(below(self._threads.lane, total, i64(self._threads.lanes))):
                step(self._threads.lane)
            return
        with T.serial(i64(0), rounds) as turn:
            index = turn * i64(self._threads.lanes) + self._threads.lane
            with when(below(index, total, rounds * i64(self._threads.lanes))):
                step(index)

    def _value(self, value: tirx.Expr, place: dict[tirx.Var, tirx.Expr]) -> tirx.Expr:
        def replaced(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, ir.TensorLoad):
                return self._results.get(node.source)
            return None

        return substitute(rewrite(value, replaced), place)


def _store_all(buffers: dict[tirx.Var, tirx.Var], values: Sequence[tirx.Expr], at: tirx.Expr | None = None) -> None:
    """Store several values that may read each other's buffers."""
    where = [i64(0) if at is None else at]
    if len(values) > 1:
        values = [T.bind(value) for value in values]
    for buffer, value in zip(buffers.values(), values, strict=True):
        T.buffer_store(buffer, value, where)


def _both(a: tirx.Expr | None, b: tirx.Expr | None) -> tirx.Expr | None:
    return b if a is None else a if b is None else tirx.And(a, b)


def _overwrites(func: tirx.PrimFunc, stages: Sequence[Stage], rows: Rows) -> tuple[int, ...]:
    """Parameters that the only output may overwrite: the reductions read nothing of them but their own row."""
    *before, last = stages
    outputs = [buffer for stage in stages for buffer in stage.writes if any(buffer.same_as(p) for p in func.params)]
    if len(outputs) != 1 or last.is_reduction or not last.is_in_order:
        return ()
    foreign: set[tirx.Var] = set()
    leading = rows.axes[-1] == tuple(axis for axis, _ in long_axes(last))[: len(rows.extents)]
    for stage, own in zip(before, rows.axes, strict=False):
        for load in stage.reads():
            at = [i for i, size in zip(load.indices, load.source.ty.shape, strict=True) if as_int(size) != 1]
            of_row = len(at) >= len(own) and all(a.same_as(b) for a, b in zip(at, own, strict=False))
            if not leading or not of_row:
                foreign.add(load.source)
    return tuple(n for n in overwritable(func, last) if func.params[n] not in foreign)
