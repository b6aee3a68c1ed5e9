"""Products of few rows: a workgroup makes some columns of all of them, its threads share out the depth.

Every element of B is read once and multiplied with all rows, so that the time is that of reading B. The threads' sums
are added up in shared memory, in two steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.targets.gpu.schedules.arithmetic import Arithmetic
from greencc.targets.gpu.schedules.epilogue import Epilogue
from greencc.targets.gpu.schedules.launch import barrier
from greencc.targets.gpu.schedules.sources import RowSource, Source
from greencc.targets.gpu.schedules.threads import divided, is_multiple, local, shared
from greencc.targets.tir import as_int, i64, ramp


@dataclass(frozen=True)
class GemvPlan:
    """How threads share a product out.

    Attributes:
        rows: how many a workgroup makes.
        across: threads along the columns, a power of 2.
        along: threads along the depth, a power of 2.
        wide: columns of a thread.
    """

    rows: int
    across: int
    along: int
    wide: int

    @property
    def threads(self) -> int:
        """Threads of a workgroup."""
        return self.across * self.along

    @property
    def columns(self) -> int:
        """Columns of a workgroup."""
        return self.across * self.wide

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a workgroup: sums are of 4 bytes."""
        return 4 * self.rows * self.columns * self.along


def plan_gemv(rows: int, b: Source, threads: int, shared_bytes: int) -> GemvPlan:
    """A plan for so many rows, with about so many threads and no more than so much shared memory."""
    # Neighbouring threads read 64 or 128 bytes that lie side by side, along the depth or along the columns.
    plan = GemvPlan(rows, 8, threads // 8, b.wide)
    if b.depth_first:
        plan = GemvPlan(rows, threads // 32, 32, b.wide)
    while plan.shared_bytes > shared_bytes and plan.along > 1:
        plan = GemvPlan(rows, plan.across, plan.along // 2, b.wide)
    return plan


class Gemv:
    """Emits one workgroup's columns."""

    def __init__(self, plan: GemvPlan, arithmetic: Arithmetic, depth: tirx.Expr, epilogue: Epilogue) -> None:
        self.plan, self.arithmetic, self.depth, self.epilogue = plan, arithmetic, depth, epilogue

    def emit(self, a: RowSource, b: Source, first: tuple[tirx.Expr, tirx.Expr], thread: tirx.Expr) -> None:
        """Emit the rows and columns that start at `first`."""
        plan = self.plan
        if b.depth_first:
            across, along = divided(thread, plan.along)
        else:
            along, across = divided(thread, plan.across)
        sums = local(plan.rows * plan.wide, self.arithmetic.sums)
        for i in range(plan.rows * plan.wide):
            T.buffer_store(sums, tirx.const(0, self.arithmetic.sums), [i64(i)])
        column = first[1] + across * i64(plan.wide)
        self._accumulate(a, b, (first[0], column), along, sums)
        self._store(*self._reduce(sums, (across, along), thread), first, thread)

    def _accumulate(
        self, a: RowSource, b: Source, place: tuple[tirx.Expr, tirx.Expr], along: tirx.Expr, sums: tirx.Var
    ) -> None:
        """Emit the thread's share of the depth: every `along`-th chunk."""
        plan, (row, column) = self.plan, place
        rows = [row + i64(r) if r else row for r in range(plan.rows)]
        if not is_multiple(a.limit, plan.rows):
            rows = [tirx.min(r, a.limit - i64(1)) for r in rows]
        kind, lanes, _ = b.raw
        held = local(lanes, kind)
        own_kind, own_lanes, _ = a.raw
        own = local(own_lanes, own_kind)
        with T.serial(i64(0), self._steps(along, b.deep)) as step:
            depth = (step * i64(plan.along) + along) * i64(b.deep)
            (vector,) = b.read(column, depth)
            T.buffer_store(held, vector, [ramp(i64(0), lanes)])
            weights = b.values([tirx.BufferLoad(held, [i64(i)]) for i in range(lanes)], column, depth)
            values = local(len(weights), self.arithmetic.element)
            for i, weight in enumerate(weights):
                T.buffer_store(values, weight, [i64(i)])
            for r, at in enumerate(rows):
                self._multiply_row(a, (at, depth), b.deep, (own, values, sums), r)

    def _multiply_row(
        self,
        a: RowSource,
        place: tuple[tirx.Expr, tirx.Expr],
        deep: int,
        memory: tuple[tirx.Var, tirx.Var, tirx.Var],
        r: int,
    ) -> None:
        """Emit the products of a row's elements with the columns' of a chunk."""
        (row, depth), (own, values, sums), wide = place, memory, self.plan.wide
        # A chunk of A may be longer or shorter than one of B: elements of A are read one by one, or all at once.
        lanes = a.raw[1]
        for d in range(deep):
            where = depth + i64(d) if d else depth
            if lanes == 1 or deep % a.deep:
                factor = a.element(row, where)
            else:
                if d % a.deep == 0:
                    (vector,) = a.read(row, where)
                    T.buffer_store(own, vector, [ramp(i64(0), lanes)])
                factor = a.values([tirx.BufferLoad(own, [i64(i)]) for i in range(lanes)], row, where)[d % a.deep]
            for w in range(wide):
                total, value = [i64(r * wide + w)], [i64(d * wide + w)]
                product = self.arithmetic.accumulate(
                    tirx.BufferLoad(sums, total), factor, tirx.BufferLoad(values, value)
                )
                T.buffer_store(sums, product, total)

    def _steps(self, along: tirx.Expr, deep: int) -> tirx.Expr:
        """Chunks of a thread."""
        depth = as_int(self.depth)
        if depth is not None and depth % (deep * self.plan.along) == 0:
            return i64(depth // (deep * self.plan.along))
        chunks = tirx.ceildiv(self.depth, i64(deep)) if depth is None else i64(-(-depth // deep))
        return tirx.floordiv(chunks - along + i64(self.plan.along - 1), i64(self.plan.along))

    def _reduce(self, sums: tirx.Var, own: tuple[tirx.Expr, tirx.Expr], thread: tirx.Expr) -> tuple[tirx.Var, int]:
        """Emit the addition of most of the threads' sums.

        Gives where they lie, as [parts, rows, columns], and how many parts are left to be added up.
        """
        plan, (across, along) = self.plan, own
        count = plan.rows * plan.columns
        memory = shared(count * plan.along, self.arithmetic.sums)
        places = [
            (r * plan.wide + w, i64(r * plan.columns + w) + across * i64(plan.wide))
            for r in range(plan.rows)
            for w in range(plan.wide)
        ]
        for i, place in places:
            T.buffer_store(memory, tirx.BufferLoad(sums, [i64(i)]), [along * i64(count) + place])
        barrier()
        # As many partial sums as there are threads.
        parts = 1 << max(0, (plan.threads // count).bit_length() - 1)
        if parts == 1 or parts >= plan.along:
            return memory, plan.along
        total = local(1, self.arithmetic.sums)
        last = i64(parts * count - 1)
        index = thread if parts * count == plan.threads else tirx.min(thread, last)
        T.buffer_store(total, tirx.BufferLoad(memory, [index]), [i64(0)])
        for number in range(1, plan.along // parts):
            other = tirx.BufferLoad(memory, [index + i64(number * parts * count)])
            T.buffer_store(total, tirx.BufferLoad(total, [i64(0)]) + other, [i64(0)])
        barrier()
        # Threads that are too many write what the last one writes.
        T.buffer_store(memory, tirx.BufferLoad(total, [i64(0)]), [index])
        barrier()
        return memory, parts

    def _store(self, memory: tirx.Var, parts: int, first: tuple[tirx.Expr, tirx.Expr], thread: tirx.Expr) -> None:
        """Emit the last addition and the tails, neighbouring threads' columns side by side."""
        plan, count = self.plan, self.plan.rows * self.plan.columns
        rounds = -(-count // plan.threads)
        for number in range(rounds):
            index = thread + i64(number * plan.threads) if number else thread
            row, column = divided(index, plan.columns)
            size = self.epilogue.product.rows.size
            inside = [] if is_multiple(size, plan.rows) else [first[0] + row < size]
            if count % plan.threads:
                inside.append(index < i64(count))

            def store(row: tirx.Expr = row, column: tirx.Expr = column, index: tirx.Expr = index) -> None:
                total = local(1, self.arithmetic.sums)
                T.buffer_store(total, tirx.BufferLoad(memory, [index]), [i64(0)])
                with T.serial(i64(1), i64(parts)) as part:
                    other = tirx.BufferLoad(memory, [part * i64(count) + index])
                    T.buffer_store(total, tirx.BufferLoad(total, [i64(0)]) + other, [i64(0)])
                value = tirx.BufferLoad(total, [i64(0)])
                self.epilogue.store(lambda _: value, first[0] + row, first[1] + column, 1, plan.columns)

            if not inside:
                store()
            else:
                with T.If(tirx.all(*inside)), T.Then():
                    store()
