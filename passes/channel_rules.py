"""What operators do to channels: how they are followed through a call, and the call without some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax, tirx

from greencc.ir import constant, shape_of, substitute
from greencc.kernels import KERNEL, kernel_name
from greencc.passes.channel_axes import ChannelAxis, reshaped
from greencc.passes.channel_trace import Axes, Bound, Filters, Trace
from greencc.passes.matching import dims_of
from greencc.passes.no_ops import integers, permutation_of, strides_of
from greencc.passes.row_wise import ELEMENTWISE


@dataclass
class Narrowing:
    """A function on the way to fewer channels.

    Attributes:
        trace: the channels of its values.
        gone: the numbers of the channels that go.
        values: what replaces its variables so far.
        constants: what replaces its constants, by what stays of them: those that are shared stay shared.
    """

    trace: Trace
    gone: np.ndarray
    values: dict[relax.Expr, relax.Expr] = field(default_factory=dict)
    constants: dict[tuple[relax.Expr, bytes, int], relax.Expr] = field(default_factory=dict)

    def kept(self, axis: ChannelAxis) -> np.ndarray:
        """The indices of an axis that stay."""
        return np.flatnonzero(~np.isin(axis.numbers, self.gone))

    def axis(self, expr: relax.Expr) -> ChannelAxis:
        """Where the channels of a tensor lie that has some."""
        axis = self.trace.axis_of(expr)
        if axis is None:
            raise ValueError("a value without channels loses none")
        return axis

    def is_touched(self, expr: relax.Expr) -> bool:
        """Whether a value loses channels."""
        return any(axis is not None and np.isin(axis.numbers, self.gone).any() for axis in self.trace.axes_of(expr))

    def substituted(self, call: relax.Call) -> relax.Call:
        """The call on what replaces its operands."""
        return substitute(call, self.values)

    def sliced(self, expr: relax.Expr, kept: np.ndarray, axis: int) -> relax.Expr:
        """A constant with the indices `kept` of an axis only."""
        key = expr, kept.tobytes(), axis
        if key not in self.constants:
            self.constants[key] = constant(np.asarray(self.trace.graph.constant(expr)).take(kept, axis))
        return self.constants[key]


@dataclass(frozen=True)
class Rule:
    """What an operator does to channels.

    `follow` says where those of the result lie, and tells the trace what it ties, makes and reads. `narrow` builds the
    call without some of them; its operands may have lost some.
    """

    follow: Callable[[Trace, relax.Var, relax.Call], Axes]
    narrow: Callable[[Narrowing, relax.Var, relax.Call], relax.Expr]


def _on_new_operands(narrowing: Narrowing, _var: relax.Var, call: relax.Call) -> relax.Expr:
    return narrowing.substituted(call)


# -- convolutions and products --------------------------------------------------------------------------------


def _read_and_make(
    trace: Trace, var: relax.Var, call: relax.Call, weight: np.ndarray, *, read: tuple[int, int], made: tuple[int, int]
) -> Axes:
    """A product that reads all channels and makes new ones; `read` and `made` are (axis of a value, of the weight)."""
    source = trace.axis_of(call.args[0])
    if source is not None and source.axis == read[0]:
        trace.add("reader", Filters(var, call, weight, read[1], call.args[0], source))
    else:
        trace.bind(source, Bound.UNKNOWN)
    axis = ChannelAxis(made[0], trace.fresh(weight.shape[made[1]]))
    trace.add("maker", Filters(var, call, weight, made[1], var, axis))
    return (axis,)


def _follow_convolution(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    attrs, weight = call.attrs, trace.graph.constant(call.args[1])
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or str(attrs.data_layout)
    if weight is None or layouts != ("NCHW", "OIHW", "NCHW"):
        return trace.unknown(var, call)
    groups, source = int(attrs.groups), trace.axis_of(call.args[0])
    if groups == 1:
        return _read_and_make(trace, var, call, weight, read=(1, 1), made=(1, 0))
    if weight.shape[1] != 1 or source is None or source.axis != 1:
        return trace.unknown(var, call)
    # Depthwise: each channel becomes one, or several that go with it.
    axis = ChannelAxis(1, np.repeat(source.numbers, len(weight) // groups))
    trace.add("maker", Filters(var, call, weight, 0, var, axis))
    return (axis,)


def _narrow_convolution(narrowing: Narrowing, var: relax.Var, call: relax.Call) -> relax.Expr:
    attrs, filters = call.attrs, call.args[1]
    x, groups = substitute(call.args[0], narrowing.values), int(attrs.groups)
    if narrowing.is_touched(var):
        filters = narrowing.sliced(filters, narrowing.kept(narrowing.axis(var)), 0)
    if narrowing.is_touched(call.args[0]):
        kept = narrowing.kept(narrowing.axis(call.args[0]))
        filters, groups = (narrowing.sliced(filters, kept, 1), 1) if groups == 1 else (filters, len(kept))
    return relax.op.nn.conv2d(
        x, filters, list(attrs.strides), list(attrs.padding), list(attrs.dilation), groups,
        attrs.data_layout, attrs.kernel_layout, attrs.out_layout, attrs.out_dtype or None,
    )  # fmt: skip


def _follow_matmul(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    weight = trace.graph.constant(call.args[1])
    if weight is None or weight.ndim != 2:
        return trace.unknown(var, call)
    last = len(dims_of(var)) - 1
    return _read_and_make(trace, var, call, weight, read=(last, 0), made=(last, 1))


def _narrow_matmul(narrowing: Narrowing, var: relax.Var, call: relax.Call) -> relax.Expr:
    x, weight = substitute(call.args[0], narrowing.values), call.args[1]
    for value, axis in ((call.args[0], 0), (var, 1)):
        if narrowing.is_touched(value):
            weight = narrowing.sliced(weight, narrowing.kept(narrowing.axis(value)), axis)
    return relax.op.matmul(x, weight, call.attrs.out_dtype or None)


# -- operators on elements --------------------------------------------------------------------------------------


def _follow_elementwise(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    rank = len(dims_of(var))
    found: ChannelAxis | None = None
    others = []
    for arg in call.args:
        own = trace.axis_of(arg)
        if own is None or len(own.numbers) == 1:
            others.append(arg)  # one channel is spread over those of the others
            continue
        aligned = replace(own, axis=own.axis + rank - len(dims_of(arg)))
        if found is not None and found.axis != aligned.axis:
            return trace.unknown(var, call)
        if found is not None:
            trace.tie(found.numbers, aligned.numbers)
        found = found or aligned
    if found is None or any(
        trace.graph.constant(arg) is None and _size_at(arg, found.axis - rank) != 1 for arg in others
    ):
        return trace.unknown(var, call)
    return (found,)


def _narrow_elementwise(narrowing: Narrowing, var: relax.Var, call: relax.Call) -> relax.Expr:
    axis = narrowing.axis(var)
    kept, place = narrowing.kept(axis), axis.axis - len(dims_of(var))
    args = []
    for arg in call.args:
        is_vector = narrowing.trace.graph.constant(arg) is not None and _size_at(arg, place) == len(axis.numbers)
        args.append(narrowing.sliced(arg, kept, place) if is_vector else substitute(arg, narrowing.values))
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)


def _size_at(expr: relax.Expr, place: int) -> int | None:
    """Size of an axis, counted from the last (-1); 1 where a tensor has no such axis, None where it is open."""
    dims = shape_of(expr.ty)
    if dims is None or len(dims) < -place:
        return 1
    return int(dims[place]) if isinstance(dims[place], tirx.IntImm) else None


# -- operators that leave channels as they are, or move them -----------------------------------------------------

Move = Callable[[relax.Call, int], int | None]
"""(call, axis of the channels before) -> their axis behind; None where the operator mixes channels."""


def _moving(move: Move) -> Rule:
    """The rule of an operator on one tensor that treats each channel alike."""

    def follow(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
        source = trace.axis_of(call.args[0])
        axis = None if source is None else move(call, source.axis)
        return trace.unknown(var, call) if source is None or axis is None else (replace(source, axis=axis),)

    return Rule(follow, _on_new_operands)


def _permuted(call: relax.Call, axis: int) -> int:
    return permutation_of(call).index(axis)


def _reduced(call: relax.Call, axis: int) -> int | None:
    rank = len(dims_of(call.args[0]))
    axes = range(rank) if call.attrs.axis is None else [int(i) % rank for i in call.attrs.axis]
    if axis in axes:
        return None
    return axis if call.attrs.keepdims else axis - sum(i < axis for i in axes)


def _pooled(call: relax.Call, axis: int) -> int | None:
    return axis if axis == 1 and str(call.attrs.layout) == "NCHW" == str(call.attrs.out_layout) else None


def _by_kernel(call: relax.Call, axis: int) -> int | None:
    """Kernels over the spatial axes of [N, C, ...]."""
    return axis if axis == 1 and kernel_name(call) in ("pool", "pad_spatial") else None


def _follow_reshape(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    source = trace.axis_of(call.args[0])
    found = None if source is None else reshaped(source, dims_of(call.args[0]), dims_of(var))
    if found is None:
        return trace.unknown(var, call)
    axis, rows = found
    for row in rows[1:]:
        trace.tie(rows[0], row)
    return (axis,)


def _narrow_reshape(narrowing: Narrowing, var: relax.Var, call: relax.Call) -> relax.Expr:
    axis, dims = narrowing.axis(var), dims_of(var)
    dims[axis.axis] = tirx.IntImm("int64", len(narrowing.kept(axis)))
    return relax.op.reshape(substitute(call.args[0], narrowing.values), relax.ShapeExpr(dims))


def _follow_batch_norm(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    source = trace.axis_of(call.args[0])
    constants = all(trace.graph.constant(arg) is not None for arg in call.args[1:])
    if source is None or not constants or int(call.attrs.axis) % len(dims_of(call.args[0])) != source.axis:
        return trace.unknown(var, call)
    return source, replace(source, axis=0), replace(source, axis=0)


def _narrow_batch_norm(narrowing: Narrowing, _var: relax.Var, call: relax.Call) -> relax.Expr:
    kept = narrowing.kept(narrowing.axis(call.args[0]))
    args = [substitute(call.args[0], narrowing.values), *(narrowing.sliced(arg, kept, 0) for arg in call.args[1:])]
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)


# -- operators that put channels together, or take them apart ----------------------------------------------------


def _follow_concat(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    parts = [axis for axis in trace.axes_of(call.args[0]) if axis is not None]
    whole = len(parts) == len(trace.axes_of(call.args[0])) and len({part.axis for part in parts}) == 1
    if not whole:
        return trace.unknown(var, call)
    if int(call.attrs.axis) % len(dims_of(var)) == parts[0].axis:
        return (replace(parts[0], numbers=np.concatenate([part.numbers for part in parts])),)
    for part in parts[1:]:
        trace.tie(parts[0].numbers, part.numbers)
    return (parts[0],)


def _follow_split(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    source = trace.axis_of(call.args[0])
    if source is None or not isinstance(var.ty, relax.TupleType):
        return trace.unknown(var, call)
    if int(call.attrs.axis) % len(dims_of(call.args[0])) != source.axis:
        return (source,) * len(var.ty.fields)
    sizes = [int((shape_of(part) or [])[source.axis]) for part in var.ty.fields]
    pieces = np.split(source.numbers, np.cumsum(sizes)[:-1])
    return tuple(replace(source, numbers=piece) for piece in pieces)


def _narrow_split(narrowing: Narrowing, var: relax.Var, call: relax.Call) -> relax.Expr:
    pieces = [axis for axis in narrowing.trace.axes_of(var) if axis is not None]
    if int(call.attrs.axis) % len(dims_of(call.args[0])) != pieces[0].axis:
        return narrowing.substituted(call)
    ends = np.cumsum([len(narrowing.kept(piece)) for piece in pieces])[:-1]
    return relax.op.split(substitute(call.args[0], narrowing.values), [int(end) for end in ends], pieces[0].axis)


def _follow_slice(trace: Trace, var: relax.Var, call: relax.Call) -> Axes:
    source = trace.axis_of(call.args[0])
    if source is None:
        return trace.unknown(var, call)
    span = _span(call, source)
    return trace.unknown(var, call) if span is None else (replace(source, numbers=source.numbers[slice(*span)]),)


def _narrow_slice(narrowing: Narrowing, _var: relax.Var, call: relax.Call) -> relax.Expr:
    source = narrowing.axis(call.args[0])
    rank, kept = len(dims_of(call.args[0])), narrowing.kept(source)
    span = [int(end) for end in np.searchsorted(kept, _span(call, source) or ())]
    axes = [int(axis) % rank for axis in call.args[1].fields]
    begin, end = (list(arg.fields) for arg in call.args[2:4])
    if source.axis in axes:
        place = axes.index(source.axis)
        begin[place], end[place] = (tirx.IntImm("int64", at) for at in span)
    rest = [relax.Tuple(list(fields)) for fields in (begin, end)]
    args = [substitute(call.args[0], narrowing.values), call.args[1], *rest, *call.args[4:]]
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)


def _span(call: relax.Call, source: ChannelAxis) -> tuple[int, int] | None:
    """Which run of the channels a strided_slice takes; None where that is unknown or no run."""
    steps, size = strides_of(call), len(source.numbers)
    axes, begin, end = (integers(arg) for arg in call.args[1:4])
    if axes is None:
        return None
    if source.axis not in steps:
        return 0, size
    place = [axis % len(dims_of(call.args[0])) for axis in axes].index(source.axis)
    if begin is None or end is None or steps[source.axis] != 1:
        return None
    first, last, _ = slice(begin[place], end[place]).indices(size)
    return (first, last) if first < last else None


_ELEMENTWISE = Rule(_follow_elementwise, _narrow_elementwise)
_RESHAPE = Rule(_follow_reshape, _narrow_reshape)
_REDUCTION, _POOL = _moving(_reduced), _moving(_pooled)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _ELEMENTWISE),
    **dict.fromkeys((f"relax.{name}" for name in ("reshape", "flatten", "squeeze", "expand_dims")), _RESHAPE),
    **dict.fromkeys((f"relax.{name}" for name in ("mean", "sum", "max", "min")), _REDUCTION),
    **dict.fromkeys((f"relax.nn.{name}" for name in ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d")), _POOL),
    KERNEL: _moving(_by_kernel),
    "relax.concat": Rule(_follow_concat, _on_new_operands),
    "relax.matmul": Rule(_follow_matmul, _narrow_matmul),
    "relax.nn.batch_norm": Rule(_follow_batch_norm, _narrow_batch_norm),
    "relax.nn.conv2d": Rule(_follow_convolution, _narrow_convolution),
    "relax.permute_dims": _moving(_permuted),
    "relax.split": Rule(_follow_split, _narrow_split),
    "relax.strided_slice": Rule(_follow_slice, _narrow_slice),
}
