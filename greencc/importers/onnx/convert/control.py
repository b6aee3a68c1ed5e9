"""Control flow: If with both branches as private functions; a constant condition picks its branch right here."""

from __future__ import annotations

import onnx
from tvm import ir, relax, tirx

from greencc.importers.onnx.context import Converter, NodeContext
from greencc.importers.onnx.reader import free_names
from greencc.importers.onnx.values import Value, as_expr
from greencc.ir import same_type


def if_(ctx: NodeContext) -> list[relax.Expr | Value]:
    """If: a constant condition inlines one branch; otherwise both become functions of what they capture."""
    then_graph, else_graph = ctx.attr("then_branch"), ctx.attr("else_branch")
    condition = ctx.value(0)
    if condition.is_constant and condition.known is not None:
        return _inline(ctx, then_graph if condition.known.reshape(-1)[0] else else_graph)
    names = list(dict.fromkeys([*free_names(then_graph), *free_names(else_graph)]))
    captured = [ctx.walker.values[name] for name in names]
    then_fn, then_types = _branch(ctx, then_graph, captured)
    else_fn, else_types = _branch(ctx, else_graph, captured)
    for output, a, b in zip(then_graph.output, then_types, else_types, strict=True):
        if not same_type(a, b):
            raise ctx.refuse(f"its branches give '{output.name}' different types: {a} and {b}")
    args = [value.expr for value in captured if value.expr is not None and value.known is None]
    symbols = _symbols(captured)
    shape_args = [relax.ShapeExpr([as_expr(s) for s in symbols])] if symbols else []
    test = ctx.tensor(0)
    if condition.rank:
        test = ctx.emit(relax.op.reshape(test, ()))
    call = relax.If(test, relax.Call(then_fn, [*args, *shape_args]), relax.Call(else_fn, [*args, *shape_args]))
    result = ctx.walker.emit_typed(call, relax.TupleType(then_types))
    return [ctx.emit(relax.TupleGetItem(result, index)) for index in range(len(then_types))]


def _inline(ctx: NodeContext, graph: onnx.GraphProto) -> list[relax.Expr | Value]:
    walker = ctx.walker
    outer, walker.values = walker.values, dict(walker.values)
    graph_before, walker.graph = walker.graph, graph
    try:
        return [Value("", v.expr, v.known, v.dtype, v.elements) for v in walker.run()]
    finally:
        walker.values, walker.graph = outer, graph_before


def _symbols(captured: list[Value]) -> list[tirx.Var]:
    """Symbolic dimensions that the captured values mention, in order of first use."""
    found: dict[tirx.Var, None] = {}
    for value in captured:
        items = value.known.reshape(-1).tolist() if value.known is not None else list(value.shape or [])
        for item in items:
            if isinstance(item, tirx.Expr):
                for var in tirx.analysis.undefined_vars(tirx.Evaluate(item)):
                    found.setdefault(var)
    return list(found)


def _branch(ctx: NodeContext, graph: onnx.GraphProto, captured: list[Value]) -> tuple[ir.GlobalVar, list[relax.Type]]:
    """One branch as a private function of the captured tensors and of the symbolic sizes they mention."""
    from greencc.importers.onnx.walker import GraphWalker

    params: list[relax.Var] = []
    values: dict[str, Value] = {}
    for value in captured:
        if value.known is not None or value.expr is None:
            values[value.name] = Value(value.name, None, value.known, value.dtype, value.elements)
            continue
        param = relax.Var(value.name, value.expr.ty)
        params.append(param)
        values[value.name] = Value(value.name, param)
    symbols = _symbols(captured)
    if symbols:
        params.append(relax.Var("symbols", relax.ShapeType([as_expr(s) for s in symbols])))
    walker = GraphWalker(ctx.walker.importer, graph, values)
    outputs = walker.run()
    if ctx.walker.importer.unsupported:
        raise ctx.refuse("a branch holds unsupported operators")
    results = [walker.tensor(value, ctx.label) for value in outputs]
    # Symbolic sizes belong to one function each: the caller and the other branch have their own.
    function = relax.utils.copy_with_new_vars(walker.function(params, results))
    gv = ctx.walker.importer.add_function(f"{graph.name or 'branch'}", function, private=True)
    return gv, [result.ty for result in results]


CONVERTERS: dict[tuple[str, str], Converter] = {("", "If"): if_}
