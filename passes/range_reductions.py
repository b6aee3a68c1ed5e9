"""Transfer functions of operators that reduce, pool or quantise; see range_rules.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from tvm import relax, tirx

from greencc.ir import dtype_of, shape_of, static_shape
from greencc.passes import ranges
from greencc.passes.range_operands import Operands, Result
from greencc.passes.ranges import FLOATS, Range


def reduced_count(call: relax.Call) -> int | None:
    """How many elements one result of a reduction covers, or None when a dimension is symbolic."""
    dims = shape_of(call.args[0].ty)
    if dims is None:
        return None
    axes = call.attrs.axis
    chosen = range(len(dims)) if axes is None else [int(a) % len(dims) for a in axes]
    if not all(isinstance(dims[a], tirx.IntImm) for a in chosen):
        return None
    return math.prod(int(dims[a]) for a in chosen)


def extreme(o: Operands) -> Result:
    """Max or min over axes. They start from the last finite number of the other side, not infinity."""
    x, lowest = o[0], o.call.op.name == "relax.max"
    limits = ranges.top(o.dtype)
    if o.dtype in FLOATS:
        greatest = float(np.finfo(o.dtype).max)
        limits = Range(-greatest, greatest)
    start = limits.lo if lowest else limits.hi
    # A NaN followed by a partial result of no elements gives the start value.
    if not reduced_count(o.call) or x.nan:
        return ranges.hull(x, Range(start, start, integral=True))
    return replace(x, hi=max(x.hi, start)) if lowest else replace(x, lo=min(x.lo, start))


def total(o: Operands) -> Result:
    """Sum over axes, in any order of additions."""
    x, count = o[0], reduced_count(o.call)
    if o.dtype not in FLOATS:
        return None
    greatest = float(np.finfo(o.dtype).max)
    if count is not None and x.finite:
        magnitude = count * max(abs(x.lo), abs(x.hi))
        error = magnitude * (count + 2) * float(np.finfo(o.dtype).eps)
        if magnitude + error < greatest:
            low, high = x.lo * count - error, x.hi * count + error
            lo = ranges.round_down(max(low, 0.0) if x.lo >= 0 else low, o.dtype)
            hi = ranges.round_up(min(high, 0.0) if x.hi <= 0 else high, o.dtype)
            return Range(lo, hi, False, x.negative_zero or x.lo < 0, x.integral)
    if x.non_negative:
        return Range(0.0, math.inf, x.nan, False, x.integral)
    return Range(-math.inf, math.inf, True, True, x.integral)


def mean(o: Operands) -> Result:
    """Sum divided by a count."""
    x = o[0]
    # Without a count the mean may be that of nothing, which is NaN.
    nan = x.nan or not reduced_count(o.call) or not x.finite
    if not x.finite or not reduced_count(o.call):
        return Range(0.0, math.inf, nan) if x.non_negative else None
    whole = total(o)
    if not isinstance(whole, Range) or not whole.finite:
        return Range(0.0, math.inf, nan) if x.non_negative else None
    count = reduced_count(o.call) or 1
    lo, hi = ranges.widen(whole.lo / count, whole.hi / count, o.dtype)
    return Range(lo, hi, False, whole.negative_zero)


def spread(o: Operands) -> Result:
    """Variance and standard deviation."""
    return Range(0.0, math.inf, True)


def arg(o: Operands) -> Result:
    """Position of an extreme."""
    # The search starts from index -1, which a row of nothing but -inf keeps.
    dims = static_shape(o.call.args[0].ty)
    last = int(ranges.top(o.dtype).hi) if dims is None else math.prod(dims)
    return Range(-1, min(last, int(ranges.top(o.dtype).hi)), integral=True)


def max_pool(o: Operands) -> Result:
    """Maximum over windows."""
    attrs = o.call.attrs
    # Only then does every window hold at least one real element.
    full = not attrs.ceil_mode and all(
        int(p) < int(k) for p, k in zip(attrs.padding, [*attrs.pool_size, *attrs.pool_size], strict=True)
    )
    if not full or any(int(d) != 1 for d in attrs.dilation) or o[0].nan or o.dtype not in FLOATS:
        return None
    return replace(o[0], hi=max(o[0].hi, -float(np.finfo(o.dtype).max)))


def avg_pool(o: Operands) -> Result:
    """Average over windows, which may hold padding only."""
    return Range(0.0, math.inf, True) if o[0].non_negative else None


def quantize(o: Operands) -> Result:
    """cast(clip(round(x / scale) + zero point, limits of the dtype))."""
    x, scale, zero_point = o[0], o[1], o[2]
    limits = ranges.top(o.dtype)
    if scale.lo <= 0 or not scale.finite or x.nan or dtype_of(o.call.args[0].ty) != "float32":
        return limits
    steps = ranges.divide(x, scale, "float32")
    lo, hi = (round(v) if math.isfinite(v) else v for v in (steps.lo, steps.hi))
    clamped = [min(max(v, limits.lo), limits.hi) for v in (lo + zero_point.lo, hi + zero_point.hi)]
    return Range(int(clamped[0]), int(clamped[1]), integral=True)


def dequantize(o: Operands) -> Result:
    """cast(int32(q) - zero point) * scale."""
    scale = o[1]
    if scale.lo <= 0 or not scale.finite:
        return None
    steps = ranges.subtract(o[0], o[2], "int32")
    # Beyond 2^24 the conversion to float32 would round too.
    exact = o.dtype == "float32" and max(abs(steps.lo), abs(steps.hi)) <= 2**24
    return ranges.multiply(steps, scale, o.dtype) if exact else None
