"""What the fuse passes share: a matched region, conditions on it, and per-channel constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.ir import bindings_of, constant_array, dtype_of, operands, same_shape, shape_of, static_shape
from greencc.passes.base import Condition
from greencc.passes.graph import Graph
from greencc.passes.patterns import Captures, Pattern


@dataclass(frozen=True)
class Region:
    """A match of a pattern.

    Attributes:
        graph: where it was found.
        root: variable whose value the rewrite replaces.
        captures: what the pattern's names stand for; `x` is the region's input.
        inner: values that the region computes on the way from its inputs to the root.
        kind: name of the form that was found, for reports.
    """

    graph: Graph
    root: relax.Var
    captures: Captures
    inner: tuple[relax.Var, ...]
    kind: str

    @property
    def x(self) -> relax.Expr:
        """The region's input."""
        return self.captures["x"]

    def scalar(self, name: str) -> float:
        """The value of a captured one-element constant."""
        value = self.graph.scalar(self.captures[name])
        return float("nan") if value is None else float(value)

    def call(self, name: str) -> relax.Call:
        """The call that a captured variable is bound to."""
        return self.graph.call(self.captures[name])


def find_region(
    graph: Graph, root: relax.Var, pattern: Pattern, kind: str, inputs: Iterable[str] = ("x",)
) -> Region | None:
    """The region of `pattern` at `root`, or None; the captures named `inputs` are not part of the region."""
    captures = pattern.find(graph, root)
    if captures is None:
        return None
    leaves = [captures[name] for name in inputs if name in captures]
    return Region(graph, root, captures, graph.between(root, leaves), kind)


def is_float32(*exprs: relax.Expr) -> bool:
    """Whether all these values are float32 tensors."""
    return all(dtype_of(expr.ty) == "float32" for expr in exprs)


def is_only_reader(graph: Graph, weight: np.ndarray) -> bool:
    """Whether a constant is used once: changed for one of several uses, it would be stored twice."""
    return graph.analysis(_readers)[_address(weight)] == 1


def float32_input(number: int) -> Condition[Region]:
    """Condition: the input is float32."""
    return Condition(
        number, "the input is not float32: another precision would round elsewhere", lambda r: is_float32(r.x)
    )


def dies_with_root(number: int) -> Condition[Region]:
    """Condition: fusing computes nothing twice."""
    return Condition(number, "a value inside the form is used elsewhere", lambda r: r.graph.is_closed(r.root, r.inner))


def keeps_shape(number: int) -> Condition[Region]:
    """Condition: no operand, such as a constant of a higher rank, broadcasts the input."""
    return Condition(number, "the form broadcasts its input to another shape", lambda r: same_extents(r.x, r.root))


def dims_of(expr: relax.Expr) -> list[tirx.Expr]:
    """Dimensions of a tensor; none where they are unknown."""
    return shape_of(expr.ty) or []


def same_extents(a: relax.Expr, b: relax.Expr) -> bool:
    """Whether two tensors have provably the same shape."""
    shape_a, shape_b = shape_of(a.ty), shape_of(b.ty)
    return shape_a is not None and shape_b is not None and same_shape(shape_a, shape_b)


def channel_vector(graph: Graph, expr: relax.Expr | None, like: relax.Expr, default: float) -> relax.Expr | None:
    """`expr` as a vector over the last axis of `like`, or None when it is not one.

    A variable must have the vector's shape already; a constant may have axes of length 1 before it, or one
    element.
    Without an `expr` the vector holds `default` throughout.
    """
    channels = (shape_of(like.ty) or [None])[-1]
    if expr is not None and channels is not None and same_shape(shape_of(expr.ty) or [], [channels]):
        return expr
    array = np.float32(default) if expr is None else graph.constant(expr)
    width = static_shape(relax.TensorType([channels], "float32")) if channels is not None else None
    if array is None or width is None:
        return None
    if array.size != 1 and (array.size, array.shape[-1]) != width * 2:
        return None
    return relax.const(np.array(np.broadcast_to(array.reshape(-1), width)))


def _readers(graph: Graph) -> Counter[int]:
    """How many uses each constant's memory has."""
    found: Counter[int] = Counter()
    for binding in bindings_of(graph.function):
        for use in operands(binding.value):
            array = constant_array(use)
            if array is not None:
                found[_address(array)] += 1
    return found


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
