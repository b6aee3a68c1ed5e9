"""The pass that removes the least important heads of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax, tirx

from greencc.ir import constant, shape_of
from greencc.ops import ATTENTION, AttentionAttrs, attention
from greencc.passes.base import Activations, Condition
from greencc.passes.calibrated import CalibratedPass, all_finite, column_squares
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32
from greencc.passes.narrowing import Columns, columns_of, largest, narrowed


@dataclass(frozen=True)
class Heads:
    """Attention `attended`, the product `call` of its result by a constant, and the projections it reads.

    Attributes:
        projections: where the columns of query, key and value come from; None where that is not from products.
        squares: mean square of each column of the result over calibration data; None without data.
        fraction: how many heads are to go.
    """

    graph: Graph
    root: relax.Var
    call: relax.Call
    attended: relax.Call
    weight: np.ndarray
    projections: tuple[Columns | None, ...]
    squares: np.ndarray | None
    fraction: float

    @property
    def attrs(self) -> AttentionAttrs:
        """The attention's attributes."""
        return AttentionAttrs.of(self.attended)

    @property
    def known_projections(self) -> list[Columns]:
        """The projections that are known."""
        return [columns for columns in self.projections if columns is not None]

    @property
    def kept(self) -> list[int]:
        """The heads that stay: those worth most in the output, mean squares times the squares of their weights."""
        attrs = self.attrs
        scores = column_squares(self.weight)
        if self.squares is not None:
            scores = scores * self.squares
        scores = scores.reshape(attrs.heads, attrs.value_dim).sum(axis=1)
        return largest(scores, max(1, attrs.heads - round(attrs.heads * self.fraction)))

    @property
    def mask_is_shared(self) -> bool:
        """Whether all heads have one mask."""
        if len(self.attended.args) < 4:
            return True
        dims = shape_of(self.attended.args[3].ty) or []
        return len(dims) == 4 and isinstance(dims[1], tirx.IntImm) and int(dims[1]) == 1

    @property
    def inner(self) -> list[relax.Var]:
        """The attention's result and what its operands are computed from, back to the products."""
        return [self.call.args[0], *(var for columns in self.known_projections for var in columns.inner)]

    @property
    def is_finite(self) -> bool:
        """Whether all weights, and all activations that were seen, are finite."""
        products = (product for columns in self.known_projections for product in columns.products)
        return all_finite(self.weight, self.squares, *products)


@dataclass(frozen=True)
class PruneHeads(CalibratedPass[Heads]):
    """Remove heads of attention: columns of the projections, rows of the product behind.

        y = matmul(attention(q, k, v), w)    becomes    y = matmul(attention(q', k', v'), w[rows of the heads])

    The heads that stay are worth most in y: the mean squares of their columns over calibration data times the squares
    of their weights in w; without data the weights alone. The input and the result keep their shapes. The result is not
    equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. every head has its own keys and values;
    3. query, key and value come out of products by constant matrices through elementwise operators;
    4. nothing else uses them or the attention's result;
    5. all heads have one mask;
    6. all weights, and all activations that were seen, are finite;
    7. heads go, and some stay.

    Options:
        fraction: how many heads go, 0 to 1.
    """

    fraction: float = 0.25

    name: ClassVar[str] = "prune-heads"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Heads], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "heads share keys and values", lambda m: m.attrs.heads == m.attrs.kv_heads),
        Condition(
            3,
            "query, key or value does not come out of products by constants, elementwise",
            lambda m: None not in m.projections,
        ),
        Condition(4, "a value in between is used elsewhere", lambda m: m.graph.is_closed(m.root, m.inner)),
        Condition(5, "heads have masks of their own", lambda m: m.mask_is_shared),
        Condition(6, "a weight or an activation is not finite", lambda m: m.is_finite),
        Condition(7, "no head would go", lambda m: len(m.kept) < m.attrs.heads),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Heads | None:
        """See CalibratedPass."""
        if call.op.name != "relax.matmul" or not 0 < self.fraction < 1:
            return None
        attended, weight = graph.call(call.args[0], ATTENTION), graph.constant(call.args[1])
        if attended is None or weight is None or weight.ndim != 2:
            return None
        projections = tuple(columns_of(graph, arg) for arg in attended.args[:3])
        return Heads(graph, var, call, attended, weight, projections, None, self.fraction)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Heads]) -> list[Heads]:
        """See CalibratedPass."""
        seen = activations.mean_squares(module, [match.call.args[0] for match in matches])
        return [replace(match, squares=squares) for match, squares in zip(matches, seen, strict=True)]

    def inner(self, match: Heads) -> Iterable[relax.Var]:
        """See CalibratedPass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Heads) -> relax.Expr:
        """See CalibratedPass."""
        attrs, kept = match.attrs, match.kept
        sizes = (attrs.head_dim, attrs.head_dim, attrs.value_dim)
        offsets = (attrs.q_offset, attrs.k_offset, attrs.v_offset)
        # Operands that are one value stay one: its columns are those of all that read it.
        places: dict[relax.Expr, list[int]] = {}
        moved = []
        for columns, size, offset in zip(match.known_projections, sizes, offsets, strict=True):
            own = places.setdefault(columns.expr, [])
            moved.append(len(own))
            own += [offset + head * size + i for head in kept for i in range(size)]
        made = {
            columns.expr: narrowed(match.graph, builder, columns, places[columns.expr])
            for columns in {columns.expr: columns for columns in match.known_projections}.values()
        }
        q, k, v = (made[columns.expr] for columns in match.known_projections)
        mask = match.attended.args[3] if len(match.attended.args) > 3 else None
        fewer = replace(
            attrs,
            heads=len(kept),
            kv_heads=len(kept),
            q_offset=moved[0],
            k_offset=moved[1],
            v_offset=moved[2],
        )
        rows = [head * attrs.value_dim + i for head in kept for i in range(attrs.value_dim)]
        return relax.op.matmul(builder.emit(attention(q, k, v, mask, fewer)), constant(match.weight[rows]))
