"""Scaled-dot-product attention as one kernel: no score matrix beyond a few rows, no transposed copy of an operand.

A task is one head of one batch element and a block of query rows. It lays the head's keys out in column panels
once (like a packed weight), and then takes a few query rows at a time through scores, mask, softmax and the
product with the values, with the rows' scores in the first-level cache.
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
class _Buffers:
    q: tirx.Var
    k: tirx.Var
    v: tirx.Var
    mask: tirx.Var | None
    out: tirx.Var
    keys: tirx.Var
    scores: tirx.Var


def attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [B, S, Cq], k [B, T, Ck], v [B, T, Cv], mask (rank 4) or none, out [B, S, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    batch, rows = shapes[0][0], shapes[0][1]
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        names = ["q", "k", "v", "mask"]
        operands = [
            T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip(names, shapes, strict=False)
        ]
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "cpu-attention"})
        emitter = _Attention(attrs, shapes, target)
        blocks = tirx.ceildiv(rows, i64(TASK_ROWS))
        with T.parallel(i64(0), batch * i64(attrs.heads) * blocks) as task:
            block = tirx.floormod(task, blocks)
            head = tirx.floormod(tirx.floordiv(task, blocks), i64(attrs.heads))
            element = tirx.floordiv(task, blocks * i64(attrs.heads))
            keys = T.alloc_buffer((emitter.panels, i64(attrs.head_dim), i64(emitter.width)), "float32")
            scores = T.alloc_buffer((i64(emitter.tile_rows), emitter.padded), "float32")
            mask = operands[3] if len(operands) > 3 else None
            q, k, v = operands[:3]
            emitter.task(_Buffers(q, k, v, mask, result, keys, scores), element, head, block)
    pairs = batch * i64(attrs.heads) * rows * shapes[1][1]
    # Two products, and for every score: scale, maximum, difference, exponential, sum.
    operations = pairs * i64(2 * (attrs.head_dim + attrs.value_dim) + 5)
    return ib.get().with_attr(OPERATIONS_ATTR, operations)


class _Attention:
    """Emits one task."""

    def __init__(self, attrs: AttentionAttrs, shapes: list[list[tirx.Expr]], target: CpuTarget) -> None:
        self.attrs = attrs
        self.lanes = target.lanes()
        # Query rows that go through the softmax together, and vectors of keys: their products fill the registers.
        self.tile_rows, choices = (8, (3, 2, 1)) if target.vector_registers >= 32 else (4, (2, 1))
        keys = as_int(shapes[1][1])
        needed = choices[0] if keys is None else -(-keys // self.lanes)
        # Keys that fill the last panel up are wasted work; between equals the first choice is the fastest.
        vectors = min(choices, key=lambda v: (-(-needed // v) * v if v <= needed else needed + v, choices.index(v)))
        self.vectors = vectors
        self.width = vectors * self.lanes
        self.value_lanes = self.lanes
        while attrs.value_dim % self.value_lanes:
            self.value_lanes //= 2
        self.shapes = shapes
        self.rows, self.keys = shapes[0][1], shapes[1][1]
        self.panels = tirx.ceildiv(self.keys, i64(self.width))
        self.padded = self.panels * i64(self.width)

    def task(self, buffers: _Buffers, element: tirx.Expr, head: tirx.Expr, block: tirx.Expr) -> None:
        """All query rows of one block for one head."""
        group = self.attrs.heads // self.attrs.kv_heads
        kv_head = tirx.floordiv(head, i64(group)) if group > 1 else head
        self._lay_out_keys(buffers, element, kv_head)
        count = tirx.min(i64(TASK_ROWS), self.rows - block * i64(TASK_ROWS))
        with T.serial(i64(0), tirx.ceildiv(count, i64(self.tile_rows))) as step:
            first = block * i64(TASK_ROWS) + step * i64(self.tile_rows)
            positions = [first + i64(r) for r in range(self.tile_rows)]
            # Surplus rows of the last tile repeat the last row; they are not stored.
            sources = [tirx.min(position, self.rows - i64(1)) for position in positions]
            self._scores(buffers, element, head, sources)
            inverse = stack_buffer(self.tile_rows)
            # A loop, not a copy for every row: so much code would cost the products registers.
            with T.serial(i64(0), i64(self.tile_rows)) as r:
                self._softmax(buffers, inverse, element, head, r, tirx.min(first + r, self.rows - i64(1)))
            self._values(buffers, inverse, element, head, kv_head, positions)

    def _lay_out_keys(self, buffers: _Buffers, element: tirx.Expr, head: tirx.Expr) -> None:
        start = i64(self.attrs.k_offset) + head * i64(self.attrs.head_dim)
        with T.serial(i64(0), self.panels) as panel, T.serial(i64(0), i64(self.width)) as column:
            key = panel * i64(self.width) + column
            with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                inside = tirx.BufferLoad(buffers.k, [element, tirx.min(key, self.keys - i64(1)), start + d])
                T.buffer_store(buffers.keys, inside, [panel, d, column])

    def _scores(self, buffers: _Buffers, element: tirx.Expr, head: tirx.Expr, rows: list[tirx.Expr]) -> None:
        """Scaled scores of a few rows against all keys (surplus keys get the last key's score)."""
        lanes = self.lanes
        start = i64(self.attrs.q_offset) + head * i64(self.attrs.head_dim)
        with T.serial(i64(0), self.panels) as panel:
            acc = [registers(self.vectors, lanes) for _ in rows]
            with T.serial(i64(0), i64(self.attrs.head_dim)) as d:
                columns = [
                    tirx.BufferLoad(buffers.keys, [panel, d, ramp(i64(v * lanes), lanes)])
                    for v in range(self.vectors)
                ]
                for r, row in enumerate(rows):
                    value = splat(tirx.BufferLoad(buffers.q, [element, row, start + d]), lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            scale = splat(tirx.const(self.attrs.scale, "float32"), lanes)
            for r in range(len(rows)):
                for v in range(self.vectors):
                    column = panel * i64(self.width) + i64(v * lanes)
                    value = acc[r][v].value * scale
                    T.buffer_store(buffers.scores, value, [i64(r), ramp(column, lanes)])

    def _softmax(
        self,
        buffers: _Buffers,
        inverse: tirx.Var,
        element: tirx.Expr,
        head: tirx.Expr,
        r: tirx.Expr,
        row: tirx.Expr,
    ) -> None:
        """Turn one row of scores into exp(score - max), and store the inverse of their sum."""
        lanes = self.lanes
        low = tirx.const(NEGATIVE_INFINITY, "float32")
        highest = register(lanes)
        highest.fill(NEGATIVE_INFINITY)
        whole = tirx.floordiv(self.keys, i64(lanes))
        with T.serial(i64(0), whole) as chunk, T.vectorized(i64(0), i64(lanes)) as lane:
            key = chunk * i64(lanes) + lane
            self._mask_score(buffers, element, head, r, row, key)
            T.buffer_store(highest.buffer, tirx.max(highest.lane(lane), buffers.scores[r, key]), [lane])
        if as_int(self.keys) is None or (as_int(self.keys) or 0) % lanes:
            with T.serial(i64(0), self.keys - whole * i64(lanes)) as rest:
                key = whole * i64(lanes) + rest
                self._mask_score(buffers, element, head, r, row, key)
                highest.store_part(0, tirx.max(highest.lane(0), buffers.scores[r, key]), 1)
        if as_int(self.keys) is None or (as_int(self.keys) or 0) % self.width:
            with T.serial(i64(0), self.padded - self.keys) as rest:
                T.buffer_store(buffers.scores, low, [r, self.keys + rest])
        highest.reduce(tirx.max)
        peak = highest.lane(0)
        (total,) = registers(1, lanes)
        with T.serial(i64(0), tirx.floordiv(self.padded, i64(lanes))) as chunk:
            position = [r, ramp(chunk * i64(lanes), lanes)]
            # A row without any key keeps its -inf scores, whose exp is 0: subtracting -inf would give NaN.
            offset = tirx.Select(peak.equal(low), tirx.const(0.0, "float32"), peak)
            shifted = tirx.BufferLoad(buffers.scores, position) - splat(offset, lanes)
            T.buffer_store(buffers.scores, tirx.exp(shifted), position)
            total.store(total.value + tirx.BufferLoad(buffers.scores, position))
        total.reduce(lambda a, b: a + b)
        value = tirx.const(1.0, "float32") / total.lane(0)
        if self.attrs.nan_to_zero:
            value = tirx.Select(peak.equal(low), tirx.const(0.0, "float32"), value)
        T.buffer_store(inverse, value, [r])

    def _mask_score(
        self, buffers: _Buffers, element: tirx.Expr, head: tirx.Expr, r: tirx.Expr, row: tirx.Expr, key: tirx.Expr
    ) -> None:
        value = buffers.scores[r, key]
        if buffers.mask is not None:
            dims = self.shapes[3]
            wanted = [element, head, row, key]
            value = value + tirx.BufferLoad(
                buffers.mask,
                [i64(0) if as_int(dim) == 1 else index for dim, index in zip(dims, wanted, strict=True)],
            )
        if self.attrs.causal:
            visible = key <= row + (self.keys - self.rows)
            value = tirx.Select(visible, value, tirx.const(NEGATIVE_INFINITY, "float32"))
        if buffers.mask is not None or self.attrs.causal:
            T.buffer_store(buffers.scores, value, [r, key])

    def _values(
        self,
        buffers: _Buffers,
        inverse: tirx.Var,
        element: tirx.Expr,
        head: tirx.Expr,
        kv_head: tirx.Expr,
        positions: list[tirx.Expr],
    ) -> None:
        """Probabilities times values, a few vectors of the head at a time."""
        lanes = self.value_lanes
        total = self.attrs.value_dim // lanes
        source = i64(self.attrs.v_offset) + kv_head * i64(self.attrs.value_dim)
        target = head * i64(self.attrs.value_dim)
        for start in range(0, total, self.vectors):
            vectors = range(start, min(start + self.vectors, total))
            acc = [registers(len(vectors), lanes) for _ in positions]
            with T.serial(i64(0), self.keys) as key:
                columns = [
                    tirx.BufferLoad(
                        buffers.v, [element, key, ramp(source + i64(v * lanes), lanes)]
                    )
                    for v in vectors
                ]
                for r in range(len(positions)):
                    value = splat(buffers.scores[i64(r), key], lanes)
                    for v, column in enumerate(columns):
                        acc[r][v].store(acc[r][v].value + value * column)
            for r, position in enumerate(positions):
                with T.If(position < self.rows), T.Then():
                    factor = splat(inverse[i64(r)], lanes)
                    for v, vector in enumerate(vectors):
                        column = ramp(target + i64(vector * lanes), lanes)
                        T.buffer_store(buffers.out, acc[r][v].value * factor, [element, position, column])
