"""The pass that recognises normalisation by the root of the mean square."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import (
    Region,
    channel_vector,
    dies_with_root,
    find_region,
    float32_input,
    keeps_shape,
)
from greencc.passes.norm_patterns import (
    inverse_deviation,
    mean_keeps_axis,
    mean_over_last_axis,
    normalised,
    square,
)
from greencc.passes.patterns import Pattern, any_, op

_X, _GAMMA = any_("x"), any_("gamma")
_MEAN_SQUARE = op("mean", square(_X), bind="mean_square")
_NORMAL = normalised(_X, _MEAN_SQUARE)
_FORM: Pattern = (
    op("multiply", _NORMAL, _GAMMA)
    | normalised(op("multiply", _X, _GAMMA), _MEAN_SQUARE)
    | op("multiply", _X, op("multiply", inverse_deviation(_MEAN_SQUARE), _GAMMA))
    | _NORMAL
)


@dataclass(frozen=True)
class FuseRmsNorm(RewritePass[Region]):
    """Replace a spelled-out normalisation by the root mean square.

        y = x * rsqrt(mean(x ** 2, -1) + eps) * gamma
    becomes
        y = rms_norm(x, gamma, eps)

    The square may be x * x, rsqrt a quotient by sqrt, and the gain may come first or be missing (then ones
    take its place). Legal when
    1. the mean is over the last axis only;
    2. the mean keeps that axis, so that each row meets its own mean;
    3. x is float32;
    4. gamma is a vector over the last axis (a constant may have axes of length 1 before it);
    5. no value inside is used elsewhere: it would be computed twice;
    6. the result has the shape of x.
    """

    name: ClassVar[str] = "fuse-rms-norm"
    conditions: ClassVar[tuple[Condition[Region], ...]] = (
        Condition(1, "the mean is not over the last axis alone", mean_over_last_axis),
        Condition(2, "the mean drops its axis", mean_keeps_axis),
        float32_input(3),
        Condition(4, "gamma is not a vector over the last axis", lambda r: _gain(r) is not None),
        dies_with_root(5),
        keeps_shape(6),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Region | None:
        """See RewritePass."""
        return find_region(graph, var, _FORM, self.name, inputs=("x", "gamma"))

    def inner(self, match: Region) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Region) -> relax.Expr:
        """See RewritePass."""
        return relax.op.nn.rms_norm(match.x, _gain(match), axes=[-1], epsilon=match.scalar("eps"))


def _gain(region: Region) -> relax.Expr | None:
    return channel_vector(region.graph, region.captures.get("gamma"), region.x, default=1.0)
