"""A product or a convolution with a constant weight, and what becomes of it in int8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax

from greencc.affine import Scheme
from greencc.ir import constant
from greencc.ops import Conv2dAttrs, quantized_conv2d, quantized_matmul
from greencc.passes.graph import Graph
from greencc.passes.matching import same_extents
from greencc.passes.stored import StoredWeight, store
from greencc.passes.weighted import channel_axis, is_convolution

if TYPE_CHECKING:
    from greencc.passes.quantize_int8 import QuantizeInt8

# A gain below a twentieth of the time is within what measurements differ by, and not worth precision.
_MOST_TIME = 0.95


@dataclass(frozen=True)
class Weighted:
    """A product or a convolution `call` with its constant weight, and the options of the pass.

    Attributes:
        held: what calibration data show of the range of its activations, (low, high); None without such data.
        means: of the activations at each column or channel, float64; None where weights' errors are left as they are.
    """

    graph: Graph
    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    options: QuantizeInt8
    held: tuple[float, float] | None = None
    means: np.ndarray | None = None

    @cached_property
    def stored(self) -> StoredWeight | None:
        """The weight in bytes; None where bytes don't keep it within epsilon."""
        return store(self.weight, channel_axis(self.call), self.options.epsilon)

    @cached_property
    def replacement(self) -> relax.Call:
        """The operator in int8."""
        if self.stored is None:
            raise ValueError("a match that condition 8 refuses")
        levels, scale = constant(self.stored.levels), constant(self.stored.scale)
        scheme = None if self.held is None else Scheme.of_range(*self.held)
        if is_convolution(self.call):
            return quantized_conv2d(self.call.args[0], levels, scale, Conv2dAttrs.of(self.call), scheme)
        x, factors = _factors(self)
        return quantized_matmul(x, levels, scale, factors, scheme)

    @property
    def bias(self) -> np.ndarray | None:
        """What storing the weight in bytes takes off the mean of the result: float32, to be added to it."""
        if self.means is None or self.stored is None:
            return None
        if not is_convolution(self.call):
            error = self.weight.astype(np.float64) - self.stored.levels * self.stored.scale.astype(np.float64)
            return np.asarray(self.means @ error, np.float32)
        scale = self.stored.scale.astype(np.float64)[:, None, None, None]
        taps = (self.weight.astype(np.float64) - self.stored.levels * scale).sum(axis=(2, 3))
        groups = int(self.call.attrs.groups)
        grouped = np.einsum("gkc,gc->gk", taps.reshape(groups, -1, taps.shape[1]), self.means.reshape(groups, -1))
        return np.asarray(grouped.reshape(-1, 1, 1), np.float32)

    @property
    def is_finite(self) -> bool:
        """Whether all activations that were seen are."""
        return all(np.isfinite(seen).all() for seen in (self.held, self.means) if seen is not None)

    @property
    def is_faster(self) -> bool:
        """Whether int8 takes less time than float32; taken for granted where it can't be measured."""
        timer = None if self.graph.context is None else self.graph.context.timer
        if not self.options.measure or timer is None or self.stored is None or not self.is_finite:
            return True
        return timer.time_ratio(self.replacement, self.call) <= _MOST_TIME


def _factors(match: Weighted) -> tuple[relax.Expr, relax.Expr | None]:
    """X and the factors that each of its columns is multiplied with, where it is a product with such."""
    x = match.call.args[0]
    scaled = match.graph.call(x, "relax.multiply")
    if scaled is None:
        return x, None
    for value, factors in (scaled.args, reversed(scaled.args)):
        array = match.graph.constant(factors)
        if array is not None and array.shape == match.weight.shape[:1] and same_extents(value, x):
            return value, constant(array)
    return x, None
