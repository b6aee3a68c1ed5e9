"""The pass that computes products and convolutions with constant weights in int8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax

from greencc.ir import constant
from greencc.ops import Conv2dAttrs, quantized_conv2d, quantized_matmul
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, same_extents
from greencc.passes.stored import StoredWeight, store
from greencc.passes.weighted import WEIGHTED, channel_axis, depth_of, has_plain_form, is_convolution

# Largest k for which a sum of 255 * 127 * k fits in int32.
_DEEPEST = (2**31 - 1) // (255 * 127)
# A gain below a twentieth of the time is within what measurements differ by, and not worth precision.
_MOST_TIME = 0.95


@dataclass(frozen=True)
class Weighted:
    """A product or a convolution `call` with its constant weight, and the options of the pass."""

    graph: Graph
    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    least: int
    measure: bool
    epsilon: float

    @cached_property
    def stored(self) -> StoredWeight | None:
        """The weight in bytes; None where bytes don't keep it within epsilon."""
        return store(self.weight, channel_axis(self.call), self.epsilon)

    @cached_property
    def replacement(self) -> relax.Call:
        """The operator in int8."""
        if self.stored is None:
            raise ValueError("a match that condition 8 refuses")
        levels, scale = constant(self.stored.levels), constant(self.stored.scale)
        if is_convolution(self.call):
            return quantized_conv2d(self.call.args[0], levels, scale, Conv2dAttrs.of(self.call))
        x, factors = _factors(self)
        return quantized_matmul(x, levels, scale, factors)

    @property
    def is_faster(self) -> bool:
        """Whether int8 takes less time than float32; taken for granted where it can't be measured."""
        timer = None if self.graph.context is None else self.graph.context.timer
        if not self.measure or timer is None or self.stored is None:
            return True
        return timer.time_ratio(self.replacement, self.call) <= _MOST_TIME


@dataclass(frozen=True)
class QuantizeInt8(RewritePass[Weighted]):
    """Compute products and convolutions with constant weights in bytes; activations get scales at run time.

        y = matmul(x, w)          becomes  y = quantized_matmul(x, q, scale)
        y = matmul(x * f, w)      becomes  y = quantized_matmul(x, q, scale, f)   with constant factors f [K]
        y = conv2d(x, w)          becomes  y = quantized_conv2d(x, q, scale)

    Every column or filter gets the scale max |w| / 127 (symmetric, per channel); every row of a product's x, and every
    image of a convolution's, gets its own scale and zero point each time (asymmetric). Sums are exact in int32. The
    result is close to the original, not equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix; a convolution is NCHW and OIHW, with images of known size;
    3. all weights are finite;
    4. sums of so many products fit in int32;
    5. the weight has at least `min-weights` elements: quantising activations must be worth it;
    6. a filter reads more than one channel: bytes of neighbouring channels are summed together;
    7. with `measure`, the operator takes at most 0.95 of its time in float32: it is measured on this machine, where
       the target's code runs here;
    8. with `epsilon`, some number of bits up to 8 keeps every weight closer than this; the fewest are taken.

    Options:
        min_weights: see 5.
        measure: see 7.
        epsilon: see 8; 0 takes 8 bits.
    """

    min_weights: int = 4096
    measure: bool = True
    epsilon: float = 0.0

    name: ClassVar[str] = "quantize-int8"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(
            2,
            "the weight is not a matrix, or the convolution not NCHW of known size",
            lambda m: has_plain_form(m.call, m.weight.shape),
        ),
        Condition(3, "a weight is not finite", lambda m: bool(np.isfinite(m.weight).all())),
        Condition(
            4,
            f"a sum has more than {_DEEPEST} products",
            lambda m: depth_of(m.call, m.weight.shape) <= _DEEPEST,
        ),
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.least),
        Condition(6, "a filter reads a single channel", lambda m: not is_convolution(m.call) or m.weight.shape[1] > 1),
        Condition(7, "int8 is not faster here", lambda m: m.is_faster),
        Condition(8, "8 bits don't keep every weight within epsilon", lambda m: m.stored is not None),
    )

    def stored(self, match: Weighted) -> StoredWeight | None:
        """See RewritePass."""
        return match.stored

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See RewritePass."""
        if call.op.name not in WEIGHTED:
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(graph, var, call, weight, self.min_weights, self.measure, self.epsilon)

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See RewritePass."""
        return match.replacement


def _factors(match: Weighted) -> tuple[relax.Expr, relax.Expr | None]:
    """X and the factors that each of its columns is multiplied with, where it is a product with such."""
    x = match.call.args[0]
    scaled = match.graph.call(x, "relax.multiply")
    if scaled is None:
        return x, None
    for value, factors in (scaled.args, reversed(scaled.args)):
        array = match.graph.constant(factors)
        if array is not None and array.shape == (depth_of(match.call, match.weight.shape),) and same_extents(value, x):
            return value, constant(array)
    return x, None
