"""What TVM's operator fusion must be kept from: computing a small result again for every element that it is spread to.

In a squeeze-and-excite block, a product of a few hundred numbers scales a whole image. Fusion would compute the product
inside the loop over the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import tvm
from tvm import ir, relax

from greencc.ir import bindings_of, operands, relax_functions, static_shape

Calls: TypeAlias = dict[relax.Var, relax.Expr]

PATTERN_ATTR = "op_pattern"
# TVM's OpPatternKind.
_BROADCAST, _INJECTIVE, _REDUCTION, _PRODUCT, OPAQUE = 1, 2, 3, 4, 8


def keep_reductions_apart(module: tvm.IRModule) -> tvm.IRModule:
    """`module`, annotated with patterns, so that no reduction fuses with an operator that spreads its result.

    Such an operator counts as injective: it fuses with what follows, not with a reduction before it. It keeps its kind
    where the reduction's result reaches something else too, because then TVM doesn't fuse the two, and the operator
    may stand behind a product that it should fuse with.
    """
    spreading: set[str] = set()
    for _, function in relax_functions(module):
        calls = {binding.var: binding.value for binding in bindings_of(function)}
        users: dict[relax.Var, list[relax.Var]] = {}
        for var, value in calls.items():
            for use in operands(value):
                if isinstance(use, relax.Var):
                    users.setdefault(use, []).append(var)
        for var, call in calls.items():
            pattern = _pattern(module, call)
            size = _elements(var.ty)
            if pattern is None or pattern > _BROADCAST or size is None:
                continue
            for arg in call.args[1].fields:
                small = _elements(arg.ty)
                if small is None or small >= size:
                    continue
                if any(_ends_at(module, calls, users, made, var) for made in _reductions(module, calls, arg)):
                    spreading.add(call.args[0].name_hint)
    if not spreading:
        return module
    result = module.clone()
    for gv, func in module.functions_items():
        if gv.name_hint in spreading:
            result.update_func(gv, func.with_attr(PATTERN_ATTR, _INJECTIVE))
    return result


def _reductions(module: tvm.IRModule, calls: Calls, value: relax.Expr) -> Iterator[relax.Var]:
    """The reductions whose results a value is, or is made from element by element."""
    pending, seen = [value], {value}
    while pending:
        made = pending.pop()
        call = calls.get(made) if isinstance(made, relax.Var) else None
        pattern = None if call is None else _pattern(module, call)
        if call is None or pattern is None:
            continue
        if pattern in (_REDUCTION, _PRODUCT):
            yield made
        elif pattern <= _INJECTIVE:
            fresh = [arg for arg in call.args[1].fields if arg not in seen]
            seen.update(fresh)
            pending += fresh


def _ends_at(
    module: tvm.IRModule, calls: Calls, users: dict[relax.Var, list[relax.Var]], made: relax.Var, end: relax.Var
) -> bool:
    """Whether all that is computed from `made` is computed element by element, up to `end`."""
    pending, seen = [made], {made, end}
    while pending:
        for user in users.get(pending.pop(), ()):
            if user in seen:
                continue
            pattern = _pattern(module, calls[user])
            if pattern is None or pattern > _INJECTIVE:
                return False
            seen.add(user)
            pending.append(user)
    return True


def _pattern(module: tvm.IRModule, value: relax.Expr) -> int | None:
    """TVM's pattern of a kernel call, None for anything else."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op) or value.op.name != "relax.call_tir":
        return None
    attrs = module[value.args[0]].attrs
    return int(attrs[PATTERN_ATTR]) if attrs is not None and PATTERN_ATTR in attrs else None


def _elements(ty: relax.Type) -> int | None:
    shape = static_shape(ty) if isinstance(ty, relax.TensorType) else None
    return None if shape is None else math.prod(shape)
