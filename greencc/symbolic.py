"""Sizes as text: the expressions in symbols that an artifact's manifest holds."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate(amount: int | str | None, symbols: Mapping[str, int]) -> int | None:
    """The value of an expression of `greencc.ir.dim_text`.

    Args:
        amount: an integer, or an expression of integers, names, + - * // %, min and max; None is unknown.
        symbols: values by name.

    Returns None where the amount is unknown, names an unknown symbol or is no such expression.
    """
    if amount is None or isinstance(amount, int):
        return amount
    try:
        return _value(ast.parse(amount, mode="eval").body, symbols)
    except (SyntaxError, KeyError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, symbols)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, symbols), _value(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _FUNCTIONS[name](*(_value(arg, symbols) for arg in args))
        case _:
            raise KeyError(ast.dump(node))
