"""The pass that stores the weights of products in few bits, in groups; activations stay in single precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import tvm
from tvm import relax

from greencc.errors import UserError
from greencc.ir import constant
from greencc.ops import GroupAttrs, grouped_matmul
from greencc.passes.awq import awq_factors
from greencc.passes.base import Activations, Condition, PassContext, PassResult
from greencc.passes.calibrated import CalibratedPass, all_finite
from greencc.passes.gptq import gptq
from greencc.passes.graph import Builder, Graph
from greencc.passes.grouped import BITS, GroupedWeight, limits, output_error, round_to_nearest
from greencc.passes.matching import is_float32

METHODS = ("nearest", "clipped", "awq", "gptq")
# Grams that are held at once.
_MOST_GRAM_BYTES = 1 << 28
_HALVES = np.finfo(np.float16)


@dataclass(frozen=True)
class Rounded:
    """A weight in groups, and what its rows were multiplied with before that [K]; None for nothing."""

    grouped: GroupedWeight
    factors: np.ndarray | None = None


@dataclass(frozen=True)
class Weighted:
    """A product `call` of x and a constant.

    Attributes:
        options: of the pass.
        decided: what the weight becomes by calibration data; None without such.
    """

    root: relax.Var
    call: relax.Call
    weight: np.ndarray
    options: QuantizeWeights
    decided: Rounded | None = None

    @property
    def fits_halves(self) -> bool:
        """Whether the largest weight has a scale in half precision, with all digits of it."""
        largest = float(np.abs(self.weight).max(initial=0.0))
        least = float(_HALVES.smallest_normal) * limits(self.options.bits)[1]
        return largest == 0 or least <= largest < float(_HALVES.max)

    @cached_property
    def rounded(self) -> Rounded:
        """What the weight becomes."""
        return self.decided or self.options.rounded(self.weight)


@dataclass(frozen=True)
class QuantizeWeights(CalibratedPass[Weighted]):
    """Store the weights of products in 8 or 4 bits, with scales for groups of rows, and multiply in single precision.

        y = matmul(x, w)    becomes    y = grouped_matmul(x, q, scale)             8 bits, symmetric
                                       y = grouped_matmul(x, q, scale, offset)     4 bits, affine

    Nothing of x is rounded. A sixth to a quarter of the weight's bytes remains, which is what counts where x has few
    rows and time goes into reading weights. Levels are the nearest ones, of ranges that span each group (`nearest`) or
    of affine ranges clipped to the least squared error (`clipped`). Calibration data weigh that error, and may do more:
    `gptq` chooses levels for a small error of y (`greencc.passes.gptq`), and `awq` multiplies rows of w by factors and
    columns of x by their inverses (`greencc.passes.awq`); without data both are `clipped`. The result is close to the
    original, not equal: this pass is not in the default pipeline. Legal when
    1. operands and result are float32;
    2. the weight is a matrix;
    3. all weights are finite;
    4. scales and offsets in half precision hold the largest of them, with all digits;
    5. there are at least `min-weights` of them;
    6. the depth is a multiple of the group.

    Options:
        bits: 8 or 4.
        group: rows that share a scale, an even number.
        method: `nearest`, `clipped`, `awq` or `gptq`, see above.
        min_weights: see 5.
    """

    bits: int = 8
    group: int = 64
    method: str = "gptq"
    min_weights: int = 4096

    name: ClassVar[str] = "quantize-weights"
    approximates: ClassVar[bool] = True
    conditions: ClassVar[tuple[Condition[Weighted], ...]] = (
        Condition(1, "an operand or the result is not float32", lambda m: is_float32(*m.call.args, m.root)),
        Condition(2, "the weight is not a matrix", lambda m: m.weight.ndim == 2),
        Condition(3, "a weight is not finite", lambda m: all_finite(m.weight)),
        Condition(4, "weights are too large or too small for scales in half precision", lambda m: m.fits_halves),
        Condition(5, "the weight is too small for quantising to pay", lambda m: m.weight.size >= m.options.min_weights),
        Condition(6, "the depth is no multiple of the group", lambda m: len(m.weight) % m.options.group == 0),
    )

    def run(self, module: tvm.IRModule, context: PassContext) -> PassResult:
        """See CalibratedPass.

        Raises:
            UserError: an option has no such value.
        """
        if self.bits not in BITS or self.method not in METHODS or self.group < 2 or self.group % 2:
            raise UserError(
                f"{self.name}: bits are {' or '.join(map(str, BITS))}, group an even number, method one of "
                f"{', '.join(METHODS)}; not {self.bits}, {self.group}, {self.method}"
            )
        return super().run(module, context)

    def match(self, graph: Graph, var: relax.Var, call: relax.Call) -> Weighted | None:
        """See CalibratedPass."""
        if call.op.name != "relax.matmul":
            return None
        x, weight = (graph.constant(arg) for arg in call.args)
        if x is not None or weight is None:
            return None
        return Weighted(var, call, weight, self)

    def informed(self, activations: Activations, module: tvm.IRModule, matches: Sequence[Weighted]) -> list[Weighted]:
        """See CalibratedPass."""
        if self.method == "nearest":
            return list(matches)
        legal = [match for match in matches if self.refusal(match) is None]
        known = {match.root: match for match in legal}
        for some in _batches(legal):
            values = [match.call.args[0] for match in some]
            sizes = activations.mean_sizes(module, values) if self.method == "awq" else [None] * len(some)
            for match, gram, mean in zip(some, activations.grams(module, values), sizes, strict=True):
                if np.isfinite(gram).all():
                    known[match.root] = replace(match, decided=self.rounded(match.weight, gram, mean))
        return [known.get(match.root, match) for match in matches]

    def rounded(self, weight: np.ndarray, gram: np.ndarray | None = None, sizes: np.ndarray | None = None) -> Rounded:
        """What a weight [K, N] becomes.

        Args:
            weight: float32, legal.
            gram: x^T x over calibration data, float64 [K, K]; None without data.
            sizes: mean |x| of each column over the data [K]; None where `method` doesn't ask for them.
        """
        if self.method == "nearest":
            return Rounded(round_to_nearest(weight, self.group, self.bits))
        if gram is None:
            return Rounded(round_to_nearest(weight, self.group, self.bits, np.ones(len(weight))))
        if self.method == "gptq":
            return Rounded(gptq(weight, gram, self.group, self.bits))
        clipped = round_to_nearest(weight, self.group, self.bits, np.diag(gram))
        if sizes is None:
            return Rounded(clipped)
        factors = awq_factors(weight, sizes, gram, self.group, self.bits)
        importance = np.diag(gram) / factors.astype(np.float64) ** 2
        made = round_to_nearest(weight * factors[:, None], self.group, self.bits, importance)
        # The factors are best for ranges that aren't clipped.
        ours, plain = (output_error(v - weight, gram) for v in (made.values / factors[:, None], clipped.values))
        return Rounded(made, factors) if ours < plain else Rounded(clipped)

    def stored(self, match: Weighted) -> GroupedWeight:
        """See CalibratedPass."""
        return match.rounded.grouped

    def rewrite(self, builder: Builder, match: Weighted) -> relax.Expr:
        """See CalibratedPass."""
        made, factors, x = match.rounded.grouped, match.rounded.factors, match.call.args[0]
        if factors is not None:
            x = builder.emit(relax.op.multiply(x, constant(np.float32(1) / factors)))
        offset = None if made.offset is None else constant(made.offset)
        attrs = GroupAttrs(made.bits, made.group)
        return grouped_matmul(x, constant(made.levels), constant(made.scale), offset, attrs)


def _batches(matches: Sequence[Weighted]) -> Iterator[list[Weighted]]:
    """Matches in order, as many at once as grams may be held of."""
    some: list[Weighted] = []
    held = 0
    for match in matches:
        size = 8 * len(match.weight) ** 2
        if some and held + size > _MOST_GRAM_BYTES:
            yield some
            some, held = [], 0
        some.append(match)
        held += size
    if some:
        yield some
