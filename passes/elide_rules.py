"""The rules of elide-activations: each proposes what could replace a call, and how results would differ.

A rule decides nothing: an Elision carries the facts that the pass's numbered conditions judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tvm import ir, relax, tirx

from greencc.ir import dtype_of, same_type, static_shape
from greencc.passes import ranges
from greencc.passes.clamps import (
    Clamp,
    clip_of,
    comparison,
    critical_points,
    differences,
    recognise,
    relu_of,
    select_max,
    select_min,
)
from greencc.passes.graph import Builder, Graph
from greencc.passes.ranges import Range
from greencc.passes.value_range import ValueRanges

Build = Callable[[Builder], relax.Expr]
SAME: frozenset[str] = frozenset()
# Whole numbers up to here are exact in float32, so they and their differences are told apart.
EXACT_WHOLE = 2**24
# How far from a constant every sigmoid of a whole number must be; far above any lowering's error.
SIGMOID_MARGIN = 2.0**-16


@dataclass(frozen=True)
class Elision:
    """A replacement for one call, and what speaks against it.

    Attributes:
        rule: name of the rule, for reports.
        build: gives the value that takes the call's place.
        changed: how results may differ, see clamps.differences (conditions 1 to 3).
        shared: a value that should vanish has other uses (4).
        reshaped: the replacement has another type than the call (5).
        axes_differ: the inner operator works along another axis (6).
        ties: rounding of the inner operator may merge distinct inputs (7).
        near: a constant is too close to a value of the inner operator (8).
        inner: values that vanish with the call.
    """

    rule: str
    build: Build
    changed: frozenset[str] = SAME
    shared: bool = False
    reshaped: bool = False
    axes_differ: bool = False
    ties: bool = False
    near: bool = False
    inner: tuple[relax.Var, ...] = ()


@dataclass(frozen=True)
class Site:
    """A value that may be replaced: a call, or a field of a tuple."""

    graph: Graph
    var: relax.Var
    value: relax.Expr

    @property
    def call(self) -> relax.Call:
        """The value where it is a call."""
        return self.value

    def range_of(self, expr: relax.Expr) -> Range:
        """The proven range of a value."""
        return self.graph.analysis(ValueRanges).of(expr)

    def points(self, breaks: tuple[float, ...], clamp: Clamp) -> np.ndarray:
        """Critical points of functions of `clamp.x` within its proven range."""
        return critical_points(breaks, clamp.dtype, self.range_of(clamp.x))

    def only_here(self, expr: relax.Expr) -> bool:
        """Whether this call is the only user of `expr`."""
        return isinstance(expr, relax.Var) and self.graph.only_used_by(expr, [self.var])

    def constant(self, value: float) -> Build:
        """A tensor of the call's type that holds one value."""

        def build(builder: Builder) -> relax.Expr:
            return relax.op.full(self.call.ty.shape, relax.const(np.array(value, dtype_of(self.call.ty))))

        return build


def proposals(site: Site) -> Iterator[Elision]:
    """Every elision that could apply at a call, the most useful first."""
    if isinstance(site.value, relax.TupleGetItem):
        yield from _dropout(site)
        return
    if not isinstance(site.call.op, ir.Op):
        return
    for rule in _RULES:
        yield from rule(site)


def _nil(site: Site) -> Iterator[Elision]:
    """From f(x) to x, where f is the identity on x's range."""
    clamp = recognise(site.graph, site.var)
    if clamp is not None:
        points = site.points(clamp.breaks, clamp)
        reshaped = not same_type(clamp.x.ty, site.call.ty)
        yield Elision("nil", lambda _: clamp.x, differences(clamp(points), points, points), reshaped=reshaped)


def _constant(site: Site) -> Iterator[Elision]:
    """From f(x) to c, where f has one value on x's range: a disjoint clip, a comparison always true."""
    clamp = recognise(site.graph, site.var) or comparison(site.graph, site.call)
    if clamp is None:
        return
    points = site.points(clamp.breaks, clamp)
    results = clamp(points)
    value = results[0]
    if value == value and not differences(results, np.full_like(results, value), points):
        yield Elision("constant", site.constant(value.item()))


