"""Which source nodes a kernel comes from. Source names die when operators are lowered, variables' names don't.

So every value gets a unique name before legalisation; afterwards the names lead back to the source nodes, and the
groups that fusion forms tell which nodes share a kernel.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

from greencc.ir import bindings_of, rebuild_function, relax_functions, span_of, with_span

PRIMITIVE_ATTR = "Primitive"


def label_values(module: tvm.IRModule) -> tuple[tvm.IRModule, dict[str, str]]:
    """`module` with uniquely named values, and the source node by name."""
    labels: dict[str, str] = {}
    result = module.clone()
    count = 0
    for gv, function in relax_functions(module):
        renamed: dict[relax.Var, relax.Var] = {}

        def rename(var: relax.Var, renamed: dict[relax.Var, relax.Var] = renamed) -> relax.Var:
            nonlocal count
            count += 1
            kind = relax.DataflowVar if isinstance(var, relax.DataflowVar) else relax.Var
            renamed[var] = kind(f"n{count}", var.ty)
            return renamed[var]

        def replaced(value: relax.Expr, renamed: dict[relax.Var, relax.Var] = renamed) -> relax.Expr:
            from greencc.passes.graph import substitute

            return substitute(value, renamed)

        new = rebuild_function(function, replaced, rename)
        for binding in bindings_of(new):
            node = span_of(binding.value)
            if node is not None:
                labels[binding.var.name] = node
        result.update_func(gv, new)
    return result, labels


def restore_labels(module: tvm.IRModule, labels: dict[str, str]) -> tvm.IRModule:
    """Give every call its source node again; a helper value of a lowering belongs to the node that follows."""
    result = module.clone()
    for gv, function in relax_functions(module):
        nodes: dict[relax.Var, str] = {}
        following: str | None = None
        for binding in reversed(list(bindings_of(function))):
            following = labels.get(binding.var.name, following)
            if following is not None and isinstance(binding.value, relax.Call):
                nodes[binding.value] = following
        result.update_func(gv, rebuild_function(function, lambda value, n=nodes: with_span(value, n.get(value))))
    return result


def take_origins(module: tvm.IRModule) -> list[tuple[str, ...]]:
    """After FuseOps: the source nodes of every kernel call of the module's callable functions, in order."""
    groups = {
        gv.name_hint: _nodes(function)
        for gv, function in relax_functions(module)
        if function.attrs and PRIMITIVE_ATTR in function.attrs
    }
    origins: list[tuple[str, ...]] = []
    for gv, function in relax_functions(module):
        if gv.name_hint in groups:
            continue
        for binding in bindings_of(function):
            value = binding.value
            if not isinstance(value, relax.Call):
                continue
            if isinstance(value.op, ir.GlobalVar) and value.op.name_hint in groups:
                origins.append(groups[value.op.name_hint])
            elif isinstance(value.op, ir.Op) and value.op.name == "relax.call_tir":
                origins.append(tuple(filter(None, [span_of(value)])))
    return origins


def _nodes(function: relax.Function) -> tuple[str, ...]:
    names = (span_of(binding.value) for binding in bindings_of(function))
    return tuple(dict.fromkeys(name for name in names if name))
