"""Structural patterns over a Graph: what an operator tree looks like, with named captures and backtracking.

    square = op("relax.power", any_("x"), scalar(2.0)) | op("relax.multiply", any_("x"), any_("x"))
    found = square.find(graph, var)          # {"x": <expr>} or None

A name that occurs twice must stand for the same value (or an equal scalar) in both places. Commutative
operators match in either order of their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax

from greencc.passes.graph import Graph

Captures = Mapping[str, relax.Expr]
COMMUTATIVE = frozenset(
    f"relax.{name}"
    for name in ("add", "multiply", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or")
)


class Pattern:
    """Base of all patterns. `matches` yields every way in which an expression fits."""

    def matches(self, graph: Graph, expr: relax.Expr, captures: Captures) -> Iterator[Captures]:
        """Every consistent extension of `captures` under which `expr` has this pattern's form."""
        raise NotImplementedError

    def find(self, graph: Graph, expr: relax.Expr) -> Captures | None:
        """The first match at `expr`, or None."""
        return next(self.matches(graph, expr, {}), None)

    def __or__(self, other: Pattern) -> Pattern:
        return Either((self, other))


@dataclass(frozen=True)
class Any(Pattern):
    """Any value, captured under a name (unless the name is empty)."""

    name: str = ""

    def matches(self, graph: Graph, expr: relax.Expr, captures: Captures) -> Iterator[Captures]:
        """See Pattern."""
        yield from _capture(captures, self.name, expr)


@dataclass(frozen=True)
class Constant(Pattern):
    """A constant of any shape that satisfies a predicate."""

    name: str = ""
    accepts: Callable[[np.ndarray], bool] = lambda _: True

    def matches(self, graph: Graph, expr: relax.Expr, captures: Captures) -> Iterator[Captures]:
        """See Pattern."""
        array = graph.constant(expr)
        if array is not None and self.accepts(array):
            yield from _capture(captures, self.name, graph.value(expr))


@dataclass(frozen=True)
class Either(Pattern):
    """Any of several alternatives, in order."""

    options: tuple[Pattern, ...]

    def matches(self, graph: Graph, expr: relax.Expr, captures: Captures) -> Iterator[Captures]:
        """See Pattern."""
        for option in self.options:
            yield from option.matches(graph, expr, captures)


@dataclass(frozen=True)
class Op(Pattern):
    """A call of an operator whose operands match; the called variable is captured under `name`.

    `attrs(call)` may inspect attributes.
    """

    op: str
    args: tuple[Pattern, ...]
    name: str = ""
    attrs: Callable[[relax.Call], bool] = lambda _: True

    def matches(self, graph: Graph, expr: relax.Expr, captures: Captures) -> Iterator[Captures]:
        """See Pattern."""
        call = graph.call(expr, self.op)
        if call is None or len(call.args) < len(self.args) or not self.attrs(call):
            return
        orders = [tuple(call.args)]
        if self.op in COMMUTATIVE and len(call.args) == 2:
            orders.append(tuple(reversed(orders[0])))
        for order in orders:
            for named in _capture(captures, self.name, expr):
                yield from _match_all(self.args, graph, order, named)


def any_(name: str = "") -> Pattern:
    """Any value."""
    return Any(name)


def op(name: str, *args: Pattern, bind: str = "", attrs: Callable[[relax.Call], bool] = lambda _: True) -> Pattern:
    """A call of `name` (the "relax." prefix may be left out) with these operands."""
    full = name if "." in name and name.split(".")[0] in ("relax", "greencc") else f"relax.{name}"
    return Op(full, args, bind, attrs)


def constant(name: str = "", accepts: Callable[[np.ndarray], bool] = lambda _: True) -> Pattern:
    """A constant of any shape."""
    return Constant(name, accepts)


def scalar(value: float | None = None, name: str = "", rtol: float = 1e-6) -> Pattern:
    """A one-element constant; with `value`, one within `rtol` of it (how float32 spells a real number)."""

    def accepts(array: np.ndarray) -> bool:
        return array.size == 1 and (
            value is None or bool(np.isclose(float(array.reshape(())), value, rtol=rtol, atol=0.0))
        )

    return Constant(name, accepts)


def _capture(captures: Captures, name: str, expr: relax.Expr) -> Iterator[Captures]:
    if not name:
        yield captures
    elif name not in captures:
        yield {**captures, name: expr}
    elif captures[name].same_as(expr):
        yield captures


def _match_all(
    patterns: tuple[Pattern, ...], graph: Graph, exprs: tuple[relax.Expr, ...], captures: Captures
) -> Iterator[Captures]:
    if not patterns:
        yield captures
        return
    for named in patterns[0].matches(graph, exprs[0], captures):
        yield from _match_all(patterns[1:], graph, exprs[1:], named)
