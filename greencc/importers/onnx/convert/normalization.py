"""Normalisations: over the batch (inference), layers, groups, instances, and the RMS and Lp forms."""

from __future__ import annotations

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext, Result
from greencc.importers.onnx.values import Dim, as_expr, simplify
from greencc.ir import constant
from greencc.kernels import kernel


def batch_norm(ctx: NodeContext) -> Result:
    """BatchNormalization with stored statistics: relax.nn.batch_norm(...)[0], which folds into a convolution."""
    if ctx.attr("training_mode", 0) or (ctx.opset < 7 and not ctx.attr("is_test", 0)):
        raise ctx.refuse("it updates its statistics (training mode); export the model for inference")
    if any(ctx.node.output[1:]):
        raise ctx.refuse("it gives out statistics, which belongs to training; export the model for inference")
    if ctx.opset < 9 and not ctx.attr("spatial", 1):
        raise ctx.refuse("statistics per element (spatial=0) are not supported")
    dtypes = {ctx.value(index).dtype for index in range(5)}
    if len(dtypes) > 1:
        raise ctx.refuse(f"input and statistics differ in type: {', '.join(sorted(dtypes))}")
    pair = ctx.emit(
        relax.op.nn.batch_norm(
            *(ctx.tensor(index) for index in range(5)),
            axis=1,
            epsilon=float(ctx.attr("epsilon", 1e-5)),
            training=False,
        )
    )
    return relax.TupleGetItem(pair, 0)


def layer_norm(ctx: NodeContext) -> Result:
    """LayerNormalization over the axes from `axis` on."""
    axis, rank = ctx.axis(default=-1), ctx.rank(0)
    data, epsilon = ctx.tensor(0), float(ctx.attr("epsilon", 1e-5))
    axes = list(range(axis, rank))
    dtype = ctx.value(0).dtype
    if not any(ctx.node.output[1:]) and _same_sizes(ctx, 1, axis) and dtype == "float32":
        bias = ctx.tensor(2) if ctx.has(2) else _zeros_like(ctx, 1)
        if _same_sizes(ctx, 2, axis):
            return relax.op.nn.layer_norm(data, ctx.tensor(1), bias, [a - rank for a in axes], epsilon=epsilon)
    stash = "float32" if ctx.attr("stash_type", 1) == 1 and dtype != "float64" else dtype
    normal, mean, inverse = standardize(ctx, _cast(ctx, data, dtype, stash), axes, epsilon, stash)
    scaled = ctx.emit(relax.op.multiply(_cast(ctx, normal, stash, dtype), ctx.tensor(1)))
    result = ctx.emit(relax.op.add(scaled, ctx.tensor(2))) if ctx.has(2) else scaled
    return [result, mean, inverse][: len(ctx.node.output)]


