"""Small helpers over Relax that every stage shares: source names, constants, counting.

A *node* is an operator call (constants excluded, nested graphs counted); an *edge* is one use of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax, sym, tirx

INPUTS_ATTR = "greencc.inputs"
OUTPUTS_ATTR = "greencc.outputs"
# {"mask": an input's name, "outputs": names}: padded rows of these outputs are zeros, whatever the model gives there.
PADDING_ATTR = "greencc.padding"
SYMBOL_LOWER_ATTR = "tir_var_lower_bound"
SYMBOL_UPPER_ATTR = "tir_var_upper_bound"
# numpy can't look at these without a copy (bool: before numpy 2.1).
_NOT_IN_DLPACK = frozenset(("bfloat16", "bool"))


def span_of(expr: relax.Expr) -> str | None:
    """Name of the source model's node that `expr` stands for, or None when it has none."""
    span = expr.span
    return span.source_name.name if span is not None else None


def make_span(node: str) -> relax.Span:
    """A span that carries a source node's name. Line and column mean nothing here."""
    return relax.Span(ir.SourceName(node), 0, 0, 0, 0)


def with_span(expr: relax.Expr, node: str | None) -> relax.Expr:
    """`expr` again, carrying `node` as its source name. Only calls carry names; others are returned as is."""
    if node is None or not isinstance(expr, relax.Call):
        return expr
    return relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, make_span(node))


def constant(array: np.ndarray) -> relax.Expr:
    """A constant of the array's own type. Left to itself, relax.const narrows int64 and float64 to 32 bits."""
    return relax.const(np.asarray(array, order="C"), str(array.dtype))


def constant_array(expr: relax.Expr) -> np.ndarray | None:
    """The values of a constant expression, or None when `expr` is not a constant. A view where TVM allows."""
    if not isinstance(expr, ir.GenericConst):
        return None
    value = expr.value
    known_to_dlpack = str(value.dtype) not in _NOT_IN_DLPACK and not str(value.dtype).startswith("float8")
    return np.from_dlpack(value) if known_to_dlpack else value.numpy()


def scalar_value(expr: relax.Expr) -> float | int | bool | None:
    """The value of a one-element constant of any rank, or None."""
    array = constant_array(expr)
    return array.reshape(()).item() if array is not None and array.size == 1 else None


def static_shape(ty: relax.Type) -> tuple[int, ...] | None:
    """Shape of a tensor type as integers, or None when it is unknown or symbolic."""
    dims = shape_of(ty)
    if dims is None or not all(isinstance(dim, tirx.IntImm) for dim in dims):
        return None
    return tuple(int(dim) for dim in dims)


def shape_of(ty: relax.Type) -> list[tirx.Expr] | None:
    """Dimensions of a tensor type as TIR expressions, or None when the shape is unknown."""
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return None
    return list(ty.shape.values)


def dtype_of(ty: relax.Type) -> str | None:
    """Numpy name of a tensor type's element type, or None for other types."""
    return str(ty.dtype) if isinstance(ty, relax.TensorType) and ty.dtype is not None else None


def dim_text(dim: tirx.Expr) -> str:
    """An integer expression in Python's spelling: a symbol is its name."""
    binary = {tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.FloorDiv: "//", tirx.FloorMod: "%"}
    if isinstance(dim, tirx.IntImm):
        return str(int(dim))
    if isinstance(dim, tirx.Var):
        return str(dim.name)
    for kind, sign in binary.items():
        if isinstance(dim, kind):
            return f"({dim_text(dim.a)} {sign} {dim_text(dim.b)})"
    if isinstance(dim, (tirx.Min, tirx.Max)):
        name = "min" if isinstance(dim, tirx.Min) else "max"
        return f"{name}({dim_text(dim.a)}, {dim_text(dim.b)})"
    return "?"


def symbol_bounds(main: relax.Function) -> dict[str, tuple[int, int | None]]:
    """Inclusive bounds of every symbolic dimension of main's parameters; at least 1, unbounded above unless set."""
    lower, upper = (
        {str(name): int(value) for name, value in ((main.attrs or {}).get(attribute) or {}).items()}
        for attribute in (SYMBOL_LOWER_ATTR, SYMBOL_UPPER_ATTR)
    )
    symbols = (dim for param in main.params for dim in shape_of(param.ty) or [] if isinstance(dim, tirx.Var))
    return {symbol.name: (lower.get(symbol.name, 1), upper.get(symbol.name)) for symbol in symbols}


def same_type(a: relax.Type, b: relax.Type) -> bool:
    """Whether two types are equal, symbolic dimensions compared as expressions."""
    if isinstance(a, relax.TensorType) and isinstance(b, relax.TensorType):
        shape_a, shape_b = shape_of(a), shape_of(b)
        if str(a.dtype) != str(b.dtype):
            return False
        if shape_a is None or shape_b is None:
            return shape_a is None and shape_b is None
        return same_shape(shape_a, shape_b)
    return bool(tvm_ffi.structural_equal(a, b))


