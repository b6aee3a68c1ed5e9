"""The pass that recognises rotary position embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from tvm import relax, tirx

from greencc.ir import same_shape
from greencc.ops import rotary
from greencc.passes.base import Condition, RewritePass
from greencc.passes.column_views import is_one, permutation_of
from greencc.passes.graph import Builder, Graph
from greencc.passes.last_axis import Part, joined_parts
from greencc.passes.matching import dims_of, is_float32

_HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class Rotation:
    """x * cos + join(-first, second) * sin.

    Attributes:
        graph: where it was found.
        root: the sum.
        x: what is rotated.
        cos, sin: factors of x and of its turned self.
        first, second: the parts of x that are joined.
        stacked: the parts are joined on a new last axis that is then flattened.
        inner: values between x, cos, sin and the root.
    """

    graph: Graph
    root: relax.Var
    x: relax.Expr
    cos: relax.Expr
    sin: relax.Expr
    first: Part
    second: Part
    stacked: bool
    inner: tuple[relax.Var, ...]


@dataclass(frozen=True)
class FuseRotary(RewritePass[Rotation]):
    """Replace a spelled-out rotary position embedding.

        x = permute(y, (0, 2, 1, 3)); r = x * cos + concat(-x[D / 2:], x[:D / 2]) * sin
    becomes
        r = permute(rotary(y, cos, sin), (0, 2, 1, 3))

    so that the transpose lies behind, where attention absorbs it. Pairs may be interleaved: a stack of
    -x[1::2] and x[0::2], flattened. Without the transpose x itself is [batch, sequence, heads, columns].
    Legal when
    1. x is float32;
    2. the joined parts are the two halves of the last axis, or with a stack its odd and even columns, and the
        first of the pair takes the negated second;
    3. cos and sin have a value for each position and column, the same for all heads;
    4. no value inside is used elsewhere: it would be computed twice.
    """

    name: ClassVar[str] = "fuse-rotary"
    conditions: ClassVar[tuple[Condition[Rotation], ...]] = (
        Condition(1, "x is not float32", lambda r: is_float32(r.x)),
        Condition(2, "what is joined are not the halves or pairs of the last axis", lambda r: _is_turn(r)),
        Condition(3, "cos or sin is not over positions and columns alone", lambda r: None not in _angles(r)),
        Condition(4, "a value inside the form is used elsewhere", lambda r: r.graph.is_closed(r.root, r.inner)),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Rotation | None:
        """See RewritePass."""
        if call.op.name != "relax.add":
            return None
        for straight, turned in (call.args, reversed(call.args)):
            for part, sin in _factors(graph, turned):
                parts = joined_parts(graph, part)
                if parts is None:
                    continue
                first, second, stacked = parts
                for x, cos in _factors(graph, straight):
                    if first.source.same_as(x) and second.source.same_as(x):
                        inner = graph.between(var, [x, cos, sin])
                        return Rotation(graph, var, x, cos, sin, first, second, stacked, inner)
        return None

    def inner(self, match: Rotation) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Rotation) -> relax.Expr:
        """See RewritePass."""
        source = _heads_first_source(match)
        cos, sin = (
            builder.emit(relax.op.reshape(angle, relax.ShapeExpr(shape)))
            for angle, shape in zip((match.cos, match.sin), _angles(match), strict=True)
        )
        result = rotary(match.x if source is None else source, cos, sin, interleaved=match.stacked)
        if source is None:
            return result
        return relax.op.permute_dims(builder.emit(result), list(_HEADS_FIRST))


def _factors(graph: Graph, expr: relax.Expr) -> Iterator[tuple[relax.Expr, relax.Expr]]:
    product = graph.call(expr, "relax.multiply")
    if product is not None:
        yield product.args[0], product.args[1]
        yield product.args[1], product.args[0]


def _is_turn(rotation: Rotation) -> bool:
    first, second = rotation.first, rotation.second
    half = second.length
    even, odd = (0, 2) if rotation.stacked else (0, 1), (1, 2) if rotation.stacked else (half, 1)
    return (
        same_shape(dims_of(rotation.x)[-1:], [tirx.IntImm("int64", 2 * half)])
        and first.length == half
        and (second.begin, second.step) == even
        and (first.begin, first.step) == odd
    )


def _heads_first_source(rotation: Rotation) -> relax.Expr | None:
    """[batch, sequence, heads, columns] when x is its transpose to heads first."""
    call = rotation.graph.call(rotation.x, "relax.permute_dims")
    return call.args[0] if call is not None and permutation_of(call) == _HEADS_FIRST else None


def _angles(rotation: Rotation) -> tuple[list[tirx.Expr] | None, ...]:
    """Shapes of cos and sin without the axis of the heads; None where they have other axes."""
    heads = 2 if _heads_first_source(rotation) is None else 1
    x = dims_of(rotation.x)
    shapes = []
    for angle in (rotation.cos, rotation.sin):
        dims = dims_of(angle)
        dims = [tirx.IntImm("int64", 1)] * (4 - len(dims)) + dims
        fits = len(x) == 4 and len(dims) == 4 and is_one(dims[heads])
        kept = [dim for i, dim in enumerate(dims) if i != heads]
        wanted = [dim for i, dim in enumerate(x) if i != heads]
        fits = fits and (is_one(kept[0]) or same_shape(kept[:1], wanted[:1]))
        shapes.append(kept if fits and same_shape(kept[1:], wanted[1:]) else None)
    return tuple(shapes)
