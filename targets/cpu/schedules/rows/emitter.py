"""Emits passes over rows."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.targets.cpu.schedules.registers import Register, register, stack_buffer
from greencc.targets.cpu.schedules.rows.form import Rows, Stage
from greencc.targets.cpu.schedules.rows.plan import Passing
from greencc.targets.tir import as_int, i64, rewrite, splat, split_index, volume

Env = dict[tirx.Var, tirx.Expr]


def kept_stages(form: Rows) -> list[Stage]:
    """The stages whose rows are read by later passes."""
    passes = form.passes()
    return [
        stage
        for i, group in enumerate(passes)
        for stage in group
        if stage.inner
        and stage.reduction is None
        and any(later.reads(stage.buffer) for other in passes[i + 1 :] for later in other)
    ]


class RowEmitter:
    """Emits one kernel."""

    def __init__(self, func: tirx.PrimFunc, form: Rows, passing: Passing) -> None:
        self.func, self.form, self.passing = func, form, passing
        self.params: Env = {}
        # One value for each row; whole rows; vectors of the place that is being computed.
        self.scalars: dict[tirx.Var, tirx.Var] = {}
        self.rows: dict[tirx.Var, tirx.Var] = {}
        self.vectors: dict[tirx.Var, tirx.Var] = {}
        self.place: list[tirx.Expr] = []

    def emit(self) -> tirx.PrimFunc:
        """The scheduled PrimFunc."""
        chunk = self.passing.chunk
        with IRBuilder() as ib, T.prim_func(s_tir=True):
            for param in self.func.params:
                self.params[param] = T.arg(param.name, param)
            T.func_attr({"tirx.noalias": True})
            rows = volume(list(self.form.extents))
            tasks = tvm.sym.Analyzer().simplify(tirx.ceildiv(rows, i64(chunk)))
            loop = T.serial if as_int(tasks) == 1 else T.parallel
            # TVM looks for reshapes among kernels of one operand, and expects a block.
            with T.sblock("root"), loop(i64(0), tasks) as task:
                if self.passing.kept == "own":
                    for stage in kept_stages(self.form):
                        size = volume(list(stage.extents))
                        self.rows[stage.buffer] = T.alloc_buffer((size,), "float32", scope="local")
                first = task * i64(chunk)
                with T.serial(i64(0), tirx.min(i64(chunk), rows - first)) as step:
                    self.place = split_index(first + step, self.form.extents)
                    for stages in self.form.passes():
                        self._pass(stages)
        return ib.get()

    def _pass(self, stages: list[Stage]) -> None:
        """Emit one pass over the row, or the computation of a value for it."""
        if not stages[0].inner:
            (stage,) = stages
            self._result(stage, self._value(stage, self._env(stage), i64(0)))
            return
        chains, lanes = self.passing.chains, self.passing.lanes
        sums: dict[tirx.Var, list[Register]] = {}
        for stage in stages:
            if stage.reduction is not None:
                sums[stage.buffer] = [register(lanes) for _ in range(chains)]
                for item in sums[stage.buffer]:
                    item.store(splat(stage.reduction.start, lanes))

        def vector(at: tirx.Expr, lanes: int, chain: int) -> None:
            self._vector(stages, at, lanes, {buffer: items[chain] for buffer, items in sums.items()})

        self._run(volume(list(stages[0].extents)), vector)
        for stage in stages:
            if stage.reduction is not None:
                items = sums[stage.buffer]
                while len(items) > 1:
                    half = len(items) // 2
                    for a, b in zip(items[:half], items[half:], strict=True):
                        a.store(stage.reduction.combine(a.value, b.value))
                    items = items[:half]
                items[0].reduce(stage.reduction.combine)
                self._result(stage, items[0].lane(0))

    def _run(self, width: tirx.Expr, body: Callable[[tirx.Expr, int, int], None]) -> None:
        """Emit `body(place, lanes, chain)` for vectors that fill a run of `width`, each place once."""
        chains, lanes, count = self.passing.chains, self.passing.lanes, as_int(width)
        block = chains * lanes
        full = tirx.floordiv(width, i64(block)) if count is None else i64(count // block)
        if count is None or count >= block:
            with T.serial(i64(0), full) as step:
                for chain in range(chains):
                    body(step * i64(block) + i64(chain * lanes), lanes, chain)
        if count is None:
            whole = tirx.floordiv(width, i64(lanes))
            with T.serial(i64(0), whole - full * i64(chains)) as step:
                body((full * i64(chains) + step) * i64(lanes), lanes, 0)
            with T.serial(i64(0), width - whole * i64(lanes)) as step:
                body(whole * i64(lanes) + step, 1, 0)
            return
        at, chain = count // block * block, 0
        while at < count:
            size = min(lanes, 1 << ((count - at).bit_length() - 1))
            body(i64(at), size, chain)
            at, chain = at + size, (chain + 1) % chains

    def _vector(self, stages: list[Stage], at: tirx.Expr, lanes: int, sums: dict[tirx.Var, Register]) -> None:
        """Emit the stages of a pass for `lanes` neighbouring places."""
        self.vectors = {stage.buffer: stack_buffer(lanes) for stage in stages if stage.reduction is None}
        for stage in stages:
            if lanes == 1:
                self._places(stage, at, i64(0), sums)
            else:
                with T.vectorized(i64(0), i64(lanes)) as lane:
                    self._places(stage, at + lane, lane, sums)
        self.vectors = {}

    def _places(self, stage: Stage, at: tirx.Expr, lane: tirx.Expr, sums: dict[tirx.Var, Register]) -> None:
        env = self._env(stage, at)
        value = self._value(stage, env, lane)
        if stage.reduction is not None:
            item = sums[stage.buffer]
            T.buffer_store(item.buffer, stage.reduction.combine(item.lane(lane), value), [lane])
            return
        vector = self.vectors[stage.buffer]
        T.buffer_store(vector, value, [lane])
        kept = tirx.BufferLoad(vector, [lane])
        if stage.buffer in self.params:
            T.buffer_store(self.params[stage.buffer], kept, self._indices(stage, env))
        elif stage.buffer in self.rows:
            T.buffer_store(self.rows[stage.buffer], kept, [at])
        elif self.passing.kept == "output" and any(stage.buffer.same_as(s.buffer) for s in kept_stages(self.form)):
            result = self.form.stages[-1]
            T.buffer_store(self.params[result.buffer], kept, self._indices(result, self._env(result, at)))

    def _result(self, stage: Stage, value: tirx.Expr) -> None:
        """Emit the row's one value of a stage."""
        if stage.buffer in self.params:
            T.buffer_store(self.params[stage.buffer], value, self._indices(stage, self._env(stage)))
            return
        self.scalars[stage.buffer] = stack_buffer(1)
        T.buffer_store(self.scalars[stage.buffer], value, [i64(0)])

    def _env(self, stage: Stage, at: tirx.Expr | None = None) -> Env:
        """What the variables of a stage are at place `at` of the row: the last one counts through all places."""
        env: Env = {var: i64(0) for var in (*stage.units, *stage.inner)}
        env.update(zip(stage.rows, self.place, strict=True))
        return env if at is None else {**env, stage.inner[-1]: at}

    def _indices(self, stage: Stage, env: Env) -> list[tirx.Expr]:
        return [env[index] for index in stage.indices]

    def _value(self, stage: Stage, env: Env, lane: tirx.Expr) -> tirx.Expr:
        """The value of a stage where its variables are those of `env`."""

        def replace(node: tirx.Expr) -> tirx.Expr | None:
            if isinstance(node, tirx.Var):
                return env.get(node)
            if not isinstance(node, ir.TensorLoad):
                return None
            if node.source in self.scalars:
                return tirx.BufferLoad(self.scalars[node.source], [i64(0)])
            if node.source in self.vectors:
                return tirx.BufferLoad(self.vectors[node.source], [lane])
            if node.source in self.rows:
                return tirx.BufferLoad(self.rows[node.source], [env[stage.inner[-1]]])
            if node.source in self.params:
                return tirx.BufferLoad(self.params[node.source], [rewrite(i, replace) for i in node.indices])
            result = self.form.stages[-1]
            place = self._indices(result, self._env(result, env[stage.inner[-1]]))
            return tirx.BufferLoad(self.params[result.buffer], place)

        return rewrite(stage.value, replace)
