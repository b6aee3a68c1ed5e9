"""The pass that merges the projections that one attention reads into one matmul."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ops import ATTENTION, AttentionAttrs, attention
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import dims_of, is_float32

_OFFSETS = ("q_offset", "k_offset", "v_offset")


@dataclass(frozen=True)
class Projection:
    """matmul(x, weight) + bias as an operand of attention. `bias` is None where nothing is added."""

    value: relax.Var
    x: relax.Expr
    weight: relax.Expr
    bias: relax.Expr | None


@dataclass(frozen=True)
class Parallel:
    """Operands of the attention `root` that project the same x: one entry for each of q, k and v, or None."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    operands: tuple[Projection | None, ...]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections to merge, each once, in the order of their operands."""
        return tuple({p.value: p for p in self.operands if p is not None}.values())


@dataclass(frozen=True)
class FuseParallelMatmul(RewritePass[Parallel]):
    """Merge matmuls of one value by constant weights when one attention reads their results.

        q = x @ wq + bq; k = x @ wk + bk; v = x @ wv + bv; y = attention(q, k, v)
    becomes
        m = x @ concat(wq, wk, wv) + concat(bq, bk, bv); y = attention(m, m, m; offsets 0, |q|, |q| + |k|)

    One larger matmul reads x once and shares its set-up. Attention reads the merged columns in place: no
    slice. Elsewhere slices would cost what merging saves, so other parallel matmuls stay. Two projections of
    the three merge as well (cross-attention). A missing bias is zeros. Legal when
    1. the weights are constant matrices [K, N];
    2. the biases are constant vectors over the columns;
    3. x is float32 (an accumulation type may differ otherwise);
    4. nothing but this attention uses the projections: they would be computed twice.
    """

    name: ClassVar[str] = "fuse-parallel-matmul"
    conditions: ClassVar[tuple[Condition[Parallel], ...]] = (
        Condition(1, "a weight is not a constant matrix", lambda m: _all_known(_weights(m))),
        Condition(2, "a bias is not a constant vector", lambda m: _all_known(_biases(m))),
        Condition(3, "x is not float32", lambda m: is_float32(m.projections[0].x)),
        Condition(4, "a projection is used elsewhere", lambda m: m.graph.is_closed(m.root, _inner(m))),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Parallel | None:
        """See RewritePass."""
        if call.op.name != ATTENTION:
            return None
        found = {arg: _projection(graph, arg) for arg in call.args[:3]}
        every = [p for p in found.values() if p is not None]
        groups = ([p for p in every if p.x.same_as(lead.x)] for lead in every)
        largest = max(groups, key=len, default=[])
        if len(largest) < 2:
            return None
        merged = {p.value: p for p in largest}
        operands = tuple(merged.get(arg) for arg in call.args[:3])
        return Parallel(graph, var, call, operands)

    def inner(self, match: Parallel) -> Iterable[relax.Var]:
        """See RewritePass."""
        return _inner(match)

    def rewrite(self, builder: Builder, match: Parallel) -> relax.Expr:
        """See RewritePass."""
        starts = dict(zip((p.value for p in match.projections), _starts(match), strict=True))
        merged = builder.emit(relax.op.matmul(match.projections[0].x, _joined(_weights(match))))
        if any(p.bias is not None for p in match.projections):
            merged = builder.emit(relax.op.add(merged, _joined(_biases(match))))
        attrs = AttentionAttrs.of(match.call)
        moved = {
            name: getattr(attrs, name) + starts[p.value]
            for name, p in zip(_OFFSETS, match.operands, strict=True)
            if p is not None
        }
        q, k, v = (arg if p is None else merged for arg, p in zip(match.call.args[:3], match.operands, strict=True))
        mask = match.call.args[3] if len(match.call.args) > 3 else None
        return attention(q, k, v, mask, replace(attrs, **moved))


def _projection(graph: Graph, expr: relax.Expr) -> Projection | None:
    product, bias = graph.call(expr, "relax.matmul"), None
    total = graph.call(expr, "relax.add")
    if total is not None:
        for at in (0, 1):
            product = graph.call(total.args[at], "relax.matmul")
            if product is not None:
                bias = total.args[1 - at]
                break
    return None if product is None else Projection(expr, product.args[0], product.args[1], bias)


def _inner(match: Parallel) -> list[relax.Var]:
    """The projections' values and the products inside them."""
    inner: list[relax.Var] = []
    for p in match.projections:
        leaves = [p.x, p.weight, *([] if p.bias is None else [p.bias])]
        inner += [p.value, *match.graph.between(p.value, leaves)]
    return inner


def _weights(match: Parallel) -> list[np.ndarray | None]:
    """The weights, None for one that is not a constant matrix."""
    arrays = [match.graph.constant(p.weight) for p in match.projections]
    return [array if array is not None and array.ndim == 2 else None for array in arrays]


def _biases(match: Parallel) -> list[np.ndarray | None]:
    """The biases as vectors over the columns, None for one that is not such a constant."""
    found: list[np.ndarray | None] = []
    for p in match.projections:
        width = int(dims_of(p.value)[-1])
        bias = np.zeros(width, "float32") if p.bias is None else match.graph.constant(p.bias)
        fits = bias is not None and (bias.size == 1 or (bias.size, bias.shape[-1]) == (width, width))
        found.append(np.broadcast_to(bias.reshape(-1), width) if bias is not None and fits else None)
    return found


def _all_known(arrays: list[np.ndarray | None]) -> bool:
    return all(array is not None for array in arrays)


def _joined(arrays: list[np.ndarray | None]) -> relax.Expr:
    return relax.const(np.concatenate([array for array in arrays if array is not None], axis=-1))


def _starts(match: Parallel) -> list[int]:
    """First column of each projection in the merged one."""
    widths = [int(dims_of(p.value)[-1]) for p in match.projections]
    return [sum(widths[:i]) for i in range(len(widths))]
