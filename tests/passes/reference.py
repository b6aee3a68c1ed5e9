"""An interpreter of small Relax graphs in numpy, in float64: what a rewrite must not change."""

from __future__ import annotations

import json
import math

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import bindings_of, constant_array
from greencc.ops import AttentionAttrs, GroupAttrs

_erf = np.vectorize(math.erf, otypes=[np.float64])


def evaluate(module: tvm.IRModule, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs of `main`, computed in float64."""
    function = module["main"]
    symbols: dict[tirx.Var, int] = {}
    values: dict[relax.Expr, object] = {}
    for param, array in zip(function.params, inputs, strict=True):
        values[param] = wide(array)
        for dim, size in zip(param.ty.shape.values, array.shape, strict=True):
            if isinstance(dim, tirx.Var):
                assert symbols.setdefault(dim, size) == size

    def number(expr: object) -> int | float:
        if isinstance(expr, tirx.FloatImm):
            return float(expr.value)
        analyzer = tvm.sym.Analyzer()
        for symbol, size in symbols.items():
            analyzer.bind(symbol, tirx.IntImm("int64", size))
        return int(analyzer.simplify(expr))

    def value(expr: relax.Expr) -> object:
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(number(dim) for dim in expr.values)
        if isinstance(expr, relax.Call):
            handler = _OPS[expr.op.name.removeprefix("relax.")]
            return handler(expr, *[value(arg) for arg in expr.args])
        array = constant_array(expr)
        return wide(array) if array is not None else number(expr)

    for binding in bindings_of(function):
        values[binding.var] = value(binding.value)
        if isinstance(binding, relax.MatchCast):
            for dim, size in zip(binding.ty.values, values[binding.var], strict=True):
                assert symbols.setdefault(dim, size) == size
    return [np.asarray(result) for result in value(function.body.body)]


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype("float64") if array.dtype.kind == "f" else array


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _heads(x: np.ndarray, heads: int, size: int, offset: int) -> np.ndarray:
    """[B, S, C] -> [B, heads, S, size]."""
    columns = x[:, :, offset : offset + heads * size]
    return columns.reshape(*x.shape[:2], heads, size).transpose(0, 2, 1, 3)


def _attention(call: relax.Call, q, k, v, mask=None):
    a = AttentionAttrs.of(call)
    q = _heads(q, a.heads, a.head_dim, a.q_offset)
    k = np.repeat(_heads(k, a.kv_heads, a.head_dim, a.k_offset), a.heads // a.kv_heads, axis=1)
    v = np.repeat(_heads(v, a.kv_heads, a.value_dim, a.v_offset), a.heads // a.kv_heads, axis=1)
    scores = q @ k.swapaxes(2, 3) * a.scale
    shares = softmax(scores if mask is None else scores + mask)
    if a.nan_to_zero:
        shares = np.where(np.isnan(shares), 0.0, shares)
    mixed = (shares @ v).transpose(0, 2, 1, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def _packed_attention(call: relax.Call, q, k, v, starts):
    total = q.shape[1]
    ends = [*starts[1:, 0], total]
    parts = [
        _attention(call, q[:, first:end], k[:, first:end], v[:, first:end])
        for first, end in zip(starts[:, 0], ends, strict=True)
        if first < end
    ]
    return np.concatenate(parts, axis=1)


def _token_starts(call: relax.Call, mask, _dims):
    real = (mask != 0).ravel().astype("int64")
    starts = np.cumsum(real) - real
    return starts.reshape(mask.shape), np.array([max(1, real.sum())])


def _token_places(call: relax.Call, mask, starts, dims):
    places = np.flatnonzero(mask)
    return places if places.size else np.zeros(dims, "int64")


def _pack_tokens(call: relax.Call, x, places, dims):
    b, s = places // dims[0], places % dims[0]
    lead = json.loads(str(call.attrs["options"]))["lead"]
    rows = {"tokens": lambda: x[b, s], "sequences": lambda: x[b, 0], "positions": lambda: x[0, s]}
    return rows.get(lead, lambda: x[s])()[None]


def _unpack_tokens(call: relax.Call, x, mask, starts, _dims):
    result = np.zeros((*mask.shape, *x.shape[2:]), x.dtype)
    result[mask != 0] = x[0, : np.count_nonzero(mask)]
    return result


def _windows(x, kernel, strides, padding, fill):
    """Windows of [N, C, H, W] as [N, C, rows, columns, *kernel]."""
    top, left, bottom, right = (int(pad) for pad in padding)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    return windows[:, :, :: int(strides[0]), :: int(strides[1])]


def _conv2d(call: relax.Call, x, w):
    groups = int(call.attrs.groups)
    assert [int(d) for d in call.attrs.dilation] == [1, 1]
    windows = _windows(x, w.shape[2:], call.attrs.strides, call.attrs.padding, 0)
    pairs = zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    return np.concatenate([np.einsum("ncyxij,ocij->noyx", part, own) for part, own in pairs], axis=1)


def _pool(call: relax.Call, x, dims):
    options = json.loads(str(call.attrs["options"]))
    assert options["kind"] == "max"
    windows = _windows(x, tuple(options["kernel"]), options["strides"], dims[2:], -np.inf)
    return windows.max(axis=(4, 5))


def _avg_pool2d(call: relax.Call, x):
    assert not any(int(pad) for pad in call.attrs.padding)
    kernel = tuple(int(size) for size in call.attrs.pool_size)
    return _windows(x, kernel, call.attrs.strides, call.attrs.padding, 0).mean(axis=(4, 5))


def _kernel(call: relax.Call, *args):
    return _KERNELS[str(call.attrs["kernel"])](call, *args)


_KERNELS = {
    "pack_tokens": _pack_tokens,
    "pool": _pool,
    "to_bool": lambda c, x, _: x != 0,
    "token_places": _token_places,
    "token_starts": _token_starts,
    "unpack_tokens": _unpack_tokens,
}


def _grouped_matmul(call: relax.Call, x, levels, scale, offset=None):
    rows = np.arange(len(levels)) // GroupAttrs.of(call).group
    return x @ (levels * scale[rows] + (0.0 if offset is None else offset[rows]))


def _rotary(call: relax.Call, x, cos, sin):
    if bool(call.attrs["interleaved"]):
        turned = np.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    else:
        half = x.shape[-1] // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]


def _batch_norm(call: relax.Call, x, gamma, beta, mean, var):
    assert not call.attrs.training
    axis = int(call.attrs.axis) % x.ndim
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    gain = gamma / np.sqrt(var + float(call.attrs.epsilon))
    return (x - mean.reshape(shape)) * gain.reshape(shape) + beta.reshape(shape), mean, var


def _slice(call: relax.Call, x, axes, begin, end, strides=None):
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        index[axis] = slice(begin[i], end[i], strides[i] if strides else 1)
    return x[tuple(index)]


def _split(call: relax.Call, x):
    where = call.attrs.indices_or_sections
    cuts = int(where) if not hasattr(where, "__len__") else [int(i) for i in where]
    return tuple(np.split(x, cuts, axis=int(call.attrs.axis)))


def _norm(call: relax.Call, x, gamma, beta=None):
    centred = x if beta is None else x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + float(call.attrs.epsilon))
    return normal * gamma + (0.0 if beta is None else beta)


def _mean(call: relax.Call, x):
    axes = None if call.attrs.axis is None else tuple(int(a) for a in call.attrs.axis)
    return x.mean(axis=axes, keepdims=bool(call.attrs.keepdims))


def _axes(call: relax.Call) -> tuple[int, ...] | None:
    axes = call.attrs.axes if call.op.name == "relax.permute_dims" else call.attrs.axis
    return None if axes is None else tuple(int(a) for a in axes)


_OPS = {
    "abs": lambda c, x: np.abs(x),
    "add": lambda c, a, b: a + b,
    "astype": lambda c, x: x.astype(str(c.attrs.dtype)) if "int" in str(c.attrs.dtype) else x,
    "broadcast_to": lambda c, x, shape: np.broadcast_to(x, shape),
    "clip": lambda c, x, low, high: np.clip(x, low, high),
    "concat": lambda c, parts: np.concatenate(parts, axis=int(c.attrs.axis)),
    "divide": lambda c, a, b: a / b,
    "erf": lambda c, x: _erf(x),
    "exp": lambda c, x: np.exp(x),
    "expand_dims": lambda c, x: np.expand_dims(x, _axes(c)),
    "greencc.attention": _attention,
    "greencc.grouped_matmul": _grouped_matmul,
    "greencc.integer_matmul": lambda c, a, zero, w: (a.astype("int64") - zero.astype("int64")) @ w.astype("int64"),
    "greencc.kernel": _kernel,
    "greencc.packed_attention": _packed_attention,
    "greencc.rotary": _rotary,
    "greater": lambda c, a, b: a > b,
    "greater_equal": lambda c, a, b: a >= b,
    "isnan": lambda c, x: np.isnan(x),
    "logical_and": lambda c, a, b: np.logical_and(a, b),
    "logical_not": lambda c, x: np.logical_not(x),
    "matmul": lambda c, a, b: a @ b,
    "mean": _mean,
    "minimum": lambda c, a, b: np.minimum(a, b),
    "multiply": lambda c, a, b: a * b,
    "negative": lambda c, x: -x,
    "nn.avg_pool2d": _avg_pool2d,
    "nn.batch_norm": _batch_norm,
    "nn.conv2d": _conv2d,
    "nn.gelu": lambda c, x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "nn.gelu_tanh": lambda c, x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "nn.layer_norm": _norm,
    "nn.leakyrelu": lambda c, x: np.where(x > 0, x, float(c.attrs.alpha) * x),
    "nn.relu": lambda c, x: np.maximum(x, 0),
    "nn.rms_norm": _norm,
    "nn.silu": lambda c, x: x / (1 + np.exp(-x)),
    "nn.softmax": lambda c, x: softmax(x, int(c.attrs.axis)),
    "permute_dims": lambda c, x: np.transpose(x, _axes(c)),
    "power": lambda c, a, b: a**b,
    "reshape": lambda c, x, shape: x.reshape(shape),
    "rsqrt": lambda c, x: 1 / np.sqrt(x),
    "sigmoid": lambda c, x: 1 / (1 + np.exp(-x)),
    "split": _split,
    "sqrt": lambda c, x: np.sqrt(x),
    "square": lambda c, x: x * x,
    "squeeze": lambda c, x: np.squeeze(x, _axes(c)),
    "strided_slice": _slice,
    "subtract": lambda c, a, b: a - b,
    "sum": lambda c, x: x.sum(axis=_axes(c), keepdims=bool(c.attrs.keepdims)),
    "take": lambda c, x, i: np.take(x, i, axis=int(c.attrs.axis), mode="wrap" if c.attrs.mode == "wrap" else "clip"),
    "tensor_to_shape": lambda c, x: tuple(int(n) for n in x),
    "tanh": lambda c, x: np.tanh(x),
    "where": lambda c, m, a, b: np.where(m, a, b),
}
