"""The pass that computes products and convolutions with constant weights in int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.ir import constant
from greencc.observers import make_observer
from greencc.passes.base import ActivationRange, Activations, Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.int8_form import Weighted
from greencc.passes.matching import is_float32
from greencc.passes.stored import StoredWeight
from greencc.passes.weighted import WEIGHTED, depth_of, has_plain_form, is_convolution

# Largest k for which a sum of 255 * 127 * k fits in int32.
_DEEPEST = (2**31 - 1) // (255 * 127)
# Conditions from this one on are about what is measured.
_MEASURED = 7


@dataclass(frozen=True)
class QuantizeInt8(RewritePass[Weighted]):
    """Compute products and convolutions with constant weights in bytes; activations get scales at run time, or fixed.

        y = matmul(x, w)          becomes  y = quantized_matmul(x, q, scale)
        y = matmul(x * f, w)      becomes  y = quantized_matmul(x, q, scale, f)   with constant factors f [K]
        y = conv2d(x, w)          becomes  y = quantized_conv2d(x, q, scale)

    Every column or filter gets the scale max |w| / 127 (symmetric, per channel); every row of a product's x, and every
    image of a convolution's, gets its own scale and zero point each time (asymmetric). With `ranges`, each x gets one
    of each for all rows and images, by what an observer makes of calibration data; values beyond are clipped. Sums are
    exact in int32.

    With `correct-bias` and calibration data, what the weights' errors add to the mean of the result is taken off again,
    as a constant: y + E[x] (w - q * scale) (Nagel et al., arXiv:1906.04721, section 4.2); of a convolution, with the
    means of channels, as if there were no border.

    The result is close to the original, not equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix; a convolution is NCHW and OIHW, with images of known size;
    3. all weights are finite;
    4. sums of so many products fit in int32;
    5. the weight has at least `min-weights` elements: quantising activations must be worth it;
    6. a filter reads more than one channel: bytes of neighbouring channels are summed together;
    7. with `measure`, the operator takes at most 0.95 of its time in float32: it is measured on this machine, where
       the target's code runs here;
    8. with `epsilon`, some number of bits up to 8 keeps every weight closer than this; the fewest are taken;
    9. with `ranges`, calibration data show x;
    10. all activations that were seen are finite.

    Options:
        min_weights: see 5.
        measure: see 7.
        epsilon: see 8; 0 takes 8 bits.
        ranges: a key of `greencc.observers.OBSERVERS`; empty finds ranges at run time.
        correct_bias: see above.
    """

    min_weights: int = 4096
    measure: bool = True
    epsilon: float = 0.0
    ranges: str = ""
    correct_bias: bool = True

    name: ClassVar[str] = "quantize-int8"
    approximates: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    one_round: ClassVar[bool] = True
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
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.options.min_weights),
        Condition(6, "a filter reads a single channel", lambda m: not is_convolution(m.call) or m.weight.shape[1] > 1),
        Condition(7, "int8 is not faster here", lambda m: m.is_faster),
        Condition(8, "8 bits don't keep every weight within epsilon", lambda m: m.stored is not None),
        Condition(9, "no calibration data", lambda m: not m.options.ranges or m.held is not None),
        Condition(10, "an activation is not finite", lambda m: m.is_finite),
    )

    def __post_init__(self) -> None:
        if self.ranges:
            make_observer(self.ranges, f"{self.name}: ranges")

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Weighted]) -> list[Weighted]:
        """See RewritePass. What is refused for other reasons is not asked about."""
        legal = [c for c in self.conditions if c.number < _MEASURED]
        asked = [match for match in matches if all(c.holds(match) for c in legal)]
        values = [match.call.args[0] for match in asked]
        known = {match.root: match for match in asked}
        if self.ranges and asked:
            found = activations.ranges(module, values, make_observer(self.ranges, self.name))
            known |= {m.root: replace(known[m.root], held=held) for m, held in zip(asked, found, strict=True)}
        if self.correct_bias and asked:
            means = activations.means(module, values, [1 if is_convolution(match.call) else -1 for match in asked])
            known |= {m.root: replace(known[m.root], means=mean) for m, mean in zip(asked, means, strict=True)}
        return [known.get(match.root, match) for match in matches]

    def range_of(self, match: Weighted) -> ActivationRange | None:
        """See RewritePass."""
        return None if match.held is None else ActivationRange(*match.held, self.ranges)

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
        return Weighted(graph, var, call, weight, self)

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See RewritePass."""
        bias = match.bias
        if bias is None or not bias.any():
            return match.replacement
        return relax.op.add(builder.emit(match.replacement), constant(bias))
