"""Transfer functions of the value-range analysis: the range of an operator's result from those of its operands.

What they take for granted of every lowering (TVM's own, and greencc's schedules), beyond correct rounding of
+, -, *, / and exact comparisons, maximum, minimum, relu, clip, where and casts:
  exp, sqrt, softplus, variance >= 0, sigmoid and softmax within [0, 1] (softmax up to SLACK), never -0 for them
  tanh and erf keep the sign of their operand and stay within 1 + SLACK
  exp, sigmoid, tanh, erf, sqrt, log are within SLACK (relative) of the increasing function they approximate.
An operator without an entry gives the top range of its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from tvm import ir, relax, tirx

from greencc.ir import dtype_of, shape_of, static_shape
from greencc.passes import ranges
from greencc.passes.ranges import BOOL, FALSE, FLOATS, SLACK, TRUE, Range

# A tuple's range is that of its fields.
Result = Range | tuple[Range, ...] | None


@dataclass(frozen=True)
class Operands:
    """A call seen by a transfer function.

    Attributes:
        call: the operator call; its type is known.
        dtype: element type of the result (of the first field, for a tuple).
        range_of: range of an operand (a tuple operand gives the hull of its fields).
        constant: value of an operand that is a constant, else None.
    """

    call: relax.Call
    dtype: str
    range_of: Callable[[relax.Expr], Range]
    constant: Callable[[relax.Expr], np.ndarray | None]

    def __getitem__(self, index: int) -> Range:
        return self.range_of(self.call.args[index])

    @property
    def same(self) -> bool:
        """Whether the first two operands are one value."""
        return bool(self.call.args[0].same_as(self.call.args[1]))

    def number(self, index: int) -> float | int | None:
        """A scalar operand that is part of the call (the bounds of clip), rounded to the result's dtype."""
        arg = self.call.args[index]
        if not isinstance(arg, (ir.prim.FloatImm, ir.prim.IntImm)):
            return None
        return number_in(arg.value, self.dtype)


def number_in(value: float, dtype: str) -> float | int | None:
    """`value` as an element of `dtype` (a float may become an infinity), or None when it can't be one."""
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            return float(np.dtype(dtype).type(value))
    limits = ranges.top(dtype)
    exact = not isinstance(value, float) or value.is_integer()
    return int(value) if exact and limits.lo <= value <= limits.hi and limits is not ranges.ANY_FLOAT else None


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


def clamp(x: Range, lo: float, hi: float) -> Range:
    """max(min(x, hi), lo), as TVM lowers clip."""
    constant = [ranges.of_array(np.array(v)) for v in (hi, lo)]
    return ranges.maximum(ranges.minimum(x, constant[0]), constant[1])


def _keep(o: Operands) -> Result:
    return o[0]


def _keep_fields(o: Operands) -> Result:
    fields = getattr(o.call.ty, "fields", None)
    return tuple(o[0] for _ in fields) if fields is not None else None


def _with_zero(o: Operands) -> Result:
    return ranges.hull(o[0], Range(0, 0, integral=True))


def _clip(o: Operands) -> Result:
    lo, hi = o.number(1), o.number(2)
    return None if lo is None or hi is None or lo != lo or hi != hi else clamp(o[0], lo, hi)


def _relu(o: Operands) -> Result:
    return ranges.maximum(o[0], Range(0, 0, integral=True))


def _float_only(rule: Callable[[Operands], Result]) -> Callable[[Operands], Result]:
    return lambda o: rule(o) if o.dtype in FLOATS else None


def _sloped(o: Operands, slope: Range) -> Range:
    """x > 0 ? x : x * slope."""
    x = o[0]
    negative = replace(x, hi=min(x.hi, 0.0), lo=min(x.lo, 0.0))
    parts = [ranges.multiply(negative, slope, o.dtype)] if x.lo <= 0 or x.nan else []
    if x.lo > 0 or x.hi > 0:
        parts.append(replace(x, lo=max(x.lo, 0.0), nan=False, negative_zero=False))
    return ranges.hull(*parts)


