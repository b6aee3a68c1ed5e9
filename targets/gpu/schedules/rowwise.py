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
from greencc.targets.gpu.schedules.elementwise import overwritable
from greencc.targets.gpu.schedules.launch import barrier, below, ceildiv, launch, power_of_two, when
from greencc.targets.gpu.schedules.stages import Stage, inlined, read_stages, reads, updates_in_place
from greencc.targets.tir import as_int, i64, rewrite, split_index, substitute, uses_var, volume

_GROUP = 128
# Elements that a lane has at least, where that leaves enough lanes.
_PER_LANE = 4
# A reduction of no more elements than this has one lane.
_SHORT = 16
# With this many rows side by side there is enough work without lanes.
_MANY_ROWS = 1 << 14
_SYMBOLIC_LANES = 64
# Fewer rows than this leave most of a GPU idle: what has more elements than this in each is better done apart.
_FEW_ROWS, _WIDE = 16, 1 << 13


@dataclass(frozen=True)
class RowwiseRule:
    """See the module's docstring."""

    target: GpuTarget

    @property
    def name(self) -> str:
        """Name in reports."""
        return "gpu-rowwise"

    def apply(self, func: tirx.PrimFunc, constants: frozenset[int]) -> Scheduled | Declined:
        """Schedule a kernel whose reductions and outputs all are of the same rows, or decline."""
        stages = read_stages(func)
        if not stages:
            return Declined("it has no root block with plain blocks under it")
        if updates_in_place(func, stages):
            return Declined("it updates a parameter in place")
        left = inlined(stages, func.params)
        rows = find_rows(left)
        if isinstance(rows, str):
            return Declined(rows)
        overwrites = _overwrites(func, left, rows)
        body = rows_launch(left, rows, self.target, func.params)
        return Scheduled(func.with_body(body), self.name, overwrites=overwrites)


@dataclass(frozen=True)
class Rows:
    """The rows that stages have in common.

    Attributes:
        extents: sizes of the axes that tell rows apart.
        axes: for each stage, its axes that do, in the order of `extents`.
    """

    extents: tuple[tirx.Expr, ...]
    axes: tuple[tuple[tirx.Var, ...], ...]


def find_rows(stages: Sequence[Stage]) -> Rows | str:
    """The rows of stages, or why they have none in common. At least one stage must reduce."""
    if any(stage.is_opaque for stage in stages):
        return "a block is no plain store"
    first = next((stage for stage in stages if stage.is_reduction), None)
    if first is None:
        return "no reduction"
    kept = _long_axes(first)
    extents = tuple(extent for _, extent in kept)
    results: dict[tirx.Var, list[int | None]] = {}
    all_axes = []
    for stage in stages:
        axes = _row_axes(stage, results, extents)
        if axes is None:
            return "its reductions and outputs are of different rows"
        if stage.is_reduction and len(_long_axes(stage)) != len(axes):
            return "its reductions run over different axes"
        written = {buffer for other in stages for buffer in other.writes} - set(results) - set(stage.writes)
        if any(reads(stage, buffer) for buffer in written):
            return "a stage reads what another one stores"
        if stage.is_reduction and stage.is_in_order:
            for buffer in stage.writes:
                results[buffer] = [_position(axis, axes) for axis in stage.axes]
        elif any(reads(other, buffer) for buffer in stage.writes for other in stages if other is not stage):
            return "a stage reads what another one stores"
        if not stage.is_reduction and _is_too_much(stage, axes, volume(list(extents))):
            return "an output is too large for the workgroups of so few rows"
        all_axes.append(axes)
    return Rows(extents, tuple(all_axes))


