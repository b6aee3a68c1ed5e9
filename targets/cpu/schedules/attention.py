"""Scaled-dot-product attention as one kernel: no score matrix beyond a few rows, no transposed copy of an operand.

A task is one head of one batch element and a block of query rows. It lays a block of the head's keys out in column
panels (like a packed weight), and its values in a row, and then takes a few query rows at a time through scores, mask,
softmax and the product with the values, all of it in the nearest caches. (In the projection, the rows of a head lie
a multiple of 512 bytes apart, so that they would share a few sets of the first cache and drive each other out.)

Where there may be more keys than a block holds, each row keeps its largest score so far, the sum of its powers and the
sum of its weighted values; another block with a larger score scales both sums down (online softmax: Milakov and
Gimelshein, arXiv:1805.02867; in blocks: FlashAttention, arXiv:2205.14135). Memory then doesn't grow with the keys.
"""

from __future__ import annotations

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.schedules.attention_task import AttentionEmitter, Task
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import i64, with_own_symbols


def attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [B, S, Cq], k [B, T, Ck], v [B, T, Cv], mask (rank 4) or none, out [B, S, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    batch, rows, keys = shapes[0][0], shapes[0][1], shapes[1][1]
    emitter = AttentionEmitter(attrs, target, batch, rows, keys, shapes[3] if len(shapes) > 3 else None)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        names = ["q", "k", "v", "mask"]
        operands = [
            T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip(names, shapes, strict=False)
        ]
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "cpu-attention"})
        blocks = tirx.ceildiv(rows, i64(emitter.task_rows))
        with T.parallel(i64(0), batch * i64(attrs.heads) * blocks) as task:
            block = tirx.floormod(task, blocks)
            head = tirx.floormod(tirx.floordiv(task, blocks), i64(attrs.heads))
            element = tirx.floordiv(task, blocks * i64(attrs.heads))
            mask = operands[3] if len(operands) > 3 else None
            buffers = (*operands[:3], mask, result, emitter.scratch())
            emitter.task(Task(element, i64(0), rows, keys, element, head, *buffers), block)
    pairs = batch * i64(attrs.heads) * rows * keys
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))


def packed_attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [1, N, Cq], k [1, N, Ck], v [1, N, Cv], starts [B, S], out [1, N, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    tokens, (batch, longest) = shapes[0][1], shapes[3]
    emitter = AttentionEmitter(attrs, target, batch, longest, longest, None, exact=False)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        operands = [T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip("qkv", shapes, strict=False)]
        starts = T.arg("starts", T.buffer(tuple(shapes[3]), "int64"))
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, "greencc.rule": "cpu-attention"})
        blocks = tirx.ceildiv(longest, i64(emitter.task_rows))
        # Heads outermost: threads take neighbouring tasks, and each thread should get long and short sequences.
        with T.parallel(i64(0), i64(attrs.heads) * batch * blocks) as task:
            block = tirx.floormod(task, blocks)
            element = tirx.floormod(tirx.floordiv(task, blocks), batch)
            head = tirx.floordiv(task, blocks * batch)
            first = T.bind(tirx.BufferLoad(starts, [element, i64(0)]))
            following = tirx.BufferLoad(starts, [element + i64(1), i64(0)])
            length = T.bind(tirx.if_then_else(element + i64(1) < batch, following, tokens) - first)
            with T.If(block * i64(emitter.task_rows) < length), T.Then():
                buffers = (*operands, None, result, emitter.scratch())
                emitter.task(Task(i64(0), first, length, length, element, head, *buffers), block)
    # The count for sequences of equal length: those of the others are known when it runs.
    pairs = i64(attrs.heads) * tokens * tirx.ceildiv(tokens, batch)
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))


def _operations_per_pair(attrs: AttentionAttrs) -> int:
    """Two products, and for every score: scale, maximum, difference, exponential, sum."""
    return 2 * (attrs.head_dim + attrs.value_dim) + 5
