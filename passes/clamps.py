"""Clamp-like activations as functions on numbers: recognising their spellings and comparing them exactly.

Every function here is piecewise the identity, a constant, or linear, with its breaks at its constants. Two
such functions agree on an interval when they agree, bit for bit, at the critical points: the breaks, their
neighbours among the floats, the zeros, infinities and NaN, and the interval's ends. (Between two neighbouring
critical points each is a single piece: an identity or constant is determined by its ends. A linear piece of
slope other than 1 differs from the identity at an end, and is flattened by a monotone function exactly when
its ends are.) So a rewrite is decided by evaluating the operators as TVM lowers them:
    maximum(a, b) = a > b ? a : b    clip(x, lo, hi) = maximum(minimum(x, hi), lo)    relu(x) = maximum(x, 0)
which gives relu(NaN) = +0, relu(-0) = +0, clip(NaN, lo, hi) = hi (for lo <= hi), maximum(0, NaN) = NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from greencc.ir import dtype_of
from greencc.passes import ranges
from greencc.passes.graph import Graph
from greencc.passes.range_operands import number_in, prim_value
from greencc.passes.ranges import Range

Function = Callable[[np.ndarray], np.ndarray]

RELATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "relax.greater": np.greater,
    "relax.greater_equal": np.greater_equal,
    "relax.less": np.less,
    "relax.less_equal": np.less_equal,
}
_FILLS = {"relax.zeros": 0, "relax.zeros_like": 0, "relax.ones": 1, "relax.ones_like": 1}


@dataclass(frozen=True)
class Clamp:
    """An elementwise function of one value.

    Attributes:
        x: the operand.
        dtype: its element type (and the result's, but for comparisons).
        breaks: the constants at which the function changes.
        apply: the function on arrays of `dtype`, bit for bit as lowered.
    """

    x: relax.Expr
    dtype: str
    breaks: tuple[float, ...]
    apply: Function

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The function on an array of `dtype`. Overflow and NaN are part of what is asked."""
        with np.errstate(all="ignore"):
            return np.asarray(self.apply(values))

    @property
    def monotone(self) -> bool:
        """Whether the function never decreases."""
        results = self(np.sort(critical_points(self.breaks, self.dtype, _numbers(self.dtype))))
        results = results[~np.isnan(results)] if self.dtype in ranges.FLOATS else results
        return bool((results[1:] >= results[:-1]).all())


def select_max(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Maximum as lowered: NaN in `a` gives b, equal zeros give b."""
    return np.where(a > b, a, b)


def select_min(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minimum as lowered; see select_max."""
    return np.where(a < b, a, b)


def critical_points(breaks: tuple[float, ...], dtype: str, within: Range) -> np.ndarray:
    """The values at which piecewise functions with these breaks must be compared, inside a range.

    NaN (of both signs) and -0 are among them only if the range has them.
    """
    kind = np.dtype(dtype).type
    if dtype not in ranges.FLOATS:
        near = {int(b) + step for b in (*breaks, within.lo, within.hi, 0) for step in (-1, 0, 1)}
        return np.array(sorted(p for p in near if within.lo <= p <= within.hi), dtype)
    info = np.finfo(dtype)
    base = np.array([*breaks, within.lo, within.hi, 0, 1, -1, info.max, info.min, np.inf, -np.inf], dtype)
    with np.errstate(all="ignore"):
        points = np.concatenate([base, np.nextafter(base, kind(np.inf)), np.nextafter(base, kind(-np.inf))])
    points = np.unique(points[(points >= within.lo) & (points <= within.hi)]) + kind(0)
    special = [-0.0] * within.negative_zero + [np.nan, -np.nan] * within.nan
    return np.concatenate([points, np.array(special, dtype)])


def differences(expected: np.ndarray, got: np.ndarray, points: np.ndarray) -> frozenset[str]:
    """How results at `points` differ in their bits.

    "nan" where a result or the point is NaN, "zero" in the sign of a zero, else "value". A function may have
    several results per point (one for each channel), in the points' order.
    """
    nan = np.repeat(points != points, len(expected) // len(points)) | (expected != expected) | (got != got)
    bits = f"u{expected.dtype.itemsize}"
    differ = expected.view(bits) != got.view(bits)
    zero = (expected == 0) & (got == 0)
    kinds = {"nan": differ & nan, "zero": differ & zero, "value": differ & ~nan & ~zero}
    return frozenset(kind for kind, where in kinds.items() if where.any())


def uniform(graph: Graph, expr: relax.Expr, dtype: str) -> np.ndarray | None:
    """The one value (rank 0, `dtype`) that all elements of `expr` are known to have, never NaN; else None."""
    call = graph.call(expr)
    if call is not None:
        if call.op.name in ("relax.full", "relax.full_like"):
            return uniform(graph, call.args[1], dtype)
        if call.op.name == "relax.broadcast_to":
            return uniform(graph, call.args[0], dtype)
        return np.array(_FILLS[call.op.name], dtype) if call.op.name in _FILLS else None
    array = graph.constant(expr)
    if array is None or array.size == 0 or str(array.dtype) != dtype:
        return None
    first = array.reshape(-1)[0]
    same = (array == first).all() and (np.signbit(array) == np.signbit(first)).all()
    return np.array(first, dtype) if same else None


def recognise(graph: Graph, expr: relax.Expr) -> Clamp | None:
    """The clamp-like function that defines `expr`, or None when it has another form."""
    call = graph.call(expr)
    dtype = dtype_of(call.ty) if call is not None else None
    if call is None or dtype is None or (ranges.top(dtype) is ranges.ANY_FLOAT and dtype not in ranges.FLOATS):
        return None
    if dtype == "bool" or call.op.name not in _FORMS:
        return None
    return _FORMS[call.op.name](graph, call, dtype)


def comparison(graph: Graph, call: relax.Call) -> Clamp | None:
    """A comparison with a constant as a function of the other operand, or None."""
    if call.op.name not in RELATIONS or len(call.args) != 2:
        return None
    relation = RELATIONS[call.op.name]
    dtype = dtype_of(call.args[0].ty)
    if dtype is None or (dtype not in ranges.FLOATS and ranges.top(dtype) is ranges.ANY_FLOAT):
        return None
    right = uniform(graph, call.args[1], dtype)
    if right is not None:
        return Clamp(call.args[0], dtype, (right.item(),), lambda v: relation(v, right))
    left = uniform(graph, call.args[0], dtype)
    if left is None:
        return None
    return Clamp(call.args[1], dtype, (left.item(),), lambda v: relation(left, v))


def same_value(graph: Graph, a: relax.Expr, b: relax.Expr) -> bool:
    """Whether two operands are one value, aliases looked through."""
    return bool(a.same_as(b) or graph.value(a).same_as(graph.value(b)))


def relu_of(values: np.ndarray) -> np.ndarray:
    """Relax's relu as lowered."""
    return select_max(values, np.zeros((), values.dtype))


def clip_of(values: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Relax's clip as lowered."""
    return select_max(select_min(values, hi), lo)


def _numbers(dtype: str) -> Range:
    known = ranges.top(dtype)
    return Range(known.lo, known.hi)


def _relu(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    return Clamp(call.args[0], dtype, (0,), relu_of)


def _clip(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    bounds = [number_in(value, dtype) for value in map(prim_value, call.args[1:]) if value is not None]
    if len(bounds) != 2 or any(b is None or b != b for b in bounds):
        return None
    lo, hi = (np.array(b, dtype) for b in bounds)
    return Clamp(call.args[0], dtype, (lo.item(), hi.item()), lambda v: clip_of(v, lo, hi))


def _extremum(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    choose = select_max if call.op.name == "relax.maximum" else select_min
    right = uniform(graph, call.args[1], dtype)
    if right is not None:
        return Clamp(call.args[0], dtype, (right.item(),), lambda v: choose(v, right))
    left = uniform(graph, call.args[0], dtype)
    return None if left is None else Clamp(call.args[1], dtype, (left.item(),), lambda v: choose(left, v))


def _abs(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    return Clamp(call.args[0], dtype, (0,), np.abs)


def _sloped(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    if call.op.name == "relax.nn.prelu":
        slope = uniform(graph, call.args[1], dtype)
    else:
        number = number_in(float(call.attrs.alpha), dtype)
        slope = None if number is None else np.array(number, dtype)
    if slope is None or not np.isfinite(slope):
        return None
    return Clamp(call.args[0], dtype, (0,), lambda v: np.where(v > 0, v, v * slope))


def _where(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    test = graph.call(call.args[0])
    condition = comparison(graph, test) if test is not None else None
    if condition is None or condition.dtype != dtype:
        return None
    chosen = [_branch(graph, arg, condition.x, dtype) for arg in call.args[1:]]
    if chosen[0] is None or chosen[1] is None:
        return None
    yes, no = chosen[0][0], chosen[1][0]
    breaks = (*condition.breaks, *chosen[0][1], *chosen[1][1])
    return Clamp(condition.x, dtype, breaks, lambda v: np.where(condition.apply(v), yes(v), no(v)))


def _branch(graph: Graph, expr: relax.Expr, x: relax.Expr, dtype: str) -> tuple[Function, tuple[float, ...]] | None:
    if same_value(graph, expr, x):
        return (lambda v: v), ()
    value = uniform(graph, expr, dtype)
    if value is not None:
        return (lambda v: np.full_like(v, value)), (value.item(),)
    call = graph.call(expr)
    if call is not None and call.op.name == "relax.negative" and same_value(graph, call.args[0], x):
        return np.negative, ()
    if call is not None and call.op.name == "relax.multiply":
        for operand, factor in (call.args, reversed(call.args)):
            slope = uniform(graph, factor, dtype)
            if slope is not None and same_value(graph, operand, x):
                return (lambda v, s=slope: v * s), ()
    return None


def _masked(graph: Graph, call: relax.Call, dtype: str) -> Clamp | None:
    """A value times the cast of a comparison of that same value."""
    for x, mask in (call.args, reversed(call.args)):
        cast = graph.call(mask, "relax.astype")
        test = graph.call(cast.args[0]) if cast is not None else None
        condition = comparison(graph, test) if test is not None else None
        if condition is not None and condition.dtype == dtype and same_value(graph, condition.x, x):
            return Clamp(x, dtype, condition.breaks, _product(condition.apply))
    return None


def _product(mask: Function) -> Function:
    return lambda v: v * mask(v).astype(v.dtype)


_FORMS: dict[str, Callable[[Graph, relax.Call, str], Clamp | None]] = {
    "relax.nn.relu": _relu,
    "relax.clip": _clip,
    "relax.maximum": _extremum,
    "relax.minimum": _extremum,
    "relax.abs": _abs,
    "relax.nn.leakyrelu": _sloped,
    "relax.nn.prelu": _sloped,
    "relax.where": _where,
    "relax.multiply": _masked,
}
