"""Scaled-dot-product attention as one kernel: no score matrix beyond a few rows, no transposed copy of an operand.

A task is one head of one batch element and a block of query rows. Its vectors are of keys (attention_keys) or of
queries (attention_queries).

Where there may be more keys than a block holds, each row keeps its largest score so far, the sum of its powers and the
sum of its weighted values; another block with a larger score scales both sums down (online softmax: Milakov and
Gimelshein, arXiv:1805.02867; in blocks: FlashAttention, arXiv:2205.14135). Memory then doesn't grow with the keys.
"""

from __future__ import annotations

from dataclasses import asdict

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.cpu.schedules.attention_keys import KeyLanes
from greencc.targets.cpu.schedules.attention_plan import AttentionPlan, default_plan
from greencc.targets.cpu.schedules.attention_queries import QueryLanes
from greencc.targets.cpu.schedules.attention_task import Task, TaskEmitter
from greencc.targets.cpu.target import CpuTarget
from greencc.targets.tir import i64, with_own_symbols
from greencc.targets.tuning.emitted import with_recipe

RULE = "cpu-attention"


def attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [B, S, Cq], k [B, T, Ck], v [B, T, Cv], mask (rank 4) or none, out [B, S, H*Dv]."""
    return planned_kernel(attrs, [list(ty.shape.values) for ty in (*args, out)], target, None)


def planned_kernel(
    attrs: AttentionAttrs, shapes: list[list[tirx.Expr]], target: CpuTarget, plan: AttentionPlan | None
) -> tirx.PrimFunc:
    """The kernel of `attention_kernel`, by its parameters' shapes, as `plan` or the default plan says."""
    *operand_shapes, result_shape = with_own_symbols(shapes)
    batch, rows, keys = operand_shapes[0][0], operand_shapes[0][1], operand_shapes[1][1]
    chosen = default_plan(attrs, target, batch, rows, keys) if plan is None else plan
    mask_shape = operand_shapes[3] if len(operand_shapes) > 3 else None
    emitter: TaskEmitter
    if chosen.across == "queries":
        emitter = QueryLanes(attrs, chosen, _value_rows(target, chosen), keys, mask_shape)
    else:
        emitter = KeyLanes(attrs, chosen, _value_vectors(target), keys, mask_shape)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        operands = [
            T.arg(name, T.buffer(tuple(shape), "float32"))
            for name, shape in zip(["q", "k", "v", "mask"], operand_shapes, strict=False)
        ]
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: RULE})
        blocks = tirx.ceildiv(rows, i64(emitter.task_rows))
        with (T.parallel if chosen.parallel else T.serial)(i64(0), batch * i64(attrs.heads) * blocks) as task:
            block = tirx.floormod(task, blocks)
            head = tirx.floormod(tirx.floordiv(task, blocks), i64(attrs.heads))
            element = tirx.floordiv(task, blocks * i64(attrs.heads))
            q, k, v, *masks = operands
            mask = masks[0] if masks else None
            emitter.task(Task(element, i64(0), rows, keys, element, head, q, k, v, mask, result), block)
    pairs = batch * i64(attrs.heads) * rows * keys
    made = ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(operations_per_pair(attrs)))
    return with_recipe(made, asdict(attrs))


def packed_attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: CpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [1, N, Cq], k [1, N, Ck], v [1, N, Cv], starts [B, S], out [1, N, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    tokens, (batch, longest) = shapes[0][1], shapes[3]
    plan = default_plan(attrs, target, batch, longest, longest)
    emitter = KeyLanes(attrs, plan, _value_vectors(target), longest, None, exact=False)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        q, k, v = (T.arg(name, T.buffer(tuple(shape), "float32")) for name, shape in zip("qkv", shapes, strict=False))
        starts = T.arg("starts", T.buffer(tuple(shapes[3]), "int64"))
        result = T.arg("out", T.buffer(tuple(result_shape), "float32"))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: RULE})
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
                emitter.task(Task(i64(0), first, length, length, element, head, q, k, v, None, result), block)
    # The count for sequences of equal length: those of the others are known when it runs.
    pairs = i64(attrs.heads) * tokens * tirx.ceildiv(tokens, batch)
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(operations_per_pair(attrs)))


def operations_per_pair(attrs: AttentionAttrs) -> int:
    """Two products, and for every score: scale, maximum, difference, exponential, sum."""
    return 2 * (attrs.head_dim + attrs.value_dim) + 5


def _value_vectors(target: CpuTarget) -> int:
    """Vectors of values whose sums fill the registers, with eight rows of them, or four."""
    return 3 if target.vector_registers >= 32 else 2


def _value_rows(target: CpuTarget, plan: AttentionPlan) -> int:
    """Columns of the values whose sums for `plan.vectors` vectors of queries fill the registers, but for operands."""
    return (target.vector_registers - 1) // plan.vectors - 1