def _leaky(o: Operands) -> Result:
    slope = number_in(float(o.call.attrs.alpha), o.dtype)
    return None if slope is None else _sloped(o, Range(slope, slope))


def _abs(o: Operands) -> Result:
    x = o[0]
    if o.dtype not in FLOATS:
        # |-128| wraps around in int8.
        limits = ranges.top(o.dtype)
        if -x.lo > limits.hi:
            return None
    lo = max(x.lo, -x.hi, 0)
    return Range(lo, max(abs(x.lo), abs(x.hi)), x.nan, False, x.integral)


def _increasing(
    function: Callable[[float], float], lo: float = -math.inf, hi: float = math.inf, *, zero: bool = False
) -> Callable[[Operands], Result]:
    """An increasing function with results in [lo, hi]; `zero`: it is 0 at 0, so -0 (or an underflow to it) stays."""

    def rule(o: Operands) -> Result:
        low, high = ranges.monotone(function, o[0], o.dtype)
        return Range(max(low, lo), min(high, hi), o[0].nan, zero and (o[0].negative_zero or o[0].lo < 0))

    return _float_only(rule)


def _safe_exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _logistic(x: float) -> float:
    return 1 / (1 + _safe_exp(-x))


def _softplus(x: float) -> float:
    return x if x > 20 else math.log1p(_safe_exp(x))


def _sqrt(o: Operands) -> Result:
    x = o[0]
    low, high = ranges.widen(math.sqrt(max(x.lo, 0)), math.sqrt(max(x.hi, 0)), o.dtype)
    return Range(low, high, x.nan or x.lo < 0, x.negative_zero)


def _rsqrt(o: Operands) -> Result:
    x = o[0]
    return None if x.negative_zero or x.lo < 0 else Range(0.0, math.inf, x.nan)


def _square(o: Operands) -> Result:
    return ranges.multiply(o[0], o[0], o.dtype, same=True)


def _power(o: Operands) -> Result:
    exponent = o[1].value()
    if exponent is not None and exponent.is_integer() and exponent > 0 and exponent % 2 == 0:
        return Range(0.0, math.inf, o[0].nan)
    return Range(0.0, math.inf, True) if o[0].non_negative else None


def _multiply(o: Operands) -> Result:
    return ranges.multiply(o[0], o[1], o.dtype, same=o.same)


def _rounding(function: Callable[[float], float]) -> Callable[[Operands], Result]:
    def rule(o: Operands) -> Result:
        x = o[0]
        lo, hi = (function(v) if math.isfinite(v) else v for v in (x.lo, x.hi))
        return Range(lo + 0.0, hi + 0.0, x.nan, x.negative_zero or x.lo < 0, True)

    return _float_only(rule)


def _sign(o: Operands) -> Result:
    x = o[0]
    return Range(-1 if x.lo < 0 else 0, 1 if x.hi > 0 else 0, x.nan, x.negative_zero, True)


def _softmax(o: Operands) -> Result:
    # A row with +inf, or with nothing but -inf, is NaN.
    return Range(0.0, ranges.round_up(1 + SLACK, o.dtype), not o[0].finite)


def _gated(least: float) -> Callable[[Operands], Result]:
    """x * gate(x) with a gate in [0, 1] that is known within SLACK; `least` is below the function's minimum."""

    def rule(o: Operands) -> Result:
        x = o[0]
        error = max(-x.lo, 0.0) * SLACK
        low = 0.0 if x.lo >= 0 else least - error
        _, high = ranges.widen(0.0, max(x.hi, 0.0), o.dtype, error)
        # -inf * 0 is NaN.
        nan = x.nan or x.lo == -math.inf
        return Range(ranges.round_down(low, o.dtype), high, nan, x.lo < 0 or x.negative_zero)

    return _float_only(rule)


