"""Scaled-dot-product attention as one kernel: scores are never in global memory, no operand is transposed there.

A workgroup takes one head of one sequence and a block of query rows. It goes through the keys block by block (online
softmax: Milakov and Gimelshein, arXiv:1805.02867; in blocks: FlashAttention, arXiv:2205.14135): each row keeps its
largest score so far, the sum of its powers and the sum of its weighted values, and a block with a larger score scales
both sums down. Where a sequence has few queries (decoding), there are too few rows for that: see attention_decode.
"""

from __future__ import annotations

from dataclasses import asdict

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from greencc.ops import AttentionAttrs
from greencc.targets.base import RULE_ATTR
from greencc.targets.cost import OPERATIONS_ATTR
from greencc.targets.gpu.capabilities import Capabilities, GpuTarget
from greencc.targets.gpu.schedules.attention_decode import DecodeEmitter, decode_threads, fits_decode
from greencc.targets.gpu.schedules.attention_sequence import Sequence
from greencc.targets.gpu.schedules.attention_tile import FlashEmitter, FlashTile, choose_tile
from greencc.targets.gpu.schedules.shared_tiles import ceiling
from greencc.targets.gpu.schedules.threads import launch
from greencc.targets.tir import as_int, i64, with_own_symbols
from greencc.targets.tuning.emitted import with_recipe

RULE = "gpu-attention"


def attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: GpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [B, S, Cq], k [B, T, Ck], v [B, T, Cv], mask (rank 4) or none, out [B, S, H*Dv].

    They are float32, or of a type that is stored narrower and computed in float32.
    """
    return planned_kernel(attrs, [(list(ty.shape.values), str(ty.dtype)) for ty in (*args, out)], target, None)


def planned_kernel(
    attrs: AttentionAttrs, types: list[tuple[list[tirx.Expr], str]], target: GpuTarget, plan: FlashTile | int | None
) -> tirx.PrimFunc:
    """The kernel of `attention_kernel` by its parameters' shapes and types.

    `plan` is a tile, or, where sequences have few queries, a number of threads; None is the default plan.
    """
    *shapes, result_shape = with_own_symbols([shape for shape, _ in types])
    kinds = [kind for _, kind in types]
    batch, rows, keys = shapes[0][0], shapes[0][1], shapes[1][1]
    chosen = plan or default_plan(attrs, batch, rows, target.gpu)
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        operands = [
            T.arg(name, T.buffer(tuple(shape), kind))
            for name, shape, kind in zip(["q", "k", "v", "mask"], shapes, kinds, strict=False)
        ]
        result = T.arg("out", T.buffer(tuple(result_shape), kinds[-1]))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: RULE})
        q, k, v, *masks = operands
        mask = masks[0] if masks else None
        if isinstance(chosen, int):
            decode = DecodeEmitter(attrs, chosen, as_int(rows) or 1)
            with launch([batch, i64(attrs.kv_heads)], decode.threads) as ((element, head), thread):
                sequence = Sequence(attrs, element, i64(0), rows, keys, element, q, k, v, mask, result)
                decode.emit(sequence, head, thread)
        else:
            blocks = ceiling(rows, chosen.rows)
            with launch([batch, i64(attrs.heads), blocks], chosen.threads) as ((element, head, block), thread):
                sequence = Sequence(attrs, element, i64(0), rows, keys, element, q, k, v, mask, result)
                FlashEmitter(sequence, chosen, head, thread).emit(block * i64(chosen.rows))
    pairs = batch * i64(attrs.heads) * rows * keys
    made = ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))
    return with_recipe(made, asdict(attrs))


def default_plan(attrs: AttentionAttrs, batch: tirx.Expr, rows: tirx.Expr, gpu: Capabilities) -> FlashTile | int:
    """The tile, or the number of threads for few queries, that is taken without a tuning record."""
    if fits_decode(attrs, rows, gpu):
        return decode_threads(attrs, gpu, as_int(batch), as_int(rows) or 1)
    return choose_tile(attrs, gpu, as_int(batch), as_int(rows))


def packed_attention_kernel(
    attrs: AttentionAttrs, args: list[relax.TensorType], out: relax.TensorType, target: GpuTarget
) -> tirx.PrimFunc:
    """The kernel for operands q [1, N, Cq], k [1, N, Ck], v [1, N, Cv], starts [B, S], out [1, N, H*Dv]."""
    *shapes, result_shape = with_own_symbols([list(ty.shape.values) for ty in (*args, out)])
    tokens, (batch, longest) = shapes[0][1], shapes[3]
    tile = choose_tile(attrs, target.gpu, as_int(batch), as_int(longest))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        q, k, v = (
            T.arg(name, T.buffer(tuple(shape), str(ty.dtype)))
            for name, shape, ty in zip("qkv", shapes[:3], args[:3], strict=True)
        )
        starts = T.arg("starts", T.buffer(tuple(shapes[3]), "int64"))
        result = T.arg("out", T.buffer(tuple(result_shape), str(out.dtype)))
        T.func_attr({"tirx.noalias": True, RULE_ATTR: RULE})
        blocks = ceiling(longest, tile.rows)
        with launch([batch, i64(attrs.heads), blocks], tile.threads) as ((element, head, block), thread):
            first = T.bind(tirx.BufferLoad(starts, [element, i64(0)]))
            following = tirx.BufferLoad(starts, [element + i64(1), i64(0)])
            length = T.bind(tirx.if_then_else(element + i64(1) < batch, following, tokens) - first)
            # A block behind the end has no rows and no keys: no branch, in which threads could not wait for another.
            own = T.bind(tirx.Select(block * i64(tile.rows) < length, length, i64(0)))
            sequence = Sequence(attrs, i64(0), first, own, own, element, q, k, v, None, result)
            FlashEmitter(sequence, tile, head, thread).emit(block * i64(tile.rows))
    # The count for sequences of equal length: those of the others are known when it runs.
    pairs = i64(attrs.heads) * tokens * tirx.ceildiv(tokens, batch)
    return ib.get().with_attr(OPERATIONS_ATTR, pairs * i64(_operations_per_pair(attrs)))


def _operations_per_pair(attrs: AttentionAttrs) -> int:
    """Two products, and for every score: scale, maximum, difference, exponential, sum."""
    return 2 * (attrs.head_dim + attrs.value_dim) + 5