def same_shape(a: list[tirx.Expr], b: list[tirx.Expr]) -> bool:
    """Whether two shapes are provably equal."""
    if len(a) != len(b):
        return False
    analyzer = sym.Analyzer()
    return all(analyzer.can_prove_equal(x, y) for x, y in zip(a, b, strict=True))


def relax_functions(module: tvm.IRModule) -> Iterator[tuple[ir.GlobalVar, relax.Function]]:
    """The module's Relax functions, `main` first, then by name: an order that does not vary between runs."""
    pairs = [(gv, fn) for gv, fn in module.functions_items() if isinstance(fn, relax.Function)]
    yield from sorted(pairs, key=lambda pair: (pair[0].name_hint != "main", pair[0].name_hint))


def bindings_of(function: relax.Function) -> Iterator[relax.Binding]:
    """Every binding of a function in execution order, those inside branches of an If included."""

    def walk(seq: relax.SeqExpr) -> Iterator[relax.Binding]:
        for block in seq.blocks:
            for binding in block.bindings:
                yield binding
                value = binding.value
                if isinstance(value, relax.If):
                    yield from walk(value.true_branch)
                    yield from walk(value.false_branch)

    yield from walk(function.body)


def is_call(value: relax.Expr, op: str) -> bool:
    """Whether a value is a call of the operator named `op`."""
    return isinstance(value, relax.Call) and isinstance(value.op, ir.Op) and bool(value.op.name == op)


def operands(value: relax.Expr) -> Iterator[relax.Expr]:
    """The values that an expression uses, tuples opened, in order."""
    if isinstance(value, relax.Call):
        children = list(value.args)
    elif isinstance(value, relax.Tuple):
        children = list(value.fields)
    elif isinstance(value, relax.TupleGetItem):
        children = [value.tuple_value]
    elif isinstance(value, relax.If):
        children = [value.cond]
    else:
        return
    for child in children:
        if isinstance(child, relax.Tuple):
            yield from operands(child)
        else:
            yield child


def substitute(value: relax.Expr, env: Mapping[relax.Expr, relax.Expr]) -> relax.Expr:
    """`value` with its operands replaced by `env`; the same object when nothing changes."""
    if isinstance(value, (relax.Var, ir.GenericConst)):
        return env.get(value, value)
    if isinstance(value, relax.Call):
        args = [substitute(arg, env) for arg in value.args]
        if all(a is b for a, b in zip(args, value.args, strict=True)):
            return value
        ret_ty = value.ty if not isinstance(value.op, ir.Op) or value.op.name == "relax.call_tir" else None
        return relax.Call(value.op, args, value.attrs, value.ty_args, value.span, ret_ty=ret_ty)
    if isinstance(value, relax.Tuple):
        fields = [substitute(field, env) for field in value.fields]
        if all(a is b for a, b in zip(fields, value.fields, strict=True)):
            return value
        return relax.Tuple(fields, value.span)
    if isinstance(value, relax.TupleGetItem):
        source = substitute(value.tuple_value, env)
        if isinstance(source, relax.Tuple):
            return source.fields[value.index]
        return value if source is value.tuple_value else relax.TupleGetItem(source, value.index)
    return value


def count_graph(module: tvm.IRModule) -> tuple[int, int]:
    """(|N|, |E|): operator calls, and uses of values by them and by the outputs."""
    nodes = edges = 0
    for _, function in relax_functions(module):
        for binding in bindings_of(function):
            value = binding.value
            is_node = isinstance(value, (relax.If, relax.Call)) and not (
                isinstance(value, relax.Call) and isinstance(value.op, ir.GlobalVar)
            )
            is_output = isinstance(value, relax.Tuple)
            nodes += is_node
            if is_node or is_output:
                edges += sum(isinstance(use, relax.Var) for use in operands(value))
    return nodes, edges


def rebuild_function(
    function: relax.Function,
    value_of: Callable[[relax.Expr], relax.Expr],
    var_of: Callable[[relax.Var], relax.Var] = lambda var: var,
) -> relax.Function:
    """`function` with `value_of` applied to every bound value, branch condition and result.

    `var_of` names the variable that a binding gets; `value_of` has to replace its uses. The branches of an If are
    rebuilt in the same way. Parameters stay as they are.
    """
    normalizer = relax.BlockBuilder()

    def rebind(binding: relax.Binding) -> relax.Binding:
        value = binding.value
        if isinstance(binding, relax.MatchCast):
            return relax.MatchCast(var_of(binding.var), value_of(value), binding.ty)
        if isinstance(value, relax.If):
            branches = sequence(value.true_branch), sequence(value.false_branch)
            value = relax.If(value_of(value.cond), *branches, value.span)
        else:
            value = value_of(value)
        return relax.VarBinding(var_of(binding.var), normalizer.normalize(value))

    def sequence(seq: relax.SeqExpr) -> relax.SeqExpr:
        blocks = []
        for block in seq.blocks:
            kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
            blocks.append(kind([rebind(binding) for binding in block.bindings]))
        return normalizer.normalize(relax.SeqExpr(blocks, value_of(seq.body)))

    body = sequence(function.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
