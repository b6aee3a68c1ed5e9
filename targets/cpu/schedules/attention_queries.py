"""Emits what one task of an attention kernel does where the lanes of a vector are queries.

A task takes a panel of queries, transposed, so that a column of it is a few vectors. Keys and values are read where
they lie, an element at a time. So neither the size of a head nor the number of keys need fill vectors; and as each lane
has a query of its own, maxima and sums of the softmax never leave their lane. Sums are transposed back in the end.

    scores[key, q] = sum over d of queries[d, q] * k[key, d]
    scores[key, q] = exp(scores[key, q] - peak[q])
    sums[d, q]     = sum over keys of scores[key, q] * v[key, d]
    out[q, d]      = sums[d, q] / total[q]
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.cpu.intrinsics.math import exp_nonpositive
from greencc.targets.cpu.schedules.attention_plan import AttentionPlan
from greencc.targets.cpu.schedules.attention_task import (
    NEGATIVE_INFINITY,
    Block,
    Task,
    inverse_total,
    masks_rows,
    score_offset,
)
from greencc.targets.cpu.schedules.registers import Register, register, registers, transposed
from greencc.targets.tir import as_int, cover, i64, ramp, splat


@dataclass(frozen=True)
class _Panel(Task):
    """A task with its memory, float32, and its queries.

    Attributes:
        start: the panel's first query.
        queries: [D, width], times the scale.
        scores: [keys of a block, width].
        bias: like `scores`, the mask where each query has its own; else None.
        sums: [Dv, width], of weighted values.
        peaks, totals: for each vector of queries, the largest scores so far, and the sums of their powers.
    """

    start: tirx.Expr
    queries: tirx.Var
    scores: tirx.Var
    bias: tirx.Var | None
    sums: tirx.Var
    peaks: list[Register]
    totals: list[Register]

    def row(self, query: tirx.Expr) -> tirx.Expr:
        """The sequence's row of a query of the panel. Surplus ones repeat the last; they are not stored."""
        return tirx.min(self.start + query, self.rows - i64(1))


