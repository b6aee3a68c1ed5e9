"""Operators that return one of their operands unchanged, as rules of `prune-dead-nodes`.

A rule's `match` finds the form. Whether it is legal is for the pass's numbered conditions, the functions at
the end of this module and of compositions.py, which look at nothing but the candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from greencc.ir import dtype_of, same_type, shape_of, static_shape
from greencc.passes.graph import Builder, Graph


@dataclass(frozen=True)
class Candidate:
    """A place where `value` (the definition of `var`) may be replaced.

    Attributes:
        kind: the rule's name, under which rewrites are counted.
        source: the operand that takes over, or on which the replacement is built.
        inner: the call between `source` and `value` when two operators are composed.
        pieces: for a concat of slices, each operand's (begin, end) on the axis; None where unknown.
    """

    kind: str
    graph: Graph
    var: relax.Var
    value: relax.Expr
    source: relax.Expr
    inner: relax.Call = None
    pieces: tuple[tuple[int, int] | None, ...] = ()


@dataclass(frozen=True)
class Rule:
    """How one form is found and what replaces it."""

    match: Callable[[Graph, relax.Var, relax.Call], Candidate | None]
    rewrite: Callable[[Builder, Candidate], relax.Expr]


# Operator -> is this constant neutral as its left operand, as its right operand? A zero of either sign is a
# candidate; condition 2 looks at the sign.
_NEUTRAL: Mapping[str, tuple[float | None, float | None]] = {
    "relax.add": (0, 0),
    "relax.subtract": (None, 0),
    "relax.multiply": (1, 1),
    "relax.divide": (None, 1),
    "relax.power": (None, 1),
    "relax.logical_and": (True, True),
    "relax.logical_or": (False, False),
}
# Operators whose result has no -0.0, whatever their operand.
_NEVER_NEGATIVE_ZERO = frozenset(("relax.exp", "relax.sigmoid", "relax.nn.softmax", "relax.abs"))
_UNCHANGED = ("reshape", "permute_dims", "astype", "strided_slice", "broadcast_to", "squeeze", "expand_dims")
_UNCHANGED_OPS = (*(f"relax.{name}" for name in _UNCHANGED), "relax.flatten", "relax.nn.pad", "relax.split")


def take_source(_builder: Builder, candidate: Candidate) -> relax.Expr:
    """The rewrite of every no-op: its operand."""
    return candidate.source


def _same_type_as_operand(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """A layout operator whose result has its operand's type."""
    if not same_type(call.args[0].ty, var.ty):
        return None
    return Candidate(call.op.name.removeprefix("relax."), graph, var, call, call.args[0])


