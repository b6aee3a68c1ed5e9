"""Resize and Upsample, axis by axis.

A static axis becomes a gather with constant indices (nearest) or a weighted sum of a few gathered elements with
constant weights (linear, cubic, antialiased): the tables are computed here, in double precision. A symbolic axis is
resized by a kernel that computes its coordinates at run time; nearest and linear modes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from tvm import relax

from greencc.importers.onnx.context import Converter, NodeContext, Result
from greencc.importers.onnx.values import Dim, as_expr, same_dim, simplify
from greencc.ir import constant
from greencc.kernels import kernel

# Scales of open sizes must be short binary fractions: then every product with a size is exact.
MAX_DENOMINATOR = 1 << 10


@dataclass(frozen=True)
class Axis:
    """One axis to resize: sizes before and after, the stated scale (None: out / size), its region of interest."""

    index: int
    size: Dim
    out: Dim
    scale: float | None
    region: tuple[float, float]


@dataclass(frozen=True)
class Options:
    """The node's attributes."""

    mode: str
    transform: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def resize(ctx: NodeContext) -> Result:
    """Resize (opset 10 on) and Upsample."""
    options, axes = _options(ctx), _axes(ctx)
    data, dtype = ctx.tensor(0), ctx.value(0).dtype
    cropped = options.transform == "tf_crop_and_resize"
    active = [axis for axis in axes if cropped or not same_dim(axis.size, axis.out) or axis.scale not in (None, 1.0)]
    work = dtype
    if options.mode != "nearest" and np.dtype(dtype).kind != "f":
        raise ctx.refuse(f"mode '{options.mode}' on {dtype} rounds differently from runtime to runtime")
    if options.mode != "nearest" and dtype == "float16":
        work = "float32"
        data = ctx.emit(relax.op.astype(data, work))
    for axis in active:
        data = ctx.emit(_resize_axis(ctx, data, axis, options, work))
    if cropped:
        data = _extrapolate(ctx, data, active, options, work)
    return ctx.emit(relax.op.astype(data, dtype)) if work != dtype else data


def _resize_axis(ctx: NodeContext, data: relax.Expr, axis: Axis, options: Options, dtype: str) -> relax.Expr:
    if isinstance(axis.size, int) and isinstance(axis.out, int):
        if options.transform == "align_corners" and axis.scale and axis.size * axis.scale % 1 > 1e-6:
            # The standard's reference divides by the size before rounding, ONNX Runtime by the rounded one.
            raise ctx.refuse("align_corners with a scale that gives no whole size: its meaning is not settled")
        indices, weights = tables(axis, options)
        if options.mode == "nearest":
            return relax.op.take(data, constant(indices[:, 0]), axis=axis.index, mode="clip")
        table = constant(weights.astype(dtype))
        return kernel("weighted_take", [data, constant(indices), table], axis=axis.index)
    if options.mode == "cubic" or options.antialias or options.transform == "tf_crop_and_resize":
        raise ctx.refuse(f"mode '{options.mode}' with these options needs a static size on axis {axis.index}")
    if options.transform == "align_corners" and axis.scale and axis.scale % 1:
        raise ctx.refuse("align_corners with a scale that may give no whole size: its meaning is not settled")
    return kernel(
        "resize_axis",
        [data],
        [as_expr(axis.out)],
        axis=axis.index,
        mode=options.mode,
        transform=options.transform,
        rounding=options.rounding,
        scale=axis.scale,
    )


def coordinates(axis: Axis, transform: str) -> np.ndarray:
    """Where each output element lies on the input axis. Formulas of the ONNX operator's documentation."""
    size, out = int(axis.size), int(axis.out)
    scale = out / size if axis.scale is None else axis.scale
    at = np.arange(out, dtype=np.float64)
    match transform:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            adjustment = out / (scale * size)
            return size / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if out > 1 else np.full(out, -0.5 if scale == 0 else 0.0)
        case "align_corners":
            return at * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
        case "asymmetric":
            return at / scale
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = axis.region
            if out > 1:
                return start * (size - 1) + at * (end - start) * (size - 1) / (out - 1)
            return np.full(out, 0.5 * (start + end) * (size - 1))
    raise ValueError(f"unknown coordinate transformation {transform}")


