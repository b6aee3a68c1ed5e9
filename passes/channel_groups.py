"""Groups of channels that go together: finding them in a function, and the function without some channels."""

from __future__ import annotations

import numpy as np
from tvm import relax

from greencc.ir import bindings_of, operands, rebuild_function, span_of, substitute, with_span
from greencc.passes.channel_rules import RULES, Narrowing
from greencc.passes.channel_trace import Axes, Bound, Trace
from greencc.passes.graph import Graph


def trace_channels(graph: Graph) -> Trace:
    """The channels of all values of a function."""
    trace = Trace(graph)
    for param in graph.function.params:
        trace.axes[param] = trace.opaque(param.ty, Bound.INTERFACE)
    for binding in bindings_of(graph.function):
        var = binding.var
        trace.axes[var] = _followed(trace, binding)
        if graph.is_result(var):
            for axis in trace.axes[var]:
                trace.bind(axis, Bound.INTERFACE)
    trace.resolve()
    return trace


def _followed(trace: Trace, binding: relax.Binding) -> Axes:
    var, value = binding.var, binding.value
    call = None if isinstance(binding, relax.MatchCast) else trace.graph.call(value)
    rule = None if call is None or not isinstance(value, relax.Call) else RULES.get(call.op.name)
    if rule is not None:
        return rule.follow(trace, var, call)
    if isinstance(binding, relax.MatchCast) or _is_nested(value):
        return trace.unknown(var, value)
    if isinstance(value, relax.TupleGetItem):
        return (trace.axes_of(value.tuple_value)[value.index],)
    return trace.axes_of(value) if isinstance(value, (relax.Tuple, relax.Var)) else trace.unknown(var, value)


def _is_nested(value: relax.Expr) -> bool:
    """Whether it is a tuple of tuples, or taken out of one."""
    ty = value.tuple_value.ty if isinstance(value, relax.TupleGetItem) else value.ty
    return isinstance(ty, relax.TupleType) and any(isinstance(part, relax.TupleType) for part in ty.fields)


def without_channels(trace: Trace, gone: np.ndarray) -> relax.Function:
    """The function without the channels of these numbers; no bound may hold them."""
    narrowing, builder = Narrowing(trace, gone), relax.BlockBuilder()
    rebuilt: dict[relax.Expr, relax.Expr] = {}
    for var, value in trace.graph.definitions():
        if not any(narrowing.is_touched(expr) for expr in (var, *operands(value))):
            continue
        call = trace.graph.call(value) if isinstance(value, relax.Call) else None
        rule = None if call is None else RULES.get(call.op.name)
        new = substitute(value, narrowing.values) if rule is None else rule.narrow(narrowing, var, call)
        rebuilt[value] = builder.normalize(with_span(new, span_of(value)))
        narrowing.values[var] = type(var)(var.name, rebuilt[value].ty)
    return rebuild_function(
        trace.graph.function,
        lambda value: rebuilt[value] if value in rebuilt else substitute(value, narrowing.values),
        lambda var: narrowing.values.get(var, var),
    )
