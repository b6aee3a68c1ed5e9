"""The pass that removes transposes before matmuls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.passes.base import Condition, RewritePass
from greencc.passes.column_views import permutation_of
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import dims_of


@dataclass(frozen=True)
class Transposed:
    """A product `call` and the transposes that would go, left and right; None for an operand that stays."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    kind: Literal["constant", "both"]
    transposes: tuple[relax.Call | None, relax.Call | None]

    @property
    def inner(self) -> tuple[relax.Var, ...]:
        """The transposes that the rewrite makes superfluous."""
        pairs = zip(self.call.args, self.transposes, strict=True)
        return tuple(arg for arg, transpose in pairs if transpose is not None)


@dataclass(frozen=True)
class FuseTransposeMatmul(RewritePass[Transposed]):
    """Transpose constants now, and the product instead of both its operands.

        y = matmul(x, permute(w, ..)), w constant          becomes  y = matmul(x, w')
        y = matmul(permute(a, .., -1, -2), permute(b, .., -1, -2))
                                                           becomes  y = permute(matmul(b, a), .., -1, -2)

    A lone transpose of a value that is not constant stays: the product would read it against the grain.
    Legal when
    1. transposes of values that are not constant swap the last two axes and no others;
    2. the transposes are not used elsewhere: they would be computed, or the constant stored, besides.
    """

    name: ClassVar[str] = "fuse-transpose-matmul"
    conditions: ClassVar[tuple[Condition[Transposed], ...]] = (
        Condition(1, "a transpose does not swap just the last two axes", lambda t: _swaps_matrices(t)),
        Condition(2, "a transpose is used elsewhere", lambda t: t.graph.is_closed(t.root, t.inner)),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Transposed | None:
        """See RewritePass."""
        if call.op.name != "relax.matmul":
            return None
        left, right = (graph.call(arg, "relax.permute_dims") for arg in call.args)
        stored = [side if _of_constant(graph, side) else None for side in (left, right)]
        if stored != [None, None]:
            return Transposed(graph, var, call, "constant", (stored[0], stored[1]))
        if left is None or right is None:
            return None
        return Transposed(graph, var, call, "both", (left, right))

    def inner(self, match: Transposed) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def kind_of(self, match: Transposed) -> str:
        """See RewritePass."""
        return f"transpose-of-{match.kind}"

    def rewrite(self, builder: Builder, match: Transposed) -> relax.Expr:
        """See RewritePass."""
        left, right = (
            arg if transpose is None else _source(match, transpose)
            for arg, transpose in zip(match.call.args, match.transposes, strict=True)
        )
        operands = [left, right] if match.kind == "constant" else [right, left]
        product = relax.Call(match.call.op, operands, match.call.attrs, match.call.ty_args)
        if match.kind == "constant":
            return product
        rank = len(dims_of(match.root))
        return relax.op.permute_dims(builder.emit(product), [*range(rank - 2), rank - 1, rank - 2])


def _of_constant(graph: Graph, transpose: relax.Call | None) -> bool:
    return transpose is not None and graph.constant(transpose.args[0]) is not None


def _source(match: Transposed, transpose: relax.Call) -> relax.Expr:
    """What is transposed; a constant is returned in its new order."""
    array = match.graph.constant(transpose.args[0])
    if array is None:
        return transpose.args[0]
    return constant(np.ascontiguousarray(np.transpose(array, permutation_of(transpose))))


def _swaps_matrices(match: Transposed) -> bool:
    if match.kind == "constant":
        return True
    axes = [permutation_of(transpose) for transpose in match.transposes if transpose is not None]
    return all(order == (*range(len(order) - 2), len(order) - 1, len(order) - 2) for order in axes)