def _merged(site: Site) -> Iterator[Elision]:
    """From f(g(x)) to h(x), where h is one clip, relu, maximum or minimum."""
    outer = recognise(site.graph, site.var)
    inner = recognise(site.graph, outer.x) if outer is not None else None
    if outer is None or inner is None or not (outer.monotone and inner.monotone):
        return
    breaks = (*outer.breaks, *inner.breaks)
    points = site.points(breaks, inner)
    expected = outer(inner(points))
    shared = not site.only_here(outer.x)
    reshaped = not same_type(inner.x.ty, site.call.ty)
    everything = ranges.top(inner.dtype)
    ends = outer(inner(np.array([everything.lo, everything.hi], inner.dtype)))
    if np.isnan(ends).any():
        return
    for results, build in _single_clamps(inner.x, points, ends, everything):
        changed = differences(expected, results, points)
        yield Elision("merged", build, changed, shared=shared, reshaped=reshaped, inner=(outer.x,))


def _single_clamps(
    x: relax.Expr, points: np.ndarray, ends: np.ndarray, everything: Range
) -> Iterator[tuple[np.ndarray, Build]]:
    """Single operators on x whose results reach from ends[0] to ends[1], with their results at `points`."""
    lo, hi = ends
    open_below, open_above = lo == everything.lo, hi == everything.hi
    if open_below and open_above:
        return
    if open_above and lo == 0 and not np.signbit(lo):
        yield relu_of(points), lambda _: relax.op.nn.relu(x)
    elif open_above:
        yield select_max(points, lo), lambda _: relax.op.maximum(x, relax.const(lo))
    elif open_below:
        yield select_min(points, hi), lambda _: relax.op.minimum(x, relax.const(hi))
    else:
        yield clip_of(points, lo, hi), lambda _: relax.op.clip(x, _prim(lo), _prim(hi))


def _canonical(site: Site) -> Iterator[Elision]:
    """Maximum, where or a masked product that is relu in another spelling."""
    clamp = recognise(site.graph, site.var)
    if clamp is None or site.call.op.name not in ("relax.maximum", "relax.where", "relax.multiply"):
        return
    if not clamp.monotone or clamp(np.array([-1, 1], "int8").astype(clamp.dtype)).tolist() != [0, 1]:
        return
    points = site.points(clamp.breaks, clamp)
    reshaped = not same_type(clamp.x.ty, site.call.ty)
    changed = differences(clamp(points), relu_of(points), points)
    yield Elision("canonical", lambda _: relax.op.nn.relu(clamp.x), changed, reshaped=reshaped)


def _absorbed(site: Site) -> Iterator[Elision]:
    """From c(f(x)) to c(x), for a comparison or quantisation c that makes f superfluous."""
    consumer = comparison(site.graph, site.call) or _quantizer(site.graph, site.call)
    inner = recognise(site.graph, consumer.x) if consumer is not None else None
    if consumer is None or inner is None or not inner.monotone or inner.dtype != consumer.dtype:
        return
    points = site.points((*inner.breaks, *consumer.breaks), inner)
    with np.errstate(all="ignore"):
        changed = differences(consumer(inner(points)), consumer(points), points)
    reshaped = not same_type(inner.x.ty, consumer.x.ty)
    args = [inner.x if arg.same_as(consumer.x) else arg for arg in site.call.args]
    build = _recall(site.call, args)
    yield Elision(
        "absorbed",
        build,
        changed,
        shared=not site.only_here(consumer.x),
        reshaped=reshaped,
        inner=(consumer.x,),
    )


def _quantizer(graph: Graph, call: relax.Call) -> Clamp | None:
    """Quantisation with constant parameters, cast(clip(round(x / scale) + zero point)), on all channels."""
    if call.op.name != "relax.quantize" or dtype_of(call.args[0].ty) != "float32":
        return None
    scale, zero_point = (graph.constant(arg) for arg in call.args[1:])
    dtype = str(call.attrs.out_dtype)
    limits = ranges.top(dtype)
    if scale is None or zero_point is None or limits is ranges.ANY_FLOAT or not (scale > 0).all():
        return None
    channels = np.broadcast(scale.reshape(-1), zero_point.reshape(-1))
    scales, zeros = (np.broadcast_to(a.reshape(-1), channels.shape) for a in (scale, zero_point))
    lo, hi = (np.array(bound, "float32") for bound in (limits.lo, limits.hi))

    def apply(values: np.ndarray) -> np.ndarray:
        steps = np.rint(values[:, None] / scales) + zeros.astype("float32")
        return clip_of(steps, lo, hi).astype(dtype).reshape(-1)

    return Clamp(call.args[0], "float32", (), apply)