def standardize(
    ctx: NodeContext, data: relax.Expr, axes: list[int], epsilon: float, dtype: str
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """((x - mean) / sqrt(var + epsilon), mean, 1 / sqrt(var + epsilon)) over `axes`, which are kept."""
    mean = ctx.emit(relax.op.mean(data, axes, keepdims=True))
    centered = ctx.emit(relax.op.subtract(data, mean))
    variance = ctx.emit(relax.op.mean(ctx.emit(relax.op.multiply(centered, centered)), axes, keepdims=True))
    deviation = ctx.emit(relax.op.sqrt(ctx.emit(relax.op.add(variance, ctx.const(epsilon, dtype)))))
    inverse = ctx.emit(relax.op.divide(ctx.const(1.0, dtype), deviation))
    return ctx.emit(relax.op.multiply(centered, inverse)), mean, inverse


def instance_norm(ctx: NodeContext) -> Result:
    """InstanceNormalization: each channel of each image by itself."""
    rank, dtype = ctx.rank(0), ctx.value(0).dtype
    axes = list(range(2, rank))
    normal, _, _ = standardize(ctx, ctx.tensor(0), axes, float(ctx.attr("epsilon", 1e-5)), dtype)
    return _per_channel(ctx, normal, rank)


def group_norm(ctx: NodeContext) -> Result:
    """GroupNormalization; before opset 21 scale and bias are per group, from it on per channel."""
    shape, dtype = ctx.shape(0), ctx.value(0).dtype
    groups = int(ctx.attr("num_groups", 1))
    channels = shape[1]
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise ctx.refuse(f"{channels} channels do not fall into {groups} groups")
    stash = "float32" if ctx.opset >= 21 and ctx.attr("stash_type", 1) == 1 and dtype != "float64" else dtype
    epsilon, data = float(ctx.attr("epsilon", 1e-5)), ctx.tensor(0)
    grouped: list[Dim] = [shape[0], groups, channels // groups, *shape[2:]]
    data = ctx.emit(relax.op.reshape(data, [as_expr(dim) for dim in grouped]))
    axes = list(range(2, len(grouped)))
    normal, _, _ = standardize(ctx, _cast(ctx, data, dtype, stash), axes, epsilon, stash)
    normal = _cast(ctx, normal, stash, dtype)
    if ctx.opset < 21:
        normal = _per_channel(ctx, normal, len(grouped))
        return relax.op.reshape(ctx.emit(normal), [as_expr(dim) for dim in shape])
    normal = ctx.emit(relax.op.reshape(normal, [as_expr(dim) for dim in shape]))
    return _per_channel(ctx, normal, len(shape))


def rms_norm(ctx: NodeContext) -> Result:
    """RMSNormalization over the axes from `axis` on; also SimplifiedLayerNormalization."""
    axis, rank, dtype = ctx.axis(default=-1), ctx.rank(0), ctx.value(0).dtype
    epsilon, data = float(ctx.attr("epsilon", 1e-5)), ctx.tensor(0)
    only_result = not any(ctx.node.output[1:])
    if only_result and axis == rank - 1 and _same_sizes(ctx, 1, axis) and dtype == "float32":
        return relax.op.nn.rms_norm(data, ctx.tensor(1), [-1], epsilon)
    stash = "float32" if ctx.attr("stash_type", 1) == 1 and dtype != "float64" else dtype
    wide = _cast(ctx, data, dtype, stash)
    square = ctx.emit(relax.op.multiply(wide, wide))
    mean = ctx.emit(relax.op.mean(square, list(range(axis, rank)), keepdims=True))
    root = ctx.emit(relax.op.sqrt(ctx.emit(relax.op.add(mean, ctx.const(epsilon, stash)))))
    inverse = ctx.emit(relax.op.divide(ctx.const(1.0, stash), root))
    normal = _cast(ctx, ctx.emit(relax.op.multiply(wide, inverse)), stash, dtype)
    result = ctx.emit(relax.op.multiply(normal, ctx.tensor(1)))
    return [result, inverse][: len(ctx.node.output)]


def skip_layer_norm(ctx: NodeContext) -> Result:
    """com.microsoft SkipLayerNormalization: layer norm of input + skip (+ bias); the sum is its fourth output."""
    total = ctx.emit(relax.op.add(ctx.tensor(0), ctx.tensor(1)))
    if ctx.has(4):
        total = ctx.emit(relax.op.add(total, ctx.tensor(4)))
    if any(ctx.node.output[1:3]):
        raise ctx.refuse("the outputs mean and inv_std_var are not supported")
    beta = ctx.tensor(3) if ctx.has(3) else _zeros_like(ctx, 2)
    epsilon = float(ctx.attr("epsilon", 1e-12))
    result = ctx.emit(relax.op.nn.layer_norm(total, ctx.tensor(2), beta, [-1], epsilon=epsilon))
    return [result, total, total, total][: len(ctx.node.output)]


def skip_rms_norm(ctx: NodeContext) -> Result:
    """com.microsoft SkipSimplifiedLayerNormalization: RMS norm of input + skip (+ bias)."""
    total = ctx.emit(relax.op.add(ctx.tensor(0), ctx.tensor(1)))
    if ctx.has(3):
        total = ctx.emit(relax.op.add(total, ctx.tensor(3)))
    if any(ctx.node.output[1:3]):
        raise ctx.refuse("the outputs mean and inv_std_var are not supported")
    result = ctx.emit(relax.op.nn.rms_norm(total, ctx.tensor(2), [-1], float(ctx.attr("epsilon", 1e-12))))
    return [result, total, total, total][: len(ctx.node.output)]


def local_response_norm(ctx: NodeContext) -> Result:
    """LRN: x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ^ beta."""
    size, dtype = int(ctx.attr("size")), ctx.value(0).dtype
    alpha, beta, bias = (float(ctx.attr(n, d)) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if size < 1:
        raise ctx.refuse(f"size {size} must be positive")
    squares = ctx.emit(kernel("channel_window_squares", [ctx.tensor(0)], size=size))
    base = ctx.emit(relax.op.multiply(squares, ctx.const(alpha / size, dtype)))
    base = ctx.emit(relax.op.add(base, ctx.const(bias, dtype)))
    return relax.op.divide(ctx.tensor(0), ctx.emit(relax.op.power(base, ctx.const(beta, dtype))))


def lp_norm(ctx: NodeContext) -> Result:
    """LpNormalization: x divided by its 1- or 2-norm along an axis; a norm of 0 gives 0."""
    axis, power, dtype = ctx.axis(default=-1), ctx.attr("p", 2), ctx.value(0).dtype
    if power not in (1, 2):
        raise ctx.refuse(f"p = {power} is neither 1 nor 2")
    data = ctx.tensor(0)
    size = ctx.emit(relax.op.abs(data) if power == 1 else relax.op.multiply(data, data))
    norm = ctx.emit(relax.op.sum(size, [axis], keepdims=True))
    if power == 2:
        norm = ctx.emit(relax.op.sqrt(norm))
    zero = ctx.const(0.0, dtype)
    is_zero = ctx.emit(relax.op.equal(norm, zero))
    safe = ctx.emit(relax.op.where(is_zero, ctx.const(1.0, dtype), norm))
    return relax.op.where(is_zero, zero, ctx.emit(relax.op.divide(data, safe)))


def mean_variance_norm(ctx: NodeContext) -> Result:
    """MeanVarianceNormalization: (x - mean) / (standard deviation + 1e-9)."""
    axes, dtype = [int(a) for a in ctx.attr("axes", [0, 2, 3])], ctx.value(0).dtype
    data = ctx.tensor(0)
    centered = ctx.emit(relax.op.subtract(data, ctx.emit(relax.op.mean(data, axes, keepdims=True))))
    variance = ctx.emit(relax.op.mean(ctx.emit(relax.op.multiply(centered, centered)), axes, keepdims=True))
    deviation = ctx.emit(relax.op.add(ctx.emit(relax.op.sqrt(variance)), ctx.const(1e-9, dtype)))
    return relax.op.divide(centered, deviation)


def _same_sizes(ctx: NodeContext, index: int, axis: int) -> bool:
    """Whether input `index`, if given, has exactly the sizes of input 0 from `axis` on."""
    if not ctx.has(index):
        return True
    own, other = ctx.shape(0)[axis:], ctx.shape(index)
    return len(own) == len(other) and all(
        isinstance(a, int) and isinstance(b, int) and a == b for a, b in zip(own, other, strict=True)
    )


def _zeros_like(ctx: NodeContext, index: int) -> relax.Expr:
    shape = [simplify(dim) for dim in ctx.shape(index)]
    if not all(isinstance(dim, int) for dim in shape):
        raise ctx.refuse(f"the shape of input {index} must be static")
    return constant(np.zeros(tuple(map(int, shape)), ctx.value(index).dtype))


def _per_channel(ctx: NodeContext, data: relax.Expr, rank: int) -> relax.Expr:
    """Data * input 1 + input 2, both of shape [C] and aligned with axis 1."""
    scale, bias = (ctx.emit(relax.op.reshape(ctx.tensor(index), (1, -1, *[1] * (rank - 2)))) for index in (1, 2))
    return relax.op.add(ctx.emit(relax.op.multiply(data, scale)), bias)


def _cast(ctx: NodeContext, data: relax.Expr, source: str, target: str) -> relax.Expr:
    return data if source == target else ctx.emit(relax.op.astype(data, target))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "BatchNormalization"): batch_norm,
    ("", "LayerNormalization"): layer_norm,
    ("com.microsoft", "LayerNormalization"): layer_norm,
    ("", "GroupNormalization"): group_norm,
    ("", "InstanceNormalization"): instance_norm,
    ("", "RMSNormalization"): rms_norm,
    ("", "SimplifiedLayerNormalization"): rms_norm,
    ("com.microsoft", "SimplifiedLayerNormalization"): rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_rms_norm,
    ("", "LRN"): local_response_norm,
    ("", "LpNormalization"): lp_norm,
    ("", "MeanVarianceNormalization"): mean_variance_norm,
}
