"""Forms of attention that exporters write, and what `fuse-attention` asks of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax, tirx

from greencc.ir import same_shape, shape_of
from greencc.kernels import KERNEL
from greencc.passes.column_views import (
    Axis,
    Factor,
    Role,
    View,
    apply,
    contiguous,
    extent_of,
    is_one,
    views_of,
)
from greencc.passes.graph import Graph
from greencc.passes.matching import same_extents
from greencc.passes.patterns import Captures, Pattern, any_, op, scalar

_SCORES = op("matmul", any_("q"), any_("k"), bind="scores")
_SCALED = (
    _SCORES
    | op("multiply", _SCORES, scalar(name="factor"), bind="scaled")
    | op("divide", _SCORES, scalar(name="divisor"), bind="scaled")
)
_MASKED = (
    _SCALED
    | op("add", _SCALED, any_("mask"))
    | op("where", any_("keep"), _SCALED, scalar(name="fill"))
    | op("where", any_("drop"), scalar(name="fill"), _SCALED)
)
_SOFTMAX = op("nn.softmax", _MASKED, bind="softmax")
_IS_NAN = op("isnan", _SOFTMAX) | op(KERNEL, _SOFTMAX, attrs=lambda call: str(call.attrs["kernel"]) == "is_nan")
_SHARES = _SOFTMAX | op("where", _IS_NAN, scalar(name="zero"), _SOFTMAX)
_FORM: Pattern = op("matmul", _SHARES, any_("v"))
_MOVES = ("relax.reshape", "relax.permute_dims")
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Candidate:
    """Attention whose result, moved to its place, is `root`.

    Attributes:
        graph: where it was found.
        root: the value to replace.
        captures: what the names in the patterns stand for.
        inner: values between the operands and the root.
        q, k, v: the operands of the two products as views; k is [.., columns, keys].
        product: the second product's result as a view of the root as it should be, in the axes of the root;
            None when reshapes and transposes after the product make something else of it.
    """

    graph: Graph
    root: relax.Var
    captures: Captures
    inner: tuple[relax.Var, ...]
    q: View
    k: View
    v: View
    product: View | None

    def number(self, name: str, default: float) -> float:
        """A captured constant's value, or the default where the form has none."""
        value = self.graph.scalar(self.captures[name]) if name in self.captures else None
        return default if value is None else float(value)


def candidate(graph: Graph, root: relax.Var) -> Candidate | None:
    """Attention rooted at a transpose or reshape of its second product, or None."""
    moves: list[relax.Expr] = []
    expr: relax.Expr = root
    while (call := graph.call(expr)) is not None and call.op.name in _MOVES:
        moves.insert(0, expr)
        expr = call.args[0]
    captures = _FORM.find(graph, expr) if moves else None
    if captures is None:
        return None
    q = _view(graph, captures["q"])
    k = _view(graph, captures["k"], keys_last=True)
    v = _view(graph, captures["v"])
    if q is None or k is None or v is None:
        return None
    product: View | None = _product(q, v, shape_of(expr.ty) or [])
    for move in moves:
        product = None if product is None else apply(graph, product, move)
    names = ("q", "k", "v", "mask", "keep", "drop")
    inner = graph.between(root, [captures[name] for name in names if name in captures])
    return Candidate(graph, root, captures, inner, q, k, v, product)


def _view(graph: Graph, expr: relax.Expr, keys_last: bool = False) -> View | None:
    """`expr` as a view [batch and heads.., sequence, columns]; `keys_last`: its last two axes are swapped."""
    for view in views_of(graph, expr):
        if len(view.axes) >= 3:
            *lead, first, second = view.axes
            ordered = replace(view, axes=(*lead, second, first)) if keys_last else view
            if _is_operand(ordered):
                return ordered
    return None


def _is_operand(view: View) -> bool:
    """Whether the axes are batch, heads (stored ones, then their repetition), sequence and columns."""
    lead = [factor.role for axis in view.axes[:-2] for factor in axis]
    return (
        lead == sorted(lead, key=("batch", "column", "repeat", "sequence").index)
        and "sequence" not in lead
        and all(factor.role == "sequence" for factor in view.axes[-2])
        and all(factor.role == "column" for factor in view.axes[-1])
        and all(isinstance(factor.extent, tirx.IntImm) for factor in _heads(view))
    )


def _product(q: View, v: View, dims: list[tirx.Expr]) -> View:
    """softmax(..) V, of shape `dims`, as a view of [batch, sequence, heads * columns of a value head]."""
    lead: list[Axis] = list(q.axes[:-2])
    if len(lead) == 2:
        lead = [(Factor("batch", dims[0]),), (Factor("column", dims[1]),)]
    stride = width(v)
    for i in reversed(range(len(lead))):
        axis: list[Factor] = []
        for factor in reversed(lead[i]):
            if factor.role == "batch":
                axis.insert(0, factor)
            else:
                axis.insert(0, Factor("column", factor.extent, stride))
                stride *= int(factor.extent)
        lead[i] = tuple(factor for factor in axis if not is_one(factor.extent))
    columns = tuple(Factor("column", tirx.IntImm("int64", n), 1) for n in (width(v),) if n != 1)
    return View(v.source, (*lead, q.axes[-2], columns))


