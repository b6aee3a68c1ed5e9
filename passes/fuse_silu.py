"""The pass that recognises SiLU (swish)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import Region, dies_with_root, find_region, float32_input, keeps_shape
from greencc.passes.patterns import Pattern, any_, op, scalar

_X = any_("x")
# Paddle multiplies by a beta, which is 1 in swish.
_SCALED = _X | op("multiply", _X, scalar(1.0))
_FORM: Pattern = op("multiply", _X, op("sigmoid", _SCALED)) | op(
    "divide", _X, op("add", scalar(1.0), op("exp", op("negative", _X)))
)


@dataclass(frozen=True)
class FuseSilu(RewritePass[Region]):
    """Replace x * sigmoid(x), or x / (1 + exp(-x)), by silu(x).

        y = x * sigmoid(x); z = y * up
    becomes
        y = silu(x); z = y * up

    SwiGLU stays a silu and a product: the two run as epilogues of the matmuls before them. Legal when
    1. x is float32;
    2. no value inside is used elsewhere: it would be computed twice;
    3. the result has the shape of x.
    """

    name: ClassVar[str] = "fuse-silu"
    conditions: ClassVar[tuple[Condition[Region], ...]] = (
        float32_input(1),
        dies_with_root(2),
        keeps_shape(3),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Region | None:
        """See RewritePass."""
        return find_region(graph, var, _FORM, self.name)

    def inner(self, match: Region) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Region) -> relax.Expr:
        """See RewritePass."""
        return relax.op.nn.silu(match.x)
