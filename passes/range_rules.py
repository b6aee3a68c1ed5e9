"""Transfer functions of the value-range analysis: an operator's range from those of its operands.

What they take for granted of every lowering (TVM's own, and greencc's schedules), beyond correct rounding of
+, -, *, / and exact comparisons, maximum, minimum, relu, clip, where and casts:
  exp, softplus, variance >= 0, sigmoid within [0, 1], softmax within [0, 1 + slack], and none of them -0
  tanh and erf keep the sign of their operand and stay within 1 + slack
  exp, sigmoid, sqrt are within a relative slack of the increasing function they approximate, softplus, tanh
  and erf within an absolute one too.
An operator without an entry gives the top range of its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from greencc.ir import dtype_of
from greencc.passes import range_reductions as reductions
from greencc.passes import ranges
from greencc.passes.range_operands import Operands, Result, Rule, float_only, number_in
from greencc.passes.ranges import BOOL, FALSE, FLOATS, TRUE, Range


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


def _sloped(o: Operands, slope: Range) -> Range:
    """The range of `x > 0 ? x : x * slope`."""
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
    function: Callable[[float], float],
    lo: float,
    hi: float = math.inf,
    *,
    absolute: bool = False,
    odd: bool = False,
) -> Rule:
    """An increasing function into [lo, hi], inexact by the slack; `odd`: it keeps a zero's sign."""

    def rule(o: Operands) -> Result:
        x, slack = o[0], ranges.slack(o.dtype)
        low, high = ranges.widen(function(x.lo), function(x.hi), o.dtype, slack if absolute else 0.0)
        bound = slack if odd else 0.0
        low = max(low, ranges.round_down(lo - bound, o.dtype))
        high = min(high, ranges.round_up(hi + bound, o.dtype))
        return Range(low, high, x.nan, odd and (x.negative_zero or x.lo < 0))

    return float_only(rule)


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


def _rounding(function: Callable[[float], float]) -> Rule:
    def rule(o: Operands) -> Result:
        x = o[0]
        lo, hi = (function(v) if math.isfinite(v) else v for v in (x.lo, x.hi))
        return Range(lo + 0.0, hi + 0.0, x.nan, x.negative_zero or x.lo < 0, True)

    return float_only(rule)


def _sign(o: Operands) -> Result:
    x = o[0]
    return Range(-1 if x.lo < 0 else 0, 1 if x.hi > 0 else 0, x.nan, x.negative_zero, True)


def _softmax(o: Operands) -> Result:
    # A row with +inf, or with nothing but -inf, is NaN.
    return Range(0.0, ranges.round_up(1 + ranges.slack(o.dtype), o.dtype), not o[0].finite)


def _gated(least: float) -> Rule:
    """A value times a gate in [0, 1], inexact by the slack; `least` is below the product's minimum."""

    def rule(o: Operands) -> Result:
        x = o[0]
        error = max(-x.lo, 0.0) * ranges.slack(o.dtype)
        low = 0.0 if x.lo >= 0 else least - ranges.slack(o.dtype) - error
        high = max(x.hi, 0.0) * (1 + ranges.slack(o.dtype)) + error
        # -inf * 0 is NaN.
        nan = x.nan or x.lo == -math.inf
        lo, hi = ranges.round_down(low, o.dtype), ranges.round_up(high, o.dtype)
        return Range(lo, hi, nan, x.lo < 0 or x.negative_zero)

    return float_only(rule)


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
        lo, hi = ranges.round_down(x.lo, o.dtype), ranges.round_up(x.hi, o.dtype)
        # A small negative number may become -0 in a narrower float.
        return Range(lo, hi, x.nan, source in FLOATS and (x.negative_zero or x.lo < 0), x.integral)
    limits = ranges.top(o.dtype)
    if limits is ranges.ANY_FLOAT or not x.finite:
        return None
    if math.trunc(x.lo) < limits.lo or math.trunc(x.hi) > limits.hi:
        return None
    return Range(math.trunc(x.lo), math.trunc(x.hi), integral=True)


Relation = Callable[[Range, Range], bool]


def _order(always: Relation, never: Relation) -> Rule:
    """Comparison. NaN compares false, so it only spoils `always`."""

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