def _concat_of_one(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """A concat of which one operand is the whole result; the others, if any, are then empty."""
    operands = graph.value(call.args[0])
    if not isinstance(operands, relax.Tuple):
        return None
    whole = next((field for field in operands.fields if same_type(field.ty, var.ty)), None)
    return None if whole is None else Candidate("concat", graph, var, call, whole)


def _neutral_operand(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """Match x + 0, x - 0, x * 1, x / 1, x ** 1, x and True, x or False."""
    for constant, source, neutral in zip(call.args, reversed(list(call.args)), _NEUTRAL[call.op.name], strict=True):
        values = None if neutral is None else graph.constant(constant)
        if values is not None and values.size > 0 and bool(np.all(values == neutral)):
            return Candidate(call.op.name.removeprefix("relax."), graph, var, call, source)
    return None


def _where_decided(graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
    """A `where` with a constant condition that is the same everywhere."""
    decided = graph.constant(call.args[0])
    if decided is None or decided.size == 0 or not (bool(decided.all()) or not bool(decided.any())):
        return None
    return Candidate("where", graph, var, call, call.args[1] if bool(decided.all()) else call.args[2])


_UNCHANGED_RULE = Rule(_same_type_as_operand, take_source)
_NEUTRAL_RULE = Rule(_neutral_operand, take_source)
NO_OP_RULES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(_UNCHANGED_OPS, (_UNCHANGED_RULE,)),
    **dict.fromkeys(_NEUTRAL, (_NEUTRAL_RULE,)),
    "relax.concat": (Rule(_concat_of_one, take_source),),
    "relax.where": (Rule(_where_decided, take_source),),
}


def permutation_of(call: relax.Call) -> tuple[int, ...]:
    """The axes of a permute_dims call as non-negative integers."""
    rank = len(shape_of(call.args[0].ty) or ())
    if call.attrs.axes is None:
        return tuple(reversed(range(rank)))
    return tuple(int(axis) % rank for axis in call.attrs.axes)


def integers(expr: relax.Expr) -> tuple[int, ...] | None:
    """A tuple of numbers as integers, or None when one of them is no literal."""
    values = [int(f.value) if isinstance(f, tirx.IntImm) else None for f in expr.fields]
    return None if None in values else tuple(values)  # type: ignore[arg-type]


def strides_of(call: relax.Call) -> dict[int, int | None]:
    """Stride of a strided_slice by non-negative axis; None where it is no literal."""
    rank = len(shape_of(call.args[0].ty) or ())
    axes = integers(call.args[1]) or ()
    strides = call.args[4].fields if len(call.args) > 4 else [tirx.IntImm("int64", 1)] * len(axes)
    return {
        axis % rank: int(stride.value) if isinstance(stride, tirx.IntImm) else None
        for axis, stride in zip(axes, strides, strict=True)
    }


def keeps_type(c: Candidate) -> bool:
    """Condition 1: a neutral constant or a `where` must not broadcast its operand to a larger shape."""
    return c.kind not in _BROADCASTING or same_type(c.source.ty, c.var.ty)


def keeps_negative_zero(c: Candidate) -> bool:
    """Condition 2: -0.0 + 0.0 is +0.0, so a float zero is neutral as -0.0 in a sum, +0.0 in a difference."""
    if c.kind not in ("add", "subtract") or "float" not in (dtype_of(c.var.ty) or ""):
        return True
    source = c.graph.call(c.source)
    if source is not None and source.op.name in _NEVER_NEGATIVE_ZERO:
        return True
    zero = next(arg for arg in c.value.args if not arg.same_as(c.source))
    values = c.graph.constant(zero)
    return values is not None and bool(np.all(np.signbit(values) == (c.kind == "add")))


def moves_unit_axes_only(c: Candidate) -> bool:
    """Condition 3: the axes of other sizes than 1 must stay in order."""
    if c.kind != "permute_dims":
        return True
    shape = static_shape(c.source.ty)
    moved = [a for a in permutation_of(c.value) if shape is None or shape[a] != 1]
    return moved == sorted(moved)


def steps_forwards(c: Candidate) -> bool:
    """Condition 4: a slice over a whole axis with a negative stride reverses it."""
    if c.kind == "strided_slice":
        shape = shape_of(c.source.ty) or []
        strides = {a: s for a, s in strides_of(c.value).items() if not _is_one(shape[a])}
    elif c.kind == "slice-of-slice":
        inner, outer = strides_of(c.inner), strides_of(c.value)
        strides = {a: min(outer[a] or -1, inner[a] or -1) for a in outer.keys() & inner.keys()}
    else:
        return True
    return all(stride is not None and stride > 0 for stride in strides.values())


def pads_nothing(c: Candidate) -> bool:
    """Condition 5: (1, -1) keeps the shape and shifts the values."""
    return c.kind != "nn.pad" or not any(int(width) for width in c.value.attrs.pad_width)


_BROADCASTING = frozenset((*(name.removeprefix("relax.") for name in _NEUTRAL), "where"))


def _is_one(dim: object) -> bool:
    return isinstance(dim, tirx.IntImm) and int(dim.value) == 1
