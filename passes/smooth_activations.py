"""The pass that moves range from activations to weights, so that both quantise well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import constant, shape_of
from greencc.passes.base import Activations, Condition
from greencc.passes.calibrated import CalibratedPass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32


@dataclass(frozen=True)
class Smoothing:
    """A product `call` of x and a constant matrix, and the largest |x| of each column over the calibration data."""

    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    largest: np.ndarray
    strength: float

    @property
    def factors(self) -> np.ndarray:
        """What x is divided by, and the rows of the weight are multiplied with: float32 [K]."""
        rows = np.abs(self.weight).max(axis=1, initial=0.0).astype(np.float64)
        seen = (self.largest > 0) & (rows > 0)
        x, w = np.where(seen, self.largest, 1.0).astype(np.float64), np.where(seen, rows, 1.0)
        with np.errstate(all="ignore"):
            return np.where(seen, x**self.strength / w ** (1.0 - self.strength), 1.0).astype(np.float32)


@dataclass(frozen=True)
class SmoothActivations(CalibratedPass[Smoothing]):
    """Divide the columns of activations by factors, and multiply the rows of the constant weight with them.

        y = matmul(x, w)    becomes    y = matmul(x * (1 / s), s * w)

    s_j = max |x_j|^strength / max |w_j|^(1 - strength), with the maxima of x over calibration data (SmoothQuant,
    arXiv:2211.10438, equation 4). Where some columns of x are much larger than others, a row's scale serves the large
    ones and leaves the others few levels; the factors make columns of one size. Results are equal but for rounding.
    Without calibration data the pass does nothing. Legal when
    1. operands and result are float32;
    2. the weight is a matrix;
    3. all weights, and all activations that were seen, are finite;
    4. the largest factor is less than 2^64 times the smallest: products with them neither overflow nor vanish.

    Options:
        strength: how much of the range goes to the weights, 0 to 1.
    """

    strength: float = 0.5

    name: ClassVar[str] = "smooth-activations"
    needs_data: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Smoothing], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "the weight is not a matrix", lambda m: m.weight.ndim == 2),
        Condition(
            3,
            "a weight or an activation is not finite",
            lambda m: bool(np.isfinite(m.weight).all() and np.isfinite(m.largest).all()),
        ),
        Condition(4, "columns differ too much in size", lambda m: _spread(m.factors) < 2.0**64),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Smoothing | None:
        """See CalibratedPass."""
        if call.op.name != "relax.matmul" or len(shape_of(call.args[0].ty) or []) < 2:
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None or self._is_smoothed(graph, call):
            return None
        return Smoothing(var, call, weight, np.empty(0), self.strength)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Smoothing]) -> list[Smoothing]:
        """See CalibratedPass."""
        largest = activations.largest(module, [match.call.args[0] for match in matches])
        return [replace(match, largest=maxima) for match, maxima in zip(matches, largest, strict=True)]

    def rewrite(self, builder: Builder, match: Smoothing) -> relax.Expr:
        """See CalibratedPass."""
        factors = match.factors
        scaled = builder.emit(relax.op.multiply(match.call.args[0], constant(np.float32(1) / factors)))
        return relax.op.matmul(scaled, constant(match.weight * factors[:, None]))

    def _is_smoothed(self, graph: Graph, call: relax.Call) -> bool:
        """Whether x is a product with constant factors already."""
        scaled = graph.call(call.args[0], "relax.multiply")
        return scaled is not None and any(graph.constant(arg) is not None for arg in scaled.args)


def _spread(factors: np.ndarray) -> float:
    return float(factors.max(initial=1.0)) / float(factors.min(initial=1.0)) if np.isfinite(factors).all() else np.inf
