"""The pass that computes products with constant weights in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.ops import quantized_matmul
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, same_extents

# Signed bytes without -128, so that a weight and its negation are equally exact.
_LEVELS = 127
# Largest k for which a sum of 255 * 127 * k fits in int32.
_DEEPEST = (2**31 - 1) // (255 * 127)


@dataclass(frozen=True)
class Weighted:
    """A product `call`, its constant second operand, and how many elements that must have."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    least: int

    @property
    def depth(self) -> int:
        """Length of the sums."""
        return int(self.weight.shape[0]) if self.weight.ndim else 1


@dataclass(frozen=True)
class QuantizeInt8(RewritePass[Weighted]):
    """Replace products with constant matrices by products of bytes, with scales found at run time for activations.

        y = matmul(x, w)          becomes  y = quantized_matmul(x, q, scale)
        y = matmul(x * f, w)      becomes  y = quantized_matmul(x, q, scale, f)   with constant factors f [K]

    Every column of the weight gets the scale max |w| / 127 (symmetric, per channel); every row of x gets its own scale
    and zero point each time (asymmetric, per token). Sums are exact in int32. The result is close to the original, not
    equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix;
    3. all weights are finite;
    4. sums of so many products fit in int32;
    5. the weight has at least `min-weights` elements: quantising activations must be worth it.

    Options:
        min_weights: see 5.
    """

    min_weights: int = 4096

    name: ClassVar[str] = "quantize-int8"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "the weight is not a matrix", lambda m: m.weight.ndim == 2),
        Condition(3, "a weight is not finite", lambda m: bool(np.isfinite(m.weight).all())),
        Condition(4, f"a sum has more than {_DEEPEST} products", lambda m: m.depth <= _DEEPEST),
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.least),
    )

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See RewritePass."""
        if call.op.name != "relax.matmul":
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(graph, var, call, weight, self.min_weights)

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See RewritePass."""
        levels, scale = quantize_columns(match.weight)
        x, factors = _factors(match)
        return quantized_matmul(x, constant(levels), constant(scale), factors)


def _factors(match: Weighted) -> tuple[relax.Expr, relax.Expr | None]:
    """X and the factors that each of its columns is multiplied with, where it is a product with such."""
    x = match.call.args[0]
    scaled = match.graph.call(x, "relax.multiply")
    if scaled is None:
        return x, None
    for value, factors in (scaled.args, reversed(scaled.args)):
        array = match.graph.constant(factors)
        if array is not None and array.shape == (match.depth,) and same_extents(value, x):
            return value, constant(array)
    return x, None


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [K, N] as int8 [K, N] and float32 scales [N]: weight is about levels * scale."""
    largest = np.abs(weight).max(axis=0, initial=0.0)
    scale = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    levels = np.clip(np.rint(weight / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return levels, scale
