"""The pass that moves range from activations to weights, so that both quantise well."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import constant, relax_functions, shape_of
from greencc.passes.base import Condition, Pass, PassContext, PassResult, Refusal, node_name
from greencc.passes.graph import Builder, Graph, eliminate_dead, rebuild
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
class SmoothActivations(Pass):
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

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """Rewrite the products of main by constant weights."""
        if context.activations is None:
            return PassResult(module, 0)
        refusals: list[Refusal] = []
        replacements = {}
        for match in self._matches(module, context):
            failed = next((c for c in self.conditions if not c.holds(match)), None)
            if failed is None:
                replacements[match.root] = functools.partial(self._rewrite, match)
            else:
                node = node_name(match.root, match.call)
                refusals.append(Refusal(self.name, node, failed.number, failed.reason))
        if not replacements:
            return PassResult(module, 0, tuple(refusals))
        gv, main = next(iter(relax_functions(module)))
        result = module.clone()
        result.update_func(gv, eliminate_dead(rebuild(main, replacements, owner=self.name)))
        return PassResult(result, len(replacements), tuple(refusals), {self.name: len(replacements)})

    def _matches(self, module: tvm.IRModule, context: PassContext) -> list[Smoothing]:
        graph = Graph(module, module["main"])
        found: list[tuple[relax.Var, relax.Call, np.ndarray]] = []
        for var, value in graph.definitions():
            call = graph.call(value, "relax.matmul")
            if call is None or not context.chooses(self.name, node_name(var, call)):
                continue
            if len(shape_of(call.args[0].ty) or []) < 2 or graph.constant(call.args[0]) is not None:
                continue
            weight = graph.constant(call.args[1])
            if weight is not None and not self._is_smoothed(graph, call):
                found.append((var, call, weight))
        watched = [call.args[0] for _, call, _ in found]
        largest = context.activations.largest(module, watched) if context.activations and watched else []
        return [Smoothing(*parts, maxima, self.strength) for parts, maxima in zip(found, largest, strict=True)]

    def _is_smoothed(self, graph: Graph, call: relax.Call) -> bool:
        """Whether x is a product with constant factors already."""
        scaled = graph.call(call.args[0], "relax.multiply")
        return scaled is not None and any(graph.constant(arg) is not None for arg in scaled.args)

    def _rewrite(self, match: Smoothing, builder: Builder) -> relax.Expr:
        factors = match.factors
        scaled = builder.emit(relax.op.multiply(match.call.args[0], constant(np.float32(1) / factors)))
        return relax.op.matmul(scaled, constant(match.weight * factors[:, None]))


def _spread(factors: np.ndarray) -> float:
    return float(factors.max(initial=1.0)) / float(factors.min(initial=1.0)) if np.isfinite(factors).all() else np.inf
