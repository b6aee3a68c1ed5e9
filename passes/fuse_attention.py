"""The pass that makes one operator of scaled-dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import shape_of
from greencc.ops import AttentionAttrs, attention
from greencc.passes import attention_forms as forms
from greencc.passes.attention_forms import Candidate
from greencc.passes.base import Condition, RewritePass
from greencc.passes.column_views import View
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, same_extents


@dataclass(frozen=True)
class FuseAttention(RewritePass[Candidate]):
    """Replace spelled-out attention by `greencc.attention`, which reads q, k and v where they lie.

        q, v = permute(reshape(lin, [B, S, H, D]), (0, 2, 1, 3)); k = permute(reshape(lin, ..), (0, 2, 3, 1))
        p = softmax(matmul(q, k) * scale + mask); o = matmul(p, v)
        y = reshape(permute(o, (0, 2, 1, 3)), [B, S, H * D])
    becomes
        y = attention(lin_q, lin_k, lin_v, mask; heads, offsets, scale)

    The scale may lie on q, k, both or the scores, as a factor or a quotient; the mask may be added or be
    `where(keep, scores, -inf)`, `where(drop, -inf, scores)`; `where(isnan(p), 0, p)` may follow. Operands
    are views (column_views.py): slices, splits, transposes and repeated key heads become offsets and head
    counts. An operand that is no view of [batch, sequence, columns] is transposed to one. Legal when
    1. q, k and v are float32;
    2. softmax is over the keys, the last axis;
    3. the columns of each head are adjacent, and its heads side by side, in q, k and v alike;
    4. q, k and v have provably the same batch size: the product would broadcast a batch of 1, attention not;
    5. keys and values have provably the same length, and as many heads;
    6. every key head serves the same number of query heads, in order;
    7. the scale is finite and v is not scaled;
    8. a mask does not broadcast the scores to a larger shape;
    9. a mask is [B, H, S, T] up to axes of length 1: one over flattened heads is not;
    10. what `where` fills in is -inf or the lowest float: added to a finite score it absorbs the score, while
        another number would be shifted by it;
    11. what replaces NaN is 0;
    12. the result has the heads side by side, [batch, sequence, heads, columns] when flattened;
    13. scores and probabilities are not used elsewhere: they would be computed twice.
    """

    name: ClassVar[str] = "fuse-attention"
    conditions: ClassVar[tuple[Condition[Candidate], ...]] = (
        Condition(1, "q, k or v is not float32", lambda c: is_float32(c.q.source, c.k.source, c.v.source)),
        Condition(2, "softmax is not over the last axis", forms.softmax_over_keys),
        Condition(3, "heads do not lie side by side in an operand", forms.heads_side_by_side),
        Condition(4, "q, k and v differ in batch size", forms.same_batch),
        Condition(5, "keys and values differ in length or heads", forms.values_fit_keys),
        Condition(6, "the query heads are not shared out among the key heads", forms.heads_shared_out),
        Condition(7, "the scale is not finite, or lies on the values", forms.scale_is_finite),
        Condition(8, "the mask broadcasts the scores", forms.mask_fits),
        Condition(9, "the mask is not over [batch, heads, queries, keys]", forms.mask_has_four_axes),
        Condition(10, "the fill of masked scores is not -inf or the lowest float", forms.fill_absorbs),
        Condition(11, "NaN is not replaced by 0", lambda c: c.number("zero", 0.0) == 0.0),
        Condition(12, "the result does not have its heads side by side", forms.result_side_by_side),
        Condition(13, "scores or probabilities are used elsewhere", lambda c: c.graph.is_closed(c.root, c.inner)),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Candidate | None:
        """See RewritePass."""
        return forms.candidate(graph, var)

    def inner(self, match: Candidate) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Candidate) -> relax.Expr:
        """See RewritePass."""
        q, k, v = (_operand(builder, view) for view in (match.q, match.k, match.v))
        attrs = AttentionAttrs(
            heads=forms.head_count(match.q),
            kv_heads=forms.own_heads(match.k),
            head_dim=forms.width(match.q),
            value_dim=forms.width(match.v),
            q_offset=match.q.offset,
            k_offset=match.k.offset,
            v_offset=match.v.offset,
            scale=forms.scale(match),
            nan_to_zero="zero" in match.captures,
        )
        result = attention(q, k, v, _mask(builder, match), attrs)
        merged = builder.emit(result)
        if same_extents(merged, match.root):
            return merged
        return relax.op.reshape(merged, match.root.ty.shape)


def _operand(builder: Builder, view: View) -> relax.Expr:
    """The source of a view as [batch, sequence, columns]."""
    source = view.source
    if view.order is not None:
        source = builder.emit(relax.op.permute_dims(source, list(view.order)))
    dims = shape_of(source.ty) or []
    if len(dims) == 3:
        return source
    shape = relax.ShapeExpr([dims[0], dims[1], int(dims[2]) * int(dims[3])])
    return builder.emit(relax.op.reshape(source, shape))


def _mask(builder: Builder, match: Candidate) -> relax.Expr | None:
    """What is added to the scores, with four axes; a Boolean mask becomes 0 and the fill (condition 10)."""
    name, shape = forms.mask_name(match), forms.mask_shape(match)
    if name is None or shape is None:
        return None
    mask = match.captures[name]
    if len(shape_of(mask.ty) or ()) != 4:
        mask = builder.emit(relax.op.reshape(mask, relax.ShapeExpr(shape)))
    if name == "mask":
        return mask
    zero, fill = (relax.const(np.float32(x), "float32") for x in (0.0, match.number("fill", -math.inf)))
    return builder.emit(relax.op.where(mask, *((zero, fill) if name == "keep" else (fill, zero))))
