"""The pass that computes products and convolutions with constant weights in int8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from tvm import relax, tirx

from greencc.ir import constant, shape_of
from greencc.ops import Conv2dAttrs, quantized_conv2d, quantized_matmul
from greencc.passes.base import Condition, RewritePass
from greencc.passes.graph import Builder, Graph
from greencc.passes.matching import is_float32, same_extents

# Signed bytes without -128, so that a weight and its negation are equally exact.
_LEVELS = 127
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

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, whose weight is [K, C / groups, KH, KW]; else a product's [K, N]."""
        return bool(self.call.op.name == "relax.nn.conv2d")

    @property
    def depth(self) -> int:
        """Length of the sums."""
        channels = 0 if self.is_convolution else -1
        return int(self.weight.size // max(self.weight.shape[channels], 1)) if self.weight.ndim else 1

    @property
    def has_plain_form(self) -> bool:
        """Whether the weight is a matrix, or the layout NCHW with images of known size."""
        if not self.is_convolution:
            return self.weight.ndim == 2
        attrs, x = self.call.attrs, shape_of(self.call.args[0].ty)
        layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or "NCHW"
        known = x is not None and all(isinstance(size, tirx.IntImm) for size in x[1:])
        return layouts == ("NCHW", "OIHW", "NCHW") and known

    @cached_property
    def replacement(self) -> relax.Call:
        """The operator in int8."""
        if self.is_convolution:
            levels, scale = quantize_channels(self.weight, 0)
            return quantized_conv2d(self.call.args[0], constant(levels), constant(scale), Conv2dAttrs.of(self.call))
        levels, scale = quantize_channels(self.weight, 1)
        x, factors = _factors(self)
        return quantized_matmul(x, constant(levels), constant(scale), factors)

    @property
    def is_faster(self) -> bool:
        """Whether int8 takes less time than float32; taken for granted where it can't be measured."""
        timer = None if self.graph.context is None else self.graph.context.timer
        return not self.measure or timer is None or timer.time_ratio(self.replacement, self.call) <= _MOST_TIME


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
       the target's code runs here.

    Options:
        min_weights: see 5.
        measure: see 7.
    """

    min_weights: int = 4096
    measure: bool = True

    name: ClassVar[str] = "quantize-int8"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(
            2, "the weight is not a matrix, or the convolution not NCHW of known size", lambda m: m.has_plain_form
        ),
        Condition(3, "a weight is not finite", lambda m: bool(np.isfinite(m.weight).all())),
        Condition(4, f"a sum has more than {_DEEPEST} products", lambda m: m.depth <= _DEEPEST),
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.least),
        Condition(6, "a filter reads a single channel", lambda m: not m.is_convolution or m.weight.shape[1] > 1),
        Condition(7, "int8 is not faster here", lambda m: m.is_faster),
    )

    def deviation(self, match: Weighted) -> float | None:
        """See RewritePass."""
        axis = 0 if match.is_convolution else 1
        return largest_deviation(match.weight, *quantize_channels(match.weight, axis), axis)

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See RewritePass."""
        if call.op.name not in ("relax.matmul", "relax.nn.conv2d"):
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(graph, var, call, weight, self.min_weights, self.measure)

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
        if array is not None and array.shape == (match.depth,) and same_extents(value, x):
            return value, constant(array)
    return x, None


def quantize_channels(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight as int8 levels and float32 scales [size of `axis`]: weight is about levels * scale along `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, initial=0.0, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    levels = np.clip(np.rint(weight / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return levels, scale.ravel()


def largest_deviation(weight: np.ndarray, levels: np.ndarray, scale: np.ndarray, axis: int) -> float:
    """The largest |levels * scale - weight|, with a scale for each index of `axis`."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return float(np.abs(levels * scale.reshape(shape) - weight).max(initial=0.0))
