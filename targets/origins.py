"""Which source nodes a kernel comes from. Source names die when operators are lowered, variables' names don't.

So every value gets a unique name before legalisation; afterwards the names lead back to the source nodes, and the
groups that fusion forms tell which nodes share a kernel.
"""

from __future__ import annotations

import functools

import tvm
from tvm import ir, relax

from greencc.ir import bindings_of, rebuild_function, relax_functions, span_of, substitute, with_span

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
            renamed[var] = kind(f"greencc.n{count}", var.ty)
            return renamed[var]

        def replaced(value: relax.Expr, renamed: dict[relax.Var, relax.Var] = renamed) -> relax.Expr:
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
        result.update_func(gv, rebuild_function(function, functools.partial(_relabel, nodes)))
    return result


def _relabel(nodes: dict[relax.Expr, str], value: relax.Expr) -> relax.Expr:
    return with_span(value, nodes.get(value))


def trace_origins(before: tvm.IRModule, after: tvm.IRModule) -> list[tuple[str, ...]]:
    """The source nodes of every kernel call of `after`, in order: those of its call site, not of its kernel.

    Args:
        before: the module of single kernels, labelled.
        after: the same module after FuseOps, where groups of equal form share one function.

    Every group is replayed on the operands of its call site: a kernel on the same operands is the same call.
    """
    groups = {
        gv.name_hint: function
        for gv, function in relax_functions(after)
        if function.attrs and PRIMITIVE_ATTR in function.attrs
    }
    origins: list[tuple[str, ...]] = []
    for gv, function in relax_functions(after):
        if gv.name_hint not in groups:
            origins.extend(_Replay(before[gv.name_hint], groups).origins(function))
    return origins


class _Replay:
    """Follows the values of a fused function in the function that it was made from."""

    def __init__(self, original: relax.Function, groups: dict[str, relax.Function]) -> None:
        self._groups = groups
        self._calls: dict[tuple[object, ...], tuple[object, str | None]] = {}
        for binding in bindings_of(original):
            key = self._key(binding.value, {})
            if key is not None:
                self._calls.setdefault(key, (binding.var.name, span_of(binding.value)))

    def origins(self, function: relax.Function) -> list[tuple[str, ...]]:
        """Source nodes of each kernel call of `function`."""
        return self._walk(function, {})[0]

    def _walk(
        self, function: relax.Function, known: dict[relax.Var, object]
    ) -> tuple[list[tuple[str, ...]], dict[relax.Var, object]]:
        found: list[tuple[str, ...]] = []
        for binding in bindings_of(function):
            value = binding.value
            group = self._group(value)
            if group is not None:
                inner = {p: self._identity(a, known) for p, a in zip(group.params, value.args, strict=True)}
                nodes, inner = self._walk(group, inner)
                found.append(tuple(dict.fromkeys(node for names in nodes for node in names)))
                known[binding.var] = self._identity(group.body.body, inner)
                continue
            key = self._key(value, known)
            if key is None:
                known[binding.var] = self._identity(value, known)
                if known[binding.var] is None:
                    known[binding.var] = binding.var.name
                continue
            identity, node = self._calls.get(key, (binding.var.name, None))
            known[binding.var] = identity
            found.append((node,) if node else ())
        return found, known

    def _group(self, value: relax.Expr) -> relax.Function | None:
        """The group of kernels that a call stands for, or None for anything else."""
        if isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar):
            return self._groups.get(value.op.name_hint)
        return None

    def _key(self, value: relax.Expr, known: dict[relax.Var, object]) -> tuple[object, ...] | None:
        """What a kernel call computes: the kernel and its operands. None for anything else."""
        if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op) or value.op.name != "relax.call_tir":
            return None
        return (value.args[0].name_hint, *(self._identity(arg, known) for arg in value.args[1:]))

    def _identity(self, value: relax.Expr, known: dict[relax.Var, object]) -> object:
        """What stands for a value in both functions: the name it had before fusion, or a constant's address."""
        if isinstance(value, relax.Var):
            return known.get(value, value.name)
        if isinstance(value, ir.GenericConst):
            return ("constant", value.value.data_ptr() if hasattr(value.value, "data_ptr") else hash(value.value))
        if isinstance(value, relax.Tuple):
            return tuple(self._identity(field, known) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            source = self._identity(value.tuple_value, known)
            return source[value.index] if isinstance(source, tuple) else (source, value.index)
        if isinstance(value, relax.ShapeExpr):
            return str(value)
        return None