def _dropout(site: Site) -> Iterator[Elision]:
    """From dropout(x)[0] to x: at inference nothing is dropped, and the mask is ones."""
    inner = site.graph.call(site.value.tuple_value, "relax.nn.dropout")
    if inner is not None:
        x, mask = inner.args[0], site.value.index == 1
        yield Elision("dropout", lambda _: relax.op.ones_like(x) if mask else x)


def _argmax_of_softmax(site: Site) -> Iterator[Elision]:
    """From argmax(softmax(x)) to argmax(x) along one axis, when softmax keeps distinct inputs apart."""
    called = site.call.op.name == "relax.argmax"
    inner = site.graph.call(site.call.args[0], "relax.nn.softmax") if called else None
    if inner is None:
        return
    x = inner.args[0]
    rank, axis, along = x.ty.ndim, site.call.attrs.axis, int(inner.attrs.axis)
    differ = rank != 1 if axis is None else int(axis) % rank != along % rank
    # A row with an infinity is NaN after softmax.
    changed = frozenset({"nan"}) if site.range_of(site.call.args[0]).nan else SAME
    shared = not site.only_here(site.call.args[0])
    scores = site.range_of(x)
    ties = not (scores.integral and scores.lo >= -EXACT_WHOLE and scores.hi <= EXACT_WHOLE)
    yield Elision("argmax", _recall(site.call, [x]), changed, shared, False, differ, ties, inner=(site.call.args[0],))


def _compared_sigmoid(site: Site) -> Iterator[Elision]:
    """From sigmoid(x) > c to x > logit(c), exact for whole numbers x whose sigmoids stay clear of c."""
    clamp = comparison(site.graph, site.call)
    inner = site.graph.call(clamp.x, "relax.sigmoid") if clamp is not None else None
    if clamp is None or inner is None or clamp.dtype not in ranges.FLOATS or not 0 < clamp.breaks[0] < 1:
        return
    if any(static_shape(arg.ty) is None for arg in site.call.args if not arg.same_as(clamp.x)):
        return
    constant = float(clamp.breaks[0])
    threshold = math.log(constant) - math.log1p(-constant)
    below = math.floor(threshold)
    stops = [0.0, 1.0, *(1 / (1 + math.exp(-n)) for n in (below - 1, below, below + 1, below + 2))]
    near = any(abs(stop - constant) < SIGMOID_MARGIN for stop in stops)
    whole = site.range_of(inner.args[0]).integral
    # Between two whole numbers the comparison is the same for > and >=.
    bound = below + 0.5 if whole and not near else threshold
    args = [inner.args[0] if arg.same_as(clamp.x) else _filled(arg, bound, clamp.dtype) for arg in site.call.args]
    shared = not site.only_here(clamp.x)
    yield Elision("sigmoid", _recall(site.call, args), shared=shared, ties=not whole, near=near, inner=(clamp.x,))


def _decided_where(site: Site) -> Iterator[Elision]:
    """From where(c, a, b) to a or b, when c has one value."""
    if site.call.op.name != "relax.where":
        return
    condition = site.range_of(site.call.args[0]).value()
    if condition is not None:
        taken = site.call.args[1] if condition else site.call.args[2]
        yield Elision("where", lambda _: taken, reshaped=not same_type(taken.ty, site.call.ty))


def _filled(like: relax.Expr, value: float, dtype: str) -> relax.Expr:
    return relax.const(np.full(static_shape(like.ty) or (), value, dtype))


def _recall(call: relax.Call, args: list[relax.Expr]) -> Build:
    return lambda _: relax.Call(call.op, args, call.attrs, call.ty_args)


def _prim(value: np.ndarray) -> relax.Expr:
    number = value.item()
    return tirx.IntImm("int64", number) if isinstance(number, int) else tirx.FloatImm("float64", number)


_RULES: tuple[Callable[[Site], Iterator[Elision]], ...] = (
    _nil,
    _constant,
    _decided_where,
    _merged,
    _canonical,
    _absorbed,
    _argmax_of_softmax,
    _compared_sigmoid,
)