def _heads(view: View) -> list[Factor]:
    return [factor for axis in view.axes[:-2] for factor in axis if factor.role != "batch"]


def _extent(view: View, role: Role) -> tirx.Expr:
    extents = [factor.extent for axis in view.axes for factor in axis if factor.role == role]
    return math.prod(extents[1:], start=extents[0]) if extents else tirx.IntImm("int64", 1)


def width(view: View) -> int:
    """Columns of one head."""
    return extent_of(view.axes[-1]) or 1


def head_count(view: View) -> int:
    """Heads of an operand, repeated ones included."""
    return math.prod(int(factor.extent) for factor in _heads(view))


def own_heads(view: View) -> int:
    """Heads of an operand that are stored, not repeated."""
    return math.prod(int(factor.extent) for factor in _heads(view) if factor.role == "column")


def scale(c: Candidate) -> float:
    """The factor on the products of queries and keys."""
    divisor = c.number("divisor", 1.0)
    factor = c.q.scale * c.k.scale * c.number("factor", 1.0)
    return factor / divisor if divisor else math.inf


def mask_shape(c: Candidate) -> list[tirx.Expr] | None:
    """The mask's shape as [batch, heads, queries, keys], or None when its axes are others."""
    name = mask_name(c)
    lead = c.q.axes[:-2]
    dims = (shape_of(c.captures[name].ty) if name else None) or []
    dims = [tirx.IntImm("int64", 1)] * (len(lead) + 2 - len(dims)) + dims[max(0, len(dims) - len(lead) - 2) :]
    one, outer = [tirx.IntImm("int64", 1)], dims[:-2]
    roles = [{factor.role == "batch" for factor in axis} for axis in lead]
    if all(is_one(dim) for dim in outer):
        return [*one, *one, *dims[-2:]]
    if len(lead) == 2 and roles[0] <= {True} and roles[1] <= {False}:
        return dims
    if len(lead) == 1 and len(roles[0]) == 1:
        return [*outer, *one, *dims[-2:]] if roles[0] == {True} else [*one, *outer, *dims[-2:]]
    return None


def mask_name(c: Candidate) -> str | None:
    """Which spelling of a mask was captured, if any."""
    return next((name for name in ("mask", "keep", "drop") if name in c.captures), None)


def softmax_over_keys(c: Candidate) -> bool:
    """Condition 2."""
    call = c.graph.call(c.captures["softmax"])
    if call is None:
        return False
    rank = len(shape_of(call.args[0].ty) or ())
    return bool(int(call.attrs.axis) % rank == rank - 1)


def heads_side_by_side(c: Candidate) -> bool:
    """Condition 3."""
    return all(
        contiguous([factor for factor in _heads(view) if factor.role == "column"] + list(view.axes[-1]))
        for view in (c.q, c.k, c.v)
    )


def same_batch(c: Candidate) -> bool:
    """Condition 4."""
    q, k, v = (_extent(view, "batch") for view in (c.q, c.k, c.v))
    return same_shape([q, q], [k, v])


def values_fit_keys(c: Candidate) -> bool:
    """Condition 5."""
    same_length = same_shape([_extent(c.k, "sequence")], [_extent(c.v, "sequence")])
    return same_length and head_count(c.k) == head_count(c.v) and own_heads(c.k) == own_heads(c.v)


def heads_shared_out(c: Candidate) -> bool:
    """Condition 6. One key head broadcasts to all query heads; else there are as many after repetition."""
    return head_count(c.k) in (1, head_count(c.q))


def scale_is_finite(c: Candidate) -> bool:
    """Condition 7."""
    return math.isfinite(scale(c)) and c.v.scale == 1.0


def mask_fits(c: Candidate) -> bool:
    """Condition 8."""
    return same_extents(c.captures["softmax"], c.captures["scores"])


def mask_has_four_axes(c: Candidate) -> bool:
    """Condition 9."""
    return mask_name(c) is None or mask_shape(c) is not None


def fill_absorbs(c: Candidate) -> bool:
    """Condition 10. Half a step of the lowest float is 1e31: no smaller score changes it."""
    return c.number("fill", -math.inf) in (-math.inf, _LOWEST)


def result_side_by_side(c: Candidate) -> bool:
    """Condition 12."""
    factors = [factor for axis in c.product.axes for factor in axis] if c.product is not None else []
    columns = [factor for factor in factors if factor.role == "column"]
    roles = [factor.role for factor in factors]
    in_order = roles == sorted(roles, key=("batch", "sequence", "column").index)
    return c.product is not None and in_order and contiguous(columns)
