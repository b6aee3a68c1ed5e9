"""Emits what one task of an attention kernel does where the lanes of a vector are keys.

A task lays a block of the head's keys out in column panels (like a packed weight), and its values in a row, and then
takes a few query rows at a time through scores, mask, softmax and the product with the values, all of it in the nearest
caches. (In the projection, the rows of a head lie a multiple of 512 bytes apart, so that they would share a few sets of
the first cache and drive each other out.)
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
from greencc.targets.cpu.schedules.registers import Register, register, registers, stack_buffer, transposed
from greencc.targets.tir import as_int, i64, ramp, splat


@dataclass(frozen=True)
class _Running:
    """What the query rows of a task keep from block to block, float32.

    Attributes:
        peaks: [task_rows], the largest score so far.
        totals: [task_rows], the sum of powers so far.
        values: [task_rows, Dv], the sum of weighted values so far.
    """

    peaks: tirx.Var
    totals: tirx.Var
    values: tirx.Var


@dataclass(frozen=True)
class _Scratch:
    """A task's memory, float32.

    Attributes:
        keys, values: a block's keys in panels [panels, D, width], and its values [keys, Dv].
        scores: [rows of a tile, keys of a block].
        highest: [rows of a tile, lanes], what each lane's scores have as their maximum.
        bias: [keys of a block], what is added to the scores of all rows; None where there is nothing to add.
        running: None where all keys are one block.
    """

    keys: tirx.Var
    values: tirx.Var
    scores: tirx.Var
    highest: tirx.Var
    bias: tirx.Var | None
    running: _Running | None


@dataclass(frozen=True)
class _Work(Task):
    """A task with the memory that lies between its operands and its result."""

    scratch: _Scratch


class KeyLanes:
    """Emits tasks.

    Args:
        attrs: the operator's attributes.
        plan: what was chosen.
        most_vectors: of values whose sums a tile of registers holds.
        keys: of each sequence.
        mask: shape of the mask, or None.
        exact: whether every sequence has so many keys; otherwise at most so many.
    """

    def __init__(
        self,
        attrs: AttentionAttrs,
        plan: AttentionPlan,
        most_vectors: int,
        keys: tirx.Expr,
        mask: list[tirx.Expr] | None,
        exact: bool = True,
    ) -> None:
        self.attrs, self.lanes, self.tile_rows, self.vectors = attrs, plan.lanes, plan.rows, plan.vectors
        self.task_rows = plan.task_rows
        self.width = self.vectors * self.lanes
        self.value_lanes = self.lanes
        while attrs.value_dim % self.value_lanes:
            self.value_lanes //= 2
        # As few passes over the scores as there are, and those of equal width.
        parts = attrs.value_dim // self.value_lanes
        self.value_vectors = -(-parts // -(-parts // most_vectors))
        # In blocks unless all keys surely fit into one.
        count = as_int(keys)
        self.blocked = count is None or count > plan.block
        self.panels = -(-(plan.block if count is None or self.blocked else count) // self.width)
        # A mask that is the same for all rows is added with the scale, another one in a pass of its own.
        self.row_mask = masks_rows(mask)
        surplus = not exact or count is None or self.blocked or bool(count % self.width)
        self.has_bias = not self.row_mask and (mask is not None or (surplus and not attrs.causal))

    @property
    def block_keys(self) -> int:
        """Keys of a whole block."""
        return self.panels * self.width

    def _scratch(self) -> _Scratch:
        """Emit the allocation of a task's memory."""
        keys = T.alloc_buffer((self.panels, self.attrs.head_dim, self.width), "float32")
        values = T.alloc_buffer((self.block_keys, self.attrs.value_dim), "float32")
        scores = T.alloc_buffer((self.tile_rows, self.block_keys), "float32")
        highest = T.alloc_buffer((self.tile_rows, self.lanes), "float32")
        bias = T.alloc_buffer((self.block_keys,), "float32") if self.has_bias else None
        if not self.blocked:
            return _Scratch(keys, values, scores, highest, bias, None)
        peaks, totals = (T.alloc_buffer((self.task_rows,), "float32") for _ in range(2))
        sums = T.alloc_buffer((self.task_rows, self.attrs.value_dim), "float32")
        return _Scratch(keys, values, scores, highest, bias, _Running(peaks, totals, sums))

    def task(self, task: Task, block: tirx.Expr) -> None:
        """All query rows of one block for one head."""
        self._rows(_Work(**vars(task), scratch=self._scratch()), block)

    def _rows(self, task: _Work, block: tirx.Expr) -> None:
        kv_head = task.kv_head(self.attrs)
        first = block * i64(self.task_rows)
        count = tirx.min(i64(self.task_rows), task.rows - first)
        running = task.scratch.running
        if running is None:
            self._keys(task, Block(i64(0), task.keys), kv_head, first, count)
            return
        self._clear(running)
        blocks = tirx.ceildiv(task.keys, i64(self.block_keys))
        if self.attrs.causal:  # no row of the task sees a key behind the one that its last row sees last
            seen = first + count + task.keys - task.rows
            blocks = tirx.max(tirx.min(blocks, tirx.ceildiv(seen, i64(self.block_keys))), i64(0))
        with T.serial(i64(0), blocks) as number:
            start = number * i64(self.block_keys)
            own = Block(start, tirx.min(task.keys - start, i64(self.block_keys)))
            self._keys(task, own, kv_head, first, count)
        with T.serial(i64(0), count) as r:
            self._store_row(task, running, first + r, r)

    def _keys(self, task: _Work, own: Block, kv_head: tirx.Expr, first: tirx.Expr, count: tirx.Expr) -> None:
        """What a block of keys brings to the `count` query rows from `first` on."""
        self._lay_out_keys(task, own, kv_head)
        self._lay_out_values(task, own, kv_head)
        self._lay_out_bias(task, own)
        with T.serial(i64(0), tirx.ceildiv(count, i64(self.tile_rows))) as step:
            place = step * i64(self.tile_rows)
            # Surplus rows of the last tile repeat the last row; they are not stored.
            positions = [first + place + i64(r) for r in range(self.tile_rows)]
            rows = [tirx.min(position, task.rows - i64(1)) for position in positions]
            seen = own
            if self.attrs.causal:
                most = rows[-1] + task.keys - task.rows + i64(1) - own.first
                seen = Block(own.first, T.bind(tirx.max(tirx.min(most, own.count), i64(0))))
            self._scores(task, seen, rows)
            # Loops, not a copy for every row: so much code would cost the products registers.
            if self.row_mask:
                with T.serial(i64(0), i64(self.tile_rows)) as r:
                    self._mask_row(task, seen, r, tirx.min(first + place + r, task.rows - i64(1)))
            peaks, factors = self._peaks(task, place)
            with T.serial(i64(0), i64(self.tile_rows)) as r:
                self._softmax(task, seen, peaks, factors, r, place + r)
            self._values(task, seen, factors, positions, place)

    # -- what rows keep from block to block ----------------------------------------------------------------

    def _clear(self, running: _Running) -> None:
        """No key has been seen."""
        zero, low = tirx.const(0.0, "float32"), tirx.const(NEGATIVE_INFINITY, "float32")
        with T.serial(i64(0), i64(self.task_rows)) as r:
            T.buffer_store(running.peaks, low, [r])
            T.buffer_store(running.totals, zero, [r])
            for column in range(0, self.attrs.value_dim, self.value_lanes):
                place = [r, ramp(i64(column), self.value_lanes)]
                T.buffer_store(running.values, splat(zero, self.value_lanes), place)

    def _store_row(self, task: _Work, running: _Running, row: tirx.Expr, local: tirx.Expr) -> None:
        """The result of a row after all blocks."""
        factor = stack_buffer(1)
        T.buffer_store(factor, inverse_total(self.attrs, running.peaks[local], running.totals[local], 1), [i64(0)])
        target = task.head * i64(self.attrs.value_dim)
        for column in range(0, self.attrs.value_dim, self.value_lanes):
            value = tirx.BufferLoad(running.values, [local, ramp(i64(column), self.value_lanes)])
            place = [task.batch, task.first + row, ramp(target + i64(column), self.value_lanes)]
            T.buffer_store(task.out, value * splat(factor[i64(0)], self.value_lanes), place)

    # -- a block's operands --------------------------------------------------------------------------------

    def _lay_out_keys(self, task: _Work, own: Block, head: tirx.Expr) -> None:
        """Panels of keys: transposed, in squares where those divide a head."""
        start = i64(self.attrs.k_offset) + head * i64(self.attrs.head_dim)
        lanes, last = self.lanes, task.keys - i64(1)
        with T.serial(i64(0), self._panels(own)) as panel:
            if self.attrs.head_dim % lanes:
                with T.serial(i64(0), i64(self.width)) as column:
                    key = tirx.min(own.first + panel * i64(self.width) + column, last)
                    with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                        T.buffer_store(task.scratch.keys, task.at(task.k, key, start + d), [panel, d, column])
                return
            with T.serial(i64(0), i64(self.vectors)) as v, T.serial(i64(0), i64(self.attrs.head_dim // lanes)) as part:
                keys = [
                    tirx.min(own.first + panel * i64(self.width) + v * i64(lanes) + i64(i), last) for i in range(lanes)
                ]
                square = transposed([task.at(task.k, key, ramp(start + part * i64(lanes), lanes)) for key in keys])
                for i, row in enumerate(square):
                    place = [panel, part * i64(lanes) + i64(i), ramp(v * i64(lanes), lanes)]
                    T.buffer_store(task.scratch.keys, row.value, place)

    def _panels(self, own: Block) -> tirx.Expr:
        return tirx.ceildiv(own.count, i64(self.width))

    def _lay_out_values(self, task: _Work, own: Block, head: tirx.Expr) -> None:
        start = i64(self.attrs.v_offset) + head * i64(self.attrs.value_dim)
        with T.serial(i64(0), own.count) as key:
            for column in range(0, self.attrs.value_dim, self.value_lanes):
                value = task.at(task.v, own.first + key, ramp(start + i64(column), self.value_lanes))
                T.buffer_store(task.scratch.values, value, [key, ramp(i64(column), self.value_lanes)])

    def _lay_out_bias(self, task: _Work, own: Block) -> None:
        """The mask of a block's keys; surplus keys of the last panel get no weight."""
        bias = task.scratch.bias
        if bias is None:
            return
        with T.serial(i64(0), own.count) as key:
            value = tirx.const(0.0, "float32")
            if task.mask is not None:
                value = task.masked(task.mask, i64(0), own.first + key)
            T.buffer_store(bias, value, [key])
        with T.serial(i64(0), self._panels(own) * i64(self.width) - own.count) as rest:
            T.buffer_store(bias, tirx.const(NEGATIVE_INFINITY, "float32"), [own.count + rest])

    # -- a tile of rows ------------------------------------------------------------------------------------

    def _scores(self, task: _Work, own: Block, rows: list[tirx.Expr]) -> None:
        """Scores of a few rows against the block's keys, with what is added to them, and their maxima by lane."""
        lanes, scratch = self.lanes, task.scratch
        start = i64(self.attrs.q_offset) + task.head * i64(self.attrs.head_dim)
        low = splat(tirx.const(NEGATIVE_INFINITY, "float32"), lanes)
        for r in range(len(rows)):
            T.buffer_store(scratch.highest, low, [i64(r), ramp(i64(0), lanes)])
        with T.serial(i64(0), self._panels(own)) as panel:
            acc = [registers(self.vectors, lanes) for _ in rows]
            with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                columns = [
                    tirx.BufferLoad(scratch.keys, [panel, d, ramp(i64(v * lanes), lanes)]) for v in range(self.vectors)
                ]
                for r, row in enumerate(rows):
                    value = splat(task.at(task.q, row, start + d), lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            for r, row in enumerate(rows):
                for v in range(self.vectors):
                    self._finish_scores(task, own, acc[r][v], r, row, panel * i64(self.width) + i64(v * lanes))

    def _finish_scores(self, task: _Work, own: Block, acc: Register, r: int, row: tirx.Expr, column: tirx.Expr) -> None:
        """Scale one vector of products, add what is added for all rows, and store it."""
        lanes, scratch = self.lanes, task.scratch
        acc.store(acc.value * splat(tirx.const(self.attrs.scale, "float32"), lanes))
        if scratch.bias is not None:
            acc.store(acc.value + tirx.BufferLoad(scratch.bias, [ramp(column, lanes)]))
        if self.attrs.causal:
            keys = tirx.Ramp(tirx.Cast("int32", own.first + column), tirx.const(1, "int32"), lanes)
            last = splat(tirx.Cast("int32", row + task.keys - task.rows), lanes)
            low = splat(tirx.const(NEGATIVE_INFINITY, "float32"), lanes)
            acc.store(tirx.Select(keys <= last, acc.value, low))
        T.buffer_store(scratch.scores, acc.value, [i64(r), ramp(column, lanes)])
        if not self.row_mask:
            place = [i64(r), ramp(i64(0), lanes)]
            T.buffer_store(scratch.highest, tirx.max(tirx.BufferLoad(scratch.highest, place), acc.value), place)

    def _mask_row(self, task: _Work, own: Block, r: tirx.Expr, row: tirx.Expr) -> None:
        """Add a row's own mask, and find the maxima by lane."""
        assert task.mask is not None  # row_mask says so
        lanes, scratch = self.lanes, task.scratch
        whole, known = tirx.floordiv(own.count, i64(lanes)), as_int(own.count)

        def add(key: tirx.Expr, lane: tirx.Expr) -> None:
            value = scratch.scores[r, key] + task.masked(task.mask, row, own.first + key)
            T.buffer_store(scratch.scores, value, [r, key])
            T.buffer_store(scratch.highest, tirx.max(scratch.highest[r, lane], scratch.scores[r, key]), [r, lane])

        with T.serial(i64(0), whole) as chunk, T.vectorized(i64(0), i64(lanes)) as lane:
            add(chunk * i64(lanes) + lane, lane)
        if known is None or known % lanes:
            with T.serial(i64(0), own.count - whole * i64(lanes)) as rest:
                add(whole * i64(lanes) + rest, i64(0))
        if known is None or known % self.width:
            with T.serial(i64(0), self._panels(own) * i64(self.width) - own.count) as rest:
                T.buffer_store(scratch.scores, tirx.const(NEGATIVE_INFINITY, "float32"), [r, own.count + rest])

    def _peaks(self, task: _Work, place: tirx.Expr) -> tuple[Register, Register]:
        """The largest scores of a tile's rows, and what the values of earlier blocks are multiplied with.

        That is exp(old largest - new largest), which scales them to the largest score so far.
        """
        scratch, running, count = task.scratch, task.scratch.running, self.tile_rows
        peaks, factors = register(count), register(count)
        highest = register(self.lanes)
        with T.serial(i64(0), i64(count)) as r:
            highest.store(tirx.BufferLoad(scratch.highest, [r, ramp(i64(0), self.lanes)]))
            highest.reduce(tirx.max)
            T.buffer_store(peaks.buffer, highest.lane(0), [r])
        if running is not None:
            where = [ramp(place, count)]
            before = tirx.BufferLoad(running.peaks, where)
            peaks.store(tirx.max(peaks.value, before))
            factors.store(exp_nonpositive(before - score_offset(peaks.value, count)))
            T.buffer_store(running.peaks, peaks.value, where)
        return peaks, factors

    def _softmax(
        self, task: _Work, own: Block, peaks: Register, factors: Register, r: tirx.Expr, local: tirx.Expr
    ) -> None:
        """Turn one row of scores into exp(score - max).

        Where all keys are one block, its factor becomes what its weighted values are multiplied with.
        """
        lanes, scratch, running = self.lanes, task.scratch, task.scratch.running
        offset = stack_buffer(1)
        T.buffer_store(offset, score_offset(peaks.lane(r), 1), [i64(0)])
        (total,) = registers(1, lanes)
        with T.serial(i64(0), self._panels(own) * i64(self.vectors)) as chunk:
            position = [r, ramp(chunk * i64(lanes), lanes)]
            shifted = tirx.BufferLoad(scratch.scores, position) - splat(offset[i64(0)], lanes)
            T.buffer_store(scratch.scores, exp_nonpositive(shifted), position)
            total.store(total.value + tirx.BufferLoad(scratch.scores, position))
        total.reduce(lambda a, b: a + b)
        if running is None:
            T.buffer_store(factors.buffer, inverse_total(self.attrs, peaks.lane(r), total.lane(0), 1), [r])
        else:
            T.buffer_store(running.totals, running.totals[local] * factors.lane(r) + total.lane(0), [local])

    def _values(self, task: _Work, own: Block, factors: Register, positions: list[tirx.Expr], place: tirx.Expr) -> None:
        """Probabilities times values, a few vectors of the head at a time; `place` is the tile's first row."""
        lanes, scratch = self.value_lanes, task.scratch
        total = self.attrs.value_dim // lanes
        target = task.head * i64(self.attrs.value_dim)
        for start in range(0, total, self.value_vectors):
            vectors = range(start, min(start + self.value_vectors, total))
            acc = [registers(len(vectors), lanes) for _ in positions]
            with T.serial(i64(0), own.count) as key:
                columns = [tirx.BufferLoad(scratch.values, [key, ramp(i64(v * lanes), lanes)]) for v in vectors]
                for r in range(len(positions)):
                    value = splat(scratch.scores[i64(r), key], lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            for r, position in enumerate(positions):
                factor = splat(factors.lane(r), lanes)
                if scratch.running is not None:
                    for v, vector in enumerate(vectors):
                        where = [place + i64(r), ramp(i64(vector * lanes), lanes)]
                        before = tirx.BufferLoad(scratch.running.values, where)
                        T.buffer_store(scratch.running.values, before * factor + acc[r][v].value, where)
                    continue
                with T.If(position < task.rows), T.Then():
                    for v, vector in enumerate(vectors):
                        column = ramp(target + i64(vector * lanes), lanes)
                        T.buffer_store(task.out, acc[r][v].value * factor, [task.batch, task.first + position, column])
