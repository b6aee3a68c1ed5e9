"""The pass that gives large weights few distinct values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.errors import UserError
from greencc.ir import constant
from greencc.passes.base import Condition, RewritePass
from greencc.passes.clusters import FEWEST_BITS, MOST_BITS, ClusteredWeight, cluster, has_few_values
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, is_only_reader

# By operator, the operand that may be a weight.
_WEIGHTS = {"relax.matmul": 1, "relax.nn.conv2d": 1, "relax.take": 0}


@dataclass(frozen=True)
class Weighted:
    """A product, a convolution or a look-up `call` and its constant operand `weight`, number `place`."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    place: int
    weight: np.ndarray
    least: int
    bits: int

    @cached_property
    def clustered(self) -> ClusteredWeight:
        """The weight with few distinct values."""
        return cluster(self.weight, self.bits)


@dataclass(frozen=True)
class ClusterWeights(RewritePass[Weighted]):
    """Give large constant weights at most 2^bits distinct values each, which a packed artifact stores by number.

        y = matmul(x, w), conv2d(x, w) or take(w, i)    becomes    the same with c[number], c the middles of clusters

    Clusters are those of k-means over all elements of a weight; zeros stay zeros (see `greencc.passes.clusters`). The
    weight stays float32 where it is computed with, so that a run takes the same time and memory. The result is close to
    the original, not equal: this pass is not in the default pipeline. Weights of few values are left alone. Legal when
    1. the weight and the result are float32;
    2. all of its elements are finite;
    3. it has at least `min-weights` elements: a smaller one saves nothing;
    4. nothing else reads it: it would be stored twice.

    Options:
        bits: see above; 2 to 8.
        min_weights: see 3.
    """

    bits: int = 4
    min_weights: int = 4096

    name: ClassVar[str] = "cluster-weights"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "the weight or the result is not float32", lambda m: is_float32(m.call.args[m.place], m.root)),
        Condition(2, "an element is not finite", lambda m: bool(np.isfinite(m.weight).all())),
        Condition(3, "the weight is too small for clusters to pay", lambda m: m.weight.size >= m.least),
        Condition(4, "something else reads the weight too", lambda m: is_only_reader(m.graph, m.weight)),
    )

    def __post_init__(self) -> None:
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise UserError(f"cluster-weights: bits={self.bits}: give {FEWEST_BITS} to {MOST_BITS}")

    def stored(self, match: Weighted) -> ClusteredWeight:
        """See RewritePass."""
        return match.clustered

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See RewritePass."""
        place = _WEIGHTS.get(call.op.name)
        if place is None:
            return None
        weight, other = graph.constant(call.args[place]), graph.constant(call.args[1 - place])
        if weight is None or other is not None or weight.dtype.kind != "f" or has_few_values(weight, 2**self.bits):
            return None
        return Weighted(graph, var, call, place, weight, self.min_weights, self.bits)

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See RewritePass."""
        call, args = match.call, list(match.call.args)
        args[match.place] = constant(match.clustered.values)
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
