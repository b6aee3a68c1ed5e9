"""Scaled-dot-product attention as one kernel: no score matrix beyond a few rows, no transposed copy of an operand.

A task is one head of one batch element and a block of query rows. It lays the head's keys out in column panels
once (like a packed weight), and its values in a row, and then takes a few query rows at a time through scores, mask,
softmax and the product with the values, all of it in the first-level cache. (In the projection, the rows of a head lie
a multiple of 512 bytes apart, so that they would share a few sets of that cache and drive each other out.)
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.schedules.registers import register, registers, stack_buffer
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import as_int, i64, ramp, splat, with_own_symbols

# Query rows per task. Keys are laid out once per task: fewer rows would repeat that more often.
TASK_ROWS = 128
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class _Task:
    """What one task works on: its sequence, and the buffers.

    Attributes:
        batch, first: the sequence's first row in the operands is [batch, first].
        rows, keys: how many queries and keys the sequence has.
        element: the sequence's number, by which the mask is read.
        head: the query head.
        q, k, v, mask, out: operands and result.
        packed_keys, packed_values, scores: scratch.
    """

    batch: tirx.Expr
    first: tirx.Expr
    rows: tirx.Expr
    keys: tirx.Expr
    element: tirx.Expr
    head: tirx.Expr
    q: tirx.Var
    k: tirx.Var
    v: tirx.Var
    mask: tirx.Var | None
    out: tirx.Var
    packed_keys: tirx.Var
    packed_values: tirx.Var
    scores: tirx.Var

    def at(self, buffer: tirx.Var, row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        """Element (or vector) of an operand, by the row in the sequence."""
        return tirx.BufferLoad(buffer, [self.batch, self.first + row, column])


def attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [B, S, Cq], k [B, T, Ck], v [B, T, Cv], mask (rank 4) or none, out [B, S, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    batch, rows, keys = shapes[0][0], shapes[0][1], shapes[1][1]
    emitter = _Attention(attrs, target, keys, shapes[3] if len(shapes) > 3 else [])
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        names = ["q", "k", "v", "mask"]
        operands = [
            T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip(names, shapes, strict=False)
        ]
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "cpu-attention"})
        blocks = tirx.ceildiv(rows, i64(TASK_ROWS))
        with T.parallel(i64(0), batch * i64(attrs.heads) * blocks) as task:
            block = tirx.floormod(task, blocks)
            head = tirx.floormod(tirx.floordiv(task, blocks), i64(attrs.heads))
            element = tirx.floordiv(task, blocks * i64(attrs.heads))
            mask = operands[3] if len(operands) > 3 else None
            buffers = (*operands[:3], mask, result, *emitter.scratch())
            emitter.task(_Task(element, i64(0), rows, keys, element, head, *buffers), block)
    pairs = batch * i64(attrs.heads) * rows * keys
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))


def packed_attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [1, N, Cq], k [1, N, Ck], v [1, N, Cv], starts [B, S], out [1, N, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    tokens, (batch, longest) = shapes[0][1], shapes[3]
    emitter = _Attention(attrs, target, longest, [])
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        operands = [T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip("qkv", shapes, strict=False)]
        starts = T.arg("starts", T.buffer(tuple(shapes[3]), "int64"))
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "cpu-attention"})
        blocks = tirx.ceildiv(longest, i64(TASK_ROWS))
        # Heads outermost: threads take neighbouring tasks, and each thread should get long and short sequences.
        with T.parallel(i64(0), i64(attrs.heads) * batch * blocks) as task:
            block = tirx.floormod(task, blocks)
            element = tirx.floormod(tirx.floordiv(task, blocks), batch)
            head = tirx.floordiv(task, blocks * batch)
            first = T.bind(tirx.BufferLoad(starts, [element, i64(0)]))
            following = tirx.BufferLoad(starts, [element + i64(1), i64(0)])
            length = T.bind(tirx.if_then_else(element + i64(1) < batch, following, tokens) - first)
            with T.If(block * i64(TASK_ROWS) < length), T.Then():
                buffers = (*operands, None, result, *emitter.scratch())
                emitter.task(_Task(i64(0), first, length, length, element, head, *buffers), block)
    # The count for sequences of equal length: those of the others are known when it runs.
    pairs = i64(attrs.heads) * tokens * tirx.ceildiv(tokens, batch)
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))


def _operations_per_pair(attrs: AttentionAttrs) -> int:
    """Two products, and for every score: scale, maximum, difference, exponential, sum."""
    return 2 * (attrs.head_dim + attrs.value_dim) + 5


class _Attention:
    """Emits one task."""

    def __init__(
        self, attrs: AttentionAttrs, target: CpuTarget, longest: tirx.Expr, mask_shape: list[tirx.Expr]
    ) -> None:
        self.attrs = attrs
        self.lanes = target.lanes()
        # Query rows that go through the softmax together, and vectors of keys: their products fill the registers.
        self.tile_rows, choices = (8, (3, 2, 1)) if target.vector_registers >= 32 else (4, (2, 1))
        keys = as_int(longest)
        needed = choices[0] if keys is None else -(-keys // self.lanes)
        # Keys that fill the last panel up are wasted work; between equals the first choice is the fastest.
        vectors = min(choices, key=lambda v: (-(-needed // v) * v if v <= needed else needed + v, choices.index(v)))
        self.vectors = vectors
        self.width = vectors * self.lanes
        self.value_lanes = self.lanes
        while attrs.value_dim % self.value_lanes:
            self.value_lanes //= 2
        self.longest, self.mask_shape = longest, mask_shape

    def scratch(self) -> tuple[tirx.Var, tirx.Var, tirx.Var]:
        """Room for the keys of one head in panels, for its values, and for the scores of a tile."""
        panels = self._panels(self.longest)
        keys = T.alloc_buffer((panels, i64(self.attrs.head_dim), i64(self.width)), "float32")
        values = T.alloc_buffer((self.longest, i64(self.attrs.value_dim)), "float32")
        return keys, values, T.alloc_buffer((i64(self.tile_rows), panels * i64(self.width)), "float32")

    def task(self, task: _Task, block: tirx.Expr) -> None:
        """All query rows of one block for one head."""
        group = self.attrs.heads // self.attrs.kv_heads
        kv_head = tirx.floordiv(task.head, i64(group)) if group > 1 else task.head
        self._lay_out_keys(task, kv_head)
        self._lay_out_values(task, kv_head)
        count = tirx.min(i64(TASK_ROWS), task.rows - block * i64(TASK_ROWS))
        with T.serial(i64(0), tirx.ceildiv(count, i64(self.tile_rows))) as step:
            first = block * i64(TASK_ROWS) + step * i64(self.tile_rows)
            positions = [first + i64(r) for r in range(self.tile_rows)]
            # Surplus rows of the last tile repeat the last row; they are not stored.
            self._scores(task, [tirx.min(position, task.rows - i64(1)) for position in positions])
            inverse = stack_buffer(self.tile_rows)
            # A loop, not a copy for every row: so much code would cost the products registers.
            with T.serial(i64(0), i64(self.tile_rows)) as r:
                self._softmax(task, inverse, r, tirx.min(first + r, task.rows - i64(1)))
            self._values(task, inverse, positions)

    def _panels(self, keys: tirx.Expr) -> tirx.Expr:
        return tirx.ceildiv(keys, i64(self.width))

    def _lay_out_keys(self, task: _Task, head: tirx.Expr) -> None:
        start = i64(self.attrs.k_offset) + head * i64(self.attrs.head_dim)
        with T.serial(i64(0), self._panels(task.keys)) as panel, T.serial(i64(0), i64(self.width)) as column:
            key = panel * i64(self.width) + column
            with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                inside = task.at(task.k, tirx.min(key, task.keys - i64(1)), start + d)
                T.buffer_store(task.packed_keys, inside, [panel, d, column])

    def _lay_out_values(self, task: _Task, head: tirx.Expr) -> None:
        start = i64(self.attrs.v_offset) + head * i64(self.attrs.value_dim)
        with T.serial(i64(0), task.keys) as key:
            for column in range(0, self.attrs.value_dim, self.value_lanes):
                value = task.at(task.v, key, ramp(start + i64(column), self.value_lanes))
                T.buffer_store(task.packed_values, value, [key, ramp(i64(column), self.value_lanes)])

    def _scores(self, task: _Task, rows: list[tirx.Expr]) -> None:
        """Scaled scores of a few rows against all keys (surplus keys get the last key's score)."""
        lanes = self.lanes
        start = i64(self.attrs.q_offset) + task.head * i64(self.attrs.head_dim)
        with T.serial(i64(0), self._panels(task.keys)) as panel:
            acc = [registers(self.vectors, lanes) for _ in rows]
            with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                columns = [
                    tirx.BufferLoad(task.packed_keys, [panel, d, ramp(i64(v * lanes), lanes)])
                    for v in range(self.vectors)
                ]
                for r, row in enumerate(rows):
                    value = splat(task.at(task.q, row, start + d), lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            scale = splat(tirx.const(self.attrs.scale, "float32"), lanes)
            for r in range(len(rows)):
                for v in range(self.vectors):
                    column = panel * i64(self.width) + i64(v * lanes)
                    value = acc[r][v].value * scale
                    T.buffer_store(task.scores, value, [i64(r), ramp(column, lanes)])

    def _softmax(self, task: _Task, inverse: tirx.Var, r: tirx.Expr, row: tirx.Expr) -> None:
        """Turn one row of scores into exp(score - max), and store the inverse of their sum."""
        lanes = self.lanes
        low = tirx.const(NEGATIVE_INFINITY, "float32")
        padded = self._panels(task.keys) * i64(self.width)
        highest = register(lanes)
        highest.fill(NEGATIVE_INFINITY)
        whole = tirx.floordiv(task.keys, i64(lanes))
        with T.serial(i64(0), whole) as chunk, T.vectorized(i64(0), i64(lanes)) as lane:
            key = chunk * i64(lanes) + lane
            self._mask_score(task, r, row, key)
            T.buffer_store(highest.buffer, tirx.max(highest.lane(lane), task.scores[r, key]), [lane])
        if as_int(task.keys) is None or (as_int(task.keys) or 0) % lanes:
            with T.serial(i64(0), task.keys - whole * i64(lanes)) as rest:
                key = whole * i64(lanes) + rest
                self._mask_score(task, r, row, key)
                highest.store_part(0, tirx.max(highest.lane(0), task.scores[r, key]), 1)
        if as_int(task.keys) is None or (as_int(task.keys) or 0) % self.width:
            with T.serial(i64(0), padded - task.keys) as rest:
                T.buffer_store(task.scores, low, [r, task.keys + rest])
        highest.reduce(tirx.max)
        peak = highest.lane(0)
        (total,) = registers(1, lanes)
        with T.serial(i64(0), tirx.floordiv(padded, i64(lanes))) as chunk:
            position = [r, ramp(chunk * i64(lanes), lanes)]
            # A row without any key keeps its -inf scores, whose exp is 0: subtracting -inf would give NaN.
            offset = tirx.Select(peak.equal(low), tirx.const(0.0, "float32"), peak)
            shifted = tirx.BufferLoad(task.scores, position) - splat(offset, lanes)
            T.buffer_store(task.scores, tirx.exp(shifted), position)
            total.store(total.value + tirx.BufferLoad(task.scores, position))
        total.reduce(lambda a, b: a + b)
        value = tirx.const(1.0, "float32") / total.lane(0)
        if self.attrs.nan_to_zero:
            value = tirx.Select(peak.equal(low), tirx.const(0.0, "float32"), value)
        T.buffer_store(inverse, value, [r])

    def _mask_score(self, task: _Task, r: tirx.Expr, row: tirx.Expr, key: tirx.Expr) -> None:
        value = task.scores[r, key]
        if task.mask is not None:
            wanted = [task.element, task.head, row, key]
            value = value + tirx.BufferLoad(
                task.mask,
                [i64(0) if as_int(dim) == 1 else index for dim, index in zip(self.mask_shape, wanted, strict=True)],
            )
        if self.attrs.causal:
            visible = key <= row + (task.keys - task.rows)
            value = tirx.Select(visible, value, tirx.const(NEGATIVE_INFINITY, "float32"))
        if task.mask is not None or self.attrs.causal:
            T.buffer_store(task.scores, value, [r, key])

    def _values(self, task: _Task, inverse: tirx.Var, positions: list[tirx.Expr]) -> None:
        """Probabilities times values, a few vectors of the head at a time."""
        lanes = self.value_lanes
        total = self.attrs.value_dim // lanes
        target = task.head * i64(self.attrs.value_dim)
        for start in range(0, total, self.vectors):
            vectors = range(start, min(start + self.vectors, total))
            acc = [registers(len(vectors), lanes) for _ in positions]
            with T.serial(i64(0), task.keys) as key:
                columns = [
                    tirx.BufferLoad(task.packed_values, [key, ramp(i64(v * lanes), lanes)]) for v in vectors
                ]
                for r in range(len(positions)):
                    value = splat(task.scores[i64(r), key], lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            for r, position in enumerate(positions):
                with T.If(position < task.rows), T.Then():
                    factor = splat(inverse[i64(r)], lanes)
                    for v, vector in enumerate(vectors):
                        column = ramp(target + i64(vector * lanes), lanes)
                        T.buffer_store(task.out, acc[r][v].value * factor, [task.batch, task.first + position, column])
