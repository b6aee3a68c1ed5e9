"""What TVM's operator fusion must be kept from: computing a small result again for every element that it is spread to.

In a squeeze-and-excite block, a product of a few hundred numbers scales a whole image. Fusion would compute the product
inside the loop over the image.
"""

from __future__ import annotations

import math

import tvm
from tvm import ir, relax

from greencc.ir import bindings_of, relax_functions, static_shape

PATTERN_ATTR = "op_pattern"
# TVM's OpPatternKind.
_BROADCAST, _INJECTIVE, _REDUCTION, _PRODUCT, OPAQUE = 1, 2, 3, 4, 8


def keep_reductions_apart(module: tvm.IRModule) -> tvm.IRModule:
    """`module`, annotated with patterns, so that no reduction fuses with an operator that spreads its result.

    Such an operator counts as injective: it fuses with what follows, not with a reduction before it.
    """
    spreading: set[str] = set()
    for _, function in relax_functions(module):
        calls = {binding.var: binding.value for binding in bindings_of(function)}
        for var, call in calls.items():
            pattern = _pattern(module, call)
            size = _elements(var.ty)
            if pattern is None or pattern > _BROADCAST or size is None:
                continue
            for arg in call.args[1].fields:
                small = _elements(arg.ty)
                if small is not None and small < size and _is_reduced(module, calls, arg):
                    spreading.add(call.args[0].name_hint)
    if not spreading:
        return module
    result = module.clone()
    for gv, func in module.functions_items():
        if gv.name_hint in spreading:
            result.update_func(gv, func.with_attr(PATTERN_ATTR, _INJECTIVE))
    return result


def _is_reduced(module: tvm.IRModule, calls: dict[relax.Var, relax.Expr], value: relax.Expr) -> bool:
    """Whether a value is a reduction's result, or made from one element by element."""
    call = calls.get(value) if isinstance(value, relax.Var) else None
    pattern = None if call is None else _pattern(module, call)
    if call is None or pattern is None:
        return False
    if pattern in (_REDUCTION, _PRODUCT):
        return True
    return pattern <= _INJECTIVE and any(_is_reduced(module, calls, arg) for arg in call.args[1].fields)


def _pattern(module: tvm.IRModule, value: relax.Expr) -> int | None:
    """TVM's pattern of a kernel call, None for anything else."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, ir.Op) or value.op.name != "relax.call_tir":
        return None
    attrs = module[value.args[0]].attrs
    return int(attrs[PATTERN_ATTR]) if attrs is not None and PATTERN_ATTR in attrs else None


def _elements(ty: relax.Type) -> int | None:
    shape = static_shape(ty) if isinstance(ty, relax.TensorType) else None
    return None if shape is None else math.prod(shape)
