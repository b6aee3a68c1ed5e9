"""The pass that recognises GELU, by the error function and by its tanh approximation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import Region, dies_with_root, find_region, float32_input, keeps_shape
from greencc.passes.patterns import Pattern, any_, op, scalar

_X = any_("x")


def _half_product(gate: Pattern) -> Pattern:
    """0.5 * x * gate in every association; a half may be a quotient by two."""
    half = scalar(0.5)

    def halved(value: Pattern) -> Pattern:
        return op("multiply", value, half) | op("divide", value, scalar(2.0))

    return op("multiply", halved(_X), gate) | op("multiply", _X, halved(gate)) | halved(op("multiply", _X, gate))


_BY_ROOT_TWO = op("divide", _X, scalar(math.sqrt(2.0))) | op("multiply", _X, scalar(math.sqrt(0.5)))
_ERF = op("erf", _BY_ROOT_TWO)

_SQUARE = op("multiply", _X, _X) | op("power", _X, scalar(2.0))
_CUBE = op("power", _X, scalar(3.0)) | op("multiply", _X, _SQUARE)
_SLOPE, _BEND = scalar(math.sqrt(2.0 / math.pi)), scalar(0.044715)
_BENT = (
    op("add", _X, op("multiply", _BEND, _CUBE) | op("multiply", _SQUARE, op("multiply", _BEND, _X)))
    # x (1 + c x^2), and what an exporter makes of it that moves the slope inside.
    | op("multiply", _X, op("add", scalar(1.0), op("multiply", _BEND, _SQUARE)))
    | op("multiply", _X, op("add", scalar(1.0), op("multiply", op("multiply", _BEND, _X), _X)))
)
_TANH = op("tanh", op("multiply", _SLOPE, _BENT)) | op(
    "tanh",
    op("multiply", op("multiply", _SLOPE, _X), op("add", scalar(1.0), op("multiply", _BEND, _SQUARE)))
    | op(
        "multiply",
        op("multiply", _SLOPE, _X),
        op("add", scalar(1.0), op("multiply", op("multiply", _BEND, _X), _X)),
    ),
)

_FORMS: dict[str, Pattern] = {
    "gelu": _half_product(op("add", _ERF, scalar(1.0))),
    "gelu_tanh": _half_product(op("add", _TANH, scalar(1.0))),
}


@dataclass(frozen=True)
class FuseGelu(RewritePass[Region]):
    """Replace a spelled-out Gaussian error linear unit.

        y = 0.5 * x * (1 + erf(x / sqrt(2)))                                   becomes  y = gelu(x)
        y = 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))       becomes  y = gelu_tanh(x)

    in every order and association of the factors. Constants are matched to the precision of float32. Legal
    when
    1. x is float32: in float64 a constant that is right to 7 digits only would change the value;
    2. no value inside is used elsewhere: it would be computed twice;
    3. the result has the shape of x.
    """

    name: ClassVar[str] = "fuse-gelu"
    conditions: ClassVar[tuple[Condition[Region], ...]] = (
        float32_input(1),
        dies_with_root(2),
        keeps_shape(3),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Region | None:
        """See RewritePass."""
        regions = (find_region(graph, var, form, kind) for kind, form in _FORMS.items())
        return next((region for region in regions if region is not None), None)

    def inner(self, match: Region) -> Iterable[relax.Var]:
        """See RewritePass."""
        return match.inner

    def rewrite(self, builder: Builder, match: Region) -> relax.Expr:
        """See RewritePass."""
        return relax.op.nn.gelu(match.x) if match.kind == "gelu" else relax.op.nn.gelu_tanh(match.x)

    def kind_of(self, match: Region) -> str:
        """See RewritePass."""
        return match.kind
