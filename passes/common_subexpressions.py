"""Values that are computed, or stored, twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, relax

from greencc.ir import bindings_of, constant_array, operands, relax_functions, same_type, substitute
from greencc.passes.graph import Graph, rebuild
from greencc.passes.no_ops import Candidate
from greencc.passes.patterns import COMMUTATIVE

_COMPARED = (relax.Call, relax.TupleGetItem)
# Samples of a constant that are compared before its whole content.
_SAMPLES = 64
# Operators each call of which makes a new value.
_FRESH = (
    "relax.nn.dropout",
    "relax.call_tir_inplace",
    "relax.memory.",
    "relax.vm.",
    "relax.builtin.alloc",
    "relax.call_inplace",
)
# Either operand may be returned when two zeros of unlike sign, or a NaN, are compared.
_ORDERED = frozenset(("relax.maximum", "relax.minimum"))


def duplicates(graph: Graph, is_legal: Callable[[Candidate], bool]) -> Iterator[Candidate]:
    """Legal merges of calls that repeat an earlier one; branches see what is outside, not each other."""
    first_of: dict[relax.Expr, relax.Expr] = {}

    def scan(seq: relax.SeqExpr, outer: dict[object, list[relax.Var]]) -> Iterator[Candidate]:
        known = {key: list(found) for key, found in outer.items()}
        for block in seq.blocks:
            for binding in block.bindings:
                if isinstance(binding.value, relax.If):
                    yield from scan(binding.value.true_branch, known)
                    yield from scan(binding.value.false_branch, known)
                elif isinstance(binding, relax.VarBinding) and isinstance(binding.value, _COMPARED):
                    yield from look_up(binding, known)

    def look_up(binding: relax.Binding, known: dict[object, list[relax.Var]]) -> Iterator[Candidate]:
        var, value = binding.var, substitute(binding.value, first_of)
        earlier = known.setdefault(_key(value), [])
        for first in earlier:
            if same_type(first.ty, var.ty) and _same(substitute(graph.value(first), first_of), value):
                candidate = Candidate("duplicate", graph, var, binding.value, first)
                if is_legal(candidate):
                    first_of[var] = first
                    yield candidate
                    return
        earlier.append(var)

    yield from scan(graph.function.body, {})


def makes_new_value(value: relax.Expr) -> bool:
    """Whether two equal calls give two values: random bits, or storage that is written later."""
    op = value.op if isinstance(value, relax.Call) else None
    return isinstance(op, ir.Op) and op.name.startswith(_FRESH)


def is_repeatable(c: Candidate) -> bool:
    """Condition 10: two calls of a random or allocating operator give two values."""
    return c.kind != "duplicate" or not makes_new_value(c.value)


def share_constants(module: tvm.IRModule, owner: str) -> tuple[tvm.IRModule, int]:
    """`module` with constants of equal type and bits made one object, and how many were replaced."""
    known: dict[object, list[tuple[relax.Expr, np.ndarray]]] = {}
    merged: dict[relax.Expr, relax.Expr] = {}
    seen: set[relax.Expr] = set()
    for _, function in relax_functions(module):
        for constant in _constants(function):
            if constant in seen:
                continue
            seen.add(constant)
            array = constant_array(constant)
            if array is None:
                continue
            bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            stride = max(1, bits.size // _SAMPLES)
            key = (str(constant.ty.dtype), array.shape, bits[::stride].tobytes())
            same = known.setdefault(key, [])
            first = next((c for c, other in same if np.array_equal(bits, other)), None)
            if first is None:
                same.append((constant, bits))
            else:
                merged[constant] = first
    if merged:
        module = module.clone()
        for gv, function in list(relax_functions(module)):
            module.update_func(gv, rebuild(function, {}, owner=owner, constants=merged))
    return module, len(merged)


def _constants(function: relax.Function) -> Iterator[relax.Expr]:
    for binding in bindings_of(function):
        yield from (use for use in (binding.value, *operands(binding.value)) if isinstance(use, ir.GenericConst))


def _key(value: relax.Expr) -> object:
    """Equal for equal calls; commutative operators of numbers take their operands in any order."""
    if isinstance(value, relax.TupleGetItem):
        return "item", value.tuple_value, value.index
    uses = tuple(use if isinstance(use, (relax.Var, ir.GenericConst)) else type(use) for use in operands(value))
    op = value.op.name if isinstance(value.op, ir.Op) else value.op
    return op, frozenset(uses) if _is_commutative(value) else uses


def _same(a: relax.Expr, b: relax.Expr) -> bool:
    """Whether two values with equal keys are one: attributes, shapes and numbers compared as well."""
    if isinstance(a, relax.TupleGetItem):
        return True
    if not tvm_ffi.structural_equal(a.attrs, b.attrs) or not tvm_ffi.structural_equal(a.ty_args, b.ty_args):
        return False
    orders = [list(b.args), list(reversed(list(b.args)))] if _is_commutative(a) else [list(b.args)]
    return any(len(a.args) == len(o) and all(map(_same_operand, a.args, o)) for o in orders)


def _same_operand(a: relax.Expr, b: relax.Expr) -> bool:
    if isinstance(a, (relax.Var, ir.GenericConst)) or isinstance(b, (relax.Var, ir.GenericConst)):
        return bool(a.same_as(b))
    if isinstance(a, relax.Tuple) and isinstance(b, relax.Tuple):
        return len(a.fields) == len(b.fields) and all(map(_same_operand, a.fields, b.fields))
    return bool(tvm_ffi.structural_equal(a, b))


def _is_commutative(call: relax.Call) -> bool:
    return isinstance(call.op, ir.Op) and call.op.name in COMMUTATIVE - _ORDERED
