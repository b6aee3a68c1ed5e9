"""Tiles of a matrix product: a workgroup makes one of the result, from tiles of both factors in shared memory.

    for each step along the depth:
        barrier; both factors' tiles: registers -> shared memory; barrier
        read the next step's tiles into registers
        for each k of the step: the thread's rows times its columns, added to sums in registers

Where tiles are few, a step has several slices along the depth, each with threads of its own, whose sums are added up
behind the loop. A thread has its rows and columns in groups of four that lie apart, so that neighbouring threads read
neighbouring vectors. Rows behind the last one repeat it and aren't stored; behind the end of the depth both factors
are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.errors import GreenccError
from greencc.targets.gpu.schedules.arithmetic import Arithmetic
from greencc.targets.gpu.schedules.epilogue import Epilogue
from greencc.targets.gpu.schedules.launch import barrier
from greencc.targets.gpu.schedules.matmul_plan import PADDING, TilePlan
from greencc.targets.gpu.schedules.sources import Source
from greencc.targets.gpu.schedules.threads import divided, is_multiple, local, shared
from greencc.targets.tir import as_int, i64, ramp, splat

GROUP = 4
"""Neighbouring rows or columns that a thread has."""


@dataclass(frozen=True)
class _Side:
    """One factor's tile: rows of A or columns of B.

    Attributes:
        source: the factor.
        size: rows (columns) of the tile.
        own: those of a thread.
        index: the thread's number among those along this side.
        first: the tile's first row (column).
    """

    source: Source
    size: int
    own: int
    index: tirx.Expr
    first: tirx.Expr

    @property
    def group(self) -> int:
        """Neighbours that a thread has."""
        return min(self.own, GROUP)

    def place(self, number: tirx.Expr | int) -> tirx.Expr:
        """Where in the tile the thread's row (column) is that starts a group."""
        apart = self.size // (self.own // self.group)
        start = self.index * i64(self.group)
        if isinstance(number, int):
            return start + i64(number * apart) if number else start
        return start + number * i64(apart)