def rows_launch(stages: Sequence[Stage], rows: Rows, target: GpuTarget, outputs: Sequence[tirx.Var]) -> tirx.Stmt:
    """One launch for stages with common rows; `outputs` are the buffers that others than these stages read."""
    count = volume(list(rows.extents))
    if as_int(count) == 0:
        return tirx.Evaluate(tirx.const(0, "int32"))
    side_by_side = _rows_are_neighbours(stages)
    lanes = _lanes(stages, count, side_by_side, target)
    per_group = max(1, min(_GROUP, target.gpu.max_threads) // lanes)
    known = as_int(count)
    if known is not None:
        per_group = min(per_group, power_of_two(known))
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
                single = {axis: i64(0) for axis in stage.axes if _position(axis, axes) is None}
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


def _long_axes(stage: Stage) -> list[tuple[tirx.Var, tirx.Expr]]:
    return [(axis, extent) for axis, extent in zip(stage.axes, stage.extents, strict=True) if as_int(extent) != 1]


def _position(axis: tirx.Var, axes: Sequence[tirx.Var]) -> int | None:
    return next((n for n, own in enumerate(axes) if own.same_as(axis)), None)


def _row_axes(
    stage: Stage, results: dict[tirx.Var, list[int | None]], extents: tuple[tirx.Expr, ...]
) -> tuple[tirx.Var, ...] | None:
    """Which axes of a stage number the rows: those by which it reads results, else its first."""
    found: dict[int, tirx.Var] = {}
    reads = [load for load in stage.reads() if load.source in results]
    for load in reads:
        for index, row in zip(load.indices, results[load.source], strict=True):
            if row is None:
                continue
            if not any(index.same_as(axis) for axis in stage.axes):
                return None
            if not found.setdefault(row, index).same_as(index):
                return None
    if not reads:
        found = {n: axis for n, (axis, _) in enumerate(_long_axes(stage)[: len(extents)])}
    if sorted(found) != list(range(len(extents))) or len(set(found.values())) != len(extents):
        return None
    sizes = dict(zip(stage.axes, stage.extents, strict=True))
    analyzer = sym.Analyzer()
    if not all(analyzer.can_prove_equal(sizes[found[n]], extent) for n, extent in enumerate(extents)):
        return None
    return tuple(found[n] for n in range(len(extents)))


def _is_too_much(stage: Stage, axes: Sequence[tirx.Var], rows: tirx.Expr) -> bool:
    """Whether a map has so much in each of so few rows that it deserves a launch of its own."""
    inner = [extent for axis, extent in zip(stage.axes, stage.extents, strict=True) if _position(axis, axes) is None]
    count, each = as_int(rows), as_int(volume(inner))
    return count is not None and count < _FEW_ROWS and each is not None and each > _WIDE


def _rows_are_neighbours(stages: Sequence[Stage]) -> bool:
    """Whether the first reduction reads elements of different rows next to each other."""
    first = next(stage for stage in stages if stage.is_reduction)
    own = first.writes
    for load in first.reads():
        if not load.indices or any(load.source.same_as(buffer) for buffer in own):
            continue
        if any(uses_var(load.indices[-1], axis) for axis in first.reduced):
            return False
    return bool(_long_axes(first))


def _lanes(stages: Sequence[Stage], count: tirx.Expr, side_by_side: bool, target: GpuTarget) -> int:
    """Threads for each row: a power of two."""
    reductions = [stage for stage in stages if stage.is_reduction]
    if any(elements_of(stage) is None for stage in reductions):
        return 1
    most = 1 << (min(target.gpu.max_threads, 256).bit_length() - 1)
    known = as_int(count)
    lengths = [as_int(volume(list(stage.reduced_extents))) for stage in reductions]
    longest = max((length for length in lengths if length is not None), default=0)
    symbolic = None in lengths
    if side_by_side:
        if known is not None and known >= _MANY_ROWS:
            return 1
        most = max(1, _GROUP // 32) if known is None or known >= 32 else most // power_of_two(known)
    if symbolic:
        return min(most, _SYMBOLIC_LANES)
    if longest <= _SHORT:
        return 1
    wanted = power_of_two(-(-longest // _PER_LANE))
    while wanted * len(reductions) * 16 * max(1, _GROUP // wanted) > target.gpu.shared_bytes:
        wanted //= 2
    return max(1, min(most, wanted))


def _overwrites(func: tirx.PrimFunc, stages: Sequence[Stage], rows: Rows) -> tuple[int, ...]:
    """Parameters that the only output may overwrite: the reductions read nothing of them but their own row."""
    *before, last = stages
    outputs = [buffer for stage in stages for buffer in stage.writes if any(buffer.same_as(p) for p in func.params)]
    if len(outputs) != 1 or last.is_reduction or not last.is_in_order:
        return ()
    foreign: set[tirx.Var] = set()
    leading = rows.axes[-1] == tuple(axis for axis, _ in _long_axes(last))[: len(rows.extents)]
    for stage, own in zip(before, rows.axes, strict=False):
        for load in stage.reads():
            at = [i for i, size in zip(load.indices, load.source.ty.shape, strict=True) if as_int(size) != 1]
            of_row = len(at) >= len(own) and all(a.same_as(b) for a, b in zip(at, own, strict=False))
            if not leading or not of_row:
                foreign.add(load.source)
    return tuple(n for n in overwritable(func, last) if func.params[n] not in foreign)