def _where(o: Operands) -> Result:
    condition = o[0].value()
    if condition is not None:
        return o[1] if condition else o[2]
    return ranges.hull(o[1], o[2])


def _cast(o: Operands) -> Result:
    x, source = o[0], dtype_of(o.call.args[0].ty)
    if o.dtype == "bool":
        return BOOL
    if o.dtype in FLOATS:
        if source not in FLOATS and ranges.top(source) is ranges.ANY_FLOAT:
            return None
        return Range(
            ranges.round_down(x.lo, o.dtype), ranges.round_up(x.hi, o.dtype), x.nan, x.negative_zero, x.integral
        )
    limits = ranges.top(o.dtype)
    if limits is ranges.ANY_FLOAT or x.nan or not (limits.lo <= math.trunc(x.lo) and math.trunc(x.hi) <= limits.hi):
        return None
    return Range(math.trunc(x.lo), math.trunc(x.hi), integral=True)


def _order(always: Callable[[Range, Range], bool], never: Callable[[Range, Range], bool]) -> Callable[[Operands], Result]:
    """A comparison. NaN compares false, so it only spoils `always`."""

    def rule(o: Operands) -> Result:
        a, b = o[0], o[1]
        if never(a, b):
            return FALSE
        return TRUE if always(a, b) and not a.nan and not b.nan else BOOL

    return rule


def _apart(a: Range, b: Range) -> bool:
    return a.hi < b.lo or a.lo > b.hi


def _not_equal(o: Operands) -> Result:
    return TRUE if _apart(o[0], o[1]) else BOOL


def _logic(function: Callable[[bool, bool], bool]) -> Callable[[Operands], Result]:
    def rule(o: Operands) -> Result:
        corners = [function(bool(x), bool(y)) for x in (o[0].lo, o[0].hi) for y in (o[1].lo, o[1].hi)]
        return Range(int(min(corners)), int(max(corners)), integral=True) if o.dtype == "bool" else None

    return rule


def _logical_not(o: Operands) -> Result:
    return Range(1 - o[0].hi, 1 - o[0].lo, integral=True) if o.dtype == "bool" else None


def _flag(possible: Callable[[Range], bool]) -> Callable[[Operands], Result]:
    return lambda o: BOOL if possible(o[0]) else FALSE


def _isfinite(o: Operands) -> Result:
    return TRUE if o[0].finite else BOOL


def _extreme(o: Operands) -> Result:
    """max and min over axes. They start from the greatest finite number of the other side, not from infinity."""
    x, count = o[0], reduced_count(o.call)
    limits = ranges.top(o.dtype)
    start = limits if o.dtype not in FLOATS else Range(-float(np.finfo(o.dtype).max), float(np.finfo(o.dtype).max))
    lowest = o.call.op.name == "relax.max"
    if not count:
        return ranges.hull(x, replace(start, hi=start.lo) if lowest else replace(start, lo=start.hi))
    return replace(x, hi=max(x.hi, start.lo)) if lowest else replace(x, lo=min(x.lo, start.hi))


def _sum(o: Operands) -> Result:
    x, count = o[0], reduced_count(o.call)
    if o.dtype not in FLOATS:
        return None
    if count is not None and x.finite:
        rounding = 1 + (count + 2) * float(np.finfo(o.dtype).eps)
        if abs(x.lo) * count * rounding < float(np.finfo(o.dtype).max) > abs(x.hi) * count * rounding:
            low, high = min(x.lo * count, 0.0) * rounding, max(x.hi * count, 0.0) * rounding
            lo, hi = ranges.round_down(low, o.dtype), ranges.round_up(high, o.dtype)
            return Range(lo, hi, False, x.negative_zero or x.lo < 0, x.integral)
    if x.non_negative:
        return Range(0.0, math.inf, x.nan, False, x.integral)
    return Range(-math.inf if x.lo < 0 else 0.0, math.inf, x.nan or x.lo < 0, True, x.integral)