class Tiles:
    """Emits one workgroup's tile."""

    def __init__(self, plan: TilePlan, arithmetic: Arithmetic, depth: tirx.Expr, epilogue: Epilogue) -> None:
        self.plan, self.arithmetic, self.depth, self.epilogue = plan, arithmetic, depth, epilogue

    def emit(self, a: Source, b: Source, first: tuple[tirx.Expr, tirx.Expr], thread: tirx.Expr) -> None:
        """Emit the tile whose first row and column are given."""
        plan, arithmetic = self.plan, self.arithmetic
        part, own_thread = (i64(0), thread) if plan.slices == 1 else divided(thread, plan.slice_threads)
        row_index, column_index = divided(own_thread, plan.columns // plan.thread_columns)
        sides = (
            _Side(a, plan.rows, plan.thread_rows, row_index, first[0]),
            _Side(b, plan.columns, plan.thread_columns, column_index, first[1]),
        )
        staged = [_Staged(side, plan, self.depth, (part, own_thread), arithmetic.element) for side in sides]
        sums = local(plan.thread_rows * plan.thread_columns, arithmetic.sums)
        for i in range(plan.thread_rows * plan.thread_columns):
            T.buffer_store(sums, tirx.const(0, arithmetic.sums), [i64(i)])
        own = [local(side.own, arithmetic.element) for side in sides]
        step_depth, count = plan.depth * plan.slices, as_int(self.depth)
        steps = tirx.ceildiv(self.depth, i64(step_depth)) if count is None else i64(-(-count // step_depth))
        for stage in staged:
            stage.fetch(i64(0))
        with T.serial(i64(0), steps) as step:
            barrier()
            for stage in staged:
                stage.write(step)
            barrier()
            if as_int(steps) != 1:
                with T.If(step + i64(1) < steps), T.Then():
                    for stage in staged:
                        stage.fetch(step + i64(1))
            with T.serial(i64(0), i64(plan.depth)) as k:
                for stage, values in zip(staged, own, strict=True):
                    stage.load(values, k)
                self._multiply(sums, own)
        if plan.slices == 1:
            self._store(sums, sides)
            return
        self._add_slices(sums, part, own_thread)
        with T.If(part < i64(1)), T.Then():
            self._store(sums, sides)

    def _add_slices(self, sums: tirx.Var, part: tirx.Expr, thread: tirx.Expr) -> None:
        """Emit the addition of all slices' sums to those of the first one, a row of each thread at a time."""
        plan, kind = self.plan, self.arithmetic.sums
        columns = plan.thread_columns
        memory = shared((plan.slices - 1) * plan.slice_threads * columns, kind)
        for r in range(plan.thread_rows):
            barrier()
            with T.If(part > i64(0)), T.Then():
                for c in range(columns):
                    value = tirx.BufferLoad(sums, [i64(r * columns + c)])
                    T.buffer_store(memory, value, [self._slice_place(part - i64(1), c, thread)])
            barrier()
            with T.If(part < i64(1)), T.Then():
                for c in range(columns):
                    where = [i64(r * columns + c)]
                    for other in range(plan.slices - 1):
                        value = tirx.BufferLoad(memory, [self._slice_place(i64(other), c, thread)])
                        T.buffer_store(sums, tirx.BufferLoad(sums, where) + value, where)

    def _slice_place(self, part: tirx.Expr, column: int, thread: tirx.Expr) -> tirx.Expr:
        """Where a thread's sum of another slice lies: neighbouring threads' side by side."""
        return (part * i64(self.plan.thread_columns) + i64(column)) * i64(self.plan.slice_threads) + thread

    def _multiply(self, sums: tirx.Var, own: list[tirx.Var]) -> None:
        a, b = own
        for r in range(self.plan.thread_rows):
            for c in range(self.plan.thread_columns):
                where = [i64(r * self.plan.thread_columns + c)]
                factors = tirx.BufferLoad(a, [i64(r)]), tirx.BufferLoad(b, [i64(c)])
                T.buffer_store(sums, self.arithmetic.accumulate(tirx.BufferLoad(sums, where), *factors), where)

    def _store(self, sums: tirx.Var, sides: tuple[_Side, _Side]) -> None:
        """Emit the tails: one by one, or a loop over a copy of the sums, which then stay in registers themselves."""
        plan, (rows, columns) = self.plan, sides
        total = plan.thread_rows * plan.thread_columns
        groups = plan.thread_columns // columns.group
        if self.epilogue.is_short(total):
            for r in range(plan.thread_rows):
                for g in range(groups):
                    start = r * plan.thread_columns + g * columns.group
                    self._store_group(sums, i64(start), sides, (divmod(r, rows.group), g))
            return
        held = local(total, self.arithmetic.sums)
        for i in range(total):
            T.buffer_store(held, tirx.BufferLoad(sums, [i64(i)]), [i64(i)])
        with T.serial(i64(0), i64(plan.thread_rows * groups)) as number:
            r, g = divided(number, groups)
            self._store_group(held, number * i64(columns.group), sides, (divided(r, rows.group), g))

    def _store_group(
        self,
        sums: tirx.Var,
        start: tirx.Expr,
        sides: tuple[_Side, _Side],
        which: tuple[tuple[tirx.Expr, tirx.Expr] | tuple[int, int], tirx.Expr | int],
    ) -> None:
        rows, columns = sides
        (row_group, inside), column_group = which
        offset = i64(inside) if isinstance(inside, int) else inside
        row = rows.first + rows.place(row_group) + offset
        column = columns.first + columns.place(column_group)

        def store() -> None:
            def total(i: int) -> tirx.Expr:
                return tirx.BufferLoad(sums, [start + i64(i)])

            self.epilogue.store(total, row, column, columns.group, self.plan.columns)

        size = self.epilogue.product.rows.size
        if is_multiple(size, self.plan.rows):
            store()
        else:
            with T.If(row < size), T.Then():
                store()


class _Staged:
    """The way of a factor's tile from memory through registers to shared memory."""

    def __init__(
        self, side: _Side, plan: TilePlan, depth: tirx.Expr, thread: tuple[tirx.Expr, tirx.Expr], element: str
    ) -> None:
        source = side.source
        self.side, self.depth, self.step_depth, self.slices = side, depth, plan.depth, plan.slices
        if plan.depth % source.deep or side.size % source.wide:
            raise GreenccError(f"a tile of {plan.depth} x {side.size} isn't made of {source.deep} x {source.wide}")
        chunks = (plan.depth // source.deep) * (side.size // source.wide)
        # Where threads are more than chunks, the last ones have none.
        self.each = -(-chunks // plan.slice_threads)
        self.is_even = chunks % plan.slice_threads == 0
        self.chunks, self.threads = chunks, plan.slice_threads
        self.part, self.thread = thread
        kind, lanes, count = source.raw
        self.held = [local(lanes * count, kind) for _ in range(self.each)]
        self.stride = side.size + PADDING
        self.element = element
        size = plan.depth * self.stride
        self.memory = shared(size * plan.slices, element)
        self.start = self.part * i64(size)

    def fetch(self, step: tirx.Expr) -> None:
        """Emit the reading of a step's tile into registers."""
        source = self.side.source
        kind, lanes, _ = source.raw

        def keep(number: int, vectors: list[tirx.Expr]) -> None:
            for i, vector in enumerate(vectors):
                T.buffer_store(self.held[number], vector, [ramp(i64(i * lanes), lanes)])

        def read(number: int) -> None:
            major, depth = self._memory_place(number, step)
            vectors = source.read(major, depth)
            if is_multiple(self.depth, self.step_depth * self.slices):
                keep(number, vectors)
                return
            with T.If(depth < self.depth):
                with T.Then():
                    keep(number, vectors)
                with T.Else():
                    keep(number, [splat(tirx.const(0, kind), lanes)] * len(vectors))

        self._each(read)

    def write(self, step: tirx.Expr) -> None:
        """Emit what was read to shared memory, in the form that is multiplied, in vectors of the chunk's width."""
        source = self.side.source
        kind, lanes, count = source.raw
        wide = source.wide

        def write(number: int) -> None:
            inside, k = self._place(number)
            raw = [tirx.BufferLoad(self.held[number], [i64(i)]) for i in range(lanes * count)]
            is_whole = source.deep == count == 1 and kind == self.element
            values = [] if is_whole else source.values(raw, *self._memory_place(number, step))
            for d in range(source.deep):
                where = [ramp(self.start + (k + i64(d) if d else k) * i64(self.stride) + inside, wide)]
                if is_whole:
                    value = tirx.BufferLoad(self.held[number], [ramp(i64(0), wide)])
                elif wide == 1:
                    value = values[d]
                else:
                    line = local(wide, self.element)
                    for w in range(wide):
                        T.buffer_store(line, values[d * wide + w], [i64(w)])
                    value = tirx.BufferLoad(line, [ramp(i64(0), wide)])
                T.buffer_store(self.memory, value, where)

        self._each(write)

    def load(self, values: tirx.Var, k: tirx.Expr) -> None:
        """Emit the reading of the thread's rows (columns) at one k."""
        side = self.side
        for number in range(side.own // side.group):
            where = self.start + k * i64(self.stride) + side.place(number)
            vector = tirx.BufferLoad(self.memory, [ramp(where, side.group)])
            T.buffer_store(values, vector, [ramp(i64(number * side.group), side.group)])

    def _each(self, body: Callable[[int], None]) -> None:
        for number in range(self.each):
            if self.is_even or number + 1 < self.each:
                body(number)
            else:
                with T.If(self.thread < i64(self.chunks - number * self.threads)), T.Then():
                    body(number)

    def _place(self, number: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Row (column) and depth of the thread's chunk in the tile."""
        source = self.side.source
        chunk = self.thread + i64(number * self.threads)
        if source.depth_first:
            major, k = divided(chunk, self.step_depth // source.deep)
        else:
            k, major = divided(chunk, self.side.size // source.wide)
        return major * i64(source.wide), k * i64(source.deep)

    def _memory_place(self, number: int, step: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """Row (column) and depth of the thread's chunk."""
        inside, k = self._place(number)
        first = step if self.slices == 1 else step * i64(self.slices) + self.part
        return self.side.first + inside, first * i64(self.step_depth) + k