def _logic(function: Callable[[bool, bool], bool]) -> Rule:
    def rule(o: Operands) -> Result:
        corners = [function(bool(x), bool(y)) for x in (o[0].lo, o[0].hi) for y in (o[1].lo, o[1].hi)]
        return Range(int(min(corners)), int(max(corners)), integral=True) if o.dtype == "bool" else None

    return rule


def _logical_not(o: Operands) -> Result:
    return Range(1 - o[0].hi, 1 - o[0].lo, integral=True) if o.dtype == "bool" else None


def _flag(possible: Callable[[Range], bool]) -> Rule:
    return lambda o: BOOL if possible(o[0]) else FALSE


def _isfinite(o: Operands) -> Result:
    return TRUE if o[0].finite else BOOL


def _take(o: Operands) -> Result:
    nan = o.call.op.name == "relax.take" and o.call.attrs.mode == "nan"
    return replace(o[0], nan=o[0].nan or nan) if o.dtype in FLOATS else o[0]


def _pad(o: Operands) -> Result:
    value = number_in(float(o.call.attrs.pad_value), o.dtype)
    if str(o.call.attrs.pad_mode) != "constant":
        return o[0]
    if value is None:
        return None
    return ranges.hull(o[0], ranges.of_array(np.array(value, o.dtype)))


def _full(o: Operands) -> Result:
    return o[1] if dtype_of(o.call.args[1].ty) == o.dtype else None


def _ones(o: Operands) -> Result:
    return Range(1, 1, integral=True)


def _zeros(o: Operands) -> Result:
    return Range(0, 0, integral=True)


def _dropout(o: Operands) -> Result:
    return o[0], Range(1, 1, integral=True)


def _arithmetic(rule: Callable[[Range, Range, str], Range]) -> Rule:
    return lambda o: rule(o[0], o[1], o.dtype)


_GATES = {"nn.silu": -0.2785, "nn.gelu": -0.1701, "nn.gelu_tanh": -0.1701}
_RULES: dict[str, Rule] = {
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
    "divide": float_only(_arithmetic(ranges.divide)),
    "maximum": lambda o: ranges.maximum(o[0], o[1]),
    "minimum": lambda o: ranges.minimum(o[0], o[1]),
    "negative": lambda o: ranges.negate(o[0], o.dtype),
    "abs": _abs,
    "sign": _sign,
    "square": _square,
    "power": float_only(_power),
    "sqrt": float_only(_sqrt),
    "rsqrt": float_only(_rsqrt),
    "exp": _increasing(_safe_exp, 0.0),
    "sigmoid": _increasing(_logistic, 0.0, 1.0),
    "tanh": _increasing(math.tanh, -1.0, 1.0, absolute=True, odd=True),
    "erf": _increasing(math.erf, -1.0, 1.0, absolute=True, odd=True),
    "nn.softplus": _increasing(_softplus, 0.0, absolute=True),
    "floor": _rounding(math.floor),
    "ceil": _rounding(math.ceil),
    "round": _rounding(round),
    "trunc": _rounding(math.trunc),
    "nn.relu": _relu,
    "nn.leakyrelu": float_only(_leaky),
    "nn.prelu": float_only(lambda o: _sloped(o, o[1])),
    "nn.softmax": float_only(_softmax),
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
    "max": reductions.extreme,
    "min": reductions.extreme,
    "sum": reductions.total,
    "mean": float_only(reductions.mean),
    "variance": float_only(reductions.spread),
    "std": float_only(reductions.spread),
    "argmax": reductions.arg,
    "argmin": reductions.arg,
    "nn.max_pool1d": reductions.max_pool,
    "nn.max_pool2d": reductions.max_pool,
    "nn.max_pool3d": reductions.max_pool,
    **{f"nn.avg_pool{n}d": float_only(reductions.avg_pool) for n in (1, 2, 3)},
    **{f"nn.adaptive_avg_pool{n}d": float_only(reductions.avg_pool) for n in (1, 2, 3)},
    "full": _full,
    "full_like": _full,
    "ones": _ones,
    "ones_like": _ones,
    "zeros": _zeros,
    "zeros_like": _zeros,
    "quantize": reductions.quantize,
    "dequantize": reductions.dequantize,
}  # fmt: skip
RULES = {f"relax.{name}": rule for name, rule in _RULES.items()}