class QueryLanes:
    """Emits tasks.

    Args:
        attrs: the operator's attributes.
        plan: what was chosen.
        most_columns: columns of the values whose sums the registers hold.
        keys: of each sequence.
        mask: shape of the mask, or None.
    """

    def __init__(
        self,
        attrs: AttentionAttrs,
        plan: AttentionPlan,
        most_columns: int,
        keys: tirx.Expr,
        mask: list[tirx.Expr] | None,
    ) -> None:
        self.attrs, self.lanes, self.vectors, self.rows = attrs, plan.lanes, plan.vectors, plan.rows
        self.width = self.vectors * self.lanes
        self.columns = -(-attrs.value_dim // -(-attrs.value_dim // most_columns))
        # In blocks unless all keys surely fit into one.
        count = as_int(keys)
        self.blocked = count is None or count > plan.block
        self.block_keys = plan.block if count is None or self.blocked else count
        self.row_mask = masks_rows(mask)

    @property
    def task_rows(self) -> int:
        """Queries of a task."""
        return self.width

    def task(self, task: Task, block: tirx.Expr) -> None:
        """All of one panel of queries for one head."""
        panel = self._panel(task, block * i64(self.width))
        self._lay_out_queries(panel)
        seen = task.keys
        if self.attrs.causal:  # no query of the panel sees a key behind the one that its last sees last
            last = tirx.min(panel.start + i64(self.width), task.rows)
            seen = T.bind(tirx.max(tirx.min(last + task.keys - task.rows, task.keys), i64(0)))
        if self.blocked:
            self._clear(panel)
            with T.serial(i64(0), tirx.ceildiv(seen, i64(self.block_keys))) as number:
                first = number * i64(self.block_keys)
                self._keys(panel, Block(first, T.bind(tirx.min(seen - first, i64(self.block_keys)))))
            self._divide(panel)
        else:
            self._keys(panel, Block(i64(0), seen))
        self._store(panel)

    def _panel(self, task: Task, start: tirx.Expr) -> _Panel:
        count = -(-self.block_keys // self.rows) * self.rows
        queries = T.alloc_buffer((self.attrs.head_dim, self.width), "float32")
        scores = T.alloc_buffer((count, self.width), "float32")
        bias = T.alloc_buffer((count, self.width), "float32") if self.row_mask else None
        sums = T.alloc_buffer((self.attrs.value_dim, self.width), "float32")
        peaks, totals = ([register(self.lanes) for _ in range(self.vectors)] for _ in range(2))
        return _Panel(
            **vars(task), start=start, queries=queries, scores=scores, bias=bias, sums=sums, peaks=peaks, totals=totals
        )

    def _vector(self, v: int) -> tirx.Expr:
        return ramp(i64(v * self.lanes), self.lanes)

    # -- transpositions ------------------------------------------------------------------------------------

    def _lay_out_queries(self, panel: _Panel) -> None:
        head = i64(self.attrs.q_offset) + panel.head * i64(self.attrs.head_dim)

        def squares(column: tirx.Expr, size: int) -> None:
            scale = splat(tirx.const(self.attrs.scale, "float32"), size)
            with T.serial(i64(0), i64(self.width // size)) as part:
                rows = [panel.row(part * i64(size) + i64(i)) for i in range(size)]
                square = transposed([panel.at(panel.q, row, ramp(head + column, size)) * scale for row in rows])
                for i, item in enumerate(square):
                    T.buffer_store(panel.queries, item.value, [column + i64(i), ramp(part * i64(size), size)])

        cover(self.attrs.head_dim, self.lanes, squares)

    def _lay_out_bias(self, panel: _Panel, own: Block) -> None:
        mask, bias, size = panel.mask, panel.bias, self.lanes
        if mask is None or bias is None:
            return
        whole = tirx.floordiv(own.count, i64(size))
        with T.serial(i64(0), whole) as step, T.serial(i64(0), i64(self.vectors)) as part:
            rows = [panel.row(part * i64(size) + i64(i)) for i in range(size)]
            square = transposed([panel.masked(mask, row, own.first + step * i64(size), size) for row in rows])
            for i, item in enumerate(square):
                T.buffer_store(bias, item.value, [step * i64(size) + i64(i), ramp(part * i64(size), size)])
        with T.serial(i64(0), own.count - whole * i64(size)) as rest, T.serial(i64(0), i64(self.width)) as q:
            key = whole * i64(size) + rest
            T.buffer_store(bias, panel.masked(mask, panel.row(q), own.first + key), [key, q])

    def _store(self, panel: _Panel) -> None:
        """The result of the panel's queries."""
        head = panel.head * i64(self.attrs.value_dim)

        def squares(column: tirx.Expr, size: int) -> None:
            with T.serial(i64(0), i64(self.width // size)) as part:
                place = ramp(part * i64(size), size)
                square = transposed([tirx.BufferLoad(panel.sums, [column + i64(i), place]) for i in range(size)])
                for i, item in enumerate(square):
                    row = panel.start + part * i64(size) + i64(i)
                    with T.If(row < panel.rows), T.Then():
                        where = [panel.batch, panel.first + row, ramp(head + column, size)]
                        T.buffer_store(panel.out, item.value, where)

        cover(self.attrs.value_dim, self.lanes, squares)

    # -- what queries keep from block to block -------------------------------------------------------------

    def _clear(self, panel: _Panel) -> None:
        """No key has been seen."""
        for peak, total in zip(panel.peaks, panel.totals, strict=True):
            peak.fill(NEGATIVE_INFINITY)
            total.fill(0)
        with T.serial(i64(0), i64(self.attrs.value_dim)) as d:
            for v in range(self.vectors):
                T.buffer_store(panel.sums, splat(tirx.const(0.0, "float32"), self.lanes), [d, self._vector(v)])

    def _divide(self, panel: _Panel) -> None:
        """All keys have been seen."""
        for peak, total in zip(panel.peaks, panel.totals, strict=True):
            total.store(inverse_total(self.attrs, peak.value, total.value, self.lanes))
        with T.serial(i64(0), i64(self.attrs.value_dim)) as d:
            for v, total in enumerate(panel.totals):
                where = [d, self._vector(v)]
                T.buffer_store(panel.sums, tirx.BufferLoad(panel.sums, where) * total.value, where)

    # -- a block of keys -----------------------------------------------------------------------------------

    def _keys(self, panel: _Panel, own: Block) -> None:
        """What a block of keys brings to the queries."""
        self._lay_out_bias(panel, own)
        factors = self._peaks(panel, self._scores(panel, own))
        self._softmax(panel, own, factors)
        self._values(panel, own, factors)

    def _scores(self, panel: _Panel, own: Block) -> list[Register]:
        """Scores against a block's keys; returns the largest of each query."""
        highest = [register(self.lanes) for _ in range(self.vectors)]
        for item in highest:
            item.fill(NEGATIVE_INFINITY)
        known = as_int(own.count)
        if known is None:
            with T.serial(i64(0), tirx.ceildiv(own.count, i64(self.rows))) as step:
                places = [step * i64(self.rows) + i64(r) for r in range(self.rows)]
                # Surplus keys of the last tile repeat the last one: that changes no maximum, and they aren't read.
                keys = [tirx.min(place, own.count - i64(1)) for place in places]
                self._tile(panel, own, places, keys, highest)
            return highest
        whole = known // self.rows
        with T.serial(i64(0), i64(whole)) as step:
            places = [step * i64(self.rows) + i64(r) for r in range(self.rows)]
            self._tile(panel, own, places, places, highest)
        rest = [i64(key) for key in range(whole * self.rows, known)]
        if rest:
            self._tile(panel, own, rest, rest, highest)
        return highest

    def _tile(
        self,
        panel: _Panel,
        own: Block,
        places: list[tirx.Expr],
        keys: list[tirx.Expr],
        highest: list[Register],
    ) -> None:
        """Scores against a few keys of the block, stored at `places`."""
        head = i64(self.attrs.k_offset) + panel.kv_head(self.attrs) * i64(self.attrs.head_dim)
        acc = [registers(self.vectors, self.lanes) for _ in keys]
        with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
            queries = [tirx.BufferLoad(panel.queries, [d, self._vector(v)]) for v in range(self.vectors)]
            for key, sums in zip(keys, acc, strict=True):
                value = splat(panel.at(panel.k, own.first + key, head + d), self.lanes)
                for item, query in zip(sums, queries, strict=True):
                    item.store(item.value + value * query)
        for place, key, sums in zip(places, keys, acc, strict=True):
            for v, item in enumerate(sums):
                self._add_mask(panel, own, key, v, item)
                T.buffer_store(panel.scores, item.value, [place, self._vector(v)])
                highest[v].store(tirx.max(highest[v].value, item.value))

    def _add_mask(self, panel: _Panel, own: Block, key: tirx.Expr, v: int, score: Register) -> None:
        """Add to a vector of scores what is added to them."""
        lanes = self.lanes
        if panel.bias is not None:
            score.store(score.value + tirx.BufferLoad(panel.bias, [key, self._vector(v)]))
        elif panel.mask is not None:
            score.store(score.value + splat(panel.masked(panel.mask, i64(0), own.first + key), lanes))
        if self.attrs.causal:
            newest = tirx.Cast("int32", panel.start + i64(v * lanes) + panel.keys - panel.rows)
            seen = splat(tirx.Cast("int32", own.first + key), lanes) <= tirx.Ramp(newest, tirx.const(1, "int32"), lanes)
            low = splat(tirx.const(NEGATIVE_INFINITY, "float32"), lanes)
            score.store(tirx.Select(seen, score.value, low))

    def _peaks(self, panel: _Panel, highest: list[Register]) -> list[Register]:
        """Raise the panel's peaks; returns what the sums of earlier blocks are multiplied with.

        That is exp(old largest - new largest), which scales them to the largest score so far.
        """
        factors = [register(self.lanes) for _ in range(self.vectors)]
        for peak, new, factor in zip(panel.peaks, highest, factors, strict=True):
            if self.blocked:
                new.store(tirx.max(new.value, peak.value))
                factor.store(exp_nonpositive(peak.value - score_offset(new.value, self.lanes)))
            peak.store(new.value)
        return factors

    def _softmax(self, panel: _Panel, own: Block, factors: list[Register]) -> None:
        """Turn scores into exp(score - max).

        Where all keys are one block, factors become what the weighted values are multiplied with.
        """
        for v, (peak, running, factor) in enumerate(zip(panel.peaks, panel.totals, factors, strict=True)):
            offset, (total,) = register(self.lanes), registers(1, self.lanes)
            offset.store(score_offset(peak.value, self.lanes))
            with T.serial(i64(0), own.count) as key:
                where = [key, self._vector(v)]
                power = exp_nonpositive(tirx.BufferLoad(panel.scores, where) - offset.value)
                T.buffer_store(panel.scores, power, where)
                total.store(total.value + tirx.BufferLoad(panel.scores, where))
            if self.blocked:
                running.store(running.value * factor.value + total.value)
            else:
                factor.store(inverse_total(self.attrs, peak.value, total.value, self.lanes))

    def _values(self, panel: _Panel, own: Block, factors: list[Register]) -> None:
        """Probabilities times values, a few columns of the head at a time."""
        whole, rest = divmod(self.attrs.value_dim, self.columns)
        with T.serial(i64(0), i64(whole)) as step:
            self._value_tile(panel, own, factors, [step * i64(self.columns) + i64(c) for c in range(self.columns)])
        if rest:
            columns = [i64(whole * self.columns + c) for c in range(rest)]
            self._value_tile(panel, own, factors, columns)

    def _value_tile(self, panel: _Panel, own: Block, factors: list[Register], columns: list[tirx.Expr]) -> None:
        head = i64(self.attrs.v_offset) + panel.kv_head(self.attrs) * i64(self.attrs.value_dim)
        acc = [registers(self.vectors, self.lanes) for _ in columns]
        with T.serial(i64(0), own.count) as key:
            weights = [tirx.BufferLoad(panel.scores, [key, self._vector(v)]) for v in range(self.vectors)]
            for column, sums in zip(columns, acc, strict=True):
                value = splat(panel.at(panel.v, own.first + key, head + column), self.lanes)
                for item, weight in zip(sums, weights, strict=True):
                    item.store(item.value + value * weight)
        for column, sums in zip(columns, acc, strict=True):
            for v, (item, factor) in enumerate(zip(sums, factors, strict=True)):
                where = [column, self._vector(v)]
                if self.blocked:
                    before = tirx.BufferLoad(panel.sums, where)
                    T.buffer_store(panel.sums, before * factor.value + item.value, where)
                else:
                    T.buffer_store(panel.sums, item.value * factor.value, where)
