"""Calls in TIR: mathematics, conditionals, reinterpretation, atomics, synchronisation, products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import ir, tirx

from greencc.targets.vulkan.emitter import bits, matrices, parallel
from greencc.targets.vulkan.emitter.helpers import is_defined
from greencc.targets.vulkan.emitter.types import dtype_of

if TYPE_CHECKING:
    from greencc.targets.vulkan.emitter.expressions import Expressions

Rule = Callable[["Expressions", ir.Call, int], str]

# Functions of GLSL that are as exact as needed, by TIR's name.
_OWN = {
    "exp": "exp", "exp2": "exp2", "sqrt": "sqrt", "rsqrt": "inversesqrt",
    "floor": "floor", "ceil": "ceil", "trunc": "trunc", "nearbyint": "roundEven", "fabs": "abs",
}  # fmt: skip
# Those of the library.
_LIBRARY = (
    "log", "log2", "exp10", "erf", "tanh", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
    "sinh", "cosh", "asinh", "acosh", "atanh", "pow", "fmod", "round", "hypot", "copysign", "sigmoid",
)  # fmt: skip
_CALLED = {"powf": "pow", "pow": "pow", "power": "pow", "rint": "nearbyint", "abs": "fabs", "roundeven": "nearbyint"}
# Those of GLSL that exist in double precision.
_OWN_DOUBLE = ("sqrt", "rsqrt", "floor", "ceil", "trunc", "nearbyint", "fabs")


def call(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    """One lane of a call's value."""
    context = expressions.context
    if not isinstance(expr.op, ir.Op):
        raise context.fail(f"a call of {expr.op}")
    name = expr.op.name.split(".", 1)[1]
    rule = _RULES.get(name)
    if rule is not None:
        return rule(expressions, expr, lane)
    if name in ("call_pure_extern", "call_extern"):
        function = str(expr.args[0].value)
        extern = _EXTERN.get(function)
        if extern is not None:
            return extern(expressions, expr, lane)
        return mathematics(expressions, function, expr.args[1:], expr, lane)
    return mathematics(expressions, name, expr.args, expr, lane)


def mathematics(expressions: Expressions, called: str, args: list[tirx.Expr], expr: ir.Call, lane: int) -> str:
    """A function of floating-point numbers. Half precision is computed in single precision."""
    context = expressions.context
    kind = context.element(dtype_of(expr))
    name = _CALLED.get(called, called)
    if name not in _OWN and name not in _LIBRARY and name.endswith("f"):
        name = _CALLED.get(name[:-1], name[:-1])
    if name not in _OWN and name not in _LIBRARY:
        raise context.fail(f"no rule for the function '{called}'")
    if name == "fabs" and not kind.is_float:
        return expressions.wrapped(f"abs({expressions.value(args[0], lane)})", kind)
    if kind.dtype == "float64":
        return _in_double(expressions, name, args, lane)
    single = context.element("float32")
    values = [expressions.converted(expressions.value(arg, lane), dtype_of(arg), single) for arg in args]
    function = _OWN.get(name) or context.helper(f"math_{name}", "float")
    return expressions.converted(f"{function}({', '.join(values)})", "float32", kind)


def _in_double(expressions: Expressions, name: str, args: list[tirx.Expr], lane: int) -> str:
    context = expressions.context
    values = ", ".join(expressions.value(arg, lane) for arg in args)
    if name in _OWN_DOUBLE:
        return f"{_OWN[name]}({values})"
    if not is_defined(f"math_{name}", "double"):
        raise context.fail(f"'{name}' in double precision")
    return f"{context.helper(f'math_{name}', 'double')}({values})"


def evaluate(expressions: Expressions, expr: tirx.Expr) -> None:
    """A call for its effect."""
    context = expressions.context
    if not isinstance(expr, ir.Call) or not isinstance(expr.op, ir.Op):
        return
    name = expr.op.name.split(".", 1)[1]
    if name == "tvm_storage_sync":
        parallel.synchronise(expressions, expr)
    elif name in matrices.RULES:
        matrices.RULES[name](expressions, expr)
    elif name in _WORDS:
        context.emit(_WORDS[name])
    else:
        context.emit(f"{expressions.value(expr)};")


def _conditional(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    kind = expressions.context.element(dtype_of(expr))
    return expressions.conditional(expr.args, lane, expressions.value, kind.register)


def _likely(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    return expressions.value(expr.args[0], lane)


def _is_nan(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    register = expressions.context.element(dtype_of(expr.args[0])).register
    value = expressions.value(expr.args[0], lane)
    if register == "float16_t":
        value, register = f"float({value})", "float"
    return f"{expressions.context.helper('is_nan', register)}({value})"


def _is_infinite(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    return f"(abs({_single(expressions, expr.args[0], lane)}) == {expressions.context.helper('infinity')}())"


def _is_finite(expressions: Expressions, expr: ir.Call, lane: int) -> str:
    return f"(abs({_single(expressions, expr.args[0], lane)}) < {expressions.context.helper('infinity')}())"


def _single(expressions: Expressions, expr: tirx.Expr, lane: int) -> str:
    """A value in single precision, in which the largest of half and of single precision are finite."""
    kind = expressions.context.element(dtype_of(expr))
    value = expressions.value(expr, lane)
    return f"float({value})" if kind.register == "float16_t" else value


_RULES: dict[str, Rule] = {
    "if_then_else": _conditional,
    "likely": _likely,
    "isnan": _is_nan,
    "isinf": _is_infinite,
    "isfinite": _is_finite,
    "reinterpret": bits.reinterpret,
    "popcount": bits.count_ones,
    "ctpop": bits.count_ones,
    "clz": bits.count_leading_zeros,
    "atomic_add": parallel.atomic_add,
    "tvm_warp_shuffle": parallel.shuffle,
    "tvm_warp_shuffle_up": parallel.shuffle,
    "tvm_warp_shuffle_down": parallel.shuffle,
    "tvm_warp_shuffle_xor": parallel.shuffle,
    "tvm_warp_activemask": parallel.active_mask,
}
_EXTERN: dict[str, Rule] = {"__dp4a": bits.dot4}
# Calls for their effect that are a statement of GLSL, or nothing.
_WORDS = {
    "thread_return": "return;",
    "break_loop": "break;",
    "continue_loop": "continue;",
    "assume": "",
    "undef": "",
}
