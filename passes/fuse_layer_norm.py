"""The pass that recognises layer normalisation."""

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

_X, _GAMMA, _BETA = any_("x"), any_("gamma"), any_("beta")
_MEAN = op("mean", _X, bind="mean")
_CENTRED = op("subtract", _X, _MEAN)
_VARIANCE = op("mean", square(_CENTRED), bind="mean_square")
_NORMAL = normalised(_CENTRED, _VARIANCE)
_SCALED = op("multiply", _NORMAL, _GAMMA) | normalised(op("multiply", _CENTRED, _GAMMA), _VARIANCE)
_FACTOR = op("multiply", inverse_deviation(_VARIANCE), _GAMMA)
_FORM: Pattern = (
    op("add", _SCALED | op("multiply", _CENTRED, _FACTOR), _BETA)
    # TensorFlow writes (x - m) f + b as x f + (b - m f).
    | op("add", op("multiply", _X, _FACTOR), op("subtract", _BETA, op("multiply", _MEAN, _FACTOR)))
    | _SCALED
    | op("multiply", _CENTRED, _FACTOR)
    | _NORMAL
)


@dataclass(frozen=True)
class FuseLayerNorm(RewritePass[Region]):
    """Replace a spelled-out layer normalisation.

        d = x - mean(x, -1); n = d / sqrt(mean(d ** 2, -1) + eps); y = n * gamma + beta
    becomes
        y = layer_norm(x, gamma, beta, eps)

    The square may be d * d, the quotient a product with rsqrt or a reciprocal, the gain may come before the
    quotient, and TensorFlow's x * f + (beta - mean * f) is known. Gain and shift may be missing: ones and
    zeros take their places. Legal when
    1. both means are over the last axis only, which is the one that layer_norm gets;
    2. both means keep that axis, so that each row meets its own mean;
    3. x is float32;
    4. gamma and beta are vectors over the last axis (constants may have axes of length 1 before it);
    5. no value inside is used elsewhere: it would be computed twice;
    6. the result has the shape of x.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    conditions: ClassVar[tuple[Condition[Region], ...]] = (
        Condition(1, "a mean is not over the last axis alone", mean_over_last_axis),
        Condition(2, "a mean drops its axis", mean_keeps_axis),
        float32_input(3),
        Condition(4, "gamma or beta is not a vector over the last axis", lambda r: None not in _vectors(r)),
        dies_with_root(5),
        keeps_shape(6),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Region | None:
        """See RewritePass."""
        return find_region(graph, var, _FORM, self.name, inputs=("x", "gamma", "beta"))

    def inner(self, match: Region) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Region) -> relax.Expr:
        """See RewritePass."""
        gamma, beta = _vectors(match)
        return relax.op.nn.layer_norm(match.x, gamma, beta, axes=[-1], epsilon=match.scalar("eps"))


def _vectors(region: Region) -> tuple[relax.Expr | None, relax.Expr | None]:
    gamma, beta = (region.captures.get(name) for name in ("gamma", "beta"))
    return (
        channel_vector(region.graph, gamma, region.x, default=1.0),
        channel_vector(region.graph, beta, region.x, default=0.0),
    )