def _mean(o: Operands) -> Result:
    x = o[0]
    # Without a count the mean may be that of nothing, which is NaN.
    nan = x.nan or not reduced_count(o.call) or not x.finite
    if not x.finite or not reduced_count(o.call):
        return Range(0.0, math.inf, nan) if x.non_negative else None
    total = _sum(o)
    if not isinstance(total, Range) or not total.finite:
        return Range(0.0, math.inf, nan) if x.non_negative else None
    count = reduced_count(o.call) or 1
    lo, hi = ranges.widen(total.lo / count, total.hi / count, o.dtype)
    return Range(lo, hi, False, total.negative_zero)


def _spread(o: Operands) -> Result:
    return Range(0.0, math.inf, True)


def _arg(o: Operands) -> Result:
    # The search starts from index -1, which a row of nothing but -inf keeps.
    dims = static_shape(o.call.args[0].ty)
    last = int(ranges.top(o.dtype).hi) if dims is None else math.prod(dims)
    return Range(-1, min(last, int(ranges.top(o.dtype).hi)), integral=True)


def _take(o: Operands) -> Result:
    nan = o.call.op.name == "relax.take" and o.call.attrs.mode == "nan"
    return replace(o[0], nan=o[0].nan or nan) if o.dtype in FLOATS else o[0]


def _pad(o: Operands) -> Result:
    value = number_in(float(o.call.attrs.pad_value), o.dtype)
    if str(o.call.attrs.pad_mode) != "constant" or value is None:
        return o[0]
    return ranges.hull(o[0], ranges.of_array(np.array(value, o.dtype)))


def _max_pool(o: Operands) -> Result:
    attrs = o.call.attrs
    # Only then does every window hold at least one real element.
    full = not attrs.ceil_mode and all(
        int(p) < int(k) for p, k in zip(attrs.padding, [*attrs.pool_size, *attrs.pool_size], strict=True)
    )
    if not full or any(int(d) != 1 for d in attrs.dilation):
        return None
    return replace(o[0], hi=max(o[0].hi, -float(np.finfo(o.dtype).max))) if o.dtype in FLOATS else None


def _avg_pool(o: Operands) -> Result:
    return Range(0.0, math.inf, True) if o[0].non_negative else None


def _full(o: Operands) -> Result:
    return o[1]


def _ones(o: Operands) -> Result:
    return Range(1, 1, integral=True)


def _zeros(o: Operands) -> Result:
    return Range(0, 0, integral=True)


def _dropout(o: Operands) -> Result:
    return o[0], Range(1, 1, integral=True)


def _quantize(o: Operands) -> Result:
    """cast(clip(round(x / scale) + zero point, limits of the dtype))."""
    x, scale, zero_point = o[0], o[1], o[2]
    limits = ranges.top(o.dtype)
    if scale.lo <= 0 or scale.nan or x.nan:
        return limits
    steps = ranges.divide(x, scale, "float32")
    lo, hi = (round(v) if math.isfinite(v) else v for v in (steps.lo, steps.hi))
    clamped = [min(max(v, limits.lo), limits.hi) for v in (lo + zero_point.lo, hi + zero_point.hi)]
    return Range(int(clamped[0]), int(clamped[1]), integral=True)


def _dequantize(o: Operands) -> Result:
    """cast(int32(q) - zero point) * scale."""
    scale = o[1]
    if scale.lo <= 0 or not scale.finite:
        return None
    steps = ranges.subtract(o[0], o[2], "int32")
    return ranges.multiply(steps, scale, o.dtype) if o.dtype in FLOATS else None


def _arithmetic(rule: Callable[[Range, Range, str], Range]) -> Callable[[Operands], Result]:
    return lambda o: rule(o[0], o[1], o.dtype)