def tables(axis: Axis, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """(indices, weights) [out, taps]: output i is the sum over taps of weight times the element at the index."""
    at, size = coordinates(axis, options.transform), int(axis.size)
    if options.mode == "nearest":
        nearest = _ROUNDING[options.rounding](at)
        return np.clip(nearest, 0, size - 1).astype(np.int64)[:, None], np.ones((len(at), 1))
    scale = int(axis.out) / size if axis.scale is None else axis.scale
    stretch = min(scale, 1.0) if options.antialias else 1.0
    reach = (2.0 if options.mode == "cubic" else 1.0) / stretch
    count = int(np.ceil(reach)) * 2
    first = np.floor(at).astype(np.int64) - count // 2 + 1
    indices = first[:, None] + np.arange(count)
    distance = np.abs(at[:, None] - indices) * stretch
    weights = _cubic(distance, options.cubic) if options.mode == "cubic" else np.maximum(0.0, 1 - distance)
    if options.exclude_outside:
        weights = np.where((indices >= 0) & (indices < size), weights, 0.0)
    if options.antialias or options.exclude_outside:
        weights = weights / weights.sum(axis=1, keepdims=True)
    used = np.abs(weights).max(axis=0) > 0
    return np.clip(indices[:, used], 0, size - 1), weights[:, used]


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter `a`."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _extrapolate(ctx: NodeContext, data: relax.Expr, axes: list[Axis], options: Options, dtype: str) -> relax.Expr:
    """Outputs whose coordinate on some axis lies outside of the input take the extrapolation value."""
    rank = ctx.rank(0)
    for axis in axes:
        at = coordinates(axis, options.transform)
        outside = (at < 0) | (at > int(axis.size) - 1)
        if outside.any():
            mask = constant(outside.reshape([-1 if i == axis.index else 1 for i in range(rank)]))
            data = ctx.emit(relax.op.where(mask, ctx.const(options.extrapolation, dtype), data))
    return data


def _options(ctx: NodeContext) -> Options:
    mode = str(ctx.attr("mode", "nearest"))
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    old = ctx.op == "Upsample" or ctx.opset < 11
    transform = "asymmetric" if old else str(ctx.attr("coordinate_transformation_mode", "half_pixel"))
    rounding = "floor" if old else str(ctx.attr("nearest_mode", "round_prefer_floor"))
    if mode not in ("nearest", "linear", "cubic") or rounding not in _ROUNDING:
        raise ctx.refuse(f"mode '{mode}' with nearest_mode '{rounding}' is unknown")
    known = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
             "tf_half_pixel_for_nn", "tf_crop_and_resize")  # fmt: skip
    if transform not in known:
        raise ctx.refuse(f"coordinate_transformation_mode '{transform}' is unknown")
    return Options(
        mode,
        transform,
        rounding,
        float(ctx.attr("cubic_coeff_a", -0.75)),
        bool(ctx.attr("exclude_outside", 0)),
        bool(ctx.attr("antialias", 0)) and mode != "nearest",
        float(ctx.attr("extrapolation_value", 0.0)),
    )


def _axes(ctx: NodeContext) -> list[Axis]:
    """The axes that the node names, with their output sizes."""
    shape = ctx.shape(0)
    names = [int(a) % len(shape) for a in ctx.attr("axes", range(len(shape)))]
    at_scales, at_sizes = (1, None) if ctx.op == "Upsample" or ctx.opset < 11 else (2, 3)
    region = [0.0] * len(names) + [1.0] * len(names)
    if at_sizes is not None and ctx.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        region = [float(value) for value in ctx.constant(1).reshape(-1)]
    scales: list[float] | None = None
    if ctx.op == "Upsample" and ctx.opset < 9:
        scales = [float(s) for s in ctx.attr("scales")]
    elif ctx.has(at_scales) and ctx.shape(at_scales) != [0]:
        scales = [float(s) for s in ctx.constant(at_scales).reshape(-1)]
    if scales is not None:
        if len(scales) != len(names) or min(scales) <= 0:
            raise ctx.refuse(f"scales {scales} do not fit the axes {names}")
        spans = _spans(ctx, region, names)
        outs = [_scaled(ctx, shape[name], scale, ends) for name, scale, ends in zip(names, scales, spans, strict=True)]
        return [
            Axis(name, shape[name], out, scale, ends)
            for name, out, scale, ends in zip(names, outs, scales, spans, strict=True)
        ]
    if at_sizes is None or not ctx.has(at_sizes):
        raise ctx.refuse("it states neither scales nor sizes")
    sizes = ctx.dims(at_sizes)
    if len(sizes) != len(names):
        raise ctx.refuse(f"sizes {sizes} do not fit the axes {names}")
    stated: float | None = None
    policy = ctx.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        if not all(isinstance(d, int) for d in (*sizes, *(shape[name] for name in names))):
            raise ctx.refuse("keep_aspect_ratio_policy needs static sizes")
        ratios = [int(size) / int(shape[name]) for size, name in zip(sizes, names, strict=True)]
        stated = min(ratios) if policy == "not_larger" else max(ratios)
        sizes = [int(np.floor(stated * int(shape[name]) + 0.5)) for name in names]
    return [
        Axis(name, shape[name], size, stated, ends)
        for name, size, ends in zip(names, sizes, _spans(ctx, region, names), strict=True)
    ]


def _spans(ctx: NodeContext, region: list[float], names: list[int]) -> list[tuple[float, float]]:
    if len(region) != 2 * len(names):
        raise ctx.refuse(f"the region of interest has {len(region)} entries for {len(names)} axes")
    return list(zip(region[: len(names)], region[len(names) :], strict=True))


def _scaled(ctx: NodeContext, size: Dim, scale: float, region: tuple[float, float]) -> Dim:
    """floor(size * (end - start) * scale), in float32 like ONNX Runtime; a symbolic size is scaled exactly."""
    if isinstance(size, int):
        extent = np.float32(region[1]) - np.float32(region[0])
        return int(np.floor(np.float32(size) * extent * np.float32(scale)))
    ratio = Fraction(scale)
    if ratio.denominator > MAX_DENOMINATOR:
        raise ctx.refuse(f"scale {scale} of the open size {size}: the product's rounding can't be known; give --shape")
    return simplify(size * ratio.numerator // ratio.denominator)


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
}
