"""RotaryEmbedding, and what ONNX Runtime's transformer optimiser leaves in a graph (domain com.microsoft).

The contributed operators are taken apart into the forms that `fuse-attention` and `fuse-layer-norm` know. ONNX's own
Attention is expanded by its standard definition (functions.py).
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext, Result
from greencc.importers.onnx.convert.slicing import slice_axes
from greencc.importers.onnx.values import Dim, as_expr, simplify
from greencc.ir import constant


def rotary_embedding(ctx: NodeContext) -> relax.Expr:
    """RotaryEmbedding of [B, H, S, D] or [B, S, H * D]: the first columns of a head are rotated in pairs."""
    data, shape, heads = ctx.tensor(0), ctx.shape(0), int(ctx.attr("num_heads", 0))
    if len(shape) == 3:
        if heads < 1 or not isinstance(shape[2], int) or shape[2] % heads:
            raise ctx.refuse(f"{shape[2]} columns do not fall into {heads} heads")
        data = _heads(ctx, data, shape[:2], heads)
        data = ctx.emit(relax.op.permute_dims(data, [0, 2, 1, 3]))
    elif len(shape) != 4:
        raise ctx.refuse(f"an input of rank {len(shape)} is neither [B, S, C] nor [B, H, S, D]")
    dim = int(data.ty.shape.values[-1])
    rotated = int(ctx.attr("rotary_embedding_dim", 0)) or dim
    if not 0 < rotated <= dim or rotated % 2:
        raise ctx.refuse(f"rotary_embedding_dim {rotated} does not fit heads of {dim}")
    cos, sin = (_rotation(ctx, index, rotated // 2) for index in (1, 2))
    step = 2 if ctx.attr("interleaved", 0) else 1
    starts, ends = ((0, 1), (rotated - 1, rotated)) if step == 2 else ((0, rotated // 2), (rotated // 2, rotated))
    first, second = (
        ctx.emit(relax.op.strided_slice(data, [3], [start], [end], [step]))
        for start, end in zip(starts, ends, strict=True)
    )
    real = ctx.emit(relax.op.subtract(_times(ctx, first, cos), _times(ctx, second, sin)))
    imaginary = ctx.emit(relax.op.add(_times(ctx, first, sin), _times(ctx, second, cos)))
    if step == 2:
        pairs = ctx.emit(relax.op.stack([real, imaginary], axis=4))
        turned = ctx.emit(relax.op.reshape(pairs, [*data.ty.shape.values[:3], rotated]))
    else:
        turned = ctx.emit(relax.op.concat([real, imaginary], axis=3))
    if rotated < dim:
        rest = ctx.emit(relax.op.strided_slice(data, [3], [rotated], [dim]))
        turned = ctx.emit(relax.op.concat([turned, rest], axis=3))
    if len(shape) == 4:
        return turned
    turned = ctx.emit(relax.op.permute_dims(turned, [0, 2, 1, 3]))
    return relax.op.reshape(turned, [as_expr(dim) for dim in shape])


def _rotation(ctx: NodeContext, index: int, half: int) -> relax.Expr:
    """Cosines or sines [B, 1, S, half], looked up by position where positions are given."""
    cache = ctx.tensor(index)
    if ctx.shape(index)[-1] != half:
        raise ctx.refuse(f"{ctx.shape(index)[-1]} angles for {half} pairs")
    if ctx.has(3):
        cache = ctx.emit(relax.op.take(cache, ctx.tensor(3), 0, mode="clip"))
    return ctx.emit(relax.op.expand_dims(cache, 1))


def contrib_attention(ctx: NodeContext) -> relax.Expr:
    """Attention: one packed projection [C, 3 * hidden], then attention with an optional mask."""
    heads, shape = int(ctx.attr("num_heads", 0)), ctx.shape(0)
    if ctx.has(4) or ctx.has(6) or any(ctx.node.output[1:]):
        raise ctx.refuse("past keys and values are not supported")
    if ctx.attr("unidirectional", 0) or ctx.attr("do_rotary", 0) or ctx.has_attr("qkv_hidden_sizes"):
        raise ctx.refuse("unidirectional, do_rotary and qkv_hidden_sizes are not supported")
    weights = ctx.constant(1)
    bias = ctx.constant(2) if ctx.has(2) else None
    hidden = weights.shape[1] // 3
    if heads < 1 or hidden % heads:
        raise ctx.refuse(f"{hidden} columns do not fall into {heads} heads")
    parts = []
    for number in range(3):
        columns = slice(number * hidden, (number + 1) * hidden)
        part = ctx.emit(relax.op.matmul(ctx.tensor(0), constant(weights[:, columns])))
        if bias is not None:
            part = ctx.emit(relax.op.add(part, constant(bias[columns])))
        parts.append(part)
    mask = _mask(ctx, 3, shape)
    return _attend(ctx, parts, heads, [mask] if mask is not None else [], 5)


def multi_head_attention(ctx: NodeContext) -> relax.Expr:
    """MultiHeadAttention of separate queries, keys and values [B, S, C], with an optional bias and mask."""
    heads = int(ctx.attr("num_heads", 0))
    if any(ctx.has(index) for index in range(6, 10)) or any(ctx.node.output[1:]) or ctx.attr("unidirectional", 0):
        raise ctx.refuse("past keys and values, caches and unidirectional are not supported")
    if not ctx.has(2) or any(ctx.rank(index) != 3 for index in range(3)):
        raise ctx.refuse("packed queries, keys and values are not supported")
    parts = [ctx.tensor(index) for index in range(3)]
    if ctx.has(3):
        bias = ctx.constant(3)
        start = 0
        for number in range(3):
            width = int(parts[number].ty.shape.values[-1])
            parts[number] = ctx.emit(relax.op.add(parts[number], constant(bias[start : start + width])))
            start += width
    if any(int(part.ty.shape.values[-1]) % max(heads, 1) for part in parts) or heads < 1:
        raise ctx.refuse(f"the columns do not fall into {heads} heads")
    mask = _mask(ctx, 4, [ctx.shape(0)[0], ctx.shape(1)[1]])
    return _attend(ctx, parts, heads, [mask] if mask is not None else [], 5)


def _attend(ctx: NodeContext, parts: list[relax.Expr], heads: int, masks: list[relax.Expr], bias_at: int) -> relax.Expr:
    """softmax(scale * Q K^T + masks) V for [B, S, C] operands, heads side by side."""
    dtype = ctx.value(0).dtype
    lead = list(parts[0].ty.shape.values[:2])
    views = [_heads(ctx, part, list(part.ty.shape.values[:2]), heads) for part in parts]
    q, v = (ctx.emit(relax.op.permute_dims(view, [0, 2, 1, 3])) for view in (views[0], views[2]))
    k = ctx.emit(relax.op.permute_dims(views[1], [0, 2, 3, 1]))
    scale = float(ctx.attr("scale", 0.0)) or 1.0 / math.sqrt(int(q.ty.shape.values[-1]))
    scores = _times(ctx, ctx.emit(relax.op.matmul(q, k)), ctx.const(scale, dtype))
    for mask in [*masks, *([ctx.tensor(bias_at)] if ctx.has(bias_at) else [])]:
        scores = ctx.emit(relax.op.add(scores, mask))
    mixed = ctx.emit(relax.op.matmul(ctx.emit(relax.op.nn.softmax(scores, -1)), v))
    mixed = ctx.emit(relax.op.permute_dims(mixed, [0, 2, 1, 3]))
    width = heads * int(v.ty.shape.values[-1])
    return relax.op.reshape(mixed, [*lead, width])


def _mask(ctx: NodeContext, index: int, shape: list[Dim]) -> relax.Expr | None:
    """Input `index` (1: attend, 0: don't, [B, T]) as an addend [B, 1, 1, T]."""
    if not ctx.has(index):
        return None
    if ctx.rank(index) != 2:
        raise ctx.refuse(f"a mask of rank {ctx.rank(index)} is not supported; [batch, sequence] is")
    dtype = ctx.value(0).dtype
    keep = ctx.emit(relax.op.astype(ctx.tensor(index), dtype))
    drop = ctx.emit(relax.op.subtract(ctx.const(1.0, dtype), keep))
    addend = _times(ctx, drop, ctx.const(float(ctx.attr("mask_filter_value", -10000.0)), dtype))
    return ctx.emit(relax.op.reshape(addend, [as_expr(shape[0]), 1, 1, as_expr(shape[1])]))


def embed_layer_norm(ctx: NodeContext) -> Result:
    """EmbedLayerNormalization: the sum of word, position and segment embeddings, layer-normalised."""
    batch, length = ctx.shape(0)
    if isinstance(length, int) and isinstance(ctx.shape(3)[0], int) and length > ctx.shape(3)[0]:
        raise ctx.refuse(f"{length} positions, of which {ctx.shape(3)[0]} have an embedding")
    if ctx.has(8):
        positions = ctx.emit(relax.op.take(ctx.tensor(3), ctx.tensor(8), 0, mode="clip"))
    else:
        positions = ctx.emit(slice_axes(ctx, ctx.tensor(3), [0], [0], [length], [1]))
    total = ctx.emit(relax.op.add(ctx.emit(relax.op.take(ctx.tensor(2), ctx.tensor(0), 0, mode="clip")), positions))
    if ctx.has(1) and ctx.has(4):
        segments = ctx.emit(relax.op.take(ctx.tensor(4), ctx.tensor(1), 0, mode="clip"))
        total = ctx.emit(relax.op.add(total, segments))
    epsilon = float(ctx.attr("epsilon", 1e-12))
    result = ctx.emit(relax.op.nn.layer_norm(total, ctx.tensor(5), ctx.tensor(6), [-1], epsilon=epsilon))
    if ctx.has(7):
        lengths = ctx.emit(relax.op.sum(ctx.emit(relax.op.astype(ctx.tensor(7), "int32")), [1]))
    else:
        lengths = ctx.emit(relax.op.zeros([as_expr(batch)], "int32"))
    return [result, lengths, total][: len(ctx.node.output)]


def gelu(ctx: NodeContext) -> relax.Expr:
    """Gelu and BiasGelu, by erf."""
    data = ctx.emit(relax.op.add(ctx.tensor(0), ctx.tensor(1))) if ctx.has(1) else ctx.tensor(0)
    return relax.op.nn.gelu(data)


def fast_gelu(ctx: NodeContext) -> relax.Expr:
    """FastGelu: of x, or of x + bias, by tanh."""
    data = ctx.emit(relax.op.add(ctx.tensor(0), ctx.tensor(1))) if ctx.has(1) else ctx.tensor(0)
    return relax.op.nn.gelu_tanh(data)


def quick_gelu(ctx: NodeContext) -> relax.Expr:
    """QuickGelu: x * sigmoid(alpha * x)."""
    alpha = ctx.const(float(ctx.attr("alpha", 1.702)), ctx.value(0).dtype)
    gate = ctx.emit(relax.op.sigmoid(_times(ctx, ctx.tensor(0), alpha)))
    return relax.op.multiply(ctx.tensor(0), gate)


def fused_matmul(ctx: NodeContext) -> relax.Expr:
    """FusedMatMul: alpha * op(A) op(B), where op may swap the last two axes."""
    if ctx.attr("transBatchA", 0) or ctx.attr("transBatchB", 0):
        raise ctx.refuse("transBatchA and transBatchB are not supported")
    operands = [_swapped(ctx, index, bool(ctx.attr(name, 0))) for index, name in enumerate(("transA", "transB"))]
    result = ctx.emit(relax.op.matmul(*operands))
    alpha = float(ctx.attr("alpha", 1.0))
    return result if alpha == 1.0 else relax.op.multiply(result, ctx.const(alpha, ctx.value(0).dtype))


def _swapped(ctx: NodeContext, index: int, swap: bool) -> relax.Expr:
    if not swap:
        return ctx.tensor(index)
    value = ctx.value(index)
    if value.is_constant and value.known is not None:
        return constant(np.swapaxes(value.known, -1, -2))
    axes = list(range(ctx.rank(index)))
    return ctx.emit(relax.op.permute_dims(ctx.tensor(index), [*axes[:-2], axes[-1], axes[-2]]))


def _heads(ctx: NodeContext, data: relax.Expr, lead: list[Dim], heads: int) -> relax.Expr:
    """[B, S, C] as [B, S, heads, C / heads]."""
    width = simplify(data.ty.shape.values[-1])
    return ctx.emit(relax.op.reshape(data, [*map(as_expr, lead), heads, as_expr(width) // heads]))


def _times(ctx: NodeContext, a: relax.Expr, b: relax.Expr) -> relax.Expr:
    return ctx.emit(relax.op.multiply(a, b))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "RotaryEmbedding"): rotary_embedding,
    ("com.microsoft", "Attention"): contrib_attention,
    ("com.microsoft", "BiasGelu"): gelu,
    ("com.microsoft", "EmbedLayerNormalization"): embed_layer_norm,
    ("com.microsoft", "FastGelu"): fast_gelu,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "Gelu"): gelu,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "QuickGelu"): quick_gelu,
}