_GATES = {"nn.silu": -0.2785, "nn.gelu": -0.1701, "nn.gelu_tanh": -0.1701}
_RULES: dict[str, Callable[[Operands], Result]] = {
    **{name: _keep for name in (
        "reshape", "permute_dims", "expand_dims", "squeeze", "flatten", "broadcast_to", "strided_slice",
        "dynamic_strided_slice", "flip", "tile", "repeat", "concat", "stack", "nn.batch_flatten", "sort",
        "gather_elements", "gather_nd", "reverse_sequence",
    )},
    **{name: _gated(least) for name, least in _GATES.items()},
    "split": _keep_fields,
    "take": _take,
    "triu": _with_zero,
    "tril": _with_zero,
    "nn.pad": _pad,
    "add": _arithmetic(ranges.add),
    "subtract": _arithmetic(ranges.subtract),
    "multiply": _multiply,
    "divide": _float_only(_arithmetic(ranges.divide)),
    "maximum": lambda o: ranges.maximum(o[0], o[1]),
    "minimum": lambda o: ranges.minimum(o[0], o[1]),
    "negative": lambda o: ranges.negate(o[0], o.dtype),
    "abs": _abs,
    "sign": _sign,
    "square": _square,
    "power": _float_only(_power),
    "sqrt": _float_only(_sqrt),
    "rsqrt": _float_only(_rsqrt),
    "exp": _increasing(_safe_exp, 0.0),
    "sigmoid": _increasing(_logistic, 0.0, 1.0),
    "tanh": _increasing(math.tanh, -1 - SLACK, 1 + SLACK, zero=True),
    "erf": _increasing(math.erf, -1 - SLACK, 1 + SLACK, zero=True),
    "nn.softplus": _increasing(_softplus, 0.0),
    "floor": _rounding(math.floor),
    "ceil": _rounding(math.ceil),
    "round": _rounding(round),
    "trunc": _rounding(math.trunc),
    "nn.relu": _relu,
    "nn.leakyrelu": _float_only(_leaky),
    "nn.prelu": _float_only(lambda o: _sloped(o, o[1])),
    "nn.softmax": _float_only(_softmax),
    "nn.dropout": _dropout,
    "clip": _clip,
    "where": _where,
    "astype": _cast,
    "greater": _order(lambda a, b: a.lo > b.hi, lambda a, b: a.hi <= b.lo),
    "greater_equal": _order(lambda a, b: a.lo >= b.hi, lambda a, b: a.hi < b.lo),
    "less": _order(lambda a, b: a.hi < b.lo, lambda a, b: a.lo >= b.hi),
    "less_equal": _order(lambda a, b: a.hi <= b.lo, lambda a, b: a.lo > b.hi),
    "equal": _order(lambda a, b: a.lo == a.hi == b.lo == b.hi, _apart),
    "not_equal": _not_equal,
    "logical_and": _logic(lambda x, y: x and y),
    "logical_or": _logic(lambda x, y: x or y),
    "logical_xor": _logic(lambda x, y: x != y),
    "logical_not": _logical_not,
    "isnan": _flag(lambda x: x.nan),
    "isinf": _flag(lambda x: math.isinf(x.lo) or math.isinf(x.hi)),
    "isfinite": _isfinite,
    "max": _extreme,
    "min": _extreme,
    "sum": _sum,
    "mean": _float_only(_mean),
    "variance": _float_only(_spread),
    "std": _float_only(_spread),
    "argmax": _arg,
    "argmin": _arg,
    "nn.max_pool1d": _max_pool,
    "nn.max_pool2d": _max_pool,
    "nn.max_pool3d": _max_pool,
    **{f"nn.{kind}avg_pool{n}d": _float_only(_avg_pool) for n in (1, 2, 3) for kind in ("", "adaptive_")},
    "full": _full,
    "full_like": _full,
    "ones": _ones,
    "ones_like": _ones,
    "zeros": _zeros,
    "zeros_like": _zeros,
    "quantize": _quantize,
    "dequantize": _dequantize,
}  # fmt: skip
RULES = {f"relax.{name}": rule for name, rule in _RULES.items()}
